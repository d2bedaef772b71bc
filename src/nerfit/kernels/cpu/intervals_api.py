"""The CPU bodies behind `nerfit.kernels.intervals`: tensors in, tensors out."""

from functools import cache

import torch
from torch import Tensor

from nerfit.kernels.cpu import intervals
from nerfit.kernels.cpu.matmul import LANES
from nerfit.kernels.cpu.rendering import POOL, WAVE
from nerfit.kernels.cpu.rendering_api import Slots
from nerfit.kernels.cpu.runtime import part_count, run_parallel
from nerfit.kernels.cpu.tensors import array, blocks_of, f32, grid, network
from nerfit.kernels.cpu.warm import announced
from nerfit.kernels.layouts import FieldShape, GridLayout


def density(
    origins: Tensor, directions: Tensor, edges: Tensor, table: Tensor, weights: Tensor, shape: FieldShape, half: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Densities [rays, samples], and with ``keep`` the blocked positions and features."""
    n, samples = len(edges), edges.shape[1] - 1
    blocks, depth = blocks_of(n * samples), shape.grid.depth
    out = torch.empty(blocks * LANES)
    places, features = torch.empty(3 * LANES * blocks if keep else 0), torch.zeros(depth * LANES * blocks if keep else 0)
    if n:
        given = [array(a.contiguous()) for a in (origins, directions, edges, table)]
        found = map(array, (places, features, out))
        run_parallel(intervals.density_along, *given, *grid(shape.grid), *network(weights, shape, half), *found)
    return out[: n * samples].reshape(n, samples), places, features


def density_backward(features: Tensor, weights: Tensor, shape: FieldShape, half: bool, gradient: Tensor) -> Tensor:
    """Turn the features into their gradients; the networks' gradients."""
    sums = torch.zeros(part_count(), len(weights))
    padded = torch.zeros(len(features) // shape.grid.depth)
    padded[: gradient.numel()] = gradient.flatten()
    run_parallel(intervals.density_along_backward, array(features), *network(weights, shape, half), array(padded), array(sums))
    return sums.sum(0)


def render(
    origins: Tensor,
    directions: Tensor,
    viewdirs: Tensor,
    edges: Tensor,
    table: Tensor,
    weights: Tensor,
    shape: FieldShape,
    half: bool,
    min_weight: float,
    early_stop: float,
    keep: bool,
) -> tuple[Slots, Tensor]:
    """What rays see, in slots that hold their visible samples with ``keep``, and the weights [rays, samples] of all intervals."""
    n, samples = len(edges), edges.shape[1] - 1
    most = samples * -(-n // part_count()) if keep else max(POOL * WAVE, samples)
    slots = Slots.make(n, blocks_of(most) * LANES, shape.grid.depth, keep)
    slots.evaluated = n * samples
    shares = torch.empty(n, samples)
    slots.kept = run_parallel(
        intervals.render_along,
        *(array(a.contiguous()) for a in (origins, directions, viewdirs, edges, table)),
        *grid(shape.grid),
        *network(weights, shape, half),
        f32(min_weight),
        f32(early_stop),
        keep,
        array(shares),
        *slots.arrays(),
    )
    return slots, shares


def draw(
    s: Tensor,
    t: Tensor,
    density: Tensor,
    norm: Tensor,
    low: Tensor,
    high: Tensor,
    samples: int,
    jitter: Tensor,
    exponent: float,
    padding: float,
    power: float,
    unit: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, and new intervals' edges on the ladder and as distances."""
    n = len(s)
    weights, new_s, new_t = torch.empty_like(density), torch.empty(n, samples + 1), torch.empty(n, samples + 1)
    given = [array(a.contiguous()) for a in (s, t, density, norm, low, high, jitter)]
    run_parallel(intervals.draw_intervals, *given, *map(f32, (exponent, padding, power, unit)), *map(array, (weights, new_s, new_t)))
    return weights, new_s, new_t


@cache
def warm_up() -> None:
    """Compile the kernels of intervals, or load them, on one ray and in view of the user."""
    with announced():
        shape = FieldShape(GridLayout(1, 8, 2, 2), 32)
        table, weights, one = torch.zeros(shape.grid.size), torch.zeros(shape.size), torch.ones(1)
        ray, edges = (torch.ones(1, 3), torch.ones(1, 3)), torch.tensor([[0.0, 0.5, 1.0]])
        found, _, features = density(*ray, edges, table, weights, shape, False, True)
        density_backward(features, weights, shape, False, found)
        render(*ray, ray[1], edges, table, weights, shape, False, 0.0, 0.0, True)
        draw(edges, edges, found, one, 0 * one, one, 2, one[:, None], 1.0, 0.1, 0.0, 1.0)
