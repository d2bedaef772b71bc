"""Reading the text, JSON and NumPy files of scenes, whose content nobody vouches for: with a limit, and errors in one sentence."""

import json
import math
import stat
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nerfit.errors import SceneError

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
