"""Sample distances along rays. Pure functions; randomness comes in as uniform numbers, so None means deterministic."""

import torch
from jaxtyping import Float
from torch import Tensor


def stratified(
    near: Float[Tensor, "rays"],
    far: Float[Tensor, "rays"],
    samples: int,
    uniform: Float[Tensor, "rays samples"] | None = None,
    lindisp: bool = False,
) -> Float[Tensor, "rays samples"]:
    """Distances from near to far, evenly spaced in depth, or in inverse depth with ``lindisp`` (NeRF, equation 2).

    With ``uniform`` numbers in [0, 1) each sample moves anywhere between the mid-points to its neighbours.
    """
    s = torch.linspace(0, 1, samples, device=near.device, dtype=near.dtype)
    near, far = near[:, None], far[:, None]
    t = 1 / (1 / near * (1 - s) + 1 / far * s) if lindisp else near * (1 - s) + far * s
    if uniform is None:
        return t
    mids = 0.5 * (t[:, 1:] + t[:, :-1])
    lower, upper = torch.cat([t[:, :1], mids], -1), torch.cat([mids, t[:, -1:]], -1)
    return lower + (upper - lower) * uniform


def sample_pdf(
    edges: Float[Tensor, "rays bins+1"],
    weights: Float[Tensor, "rays bins"],
    samples: int,
    uniform: Float[Tensor, "rays samples"] | None = None,
    padding: float = 1e-5,
) -> Float[Tensor, "rays samples"]:
    """Distances drawn from the piecewise-constant density ``weights + padding`` over ``edges`` (NeRF, section 5.2).

    Inverse-CDF sampling of ``uniform`` numbers, or of ``samples`` evenly spaced ones from 0 to 1; no gradient flows.
    """
    with torch.no_grad():
        pdf = weights + padding
        cdf = torch.cumsum(pdf / pdf.sum(-1, keepdim=True), -1)
        cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf], -1)
        if uniform is None:
            uniform = torch.linspace(0, 1, samples, device=cdf.device, dtype=cdf.dtype).expand(cdf.shape[0], samples)
        index = torch.searchsorted(cdf, uniform.contiguous(), right=True)
        below, above = (index - 1).clamp(min=0), index.clamp(max=cdf.shape[-1] - 1)
        c0, c1 = cdf.gather(-1, below), cdf.gather(-1, above)
        t0, t1 = edges.gather(-1, below), edges.gather(-1, above)
        width = c1 - c0
        width = torch.where(width < 1e-5, torch.ones_like(width), width)
        return t0 + (uniform - c0) / width * (t1 - t0)
