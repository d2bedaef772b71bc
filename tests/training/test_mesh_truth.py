"""Meshes beside the true surfaces of the procedural scene: Chamfer distances as shares of the bounding box's diagonal."""

from pathlib import Path

import pytest
import torch
from scipy.spatial import KDTree
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cli import main
from nerfit.outputs.grids import make_grid
from nerfit.outputs.mesh.extract import MeshConfig, contour, fuse, make_mesh
from nerfit.outputs.surfaces import Surfaces
from nerfit.runs import Run
from nerfit.scenes.formats import procedural
from nerfit.scenes.formats.raytrace import Stage, geometry, unit


def surface_points(stage: Stage, count: int) -> Tensor:
    """Points spread evenly over the solids' surfaces: where lines that are spread evenly over place and direction enter them (Crofton).

    ``count`` lines are shot, which meet the ball around all solids.
    """
    generator = torch.Generator().manual_seed(0)
    d, a = unit(torch.randn(2, 3, count, generator=generator, dtype=torch.float64).transpose(0, 1).flatten(1)).split(count, 1)
    across = unit(torch.linalg.cross(d, a, dim=0))
    share = torch.rand(count, generator=generator, dtype=torch.float64).sqrt()
    o = stage.reach * share * across - 3 * stage.reach * d
    entries = [solid.enter(solid.local(o), solid.local(d, shift=False)) for solid in stage.solids]
    return torch.cat([(o + t * d)[:, t.isfinite()] for t in entries], 1).T


def seen_by(stage: Stage, cameras: Cameras, points: Tensor) -> Tensor:
    """Which surface points lie in the picture of a camera, and in front of everything else there."""
    seen = torch.zeros(len(points), dtype=torch.bool)
    for view in range(len(cameras)):
        center = cameras.centers[view].double()
        place, ahead = cameras.project(torch.full((len(points),), view), points.float())
        inside = ahead & (place >= 0).all(-1) & (place < torch.stack([cameras.width[view], cameras.height[view]])).all(-1)
        rows = (inside & ~seen).nonzero()[:, 0]
        t, _ = geometry(stage, center.expand(len(rows), 3), points[rows] - center)
        seen[rows] = t > 1 - 1e-3
    return seen


def on_triangles(vertices: Tensor, faces: Tensor, count: int) -> Tensor:
    """Points spread evenly over a mesh."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = vertices[faces].unbind(1)
    face = torch.multinomial(torch.linalg.cross(b - a, c - a).norm(dim=-1), count, replacement=True, generator=generator)
    u, v = torch.rand(2, count, 1, generator=generator, dtype=torch.float64)
    u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
    return a[face] + u * (b - a)[face] + v * (c - a)[face]


def chamfer(stage: Stage, cameras: Cameras, vertices: Tensor, faces: Tensor, lines: int) -> tuple[float, float]:
    """Mean distances from the mesh to the true surface, and from what the cameras see of that to the mesh, in diagonals.

    Surfaces that no camera sees (undersides, where things touch) need not be in the mesh; where it has any, they are no error.
    """
    truth = surface_points(stage, lines)
    diagonal = float((truth.amax(0) - truth.amin(0)).norm())
    meshed = on_triangles(vertices, faces, lines)
    visible = truth[: len(truth) // 4]
    visible = visible[seen_by(stage, cameras, visible)]
    assert 0.3 < len(visible) / (len(truth) // 4) < 0.95
    accuracy, completeness = (
        KDTree(truth.numpy()).query(meshed.numpy())[0].mean(),
        KDTree(meshed.numpy()).query(visible.numpy())[0].mean(),
    )
    return float(accuracy) / diagonal, float(completeness) / diagonal


def test_points_are_spread_evenly_over_the_surfaces() -> None:
    """The still life's first ball: all on it, as many above a height as the ball's zone has area (Archimedes); all solids are met."""
    stage = procedural.stage("object")
    points = surface_points(stage, 40_000)
    ball = stage.solids[1]
    center = torch.tensor(ball.center, dtype=torch.float64)
    local = points - center
    on = local[(local.norm(dim=-1) - 0.42).abs() < 1e-9]
    assert len(on) > 300
    heights = torch.sort(on[:, 2]).values / 0.42
    assert (heights - torch.linspace(-1, 1, len(on)).double()).abs().max() < 0.15
    top = points[((points[:, 2] + 0.36).abs() < 1e-9) & (points[:, :2].norm(dim=-1) < 1.1)]
    assert len(top) / len(on) == pytest.approx(1.1**2 / (4 * 0.42**2), rel=0.15)


def test_true_depths_become_the_true_surface() -> None:
    """Fusion and marching cubes alone, of depth maps that the ray tracer made."""
    scene = procedural.load("procedural", procedural.Config(size=80, views=30, val_views=0, test_views=0, samples=1))
    assert scene.depths is not None
    depths = [torch.where(d > 0, d, torch.inf) for d in scene.depths.reshape(30, 80, 80)]
    surfaces = Surfaces(scene.cameras, depths, [torch.zeros(80, 80, 3)] * 30)
    grid = make_grid(scene, surfaces, 80, None, original=True)
    vertices, faces = contour(*fuse(surfaces, grid), grid)
    accuracy, completeness = chamfer(procedural.stage("object"), scene.cameras, vertices, faces, 60_000)
    assert accuracy < 0.006 and completeness < 0.006, (accuracy, completeness)


@pytest.mark.slow
def test_a_trained_field_becomes_the_true_surface(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(["train", "instant", "procedural", "--scene.size=200", "--steps=1500", "--no-evaluate", f"--out={folder}"]) == 0
    run = Run.open(folder)
    mesh = make_mesh(run.method, run.scene, MeshConfig(), run.chunk)
    cameras = run.scene.cameras[run.scene.splits["train"]]
    found = chamfer(procedural.stage("object"), cameras, mesh.vertices, mesh.faces, 400_000)
    with capsys.disabled():
        print(f"\nmesh to truth {100 * found[0]:.3f} %, truth to mesh {100 * found[1]:.3f} % of the diagonal; {len(mesh.faces)} triangles")
    assert max(found) <= 0.01
