"""A ternary matrix times one sparse vector: only the columns of inputs that are not zero are read.

The weights lie in bands of 256 rows; in a band each column is one line of 64 bytes, a cache line::

    bands[n_out / 256][n_in][64]: byte 16 L + 4 v + d of a line holds, in bits 2 j and 2 j + 1,
    the code (the weight plus 1) of row 64 v + 16 j + 4 L + d of the band

`vpdpbusd` multiplies 4 neighbouring bytes by 4 activations: the lines of any 4 columns are first
woven together, byte by byte and within the quarters of a register, which is what the order of the
rows makes up for. Then each of the 4 woven registers meets the same 4 activations under 4 masks,
and all 256 sums stay in 16 registers. `product_any` is a plain loop over the bytes of a line.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minibit.kernels import simd
from minibit.kernels.compiling import Array, njit

BAND, LINE = 256, 64  # rows of a band, bytes of a column in it
AHEAD = 128  # columns between a prefetch and the load it is for
FLUSH = 127  # columns whose products, at most 2 * 128 each, int16 can hold


def _weave(builder: Any, left: Any, right: Any, size: int, high: bool) -> Any:
    """Take elements of `size` bytes in turn, from the lower or upper half of every quarter."""
    element = ir.IntType(8 * size)
    vector = ir.VectorType(element, 64 // size)
    quarter = 16 // size
    picks = []
    for start in range(0, vector.count, quarter):
        first = start + (quarter // 2 if high else 0)
        for i in range(first, first + quarter // 2):
            picks += [i, vector.count + i]
    mask = ir.Constant(ir.VectorType(simd.I32, vector.count), picks)
    both = (builder.bitcast(v, vector) for v in (left, right))
    return builder.bitcast(builder.shuffle_vector(*both, mask), ir.VectorType(simd.I8, 64))


@intrinsic(prefer_literal=True)
def _add_columns(typingctx, tile, bands, a, b, c, d, x, offset):
    """Add the products of the lines at bytes a, b, c, d with the 4 activations at byte `offset`.

    Register ``4 v + j`` of the tile counts ``4**j`` times too much.
    """

    def codegen(context, builder, signature, args):
        kinds, words = signature.args, ir.VectorType(simd.I32, 16)
        narrow = ir.VectorType(simd.I8, 64)
        lines = [
            simd.read(builder, simd.pointer_to(context, builder, kinds[1], args[1], at), narrow)
            for at in args[2:6]
        ]
        pointer = simd.pointer_to(context, builder, kinds[6], args[6], args[7])
        four = simd.repeat(builder, simd.read(builder, pointer, simd.I32), 16)
        rows, v = simd.vectors_of(builder, args[0]), 0
        for upper in (False, True):
            left = _weave(builder, lines[0], lines[1], 1, upper)
            right = _weave(builder, lines[2], lines[3], 1, upper)
            for half in (False, True):
                woven = builder.bitcast(_weave(builder, left, right, 2, half), words)
                for j in range(4):
                    codes = builder.and_(woven, simd.constant(simd.ONE_CODE << 2 * j, 16))
                    rows[4 * v + j] = simd.dot_vnni(builder, rows[4 * v + j], codes, four)
                v += 1
        return simd.tile_of(builder, rows)

    places = (types.intp,) * 4
    return tile(tile, bands, *places, x, types.intp), codegen


@njit(cache=True, nogil=True)
def compact(x: Array, at: Array, values: Array) -> int:
    """List the places (as bytes of a band) and values of all that are not 0; return how many.

    The list is filled up to a multiple of 4 with zeros, which add nothing: `at` and `values` have
    room for 4 more than x.
    """
    count = 0
    for i in range(x.size):  # without a branch: it would be guessed wrong
        at[count] = LINE * i
        values[count] = x[i]
        count += x[i] != 0
    for i in range(count, (count + 3) // 4 * 4):
        at[i] = 0
        values[i] = 0
    return count


@njit(cache=True, nogil=True)
def product_wide(at: Array, values: Array, count: int, n_in: int, bands: Array, out: Array) -> None:
    """Write the product of the listed activations with all bands into ``out (n_out,)``: VNNI.

    No prefetcher of the CPU guesses which lines come next, so they are asked for, far ahead and
    across the end of a band.
    """
    total = np.int32(0)
    for i in range(count):
        total = np.int32(total - values[i])
    minus, size = np.full(1, total, np.int32), LINE * n_in
    full = (count + 3) // 4 * 4
    soon = np.empty(full, np.int64)  # the line to ask for while this one is multiplied
    for i in range(full):
        soon[i] = at[(i + AHEAD) % full] + (i + AHEAD) // full * size
    for band in range((out.size + BAND - 1) // BAND):
        base = band * size
        sums = simd.tile_zero(1, 16, 16)
        for i in range(0, full, 4):
            simd.prefetch(bands, base + soon[i])
            simd.prefetch(bands, base + soon[i + 1])
            simd.prefetch(bands, base + soon[i + 2])
            simd.prefetch(bands, base + soon[i + 3])
            a, b, c, d = base + at[i], base + at[i + 1], base + at[i + 2], base + at[i + 3]
            sums = _add_columns(sums, bands, a, b, c, d, values, i)
        rows = simd.tile_finish(sums, 0, minus, None, 0)
        simd.tile_store(out, 4 * BAND * band, 0, 1, out.size - BAND * band, rows)


@njit(cache=True, nogil=True)
def _flush(part, sums):
    """Add the int16 sums to the int32 ones, and begin anew."""
    for j in range(4):
        for b in range(LINE):
            sums[j, b] += part[j, b]
            part[j, b] = 0


@njit(cache=True, nogil=True)
def product_any(at: Array, values: Array, count: int, n_in: int, bands: Array, out: Array) -> None:
    """Do as `product_wide` does, on any CPU."""
    total = np.int32(0)
    for i in range(count):
        total = np.int32(total + values[i])
    part, sums = np.empty((4, LINE), np.int16), np.empty((4, LINE), np.int32)
    first, second, third, fourth = part[0], part[1], part[2], part[3]
    for band in range((out.size + BAND - 1) // BAND):
        base = band * LINE * n_in
        sums[:] = 0
        part[:] = 0
        for start in range(0, count, FLUSH):
            for i in range(start, min(start + FLUSH, count)):
                line = bands[base + at[i] : base + at[i] + LINE]
                x = np.int16(values[i])
                for b in range(LINE):
                    first[b] += np.int16(np.int16(line[b] & 3) * x)
                    second[b] += np.int16(np.int16((line[b] >> 2) & 3) * x)
                    third[b] += np.int16(np.int16((line[b] >> 4) & 3) * x)
                    fourth[b] += np.int16(np.int16(line[b] >> 6) * x)
            _flush(part, sums)
        for b in range(LINE):
            row = BAND * band + 64 * (b // 4 % 4) + 4 * (b // 16) + b % 4
            for j in range(4):
                if row + 16 * j < out.size:
                    out[row + 16 * j] = np.int32(sums[j, b] - total)
