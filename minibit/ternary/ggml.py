"""Ternary weights in ggml's blocks, as GGUF files hold them: five trits or four codes a byte.

    type      a block          a byte holds                        scale    bits per weight
    TQ1_0     256 in 54 bytes  five trits, as a binary fraction    last     1.6875
    PTQ1_0    128 in 28 bytes  the same                            last     1.75
    TQ2_0     256 in 66 bytes  four codes, 32 columns apart        last     2.0625
    Q2_0      64 in 18 bytes   four codes, side by side            first    2.25
    PQ2_0     128 in 34 bytes  the same                            first    2.125

All store t + 1, and a float16 scale for each block. ggml takes that scale from the block (its
largest magnitude), so a matrix with one scale stores it many times, and a block of zeros has scale
0. Every ``from_*`` refuses bytes that no ``to_*`` writes.

Q2_0 is type 42 in files of llama.cpp. A fork wrote blocks of 128 under the same number before it
called them PQ2_0, so the number alone does not tell which of both a tensor holds: its size does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.base import one_of
from minibit.ternary.blocks import Block
from minibit.ternary.packings import Bytes, Codes, check_twos

__all__ = [
    "from_ptq1_0",
    "from_q2_0",
    "from_tq1_0",
    "from_tq2_0",
    "to_ptq1_0",
    "to_q2_0",
    "to_tq1_0",
    "to_tq2_0",
]

_TQ1_0, _PTQ1_0, _TQ2_0 = Block(256, 54), Block(128, 28), Block(256, 66)
_Q2_0 = {64: Block(64, 18, first=True), 128: Block(128, 34, first=True)}
_STAGES = {_TQ1_0: ((32, 5), (16, 5), (4, 4)), _PTQ1_0: ((16, 5), (8, 5), (2, 4))}  # bytes, trits
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
    return _to_fractions(_TQ1_0, codes, scale)


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
    return _from_fractions(_TQ1_0, packed, "TQ1_0")


def to_ptq1_0(codes: ArrayLike, scale: ArrayLike = 1.0) -> Bytes:
    """Pack codes as PTQ1_0: uint8 ``(n_out, n_in / 128 * 28)``.

    As `to_tq1_0`, with half of everything: of a block, bytes 0..15 hold elements j, 16 + j, ..
    64 + j; bytes 16..23 elements 80 + j, 88 + j, .. 112 + j; bytes 24 and 25 the four elements
    120 + j, .. 126 + j; bytes 26 and 27 the scale, one for each 128 weights of a row.

    Notes
    -----
    Type 143 of PrismML's fork of llama.cpp, which published ternary models use (2026).

    Examples
    --------
    >>> packed = to_ptq1_0(np.ones((1, 128), np.int8), 0.5)
    >>> packed.shape, packed[0, [0, 24, 26, 27]]
    ((1, 28), array([255, 253,   0,  56], dtype=uint8))
    """
    return _to_fractions(_PTQ1_0, codes, scale)


def from_ptq1_0(packed: ArrayLike) -> tuple[Codes, NDArray[np.float32]]:
    """Unpack PTQ1_0, `packed` in 28 bytes per block, as `from_tq1_0` does TQ1_0.

    Examples
    --------
    >>> codes, scales = from_ptq1_0(to_ptq1_0(np.ones((1, 128), np.int8), 0.5))
    >>> codes.shape, codes.min(), scales
    ((1, 128), np.int8(1), array([[0.5]], dtype=float32))
    """
    return _from_fractions(_PTQ1_0, packed, "PTQ1_0")


def _to_fractions(block: Block, codes: ArrayLike, scale: ArrayLike) -> Bytes:
    """Pack five trits a byte, stage by stage: the weights of a byte lie a stage's bytes apart."""
    blocks, halves = block.cut(codes, scale)  # (n_out, blocks, weights), (n_out, blocks, 2)
    digits, parts, at = (blocks + np.int8(1)).view(np.uint8), [], 0
    for width, trits in _STAGES[block]:
        stage = digits[..., at : at + width * trits].reshape(*digits.shape[:2], trits, width)
        weights = 3 ** np.arange(4, 4 - trits, -1, dtype=np.uint8)[:, None]  # highest digit first
        parts.append((stage * weights).sum(axis=-2, dtype=np.uint8))  # (n_out, blocks, width)
        at += width * trits
    return block.join(_FRACTION[np.concatenate(parts, axis=-1)], halves)


