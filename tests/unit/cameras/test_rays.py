"""Pixels to rays: the pinhole formula, lenses, resizing and NDC, against plain float64 arithmetic."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import assert_close, rotation
from nerfit.cameras import Cameras, Rays
from nerfit.cameras.cameras import focal_from_fov
from nerfit.cameras.ndc import ndc_rays
from nerfit.scenes.scene import Scene

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4)
OFFSETS = pytest.mark.parametrize("offset", [0.0, 0.5])


def some_cameras(seed: int, sizes: list[tuple[int, int]], offset: float = 0.5, lens: bool = False) -> Cameras:
    """Cameras in random poses, each of its own size and intrinsics."""
    rng, n = np.random.default_rng(seed), len(sizes)
    c2w = [np.concatenate([rotation(rng), rng.normal(size=(3, 1))], 1) for _ in sizes]
    width, height = np.array(sizes).T
    fx, fy = torch.tensor(rng.uniform(5, 15, (2, n)), dtype=torch.float32)
    cx, cy = torch.tensor(np.stack([width, height]) * rng.uniform(0.3, 0.7, (2, n)), dtype=torch.float32)
    k = torch.tensor(some_lenses(rng, n), dtype=torch.float32) if lens else None
    return Cameras(torch.tensor(np.stack(c2w)).float(), fx, fy, cx, cy, torch.tensor(width), torch.tensor(height), k, offset)


def some_lenses(rng: np.random.Generator, n: int) -> np.ndarray:
    """Distortion of all kinds, weak enough that no two image points within 0.7 of the axis fall together."""
    return rng.uniform(-1, 1, (n, 13)) * [0.12, 0.04, 0.01, 0.01, *[0.01] * 2, 0.05, 0.02, 0.01, *[0.01] * 4]


def all_pixels(cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """View, column and row of every pixel of every camera."""
    rows = [(v, x, y) for v in range(len(cameras)) for y in range(int(cameras.height[v])) for x in range(int(cameras.width[v]))]
    views, x, y = torch.tensor(rows).T
    return views, x, y


def direction_twin(cameras: Cameras, view: int, x: float, y: float) -> list[float]:
    """The pinhole formula for one pixel."""
    fx, fy, cx, cy = (float(getattr(cameras, k)[view]) for k in ("fx", "fy", "cx", "cy"))
    camera = [(x + cameras.pixel_offset - cx) / fx, -(y + cameras.pixel_offset - cy) / fy, -1.0]
    turn = cameras.c2w[view, :, :3].tolist()
    return [sum(turn[i][j] * camera[j] for j in range(3)) for i in range(3)]


@OFFSETS
@given(seed=SEEDS, sizes=SIZES)
def test_directions_follow_the_pinhole_formula(offset, seed, sizes):
    cameras = some_cameras(seed, sizes, offset)
    views, x, y = all_pixels(cameras)
    twin = [direction_twin(cameras, v, i, j) for v, i, j in zip(views.tolist(), x.tolist(), y.tolist(), strict=True)]
    assert_close(cameras.directions(views, x, y), twin)


@pytest.mark.parametrize(("offset", "shift"), [(0.0, 0.0), (0.5, 0.5)])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 5), (8, 6)])
def test_pinhole_is_the_classic_formula(width, height, offset, shift):
    """((i - W/2)/f, -(j - H/2)/f, -1) with offset 0 (NeRF's code), pixel centres with 0.5."""
    cameras = Cameras.pinhole(torch.eye(4)[None], 3.7, width, height, offset)
    views, x, y = all_pixels(cameras)
    twin = [((i + shift - width / 2) / 3.7, -(j + shift - height / 2) / 3.7, -1) for i, j in zip(x.tolist(), y.tolist(), strict=True)]
    assert_close(cameras.directions(views, x, y), twin)


def test_pixels_are_sampled_at_their_centres_by_default():
    assert Cameras.pinhole(torch.eye(4)[None], 1.0, 1, 1).pixel_offset == 0.5


def test_a_right_angle_across_800_pixels_has_focal_length_400():
    assert focal_from_fov(math.pi / 2, 800) == pytest.approx(400, rel=1e-12)


@given(fov=st.floats(0.05, 3.0), size=st.integers(1, 5000))
def test_a_field_of_view_spans_the_image(fov, size):
    assert 2 * math.atan(size / 2 / focal_from_fov(fov, size)) == pytest.approx(fov, rel=1e-9)


@given(seed=SEEDS, sizes=SIZES)
def test_rays_keep_unit_depth_and_know_their_length_view_and_cone(seed, sizes):
    cameras = some_cameras(seed, sizes)
    views, x, y = all_pixels(cameras)
    rays = cameras.rays(views, x, y, 0.25, 8.0)
    assert len(rays) == len(views)
    assert_close((rays.directions * -cameras.c2w[views, :, 2]).sum(-1), np.ones(len(rays)))
    assert_close(rays.viewdirs.norm(dim=-1), np.ones(len(rays)))
    assert_close(rays.viewdirs * rays.directions.norm(dim=-1, keepdim=True), rays.directions)
    assert torch.equal(rays.origins, cameras.centers[views])
    assert torch.equal(rays.image_index, views)
    assert rays.near.tolist() == [0.25] * len(rays)
    assert rays.far.tolist() == [8.0] * len(rays)
    assert_close(rays.pixel_radius, [2 / math.sqrt(12) / float(cameras.fx[v]) for v in views])


def test_the_cone_of_a_ray_is_a_pixel_wide():
    """mip-NeRF: the radius at unit depth is the spacing of neighbouring pixels there times 2/√12."""
    cameras = Cameras.pinhole(torch.eye(4)[None], 50.0, 9, 9)
    rays = cameras.rays(torch.tensor([0, 0]), torch.tensor([4, 5]), torch.tensor([4, 4]), 1.0, 2.0)
    spacing = (rays.directions[1] - rays.directions[0]).norm()
    assert_close(rays.pixel_radius[0], spacing * 2 / 12**0.5)


@pytest.mark.parametrize("index", [slice(1, 4), torch.tensor([3, 0, 3]), torch.tensor([True, False, True, False, True, False])])
def test_rays_and_cameras_are_indexed_alike(index):
    cameras = some_cameras(3, [(2, 3)] * 6, lens=True)
    rays = cameras.rays(torch.arange(6), torch.zeros(6), torch.ones(6), 1.0, 2.0)
    chosen = cameras[index]
    views = torch.arange(6)[index]
    assert len(chosen) == len(rays[index]) == len(views)
    again = chosen.rays(torch.arange(len(views)), torch.zeros(len(views)), torch.ones(len(views)), 1.0, 2.0)
    for name in ("origins", "directions", "viewdirs", "pixel_radius"):
        assert torch.equal(getattr(rays[index], name), getattr(again, name))
    assert torch.equal(rays[index].image_index, views)


def test_one_camera_of_many_stays_a_batch():
    cameras = some_cameras(0, [(4, 3), (5, 7)], lens=True)
    one = cameras[1]
    assert (len(one), one.width.tolist(), one.height.tolist()) == (1, [5], [7])
    assert torch.equal(one.c2w, cameras.c2w[1:])


@given(seed=SEEDS, sizes=SIZES, lens=st.booleans())
def test_cameras_survive_json_exactly(seed, sizes, lens):
    cameras = some_cameras(seed, sizes, 0.0, lens)
    again = Cameras.from_state(json.loads(json.dumps(cameras.state())))
    views, x, y = all_pixels(cameras)
    assert torch.equal(again.directions(views, x, y), cameras.directions(views, x, y))
    assert again.state() == cameras.state()
    assert (again.width.dtype, again.pixel_offset) == (torch.int64, 0.0)


# --- The same picture at other sizes --------------------------------------------------------------------------------


def assert_same_view(old: Cameras, new: Cameras, seed: int, scale: Tensor, shift: tuple[float, float] = (0.0, 0.0)) -> None:
    """Rays through corresponding image points (p in ``old``, scale·p - shift in ``new``) are equal."""
    views = torch.arange(len(old)).repeat(5)
    rng = torch.Generator().manual_seed(seed % 2**32)
    px, py = (torch.rand(len(views), generator=rng) * side[views] for side in (old.width, old.height))
    qx, qy = px * scale[views, 0] - shift[0], py * scale[views, 1] - shift[1]
    offset = old.pixel_offset
    assert_close(new.directions(views, qx - offset, qy - offset), old.directions(views, px - offset, py - offset))
    assert torch.equal(new.centers, old.centers)
    assert new.pixel_offset == offset


@OFFSETS
@given(seed=SEEDS, sizes=SIZES, factor=st.floats(0.1, 5), lens=st.booleans())
def test_rescaled_cameras_see_the_same(offset, seed, sizes, factor, lens):
    old = some_cameras(seed, sizes, offset, lens)
    new = old.rescale(factor)
    assert new.width.tolist() == [max(1, round(float(np.float32(w) * np.float32(factor)))) for w, _ in sizes]
    assert new.height.tolist() == [max(1, round(float(np.float32(h) * np.float32(factor)))) for _, h in sizes]
    assert_same_view(old, new, seed, torch.stack([new.width / old.width, new.height / old.height], -1))


@OFFSETS
@given(seed=SEEDS, sizes=SIZES, size=st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_resized_cameras_see_the_same(offset, seed, sizes, size):
    old = some_cameras(seed, sizes, offset)
    new = old.resize(*size)
    assert set(zip(new.width.tolist(), new.height.tolist(), strict=True)) == {size}
    assert_same_view(old, new, seed, torch.stack([new.width / old.width, new.height / old.height], -1))


@OFFSETS
@given(seed=SEEDS, sizes=SIZES, window=st.tuples(*[st.integers(-5, 9)] * 2, *[st.integers(1, 9)] * 2))
def test_cropped_cameras_see_the_same(offset, seed, sizes, window):
    old = some_cameras(seed, sizes, offset, lens=True)
    new = old.crop(*window)
    assert new.width.tolist() == [window[2]] * len(old)
    assert new.height.tolist() == [window[3]] * len(old)
    assert_same_view(old, new, seed, torch.ones(len(old), 2), window[:2])


def test_halving_changes_every_intrinsic():
    old = Cameras.pinhole(torch.eye(4)[None], 400.0, 800, 600)
    new = old.rescale(0.5)
    assert [float(getattr(new, k)) for k in ("fx", "fy", "cx", "cy", "width", "height")] == [200, 200, 200, 150, 400, 300]


# --- NDC ------------------------------------------------------------------------------------------------------------


def forward_rays(seed: int, n: int) -> tuple[Rays, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """World rays that look along -z from near the origin, and fx, fy, width, height per ray."""
    rng = np.random.default_rng(seed)
    origins = rng.uniform(-0.5, 0.5, (n, 3))
    directions = np.concatenate([rng.uniform(-0.6, 0.6, (n, 2)), -rng.uniform(0.5, 1.5, (n, 1))], 1)
    o, d = torch.tensor(origins, dtype=torch.float32), torch.tensor(directions, dtype=torch.float32)
    fx, fy, width, height = torch.tensor(rng.uniform(300, 600, (4, n)), dtype=torch.float32)
    unit, ones = torch.nn.functional.normalize(d, dim=-1), torch.ones(n)
    return Rays(o, d, unit, ones, 9 * ones, 0.002 * ones, torch.arange(n)), (fx, fy, width, height)


def ndc_twin(o: list[float], d: list[float], intrinsics: list[float], n: float) -> tuple[list[float], list[float]]:
    """bmild's formulas for one ray."""
    fx, fy, w, h = intrinsics
    t = -(n + o[2]) / d[2]
    o = [o[i] + t * d[i] for i in range(3)]
    origin = [-2 * fx / w * o[0] / o[2], -2 * fy / h * o[1] / o[2], 1 + 2 * n / o[2]]
    direction = [-2 * fx / w * (d[0] / d[2] - o[0] / o[2]), -2 * fy / h * (d[1] / d[2] - o[1] / o[2]), -2 * n / o[2]]
    return origin, direction


@given(seed=SEEDS, n=st.integers(1, 7), plane=st.sampled_from([1.0, 0.7, 2.5]))
def test_ndc_is_bmilds(seed, n, plane):
    rays, intrinsics = forward_rays(seed, n)
    warped = ndc_rays(rays, *intrinsics, near_plane=plane)
    numbers = zip(rays.origins.tolist(), rays.directions.tolist(), *(k.tolist() for k in intrinsics), strict=True)
    origins, directions = zip(*(ndc_twin(o, d, k, plane) for o, d, *k in numbers), strict=True)
    assert_close(warped.origins, origins)
    assert_close(warped.directions, directions)
    assert torch.equal(warped.viewdirs, rays.viewdirs)
    assert (warped.near.tolist(), warped.far.tolist()) == ([0.0] * n, [1.0] * n)
    assert torch.equal(warped.image_index, rays.image_index)


@given(seed=SEEDS, n=st.integers(1, 7), depth=st.floats(1.01, 1e4))
def test_a_world_point_and_its_ndc_image_agree_along_the_ray(seed, n, depth):
    """The point where the ray is ``depth`` from the world's origin lies on the NDC ray at s = 1 - 1/depth."""
    rays, intrinsics = forward_rays(seed, n)
    fx, fy, width, height = (k.double() for k in intrinsics)
    o, d = rays.origins.double(), rays.directions.double()
    x, y, z = (o + d * (-(depth + o[:, 2]) / d[:, 2])[:, None]).unbind(-1)
    image = torch.stack([-2 * fx / width * x / z, -2 * fy / height * y / z, 1 + 2 / z], -1)
    warped = ndc_rays(rays, *intrinsics)
    assert_close(warped.origins + warped.directions * (1 - 1 / depth), image)


def test_ndc_keeps_a_cone_one_pixel_wide():
    """The cube spans 2 over the image's width, so a pixel there is 2/W wide whatever the depth."""
    rays, intrinsics = forward_rays(5, 4)
    rays.pixel_radius = 2 / 12**0.5 / intrinsics[0]
    assert_close(ndc_rays(rays, *intrinsics).pixel_radius, 2 / 12**0.5 * 2 / intrinsics[2])


def forward_scene(ndc: bool) -> Scene:
    """Two cameras of different size and focal length, side by side, that look along -z."""
    c2w = torch.eye(4)[None, :3].repeat(2, 1, 1)
    c2w[:, :, 3] = torch.tensor([[0.1, -0.2, 0.3], [-0.4, 0.2, 0.1]])
    f, size, half = torch.tensor([20.0, 31.0]), torch.tensor([5, 8]), torch.tensor([2.5, 4.0])
    cameras = Cameras(c2w, f, f + 1, half, half - 1, size, size - 2)
    return Scene("wall", "test", cameras, 0.5, 40.0, {"train": [0, 1]}, bounds="forward-facing", ndc=ndc)


def test_a_scene_in_ndc_warps_all_views_alike_with_the_first_ones_intrinsics():
    scene = forward_scene(ndc=True)
    cameras = scene.cameras
    views, x, y = all_pixels(cameras)
    plain = forward_scene(ndc=False).rays(views, x, y)
    assert (set(plain.near.tolist()), set(plain.far.tolist())) == ({0.5}, {40.0})
    rays = scene.rays(views, x, y)
    numbers = [float(k[0]) for k in (cameras.fx, cameras.fy, cameras.width, cameras.height)]
    for r in range(len(rays)):
        origin, direction = ndc_twin(plain.origins[r].tolist(), plain.directions[r].tolist(), numbers, 1.0)
        assert_close(rays.origins[r], origin)
        assert_close(rays.directions[r], direction)
    assert torch.equal(rays.viewdirs, plain.viewdirs)


@pytest.mark.parametrize("ndc", [False, True])
def test_view_directions_of_other_cameras_replace_nothing_else(ndc):
    scene = forward_scene(ndc)
    views, x, y = all_pixels(scene.cameras)
    look = some_cameras(2, [(5, 3), (8, 6)])
    plain, turned = scene.rays(views, x, y), scene.rays(views, x, y, look=look)
    assert torch.equal(turned.viewdirs, look.rays(views, x, y, 1.0, 2.0).viewdirs)
    for name in ("origins", "directions", "near", "far", "pixel_radius"):
        assert torch.equal(getattr(turned, name), getattr(plain, name))
