"""Matrix products of the fused field, on strips of ``STRIP`` samples stored channel-major ([channel, lane]).

Two sets of the same two functions: float32 with vectors of 16 lanes, and bfloat16 with float32 sums on the tile unit
(Intel AMX). Both take and give float32; the second rounds its inputs on the way into the tiles. An input may come with a gate of
its size: it then counts as 0 where the gate is not positive. One that is its own gate goes through a ReLU, and what it
holds itself afterwards is either.
"""

import ctypes
import platform
from collections import namedtuple
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types

from nerfit.kernels.cpu.runtime import inlined, intrinsic, part_of_kernel
from nerfit.kernels.cpu.vectors import _call, _index, _pointer, fma, i32x16, load16, positive_part, splat16, store16, transpose16

LANES = 128
"""Samples of a block."""
STRIP = 64
"""Samples of a block that go through all layers together: what is between two layers then stays in the first-level cache."""

Matrix = namedtuple("Matrix", "at rows depth")
"""Where in an array a matrix begins, and its size; rows are a multiple of 16, depth of 32."""
Place = namedtuple("Place", "at stride")
"""Where in an array a strip's channels are: channel k from at + k * stride on."""
# (Tuples hold numbers alone: to take an array out of one costs two atomic operations, as much as a small product.)


