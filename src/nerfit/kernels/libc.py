"""The system's C library."""

import ctypes
import sys
from functools import cache
from typing import Any


@cache
def from_libc(name: str) -> Any:
    """A function of Linux's C library; None on other systems, and where the library has no such function."""
    try:
        return getattr(ctypes.CDLL(None), name) if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return None
