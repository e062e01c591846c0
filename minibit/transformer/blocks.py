"""The pieces of a transformer whose derivative is worth writing down.

Each is a few lines of NumPy that `minibit.dual` could differentiate operation by operation. A rule
of its own names the least linear work that the tangent takes, so that reverse mode, which
transposes that work, passes over memory as few times as a hand-written backward pass. On plain
float32 arrays it runs norm and gate as kernels (`minibit.kernels.blocks`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minibit.base import refuse_entries, widen
from minibit.dual import custom_jvp
from minibit.kernels import takes
from minibit.tape import Recorder
from minibit.ternary import TernaryMatrix

__all__ = ["embed", "gated_unit", "normalize", "silu_unit", "token_loss"]

Array = Any  # an ndarray, or a Dual, which behaves like one

SURE = 80.0  # largest exponent: exp of it is finite in float32, and what it gates 0 but for 1e-33
ONE_HOT = 1024  # largest vocabulary whose embedding is differentiated as a product


@custom_jvp
def normalize(x: Array, gain: Array, *, eps: float) -> Array:
    """Divide each row by its root mean square: ``z = gain x / sqrt(mean x^2 + eps)``.

    `minibit.layers.rms_norm` on rows, x (rows, width), with a rule of its own:
    ``z_dot = gain r x_dot - z r^2 mean(x x_dot) + x r gain_dot``. Other shapes are a ValueError.

    Examples
    --------
    >>> normalize(np.array([[3.0, -4.0]]), np.ones(2), eps=1e-5).round(3)
    array([[ 0.849, -1.131]])
    """
    return normalize_reference(x, gain, eps)[0]


@normalize.defjvp
def _normalize_rule(
    primals: tuple[Array, Array], tangents: tuple[Array, Array], *, eps: float
) -> tuple[Array, Array]:
    (x, gain), (x_dot, gain_dot) = primals, tangents
    recorded = isinstance(x_dot, Recorder) and isinstance(gain_dot, Recorder)
    fits = x.ndim == 2 and gain.shape == x.shape[1:]  # a kernel would read beyond a short gain
    norm = _normalize_kernel if recorded and fits and takes(x, gain) else normalize_reference
    z, unit, r = norm(x, gain, eps)
    if recorded and type(z) is np.ndarray:
        back = (
            (x_dot.number, _normalize_back, (unit, r, gain)),
            (gain_dot.number, _gain_back, (unit,)),
        )
        return z, x_dot.tape.variable(z.shape, z.dtype, *back)
    along = np.sum(x_dot * unit, axis=-1, keepdims=True)  # (rows, 1)
    z_dot = x_dot * (r * gain) - along * (z * (r / x.shape[-1])) + gain_dot * unit
    return z, z_dot


def normalize_reference(x: Array, gain: Array, eps: float) -> tuple[Array, Array, Array]:
    """Normalise rows and keep what the way back needs: ``z``, ``unit = x r`` and ``r``."""
    if x.ndim != 2 or tuple(gain.shape) != tuple(x.shape[1:]):
        shapes = f"got {tuple(x.shape)} and {tuple(gain.shape)}"
        raise ValueError(f"x and gain must have shapes (rows, width) and (width,), {shapes}")
    square = np.einsum("ri,ri->r", x, x)[:, None]  # (rows, 1)
    r = 1 / np.sqrt(square / x.shape[-1] + eps)  # (rows, 1)
    unit = x * r  # (rows, width)
    return unit * gain, unit, r


def normalize_back_reference(c: Array, unit: Array, r: Array, gain: Array) -> Array:
    """Transpose the tangent of `normalize` in x: ``r (c gain - unit mean(unit c gain))``."""
    c = c * gain  # (rows, width)
    return r * (c - unit * np.mean(unit * c, axis=-1, keepdims=True))


def gain_back_reference(c: Array, unit: Array) -> Array:
    """Transpose the tangent of `normalize` in the gain: ``sum over rows of c unit``."""
    return np.sum(c * unit, axis=0)  # (width,)


@custom_jvp
def gated_unit(gate: Array, up: Array) -> Array:
    """Gate by the squared rectified linear unit: ``max(gate, 0)^2 up``.

    ``y_dot = 2 max(gate, 0) up gate_dot + max(gate, 0)^2 up_dot``. Two shapes are a ValueError.

    Examples
    --------
    >>> gated_unit(np.array([-1.0, 2.0]), np.array([3.0, 0.5]))
    array([0., 2.])
    """
    _check_same(gate, up)
    rectified = np.maximum(gate, 0)
    return rectified * rectified * up


def _check_same(gate: Array, up: Array) -> None:
    """Check the shapes: a kernel would read beyond the end of the shorter array."""
    shapes = tuple(gate.shape), tuple(up.shape)
    if shapes[0] != shapes[1]:
        raise ValueError(f"gate and up must have one shape, got {shapes[0]} and {shapes[1]}")


@gated_unit.defjvp
def _gated_unit_rule(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (gate, up), (gate_dot, up_dot) = primals, tangents
    _check_same(gate, up)
    unit = _gated_unit_kernel if takes(gate, up) else gated_unit_reference
    y, slope, square = unit(gate, up)
    return y, gate_dot * slope + up_dot * square


def gated_unit_reference(gate: Array, up: Array) -> tuple[Array, Array, Array]:
    """Gate, and give the slopes in both: ``y``, ``2 max(gate, 0) up`` and ``max(gate, 0)^2``."""
    rectified = np.maximum(gate, 0)
    square = rectified * rectified
    return square * up, 2 * rectified * up, square


@custom_jvp
def silu_unit(gate: Array, up: Array) -> Array:
    """Gate by the sigmoid linear unit of Llama and Qwen3: ``gate sigma(gate) up``.

    With ``sigma = 1 / (1 + exp(-gate))`` the tangent is
    ``y_dot = sigma (1 + gate (1 - sigma)) up gate_dot + gate sigma up_dot``. Two shapes are a
    ValueError. Source: Shazeer, arXiv 2002.05202 (SwiGLU).

    Examples
    --------
    >>> silu_unit(np.array([-2.0, 0.0, 2.0]), np.ones(3)).round(3)
    array([-0.238,  0.   ,  1.762])
    """
    _check_same(gate, up)
    return gate / (1 + np.exp(np.minimum(-gate, SURE))) * up


@silu_unit.defjvp
def _silu_unit_rule(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (gate, up), (gate_dot, up_dot) = primals, tangents
    _check_same(gate, up)
    sigma = 1 / (1 + np.exp(np.minimum(-gate, SURE)))
    unit = gate * sigma
    slope = sigma * (1 + gate * (1 - sigma)) * up
    return unit * up, gate_dot * slope + up_dot * unit


@custom_jvp
def embed(table: Array, tokens: Array) -> Array:
    """Look up the row of every token in a table (vocab, hidden): floats, bfloat16 bits, or packed.

    The rows of bits and of a `TernaryMatrix` are float32. A negative token is a ValueError, one
    without a row an IndexError. The tangent is ``one_hot(tokens) @ table_dot`` for a small
    vocabulary: its transpose, which sums the rows of equal tokens, is then a product of matrices.

    Examples
    --------
    >>> embed(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1, 0]))
    array([[3., 4.],
           [1., 2.]])
    """
    refuse_entries("tokens", tokens, tokens < 0, "be 0 or more")  # NumPy counts them from the end
    return table.rows(tokens) if isinstance(table, TernaryMatrix) else widen(table[tokens])


@embed.defjvp
def _embed_rule(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    (table, tokens), (table_dot, _) = primals, tangents
    rows, vocab = embed(table, tokens), table.shape[0]
    if vocab > ONE_HOT:
        return rows, table_dot[tokens]
    hot = (tokens[:, None] == np.arange(vocab)).astype(table.dtype)  # (rows, vocab)
    return rows, hot @ table_dot


@custom_jvp
def token_loss(logits: Array, targets: Array) -> Array:
    """Mean negative log-probability of the next tokens: `minibit.layers.cross_entropy`, quicker.

    ``mean over rows of logsumexp(z) - z[target]``, in nats per token; logits (..., vocab) take
    targets (...). A ValueError if the shapes don't fit or a target is negative, an IndexError if
    one is too large. ``loss_dot = sum (softmax(z) - one_hot(target)) z_dot / rows``.

    Examples
    --------
    >>> float(token_loss(np.zeros((1, 2, 4)), np.array([[0, 3]])).round(4))  # log 4
    1.3863
    """
    return _loss_and_odds(logits, targets)[0]


@token_loss.defjvp
def _token_loss_rule(
    primals: tuple[Array, Array], tangents: tuple[Array, Any]
) -> tuple[Array, Array]:
    logits, targets = primals
    loss, odds = _loss_and_odds(logits, targets)
    hot = (np.reshape(targets, -1)[:, None] == np.arange(logits.shape[-1])).astype(logits.dtype)
    slope = np.reshape((odds - hot) / len(hot), logits.shape)  # (..., vocab)
    return loss, np.sum(tangents[0] * slope)


def _loss_and_odds(logits: Array, targets: Array) -> tuple[Array, Array]:
    """Mean loss, and the softmax of every row."""
    if targets.shape != tuple(logits.shape[:-1]):
        shape, rows = tuple(logits.shape), tuple(logits.shape[:-1])
        raise ValueError(
            f"logits of shape {shape} take targets of shape {rows}, got {targets.shape}"
        )
    refuse_entries("targets", targets, targets < 0, "be 0 or more")
    z = np.reshape(logits, (-1, logits.shape[-1]))  # (rows, vocab)
    z = z - np.max(z, axis=-1, keepdims=True)
    e = np.exp(z)
    total = np.sum(e, axis=-1)  # (rows,)
    picked = z[np.arange(len(z)), np.reshape(targets, -1)]  # (rows,)
    return np.mean(np.log(total) - picked), e / total[:, None]


def _normalize_kernel(x: Array, gain: Array, eps: float) -> tuple[Array, Array, Array]:
    from minibit.kernels import blocks as kernel

    z, unit, r = np.empty_like(x), np.empty_like(x), np.empty((len(x), 1), np.float32)
    kernel.norm(x, gain, eps, z, unit, r)
    return z, unit, r


def _gated_unit_kernel(gate: Array, up: Array) -> tuple[Array, Array, Array]:
    from minibit.kernels import blocks as kernel

    y, slope, square = (np.empty_like(gate) for _ in range(3))
    kernel.gate(*(a.reshape(-1) for a in (gate, up, y, slope, square)))
    return y, slope, square


def _normalize_back(
    c: Array, shape: tuple[int, ...], owned: bool, unit: Array, r: Array, gain: Array
) -> Array:
    """Carry a cotangent back, as the transposes of `minibit.tape.transposes` do."""
    if not takes(c):
        return normalize_back_reference(c, unit, r, gain)
    from minibit.kernels import blocks as kernel

    kernel.norm_back(c, unit, r, gain, out := np.empty_like(c))
    return out


def _gain_back(c: Array, shape: tuple[int, ...], owned: bool, unit: Array) -> Array:
    """Carry a cotangent back to the gain."""
    if not takes(c):
        return gain_back_reference(c, unit)
    from minibit.kernels import blocks as kernel

    kernel.gain_back(c, unit, out := np.empty(shape, np.float32))
    return out
