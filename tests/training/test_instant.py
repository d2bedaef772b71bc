"""The method instant: trained for real, resumed exactly, on every kind of bounds, and on scenes with nothing in them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import assert_close
from nerfit.cameras.learned import CameraConfig
from nerfit.commands.train_options import request
from nerfit.commands.train_plan import prepare
from nerfit.commands.train_run import train
from nerfit.errors import ConfigError
from nerfit.methods.instant import Instant, InstantConfig
from nerfit.methods.views import render_view
from nerfit.metrics.psnr_ssim import psnr
from nerfit.scenes.formats.procedural import Config, load
from nerfit.scenes.scene import Scene
from nerfit.training import devices
from nerfit.training.logs import LogConfig
from nerfit.training.optim import OptimConfig, SparseAdam
from nerfit.training.trainer import LoopConfig, Trainer
from trainings import mean_test_psnr

SMALL = InstantConfig(levels=4, log2_entries=13, finest=128, width=32, samples=4096, march_steps=256, occupancy_probes=4096)
OPTIM = OptimConfig(optimizer="sparse-adam", lr=2e-2, beta2=0.99, eps=1e-15, schedule="cosine", lr_final=1e-4)
QUIET = LogConfig(image_every=0, save_every=0)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return replace(load("procedural", Config(size=32, views=12, test_views=2, samples=1)), background="random")


def trainer(scene: Scene, folder: Path, steps: int, config: InstantConfig = SMALL, **choices: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    settings = LoopConfig(**({"optim": OPTIM, "log": QUIET, "steps": steps, "device": "cpu"} | choices))
    return Trainer(lambda: Instant(config, scene), scene, settings, folder, quiet=True)


def state(method: torch.nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in method.state_dict().items()}


def test_an_object_is_learned_by_the_command(tmp_path: Path) -> None:
    """The mean training picture scores 17.9 dB, the best of all training pictures for each view 19.7."""
    words = ["--steps", "350", "--scene.size", "64", "--scene.samples", "2", "--out", str(tmp_path / "run"), "--json"]
    words += ["--model.log2-entries", "14", "--model.samples", "4096", "--optim.lr", "2e-2"]
    plan, options, folder = prepare(request("instant", "procedural", words))
    assert plan.config.optim.optimizer == "sparse-adam"  # the method's own recipe is the default
    assert train(plan, options, folder)["test"]["psnr"] > 22.5


def test_short_runs_have_smaller_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On cores without matrix units; what is typed stays, and a run that begins with another's weights has that one's sizes."""

    def sizes(*words: str) -> tuple[int | None, int | None]:
        model = prepare(request("instant", "procedural", ["--threads", "2", "--out", str(tmp_path / "new"), *words]))[0].config.model
        return model.width, model.log2_entries

    monkeypatch.setattr(devices, "_has_fast_bf16", lambda device: False)
    assert sizes("--seconds", "60") == (32, 17) and sizes("--seconds", "120") == (64, 19) and sizes("--steps", "10") == (64, 19)
    assert sizes("--seconds", "60", "--threads", "8") == (64, 19)
    assert sizes("--seconds", "60", "--model.width", "64") == (64, 17)
    monkeypatch.setattr(devices, "_has_fast_bf16", lambda device: True)
    assert sizes("--seconds", "60") == (64, 19)
    words = ["--steps=1", "--scene.size=16", "--scene.views=4", "--model.log2-entries=10", "--model.width=32", "--no-evaluate"]
    train(*prepare(request("instant", "procedural", [*words, "--out", str(tmp_path / "first")])))
    assert sizes("--seconds", "60", "--init", str(tmp_path / "first")) == (32, 10)


@pytest.mark.parametrize("kind", ["forward-facing", "unbounded"])
def test_other_bounds_are_learned(tmp_path: Path, scene: Scene, kind: str) -> None:
    if kind == "forward-facing":
        scene = replace(load("procedural:forward-facing", Config(size=40, samples=2)), background="random")
        assert scene.ndc
    else:
        scene = replace(scene, bounds="unbounded")
    config = replace(SMALL, cascades=3) if kind == "unbounded" else SMALL
    run = trainer(scene, tmp_path / "run", 350, config)
    before = mean_test_psnr(run)
    run.train()
    assert mean_test_psnr(run) > max(before + 4, 18)


