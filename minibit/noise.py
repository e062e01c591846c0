"""Random numbers that every language reproduces, and sparse ternary noise made of them.

Everything random is a pure function of a seed and a counter, in integers alone: Philox4x32-10
(Salmon et al. 2011) turns four 32-bit counter words and a 64-bit seed into four random words.

    key     = (seed mod 2**32, seed div 2**32)                   0 <= seed < 2**64
    counter = (block, draw + 2**24 domain, perturbation, step)   draw < 2**24, domain < 2**8

The domain keeps uses apart (`NOISE`, `INITIAL`, ...): no two ever see the same counter. A *stream*
is the words of the counters ``(0, 2**24 domain, lane, step), (1, ...), (2, ...), ...`` laid end to
end, so any word is found without those before it. A *64-bit draw* is two neighbouring words, the
high half first. No logarithm, no float, no state: a port needs 32-bit multiplication only.

Each hot path has a plain NumPy ``*_reference``, which is its specification, and a Numba kernel of
the same signature that equals it bit for bit.

May import: numpy, minibit.kernels.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from math import prod
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.kernels import compiled

__all__ = [
    "draw_inputs",
    "draw_units",
    "initial_codes",
    "integers",
    "noise_constants",
    "philox4x32",
    "sparse_noise",
    "sparse_noise_many",
    "uniform",
    "words",
]

NOISE, INITIAL, BATCH, UNITS, INPUTS, SHIFTS, LEVELS = range(7)  # domains
USER = 255  # the domain that minibit itself never draws from

Shape = int | tuple[int, ...]
Index = SupportsIndex

MASK = np.uint64(0xFFFFFFFF)
MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # Random123: PHILOX_M4x32_0, _1
KEY_STEPS = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # golden ratio and sqrt(3) - 1
HALF = np.uint64(32)


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Encrypt counters with Philox4x32-10: ten rounds of two multiplications.

    One round, with ``hi`` and ``lo`` the halves of a 64-bit product (Salmon et al. 2011, fig. 2)::

        (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0))
        (k0, k1)         <- (k0 + W0, k1 + W1)  mod 2**32

    Parameters
    ----------
    counter : uint32 array, shape (..., 4)
        Integers of other types are taken if every value fits.
    key : uint32 array, shape (..., 2)
        Broadcast against the counters' leading axes.

    Returns
    -------
    uint32 array, shape (..., 4)

    Raises
    ------
    TypeError, ValueError
        If an argument holds no integers, a value outside [0, 2**32), or ends in another axis.

    Examples
    --------
    >>> [f"{int(word):08x}" for word in philox4x32([0, 0, 0, 0], [0, 0])]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = np.moveaxis(_uint32("counter", counter, 4), -1, 0).astype(np.uint64)
    k0, k1 = np.moveaxis(_uint32("key", key, 2), -1, 0).astype(np.uint64)
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

    Parameters
    ----------
    seed, domain, step, lane : int
        Name the stream: below 2**64, 2**8, 2**32 and 2**32.
    count, start : int
        ``start + count <= 2**34``, the length of a stream. A count of 0 gives an empty array.

    Returns
    -------
    uint32 array, shape (count,)

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer or out of range.

    Examples
    --------
    >>> words(0, 0, 0, 3)
    array([1713891541, 3781805453, 3159862348], dtype=uint32)
    >>> words(0, 0, 0, 1, start=2)
    array([3159862348], dtype=uint32)
    """
    count, start = _below("count", count, 2**34 + 1), _below("start", start, 2**34 + 1)
    if start + count > 2**34:
        raise ValueError(f"a stream has 2**34 words, got start + count = {start + count}")
    return _words(
        _below("seed", seed, 2**64),
        _below("domain", domain, 2**8),
        _below("step", step, 2**32),
        count,
        _below("lane", lane, 2**32),
        start,
    )


def words_reference(
    seed: int, domain: int, step: int, count: int, lane: int, start: int
) -> NDArray[np.uint32]:
    """`words` in plain NumPy."""
    first, last = start // 4, -(-(start + count) // 4)
    counter = np.empty((last - first, 4), np.uint32)
    counter[:, 0] = np.arange(first, last)
    counter[:, 1:] = domain << 24, lane, step
    stream = philox4x32(counter, _key(seed)).reshape(-1)
    return stream[start - 4 * first :][:count].copy()


