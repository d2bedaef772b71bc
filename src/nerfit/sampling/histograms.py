"""Histograms along rays: edges in [0, 1] and the weight between each two, and new samples drawn from them. Pure functions."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerfit.kernels.inverse_cdf import sample_pdf


def blurred(weights: Float[Tensor, "rays samples"]) -> Float[Tensor, "rays samples"]:
    """The mean of each two neighbouring maxima of two: wide and smooth enough to miss nothing (mip-NeRF, equation 18)."""
    padded = torch.cat([weights[:, :1], weights, weights[:, -1:]], -1)
    most = torch.maximum(padded[:, :-1], padded[:, 1:])
    return 0.5 * (most[:, :-1] + most[:, 1:])


def dilated(
    edges: Float[Tensor, "rays samples+1"], weights: Float[Tensor, "rays samples"], dilation: float
) -> tuple[Float[Tensor, "rays pieces+1"], Float[Tensor, "rays pieces"]]:
    """The maximum over ± ``dilation`` of a histogram's density, as a histogram of sum 1 within [0, 1] (mip-NeRF 360, appendix).

    It keeps a point that one ray's few samples missed within reach of the next level. ``dilation`` above 0.
    """
    starts, ends = edges[:, :-1] - dilation, edges[:, 1:] + dilation
    density = weights / edges.diff().clamp(min=torch.finfo(edges.dtype).eps)
    wider = torch.cat([edges, starts, ends], -1).sort(-1).values.clamp(0, 1)
    at = wider[:, :-1].contiguous()
    last = torch.searchsorted(starts.contiguous(), at, right=True).clamp(min=1) - 1
    first = torch.minimum(torch.searchsorted(ends.contiguous(), at, right=True), last)
    mass = range_maxima(density, first, last) * wider.diff()
    return wider, mass / mass.sum(-1, keepdim=True).clamp(min=torch.finfo(edges.dtype).eps)


def range_maxima(values: Float[Tensor, "rays n"], first: Int[Tensor, "rays m"], last: Int[Tensor, "rays m"]) -> Float[Tensor, "rays m"]:
    """The largest of values[first … last] of each row, 0 <= first <= last < n, from maxima over powers of two: O((n + m) log n)."""
    n, table, span = values.shape[-1], [values], 1
    while 2 * span <= n:
        table.append(torch.maximum(table[-1], table[-1].roll(-span, -1)))  # what wraps round is never asked for
        span *= 2
    every = torch.cat(table, -1)
    level = torch.frexp((last - first + 1).to(torch.float32)).exponent.long() - 1
    return torch.maximum(every.gather(-1, level * n + first), every.gather(-1, level * n + last + 1 - (1 << level)))


def annealed(weights: Float[Tensor, "rays samples"], progress: float, slope: float) -> Float[Tensor, "rays samples"]:
    """weights^b, b the `bias`: flat at first, as they are at the end (mip-NeRF 360, appendix)."""
    return weights ** bias(progress, slope)


def bias(progress: float, slope: float) -> float:
    """Schlick's bias s·x/((s - 1)·x + 1): from 0 to 1, the faster the larger the slope."""
    return slope * progress / ((slope - 1) * progress + 1)


def resample(
    edges: Float[Tensor, "rays bins+1"],
    weights: Float[Tensor, "rays bins"],
    samples: int,
    jitter: Float[Tensor, "rays 1"] | Float[Tensor, "rays samples"] | None,
    padding: float = 1e-5,
) -> Float[Tensor, "rays samples+1"]:
    """Edges in [0, 1] of ``samples`` intervals around points drawn from a histogram (mip-NeRF 360, appendix).

    Point i is where the weight before it is (i + jitter)/samples of all, or (i + ½)/samples; intervals meet half way between
    points, and the outermost reach as far beyond. ``padding`` is added to each weight. At least 2 samples; no gradient flows.
    """
    order = torch.arange(samples, device=edges.device, dtype=edges.dtype)
    share = ((order + (0.5 if jitter is None else jitter)) / samples).expand(len(edges), samples)
    centers = sample_pdf(edges, torch.where(edges.diff() > 0, weights, 0.0), samples, share, padding)
    middles = 0.5 * (centers[:, 1:] + centers[:, :-1])
    first, last = 2 * centers[:, :1] - middles[:, :1], 2 * centers[:, -1:] - middles[:, -1:]
    return torch.cat([first, middles, last], -1).clamp(0, 1)
