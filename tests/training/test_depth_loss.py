"""Learning from known depths: which pixels have one, what its error is, and what it is good for."""

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import around, assert_close
from nerfit.cameras import Cameras
from nerfit.errors import ConfigError, SceneError
from nerfit.methods.base import Method
from nerfit.methods.instant import Instant, InstantConfig
from nerfit.methods.instant_proposals import InstantProposals, InstantProposalsConfig
from nerfit.methods.mipnerf import MipNerf, MipNerfConfig
from nerfit.methods.mipnerf360 import MipNerf360, MipNerf360Config
from nerfit.methods.nerf import Nerf, NerfConfig
from nerfit.methods.nerf_occupancy import NerfOccupancy, NerfOccupancyConfig
from nerfit.methods.pixel_batches import PixelSource, pixel_batch, random_pixels
from nerfit.methods.views import render_view
from nerfit.rendering.losses import depth_error
from nerfit.scenes.formats import colmap
from nerfit.scenes.formats.procedural import Config, load
from nerfit.scenes.point_depths import PointDepths, point_depths
from nerfit.scenes.scene import Scene
from nerfit.training.logs import LogConfig
from nerfit.training.optim import OptimConfig
from nerfit.training.trainer import LoopConfig, Trainer

SIZE = 24
FAST_NERF = NerfConfig(depth=3, width=48, skips=[], frequencies=5, view_frequencies=2, samples=32, fine_samples=0, rays=256, batching="all")
FAST_INSTANT = InstantConfig(levels=4, log2_entries=12, finest=64, samples=4096, march_steps=128, first_march_steps=96)


@pytest.fixture(scope="module")
def few() -> Scene:
    """Four training views of an object, with true depths."""
    return load("procedural", Config(size=SIZE, views=4, test_views=2, val_views=0, samples=1))


@pytest.fixture(scope="module")
def forward() -> Scene:
    return load("procedural:forward-facing", Config(size=SIZE, views=9, samples=1))


def train(kind: Callable[[Any, Scene], Method], config: Any, scene: Scene, folder: Path, steps: int, optim: OptimConfig) -> Method:
    loop = LoopConfig(optim=optim, log=LogConfig(image_every=0), steps=steps, device="cpu", threads=1)
    trainer = Trainer(lambda: kind(config, scene), scene, loop, folder, quiet=True)
    trainer.train()
    return trainer.method.eval()


def test_the_error_is_relative_squared_when_small_and_absolute_when_large() -> None:
    known = torch.tensor([2.0, 2.0, 2.0, 5.0])
    weight = torch.tensor([0.5, 0.5, 0.5, 0.0])
    error = depth_error(torch.tensor([2.0, 2.002, 4.0, 1.0]), known, weight)
    assert_close(error, torch.tensor([0.0, math.hypot(0.001, 0.01) - 0.01, math.hypot(1.0, 0.01) - 0.01, 0.0]), 1e-4)


@pytest.mark.parametrize("draw", ["one image", "all images", "with replacement"])
@pytest.mark.parametrize("kind", ["few", "forward"])
def test_batches_bring_the_depths_at_which_their_rays_meet_the_scene(request: pytest.FixtureRequest, kind: str, draw: str) -> None:
    """Points of the world at those depths, from the scene's own maps, lie on the rays at those distances: in NDC too."""
    scene: Scene = request.getfixturevalue(kind)
    generator = torch.Generator().manual_seed(3)
    source = PixelSource(scene, 0, generator, torch.device("cpu"), depths=True)
    if draw == "with replacement":
        batch = random_pixels(source, 200, 0.5)
    else:
        batch = pixel_batch(source, 200, "image" if draw == "one image" else "all")
    rays, depth, weight = batch.rays, batch.depth, batch.depth_weight
    assert rays is not None and depth is not None and weight is not None and len(depth) == len(batch) == 200
    seen = weight > 0
    assert seen.sum() > 50 and (kind == "forward" or (~seen).sum() > 20)
    points = rays.origins + depth[:, None] * rays.directions
    truth = meeting_points(scene, rays.image_index, points)
    assert_close(points[seen], truth[seen], 2e-2 if scene.ndc else 1e-4)
    assert_close(weight[seen], torch.ones_like(depth[seen]) if scene.ndc else 1 / depth[seen])
    assert set(scene.splits["test"]).isdisjoint(rays.image_index.tolist())
    pieces = [piece.depth for piece in batch.chunks(64)]
    assert torch.equal(torch.cat([p for p in pieces if p is not None]), depth)


