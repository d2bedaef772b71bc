"""Long work on files: counted aloud, done once, and by one process at a time."""

import hashlib
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nerfit.errors import SceneError
from nerfit.scenes.files import check_regular


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
