"""Normalised device coordinates for forward-facing scenes (NeRF, appendix C)."""

from dataclasses import replace

import torch
from torch import Tensor

from nerfit.cameras.cameras import Rays


def ndc_rays(rays: Rays, fx: Tensor, fy: Tensor, width: Tensor, height: Tensor, near_plane: float = 1.0) -> Rays:
    """Rays warped so that t = 0…1 runs from the near plane z = -n to infinity, linear in inverse depth.

    Intrinsics are per ray ([rays]); NeRF's equations 25 and 26. View directions stay those of the world.
    The near plane lies at ``near_plane`` in front of the world's origin along -z, so cameras must look along -z.
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
