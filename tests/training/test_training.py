"""Schedules against their formulas, and what one training loop owes every method."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from nerfit.cameras import Cameras
from nerfit.errors import ConfigError, RunError
from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.methods.image import Image, ImageConfig
from nerfit.methods.nerf import Nerf, NerfConfig
from nerfit.methods.views import render_view
from nerfit.metrics.psnr_ssim import psnr
from nerfit.rendering.volume import Rendering
from nerfit.scenes.formats.procedural import Config, load
from nerfit.scenes.scene import Scene
from nerfit.training import clock as clock_module
from nerfit.training import trainer as trainer_module
from nerfit.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from nerfit.training.collapse import CollapseWatch
from nerfit.training.logs import LogConfig
from nerfit.training.optim import OptimConfig, learning_rate, make_optimizer, set_learning_rate
from nerfit.training.trainer import MAX_RESTARTS, MAX_SKIPPED_IN_A_ROW, Callback, LoopConfig, Trainer

SMALL = NerfConfig(depth=2, width=16, skips=[], samples=8, fine_samples=8, rays=64, batching="all")
QUICK = OptimConfig(lr=5e-3, schedule="constant")


@pytest.fixture(scope="module")
def scene() -> Scene:
    return load("procedural", Config(size=24, views=6, val_views=1, test_views=1, samples=1))


@pytest.fixture
def start(scene: Scene, tmp_path: Path) -> Callable[..., Trainer]:
    """A trainer of a Nerf, or of what ``make`` makes, in a folder below tmp_path; keywords are those of LoopConfig."""

    def make_trainer(name: str = "run", make: Any = SMALL, callbacks: list[Callback] | None = None, **choices: Any) -> Trainer:
        loop = LoopConfig(**({"optim": QUICK, "steps": 30} | choices))
        (tmp_path / name).mkdir(exist_ok=True)
        make_method = (lambda: Nerf(make, scene)) if isinstance(make, NerfConfig) else make
        return Trainer(make_method, scene, loop, tmp_path / name, callbacks, quiet=True)

    return make_trainer


class Flat(Method):
    """One learned colour everywhere, of a fixed opacity; ``gradient`` replaces the loss by a linear one."""

    def __init__(self, opacity: float = 0.5, gradient: list[float] | None = None) -> None:
        super().__init__()
        self.color = nn.Parameter(torch.full((3,), 0.5))
        self.opacity, self.gradient = opacity, gradient

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        return Batch(coordinates=torch.zeros(32, 2), target=torch.rand(32, 3, generator=generator), generator=generator)

    def view_batch(self, scene: Scene, cameras: Cameras, view: int, pixels: Tensor, look: Cameras | None = None) -> Batch:
        return Batch(coordinates=torch.zeros(len(pixels), 2))

    def render(self, batch: Batch) -> Rendering:
        return Rendering(self.color.expand(len(batch), 3), opacity=torch.full((len(batch),), self.opacity))

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        assert batch.target is not None
        if self.gradient is not None:
            return {"linear": (torch.tensor(self.gradient) * self.color).sum()}
        return {"rgb": (rendering.rgb - batch.target).square().mean()}


def weights(method: Method) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in method.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def error_of(trainer: Trainer) -> float:
    """Mean squared error of the first training view."""
    rendering = render_view(trainer.method, trainer.scene, trainer.scene.cameras, 0, 4096)
    return float((rendering.rgb - trainer.scene.image(0)).square().mean())


STEPS = st.integers(0, 400_000)
RATES = st.floats(1e-6, 1e-2)


@given(STEPS, RATES, st.integers(1, 500))
def test_exponential_means_what_lrate_decay_meant(step: int, lr: float, lrate_decay: int) -> None:
    config = OptimConfig(lr=lr, decay_steps=1000 * lrate_decay)
    assert learning_rate(config, step, 0.3) == pytest.approx(lr * 0.1 ** (step / (1000 * lrate_decay)))


@given(STEPS, st.integers(1, 100_000), st.floats(0.01, 0.99))
def test_step_decays_once_every_decay_steps(step: int, every: int, rate: float) -> None:
    expected = 1e-3
    for _ in range(step // every):
        expected *= rate
    assert learning_rate(OptimConfig(lr=1e-3, schedule="step", decay_steps=every, decay_rate=rate), step, 0.0) == pytest.approx(expected)


@pytest.mark.parametrize(("step", "times"), [(0, 0), (99, 0), (100, 1), (249, 1), (250, 2), (10_000, 2)])
def test_multi_step_decays_at_its_milestones(step: int, times: int) -> None:
    config = OptimConfig(lr=1.0, schedule="multi-step", milestones=[250, 100], decay_rate=0.5)
    assert learning_rate(config, step, 0.0) == 0.5**times


@given(st.floats(0, 2), RATES, RATES)
def test_cosine_and_log_linear_go_from_lr_to_lr_final_and_stay(x: float, lr: float, lr_final: float) -> None:
    t = min(x, 1.0)
    step = round(x * 10_000)
    t = min(step / 10_000, 1.0)
    cosine = OptimConfig(lr=lr, lr_final=lr_final, schedule="cosine", decay_steps=10_000)
    assert learning_rate(cosine, step, 0.0) == pytest.approx(lr_final + (lr - lr_final) * math.cos(math.pi * t / 2) ** 2)
    linear = replace(cosine, schedule="log-linear")
    assert learning_rate(linear, step, 0.0) == pytest.approx(lr ** (1 - t) * lr_final**t)


@given(STEPS, st.integers(1, 10_000), st.floats(0.001, 1))
def test_delayed_warm_up_is_mip_nerfs(step: int, delay_steps: int, delay_mult: float) -> None:
    """mip-NeRF, equation 17: lr_delay_mult + (1 - lr_delay_mult) sin(pi/2 clip(step / delay_steps)) times log_lerp."""
    delay = delay_mult + (1 - delay_mult) * math.sin(math.pi / 2 * min(max(step / delay_steps, 0), 1))
    t = min(max(step / 250_000, 0), 1)
    expected = delay * math.exp((1 - t) * math.log(5e-4) + t * math.log(5e-6))
    choices: dict[str, Any] = {"lr": 5e-4, "lr_final": 5e-6, "schedule": "log-linear", "decay_steps": 250_000}
    config = OptimConfig(**choices, warmup_steps=delay_steps, warmup_factor=delay_mult)
    assert learning_rate(config, step, 0.0) == pytest.approx(expected)


@given(STEPS, st.floats(0, 1))
def test_constant_is_constant_and_the_floor_holds(step: int, progress: float) -> None:
    assert learning_rate(OptimConfig(lr=0.25, schedule="constant"), step, progress) == 0.25
    floored = OptimConfig(lr=1e-3, lr_floor=2e-4)
    assert learning_rate(floored, step, progress) == pytest.approx(max(1e-3 * 0.1**progress, 2e-4))


@pytest.mark.parametrize("schedule", ["exponential", "cosine", "log-linear"])
@pytest.mark.parametrize("progress", [0.0, 0.25, 0.9, 1.0])
def test_without_decay_steps_the_budget_is_the_decay(schedule: Any, progress: float) -> None:
    config = OptimConfig(lr=1e-2, lr_final=1e-4, schedule=schedule)
    by_steps = learning_rate(replace(config, decay_steps=1000), round(1000 * progress), 0.123)
    assert learning_rate(config, 7, progress) == pytest.approx(by_steps)


def test_schedules_that_lack_their_number_are_refused() -> None:
    with pytest.raises(ConfigError, match="decay-steps"):
        make_optimizer(OptimConfig(schedule="step"), Flat())
    with pytest.raises(ConfigError, match="milestones"):
        make_optimizer(OptimConfig(schedule="multi-step"), Flat())


def test_groups_keep_their_share_of_the_learning_rate() -> None:
    class Two(Flat):
        def __init__(self) -> None:
            super().__init__()
            self.slow = nn.Parameter(torch.zeros(2))

        def parameter_groups(self) -> list[dict[str, Any]]:
            return [{"params": [self.color]}, {"params": [self.slow], "lr_scale": 0.1}]

    optimizer = make_optimizer(OptimConfig(), Two())
    set_learning_rate(optimizer, 3e-3, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([3e-3, 3e-4])


@pytest.mark.parametrize(
    ("clip", "expected"),
    [({}, [40.0, 3.0, -30.0]), ({"clip_value": 5.0}, [5.0, 3.0, -5.0]), ({"clip_norm": 1.0}, [0.7987, 0.0599, -0.5990])],
)
def test_clipping_bounds_the_update(start: Callable[..., Trainer], clip: dict[str, Any], expected: list[float]) -> None:
    optim = OptimConfig(optimizer="sgd", lr=0.01, schedule="constant", **clip)
    trainer = start(make=lambda: Flat(gradient=[40.0, 3.0, -30.0]), optim=optim, steps=1)
    before = weights(trainer.method)["color"]
    trainer.train()
    assert ((before - weights(trainer.method)["color"]) / 0.01).tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 5e-3), ("radam", 1e-2), ("sgd", 0.2)])
def test_every_optimiser_trains(start: Callable[..., Trainer], optimizer: Any, lr: float) -> None:
    trainer = start(steps=100, optim=OptimConfig(optimizer=optimizer, lr=lr, schedule="constant"))
    before = error_of(trainer)
    trainer.train()
    assert error_of(trainer) < 0.7 * before


@pytest.mark.parametrize("make", [SMALL, replace(SMALL, fine_samples=0, viewdirs=False, batching="image", precrop_steps=50)])
def test_the_error_falls(start: Callable[..., Trainer], make: NerfConfig) -> None:
    trainer = start(make=make, steps=150)
    before = error_of(trainer)
    trainer.train()
    assert error_of(trainer) < 0.5 * before
    assert trainer.state.step == 150 and trainer.progress == 1


def test_a_picture_is_fitted(start: Callable[..., Trainer], scene: Scene) -> None:
    trainer = start(make=lambda: Image(ImageConfig(depth=2, width=32, pixels=256), scene), steps=200)
    before = error_of(trainer)
    trainer.train()
    assert error_of(trainer) < 0.1 * before


def test_the_seed_decides_every_bit(start: Callable[..., Trainer]) -> None:
    ends = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        trainer = start(name, make=replace(SMALL, raw_noise=0.5), steps=10, seed=seed)
        trainer.train()
        ends.append(weights(trainer.method))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_chunks_add_up_to_the_whole_batch(start: Callable[..., Trainer]) -> None:
    """64 rays as 9 chunks of 7 and one of a single ray: the gradient is the mean over all rays, not over chunks."""
    optim = OptimConfig(optimizer="sgd", lr=0.1, schedule="constant")
    ends = []
    for name, chunk in (("one", 64), ("many", 7)):
        trainer = start(name, make=replace(SMALL, jitter=False), steps=3, chunk=chunk, optim=optim)
        begin = weights(trainer.method)
        trainer.train()
        ends.append(torch.cat([(t - begin[k]).flatten() for k, t in weights(trainer.method).items()]))
    assert float((ends[0] - ends[1]).abs().max()) < 1e-4 * float(ends[0].abs().max())


class Faulty(Flat):
    """Its loss, or only its gradient, is not finite at the steps ``bad``."""

    def __init__(self, bad: range, only_gradient: bool) -> None:
        super().__init__()
        self.bad, self.only_gradient = bad, only_gradient

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        losses = super().losses(rendering, batch, step)
        if step in self.bad:
            nothing = (self.color - self.color.detach()).sum()
            losses["fault"] = nothing.sqrt() if self.only_gradient else nothing / 0
        return losses


@pytest.mark.parametrize("only_gradient", [False, True])
def test_steps_that_are_not_finite_are_skipped_and_counted(start: Callable[..., Trainer], tmp_path: Path, only_gradient: bool) -> None:
    bad = range(5, 5 + MAX_SKIPPED_IN_A_ROW - 1)
    seen: list[Tensor] = []
    watch = Callback(1, lambda t: seen.append(weights(t.method)["color"]))
    trainer = start(make=lambda: Faulty(bad, only_gradient), steps=40, callbacks=[watch])
    trainer.train()
    assert trainer.state.skipped == len(bad)
    for step in range(1, 40):
        assert torch.equal(seen[step], seen[step - 1]) == (step in bad)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["train"]["skipped_steps"] == len(bad)


def test_a_training_that_only_skips_gives_up(start: Callable[..., Trainer]) -> None:
    trainer = start(make=lambda: Faulty(range(5, 1000), False), steps=100, log=LogConfig(save_every=3))
    with pytest.raises(RunError, match=f"fault was not finite {MAX_SKIPPED_IN_A_ROW} times in a row") as failure:
        trainer.train()
    assert "\n" not in str(failure.value)
    assert trainer.state.skipped == MAX_SKIPPED_IN_A_ROW
    found = load_checkpoint(trainer.folder / "checkpoints")
    assert found is not None and found[0].step == 24 and bool(torch.isfinite(found[1]["model.color"]).all())


@dataclass
class Clock:
    """A clock that ticks a hundredth of a second whenever it is read."""

    now: float = 0.0

    def perf_counter(self) -> float:
        self.now += 0.01
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    yield clock


def test_the_budget_of_seconds_ends_the_run_and_callbacks_cost_nothing(start: Callable[..., Trainer], clock: Clock) -> None:
    calls: list[int] = []

    def slow(trainer: Trainer) -> None:
        calls.append(trainer.state.step)
        clock.now += 1000

    optim = OptimConfig(lr=1.0, schedule="exponential")
    log = LogConfig(image_every=0, save_every=0)
    trainer = start(make=Flat, steps=None, seconds=0.995, callbacks=[Callback(30, slow), Callback(0, slow)], optim=optim, log=log)
    trainer.train()
    assert calls == [30, 60, 90]
    assert trainer.state.step == 100 and trainer.state.seconds == pytest.approx(1.0)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 ** (0.99 / 0.995))


def test_whichever_budget_is_spent_first_ends_the_run(start: Callable[..., Trainer], clock: Clock) -> None:
    for name, steps, seconds in (("steps", 20, 100.0), ("seconds", 1000, 0.195)):
        trainer = start(name, make=Flat, steps=steps, seconds=seconds)
        trainer.train()
        assert trainer.state.step == 20


def test_saving_counts_as_training(start: Callable[..., Trainer], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    real = save_checkpoint

    def slow_save(*arguments: Any) -> Path:
        clock.now += 5
        return real(*arguments)

    monkeypatch.setattr(trainer_module, "save_checkpoint", slow_save)
    trainer = start(make=Flat, steps=10, log=LogConfig(save_every=4, image_every=0))
    trainer.train()
    assert trainer.state.seconds == pytest.approx(10.12, abs=0.05)


def test_checkpoints_come_by_the_clock_too(start: Callable[..., Trainer], clock: Clock) -> None:
    saved: list[list[str]] = []
    watch = Callback(1, lambda t: saved.append([p.stem for p in checkpoints(t.folder / "checkpoints")]))
    start(make=Flat, steps=30, log=LogConfig(save_every=0, save_seconds=0.1, image_every=0), callbacks=[watch]).train()
    assert saved[5] == [] and saved[-1] and int(saved[-1][0].removeprefix("step_")) >= 20
    trainer = start("never", make=Flat, steps=30, log=LogConfig(save_every=0, save_seconds=0.0, image_every=0), callbacks=[watch])
    saved.clear()
    trainer.train()
    assert saved[-1] == [] and len(checkpoints(trainer.folder / "checkpoints")) == 1


def test_metrics_tell_the_training_and_keep_the_rest(start: Callable[..., Trainer], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text(json.dumps({"test": {"psnr": 31.5}, "train": {"steps": 1, "stale": True}}))
    trainer = start(steps=5, seed=8)
    trainer.train()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test"] == {"psnr": 31.5}
    train = metrics["train"]
    rate = 5 * SMALL.rays / train["seconds"]
    assert train.pop("rays_per_second") == pytest.approx(rate, rel=0.02)
    assert train.pop("samples_per_second") == pytest.approx(24 * rate, rel=0.02)
    assert train.pop("seconds") > 0 and train.pop("peak_memory_mb") > 10
    assert train.pop("training_psnr") == trainer.state.psnr and trainer.state.psnr is not None and trainer.state.psnr > 5
    threads = torch.get_num_threads()
    assert train == {"steps": 5, "rays": 5 * SMALL.rays, "threads": threads, "device": "cpu", "seed": 8, "restarts": 0, "skipped_steps": 0}


def test_a_held_out_view_is_evaluated_on_some_of_its_own_pixels(start: Callable[..., Trainer]) -> None:
    trainer = start(steps=10, log=LogConfig(image_every=10, image_pixels=30))
    trainer.train()
    scene = trainer.scene
    view = (scene.splits["val"] or scene.splits["test"])[0]
    whole, truth = render_view(trainer.method, scene, scene.cameras, view, 999).rgb, scene.image(view, scene.backdrop)
    every = math.ceil((truth.shape[0] * truth.shape[1] / 30) ** 0.5)
    assert every > 1
    some = slice(every // 2, None, every)
    assert trainer.state.holdout_psnr == pytest.approx(psnr(whole[some, some], truth[some, some]), abs=1e-4)


def test_tensorboard_holds_what_is_promised(start: Callable[..., Trainer], tmp_path: Path) -> None:
    start(steps=20, log=LogConfig(print_every=5, image_every=10)).train()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    for name in ("psnr_fine", "psnr_coarse", "lr", "opacity", "rays_per_second", "loss/rgb", "loss/rgb_coarse", "skipped_steps"):
        assert [e.step for e in events.Scalars(name)] == [1, 5, 10, 15, 20], name
    assert [e.step for e in events.Scalars("psnr_holdout")] == [10, 20]
    assert all(e.value == pytest.approx(5e-3) for e in events.Scalars("lr"))
    assert all(0 <= e.value <= 1 for e in events.Scalars("opacity"))
    fine, loss = (events.Scalars(name)[-1].value for name in ("psnr_fine", "loss/rgb"))
    assert fine == pytest.approx(-10 * math.log10(loss), abs=1e-3)
    images, histograms = events.Tags()["images"], events.Tags()["histograms"]
    assert {"holdout/rgb", "holdout/truth", "holdout/disparity", "holdout/opacity"} == set(images)
    assert [e.step for e in events.Images("holdout/rgb")] == [10, 20]
    assert events.Images("holdout/rgb")[0].encoded_image_string.startswith(b"\x89PNG")
    assert {"coarse/network/trunk/0/weight", "fine/network/rgb/bias"} <= set(histograms)


def test_bf16_trains_and_stays_near_float32(start: Callable[..., Trainer]) -> None:
    ends = {}
    for precision in ("float32", "bf16"):
        trainer = start(precision, steps=60, precision=precision)
        before = error_of(trainer)
        trainer.train()
        assert error_of(trainer) < 0.8 * before
        assert all(t.dtype == torch.float32 for t in trainer.method.parameters())
        ends[precision] = render_view(trainer.method, trainer.scene, trainer.scene.cameras, 0, 4096).rgb
    difference = (ends["bf16"] - ends["float32"]).abs()
    assert float(difference.max()) > 0 and float(difference.mean()) < 0.02


def test_what_cannot_run_here_is_refused(start: Callable[..., Trainer]) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        start(precision="fp16", device="cpu")
    with pytest.raises(ConfigError, match="budget"):
        start(steps=None, seconds=None)
    with pytest.raises(ConfigError, match="device 'gpu' can't be used"):
        start(device="gpu")


COLORS = torch.rand(64, 3, generator=torch.Generator().manual_seed(0))


def seen(opacity: float, rgb: Tensor, coarse_opacity: float | None = None) -> Rendering:
    rendering = Rendering(rgb, opacity=torch.full((64,), opacity))
    if coarse_opacity is not None:
        rendering.extras = {"rgb_coarse": rgb, "opacity_coarse": torch.full((64,), coarse_opacity)}
    return rendering


FLAT = COLORS.mean(0).expand(64, 3)


@pytest.mark.parametrize(
    ("rendering", "expected"),
    [
        (seen(0.0, torch.ones(64, 3)), "the field has become transparent everywhere"),
        (seen(1.0, FLAT), "the field has become one opaque colour"),
        (seen(0.5, FLAT, 0.0), "the coarse field has become transparent everywhere"),
        (seen(0.0, COLORS), None),
        (seen(0.5, FLAT), None),
        (seen(1.0, COLORS.flip(0)), None),
    ],
)
def test_a_field_is_dead_after_eight_bad_looks(rendering: Rendering, expected: str | None) -> None:
    watch = CollapseWatch()
    assert [watch.check(rendering, COLORS) for _ in range(9)] == [None] * 7 + [expected] * 2


def test_one_colour_at_any_opacity_is_dead_after_24_bad_looks() -> None:
    """An even fog, as over a white that the background never has, still has gradients: it is given three times as long."""
    watch, what = CollapseWatch(), "the field has become one colour (opacity 0.50)"
    assert [watch.check(seen(0.5, FLAT), COLORS) for _ in range(25)] == [None] * 23 + [what] * 2
    watch = CollapseWatch()
    half = 0.5 * (COLORS + FLAT)
    assert not any(watch.check(seen(0.5, picture), COLORS) for picture in [FLAT] * 23 + [half] + [FLAT] * 23)


def test_one_good_look_begins_the_count_again() -> None:
    watch = CollapseWatch()
    dead, alive = seen(0.0, torch.ones(64, 3)), seen(0.3, COLORS)
    verdicts = [watch.check(rendering, COLORS) for rendering in [dead] * 7 + [alive] + [dead] * 8]
    assert verdicts == [None] * 15 + ["the field has become transparent everywhere"]


def test_what_can_not_tell_is_never_dead() -> None:
    watch = CollapseWatch()
    assert not any(watch.check(seen(0.0, torch.ones(64, 3)), torch.ones(64, 3)) for _ in range(20))
    assert not any(watch.check(Rendering(FLAT), COLORS) for _ in range(20))


DEAD = replace(SMALL, density_activation="relu", density_bias=-100.0)


def first(dead: Callable[[], Method], alive: Callable[[], Method]) -> Callable[[], Method]:
    """A factory whose first method is dead, and all later ones alive."""
    makers = itertools.chain([dead], itertools.repeat(alive))
    return lambda: next(makers)()


def test_a_dead_field_starts_again_from_another_seed(
    start: Callable[..., Trainer], scene: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    at: list[tuple[int, int]] = []
    watch = Callback(1, lambda t: at.append((t.state.restarts, t.state.step)))
    make = first(lambda: Nerf(DEAD, scene), lambda: Nerf(SMALL, scene))
    trainer = start(make=make, steps=250, seed=5, log=LogConfig(save_every=90, image_every=95), callbacks=[watch])
    trainer.quiet = False
    before = error_of(trainer)
    trainer.train()
    assert at == [(0, step) for step in range(1, 200)] + [(1, step) for step in range(1, 251)]
    said = capfd.readouterr().err
    assert "step 200: the field has become transparent everywhere" in said and "restart 1" in said
    assert trainer.state.restarts == 1 and trainer.state.seed != 5 and trainer.state.step == 250
    assert error_of(trainer) < 0.5 * before
    metrics = json.loads((trainer.folder / "metrics.json").read_text())["train"]
    assert metrics["restarts"] == 1 and metrics["seed"] == trainer.state.seed
    again = start(steps=250, seed=5)
    assert again.state == trainer.state and same(weights(again.method), weights(trainer.method))


class ByHeart(Flat):
    """Training pixels all but exactly, and one colour for every other ray, as where a wall stands right before each camera."""

    def render(self, batch: Batch) -> Rendering:
        flat = super().render(batch)
        return flat if batch.target is None else replace(flat, rgb=batch.target + 0.01 * flat.rgb)


def test_a_scene_learned_by_heart_starts_again_over_another_background(
    start: Callable[..., Trainer], scene: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where white was no more than a guess; the run folder keeps the new one, and the evaluation takes it."""
    trainer = start(make=first(ByHeart, Flat), steps=120, log=LogConfig(image_every=25))
    trainer.quiet, trainer.scene = False, replace(scene, background="white", other_background=(0.25, 0.5, 1.0))
    trainer.scene.save(trainer.folder)
    trainer.train()
    said = capfd.readouterr().err
    assert "step 50: training pixels are learned, but a held-out view is no better than one colour" in said
    assert "another seed over #4080ff (restart 1)" in said and trainer.state.restarts == 1 and trainer.state.by_heart == 0
    assert trainer.scene.background == (0.25, 0.5, 1.0) and Scene.load(trainer.folder).background == (0.25, 0.5, 1.0)


