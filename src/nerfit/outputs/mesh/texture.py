"""A mesh's colours as a picture: charts laid flat by xatlas, and each of their texels coloured by the field."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nerfit.outputs.extras import extra
from nerfit.outputs.mesh.rasterise import rasterise

_GUTTER = 2
"""Texels between charts."""

Paint = Callable[[Float[Tensor, "n 3"], Float[Tensor, "n 3"]], UInt8[Tensor, "n 3"]]
"""Colours of points on the mesh with their outward normals."""


@dataclass
class Texture:
    """A square picture, and where in it each triangle's corners lie: ``uv`` (u right, v up, 0 to 1) of ``faces``'s own vertices.

    ``origin`` says which of the mesh's vertices each of those is; along seams there are several of one.
    """

    image: UInt8[Tensor, "size size 3"]
    origin: Int[Tensor, "n"]
    faces: Int[Tensor, "f 3"]
    uv: Float[Tensor, "n 2"]


def make_texture(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], normals: Float[Tensor, "v 3"], size: int, paint: Paint
) -> Texture:
    """A texture of ``size`` x ``size`` texels; texels beside the charts repeat the nearest one's colour. Needs the extra `mesh`."""
    from scipy.ndimage import distance_transform_edt

    origin, flat, uv = _unwrapped(vertices - vertices.mean(0), faces, size)
    corners = torch.stack([uv[:, 0], 1 - uv[:, 1]], -1)[flat] * size
    face, weights = rasterise(corners, torch.ones(len(flat), 3), size, size)
    covered = face >= 0
    inside, share = faces[face[covered]], weights[covered][..., None]
    normal = torch.nn.functional.normalize((share * normals[inside]).sum(1), dim=-1)
    image = torch.zeros(size, size, 3, dtype=torch.uint8)
    image[covered] = paint((share * vertices[inside]).sum(1), normal)
    y, x = distance_transform_edt(~covered.numpy(), return_distances=False, return_indices=True)  # type: ignore[misc]
    return Texture(image[torch.from_numpy(y).long(), torch.from_numpy(x).long()], origin, flat, uv)


def _unwrapped(vertices: Tensor, faces: Tensor, size: int) -> tuple[Int[Tensor, "n"], Int[Tensor, "f 3"], Float[Tensor, "n 2"]]:
    """Charts without overlap: the origin of their vertices, their triangles (in the same order) and positions in the unit square."""
    xatlas = extra("xatlas", "--texture")
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices.float().numpy(), faces.numpy().astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.create_image = size, _GUTTER, False
    atlas.generate(xatlas.ChartOptions(), packing)
    origin, flat, uv = atlas[0]
    return torch.from_numpy(origin.astype(np.int64)), torch.from_numpy(flat.astype(np.int64)), torch.from_numpy(uv.astype(np.float64))
