"""SIMD values for Numba: vectors that live in registers, written like numbers.

``f32x16`` and its kin are Numba types whose machine form is an LLVM vector, so a kernel says ``fma(w, load16(a, i), s)``
and gets exactly that instruction (narrower machines split it). LLVM's own vectoriser reaches less than half the matrix
peak on the loops of this package.
"""

import operator
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import lower_builtin, models, register_model, type_callable

from nerfit.kernels.cpu.runtime import intrinsic

_F32, _I32 = ir.FloatType(), ir.IntType(32)


@cache
def has_wide_registers() -> bool:
    """Whether Numba's target holds a vector of 16 float32 in one register, as AVX-512 does: tried on a sum."""
    context: Any = cpu_target.target_context
    triple, processor, features = context.codegen().magic_tuple()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=processor, features=features)
    kind = "<16 x float>"
    module = llvm.parse_assembly(f"define {kind} @sum({kind} %a) {{ %b = fadd {kind} %a, %a\nret {kind} %b }}")
    return "zmm" in machine.emit_assembly(module)


class Vector(types.Type):
    """A fixed-length vector of float32 or int32."""

    def __init__(self, element: str, lanes: int) -> None:
        self.element, self.lanes = element, lanes
        super().__init__(name=f"{element}x{lanes}")

    @property
    def llvm(self) -> ir.VectorType:
        """The LLVM type."""
        return ir.VectorType(_F32 if self.element == "f32" else _I32, self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


f32x16, f32x4, i32x16 = Vector("f32", 16), Vector("f32", 4), Vector("i32", 16)


def _binary(op: Any, kinds: tuple[Vector, ...], emit: Any) -> None:
    @type_callable(op)
    def typer(context: Any) -> Any:
        return lambda a, b: a if a == b and a in kinds else None

    for kind in kinds:
        lower_builtin(op, kind, kind)(lambda context, builder, sig, args: emit(builder, *args))


def _fast(name: str) -> Any:
    return lambda builder, a, b: getattr(builder, name)(a, b, flags=("contract", "nsz"))


_binary(operator.add, (f32x16, f32x4), _fast("fadd"))
_binary(operator.sub, (f32x16, f32x4), _fast("fsub"))
_binary(operator.mul, (f32x16, f32x4), _fast("fmul"))
_binary(operator.truediv, (f32x16, f32x4), _fast("fdiv"))
_binary(operator.add, (i32x16,), lambda b, x, y: b.add(x, y))
_binary(operator.mul, (i32x16,), lambda b, x, y: b.mul(x, y))
_binary(operator.xor, (i32x16,), lambda b, x, y: b.xor(x, y))
_binary(operator.and_, (i32x16,), lambda b, x, y: b.and_(x, y))


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    vector = builder.insert_element(ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, to: Any) -> Any:
    """The address of ``array[index]`` as a pointer to LLVM type ``to``; TypeError for an array that is not contiguous."""
    if array_type.layout != "C":
        raise TypeError("vectors are loaded from and stored to contiguous arrays only")
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), to.as_pointer())


def index64(builder: Any, kind: Any, value: Any) -> Any:
    """An index as a 64-bit integer."""
    if value.type.width == 64:
        return value
    return builder.sext(value, ir.IntType(64)) if kind.signed else builder.zext(value, ir.IntType(64))


