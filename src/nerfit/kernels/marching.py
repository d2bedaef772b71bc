"""Occupancy grids: one bit per cell that may hold matter, the march of rays through them, and the visible samples."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerfit.kernels.compositing import light_before
from nerfit.kernels.dispatch import backend, implementation
from nerfit.kernels.field import field_density
from nerfit.kernels.layouts import (
    BLOCKS,
    FARTHEST,
    RESOLUTION,
    Cutoffs,
    March,
    Network,
    Occupancy,
    RaySet,
    Samples,
    contract,
    occupied_box,
)


@torch.no_grad()
def fade_and_raise(grid: Float[Tensor, "cells"], decay: float, cells: Int[Tensor, "n"], found: Float[Tensor, "n"]) -> float:
    """Update an occupancy grid's densities in place, grid = max(decay·grid, found), and return their mean.

    Args:
        grid: Value of every cell [cells], changed in place.
        decay: Factor of all cells.
        cells: Indices [n] (int64) of the updated cells; one may occur several times.
        found: Their new values [n].
    """
    if backend(grid.device) == "cpu" and grid.dtype == torch.float32:
        from nerfit.kernels.cpu import marching

        return marching.fade_and_raise(grid, decay, cells.contiguous(), found.contiguous()) / len(grid)
    grid.mul_(decay).scatter_reduce_(0, cells, found, "amax")
    return float(grid.mean())


def pack_occupancy(grid: Float[Tensor, "cells"], threshold: float) -> Occupancy:
    """The occupancy of cells whose value lies above a threshold.

    Args:
        grid: Values [cascades·128³], cascade after cascade, x fastest.
        threshold: A cell at the threshold is empty.
    """
    if backend(grid.device) == "cpu":
        from nerfit.kernels.cpu import marching

        return marching.pack_occupancy(grid, threshold)
    occupied = grid > threshold
    powers = 2 ** torch.arange(8, device=grid.device)
    bits = (occupied.reshape(-1, 8) * powers).sum(-1).to(torch.uint8)
    cells = occupied.reshape(-1, BLOCKS, 2, BLOCKS, 2, BLOCKS, 2)
    matter = cells.any(6).any(4).any(2)
    distance = torch.full(matter.shape, FARTHEST, dtype=torch.uint8, device=grid.device)
    grown = matter[:, None].float()
    for away in range(FARTHEST):
        distance = torch.where((grown[:, 0] > 0) & (distance > away), away, distance).to(torch.uint8)
        grown = torch.nn.functional.max_pool3d(grown, 3, 1, 1)
    return Occupancy(bits, distance.flatten(), occupied_box(distance.flatten()))


def march_rays(rays: RaySet, march: March, limit: int = 1024) -> Samples:
    """All samples of rays whose middles lie in occupied cells (instant-ngp, appendix E).

    Args:
        rays: Rays in cascade coordinates. A ray starts where it enters the occupancy's box, plus ``jitter`` steps.
        march: Occupancy and steps: ``step`` long, or t·``cone_angle`` if that is more, at most a cell of the coarsest cascade. A sample
            belongs to the finest cascade that holds its middle and whose cells are no smaller than it is long.
        limit: Most samples of a ray.
    """
    if backend(rays.origins.device) == "reference" or rays.origins.dtype != torch.float32:
        return march_rays_reference(rays, march, limit)
    return implementation(rays.origins.device, "marching").march_rays(rays, march, limit)


def march_rays_reference(rays: RaySet, march: March, limit: int = 1024) -> Samples:
    """`march_rays` in PyTorch, which tests every sample of every ray."""
    origins, directions, occupancy, cone_angle = rays.origins, rays.directions, march.occupancy, march.cone_angle
    box = occupancy.box.to(origins)
    a, b = (box[0] - origins) / directions, (box[1] - origins) / directions
    inside = ((origins >= box[0]) & (origins <= box[1])) | (directions.abs() >= 1e-12)
    a, b = torch.where(directions.abs() < 1e-12, -torch.inf, a), torch.where(directions.abs() < 1e-12, torch.inf, b)
    first = torch.maximum(rays.near, torch.minimum(a, b).amax(-1))
    last = torch.minimum(rays.far, torch.maximum(a, b).amin(-1))
    last = torch.where(inside.all(-1), last, -torch.inf)
    norm = directions.norm(dim=-1)
    coarsest = 2.0 ** (occupancy.cascades - 1)
    least, most = march.step / norm, torch.maximum(coarsest / (RESOLUTION * norm), march.step / norm)
    now = first + rays.jitter * torch.maximum(least, first * cone_angle)
    indices, starts, ends, positions = [], [], [], []
    count = torch.zeros(len(origins), dtype=torch.long, device=origins.device)
    while bool((alive := (now < last) & (count < limit)).any()):
        i = alive.nonzero().flatten()
        dt = torch.minimum(torch.maximum(now[i] * cone_angle, least[i]), most[i])
        middle = origins[i] + (now[i] + 0.5 * dt)[:, None] * directions[i]
        hit = _occupied(middle, dt * norm[i], occupancy)
        kept = i[hit]
        indices.append(kept)
        starts.append(now[kept])
        ends.append(now[kept] + dt[hit])
        positions.append(contract(middle[hit], occupancy.cascades))
        count[kept] += 1
        now[i] = now[i] + dt
    if not indices:
        empty = origins.new_zeros(0)
        indices, starts, ends, positions = [count.new_zeros(0)], [empty], [empty], [origins.new_zeros(0, 3)]
    ray = torch.cat(indices)
    order = torch.argsort(ray, stable=True)
    offsets = torch.cat([count.new_zeros(1), count.cumsum(0)])
    return Samples(ray[order].int(), torch.cat(starts)[order], torch.cat(ends)[order], torch.cat(positions)[order], offsets)


def _occupied(x: Tensor, length: Tensor, occupancy: Occupancy) -> Tensor:
    """Whether samples at x ([n, 3]) of given lengths lie in occupied cells."""
    reach = (x - 0.5).abs().amax(-1)
    level = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for k in range(occupancy.cascades - 1):
        level += (reach >= 0.5 * 2**k) | (length * RESOLUTION > 2**k)
    cell = (((x - 0.5) / 2.0 ** level[:, None] + 0.5) * RESOLUTION).floor().long().clamp(0, RESOLUTION - 1)
    index = ((level * RESOLUTION + cell[:, 2]) * RESOLUTION + cell[:, 1]) * RESOLUTION + cell[:, 0]
    return (occupancy.bits[index >> 3].long() >> (index & 7) & 1).bool()


@torch.no_grad()
def visible_samples(rays: RaySet, march: March, network: Network, cutoffs: Cutoffs) -> Samples:
    """Those samples of `march_rays` whose rendering weight reaches ``cutoffs.min_weight`` in the field itself, without gradients.

    Args:
        rays: Rays in cascade coordinates, which stop at a transmittance of ``cutoffs.early_stop``.
        march: Occupancy and steps.
        network: The field, of which only the density is evaluated.
        cutoffs: Least weight and least transmittance.
    """
    if backend(rays.origins.device) == "cpu" and rays.origins.dtype == torch.float32:
        from nerfit.kernels.cpu import rendering

        return rendering.visible_samples(rays, march, network, cutoffs)
    samples = march_rays(rays, march)
    return keep_visible(samples, field_density(samples.x, network), rays.directions.norm(dim=-1), cutoffs)


def keep_visible(samples: Samples, density: Float[Tensor, "samples"], norm: Float[Tensor, "rays"], cutoffs: Cutoffs) -> Samples:
    """The samples whose weight reaches ``min_weight`` before the transmittance of their ray falls below ``early_stop``.

    Args:
        samples: Packed samples.
        density: Their densities [samples].
        norm: Lengths [rays] of the rays' directions.
        cutoffs: Least weight and least transmittance.
    """
    ray = samples.ray_indices.long()
    optical = density * samples.lengths(norm)
    transmittance = light_before(optical, ray, samples.offsets)
    keep = (transmittance * -torch.expm1(-optical) >= cutoffs.min_weight) & (transmittance >= cutoffs.early_stop)
    counts = torch.zeros(len(samples.offsets) - 1, dtype=torch.long, device=ray.device).index_add(0, ray, keep.long())
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    ray_indices, t_starts, t_ends = samples.ray_indices[keep], samples.t_starts[keep], samples.t_ends[keep]
    return Samples(ray_indices, t_starts, t_ends, samples.x[keep], offsets, len(samples))
