"""What `nerfit export` does: a run as a mesh, points, a web page or cameras, each as one function from options to plain data."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nerfit.cameras.poses import world_up
from nerfit.commands.options import DeviceOptions, RunOptions
from nerfit.errors import RunError
from nerfit.outputs.exports import CameraFormat, export_cameras
from nerfit.outputs.mesh.extract import MeshConfig, make_mesh, pieces
from nerfit.outputs.mesh.formats import beside, check_name, write_mesh
from nerfit.outputs.mesh.point_cloud import PointsConfig, check_points_name, make_points, write_points
from nerfit.outputs.mesh.turntable import write_turntable
from nerfit.outputs.web.bake import BakeConfig, bake, likeness
from nerfit.outputs.web.page import check_web_name, write_web
from nerfit.runs import Run, numbered_folders, open_run

Report = Callable[[int, int], None]


@dataclass(kw_only=True)
class ExportOptions(RunOptions):
    """Options of every export."""

    out: Path | None = None
    """Where to write; none = into exports/ in the run."""


@dataclass(kw_only=True)
class FieldOptions(ExportOptions, DeviceOptions):
    """Options of every export that asks the trained field."""

    def open(self) -> Run:
        """The trained run."""
        return open_run(self.run, images=False, threads=self.threads, device=self.device)

    def place(self, name: str, beside: Callable[[Path], list[Path]] = lambda path: []) -> Path:
        """Where to write what is called ``name`` by default: a file that is not there yet, nor are those to be written ``beside`` it.

        Raises RunError where nothing can be written, before any work is done.
        """

        def taken(path: Path) -> list[Path]:
            return [p for p in (path, *beside(path)) if p.exists()]

        if self.out is None:
            stem, suffix = Path(name).stem, Path(name).suffix
            numbered = (p.with_name(p.name + suffix) for p in numbered_folders(self.run / "exports" / stem))
            return _writable(next(p for p in numbered if not taken(p)))
        for there in taken(self.out):
            raise RunError(f"{there} exists already: choose another --out.")
        return _writable(self.out)


@dataclass(kw_only=True)
class MeshOptions(FieldOptions, MeshConfig):
    """nerfit export mesh RUN: triangles with colours, as .ply, .obj or .glb, in the coordinates of the scene's own files.

    Examples:
      nerfit export mesh runs/lego-instant
      nerfit export mesh runs/lego-instant --resolution 384 --largest --faces 200000 --out lego.glb
      nerfit export mesh runs/lego-instant --faces 50000 --texture 2048 --close-holes --turntable
      nerfit export mesh runs/garden-instant --box -1 -1 -0.5 1 1 0.5 --coordinates normalised
    """

    turntable: bool = False
    """Also film one turn of the mesh, as .mp4 beside it."""


@dataclass(kw_only=True)
class PointsOptions(FieldOptions, PointsConfig):
    """nerfit export points RUN: a .ply of coloured points with normals, in the coordinates of the scene's own files.

    Examples:
      nerfit export points runs/lego-instant --count 200000
    """


@dataclass(kw_only=True)
class CamerasOptions(ExportOptions):
    """nerfit export cameras RUN: the cameras of a run's scene for other programs, in the coordinates of the scene's own files.

    Examples:
      nerfit export cameras runs/fox-instant
      nerfit export cameras runs/fox-instant --format colmap --out fox/colmap
    """

    format: CameraFormat = "transforms"
    """transforms.json (nerfstudio, instant-ngp), a COLMAP model in sparse/0, or LLFF's poses_bounds.npy."""


@dataclass(kw_only=True)
class WebOptions(FieldOptions, BakeConfig):
    """nerfit export web RUN: one HTML file that shows the field in any browser with WebGL 2, to turn and to come near.

    What lies beyond the box is left out. The answer says how near its pictures are to the field's own (PSNR of three test
    views, of at most 400 pixels, within the box).

    Examples:
      nerfit export web runs/lego-instant
      nerfit export web runs/garden-instant --box -1 -1 -0.5 1 1 0.5 --resolution 256
    """


def export_mesh(options: MeshOptions, report: Report) -> dict[str, Any]:
    """Write a mesh; returns where it is and how large."""
    options.check()
    textured, filmed = options.texture is not None, options.turntable
    path = options.place("mesh.glb" if textured else "mesh.ply", lambda path: beside(path, textured, filmed))
    check_name(path, textured)
    run = options.open()
    mesh = make_mesh(run.method, run.scene, options, run.chunk, report)
    write_mesh(path, mesh)
    parts = pieces(mesh.faces, len(mesh.vertices)).bincount()
    share = round(float(parts.max() / parts.sum()), 4)
    answer = {"written": str(path), "vertices": len(mesh.vertices), "faces": len(mesh.faces), "largest_piece": share}
    if options.turntable:
        seen = run.scene.original_cameras if options.coordinates == "original" else run.scene.cameras
        answer["turntable"] = str(write_turntable(path.with_suffix(".mp4"), mesh, world_up(seen.c2w)))
    return answer | _extent(mesh.vertices)


def export_points(options: PointsOptions, report: Report) -> dict[str, Any]:
    """Write a point cloud; returns where it is and how large."""
    options.check()
    path = options.place("points.ply")
    check_points_name(path)
    run = options.open()
    cloud = make_points(run.method, run.scene, options, run.chunk, report)
    return {"written": str(write_points(path, cloud)), "points": len(cloud.points)} | _extent(cloud.points)


def write_cameras(options: CamerasOptions, report: Report) -> dict[str, Any]:
    """Write the views' cameras; returns where they are."""
    return {"written": str(export_cameras(options.run, options.format, options.out))}


def export_web(options: WebOptions, report: Report) -> dict[str, Any]:
    """Write a page; returns where it is, how large, and how near its pictures are to the field's own."""
    options.check()
    path = options.place("web.html")
    check_web_name(path)
    run = options.open()
    baked = bake(run.method, run.scene, options, run.chunk, report)
    write_web(path, run.scene, baked)
    return {"written": str(path), "megabytes": round(path.stat().st_size / 1e6, 2), "blocks": len(baked.blocks)} | {
        "psnr": [round(p, 2) for p in likeness(run.method, run.scene, baked, run.chunk)]
    }


def _writable(path: Path) -> Path:
    """``path``, if something can be written there; RunError where its folder is none, or is protected."""
    above = next(p for p in path.absolute().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise RunError(
            f"{path} can't be written, for {above} is {'write-protected' if above.is_dir() else 'no folder'}: choose another --out."
        )
    return path


def _extent(points: torch.Tensor) -> dict[str, Any]:
    low, high = points.amin(0), points.amax(0)
    return {"low": [round(x, 6) for x in low.tolist()], "high": [round(x, 6) for x in high.tolist()]}


class Export(NamedTuple):
    """A kind of export: its options, and what writes it."""

    options: type
    write: Callable[[Any, Report], dict[str, Any]]


EXPORTS = {
    "mesh": Export(MeshOptions, export_mesh),
    "points": Export(PointsOptions, export_points),
    "cameras": Export(CamerasOptions, write_cameras),
    "web": Export(WebOptions, export_web),
}
