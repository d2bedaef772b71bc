"""The pixels of all views of a scene: decoded side by side, shrunk, hidden where masks say so, and kept in a cache."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from nerfit.files import atomic_write, cache_folder, fingerprint
from nerfit.scenes.images import Header, read_header, read_image, resize_area, stored_bits
from nerfit.scenes.reading.masks import Mask, check_mask, unmasked

Pixels = UInt8[np.ndarray, "pixels channels"]
T = TypeVar("T")

_IN_MEMORY = 2**30
"""Bytes of pixels that are kept in memory; more are mapped from the cache."""
_IN_FLIGHT = 64_000_000
"""Pixels of the pictures that are decoded at the same time, as long as one fits."""
_STEP = 2**22
"""Pixels, or bytes, that are moved at once."""
_VERSION = "pixels of picture profiles"
"""Of the cached pixels."""


def load_pixels(
    paths: Sequence[Path], sizes: Sequence[tuple[int, int]], masks: Sequence[Mask | None] | None = None
) -> UInt8[Tensor, "pixels channels"]:
    """Pictures shrunk by area to ``sizes`` (width, height), one after another, rows first.

    3 channels, or 4 if some pixel of any is transparent. Under a mask (`find_masks`) alpha is 0 where more than half of a
    pixel is hidden, else 255, and the colour is that of the visible part. When a picture had to be shrunk, or there is
    more than 1 GB, the pixels are mapped, copy-on-write, from a cache: the folder NERFIT_CACHE, else ~/.cache/nerfit. An entry
    is named by a hash of the files' paths, dates and sizes and of ``sizes``, so changed pictures are read again. Warns of
    linear pictures and of a cache that can't be written. Raises SceneError for files that can't be read and masks of another shape.
    """
    masks = [None] * len(paths) if masks is None else masks
    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(read_header, paths))
        list(pool.map(check_mask, masks, paths, headers))
    if linear := [path for path, header in zip(paths, headers, strict=True) if header.linear]:
        warnings.warn(f"{linear[0].parent}: {len(linear)} linear pictures are shown as sRGB, brighter than 1 as white.", stacklevel=2)
    bits = stored_bits(paths, headers)
    if bits < 16:
        warnings.warn(f"{paths[0].parent}: its 16-bit pictures use {bits} bits, and are scaled by that.", stacklevel=2)
    channels = 4 if any(masks) or any(header.alpha for header in headers) else 3
    shape = sum(width * height for width, height in sizes), channels

    def fill(pixels: Pixels) -> Pixels:
        return _fill(pixels, paths, headers, sizes, masks, bits)

    pixels = None
    if shape[0] * channels > _IN_MEMORY or any(header[:2] != size for header, size in zip(headers, sizes, strict=True)):
        files = [*paths, *(mask.file for mask in masks if mask)]
        key = fingerprint(files, _VERSION, sizes, [mask and mask.white_hides for mask in masks], bits)
        pixels = _cached(cache_folder() / f"{key}.npy", shape, fill)
    return torch.from_numpy(fill(np.empty(shape, np.uint8)) if pixels is None else pixels)


def _fill(
    pixels: Pixels,
    paths: Sequence[Path],
    headers: list[Header],
    sizes: Sequence[tuple[int, int]],
    masks: Sequence[Mask | None],
    bits: int,
) -> Pixels:
    """Decode all pictures into ``pixels``, in as many threads as memory allows; what of it is used in the end."""
    ends = np.cumsum([width * height for width, height in sizes])

    def decode(view: int) -> bool:
        width, height = sizes[view]
        picture = _view(paths[view], sizes[view], masks[view], bits).reshape(width * height, -1)
        mine = pixels[ends[view] - width * height : ends[view]]
        mine[:, 3:] = 255
        mine[:, : picture.shape[1]] = picture
        return bool(mine[:, 3:].min(initial=255) < 255)

    largest = max(header.width * header.height for header in headers)
    pool = ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, _IN_FLIGHT // largest)))
    try:
        transparent = [*_watched(pool.map(decode, range(len(paths))), len(paths))]
    finally:
        pool.shutdown(cancel_futures=True)
    return pixels if any(transparent) or pixels.shape[1] == 3 else _without_alpha(pixels)


def _view(path: Path, size: tuple[int, int], mask: Mask | None, bits: int) -> UInt8[np.ndarray, "height width channels"]:
    """A picture shrunk to ``size``; what a mask hides has no part in its colours."""
    picture = read_image(path, size, bits)
    if mask is None:
        return resize_area(picture, *size)
    alpha = np.where(unmasked(mask, *picture.shape[:2]), picture[..., 3] if picture.shape[2] == 4 else 255, 0)
    picture = resize_area(np.dstack([picture[..., :3], alpha.astype(np.uint8)]), *size)
    picture[..., 3] = np.where(picture[..., 3] > 127, 255, 0)
    return picture


def _watched(results: Iterable[T], total: int) -> Iterator[T]:
    """Pass results on; where they take longer than two seconds a terminal shows how far they are."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("pictures"), TimeElapsedColumn())
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    task = bar.add_task("", total=total)
    begin = monotonic()
    try:
        for result in results:
            bar.advance(task)
            if monotonic() - begin > 2:
                bar.start()
            yield result
    finally:
        if bar.live.is_started:
            bar.stop()


