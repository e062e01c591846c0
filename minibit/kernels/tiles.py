"""Tiles for the SIMD layer: what a matrix product keeps in registers, unrolled when compiled.

A `Tile` is a fixed number of vectors (`minibit.kernels.simd`) that stay in registers: the
accumulators of a product, or codes on their way there. Its functions do the same to each vector, or
one thing to all of them. A number of vectors is a literal, or a tuple of that length, so that one
kernel compiles for several.

`tile_dot_rows`, `tile_dot_pair` and `dot_tile` need AVX-512 VNNI, at 16 lanes; `tile_dot_pairs`
AVX2, at 8; `tile_dot_signed` runs anywhere and is one ``sdot`` on Arm. After an edit, delete
``minibit/kernels/__pycache__``, as for the layer below.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel import PrimitiveModel, register_default
from numba.extending import intrinsic

from minibit.kernels.simd import (
    I8,
    I16,
    I32,
    I64,
    Vector,
    _address,
    _constant,
    _declare,
    _dot_s8s8,
    _dot_u8s8,
    _load,
    _pairs,
    _splat,
    _widen,
)

__all__ = [
    "Tile",
    "base3_split",
    "dot_tile",
    "tile_add",
    "tile_add_pairs",
    "tile_add_vector",
    "tile_codes",
    "tile_count",
    "tile_dot_pair",
    "tile_dot_pairs",
    "tile_dot_rows",
    "tile_dot_signed",
    "tile_get",
    "tile_half",
    "tile_join",
    "tile_load",
    "tile_read",
    "tile_scale",
    "tile_shift_left",
    "tile_shift_right",
    "tile_splat",
    "tile_store",
    "tile_store_rows",
    "tile_times",
    "tile_transpose",
    "tile_unscale",
    "tile_write",
    "tile_zero",
]


class Tile(types.Type):  # type: ignore[misc]
    """Numba type of ``count`` vectors of ``lanes`` int32 lanes each."""

    def __init__(self, count: int, lanes: int) -> None:
        self.count, self.lanes = count, lanes
        super().__init__(name=f"Tile({count}x{lanes})")


@register_default(Tile)
class _TileModel(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Tile) -> None:
        vector = ir.VectorType(I32, fe_type.lanes)
        super().__init__(dmm, fe_type, ir.ArrayType(vector, fe_type.count))


def _count(count: Any) -> int:
    """Return a number of vectors: a literal, or the length of a tuple, which its type knows."""
    return int(count.literal_value if hasattr(count, "literal_value") else count.count)


def _lane_mask(builder: Any, valid: Any, lanes: int) -> Any:
    """Lanes below `valid` (intp) as a vector of bits."""
    numbers = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, _splat(builder, builder.trunc(valid, I32), lanes))


def _masked_load(builder: Any, pointer: Any, vector: Any, bits: Any) -> Any:
    """Load the lanes whose bit is set; the others are 0."""
    typed = builder.bitcast(pointer, vector.as_pointer())
    name = f"llvm.masked.load.v{vector.count}i32.p0"
    arguments = [typed.type, I32, bits.type, vector]
    function = _declare(builder, name, vector, arguments)
    return builder.call(function, [typed, ir.Constant(I32, 1), bits, ir.Constant(vector, None)])


def _masked_store(builder: Any, pointer: Any, value: Any, bits: Any) -> None:
    """Store the lanes whose bit is set; the others are left alone."""
    typed = builder.bitcast(pointer, value.type.as_pointer())
    name = f"llvm.masked.store.v{value.type.count}i32.p0"
    arguments = [value.type, typed.type, I32, bits.type]
    function = _declare(builder, name, ir.VoidType(), arguments)
    builder.call(function, [value, typed, ir.Constant(I32, 1), bits])


def _rows(builder: Any, tile: Any) -> list[Any]:
    """Vectors of a tile."""
    return [builder.extract_value(tile, row) for row in range(tile.type.count)]


def _tile(builder: Any, rows: list[Any]) -> Any:
    """Put vectors together as a tile."""
    result = ir.Constant(ir.ArrayType(rows[0].type, len(rows)), ir.Undefined)
    for row, value in enumerate(rows):
        result = builder.insert_value(result, value, row)
    return result


@intrinsic(prefer_literal=True)
def tile_splat(typingctx, array, offset, count, lanes):  # type: ignore[no-untyped-def]
    """``tile_splat(array, offset, count, lanes)``: vector ``m`` repeats int32 ``m`` from `offset`.

    Each of the `count` integers fills its own vector.
    """
    tile = Tile(_count(count), lanes.literal_value)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = _address(context, builder, signature.args[0], args[0], args[1])
        starts = [builder.gep(pointer, [ir.Constant(I64, 4 * m)]) for m in range(tile.count)]
        return _tile(
            builder, [_splat(builder, _load(builder, at, I32), tile.lanes) for at in starts]
        )

    return tile(array, types.intp, count, lanes), codegen


@intrinsic(prefer_literal=True)
def tile_zero(typingctx, count, lanes):  # type: ignore[no-untyped-def]
    """``tile_zero(count, lanes)``: `count` vectors of zeros."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return _tile(builder, [_constant(0, lanes.literal_value)] * _count(count))

    return Tile(_count(count), lanes.literal_value)(count, lanes), codegen


