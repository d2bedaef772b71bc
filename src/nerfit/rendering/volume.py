"""Volume rendering along rays: densities to weights to pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.kernels.compositing import composite_packed
from nerfit.kernels.layouts import Samples
from nerfit.kernels.rendering import with_lengths


@dataclass
class Rendering:
    """What rays saw. ``extras`` holds what one method alone needs for its losses or logs (for instance ``rgb_coarse``)."""

    rgb: Float[Tensor, "rays 3"]
    depth: Float[Tensor, "rays"] | None = None
    opacity: Float[Tensor, "rays"] | None = None
    disparity: Float[Tensor, "rays"] | None = None
    weights: Float[Tensor, "rays samples"] | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)


def join(parts: Sequence[Rendering]) -> Rendering:
    """Renderings of consecutive chunks as one, detached, without the samples' weights."""

    def cat(values: list[Tensor | None]) -> Tensor | None:
        present = [value.detach() for value in values if value is not None]
        return torch.cat(present) if present else None

    rgb = torch.cat([part.rgb.detach() for part in parts])
    fields = {name: cat([getattr(part, name) for part in parts]) for name in ("depth", "opacity", "disparity")}
    extras = {name: torch.cat([part.extras[name].detach() for part in parts]) for name in parts[0].extras}
    return Rendering(rgb, **fields, extras=extras)


def intervals(
    t: Float[Tensor, "rays samples"], norm: Float[Tensor, "rays"], far: Float[Tensor, "rays"] | None = None
) -> Float[Tensor, "rays samples"]:
    """World lengths between neighbouring distances: differences of t times the direction's length.

    The last interval ends at ``far``, or nowhere (1e10, as in the original NeRF: whatever density is last is opaque).
    """
    last = torch.full_like(t[:, :1], 1e10) if far is None else (far[:, None] - t[:, -1:]).clamp(min=0)
    return torch.cat([t[:, 1:] - t[:, :-1], last], -1) * norm[:, None]


def render_weights(density: Float[Tensor, "rays samples"], delta: Float[Tensor, "rays samples"]) -> Float[Tensor, "rays samples"]:
    """How much each sample shows: w = T (1 - exp(-σδ)) with T = exp(-Σ σδ of the samples before) (NeRF, equation 3)."""
    optical = density * delta
    before = torch.cat([torch.zeros_like(optical[:, :1]), torch.cumsum(optical[:, :-1], -1)], -1)
    return torch.exp(-before) * -torch.expm1(-optical)


def composite_samples(
    weights: Float[Tensor, "rays samples"],
    rgb: Float[Tensor, "rays samples 3"],
    t: Float[Tensor, "rays samples"],
    background: Tensor | float,
) -> Rendering:
    """Colour Σwc, depth Σwt and opacity Σw of each ray, `over_background`."""
    color = (weights[..., None] * rgb).sum(-2)
    return over_background(color, weights.sum(-1), (weights * t).sum(-1), background, weights)


def over_background(
    color: Float[Tensor, "rays 3"],
    opacity: Float[Tensor, "rays"],
    depth: Float[Tensor, "rays"],
    background: Tensor | float,
    weights: Tensor | None = None,
) -> Rendering:
    """What is seen in front of a background colour ([3], [rays, 3] or grey), with disparity opacity/depth.

    An empty ray has depth and disparity 0 and shows the background.
    """
    disparity = torch.where(opacity > 0, opacity / depth.clamp(min=1e-10), 0.0)
    return Rendering(color + (1 - opacity)[:, None] * background, depth, opacity, disparity, weights)


def render_packed(
    density: Float[Tensor, "samples"],
    rgb: Float[Tensor, "samples 3"],
    samples: Samples,
    norm: Float[Tensor, "rays"],
    background: Tensor | float,
    early_stop: float,
) -> Rendering:
    """The same from densities and colours of marched samples, each even along its step; ``norm`` is the directions' length.

    ``density`` is per unit of t times ``norm``. A ray ends where its transmittance falls below ``early_stop``.
    """
    density, length = with_lengths(density, samples, norm)
    color, opacity, depth, _ = composite_packed(density, rgb, length, samples.middles, samples.offsets, early_stop)
    return over_background(color, opacity, depth, background)
