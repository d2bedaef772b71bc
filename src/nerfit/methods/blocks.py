"""The fields of a scene's blocks as one (`nerfit.scenes.partition`): a camera sees the fields of the blocks that it stands in or near."""

from typing import Any

import torch
from torch import Tensor, nn

from nerfit.cameras import Rays
from nerfit.errors import RunError
from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.rendering.volume import Rendering, over_background
from nerfit.scenes.partition import Block, Partition
from nerfit.scenes.scene import Scene


class Blended(Method):
    """Trained fields of blocks, whose pictures are blended by the place of the camera; it is judged and drawn, but not trained.

    I = Σ wᵢ Iᵢ as in Block-NeRF (section 4.3.2), with the weights of `Partition.weights`; depth and opacity alike.
    """

    def __init__(self, parts: Partition, blocks: list[Block], fields: list[Method]) -> None:
        super().__init__()
        self.parts, self.blocks = parts, blocks
        self.fields = nn.ModuleList(fields)
        self.precision = fields[0].precision
        self.appearance = fields[0].appearance

    def render(self, batch: Batch) -> Rendering:
        """What the blocks' fields show, blended; each is asked for the rays that begin in or near its block."""
        rays = batch.rays
        assert rays is not None
        weights = self._weights(rays.origins)
        color, depth, opacity = torch.zeros_like(rays.origins), torch.zeros_like(rays.near), torch.zeros_like(rays.near)
        for k, rows in self._asked(weights):
            block, w = self.blocks[k], weights[rows, k]
            seen = self._field(k).render(Batch(rays=self._into(rays[rows], block), background=0.0))
            color[rows] += w[:, None] * seen.rgb
            if seen.depth is not None and seen.opacity is not None:
                depth[rows] += w * seen.depth / block.scale
                opacity[rows] += w * seen.opacity
        return over_background(color, opacity, depth, batch.background)

    def density(self, points: Tensor) -> Tensor:
        """Density per scene unit, blended by the points' place."""
        return self._at(points, None)[0]

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the colour, blended by weight and density."""
        density, rgb = self._at(points, viewdirs)
        return density, rgb / density.clamp(min=1e-10)[:, None]

    def _at(self, points: Tensor, viewdirs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Density at points, and the sum of colours times weight and density."""
        weights = self._weights(points)
        density, rgb = torch.zeros_like(points[:, 0]), torch.zeros_like(points)
        for k, rows in self._asked(weights):
            field, w = self._field(k), weights[rows, k] * self.blocks[k].scale
            inside = self._points(points[rows], self.blocks[k])
            if viewdirs is None:
                density = density.index_add(0, rows, w * field.density(inside))
                continue
            sigma, color = field.radiance(inside, viewdirs[rows])
            density, rgb = density.index_add(0, rows, w * sigma), rgb.index_add(0, rows, (w * sigma)[:, None] * color)
        return density, rgb

    def _weights(self, points: Tensor) -> Tensor:
        return self.parts.weights(points.detach().cpu()).to(points)

    def _asked(self, weights: Tensor) -> list[tuple[int, Tensor]]:
        """The blocks that count anywhere, and where they do."""
        rows = [(k, (weights[:, k] > 0).nonzero()[:, 0]) for k in range(weights.shape[1])]
        return [(k, found) for k, found in rows if len(found)]

    def _field(self, k: int) -> Method:
        field: Any = self.fields[k]
        field.precision = self.precision
        return field

    def _points(self, points: Tensor, block: Block) -> Tensor:
        move = block.to_block.to(points)
        return points @ move[:3, :3].T + move[:3, 3]

    def _into(self, rays: Rays, block: Block) -> Rays:
        """Rays of the scene in a block's coordinates, where distances are longer by its scale."""
        ends = rays.near * block.scale, rays.far * block.scale
        return Rays(self._points(rays.origins, block), rays.directions, rays.viewdirs, *ends, rays.pixel_radius, rays.image_index)

    def floats_per_ray(self) -> int:
        """As many as a block's field keeps."""
        return self._field(0).floats_per_ray()

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        """Raises RunError."""
        raise RunError(_APART)

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """Raises RunError."""
        raise RunError(_APART)


_APART = "a scene in blocks is trained block by block: nerfit blocks."
