"""The pictures of a scene as one array."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from nerfit.scenes.images import read_images, resize_area
from nerfit.scenes.llff import image_files as picture_files

__all__ = ["load_pixels", "picture_files"]


def load_pixels(paths: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> UInt8[Tensor, "pixels channels"]:
    """Pictures resampled by area to ``sizes`` (width, height), one after another; RGB unless some pixel is transparent."""
    images = [resize_area(image, *size) for image, size in zip(read_images(paths), sizes, strict=True)]
    rgba = [np.pad(i, ((0, 0), (0, 0), (0, 4 - i.shape[2])), constant_values=255).reshape(-1, 4) for i in images]
    pixels = np.concatenate(rgba)
    return torch.from_numpy(pixels if pixels[:, 3].min() < 255 else np.ascontiguousarray(pixels[:, :3]))
