"""From rays to colours in one kernel: march, densities, transmittance, colours; forward and backward."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.kernels.compositing import composite_packed
from nerfit.kernels.dispatch import backend
from nerfit.kernels.factored import give_factored, wants_gradients
from nerfit.kernels.field import field
from nerfit.kernels.layouts import Cutoffs, FactoredGradient, March, Network, RaySet, Samples, contract
from nerfit.kernels.marching import visible_samples


@dataclass
class Rendered:
    """Colours of rays, and what a loss needs beside them."""

    color: Float[Tensor, "rays 3"]
    opacity: Float[Tensor, "rays"]
    depth: Float[Tensor, "rays"]
    """Σwt: not divided by the opacity."""
    kept: int
    """Samples that got a colour."""
    evaluated: int
    """Samples that got a density."""
    samples: Samples | None = None
    """Those with a colour, by ray, on request."""
    weights: Float[Tensor, "samples"] | None = None
    """Their rendering weights, on request."""


def render_rays(
    rays: RaySet, march: March, network: Network, cutoffs: Cutoffs, near_falloff: float = 0.0, packed: bool = False
) -> Rendered:
    """Colour, opacity and depth of rays: `visible_samples`, their `field`, `composite_packed`.

    Args:
        rays: Rays in cascade coordinates.
        march: Occupancy and steps.
        network: The field. A table that has a ``grad`` gets its gradient added there directly.
        cutoffs: Samples of less weight, and those behind a transmittance of less, get no colour and no gradient.
        near_falloff: Distance along a ray below which the gradients of density and colour shrink with its square: there are more samples
            near a camera than elsewhere (Philip and Deschaintre 2023).
        packed: Return the samples and their weights too.

    Differentiable in table and weights. If ``rays.origins`` require gradients, also in origins and directions: samples stay at their
    distances t and move with their rays. The colours' dependence on ``viewdirs`` has no gradient.
    """
    cascades = march.occupancy.cascades
    if backend(rays.origins.device) == "cpu" and rays.origins.dtype == torch.float32:
        from nerfit.kernels.cpu import rendering

        draw = lambda keep: rendering.render(rays, march, network, cutoffs, True, keep)  # noqa: E731
        return render_slots(draw, rays, network, cascades, near_falloff, packed)
    samples = visible_samples(rays.each(Tensor.detach), march, network, cutoffs)
    rendered = render_samples(samples, rays, network, cascades, cutoffs.early_stop, near_falloff)
    return rendered if packed else replace(rendered, samples=None, weights=None)


def render_samples(
    samples: Samples, rays: RaySet, network: Network, cascades: int, early_stop: float, near_falloff: float = 0.0
) -> Rendered:
    """`field` at given samples of rays and `composite_packed`, differentiable as `render_rays` is.

    Args:
        samples: Packed samples of the rays.
        rays: Rays in cascade coordinates.
        network: The field.
        cascades: Number of cascades; with several, the field's cube is contracted space (`contract`).
        early_stop: Transmittance below which a ray stops.
        near_falloff: As in `render_rays`.
    """
    ray, norm, middle = samples.ray_indices.long(), rays.directions.norm(dim=-1), samples.middles
    if torch.is_grad_enabled() and rays.origins.requires_grad:
        samples.x = contract(rays.origins[ray] + middle[:, None] * rays.directions[ray], cascades)
    density, rgb = _evaluate(samples.x, rays.viewdirs[ray], network)
    density, length = with_lengths(density, samples, norm)
    if near_falloff > 0:
        share = (middle / near_falloff).square().clamp(max=1)
        density, rgb = _with_gradient(density, share), _with_gradient(rgb, share[:, None])
    color, opacity, depth, weights = composite_packed(density, rgb, length, middle, samples.offsets, early_stop)
    return Rendered(color, opacity, depth, len(samples), samples.evaluated, samples, weights)


def with_lengths(density: Float[Tensor, "samples"], samples: Samples, norm: Float[Tensor, "rays"]) -> tuple[Tensor, Tensor]:
    """Densities and lengths of samples for `composite_packed`, through which only the densities have a gradient.

    Transmittance depends on their product alone, so the densities take over the gradient of the directions' length.

    Args:
        density: Densities [samples].
        samples: Packed samples.
        norm: Lengths [rays] of the rays' directions.
    """
    if norm.requires_grad:
        density = density * (norm / norm.detach())[samples.ray_indices.long()]
    return density, samples.lengths(norm.detach())


def _with_gradient(value: Tensor, share: Tensor) -> Tensor:
    """The same value with a share of its gradient."""
    return value * share + (value * (1 - share)).detach()


_PIECE = 1 << 18


def _evaluate(x: Tensor, d: Tensor, network: Network) -> tuple[Tensor, Tensor]:
    """Density and colour of samples; without gradients in pieces, since a young field may have millions."""
    if torch.is_grad_enabled() or len(x) <= _PIECE:
        return field(x, d, network)
    pieces = [field(*piece, network) for piece in zip(x.split(_PIECE), d.split(_PIECE), strict=True)]
    return torch.cat([density for density, _ in pieces]), torch.cat([rgb for _, rgb in pieces])


def render_slots(draw: Callable[[bool], Any], rays: RaySet, network: Network, cascades: int, near_falloff: float, packed: bool) -> Rendered:
    """A rendering by a CPU kernel; differentiable as `render_rays` is.

    Args:
        draw: Renders the rays into slots (`nerfit.kernels.cpu.slots`); they keep what the gradients need if its argument is True.
        rays: The rays.
        network: The field.
        cascades: Number of cascades, as in `render_samples`.
        near_falloff: As in `render_rays`.
        packed: Return the samples and their weights too.
    """
    leaves = network.table, network.weights, rays.origins, rays.directions
    keep = packed or wants_gradients(*leaves)
    color, opacity, depth, weights, slots = _Render.apply(*leaves, draw, keep, network, near_falloff, cascades)
    rendered = Rendered(color, opacity, depth, sum(slots.kept), slots.evaluated)
    if packed:
        rendered.samples, order = slots.samples()
        rendered.weights = weights.reshape(-1)[order]
    return rendered


class _Render(torch.autograd.Function):
    """The CPU kernel; its slots keep what backward needs."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, weights: Tensor, origins: Tensor, directions: Tensor, *rest: Any) -> Any:
        draw, keep, ctx.network, ctx.near_falloff, ctx.cascades = rest
        ctx.save_for_backward(table, weights, origins, directions)
        ctx.slots = slots = draw(keep)
        ctx.set_materialize_grads(False)
        return slots.color, slots.opacity, slots.depth, slots.weight, slots

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        from nerfit.kernels.cpu import rendering

        table, _, origins, directions = ctx.saved_tensors
        network, grid = ctx.network, ctx.network.shape.grid
        slots, ctx.slots = ctx.slots, None
        if slots is None:
            raise RuntimeError("rendering goes backward once: its kept features have become their own gradients.")
        learned = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        g_weights = rendering.render_backward(slots, network, ctx.near_falloff, learned, *gradients[:4])
        g_rays = rendering.ray_gradients(slots, origins, directions, network, ctx.cascades) if learned else (None, None)
        factored = FactoredGradient(slots.positions, slots.features, slots.kept, grid)
        g_table = give_factored(factored, table) if ctx.needs_input_grad[0] else None
        return g_table, g_weights, *g_rays, *([None] * 5)
