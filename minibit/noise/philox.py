"""Counter-based random words that every language reproduces: Philox4x32-10 streams.

A generator with a state must be run from its start. Philox (Salmon et al. 2011) has none: it turns
four 32-bit counter words and a 64-bit seed into four random words, in integers alone.

    key     = (seed mod 2**32, seed div 2**32)                0 <= seed < 2**64
    counter = (block, draw + 2**24 domain, lane, step)        draw < 2**24, domain < 2**8

The domain keeps uses apart, so that no two ever see the same counter: `NOISE` 0, `INITIAL` 1,
`BATCH` 2, `UNITS` 3, `INPUTS` 4, `SHIFTS` 5 (reserved: nothing is drawn from it), `LEVELS` 6,
`TOKENS` 7, `ADAPTERS` 8, `DROPOUT` 9, and `USER` 255 for your own. A *stream* is the words of the
counters ``(0, 2**24 domain, lane, step), (1, ...), (2, ...), ...`` laid end to end, so any word is
found without those before it. A *64-bit draw* is two neighbouring words, the high half first.

`words_reference` is plain NumPy and the specification; the kernel equals it bit for bit.
"""

from __future__ import annotations

from math import prod
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.base import integer, integer_array, integers_up_to
from minibit.kernels import compiled

__all__ = ["integers", "philox4x32", "uniform", "words"]

NOISE, INITIAL, BATCH, UNITS, INPUTS, SHIFTS, LEVELS, TOKENS, ADAPTERS, DROPOUT = range(10)
USER = 255  # the domain that minibit itself never draws from

Shape = int | tuple[int, ...]
Index = SupportsIndex

MASK = np.uint64(0xFFFFFFFF)
MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # Random123: PHILOX_M4x32_0, _1
KEY_STEPS = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # golden ratio and sqrt(3) - 1
HALF = np.uint64(32)


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Encrypt counters with Philox4x32-10: ten rounds of two multiplications.

    One round, with ``hi`` and ``lo`` the halves of a 64-bit product, followed by a step of the key
    (Salmon et al. 2011; the constants are those of Random123)::

        (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0))
        (k0, k1)         <- (k0 + W0, k1 + W1)  mod 2**32

        M0 = d2511f53, M1 = cd9e8d57, W0 = 9e3779b9, W1 = bb67ae85  (hexadecimal)

    The `counter` (..., 4) and `key` (..., 2) are uint32, or other integers that fit; their leading
    axes broadcast. Anything else is a TypeError or a ValueError.

    Examples
    --------
    >>> [f"{int(word):08x}" for word in philox4x32([0, 0, 0, 0], [0, 0])]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    counter, key = check_words("counter", counter, 4), check_words("key", key, 2)
    try:
        np.broadcast_shapes(counter.shape[:-1], key.shape[:-1])
    except ValueError:
        raise ValueError(
            f"key of shape {key.shape} does not broadcast against counter of shape {counter.shape}"
        ) from None
    c0, c1, c2, c3 = np.moveaxis(counter, -1, 0).astype(np.uint64)
    k0, k1 = np.moveaxis(key, -1, 0).astype(np.uint64)
    for _ in range(10):
        p0 = MULTIPLIERS[0] * c0  # 32 x 32 -> 64 bits
        p1 = MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> HALF) ^ c1 ^ k0, p1 & MASK, (p0 >> HALF) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return np.stack((c0, c1, c2, c3), axis=-1).astype(np.uint32)  # (..., 4)


def words(
    seed: Index, domain: Index, step: Index, count: Index, lane: Index = 0, start: Index = 0
) -> NDArray[np.uint32]:
    """Return words ``start, ..., start + count - 1`` of a stream; all other draws are made of it.

    Word ``m`` is word ``m mod 4`` of ``philox4x32((m div 4, 2**24 domain, lane, step), key)``.

    `seed`, `domain`, `step` and `lane` name the stream: below ``2**64``, ``2**8``, ``2**32`` and
    ``2**32``. Its length is ``2**34 >= start + count``; a count of 0 gives an empty array.

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer or out of range; so do all draws below.

    Examples
    --------
    >>> words(0, 0, 0, 1, start=2)
    array([3159862348], dtype=uint32)
    """
    seed, domain, step, count, lane, start = integers_up_to(
        ("seed", seed, 2**64 - 1),
        ("domain", domain, 2**8 - 1),
        ("step", step, 2**32 - 1),
        ("count", count, 2**34),
        ("lane", lane, 2**32 - 1),
        ("start", start, 2**34),
    )
    if start + count > 2**34:
        raise ValueError(f"a stream has 2**34 words, got start + count = {start + count}")
    if not compiled():
        return words_reference(seed, domain, step, count, lane, start)
    from minibit.kernels import noise as kernel

    out: NDArray[np.uint32] = kernel.words(np.uint64(seed), domain, step, count, lane, start)
    return out


