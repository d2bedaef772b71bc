"""Lenses of every kind: against the formulas that OpenCV and COLMAP print, there and back, and where they fold over."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_rays import all_pixels, some_cameras, some_lenses
from torch import Tensor

from conftest import assert_close
from nerfit.cameras import Cameras
from nerfit.cameras.lenses import LENS_PARAMETERS, LENSES, distort, project, undistort, unproject
from nerfit.cameras.rotations import project_to_so3
from nerfit.errors import SceneError
from nerfit.kernels.layouts import BLOCKS
from nerfit.sampling.occupancy import seen_blocks
from nerfit.scenes.scene import Scene

SEEDS = st.integers(0, 2**32 - 1)


def lens_of(count: int = 1, **parameters: float) -> Tensor:
    return torch.tensor([[parameters.get(name, 0.0) for name in LENS_PARAMETERS]] * count, dtype=torch.float64)


def distort_twin(u: float, v: float, k: list[float]) -> tuple[float, float]:
    """OpenCV's formula as its documentation prints it, with one more power of r in the numerator."""
    k1, k2, k3, k4, p1, p2, k4_cv, k5_cv, k6_cv, s1, s2, s3, s4 = k
    r = math.hypot(u, v)
    radial = (1 + k1 * r**2 + k2 * r**4 + k3 * r**6 + k4 * r**8) / (1 + k4_cv * r**2 + k5_cv * r**4 + k6_cv * r**6)
    return (
        u * radial + 2 * p1 * u * v + p2 * (r**2 + 2 * u**2) + s1 * r**2 + s2 * r**4,
        v * radial + p1 * (r**2 + 2 * v**2) + 2 * p2 * u * v + s3 * r**2 + s4 * r**4,
    )


def image_twin(direction: list[float], lens: str, k: list[float]) -> tuple[float, float]:
    """The image point of a direction in camera axes (right, up, backwards), by each model's own formula."""
    x, y, z = direction[0], -direction[1], -direction[2]
    if lens == "equirectangular":
        return math.atan2(x, z), math.asin(y / math.sqrt(x * x + y * y + z * z))
    if lens == "perspective":
        return distort_twin(x / z, y / z, k)
    theta = math.acos(z / math.sqrt(x * x + y * y + z * z))
    across = math.hypot(x, y)
    return distort_twin(theta * x / across, theta * y / across, k)


# --- Distortion -----------------------------------------------------------------------------------------------------


