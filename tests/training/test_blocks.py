"""Scenes in blocks: how cameras are shared out, that a block is the same world, that blended fields are one, and the command."""

import contextlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import assert_close
from many_jobs import in_turn
from nerfit.cameras import Cameras
from nerfit.cameras.poses import look_at
from nerfit.cli import main
from nerfit.commands import blocks, jobs, sweep
from nerfit.errors import ConfigError
from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.methods.blocks import Blended
from nerfit.methods.views import render_view
from nerfit.rendering.volume import Rendering, over_background
from nerfit.runs import open_run
from nerfit.scenes.formats import procedural
from nerfit.scenes.partition import BlocksConfig, blocks_of, cut, partition
from nerfit.scenes.scene import Scene

grids = st.sampled_from([(2, 1), (1, 2), (3, 2), (4, 1)])


def street(seed: int, count: int = 40) -> Cameras:
    """Level cameras spread over 8 x 3 x 0.2, in a frame turned about the vertical."""
    generator = torch.Generator().manual_seed(seed)
    eyes = (torch.rand(count, 3, generator=generator, dtype=torch.float64) - 0.5) * torch.tensor([8.0, 3.0, 0.2])
    c, s = math.cos(seed), math.sin(seed)
    turn = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    ahead = torch.nn.functional.pad(torch.randn(count, 2, generator=generator, dtype=torch.float64), (0, 1))
    return Cameras.pinhole(look_at(eyes @ turn.T, (eyes + ahead) @ turn.T, torch.tensor([0.0, 0.0, 1.0])), 20.0, 16, 12)


@given(st.integers(0, 99), grids, st.floats(0.05, 0.6))
def test_every_place_is_some_blocks_and_every_block_has_as_many_cameras(seed: int, grid: tuple[int, int], overlap: float) -> None:
    cameras = street(seed)
    parts = partition(cameras, BlocksConfig(grid, overlap))
    weights = parts.weights(cameras.centers)
    assert torch.allclose(weights.sum(1), torch.ones(40)) and (weights >= 0).all()
    flat = cameras.centers.double() @ parts.axes.T
    inside = ((flat[:, None] >= parts.low) & (flat[:, None] <= parts.high)).all(-1)
    assert (inside.sum(1) == 1).all() and (inside.sum(0) - 40 / len(parts)).abs().max() < 1.5
    assert (weights[inside] >= weights.amax(1) - 1e-6).all()
    assert float(flat[:, 0].std()) > float(flat[:, 1].std())
    assert_close(parts.axes @ torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) + 1, torch.ones(2))


@given(st.integers(0, 99), grids, st.floats(-5, 5), st.floats(-3, 3), st.floats(0, 7))
def test_weights_are_their_definition_and_never_jump(seed: int, grid: tuple[int, int], x: float, y: float, direction: float) -> None:
    parts = partition(street(seed), BlocksConfig(grid, 0.3))
    point = torch.tensor([x, y, 0.1], dtype=torch.float64)
    u, v = (sum(a * b for a, b in zip(axis.tolist(), point.tolist(), strict=True)) for axis in parts.axes)
    near = []
    for (low_u, low_v), (high_u, high_v) in zip(parts.low.tolist(), parts.high.tolist(), strict=True):
        du, dv = max(low_u - u, u - high_u, 0) / float(parts.margin[0]), max(low_v - v, v - high_v, 0) / float(parts.margin[1])
        near.append(max(0.0, 1 - math.hypot(du, dv)))
    weights = parts.weights(point[None])[0]
    assert weights.tolist() == pytest.approx([n / sum(near) for n in near], abs=1e-12)
    step = 1e-6 * torch.tensor([math.cos(direction), math.sin(direction), 0], dtype=torch.float64)
    assert (parts.weights((point + step)[None])[0] - weights).abs().max() < 1e-6 * 2 / float(parts.margin.min()) + 1e-12


@pytest.fixture(scope="module")
def corridor() -> Scene:
    config = procedural.Config(size=16, views=24, test_views=5, val_views=2, samples=1)
    return procedural.load("procedural:corridor", config)


