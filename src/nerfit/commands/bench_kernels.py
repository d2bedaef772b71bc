"""How fast this machine is: matrix products, the fused field, and every kernel beside its definition in PyTorch."""

import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.commands.machine import machine, matrix_peak
from nerfit.errors import ConfigError
from nerfit.kernels.adam import sparse_adam
from nerfit.kernels.compositing import composite_packed
from nerfit.kernels.dispatch import backend, kernels_take_threads
from nerfit.kernels.field import field, field_density
from nerfit.kernels.hash_grid import encode_grid
from nerfit.kernels.inverse_cdf import sample_pdf
from nerfit.kernels.layouts import RESOLUTION, AdamStep, Cutoffs, FieldShape, March, Network, PixelTable, RaySet, Samples
from nerfit.kernels.marching import march_rays, pack_occupancy, visible_samples
from nerfit.kernels.memory import in_large_pages, zeros_in_large_pages
from nerfit.kernels.pixels import draw_pixels
from nerfit.kernels.rendering import render_rays
from nerfit.kernels.spherical_harmonics import spherical_harmonics
from nerfit.kernels.warm_up import warm_up
from nerfit.training.devices import pick_precision

PER_RAY = 8
"""Samples of a ray, one after another, SPACING sides of the box apart."""
SPACING = 0.0017
RADIUS = 0.3
"""Of the ball of matter in the made-up scene, in the unit cube."""
DENSITY = 400.0
"""Of the ball, per side of the cube: a ray ends after about five march steps, as in a trained field."""


@dataclass
class Case:
    """A kernel and its inputs: ``run`` is timed, ``prepare`` makes its argument beforehand."""

    name: str
    run: Callable[[Any], Samples | Sequence[Tensor]]
    prepare: Callable[[], Any] = lambda: None
    flops: float = 0.0
    """Operations of the networks alone in one run."""


