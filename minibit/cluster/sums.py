"""A step cut into parts: what a worker measures of its part, and how the client joins them.

``sampled`` is cut by *samples*: a batch has four chunks, over each of which a serial run sums, and
which it adds first to last. A worker has some chunks, and answers rounded sums of all perturbations
(`minibit.cluster.rounded`); with more than four workers it has a range of the perturbations, too.
Or it is cut by *perturbations*: a range for each worker, over the whole batch. Then a move belongs
to one worker; but half as many perturbations touch nearly as many units, which is what takes time.
``units`` is cut into ranges of the drawn units; a worker keeps the best moves of its own units, as
many as the whole layer may make, and the client the best of these.

Each sum over a chunk is computed by one worker in one fixed order, so the codes are those of a
serial run for every number of workers.

Where a worker is *alone*, it takes the median of its own range and answers codes, 1.6 bits a
perturbation: the variant of the manuscript with the least traffic, and with other codes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibit.cluster.messages import CODES, EXACT, ROUNDED, SUMS
from minibit.cluster.rounded import (
    Bounds,
    Known,
    pack_exact,
    pack_rounded,
    read_exact,
    read_rounded,
)
from minibit.noise import sparse_noise_many
from minibit.noise_step import (
    CHUNKS,
    Candidates,
    Directions,
    Params,
    Plan,
    Sampled,
    SampledStep,
    Units,
    UnitsStep,
    draw_candidates,
    keep_terns,
)
from minibit.ternary import pack_base3, unpack_base3

__all__ = [
    "Part", "decode", "draw_range", "encode", "items", "join", "known", "parts_of", "ranges",
]  # fmt: skip

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


class Part(NamedTuple):
    """A part of a step, for one worker, and the form in which it answers."""

    first: int  # of the perturbations, or of the drawn units of all layers laid end to end
    stop: int
    chunks: tuple[int, int]  # of the batch's four, the first and the stop
    form: int
    exact: tuple[int, ...] = ()  # perturbations of form EXACT


def parts_of(plan: Plan, workers: int, cut: str | None, alone: bool = False) -> list[Part]:
    """Cut a step for so many workers; by samples there may be fewer parts.

    Of 5 to 7 workers only four can have a chunk of their own: a further cut needs twice as many.

    Examples
    --------
    >>> plan = Plan("sampled", 0, ("w",), ((2, 3),), 0, perturbations=8)
    >>> [part[:3] for part in parts_of(plan, 2, "samples")]
    [(0, 8, (0, 2)), (0, 8, (2, 4))]
    >>> [part[:3] for part in parts_of(plan, 2, "perturbations")]
    [(0, 4, (0, 4)), (4, 8, (0, 4))]
    """
    if cut != "samples":
        form = CODES if alone else SUMS
        return [Part(*each, (0, CHUNKS), form) for each in ranges(plan, workers)]
    groups = min(workers, CHUNKS)
    edges = [group * CHUNKS // groups for group in range(groups + 1)]
    return [
        Part(*each, chunks, ROUNDED)
        for each in ranges(plan, workers // groups)
        for chunks in pairwise(edges)
    ]


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


def encode(method: Method, plan: Plan, params: Params, task: Any, drawn: Any, sums: Any) -> bytes:
    """Return the body of a worker's answer; `sums` are of the form that the task asks for."""
    if isinstance(method, Sampled):
        if task.form == ROUNDED:
            return pack_rounded(sums, method.score)
        if task.form == EXACT:
            return pack_exact(sums, method.score, [n - task.first for n in task.exact])
        alignments, squares = sums.alignments[0], sums.squares[0]  # (range,)
        if task.form == CODES:
            return pack_base3(keep_terns(alignments, squares, method.score)).tobytes()
        needed = [alignments, squares][: 2 if method.score == "t" else 1]
        return b"".join(np.asarray(a, "<f4").tobytes() for a in needed)
    record, scores = method.keep(plan, task.step, params, drawn, sums)
    parts = []
    for layer, (low, _) in enumerate(_layers(plan, task.first, task.stop)):
        kept = record.positions[layer]
        values = np.asarray(scores[layer], "<f8").ravel()[kept]
        parts += [_COUNT.pack(len(kept)), (kept + low * plan.inputs[layer]).astype("<u4").tobytes()]
        parts += [record.signs[layer].tobytes(), values.tobytes()]
    return b"".join(parts)


def join(
    method: Method, plan: Plan, step: int, numerator: int, bodies: Sequence[tuple[Part, bytes]]
) -> SampledStep | UnitsStep:
    """Decide a step from the answers of all its parts, in order, where none is rounded.

    Raises
    ------
    ValueError
        If a body is not as long as its part needs, or names what is not in it.
    """
    decoded = [decode(method, plan, *body) for body in bodies]
    if isinstance(method, Sampled):
        if bodies[0][0].form == CODES:
            return SampledStep(numerator, np.concatenate(decoded))
        alignments, squares = (np.concatenate(each) for each in zip(*decoded, strict=True))
        return SampledStep(numerator, keep_terns(alignments, squares, method.score))
    positions, signs = [], []
    for layer, quota in enumerate(method.quotas(plan, step)):
        q, sign, score = (
            np.concatenate([part[layer][field] for part in decoded]) for field in range(3)
        )
        best = np.lexsort((q, -score))[:quota]  # of equal scores the lowest candidate
        best = best[np.argsort(q[best])]
        positions.append(q[best])
        signs.append(sign[best])
    return UnitsStep(tuple(positions), tuple(signs))


def known(method: Sampled, bodies: Sequence[tuple[Part, bytes]]) -> Known:
    """Read the rounded sums of all parts of a step: what the client knows of it."""
    ranges: dict[int, list[list[Bounds]]] = {}  # by the first perturbation, groups of chunks
    for part, body in bodies:
        bounds = read_rounded(body, part.stop - part.first, method.score)
        ranges.setdefault(part.first, []).append(bounds)
    return Known([*ranges.values()], method.score)


def decode(method: Method, plan: Plan, part: Part, body: bytes) -> Any:
    """Read the answer to a part.

    Returns
    -------
    arrays
        Alignments and squares (without the t score ones in their place); codes; `Bounds`, or exact
        sums (chunks, perturbations), of each; or for each layer positions, signs and scores of the
        best moves.

    Raises
    ------
    ValueError
        If the body is not as long as its part needs, or names what is not in it.
    """
    if not isinstance(method, Sampled):
        return _units(plan, part.first, part.stop, body)
    count = part.stop - part.first
    if part.form == ROUNDED:
        return read_rounded(body, count, method.score)
    if part.form == EXACT:
        low, high = part.chunks
        return read_exact(body, high - low, len(part.exact), method.score)
    kinds = 2 if method.score == "t" else 1
    size = -(-count // 5) if part.form == CODES else 4 * kinds * count
    if len(body) != size:
        raise ValueError(f"{count} perturbations take {size} bytes, got {len(body)}")
    if part.form == CODES:
        return unpack_base3(np.frombuffer(body, np.uint8), count)
    sums = np.frombuffer(body, "<f4").astype(np.float32).reshape(kinds, count)
    return (*sums, np.ones(count, np.float32))[:2]


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
