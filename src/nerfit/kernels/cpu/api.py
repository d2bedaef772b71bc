"""The CPU bodies behind the kernels' public functions: tensors in, tensors out, the work shared among threads."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels import layouts
from nerfit.kernels.cpu import adam, compositing, field, hash_grid, inverse_cdf, pixels, sampling
from nerfit.kernels.cpu.matmul import LANES
from nerfit.kernels.cpu.runtime import part_count, run_parallel
from nerfit.kernels.cpu.tensors import array, blocks_of, f32, field_arrays, grid, march_arrays, matrices
from nerfit.kernels.layouts import ATTEMPTS, LEAST_SHARE, FactoredGradient, GridLayout, March, Network, Occupancy, RaySet, Samples


def encode(x: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """Features [n, 4·levels]."""
    channels = 4 * layout.levels
    rows = torch.empty(blocks_of(len(x)), channels, LANES)
    if len(x):
        run_parallel(hash_grid.encode, array(x), array(table), *grid(layout), rows.view(-1).numpy(), channels)
    return rows.transpose(1, 2).reshape(-1, channels)[: len(x)].contiguous()


def encode_backward(x: Tensor, table: Tensor, gradient: Tensor, layout: GridLayout, wants_x: bool, wants_table: bool) -> Any:
    """Gradients of positions and table."""
    channels = 4 * layout.levels
    padded = torch.zeros(blocks_of(len(x)) * LANES, channels)
    padded[: len(x)] = gradient
    rows = padded.reshape(-1, LANES, channels).transpose(1, 2).contiguous()
    g_table = torch.zeros_like(table) if wants_table else None
    if g_table is not None and len(x):
        run_parallel(hash_grid.scatter, *_one_row(x, rows), *grid(layout), array(g_table), channels)
    return position_gradient(x, rows.view(-1), table, layout, channels) if wants_x else None, g_table


def position_gradient(x: Tensor, g_features: Tensor, table: Tensor, layout: GridLayout, channels: int | None = None) -> Tensor:
    """dL/dx [n, 3] from the gradients of blocked features."""
    if not len(x):
        return torch.zeros_like(x)
    depth = layout.depth if channels is None else channels
    return gradients_by_place(*_one_row(x, g_features), table, layout, depth)[0]


def gradients_by_place(rows: Any, count: Any, g_features: Any, table: Tensor, layout: GridLayout, depth: int) -> list[Tensor]:
    """dL/dx [n, 3] of each row of blocked positions, ``count`` of which are samples."""
    out = torch.empty(rows.shape)
    run_parallel(hash_grid.position_gradient, rows, count, g_features, array(table), *grid(layout), array(out), depth)
    return [out[r].view(-1, 3, LANES).transpose(1, 2).reshape(-1, 3)[:n] for r, n in enumerate(count.tolist())]


def scatter(x: Tensor, g_features: Tensor, layout: GridLayout, into: Tensor) -> None:
    """Add the table's gradient to ``into``."""
    if len(x):
        run_parallel(hash_grid.scatter, *_one_row(x, g_features), *grid(layout), array(into), layout.depth)


def _one_row(x: Tensor, g_features: Tensor) -> tuple[Any, Any, Any]:
    """Blocked positions, number of samples and gradients, as one row of each."""
    rows = torch.empty(3 * LANES * blocks_of(len(x))).numpy()
    run_parallel(hash_grid.all_positions, array(x), rows)
    return rows.reshape(1, -1), np.array([len(x)]), array(g_features).reshape(1, -1)


def spherical_harmonics(d: Tensor) -> Tensor:
    """The 16 values of unit directions."""
    out = torch.empty(len(d), 16)
    run_parallel(field.spherical_harmonics, array(d), array(out))
    return out


def density(x: Tensor, network: Network) -> Tensor:
    """Densities [n]."""
    out = torch.empty(blocks_of(len(x)) * LANES)
    if len(x):
        run_parallel(field.density, array(x), *field_arrays(network), array(out))
    return out[: len(x)]


def field_forward(x: Tensor, d: Tensor, network: Network) -> tuple[Tensor, Tensor, Tensor]:
    """Densities, colours and the blocked features."""
    grid = network.shape.grid
    blocks, depth = blocks_of(len(x)), grid.depth
    features = torch.empty(blocks * depth * LANES) if depth == 4 * grid.levels else torch.zeros(blocks * depth * LANES)
    sigma, rgb = torch.empty(len(x)), torch.empty(len(x), 3)
    if len(x):
        run_parallel(field.field_forward, array(x), array(d), *field_arrays(network), array(features), array(sigma), array(rgb))
    return sigma, rgb, features


