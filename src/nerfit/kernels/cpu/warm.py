"""Compiling the CPU kernels once, in view of the user."""

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from numba.core import event
from rich.console import Console

from nerfit.kernels.adam import sparse_adam
from nerfit.kernels.field import field_density
from nerfit.kernels.layouts import RESOLUTION, Cutoffs, FieldShape, GridLayout, March, Network, RaySet
from nerfit.kernels.marching import fade_and_raise, pack_occupancy
from nerfit.kernels.pixels import camera_rays, draw_pixels
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


@contextlib.contextmanager
def announced() -> Iterator[None]:
    """Show whoever waits that kernels are being compiled."""
    announcer = _Announcer()
    event.register("numba:compile", announcer)
    try:
        yield
    finally:
        event.unregister("numba:compile", announcer)
        if announcer.spinner is not None:
            announcer.spinner.stop()


@cache
def warm_up() -> None:
    """Run everything that training and rendering need, on one ray."""
    with announced():
        shape = FieldShape(GridLayout(1, 8, 2, 2), 32)
        table, weights = torch.zeros(shape.grid.size, requires_grad=True), torch.zeros(shape.size, requires_grad=True)
        occupancy = pack_occupancy(torch.ones(RESOLUTION**3), 0.5)
        start, along = torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
        table.factored_gradients = []  # pyright: ignore[reportAttributeAccessIssue]
        ray = RaySet(start, along, along, torch.zeros(1), torch.ones(1), torch.zeros(1))
        network = Network(table, weights, shape)
        render_rays(ray, March(occupancy, 0.5), network, Cutoffs(0.0, 1e-4)).color.sum().backward()
        field_density(start, network)
        assert weights.grad is not None
        gradients = {table: table.factored_gradients[0], weights: weights.grad}  # pyright: ignore[reportAttributeAccessIssue]
        with torch.no_grad():
            for p, gradient in gradients.items():
                sparse_adam(p, gradient, torch.zeros_like(p), torch.zeros_like(p), 1, 0.0, (0.9, 0.99), 1e-15, 0.0)
        zero, one = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long)
        fade_and_raise(torch.ones(RESOLUTION**3), 0.5, zero, torch.ones(1))
        view, x, y, _ = draw_pixels(torch.zeros(1, 4, dtype=torch.uint8), zero, one, one, zero, 1, 0, 1.0)
        f = torch.ones(1)
        camera_rays(torch.eye(4)[None, :3].contiguous(), f, f, f, f, None, None, 0.5, 1, view, x, y)
