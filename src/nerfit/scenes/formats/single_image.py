"""A single picture as a scene, for image fitting."""

from dataclasses import dataclass
from pathlib import Path

import torch

from nerfit.cameras import Cameras
from nerfit.errors import require_min
from nerfit.scenes.images import SUFFIXES, image_size, shrunk
from nerfit.scenes.reading.pixel_cache import load_pixels
from nerfit.scenes.scene import Scene, SceneConfig


@dataclass
class Config(SceneConfig):
    """Options of single pictures."""

    factor: int = 1
    """Shrink the picture by this factor."""

    def unused(self) -> dict[str, str]:
        """Keys of posed scenes that a single picture has no use for."""
        return dict.fromkeys(("near", "far", "train_views", "pixel_offset"), "a single picture has no rays")


def detect(source: str) -> bool:
    """An image file."""
    return Path(source).suffix.lower() in SUFFIXES and Path(source).is_file()


def load(source: str, config: Config) -> Scene:
    """One view, straight in front of a camera at the origin; it is both training and test view."""
    path = Path(source)
    require_min("scene.", config, factor=1)
    width, height = shrunk(image_size(path), config.factor)
    return Scene(
        name=path.stem,
        format="image",
        cameras=Cameras.pinhole(torch.eye(4)[None], float(width), width, height),
        near=0.0,
        far=1.0,
        splits={"train": [0], "val": [0], "test": [0]},
        pixels=load_pixels([path], [(width, height)]),
        background=config.background,
        default_path="test",
        view_names=[path.name],
    )
