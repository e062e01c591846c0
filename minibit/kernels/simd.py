"""A small SIMD layer for Numba: vectors of 32-bit lanes, and the few instructions we need.

LLVM's loop vectoriser does not find the byte dot products of today's CPUs (``vpdpbusd``, ``sdot``)
in a plain loop, so the kernels name them. A `Vector` is an LLVM vector of ``lanes`` int32 lanes:
16 lanes fill an AVX-512 register, 8 an AVX2 register, 4 a NEON register. The dot products read the
same bits as four bytes a lane. Several vectors together are a tile (`minibit.kernels.tiles`).

Inside ``@njit`` code these functions read like arithmetic::

    acc = splat(int32(0), 16)
    codes = mask(shift_right(load(panels, i, 16), 2), 0x03030303)
    acc = dot_u8s8(acc, codes, load_splat(x, j, 16))
    store(out, 0, acc)

Offsets are bytes from the first element of a contiguous array, whatever its dtype, or from an
`address`, which no reference is counted for. **Nothing is checked**: a kernel proves its own
bounds. Numbers of lanes are literals.

Loads, masks and shifts are plain LLVM and run on every CPU. `dot_u8s8` needs AVX-512 VNNI, at 16
lanes. Numba's cache does not see a change of this file in the kernels that use it: after an edit,
delete ``minibit/kernels/__pycache__``.
"""

from __future__ import annotations

import platform
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core.datamodel import PrimitiveModel, register_default
from numba.extending import intrinsic

__all__ = [
    "Vector",
    "address",
    "bits_of_float",
    "dot_u8s8",
    "float_of_bits",
    "load",
    "load_splat",
    "mask",
    "permute_bytes",
    "popcount",
    "prefetch",
    "shift_right",
    "splat",
    "store",
]

ARM = platform.machine().lower() in ("arm64", "aarch64")  # whose intrinsics LLVM may be given
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))


class Vector(types.Type):  # type: ignore[misc]
    """Numba type of ``lanes`` int32 lanes in one register."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"Vector({lanes})")


@register_default(Vector)
class _VectorModel(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(I32, fe_type.lanes))


# What the intrinsics are made of: plain LLVM, one helper an idea.


def _declare(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """Return the LLVM intrinsic `name`, declared once a module."""
    module = builder.module
    if name in module.globals:
        return module.globals[name]
    return ir.Function(module, ir.FunctionType(result, arguments), name)


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """Byte pointer to `offset` bytes into an array, or beyond an address."""
    if isinstance(array_type, types.Integer):
        return builder.inttoptr(builder.add(array, offset), I8.as_pointer())
    struct = context.make_array(array_type)(context, builder, array)
    base = builder.bitcast(struct.data, I8.as_pointer())
    return builder.gep(base, [offset])


def _load(builder: Any, pointer: Any, what: Any) -> Any:
    """Load a value of LLVM type `what` from an address of any alignment."""
    value = builder.load(builder.bitcast(pointer, what.as_pointer()))
    value.align = 1
    return value


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    """Repeat one scalar in every lane."""
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), None)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def _constant(value: int, lanes: int) -> Any:
    """Return the vector that holds `value` in every int32 lane."""
    return ir.Constant(ir.VectorType(I32, lanes), [value] * lanes)


def _dot_u8s8(builder: Any, acc: Any, unsigned: Any, signed: Any) -> Any:
    """``vpdpbusd``: acc + the sum of the 4 products of bytes in each lane."""
    name = "llvm.x86.avx512.vpdpbusd.512"
    function = _declare(builder, name, acc.type, [acc.type] * 3)
    return builder.call(function, [acc, unsigned, signed])


def _pairs(builder: Any, unsigned: Any, signed: Any) -> Any:
    """``vpmaddubsw``: products of bytes, summed by pairs into int16."""
    bytes_, halves = ir.VectorType(I8, 32), ir.VectorType(I16, 16)
    function = _declare(builder, "llvm.x86.avx2.pmadd.ub.sw", halves, [bytes_, bytes_])
    arguments = [builder.bitcast(v, bytes_) for v in (unsigned, signed)]
    return builder.bitcast(builder.call(function, arguments), unsigned.type)


def _widen(builder: Any, pairs: Any) -> Any:
    """``vpmaddwd`` with ones: the two int16 of a lane, summed into int32."""
    halves, vector = ir.VectorType(I16, 16), pairs.type
    function = _declare(builder, "llvm.x86.avx2.pmadd.wd", vector, [halves, halves])
    ones = ir.Constant(halves, [1] * 16)
    return builder.call(function, [builder.bitcast(pairs, halves), ones])


def _dot_s8s8(builder: Any, acc: Any, left: Any, right: Any) -> Any:
    """acc + the sum of the 4 products of signed bytes in each lane: one ``sdot`` on Arm."""
    lanes = acc.type.count
    narrow = ir.VectorType(I8, 4 * lanes)
    left, right = builder.bitcast(left, narrow), builder.bitcast(right, narrow)
    if ARM:
        name = f"llvm.aarch64.neon.sdot.v{lanes}i32.v{4 * lanes}i8"
        function = _declare(builder, name, acc.type, [acc.type, narrow, narrow])
        return builder.call(function, [acc, left, right])
    wide = ir.VectorType(I32, 4 * lanes)
    products = builder.mul(builder.sext(left, wide), builder.sext(right, wide))
    for byte in range(4):
        picks = ir.Constant(ir.VectorType(I32, lanes), [4 * lane + byte for lane in range(lanes)])
        acc = builder.add(acc, builder.shuffle_vector(products, products, picks))
    return acc


# The instructions. Each is `@intrinsic`: its body says its types, and emits LLVM when called.


@intrinsic(prefer_literal=True)
def load(typingctx, array, offset, lanes):  # type: ignore[no-untyped-def]
    """``load(array, offset, lanes)``: a vector from `offset` bytes into `array`."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = _address(context, builder, signature.args[0], args[0], args[1])
        return _load(builder, pointer, ir.VectorType(I32, lanes.literal_value))

    return Vector(lanes.literal_value)(array, types.intp, lanes), codegen


