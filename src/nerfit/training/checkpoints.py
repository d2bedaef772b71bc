"""Checkpoints that a power cut can't break: one safetensors file each, with the loop's state in its header."""

import json
import os
import warnings
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nerfit.errors import RunError
from nerfit.scenes.scene import write_json


@dataclass
class LoopState:
    """All that the training loop knows beside the tensors; randomness is a function of seed and step."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Training time spent."""
    seed: int = 0
    """Seed in use (differs from the run's after a restart from collapse)."""
    chunk: int = 0
    """Rays processed together."""
    restarts: int = 0
    """Restarts after collapse."""
    skipped: int = 0
    """Steps skipped for non-finite losses or gradients."""
    holdout_psnr: float | None = None
    """Latest PSNR of the held-out view, in dB."""
    loss_scale: float = 1.0
    """Loss scale of fp16 training."""


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(save(tensors, {"state": json.dumps(asdict(state)), "crc32": str(_checksum(tensors))}))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _prune(folder, path, state)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"the checkpoint of step {state.step} can't be written to {folder}: {error.strerror}; older ones are intact.") from error
    return path


def _prune(folder: Path, newest: Path, state: LoopState) -> None:
    index = folder / "state.json"
    try:
        best = json.loads(index.read_text())
    except (OSError, ValueError):
        best = {"best": None, "best_psnr": None}
    if state.holdout_psnr is not None and (best["best_psnr"] is None or state.holdout_psnr > best["best_psnr"]):
        best = {"best": newest.name, "best_psnr": state.holdout_psnr}
    write_json(index, {"latest": newest.name, "best": best["best"], "best_psnr": best["best_psnr"]})
    keep = {newest.name, best["best"]} | {p.name for p in checkpoints(folder)[:2]}
    for path in checkpoints(folder):
        if path.name not in keep:
            path.unlink()


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
            if _checksum(tensors) != int(header["crc32"]):
                raise ValueError("its checksum is wrong")
            state = LoopState(**json.loads(header["state"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            damaged += 1
            warnings.warn(f"{path} is damaged ({error}); trying the checkpoint before it.", stacklevel=2)
            continue
        return state, {name: t.to(device) for name, t in tensors.items()}
    if damaged:
        raise RunError(f"all {damaged} checkpoints in {folder} are damaged.")
    return None


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
    for name, t in tensors.items():
        if name.startswith("optim."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = t
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _checksum(tensors: dict[str, Tensor]) -> int:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].contiguous().flatten().view(torch.uint8).numpy(), crc)
    return crc
