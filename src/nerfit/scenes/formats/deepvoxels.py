"""DeepVoxels scenes (Sitzmann et al. 2019): pictures, poses as text and one intrinsics file a split, of a rendered object."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nerfit.cameras.axes import convert_axes
from nerfit.errors import ConfigError, SceneError, require_min
from nerfit.files import read_text
from nerfit.scenes.images import image_size
from nerfit.scenes.reading.picture_files import is_left_over, matching
from nerfit.scenes.reading.pinhole import View, files_of_views, pinhole_scene, read_pose
from nerfit.scenes.scene import Scene, SceneConfig
from nerfit.scenes.splits import chosen_views

_SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclass
class Config(SceneConfig):
    """Options of DeepVoxels scenes; near and far are the cameras' mean distance from the origin less and plus 1 unless given."""

    shape: str | None = None
    """The object, a folder below train, validation and test; none = the only one there."""
    factor: int = 1
    """Shrink the pictures by this factor."""
    testskip: int = 1
    """Keep every Nth validation and test view."""


def detect(source: str) -> bool:
    """A folder with train/intrinsics.txt or train/<object>/intrinsics.txt."""
    return bool(_shapes(Path(source)))


def load(source: str, config: Config) -> Scene:
    """The three splits of one object; a missing validation or test folder leaves that split empty.

    As in the original NeRF program the principal point is the picture's centre, whatever intrinsics.txt says, and the
    focal length that of intrinsics.txt times the picture's height over the height given there. Raises SceneError for
    files and ConfigError for settings without sense.
    """
    require_min("scene.", config, factor=1, testskip=0)
    folder = Path(source)
    shape = _shape(folder, config.shape)
    folders = {split: folder / name / shape for split, name in _SPLITS.items()}
    listed = {split: _views(own) for split, own in folders.items() if split == "train" or own.is_dir()}
    views, splits = chosen_views(listed, config.train_views, config.testskip)
    radius = float(np.mean([np.linalg.norm(view.c2w[:3, 3]) for view in views]))
    scene = pinhole_scene(
        folder,
        views,
        max(0.0, radius - 1),
        radius + 1,
        config,
        config.factor,
        format="deepvoxels",
        splits=splits,
        default_path="test" if "test" in splits else "circle",
    )
    scene.name = shape or scene.name
    return scene


def _shapes(folder: Path) -> list[str]:
    """The objects of a folder; the empty name where its splits hold the pictures of one object themselves."""
    train = folder / "train"
    if (train / "intrinsics.txt").is_file():
        return [""]
    return sorted(file.parent.name for file in matching(train, "*/intrinsics.txt") if not is_left_over(file.parent.name))


def _shape(folder: Path, wanted: str | None) -> str:
    shapes = _shapes(folder)
    if not shapes:
        raise SceneError(f"{folder} is no DeepVoxels scene: it has no train/<object>/intrinsics.txt.")
    if wanted not in shapes and (wanted or len(shapes) > 1):
        raise ConfigError(f"{folder} has the objects {', '.join(shapes)}; choose one with --scene.shape.")
    return wanted or shapes[0]


def _views(folder: Path) -> list[View]:
    """All views of a split in order of their names."""
    focal, height, world_to_camera = _intrinsics(folder / "intrinsics.txt")
    views = []
    for file, pose in files_of_views(folder, "pose"):
        matrix = read_pose(pose)
        w, h = image_size(file)
        c2w = convert_axes(torch.from_numpy(np.linalg.inv(matrix) if world_to_camera else matrix), "opencv").numpy()
        views.append(View(file, (w, h), c2w, (focal * h / height, focal * h / height, w / 2, h / 2)))
    return views


def _intrinsics(file: Path) -> tuple[float, float, bool]:
    """Focal length, the picture height that it is for, and whether poses are world-to-camera.

    The lines are: f cx cy, the object's barycentre, near plane, scale, height and width, and, not always, that flag.
    """
    lines = [line.split() for line in read_text(file).splitlines() if line.strip()]
    try:
        focal, height = float(lines[0][0]), float(lines[4][0])
        flag = bool(float(lines[5][0])) if len(lines) > 5 else False
    except (IndexError, ValueError) as error:
        raise SceneError(f"{file} must begin with a focal length and have a height and width on its fifth line.") from error
    if not (0 < focal < 1e9 and 0 < height < 1e9):
        raise SceneError(f"{file}: the focal length {focal:g} and the height {height:g} must be larger than 0.")
    return focal, height, flag
