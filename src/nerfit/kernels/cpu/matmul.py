"""Matrix products of the fused field, on blocks of ``LANES`` samples.

Two sets of the same functions: float32 with vectors of 16 lanes, and bfloat16 with float32 sums on the tile unit (Intel AMX).
A product takes an *operand*, a block's channels in a form of its own, and gives float32, channel-major ([channel, lane]), or the
next product's operand, rounded while it is at hand. An operand has room for channels · LANES float32 and holds

- in float32, the channels as they are;
- on tiles, two bfloat16 per word: for every 16 lanes a column [channels/2, 16] of channels 16 apart. An operand of gradients has a
  second half, for products over lanes: for every 32 lanes a column [channels, 16] of lanes 16 apart.
"""

import numpy as np

from nerfit.kernels.cpu.amx import (
    backward16,
    configure,
    forward16,
    forward_relu16,
    release,
    take16,
    take_lanes16,
    weight_gradient16,
)
from nerfit.kernels.cpu.blocks import LANES
from nerfit.kernels.cpu.runtime import inlined, part_of_kernel
from nerfit.kernels.cpu.vectors import fma, has_wide_registers, load16, positive_part, splat16, splat16_of, store16, transpose16


@inlined
def tile8(a, a_at, a_stride, x, x_at, x_stride, y, y_at, y_stride, depth, accumulate):
    """y [8, 32] = (y +) a [8, depth] x [depth, 32]: 16 sums, for 32 registers of 16 lanes."""
    zero = splat16(np.float32(0))
    s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = s40 = s41 = s50 = s51 = s60 = s61 = s70 = s71 = zero
    for k in range(depth):
        at = x_at + k * x_stride
        u, v = load16(x, at), load16(x, at + 16)
        w = splat16_of(a, a_at + k)
        s00, s01 = fma(w, u, s00), fma(w, v, s01)
        w = splat16_of(a, a_at + a_stride + k)
        s10, s11 = fma(w, u, s10), fma(w, v, s11)
        w = splat16_of(a, a_at + 2 * a_stride + k)
        s20, s21 = fma(w, u, s20), fma(w, v, s21)
        w = splat16_of(a, a_at + 3 * a_stride + k)
        s30, s31 = fma(w, u, s30), fma(w, v, s31)
        w = splat16_of(a, a_at + 4 * a_stride + k)
        s40, s41 = fma(w, u, s40), fma(w, v, s41)
        w = splat16_of(a, a_at + 5 * a_stride + k)
        s50, s51 = fma(w, u, s50), fma(w, v, s51)
        w = splat16_of(a, a_at + 6 * a_stride + k)
        s60, s61 = fma(w, u, s60), fma(w, v, s61)
        w = splat16_of(a, a_at + 7 * a_stride + k)
        s70, s71 = fma(w, u, s70), fma(w, v, s71)
    _put(y, y_at, s00, s01, accumulate)
    _put(y, y_at + y_stride, s10, s11, accumulate)
    _put(y, y_at + 2 * y_stride, s20, s21, accumulate)
    _put(y, y_at + 3 * y_stride, s30, s31, accumulate)
    _put(y, y_at + 4 * y_stride, s40, s41, accumulate)
    _put(y, y_at + 5 * y_stride, s50, s51, accumulate)
    _put(y, y_at + 6 * y_stride, s60, s61, accumulate)
    _put(y, y_at + 7 * y_stride, s70, s71, accumulate)


@inlined
def _put(y, at, u, v, accumulate):
    if accumulate:
        u, v = u + load16(y, at), v + load16(y, at + 16)
    store16(y, at, u)
    store16(y, at + 16, v)


@inlined
def tile4(a, a_at, a_stride, x, x_at, x_stride, y, y_at, y_stride, depth, accumulate):
    """y [4, 16] = (y +) a [4, depth] x [depth, 16]: 8 sums, for 16 registers of 8 lanes."""
    s0 = s1 = s2 = s3 = splat16(np.float32(0))
    for k in range(depth):
        u = load16(x, x_at + k * x_stride)
        s0 = fma(splat16_of(a, a_at + k), u, s0)
        s1 = fma(splat16_of(a, a_at + a_stride + k), u, s1)
        s2 = fma(splat16_of(a, a_at + 2 * a_stride + k), u, s2)
        s3 = fma(splat16_of(a, a_at + 3 * a_stride + k), u, s3)
    if accumulate:
        s0, s1 = s0 + load16(y, y_at), s1 + load16(y, y_at + y_stride)
        s2, s3 = s2 + load16(y, y_at + 2 * y_stride), s3 + load16(y, y_at + 3 * y_stride)
    store16(y, y_at, s0)
    store16(y, y_at + y_stride, s1)
    store16(y, y_at + 2 * y_stride, s2)
    store16(y, y_at + 3 * y_stride, s3)


