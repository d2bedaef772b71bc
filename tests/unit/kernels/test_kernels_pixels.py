"""Pixels drawn at random and the rays through them, by kernels: against whole-number arithmetic and against `Cameras.directions`."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import assert_close
from nerfit.cameras import Cameras
from nerfit.kernels.layouts import ATTEMPTS, Optics, PixelTable
from nerfit.kernels.pixels import camera_rays, draw_pixels

SIZES = pytest.mark.parametrize("n", [0, 1, 7, 1000])
WIDTH, HEIGHT = torch.tensor([7, 5, 11]), torch.tensor([3, 9, 4])
STARTS = torch.tensor([0, 21, 66])
VIEWS = torch.tensor([2, 0])
MASK = 2**64 - 1


def stored(channels: int, opaque: float = 0.3) -> Tensor:
    """Three images one after another; of those with alpha the given share of pixels can be seen."""
    generator = torch.Generator().manual_seed(channels)
    pixels = torch.randint(0, 256, (110, channels), dtype=torch.uint8, generator=generator)
    if channels == 4:
        pixels[:, 3] = (torch.rand(110, generator=generator) < opaque) * 200
    return pixels


def splitmix(key: int, number: int) -> int:
    """The generator's output after ``number`` steps from state ``key`` (Steele, Lea and Flood 2014)."""
    z = key + number * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def draw_twin(pixels: Tensor, count: int, key: int, empty: float) -> list[tuple[int, int, int, list[float]]]:
    drawn = []
    for i in range(count):
        view, x, y, pixel = 0, 0, 0, []
        for attempt in range(ATTEMPTS):
            first, second = (splitmix(key, 2 * (attempt * count + i) + k) for k in (0, 1))
            view = VIEWS.tolist()[(first >> 32) * len(VIEWS) >> 32]
            x, y = (second >> 32) * int(WIDTH[view]) >> 32, (second & 0xFFFFFFFF) * int(HEIGHT[view]) >> 32
            pixel = pixels[int(STARTS[view]) + y * int(WIDTH[view]) + x].tolist()
            if len(pixel) == 3 or pixel[3] > 0 or (first & 0xFFFFFFFF) < round(empty * 2**32):
                break
        drawn.append((view, x, y, [c / 255 for c in pixel]))
    return drawn


