"""Packed volume rendering: samples of all rays one after another, each ray's between two offsets."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerfit.kernels.dispatch import backend, implementation


def composite_packed(
    density: Float[Tensor, "samples"],
    rgb: Float[Tensor, "samples 3"],
    length: Float[Tensor, "samples"],
    t: Float[Tensor, "samples"],
    offsets: Int[Tensor, "rays_plus_1"],
    early_stop: float = 1e-4,
) -> tuple[Float[Tensor, "rays 3"], Float[Tensor, "rays"], Float[Tensor, "rays"], Float[Tensor, "samples"]]:
    """Colour Σwc, opacity Σw, depth Σwt of the rays, and the samples' weights w = T(1 - exp(-σδ)) (NeRF, equation 3).

    ``length`` is δ, ``offsets`` says where each ray's samples begin (int64, the last entry their number). A ray ends where
    its transmittance T has fallen below ``early_stop``. Differentiable in density and colour.
    """
    if backend(density.device) == "reference" or density.dtype != torch.float32:
        return composite_packed_reference(density, rgb, length, t, offsets, early_stop)
    return _Composite.apply(density, rgb, length, t, offsets, early_stop)


def composite_packed_reference(
    density: Tensor, rgb: Tensor, length: Tensor, t: Tensor, offsets: Tensor, early_stop: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`composite_packed` in PyTorch, in any precision."""
    rays = len(offsets) - 1
    ray = torch.repeat_interleave(torch.arange(rays, device=density.device), offsets.diff())
    optical = density * length
    light = light_before(optical, ray, offsets)
    weights = torch.where(light >= early_stop, light * -torch.expm1(-optical), 0.0)
    color = rgb.new_zeros(rays, 3).index_add(0, ray, weights[:, None] * rgb)
    opacity = weights.new_zeros(rays).index_add(0, ray, weights)
    depth = weights.new_zeros(rays).index_add(0, ray, weights * t)
    return color, opacity, depth, weights


def light_before(optical: Float[Tensor, "samples"], ray: Int[Tensor, "samples"], offsets: Int[Tensor, "rays_plus_1"]) -> Tensor:
    """Transmittance exp(-Σ σδ) in front of each packed sample."""
    return torch.exp(-sum_in_front(optical, ray, offsets))


def sum_in_front(value: Float[Tensor, "samples"], ray: Int[Tensor, "samples"], offsets: Int[Tensor, "rays_plus_1"]) -> Tensor:
    """Sum of the values in front of each packed sample on its ray.

    Each ray is summed by itself, in a row of a table: one sum over all rays would need float64, which Apple's GPUs lack.
    """
    counts = offsets.diff()
    column = torch.arange(len(value), device=value.device) - offsets[:-1][ray]
    table = value.new_zeros(len(counts), 1 + (int(counts.max()) if len(counts) else 0))
    return table.index_put((ray, column + 1), value).cumsum(1)[ray, column]


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, density: Tensor, rgb: Tensor, length: Tensor, t: Tensor, offsets: Tensor, early_stop: float) -> Any:
        density, rgb = density.contiguous(), rgb.contiguous()
        color, opacity, depth, weights = implementation(density.device, "compositing").composite_forward(
            density, rgb, length, t, offsets, early_stop
        )
        ctx.save_for_backward(density, rgb, length, t, offsets, weights)
        ctx.early_stop = early_stop
        return color, opacity, depth, weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        g_density, g_rgb = implementation(gradients[0].device, "compositing").composite_backward(
            *ctx.saved_tensors, ctx.early_stop, *(g.contiguous() for g in gradients)
        )
        return g_density, g_rgb, None, None, None, None
