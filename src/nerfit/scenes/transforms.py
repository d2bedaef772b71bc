"""Captures described by one ``transforms.json``: instant-ngp (Müller et al. 2022) and nerfstudio (Tancik et al. 2023)."""

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.cameras.poses import transform_poses
from nerfit.cameras.rotations import checked_rotations
from nerfit.errors import SceneError
from nerfit.scenes import placing
from nerfit.scenes.frames import exists, image_path, read_frames
from nerfit.scenes.images import image_size
from nerfit.scenes.intrinsics import cameras_of, read_intrinsics
from nerfit.scenes.pixels import find_masks, load_pixels
from nerfit.scenes.placing import PlacedConfig
from nerfit.scenes.ply import read_ply
from nerfit.scenes.scene import Bounds, Scene, pick

_SPLITS = ("train", "val", "test")


@dataclass
class Config(PlacedConfig):
    """How a transforms.json is read."""


def detect(source: str) -> bool:
    """A folder with transforms.json, or a JSON file that has frames; a Blender folder is neither."""
    file = _file(source)
    if file.suffix.lower() != ".json" or not file.is_file() or (file.parent / "transforms_train.json").exists():
        return False
    if file.name == "transforms.json":
        return True
    try:
        meta = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(meta, dict) and "frames" in meta


def load(source: str, config: Config) -> Scene:
    """The frames whose pictures are there, in order of their names.

    Intrinsics (`read_intrinsics`) are those of the frame, else of the file; pictures of another size than the file's w and h take
    them along.
    Transparency is kept where any pixel has some. Raises SceneError for files and ConfigError for settings without sense.
    """
    config.check()
    file = _file(source)
    meta = read_frames(file)
    paths, frames = _present(file, meta["frames"])
    names = [os.path.relpath(path, file.parent) for path in paths]
    splits = _splits(file, meta, paths, config.holdout)
    splits["train"] = [splits["train"][i] for i in pick(len(splits["train"]), config.train_views)]

    sizes = [image_size(path) for path in paths]
    small = [(max(1, w // config.factor), max(1, h // config.factor)) for w, h in sizes]
    whats = [f"{file}, {frame['file_path']}" for frame in frames]
    lenses = [read_intrinsics(what, frame, meta, *both) for what, frame, *both in zip(whats, frames, sizes, small, strict=True)]
    c2w = checked_rotations(torch.from_numpy(np.stack([frame["transform_matrix"] for frame in frames])), str(file), names)
    cameras = cameras_of(c2w[:, :3], lenses, small, config.pixel_offset)

    masks = _masks(file, frames, paths)
    pixels = load_pixels(paths, small, masks)
    cut_out = pixels.shape[1] == 4 and not any(masks)
    bounds: Bounds | None = "object" if cut_out or meta.get("aabb_scale") == 1 else None
    placed = placing.place(cameras, _points(file, meta), config.bounds or bounds, config.centre)
    cameras.c2w = transform_poses(c2w, placed.transform).to(torch.float32)
    return Scene(
        name=(file.parent if file.name == "transforms.json" else file.with_suffix("")).resolve().name,
        format="transforms",
        cameras=cameras,
        near=placed.near if config.near is None else config.near,
        far=placed.far if config.far is None else config.far,
        splits=splits,
        pixels=pixels,
        masked=any(masks),
        bounds=placed.bounds,
        background=config.background,
        default_path=placed.default_path,
        view_names=names,
        to_original=torch.linalg.inv(placed.transform),
        depth_range=placed.depth_range,
    )


def _points(file: Path, meta: dict[str, Any]) -> Float[Tensor, "n 3"] | None:
    """The points of the PLY file that ``ply_file_path`` names; None, said aloud, where it can't be read."""
    name = meta.get("ply_file_path")
    if not isinstance(name, str):
        return None
    try:
        return read_ply(file.parent / name)
    except SceneError as error:
        warnings.warn(f"{error} It is done without.", stacklevel=3)
        return None


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


def _masks(file: Path, frames: list[dict[str, Any]], paths: list[Path]) -> list[Path | None]:
    """What the frames name as mask_path, else the masks that lie beside the pictures."""
    named = [frame.get("mask_path") for frame in frames]
    for frame, mask in zip(frames, named, strict=True):
        if not isinstance(mask, str | None):
            raise SceneError(f"{file}, {frame['file_path']} has mask_path {str(mask)[:40]!r}, which should be the name of a file.")
    return [mask and image_path(file.parent, mask) for mask in named] if any(named) else find_masks(paths)
