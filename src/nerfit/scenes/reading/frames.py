"""Frames of the transforms files of Blender, instant-ngp and nerfstudio scenes: pictures and their poses."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from nerfit.errors import SceneError
from nerfit.files import cache_folder, read_json
from nerfit.scenes.images import SUFFIXES
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
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
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
    folder: Path, train_views: tuple[int, int, int], testskip: int
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], dict[str, list[int]]]:
    """The transforms_train/val/test.json of a folder by split, the frames chosen from them, and each split's indices into that list.

    Every ``testskip``-th frame of val and test is chosen; where one of these two files is missing, so is the split.
    """
    files = {split: folder / f"transforms_{split}.json" for split in ("train", "val", "test")}
    metas = {split: read_frames(file) for split, file in files.items() if split == "train" or file.exists()}
    frames, splits = chosen_views({split: meta["frames"] for split, meta in metas.items()}, train_views, testskip)
    return metas, frames, splits


def image_path(folder: Path, file_path: str, allow_outside: bool = False) -> Path:
    """The picture that a frame names, which need not exist; a name without a picture's suffix stands for the first kind that is there.

    Raises SceneError for a path out of the folder, by a link too, unless that is allowed, as it is in nerfit's own cache.
    """
    path = folder / file_path
    if path.suffix.lower() not in SUFFIXES:
        named = [Path(f"{path}{suffix}") for suffix in SUFFIXES]
        path = next((p for p in (path, *named) if os.path.isfile(p)), named[0])
    return path if allow_outside else inside(folder, path, f"the frame '{file_path}'")


def inside(folder: Path, path: Path, what: str) -> Path:
    """A path that a scene's file names, which need not exist; SceneError for one out of its folder, unless that is in nerfit's cache."""
    real = os.path.realpath if os.path.isfile(path) else os.path.abspath
    here = Path(real(folder))
    if not (Path(real(path)).is_relative_to(here) or here.is_relative_to(real(cache_folder()))):
        raise SceneError(f"{what} points outside {folder}; add --scene.allow-outside if that is meant.")
    return path
