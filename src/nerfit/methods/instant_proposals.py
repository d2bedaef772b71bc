"""A fused hash-grid field of all of contracted space, sampled where small hash grids propose (nerfacto; Tancik et al. 2023)."""

import contextlib
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nerfit.errors import ConfigError
from nerfit.fields.hash_field import HashDensity, HashField
from nerfit.kernels.dispatch import kernels_take_threads, warm_up
from nerfit.kernels.field import FieldShape
from nerfit.kernels.hash_grid import GridLayout
from nerfit.kernels.intervals import render_intervals
from nerfit.kernels.marching import contract
from nerfit.methods.base import Batch, Method, require_at_least
from nerfit.methods.pixels import random_pixels
from nerfit.rendering.distortion import distortion_packed
from nerfit.rendering.losses import interlevel
from nerfit.rendering.volume import Rendering, over_background, render_weights
from nerfit.sampling.along_rays import inverse_power_ladder, power_ladder
from nerfit.sampling.histograms import annealed, resample
from nerfit.scenes.scene import Scene


@dataclass
class InstantProposalsConfig:
    levels: int = 8
    log2_entries: int = 19
    coarsest: int = 16
    finest: int = 2048
    width: int = 64
    proposal_levels: int = 5
    proposal_log2_entries: int = 17
    proposal_finest: list[int] = field(default_factory=lambda: [128, 256])
    proposal_samples: list[int] = field(default_factory=lambda: [64, 48])
    intervals: int = 32
    samples: int = 16_384
    least_weight: float = 2e-3
    least_light: float = 1e-3
    power: float = -1.5
    premult: float = 2.0
    padding: float = 0.01
    anneal: float = 100.0
    proposal_share: float = 0.25
    proposal_lr: float = 1.0
    huber: float = 0.1
    interlevel: float = 1.0
    distortion: float = 1e-3
    soft_near: float = 0.3
    table_decay: float = 0.0


class InstantProposals(Method):
    Config = InstantProposalsConfig
    default_steps: ClassVar[int] = 20_000
    default_recipe: ClassVar[str | None] = "instant-unbounded"

    rays: Tensor

    def __init__(self, config: InstantProposalsConfig, scene: Scene) -> None:
        super().__init__()
        self.config = c = config
        self.field = HashField(FieldShape(GridLayout(c.levels, c.log2_entries, c.coarsest, c.finest), c.width))
        grids = [GridLayout(c.proposal_levels, c.proposal_log2_entries, c.coarsest, finest) for finest in c.proposal_finest]
        self.proposals = nn.ModuleList([HashDensity(grid) for grid in grids])
        self.register_buffer("rays", torch.tensor(256))
        self.kept = 0

    @property
    def half_precision(self) -> bool:
        return self.precision != torch.float32

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        return random_pixels(scene, int(self.rays), 0.2, generator, self.device)

    def session(self) -> contextlib.AbstractContextManager[Any]:
        warm_up(self.device)
        return kernels_take_threads(self.device)

    def after_step(self, step: int) -> None:
        rays = int(self.rays)
        wanted = rays * self.config.samples / max(self.kept, 1)
        self.rays.fill_(int(min(max(wanted, 0.5 * rays, 64), 1.5 * rays, 2**16)))

    def _distances(self, rays, s):
        c = self.config
        near, far = (power_ladder(c.premult * t, c.power)[:, None] for t in (rays.near, rays.far))
        return inverse_power_ladder(near + s * (far - near), c.power) / c.premult

    def _ways(self, rays):
        return rays.origins * 0.5 + 0.5, rays.directions * 0.5

    def _propose(self, batch):
        c, rays = self.config, batch.rays
        n = len(rays)
        o, d = self._ways(rays)
        some = int(n * c.proposal_share) if batch.generator is not None else 0
        norm = d.norm(dim=-1)
        s, weights = torch.tensor([0.0, 1.0]).expand(n, 2), torch.ones(n, 1)
        levels = []
        for grid, count in zip(self.proposals, c.proposal_samples):
            s = self._draw(batch, s, weights, count)
            t = self._distances(rays, s)
            delta = t.diff() * norm[:, None]
            with torch.no_grad():
                weights = render_weights(grid(o[some:], d[some:], t[some:], self.half_precision), delta[some:])
            if some:
                w = render_weights(grid(o[:some], d[:some], t[:some], self.half_precision), delta[:some])
                levels.append((s[:some], w))
                weights = torch.cat([w.detach(), weights])
        s = self._draw(batch, s, weights, c.intervals)
        return s, levels

    def _draw(self, batch, s, weights, count):
        c = self.config
        if c.anneal and batch.generator is not None:
            weights = annealed(weights, self.progress, c.anneal)
        weights = weights + c.padding / weights.shape[1]
        return resample(s, weights, count, batch.uniform(len(s), 1))

    def render(self, batch: Batch) -> Rendering:
        warm_up(self.device)
        c, rays = self.config, batch.rays
        assert rays is not None
        training = batch.generator is not None
        s, levels = self._propose(batch)
        t = self._distances(rays, s)
        seen, w = render_intervals(*self._ways(rays), rays.viewdirs, t, self.field.table, self.field.weights, self.field.shape, self.half_precision, c.least_weight, c.least_light, c.soft_near, training)
        self.kept = seen.kept
        rendering = over_background(seen.color, seen.opacity, seen.depth, batch.background)
        if training:
            m = int(len(rays) * c.proposal_share)
            rendering.extras["interlevel"] = torch.stack([interlevel(s[:m], w[:m], e, p) for e, p in levels]).sum(0)
            s0, s1 = (a / (a + 1) for a in (seen.samples.t_starts, seen.samples.t_ends))
            rendering.extras["distortion"] = distortion_packed(seen.weights, s0, s1, seen.samples.offsets)
        return rendering

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        c = self.config
        losses = {"rgb": F.huber_loss(rendering.rgb, batch.target, delta=c.huber)}
        losses["interlevel"] = c.interlevel * rendering.extras["interlevel"].mean()
        losses["distortion"] = c.distortion * rendering.extras["distortion"].mean()
        return losses

    def scalars(self, rendering: Rendering, batch: Batch) -> dict[str, float]:
        return {"visible_per_ray": self.kept / max(len(batch), 1)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        c, grid = self.config, self.field.shape.grid
        groups = [
            {"params": [self.field.table], "sparse": True, "weight_decay": 2 * c.table_decay, "levels": (4 * grid.offsets).tolist()},
            {"params": [self.field.weights]},
        ]
        for p in self.proposals:
            groups += [{"params": [p.table], "sparse": True, "lr_scale": c.proposal_lr}, {"params": [p.weights], "lr_scale": c.proposal_lr}]
        return groups

    def density(self, points: Tensor) -> Tensor:
        return 0.5 * self.field.density(contract(points * 0.5 + 0.5, 2), self.half_precision)

    def samples_per_ray(self) -> int:
        return sum(self.config.proposal_samples) + self.config.intervals

    def floats_per_ray(self) -> int:
        return 4096