@given(seed=SEEDS, n=st.integers(1, 9))
def test_distortion_is_opencvs(seed, n):
    rng = np.random.default_rng(seed)
    u, v, k = (torch.tensor(a) for a in (*rng.uniform(-0.7, 0.7, (2, n)), some_lenses(rng, n)))
    twin = [distort_twin(*row) for row in zip(u.tolist(), v.tolist(), k.tolist(), strict=True)]
    assert_close(torch.stack(distort(u, v, k), -1), twin, 1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@given(seed=SEEDS, n=st.integers(1, 9))
def test_undistorting_undoes_the_lens(dtype, tolerance, seed, n):
    rng = np.random.default_rng(seed)
    u, v, k = (torch.tensor(a, dtype=dtype) for a in (*rng.uniform(-0.5, 0.5, (2, n)), some_lenses(rng, n)))
    assert_close(torch.stack(undistort(*distort(u, v, k), k)), torch.stack([u, v]), tolerance)


@given(seed=SEEDS, n=st.integers(1, 9))
def test_undistorting_converges_quadratically(seed, n):
    """Four of Newton's steps are enough; with any other slope the error would only shrink by a factor each time."""
    rng = np.random.default_rng(seed)
    u, v, k = (torch.tensor(a) for a in (*rng.uniform(-0.5, 0.5, (2, n)), some_lenses(rng, n)))
    assert_close(torch.stack(undistort(*distort(u, v, k), k, iterations=4)), torch.stack([u, v]), 1e-10)


def fold_twin(k: list[float]) -> tuple[float, float]:
    """Radius at which a radial lens's image stops growing (at most 5), and the image's radius there, by small steps."""
    r = np.linspace(0, 5, 50_001)
    k1, k2, k3, k4, d1, d2, d3 = (k[LENS_PARAMETERS.index(name)] for name in ("k1", "k2", "k3", "k4", "d1", "d2", "d3"))
    below = 1 + d1 * r**2 + d2 * r**4 + d3 * r**6
    image = r * (1 + k1 * r**2 + k2 * r**4 + k3 * r**6 + k4 * r**8) / below
    stop = np.flatnonzero((np.diff(image) <= 0) | (below[1:] <= 0))
    end = int(stop[0]) if len(stop) else len(r) - 1
    return float(r[end]), float(image[end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=SEEDS, scale=st.sampled_from([0.1, 0.5, 2.0]))
def test_strong_lenses_are_undone_up_to_their_fold_and_finite_beyond(dtype, seed, scale):
    """Barrel lenses as wide cameras have them; rays beyond the fold stay inside of it."""
    rng = np.random.default_rng(seed)
    k = lens_of(k1=-0.5 * scale * rng.random(), k2=-0.2 * scale * rng.random(), d1=0.3 * scale * rng.random())
    fold, edge = fold_twin(k[0].tolist())
    angle = rng.uniform(0, 2 * math.pi, 64)
    radius = np.concatenate([np.linspace(0, 0.98 * min(fold, 1.5), 32), np.linspace(1.02, 100, 32) * edge])
    u, v = (torch.tensor(radius * f(angle), dtype=dtype) for f in (np.cos, np.sin))
    k = k.to(dtype).expand(64, 13)
    ud, vd = distort(u, v, k)
    ideal = torch.stack(undistort(torch.cat([ud[:32], u[32:]]), torch.cat([vd[:32], v[32:]]), k))
    assert_close(ideal[:, :32], torch.stack([u, v])[:, :32], 1e-3 if dtype == torch.float32 else 1e-9)
    if fold < 5:
        assert (ideal.norm(dim=0)[32:] <= fold * 1.0001).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e9])
def test_no_lens_makes_anything_but_finite_rays(dtype, size):
    generator = torch.Generator().manual_seed(1)
    k = torch.randn(4000, 13, generator=generator, dtype=dtype) * size
    u, v = torch.randn(2, 4000, generator=generator, dtype=dtype) * 10
    lens = torch.arange(4000) % 3
    assert unproject(u, v, lens, k).isfinite().all()


# --- Kinds of lenses ------------------------------------------------------------------------------------------------


def rig(seed: int, sizes: list[tuple[int, int]], kind: str | None = None) -> Cameras:
    """Cameras of all kinds, one after another, or of one, in float64; panoramas span the sphere."""
    cameras = some_cameras(seed, sizes, lens=True)
    lens = torch.tensor([LENSES.index(kind) if kind else i % 3 for i in range(len(sizes))])
    whole = lens == 2
    fx, cx = (torch.where(whole, cameras.width * f, old) for f, old in ((0.5 / math.pi, 3 * cameras.fx), (0.5, cameras.cx)))
    fy, cy = (torch.where(whole, cameras.height * f, old) for f, old in ((1 / math.pi, 3 * cameras.fy), (0.5, cameras.cy)))
    assert cameras.distortion is not None
    k = torch.where(whole[:, None], 0, cameras.distortion)
    c2w = torch.cat([project_to_so3(cameras.c2w[:, :, :3].double())[0], cameras.c2w[:, :, 3:]], -1)
    doubles = {name: t.double() for name, t in {"c2w": c2w, "fx": fx, "fy": fy, "cx": cx, "cy": cy, "distortion": k}.items()}
    return replace(cameras, lens=lens, **doubles)


