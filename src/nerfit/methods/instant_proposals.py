"""The field of `instant` in all of contracted space, sampled where small hash grids propose (nerfacto, Tancik et al. 2023)."""

import contextlib
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nerfit.cameras import Rays
from nerfit.errors import ConfigError, require_min
from nerfit.fields.hash_field import HashDensity, HashField
from nerfit.kernels.dispatch import kernels_take_threads
from nerfit.kernels.intervals import render_intervals
from nerfit.kernels.layouts import Cutoffs, FieldShape, GridLayout, RaySet, contract
from nerfit.kernels.rendering import Rendered
from nerfit.kernels.warm_up import warm_up
from nerfit.methods.base import CaptureConfig, Method
from nerfit.methods.batch import Batch
from nerfit.methods.pixel_batches import random_pixels, rays_for_samples
from nerfit.rendering.distortion import distortion_packed
from nerfit.rendering.losses import interlevel
from nerfit.rendering.volume import Rendering, over_background, render_weights
from nerfit.sampling.histograms import bias
from nerfit.sampling.proposals import Intervals, Ladder
from nerfit.sampling.space import box_of, finest_cells
from nerfit.scenes.scene import Scene


@dataclass
class InstantProposalsConfig(CaptureConfig):
    """The field, the proposals and the batch."""

    levels: int = 8
    """Levels of the field's hash grid, of 4 features each."""
    log2_entries: int = 19
    """Entries per level at most, as a power of two."""
    coarsest: int = 16
    """Cells of the coarsest level of all grids, along all of contracted space."""
    finest: int | None = None
    """Cells of the field's finest level along the unit box, the middle half of contracted space; none = 5 for 4 pixels (`finest_cells`)."""
    width: int = 64
    """Channels of the field's networks."""
    proposal_levels: int = 5
    """Levels of a proposal's hash grid."""
    proposal_log2_entries: int = 17
    """Entries per level of a proposal's grid at most, as a power of two."""
    proposal_finest: list[int] = field(default_factory=lambda: [128])
    """Cells of each proposal's finest level along the unit box; as many proposals."""
    proposal_samples: list[int] = field(default_factory=lambda: [64])
    """Intervals per ray of each proposal."""
    intervals: int = 12
    """Intervals per ray of the field."""
    power: float = -1.5
    """Power of the ladder of distances: 1 = even steps, 0 = even in their logarithm, -1 = in their inverse, beyond the first few."""
    multiple: float = 2.0
    """Distances are multiplied by this before; it says what is near."""
    padding: float = 0.01
    """Weight that a proposal spreads evenly over its intervals, so that none is forgotten."""
    anneal: float = 100.0
    """How fast proposals are believed, from flat at the first step on; 0 = at once."""
    trained_rays: float = 0.25
    """Share of a step's rays that the proposals learn from."""
    proposal_lr: float = 1.0
    """Factor of the proposals' learning rate."""
    samples: int = 16_384
    """Visible samples of a step; the number of rays follows."""
    min_weight: float = 2e-3
    """Intervals of less weight get no colour and no gradient."""
    early_stop: float = 1e-3
    """A ray ends where its transmittance is less."""
    near_falloff: float = 0.3
    """Distance from a camera within which gradients shrink with its square, in scene units; 0 = none do."""
    huber: float = 0.1
    """Colour error from which the loss grows linearly."""
    distortion: float = 1e-3
    """Factor of the distortion loss, which wants one surface on each ray."""
    table_decay: float = 0.0
    """Factor of the penalty on each of the field's grid levels' mean of squares."""

    def unused(self) -> dict[str, str]:
        """Keys that have no effect beside the others, and why."""
        return {"multiple": "model.power is 1"} if self.power == 1 else {}


