"""Copies of photographs for matching, their masks, and what is known of each picture before it has a pose."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from nerfit.errors import SceneError
from nerfit.files import atomic_write
from nerfit.progress import tick
from nerfit.scenes.images import read_header, read_image, stored_bits
from nerfit.scenes.posing.colmap import pycolmap
from nerfit.scenes.posing.registration import PoseConfig, View, sharpness
from nerfit.scenes.reading.masks import Mask, check_mask, unmasked
from nerfit.scenes.reading.picture_files import relative_names

_LARGEST = 2**29
"""Most bytes of a photograph whose EXIF data is read."""


def prepare(folder: Path, pictures: Sequence[tuple[Path, Mask | None]], config: PoseConfig) -> tuple[list[View], dict[str, str]]:
    """Copies of the pictures for matching; and those that are not used, with the reason: unreadable, or the same picture twice."""
    for copies in (folder, mask_folder(folder)):
        copies.mkdir(exist_ok=True)
    done: list[View | str] = []
    names = relative_names([path for path, _ in pictures])
    bits = _bits([path for path, _ in pictures])

    def view(key: str, name: str, picture: tuple[Path, Mask | None]) -> View | str:
        return _view(folder, key, name, *picture, config.feature_size, bits)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        keys = (f"{i:06d}.png" for i in range(len(pictures)))
        for result in pool.map(view, keys, names, pictures):
            done.append(result)
            tick(len(done), len(pictures), "pictures read")
    views: list[View] = []
    unused: dict[str, str] = {}
    first: dict[str, str] = {}
    for name, found in zip(names, done, strict=True):
        if isinstance(found, str):
            unused[name] = found
        elif found.digest in first:
            unused[name] = f"the same picture as {first[found.digest]}"
        else:
            first[found.digest] = name
            views.append(found)
    return views, unused


def _bits(pictures: Sequence[Path]) -> int:
    """`stored_bits` of the pictures that can be read."""
    found = []
    for path in pictures:
        with suppress(SceneError):
            found.append((path, read_header(path)))
    return stored_bits(*zip(*found, strict=True)) if found else 16


def _view(folder: Path, key: str, name: str, path: Path, mask: Mask | None, longest: int, bits: int) -> View | str:
    """A picture's copy and its mask, made unless they are there, and what is known of the picture; why, where it can't be read.

    SceneError for a mask that can't be read, or is of another shape.
    """
    copy, hidden_part = folder / key, mask_folder(folder) / f"{key}.png"
    try:
        header = read_header(path)
        width, height = header[:2]
        ratio = min(1.0, longest / max(width, height))
        size = max(1, round(width * ratio)), max(1, round(height * ratio))
        picture = None if copy.exists() else read_image(path, size, bits)
    except SceneError as error:
        return f"it can't be read ({str(error).partition(': ')[2] or error})"
    if picture is not None:
        check_mask(mask, path, header)
        _save_mask(hidden_part, picture, mask, size)
        small = Image.fromarray(picture[..., :3]).resize(size, Image.Resampling.BOX)
        with atomic_write(copy) as part:
            small.save(part, format="PNG", compress_level=1)
    with Image.open(copy) as image, Image.open(hidden_part) as visible:
        hidden = 1 - float((np.asarray(visible) > 0).mean())
        grey = np.asarray(image.convert("L"), np.float32)
        thumbnail = np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX)).ravel().tolist()
        scale = max(width, height) / max(image.size)
    digest = hashlib.sha256(grey.tobytes()).hexdigest()
    look = float(grey.mean()), sharpness(grey), digest, thumbnail
    return View(name, path, key, width, height, scale, _exif_focal(path), *look, hidden)


def mask_folder(pictures: Path) -> Path:
    """The folder of the masks of the copies, black where they hide, named as COLMAP expects them."""
    return pictures.with_name("masks")


def _save_mask(file: Path, picture: UInt8[np.ndarray, "h w channels"], mask: Mask | None, size: tuple[int, int]) -> None:
    """Write where a copy of ``size`` (width, height) is hidden by neither mask nor transparency; COLMAP wants a file for each copy."""
    visible = np.ones(size[::-1], bool) if mask is None else unmasked(mask, *size[::-1])
    if picture.shape[2] == 4:
        visible &= np.asarray(Image.fromarray(picture[..., 3]).resize(size, Image.Resampling.BOX)) > 127
    with atomic_write(file) as part:
        Image.fromarray(visible.astype(np.uint8) * 255).save(part, format="PNG", compress_level=1)


def _exif_focal(path: Path) -> float | None:
    """The focal length in pixels that the file's EXIF data and COLMAP's list of sensors give; None where they don't."""
    if path.stat().st_size > _LARGEST:  # COLMAP would read all of it
        return None
    try:
        camera = pycolmap.infer_camera_from_image(path)
    except (RuntimeError, ValueError):
        return None
    return float(camera.mean_focal_length()) if camera.has_prior_focal_length else None