@pytest.mark.parametrize("kind", [*LENSES, None])
@given(seed=SEEDS, sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
def test_every_pixel_projects_back_onto_itself(kind, seed, sizes):
    cameras = rig(seed, sizes, kind)
    views, x, y = all_pixels(cameras)
    points = cameras.centers[views] + 3 * cameras.directions(views, x, y)
    pixels, seen = cameras.project(views, points)
    assert seen.all()
    assert (pixels - torch.stack([x, y], -1) - 0.5).abs().max() < 1e-6


@given(seed=SEEDS)
def test_points_appear_where_the_formulas_say(seed):
    cameras = rig(seed, [(9, 6)] * 6)
    rng = np.random.default_rng(seed)
    local = np.concatenate([rng.uniform(-0.6, 0.6, (6, 2)), -rng.uniform(0.9, 1.5, (6, 1))], 1)
    views = torch.arange(6)
    world = torch.einsum("rij,rj->ri", cameras.c2w[:, :, :3], torch.tensor(local)) + cameras.centers
    pixels, seen = cameras.project(views, world)
    assert seen.all()
    assert cameras.lens is not None
    assert cameras.distortion is not None
    for i in range(6):
        u, v = image_twin(local[i].tolist(), LENSES[int(cameras.lens[i])], cameras.distortion[i].tolist())
        expected = [float(cameras.fx[i]) * u + float(cameras.cx[i]), float(cameras.fy[i]) * v + float(cameras.cy[i])]
        assert_close(pixels[i], expected, 1e-9)


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.2, math.pi / 2, 2.0, 3.1])
def test_a_fisheye_sees_at_distance_theta_what_lies_theta_off_its_axis(angle):
    lens, k = torch.tensor([1]), lens_of(k1=-0.01, k2=0.002)
    u, v, seen = project(torch.tensor([[math.sin(angle), 0.0, -math.cos(angle)]], dtype=torch.float64), lens, None)
    assert seen.all()
    assert (float(u), float(v)) == pytest.approx((angle, 0))
    direction = torch.tensor([[math.sin(angle) * 0.6, -math.sin(angle) * 0.8, -math.cos(angle)]], dtype=torch.float64)
    u, v, _ = project(direction, lens, k)
    radius = angle * (1 - 0.01 * angle**2 + 0.002 * angle**4)
    assert (float(u), float(v)) == pytest.approx((0.6 * radius, 0.8 * radius))
    assert_close(unproject(u, v, lens, k), direction, 1e-9)


def test_a_panorama_spans_the_sphere():
    """Left edge behind, middle ahead, a quarter further right; top row up."""
    camera = replace(Cameras.pinhole(torch.eye(4)[None], 8 / (2 * math.pi), 8, 4), lens=torch.tensor([2]))
    x, y = torch.tensor([-0.5, 1.5, 3.5, 5.5, 3.5, 3.5]), torch.tensor([1.5, 1.5, 1.5, 1.5, -0.5, 3.5])
    expected = [[0, 0, 1], [-1, 0, 0], [0, 0, -1], [1, 0, 0], [0, 1, 0], [0, -1, 0]]
    assert_close(camera.directions(torch.zeros(6).long(), x, y), expected, 1e-6)


@pytest.mark.parametrize(("lens", "direction", "seen"), [
    ("perspective", [0.1, 0.2, -1.0], True),
    ("perspective", [0.1, 0.2, 1.0], False),
    ("perspective", [0.1, 0.2, 0.0], False),
    ("fisheye", [1.0, 0.0, 0.5], True),
    ("fisheye", [0.0, 0.0, -1.0], True),
    ("fisheye", [0.0, 0.0, 1.0], False),
    ("equirectangular", [0.0, 0.3, 1.0], True),
])  # fmt: skip
def test_what_is_behind_is_not_visible(lens, direction, seen):
    u, v, found = project(torch.tensor([direction]), torch.tensor([LENSES.index(lens)]), None)
    assert found.tolist() == [seen]
    assert u.isfinite().all()
    assert v.isfinite().all()


def test_what_lies_beyond_the_fold_is_not_visible():
    k = lens_of(2, k1=-0.3)  # the image of radius r is largest at r = 1.054
    u, v, seen = project(torch.tensor([[1.0, 0, -1], [1.2, 0, -1]], dtype=torch.float64), None, k)
    assert seen.tolist() == [True, False]
    assert u.tolist() == pytest.approx([0.7, 1.2 - 0.3 * 1.2**3])


