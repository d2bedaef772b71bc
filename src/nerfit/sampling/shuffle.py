"""Shuffles without a table: the pixels of any step follow from its number alone, so a run resumes exactly."""

import torch
from jaxtyping import Int
from torch import Tensor

from nerfit.sampling.share import WHOLE, Share

_MASK = 0xFFFFFFFF


def mix(*words: int) -> int:
    """A well-mixed 63-bit number of a few integers (splitmix64 rounds): the seed of one step of one run."""
    state = 0x9E3779B97F4A7C15
    for word in words:
        state = (state ^ (word & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def permute(index: Int[Tensor, "n"], size: int, key: int) -> Int[Tensor, "n"]:
    """The image of each index under a pseudo-random permutation of range(size); every key is another permutation.

    A six-round Feistel network on the smallest even number of bits that holds ``size``, walked along its cycles until
    it lands inside (Black and Rogaway 2002): exact sampling without replacement in constant memory.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    keys = [mix(key, r) & _MASK for r in range(6)]

    def shuffle(x: Tensor) -> Tensor:
        left, right = x >> half, x & low
        for k in keys:
            h = (right ^ k) * 0x2C1B3C6D & _MASK
            h = (h ^ h >> 15) * 0x297A2D39 & _MASK
            left, right = right, left ^ ((h ^ h >> 13) & low)
        return left << half | right

    out = shuffle(index)
    outside = out >= size
    while bool(outside.any()):
        out[outside] = shuffle(out[outside])
        outside = out >= size
    return out


def epoch_indices(step: int, count: int, size: int, seed: int, share: Share = WHOLE) -> Int[Tensor, "n"]:
    """A share of the ``count`` indices of a step, in an endless walk through range(size) that is shuffled again in every epoch."""
    position = step * count + share.indices(count)
    epochs = position // size
    out = torch.empty_like(position)
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        out[here] = permute(position[here] % size, size, mix(seed, epoch))
    return out
