"""OpenSfM reconstructions (Mapillary), those of OpenDroneMap included: ``reconstruction.json``."""

from dataclasses import dataclass
from typing import Any

import torch

from nerfit.cameras.rotations import axis_angle_to_matrix
from nerfit.errors import SceneError
from nerfit.files import read_json
from nerfit.scenes.reading.intrinsics import number
from nerfit.scenes.reading.layouts import (
    Layout,
    Shot,
    center_of,
    layout_scene,
    needed_file,
    numbers,
    pose,
    project_file,
    refuse_lens,
    sphere,
)
from nerfit.scenes.reading.normalise import NormaliseConfig
from nerfit.scenes.scene import Scene

_PLACES = ("reconstruction.json", "opensfm/reconstruction.json")
_PERSPECTIVE, _FISHEYE = ("perspective", "simple_radial", "radial", "brown"), ("fisheye", "fisheye_opencv", "fisheye62", "fisheye624")
_LARGEST = 256 << 20
"""Most bytes of the file, in which a point takes about 200."""
_SPHERICAL = ("spherical", "equirectangular")


@dataclass
class Config(NormaliseConfig):
    """How OpenSfM reconstructions are read."""


def detect(source: str) -> bool:
    """A folder with reconstruction.json, or opensfm/reconstruction.json as OpenDroneMap has it, or such a file."""
    return project_file(source, *_PLACES) is not None


def load(source: str, config: Config) -> Scene:
    """The shots and points of the reconstruction with the most shots.

    OpenSfM's documentation (geometry, dataset): ``rotation`` (axis and angle) and ``translation`` take world to camera coordinates with
    OpenCV's axes; lengths in the picture are in units of its larger side, from its middle; distortion is OpenCV's, whose tangential terms
    p1 and p2 have the same order (camera_distortions_functions.h).
    """
    file = needed_file(source, "reconstruction.json", *_PLACES)
    data = read_json(file, _LARGEST)
    parts = [part for part in (data if isinstance(data, list) else [data]) if isinstance(part, dict) and _entries(part, "shots")]
    if not parts:
        raise SceneError(f"{file} holds no reconstruction with shots; it should be a list of objects with cameras, shots and points.")
    best = max(parts, key=lambda part: len(_entries(part, "shots")))
    cameras = _entries(best, "cameras")
    shots = []
    for name, shot in _entries(best, "shots").items():
        what = f"{file}, {name}"
        camera = cameras.get(str(shot.get("camera")))
        if camera is None:
            raise SceneError(f"{what}: its camera {str(shot.get('camera'))[:40]!r} is not among the cameras.")
        turn = numbers(f"{what}: rotation", shot.get("rotation"), 3)
        rotation = axis_angle_to_matrix(torch.from_numpy(turn)).numpy()
        c2w = pose(what, rotation, center_of(what, rotation, shot.get("translation")))
        shots.append(Shot(name, c2w, _lens(what, camera)))
    points = [point.get("coordinates") for point in _entries(best, "points").values()]
    xyz = numbers(f"{file}: the points' coordinates", points, len(points), 3) if points else None
    root = file.parent.parent if file.parent.name == "opensfm" else file.parent
    return layout_scene(Layout("opensfm", file, root, shots, xyz), config)


def _entries(part: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    found = part.get(key)
    return {name: entry for name, entry in found.items() if isinstance(entry, dict)} if isinstance(found, dict) else {}


def _lens(what: str, camera: dict[str, Any]) -> dict[str, Any]:
    """A camera in the words of transforms.json."""
    kind = camera.get("projection_type", "perspective")
    width, height = (number(what, key, camera) for key in ("width", "height"))
    if not width or not height or min(width, height) <= 0:
        raise SceneError(f"{what}: its camera has no width and height.")
    if kind in _SPHERICAL:
        return sphere(what, width, height)
    undistorted = [key for key in ("k5", "k6", "s1", "s3") if number(what, key, camera)]
    if kind not in _PERSPECTIVE + _FISHEYE or undistorted:
        raise refuse_lens(what, kind, "undistort with `opensfm undistort` and name the folder undistorted")
    size = max(width, height)
    fx, fy = (number(what, f"focal_{axis}", camera) or number(what, "focal", camera) or 0.0 for axis in "xy")
    cx, cy = (number(what, f"c_{axis}", camera) or 0.0 for axis in "xy")
    lens: dict[str, Any] = {"w": width, "h": height, "fl_x": fx * size, "fl_y": fy * size}
    lens |= {"cx": width / 2 + cx * size, "cy": height / 2 + cy * size}
    lens |= {key: camera.get(key) for key in ("k1", "k2", "k3", "k4", "p1", "p2")} | {"sx1": camera.get("s0"), "sy1": camera.get("s2")}
    return lens | ({"camera_model": "THIN_PRISM_FISHEYE"} if kind in _FISHEYE else {})
