"""Where large tensors lie."""

import ctypes
from mmap import PAGESIZE

import torch
from torch import Tensor

from nerfit.kernels.libc import from_libc

_MADV_HUGEPAGE = 14


def in_large_pages(fresh: Tensor) -> Tensor:
    """The same tensor, which nothing was written to yet; Linux is asked for pages of 2 MB for it, elsewhere nothing is done.

    For what is read all over the place, as a hash table is: looking up so many small pages takes time.
    """
    if fresh.device.type == "cpu" and (madvise := from_libc("madvise")) is not None:
        first = -(-fresh.data_ptr() // PAGESIZE) * PAGESIZE
        size = fresh.data_ptr() + fresh.nbytes - first
        if size >= 2**21:
            madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), _MADV_HUGEPAGE)  # a wish: whether it is granted changes no result
    return fresh


def zeros_in_large_pages(like: Tensor) -> Tensor:
    """Zeros of a tensor's size and type, `in_large_pages`."""
    return in_large_pages(torch.empty_like(like, requires_grad=False)).zero_()
