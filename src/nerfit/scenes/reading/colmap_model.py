"""COLMAP's models (Schönberger and Frahm 2016): cameras, images and points, binary or text, checked before anything is allocated."""

import math
import mmap
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerfit.cameras.axes import convert_axes
from nerfit.cameras.lenses import LENS_PARAMETERS, LENSES
from nerfit.cameras.rotations import quaternion_to_matrix
from nerfit.errors import SceneError
from nerfit.scenes.reading.intrinsics import Intrinsics
from nerfit.scenes.reading.picture_files import listed, natural_order


class LensModel(NamedTuple):
    """A camera model: its number in binary files, what kind of lens it is, and the names of its parameters (f = fx = fy)."""

    number: int
    kind: str
    parameters: tuple[str, ...]


LENS_MODELS = {
    "SIMPLE_PINHOLE": LensModel(0, "perspective", ("f", "cx", "cy")),
    "PINHOLE": LensModel(1, "perspective", ("fx", "fy", "cx", "cy")),
    "SIMPLE_RADIAL": LensModel(2, "perspective", ("f", "cx", "cy", "k1")),
    "RADIAL": LensModel(3, "perspective", ("f", "cx", "cy", "k1", "k2")),
    "OPENCV": LensModel(4, "perspective", ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2")),
    "FULL_OPENCV": LensModel(6, "perspective", ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "d1", "d2", "d3")),
    "SIMPLE_RADIAL_FISHEYE": LensModel(8, "fisheye", ("f", "cx", "cy", "k1")),
    "RADIAL_FISHEYE": LensModel(9, "fisheye", ("f", "cx", "cy", "k1", "k2")),
    "OPENCV_FISHEYE": LensModel(5, "fisheye", ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4")),
    "THIN_PRISM_FISHEYE": LensModel(10, "fisheye", ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "s1", "s3")),
    "SIMPLE_FISHEYE": LensModel(14, "fisheye", ("f", "cx", "cy")),
    "FISHEYE": LensModel(15, "fisheye", ("fx", "fy", "cx", "cy")),
    "EQUIRECTANGULAR": LensModel(17, "equirectangular", ("width", "height")),
}
"""The supported ones of COLMAP 4.2's models; of those that fit, the first is written.

Its k4 k5 k6 of FULL_OPENCV are d1 d2 d3, its sx1 sy1 are s1 s3.
"""

_USUAL = ("sparse", "colmap/sparse", "distorted/sparse", ".")
"""Folders of models in a scene's folder, likeliest first."""
_ON_THE_WAY = re.compile(r"^\d+$|sparse|dense|colmap|distort|models?$|sfm|recon|workspace|output|^text$|^bin$", re.I)
"""Names of folders below which models may lie."""
_DEPTH, _MOST_FOLDERS = 5, 200
"""How deep models are looked for, and in how many folders of one depth."""
_OTHERS = {7: "FOV", 11: "RAD_TAN_THIN_PRISM_FISHEYE", 12: "SIMPLE_DIVISION", 13: "DIVISION", 16: "EUCM"}
_NUMBERS = {lens.number: name for name, lens in LENS_MODELS.items()}
_CAMERA, _IMAGE, _POINT = struct.Struct("<IiQQ"), struct.Struct("<I7dI"), struct.Struct("<Q3d3BdQ")
_LONGEST_NAME, _LONGEST_LINE = 4096, 1 << 26


class ModelCamera(NamedTuple):
    """A camera as the model has it: its size, and its lens in pixels of that size."""

    width: int
    height: int
    lens: Intrinsics


class ModelImage(NamedTuple):
    """A registered picture: its name, its camera's number, the world-to-camera pose (quaternion w x y z, then translation), its number."""

    name: str
    camera: int
    pose: tuple[float, ...]
    number: int


class ModelPoints(NamedTuple):
    """Points and their mean reprojection errors in pixels; ``picture`` (number) shows ``point`` (index)."""

    xyz: Float[Tensor, "n 3"]
    error: Float[Tensor, "n"]
    picture: Int[Tensor, "visible"]
    point: Int[Tensor, "visible"]


def find_models(root: Path) -> list[Path]:
    """The folders of models in a scene's folder, itself or below folders named as COLMAP, hloc and 3DGS do, the usual ones first."""
    found, level = [root] if is_model(root, whole=True) else [], [root]
    for _ in range(_DEPTH):
        level = [folder for parent in level for folder in listed(parent, files=False) if _ON_THE_WAY.search(folder.name)][:_MOST_FOLDERS]
        found += [folder for folder in level if is_model(folder)]
    order = [next((i for i, usual in enumerate(_USUAL) if _is_below(path, root / usual)), len(_USUAL)) for path in found]
    return [path for _, path in sorted(zip(order, found, strict=True), key=lambda pair: (pair[0], natural_order(str(pair[1]))))]


