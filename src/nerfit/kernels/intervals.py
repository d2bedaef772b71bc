"""Intervals along rays in contracted space: densities in their middles, and the colours of rays whose samples are given."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.kernels import dispatch
from nerfit.kernels.dispatch import backend
from nerfit.kernels.factored import give_factored
from nerfit.kernels.field import field_density
from nerfit.kernels.hash_grid import encode_grid
from nerfit.kernels.layouts import HIGHEST_RAW, FactoredGradient, FieldShape, Samples, contract
from nerfit.kernels.marching import keep_visible
from nerfit.kernels.rendering import Rendered, render_samples, render_slots


def warm_up(device: torch.device) -> None:
    """Compile the kernels of training and rendering for a device, and those of intervals, before time is measured."""
    dispatch.warm_up(device)
    if backend(device) == "cpu":
        from nerfit.kernels.cpu import intervals_api

        intervals_api.warm_up()


def density_along(
    origins: Float[Tensor, "rays 3"],
    directions: Float[Tensor, "rays 3"],
    edges: Float[Tensor, "rays samples+1"],
    table: Float[Tensor, "size"],
    weights: Float[Tensor, "weights"],
    shape: FieldShape,
    half: bool = False,
) -> Float[Tensor, "rays samples"]:
    """Density in the middles of intervals of rays o + t·d (in cascade coordinates), of a field of contracted space without colours.

    ``weights`` are the first two matrices of ``shape``, of which the second's first row makes the raw density. Differentiable in table
    and weights, as `field` is.
    """
    if backend(origins.device) == "cpu" and origins.dtype == torch.float32:
        return _Density.apply(table, weights, origins, directions, edges, shape, half)
    return density_along_reference(origins, directions, edges, table, weights, shape)


def density_along_reference(
    origins: Tensor, directions: Tensor, edges: Tensor, table: Tensor, weights: Tensor, shape: FieldShape
) -> Tensor:
    """`density_along` in PyTorch, in any precision."""
    (width, depth), channels = shape.matrices[0], 4 * shape.grid.levels
    hidden, out = weights[: width * depth].reshape(width, depth), weights[width * depth :][:width]
    features = encode_grid(middles_in_cube(origins, directions, edges), table, shape.grid)
    raw = torch.relu(features @ hidden[:, :channels].T) @ out
    return torch.exp(raw.clamp(max=HIGHEST_RAW)).reshape(len(edges), edges.shape[1] - 1)


def middles_in_cube(origins: Tensor, directions: Tensor, edges: Float[Tensor, "rays samples+1"]) -> Float[Tensor, "rays*samples 3"]:
    """Middles of intervals as positions in the field's cube (`contract`), ray after ray."""
    t = 0.5 * (edges[:, 1:] + edges[:, :-1])
    return contract((origins[:, None] + t[..., None] * directions[:, None]).reshape(-1, 3), 2)


class _Density(torch.autograd.Function):
    """The CPU kernel; with gradients, the features stay for the way back."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, weights: Tensor, *rest: Any) -> Tensor:
        from nerfit.kernels.cpu import intervals_api

        origins, directions, edges, shape, half = rest
        density, ctx.places, ctx.features = intervals_api.density(
            origins, directions, edges, table, weights, shape, half, any(ctx.needs_input_grad)
        )
        ctx.save_for_backward(table, weights)
        ctx.shape, ctx.half = shape, half
        return density

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        from nerfit.kernels.cpu import intervals_api

        table, weights = ctx.saved_tensors
        places, features, ctx.features = ctx.places, ctx.features, None
        if features is None:
            raise RuntimeError("densities go backward once: their kept features have become their own gradients.")
        g_weights = intervals_api.density_backward(features, weights, ctx.shape, ctx.half, gradients[0])
        count = [gradients[0].numel()]
        factored = FactoredGradient(places.reshape(1, -1).numpy(), features.reshape(1, -1).numpy(), count, ctx.shape.grid)
        return give_factored(factored, table), g_weights, *([None] * 5)


def render_intervals(
    origins: Float[Tensor, "rays 3"],
    directions: Float[Tensor, "rays 3"],
    viewdirs: Float[Tensor, "rays 3"],
    edges: Float[Tensor, "rays samples+1"],
    table: Float[Tensor, "size"],
    weights: Float[Tensor, "weights"],
    shape: FieldShape,
    half: bool,
    min_weight: float,
    early_stop: float,
    near_falloff: float = 0.0,
    packed: bool = False,
) -> tuple[Rendered, Float[Tensor, "rays samples"]]:
    """What rays see through the `field` of contracted space in given intervals, and the weights of all of these, without gradients.

    As `render_rays`: intervals of less than ``min_weight``, and those behind which less than ``early_stop`` is left, have no colour
    and no gradient.
    """
    if backend(origins.device) == "cpu" and origins.dtype == torch.float32:
        from nerfit.kernels.cpu import intervals_api

        given = (origins, directions, viewdirs, edges, table, weights, shape, half, min_weight, early_stop)
        drawn: list[Tensor] = []

        def draw(keep: bool) -> Any:
            slots, all_weights = intervals_api.render(*given, keep)
            drawn.append(all_weights)
            return slots

        return render_slots(draw, table, weights, origins, directions, shape, half, near_falloff, 2, packed), drawn[0]
    visible, shares = _visible(origins, directions, edges, table, weights, shape, half, min_weight, early_stop)
    found = render_samples(visible, origins, directions, viewdirs, table, weights, shape, half, early_stop, near_falloff, 2)
    return (found if packed else replace(found, samples=None, weights=None)), shares


@torch.no_grad()
def _visible(
    origins: Tensor,
    directions: Tensor,
    edges: Tensor,
    table: Tensor,
    weights: Tensor,
    shape: FieldShape,
    half: bool,
    min_weight: float,
    early_stop: float,
) -> tuple[Samples, Tensor]:
    """The intervals that are worth a colour, and the weights of all."""
    n, samples = len(edges), edges.shape[1] - 1
    ray = torch.arange(n, dtype=torch.int32, device=edges.device).repeat_interleave(samples)
    offsets = torch.arange(0, n * samples + 1, samples, device=edges.device)
    x, norm = middles_in_cube(origins, directions, edges), directions.norm(dim=-1)
    every = Samples(ray, edges[:, :-1].flatten(), edges[:, 1:].flatten(), x, offsets, n * samples)
    density = field_density(x, table, weights, shape, half)
    optical = density.reshape(n, samples) * edges.diff() * norm[:, None]
    light = torch.exp(-(optical.cumsum(-1) - optical))
    return keep_visible(every, density, norm, min_weight, early_stop), light * -torch.expm1(-optical)
