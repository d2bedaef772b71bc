"""Captures described by one ``transforms.json``: instant-ngp (Müller et al. 2022) and nerfstudio (Tancik et al. 2023)."""

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.cameras import focal_from_fov
from nerfit.cameras.poses import Meeting, rays_meet, scale_of, to_4x4, transform_poses, view_frame, world_up
from nerfit.cameras.rotations import checked_rotations
from nerfit.errors import ConfigError, SceneError
from nerfit.scenes.files import read_json
from nerfit.scenes.frames import exists, image_path, read_frames
from nerfit.scenes.images import image_size
from nerfit.scenes.pixels import find_masks, load_pixels
from nerfit.scenes.scene import Bounds, Scene, SceneConfig, pick

_NEAR, _FAR, _OBJECT = 0.05, 100.0, 0.75
"""In mean distances of the cameras from what they look at: near, far of unbounded scenes, radius of an object."""

_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
_CURVED = ("is_fisheye", "latlong", "equirectangular")
_SPLITS = ("train", "val", "test")


@dataclass
class Config(SceneConfig):
    """How a transforms.json is read.

    Unless near and far are given, an unbounded scene reaches from 0.05 to 100 times the cameras' mean distance from the point
    that they look at, an object (aabb_scale 1, or transparent pixels) 0.75 times it on either side of that point.
    """

    factor: int = 1
    """Shrink the pictures by this factor."""
    holdout: int = 8
    """Every how many pictures (by name) one is kept for testing, from the first on; 0 = none; unused where the file lists splits."""
    centre: bool = True
    """Put the point that the cameras look at in the origin, their mean distance to it at 1, and up along z."""


def detect(source: str) -> bool:
    """A folder with transforms.json, or a JSON file that has frames; a Blender folder is neither."""
    file = _file(source)
    if file.suffix.lower() != ".json" or not file.is_file() or (file.parent / "transforms_train.json").exists():
        return False
    if file.name == "transforms.json":
        return True
    try:
        meta = read_json(file)
    except SceneError:
        return False
    return isinstance(meta, dict) and "frames" in meta


