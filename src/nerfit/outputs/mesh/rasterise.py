"""Triangles as pictures: which triangle each pixel shows, for textures and for a turntable of a mesh."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_PIECE = 1 << 21
"""Pixels in one piece."""


def rasterise(
    corners: Float[Tensor, "f 3 2"], nearness: Float[Tensor, "f 3"], width: int, height: int
) -> tuple[Int[Tensor, "height width"], Float[Tensor, "height width 3"]]:
    """The nearest triangle at each pixel's centre (-1: none) and the weights of its corners there.

    ``corners`` are in pixels (y down), ``nearness`` is 1/depth, which is linear in the picture; the weights are right in
    perspective (Blinn 1992, Hyperbolic interpolation). Triangles with a corner at or behind the eye (nearness <= 0) are left out.
    """
    corners, nearness = corners.double(), nearness.double()
    low = (corners.amin(1) - 0.5).ceil().clamp(min=0).long()
    high = torch.minimum((corners.amax(1) - 0.5).floor().long() + 1, torch.tensor([width, height]))
    extent = (high - low).clamp(min=0) * (nearness > 0).all(-1, keepdim=True)
    count = extent.prod(-1)
    nearest, shown = torch.zeros(height * width, dtype=torch.float64), torch.full((height * width,), -1)
    for piece in _pieces(count):
        face = piece.repeat_interleave(count[piece])
        offset = torch.arange(len(face)) - (count[piece].cumsum(0) - count[piece]).repeat_interleave(count[piece])
        x, y = low[face, 0] + offset % extent[face, 0], low[face, 1] + torch.div(offset, extent[face, 0], rounding_mode="floor")
        share = _barycentric(corners[face], torch.stack([x, y], -1) + 0.5)
        inside = (share >= -1e-9).all(-1)
        face, pixel, near = face[inside], (y * width + x)[inside], (share * nearness[face]).sum(-1)[inside]
        nearest.scatter_reduce_(0, pixel, near, "amax")
        won = near == nearest[pixel]
        shown[pixel[won]] = face[won]
    some = (shown >= 0).nonzero()[:, 0]
    weights = torch.zeros(height * width, 3, dtype=torch.float64)
    centers = torch.stack([some % width, torch.div(some, width, rounding_mode="floor")], -1) + 0.5
    hyperbolic = _barycentric(corners[shown[some]], centers) * nearness[shown[some]]
    weights[some] = hyperbolic / hyperbolic.sum(-1, keepdim=True)
    return shown.reshape(height, width), weights.reshape(height, width, 3)


def _pieces(count: Int[Tensor, "f"]) -> list[Tensor]:
    """Numbers of the triangles that have pixels, in pieces of about `_PIECE` pixels."""
    faces = (count > 0).nonzero()[:, 0]
    sizes = torch.unique_consecutive(torch.div(count[faces].cumsum(0), _PIECE, rounding_mode="floor"), return_counts=True)[1]
    return list(faces.split(sizes.tolist()))


def _barycentric(corners: Float[Tensor, "n 3 2"], points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 3"]:
    """Shares of the corners that make up points; not a number in triangles without area."""
    to = corners - points[:, None]
    areas = torch.stack([_cross(to[:, (i + 1) % 3], to[:, (i + 2) % 3]) for i in range(3)], -1)
    return areas / areas.sum(-1, keepdim=True)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
