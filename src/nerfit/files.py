"""Files: read with limits on their size, written atomically, locked against other processes; and the folder of nerfit's cache."""

import hashlib
import json
import math
import os
import re
import sqlite3
import stat
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np

from nerfit.errors import SceneError

_fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None
_msvcrt: Any = import_module("msvcrt") if find_spec("msvcrt") else None
"""What locks files: one on POSIX systems, the other on Windows."""
LOCKS_FOLDERS = _fcntl is not None
"""Whether a folder can be opened, and so be locked itself."""
_LOCKED_BYTE = 1 << 40
"""The byte that Windows locks, far behind any content: there no other process could read or write a locked one."""
_TEXT, _ARRAYS, _LENIENT = 64 << 20, 4 << 30, 8 << 20
"""Largest text file (a frame of transforms.json takes about 1000 bytes) and largest total of the arrays of a NumPy file, in bytes; largest
JSON file with comments, in characters."""
_LONGEST_LINE = 1 << 24


# read with limits


def read_text(file: Path, most: int = _TEXT) -> str:
    """A text file of at most 64 MB, or ``most`` bytes; SceneError for one that is missing, larger, no regular file or no UTF-8."""
    with _opened(file, most) as stream:
        return stream.read(most).decode("utf-8-sig")


def read_json(file: Path, most: int = _TEXT) -> Any:
    """The content of a JSON file, read as `read_text` does; comments and trailing commas are passed over. SceneError for no JSON."""
    text = read_text(file, most)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        plain = _plain_json(text) if len(text) <= _LENIENT else text
        with suppress(ValueError, RecursionError):
            if plain != text:
                return json.loads(plain)
        raise SceneError(f"{file} is not valid JSON ({error}).") from error


def _plain_json(text: str) -> str:
    """JSON without comments (// and /* */) and commas before a closing bracket."""
    for rubbish in (r"//[^\n]*|/\*.*?(?:\*/|\Z)", r",(?=\s*+[\]}])"):
        parts = re.compile(rf'"(?:[^"\\]|\\.?)*+"?|({rubbish})', re.DOTALL)
        text = parts.sub(lambda part: "" if part[1] is not None else part[0], text)
    return text


def peek_json(file: Path) -> Any:
    """The content of a JSON file; None for a file that is missing or no JSON."""
    try:
        return read_json(file)
    except SceneError:
        return None


def peek_text(file: Path, size: int = 4096) -> str:
    """The first ``size`` bytes of a file as text, whatever they are; empty for a file that can't be read or is no regular one."""
    try:
        check_regular(file)
        with file.open("rb") as stream:
            return stream.read(size).decode("utf-8", "replace")
    except (OSError, ValueError, SceneError):
        return ""


def read_xml(file: Path) -> ElementTree.Element:
    """The root of an XML file, read as `read_text` does; SceneError for one that is no XML or defines entities."""
    text = read_text(file)
    if "<!ENTITY" in text or "<!DOCTYPE" in text:
        raise SceneError(f"{file} has a document type of its own, which no camera file needs; export it again.")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise SceneError(f"{file} is not valid XML ({error}).") from error


def text_lines(file: Path) -> Iterator[list[str]]:
    """The words of each line of a text file of any size, without empty lines; SceneError for a file that can't be read as text."""
    check_regular(file)
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as stream:
            for line in iter(lambda: stream.readline(_LONGEST_LINE), ""):
                if len(line) == _LONGEST_LINE:
                    raise SceneError(f"{file} has a line of more than {_LONGEST_LINE >> 20} MB; it is damaged or no text.")
                if words := line.split():
                    yield words
    except OSError as error:
        raise SceneError(f"{file} can't be read: {error.strerror or error}.") from error


def read_npy(file: Path) -> np.ndarray:
    """The array in an .npy file of at most 64 MB, of any type but Python objects."""
    with _opened(file, _TEXT) as stream:
        return _read_npy(stream, file.stat().st_size)


def read_npz(file: Path, names: Sequence[str]) -> list[np.ndarray]:
    """The named arrays of an .npz file, of any type but Python objects; SceneError where one is missing.

    Sizes are taken from the archive's directory before anything is unpacked: arrays of more than 4 GB together are refused.
    """
    with _opened(file, _ARRAYS) as stream, zipfile.ZipFile(stream) as archive:
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


