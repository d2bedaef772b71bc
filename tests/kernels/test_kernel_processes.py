"""Kernels in processes of their own: the memory they take from the system, and the machine code they find on the disk."""

import os
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


COUNT_COMPILATIONS = """
from numba.core import event
recorder = event.RecordingListener()
event.register("numba:compile", recorder)
import numpy as np
from nerfit.kernels.cpu.sampling import fade_and_raise
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
