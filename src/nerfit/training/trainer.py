"""The loop: one for every method."""

import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor

from nerfit.camera_search.adjust import adjust
from nerfit.camera_search.history import PoseSearch
from nerfit.camera_search.relocate import relocate
from nerfit.errors import ConfigError, RunError
from nerfit.files import atomic_write
from nerfit.kernels.dispatch import warm_up
from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.methods.views import render_view, smaller_chunk
from nerfit.metrics.psnr_ssim import psnr
from nerfit.rendering.volume import Rendering, join
from nerfit.sampling.shuffle import mix
from nerfit.scenes.scene import Scene
from nerfit.training import collapse, distributed
from nerfit.training.checkpoints import LoopState, discard_checkpoints, load_checkpoint, restore, save_checkpoint
from nerfit.training.devices import (
    automatic_chunk,
    give_back_memory,
    keep_freed_memory,
    peak_memory,
    pick_device,
    pick_precision,
    set_threads,
)
from nerfit.training.interrupts import Heard, stop_on_signals
from nerfit.training.logs import LogConfig, ProgressLine, RunLog, import_wandb
from nerfit.training.optim import AVERAGE_EVERY, OptimConfig, average, learning_rate, make_optimizer, set_learning_rate
from nerfit.training.perceptual import Perceptual, PerceptualConfig

MAX_RESTARTS = 5
MAX_SKIPPED_IN_A_ROW = 20
LONGEST_STEP = 300.0
"""Seconds above which a step that takes a hundred times as long as any before is taken for the sleep of the machine."""


@dataclass(kw_only=True)
class LoopConfig:
    """The part of a run's configuration that the loop reads."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    """How parameters move."""
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    """A loss on whole views."""
    log: LogConfig = field(default_factory=LogConfig)
    """How often to look, write and save."""
    steps: int | None = None
    """Stop after so many steps; without steps and seconds the method's own number."""
    epochs: int | None = None
    """Stop after so many epochs: steps per training view, as NeRF-- counts them."""
    seconds: float | None = None
    """Stop after so many seconds of training; schedules follow whichever budget ends first."""
    seed: int = 0
    """Seed of everything random."""
    threads: int | None = None
    """CPU threads; none = what the environment gives."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto = a GPU if there is one."""
    precision: Literal["float32", "bf16", "fp16", "auto"] = "float32"
    """What the networks compute in; everything along rays stays float32. auto = bf16 where the hardware is fast at it."""
    chunk: int | None = None
    """Rays processed together; none = from free memory."""
    devices: int = 1
    """Devices that share each batch, a process each on this machine (with torchrun: on all); the batch of a new run grows with them."""

    def in_steps(self, views: int) -> Self:
        """With epochs of so many training views as steps, the fewer of both."""
        if self.epochs is None:
            return self
        return replace(self, steps=min(self.epochs * views, self.steps or self.epochs * views))


@dataclass
class Callback:
    """Something from a higher room that happens every so many steps, outside the training clock."""

    every: int
    run: Callable[["Trainer"], None]
    shared: bool = False
    """Whether all processes of a training take part."""


Result = TypeVar("Result")
Done = tuple[Rendering, Batch, dict[str, Tensor]]
"""What a step has seen, of what, and its losses."""


