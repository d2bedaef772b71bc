"""Adam on CPUs, sparse: entries without gradient are left alone."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels.cpu.hash_grid import is_mine, scatter_level
from nerfit.kernels.cpu.runtime import inlined, kernel, part_count, run_parallel
from nerfit.kernels.cpu.tensors import array, f32, grid
from nerfit.kernels.cpu.vectors import any_nonzero, fma, load16, prefetch, splat16, square_root, store16, where_nonzero
from nerfit.kernels.layouts import AdamStep, FactoredGradient

AHEAD = 4
"""Groups of 8 lines whose parameters and moments are fetched ahead: only some lines have a gradient, which processors can't foresee."""


@inlined
def _adam16(p, m, v, at, raw, rate, beta1, beta2, eps, correction2, decay):
    """Move p, m, v [at … at + 15] where ``raw``, the gradient, is not zero."""
    old, one, zero = load16(p, at), splat16(np.float32(1)), splat16(np.float32(0))
    # Where raw is 0, these factors leave everything as it is. To store chosen lanes instead is slow: AMD's AVX2 does it in microcode.
    keep_m, keep_v = where_nonzero(raw, splat16(beta1), one), where_nonzero(raw, splat16(beta2), one)
    gradient = fma(old, splat16(decay), raw)
    mean = fma(load16(m, at), keep_m, gradient * (one - keep_m))
    square = fma(load16(v, at), keep_v, gradient * gradient * (one - keep_v))
    step, least = where_nonzero(raw, splat16(-rate), zero), where_nonzero(raw, splat16(eps), one)
    store16(p, at, fma(step, mean / (square_root(square * splat16(correction2)) + least), old))
    store16(m, at, mean)
    store16(v, at, square)


@kernel
def _adam(part, parts, g, state, numbers, decay):
    """Update p [n] where g is not zero, then set g to zero. n is a multiple of 16.

    ``state`` is (p, m, v), the parameters and their moments; ``numbers`` are (rate, β₁, β₂, eps, correction2): rate is the learning rate
    over 1 - β₁ᵗ, correction2 1/(1 - β₂ᵗ). ``decay`` is an L2 penalty's factor.
    """
    p, m, v = state
    rate, beta1, beta2, eps, correction2 = numbers
    blocks = p.size // 16
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        raw = load16(g, 16 * block)
        if any_nonzero(raw):
            _adam16(p, m, v, 16 * block, raw, rate, beta1, beta2, eps, correction2, decay)
            store16(g, 16 * block, splat16(np.float32(0)))


@kernel
def _scatter_adam(part, parts, samples, layout, state, numbers, decays, scratch):
    """`_scatter` and `_adam` in one, with their tuples: a level's gradient is summed and used while it is in cache.

    ``scratch`` are sums [parts, 4·entries], and marks [parts, entries/4] that say which 16 floats have a gradient; both are zero before
    and after.
    """
    rows, count, gradient, depth = samples
    resolutions, offsets, entries = layout
    p, m, v = state
    rate, beta1, beta2, eps, correction2 = numbers
    sums, marks = scratch
    sums, marks = sums[part], marks[part]
    for level in range(resolutions.size - 1, -1, -1):
        if not is_mine(level, resolutions.size, part, parts):
            continue
        scatter_level(level, rows, count, gradient, resolutions[level], offsets[0], entries, depth, sums, marks)
        first = 4 * np.int64(offsets[level])
        words = marks.view(np.uint64)
        many = (4 * np.int64(offsets[level + 1]) - first + 127) // 128
        for word in range(many):
            if word + AHEAD < many and words[word + AHEAD]:
                for line in range(8 * (word + AHEAD), 8 * (word + AHEAD) + 8):
                    if marks[line]:
                        prefetch(p, first + 16 * line)
                        prefetch(m, first + 16 * line)
                        prefetch(v, first + 16 * line)
            if words[word]:
                for line in range(8 * word, 8 * word + 8):
                    if marks[line]:
                        _adam16(p, m, v, first + 16 * line, load16(sums, 16 * line), rate, beta1, beta2, eps, correction2, decays[level])
                        store16(sums, 16 * line, splat16(np.float32(0)))
                words[word] = 0


def sparse_adam(p: Tensor, g: Tensor, m: Tensor, v: Tensor, numbers: AdamStep) -> None:
    """One step in place."""
    state = tuple(array(a.view(-1)) for a in (p, m, v))
    run_parallel(_adam, array(g.view(-1)), state, tuple(map(f32, numbers.rates())), f32(numbers.weight_decay))


@lru_cache(maxsize=4)
def _level_sums(parts: int, entries: int) -> tuple[Any, Any]:
    """Zeros to sum a level's gradient in, for each thread; `_scatter_adam` leaves zeros."""
    return torch.zeros(parts, 4 * entries).numpy(), torch.zeros(parts, entries // 4, dtype=torch.uint8).numpy()


def sparse_adam_factored(p: Tensor, g: FactoredGradient, m: Tensor, v: Tensor, numbers: AdamStep, decays: list[float]) -> None:
    """One step in place, with a penalty's factor for each level."""
    samples, rates = (g.positions, np.array(g.count), g.features, g.layout.depth), tuple(map(f32, numbers.rates()))
    scratch = _level_sums(part_count(), g.layout.entries)
    run_parallel(_scatter_adam, samples, grid(g.layout), tuple(map(array, (p, m, v))), rates, np.array(decays, f32), scratch)
