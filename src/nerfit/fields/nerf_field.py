"""NeRF's radiance field: points and view directions to density and colour, through frequency encodings and one network."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nerfit.errors import require_above, require_min
from nerfit.fields.frequency import encoded_size, frequency_encoding, opened_levels
from nerfit.fields.mlp import Layers, NerfMLP, unused_skips
from nerfit.fields.siren import SirenMLP

Normal = Callable[..., Tensor | None]
"""Normal numbers of a shape, or None."""


@dataclass
class NerfFieldConfig:
    """The network of NeRF with every switch of the original programs; the defaults are the paper's, with a density that can't die."""

    network: Literal["relu", "siren"] = "relu"
    """Activation of the layers: ReLU, or sine, which wants raw coordinates (frequencies 0) and no skips."""
    first_w0: float = 30.0
    """Frequency of the first sine layer."""
    hidden_w0: float = 1.0
    """Frequency of the other sine layers."""
    depth: int = 8
    """Layers of the network."""
    width: int = 256
    """Channels per layer."""
    skips: list[int] = field(default_factory=lambda: [4])
    """Layers (from 0) after which the encoded position is joined to the features again."""
    viewdirs: bool = True
    """Let colour depend on the view direction."""
    frequencies: int = 10
    """Octaves of the position encoding; 0 = raw coordinates."""
    view_frequencies: int = 4
    """Octaves of the direction encoding; 0 = raw directions."""
    raw_noise: float = 0.0
    """Standard deviation of noise added to the raw density while training."""
    density_activation: Literal["softplus", "relu"] = "softplus"
    """softplus(x - 1), which never loses its gradient, or the original ReLU."""
    density_factor: float = 1.0
    """Factor of the raw density before its activation (improved-nerfmm's siren_sigma_mul)."""
    density_bias: float = 0.0
    """Number added to the raw density after that factor; above 0 it keeps a ReLU density alive at the start."""
    init: Literal["glorot", "torch"] = "glorot"
    """Glorot-uniform weights with zero biases (the original), or PyTorch's default."""

    def check_field(self) -> None:
        """Raise ConfigError for numbers that can't work."""
        require_min("model.", self, depth=1, width=2, frequencies=0, view_frequencies=0, raw_noise=0)
        require_above("model.", self, first_w0=0, hidden_w0=0, density_factor=0)

    def unused_of_field(self, deepest: int) -> dict[str, str]:
        """Keys of the field without effect, and why; ``deepest`` is the depth of the deepest network."""
        unused = unused_skips(self.skips, deepest)
        if not self.viewdirs:
            unused["view_frequencies"] = "viewdirs is off"
        if self.network == "siren":
            return unused | {"init": "network is siren, which has its own"}
        return unused | dict.fromkeys(("first_w0", "hidden_w0"), "network is relu")


class NerfField(nn.Module):
    """Encoded positions and directions through one network to density and colour (NeRF, section 5.1 and figure 7)."""

    def __init__(self, config: NerfFieldConfig, depth: int, width: int) -> None:
        super().__init__()
        self.config = c = config
        sizes = encoded_size(3, c.frequencies), encoded_size(3, c.view_frequencies) if c.viewdirs else 0
        layers = Layers(depth, width, c.skips)
        self.network = SirenMLP(*sizes, layers, c.first_w0, c.hidden_w0) if c.network == "siren" else NerfMLP(*sizes, layers, c.init)

    def forward(
        self,
        points: Float[Tensor, "rays samples 3"],
        viewdirs: Float[Tensor, "rays 3"],
        opened: float = 1.0,
        noise: Normal | None = None,
    ) -> tuple[Float[Tensor, "rays samples"], Float[Tensor, "rays samples 3"]]:
        """Density per unit of length, and colour in [0, 1], of points that are viewed along unit directions.

        ``opened`` is the open share of the encodings' octaves (`opened_levels`). ``noise`` draws normal numbers of a shape, or None
        while evaluating; the raw density gets ``raw_noise`` times as many.
        """
        c = self.config
        direction = self._encoded(viewdirs, c.view_frequencies, opened) if c.viewdirs else None
        raw_density, raw_rgb = self.network(self._encoded(points, c.frequencies, opened), direction)
        raw_density = raw_density.float()
        if c.raw_noise and noise is not None and (drawn := noise(*raw_density.shape)) is not None:
            raw_density = raw_density + drawn * c.raw_noise
        return self._activated(raw_density), torch.sigmoid(raw_rgb.float())

    def density(self, points: Float[Tensor, "*n 3"], opened: float = 1.0) -> Float[Tensor, "*n"]:
        """Density alone, without noise."""
        return self._activated(self.network.raw_density(self._encoded(points, self.config.frequencies, opened)).float())

    def floats_per_sample(self) -> int:
        """Roughly how many floats a sample keeps for the backward pass."""
        layers = self.network.layers
        return 2 * encoded_size(3, self.config.frequencies) + (layers.depth + 2) * layers.width

    @staticmethod
    def _encoded(x: Tensor, frequencies: int, opened: float) -> Tensor:
        return frequency_encoding(x, frequencies, opened_levels(frequencies, opened))

    def _activated(self, raw: Tensor) -> Tensor:
        raw = self.config.density_factor * raw + self.config.density_bias
        return F.relu(raw) if self.config.density_activation == "relu" else F.softplus(raw - 1)