def _from_fractions(
    block: Block, packed: ArrayLike, kind: str
) -> tuple[Codes, NDArray[np.float32]]:
    """Read what `_to_fractions` writes."""
    body, scales = block.split(packed, kind)  # (n_out, blocks, bytes), (n_out, blocks)
    values = body.astype(np.uint16) * 243 >> 8  # the v of byte = ceil(256 v / 243)
    tail, _ = _STAGES[block][-1]
    values[..., -tail:] -= values[..., -tail:] % 3  # four digits only
    legal = _FRACTION[values] == body
    if not legal.all():
        row, number, byte = (int(i) for i in np.argwhere(~legal)[0])
        raise ValueError(
            f"packed holds {body[row, number, byte]} at {(row, block.nbytes * number + byte)}: "
            f"no {kind} encoder writes that byte there"
        )
    parts, at = [], 0
    for width, trits in _STAGES[block]:
        stage = body[..., None, at : at + width]  # digit n: the carry of 3 * (byte * 3**n mod 256)
        digits = (stage * _POWERS[:trits, None]).astype(np.uint16) * 3 >> 8
        parts.append(digits.reshape(*digits.shape[:2], trits * width))
        at += width
    codes = np.concatenate(parts, axis=-1).astype(np.int8) - np.int8(1)
    return codes.reshape(len(codes), codes.shape[1] * block.weights), scales


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
    blocks, halves = _TQ2_0.cut(codes, scale)  # (n_out, blocks, 256), (n_out, blocks, 2)
    e = (blocks + np.int8(1)).view(np.uint8).reshape(*blocks.shape[:2], 2, 4, 32)
    twos: Bytes = np.bitwise_or.reduce(e << _SHIFTS[:, None], axis=-2)  # (n_out, blocks, 2, 32)
    return _TQ2_0.join(twos.reshape(*blocks.shape[:2], 64), halves)


def from_tq2_0(packed: ArrayLike) -> tuple[Codes, NDArray[np.float32]]:
    """Unpack ggml's TQ2_0, `packed` in 66 bytes per block, as `from_tq1_0` does TQ1_0.

    The bytes that no encoder writes hold the 2-bit code 3 (ggml itself would read 2 * scale).

    Examples
    --------
    >>> codes, scales = from_tq2_0(to_tq2_0(np.ones((1, 256), np.int8), 0.5))
    >>> codes.shape, codes.min(), scales
    ((1, 256), np.int8(1), array([[0.5]], dtype=float32))
    """
    blocks, scales = _TQ2_0.split(packed, "TQ2_0")  # (n_out, blocks, 64), (n_out, blocks)
    check_twos(blocks)
    groups = blocks.reshape(*blocks.shape[:2], 2, 1, 32)
    twos = groups >> _SHIFTS[:, None] & 3  # (n_out, blocks, 2, 4, 32)
    return twos.reshape(len(blocks), blocks.shape[1] * 256).view(np.int8) - np.int8(1), scales


def to_q2_0(codes: ArrayLike, scale: ArrayLike = 1.0, block: int = 64) -> Bytes:
    """Pack codes as Q2_0: uint8 ``(n_out, n_in / 64 * 18)``, or with `block` 128 as PQ2_0.

    Of a block, bytes 0 and 1 hold the scale as little-endian float16; byte ``2 + j`` the codes of
    weights 4j to 4j + 3 as `pack2` has them: ``e[4j] | e[4j+1] << 2 | e[4j+2] << 4 | e[4j+3] << 6``
    with e = t + 1.

    Parameters
    ----------
    codes : integer array, shape (n_out, n_in)
        -1, 0 or 1, as `check_codes` has it; n_in a multiple of `block`.
    scale : float, or float array that broadcasts to (n_out, n_in / block)
        As for `to_tq1_0`.
    block : 64 or 128
        Weights that share a scale: 64 in llama.cpp, 128 in PrismML's fork.

    Notes
    -----
    Source: llama.cpp, pull request 24448 (June 2026). The format holds a fourth value, code 3 for
    +2: not written here, and not read by silence (`from_q2_0`).

    Examples
    --------
    >>> packed = to_q2_0(np.ones((1, 64), np.int8), 0.5)
    >>> packed.shape, packed[0, :3]
    ((1, 18), array([  0,  56, 170], dtype=uint8))
    """
    layout = _Q2_0[one_of("block", block, (*_Q2_0,))]
    blocks, halves = layout.cut(codes, scale)  # (n_out, blocks, block), (n_out, blocks, 2)
    e = (blocks + np.int8(1)).view(np.uint8).reshape(*blocks.shape[:2], block // 4, 4)
    return layout.join(np.bitwise_or.reduce(e << _SHIFTS, axis=-1), halves)


def from_q2_0(
    packed: ArrayLike, block: int = 64, *, plus_two: bool = False
) -> tuple[Codes, NDArray[np.float32]]:
    """Unpack Q2_0, `packed` in 18 bytes per block of 64 (or 34 of 128): codes and scales.

    The codes are int8 ``(n_out, blocks * block)``, the scales float32 ``(n_out, blocks)``. Errors
    are those of `from_tq2_0`: the 2-bit code 3, which stands for +2 and occurs in published files,
    is refused. With `plus_two` it is returned, as code 2; then the weights are not ternary.

    Examples
    --------
    >>> codes, scales = from_q2_0(to_q2_0(np.ones((1, 64), np.int8), 0.5))
    >>> codes.shape, codes.min(), scales
    ((1, 64), np.int8(1), array([[0.5]], dtype=float32))
    """
    layout = _Q2_0[one_of("block", block, (*_Q2_0,))]
    body, scales = layout.split(packed, "Q2_0")  # (n_out, blocks, block / 4), (n_out, blocks)
    if not plus_two:
        check_twos(body)
    twos = body[..., None] >> _SHIFTS & 3  # (n_out, blocks, block / 4, 4)
    return twos.reshape(len(body), body.shape[1] * block).view(np.int8) - np.int8(1), scales
