"""Cameras written as transforms.json, COLMAP models and poses_bounds.npy are read back as the same rays."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from conftest import around, assert_close, rotation
from nerfit.cameras import Cameras
from nerfit.cameras.lenses import LENS_PARAMETERS, LENSES
from nerfit.errors import SceneError
from nerfit.scenes.formats import colmap, llff, transforms
from nerfit.scenes.reading.colmap_model import poses, read_images
from nerfit.scenes.reading.ply import read_ply, write_ply
from nerfit.scenes.scene import Scene
from nerfit.scenes.writing import write_colmap, write_poses_bounds, write_transforms

WIDTH, HEIGHT, VIEWS = 12, 8, 4
NAMES = [f"images/{i} ö.png" for i in range(VIEWS)]
RADIAL, TANGENTIAL = ("k1", "k2"), ("p1", "p2")
KINDS: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "transforms": [
        ("perspective", ()),
        ("perspective", (*RADIAL, "k3", "k4", *TANGENTIAL)),
        ("perspective", (*RADIAL, "k3", *TANGENTIAL, "d1", "d2", "d3")),
        ("fisheye", ()),
        ("fisheye", (*RADIAL, "k3", "k4")),
        ("fisheye", (*RADIAL, "k3", "k4", *TANGENTIAL, "s1", "s3")),
        ("equirectangular", ()),
    ],
    "colmap": [
        ("perspective", ()),
        ("perspective", ("k1",)),
        ("perspective", RADIAL),
        ("perspective", (*RADIAL, *TANGENTIAL)),
        ("perspective", (*RADIAL, "k3", *TANGENTIAL, "d1", "d2", "d3")),
        ("fisheye", ()),
        ("fisheye", ("k1",)),
        ("fisheye", (*RADIAL, "k3", "k4")),
        ("fisheye", (*RADIAL, "k3", "k4", *TANGENTIAL, "s1", "s3")),
        ("equirectangular", ()),
    ],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scene's folder with its pictures."""
    monkeypatch.setenv("NERFIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "scene/images").mkdir(parents=True)
    for name in NAMES:
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "scene" / name)
    return tmp_path / "scene"


def cameras_of(seed: int, kinds: list[tuple[str, tuple[str, ...]]], square: bool = False) -> Cameras:
    """Cameras anywhere, each with a lens of one of some kinds and its parameters in turn."""
    rng = np.random.default_rng(seed)
    c2w = torch.from_numpy(np.stack([np.c_[rotation(rng), 30 * rng.normal(size=3)] for _ in range(VIEWS)]))
    size = torch.full((VIEWS,), WIDTH), torch.full((VIEWS,), HEIGHT)
    focal = torch.from_numpy(rng.uniform(9, 14, (2, VIEWS))).float()
    centre = torch.from_numpy(rng.uniform(0.4, 0.6, (2, VIEWS)) * [[WIDTH], [HEIGHT]]).float()
    distortion, lens = torch.zeros(VIEWS, len(LENS_PARAMETERS)), torch.zeros(VIEWS, dtype=torch.long)
    fx, fy, cx, cy = focal[0], focal[0 if square else 1].clone(), centre[0], centre[1]
    for view in range(VIEWS):
        kind, names = kinds[view % len(kinds)]
        lens[view] = LENSES.index(kind)
        distortion[view, [LENS_PARAMETERS.index(name) for name in names]] = torch.from_numpy(rng.uniform(-0.02, 0.02, len(names))).float()
        if kind == "equirectangular":
            fx[view], fy[view], cx[view], cy[view] = WIDTH / (2 * math.pi), HEIGHT / math.pi, WIDTH / 2, HEIGHT / 2
    return Cameras(c2w, fx, fy, cx, cy, *size, distortion if distortion.any() else None, 0.5, lens if lens.any() else None)


def read(module: Any, folder: Path, **choices: Any) -> Scene:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return module.load(str(folder), module.Config(centre=False, **choices))


