"""Training in ternary without backpropagation (noise_step, Brickner 2024).

A step proposes sparse ternary changes of the weights, measures along each of them how the loss
would change (its *alignment* with the gradient, by one forward tangent), keeps the best, and
forgets everything else: no latent weights, no gradient or momentum memory, no backward pass. What
is kept is integers, so a model is its seed and its steps.

``sampled``, the paper's method. K perturbations v_i, each weight nonzero with probability `density`
and then +1 or -1; a_i = grad(L) . v_i; c_i = sign(a_i) where |a_i| >= median_j |a_j|, else 0:

    w <- clamp(w - sum_i c_i v_i, -1, 1)

``units``. A few units of every layer are drawn; every weight into them is a candidate, and one
*unit tangent* (`minibit.noise_step.unit_tangents`) serves all candidates of a unit. The best-scored
share `rate` of the candidates moves one step against its alignment; a move that the clamp would
cancel is never kept, so such a step never clamps.

The t score ranks like the t-statistic |mean| / std over samples (`minibit.noise_step.choices`).

Pure: state in, codes out, no files.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minibit.noise import LEVELS, draw_inputs, draw_units, sparse_noise_many, uniform
from minibit.noise_step.alignments import Loss, Model, direction_sums_by_jvp, unit_sums_by_jvp
from minibit.noise_step.choices import keep_moves, keep_terns, t_score
from minibit.noise_step.perceptron import MLP
from minibit.noise_step.records import (
    Plan,
    SampledStep,
    UnitsStep,
    apply_update,
    sparse_update,
)
from minibit.noise_step.unit_reference import Sums
from minibit.noise_step.unit_tangents import direction_sums, unit_sums

__all__ = ["NoiseStep", "StepResult", "geometric"]

Params = Mapping[str, NDArray[Any]]
Schedule = float | Callable[[int], float]


def geometric(start: float, end: float, steps: int, every: int = 1) -> Callable[[int], float]:
    """Return a schedule that runs geometrically from `start` to `end` over `steps` steps.

    ``value(t) = start (end / start)**(t / (steps - 1))``, held constant for `every` steps. A
    function of the step and of nothing else, so that a resumed run goes on as it was.

    Parameters
    ----------
    start, end : float
        Values at the first and the last step, positive. The last one holds from there on.
    steps : int
        How many steps the run has.
    every : int
        For how many steps a value holds.

    Returns
    -------
    callable (step) -> float

    Raises
    ------
    ValueError
        If a value is not positive or a number of steps is below 1.

    Examples
    --------
    >>> rate = geometric(0.08, 0.02, steps=3)
    >>> [round(rate(t), 3) for t in range(3)]
    [0.08, 0.04, 0.02]
    """
    if not (start > 0 and end > 0):
        raise ValueError(f"start and end must be positive, got {start} and {end}")
    if steps < 1 or every < 1:
        raise ValueError(f"steps and every must be at least 1, got {steps} and {every}")
    last = max(1, steps - 1)
    return lambda step: float(start * (end / start) ** (min(step // every * every, last) / last))


# --- the step -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepResult:
    """What one step did. Only `record` is needed to replay it."""

    step: int
    record: SampledStep | UnitsStep
    loss: float  # mean over the batch, samples weighted, before the step
    accuracy: float  # of the batch as it was drawn, before the step
    hardness: NDArray[np.floating[Any]]  # (batch,), 1 - p_y
    alignments: tuple[NDArray[Any], ...]  # as in `Sums`, divided by the size of the batch
    scores: tuple[NDArray[Any], ...]  # what was ranked


class NoiseStep:
    """Train a pure function of ternary parameters forwards only.

    Parameters
    ----------
    model : callable (params, x) -> outputs
        Pure. An `MLP` takes the fast path; any other function goes through `jvp_batch`. For method
        ``units`` a model that takes ``linear`` shares a tangent among a unit's inputs.
    params : dict of int8 arrays
        The weights to start from, codes in {-1, 0, 1}; copied. ``units`` needs ``(n_out, n_in)``.
    seed : int
        Names all draws, with the step number.
    method : "sampled" or "units"
    perturbations : int
        ``sampled``: perturbations a step, K.
    density : float or function of the step
        ``sampled``: share of nonzeros in a perturbation.
    score : "absolute" or "t"
        ``sampled``: what is ranked. ``units`` always ranks by t.
    units : int or one int a layer
        ``units``: units drawn a step. Layers with fewer units use them all.
    inputs : int or one int a layer, optional
        ``units``: inputs of a drawn unit that are candidates; all of them by default.
    rate : float or function of the step
        ``units``: share of a layer's candidates that move. ``floor(rate N + u)`` moves, u uniform
        in [0, 1), so that a rate below 1/N moves now and then.
    threshold : float
        Samples with ``1 - p_y <= threshold`` count as learnt and get no tangents; by default none
        does. With a loss of one's own, ``1 - exp(-loss)``.
    loss : callable (outputs, y) -> (batch,), optional
        Per-sample negative log-likelihood; cross entropy by default.
    zeros : float
        Share of zeros with which `params` were drawn (`initial_params`); only goes into `plan`.
    workers : int, optional
        Threads of the fast path; as many as there are cores by default. The sums do not depend on
        it.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or a parameter is not ternary; the message names it.

    Notes
    -----
    Brickner, "Training in 1.58b With No Gradient Memory" (2024), leaves open what happens at ties,
    zero alignments and empty perturbations: see `keep_terns`. Alignments are floats and depend on
    the machine in their last bits; codes are decided once, here, and then logged.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        seed: int,
        method: Literal["sampled", "units"] = "sampled",
        *,
        perturbations: int = 128,
        density: Schedule = 6e-5,
        score: Literal["absolute", "t"] = "absolute",
        units: int | Sequence[int] = 16,
        inputs: int | Sequence[int] | None = None,
        rate: Schedule = 0.004,
        threshold: float = -np.inf,
        loss: Loss | None = None,
        zeros: float = 0.0,
        workers: int | None = None,
    ) -> None:
        if method not in ("sampled", "units"):
            raise ValueError(f"method must be 'sampled' or 'units', got {method!r}")
        if score not in ("absolute", "t"):
            raise ValueError(f"score must be 'absolute' or 't', got {score!r}")
        if perturbations != int(perturbations) or perturbations < 1:
            raise ValueError(f"perturbations must be 1, 2, ..., got {perturbations}")
        if seed != int(seed) or not 0 <= seed < 2**64:
            raise ValueError(f"seed must be an integer in [0, 2**64), got {seed}")
        if not 0 <= zeros <= 1:
            raise ValueError(f"zeros must lie in [0, 1], got {zeros}")
        if not threshold < 1:
            raise ValueError(f"threshold must be below 1, where 1 - p_y ends, got {threshold}")
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if not isinstance(params, Mapping) or not params:
            raise TypeError(
                f"params must be a non-empty dict of arrays, got {type(params).__name__}"
            )
        self.params = {name: _ternary(name, w, method) for name, w in params.items()}
        if isinstance(model, MLP):
            model.check(self.params)
        self.model, self.method, self.loss = model, method, loss
        self.density, self.rate, self.score = density, rate, score
        self.threshold, self.workers = threshold, workers
        self.steps = 0
        shapes = tuple(w.shape for w in self.params.values())
        per_layer = [s[0] for s in shapes], [s[-1] for s in shapes]
        self.plan = Plan(
            method=method,
            seed=int(seed),
            names=tuple(self.params),
            shapes=shapes,
            zeros=round(zeros * 2**32),
            perturbations=int(perturbations) if method == "sampled" else 0,
            units=_per_layer("units", units, per_layer[0]) if method == "units" else (),
            inputs=_per_layer("inputs", inputs, per_layer[1]) if method == "units" else (),
        )

    def step(
        self,
        x: NDArray[Any],
        y: NDArray[Any],
        *,
        weight: NDArray[Any] | None = None,
        density: float | None = None,
    ) -> StepResult:
        """Take one step on a batch; updates `params` and `steps`.

        Parameters
        ----------
        x : array, shape (batch, ...)
            Whatever the model takes.
        y : array, shape (batch, ...)
            Whatever the loss takes; integer labels for cross entropy.
        weight : float array, shape (batch,), optional
            Weights of the samples, all 1 by default.
        density : float, optional
            Overrides the schedule for this step (the paper lowers it when the loss falls).
        """
        x, y = np.asarray(x), np.asarray(y)
        if len(x) != len(y) or not len(y):
            raise ValueError(f"x and y must hold one entry a sample, got {x.shape} and {y.shape}")
        weight = np.ones(len(y), np.float32) if weight is None else np.asarray(weight, np.float32)
        if weight.shape != (len(y),) or not np.isfinite(weight).all() or not (weight >= 0).all():
            raise ValueError(f"weight must be ({len(y)},), finite and not negative")
        sampled = self.method == "sampled"
        record, sums, scores = (
            self._sampled(x, y, weight, density) if sampled else self._units(x, y, weight)
        )
        if not np.isfinite(sums.loss).all():
            sample = int(np.flatnonzero(~np.isfinite(sums.loss))[0])
            raise ValueError(f"losses must be finite, got {sums.loss[sample]} for sample {sample}")
        self.params = apply_update(self.params, *sparse_update(self.plan, self.steps, record))
        self.steps += 1
        return StepResult(
            step=self.steps - 1,
            record=record,
            loss=float(np.average(sums.loss, weights=weight if weight.any() else None)),
            accuracy=float(sums.correct.mean()),
            hardness=sums.hardness,
            alignments=tuple(a / len(y) for a in sums.alignments),
            scores=scores,
        )

    def _sampled(
        self, x: NDArray[Any], y: NDArray[Any], weight: NDArray[Any], density: float | None
    ) -> tuple[SampledStep | UnitsStep, Sums, tuple[NDArray[Any], ...]]:
        if density is None:
            density = self.density(self.steps) if callable(self.density) else self.density
        numerator = round(_share("density", density) * 2**32)
        if numerator == 2**32:
            raise ValueError(f"density must lie below 1, got {density}")
        drawn = sparse_noise_many(
            self.plan.seed,
            self.steps,
            np.arange(self.plan.perturbations),
            self.plan.size,
            numerator,
        )
        batch = (self.params, x, y, weight, *drawn, self.threshold)
        if isinstance(self.model, MLP) and self.loss is None:
            sums = direction_sums(self.model, *batch, workers=self.workers)
        else:
            sums = direction_sums_by_jvp(self.model, *batch, loss=self.loss)
        a, squares = sums.alignments[0], sums.squares[0]
        scores = t_score(a.astype(np.float64), squares) if self.score == "t" else np.abs(a)
        return SampledStep(numerator, keep_terns(a, squares, self.score)), sums, (scores,)

    def _units(
        self, x: NDArray[Any], y: NDArray[Any], weight: NDArray[Any]
    ) -> tuple[SampledStep | UnitsStep, Sums, tuple[NDArray[Any], ...]]:
        plan = self.plan
        drawn = [
            draw_units(plan.seed, self.steps, layer, shape[0], plan.units[layer])
            for layer, shape in enumerate(plan.shapes)
        ]
        batch = (self.params, x, y, weight, drawn, self.threshold)
        if isinstance(self.model, MLP) and self.loss is None:
            sums = unit_sums(self.model, *batch, workers=self.workers)
        else:
            sums = unit_sums_by_jvp(self.model, *batch, loss=self.loss)
        rate = _share("rate", self.rate(self.steps) if callable(self.rate) else self.rate)
        lots = uniform(plan.seed, (len(drawn),), domain=LEVELS, step=self.steps)
        positions, signs, scores = [], [], []
        for layer, w in enumerate(self.params.values()):
            a: NDArray[Any] = sums.alignments[layer]  # (units, n_in)
            squares: NDArray[Any] = sums.squares[layer]
            weights: NDArray[Any] = w[drawn[layer]]
            n_in, count = w.shape[1], plan.inputs[layer]
            if count < n_in:  # a share of every unit's inputs
                columns = np.stack(
                    [
                        draw_inputs(plan.seed, self.steps, layer, u, n_in, count)
                        for u in drawn[layer]
                    ]
                )
                a, squares, weights = (
                    np.take_along_axis(v, columns, axis=1) for v in (a, squares, weights)
                )
            quota = int(np.floor(rate * a.size + lots[layer]))
            kept, directions = keep_moves(a, squares, weights, quota)
            positions.append(kept)
            signs.append(directions)
            scores.append(t_score(np.asarray(a, np.float64), squares))
        return UnitsStep(tuple(positions), tuple(signs)), sums, tuple(scores)


