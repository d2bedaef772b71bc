"""Occupancy grids: bits that say where matter may be, the march of rays through them, and what of it can be seen."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nerfit.kernels.compositing import light_before
from nerfit.kernels.dispatch import backend, implementation
from nerfit.kernels.field import FieldShape, field_density

RESOLUTION = 128
"""Cells along each side of a cascade."""
BLOCKS = RESOLUTION // 2
FARTHEST = 15
"""Largest distance to matter, in blocks of 2x2x2 cells, that the march knows of."""


@dataclass
class Occupancy:
    """Cascade k is a cube of side 2ᵏ around (½, ½, ½), of 128³ cells; cascade 0 is the unit cube."""

    bits: UInt8[Tensor, "cascades*128**3/8"]
    """One bit per cell, x fastest, lowest bit first."""
    distance: UInt8[Tensor, "cascades*64**3"]
    """Each 2x2x2 block's Chebyshev distance, in blocks and at most 15, to one with an occupied cell in the same cascade."""
    box: Float[Tensor, "2 3"]
    """Lower and upper corner of a box that holds all occupied cells."""

    @property
    def cascades(self) -> int:
        """Number of cubes."""
        return len(self.distance) // BLOCKS**3


@dataclass
class Samples:
    """Packed samples: those of ray i are offsets[i] … offsets[i + 1] - 1, front to back."""

    ray_indices: Int[Tensor, "samples"]
    t_starts: Float[Tensor, "samples"]
    t_ends: Float[Tensor, "samples"]
    x: Float[Tensor, "samples 3"]
    """Middles, as positions in the field's cube (`contract`)."""
    offsets: Int[Tensor, "rays_plus_1"]
    evaluated: int = 0
    """Densities that were asked for on the way."""

    def __len__(self) -> int:
        return len(self.t_starts)

    @property
    def middles(self) -> Float[Tensor, "samples"]:
        """Distances t of the samples' middles."""
        return 0.5 * (self.t_starts + self.t_ends)

    def lengths(self, norm: Float[Tensor, "rays"]) -> Float[Tensor, "samples"]:
        """Lengths of the samples, where ``norm`` is that of each ray's direction."""
        return (self.t_ends - self.t_starts) * norm[self.ray_indices.long()]


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


def occupied_box(distance: Tensor) -> Float[Tensor, "2 3"]:
    """A box around all blocks at distance 0; the empty box (½, ½) if there is none."""
    cascades = len(distance) // BLOCKS**3
    low, high = torch.full((3,), torch.inf), torch.full((3,), -torch.inf)
    for level in range(cascades):
        matter = distance.reshape(cascades, BLOCKS, BLOCKS, BLOCKS)[level] == 0
        for axis, others in enumerate(((0, 1), (0, 2), (1, 2))):  # x is the last dimension
            found = matter.any(others[1]).any(others[0]).nonzero().flatten().cpu()
            if len(found):
                ends = torch.stack([found[0], found[-1] + 1]) / BLOCKS
                ends = (ends - 0.5) * 2**level + 0.5
                low[axis], high[axis] = torch.minimum(low[axis], ends[0]), torch.maximum(high[axis], ends[1])
    box = torch.stack([low, high]) if bool(torch.isfinite(low).all()) else torch.full((2, 3), 0.5)
    return box.to(distance.device)


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


def contract(x: Float[Tensor, "n 3"], cascades: int) -> Float[Tensor, "n 3"]:
    """Positions in cascade coordinates as positions in the field's cube [0, 1]³.

    With one cascade they are the same. Else the unit cube becomes the middle of the field's, half as long on each side, and all of
    space around it the rest, squeezed as 1/distance: mip-NeRF 360's equation 10, with the largest coordinate for the norm.
    """
    if cascades == 1:
        return x
    reach = 2 * (x - 0.5).abs().amax(-1, keepdim=True).clamp(min=0.5)
    return 0.5 * (2 - 1 / reach) / reach * (x - 0.5) + 0.5


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
