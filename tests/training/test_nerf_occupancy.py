"""The classic field on an occupancy grid: trained for real on every kind of bounds, resumed exactly, against dense quadrature."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import assert_close
from nerfit.commands.train_options import request
from nerfit.commands.train_plan import plan_of
from nerfit.errors import ConfigError
from nerfit.kernels.layouts import Cutoffs
from nerfit.methods import nerf_occupancy
from nerfit.methods.nerf_occupancy import NerfOccupancy, NerfOccupancyConfig
from nerfit.methods.views import render_view
from nerfit.rendering.volume import composite_samples, render_weights
from nerfit.sampling.space import OccupiedSpace
from nerfit.scenes.formats.procedural import Config, load
from nerfit.scenes.scene import Scene
from nerfit.training.logs import LogConfig
from nerfit.training.optim import OptimConfig
from nerfit.training.trainer import LoopConfig, Trainer
from trainings import mean_test_psnr

SMALL = NerfOccupancyConfig(depth=3, width=48, skips=[], frequencies=5, view_frequencies=2, rays=384, batching="all", march_steps=96)
OPTIM = OptimConfig(lr=5e-3, schedule="log-linear", lr_final=5e-4, warmup_steps=50)
Start = Callable[..., Trainer]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return replace(load("procedural", Config(size=32, views=12, test_views=2, samples=1)), background="random")


@pytest.fixture
def start(tmp_path: Path, scene: Scene) -> Start:
    """A trainer in a folder of its own name."""

    def make(name: str = "run", scene: Scene = scene, config: NerfOccupancyConfig = SMALL, **choices: Any) -> Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        quiet = LogConfig(image_every=0, save_every=0)
        settings = LoopConfig(**({"optim": OPTIM, "log": quiet, "device": "cpu", "threads": 1} | choices))
        return Trainer(lambda: NerfOccupancy(config, scene), scene, settings, tmp_path / name, quiet=True)

    return make


def space_of(method: Any) -> OccupiedSpace:
    assert isinstance(method, NerfOccupancy)
    return method.space


def test_an_object_is_learned_and_empty_space_skipped(start: Start) -> None:
    """The mean training picture scores 16.4 dB, the best of all training pictures for each view 15.4."""
    run = start(steps=250)
    run.train()
    assert mean_test_psnr(run) > 17.2
    method, space = run.method, space_of(run.method)
    assert space.scalars()["occupied_blocks"] < 0.3
    x = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    cell = (x * 128).long()
    index = (cell[:, 2] * 128 + cell[:, 1]) * 128 + cell[:, 0]
    occupied = (space.grid.bits[index >> 3].long() >> (index & 7) & 1).bool()
    thick = method.density(space.to_scene(x)) * space.side * space.step_length
    assert float(occupied[thick > 0.2].float().mean()) > 0.95
    assert 0 < method.samples_per_ray() < 24


@pytest.mark.parametrize("kind", ["forward-facing", "unbounded"])
def test_other_bounds_are_learned(start: Start, scene: Scene, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward-facing, the mean training picture scores 14.4 dB and the best of all 14.6; the other scene is the object's."""
    if kind == "forward-facing":
        scene = replace(load("procedural:forward-facing", Config(size=32, samples=1)), background="random")
        assert scene.ndc
    else:
        scene = replace(scene, bounds="unbounded")
        assert OccupiedSpace(scene, 96).grid.cascades == 5
        monkeypatch.setattr(nerf_occupancy, "OccupiedSpace", partial(OccupiedSpace, cascades=2))
    run = start(scene=scene, steps=300 if kind == "forward-facing" else 230)
    run.train()
    assert mean_test_psnr(run) > (17 if kind == "unbounded" else 15.2)


def test_the_seed_decides_every_bit_and_a_resumed_run_equals_one_that_was_not_stopped(start: Start) -> None:
    optim, config = replace(OPTIM, decay_steps=40, schedule="exponential"), replace(SMALL, raw_noise=0.1)
    whole, first = (start(name, config=config, optim=optim, steps=steps) for name, steps in (("whole", 40), ("parts", 25)))
    whole.train()
    first.train()
    rest = start("parts", config=config, optim=optim, steps=40)
    assert rest.state.step == 25
    rest.train()
    other = rest.method.state_dict()
    for name, value in whole.method.state_dict().items():
        assert torch.equal(value, other[name]), name


def test_chunks_and_views_are_what_they_are_in_one_piece(start: Start) -> None:
    run = start(steps=30)
    run.train()
    scene = run.scene
    whole, pieces = (render_view(run.method, scene, scene.cameras, 0, chunk) for chunk in (4096, 100))
    for name in ("rgb", "depth", "opacity", "disparity"):
        assert_close(getattr(pieces, name), getattr(whole, name), 1e-4)
    assert 0.01 < float(whole.opacity.mean() if whole.opacity is not None else 0) < 0.99


