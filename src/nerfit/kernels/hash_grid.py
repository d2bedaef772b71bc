"""Multi-resolution hash encoding (Müller et al. 2022, section 3)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.errors import ConfigError
from nerfit.kernels.dispatch import backend, implementation

FEATURES = 4
"""Numbers per table entry: one 16-byte load."""
PRIMES = (1, 2654435761, 805459861)


@dataclass(frozen=True)
class GridLayout:
    """Sizes of a hash grid: ``levels`` grids of ``coarsest`` to ``finest`` cells along the cube, each of at most 2^log2_entries entries."""

    levels: int = 8
    log2_entries: int = 18
    coarsest: int = 16
    finest: int = 2048

    def __post_init__(self) -> None:
        if not (1 <= self.levels <= 32 and 8 <= self.log2_entries <= 24 and 1 <= self.coarsest <= self.finest <= 2**20):
            raise ConfigError(
                "a hash grid needs 1 to 32 levels of 2^8 to 2^24 entries and 1 <= coarsest <= finest <= 2^20, "
                f"not {self.levels}, 2^{self.log2_entries}, {self.coarsest} and {self.finest}."
            )

    @property
    def entries(self) -> int:
        """Most entries of a level, T."""
        return 2**self.log2_entries

    @cached_property
    def resolutions(self) -> np.ndarray:
        """Cells per level along an edge: floor(coarsest·bˡ), b = (finest/coarsest)^(1/(levels-1)) (equations 2 and 3)."""
        growth = (self.finest / self.coarsest) ** (1 / max(self.levels - 1, 1))
        return np.floor(self.coarsest * growth ** np.arange(self.levels) + 1e-6).astype(np.int32)

    @cached_property
    def offsets(self) -> np.ndarray:
        """First entry of each level, and the number of all entries: levels start at multiples of 16."""
        sizes = [(min((int(r) + 1) ** 3, self.entries) + 15) // 16 * 16 for r in self.resolutions]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @property
    def size(self) -> int:
        """Floats in the table."""
        return int(self.offsets[-1]) * FEATURES

    @property
    def depth(self) -> int:
        """Channels of the encoding, padded with zeros to a multiple of 32."""
        return (self.levels * FEATURES + 31) // 32 * 32


def encode_grid(x: Float[Tensor, "n 3"], table: Float[Tensor, "size"], layout: GridLayout) -> Float[Tensor, "n channels"]:
    """Features at positions in [0, 1]³ (clamped to it), level after level; differentiable in both.

    A level with (N+1)³ ≤ T stores its vertices x fastest, others hash them (equation 4). ``table`` is flat, 4 floats an entry.
    """
    if backend(x.device) == "reference" or x.dtype != torch.float32:
        return encode_grid_reference(x, table, layout)
    return _EncodeGrid.apply(x, table, layout)


def encode_grid_reference(x: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """`encode_grid` in PyTorch, in any precision."""
    entries = table.reshape(-1, FEATURES)
    inside = x.clamp(0, 1 - 2**-24)
    levels = []
    for resolution, offset in zip(layout.resolutions.tolist(), layout.offsets.tolist(), strict=False):
        position = inside * resolution
        cell = position.detach().floor().long()
        fraction = position - cell
        found: Any = 0
        for corner in range(8):
            step = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1], device=x.device)
            weight = torch.where(step.bool(), fraction, 1 - fraction).prod(-1, keepdim=True)
            i, j, k = (cell + step).unbind(-1)
            if (resolution + 1) ** 3 <= layout.entries:
                index = i + (resolution + 1) * (j + (resolution + 1) * k)
            else:
                index = (i ^ j * PRIMES[1] ^ k * PRIMES[2]) & (layout.entries - 1)
            found = found + weight * entries[index + offset]
        levels.append(found)
    return torch.cat(levels, -1)


class _EncodeGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.layout = layout
        return implementation(x.device, "hash_grid").encode(x.contiguous(), table, layout)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, table = ctx.saved_tensors
        g_x, g_table = implementation(x.device, "hash_grid").encode_backward(
            x.contiguous(), table, gradient.contiguous(), ctx.layout, *ctx.needs_input_grad[:2]
        )
        return g_x, g_table, None
