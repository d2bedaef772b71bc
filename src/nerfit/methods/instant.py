"""Instant neural graphics primitives (Müller et al. 2022): a hash-grid field, sampled where an occupancy grid says matter is.

Positions stand in one of three spaces. Scene units are those of the cameras. Cascade coordinates have the box as [0, 1]³ and larger cubes
(cascades) around it (`OccupiedSpace.to_grid`, `to_cascades`). The field's cube is [0, 1]³ too, and all the field knows: with one cascade it
is the box, with several all of space, contracted (`contract`), with the box as its middle half.
"""

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nerfit.cameras.learned import CameraConfig, learned_cameras
from nerfit.errors import require_min
from nerfit.fields.frequency import opened_levels
from nerfit.fields.hash_field import HashField
from nerfit.kernels.dispatch import kernels_take_threads
from nerfit.kernels.layouts import FEATURES, Cutoffs, FieldShape, GridLayout, March, contract
from nerfit.kernels.rendering import render_rays
from nerfit.kernels.warm_up import warm_up
from nerfit.methods.base import CaptureConfig, Method
from nerfit.methods.batch import Batch
from nerfit.methods.pixel_batches import random_pixels, rays_for_samples
from nerfit.rendering.distortion import distortion_packed
from nerfit.rendering.volume import Rendering, over_background
from nerfit.sampling.space import OccupiedSpace, finest_cells
from nerfit.scenes.scene import Scene


@dataclass
class InstantConfig(CaptureConfig):
    """The field, the march and the batch."""

    levels: int = 8
    """Levels of the hash grid, of 4 features each."""
    log2_entries: int | None = None
    """Entries per level at most, as a power of two; none = 19, or 17 of a run with little time (`sized`)."""
    coarsest: int = 16
    """Cells of the coarsest level along the field's cube: the box, or of an unbounded scene all of contracted space."""
    finest: int | None = None
    """Cells of the finest level along the box (the unit box of an unbounded scene); none = 5 for 4 pixels (`finest_cells`)."""
    width: int | None = None
    """Channels of the networks; none = 64, or 32 of a run with little time (`sized`)."""
    box: float | None = None
    """Half the side of the box, in scene units; none = from near and far (of an unbounded scene: 1, and cascades around it)."""
    cascades: int | None = None
    """Occupancy cubes, each twice as large; none = 1 for bounded scenes, else 5: the last has 16 times the box's side."""
    march_steps: int = 1200
    """March steps along the box's diagonal, at the end of training."""
    first_march_steps: int = 400
    """The same at its beginning; in between the number is interpolated geometrically over the budget."""
    cone_angle: float | None = None
    """A step at distance t is at least t times this; 0 = even steps; none = 0 in one box, 1/256 with cascades."""
    samples: int = 16_384
    """Visible samples of a step; the number of rays follows."""
    min_weight: float = 2e-3
    """Samples of less rendering weight get no colour and no gradient."""
    early_stop: float = 1e-3
    """Transmittance below which a ray stops."""
    near_falloff: float | None = None
    """Depth before a camera, in scene units, within which gradients shrink as its square; none = 0, with cascades 0.15 box sides."""
    empty_pixels: float = 0.2
    """Share of the fully transparent pixels that are trained on."""
    huber: float = 0.1
    """Colour error from which the loss grows linearly."""
    distortion: float | None = None
    """Factor of the distortion loss, which wants one surface on each ray; none = 0, of unbounded scenes 0.001."""
    weight_decay: float = 0.0
    """L2 penalty on the networks' weights."""
    table_decay: float = 0.0
    """Factor of the penalty on each grid level's mean of squares."""
    occupancy_every: int = 16
    """Steps between updates of the occupancy grid."""
    occupancy_probes: int = 65_536
    """Cells updated at a time: this times (cascades + 1) / 2."""
    occupancy_threshold: float = 0.01
    """Optical thickness of a step from which a cell counts as occupied."""
    camera: CameraConfig = dataclasses.field(default_factory=CameraConfig)
    """Learning the cameras too."""


FEW_SECONDS = 240.0
"""Seconds of one core without matrix units within which half the width and a quarter of the entries get further than full sizes."""