def _share(name: str, value: Any) -> float:
    """Return what a schedule gave for this step, checked."""
    if np.ndim(value) or not isinstance(value, int | float | np.number | np.ndarray):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return float(value)


def _ternary(name: str, w: Any, method: str) -> NDArray[np.int8]:
    """Return a private int8 copy of a parameter, checked."""
    w = np.asarray(w)
    if w.dtype != np.int8:
        raise TypeError(f"params[{name!r}] must be int8 codes, got {w.dtype}")
    if method == "units" and w.ndim != 2:
        raise ValueError(f"params[{name!r}] must be (n_out, n_in) for units, got shape {w.shape}")
    outside = (w < -1) | (w > 1)
    if outside.any():
        raise ValueError(f"params[{name!r}] must hold -1, 0 and 1, got {w[outside][0]}")
    return np.array(w, order="C")


def _per_layer(
    name: str, given: int | Sequence[int] | None, available: Sequence[int]
) -> tuple[int, ...]:
    """One count a layer, at least 1; a single number means at most that many everywhere."""
    if given is None:
        return tuple(available)
    if isinstance(given, float):
        raise TypeError(f"{name} must be an int or one int a layer, got {given}")
    if isinstance(given, int | np.integer):
        counts = tuple(min(int(given), n) for n in available)
    else:
        counts = tuple(operator.index(n) for n in given)
    good = len(counts) == len(available)
    if not good or any(not 1 <= c <= n for c, n in zip(counts, available, strict=True)):
        raise ValueError(f"{name} must be 1 to {tuple(available)}, one a layer, got {given}")
    return counts
