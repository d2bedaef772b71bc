"""Given intervals along rays in contracted space: densities in their middles, and colours of the rays."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.kernels.dispatch import backend
from nerfit.kernels.factored import give_factored, wants_gradients
from nerfit.kernels.field import field_density
from nerfit.kernels.hash_grid import encode_grid
from nerfit.kernels.layouts import HIGHEST_RAW, Cutoffs, FactoredGradient, Network, RaySet, Samples, contract
from nerfit.kernels.marching import keep_visible
from nerfit.kernels.rendering import Rendered, render_samples, render_slots


def density_along(rays: RaySet, edges: Float[Tensor, "rays samples+1"], network: Network) -> Float[Tensor, "rays samples"]:
    """Densities [rays, samples] in the middles of intervals, of a field of contracted space without colours.

    Args:
        rays: Rays in cascade coordinates; only origins and directions are read.
        edges: Distances t of the intervals' ends, ascending.
        network: The field; its weights are the first two matrices of its shape, and the second's first row gives the raw density.

    Differentiable in table and weights, as `field` is.
    """
    if backend(rays.origins.device) == "cpu" and rays.origins.dtype == torch.float32:
        leaves = network.table, network.weights
        return _Density.apply(*leaves, rays, edges, network, wants_gradients(*leaves))
    return density_along_reference(rays, edges, network)


def density_along_reference(rays: RaySet, edges: Tensor, network: Network) -> Tensor:
    """`density_along` in PyTorch, in any precision."""
    shape, weights = network.shape, network.weights
    (width, depth), channels = shape.matrices[0], 4 * shape.grid.levels
    hidden, out = weights[: width * depth].reshape(width, depth), weights[width * depth :][:width]
    features = encode_grid(middles_in_cube(rays, edges), network.table, shape.grid)
    raw = torch.relu(features @ hidden[:, :channels].T) @ out
    return torch.exp(raw.clamp(max=HIGHEST_RAW)).reshape(len(edges), edges.shape[1] - 1)


def middles_in_cube(rays: RaySet, edges: Float[Tensor, "rays samples+1"]) -> Float[Tensor, "rays*samples 3"]:
    """Middles of intervals as positions in the field's cube (`contract`), ray after ray."""
    t = 0.5 * (edges[:, 1:] + edges[:, :-1])
    return contract((rays.origins[:, None] + t[..., None] * rays.directions[:, None]).reshape(-1, 3), 2)


class _Density(torch.autograd.Function):
    """The CPU kernel; with gradients, the features stay for the way back."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, weights: Tensor, rays: RaySet, edges: Tensor, network: Network, keep: bool) -> Tensor:
        from nerfit.kernels.cpu import intervals

        density, ctx.positions, ctx.features = intervals.density(rays, edges, network, keep)
        ctx.save_for_backward(table, weights)
        ctx.network = network
        return density

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        from nerfit.kernels.cpu import intervals

        table, _ = ctx.saved_tensors
        positions, features, ctx.features = ctx.positions, ctx.features, None
        if features is None:
            raise RuntimeError("densities go backward once: their kept features have become their own gradients.")
        g_weights = intervals.density_backward(features, ctx.network, gradients[0])
        count, grid = [gradients[0].numel()], ctx.network.shape.grid
        factored = FactoredGradient(positions.reshape(1, -1).numpy(), features.reshape(1, -1).numpy(), count, grid)
        return give_factored(factored, table), g_weights, *([None] * 4)


def render_intervals(
    rays: RaySet,
    edges: Float[Tensor, "rays samples+1"],
    network: Network,
    cutoffs: Cutoffs,
    near_falloff: float = 0.0,
    packed: bool = False,
) -> tuple[Rendered, Float[Tensor, "rays samples"]]:
    """A rendering of the `field` of contracted space in given intervals, and the weights [rays, samples] of all of them without gradients.

    Args:
        rays: Rays in cascade coordinates; only origins, directions and view directions are read.
        edges: Distances t of the intervals' ends, ascending.
        network: The field.
        cutoffs: Intervals of less weight, and those behind a transmittance of less, get no colour and no gradient.
        near_falloff: As in `render_rays`.
        packed: Return the visible intervals and their weights too.

    Differentiable as `render_rays` is.
    """
    if backend(rays.origins.device) == "cpu" and rays.origins.dtype == torch.float32:
        from nerfit.kernels.cpu import intervals

        all_weights: list[Tensor] = []

        def draw(keep: bool) -> Any:
            slots, weights = intervals.render(rays, edges, network, cutoffs, keep)
            all_weights.append(weights)
            return slots

        return render_slots(draw, rays, network, 2, near_falloff, packed), all_weights[0]
    visible, weights = _visible(rays, edges, network, cutoffs)
    rendered = render_samples(visible, rays, network, 2, cutoffs.early_stop, near_falloff)
    return (rendered if packed else replace(rendered, samples=None, weights=None)), weights


@torch.no_grad()
def _visible(rays: RaySet, edges: Tensor, network: Network, cutoffs: Cutoffs) -> tuple[Samples, Tensor]:
    """The visible intervals as packed samples, and the weights [rays, samples] of all."""
    n, samples = len(edges), edges.shape[1] - 1
    ray = torch.arange(n, dtype=torch.int32, device=edges.device).repeat_interleave(samples)
    offsets = torch.arange(0, n * samples + 1, samples, device=edges.device)
    x, norm = middles_in_cube(rays, edges), rays.directions.norm(dim=-1)
    every = Samples(ray, edges[:, :-1].flatten(), edges[:, 1:].flatten(), x, offsets, n * samples)
    density = field_density(x, network)
    optical = density.reshape(n, samples) * edges.diff() * norm[:, None]
    transmittance = torch.exp(-(optical.cumsum(-1) - optical))
    return keep_visible(every, density, norm, cutoffs), transmittance * -torch.expm1(-optical)
