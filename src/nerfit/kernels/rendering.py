"""From rays to colours in one kernel: march, densities, light, colours; forward and backward."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.kernels.compositing import composite_packed
from nerfit.kernels.dispatch import backend
from nerfit.kernels.factored import give_factored
from nerfit.kernels.field import field
from nerfit.kernels.layouts import FactoredGradient, FieldShape, Occupancy, Samples, contract
from nerfit.kernels.marching import visible_samples


@dataclass
class Rendered:
    """What rays see."""

    color: Float[Tensor, "rays 3"]
    opacity: Float[Tensor, "rays"]
    depth: Float[Tensor, "rays"]
    """Σwt: not divided by the opacity."""
    kept: int
    """Samples that got a colour."""
    evaluated: int
    """Samples that got a density."""
    samples: Samples | None = None
    """Those with a colour, by ray, where they were asked for."""
    weights: Float[Tensor, "samples"] | None = None
    """Their weights."""


def render_rays(
    origins: Float[Tensor, "rays 3"],
    directions: Float[Tensor, "rays 3"],
    viewdirs: Float[Tensor, "rays 3"],
    near: Float[Tensor, "rays"],
    far: Float[Tensor, "rays"],
    jitter: Float[Tensor, "rays"],
    occupancy: Occupancy,
    step: float,
    cone_angle: float,
    table: Float[Tensor, "size"],
    weights: Float[Tensor, "weights"],
    shape: FieldShape,
    half: bool,
    min_weight: float,
    early_stop: float,
    near_falloff: float = 0.0,
    packed: bool = False,
) -> Rendered:
    """`visible_samples`, their `field` and `composite_packed`, differentiable in table and weights.

    Where ``origins`` want gradients, so it is in origins and directions too: the samples stay at their distances t and move
    with their rays; what the colours owe to ``viewdirs`` is left out.

    ``viewdirs`` are unit directions. A table that has a ``grad`` gets its gradient added there directly. Nearer than
    ``near_falloff`` along a ray, the gradients of a sample's density and colour shrink with the square of the distance: there are more
    samples near a camera than anywhere else (Philip and Deschaintre 2023). ``packed`` asks for the samples and their weights.
    """
    march = (near, far, jitter, occupancy, step, cone_angle, table, weights, shape, half, min_weight, early_stop)
    if backend(origins.device) == "cpu" and origins.dtype == torch.float32:
        from nerfit.kernels.cpu import rendering_api

        given = ((origins, directions, viewdirs, near, far, jitter), *march[3:], True)
        draw = lambda keep: rendering_api.render(*given, keep)  # noqa: E731
        return render_slots(draw, table, weights, origins, directions, shape, half, near_falloff, occupancy.cascades, packed)
    samples = visible_samples(origins.detach(), directions.detach(), *march)
    found = render_samples(
        samples, origins, directions, viewdirs, table, weights, shape, half, early_stop, near_falloff, occupancy.cascades
    )
    return found if packed else replace(found, samples=None, weights=None)


def render_samples(
    samples: Samples,
    origins: Float[Tensor, "rays 3"],
    directions: Float[Tensor, "rays 3"],
    viewdirs: Float[Tensor, "rays 3"],
    table: Float[Tensor, "size"],
    weights: Float[Tensor, "weights"],
    shape: FieldShape,
    half: bool,
    early_stop: float,
    near_falloff: float,
    cascades: int,
) -> Rendered:
    """`field` at samples of rays and `composite_packed`, differentiable as `render_rays` is."""
    ray, norm, middle = samples.ray_indices.long(), directions.norm(dim=-1), samples.middles
    if torch.is_grad_enabled() and origins.requires_grad:
        samples.x = contract(origins[ray] + middle[:, None] * directions[ray], cascades)
    density, rgb = _evaluate(samples, viewdirs[ray], table, weights, shape, half)
    density, length = with_lengths(density, samples, norm)
    if near_falloff > 0:
        share = (middle / near_falloff).square().clamp(max=1)
        density, rgb = _with_gradient(density, share), _with_gradient(rgb, share[:, None])
    color, opacity, depth, light = composite_packed(density, rgb, length, middle, samples.offsets, early_stop)
    return Rendered(color, opacity, depth, len(samples), samples.evaluated, samples, light)


def with_lengths(density: Float[Tensor, "samples"], samples: Samples, norm: Float[Tensor, "rays"]) -> tuple[Tensor, Tensor]:
    """Densities and the samples' lengths, for `composite_packed`, through which only the densities have a gradient.

    Light depends on their product alone, so the densities take over what is due to ``norm``, the length of the directions.
    """
    if norm.requires_grad:
        density = density * (norm / norm.detach())[samples.ray_indices.long()]
    return density, samples.lengths(norm.detach())


def _with_gradient(value: Tensor, share: Tensor) -> Tensor:
    """The same value with a share of its gradient."""
    return value * share + (value * (1 - share)).detach()


_PIECE = 1 << 18


def _evaluate(samples: Samples, d: Tensor, table: Tensor, weights: Tensor, shape: FieldShape, half: bool) -> tuple[Tensor, Tensor]:
    """Density and colour of the samples; without gradients in pieces, since a young field may see millions."""
    if torch.is_grad_enabled() or len(samples) <= _PIECE:
        return field(samples.x, d, table, weights, shape, half)
    found = [field(*piece, table, weights, shape, half) for piece in zip(samples.x.split(_PIECE), d.split(_PIECE), strict=True)]
    return torch.cat([density for density, _ in found]), torch.cat([rgb for _, rgb in found])


def render_slots(
    draw: Callable[[bool], Any],
    table: Tensor,
    weights: Tensor,
    origins: Tensor,
    directions: Tensor,
    shape: FieldShape,
    half: bool,
    near_falloff: float,
    cascades: int,
    packed: bool,
) -> Rendered:
    """What a CPU kernel renders into slots, which ``draw`` keeps for the way back if told so; differentiable as `render_rays` is."""
    color, opacity, depth, light, slots = _Render.apply(table, weights, origins, directions, draw, shape, half, near_falloff, cascades)
    samples, order = slots.samples() if packed else (None, None)
    found = None if order is None else light.reshape(-1)[order]
    return Rendered(color, opacity, depth, sum(slots.kept), slots.evaluated, samples, found)


class _Render(torch.autograd.Function):
    """The CPU kernel; what backward needs stays in its slots."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, weights: Tensor, origins: Tensor, directions: Tensor, *rest: Any) -> Any:
        draw, ctx.shape, ctx.half, ctx.near_falloff, ctx.cascades = rest
        ctx.save_for_backward(table, weights, origins, directions)
        ctx.slots = slots = draw(any(ctx.needs_input_grad))
        ctx.set_materialize_grads(False)
        return slots.color, slots.opacity, slots.depth, slots.weight, slots

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        from nerfit.kernels.cpu import rendering_api

        table, weights, origins, directions = ctx.saved_tensors
        slots, ctx.slots = ctx.slots, None
        if slots is None:
            raise RuntimeError("rendering goes backward once: its kept features have become their own gradients.")
        learned = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        g_weights = rendering_api.render_backward(slots, weights, ctx.shape, ctx.half, ctx.near_falloff, learned, *gradients[:4])
        g_rays = rendering_api.ray_gradients(slots, origins, directions, table, ctx.shape.grid, ctx.cascades) if learned else (None, None)
        factored = FactoredGradient(slots.places, slots.features, slots.kept, ctx.shape.grid)
        g_table = give_factored(factored, table) if ctx.needs_input_grad[0] else None
        return g_table, g_weights, *g_rays, *([None] * 5)
