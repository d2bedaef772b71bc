"""Runs nerfit's commands as on Windows or a Mac: what those systems lack is taken away, and what Windows refuses is refused.

    python other_system.py windows|mac ENCODING COMMAND... [, COMMAND...]

Other packages are imported before, for they come in wheels of their own for each system. Pathlib stays that of POSIX.
"""

import builtins
import errno
import importlib.machinery
import io
import os
import re
import signal
import sys
import types
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import av  # noqa: F401
import numba  # noqa: F401
import pycolmap  # noqa: F401
import rich.live  # noqa: F401
import rich.progress  # noqa: F401
import skimage.measure  # noqa: F401
import tensorboard.backend.event_processing.event_accumulator  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import triton  # noqa: F401
import tyro  # noqa: F401
import viser  # noqa: F401
import yaml  # noqa: F401

REAL = types.SimpleNamespace(open=io.open, os_open=os.open, listdir=os.listdir, readlink=os.readlink, fstat=os.fstat, path=os.path.realpath)
WITHOUT = {"windows": ("fcntl", "resource", "termios", "pwd", "grp", "tty", "pty"), "mac": ("msvcrt", "winreg")}
LINUX_OS = ("sched_getaffinity", "posix_fadvise", "memfd_create", "getrandom")
POSIX_OS = ("sysconf", "fork", "getuid", "geteuid", "kill", "killpg", "mkfifo", "statvfs", "fchmod", "chown", "wait4", "uname", "sync")
ALONE = re.compile(r'[<>:"|?*\x00-\x1f]|[ .]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
"""Names that no file of Windows can have."""


def in_use(path: Any) -> bool:
    """Whether this process has a file open or mapped, which Windows would neither replace, remove nor cut."""
    real = REAL.path(os.fspath(path))
    opened = []
    for number in REAL.listdir("/proc/self/fd"):
        try:
            opened.append(REAL.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    with REAL.open("/proc/self/maps", encoding="utf-8") as maps:
        return real in opened or any(line.rstrip("\n").endswith(f" {real}") for line in maps)


def asked_by_nerfit() -> bool:
    """Whether nerfit asks, by itself or through pathlib and shutil; other packages have code of their own for each system."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"] in (__name__, "pathlib", "shutil", "contextlib"):
        frame = frame.f_back
    return str(frame.f_globals["__name__"]).startswith("nerfit")


def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of paths that refuses files in use."""

    @wraps(function)
    def call(*paths: Any, **options: Any) -> Any:
        for path in paths if asked_by_nerfit() else ():
            if isinstance(path, str | os.PathLike) and in_use(path):
                raise PermissionError(
                    errno.EACCES, "The process cannot access the file because it is being used by another process", str(path)
                )
        return function(*paths, **options)

    return call


class Mappable(io.BufferedRandom):
    """A file that can't be cut while it is mapped."""

    def truncate(self, size: int | None = None, /) -> int:
        with REAL.open("/proc/self/maps", encoding="utf-8") as maps:
            if any(line.rstrip("\n").endswith(f" {REAL.path(self.name)}") for line in maps):
                raise OSError(
                    errno.EINVAL, "The requested operation cannot be performed on a file with a user-mapped section open", self.name
                )
        return super().truncate(size)


def check_path(path: Any, system: str, creates: bool) -> None:
    if not isinstance(path, str | os.PathLike) or not asked_by_nerfit():
        return
    text = os.fsdecode(path)
    if text.startswith(("/proc", "/sys")):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", text)
    if system == "windows" and creates and any(ALONE.search(part) for part in Path(text).parts if part not in ("..", ".")):
        raise OSError(errno.EINVAL, "The filename, directory name, or volume label syntax is incorrect", text)


def opener(system: str, encoding: str) -> Callable[..., Any]:
    """`open` whose files have the system's encoding unless one is named."""

    def opened(file: Any, mode: str = "r", buffering: int = -1, named: Any = None, *rest: Any, **options: Any) -> Any:
        named = options.pop("encoding", named)
        check_path(file, system, creates=set(mode) & set("wax+") != set())
        if "b" not in mode and (named is None or named == "locale"):
            named = encoding
        if system == "windows" and isinstance(file, str | os.PathLike) and {"b", "+"} <= set(mode) and asked_by_nerfit():
            return Mappable(io.FileIO(os.fspath(file), mode.replace("b", "")))
        return REAL.open(file, mode, buffering, named, *rest, **options)

    return opened


def fake_msvcrt() -> types.ModuleType:
    """Windows's locks of bytes, by POSIX's."""
    import fcntl

    def locking(descriptor: int, mode: int, count: int) -> None:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, 0, os.SEEK_CUR)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    module = types.ModuleType("msvcrt")
    module.__spec__ = importlib.machinery.ModuleSpec("msvcrt", None)
    vars(module).update(LK_NBLCK=2, locking=locking)
    return module


def become(system: str, encoding: str) -> None:
    """Take away and refuse what ``system`` lacks and refuses."""
    if system == "windows":
        sys.modules["msvcrt"] = fake_msvcrt()
        for name in ("replace", "rename", "unlink", "remove"):
            setattr(os, name, refusing(getattr(os, name)))
        for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "SIGSTOP", "SIGCONT"):
            delattr(signal, name)
    for name in WITHOUT[system]:
        sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    for name in LINUX_OS + (POSIX_OS if system == "windows" else ()):
        if hasattr(os, name):
            delattr(os, name)
    sys.platform = {"windows": "win32", "mac": "darwin"}[system]

    def os_open(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        check_path(path, system, creates=bool(flags & os.O_CREAT))
        if system == "windows" and Path(path).is_dir() and asked_by_nerfit():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return REAL.os_open(path, flags, *rest, **options)

    os.open = os_open
    builtins.open = io.open = opener(system, encoding)
    sys.stdout.reconfigure(encoding=encoding, errors="strict")  # pyright: ignore[reportAttributeAccessIssue]
    sys.stderr.reconfigure(encoding=encoding, errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]


def main(system: str, encoding: str, *words: str) -> int:
    """The first exit code that is not 0; what no command should need is said."""
    become(system, encoding)
    from nerfit.cli import main as nerfit

    commands: list[list[str]] = [[]]
    for word in words:
        if word == ",":
            commands.append([])
        else:
            commands[-1].append(word)
    code = next((code for command in commands if (code := nerfit([*command, "--debug"]))), 0)
    print("imported PyTorch's compiler:", "torch._dynamo" in sys.modules)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
