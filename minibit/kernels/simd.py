"""A small SIMD layer for Numba: tiles of vectors, and the few instructions that products need.

LLVM's loop vectoriser does not find the byte dot products of today's CPUs (``vpdpbusd``,
``vpmaddubsw``, ``sdot``) in a plain loop, so the kernels name them. A `Tile` is what a product
keeps in registers: for each of some tokens, some vectors of ``lanes`` int32 lanes. 16 lanes fill an
AVX-512 register, 8 an AVX2 register, 4 a NEON register; the dot products read the same bits as four
bytes per lane. All functions on tiles are unrolled when compiled.

Weights come in panels (`minibit.ternary.panels`): 64 bytes hold 4 columns of four groups of 16
rows, in two bits of each byte, so a group is ``16 / lanes`` vectors of a tile. With 16 lanes codes
are masked out of the bytes and not shifted down: sums of group ``g`` count ``4**g`` times too much,
exactly, until `tile_finish` takes that off. With fewer lanes they are shifted.

Offsets are bytes from the first element of a contiguous array, whatever its dtype. **Nothing is
checked**: a kernel proves its own bounds. Numbers of tokens, groups and lanes are literals, or
tuples of that length, so that one kernel compiles for several.
"""

from __future__ import annotations

import platform
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core.datamodel import PrimitiveModel, register_default
from numba.extending import intrinsic

ARM = platform.machine().lower() in ("arm64", "aarch64")  # whose intrinsics LLVM may be given
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
HALF, FLOAT = ir.HalfType(), ir.FloatType()
ONE_CODE = 0x03030303  # the lowest 2 bits of every byte
_TWO = ir.Constant(I64, 2)


class Tile(types.Type):  # type: ignore[misc]
    """Numba type of `tokens` times `vectors` vectors of `lanes` int32 lanes."""

    def __init__(self, tokens: int, vectors: int, lanes: int) -> None:
        self.tokens, self.vectors, self.lanes = tokens, vectors, lanes
        super().__init__(name=f"Tile({tokens}x{vectors}x{lanes})")


@register_default(Tile)
class _TileModel(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Tile) -> None:
        vector = ir.VectorType(I32, fe_type.lanes)
        super().__init__(dmm, fe_type, ir.ArrayType(vector, fe_type.tokens * fe_type.vectors))


# Plain LLVM, one helper an idea: for the instructions below, and for those of single kernels.


def number(literal: Any) -> int:
    """Return a literal, or the length of a tuple, which its type knows."""
    return int(literal.literal_value if hasattr(literal, "literal_value") else literal.count)


