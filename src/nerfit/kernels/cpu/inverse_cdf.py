"""Inverse-CDF sampling on CPUs."""

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels.cpu.runtime import kernel, run_parallel
from nerfit.kernels.cpu.tensors import array
from nerfit.kernels.layouts import LEAST_SHARE


@kernel
def _sample_pdf(part, parts, edges, weights, numbers, padding, least_share, out):
    """Distances [rays, samples] from numbers [rays, samples] in [0, 1], or [1, samples] for all rays.

    The CDF is a sum in float64 that is never divided by its total, so that both its ends are met exactly. All samples of
    a ray take each step of the search together.
    """
    n, bins = weights.shape
    samples = out.shape[1]
    cdf, u, below = np.empty(bins + 1), np.empty(samples), np.empty(samples, np.int64)
    cdf[0] = 0.0
    for i in range(n * part // parts, n * (part + 1) // parts):
        for b in range(bins):
            cdf[b + 1] = cdf[b] + (weights[i, b] + padding)
        total = cdf[bins]
        row = min(i, numbers.shape[0] - 1)
        for s in range(samples):
            u[s] = numbers[row, s] * total
            below[s] = 0
        length = bins + 1  # the last edge with cdf <= u is one of so many from ``below`` on
        while length > 1:
            half = length >> 1
            for s in range(samples):
                middle = below[s] + half
                below[s] = middle if cdf[middle] <= u[s] else below[s]
            length -= half
        resolved = least_share * total
        for s in range(samples):
            near, far = below[s], min(below[s] + 1, bins)
            width = cdf[far] - cdf[near]
            share = (u[s] - cdf[near]) / (total if width < resolved else width)
            out[i, s] = edges[i, near] + np.float32(share) * (edges[i, far] - edges[i, near])


def sample_pdf(edges: Tensor, weights: Tensor, numbers: Tensor, padding: float) -> Tensor:
    """Distances [rays, samples] for numbers in [0, 1] of each ray, or one row of them for all."""
    out = torch.empty(len(edges), numbers.shape[1])
    run_parallel(_sample_pdf, *map(array, (edges, weights, numbers.double())), padding, LEAST_SHARE, array(out))
    return out
