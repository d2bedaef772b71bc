"""A film of a mesh that turns: its colours on the left, its shape on the right."""

import math
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.cameras import focal_from_fov
from nerfit.cameras.paths import pose_spherical
from nerfit.cameras.poses import to_4x4, view_frame
from nerfit.outputs.mesh.extract import Mesh
from nerfit.outputs.mesh.rasterise import rasterise
from nerfit.outputs.pictures.video import write_video

_FOV = math.radians(35)


def write_turntable(path: Path, mesh: Mesh, up: Float[Tensor, "3"], frames: int = 90, size: int = 480) -> Path:
    """Film one turn of a mesh about ``up``, drawn over white, at 30 frames a second; returns the path written."""
    mesh = replace(mesh, vertices=mesh.vertices - mesh.vertices.mean(0))  # cameras are float32
    cameras = orbit(mesh.vertices, up, frames, size)
    return write_video(path, (_frame(mesh, cameras[i]) for i in range(frames)))


def _frame(mesh: Mesh, camera: Cameras) -> Float[Tensor, "size 2*size 3"]:
    """The mesh's colours, and grey lit from the eye's side."""
    values, face = render_vertices(mesh.vertices, mesh.faces, torch.cat([mesh.colors / 255, mesh.normals], -1), camera)
    normals = torch.nn.functional.normalize(values[..., 3:], dim=-1)
    grey = 0.1 + 0.8 * (normals @ camera.c2w[0, :, 2].double()).abs()
    both = torch.cat([values[..., :3], grey[..., None].expand(-1, -1, 3)], 1)
    return torch.where(torch.cat([face, face], 1)[..., None] >= 0, both, 1.0)


def orbit(vertices: Float[Tensor, "v 3"], up: Float[Tensor, "3"], frames: int, size: int) -> Cameras:
    """Cameras on a turn about a mesh, 20 degrees above its middle, in whose square pictures all of it has room."""
    middle = (vertices.amin(0) + vertices.amax(0)) / 2
    distance = 1.1 * float((vertices - middle).norm(dim=-1).max()) / math.sin(_FOV / 2)
    stand = to_4x4(view_frame(middle, up, torch.tensor([0.0, 1.0, 0.0])))
    poses = [pose_spherical(360 * i / frames, -20, distance) for i in range(frames)]
    return Cameras.pinhole((stand @ to_4x4(torch.stack(poses)))[:, :3], focal_from_fov(_FOV, size), size, size)


def render_vertices(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], values: Float[Tensor, "v k"], camera: Cameras
) -> tuple[Float[Tensor, "height width k"], Int[Tensor, "height width"]]:
    """Values at vertices as a perspective camera sees them, 0 where it sees no triangle, and which triangle each pixel shows (-1: none)."""
    c2w = camera.c2w[0].double()
    local = (vertices.double() - c2w[:, 3]) @ c2w[:, :3]
    nearness = torch.where(local[:, 2] < 0, -1 / local[:, 2], 0.0)
    lens = torch.stack([camera.fx[0], -camera.fy[0], camera.cx[0], camera.cy[0]]).double()
    positions = local[:, :2] * nearness[:, None] * lens[:2] + lens[2:]
    face, weights = rasterise(positions[faces], nearness[faces], int(camera.width[0]), int(camera.height[0]))
    image = (weights[..., None] * values.double()[faces[face.clamp(min=0)]]).sum(-2)
    return image, face
