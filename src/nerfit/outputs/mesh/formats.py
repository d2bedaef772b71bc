"""Meshes as files that other programs open: PLY, OBJ and binary glTF."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nerfit.errors import ConfigError
from nerfit.outputs.extras import extra
from nerfit.outputs.mesh.extract import Mesh
from nerfit.scenes.images import replacing, write_png
from nerfit.scenes.reading.ply import need_double, write_ply


def check_name(path: Path, textured: bool) -> None:
    """Raise ConfigError for a name whose ending is none of a mesh, or none of one with a texture."""
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise ConfigError(f"a mesh is written as .ply, .obj or .glb, not as '{path.name}'.")
    if textured and suffix == ".ply":
        raise ConfigError(f"a .ply file holds no texture: name {path.name} with .glb or .obj, or leave out --texture.")
    if suffix == ".glb":
        extra("trimesh", "a .glb file")


def beside(path: Path, textured: bool, filmed: bool) -> list[Path]:
    """The files that are written beside a mesh."""
    suffixes = [".mtl", ".png"] if textured and path.suffix.lower() == ".obj" else []
    return [path.with_suffix(suffix) for suffix in suffixes + [".mp4"] * filmed]


def write_mesh(path: Path, mesh: Mesh) -> Path:
    """Write a .ply, .obj (its texture beside it, as .mtl and .png) or .glb file; raises as `check_name`, and RunError for a full disk."""
    check_name(path, mesh.texture is not None)
    _WRITERS[path.suffix.lower()](path, mesh)
    return path


def _write_ply(path: Path, mesh: Mesh) -> None:
    write_ply(path, mesh.vertices, mesh.normals, mesh.colors, mesh.faces)


def _write_obj(path: Path, mesh: Mesh) -> None:
    """Text with the colour (0 to 1) after each vertex's position, as MeshLab and Blender read it, or a texture."""
    corners = mesh.faces + 1
    xyz = " ".join(["%.14g" if need_double(mesh.vertices) else "%.9g"] * 3)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        if mesh.texture is None:
            np.savetxt(file, torch.cat([mesh.vertices, mesh.colors / 255], 1).numpy(), f"v {xyz} %.4f %.4f %.4f")
        else:
            _write_material(path, mesh.texture.image)
            file.write(f"mtllib {path.with_suffix('.mtl').name}\nusemtl surface\n")
            np.savetxt(file, mesh.vertices.numpy(), f"v {xyz}")
            np.savetxt(file, mesh.texture.uv.numpy(), "vt %.6f %.6f")
        np.savetxt(file, mesh.normals.numpy(), "vn %.5f %.5f %.5f")
        if mesh.texture is None:
            np.savetxt(file, corners.repeat_interleave(2, 1).numpy(), "f %d//%d %d//%d %d//%d")
        else:
            triples = torch.stack([corners, mesh.texture.faces + 1, corners], -1)
            np.savetxt(file, triples.flatten(1).numpy(), "f %d/%d/%d %d/%d/%d %d/%d/%d")


def _write_material(path: Path, image: Tensor) -> None:
    """Beside an .obj file the picture, and the material that names it: unlit, for its colours are those of light already."""
    picture = path.with_suffix(".png")
    write_png(picture, image.numpy())
    with replacing(path.with_suffix(".mtl")) as temporary:
        temporary.write_text(f"newmtl surface\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {picture.name}\n", "utf-8")


def _write_glb(path: Path, mesh: Mesh) -> None:
    """Binary glTF, whose vertex colours are linear in light and whose textures are not (specification 2.0, sections 3.7.2.1 and 3.9.2).

    Its positions are float32: far from the origin they count from a point that the node's translation (a number of JSON) holds.
    """
    trimesh = extra("trimesh", "a .glb file")
    vertices, normals, faces = mesh.vertices, mesh.normals, mesh.faces
    placed = np.eye(4)
    if need_double(vertices):
        offset = ((vertices.amin(0) + vertices.amax(0)) / 2).round()
        vertices, placed[:3, 3] = vertices - offset, offset.numpy()
        where = " ".join(f"{x:.0f}" for x in offset.tolist())
        warnings.warn(f"{path}: glTF's positions have 7 digits; they count from {where}, the translation of their node.", stacklevel=4)
    if mesh.texture is None:
        color = mesh.colors.double() / 255
        linear = torch.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
        rgba = torch.cat([(linear * 255).round(), torch.full_like(color[:, :1], 255)], 1).to(torch.uint8)
        visual = trimesh.visual.ColorVisuals(vertex_colors=rgba.numpy())
    else:
        texture = mesh.texture
        vertices, normals, faces = vertices[texture.origin], normals[texture.origin], texture.faces
        picture = Image.fromarray(texture.image.numpy())
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0)
        visual = trimesh.visual.TextureVisuals(uv=texture.uv.numpy(), material=material)
    made = trimesh.Trimesh(vertices.numpy(), faces.numpy(), vertex_normals=normals.numpy(), visual=visual, process=False)
    scene = trimesh.Scene()
    scene.add_geometry(made, transform=placed)
    with replacing(path) as temporary:
        temporary.write_bytes(scene.export(file_type="glb", include_normals=True))


_WRITERS = {".ply": _write_ply, ".obj": _write_obj, ".glb": _write_glb}
