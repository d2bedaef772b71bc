"""What tests of commands on Ray share: its stand-in, and looking after processes."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nerfit.commands import cluster
from nerfit.commands.cluster import Needs, Stop, TaskDied
from nerfit.errors import NerfitError

needs_ray = pytest.mark.skipif(not cluster.installed(), reason="the extra cluster is not installed")


def in_turn(work: Callable[[Any], Any], items: Sequence[Any], needs: Needs, stop: Stop) -> Iterator[tuple[int, Any]]:
    """What `on_ray` does, one after another in this process."""
    for index, item in enumerate(items):
        for attempt in range(1 + needs.retries):
            try:
                yield index, work(item)
                break
            except NerfitError as error:
                if not isinstance(error, TaskDied) or attempt == needs.retries:
                    yield index, error
                    break


def until(condition: Callable[[], Any], seconds: float = 1200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def kill(pid: int) -> None:
    """SIGKILL to a process and all below it."""
    for one in descendants(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Processes below one, with itself, by /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found
