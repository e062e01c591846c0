"""Tokens in and products out: what products of several tokens share around their inner loops."""

from __future__ import annotations

import numpy as np
from numba import njit

from minibit.kernels.quantise import copy_row, quantise_row, sum_row

__all__ = ["take_tokens", "write_sums"]


@njit(cache=True, nogil=True)
def take_tokens(x, gamma, rows, minus, scales):  # type: ignore[no-untyped-def]
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
def write_sums(sums, minus, scales, gamma, out, begin):  # type: ignore[no-untyped-def]
    """Write ``sums (tokens, rows)``, of codes 0..2, as products of rows from `begin` on."""
    for token in range(out.shape[0]):
        for r in range(min(sums.shape[1], out.shape[1] - begin)):
            total = np.int32(sums[token, r] + minus[token])
            if gamma is None:
                out[token, begin + r] = total
            else:
                out[token, begin + r] = np.float32(total) * scales[token]
