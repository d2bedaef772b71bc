"""Sets of camera poses: their average, their centre, and the world frames built on them. Everything here is float64."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.cameras.cameras import Cameras
from nerfit.errors import SceneError


def view_frame(position: Tensor, back: Tensor, up: Tensor) -> Float[Tensor, "*n 3 4"]:
    """Poses at ``position`` whose z axis is ``back`` and whose y axis is as near to ``up`` as possible (all [*n, 3]).

    x = up × back, y = back × x, normalised. A zero ``back`` counts as z; where ``up`` is zero or parallel to ``back`` the
    world axis farthest from that serves.
    """
    position, back, up = torch.broadcast_tensors(*(v.to("cpu").to(torch.float64) for v in (position, back, up)))
    axes = torch.eye(3, dtype=torch.float64)
    z = torch.where(back.any(-1, keepdim=True), _unit(back), axes[2])
    x = torch.linalg.cross(_unit(up), z)
    x = torch.where(x.norm(dim=-1, keepdim=True) > 1e-9, x, torch.linalg.cross(axes[z.abs().argmin(-1)], z))
    x = _unit(x)
    return torch.stack([x, torch.linalg.cross(z, x), z, position], -1)


def _unit(v: Tensor) -> Tensor:
    """``v`` over its length, however short; zero stays zero."""
    v = v / v.abs().amax(-1, keepdim=True).clamp(min=1e-300)
    return v / v.norm(dim=-1, keepdim=True).clamp(min=1e-300)


def look_at(position: Tensor, target: Tensor, up: Tensor) -> Float[Tensor, "*n 3 4"]:
    """Poses of cameras at ``position`` looking at the point ``target``, ``up`` upwards in the picture (all [*n, 3])."""
    return view_frame(position, position - target, up)


def to_4x4(c2w: Float[Tensor, "*n rows 4"]) -> Float[Tensor, "*n 4 4"]:
    """Poses of 3 or 4 ``rows`` as float64 4×4 matrices with the last row 0 0 0 1."""
    top = c2w[..., :3, :].to("cpu").to(torch.float64)
    bottom = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], -2)


def average_pose(c2w: Float[Tensor, "views rows 4"]) -> Float[Tensor, "3 4"]:
    """The average of poses: mean position, direction of the summed z axes, and the summed y axes as up (LLFF)."""
    c2w = to_4x4(c2w)
    return view_frame(c2w[:, :3, 3].mean(0), c2w[:, :3, 2].sum(0), c2w[:, :3, 1].sum(0))


def pose_between(c2w: Float[Tensor, "views rows 4"], shares: Float[Tensor, "views"], point: Tensor | None = None) -> Float[Tensor, "3 4"]:
    """A pose among others: their mean position, z axis and y axis (as up), weighted by shares that sum to 1.

    Around a ``point`` ([3]) the mean is of directions and distances from it, and the camera looks at it.
    """
    c2w, shares = to_4x4(c2w), shares.to("cpu").to(torch.float64)[:, None]
    position, back, up = ((shares * c2w[:, :3, axis]).sum(0) for axis in (3, 2, 1))
    if point is not None:
        outwards = c2w[:, :3, 3] - point
        back = _unit((shares * _unit(outwards)).sum(0))
        position = point + (shares * outwards.norm(dim=-1, keepdim=True)).sum() * back
    return view_frame(position, back, up)


def scale_of(transform: Float[Tensor, "4 4"]) -> float:
    """The factor by which the similarity ``transform`` stretches lengths."""
    return float(torch.linalg.det(transform[:3, :3].to(torch.float64)).abs() ** (1 / 3))


def transform_poses(c2w: Float[Tensor, "views rows 4"], transform: Float[Tensor, "4 4"]) -> Float[Tensor, "views 3 4"]:
    """Poses moved by the similarity ``transform`` of the world: positions are mapped, rotations turned but not scaled."""
    moved = transform.to(torch.float64) @ to_4x4(c2w)
    return torch.cat([moved[:, :3, :3] / scale_of(transform), moved[:, :3, 3:]], -1)


def align(source: Float[Tensor, "points 3"], target: Float[Tensor, "points 3"]) -> Float[Tensor, "4 4"]:
    """The similarity T (scale, rotation, translation) with the least Σ‖T(source) - target‖² (Umeyama 1991).

    Positions on one line leave the turn about it free. Raises SceneError for fewer than 3 points, or sources or targets that coincide.
    """
    source, target = (points.to("cpu").to(torch.float64) for points in (source, target))
    s, t = source - source.mean(0), target - target.mean(0)
    if len(s) < 3 or not (s.norm() > 1e-12 * (1 + source.norm()) and t.norm() > 1e-12 * (1 + target.norm())):
        raise SceneError(f"{len(s)} positions can't be aligned: it takes 3 that do not coincide.")
    u, stretch, vh = torch.linalg.svd(t.T @ s)
    sign = torch.ones(3, dtype=torch.float64)
    sign[2] = torch.linalg.det(u @ vh).sign()
    rotation, scale = (u * sign) @ vh, (stretch * sign).sum() / s.square().sum()
    matrix = scale * rotation
    return to_4x4(torch.cat([matrix, (target.mean(0) - matrix @ source.mean(0))[:, None]], 1))


def recentre(c2w: Float[Tensor, "views rows 4"]) -> tuple[Float[Tensor, "views 3 4"], Float[Tensor, "4 4"]]:
    """Poses in the frame of their average pose, and the transform that took them there."""
    transform = torch.linalg.inv(to_4x4(average_pose(c2w)))
    return transform_poses(c2w, transform), transform


def nearest_point_to_axes(c2w: Float[Tensor, "views rows 4"]) -> Float[Tensor, "3"]:
    """The point with the least sum of squared distances to the optical axes.

    It solves Σ(I - d dᵀ)·(p - o) = 0; where that leaves a freedom (parallel axes), the solution next to the mean position.
    """
    c2w = to_4x4(c2w)
    o, d = c2w[:, :3, 3], _unit(c2w[:, :3, 2])
    across = torch.eye(3, dtype=torch.float64) - d[:, :, None] * d[:, None, :]
    mean = o.mean(0)
    offset = (across @ (o - mean)[..., None]).mean(0)
    return mean + (torch.linalg.pinv(across.mean(0), rtol=1e-12, hermitian=True) @ offset)[:, 0]


def spherify(c2w: Float[Tensor, "views rows 4"]) -> tuple[Float[Tensor, "views 3 4"], Float[Tensor, "4 4"]]:
    """Inward-facing poses about the origin, z up, at RMS distance 1, and the similarity that took them there (LLFF).

    The origin is the `nearest_point_to_axes`, z the mean direction from there to the cameras; the vector (0.1, 0.2, 0.3)
    settles the azimuth. Raises SceneError when all cameras stand in that point.
    """
    centre = nearest_point_to_axes(c2w)
    outwards = to_4x4(c2w)[:, :3, 3] - centre
    radius = outwards.square().sum(-1).mean().sqrt()
    if not radius > 1e-9 * (1 + centre.norm()):
        raise SceneError("the cameras all stand in one point, so there is no sphere to put them on; turn spherify off.")
    frame = view_frame(centre, outwards.mean(0), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    transform = torch.diag(torch.stack([1 / radius] * 3 + [torch.ones_like(radius)])) @ torch.linalg.inv(to_4x4(frame))
    return transform_poses(c2w, transform), transform


def world_up(c2w: Float[Tensor, "views rows 4"]) -> Float[Tensor, "3"]:
    """The unit vector that the photographers held upwards.

    Cameras held level have their x axes in one plane, whose normal is up; where the x axes don't span a plane the mean
    y axis serves instead.
    """
    c2w = to_4x4(c2w)
    x, mean = c2w[:, :3, 0], c2w[:, :3, 1].mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    normal = vectors[:, 0] * torch.where(vectors[:, 0] @ mean < 0, -1.0, 1.0)
    level = values[0] < 0.1 * values[1] and values[1] > 0.01
    return normal if level else _unit(mean)


class Meeting(NamedTuple):
    """The point where the optical axes of cameras meet, and how well; lengths are in scene units."""

    point: Float[Tensor, "3"]
    in_front: float
    """Share of the cameras that have the point in front of them."""
    distance: float
    """Mean distance from the cameras to the point."""
    residual: float
    """Mean distance from the axes to the point."""


def rays_meet(cameras: Cameras) -> Meeting:
    """The point where the optical axes of ``cameras`` meet best. Cameras with wrong axes or inverted poses mostly have it behind them."""
    c2w = to_4x4(cameras.c2w)
    point = nearest_point_to_axes(c2w)
    to_point = point - c2w[:, :3, 3]
    depth = -(to_point * _unit(c2w[:, :3, 2])).sum(-1)
    distance = to_point.norm(dim=-1)
    residual = (distance.square() - depth.square()).clamp(min=0).sqrt()
    return Meeting(point, float((depth > 0).to(torch.float64).mean()), float(distance.mean()), float(residual.mean()))
