"""The choice of a step, and the moves that it makes: the integers of a noise_step run.

A step's *choice* is a few integers: one tern per perturbation (method ``sampled``), or which of the
drawn candidates move and in which direction (method ``units``). Perturbations and candidates come
back from the seed. This file draws them, and turns choices into weights; no float enters.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer
from minibit.noise import (
    draw_units,
    initial_codes,
    inputs_of_units,
    sparse_noise_many,
    units_of_layers,
)

__all__ = [
    "Candidates",
    "Directions",
    "Plan",
    "SampledStep",
    "UnitsStep",
    "Update",
    "apply_update",
    "digest",
    "draw_candidates",
    "draw_directions",
    "initial_params",
    "sparse_update",
]

Params = dict[str, NDArray[np.int8]]


@dataclass(frozen=True)
class SampledStep:
    """The choice of a step of method ``sampled``: one tern per perturbation."""

    numerator: int  # density of the perturbations = numerator / 2**32
    codes: NDArray[np.int8]  # (perturbations,), in {-1, 0, 1}


@dataclass(frozen=True)
class UnitsStep:
    """The choice of a step of method ``units``: the kept moves of every layer.

    Move ``m`` of a layer changes the weight of candidate ``positions[m]`` by ``signs[m]``;
    candidate ``q`` is input ``q % inputs`` of drawn unit ``q // inputs``.
    """

    positions: tuple[NDArray[np.int64], ...]  # one sorted array per layer
    signs: tuple[NDArray[np.int8], ...]  # -1 or +1


@dataclass(frozen=True)
class Plan:
    """The integers that turn the choices of steps back into weights."""

    method: str  # "sampled" or "units"
    seed: int
    names: tuple[str, ...]  # parameter names, in order
    shapes: tuple[tuple[int, ...], ...]  # of each; (n_out, n_in) for units
    zeros: int  # share of zeros in the initial weights = zeros / 2**32
    perturbations: int = 0  # sampled: codes per step
    units: tuple[int, ...] = ()  # units: how many are drawn, per layer
    inputs: tuple[int, ...] = ()  # units: how many inputs of each are candidates, per layer

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(math.prod(shape) for shape in self.shapes)

    def differences(self, other: Plan) -> str:
        """Name the fields in which two plans differ, and both values, for an error."""
        pairs = zip(self.to_dict().items(), other.to_dict().values(), strict=True)
        return "; ".join(f"{name} {a!r:.80} and {b!r:.80}" for (name, a), b in pairs if a != b)

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
            seed=integer("seed", fields["seed"], None),
            names=tuple(fields["names"]),
            shapes=tuple(
                tuple(integer("shapes", n, None) for n in shape) for shape in fields["shapes"]
            ),
            zeros=integer("zeros", fields["zeros"], None),
            perturbations=integer("perturbations", fields.get("perturbations", 0), None),
            units=tuple(integer("units", n, None) for n in fields.get("units", ())),
            inputs=tuple(integer("inputs", n, None) for n in fields.get("inputs", ())),
        )


class Directions(NamedTuple):
    """The perturbations of a ``sampled`` step, over the layers laid end to end.

    Perturbation p has the entries ``offsets[p]`` to ``offsets[p + 1]``: ``signs`` at ``positions``.
    """

    offsets: NDArray[np.int64]  # (perturbations + 1,)
    positions: NDArray[np.int64]  # (nonzeros,)
    signs: NDArray[np.int8]  # (nonzeros,)
    numerator: int = 0  # their density is numerator / 2**32


class Candidates(NamedTuple):
    """The candidates of a ``units`` step, layer by layer."""

    units: tuple[NDArray[np.int64], ...]  # (units,) drawn, increasing
    columns: tuple[NDArray[np.int64] | None, ...]  # (units, inputs); None where it is all inputs


class Update(NamedTuple):
    """The sum of a step's moves, over the layers laid end to end, before the clamp."""

    positions: NDArray[np.int64]  # (moved,), increasing
    deltas: NDArray[np.int32]  # (moved,)


