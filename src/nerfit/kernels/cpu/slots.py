"""The visible samples of a rendering on CPUs: each thread keeps its own in slots, in the order in which it finds them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels.cpu.blocks import LANES
from nerfit.kernels.cpu.field import color_of_block
from nerfit.kernels.cpu.runtime import part_count, part_of_kernel
from nerfit.kernels.cpu.spherical_harmonics import spherical_harmonics_block
from nerfit.kernels.cpu.tensors import array
from nerfit.kernels.layouts import Samples

_ZERO = np.float32(0)


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


@part_of_kernel
def copy_lanes(source, from_, rows, target, first, count):
    """target[:, first + k] = source[:, from_[k]], both [block, rows, LANES]."""
    for row in range(rows):
        for k in range(count):
            q, s = from_[k], first + k
            target[((s // LANES) * rows + row) * LANES + s % LANES] = source[((q // LANES) * rows + row) * LANES + q % LANES]


@part_of_kernel
def blank_lanes(target, rows, first):
    """Zeros from lane ``first`` to the end of its block."""
    if first % LANES:
        for row in range(rows):
            at = ((first // LANES) * rows + row) * LANES
            target[at + first % LANES : at + LANES] = _ZERO


@part_of_kernel
def write_directions(viewdirs, ray, slot_directions, first, last):
    """``slot_directions`` ([block, 3, LANES], flat) of slots first … last - 1: the unit directions of their rays."""
    for s in range(first, last):
        row = (s // LANES) * 3 * LANES + s % LANES
        slot_directions[row], slot_directions[row + LANES], slot_directions[row + 2 * LANES] = (
            viewdirs[ray[s], 0],
            viewdirs[ray[s], 1],
            viewdirs[ray[s], 2],
        )


@part_of_kernel
def paint(first, last, net, space, geo_features, slot_directions, ray, weight, color):
    """Add the colours of slots first … last - 1 to their rays; ``first`` begins a block."""
    for block in range(first // LANES, (last + LANES - 1) // LANES):
        space.joint[: 16 * LANES] = geo_features[16 * LANES * block : 16 * LANES * (block + 1)]
        spherical_harmonics_block(slot_directions, 3 * LANES * block, space.joint, 16 * LANES)
        color_of_block(net, space)
        rgb = space.color
        for s in range(block * LANES, min((block + 1) * LANES, last)):
            for c in range(3):
                color[ray[s], c] += weight[s] * rgb[c * LANES + s % LANES]
