"""Layers as plain functions: a model is a function of (params, x).

    ternary_linear   y = scale * x W^T                      W in {-1, 0, 1}
    layer_norm       z = (x - mean x) / sqrt(var x + eps)
    rms_norm         z = gain * x / sqrt(mean x^2 + eps)
    relu, squared_relu, cross_entropy
    mlp              h <- relu(layer_norm(h W^T)), logits = c h W_last^T

Parameters are flat dicts of arrays. Stored ternary weights are int8, which layers cast to float32.
`minibit.dual.jvp` differentiates every function here as it stands, given float32 copies of the
weights. float32 in, float32 out; integer inputs (pixels) become float32, and what holds no real
numbers is a TypeError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minibit.absmean import fake_quant_activation
from minibit.base import integer, integer_array, number, one_of, unmasked
from minibit.dual import stop_gradient
from minibit.ternary import check_codes

__all__ = [
    "cross_entropy",
    "init_mlp",
    "layer_norm",
    "mlp",
    "relu",
    "rms_norm",
    "squared_relu",
    "ternary_linear",
]

ACTIVATIONS = ("float", "int8")
"""The kinds of activations that the layers of `mlp` may hand on."""

Array = NDArray[Any]  # or a Dual, which behaves like one


def _floating(x: Array) -> Array:
    """Cast integers to float32 and let floats through (duals as they are)."""
    if not hasattr(x, "dtype"):
        x = np.asarray(x)
    if x.dtype.kind not in "fiub" or (isinstance(x, np.ndarray) and hasattr(x, "mask")):
        got = f"{type(x).__name__} of {x.dtype}"
        raise TypeError(f"layers take arrays of real numbers, none of them masked, got {got}")
    return x.astype(np.float32) if x.dtype.kind in "iub" else x


def ternary_linear(x: Array, w: Array, scale: float | Array | None = None) -> Array:
    """Multiply activations by a ternary matrix: ``y = x w^T``, times `scale` if there is one.

    Activations x (..., n_in) meet w (n_out, n_in) of int8 codes, cast once to float32, or of
    floats; a ValueError if they don't fit. `scale` broadcasts to (..., n_out): the paper's MLP has
    none, BitNet one number per matrix. NaN and infinities pass as in any product: ``inf * 0`` is
    NaN, so an infinite input spoils also the outputs that ignore it.

    Examples
    --------
    >>> ternary_linear(np.float32([[2, 3, 5]]), np.int8([[1, 0, -1], [1, 1, 1]]))
    array([[-3., 10.]], dtype=float32)
    """
    x, w = _floating(x), _floating(w)
    if w.ndim != 2 or x.ndim == 0 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"x (..., n_in) must fit w (n_out, n_in), got {x.shape} and {w.shape}")
    y: Array = x @ w.T  # (..., n_out)
    return y if scale is None else scale * y


def layer_norm(x: Array, eps: float = 1e-5) -> Array:
    """Centre each row and divide it by its standard deviation; no gain, no bias.

    ``z = (x - mean x) / sqrt(mean (x - mean x)^2 + eps)`` over the last axis.

    A row of variance v gets variance ``v / (v + eps)``: 1 for any v well above `eps`, which is
    above 0, so that a constant row gives zeros. A ValueError if it is not, or if the last axis of x
    is empty.

    Notes
    -----
    A NaN or infinity makes its own row NaN and no other. In float32, entries beyond 1e19 overflow
    when squared, and the rounding of the mean is divided by sqrt(eps) in a row that hardly varies:
    a constant row of 0.1 may give some 1e-6 in place of 0. Tangent, with r = 1 / sqrt(v + eps):
    ``z_dot = r (x_dot - mean x_dot - z mean(z x_dot))``. Source: Ba et al., arXiv 1607.06450.

    Examples
    --------
    >>> layer_norm(np.array([[1.0, 2.0, 3.0], [7.0, 7.0, 7.0]])).round(3)
    array([[-1.225,  0.   ,  1.225],
           [ 0.   ,  0.   ,  0.   ]])
    """
    x = _normalisable(x, eps)
    centred = x - np.mean(x, axis=-1, keepdims=True)  # (..., width)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)  # (..., 1)
    z: Array = centred / np.sqrt(variance + eps)  # (..., width)
    return z


def rms_norm(x: Array, gain: Array | None = None, eps: float = 1e-5) -> Array:
    """Divide each row by its root mean square: ``z = gain * x / sqrt(mean x^2 + eps)``.

    `gain` broadcasts to x (..., width), and `eps` is as in `layer_norm`. A NaN or infinity makes
    its own row NaN (an infinite entry's finite neighbours become 0) and no other. Source: Zhang and
    Sennrich, arXiv 1910.07467.

    Examples
    --------
    >>> rms_norm(np.array([3.0, -4.0])).round(3)
    array([ 0.849, -1.131])
    """
    x = _normalisable(x, eps)
    z: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)  # (..., width)
    return z if gain is None else gain * z


def _normalisable(x: Array, eps: float) -> Array:
    """Cast as `_floating` does, after the checks that both norms share."""
    x = _floating(x)
    number("eps", eps, "(0, inf)")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have a last axis that is not empty, got shape {x.shape}")
    return x


def relu(x: Array) -> Array:
    """Set negative entries to zero: ``max(x, 0)``, with derivative 0 at 0.

    Takes and returns an array of any shape. NaN stays NaN.

    Examples
    --------
    >>> relu(np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 2.])
    """
    return np.maximum(_floating(x), 0)


def squared_relu(x: Array) -> Array:
    """Square of the rectified input: ``max(x, 0)^2``, the non-linearity of BitNet b1.58 2B4T.

    Takes and returns an array of any shape. NaN stays NaN; the derivative ``2 max(x, 0)`` is
    continuous, 0 at 0.

    Examples
    --------
    >>> squared_relu(np.array([-1.0, 0.0, 3.0]))
    array([0., 0., 9.])
    """
    rectified = relu(x)
    return rectified * rectified


def cross_entropy(
    logits: Array, labels: Array, reduction: Literal["mean", "none"] = "mean"
) -> Array | np.floating[Any]:
    """Negative log-probability of the labels under a softmax: ``logsumexp(z) - z[label]``.

    Parameters
    ----------
    logits : array, shape (..., classes)
        May be large: the maximum of a row is subtracted before anything is raised to a power.
        ``-inf`` is a class of probability 0.
    labels : integer array, shape (...)
        0 to classes - 1.
    reduction : {"mean", "none"}
        Mean over all labels (a scalar), or one loss per label.

    Returns
    -------
    array, shape () or (...)
        At least 0; NaN where a row of logits holds NaN or +inf, or -inf only.

    Raises
    ------
    TypeError, ValueError
        If labels are not integers, masked or out of range (the first is named), shapes differ,
        there is no class, `reduction` is unknown, or the mean of no label is asked for.

    Examples
    --------
    >>> cross_entropy(np.array([[0.0, 0.0], [100.0, 0.0]]), np.array([0, 1]), "none").round(3)
    array([  0.693, 100.   ])
    """
    logits, labels = _floating(logits), unmasked("labels", labels)
    if logits.ndim == 0 or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels must have the shape of logits without its last axis, "
            f"got {labels.shape} and {logits.shape}"
        )
    one_of("reduction", reduction, ("mean", "none"))
    if reduction == "mean" and labels.size == 0:
        raise ValueError("labels must not be empty for reduction 'mean'")
    classes = logits.shape[-1]
    if classes == 0:
        raise ValueError(f"logits must have at least one class, got shape {logits.shape}")
    labels = integer_array("labels", labels, 0, classes - 1)
    shifted = logits - np.max(logits, axis=-1, keepdims=True)  # (..., classes)
    log_sum = np.log(np.sum(np.exp(shifted), axis=-1))  # (...)
    picked = np.take_along_axis(shifted, labels.astype(np.intp)[..., None], axis=-1)  # (..., 1)
    losses: Array = log_sum - picked[..., 0]  # (...)
    return np.mean(losses) if reduction == "mean" else losses


def mlp(
    params: Mapping[str, Array],
    x: Array,
    *,
    logit_scale: float = 1.0,
    eps: float = 1e-5,
    linear: Callable[[Array, Array], Array] = ternary_linear,
    activations: Literal["float", "int8"] = "float",
) -> Array:
    """Run the ternary multi-layer perceptron of noise_step; return its logits.

    ``h <- relu(layer_norm(h W_l^T))`` for every layer but the last, ``logits = logit_scale h W^T``.
    No layer has a scale or a bias: layer norm takes any scale away again.

    Parameters
    ----------
    params : mapping
        ``{"w1": W1, ..., "wL": WL}``, each (n_out, n_in), int8 codes or floats.
    x : array, shape (..., n_in)
        Inputs, already normalised.
    logit_scale : float
        Python float, or anything that keeps float32 (softmax's inverse temperature).
    eps : float
        As in `layer_norm`.
    linear : callable (h, W) -> h W^T
        What multiplies; gets every weight as it stands in `params`.
    activations : "float" or "int8"
        What the hidden layers hand on to one another. With ``"int8"`` all but the last of them
        round what layer norm returns, a sample to its own scale (`fake_quant_activation`):
        ``h <- relu(codes / scale)``.

    Returns
    -------
    array, shape (..., classes)

    Raises
    ------
    ValueError
        If `params` is empty or not named w1, w2, ...; if shapes do not fit; if `activations` is
        unknown; if an activation to be rounded is not finite.

    Notes
    -----
    The tangent of a rounded layer is straight-through: its codes answer as what was rounded does,
    and where a code is 0 nothing passes. Its standard deviation counts as constant: another norm
    follows, so the term left out, along the layer's own output, shows behind that norm through eps
    and the rounding errors only. On noise_step's network it is below a thousandth of the largest
    alignment, where rounding itself moves alignments by some hundredths.

    Examples
    --------
    >>> params = {"w1": np.int8([[1, 0], [0, 1], [1, 1]]), "w2": np.int8([[1, 0, 0], [0, 0, 1]])}
    >>> mlp(params, np.float32([[2, 1]])).round(3)
    array([[0.   , 1.225]], dtype=float32)
    """
    *hidden, last = _in_order(params)
    one_of("activations", activations, ACTIVATIONS)
    h = x
    for layer, w in enumerate(hidden):
        z = linear(h, w)  # (..., n_out)
        rounded = activations == "int8" and layer + 1 < len(hidden)
        h = relu(_rounded_norm(z, eps) if rounded else layer_norm(z, eps))
    return logit_scale * linear(h, last)  # (..., classes)


def _rounded_norm(x: Array, eps: float) -> Array:
    """Layer norm, its standard deviation held, rounded to int8 and back; straight-through."""
    x = _normalisable(x, eps)
    centred = x - np.mean(x, axis=-1, keepdims=True)  # (..., width)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)  # (..., 1)
    rounded: Array = fake_quant_activation(centred / stop_gradient(np.sqrt(variance + eps)))
    return rounded  # (..., width)


def _in_order(params: Mapping[str, Array]) -> list[Array]:
    """Weights by layer; names decide, not the dict's order."""
    names = [f"w{layer}" for layer in range(1, len(params) + 1)]
    if not names or set(names) != set(params):
        raise ValueError(f"params must be named w1, w2, ... without gaps, got {list(params)}")
    return [params[name] for name in names]


def init_mlp(
    widths: Sequence[int], draw: Callable[[int, tuple[int, int]], NDArray[np.int8]]
) -> dict[str, NDArray[np.int8]]:
    """Make the parameters of an MLP from any source of ternary codes.

    Parameters
    ----------
    widths : sequence of ints
        Inputs, hidden widths, classes: at least two, each at least 1.
    draw : function
        ``draw(layer, (n_out, n_in))`` returns the int8 codes of a layer, counted from 0.

    Returns
    -------
    dict
        ``{"w1": ..., "wL": ...}``, each int8 (n_out, n_in).

    Raises
    ------
    ValueError
        If there are fewer than two widths or one is below 1; if `draw` returns another shape or
        something else than codes.

    Examples
    --------
    >>> params = init_mlp((784, 256, 10), lambda layer, shape: np.zeros(shape, np.int8))
    >>> {name: w.shape for name, w in params.items()}
    {'w1': (256, 784), 'w2': (10, 256)}
    """
    widths = tuple(integer("widths", n, 1) for n in widths)
    if len(widths) < 2:
        raise ValueError(f"widths must be at least two, inputs to classes, got {widths}")
    params = {}
    for layer, (n_in, n_out) in enumerate(pairwise(widths)):
        codes = check_codes(draw(layer, (n_out, n_in)))
        if codes.shape != (n_out, n_in):
            raise ValueError(f"draw({layer}, {(n_out, n_in)}) returned shape {codes.shape}")
        params[f"w{layer + 1}"] = codes
    return params
