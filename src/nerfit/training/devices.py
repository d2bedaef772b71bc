"""Device, precision and threads of a training, and how much fits in memory."""

import math
import os
import sys
from pathlib import Path

import torch

from nerfit.errors import ConfigError
from nerfit.kernels.libc import from_libc
from nerfit.methods.base import Method

try:
    import resource
except ImportError:  # Windows
    resource = None


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" takes a GPU (CUDA/ROCm, then Apple's MPS) if there is one."""
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{name}' can't be used here: {str(error).splitlines()[0].rstrip('.')}.") from error
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that networks compute in; "auto" takes bf16 where the hardware multiplies it faster than float32."""
    if name == "auto":
        name = "bf16" if _has_fast_bf16(device) else "float32"
    if name == "fp16" and device.type != "cuda":
        raise ConfigError("precision fp16 needs a GPU: use bf16 or float32 here.")
    return {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:
        return False
    return device.type == "cpu" and bool(flags & {"amx_bf16", "avx512_bf16"})


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks; without glibc this does nothing.

    A training step frees and allocates the same activations again. Blocks that go back to the system come as fresh zeroed pages, which
    cost more than the arithmetic.
    """
    mallopt = from_libc("mallopt")
    if mallopt is None:
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)


def give_back_memory() -> None:
    """Return the blocks of `keep_freed_memory` to the system, after something large that does not come again soon."""
    malloc_trim = from_libc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def set_threads(threads: int | None) -> int:
    """Set the number of PyTorch's CPU threads, if one is given; returns the number in use."""
    if threads is not None:
        if threads < 1:
            raise ConfigError("threads must be at least 1.")
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def free_memory(device: torch.device) -> int:
    """Free bytes on a device; on a CPU those of the machine, or of the container if they are fewer."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = 4 << 30
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError, AttributeError):
        pass  # not Linux, Windows (no os.sysconf), or no limit on this container
    return max(free, 0)


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process in MB (2²⁰ bytes): resident, or on a GPU allocated by PyTorch; NaN if the system does not report it.

    Linux's ru_maxrss begins with the peak of the process that started this one, so /proc/self/status is read instead.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / (1 << 20)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / (1 << 10)
    except (OSError, StopIteration):
        if resource is None:
            return math.nan
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def automatic_chunk(method: Method, device: torch.device) -> int:
    """Rays processed together so that a training step's activations fit in half of the free memory.

    On a CPU at most a gigabyte of them: larger chunks were no faster.
    """
    per_ray = 4 * 2 * method.floats_per_ray()  # float32 values and their gradients
    budget = free_memory(device) // 2
    if device.type == "cpu":
        budget = min(budget, 1 << 30)
    return max(64, min(65536, budget // per_ray // 64 * 64))
