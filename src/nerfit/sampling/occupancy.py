"""An occupancy grid that follows a field while it trains (instant-ngp, appendix C)."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nerfit.cameras import Cameras
from nerfit.kernels.layouts import BLOCKS, RESOLUTION, Occupancy
from nerfit.kernels.marching import fade_and_raise, pack_occupancy

WARM_UP = 16
"""Updates that look into all of space."""
_CELLS = RESOLUTION**3


class OccupancyGrid(nn.Module):
    """Remembered optical thickness of a march step in each cell, fading, and the bits made from it.

    Cascade k is a cube of side 2ᵏ around (½, ½, ½); the unit cube is cascade 0.
    """

    thickness: Tensor
    bits: Tensor
    distance: Tensor
    box: Tensor
    seen: Tensor
    level: Tensor
    updates: Tensor

    def __init__(
        self,
        cascades: int,
        threshold: float = 0.01,
        decay: float = 0.95,
        warmup_decay: float = 0.95,
        seen: Bool[Tensor, "cascades*64**3"] | None = None,
    ) -> None:
        """A cell counts from ``threshold`` on, the optical thickness of a step; an update keeps the share ``decay`` of what is remembered,
        ``warmup_decay`` while it looks at all of space. Blocks that are not ``seen`` by any camera stay empty.
        """
        super().__init__()
        self.threshold, self.decay, self.warmup_decay, self.cascades = threshold, decay, warmup_decay, cascades
        half = 0.5 * 2.0 ** (cascades - 1)
        self.register_buffer("thickness", torch.full((cascades * _CELLS,), 1.5 * threshold))
        self.register_buffer("seen", torch.ones(cascades * BLOCKS**3, dtype=torch.bool) if seen is None else seen)
        self.register_buffer("updates", torch.tensor(0))
        self.register_buffer("level", torch.tensor(threshold))
        self.register_buffer("bits", torch.full((cascades * _CELLS // 8,), 255, dtype=torch.uint8))
        self.register_buffer("distance", torch.zeros(cascades * BLOCKS**3, dtype=torch.uint8))
        self.register_buffer("box", torch.tensor([[0.5 - half] * 3, [0.5 + half] * 3]))

    def occupancy(self) -> Occupancy:
        """What the march reads."""
        return Occupancy(self.bits, self.distance, self.box)

    @torch.no_grad()
    def update(
        self, density: Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n"]], step: float, count: int, generator: torch.Generator
    ) -> None:
        """Fade, raise cells to the optical thickness found in them, renew the bits.

        ``density`` is per unit of length, at positions in cascade coordinates; ``step`` the length of a march step in the unit cube,
        twice as long in each further cascade.
        The first `WARM_UP` times it looks once into every 2x2x2 block; then into ``count`` cells, half of them anywhere and half in
        blocks that are occupied or touch one that is, where surfaces come and go. A cell counts above the threshold, or above the
        mean where that is less: young fields are thin everywhere.
        """
        young = bool(self.updates < WARM_UP)
        decay = self.warmup_decay if young else self.decay
        if young:
            blocks = torch.arange(len(self.distance), device=self.thickness.device)
            found = self._thickness(density, step, blocks, BLOCKS, generator) * self.seen
            mean = fade_and_raise(self.thickness, decay, self._cells_of(blocks), found.repeat(8))
        else:
            cells = self._some(len(self.thickness), count // 2, generator)
            near = (self.distance <= 1).nonzero().flatten()
            if len(near):
                blocks = near[self._some(len(near), count // 2, generator)]
                cells = torch.cat([cells, self._cells_of(blocks, self._some(8, len(blocks), generator))])
            found = self._thickness(density, step, cells, RESOLUTION, generator) * self.seen[self._blocks_of(cells)]
            mean = fade_and_raise(self.thickness, decay, cells, found)
        self.updates += 1
        self.level.fill_(min(self.threshold, mean))
        found = pack_occupancy(self.thickness, float(self.level))
        self.bits.copy_(found.bits)
        self.distance.copy_(found.distance)
        self.box.copy_(found.box)

    @staticmethod
    def _blocks_of(cells: Tensor) -> Tensor:
        """Numbers of the blocks that hold cells."""
        x, rest = cells % RESOLUTION, cells // RESOLUTION
        y, z = rest % RESOLUTION, rest // RESOLUTION
        return (z // 2 * BLOCKS + y // 2) * BLOCKS + x // 2

    @staticmethod
    def _cells_of(blocks: Tensor, corner: Tensor | None = None) -> Tensor:
        """Numbers of the cells of 2x2x2 blocks, one each, or all 8 one after another."""
        if corner is None:
            corner = torch.arange(8, device=blocks.device)[:, None]
        x, rest = blocks % BLOCKS, blocks // BLOCKS
        y, z = rest % BLOCKS, rest // BLOCKS
        row = (2 * z + corner // 4) * RESOLUTION + 2 * y + corner // 2 % 2
        return (row * RESOLUTION + 2 * x + corner % 2).flatten()

    def _some(self, most: int, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(most, (count,), generator=generator, device=self.thickness.device)

    def _thickness(self, density: Callable[..., Tensor], step: float, cells: Tensor, side: int, generator: torch.Generator) -> Tensor:
        """Optical thickness of a step at a random point in each cell of cascades with ``side`` cells along an edge."""
        uniform = torch.rand((len(cells), 3), generator=generator, device=cells.device)
        scale = 2.0 ** (cells // side**3).to(torch.float32)
        return density(_places(cells, side, uniform)) * step * scale


def _places(cells: Tensor, side: int, uniform: Tensor | float) -> Float[Tensor, "n 3"]:
    """Points in cells (at ``uniform`` of their sides), in cascade coordinates; cascades have ``side`` cells along an edge."""
    index = torch.stack([cells % side, cells // side % side, cells // side**2 % side], -1)
    scale = 2.0 ** (cells // side**3).to(torch.float32)
    return ((index + uniform) / side - 0.5) * scale[:, None] + 0.5


@torch.no_grad()
def seen_blocks(cameras: Cameras, near: float, origin: Float[Tensor, "3"], side: float, cascades: int) -> Bool[Tensor, "cascades*64**3"]:
    """Which blocks some camera may see: those in front of it, at least ``near`` away, that reach into its picture (and a tenth around it).

    ``origin`` and ``side`` place the unit cube among the cameras.
    """
    seen = torch.zeros(cascades * BLOCKS**3, dtype=torch.bool)
    for camera in range(len(cameras)):
        blocks = (~seen).nonzero().flatten()
        points = _places(blocks, BLOCKS, 0.5) * side + origin
        radius = 0.5 * math.sqrt(3) * side / BLOCKS * 2.0 ** (blocks // BLOCKS**3).to(torch.float32)
        local = (points - cameras.c2w[camera, :, 3]) @ cameras.c2w[camera, :, :3]
        border = _border(cameras, camera) @ cameras.c2w[camera, :, :3]
        if cameras.lens is None or cameras.lens[camera] == 0:
            away = -local[:, 2]
            depth = away.clamp(min=1e-6)
            inside = away + radius > near
            for axis in (0, 1):
                low, high = border[:, axis].aminmax()
                at, margin = local[:, axis] / depth, radius / depth + 0.1 * (high - low)
                inside &= ((at > low - margin) & (at < high + margin)) | (away < radius)
        else:
            away = local.norm(dim=1)
            angle = torch.atan2(local[:, :2].norm(dim=1), -local[:, 2]) - (radius / away.clamp(min=1e-6)).clamp(max=1).asin()
            widest = torch.atan2(border[:, :2].norm(dim=1), -border[:, 2]).max()
            inside = (away + radius > near) & ((angle < 1.2 * widest) | (away < radius))
        seen[blocks[inside]] = True
    return seen


def _border(cameras: Cameras, camera: int, steps: int = 16) -> Float[Tensor, "n 3"]:
    """World directions through points all around the edge of a camera's picture."""
    t = torch.linspace(0, 1, steps + 1)
    x = torch.cat([t, t, torch.zeros_like(t), torch.ones_like(t)]) * cameras.width[camera] - cameras.pixel_offset
    y = torch.cat([torch.zeros_like(t), torch.ones_like(t), t, t]) * cameras.height[camera] - cameras.pixel_offset
    return cameras.directions(torch.full((len(x),), camera), x, y)