def words_reference(
    seed: int, domain: int, step: int, count: int, lane: int, start: int
) -> NDArray[np.uint32]:
    """`words` in plain NumPy."""
    first, last = start // 4, -(-(start + count) // 4)
    counter = np.empty((last - first, 4), np.uint32)
    counter[:, 0] = np.arange(first, last)
    counter[:, 1:] = domain << 24, lane, step
    stream = philox4x32(counter, key_words(seed)).reshape(-1)  # (4 blocks,)
    return stream[start - 4 * first :][:count]


def uniform(
    seed: Index, shape: Shape, *, domain: Index = USER, step: Index = 0, lane: Index = 0
) -> NDArray[np.float64]:
    """Draw numbers in [0, 1), each a multiple of ``2**-53``.

    Number ``i`` (C order) is ``(2**26 (w[2i] >> 5) + (w[2i+1] >> 6)) / 2**53`` of the stream's
    words ``w``. Every operation is exact, so every language with IEEE doubles agrees. `seed`,
    `domain`, `step` and `lane` name the stream as in `words`; minibit itself never uses the default
    domain. An empty shape gives an empty array; one that takes over ``2**34`` words is refused.

    Examples
    --------
    >>> uniform(7, 2).round(4)
    array([0.852 , 0.2592])
    """
    shape, count = check_shape(shape, each=2)
    high, low = words(seed, domain, step, 2 * count, lane).reshape(-1, 2).T
    return (((high >> 5) * 2.0**26 + (low >> 6)) / 2**53).reshape(shape)


def integers(
    seed: Index, high: Index, shape: Shape, *, domain: Index, step: Index = 0, lane: Index = 0
) -> NDArray[np.int64]:
    """Draw integers in [0, high).

    Number ``i`` (C order) is ``floor(u_i high / 2**64)`` with the 64-bit draw
    ``u_i = 2**32 w[2i] + w[2i+1]``, for ``1 <= high <= 2**63``. No value's probability is off by as
    much as 2**-64. `seed`, `domain`, `step`, `lane` and `shape` are as in `uniform`.

    Examples
    --------
    >>> integers(0, 10, 5, domain=BATCH)
    array([6, 4, 7, 4, 5])
    """
    limit = np.uint64(integer("high", high, 1, 2**63))
    shape, count = check_shape(shape, each=2)
    halves = words(seed, domain, step, 2 * count, lane).reshape(-1, 2).T.astype(np.uint64)
    return _multiply_high(halves[0], halves[1], limit).astype(np.int64).reshape(shape)


# --- 64-bit arithmetic, and what the arguments may be


def _multiply_high(
    high: NDArray[np.uint64], low: NDArray[np.uint64], limit: np.uint64
) -> NDArray[np.uint64]:
    """Floor ``(2**32 high + low) limit / 2**64`` from 32-bit halves."""
    a, b = limit >> HALF, limit & MASK
    middle = high * b + (low * b >> HALF)  # below 2**64
    carry = (middle & MASK) + low * a  # below 2**64
    product: NDArray[np.uint64] = high * a + (middle >> HALF) + (carry >> HALF)
    return product


def key_words(seed: int) -> NDArray[np.uint32]:
    """Return the Philox key of a seed: its low half, then its high half."""
    return np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)


def check_shape(shape: Shape, each: int = 1) -> tuple[tuple[int, ...], int]:
    """Check a shape whose entries take `each` words; return it as a tuple, with its size."""
    axes = shape if isinstance(shape, tuple | list) else (shape,)
    checked = tuple(integers_up_to(*(("shape", n, 2**34) for n in axes)))
    size = prod(checked)
    if size * each > 2**34:
        raise ValueError(f"shape {checked} takes {size * each} words, and a stream has 2**34")
    return checked, size


def check_words(name: str, values: ArrayLike, last: int) -> NDArray[np.uint32]:
    """Check an array of 32-bit words with a last axis of the given length."""
    array = np.asarray(values)
    if array.ndim == 0 or array.shape[-1] != last:
        raise ValueError(f"{name} must have shape (..., {last}), got {array.shape}")
    if array.dtype == np.uint32:
        return array
    return integer_array(name, array, 0, 2**32 - 1).astype(np.uint32)
