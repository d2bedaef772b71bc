"""The normalised world of a capture: origin, scale, up, bounds, near and far, from its cameras and the points known of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.poses import Meeting, rays_meet, recentre, scale_of, to_4x4, transform_poses, view_frame, world_up
from nerfit.errors import ConfigError, require_min
from nerfit.scenes.background import border_colour
from nerfit.scenes.reading.masks import Mask
from nerfit.scenes.reading.pixel_cache import load_pixels
from nerfit.scenes.scene import Bounds, Scene
from nerfit.scenes.splits import HoldoutConfig

_NEAR, _FAR, _OBJECT = 0.05, 100.0, 0.75
"""In mean distances of the cameras from what they look at: near, far of unbounded scenes, radius of an object."""

_SAMPLE_VIEWS, _SAMPLE_POINTS, _FEW = 100, 5_000, 10
"""The most views and points that depths are taken from, and how many depths are too few to say anything."""


@dataclass
class NormaliseConfig(HoldoutConfig):
    """Options of captures in a world of their own.

    Unless near and far are given, an unbounded or forward-facing scene reaches from 0.05 to 100 times the cameras' mean distance
    from the point that they look at, an object 0.75 times it on either side of that point. Points known of the scene narrow that.
    In normalised device coordinates near and far are 0 and 1.
    """

    factor: int = 1
    """Shrink the pictures by this factor."""
    bounds: Bounds | None = None
    """Kind of scene; none = object if pixels are transparent, the pictures have a plain border, or aabb_scale is 1; forward-facing if all
    cameras stand side by side and look within 45° of one direction; else unbounded."""
    centre: bool = True
    """Move the point that the cameras look at to the origin, scale their mean distance from it to 1, and turn up to z."""
    ndc: bool | None = None
    """Use normalised device coordinates; none = for forward-facing captures with known points, unless near, far or no-centre is given."""

    @property
    def wants_ndc(self) -> bool | None:
        """The argument ``ndc`` of `normalise`; None leaves it to the capture."""
        return False if self.ndc is None and (not self.centre or (self.near, self.far) != (None, None)) else self.ndc

    def check(self) -> None:
        """Raise ConfigError for settings without sense."""
        require_min("scene.", self, factor=1, holdout=0)


def normalised_scene(
    config: NormaliseConfig,
    cameras: Cameras,
    files: Sequence[Path],
    masks: Sequence[Mask | None],
    points: Float[Tensor, "n 3"] | None,
    is_object: bool = False,
    applied: Float[Tensor, "4 4"] | None = None,
    object_world: Callable[[Cameras, bool], "Normalised"] | None = None,
    **about: Any,
) -> Scene:
    """The scene of pictures with the cameras' sizes, in the world of `normalise`. Transparent pixels and plain borders too make an object.

    ``cameras`` and ``points`` are in the file's world, poses in float64; ``applied`` is the transform from the user's world to the
    file's. ``object_world`` (`nerf_world`) places objects in place of `normalise`. ``about`` holds the scene's name, format, splits and
    names of views.
    """
    pixels = load_pixels(files, list(zip(cameras.width.tolist(), cameras.height.tolist(), strict=True)), masks)
    is_object |= pixels.shape[1] == 4 and not any(masks)
    if not is_object and not _side_by_side(cameras.c2w):
        is_object = border_colour(pixels, cameras, about["splits"]["train"]) is not None
    bounds = config.bounds or ("object" if is_object else None)
    if bounds == "object" and object_world is not None:
        normalised = object_world(cameras, config.centre and (config.near, config.far) == (None, None))
    else:
        normalised = normalise(cameras, points, bounds, config.centre, config.wants_ndc)
    near, far = config.reach(normalised.near, normalised.far)
    to_file = torch.linalg.inv(normalised.transform)
    return Scene(
        cameras=replace(cameras, c2w=transform_poses(cameras.c2w, normalised.transform).to(torch.float32)),
        near=near,
        far=far,
        pixels=pixels,
        masked=any(masks),
        ndc=normalised.ndc,
        bounds=normalised.bounds,
        background=config.background,
        default_path=normalised.default_path,
        to_original=to_file if applied is None else torch.linalg.inv(normalised.transform @ applied),
        depth_range=normalised.depth_range,
        **about,
    )


def nerf_world(cameras: Cameras, move: bool) -> "Normalised":
    """The world of NeRF's synthetic scenes: cameras 4 away from the object's middle, which is the origin; near 2, far 6.

    Cameras that stand so already (3.6 to 4.4 from the origin) stay where they are, to the bit, as do those whose axes don't meet. Others
    are shifted and scaled, not turned. Unless they may ``move``, the file's world stays, and near and far are in its units.
    """
    meeting = rays_meet(cameras)
    distance = (to_4x4(cameras.c2w)[:, :3, 3] - meeting.point).norm(dim=-1)
    unit, here = 4.0 / max(meeting.distance, 1e-12), torch.eye(4, dtype=torch.float64)
    about_origin = to_4x4(cameras.c2w)[:, :3, 3].norm(dim=-1)
    if meeting.in_front <= 0.5 or bool(((about_origin > 3.6) & (about_origin < 4.4)).all()):
        return Normalised(here, "object", 2.0, 6.0, "circle", None)
    near, far = max(0.2, float(distance.min()) * unit - 2), float(distance.max()) * unit + 2
    if not move:
        return Normalised(here, "object", near / unit, far / unit, "circle", None)
    here[:3] = unit * torch.cat([here[:3, :3], -meeting.point.to(torch.float64)[:, None]], 1)
    return Normalised(here, "object", near, far, "circle", None)


@dataclass
class Normalised:
    """The result of `normalise`; ``transform`` takes the file's world to the scene's. All lengths are in units of the scene."""

    transform: Float[Tensor, "4 4"]
    bounds: Bounds
    near: float
    far: float
    default_path: str
    depth_range: tuple[float, float] | None
    """Nearest and farthest depth of the visible points; None without points."""
    ndc: bool = False
    """Whether rays are to be taken to normalised device coordinates."""


def normalise(
    cameras: Cameras,
    points: Float[Tensor, "n 3"] | None = None,
    bounds: Bounds | None = None,
    centre: bool = True,
    ndc: bool | None = False,
) -> Normalised:
    """Normalise a capture from its cameras and, where known, points of the file's world; None chooses ``bounds`` and ``ndc``.

    Poses may be float64. ``centre`` false keeps the file's world as it is, with near and far in its units. Raises ConfigError where
    ``ndc`` is asked for and can't be.
    """
    c2w = to_4x4(cameras.c2w)[:, :3]
    meeting = rays_meet(cameras)
    bounds = bounds or ("forward-facing" if _side_by_side(c2w) else "unbounded")
    depths = _depths(cameras, points)
    if ndc or (ndc is None and bounds == "forward-facing"):
        normalised = None if depths is None else _for_ndc(cameras, depths)
        if normalised is not None:
            return normalised
        if ndc:
            what = "perspective cameras that all look one way and points that they see (a COLMAP model, ply_file_path)"
            raise ConfigError(f"normalised device coordinates need {what}; leave --scene.ndc out.")
    origin = meeting.point if meeting.in_front > 0.5 else c2w[:, :, 3].mean(0)
    if bounds == "forward-facing" and depths is not None:  # nearly parallel axes meet anywhere
        origin = c2w[:, :, 3].mean(0) - depths.median() * torch.nn.functional.normalize(c2w[:, :, 2].mean(0), dim=0)
    transform = centring(c2w, origin)
    unit = scale_of(transform)
    depth_range = None
    if depths is not None:
        low, high = (torch.quantile(depths, _PERCENTILES) * unit).tolist()
        depth_range = low, high
    centred = transform_poses(c2w, transform)
    near, far = _range(centred, bounds, depth_range)
    path = _path(centred, meeting, bounds, depth_range is not None)
    if not centre:
        near, far, depth_range = near / unit, far / unit, depth_range and (depth_range[0] / unit, depth_range[1] / unit)
        transform = torch.eye(4, dtype=torch.float64)
    return Normalised(transform, bounds, near, far, path, depth_range)


def _for_ndc(cameras: Cameras, depths: Float[Tensor, "n"]) -> Normalised | None:
    """LLFF's world for normalised device coordinates: the frame of the average pose, the nearest depth at 1/0.75; None if unsuitable."""
    if cameras.lens is not None and bool(cameras.lens.any()):
        return None
    low, high = torch.quantile(depths, _PERCENTILES).tolist()
    scale = 1 / (_NEAREST * low)
    shrink = torch.diag(torch.tensor([scale, scale, scale, 1.0], dtype=torch.float64))
    c2w, moved = recentre(transform_poses(cameras.c2w, shrink))
    if not looks_one_way(replace(cameras, c2w=c2w.to(torch.float32))):
        return None
    return Normalised(moved @ shrink, "forward-facing", 0.0, 1.0, "spiral", (low * scale, high * scale), ndc=True)


