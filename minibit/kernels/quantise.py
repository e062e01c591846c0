"""Quantisers as kernels: absmax for activations (int8 a token), absmean for weights (ternary).

A float maximum does not vectorise, because it must decide about NaN in every step. The bits of
non-negative floats order like integers, though, and those of NaN and infinity come last: an integer
maximum over ``bits & 0x7fffffff`` is both the absolute maximum and the check that all is finite.
The order of operations is that of published code; ``127 / m`` would differ in the last bit for a
fifth of the values. Functions of one token take (matrix, row) rather than a view of the row:
counting its references would cost as much as half the work.
"""

from __future__ import annotations

import numpy as np

from minibit.kernels.compiling import Array, njit

MAGNITUDE = np.int32(0x7FFFFFFF)
INFINITY = np.int32(0x7F800000)
SMALLEST = np.float32(1e-5)
BLOCK = 4096  # weights at a time, for the absmean


@njit(cache=True, nogil=True)
def largest_magnitude(bits: Array) -> np.int32:
    """Bits of the largest |x|, or of an infinity or a NaN if there is one."""
    largest = np.int32(0)
    for i in range(bits.size):
        largest = max(largest, np.int32(bits[i] & MAGNITUDE))
    return largest


@njit(cache=True, nogil=True, forceinline=True)
def quantise_row(x: Array, token: int, codes: Array, row: int) -> np.float32:
    """Quantise one token: a row of codes, at least as long, gets ``rint(x[token] * s)``; return s.

    ``s = (1 / max(max|x|, 1e-5)) * 127``; -1 if an entry is NaN or infinite, and codes unwritten.
    """
    largest = np.int32(0)
    for i in range(x.shape[1]):
        largest = max(largest, np.int32(np.float32(x[token, i]).view(np.int32) & MAGNITUDE))
    if largest >= INFINITY:
        return np.float32(-1)
    absmax = max(np.int32(largest).view(np.float32), SMALLEST)
    scale = np.float32(np.float32(1) / absmax) * np.float32(127)
    for i in range(x.shape[1]):
        codes[row, i] = np.int8(np.int32(np.rint(x[token, i] * scale)))
    return scale


@njit(cache=True, nogil=True, forceinline=True)
def sum_row(codes: Array, row: int) -> np.int32:
    """Sum a row of int8 codes as int32; the cast in the loop keeps the vector lanes narrow."""
    total = np.int32(0)
    for i in range(codes.shape[1]):
        total = np.int32(total + codes[row, i])
    return total


@njit(cache=True, nogil=True, forceinline=True)
def copy_row(x: Array, token: int, codes: Array, row: int) -> None:
    """Copy a row of int8 codes to one at least as long; a slice would go byte by byte."""
    for i in range(x.shape[1]):
        codes[row, i] = x[token, i]


@njit(cache=True, nogil=True)
def take_tokens(x, gamma, rows, minus, scales):
    """Copy or quantise tokens into padded `rows`; False if an entry is not finite.

    `minus` gets minus the sum of each token's codes, `scales` what its sums are multiplied by.
    """
    for token in range(x.shape[0]):
        if gamma is None:
            copy_row(x, token, rows, token)
        else:
            scale = quantise_row(x, token, rows, token)
            if scale < 0:
                return False
            scales[token] = gamma / scale
        minus[token] = -sum_row(rows, token)
    return True


@njit(cache=True, nogil=True)
def absmax(x: Array, codes: Array, scales: Array) -> bool:
    """Quantise every token of ``x (tokens, n)``, into codes of any dtype; False if not finite."""
    for token in range(x.shape[0]):
        scale = quantise_row(x, token, codes, token)
        if scale < 0:
            return False
        scales[token] = scale
    return True


@njit(cache=True, nogil=True, fastmath={"reassoc"})
def _sum_magnitudes(w: Array) -> float:
    """Sum |w| in float64, in whatever order fills the vectors."""
    total = 0.0
    for i in range(w.size):
        total += np.float64(abs(w[i]))
    return total


@njit(cache=True, nogil=True)
def absmean(w: Array, codes: Array) -> np.float32:
    """Quantise flat weights to ternary codes; return gamma, or -1 if an entry is not finite.

    The mean is summed in float64 and rounded once, so that the order of the sum, which differs
    between CPUs, shows in gamma only if the mean lies within 1e-13 of a tie of float32.
    """
    bits = w.view(np.int32)
    total, largest = 0.0, np.int32(0)
    for start in range(0, w.size, BLOCK):  # read once from memory, twice from the cache
        end = min(start + BLOCK, w.size)
        total += _sum_magnitudes(w[start:end])
        largest = max(largest, largest_magnitude(bits[start:end]))
    if largest >= INFINITY:
        return np.float32(-1)
    gamma = max(np.float32(total / w.size), SMALLEST)
    inverse = np.float32(1) / gamma
    for i in range(w.size):
        scaled = min(max(w[i] * inverse, np.float32(-1)), np.float32(1))
        codes[i] = np.int8(np.int32(np.rint(scaled)))
    return gamma
