"""Matrix products of the fused field, on blocks of ``LANES`` samples.

Two sets of the same functions: float32 with vectors of 16 lanes, and bfloat16 with float32 sums on the tile unit (Intel AMX).
A product takes an *operand*, a block's channels in a form of its own, and gives float32, channel-major ([channel, lane]), or the
next product's operand, rounded while it is at hand. An operand has room for channels · LANES float32 and holds

- in float32, the channels as they are;
- on tiles, two bfloat16 per word: for every 16 lanes a column [channels/2, 16] of channels 16 apart. An operand of gradients has a
  second half, for products over lanes: for every 32 lanes a column [channels, 16] of lanes 16 apart.
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
from nerfit.kernels.cpu.vectors import (
    _call,
    _index,
    _pointer,
    _rows,
    _transposed,
    f32x16,
    fma,
    i32x16,
    load16,
    positive_part,
    splat16,
    store16,
    transpose16,
)

LANES = 128
"""Samples of a block: they go through all layers together."""

Matrix = namedtuple("Matrix", "at rows depth")
"""Where in an array a matrix begins, and its size; rows are a multiple of 16, depth of 32."""
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


def _bits(value: int) -> Any:
    return ir.Constant(i32x16.llvm, [value] * 16)


@intrinsic
def _store_pair(typingctx: Any, array: Any, index: Any, low: Any, high: Any) -> Any:
    """Store 2 x 16 float32 as 16 words of two bfloat16 at ``index``."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        rounded = [builder.add(builder.bitcast(a, i32x16.llvm), _bits(0x8000)) for a in args[2:]]
        both = builder.or_(builder.lshr(rounded[0], _bits(16)), builder.and_(rounded[1], _bits(0xFFFF0000)))
        builder.store(both, _pointer(context, builder, array, args[0], _index(builder, index, args[1]), i32x16.llvm), align=4)
        return context.get_dummy_value()

    return types.void(array, index, low, high), emit


