"""The two methods of noise_step: what a step proposes, measures and keeps.

``sampled``, the paper's method. K perturbations v_i, each weight nonzero with probability `density`
and then +1 or -1; a_i = grad(L) . v_i; c_i = sign(a_i) where |a_i| (or its t score) reaches the
median over all i, else 0:

    w <- clamp(w - sum_i c_i v_i, -1, 1)

``units``. A few units of every layer are drawn; the weights into them (or a drawn part of these)
are candidates, and one *unit tangent* (`minibit.noise_step.unit_tangents`) serves a whole unit. The
share `rate` of the candidates with the best scores moves one step against its alignment; a move
that the clamp would cancel is never kept, so such a step never clamps.

`minibit.noise_step.step` is the step that uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer, number
from minibit.noise import LEVELS, uniform
from minibit.noise_step.alignments import Loss, Model, direction_sums_by_jvp, unit_sums_by_jvp
from minibit.noise_step.choices import keep_moves, keep_terns, t_score
from minibit.noise_step.perceptron import MLP
from minibit.noise_step.records import (
    Candidates,
    Directions,
    Plan,
    SampledStep,
    UnitsStep,
    draw_candidates,
    draw_directions,
)
from minibit.noise_step.unit_reference import Sums
from minibit.noise_step.unit_tangents import direction_sums, unit_sums

__all__ = ["Objective", "Sampled", "Schedule", "Units"]

Params = Mapping[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]
Batch = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # x, y, weight
Scores = tuple[NDArray[Any], ...]
Schedule = float | Callable[[int], float]


class Objective(NamedTuple):
    """The function whose loss is to fall, and how its tangents are computed."""

    model: Model
    loss: Loss | None
    threshold: float
    workers: int | None

    @property
    def fast(self) -> MLP | None:
        """The model if the fast path can run it (an MLP, default loss), else None."""
        return self.model if isinstance(self.model, MLP) and self.loss is None else None


@dataclass(frozen=True)
class Sampled:
    """Settings of the paper's method: sparse random perturbations of all weights.

    Attributes
    ----------
    perturbations : int
        Perturbations per step, K.
    density : float or function of the step
        Share of nonzeros in a perturbation, below 1.
    score : "absolute" or "t"
        What is ranked: |a|, or the t score (`minibit.noise_step.choices`).

    Raises
    ------
    ValueError
        If a setting is out of range; the message names it.

    Examples
    --------
    >>> Sampled(perturbations=64, score="t").plan({"w1": (10, 20)}, seed=0, zeros=0).size
    200
    """

    perturbations: int = 128
    density: Schedule = 6e-5
    score: Literal["absolute", "t"] = "absolute"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.score not in ("absolute", "t"):
            raise ValueError(f"score must be 'absolute' or 't', got {self.score!r}")
        if self.perturbations != int(self.perturbations) or self.perturbations < 1:
            raise ValueError(f"perturbations must be 1, 2, ..., got {self.perturbations}")

    def plan(self, shapes: Shapes, seed: int, zeros: int) -> Plan:
        """Return the plan of a run; `zeros` is the share of zeros times 2**32."""
        names, sides = tuple(shapes), tuple(shapes.values())
        return Plan("sampled", seed, names, sides, zeros, perturbations=int(self.perturbations))

    def propose(self, plan: Plan, step: int, density: float | None = None) -> Directions:
        """Draw the perturbations of a step; `density` overrides the schedule."""
        return draw_directions(plan, step, self._numerator(step, density))

    def measure(
        self, objective: Objective, params: Params, batch: Batch, drawn: Directions
    ) -> Sums:
        """Sum the alignments of all perturbations over the batch."""
        model, loss, threshold, workers = objective
        if objective.fast:
            return direction_sums(objective.fast, params, *batch, drawn, threshold, workers)
        return direction_sums_by_jvp(model, params, *batch, drawn, threshold, loss)

    def keep(
        self, plan: Plan, step: int, params: Params, drawn: Directions, sums: Sums
    ) -> tuple[SampledStep, Scores]:
        """Keep the perturbations whose score reaches the median, as one tern each."""
        a, squares = sums.alignments[0], sums.squares[0]  # (perturbations,)
        scores = t_score(a.astype(np.float64), squares) if self.score == "t" else np.abs(a)
        return SampledStep(drawn.numerator, keep_terns(a, squares, self.score)), (scores,)

    def _numerator(self, step: int, density: float | None) -> int:
        if density is None:
            density = self.density(step) if callable(self.density) else self.density
        numerator = round(number("density", density, "[0, 1]") * 2**32)
        if numerator == 2**32:
            raise ValueError(f"density must lie below 1, got {density}")
        return numerator


@dataclass(frozen=True)
class Units:
    """Settings of the method that moves single weights into a few drawn units.

    Attributes
    ----------
    units : int or one int per layer
        Units drawn per step. Layers with fewer units use them all.
    inputs : int or one int per layer, optional
        Inputs of a drawn unit that are candidates; all of them by default.
    rate : float or function of the step
        Share of a layer's candidates that move: of N candidates ``floor(rate N + u)``, u uniform
        in [0, 1), so with a rate below 1/N some steps move none.

    Raises
    ------
    TypeError, ValueError
        If a setting is out of range; the message names it.

    Examples
    --------
    >>> Units(units=4).plan({"w1": (10, 20), "w2": (3, 10)}, seed=0, zeros=0).units
    (4, 3)
    """

    units: int | Sequence[int] = 16
    inputs: int | Sequence[int] | None = None
    rate: Schedule = 0.004

    def plan(self, shapes: Shapes, seed: int, zeros: int) -> Plan:
        """Return the plan of a run; `zeros` is the share of zeros times 2**32."""
        names, sides = tuple(shapes), tuple(shapes.values())
        for name, shape in shapes.items():
            if len(shape) != 2:
                raise ValueError(
                    f"params[{name!r}] must be (n_out, n_in) for units, got shape {shape}"
                )
        units = _per_layer("units", self.units, [n_out for n_out, _ in sides])
        inputs = _per_layer("inputs", self.inputs, [n_in for _, n_in in sides])
        return Plan("units", seed, names, sides, zeros, units=units, inputs=inputs)

    def quotas(self, plan: Plan, step: int) -> list[int]:
        """Return how many moves each layer may keep at a step: ``floor(rate N + u)``."""
        value = self.rate(step) if callable(self.rate) else self.rate
        rate = number("rate", value, "[0, 1]")
        u = uniform(plan.seed, (len(plan.shapes),), domain=LEVELS, step=step)
        sizes = [n * i for n, i in zip(plan.units, plan.inputs, strict=True)]
        return [int(np.floor(rate * size + lot)) for size, lot in zip(sizes, u, strict=True)]

    def propose(self, plan: Plan, step: int) -> Candidates:
        """Draw the units of a step, and of each the inputs that are candidates."""
        return draw_candidates(plan, step)

    def measure(
        self, objective: Objective, params: Params, batch: Batch, drawn: Candidates
    ) -> Sums:
        """For each weight into a drawn unit, sum its alignment over the batch."""
        model, loss, threshold, workers = objective
        if objective.fast:
            return unit_sums(objective.fast, params, *batch, drawn.units, threshold, workers)
        return unit_sums_by_jvp(model, params, *batch, drawn.units, threshold, loss)

    def keep(
        self, plan: Plan, step: int, params: Params, drawn: Candidates, sums: Sums
    ) -> tuple[UnitsStep, Scores]:
        """Keep the best moves of each layer."""
        positions, signs, scores = [], [], []
        for layer, (w, quota) in enumerate(
            zip(params.values(), self.quotas(plan, step), strict=True)
        ):
            units, columns = drawn.units[layer], drawn.columns[layer]
            a: NDArray[Any] = sums.alignments[layer]  # (units, n_in)
            squares: NDArray[Any] = sums.squares[layer]
            weights: NDArray[Any] = w[units]
            if columns is not None:  # (units, inputs)
                a, squares, weights = (
                    np.take_along_axis(v, columns, axis=1) for v in (a, squares, weights)
                )
            kept, directions = keep_moves(a, squares, weights, quota)
            positions.append(kept)
            signs.append(directions)
            scores.append(t_score(np.asarray(a, np.float64), squares))
        return UnitsStep(tuple(positions), tuple(signs)), tuple(scores)


def _per_layer(
    name: str, value: int | Sequence[int] | None, most: Sequence[int]
) -> tuple[int, ...]:
    """Return one count per layer; a single number applies to all, cut to the layer's size."""
    if value is None:
        return tuple(most)
    if isinstance(value, float):
        raise TypeError(f"{name} must be an int or one int per layer, got {value}")
    if isinstance(value, int | np.integer):
        counts = tuple(min(int(value), n) for n in most)
    else:
        counts = tuple(integer(name, n) for n in value)
    if len(counts) != len(most) or any(not 1 <= c <= n for c, n in zip(counts, most, strict=True)):
        raise ValueError(f"{name} must be 1 to {tuple(most)}, one per layer, got {value}")
    return counts
