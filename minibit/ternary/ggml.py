"""Ternary weights in ggml's blocks: TQ1_0 and TQ2_0, as GGUF files hold them.

    type     256 weights of a row in   a byte holds                        bits per weight
    TQ1_0    54 bytes                  five trits, as a binary fraction    1.6875
    TQ2_0    66 bytes                  four codes, 32 columns apart        2.0625

Both store t + 1 and end each block with a float16 scale. ggml takes that scale from the block (its
largest magnitude), so a matrix with one scale stores it n_out * n_in / 256 times, and a block of
zeros has scale 0. Every ``from_*`` refuses bytes that no ``to_*`` writes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.ternary.packings import Bytes, Codes, check_bytes, check_codes, check_scale, check_twos

__all__ = ["from_tq1_0", "from_tq2_0", "to_tq1_0", "to_tq2_0"]

BLOCK = 256  # weights of a row that share one scale
_SHIFTS = np.array([0, 2, 4, 6], np.uint8)
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)
_FRACTION = ((np.arange(243) * 256 + 242) // 243).astype(np.uint8)  # v -> ceil(256 v / 243)


def to_tq1_0(codes: ArrayLike, scale: ArrayLike = 1.0) -> Bytes:
    """Pack codes as ggml's TQ1_0: uint8 ``(n_out, n_in / 256 * 54)``.

    Five trits make ``v = 81 d0 + 27 d1 + 9 d2 + 3 d3 + d4`` (digits t + 1), stored as the binary
    fraction ``byte = ceil(256 v / 243)``, so that a decoder multiplies by 3 and reads the carry.
    Of a block, bytes 0..31 hold elements j, 32 + j, .. 128 + j; bytes 32..47 elements 160 + j,
    176 + j, .. 224 + j; bytes 48..51 the four elements 240 + j, .. 252 + j (no d4); bytes 52 and 53
    the scale as little-endian float16. Bit for bit what ``gguf.quantize(scale * codes, TQ1_0)``
    gives; as there, a block that is all zeros gets scale 0.

    Parameters
    ----------
    codes : integer array, shape (n_out, n_in)
        -1, 0 or 1, as `check_codes` has it; n_in a multiple of 256.
    scale : float, or float array that broadcasts to (n_out, n_in / 256)
        One scale, or one per block; finite, not negative, rounded to float16, which must hold it.

    Notes
    -----
    Source: ggml, ``gguf-py/gguf/quants.py``, classes TQ1_0 and TQ2_0.

    Examples
    --------
    >>> packed = to_tq1_0(np.ones((1, 256), np.int8), 0.5)
    >>> packed.shape, packed[0, [0, 48, 52, 53]]
    ((1, 54), array([255, 253,   0,  56], dtype=uint8))
    """
    blocks, halves = _blocks(codes, scale)  # (n_out, blocks, 256), (n_out, blocks, 2)
    first, second, last = np.split(blocks, [160, 240], axis=-1)
    values = np.concatenate(
        [
            _five(first.reshape(*first.shape[:2], 5, 32)),
            _five(second.reshape(*second.shape[:2], 5, 16)),
            3 * _five(last.reshape(*last.shape[:2], 4, 4)),
        ],
        axis=-1,
    )  # (n_out, blocks, 52), 0..242
    return _join(_FRACTION[values], halves)


def from_tq1_0(packed: ArrayLike) -> tuple[Codes, NDArray[np.float32]]:
    """Unpack ggml's TQ1_0, the inverse of `to_tq1_0`: codes and scales.

    The codes are int8 ``(n_out, blocks * 256)``, the scales float32 ``(n_out, blocks)``. `packed`
    is uint8 ``(n_out, blocks * 54)``, else a TypeError or ValueError says so. A ValueError also
    names the first byte that no encoder writes (13 of 256 are such), or the first scale that is
    negative or not finite.

    Examples
    --------
    >>> codes, scales = from_tq1_0(to_tq1_0(np.ones((1, 256), np.int8), 0.5))
    >>> codes.shape, codes.min(), scales
    ((1, 256), np.int8(1), array([[0.5]], dtype=float32))
    """
    blocks, scales = _split(packed, 54)  # (n_out, blocks, 52), (n_out, blocks)
    values = blocks.astype(np.uint16) * 243 >> 8  # the v of byte = ceil(256 v / 243)
    values[..., 48:] -= values[..., 48:] % 3  # four digits only
    legal = _FRACTION[values] == blocks
    if not legal.all():
        row, block, byte = (int(i) for i in np.argwhere(~legal)[0])
        raise ValueError(
            f"packed holds {blocks[row, block, byte]} at {(row, 54 * block + byte)}: "
            "no TQ1_0 encoder writes that byte there"
        )
    groups = ((0, 32, 5), (32, 48, 5), (48, 52, 4))  # bytes from, to; trits in each
    trits = [
        (blocks[..., None, start:stop] * _POWERS[:count, None]).astype(np.uint16) * 3 >> 8
        for start, stop, count in groups
    ]  # (n_out, blocks, count, bytes) each: digit n is the carry of 3 * (byte * 3**n mod 256)
    parts = [t.reshape(*t.shape[:2], t.shape[2] * t.shape[3]) for t in trits]
    digits = np.concatenate(parts, axis=-1).astype(np.int8)  # (n_out, blocks, 256)
    return digits.reshape(blocks.shape[0], blocks.shape[1] * BLOCK) - np.int8(1), scales


def to_tq2_0(codes: ArrayLike, scale: ArrayLike = 1.0) -> Bytes:
    """Pack codes as ggml's TQ2_0: uint8 ``(n_out, n_in / 256 * 66)``.

    `codes`, `scale` and the scale of a block of zeros are as for `to_tq1_0`. Of each 128 weights,
    byte j (0..31) is ``e[j] | e[32+j] << 2 | e[64+j] << 4 | e[96+j] << 6`` with e = t + 1; after
    two such groups the scale as little-endian float16.

    Examples
    --------
    >>> packed = to_tq2_0(np.ones((1, 256), np.int8), 0.5)
    >>> packed.shape, packed[0, [0, 63, 64, 65]]
    ((1, 66), array([170, 170,   0,  56], dtype=uint8))
    """
    blocks, halves = _blocks(codes, scale)  # (n_out, blocks, 256), (n_out, blocks, 2)
    e = blocks.reshape(*blocks.shape[:2], 2, 4, 32)
    twos: Bytes = np.bitwise_or.reduce(e << _SHIFTS[:, None], axis=-2)  # (n_out, blocks, 2, 32)
    return _join(twos.reshape(*blocks.shape[:2], 64), halves)


def from_tq2_0(packed: ArrayLike) -> tuple[Codes, NDArray[np.float32]]:
    """Unpack ggml's TQ2_0, `packed` in 66 bytes per block, as `from_tq1_0` does TQ1_0.

    The bytes that no encoder writes hold the 2-bit code 3 (ggml itself would read 2 * scale).

    Examples
    --------
    >>> codes, scales = from_tq2_0(to_tq2_0(np.ones((1, 256), np.int8), 0.5))
    >>> codes.shape, codes.min(), scales
    ((1, 256), np.int8(1), array([[0.5]], dtype=float32))
    """
    blocks, scales = _split(packed, 66)  # (n_out, blocks, 64), (n_out, blocks)
    check_twos(blocks)
    groups = blocks.reshape(*blocks.shape[:2], 2, 1, 32)
    twos = groups >> _SHIFTS[:, None] & 3  # (n_out, blocks, 2, 4, 32)
    codes = twos.reshape(blocks.shape[0], blocks.shape[1] * BLOCK).view(np.int8) - np.int8(1)
    return codes, scales


def _five(d: Bytes) -> Bytes:
    """Value of four or five base-3 digits, highest first, along the last axis but one."""
    value = d[..., 0, :]
    for n in range(1, d.shape[-2]):
        value = 3 * value + d[..., n, :]
    return value


def _blocks(codes: ArrayLike, scale: ArrayLike) -> tuple[Bytes, Bytes]:
    """Digits in blocks of 256, and the bytes of each block's float16 scale."""
    codes = check_codes(codes, ndim=2)
    n_out, n_in = codes.shape
    if n_in % BLOCK:
        raise ValueError(f"codes must have n_in a multiple of {BLOCK}, got shape {codes.shape}")
    blocks = codes.reshape(n_out, n_in // BLOCK, BLOCK)
    exact = check_scale(scale)
    with np.errstate(over="ignore", under="ignore"):
        halves = exact.astype(np.float32).astype("<f2")  # rounded twice, as gguf does
    if not (np.isfinite(halves) & (exact >= 0) & ((exact == 0) | (halves > 0))).all():
        raise ValueError(f"scale must be finite, >= 0 and within float16's range, got {scale!r}")
    try:
        scales = np.broadcast_to(halves, blocks.shape[:2])
    except ValueError:
        raise ValueError(
            f"scale must broadcast to (n_out, n_in / 256) = {blocks.shape[:2]}, got {exact.shape}"
        ) from None
    scales = np.where(blocks.any(axis=-1), scales, np.zeros((), "<f2")).astype("<f2")
    return (blocks + np.int8(1)).view(np.uint8), scales[..., None].view(np.uint8)


def _join(codes: Bytes, halves: Bytes) -> Bytes:
    """Rows of whole blocks: the bytes of the codes, then those of the scale."""
    blocks = np.concatenate([codes, halves], axis=-1)  # (n_out, blocks, bytes)
    return blocks.reshape(blocks.shape[0], blocks.shape[1] * blocks.shape[2])


def _split(packed: ArrayLike, size: int) -> tuple[Bytes, NDArray[np.float32]]:
    """Cut rows into blocks of `size` bytes, and take the float16 scale off the end of each."""
    packed = np.asarray(packed)
    if packed.ndim != 2 or packed.shape[1] % size:
        raise ValueError(f"packed must have shape (n_out, blocks * {size}), got {packed.shape}")
    packed = check_bytes(packed, packed.shape, "TQ")
    blocks = packed.reshape(packed.shape[0], packed.shape[1] // size, size)
    scales = np.ascontiguousarray(blocks[..., -2:]).view("<f2")[..., 0].astype(np.float32)
    illegal = ~(np.isfinite(scales) & (scales >= 0))
    if illegal.any():
        row, block = (int(i) for i in np.argwhere(illegal)[0])
        raise ValueError(
            f"packed must hold finite scales >= 0, got {scales[row, block]} in block {(row, block)}"
        )
    return blocks[..., :-2], scales