class InstantProposals(Method):
    """A fused hash-grid field of all of space, sampled where cheap densities propose, which learn from its weights."""

    Config = InstantProposalsConfig
    default_steps: ClassVar[int] = 20_000
    default_recipe: ClassVar[str | None] = "instant-unbounded"
    batch_key: ClassVar[str] = "samples"

    ray_count: Tensor
    origin: Tensor

    def __init__(self, config: InstantProposalsConfig, scene: Scene) -> None:
        super().__init__()
        self.config = c = config
        require_min(
            "model.",
            c,
            intervals=2,
            samples=64,
            padding=1e-6,
            finest=1,
            anneal=0,
            trained_rays=0.01,
            proposal_lr=0,
            distortion=0,
            near_falloff=0,
        )
        if len(c.proposal_finest) != len(c.proposal_samples) or min(c.proposal_samples, default=0) < 2:
            raise ConfigError("model.proposal_finest and model.proposal_samples must name as many proposals, each of 2 samples at least.")
        if c.power > 1 or c.multiple <= 0 or c.trained_rays > 1:
            raise ConfigError("model.power and model.trained_rays must be at most 1, and model.multiple above 0.")
        if scene.ndc:
            raise ConfigError("instant-unbounded samples far distances, which NDC has not: add --scene.no-ndc, or train instant.")
        half, center = box_of(scene)
        self.side, self.ladder = 2 * half, Ladder(c.power, c.multiple)
        self.register_buffer("origin", center - half)
        cells = c.finest or finest_cells(scene, center, half)
        self.field = HashField(FieldShape(GridLayout(c.levels, c.log2_entries, c.coarsest, 2 * cells), c.width))
        grids = [GridLayout(c.proposal_levels, c.proposal_log2_entries, c.coarsest, 2 * finest) for finest in c.proposal_finest]
        self.proposals = nn.ModuleList(HashDensity(grid) for grid in grids)
        self.register_buffer("ray_count", torch.tensor(256))
        self.set_capture(c, scene)
        self.kept = 0
        """Samples of the latest step that got a colour."""

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        """Random pixels of all images, as many as give ``samples`` visible samples."""
        self.kept = 0
        return random_pixels(self.pixel_source(scene, step, generator), int(self.ray_count), empty=1.0)

    def session(self) -> contextlib.AbstractContextManager[Any]:
        """Compile the kernels and give them the threads."""
        warm_up(self.device, intervals=True)
        return kernels_take_threads(self.device)

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples that got a colour."""
        return (self.kept,)

    @counts.setter
    def counts(self, sums: tuple[int, ...]) -> None:
        (self.kept,) = sums

    def after_step(self, step: int) -> None:
        """Change the number of rays towards the wanted number of samples."""
        self.ray_count.fill_(rays_for_samples(self.config.samples, int(self.ray_count), self.kept))

    def render(self, batch: Batch) -> Rendering:
        """Render the field's few intervals; of training rays also the losses on the histograms of all levels."""
        warm_up(self.device, intervals=True)
        assert batch.rays is not None
        rays, training = self._to_grid(batch.rays), batch.generator is not None
        levels, now = self._propose(rays, batch)
        rendered, weights = self._render(rays, now, training)
        self.kept += rendered.kept
        rendering = over_background(rendered.color, rendered.opacity, rendered.depth, batch.background)
        if training:
            n = self._learners(batch)
            bounds = torch.stack([interlevel(now.s[:n], weights[:n], edges.s[:n], proposed[:n]) for edges, proposed in levels])
            assert (samples := rendered.samples) is not None and rendered.weights is not None
            s0, s1 = (t / (t + 0.5 * self.side) for t in (samples.t_starts, samples.t_ends))
            distortion = distortion_packed(rendered.weights, s0, s1, samples.offsets)
            rendering.extras = {"interlevel": bounds.sum(0), "distortion": distortion}
        return rendering

    def _render(self, rays: RaySet, now: Intervals, packed: bool) -> tuple[Rendered, Tensor]:
        """The field's rendering in intervals, and their weights."""
        c, network = self.config, self.field.network(self.half_precision)
        return render_intervals(rays, now.t, network, Cutoffs(c.min_weight, c.early_stop), c.near_falloff, packed)

    def _learners(self, batch: Batch) -> int:
        """How many rays, the first ones of the whole batch, the proposals learn from."""
        if batch.generator is None:
            return 0
        whole = math.ceil(self.config.trained_rays * batch.whole)
        return whole if batch.part is None else int((batch.part.indices < whole).sum())

    def _to_grid(self, rays: Rays) -> RaySet:
        """Rays in cascade coordinates, with the same distances."""
        origins, directions = (rays.origins - self.origin) / self.side, rays.directions / self.side
        return RaySet(origins, directions, rays.viewdirs, rays.near, rays.far, torch.zeros_like(rays.near))

    def _propose(self, rays: RaySet, batch: Batch) -> tuple[list[tuple[Intervals, Tensor]], Intervals]:
        """Each proposal's intervals and their weights, those of learners with gradients, and the intervals of the field."""
        c, n = self.config, self._learners(batch)
        norm, ends = rays.directions.norm(dim=-1), self.ladder.ends(rays.near, rays.far)
        exponent = bias(self.progress, c.anneal) if c.anneal else 1.0
        levels: list[tuple[Intervals, Tensor]] = []
        now = self.ladder.even(*ends, c.proposal_samples[0], self._jitter(batch))
        for proposal, samples in zip(self.proposals, (*c.proposal_samples[1:], c.intervals), strict=True):
            learning = proposal(rays[:n], now.t[:n], self.half_precision)
            with torch.no_grad():
                density = torch.cat([learning, proposal(rays[n:], now.t[n:], self.half_precision)])
            padding = c.padding / density.shape[1]
            weights, following = self.ladder.draw(*ends, now, density, norm, samples, self._jitter(batch), exponent, padding)
            learned = render_weights(learning, now.t[:n].diff() * norm[:n, None])
            levels.append((now, torch.cat([learned, weights[n:]])))
            now = following
        return levels, now

    def _jitter(self, batch: Batch) -> Tensor:
        """By what share of a step each ray's samples move, together."""
        moved = batch.uniform(len(batch), 1)
        return torch.full((len(batch), 1), 0.5, device=self.device) if moved is None else moved

    def histograms(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Of the proposals and of the field, on the scale that samples are spaced on."""
        assert batch.rays is not None
        rays = self._to_grid(batch.rays)
        levels, now = self._propose(rays, batch)
        return [(edges.s, weights) for edges, weights in levels] + [(now.s, self._render(rays, now, False)[1])]

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """Huber loss of the colours, proposals above the field's weights, and one surface on each ray."""
        assert batch.target is not None
        rgb = F.huber_loss(rendering.rgb, batch.target, delta=self.config.huber)
        interlevel, distortion = rendering.extras["interlevel"], rendering.extras["distortion"].mean()
        if batch.part is None:
            interlevel = interlevel.mean()
        else:  # the loop counts a part's losses by its share of the rays, and these by that of the learners
            interlevel = interlevel.sum() / (math.ceil(self.config.trained_rays * batch.whole) * len(batch) / batch.whole)
        return {"rgb": rgb, "interlevel": interlevel, "distortion": self.config.distortion * distortion}

    def scalars(self, rendering: Rendering, batch: Batch) -> dict[str, float]:
        """Samples per ray that got a colour."""
        return {"visible_per_ray": self.kept / max(len(batch), 1)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The tables, most of which have no gradient in a step, and the networks."""
        c, grid = self.config, self.field.shape.grid
        decay = {"weight_decay": 2 * c.table_decay, "levels": (4 * grid.offsets).tolist()}
        groups: list[dict[str, Any]] = [{"params": [self.field.table], "sparse": True} | decay, {"params": [self.field.weights]}]
        for proposal in self.proposals:
            groups.append({"params": [proposal.table], "sparse": True, "lr_scale": c.proposal_lr})
            groups.append({"params": [proposal.weights], "lr_scale": c.proposal_lr})
        return groups

    def _in_cube(self, points: Tensor) -> Tensor:
        return contract((points - self.origin) / self.side, 2)

    def density(self, points: Tensor) -> Tensor:
        """Density per scene unit."""
        return self.field.density(self._in_cube(points), self.half_precision) / self.side

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        """Density per scene unit, and colour."""
        density, rgb = self.field(self._in_cube(points), viewdirs, self.half_precision)
        return density / self.side, rgb

    def samples_per_ray(self) -> int:
        """Densities evaluated, of all levels."""
        return sum(self.config.proposal_samples) + self.config.intervals

    def floats_per_ray(self) -> int:
        """What the field keeps of each interval, and the edges of all levels."""
        return self.config.intervals * self.field.shape.grid.depth + 8 * self.samples_per_ray()
