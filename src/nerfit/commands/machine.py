"""The machine that a measurement is made on."""

import contextlib
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nerfit import __version__


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware and software of a measurement, and its date."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    found = {
        "cpu": name,
        "cores": len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "system": f"{platform.system()} {platform.machine()}",
    }
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return found | {"python": platform.python_version(), "torch": torch.__version__, "nerfit": __version__, "date": now}


LONGEST = 1.0
"""Seconds that one matrix product may take: bf16 can be a thousand times slower than float32 on a processor without it."""


def matrix_peak(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations per second of a square matrix product, the median of several.

    Matrices of ``size`` rows are measured, or smaller ones where those would take longer than `LONGEST`.
    """
    rows = min(size, 128)
    while rows < size and 8 * median_seconds(_product(device, dtype, rows), 1) < LONGEST:
        rows = min(size, 2 * rows)
    return 2 * rows**3 / median_seconds(_product(device, dtype, rows), 9)


def _product(device: torch.device, dtype: torch.dtype, rows: int) -> Callable[[], None]:
    a = torch.randn(rows, rows, device=device).to(dtype)
    out = torch.empty_like(a)  # new memory would be measured, too

    def product() -> None:
        float(torch.mm(a, a, out=out)[0, 0])  # reading a value waits for the device

    return product


def median_seconds(fn: Callable[[], Any], repeats: int) -> float:
    """Median time of a call, after one that does not count."""
    fn()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
