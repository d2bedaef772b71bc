"""Captures described by one ``transforms.json``: instant-ngp (Müller et al. 2022) and nerfstudio (Tancik et al. 2023)."""

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
from nerfit.cameras.poses import scale_of, to_4x4, transform_poses
from nerfit.cameras.rotations import checked_rotations
from nerfit.errors import SceneError
from nerfit.files import peek_json
from nerfit.progress import say
from nerfit.scenes.images import image_size, shrunk
from nerfit.scenes.reading.colmap_model import find_models
from nerfit.scenes.reading.depths import load_depths
from nerfit.scenes.reading.frames import present_frames, read_frames, set_paths
from nerfit.scenes.reading.intrinsics import LENS_KEYS, cameras_of, number, only_an_angle, read_lenses
from nerfit.scenes.reading.masks import Mask, find_masks
from nerfit.scenes.reading.normalise import NormaliseConfig, normalised_scene
from nerfit.scenes.reading.picture_files import SceneFiles, inside
from nerfit.scenes.reading.ply import read_ply
from nerfit.scenes.reading.unused import warn_unused
from nerfit.scenes.scene import Scene
from nerfit.scenes.splits import held_out, make_splits

_SPLITS = ("train", "val", "test")
_OF_SPLITS = tuple(f"transforms_{split}.json" for split in _SPLITS)
_TRAIN = _OF_SPLITS[0]
_USED = {
    *("frames", "ply_file_path", "aabb_scale", "applied_transform", "applied_scale", "depth_unit_scale_factor", "integer_depth_scale"),
    *(f"{split}_filenames" for split in _SPLITS),
}
_OF_FRAMES = {"file_path", "transform_matrix", "path", "mask_path", "depth_file_path", "depth_path"}
"""Keys of the file and of its frames that are used, beside those of the lens."""


@dataclass
class Config(NormaliseConfig):
    """How a transforms.json is read."""

    allow_outside: bool = False
    """Read files outside the scene's folder too, where transforms.json names one."""
    depths: bool = False
    """Read the depth maps that frames name."""


def detect(source: str) -> bool:
    """A folder with transforms.json, or with files of splits that say more than a Blender scene's; or a JSON file that has frames."""
    file = _file(source)
    if file.suffix.lower() != ".json" or not file.is_file():
        return False
    if Path(source).is_dir():
        return not (file.parent / _TRAIN).exists() or says_more(peek_json(file.parent / _TRAIN))
    if file.name == "transforms.json":
        return True
    meta = peek_json(file)
    return file.name not in _OF_SPLITS and isinstance(meta, dict) and "frames" in meta


def says_more(meta: Any) -> bool:
    """Whether a file says more than a Blender scene's: a lens beyond camera_angle_x, masks, depths, points, other coordinates."""
    if not isinstance(meta, dict) or not isinstance(frames := meta.get("frames"), list):
        return False
    own = {key for frame in frames if isinstance(frame, dict) for key, value in frame.items() if value is not None}
    more = LENS_KEYS | {"mask_path", "depth_file_path", "depth_path"}
    if own & more or meta.keys() & {"ply_file_path", "applied_transform", "applied_scale"}:
        return True
    return bool(meta.keys() & LENS_KEYS) and not only_an_angle(meta)


