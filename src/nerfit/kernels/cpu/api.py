"""The CPU bodies behind the kernels' public functions: tensors in, tensors out, the work shared among threads."""

from dataclasses import dataclass
from dataclasses import field as field_
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels import marching
from nerfit.kernels.adam import FactoredGradient
from nerfit.kernels.cpu import adam, compositing, field, hash_grid, inverse_cdf, matmul, pixels, rendering, sampling
from nerfit.kernels.cpu.matmul import LANES
from nerfit.kernels.cpu.runtime import part_count, run_parallel
from nerfit.kernels.field import FieldShape
from nerfit.kernels.hash_grid import GridLayout
from nerfit.kernels.inverse_cdf import LEAST_SHARE
from nerfit.kernels.marching import Occupancy, Samples
from nerfit.kernels.pixels import ATTEMPTS

_f32 = np.float32


def _array(tensor: Tensor) -> Any:
    return tensor.detach().numpy()


def _blocks(n: int) -> int:
    return (n + LANES - 1) // LANES


def _grid(layout: GridLayout) -> tuple[Any, Any, int]:
    return layout.resolutions, layout.offsets, layout.entries


def encode(x: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """Features [n, 4·levels]."""
    channels = 4 * layout.levels
    rows = torch.empty(_blocks(len(x)), channels, LANES)
    if len(x):
        run_parallel(hash_grid.encode, _array(x), _array(table), *_grid(layout), rows.view(-1).numpy(), channels)
    return rows.transpose(1, 2).reshape(-1, channels)[: len(x)].contiguous()


def encode_backward(x: Tensor, table: Tensor, gradient: Tensor, layout: GridLayout, wants_x: bool, wants_table: bool) -> Any:
    """Gradients of positions and table."""
    channels = 4 * layout.levels
    padded = torch.zeros(_blocks(len(x)) * LANES, channels)
    padded[: len(x)] = gradient
    rows = padded.reshape(-1, LANES, channels).transpose(1, 2).contiguous()
    g_table = torch.zeros_like(table) if wants_table else None
    if g_table is not None and len(x):
        run_parallel(hash_grid.scatter, *_one_row(x, rows), *_grid(layout), _array(g_table), channels)
    return position_gradient(x, rows.view(-1), table, layout, channels) if wants_x else None, g_table


def position_gradient(x: Tensor, g_features: Tensor, table: Tensor, layout: GridLayout, channels: int | None = None) -> Tensor:
    """dL/dx [n, 3] from the gradients of blocked features."""
    if not len(x):
        return torch.zeros_like(x)
    depth = layout.depth if channels is None else channels
    return _position_gradient(*_one_row(x, g_features), table, layout, depth)[0]


def _position_gradient(rows: Any, count: Any, g_features: Any, table: Tensor, layout: GridLayout, depth: int) -> list[Tensor]:
    """dL/dx [n, 3] of each row of blocked positions."""
    out = torch.empty(rows.shape)
    run_parallel(hash_grid.position_gradient, rows, count, g_features, _array(table), *_grid(layout), _array(out), depth)
    return [out[r].view(-1, 3, LANES).transpose(1, 2).reshape(-1, 3)[:n] for r, n in enumerate(count.tolist())]


def scatter(x: Tensor, g_features: Tensor, layout: GridLayout, into: Tensor) -> None:
    """Add the table's gradient to ``into``."""
    if len(x):
        run_parallel(hash_grid.scatter, *_one_row(x, g_features), *_grid(layout), _array(into), layout.depth)


def _one_row(x: Tensor, g_features: Tensor) -> tuple[Any, Any, Any]:
    """Blocked positions, number of samples and gradients, as one row of each."""
    rows = torch.empty(3 * LANES * _blocks(len(x))).numpy()
    run_parallel(hash_grid.all_positions, _array(x), rows)
    return rows.reshape(1, -1), np.array([len(x)]), _array(g_features).reshape(1, -1)


def spherical_harmonics(d: Tensor) -> Tensor:
    """The 16 values of unit directions."""
    out = torch.empty(len(d), 16)
    run_parallel(field.spherical_harmonics, _array(d), _array(out))
    return out


def density(x: Tensor, table: Tensor, weights: Tensor, shape: FieldShape, half: bool) -> Tensor:
    """Densities [n]."""
    out = torch.empty(_blocks(len(x)) * LANES)
    if len(x):
        run_parallel(field.density, _array(x), _array(table), *_grid(shape.grid), *_network(weights, shape, half), _array(out))
    return out[: len(x)]


def _network(weights: Tensor, shape: FieldShape, half: bool) -> tuple[Any, int, int, bool]:
    return _array(weights), shape.grid.depth, shape.width, half and matmul.has_tiles()


def field_forward(x: Tensor, d: Tensor, table: Tensor, weights: Tensor, shape: FieldShape, half: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Densities, colours and the blocked features."""
    blocks, depth = _blocks(len(x)), shape.grid.depth
    features = torch.empty(blocks * depth * LANES) if depth == 4 * shape.grid.levels else torch.zeros(blocks * depth * LANES)
    sigma, rgb = torch.empty(len(x)), torch.empty(len(x), 3)
    if len(x):
        network = _network(weights, shape, half)
        out = (_array(features), _array(sigma), _array(rgb))
        run_parallel(field.field_forward, _array(x), _array(d), _array(table), *_grid(shape.grid), *network, *out)
    return sigma, rgb, features


def field_backward(
    d: Tensor, features: Tensor, weights: Tensor, shape: FieldShape, half: bool, g_density: Tensor, g_rgb: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the blocked features, in their place, and of the weights."""
    sums = torch.zeros(part_count(), len(weights))
    if len(d):
        network = _network(weights, shape, half)
        run_parallel(field.field_backward, _array(d), _array(features), *network, _array(g_density), _array(g_rgb), _array(sums))
    return features, sums.sum(0)


def composite_forward(density: Tensor, rgb: Tensor, length: Tensor, t: Tensor, offsets: Tensor, least_light: float) -> Any:
    """Colour, opacity, depth, weights."""
    rays = len(offsets) - 1
    out = torch.empty(rays, 3), torch.empty(rays), torch.empty(rays), torch.empty(len(density))
    arrays = [_array(a) for a in (density, rgb, length, t, offsets)]
    run_parallel(compositing.composite_forward, *arrays, _f32(least_light), *map(_array, out))
    return out


def composite_backward(
    density: Tensor, rgb: Tensor, length: Tensor, t: Tensor, offsets: Tensor, weights: Tensor, least_light: float, *gradients: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of densities and colours."""
    g_density, g_rgb = torch.empty_like(density), torch.empty_like(rgb)
    arrays = [_array(a) for a in (density, rgb, length, t, offsets, weights)]
    run_parallel(compositing.composite_backward, *arrays, _f32(least_light), *map(_array, gradients), _array(g_density), _array(g_rgb))
    return g_density, g_rgb


def sparse_adam(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, rate: float, betas: tuple[float, float], eps: float, correction2: float, decay: float
) -> None:
    """One step in place."""
    arrays = [_array(a.view(-1)) for a in (p, g, m, v)]
    run_parallel(adam.adam, *arrays, *map(_f32, (rate, *betas, eps, correction2, decay)))


@lru_cache(maxsize=4)
def _level_sums(parts: int, entries: int) -> tuple[Any, Any]:
    """Zeros to sum a level's gradient in, for each thread; `scatter_adam` leaves zeros."""
    return torch.zeros(parts, 4 * entries).numpy(), torch.zeros(parts, entries // 4, dtype=torch.uint8).numpy()


def sparse_adam_factored(
    p: Tensor,
    g: FactoredGradient,
    m: Tensor,
    v: Tensor,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    correction2: float,
    decays: list[float],
) -> None:
    """One step in place, with a penalty's factor for each level."""
    numbers = map(_f32, (rate, *betas, eps, correction2))
    rows = (g.places, np.array(g.count), g.features)
    scratch = _level_sums(part_count(), g.layout.entries)
    run_parallel(
        adam.scatter_adam, *rows, *_grid(g.layout), g.layout.depth, *map(_array, (p, m, v)), *numbers, np.array(decays, _f32), *scratch
    )


def fade_and_raise(grid: Tensor, decay: float, cells: Tensor, found: Tensor) -> float:
    """Sum of all cells afterwards."""
    return sum(run_parallel(sampling.fade_and_raise, _array(grid), _f32(decay), _array(cells), _array(found)))


def pack_occupancy(grid: Tensor, threshold: float) -> Occupancy:
    """Bits, distances and box."""
    cascades = grid.numel() // marching.RESOLUTION**3
    bits = torch.empty(grid.numel() // 8, dtype=torch.uint8)
    distance = torch.empty(cascades * marching.BLOCKS**3, dtype=torch.uint8)
    matter = np.empty(len(distance) // 64, np.uint64)
    run_parallel(sampling.pack_bits, _array(grid), _f32(threshold), _array(bits), matter)
    run_parallel(sampling.block_distances, matter, marching.FARTHEST, _array(distance))
    return Occupancy(bits, distance, marching.occupied_box(distance))


def march(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    jitter: Tensor,
    occupancy: Occupancy,
    step: float,
    cone: float,
    limit: int,
) -> Samples:
    """All samples in occupied cells."""
    n = len(origins)
    room = _blocks(max(n * limit, 1)) * LANES
    t0, t1, x = np.empty(room, _f32), np.empty(room, _f32), np.empty(3 * room, _f32)
    count = torch.zeros(n, dtype=torch.long)
    rays = [_array(a.contiguous()) for a in (origins, directions, near, far, jitter)]
    run_parallel(sampling.march, *rays, *_occupancy(occupancy), _f32(step), _f32(cone), limit, t0, t1, x, _array(count))
    ray = torch.repeat_interleave(torch.arange(n), count)
    offsets = torch.cat([count.new_zeros(1), count.cumsum(0)])
    at = (torch.arange(len(ray)) - offsets[ray] + ray * limit).numpy()
    places = x.reshape(-1, 3, LANES)[at // LANES, :, at % LANES]
    return Samples(ray.int(), torch.from_numpy(t0[at]), torch.from_numpy(t1[at]), torch.from_numpy(places), offsets)


def _occupancy(occupancy: Occupancy) -> tuple[Any, Any, Any, int, int]:
    o = occupancy
    return _array(o.box), _array(o.bits), _array(o.distance), o.cascades, marching.RESOLUTION


@dataclass
class Slots:
    """What rays see, and the samples that it is made of: row p of each [parts, slots] array belongs to thread p.

    PyTorch makes the arrays: its memory begins at cache lines.
    """

    color: Tensor
    opacity: Tensor
    depth: Tensor
    ray: Any
    t0: Any
    t1: Any
    length: Any
    weight: Tensor
    light_after: Any
    places: Any
    looks: Any
    features: Any
    kept: list[int] = field_(default_factory=list)
    evaluated: int = 0

    def samples(self) -> tuple[Samples, Tensor]:
        """The kept samples by ray, and their slots' numbers in that order."""
        slots = self.ray.shape[1]
        slot = np.concatenate([part * slots + np.arange(many) for part, many in enumerate(self.kept)])
        slot = slot[np.argsort(self.ray.reshape(-1)[slot], kind="stable")]
        ray = self.ray.reshape(-1)[slot]
        count = np.bincount(ray, minlength=len(self.opacity))
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(count)]))
        x = self.places.reshape(-1, 3, LANES)[slot // LANES, :, slot % LANES]
        arrays = (ray, self.t0.reshape(-1)[slot], self.t1.reshape(-1)[slot], x)
        found = [torch.from_numpy(a) for a in arrays]
        return Samples(found[0], found[1], found[2], found[3], offsets, self.evaluated), torch.from_numpy(slot)


_room = 1 << 14


def render(
    rays: tuple[Tensor, ...],
    occupancy: Occupancy,
    step: float,
    cone: float,
    table: Tensor,
    weights: Tensor,
    shape: FieldShape,
    half: bool,
    least_weight: float,
    least_light: float,
    colors: bool,
    keep: bool,
) -> Slots:
    """Origins, directions, unit directions, near, far, jitter to colours; repeated with more room in the rare case that it is short."""
    global _room
    n, parts, depth = len(rays[0]), part_count(), shape.grid.depth
    arrays = [_array(a.contiguous()) for a in rays]
    while True:
        room = _blocks(_room) * LANES if keep else rendering.POOL * rendering.WAVE
        slots = Slots(
            color=torch.empty(n, 3),
            opacity=torch.empty(n),
            depth=torch.empty(n),
            ray=torch.empty(parts, room, dtype=torch.int32).numpy(),
            t0=torch.empty(parts, room).numpy(),
            t1=torch.empty(parts, room).numpy(),
            length=torch.empty(parts, room).numpy(),
            weight=torch.empty(parts, room),
            light_after=torch.empty(parts, room).numpy(),
            places=torch.empty(parts, 3 * room).numpy(),
            looks=torch.empty(parts, 3 * room).numpy(),
            features=torch.empty(parts, depth * room if keep else 0).numpy(),
        )
        done = run_parallel(
            rendering.render,
            *arrays,
            *_occupancy(occupancy),
            _f32(step),
            _f32(cone),
            _array(table),
            *_grid(shape.grid),
            *_network(weights, shape, half),
            _f32(least_weight),
            _f32(least_light),
            colors,
            keep,
            *(_array(t) for t in (slots.color, slots.opacity, slots.depth)),
            slots.ray,
            slots.t0,
            slots.t1,
            slots.length,
            _array(slots.weight),
            slots.light_after,
            slots.places,
            slots.looks,
            slots.features,
        )
        if not any(full for _, _, full in done):
            break
        _room *= 2
    slots.kept, slots.evaluated = [kept for kept, _, _ in done], sum(evaluated for _, evaluated, _ in done)
    return slots


def render_backward(
    slots: Slots, weights: Tensor, shape: FieldShape, half: bool, soft_near: float, stretch: bool, *gradients: Tensor | None
) -> Tensor:
    """Turn the slots' features into their gradients; the networks' gradients. With ``stretch`` what `ray_gradients` needs is kept."""
    n, parts = len(slots.opacity), len(slots.kept)
    g_color, g_opacity, g_depth, g_weight = gradients
    g_color = torch.zeros(n, 3) if g_color is None else g_color.contiguous()
    g_opacity, g_depth = (torch.zeros(n) if g is None else g.contiguous() for g in (g_opacity, g_depth))
    g_weight = torch.empty(parts, 0) if g_weight is None else g_weight.contiguous()
    sums = torch.zeros(parts, len(weights))
    run_parallel(
        rendering.render_backward,
        np.array(slots.kept),
        slots.ray,
        slots.t0,
        slots.t1,
        slots.length,
        _array(slots.weight),
        slots.light_after,
        slots.looks,
        slots.features,
        *_network(weights, shape, half),
        *map(_array, (g_color, g_opacity, g_depth, g_weight)),
        _f32(soft_near),
        stretch,
        _array(sums),
    )
    return sums.sum(0)


def ray_gradients(
    slots: Slots, origins: Tensor, directions: Tensor, table: Tensor, layout: GridLayout, cascades: int
) -> tuple[Tensor, Tensor]:
    """Gradients [n, 3] of rays whose samples stay at their distances, after `render_backward` with ``stretch``."""
    by_place = torch.cat(_position_gradient(slots.places, np.array(slots.kept), slots.features, table, layout, layout.depth))
    kept = list(enumerate(slots.kept))
    arrays = (slots.ray, slots.t0, slots.t1, slots.light_after)
    ray, t0, t1, stretch = (torch.cat([torch.from_numpy(a[r, :n]) for r, n in kept]) for a in arrays)
    with torch.enable_grad():
        o, d = (v.detach().requires_grad_() for v in (origins, directions))
        ray = ray.long()
        x = marching.contract(o[ray] + 0.5 * (t0 + t1)[:, None] * d[ray], cascades)
        stretched = torch.zeros(len(d)).index_add_(0, ray, stretch) * d.norm(dim=-1).log()
        g_origins, g_directions = torch.autograd.grad((x * by_place).sum() + stretched.sum(), (o, d))
    return g_origins, g_directions


def scatter_rows(g: FactoredGradient, into: Tensor) -> None:
    """Add the table's gradient to ``into``."""
    run_parallel(hash_grid.scatter, g.places, np.array(g.count), g.features, *_grid(g.layout), _array(into), g.layout.depth)


def visible_samples(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    jitter: Tensor,
    occupancy: Occupancy,
    step: float,
    cone: float,
    table: Tensor,
    weights: Tensor,
    shape: FieldShape,
    half: bool,
    least_weight: float,
    least_light: float,
) -> Samples:
    """The samples that can be seen."""
    rays = (origins, directions, directions, near, far, jitter)
    return render(rays, occupancy, step, cone, table, weights, shape, half, least_weight, least_light, False, True).samples()[0]


def sample_pdf(edges: Tensor, weights: Tensor, numbers: Tensor, padding: float) -> Tensor:
    """Distances [rays, samples] for numbers in [0, 1] of each ray, or one row of them for all."""
    out = torch.empty(len(edges), numbers.shape[1])
    run_parallel(inverse_cdf.sample_pdf, *map(_array, (edges, weights, numbers.double())), padding, LEAST_SHARE, _array(out))
    return out


def draw_pixels(
    stored: Tensor, starts: Tensor, width: Tensor, height: Tensor, views: Tensor, count: int, key: int, threshold: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """View, column, row and colour."""
    out = tuple(torch.empty(count, dtype=torch.long) for _ in range(3)) + (torch.empty(count, stored.shape[1]),)
    arrays = [_array(a) for a in (stored, starts, width, height, views)]
    run_parallel(pixels.draw_pixels, *arrays, key, threshold, ATTEMPTS, *map(_array, out))
    return out[0], out[1], out[2], out[3]


def camera_rays(
    c2w: Tensor,
    fx: Tensor,
    fy: Tensor,
    cx: Tensor,
    cy: Tensor,
    lens: Tensor | None,
    distortion: Tensor | None,
    offset: float,
    iterations: int,
    views: Tensor,
    x: Tensor,
    y: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Directions, unit directions, origins."""
    optics = (
        np.empty(0, np.int64) if lens is None else _array(lens),
        np.empty((0, 13), _f32) if distortion is None else _array(distortion),
    )
    out = torch.empty(len(views), 3), torch.empty(len(views), 3), torch.empty(len(views), 3)
    cameras = [_array(a) for a in (c2w, fx, fy, cx, cy)]
    run_parallel(pixels.camera_rays, *cameras, *optics, _f32(offset), iterations, *map(_array, (views, x, y)), *map(_array, out))
    return out
