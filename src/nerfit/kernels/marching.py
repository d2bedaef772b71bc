"""Occupancy grids: bits that say where matter may be, the march of rays through them, and what of it can be seen."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerfit.kernels.compositing import light_before
from nerfit.kernels.dispatch import backend, implementation
from nerfit.kernels.field import field_density
from nerfit.kernels.layouts import BLOCKS, FARTHEST, RESOLUTION, FieldShape, Occupancy, Samples, contract, occupied_box


@torch.no_grad()
def fade_and_raise(grid: Float[Tensor, "cells"], decay: float, cells: Int[Tensor, "n"], found: Float[Tensor, "n"]) -> float:
    """grid = max(decay·grid, found) in place, where ``cells`` (int64) says which cell each found value is of; returns the mean."""
    if backend(grid.device) == "cpu" and grid.dtype == torch.float32:
        from nerfit.kernels.cpu import api

        return api.fade_and_raise(grid, decay, cells.contiguous(), found.contiguous()) / len(grid)
    grid.mul_(decay).scatter_reduce_(0, cells, found, "amax")
    return float(grid.mean())


def pack_occupancy(grid: Float[Tensor, "cells"], threshold: float) -> Occupancy:
    """The occupancy of cells whose value lies above a threshold; ``grid`` holds cascade after cascade, x fastest."""
    if backend(grid.device) == "cpu":
        from nerfit.kernels.cpu import api

        return api.pack_occupancy(grid, threshold)
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


def march(
    origins: Float[Tensor, "rays 3"],
    directions: Float[Tensor, "rays 3"],
    near: Float[Tensor, "rays"],
    far: Float[Tensor, "rays"],
    jitter: Float[Tensor, "rays"],
    occupancy: Occupancy,
    step: float,
    cone_angle: float = 0.0,
    limit: int = 1024,
) -> Samples:
    """All samples of rays o + t·d (in cascade coordinates, d of any length) whose middles lie in occupied cells.

    A ray starts where it enters the box, plus ``jitter`` steps; steps are ``step`` long, or t·``cone_angle`` where that is more, at
    most a cell of the coarsest cascade. A sample belongs to the finest cascade that holds its middle and whose cells are no
    smaller than it is long. At most ``limit`` samples a ray.
    """
    if backend(origins.device) == "reference" or origins.dtype != torch.float32:
        return march_reference(origins, directions, near, far, jitter, occupancy, step, cone_angle, limit)
    return implementation(origins.device, "marching").march(origins, directions, near, far, jitter, occupancy, step, cone_angle, limit)


def march_reference(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    jitter: Tensor,
    occupancy: Occupancy,
    step: float,
    cone_angle: float,
    limit: int,
) -> Samples:
    """`march` in PyTorch: every sample of every ray is looked at, occupied or not."""
    box = occupancy.box.to(origins)
    a, b = (box[0] - origins) / directions, (box[1] - origins) / directions
    inside = ((origins >= box[0]) & (origins <= box[1])) | (directions.abs() >= 1e-12)
    a, b = torch.where(directions.abs() < 1e-12, -torch.inf, a), torch.where(directions.abs() < 1e-12, torch.inf, b)
    first = torch.maximum(near, torch.minimum(a, b).amax(-1))
    last = torch.minimum(far, torch.maximum(a, b).amin(-1))
    last = torch.where(inside.all(-1), last, -torch.inf)
    norm = directions.norm(dim=-1)
    coarsest = 2.0 ** (occupancy.cascades - 1)
    least, most = step / norm, torch.maximum(coarsest / (RESOLUTION * norm), step / norm)
    now = first + jitter * torch.maximum(least, first * cone_angle)
    rays, starts, ends, places = [], [], [], []
    count = torch.zeros(len(origins), dtype=torch.long, device=origins.device)
    while bool((alive := (now < last) & (count < limit)).any()):
        i = alive.nonzero().flatten()
        dt = torch.minimum(torch.maximum(now[i] * cone_angle, least[i]), most[i])
        middle = origins[i] + (now[i] + 0.5 * dt)[:, None] * directions[i]
        hit = _occupied(middle, dt * norm[i], occupancy)
        kept = i[hit]
        rays.append(kept)
        starts.append(now[kept])
        ends.append(now[kept] + dt[hit])
        places.append(contract(middle[hit], occupancy.cascades))
        count[kept] += 1
        now[i] = now[i] + dt
    if not rays:
        empty = origins.new_zeros(0)
        rays, starts, ends, places = [count.new_zeros(0)], [empty], [empty], [origins.new_zeros(0, 3)]
    ray = torch.cat(rays)
    order = torch.argsort(ray, stable=True)
    offsets = torch.cat([count.new_zeros(1), count.cumsum(0)])
    return Samples(ray[order].int(), torch.cat(starts)[order], torch.cat(ends)[order], torch.cat(places)[order], offsets)


def _occupied(x: Tensor, length: Tensor, occupancy: Occupancy) -> Tensor:
    """Whether samples at x ([n, 3]) of given lengths lie in occupied cells."""
    reach = (x - 0.5).abs().amax(-1)
    level = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for k in range(occupancy.cascades - 1):
        level += (reach >= 0.5 * 2**k) | (length * RESOLUTION > 2**k)
    cell = (((x - 0.5) / 2.0 ** level[:, None] + 0.5) * RESOLUTION).floor().long().clamp(0, RESOLUTION - 1)
    index = ((level * RESOLUTION + cell[:, 2]) * RESOLUTION + cell[:, 1]) * RESOLUTION + cell[:, 0]
    return (occupancy.bits[index >> 3].long() >> (index & 7) & 1).bool()


def visible_samples(
    origins: Float[Tensor, "rays 3"],
    directions: Float[Tensor, "rays 3"],
    near: Float[Tensor, "rays"],
    far: Float[Tensor, "rays"],
    jitter: Float[Tensor, "rays"],
    occupancy: Occupancy,
    step: float,
    cone_angle: float,
    table: Tensor,
    weights: Tensor,
    shape: FieldShape,
    half: bool,
    min_weight: float,
    early_stop: float,
) -> Samples:
    """Those samples of `march` whose weight in the field's own light reaches ``min_weight``.

    Rays end where their transmittance falls below ``early_stop``. No gradients.
    """
    with torch.no_grad():
        if backend(origins.device) == "cpu" and origins.dtype == torch.float32:
            from nerfit.kernels.cpu import rendering_api

            return rendering_api.visible_samples(
                origins, directions, near, far, jitter, occupancy, step, cone_angle, table, weights, shape, half, min_weight, early_stop
            )
        samples = march(origins, directions, near, far, jitter, occupancy, step, cone_angle)
        density = field_density(samples.x, table, weights, shape, half)
        return keep_visible(samples, density, directions.norm(dim=-1), min_weight, early_stop)


def keep_visible(samples: Samples, density: Tensor, norm: Tensor, min_weight: float, early_stop: float) -> Samples:
    """The samples whose weight reaches ``min_weight`` before their ray's light falls below ``early_stop``; ``norm`` is |d|."""
    ray = samples.ray_indices.long()
    optical = density * samples.lengths(norm)
    light = light_before(optical, ray, samples.offsets)
    keep = (light * -torch.expm1(-optical) >= min_weight) & (light >= early_stop)
    counts = torch.zeros(len(samples.offsets) - 1, dtype=torch.long, device=ray.device).index_add(0, ray, keep.long())
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    ray_indices, t_starts, t_ends = samples.ray_indices[keep], samples.t_starts[keep], samples.t_ends[keep]
    return Samples(ray_indices, t_starts, t_ends, samples.x[keep], offsets, len(samples))
