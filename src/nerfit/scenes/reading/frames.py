"""Frames of the transforms files of Blender, instant-ngp and nerfstudio scenes: pictures and their poses."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from nerfit.errors import SceneError
from nerfit.files import read_json
from nerfit.scenes.reading.picture_files import SceneFiles, few
from nerfit.scenes.splits import chosen_views


def read_frames(file: Path) -> dict[str, Any]:
    """The content of a transforms file, its ``frames`` checked and their ``transform_matrix`` as finite 4x4 arrays.

    Raises SceneError for a file that can't be read, is no JSON object, or lists no frames with a path and a matrix.
    """
    meta = read_json(file)
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if _has_transforms(meta if frames is None else frames):
        raise SceneError(
            f"{file} is a list of pictures with the key 'transform', as viewers of ACE0 and others write it, and no transforms.json; that "
            "is an object with fl_x (or K) and frames, each with file_path and transform_matrix (camera to world, OpenGL axes)."
        )
    if not isinstance(frames, list) or not frames:
        raise SceneError(f"{file} lists no frames.")
    for i, frame in enumerate(frames):
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str) or not frame["file_path"].strip("./\\ "):
            raise SceneError(f"{file}: frame {i} has no file_path.")
        try:
            matrix = np.array(frame.get("transform_matrix"), dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            matrix = np.empty(0)
        if matrix.shape == (3, 4):
            matrix = np.vstack([matrix, [0, 0, 0, 1]])
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise SceneError(f"{file}: the transform_matrix of frame {i} ({frame['file_path']}) is not a finite 4x4 matrix.")
        frame["transform_matrix"] = matrix
    return meta


def _has_transforms(frames: Any) -> bool:
    """Whether something is a list whose first entry has a pose by the key transform, and none by transform_matrix."""
    match frames:
        case [{"transform": _, **others}, *_]:
            return "transform_matrix" not in others
    return False


def read_splits(
    folder: Path, train_views: tuple[int, int, int], testskip: int, allow_outside: bool | None = None
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], dict[str, list[int]]]:
    """The transforms_train/val/test.json of a folder by split, the frames chosen from them, and each split's indices into that list.

    Frames have the ``path`` of their picture. Every ``testskip``-th frame of val and test is chosen; where one of
    these two files is missing, or all of its pictures are, so is the split.
    """
    files = {split: folder / f"transforms_{split}.json" for split in ("train", "val", "test")}
    metas = {split: read_frames(file) for split, file in files.items() if split == "train" or file.exists()}
    set_paths([frame for meta in metas.values() for frame in meta["frames"]], SceneFiles(folder, allow_outside))
    listed: dict[str, list[dict[str, Any]]] = {}
    for split, meta in metas.items():
        if there := present_frames(files[split], meta["frames"], needed=split == "train"):
            listed[split] = there
    trained = {frame["path"] for frame in listed["train"]}
    if both := [frame["file_path"] for split in ("val", "test") for frame in listed.get(split, []) if frame["path"] in trained]:
        told = f"{len(both)} pictures of val and test are trained on too, so their scores are too good"
        warnings.warn(f"{folder}: {told}: {few(both)}", stacklevel=3)
    frames, splits = chosen_views(listed, train_views, testskip)
    return {split: metas[split] for split in listed}, frames, splits


def set_paths(frames: list[dict[str, Any]], scene: SceneFiles) -> None:
    """Give all frames of a scene the ``path`` of the picture that each means, which need not exist."""
    for frame, path in zip(frames, scene.find([frame["file_path"] for frame in frames]), strict=True):
        frame["path"] = path


def present_frames(file: Path, frames: list[dict[str, Any]], needed: bool = True) -> list[dict[str, Any]]:
    """The frames of a transforms file whose pictures are there, each once; says which are left out.

    Raises SceneError where no picture is there that is ``needed``.
    """
    there = [frame for frame in frames if os.path.isfile(frame["path"])]
    if absent := [frame["file_path"] for frame in frames if not os.path.isfile(frame["path"])]:
        if not there and needed:
            raise SceneError(f"{file} lists {len(frames)} pictures of which none is there; the first should be {frames[0]['path']}.")
        end = "" if there else f"; nerfit render RUN --path {file} renders these cameras"
        warnings.warn(f"{file}: {len(absent)} of {len(frames)} pictures are not there and were left out: {few(absent)}{end}", stacklevel=4)
    first = {frame["path"]: frame for frame in reversed(there)}
    if len(first) < len(there):
        twice = [frame["file_path"] for frame in there if frame is not first[frame["path"]]]
        warnings.warn(
            f"{file}: {len(twice)} pictures are listed more than once, of which the first entry is used: {few(twice)}", stacklevel=4
        )
    return [frame for frame in there if frame is first[frame["path"]]]
