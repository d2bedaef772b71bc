"""Blender scenes (NeRF synthetic): transforms_train/val/test.json and RGBA PNGs."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nerfit.cameras import Cameras
from nerfit.cameras.cameras import focal_from_fov
from nerfit.cameras.rotations import checked_rotations
from nerfit.errors import SceneError, require_min
from nerfit.files import peek_json
from nerfit.scenes.formats.transforms import says_more
from nerfit.scenes.images import image_size, shrunk
from nerfit.scenes.reading.frames import read_splits
from nerfit.scenes.reading.intrinsics import LENS_KEYS
from nerfit.scenes.reading.masks import find_masks
from nerfit.scenes.reading.normalise import NormaliseConfig, nerf_world, normalised_scene
from nerfit.scenes.reading.unused import warn_unused
from nerfit.scenes.scene import Scene


@dataclass
class Config(NormaliseConfig):
    """Options of Blender scenes.

    Objects come to the size and place of NeRF's: cameras 4 from the origin, near 2, far 6. Pictures with surroundings are captures.
    """

    testskip: int = 1
    """Keep every Nth validation and test view."""
    allow_outside: bool = False
    """Read pictures outside the scene's folder too, where a frame names one."""

    def unused(self) -> dict[str, str]:
        """Keys without effect, and why."""
        return {"holdout": "the files list the test views"}


_USED = {"frames", "camera_angle_x", "camera_angle_y", "aabb_scale"}


def detect(source: str) -> bool:
    """A folder with transforms_train.json, unless that says more than a Blender scene's (`says_more`)."""
    file = Path(source) / "transforms_train.json"
    return file.is_file() and not says_more(peek_json(file))


def load(source: str, config: Config) -> Scene:
    """Read the three splits; a val or test file that is missing, or has no picture, leaves that split empty.

    Pictures with alpha, or opaque ones with a plain border, show an object, which `nerf_world` places; others are captures (`normalise`).
    """
    require_min("scene.", config, factor=1, testskip=0)
    folder = Path(source)
    metas, frames, splits = read_splits(folder, config.train_views, config.testskip, config.allow_outside)
    fov = _angle(folder, metas)
    for split, meta in metas.items():
        warn_unused(folder / f"transforms_{split}.json", meta, _USED | LENS_KEYS, {"file_path", "transform_matrix", "path"})
    paths = [frame["path"] for frame in frames]
    sizes = [image_size(path) for path in paths]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise SceneError(f"{path} is {size[0]}x{size[1]}, unlike the first image, {sizes[0][0]}x{sizes[0][1]}.")
    width, height = sizes[0]
    names = [os.path.relpath(path, folder) for path in paths]
    c2w = checked_rotations(torch.from_numpy(np.stack([frame["transform_matrix"] for frame in frames])), str(folder), names)
    cameras = replace(Cameras.pinhole(c2w, focal_from_fov(fov, width), width, height, config.pixel_offset), c2w=c2w[:, :3])
    return normalised_scene(
        config,
        cameras.resize(*shrunk(sizes[0], config.factor)),
        paths,
        find_masks(paths),
        None,
        object_world=nerf_world,
        name=folder.resolve().name,
        format="blender",
        splits=splits,
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