def interrupt(run: Trainer, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run be stopped after a step, as by Ctrl-C."""
    after = run._average_weights

    def look() -> None:
        after()
        run.interrupted = 2 if run.state.step == step else None

    monkeypatch.setattr(run, "_average_weights", look)


def test_the_seed_decides_every_bit_and_a_resumed_run_equals_one_that_was_not_stopped(
    tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, again, first = (trainer(scene, tmp_path / name, 60) for name in ("whole", "again", "parts"))
    whole.train()
    again.train()
    interrupt(first, 24, monkeypatch)
    first.train()
    rest = trainer(scene, tmp_path / "parts", 60)
    assert rest.state.step == 25
    rest.train()
    for other in (again, rest):
        for name, value in state(whole.method).items():
            assert torch.equal(value, state(other.method)[name]), name


def test_density_can_be_differentiated_by_position_as_normals_need(scene: Scene) -> None:
    torch.manual_seed(0)
    method = Instant(SMALL, scene)
    with torch.no_grad():
        method.field.table.normal_(std=0.3)
    points = torch.rand(200, 3) - 0.5 + method.space.to_scene(torch.full((1, 3), 0.5))
    points.requires_grad_()
    (gradient,) = torch.autograd.grad(method.density(points).sum(), points)
    step = 2e-4 * torch.nn.functional.normalize(gradient, dim=-1)
    with torch.no_grad():
        rise = (method.density(points + step) - method.density(points - step)) / 4e-4
    ratio = rise / gradient.norm(dim=-1)
    assert method.field.table.grad is None
    assert float((ratio - 1).abs().median()) < 0.05 and float(((ratio - 1).abs() < 0.3).float().mean()) > 0.7


def test_colour_comes_with_the_density_of_grid_levels_that_are_half_open(scene: Scene) -> None:
    torch.manual_seed(0)
    method = Instant(replace(SMALL, camera=CameraConfig(learn=True, coarse_from=0.1, coarse_until=0.5)), scene)
    with torch.no_grad():
        method.field.table.normal_(std=0.3)
    points = torch.rand(50, 3) - 0.5 + method.space.to_scene(torch.full((1, 3), 0.5))
    densities = []
    for method.progress in (0.0, 0.3, 1.0):
        with torch.no_grad():
            density, _ = method.radiance(points, torch.nn.functional.normalize(points, dim=-1))
            assert_close(density, method.density(points), 1e-4)
        densities.append(density)
    assert not torch.allclose(densities[0], densities[2], rtol=1e-2)


def test_march_steps_grow_shorter_with_the_budget_spent(tmp_path: Path, scene: Scene) -> None:
    run = trainer(scene, tmp_path / "run", 40, replace(SMALL, first_march_steps=64))
    method, lengths = run.method, []
    assert isinstance(method, Instant)
    while run.progress < 1:
        run.step()
        lengths.append(method.space.step_length)
        run.state.step += 1
    assert lengths[0] == pytest.approx(3**0.5 / 64) and lengths[-1] == pytest.approx(3**0.5 / 256, rel=0.05)
    ratios = torch.tensor(lengths).log().diff()
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), atol=1e-5, rtol=1e-3)
    method.progress = 1.0
    assert method.step_length == pytest.approx(3**0.5 / 256)  # that pictures are rendered with


def test_the_number_of_rays_follows_the_visible_samples(tmp_path: Path, scene: Scene) -> None:
    run = trainer(scene, tmp_path / "run", 120)
    run.train()
    kept = []
    for _ in range(20):
        run.step()
        run.state.step += 1
        assert isinstance(run.method, Instant)
        kept.append(run.method.space.counts[2])
    assert 0.7 * SMALL.samples < sum(kept) / len(kept) < 1.4 * SMALL.samples


def test_density_ends_with_the_box_and_the_occupancy_covers_what_is_dense(tmp_path: Path, scene: Scene) -> None:
    run = trainer(scene, tmp_path / "run", 150)
    run.train()
    method = run.method
    assert isinstance(method, Instant)
    low, side = method.space.origin, method.space.side
    assert method.density((low - 0.01 * side)[None]).abs().sum() == 0
    points = low + side * torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    thick = method.density(points) * side * method.space.step_length
    cell = ((points - low) / side * 128).long()
    index = (cell[:, 2] * 128 + cell[:, 1]) * 128 + cell[:, 0]
    occupied = (method.space.grid.bits[index >> 3].long() >> (index & 7) & 1).bool()
    assert 0.001 < float(occupied.float().mean()) < 0.5
    assert float(occupied[thick > 0.2].float().mean()) > 0.9


@pytest.mark.parametrize("value", [0, 255])
def test_a_scene_without_contents_trains_to_its_background(tmp_path: Path, scene: Scene, value: int) -> None:
    """All transparent, then all opaque white: no sample, or all of them. Without samples a step takes as many rays as there may be."""
    assert scene.pixels is not None
    empty = replace(scene, pixels=torch.full_like(scene.pixels, value))
    run = trainer(empty, tmp_path / "run", 30, replace(SMALL, march_steps=64))
    run.train()
    rendering = render_view(run.method, empty, empty.cameras, 0, 4096)
    assert bool(torch.isfinite(rendering.rgb).all()) and rendering.depth is not None and bool(torch.isfinite(rendering.depth).all())
    assert psnr(rendering.rgb, torch.ones_like(rendering.rgb)) > 20


def test_gradients_of_a_skipped_step_do_not_leak_into_the_next() -> None:
    table = torch.nn.Parameter(torch.zeros(32))
    optimizer = SparseAdam([{"params": [table], "sparse": True}], 0.1, (0.9, 0.99), 1e-15, 0.0)
    optimizer.zero_grad()
    assert table.grad is not None
    table.grad[3] = torch.nan  # a step that is never taken
    optimizer.zero_grad()
    table.grad[5] = 1.0
    optimizer.step()
    assert float(table.detach()[5]) == pytest.approx(-0.1) and float(table.detach().abs().sum()) == pytest.approx(0.1)
    assert float(table.grad.abs().sum()) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [({"width": 48}, "multiple of 32"), ({"log2_entries": 40}, "hash grid"), ({"samples": 1}, "model.samples must be at least 64")],
)
def test_sizes_that_cannot_be_are_refused(scene: Scene, change: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Instant(replace(SMALL, **change), scene)


def test_the_last_part_of_the_budget_is_averaged(tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of the weights after every 20th step from the given share of the budget on, also when the run was stopped in between."""

    def start(name: str, share: float) -> Trainer:
        return trainer(scene, tmp_path / name, 120, optim=replace(OPTIM, average_from=share, decay_steps=120))

    def table(run: Trainer) -> Tensor:
        assert isinstance(run.method, Instant)
        return run.method.field.table.detach()

    plain, mean, parts = start("plain", 1.0), start("mean", 0.5), start("parts", 0.5)
    seen: list[Tensor] = []

    def look() -> None:
        if plain.progress >= 0.5 and plain.state.step % 20 == 0:
            seen.append(table(plain).clone())

    monkeypatch.setattr(plain, "_average_weights", look)
    plain.train()
    mean.train()
    assert len(seen) == 3
    torch.testing.assert_close(table(mean), torch.stack(seen).mean(0), atol=1e-6, rtol=1e-5)
    assert not any("average" in state for state in mean.optimizer.state.values())  # going on begins another mean

    interrupt(parts, 84, monkeypatch)
    parts.train()
    rest = start("parts", 0.5)
    assert rest.state.step == 85
    rest.train()
    assert torch.equal(table(rest), table(mean))


def test_the_distortion_loss_makes_samples_fewer(tmp_path: Path, scene: Scene) -> None:
    visible = []
    for factor in (0.0, 0.03):
        run = trainer(scene, tmp_path / str(factor), 150, replace(SMALL, distortion=factor))
        run.train()
        batch = run.method.next_batch(scene, 0, torch.Generator().manual_seed(0))
        rendering = run.method.render(batch)
        visible.append(run.method.scalars(rendering, batch)["visible_per_ray"])
        assert ("distortion" in run.method.losses(rendering, batch, 0)) == (factor > 0)
    assert visible[1] < 0.9 * visible[0]