def _load_half(high: bool) -> Any:
    @intrinsic
    def load(typingctx: Any, array: Any, index: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            words = builder.load(_pointer(context, builder, array, args[0], _index(builder, index, args[1]), i32x16.llvm), align=4)
            bits = builder.and_(words, _bits(0xFFFF0000)) if high else builder.shl(words, _bits(16))
            return builder.bitcast(bits, f32x16.llvm)

        return f32x16(array, index), emit

    return load


_load_low, _load_high = _load_half(False), _load_half(True)
"""One of the two numbers in each of 16 words at ``index``, as float32."""


def _turn_half(high: bool) -> Any:
    @intrinsic
    def turn(typingctx: Any, x: Any, left: Any, right: Any, out: Any, to: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            def columns(at: int) -> list[Any]:
                kinds = (x, sig.args[at], types.intp)
                starts = _rows(context, builder, kinds, (args[0], args[at], ir.Constant(_I64, 16)), 0, 16)
                return [builder.load(builder.bitcast(p, i32x16.llvm.as_pointer()), align=4) for p in starts]

            def pair(a: Any, b: Any) -> Any:
                low = builder.lshr(a, _bits(16)) if high else builder.and_(a, _bits(0xFFFF))
                return builder.or_(low, builder.and_(b, _bits(0xFFFF0000)) if high else builder.shl(b, _bits(16)))

            turned = _transposed(builder, [pair(a, b) for a, b in zip(columns(1), columns(2), strict=True)])
            ends = _rows(context, builder, (out, to, types.intp), (args[3], args[4], ir.Constant(_I64, 16)), 0, 16)
            for row, p in zip(turned, ends, strict=True):
                builder.store(row, builder.bitcast(p, i32x16.llvm.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(x, left, right, out, to), emit

    return turn


_turn_low, _turn_high = _turn_half(False), _turn_half(True)
"""16 channels of an operand, the first or the second of each word, at 16 lanes from x[left] on and the next 16 from x[right] on,
as [16, 16] words of lanes 16 apart, channels along a row, at out[to]."""


_CONFIG = np.zeros(64, np.uint8)
_CONFIG[0] = 1  # palette
_CONFIG[16:32].view(np.uint16)[:] = 64  # bytes per row of each of the 8 tiles
_CONFIG[48:56] = 16  # rows


@part_of_kernel
def round16(w, out):
    """float32 numbers (a multiple of 32) as bfloat16, those 16 apart in one word."""
    for i in range(0, w.size, 32):
        _store_pair(out, i // 2, load16(w, i), load16(w, i + 16))


@inlined
def _dots(a, a_at, a_row, a_column, x, column, depth):
    """Tiles 0 1 | 2 3 += 32 rows of a times 32 columns of x, [depth/2, 16] each 16 of them, all words.

    Of a, rows begin ``a_row`` apart, and columns of 16 ``a_column`` apart.
    """
    left, right = column * depth // 2, (column + 16) * depth // 2
    for k in range(depth // 32):
        _tile_load(4, a, a_at + k * a_column, 4 * a_row)
        _tile_load(5, a, a_at + 16 * a_row + k * a_column, 4 * a_row)
        _tile_load(6, x, left + 256 * k, 64)
        _tile_load(7, x, right + 256 * k, 64)
        _tile_dot(0, 4, 6)
        _tile_dot(1, 4, 7)
        _tile_dot(2, 5, 6)
        _tile_dot(3, 5, 7)


@inlined
def _zero_tiles():
    _tile_zero(0)
    _tile_zero(1)
    _tile_zero(2)
    _tile_zero(3)


@inlined
def _store_tiles(y, at, stride):
    _tile_store(0, y, at, 4 * stride)
    _tile_store(1, y, at + 16, 4 * stride)
    _tile_store(2, y, at + 16 * stride, 4 * stride)
    _tile_store(3, y, at + 16 * stride + 16, 4 * stride)


@part_of_kernel
def _tiles(a, a_at, a_row, a_column, x, y, y_at, y_stride, rows, depth, columns, accumulate):
    """y [rows, columns] = (y +) a [rows, depth] x [depth, columns] in float32, a and x as `_dots` takes them; columns a multiple of 32."""
    for i in range(0, columns, 32):
        j = 0
        while j + 32 <= rows:
            at = y_at + j * y_stride + i
            if accumulate:
                _tile_load(0, y, at, 4 * y_stride)
                _tile_load(1, y, at + 16, 4 * y_stride)
                _tile_load(2, y, at + 16 * y_stride, 4 * y_stride)
                _tile_load(3, y, at + 16 * y_stride + 16, 4 * y_stride)
            else:
                _zero_tiles()
            _dots(a, a_at + j * a_row, a_row, a_column, x, i, depth)
            _store_tiles(y, at, y_stride)
            j += 32
        if j < rows:
            at, left, right = y_at + j * y_stride + i, i * depth // 2, (i + 16) * depth // 2
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


@part_of_kernel
def _take16(x, channels, out):
    for i in range(0, LANES, 16):
        for k in range(0, channels, 32):
            for r in range(16):
                low, high = load16(x, (k + r) * LANES + i), load16(x, (k + r + 16) * LANES + i)
                _store_pair(out, (i * channels + 16 * k) // 2 + 16 * r, low, high)


@part_of_kernel
def _take_lanes16(x, channels, out):
    """The second half of an operand of gradients."""
    for i in range(0, LANES, 32):
        for k in range(channels):
            _store_pair(out, (LANES + i) * channels // 2 + 16 * k, load16(x, k * LANES + i), load16(x, k * LANES + i + 16))


@part_of_kernel
def _forward_relu16(w16, m, x, y, scratch):
    for i in range(0, LANES, 32):
        for j in range(0, m.rows, 32):
            _zero_tiles()
            _dots(w16, (m.at + j * m.depth) // 2, m.depth // 2, 16, x, i, m.depth)
            _store_tiles(scratch, 0, 32)
            to = (i * m.rows + 16 * j) // 2
            for r in range(16):
                for half in range(2):
                    low, high = load16(scratch, 32 * r + 16 * half), load16(scratch, 32 * (r + 16) + 16 * half)
                    _store_pair(y, to + 8 * half * m.rows + 16 * r, positive_part(low, low), positive_part(high, high))


@part_of_kernel
def _backward16(w16, m, g, gate, y, scratch):
    for i in range(0, LANES, 32):
        for j in range(0, m.rows, 32):
            _zero_tiles()
            _dots(w16, (m.at + j * m.depth) // 2, m.depth // 2, 16, g, i, m.depth)
            _store_tiles(scratch, 0, 32)
            lanes = (LANES + i) * m.rows // 2 + 16 * j
            for r in range(16):
                at = (i * m.rows + 16 * j) // 2 + 16 * r
                beside = at + 8 * m.rows
                a, b = load16(scratch, 32 * r), load16(scratch, 32 * r + 16)
                c, d = load16(scratch, 32 * (r + 16)), load16(scratch, 32 * (r + 16) + 16)
                a, c = positive_part(a, _load_low(gate, at)), positive_part(c, _load_high(gate, at))
                b, d = positive_part(b, _load_low(gate, beside)), positive_part(d, _load_high(gate, beside))
                _store_pair(y, at, a, c)
                _store_pair(y, beside, b, d)
                _store_pair(y, lanes + 16 * r, a, b)
                _store_pair(y, lanes + 16 * (r + 16), c, d)


@part_of_kernel
def _weight_gradient16(g, x, dw, m, scratch):
    channels = max(m.rows, 32)
    for i in range(0, LANES, 32):
        for k in range(0, m.depth, 32):
            left, right = (i * m.depth + 16 * k) // 2, ((i + 16) * m.depth + 16 * k) // 2
            _turn_low(x, left, right, scratch, (k * LANES + 16 * i) // 2)
            _turn_high(x, left, right, scratch, ((k + 16) * LANES + 16 * i) // 2)
    _tiles(g, channels * LANES // 2, 16, 16 * channels, scratch, dw, m.at, m.depth, m.rows, LANES, m.depth, True)


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
    def take(tiles, x, channels, out):
        """The operand of float32 x [channels, LANES], a multiple of 32 channels."""
        if tiles:
            _take16(x, channels, out)
        else:
            _take32(x, channels, out)

    @inlined
    def take_gradient(tiles, x, channels, out):
        """The operand of gradients x [channels, LANES]."""
        take(tiles, x, channels, out)
        if tiles:
            _take_lanes16(x, channels, out)

    @inlined
    def forward(tiles, w, w16, m, x, y):
        """y [rows, LANES] = w x, of matrix ``m`` and an operand; ``w16`` is w after `round16`."""
        if tiles:
            _tiles(w16, m.at // 2, m.depth // 2, 16, x, y, 0, LANES, m.rows, m.depth, LANES, False)
        else:
            _forward32(w, m, x, y)

    @inlined
    def forward_relu(tiles, w, w16, m, x, y, scratch):
        """y, an operand, = max(w x, 0); ``scratch`` has room for 1024 floats."""
        if tiles:
            _forward_relu16(w16, m, x, y, scratch)
        else:
            _gated32(w, m, x, y, y)

    @inlined
    def backward(tiles, w, w16, m, g, gate, y, scratch):
        """y, an operand of gradients, = w g where an operand, the gate, is positive, else 0; w is a transposed matrix."""
        if tiles:
            _backward16(w16, m, g, gate, y, scratch)
        else:
            _gated32(w, m, g, gate, y)

    @inlined
    def weight_gradient(tiles, g, x, dw, m, scratch):
        """dw, at ``m``, += g [rows, LANES] xᵀ [LANES, depth], both operands; ``scratch`` has room for depth · LANES floats.

        With 16 rows, g is the first half of 32 channels.
        """
        if tiles:
            _weight_gradient16(g, x, dw, m, scratch)
        else:
            _weight_gradient32(g, x, dw, m, scratch)

else:  # LLVM can't even compile tile instructions for a processor without them

    @part_of_kernel
    def begin(tiles):
        """Nothing to begin."""

    @part_of_kernel
    def end(tiles):
        """Nothing to end."""

    @inlined
    def take(tiles, x, channels, out):
        """The operand of float32 x [channels, LANES]."""
        _take32(x, channels, out)

    take_gradient = take

    @inlined
    def forward(tiles, w, w16, m, x, y):
        """y [rows, LANES] = w x, of matrix ``m`` and an operand."""
        _forward32(w, m, x, y)

    @inlined
    def forward_relu(tiles, w, w16, m, x, y, scratch):
        """y, an operand, = max(w x, 0)."""
        _gated32(w, m, x, y, y)

    @inlined
    def backward(tiles, w, w16, m, g, gate, y, scratch):
        """y, an operand, = w g where an operand, the gate, is positive, else 0; w is a transposed matrix."""
        _gated32(w, m, g, gate, y)

    @inlined
    def weight_gradient(tiles, g, x, dw, m, scratch):
        """dw, at ``m``, += g [rows, LANES] xᵀ [LANES, depth], both operands; ``scratch`` has room for depth · LANES floats."""
        _weight_gradient32(g, x, dw, m, scratch)