def load(source: str, config: Config) -> Scene:
    """The frames whose pictures are there, in order of their names.

    Intrinsics (`intrinsics.read_intrinsics`) are those of the frame, else of the file; pictures of another size than the file's
    w and h take them along. Transparency is kept where any pixel has some. ``applied_transform`` and ``applied_scale``
    (nerfstudio) led from the user's coordinates to the file's and are undone by ``to_original``; instant-ngp's scale and
    offset, which place its unit cube, change nothing. Raises SceneError for files and ConfigError for settings without sense.
    """
    config.check()
    file = _file(source)
    meta = _merged(file.parent) if file.name == _TRAIN else read_frames(file)
    applied = _applied(file, meta)
    files = SceneFiles(file.parent, config.allow_outside)
    set_paths(meta["frames"], files)
    try:
        frames = sorted(present_frames(file, meta["frames"]), key=lambda frame: str(frame["path"]))
    except SceneError as error:
        raise _with_model(error, file.parent) from error
    paths = [frame["path"] for frame in frames]
    names = [os.path.relpath(path, file.parent) for path in paths]
    splits = _splits(file, meta, paths, files, config)

    sizes = [image_size(path) for path in paths]
    small = [shrunk(size, config.factor) for size in sizes]
    lenses = read_lenses(file, meta, frames, sizes, small)
    warn_unused(file, meta, _USED | LENS_KEYS, _OF_FRAMES)
    c2w = checked_rotations(torch.from_numpy(np.stack([frame["transform_matrix"] for frame in frames])), str(file), names)
    cameras = cameras_of(c2w[:, :3], lenses, small, config.pixel_offset)

    masks = _masks(file, frames, files)
    scene = normalised_scene(
        config,
        cameras,
        paths,
        masks,
        _points(file, meta, config.allow_outside),
        meta.get("aabb_scale") == 1,
        applied,
        name=(file.parent if file.name in ("transforms.json", _TRAIN) else file.with_suffix("")).resolve().name,
        format="transforms",
        splits=splits,
        view_names=names,
    )
    depths = _depths(file, meta, frames, small, files) if config.depths else None
    scene.depths = None if depths is None else depths / scale_of(scene.to_original)
    return scene


def listed_cameras(file: Path, scene: Scene) -> Cameras:
    """The cameras of a transforms file in the world of a scene's own, in the scene's coordinates; their pictures need not exist.

    Their size is the file's w and h, else that of the scene's first view. Raises SceneError as `load` does.
    """
    meta = read_frames(file)
    sides = zip(("w", "h"), (scene.cameras.width, scene.cameras.height), strict=True)
    width, height = (int(number(str(file), key, meta) or int(side[0])) for key, side in sides)
    sizes = [(width, height)] * len(meta["frames"])
    lenses = read_lenses(file, meta, meta["frames"], sizes, sizes)
    names = [frame["file_path"] for frame in meta["frames"]]
    c2w = checked_rotations(torch.from_numpy(np.stack([frame["transform_matrix"] for frame in meta["frames"]])), str(file), names)
    to_scene = torch.linalg.inv(_applied(file, meta) @ scene.to_original)
    return cameras_of(transform_poses(c2w[:, :3], to_scene).to(torch.float32), lenses, sizes, scene.cameras.pixel_offset)


def _points(file: Path, meta: dict[str, Any], allow_outside: bool) -> Float[Tensor, "n 3"] | None:
    """The points of the PLY file that ``ply_file_path`` names; None, with a warning, where it can't be read."""
    name = meta.get("ply_file_path")
    if not isinstance(name, str):
        return None
    path = file.parent / name
    if not allow_outside:
        inside(file.parent, path, f"the ply_file_path '{name}'", may_be_allowed=True)
    try:
        return read_ply(path)
    except SceneError as error:
        warnings.warn(f"{error} It is done without.", stacklevel=3)
        return None


def _file(source: str) -> Path:
    """The file that is read; of a folder the training split's where it says enough or is alone, which stands for those of all splits."""
    path = Path(source)
    if not path.is_dir():
        return path
    whole, train = path / "transforms.json", path / _TRAIN
    return train if train.is_file() and (says_more(peek_json(train)) or not whole.is_file()) else whole


def _merged(folder: Path) -> dict[str, Any]:
    """The content of transforms_train/val/test.json as that of one file with lists of the splits' pictures.

    What a file says differently from the training split's goes to its frames.
    """
    metas = {split: read_frames(folder / f"transforms_{split}.json") for split in _SPLITS if (folder / f"transforms_{split}.json").exists()}
    merged, frames = dict(metas["train"]), {}
    for split, meta in metas.items():
        own = {key: value for key, value in meta.items() if key != "frames" and metas["train"].get(key) != value}
        merged[f"{split}_filenames"] = [frame["file_path"] for frame in meta["frames"]]
        for frame in meta["frames"]:
            frames.setdefault(frame["file_path"], own | frame)
    if (folder / "transforms.json").exists():
        say(f"{folder}: the files of its splits are read; name {folder / 'transforms.json'} to read that instead.")
    return merged | {"frames": list(frames.values())}


