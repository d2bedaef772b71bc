"""What each photograph makes of the scene's colours: exposure, white balance, affine maps."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nerfit.errors import require_above
from nerfit.rendering.volume import Rendering
from nerfit.scenes.scene import Scene

_SHARE = 0.25
"""What a number of an affine map counts: a colour hangs on four of them, and would change four times as fast as by a gain."""


@dataclass
class AppearanceConfig:
    """A colour map of each training picture, learned with the scene."""

    kind: Literal["none", "exposure", "affine"] = "none"
    """exposure: a gain of each channel. affine: a 3x3 matrix and an offset."""
    lr: float = 1e-2
    """Learning rate at the start."""
    lr_final: float = 1e-3
    """Learning rate at the end; it falls log-linearly."""

    def unused(self) -> dict[str, str]:
        """Keys that have no effect beside the others, and why."""
        return {"lr": "kind is none", "lr_final": "kind is none"} if self.kind == "none" else {}


class Appearance(nn.Module):
    """Affine maps of colours, one for each training view, whose mean is the identity.

    Map and radiance could be traded for each other otherwise: the scene is what the mean picture shows, and whatever was
    not trained on is rendered so, without a map. Maps act on composited colours, after Urban Radiance Fields (Rematas et al.
    2022, exposure compensation), which is the same as acting on radiance, for both are linear. Where pictures are cut out, what
    stands behind them was not photographed: only the light in front of the background is mapped.
    """

    rows: Tensor

    def __init__(self, config: AppearanceConfig, scene: Scene) -> None:
        super().__init__()
        require_above("model.appearance.", config, lr=0, lr_final=0)
        self.config, self.cut_out = config, scene.has_alpha
        train = scene.splits["train"]
        rows = torch.zeros(len(scene.cameras), dtype=torch.long)
        rows[train] = torch.arange(len(train))
        self.register_buffer("rows", rows)
        self.codes = nn.Parameter(torch.zeros(len(train), *((3,) if config.kind == "exposure" else (3, 4))))

    def maps(self) -> Float[Tensor, "train 3 4"]:
        """The training views' maps A·c + b as (A | b): gains, whose geometric mean is 1, or matrices, whose mean is (1 | 0)."""
        codes = self.codes - self.codes.mean(0)
        if self.config.kind == "exposure":
            return torch.nn.functional.pad(torch.diag_embed(codes.exp()), (0, 1))
        return torch.eye(3, 4, device=codes.device) + _SHARE * codes

    def forward(self, rendering: Rendering, views: Int[Tensor, "rays"], background: Tensor | float) -> Rendering:
        """What the pictures ``views`` show of a rendering: its colours mapped, also those in ``extras`` (``rgb…`` beside ``opacity…``)."""
        maps = self.maps()[self.rows[views]]

        def mapped(rgb: Tensor, opacity: Tensor | None) -> Tensor:
            seen, behind = photographed(rgb, opacity if self.cut_out else None, background)
            return torch.einsum("rij,rj->ri", maps, seen) + behind

        extras = {name: rendering.extras["opacity" + name[3:]] for name in rendering.extras if name.startswith("rgb")}
        own = {name: mapped(rendering.extras[name], opacity) for name, opacity in extras.items()}
        return replace(rendering, rgb=mapped(rendering.rgb, rendering.opacity), extras=rendering.extras | own)

    def parameter_group(self) -> dict[str, Any]:
        """A group of the optimiser with its own ``rates``."""
        c = self.config
        own = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
        return {"params": [self.codes], "lr": c.lr, "rates": (c.lr, c.lr_final, 0.0), "lr_scale": 1.0} | own


def photographed(rgb: Float[Tensor, "n 3"], opacity: Float[Tensor, "n"] | None, background: Tensor | float) -> tuple[Tensor, Tensor]:
    """Light that a camera saw, with a fourth channel for what is added to it ([n, 4]), and the light that was put behind it.

    ``opacity`` None: all that is there was photographed, the background too.
    """
    if opacity is None:
        return torch.cat([rgb, torch.ones_like(rgb[:, :1])], -1), torch.zeros_like(rgb)
    behind = (1 - opacity)[:, None] * background
    return torch.cat([rgb - behind, opacity[:, None]], -1), behind + torch.zeros_like(rgb)


def learned_appearance(config: AppearanceConfig, scene: Scene) -> Appearance | None:
    """The training pictures' maps; None where all pictures are taken to show the same light."""
    return None if config.kind == "none" else Appearance(config, scene)