@intrinsic(prefer_literal=True)
def tile_load(typingctx, array, offset, stride, valid, count, lanes):  # type: ignore[no-untyped-def]
    """``tile_load(array, offset, stride, valid, count, lanes)``: `count` vectors of an array.

    They start `stride` bytes apart; of each, the first `valid` lanes are read, the rest is 0.
    """
    tile = Tile(_count(count), lanes.literal_value)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        vector, rows = ir.VectorType(I32, tile.lanes), []
        bits = _lane_mask(builder, args[3], tile.lanes)
        pointer = _address(context, builder, signature.args[0], args[0], args[1])
        for _ in range(tile.count):
            rows.append(_masked_load(builder, pointer, vector, bits))
            pointer = builder.gep(pointer, [args[2]])
        return _tile(builder, rows)

    return tile(array, types.intp, types.intp, types.intp, count, lanes), codegen


@intrinsic(prefer_literal=True)
def tile_store(typingctx, array, offset, stride, valid, tile):  # type: ignore[no-untyped-def]
    """``tile_store(array, offset, stride, valid, tile)``: write `valid` lanes of each vector."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        bits = _lane_mask(builder, args[3], tile.lanes)
        pointer = _address(context, builder, signature.args[0], args[0], args[1])
        for value in _rows(builder, args[4]):
            _masked_store(builder, pointer, value, bits)
            pointer = builder.gep(pointer, [args[2]])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.intp, tile), codegen


@intrinsic(prefer_literal=True)
def tile_store_rows(typingctx, array, offset, valid, tile):  # type: ignore[no-untyped-def]
    """``tile_store_rows(array, offset, valid, tile)``: all lanes of a tile, one after the other.

    Only the first `valid` of them are written.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = _address(context, builder, signature.args[0], args[0], args[1])
        for j, value in enumerate(_rows(builder, args[3])):
            left = builder.sub(args[2], ir.Constant(I64, tile.lanes * j))
            at = builder.gep(pointer, [ir.Constant(I64, 4 * tile.lanes * j)])
            _masked_store(builder, at, value, _lane_mask(builder, left, tile.lanes))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, tile), codegen


@intrinsic(prefer_literal=True)
def tile_times(typingctx, tile, scale):  # type: ignore[no-untyped-def]
    """``tile_times(tile, scale)``: every lane as float32, times `scale`; the floats' bits."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        whole, floats = (ir.VectorType(kind, tile.lanes) for kind in (I32, ir.FloatType()))
        factor = _splat(builder, args[1], tile.lanes)
        rows = [builder.sitofp(row, floats) for row in _rows(builder, args[0])]
        return _tile(builder, [builder.bitcast(builder.fmul(row, factor), whole) for row in rows])

    return tile(tile, types.float32), codegen


@intrinsic(prefer_literal=True)
def tile_add_vector(typingctx, tile, vector):  # type: ignore[no-untyped-def]
    """``tile_add_vector(tile, vector)``: the same vector added to each of a tile."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return _tile(builder, [builder.add(row, args[1]) for row in _rows(builder, args[0])])

    return tile(tile, vector), codegen


