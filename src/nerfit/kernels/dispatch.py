"""Which body of a kernel runs: the one rule for all backends."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch

from nerfit.errors import ConfigError

Backend = Literal["reference", "cpu", "triton"]


def backend(device: torch.device) -> Backend:
    """The backend for tensors on a device: $NERFIT_KERNELS if set, else cpu or triton, and the reference on any other device."""
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
    return "triton" if _has_triton() else "reference"


@cache
def _has_triton() -> bool:
    """Whether the GPU bodies can be imported; warns once if not."""
    if find_spec("triton") is not None:
        return True
    warnings.warn(
        "Triton is not installed: kernels run as plain PyTorch on this GPU, many times slower (pip install triton).", stacklevel=3
    )
    return False


def implementation(device: torch.device, name: str) -> Any:
    """The module with the bodies of the kernels of module ``name`` for a device whose backend is not the reference."""
    kind = backend(device)
    return import_module(f"nerfit.kernels.{kind}.{'api' if kind == 'cpu' and name in ('field', 'marching') else name}")


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
