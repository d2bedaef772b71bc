"""BlendedMVS (Yao et al. 2020) and other scenes in MVSNet's layout: ``cams/<number>_cam.txt`` beside ``blended_images`` or ``images``."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerfit.errors import SceneError
from nerfit.files import read_text
from nerfit.scenes.reading.layouts import Layout, PosedConfig, Shot, center_of, check_skew, layout_scene, numbers, pose
from nerfit.scenes.reading.picture_files import matching, picture_files
from nerfit.scenes.scene import Scene

_PICTURES = ("blended_images", "images")


@dataclass
class Config(PosedConfig):
    """How scenes in MVSNet's layout are read."""


def detect(source: str) -> bool:
    """A folder with cams/<number>_cam.txt, and blended_images or images."""
    folder = Path(source)
    return any((folder / name).is_dir() for name in _PICTURES) and bool(matching(folder / "cams", "*_cam.txt"))


def load(source: str, config: Config) -> Scene:
    """The pictures that have a camera; those of BlendedMVS with _masked in their names are left aside.

    MVSNet's README: ``extrinsic``, a 4x4 matrix E that takes world to camera coordinates with OpenCV's axes, ``intrinsic``, a 3x3 matrix,
    then the range of depths. Its homographies have pixel centres at +0.5, as ours.
    """
    folder = Path(source)
    pictures = {p.stem: p for name in reversed(_PICTURES) for p in picture_files(folder / name) if not p.stem.endswith("_masked")}
    files = {file.name.removesuffix("_cam.txt"): file for file in matching(folder / "cams", "*_cam.txt")}
    shots = [_shot(file, pictures.get(stem, folder / _PICTURES[0] / f"{stem}.jpg")) for stem, file in files.items()]
    return layout_scene(Layout("mvsnet", folder / "cams", folder, shots), config)


def _shot(file: Path, picture: Path) -> Shot:
    words = read_text(file).split()
    if len(words) < 27 or (words[0], words[17]) != ("extrinsic", "intrinsic"):
        raise SceneError(f"{file} should hold 'extrinsic' with 16 numbers and then 'intrinsic' with 9.")
    extrinsic = numbers(f"{file}: extrinsic", words[1:17], 16).reshape(4, 4)
    k = numbers(f"{file}: intrinsic", words[18:27], 9).reshape(3, 3)
    lens = {"fl_x": k[0, 0].item(), "fl_y": k[1, 1].item(), "cx": k[0, 2].item(), "cy": k[1, 2].item()}
    check_skew(str(file), k[0, 1], k[1, 1], 2 * k[1, 2])
    c2w = pose(str(file), extrinsic[:3, :3], center_of(str(file), extrinsic[:3, :3], extrinsic[:3, 3]))
    return Shot(picture.name, np.vstack([c2w, extrinsic[3]]), lens, picture)