def _is_below(path: Path, folder: Path) -> bool:
    return path == folder or (path.parent == folder and path.name.isdecimal())


def is_model(folder: Path, whole: bool = False) -> bool:
    """Whether a folder has a model's cameras or images, or (``whole``) both."""
    return (all if whole else any)(_part(folder, name) is not None for name in ("cameras", "images"))


def _part(folder: Path, name: str) -> Path | None:
    """The binary file of a part, else the text file, else None."""
    return next((path for suffix in (".bin", ".txt") if (path := folder / f"{name}{suffix}").is_file()), None)


def read_cameras(folder: Path) -> dict[int, ModelCamera]:
    """The cameras of a model by number; raises SceneError for lenses that are not understood and numbers without sense."""
    path = _needed(folder, "cameras")
    cameras = {}
    for number, model, width, height, values in _cameras_bin(path) if path.suffix == ".bin" else _cameras_txt(path):
        names = LENS_MODELS[model].parameters
        if len(values) != len(names):
            raise SceneError(f"{path}: camera {number} has {len(values)} parameters where a lens of the kind {model} has {len(names)}.")
        lens = _intrinsics(LENS_MODELS[model], dict(zip(names, values, strict=True)), width, height)
        if not np.isfinite(values).all() or min(lens[:2]) <= 0 or not 0 < min(width, height) <= max(width, height) < 10**6:
            raise SceneError(f"{path}: the size or the lens of camera {number} is not made of sensible numbers; make the model again.")
        cameras[number] = ModelCamera(width, height, lens)
    return cameras


def _intrinsics(model: LensModel, values: dict[str, float], width: int, height: int) -> Intrinsics:
    kind = LENSES.index(model.kind)
    if model.kind == "equirectangular":
        return Intrinsics(width / (2 * math.pi), height / math.pi, width / 2, height / 2, kind, [0.0] * len(LENS_PARAMETERS))
    fx, fy = values.get("fx", values.get("f", 0.0)), values.get("fy", values.get("f", 0.0))
    return Intrinsics(fx, fy, values["cx"], values["cy"], kind, [values.get(name, 0.0) for name in LENS_PARAMETERS])


def read_images(folder: Path) -> list[ModelImage]:
    """The registered pictures of a model in order of their names; raises SceneError for poses that are none and names given twice."""
    path = _needed(folder, "images")
    images = sorted(_images_bin(path) if path.suffix == ".bin" else _images_txt(path))
    for one, other in zip(images, images[1:], strict=False):
        if one.name == other.name:
            raise SceneError(f"{path} has two pictures of the name {one.name}; make the model again.")
    for image in images:
        if not (np.abs(image.pose) < 1e9).all() or not 1e-6 < np.linalg.norm(image.pose[:4]) < 1e6:
            raise SceneError(f"{path}: the pose of {image.name} is not made of finite numbers and a rotation; leave that picture out.")
    return images


def poses(images: list[ModelImage]) -> Float[Tensor, "views 3 4"]:
    """Camera-to-world poses in OpenGL axes, float64: Rᵀ and -Rᵀt of each picture's R and t."""
    table = torch.tensor([image.pose for image in images], dtype=torch.float64)
    rotation = quaternion_to_matrix(table[:, :4]).mT
    return convert_axes(torch.cat([rotation, -rotation @ table[:, 4:, None]], -1), "opencv")


def read_points(folder: Path) -> ModelPoints | None:
    """The finite points of a model, float64; None where it has no file of points."""
    path = _part(folder, "points3D")
    if path is None:
        return None
    rows, tracks = [], [np.empty(0, np.int64)]
    for *row, track in _points_bin(path) if path.suffix == ".bin" else _points_txt(path):
        if np.isfinite(row).all():
            rows.append(row)
            tracks.append(track)
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    lengths = torch.tensor([len(track) for track in tracks[1:]], dtype=torch.long)
    pictures = torch.from_numpy(np.concatenate(tracks).astype(np.int64))
    return ModelPoints(table[:, :3], table[:, 3], pictures, torch.arange(len(table)).repeat_interleave(lengths))


def _needed(folder: Path, name: str) -> Path:
    path = _part(folder, name)
    if path is None:
        raise SceneError(f"{folder} has no {name}.bin or {name}.txt, which a COLMAP model needs; export the model again.")
    return path