def _without_alpha(pixels: UInt8[np.ndarray, "pixels 4"]) -> UInt8[np.ndarray, "pixels 3"]:
    """The colours alone, moved together within the same memory."""
    flat = pixels.reshape(-1)
    for i in range(0, len(pixels), _STEP):
        colours = pixels[i : i + _STEP, :3].reshape(-1)
        flat[3 * i : 3 * i + len(colours)] = colours
    return flat[: 3 * len(pixels)].reshape(-1, 3)


def _cached(entry: Path, shape: tuple[int, int], fill: Callable[[Pixels], Pixels]) -> Pixels | None:
    """The pixels of a cache entry, made with ``fill`` where it is absent or damaged; None, with a warning, where it can't be written."""
    pixels = _read_entry(entry, shape[0])
    if pixels is not None:
        return pixels
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(entry) as part:
            if _read_entry(entry, shape[0]) is None:  # unless another process has made it in the meantime
                _write_entry(part, shape, fill)
    except OSError as error:
        warnings.warn(f"{entry.parent} can't be written ({error.strerror}), so the pictures are read again every time.", stacklevel=3)
    return _read_entry(entry, shape[0])


def _write_entry(part: Path, shape: tuple[int, int], fill: Callable[[Pixels], Pixels]) -> None:
    """Write what ``fill`` makes of pixels of that shape, in memory that is mapped."""
    with part.open("wb+") as file:
        _write_header(file, shape)
        start, size = file.tell(), shape[0] * shape[1]
        for i in range(0, size, _STEP):  # a full disk is noticed here: writing to mapped pages would kill the process
            file.write(bytes(min(_STEP, size - i)))
        file.flush()
        pixels = np.memmap(file, np.uint8, "r+", start, shape)
        made = fill(pixels).shape
        del pixels  # Windows cuts no file that is mapped
        file.truncate(start + made[0] * made[1])
        file.seek(0)
        _write_header(file, made)


def _write_header(file: Any, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _read_entry(entry: Path, count: int) -> Pixels | None:
    """Cached pixels, mapped copy-on-write (the file can't change through it); None when absent or damaged."""
    with suppress(Exception):  # a damaged header makes NumPy raise nearly anything; the entry is made again
        pixels = np.load(entry, mmap_mode="c", allow_pickle=False)
        if pixels.dtype == np.uint8 and pixels.shape in ((count, 3), (count, 4)) and pixels.flags.c_contiguous:
            return pixels
    return None