@part_of_kernel
def aligned(size):
    """Room for so many float32, from the beginning of a cache line on: vectors that lie across two lines take twice as long."""
    room = np.empty(size + 16, np.float32)
    first = (-room.ctypes.data // 4) % 16
    return room[first : first + size]


@part_of_kernel
def aligned_zeros(size):
    """The same, with zeros."""
    room = aligned(size)
    room[:] = np.float32(0)
    return room


@inlined
def _tile(a, a_at, a_stride, x, x_at, x_stride, y, y_at, y_stride, depth, accumulate):
    """y [8, 32] = (y +) a [8, depth] x [depth, 32]: 16 sums in registers."""
    zero = splat16(np.float32(0))
    s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = s40 = s41 = s50 = s51 = s60 = s61 = s70 = s71 = zero
    for k in range(depth):
        at = x_at + k * x_stride
        u, v = load16(x, at), load16(x, at + 16)
        w = splat16(a[a_at + k])
        s00, s01 = fma(w, u, s00), fma(w, v, s01)
        w = splat16(a[a_at + a_stride + k])
        s10, s11 = fma(w, u, s10), fma(w, v, s11)
        w = splat16(a[a_at + 2 * a_stride + k])
        s20, s21 = fma(w, u, s20), fma(w, v, s21)
        w = splat16(a[a_at + 3 * a_stride + k])
        s30, s31 = fma(w, u, s30), fma(w, v, s31)
        w = splat16(a[a_at + 4 * a_stride + k])
        s40, s41 = fma(w, u, s40), fma(w, v, s41)
        w = splat16(a[a_at + 5 * a_stride + k])
        s50, s51 = fma(w, u, s50), fma(w, v, s51)
        w = splat16(a[a_at + 6 * a_stride + k])
        s60, s61 = fma(w, u, s60), fma(w, v, s61)
        w = splat16(a[a_at + 7 * a_stride + k])
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


@part_of_kernel
def _product(a, a_at, a_stride, x, x_at, x_stride, y, y_at, y_stride, rows, depth, columns, accumulate):
    for j in range(0, rows, 8):
        for i in range(0, columns, 32):
            _tile(a, a_at + j * a_stride, a_stride, x, x_at + i, x_stride, y, y_at + j * y_stride + i, y_stride, depth, accumulate)


@part_of_kernel
def _close(x, x_at, gate, gate_at, channels):
    """x where its gate is positive, else 0."""
    for k in range(channels):
        for i in range(0, STRIP, 16):
            at = x_at.at + k * x_at.stride + i
            store16(x, at, positive_part(load16(x, at), load16(gate, gate_at.at + k * gate_at.stride + i)))


@part_of_kernel
def _forward32(w, m, x, x_at, gate, gate_at, y, y_at):
    if gate.size:
        _close(x, x_at, gate, gate_at, m.depth)
    _product(w, m.at, m.depth, x, x_at.at, x_at.stride, y, y_at.at, y_at.stride, m.rows, m.depth, STRIP, False)


@part_of_kernel
def _weight_gradient32(g, g_at, g_gate, g_gate_at, x, x_at, x_gate, dw, m, scratch):
    if g_gate.size:
        _close(g, g_at, g_gate, g_gate_at, m.rows)
    if x_gate.size:
        _close(x, x_at, x_gate, x_at, m.depth)
    for k in range(0, m.depth, 16):
        for i in range(0, STRIP, 16):
            transpose16(x, x_at.at + k * x_at.stride + i, x_at.stride, scratch, i * m.depth + k, m.depth)
    _product(g, g_at.at, g_at.stride, scratch, 0, m.depth, dw, m.at, m.depth, m.rows, STRIP, m.depth, True)


@cache
def has_tiles() -> bool:
    """Whether this processor has bfloat16 tiles and the system lets us use them."""
    if platform.system() != "Linux" or not llvm.get_host_cpu_features().get("amx-bf16"):
        return False
    request, tile_data = 0x1023, 18  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    return ctypes.CDLL(None).syscall(158, request, tile_data) == 0


# ---- bfloat16 on tiles: 16 rows of 64 bytes; dot(c, a, b): c [16, 16] float32 += a [16, 32] b [32, 16], b's rows interleaved in pairs

_I8, _I64 = ir.IntType(8), ir.IntType(64)


def _tile_op(name: str, *operands: str) -> Any:
    """A tile instruction; operands are "tile" (a literal number) or "memory" (array, offset in elements, row stride in bytes)."""

    def emit_with(array: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            values = [ir.Constant(_I8, kind.literal_value) for kind in sig.args if isinstance(kind, types.IntegerLiteral)]
            if array is not None:
                at = len(values)
                start = _index(builder, sig.args[at + 1], args[at + 1])
                memory = _pointer(context, builder, sig.args[at], args[at], start, _I8)
                values += [memory, _index(builder, sig.args[at + 2], args[at + 2])]
            _call(builder, f"llvm.x86.{name}", ir.VoidType(), values)
            return context.get_dummy_value()

        return emit

    if "memory" in operands:

        @intrinsic(prefer_literal=True)
        def with_memory(typingctx: Any, tile: Any, array: Any, offset: Any, stride: Any) -> Any:
            plain = [types.unliteral(t) for t in (offset, stride)]
            return types.void(tile, array, *plain), emit_with(array)

        return with_memory
    if len(operands) == 3:

        @intrinsic(prefer_literal=True)
        def three(typingctx: Any, c: Any, a: Any, b: Any) -> Any:
            return types.void(c, a, b), emit_with(None)

        return three

    @intrinsic(prefer_literal=True)
    def one(typingctx: Any, c: Any) -> Any:
        return types.void(c), emit_with(None)

    return one


_tile_zero = _tile_op("tilezero", "tile")
_tile_load = _tile_op("tileloadd64", "tile", "memory")
_tile_store = _tile_op("tilestored64", "tile", "memory")
_tile_dot = _tile_op("tdpbf16ps", "tile", "tile", "tile")


@intrinsic
def _tile_configure(typingctx: Any, config: Any) -> Any:
    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(builder, "llvm.x86.ldtilecfg", ir.VoidType(), [_pointer(context, builder, config, args[0], ir.Constant(_I64, 0), _I8)])
        return context.get_dummy_value()

    return types.void(config), emit


@intrinsic
def _tile_release(typingctx: Any) -> Any:
    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(builder, "llvm.x86.tilerelease", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def _store_halves(typingctx: Any, array: Any, index: Any, low: Any, high: Any) -> Any:
    """Store 2 x 16 float32 as 32 neighbouring bfloat16 at ``index`` (in int32 elements of ``array``)."""
    words = ir.VectorType(ir.IntType(16), 32)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        nearest = ir.Constant(i32x16.llvm, [0x8000] * 16)
        bits = [builder.bitcast(builder.add(builder.bitcast(a, i32x16.llvm), nearest), words) for a in args[2:]]
        upper = ir.Constant(ir.VectorType(ir.IntType(32), 32), list(range(1, 64, 2)))
        short = builder.shuffle_vector(*bits, upper)
        builder.store(short, _pointer(context, builder, array, args[0], _index(builder, index, args[1]), words), align=4)
        return context.get_dummy_value()

    return types.void(array, index, low, high), emit


_CONFIG = np.zeros(64, np.uint8)
_CONFIG[0] = 1  # palette
_CONFIG[16:32].view(np.uint16)[:] = 64  # bytes per row of each of the 8 tiles
_CONFIG[48:56] = 16  # rows


@part_of_kernel
def round16(w, out):
    """float32 numbers (a multiple of 32) as bfloat16, two per int32."""
    for i in range(0, w.size, 32):
        _store_halves(out, i // 2, load16(w, i), load16(w, i + 16))


@part_of_kernel
def _tiles(a, a_at, a_row, a_column, x, x_at, y, y_at, y_stride, rows, depth, columns, accumulate):
    """y [rows, columns] = (y +) a [rows, depth] x [depth, columns], a and x two per int32 (x: of two rows); columns a multiple of 32.

    Both consist of columns of 16 int32: those of x are [depth/2, 16], one after another; those of a begin ``a_column`` apart, rows
    ``a_row``.
    """
    for i in range(0, columns, 32):
        left, right = x_at + i * depth // 2, x_at + (i + 16) * depth // 2
        j = 0
        while j + 32 <= rows:
            at = y_at + j * y_stride + i
            if accumulate:
                _tile_load(0, y, at, 4 * y_stride)
                _tile_load(1, y, at + 16, 4 * y_stride)
                _tile_load(2, y, at + 16 * y_stride, 4 * y_stride)
                _tile_load(3, y, at + 16 * y_stride + 16, 4 * y_stride)
            else:
                _tile_zero(0)
                _tile_zero(1)
                _tile_zero(2)
                _tile_zero(3)
            for k in range(depth // 32):
                _tile_load(4, a, a_at + j * a_row + k * a_column, 4 * a_row)
                _tile_load(5, a, a_at + (j + 16) * a_row + k * a_column, 4 * a_row)
                _tile_load(6, x, left + 256 * k, 64)
                _tile_load(7, x, right + 256 * k, 64)
                _tile_dot(0, 4, 6)
                _tile_dot(1, 4, 7)
                _tile_dot(2, 5, 6)
                _tile_dot(3, 5, 7)
            _tile_store(0, y, at, 4 * y_stride)
            _tile_store(1, y, at + 16, 4 * y_stride)
            _tile_store(2, y, at + 16 * y_stride, 4 * y_stride)
            _tile_store(3, y, at + 16 * y_stride + 16, 4 * y_stride)
            j += 32
        if j < rows:
            at = y_at + j * y_stride + i
            if accumulate:
                _tile_load(0, y, at, 4 * y_stride)
                _tile_load(1, y, at + 16, 4 * y_stride)
            else:
                _tile_zero(0)
                _tile_zero(1)
            for k in range(depth // 32):
                _tile_load(4, a, a_at + j * a_row + k * a_column, 4 * a_row)
                _tile_load(6, x, left + 256 * k, 64)
                _tile_load(7, x, right + 256 * k, 64)
                _tile_dot(0, 4, 6)
                _tile_dot(1, 4, 7)
            _tile_store(0, y, at, 4 * y_stride)
            _tile_store(1, y, at + 16, 4 * y_stride)


@intrinsic
def _store_pair(typingctx: Any, array: Any, index: Any, low: Any, high: Any) -> Any:
    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def constant(value: int) -> Any:
            return ir.Constant(i32x16.llvm, [value] * 16)

        bits = [builder.add(builder.bitcast(a, i32x16.llvm), constant(0x8000)) for a in args[2:]]
        both = builder.or_(builder.lshr(bits[0], constant(16)), builder.and_(bits[1], constant(0xFFFF0000)))
        builder.store(both, _pointer(context, builder, array, args[0], _index(builder, index, args[1]), i32x16.llvm), align=4)
        return context.get_dummy_value()

    return types.void(array, index, low, high), emit


@part_of_kernel
def _pair(x, at, stride, channels, out):
    """x rounded, two channels per int32, as columns [channels/2, 16] one after another."""
    for k in range(channels // 2):
        for i in range(0, STRIP, 16):
            from_ = at + 2 * k * stride + i
            _store_pair(out, i * channels // 2 + 16 * k, load16(x, from_), load16(x, from_ + stride))


@part_of_kernel
def _pair_gated(x, at, stride, gate, gate_at, gate_stride, channels, out):
    for k in range(channels // 2):
        for i in range(0, STRIP, 16):
            from_, open = at + 2 * k * stride + i, gate_at + 2 * k * gate_stride + i
            low = positive_part(load16(x, from_), load16(gate, open))
            high = positive_part(load16(x, from_ + stride), load16(gate, open + gate_stride))
            _store_pair(out, i * channels // 2 + 16 * k, low, high)


@part_of_kernel
def _halve(x, at, stride, channels, out, to):
    """x rounded, two lanes per int32, as columns [channels, 16] one after another from out[to] on."""
    for k in range(channels):
        for i in range(0, STRIP, 32):
            from_ = at + k * stride + i
            _store_halves(out, to + i // 2 * channels + 16 * k, load16(x, from_), load16(x, from_ + 16))


@part_of_kernel
def _halve_gated(x, at, stride, gate, gate_at, gate_stride, channels, out, to):
    for k in range(channels):
        for i in range(0, STRIP, 32):
            from_, open = at + k * stride + i, gate_at + k * gate_stride + i
            low = positive_part(load16(x, from_), load16(gate, open))
            high = positive_part(load16(x, from_ + 16), load16(gate, open + 16))
            _store_halves(out, to + i // 2 * channels + 16 * k, low, high)


@inlined
def _forward16(w16, m, x, x_at, gate, gate_at, y, y_at, scratch):
    pairs = scratch.view(np.int32)
    if gate.size:
        _pair_gated(x, x_at.at, x_at.stride, gate, gate_at.at, gate_at.stride, m.depth, pairs)
    else:
        _pair(x, x_at.at, x_at.stride, m.depth, pairs)
    _tiles(w16, m.at // 2, m.depth // 2, 16, pairs, 0, y, y_at.at, y_at.stride, m.rows, m.depth, STRIP, False)


@inlined
def _weight_gradient16(g, g_at, g_gate, g_gate_at, x, x_at, x_gate, dw, m, scratch):
    room, half = scratch.view(np.int32), STRIP // 2
    turned, g16 = m.depth * half, 2 * m.depth * half
    if x_gate.size:
        _halve_gated(x, x_at.at, x_at.stride, x_gate, x_at.at, x_at.stride, m.depth, room, 0)
    else:
        _halve(x, x_at.at, x_at.stride, m.depth, room, 0)
    for k in range(0, m.depth, 16):
        for i in range(0, half, 16):
            transpose16(room, i * m.depth + 16 * k, 16, room, turned + k * half + 16 * i, 16)
    if g_gate.size:
        _halve_gated(g, g_at.at, g_at.stride, g_gate, g_gate_at.at, g_gate_at.stride, m.rows, room, g16)
    else:
        _halve(g, g_at.at, g_at.stride, m.rows, room, g16)
    _tiles(room, g16, 16, 16 * m.rows, room, turned, dw, m.at, m.depth, m.rows, STRIP, m.depth, True)


if has_tiles():

    @part_of_kernel
    def begin(tiles):
        """To be called by a thread before its first product."""
        if tiles:
            _tile_configure(_CONFIG)

    @part_of_kernel
    def end(tiles):
        """To be called by a thread after its last product."""
        if tiles:
            _tile_release()

    @inlined
    def forward(tiles, w, w16, m, x, x_at, gate, gate_at, y, y_at, scratch):
        """y [rows, STRIP] = w x of matrix ``m``; ``w16`` is w after `round16`, ``scratch`` as for `weight_gradient`."""
        if tiles:
            _forward16(w16, m, x, x_at, gate, gate_at, y, y_at, scratch)
        else:
            _forward32(w, m, x, x_at, gate, gate_at, y, y_at)

    @inlined
    def weight_gradient(tiles, g, g_at, g_gate, g_gate_at, x, x_at, x_gate, dw, m, scratch):
        """dw, at ``m``, += g [rows, STRIP] xᵀ [STRIP, depth]; ``scratch`` has room for (rows/2 + depth)·STRIP floats.

        x's gate lies as x does.
        """
        if tiles:
            _weight_gradient16(g, g_at, g_gate, g_gate_at, x, x_at, x_gate, dw, m, scratch)
        else:
            _weight_gradient32(g, g_at, g_gate, g_gate_at, x, x_at, x_gate, dw, m, scratch)

else:  # LLVM can't even compile tile instructions for a processor without them

    @part_of_kernel
    def begin(tiles):
        """Nothing to begin."""

    @part_of_kernel
    def end(tiles):
        """Nothing to end."""

    @inlined
    def forward(tiles, w, w16, m, x, x_at, gate, gate_at, y, y_at, scratch):
        """y [rows, STRIP] = w x of matrix ``m``."""
        _forward32(w, m, x, x_at, gate, gate_at, y, y_at)

    @inlined
    def weight_gradient(tiles, g, g_at, g_gate, g_gate_at, x, x_at, x_gate, dw, m, scratch):
        """dw, at ``m``, += g [rows, STRIP] xᵀ [STRIP, depth]; ``scratch`` has room for STRIP·depth floats; x's gate lies as x does."""
        _weight_gradient32(g, g_at, g_gate, g_gate_at, x, x_at, x_gate, dw, m, scratch)
