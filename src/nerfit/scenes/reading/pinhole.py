"""Shared by small formats: pictures with pinhole cameras, poses in text files, the axes and units of a scene."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from nerfit.cameras import Cameras
from nerfit.cameras.rotations import checked_rotations
from nerfit.errors import SceneError
from nerfit.files import read_text
from nerfit.scenes.images import shrunk
from nerfit.scenes.reading.picture_files import matching, picture_files
from nerfit.scenes.reading.pixel_cache import load_pixels
from nerfit.scenes.scene import Scene, SceneConfig


def files_of_views(folder: Path, *kinds: str) -> list[tuple[Path, ...]]:
    """Each picture of ``folder``/rgb in order of names, with the text file of its name in each of the folders ``kinds``.

    Raises SceneError where anything is missing or there are no pictures.
    """
    pictures = picture_files(folder / "rgb")
    texts = [{file.stem: file for file in matching(folder / kind, "*.txt")} for kind in kinds]
    for kind, files in zip(kinds, texts, strict=True):
        alone = {file.stem for file in pictures} ^ files.keys()
        if alone or not pictures:
            raise SceneError(f"{folder} needs a picture in rgb for every {kind} in {kind}; {min(alone, default='either')} is missing.")
    return [(file, *(files[file.stem] for files in texts)) for file in pictures]


LARGEST = 1e9
"""Limit of all coordinates and lengths (`Scene` refuses larger ones)."""


def read_numbers(file: Path) -> Float[np.ndarray, "n"]:
    """All numbers of a text file; none where it holds anything else, or what is not finite."""
    try:
        numbers = np.array(read_text(file).split(), dtype=np.float64)
    except ValueError:
        return np.empty(0)
    return numbers if np.isfinite(numbers).all() else np.empty(0)


def read_pose(file: Path) -> Float[np.ndarray, "4 4"]:
    """A matrix of 16 numbers that can be inverted."""
    numbers = read_numbers(file)
    if numbers.shape != (16,) or np.abs(numbers).max() > LARGEST or abs(np.linalg.det(numbers.reshape(4, 4))) < 1e-12:
        raise SceneError(f"{file} must hold the 16 numbers of a 4x4 pose.")
    return numbers.reshape(4, 4)


@dataclass
class View:
    """A picture ``file``, its ``size`` (width, height), its OpenGL pose and its fx fy cx cy in pixels of that size."""

    file: Path
    size: tuple[int, int]
    c2w: Float[np.ndarray, "4 4"]
    lens: Sequence[float]


def pinhole_scene(
    source: Path, views: Sequence[View], near: float, far: float, config: SceneConfig, factor: int = 1, **about: Any
) -> Scene:
    """The scene of an object seen in ``views``, pictures and intrinsics shrunk by ``factor``.

    The config's near and far go before those given; ``about`` are further fields of `Scene` (format, splits, ...).
    Raises SceneError for poses that are none.
    """
    names = [view.file.relative_to(source).as_posix() for view in views]
    lens, sizes = (torch.tensor(list(rows), dtype=torch.float64) for rows in zip(*((view.lens, view.size) for view in views), strict=True))
    c2w = checked_rotations(torch.from_numpy(np.stack([view.c2w for view in views])), str(source), names)
    small = [shrunk(view.size, factor) for view in views]
    width, height = torch.tensor(small).T
    fx, fy, cx, cy = (lens * (torch.tensor(small) / sizes).repeat(1, 2)).to(torch.float32).T
    near, far = config.reach(near, far)
    return Scene(
        name=source.resolve().name,
        cameras=Cameras(c2w[:, :3].to(torch.float32), fx, fy, cx, cy, width, height, pixel_offset=config.pixel_offset),
        near=near,
        far=far,
        pixels=load_pixels([view.file for view in views], small),
        background=config.background,
        view_names=names,
        **about,
    )
