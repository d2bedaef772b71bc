"""The one-file scene of NeRF's tiny example (``tiny_nerf_data.npz``): pictures, poses and a focal length."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nerfit.cameras import Cameras
from nerfit.cameras.rotations import checked_rotations
from nerfit.errors import SceneError
from nerfit.files import read_npz
from nerfit.scenes.reading.normalise import nerf_world
from nerfit.scenes.scene import Scene, SceneConfig
from nerfit.scenes.splits import make_splits

_TRAIN = 100
"""Views that the example trains on; later ones are for testing."""


@dataclass
class Config(SceneConfig):
    """Options of tiny scenes; near and far are 2 and 6, or as far off as the cameras, unless given."""


def detect(source: str) -> bool:
    """An .npz file."""
    return Path(source).suffix.lower() == ".npz" and Path(source).is_file()


def load(source: str, config: Config) -> Scene:
    """``images`` [n, height, width, 3 or 4] (uint8, or floats in [0, 1]), ``poses`` [n, 4, 4] (OpenGL) and ``focal`` (pixels).

    The first 100 views are for training, or all but the last where there are no more. Raises SceneError for anything else.
    """
    file = Path(source)
    images, poses, focal = read_npz(file, ("images", "poses", "focal"))
    if images.ndim != 4 or len(images) < 2 or min(images.shape[1:3]) < 1 or images.shape[3] not in (3, 4):
        raise SceneError(f"{file}: images has the shape {images.shape}, which should be (n, height, width, 3 or 4) with n at least 2.")
    if poses.shape != (len(images), 4, 4) or poses.dtype.kind != "f":
        raise SceneError(f"{file}: poses is {poses.dtype} of shape {poses.shape}, which should be floats of shape {(len(images), 4, 4)}.")
    if focal.dtype.kind not in "fiu" or focal.size != 1 or not 0 < float(focal.item()) < 1e9:
        raise SceneError(f"{file}: focal must be one number larger than 0.")
    n, height, width, channels = images.shape
    c2w = checked_rotations(torch.from_numpy(poses.astype(np.float64)), str(file))
    first = min(_TRAIN, n - 1)
    cameras = Cameras.pinhole(c2w, float(focal.item()), width, height, config.pixel_offset)
    world = nerf_world(cameras, move=False)
    near, far = config.reach(world.near, world.far)
    return Scene(
        name=file.stem,
        format="tiny",
        cameras=cameras,
        near=near,
        far=far,
        splits=make_splits(str(file), n, list(range(first, n)), config.train_views),
        pixels=torch.from_numpy(_bytes(file, images).reshape(-1, channels)),
        background=config.background,
        view_names=[f"{i:03d}" for i in range(n)],
    )


def _bytes(file: Path, images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images.copy()
    if images.dtype.kind != "f" or not (images.min() >= -1e-3 and images.max() <= 1.001):
        raise SceneError(f"{file}: images must be of uint8, or floats between 0 and 1.")
    return np.stack([np.rint(image.clip(0, 1) * 255).astype(np.uint8) for image in images])
