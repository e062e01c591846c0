"""Steps applied to weights, in place, on integers alone: what a log's replay is made of.

All weights lie in one flat int8 array, layer after layer, so that a step costs what it moves and
not what the model weighs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minibit import noise
from minibit.base import integer, integer_array
from minibit.noise_step import (
    Params,
    Plan,
    SampledStep,
    UnitsStep,
    Update,
    initial_params,
    sparse_update,
)
from minibit.steps.codes import decode_sampled, decode_units, encode_sampled, encode_units

__all__ = [
    "advance",
    "as_params",
    "checked_plan",
    "checked_step",
    "initial_flat",
    "pack_steps",
    "rows_at",
    "unpack_steps",
]

Step: TypeAlias = SampledStep | UnitsStep
Flat: TypeAlias = NDArray[np.int8]  # (weights,)
WORD = 1 << 32
MOST_WEIGHTS = 1 << 28  # of a model: 0.27 GB as they are replayed, a byte each
MOST_INPUTS = 1 << 24  # of a layer that draws among them; also inputs that a step draws in all
MOST_DRAWS = 1 << 24  # entries of a step's perturbations, expected: about two seconds
AT_ONCE = 1 << 20  # of them that are held in memory


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
    plan: Plan, layer: int, rows: NDArray[np.int64], history: Iterable[tuple[Plan, int, Step]]
) -> NDArray[np.int8]:
    """Replay some rows of one layer, drawing no other layer's units and no block outside them.

    Returns int8 (rows, n_in), or (rows, *shape[1:]), for rows in any order, doubled or not.
    """
    shape = plan.shapes[layer] or (1,)  # a single weight is a row of its own
    n_out, n_in = shape[0], prod(shape[1:])
    start = sum(prod(before) for before in plan.shapes[:layer])
    kept, slot = np.unique(rows, return_inverse=True)
    index = np.full(n_out, -1)
    index[kept] = np.arange(kept.size)  # row -> its number among those kept
    first = noise.initial_codes(plan.seed, plan.shapes[layer], plan.zeros, layer=layer)
    weights = first.reshape(n_out, n_in)[kept]  # (kept, n_in)
    flat = weights.reshape(-1)
    for seeded, number, step in history:
        if isinstance(step, SampledStep):
            positions, moves = _moves_in(seeded, number, step, start + kept * n_in, n_in)
        else:
            layers = range(len(step.positions))
            alone = UnitsStep(
                tuple(step.positions[i][: None if i == layer else 0] for i in layers),
                tuple(step.signs[i][: None if i == layer else 0] for i in layers),
            )
            positions, moves = sparse_update(seeded, number, alone)
        row, column = np.divmod(positions - start, n_in)
        inside = (row >= 0) & (row < n_out)
        inside[inside] = index[row[inside]] >= 0
        moved = index[row[inside]] * n_in + column[inside]
        moved, owner = np.unique(moved, return_inverse=True)
        deltas = np.zeros(moved.size, np.int32)
        np.add.at(deltas, owner, moves[inside])
        flat[moved] = np.clip(flat[moved] + deltas, -1, 1)
    return weights[slot].reshape(-1, *shape[1:])


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


def draws(plan: Plan, step: Step) -> int:
    """Return about how many numbers a step draws: entries and noise blocks, or units and inputs."""
    if isinstance(step, SampledStep):
        kept = int(np.count_nonzero(step.codes))
        return -(-kept * plan.size * max(step.numerator, 1 << 16) >> 32)
    layers = zip(step.positions, plan.shapes, plan.units, plan.inputs, strict=True)
    return sum(u * (i if i < n_in else 1) for q, (_, n_in), u, i in layers if len(q))


def pack_steps(plan: Plan, steps: Sequence[Step]) -> bytes:
    """Code the steps of one record; sampled ones must share their numerator."""
    sampled = [step for step in steps if isinstance(step, SampledStep)]
    if plan.method == "sampled":
        return encode_sampled(sampled)
    return encode_units([step for step in steps if isinstance(step, UnitsStep)], candidates(plan))


def unpack_steps(plan: Plan, payload: bytes, count: int) -> list[Step]:
    """Read `pack_steps`; ValueError if the payload is no such code."""
    if plan.method == "sampled":
        return [_payable(plan, s) for s in decode_sampled(payload, count, plan.perturbations)]
    return [*decode_units(payload, count, candidates(plan))]


def candidates(plan: Plan) -> list[int]:
    """How many moves each layer chooses among in a step of method ``units``."""
    return [units * inputs for units, inputs in zip(plan.units, plan.inputs, strict=True)]


def checked_step(plan: Plan, step: Any) -> Step:
    """Return a step with int8 and int64 arrays, of the plan's method and in its ranges."""
    kind = SampledStep if plan.method == "sampled" else UnitsStep
    if not isinstance(step, kind):
        raise TypeError(
            f"a log of method {plan.method!r} takes {kind.__name__}, got {type(step).__name__}"
        )
    if isinstance(step, SampledStep):
        numerator = integer("numerator", step.numerator, 0, WORD - 1)
        codes = integer_array("codes", step.codes, -1, 1, ndim=1)
        if codes.size != plan.perturbations:
            raise ValueError(f"a step has {plan.perturbations} codes, got {codes.size}")
        return _payable(plan, SampledStep(numerator, codes.astype(np.int8)))
    layers = len(plan.shapes)
    if not len(step.positions) == len(step.signs) == layers:
        raise ValueError(
            f"a step has positions and signs of {layers} layers, "
            f"got {len(step.positions)} and {len(step.signs)}"
        )
    positions, signs = [], []
    for layer, size in enumerate(candidates(plan)):
        name = f"positions of layer {layer}"
        moves = integer_array(name, step.positions[layer], 0, size - 1, ndim=1)
        sign = integer_array(f"signs of layer {layer}", step.signs[layer], -1, 1, ndim=1)
        if (np.diff(moves) <= 0).any():
            raise ValueError(f"{name} must increase")
        if moves.size != sign.size or not sign.all():
            raise ValueError(
                f"layer {layer} needs one sign, -1 or +1, for each of its {moves.size} positions"
            )
        positions.append(moves)
        signs.append(sign.astype(np.int8))
    return UnitsStep(tuple(positions), tuple(signs))


