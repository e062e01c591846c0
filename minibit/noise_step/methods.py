"""The two methods of noise_step: what a step proposes, measures and keeps.

``sampled``, the paper's method. K perturbations v_i, each weight nonzero with probability `density`
and then +1 or -1; a_i = grad(L) . v_i; c_i = sign(a_i) where |a_i| (or its t score) reaches the
median over all i, else 0:

    w <- clamp(w - sum_i c_i v_i, -1, 1)

``units``. A few units of every layer are drawn; the weights into them (or a drawn part of these)
are candidates, and one *unit tangent* (`minibit.noise_step.unit_tangents`) serves a whole unit. The
share `rate` of the candidates with the best scores moves one step against its alignment; a move
that the clamp would cancel is never kept, so such a step never clamps.

With per-sample alignments a_b, the t score is |sum_b a_b| / sqrt(sum_b a_b^2), which ranks like the
t-statistic |mean| / std.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer, largest, number
from minibit.noise import LEVELS, uniform
from minibit.noise_step.alignments import Loss, Model, direction_sums_by_jvp, unit_sums_by_jvp
from minibit.noise_step.moves import (
    Candidates,
    Directions,
    Plan,
    SampledStep,
    UnitsStep,
    draw_candidates,
    draw_directions,
)
from minibit.noise_step.perceptron import MLP
from minibit.noise_step.unit_reference import ChunkSums, Sums
from minibit.noise_step.unit_tangents import direction_chunks, direction_sums, unit_sums

__all__ = ["Objective", "Sampled", "Units", "geometric", "keep_moves", "keep_terns"]

Params = Mapping[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]
Samples = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # x, y, weight
Scores = tuple[NDArray[Any], ...]
Schedule = float | Callable[[int], float]


class Objective(NamedTuple):
    """The function whose loss is to fall, and how its tangents are computed."""

    model: Model
    loss: Loss | None
    threshold: float
    threads: int | None

    def sums(self, fast: Callable[..., Sums], slow: Callable[..., Sums], *arguments: Any) -> Sums:
        """Sum alignments by the fast path, for an `MLP` and cross entropy, or by `jvp_batch`."""
        if isinstance(self.model, MLP) and self.loss is None:
            sums = fast(self.model, *arguments, self.threshold, self.threads)
        else:
            sums = slow(self.model, *arguments, self.threshold, self.loss)
        return sums


@dataclass(frozen=True)
class Sampled:
    """Settings of the paper's method: sparse random perturbations of all weights.

    A setting that is out of range, or no number, is refused at once; a schedule's value at its
    step.

    Attributes
    ----------
    perturbations : int
        Perturbations per step, K.
    density : float or function of the step
        Share of nonzeros in a perturbation, below 1.
    score : "absolute" or "t"
        What is ranked: |a|, or the t score.

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
        if not callable(self.density):
            self.numerator(0, self.density)

    def plan(self, shapes: Shapes, seed: int, zeros: int) -> Plan:
        """Return the plan of a run; `zeros` is the share of zeros times 2**32."""
        names, sizes = tuple(shapes), tuple(shapes.values())
        return Plan("sampled", seed, names, sizes, zeros, perturbations=int(self.perturbations))

    def propose(self, plan: Plan, step: int, density: float | None = None) -> Directions:
        """Draw the perturbations of a step; `density` overrides the schedule."""
        return draw_directions(plan, step, self.numerator(step, density))

    def measure(
        self, objective: Objective, params: Params, samples: Samples, drawn: Directions
    ) -> Sums:
        """Sum the alignments of all perturbations over the batch."""
        return objective.sums(direction_sums, direction_sums_by_jvp, params, *samples, drawn)

    def measure_chunks(
        self,
        objective: Objective,
        params: Params,
        samples: Samples,
        drawn: Directions,
        chunks: range,
    ) -> ChunkSums:
        """Sum the alignments over some of the batch's four chunks; for an `MLP` alone."""
        model, loss, threshold, threads = objective
        if not isinstance(model, MLP) or loss is not None:
            raise ValueError("chunks are summed for an MLP and cross entropy alone")
        return direction_chunks(model, params, *samples, drawn, threshold, threads, chunks)

    def keep(
        self, plan: Plan, step: int, params: Params, drawn: Directions, sums: Sums
    ) -> tuple[SampledStep, Scores]:
        """Keep the perturbations whose score reaches the median, as one tern each."""
        a, squares = sums.alignments[0], sums.squares[0]  # (perturbations,)
        scores = t_score(a.astype(np.float64), squares) if self.score == "t" else np.abs(a)
        return SampledStep(drawn.numerator, keep_terns(a, squares, self.score)), (scores,)

    def numerator(self, step: int, density: float | None = None) -> int:
        """Return the density of a step times 2**32, by the schedule or as given, checked."""
        if density is None:
            density = self.density(step) if callable(self.density) else self.density
        numerator = round(number("density", density, "[0, 1]") * 2**32)
        if numerator == 2**32:
            raise ValueError(f"density must lie below 1, got {density}")
        return numerator


