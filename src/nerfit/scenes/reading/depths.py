"""Depth maps that come with a capture: 16-bit pictures and NumPy arrays."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from nerfit.errors import SceneError
from nerfit.scenes.images import read_header


def load_depths(paths: Sequence[Path | None], sizes: Sequence[tuple[int, int]], unit: float | None) -> Float[Tensor, "pixels"]:
    """Depths of pictures of ``sizes`` (width, height), one after another, rows first; 0 = unknown, as where there is no file.

    Each pixel takes the nearest value: a mean over an object's edge would be a depth where nothing is. ``unit`` is the length of
    a step; None means millimetres for whole numbers and metres for others, as nerfstudio has them. Raises SceneError.
    """
    depths = np.zeros(sum(width * height for width, height in sizes), np.float32)
    start = 0
    for path, (width, height) in zip(paths, sizes, strict=True):
        end = start + width * height
        if path is not None:
            values = _read(path)
            rows, columns = values.shape
            if abs(rows - columns * height / width) > 1 + 0.02 * rows:
                raise SceneError(f"{path} is {columns}x{rows}, of another shape than its picture; it was rotated or cropped.")
            with np.errstate(invalid="ignore", over="ignore"):
                nearest = values[_nearest(rows, height)[:, None], _nearest(columns, width)].astype(np.float64)
            step = unit or (1.0 if values.dtype.kind == "f" else 1e-3)
            depths[start:end] = np.nan_to_num(nearest * step, posinf=0.0, neginf=0.0).clip(0, 1e30).ravel()
        start = end
    return torch.from_numpy(depths)


def _nearest(old: int, new: int) -> np.ndarray:
    """For each of ``new`` cells the one of ``old`` that its centre lies in."""
    return ((np.arange(new) + 0.5) * old / new).astype(int)


def _read(path: Path) -> Shaped[np.ndarray, "height width"]:
    """The numbers of a depth map as they are stored."""
    stored = path.suffix.lower() == ".npy"
    if not stored:
        read_header(path)  # refuses pictures that are too large
    try:
        if stored:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with Image.open(path) as image:
                values = np.asarray(image)
    except Exception as error:  # damaged files make Pillow and NumPy raise nearly anything
        raise SceneError(f"{path} can't be read as a depth map: {str(error).rstrip('.')}.") from error
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or not values.size or values.dtype.kind not in "iuf" or values.dtype == np.uint8:
        kind = f"{'x'.join(map(str, values.shape))} numbers of the kind {values.dtype}"
        raise SceneError(f"{path} holds {kind}, where a depth map has a number of 16 bits or more for each pixel.")
    return values
