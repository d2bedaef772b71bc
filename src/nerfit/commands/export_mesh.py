"""nerfit export mesh: a run as triangles."""

from dataclasses import dataclass
from typing import Any

from nerfit.cameras.poses import world_up
from nerfit.commands.export_options import FieldOptions, extent, report, text
from nerfit.outputs.mesh.extract import MeshConfig, make_mesh, pieces
from nerfit.outputs.mesh.formats import beside, check_name, write_mesh
from nerfit.outputs.mesh.turntable import write_turntable

__all__ = ["Options", "run", "text"]


@dataclass(kw_only=True)
class Options(FieldOptions, MeshConfig):
    """nerfit export mesh RUN: triangles with colours, as .ply, .obj or .glb, in the coordinates of the scene's own files.

    Examples:
      nerfit export mesh runs/lego-instant
      nerfit export mesh runs/lego-instant --resolution 384 --largest --faces 200000 --out lego.glb
      nerfit export mesh runs/lego-instant --faces 50000 --texture 2048 --close-holes --turntable
      nerfit export mesh runs/garden-instant --box -1 -1 -0.5 1 1 0.5 --coordinates normalised
    """

    turntable: bool = False
    """Also film one turn of the mesh, as .mp4 beside it."""


def run(options: Options) -> dict[str, Any]:
    """Write a mesh; returns where it is and how large."""
    options.check()
    textured, filmed = options.texture is not None, options.turntable
    path = options.place("mesh.glb" if textured else "mesh.ply", lambda path: beside(path, textured, filmed))
    check_name(path, textured)
    trained = options.open()
    mesh = make_mesh(trained.method, trained.scene, options, trained.chunk, report)
    write_mesh(path, mesh)
    parts = pieces(mesh.faces, len(mesh.vertices)).bincount()
    share = round(float(parts.max() / parts.sum()), 4)
    answer = {"written": str(path), "vertices": len(mesh.vertices), "faces": len(mesh.faces), "largest_piece": share}
    if options.turntable:
        cameras = trained.scene.original_cameras if options.coordinates == "original" else trained.scene.cameras
        answer["turntable"] = str(write_turntable(path.with_suffix(".mp4"), mesh, world_up(cameras.c2w)))
    return answer | extent(mesh.vertices)
