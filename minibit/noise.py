"""Sparse ternary noise, initial weights and candidate draws that every language reproduces.

All of it is a pure function of a seed and a Philox counter (`minibit.philox`), in integers alone:
no logarithm, no float, no state. A perturbation of millions of weights is drawn block by block,
each block on its own, so any part of any perturbation of any step costs only itself.

The two hot paths have a plain NumPy ``*_reference``, which is the specification, and a Numba kernel
of the same signature that equals it bit for bit.

May import: numpy, minibit.philox, minibit.kernels.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.kernels import compiled
from minibit.philox import ADAPTERS as ADAPTERS
from minibit.philox import BATCH as BATCH
from minibit.philox import DROPOUT as DROPOUT
from minibit.philox import (
    INITIAL,
    INPUTS,
    NOISE,
    UNITS,
    Index,
    Shape,
    check_below,
    check_shape,
    integers,
    interval,
    key_words,
    philox4x32,
    uniform,
    words,
    words_reference,
)
from minibit.philox import LEVELS as LEVELS
from minibit.philox import SHIFTS as SHIFTS
from minibit.philox import TOKENS as TOKENS
from minibit.philox import USER as USER

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

Share = float | Fraction | Index
Entries = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]


def noise_constants(density: Share) -> tuple[int, int, NDArray[np.uint64]]:
    """Fix the integers behind a density: its numerator, the block size and the count table.

    - ``numerator = round(density 2**32)``, ties to even. An ``int`` *is* the numerator, so that a
      log names integers only: 1 means ``2**-32``, and 1.0 means every weight.
    - ``block_bits`` b: the largest b in 4, ..., 16 with ``numerator 2**b <= 2**32``, and 4 if none.
      A block of ``B = 2**b`` weights then has one nonzero or fewer on average, up to density 1/16.
    - ``table``: ``T_j = floor(2**64 P(k <= j))`` for a count k of law Binomial(B, numerator/2**32),
      the floor of an exact rational, for j = 0, 1, ..., up to before the first that reaches
      ``2**64 - 1``.

    Parameters
    ----------
    density : float, Fraction or int
        In [0, 1], or a numerator in ``[0, 2**32]``.

    Returns
    -------
    numerator : int
    block_bits : int
    table : uint64 array, non-decreasing, at most 20 entries, read-only
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
    >>> f"{table[0] / 2**64:.4f}"  # the share of empty blocks
    '0.3742'
    """
    numerator = _numerator("density", density)
    block_bits = min(16, max(4, 32 - (numerator - 1).bit_length())) if numerator else 16
    return numerator, block_bits, _count_table(numerator, block_bits)


def sparse_noise(
    seed: Index,
    step: Index,
    perturbation: Index,
    size: Index,
    density: Share,
    blocks: Index | Iterable[int] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Draw one sparse ternary perturbation: a share `density` of nonzeros, +1 and -1 evenly.

    The flat vector is cut into blocks of ``B = 2**b`` weights (`noise_constants`). Block ``i`` is
    drawn alone, from the counters ``(i, draw, perturbation, step)``, draw = 0, 1, ..., of domain
    `NOISE` (0), four words each, w[0], w[1], w[2], ...:

    1. ``u = 2**32 w[0] + w[1]``; the block has ``k = #{j : T_j <= u}`` nonzeros.
    2. Each next word ``w`` in turn names position ``w >> (32 - b)`` of the block, and sign +1 if w
       is even, -1 if odd. A word whose position is taken is skipped, sign and all. Stop at k
       positions.
    3. Sort by position, add ``i B``, and drop what lies at `size` or beyond (last block only).

    A binomial count on a uniform subset of places is the law of one coin a weight, so the blocks
    leave no trace in the statistics, and the noise of a shorter vector is a prefix of a longer's.

    Parameters
    ----------
    seed, step, perturbation : int
        Below ``2**64``, ``2**32``, ``2**32``.
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
    ([3830, 14472, 17731, 25302], [-1, -1, -1, -1])
    """
    numbers = np.array([check_below("perturbation", perturbation, 2**32)])
    _, positions, signs = _sparse_noise(seed, step, numbers, size, density, blocks)
    return positions, signs


