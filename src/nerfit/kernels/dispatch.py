"""Which body of a kernel runs: the one rule for all backends."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any, Literal

import torch

from nerfit.errors import ConfigError, one_line

Backend = Literal["reference", "cpu", "triton"]


def backend(device: torch.device) -> Backend:
    """The backend for tensors on a device: $NERFIT_KERNELS if set, else cpu or triton, and the reference where neither runs."""
    wish = os.environ.get("NERFIT_KERNELS", "")
    if wish not in ("", "reference", "cpu", "triton"):
        raise ConfigError(f"NERFIT_KERNELS must be reference, cpu or triton, not '{wish}'.")
    if wish == "reference" or device.type not in ("cpu", "cuda"):
        return "reference"
    native = "triton" if device.type == "cuda" else "cpu"
    if wish and wish != native and not (wish == "triton" and os.environ.get("TRITON_INTERPRET") == "1"):
        raise ConfigError(f"NERFIT_KERNELS={wish} can't run on the device {device.type}.")
    if "triton" not in (wish, native):
        return "cpu"
    return "triton" if wish or triton_fails(device) is None else "reference"


@cache
def triton_fails(device: torch.device) -> str | None:
    """Why the Triton bodies can't run on a device, as part of a sentence; None if the smallest of them gave the right answer there.

    It runs once in a process. Triton's first launch needs a C compiler, which no installation of a package can promise.
    """
    try:
        from nerfit.kernels.triton.spherical_harmonics import spherical_harmonics

        constant = float(spherical_harmonics(torch.tensor([[0.0, 0.0, 1.0]], device=device))[0, 0])
    except ImportError:
        return f"Triton is not installed (pip install triton{'-windows' if sys.platform == 'win32' else ''})"
    except subprocess.CalledProcessError:
        return "the C compiler failed on Triton's launcher (it needs Python's headers: python3-dev)"
    except Exception as error:  # drivers and Triton's compiler fail in ways of their own
        text = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        if "out of memory" in text:
            return "its memory is full"
        if "C compiler" in text:
            return "Triton needs a C compiler and finds none (install gcc, or set CC)"
        return f"Triton's first kernel failed ({one_line(text)})"
    return None if abs(constant - 0.28209479177387814) < 1e-6 else f"Triton's first kernel gave {constant:g} for 0.282095"


def why_slow(device: torch.device) -> str | None:
    """Why the kernels run as plain PyTorch on a device, as part of a sentence; None if a backend of their own runs there."""
    if backend(device) != "reference":
        return None
    if os.environ.get("NERFIT_KERNELS") == "reference":
        return "NERFIT_KERNELS is reference"
    return triton_fails(device) if device.type == "cuda" else f"nerfit has no kernels for {device.type}"


def implementation(device: torch.device, name: str) -> Any:
    """The module with the bodies of the kernels of module ``name`` for a device whose backend is not the reference."""
    return import_module(f"nerfit.kernels.{backend(device)}.{name}")


@contextlib.contextmanager
def kernels_take_threads(device: torch.device) -> Iterator[None]:
    """Give PyTorch's threads to the CPU kernels for a while.

    OpenMP's threads spin for milliseconds after each of PyTorch's small parallel operations, on the cores that the
    kernels want: a training step took half as long again.
    """
    if backend(device) != "cpu":
        yield
        return
    from nerfit.kernels.cpu import runtime

    if runtime.threads:  # they have them already
        yield
        return
    count = torch.get_num_threads()
    runtime.threads = count
    torch.set_num_threads(1)
    try:
        yield
    finally:
        runtime.threads = 0
        torch.set_num_threads(count)
