"""How CPU kernels are compiled, cached and run: Numba functions that release the interpreter, on plain threads.

Kernels take ``(part, parts, ...)`` and do their share of the work, so results depend on the number of threads only. Numba's
own threading layers are not used: they die after a fork and compete with PyTorch's threads.
"""

import hashlib
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numba.extending
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils

from nerfit.files import cache_folder


def _cache_folder() -> str:
    """Where compiled kernels persist: a folder named after the text of all kernels, for Numba overlooks edited callees."""
    text = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    name = f"kernels-{hashlib.sha256(text).hexdigest()[:16]}"
    home = cache_folder()
    try:
        (home / name).mkdir(parents=True, exist_ok=True)
        return str(home / name)
    except OSError:
        return tempfile.mkdtemp(prefix="nerfit-")


settings: Any = vars(numba)["config"]
settings.CACHE_DIR = _cache_folder()
_OPTIONS = {"nogil": True, "fastmath": True, "error_model": "numpy"}
kernel: Callable[..., Any] = numba.njit(cache=True, **_OPTIONS)
"""Decorator of functions called from Python."""
part_of_kernel: Callable[..., Any] = numba.njit(**_OPTIONS)
"""Decorator of functions that kernels call."""
inlined: Callable[..., Any] = numba.njit(inline="always", **_OPTIONS)
"""Decorator of small functions that become part of their caller."""

intrinsic: Any = numba.extending.intrinsic
"""Decorator of functions that write LLVM instructions."""

threads = 0
"""Threads of the kernels; 0 = as many as PyTorch uses."""


def part_count() -> int:
    """How many parts `run_parallel` makes."""
    return threads or torch.get_num_threads()


# ---- Waking a thread that sleeps takes as long as many kernels run, so threads wait for a while with their eyes open.


def _word(access: str) -> Any:
    """Atomic access to an element of an int64 array."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        at = builder.gep(data, [args[1]])
        if access == "read":
            return builder.load_atomic(at, "acquire", 8)
        builder.store_atomic(args[2], at, "release", 8)
        return context.get_dummy_value()

    return emit


@intrinsic
def _read(typingctx: Any, words: Any, at: Any) -> Any:
    return types.int64(words, types.int64), _word("read")


@intrinsic
def _write(typingctx: Any, words: Any, at: Any, value: Any) -> Any:
    return types.void(words, types.int64, types.int64), _word("write")


@intrinsic
def _pause(typingctx: Any) -> Any:
    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if platform.machine().lower() in ("x86_64", "amd64"):
            declared = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause")
            builder.call(declared, [])
        return context.get_dummy_value()

    return types.void(), emit


@kernel
def _post(words, value):
    """Give out job ``value``."""
    _write(words, 0, value)


@kernel
def _finished(words, part, value, turns):
    """Whether a part has finished job ``value``, looking at most ``turns`` times."""
    for _ in range(turns):
        if _read(words, 8 * part) >= value:
            return True
        _pause()
    return False


@kernel
def _serve(words, part, done, turns, grace):
    """Say that a part has finished job ``done``, and look for the next for at most ``turns`` times; whether there is one.

    The ``grace`` after that is for the thread that gave it out: it should have let go of the interpreter.
    """
    _write(words, 8 * part, done)
    for _ in range(turns):
        if _read(words, 0) > done:
            for _ in range(grace):
                _pause()
            return True
        _pause()
    return False


class _Team:
    """Threads that each do one part of every job; who calls does part 0."""

    def __init__(self, parts: int) -> None:
        self.process, self.parts = os.getpid(), parts
        self.words = np.zeros(8 * parts, np.int64)  # a cache line each: the latest job, and what each part has finished
        self.job, self.work, self.sleepers = 0, (_nothing, ()), 0
        self.changed = threading.Condition()
        self.results: list[Any] = [None] * parts
        _finished(self.words, 0, 1, 1)
        start = time.perf_counter()
        _finished(self.words, 0, 1, 10_000)
        per_second = 10_000 / (time.perf_counter() - start)
        crowded = parts > len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0))
        self.turns, self.grace = (1 if crowded else int(2e-3 * per_second)), int(8e-6 * per_second)
        for part in range(1, parts):
            threading.Thread(target=self._serve, args=(part,), name=f"kernels-{part}", daemon=True).start()

    def _serve(self, part: int) -> None:
        done = 0
        while True:
            if not _serve(self.words, part, done, self.turns, self.grace):
                with self.changed:
                    self.sleepers += 1
                    while self.job == done:
                        self.changed.wait()
                    self.sleepers -= 1
            done = self.job
            function, args = self.work
            if function is None:
                return
            try:
                self.results[part] = function(part, self.parts, *args), None
            except BaseException as error:  # noqa: BLE001 - it is raised again by `run`
                self.results[part] = None, error

    def _give_out(self, *work: Any) -> None:
        self.work = work
        self.job += 1
        if self.sleepers:
            with self.changed:
                self.changed.notify_all()
        _post(self.words, self.job)

    def run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
        """The results of all parts."""
        self._give_out(function, args)
        try:
            first = function(0, self.parts, *args)
        finally:
            for part in range(1, self.parts):
                while not _finished(self.words, part, self.job, self.turns):
                    time.sleep(0)
        for _, error in self.results[1:]:
            if error is not None:
                raise error
        return [first, *(result for result, _ in self.results[1:])]

    def close(self) -> None:
        """Let the threads end."""
        self._give_out(None, ())


def _nothing(part: int, parts: int) -> None:
    """No job yet."""


_team: _Team | None = None
_lock = threading.Lock()


def run_parallel(function: Callable[..., Any], *args: Any) -> list[Any]:
    """``function(part, parts, *args)`` for every part, each on a thread of its own; the results in order."""
    global _team
    parts = part_count()
    if parts == 1:
        return [function(0, 1, *args)]
    with _lock:
        if _team is None or _team.process != os.getpid() or _team.parts != parts:
            if _team is not None and _team.process == os.getpid():
                _team.close()
            _team = _Team(parts)
        return _team.run(function, args)