def sparse_noise_many(
    seed: Index,
    step: Index,
    perturbations: ArrayLike,
    size: Index,
    density: Share,
    blocks: Index | Iterable[int] | None = None,
) -> Entries:
    """Draw several perturbations at once, each equal to its `sparse_noise`.

    Parameters
    ----------
    seed, step, size, density, blocks
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
    array([0, 3, 7])
    """
    numbers = _numbers("perturbations", perturbations, 2**32)
    return _sparse_noise(seed, step, numbers, size, density, blocks)


def sparse_noise_reference(
    seed: int,
    step: int,
    perturbations: NDArray[np.int64],
    blocks: NDArray[np.int64],
    size: int,
    block_bits: int,
    table: NDArray[np.uint64],
) -> Entries:
    """`sparse_noise_many` on the given blocks (increasing), in plain NumPy."""
    pairs, most = perturbations.size * blocks.size, 1 << 16  # pairs at a time: bounded memory
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int8))]
    for first in range(0, pairs, most):
        owner, place = np.divmod(np.arange(first, min(first + most, pairs)), blocks.size)
        counter = np.empty((owner.size, 4), np.uint32)
        counter[:, 0], counter[:, 1] = blocks[place], NOISE << 24
        counter[:, 2], counter[:, 3] = perturbations[owner], step
        row, inside, sign = _draw_blocks(counter, key_words(seed), block_bits, table)
        found.append((owner[row], (blocks[place[row]] << block_bits) + inside, sign))
    owner, position, sign = (np.concatenate(parts) for parts in zip(*found, strict=True))
    kept = np.lexsort((position, owner))
    kept = kept[position[kept] < size]
    offsets = np.searchsorted(owner[kept], np.arange(perturbations.size + 1))
    return offsets, position[kept], sign[kept]


def _draw_blocks(
    counter: NDArray[np.uint32],
    key: NDArray[np.uint32],
    block_bits: int,
    table: NDArray[np.uint64],
) -> Entries:
    """Draw the blocks of some counters: row, position in the block and sign of each nonzero."""
    drawn = philox4x32(counter, key)  # (rows, 4)
    u = drawn[:, 0].astype(np.uint64) << np.uint64(32) | drawn[:, 1]  # (rows,)
    count = np.searchsorted(table, u, side="right")  # #{j : T_j <= u}
    busy = np.flatnonzero(count)
    count, counter, drawn = count[busy], counter[busy], drawn[busy, 2:]  # two words are left
    taken = np.full((busy.size, count.max(initial=0)), -1)  # (busy, most)
    sign = np.zeros(taken.shape, np.int8)
    filled = np.zeros(busy.size, np.int64)
    while (filled < count).any():
        for word in drawn.T:
            position = (word >> (32 - block_bits)).astype(np.int64)  # (busy,)
            fresh = (filled < count) & (taken != position[:, None]).all(axis=1)
            row = np.flatnonzero(fresh)
            taken[row, filled[row]] = position[row]
            sign[row, filled[row]] = np.where(word[row] & 1, -1, 1)
            filled[row] += 1
        counter[:, 1] += 1  # the next draw
        drawn = philox4x32(counter, key)  # (busy, 4)
    row, slot = np.nonzero(sign)
    return busy[row], taken[row, slot], sign[row, slot]