@intrinsic(prefer_literal=True)
def load_splat(typingctx, array, offset, lanes):  # type: ignore[no-untyped-def]
    """``load_splat(array, offset, lanes)``: the 4 bytes at `offset`, repeated in every lane."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = _address(context, builder, signature.args[0], args[0], args[1])
        return _splat(builder, _load(builder, pointer, I32), lanes.literal_value)

    return Vector(lanes.literal_value)(array, types.intp, lanes), codegen


@intrinsic(prefer_literal=True)
def splat(typingctx, value, lanes):  # type: ignore[no-untyped-def]
    """``splat(value, lanes)``: one int32 in every lane."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return _splat(builder, args[0], lanes.literal_value)

    return Vector(lanes.literal_value)(types.int32, lanes), codegen


@intrinsic(prefer_literal=True)
def store(typingctx, array, offset, vector):  # type: ignore[no-untyped-def]
    """``store(array, offset, vector)``: write a vector `offset` bytes into `array`."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = _address(context, builder, signature.args[0], args[0], args[1])
        typed = builder.bitcast(pointer, args[2].type.as_pointer())
        builder.store(args[2], typed).align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic(prefer_literal=True)
def prefetch(typingctx, array, offset):  # type: ignore[no-untyped-def]
    """``prefetch(array, offset)``: ask for a line to be read; an address past the end is safe."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = _address(context, builder, signature.args[0], args[0], args[1])
        name = "llvm.prefetch.p0" if llvm.llvm_version_info[0] >= 15 else "llvm.prefetch.p0i8"
        function = _declare(builder, name, ir.VoidType(), [pointer.type, I32, I32, I32])
        flags = [ir.Constant(I32, flag) for flag in (0, 3, 1)]  # read, keep in all levels, data
        builder.call(function, [pointer, *flags])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def address(typingctx, array):  # type: ignore[no-untyped-def]
    """``address(array)``: of its first element; who takes it must keep the array."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = _address(context, builder, array, args[0], ir.Constant(I64, 0))
        return builder.ptrtoint(pointer, I64)

    return types.intp(array), codegen


@intrinsic
def bits_of_float(typingctx, value):  # type: ignore[no-untyped-def]
    """``bits_of_float(value)``: the int32 whose bits are those of a float32."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], I32)

    return types.int32(types.float32), codegen


@intrinsic
def float_of_bits(typingctx, bits):  # type: ignore[no-untyped-def]
    """``float_of_bits(bits)``: the float32 whose bits are those of an int32."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic(prefer_literal=True)
def mask(typingctx, vector, bits):  # type: ignore[no-untyped-def]
    """``mask(vector, bits)``: keep the int32 `bits` of every lane."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.and_(args[0], _splat(builder, args[1], vector.lanes))

    return vector(vector, types.int32), codegen


@intrinsic(prefer_literal=True)
def shift_right(typingctx, vector, bits):  # type: ignore[no-untyped-def]
    """``shift_right(vector, bits)``: arithmetic shift of every int32 lane by `bits`."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.ashr(args[0], _splat(builder, args[1], vector.lanes))

    return vector(vector, types.int32), codegen


@intrinsic(prefer_literal=True)
def dot_u8s8(typingctx, acc, unsigned, signed):  # type: ignore[no-untyped-def]
    """``dot_u8s8(acc, unsigned, signed)``: acc + the 4 products of bytes a lane, ``vpdpbusd``."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return _dot_u8s8(builder, *args)

    return acc(acc, unsigned, signed), codegen


@intrinsic(prefer_literal=True)
def permute_bytes(typingctx, low, index, high):  # type: ignore[no-untyped-def]
    """``permute_bytes(low, index, high)``: 64 lookups in a table of 128 bytes (``vpermi2b``).

    Byte ``i`` of the result is entry ``index[i] & 127`` of low, high. Needs AVX-512 VBMI.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        bytes_ = ir.VectorType(I8, 64)
        name = "llvm.x86.avx512.vpermi2var.qi.512"
        function = _declare(builder, name, bytes_, [bytes_] * 3)
        result = builder.call(function, [builder.bitcast(v, bytes_) for v in args])
        return builder.bitcast(result, args[0].type)

    return low(low, index, high), codegen


@intrinsic
def popcount(typingctx, word):  # type: ignore[no-untyped-def]
    """``popcount(word)``: number of bits that are set in an integer."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.ctpop(args[0])

    return word(word), codegen
