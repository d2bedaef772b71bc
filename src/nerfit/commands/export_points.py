"""nerfit export points: a run as coloured points."""

from dataclasses import dataclass
from typing import Any

from nerfit.commands.export_options import FieldOptions, extent, report, text
from nerfit.outputs.mesh.point_cloud import PointsConfig, check_points_name, make_points, write_points

__all__ = ["Options", "run", "text"]


@dataclass(kw_only=True)
class Options(FieldOptions, PointsConfig):
    """nerfit export points RUN: a .ply of coloured points with normals, in the coordinates of the scene's own files.

    Examples:
      nerfit export points runs/lego-instant --count 200000
    """


def run(options: Options) -> dict[str, Any]:
    """Write a point cloud; returns where it is and how large."""
    options.check()
    path = options.place("points.ply")
    check_points_name(path)
    trained = options.open()
    cloud = make_points(trained.method, trained.scene, options, trained.chunk, report)
    return {"written": str(write_points(path, cloud)), "points": len(cloud.points)} | extent(cloud.points)