def test_a_scene_learned_by_heart_over_a_given_background_is_said_once(
    start: Callable[..., Trainer], capfd: pytest.CaptureFixture[str]
) -> None:
    trainer = start(make=ByHeart, steps=120, log=LogConfig(image_every=25))
    trainer.quiet = False
    trainer.train()
    assert capfd.readouterr().err.count("or the poses are wrong; try another --scene.background or a larger --scene.near.") == 1
    assert trainer.state.restarts == 0 and trainer.state.by_heart == 4


def dying() -> Flat:
    return Flat(0.0)


def test_nothing_of_the_dead_field_is_resumed(start: Callable[..., Trainer]) -> None:
    def stop(trainer: Trainer) -> None:
        if trainer.state.restarts:
            trainer.interrupted = 15

    start(make=first(dying, Flat), steps=300, log=LogConfig(save_every=90), callbacks=[Callback(30, stop)]).train()
    found = load_checkpoint(start(make=Flat).folder / "checkpoints")
    assert found is not None and (found[0].step, found[0].restarts) == (30, 1)


def test_a_resumed_run_restarts_where_the_whole_one_does(start: Callable[..., Trainer]) -> None:
    whole = start("whole", make=first(dying, Flat), steps=220)
    whole.train()

    def stop(trainer: Trainer) -> None:
        trainer.interrupted = 15

    start("parts", make=first(dying, Flat), steps=220, callbacks=[Callback(110, stop)]).train()
    parts = start("parts", make=first(dying, Flat), steps=220)
    assert parts.state.step == 110
    parts.train()
    assert whole.state.restarts == parts.state.restarts == 1
    assert same(weights(whole.method), weights(parts.method))


@pytest.mark.parametrize(("opacity", "what"), [(0.0, "transparent everywhere"), (1.0, "one opaque colour")])
def test_after_enough_seeds_a_dead_method_is_an_error(start: Callable[..., Trainer], opacity: float, what: str) -> None:
    trainer = start(make=lambda: Flat(opacity), steps=5000, log=LogConfig(image_every=0))
    with pytest.raises(RunError, match=f"{what}, from each of {MAX_RESTARTS + 1} seeds") as failure:
        trainer.train()
    assert "\n" not in str(failure.value)
    assert trainer.state.restarts == MAX_RESTARTS + 1


@pytest.mark.parametrize("seed", [0, 1])
def test_a_living_field_is_left_alone(start: Callable[..., Trainer], seed: int) -> None:
    trainer = start(steps=250, seed=seed, log=LogConfig(image_every=0))
    trainer.train()
    assert trainer.state.restarts == 0 and trainer.state.collapse_history.keys() == {"field", "coarse field"}
