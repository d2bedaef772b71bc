"""Optimisers and learning-rate schedules."""

import math
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from nerfit.errors import ConfigError
from nerfit.kernels.adam import sparse_adam
from nerfit.kernels.factored import add_factored
from nerfit.kernels.layouts import AdamStep, FactoredGradient
from nerfit.kernels.memory import zeros_in_large_pages
from nerfit.methods.base import Method


@dataclass
class OptimConfig:
    """Optimiser and learning-rate schedule; the defaults are NeRF's."""

    optimizer: Literal["adam", "radam", "sgd", "sparse-adam"] = "adam"
    """Update rule (sgd has momentum 0.9; sparse-adam does not change entries without gradient)."""
    lr: float = 5e-4
    """Learning rate at the start."""
    schedule: Literal["exponential", "step", "multi-step", "cosine", "log-linear", "constant"] = "exponential"
    """Schedule of the learning rate."""
    decay_rate: float = 0.1
    """Factor of the learning rate per decay_steps (exponential, step) or per milestone (multi-step)."""
    decay_steps: int | None = None
    """Number of steps of one decay; none = the run's whole budget, in steps or seconds (the old lrate_decay counts thousands)."""
    milestones: list[int] = field(default_factory=list)
    """Steps at which multi-step decays."""
    lr_final: float = 5e-6
    """Learning rate at the end of cosine and log-linear."""
    lr_floor: float = 0.0
    """Smallest learning rate."""
    warmup_steps: int = 0
    """Number of steps over which the learning rate rises, along a quarter sine (mip-NeRF's delay)."""
    warmup_factor: float = 0.01
    """Factor of the learning rate at the start of that rise."""
    beta2: float = 0.999
    """Adam's and RAdam's beta2: decay of the mean of squared gradients."""
    eps: float = 1e-8
    """Adam's and RAdam's epsilon."""
    weight_decay: float = 0.0
    """L2 penalty."""
    average_from: float = 1.0
    """Share of the budget after which the weights are averaged; the run keeps the average. 1 = no average."""
    clip_value: float | None = None
    """Largest absolute value of a gradient entry; larger ones are clipped."""
    clip_norm: float | None = None
    """Largest norm of all gradients together; larger ones are scaled down."""

    def unused(self) -> dict[str, str]:
        """Keys that have no effect beside the others, and why."""
        why = f"schedule is {self.schedule}"
        uses = {
            "exponential": {"decay_rate", "decay_steps"},
            "step": {"decay_rate", "decay_steps"},
            "multi-step": {"decay_rate", "milestones"},
            "cosine": {"lr_final", "decay_steps"},
            "log-linear": {"lr_final", "decay_steps"},
            "constant": set[str](),
        }[self.schedule]
        unused = dict.fromkeys({"decay_rate", "decay_steps", "milestones", "lr_final"} - uses, why)
        if self.warmup_steps == 0:
            unused["warmup_factor"] = "warmup_steps is 0"
        if self.optimizer == "sgd":
            unused |= {"eps": "optimizer is sgd", "beta2": "optimizer is sgd"}
        return unused


def learning_rate(config: OptimConfig, step: int, progress: float) -> float:
    """The learning rate of a step, when a share ``progress`` (0 to 1) of the run's budget is spent.

    exponential: lr·rate^(step/decay_steps), NeRF's rule. log-linear with warm-up: mip-NeRF, appendix A. Without
    ``decay_steps`` the budget takes its place, so a run of seconds decays as far as a run of steps.
    """
    c = config
    x = progress if c.decay_steps is None else step / c.decay_steps
    if c.schedule == "exponential":
        lr = c.lr * c.decay_rate**x
    elif c.schedule == "step":
        lr = c.lr * c.decay_rate ** math.floor(x)
    elif c.schedule == "multi-step":
        lr = c.lr * c.decay_rate ** sum(step >= m for m in c.milestones)
    elif c.schedule == "cosine":
        lr = c.lr_final + (c.lr - c.lr_final) * 0.5 * (1 + math.cos(math.pi * min(x, 1)))
    elif c.schedule == "log-linear":
        lr = math.exp(math.log(c.lr) * (1 - min(x, 1)) + math.log(c.lr_final) * min(x, 1))
    else:
        lr = c.lr
    if c.warmup_steps:
        ramp = math.sin(0.5 * math.pi * min(step / c.warmup_steps, 1))
        lr *= c.warmup_factor + (1 - c.warmup_factor) * ramp
    return max(lr, c.lr_floor)


