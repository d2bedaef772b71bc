"""What the transforms files of Blender, instant-ngp and nerfstudio scenes share: a list of frames, each a picture and its pose."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from nerfit.errors import SceneError
from nerfit.scenes.images import SUFFIXES


def read_frames(file: Path) -> dict[str, Any]:
    """The content of a transforms file, its ``frames`` checked and their ``transform_matrix`` as finite 4x4 arrays.

    Raises SceneError for a file that can't be read, is no JSON object, or lists no frames with a path and a matrix.
    """
    try:
        meta = json.loads(file.read_text())
    except OSError as error:
        raise SceneError(f"{file} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise SceneError(f"{file} is not valid JSON ({error}).") from error
    frames = meta.get("frames") if isinstance(meta, dict) else None
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


def image_path(folder: Path, file_path: str) -> Path:
    """The picture that a frame names, which need not exist; a name without a picture's suffix stands for the first kind that is there.

    Raises SceneError for a path out of the folder, which only a scene in nerfit's own cache may name.
    """
    path = folder / file_path
    if path.suffix.lower() not in SUFFIXES:
        named = [Path(f"{path}{suffix}") for suffix in SUFFIXES]
        path = next((p for p in (path, *named) if exists(p)), named[0])
    inside = Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder))
    if not (inside or Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(cache_folder()))):
        raise SceneError(f"the frame '{file_path}' points outside {folder}.")
    return path


def cache_folder() -> Path:
    """Where things are kept that can be made again: $NERFIT_CACHE, else ~/.cache/nerfit."""
    return Path(os.environ.get("NERFIT_CACHE") or Path.home() / ".cache" / "nerfit")


def exists(path: Path) -> bool:
    """Whether a file is there; a name that no file can have (too long, say) is not."""
    try:
        return path.is_file()
    except OSError:
        return False
