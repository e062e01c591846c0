"""Matrix times many vectors with Intel's AMX, on weights in panels.

AMX has eight tile registers of 16 rows by 64 bytes, and one instruction that multiplies two of
them: ``tdpbsud`` adds to a tile C of 16 by 16 int32 the products of A (16 tokens by 64 columns,
signed) and B (64 columns by 16 rows of the matrix, unsigned). B holds 4 neighbouring columns of one
row in a lane, line ``i`` columns 4 i .. 4 i + 3: exactly what 16 vectors of a panel hold for each
of its four groups of rows. So decoding is a mask and a store. Two by two tiles C share two tiles A
and two tiles B. For each half of a panel (32 rows) and each block of 1024 columns, the codes are
decoded once into 33 KB that stay in the first level of cache, and meet up to 512 tokens. Tokens are
padded to 32, columns to 64.

`minibit.kernels.supported` asks the system for the unit; each call configures it, because the
configuration belongs to the thread. Its speed is still to be measured on a CPU with AMX: here its
instructions were checked, and its indices against an emulation of the tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minibit.kernels.compiling import Array, njit
from minibit.kernels.quantise import take_tokens
from minibit.kernels.simd import (
    I8,
    declare,
    pointer_to,
    tile_codes,
    tile_finish,
    tile_load,
    tile_store,
    tile_zero,
)

ROWS = 64  # in a panel
COLUMNS = 1024  # in a block
TOKENS = 512  # in a block


def _instruction(name: str, signature: Any) -> tuple[Any, Callable[..., Any]]:
    """Return what an intrinsic says: its types, and how to call ``llvm.x86.NAME`` with them.

    Literal numbers are those of tile registers; an array is followed by its offset in bytes.
    """

    def codegen(context, builder, signature, args):
        operands, places = [], iter(zip(signature.args, args, strict=True))
        for kind, value in places:
            if isinstance(kind, types.Array):
                value = pointer_to(context, builder, kind, value, next(places)[1])
            elif isinstance(kind, types.IntegerLiteral):
                value = ir.Constant(I8, kind.literal_value)
            operands.append(value)
        kinds = [operand.type for operand in operands]
        builder.call(declare(builder, f"llvm.x86.{name}", ir.VoidType(), kinds), operands)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def amx_configure(typingctx, config, offset):
    """``amx_configure(config, offset)``: load the 64 bytes that give each tile its size."""
    return _instruction("ldtilecfg", types.void(config, types.intp))


@intrinsic(prefer_literal=True)
def amx_release(typingctx):
    """``amx_release()``: give the tiles back, so that a switch of threads has less to save."""
    return _instruction("tilerelease", types.void())


@intrinsic(prefer_literal=True)
def amx_zero(typingctx, tile):
    """``amx_zero(tile)``: fill tile register number `tile` with zeros."""
    return _instruction("tilezero", types.void(tile))


@intrinsic(prefer_literal=True)
def amx_load(typingctx, tile, array, offset, stride):
    """``amx_load(tile, array, offset, stride)``: 16 lines of 64 bytes, `stride` bytes apart."""
    return _instruction("tileloadd64", types.void(tile, array, types.intp, types.intp))


@intrinsic(prefer_literal=True)
def amx_store(typingctx, tile, array, offset, stride):
    """``amx_store(tile, array, offset, stride)``: write a tile, `stride` bytes between lines."""
    return _instruction("tilestored64", types.void(tile, array, types.intp, types.intp))


@intrinsic(prefer_literal=True)
def amx_dot(typingctx, c, a, b):
    """``amx_dot(c, a, b)``: ``tdpbsud``, tile c += signed bytes of a times unsigned bytes of b."""
    return _instruction("tdpbsud", types.void(c, a, b))


@njit(cache=True, nogil=True)
def _configuration():
    """Return the 64 bytes of palette 1 with all eight tiles at 16 lines of 64 bytes."""
    config = np.zeros(64, np.uint8)
    config[0] = 1
    for tile in range(8):
        config[16 + 2 * tile] = 64  # bytes per line, as 16 bits
        config[48 + tile] = 16  # lines
    return config


@njit(cache=True, nogil=True)
def _decode(panels, at, half, blocks, lines):
    """Write `blocks` blocks of 64 columns of half a panel as tiles B: two a block, line by line."""
    for block in range(blocks):
        for vector in range(16):
            offset = at + 1024 * block + 64 * vector
            codes = tile_codes(panels, offset, 2 * half, tile_zero(1, 2, 16))
            tile_store(lines, 2048 * block + 128 * vector, 0, 1, 32, codes)


@njit(cache=True, nogil=True)
def _multiply(rows, count, lines, blocks, k, sums):
    """Add the products of columns from k on, decoded in `lines`, to ``sums (tokens, 32)``."""
    width = rows.shape[1]
    for token in range(0, count, 32):
        at = 128 * token  # 32 int32 sums per token
        if k == 0:
            amx_zero(0)
            amx_zero(1)
            amx_zero(2)
            amx_zero(3)
        else:
            amx_load(0, sums, at, 128)
            amx_load(1, sums, at + 64, 128)
            amx_load(2, sums, at + 2048, 128)
            amx_load(3, sums, at + 2048 + 64, 128)
        for block in range(blocks):
            amx_load(4, rows, token * width + k + 64 * block, width)
            amx_load(6, lines, 2048 * block, 128)
            amx_dot(0, 4, 6)
            amx_load(7, lines, 2048 * block + 64, 128)
            amx_dot(1, 4, 7)
            amx_load(5, rows, (token + 16) * width + k + 64 * block, width)
            amx_dot(2, 5, 6)
            amx_dot(3, 5, 7)
        amx_store(0, sums, at, 128)
        amx_store(1, sums, at + 64, 128)
        amx_store(2, sums, at + 2048, 128)
        amx_store(3, sums, at + 2048 + 64, 128)


@njit(cache=True, nogil=True)
def _write(sums, half, minus, scales, start, count, out):
    """Write the products of half a panel with `count` tokens, from row `start` of `out` on."""
    n_out = out.shape[1]
    for token in range(count):
        rows = tile_load(sums, 128 * token, 0, 1, 32, tile_zero(1, 2, 16))
        rows = tile_finish(rows, 2 * (half % 2), minus, scales, token)
        at = 4 * (n_out * (start + token) + 32 * half)
        tile_store(out, at, 0, 1, n_out - 32 * half, rows)


@njit(cache=True, nogil=True)
def product(
    x: Array, panels: Array, out: Array, first: int, last: int, gamma: np.float32 | None
) -> bool:
    """Multiply as `minibit.kernels.product.product` says."""
    batch, n_in = x.shape
    width = (n_in + 63) // 64 * 64
    size = ROWS // 4 * width  # bytes of a panel
    most = (min(batch, TOKENS) + 31) // 32 * 32
    rows = np.zeros((most, width), np.int8)
    minus, scales = np.zeros(most, np.int32), np.ones(most, np.float32)
    sums = np.empty((most, 32), np.int32)
    lines = np.zeros(2048 * (min(width, COLUMNS) // 64), np.uint8)
    for start in range(0, batch, TOKENS):
        count = min(TOKENS, batch - start)
        if not take_tokens(x[start : start + count], gamma, rows, minus, scales):
            return False
        amx_configure(_configuration(), 0)
        for half in range(2 * first, 2 * last):
            if 32 * half >= out.shape[1]:
                break
            for k in range(0, width, COLUMNS):
                blocks = min(COLUMNS, width - k) // 64
                _decode(panels, half // 2 * size + 16 * k, half % 2, blocks, lines)
                _multiply(rows, count, lines, blocks, k, sums)
            if gamma is None:
                _write(sums, half, minus, None, start, count, out)
            else:
                _write(sums, half, minus, scales, start, count, out)
        amx_release()
    return True
