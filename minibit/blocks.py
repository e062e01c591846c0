"""The pieces of a transformer whose derivative is worth writing down.

Each is a few lines of NumPy that `minibit.dual` could differentiate operation by operation. A rule
of its own names the least linear work that the tangent takes, so that reverse mode, which
transposes that work, passes over memory as few times as a hand-written backward pass.

    normalize      z = gain x r,  r = 1 / sqrt(mean x^2 + eps)
    gated_unit     max(gate, 0)^2 up
    embed          a row of the table for every token
    token_loss     mean of logsumexp(z) - z[target]

May import: numpy, minibit.dual.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minibit.dual import custom_jvp

__all__ = ["embed", "gated_unit", "normalize", "token_loss", "widen"]

Array = Any  # an ndarray, or a Dual, which behaves like one

ONE_HOT = 1024  # largest vocabulary whose embedding is differentiated as a product


@custom_jvp
def normalize(x: Array, gain: Array, *, eps: float) -> Array:
    """Divide each row by its root mean square: ``z = gain x / sqrt(mean x^2 + eps)``.

    `minibit.layers.rms_norm` on rows, with a rule of its own.

    Parameters
    ----------
    x : float array, shape (rows, width)
    gain : float array, shape (width,)
    eps : float

    Returns
    -------
    array, shape (rows, width)

    Notes
    -----
    ``z_dot = gain r x_dot - z r^2 mean(x x_dot) + x r gain_dot``.

    Examples
    --------
    >>> normalize(np.array([[3.0, -4.0]]), np.ones(2), eps=1e-5).round(3)
    array([[ 0.849, -1.131]])
    """
    return x * _inverse_rms(x, eps) * gain


@normalize.defjvp
def _normalize_rule(
    primals: tuple[Array, Array], tangents: tuple[Array, Array], *, eps: float
) -> tuple[Array, Array]:
    (x, gain), (x_dot, gain_dot) = primals, tangents
    r = _inverse_rms(x, eps)  # (rows, 1)
    unit = x * r  # (rows, width)
    z = unit * gain
    along = np.sum(x_dot * unit, axis=-1, keepdims=True)  # (rows, 1)
    z_dot = x_dot * (r * gain) - along * (z * (r / x.shape[-1])) + gain_dot * unit
    return z, z_dot


def _inverse_rms(x: Array, eps: float) -> Array:
    """``1 / sqrt(mean x^2 + eps)`` of every row."""
    square = np.einsum("ri,ri->r", x, x)[:, None]  # (rows, 1)
    return 1 / np.sqrt(square / x.shape[-1] + eps)


@custom_jvp
def gated_unit(gate: Array, up: Array) -> Array:
    """Gate by the squared rectified linear unit: ``max(gate, 0)^2 up``.

    Parameters
    ----------
    gate, up : float arrays of one shape

    Returns
    -------
    array of that shape

    Notes
    -----
    ``y_dot = 2 max(gate, 0) up gate_dot + max(gate, 0)^2 up_dot``.

    Examples
    --------
    >>> gated_unit(np.array([-1.0, 2.0]), np.array([3.0, 0.5]))
    array([0., 2.])
    """
    rectified = np.maximum(gate, 0)
    return rectified * rectified * up


@gated_unit.defjvp
def _gated_unit_rule(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (gate, up), (gate_dot, up_dot) = primals, tangents
    rectified = np.maximum(gate, 0)
    square = rectified * rectified
    return square * up, gate_dot * (2 * rectified * up) + up_dot * square


@custom_jvp
def embed(table: Array, tokens: Array) -> Array:
    """Look up the row of every token.

    Parameters
    ----------
    table : float array, or uint16 array of bfloat16 bits, shape (vocab, hidden)
    tokens : integer array, shape (rows,)

    Returns
    -------
    array, shape (rows, hidden)
        float32 for bfloat16 bits, else of the table's type.

    Notes
    -----
    The tangent is ``one_hot(tokens) @ table_dot`` for a small vocabulary: its transpose, which adds
    up the rows of equal tokens, is then a product of matrices.

    Examples
    --------
    >>> embed(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1, 0, 1]))
    array([[3., 4.],
           [1., 2.],
           [3., 4.]])
    """
    return widen(table[tokens])


@embed.defjvp
def _embed_rule(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    (table, tokens), (table_dot, _) = primals, tangents
    vocab = table.shape[0]
    if vocab > ONE_HOT:
        return table[tokens], table_dot[tokens]
    hot = (tokens[:, None] == np.arange(vocab)).astype(table.dtype)  # (rows, vocab)
    return table[tokens], hot @ table_dot


def widen(x: Array) -> Array:
    """Turn bfloat16 bits (uint16) into float32; let floats through.

    Parameters
    ----------
    x : float array, or uint16 array, of any shape

    Examples
    --------
    >>> widen(np.uint16([0x3F80, 0xC000]))
    array([ 1., -2.], dtype=float32)
    """
    if x.dtype != np.uint16:
        return x
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


@custom_jvp
def token_loss(logits: Array, targets: Array) -> Array:
    """Mean negative log-probability of the next tokens: `minibit.layers.cross_entropy`, quicker.

    ``mean over rows of logsumexp(z) - z[target]``, in nats a token.

    Parameters
    ----------
    logits : float array, shape (..., vocab)
    targets : integer array, shape (...)
        In range; not checked here, as the training loop makes them.

    Returns
    -------
    number

    Notes
    -----
    ``loss_dot = sum (softmax(z) - one_hot(target)) z_dot / rows``.

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
    z = np.reshape(logits, (-1, logits.shape[-1]))  # (rows, vocab)
    z = z - np.max(z, axis=-1, keepdims=True)
    e = np.exp(z)
    total = np.sum(e, axis=-1)  # (rows,)
    picked = z[np.arange(len(z)), np.reshape(targets, -1)]  # (rows,)
    return np.mean(np.log(total) - picked), e / total[:, None]
