"""Record3D's exports (Šimonik): ``rgbd`` or ``rgb`` with a picture for each frame, and ``metadata``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nerfit.cameras.rotations import quaternion_to_matrix
from nerfit.errors import SceneError
from nerfit.files import peek_json, read_json
from nerfit.scenes.reading.layouts import Layout, PosedConfig, Shot, layout_scene, numbers, pose
from nerfit.scenes.reading.picture_files import picture_files
from nerfit.scenes.scene import Scene

_FILES, _PICTURES = ("metadata", "metadata.json"), ("rgbd", "rgb", "EXR_RGBD/rgb")


@dataclass
class Config(PosedConfig):
    """How Record3D's exports are read."""


def detect(source: str) -> bool:
    """A folder with metadata (or metadata.json) that has K and poses, and pictures in rgbd or rgb."""
    file = _metadata(source)
    return file is not None and isinstance(data := peek_json(file), dict) and "poses" in data and bool(_pictures(source))


def load(source: str, config: Config) -> Scene:
    """The pictures, whose names are the numbers of their poses.

    Record3D's format: ``poses`` are quaternion x y z w and position of the camera in the world with ARKit's (OpenGL's) axes, ``K`` the
    intrinsics by columns, ``perFrameIntrinsicCoeffs`` fx fy cx cy of each frame, where there are any, in pixels of the w x h pictures.
    """
    file = _metadata(source)
    data = None if file is None else read_json(file)
    if file is None or not isinstance(data, dict) or not isinstance(data.get("poses"), list):
        raise SceneError(f"{source} has no metadata with poses, which Record3D writes.")
    k = numbers(f"{file}: K", data.get("K"), 9).reshape(3, 3).T if "K" in data else None
    each = data.get("perFrameIntrinsicCoeffs")
    shots = []
    for picture in _pictures(source):
        index = int(picture.stem) if picture.stem.isdecimal() and len(picture.stem) < 10 else -1
        if not 0 <= index < len(data["poses"]):
            raise SceneError(f"{picture}: {file} has {len(data['poses'])} poses, none for a picture of that name.")
        what = f"{file}, pose {index}"
        values = numbers(what, data["poses"][index], 7)
        turn = quaternion_to_matrix(torch.from_numpy(values[[3, 0, 1, 2]])).numpy()
        own = each[index] if isinstance(each, list) and index < len(each) else None
        shots.append(Shot(picture.name, pose(what, turn.T, values[4:], "opengl"), _lens(what, data, k, own), picture))
    return layout_scene(Layout("record3d", file, Path(source), shots), config)


def _metadata(source: str) -> Path | None:
    return next((file for name in _FILES if (file := Path(source) / name).is_file()), None)


def _pictures(source: str) -> list[Path]:
    return next((files for name in _PICTURES if (files := picture_files(Path(source) / name))), [])


def _lens(what: str, data: dict[str, Any], k: np.ndarray | None, own: Any) -> dict[str, Any]:
    if own is not None:
        fx, fy, cx, cy = numbers(f"{what}: perFrameIntrinsicCoeffs", own, 4).tolist()
    elif k is not None:
        fx, fy, cx, cy = k[0, 0].item(), k[1, 1].item(), k[0, 2].item(), k[1, 2].item()
    else:
        raise SceneError(f"{what}: the file has neither K nor perFrameIntrinsicCoeffs.")
    return {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": data.get("w"), "h": data.get("h")}