def _loader(kind: Vector) -> Any:
    @intrinsic
    def load(typingctx: Any, array: Any, index: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            at = pointer(context, builder, array, args[0], index64(builder, index, args[1]), kind.llvm)
            return builder.load(at, align=4)

        return kind(array, index), emit

    return load


def _storer(kind: Vector) -> Any:
    @intrinsic
    def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            at = pointer(context, builder, array, args[0], index64(builder, index, args[1]), kind.llvm)
            builder.store(args[2], at, align=4)
            return context.get_dummy_value()

        return types.void(array, index, value), emit

    return store


load16, load4, load16i = _loader(f32x16), _loader(f32x4), _loader(i32x16)
store16, store4, store16i = _storer(f32x16), _storer(f32x4), _storer(i32x16)


def _splatter(kind: Vector, scalar: Any) -> Any:
    @intrinsic
    def splat(typingctx: Any, value: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _splat(builder, context.cast(builder, args[0], value, scalar), kind.lanes)

        return kind(value), emit

    return splat


splat16, splat4, splat16i = _splatter(f32x16, types.float32), _splatter(f32x4, types.float32), _splatter(i32x16, types.int32)


@intrinsic
def splat16_of(typingctx: Any, array: Any, index: Any) -> Any:
    """16 times ``array[index]``, a float32. The index isn't negative: the test for that takes longer than a product of vectors."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = pointer(context, builder, array, args[0], index64(builder, index, args[1]), _F32)
        return _splat(builder, builder.load(at), 16)

    return f32x16(array, index), emit


def call(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
    """A call of the LLVM function ``name``, which returns the type ``result``."""
    declared = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(declared, args)


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, lane by lane."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call(builder, f"llvm.fma.v{a.lanes}f32", a.llvm, list(args))

    return a(a, b, c), emit


@intrinsic
def maximum(typingctx: Any, a: Any, b: Any) -> Any:
    """The larger lane of two vectors."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return a(a, b), emit


@intrinsic
def minimum(typingctx: Any, a: Any, b: Any) -> Any:
    """The smaller lane of two vectors."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return a(a, b), emit


@intrinsic
def positive_part(typingctx: Any, value: Any, gate: Any) -> Any:
    """``value`` where ``gate`` > 0, else 0: the gradient of ReLU."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(value.llvm, [0.0] * value.lanes)
        return builder.select(builder.fcmp_ordered(">", args[1], zero), args[0], zero)

    return value(value, gate), emit


@intrinsic
def total(typingctx: Any, a: Any) -> Any:
    """Sum of all lanes."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        name = f"llvm.vector.reduce.fadd.v{a.lanes}f32"
        kind = ir.FunctionType(_F32, [_F32, a.llvm])
        declared = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(declared, [ir.Constant(_F32, 0.0), args[0]], fastmath=("reassoc",))

    return types.float32(a), emit


@intrinsic
def truncate(typingctx: Any, a: Any) -> Any:
    """float32 lanes as int32, rounded towards zero."""
    return i32x16(a), lambda context, builder, sig, args: builder.fptosi(args[0], i32x16.llvm)


@intrinsic
def to_float(typingctx: Any, a: Any) -> Any:
    """int32 lanes as float32."""
    return f32x16(a), lambda context, builder, sig, args: builder.sitofp(args[0], f32x16.llvm)


@intrinsic
def _power_of_two(typingctx: Any, n: Any) -> Any:
    """2ⁿ for integer-valued float32 lanes in [-126, 127], by writing the exponent bits."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.add(builder.fptosi(args[0], i32x16.llvm), ir.Constant(i32x16.llvm, [127] * 16))
        return builder.bitcast(builder.shl(bits, ir.Constant(i32x16.llvm, [23] * 16)), f32x16.llvm)

    return f32x16(n), emit


@intrinsic
def _nearest(typingctx: Any, a: Any) -> Any:
    """Lanes rounded to the nearest integer."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call(builder, "llvm.nearbyint.v16f32", f32x16.llvm, list(args))

    return a(a), emit


@njit(inline="always")
def exp16(a):
    """eᵃ to 2e-7 relative for a in [-87, 88], clamped outside: 2ⁿ times a polynomial on [-ln 2/2, ln 2/2]."""
    a = minimum(maximum(a, splat16(np.float32(-87.0))), splat16(np.float32(88.0)))
    n = _nearest(a * splat16(np.float32(1.4426950408889634)))
    r = fma(n, splat16(np.float32(-0.693359375)), a)
    r = fma(n, splat16(np.float32(2.12194440e-4)), r)
    p = splat16(np.float32(1 / 720))
    p = fma(p, r, splat16(np.float32(1 / 120)))
    p = fma(p, r, splat16(np.float32(1 / 24)))
    p = fma(p, r, splat16(np.float32(1 / 6)))
    p = fma(p, r, splat16(np.float32(0.5)))
    p = fma(p, r, splat16(np.float32(1)))
    p = fma(p, r, splat16(np.float32(1)))
    return p * _power_of_two(n)


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of ``array[index]``."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = pointer(context, builder, array, args[0], index64(builder, index, args[1]), ir.IntType(8))
        call(builder, "llvm.prefetch.p0", ir.VoidType(), [at, *(ir.Constant(_I32, v) for v in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, index), emit


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def row_pointers(context: Any, builder: Any, kinds: Any, args: Any, at: int, count: int) -> list[Any]:
    """Pointers to ``count`` rows of 16 floats of ``args[at]``, from ``args[at + 1]``, ``args[at + 2]`` apart."""
    start, stride = (index64(builder, kinds[at + k], args[at + k]) for k in (1, 2))
    rows = []
    for _ in range(count):
        rows.append(pointer(context, builder, kinds[at], args[at], start, f32x16.llvm))
        start = builder.add(start, stride)
    return rows


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of 16 vectors of 16 lanes."""
    for block in (8, 4, 2, 1):  # exchange bit `block` of the row number with that of the lane number
        low = [lane + 16 - block if lane & block else lane for lane in range(16)]
        high = [lane + 16 if lane & block else lane + block for lane in range(16)]
        for i in range(16):
            if not i & block:
                a, b = rows[i], rows[i + block]
                rows[i], rows[i + block] = _shuffle(builder, a, b, low), _shuffle(builder, a, b, high)
    return rows


@intrinsic
def transpose16(typingctx: Any, source: Any, start: Any, stride: Any, target: Any, to: Any, to_stride: Any) -> Any:
    """Transpose a 16x16 tile of 32-bit numbers: rows ``stride`` apart in ``source``, ``to_stride`` apart in ``target``."""
    sig = types.void(source, start, stride, target, to, to_stride)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        rows = transposed(builder, [builder.load(p, align=4) for p in row_pointers(context, builder, sig.args, args, 0, 16)])
        for row, p in zip(rows, row_pointers(context, builder, sig.args, args, 3, 16), strict=True):
            builder.store(row, p, align=4)
        return context.get_dummy_value()

    return sig, emit


@intrinsic
def split4(typingctx: Any, source: Any, start: Any, target: Any, to: Any, to_stride: Any) -> Any:
    """16 samples of 4 floats each, one after another, become 4 rows of 16 floats."""
    sig = types.void(source, start, target, to, to_stride)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kinds = (*sig.args[:2], types.intp, *sig.args[2:])
        args = (*args[:2], ir.Constant(ir.IntType(64), 16), *args[2:])
        z = [builder.load(p, align=4) for p in row_pointers(context, builder, kinds, args, 0, 4)]
        rows = []
        for f in (0, 2):
            pick = [4 * s + f for s in range(8)] + [4 * s + f + 1 for s in range(8)]
            a, b = _shuffle(builder, z[0], z[1], pick), _shuffle(builder, z[2], z[3], pick)
            rows += [_shuffle(builder, a, b, [*range(8), *range(16, 24)]), _shuffle(builder, a, b, [*range(8, 16), *range(24, 32)])]
        for row, p in zip(rows, row_pointers(context, builder, kinds, args, 3, 4), strict=True):
            builder.store(row, p, align=4)
        return context.get_dummy_value()

    return sig, emit


@intrinsic
def join4(typingctx: Any, source: Any, start: Any, stride: Any, target: Any, to: Any) -> Any:
    """4 rows of 16 floats become 16 samples of 4 floats each: the inverse of `split4`."""
    sig = types.void(source, start, stride, target, to)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kinds = (*sig.args, types.intp)
        args = (*args, ir.Constant(ir.IntType(64), 16))
        r = [builder.load(p, align=4) for p in row_pointers(context, builder, kinds, args, 0, 4)]
        for half, p2 in ((0, 0), (8, 2)):
            pair = [half + k // 2 + 16 * (k % 2) for k in range(16)]
            a, b = _shuffle(builder, r[0], r[1], pair), _shuffle(builder, r[2], r[3], pair)
            out = row_pointers(context, builder, kinds, args, 3, 4)
            for q in (0, 1):
                lanes = [8 * q + 2 * (k // 4) + (k % 4 if k % 4 < 2 else 14 + k % 4) for k in range(16)]
                builder.store(_shuffle(builder, a, b, lanes), out[p2 + q], align=4)
        return context.get_dummy_value()

    return sig, emit


@intrinsic
def any_nonzero(typingctx: Any, a: Any) -> Any:
    """Whether some lane differs from 0."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        flags = builder.fcmp_unordered("!=", args[0], ir.Constant(a.llvm, [0.0] * a.lanes))
        bits = builder.bitcast(flags, ir.IntType(a.lanes))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(a.lanes), 0))

    return types.boolean(a), emit


@intrinsic
def where_nonzero(typingctx: Any, gate: Any, a: Any, b: Any) -> Any:
    """Lanes of a where ``gate`` differs from 0, else of b."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        flags = builder.fcmp_unordered("!=", args[0], ir.Constant(gate.llvm, [0.0] * gate.lanes))
        return builder.select(flags, args[1], args[2])

    return a(gate, a, b), emit


@intrinsic
def square_root(typingctx: Any, a: Any) -> Any:
    """Square roots of the lanes."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call(builder, f"llvm.sqrt.v{a.lanes}f32", a.llvm, list(args))

    return a(a), emit
