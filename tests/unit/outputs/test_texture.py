"""Triangles drawn as pictures, holes closed, textures laid out and filled, and a mesh that turns."""

import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage.measure import marching_cubes
from test_mesh import original, scene  # noqa: F401 - a fixture
from torch import Tensor

from conftest import assert_close
from fields import CENTER, RADIUS, Ball
from nerfit.cameras import Cameras
from nerfit.errors import ConfigError
from nerfit.outputs.mesh.extract import Mesh, MeshConfig, close_holes, make_mesh, pieces, vertex_normals
from nerfit.outputs.mesh.formats import beside, write_mesh
from nerfit.outputs.mesh.rasterise import rasterise
from nerfit.outputs.mesh.turntable import orbit, render_vertices, write_turntable


def sphere(side: int, cut: bool = False) -> tuple[Tensor, Tensor]:
    """A ball of radius 1 at (2, 0, 0) by marching cubes; ``cut`` leaves out what lies above z = 0.7 and below -0.7."""
    x = np.linspace(-1.2, 1.2, side)
    distance = 1 - np.sqrt(x[:, None, None] ** 2 + x[None, :, None] ** 2 + x[None, None, :] ** 2)
    mask = np.broadcast_to((np.abs(x) < 0.7) if cut else np.ones(side, bool), distance.shape)
    vertices, faces, *_ = marching_cubes(distance, 0.0, spacing=(2.4 / (side - 1),) * 3, gradient_direction="ascent", mask=mask)
    return torch.from_numpy(vertices).double() - 1.2 + torch.tensor([2.0, 0, 0]), torch.from_numpy(faces.astype(np.int64))


def coloured(vertices: Tensor, faces: Tensor) -> Mesh:
    normals = vertex_normals(vertices, faces)
    return Mesh(vertices, faces, normals, (normals * 100 + 128).to(torch.uint8))


def volume(vertices: Tensor, faces: Tensor) -> float:
    a, b, c = (vertices - vertices.mean(0))[faces].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


@given(st.integers(0, 2**31 - 1))
def test_triangles_are_drawn_as_a_slow_twin_draws_them(seed: int) -> None:
    """One pixel and one triangle at a time; some triangles reach beyond the picture, or have a corner behind the eye."""
    rng = np.random.default_rng(seed)
    width, height, count = 9, 7, 6
    corners = rng.uniform(-4, 13, (count, 3, 2))
    nearness = rng.uniform(0.2, 1, (count, 3))
    nearness[0, rng.integers(3)] *= rng.choice([-1, 1])
    face, weights = rasterise(torch.from_numpy(corners), torch.from_numpy(nearness), width, height)
    for y in range(height):
        for x in range(width):
            best, found, expected = 0.0, -1, np.zeros(3)
            for k in range(count):
                if (nearness[k] <= 0).any():
                    continue
                system = np.vstack([corners[k].T, np.ones(3)])
                share = np.linalg.solve(system, [x + 0.5, y + 0.5, 1])
                if (share >= 0).all() and share @ nearness[k] > best:
                    best, found = share @ nearness[k], k
                    expected = share * nearness[k] / (share @ nearness[k])
            assert int(face[y, x]) == found
            if found >= 0:
                assert_close(weights[y, x], expected, 1e-9)
                depth = 1 / nearness[found]
                assert float(weights[y, x].numpy() @ depth) == pytest.approx(1 / best)  # right in perspective


def test_nothing_is_drawn_of_nothing() -> None:
    face, weights = rasterise(torch.zeros(0, 3, 2), torch.zeros(0, 3), 4, 3)
    assert (face == -1).all() and (weights == 0).all()


def test_a_mesh_is_drawn_as_it_is() -> None:
    vertices, faces = sphere(40)
    camera = Cameras.pinhole(torch.tensor([[[1.0, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 4]]]), 60.0, 40, 30)
    seen, face = render_vertices(vertices, faces, vertices, camera)
    assert_close(seen[15, 20], torch.tensor([2.0, 0, 1]), 0.03)
    solid = face >= 0
    assert ((seen[solid] - torch.tensor([2.0, 0, 0])).norm(dim=-1) - 1).abs().max() < 0.05 and (seen[solid][:, 2] > 0).all()
    radius = 60 * math.tan(math.asin(1 / 4))
    assert int(solid.sum()) == pytest.approx(math.pi * radius**2, rel=0.03)