def uniform(
    seed: Index, shape: Shape, *, domain: Index = USER, step: Index = 0, lane: Index = 0
) -> NDArray[np.float64]:
    """Draw numbers in [0, 1), each a multiple of 2**-53.

    Number ``i`` (C order) is ``(2**26 (w[2i] >> 5) + (w[2i+1] >> 6)) / 2**53`` of the stream's
    words ``w``. Every operation is exact, so every language with IEEE doubles agrees.

    Parameters
    ----------
    seed, domain, step, lane : int
        Name the stream, as in `words`. The default domain is one that minibit itself never uses.
    shape : int or tuple of int
        An empty shape gives an empty array.

    Returns
    -------
    float64 array of that shape

    Examples
    --------
    >>> uniform(7, 2).round(4)
    array([0.3281, 0.1127])
    """
    shape, count = _shape(shape)
    high, low = words(seed, domain, step, 2 * count, lane).reshape(-1, 2).T.astype(np.float64)
    return ((np.floor(high / 2**5) * 2**26 + np.floor(low / 2**6)) / 2**53).reshape(shape)


def integers(
    seed: Index, high: Index, shape: Shape, *, domain: Index, step: Index = 0, lane: Index = 0
) -> NDArray[np.int64]:
    """Draw integers in [0, high).

    Number ``i`` (C order) is ``floor(u_i high / 2**64)`` with the 64-bit draw
    ``u_i = 2**32 w[2i] + w[2i+1]``. No value's probability is off by as much as 2**-64.

    Parameters
    ----------
    seed, domain, step, lane : int
        Name the stream, as in `words`.
    high : int
        1 <= high <= 2**63.
    shape : int or tuple of int

    Returns
    -------
    int64 array of that shape

    Examples
    --------
    >>> integers(0, 10, 5, domain=BATCH)
    array([2, 5, 1, 4, 7])
    """
    limit = np.uint64(_below("high", high, 2**63 + 1, least=1))
    shape, count = _shape(shape)
    halves = words(seed, domain, step, 2 * count, lane).reshape(-1, 2).T.astype(np.uint64)
    return _multiply_high(halves[0], halves[1], limit).astype(np.int64).reshape(shape)


def noise_constants(density: float | Fraction | Index) -> tuple[int, int, NDArray[np.uint64]]:
    """Fix the integers behind a density: its numerator, the block size and the count table.

    - ``numerator = round(density 2**32)``, ties to even. An ``int`` *is* the numerator, so that a
      log names integers only: 1 means 2**-32, and 1.0 means every weight.
    - ``block_bits`` b: the largest b in 4, ..., 16 with ``numerator 2**b <= 2**32``, else 4. A
      block of ``B = 2**b`` weights then holds one nonzero or fewer on average (up to density 1/16).
    - ``table``: ``T_j = floor(2**64 P(k <= j))`` for a count k of law Binomial(B, numerator/2**32),
      as exact rationals, for j = 0, 1, ... up to before the first ``T_j >= 2**64 - 1``.

    Parameters
    ----------
    density : float, Fraction or int
        In [0, 1], or a numerator in [0, 2**32].

    Returns
    -------
    numerator : int
    block_bits : int
    table : uint64 array, increasing, at most 22 entries, read-only
        Empty for density 0; sixteen zeros for density 1.

    Raises
    ------
    TypeError, ValueError
        If the density is no number, or out of range (NaN too).

    Examples
    --------
    >>> numerator, block_bits, table = noise_constants(6e-5)
    >>> numerator, block_bits, len(table)
    (257698, 14, 20)
    >>> float(table[0]) / 2**64  # an empty block
    0.3741...
    """
    numerator = _numerator("density", density)
    block_bits = min(16, max(4, 32 - (numerator - 1).bit_length())) if numerator else 16
    return numerator, block_bits, _count_table(numerator, block_bits)


