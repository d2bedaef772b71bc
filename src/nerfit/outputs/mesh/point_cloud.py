"""Point clouds of a field: what training views see, where several of them agree."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from nerfit.cameras.poses import to_4x4
from nerfit.errors import ConfigError, RunError, require_min
from nerfit.methods.base import Method
from nerfit.outputs.grids import transformed
from nerfit.outputs.surfaces import Surfaces, see_surfaces
from nerfit.scenes.images import to_bytes
from nerfit.scenes.reading.ply import write_ply
from nerfit.scenes.scene import Scene

_NEIGHBOURS = 8
"""Views that a point is looked for in."""


@dataclass(kw_only=True)
class PointsConfig:
    """Options of a point cloud."""

    count: int = 1_000_000
    """Largest number of points."""
    views: int = 100
    """Largest number of training views whose depth is rendered."""
    pixels: int = 400
    """Longest side of those views' pictures."""
    agreeing: int = 2
    """Number of other views that must show a point; it must also exceed the number of views that see through it. 0 = keep all points."""
    tolerance: float = 0.01
    """Difference in depth up to which views agree, as a share of the depth."""
    coordinates: Literal["original", "normalised"] = "original"
    """original = coordinates of the scene's files; normalised = those that nerfit trains in."""

    def check(self) -> None:
        """Raise ConfigError for numbers without sense."""
        require_min("--", self, count=1, views=1, pixels=8, agreeing=0)
        if not self.tolerance > 0:
            raise ConfigError(f"--tolerance must be above 0, not {self.tolerance:g}.")


@dataclass
class PointCloud:
    """Points with the surface's unit normals, towards the cameras, and colours."""

    points: Float[Tensor, "n 3"]
    normals: Float[Tensor, "n 3"]
    colors: UInt8[Tensor, "n 3"]


def make_points(method: Method, scene: Scene, config: PointsConfig, chunk: int, report: Any = lambda *_: None) -> PointCloud:
    """Points that training views of a trained field see; ``report(done, of)`` is called after each view."""
    config.check()
    surfaces = see_surfaces(method, scene, config.views, config.pixels, chunk, report)
    parts = [_of_view(surfaces, view, config.agreeing, config.tolerance) for view in range(len(surfaces))]
    points, normals, colors = (torch.cat(part) for part in zip(*parts, strict=True))
    if not len(points):
        raise RunError("no point appears in several views: train longer, or lower --agreeing.")
    chosen = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[: config.count]
    to_output = scene.to_original.double() if config.coordinates == "original" else torch.eye(4, dtype=torch.float64)
    outwards = torch.nn.functional.normalize(normals[chosen].double() @ to_output[:3, :3].T, dim=-1)
    return PointCloud(transformed(to_output, points[chosen]), outwards, torch.from_numpy(to_bytes(colors[chosen].numpy())))


def _of_view(surfaces: Surfaces, view: int, agreeing: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Points, normals and colours that a view sees and enough of its neighbours confirm."""
    grid = surfaces.points(view)
    normals, smooth = surface_normals(grid, surfaces.cameras.centers[view])
    points, colors = grid[1:-1, 1:-1][smooth], surfaces.colors[view][1:-1, 1:-1][smooth]
    kept = confirmed(surfaces, view, points, agreeing, tolerance)
    return points[kept], normals[smooth][kept], colors[kept]


def surface_normals(points: Float[Tensor, "h w 3"], eye: Float[Tensor, "3"]) -> tuple[Float[Tensor, "h-2 w-2 3"], Bool[Tensor, "h-2 w-2"]]:
    """Unit normals, towards ``eye``, of the inner points of a picture, and which lie on a surface that runs on all around them.

    Not those whose step to one side is more than three times the one to the other, as at an edge in depth.
    """
    right, left = points[1:-1, 2:] - points[1:-1, 1:-1], points[1:-1, 1:-1] - points[1:-1, :-2]
    down, up = points[2:, 1:-1] - points[1:-1, 1:-1], points[1:-1, 1:-1] - points[:-2, 1:-1]
    across = torch.linalg.cross(right + left, down + up)
    towards = ((eye - points[1:-1, 1:-1]) * across).sum(-1, keepdim=True).sign()
    steps = torch.stack([right, left, down, up]).norm(dim=-1)
    even = steps.amax(0) <= 3 * steps.amin(0)
    return torch.nn.functional.normalize(across * towards, dim=-1), even & points[1:-1, 1:-1].isfinite().all(-1) & (towards[..., 0] != 0)


def confirmed(surfaces: Surfaces, view: int, points: Float[Tensor, "n 3"], agreeing: int, tolerance: float) -> Bool[Tensor, "n"]:
    """Which points at least ``agreeing`` of the nearest other views (or all, of fewer) see too, and more than see through them."""
    centers = to_4x4(surfaces.cameras.c2w)[:, :3, 3]
    nearest = (centers - centers[view]).norm(dim=-1).argsort()[1 : 1 + _NEIGHBOURS]
    agree, through = torch.zeros(len(points)), torch.zeros(len(points))
    for other in nearest.tolist():
        behind, visible = surfaces.behind(other, points)
        margin = tolerance * (points - surfaces.cameras.centers[other]).norm(dim=-1)
        agree += visible & (behind.abs() <= margin)
        through += visible & (behind > margin)
    needed = min(agreeing, len(nearest))
    return (agree >= needed) & ((agree > through) | (needed == 0))


def check_points_name(path: Path) -> None:
    """Raise ConfigError for a name without .ply."""
    if path.suffix.lower() != ".ply":
        raise ConfigError(f"points are written as .ply, not as '{path.name}'.")


def write_points(path: Path, cloud: PointCloud) -> Path:
    """Write a .ply file; raises ConfigError for another ending and RunError when it can't be written."""
    check_points_name(path)
    return write_ply(path, cloud.points, cloud.normals, cloud.colors)
