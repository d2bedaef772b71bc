"""Blocks of samples, and aligned memory for them."""

from collections import namedtuple

import numpy as np

from nerfit.kernels.cpu.runtime import part_of_kernel

LANES = 128
"""Samples of a block: they go through all layers together."""

Matrix = namedtuple("Matrix", "at rows depth")
"""Where in an array a matrix begins, and its size; rows are a multiple of 16, depth of 32."""
# (Tuples hold numbers alone: to take an array out of one costs two atomic operations, as much as a small product.)


@part_of_kernel
def aligned(size):
    """Room for so many float32, from the beginning of a cache line on: vectors that lie across two lines take twice as long."""
    room = np.empty(size + 16, np.float32)
    first = (-room.ctypes.data // 4) % 16
    return room[first : first + size]


@part_of_kernel
def aligned_zeros(size):
    """The same, with zeros."""
    room = aligned(size)
    room[:] = np.float32(0)
    return room