_NEAREST = 0.75
"""Distance of the near plane of normalised device coordinates, as a share of the nearest depth (LLFF's bd_factor)."""


def looks_one_way(cameras: Cameras) -> bool:
    """Whether normalised device coordinates suit these cameras: all look within 45° of -z, and every pixel's ray runs towards -z."""
    if (cameras.c2w[:, 2, 2] < math.cos(math.radians(45))).any():
        return False
    views = torch.arange(len(cameras))
    right, bottom = cameras.width - 1, cameras.height - 1
    corners = [(x, y) for x in (torch.zeros_like(right), right) for y in (torch.zeros_like(bottom), bottom)]
    return all(bool((cameras.directions(views, x, y)[:, 2] < 0).all()) for x, y in corners)


_PERCENTILES = torch.tensor([0.001, 0.999], dtype=torch.float64)
"""Of the depths of points: LLFF's, which leave out what a reconstruction threw far off."""


def centring(c2w: Float[Tensor, "views rows 4"], origin: Float[Tensor, "3"]) -> Float[Tensor, "4 4"]:
    """The similarity that takes ``origin`` to 0, the cameras' mean distance to it to 1, and up to z.

    Cameras that all stand in that point keep their scale.
    """
    distance = (to_4x4(c2w)[:, :3, 3] - origin).norm(dim=-1).mean()
    scale = 1 / distance if distance > 1e-9 * (1 + origin.norm()) else torch.ones_like(distance)
    frame = view_frame(origin, world_up(c2w), torch.tensor([0.0, 1.0, 0.0]))
    return torch.diag(torch.stack([scale, scale, scale, torch.ones_like(scale)])) @ torch.linalg.inv(to_4x4(frame))


