"""Draws of candidates: distinct units of a layer, and distinct inputs of a unit.

Floyd's algorithm takes ``count`` draws for ``count`` of n numbers, whatever n is, and gives every
subset the same chance:

    for j = n - count, ..., n - 1:   t = floor(u (j + 1) / 2**64);   take t, or j if t is taken
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from minibit.base import integers_up_to
from minibit.kernels import compiled
from minibit.noise.philox import INPUTS, UNITS, Index, words_reference

__all__ = ["draw_inputs", "draw_units", "inputs_of_units", "subset_reference", "units_of_layers"]


def draw_units(
    seed: Index, step: Index, layer: Index, n_out: Index, count: Index
) -> NDArray[np.int64]:
    """Draw `count` distinct units of a layer, every subset equally likely (Floyd's algorithm).

    For ``i = 0, ..., count - 1``: with ``j = n_out - count + i`` and the 64-bit draw
    ``u = 2**32 w[2i] + w[2i+1]`` of the stream of domain `UNITS` (3), lane `layer`, let
    ``t = floor(u (j + 1) / 2**64)``; take t, or j if t is taken. Then sort.

    `seed`, `step` and `layer` lie below ``2**64``, ``2**32``, ``2**32``, and
    ``0 <= count <= n_out <= 2**24``: all units if ``count == n_out``, and none for 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer or out of range.

    Examples
    --------
    >>> draw_units(seed=0, step=0, layer=0, n_out=256, count=4)
    array([ 14,  17, 149, 179])
    """
    return units_of_layers(seed, step, [(layer, n_out, count)])[0]


def units_of_layers(
    seed: Index, step: Index, layers: Sequence[tuple[Index, Index, Index]]
) -> list[NDArray[np.int64]]:
    """Draw the units of several layers ``(layer, n_out, count)`` at once, as `draw_units` does."""
    seed, step, *numbers = integers_up_to(
        ("seed", seed, 2**64 - 1),
        ("step", step, 2**32 - 1),
        *(("layer", layer, 2**32 - 1) for layer, _, _ in layers),
        *(("n_out", n_out, 2**24) for _, n_out, _ in layers),
        *(("count", count, n_out) for _, n_out, count in layers),
    )
    lanes, sizes, counts = np.array(numbers, np.int64).reshape(3, len(layers))
    return _subsets(seed, UNITS, step, lanes, sizes, counts)


def draw_inputs(
    seed: Index, step: Index, layer: Index, unit: Index, n_in: Index, count: Index
) -> NDArray[np.int64]:
    """Draw `count` distinct inputs of a unit, as `draw_units` draws units.

    The stream of `seed` and `step` has domain `INPUTS` (4) and lane ``2**20 layer + unit``, of a
    layer below ``2**12`` and a unit below ``2**20``; n_in is at most ``2**24``.

    Examples
    --------
    >>> draw_inputs(seed=0, step=0, layer=0, unit=14, n_in=784, count=3)
    array([268, 442, 514])
    >>> draw_inputs(0, 0, 0, 14, n_in=3, count=3)
    array([0, 1, 2])
    """
    row: NDArray[np.int64] = inputs_of_units(seed, step, layer, [unit], n_in, count)[0]
    return row


def inputs_of_units(
    seed: Index, step: Index, layer: Index, units: Sequence[Index], n_in: Index, count: Index
) -> NDArray[np.int64]:
    """Draw the inputs of several units at once, (units, count), as `draw_inputs` does."""
    seed, step, layer, n_in, count, *numbers = integers_up_to(
        ("seed", seed, 2**64 - 1),
        ("step", step, 2**32 - 1),
        ("layer", layer, 2**12 - 1),
        ("n_in", n_in, 2**24),
        ("count", count, n_in),
        *(("unit", unit, 2**20 - 1) for unit in units),
    )
    lanes = (layer << 20) + np.array(numbers, np.int64)
    sizes, counts = np.full_like(lanes, n_in), np.full_like(lanes, count)
    rows = _subsets(seed, INPUTS, step, lanes, sizes, counts)
    return np.array(rows, np.int64).reshape(len(units), count)


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


def _subsets(
    seed: int,
    domain: int,
    step: int,
    lanes: NDArray[np.int64],
    sizes: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> list[NDArray[np.int64]]:
    """Draw a subset of each lane, by the kernel or by the reference."""
    if not compiled():
        return [
            subset_reference(seed, domain, step, *map(int, numbers))
            for numbers in zip(lanes, sizes, counts, strict=True)
        ]
    from minibit.kernels import noise as kernel

    drawn = kernel.subsets(np.uint64(seed), domain, step, lanes, sizes, counts)
    return np.split(drawn, np.cumsum(counts)[:-1])
