"""SIREN: a network of sine layers as a radiance field (Sitzmann et al. 2020; improved-nerfmm's SirenNeRF)."""

import math

import torch
from torch import Tensor, nn

from nerfit.fields.mlp import Layers, NerfMLP


class SirenMLP(NerfMLP):
    """`NerfMLP` whose layers are sin(w0·(Wx + b)), with a w0 of its own for the first layer.

    Weights and biases of the first layer begin in ±1/inputs, all others in ±√(6/inputs)/w0 (section 3.2), which keeps the
    spread of activations from layer to layer. Meant for raw coordinates: 0 octaves of encoding, no skips.
    """

    def __init__(self, position_size: int, direction_size: int, layers: Layers, first_w0: float, hidden_w0: float) -> None:
        super().__init__(position_size, direction_size, layers, init="torch")
        self.first_w0, self.hidden_w0 = first_w0, hidden_w0
        for layer in (module for module in self.modules() if isinstance(module, nn.Linear)):
            within = 1 / layer.in_features if layer is self.trunk[0] else math.sqrt(6 / layer.in_features) / hidden_w0
            nn.init.uniform_(layer.weight, -within, within)
            nn.init.uniform_(layer.bias, -within, within)

    def activation(self, x: Tensor, first: bool = False) -> Tensor:
        """A sine of w0 times the layer's output."""
        return torch.sin((self.first_w0 if first else self.hidden_w0) * x)
