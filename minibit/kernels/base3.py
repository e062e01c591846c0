"""Matrix times one vector on base-3 weights, five codes per byte; a rung of chapter 3 alone.

A fifth fewer bytes than 2 bits per weight, for more arithmetic: it wins where many cores share one
memory, and loses where the weights lie in a cache. The layout is that of panels, with 80 rows::

    [n_out / 80][n_in / 4][16][4]       byte: d0 + 3 d1 + 9 d2 + 27 d3 + 81 d4

Digit ``dj`` of byte ``4 r + c`` of vector ``q`` belongs to row 80 p + 16 j + r, column 4 q + c. Two
comparisons split off d4, and one ``vpermi2b`` looks the rest up, 64 bytes at once, in a table of 81
entries that holds the four digits as 2-bit fields; from there on it is the product of panels. The
table needs AVX-512 VBMI (Ice Lake, Zen 4, and later).
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from minibit.kernels import simd
from minibit.kernels.compiling import Array, njit
from minibit.kernels.quantise import sum_row

ROWS = 80  # in a panel
AHEAD = 12288
TABLE = np.zeros(128, np.uint8)  # four base-3 digits as four 2-bit fields
for _number in range(81):
    TABLE[_number] = sum((_number // 3**j % 3) << 2 * j for j in range(4))


def pack(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack codes ``(n_out, n_in)`` in base 3, rows filled up to 80 and columns to 4."""
    n_out, n_in = codes.shape
    panels, vectors = -(-n_out // ROWS), -(-n_in // 4)
    digits = np.ones((ROWS * panels, 4 * vectors), np.uint8)
    digits[:n_out, :n_in] = codes + 1
    d = digits.reshape(panels, 5, 16, vectors, 4).transpose(0, 3, 2, 4, 1)  # p q r c j
    room = np.empty(64 * (panels * vectors + 1), np.uint8)
    packed = room[-room.ctypes.data % 64 :][: 64 * panels * vectors]  # begins where a line does
    np.matmul(d, np.array([1, 3, 9, 27, 81], np.uint8), out=packed.reshape(panels, vectors, 16, 4))
    return packed


@intrinsic(prefer_literal=True)
def _codes(typingctx, packed, at, table, sums):
    """``_codes(packed, at, table, sums)``: five groups of rows; group j times ``4**j``, but 4's."""

    def codegen(context, builder, signature, args):
        kinds, words, narrow = (
            signature.args,
            ir.VectorType(simd.I32, 16),
            ir.VectorType(simd.I8, 64),
        )
        zeros = ir.Constant(narrow, None)

        def all_bytes(value):
            return ir.Constant(narrow, [value] * 64)

        value = simd.read(
            builder, simd.pointer_to(context, builder, kinds[0], args[0], args[1]), narrow
        )
        rest, digit = value, zeros
        for bound in (81, 162):
            above = builder.icmp_unsigned(">=", value, all_bytes(bound))
            rest = builder.sub(rest, builder.select(above, all_bytes(81), zeros))
            digit = builder.add(digit, builder.select(above, all_bytes(1), zeros))
        entries = [simd.pointer_to(context, builder, kinds[2], args[2], byte) for byte in (0, 64)]
        low, high = (simd.read(builder, entry, narrow) for entry in entries)
        name = "llvm.x86.avx512.vpermi2var.qi.512"
        look_up = simd.declare(builder, name, narrow, [narrow] * 3)
        fields = builder.bitcast(builder.call(look_up, [low, rest, high]), words)
        groups = [builder.and_(fields, simd.constant(simd.ONE_CODE << 2 * j, 16)) for j in range(4)]
        return simd.tile_of(builder, [*groups, builder.bitcast(digit, words)])

    return sums(packed, types.intp, table, sums), codegen


@njit(cache=True, nogil=True)
def product(x: Array, packed: Array, table: Array, out: Array) -> None:
    """Multiply packed rows by int8 ``x (n_in,)``, filled up to 4s with 0, into int32 `out`.

    At most 2**17 inputs: the fourth digit's sums, ``64 * 2 * -128`` an input, then reach -2**31.
    """
    minus = np.full(1, -sum_row(x.reshape(1, x.size), 0), np.int32)
    for panel in range((out.size + ROWS - 1) // ROWS):
        sums, at = simd.tile_zero(1, 5, 16), panel * 16 * x.size
        for k in range(0, x.size, 4):
            simd.prefetch(packed, at + AHEAD)
            sums = simd.tile_dot(sums, _codes(packed, at, table, sums), x, k, 0)
            at += 64
        row = ROWS * panel
        simd.tile_store(
            out, 4 * row, 0, 1, out.size - row, simd.tile_finish(sums, 0, minus, None, 0)
        )
