"""Compiling the CPU kernels once, in view of the user."""

from functools import cache
from typing import Any

import torch
from numba.core import event
from rich.console import Console

from nerfit.kernels.adam import sparse_adam
from nerfit.kernels.field import FieldShape, field_density
from nerfit.kernels.hash_grid import GridLayout
from nerfit.kernels.marching import RESOLUTION, pack_occupancy
from nerfit.kernels.rendering import render_rays


class _Announcer(event.Listener):
    """A spinner from the first compilation on."""

    def __init__(self) -> None:
        self.spinner: Any = None

    def on_start(self, event: Any) -> None:
        if self.spinner is None:
            text = "compiling kernels for this processor (once; they are kept for the next time)"
            self.spinner = Console(stderr=True).status(text)
            self.spinner.start()

    def on_end(self, event: Any) -> None:
        pass

    def stop(self) -> None:
        if self.spinner is not None:
            self.spinner.stop()


@cache
def warm_up() -> None:
    """Run everything that training and rendering need, on one ray."""
    announcer = _Announcer()
    event.register("numba:compile", announcer)
    try:
        shape = FieldShape(GridLayout(1, 8, 2, 2), 32)
        table, weights = torch.zeros(shape.grid.size, requires_grad=True), torch.zeros(shape.size, requires_grad=True)
        occupancy = pack_occupancy(torch.ones(RESOLUTION**3), 0.5)
        start, along = torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
        seen = render_rays(
            start, along, along, torch.zeros(1), torch.ones(1), torch.zeros(1), occupancy, 0.5, 0.0, table, weights, shape, False, 0.0, 1e-4
        )
        seen.color.sum().backward()
        field_density(start, table, weights, shape)
        for p in (table, weights):
            assert p.grad is not None
            with torch.no_grad():
                sparse_adam(p, p.grad, torch.zeros_like(p), torch.zeros_like(p), 1, 0.0, (0.9, 0.99), 1e-15, 0.0)
    finally:
        event.unregister("numba:compile", announcer)
        announcer.stop()