def npz_names(file: Path) -> list[str]:
    """The names of the arrays of an .npz file."""
    with _opened(file, _ARRAYS) as stream, zipfile.ZipFile(stream) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


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
    """Raise SceneError for a path that exists but is no regular file: reading a pipe or a device may never end."""
    with suppress(OSError, ValueError):  # opening the file gives a better reason
        if not stat.S_ISREG(file.stat().st_mode):
            raise SceneError(f"{file} is not a regular file.")


@contextmanager
def _opened(file: Path, limit: int) -> Iterator[BinaryIO]:
    """A regular file of at most ``limit`` bytes, opened; an error while its content is read becomes a SceneError."""
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


# write atomically


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, which replaces ``path`` once its content is on the disk.

    A crash or a power cut leaves the old file or the new one, never half of either. Processes that write the same file wait for each
    other. A file that is left empty is dropped.
    """
    part = path.with_name(path.name + ".part")
    with _empty_file(part):
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


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file as `atomic_write` does."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file as `atomic_write` does."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def _empty_file(part: Path) -> Iterator[None]:
    """Make an empty file, or empty what a killed process has left, and lock it."""
    if _fcntl is None:  # Windows can't move an open file
        part.write_bytes(b"")
        yield
        return
    while True:
        file = os.open(part, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            lock_descriptor(file, wait=True)
            if _lies_at(file, part):
                with suppress(OSError):  # of a device
                    os.ftruncate(file, 0)
                yield
                return
        finally:
            os.close(file)


def _lies_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has that name; the process that held the lock before may have moved it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


# lock


def lock_descriptor(descriptor: int, wait: bool) -> bool:
    """Lock an open file or folder for this process, until it is closed or the process ends.

    False where another process holds it and ``wait`` is false. File systems without locks always grant it.
    """
    if _fcntl is None:
        return _msvcrt is None or _lock_byte(descriptor, wait)
    try:
        _fcntl.flock(descriptor, _fcntl.LOCK_EX | (0 if wait else _fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _lock_byte(descriptor: int, wait: bool) -> bool:
    """`lock_descriptor` on Windows, where a file's bytes are locked, from its current position on."""
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    while True:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            _msvcrt.locking(descriptor, _msvcrt.LK_NBLCK, 1)
            return True
        except PermissionError:  # another process holds it
            if not wait:
                return False
        except OSError:
            return True
        finally:
            os.lseek(descriptor, position, os.SEEK_SET)
        time.sleep(0.1)


@contextmanager
def file_lock(folder: Path) -> Iterator[None]:
    """Make ``folder`` and lock it for this process. Waits for another process that holds it; a process that dies frees its lock.

    Raises SceneError where the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = sqlite3.connect(folder / "lock.db", timeout=0, isolation_level=None)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            print(f"waiting for another process that works in {folder}", file=sys.stderr)
            while not _try_lock(lock):
                pass
    except (OSError, sqlite3.Error) as error:
        raise SceneError(f"{folder} can't be written ({error}); set NERFIT_CACHE to a folder that can.") from error
    try:
        yield
    finally:
        lock.close()


def _try_lock(lock: sqlite3.Connection) -> bool:
    """Whether the lock was free within a second. (Python handles Ctrl-C between two tries.)"""
    lock.execute("PRAGMA busy_timeout = 1000")
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        return False
    return True


# cache


def cache_folder() -> Path:
    """The folder for files that can be computed again: $NERFIT_CACHE, else nerfit in $XDG_CACHE_HOME, else ~/.cache/nerfit."""
    own, shared = os.environ.get("NERFIT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(shared or Path.home() / ".cache") / "nerfit"


def fingerprint(files: Sequence[Path], *settings: Any) -> str:
    """A name for a result computed from ``files`` with ``settings``: 32 hex digits of a hash over each file's path, date and size.

    Raises SceneError for a path that is no file.
    """
    facts = []
    for file in files:
        check_regular(file)
        try:
            facts.append((str(file.resolve()), (s := file.stat()).st_mtime_ns, s.st_size))
        except (OSError, RuntimeError) as error:  # the latter for links in a ring, before Python 3.13
            raise SceneError(f"{file} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    return hashlib.sha256(repr((facts, settings)).encode()).hexdigest()[:32]
