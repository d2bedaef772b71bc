"""Camera paths for videos. Every path is a function of the scene's own poses and returns float64 poses [frames, 3, 4]."""

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.cameras.cameras import Cameras
from nerfit.cameras.poses import average_pose, look_at, nearest_point_to_axes, rays_meet, to_4x4, view_frame, world_up
from nerfit.cameras.rotations import checked_rotations, matrix_to_quaternion, quaternion_to_matrix, slerp
from nerfit.errors import ConfigError, SceneError, nearest

PATHS = ("circle", "sphere", "spiral", "spiral-flat", "interpolate", "ellipse", "still", "test")
"""Path names that `make_path` knows, besides a JSON file of poses."""


def make_path(
    kind: str,
    cameras: Cameras,
    frames: int | None = None,
    depth_range: tuple[float, float] | None = None,
    test: Sequence[int] | None = None,
    default: str = "spiral",
    scene: str | None = None,
) -> tuple[Cameras, Cameras | None]:
    """The cameras of path ``kind`` (one of `PATHS`, or a JSON file, see `read_path`) around a scene's ``cameras``.

    Path cameras are pinholes with the first camera's intrinsics (a right angle wide if it is a fisheye or panorama); ``test``
    lists the views of the test path, which are taken as they are, ``frames`` (None = the path's own number) of them evenly
    spread. ``depth_range`` is the nearest and farthest depth of the scene's content, for a spiral's focus. The second value
    is None but for ``still``: that path stands at the first pose of ``default`` (the scene's own path), whose cameras are
    returned as those to take view directions from. ``scene`` is the scene's name, which a file's must not contradict.
    Raises ConfigError for an unknown path or frame count, SceneError where the path can't be made.
    """
    if frames is not None and frames < 1:
        raise ConfigError(f"a camera path needs at least 1 frame, not {frames}.")
    if kind.endswith(".json"):
        return read_path(Path(kind), cameras, frames, scene), None
    if kind == "still":
        look, _ = make_path(default, cameras, frames, depth_range, test)
        return look[[0] * len(look)], look
    if kind == "test":
        if not test:
            raise SceneError("this scene has no test views; choose another camera path.")
        count = min(frames or len(test), len(test))
        return cameras[[test[i * len(test) // count] for i in range(count)]], None
    makers = {
        "circle": lambda: circle(cameras, frames or 40),
        "sphere": lambda: sphere(cameras.c2w, frames or 120),
        "spiral": lambda: spiral(cameras, depth_range, frames or 120),
        "spiral-flat": lambda: spiral(cameras, depth_range, frames or 60, turns=1, flat=True),
        "interpolate": lambda: interpolate(cameras.c2w, frames or 120),
        "ellipse": lambda: ellipse(cameras.c2w, frames or 120),
    }
    if kind not in makers:
        raise ConfigError(f"camera path {kind!r} is unknown{nearest(kind, PATHS)}; choose from {', '.join(PATHS)} or a .json file.")
    return _like_first(cameras, makers[kind]()), None


def _like_first(cameras: Cameras, c2w: Float[Tensor, "frames 3 4"]) -> Cameras:
    return replace(_pinhole(cameras[[0] * len(c2w)]), c2w=c2w.to(torch.float32).to(cameras.c2w.device))


def _pinhole(cameras: Cameras) -> Cameras:
    """The same cameras without their lenses: a fisheye or panorama becomes a right angle wide."""
    plain = replace(cameras, distortion=None, lens=None)
    if cameras.lens is None or not cameras.lens.any():
        return plain
    half = cameras.width.to(cameras.fx) / 2
    return replace(plain, fx=half, fy=half.clone(), cx=half.clone(), cy=cameras.height.to(half) / 2)


def pose_spherical(azimuth: float, elevation: float, radius: float) -> Float[Tensor, "3 4"]:
    """A camera on the sphere about the origin (z up) looking at it, as the Blender scenes' renderer placed it.

    Angles are in degrees, ``radius`` in scene units. A negative elevation lies above the ground. Azimuth 0 stands at +y, azimuth 90 at +x.
    """
    phi, theta = math.radians(elevation), math.radians(azimuth)
    sin, cos = math.sin(phi), math.cos(phi)
    pitch = torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], dtype=torch.float64)
    sin, cos = math.sin(theta), math.cos(theta)
    turn = torch.tensor([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]], dtype=torch.float64)
    z_up = torch.tensor([[-1, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=torch.float64)
    rotation = z_up @ turn @ pitch
    return torch.cat([rotation, radius * rotation[:, 2:]], -1)


def circle(cameras: Cameras, frames: int = 40, radius: float | None = None, elevation: float | None = None) -> Tensor:
    """Poses [frames, 3, 4] of one turn about the point that the cameras look at, azimuth -180° to 180°, end excluded.

    ``radius`` (scene units) and ``elevation`` (degrees, negative above the ground) are derived unless given.
    Cameras 4 ± 0.2 units from the origin that look at it within 0.2 units (the Blender scenes) get that data set's own
    circle: about the origin, z up, radius 4, elevation -30°. For others the centre is where the axes meet, up is that of the
    cameras, radius and elevation are their means. Raises SceneError when most cameras look away.
    """
    meeting = rays_meet(cameras)
    if meeting.in_front <= 0.5:
        raise SceneError("the cameras do not look at a common point, so there is nothing to circle; choose the spiral or interpolate path.")
    if float(meeting.point.norm()) < 0.2 and abs(meeting.distance - 4) < 0.2:
        frame = torch.eye(4, dtype=torch.float64)
        derived = (4.0, -30.0)
    else:
        frame = _standing(meeting.point, world_up(cameras.c2w))
        outwards = to_4x4(cameras.c2w)[:, :3, 3] - meeting.point
        sine = (outwards @ frame[:3, 2]) / outwards.norm(dim=-1).clamp(min=1e-12)
        derived = (meeting.distance, -math.degrees(float(sine.clamp(-1, 1).asin().mean())))
    radius = derived[0] if radius is None else radius
    elevation = derived[1] if elevation is None else elevation
    poses = [pose_spherical(-180 + 360 * i / frames, elevation, radius) for i in range(frames)]
    return (frame @ to_4x4(torch.stack(poses)))[:, :3]


def _standing(origin: Tensor, up: Tensor) -> Float[Tensor, "4 4"]:
    """A frame at ``origin`` with z along ``up`` and x as near to the world's x as that allows."""
    return to_4x4(view_frame(origin, up, torch.tensor([0.0, 1.0, 0.0])))


def sphere(c2w: Float[Tensor, "views rows 4"], frames: int = 120) -> Float[Tensor, "frames 3 4"]:
    """One turn at the cameras' mean height on the sphere of their RMS distance about the point they look at (LLFF).

    The last frame stands where the first does, as in the original.
    """
    centre = nearest_point_to_axes(c2w)
    outwards = to_4x4(c2w)[:, :3, 3] - centre
    frame = _standing(centre, outwards.mean(0))
    height = (outwards @ frame[:3, 2]).mean()
    radius = (outwards.square().sum(-1).mean() - height**2).clamp(min=0).sqrt()
    theta = torch.linspace(0, 2 * math.pi, frames, dtype=torch.float64)
    local = torch.stack([radius * theta.cos(), radius * theta.sin(), height.expand(frames)], -1)
    return look_at(centre + local @ frame[:3, :3].T, centre, frame[:3, 2])


def focus_distance(depth_range: tuple[float, float]) -> float:
    """Distance of the point that a spiral's cameras look at: 1/(0.25/(0.9·near) + 0.75/(5·far)) (LLFF); 70 % of far when near is 0.

    ``depth_range`` is (near, far) of the scene's content.
    """
    near, far = depth_range
    return 1 / (0.25 / (0.9 * near) + 0.75 / (5 * far)) if near > 0 else near + 0.7 * (far - near)


def spiral(
    cameras: Cameras,
    depth_range: tuple[float, float] | None,
    frames: int = 120,
    turns: float = 2,
    zrate: float = 0.5,
    flat: bool = False,
) -> Float[Tensor, "frames 3 4"]:
    """A spiral about the average pose, looking at a point in front of it (LLFF).

    In the average frame the camera is at (rx cos θ, -ry sin θ, -rz sin(zrate·θ)); θ makes ``turns`` turns. The radii are the 90th
    percentiles of the cameras' own distances along each axis. ``flat``: rz = 0, and the whole path 10 % of the near depth forwards.
    ``depth_range`` is (near, far) of the scene's content. Without it the cameras look where the axes meet; raises SceneError if that
    isn't in front of all cameras.
    """
    if depth_range is None:
        meeting = rays_meet(cameras)
        if meeting.in_front < 1:
            raise SceneError("a spiral needs to know how far away the scene is, and the cameras do not look at a common point.")
        near, focus = meeting.distance, meeting.distance
    else:
        near, focus = depth_range[0], focus_distance(depth_range)
    average = to_4x4(average_pose(cameras.c2w))
    radii = torch.quantile((torch.linalg.inv(average) @ to_4x4(cameras.c2w))[:, :3, 3].abs(), 0.9, dim=0)
    if flat:
        average[:3, 3] -= 0.1 * 0.9 * near * average[:3, 2]
        radii[2] = 0
    theta = torch.arange(frames, dtype=torch.float64) * (2 * math.pi * turns / frames)
    local = torch.stack([theta.cos(), -theta.sin(), -(zrate * theta).sin()], -1) * radii
    target = average[:3, 3] - focus * average[:3, 2]
    up = to_4x4(cameras.c2w)[:, :3, 1].sum(0)
    return look_at(average[:3, 3] + local @ average[:3, :3].T, target, up)


def interpolate(c2w: Float[Tensor, "views rows 4"], frames: int = 120) -> Float[Tensor, "frames 3 4"]:
    """A path through the poses ``c2w`` in order, first to last: slerp of rotations, straight lines between positions."""
    c2w = to_4x4(c2w)
    u = torch.linspace(0, len(c2w) - 1, frames, dtype=torch.float64)
    first = u.floor().long().clamp(max=max(len(c2w) - 2, 0))
    second = (first + 1).clamp(max=len(c2w) - 1)
    t = u - first
    q = matrix_to_quaternion(c2w[:, :3, :3])
    position = torch.lerp(c2w[first, :3, 3], c2w[second, :3, 3], t[:, None])
    return torch.cat([quaternion_to_matrix(slerp(q[first], q[second], t)), position[..., None]], -1)


def ellipse(c2w: Float[Tensor, "views rows 4"], frames: int = 120) -> Float[Tensor, "frames 3 4"]:
    """One turn at constant speed on the ellipse that bounds 90 % of the cameras, looking at what they look at.

    In the principal axes of the camera positions (z the least, upwards) the ellipse lies at the mean height, centred
    above the point nearest to all optical axes; up is the axis next to the mean up (mip-NeRF 360's render path).
    """
    c2w = to_4x4(c2w)
    mean = c2w[:, :3, 3].mean(0)
    axes = torch.linalg.eigh((c2w[:, :3, 3] - mean).T @ (c2w[:, :3, 3] - mean))[1].flip(-1)
    z = axes[:, 2] * torch.where(axes[:, 2] @ c2w[:, :3, 1].sum(0) < 0, -1.0, 1.0)
    frame = to_4x4(view_frame(mean, z, axes[:, 1]))
    local = torch.linalg.inv(frame) @ c2w
    centre = nearest_point_to_axes(local)
    radii = torch.quantile((local[:, :2, 3] - centre[:2]).abs(), 0.9, dim=0)
    theta = torch.linspace(0, 2 * math.pi, 20 * frames + 1, dtype=torch.float64)
    dense = torch.stack([radii[0] * theta.cos(), radii[1] * theta.sin()], -1)
    length = torch.cat([theta[:1], dense.diff(dim=0).norm(dim=-1).cumsum(0)])
    wanted = torch.arange(frames, dtype=torch.float64) * (length[-1] / frames)
    right = torch.searchsorted(length, wanted, right=True).clamp(max=len(theta) - 1)
    t = (wanted - length[right - 1]) / (length[right] - length[right - 1]).clamp(min=1e-12)
    flat = centre[:2] + torch.lerp(dense[right - 1], dense[right], t[:, None])
    mean_up = local[:, :3, 1].mean(0)
    axis = int(mean_up.abs().argmax())
    up = torch.eye(3, dtype=torch.float64)[axis] * mean_up[axis].sign()
    return (frame @ to_4x4(look_at(torch.cat([flat, torch.zeros(frames, 1)], -1), centre, up)))[:, :3]


def glide(c2w: Float[Tensor, "views rows 4"], frames: int = 120) -> Float[Tensor, "frames 3 4"]:
    """A smooth path through the poses ``c2w`` in order: Catmull-Rom splines of positions and of unit quaternions.

    The poses are reached at equal time steps, each with half the step from the pose before to the pose after as its velocity;
    a path of two poses is a straight line.
    """
    c2w = to_4x4(c2w)
    q = matrix_to_quaternion(c2w[:, :3, :3])
    turned = torch.cat([torch.ones(1), torch.where((q[1:] * q[:-1]).sum(-1) < 0, -1.0, 1.0)]).cumprod(0).to(q)
    knots = torch.cat([c2w[:, :3, 3], q * turned[:, None]], -1)
    ends = torch.cat([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]]) if len(knots) > 1 else knots.expand(3, -1)
    velocity = (ends[2:] - ends[:-2]) / 2
    u = torch.linspace(0, len(knots) - 1, frames, dtype=torch.float64)
    first = u.floor().long().clamp(max=max(len(knots) - 2, 0))
    second = (first + 1).clamp(max=len(knots) - 1)
    t = (u - first)[:, None]
    rest = 1 - t
    from_first = rest * rest * ((1 + 2 * t) * knots[first] + t * velocity[first])
    to_second = t * t * ((1 + 2 * rest) * knots[second] - rest * velocity[second])
    position, rotation = (from_first + to_second).split([3, 4], -1)
    return torch.cat([quaternion_to_matrix(rotation), position[..., None]], -1)


_KEYS = ("c2w", "frames", "focal", "fx", "fy", "cx", "cy", "width", "height", "scene")
_WHOLE = ("frames", "width", "height")
_FAR = 10
"""Cameras that stand farther away than this many radii of the scene's cameras probably belong to another scene."""


def read_path(path: Path, cameras: Cameras, frames: int | None = None, scene: str | None = None) -> Cameras:
    """Cameras from a JSON file (`read_key_frames`); ``frames`` (or else the file's own) poses are put along a `glide` through its poses."""
    keys, own = read_key_frames(path, cameras, scene)
    frames = frames or own
    return keys if frames is None else _like_first(keys, glide(keys.c2w, frames))


def read_key_frames(path: Path, cameras: Cameras, scene: str | None = None) -> tuple[Cameras, int | None]:
    """Cameras from a JSON file: a list of 4×4 (or 3×4) c2w matrices in scene coordinates with OpenGL axes.

    Or an object with that list as ``c2w`` and any of width, height, focal (or fx, fy), cx, cy in pixels; what is not
    given follows the first of ``cameras``, resized when the size is given. With ``frames`` the poses are key frames of a path of that
    many pictures, which is the second value. Raises SceneError for any other file, and for one whose ``scene`` is another name.
    """
    try:
        data: Any = json.loads(path.read_text("utf-8-sig"))
        given: dict[str, Any] = data if isinstance(data, dict) else {"c2w": data}
        c2w = torch.tensor(given["c2w"], dtype=torch.float64)
    except KeyError:
        raise SceneError(f"{path}: a camera path needs the key 'c2w', a list of 4x4 matrices.") from None
    except OSError as error:
        raise SceneError(f"{path} can't be read: {error.strerror}.") from error
    except (ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise SceneError(f"{path} is not a camera path (a JSON list of 4x4 matrices): {str(error).rstrip('.')}.") from error
    for key in given:
        if key not in _KEYS:
            raise SceneError(f"{path}: the key {key!r} is unknown{nearest(key, _KEYS)}; a camera path may hold {', '.join(_KEYS)}.")
    if scene is not None and given.get("scene", scene) != scene:
        raise SceneError(
            f"{path} is a path through the scene {given['scene']!r}, not through {scene!r}: its poses mean nothing here "
            "(take out its key 'scene' to use them all the same)."
        )
    if c2w.ndim != 3 or not len(c2w) or c2w.shape[1:] not in ((3, 4), (4, 4)):
        raise SceneError(f"{path}: the poses have shape {list(c2w.shape)} where a list of 4x4 matrices is needed.")
    c2w = checked_rotations(c2w, str(path))[:, :3]
    middle = cameras.centers.double().mean(0)
    radius = float((cameras.centers - middle).norm(dim=-1).max()) or 1.0
    away = float((c2w[:, :, 3] - middle).norm(dim=-1).min()) / radius
    if away > _FAR:
        warnings.warn(f"{path} stands {away:.0f} times as far away as the scene's cameras: is it a path of this scene?", stacklevel=2)
    numbers = {k: _positive(path, k, v) for k, v in given.items() if k not in ("c2w", "scene")}
    frames = numbers.get("frames")
    return _like_first(_intrinsics(numbers, _pinhole(cameras[[0]])), c2w), None if frames is None else int(frames)


def _positive(path: Path, key: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    if not number or (key in _WHOLE and value != int(value)):
        raise SceneError(f"{path}: {key} must be a positive {'whole ' if key in _WHOLE else ''}number, not {value!r}.")
    return value


def _intrinsics(given: dict[str, float], camera: Cameras) -> Cameras:
    if "width" in given or "height" in given:
        camera = camera.resize(*(int(given[k] if k in given else getattr(camera, k)[0]) for k in ("width", "height")))
    if "focal" in given:
        given = {"fx": given["focal"], "fy": given["focal"]} | given
    return replace(camera, **{k: torch.full_like(camera.fx, given[k]) for k in ("fx", "fy", "cx", "cy") if k in given})