class Trainer:
    """Trains ``make_method(seed)`` on a scene within ``settings.steps`` and/or ``settings.seconds``, into a run folder.

    The run can be killed at any moment: randomness is a function of (seed, step), so a resumed run on a CPU gives the
    same bits as an uninterrupted one. Processes of `distributed` train together, and the first of them writes.
    """

    def __init__(
        self,
        make_method: Callable[[], Method],
        scene: Scene,
        settings: LoopConfig,
        folder: Path,
        callbacks: list[Callback] | None = None,
        quiet: bool = False,
        lpips_weights: Path | None = None,
    ) -> None:
        settings = settings.in_steps(len(scene.splits["train"]))
        if settings.steps is None and settings.seconds is None:
            raise ConfigError("a run needs a budget: --steps, --epochs or --seconds.")
        if settings.log.wandb:
            import_wandb()
        self.scene, self.settings, self.folder = scene, settings, folder
        self.callbacks, self.quiet = callbacks or [], quiet
        keep_freed_memory()
        self.threads = set_threads(settings.threads)
        self.device = distributed.own_device(pick_device(settings.device))
        self.share = distributed.share()
        self.alone, self.main = self.share.world_size == 1, self.share.rank == 0
        whole = settings.perceptual
        self.perceptual = None if whole.net == "none" else Perceptual(whole, scene, self.device, lpips_weights)
        self._make_method = make_method
        self.state = LoopState(seed=settings.seed)
        self.interrupted: int | None = None
        self._heard = self if self.alone else Heard()
        self.log: RunLog | None = None
        self.latest: dict[str, float] = {}
        """The numbers that were logged last."""
        self._psnr = math.nan
        self._skipped_in_a_row = 0
        self._build()
        self.state.chunk = settings.chunk or distributed.broadcast_result(lambda: automatic_chunk(self.method, self.device))
        self._resume()
        self.search = None if self.method.cameras is None or not self.main else PoseSearch.load(folder, self.state.step)

    def _build(self) -> None:
        """A fresh method and optimiser from the state's seed."""
        torch.manual_seed(mix(self.state.seed, 0))
        self.method = self._make_method().to(self.device)
        self.method.precision = pick_precision(self.settings.precision, self.device)
        self.method.seed, self.method.share = self.state.seed, self.share
        distributed.broadcast(self.method.state_dict().values())
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.settings.precision == "fp16")
        self.optimizer = make_optimizer(self.settings.optim, self.method, self.scaler.is_enabled())

    def _resume(self) -> None:
        found = distributed.broadcast_result(lambda: load_checkpoint(self.folder / "checkpoints"))
        if found is None:
            return
        state, tensors = found[0], {name: t.to(self.device) for name, t in found[1].items()}
        if state.seed != self.state.seed:
            self.state.seed = state.seed
            self._build()
        self.state = state if self.settings.chunk is None else replace(state, chunk=self.settings.chunk)
        restore(tensors, self.method, self.optimizer)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": state.loss_scale})

    @property
    def progress(self) -> float:
        """Share of the budget spent, 0 to 1: whichever of steps and seconds is nearer its end."""
        s = self.settings
        steps = self.state.step / s.steps if s.steps else 0.0
        seconds = self.state.seconds / s.seconds if s.seconds else 0.0
        return min(1.0, max(steps, seconds))

    @property
    def stage(self) -> float:
        """What schedules follow: the progress, or where cameras are refined that of the search and then that of the refinement."""
        share = 0.0 if self.method.cameras is None else self.method.cameras.config.refine_after
        if share == 0:
            return self.progress
        return max(self.progress - share, 0.0) / (1 - share) if self.state.began else min(self.progress / share, 1.0)

    def _refine(self) -> None:
        """A new field, with the cameras found so far."""
        assert self.method.cameras is not None
        cameras = self.method.cameras.state_dict()
        self._build()
        self.method.cameras.load_state_dict(cameras)
        self.state.began = self.state.step

    def train(self) -> None:
        """Train until the budget is spent or SIGINT/SIGTERM arrives; either way the last state is saved."""
        with contextlib.ExitStack() as entered:
            with distributed.leaders_first():
                if not self.alone:
                    warm_up(self.device)
                entered.enter_context(self.method.session())
            entered.enter_context(stop_on_signals(self._heard))
            if self.main:
                self.log = entered.enter_context(RunLog(self.folder, self.settings, self.state.step))
            bar = entered.enter_context(ProgressLine(self.quiet))
            self._clock = time.perf_counter()
            self._saved, self._longest = self.state.seconds, 0.0
            self._rate_from = (self.state.seconds, 0)
            while self.progress < 1 and self.interrupted is None:
                rendering, batch, losses = self.step()
                self._average()
                self._count(batch.whole)
                self._after_step(rendering, batch, losses, bar)
            self.method.progress = self.stage
            if self.state.step:
                if self.interrupted is None:
                    average(self.optimizer, finish=True)
                self._save()
            if self.main:
                self._write_metrics()

    def _average(self) -> None:
        """Take the weights into their mean from time to time, late in the budget."""
        if self.stage >= self.settings.optim.average_from and self.state.step % AVERAGE_EVERY == 0:
            average(self.optimizer)

    def _count(self, rays: int) -> None:
        """Advance step, clock and rate by a step just done."""
        self.state.step += 1
        self.state.rays += rays
        self._spend()
        self._rate_from = (self._rate_from[0], self._rate_from[1] + rays)

    def _spend(self) -> None:
        """Add the time since the clock was read to the training's; processes that share one agree on that in the middle of a step."""
        if self.alone:
            self.state.seconds += self._awake(self._lap())

    def _lap(self) -> float:
        """Seconds since the clock was last read."""
        if self.device.type == "cuda" and self.state.step % 100 == 0:
            torch.cuda.synchronize()
        now = time.perf_counter()
        lap, self._clock = now - self._clock, now
        return lap

    def _awake(self, seconds: float) -> float:
        """What counts of the seconds since the clock was read: all, unless the machine slept or the process was held."""
        if self._longest > 0 and seconds > max(LONGEST_STEP, 100 * self._longest):
            warnings.warn(f"step {self.state.step} took {seconds:.0f} s, as if the machine had slept: they are not counted.", stacklevel=2)
            return self._longest
        self._longest = max(self._longest, seconds)
        return seconds

    def step(self) -> Done:
        """One optimiser step; where a GPU is out of memory all halve their chunk and repeat it."""
        cameras = self.method.cameras
        if cameras is not None and not self.state.began and 0 < cameras.config.refine_after <= self.progress:
            self._refine()
        step = self.state.step - self.state.began
        self.method.progress = self.stage
        set_learning_rate(self.optimizer, learning_rate(self.settings.optim, step, self.stage), self.stage)
        while True:
            generator = torch.Generator(self.device).manual_seed(mix(self.state.seed, self.state.step + 1))
            done: Done | None = None
            try:
                self.optimizer.zero_grad(set_to_none=True)
                whole: dict[str, Tensor] = {}
                if self.perceptual is not None and self.perceptual.due(step, self.stage):
                    whole = {"perceptual": self._look_at_view(self.perceptual, step)}
                self.method.before_step(step)
                batch = self.method.next_batch(self.scene, step, generator)
                if not self.alone:
                    batch = self._part(batch)
                rendering, losses = self._backward(batch, step)
                self._psnr = math.nan if batch.target is None else psnr(rendering.rgb, batch.target)
                done = rendering, batch, losses | whole
            except torch.cuda.OutOfMemoryError:
                pass
            done = self._agree(done)
            if done is not None:
                break
            self.state.chunk = smaller_chunk(self.state.chunk)
        rendering, batch, losses = done
        self._update(losses)
        self.method.after_step(step)
        return rendering, batch, losses

    def _part(self, batch: Batch) -> Batch:
        """This process's part of a batch."""
        if batch.whole < self.share.world_size:
            raise RunError(f"a batch of {batch.whole} rays can't be shared by {self.share.world_size} devices: take fewer.")
        return batch if batch.part else batch.shared(self.share)

    def _look_at_view(self, perceptual: Perceptual, step: int) -> Tensor:
        """Back-propagate the loss of a view, which the first process does for all."""
        if not self.main:
            return torch.zeros((), device=self.device)
        return perceptual.backward(self.method, self.state.seed, step, self.state.chunk, self.scaler.scale)

    def _agree(self, done: Done | None) -> Done | None:
        """What a step has come to, if it has on all devices: the losses, counts and gradients of the whole batch, and one clock."""
        if self.alone:
            return done
        heard = self._heard.interrupted or 0
        rows = distributed.all_gather([done is None, self.state.seconds + self._awake(self._lap()), heard])
        failed, seconds, signals = zip(*rows, strict=True)
        self.state.seconds, self.interrupted = seconds[0], int(max(signals)) or None
        if done is None or any(failed):
            return None
        rendering, batch, losses = done
        own = [len(batch), len(batch) * 10 ** (-self._psnr / 10), *self.method.counts, *map(float, losses.values())]
        rays, error, *sums = map(sum, zip(*distributed.all_gather(own), strict=True))
        self._psnr = -10 * math.log10(error / rays) if error else math.inf
        counts = len(self.method.counts)
        self.method.counts = tuple(map(int, sums[:counts]))
        distributed.all_reduce(p for group in self.optimizer.param_groups for p in group["params"])
        return rendering, batch, {name: torch.tensor(total) for name, total in zip(losses, sums[counts:], strict=True)}

    def _backward(self, batch: Batch, step: int) -> tuple[Rendering, dict[str, Tensor]]:
        """Add the gradients of the mean loss over the batch, chunk by chunk; returns what all of it saw, and the losses."""
        totals: dict[str, Tensor] = {}
        seen: list[Rendering] = []
        for chunk in batch.chunks(self.state.chunk):
            rendering, losses = self.method.training_losses(chunk, step)
            losses = {name: value * (len(chunk) / batch.whole) for name, value in losses.items()}
            # rays of learned cameras are a graph that the chunks share
            again = batch.rays is not None and batch.rays.origins.requires_grad
            self.scaler.scale(torch.stack(list(losses.values())).sum()).backward(retain_graph=again)
            totals = {name: value.detach() + totals.get(name, 0.0) for name, value in losses.items()}
            seen.append(join([rendering]))
        return join(seen), totals

    def _update(self, losses: dict[str, Tensor]) -> None:
        """Clip and apply the gradients, unless something is not finite."""
        optim = self.settings.optim
        self.scaler.unscale_(self.optimizer)
        clips = optim.clip_value is not None or optim.clip_norm is not None
        # a table's gradient comes through dense weights that would not be finite either: without clipping it need not be read
        groups = [group for group in self.optimizer.param_groups if clips or not group.get("sparse")]
        parameters = [p for group in groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        finite = bool(torch.isfinite(norm + sum(losses.values())))
        if finite:
            self._skipped_in_a_row = 0
            if optim.clip_value is not None:
                torch.nn.utils.clip_grad_value_(parameters, optim.clip_value)
            if optim.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, optim.clip_norm)
            self.scaler.step(self.optimizer)
        else:
            self.state.skipped += 1
            self._skipped_in_a_row += 1
        self.scaler.update()
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            bad = [name for name, value in losses.items() if not math.isfinite(float(value))] or ["the gradient"]
            raise RunError(
                f"training went wrong at step {self.state.step}: {', '.join(bad)} was not finite {MAX_SKIPPED_IN_A_ROW} times in a row; "
                "try a lower --optim.lr or --optim.clip-norm 1."
            )

    def _after_step(self, rendering: Rendering, batch: Batch, losses: dict[str, Tensor], bar: ProgressLine) -> None:
        """Logs, checkpoints, callbacks and the look for collapse that are due; what is not training stops the clock."""
        config, step = self.settings.log, self.state.step

        def due(every: int) -> bool:
            return every > 0 and step % every == 0

        if math.isfinite(self._psnr):
            before = self.state.psnr
            self.state.psnr = self._psnr if before is None else before + (self._psnr - before) / min(step, 50)
        if self.search is not None and self.method.cameras is not None and self.state.psnr is not None:
            self.search.record(self.method.cameras, self.scene, step, self.progress, self.state.psnr)
        watch_from = self.settings.optim.warmup_steps
        if due(collapse.EVERY) and watch_from < step <= watch_from + collapse.LAST and (target := batch.target) is not None:
            what = distributed.broadcast_result(lambda: collapse.CollapseWatch(self.state.looks).look(rendering, target))
            if what is not None:
                self._restart(what, bar)
                return
        self._adjust(bar)
        if self.method.cameras is not None and due(self.method.cameras.config.look_again) and self.method.cameras.moves(self.stage):
            found = self._moved(lambda: relocate(self.method, self.scene, step))
            if found:
                bar.say(f"step {step}: {found} lost camera{'s' * (found > 1)} found elsewhere.")
        if due(config.print_every) or step == 1:
            values = self._scalars(rendering, batch, losses)
            bar.show(self.progress, self._line(values))
        if due(config.image_every) and self.log is not None:
            self._spend()
            self._look_at_holdout(self.log)  # before the state is saved, which keeps what was seen
            self.log.histograms(step, self.method)
            self._lap()
        if due(config.save_every) or 0 < config.save_seconds < self.state.seconds - self._saved:
            self._save()
            self._spend()
        for callback in self.callbacks:
            if due(callback.every) and (callback.shared or self.main):
                callback.run(self)
                self._lap()

    def _moved(self, move: Callable[[], Result]) -> Result:
        """What the first process says of its cameras after it moved them; they are all processes' then."""
        said = distributed.broadcast_result(move)
        assert self.method.cameras is not None
        distributed.broadcast(self.method.cameras.state_dict().values())
        return said

    def _adjust(self, bar: ProgressLine) -> None:
        """Adjust all cameras to each other where the next share of the budget is reached; after the first time the field begins anew."""
        cameras = self.method.cameras
        if (
            cameras is None
            or not cameras.adjustable
            or not any(self.progress >= share for share in cameras.config.adjust_at[self.state.adjusted :])
        ):
            return
        self.state.adjusted += 1
        first = self.state.adjusted == 1
        likeness = self._moved(lambda: adjust(self.method, self.scene, self.state.step, first))
        if first and likeness > 0:
            self._refine()
        if first and self.search is not None:
            self.search.judge(likeness)
        bar.say(f"step {self.state.step}: all cameras adjusted; their pictures agree to {likeness:.0%}.")

    def _restart(self, what: str, bar: ProgressLine) -> None:
        """Begin again from another seed."""
        self.state.restarts += 1
        if self.state.restarts > MAX_RESTARTS:
            raise RunError(f"{what}, from each of {MAX_RESTARTS + 1} seeds: try --model.density-activation softplus or a lower --optim.lr.")
        bar.say(f"step {self.state.step}: {what}; starting again from another seed (restart {self.state.restarts}).")
        self.state.seed = mix(self.settings.seed, self.state.restarts, 0xC0) >> 32
        self.state.step = self.state.began = self.state.adjusted = 0
        self.state.looks, self.state.holdout_psnr, self.state.psnr = {}, None, None
        if self.main:
            discard_checkpoints(self.folder / "checkpoints")
        self._build()
        self.search = None if self.search is None else PoseSearch()

    def _scalars(self, rendering: Rendering, batch: Batch, losses: dict[str, Tensor]) -> dict[str, float]:
        seconds, rays = self._rate_from
        rate = rays / max(self.state.seconds - seconds, 1e-9)
        self._rate_from = (self.state.seconds, 0)
        values = {f"loss/{name}": float(value) for name, value in losses.items()}
        values |= {
            "lr": self.optimizer.param_groups[0]["lr"],
            "rays_per_second": rate,
            "skipped_steps": float(self.state.skipped),
        }
        if batch.target is not None:
            values["psnr_fine"] = self._psnr
        if rendering.opacity is not None:
            values["opacity"] = float(rendering.opacity.detach().mean())
        values |= self.method.scalars(rendering, batch)
        if self.method.cameras is not None:
            values |= self.method.cameras.scalars()
        if not self.alone:
            values["sent_megabytes"] = distributed.sent / 1e6
        self.latest = values
        if self.log is not None:
            self.log.scalars(self.state.step, values)
        return values

    def _line(self, values: dict[str, float]) -> str:
        left = self.state.seconds * (1 - self.progress) / max(self.progress, 1e-9)
        psnr_now = f"  psnr {values['psnr_fine']:.2f}" if "psnr_fine" in values else ""
        held = "" if self.state.holdout_psnr is None else f" (held out {self.state.holdout_psnr:.2f})"
        eta = f"{left / 3600:.1f} h" if left > 7200 else f"{left / 60:.0f} min" if left > 120 else f"{left:.0f} s"
        skipped = f"  {self.state.skipped} steps skipped" if self.state.skipped else ""
        return f"step {self.state.step}{psnr_now}{held} dB  {values['rays_per_second']:,.0f} rays/s  {eta} left{skipped}"

    def _look_at_holdout(self, log: RunLog) -> None:
        """Picture and PSNR of one held-out view, of as many of its pixels as cost little."""
        view = (self.scene.splits.get("val") or self.scene.splits.get("test") or self.scene.splits["train"])[0]
        scene = self.method.place(self.scene)
        camera = scene.cameras[view]
        width, height = int(camera.width[0]), int(camera.height[0])
        every = min(math.ceil((width * height / self.settings.log.image_pixels) ** 0.5), width, height)
        rendering = render_view(self.method, scene, camera, 0, self.state.chunk, every=every)
        middles = (slice(every // 2, None, every),) * 2
        truth, known = self.scene.image(view, self.scene.backdrop)[middles], self.scene.visible(view)[middles]
        self.state.holdout_psnr = psnr(rendering.rgb[known], truth[known])
        images = {"holdout/rgb": rendering.rgb, "holdout/truth": truth}
        if rendering.disparity is not None and rendering.opacity is not None:
            images["holdout/disparity"] = (rendering.disparity / rendering.disparity.max().clamp(min=1e-9))[..., None]
            images["holdout/opacity"] = rendering.opacity[..., None]
        log.images(self.state.step, images)
        log.scalars(self.state.step, {"psnr_holdout": self.state.holdout_psnr})

    def _save(self) -> None:
        """Write a checkpoint; RunError instead of one that nothing could go on from."""
        self._saved = self.state.seconds
        if not all(bool(p.isfinite().all()) for p in self.method.parameters()):
            raise RunError(
                f"after step {self.state.step} some weights are not finite, so they are not saved: "
                "go on from the checkpoint before with --resume and a lower --optim.lr."
            )
        if not self.main:
            return
        self.state.loss_scale = self.scaler.get_scale()
        if self.search is not None:
            self.search.save(self.folder)
        save_checkpoint(self.folder / "checkpoints", self.state, self.method, self.optimizer)
        give_back_memory()

    def _write_metrics(self) -> None:
        """The "train" part of metrics.json; the other parts stay."""
        rays = self.state.rays / max(self.state.seconds, 1e-9)
        train = {
            "steps": self.state.step,
            "rays": self.state.rays,
            "seconds": round(self.state.seconds, 3),
            "rays_per_second": round(rays, 1),
            "samples_per_second": round(rays * self.method.samples_per_ray(), 1),
            "peak_memory_mb": round(peak_memory(self.device), 1),
            "threads": self.threads,
            "device": str(self.device),
            "training_psnr": self.state.psnr,
            "seed": self.state.seed,
            "restarts": self.state.restarts,
            "skipped_steps": self.state.skipped,
        }
        update_metrics(self.folder, "train", train)


def update_metrics(folder: Path, part: str, values: dict[str, Any]) -> None:
    """Replace one part of a run's metrics.json and keep the others, also those that another process writes at the same time."""
    path = folder / "metrics.json"
    with atomic_write(path) as temporary:
        try:
            metrics = json.loads(path.read_text())
        except (OSError, ValueError):
            metrics = {}
        temporary.write_text(json.dumps(metrics | {part: values}, indent=1) + "\n")