def test_all_holes_are_closed() -> None:
    vertices, faces = sphere(24, cut=True)
    closed, filled = close_holes(vertices, faces)
    assert len(closed) == len(vertices) + 2 and torch.equal(filled[: len(faces)], faces)
    edges = torch.stack([filled.flatten(), filled[:, [1, 2, 0]].flatten()], -1)
    assert {tuple(e) for e in edges.tolist()} == {(b, a) for a, b in edges.tolist()} and len(edges.unique(dim=0)) == len(edges)
    low, high = vertices[:, 2].min(), vertices[:, 2].max()
    assert volume(closed, filled) == pytest.approx(float(math.pi * ((high - high**3 / 3) - (low - low**3 / 3))), rel=0.03)
    assert torch.equal(close_holes(closed, filled)[1], filled)


def test_a_texture_holds_what_the_field_shows(scene: object, tmp_path: Path) -> None:  # noqa: F811
    """In both formats: read back, each triangle's middle has the field's colour there, finer than vertices could hold it."""
    pytest.importorskip("xatlas", reason="the extra mesh is not installed")
    trimesh = pytest.importorskip("trimesh", reason="the extra mesh is not installed")
    mesh = make_mesh(Ball(), scene, MeshConfig(resolution=16, texture=256), 4096)  # type: ignore[arg-type]
    assert mesh.texture is not None and mesh.texture.image.shape == (256, 256, 3)
    for name in ("ball.glb", "ball.obj"):
        path = write_mesh(tmp_path / name, mesh)
        assert all(p.exists() for p in beside(path, True, False))
        found = trimesh.load(path, force="mesh", process=False)
        assert len(found.faces) == len(mesh.faces)
        triangles = np.asarray(found.triangles)
        assert_close(triangles, mesh.vertices[mesh.faces], 1e-5)
        uv = np.asarray(found.visual.uv)[np.asarray(found.faces)]
        assert uv.min() >= 0 and uv.max() <= 1
        material = found.visual.material
        picture = np.asarray((material.baseColorTexture if name.endswith("glb") else material.image).convert("RGB")).astype(int)
        for weights in ((1 / 3, 1 / 3, 1 / 3), (0.6, 0.2, 0.2)):
            middle = np.tensordot(weights, uv, (0, 1))
            color = picture[((1 - middle[:, 1]) * 256).astype(int).clip(0, 255), (middle[:, 0] * 256).astype(int).clip(0, 255)]
            place = np.tensordot(weights, triangles, (0, 1)) - original(CENTER[None])[0].numpy()
            x, z = place[:, 1], place[:, 2]  # original coordinates are turned a quarter about z
            clear = np.abs(x) > 0.12
            assert ((color[:, 0] > color[:, 1]) == (x * np.sign(x @ (color[:, 0] - color[:, 1])) > 0))[clear].mean() > 0.99
            assert np.abs(color[:, 2] - 255 * (0.5 - 0.4 * z / (2 * RADIUS))).mean() < 12
    assert (tmp_path / "ball.obj").read_text().startswith("mtllib ball.mtl\nusemtl surface\n")
    assert "map_Kd ball.png" in (tmp_path / "ball.mtl").read_text() and Image.open(tmp_path / "ball.png").size == (256, 256)
    with pytest.raises(ConfigError, match="ply file holds no texture"):
        write_mesh(tmp_path / "ball.ply", mesh)


def test_a_texture_without_the_extra_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "xatlas", None)
    with pytest.raises(ConfigError, match=r"--texture needs the extra `mesh`: pip install 'nerfit\[mesh\]'"):
        MeshConfig(texture=512).check()


def test_a_mesh_turns_in_a_film(tmp_path: Path) -> None:
    mesh = coloured(*sphere(24))
    up = torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64)
    cameras = orbit(mesh.vertices, up, 8, 64)
    middle = torch.tensor([2.0, 0, 0])
    for i in range(8):
        place, ahead = cameras.project(torch.tensor([i]), middle[None].float())
        assert ahead.all() and (place[0] - 32).abs().max() < 1
        assert float((cameras.centers[i] - middle).double() @ up) > 0
        face = render_vertices(mesh.vertices, mesh.faces, mesh.vertices, cameras[i])[1]
        assert (face[[0, -1]] == -1).all() and (face[:, [0, -1]] == -1).all() and (face >= 0).float().mean() > 0.3
    with av.open(str(write_turntable(tmp_path / "mesh.mp4", mesh, up, frames=5, size=64))) as film:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in film.decode(video=0)]
    assert len(frames) == 5 and frames[0].shape == (64, 128, 3)
    assert (frames[0][:2] > 240).all()
    left, right = frames[0][32, 32], frames[0][32, 96]
    assert np.ptp(right) < 12 and right.mean() > 150 and np.ptp(left) > 12
    assert np.abs(frames[1][:, :64] - frames[0][:, :64]).max() > 30
    assert pieces(mesh.faces, len(mesh.vertices)).max() == 0
