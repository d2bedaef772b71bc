"""Cameras written for other programs: transforms.json (nerfstudio, instant-ngp), COLMAP models, and LLFF's poses_bounds.npy.

Poses are written as they are, so they should be those of the user's own coordinates (`Scene.original_cameras`).
"""

import io
import os
import struct
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.axes import convert_axes
from nerfit.cameras.lenses import LENS_PARAMETERS, LENSES
from nerfit.cameras.poses import to_4x4
from nerfit.cameras.rotations import matrix_to_quaternion, quaternion_to_matrix
from nerfit.errors import SceneError
from nerfit.files import write_json
from nerfit.scenes.images import replacing
from nerfit.scenes.reading.colmap_model import LENS_MODELS

_RADIAL = {"k1": "k1", "k2": "k2", "k3": "k3", "k4": "k4", "p1": "p1", "p2": "p2"}
_PRISM = {"s1": "sx1", "s3": "sy1"}
_CAMERA_MODELS: dict[str, tuple[str, dict[str, str]]] = {
    "PINHOLE": ("perspective", {}),
    "OPENCV": ("perspective", _RADIAL),
    "FULL_OPENCV": ("perspective", _RADIAL | {"d1": "k4", "d2": "k5", "d3": "k6"} | {"k4": ""}),
    "OPENCV_FISHEYE": ("fisheye", {key: key for key in ("k1", "k2", "k3", "k4")}),
    "THIN_PRISM_FISHEYE": ("fisheye", _RADIAL | _PRISM),
    "EQUIRECTANGULAR": ("equirectangular", {}),
}
"""The camera models of transforms.json, simplest first: kind of lens, and our names of its parameters with theirs."""


def write_transforms(
    folder: Path, cameras: Cameras, names: list[str], *, points: Path | None = None, extra: dict[str, Any] | None = None
) -> Path:
    """Write ``folder``/transforms.json with nerfstudio's keys; lenses are given once where all views have the same.

    ``points`` is a PLY file in the poses' coordinates, ``extra`` further keys of the file. Raises SceneError for a lens that
    such a file can't hold.
    """
    lenses = [_frame_lens(cameras, view, name) for view, name in enumerate(names)]
    shared = all(lens == lenses[0] for lens in lenses)
    matrices = to_4x4(cameras.c2w).tolist()
    frames = [
        {"file_path": name, "transform_matrix": matrix} | ({} if shared else lens)
        for name, matrix, lens in zip(names, matrices, lenses, strict=True)
    ]
    meta = (lenses[0] if shared else {}) | ({} if points is None else {"ply_file_path": _relative(points, folder)}) | (extra or {})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "transforms.json", meta | {"frames": frames})
    return folder / "transforms.json"


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path, folder).replace(os.sep, "/")


def _lens(cameras: Cameras, view: int) -> tuple[str, dict[str, float], dict[str, float]]:
    """A view's kind of lens, its focal lengths and principal point, and what of its distortion is not zero."""
    kind = LENSES[0 if cameras.lens is None else int(cameras.lens[view])]
    values = {key: float(getattr(cameras, key)[view]) for key in ("fx", "fy", "cx", "cy")}
    distortion = [] if cameras.distortion is None else cameras.distortion[view].tolist()
    return kind, values, {key: k for key, k in zip(LENS_PARAMETERS, distortion, strict=bool(distortion)) if k}


def _frame_lens(cameras: Cameras, view: int, name: str) -> dict[str, Any]:
    """The keys of transforms.json for a view's lens."""
    kind, values, distortion = _lens(cameras, view)
    fitting = [(model, keys) for model, (of, keys) in _CAMERA_MODELS.items() if of == kind and all(keys.get(k) for k in distortion)]
    if not fitting:
        raise SceneError(f"{name}: a {kind} lens with {', '.join(distortion)} can't be written to transforms.json; undistort the picture.")
    model, keys = fitting[0]
    size = {"w": int(cameras.width[view]), "h": int(cameras.height[view])}
    focal = {"fl_x": values["fx"], "fl_y": values["fy"], "cx": values["cx"], "cy": values["cy"]}
    return {"camera_model": model} | size | focal | {theirs: distortion.get(ours, 0.0) for ours, theirs in keys.items() if theirs}


def write_colmap(folder: Path, cameras: Cameras, names: list[str], points: Float[Tensor, "n 3"] | None = None, binary: bool = True) -> Path:
    """Write a model into ``folder``/sparse/0, as binary files or text: cameras, pictures and, grey and without tracks, points.

    Views whose lens and size are the same share a camera. Returns the model's folder; raises SceneError for a lens that no
    camera model of COLMAP describes.
    """
    lenses = [_model_lens(cameras, view, name) for view, name in enumerate(names)]
    numbers = {lens: i for i, lens in enumerate(dict.fromkeys(lenses), 1)}
    c2w = convert_axes(to_4x4(cameras.c2w)[:, :3], "opengl", "opencv")
    quaternions = matrix_to_quaternion(c2w[:, :, :3].mT)
    rotation = quaternion_to_matrix(quaternions)  # a float32 matrix is a rotation to 1e-7 only, half a metre at a position of 5,000,000 m
    poses = torch.cat([quaternions, -(rotation @ c2w[:, :, 3:])[..., 0]], -1).tolist()
    images = [(i, *pose, numbers[lens], name) for i, (pose, lens, name) in enumerate(zip(poses, lenses, names, strict=True), 1)]
    xyz = np.empty((0, 3)) if points is None else points.numpy().astype(np.float64)
    model = folder / "sparse" / "0"
    model.mkdir(parents=True, exist_ok=True)
    write = _write_binary if binary else _write_text
    write(model, numbers, images, xyz)
    return model


