"""MXFP4 and NVFP4: E2M1 numbers whose scales are themselves eight bits, as ggml lays them out.

    MXFP4    32 weights in 17 bytes    e, qs[16]       w = k(code) 2**(e - 128)
    NVFP4    64 weights in 36 bytes    s[4], qs[32]    w = k(code) ue4m3(s) / 2, a scale per 16

``k`` are the numbers of E2M1 doubled, so that all are whole: 0, 1, 2, 3, 4, 6, 8, 12, with the sign
in the fourth bit of a code. A byte of ``qs`` holds two codes: in MXFP4 the low halves are weights 0
to 15 and the high halves weights 16 to 31; in NVFP4 the 8 bytes of each 16 weights likewise, 8 and
8. E8M0, the scale of MXFP4, is an exponent alone; UE4M3, that of NVFP4, has four bits of exponent
and three of mantissa, and no sign.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.base import finite, float32, refuse_entries

__all__ = ["from_mxfp4", "from_nvfp4", "to_mxfp4", "to_nvfp4"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32)
VALUES = np.concatenate([DOUBLED, -DOUBLED])  # by code
BOUNDS = (DOUBLED[:-1] + DOUBLED[1:]) / 2
HALF = np.float32(0.5)  # for the numbers are doubled
MX, NV = 32, 64  # weights of a block
LARGEST_SCALE = np.float32(448)  # of UE4M3; its byte 0x7f is no number


def to_mxfp4(w: ArrayLike) -> Bytes:
    """Quantise rows to MXFP4: an exponent and 32 E2M1 numbers per block of 17 bytes.

    ``e = floor(log2(max|w|)) - 2 + 127``, so that the largest weight lies between 4 and 8 times the
    unit; what then exceeds 6 becomes 6. A tie goes to the smaller magnitude.

    Parameters
    ----------
    w : float array, shape (n_out, n_in)
        Cast to float32, all finite; n_in a multiple of 32.

    Returns
    -------
    uint8 array, shape (n_out, n_in / 32 * 17)
        A block of zeros has the byte 0 as its exponent, and so has one below 2**-125.

    Raises
    ------
    TypeError, ValueError
        If `w` is no such matrix.

    Notes
    -----
    Source: OCP Microscaling Formats 1.0; ggml's ``quantize_row_mxfp4_ref``, with which the bytes
    agree. The standard also counts exponents from the largest number; ggml decodes ``e`` so.

    Examples
    --------
    >>> to_mxfp4(np.float32([[6, -1, 0.25] + 29 * [0]]))[0, :4]
    array([127,   7,  10,   0], dtype=uint8)
    """
    blocks = _blocks(w, MX)  # (n_out, blocks, 32)
    largest = np.abs(blocks).max(axis=-1, keepdims=True, initial=0)
    with np.errstate(divide="ignore"):
        exponent = np.clip(np.floor(np.log2(largest)) - 2 + 127, 0, 254)
    e = np.where(largest > 0, exponent, 0).astype(np.uint8)
    return _rows(e, _halves(_nearest(blocks, _power(e)), MX // 2))


def from_mxfp4(packed: ArrayLike) -> Floats:
    """Return the floats of rows in MXFP4, (n_out, n_in), the inverse of `to_mxfp4` on its bytes.

    `packed` is uint8 (n_out, blocks * 17). The byte 255, which the standard gives to NaN, is
    refused with a ValueError that names the row and the block; ggml reads it as 2**127. What lies
    beyond float32's range, with the bytes 253 and 254 alone, is infinite.

    Examples
    --------
    >>> from_mxfp4(to_mxfp4(np.float32([[6, -1, 0.25] + 29 * [0]])))[0, :4]
    array([ 6., -1.,  0.,  0.], dtype=float32)
    """
    blocks = _cut(packed, 1 + MX // 2, "MXFP4")
    e, qs = blocks[..., :1], blocks[..., 1:]
    refuse_entries("the exponent of packed", e[..., 0], e[..., 0] == 255, "be below 255")
    with np.errstate(over="ignore"):
        values: Floats = VALUES[_codes(qs, MX // 2)] * _power(e)  # (n_out, blocks, 32)
    return values.reshape(len(blocks), blocks.shape[1] * MX)


def to_nvfp4(w: ArrayLike) -> Bytes:
    """Quantise rows to NVFP4: 64 E2M1 numbers and four scales per block of 36 bytes.

    The scale of 16 weights is ``max|w| / 6`` as the nearest UE4M3, half up, at most 448: what then
    exceeds 6 scales becomes 6 of them. A tie of a weight goes to the smaller magnitude.

    Parameters
    ----------
    w : float array, shape (n_out, n_in)
        Cast to float32, all finite; n_in a multiple of 64. Files keep a further float32 scale per
        tensor, by which the caller divides first.

    Returns
    -------
    uint8 array, shape (n_out, n_in / 64 * 36)

    Raises
    ------
    TypeError, ValueError
        If `w` is no such matrix.

    Notes
    -----
    Source: NVIDIA's NVFP4 (2025); ggml's type 40, with whose decoder the floats agree. Its encoder
    of scales gives 448 to all from 256 on; here these are rounded like the others.

    Examples
    --------
    >>> to_nvfp4(np.float32([[6, -1, 0.5] + 61 * [0]]))[0, :7]
    array([56,  0,  0,  0,  7, 10,  1], dtype=uint8)
    """
    blocks = _blocks(w, NV)
    quarters = blocks.reshape(*blocks.shape[:2], 4, NV // 4)  # (n_out, blocks, 4, 16)
    s = _to_ue4m3(np.abs(quarters).max(axis=-1, initial=0) / np.float32(6))
    codes = _nearest(quarters, _from_ue4m3(s)[..., None] * HALF)
    return _rows(s, _halves(codes, NV // 8).reshape(*s.shape[:2], NV // 2))


def from_nvfp4(packed: ArrayLike) -> Floats:
    """Return the floats of rows in NVFP4, (n_out, n_in), the inverse of `to_nvfp4` on its bytes.

    `packed` is uint8 (n_out, blocks * 36). A scale with the sign bit, or the byte 0x7f, which is
    NaN, is refused with a ValueError that names row, block and quarter; ggml reads 0x7f as 0.

    Examples
    --------
    >>> from_nvfp4(to_nvfp4(np.float32([[6, -1, 0.5] + 61 * [0]])))[0, :4]
    array([ 6. , -1. ,  0.5,  0. ], dtype=float32)
    """
    blocks = _cut(packed, 4 + NV // 2, "NVFP4")
    s, qs = blocks[..., :4], blocks[..., 4:]
    refuse_entries("a scale of packed", s, s >= 0x7F, "be below 0x7f")
    codes = _codes(qs.reshape(*s.shape, NV // 8), NV // 8)  # (n_out, blocks, 4, 16)
    values: Floats = VALUES[codes] * (_from_ue4m3(s)[..., None] * HALF)
    return values.reshape(len(blocks), blocks.shape[1] * NV)


def _blocks(w: ArrayLike, size: int) -> Floats:
    """Return rows as blocks, (n_out, blocks, size)."""
    array = float32("w", w)
    if array.ndim != 2 or array.shape[1] % size:
        takes = f"(n_out, n_in) with n_in a multiple of {size}"
        raise ValueError(f"w must have shape {takes}, got {array.shape}")
    finite("w", array)
    return array.reshape(len(array), array.shape[1] // size, size)


def _cut(packed: ArrayLike, nbytes: int, kind: str) -> Bytes:
    """Return rows of bytes as blocks, (n_out, blocks, nbytes)."""
    array = np.asarray(packed)
    if array.dtype != np.uint8:
        raise TypeError(f"packed must be uint8, got {array.dtype}")
    if array.ndim != 2 or array.shape[1] % nbytes:
        takes = f"(n_out, blocks * {nbytes}) for {kind}"
        raise ValueError(f"packed must have shape {takes}, got {array.shape}")
    return array.reshape(len(array), array.shape[1] // nbytes, nbytes)


def _rows(scales: Bytes, qs: Bytes) -> Bytes:
    """Put the scales of blocks before their codes, and blocks into rows."""
    blocks = np.concatenate([scales, qs], axis=-1)
    return blocks.reshape(len(blocks), blocks.shape[1] * blocks.shape[2])


def _nearest(w: Floats, unit: Floats) -> Bytes:
    """Return the codes of the nearest numbers; 0 has no sign."""
    steps = np.divide(np.abs(w), unit, out=np.zeros_like(w), where=unit > 0)
    codes = np.searchsorted(BOUNDS, steps, side="left").astype(np.uint8)
    return codes | ((w < 0) & (codes > 0)).astype(np.uint8) << np.uint8(3)


def _halves(codes: Bytes, apart: int) -> Bytes:
    """Pack the last axis two codes per byte, those of a byte `apart`."""
    return codes[..., :apart] | codes[..., apart:] << np.uint8(4)


def _codes(qs: Bytes, apart: int) -> Bytes:
    """Undo `_halves`."""
    assert qs.shape[-1] == apart
    return np.concatenate([qs & 15, qs >> 4], axis=-1)


def _power(e: Bytes) -> Floats:
    """Half of what an exponent stands for, exactly: ``2**(e - 128)``."""
    return np.ldexp(np.float32(1), e.astype(np.int32) - 128)


def _from_ue4m3(s: Bytes) -> Floats:
    """Decode UE4M3: ``(1 + m / 8) 2**(x - 7)``, and ``m 2**-9`` where the exponent x is 0."""
    x, m = (s >> 3).astype(np.int32), (s & 7).astype(np.float32)
    normal = np.ldexp(1 + m / 8, x - 7)
    return np.where(x == 0, np.ldexp(m, -9), normal).astype(np.float32)


def _to_ue4m3(x: Floats) -> Bytes:
    """Encode numbers >= 0: the nearest, a tie upwards; beyond 448 the byte of that."""
    scales = _from_ue4m3(np.arange(0x7F, dtype=np.uint8))
    bounds = (scales[:-1] + scales[1:]) / 2
    return np.searchsorted(bounds, np.minimum(x, LARGEST_SCALE), side="right").astype(np.uint8)