def load(source: str, config: Config) -> Scene:
    """The frames whose pictures are there, in order of their names.

    Intrinsics are those of the frame, else of the file; pictures of another size than the file's w and h take them along.
    Transparency is kept where any pixel has some. Raises SceneError for files and ConfigError for settings without sense.
    """
    if config.factor < 1 or config.holdout < 0:
        raise ConfigError("scene.factor must be at least 1 and scene.holdout at least 0.")
    file = _file(source)
    meta = read_frames(file)
    paths, frames = _present(file, meta["frames"])
    names = [os.path.relpath(path, file.parent) for path in paths]
    splits = _splits(file, meta, paths, config.holdout)
    splits["train"] = [splits["train"][i] for i in pick(len(splits["train"]), config.train_views)]

    sizes = [image_size(path) for path in paths]
    small = [(max(1, w // config.factor), max(1, h // config.factor)) for w, h in sizes]
    lenses = torch.tensor([_lens(file, meta, *view) for view in zip(frames, sizes, small, strict=True)], dtype=torch.float64)
    fx, fy, cx, cy, *distortion = lenses.to(torch.float32).T
    width, height = torch.tensor(small).T
    c2w = checked_rotations(torch.from_numpy(np.stack([frame["transform_matrix"] for frame in frames])), str(file), names)
    cameras = Cameras(c2w[:, :3], fx, fy, cx, cy, width, height, pixel_offset=config.pixel_offset)
    if lenses[:, 4:].any():
        cameras.distortion = torch.stack(distortion, -1)

    masks = _masks(file, frames, paths)
    pixels = load_pixels(paths, small, masks)
    cut_out = pixels.shape[1] == 4 and not any(masks)
    bounds: Bounds = "object" if cut_out or meta.get("aabb_scale") == 1 else "unbounded"
    meeting = rays_meet(cameras)
    transform = centring(c2w, meeting)
    centred = transform_poses(c2w, transform)
    near, far = _range(centred, bounds)
    if not config.centre:
        near, far = near / scale_of(transform), far / scale_of(transform)
        transform = torch.eye(4, dtype=torch.float64)
    cameras.c2w = transform_poses(c2w, transform).to(torch.float32)
    return Scene(
        name=(file.parent if file.name == "transforms.json" else file.with_suffix("")).resolve().name,
        format="transforms",
        cameras=cameras,
        near=near if config.near is None else config.near,
        far=far if config.far is None else config.far,
        splits=splits,
        pixels=pixels,
        masked=any(masks),
        bounds=bounds,
        background=config.background,
        default_path=_path(centred, meeting, bounds),
        view_names=names,
        to_original=torch.linalg.inv(transform),
    )


def _file(source: str) -> Path:
    path = Path(source)
    return path / "transforms.json" if path.is_dir() else path


def _present(file: Path, frames: list[dict[str, Any]]) -> tuple[list[Path], list[dict[str, Any]]]:
    """The frames whose pictures exist, in order of their names; says which do not, and what else is left out."""
    paths = [image_path(file.parent, frame["file_path"]) for frame in frames]
    there = sorted((i for i, path in enumerate(paths) if exists(path)), key=lambda i: str(paths[i]))
    absent = [frame["file_path"] for i, frame in enumerate(frames) if i not in set(there)]
    if not there:
        raise SceneError(f"{file} lists {len(frames)} pictures of which none is there; the first should be {paths[0]}.")
    if absent:
        shown = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        warnings.warn(f"{file}: {len(absent)} of {len(frames)} pictures are not there and were left out: {shown}", stacklevel=3)
    return [paths[i] for i in there], [frames[i] for i in there]


def _splits(file: Path, meta: dict[str, Any], paths: list[Path], holdout: int) -> dict[str, list[int]]:
    """Views of each split: what the file lists, val and test standing in for each other; else every ``holdout``-th for testing."""
    listed: dict[str, list[int]] = {}
    known = {image_path(file.parent, frame["file_path"]) for frame in meta["frames"]}
    for split in _SPLITS:
        files = meta.get(f"{split}_filenames")
        if files is None:
            continue
        if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
            raise SceneError(f"{file}: {split}_filenames must be a list of file names.")
        wanted = {image_path(file.parent, name) for name in files}
        if wanted - known:
            raise SceneError(f"{file}: {split}_filenames has {min(wanted - known)}, which is not among the frames.")
        listed[split] = [i for i, path in enumerate(paths) if path in wanted]
    every = list(range(0, len(paths), holdout)) if holdout else []
    test = listed.get("test", listed.get("val", [] if "train" in listed else every))
    val = listed.get("val", test)
    train = listed.get("train", [i for i in range(len(paths)) if i not in {*val, *test}])
    if not train:
        raise SceneError(f"{file}: of {len(paths)} pictures none is left to train on; change --scene.holdout or train_filenames.")
    return {"train": train, "val": val, "test": test}


def _lens(file: Path, meta: dict[str, Any], frame: dict[str, Any], size: tuple[int, int], small: tuple[int, int]) -> list[float]:
    """fx fy cx cy k1 k2 p1 p2 k3 of a frame whose picture of ``size`` is shrunk to ``small``, in pixels of the latter.

    A frame's own values go before the file's. The file's are in pixels of a w×h picture; where w and h are missing, of ``size``.
    """
    what = f"{file}, {frame['file_path']}"
    for place in (frame, meta):
        model = str(place.get("camera_model", "OPENCV"))
        kinds = [model] if model.upper() not in _MODELS else [k for k in place if k.startswith("ftheta_") or (k in _CURVED and place[k])]
        if kinds:
            raise SceneError(f"{what}: a lens of the kind {kinds[0]} is not supported yet; undistort the pictures (OPENCV, PINHOLE).")
    for key in ("k4", "k5", "k6"):
        if _number(what, key, frame, meta):
            raise SceneError(f"{what}: the lens parameter {key} is not supported yet, only k1 k2 p1 p2 k3; undistort the pictures.")
    w, h = (_number(what, key, frame, meta) or float(pixels) for key, pixels in zip(("w", "h"), size, strict=True))
    if min(w, h) < 0 or abs(size[1] - size[0] * h / w) > 1 + 0.02 * size[1]:
        raise SceneError(f"{what} is {size[0]}x{size[1]} where w and h are {w:g} and {h:g}; it was rotated or cropped.")
    fx, fy = _focal(what, "x", w, frame, meta), _focal(what, "y", h, frame, meta)
    fx, fy = fx or fy, fy or fx
    if fx is None or fy is None:
        raise SceneError(f"{what} has no focal length; give fl_x or camera_angle_x.")
    cx, cy = (half if (c := _number(what, key, frame, meta)) is None else c for key, half in (("cx", w / 2), ("cy", h / 2)))
    sx, sy = small[0] / w, small[1] / h
    return [fx * sx, fy * sy, cx * sx, cy * sy, *(_number(what, key, frame, meta) or 0.0 for key in ("k1", "k2", "p1", "p2", "k3"))]


def _focal(what: str, axis: str, size: float, *places: dict[str, Any]) -> float | None:
    """Focal length in pixels along an axis of ``size`` pixels, from the first place that gives it or the field of view."""
    for place in places:
        length, angle = _number(what, f"fl_{axis}", place), _number(what, f"camera_angle_{axis}", place)
        if length is None and angle is not None:
            length = focal_from_fov(angle, 1) * size if 0 < angle < math.pi else 0.0
        if length is not None:
            if length <= 0:
                raise SceneError(f"{what}: fl_{axis} must be larger than 0 and camera_angle_{axis} between 0 and π.")
            return length
    return None


def _number(what: str, key: str, *places: dict[str, Any]) -> float | None:
    """The value of a key in the first place that has one."""
    value = next((place[key] for place in places if place.get(key) is not None), None)
    if value is None or (isinstance(value, int | float) and abs(value) < 1e9):
        return value
    raise SceneError(f"{what} has {key} {str(value)[:40]!r}, which should be a number.")


def _masks(file: Path, frames: list[dict[str, Any]], paths: list[Path]) -> list[Path | None]:
    """What the frames name as mask_path, else the masks that lie beside the pictures."""
    named = [frame.get("mask_path") for frame in frames]
    for frame, mask in zip(frames, named, strict=True):
        if not isinstance(mask, str | None):
            raise SceneError(f"{file}, {frame['file_path']} has mask_path {str(mask)[:40]!r}, which should be the name of a file.")
    return [mask and image_path(file.parent, mask) for mask in named] if any(named) else find_masks(paths)


def centring(c2w: Float[Tensor, "views rows 4"], meeting: Meeting) -> Float[Tensor, "4 4"]:
    """The similarity that takes the point where the optical axes meet to 0, the cameras' mean distance to it to 1, and up to z.

    Where half of the cameras don't have that point in front of them (a room from within, a walk) their mean position
    serves in its place; cameras that all stand in one point keep their scale.
    """
    positions = to_4x4(c2w)[:, :3, 3]
    origin = meeting.point if meeting.in_front > 0.5 else positions.mean(0)
    distance = (positions - origin).norm(dim=-1).mean()
    scale = 1 / distance if distance > 1e-9 * (1 + origin.norm()) else torch.ones_like(distance)
    frame = view_frame(origin, world_up(c2w), torch.tensor([0.0, 1.0, 0.0]))
    return torch.diag(torch.stack([scale, scale, scale, torch.ones_like(scale)])) @ torch.linalg.inv(to_4x4(frame))


def _range(c2w: Float[Tensor, "views 3 4"], bounds: Bounds) -> tuple[float, float]:
    """Near and far for centred cameras."""
    if bounds == "unbounded":
        return _NEAR, _FAR
    distance = c2w[:, :, 3].norm(dim=-1)
    return max(_NEAR, float(distance.min()) - _OBJECT), float(distance.max()) + _OBJECT


def _path(c2w: Float[Tensor, "views 3 4"], meeting: Meeting, bounds: Bounds) -> str:
    """A turn where centred cameras stand all around, a spiral where they look one way, else from view to view."""
    azimuth = torch.atan2(c2w[:, 1, 3], c2w[:, 0, 3]).sort().values
    gaps = torch.cat([azimuth, azimuth[:1] + 2 * math.pi]).diff()
    if meeting.in_front > 0.9 and gaps.max() < math.radians(90):
        return "circle" if bounds == "object" else "ellipse"
    back = c2w[:, :, 2]
    one_way = (back @ torch.nn.functional.normalize(back.mean(0), dim=0)).min() > math.cos(math.radians(60))
    return "spiral" if meeting.in_front == 1 and one_way else "interpolate"
