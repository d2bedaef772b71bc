"""One training step: gradients, their sums over processes, and the update."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.rendering.volume import Rendering, join
from nerfit.training import distributed
from nerfit.training.optim import OptimConfig


@dataclass
class StepResult:
    """A step's batch, its rendering and its losses."""

    batch: Batch
    rendering: Rendering
    losses: dict[str, Tensor]
    psnr: float
    """PSNR of the batch in dB; NaN without target colours."""


def backward(method: Method, batch: Batch, step: int, chunk: int, scaler: torch.amp.GradScaler) -> tuple[Rendering, dict[str, Tensor]]:
    """Add the gradients of the mean losses over the batch, ``chunk`` rays at a time; returns its rendering and its losses."""
    totals: dict[str, Tensor] = {}
    parts: list[Rendering] = []
    for piece in batch.chunks(chunk):
        rendering, losses = method.training_losses(piece, step)
        losses = {name: value * (len(piece) / batch.whole) for name, value in losses.items()}
        # rays of learned cameras are a graph that the chunks share
        retain = batch.rays is not None and batch.rays.origins.requires_grad
        scaler.scale(torch.stack(list(losses.values())).sum()).backward(retain_graph=retain)
        totals = {name: value.detach() + totals.get(name, 0.0) for name, value in losses.items()}
        parts.append(join([rendering]))
    return join(parts), totals


def sum_over_processes(result: StepResult, method: Method, optimizer: torch.optim.Optimizer) -> StepResult:
    """Give every process the losses, PSNR, counts and gradients of the whole batch."""
    rays, counts = len(result.batch), len(method.counts)
    own = [rays, rays * 10 ** (-result.psnr / 10), *method.counts, *map(float, result.losses.values())]
    total_rays, error, *sums = map(sum, zip(*distributed.all_gather(own), strict=True))
    method.counts = tuple(map(int, sums[:counts]))
    distributed.all_reduce(p for group in optimizer.param_groups for p in group["params"])
    losses = {name: torch.tensor(total) for name, total in zip(result.losses, sums[counts:], strict=True)}
    return StepResult(result.batch, result.rendering, losses, -10 * math.log10(error / total_rays) if error else math.inf)


def update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, config: OptimConfig, losses: dict[str, Tensor]) -> bool:
    """Clip and apply the gradients; skip the step and return False if a loss or a gradient is not finite."""
    scaler.unscale_(optimizer)
    clips = config.clip_value is not None or config.clip_norm is not None
    # a table's gradient comes through dense weights that would not be finite either: without clipping it need not be read
    groups = [group for group in optimizer.param_groups if clips or not group.get("sparse")]
    parameters = [p for group in groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    finite = bool(torch.isfinite(norm + sum(losses.values())))
    if finite:
        if config.clip_value is not None:
            torch.nn.utils.clip_grad_value_(parameters, config.clip_value)
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        scaler.step(optimizer)
    scaler.update()
    return finite
