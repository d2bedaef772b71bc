"""One process's part of what several processes do together."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Process ``rank`` of ``world_size``: it takes every ``world_size``-th ray of a step's batch, or item of anything else."""

    rank: int = 0
    world_size: int = 1

    def indices(self, count: int) -> Int[Tensor, "n"]:
        """Which of ``count`` items this process takes."""
        return torch.arange(min(self.rank, count), count, self.world_size)


WHOLE = Share()
"""Everything, as a single process takes it."""
