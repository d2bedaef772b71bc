"""Camera paths: their published formulas in slow form, and what each promises."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import assert_close
from nerfit.cameras import Cameras
from nerfit.cameras.paths import PATHS, circle, ellipse, focus_distance, glide, interpolate, make_path, pose_spherical, sphere, spiral
from nerfit.cameras.poses import look_at, recentre, spherify, to_4x4, transform_poses
from nerfit.cameras.rotations import axis_angle_to_matrix
from nerfit.errors import ConfigError, NerfitError, SceneError

seeds = st.integers(0, 2**32 - 1)


def pinholes(c2w):
    return Cameras.pinhole(c2w, 50.0, 40, 30)


def dome(seed, n=30, radius=4.0311, centre=(0.0, 0.0, 0.0), low=0.1, high=1.2):
    """Level cameras on the upper part of a sphere, z up, looking at its centre."""
    rng = np.random.default_rng(seed)
    azimuth, elevation = rng.uniform(0, 2 * math.pi, n), rng.uniform(low, high, n)
    out = np.stack([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)], -1)
    centre = torch.tensor(centre, dtype=torch.float64)
    return look_at(centre + radius * torch.from_numpy(out), centre, torch.tensor([0.0, 0.0, 1.0]))


def forward_facing(seed, n=12):
    """Cameras that look roughly the same way, in their own average frame."""
    rng = np.random.default_rng(seed)
    rotation = axis_angle_to_matrix(torch.from_numpy(0.1 * rng.normal(size=(n, 3))))
    position = torch.from_numpy(rng.normal(size=(n, 3, 1)) * [[1.0], [0.7], [0.2]])
    return recentre(torch.cat([rotation, position], -1))[0]


def is_rotation(c2w):
    r = c2w[:, :, :3].double()
    assert_close(r.mT @ r, torch.eye(3, dtype=torch.float64).expand_as(r), 1e-6)
    assert torch.linalg.det(r).min() > 0.999


def looks_at(c2w, point, tolerance=1e-6):
    to_point = torch.as_tensor(point, dtype=torch.float64) - c2w[:, :, 3]
    assert_close(-c2w[:, :, 2], to_point / to_point.norm(dim=-1, keepdim=True), tolerance)


# circle


@pytest.mark.parametrize("azimuth", [-180.0, -37.0, 0.0, 90.0])
def test_pose_spherical_is_translation_then_tilt_then_turn_then_axis_change(azimuth):
    elevation, radius = -30.0, 4.0
    phi, theta = elevation / 180 * math.pi, azimuth / 180 * math.pi
    m = np.eye(4)
    m[2, 3] = radius
    tilt = np.eye(4)
    tilt[1, 1], tilt[1, 2], tilt[2, 1], tilt[2, 2] = math.cos(phi), -math.sin(phi), math.sin(phi), math.cos(phi)
    turn = np.eye(4)
    turn[0, 0], turn[0, 2], turn[2, 0], turn[2, 2] = math.cos(theta), -math.sin(theta), math.sin(theta), math.cos(theta)
    m = turn @ (tilt @ m)
    m = np.stack([-m[0], m[2], m[1]])
    assert_close(pose_spherical(azimuth, elevation, radius), m, 1e-12)
    looks_at(pose_spherical(azimuth, elevation, radius)[None], [0, 0, 0])


def test_cameras_of_a_blender_scene_get_the_classic_circle():
    path, look = make_path("circle", pinholes(dome(0)))
    assert look is None
    assert_close(path.c2w, torch.stack([pose_spherical(-180 + 9 * i, -30, 4) for i in range(40)]), 1e-6)
    assert path.c2w[:, 2, 3].tolist() == pytest.approx([2.0] * 40)


def test_other_cameras_get_a_circle_of_their_own():
    cameras = pinholes(dome(1, radius=2.0, centre=(1.0, -2.0, 0.5), low=0.5, high=0.5))
    poses = circle(cameras, frames=7)
    looks_at(poses, [1.0, -2.0, 0.5])
    offset = poses[:, :, 3] - torch.tensor([1.0, -2.0, 0.5])
    assert_close(offset.norm(dim=-1), [2.0] * 7)
    assert_close(offset[:, 2], [2 * math.sin(0.5)] * 7)
    assert poses[:, 2, 1].min() > 0
    wider = circle(cameras, frames=7, radius=5.0, elevation=0.0)[:, :, 3] - torch.tensor([1.0, -2.0, 0.5])
    assert_close(wider.norm(dim=-1), [5.0] * 7)
    assert wider[:, 2].abs().max() < 1e-5


def test_a_circle_turns_with_the_world():
    turn = to_4x4(torch.cat([axis_angle_to_matrix(torch.tensor([1.0, 0.5, -0.3])), torch.zeros(3, 1)], -1))
    c2w = dome(2, radius=2.0)
    here = circle(pinholes(c2w), 200)[:, :, 3] @ turn[:3, :3].T
    there = circle(pinholes(transform_poses(c2w, turn)), 200)[:, :, 3]
    assert torch.cdist(here, there).min(1).values.max() < 2 * math.pi * 2 / 200
    assert torch.cdist(here, there).min(0).values.max() < 2 * math.pi * 2 / 200


def test_cameras_that_look_away_from_each_other_have_no_circle():
    c2w = dome(3)
    c2w[:, :, [0, 2]] *= -1
    with pytest.raises(SceneError, match="spiral"):
        circle(pinholes(c2w))


# sphere


def test_sphere_of_a_spherified_scene():
    c2w, _ = spherify(dome(4, radius=7.0, centre=(3.0, 1.0, -2.0), low=0.2, high=0.7))
    height = float(c2w[:, 2, 3].mean())
    radius = math.sqrt(1 - height**2)
    expected = []
    for i in range(120):
        theta = 2 * math.pi * i / 119
        p = np.array([radius * math.cos(theta), radius * math.sin(theta), height])
        z = p / np.linalg.norm(p)
        x = np.cross(z, [0, 0, -1.0])
        x /= np.linalg.norm(x)
        expected.append(np.stack([x, np.cross(z, x), z, p], 1))
    path, _ = make_path("sphere", pinholes(c2w))
    assert_close(path.c2w, np.stack(expected))


def test_sphere_needs_no_spherified_scene():
    poses = sphere(dome(5, radius=2.0, centre=(1.0, 2.0, 3.0)), 16)
    looks_at(poses, [1.0, 2.0, 3.0])
    assert_close((poses[:, :, 3] - torch.tensor([1.0, 2.0, 3.0])).norm(dim=-1), [2.0] * 16)


# spiral


def slow_spiral(c2w, near, far, frames, turns, flat):
    """LLFF's path about the average pose of recentred cameras (the world's own frame)."""
    p = np.asarray(c2w, np.float64)
    close_depth, far_depth = 0.9 * near, 5 * far
    focus = 1 / (0.25 / close_depth + 0.75 / far_depth)
    radii = np.array([np.percentile(np.abs(p[:, axis, 3]), 90) for axis in range(3)])
    up = sum(p[i, :, 1] for i in range(len(p)))
    shift = -0.1 * close_depth if flat else 0.0
    poses = []
    for i in range(frames):
        theta = 2 * math.pi * turns * i / frames
        rz = 0.0 if flat else radii[2]
        position = np.array([radii[0] * math.cos(theta), -radii[1] * math.sin(theta), -rz * math.sin(0.5 * theta) + shift])
        z = position - np.array([0, 0, shift - focus])
        z = z / np.linalg.norm(z)
        x = np.cross(up, z)
        x = x / np.linalg.norm(x)
        poses.append(np.stack([x, np.cross(z, x), z, position], 1))
    return np.stack(poses)


@given(seeds, st.floats(0.5, 3), st.floats(4, 50))
@settings(max_examples=20, deadline=None)
def test_spirals_follow_the_slow_formula(seed, near, far):
    c2w = forward_facing(seed)
    cameras = pinholes(c2w)
    assert_close(make_path("spiral", cameras, depth_range=(near, far))[0].c2w, slow_spiral(c2w, near, far, 120, 2, False))
    assert_close(make_path("spiral-flat", cameras, depth_range=(near, far))[0].c2w, slow_spiral(c2w, near, far, 60, 1, True))
    assert_close(make_path("spiral", cameras, 17, (near, far))[0].c2w, slow_spiral(c2w, near, far, 17, 2, False))


def test_a_spiral_moves_with_the_world():
    c2w = forward_facing(1)
    move = to_4x4(torch.cat([axis_angle_to_matrix(torch.tensor([0.4, 2.0, -1.0])), torch.tensor([[5.0], [1.0], [2.0]])], -1))
    moved = spiral(pinholes(transform_poses(c2w, move)), (1.0, 9.0), 10)
    assert_close(moved, transform_poses(spiral(pinholes(c2w), (1.0, 9.0), 10), move))


def test_a_spiral_without_depths_looks_where_the_axes_meet():
    c2w = dome(6, radius=3.0, centre=(0.0, 0.0, 0.0), low=1.2, high=1.5)
    path = spiral(pinholes(c2w), None, 12)
    focus = path[:, :, 3] - path[:, :, 2] * (path[:, :, 3] * path[:, :, 2]).sum(-1, keepdim=True)
    assert focus.norm(dim=-1).max() < 0.1


def test_a_spiral_without_depths_needs_axes_that_meet_in_front():
    c2w = dome(7)
    c2w[:, :, [0, 2]] *= -1
    with pytest.raises(SceneError, match="how far away"):
        spiral(pinholes(c2w), None)


def test_focus_is_finite_for_a_near_bound_of_zero():
    assert focus_distance((0.0, 1.0)) == pytest.approx(0.7)
    assert focus_distance((1.0, math.inf)) == pytest.approx(3.6)


# interpolate, ellipse


def test_interpolation_passes_through_every_pose_in_order():
    c2w = dome(8, n=5)
    poses = interpolate(c2w, 41)
    assert_close(poses[::10], c2w, 1e-9)
    assert_close(poses[4, :, 3], 0.6 * c2w[0, :, 3] + 0.4 * c2w[1, :, 3], 1e-9)
    is_rotation(poses)
    for a, middle, b in zip(c2w[:-1], poses[5::10], c2w[1:], strict=True):
        assert_close(a[:, :3].T @ middle[:, :3], middle[:, :3].T @ b[:, :3], 1e-6)


def test_interpolation_of_one_pose_stands_still():
    c2w = dome(9, n=1)
    assert_close(interpolate(c2w, 3), c2w.expand(3, 3, 4), 1e-12)


def test_an_ellipse_bounds_the_cameras_at_constant_speed():
    rng = np.random.default_rng(0)
    theta = torch.linspace(0, 2 * math.pi, 81)[:-1].double()
    height = torch.from_numpy(rng.uniform(-0.3, 0.3, 80))
    position = torch.stack([4 * theta.cos(), 2 * theta.sin(), height], -1)
    c2w = look_at(position, torch.tensor([1.0, 0.3, -1.0]), torch.tensor([0.0, 0.0, 1.0]))
    path = ellipse(c2w, 60)
    looks_at(path, [1.0, 0.3, -1.0], 1e-6)
    x, y, z = path[:, :, 3].unbind(-1)
    rx, ry = (float(torch.quantile((position[:, a] - c).abs(), 0.9)) for a, c in ((0, 1.0), (1, 0.3)))
    assert_close(((x - 1.0) / rx) ** 2 + ((y - 0.3) / ry) ** 2, [1.0] * 60, 0.1)
    assert_close(z, [float(height.mean())] * 60, 0.05 / abs(float(height.mean())))
    steps = torch.cat([path, path[:1]])[:, :, 3].diff(dim=0).norm(dim=-1)
    assert steps.max() / steps.min() < 1.02
    assert path[:, 2, 1].min() > 0


# make_path


@pytest.mark.parametrize("kind", [k for k in PATHS if k != "test"])
def test_every_path_keeps_the_first_cameras_picture_and_makes_as_many_frames_as_asked(kind):
    cameras = pinholes(forward_facing(2))
    cameras.distortion = torch.full((12, 13), 0.1)
    cameras.pixel_offset = 0.0
    cameras.width[1:], cameras.fx[1:] = 99, 7.0
    path, look = make_path(kind, cameras, 9, (1.0, 9.0))
    for made in (path, look) if look else (path,):
        assert len(made) == 9
        assert made.distortion is None
        assert made.pixel_offset == 0.0
        assert made.width.tolist() == [40] * 9
        assert made.fx.tolist() == [50.0] * 9
        assert made.c2w.dtype == torch.float32
        is_rotation(made.c2w)
    assert (look is not None) == (kind == "still")


@pytest.mark.parametrize("lens", [1, 2])
def test_paths_of_fisheyes_and_panoramas_are_a_right_angle_wide(lens, tmp_path):
    cameras = pinholes(forward_facing(2))
    cameras.lens = torch.full((12,), lens)
    file = tmp_path / "path.json"
    file.write_text(json.dumps({"c2w": torch.eye(4)[None].tolist(), "focal": 7.0}))
    for kind, focal in (("spiral", 20.0), (str(file), 7.0)):
        path, _ = make_path(kind, cameras, depth_range=(1.0, 9.0))
        assert path.lens is None
        assert torch.stack([path.fx, path.fy, path.cx, path.cy], -1)[0].tolist() == [focal, focal, 20.0, 15.0]


def test_still_stands_while_the_view_directions_move():
    cameras = pinholes(forward_facing(3))
    path, look = make_path("still", cameras, 6, (1.0, 9.0))
    spiral_path = make_path("spiral", cameras, 6, (1.0, 9.0))[0]
    assert look is not None
    assert torch.equal(look.c2w, spiral_path.c2w)
    assert torch.equal(path.c2w, spiral_path.c2w[:1].expand(6, 3, 4))
    around = pinholes(dome(4))
    look = make_path("still", around, 6, default="circle")[1]
    assert look is not None
    assert torch.equal(look.c2w, make_path("circle", around, 6)[0].c2w)


def test_the_test_path_is_the_test_views_as_they_are():
    cameras = pinholes(dome(5))
    cameras.distortion = torch.rand(30, 13)
    path, _ = make_path("test", cameras, test=[3, 8, 21, 29])
    assert path.distortion is not None
    assert torch.equal(path.c2w, cameras.c2w[[3, 8, 21, 29]])
    assert torch.equal(path.distortion, cameras.distortion[[3, 8, 21, 29]])
    assert torch.equal(make_path("test", cameras, 2, test=[3, 8, 21, 29])[0].c2w, cameras.c2w[[3, 21]])
    assert len(make_path("test", cameras, 100, test=[3, 8])[0]) == 2


@pytest.mark.parametrize(
    ("kind", "frames", "error", "words"),
    [
        ("spirl", None, ConfigError, "did you mean 'spiral'"),
        ("circle", 0, ConfigError, "at least 1 frame"),
        ("test", None, SceneError, "no test views"),
    ],
)
def test_what_is_no_path_is_refused(kind, frames, error, words):
    with pytest.raises(error, match=words):
        make_path(kind, pinholes(dome(0)), frames)


# JSON files


def as_list(c2w):
    return to_4x4(c2w).tolist()


def write(tmp_path, data):
    path = tmp_path / "path.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


def test_a_json_list_of_poses_is_a_path(tmp_path):
    poses = dome(6, n=4)
    path, _ = make_path(write(tmp_path, as_list(poses)), pinholes(dome(0)))
    assert_close(path.c2w, poses, 1e-6)
    assert path.fx.tolist() == [50.0] * 4
    short, _ = make_path(write(tmp_path, poses.tolist()), pinholes(dome(0)), 7)
    assert_close(short.c2w[::2], poses, 1e-6)


def test_a_json_path_may_bring_its_own_picture(tmp_path):
    cameras = pinholes(dome(0))
    poses = as_list(dome(6, n=2))
    path, _ = make_path(write(tmp_path, {"c2w": poses, "width": 80, "height": 60}), cameras)
    assert (path.fx[0], path.fy[0], path.cx[0], path.cy[0], path.width[1], path.height[1]) == (100, 100, 40, 30, 80, 60)
    path, _ = make_path(write(tmp_path, {"c2w": poses, "focal": 70, "fy": 71.5, "cx": 3, "height": 15}), cameras)
    assert (path.fx[0], path.fy[0], path.cx[0], path.cy[0], path.width[1], path.height[1]) == (70, 71.5, 3, 7.5, 40, 15)


POSE = np.eye(4).tolist()
BAD_FILES = {
    "not json": "{",
    "not utf-8": b"\xff\xfe[1",
    "no list": 3,
    "null": None,
    "no poses": [],
    "no key": {"poses": [POSE]},
    "ragged": [[[1, 2], [3]]],
    "words": [[["a"]]],
    "wrong shape": [[1, 2, 3]],
    "zero matrix": [np.zeros((4, 4)).tolist()],
    "NaN": "[[[NaN,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]]",
    "mirror": [np.diag([1, 1, -1, 1]).tolist()],
    "transposed": [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 2, 3, 1]]],
    "unknown key": {"c2w": [POSE], "focus": 3},
    "focal zero": {"c2w": [POSE], "focal": 0},
    "focal word": {"c2w": [POSE], "focal": "long"},
    "focal true": {"c2w": [POSE], "fx": True},
    "half a pixel": {"c2w": [POSE], "width": 10.5},
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("data", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_json_path_is_one_sentence_that_names_the_file(tmp_path, data):
    path = tmp_path / "path.json"
    path.write_bytes(data if isinstance(data, bytes) else (data if isinstance(data, str) else json.dumps(data)).encode())
    with pytest.raises(NerfitError, match="path.json") as caught:
        make_path(str(path), pinholes(dome(0)))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_missing_json_path_is_named(tmp_path):
    with pytest.raises(SceneError, match=r"gone.json can't be read"):
        make_path(str(tmp_path / "gone.json"), pinholes(dome(0)))


# splines


@given(seeds, st.integers(2, 6), st.integers(2, 9))
def test_a_glide_meets_every_key_frame_and_never_jolts(seed, count, between):
    c2w = dome(seed, n=count)
    poses = glide(c2w, (count - 1) * between + 1)
    assert_close(poses[::between], c2w, 1e-9)
    is_rotation(poses)
    fine = glide(c2w, (count - 1) * 200 + 1)
    velocity = fine[:, :, 3].diff(dim=0) * 200
    assert velocity.diff(dim=0).abs().max() < 0.2 * velocity.abs().max().clamp(min=1e-9)


def test_a_glide_is_the_cubic_through_four_points_with_the_outer_ones_directions():
    p = torch.tensor([0.0, 1.0, 5.0, 4.0], dtype=torch.float64)
    c2w = torch.eye(4, dtype=torch.float64)[:3].repeat(4, 1, 1)
    c2w[:, 0, 3] = p
    for t in (0.25, 0.5, 0.75):
        square, cube = 2 * p[0] - 5 * p[1] + 4 * p[2] - p[3], 3 * p[1] - p[0] - 3 * p[2] + p[3]
        slow = 0.5 * (2 * p[1] + (p[2] - p[0]) * t + square * t**2 + cube * t**3)
        assert_close(glide(c2w, 13)[4 + int(4 * t), 0, 3], slow, 1e-12)


def test_a_glide_of_one_or_two_poses_stands_or_goes_straight():
    c2w = dome(3, n=2)
    assert_close(glide(c2w[:1], 3), c2w[:1].expand(3, 3, 4), 1e-12)
    assert_close(glide(c2w, 5)[2, :, 3], c2w[:, :, 3].mean(0), 1e-12)


def test_key_frames_in_a_file_are_joined_by_a_glide(tmp_path):
    poses = dome(6, n=3)
    file = write(tmp_path, {"c2w": as_list(poses), "frames": 9})
    path, _ = make_path(file, pinholes(dome(0)))
    assert_close(path.c2w, glide(poses, 9), 1e-6)
    assert len(make_path(file, pinholes(dome(0)), 4)[0]) == 4
    with pytest.raises(SceneError, match="frames must be a positive whole number"):
        make_path(write(tmp_path, {"c2w": as_list(poses), "frames": 2.5}), pinholes(dome(0)))