def sparse_noise(
    seed: Index,
    step: Index,
    perturbation: Index,
    size: Index,
    density: float | Fraction | Index,
    blocks: Index | Iterable[int] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Draw one sparse ternary perturbation: each weight is hit with probability `density`.

    The flat vector is cut into blocks of ``B = 2**b`` weights (`noise_constants`), and each block
    is drawn alone, from the counters ``(block, draw, perturbation, step)`` of domain `NOISE`, whose
    words w follow each other over draw = 0, 1, ...:

    1. ``u = 2**32 w[0] + w[1]``; the block has ``k = #{j : T_j <= u}`` nonzeros.
    2. Of each next word w[2], w[3], ...: position ``w >> (32 - b)`` in the block, sign +1 if
       ``w mod 2 == 0``, else -1. A word whose position is taken is skipped, its sign too, until k
       positions are taken.
    3. Sort by position, add ``block B``, and drop positions >= `size` (last block only).

    A binomial count with a uniform subset of places is the same law as one coin a weight, so the
    blocks cannot be seen in the result, and a shorter vector is a prefix of a longer one.

    Parameters
    ----------
    seed, step, perturbation : int
        Below 2**64, 2**32, 2**32.
    size : int
        Number of weights, at most ``2**32 B``. 0 gives nothing.
    density : float, Fraction or int
        As in `noise_constants`: a share, or the integer numerator of ``numerator / 2**32``.
    blocks : int or iterable of int, optional
        Only these blocks, in any order; naming one twice changes nothing. All by default.

    Returns
    -------
    positions : int64 array, increasing
    signs : int8 array of -1 and +1, of the same length

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer or out of range.

    Examples
    --------
    >>> positions, signs = sparse_noise(0, step=3, perturbation=1, size=40_000, density=1e-4)
    >>> positions.tolist(), signs.tolist()
    ([], [])
    """
    perturbations = [_below("perturbation", perturbation, 2**32)]
    _, positions, signs = _sparse_noise(seed, step, perturbations, size, density, blocks)
    return positions, signs


def sparse_noise_many(
    seed: Index,
    step: Index,
    perturbations: ArrayLike,
    size: Index,
    density: float | Fraction | Index,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
    """Draw several perturbations at once, each equal to its `sparse_noise`.

    Parameters
    ----------
    seed, step, size, density
        As in `sparse_noise`.
    perturbations : int array, shape (P,)
        Their numbers, in any order; a number may be named twice.

    Returns
    -------
    offsets : int64 array, shape (P + 1,)
        Perturbation ``perturbations[i]`` has the entries ``offsets[i]:offsets[i + 1]`` of the rest.
    positions : int64 array, increasing within a perturbation
    signs : int8 array of -1 and +1

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer or out of range.

    Examples
    --------
    >>> offsets, positions, signs = sparse_noise_many(0, 3, [0, 1], 40_000, 1e-4)
    >>> offsets
    array([0, 2, 6])
    """
    return _sparse_noise(seed, step, perturbations, size, density, None)


def sparse_noise_reference(
    seed: int,
    step: int,
    perturbations: NDArray[np.int64],
    blocks: NDArray[np.int64],
    size: int,
    block_bits: int,
    table: NDArray[np.uint64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
    """`sparse_noise_many` on the given (increasing) blocks, in plain NumPy."""
    pairs, chunk = perturbations.size * blocks.size, 1 << 16  # bounded memory
    found = [
        _draw_blocks(
            seed, step, perturbations, blocks, range(i, min(i + chunk, pairs)), block_bits, table
        )
        for i in range(0, pairs, chunk)
    ]
    owner, position, sign = (
        np.concatenate([np.empty(0, dtype), *(part[i] for part in found)])
        for i, dtype in enumerate((np.int64, np.int64, np.int8))
    )
    inside = position < size
    owner, position, sign = owner[inside], position[inside], sign[inside]
    order = np.lexsort((position, owner))
    offsets = np.concatenate(([0], np.bincount(owner, minlength=perturbations.size).cumsum()))
    return offsets.astype(np.int64), position[order], sign[order]


def _draw_blocks(
    seed: int,
    step: int,
    perturbations: NDArray[np.int64],
    blocks: NDArray[np.int64],
    pairs: range,
    block_bits: int,
    table: NDArray[np.uint64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
    """Draw some (perturbation, block) pairs: owner, flat position and sign of each nonzero."""
    owner, place = np.divmod(np.asarray(pairs, np.int64), blocks.size)
    counter = np.empty((len(pairs), 4), np.uint32)
    counter[:, 0] = blocks[place]
    counter[:, 1] = NOISE << 24
    counter[:, 2] = perturbations[owner]
    counter[:, 3] = step
    drawn = philox4x32(counter, _key(seed))  # (pairs, 4)
    u = drawn[:, 0].astype(np.uint64) << HALF | drawn[:, 1]
    count = np.searchsorted(table, u, side="right")  # #{j : T_j <= u}
    busy = np.flatnonzero(count)
    count, counter, drawn = count[busy], counter[busy], drawn[busy, 2:]
    taken = np.full((busy.size, count.max(initial=0)), -1, np.int64)  # (busy, most)
    sign = np.zeros(taken.shape, np.int8)
    filled = np.zeros(busy.size, np.int64)
    while (filled < count).any():
        for word in drawn.T:
            position = (word >> np.uint32(32 - block_bits)).astype(np.int64)  # (busy,)
            fresh = (filled < count) & (taken != position[:, None]).all(axis=1)
            row, slot = np.flatnonzero(fresh), filled[fresh]
            taken[row, slot] = position[row]
            sign[row, slot] = 1 - 2 * (word[row] & 1).astype(np.int8)
            filled[row] += 1
        counter[:, 1] += 1  # the next draw of each block
        drawn = philox4x32(counter, _key(seed))
    row, slot = np.nonzero(taken >= 0)
    flat = (counter[row, 0].astype(np.int64) << block_bits) + taken[row, slot]
    return owner[busy[row]], flat, sign[row, slot]


def initial_codes(
    seed: Index, shape: Shape, zeros: float | Fraction | Index, layer: Index = 0
) -> NDArray[np.int8]:
    """Draw a layer's initial weights: a share of zeros, and as many +1 as -1 expected.

    With ``Z = round(zeros 2**32)`` and the stream of domain `INITIAL`, lane `layer`, step 0, weight
    ``i`` (C order) is 0 if ``w[i] < Z``; else +1 if ``w[i] mod 2 == 0``, and -1 if it is odd. The
    signs are exactly even for an even Z, and off by one part in ``2**32 - Z`` for an odd one.

    Parameters
    ----------
    seed, layer : int
        Below 2**64 and 2**32.
    shape : int or tuple of int
        ``(n_out, n_in)`` of a layer; at most 2**34 weights.
    zeros : float, Fraction or int
        In [0, 1], or the integer numerator of ``numerator / 2**32``.

    Returns
    -------
    int8 array of that shape

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer or out of range.

    Examples
    --------
    >>> initial_codes(0, (2, 5), 0.7)
    array([[ 0, -1,  1,  0,  0],
           [ 0,  0,  0,  0,  0]], dtype=int8)
    """
    numerator = _numerator("zeros", zeros)
    shape, count = _shape(shape)
    drawn = words(seed, INITIAL, 0, count, lane=layer)
    signs = 1 - 2 * (drawn & 1).astype(np.int8)
    return np.where(drawn >= np.uint64(numerator), signs, 0).astype(np.int8).reshape(shape)


def draw_units(
    seed: Index, step: Index, layer: Index, n_out: Index, count: Index
) -> NDArray[np.int64]:
    """Draw `count` distinct units of a layer, every subset equally likely (Floyd's algorithm).

    For ``i = 0, ..., count - 1``: let ``j = n_out - count + i`` and ``t = floor(u_i (j + 1) /
    2**64)`` with the 64-bit draw ``u_i`` of the stream of domain `UNITS`, lane `layer`; take t, or
    j if t is taken. Then sort. All units if ``count == n_out``.

    Parameters
    ----------
    seed, step, layer : int
        Below 2**64, 2**32, 2**32.
    n_out, count : int
        ``0 <= count <= n_out < 2**32``.

    Returns
    -------
    int64 array, shape (count,), increasing

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer or out of range.

    Examples
    --------
    >>> draw_units(seed=0, step=0, layer=0, n_out=256, count=4)
    array([ 22,  68, 159, 230])
    """
    return _subset(
        _below("seed", seed, 2**64),
        UNITS,
        _below("step", step, 2**32),
        _below("layer", layer, 2**32),
        _below("n_out", n_out, 2**32),
        _below("count", count, operator.index(n_out) + 1),
    )


def draw_inputs(
    seed: Index, step: Index, layer: Index, unit: Index, n_in: Index, count: Index
) -> NDArray[np.int64]:
    """Draw `count` distinct inputs of a unit, as `draw_units` draws units.

    The stream has domain `INPUTS` and lane ``2**20 layer + unit``; all inputs if ``count == n_in``.

    Parameters
    ----------
    seed, step, layer, unit : int
        Below 2**64, 2**32, 2**12, 2**20.
    n_in, count : int
        ``0 <= count <= n_in < 2**32``.

    Returns
    -------
    int64 array, shape (count,), increasing

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer or out of range.

    Examples
    --------
    >>> draw_inputs(seed=0, step=0, layer=0, unit=22, n_in=784, count=3)
    array([ 22,  68, 159])
    >>> draw_inputs(0, 0, 0, 22, n_in=3, count=3)
    array([0, 1, 2])
    """
    return _subset(
        _below("seed", seed, 2**64),
        INPUTS,
        _below("step", step, 2**32),
        (_below("layer", layer, 2**12) << 20) + _below("unit", unit, 2**20),
        _below("n_in", n_in, 2**32),
        _below("count", count, operator.index(n_in) + 1),
    )


def subset_reference(
    seed: int, domain: int, step: int, lane: int, n: int, count: int
) -> NDArray[np.int64]:
    """Floyd's algorithm: `count` distinct numbers below n, in plain Python."""
    drawn = words_reference(seed, domain, step, 2 * count, lane, 0).reshape(-1, 2).tolist()
    taken: set[int] = set()
    for j, (high, low) in enumerate(drawn, start=n - count):
        t = ((high << 32 | low) * (j + 1)) >> 64
        taken.add(j if t in taken else t)
    return np.array(sorted(taken), np.int64)


# --- Which path runs, and what the arguments may be


def _words(
    seed: int, domain: int, step: int, count: int, lane: int, start: int
) -> NDArray[np.uint32]:
    if not compiled():
        return words_reference(seed, domain, step, count, lane, start)
    from minibit.kernels import noise as kernel

    out: NDArray[np.uint32] = kernel.words(np.uint64(seed), domain, step, count, lane, start)
    return out


def _subset(seed: int, domain: int, step: int, lane: int, n: int, count: int) -> NDArray[np.int64]:
    if count == n:
        return np.arange(n)
    if not compiled():
        return subset_reference(seed, domain, step, lane, n, count)
    from minibit.kernels import noise as kernel

    out: NDArray[np.int64] = kernel.subset(np.uint64(seed), domain, step, lane, n, count)
    return out


def _sparse_noise(
    seed: Index,
    step: Index,
    perturbations: ArrayLike,
    size: Index,
    density: float | Fraction | Index,
    blocks: Index | Iterable[int] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
    _, block_bits, table = noise_constants(density)
    seed, step = _below("seed", seed, 2**64), _below("step", step, 2**32)
    size = _below("size", size, (1 << (32 + block_bits)) + 1)
    numbers = _numbers("perturbations", perturbations, 2**32)
    total = -(-size >> block_bits)
    chosen = np.arange(total) if blocks is None else np.unique(_block_numbers(blocks, total))
    if not compiled():
        return sparse_noise_reference(seed, step, numbers, chosen, size, block_bits, table)
    from minibit.kernels import noise as kernel

    drawn: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]] = kernel.sparse_noise(
        np.uint64(seed), step, numbers, chosen, size, block_bits, table
    )
    return drawn


@lru_cache(maxsize=4096)
def _count_table(numerator: int, block_bits: int) -> NDArray[np.uint64]:
    """Floor ``2**64 P(Binomial(2**b, numerator / 2**32) <= j)`` exactly, for `noise_constants`.

    In fixed point between a lower and an upper bound, at 256 bits and, where that leaves a floor
    open, at the ``32 B`` bits that hold every term exactly.
    """
    block, p, q = 1 << block_bits, numerator, 2**32 - numerator
    if p == 0 or q == 0:
        return _frozen([] if p == 0 else [0] * block)
    for bits in (256, 32 * block):
        low = high = q << (bits - 32)  # 1 - density
        for _ in range(block_bits):  # to the power of B
            low, high = low * low >> bits, -(-high * high >> bits)
        sums, table = [low, high], list[int]()
        for j in range(block):
            floor, ceiling = (total >> (bits - 64) for total in sums)
            if floor >= 2**64 - 1:
                return _frozen(table)
            if floor != ceiling:
                break  # more bits
            table.append(floor)
            up, down = (block - j) * p, (j + 1) * q  # P(j + 1) = P(j) up / down
            low, high = low * up // down, -(-high * up // down)
            sums = [sums[0] + low, sums[1] + high]
        else:
            return _frozen(table)
    raise AssertionError("32 B bits hold every term exactly")


def _frozen(table: list[int]) -> NDArray[np.uint64]:
    out = np.array(table, np.uint64)
    out.flags.writeable = False
    return out


def _multiply_high(
    high: NDArray[np.uint64], low: NDArray[np.uint64], limit: np.uint64
) -> NDArray[np.uint64]:
    """Floor ``(2**32 high + low) limit / 2**64`` from 32-bit halves."""
    a, b = limit >> HALF, limit & MASK
    middle = high * b + (low * b >> HALF)  # below 2**64
    carry = (middle & MASK) + low * a  # below 2**64
    return high * a + (middle >> HALF) + (carry >> HALF)


def _key(seed: int) -> NDArray[np.uint32]:
    seed = int(seed)
    return np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)


