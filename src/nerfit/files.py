"""Files: read with limits, since nobody vouches for their content, and written so that a crash leaves the old one or the new one."""

import hashlib
import json
import math
import os
import sqlite3
import stat
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nerfit.errors import SceneError

_fcntl: Any = import_module("fcntl") if os.name == "posix" else None
_TEXT, _ARRAYS = 64 << 20, 4 << 30
"""Most bytes of a text file (a frame takes about 1000) and of all arrays of a NumPy file."""


def read_text(file: Path) -> str:
    """A text file of at most 64 MB; SceneError for one that is missing, larger, no regular file or no UTF-8."""
    with _reading(file, _TEXT) as stream:
        return stream.read(_TEXT).decode("utf-8-sig")


def read_json(file: Path) -> Any:
    """The content of a JSON file, read as `read_text` does; SceneError for one that is no JSON."""
    text = read_text(file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SceneError(f"{file} is not valid JSON ({error}).") from error


def peek_json(file: Path) -> Any:
    """The content of what may be a JSON file, None where it isn't."""
    try:
        return read_json(file)
    except SceneError:
        return None


def read_npy(file: Path) -> np.ndarray:
    """The array in an .npy file of at most 64 MB, of any type but Python objects."""
    with _reading(file, _TEXT) as stream:
        return _read_npy(stream, file.stat().st_size)


def read_npz(file: Path, names: Sequence[str]) -> list[np.ndarray]:
    """The named arrays of an .npz file, of any type but Python objects; SceneError where one is missing.

    Sizes are taken from the archive's directory before anything is unpacked: arrays of more than 4 GB together are refused.
    """
    with _reading(file, _ARRAYS) as stream, zipfile.ZipFile(stream) as archive:
        sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
        absent = [name for name in names if name not in sizes]
        if absent:
            raise SceneError(f"{file} holds no array named {' and none named '.join(absent)}.")
        if (total := sum(sizes[name] for name in names)) > _ARRAYS:
            raise SceneError(f"{file} holds {total / 2**30:.1f} GB unpacked, more than the {_ARRAYS >> 30} GB that are allowed.")
        arrays = []
        for name in names:
            with archive.open(f"{name}.npy") as member:
                arrays.append(_read_npy(member, sizes[name]))
        return arrays


def _read_npy(stream: Any, size: int) -> np.ndarray:
    """An array from a stream of ``size`` bytes, of which its header must not promise more."""
    version = np.lib.format.read_magic(stream)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = header(stream)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"an array of {dtype} of shape {shape} can't be in {size} bytes")
    array = np.frombuffer(stream.read(math.prod(shape) * dtype.itemsize), dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def check_regular(file: Path) -> None:
    """Raise SceneError for what is there but no regular file: reading a pipe or a device need never end."""
    with suppress(OSError, ValueError):  # what can't be looked at can't be opened either, and that says why
        if not stat.S_ISREG(file.stat().st_mode):
            raise SceneError(f"{file} is not a regular file.")


@contextmanager
def _reading(file: Path, limit: int) -> Iterator[BinaryIO]:
    """A regular file of at most ``limit`` bytes, opened; whatever goes wrong with its content is a SceneError too."""
    try:
        check_regular(file)
        if (size := file.stat().st_size) > limit:
            raise SceneError(f"{file} has {size / 2**20:.0f} MB, more than the {limit >> 20} MB that are allowed.")
        with file.open("rb") as stream:
            yield stream
    except SceneError:
        raise
    except OSError as error:
        raise SceneError(f"{file} can't be read: {error.strerror or error}.") from error
    except Exception as error:  # damaged archives and headers make zipfile and NumPy raise nearly anything
        raise SceneError(f"{file} is damaged or of another kind than its name says: {error}.") from error


def cache_folder() -> Path:
    """Where things are kept that can be made again: $NERFIT_CACHE, else nerfit in $XDG_CACHE_HOME, else ~/.cache/nerfit."""
    own, shared = os.environ.get("NERFIT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(shared or Path.home() / ".cache") / "nerfit"


def write_json(path: Path, data: Any) -> None:
    """Write JSON as `write_whole` does."""
    write_whole(path, json.dumps(data, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a text file as `atomic_write` does."""
    with atomic_write(path) as part:
        part.write_text(text)


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
def file_lock(folder: Path) -> Iterator[None]:
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
def atomic_write(path: Path) -> Iterator[Path]:
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
