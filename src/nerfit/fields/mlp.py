"""The multi-layer perceptrons of NeRF and of image fitting."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def linear(layer: nn.Linear, *inputs: Tensor) -> Tensor:
    """``layer`` of the concatenation of ``inputs`` along their last axis, without building it; leading axes broadcast.

    Inputs that vary per ray ([rays, 1, k]) beside inputs that vary per sample cost one row per ray.
    """
    out: Tensor | None = None
    start = 0
    for x in inputs:
        part = F.linear(x, layer.weight[:, start : start + x.shape[-1]], layer.bias if out is None else None)
        out = part if out is None else out + part
        start += x.shape[-1]
    assert out is not None and start == layer.in_features
    return out


@dataclass(frozen=True)
class Layers:
    """``depth`` hidden layers of ``width`` channels; after the layers ``skips`` (from 0) the network's input is joined to the features."""

    depth: int
    width: int
    skips: list[int]


def unused_skips(skips: list[int], depth: int) -> dict[str, str]:
    """The entry of a config's ``unused()`` for skips that all lie beyond the layers of its deepest network."""
    return {"skips": f"the network has only layers 0 to {depth - 1}"} if skips and min(skips) >= depth else {}


def initialise(net: nn.Module, how: str) -> None:
    """Glorot-uniform ("glorot": Keras, the original NeRF) or He-uniform ("he") weights and zero biases; "torch" leaves PyTorch's own."""
    if how == "torch":
        return
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight) if how == "glorot" else nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)


def perceptron(inputs: int, depth: int, width: int, outputs: int, init: str) -> nn.Sequential:
    """``depth`` ReLU layers of ``width`` and a linear one."""
    sizes = [inputs] + [width] * depth
    hidden = [module for a, b in zip(sizes, sizes[1:], strict=False) for module in (nn.Linear(a, b), nn.ReLU())]
    net = nn.Sequential(*hidden, nn.Linear(sizes[-1], outputs))
    initialise(net, init)
    return net


class NerfMLP(nn.Module):
    """NeRF's network (figure 7, as the original code built it): encoded position (and direction) to density and colour.

    With directions the ReLU ``layers`` lead to a linear density head, a linear ``bottleneck`` (None = as wide as a layer), a layer of
    ``view_width`` channels (None = half as many) that takes the direction too, then colour. Without directions they lead to one linear
    layer for colour and density. 595,844 parameters at depth 8, width 256, 63 + 27 inputs.
    """

    def __init__(
        self,
        position_size: int,
        direction_size: int,
        layers: Layers,
        init: str,
        bottleneck: int | None = None,
        view_width: int | None = None,
    ) -> None:
        super().__init__()
        self.layers, width = layers, layers.width
        self.skips = frozenset(layers.skips)
        sizes = [position_size] + [width + (position_size if i in self.skips else 0) for i in range(layers.depth)]
        self.trunk = nn.ModuleList([nn.Linear(size, width) for size in sizes[:-1]])
        if direction_size:
            self.density = nn.Linear(sizes[-1], 1)
            bottleneck, view_width = bottleneck or width, view_width or width // 2
            self.bottleneck = nn.Linear(sizes[-1], bottleneck)
            self.view = nn.Linear(bottleneck + direction_size, view_width)
            self.rgb = nn.Linear(view_width, 3)
        else:
            self.output = nn.Linear(sizes[-1], 4)
        self.uses_directions = direction_size > 0
        initialise(self, init)

    def activation(self, x: Tensor, first: bool = False) -> Tensor:
        """Activation of every layer but the linear ones; ``first`` marks the layer whose only input is the position."""
        return F.relu(x)

    def trunk_features(self, position: Float[Tensor, "*n position"]) -> list[Tensor]:
        """The trunk's output, as inputs to be joined by the next layer."""
        inputs = [position]
        for i, layer in enumerate(self.trunk):
            assert isinstance(layer, nn.Linear)
            h = self.activation(linear(layer, *inputs), first=i == 0)
            inputs = [position, h] if i in self.skips else [h]
        return inputs

    def forward(
        self, position: Float[Tensor, "rays samples position"], direction: Float[Tensor, "rays direction"] | None
    ) -> tuple[Float[Tensor, "rays samples"], Float[Tensor, "rays samples 3"]]:
        """Raw density and raw colour (before their activations) of encoded samples; one direction per ray."""
        inputs = self.trunk_features(position)
        if not self.uses_directions:
            out = linear(self.output, *inputs)
            return out[..., 3], out[..., :3]
        assert direction is not None
        density = linear(self.density, *inputs)[..., 0]
        view = self.activation(linear(self.view, linear(self.bottleneck, *inputs), direction[:, None]))
        return density, self.rgb(view)

    def raw_density(self, position: Float[Tensor, "*n position"]) -> Float[Tensor, "*n"]:
        """Raw density alone, for normals, meshes and occupancy."""
        inputs = self.trunk_features(position)
        return linear(self.density, *inputs)[..., 0] if self.uses_directions else linear(self.output, *inputs)[..., 3]


class ImageMLP(nn.Module):
    """Encoded pixel coordinates to raw colour: ``depth`` ReLU layers of ``width`` and a linear output."""

    def __init__(self, inputs: int, depth: int, width: int) -> None:
        super().__init__()
        sizes = [inputs] + [width] * depth
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)])
        self.rgb = nn.Linear(width, 3)

    def forward(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n 3"]:
        """Raw colour (before the sigmoid)."""
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.rgb(x)