def test_a_full_grid_gives_dense_quadrature(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every march step of every ray, composited in float64 from the network itself."""
    monkeypatch.setattr(nerf_occupancy, "CUTOFFS", Cutoffs(0.0, 0.0))
    torch.manual_seed(0)
    method = NerfOccupancy(replace(SMALL, jitter=False), scene)
    space = space_of(method)
    batch = method.view_batch(scene, scene.cameras, 0, torch.arange(0, 32 * 32, 7))
    rays = batch.rays
    assert rays is not None
    with torch.no_grad():
        found = method.render(batch)
    samples = space.march(rays, None)
    counts = samples.offsets.diff()
    assert int(counts.amax()) > 40
    shape = len(rays), int(counts.amax())
    inside = torch.arange(shape[1]) < counts[:, None]
    t, delta = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
    t[inside] = 0.5 * (samples.t_starts + samples.t_ends).double()
    delta[inside] = (samples.t_ends - samples.t_starts).double()
    method.double()
    o, d = rays.origins.double(), rays.directions.double()
    points = o[:, None] + t[..., None] * d[:, None]
    density, rgb = method.field(points, rays.viewdirs.double())
    weights = render_weights(density.double(), delta * d.norm(dim=-1)[:, None])
    expected = composite_samples(weights, rgb.double(), t, batch.background)
    for name in ("rgb", "depth", "opacity", "disparity"):
        assert_close(getattr(found, name), getattr(expected, name), 1e-4)
    assert float(found.opacity.max() if found.opacity is not None else 0) > 0.3


def test_colours_and_gradients_stay_where_matter_is_visible(start: Start) -> None:
    run = start(steps=60)
    run.train()
    space = space_of(run.method)
    space.grid.bits.zero_()
    space.grid.distance.fill_(15)
    batch = run.method.next_batch(run.scene, 60, torch.Generator().manual_seed(0))
    rendering = run.method.render(batch)
    assert torch.equal(rendering.rgb, torch.as_tensor(batch.background).expand_as(rendering.rgb))
    run.method.losses(rendering, batch, 60)["rgb"].backward()  # nothing to learn, and no error


# --- The space ------------------------------------------------------------------------------------------------------


def test_places_in_the_scene_and_in_the_cascades(scene: Scene) -> None:
    space = OccupiedSpace(scene, 64, box=1.5, cascades=3)
    corners, inside = space.to_cascades(torch.stack([space.origin, space.origin + space.side]))
    assert_close(corners, [[0.0] * 3, [1.0] * 3])
    assert inside.all() and space.side == 3
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * 6 - 2.5
    again, inside = space.to_cascades(space.to_scene(x))
    assert_close(again, x)
    assert torch.equal(inside, ((x >= -1.5) & (x <= 2.5)).all(-1))


def test_nothing_is_dense_outside_the_grid(scene: Scene) -> None:
    method = NerfOccupancy(SMALL, scene)
    space = space_of(method)
    points = space.origin + space.side * torch.tensor([[-0.01, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 1.01, 0.5]])
    assert (method.density(points) > 0).tolist() == [False, True, False]


@pytest.mark.parametrize("most", [5, 20])
def test_where_all_is_occupied_steps_are_longer(scene: Scene, most: int) -> None:
    space = OccupiedSpace(scene, 128)
    rays = scene.rays(torch.zeros(200, dtype=torch.long), torch.arange(200) % 32, torch.arange(200) // 7)
    jitter = torch.rand(200, generator=torch.Generator().manual_seed(0))
    free, bound = space.march(rays, jitter), space.march(rays, jitter, most)
    assert len(free) > 2 * most * 200 and len(bound) == pytest.approx(most * 200, rel=0.05)
    length = (bound.t_ends - bound.t_starts) * rays.directions.norm(dim=-1)[bound.ray_indices.long()]
    assert_close(length, torch.full_like(length, float(length[0])), 1e-3)
    assert float(length[0]) == pytest.approx(space.side * space.step_length * len(free) / (most * 200), rel=1e-3)
    ends: list[Tensor] = [s.t_ends.new_zeros(200).scatter_reduce(0, s.ray_indices.long(), s.t_ends, "amax") for s in (free, bound)]
    both = (ends[0] > 0) & (ends[1] > 0)
    assert both.sum() > 150 and (ends[0] - ends[1])[both].abs().max() < 2 * float(length[0])


# --- Its keys -------------------------------------------------------------------------------------------------------


def test_its_recipe_is_its_own_and_it_has_no_keys_of_coarse_and_fine_samples() -> None:
    plan = plan_of(request("nerf-occupancy", "procedural", []))
    assert plan.config.model.march_steps == 128
    with pytest.raises(ConfigError, match="there is no option --model.fine-samples here"):
        plan_of(request("nerf-occupancy", "procedural", ["--model.fine-samples", "17"]))


def test_too_few_march_steps_are_refused(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="model.march_steps must be at least 16"):
        NerfOccupancy(replace(SMALL, march_steps=8), scene)
