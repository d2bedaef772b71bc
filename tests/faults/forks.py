"""Command lines in forks of a process that has imported everything, to be killed."""

import importlib
import os
import traceback
from collections.abc import Callable

from nerfit.cli import main

IMPORTED = (
    "torch._dynamo",
    "torch.utils.tensorboard",
    "nerfit.commands.train_run",
    "nerfit.kernels.cpu.marching",
    "nerfit.methods.instant",
)


def import_all() -> None:
    """Import what a training imports as it goes, seconds of it, so that no fork has to; nothing is computed, so no thread begins."""
    for name in IMPORTED:
        importlib.import_module(name)


def child(argv: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Run the command line in a fork of this process, with its words in log.txt; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 99
    try:
        prepare()
        code = main(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def alive(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
