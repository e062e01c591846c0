"""Norm, gate and rotation of a transformer as kernels: one pass over memory where NumPy takes five.

A row of activations stays in the first cache while it is read twice. Sums of float32 go in the
order that fills the vectors.
"""

from __future__ import annotations

import numpy as np

from minibit.kernels.compiling import Array, njit


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def norm(x: Array, gain: Array, eps: float, z: Array, unit: Array, r: Array) -> None:
    """Fill ``r = 1 / sqrt(mean x^2 + eps)``, ``unit = x r`` and ``z = unit gain``, row by row."""
    rows, width = x.shape
    for i in range(rows):
        square = np.float32(0)
        for j in range(width):
            square += x[i, j] * x[i, j]
        inverse = np.float32(1 / np.sqrt(square / np.float32(width) + np.float32(eps)))
        r[i, 0] = inverse
        for j in range(width):
            unit[i, j] = x[i, j] * inverse
            z[i, j] = unit[i, j] * gain[j]


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def norm_back(c: Array, unit: Array, r: Array, gain: Array, out: Array) -> None:
    """Fill ``r (c gain - unit mean(unit c gain))``, row by row."""
    rows, width = c.shape
    for i in range(rows):
        along = np.float32(0)
        for j in range(width):
            along += unit[i, j] * c[i, j] * gain[j]
        along /= np.float32(width)
        for j in range(width):
            out[i, j] = r[i, 0] * (c[i, j] * gain[j] - unit[i, j] * along)


@njit(cache=True, nogil=True, fastmath={"contract"})
def gain_back(c: Array, unit: Array, out: Array) -> None:
    """Fill ``sum over rows of c unit``."""
    rows, width = c.shape
    out[:] = 0
    for i in range(rows):
        for j in range(width):
            out[j] += c[i, j] * unit[i, j]


@njit(cache=True, nogil=True)
def gate(gates: Array, up: Array, y: Array, slope: Array, square: Array) -> None:
    """Fill ``square = max(gate, 0)^2``, ``y = square up``, ``slope = 2 max(gate, 0) up``; flat."""
    for i in range(gates.size):
        rectified = np.float32(0) if gates[i] < 0 else gates[i]  # NaN stays
        square[i] = rectified * rectified
        y[i] = square[i] * up[i]
        slope[i] = (rectified + rectified) * up[i]


@njit(cache=True, nogil=True, fastmath={"contract"})
def turn(x: Array, cos: Array, sin: Array, back: bool, out: Array) -> None:
    """Turn the pairs ``(j, j + half)`` of x (batch, length, heads, head_dim) by their angles.

    The tables are those of `minibit.transformer.attend.Positions`, (length, 1, 2, half).
    """
    batch, length, heads, width = x.shape
    half = width // 2
    sign = np.float32(-1) if back else np.float32(1)
    for b in range(batch):
        for t in range(length):
            for h in range(heads):
                for j in range(half):
                    c, s = cos[t, 0, 0, j], sign * sin[t, 0, 1, j]
                    first, second = x[b, t, h, j], x[b, t, h, half + j]
                    out[b, t, h, j] = first * c - second * s
                    out[b, t, h, half + j] = second * c + first * s
