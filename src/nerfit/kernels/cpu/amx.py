"""Matrix products on the tile unit (Intel AMX): bfloat16 inputs, float32 sums. `matmul` says what an operand is.

The unit has 8 tiles of 16 rows of 64 bytes. Its product is dot(c, a, b): c [16, 16] float32 += a [16, 32] b [32, 16] in bfloat16,
with b's rows interleaved in pairs.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target

from nerfit.kernels.cpu.blocks import LANES
from nerfit.kernels.cpu.runtime import inlined, intrinsic, part_of_kernel
from nerfit.kernels.cpu.vectors import call, f32x16, i32x16, index64, load16, pointer, positive_part, row_pointers, transposed
from nerfit.kernels.libc import from_libc

_PROCESSORS = {"sapphirerapids", "emeraldrapids", "graniterapids", "graniterapids-d", "diamondrapids"}
"""LLVM's names of the processors with bfloat16 tiles."""


def target_has_tiles(processor: str, features: str) -> bool:
    """Whether code for a processor, in LLVM's words, can use bfloat16 tiles; ``features`` is a list such as "+avx2,-amx-bf16"."""
    found = processor in _PROCESSORS
    for feature in features.split(","):  # later ones override earlier ones
        if feature == "+amx-bf16":
            found = True
        elif feature in ("-amx-bf16", "-amx-tile"):
            found = False
    return found


@cache
def has_tiles() -> bool:
    """Whether products can run on tiles: Numba's target and this processor have them, and the system grants them."""
    if not _COMPILED or not llvm.get_host_cpu_features().get("amx-bf16"):
        return False
    syscall = from_libc("syscall")
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall is not None and syscall(arch_prctl, request_permission, tile_data) == 0


_target: Any = cpu_target.target_context
_COMPILED = target_has_tiles(*_target.codegen().magic_tuple()[1:])
"""Whether Numba compiles for a processor with tiles: this one, or that of NUMBA_CPU_NAME and NUMBA_CPU_FEATURES."""


@part_of_kernel
def _stub(*args):
    """Nothing: it stands for a function that is never called."""


def _on_tiles(function: Callable[..., Any]) -> Any:
    """Decorator of functions that use tiles; a stub where Numba's target has none, for LLVM can't compile their instructions there."""
    return part_of_kernel(function) if _COMPILED else _stub


_I8, _I64 = ir.IntType(8), ir.IntType(64)


