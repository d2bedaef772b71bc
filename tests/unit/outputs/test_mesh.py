"""Meshes and points of a ball that is known exactly, and the files they are written to."""

import re
import struct
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import around, assert_close
from fields import CENTER, RADIUS, Ball
from nerfit.cameras import Cameras
from nerfit.errors import ConfigError, RunError
from nerfit.outputs.mesh.extract import Mesh, MeshConfig, largest_piece, make_mesh, pieces, vertex_normals
from nerfit.outputs.mesh.formats import write_mesh
from nerfit.outputs.mesh.point_cloud import PointsConfig, confirmed, make_points, surface_normals, write_points
from nerfit.outputs.surfaces import Surfaces, see_surfaces
from nerfit.scenes.reading.ply import read_ply
from nerfit.scenes.scene import Scene

TURNED = torch.tensor([[0, -2.0, 0, 1], [2, 0, 0, -3], [0, 0, 2, 0.5], [0, 0, 0, 1]], dtype=torch.float64)
"""Original coordinates: turned a quarter about z, twice as large, moved."""


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Fourteen cameras all around the ball."""
    poses = [around(a, e) for a, e in [(1.1 * i, 0.9 * np.sin(2.3 * i)) for i in range(12)] + [(0.0, 1.5), (0.0, -1.5)]]
    cameras = Cameras.pinhole(torch.from_numpy(np.stack(poses)), 60.0, 48, 40)
    views = list(range(len(poses)))
    return Scene("ball", "procedural", cameras, 2.8, 5.2, {"train": views, "test": views[:3]}, to_original=TURNED)


def original(points: Tensor) -> Tensor:
    return points.double() @ TURNED[:3, :3].T + TURNED[:3, 3]


@pytest.mark.parametrize("by", ["depth", "density"])
def test_a_ball_becomes_a_sphere(scene: Scene, by: Any) -> None:
    """All vertices lie on the sphere, all of it is covered, normals point outwards, colours are those of the field."""
    config = MeshConfig(by=by, resolution=40, level=None if by == "depth" else 15.0)
    mesh = make_mesh(Ball(200.0 if by == "depth" else 30.0), scene, config, 4096)
    center = original(CENTER[None])[0]
    outwards = mesh.vertices - center
    distance = outwards.norm(dim=-1) / (2 * RADIUS)
    spacing = 2.1 / 40
    assert (distance - 1).abs().mean() < 0.3 * spacing and (distance - 1).abs().max() < spacing
    directions = torch.nn.functional.normalize(outwards, dim=-1)
    towards = (directions * mesh.normals).sum(-1)
    assert towards.mean() > 0.95 and towards.min() > 0.3
    probes = torch.nn.functional.normalize(torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert (probes @ directions.T).amax(1).min() > 0.99
    assert pieces(mesh.faces, len(mesh.vertices)).bincount().max() > 0.99 * len(mesh.faces)
    a, b, c = (mesh.vertices - center)[mesh.faces].unbind(1)
    volume = float((a * torch.linalg.cross(b, c)).sum() / 6)
    assert volume == pytest.approx(4 / 3 * np.pi * (2 * RADIUS) ** 3, rel=0.05)
    in_scene = outwards @ TURNED[:3, :3] / 2
    red, green = mesh.colors[:, 0].double(), mesh.colors[:, 1].double()
    clear = in_scene[:, 0].abs() > 0.15
    assert ((red - green).sign() == in_scene[:, 0].sign())[clear].all() and (red + green)[clear].min() > 230
    blue = 255 * (0.5 - 0.4 * mesh.normals[:, 2])
    assert (mesh.colors[:, 2] - blue).abs().max() < 30


def test_a_box_crops_in_the_coordinates_that_are_written(scene: Scene) -> None:
    whole = make_mesh(Ball(), scene, MeshConfig(resolution=24, coordinates="normalised", views=6), 4096)
    assert_close((whole.vertices.amax(0) + whole.vertices.amin(0)) / 2, CENTER.double(), 0.2)
    half = make_mesh(Ball(), scene, MeshConfig(resolution=24, coordinates="normalised", views=6, box=(-1, -1, -1, 0.1, 1, 1)), 4096)
    assert half.vertices[:, 0].max() <= 0.1 + 1e-9 and half.vertices[:, 0].min() == pytest.approx(float(CENTER[0]) - RADIUS, abs=0.05)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"level": 3.0}, "no effect"),
        ({"views": 0}, "--views must be at least 1"),
        ({"resolution": 2}, "--resolution"),
        ({"box": (1.0, 0.0, 0.0, 0.0, 1.0, 1.0)}, "second corner"),
    ],
)
def test_what_makes_no_sense_is_refused(scene: Scene, config: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make_mesh(Ball(), scene, replace(MeshConfig(resolution=16), **config), 4096)


def test_a_box_without_a_surface_is_an_error(scene: Scene) -> None:
    with pytest.raises(RunError, match="no surface"):
        make_mesh(Ball(), scene, MeshConfig(resolution=16, views=2, box=(50, 50, 50, 51, 51, 51)), 4096)
    with pytest.raises(RunError, match="transparent"):
        make_mesh(Ball(1e-3), scene, MeshConfig(resolution=16, views=2), 4096)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.randoms())
def test_the_largest_piece_is_that_with_most_triangles(sizes: list[int], random: Any) -> None:
    """Fans of triangles, each about a vertex of its own, in any order; one vertex is in none."""
    faces, start = [], 1
    for size in sizes:
        faces += [[start, start + i + 1, start + i + 2] for i in range(size)]
        start += size + 2
    random.shuffle(faces)
    vertices = torch.arange(3.0 * start, dtype=torch.float64).reshape(-1, 3)
    kept, chosen = largest_piece(vertices, torch.tensor(faces))
    assert len(chosen) == max(sizes) and len(kept) == max(sizes) + 2
    assert chosen.unique().tolist() == list(range(len(kept)))


def tetrahedron() -> Mesh:
    vertices = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.5]], dtype=torch.float64) + 1000
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    colors = torch.tensor([[255, 0, 0], [0, 128, 0], [0, 0, 10], [7, 8, 9]], dtype=torch.uint8)
    return Mesh(vertices, faces, vertex_normals(vertices, faces), colors)


def test_normals_of_a_tetrahedron() -> None:
    mesh = tetrahedron()
    corner = torch.tensor([-1.5, -1.5, -1.0]).double()
    assert_close(mesh.normals[0], corner / corner.norm(), 1e-12)


def test_a_mesh_in_a_ply_file(tmp_path: Path) -> None:
    mesh = replace(tetrahedron(), vertices=tetrahedron().vertices - 990)
    path = write_mesh(tmp_path / "new" / "mesh.ply", mesh)
    assert_close(read_ply(path), mesh.vertices, 1e-7)
    head, _, body = path.read_bytes().partition(b"end_header\n")
    assert b"element vertex 4\n" in head and b"element face 4\nproperty list uchar int vertex_indices\n" in head
    assert struct.unpack("<3B", body[27 + 24 : 27 + 27]) == (0, 128, 0)
    assert [struct.unpack_from("<B3i", body, 4 * 27 + 13 * i) for i in range(4)] == [(3, *row) for row in mesh.faces.tolist()]
    assert_close(np.frombuffer(body[12:24], "<f4"), mesh.normals[0], 1e-6)


def test_a_mesh_in_an_obj_file(tmp_path: Path) -> None:
    mesh = tetrahedron()
    lines = [line.split() for line in write_mesh(tmp_path / "mesh.obj", mesh).read_text().splitlines()]
    v, vn, f = ([line[1:] for line in lines if line[0] == kind] for kind in ("v", "vn", "f"))
    assert_close(np.array(v, float), torch.cat([mesh.vertices, mesh.colors / 255], 1), 1e-7)
    assert_close(np.array(vn, float), mesh.normals, 1e-4)
    assert [[int(corner.split("//")[0]) - 1 for corner in face] for face in f] == mesh.faces.tolist()
    assert all(corner.split("//")[0] == corner.split("//")[1] for face in f for corner in face)


def test_a_mesh_in_a_glb_file(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh", reason="the extra mesh is not installed")
    mesh = tetrahedron()
    found = trimesh.load(write_mesh(tmp_path / "mesh.glb", mesh), force="mesh", process=False)
    assert_close(found.vertices, mesh.vertices, 1e-6)
    assert found.faces.tolist() == mesh.faces.tolist()
    assert found.visual.vertex_colors[1].tolist() == [0, 55, 0, 255]  # sRGB 128 is 0.216 of light


def test_a_mesh_is_simplified(scene: Scene) -> None:
    pytest.importorskip("fast_simplification", reason="the extra mesh is not installed")
    mesh = make_mesh(Ball(), scene, MeshConfig(resolution=32, coordinates="normalised", faces=400, by="density"), 4096)
    assert 300 <= len(mesh.faces) <= 400
    assert (((mesh.vertices - CENTER).norm(dim=-1)) / RADIUS - 1).abs().max() < 0.05


def test_other_endings_and_missing_extras_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"\.ply, \.obj or \.glb"):
        write_mesh(tmp_path / "mesh.stl", tetrahedron())
    monkeypatch.setitem(__import__("sys").modules, "trimesh", None)
    with pytest.raises(ConfigError, match=r"pip install 'nerfit\[mesh\]'"):
        write_mesh(tmp_path / "mesh.glb", tetrahedron())


def test_points_of_a_ball(scene: Scene, tmp_path: Path) -> None:
    cloud = make_points(Ball(), scene, PointsConfig(count=3000, pixels=48), 4096)
    outwards = cloud.points - original(CENTER[None])
    assert 1000 < len(cloud.points) <= 3000
    assert (outwards.norm(dim=-1) / (2 * RADIUS) - 1).abs().max() < 0.03
    assert (torch.nn.functional.normalize(outwards, dim=-1) * cloud.normals).sum(-1).min() > 0.97
    assert_close(read_ply(write_points(tmp_path / "points.ply", cloud)), cloud.points, 1e-6)


def test_floating_points_are_left_out(scene: Scene) -> None:
    """A patch of one view's depth map that lies in front of the ball is what other views see through."""
    surfaces = see_surfaces(Ball(), scene, 14, 48, 4096)
    true = surfaces.points(0)[18:22, 22:26].reshape(-1, 3)
    assert confirmed(surfaces, 0, true, 2, 0.03).float().mean() > 0.9
    center = surfaces.cameras.centers[0]
    assert not confirmed(surfaces, 0, center + 0.6 * (true - center), 2, 0.03).any()


