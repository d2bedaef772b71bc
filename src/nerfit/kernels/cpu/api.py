"""The CPU bodies behind the kernels' public functions: tensors in, tensors out, the work shared among threads."""

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels import layouts
from nerfit.kernels.cpu import field, sampling
from nerfit.kernels.cpu.blocks import LANES
from nerfit.kernels.cpu.runtime import part_count, run_parallel
from nerfit.kernels.cpu.tensors import array, arrays, blocks_of, f32, field_arrays, march_arrays, matrices
from nerfit.kernels.layouts import March, Network, Occupancy, RaySet, Samples


def density(x: Tensor, network: Network) -> Tensor:
    """Densities [n]."""
    out = torch.empty(blocks_of(len(x)) * LANES)
    if len(x):
        run_parallel(field.density, array(x), field_arrays(network), array(out))
    return out[: len(x)]


def field_forward(x: Tensor, d: Tensor, network: Network) -> tuple[Tensor, Tensor, Tensor]:
    """Densities, colours and the blocked features."""
    grid = network.shape.grid
    blocks, depth = blocks_of(len(x)), grid.depth
    features = torch.empty(blocks * depth * LANES) if depth == 4 * grid.levels else torch.zeros(blocks * depth * LANES)
    sigma, rgb = torch.empty(len(x)), torch.empty(len(x), 3)
    if len(x):
        run_parallel(field.field_forward, array(x), array(d), field_arrays(network), array(features), array(sigma), array(rgb))
    return sigma, rgb, features


def field_backward(d: Tensor, features: Tensor, network: Network, g_density: Tensor, g_rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the blocked features, in their place, and of the weights."""
    sums = torch.zeros(part_count(), len(network.weights))
    if len(d):
        given = map(array, (g_density, g_rgb, sums))
        run_parallel(field.field_backward, array(d), array(features), matrices(network), *given)
    return features, sums.sum(0)


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
    given = arrays(rays.origins, rays.directions, rays.near, rays.far, rays.jitter)
    run_parallel(sampling.march, given, march_arrays(march), limit, (t0, t1, x, array(count)))
    ray = torch.repeat_interleave(torch.arange(n), count)
    offsets = torch.cat([count.new_zeros(1), count.cumsum(0)])
    at = (torch.arange(len(ray)) - offsets[ray] + ray * limit).numpy()
    positions = x.reshape(-1, 3, LANES)[at // LANES, :, at % LANES]
    return Samples(ray.int(), torch.from_numpy(t0[at]), torch.from_numpy(t1[at]), torch.from_numpy(positions), offsets)
