"""Fitting one picture with a coordinate network: the first lesson (Tancik et al. 2020, Fourier features)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.errors import require_min
from nerfit.fields.frequency import encoded_size, frequency_encoding
from nerfit.fields.mlp import ImageMLP
from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.rendering.volume import Rendering
from nerfit.sampling.shuffle import permute
from nerfit.scenes.scene import Scene, composite


@dataclass
class ImageConfig:
    """A small ReLU network from encoded pixel coordinates to colour."""

    depth: int = 4
    """Hidden layers."""
    width: int = 128
    """Channels per layer."""
    frequencies: int = 10
    """Octaves of the coordinate encoding; 0 = raw coordinates (and a blurred picture)."""
    pixels: int = 8192
    """Pixels per step, drawn without replacement."""


class Image(Method):
    """uv in [0, 1]² (pixel centres of the first and last column and row at 0 and 1) to rgb of the first training view."""

    Config = ImageConfig
    default_steps = 10_000
    batch_key = "pixels"
    scene_formats = ("image",)

    def __init__(self, config: ImageConfig, scene: Scene) -> None:
        super().__init__()
        self.config = config
        require_min("model.", config, depth=1, width=1, frequencies=0, pixels=1)
        self.net = ImageMLP(encoded_size(2, config.frequencies), config.depth, config.width)

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        """Random pixels of the picture."""
        view = scene.splits["train"][0]
        width, height = int(scene.cameras.width[view]), int(scene.cameras.height[view])
        count = min(self.config.pixels, width * height)
        pixels = permute(torch.arange(count), width * height, generator.initial_seed())
        batch = self.view_batch(scene, scene.cameras, view, pixels)
        x, y = pixels % width, torch.div(pixels, width, rounding_mode="floor")
        colors = scene.colors(torch.full_like(pixels, view), x, y).to(self.device)
        batch.target, batch.generator = composite(colors, batch.background), generator
        return batch

    def view_batch(self, scene: Scene, cameras: Cameras, view: int, pixels: Tensor, look: Cameras | None = None) -> Batch:
        """Coordinates of pixels, at any size of the picture."""
        width, height = int(cameras.width[view]), int(cameras.height[view])
        x, y = pixels % width, torch.div(pixels, width, rounding_mode="floor")
        uv = torch.stack([x / max(width - 1, 1), y / max(height - 1, 1)], -1)
        return Batch(coordinates=uv.to(self.device), background=scene.backdrop.to(self.device))

    def render(self, batch: Batch) -> Rendering:
        """The picture's colours at the batch's coordinates."""
        assert batch.coordinates is not None
        encoded = frequency_encoding(batch.coordinates, self.config.frequencies)
        with self.autocast():
            raw = self.net(encoded)
        return Rendering(torch.sigmoid(raw.float()))

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """Squared colour error."""
        assert batch.target is not None
        return {"rgb": F.mse_loss(rendering.rgb, batch.target)}

    def floats_per_ray(self) -> int:
        """Activations of the network."""
        return 2 * encoded_size(2, self.config.frequencies) + (self.config.depth + 1) * self.config.width