def _with_model(error: SceneError, folder: Path) -> SceneError:
    """An error about absent pictures, with the COLMAP model that the folder has besides, if any."""
    models = find_models(folder)
    return SceneError(f"{str(error)[:-1]}; --scene.format colmap reads the model in {models[0]}.") if models else error


def _splits(file: Path, meta: dict[str, Any], paths: list[Path], scene: SceneFiles, config: Config) -> dict[str, list[int]]:
    """Views of each split: what the file lists, val and test standing in for each other; else every ``holdout``-th for testing."""
    listed: dict[str, list[int]] = {}
    known = {frame["path"] for frame in meta["frames"]}
    for split in _SPLITS:
        files = meta.get(f"{split}_filenames")
        if files is None:
            continue
        if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
            raise SceneError(f"{file}: {split}_filenames must be a list of file names.")
        wanted = set(scene.find(files, f"{file}: {split}_filenames"))
        if wanted - known:
            raise SceneError(f"{file}: {split}_filenames has {min(wanted - known)}, which is not among the frames.")
        listed[split] = [i for i, path in enumerate(paths) if path in wanted]
    test = listed.get("test", listed.get("val", [] if "train" in listed else held_out(len(paths), config.holdout)))
    return make_splits(str(file), len(paths), test, config.train_views, listed.get("train"), listed.get("val"))


def _masks(file: Path, frames: list[dict[str, Any]], scene: SceneFiles) -> list[Mask | None]:
    """The masks that frames name as mask_path, else those beside the pictures."""
    named = [frame.get("mask_path") for frame in frames]
    for frame, mask in zip(frames, named, strict=True):
        if not isinstance(mask, str | None):
            raise SceneError(f"{file}, {frame['file_path']} has mask_path {str(mask)[:40]!r}, which should be the name of a file.")
    if not any(named):
        return find_masks([frame["path"] for frame in frames])
    found = iter(scene.find([mask for mask in named if mask], "the mask", aside=True))
    return [Mask(next(found)) if mask else None for mask in named]


def _applied(file: Path, meta: dict[str, Any]) -> Float[Tensor, "4 4"]:
    """The similarity that led from the user's coordinates to the file's."""
    try:
        matrix = np.array(meta.get("applied_transform") or np.eye(4).tolist(), np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.empty(0)
    stretch = number(str(file), "applied_scale", meta)
    if matrix.shape in ((3, 4), (4, 4)) and (stretch is None or stretch > 0):
        applied = to_4x4(torch.from_numpy(matrix))
        turn = applied[:3, :3] / scale_of(applied)
        if torch.linalg.det(turn) > 0 and (turn @ turn.T - torch.eye(3)).abs().max() < 1e-3 and applied.isfinite().all():
            return torch.diag(torch.tensor([stretch or 1.0] * 3 + [1.0], dtype=torch.float64)) @ applied
    raise SceneError(f"{file}: applied_transform must be a 3x4 matrix that turns, shifts and scales evenly, applied_scale larger than 0.")


def _depths(
    file: Path, meta: dict[str, Any], frames: list[dict[str, Any]], sizes: list[tuple[int, int]], scene: SceneFiles
) -> Float[Tensor, "pixels"] | None:
    """Depths in the user's coordinates, where any frame names a file with some (nerfstudio: depth_file_path, instant-ngp: depth_path)."""
    named = [frame.get("depth_file_path") or frame.get("depth_path") for frame in frames]
    found = iter(scene.find([name for name in named if isinstance(name, str)], "the depth map", aside=True))
    there = [path if isinstance(name, str) and os.path.isfile(path := next(found)) else None for name in named]
    if not any(isinstance(name, str) for name in named):
        return None
    if absent := sum(path is None for path in there):
        warnings.warn(f"{file}: {absent} of {len(frames)} frames have no depth map.", stacklevel=3)
    unit = number(str(file), "depth_unit_scale_factor", meta) or number(str(file), "integer_depth_scale", meta)
    if unit is not None and unit <= 0:
        raise SceneError(f"{file}: the unit of the depth maps must be larger than 0, not {unit:g}.")
    return load_depths(there, sizes, unit)
