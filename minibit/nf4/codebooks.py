"""Sixteen numbers for a weight: NF4, where it comes from, and three codebooks to compare it with.

A block of weights is divided by its largest magnitude, and each is replaced by the nearest of at
most 16 numbers from -1 to 1:

    absmax = max|w|                         over `block` neighbours of the flattened weights
    s      = w / absmax
    code   = number of midpoints, between neighbouring entries of the codebook, that s exceeds
    w      ~ codebook[code] * absmax

NF4 puts its numbers at quantiles of the normal distribution; the others are formats that hardware
counts in, with a sign bit, so that they spend two of 16 codes on zero. A value at a midpoint goes
to the lower code. All of this is float32, in the order of operations of bitsandbytes, so that codes
come out as its own, bit for bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.base import finite, float32, integer, one_of

__all__ = [
    "E2M1_CODE",
    "E3M0_CODE",
    "INT4_CODE",
    "NF4_CODE",
    "codebook_quantize",
    "nearest_code",
    "normal_float",
]

Floats = NDArray[np.float32]

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # that bitsandbytes reads
SMALLEST = np.float32(1e-38)  # what divides a block is at least this
OFFSET = 0.9677083  # ((1 - 1/32) + (1 - 1/30)) / 2, to the digits of the published code


def _constant(values: ArrayLike) -> Floats:
    """Return a codebook that nobody can change."""
    array = np.array(values, np.float32)
    array.flags.writeable = False
    return array


def _mirrored(magnitudes: ArrayLike) -> Floats:
    """Return the codebook of ascending magnitudes, their negatives and zero, the largest as 1."""
    ascending = np.array(magnitudes, np.float32) / np.float32(np.max(magnitudes))
    return _constant(np.concatenate([-ascending[::-1], [0], ascending]))


NF4_CODE = _constant(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
"""NormalFloat of 4 bits, float32 (16,), ascending; `normal_float` derives it."""

E2M1_CODE = _mirrored([0.5, 1, 1.5, 2, 3, 4, 6])
"""Floats of 2 exponent bits and 1 mantissa bit (OCP Microscaling FP4), float32 (15,)."""

E3M0_CODE = _mirrored([2.0**e for e in range(-6, 1)])
"""Floats of 3 exponent bits and no mantissa: powers of two, float32 (15,)."""

INT4_CODE = _mirrored(range(1, 8))
"""The integers from -7 to 7, over 7, float32 (15,)."""


def spaced(first: float, last: float, count: int) -> Floats:
    """Return `count` evenly spaced float32 numbers as torch's ``linspace`` rounds them.

    A float32 step, and one rounding for each point, counted from the nearer end.
    """
    begin, end = np.float32(first), np.float32(last)
    step = np.float64((end - begin) / np.float32(count - 1))  # float32 until here
    i = np.arange(count)
    points = np.where(i < count // 2, begin + step * i, end - step * (count - 1 - i))
    return points.astype(np.float32)


def normal_float(offset: float = OFFSET) -> Floats:
    """Derive NF4: quantiles of the normal distribution, 7 below zero, zero, and 8 above.

    ``q_i = Phi^-1(p_i)`` at 9 (8) evenly spaced probabilities from `offset` down to 1/2, without
    the last, which is zero; negated for the lower half; all divided by the largest. The outermost
    probability, `offset`, is above 1/2 and below 1, or a ValueError says so. Phi^-1(1) is infinite,
    so one must stop before; the published choice is the mean of 1 - 1/32 and 1 - 1/30, half a step
    before the end of 16 and of 15 quantiles. The result is ascending, float32 (16,); at the default
    `NF4_CODE`, bit for bit.

    Notes
    -----
    The code of bitsandbytes (``create_normal_map``), which rounds probabilities and quantiles to
    float32: in float64 throughout, most entries differ in the last bit. Eq. 4 of the paper (arXiv
    2305.14314), ``(Q(i / 17) + Q((i + 1) / 17)) / 2``, is infinite at i = 0 and not what it does.

    Examples
    --------
    >>> bool((normal_float() == NF4_CODE).all())
    True
    """
    from statistics import NormalDist

    if not 0.5 < offset < 1:
        raise ValueError(f"offset must be above 0.5 and below 1, got {offset}")
    quantile = NormalDist().inv_cdf
    above, below = (
        np.array([quantile(float(p)) for p in spaced(offset, 0.5, count)[:-1]], np.float32)
        for count in (9, 8)
    )
    code = np.sort(np.concatenate([-below, np.zeros(1, np.float32), above]))
    scaled: Floats = code / code.max()
    return scaled


def midpoints(codebook: Floats) -> Floats:
    """Return the bounds between neighbouring entries, rounded to float32."""
    return (codebook[:-1] + codebook[1:]) / np.float32(2)


def nearest_code(s: ArrayLike, codebook: ArrayLike = NF4_CODE) -> NDArray[np.uint8]:
    """Find the nearest entry of a codebook: the number of midpoints that a value exceeds.

    Parameters
    ----------
    s : float array of any shape
        Cast to float32. Values beyond the ends get the end; NaN gets the last code, as in
        bitsandbytes. May be empty.
    codebook : float array, shape (entries,)
        Ascending, 2 to 256 entries; cast to float32. Anything else is a TypeError or ValueError.

    Returns
    -------
    uint8 array, shape of s
        A value at a midpoint has the lower code.

    Examples
    --------
    >>> nearest_code(np.float32([0.0, 0.6, -1.0]), INT4_CODE)
    array([ 7, 11,  0], dtype=uint8)
    """
    book = float32("codebook", codebook)
    if book.ndim != 1 or not 2 <= book.size <= 256:
        raise ValueError(f"codebook must have 2 to 256 entries in one axis, got shape {book.shape}")
    if not (book[:-1] < book[1:]).all():
        raise ValueError("codebook must be ascending, without equal or NaN entries")
    return np.searchsorted(midpoints(book), float32("s", s), side="left").astype(np.uint8)


def check_block(block: int) -> int:
    """Return the size of a block as an int, or say which there are."""
    return one_of("block", integer("block", block, None), BLOCKS)


def checked_weights(w: ArrayLike, check_finite: bool = True) -> Floats:
    """Return weights as float32: not empty, with an axis, and finite if that is asked for."""
    array = float32("w", w, axis=True, filled=True)
    if check_finite:
        finite("w", array)
    return array


def scale_blocks(flat: Floats, block: int) -> tuple[Floats, Floats]:
    """Divide flat weights by the absmax of their blocks: ``s (n,)`` and ``absmax (blocks,)``.

    Full blocks multiply by the reciprocal of ``max(absmax, 1e-38)`` and keep their absmax as it is.
    A shorter last block divides by it, and keeps the clamped value.
    """
    full = flat.size - flat.size % block
    whole, tail = flat[:full].reshape(-1, block), flat[full:]
    absmax = np.abs(whole).max(axis=1)  # (blocks,)
    with np.errstate(invalid="ignore", under="ignore"):
        s = (whole * (np.float32(1) / np.maximum(absmax, SMALLEST))[:, None]).reshape(-1)  # (full,)
        if tail.size:
            last = np.maximum(np.abs(tail).max(keepdims=True), SMALLEST)  # (1,)
            absmax, s = np.concatenate([absmax, last]), np.concatenate([s, tail / last])
    return np.clip(s, np.float32(-1), np.float32(1)), absmax


def codebook_quantize(w: ArrayLike, codebook: ArrayLike = NF4_CODE, block: int = 64) -> Floats:
    """Round weights to a codebook in blocks, and return the rounded floats, float32 of their shape.

    ``codebook[nearest_code(w / absmax)] * absmax``. `w` and `block` are as for
    `minibit.nf4.quantize_nf4`, which packs NF4, `codebook` as for `nearest_code`. To compare
    codebooks by: it stores nothing. Blocks of zeros stay zeros if the codebook has a zero.

    Examples
    --------
    >>> codebook_quantize(np.float32([1.0, 0.3, -0.02]), E3M0_CODE)
    array([ 1.      ,  0.25    , -0.015625], dtype=float32)
    """
    book, block, array = float32("codebook", codebook), check_block(block), checked_weights(w)
    s, absmax = scale_blocks(array.reshape(-1), block)
    values = book[nearest_code(s, book)] * np.repeat(absmax, block)[: s.size]  # (n,)
    rounded: Floats = values.reshape(array.shape)
    return rounded
