"""The training loop: one for every method."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from nerfit.camera_search.search import camera_search
from nerfit.errors import ConfigError, RunError
from nerfit.kernels.warm_up import warm_up
from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.methods.views import smaller_chunk
from nerfit.metrics.psnr_ssim import psnr
from nerfit.sampling.shuffle import mix
from nerfit.scenes.background import keep_background
from nerfit.scenes.scene import Scene
from nerfit.training import collapse, distributed
from nerfit.training.checkpoints import LoopState, discard_checkpoints, load_checkpoint, restore, save_checkpoint, update_metrics
from nerfit.training.clock import Clock
from nerfit.training.devices import (
    automatic_chunk,
    give_back_memory,
    keep_freed_memory,
    pick_device,
    pick_precision,
    set_threads,
)
from nerfit.training.interrupts import Signal, stop_on_signals
from nerfit.training.logs import LogConfig, ProgressLine, RunLog, import_wandb, progress_text, step_scalars, training_metrics
from nerfit.training.optim import AVERAGE_EVERY, OptimConfig, average, learning_rate, make_optimizer, set_learning_rate
from nerfit.training.perceptual import Perceptual, PerceptualConfig
from nerfit.training.preview import preview
from nerfit.training.step import StepResult, backward, sum_over_processes, update

MAX_RESTARTS = 5
MAX_SKIPPED_IN_A_ROW = 20


@dataclass(kw_only=True)
class LoopConfig:
    """The part of a run's configuration that the training loop reads."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and learning-rate schedule."""
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    """A loss on whole views."""
    log: LogConfig = field(default_factory=LogConfig)
    """How often to log, draw and save."""
    steps: int | None = None
    """Number of training steps; without steps, epochs and seconds the method's own number."""
    epochs: int | None = None
    """Number of epochs; an epoch has one step per training view, as in NeRF--."""
    seconds: float | None = None
    """Seconds of training; with steps too, the budget that ends first counts, also for schedules."""
    seed: int = 0
    """Random seed: the same seed gives the same training."""
    threads: int | None = None
    """Number of CPU threads; none = PyTorch's default."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:1, mps, xpu; auto = a GPU if nerfit's fast kernels run on it, else the CPU."""
    precision: Literal["float32", "bf16", "fp16", "auto"] = "float32"
    """Precision of the networks; everything along rays stays float32. auto = bf16 if the hardware is fast at it."""
    chunk: int | None = None
    """Number of rays processed together; none = chosen from the free memory."""
    devices: int = 1
    """Number of devices that share each batch, one process each (with torchrun: on all machines); the batch grows with it."""

    def in_steps(self, views: int) -> Self:
        """The same budget with its epochs, of ``views`` training views, turned into steps; the smaller of both counts."""
        if self.epochs is None:
            return self
        return replace(self, steps=min(self.epochs * views, self.steps or self.epochs * views))


@dataclass
class Callback:
    """Called every n steps, outside the training clock; 0 = never."""

    every: int
    run: Callable[["Trainer"], None]
    shared: bool = False
    """Whether all processes of a training call it, and not the main process alone."""