def meeting_points(scene: Scene, views: Tensor, points: Tensor) -> Tensor:
    """Where the pixels that see ``points`` (of NDC) meet the scene, by the depth maps and the cameras' own directions."""
    from nerfit.cameras.ndc import from_ndc, to_ndc

    world = from_ndc(points, *scene.ndc_by(points.device)) if scene.ndc else points
    pixel = scene.cameras.project(views, world)[0].floor().long().clamp(0, SIZE - 1)
    assert scene.depths is not None
    depth = scene.depths[scene.starts[views] + pixel[:, 1] * SIZE + pixel[:, 0]]
    found = scene.cameras.centers[views] + depth[:, None] * scene.cameras.directions(views, pixel[:, 0], pixel[:, 1])
    return to_ndc(found, *scene.ndc_by(points.device)) if scene.ndc else found


def test_few_known_points_are_drawn_beside_the_pixels(few: Scene) -> None:
    index = torch.arange(3)
    points = PointDepths(torch.tensor([0, 1, 3]), 5 + index, 7 + index, 2.0 + index, torch.tensor([1.0, 0.5, 0.25]))
    scene = replace(few, depths=None, points=points)
    batch = pixel_batch(PixelSource(scene, 0, torch.Generator().manual_seed(1), torch.device("cpu"), depths=True), 100, "all")
    assert batch.rays is not None and batch.depth is not None and batch.depth_weight is not None and len(batch) == 125
    assert (batch.depth_weight[:100] == 0).all() and set(batch.depth[100:].tolist()) == {2.0, 3.0, 4.0}
    assert_close(batch.depth_weight[100:] * batch.depth[100:], 2 ** (2 - batch.depth[100:]))
    row = (batch.depth[100:] - 2).long()
    own = scene.rays(points.view[row], points.x[row], points.y[row])
    assert torch.equal(own.directions, batch.rays.directions[100:])
    alone = pixel_batch(PixelSource(scene, 0, torch.Generator().manual_seed(1), torch.device("cpu")), 100, "all")
    assert alone.rays is not None and torch.equal(alone.rays.origins, batch.rays.origins[:100])


def test_points_fall_into_pixels_at_their_depth(few: Scene) -> None:
    """Points along rays are found in those pixels, whatever the lens; those outside pictures and behind cameras are not."""
    cameras = few.cameras
    lens = torch.tensor([0, 1, 0, 1, 0, 0])
    mixed = Cameras(cameras.c2w, cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.width, cameras.height, lens=lens)
    views, x, y = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([3, 20, 11, 0, 5]), torch.tensor([9, 2, 23, 12, 4])
    depth = torch.tensor([3.0, 4.0, 2.5, 5.0, -1.0])
    points = mixed.centers[views] + depth[:, None] * mixed.directions(views, x, y)
    error = torch.tensor([1.0, 1.0, 0.5, 2.0, 0.5])
    found = point_depths(mixed, points, error, views, torch.arange(5))
    assert (found.view.tolist(), found.x.tolist(), found.y.tolist()) == ([0, 1, 2, 3], x[:4].tolist(), y[:4].tolist())
    assert_close(found.depth, depth[:4], 1e-5)
    assert_close(found.trust, torch.exp(-0.5 * error[:4] ** 2))
    aside = mixed.centers[views] + 3 * mixed.directions(views, x + 100.0, y)
    assert not len(point_depths(mixed, aside[:1], error[:1], views[:1], torch.zeros(1, dtype=torch.long)))


