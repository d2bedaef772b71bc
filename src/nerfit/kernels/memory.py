"""Where large tensors lie."""

import ctypes
import sys
from functools import cache
from mmap import PAGESIZE
from typing import Any

import torch
from torch import Tensor

_MADV_HUGEPAGE = 14


@cache
def from_libc(name: str) -> Any:
    """A function of Linux's C library; None elsewhere."""
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name) if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return None


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
