"""Inverse-CDF sampling on GPUs: one warp per ray sums up its bins, then searches for its samples."""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton.language as tl
from torch import Tensor

from nerfit.kernels.layouts import LEAST_SHARE
from nerfit.kernels.triton.runtime import jit, launch

WARP = tl.constexpr(32)


def sample_pdf(edges: Tensor, weights: Tensor, numbers: Tensor, padding: float) -> Tensor:
    """Distances [rays, samples] for numbers in [0, 1] of each ray, or one row of them for all."""
    (rays, bins), samples = weights.shape, numbers.shape[1]
    out, cdf = edges.new_empty(rays, samples), torch.zeros(edges.shape, dtype=torch.float64, device=edges.device)
    stride = samples if len(numbers) == rays else 0
    launch(_sample_pdf, (rays,), edges, weights, numbers, cdf, padding, LEAST_SHARE, bins, samples, stride, out, num_warps=1)
    return out


@jit
def _sample_pdf(edges, weights, numbers, cdf, padding, least_share, bins, samples, stride, out):
    """The CDF is a sum in float64 that is never divided by its total, so that both its ends are met exactly."""
    ray = tl.program_id(0).to(tl.int64)
    weights += ray * bins
    edges += ray * (bins + 1)
    cdf += ray * (bins + 1)
    total = tl.zeros([], tl.float64)
    for start in range(0, bins, WARP):
        b = start + tl.arange(0, WARP)
        w = tl.where(b < bins, tl.load(weights + b, b < bins, 0.0).to(tl.float64) + padding, 0.0)
        tl.store(cdf + 1 + b, total + tl.cumsum(w, 0), b < bins)
        total += tl.sum(w, 0)
    tl.debug_barrier()  # what one lane stored, others load
    total = tl.load(cdf + bins)
    for start in range(0, samples, WARP):
        s = start + tl.arange(0, WARP)
        u = tl.load(numbers + ray * stride + s, s < samples, 0.0).to(tl.float64) * total
        near, length = tl.zeros_like(s), bins + 1  # the last edge with cdf <= u is one of so many from ``near`` on
        while length > 1:
            half = length // 2
            near = tl.where(tl.load(cdf + near + half) <= u, near + half, near)
            length -= half
        far = tl.minimum(near + 1, bins)
        c0, c1, t0, t1 = tl.load(cdf + near), tl.load(cdf + far), tl.load(edges + near), tl.load(edges + far)
        share = (u - c0) / tl.where(c1 - c0 < least_share * total, total, c1 - c0)
        tl.store(out + ray * samples + s, t0 + share.to(tl.float32) * (t1 - t0), s < samples)
