"""Device, precision and threads of a training, and how much fits in memory."""

import math
import os
import shutil
import sys
import warnings
from functools import cache
from pathlib import Path

import torch

from nerfit.errors import ConfigError
from nerfit.kernels.dispatch import why_slow
from nerfit.kernels.libc import from_libc
from nerfit.methods.base import Method

_LEAST_MEMORY = 1 << 30
"""Free bytes without which a GPU is left alone unless it is named."""


def pick_device(name: str) -> torch.device:
    """The device of a name. "auto" takes a GPU on which nerfit's fast kernels run (CUDA or ROCm), else the CPU.

    A warning gives the reason where "auto" leaves a GPU alone, and the cost where a named device has no fast kernels. Raises ConfigError
    for a device that can't be used here.
    """
    if name == "auto":
        return _automatic_device()
    try:
        device = torch.device(name)
        float(torch.zeros(1, device=device))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{name}' can't be used here: {str(error).splitlines()[0].rstrip('.')}.") from error
    if device.type != "cpu" and (reason := why_slow(device)):
        warnings.warn(
            f"the kernels run as plain PyTorch on {name}, for {reason}: instant, instant-unbounded and nerf-occupancy take ten to a "
            "hundred times as long as on the CPU.",
            stacklevel=2,
        )
    return device


def _automatic_device() -> torch.device:
    """The first GPU that has fast kernels, if this process may choose one; else the CPU, with a warning if there is a GPU."""
    gpus = [torch.device("cuda")] if torch.cuda.is_available() else []
    if gpus and "TORCHELASTIC_RUN_ID" not in os.environ:
        gpus += [torch.device("cuda", i) for i in range(torch.cuda.device_count()) if i != torch.cuda.current_device()]
    for gpu in gpus:
        if why_unused(gpu) is None:
            return gpu
    if reason := why_unused(gpus[0]) if gpus else _why_out_of_reach():
        warnings.warn(f"the GPU is left alone, for {reason}: nerfit computes on the CPU (--device cpu hides this line).", stacklevel=3)
    return torch.device("cpu")


def why_unused(device: torch.device) -> str | None:
    """Why "auto" leaves a device alone, as part of a sentence; None for one that it may take. The answer is found once in a process."""
    if device.type == "cpu":
        return None
    return why_slow(device) or (_why_full(device) if device.type == "cuda" else None)


@cache
def _why_full(gpu: torch.device) -> str | None:
    free, total = (amount / 2**30 for amount in torch.cuda.mem_get_info(gpu))
    return f"only {free:.1f} of its {total:.1f} GiB are free" if free * 2**30 < _LEAST_MEMORY else None


def devices() -> dict[str, str | None]:
    """Every device that PyTorch finds here, by name, with the reason why "auto" leaves it alone (None if it doesn't)."""
    found = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    found += [torch.device(kind) for kind, module in (("mps", torch.backends.mps), ("xpu", torch.xpu)) if module.is_available()]
    table = {str(device): why_unused(device) for device in found}
    return table if torch.cuda.is_available() else table | {"cuda": _why_out_of_reach() or "there is no GPU that it could reach"}


def _why_out_of_reach() -> str | None:
    """Why PyTorch does not reach the NVIDIA GPU of this machine; None without one, or if it is hidden on purpose."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not (shutil.which("nvidia-smi") or _has_nvidia_card()):
        return None
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA (pytorch.org/get-started has the command for a build with it)"
    return "PyTorch finds no driver that works (nvidia-smi shows its state)"


def _has_nvidia_card() -> bool:
    """Whether Linux lists a graphics card of NVIDIA's."""
    nvidia, graphics = "0x10de", "0x03"
    try:
        cards = [card.parent for card in Path("/sys/bus/pci/devices").glob("*/vendor") if card.read_text("utf-8").strip() == nvidia]
        return any((card / "class").read_text("utf-8").startswith(graphics) for card in cards)
    except OSError:
        return False


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
        flags = set(Path("/proc/cpuinfo").read_text("utf-8").partition("flags")[2].partition("\n")[0].split())
    except OSError:
        return False
    return device.type == "cpu" and bool(flags & {"amx_bf16", "avx512_bf16"})


def core_seconds(device: str, threads: int | None, seconds: float | None) -> float | None:
    """Seconds of all CPU cores that a run of ``seconds`` has; None on a GPU, on cores with matrix units, and without limit."""
    if seconds is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training itself says why a GPU is left alone
        where = pick_device(device)
    if where.type != "cpu" or _has_fast_bf16(where):
        return None
    return seconds * (threads or torch.get_num_threads())


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
    """Free bytes on a device; on a CPU those of the machine, or of the container if fewer; 4 GB outside Linux."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = 4 << 30
    try:
        for line in Path("/proc/meminfo").read_text("utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text("utf-8").strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text("utf-8")))
    except (OSError, ValueError):
        pass  # not Linux, or no limit on this container
    return max(free, 0)


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process in MB (2²⁰ bytes): resident, or on a GPU allocated by PyTorch; NaN if the system does not report it.

    Linux's ru_maxrss begins with the peak of the process that started this one, so /proc/self/status is read instead.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / (1 << 20)
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / (1 << 10)
    except (OSError, StopIteration):
        if sys.platform == "win32":
            return math.nan
        import resource

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