@dataclass(frozen=True)
class Units:
    """Settings of the method that moves single weights into a few drawn units.

    Settings are refused as those of `Sampled` are; that they fit the layers is checked by `plan`.

    Attributes
    ----------
    units : int or one int per layer
        Units drawn per step. Layers with fewer units use them all.
    inputs : int or one int per layer, optional
        Inputs of a drawn unit that are candidates; all of them by default.
    rate : float or function of the step
        Share of a layer's candidates that move: of N candidates ``floor(rate N + u)``, u uniform
        in [0, 1), so with a rate below 1/N some steps move none.

    Examples
    --------
    >>> Units(units=4).plan({"w1": (10, 20), "w2": (3, 10)}, seed=0, zeros=0).units
    (4, 3)
    """

    units: int | Sequence[int] = 16
    inputs: int | Sequence[int] | None = None
    rate: Schedule = 0.004

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, counts in (("units", self.units), ("inputs", self.inputs)):
            if isinstance(counts, float):
                raise TypeError(f"{name} must be an int or one int per layer, got {counts}")
            several = counts if isinstance(counts, Sequence | np.ndarray) else [counts]
            for count in [] if counts is None and name == "inputs" else several:
                integer(name, count, 1)
        if not callable(self.rate):
            self._rate(0)

    def plan(self, shapes: Shapes, seed: int, zeros: int) -> Plan:
        """Return the plan of a run; `zeros` is the share of zeros times 2**32."""
        names, sizes = tuple(shapes), tuple(shapes.values())
        for name, shape in shapes.items():
            if len(shape) != 2:
                raise ValueError(
                    f"params[{name!r}] must be (n_out, n_in) for units, got shape {shape}"
                )
        units = _per_layer("units", self.units, [n_out for n_out, _ in sizes])
        inputs = _per_layer("inputs", self.inputs, [n_in for _, n_in in sizes])
        return Plan("units", seed, names, sizes, zeros, units=units, inputs=inputs)

    def quotas(self, plan: Plan, step: int) -> list[int]:
        """Return each layer's *quota*, the moves that it may keep at a step: ``floor(rate N + u)``.

        N are the layer's candidates, and the lot u, uniform in [0, 1), is drawn anew per step and
        layer: quotas are whole, and on average rate N.
        """
        rate = self._rate(step)
        u = uniform(plan.seed, (len(plan.shapes),), domain=LEVELS, step=step)
        sizes = [n * i for n, i in zip(plan.units, plan.inputs, strict=True)]
        return [int(np.floor(rate * size + lot)) for size, lot in zip(sizes, u, strict=True)]

    def propose(self, plan: Plan, step: int, density: float | None = None) -> Candidates:
        """Draw the units of a step, and of each the inputs that are candidates."""
        if density is not None:
            raise ValueError(f"density is a setting of Sampled, and no step of Units: {density}")
        return draw_candidates(plan, step)

    def measure(
        self, objective: Objective, params: Params, samples: Samples, drawn: Candidates
    ) -> Sums:
        """For each weight into a drawn unit, sum its alignment over the batch."""
        return objective.sums(unit_sums, unit_sums_by_jvp, params, *samples, drawn.units)

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

    def _rate(self, step: int) -> float:
        """Return the rate of a step, checked."""
        return number("rate", self.rate(step) if callable(self.rate) else self.rate, "[0, 1]")


def _per_layer(
    name: str, value: int | Sequence[int] | None, most: Sequence[int]
) -> tuple[int, ...]:
    """Return one count per layer; a single number applies to all, cut to the layer's size."""
    if value is None:
        return tuple(most)
    if isinstance(value, Sequence | np.ndarray):
        counts = tuple(int(n) for n in value)
    else:
        counts = tuple(min(int(value), n) for n in most)
    if len(counts) != len(most) or any(c > n for c, n in zip(counts, most, strict=True)):
        raise ValueError(f"{name} must be 1 to {tuple(most)}, one per layer, got {value}")
    return counts


