"""The cameras of a run, for other programs."""

import os
from pathlib import Path
from typing import Literal

import torch

from nerfit.cameras.poses import scale_of
from nerfit.errors import RunError
from nerfit.scenes.scene import Scene
from nerfit.scenes.writing import write_colmap, write_poses_bounds, write_transforms

CameraFormat = Literal["transforms", "colmap", "colmap-text", "poses_bounds"]


def export_cameras(run: Path, kind: CameraFormat, out: Path | None) -> Path:
    """Write the cameras of a run's scene, in the coordinates and with the picture names of its source; what was written.

    The folder is ``out``, else exports/<kind> in the run. The pictures stay where they are: the files name them as they lie in
    the scene's folder, COLMAP's as below the folder that holds them all.
    """
    folder = out or run / "exports" / kind
    scene = Scene.load(run)
    cameras = scene.original_cameras
    names = [name.replace(os.sep, "/") for name in scene.view_names or [f"{i:04d}.png" for i in range(len(cameras))]]
    try:
        if kind == "transforms":
            return write_transforms(folder, cameras, names)
        if kind == "poses_bounds":
            depths = torch.tensor(scene.depth_range or (scene.near, scene.far), dtype=torch.float64) * scale_of(scene.to_original)
            return write_poses_bounds(folder, cameras, names, depths.expand(len(cameras), 2))
        above = os.path.commonpath([Path(name).parent for name in names])
        return write_colmap(folder, cameras, [os.path.relpath(name, above) for name in names], binary=kind == "colmap")
    except OSError as error:
        raise RunError(f"{folder} can't be written: {error.strerror}.") from error