class Trainer:
    """Trains a method on a scene within ``settings.steps`` and ``settings.seconds``, into a run folder.

    ``make_method`` returns the untrained method; its random weights come from torch's global generator, which the trainer seeds.
    A run can be killed at any moment: randomness is a function of (seed, step), so a resumed run on a CPU gives the same bits as an
    uninterrupted one. Several processes train together (`distributed`), and the main process writes.
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
        self.device = distributed.own_device(pick_device(settings.device), alike=True)
        self.share = distributed.share()
        self.main = self.share.rank == 0
        whole_views = settings.perceptual
        self.perceptual = None if whole_views.net == "none" else Perceptual(whole_views, scene, self.device, lpips_weights)
        self._make_method = make_method
        self.state = LoopState(seed=settings.seed)
        self.interrupted: int | None = None
        """Number of the signal that ends the training after this step."""
        self._signal = self if self._single else Signal()
        self.log: RunLog | None = None
        self.latest: dict[str, float] = {}
        """The numbers that were logged last."""
        self._skipped_in_a_row = 0
        self._build()
        self.state.chunk = settings.chunk or distributed.broadcast_result(lambda: automatic_chunk(self.method, self.device))
        self._resume()
        self.search = camera_search(self, folder)

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
        """Continue from the newest checkpoint, if there is one."""
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

    def rebuild(self) -> None:
        """Initialise method and optimiser again; schedules that count steps begin at this step."""
        self.state.field_start = self.state.step
        self._build()

    @property
    def _single(self) -> bool:
        """Whether one process trains."""
        return self.share.world_size == 1

    @property
    def progress(self) -> float:
        """Share of the budget spent, 0 to 1: of steps or seconds, whichever is nearer its end."""
        s = self.settings
        steps = self.state.step / s.steps if s.steps else 0.0
        seconds = self.state.seconds / s.seconds if s.seconds else 0.0
        return min(1.0, max(steps, seconds))

    @property
    def schedule_progress(self) -> float:
        """The progress that schedules follow, 0 to 1; a search for cameras may have two stages (`CameraSearch`)."""
        return self.search.schedule_progress(self.progress)

    def train(self) -> None:
        """Train until the budget is spent or SIGINT/SIGTERM arrives; either way the last state is saved."""
        with contextlib.ExitStack() as stack:
            with distributed.leaders_first():
                if not self._single:
                    warm_up(self.device)
                stack.enter_context(self.method.session())
            stack.enter_context(stop_on_signals(self._signal))
            if self.main:
                self.log = stack.enter_context(RunLog(self.folder, self.settings, self.state.step))
            self.bar = stack.enter_context(ProgressLine(self.quiet))
            self.clock, self._saved = Clock(self.device, self.state.seconds), self.state.seconds
            while self.progress < 1 and self.interrupted is None:
                result = self.step()
                self._average_weights()
                self.state.step += 1
                self.state.rays += result.batch.whole
                self._spend()
                self.clock.count(result.batch.whole)
                self._after_step(result)
            self._finish()

    def _finish(self) -> None:
        """Save the last state and the numbers of the training."""
        self.method.progress = self.schedule_progress
        if self.state.step:
            if self.interrupted is None:
                average(self.optimizer, finish=True)
            self._save()
        if self.main:
            update_metrics(self.folder, "train", training_metrics(self.state, self.method, self.device, self.threads))

    def _average_weights(self) -> None:
        """Late in the budget, take the weights into their mean every `AVERAGE_EVERY` steps."""
        if self.schedule_progress >= self.settings.optim.average_from and self.state.step % AVERAGE_EVERY == 0:
            average(self.optimizer)

    def _spend(self) -> None:
        """Add the time since the last reading to the training's; several processes agree on theirs in the middle of a step."""
        if self._single:
            self.state.seconds += self.clock.lap(self.state.step)

    def step(self) -> StepResult:
        """One optimiser step; if a GPU runs out of memory all processes halve their chunk and repeat it."""
        self.search.before_step()
        step = self.state.step - self.state.field_start
        progress = self.method.progress = self.schedule_progress
        set_learning_rate(self.optimizer, learning_rate(self.settings.optim, step, progress), progress)
        while (result := self._agree(self._gradients(step))) is None:
            self.state.chunk = smaller_chunk(self.state.chunk)
        self._update(result.losses)
        self.method.after_step(step)
        return result

    def _gradients(self, step: int) -> StepResult | None:
        """The gradients of this process's part of a step; None if the GPU has too little memory."""
        generator = torch.Generator(self.device).manual_seed(mix(self.state.seed, self.state.step + 1))
        try:
            self.optimizer.zero_grad(set_to_none=True)
            whole_views: dict[str, Tensor] = {}
            if self.perceptual is not None and self.perceptual.due(step, self.method.progress):
                whole_views = {"perceptual": self._perceptual_loss(self.perceptual, step)}
            self.method.before_step(step)
            batch = self.method.next_batch(self.scene, step, generator)
            if not self._single:
                batch = self._own_part(batch)
            rendering, losses = backward(self.method, batch, step, self.state.chunk, self.scaler)
            reached = math.nan if batch.target is None else psnr(rendering.rgb, batch.target)
            return StepResult(batch, rendering, losses | whole_views, reached)
        except torch.cuda.OutOfMemoryError:
            return None

    def _own_part(self, batch: Batch) -> Batch:
        """This process's part of a batch."""
        if batch.whole < self.share.world_size:
            raise RunError(f"a batch of {batch.whole} rays can't be shared by {self.share.world_size} devices: take fewer.")
        return batch if batch.part else batch.shared(self.share)

    def _perceptual_loss(self, perceptual: Perceptual, step: int) -> Tensor:
        """Back-propagate the loss of a whole view, which the main process computes for all."""
        if not self.main:
            return torch.zeros((), device=self.device)
        return perceptual.backward(self.method, self.state.seed, step, self.state.chunk, self.scaler.scale)

    def _agree(self, result: StepResult | None) -> StepResult | None:
        """The step of the whole batch, None if it failed on any device; all processes take one clock and one signal."""
        if self._single:
            return result
        seconds, signal = self.state.seconds + self.clock.lap(self.state.step), self._signal.interrupted or 0
        failed, clocks, signals = zip(*distributed.all_gather([result is None, seconds, signal]), strict=True)
        self.state.seconds, self.interrupted = clocks[0], int(max(signals)) or None
        return None if result is None or any(failed) else sum_over_processes(result, self.method, self.optimizer)

    def _update(self, losses: dict[str, Tensor]) -> None:
        """Apply the gradients; RunError after `MAX_SKIPPED_IN_A_ROW` steps that were not finite."""
        if update(self.optimizer, self.scaler, self.settings.optim, losses):
            self._skipped_in_a_row = 0
            return
        self.state.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            bad = [name for name, value in losses.items() if not math.isfinite(float(value))] or ["the gradient"]
            raise RunError(
                f"training went wrong at step {self.state.step}: {', '.join(bad)} was not finite {MAX_SKIPPED_IN_A_ROW} times in a row; "
                "try a lower --optim.lr or --optim.clip-norm 1."
            )

    def _after_step(self, result: StepResult) -> None:
        """Everything beside the step that is due: restart after collapse, cameras, logs, checkpoints and callbacks."""
        config, step = self.settings.log, self.state.step

        def due(every: int) -> bool:
            return every > 0 and step % every == 0

        if math.isfinite(result.psnr):
            mean = self.state.psnr
            self.state.psnr = result.psnr if mean is None else mean + (result.psnr - mean) / min(step, 50)
        if (collapsed := self._collapsed(result)) is not None:
            self._restart(collapsed)
            return
        self.search.after_step()
        if due(config.print_every) or step == 1:
            self._report(result)
        if due(config.image_every):
            self._spend()
            # before the state is saved, which keeps the held-out PSNR
            by_heart = distributed.broadcast_result(lambda: self._preview(result.batch.target))
            self.clock.skip()
            if by_heart and self._ended_by_heart():
                return
        if due(config.save_every) or 0 < config.save_seconds < self.state.seconds - self._saved:
            self._save()
            self._spend()
        for callback in self.callbacks:
            if due(callback.every) and (callback.shared or self.main):
                callback.run(self)
                self.clock.skip()

    def _collapsed(self, result: StepResult) -> str | None:
        """Description of a collapse, if this step is one of the early steps that are checked and finds one."""
        target = result.batch.target
        if target is None or not collapse.due(self.state.step - self.settings.optim.warmup_steps, self.state.step):
            return None
        watch = collapse.CollapseWatch(self.state.collapse_history)
        return distributed.broadcast_result(lambda: watch.check(result.rendering, target))

    def _restart(self, what: str) -> None:
        """Begin again from another seed, and over another background where the present one is no more than a guess."""
        self.state.restarts += 1
        if self.state.restarts > MAX_RESTARTS:
            raise RunError(f"{what}, from each of {MAX_RESTARTS + 1} seeds: try --model.density-activation softplus or a lower --optim.lr.")
        over = ""
        if (other := self.scene.other_background) is not None:
            self.scene = replace(self.scene, background=other, other_background=None)
            over = f" over {self.scene.backdrop_name}"
        self.say(f"step {self.state.step}: {what}; starting again from another seed{over} (restart {self.state.restarts}).")
        self.state.seed = mix(self.settings.seed, self.state.restarts, 0xC0) >> 32
        self.state.step = self.state.adjusted = 0
        self.state.collapse_history, self.state.holdout_psnr, self.state.psnr, self.state.by_heart = {}, None, None, 0
        if self.main:
            keep_background(self.scene, self.folder)
            discard_checkpoints(self.folder / "checkpoints")
        self.rebuild()
        self.search.restart()

    def _ended_by_heart(self) -> bool:
        """Say that the training views alone are learned; whether the run begins again for that, over another background."""
        what = "training pixels are learned, but a held-out view is no better than one colour: matter stands right before each camera"
        if self.scene.other_background is not None and self.progress < 0.5:
            self._restart(what)
            return True
        if self.state.by_heart == 2:
            self.say(f"step {self.state.step}: {what}, or the poses are wrong; try another --scene.background or a larger --scene.near.")
        return False

    def say(self, text: str) -> None:
        """Print a line beside the progress bar."""
        self.bar.say(text)

    run_on_main = staticmethod(distributed.run_on_main)

    def _report(self, result: StepResult) -> None:
        """Show and log a step's numbers."""
        values = {"rays_per_second": self.clock.rate(self.state.seconds), "skipped_steps": float(self.state.skipped)}
        values |= step_scalars(result, self.method, self.optimizer) | self.search.scalars()
        if not self._single:
            values["sent_megabytes"] = distributed.sent / 1e6
        self.latest = values
        if self.log is not None:
            self.log.scalars(self.state.step, values)
        self.bar.show(self.progress, progress_text(self.state, self.progress, values))

    def _preview(self, target: Tensor | None) -> bool:
        """Log PSNR and pictures of a held-out view, and histograms of the weights; whether it is learned `by_heart`."""
        assert self.log is not None
        self.state.holdout_psnr, flat, images = preview(self.method, self.scene, self.state.chunk, self.settings.log.image_pixels)
        self.log.images(self.state.step, images)
        self.log.scalars(self.state.step, {"psnr_holdout": self.state.holdout_psnr})
        self.log.histograms(self.state.step, self.method)
        known = None if self.method.cameras is not None else target
        return known is not None and collapse.by_heart(self.state, self.state.holdout_psnr, flat, known)

    def _save(self) -> None:
        """Write a checkpoint; RunError if some weights are not finite."""
        self._saved = self.state.seconds
        if not all(bool(p.isfinite().all()) for p in self.method.parameters()):
            raise RunError(
                f"after step {self.state.step} some weights are not finite, so they are not saved: "
                "go on from the checkpoint before with --resume and a lower --optim.lr."
            )
        if not self.main:
            return
        self.state.loss_scale, self.state.progress = self.scaler.get_scale(), self.schedule_progress
        self.search.save(self.folder)
        save_checkpoint(self.folder / "checkpoints", self.state, self.method, self.optimizer)
        give_back_memory()
