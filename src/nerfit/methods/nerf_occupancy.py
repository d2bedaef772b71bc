"""NeRF's field with instant-ngp's sampling: one network, evaluated where an occupancy grid finds matter."""

import contextlib
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from nerfit.cameras import Rays
from nerfit.cameras.learned import CameraConfig, learned_cameras
from nerfit.errors import require_min
from nerfit.fields.nerf_field import NerfField, NerfFieldConfig
from nerfit.kernels.layouts import Cutoffs, Samples
from nerfit.kernels.marching import keep_visible
from nerfit.kernels.warm_up import warm_up
from nerfit.methods.base import CaptureConfig, Method
from nerfit.methods.batch import Batch
from nerfit.methods.pixel_batches import PixelBatchConfig, colour_error, pixel_batch
from nerfit.rendering.volume import Rendering, render_packed
from nerfit.sampling.space import OccupiedSpace
from nerfit.scenes.scene import Scene

CUTOFFS = Cutoffs(min_weight=1e-4, early_stop=1e-3)
"""Samples that get a colour and a gradient."""
WARMUP_DECAY = 0.6
"""Share of the grid's memory that the first updates keep: they are few, since the network is slow."""
_PIECE = 1 << 16
"""Samples that go through the network at a time."""


@dataclass
class NerfOccupancyConfig(PixelBatchConfig, NerfFieldConfig, CaptureConfig):
    """The network, the march and the batch."""

    march_steps: int = 512
    """March steps along the diagonal of the occupancy grid's box."""
    jitter: bool = True
    """Jitter samples while training."""
    camera: CameraConfig = field(default_factory=CameraConfig)
    """Learning the cameras too."""

    def unused(self) -> dict[str, str]:
        """Keys that have no effect beside the others, and why."""
        return self.unused_of_pixels() | self.unused_of_field(self.depth)


class NerfOccupancy(Method):
    """NeRF's network, evaluated at the samples that an occupancy grid leaves: no coarse network, empty space skipped."""

    Config = NerfOccupancyConfig
    default_recipe: ClassVar[str | None] = "nerf-occupancy"

    def __init__(self, config: NerfOccupancyConfig, scene: Scene) -> None:
        super().__init__()
        config.check_field()
        config.check_pixels()
        require_min("model.", config, march_steps=16)
        self.config = c = config
        self.cameras = learned_cameras(c.camera, scene.cameras, scene.splits["train"], scene.ndc, boxed=True)
        self.mean_area = c.mean_area(scene)
        self.field = NerfField(c, c.depth, c.width)
        self.space = OccupiedSpace(scene, c.march_steps, warmup_decay=WARMUP_DECAY)
        self.set_capture(c, scene)

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        """Rays of one random image, or of all, from the central crop at first."""
        c = self.config
        return pixel_batch(self.pixel_source(scene, step, generator), c.rays, c.batching, c.crop(step))

    def session(self) -> contextlib.AbstractContextManager[Any]:
        """Compile the kernels of the march."""
        warm_up(self.device)
        return super().session()

    def before_step(self, step: int) -> None:
        """Update some cells of the occupancy grid every few steps."""
        space = self.space
        space.update(step, lambda x: space.side * self._densities(space.to_scene(x)), self.seed)

    def render(self, batch: Batch) -> Rendering:
        """March through occupied space; colours and gradients at the visible samples alone."""
        rays = batch.rays
        assert rays is not None
        warm_up(self.device)
        jitter = batch.uniform(len(rays)) if self.config.jitter else None
        marched = self.space.march(rays, jitter, None if batch.generator is None else self._most_samples())
        norm = rays.directions.norm(dim=-1)
        with torch.no_grad():
            samples = keep_visible(marched, self._densities(_middles(rays, marched)), norm, CUTOFFS)
        self.space.count(len(rays), samples.evaluated, len(samples))
        points, viewdirs = _middles(rays, samples), rays.viewdirs[samples.ray_indices.long()]
        normal = None if (g := batch.generator) is None else lambda *shape: torch.randn(shape, generator=g, device=g.device)
        with self.autocast():
            pieces = zip(points.split(_PIECE), viewdirs.split(_PIECE), strict=True)
            evaluated = [self.field(x[:, None], d, self._opened(), normal) for x, d in pieces]
        density, rgb = (torch.cat(parts)[:, 0] for parts in zip(*evaluated, strict=True))
        return render_packed(density, rgb, samples, norm, batch.background, CUTOFFS.early_stop)

    def _densities(self, points: Tensor) -> Tensor:
        """Densities in pieces, for a young field has many samples."""
        with self.autocast():
            return torch.cat([self.field.density(x, self._opened()) for x in points.split(_PIECE)])

    def _opened(self) -> float:
        """Open share of the encodings' octaves: less than 1 at first where cameras are learned (BARF)."""
        return self.config.camera.opened(self.progress)

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """Squared colour error."""
        return {"rgb": colour_error(rendering.rgb, batch, self.mean_area)}

    @property
    def counts(self) -> tuple[int, ...]:
        """Rays and samples of the march."""
        return self.space.counts

    @counts.setter
    def counts(self, sums: tuple[int, ...]) -> None:
        self.space.counts = sums

    def scalars(self, rendering: Rendering, batch: Batch) -> dict[str, float]:
        """Samples per ray, evaluated and visible, and the occupied share of space."""
        return self.space.scalars()

    def density(self, points: Tensor) -> Tensor:
        """Density at points (in NDC for forward-facing scenes), 0 outside the grid."""
        return torch.where(self.space.to_cascades(points)[1], self._densities(points), 0.0)

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        """The same density, and colour."""
        with self.autocast():
            density, rgb = self.field(points[:, None], viewdirs, self._opened())
        return torch.where(self.space.to_cascades(points)[1], density[:, 0], 0.0), rgb[:, 0]

    def _most_samples(self) -> int:
        """Samples of a training ray on average, at most."""
        return self.config.march_steps // 4

    def samples_per_ray(self) -> int:
        """Samples of a ray in the latest step."""
        return round(self.space.scalars()["samples_per_ray"])

    def floats_per_ray(self) -> int:
        """Activations of the most samples that a training ray has."""
        return self._most_samples() * self.field.floats_per_sample()


def _middles(rays: Rays, samples: Samples) -> Tensor:
    """Points of the scene in the middle of samples."""
    ray = samples.ray_indices.long()
    return rays.origins[ray] + samples.middles[:, None] * rays.directions[ray]
