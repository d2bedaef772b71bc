"""Sparse Adam on GPUs."""

import triton
import triton.language as tl
from torch import Tensor

from nerfit.kernels.layouts import AdamStep
from nerfit.kernels.triton.runtime import jit, launch

BLOCK = 1024


def sparse_adam(p: Tensor, g: Tensor, m: Tensor, v: Tensor, numbers: AdamStep) -> None:
    """One step in place."""
    (rate, beta1, beta2, eps, correction2), n = numbers.rates(), p.numel()
    rates = (rate, beta1, 1 - beta1, beta2, 1 - beta2, eps, correction2, numbers.weight_decay)
    launch(_adam, (triton.cdiv(n, BLOCK),), p, g, m, v, n, *rates, BLOCK=BLOCK)


@jit
def _adam(p, g, m, v, n, rate, beta1, rest1, beta2, rest2, eps, correction2, decay, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    raw = tl.load(g + i, i < n, 0.0)
    touched = raw != 0
    old = tl.load(p + i, touched, 0.0)
    gradient = raw + decay * old
    mean = beta1 * tl.load(m + i, touched, 0.0) + rest1 * gradient
    square = beta2 * tl.load(v + i, touched, 0.0) + rest2 * gradient * gradient
    tl.store(p + i, old - rate * mean / (tl.sqrt(square * correction2) + eps), touched)
    tl.store(m + i, mean, touched)
    tl.store(v + i, square, touched)
    tl.store(g + i, 0.0, touched)
