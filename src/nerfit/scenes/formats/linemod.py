"""LINEMOD scenes of nerf-pytorch: transforms_train/val/test.json whose frames carry a 3x3 ``intrinsic_matrix`` each."""

from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np

from nerfit.errors import SceneError, require_min
from nerfit.files import peek_json
from nerfit.scenes.images import image_size
from nerfit.scenes.reading.frames import read_splits
from nerfit.scenes.reading.pinhole import View, pinhole_scene
from nerfit.scenes.scene import Scene, SceneConfig


@dataclass
class Config(SceneConfig):
    """Options of LINEMOD scenes; unless given, near is the files' least near rounded down, far their largest rounded up."""

    factor: int = 1
    """Shrink the pictures by this factor (2 = the old half_res)."""
    testskip: int = 1
    """Keep every Nth validation and test view."""


def detect(source: str) -> bool:
    """A folder whose transforms_train.json gives an intrinsic_matrix in its first frame."""
    match peek_json(Path(source) / "transforms_train.json"):
        case {"frames": [{"intrinsic_matrix": _}, *_]}:
            return True
    return False


def load(source: str, config: Config) -> Scene:
    """Read the three splits; a missing val or test file leaves that split empty.

    ``intrinsic_matrix`` is OpenCV's, which puts pixel centres on whole numbers, and is each frame's own. Raises
    SceneError for files and ConfigError for settings without sense.
    """
    require_min("scene.", config, factor=1, testskip=0)
    folder = Path(source)
    metas, frames, splits = read_splits(folder, config.train_views, config.testskip)
    ends = [_range(folder / f"transforms_{split}.json", meta) for split, meta in metas.items() if split != "val"]
    views = []
    for frame in frames:
        views.append(View(frame["path"], image_size(frame["path"]), frame["transform_matrix"], _lens(folder, frame)))
    near, far = floor(min(near for near, _ in ends)), ceil(max(far for _, far in ends))
    return pinhole_scene(folder, views, near, far, config, config.factor, format="linemod", splits=splits)


def _range(file: Path, meta: dict[str, Any]) -> tuple[float, float]:
    match meta:
        case {"near": int() | float() as near, "far": int() | float() as far} if 0 <= near < far < 1e9:
            return near, far
    raise SceneError(f"{file} must give the distances near and far of its objects, two numbers.")


def _lens(folder: Path, frame: dict[str, Any]) -> tuple[float, float, float, float]:
    try:
        k = np.array(frame.get("intrinsic_matrix"), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        k = np.empty(0)
    if k.shape != (3, 3) or not np.isfinite(k).all():
        raise SceneError(f"{folder}: the intrinsic_matrix of {frame['file_path']} is not a finite 3x3 matrix.")
    return k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5