@pytest.fixture
def capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight pictures around the origin, numbered backwards from 40, and six points; point i is seen by pictures 0 … i."""
    monkeypatch.setenv("NERFIT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "ring"
    (folder / "images").mkdir(parents=True)
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    (model / "cameras.txt").write_text("1 PINHOLE 20 16 25 25 10 8\n")
    lines = []
    for i in range(8):
        Image.fromarray(np.full((16, 20, 3), 20 * i, np.uint8)).save(folder / "images" / f"{i}.png")
        w2c = np.linalg.inv(around(2 * math.pi * i / 8, 0.3) @ np.diag([1.0, -1, -1, 1]))
        lines += [" ".join(map(str, [40 - i, *quaternion(w2c[:3, :3]), *w2c[:3, 3], 1, f"{i}.png"])), ""]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    tracks = [" ".join(f"{40 - view} 0" for view in range(i + 1)) for i in range(6)]
    rows = [f"{i} {x} {y} {z} 9 9 9 {0.5 + i} {track}" for i, ((x, y, z), track) in enumerate(zip(POINTS.tolist(), tracks, strict=True))]
    (model / "points3D.txt").write_text("\n".join(rows) + "\n")
    return folder


POINTS = np.random.default_rng(3).uniform(-0.4, 0.4, (6, 3))


def quaternion(matrix: np.ndarray) -> np.ndarray:
    """w x y z, by the eigenvector of the largest eigenvalue (Bar-Itzhack 2000)."""
    m = matrix
    k = np.array([
        [m[0, 0] - m[1, 1] - m[2, 2], 0, 0, 0],
        [m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], 0, 0],
        [m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], m[2, 2] - m[0, 0] - m[1, 1], 0],
        [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], np.trace(m)],
    ])  # fmt: skip
    return np.linalg.eigh(k)[1][[3, 0, 1, 2], -1]


@pytest.mark.parametrize("binary", [False, True])
def test_the_points_of_a_model_are_known_where_training_pictures_see_them(capture: Path, binary: bool) -> None:
    """By the tracks, not by who could see them; in the scene's units; and held-out pictures give nothing away."""
    if binary:
        write_binary(capture / "sparse" / "0" / "points3D.bin")
        (capture / "sparse" / "0" / "points3D.txt").unlink()
    assert colmap.load(str(capture), colmap.Config()).points is None
    scene = colmap.load(str(capture), colmap.Config(depths=True, holdout=4))
    found = scene.points
    assert found is not None and scene.splits["train"] == [1, 2, 3, 5, 6, 7]
    here = torch.linalg.inv(scene.to_original)
    world = (torch.from_numpy(POINTS) @ here[:3, :3].T + here[:3, 3]).float()
    expected = {(view, point) for point in range(6) for view in range(point + 1) if view in scene.splits["train"]}
    rays = scene.rays(found.view, found.x, found.y)
    ends = rays.origins + found.depth[:, None] * rays.directions
    nearest = torch.cdist(ends, world)
    assert float(nearest.min(1).values.max()) < 0.03  # half a pixel's diagonal at that distance
    assert {(int(v), int(p)) for v, p in zip(found.view, nearest.argmin(1), strict=True)} == expected and len(found) == len(expected)
    errors = torch.arange(6) + 0.5
    assert_close(found.trust, torch.exp(-0.5 * (errors / errors.mean()) ** 2)[nearest.argmin(1)])


def write_binary(path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 6))
        for i, point in enumerate(POINTS):
            file.write(struct.pack("<Q3d3BdQ", i, *point, 9, 9, 9, 0.5 + i, i + 1))
            file.write(b"".join(struct.pack("<ii", 40 - view, 0) for view in range(i + 1)))


def test_a_model_without_observations_is_refused(capture: Path) -> None:
    (capture / "sparse/0/points3D.txt").write_text("1 0 0 0 9 9 9 0.5\n")
    with pytest.raises(SceneError, match="no points that pictures see"):
        colmap.load(str(capture), colmap.Config(depths=True))
    (capture / "sparse/0/points3D.txt").write_text("1 0 0 0 9 9 9 0.5 77 0\n")
    with pytest.raises(SceneError, match="no training picture sees a point"):
        colmap.load(str(capture), colmap.Config(depths=True))


