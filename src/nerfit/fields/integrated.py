"""The integrated positional encoding of mip-NeRF: the mean of a frequency encoding over a Gaussian."""

import torch
from jaxtyping import Float
from torch import Tensor


def integrated_encoding(mean: Float[Tensor, "*n dim"], variance: Float[Tensor, "*n dim"], frequencies: int) -> Float[Tensor, "*n features"]:
    """E[sin(2^k x)] and E[cos(2^k x)] of x ~ N(mean, variance), for k = 0 … frequencies-1 (mip-NeRF, equation 14).

    They are exp(-4^k variance/2) times the sine and cosine of 2^k mean: waves shorter than the Gaussian vanish. Features:
    2·dim·frequencies, in the order of `frequency_encoding`, without x itself.
    """
    scales = 2.0 ** torch.arange(frequencies, device=mean.device, dtype=mean.dtype)[:, None]
    phase = mean[..., None, :] * scales
    damping = torch.exp(-0.5 * variance[..., None, :] * scales.square())
    return torch.stack([damping * phase.sin(), damping * phase.cos()], -2).flatten(-3)


def lift(
    mean: Float[Tensor, "*n 3"], covariance: Float[Tensor, "*n 3 3"], basis: Float[Tensor, "axes 3"]
) -> tuple[Float[Tensor, "*n axes"], Float[Tensor, "*n axes"]]:
    """Mean and variance of Gaussians along each axis p of a basis: p·mean and p·Σ·p (mip-NeRF 360, appendix)."""
    squares = (basis[:, :, None] * basis[:, None, :]).flatten(1)
    return mean @ basis.T, (covariance.flatten(-2) @ squares.T).clamp(min=0)


def icosahedron_basis() -> Float[Tensor, "21 3"]:
    """Unit axes through the 12 corners and the 30 middles of the edges of an icosahedron, one of each opposite pair.

    Of two of its 6 axes through corners, each taken with the sign that makes their angle acute, the sum runs through an edge.
    """
    golden = (1 + 5**0.5) / 2
    first = torch.tensor([[0, 1, golden], [0, 1, -golden]], dtype=torch.float64)
    corners = torch.cat([first.roll(turn, 1) for turn in range(3)])
    i, j = torch.triu_indices(6, 6, offset=1)
    facing = (corners[i] * corners[j]).sum(-1, keepdim=True).sign()
    return torch.nn.functional.normalize(torch.cat([corners, corners[i] + facing * corners[j]]), dim=-1).to(torch.float32)