@intrinsic(prefer_literal=True)
def tile_get(typingctx, tile, row):  # type: ignore[no-untyped-def]
    """``tile_get(tile, row)``: vector number `row`, a literal."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.extract_value(args[0], row.literal_value)

    return Vector(tile.lanes)(tile, row), codegen


@intrinsic(prefer_literal=True)
def tile_unscale(typingctx, tile):  # type: ignore[no-untyped-def]
    """``tile_unscale(tile)``: take off what `tile_dot_rows` counts too much.

    Vector ``j`` is shifted right by ``2 (j mod 4)``, arithmetically.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        rows = enumerate(_rows(builder, args[0]))
        shifts = [_constant(2 * (j % 4), tile.lanes) for j in range(tile.count)]
        return _tile(builder, [builder.ashr(row, shifts[j]) for j, row in rows])

    return tile(tile), codegen


@intrinsic(prefer_literal=True)
def tile_shift_left(typingctx, tile, bits):  # type: ignore[no-untyped-def]
    """``tile_shift_left(tile, bits)``: every lane of every vector times ``2**bits``."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        by = _splat(builder, args[1], tile.lanes)
        return _tile(builder, [builder.shl(row, by) for row in _rows(builder, args[0])])

    return tile(tile, types.int32), codegen


@intrinsic(prefer_literal=True)
def tile_shift_right(typingctx, tile, bits):  # type: ignore[no-untyped-def]
    """``tile_shift_right(tile, bits)``: arithmetic shift of every lane of every vector."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        by = _splat(builder, args[1], tile.lanes)
        return _tile(builder, [builder.ashr(row, by) for row in _rows(builder, args[0])])

    return tile(tile, types.int32), codegen


@intrinsic(prefer_literal=True)
def tile_join(typingctx, left, right):  # type: ignore[no-untyped-def]
    """``tile_join(left, right)``: the vectors of two tiles, taken in turn, as one tile."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pairs = zip(_rows(builder, args[0]), _rows(builder, args[1]), strict=True)
        return _tile(builder, [row for pair in pairs for row in pair])

    return Tile(2 * left.count, left.lanes)(left, right), codegen


@intrinsic(prefer_literal=True)
def tile_count(typingctx, tile):  # type: ignore[no-untyped-def]
    """``tile_count(tile)``: its number of vectors, known when compiled."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return ir.Constant(I64, tile.count)

    return types.int64(tile), codegen


@intrinsic(prefer_literal=True)
def tile_half(typingctx, tile, which):  # type: ignore[no-untyped-def]
    """``tile_half(tile, which)``: undo `tile_join`; 0 is the left tile, 1 the right."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return _tile(builder, _rows(builder, args[0])[which.literal_value :: 2])

    return Tile(tile.count // 2, tile.lanes)(tile, which), codegen


@intrinsic(prefer_literal=True)
def dot_tile(typingctx, acc, unsigned, tile):  # type: ignore[no-untyped-def]
    """``dot_tile(acc, unsigned, tile)``: acc plus ``dot_u8s8`` with each vector of the tile."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        total = args[0]
        for row in _rows(builder, args[2]):
            total = _dot_u8s8(builder, total, args[1], row)
        return total

    return acc(acc, unsigned, tile), codegen