def test_other_lenses_have_rays_of_unit_length():
    cameras = rig(3, [(6, 4)] * 6)
    views, x, y = all_pixels(cameras)
    assert cameras.lens is not None
    lengths = cameras.directions(views, x, y).norm(dim=-1)
    assert_close(lengths[cameras.lens[views] > 0], np.ones(4 * 24), 1e-12)
    depth = -(cameras.directions(views, x, y) * cameras.c2w[views, :, 2]).sum(-1)
    assert_close(depth[cameras.lens[views] == 0], np.ones(2 * 24), 1e-12)


def test_a_lens_without_distortion_changes_nothing():
    plain = some_cameras(1, [(5, 4), (3, 7)])
    views, x, y = all_pixels(plain)
    for flat in (replace(plain, distortion=torch.zeros(2, 13)), replace(plain, lens=torch.zeros(2).long())):
        assert_close(flat.directions(views, x, y), plain.directions(views, x, y), 1e-6)


def test_lenses_follow_their_cameras():
    cameras = rig(2, [(8, 6)] * 4)
    chosen = cameras[[3, 1]]
    assert chosen.lens is not None
    assert chosen.lens.tolist() == [0, 1]
    again = Cameras.from_state(json.loads(json.dumps(cameras.state())))
    assert again.lens is not None
    assert (again.lens.dtype, again.lens.tolist()) == (torch.int64, [0, 1, 2, 0])
    views = torch.arange(4)
    half = cameras.rescale(0.5)
    assert_close(half.directions(views, views + 0.0, views - 1.0), cameras.directions(views, 2 * views + 0.5, 2 * views - 1.5), 1e-6)


def test_cameras_of_older_runs_are_read():
    cameras = some_cameras(4, [(8, 6)] * 2)
    old = cameras.state() | {"distortion": [[0.1, -0.02, 0.003, -0.004, 0.05]] * 2}
    del old["lens"]
    expected = lens_of(2, k1=0.1, k2=-0.02, p1=0.003, p2=-0.004, k3=0.05)
    assert_close(Cameras.from_state(old).distortion, expected, 1e-7)


def test_ndc_wants_perspective_cameras():
    cameras = rig(1, [(4, 4)] * 3)
    with pytest.raises(SceneError, match=r"wall: .*perspective.*equirectangular") as caught:
        Scene("wall", "test", cameras, 0.5, 4.0, {"train": [0]}, ndc=True)
    assert "\n" not in str(caught.value)
    assert Scene("wall", "test", cameras[[0]], 0.5, 4.0, {"train": [0]}, ndc=True).ndc


@pytest.mark.parametrize(("kind", "most"), [("perspective", 0.7), ("fisheye", 0.7), ("equirectangular", 1.0)])
def test_an_occupancy_grid_keeps_what_any_lens_sees(kind, most):
    """Points on the rays of a picture lie in blocks that are marked; a barrel lens reaches far beyond its focal length."""
    camera = rig(5, [(57, 36)], kind)
    camera = replace(camera, **{name: getattr(camera, name).float() for name in ("c2w", "fx", "fy", "cx", "cy")})
    camera.distortion = lens_of(d1=0.5 if kind == "perspective" else 0.0).float()
    near, side, cascades = 0.2, 2.0, 2
    corner = camera.centers[0] - side / 2
    seen = seen_blocks(camera, near, corner, side, cascades)
    assert 0.1 < float(seen.float().mean()) <= most
    views, x, y = all_pixels(camera)
    directions = torch.nn.functional.normalize(camera.directions(views, x, y), dim=-1)
    for t in torch.linspace(2 * near, 1.9, 20):
        for cascade in range(cascades):
            cell = (t * directions / side / 2**cascade + 0.5) * BLOCKS
            i, j, k = cell[((cell >= 0) & (cell < BLOCKS)).all(-1)].long().unbind(-1)
            assert seen[cascade * BLOCKS**3 + (k * BLOCKS + j) * BLOCKS + i].all()
