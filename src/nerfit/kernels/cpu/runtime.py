"""How CPU kernels are compiled, cached and run: Numba functions that release the interpreter, on plain threads.

Kernels take ``(part, parts, ...)`` and do their share of the work, so results depend on the number of threads only. Numba's
own threading layers are not used: they die after a fork and compete with PyTorch's threads.
"""

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numba.extending
import torch


def _cache_folder() -> str:
    """Where compiled kernels persist: a folder named after the text of all kernels, for Numba overlooks edited callees."""
    text = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    name = f"kernels-{hashlib.sha256(text).hexdigest()[:16]}"
    home = Path(os.environ.get("NERFIT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nerfit")
    try:
        (home / name).mkdir(parents=True, exist_ok=True)
        return str(home / name)
    except OSError:
        return tempfile.mkdtemp(prefix="nerfit-")


settings: Any = vars(numba)["config"]
settings.CACHE_DIR = _cache_folder()
_OPTIONS = {"nogil": True, "fastmath": True, "error_model": "numpy"}
kernel: Callable[..., Any] = numba.njit(cache=True, **_OPTIONS)
"""Decorator of functions called from Python."""
part_of_kernel: Callable[..., Any] = numba.njit(**_OPTIONS)
"""Decorator of functions that kernels call."""
inlined: Callable[..., Any] = numba.njit(inline="always", **_OPTIONS)
"""Decorator of small functions that become part of their caller."""

intrinsic: Any = numba.extending.intrinsic
"""Decorator of functions that write LLVM instructions."""

_pool: tuple[int, int, ThreadPoolExecutor] | None = None
_lock = threading.Lock()


threads = 0
"""Threads of the kernels; 0 = as many as PyTorch uses."""


def part_count() -> int:
    """How many parts `run_parallel` makes."""
    return threads or torch.get_num_threads()


def run_parallel(function: Callable[..., Any], *args: Any) -> list[Any]:
    """``function(part, parts, *args)`` for every part, each on a thread of its own; the results in order."""
    global _pool
    parts = part_count()
    if parts == 1:
        return [function(0, 1, *args)]
    with _lock:
        if _pool is None or _pool[:2] != (os.getpid(), parts):
            _pool = (os.getpid(), parts, ThreadPoolExecutor(parts - 1, "kernels"))
        others = [_pool[2].submit(function, part, parts, *args) for part in range(1, parts)]
        first = function(0, parts, *args)
        return [first, *(other.result() for other in others)]
