"""A hash table's gradient as positions and the gradients of their features, to be summed where it is used (CPU kernels)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels.layouts import FactoredGradient


def wants_gradients(*leaves: Tensor) -> bool:
    """Whether a way back will come from here. In a `torch.autograd.Function`, ``ctx.needs_input_grad`` is True under no_grad too."""
    return torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)


def add_factored(gradient: FactoredGradient, dense: Tensor) -> None:
    """Add a gradient to a dense one of the table's shape."""
    from nerfit.kernels.cpu.hash_grid import scatter_rows

    scatter_rows(gradient, dense)


def give_factored(gradient: FactoredGradient, table: Tensor) -> Tensor | None:
    """Leave a gradient with its table, in factors where that takes them, else in its ``grad``; what is returned is to become it."""
    accepted = getattr(table, "factored_gradients", None)
    if accepted is not None:
        accepted.append(gradient)
        return None
    into = torch.zeros_like(table) if table.grad is None else table.grad
    add_factored(gradient, into)
    return into if table.grad is None else None


def as_row(pieces: Sequence[FactoredGradient]) -> FactoredGradient | None:
    """The sum of several gradients as one row, of whole blocks of samples: those past the last of a piece have zeros. None of none."""
    if not pieces:
        return None
    from nerfit.kernels.cpu.blocks import LANES

    positions, features = [], []
    for piece in pieces:
        for row, count in enumerate(piece.count):
            room = -(-count // LANES) * LANES
            positions.append(piece.positions[row, : 3 * room])
            features.append(piece.features[row, : piece.layout.depth * room])
    joined = np.concatenate(positions)[None], np.concatenate(features)[None]
    return FactoredGradient(*joined, [joined[0].size // 3], pieces[0].layout)
