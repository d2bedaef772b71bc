"""Packed volume rendering on GPUs: one warp per ray takes 32 samples at a time."""

# pyright: reportOperatorIssue=false

import torch
import triton.language as tl
from torch import Tensor

from nerfit.kernels.triton.runtime import jit, launch

WARP = tl.constexpr(32)


def composite_forward(
    density: Tensor, rgb: Tensor, length: Tensor, t: Tensor, offsets: Tensor, early_stop: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colour, opacity, depth, weights."""
    rays = len(offsets) - 1
    out = density.new_empty(rays, 3), density.new_empty(rays), density.new_empty(rays), torch.empty_like(density)
    args = (density, rgb, length.contiguous(), t.contiguous(), offsets.contiguous(), early_stop)
    launch(_composite, (rays,), *args, *out, num_warps=1)
    return out


def composite_backward(
    density: Tensor, rgb: Tensor, length: Tensor, t: Tensor, offsets: Tensor, weights: Tensor, early_stop: float, *gradients: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of densities and colours."""
    out = torch.empty_like(density), torch.empty_like(rgb)
    args = (density, rgb, length.contiguous(), t.contiguous(), offsets.contiguous(), weights, early_stop)
    launch(_composite_backward, (len(offsets) - 1,), *args, *gradients, *out, num_warps=1)
    return out


@jit
def _composite(density, rgb, length, t, offsets, early_stop, color, opacity, depth, weights):
    ray = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + ray), tl.load(offsets + ray + 1)
    before, r, g, b, o, d = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for start in range(begin, end, WARP):
        s = start + tl.arange(0, WARP)
        light, left, before = _light(density, length, begin, end, s, before)
        w = tl.where(light >= early_stop, light - left, 0.0)
        tl.store(weights + s, w, s < end)
        r += tl.sum(w * tl.load(rgb + 3 * s, s < end, 0.0), 0)
        g += tl.sum(w * tl.load(rgb + 3 * s + 1, s < end, 0.0), 0)
        b += tl.sum(w * tl.load(rgb + 3 * s + 2, s < end, 0.0), 0)
        o += tl.sum(w, 0)
        d += tl.sum(w * tl.load(t + s, s < end, 0.0), 0)
    tl.store(color + 3 * ray, r)
    tl.store(color + 3 * ray + 1, g)
    tl.store(color + 3 * ray + 2, b)
    tl.store(opacity + ray, o)
    tl.store(depth + ray, d)


@jit
def _light(density, length, begin, end, s, before):
    """Transmittance before and after the samples s, and the optical depth before the last; ``before`` them is that much."""
    own = tl.load(density + s, s < end, 0.0) * tl.load(length + s, s < end, 0.0)
    last = (s > begin) & (s <= end)
    last = tl.load(density + s - 1, last, 0.0) * tl.load(length + s - 1, last, 0.0)
    depth = before + tl.cumsum(last, 0)
    light = tl.exp(-depth)
    return light, light * tl.exp(-own), before + tl.sum(last, 0)


@jit
def _composite_backward(density, rgb, length, t, offsets, weights, early_stop, g_color, g_opacity, g_depth, g_weights, g_density, g_rgb):
    """dL/dσᵢ = δᵢ (Tᵢ₊₁ gᵢ - Σ_{j>i} wⱼ gⱼ), gᵢ = dL/dwᵢ."""
    ray = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + ray), tl.load(offsets + ray + 1)
    red, green, blue = tl.load(g_color + 3 * ray), tl.load(g_color + 3 * ray + 1), tl.load(g_color + 3 * ray + 2)
    o, d = tl.load(g_opacity + ray), tl.load(g_depth + ray)
    rest = 0.0
    for start in range(begin, end, WARP):
        s = start + tl.arange(0, WARP)
        g = _weight_gradient(rgb, t, g_weights, s, end, red, green, blue, o, d)
        w = tl.load(weights + s, s < end, 0.0)
        rest += tl.sum(w * g, 0)
        tl.store(g_rgb + 3 * s, w * red, s < end)
        tl.store(g_rgb + 3 * s + 1, w * green, s < end)
        tl.store(g_rgb + 3 * s + 2, w * blue, s < end)
    before = 0.0
    for start in range(begin, end, WARP):
        s = start + tl.arange(0, WARP)
        g = _weight_gradient(rgb, t, g_weights, s, end, red, green, blue, o, d)
        light, left, before = _light(density, length, begin, end, s, before)
        wg = tl.load(weights + s, s < end, 0.0) * g
        slope = tl.load(length + s, s < end, 0.0) * (left * g - (rest - tl.cumsum(wg, 0)))
        tl.store(g_density + s, tl.where(light >= early_stop, slope, 0.0), s < end)
        rest -= tl.sum(wg, 0)


@jit
def _weight_gradient(rgb, t, g_weights, s, end, red, green, blue, o, d):
    g = red * tl.load(rgb + 3 * s, s < end, 0.0) + green * tl.load(rgb + 3 * s + 1, s < end, 0.0)
    g += blue * tl.load(rgb + 3 * s + 2, s < end, 0.0) + o + d * tl.load(t + s, s < end, 0.0)
    return g + tl.load(g_weights + s, s < end, 0.0)
