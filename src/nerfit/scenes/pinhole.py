"""What small formats have in common: pictures with pinhole cameras, already in the axes and units of a scene."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from nerfit.cameras import Cameras
from nerfit.cameras.rotations import checked_rotations
from nerfit.scenes.pixels import load_pixels
from nerfit.scenes.scene import Scene, SceneConfig


@dataclass
class View:
    """A picture ``file``, its ``size`` (width, height), its OpenGL pose and its fx fy cx cy in pixels of that size."""

    file: Path
    size: tuple[int, int]
    c2w: Float[np.ndarray, "4 4"]
    lens: Sequence[float]


def pinhole_scene(
    source: Path, views: Sequence[View], near: float, far: float, config: SceneConfig, factor: int = 1, **about: Any
) -> Scene:
    """The scene of an object seen in ``views``, pictures and intrinsics shrunk by ``factor``.

    The config's near and far go before those given; ``about`` are further fields of `Scene` (format, splits, ...).
    Raises SceneError for poses that are none.
    """
    names = [str(view.file.relative_to(source)) for view in views]
    lens, sizes = (torch.tensor(list(rows), dtype=torch.float64) for rows in zip(*((view.lens, view.size) for view in views), strict=True))
    c2w = checked_rotations(torch.from_numpy(np.stack([view.c2w for view in views])), str(source), names)
    small = [(max(1, w // factor), max(1, h // factor)) for w, h in (view.size for view in views)]
    width, height = torch.tensor(small).T
    fx, fy, cx, cy = (lens * (torch.tensor(small) / sizes).repeat(1, 2)).to(torch.float32).T
    near, far = config.reach(near, far)
    return Scene(
        name=source.resolve().name,
        cameras=Cameras(c2w[:, :3].to(torch.float32), fx, fy, cx, cy, width, height, pixel_offset=config.pixel_offset),
        near=near,
        far=far,
        pixels=load_pixels([view.file for view in views], small),
        background=config.background,
        view_names=names,
        **about,
    )
