"""Masks of pictures: where programs put them, and which side of them hides."""

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from nerfit.errors import SceneError
from nerfit.scenes.images import SUFFIXES, Header, read_header, read_image
from nerfit.scenes.reading.picture_files import DYNAMIC, is_mask_name, listed, mask_stem, stem_of

_FOLDERS = ("masks", "mask", "images_mask", "images_masks", "image_mask", "image_masks")
"""Folders of masks in small letters, likeliest first."""
_PICTURES = re.compile(r"(images?|input|rgb|photos?|pictures|frames)(_\w+)?", re.I)
"""Folders of pictures beside which a folder of masks may lie."""
_SAMPLE, _MOST = 12, 0.75
"""Masks of a scene that are looked at, and the share of them whose middle must be dark if white hides."""


class Mask(NamedTuple):
    """A mask, whose black hides unless its white does."""

    file: Path
    white_hides: bool = False


def find_masks(paths: Sequence[Path]) -> list[Mask | None]:
    """`masks_of` pictures; says how many there are, which side hides, and which files look like masks and fit no picture."""
    places = _Places()
    masks = _masks(paths, places)
    found = [mask for mask in masks if mask]
    if found:
        sides = " or ".join(sorted({"white" if mask.white_hides else "black" for mask in found}))
        warnings.warn(
            f"what masks hide is left out, in {len(found)} of {len(paths)} pictures, the first by {found[0].file}; {sides} hides.",
            stacklevel=2,
        )
    used = {mask.file for mask in found}
    for folder in dict.fromkeys(folder for path in paths for folder in places.folders(path)):
        names = [file.name for files in places.by_stem(folder).values() for file in files]
        if names and not any(file.is_relative_to(folder) for file in used):
            warnings.warn(
                f"{folder} holds {len(names)} masks that fit none of the {len(paths)} pictures, such as {min(names)}; "
                f"that of {paths[0].name} should be {paths[0].stem}.png.",
                stacklevel=2,
            )
    return masks


def masks_of(paths: Sequence[Path]) -> list[Mask | None]:
    """The mask that lies beside each picture, in the first of the usual places.

    - ``dynamic_mask_<stem>.png`` beside the picture (instant-ngp): white hides;
    - ``<name>.png`` or ``<stem>.png`` in a folder ``masks`` beside the folder of pictures, ``masks_4`` beside ``images_4`` (COLMAP,
      nerfstudio): black hides;
    - a picture of the same stem, of any kind, in any case, with or without ``_mask`` at its end, in such a folder, in others named
      mask, images_mask, ..., beside the pictures or in their folder, or (with ``_mask``) beside the picture: black hides, unless that
      would hide the middle of most pictures.
    """
    return _masks(paths, _Places())


def _masks(paths: Sequence[Path], places: "_Places") -> list[Mask | None]:
    files = [places.mask(path) for path in paths]
    unclear = sorted({file for path, file in zip(paths, files, strict=True) if file and not _is_clear(path, file)})
    white = bool(unclear) and _white_hides(unclear)
    return [
        file and Mask(file, file.name.startswith(DYNAMIC) or (white and not _is_clear(path, file)))
        for path, file in zip(paths, files, strict=True)
    ]


def check_mask(mask: Mask | None, path: Path, header: Header) -> None:
    """Raise SceneError for a mask that can't be read, or is of another shape than its picture."""
    other = mask and read_header(mask.file)
    if mask and other and abs(other.height - other.width * header.height / header.width) > 1 + 0.02 * other.height:
        raise SceneError(f"{mask.file} is {other.width}x{other.height}, of another shape than {path}, {header.width}x{header.height}.")


def unmasked(mask: Mask, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """The visible pixels of a picture of that size under its mask."""
    visible = visible_part(mask)
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip((height, width), visible.shape, strict=True))
    return visible[rows[:, None], columns]


def visible_part(mask: Mask) -> Bool[np.ndarray, "height width"]:
    """The pixels of a mask that leave its picture visible."""
    light = _light(mask.file)
    return ~light if mask.white_hides else light


