"""Unit tangents in plain NumPy, a whole batch at a time: the kernels are tested against it.

The formulas are in `minibit.noise_step.unit_tangents`, which has the fast twins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibit.absmean import absmax_quantize_reference
from minibit.noise_step.perceptron import MLP, as_float

__all__ = [
    "ChunkSums",
    "Sums",
    "alignments_reference",
    "direction_sums_reference",
    "forward_reference",
    "unit_sums_reference",
]

Floats = NDArray[np.floating[Any]]  # float32 on the fast path
Params = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Sums:
    """Sums over the samples b of a batch, a_b a sample's alignment and w_b its weight.

    A sample that counts as learnt, ``1 - p_y <= threshold``, is left out of both sums. No sum is
    divided by the size of the batch.
    """

    alignments: tuple[Floats, ...]  # sum w_b a_b; per layer (units, n_in), or one (directions,)
    squares: tuple[Floats, ...]  # sum (w_b a_b)^2, likewise
    loss: Floats  # (batch,), not weighted
    hardness: Floats  # (batch,), 1 - p_y
    correct: NDArray[np.bool_]  # (batch,)


class ChunkSums(NamedTuple):
    """Sums over each of some chunks of a batch, as `Sums` has them over all of it."""

    alignments: NDArray[np.float64]  # (chunks, directions)
    squares: NDArray[np.float64]
    loss: Floats  # (samples of the chunks,)
    hardness: Floats
    correct: NDArray[np.bool_]


def _states(model: MLP, params: Params, x: Any) -> tuple[list[Any], list[Any], list[Any], Any]:
    """Return each layer's inputs, z_hat and r = 1 / sigma of hidden layers, and the logits."""
    inner = len(params) - 2 if model.activations == "int8" else 0  # hidden layers that are rounded
    *hidden, last = (w.astype(np.float32) for w in params.values())
    h = model.input_scale * as_float(x) + model.input_offset  # (batch, n_in)
    inputs, z_hats, rs = [h], [], []
    for layer, w in enumerate(hidden):
        z = h @ w.T  # (batch, n_out)
        centred = z - z.mean(axis=1, keepdims=True)
        r = 1 / np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + np.float32(model.eps))
        z_hat = centred * r
        h = np.maximum(z_hat, 0)
        if layer < inner:
            codes, scale = absmax_quantize_reference(z_hat)
            h = np.maximum(codes, 0) / scale
        inputs.append(h)
        z_hats.append(z_hat)
        rs.append(r)  # (batch, 1)
    return inputs, z_hats, rs, np.float32(model.logit_scale) * (h @ last.T)


def _outcome(logits: Any, y: Any) -> tuple[Any, Any, Any, Any]:
    """Loss, 1 - p_y, correctness and g = softmax - onehot of every sample."""
    rows = np.arange(len(y))
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    p /= p.sum(axis=1, keepdims=True)
    loss = -shifted[rows, y] + np.log(np.exp(shifted).sum(axis=1))
    others = p.copy()
    others[rows, y] = 0
    hardness = others.sum(axis=1)
    g = p
    g[rows, y] = -hardness  # p - 1 without cancellation
    return (
        loss.astype(np.float32),
        hardness.astype(np.float32),
        logits.argmax(axis=1) == y,
        g.astype(np.float32),
    )


def _tangents(
    model: MLP, params: Params, states: Any, g: Any, units: Sequence[NDArray[np.int64]]
) -> list[Any]:
    """t_j of every drawn unit of every layer: (batch, units)."""
    inputs, z_hats, rs, _ = states
    weights = [w.astype(np.float32) for w in params.values()]
    g = g * np.float32(model.logit_scale)
    top = len(weights) - 1
    inner = top - 1 if model.activations == "int8" else 0

    def follow(layer: int, u: Any) -> Any:
        """F_layer of tangents u: (batch, k, width) or (k, width), the same for all samples."""
        if layer == top:
            return np.einsum("bku,bu->bk", np.broadcast_to(u, (len(g), *u.shape[-2:])), g)
        z_hat = z_hats[layer][:, None, :]  # (batch, 1, width)
        on = inputs[layer + 1][:, None, :] > 0
        through = follow(layer + 1, (u * on) @ weights[layer + 1].T)  # (batch, k)
        mean_term = follow(layer + 1, on.astype(np.float32) @ weights[layer + 1].T)  # (batch, 1)
        moved = through - u.mean(-1) * mean_term
        if layer >= inner:  # else the standard deviation counts as constant
            shape_term = follow(layer + 1, (z_hat * on) @ weights[layer + 1].T)  # (batch, 1)
            moved = moved - (u * z_hat).mean(-1) * shape_term
        return rs[layer] * moved

    return [
        follow(layer, np.eye(w.shape[0], dtype=np.float32)[units[layer]])
        for layer, w in enumerate(weights)
    ]


