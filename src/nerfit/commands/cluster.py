"""Many tasks on Ray, on this machine's cores or a cluster's: the one module that knows it.

Run as ``python -m nerfit.commands.cluster ARGUMENTS`` this is `nerfit ARGUMENTS` in a process that is asked to end when its parent dies.
"""

import contextlib
import logging
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from nerfit.errors import BLANK, ConfigError, NerfitError, RunError
from nerfit.files import lock_descriptor
from nerfit.kernels.libc import from_libc
from nerfit.training.interrupts import stop_on_signals

T = TypeVar("T")
R = TypeVar("R")

_GRACE = 120.0
"""Seconds that tasks have to end after they are asked to."""
_STORE = 128 << 20
"""Bytes of shared memory for the arguments and results of tasks, which are small."""


class TaskDied(RunError):
    """A process was killed or has crashed; another try may succeed."""


@dataclass(frozen=True)
class Needs:
    """The resources of a task, the tasks at a time (none = as many as there is room for), the tries after a crash, and the cluster."""

    cpus: float = 1
    gpus: float = 0
    at_once: int | None = None
    retries: int = 2
    address: str | None = None
    """Of the cluster, as ``ray.init`` takes it; none = this machine."""


class Stop:
    """Becomes the number of the signal that asked to stop."""

    interrupted: int | None = None


def on_ray(work: Callable[[T], R], items: Sequence[T], needs: Needs, stop: Stop) -> Iterator[tuple[int, R | NerfitError]]:
    """The index and result, or error, of ``work`` on each item, as they come; on SIGINT and SIGTERM the rest ends by KeyboardInterrupt.

    A task whose process or machine died, or that raises `TaskDied`, is tried again. Raises ConfigError without Ray or its cluster.
    """
    if not items:
        return
    ray = _ray()
    with _started(ray, needs), stop_on_signals(stop):
        task = ray.remote(work).options(num_cpus=needs.cpus, num_gpus=needs.gpus, max_retries=needs.retries, retry_exceptions=[TaskDied])
        waiting, running = list(range(len(items)))[::-1], {}
        try:
            while (waiting or running) and stop.interrupted is None:
                while waiting and len(running) < (needs.at_once or len(items)):
                    index = waiting.pop()
                    running[task.remote(items[index])] = index
                for reference in ray.wait(list(running), timeout=0.5)[0]:
                    yield running.pop(reference), _outcome(ray, reference)
        finally:
            for reference in running:
                ray.cancel(reference)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=_GRACE)


def installed() -> bool:
    """Whether there is Ray."""
    return find_spec("ray") is not None


def _ray() -> Any:
    try:
        return import_module("ray")
    except ImportError as error:
        raise ConfigError("many jobs at once need the extra `cluster`: pip install 'nerfit[cluster]'.") from error


@contextlib.contextmanager
def _started(ray: Any, needs: Needs) -> Iterator[None]:
    """Ray, begun on this machine or joined; it takes SIGTERM for itself, which is given back. Raises ConfigError where that fails."""
    before = signal.getsignal(signal.SIGTERM)
    local = {"num_cpus": max(os.cpu_count() or 1, needs.cpus), "object_store_memory": _STORE, "include_dashboard": False}
    local["_system_config"] = {"worker_niceness": 0}  # Ray's own 15 would starve trainings whose seconds count
    try:
        given = local if needs.address is None else {"address": needs.address}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **given)
    except Exception as error:  # Ray raises plain ones too
        where = needs.address or "this machine"
        raise ConfigError(f"Ray can't be started or joined on {where}, nothing is lost: {str(error).rstrip('.')}.") from error
    try:
        signal.signal(signal.SIGTERM, before)
        yield
    finally:
        ray.shutdown()


def _outcome(ray: Any, reference: Any) -> Any:
    """The result of a task; an error that it raised, or that Ray reports, as one of ours."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        return cause if isinstance(cause, NerfitError) else RunError(f"{type(cause).__name__}: {cause}.")
    except ray.exceptions.RayError as error:
        return TaskDied(f"its worker died: {str(error).strip().splitlines()[0]}")


@contextlib.contextmanager
def locked(log: Path) -> Iterator[BinaryIO]:
    """A log to append to, held against other processes, for which it waits, by us and by all that write to it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        lock_descriptor(file.fileno(), wait=True)
        yield file


def run_nerfit(words: Sequence[str], log: BinaryIO, cwd: Path) -> None:
    """`nerfit` in a process of its own that prints into a log; if we are interrupted it is asked to end, and may save.

    Raises RunError with its last sentence where it fails, TaskDied where it was killed; a blank field's figures speak for themselves.
    """
    began = os.fstat(log.fileno()).st_size
    process = subprocess.Popen(
        [sys.executable, "-m", "nerfit.commands.cluster", *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd
    )
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    code = process.returncode
    if code < 0 or code > 128:
        raise TaskDied(f"its process was ended by signal {-code if code < 0 else code - 128}.")
    if code not in (0, BLANK):
        lines = Path(log.name).read_bytes()[began:].decode(errors="replace").strip().splitlines()
        raise RunError((lines or [f"it ended with code {code}."])[-1].removeprefix("nerfit: "))


def _end_with_parent() -> None:
    """Have Linux send SIGTERM to this process when its parent dies; elsewhere it goes on to its end."""
    prctl, on_parents_death = from_libc("prctl"), 1  # PR_SET_PDEATHSIG
    if prctl is not None:
        prctl(on_parents_death, signal.SIGTERM)


if __name__ == "__main__":
    _end_with_parent()
    sys.argv[0] = "nerfit"
    runpy.run_module("nerfit", run_name="__main__", alter_sys=False)