def test_normals_of_a_slope() -> None:
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    points = torch.stack([x, y, -5 - 0.5 * x], -1)
    points[:, 3:] -= torch.tensor([0.0, 0.0, 9.0])
    normals, smooth = surface_normals(points, torch.zeros(3))
    expected = torch.tensor([0.5, 0.0, 1.0]) / 1.25**0.5
    assert_close(normals[smooth], expected.expand(int(smooth.sum()), 3), 1e-6)
    assert smooth.tolist() == [[True, False, False, True]] * 3


@given(st.integers(0, 2**31 - 1))
def test_what_a_view_says_of_points(seed: int) -> None:
    """`Surfaces.behind` beside the definition: the pixel's depth less the point's own, for a turned camera."""
    rng = np.random.default_rng(seed)
    cameras = Cameras.pinhole(torch.from_numpy(np.stack([around(*rng.uniform(-1.5, 1.5, 2))])), 9.0, 7, 5)
    depth = torch.from_numpy(rng.uniform(3, 5, (5, 7))).float()
    surfaces = Surfaces(cameras, [depth], [torch.zeros(5, 7, 3)])
    x, y = int(rng.integers(7)), int(rng.integers(5))
    t, lift = float(rng.uniform(1, 6)), rng.uniform(-0.4, 0.4, 2)
    d = cameras.c2w[0, :, :3].double().numpy() @ [(x + 0.5 + lift[0] - 3.5) / 9, -(y + 0.5 + lift[1] - 2.5) / 9, -1]
    behind, seen = surfaces.behind(0, torch.from_numpy(cameras.c2w[0, :, 3].numpy() + t * d).float()[None])
    assert seen.all() and float(behind) == pytest.approx(float(depth[y, x]) - t, abs=1e-4)
    _, seen = surfaces.behind(0, torch.from_numpy(cameras.c2w[0, :, 3].numpy() - t * d).float()[None])
    assert not seen.any()


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
def test_georeferenced_meshes_keep_their_millimetres(suffix: str, tmp_path: Path) -> None:
    """5,335,678 m from the origin; .glb counts from the translation of its node, and says so."""
    trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed")
    corners = torch.rand(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 50
    vertices = corners + torch.tensor([691_234.25, 5_335_678.5, 512.75], dtype=torch.float64)
    faces = torch.arange(60).reshape(-1, 3)
    mesh = Mesh(vertices, faces, vertex_normals(vertices, faces), torch.full((60, 3), 99, dtype=torch.uint8))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        write_mesh(tmp_path / f"m{suffix}", mesh)
    messages = [str(warning.message) for warning in said if warning.category is UserWarning]
    offset = re.compile(r"count from 6912\d\d 53357\d\d 53\d, the translation")
    assert len(messages) == (suffix == ".glb") and all(offset.search(text) for text in messages)
    found = trimesh.load(tmp_path / f"m{suffix}", process=False, maintain_order=True, force="mesh").vertices
    assert np.abs(found - vertices.numpy()).max() < 1e-5
