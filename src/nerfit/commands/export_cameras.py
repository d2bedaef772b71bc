"""nerfit export cameras: the cameras of a run for other programs."""

from dataclasses import dataclass
from typing import Any

from nerfit.commands.export_options import ExportOptions, text
from nerfit.outputs.exports import CameraFormat, export_cameras

__all__ = ["Options", "run", "text"]


@dataclass(kw_only=True)
class Options(ExportOptions):
    """nerfit export cameras RUN: the cameras of a run's scene for other programs, in the coordinates of the scene's own files.

    Examples:
      nerfit export cameras runs/fox-instant
      nerfit export cameras runs/fox-instant --format colmap --out fox/colmap
    """

    format: CameraFormat = "transforms"
    """transforms.json (nerfstudio, instant-ngp), a COLMAP model in sparse/0, or LLFF's poses_bounds.npy."""


def run(options: Options) -> dict[str, Any]:
    """Write the views' cameras; returns where they are."""
    return {"written": str(export_cameras(options.run, options.format, options.out))}
