"""Packed volume rendering on CPUs, forward and backward."""

import numpy as np

from nerfit.kernels.cpu.runtime import kernel

_ZERO, _ONE = np.float32(0), np.float32(1)


@kernel
def composite_forward(part, parts, density, rgb, length, t, offsets, early_stop, color, opacity, depth, weights):
    """Colour, opacity and depth of the rays, weights of the samples."""
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
def composite_backward(
    part, parts, density, rgb, length, t, offsets, weights, early_stop, g_color, g_opacity, g_depth, g_weights, g_density, g_rgb
):
    """Gradients of the densities and colours: dL/dσᵢ = δᵢ (Tᵢ₊₁ gᵢ - Σ_{j>i} wⱼ gⱼ), gᵢ = dL/dwᵢ."""
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
