"""The lens of a frame of ``transforms.json``, as instant-ngp, nerfstudio and (through their converters) COLMAP write it."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.cameras import focal_from_fov
from nerfit.cameras.lenses import LENS_PARAMETERS, LENSES
from nerfit.errors import SceneError

_MODELS = {
    **dict.fromkeys(("PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV"), "perspective"),
    **dict.fromkeys(("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE"), "fisheye"),
    "EQUIRECTANGULAR": "equirectangular",
}
_FLAGS = {"is_fisheye": "OPENCV_FISHEYE", "latlong": "EQUIRECTANGULAR", "equirectangular": "EQUIRECTANGULAR"}
_KEYS = {"k1": "k1", "k2": "k2", "k3": "k3", "p1": "p1", "p2": "p2", "s1": "sx1", "s3": "sy1"}
_LAST = {"FULL_OPENCV": {"d1": "k4", "d2": "k5", "d3": "k6"}}
"""Names of `LENS_PARAMETERS` in files; k4, k5 and k6 differ from model to model."""


LENS_KEYS = {
    *("w", "h", "fl_x", "fl_y", "cx", "cy", "camera_angle_x", "camera_angle_y", "x_fov", "y_fov", "camera_model", "K"),
    *("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "sx1", "sy1", *_FLAGS),
}
"""What `read_intrinsics` reads of a file or a frame."""


class Intrinsics(NamedTuple):
    """The lens of one view, in pixels of its picture; see `Cameras`."""

    fx: float
    fy: float
    cx: float
    cy: float
    lens: int
    distortion: list[float]


def read_intrinsics(what: str, frame: dict[str, Any], meta: dict[str, Any], size: tuple[int, int], small: tuple[int, int]) -> Intrinsics:
    """The lens of a ``frame`` whose picture of ``size`` (width, height) is shrunk to ``small``, in pixels of the latter.

    A frame's own values go before the file's (``meta``); a 3x3 matrix ``K`` stands for fl_x fl_y cx cy. The file's are in pixels of a w×h
    picture; where w and h are missing, of ``size``. The distortion keys k1 k2 k3 k4 p1 p2 mean the powers r² r⁴ r⁶ r⁸ and the tangential
    terms, as in nerfstudio's OPENCV and in OPENCV_FISHEYE (there of the angle); in FULL_OPENCV k4 k5 k6 are the denominator's; sx1 sy1 are
    THIN_PRISM_FISHEYE's. An equirectangular picture spans the sphere, so it needs no focal length. Raises SceneError, with ``what`` in
    front, for other lenses and for values without sense.
    """
    frame, meta = _from_matrix(what, frame), _from_matrix(what, meta)
    model = _model(what, frame, meta)
    lens = _MODELS[model]
    w, h = (number(what, key, frame, meta) or float(pixels) for key, pixels in zip(("w", "h"), size, strict=True))
    if min(w, h) < 0 or abs(size[1] - size[0] * h / w) > 1 + 0.02 * size[1]:
        raise SceneError(f"{what} is {size[0]}x{size[1]} where w and h are {w:g} and {h:g}; it was rotated or cropped.")
    if lens == "equirectangular":
        fx, fy = w / (2 * math.pi), h / math.pi
    else:
        fx, fy = _focal_lengths(what, w, h, frame, meta)
    cx, cy = (_centre(what, key, side, frame, meta) for key, side in (("cx", w), ("cy", h)))
    sx, sy = small[0] / w, small[1] / h
    distortion = [0.0] * len(LENS_PARAMETERS) if lens == "equirectangular" else _distortion(what, model, frame, meta)
    return Intrinsics(fx * sx, fy * sy, cx * sx, cy * sy, LENSES.index(lens), distortion)


def read_lenses(
    file: Path, meta: dict[str, Any], frames: list[dict[str, Any]], sizes: Sequence[tuple[int, int]], small: Sequence[tuple[int, int]]
) -> list[Intrinsics]:
    """`read_intrinsics` of all frames of a file."""
    if any(source.get("equirectangular") for source in (meta, *frames)):
        warnings.warn(
            f"{file}: 'equirectangular' is taken at its word, rows even in latitude, where instant-ngp has them even in its sine.",
            stacklevel=3,
        )
    views = zip(frames, sizes, small, strict=True)
    return [read_intrinsics(f"{file}, {frame['file_path']}", frame, meta, size, shrunk) for frame, size, shrunk in views]


def cameras_of(
    c2w: Float[Tensor, "views 3 4"], intrinsics: Sequence[Intrinsics], sizes: Sequence[tuple[int, int]], pixel_offset: float
) -> Cameras:
    """Cameras with these poses, lenses, and sizes (width, height)."""
    fx, fy, cx, cy = torch.tensor([view[:4] for view in intrinsics], dtype=torch.float64).to(torch.float32).T.contiguous()
    lens = torch.tensor([view.lens for view in intrinsics])
    distortion = torch.tensor([view.distortion for view in intrinsics], dtype=torch.float64).to(torch.float32)
    width, height = torch.tensor(sizes).T.contiguous()
    curved = distortion if distortion.any() else None
    return Cameras(c2w, fx, fy, cx, cy, width, height, curved, pixel_offset, lens if lens.any() else None)


def _model(what: str, *sources: dict[str, Any]) -> str:
    """The camera model of the first source that names one, OPENCV without."""
    for source in sources:
        flag = next((key for key in _FLAGS if source.get(key)), None)
        model = _FLAGS[flag] if flag else str(source.get("camera_model") or "").upper()
        model = next((key for key in source if key.startswith("ftheta_")), model)
        if model and model not in _MODELS:
            known = ", ".join(_MODELS)
            raise SceneError(f"{what}: the lens {model} is not supported; undistort the pictures, or describe them as one of {known}.")
        if model:
            return model
    return "OPENCV"


def _from_matrix(what: str, source: dict[str, Any]) -> dict[str, Any]:
    """A frame or file with the focal lengths and principal point of its matrix K, if it has one; its own go before these."""
    match source.get("K"):
        case None:
            return source
        case [[fx, skew, cx], [_, fy, cy], [_, _, _]]:
            if number(what, "skew", {"skew": skew}):
                raise SceneError(f"{what} has a matrix K with skew, which no lens has; undistort the pictures.")
            return {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy} | source
    raise SceneError(f"{what} has K {str(source['K'])[:40]!r}, which should be the 3x3 matrix of fx 0 cx, 0 fy cy, 0 0 1.")


def _distortion(what: str, model: str, *sources: dict[str, Any]) -> list[float]:
    """`LENS_PARAMETERS` by the names that a camera model gives them."""
    names = _KEYS | _LAST.get(model, {"k4": "k4"})
    for key in ("k5", "k6"):
        if key not in names.values() and number(what, key, *sources):
            raise SceneError(f"{what}: the lens parameter {key} belongs to the camera_model FULL_OPENCV, not {model}.")
    return [number(what, names[name], *sources) or 0.0 if name in names else 0.0 for name in LENS_PARAMETERS]


def _centre(what: str, key: str, side: float, *sources: dict[str, Any]) -> float:
    """A coordinate of the principal point, the middle of a ``side`` by default."""
    value = number(what, key, *sources)
    if value is None:
        return side / 2
    if not -side <= value <= 2 * side:
        raise SceneError(f"{what}: {key} is {value:g}, far outside a picture of {side:g} pixels; it should be in pixels.")
    return value


def _focal_lengths(what: str, w: float, h: float, *sources: dict[str, Any]) -> tuple[float, float]:
    """Focal lengths in pixels of a w×h picture; one stands in for the other."""
    fx, fy = _focal(what, "x", w, *sources), _focal(what, "y", h, *sources)
    fx, fy = fx or fy, fy or fx
    if fx is None or fy is None:
        raise SceneError(f"{what} has no focal length; give fl_x, camera_angle_x or the matrix K.")
    for name, focal, side in (("fl_x", fx, w), ("fl_y", fy, h)):
        if focal < 0.01 * side:
            raise SceneError(f"{what}: {name} is {focal:g} for a picture of {side:g} pixels; it should be in pixels.")
    return fx, fy


def _focal(what: str, axis: str, size: float, *sources: dict[str, Any]) -> float | None:
    """Focal length in pixels along an axis of ``size`` pixels, from the first source that gives it or the field of view."""
    for source in sources:
        length, angle = number(what, f"fl_{axis}", source), number(what, f"camera_angle_{axis}", source)
        degrees = number(what, f"{axis}_fov", source)
        if angle is None and degrees is not None:
            angle = math.radians(degrees)
        if length is None and angle is not None:
            length = focal_from_fov(angle, 1) * size if 0 < angle < math.pi else 0.0
        if length is not None:
            if length <= 0:
                raise SceneError(f"{what}: fl_{axis} must be larger than 0 and camera_angle_{axis} between 0 and π.")
            return length
    return None


def number(what: str, key: str, *sources: dict[str, Any]) -> float | None:
    """The value of a key in the first source that has one; SceneError, with ``what`` in front, for what is no finite number."""
    value = next((source[key] for source in sources if source.get(key) is not None), None)
    if value is None or (isinstance(value, int | float) and abs(value) < 1e9):
        return value
    raise SceneError(f"{what} has {key} {str(value)[:40]!r}, which should be a number.")


def only_an_angle(meta: dict[str, Any]) -> bool:
    """Whether a file's lens is no more than its camera_angle_x: square pixels about the picture's middle, within half a percent."""
    values = {key: meta[key] for key in LENS_KEYS if meta.get(key) is not None}
    model = str(values.pop("camera_model", "OPENCV")).upper()
    if (
        "camera_angle_x" not in values
        or _MODELS.get(model) != "perspective"
        or not all(isinstance(v, int | float) for v in values.values())
    ):
        return False
    plain = {"w", "h", "fl_x", "fl_y", "cx", "cy", "camera_angle_x", "camera_angle_y"}
    if any(value for key, value in values.items() if key not in plain):
        return False
    angle, w, h = values["camera_angle_x"], values.get("w", 0), values.get("h", 0)
    expected = {"cx": w / 2, "cy": h / 2}
    if 0 < angle < math.pi:
        expected |= dict.fromkeys(("fl_x", "fl_y"), focal_from_fov(angle, 1) * w)
    return all(abs(values[key] - value) <= 0.005 * value for key, value in expected.items() if key in values)


def quarter_turn(view: Intrinsics, height: float, c2w: Float[Tensor, "3 4"]) -> tuple[Intrinsics, Float[Tensor, "3 4"]]:
    """Lens and pose of a picture ``height`` pixels high after a quarter turn clockwise: of its (u, v) becomes (-v, u)."""
    k = dict(zip(LENS_PARAMETERS, view.distortion, strict=True))
    k |= {"p1": k["p2"], "p2": -k["p1"], "s1": -k["s3"], "s2": -k["s4"], "s3": k["s1"], "s4": k["s2"]}
    right, up, back, position = c2w.unbind(-1)
    turned = Intrinsics(view.fy, view.fx, height - view.cy, view.cx, view.lens, list(k.values()))
    return turned, torch.stack([up, -right, back, position], -1)


def resized(view: Intrinsics, sx: float, sy: float) -> Intrinsics:
    """The lens of a picture ``sx`` times as wide and ``sy`` times as high."""
    return view._replace(fx=view.fx * sx, fy=view.fy * sy, cx=view.cx * sx, cy=view.cy * sy)
