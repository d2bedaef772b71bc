"""Checkpoints that a power cut can't break: one safetensors file each, with the loop's state in its header."""

import contextlib
import json
import math
import os
import warnings
import zlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nerfit.errors import RunError
from nerfit.files import atomic_write, write_json


@dataclass
class LoopState:
    """The state of the training loop beside the tensors; randomness is a function of seed and step."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Training time spent."""
    seed: int = 0
    """Seed in use (differs from the run's after a restart from collapse)."""
    chunk: int = 0
    """Rays processed together."""
    restarts: int = 0
    """Number of restarts after collapse."""
    skipped: int = 0
    """Steps skipped for non-finite losses or gradients."""
    holdout_psnr: float | None = None
    """Latest PSNR of the held-out view, in dB."""
    loss_scale: float = 1.0
    """Loss scale of fp16 training."""
    collapse_history: dict[str, list[list[float]]] = field(default_factory=dict)
    """The latest checks for collapse (`CollapseWatch`)."""
    by_heart: int = 0
    """Previews in a row that found the training views learned and the held-out one not (`collapse.by_heart`)."""
    rays: int = 0
    """Rays trained on; a method may change their number from step to step."""
    field_start: int = 0
    """Step at which the field was initialised again, with the cameras found by then; 0 = not yet."""
    adjusted: int = 0
    """How many of the adjustments of all cameras are done."""
    progress: float = 1.0
    """Progress of the schedules (`Method.progress`), 0 to 1."""
    psnr: float | None = None
    """PSNR of the training pixels in dB, a running mean over about the latest fifty steps."""


def save_checkpoint(folder: Path, state: LoopState, method: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    """Write ``step_<step>.safetensors``, then drop all but the last two and the best (held-out PSNR).

    The file appears whole or not at all; a full or unwritable disk is a RunError and leaves the old ones intact.
    """
    tensors = {f"model.{name}": t for name, t in method.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optim.{index}.{name}": t for name, t in values.items() if isinstance(t, Tensor)}
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    path = folder / f"step_{state.step:08d}.safetensors"
    temporary = path.with_suffix(".part")
    text = json.dumps(asdict(state))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(save(tensors, {"state": text, "crc32": str(_checksum(text, tensors))}))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _prune(folder, path, state)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        what = f"the checkpoint of step {state.step} can't be written to {folder}: {error.strerror}"
        raise RunError(f"{what}; older ones are intact.") from error
    return path


def _prune(folder: Path, newest: Path, state: LoopState) -> None:
    index = folder / "state.json"
    best, best_psnr = None, -float("inf")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(index.read_text("utf-8"))
        best, best_psnr = known["best"], float(known["best_psnr"])
    if state.holdout_psnr is not None and state.holdout_psnr > best_psnr:
        best, best_psnr = newest.name, state.holdout_psnr
    write_json(index, {"latest": newest.name, "best": best, "best_psnr": best_psnr if best else None})
    keep = {newest.name, best} | {p.name for p in checkpoints(folder)[:2]}
    for path in checkpoints(folder):
        if path.name not in keep:
            path.unlink()
    for part in folder.glob("step_*.part"):  # of a process that was killed while it wrote
        part.unlink()


def discard_checkpoints(folder: Path) -> None:
    """Delete all checkpoints, which belong to a field that died."""
    for path in [*checkpoints(folder), folder / "state.json"]:
        path.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files, newest first."""
    return sorted(folder.glob("step_*.safetensors"), reverse=True)


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> tuple[LoopState, dict[str, Tensor]] | None:
    """State and tensors of the newest whole checkpoint; damaged ones are passed over with a warning. None if there is none."""
    damaged = 0
    for path in checkpoints(folder):
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if _checksum(header["state"], tensors) != int(header["crc32"]):
                raise ValueError("its checksum is wrong")
            state = _state(header["state"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            damaged += 1
            warnings.warn(f"{path} is damaged ({error}); trying the checkpoint before it.", stacklevel=2)
            continue
        return state, {name: t.to(device, copy=True) for name, t in tensors.items()}  # the others are mapped from the file
    if damaged:
        raise RunError(f"all {damaged} checkpoints in {folder} are damaged.")
    return None


def _state(text: str) -> LoopState:
    """The state in a checkpoint's header; ValueError, TypeError or AttributeError for what no training has written."""
    state = LoopState(**json.loads(text))
    for f in fields(LoopState):
        value = getattr(state, f.name)
        number = isinstance(value, int | float)
        known = {
            int: type(value) is int and 0 <= value < 2**64,
            float: number and 0 <= value < math.inf,
            float | None: number or value is None,
        }.get(f.type, True)
        if not known:
            raise ValueError(f"{f.name} can't be {str(value)[:40]}")
    checks = [check for history in state.collapse_history.values() for check in history]
    if not all(len(check) == 3 and all(isinstance(x, int | float) for x in check) for check in checks):
        raise ValueError("collapse_history can't be read")
    return state


def restore(tensors: dict[str, Tensor], method: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Put a checkpoint's tensors back into the method and the optimiser; a shape that differs is a RunError."""
    model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    try:
        method.load_state_dict(model)
    except RuntimeError as error:
        raise RunError(f"the checkpoint does not fit this configuration: {str(error).splitlines()[-1].strip()}") from error
    if optimizer is None:
        return
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        for name, t in tensors.items():
            if name.startswith("optim."):
                _, index, key = name.split(".", 2)
                if t.dim() and t.shape != parameters[int(index)].shape:
                    raise ValueError(f"{name} has the shape {tuple(t.shape)}")
                state.setdefault(int(index), {})[key] = t
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (ValueError, IndexError, KeyError, TypeError, RuntimeError) as error:
        raise RunError(f"the checkpoint does not fit this optimiser: {str(error).splitlines()[-1].strip()}.") from error


def _checksum(state: str, tensors: dict[str, Tensor]) -> int:
    """CRC-32 of the state, and of every tensor's name, type, shape and data."""
    crc = zlib.crc32(state.encode())
    for name, t in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {t.dtype} {tuple(t.shape)}".encode(), crc)
        crc = zlib.crc32(t.contiguous().flatten().view(torch.uint8).numpy().data, crc)
    return crc


def update_metrics(folder: Path, part: str, values: dict[str, Any]) -> None:
    """Replace one part of a run's metrics.json and keep the others, also those that another process writes at the same time."""
    path = folder / "metrics.json"
    with atomic_write(path) as temporary:
        try:
            metrics = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            metrics = {}
        temporary.write_text(json.dumps(metrics | {part: values}, indent=1) + "\n", "utf-8")
