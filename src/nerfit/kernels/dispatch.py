"""Which body of a kernel runs."""

import os
from typing import Literal

import torch

from nerfit.errors import ConfigError

Dialect = Literal["reference", "cpu", "cuda"]


def dialect(device: torch.device) -> Dialect:
    """The body for tensors on a device: $NERFIT_KERNELS if set, else cpu or cuda, and the reference on anything else."""
    wish = os.environ.get("NERFIT_KERNELS", "")
    if wish not in ("", "reference", "cpu", "cuda"):
        raise ConfigError(f"NERFIT_KERNELS must be reference, cpu or cuda, not '{wish}'.")
    if wish == "reference" or device.type not in ("cpu", "cuda"):
        return "reference"
    if wish and wish != device.type and not (wish == "cuda" and os.environ.get("TRITON_INTERPRET") == "1"):
        raise ConfigError(f"NERFIT_KERNELS={wish} can't run on the device {device.type}.")
    return "cuda" if wish == "cuda" or device.type == "cuda" else "cpu"
