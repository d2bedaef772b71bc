"""How captures are normalised: the kind of bounds, centre, near and far, with and without points; and PLY files of points."""

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import around, assert_close, rotation
from nerfit.cameras import Cameras
from nerfit.cameras.paths import make_path
from nerfit.cameras.poses import scale_of, transform_poses
from nerfit.errors import ConfigError, SceneError
from nerfit.sampling.space import OccupiedSpace
from nerfit.scenes.reading.normalise import NormaliseConfig, normalise
from nerfit.scenes.reading.ply import read_ply, write_ply
from nerfit.scenes.scene import Scene

VIEWS = 12


def capture(pose: Callable[[int], np.ndarray], views: int = VIEWS) -> Cameras:
    cameras = Cameras.pinhole(torch.from_numpy(np.stack([pose(i) for i in range(views)])), 50.0, 60, 40)
    cameras.c2w = cameras.c2w.double()
    return cameras


def ring(view: int) -> np.ndarray:
    return around(2 * math.pi * view / VIEWS, 0.2 + 0.03 * view)


def side_by_side(view: int) -> np.ndarray:
    c2w = np.eye(4)
    c2w[:2, 3] = 0.1 * view, 0.1 * (view % 3)
    return c2w


def fan(view: int) -> np.ndarray:
    return around(0.06 * view, 0.3)


def walk(view: int) -> np.ndarray:
    c2w = side_by_side(view % 2)
    c2w[2, 3] = -view
    return c2w


def half_turn(view: int) -> np.ndarray:
    return around(0.25 * view, 0.3)


def cloud(seed: int, count: int = 200) -> np.ndarray:
    """Points between 2 and 9 in front of `side_by_side`, each in view of some camera but few of all."""
    z = -np.random.default_rng(seed).uniform(2, 9, count)
    return np.stack([0.5 + 0.58 * z * np.sin(np.arange(count)), 0.38 * z * np.cos(np.arange(count)), z], -1)


def slow_depths(cameras: Cameras, points: np.ndarray) -> list[float]:
    """Depths of the points in the picture, one after another."""
    found = []
    for view in range(len(cameras)):
        c2w = cameras.c2w[view].double().numpy()
        for point in points:
            x, y, z = c2w[:, :3].T @ (point - c2w[:, 3])
            column, row = 30 + 50 * x / -z, 20 - 50 * y / -z
            if z < 0 and 0 <= column <= 60 and 0 <= row <= 40:
                found.append(-z)
    return found


@pytest.mark.parametrize(
    ("pose", "bounds", "path"),
    [
        (ring, "unbounded", "ellipse"),
        (side_by_side, "forward-facing", "interpolate"),
        (fan, "forward-facing", "spiral"),
        (walk, "unbounded", "interpolate"),
        (half_turn, "unbounded", "interpolate"),
    ],
)
def test_bounds_follow_from_where_cameras_stand_and_look(pose, bounds, path):
    found = normalise(capture(pose))
    assert (found.bounds, found.default_path, found.near, found.far, found.depth_range) == (bounds, path, 0.05, 100.0, None)
    assert normalise(capture(pose), bounds="object").bounds == "object"


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100), pose=st.sampled_from([ring, side_by_side, fan, walk, half_turn]))
def test_a_place_does_not_depend_on_the_files_world(seed, scale, pose):
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(cloud(seed))
    world = torch.eye(4, dtype=torch.float64)
    world[:3, :3], world[:3, 3] = torch.from_numpy(scale * rotation(rng)), torch.from_numpy(rng.normal(size=3) * 10 * scale)
    cameras = capture(pose)
    moved = replace(cameras, c2w=transform_poses(cameras.c2w, world))
    here, there = normalise(cameras, points), normalise(moved, points @ world[:3, :3].T + world[:3, 3])
    assert (here.bounds, here.default_path) == (there.bounds, there.default_path)
    assert (there.near, there.far) == pytest.approx((here.near, here.far), rel=1e-6)
    assert here.depth_range == (None if there.depth_range is None else pytest.approx(there.depth_range, rel=1e-6))
    assert scale_of(there.transform) == pytest.approx(scale_of(here.transform) / scale, rel=1e-6)
    assert_close(transform_poses(moved.c2w, there.transform).norm(dim=1), transform_poses(cameras.c2w, here.transform).norm(dim=1), 1e-6)