def _below(name: str, value: Any, limit: int, least: int = 0) -> int:
    """Check one integer argument: ``least <= value < limit``."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, got {value!r} of type {type(value).__name__}"
        ) from None
    if not least <= number < limit:
        raise ValueError(f"{name} must lie in [{least}, {limit}), got {number}")
    return number


def _numerator(name: str, share: Any) -> int:
    """Turn a share in [0, 1] into its numerator over 2**32; an integer is the numerator."""
    if isinstance(share, float | np.floating | Fraction):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {share}")
        return round(Fraction(float(share) if not isinstance(share, Fraction) else share) * 2**32)
    return _below(f"{name} (an int is a numerator over 2**32)", share, 2**32 + 1)


def _shape(shape: Shape) -> tuple[tuple[int, ...], int]:
    """Check a shape; return it as a tuple, with its size."""
    sides = shape if isinstance(shape, tuple | list) else (shape,)
    checked = tuple(_below("shape", side, 2**34 + 1) for side in sides)
    return checked, prod(checked)


def _numbers(name: str, values: ArrayLike, limit: int) -> NDArray[np.int64]:
    """Check a one-dimensional array of integers in [0, limit)."""
    given = np.asarray(values)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise TypeError(
            f"{name} must be one-dimensional integers, got shape {given.shape} of {given.dtype}"
        )
    if given.size and not 0 <= int(given.min()) <= int(given.max()) < limit:
        raise ValueError(f"{name} must lie in [0, {limit}), got {given.min()} to {given.max()}")
    return given.astype(np.int64)


def _block_numbers(blocks: Index | Iterable[int], total: int) -> NDArray[np.int64]:
    """Check the `blocks` argument against the number of blocks."""
    given = (
        blocks
        if isinstance(blocks, np.ndarray)
        else np.asarray(list(blocks) if isinstance(blocks, Iterable) else [blocks])
    )
    return _numbers("blocks", np.atleast_1d(given), total)


def _uint32(name: str, values: ArrayLike, last: int) -> NDArray[np.uint32]:
    """Check an array of 32-bit words with a last axis of the given length."""
    given = np.asarray(values)
    if given.ndim == 0 or given.shape[-1] != last:
        raise ValueError(f"{name} must have shape (..., {last}), got {given.shape}")
    if given.dtype == np.uint32:
        return given
    if given.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold uint32 words, got {given.dtype}")
    if given.size and not 0 <= int(given.min()) <= int(given.max()) < 2**32:
        raise ValueError(
            f"{name} must hold words in [0, 2**32), got {given.min()} to {given.max()}"
        )
    return given.astype(np.uint32)