def forward_reference(
    model: MLP, params: Params, x: Any, y: NDArray[Any]
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Return logits, loss, 1 - p_y and correctness of every sample; the twin of `forward`."""
    logits = _states(model, params, x)[3]
    loss, hardness, correct, _ = _outcome(logits, y)
    return logits, loss, hardness, correct


def unit_sums_reference(
    model: MLP,
    params: Params,
    x: Any,
    y: NDArray[Any],
    weight: Floats,
    units: Sequence[NDArray[np.int64]],
    threshold: float = -np.inf,
) -> Sums:
    """Sum the alignments of all weights into the drawn units over samples; plain NumPy."""
    states = _states(model, params, x)
    loss, hardness, correct, g = _outcome(states[3], y)
    kept = np.where(hardness > threshold, weight, 0).astype(np.float32)[:, None]  # (batch, 1)
    alignments, squares = [], []
    for h, t in zip(states[0], _tangents(model, params, states, g, units), strict=True):
        t = kept * t  # (batch, units)
        alignments.append(t.T @ h)  # (units, n_in)
        squares.append((t**2).T @ h**2)
    return Sums(tuple(alignments), tuple(squares), loss, hardness, correct)


def direction_sums_reference(
    model: MLP,
    params: Params,
    x: Any,
    y: NDArray[Any],
    weight: Floats,
    directions: Sequence[Any],
    threshold: float = -np.inf,
) -> Sums:
    """Sum the alignments with sparse directions over samples; plain NumPy.

    `directions` are arrays ``offsets, positions, signs``. Direction p is ``signs`` at flat
    ``positions`` (over the layers laid end to end), entries ``offsets[p]`` to ``offsets[p + 1]``.
    """
    a, loss, hardness, correct = alignments_reference(
        model, params, x, y, weight, directions, threshold
    )
    sums = (each.sum(0).astype(np.float32) for each in (a, a**2))
    alignments, squares = ((each,) for each in sums)
    return Sums(alignments, squares, loss, hardness, correct)


def alignments_reference(
    model: MLP,
    params: Params,
    x: Any,
    y: NDArray[Any],
    weight: Floats,
    directions: Sequence[Any],
    threshold: float = -np.inf,
) -> tuple[NDArray[np.float64], Floats, Floats, NDArray[np.bool_]]:
    """Return w_b a_b of each sample, (batch, directions), its loss, 1 - p_y and correctness."""
    offsets, positions, signs = directions[:3]
    states = _states(model, params, x)
    loss, hardness, correct, g = _outcome(states[3], y)
    kept = np.where(hardness > threshold, weight, 0).astype(np.float32)[:, None]
    units, unit_index, layer_index, column = locate(params, positions)
    input_index = np.cumsum([0, *(w.shape[1] for w in params.values())])[layer_index] + column
    tangents = kept * np.concatenate(_tangents(model, params, states, g, units), axis=1)
    inputs = np.concatenate(states[0], axis=1)  # (batch, all inputs)
    entries = signs * inputs[:, input_index] * tangents[:, unit_index]  # (batch, nonzeros)
    padded = np.concatenate(
        [np.zeros((len(y), 1)), np.cumsum(entries, axis=1, dtype=np.float64)], 1
    )
    return np.diff(padded[:, offsets], axis=1), loss, hardness, correct


def locate(params: Params, positions: NDArray[np.int64]) -> tuple[Any, ...]:
    """Return the units that positions touch per layer; each position's unit, layer and input."""
    units, unit_index, column = [], np.empty_like(positions), np.empty_like(positions)
    layer_index = np.empty_like(positions)
    start = drawn = 0
    for layer, w in enumerate(params.values()):
        inside = (positions >= start) & (positions < start + w.size)
        unit, column[inside] = np.divmod(positions[inside] - start, w.shape[1])
        touched, number = np.unique(unit, return_inverse=True)
        units.append(touched)
        unit_index[inside] = drawn + number
        layer_index[inside] = layer
        start += w.size
        drawn += len(touched)
    return tuple(units), unit_index, layer_index, column
