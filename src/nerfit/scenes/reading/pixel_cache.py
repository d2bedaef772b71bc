"""The pixels of all views of a scene: decoded side by side, shrunk, hidden where masks say so, and kept in a cache."""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from nerfit.errors import SceneError
from nerfit.files import atomic_write, cache_folder, fingerprint
from nerfit.scenes.images import SUFFIXES, Header, read_header, read_image, resize_area

Pixels = UInt8[np.ndarray, "pixels channels"]
T = TypeVar("T")

_IN_MEMORY = 2**30
"""Bytes of pixels that are kept in memory; more are mapped from the cache."""
_IN_FLIGHT = 64_000_000
"""Pixels of the pictures that are decoded at the same time, as long as one fits."""
_STEP = 2**22
"""Pixels, or bytes, that are moved at once."""
_DYNAMIC = "dynamic_mask_"
"""Beginning of the names of instant-ngp's masks. White hides in these, black in all others."""


def load_pixels(
    paths: Sequence[Path], sizes: Sequence[tuple[int, int]], masks: Sequence[Path | None] | None = None
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
    channels = 4 if any(masks) or any(header.alpha for header in headers) else 3
    shape = sum(width * height for width, height in sizes), channels

    def fill(pixels: Pixels) -> Pixels:
        return _fill(pixels, paths, headers, sizes, masks)

    pixels = None
    if shape[0] * channels > _IN_MEMORY or any(header[:2] != size for header, size in zip(headers, sizes, strict=True)):
        key = fingerprint([*paths, *filter(None, masks)], "pixels", sizes, [mask is None for mask in masks])
        pixels = _cached(cache_folder() / f"{key}.npy", shape, fill)
    return torch.from_numpy(fill(np.empty(shape, np.uint8)) if pixels is None else pixels)


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder, by name with numbers in order of their values; no masks or hidden files; [] without a folder."""
    if not folder.is_dir():
        return []
    files = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith((".", _DYNAMIC)) and p.is_file()]
    return sorted(files, key=lambda p: ([(text, int(n or -1)) for text, n in re.findall(r"(\D*)(\d*)", p.name)], p.name))


def photographs(folder: Path) -> list[Path]:
    """The pictures of a folder, else of its folder ``images``."""
    return picture_files(folder) or picture_files(folder / "images")


def find_masks(paths: Sequence[Path]) -> list[Path | None]:
    """The mask that lies beside each picture, in the first of the usual places; says how many there are, if any.

    ``dynamic_mask_<stem>.png`` beside the picture (instant-ngp; hides what is not black), or in a folder ``masks`` beside the
    folder ``images`` (``masks_4`` or ``masks`` beside ``images_4``) ``<name>.png`` or ``<stem>.png`` (COLMAP, nerfstudio;
    hides what is black).
    """
    masks = [mask_beside(path) for path in paths]
    if found := [mask for mask in masks if mask]:
        warnings.warn(f"what masks hide is left out, in {len(found)} of {len(paths)} pictures, the first by {found[0]}.", stacklevel=2)
    return masks


def mask_beside(path: Path) -> Path | None:
    """The mask of one picture, as `find_masks` finds it."""
    return next(filter(os.path.isfile, _mask_places(path)), None)


def check_mask(mask: Path | None, path: Path, header: Header) -> None:
    """Raise SceneError for a mask that can't be read, or is of another shape than its picture."""
    other = mask and read_header(mask)
    if other and abs(other.height - other.width * header.height / header.width) > 1 + 0.02 * other.height:
        raise SceneError(f"{mask} is {other.width}x{other.height}, of another shape than {path}, {header.width}x{header.height}.")


def _mask_places(path: Path) -> Iterator[Path]:
    yield path.with_name(f"{_DYNAMIC}{path.stem}.png")
    images = next((parent for parent in path.parents if re.fullmatch(r"images(_\w+)?", parent.name)), None)
    if images is not None:
        for name in dict.fromkeys((images.name.replace("images", "masks", 1), "masks")):
            beside = images.with_name(name) / path.relative_to(images)
            yield from (beside.with_name(f"{path.name}.png"), beside.with_suffix(".png"))


def _fill(
    pixels: Pixels, paths: Sequence[Path], headers: list[Header], sizes: Sequence[tuple[int, int]], masks: Sequence[Path | None]
) -> Pixels:
    """Decode all pictures into ``pixels``, in as many threads as memory allows; what of it is used in the end."""
    ends = np.cumsum([width * height for width, height in sizes])

    def decode(view: int) -> bool:
        width, height = sizes[view]
        picture = _view(paths[view], sizes[view], masks[view]).reshape(width * height, -1)
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


def _view(path: Path, size: tuple[int, int], mask: Path | None) -> UInt8[np.ndarray, "height width channels"]:
    """A picture shrunk to ``size``; what a mask hides has no part in its colours."""
    picture = read_image(path, size)
    if mask is None:
        return resize_area(picture, *size)
    alpha = np.where(unmasked(mask, *picture.shape[:2]), picture[..., 3] if picture.shape[2] == 4 else 255, 0)
    picture = resize_area(np.dstack([picture[..., :3], alpha.astype(np.uint8)]), *size)
    picture[..., 3] = np.where(picture[..., 3] > 127, 255, 0)
    return picture


def unmasked(mask: Path, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """The visible pixels of a picture of that size under its mask; the noise of a JPEG's black counts as black."""
    light = read_image(mask)[..., :3].max(-1) > (127 if mask.suffix.lower() in (".jpg", ".jpeg") else 0)
    visible = ~light if mask.name.startswith(_DYNAMIC) else light
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip((height, width), visible.shape, strict=True))
    return visible[rows[:, None], columns]


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
        made = fill(np.memmap(file, np.uint8, "r+", start, shape)).shape
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