def _tile_op(name: str, *operands: str) -> Any:
    """A tile instruction; operands are "tile" (a literal number) or "memory" (array, offset in elements, row stride in bytes)."""

    def emit_with(array: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            values = [ir.Constant(_I8, kind.literal_value) for kind in sig.args if isinstance(kind, types.IntegerLiteral)]
            if array is not None:
                at = len(values)
                start = index64(builder, sig.args[at + 1], args[at + 1])
                memory = pointer(context, builder, sig.args[at], args[at], start, _I8)
                values += [memory, index64(builder, sig.args[at + 2], args[at + 2])]
            call(builder, f"llvm.x86.{name}", ir.VoidType(), values)
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
        call(builder, "llvm.x86.ldtilecfg", ir.VoidType(), [pointer(context, builder, config, args[0], ir.Constant(_I64, 0), _I8)])
        return context.get_dummy_value()

    return types.void(config), emit


@intrinsic
def _tile_release(typingctx: Any) -> Any:
    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        call(builder, "llvm.x86.tilerelease", ir.VoidType(), [])
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
        builder.store(both, pointer(context, builder, array, args[0], index64(builder, index, args[1]), i32x16.llvm), align=4)
        return context.get_dummy_value()

    return types.void(array, index, low, high), emit


def _load_half(high: bool) -> Any:
    @intrinsic
    def load(typingctx: Any, array: Any, index: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            words = builder.load(pointer(context, builder, array, args[0], index64(builder, index, args[1]), i32x16.llvm), align=4)
            bits = builder.and_(words, _bits(0xFFFF0000)) if high else builder.shl(words, _bits(16))
            return builder.bitcast(bits, f32x16.llvm)

        return f32x16(array, index), emit

    return load


_load_low, _load_high = _load_half(False), _load_half(True)
"""One of the two numbers in each of 16 words at ``index``, as float32."""


def _transpose_half(high: bool) -> Any:
    @intrinsic
    def transpose(typingctx: Any, x: Any, left: Any, right: Any, out: Any, to: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            def columns(at: int) -> list[Any]:
                kinds = (x, sig.args[at], types.intp)
                starts = row_pointers(context, builder, kinds, (args[0], args[at], ir.Constant(_I64, 16)), 0, 16)
                return [builder.load(builder.bitcast(p, i32x16.llvm.as_pointer()), align=4) for p in starts]

            def pair(a: Any, b: Any) -> Any:
                low = builder.lshr(a, _bits(16)) if high else builder.and_(a, _bits(0xFFFF))
                return builder.or_(low, builder.and_(b, _bits(0xFFFF0000)) if high else builder.shl(b, _bits(16)))

            columns_of_both = transposed(builder, [pair(a, b) for a, b in zip(columns(1), columns(2), strict=True)])
            ends = row_pointers(context, builder, (out, to, types.intp), (args[3], args[4], ir.Constant(_I64, 16)), 0, 16)
            for row, p in zip(columns_of_both, ends, strict=True):
                builder.store(row, builder.bitcast(p, i32x16.llvm.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(x, left, right, out, to), emit

    return transpose


_transpose_low, _transpose_high = _transpose_half(False), _transpose_half(True)
"""16 channels of an operand, the first or the second of each word, at 16 lanes from x[left] on and the next 16 from x[right] on,
as [16, 16] words of lanes 16 apart, channels along a row, at out[to]."""


_CONFIG = np.zeros(64, np.uint8)
_CONFIG[0] = 1  # palette
_CONFIG[16:32].view(np.uint16)[:] = 64  # bytes per row of each of the 8 tiles
_CONFIG[48:56] = 16  # rows


@_on_tiles
def configure():
    """Make the tiles ready on this thread."""
    _tile_configure(_CONFIG)


@_on_tiles
def release():
    """Give the tiles back on this thread."""
    _tile_release()


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
def _product(a, a_at, a_row, a_column, x, y, y_at, y_stride, rows, depth, columns, accumulate):
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


@_on_tiles
def take16(x, channels, out):
    """The operand of float32 x [channels, LANES]."""
    for i in range(0, LANES, 16):
        for k in range(0, channels, 32):
            for r in range(16):
                low, high = load16(x, (k + r) * LANES + i), load16(x, (k + r + 16) * LANES + i)
                _store_pair(out, (i * channels + 16 * k) // 2 + 16 * r, low, high)


@_on_tiles
def take_lanes16(x, channels, out):
    """The second half of an operand of gradients."""
    for i in range(0, LANES, 32):
        for k in range(channels):
            _store_pair(out, (LANES + i) * channels // 2 + 16 * k, load16(x, k * LANES + i), load16(x, k * LANES + i + 16))


@_on_tiles
def forward16(w16, m, x, y):
    """`matmul.forward` on tiles."""
    _product(w16, m.at // 2, m.depth // 2, 16, x, y, 0, LANES, m.rows, m.depth, LANES, False)


@_on_tiles
def forward_relu16(w16, m, x, y, scratch):
    """`matmul.forward_relu` on tiles."""
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


@_on_tiles
def backward16(w16, m, g, gate, y, scratch):
    """`matmul.backward` on tiles."""
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


@_on_tiles
def weight_gradient16(g, x, dw, m, scratch):
    """`matmul.weight_gradient` on tiles."""
    channels = max(m.rows, 32)
    for i in range(0, LANES, 32):
        for k in range(0, m.depth, 32):
            left, right = (i * m.depth + 16 * k) // 2, ((i + 16) * m.depth + 16 * k) // 2
            _transpose_low(x, left, right, scratch, (k * LANES + 16 * i) // 2)
            _transpose_high(x, left, right, scratch, ((k + 16) * LANES + 16 * i) // 2)
    _product(g, channels * LANES // 2, 16, 16 * channels, scratch, dw, m.at, m.depth, m.rows, LANES, m.depth, True)
