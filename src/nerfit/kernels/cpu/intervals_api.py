"""The CPU bodies behind `nerfit.kernels.intervals`: tensors in, tensors out."""

import torch
from torch import Tensor

from nerfit.kernels.cpu import intervals
from nerfit.kernels.cpu.blocks import LANES
from nerfit.kernels.cpu.rendering import POOL, WAVE
from nerfit.kernels.cpu.rendering_api import Slots
from nerfit.kernels.cpu.runtime import part_count, run_parallel
from nerfit.kernels.cpu.tensors import array, arrays, blocks_of, cutoff_numbers, f32, field_arrays, matrices
from nerfit.kernels.layouts import Cutoffs, Network, RaySet


def density(rays: RaySet, edges: Tensor, network: Network, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Densities [rays, samples], and with ``keep`` the blocked positions and features."""
    n, samples = len(edges), edges.shape[1] - 1
    blocks, depth = blocks_of(n * samples), network.shape.grid.depth
    out = torch.empty(blocks * LANES)
    positions, features = torch.empty(3 * LANES * blocks if keep else 0), torch.zeros(depth * LANES * blocks if keep else 0)
    if n:
        given = arrays(rays.origins, rays.directions, edges)
        run_parallel(intervals.density_along, given, field_arrays(network), *arrays(positions, features, out))
    return out[: n * samples].reshape(n, samples), positions, features


def density_backward(features: Tensor, network: Network, gradient: Tensor) -> Tensor:
    """Turn the features into their gradients; the networks' gradients."""
    sums = torch.zeros(part_count(), len(network.weights))
    padded = torch.zeros(len(features) // network.shape.grid.depth)
    padded[: gradient.numel()] = gradient.flatten()
    run_parallel(intervals.density_along_backward, array(features), matrices(network), array(padded), array(sums))
    return sums.sum(0)


def render(rays: RaySet, edges: Tensor, network: Network, cutoffs: Cutoffs, keep: bool) -> tuple[Slots, Tensor]:
    """A rendering in slots that hold its visible samples with ``keep``, and the weights [rays, samples] of all intervals."""
    n, samples = len(edges), edges.shape[1] - 1
    most = samples * -(-n // part_count()) if keep else max(POOL * WAVE, samples)
    slots = Slots.make(n, blocks_of(most) * LANES, network.shape.grid.depth, keep)
    slots.evaluated = n * samples
    weights = torch.empty(n, samples)
    given = arrays(rays.origins, rays.directions, rays.viewdirs, edges), field_arrays(network), cutoff_numbers(cutoffs)
    slots.kept = run_parallel(intervals.render_along, *given, keep, array(weights), slots.arrays())
    return slots, weights


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
    ladder = *arrays(low, high), f32(power), f32(unit)
    drawing = *arrays(jitter), f32(exponent), f32(padding)
    run_parallel(intervals.draw_intervals, arrays(s, t, density, norm), ladder, drawing, arrays(weights, new_s, new_t))
    return weights, new_s, new_t
