"""The distortion loss: one surface along each ray, not many (mip-NeRF 360, equation 15)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def distortion_packed(
    weights: Float[Tensor, "samples"], s0: Float[Tensor, "samples"], s1: Float[Tensor, "samples"], offsets: Int[Tensor, "rays_plus_1"]
) -> Float[Tensor, "rays"]:
    """Σᵢⱼ wᵢwⱼ |mᵢ - mⱼ| + Σᵢ wᵢ²(s1ᵢ - s0ᵢ)/3 of each ray's packed samples [s0, s1], front to back, mᵢ their middles.

    Sums over what lies in front of each sample make it linear in the number of samples (DVGOv2, section 3.3).
    """
    ray = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=weights.device), offsets.diff())
    middle = 0.5 * (s0 + s1)

    def in_front(value: Tensor) -> Tensor:
        total = torch.cat([value.new_zeros(1, dtype=torch.float64), value.to(torch.float64).cumsum(0)])
        return (total[:-1] - total[offsets[:-1]][ray]).to(value.dtype)

    pairs = 2 * weights * (middle * in_front(weights) - in_front(weights * middle))
    return weights.new_zeros(len(offsets) - 1).index_add(0, ray, pairs + weights.square() * (s1 - s0) / 3)
