"""The CPU bodies behind the kernels' public functions: tensors in, tensors out, the work shared among threads."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels import marching
from nerfit.kernels.cpu import adam, compositing, field, hash_grid, inverse_cdf, matmul, pixels, sampling
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
        run_parallel(hash_grid.scatter, _array(x), rows.view(-1).numpy(), *_grid(layout), _array(g_table), channels)
    return position_gradient(x, rows.view(-1), table, layout, channels) if wants_x else None, g_table


def position_gradient(x: Tensor, g_features: Tensor, table: Tensor, layout: GridLayout, channels: int | None = None) -> Tensor:
    """dL/dx [n, 3] from the gradients of blocked features."""
    out = torch.zeros_like(x)
    if len(x):
        depth = layout.depth if channels is None else channels
        run_parallel(hash_grid.position_gradient, _array(x), _array(g_features), _array(table), *_grid(layout), _array(out), depth)
    return out


def scatter(x: Tensor, g_features: Tensor, layout: GridLayout, into: Tensor) -> None:
    """Add the table's gradient to ``into``."""
    if len(x):
        run_parallel(hash_grid.scatter, _array(x), _array(g_features), *_grid(layout), _array(into), layout.depth)


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


def pack_occupancy(grid: Tensor, threshold: float) -> Occupancy:
    """Bits, distances and box."""
    cascades = grid.numel() // marching.RESOLUTION**3
    bits = torch.empty(grid.numel() // 8, dtype=torch.uint8)
    distance = torch.empty(cascades * marching.BLOCKS**3, dtype=torch.uint8)
    sampling.pack_occupancy(_array(grid), _f32(threshold), _array(bits), _array(distance))
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


_room = 1 << 14


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
    """The samples that can be seen; repeated with more room in the rare case that they did not fit."""
    global _room
    n, parts = len(origins), part_count()
    arrays = [_array(a.contiguous()) for a in (origins, directions, near, far, jitter)]
    count = torch.zeros(n, dtype=torch.long)
    while True:
        ray = np.empty((parts, _room), np.int32)
        t0, t1, x = np.empty((parts, _room), _f32), np.empty((parts, _room), _f32), np.empty((parts, _room, 3), _f32)
        done = run_parallel(
            sampling.visible_samples,
            *arrays,
            *_occupancy(occupancy),
            _f32(step),
            _f32(cone),
            _array(table),
            *_grid(shape.grid),
            *_network(weights, shape, half),
            _f32(least_weight),
            _f32(least_light),
            ray,
            t0,
            t1,
            x,
            _array(count),
        )
        if not any(full for _, _, full in done):
            break
        _room *= 2
    kept = [torch.from_numpy(np.concatenate([a[part, : done[part][0]] for part in range(parts)])) for a in (ray, t0, t1, x)]
    offsets = torch.cat([count.new_zeros(1), count.cumsum(0)])
    return Samples(kept[0], kept[1], kept[2], kept[3], offsets, sum(evaluated for _, evaluated, _ in done))


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
    distortion: Tensor | None,
    offset: float,
    iterations: int,
    views: Tensor,
    x: Tensor,
    y: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Directions with unit depth, unit directions, origins."""
    lens = np.empty((0, 5), _f32) if distortion is None else _array(distortion)
    out = torch.empty(len(views), 3), torch.empty(len(views), 3), torch.empty(len(views), 3)
    cameras = [_array(a) for a in (c2w, fx, fy, cx, cy)]
    run_parallel(pixels.camera_rays, *cameras, lens, _f32(offset), iterations, *map(_array, (views, x, y)), *map(_array, out))
    return out