class _Bytes:
    """A binary file from front to back; SceneError where it ends too soon."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        try:
            with path.open("rb") as file:
                self.size = path.stat().st_size
                self.data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        except OSError as error:
            raise SceneError(f"{path} can't be read: {error.strerror}.") from error

    def take(self, form: struct.Struct) -> tuple[Any, ...]:
        self.skip(form.size)
        return form.unpack_from(self.data, self.at - form.size)

    def skip(self, size: int) -> None:
        if size > self.size - self.at:
            raise SceneError(f"{self.path} is cut short or damaged: it ends within an entry, after {self.size} bytes; copy it again.")
        self.at += size

    def count(self, least: int, what: str) -> int:
        """A number of entries, each of at least that size in bytes."""
        (count,) = self.take(struct.Struct("<Q"))
        if count * least > self.size - self.at:
            raise SceneError(f"{self.path} says that it holds {count} {what}, which do not fit into its {self.size} bytes; it is damaged.")
        return count

    def name(self) -> str:
        """A file name that ends in a zero byte."""
        end = self.data.find(b"\0", self.at, self.at + _LONGEST_NAME)
        if end < 0:
            raise SceneError(f"{self.path} is damaged: a picture's name does not end.")
        name, self.at = os.fsdecode(self.data[self.at : end]), end + 1
        return name


Row = tuple[int, str, int, int, tuple[float, ...]]


def _cameras_bin(path: Path) -> Iterator[Row]:
    data = _Bytes(path)
    for _ in range(data.count(_CAMERA.size, "cameras")):
        number, kind, width, height = data.take(_CAMERA)
        model = _understood(path, number, _NUMBERS.get(kind, _OTHERS.get(kind, f"number {kind}")))
        yield number, model, width, height, data.take(struct.Struct(f"<{len(LENS_MODELS[model].parameters)}d"))


def _understood(path: Path, camera: int, model: str) -> str:
    if model not in LENS_MODELS:
        raise SceneError(
            f"{path}: camera {camera} has a lens of the kind {model[:40]}, which is not supported; "
            "undistort the pictures with `colmap image_undistorter`."
        )
    return model


def _images_bin(path: Path) -> Iterator[ModelImage]:
    data = _Bytes(path)
    for _ in range(data.count(_IMAGE.size + 1 + 8, "pictures")):
        number, *pose, camera = data.take(_IMAGE)
        name = data.name()
        data.skip(24 * data.count(24, "points in a picture"))
        yield ModelImage(name, camera, tuple(pose), number)


Point = tuple[float, float, float, float, np.ndarray]


def _points_bin(path: Path) -> Iterator[Point]:
    data = _Bytes(path)
    for _ in range(data.count(_POINT.size, "points")):
        _, x, y, z, _, _, _, error, track = data.take(_POINT)
        data.skip(8 * track)
        yield x, y, z, error, np.frombuffer(data.data, "<u4", 2 * track, data.at - 8 * track)[::2]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file and their numbers, without comments."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), ""), 1):
                if len(line) == _LONGEST_LINE:
                    raise SceneError(f"{path}: line {number} does not end; copy the file again.")
                if not line.startswith("#"):
                    yield number, line.rstrip("\r\n")
    except OSError as error:
        raise SceneError(f"{path} can't be read: {error.strerror}.") from error


def _words(line: str, most: int = -1) -> list[str]:
    """The first words of a line, which commas may end, and the rest of it."""
    words = line.split(maxsplit=most)
    return [word.rstrip(",") for word in words[: most if most > 0 else None]] + (words[most:] if most > 0 else [])


def _cameras_txt(path: Path) -> Iterator[Row]:
    for at, line in _lines(path):
        if words := _words(line):
            try:
                number, (width, height), values = int(words[0]), map(int, words[2:4]), tuple(map(float, words[4:]))
            except ValueError:
                raise SceneError(f"{path}: line {at} is no camera (number, model, width, height, parameters).") from None
            yield number, _understood(path, number, words[1]), width, height, values


def _images_txt(path: Path) -> Iterator[ModelImage]:
    """Pictures; the line of points after each may be missing, as other programs leave it out."""
    points = False
    for at, line in _lines(path):
        words = _words(line, 9)
        if points and _are_points(words):
            points = False
            continue
        if not words:
            continue
        try:
            number, pose, camera, name = int(words[0]), tuple(map(float, words[1:8])), int(words[8]), words[9].strip()
        except (ValueError, IndexError):
            raise SceneError(f"{path}: line {at} is no picture (number, quaternion, translation, camera, name).") from None
        points = True
        yield ModelImage(name, camera, pose, number)


def _are_points(words: list[str]) -> bool:
    """Whether a line after a picture's holds its points, numbers in threes: of a tenth word and no more it is the next picture's."""
    if len(words) < 10:
        return True
    first, *more = words[9].split(maxsplit=1)
    try:
        float(first)
    except ValueError:
        return False
    return bool(more)


def _points_txt(path: Path) -> Iterator[Point]:
    for at, line in _lines(path):
        if words := _words(line):
            try:
                x, y, z, error = map(float, (*words[1:4], words[7]))
                track = np.array(words[8::2], np.int64)
            except (ValueError, IndexError, OverflowError):
                raise SceneError(f"{path}: line {at} is no point (number, x, y, z, colour, error, track).") from None
            yield x, y, z, error, track
