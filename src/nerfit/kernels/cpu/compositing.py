"""Packed volume rendering on CPUs, forward and backward."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels.cpu.runtime import kernel, run_parallel
from nerfit.kernels.cpu.tensors import array, f32

_ZERO, _ONE = np.float32(0), np.float32(1)


@kernel
def _composite_forward(part, parts, samples, early_stop, out):
    """``out``: colour, opacity and depth of the rays, weights of the samples.

    ``samples`` is (density, rgb, length, t, offsets).
    """
    density, rgb, length, t, offsets = samples
    color, opacity, depth, weights = out
    n = offsets.size - 1
    for i in range(n * part // parts, n * (part + 1) // parts):
        light = _ONE
        r = g = b = o = d = _ZERO
        for s in range(offsets[i], offsets[i + 1]):
            w = _ZERO
            if light >= early_stop:
                left = light * np.exp(-density[s] * length[s])
                w = light - left
                light = left
                r += w * rgb[s, 0]
                g += w * rgb[s, 1]
                b += w * rgb[s, 2]
                o += w
                d += w * t[s]
            weights[s] = w
        color[i, 0], color[i, 1], color[i, 2], opacity[i], depth[i] = r, g, b, o, d


@kernel
def _composite_backward(part, parts, samples, weights, early_stop, given, out):
    """``out``, gradients of the densities and colours: dL/dσᵢ = δᵢ (Tᵢ₊₁ gᵢ - Σ_{j>i} wⱼ gⱼ), gᵢ = dL/dwᵢ.

    ``samples`` and ``weights`` are `_composite_forward`'s, ``given`` the gradients of its outputs.
    """
    density, rgb, length, t, offsets = samples
    g_color, g_opacity, g_depth, g_weights = given
    g_density, g_rgb = out
    n = offsets.size - 1
    for i in range(n * part // parts, n * (part + 1) // parts):
        begin, end = offsets[i], offsets[i + 1]
        rest = _ZERO
        for s in range(begin, end):
            g = g_color[i, 0] * rgb[s, 0] + g_color[i, 1] * rgb[s, 1] + g_color[i, 2] * rgb[s, 2]
            g += g_opacity[i] + g_depth[i] * t[s] + g_weights[s]
            rest += weights[s] * g
            g_density[s] = g
        light = _ONE
        for s in range(begin, end):
            w = weights[s]
            if light < early_stop:
                g_density[s] = 0
            else:
                g = g_density[s]
                light *= np.exp(-density[s] * length[s])
                rest -= w * g
                g_density[s] = length[s] * (light * g - rest)
            for c in range(3):
                g_rgb[s, c] = w * g_color[i, c]


def composite_forward(density: Tensor, rgb: Tensor, length: Tensor, t: Tensor, offsets: Tensor, early_stop: float) -> Any:
    """Colour, opacity, depth, weights."""
    rays = len(offsets) - 1
    out = torch.empty(rays, 3), torch.empty(rays), torch.empty(rays), torch.empty(len(density))
    samples = tuple(map(array, (density, rgb, length, t, offsets)))
    run_parallel(_composite_forward, samples, f32(early_stop), tuple(map(array, out)))
    return out


def composite_backward(
    density: Tensor, rgb: Tensor, length: Tensor, t: Tensor, offsets: Tensor, weights: Tensor, early_stop: float, *gradients: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of densities and colours."""
    g_density, g_rgb = torch.empty_like(density), torch.empty_like(rgb)
    samples = tuple(map(array, (density, rgb, length, t, offsets)))
    given, out = tuple(map(array, gradients)), (array(g_density), array(g_rgb))
    run_parallel(_composite_backward, samples, array(weights), f32(early_stop), given, out)
    return g_density, g_rgb