@intrinsic(prefer_literal=True)
def tile_dot_pair(typingctx, tile, left, right, array, offset):  # type: ignore[no-untyped-def]
    """``tile_dot_pair(tile, left, right, array, offset)``: one token after the other, both codes.

    ``tile[2m] += dot_u8s8(left, four[m])`` and ``tile[2m + 1] += dot_u8s8(right, four[m])``, where
    ``four[m]`` are the 4 bytes at ``offset + 4m``. In this order few broadcasts are alive at once,
    and 24 sums fit into 32 registers.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        rows = _rows(builder, args[0])
        pointer = _address(context, builder, signature.args[3], args[3], args[4])
        for row in range(0, tile.count, 2):
            four = builder.gep(pointer, [ir.Constant(I64, 2 * row)])
            signed = _splat(builder, _load(builder, four, I32), tile.lanes)
            rows[row] = _dot_u8s8(builder, rows[row], args[1], signed)
            rows[row + 1] = _dot_u8s8(builder, rows[row + 1], args[2], signed)
        return _tile(builder, rows)

    return tile(tile, left, right, array, types.intp), codegen


@intrinsic(prefer_literal=True)
def tile_dot_rows(typingctx, tile, packed, four):  # type: ignore[no-untyped-def]
    """``tile_dot_rows(tile, packed, four)``: codes of four groups of rows meet 4 activations.

    ``tile[j] += dot_u8s8(packed & (3 << 2j), four)``, j = 0..3: the codes are masked out and not
    shifted down, so vector ``j`` counts ``4**j`` times too much, exactly.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        rows = _rows(builder, args[0])
        for j, row in enumerate(rows):
            codes = builder.and_(args[1], _constant(0x03030303 << 2 * j, tile.lanes))
            rows[j] = _dot_u8s8(builder, row, codes, args[2])
        return _tile(builder, rows)

    return tile(tile, packed, four), codegen


