"""Inverse-CDF sampling: where a fine network looks, given what a coarse one saw."""

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.kernels.dispatch import backend, implementation
from nerfit.kernels.layouts import LEAST_SHARE


@torch.no_grad()
def sample_pdf(
    edges: Float[Tensor, "rays bins+1"],
    weights: Float[Tensor, "rays bins"],
    samples: int,
    uniform: Float[Tensor, "rays samples"] | None = None,
    padding: float = 1e-5,
) -> Float[Tensor, "rays samples"]:
    """Distances drawn from the piecewise-constant density ``weights + padding`` over ``edges`` (NeRF, section 5.2).

    Inverse-CDF sampling of ``uniform`` numbers in [0, 1], or of ``samples`` evenly spaced ones from 0 to 1; no gradient flows.
    A number that meets the CDF at an edge belongs to the bin behind it. At least one bin; padded weights with a sum above 0.
    """
    if backend(edges.device) == "reference" or edges.dtype != torch.float32:
        return sample_pdf_reference(edges, weights, samples, uniform, padding)
    if uniform is None:
        uniform = torch.linspace(0, 1, samples, dtype=torch.float64, device=edges.device)[None]
    bodies = implementation(edges.device, "inverse_cdf")
    return bodies.sample_pdf(edges.contiguous(), weights.contiguous(), uniform.contiguous(), padding)


def sample_pdf_reference(edges: Tensor, weights: Tensor, samples: int, uniform: Tensor | None, padding: float) -> Tensor:
    """`sample_pdf` in PyTorch, in any precision."""
    cdf = torch.cumsum(weights + padding, -1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf / cdf[:, -1:]], -1)
    if uniform is None:
        uniform = torch.linspace(0, 1, samples, device=cdf.device, dtype=cdf.dtype).expand(cdf.shape[0], samples)
    index = torch.searchsorted(cdf, uniform.contiguous(), right=True)
    below, above = (index - 1).clamp(min=0), index.clamp(max=cdf.shape[-1] - 1)
    c0, c1 = cdf.gather(-1, below), cdf.gather(-1, above)
    t0, t1 = edges.gather(-1, below), edges.gather(-1, above)
    width = c1 - c0
    width = torch.where(width < LEAST_SHARE, torch.ones_like(width), width)
    return t0 + (uniform - c0) / width * (t1 - t0)
