"""An occupancy grid that follows a field while it trains (instant-ngp, appendix C)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nerfit.kernels.marching import BLOCKS, RESOLUTION, Occupancy, fade_and_raise, pack_occupancy

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
    level: Tensor
    updates: Tensor

    def __init__(self, cascades: int, threshold: float = 0.01, decay: float = 0.95) -> None:
        super().__init__()
        self.threshold, self.decay, self.cascades = threshold, decay, cascades
        half = 0.5 * 2.0 ** (cascades - 1)
        self.register_buffer("thickness", torch.full((cascades * _CELLS,), 1.5 * threshold))
        self.register_buffer("updates", torch.tensor(0))
        self.register_buffer("level", torch.tensor(threshold))
        self.register_buffer("bits", torch.full((cascades * _CELLS // 8,), 255, dtype=torch.uint8))
        self.register_buffer("distance", torch.zeros(cascades * BLOCKS**3, dtype=torch.uint8))
        self.register_buffer("box", torch.tensor([[0.5 - half] * 3, [0.5 + half] * 3]))

    def occupancy(self) -> Occupancy:
        """What the march reads."""
        return Occupancy(self.bits, self.distance, self.box)

    @torch.no_grad()
    def update(self, thickness: Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n"]], count: int, generator: torch.Generator) -> None:
        """Fade, raise cells to what ``thickness`` finds in them (at points of the outermost cascade, as [0, 1]³), renew the bits.

        The first `WARM_UP` times it looks once into every 2x2x2 block; then into ``count`` cells, half of them anywhere and
        half in occupied blocks. A cell counts above the threshold, or above the mean where that is less: young fields are
        thin everywhere.
        """
        if self.updates < WARM_UP:
            blocks = torch.arange(len(self.distance), device=self.thickness.device)
            found = thickness(self._points(blocks, BLOCKS, generator))
            mean = fade_and_raise(self.thickness, self.decay, self._cells_of(blocks), found.repeat(8))
        else:
            cells = self._some(len(self.thickness), count // 2, generator)
            occupied = (self.distance == 0).nonzero().flatten()
            if len(occupied):
                blocks = occupied[self._some(len(occupied), count // 2, generator)]
                cells = torch.cat([cells, self._cells_of(blocks, self._some(8, len(blocks), generator))])
            mean = fade_and_raise(self.thickness, self.decay, cells, thickness(self._points(cells, RESOLUTION, generator)))
        self.updates += 1
        self.level.fill_(min(self.threshold, mean))
        found = pack_occupancy(self.thickness, float(self.level))
        self.bits.copy_(found.bits)
        self.distance.copy_(found.distance)
        self.box.copy_(found.box)

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

    def _points(self, cells: Tensor, side: int, generator: torch.Generator) -> Float[Tensor, "n 3"]:
        """A random point in each cell of cascades with ``side`` cells along an edge."""
        index = torch.stack([cells % side, cells // side % side, cells // side**2 % side], -1)
        inside = (index + torch.rand(index.shape, generator=generator, device=cells.device)) / side
        scale = 2.0 ** (cells // side**3 - (self.cascades - 1)).to(torch.float32)
        return (inside - 0.5) * scale[:, None] + 0.5
