"""NF4 as kernels: quantise, dequantise, and a matrix times one vector, on the bytes of a file.

16 floats fill one AVX-512 register: ``vpermps`` looks up 16 weights at once, by the low 4 bits of
each 32-bit lane. So a vector of 64 packed bytes, 128 weights, is shifted right by 0, 4, ... 28
bits, looked up and multiplied: no masks, no unpacking. Lane ``l`` of shift ``4 j`` holds weight
``8 l + (j ^ 1)``, because the first of two weights lies in the high half of its byte; activations
are laid out once in that order::

    line[v][j][l] = x[128 v + 8 l + (j ^ 1)]

The eight weights of a lane are of one block, so its absmax multiplies their sum, and not each:
``row = sum_v absmax * (sum_j code * x)``. Two rows share each load of activations. AVX2 does the
same with 8 lanes, two lookups of 8 entries, and a choice between them.

`matvec` runs anywhere, on a table of the two weights of every byte, and takes rows of any length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minibit.kernels import simd
from minibit.kernels.compiling import Array, njit
from minibit.kernels.quantise import INFINITY, largest_magnitude

LANES = {"avx2": (0,) * 8, "vnni": (0,) * 16, "amx": (0,) * 16}
"""For a kernel path a tuple whose length, a part of its type, is the number of lanes."""

AHEAD = 16384  # bytes; what memory needs to answer, at 20 to 30 GB/s, when others ask too
SMALLEST = np.float32(1e-38)


# Instructions: see `minibit.kernels.simd` for how they are made.


def _look_up(builder: Any, context: Any, table_type: Any, table: Any, index: Any) -> Any:
    """Look up the entries that the low 4 bits of each lane name: ``vpermps``."""
    lanes = index.type.count
    floats = ir.VectorType(simd.FLOAT, lanes)
    parts = []
    for start in range(0, 16, lanes):
        pointer = simd.pointer_to(context, builder, table_type, table, 4 * start)
        parts.append(simd.read(builder, pointer, floats))
    if lanes == 16:
        name = "llvm.x86.avx512.permvar.sf.512"
        function = simd.declare(builder, name, floats, [floats, index.type])
        return builder.call(function, [parts[0], index])
    function = simd.declare(builder, "llvm.x86.avx2.permps", floats, [floats, index.type])
    low, high = (builder.call(function, [part, index]) for part in parts)
    top = builder.shl(index, simd.constant(28, lanes))  # bit 3 of the index as the sign
    return builder.select(builder.icmp_signed("<", top, simd.constant(0, lanes)), high, low)


def _multiply_add(builder: Any, left: Any, right: Any, acc: Any) -> Any:
    """``left * right + acc``, rounded once."""
    function = simd.declare(builder, f"llvm.fma.v{acc.type.count}f32", acc.type, [acc.type] * 3)
    return builder.call(function, [left, right, acc])


def _spread(builder: Any, pointer: Any, kind: Any, count: int, lanes: int) -> Any:
    """Load `count` values and repeat each in as many neighbouring lanes."""
    if count == 1:
        return simd.repeat(builder, simd.read(builder, pointer, kind), lanes)
    few = simd.read(builder, pointer, ir.VectorType(kind, count))
    picks = [lane * count // lanes for lane in range(lanes)]
    return builder.shuffle_vector(few, few, ir.Constant(ir.VectorType(simd.I32, lanes), picks))


@intrinsic(prefer_literal=True)
def _zero(typingctx, lanes):
    """``_zero(lanes)``: floats 0."""

    def codegen(context, builder, signature, args):
        return simd.tile_of(builder, [simd.constant(0, lanes.count)])

    return simd.Tile(1, 1, lanes.count)(lanes), codegen


@intrinsic(prefer_literal=True)
def _add_products(typingctx, acc, table, packed, at, line, to, absmax, first, per):
    """Add a vector of packed weights, at byte `at`, times activations at byte `to`.

    `first` is the byte of its first absmax, and the length of `per` its number of blocks.
    """

    def codegen(context, builder, signature, args):
        kinds, lanes = signature.args, acc.lanes
        floats, words = ir.VectorType(simd.FLOAT, lanes), ir.VectorType(simd.I32, lanes)
        packed_words = simd.read(
            builder, simd.pointer_to(context, builder, kinds[2], args[2], args[3]), words
        )
        start = simd.pointer_to(context, builder, kinds[4], args[4], args[5])
        sums = [None, None]  # two chains of additions, so that one needn't wait for the other
        for j in range(8):
            index = builder.lshr(packed_words, simd.constant(4 * j, lanes))
            weights = _look_up(builder, context, kinds[1], args[1], index)
            x = simd.read(builder, simd.beyond(builder, start, 4 * lanes * j), floats)
            if j < 2:
                sums[j] = builder.fmul(weights, x)
            else:
                sums[j % 2] = _multiply_add(builder, weights, x, sums[j % 2])
        total = builder.fadd(*sums)
        pointer = simd.pointer_to(context, builder, kinds[6], args[6], args[7])
        scales = _spread(builder, pointer, simd.FLOAT, per.count, lanes)
        (sums,) = simd.vectors_of(builder, args[0])
        done = _multiply_add(builder, total, scales, builder.bitcast(sums, floats))
        return simd.tile_of(builder, [builder.bitcast(done, words)])

    return acc(acc, table, packed, types.intp, line, types.intp, absmax, types.intp, per), codegen


@intrinsic(prefer_literal=True)
def _sum_lanes(typingctx, tile):
    """``_sum_lanes(tile)``: the floats of its one vector added, halves first."""

    def codegen(context, builder, signature, args):
        lanes, (sums,) = tile.lanes, simd.vectors_of(builder, args[0])
        total = builder.bitcast(sums, ir.VectorType(simd.FLOAT, lanes))
        half = lanes // 2
        while half:
            picks = [(lane + half) % lanes for lane in range(lanes)]
            moved = builder.shuffle_vector(
                total, total, ir.Constant(ir.VectorType(simd.I32, lanes), picks)
            )
            total, half = builder.fadd(total, moved), half // 2
        return builder.extract_element(total, ir.Constant(simd.I32, 0))

    return types.float32(tile), codegen


@intrinsic(prefer_literal=True)
def _decode(typingctx, packed, at, table, absmax, values, to, lanes):
    """Write as many weights as there are lanes, from byte `at`, to byte `to` of `values`."""

    def codegen(context, builder, signature, args):
        kinds, count = signature.args, lanes.count
        if not count:
            return context.get_dummy_value()
        pointer = simd.pointer_to(context, builder, kinds[0], args[0], args[1])
        words = _spread(builder, pointer, simd.I32, count // 8, count)
        shifts = [4 * (lane % 8 ^ 1) for lane in range(count)]
        index = builder.lshr(words, ir.Constant(words.type, shifts))
        weights = _look_up(builder, context, kinds[2], args[2], index)
        product = builder.fmul(weights, simd.repeat(builder, args[3], count))
        pointer = simd.pointer_to(context, builder, kinds[4], args[4], args[5])
        simd.write(builder, pointer, product)
        return context.get_dummy_value()

    signature = types.void(packed, types.intp, table, types.float32, values, types.intp, lanes)
    return signature, codegen


# Kernels.


@njit(cache=True, nogil=True)
def _count_above(s, bounds, codes):
    """Write how many bounds each value exceeds: the nearest code, the lower one at a tie."""
    for i in range(s.size):
        codes[i] = 0
    for k in range(bounds.size):
        bound = bounds[k]
        for i in range(s.size):
            codes[i] = np.uint8(codes[i] + np.uint8(s[i] > bound))


@njit(cache=True, nogil=True)
def quantise(w: Array, bounds: Array, block: int, packed: Array, absmax: Array) -> bool:
    """Quantise flat weights; False, with the rest unwritten, if one is not finite."""
    bits = w.view(np.int32)
    s, codes = np.empty(block, np.float32), np.empty(block, np.uint8)
    for b in range(absmax.size):
        start = b * block
        size = min(block, w.size - start)
        largest = largest_magnitude(bits[start : start + size])
        if largest >= INFINITY:
            return False
        top = np.array([largest], np.int32).view(np.float32)[0]
        divisor = max(top, SMALLEST)
        if size == block:
            inverse = np.float32(1) / divisor
            for i in range(size):
                s[i] = w[start + i] * inverse
            absmax[b] = top
        else:
            for i in range(size):
                s[i] = w[start + i] / divisor
            absmax[b] = divisor
        _count_above(s[:size], bounds, codes[:size])
        if size % 2:
            codes[size] = 7
        for i in range((size + 1) // 2):
            packed[start // 2 + i] = np.uint8(codes[2 * i] << 4 | codes[2 * i + 1])
    return True


@njit(cache=True, nogil=True)
def decode_absmax(
    codes: Array, nested: Array, offset: np.float32, table: Array, absmax: Array
) -> None:
    """Write ``table[codes] * nested + offset``, where 256 codes share a nested absmax."""
    for first in range(0, codes.size, 256):
        scale = nested[first // 256]
        for i in range(first, min(first + 256, codes.size)):
            absmax[i] = table[codes[i]] * scale + offset


@njit(cache=True, nogil=True)
def dequantise(packed, absmax, table, pairs, block, start, values, lanes):
    """Write the weights from flat number `start` on, as many as `values` takes.

    With `lanes` a vector of weights at a time is looked up in the 16 entries of `table`, others in
    `pairs`.
    """
    end, i, wide = start + values.size, start, len(lanes)
    while i < end:
        scale, stop = absmax[i // block], min(end, (i // block + 1) * block)
        if i % 2:
            values[i - start] = pairs[packed[i // 2], 1] * scale
            i += 1
        while wide and i + wide <= stop:
            _decode(packed, i // 2, table, scale, values, 4 * (i - start), lanes)
            i += wide
        for k in range(i // 2, stop // 2):
            values[2 * k - start] = pairs[packed[k], 0] * scale
            values[2 * k + 1 - start] = pairs[packed[k], 1] * scale
        if stop % 2 and stop > i:
            values[stop - 1 - start] = pairs[packed[stop // 2], 0] * scale
        i = stop


@njit(cache=True, nogil=True)
def matvec_wide(line, packed, absmax, table, shift, lanes, per, out, first, last):
    """Write rows first..last of the product with activations in the order of ``line``.

    A row is a whole number of vectors of ``8 lanes`` weights, a block ``2**shift`` weights, and a
    vector has the weights of as many blocks as `per` is long.
    """
    vectors, wide = line.shape[0], len(lanes)
    for r in range(first, last, 2):
        s = min(r + 1, last - 1)
        a, b = _zero(lanes), _zero(lanes)
        at, to = r * vectors, s * vectors  # numbers of vectors
        for v in range(vectors):
            simd.prefetch(packed, 4 * wide * at + AHEAD)
            simd.prefetch(packed, 4 * wide * to + AHEAD)
            x = 32 * wide * v
            i, k = 4 * ((8 * wide * at) >> shift), 4 * ((8 * wide * to) >> shift)
            a = _add_products(a, table, packed, 4 * wide * at, line, x, absmax, i, per)
            b = _add_products(b, table, packed, 4 * wide * to, line, x, absmax, k, per)
            at += 1
            to += 1
        out[r], out[s] = _sum_lanes(a), _sum_lanes(b)
    return True


@njit(cache=True, nogil=True)
def _piece(x, k, packed, pairs, i, stop):
    """Sum the weights i..stop, without their absmax, times the activations from number `k` on."""
    total = np.float32(0)
    if i % 2:
        total += pairs[packed[i // 2], 1] * x[k]
        i += 1
        k += 1
    a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    count = max(stop - i, 0) // 4
    bytes_, inputs = packed[i // 2 : i // 2 + 2 * count], x[k : k + 4 * count]
    for p in range(count):  # by hand: a loop that fills vectors would gather from the table
        byte, other = bytes_[2 * p], bytes_[2 * p + 1]
        a += pairs[byte, 0] * inputs[4 * p]
        b += pairs[byte, 1] * inputs[4 * p + 1]
        c += pairs[other, 0] * inputs[4 * p + 2]
        d += pairs[other, 1] * inputs[4 * p + 3]
    for rest in range(i + 4 * count, stop):
        total += pairs[packed[rest // 2], rest % 2] * x[k + rest - i]
    return total + ((a + b) + (c + d))


@njit(cache=True, nogil=True)
def matvec(x, packed, absmax, pairs, block, out, first, last):
    """Write rows first..last of the product with ``x (n_in,)``, for rows of any length."""
    n_in = x.size
    for r in range(first, last):
        total, k, start = np.float32(0), 0, r * n_in
        while k < n_in:
            b = (start + k) // block
            stop = min(start + n_in, (b + 1) * block)
            total += _piece(x, k, packed, pairs, start + k, stop) * absmax[b]
            k = stop - start
        out[r] = total
    return True
