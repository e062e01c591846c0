"""A step cut into ranges: what a worker measures of its range, and how the client joins them.

``sampled``: a range of perturbations; the sums of alignments and of their squares are joined end to
end, and the median is taken over all of them. ``units``: a range of the drawn units; a worker keeps
the best moves of its own units, as many as the whole layer may make, and the client the best of
these. Each alignment is computed by one worker in one fixed order, so the codes are those of a
serial run for every number of workers.

Where a worker is *alone*, it takes the median of its own range and answers codes, 1.6 bits a
perturbation: the variant of the manuscript with the least traffic, and with other codes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.noise import sparse_noise_many
from minibit.noise_step import (
    Candidates,
    Directions,
    Params,
    Plan,
    Sampled,
    SampledStep,
    Sums,
    Units,
    UnitsStep,
    draw_candidates,
    keep_terns,
)
from minibit.ternary import pack_base3, unpack_base3

__all__ = ["decode", "draw_range", "encode", "items", "join", "ranges"]

_COUNT = struct.Struct("<I")
Method = Sampled | Units


def items(plan: Plan) -> int:
    """Return how many perturbations, or drawn units, a step has."""
    return plan.perturbations if plan.method == "sampled" else sum(plan.units)


def ranges(plan: Plan, parts: int) -> list[tuple[int, int]]:
    """Cut a step's items into that many ranges (fewer, if there are not as many), evenly.

    Examples
    --------
    >>> ranges(Plan("sampled", 0, ("w",), ((2, 3),), 0, perturbations=7), 3)
    [(0, 2), (2, 4), (4, 7)]
    """
    count = items(plan)
    parts = min(parts, count)
    return [*pairwise(part * count // parts for part in range(parts + 1))]


def draw_range(plan: Plan, step: int, numerator: int, first: int, stop: int) -> Any:
    """Draw a range of a step's perturbations, or units; their numbers are those of the whole."""
    if plan.method == "sampled":
        numbers = np.arange(first, stop)
        noise = sparse_noise_many(plan.seed, step, numbers, plan.size, numerator)
        return Directions(*noise, numerator)
    whole = draw_candidates(plan, step)
    units, columns = [], []
    for drawn, chosen, (low, high) in zip(*whole, _layers(plan, first, stop), strict=True):
        units.append(drawn[low:high])
        columns.append(None if chosen is None else chosen[low:high])
    return Candidates(tuple(units), tuple(columns))


def _layers(plan: Plan, first: int, stop: int) -> list[tuple[int, int]]:
    """Cut a range of all drawn units into one range a layer, counted from the layer's first."""
    starts = [0, *accumulate(plan.units)]
    return [
        (min(max(first - start, 0), units), min(max(stop - start, 0), units))
        for start, units in zip(starts, plan.units, strict=False)
    ]


def encode(method: Method, plan: Plan, params: Params, task: Any, drawn: Any, sums: Sums) -> bytes:
    """Return what a worker answers of its range."""
    if isinstance(method, Sampled):
        alignments, squares = sums.alignments[0], sums.squares[0]  # (range,)
        if task.alone:
            return pack_base3(keep_terns(alignments, squares, method.score)).tobytes()
        return b"".join(np.asarray(a, "<f4").tobytes() for a in (alignments, squares))
    record, scores = method.keep(plan, task.step, params, drawn, sums)
    parts = []
    for layer, (low, _) in enumerate(_layers(plan, task.first, task.stop)):
        kept = record.positions[layer]
        values = np.asarray(scores[layer], "<f8").ravel()[kept]
        parts += [_COUNT.pack(len(kept)), (kept + low * plan.inputs[layer]).astype("<u4").tobytes()]
        parts += [record.signs[layer].tobytes(), values.tobytes()]
    return b"".join(parts)


def join(
    method: Method,
    plan: Plan,
    step: int,
    numerator: int,
    bodies: Sequence[tuple[int, int, bytes]],
    alone: bool,
) -> SampledStep | UnitsStep:
    """Decide a step from the answers ``(first, stop, body)`` of all its ranges, in order.

    Raises
    ------
    ValueError
        If a body is not as long as its range needs, or names what is not in it.
    """
    if isinstance(method, Sampled):
        parts = [decode(plan, *body, alone) for body in bodies]
        if alone:
            return SampledStep(numerator, np.concatenate([codes for codes, _ in parts]))
        alignments, squares = (np.concatenate(each) for each in zip(*parts, strict=True))
        return SampledStep(numerator, keep_terns(alignments, squares, method.score))
    layers = [decode(plan, *body) for body in bodies]
    positions, signs = [], []
    for layer, quota in enumerate(method.quotas(plan, step)):
        q, sign, score = (
            np.concatenate([part[layer][field] for part in layers]) for field in range(3)
        )
        best = np.lexsort((q, -score))[:quota]  # of equal scores the lowest candidate
        best = best[np.argsort(q[best])]
        positions.append(q[best])
        signs.append(sign[best])
    return UnitsStep(tuple(positions), tuple(signs))


def decode(plan: Plan, first: int, stop: int, body: bytes, alone: bool = False) -> Any:
    """Read what a worker answered of a range.

    Returns
    -------
    two arrays, or one list of three arrays per layer
        Alignments and squares (of a worker that is alone: its codes, twice); or positions, signs
        and scores of the best moves of each layer.

    Raises
    ------
    ValueError
        If the body is not as long as its range needs, or names what is not in it.
    """
    if plan.method == "sampled":
        return _sampled(first, stop, body, alone)
    return _units(plan, first, stop, body)


def _sampled(first: int, stop: int, body: bytes, alone: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read the sums of a range of perturbations, or its codes twice."""
    count = stop - first
    size = -(-count // 5) if alone else 8 * count
    if len(body) != size:
        raise ValueError(f"{count} perturbations take {size} bytes, got {len(body)}")
    if alone:
        codes = unpack_base3(np.frombuffer(body, np.uint8), count)
        return codes, codes
    both = np.frombuffer(body, "<f4").astype(np.float32)
    return both[:count], both[count:]


def _units(plan: Plan, first: int, stop: int, body: bytes) -> list[tuple[NDArray[Any], ...]]:
    """Read the best moves of a range of units: positions, signs and scores of each layer."""
    at = 0
    layers: list[tuple[NDArray[Any], ...]] = []
    for layer, (low, high) in enumerate(_layers(plan, first, stop)):
        inputs = plan.inputs[layer]
        if at + _COUNT.size > len(body):
            raise ValueError(f"moves end within layer {layer}")
        (count,) = _COUNT.unpack_from(body, at)
        at += _COUNT.size
        if count > (high - low) * inputs or at + 13 * count > len(body):
            raise ValueError(f"layer {layer} cannot have {count} moves in {len(body) - at} bytes")
        positions = np.frombuffer(body, "<u4", count, at).astype(np.int64)
        signs = np.frombuffer(body, np.int8, count, at + 4 * count)
        scores = np.frombuffer(body, "<f8", count, at + 5 * count).astype(np.float64)
        inside = (low * inputs <= positions) & (positions < high * inputs)
        if not inside.all() or (np.diff(positions) <= 0).any() or (np.abs(signs) != 1).any():
            raise ValueError(f"layer {layer} names moves that its range does not have")
        layers.append((positions, signs, scores))
        at += 13 * count
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes follow the last move")
    return layers
