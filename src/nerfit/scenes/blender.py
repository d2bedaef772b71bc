"""Blender scenes (NeRF synthetic): transforms_train/val/test.json and RGBA PNGs."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nerfit.cameras import Cameras
from nerfit.cameras.cameras import focal_from_fov
from nerfit.cameras.rotations import checked_rotations
from nerfit.errors import SceneError
from nerfit.scenes.frames import image_path, read_splits
from nerfit.scenes.images import read_images, resize_area
from nerfit.scenes.scene import Scene, SceneConfig


@dataclass
class Config(SceneConfig):
    """Options of Blender scenes; near and far are 2 and 6 unless given."""

    factor: int = 1
    """Shrink images by this factor (2 = the old half_res)."""
    testskip: int = 1
    """Keep every Nth validation and test view."""


def detect(source: str) -> bool:
    """A folder with transforms_train.json."""
    return (Path(source) / "transforms_train.json").is_file()


def load(source: str, config: Config) -> Scene:
    """Read the three splits; a missing val or test file leaves that split empty."""
    if config.factor < 1 or config.testskip < 0:
        raise SceneError("scene.factor must be at least 1 and scene.testskip at least 0.")
    folder = Path(source)
    metas, frames, splits = read_splits(folder, config.train_views, config.testskip)
    fov = _angle(folder, metas)
    paths = [image_path(folder, frame["file_path"]) for frame in frames]
    images = read_images(paths)
    height, width = images[0].shape[:2]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise SceneError(f"{path} is {image.shape[1]}x{image.shape[0]} with {image.shape[2]} channels, unlike the first image.")
    if config.factor > 1:
        images = [resize_area(image, max(1, width // config.factor), max(1, height // config.factor)) for image in images]
    names = [str(path.relative_to(folder)) for path in paths]
    c2w = checked_rotations(torch.from_numpy(np.stack([frame["transform_matrix"] for frame in frames])), str(folder), names)
    cameras = Cameras.pinhole(c2w, focal_from_fov(fov, width), width, height, config.pixel_offset)
    cameras = cameras.resize(images[0].shape[1], images[0].shape[0])
    return Scene(
        name=folder.resolve().name,
        format="blender",
        cameras=cameras,
        near=2.0 if config.near is None else config.near,
        far=6.0 if config.far is None else config.far,
        splits=splits,
        pixels=torch.from_numpy(np.concatenate([image.reshape(-1, image.shape[2]) for image in images])),
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
