"""Noticing a field that died: everything transparent or everything opaque, and no better than one flat colour."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nerfit.rendering.volume import Rendering

EVERY = 25
"""Steps between looks at the field."""
LAST = 1000
"""Step after which a field is taken to be alive."""
_LOOKS = 8


@dataclass
class CollapseWatch:
    """Watches the first steps of a run. A network has collapsed when over 8 looks (200 steps) its error is no better
    than 95 % of the best flat colour's (the colours' variance), and either its mean opacity stays below 0.1 % or it is
    above 99.9 % with a picture whose variance is below 1 % of the colours': from there a ReLU density has no gradient
    to recover by."""

    history: dict[str, list[list[float]]] = field(default_factory=dict)
    """Mean opacity, relative error and relative variance of the picture at the latest looks, by network."""

    def look(self, rendering: Rendering, target: Tensor) -> str | None:
        """Take one look; returns what has collapsed and how, in words, or None."""
        variance = float((target - target.mean(0)).square().mean())
        if rendering.opacity is None or variance < 1e-4:
            return None
        networks = {"field": (rendering.rgb, rendering.opacity)}
        if "opacity_coarse" in rendering.extras:
            networks["coarse field"] = (rendering.extras["rgb_coarse"], rendering.extras["opacity_coarse"])
        for name, (rgb, opacity) in networks.items():
            error = float((rgb.detach() - target).square().mean()) / variance
            looks = self.history.setdefault(name, [])
            spread = float((rgb.detach() - rgb.detach().mean(0)).square().mean()) / variance
            looks[:] = [*looks, [float(opacity.detach().mean()), error, spread]][-_LOOKS:]
            if len(looks) < _LOOKS:
                continue
            opacities, errors, spreads = torch.tensor(looks).unbind(-1)
            if bool((errors <= 0.95).any()):
                continue
            if bool((opacities < 1e-3).all()):
                return f"the {name} has become transparent everywhere"
            if bool((opacities > 1 - 1e-3).all() and (spreads < 0.01).all()):
                return f"the {name} has become one opaque colour"
        return None
