"""Losses on colours and weights of rays, one number a ray."""

import torch
from jaxtyping import Float
from torch import Tensor


def charbonnier(prediction: Float[Tensor, "rays 3"], target: Float[Tensor, "rays 3"], padding: float) -> Float[Tensor, "rays"]:
    """√(e² + padding²), the mean over channels: squared for small errors, absolute for large ones (mip-NeRF 360, section 4)."""
    return ((prediction - target).square() + padding**2).sqrt().mean(-1)


def depth_error(depth: Float[Tensor, "rays"], known: Float[Tensor, "rays"], weight: Float[Tensor, "rays"]) -> Float[Tensor, "rays"]:
    """√(e² + 0.01²) - 0.01 of e = weight·(depth - known): the expected depth Σwt against a known one (after DS-NeRF, Deng et al. 2022).

    With the reciprocal of the known depth as weight e is the relative error, which counts squared below a hundredth.
    """
    return ((weight * (depth - known)).square() + 1e-4).sqrt() - 1e-2


def interlevel(
    edges: Float[Tensor, "rays samples+1"],
    weights: Float[Tensor, "rays samples"],
    proposal_edges: Float[Tensor, "rays bins+1"],
    proposal_weights: Float[Tensor, "rays bins"],
) -> Float[Tensor, "rays"]:
    """Σ max(0, w - bound)²/w: what a field's weights exceed the weight of all proposal bins that they overlap (mip-NeRF 360, equation 13).

    Gradients reach the proposal alone. Both histograms have edges on the same scale.
    """
    weights = weights.detach()
    total = torch.cat([torch.zeros_like(proposal_weights[:, :1]), proposal_weights.cumsum(-1)], -1)
    bins, known = proposal_weights.shape[-1], proposal_edges.detach().contiguous()
    before = torch.searchsorted(known, edges[:, :-1].detach().contiguous(), right=True) - 1
    behind = torch.searchsorted(known, edges[:, 1:].detach().contiguous())
    bound = total.gather(-1, behind.clamp(max=bins)) - total.gather(-1, before.clamp(min=0))
    return ((weights - bound).clamp(min=0).square() / (weights + torch.finfo(torch.float32).eps)).sum(-1)
