"""Adam on CPUs, sparse: entries without gradient are left alone."""

import numpy as np

from nerfit.kernels.cpu.runtime import kernel
from nerfit.kernels.cpu.vectors import any_nonzero, fma, load16, splat16, square_root, store16, where_nonzero


@kernel
def adam(part, parts, p, g, m, v, rate, beta1, beta2, eps, correction2, decay):
    """Update p [n] where g is not zero, then set g to zero. n is a multiple of 16.

    ``rate`` is the learning rate over 1 - β₁ᵗ, ``correction2`` 1/(1 - β₂ᵗ), ``decay`` an L2 penalty's factor.
    """
    blocks = p.size // 16
    b1, c1, b2, c2 = splat16(beta1), splat16(np.float32(1) - beta1), splat16(beta2), splat16(np.float32(1) - beta2)
    minus, tiny, scale, l2 = splat16(-rate), splat16(eps), splat16(correction2), splat16(decay)
    zero = splat16(np.float32(0))
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        at = 16 * block
        raw = load16(g, at)
        if any_nonzero(raw):
            old = load16(p, at)
            gradient = fma(old, l2, raw)
            mean, square = load16(m, at), load16(v, at)
            mean = where_nonzero(raw, fma(mean, b1, gradient * c1), mean)
            square = where_nonzero(raw, fma(square, b2, gradient * gradient * c2), square)
            new = fma(minus, mean / (square_root(square * scale) + tiny), old)
            store16(p, at, where_nonzero(raw, new, old))
            store16(m, at, mean)
            store16(v, at, square)
            store16(g, at, zero)