def initial_codes(seed: Index, shape: Shape, zeros: Share, layer: Index = 0) -> NDArray[np.int8]:
    """Draw a layer's initial weights: a share of zeros, and +1 and -1 evenly.

    With ``Z = round(zeros 2**32)`` (ties to even) and the words w of the stream of domain `INITIAL`
    (1), step 0, lane `layer`, weight ``i`` in C order is 0 if ``w[i] < Z``; else +1 if w[i] is even
    and -1 if it is odd. Signs are exactly even for an even Z; an odd one leaves -1 one word more of
    the ``2**32 - Z``.

    Parameters
    ----------
    seed, layer : int
        Below ``2**64`` and ``2**32``.
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
    array([[ 0,  0,  0,  1,  0],
           [ 0,  0,  0, -1,  1]], dtype=int8)
    """
    numerator = _numerator("zeros", zeros)
    shape, count = check_shape(shape)
    drawn = words(seed, INITIAL, 0, count, lane=check_below("layer", layer, 2**32))
    signs = np.int8(1) - (drawn & 1).astype(np.int8) * np.int8(2)
    signs[drawn < np.uint64(numerator)] = 0
    return signs.reshape(shape)


def draw_units(
    seed: Index, step: Index, layer: Index, n_out: Index, count: Index
) -> NDArray[np.int64]:
    """Draw `count` distinct units of a layer, every subset equally likely (Floyd's algorithm).

    For ``i = 0, ..., count - 1``: with ``j = n_out - count + i`` and the 64-bit draw
    ``u = 2**32 w[2i] + w[2i+1]`` of the stream of domain `UNITS` (3), lane `layer`, let
    ``t = floor(u (j + 1) / 2**64)``; take t, or j if t is taken. Then sort.

    Parameters
    ----------
    seed, step, layer : int
        Below ``2**64``, ``2**32``, ``2**32``.
    n_out, count : int
        ``0 <= count <= n_out <= 2**24``. All units if ``count == n_out``, and none for 0.

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
    array([ 14,  17, 149, 179])
    """
    lane = check_below("layer", layer, 2**32)
    return _subset(seed, UNITS, step, lane, check_below("n_out", n_out, 2**24 + 1), count)


def draw_inputs(
    seed: Index, step: Index, layer: Index, unit: Index, n_in: Index, count: Index
) -> NDArray[np.int64]:
    """Draw `count` distinct inputs of a unit, as `draw_units` draws units.

    The stream has domain `INPUTS` (4) and lane ``2**20 layer + unit``.

    Parameters
    ----------
    seed, step, layer, unit : int
        Below ``2**64``, ``2**32``, ``2**12``, ``2**20``.
    n_in, count : int
        ``0 <= count <= n_in <= 2**24``. All inputs if ``count == n_in``, and none for 0.

    Returns
    -------
    int64 array, shape (count,), increasing

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer or out of range.

    Examples
    --------
    >>> draw_inputs(seed=0, step=0, layer=0, unit=14, n_in=784, count=3)
    array([268, 442, 514])
    >>> draw_inputs(0, 0, 0, 14, n_in=3, count=3)
    array([0, 1, 2])
    """
    lane = (check_below("layer", layer, 2**12) << 20) + check_below("unit", unit, 2**20)
    return _subset(seed, INPUTS, step, lane, check_below("n_in", n_in, 2**24 + 1), count)


def subset_reference(
    seed: int, domain: int, step: int, lane: int, n: int, count: int
) -> NDArray[np.int64]:
    """Floyd's algorithm (`draw_units`) in plain Python: `count` distinct numbers below n."""
    drawn = words_reference(seed, domain, step, 2 * count, lane, 0).reshape(-1, 2).tolist()
    taken: set[int] = set()
    for j, (high, low) in enumerate(drawn, start=n - count):
        t = ((high << 32 | low) * (j + 1)) >> 64
        taken.add(j if t in taken else t)
    return np.array(sorted(taken), np.int64)


# --- Which path runs; the count table in exact arithmetic; what the arguments may be