@intrinsic(prefer_literal=True)
def tile_transpose(typingctx, tile):  # type: ignore[no-untyped-def]
    """``tile_transpose(tile)``: 16 vectors of 16 lanes, rows and columns exchanged.

    Four rounds; round r exchanges bit r of the row number with bit r of the lane number.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        rows, size = _rows(builder, args[0]), tile.lanes
        for bit in (1, 2, 4, 8):
            low = [lane if not lane & bit else size + lane - bit for lane in range(size)]
            high = [lane + bit if not lane & bit else size + lane for lane in range(size)]
            masks = [ir.Constant(ir.VectorType(I32, size), picks) for picks in (low, high)]
            for row in range(size):
                if not row & bit:
                    pair = rows[row], rows[row + bit]
                    rows[row] = builder.shuffle_vector(*pair, masks[0])
                    rows[row + bit] = builder.shuffle_vector(*pair, masks[1])
        return _tile(builder, rows)

    if (tile.count, tile.lanes) != (16, 16):
        raise TypeError(f"tile_transpose takes a Tile(16x16), got {tile}")
    return tile(tile), codegen


@intrinsic(prefer_literal=True)
def tile_read(typingctx, array, offset, count, lanes):  # type: ignore[no-untyped-def]
    """``tile_read(array, offset, count, lanes)``: neighbouring vectors, all of their lanes."""
    tile = Tile(_count(count), lanes.literal_value)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        vector = ir.VectorType(I32, tile.lanes)
        pointer = _address(context, builder, signature.args[0], args[0], args[1])
        starts = [ir.Constant(I64, 4 * tile.lanes * row) for row in range(tile.count)]
        return _tile(builder, [_load(builder, builder.gep(pointer, [at]), vector) for at in starts])

    return tile(array, types.intp, count, lanes), codegen


@intrinsic(prefer_literal=True)
def tile_write(typingctx, array, offset, tile):  # type: ignore[no-untyped-def]
    """``tile_write(array, offset, tile)``: the vectors as neighbours, all of their lanes."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = _address(context, builder, signature.args[0], args[0], args[1])
        for row, value in enumerate(_rows(builder, args[2])):
            at = builder.gep(pointer, [ir.Constant(I64, 4 * tile.lanes * row)])
            builder.store(value, builder.bitcast(at, value.type.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, tile), codegen


@intrinsic(prefer_literal=True)
def tile_add(typingctx, left, right):  # type: ignore[no-untyped-def]
    """``tile_add(left, right)``: vector by vector, lane by lane."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        both = zip(_rows(builder, args[0]), _rows(builder, args[1]), strict=True)
        return _tile(builder, [builder.add(*pair) for pair in both])

    return left(left, right), codegen


@intrinsic(prefer_literal=True)
def tile_codes(typingctx, tile, shift):  # type: ignore[no-untyped-def]
    """``tile_codes(tile, shift)``: bits `shift` and `shift` + 1 of every byte, as 0..3."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        shifts = _splat(builder, args[1], tile.lanes)
        ones = _constant(0x03030303, tile.lanes)
        moved = [builder.lshr(row, shifts) for row in _rows(builder, args[0])]
        return _tile(builder, [builder.and_(row, ones) for row in moved])

    return tile(tile, types.int32), codegen


@intrinsic(prefer_literal=True)
def tile_dot_signed(typingctx, tile, codes, four):  # type: ignore[no-untyped-def]
    """``tile_dot_signed(tile, codes, four)``: each vector plus its 4 products of bytes a lane.

    Codes below 128, `four` signed; at 4 lanes this is one ``sdot`` on Arm.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        both = zip(_rows(builder, args[0]), _rows(builder, args[1]), strict=True)
        rows = [_dot_s8s8(builder, acc, row, args[2]) for acc, row in both]
        return _tile(builder, rows)

    return tile(tile, codes, four), codegen


@intrinsic(prefer_literal=True)
def tile_dot_pairs(typingctx, tile, codes, four):  # type: ignore[no-untyped-def]
    """``tile_dot_pairs(tile, codes, four)``: each vector, as int16, plus sums of 2 products.

    AVX2's ``vpmaddubsw`` and ``vpaddw``, at 8 lanes. The caller counts how many it may add: a pair
    of codes 0..2 times int8 is at most 512.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        halves, rows = ir.VectorType(I16, 16), []
        for acc, row in zip(_rows(builder, args[0]), _rows(builder, args[1]), strict=True):
            pairs = builder.bitcast(_pairs(builder, row, args[2]), halves)
            total = builder.add(builder.bitcast(acc, halves), pairs)
            rows.append(builder.bitcast(total, acc.type))
        return _tile(builder, rows)

    return tile(tile, codes, four), codegen


@intrinsic(prefer_literal=True)
def tile_add_pairs(typingctx, tile, pairs):  # type: ignore[no-untyped-def]
    """``tile_add_pairs(tile, pairs)``: int32 sums plus the two int16 of each lane of `pairs`."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        both = zip(_rows(builder, args[0]), _rows(builder, args[1]), strict=True)
        return _tile(builder, [builder.add(acc, _widen(builder, row)) for acc, row in both])

    return tile(tile, pairs), codegen


@intrinsic(prefer_literal=True)
def tile_scale(typingctx, tile, array, offset):  # type: ignore[no-untyped-def]
    """``tile_scale(tile, array, offset)``: vector ``m`` as float32, times float32 ``m`` of `array`.

    The result is a tile of the floats' bits.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        floats = ir.VectorType(ir.FloatType(), tile.lanes)
        rows = _rows(builder, args[0])
        pointer = _address(context, builder, signature.args[1], args[1], args[2])
        for row in range(tile.count):
            at = builder.gep(pointer, [ir.Constant(I64, 4 * row)])
            scale = _splat(builder, _load(builder, at, ir.FloatType()), tile.lanes)
            product = builder.fmul(builder.sitofp(rows[row], floats), scale)
            rows[row] = builder.bitcast(product, rows[row].type)
        return _tile(builder, rows)

    return tile(tile, array, types.intp), codegen


@intrinsic(prefer_literal=True)
def base3_split(typingctx, vector):  # type: ignore[no-untyped-def]
    """``base3_split(vector)``: bytes 0..242 as a tile of byte % 81 and byte // 81."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        narrow = ir.VectorType(I8, 4 * vector.lanes)
        zeros = ir.Constant(narrow, None)

        def all_bytes(value):  # type: ignore[no-untyped-def]
            return ir.Constant(narrow, [value] * narrow.count)

        value = builder.bitcast(args[0], narrow)
        rest, digit = value, zeros
        for bound in (81, 162):
            above = builder.icmp_unsigned(">=", value, all_bytes(bound))
            rest = builder.sub(rest, builder.select(above, all_bytes(81), zeros))
            digit = builder.add(digit, builder.select(above, all_bytes(1), zeros))
        return _tile(builder, [builder.bitcast(v, args[0].type) for v in (rest, digit)])

    return Tile(2, vector.lanes)(vector), codegen
