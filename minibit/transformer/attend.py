"""Rotary positions (RoPE) and causal attention: where a token is, and which tokens it looks at.

    rotate             (a, b) -> (a cos - b sin, b cos + a sin)    angle = position theta^(-2 i / d)
    causal_attention   o_t = sum over s <= t of softmax_s(q_t k_s / sqrt(d)) v_s

With fewer key heads than query heads (grouped queries) there is less to keep of every token.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibit.base import plain
from minibit.dual import Dual, custom_jvp
from minibit.kernels import takes
from minibit.tape import Recorder

__all__ = ["Positions", "causal_attention", "positions", "rotate"]

Array = Any  # an ndarray, or a Dual, which behaves like one


class Positions(NamedTuple):
    """The positions of the tokens of a call: made once, used by every layer."""

    batch: int
    length: int  # (batch, length) is the shape of the tokens
    start: int  # position of the first token: how many a cache holds
    cos: NDArray[np.float32]  # (length, 1, 2, head_dim / 2), a table of `rotate`
    sin: NDArray[np.float32]  # the same, with the sign in the table
    future: NDArray[np.bool_] | None  # (length, start + length): the key is later; None if none is


def positions(
    batch: int,
    length: int,
    head_dim: int,
    theta: float = 10000.0,
    start: int = 0,
    divisors: NDArray[np.float32] | None = None,
) -> Positions:
    """Make the rotary tables and the causal mask for `length` tokens from position `start` on.

    ``angle[p, i] = p theta^(-2 i / head_dim)`` for i below head_dim / 2, in float32 as published,
    over ``divisors[i]`` if there are any; `head_dim` is even. Source: Su et al., RoFormer (arXiv
    2104.09864), eq. 15, with Llama's pairs (i, i + head_dim / 2) in place of neighbours.

    Examples
    --------
    >>> positions(1, 3, head_dim=4).future.astype(int)
    array([[0, 1, 1],
           [0, 0, 1],
           [0, 0, 0]])
    """
    half = head_dim // 2
    exponent = np.arange(0, 2 * half, 2, dtype=np.float32) / np.float32(head_dim)  # (half,)
    frequency = np.float32(1) / np.float32(theta) ** exponent
    frequency = frequency if divisors is None else frequency / divisors
    position = np.arange(start, start + length)[:, None]  # (length, 1)
    angle = (position.astype(np.float32) * frequency)[:, None, None, :]  # (length, 1, 1, half)
    cos = np.concatenate([np.cos(angle)] * 2, axis=2)  # (length, 1, 2, half)
    sin = np.concatenate([-np.sin(angle), np.sin(angle)], axis=2)
    future = np.arange(start + length) > position if length > 1 else None
    return Positions(batch, length, start, cos, sin, future)


def rotate(x: Array, at: Positions) -> Array:
    """Turn each pair (x[i], x[i + head_dim / 2]) of every head by the angle of its position.

    ``(a, b) -> (a cos - b sin, b cos + a sin)``, for x (batch, length, heads, head_dim) of the
    tables' length and width: ``rotate(q) . rotate(k)`` then depends on the two positions through
    their difference alone.

    Examples
    --------
    >>> x = np.float32([[[[1, 0]], [[1, 0]]]])  # one head of two entries, at positions 0 and 1
    >>> rotate(x, positions(1, 2, 2)).round(3)[0, :, 0]
    array([[1.   , 0.   ],
           [0.54 , 0.841]], dtype=float32)
    """
    length, _, _, half = at.cos.shape
    if x.ndim != 4 or (x.shape[1], x.shape[3]) != (length, 2 * half):
        raise ValueError(
            f"x must have shape (batch, {length}, heads, {2 * half}), got {tuple(x.shape)}"
        )
    return (_turned if isinstance(x, Dual) else _turn)(x, cos=at.cos, sin=at.sin)


def _turn(x: Array, *, cos: Array, sin: Array, back: bool = False) -> Array:
    """Turn pairs by the kernel where it can, else by its reference."""
    if not takes(x):
        return turn_reference(x, cos, sin, back)
    from minibit.kernels.blocks import turn

    turn(x, cos, sin, back, out := np.empty_like(x))
    return out


_turned = custom_jvp(_turn)


@_turned.defjvp
def _turned_rule(
    primals: tuple[Array], tangents: tuple[Array], *, cos: Array, sin: Array
) -> tuple[Array, Array]:
    (x,), (x_dot,) = primals, tangents
    if isinstance(x_dot, Recorder):
        x_dot = x_dot._line(x_dot.shape, x_dot.dtype, _turn_back, cos, sin)
    else:
        x_dot = turn_reference(x_dot, cos, sin, back=False)
    return _turned(x, cos=cos, sin=sin), x_dot


def turn_reference(x: Array, cos: Array, sin: Array, back: bool) -> Array:
    """Turn every pair of x, or a tangent of it, by its angle; `back`: by minus its angle."""
    cos, sin = cos.astype(x.dtype, copy=False), sin.astype(x.dtype, copy=False)
    pair = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)  # (batch, length, heads, 2, half)
    return np.reshape(pair * cos + pair[..., ::-1, :] * (-sin if back else sin), x.shape)


def _turn_back(c: Array, shape: tuple[int, ...], owned: bool, cos: Array, sin: Array) -> Array:
    """Carry a cotangent back: the transpose of a rotation is the rotation back."""
    c = plain(c) if type(c) is np.ndarray else c  # a Dual, in a derivative of the gradient
    return _turn(c, cos=cos, sin=sin, back=True)


@custom_jvp
def causal_attention(q: Array, k: Array, v: Array, *, future: Any = None) -> Array:
    """Average the values of earlier tokens, weighted by a softmax of query times key.

    ``p = softmax(q k^T / sqrt(head_dim))`` over the keys that are not later, ``o = p v``, for q
    (batch, heads, length, head_dim), k and v (batch, kv_heads, keys, head_dim). Query head h reads
    key head ``h // (heads / kv_heads)``. Values may have another width. `future`, (length, keys),
    is true where a key must not be seen; in each row one key at least is seen.

    With ``s = q k^T / sqrt(d)`` the tangent is ``o_dot = (p s_dot) v - (sum p s_dot) o + p v_dot``:
    the correction of the softmax is made on the outputs, which are smaller than the weights.

    Examples
    --------
    >>> q = k = np.zeros((1, 1, 2, 2), np.float32)
    >>> v = np.float32([[[[1, 2], [3, 4]]]])
    >>> causal_attention(q, k, v, future=np.array([[False, True], [False, False]]))[0, 0]
    array([[1., 2.],
           [2., 3.]], dtype=float32)
    """
    q, future, shape = _grouped(q, k, future)
    scaled = q * (1 / math.sqrt(q.shape[-1]))  # (batch, kv_heads, group length, head_dim)
    p = _softmax(scaled @ _swapped(k), future)  # (batch, kv_heads, group length, keys)
    return (p @ v).reshape(*shape[:3], v.shape[-1])


@causal_attention.defjvp
def _attention_rule(
    primals: tuple[Array, ...], tangents: tuple[Array, ...], *, future: Any = None
) -> tuple[Array, Array]:
    q, k, v = primals
    q, future, shape = _grouped(q, k, future)
    q_dot, k_dot, v_dot = np.reshape(tangents[0], q.shape), *tangents[1:]
    scale = 1 / math.sqrt(q.shape[-1])
    scaled, scaled_k = q * scale, k * scale
    p = _softmax(scaled @ _swapped(k), future)  # (batch, kv_heads, group length, keys)
    o = p @ v  # (batch, kv_heads, group length, head_dim)
    s_dot = q_dot @ _swapped(scaled_k) + scaled @ _swapped(k_dot)
    u = s_dot * p
    correction = np.sum(u, axis=-1, keepdims=True)  # (batch, kv_heads, group length, 1)
    o_dot = u @ v - correction * o + p @ v_dot
    shape = (*shape[:3], v.shape[-1])
    return o.reshape(shape), np.reshape(o_dot, shape)


def _grouped(q: Array, k: Array, future: Any) -> tuple[Array, Any, tuple[int, ...]]:
    """Lay the query heads that share a key head one after the other, as more queries of it."""
    batch, heads, length, head_dim = shape = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    if group == 1:
        return q, future, shape
    future = None if future is None else np.tile(future, (group, 1))
    return q.reshape(batch, kv_heads, group * length, head_dim), future, shape


def _swapped(x: Array) -> Array:
    return np.transpose(x, (0, 1, 3, 2))


def _softmax(scores: Array, future: Any) -> Array:
    """Softmax over the last axis; 0 where `future` is true. May overwrite the scores."""
    if type(scores) is np.ndarray:
        if future is not None:
            np.copyto(scores, -np.inf, where=future)
        scores -= np.max(scores, axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= np.sum(scores, axis=-1, keepdims=True)
        return scores
    if future is not None:
        scores = np.where(future, -np.inf, scores)
    e = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)
