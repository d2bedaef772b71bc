"""Kernels in processes of their own: the memory they take from the system, and the machine code they find on the disk."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()
    or "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(),
    reason="this system has no large pages to give",
)
def test_large_pages_are_given():
    """In a process of its own: memory that was in use before keeps its pages."""
    script = """
import torch
from pathlib import Path
from nerfit.kernels.memory import zeros_in_large_pages
def large():
    return next(int(line.split()[1]) for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if "AnonHugePages" in line)
before = large()
kept = zeros_in_large_pages(torch.empty(16_000_000))
print(large() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 30_000, "kB of 64,000"


X86 = pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="compiles for x86 processors")
HALF_FIELD = """
import ctypes
import llvmlite.binding as llvm
library, features = ctypes.CDLL, llvm.get_host_cpu_features
class Granting:
    syscall = staticmethod(lambda *_: 0)
ctypes.CDLL = lambda name, *args, **options: Granting if name is None else library(name, *args, **options)
llvm.get_host_cpu_features = lambda: {**features(), "amx-bf16": True, "amx-tile": True}
import torch
from nerfit.kernels.field import field_density
from nerfit.kernels.layouts import FieldShape, GridLayout, Network
shape = FieldShape(GridLayout(1, 8, 2, 2), 32)
table, weights, x = torch.rand(shape.grid.size), torch.rand(shape.size), torch.rand(5, 3)
half, exact = (field_density(x, Network(table, weights, shape, half)) for half in (True, False))
assert torch.equal(half, exact)
"""
TILES = """
import numba
from nerfit.kernels.cpu import amx
from nerfit.kernels.cpu.blocks import Matrix
from nerfit.kernels.cpu.runtime import part_of_kernel
@part_of_kernel
def product(w16, x, y):
    amx.forward16(w16, Matrix(0, 32, 32), x, y)
product.compile((numba.int32[::1], numba.float32[::1], numba.float32[::1]))
assert "tdpbf16ps" in "".join(product.inspect_asm().values())
"""


@X86
@pytest.mark.parametrize(
    "script, processor, features",
    [(HALF_FIELD, "x86-64", "+sse2"), (TILES, "sapphirerapids", "")],
    ids=["a processor without tiles", "a processor with tiles"],
)
def test_numba_compiles_for_another_processor(tmp_path, script, processor, features):
    """On a machine that has tiles (or says so) for one that has none, and the other way round: LLVM ends the process where it can't."""
    environment = os.environ | {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features, "NERFIT_CACHE": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


COUNT_COMPILATIONS = """
from numba.core import event
recorder = event.RecordingListener()
event.register("numba:compile", recorder)
import numpy as np
from nerfit.kernels.cpu.marching import _fade_and_raise as fade_and_raise
grid = np.full(5, 2, np.float32)
fade_and_raise(0, 1, grid, np.float32(0.5), np.array([3]), np.ones(1, np.float32))
assert (grid == 1).all()
print(len(recorder.buffer))
"""


def test_a_second_process_compiles_nothing(tmp_path):
    environment = {**os.environ, "NERFIT_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    counts = []
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", COUNT_COMPILATIONS], env=environment, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr
        counts.append(int(run.stdout))
    assert counts[0] > 0
    assert counts[1] == 0
    assert len(list(tmp_path.iterdir())) == 1