def _sparse_noise(
    seed: Index,
    step: Index,
    perturbations: NDArray[np.int64],
    size: Index,
    density: Share,
    blocks: Index | Iterable[int] | None,
) -> Entries:
    _, block_bits, table = noise_constants(density)
    seed, step = check_below("seed", seed, 2**64), check_below("step", step, 2**32)
    size = check_below("size", size, (1 << (32 + block_bits)) + 1)
    total = -(-size >> block_bits)
    if blocks is None:
        chosen = np.arange(total)
    else:
        listed = np.asarray(list(blocks) if np.iterable(blocks) else [blocks])
        chosen = np.unique(_numbers("blocks", listed, total))
    if not compiled():
        return sparse_noise_reference(seed, step, perturbations, chosen, size, block_bits, table)
    from minibit.kernels import noise as kernel

    drawn: Entries = kernel.sparse_noise(
        np.uint64(seed), step, perturbations, chosen, size, block_bits, table
    )
    return drawn


def _subset(
    seed: Index, domain: int, step: Index, lane: int, n: int, count: Index
) -> NDArray[np.int64]:
    seed, step = check_below("seed", seed, 2**64), check_below("step", step, 2**32)
    count = check_below("count", count, n + 1)
    if count == n:
        return np.arange(n)  # what Floyd's algorithm gives, too
    if not compiled():
        return subset_reference(seed, domain, step, lane, n, count)
    from minibit.kernels import noise as kernel

    drawn: NDArray[np.int64] = kernel.subset(np.uint64(seed), domain, step, lane, n, count)
    return drawn


@lru_cache(maxsize=4096)
def _count_table(numerator: int, block_bits: int) -> NDArray[np.uint64]:
    """Floor ``2**64 P(k <= j)`` exactly, for `noise_constants`.

    Every P lies between a lower and an upper bound in fixed point: of 256 bits, and if that leaves
    a floor open, of the ``32 B`` bits that hold each term without rounding.
    """
    block, p, q = 1 << block_bits, numerator, 2**32 - numerator
    table: list[int] = [0] * block if q == 0 else []
    for bits in (256, 32 * block) if p and q else ():
        low = high = q << (bits - 32)  # 1 - density
        for _ in range(block_bits):  # P(0) = (1 - density)**B by squaring
            low, high = low * low >> bits, -(-high * high >> bits)
        least, greatest, table = low, high, []  # P(k <= 0)
        for j in range(block):
            floor = least >> (bits - 64)
            if floor >= 2**64 - 1 or floor != greatest >> (bits - 64):
                break
            table.append(floor)
            up, down = (block - j) * p, (j + 1) * q  # P(j + 1) = P(j) up / down
            low, high = low * up // down, -(-high * up // down)
            least, greatest = least + low, greatest + high  # P(k <= j + 1)
        if floor >= 2**64 - 1 or len(table) == block:
            break
    out = np.array(table, np.uint64)
    out.flags.writeable = False
    return out


def _numerator(name: str, share: Any) -> int:
    """Turn a share in [0, 1] into its numerator over 2**32; an integer is the numerator."""
    if isinstance(share, float | np.floating | Fraction):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {share}")
        exact = share if isinstance(share, Fraction) else Fraction(float(share))
        return round(exact * 2**32)
    try:
        operator.index(share)
    except TypeError:
        raise TypeError(
            f"{name} must be a float, a Fraction or an integer numerator over 2**32, got {share!r}"
        ) from None
    return check_below(f"{name} (an integer is a numerator over 2**32)", share, 2**32 + 1)


def _numbers(name: str, values: ArrayLike, limit: int) -> NDArray[np.int64]:
    """Return a one-dimensional array of integers in [0, limit), checked."""
    given = np.asarray(values)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise TypeError(
            f"{name} must be one-dimensional integers, got shape {given.shape} of {given.dtype}"
        )
    if given.size and not 0 <= int(given.min()) <= int(given.max()) < limit:
        got = f"{given.min()} to {given.max()}"
        raise ValueError(f"{name} must lie in {interval(0, limit)}, got {got}")
    return given.astype(np.int64)