def test_depths_are_those_of_the_points_in_view():
    cameras, points = capture(side_by_side), cloud(3)
    points[:20, 0] += 50
    points[20:40, 2] *= -1
    depths = slow_depths(cameras, points)
    assert 10 < len(depths) < VIEWS * 160
    found = normalise(cameras, torch.from_numpy(points), centre=False)
    assert found.depth_range == pytest.approx(np.quantile(depths, [0.001, 0.999]), rel=1e-9)
    assert torch.equal(found.transform, torch.eye(4, dtype=torch.float64))
    low, high = np.quantile(depths, [0.001, 0.999])
    assert (found.near, found.far) == pytest.approx((0.9 * low, 1.1 * high))
    assert found.default_path == "spiral"
    assert len(make_path("spiral", cameras, 5, found.depth_range)[0]) == 5
    centred = normalise(cameras, torch.from_numpy(points))
    unit = scale_of(centred.transform)
    assert (centred.near, centred.far) == pytest.approx((found.near * unit, found.far * unit))
    middle = np.append(cameras.centers.mean(0).numpy() - [0, 0, np.median(depths)], 1)
    assert_close((centred.transform.numpy() @ middle)[:3] + 1, np.ones(3), 1e-2)
    assert float(transform_poses(cameras.c2w, centred.transform)[:, :, 3].norm(dim=-1).mean()) == pytest.approx(1)


def test_points_narrow_the_range_of_an_object_and_open_that_of_a_place():
    cameras = capture(ring)
    around_origin = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (500, 3)))
    alone = normalise(cameras, bounds="object", centre=False)
    assert (alone.near, alone.far) == pytest.approx((1, 7))
    narrowed = normalise(cameras, around_origin, "object", centre=False)
    assert 1 < narrowed.near < 3 and 5 < narrowed.far < 7
    wide = normalise(cameras, 1000 * around_origin, "object", centre=False)
    assert (wide.near, wide.far) == pytest.approx((1, 7))
    unbounded = normalise(cameras, around_origin, centre=False)
    assert unbounded.depth_range is not None
    assert (unbounded.near, unbounded.far) == pytest.approx((0.5 * unbounded.depth_range[0], 400))
    distant = normalise(cameras, 1000 * around_origin, centre=False)
    assert distant.depth_range is not None and distant.far == pytest.approx(2 * distant.depth_range[1])


@pytest.mark.parametrize("count", [0, 1, 9])
def test_too_few_points_say_nothing(count):
    cameras = capture(walk)[[0]]
    points = torch.tensor([[0.0, 0.0, -5.0]], dtype=torch.float64).expand(count, 3)
    assert normalise(cameras, points).depth_range is None


def test_many_points_and_views_are_sampled():
    cameras = capture(side_by_side, 450)
    cameras.c2w[:, :2, 3] *= 0.01
    points = torch.from_numpy(cloud(1, 30_000))
    found = normalise(cameras, points, centre=False)
    assert found.depth_range == pytest.approx((2, 9), rel=0.01)


def test_a_forward_facing_scene_without_ndc_has_room_for_what_is_visible():
    cameras, points = capture(side_by_side), torch.from_numpy(cloud(4))
    found = normalise(cameras, points)
    cameras.c2w = transform_poses(cameras.c2w, found.transform).float()
    scene = Scene("wall", "test", cameras, found.near, found.far, {"train": list(range(VIEWS))}, bounds=found.bounds)
    space = OccupiedSpace(scene, 64)
    here = torch.from_numpy(np.c_[points, np.ones(len(points))]) @ found.transform.T
    x, inside = space.to_cascades(here[:, :3].float())
    assert space.cascades > 1 and inside.all()
    assert ((x - 0.5).abs().amax(-1) < 0.5).float().mean() > 0.5


# --- PLY ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_forward_facing_places_with_points_are_taken_to_ndc(scale):
    """The nearest depths lie a third beyond the plane at distance 1, the cameras around the origin, looking along -z."""
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = scale * rotation(np.random.default_rng(3)), 5.0
    cameras, points = capture(side_by_side), torch.from_numpy(cloud(2) @ world[:3, :3].T + world[:3, 3])
    cameras = replace(cameras, c2w=transform_poses(cameras.c2w, torch.from_numpy(world)))
    normalised = normalise(cameras, points, ndc=None)
    moved = transform_poses(cameras.c2w, normalised.transform)
    assert normalised.ndc and (normalised.near, normalised.far, normalised.default_path) == (0.0, 1.0, "spiral")
    assert moved[:, :, 3].mean(0).abs().max() < 1e-9
    assert_close(moved[:, :, 2], torch.tensor([0.0, 0, 1]).expand(VIEWS, 3), 1e-9)
    depths = slow_depths(capture(side_by_side), cloud(2))
    assert normalised.depth_range == pytest.approx((1 / 0.75, max(depths) / min(depths) / 0.75), rel=0.02)