def declare(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """Return the LLVM intrinsic `name`, declared once a module."""
    module = builder.module
    if name in module.globals:
        return module.globals[name]
    return ir.Function(module, ir.FunctionType(result, arguments), name)


def pointer_to(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """Byte pointer to `offset` bytes into an array."""
    struct = context.make_array(array_type)(context, builder, array)
    return beyond(builder, builder.bitcast(struct.data, I8.as_pointer()), offset)


def beyond(builder: Any, pointer: Any, offset: Any) -> Any:
    """Pointer to some bytes after another: a number, or a value of LLVM."""
    return builder.gep(pointer, [ir.Constant(I64, offset) if type(offset) is int else offset])


def read(builder: Any, pointer: Any, kind: Any) -> Any:
    """Load a value of an LLVM type from an address of any alignment."""
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = 1
    return value


def write(builder: Any, pointer: Any, value: Any) -> None:
    """Store a value at an address of any alignment."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = 1


def repeat(builder: Any, value: Any, lanes: int) -> Any:
    """Repeat one scalar in every lane."""
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), None)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def constant(value: int, lanes: int) -> Any:
    """Return the vector that holds `value` in every int32 lane."""
    return ir.Constant(ir.VectorType(I32, lanes), [value] * lanes)


def vectors_of(builder: Any, tile: Any) -> list[Any]:
    """Vectors of a tile, token after token."""
    return [builder.extract_value(tile, index) for index in range(tile.type.count)]


def tile_of(builder: Any, vectors: list[Any]) -> Any:
    """Put vectors together as a tile."""
    tile = ir.Constant(ir.ArrayType(vectors[0].type, len(vectors)), ir.Undefined)
    for index, vector in enumerate(vectors):
        tile = builder.insert_value(tile, vector, index)
    return tile


def dot_vnni(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """``vpdpbusd``: total + the sum of the 4 products of bytes in each of 16 lanes."""
    function = declare(builder, "llvm.x86.avx512.vpdpbusd.512", total.type, [total.type] * 3)
    return builder.call(function, [total, unsigned, signed])


def _dot_pairs(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """``vpmaddubsw`` and ``vpaddw``: 16 int16 sums + the products of bytes, two by two."""
    bytes_, halves = ir.VectorType(I8, 32), ir.VectorType(I16, 16)
    function = declare(builder, "llvm.x86.avx2.pmadd.ub.sw", halves, [bytes_, bytes_])
    pairs = builder.call(function, [builder.bitcast(v, bytes_) for v in (unsigned, signed)])
    return builder.bitcast(builder.add(builder.bitcast(total, halves), pairs), total.type)


def _dot_signed(builder: Any, total: Any, left: Any, right: Any) -> Any:
    """``sdot`` on Arm: total + the 4 products of signed bytes in each lane; elsewhere plain."""
    lanes = total.type.count
    narrow = ir.VectorType(I8, 4 * lanes)
    left, right = builder.bitcast(left, narrow), builder.bitcast(right, narrow)
    if ARM:
        name = f"llvm.aarch64.neon.sdot.v{lanes}i32.v{4 * lanes}i8"
        function = declare(builder, name, total.type, [total.type, narrow, narrow])
        return builder.call(function, [total, left, right])
    wide = ir.VectorType(I32, 4 * lanes)
    products = builder.mul(builder.sext(left, wide), builder.sext(right, wide))
    for byte in range(4):
        picks = ir.Constant(ir.VectorType(I32, lanes), [4 * lane + byte for lane in range(lanes)])
        total = builder.add(total, builder.shuffle_vector(products, products, picks))
    return total


_DOTS = {16: dot_vnni, 8: _dot_pairs, 4: _dot_signed}


def _places(context: Any, builder: Any, kinds: Any, args: Any, tile: Tile) -> list[tuple[Any, Any]]:
    """Pointer and mask of every vector of a tile, for (array, offset, stride, present, valid)."""
    pointer, places = pointer_to(context, builder, kinds[0], args[0], args[1]), []
    lanes = ir.VectorType(I32, tile.lanes)
    numbers = [ir.Constant(lanes, [first + lane for lane in range(tile.lanes)])
               for first in range(0, tile.vectors * tile.lanes, tile.lanes)]  # fmt: skip
    for token in range(tile.tokens):
        here = builder.icmp_signed(">", args[3], ir.Constant(I64, token))
        valid = builder.select(here, builder.trunc(args[4], I32), ir.Constant(I32, 0))
        bound = repeat(builder, valid, tile.lanes)
        for vector in range(tile.vectors):
            bits = builder.icmp_signed("<", numbers[vector], bound)
            places.append((beyond(builder, pointer, 4 * tile.lanes * vector), bits))
        pointer = beyond(builder, pointer, args[2])
    return places


# The instructions. Each is `@intrinsic`: its body says its types, and emits LLVM when called.


@intrinsic(prefer_literal=True)
def tile_zero(typingctx, tokens, groups, lanes):
    """``tile_zero(tokens, groups, lanes)``: zeros, for groups of 16 rows."""
    tile = Tile(number(tokens), 16 * number(groups) // number(lanes), number(lanes))

    def codegen(context, builder, signature, args):
        return tile_of(builder, [constant(0, tile.lanes)] * (tile.tokens * tile.vectors))

    return tile(tokens, groups, lanes), codegen


@intrinsic(prefer_literal=True)
def tile_codes(typingctx, panels, offset, first, sums):
    """``tile_codes(panels, offset, first, sums)``: the codes that the vectors of a token meet.

    Those of the 64 bytes at `offset`, from group number `first` on, of as many groups as the tile
    `sums` has: 0..2, or with 16 lanes that times ``4**group``.
    """
    tile = Tile(1, sums.vectors, sums.lanes)

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1])
        words, vectors = ir.VectorType(I32, tile.lanes), []
        packed = [read(builder, beyond(builder, pointer, at), words)
                  for at in range(0, 64, 4 * tile.lanes)]  # fmt: skip
        for group in range(tile.vectors // len(packed)):
            number = builder.add(builder.trunc(args[2], I32), ir.Constant(I32, group))
            shift = builder.shl(number, ir.Constant(I32, 1))
            if tile.lanes == 16:
                bits = repeat(builder, builder.shl(ir.Constant(I32, ONE_CODE), shift), 16)
                vectors += [builder.and_(vector, bits) for vector in packed]
            else:
                ones, by = constant(ONE_CODE, tile.lanes), repeat(builder, shift, tile.lanes)
                vectors += [builder.and_(builder.lshr(vector, by), ones) for vector in packed]
        return tile_of(builder, vectors)

    return tile(panels, types.intp, types.intp, sums), codegen


@intrinsic(prefer_literal=True)
def tile_dot(typingctx, tile, codes, array, offset, stride):
    """``tile_dot(tile, codes, array, offset, stride)``: the tile plus codes times activations.

    Token ``t`` has 4 activations, int8, at byte ``offset + t stride``: all lanes of all its vectors
    meet them. With 8 lanes the sums are of int16, two a lane: a pair of codes 0..2 times int8 adds
    at most 512, and the caller counts how many it may add. Token after token, so that few vectors
    of activations are alive at once, and 24 sums fit into 32 registers.
    """

    def codegen(context, builder, signature, args):
        sums, each = vectors_of(builder, args[0]), vectors_of(builder, args[1])
        pointer = pointer_to(context, builder, signature.args[2], args[2], args[3])
        for token in range(tile.tokens):
            four = repeat(builder, read(builder, pointer, I32), tile.lanes)
            for vector, unsigned in enumerate(each):
                index = token * tile.vectors + vector
                sums[index] = _DOTS[tile.lanes](builder, sums[index], unsigned, four)
            pointer = beyond(builder, pointer, args[4])
        return tile_of(builder, sums)

    return tile(tile, codes, array, types.intp, types.intp), codegen


@intrinsic(prefer_literal=True)
def tile_add(typingctx, total, sums):
    """``tile_add(total, sums)``: int32 lanes plus the sums of `tile_dot`, which 8 lanes widen."""

    def codegen(context, builder, signature, args):
        totals, each = (vectors_of(builder, arg) for arg in args)
        if total.lanes == 8:  # vpmaddwd with ones
            halves, words = ir.VectorType(I16, 16), ir.VectorType(I32, 8)
            widen = declare(builder, "llvm.x86.avx2.pmadd.wd", words, [halves, halves])
            ones = ir.Constant(halves, [1] * 16)
            each = [builder.call(widen, [builder.bitcast(v, halves), ones]) for v in each]
        return tile_of(builder, [builder.add(*both) for both in zip(totals, each, strict=True)])

    return total(total, sums), codegen


@intrinsic(prefer_literal=True)
def tile_finish(typingctx, tile, first, minus, scales, token):
    """``tile_finish(tile, first, minus, scales, token)``: products from sums of whole rows.

    Takes off what 16 lanes count too much, from group number `first` on; adds to token ``t`` int32
    number ``token + t`` of `minus`; and unless `scales` is None multiplies by that float32 of it:
    then the lanes are the bits of floats.
    """

    def codegen(context, builder, signature, args):
        vectors, kinds = vectors_of(builder, args[0]), signature.args
        floats = ir.VectorType(FLOAT, tile.lanes)
        shift = builder.shl(builder.trunc(args[1], I32), ir.Constant(I32, 1))
        for index, vector in enumerate(vectors):
            number, group = index // tile.vectors, index % tile.vectors
            if tile.lanes == 16:
                by = builder.add(shift, ir.Constant(I32, 2 * (group % 4)))
                vector = builder.ashr(vector, repeat(builder, by, 16))
            at = builder.shl(builder.add(args[4], ir.Constant(I64, number)), ir.Constant(I64, 2))
            added = read(builder, pointer_to(context, builder, kinds[2], args[2], at), I32)
            total = builder.add(vector, repeat(builder, added, tile.lanes))
            if not isinstance(scales, types.NoneType):
                scale = read(builder, pointer_to(context, builder, kinds[3], args[3], at), FLOAT)
                factors = repeat(builder, scale, tile.lanes)
                product = builder.fmul(builder.sitofp(total, floats), factors)
                total = builder.bitcast(product, total.type)
            vectors[index] = total
        return tile_of(builder, vectors)

    return tile(tile, types.intp, minus, scales, types.intp), codegen


@intrinsic(prefer_literal=True)
def tile_fill(typingctx, tile, first, words, at, step):
    """``tile_fill(tile, first, words, at, step)``: a tile like `tile`, to begin sums with.

    Group ``g`` of 16 rows of token ``t`` has int32 number ``4 (at + t step) + first + g`` of
    `words` in all lanes.
    """

    def codegen(context, builder, signature, args):
        index, vectors = args[3], []
        for _ in range(tile.tokens):
            at = builder.shl(builder.add(builder.shl(index, _TWO), args[1]), _TWO)
            pointer = pointer_to(context, builder, signature.args[2], args[2], at)
            for vector in range(tile.vectors):
                group = beyond(builder, pointer, vector * tile.lanes // 16 * 4)
                vectors.append(repeat(builder, read(builder, group, I32), tile.lanes))
            index = builder.add(index, args[4])
        return tile_of(builder, vectors)

    return tile(tile, types.intp, words, types.intp, types.intp), codegen


@intrinsic(prefer_literal=True)
def tile_group(typingctx, total, sums, first, factors, at, step, scales, offset):
    """``tile_group(total, sums, ...)``: floats `total` plus the products of one group of columns.

    Each sum, rounded to float32, is multiplied by its row's scale times the factor of its token:
    float32 number ``at + t step`` of `factors`. The rows' scales are entries `offset` and on of
    `scales`, float32 or the bits of float16. Those in float16 expect sums that count ``4**g`` times
    too much in group ``g``, as they do with 16 lanes.
    """
    half = scales.dtype.bitwidth == 16

    def codegen(context, builder, signature, args):
        kinds, floats, each = signature.args, ir.VectorType(FLOAT, sums.lanes), sums.vectors
        totals, exact = vectors_of(builder, args[0]), vectors_of(builder, args[1])
        stored, size = ir.VectorType(HALF if half else FLOAT, sums.lanes), 2 if half else 4
        offset = builder.mul(args[7], ir.Constant(I64, size))
        begin = pointer_to(context, builder, kinds[6], args[6], offset)
        shift, rows = builder.shl(builder.trunc(args[2], I32), ir.Constant(I32, 1)), []
        for vector in range(each):
            scale = read(builder, beyond(builder, begin, vector * sums.lanes * size), stored)
            rows.append(builder.fpext(scale, floats) if half else scale)
        index = args[4]
        for token in range(sums.tokens):
            at = builder.shl(index, _TWO)
            factor = read(builder, pointer_to(context, builder, kinds[3], args[3], at), FLOAT)
            factors = repeat(builder, factor, sums.lanes)
            for vector in range(each):
                value = exact[token * each + vector]
                if half != (sums.lanes == 16):  # to count as often as the scales expect
                    group = vector * sums.lanes // 16
                    by = builder.add(shift, ir.Constant(I32, 2 * group))
                    by = repeat(builder, by, sums.lanes)
                    value = builder.shl(value, by) if half else builder.ashr(value, by)
                scale = builder.fmul(rows[vector], factors)
                product = builder.fmul(builder.sitofp(value, floats), scale)
                before = builder.bitcast(totals[token * each + vector], floats)
                after = builder.bitcast(builder.fadd(before, product), value.type)
                totals[token * each + vector] = after
            index = builder.add(index, args[5])
        return tile_of(builder, totals)

    places = (types.intp,) * 2
    return total(total, sums, types.intp, factors, *places, scales, types.intp), codegen


@intrinsic(prefer_literal=True)
def tile_load(typingctx, array, offset, stride, present, valid, like):
    """``tile_load(array, offset, stride, present, valid, like)``: a tile of the type of `like`.

    The vectors of a token lie side by side, those of the next `stride` bytes on. Of the first
    `present` tokens the first `valid` lanes are read; the others are 0.
    """

    def codegen(context, builder, signature, args):
        words, vectors = ir.VectorType(I32, like.lanes), []
        for pointer, bits in _places(context, builder, signature.args, args, like):
            typed = builder.bitcast(pointer, words.as_pointer())
            name = f"llvm.masked.load.v{like.lanes}i32.p0"
            function = declare(builder, name, words, [typed.type, I32, bits.type, words])
            zero = ir.Constant(words, None)
            vectors.append(builder.call(function, [typed, ir.Constant(I32, 1), bits, zero]))
        return tile_of(builder, vectors)

    places = (types.intp,) * 4
    return like(array, *places, like), codegen


@intrinsic(prefer_literal=True)
def tile_store(typingctx, array, offset, stride, present, valid, tile):
    """``tile_store(array, offset, stride, present, valid, tile)``: what `tile_load` would read."""

    def codegen(context, builder, signature, args):
        places = _places(context, builder, signature.args, args, tile)
        vectors = vectors_of(builder, args[5])
        lanes = ir.Constant(I64, tile.vectors * tile.lanes)
        whole = builder.icmp_signed(">=", args[3], ir.Constant(I64, tile.tokens))
        whole = builder.and_(whole, builder.icmp_signed(">=", args[4], lanes))
        with builder.if_else(whole) as (yes, no):
            with yes:
                for (pointer, _), value in zip(places, vectors, strict=True):
                    write(builder, pointer, value)
            with no:
                for (pointer, bits), value in zip(places, vectors, strict=True):
                    typed = builder.bitcast(pointer, value.type.as_pointer())
                    name = f"llvm.masked.store.v{tile.lanes}i32.p0"
                    arguments = [value.type, typed.type, I32, bits.type]
                    function = declare(builder, name, ir.VoidType(), arguments)
                    builder.call(function, [value, typed, ir.Constant(I32, 1), bits])
        return context.get_dummy_value()

    return types.void(array, *(types.intp,) * 4, tile), codegen


@intrinsic(prefer_literal=True)
def tile_transpose(typingctx, tile):
    """``tile_transpose(tile)``: a vector of 16 lanes for each of 16 tokens, exchanged.

    Four rounds; round r exchanges bit r of the token's number with bit r of the lane's.
    """

    def codegen(context, builder, signature, args):
        rows = vectors_of(builder, args[0])
        for bit in (1, 2, 4, 8):
            low = [lane if not lane & bit else 16 + lane - bit for lane in range(16)]
            high = [lane + bit if not lane & bit else 16 + lane for lane in range(16)]
            masks = [ir.Constant(ir.VectorType(I32, 16), picks) for picks in (low, high)]
            for row in range(16):
                if not row & bit:
                    pair = rows[row], rows[row + bit]
                    rows[row] = builder.shuffle_vector(*pair, masks[0])
                    rows[row + bit] = builder.shuffle_vector(*pair, masks[1])
        return tile_of(builder, rows)

    if (tile.tokens, tile.vectors, tile.lanes) != (16, 1, 16):
        raise TypeError(f"tile_transpose takes a Tile(16x1x16), got {tile}")
    return tile(tile), codegen


@intrinsic(prefer_literal=True)
def prefetch(typingctx, array, offset):
    """``prefetch(array, offset)``: ask for a line to be read; an address past the end is safe."""

    def codegen(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1])
        name = "llvm.prefetch.p0" if llvm.llvm_version_info[0] >= 15 else "llvm.prefetch.p0i8"
        function = declare(builder, name, ir.VoidType(), [pointer.type, I32, I32, I32])
        flags = [ir.Constant(I32, flag) for flag in (0, 3, 1)]  # read, keep in all levels, data
        builder.call(function, [pointer, *flags])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen
