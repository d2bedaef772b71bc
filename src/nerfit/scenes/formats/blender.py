"""Blender scenes (NeRF synthetic): transforms_train/val/test.json and RGBA PNGs."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nerfit.cameras import Cameras
from nerfit.cameras.cameras import focal_from_fov
from nerfit.cameras.rotations import checked_rotations
from nerfit.errors import SceneError, require_min
from nerfit.scenes.images import image_size, shrunk
from nerfit.scenes.reading.frames import read_splits
from nerfit.scenes.reading.pixel_cache import load_pixels
from nerfit.scenes.scene import Scene, SceneConfig


@dataclass
class Config(SceneConfig):
    """Options of Blender scenes; near and far are 2 and 6 unless given."""

    factor: int = 1
    """Shrink images by this factor (2 = the old half_res)."""
    testskip: int = 1
    """Keep every Nth validation and test view."""
    allow_outside: bool = False
    """Read pictures outside the scene's folder too, where a frame names one."""


def detect(source: str) -> bool:
    """A folder with transforms_train.json."""
    return (Path(source) / "transforms_train.json").is_file()


def load(source: str, config: Config) -> Scene:
    """Read the three splits; a val or test file that is missing, or has no picture, leaves that split empty."""
    require_min("scene.", config, factor=1, testskip=0)
    folder = Path(source)
    metas, frames, splits = read_splits(folder, config.train_views, config.testskip, config.allow_outside)
    fov = _angle(folder, metas)
    paths = [frame["path"] for frame in frames]
    sizes = [image_size(path) for path in paths]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise SceneError(f"{path} is {size[0]}x{size[1]}, unlike the first image, {sizes[0][0]}x{sizes[0][1]}.")
    width, height = sizes[0]
    small = shrunk(sizes[0], config.factor)
    names = [os.path.relpath(path, folder) for path in paths]
    c2w = checked_rotations(torch.from_numpy(np.stack([frame["transform_matrix"] for frame in frames])), str(folder), names)
    cameras = Cameras.pinhole(c2w, focal_from_fov(fov, width), width, height, config.pixel_offset)
    cameras = cameras.resize(*small)
    near, far = config.reach(2.0, 6.0)
    return Scene(
        name=folder.resolve().name,
        format="blender",
        cameras=cameras,
        near=near,
        far=far,
        splits=splits,
        pixels=load_pixels(paths, [small] * len(paths)),
        bounds="object",
        background=config.background,
        view_names=names,
    )


def _angle(folder: Path, metas: dict[str, dict[str, Any]]) -> float:
    """The one horizontal field of view of all splits, radians."""
    for split, meta in metas.items():
        file, fov = folder / f"transforms_{split}.json", meta.get("camera_angle_x")
        if not isinstance(fov, int | float) or not 0 < fov < math.pi:
            raise SceneError(f"{file}: camera_angle_x must be an angle between 0 and π, not {fov!r}.")
        if not math.isclose(fov, metas["train"]["camera_angle_x"], rel_tol=1e-6):
            raise SceneError(f"{file}: camera_angle_x differs from that of the training views.")
    return metas["train"]["camera_angle_x"]