def _light(file: Path) -> Bool[np.ndarray, "height width"]:
    """The pixels of a mask that are not black; the noise of a JPEG's black counts as black."""
    return read_image(file)[..., :3].max(-1) > (127 if file.suffix.lower() in (".jpg", ".jpeg", ".jfif") else 0)


def _white_hides(files: Sequence[Path]) -> bool:
    """Whether the middle of most masks is black: the middle of pictures is seldom what they should hide."""
    dark = []
    for file in files[:: -(-len(files) // _SAMPLE)]:
        try:
            light = _light(file)
        except SceneError:  # it is named where it is used
            continue
        height, width = light.shape
        dark.append(light[3 * height // 8 : 5 * height // 8 + 1, 3 * width // 8 : 5 * width // 8 + 1].mean() < 0.5)
    return bool(dark) and float(np.mean(dark)) > _MOST


def _is_clear(path: Path, file: Path) -> bool:
    """Whether a mask follows a convention that says which side hides."""
    known = any(re.fullmatch(r"masks(_\w+)?", parent.name) for parent in file.parents)
    return file.name.startswith(DYNAMIC) or (known and file.name in (f"{path.name}.png", f"{path.stem}.png"))


class _Places:
    """Where masks lie; every folder is listed once."""

    def __init__(self) -> None:
        self._tables: dict[Path, dict[str, list[Path]]] = {}
        self._beside: dict[Path, dict[str, Path]] = {}
        self._folders: dict[Path, list[tuple[Path, Path]]] = {}

    def mask(self, path: Path) -> Path | None:
        """The mask of a picture."""
        dynamic = path.with_name(f"{DYNAMIC}{path.stem}.png")
        if os.path.isfile(dynamic):
            return dynamic
        below = [folder for folder, root in self._of(path.parent) for folder in (folder / path.parent.relative_to(root), folder)]
        return next(filter(None, (self._fitting(folder, path) for folder in dict.fromkeys([*below, path.parent]))), None)

    def folders(self, path: Path) -> list[Path]:
        """The folders that may hold the masks of a picture, or folders of them."""
        return [folder for folder, _ in self._of(path.parent)]

    def by_stem(self, folder: Path) -> dict[str, list[Path]]:
        """The pictures of a folder by the stems of those that they may be masks of."""
        if folder not in self._tables:
            table = self._tables[folder] = {}
            for file in listed(folder, files=True):
                if file.suffix.lower() in SUFFIXES:
                    table.setdefault(mask_stem(file.name), []).append(file)
        return self._tables[folder]

    def _fitting(self, folder: Path, path: Path) -> Path | None:
        """The mask of a picture in a folder: the likeliest of those whose names fit."""
        fits = self.by_stem(folder).get(stem_of(path.name), [])
        if folder == path.parent:
            fits = [file for file in fits if is_mask_name(file.name)]
        names = (f"{path.name}.png", f"{path.stem}.png")
        return min(fits, key=lambda file: names.index(file.name) if file.name in names else len(names), default=None)

    def _of(self, parent: Path) -> list[tuple[Path, Path]]:
        """Folders of masks for the pictures of a folder, each with the folder of pictures that its own folders are those of."""
        if parent not in self._folders:
            roots = [root for root in (parent, *parent.parents) if _PICTURES.fullmatch(root.name)]
            found = [(folder, root) for root in roots for folder in self._named(root.parent, root)]
            self._folders[parent] = found + [
                (folder, root) for root in dict.fromkeys([parent, *roots]) for folder in self._named(root, root)
            ]
        return self._folders[parent]

    def _named(self, parent: Path, root: Path) -> list[Path]:
        """The folders of masks in a folder, those of pictures of the same size first."""
        if parent not in self._beside:
            self._beside[parent] = {folder.name.lower(): folder for folder in listed(parent, files=False)}
        match = _PICTURES.fullmatch(root.name)
        names = dict.fromkeys([f"{_FOLDERS[0]}{((match and match[2]) or '').lower()}", *_FOLDERS])
        return [self._beside[parent][name] for name in names if name in self._beside[parent]]
