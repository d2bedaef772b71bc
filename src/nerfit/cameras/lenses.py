"""Lenses: where a direction of the camera appears in its picture, and the way back."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LENSES = ("perspective", "fisheye", "equirectangular")
"""Kinds of lenses; `Cameras.lens` counts them from 0."""

LENS_PARAMETERS = ("k1", "k2", "k3", "k4", "p1", "p2", "d1", "d2", "d3", "s1", "s2", "s3", "s4")
"""Names and order of the numbers that describe a lens's distortion, see `distort`."""

NEWTON_STEPS = 12


def distort(u: Tensor, v: Tensor, k: Float[Tensor, "*rays 13"]) -> tuple[Tensor, Tensor]:
    """Image points [*rays] to which the lens moves the ideal points ``u``, ``v`` [*rays], in units of the focal length (v points down).

    ``k`` holds `LENS_PARAMETERS`, OpenCV's model with one more power: the radial factor
    (1 + k1 r² + k2 r⁴ + k3 r⁶ + k4 r⁸) / (1 + d1 r² + d2 r⁴ + d3 r⁶), tangential p1, p2, and the thin prism
    (s1 r² + s2 r⁴, s3 r² + s4 r⁴). OpenCV's own k4, k5, k6 are d1, d2, d3.
    """
    ud, vd, *_ = _distort(u, v, k)
    return ud, vd


def _distort(u: Tensor, v: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """The distorted point, its derivatives ∂u'/∂u, ∂u'/∂v, ∂v'/∂u, ∂v'/∂v, and the radial denominator."""
    k1, k2, k3, k4, p1, p2, d1, d2, d3, s1, s2, s3, s4 = k.unbind(-1)
    r2 = u * u + v * v
    below = 1 + r2 * (d1 + r2 * (d2 + r2 * d3))
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))) / below
    slope = 2 * (k1 + r2 * (2 * k2 + r2 * (3 * k3 + r2 * 4 * k4)) - radial * (d1 + r2 * (2 * d2 + r2 * 3 * d3))) / below
    prism_u, prism_v = 2 * (s1 + 2 * r2 * s2), 2 * (s3 + 2 * r2 * s4)
    mixed = u * v * slope + 2 * p1 * u + 2 * p2 * v
    return (
        u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u) + r2 * (s1 + r2 * s2),
        v * radial + p1 * (r2 + 2 * v * v) + 2 * p2 * u * v + r2 * (s3 + r2 * s4),
        radial + u * u * slope + 2 * p1 * v + 6 * p2 * u + u * prism_u,
        mixed + v * prism_u,
        mixed + u * prism_v,
        radial + v * v * slope + 6 * p1 * v + 2 * p2 * u + v * prism_v,
        below,
    )


def undistort(ud: Tensor, vd: Tensor, k: Float[Tensor, "*rays 13"], iterations: int = NEWTON_STEPS) -> tuple[Tensor, Tensor]:
    """The ideal image points that the lens shows at ``ud``, ``vd`` [*rays]: inverse of `distort` by Newton steps from (ud, vd).

    ``k`` holds `LENS_PARAMETERS`, ``iterations`` is the number of steps.

    Far from the axis most fitted lenses fold back, where no point has the image (ud, vd). A step onto what is folded (there
    the Jacobian's determinant turns negative) is halved until it isn't, so the result is finite, and short of a single fold.
    """
    good_u, good_v = torch.zeros_like(ud), torch.zeros_like(vd)
    u, v = ud, vd
    for _ in range(iterations + 1):
        fu, fv, a, b, c, d, below = _distort(u, v, k)
        det = a * d - b * c
        fine = (below > 1e-6) & (a + d > 0) & (det > 1e-6)
        good_u, good_v = torch.where(fine, u, good_u), torch.where(fine, v, good_v)
        eu, ev, det = torch.where(fine, fu - ud, 0), torch.where(fine, fv - vd, 0), torch.where(fine, det, 1)
        u = torch.where(fine, u - (d * eu - b * ev) / det, (good_u + u) / 2)
        v = torch.where(fine, v - (a * ev - c * eu) / det, (good_v + v) / 2)
    return good_u, good_v


def unproject(
    u: Float[Tensor, "rays"], v: Float[Tensor, "rays"], lens: Int[Tensor, "rays"] | None, k: Float[Tensor, "rays 13"] | None
) -> Float[Tensor, "rays 3"]:
    """Directions in camera axes (right, up, backwards) of image points ``u``, ``v``, in units of the focal length from the principal point.

    ``lens`` indexes `LENSES` (None: all perspective), ``k`` holds `LENS_PARAMETERS` (None: no distortion). Directions of perspective
    lenses have unit depth, those of the others unit length. A fisheye shows a direction at the angle θ from the axis at the distance
    θ, distorted like a perspective picture; an equirectangular picture spans longitude and latitude, in radians.
    """
    if k is not None:
        u, v = undistort(u, v, k)
    flat = torch.stack([u, -v, -torch.ones_like(u)], -1)
    if lens is None:
        return flat
    angle = (u * u + v * v).clamp(min=1e-30).sqrt().clamp(max=math.pi)
    sine = torch.sinc(angle / math.pi)
    fisheye = torch.stack([u * sine, -v * sine, -angle.cos()], -1)
    globe = torch.stack([v.cos() * u.sin(), -v.sin(), -v.cos() * u.cos()], -1)
    return torch.where((lens == 0)[:, None], flat, torch.where((lens == 1)[:, None], fisheye, globe))


def project(
    directions: Float[Tensor, "rays 3"], lens: Int[Tensor, "rays"] | None, k: Float[Tensor, "rays 13"] | None
) -> tuple[Float[Tensor, "rays"], Float[Tensor, "rays"], Bool[Tensor, "rays"]]:
    """Image points (u, v) of directions in camera axes, of any length, and which of them are visible; the inverse of `unproject`.

    ``lens`` indexes `LENSES` (None: all perspective), ``k`` holds `LENS_PARAMETERS` (None: no distortion). Directions behind a
    perspective camera, exactly behind a fisheye, or beyond the fold of the lens are not visible.
    """
    x, y, depth = directions[:, 0], -directions[:, 1], -directions[:, 2]
    visible = depth > 0
    scale = 1 / torch.where(visible, depth, 1)
    u, v = x * scale, y * scale
    if lens is not None:
        across = (x * x + y * y).sqrt()
        stretch = torch.atan2(across, depth) / torch.where(across > 0, across, 1)
        longitude, latitude = torch.atan2(x, depth), torch.atan2(y, (x * x + depth * depth).sqrt())
        u = torch.where(lens == 0, u, torch.where(lens == 1, x * stretch, longitude))
        v = torch.where(lens == 0, v, torch.where(lens == 1, y * stretch, latitude))
        visible = visible | ((lens == 1) & (across > 0)) | (lens == 2)
    if k is None:
        return u, v, visible
    ud, vd = distort(u, v, k)
    back_u, back_v = undistort(ud, vd, k)
    near = (back_u - u).abs() + (back_v - v).abs() < 1e-3 * (1 + u.abs() + v.abs())
    return ud, vd, visible & near