def initial_params(plan: Plan) -> Params:
    """Draw the weights from which the plan's steps start: `minibit.noise.initial_codes` by name.

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


def draw_directions(plan: Plan, step: int, numerator: int) -> Directions:
    """Draw the perturbations of a ``sampled`` step, of density ``numerator / 2**32``."""
    numbers = np.arange(plan.perturbations)
    noise = sparse_noise_many(plan.seed, step, numbers, plan.size, numerator)
    return Directions(*noise, numerator)


def draw_candidates(plan: Plan, step: int) -> Candidates:
    """Draw the candidates of a ``units`` step: some units of each layer, some inputs of each."""
    layers = [(layer, shape[0], plan.units[layer]) for layer, shape in enumerate(plan.shapes)]
    units = units_of_layers(plan.seed, step, layers)
    columns = [
        _inputs(plan, step, layer, units[layer]) if plan.inputs[layer] < n_in else None
        for layer, (_, n_in) in enumerate(plan.shapes)
    ]
    return Candidates(tuple(units), tuple(columns))


def _inputs(plan: Plan, step: int, layer: int, units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw the inputs of some units that are candidates: (units, inputs)."""
    n_in, count = plan.shapes[layer][1], plan.inputs[layer]
    return inputs_of_units(plan.seed, step, layer, units.tolist(), n_in, count)


def sparse_update(
    plan: Plan,
    step: int,
    choice: SampledStep | UnitsStep,
    drawn: Directions | Candidates | None = None,
) -> Update:
    """Turn a step's choice into the sum of its moves.

    ``sampled``: ``- sum_i c_i v_i``; ``units``: the kept moves.

    Steps count from 0, and their numbers name the draws of the `plan`; `drawn` are all draws of
    the step, where the caller has them, else those that the step chose are drawn again. Positions
    are sorted and distinct; deltas may be 0 where perturbations cancel.

    Examples
    --------
    >>> plan = Plan("units", 0, ("w",), ((2, 3),), zeros=0, units=(2,), inputs=(3,))
    >>> positions, deltas = sparse_update(
    ...     plan, 0, UnitsStep((np.array([1, 5]),), (np.array([-1, 1], np.int8),))
    ... )
    >>> positions, deltas
    (array([1, 5]), array([-1,  1], dtype=int32))
    """
    if isinstance(choice, SampledStep):
        positions, moves = _sampled_moves(plan, step, choice, drawn)
    else:
        positions, moves = _units_moves(plan, step, choice, drawn)
    order = np.argsort(positions, kind="stable")
    positions, moves = positions[order], moves[order]
    first = np.flatnonzero(np.diff(positions, prepend=-1))
    deltas = np.add.reduceat(moves, first) if first.size else moves
    return Update(positions[first], deltas.astype(np.int32))


def _sampled_moves(
    plan: Plan, step: int, choice: SampledStep, drawn: Any
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the entries of ``- c_i v_i`` of all kept perturbations, (nonzeros,) each."""
    kept = np.flatnonzero(choice.codes)
    if drawn is None:
        noise = sparse_noise_many(plan.seed, step, kept, plan.size, choice.numerator)
        offsets, positions, signs = noise
        codes = choice.codes[kept]
    else:
        (offsets, positions, signs, _), codes = drawn, choice.codes
    code = np.repeat(codes, np.diff(offsets)).astype(np.int32)  # (nonzeros,)
    inside = code != 0
    return positions[inside], -code[inside] * signs[inside]  # w <- w - sum_i c_i v_i


def _units_moves(
    plan: Plan, step: int, choice: UnitsStep, drawn: Any
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return where the kept moves of all layers lie, and their signs, (moves,) each."""
    start, positions, signs = 0, [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for layer, (n_out, n_in) in enumerate(plan.shapes):
        if choice.positions[layer].size:
            row, column = np.divmod(choice.positions[layer], plan.inputs[layer])
            if drawn is not None:
                units, columns = drawn.units[layer], drawn.columns[layer]
            else:
                units = draw_units(plan.seed, step, layer, n_out, plan.units[layer])
                columns = None
            if columns is None and plan.inputs[layer] < n_in:  # only touched units draw inputs
                touched, row = np.unique(row, return_inverse=True)
                units = units[touched]
                columns = _inputs(plan, step, layer, units)
            column = column if columns is None else columns[row, column]
            positions.append(start + units[row] * n_in + column)
            signs.append(choice.signs[layer].astype(np.int32))
        start += n_out * n_in
    return np.concatenate(positions), np.concatenate(signs)


def apply_update(
    params: Mapping[str, NDArray[np.int8]], positions: NDArray[np.int64], deltas: NDArray[np.int32]
) -> Params:
    """Return ``clamp(w + delta, -1, 1)``: summed first, clamped once, so order does not matter.

    `positions` and `deltas` are those of `sparse_update`; `params` stay as they are. A position
    outside the weights is a ValueError.

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
    """Return the SHA-256 of the weights `params`, in hexadecimal.

    Layers come in order, int8 (else a TypeError), C order, ``(n_out, n_in)``.

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