_Lens = tuple[str, int, int, tuple[float, ...]]


def _model_lens(cameras: Cameras, view: int, name: str) -> _Lens:
    """COLMAP's camera of a view: model, width, height, parameters."""
    kind, values, distortion = _lens(cameras, view)
    width, height = int(cameras.width[view]), int(cameras.height[view])
    values |= {"width": float(width), "height": float(height)}
    if values["fx"] == values["fy"]:
        values["f"] = values["fx"]
    for model, (_, of, keys) in LENS_MODELS.items():
        if of == kind and set(distortion) <= set(keys) and ("f" not in keys or "f" in values):
            return model, width, height, tuple((values | distortion).get(key, 0.0) for key in keys)
    raise SceneError(f"{name}: a {kind} lens with {', '.join(distortion)} is none of COLMAP's camera models; undistort the picture.")


def _write_binary(model: Path, cameras: dict[_Lens, int], images: list[tuple[Any, ...]], xyz: Float[np.ndarray, "n 3"]) -> None:
    def camera(lens: _Lens, number: int) -> bytes:
        name, width, height, values = lens
        return struct.pack(f"<IiQQ{len(values)}d", number, LENS_MODELS[name].number, width, height, *values)

    def image(row: tuple[Any, ...]) -> bytes:
        return struct.pack("<I7dI", *row[:9]) + os.fsencode(row[9]) + b"\0" + struct.pack("<Q", 0)

    def point(i: int, position: Iterable[float]) -> bytes:
        return struct.pack("<Q3d3BdQ", i, *position, 128, 128, 128, 0.0, 0)

    _write(model / "cameras.bin", [camera(*entry) for entry in cameras.items()], _counted)
    _write(model / "images.bin", [image(row) for row in images], _counted)
    _write(model / "points3D.bin", [point(*entry) for entry in enumerate(xyz, 1)], _counted)


def _write_text(model: Path, cameras: dict[_Lens, int], images: list[tuple[Any, ...]], xyz: Float[np.ndarray, "n 3"]) -> None:
    def line(*words: Any) -> bytes:
        return os.fsencode(" ".join(word if isinstance(word, str) else repr(word) for word in words)) + b"\n"

    _write(model / "cameras.txt", [line(i, name, w, h, *values) for (name, w, h, values), i in cameras.items()], b"".join)
    _write(model / "images.txt", [line(*row) + b"\n" for row in images], b"".join)
    points = [line(i, *position, 128, 128, 128, 0.0) for i, position in enumerate(xyz.tolist(), 1)]
    _write(model / "points3D.txt", [b"# number, x, y, z, red, green, blue, error, track\n", *points], b"".join)  # COLMAP needs the file


def _counted(entries: list[bytes]) -> bytes:
    return struct.pack("<Q", len(entries)) + b"".join(entries)


def _write(path: Path, entries: list[bytes], join: Callable[[list[bytes]], bytes]) -> None:
    """Write one of a model's files, and remove the file of the other kind, which a reader might find first."""
    with replacing(path) as temporary:
        temporary.write_bytes(join(entries))
    path.with_suffix(".txt" if path.suffix == ".bin" else ".bin").unlink(missing_ok=True)


def write_poses_bounds(folder: Path, cameras: Cameras, names: list[str], depths: Float[Tensor, "views 2"]) -> Path:
    """Write ``folder``/poses_bounds.npy, its rows in order of the pictures' names; ``depths`` are each view's nearest and farthest.

    The file holds one focal length a view and nothing else of a lens; a warning names what is lost. Raises SceneError for views of
    several sizes and lenses that are not perspective.
    """
    size = torch.stack([cameras.height, cameras.width], -1)
    if (size != size[0]).any():
        raise SceneError(f"the views of {folder} differ in size, where poses_bounds.npy is for pictures of one size.")
    if cameras.lens is not None and cameras.lens.any():
        raise SceneError(f"{LENSES[int(cameras.lens.max())]} pictures can't be described by poses_bounds.npy; write transforms instead.")
    lost = {
        "distortion": cameras.distortion is not None and bool(cameras.distortion.any()),
        "principal points": not torch.equal(torch.stack([cameras.cy, cameras.cx], -1), size / 2),
        "focal lengths that differ along x and y": not torch.equal(cameras.fx, cameras.fy),
    }
    if any(lost.values()):
        warnings.warn(f"poses_bounds.npy has no place for {' and '.join(k for k, v in lost.items() if v)}: left out.", stacklevel=2)
    focal = (cameras.fx.double() + cameras.fy.double()) / 2
    last = torch.cat([size.double(), focal[:, None]], -1)[..., None]
    matrix = torch.cat([convert_axes(to_4x4(cameras.c2w)[:, :3], "opengl", "llff"), last], -1)
    table = torch.cat([matrix.flatten(1), depths.double()], -1)
    order = sorted(range(len(names)), key=names.__getitem__)
    folder.mkdir(parents=True, exist_ok=True)
    array = io.BytesIO()  # NumPy itself does not notice a disk that is full
    np.save(array, table[order].numpy())
    with replacing(folder / "poses_bounds.npy") as temporary:
        temporary.write_bytes(array.getvalue())
    return folder / "poses_bounds.npy"