def test_a_block_is_the_same_world(corridor: Scene) -> None:
    config = BlocksConfig((3, 1), 0.25)
    parts, blocks = blocks_of(corridor, config)
    seen = [cut(corridor, BlocksConfig((3, 1), 0.25, index)) for index in range(3)]
    assert sorted({view for scene in seen for view in scene.splits["train"]}) == corridor.splits["train"]
    assert sorted(view for scene in seen for view in scene.splits["test"]) == corridor.splits["test"]
    shared = set(seen[0].splits["train"]) & set(seen[1].splits["train"])
    assert shared and not set(seen[0].splits["train"]) & set(seen[2].splits["train"])
    x, y, view = torch.arange(16).repeat(16), torch.arange(16).repeat_interleave(16), seen[1].splits["train"][0]
    views, rows = torch.full_like(x, view), slice(256 * view, 256 * view + 256)
    for scene, block in zip(seen, blocks, strict=True):
        train = scene.cameras[scene.splits["train"]]
        assert train.centers.abs().max() <= 1 + 1e-6 and scene.bounds == "unbounded"
        assert_close(scene.original_cameras.c2w, corridor.original_cameras.c2w)
        own, whole = scene.rays(views, x, y), corridor.rays(views, x, y)
        assert scene.depths is not None and corridor.depths is not None
        points = own.origins + scene.depths[rows, None] * own.directions
        expected = whole.origins + corridor.depths[rows, None] * whole.directions
        assert_close(points, expected @ block.to_block[:3, :3].float().T + block.to_block[:3, 3].float())
        assert_close(own.near, whole.near * block.scale)
        assert scene.depth_range is not None and corridor.depth_range is not None
        assert scene.depth_range[1] == pytest.approx(corridor.depth_range[1] * block.scale)
    assert parts.weights(corridor.cameras.centers).shape == (31, 3)
    assert cut(corridor, config) is corridor


class Traced(Method):
    """A field that knows the corridor exactly, in a block's coordinates."""

    back: Tensor

    def __init__(self, back: Tensor) -> None:
        super().__init__()
        self.register_parameter("back", torch.nn.Parameter(back, requires_grad=False))

    def render(self, batch: Batch) -> Rendering:
        rays, move, scale = batch.rays, self.back.double(), float(torch.linalg.det(self.back[:3, :3].double()) ** (1 / 3))
        assert rays is not None
        origins = rays.origins.double() @ move[:3, :3].T + move[:3, 3]
        rgb, opacity, depth, _ = procedural.trace("corridor", origins, rays.directions.double())
        assert torch.allclose(rays.far * scale, torch.tensor(20.0))
        return over_background(rgb.float(), opacity.float(), depth.float() / scale, batch.background)

    def density(self, points: Tensor) -> Tensor:
        """Twice the scene's x + 3, per scene unit."""
        move = self.back.double()
        scale = float(torch.linalg.det(move[:3, :3]) ** (1 / 3))
        return 2 * ((points.double() @ move[:3, :3].T + move[:3, 3])[:, 0] + 3).float() * scale

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        return self.density(points), viewdirs.abs()

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        raise NotImplementedError

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        raise NotImplementedError


def test_blended_fields_of_one_world_are_that_world(corridor: Scene) -> None:
    parts, blocks = blocks_of(corridor, BlocksConfig((3, 1), 0.25))
    fields = [Traced(torch.linalg.inv(block.to_block)) for block in blocks]
    blended, whole = Blended(parts, blocks, list(fields)), Traced(torch.eye(4, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 31, (400,), generator=generator)
    assert ((parts.weights(corridor.cameras.centers[views]) > 0).sum(1) > 1).any()
    x, y = torch.randint(0, 16, (2, 400), generator=generator)
    batch = Batch(corridor.rays(views, x, y), background=0.3)
    found, expected = blended.render(batch), whole.render(batch)
    alike = (found.rgb - expected.rgb).abs().amax(1) < 1e-3  # the edges of stripes lie elsewhere in other coordinates
    assert alike.float().mean() > 0.98
    for name in ("depth", "opacity", "disparity"):
        assert_close(getattr(found, name)[alike], getattr(expected, name)[alike], 1e-4)
    points = 2 * torch.rand(50, 3, generator=generator) - 1
    assert_close(blended.density(points), 2 * (points[:, 0] + 3), 1e-5)
    density, rgb = blended.radiance(points, points)
    assert_close(density, 2 * (points[:, 0] + 3), 1e-5)
    assert_close(rgb, points.abs(), 1e-5)


TINY = [
    *("--scene.size", "16", "--scene.views", "16", "--scene.samples", "1", "--scene.test-views", "3", "--scene.val-views", "1"),
    *("--model.samples", "256", "--model.log2-entries", "10", "--model.levels", "2", "--log.image-every", "0", "--threads", "1"),
    *("--model.march-steps", "48", "--model.first-march-steps", "32", "--model.cascades", "2", "--steps", "20"),
]


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """An empty folder to work in, where jobs run in this process; the commands that they ran."""
    commands: list[tuple[str, ...]] = []

    def run(words: Sequence[str], log: Any, cwd: Path) -> None:
        commands.append(tuple(words))
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(list(words)) == 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "run_nerfit", run)
    monkeypatch.setattr(blocks.run, "__defaults__", (in_turn,))
    return commands


