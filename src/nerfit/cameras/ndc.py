"""Normalised device coordinates for forward-facing scenes (NeRF, appendix C)."""

from dataclasses import replace

import torch
from torch import Tensor

from nerfit.cameras.cameras import Rays


def ndc_rays(rays: Rays, fx: Tensor, fy: Tensor, width: Tensor, height: Tensor, near_plane: float = 1.0) -> Rays:
    """Rays warped so that t = 0…1 runs from the near plane to infinity, linear in inverse depth (NeRF, equations 25 and 26).

    Focal lengths and sizes, in pixels, are per ray [rays] or one for all [1]. View directions stay those of the world. The near plane
    is z = -``near_plane`` in the world, so cameras must look along -z.
    """
    o, d = rays.origins, rays.directions
    t = -(near_plane + o[:, 2]) / d[:, 2]
    o = o + t[:, None] * d
    ax, ay = -2 * fx / width, -2 * fy / height
    ox, oy, oz = o.unbind(-1)
    dx, dy, dz = d.unbind(-1)
    origins = torch.stack([ax * ox / oz, ay * oy / oz, 1 + 2 * near_plane / oz], -1)
    directions = torch.stack([ax * (dx / dz - ox / oz), ay * (dy / dz - oy / oz), -2 * near_plane / oz], -1)
    # A pixel's footprint at unit depth, 2/√12 / fx, becomes a constant width along x of the NDC cube: |ax| times it.
    radius = rays.pixel_radius * ax.abs()
    zero = torch.zeros_like(t)
    return replace(rays, origins=origins, directions=directions, near=zero, far=zero + 1, pixel_radius=radius)


def from_ndc(points: Tensor, fx: Tensor, fy: Tensor, width: Tensor, height: Tensor, near_plane: float = 1.0) -> Tensor:
    """World points [n, 3] of ``points`` [n, 3] in NDC; the inverse of `to_ndc`, with its arguments."""
    z = 2 * near_plane / (points[:, 2] - 1)
    return torch.stack([-points[:, 0] * z * width / (2 * fx), -points[:, 1] * z * height / (2 * fy), z], -1)


def to_ndc(points: Tensor, fx: Tensor, fy: Tensor, width: Tensor, height: Tensor, near_plane: float = 1.0) -> Tensor:
    """Points [n, 3] in NDC of world ``points`` [n, 3]: (-2fx/W·x/z, -2fy/H·y/z, 1 + 2n/z) (NeRF, equation 18).

    Focal lengths and sizes [1] or [n] are in pixels, n is ``near_plane``.
    """
    x, y, z = points.unbind(-1)
    return torch.stack([-2 * fx / width * x / z, -2 * fy / height * y / z, 1 + 2 * near_plane / z], -1)
