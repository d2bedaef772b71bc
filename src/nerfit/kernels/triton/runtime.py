"""How GPU kernels are started."""

from collections.abc import Callable
from typing import Any

import torch
import triton

jit: Callable[..., Any] = triton.jit
"""Decorator of kernels and their parts; untyped, since within them numbers stand for constexpr."""


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """``kernel[grid](*args, **options)`` on the device of its first argument, unless the grid is empty."""
    if all(grid):
        with torch.cuda.device_of(args[0]):
            kernel[grid](*args, **options)
