"""Compiling the kernels once, before time is measured."""

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from nerfit.kernels.adam import sparse_adam
from nerfit.kernels.dispatch import backend
from nerfit.kernels.field import field_density
from nerfit.kernels.intervals import density_along, render_intervals
from nerfit.kernels.layouts import RESOLUTION, AdamStep, Cutoffs, FieldShape, GridLayout, March, Network, Optics, PixelTable, RaySet
from nerfit.kernels.marching import fade_and_raise, pack_occupancy
from nerfit.kernels.pixels import camera_rays, draw_pixels
from nerfit.kernels.rendering import render_rays


def warm_up(device: torch.device, intervals: bool = False) -> None:
    """Compile the kernels of training and rendering for a device, or load them from the cache; a compilation is announced.

    Args:
        device: Nothing is done unless its backend compiles for this processor.
        intervals: Compile `nerfit.kernels.intervals` too.
    """
    if backend(device) == "cpu":
        with torch.enable_grad(), _announced():  # the first picture may be drawn without gradients
            _compile_rendering()
            if intervals:
                _compile_intervals()


@contextlib.contextmanager
def _announced() -> Iterator[None]:
    """A spinner from the first compilation on."""
    from numba.core import event

    class Announcer(event.Listener):
        spinner: Any = None

        def on_start(self, event: Any) -> None:
            if self.spinner is None:
                text = "compiling kernels for this processor (once; they are kept for the next time)"
                self.spinner = Console(stderr=True).status(text)
                self.spinner.start()

        def on_end(self, event: Any) -> None:
            pass

    announcer = Announcer()
    event.register("numba:compile", announcer)
    try:
        yield
    finally:
        event.unregister("numba:compile", announcer)
        if announcer.spinner is not None:
            announcer.spinner.stop()


def _one_ray() -> RaySet:
    """Along x, through the middle of the unit cube."""
    start, along = torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
    return RaySet(start, along, along, torch.zeros(1), torch.ones(1), torch.zeros(1))


def _small_network(matrices: int) -> Network:
    """Zeros that want gradients; the first ``matrices`` of the networks."""
    shape = FieldShape(GridLayout(1, 8, 2, 2), 32)
    table = torch.zeros(shape.grid.size, requires_grad=True)
    table.factored_gradients = []  # pyright: ignore[reportAttributeAccessIssue]
    size = sum(rows * columns for rows, columns in shape.matrices[:matrices])
    return Network(table, torch.zeros(size, requires_grad=True), shape)


@cache
def _compile_rendering() -> None:
    """Run everything that training and rendering need, on one ray."""
    ray, network = _one_ray(), _small_network(5)
    occupancy = pack_occupancy(torch.ones(RESOLUTION**3), 0.5)
    render_rays(ray, March(occupancy, 0.5), network, Cutoffs(0.0, 1e-4)).color.sum().backward()
    field_density(ray.origins, network)
    table, weights = network.table, network.weights
    assert weights.grad is not None
    gradients: dict[Tensor, Any] = {table: table.factored_gradients[0], weights: weights.grad}  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        for p, gradient in gradients.items():
            sparse_adam(p, gradient, torch.zeros_like(p), torch.zeros_like(p), AdamStep(1, 0.0, (0.9, 0.99), 1e-15))
    zero, one = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long)
    fade_and_raise(torch.ones(RESOLUTION**3), 0.5, zero, torch.ones(1))
    view, x, y, _ = draw_pixels(PixelTable(torch.zeros(1, 4, dtype=torch.uint8), zero, one, one), zero, 1, 0, 1.0)
    f = torch.ones(1)
    camera_rays(Optics(torch.eye(4)[None, :3].contiguous(), f, f, f, f, None, None, 0.5, 1), view, x, y)


@cache
def _compile_intervals() -> None:
    """Run the kernels of intervals on one ray."""
    from nerfit.kernels.cpu import intervals

    ray, edges, one = _one_ray(), torch.tensor([[0.0, 0.5, 1.0]]), torch.ones(1)
    density = density_along(ray, edges, _small_network(2))
    density.sum().backward()
    render_intervals(ray, edges, _small_network(5), Cutoffs(0.0, 0.0))[0].color.sum().backward()
    intervals.draw((edges, edges, density.detach(), one), (0 * one, one, 0.0, 1.0), (one[:, None], 1.0, 0.1), 2)