def test_ndc_is_left_out_where_it_does_not_suit():
    points = torch.from_numpy(cloud(2))
    assert not normalise(capture(side_by_side), None, ndc=None).ndc
    assert not normalise(capture(side_by_side), points).ndc
    assert not normalise(capture(ring), torch.zeros(30, 3), ndc=None).ndc
    fisheye = replace(capture(side_by_side), lens=torch.ones(VIEWS, dtype=torch.long))
    assert not normalise(fisheye, points, ndc=None).ndc
    for cameras, known in ((fisheye, points), (capture(side_by_side), None), (capture(ring), points)):
        with pytest.raises(ConfigError, match="normalised device coordinates need"):
            normalise(cameras, known, ndc=True)
    settings = [NormaliseConfig(), NormaliseConfig(near=0.1), NormaliseConfig(centre=False), NormaliseConfig(near=0.1, ndc=True)]
    assert [config.wants_ndc for config in settings] == [None, False, False, True]


def test_points_survive_a_ply_file(tmp_path: Path):
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 3)))
    assert_close(read_ply(write_ply(tmp_path / "a.ply", points)), points, 1e-6)
    assert read_ply(write_ply(tmp_path / "none.ply", points[:0])).shape == (0, 3)


@pytest.mark.parametrize("order", ["<", ">", ""])
def test_ply_files_of_others_are_read(tmp_path: Path, order: str):
    """Colours, doubles, another order of properties, further elements, points that are not finite."""
    rows = [(1, 2.5, 3.0, -4.25), (2, math.nan, 1.0, 1.0), (255, 1e-3, 0.0, 7.0)]
    form = {"<": "binary_little_endian", ">": "binary_big_endian", "": "ascii"}[order]
    head = f"ply\nformat {form} 1.0\ncomment made by hand\nelement vertex 3\nproperty uchar red\nproperty double z\nproperty float x\n"
    head += "property float32 y\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
    body = "".join(" ".join(map(str, row)) + "\n" for row in rows).encode() + b"3 0 1 2\n"
    if order:
        body = b"".join(struct.pack(order + "Bdff", *row) for row in rows) + b"\3" + bytes(12)
    (tmp_path / "a.ply").write_bytes(head.encode() + body)
    assert read_ply(tmp_path / "a.ply").tolist() == [[3.0, -4.25, 2.5], [0.0, 7.0, pytest.approx(1e-3)]]


BINARY = "ply\nformat binary_little_endian 1.0\n"
XYZ = "property float x\nproperty float y\nproperty float z\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no PLY header"),
        ("plywood\n", "no PLY header"),
        (f"{BINARY}element vertex 1000000000000000000\n{XYZ}end_header\n", "cut short of its 1000000000000000000"),
        (f"{BINARY}element vertex -3\n{XYZ}end_header\n", "fewer than 0"),
        (f"{BINARY}element vertex many\n{XYZ}end_header\n", "many"),
        (f"{BINARY}element face 1\n{XYZ}end_header\n", "'vertex'"),
        (f"{BINARY}element vertex 1\nproperty list uchar int x\nend_header\n", "lack x, y or z"),
        (f"{BINARY}element vertex 2\n{XYZ}end_header\n123456789012", "cut short of its 2"),
        (f"ply\nformat ascii 1.0\nelement vertex 2\n{XYZ}end_header\n1 2 3\n", "cut short of its 2"),
        (f"ply\nformat ascii 1.0\nelement vertex 1\n{XYZ}end_header\n1 two 3\n", "two"),
        (f"ply\nformat runes 1.0\nelement vertex 1\n{XYZ}end_header\n1 2 3\n", "runes"),
    ],
)
def test_damaged_ply_files_are_refused_in_a_sentence(tmp_path: Path, text, message):
    (tmp_path / "bad.ply").write_text(text)
    with pytest.raises(SceneError, match=message) as caught:
        read_ply(tmp_path / "bad.ply")
    assert "bad.ply" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(SceneError, match="No such file"):
        read_ply(tmp_path / "none.ply")
