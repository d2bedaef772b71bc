"""A field that is known exactly, in place of a trained one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.rendering.volume import Rendering, composite_samples, intervals, render_weights
from nerfit.sampling.along_rays import stratified
from nerfit.scenes.scene import Scene

CENTER = torch.tensor([0.1, -0.2, 0.15])
RADIUS = 0.8


@dataclass
class NoConfig:
    """Nothing to choose."""


class Ball(Method):
    """An opaque ball, red where x is larger than at its middle and else green; blue grows with the view direction's z."""

    Config = NoConfig

    def __init__(self, sharpness: float = 200.0) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.nothing = nn.Parameter(torch.zeros(1))

    def density(self, points: Tensor) -> Tensor:
        return 0.5 * self.sharpness * ((RADIUS - (points - CENTER).norm(dim=-1)) * self.sharpness).clamp(-1, 1).add(1)

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        right = (points[:, 0] > CENTER[0]).float()
        return self.density(points), torch.stack([right, 1 - right, 0.5 + 0.4 * viewdirs[:, 2]], -1)

    @torch.no_grad()
    def render(self, batch: Batch) -> Rendering:
        rays = batch.rays
        assert rays is not None
        t = stratified(rays.near, rays.far, 128, None, False)
        points = rays.origins[:, None] + t[..., None] * rays.directions[:, None]
        density, rgb = self.radiance(points.reshape(-1, 3), rays.viewdirs.repeat_interleave(128, 0))
        delta = intervals(t, rays.directions.norm(dim=-1), rays.far)
        weights = render_weights(density.reshape(t.shape), delta)
        return composite_samples(weights, rgb.reshape(*t.shape, 3), t, batch.background)

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        raise NotImplementedError

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Any]:
        raise NotImplementedError