def product_by(tile, tall, wide):
    """The product y [rows, columns] = (y +) a [rows, depth] x [depth, columns] by a ``tile`` of [tall, wide] sums."""

    @part_of_kernel
    def product(a, a_at, a_stride, x, x_at, x_stride, y, y_at, y_stride, rows, depth, columns, accumulate):
        for i in range(0, columns, wide):
            for j in range(0, rows, tall):
                tile(a, a_at + j * a_stride, a_stride, x, x_at + i, x_stride, y, y_at + j * y_stride + i, y_stride, depth, accumulate)

    return product


_product = product_by(tile8, 8, 32) if has_wide_registers() else product_by(tile4, 4, 16)


@part_of_kernel
def _take32(x, channels, out):
    for i in range(0, channels * LANES, 16):
        store16(out, i, load16(x, i))


@part_of_kernel
def _forward32(w, m, x, y):
    _product(w, m.at, m.depth, x, 0, LANES, y, 0, LANES, m.rows, m.depth, LANES, False)


@part_of_kernel
def _gated32(w, m, x, gate, y):
    """y = w x where the gate is positive, else 0."""
    _forward32(w, m, x, y)
    for i in range(0, m.rows * LANES, 16):
        store16(y, i, positive_part(load16(y, i), load16(gate, i)))


@part_of_kernel
def _weight_gradient32(g, x, dw, m, scratch):
    for k in range(0, m.depth, 16):
        for i in range(0, LANES, 16):
            transpose16(x, k * LANES + i, LANES, scratch, i * m.depth + k, m.depth)
    _product(g, 0, LANES, scratch, 0, m.depth, dw, m.at, m.depth, m.rows, LANES, m.depth, True)


@inlined
def begin(tiles):
    """To be called by a thread before its first product."""
    if tiles:
        configure()


@inlined
def end(tiles):
    """To be called by a thread after its last product."""
    if tiles:
        release()


@inlined
def take(tiles, x, channels, out):
    """The operand of float32 x [channels, LANES], a multiple of 32 channels."""
    if tiles:
        take16(x, channels, out)
    else:
        _take32(x, channels, out)


@inlined
def take_gradient(tiles, x, channels, out):
    """The operand of gradients x [channels, LANES]."""
    take(tiles, x, channels, out)
    if tiles:
        take_lanes16(x, channels, out)


@inlined
def forward(tiles, w, w16, m, x, y):
    """y [rows, LANES] = w x, of matrix ``m`` and an operand; ``w16`` is w after `round16`."""
    if tiles:
        forward16(w16, m, x, y)
    else:
        _forward32(w, m, x, y)


@inlined
def forward_relu(tiles, w, w16, m, x, y, scratch):
    """y, an operand, = max(w x, 0); ``scratch`` has room for 1024 floats."""
    if tiles:
        forward_relu16(w16, m, x, y, scratch)
    else:
        _gated32(w, m, x, y, y)


@inlined
def backward(tiles, w, w16, m, g, gate, y, scratch):
    """y, an operand of gradients, = w g where an operand, the gate, is positive, else 0; w is a transposed matrix."""
    if tiles:
        backward16(w16, m, g, gate, y, scratch)
    else:
        _gated32(w, m, g, gate, y)


@inlined
def weight_gradient(tiles, g, x, dw, m, scratch):
    """dw, at ``m``, += g [rows, LANES] xᵀ [LANES, depth], both operands; ``scratch`` has room for depth · LANES floats.

    With 16 rows, g is the first half of 32 channels.
    """
    if tiles:
        weight_gradient16(g, x, dw, m, scratch)
    else:
        _weight_gradient32(g, x, dw, m, scratch)
