"""The K largest magnitudes of a row, exactly, ties to the lowest index: a search among bits.

The bits of non-negative floats order like integers, so the K-th largest magnitude is a whole number
that is found by counting how many entries reach a trial value. Counting is one pass of vectors,
twice as many entries to a register on int16 as on int32: the upper 15 bits are searched first, then
the lower 16 of the entries that share them. Trial values are interpolated between what is known,
and every third one halves the range: some ten passes for smooth data, never more than three times
the bits. No entry is moved, and no branch depends on one.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minibit.kernels import simd
from minibit.kernels.compiling import Array, njit

MAGNITUDE = np.int32(0x7FFFFFFF)
INFINITY = np.int32(0x7F800000)
LEAST = np.int16(-32768)
STRIDE = 128  # entries counted at a time: four registers of 32 int16
CHUNK = 32000 * STRIDE  # entries that int16 sums can count


@intrinsic(prefer_literal=True)
def _add_reached(typingctx, tile, array, offset, least):
    """Add 1 to every int16 of the tile whose entry of the array, from byte `offset`, is large."""

    def codegen(context, builder, signature, args):
        halves = ir.VectorType(simd.I16, 2 * tile.lanes)
        pointer = simd.pointer_to(context, builder, signature.args[1], args[1], args[2])
        bound, rows = simd.repeat(builder, args[3], halves.count), []
        for row, acc in enumerate(simd.vectors_of(builder, args[0])):
            at = simd.beyond(builder, pointer, 4 * tile.lanes * row)
            reached = builder.icmp_signed(">=", simd.read(builder, at, halves), bound)
            total = builder.sub(builder.bitcast(acc, halves), builder.sext(reached, halves))
            rows.append(builder.bitcast(total, acc.type))
        return simd.tile_of(builder, rows)

    return tile(tile, array, types.intp, types.int16), codegen


@intrinsic(prefer_literal=True)
def _sum_halves(typingctx, tile):
    """Sum every int16 of the tile."""

    def codegen(context, builder, signature, args):
        wide = ir.VectorType(simd.I32, 2 * tile.lanes)
        total = ir.Constant(wide, None)
        for row in simd.vectors_of(builder, args[0]):
            halves = builder.bitcast(row, ir.VectorType(simd.I16, wide.count))
            total = builder.add(total, builder.sext(halves, wide))
        name = f"llvm.vector.reduce.add.v{wide.count}i32"
        return builder.sext(
            builder.call(simd.declare(builder, name, simd.I32, [wide]), [total]), simd.I64
        )

    return types.int64(tile), codegen


@njit(cache=True, nogil=True)
def _count(entries, least):
    """Count the int16 entries that are at least `least`; their number is a multiple of STRIDE."""
    total = 0
    for start in range(0, entries.size, CHUNK):
        tile = simd.tile_zero(1, 4, 16)
        for i in range(start, min(start + CHUNK, entries.size), STRIDE):
            tile = _add_reached(tile, entries, 2 * i, least)
        total += _sum_halves(tile)
    return total


@njit(cache=True, nogil=True)
def _search(entries, k, low, reach, high):
    """Find the largest value that k entries reach; also how many reach it, and the next one.

    `reach` entries, at least k, reach `low`, and none reaches `high`. Stops where k do exactly.
    """
    above, turn = 0, 0
    while reach > k and high - low > 1:
        turn += 1
        if turn % 3 == 0:
            trial = (low + high) // 2
        else:
            trial = low + int((high - low) * ((reach - k + 0.5) / (reach - above)))
            trial = min(max(trial, low + 1), high - 1)
        count = _count(entries, np.int16(trial))
        if count >= k:
            low, reach = trial, count
        else:
            high, above = trial, count
    return low, reach, above


@njit(cache=True, nogil=True)
def _edge(bits, k, high, low):
    """Find the K-th largest magnitude of a row, as bits, and up to where its equals are kept.

    -1 in place of the edge if there is a NaN.
    """
    n = bits.size
    largest, smallest = np.int32(0), MAGNITUDE
    for i in range(n):
        key = np.int32(bits[i] & MAGNITUDE)
        high[i] = np.int16(key >> 16)
        largest, smallest = max(largest, key), min(smallest, key)
    if largest > INFINITY:
        return np.int32(-1), 0
    top, reach, above = _search(high, k, smallest >> 16, n, (largest >> 16) + 1)
    if reach == k:
        return np.int32(top << 16), n
    same = np.int16(top)
    for i in range(n):  # as signed numbers: the upper bit turned
        half = np.int16(np.int32(bits[i] & 0xFFFF) - 32768)
        low[i] = half if high[i] == same else LEAST
    bottom, reached, more = _search(low, k - above, -32768, reach - above, 32768)
    bottom, above = bottom + 32768, above + more
    if reached == k - (above - more):
        return np.int32(top << 16 | bottom), n
    edge = np.int32(top << 16 | bottom)
    ties, end = k - above, 0
    while ties > 0:
        ties -= np.int32(bits[end] & MAGNITUDE) == edge
        end += 1
    return edge, end


@njit(cache=True, nogil=True)
def _scratch(n):
    """Room for the halves of a row, filled up with numbers that are never counted."""
    size = (n + STRIDE - 1) // STRIDE * STRIDE
    room = np.empty(2 * size, np.int16)
    high, low = room[:size], room[size:]
    for i in range(n, size):
        high[i] = low[i] = LEAST
    return high, low


@njit(cache=True, nogil=True)
def select(x: Array, k: int, kept: Array) -> int:
    """Mark the K largest magnitudes of every row of ``x (rows, n)``; return a row of NaN, or -1."""
    n = x.shape[1]
    bits = x.view(np.int32)
    high, low = _scratch(n)
    for row in range(x.shape[0]):
        edge, end = _edge(bits[row], k, high, low)
        if edge < 0:
            return row
        keys, out = bits[row], kept[row]
        for i in range(end):
            out[i] = np.int32(keys[i] & MAGNITUDE) >= edge
        for i in range(end, n):
            out[i] = np.int32(keys[i] & MAGNITUDE) > edge
    return -1


@njit(cache=True, nogil=True)
def keep(x: Array, k: int, out: Array) -> int:
    """Copy the K largest magnitudes of every row, and zeros for the rest; return as `select`."""
    n = x.shape[1]
    bits = x.view(np.int32)
    high, low = _scratch(n)
    zero = np.float32(0)
    for row in range(x.shape[0]):
        edge, end = _edge(bits[row], k, high, low)
        if edge < 0:
            return row
        source, keys, target = x[row], bits[row], out[row]
        for i in range(end):
            target[i] = source[i] if np.int32(keys[i] & MAGNITUDE) >= edge else zero
        for i in range(end, n):
            target[i] = source[i] if np.int32(keys[i] & MAGNITUDE) > edge else zero
    return -1