def test_a_scene_in_blocks_is_a_run_like_any_other(said: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["blocks", "procedural:corridor", "instant", "--blocks", "2x1", *TINY]
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    run = Path("runs/procedural-corridor-instant-2x1")
    assert answer["run"] == str(run) and len(answer["blocks"]) == len(said) == 2 and answer["test"]["psnr"] > 5
    assert json.loads((run / "metrics.json").read_text())["train"]["steps"] == 40
    assert main([*words, "--json"]) == 0 and len(said) == 2 and json.loads(capsys.readouterr().out) == answer
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["psnr"] == pytest.approx(answer["test"]["psnr"])
    assert main(["render", str(run), "--frames", "2", "--what", "rgb,depth,normal", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["videos"]) == 3
    assert main(["train", "--out", str(run), "--resume"]) == 1 and "nerfit blocks trains all" in capsys.readouterr().err
    assert main([*words, "--optim.lr", "0.1"]) == 1 and "was begun with optim.lr" in capsys.readouterr().err

    whole, first = open_run(run, images=False), open_run(run / "blocks/0", images=False)
    assert isinstance(whole.method, Blended) and whole.state.step == 40
    far_left = int(whole.scene.cameras.centers[:, 0].argmin())
    weights = whole.method.parts.weights(whole.scene.cameras.centers)
    view = next(v for v in (far_left, int(weights[:, 0].argmax())) if weights[v, 0] == 1)
    alone, blended = (render_view(r.method, r.scene, r.scene.cameras, view, 100) for r in (first, whole))
    assert_close(blended.rgb, alone.rgb)
    assert alone.depth is not None and blended.depth is not None
    assert_close(blended.depth, alone.depth / whole.method.blocks[0].scale, 1e-4)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "a SCENE is needed first: nerfit blocks SCENE [METHOD]"),
        (["procedural:corridor", "--blocks", "two"], "--blocks is two numbers such as 2x1 or 3x2"),
        (["procedural:corridor", "--blocks", "1x1"], "at least two blocks"),
        (["procedural:corridor", *TINY, "--blocks", "9x1"], "blocks.grid 9 1 with overlap 0.25 can't be made of 16 cameras"),
        (["procedural:corridor", *TINY, "--blocks.overlap", "0"], "with overlap 0"),
        (["procedural:forward-facing", "--scene.size", "8"], "can't be cut into blocks: add --scene.no-ndc"),
        (["procedural:corridor", "--model.camera.learn"], "leave out --model.camera.learn"),
        (["procedural:corridor", "--blocks.index", "1"], "leave out --blocks.index"),
        (["procedural:corridor", "--resume"], "leave out --resume"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_mistakes_are_reported_before_anything_is_written(
    said: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert main(["blocks", *words]) == 1
    assert expected in capsys.readouterr().err.splitlines()[-1] and list(Path().iterdir()) == [] and not said


def test_one_block_alone_and_none_such(said: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "instant", "procedural:corridor", *TINY, "--blocks.grid", "2", "1"]) == 1
    assert "--blocks.index K the one of that number" in capsys.readouterr().err
    assert main(["train", "instant", "procedural:corridor", *TINY, "--blocks.grid", "2", "1", "--blocks.index", "2"]) == 1
    assert "blocks.index must be 0 to 1, not 2" in capsys.readouterr().err
    assert main(["train", "instant", "procedural:corridor", *TINY, "--blocks.overlap", "0.1"]) == 1
    assert "blocks.overlap has no effect here: blocks.grid is 1 1" in capsys.readouterr().err
    assert list(Path().iterdir()) == []
    with pytest.raises(ConfigError, match="leave out --recipe"):
        sweep.planned(sweep.Options(scenes=("procedural",), methods=("nerf",), flags=("--recipe", "nerf")))


def test_options_reach_the_plan(said: list[tuple[str, ...]]) -> None:
    whole, words = blocks.planned(blocks.Options(scene="procedural:corridor", blocks="3x2", flags=("--blocks.overlap", "0.4")))
    assert whole.config.blocks == BlocksConfig((3, 2), 0.4) and words[-3:] == ["--blocks.grid", "3", "2"]
