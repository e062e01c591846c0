"""Sparse ternary noise, initial weights and candidate draws that every language reproduces.

All of it is a pure function of a seed and a Philox counter (`minibit.noise.philox`), in integers
alone: no logarithm, no float, no state. A perturbation of millions of weights is drawn block by
block, each block on its own, so any part of any perturbation of any step costs only itself. The
plain NumPy ``*_reference`` is the specification, and the kernel equals it bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.base import integer, integer_array, integers_up_to
from minibit.kernels import compiled
from minibit.noise.density import Share, noise_constants, numerator_of
from minibit.noise.philox import (
    INITIAL,
    NOISE,
    Index,
    Shape,
    check_shape,
    key_words,
    philox4x32,
    words,
)

__all__ = ["initial_codes", "sparse_noise", "sparse_noise_many"]

Entries = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]
AT_ONCE = 1 << 20  # words that are held in memory


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
    positions, signs : int64 array, increasing; int8 array of -1 and +1

    Examples
    --------
    >>> positions, signs = sparse_noise(0, step=3, perturbation=1, size=40_000, density=1e-4)
    >>> positions.tolist(), signs.tolist()
    ([3830, 14472, 17731, 25302], [-1, -1, -1, -1])
    """
    numbers = np.array([integer("perturbation", perturbation, 0, 2**32 - 1)])
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

    `perturbations` (P,) are their numbers, in any order; a number may be named twice. `seed`,
    `step`, `size`, `density` and `blocks` are those of `sparse_noise`. Returns int64 ``offsets``
    (P + 1,), positions and signs: perturbation ``perturbations[i]`` has the entries
    ``offsets[i]:offsets[i + 1]``.

    Examples
    --------
    >>> offsets, positions, signs = sparse_noise_many(0, 3, [0, 1], 40_000, 1e-4)
    >>> offsets
    array([0, 3, 7])
    """
    numbers = integer_array("perturbations", perturbations, 0, 2**32 - 1, ndim=1)
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
    """`sparse_noise_many` on some blocks (increasing), in plain NumPy."""
    pairs, most = perturbations.size * blocks.size, 1 << 16  # pairs at a time: bounded memory
    entries = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int8))]
    for first in range(0, pairs, most):
        owner, index = np.divmod(np.arange(first, min(first + most, pairs)), blocks.size)
        counter = np.empty((owner.size, 4), np.uint32)
        counter[:, 0], counter[:, 1] = blocks[index], NOISE << 24
        counter[:, 2], counter[:, 3] = perturbations[owner], step
        row, inside, sign = _draw_blocks(counter, key_words(seed), block_bits, table)
        entries.append((owner[row], (blocks[index[row]] << block_bits) + inside, sign))
    owner, position, sign = (np.concatenate(parts) for parts in zip(*entries, strict=True))
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

    `zeros` is a share or a numerator, as a density is; `seed` and `layer` lie below ``2**64`` and
    ``2**32``, and the shape has at most ``2**34`` weights.

    Examples
    --------
    >>> initial_codes(0, (2, 5), 0.7)
    array([[ 0,  0,  0,  1,  0],
           [ 0,  0,  0, -1,  1]], dtype=int8)
    """
    numerator = numerator_of("zeros", zeros)
    shape, count = check_shape(shape)
    lane, codes = integer("layer", layer, 0, 2**32 - 1), np.empty(count, np.int8)
    for start in range(0, count, AT_ONCE):
        part = codes[start : start + AT_ONCE]
        drawn = words(seed, INITIAL, 0, part.size, lane, start)
        part[:] = np.int8(1) - (drawn & 1).astype(np.int8) * np.int8(2)
        part[drawn < np.uint64(numerator)] = 0
    return codes.reshape(shape)


def _sparse_noise(
    seed: Index,
    step: Index,
    perturbations: NDArray[np.int64],
    size: Index,
    density: Share,
    blocks: Index | Iterable[int] | None,
) -> Entries:
    """Check the other arguments, and let the kernel or the reference draw."""
    _, block_bits, table = noise_constants(density)
    most = 1 << (32 + block_bits)
    seed, step, size = integers_up_to(
        ("seed", seed, 2**64 - 1), ("step", step, 2**32 - 1), ("size", size, most)
    )
    total = -(-size >> block_bits)
    if blocks is None:
        chosen = np.arange(total)
    else:
        listed = np.asarray(list(blocks) if np.iterable(blocks) else [blocks])
        chosen = np.unique(integer_array("blocks", listed, 0, total - 1, ndim=1))
    if not compiled():
        return sparse_noise_reference(seed, step, perturbations, chosen, size, block_bits, table)
    from minibit.kernels import noise as kernel

    drawn: Entries = kernel.sparse_noise(
        np.uint64(seed), step, perturbations, chosen, size, block_bits, table
    )
    return drawn
