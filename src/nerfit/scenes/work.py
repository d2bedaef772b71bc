"""Long work on files: counted aloud, done once, by one process at a time, and seen by others when it is whole."""

import hashlib
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from nerfit.errors import SceneError
from nerfit.scenes.files import check_regular

_fcntl: Any = import_module("fcntl") if os.name == "posix" else None


def tick(done: int, of: int, what: str, last: bool | None = None) -> None:
    """Tell on stderr how many of how many are done: on one line of a terminal, elsewhere only at the ``last`` (none = when all are)."""
    last = done == of if last is None else last
    if sys.stderr.isatty() or last:
        print(f"\r{done}/{of} {what}", end="\n" if last else "", file=sys.stderr, flush=True)


def fingerprint(files: Sequence[Path], *settings: Any) -> str:
    """A name for what is made of ``files`` with ``settings``; another one as soon as a file's path, date or size changes.

    Raises SceneError for what is no file.
    """
    facts = []
    for file in files:
        check_regular(file)
        try:
            facts.append((str(file.resolve()), (s := file.stat()).st_mtime_ns, s.st_size))
        except (OSError, RuntimeError) as error:  # the latter for links in a ring, before Python 3.13
            raise SceneError(f"{file} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    return hashlib.sha256(repr((facts, settings)).encode()).hexdigest()[:32]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make ``folder`` and hold it against other processes, for which it waits; the lock of one that died is free."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = sqlite3.connect(folder / "lock.db", timeout=0, isolation_level=None)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            print(f"waiting for another process that works in {folder}", file=sys.stderr)
            while not _locked(lock):
                pass
    except (OSError, sqlite3.Error) as error:
        raise SceneError(f"{folder} can't be written ({error}); set NERFIT_CACHE to a folder that can.") from error
    try:
        yield
    finally:
        lock.close()


def _locked(lock: sqlite3.Connection) -> bool:
    """Whether the lock was had within a second, after which the program can be interrupted."""
    lock.execute("PRAGMA busy_timeout = 1000")
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        return False
    return True


def lock(descriptor: int, wait: bool) -> bool:
    """Hold an open file or folder against other processes until it is closed or this process ends, however that happens.

    False where another one holds it and ``wait`` is not wished. Windows and file systems without locks grant it to everybody.
    """
    try:
        if _fcntl is not None:
            _fcntl.flock(descriptor, _fcntl.LOCK_EX | (0 if wait else _fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which is moved onto it once its content is on the disk.

    So a crash or a power cut leaves the old file or the new one, never half of either. Of several processes that write the same file
    each waits for the one before. A file that is left empty is not moved.
    """
    part = path.with_name(path.name + ".part")
    with _claimed(part):
        try:
            yield part
            with part.open("rb+") as written:
                os.fsync(written.fileno())
            if part.stat().st_size:
                part.replace(path)
            else:
                part.unlink()
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise


@contextmanager
def _claimed(part: Path) -> Iterator[None]:
    """Make an empty file, whatever a killed process has left of it, and hold it against other processes."""
    if _fcntl is None:  # Windows moves no file that is open
        part.write_bytes(b"")
        yield
        return
    while True:
        file = os.open(part, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            lock(file, wait=True)
            if _same(file, part):
                with suppress(OSError):  # of a device
                    os.ftruncate(file, 0)
                yield
                return
        finally:
            os.close(file)


def _same(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one of that name; whoever had it before may have moved it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
