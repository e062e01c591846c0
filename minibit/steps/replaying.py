"""Steps applied to weights, in place, on integers alone: what a log's replay is made of.

All weights lie in one flat int8 array, layer after layer, so that a step costs what it moves and
not what the model weighs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from minibit import noise
from minibit.noise_step import (
    Params,
    Plan,
    SampledStep,
    UnitsStep,
    Update,
    initial_params,
    sparse_update,
)
from minibit.steps.bounds import Step, draws

__all__ = ["advance", "as_params", "initial_flat", "rows_along", "rows_at"]

Flat: TypeAlias = NDArray[np.int8]  # (weights,)
AT_ONCE = 1 << 20  # entries of a step's perturbations that are held in memory


def initial_flat(plan: Plan) -> Flat:
    """All initial weights, layer after layer."""
    layers = [w.reshape(-1) for w in initial_params(plan).values()]
    return layers[0] if len(layers) == 1 else np.concatenate(layers)


def as_params(plan: Plan, flat: Flat) -> Params:
    """Name the layers of a flat array; they are views of it."""
    stops = np.cumsum([prod(shape) for shape in plan.shapes])[:-1]
    layers = np.split(flat, stops)
    return {
        name: layer.reshape(shape)
        for name, layer, shape in zip(plan.names, layers, plan.shapes, strict=True)
    }


def advance(flat: Flat, plan: Plan, number: int, step: Step, update: Update | None = None) -> None:
    """Apply step `number` to the flat weights: ``w <- clamp(w + delta, -1, 1)``, in place.

    `update` is what ``sparse_update(plan, number, step)`` gives, where the caller has it.
    """
    count = draws(plan, step) if update is None else 1
    if isinstance(step, SampledStep) and count > AT_ONCE:
        return _advance_in_parts(flat, plan, number, step)
    if count:
        positions, deltas = update or sparse_update(plan, number, step)
        flat[positions] = np.clip(flat[positions] + deltas, -1, 1)


def _advance_in_parts(flat: Flat, plan: Plan, number: int, step: SampledStep) -> None:
    """Apply a step of dense perturbations: some weights and some perturbations at a time."""
    for start in range(0, plan.size, AT_ONCE):  # whole noise blocks
        part = flat[start : start + AT_ONCE]
        deltas = np.zeros(part.size, np.int32)
        kept = np.flatnonzero(step.codes)
        groups = -(-draws(replace(plan, shapes=(part.shape,)), step) // AT_ONCE)
        for group in np.array_split(kept, groups):
            codes = np.zeros_like(step.codes)
            codes[group] = step.codes[group]
            some = SampledStep(step.numerator, codes)
            positions, moves = _moves_in(plan, number, some, np.array([start]), part.size)
            np.add.at(deltas, positions - start, moves)
        part[:] = np.clip(part + deltas, -1, 1)


def rows_at(
    plan: Plan,
    layer: int,
    rows: NDArray[np.int64],
    history: Iterable[tuple[Plan, int, Step]],
    start: Flat | None = None,
) -> NDArray[np.int8]:
    """Replay some rows of one layer, drawing no other layer's units and no block outside them.

    Returns int8 (rows, n_in), or (rows, *shape[1:]), for rows in any order, doubled or not. `start`
    are all weights before the history, the seed's by default.
    """
    kept, slot = np.unique(rows, return_inverse=True)
    for weights in rows_along(plan, layer, kept, history, start):
        last = weights
    return last[slot].reshape(-1, *plan.shapes[layer][1:])


def rows_along(
    plan: Plan,
    layer: int,
    rows: NDArray[np.int64],
    history: Iterable[tuple[Plan, int, Step]],
    start: Flat | None = None,
) -> Iterator[NDArray[np.int8]]:
    """Yield increasing rows of one layer, (rows, n_in), after 0, 1, ... steps: one array."""
    shape = plan.shapes[layer] or (1,)  # a single weight is a row of its own
    n_out, n_in = shape[0], prod(shape[1:])
    offset = sum(prod(before) for before in plan.shapes[:layer])
    index = np.full(n_out, -1)
    index[rows] = np.arange(rows.size)  # row -> its number among those kept
    if start is None:
        first = noise.initial_codes(plan.seed, plan.shapes[layer], plan.zeros, layer=layer)
    else:
        first = start[offset : offset + n_out * n_in]
    weights = first.reshape(n_out, n_in)[rows]  # (rows, n_in)
    flat = weights.reshape(-1)
    yield weights
    for seeded, number, step in history:
        if isinstance(step, SampledStep):
            positions, moves = _moves_in(seeded, number, step, offset + rows * n_in, n_in)
        else:
            layers = range(len(step.positions))
            alone = UnitsStep(
                tuple(step.positions[i][: None if i == layer else 0] for i in layers),
                tuple(step.signs[i][: None if i == layer else 0] for i in layers),
            )
            positions, moves = sparse_update(seeded, number, alone)
        row, column = np.divmod(positions - offset, n_in)
        inside = (row >= 0) & (row < n_out)
        inside[inside] = index[row[inside]] >= 0
        moved = index[row[inside]] * n_in + column[inside]
        moved, owner = np.unique(moved, return_inverse=True)
        deltas = np.zeros(moved.size, np.int32)
        np.add.at(deltas, owner, moves[inside])
        flat[moved] = np.clip(flat[moved] + deltas, -1, 1)
        yield weights


def _moves_in(
    plan: Plan, number: int, step: SampledStep, starts: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Draw a sampled step's moves in the noise blocks that meet ``[start, start + length)``."""
    _, block_bits, _ = noise.noise_constants(step.numerator)
    low, high = starts >> block_bits, (starts + length - 1) >> block_bits
    span = np.arange(int((high - low).max(initial=0)) + 1)
    blocks = low[:, None] + span  # (rows, most blocks of a row)
    blocks = np.unique(blocks[blocks <= high[:, None]])
    kept = np.flatnonzero(step.codes)
    offsets, positions, signs = noise.sparse_noise_many(
        plan.seed, number, kept, plan.size, step.numerator, blocks
    )
    codes = np.repeat(step.codes[kept], np.diff(offsets))  # (nonzeros,)
    return positions, -codes.astype(np.int32) * signs  # w <- w - sum_i c_i v_i
