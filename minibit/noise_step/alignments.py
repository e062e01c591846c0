"""Alignments of any pure function: what a step needs to know of a model, by `jvp_batch`.

The specification of the fast path, and the way for models that are no MLP. Each direction is
spelled out as a dense tangent of the parameters; or, for a model that takes a ``linear`` argument,
one bump of a unit's pre-activation serves all weights into the unit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.dual import jvp_batch
from minibit.layers import cross_entropy, ternary_linear
from minibit.noise_step.unit_reference import Sums

__all__ = ["Loss", "Model", "direction_sums_by_jvp", "unit_sums_by_jvp"]

Params = Mapping[str, NDArray[Any]]
Model = Callable[..., Any]
Loss = Callable[[Any, NDArray[Any]], Any]

_DIRECTIONS_AT_ONCE = 16


def _per_sample(
    function: Callable[[Any], Any],
    primals: Params,
    spell: Callable[[NDArray[np.int64]], dict[str, NDArray[Any]]],
    count: int,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return per-sample losses (batch,) and loss tangents (directions, batch).

    ``spell(numbers)`` writes out the tangents of some directions, sixteen at most.
    """
    losses: NDArray[Any] = np.empty(0)
    parts = []
    for begin in range(0, max(count, 1), _DIRECTIONS_AT_ONCE):
        numbers = np.arange(begin, min(begin + _DIRECTIONS_AT_ONCE, count))
        losses, part = jvp_batch(function, (dict(primals),), (spell(numbers),))
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
    directions: Sequence[Any],
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
    directions : tuple of arrays
        ``offsets, positions, signs``: int64 (directions + 1,), int64 and int8 (nonzeros,), as
        `minibit.noise.sparse_noise_many` draws them.
    threshold : float
        Samples with ``1 - p_y <= threshold`` are left out.
    loss : callable (outputs, y) -> (batch,), optional
        Cross entropy by default.
    dtype : dtype
        In which to compute: float32, or float64 to judge others by.

    Raises
    ------
    ValueError
        If a loss or a tangent is not finite.

    Examples
    --------
    >>> from minibit.noise_step.perceptron import MLP
    >>> params, x, y = {"w1": np.int8([[1, 0], [0, 1]])}, np.float32([[2, 1]]), np.array([0])
    >>> one = direction_sums_by_jvp(MLP(), params, x, y, np.ones(1), ([0, 1], [2], [1]))
    >>> one.alignments[0].round(3)  # more of input 0 into class 1: p_1 x_0
    array([0.538])
    """
    offsets, positions, signs = directions[:3]
    count = len(offsets) - 1
    primals = {name: np.asarray(w).astype(dtype) for name, w in params.items()}
    size = sum(w.size for w in primals.values())

    def spell(numbers: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        dense = np.zeros((len(numbers), size), dtype)
        for row, p in zip(dense, numbers, strict=True):
            entries = slice(offsets[p], offsets[p + 1])
            row[positions[entries]] = signs[entries]
        tangents, start = {}, 0
        for name, w in primals.items():
            tangents[name] = dense[:, start : start + w.size].reshape(len(numbers), *w.shape)
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

    `units` are one int64 array per parameter; model, params, x, y, weight, threshold, loss and
    dtype are as for `direction_sums_by_jvp`.

    Raises
    ------
    ValueError
        If a loss or a tangent is not finite, or `linear` does not get each parameter once, with one
        row of inputs a sample.

    Examples
    --------
    >>> from minibit.noise_step.perceptron import MLP
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
    losses_of = _loss_of(model, x, y, loss)
    for (name, w), drawn in zip(primals.items(), units, strict=True):

        def function(one: Params, name: str = name) -> Any:
            return losses_of({**primals, name: one[name]})

        def spell(
            numbers: NDArray[np.int64], name: str = name, w: Any = w, drawn: Any = drawn
        ) -> dict[str, NDArray[Any]]:
            rows, columns = np.divmod(numbers, w.shape[1])
            tangent = np.zeros((len(numbers), *w.shape), dtype)
            tangent[np.arange(len(numbers)), drawn[rows], columns] = 1
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
                got = "an array that is not a parameter" if name is None else f"{name!r} again"
                raise ValueError(f"linear must get every parameter once, as it is; it got {got}")
            plain = getattr(h, "primal", h)
            if plain.shape != (len(y), w.shape[1]):
                raise ValueError(
                    f"linear must get one row per sample with {name!r}, {(len(y), w.shape[1])}; "
                    f"got shape {plain.shape}: a weight used at several positions shares no tangent"
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

    def spell(numbers: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        tangents = {name: np.zeros((len(numbers), *b.shape), b.dtype) for name, b in bumps.items()}
        for k, d in enumerate(numbers):
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
            f"loss must give one number per sample, {np.shape(weight)}, got shape {losses.shape}"
        )
    if not (np.isfinite(losses).all() and np.isfinite(slopes).all()):
        raise ValueError("model must give finite losses and tangents, got NaN or infinity")


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