class Instant(Method):
    """A fused hash-grid field, trained on the samples that can be seen."""

    Config = InstantConfig
    default_steps: ClassVar[int] = 20_000
    default_recipe: ClassVar[str | None] = "instant"
    batch_key: ClassVar[str] = "samples"

    ray_count: Tensor

    def __init__(self, config: InstantConfig, scene: Scene) -> None:
        super().__init__()
        self.config = c = self.sized(config)  # a run's plan has chosen sizes for its time already
        assert c.width is not None and c.log2_entries is not None
        require_min(
            "model.", c, samples=64, march_steps=16, first_march_steps=16, occupancy_every=1, occupancy_probes=64, cascades=1, finest=1
        )
        self.space = OccupiedSpace(scene, c.march_steps, c.box, c.cascades, c.cone_angle, c.occupancy_threshold)
        contracted = self.space.cascades > 1
        finest = c.finest or finest_cells(scene, self.space.origin + 0.5 * self.space.side, 0.5 * self.space.side)
        finest = 2 * finest if contracted else finest  # the unit box is the middle half of the field's cube then
        self.field = HashField(FieldShape(GridLayout(c.levels, c.log2_entries, c.coarsest, finest), c.width))
        self.cameras = learned_cameras(c.camera, scene.cameras, scene.splits["train"], scene.ndc, boxed=True)
        self.near_falloff = (0.15 * self.space.side if contracted else 0.0) if c.near_falloff is None else c.near_falloff
        self.distortion = (1e-3 if contracted else 0.0) if c.distortion is None else c.distortion
        self.near, self.far = scene.near, scene.far
        self.register_buffer("ray_count", torch.tensor(256))  # of the first step; `after_step` adapts it, checkpoints keep it
        self.set_capture(c, scene)

    @classmethod
    def sized(cls, config: InstantConfig, core_seconds: float | None = None) -> InstantConfig:
        """Sizes of the field that suit the time."""
        width, log2_entries = (32, 17) if core_seconds is not None and core_seconds < FEW_SECONDS else (64, 19)
        return dataclasses.replace(
            config,
            width=width if config.width is None else config.width,
            log2_entries=log2_entries if config.log2_entries is None else config.log2_entries,
        )

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        """Random pixels of all images, fewer of the empty ones; as many as give ``samples`` visible samples."""
        return random_pixels(self.pixel_source(scene, step, generator), int(self.ray_count), self.config.empty_pixels)

    def session(self) -> contextlib.AbstractContextManager[Any]:
        """Compile the kernels, and give them PyTorch's threads while the training lasts."""
        warm_up(self.device)
        return kernels_take_threads(self.device)

    @property
    def step_length(self) -> float:
        """Length of a march step in sides of the box: long while the field is young, then short enough for what is thin."""
        c = self.config
        return math.sqrt(3) / (c.first_march_steps ** (1 - self.progress) * c.march_steps**self.progress)

    def before_step(self, step: int) -> None:
        """Set the march step, and update some cells of the occupancy grid from time to time."""
        self.space.step_length = self.step_length
        self.space.update(step, self._density, self.seed, self.config.occupancy_every, self.config.occupancy_probes)

    @property
    def counts(self) -> tuple[int, ...]:
        """Rays, densities evaluated, samples kept in this step; devices that share a batch replace them by their sums."""
        return self.space.counts

    @counts.setter
    def counts(self, sums: tuple[int, ...]) -> None:
        self.space.counts = sums

    def after_step(self, step: int) -> None:
        """Adapt the number of rays to the wanted number of samples (`rays_for_samples` limits the change)."""
        rays, _, kept = self.counts
        self.ray_count.fill_(rays_for_samples(self.config.samples, rays, kept))

    def _density(self, x: Tensor) -> Tensor:
        """Density per side of the unit box, at cascade coordinates."""
        return self.field.density(contract(x, self.space.cascades), self.half_precision, self._opened())

    def _opened(self) -> Tensor | None:
        """Coarse-to-fine (BARF): how far each grid level is open; None = all are."""
        return opened_levels(self.config.levels, self.config.camera.opened(self.progress))

    def render(self, batch: Batch) -> Rendering:
        """March to the visible samples, evaluate the field there, composite."""
        warm_up(self.device)
        c, rays, space = self.config, batch.rays, self.space
        assert rays is not None
        training = batch.generator is not None
        march = March(space.grid.occupancy(), self.step_length, space.cone_angle)
        network = self.field.network(self.half_precision, self._opened())
        cutoffs = Cutoffs(c.min_weight, c.early_stop)
        grid_rays = space.to_grid(rays, jitter=batch.uniform(len(rays)))
        keep_samples = training and self.distortion > 0
        rendered = render_rays(grid_rays, march, network, cutoffs, self.near_falloff, keep_samples)
        space.count(len(rays), rendered.evaluated, rendered.kept)
        rendering = over_background(rendered.color, rendered.opacity, rendered.depth, batch.background)
        if (samples := rendered.samples) is not None and rendered.weights is not None:
            s0, s1 = self._along(samples.t_starts), self._along(samples.t_ends)
            rendering.extras["distortion"] = distortion_packed(rendered.weights, s0, s1, samples.offsets)
        return rendering

    def _along(self, t: Tensor) -> Tensor:
        """Distances t as shares of the way from near to far; with cascades t/(t + half a box side), which is 1 at infinity."""
        return t / (t + 0.5 * self.space.side) if self.space.cascades > 1 else (t - self.near) / (self.far - self.near)

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """Huber loss of the colours, and the distortion loss where it has a factor."""
        assert batch.target is not None
        losses = {"rgb": F.huber_loss(rendering.rgb, batch.target, delta=self.config.huber)}
        if "distortion" in rendering.extras:
            losses["distortion"] = self.distortion * rendering.extras["distortion"].mean()
        return losses

    def scalars(self, rendering: Rendering, batch: Batch) -> dict[str, float]:
        """Samples per ray, evaluated and kept, and the share of space that is occupied."""
        return self.space.scalars()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The table, most of which has no gradient in a step, and the networks, for the optimiser `SparseAdam`.

        ``levels`` are the numbers in the flat table at which each level begins: its penalty is on each level's mean of squares, whose
        derivative has the factor 2.
        """
        c, levels = self.config, (FEATURES * self.field.shape.grid.offsets).tolist()
        return [
            {"params": [self.field.table], "sparse": True, "weight_decay": 2 * c.table_decay, "levels": levels},
            {"params": [self.field.weights], "weight_decay": c.weight_decay},
        ]

    def density(self, points: Tensor) -> Tensor:
        """Density per scene unit; 0 outside the largest cascade."""
        x, inside = self.space.to_cascades(points)
        return torch.where(inside, self._density(x) / self.space.side, 0.0)

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        """Density per scene unit, 0 outside the largest cascade, and colour, which means nothing there."""
        x, inside = self.space.to_cascades(points)
        density, rgb = self.field(contract(x, self.space.cascades), viewdirs, self.half_precision, self._opened())
        return torch.where(inside, density / self.space.side, 0.0), rgb

    def samples_per_ray(self) -> int:
        """Densities evaluated per ray in the latest step."""
        return round(self.space.scalars()["samples_per_ray"])

    def floats_per_ray(self) -> int:
        """Little, by estimate: a ray has few visible samples, and the kernels keep what their gradients need."""
        return 1024
