"""Multi-resolution hash encoding (Müller et al. 2022, section 3)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.kernels.dispatch import backend, implementation
from nerfit.kernels.layouts import FEATURES, PRIMES, GridLayout


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
