"""The CPU bodies behind `nerfit.kernels.rendering`: rays in, colours and the slots of their samples out."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels import layouts
from nerfit.kernels.cpu import rendering
from nerfit.kernels.cpu.blocks import LANES
from nerfit.kernels.cpu.hash_grid import gradients_by_place
from nerfit.kernels.cpu.runtime import part_count, run_parallel
from nerfit.kernels.cpu.tensors import array, arrays, blocks_of, cutoff_numbers, f32, field_arrays, march_arrays, matrices
from nerfit.kernels.layouts import Cutoffs, March, Network, RaySet, Samples


@dataclass
class Slots:
    """A rendering and its visible samples: row p of each [parts, slots] array belongs to thread p.

    PyTorch makes the arrays: its memory begins at cache lines.
    """

    color: Tensor
    opacity: Tensor
    depth: Tensor
    ray: Any
    t0: Any
    t1: Any
    length: Any
    weight: Tensor
    transmittance: Any
    positions: Any
    directions: Any
    features: Any
    kept: list[int] = field(default_factory=list)
    evaluated: int = 0

    @classmethod
    def make(cls, rays: int, room: int, depth: int, keep: bool) -> "Slots":
        """Empty slots, ``room`` for each thread; features of ``depth`` numbers are stored with ``keep``."""
        parts = part_count()

        def empty(size: int) -> Any:
            return torch.empty(parts, size).numpy()

        return cls(
            color=torch.empty(rays, 3),
            opacity=torch.empty(rays),
            depth=torch.empty(rays),
            ray=torch.empty(parts, room, dtype=torch.int32).numpy(),
            t0=empty(room),
            t1=empty(room),
            length=empty(room),
            weight=torch.empty(parts, room),
            transmittance=empty(room),
            positions=empty(3 * room),
            directions=empty(3 * room),
            features=empty(depth * room if keep else 0),
        )

    def arrays(self) -> tuple[Any, ...]:
        """What a rendering kernel fills: colour, opacity and depth of rays, then the samples' arrays."""
        rendered = (array(t) for t in (self.color, self.opacity, self.depth))
        samples = (
            self.ray,
            self.t0,
            self.t1,
            self.length,
            array(self.weight),
            self.transmittance,
            self.positions,
            self.directions,
            self.features,
        )
        return *rendered, *samples

    def samples(self) -> tuple[Samples, Tensor]:
        """The kept samples by ray, and their slots' numbers in that order."""
        slots = self.ray.shape[1]
        slot = np.concatenate([part * slots + np.arange(many) for part, many in enumerate(self.kept)])
        slot = slot[np.argsort(self.ray.reshape(-1)[slot], kind="stable")]
        ray = self.ray.reshape(-1)[slot]
        count = np.bincount(ray, minlength=len(self.opacity))
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(count)]))
        x = self.positions.reshape(-1, 3, LANES)[slot // LANES, :, slot % LANES]
        found = [torch.from_numpy(a) for a in (ray, self.t0.reshape(-1)[slot], self.t1.reshape(-1)[slot], x)]
        return Samples(found[0], found[1], found[2], found[3], offsets, self.evaluated), torch.from_numpy(slot)


_room = 1 << 14


def render(rays: RaySet, march: March, network: Network, cutoffs: Cutoffs, colors: bool, keep: bool) -> Slots:
    """Slots with the rendering; repeated with more room in the rare case that it is short."""
    global _room
    lines = arrays(rays.origins, rays.directions, rays.viewdirs, rays.near, rays.far, rays.jitter)
    given = lines, march_arrays(march), field_arrays(network), cutoff_numbers(cutoffs)
    while True:
        room = blocks_of(_room) * LANES if keep else rendering.POOL * rendering.WAVE
        slots = Slots.make(len(rays), room, network.shape.grid.depth, keep)
        done = run_parallel(rendering.render, *given, (colors, keep), slots.arrays())
        if not any(full for _, _, full in done):
            break
        _room *= 2
    slots.kept, slots.evaluated = [kept for kept, _, _ in done], sum(evaluated for _, evaluated, _ in done)
    return slots


def render_backward(slots: Slots, network: Network, near_falloff: float, stretch: bool, *gradients: Tensor | None) -> Tensor:
    """Turn the slots' features into their gradients; the networks' gradients. With ``stretch`` what `ray_gradients` needs is kept."""
    n, parts = len(slots.opacity), len(slots.kept)
    g_color, g_opacity, g_depth, g_weight = gradients
    g_color = torch.zeros(n, 3) if g_color is None else g_color.contiguous()
    g_opacity, g_depth = (torch.zeros(n) if g is None else g.contiguous() for g in (g_opacity, g_depth))
    g_weight = torch.empty(parts, 0) if g_weight is None else g_weight.contiguous()
    sums = torch.zeros(parts, len(network.weights))
    samples = slots.ray, slots.t0, slots.t1, slots.length, array(slots.weight), slots.transmittance, slots.directions, slots.features
    given = arrays(g_color, g_opacity, g_depth, g_weight)
    kept = np.array(slots.kept)
    run_parallel(rendering.render_backward, (kept, *samples), matrices(network), given, f32(near_falloff), stretch, array(sums))
    return sums.sum(0)


def ray_gradients(slots: Slots, origins: Tensor, directions: Tensor, network: Network, cascades: int) -> tuple[Tensor, Tensor]:
    """Gradients [n, 3] of rays whose samples stay at their distances, after `render_backward` with ``stretch``."""
    grid = network.shape.grid
    by_place = torch.cat(gradients_by_place(slots.positions, np.array(slots.kept), slots.features, network.table, grid, grid.depth))
    kept = list(enumerate(slots.kept))
    by_slot = (slots.ray, slots.t0, slots.t1, slots.transmittance)
    ray, t0, t1, stretch = (torch.cat([torch.from_numpy(a[r, :n]) for r, n in kept]) for a in by_slot)
    with torch.enable_grad():
        o, d = (v.detach().requires_grad_() for v in (origins, directions))
        ray = ray.long()
        x = layouts.contract(o[ray] + 0.5 * (t0 + t1)[:, None] * d[ray], cascades)
        stretched = torch.zeros(len(d)).index_add_(0, ray, stretch) * d.norm(dim=-1).log()
        g_origins, g_directions = torch.autograd.grad((x * by_place).sum() + stretched.sum(), (o, d))
    return g_origins, g_directions


def visible_samples(rays: RaySet, march: March, network: Network, cutoffs: Cutoffs) -> Samples:
    """The visible samples."""
    return render(rays, march, network, cutoffs, False, True).samples()[0]
