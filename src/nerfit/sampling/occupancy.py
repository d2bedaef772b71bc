"""An occupancy grid that follows a field while it trains (instant-ngp, appendix C)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nerfit.kernels.marching import BLOCKS, RESOLUTION, Occupancy, pack_occupancy

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

    def __init__(self, cascades: int, threshold: float = 0.01, decay: float = 0.95) -> None:
        super().__init__()
        self.threshold, self.decay, self.cascades = threshold, decay, cascades
        half = 0.5 * 2.0 ** (cascades - 1)
        self.register_buffer("thickness", torch.full((cascades * _CELLS,), 1.5 * threshold))
        self.register_buffer("level", torch.tensor(threshold))
        self.register_buffer("bits", torch.full((cascades * _CELLS // 8,), 255, dtype=torch.uint8))
        self.register_buffer("distance", torch.zeros(cascades * BLOCKS**3, dtype=torch.uint8))
        self.register_buffer("box", torch.tensor([[0.5 - half] * 3, [0.5 + half] * 3]))

    def occupancy(self) -> Occupancy:
        """What the march reads."""
        return Occupancy(self.bits, self.distance, self.box)

    @torch.no_grad()
    def probes(self, count: int, generator: torch.Generator) -> tuple[Tensor, Float[Tensor, "n 3"]]:
        """Cells to look at, half of them anywhere and half among the occupied, and a random point in each ([0, 1]³, outermost cascade)."""
        device = self.thickness.device

        def random(most: int, n: int) -> Tensor:
            return torch.randint(most, (n,), generator=generator, device=device)

        cells = random(len(self.thickness), count // 2)
        occupied = (self.thickness > self.level).nonzero().flatten()
        if len(occupied):
            cells = torch.cat([cells, occupied[random(len(occupied), count // 2)]])
        index = torch.stack([cells % RESOLUTION, cells // RESOLUTION % RESOLUTION, cells // RESOLUTION**2 % RESOLUTION], -1)
        inside = (index + torch.rand(index.shape, generator=generator, device=device)) / RESOLUTION
        side = 2.0 ** (cells // _CELLS - (self.cascades - 1)).to(torch.float32)
        return cells, (inside - 0.5) * side[:, None] + 0.5

    @torch.no_grad()
    def update(self, cells: Tensor, thickness: Float[Tensor, "n"]) -> None:
        """Fade, then raise cells to what was found in them, and renew the bits.

        A cell counts above the threshold, or above the mean where that is less: young fields are thin everywhere.
        """
        self.thickness.mul_(self.decay)
        self.thickness.scatter_reduce_(0, cells, thickness, "amax")
        self.level.fill_(min(self.threshold, float(self.thickness.mean())))
        found = pack_occupancy(self.thickness, float(self.level))
        self.bits.copy_(found.bits)
        self.distance.copy_(found.distance)
        self.box.copy_(found.box)
