"""Random training pixels, and the rays through pixels."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerfit.kernels.dispatch import backend, implementation
from nerfit.kernels.layouts import ATTEMPTS, Optics, PixelTable


def draw_pixels(
    table: PixelTable,
    views: Int[Tensor, "chosen"],
    count: int,
    key: int,
    empty: float,
    first: int = 0,
    every: int = 1,
) -> tuple[Int[Tensor, "drawn"], Int[Tensor, "drawn"], Int[Tensor, "drawn"], Float[Tensor, "drawn channels"]]:
    """``count`` pixels of the given views with replacement: view, x, y (int64) and colour in [0, 1].

    Of them only every so many-th is drawn, from the ``first`` on.
    View, column and row are uniform, a function of ``key`` (below 2⁶³) alone. Where there is alpha, a fully transparent pixel
    is taken with probability ``empty``, else another is tried, up to `ATTEMPTS` times.
    """
    threshold = round(min(max(empty, 0.0), 1.0) * 2**32)
    device = table.pixels.device
    draw = implementation(device, "pixels").draw_pixels if backend(device) == "cpu" else draw_pixels_reference
    return draw(table, views, count, key, threshold, first, every)


def draw_pixels_reference(table: PixelTable, views: Tensor, count: int, key: int, threshold: int, first: int = 0, every: int = 1) -> Any:
    """`draw_pixels` in PyTorch, with the chance to keep an empty pixel in 1/2³²."""
    pixels, starts, width, height = table.pixels, table.starts, table.width, table.height
    device = pixels.device
    number = torch.arange(min(first, count), count, every, device=device)
    view, x, y = (torch.zeros_like(number) for _ in range(3))
    found = torch.zeros_like(number, dtype=torch.bool)
    for attempt in range(ATTEMPTS):
        one = _splitmix(key, 2 * (attempt * count + number))
        two = _splitmix(key, 2 * (attempt * count + number) + 1)
        v = views[_high(one) * len(views) >> 32]
        i, j = _high(two) * width[v] >> 32, (two & 0xFFFFFFFF) * height[v] >> 32
        view, x, y = torch.where(found, view, v), torch.where(found, x, i), torch.where(found, y, j)
        if pixels.shape[1] == 3:
            break
        opaque = pixels[starts[v] + j * width[v] + i, 3] > 0
        found |= opaque | ((one & 0xFFFFFFFF) < threshold)
    return view, x, y, pixels[starts[view] + y * width[view] + x].to(torch.float32) / 255


def _high(word: Tensor) -> Tensor:
    """The upper 32 bits."""
    return (word >> 32) & 0xFFFFFFFF


def _splitmix(key: int, number: Tensor) -> Tensor:
    """64 well-mixed bits of a key and a counter (Steele, Lea and Flood 2014)."""
    z = number * _signed(0x9E3779B97F4A7C15) + key
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * _signed(0x94D049BB133111EB)
    return z ^ (z >> 31 & (1 << 33) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64)


def camera_rays(
    optics: Optics, views: Int[Tensor, "rays"], x: Int[Tensor, "rays"], y: Int[Tensor, "rays"]
) -> tuple[Float[Tensor, "rays 3"], Float[Tensor, "rays 3"], Float[Tensor, "rays 3"]] | None:
    """Directions, unit directions and origins of the rays through pixels; None where no fast body applies.

    The definition is `Cameras.directions`; this is for whole numbers of pixels and cameras that are not being learned.
    """
    o = optics
    tensors = [t for t in (o.c2w, o.fx, o.fy, o.cx, o.cy, o.distortion) if t is not None]
    plain = all(t.dtype == torch.float32 and t.is_contiguous() and not t.requires_grad for t in tensors)
    whole = all(t.dtype == torch.int64 and t.is_contiguous() for t in (o.lens, views, x, y) if t is not None)
    if backend(o.c2w.device) != "cpu" or not (plain and whole):
        return None
    return implementation(o.c2w.device, "pixels").camera_rays(optics, views, x, y)
