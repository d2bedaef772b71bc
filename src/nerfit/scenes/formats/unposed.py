"""Photographs with unknown cameras, which are learned with the scene (NeRF--, Wang et al. 2021): ``--scene.format unposed``."""

from dataclasses import dataclass
from pathlib import Path

import torch

from nerfit.cameras import Cameras
from nerfit.cameras.cameras import focal_from_fov
from nerfit.errors import ConfigError, SceneError, require_min
from nerfit.scenes.images import image_size, shrunk
from nerfit.scenes.reading.masks import find_masks
from nerfit.scenes.reading.picture_files import read_photographs, relative_names
from nerfit.scenes.reading.pixel_cache import load_pixels
from nerfit.scenes.scene import Scene
from nerfit.scenes.splits import HoldoutConfig, held_out, make_splits


@dataclass
class Config(HoldoutConfig):
    """How photographs without cameras are read: one camera took them, from positions side by side that look in one direction."""

    factor: int = 1
    """Shrink the pictures by this factor."""
    fov: float = 53.13
    """Field of view across the pictures' width in degrees, unless a method learns it; 53.13 = the focal length equals the width."""


def detect(source: str) -> bool:
    """Never: poses of a folder of photographs are estimated, unless this format is asked for."""
    return False


def load(source: str, config: Config) -> Scene:
    """The photographs in a folder (or its folder ``images``) in NDC, their cameras all at the origin, looking along -z.

    Raises SceneError for fewer than 2 pictures or pictures that differ in size, ConfigError for settings without sense.
    """
    files = read_photographs(Path(source))
    if len(files) < 2:
        raise SceneError(f"{source} holds {len(files)} pictures; it takes 2 or more to learn cameras from them.")
    require_min("scene.", config, factor=1, holdout=0)
    if not 0 < config.fov < 180:
        raise ConfigError(f"scene.fov must lie between 0 and 180 degrees, not {config.fov:g}.")
    sizes = [image_size(file) for file in files]
    for file, size in zip(files, sizes, strict=True):
        if size != sizes[0]:
            raise SceneError(f"{file} has a size other than {files[0].name}; cameras are learned of pictures of one size.")
    width, height = shrunk(sizes[0], config.factor)
    poses = torch.eye(3, 4, dtype=torch.float64).repeat(len(files), 1, 1)
    masks = find_masks(files)
    near, far = config.reach(0.0, 1.0)
    return Scene(
        name=Path(source).resolve().name,
        format="unposed",
        cameras=Cameras.pinhole(poses, focal_from_fov(torch.pi * config.fov / 180, width), width, height, config.pixel_offset),
        near=near,
        far=far,
        splits=make_splits(source, len(files), held_out(len(files), config.holdout), config.train_views),
        pixels=load_pixels(files, [(width, height)] * len(files), masks),
        masked=any(masks),
        bounds="forward-facing",
        background=config.background,
        ndc=True,
        default_path="interpolate",
        view_names=relative_names(files),
    )