def geometric(start: float, end: float, steps: int, every: int = 1) -> Callable[[int], float]:
    """Return a schedule that runs geometrically from `start` to `end` over `steps` steps.

    ``value(t) = start (end / start)**(t / (steps - 1))``, held constant for `every` steps. A
    function of the step and of nothing else, so a resumed run goes on as it was.

    Both values are positive, both numbers of steps at least 1. With `every` above 1 the last value
    is that of the last multiple of `every`. It holds from there on.

    Examples
    --------
    >>> rate = geometric(0.08, 0.02, steps=3)
    >>> [round(rate(t), 3) for t in range(3)]
    [0.08, 0.04, 0.02]
    """
    start, end = number("start", start, "(0, inf)"), number("end", end, "(0, inf)")
    steps, every = integer("steps", steps, 1), integer("every", every, 1)
    last = max(1, steps - 1)
    return lambda step: float(start * (end / start) ** (min(step // every * every, last) / last))


def keep_terns(
    alignments: NDArray[Any], squares: NDArray[Any], score: Literal["absolute", "t"]
) -> NDArray[np.int8]:
    """Decide the terns of a `sampled` step: ``c = sign(a) where score >= median(score), else 0``.

    `alignments` and `squares` (perturbations,) are sums over the batch of the per-sample alignments
    and of their squares; the `score` is the paper's |a|, "absolute", or "t".

    All scores that tie with the median are kept. An alignment of exactly 0, an empty perturbation's
    say, scores 0 and gets code 0. The median of an even number is the mean of the two middle
    scores: without ties exactly half are kept, of an odd K (K + 1) / 2. An alignment that
    overflowed, infinite or NaN, counts as 0.

    Examples
    --------
    >>> keep_terns(np.array([0.1, -3.0, 2.0, -0.2]), np.ones(4), "absolute")
    array([ 0, -1,  1,  0], dtype=int8)
    """
    alignments = _finite(alignments)
    scores = np.abs(alignments)
    if score == "t":
        scores = t_score(alignments, squares)
    elif score != "absolute":
        raise ValueError(f"score must be 'absolute' or 't', got {score!r}")
    if not scores.size:
        return np.zeros(0, np.int8)
    return np.where(scores >= np.median(scores), np.sign(alignments), 0).astype(np.int8)


def keep_moves(
    alignments: NDArray[Any], squares: NDArray[Any], weights: NDArray[np.int8], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Keep the `count` best moves of one layer of a `units` step.

    `alignments` and `squares`, as for `keep_terns`, and `weights` are (units, inputs): a move that
    would leave {-1, 0, 1} is not legal. Fewer than `count` are kept if fewer are legal and have an
    alignment. Returns the sorted candidates ``unit * inputs + input`` that move, and their
    directions ``-sign(alignment)``. Of equal scores the lowest candidate wins; an alignment that
    overflowed, infinite or NaN, never does.

    Examples
    --------
    >>> a = np.array([[3.0, -2.0], [-1.0, 4.0]])
    >>> w = np.array([[-1, 0], [0, 0]], np.int8)  # the first cannot go further down
    >>> keep_moves(a, np.ones((2, 2)), w, count=2)
    (array([1, 3]), array([ 1, -1], dtype=int8))
    """
    alignments = _finite(alignments)
    signs = -np.sign(alignments).astype(np.int8).ravel()
    scores = t_score(alignments, squares).ravel()
    scores[np.abs(weights.ravel() + signs) > 1] = 0  # the clamp would cancel it
    count = min(count, int(np.count_nonzero(scores)))
    if count <= 0:
        return np.empty(0, np.int64), np.empty(0, np.int8)
    positions = np.flatnonzero(largest(scores, count))
    return positions, signs[positions]


def _finite(alignments: NDArray[Any]) -> NDArray[np.float64]:
    """Alignments as float64; those that overflowed tell nothing, and are 0."""
    return np.nan_to_num(np.asarray(alignments, np.float64), nan=0, posinf=0, neginf=0)


def t_score(alignments: NDArray[np.float64], squares: NDArray[Any]) -> NDArray[np.float64]:
    """|sum a| / sqrt(sum a^2); 0 where no sample has an alignment."""
    spread = np.sqrt(np.asarray(squares, np.float64))
    score: NDArray[np.float64] = np.abs(alignments) / np.where(spread > 0, spread, np.inf)
    return score
