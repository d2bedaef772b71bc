"""A training's progress line and its log: TensorBoard always, Weights & Biases on request."""

import importlib
import math
import sys
import time
import warnings
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from nerfit.errors import ConfigError
from nerfit.methods.base import Method
from nerfit.training.checkpoints import LoopState
from nerfit.training.devices import peak_memory
from nerfit.training.step import StepResult


@dataclass
class LogConfig:
    """How often to log, draw and save; 0 = never."""

    print_every: int = 100
    """Steps between numbers on the console and in the log."""
    image_every: int = 500
    """Steps between pictures and PSNR of a held-out view, with histograms of the weights."""
    image_pixels: int = 10_000
    """Largest number of pixels of that view, evenly spread over it."""
    save_every: int = 10_000
    """Steps between checkpoints."""
    save_seconds: float = 900.0
    """Seconds between checkpoints."""
    test_every: int = 0
    """Steps between renderings of all test views into the run."""
    video_every: int = 0
    """Steps between videos of the scene's camera path."""
    wandb: bool = False
    """Log to Weights & Biases too (pip install "nerfit[wandb]")."""


class RunLog:
    """TensorBoard events in the run folder and, if asked, a Weights & Biases run; a context manager.

    If the events can't be written, as on a full disk, it warns once and training goes on.
    """

    def __init__(self, folder: Path, settings: Any, first_step: int = 0) -> None:
        """``settings`` is the run's configuration (a dataclass with a ``log`` section), which W&B keeps with the run."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)
        self._silent = False
        self._wandb: Any = None
        if settings.log.wandb:
            self._module = import_wandb()
            unique = f"{folder.name}-{zlib.crc32(str(folder.resolve()).encode()):08x}"
            about = {"name": folder.name, "id": unique, "dir": str(folder), "config": asdict(settings)}
            self._wandb = self._module.init(project="nerfit", resume="allow", **about)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._events("close")
        if self._wandb is not None:
            self._wandb.finish()

    def _events(self, do: str, *arguments: Any, **keywords: Any) -> None:
        """Call a method of TensorBoard's writer."""
        try:
            getattr(self._writer, do)(*arguments, **keywords)
        except OSError as error:
            if not self._silent:
                warnings.warn(f"the log for TensorBoard ends here: {error.strerror or error}.", stacklevel=3)
            self._silent = True

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log named numbers at a step."""
        for name, value in values.items():
            self._events("add_scalar", name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def images(self, step: int, images: dict[str, Tensor]) -> None:
        """Log named pictures ([height, width, 3 or 1], in [0, 1])."""
        for name, image in images.items():
            self._events("add_image", name, image.clamp(0, 1), step, dataformats="HWC")
        if self._wandb is not None:
            self._wandb.log({name: self._module.Image(image.clamp(0, 1).numpy()) for name, image in images.items()}, step=step)

    def histograms(self, step: int, module: torch.nn.Module) -> None:
        """Log histograms of a module's parameters."""
        for name, parameter in module.named_parameters():
            values = parameter.detach().float().cpu()
            self._events("add_histogram", name.replace(".", "/"), values, step)
            if self._wandb is not None:
                self._wandb.log({f"histogram/{name}": self._module.Histogram(values.numpy())}, step=step)


def training_metrics(state: LoopState, method: Method, device: torch.device, threads: int) -> dict[str, Any]:
    """The "train" part of metrics.json."""
    rays, memory = state.rays / max(state.seconds, 1e-9), peak_memory(device)
    return {
        "steps": state.step,
        "rays": state.rays,
        "seconds": round(state.seconds, 3),
        "rays_per_second": round(rays, 1),
        "samples_per_second": round(rays * method.samples_per_ray(), 1),
        "peak_memory_mb": round(memory, 1) if math.isfinite(memory) else None,
        "threads": threads,
        "device": str(device),
        "training_psnr": state.psnr,
        "seed": state.seed,
        "restarts": state.restarts,
        "skipped_steps": state.skipped,
    }


def import_wandb() -> Any:
    """The wandb module; a ConfigError that says how to install it if it is missing."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError('log.wandb needs the wandb package: pip install "nerfit[wandb]".') from error


class ProgressLine:
    """A live bar on a terminal, an occasional plain line elsewhere: share done, step, PSNR, rate and time left."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(file=sys.stderr, quiet=quiet)
        columns = (BarColumn(), TextColumn("{task.percentage:3.0f}%"), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Progress(*columns, console=self._console, disable=quiet or not self._console.is_terminal)
        self._task = self._bar.add_task("starting", total=1.0)
        self._last = -float("inf")

    def __enter__(self) -> "ProgressLine":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: float, text: str) -> None:
        """Update the bar; without a terminal, print a line at most every ten seconds."""
        self._bar.update(self._task, completed=progress, description=text)
        if not self._console.is_terminal and time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            self._console.print(f"{progress:4.0%}  {text}", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, highlight=False, soft_wrap=True)


def step_scalars(result: StepResult, method: Method, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """A step's numbers for the log, by name."""
    values = {f"loss/{name}": float(value) for name, value in result.losses.items()}
    values["lr"] = optimizer.param_groups[0]["lr"]
    if result.batch.target is not None:
        values["psnr_fine"] = result.psnr
    if result.rendering.opacity is not None:
        values["opacity"] = float(result.rendering.opacity.detach().mean())
    return values | method.scalars(result.rendering, result.batch)


def progress_text(state: LoopState, progress: float, values: dict[str, float]) -> str:
    """The line beside the progress bar: step, PSNR, rate and time left."""
    left = state.seconds * (1 - progress) / max(progress, 1e-9)
    psnr = f"  psnr {values['psnr_fine']:.2f}" if "psnr_fine" in values else ""
    held_out = "" if state.holdout_psnr is None else f" (held out {state.holdout_psnr:.2f})"
    eta = f"{left / 3600:.1f} h" if left > 7200 else f"{left / 60:.0f} min" if left > 120 else f"{left:.0f} s"
    skipped = f"  {state.skipped} steps skipped" if state.skipped else ""
    return f"step {state.step}{psnr}{held_out} dB  {values['rays_per_second']:,.0f} rays/s  {eta} left{skipped}"
