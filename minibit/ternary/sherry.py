"""Sherry's three of four: exactly one zero among four weights, in five bits.

Four weights of which one is 0 and three are -1 or +1 have 4 * 2**3 = 32 = 2**5 patterns, so 1.25
bits a weight, and none is wasted. A *slot* of four bits says where the zero is and how the second
and third sign differ from the first; a fifth bit is the first sign.

    slot = 4 z + [s2 < 0] + 2 [s3 < 0]    z the zero's place; the first other weight is +1
    sign                                  negates all three

The four weights of a group lie 16 columns apart. 256 of a row make a block of ggml's type STQ1_0:
32 bytes of slots, 8 of signs, and a float16 scale behind them, 1.3125 bits a weight.

Source: H. Huang et al., "Sherry: Hardware-Efficient 1.25-Bit Ternary Quantization via Fine-grained
Sparsification", arXiv 2601.07892; the bytes are those of llama.cpp's pull request 22836.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.ternary.blocks import Block
from minibit.ternary.packings import Bytes, Codes

__all__ = ["from_stq1_0", "to_stq1_0"]

_BLOCK = Block(256, 42)
_PLACES = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])  # of the others, by the zero's


def _patterns() -> Codes:
    """Return the codes of each of 32 numbers ``16 sign + slot``, shape (32, 4)."""
    number = np.arange(32)
    first = 1 - 2 * (number >> 4)
    signs = [first, first * (1 - 2 * (number & 1)), first * (1 - 2 * (number >> 1 & 1))]
    codes = np.zeros((32, 4), np.int8)
    for place, sign in zip(_PLACES[number >> 2 & 3].T, signs, strict=True):
        codes[number, place] = sign
    return codes


def to_stq1_0(codes: ArrayLike, scale: ArrayLike = 1.0) -> Bytes:
    """Pack codes as STQ1_0: uint8 ``(n_out, n_in / 256 * 42)``.

    Group ``g`` of a block's 64 has weights ``64 (g // 16) + g % 16 + 16 p``, p = 0..3. Its slot is
    in the low half of byte ``g // 2`` if g is even, else in the high half; its sign is bit
    ``g % 8`` of byte ``32 + g // 8``; bytes 40 and 41 are the scale as little-endian float16.

    Parameters
    ----------
    codes : integer array, shape (n_out, n_in)
        -1, 0 or 1, as `check_codes` has it, with exactly one 0 in every group; n_in a multiple of
        256. A ValueError names the first group that has none, or more.
    scale : float, or float array that broadcasts to (n_out, n_in / 256)
        As for `to_tq1_0`.

    Examples
    --------
    >>> codes = np.ones((1, 256), np.int8)
    >>> codes[0, np.arange(256) // 16 % 4 == 0] = 0  # the first of each four
    >>> packed = to_stq1_0(codes, 0.5)
    >>> packed.shape, packed[0, [0, 31, 32, 40, 41]]
    ((1, 42), array([ 0,  0,  0,  0, 56], dtype=uint8))
    """
    blocks, halves = _BLOCK.cut(codes, scale)  # (n_out, blocks, 256), (n_out, blocks, 2)
    rows, count = blocks.shape[:2]
    groups = np.moveaxis(blocks.reshape(rows, count, 4, 4, 16), 3, -1)  # (.., 4, 16, 4)
    zeros = (groups == 0).sum(axis=-1)
    if (zeros != 1).any():
        row, block, chunk, lane = (int(i) for i in np.argwhere(zeros != 1)[0])
        raise ValueError(
            "codes must have exactly one 0 in every four that lie 16 columns apart, got "
            f"{zeros[row, block, chunk, lane]} in row {row} from column "
            f"{256 * block + 64 * chunk + lane} on"
        )
    where = (groups == 0).argmax(axis=-1)
    signs = np.take_along_axis(groups, _PLACES[where], axis=-1)  # of the other three
    flipped = signs * signs[..., :1] < 0
    slots = (4 * where + flipped[..., 1] + 2 * flipped[..., 2]).astype(np.uint8)
    slots = slots.reshape(rows, count, 32, 2)
    negative = (signs[..., 0] < 0).reshape(rows, count, 64)
    body = [slots[..., 0] | slots[..., 1] << 4, np.packbits(negative, axis=-1, bitorder="little")]
    return _BLOCK.join(np.concatenate(body, axis=-1), halves)


def from_stq1_0(packed: ArrayLike) -> tuple[Codes, NDArray[np.float32]]:
    """Unpack STQ1_0, `packed` in 42 bytes per block, as `from_tq1_0` does TQ1_0.

    Every byte of slots and signs stands for some codes, so only shapes and scales can be wrong.

    Examples
    --------
    >>> codes, scales = from_stq1_0(np.zeros((1, 42), np.uint8))
    >>> codes[0, [0, 16, 32, 48]], scales
    (array([0, 1, 1, 1], dtype=int8), array([[0.]], dtype=float32))
    """
    body, scales = _BLOCK.split(packed, "STQ1_0")  # (n_out, blocks, 40), (n_out, blocks)
    rows, count = scales.shape
    slots = np.stack([body[..., :32] & 15, body[..., :32] >> 4], axis=-1).reshape(rows, count, 64)
    signs = np.unpackbits(np.ascontiguousarray(body[..., 32:]), axis=-1, bitorder="little")
    codes = _patterns()[slots | signs << 4]  # (n_out, blocks, 64, 4)
    codes = np.moveaxis(codes.reshape(rows, count, 4, 16, 4), -1, 3)  # (n_out, blocks, 4, 4, 16)
    return codes.reshape(rows, count * _BLOCK.weights), scales
