"""openMVG scenes (Moulon et al. 2016): ``sfm_data.json``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerfit.errors import SceneError
from nerfit.files import peek_json, read_json
from nerfit.scenes.reading.layouts import Layout, Shot, layout_scene, needed_file, numbers, pose, project_file, refuse_lens
from nerfit.scenes.reading.normalise import NormaliseConfig
from nerfit.scenes.reading.picture_files import matching
from nerfit.scenes.scene import Scene

_PLACES = ("sfm_data.json", "*/sfm_data.json", "sfm_data*.json", "*/sfm_data*.json")
_DISTORTION = {
    "disto_k1": ("k1",),
    "disto_k3": ("k1", "k2", "k3"),
    "disto_t2": ("k1", "k2", "k3", "p1", "p2"),
    "fisheye": ("k1", "k2", "k3", "k4"),
}
"""The parameters of each camera model by the key that holds them; t1 and t2 of openMVG are OpenCV's p1 and p2."""
_LARGEST = 256 << 20
"""Most bytes of the file, in which a point takes about 1000."""
_CONVERT = "openMVG_main_ConvertSfM_DataFormat -i sfm_data.bin -o sfm_data.json -V -I -E -S"


@dataclass
class Config(NormaliseConfig):
    """How openMVG scenes are read."""


def detect(source: str) -> bool:
    """A folder with sfm_data.json in it or below, or such a file."""
    file = project_file(source, *_PLACES)
    return file is not None and isinstance(data := peek_json(file), dict) and "views" in data and "intrinsics" in data


def load(source: str, config: Config) -> Scene:
    """The views with a pose, and the points.

    openMVG's cameras (Camera_Pinhole_Brown.hpp and the others): a view's point is R·(X - center) with OpenCV's axes, distorted as OpenCV
    does, times the focal length, plus the principal point; pixel centres lie on whole numbers (Camera_undistort_image.hpp), so ours is
    0.5 larger.
    """
    first = needed_file(source, "sfm_data.json", *_PLACES)
    root = Path(source) if Path(source).is_dir() else first.parent
    found = [first] if Path(source).is_file() else [file for place in _PLACES for file in matching(root, place) if file.is_file()]
    file, data = max(
        ((file, read_json(file, _LARGEST)) for file in dict.fromkeys(found)), key=lambda entry: len(_list(entry[1], "extrinsics"))
    )
    if not _list(data, "extrinsics"):
        raise SceneError(f"{file} holds no poses; convert the scene that has them: {_CONVERT}.")
    poses = {_key(entry): _value(entry) for entry in _list(data, "extrinsics")}
    lenses = {_key(entry): _lens(f"{file}, intrinsic {_key(entry)}", _value(entry)) for entry in _list(data, "intrinsics")}
    shots = []
    for entry in _list(data, "views"):
        view = _flat(_data(_value(entry)))
        name = f"{view.get('local_path', '')}/{view.get('filename', '')}"
        at = poses.get(str(view.get("id_pose")))
        if at is None:
            continue
        if (lens := lenses.get(str(view.get("id_intrinsic")))) is None:
            raise SceneError(f"{file}, {name}: its intrinsics are not in the file; export it again with -I.")
        shots.append(Shot(name, pose(f"{file}, {name}", at.get("rotation"), at.get("center")), lens))
    points = [_value(entry).get("X") for entry in _list(data, "structure")]
    xyz = numbers(f"{file}: the points' positions X", points, len(points), 3) if points else None
    return layout_scene(Layout("openmvg", file, root, shots, xyz), config)


def _list(data: Any, key: str) -> list[Any]:
    value = data.get(key) if isinstance(data, dict) else None
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _key(entry: dict[str, Any]) -> str:
    return str(entry.get("key"))


def _value(entry: dict[str, Any]) -> dict[str, Any]:
    value = entry.get("value")
    return value if isinstance(value, dict) else {}


def _data(value: dict[str, Any]) -> dict[str, Any]:
    """What a smart pointer of cereal holds."""
    wrapper = value.get("ptr_wrapper")
    data = wrapper.get("data") if isinstance(wrapper, dict) else None
    return data if isinstance(data, dict) else {}


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    """The members of an object together with those of its base class, which cereal calls value0."""
    base = data.get("value0")
    return (base if isinstance(base, dict) else {}) | data


def _lens(what: str, value: dict[str, Any]) -> dict[str, Any]:
    """An intrinsic in the words of transforms.json; the key that holds its distortion tells its model."""
    data = _flat(_data(value))
    if "focal_length" not in data:
        raise SceneError(
            f"{what} is no pinhole or fisheye camera; cut spherical pictures into views with openMVG_main_openMVGSpherical2Cubic."
        )
    cx, cy = numbers(f"{what}: principal_point", data.get("principal_point"), 2).tolist()
    lens = {"w": data.get("width"), "h": data.get("height"), "fl_x": data["focal_length"], "cx": cx + 0.5, "cy": cy + 0.5}
    for key, names in _DISTORTION.items():
        if key in data:
            lens |= dict(zip(names, numbers(f"{what}: {key}", data[key], len(names)).tolist(), strict=True))
    unknown = [key for key in data if key.startswith(("disto", "fish", "thin")) and key not in _DISTORTION]
    if unknown:
        raise refuse_lens(what, unknown[0], "undistort the pictures with openMVG_main_ExportUndistortedImages")
    return lens | ({"camera_model": "OPENCV_FISHEYE"} if "fisheye" in data else {})