def test_splitmix_is_splitmix64():
    assert [splitmix(0, k) for k in (1, 2, 3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@SIZES
@pytest.mark.parametrize("backend", ["", "reference"])
@pytest.mark.parametrize("channels, empty", [(3, 0.0), (4, 0.0), (4, 0.25), (4, 1.0)])
@pytest.mark.parametrize("key", [0, 2**63 - 1])
def test_pixels_follow_their_twin(monkeypatch, backend, channels, empty, key, n):
    monkeypatch.setenv("NERFIT_KERNELS", backend)
    pixels = stored(channels)
    view, x, y, colors = draw_pixels(PixelTable(pixels, STARTS, WIDTH, HEIGHT), VIEWS, n, key, empty)
    assert {view.dtype, x.dtype, y.dtype} == {torch.int64}
    assert (colors.dtype, colors.shape) == (torch.float32, (n, channels))
    twin = draw_twin(pixels, n, key, empty)
    assert list(zip(view.tolist(), x.tolist(), y.tolist(), strict=True)) == [drawn[:3] for drawn in twin]
    if n:
        assert_close(colors, [drawn[3] for drawn in twin], 1e-6)


def test_pixels_are_uniform_and_the_empty_ones_as_many_as_wanted():
    n = 100_000
    view, x, y, _ = draw_pixels(PixelTable(stored(3), STARTS, WIDTH, HEIGHT), VIEWS, n, 1, 0.0)
    assert not (view == 1).any()
    for v in (0, 2):
        cells = (y * WIDTH[v] + x)[view == v].bincount(minlength=int(WIDTH[v] * HEIGHT[v]))
        expected = n / 2 / len(cells)
        assert ((cells - expected).abs() < 5 * math.sqrt(expected)).all()
    pixels = stored(4)
    for empty in (0.0, 0.25, 1.0):
        view, x, y, colors = draw_pixels(PixelTable(pixels, STARTS, WIDTH, HEIGHT), VIEWS, n, 2, empty)
        expected = 0.0
        for v in (0, 2):
            begin = int(STARTS[v])
            seen = (pixels[begin : begin + int(WIDTH[v] * HEIGHT[v]), 3] > 0).double().mean().item()
            expected += (1 - seen) / 2
        kept = expected * empty  # each attempt ends at an empty pixel with this probability, at another with 1 - expected
        retried = expected * (1 - empty)
        wanted = kept * (1 - retried**ATTEMPTS) / (1 - retried) + retried**ATTEMPTS
        assert (colors[:, 3] == 0).double().mean().item() == pytest.approx(wanted, abs=0.01)
    view, x, y, colors = draw_pixels(PixelTable(stored(4, 0.0), STARTS, WIDTH, HEIGHT), VIEWS, 100, 3, 0.0)
    assert (colors[:, 3] == 0).all()


def cameras_of(distorted: bool, lens: bool = False) -> Cameras:
    """Three cameras; of different kinds with ``lens``."""
    generator = torch.Generator().manual_seed(4)
    q, _ = torch.linalg.qr(torch.randn(3, 3, 3, generator=generator))
    c2w = torch.cat([q, torch.randn(3, 3, 1, generator=generator)], -1).contiguous()
    fx, fy = 300 + 50 * torch.rand(2, 3, generator=generator)
    size = torch.tensor([400, 320, 256]), torch.tensor([300, 240, 256])
    most = torch.tensor([0.1, -0.05, 0.02, 0.01, 0.002, -0.001, 0.04, 0.02, -0.01, 0.003, -0.002, 0.001, 0.004])
    k = most * torch.rand(3, 13, generator=generator) if distorted else None
    return Cameras(c2w, fx, fy, size[0] / 2 + 3.5, size[1] / 2 - 2, *size, k, 0.5, torch.arange(3) if lens else None)


def fast_rays(cameras: Cameras, views: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    intrinsics = (cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.lens, cameras.distortion)
    found = camera_rays(Optics(cameras.c2w, *intrinsics, 0.5, 12), views, x, y)
    assert found is not None
    return found


@SIZES
@pytest.mark.parametrize("distorted", [False, True])
@pytest.mark.parametrize("lens", [False, True])
def test_rays_are_those_of_the_cameras(lens, distorted, n):
    cameras = cameras_of(distorted, lens)
    views = torch.arange(n) % 3
    x, y = (torch.randint(0, 240, (n,), generator=torch.Generator().manual_seed(k)) for k in (5, 6))
    doubles = {name: t.double() for name in ("c2w", "fx", "fy", "cx", "cy", "distortion") if (t := getattr(cameras, name)) is not None}
    directions = replace(cameras, **doubles).directions(views, x, y)
    expected = (directions, torch.nn.functional.normalize(directions, dim=-1), cameras.c2w[views, :, 3])
    for value, reference in zip(fast_rays(cameras, views, x, y), expected, strict=True):
        assert value.dtype == torch.float32
        assert_close(value, reference, 1e-6)


def test_rays_that_a_lens_cannot_show_are_finite():
    cameras = cameras_of(True, True)
    generator = torch.Generator().manual_seed(2)
    cameras.distortion = torch.randn(3, 13, generator=generator) * torch.tensor([[1.0], [30.0], [1e9]])
    views = torch.arange(3000) % 3
    x, y = torch.randint(-4000, 4000, (2, 3000), generator=generator)
    assert all(values.isfinite().all() for values in fast_rays(cameras, views, x, y))


def test_learned_cameras_and_parts_of_pixels_have_no_fast_rays(monkeypatch):
    cameras = cameras_of(False)
    views = torch.zeros(4, dtype=torch.long)
    fast: list[Any] = [cameras.c2w, cameras.fx, cameras.fy, cameras.cx, cameras.cy, None, None, 0.5, 12, views, views, views]
    assert camera_rays(Optics(*fast[:9]), *fast[9:]) is not None
    for place, other in (
        (10, views + 0.5),
        (0, cameras.c2w.clone().requires_grad_()),
        (1, cameras.fx.double()),
        (5, torch.zeros(3)),
        (9, torch.zeros(8).long()[::2]),
    ):
        changed = fast.copy()
        changed[place] = other
        assert camera_rays(Optics(*changed[:9]), *changed[9:]) is None
    monkeypatch.setenv("NERFIT_KERNELS", "reference")
    assert camera_rays(Optics(*fast[:9]), *fast[9:]) is None
