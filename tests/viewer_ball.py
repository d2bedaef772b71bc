"""A ball that the viewer shows in place of a trained field."""

import math

import numpy as np
import torch
from torch import Tensor

from conftest import around
from nerfit.cameras import Cameras
from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.rendering.volume import Rendering
from nerfit.scenes.scene import Scene
from nerfit.viewer.drawing import Wish, draw


class Ball(Method):
    """An opaque ball of radius 1 at the origin, coloured by its normals; ``cost`` is called for each chunk of rays."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        self.chunks: list[int] = []

    def render(self, batch: Batch) -> Rendering:
        rays = batch.rays
        assert rays is not None
        self.chunks.append(len(rays))
        a = rays.directions.square().sum(-1)
        b, c = (rays.origins * rays.directions).sum(-1), rays.origins.square().sum(-1) - 1
        root = (b * b - a * c).clamp(min=0).sqrt()
        t = torch.where((-b - root) / a > rays.near, (-b - root) / a, (-b + root) / a)
        solid = ((b * b > a * c) & (t > rays.near) & (t < rays.far)).float()
        normals = rays.origins + t[:, None] * rays.directions
        return Rendering((normals * 0.5 + 0.5) * solid[:, None] + batch.background * (1 - solid)[:, None], t * solid, solid)

    def density(self, points: Tensor) -> Tensor:
        return torch.sigmoid(100 * (1 - points.norm(dim=-1)))

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        raise NotImplementedError

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        raise NotImplementedError


def ball_scene(size: int = 24, views: int = 5) -> Scene:
    """Views of the ball, 4 away, drawn by itself."""
    c2w = torch.tensor(np.stack([around(2 * math.pi * i / views, 0.3) for i in range(views)]))
    scene = Scene("ball", "test", Cameras.pinhole(c2w, 1.4 * size, size, size - 4), 2.0, 6.0, {"train": list(range(views))})
    frames = [draw(Ball(), scene, scene.cameras[view], Wish(), 100) for view in range(views)]
    scene.pixels = torch.cat([torch.from_numpy(frame.image).reshape(-1, 3) for frame in frames if frame])
    return scene