QUICK: dict[str, tuple[Callable[[Any, Scene], Method], Any]] = {
    "nerf": (Nerf, NerfConfig(depth=2, width=8, skips=[], samples=4, fine_samples=4, rays=32, batching="all")),
    "nerf on a grid": (NerfOccupancy, NerfOccupancyConfig(depth=2, width=8, skips=[], march_steps=32, rays=32, batching="all")),
    "mipnerf": (MipNerf, MipNerfConfig(depth=2, width=8, skips=[], samples=4, rays=32, batching="all")),
    "mipnerf360": (
        MipNerf360,
        MipNerf360Config(depth=2, width=8, skips=[], proposal_depth=1, proposal_width=4, proposal_samples=[4], samples=4, rays=32),
    ),
    "instant": (Instant, InstantConfig(levels=2, log2_entries=10, march_steps=64, first_march_steps=64)),
    "instant-unbounded": (InstantProposals, InstantProposalsConfig(levels=2, log2_entries=10, proposal_samples=[8], intervals=6)),
}


@pytest.mark.parametrize("name", QUICK)
def test_the_depth_of_every_method_has_a_gradient(few: Scene, name: str) -> None:
    """Down the gradient of the depth loss alone, the depth loss falls."""
    torch.manual_seed(0)
    kind, config = QUICK[name]
    method = kind(replace(config, depth_loss=1.0), few)
    method.before_step(0)
    values = []
    for _ in range(2):
        batch = method.next_batch(few, 0, torch.Generator().manual_seed(4))
        loss = method.training_losses(batch, 0)[1]["depth"]
        values.append(float(loss.detach()))
        method.zero_grad(set_to_none=True)
        loss.backward()
        slope = math.sqrt(sum(float(p.grad.square().sum()) for p in method.parameters() if p.grad is not None))
        assert slope > 0
        with torch.no_grad():
            for p in method.parameters():
                if p.grad is not None:
                    p -= 1e-2 / slope * p.grad
    assert values[1] < values[0]


def depth_off(method: Method, scene: Scene) -> float:
    """Mean relative error of the depth of held-out pixels that see the object."""
    assert scene.depths is not None
    errors = []
    for view in scene.splits["test"]:
        start = int(scene.starts[view])
        truth = scene.depths[start : start + SIZE**2].reshape(SIZE, SIZE)
        depth = render_view(method, scene, scene.cameras, view, 4096).depth
        assert depth is not None
        errors.append(((depth - truth).abs() / truth)[truth > 0])
    return float(torch.cat(errors).mean())


@pytest.mark.parametrize(
    ("kind", "config", "optim"),
    [
        (Nerf, FAST_NERF, OptimConfig(lr=4e-3)),
        (Instant, FAST_INSTANT, OptimConfig(optimizer="sparse-adam", lr=1e-2, eps=1e-15)),
    ],
    ids=["nerf", "instant"],
)
def test_known_depths_shape_a_scene_of_few_views(few: Scene, kind: Any, config: Any, optim: OptimConfig, tmp_path: Path) -> None:
    """Held-out depths from four views: with their depths, and with no more than 200 known points."""
    assert few.depths is not None
    train_pixels = few.depths[: 4 * SIZE**2].nonzero()[:, 0]
    chosen = train_pixels[torch.randperm(len(train_pixels), generator=torch.Generator().manual_seed(2))[:200]]
    inside = chosen % SIZE**2
    points = PointDepths(chosen // SIZE**2, inside % SIZE, inside // SIZE, few.depths[chosen], torch.ones(200))
    off = {}
    for name, scene, factor in [("none", few, 0.0), ("maps", few, 0.1), ("points", replace(few, depths=None, points=points), 0.5)]:
        off[name] = depth_off(train(kind, replace(config, depth_loss=factor), scene, tmp_path / name, 100, optim), few)
    assert max(off["maps"], off["points"]) < 0.4 * off["none"], off


def test_a_scene_without_depths_is_refused(few: Scene) -> None:
    bare = replace(few, depths=None)
    with pytest.raises(ConfigError, match=r"model\.depth_loss needs depths"):
        Nerf(NerfConfig(depth_loss=0.1), bare)
    with pytest.raises(ConfigError, match=r"model\.depth_loss must be at least 0"):
        Nerf(NerfConfig(depth_loss=-0.1), few)
    Nerf(NerfConfig(depth_loss=0.1), replace(bare, pixels=None))  # a run that is opened to be looked at