def _within(c2w: Float[Tensor, "views 3 4"], degrees: float) -> bool:
    """Whether all cameras look within ``degrees`` of their mean direction."""
    back = c2w[:, :, 2]
    return bool((back @ torch.nn.functional.normalize(back.mean(0), dim=0)).min() > math.cos(math.radians(degrees)))


def _side_by_side(c2w: Float[Tensor, "views 3 4"]) -> bool:
    """Whether cameras look one way, from positions that differ across that direction more than along it."""
    back = torch.nn.functional.normalize(c2w[:, :, 2].mean(0), dim=0)
    apart = c2w[:, :, 3] - c2w[:, :, 3].mean(0)
    along = apart @ back
    across = (apart - along[:, None] * back).square().sum()
    return _within(c2w, 45) and bool(across > along.square().sum())


def _depths(cameras: Cameras, points: Float[Tensor, "n 3"] | None) -> Float[Tensor, "n"] | None:
    """Distances along their rays at which the cameras see points of the file's world; None for fewer than 10."""
    if points is None or not len(points):
        return None
    points = points[:: -(-len(points) // _SAMPLE_POINTS)].to(torch.float64)
    found = []
    for view in range(0, len(cameras), -(-len(cameras) // _SAMPLE_VIEWS)):
        views = torch.full((len(points),), view)
        pixels, visible = cameras.project(views, points)
        size = torch.stack([cameras.width[view], cameras.height[view]])
        inside = visible & (pixels >= 0).all(-1) & (pixels <= size).all(-1)
        found.append(cameras.depths(views[inside], points[inside]))
    depths = torch.cat(found)
    return depths if len(depths) >= _FEW else None


def _range(c2w: Float[Tensor, "views 3 4"], bounds: Bounds, depth_range: tuple[float, float] | None) -> tuple[float, float]:
    """Near and far for centred cameras that see points between two depths.

    An object's points may include some of its surroundings, so they only narrow its range. An unbounded scene has ground
    nearer than any point and sky behind all of them.
    """
    if bounds == "object":
        distance = c2w[:, :, 3].norm(dim=-1)
        near, far = max(_NEAR, float(distance.min()) - _OBJECT), float(distance.max()) + _OBJECT
        if depth_range is not None and 0.9 * depth_range[0] < far and 1.1 * depth_range[1] > near:
            near, far = max(near, 0.9 * depth_range[0]), min(far, 1.1 * depth_range[1])
        return near, far
    if depth_range is None:
        return _NEAR, _FAR
    low, high = depth_range
    return (0.9 * low, 1.1 * high) if bounds == "forward-facing" else (0.5 * low, max(_FAR, 2 * high))


def _path(c2w: Float[Tensor, "views 3 4"], meeting: Meeting, bounds: Bounds, depths_known: bool) -> str:
    """A turn where centred cameras stand all around, a spiral where they look one way, else from view to view."""
    azimuth = torch.atan2(c2w[:, 1, 3], c2w[:, 0, 3]).sort().values
    gaps = torch.cat([azimuth, azimuth[:1] + 2 * math.pi]).diff()
    if meeting.in_front > 0.9 and gaps.max() < math.radians(90):
        return "circle" if bounds == "object" else "ellipse"
    return "spiral" if (depths_known or meeting.in_front == 1) and _within(c2w, 60) else "interpolate"