def make_optimizer(config: OptimConfig, method: Method, scaled: bool = False) -> torch.optim.Optimizer:
    """The optimiser over a method's parameter groups, each with its ``lr_scale``; ``scaled``: a loss scale multiplies the gradients."""
    if config.schedule == "step" and config.decay_steps is None:
        raise ConfigError("optim.schedule step needs --optim.decay-steps.")
    if config.schedule == "multi-step" and not config.milestones:
        raise ConfigError("optim.schedule multi-step needs --optim.milestones.")
    groups = [{"lr_scale": 1.0} | group for group in method.parameter_groups()]
    if method.cameras is not None:
        groups.extend(method.cameras.parameter_groups())
    if method.appearance is not None:
        groups.append(method.appearance.parameter_group())
    _leave_out_the_compiler()
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    make = {"adam": torch.optim.Adam, "radam": torch.optim.RAdam, "sparse-adam": SparseAdam}[config.optimizer]
    optimizer = make(groups, lr=config.lr, betas=(0.9, config.beta2), eps=config.eps, weight_decay=config.weight_decay)
    if isinstance(optimizer, SparseAdam):
        optimizer.factored = not scaled and config.clip_value is None and config.clip_norm is None
    return optimizer


def _leave_out_the_compiler() -> None:
    """Keep what optimisers share from importing PyTorch's compiler, which nothing here uses: 3 s of a start and 140 MB.

    Their methods ask it, when first called, not to compile them; the mark says that they have asked. The steps of PyTorch's own
    optimisers import it all the same; `SparseAdam` does without.
    """
    if "torch._dynamo" not in sys.modules:
        for name in ("add_param_group", "state_dict", "load_state_dict", "zero_grad"):
            method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
            if method is not None and not hasattr(method, "__dynamo_disable"):
                setattr(method, "__dynamo_disable", method)  # noqa: B010 - in a class a name with two underscores would be another


class SparseAdam(torch.optim.Optimizer):
    """Adam whose step does not change entries without gradient and clears the gradients that it used (`sparse_adam`)."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "sparse": False})
        self.factored = False
        """Whether sparse groups take their gradients in factors, which only this optimiser reads."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Dense gradients of sparse groups are kept as tensors of zeros: a step has cleared them, unless it was skipped."""
        for group in self.param_groups:
            for p in group["params"]:
                if not group["sparse"]:
                    p.grad = None
                    continue
                if self.factored:
                    if getattr(p, "factored_gradients", []):
                        p.grad = None  # where several were summed: a single one is used as it is
                    p.factored_gradients = []
                elif p.grad is None:
                    p.grad = zeros_in_large_pages(p)
                if p.grad is not None and not self.state[p].get("cleared", False):
                    p.grad.zero_()
                self.state[p]["cleared"] = False

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step for every parameter with a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                gradient = self._gradient(p)
                if gradient is None:
                    continue
                state = self.state[p]
                if "step" not in state:
                    state |= {"step": torch.zeros(()), "exp_avg": zeros_in_large_pages(p), "exp_avg_sq": zeros_in_large_pages(p)}
                state["step"] += 1
                numbers = AdamStep(int(state["step"]), group["lr"], group["betas"], group["eps"], group["weight_decay"])
                sparse_adam(p, gradient, state["exp_avg"], state["exp_avg_sq"], numbers, group.get("levels", ()))
                state["cleared"] = True

    @staticmethod
    def _gradient(p: torch.nn.Parameter) -> torch.Tensor | FactoredGradient | None:
        """A parameter's gradient, in one piece."""
        factored: list[FactoredGradient] = getattr(p, "factored_gradients", [])
        if len(factored) == 1 and p.grad is None:
            return factored[0]
        if factored and p.grad is None:
            p.grad = zeros_in_large_pages(p)
        for piece in factored:
            assert p.grad is not None
            add_factored(piece, p.grad)
        return p.grad


AVERAGE_EVERY = 20
"""Steps between two samples of the weights in the average."""


@torch.no_grad()
def average(optimizer: torch.optim.Optimizer, finish: bool = False) -> None:
    """Add the weights to their running mean, which is part of the optimiser's state; with ``finish`` replace them by it.

    The mean is dropped then: a run that goes on with a larger budget begins another.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state[p]
            if finish and "average" in state:
                p.copy_(state.pop("average"))
                del state["averaged"]
            elif not finish and "average" in state:
                state["averaged"] += 1
                state["average"].lerp_(p, 1 / float(state["averaged"]))
            elif not finish:
                state |= {"average": p.detach().clone(), "averaged": torch.ones(())}


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, progress: float) -> None:
    """Set every group's learning rate to ``lr`` times its own scale.

    A group with ``rates`` (first, last, warmup) goes log-linearly from the first rate to the last instead, and rises from 0 during the
    share ``warmup`` of the budget.
    """
    for group in optimizer.param_groups:
        if "rates" in group:
            first, last, warmup = group["rates"]
            group["lr"] = first ** (1 - progress) * last**progress * (1.0 if progress >= warmup else progress / warmup)
        else:
            group["lr"] = lr * group["lr_scale"]
