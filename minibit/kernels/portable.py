"""The ternary product for any CPU: plain loops, no intrinsics, on weights in columns.

Rows lie side by side, so the loop over rows has no sum across lanes, and a compiler turns it into
vectors by itself. Sums stay in int16, twice as many to a register as int32, as long as they fit:
for eight steps of 16 columns, which reach -8 * 16 * 2 * 128 = -32768 and upwards stop short of it.
Then they are added into int32. Codes are 0..2; the sum of the activations is taken off first.

Tokens go one after the other; for what is done with many, see `minibit.matmul`.
"""

from __future__ import annotations

import numpy as np

from minibit.kernels.compiling import Array, njit
from minibit.kernels.quantise import take_tokens

ROWS = 64  # rows are given in groups of 64, as for panels
FLUSH = 8  # steps of 16 columns that int16 can hold


@njit(cache=True, nogil=True, _nrt=True)
def _sums(x, lines, begin, end, minus, sums):
    """Sum the products of rows begin..end of ``lines (n_in / 4, n_out)`` with one padded token."""
    part = np.zeros(end - begin, np.int16)
    sums[:] = minus
    for q in range(0, lines.shape[0], 4):
        a, b = lines[q, begin:end], lines[q + 1, begin:end]
        c, d = lines[q + 2, begin:end], lines[q + 3, begin:end]
        y = x[4 * q : 4 * q + 16].astype(np.int16)
        y0, y1, y2, y3, y4, y5, y6, y7 = y[0], y[1], y[2], y[3], y[4], y[5], y[6], y[7]
        y8, y9, y10, y11 = y[8], y[9], y[10], y[11]
        y12, y13, y14, y15 = y[12], y[13], y[14], y[15]
        for r in range(part.size):
            s = (a[r] & 3) * y0 + ((a[r] >> 2) & 3) * y1 + ((a[r] >> 4) & 3) * y2
            s += (a[r] >> 6) * y3
            s += (b[r] & 3) * y4 + ((b[r] >> 2) & 3) * y5 + ((b[r] >> 4) & 3) * y6
            s += (b[r] >> 6) * y7
            s += (c[r] & 3) * y8 + ((c[r] >> 2) & 3) * y9 + ((c[r] >> 4) & 3) * y10
            s += (c[r] >> 6) * y11
            s += (d[r] & 3) * y12 + ((d[r] >> 2) & 3) * y13 + ((d[r] >> 4) & 3) * y14
            s += (d[r] >> 6) * y15
            part[r] += np.int16(s)
        if q // 4 % FLUSH == FLUSH - 1:
            for r in range(part.size):
                sums[r] += part[r]
                part[r] = 0
    for r in range(part.size):
        sums[r] += part[r]


@njit(cache=True, nogil=True, _nrt=True)  # it allocates, also if a kernel that must not calls it
def product(
    x: Array, columns: Array, out: Array, first: int, last: int, gamma: np.float32 | None
) -> bool:
    """Multiply ``x (batch, n_in)`` by rows 64 first..64 last into ``out (batch, n_out)``.

    With gamma None: int8 codes in, int32 out. With a gamma: float32 in, quantised per token, and
    float32 out; False if an entry is not finite.
    """
    n_out = out.shape[1]
    begin, end = ROWS * first, min(ROWS * last, n_out)
    codes = np.zeros((1, (x.shape[1] + 15) // 16 * 16), np.int8)
    minus, scales = np.empty(1, np.int32), np.empty(1, np.float32)
    lines = columns.reshape(codes.size // 4, n_out)
    sums = np.empty(end - begin, np.int32)
    for token in range(x.shape[0]):
        if not take_tokens(x[token : token + 1], gamma, codes, minus, scales):
            return False
        _sums(codes[0], lines, begin, end, minus[0], sums)
        if gamma is None:
            for r in range(sums.size):
                out[token, begin + r] = sums[r]
        else:
            for r in range(sums.size):
                out[token, begin + r] = np.float32(sums[r]) * scales[0]
    return True


@njit(cache=True, nogil=True)
def grouped_product(
    x: Array, columns: Array, scales: Array, group: int, out: Array, first: int, last: int
) -> bool:
    """Multiply as `product`, with ``scales (groups, n_out)`` of groups of `group` columns."""
    (batch, n_in), n_out = x.shape, out.shape[1]
    begin, end, parts = ROWS * first, min(ROWS * last, n_out), x.shape[1] // group
    codes = np.zeros((parts, group), np.int8)
    minus, factors = np.empty(parts, np.int32), np.empty(parts, np.float32)
    lines = columns.reshape((n_in + 15) // 16 * 4, n_out)
    sums = np.empty(end - begin, np.int32)
    for token in range(batch):
        if not take_tokens(x[token].reshape(parts, group), np.float32(1), codes, minus, factors):
            return False
        total = out[token, begin:end]
        total[:] = 0
        for part in range(parts):
            here = lines[part * group // 4 : (part + 1) * group // 4]
            _sums(codes[part], here, begin, end, minus[part], sums)
            scale, factor = scales[part, begin:end], factors[part]
            for r in range(sums.size):
                total[r] += np.float32(sums[r]) * (scale[r] * factor)
    return True


@njit(cache=True, nogil=True)
def widen(lines: Array, begin: int, end: int, w: Array) -> None:
    """Decode rows begin..end of ``lines (n_in / 4, n_out)`` into ``w (n_in, end - begin)``."""
    for k in range(w.shape[0]):
        line, row = lines[k // 4, begin:end], w[k]
        shift = np.uint8(k % 4 * 2)
        for r in range(row.size):
            row[r] = np.float32(np.int32((line[r] >> shift) & 3) - 1)