def directions(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Origins of all views and directions of all pixels, computed in float64."""
    exact = cameras._map(lambda t: t.double() if t.is_floating_point() else t)
    views, y, x = torch.meshgrid(torch.arange(VIEWS), torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return exact.centers, exact.directions(views.flatten(), x.flatten(), y.flatten())


def assert_same_rays(scene: Scene, cameras: Cameras) -> None:
    for ours, theirs in zip(directions(scene.cameras), directions(cameras), strict=True):
        assert_close(ours, theirs, 1e-6)


@given(seed=st.integers(0, 2**32 - 1), kinds=st.lists(st.sampled_from(KINDS["transforms"]), min_size=1, max_size=3), square=st.booleans())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_transforms_are_read_back(folder, seed, kinds, square):
    cameras = cameras_of(seed, kinds, square)
    write_transforms(folder, cameras, NAMES)
    scene = read(transforms, folder)
    assert scene.view_names == NAMES
    assert_same_rays(scene, cameras)


@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.sampled_from(KINDS["colmap"]), min_size=1, max_size=3),
    square=st.booleans(),
    binary=st.booleans(),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_models_are_read_back(folder, seed, kinds, square, binary):
    cameras = cameras_of(seed, kinds, square)
    points = torch.from_numpy(np.random.default_rng(seed).normal(size=(30, 3)))
    model = write_colmap(folder, cameras, [name.removeprefix("images/") for name in NAMES], points, binary)
    assert sorted(path.suffix for path in model.iterdir()) == [".bin" if binary else ".txt"] * 3
    assert_same_rays(read(colmap, folder), cameras)
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    theirs = pycolmap.Reconstruction(str(model))
    assert (theirs.num_reg_images(), theirs.num_points3D()) == (VIEWS, 30)
    for view in range(VIEWS):
        image = theirs.image(view + 1)
        assert_close(image.projection_center(), cameras.c2w[view, :, 3], 1e-9)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_poses_and_bounds_are_read_back(folder, seed):
    cameras = cameras_of(seed, KINDS["colmap"][:1], square=True)
    cameras.cx[:], cameras.cy[:] = WIDTH / 2, HEIGHT / 2
    depths = torch.tensor([[1.0, 9.0], [2.0, 8.0], [1.5, 12.0], [3.0, 7.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_poses_bounds(folder, cameras[[2, 0, 3, 1]], [NAMES[i] for i in (2, 0, 3, 1)], depths[[2, 0, 3, 1]])
    scene = llff.load(str(folder), llff.Config(factor=1, recentre=False, bd_factor=None, ndc=False))
    assert_same_rays(scene, cameras)
    assert scene.depth_range == (1.0, 12.0)
    assert torch.equal(llff.read_poses(folder / "poses_bounds.npy").bounds.float(), depths)


def test_what_poses_bounds_can_not_hold_is_reported(folder):
    depths = torch.ones(VIEWS, 2)
    with pytest.warns(UserWarning, match="no place for distortion and principal points and focal lengths that differ"):
        write_poses_bounds(folder, cameras_of(0, [("perspective", RADIAL)]), NAMES, depths)
    with pytest.raises(SceneError, match="fisheye pictures"):
        write_poses_bounds(folder, cameras_of(0, [("fisheye", ())]), NAMES, depths)
    cameras = cameras_of(0, [("perspective", ())])
    cameras.width[1] = 7
    with pytest.raises(SceneError, match="differ in size"):
        write_poses_bounds(folder, cameras, NAMES, depths)


@pytest.mark.parametrize(
    ("kind", "names", "by"),
    [
        ("perspective", ("s1",), "colmap"),
        ("perspective", ("k4",), "colmap"),
        ("perspective", ("k4", "d1"), "transforms"),
        ("fisheye", ("d1",), "colmap"),
        ("fisheye", ("d1",), "transforms"),
        ("fisheye", ("s2",), "transforms"),
    ],
)
def test_lenses_without_a_name_are_refused_before_anything_is_written(tmp_path, kind, names, by):
    cameras = cameras_of(0, [(kind, names)])
    write = write_colmap if by == "colmap" else write_transforms
    with pytest.raises(SceneError, match=rf"images/0 ö\.png: a {kind} lens with {', '.join(names)} .*undistort the picture\.$"):
        write(tmp_path / "out", cameras, NAMES)
    assert not (tmp_path / "out").exists()


def test_a_lens_that_all_share_is_written_once_with_points_and_further_keys(folder):
    cameras = cameras_of(1, KINDS["transforms"][:1])
    shared = cameras[[0] * VIEWS]
    points = write_ply(folder / "points.ply", torch.zeros(1, 3))
    meta = json.loads(write_transforms(folder, shared, NAMES, points=points, extra={"aabb_scale": 4}).read_text())
    assert (meta["camera_model"], meta["w"], meta["ply_file_path"], meta["aabb_scale"]) == ("PINHOLE", WIDTH, "points.ply", 4)
    assert {key for frame in meta["frames"] for key in frame} == {"file_path", "transform_matrix"}
    meta = json.loads(write_transforms(folder, cameras, NAMES).read_text())
    assert meta.keys() == {"frames"} and "fl_x" in meta["frames"][1]


def test_cameras_go_back_to_the_users_coordinates(folder):
    cameras = cameras_of(2, KINDS["transforms"][:1])
    cameras.c2w = torch.from_numpy(np.stack([(around(0.3 * i, 0.2) + np.diag([0, 0, 0, 1.0]))[:3] for i in range(VIEWS)]))
    cameras.c2w[:, :, 3] = 10 * cameras.c2w[:, :, 3] + 3
    write_transforms(folder, cameras, NAMES)
    scene = transforms.load(str(folder), transforms.Config())
    assert_close(scene.cameras.centers.norm(dim=-1).mean(), 1.0, 1e-5)
    assert_close(scene.original_cameras.c2w, cameras.c2w, 1e-6)


UTM = np.array([691_234.25, 5_335_678.5, 512.75])


@pytest.fixture
def georeferenced(folder: Path) -> tuple[Scene, Tensor]:
    """A ring of 50 m far from the origin, read from a file, so that its cameras are float32; and the true positions."""
    ring = np.stack([around(0.5 * math.pi * i, 0.2 + 0.1 * i)[:3] for i in range(VIEWS)])
    ring[:, :, 3] = UTM + 12.5 * ring[:, :, 3]
    truth = torch.from_numpy(ring)
    write_transforms(folder, replace(cameras_of(0, [("perspective", ())]), c2w=truth), NAMES)
    return transforms.load(str(folder), transforms.Config()), truth[:, :, 3]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("points", [True, False])
def test_georeferenced_cameras_keep_their_millimetres(georeferenced, tmp_path, binary, points):
    """transforms.json and COLMAP's model agree to 1e-6 of the scene, read by COLMAP too; a model without points is one."""
    scene, truth = georeferenced
    xyz = torch.from_numpy(UTM + np.random.default_rng(0).normal(size=(9, 3))) if points else None
    model = write_colmap(tmp_path / "out", scene.original_cameras, NAMES, xyz, binary)
    meta = json.loads(write_transforms(tmp_path / "out", scene.original_cameras, NAMES).read_text())
    written = torch.tensor([frame["transform_matrix"] for frame in meta["frames"]], dtype=torch.float64)[:, :3, 3]
    extent = (truth - truth.mean(0)).norm(dim=-1).max()
    assert (written - truth).abs().max() < 1e-6 * extent
    images = read_images(model)
    assert (poses(images)[:, :, 3] - written).abs().max() < 1e-7 * extent
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    theirs = pycolmap.Reconstruction(str(model))
    assert theirs.num_points3D() == (9 if points else 0)
    centers = np.stack([theirs.image(i + 1).projection_center() for i in range(VIEWS)])
    assert np.abs(centers - written.numpy()).max() < 1e-7 * float(extent)
    if xyz is not None:
        assert np.abs(np.sort([p.xyz for p in theirs.points3D.values()], 0) - np.sort(xyz.numpy(), 0)).max() < 1e-8


def test_georeferenced_poses_and_bounds(georeferenced, tmp_path):
    scene, truth = georeferenced
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_poses_bounds(tmp_path, scene.original_cameras, NAMES, torch.ones(VIEWS, 2))
    assert (llff.read_poses(tmp_path / "poses_bounds.npy").c2w[:, :3, 3] - truth).abs().max() < 1e-4


def test_points_far_from_the_origin_are_doubles(tmp_path):
    near = torch.rand(200, 3, dtype=torch.float64) * 50
    far = near + torch.from_numpy(UTM)
    assert b"property float x" in write_ply(tmp_path / "near.ply", near).read_bytes()[:200]
    assert b"property double x" in write_ply(tmp_path / "far.ply", far, far, far.byte()).read_bytes()[:200]
    assert torch.equal(read_ply(tmp_path / "far.ply"), far)
    trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed")
    assert np.abs(trimesh.load(tmp_path / "far.ply").vertices - far.numpy()).max() < 1e-9