def _payable(plan: Plan, step: SampledStep) -> SampledStep:
    """Return a step if its perturbations can be drawn in a moment."""
    if (count := draws(plan, step)) > MOST_DRAWS:
        raise ValueError(
            f"a step of {np.count_nonzero(step.codes)} perturbations of {plan.size} weights draws "
            f"{count} entries at density {step.numerator / WORD:.3g}; the most is 2**24"
        )
    return step


def checked_plan(fields: Any) -> Plan:
    """Read a plan from a header's JSON; ValueError for numbers that nothing can be drawn from."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"plan must be an object, got {type(fields).__name__}")
    try:
        plan = Plan.from_dict(fields)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"plan cannot be read: {type(error).__name__}: {error}") from None
    layers = len(plan.names)
    tame = all(len(shape) <= 8 and all(n > 0 for n in shape) for shape in plan.shapes)
    size = plan.size if tame else 0
    laws = {
        "method is 'sampled' or 'units'": plan.method in ("sampled", "units"),
        "names are distinct strings": all(isinstance(name, str) for name in plan.names)
        and layers == len(set(plan.names)),
        "there is a layer, and no more than 4096": 0 < layers <= 4096,
        "each name has a shape": layers == len(plan.shapes),
        "a shape has at most 8 sides, each of at least 1": tame,
        f"{size} weights take as many bytes; the most is 2**28": size <= MOST_WEIGHTS,
        "seed lies in [0, 2**64)": 0 <= plan.seed < 1 << 64,
        "zeros lie in [0, 2**32]": 0 <= plan.zeros <= WORD,
    }
    if plan.method == "sampled":
        laws["perturbations lie in [1, 2**32)"] = 0 < plan.perturbations < WORD
    else:
        flat = tame and all(len(shape) == 2 for shape in plan.shapes)
        layer = [*zip(plan.units, plan.inputs, plan.shapes if flat else (), strict=False)]
        drawn = sum(units * inputs for units, inputs, (_, n_in) in layer if inputs < n_in)
        laws |= {
            "shapes are (n_out, n_in), up to 2**20 and 2**24": flat
            and all(n_out <= 1 << 20 and n_in <= MOST_INPUTS for n_out, n_in in plan.shapes),
            "each layer has units and inputs": len(plan.units) == len(plan.inputs) == layers,
            "units and inputs lie within the shapes": all(
                0 <= units <= n_out and 0 <= inputs <= n_in
                for units, inputs, (n_out, n_in) in layer
            ),
            f"a step draws {drawn} inputs; the most is 2**24": drawn <= MOST_INPUTS,
        }
    for law, holds in laws.items():
        if not holds:
            raise ValueError(f"plan: {law}; got {dict(fields)!r:.300}")
    return plan
