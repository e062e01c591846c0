"""Trits and their dense packings: two bits, base 3, two bit-planes.

A ternary code t is -1, 0 or 1. It carries log2(3) = 1.585 bits. Files and kernels keep codes as

    2 bits      (t + 1) << 2i               4 codes per byte, 2.0 bits per code
    base 3      sum_i (t_i + 1) * 3**i      5 codes per byte, 1.6 bits per code
    bit-planes  [t = 1] and [t = -1]        2 x 8 codes in 2 bytes, 2.0 bits per code

All three read the array in C order, put the first code of a byte into its lowest bits or lowest
digit, and fill the last byte up with weight 0, so that a reader who runs past the end adds nothing
to a product. Bytes have no endianness: a packing is the same on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.base import integer, refuse_entries, unmasked

__all__ = [
    "check_codes",
    "pack2",
    "pack_base3",
    "pack_bitplanes",
    "unpack2",
    "unpack_base3",
    "unpack_bitplanes",
]

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]


def check_codes(codes: ArrayLike, ndim: int | None = None) -> Codes:
    """Return `codes`, integers of any shape, as int8 if every entry is -1, 0 or 1.

    An int8 array is returned as it is, uncopied; with `ndim`, it must have that many axes.

    Raises
    ------
    TypeError
        If the entries are not integers, or masked. Floats are refused even where they are whole: a
        float matrix is usually a latent weight that still has to be quantised.
    ValueError
        If an entry is not a ternary code (the message names the first one), or `ndim` is wrong.

    Examples
    --------
    >>> check_codes([[1, 0], [-1, 2]])
    Traceback (most recent call last):
        ...
    ValueError: codes must be -1, 0 or 1, got 2 at (1, 1)
    """
    array = unmasked("codes", codes)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"codes must have {ndim} axes, got shape {array.shape}")
    if array.size == 0:
        return array.astype(np.int8, copy=False)
    if array.dtype.kind not in "iu":
        raise TypeError(f"codes must be integers (int8), got {array.dtype}; quantise floats first")
    if array.min() < -1 or array.max() > 1:
        refuse_entries("codes", array, (array < -1) | (array > 1), "be -1, 0 or 1")
    return array.astype(np.int8, copy=False)


def check_scale(scale: ArrayLike) -> NDArray[np.float64]:
    """Return `scale` as float64 after checking that it holds real numbers."""
    array = unmasked("scale", scale)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"scale must be a real number, got {array.dtype}")
    return array.astype(np.float64)


def check_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Return the shape of a matrix as Python ints, whose product cannot overflow."""
    lengths = shape if isinstance(shape, list | tuple) else ()
    if len(lengths) != 2 or not all(isinstance(n, int | np.integer) and n >= 0 for n in lengths):
        raise ValueError(f"shape must be (n_out, n_in), got {shape}")
    return int(lengths[0]), int(lengths[1])