def speed(shape: FieldShape, samples: int, precision: str, device: torch.device) -> dict[str, Any]:
    """Matrix peak, fused field and kernels, measured in this process as medians after a warm-up.

    Inputs are made up: ``samples`` positions along rays into a ball. ``difference`` is max|kernel - reference| / max|reference|
    over a kernel's outputs; of a march over the samples found by both, ``differing_rays`` being the share of rays with others.
    """
    if samples < 64:
        raise ConfigError(f"--samples must be at least 64, not {samples}.")
    if backend(device) == "reference":
        raise ConfigError(f"only the reference bodies of the kernels run here (device {device}): there is nothing to compare.")
    warm_up(device)
    half = pick_precision(precision, device) != torch.float32
    peaks = {name: matrix_peak(device, dtype) / 1e9 for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16))}
    rows = [_row(case, device) for case in _cases(shape, samples // PER_RAY, half, device)]
    both = next(row for row in rows if row["kernel"] == "field forward + backward")
    grid = shape.grid
    about = {"levels": grid.levels, "log2_entries": grid.log2_entries, "finest": grid.finest, "width": shape.width}
    measured = {
        "samples": samples // PER_RAY * PER_RAY,
        "precision": "bf16" if half else "float32",
        "samples_per_second": samples // PER_RAY * PER_RAY / (1e-3 * both["milliseconds"]),
        "gflops": both["gflops"],
        "share_of_float32_peak": both["gflops"] / peaks["float32"],
        "share_of_bf16_peak": both["gflops"] / peaks["bf16"],
    }
    return {
        "machine": machine(device),
        "kernels_in": backend(device),
        "matrix_peak_gflops": peaks,
        "field": about | measured,
        "kernels": rows,
    }


def _row(case: Case, device: torch.device) -> dict[str, Any]:
    """A kernel's time beside its reference's, and how far apart their answers are."""
    with kernels_take_threads(device):
        seconds, found = _measure(case, device, 5)
    with _definitions():
        slow, expected = _measure(case, device, 3)
    row = {"kernel": case.name, "milliseconds": 1e3 * seconds, "reference_milliseconds": 1e3 * slow, "ratio": slow / seconds}
    row |= _compare(found, expected)
    return row | ({"gflops": case.flops / seconds / 1e9} if case.flops else {})


@contextlib.contextmanager
def _definitions() -> Iterator[None]:
    """Kernels run as they are defined."""
    before = os.environ.get("NERFIT_KERNELS", "")
    os.environ["NERFIT_KERNELS"] = "reference"
    try:
        yield
    finally:
        os.environ["NERFIT_KERNELS"] = before


def _measure(case: Case, device: torch.device, least: int) -> tuple[float, Any]:
    """Median seconds of at least ``least`` runs, more where half a second allows, after one that does not count; and a run's outputs."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: list[float] = []
    found: Any = None
    while len(times) <= least or (sum(times) < 0.5 and len(times) <= 25):
        ready = case.prepare()
        wait()
        start = time.perf_counter()
        found = case.run(ready)
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]), found if isinstance(found, Samples) else [t.detach().clone() for t in found]


def _compare(found: Any, expected: Any) -> dict[str, float]:
    if not isinstance(found, Samples):
        return {"difference": max(_relative(a, b) for a, b in zip(found, expected, strict=True))}
    same = found.offsets.diff() == expected.offsets.diff()
    alike, expected_alike = (same[s.ray_indices.long()] for s in (found, expected))
    a, b = found.x[alike], expected.x[expected_alike]
    apart = (a - b).abs().amax(-1) > SPACING / 2  # another sample was kept
    same[found.ray_indices[alike][apart].long()] = False
    return {"difference": _relative(a[~apart], b[~apart]), "differing_rays": 1 - float(same.float().mean())}


def _relative(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) if b.numel() else 0.0


def _matter(shape: FieldShape, random: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Table and weights of a field whose densities lie around DENSITY, varied."""
    drawn, weights = 0.1 + 0.02 * random(shape.grid.size), random(shape.size) * math.sqrt(2 / shape.width)
    table = in_large_pages(torch.empty_like(drawn)).copy_(drawn)  # as a field's
    hidden, to_geo_features, *_ = shape.split(weights)
    hidden[0], to_geo_features[0] = 1 / (4 * shape.grid.levels), 0.0  # the first hidden channel is the features' mean, about 0.1
    to_geo_features[0, 0] = 10 * math.log(DENSITY)
    return table.requires_grad_(), weights.requires_grad_()


class _Ball:
    """Matter around a ball's surface, and rays that meet it with ``PER_RAY`` samples each."""

    def __init__(self, shape: FieldShape, rays: int, half: bool, device: torch.device) -> None:
        self.generator, self.device, self.rays = torch.Generator().manual_seed(0), device, rays
        normals, d = F.normalize(self.random(rays, 3), dim=-1), F.normalize(self.random(rays, 3), dim=-1)
        self.surface, self.directions = 0.5 + RADIUS * normals, d * -torch.sign((d * normals).sum(-1, keepdim=True))
        self.t = SPACING * (torch.arange(PER_RAY, device=device) + 0.5)
        self.x = (self.surface[:, None] + self.t[:, None] * self.directions[:, None]).reshape(-1, 3)
        self.viewdirs = self.directions.repeat_interleave(PER_RAY, 0)
        table, weights = _matter(shape, self.random)
        table.grad = zeros_in_large_pages(table)
        self.network = Network(table, weights, shape, half)

    def random(self, *size: int) -> Tensor:
        """Normal numbers."""
        return torch.randn(*size, generator=self.generator).to(self.device)

    def uniform(self, *size: int) -> Tensor:
        """Numbers in [0, 1)."""
        return torch.rand(*size, generator=self.generator).to(self.device)

    def clear(self) -> None:
        """Forget the network's gradients."""
        assert self.network.table.grad is not None
        self.network.table.grad.zero_()
        self.network.weights.grad = None

    def evaluate(self, _: None = None) -> Sequence[Tensor]:
        """Densities and colours of the samples."""
        return field(self.x, self.viewdirs, self.network)


def _gradients(outputs: Sequence[Tensor], towards: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    torch.autograd.backward(outputs, list(towards))
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def _cases(shape: FieldShape, rays: int, half: bool, device: torch.device) -> Iterator[Case]:
    """All kernels on one made-up scene: rays that meet a ball, and a shell of occupied cells around its surface."""
    ball = _Ball(shape, rays, half, device)
    yield from _field_cases(ball)
    gradient = ball.network.table.grad
    assert gradient is not None
    gradient = gradient.clone()
    yield from _compositing_cases(ball)
    axis = (torch.arange(RESOLUTION, device=device) + 0.5) / RESOLUTION - 0.5
    radius = (axis**2 + axis[:, None] ** 2 + axis[:, None, None] ** 2).sqrt().flatten()
    shell = torch.exp(-(((radius - RADIUS) / 0.02) ** 2))
    yield from _ray_cases(ball, shell)
    edges = torch.sort(ball.uniform(rays, 64), -1).values
    shown, numbers = ball.uniform(rays, 63), ball.uniform(rays, 128)
    yield Case("sample_pdf", lambda _: [sample_pdf(edges, shown, 128, numbers)])
    yield _adam_case(ball.network.table.detach().clone(), gradient)
    if device.type == "cpu":  # elsewhere the following run as they are defined
        yield from _scene_cases(shell, rays, ball.generator)


def _field_cases(ball: _Ball) -> Iterator[Case]:
    """The encoding, the directions' harmonics, and both networks."""
    network, grid, n = ball.network, ball.network.shape.grid, len(ball.x)
    flops, leaves = float(network.shape.flops() * n), (network.table, network.weights)

    def features(_: None = None) -> list[Tensor]:
        ball.clear()
        return [encode_grid(ball.x, network.table, grid)]

    def evaluate_again() -> Sequence[Tensor]:
        ball.clear()
        return ball.evaluate()

    to_features, to_field = [ball.random(n, 4 * grid.levels)], [ball.random(n) / DENSITY, ball.random(n, 3)]
    yield Case("encode_grid", lambda _: [encode_grid(ball.x, network.table, grid)])
    yield Case("encode_grid backward", lambda out: _gradients(out, to_features, leaves[:1]), features)
    yield Case("spherical_harmonics", lambda _: [spherical_harmonics(ball.viewdirs)])
    yield Case("field_density", lambda _: [field_density(ball.x, network)])
    yield Case("field forward", ball.evaluate, flops=flops)
    yield Case("field backward", lambda out: _gradients(out, to_field, leaves), evaluate_again, 2 * flops)
    yield Case("field forward + backward", lambda _: _gradients(ball.evaluate(), to_field, leaves), ball.clear, 3 * flops)


def _compositing_cases(ball: _Ball) -> Iterator[Case]:
    """Packed samples to the colours of rays."""
    n = len(ball.x)
    density, rgb = (out.detach().requires_grad_() for out in ball.evaluate())
    offsets = torch.arange(0, n + 1, PER_RAY, device=ball.device)
    packed = torch.full((n,), SPACING, device=ball.device), ball.t.repeat(ball.rays), offsets

    def composite(_: None = None) -> Sequence[Tensor]:
        density.grad = rgb.grad = None
        return composite_packed(density, rgb, *packed)

    to_rays = [ball.random(ball.rays, 3), ball.random(ball.rays), ball.random(ball.rays), ball.random(n)]
    yield Case("composite forward", composite)
    yield Case("composite backward", lambda out: _gradients(out, to_rays, [density, rgb]), composite)


def _ray_cases(ball: _Ball, shell: Tensor) -> Iterator[Case]:
    """Marching through a shell of occupied cells, the samples that can be seen there, and rays to colours in one kernel."""
    rays, device, d = ball.rays, ball.device, ball.directions
    near, far, step = torch.zeros(rays, device=device), torch.full((rays,), 3.0, device=device), math.sqrt(3) / 512
    towards, steps = RaySet(ball.surface - d, d, d, near, far, ball.uniform(rays)), March(pack_occupancy(shell, 0.5), step)
    yield Case("march", lambda _: march_rays(towards, steps))
    yield Case("visible_samples", lambda _: visible_samples(towards, steps, ball.network, Cutoffs(1e-3, 1e-3)))

    few = max(rays // 16, 8)  # through occupied space alone, and every sample counts: both bodies must find the same ones
    everywhere = March(pack_occupancy(torch.ones_like(shell), 0.5), 8 * step)
    through = replace(towards, jitter=torch.zeros_like(near))[:few]

    def render(_: None = None) -> Sequence[Tensor]:
        ball.clear()
        rendered = render_rays(through, everywhere, ball.network, Cutoffs(0.0, 0.0))
        return rendered.color, rendered.opacity, rendered.depth

    to_colors, leaves = [ball.random(few, 3)], (ball.network.table, ball.network.weights)
    yield Case("render_rays forward", render)
    yield Case("render_rays backward", lambda out: _gradients(out[:1], to_colors, leaves), render)


def _adam_case(table: Tensor, gradient: Tensor) -> Case:
    """A step on a table whose gradient is zero at most entries."""
    start = table, gradient, torch.zeros_like(gradient), torch.zeros_like(gradient)
    state = [torch.empty_like(gradient) for _ in start]

    def restart() -> None:
        for now, then in zip(state, start, strict=True):
            now.copy_(then)

    def adam(_: None) -> list[Tensor]:
        p, g, m, v = state
        sparse_adam(p, g, m, v, AdamStep(1, 1e-2, (0.9, 0.99), 1e-15))
        return state

    return Case("sparse_adam", adam, restart)


def _scene_cases(shell: Tensor, rays: int, generator: torch.Generator) -> Iterator[Case]:
    """Kernels on what surrounds the field: cells, pictures (two fifths opaque) and cameras."""

    def pack(_: None) -> list[Tensor]:
        occupancy = pack_occupancy(shell, 0.5)
        return [occupancy.bits, occupancy.distance, occupancy.box]

    yield Case("pack_occupancy", pack)
    count, side = 20, 400
    pixels = torch.randint(1, 256, (count * side * side, 4), dtype=torch.uint8, generator=generator)
    pixels[torch.rand(len(pixels), generator=generator) > 0.4, 3] = 0
    views = torch.arange(count)
    sizes = torch.full((count,), side)
    table = PixelTable(pixels, views * side * side, sizes, sizes)
    yield Case("draw_pixels", lambda _: draw_pixels(table, views, rays, 1, 0.2))
    turns = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator)).Q
    cameras = Cameras.pinhole(torch.cat([turns, 4 * turns[:, :, 2:]], -1), 1.1 * side, side, side)
    view, i, j = (torch.randint(most, (rays,), generator=generator) for most in (count, side, side))

    def through_pixels(_: None) -> list[Tensor]:
        found = cameras.rays(view, i, j, 2.0, 6.0)
        return [found.origins, found.directions, found.viewdirs]

    yield Case("camera_rays", through_pixels)
