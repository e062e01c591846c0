"""Training in ternary without backpropagation (noise_step, Brickner 2024).

A step proposes sparse ternary changes of the weights, measures along each of them how the loss
would change (its *alignment* with the gradient, by one forward tangent), keeps the best, and
forgets everything else: no latent weights, no gradient or momentum memory, no backward pass. What
is kept is integers, so a model is its seed and its steps.

``sampled``, the paper's method. K perturbations v_i, each weight nonzero with probability `density`
and then +1 or -1; a_i = grad(L) . v_i; c_i = sign(a_i) where |a_i| >= median_j |a_j|, else 0:

    w <- clamp(w - sum_i c_i v_i, -1, 1)

``units``. A few units of every layer are drawn; every weight into them is a candidate, and one
*unit tangent* (`minibit.unit_tangents`) serves all candidates of a unit. The best-scored share
`rate` of the candidates moves one step against its alignment; a move that the clamp would cancel is
never kept, so such a step never clamps.

With per-sample alignments a_b, the t score is |sum_b a_b| / sqrt(sum_b a_b^2), which ranks like the
t-statistic |mean| / std.

Pure: state in, codes out, no files.

May import: numpy, minibit.dual, minibit.layers, minibit.noise, minibit.moves,
minibit.unit_tangents, minibit.kernels.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minibit.dual import jvp_batch
from minibit.layers import cross_entropy, ternary_linear
from minibit.moves import (
    Plan,
    SampledStep,
    UnitsStep,
    apply_update,
    digest,
    initial_params,
    sparse_update,
)
from minibit.noise import draw_inputs, draw_units, sparse_noise_many, uniform
from minibit.philox import LEVELS
from minibit.unit_tangents import MLP, Sums, direction_sums, unit_sums

__all__ = [
    "MLP",
    "NoiseStep",
    "Plan",
    "SampledStep",
    "StepResult",
    "UnitsStep",
    "apply_update",
    "digest",
    "direction_sums_by_jvp",
    "geometric",
    "initial_params",
    "keep_moves",
    "keep_terns",
    "sparse_update",
    "unit_sums_by_jvp",
]

Params = Mapping[str, NDArray[Any]]
Model = Callable[..., Any]
Loss = Callable[[Any, NDArray[Any]], Any]
Schedule = float | Callable[[int], float]

_DIRECTIONS_AT_ONCE = 16


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


# --- what to keep ---------------------------------------------------------------------------------


def keep_terns(
    alignments: NDArray[Any], squares: NDArray[Any], score: Literal["absolute", "t"]
) -> NDArray[np.int8]:
    """Decide the terns of a `sampled` step: ``c = sign(a) where score >= median(score), else 0``.

    Parameters
    ----------
    alignments, squares : float array, shape (perturbations,)
        Sums over the batch of the per-sample alignments and of their squares.
    score : "absolute" or "t"
        The paper's |a|, or |sum a| / sqrt(sum a^2).

    Returns
    -------
    int8 array, shape (perturbations,)
        All scores that tie with the median are kept. An alignment of exactly 0, an empty
        perturbation's say, scores 0 and gets code 0. The median of an even number is the mean of
        the two middle scores: without ties exactly half are kept, of an odd K (K + 1) / 2. An
        alignment that overflowed, infinite or NaN, counts as 0.

    Raises
    ------
    ValueError
        If the score is unknown.

    Examples
    --------
    >>> keep_terns(np.array([0.1, -3.0, 2.0, -0.2]), np.ones(4), "absolute")
    array([ 0, -1,  1,  0], dtype=int8)
    """
    alignments = _finite(alignments)
    scores = np.abs(alignments)
    if score == "t":
        scores = _t_score(alignments, squares)
    elif score != "absolute":
        raise ValueError(f"score must be 'absolute' or 't', got {score!r}")
    if not scores.size:
        return np.zeros(0, np.int8)
    return np.where(scores >= np.median(scores), np.sign(alignments), 0).astype(np.int8)


def keep_moves(
    alignments: NDArray[Any], squares: NDArray[Any], weights: NDArray[np.int8], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Keep the `count` best moves of one layer of a `units` step.

    Parameters
    ----------
    alignments, squares : float array, shape (units, inputs)
        Sums over the batch of the candidates' per-sample alignments and of their squares.
    weights : int8 array, shape (units, inputs)
        The candidates' weights: a move that would leave {-1, 0, 1} is not legal.
    count : int
        How many moves to keep at most; fewer if fewer are legal and have an alignment.

    Returns
    -------
    positions : int64 array, sorted
        Candidates ``unit * inputs + input`` that move. Of equal scores the lowest candidate wins;
        an alignment that overflowed, infinite or NaN, never does.
    signs : int8 array
        Their directions, ``-sign(alignment)``.

    Examples
    --------
    >>> a = np.array([[3.0, -2.0], [-1.0, 4.0]])
    >>> w = np.array([[-1, 0], [0, 0]], np.int8)  # the first cannot go further down
    >>> keep_moves(a, np.ones((2, 2)), w, count=2)
    (array([1, 3]), array([ 1, -1], dtype=int8))
    """
    alignments = _finite(alignments)
    signs = -np.sign(alignments).astype(np.int8).ravel()
    scores = _t_score(alignments, squares).ravel()
    scores[np.abs(weights.ravel() + signs) > 1] = 0  # the clamp would cancel it
    count = min(count, int(np.count_nonzero(scores)))
    if count <= 0:
        return np.empty(0, np.int64), np.empty(0, np.int8)
    bar = np.partition(scores, scores.size - count)[scores.size - count]
    above, ties = np.flatnonzero(scores > bar), np.flatnonzero(scores == bar)
    positions = np.sort(np.concatenate([above, ties[: count - above.size]]))
    return positions, signs[positions]


