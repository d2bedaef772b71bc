"""The distortion loss: one surface along each ray, not many (mip-NeRF 360, equation 15)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from nerfit.kernels.compositing import sum_in_front


def distortion_packed(
    weights: Float[Tensor, "samples"], s0: Float[Tensor, "samples"], s1: Float[Tensor, "samples"], offsets: Int[Tensor, "rays_plus_1"]
) -> Float[Tensor, "rays"]:
    """Σᵢⱼ wᵢwⱼ |mᵢ - mⱼ| + Σᵢ wᵢ²(s1ᵢ - s0ᵢ)/3 of each ray's packed samples [s0, s1], front to back, mᵢ their middles.

    Sums over what lies in front of each sample make it linear in the number of samples (DVGOv2, section 3.3).
    """
    ray = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=weights.device), offsets.diff())
    middle = 0.5 * (s0 + s1)

    pairs = 2 * weights * (middle * sum_in_front(weights, ray, offsets) - sum_in_front(weights * middle, ray, offsets))
    return weights.new_zeros(len(offsets) - 1).index_add(0, ray, pairs + weights.square() * (s1 - s0) / 3)


def distortion(weights: Float[Tensor, "rays samples"], edges: Float[Tensor, "rays samples+1"]) -> Float[Tensor, "rays"]:
    """The same of rays with equally many samples, each from one edge to the next, in time and memory linear in their number."""
    return _Distortion.apply(weights, edges)


class _Distortion(torch.autograd.Function):
    """The loss is quadratic in the weights, so it is half of w·∂L/∂w (Euler), and ∂L/∂w is a few prefix sums."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, edges: Tensor) -> Tensor:
        def in_front_less_behind(value: Tensor) -> Tensor:
            return 2 * value.cumsum(-1) - value - value.sum(-1, keepdim=True)

        middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
        middle = middle - (weights * middle).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True).clamp(min=1e-10)
        slope = in_front_less_behind(weights)
        gradient = 2 * (middle * slope - in_front_less_behind(weights * middle)) + 2 / 3 * weights * edges.diff()
        ctx.save_for_backward(gradient, *([weights, slope] if ctx.needs_input_grad[1] else []))
        return 0.5 * (weights * gradient).sum(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, *rest = ctx.saved_tensors
        share = outer[0][:, None]
        if not rest:
            return share * gradient, None
        weights, slope = rest
        of_middle, of_width = share * weights * slope, share * weights.square() / 3
        of_edges = F.pad(of_middle - of_width, (0, 1)) + F.pad(of_middle + of_width, (1, 0))
        return share * gradient, of_edges
