"""Step records, and what they do to weights: the integers of a noise_step run.

A step leaves behind a few integers: one tern a perturbation (method ``sampled``), or which of the
drawn candidates moved and in which direction (method ``units``). The perturbations and candidates
themselves come back from the seed. This file turns records into weights; no float enters.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.noise import draw_inputs, draw_units, initial_codes, sparse_noise_many

__all__ = [
    "Plan",
    "SampledStep",
    "UnitsStep",
    "apply_update",
    "digest",
    "initial_params",
    "sparse_update",
]

Params = dict[str, NDArray[np.int8]]


@dataclass(frozen=True)
class SampledStep:
    """What a step of method ``sampled`` leaves behind: one tern a perturbation."""

    numerator: int  # density of the perturbations = numerator / 2**32
    codes: NDArray[np.int8]  # (perturbations,), in {-1, 0, 1}


@dataclass(frozen=True)
class UnitsStep:
    """What a step of method ``units`` leaves behind: the kept moves of every layer.

    Move ``m`` of a layer changes the weight of candidate ``positions[m]`` by ``signs[m]``;
    candidate ``q`` is input ``q % inputs`` of drawn unit ``q // inputs``.
    """

    positions: tuple[NDArray[np.int64], ...]  # one sorted array a layer
    signs: tuple[NDArray[np.int8], ...]  # -1 or +1


@dataclass(frozen=True)
class Plan:
    """The integers that turn step records back into weights."""

    method: str  # "sampled" or "units"
    seed: int
    names: tuple[str, ...]  # parameter names, in order
    shapes: tuple[tuple[int, ...], ...]  # of each; (n_out, n_in) for units
    zeros: int  # share of zeros in the initial weights = zeros / 2**32
    perturbations: int = 0  # sampled: codes a step
    units: tuple[int, ...] = ()  # units: how many are drawn, per layer
    inputs: tuple[int, ...] = ()  # units: how many inputs of each are candidates, per layer

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(math.prod(shape) for shape in self.shapes)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON types, NumPy's integers made plain."""
        return asdict(Plan.from_dict(asdict(self)))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from `to_dict`'s result (lists become tuples).

        Raises
        ------
        KeyError, TypeError
            If a field is missing, or is no integer (or list of them) where it must be.
        """
        if isinstance(fields["names"], str):
            raise TypeError(f"names must be a list of strings, got {fields['names']!r}")
        return cls(
            method=fields["method"],
            seed=_whole(fields["seed"]),
            names=tuple(fields["names"]),
            shapes=tuple(tuple(_whole(n) for n in shape) for shape in fields["shapes"]),
            zeros=_whole(fields["zeros"]),
            perturbations=_whole(fields.get("perturbations", 0)),
            units=tuple(_whole(n) for n in fields.get("units", ())),
            inputs=tuple(_whole(n) for n in fields.get("inputs", ())),
        )


def _whole(value: Any) -> int:
    """Return an integer as a plain one; 1.5, "1" and True are none."""
    if isinstance(value, bool):
        raise TypeError(f"{value} is no integer")
    return operator.index(value)


def initial_params(plan: Plan) -> Params:
    """Draw the weights from which the plan's steps start.

    Parameters
    ----------
    plan : Plan

    Returns
    -------
    dict of int8 arrays
        By name, in the plan's order: `minibit.noise.initial_codes` of each layer.

    Examples
    --------
    >>> initial_params(Plan("sampled", 0, ("w",), ((2, 3),), zeros=2**32))
    {'w': array([[0, 0, 0],
           [0, 0, 0]], dtype=int8)}
    """
    return {
        name: initial_codes(plan.seed, shape, plan.zeros, layer=layer)
        for layer, (name, shape) in enumerate(zip(plan.names, plan.shapes, strict=True))
    }


def sparse_update(
    plan: Plan, step: int, record: SampledStep | UnitsStep
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Turn a record into the sum of its moves.

    ``sampled``: ``- sum_i c_i v_i``; ``units``: the kept moves.

    Parameters
    ----------
    plan : Plan
    step : int
        Number of the step, from 0: it names the draws.
    record : SampledStep or UnitsStep

    Returns
    -------
    positions : int64 array, sorted and distinct
        Flat, over the layers laid end to end.
    deltas : int32 array
        What to add there, before the clamp; may be 0 where perturbations cancel.

    Examples
    --------
    >>> plan = Plan("units", 0, ("w",), ((2, 3),), zeros=0, units=(2,), inputs=(3,))
    >>> sparse_update(plan, 0, UnitsStep((np.array([1, 5]),), (np.array([-1, 1], np.int8),)))
    (array([1, 5]), array([-1,  1], dtype=int32))
    """
    if isinstance(record, SampledStep):
        kept = np.flatnonzero(record.codes)
        offsets, positions, signs = sparse_noise_many(
            plan.seed, step, kept, plan.size, record.numerator
        )
        codes = np.repeat(record.codes[kept], np.diff(offsets))  # (nonzeros,)
        moves = -codes.astype(np.int32) * signs  # w <- w - sum_i c_i v_i
    else:
        start, all_positions, all_signs = 0, [], []
        for layer, (n_out, n_in) in enumerate(plan.shapes):
            picked = record.positions[layer]
            if picked.size:
                count = plan.inputs[layer]
                units = draw_units(plan.seed, step, layer, n_out, plan.units[layer])
                unit = units[picked // count]
                if count == n_in:
                    column = picked % count
                else:
                    touched, row = np.unique(unit, return_inverse=True)
                    table = np.stack(
                        [draw_inputs(plan.seed, step, layer, int(u), n_in, count) for u in touched]
                    )
                    column = table[row, picked % count]
                all_positions.append(start + unit * n_in + column)
                all_signs.append(record.signs[layer])
            start += n_out * n_in
        positions = np.concatenate([np.empty(0, np.int64), *all_positions])
        moves = np.concatenate([np.empty(0, np.int8), *all_signs]).astype(np.int32)
    order = np.argsort(positions, kind="stable")
    positions, moves = positions[order], moves[order]
    first = np.flatnonzero(np.diff(positions, prepend=-1))
    deltas = np.add.reduceat(moves, first) if first.size else moves
    return positions[first], deltas.astype(np.int32)


def apply_update(
    params: Mapping[str, NDArray[np.int8]], positions: NDArray[np.int64], deltas: NDArray[np.int32]
) -> Params:
    """Return ``clamp(w + delta, -1, 1)``: summed first and clamped once, so order is no matter.

    Parameters
    ----------
    params : dict of int8 arrays
        Left as they are.
    positions, deltas : int64 and int32 arrays
        As `sparse_update` returns them.

    Returns
    -------
    dict of int8 arrays

    Raises
    ------
    ValueError
        If a position lies outside the weights.

    Examples
    --------
    >>> apply_update({"w": np.int8([[-1, 0, 1]])}, np.array([0, 2]), np.array([2, 1], np.int32))
    {'w': array([[1, 0, 1]], dtype=int8)}
    """
    size = sum(w.size for w in params.values())
    if positions.size and not 0 <= positions[0] <= positions[-1] < size:
        raise ValueError(f"positions must lie in [0, {size}), got {positions[[0, -1]].tolist()}")
    start, out = 0, {}
    for name, w in params.items():
        low, high = np.searchsorted(positions, (start, start + w.size))
        flat = w.reshape(-1).copy()
        where = positions[low:high] - start
        flat[where] = np.clip(flat[where] + deltas[low:high], -1, 1)
        out[name] = flat.reshape(w.shape)
        start += w.size
    return out


def digest(params: Mapping[str, NDArray[np.int8]]) -> str:
    """Return the SHA-256 of the weights: layers in order, int8, C order, ``(n_out, n_in)``.

    Parameters
    ----------
    params : dict of int8 arrays

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    TypeError
        If an array is not int8.

    Examples
    --------
    >>> digest({"w": np.int8([[1, 0]])})[:16]
    '47dc540c94ceb704'
    """
    for name, w in params.items():
        if w.dtype != np.int8:
            raise TypeError(f"params[{name!r}] must be int8 codes, got {w.dtype}")
    sha = hashlib.sha256()
    for w in params.values():
        sha.update(np.ascontiguousarray(w, dtype=np.int8).tobytes())
    return sha.hexdigest()