def _finite(alignments: NDArray[Any]) -> NDArray[np.float64]:
    """Alignments as float64; those that overflowed tell nothing, and are 0."""
    return np.nan_to_num(np.asarray(alignments, np.float64), nan=0, posinf=0, neginf=0)


def _t_score(alignments: NDArray[np.float64], squares: NDArray[Any]) -> NDArray[np.float64]:
    spread = np.sqrt(np.asarray(squares, np.float64))
    score: NDArray[np.float64] = np.abs(alignments) / np.where(spread > 0, spread, np.inf)
    return score


# --- alignments of any pure function --------------------------------------------------------------


def _per_sample(
    function: Callable[[Any], Any],
    primals: Params,
    spell: Callable[[NDArray[np.int64]], dict[str, NDArray[Any]]],
    count: int,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return per-sample losses (batch,) and loss tangents (directions, batch).

    ``spell(some)`` writes out the tangents of some directions; never more than sixteen at once.
    """
    losses: NDArray[Any] = np.empty(0)
    parts = []
    for begin in range(0, max(count, 1), _DIRECTIONS_AT_ONCE):
        some = np.arange(begin, min(begin + _DIRECTIONS_AT_ONCE, count))
        losses, part = jvp_batch(function, (dict(primals),), (spell(some),))
        parts.append(part)
    return losses, np.concatenate(parts)


def _sums(
    losses: NDArray[Any], tangents: NDArray[Any], weight: NDArray[Any], threshold: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Weighted sums over samples, of those that are not learnt yet; and 1 - p_y."""
    _check_losses(losses, tangents, weight)
    hardness = -np.expm1(-losses)  # the loss of a sample is -log p_y
    a = tangents * np.where(hardness > threshold, weight, 0)  # (directions, batch)
    return a.sum(axis=1), (a**2).sum(axis=1), hardness


def direction_sums_by_jvp(
    model: Model,
    params: Params,
    x: NDArray[Any],
    y: NDArray[Any],
    weight: NDArray[Any],
    offsets: NDArray[np.int64],
    positions: NDArray[np.int64],
    signs: NDArray[np.int8],
    threshold: float = -np.inf,
    loss: Loss | None = None,
    dtype: Any = np.float32,
) -> Sums:
    """Sum the alignments with sparse directions over samples, by `jvp_batch` of any model.

    The specification of the fast path: each direction is spelled out as a dense tangent of all
    parameters. `positions` are flat, over the parameters laid end to end; direction p has the
    entries ``offsets[p]`` to ``offsets[p + 1]``.

    Parameters
    ----------
    model : callable (params, x) -> outputs
        Pure.
    params : dict of arrays
        Cast to `dtype`.
    x, y : arrays, shape (batch, ...)
        What the model takes, and what the loss compares its outputs with.
    weight : float array, shape (batch,)
        Weight of every sample in the sums.
    offsets, positions, signs : int64 (directions + 1,), int64 and int8 (nonzeros,)
        As `minibit.noise.sparse_noise_many` draws them.
    threshold : float
        Samples with ``1 - p_y <= threshold`` are left out.
    loss : callable (outputs, y) -> (batch,), optional
        Cross entropy by default.
    dtype : dtype
        In which to compute: float32, or float64 to judge others by.

    Returns
    -------
    Sums

    Raises
    ------
    ValueError
        If a loss or a tangent is not finite.

    Examples
    --------
    >>> params, x, y = {"w1": np.int8([[1, 0], [0, 1]])}, np.float32([[2, 1]]), np.array([0])
    >>> one = direction_sums_by_jvp(MLP(), params, x, y, np.ones(1), [0, 1], [2], [1])
    >>> one.alignments[0].round(3)  # more of input 0 into class 1: p_1 x_0
    array([0.538])
    """
    count = len(offsets) - 1
    primals = {name: np.asarray(w).astype(dtype) for name, w in params.items()}
    size = sum(w.size for w in primals.values())

    def spell(some: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        dense = np.zeros((len(some), size), dtype)
        for row, p in zip(dense, some, strict=True):
            entries = slice(offsets[p], offsets[p + 1])
            row[positions[entries]] = signs[entries]
        tangents, start = {}, 0
        for name, w in primals.items():
            tangents[name] = dense[:, start : start + w.size].reshape(len(some), *w.shape)
            start += w.size
        return tangents

    losses, slopes = _per_sample(_loss_of(model, x, y, loss), primals, spell, count)
    alignments, squares, hardness = _sums(losses, slopes, weight, threshold)
    return Sums((alignments,), (squares,), losses, hardness, _correct(model, primals, x, y, losses))


def unit_sums_by_jvp(
    model: Model,
    params: Params,
    x: NDArray[Any],
    y: NDArray[Any],
    weight: NDArray[Any],
    units: Sequence[NDArray[np.int64]],
    threshold: float = -np.inf,
    loss: Loss | None = None,
    dtype: Any = np.float32,
) -> Sums:
    """Sum the alignments of all weights into the drawn units over samples, for any model.

    If the model takes a ``linear`` argument and calls it for ``x w^T``, one tangent serves a unit:
    `linear` adds a bump to the unit's pre-activation, and notes its inputs. Otherwise each
    candidate weight is a direction of its own, which costs `n_in` times as much and needs nothing
    but a pure function.

    Parameters
    ----------
    model : callable (params, x) -> outputs
        Pure.
    params : dict of arrays
        Cast to `dtype`.
    x, y : arrays, shape (batch, ...)
        What the model takes, and what the loss compares its outputs with.
    weight : float array, shape (batch,)
        Weight of every sample in the sums.
    units : one int64 array a parameter
        The drawn units.
    threshold : float
        Samples with ``1 - p_y <= threshold`` are left out.
    loss : callable (outputs, y) -> (batch,), optional
        Cross entropy by default.
    dtype : dtype
        In which to compute: float32, or float64 to judge others by.

    Returns
    -------
    Sums

    Raises
    ------
    ValueError
        If a loss or a tangent is not finite, or `linear` does not get each parameter once, with one
        row of inputs a sample.

    Examples
    --------
    >>> params, x, y = {"w1": np.int8([[1, 0], [0, 1]])}, np.float32([[2, 1]]), np.array([0])
    >>> sums = unit_sums_by_jvp(MLP(), params, x, y, np.ones(1), [np.array([1])])
    >>> sums.alignments[0].round(3)  # p_1 x
    array([[0.538, 0.269]])
    """
    primals = {name: np.asarray(w).astype(dtype) for name, w in params.items()}
    if "linear" in inspect.signature(model).parameters:
        return _shared(model, primals, x, y, weight, units, threshold, loss)
    alignments, squares = [], []
    losses: NDArray[Any] = np.empty(0)
    for (name, w), drawn in zip(primals.items(), units, strict=True):
        function = _loss_of_one(model, x, y, loss, primals, name)

        def spell(
            some: NDArray[np.int64], name: str = name, w: Any = w, drawn: Any = drawn
        ) -> dict[str, NDArray[Any]]:
            rows, columns = np.divmod(some, w.shape[1])
            tangent = np.zeros((len(some), *w.shape), dtype)
            tangent[np.arange(len(some)), drawn[rows], columns] = 1
            return {name: tangent}

        losses, slopes = _per_sample(function, {name: w}, spell, len(drawn) * w.shape[1])
        a, a_squared, hardness = _sums(losses, slopes, weight, threshold)
        alignments.append(a.reshape(len(drawn), w.shape[1]))
        squares.append(a_squared.reshape(len(drawn), w.shape[1]))
    correct = _correct(model, primals, x, y, losses)
    return Sums(tuple(alignments), tuple(squares), losses, hardness, correct)


def _shared(
    model: Model,
    primals: Params,
    x: NDArray[Any],
    y: NDArray[Any],
    weight: NDArray[Any],
    units: Sequence[NDArray[np.int64]],
    threshold: float,
    loss: Loss | None,
) -> Sums:
    """One bump a drawn unit: t_j, then alignments t_j h_i."""
    names = {id(w): name for name, w in primals.items()}
    inputs: dict[str, Any] = {}

    def function(bumps: Params) -> Any:
        inputs.clear()

        def linear(h: Any, w: Any) -> Any:
            name = names.get(id(w))
            if name is None or name in inputs:
                what = "an array that is not a parameter" if name is None else f"{name!r} again"
                raise ValueError(f"linear must get every parameter once, as it is; it got {what}")
            plain = getattr(h, "primal", h)
            if plain.shape != (len(y), w.shape[1]):
                raise ValueError(
                    f"linear must get one row a sample with {name!r}, {(len(y), w.shape[1])}; got "
                    f"shape {plain.shape}: a weight used at several positions shares no tangent"
                )
            inputs[name] = plain.astype(w.dtype)
            return ternary_linear(h, w) + bumps[name]

        logits = model(primals, x, linear=linear)
        if missing := [name for name in primals if name not in inputs]:
            raise ValueError(f"linear must get every parameter once; it never got {missing}")
        return loss(logits, y) if loss else cross_entropy(logits, y, reduction="none")

    layers = np.repeat(np.arange(len(units)), [len(drawn) for drawn in units])
    rows = np.concatenate([np.asarray(drawn, np.int64) for drawn in units])
    bumps = {name: np.zeros((len(y), w.shape[0]), w.dtype) for name, w in primals.items()}

    def spell(some: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        tangents = {name: np.zeros((len(some), *b.shape), b.dtype) for name, b in bumps.items()}
        for k, d in enumerate(some):
            tangents[list(bumps)[layers[d]]][k, :, rows[d]] = 1
        return tangents

    losses, slopes = _per_sample(function, bumps, spell, len(rows))  # (units, batch)
    _check_losses(losses, slopes, weight)
    hardness = -np.expm1(-losses)
    slopes = slopes * np.where(hardness > threshold, weight, 0)
    alignments, squares, start = [], [], 0
    for name, drawn in zip(primals, units, strict=True):
        t = slopes[start : start + len(drawn)]  # (units, batch)
        alignments.append(t @ inputs[name])  # (units, n_in)
        squares.append(t**2 @ inputs[name] ** 2)
        start += len(drawn)
    correct = _correct(model, primals, x, y, losses)
    return Sums(tuple(alignments), tuple(squares), losses, hardness, correct)


def _check_losses(losses: NDArray[Any], slopes: NDArray[Any], weight: NDArray[Any]) -> None:
    if losses.shape != np.shape(weight):
        raise ValueError(
            f"loss must give one number a sample, {np.shape(weight)}, got shape {losses.shape}"
        )
    if not (np.isfinite(losses).all() and np.isfinite(slopes).all()):
        raise ValueError("model must give finite losses and tangents, got NaN or infinity")


def _loss_of_one(
    model: Model, x: NDArray[Any], y: NDArray[Any], loss: Loss | None, params: Params, name: str
) -> Callable[[Params], Any]:
    """Return the loss as a function of one parameter, the others held."""
    whole = _loss_of(model, x, y, loss)
    return lambda one: whole({**params, name: one[name]})


def _loss_of(
    model: Model, x: NDArray[Any], y: NDArray[Any], loss: Loss | None
) -> Callable[[Params], Any]:
    def function(params: Params) -> Any:
        out = model(params, x)
        return loss(out, y) if loss else cross_entropy(out, y, reduction="none")

    return function


def _correct(
    model: Model, params: Params, x: NDArray[Any], y: NDArray[Any], losses: NDArray[Any]
) -> NDArray[np.bool_]:
    """Whether each label is the argmax; of targets that are no labels, False."""
    out = np.asarray(model(params, x))
    if out.ndim != 2 or np.shape(y) != losses.shape or np.asarray(y).dtype.kind not in "iu":
        return np.zeros(losses.shape, np.bool_)
    correct: NDArray[np.bool_] = out.argmax(axis=1) == y
    return correct


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
        scores = _t_score(a.astype(np.float64), squares) if self.score == "t" else np.abs(a)
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
            scores.append(_t_score(np.asarray(a, np.float64), squares))
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