def check_bytes(packed: ArrayLike, shape: tuple[int, ...], takes: str) -> Bytes:
    """Return `packed` as a uint8 array after checking its shape; `takes` says why that shape."""
    array = np.asarray(packed)
    if array.dtype != np.uint8:
        raise TypeError(f"packed must be uint8, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"packed must have shape {shape} for {takes}, got {array.shape}")
    return array


def check_twos(packed: Bytes) -> None:
    """Raise where a byte holds the 2-bit code 3, which stands for no weight."""
    illegal = packed & (packed >> 1) & 0x55  # both bits of a pair set
    if illegal.any():
        first = tuple(int(i) for i in np.argwhere(illegal)[0])
        raise ValueError(
            f"packed holds the 2-bit code 3 in byte {packed[first]:#04x} at {first}; "
            "legal are 0, 1, 2 for -1, 0, 1"
        )


def _digits(codes: ArrayLike, group: int) -> Bytes:
    """Flat digits t + 1, filled up to whole groups with the digit of weight 0."""
    flat = check_codes(codes).reshape(-1)  # (count,)
    digits = np.ones((-(-flat.size // group), group), np.uint8)  # (groups, group)
    np.add(flat, 1, out=digits.reshape(-1)[: flat.size], casting="unsafe")
    return digits


def pack2(codes: ArrayLike) -> Bytes:
    """Pack codes into two bits each, four per byte: uint8 ``(ceil(count / 4),)``.

    ``byte = sum_i (t_i + 1) << 2i``, i = 0..3: the first code sits in the lowest bits. `codes` may
    have any shape, are read in C order and checked by `check_codes`. The missing codes of the last
    byte are filled with weight 0 (bits 01).

    Examples
    --------
    >>> [f"{byte:08b}" for byte in pack2([-1, 0, 1, 1, -1])]
    ['10100100', '01010100']
    """
    d = _digits(codes, 4).T  # (4, groups)
    packed: Bytes = d[0] | d[1] << 2 | d[2] << 4 | d[3] << 6  # (groups,)
    return packed


def unpack2(packed: ArrayLike, count: int) -> Codes:
    """Unpack `count` codes, int8 ``(count,)``, from two bits each: the inverse of `pack2`.

    `packed` has the type and shape that packing gives, or a TypeError or a ValueError says so. Bits
    behind the last code are ignored, but must be legal: a ValueError names the first byte that
    holds the 2-bit code 3.

    Examples
    --------
    >>> unpack2(pack2([-1, 0, 1, 1, -1]), 5)
    array([-1,  0,  1,  1, -1], dtype=int8)
    """
    count = integer("count", count)
    packed = check_bytes(packed, (-(-count // 4),), f"count = {count} (four a byte)")
    check_twos(packed)
    twos = packed[:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3  # (groups, 4)
    return twos.reshape(-1)[:count].view(np.int8) - np.int8(1)  # (count,)


def pack_base3(codes: ArrayLike) -> Bytes:
    """Pack `codes` as `pack2` does, but as base-3 digits, five per byte: ``(ceil(count / 5),)``.

    ``byte = sum_i (t_i + 1) * 3**i``, i = 0..4: the first code is the lowest digit, a missing one
    is digit 1, and the byte is the plain number 0..242. (The TQ1_0 files of ggml hold the same five
    digits as a binary fraction, highest first, in another order: `minibit.ternary.to_tq1_0`.)

    Examples
    --------
    >>> pack_base3([-1, -1, -1, -1, -1, 1, 0, -1, -1, -1])
    array([0, 5], dtype=uint8)
    """
    d = _digits(codes, 5).T  # (5, groups)
    packed: Bytes = d[0] + 3 * (d[1] + 3 * (d[2] + 3 * (d[3] + 3 * d[4])))  # (groups,)
    return packed


def unpack_base3(packed: ArrayLike, count: int) -> Codes:
    """Unpack `count` codes from base-3 bytes, `packed`, as `unpack2` does: a byte is at most 242.

    Examples
    --------
    >>> unpack_base3(np.array([0, 5], np.uint8), 7)
    array([-1, -1, -1, -1, -1,  1,  0], dtype=int8)
    """
    count = integer("count", count)
    packed = check_bytes(packed, (-(-count // 5),), f"count = {count} (five a byte)")
    refuse_entries("packed", packed, packed > 242, "be 0..242 (five base-3 digits)")
    digits = np.arange(243)[:, None] // np.array([1, 3, 9, 27, 81]) % 3  # (243, 5)
    codes: Codes = (digits - 1).astype(np.int8)[packed].reshape(-1)[:count]  # (count,)
    return codes


def pack_bitplanes(codes: ArrayLike) -> Bytes:
    """Pack codes into two bit-planes: where the code is 1, and where it is -1.

    A product then needs no decoding: ``x . t = sum(x[plus]) - sum(x[minus])``. `codes` are read and
    checked as by `pack2`. The result has shape ``(2, ceil(count / 8))``: row 0 is the plane of the
    ones, row 1 that of the minus ones; bit k of byte j (k = 0 the lowest) stands for code
    ``8j + k``. The last byte is filled with 0 in both.

    Examples
    --------
    >>> pack_bitplanes([1, -1, 0, 1])
    array([[9],
           [2]], dtype=uint8)
    """
    flat = check_codes(codes).reshape(-1)  # (count,)
    return np.packbits(np.stack([flat == 1, flat == -1]), axis=1, bitorder="little")


def unpack_bitplanes(packed: ArrayLike, count: int) -> Codes:
    """Unpack `count` codes from bit-planes, `packed`, as `unpack2` does: no code is both 1 and -1.

    Examples
    --------
    >>> unpack_bitplanes(np.array([[9], [2]], np.uint8), 4)
    array([ 1, -1,  0,  1], dtype=int8)
    """
    count = integer("count", count)
    packed = check_bytes(packed, (2, -(-count // 8)), f"count = {count} (eight a byte, two planes)")
    plus, minus = packed
    if (plus & minus).any():
        first = int(np.argmax(np.unpackbits(plus & minus, bitorder="little")))
        raise ValueError(f"packed marks code {first} both 1 and -1")
    bits = np.unpackbits(packed, axis=1, count=count, bitorder="little").view(np.int8)  # (2, count)
    codes: Codes = bits[0] - bits[1]  # (count,)
    return codes
