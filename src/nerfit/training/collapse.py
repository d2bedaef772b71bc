"""Detecting a collapsed field: nothing, one colour, or matter right before each camera that held-out views know nothing of."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nerfit.rendering.volume import Rendering
from nerfit.training.checkpoints import LoopState

EVERY, LAST = 25, 1000
"""Steps between checks, and the step after warm-up that the last check comes at."""
_CHECKS, _PATIENT = 8, 24
"""Checks in a row that a collapsed field fails: without gradients, and of one colour at any opacity, which has some."""
BETTER, MEMORISED = 0.5, 6.0
"""Decibels over a picture of one colour: a held-out view that shows something has more, training pixels that are learned by heart this."""


def due(trained: int, step: int) -> bool:
    """Whether the field is checked at ``step``, ``trained`` steps after the learning rate's warm-up."""
    return step % EVERY == 0 and 0 < trained <= LAST


def by_heart(state: LoopState, held_out: float, flat: float, target: Tensor) -> bool:
    """Whether two previews in a row find training pixels learned while the held-out view is no better than one colour.

    So it is where matter stands right before each camera, which no other camera sees. ``held_out`` is that view's PSNR, ``flat`` that of
    its mean colour, in dB; ``target`` are colours of training pixels.
    """
    own = -10 * math.log10(max(float((target - target.mean(0)).square().mean()), 1e-10))
    found = state.psnr is not None and state.psnr > own + MEMORISED and held_out < flat + BETTER
    state.by_heart = state.by_heart + 1 if found else 0
    return state.by_heart >= 2


@dataclass
class CollapseWatch:
    """Watches the first steps of a run.

    A network has collapsed if in 8 checks (200 steps) its error is above 95 % of the best flat colour's (the variance of the colours),
    and its mean opacity is below 0.1 %, or above 99.9 % while the variance of its picture is below 1 % of the colours'.
    A ReLU density has no gradient there, so it can't recover. With a picture of so little variance at any opacity, such as an even
    fog, it has collapsed after 24 checks (600 steps).
    """

    history: dict[str, list[list[float]]] = field(default_factory=dict)
    """Mean opacity, relative error and relative variance of the picture at the latest checks, by network."""

    def check(self, rendering: Rendering, target: Tensor) -> str | None:
        """Check a batch's rendering against its colours; returns in words what has collapsed and how, or None."""
        variance = float((target - target.mean(0)).square().mean())
        if rendering.opacity is None or variance < 1e-4:
            return None
        networks = {"field": (rendering.rgb, rendering.opacity)}
        if "opacity_coarse" in rendering.extras:
            networks["coarse field"] = (rendering.extras["rgb_coarse"], rendering.extras["opacity_coarse"])
        for name, (rgb, opacity) in networks.items():
            error = float((rgb.detach() - target).square().mean()) / variance
            checks = self.history.setdefault(name, [])
            spread = float((rgb.detach() - rgb.detach().mean(0)).square().mean()) / variance
            checks[:] = [*checks, [float(opacity.detach().mean()), error, spread]][-_PATIENT:]
            if len(checks) < _CHECKS:
                continue
            opacities, errors, spreads = torch.tensor(checks).unbind(-1)
            if len(checks) == _PATIENT and bool((errors > 0.95).all() and (spreads < 0.01).all()):
                return f"the {name} has become one colour (opacity {float(opacities[-1]):.2f})"
            opacities, errors, spreads = opacities[-_CHECKS:], errors[-_CHECKS:], spreads[-_CHECKS:]
            if bool((errors <= 0.95).any()):
                continue
            if bool((opacities < 1e-3).all()):
                return f"the {name} has become transparent everywhere"
            if bool((opacities > 1 - 1e-3).all() and (spreads < 0.01).all()):
                return f"the {name} has become one opaque colour"
        return None