def field_backward(d: Tensor, features: Tensor, network: Network, g_density: Tensor, g_rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the blocked features, in their place, and of the weights."""
    sums = torch.zeros(part_count(), len(network.weights))
    if len(d):
        arrays = map(array, (g_density, g_rgb, sums))
        run_parallel(field.field_backward, array(d), array(features), *matrices(network), *arrays)
    return features, sums.sum(0)


def composite_forward(density: Tensor, rgb: Tensor, length: Tensor, t: Tensor, offsets: Tensor, early_stop: float) -> Any:
    """Colour, opacity, depth, weights."""
    rays = len(offsets) - 1
    out = torch.empty(rays, 3), torch.empty(rays), torch.empty(rays), torch.empty(len(density))
    arrays = [array(a) for a in (density, rgb, length, t, offsets)]
    run_parallel(compositing.composite_forward, *arrays, f32(early_stop), *map(array, out))
    return out


def composite_backward(
    density: Tensor, rgb: Tensor, length: Tensor, t: Tensor, offsets: Tensor, weights: Tensor, early_stop: float, *gradients: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of densities and colours."""
    g_density, g_rgb = torch.empty_like(density), torch.empty_like(rgb)
    arrays = [array(a) for a in (density, rgb, length, t, offsets, weights)]
    run_parallel(compositing.composite_backward, *arrays, f32(early_stop), *map(array, gradients), array(g_density), array(g_rgb))
    return g_density, g_rgb


def sparse_adam(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, rate: float, betas: tuple[float, float], eps: float, correction2: float, decay: float
) -> None:
    """One step in place."""
    arrays = [array(a.view(-1)) for a in (p, g, m, v)]
    run_parallel(adam.adam, *arrays, *map(f32, (rate, *betas, eps, correction2, decay)))


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
    numbers = map(f32, (rate, *betas, eps, correction2))
    rows = (g.positions, np.array(g.count), g.features)
    scratch = _level_sums(part_count(), g.layout.entries)
    run_parallel(
        adam.scatter_adam, *rows, *grid(g.layout), g.layout.depth, *map(array, (p, m, v)), *numbers, np.array(decays, f32), *scratch
    )


def fade_and_raise(grid: Tensor, decay: float, cells: Tensor, found: Tensor) -> float:
    """Sum of all cells afterwards."""
    return sum(run_parallel(sampling.fade_and_raise, array(grid), f32(decay), array(cells), array(found)))


def pack_occupancy(grid: Tensor, threshold: float) -> Occupancy:
    """Bits, distances and box."""
    cascades = grid.numel() // layouts.RESOLUTION**3
    bits = torch.empty(grid.numel() // 8, dtype=torch.uint8)
    distance = torch.empty(cascades * layouts.BLOCKS**3, dtype=torch.uint8)
    matter = np.empty(len(distance) // 64, np.uint64)
    run_parallel(sampling.pack_bits, array(grid), f32(threshold), array(bits), matter)
    run_parallel(sampling.block_distances, matter, layouts.FARTHEST, array(distance))
    return Occupancy(bits, distance, layouts.occupied_box(distance))


def march_rays(rays: RaySet, march: March, limit: int) -> Samples:
    """All samples in occupied cells."""
    n = len(rays)
    room = blocks_of(max(n * limit, 1)) * LANES
    t0, t1, x = np.empty(room, f32), np.empty(room, f32), np.empty(3 * room, f32)
    count = torch.zeros(n, dtype=torch.long)
    given = [array(a.contiguous()) for a in (rays.origins, rays.directions, rays.near, rays.far, rays.jitter)]
    run_parallel(sampling.march, *given, *march_arrays(march), limit, t0, t1, x, array(count))
    ray = torch.repeat_interleave(torch.arange(n), count)
    offsets = torch.cat([count.new_zeros(1), count.cumsum(0)])
    at = (torch.arange(len(ray)) - offsets[ray] + ray * limit).numpy()
    positions = x.reshape(-1, 3, LANES)[at // LANES, :, at % LANES]
    return Samples(ray.int(), torch.from_numpy(t0[at]), torch.from_numpy(t1[at]), torch.from_numpy(positions), offsets)


def scatter_rows(g: FactoredGradient, into: Tensor) -> None:
    """Add the table's gradient to ``into``."""
    run_parallel(hash_grid.scatter, g.positions, np.array(g.count), g.features, *grid(g.layout), array(into), g.layout.depth)


def sample_pdf(edges: Tensor, weights: Tensor, numbers: Tensor, padding: float) -> Tensor:
    """Distances [rays, samples] for numbers in [0, 1] of each ray, or one row of them for all."""
    out = torch.empty(len(edges), numbers.shape[1])
    run_parallel(inverse_cdf.sample_pdf, *map(array, (edges, weights, numbers.double())), padding, LEAST_SHARE, array(out))
    return out


def draw_pixels(
    stored: Tensor,
    starts: Tensor,
    width: Tensor,
    height: Tensor,
    views: Tensor,
    count: int,
    key: int,
    threshold: int,
    first: int,
    every: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """View, column, row and colour."""
    drawn = len(range(first, count, every))
    out = tuple(torch.empty(drawn, dtype=torch.long) for _ in range(3)) + (torch.empty(drawn, stored.shape[1]),)
    arrays = [array(a) for a in (stored, starts, width, height, views)]
    run_parallel(pixels.draw_pixels, *arrays, count, first, every, key, threshold, ATTEMPTS, *map(array, out))
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
        np.empty(0, np.int64) if lens is None else array(lens),
        np.empty((0, 13), f32) if distortion is None else array(distortion),
    )
    out = torch.empty(len(views), 3), torch.empty(len(views), 3), torch.empty(len(views), 3)
    cameras = [array(a) for a in (c2w, fx, fy, cx, cy)]
    run_parallel(pixels.camera_rays, *cameras, *optics, f32(offset), iterations, *map(array, (views, x, y)), *map(array, out))
    return out
