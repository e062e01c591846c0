"""Unit tangents of the ternary MLP and their sums, one sample at a time, on additions.

Weights arrive transposed and stacked, one row an input of one layer: a unit that is on adds or
subtracts a contiguous row; masked units and zero weights are skipped. A sample's state, which
`minibit.kernels.unit_forward` fills, is a few kilobytes: every sample adds to the sums and is
forgotten.

The formulas are in `minibit.noise_step.unit_tangents`, the plain NumPy twins in
`minibit.noise_step.unit_reference`. Buffers are passed as (buffer, row), see
`minibit.kernels.unit_forward`; row numbers of the scratch buffer are named below.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from minibit.kernels.unit_forward import (
    SCRATCH_ROWS,
    add_rows,
    forward_one,
    recall_one,
    row_size,
    softmax,
)

__all__ = ["direction_sums", "list_columns", "row_size", "unit_sums"]

# Inner functions use buffers that their callers own, so they need no reference counts (_nrt=False).
_inner = {"cache": True, "nogil": True, "forceinline": True, "_nrt": False}
_fast = {"reassoc", "contract", "nsz"}
_U, _V, _KEPT, _START = 1, 2, 3, 4


@njit(**_inner)
def _count_rows(out, wt, first, index, ri, count, sign, width):
    """Add to out: out += sign * sum_c wt[first + index[ri, c]] in int16: additions alone."""
    c = 0
    while c + 4 <= count:
        i0, i1 = first + index[ri, c], first + index[ri, c + 1]
        i2, i3 = first + index[ri, c + 2], first + index[ri, c + 3]
        if sign > 0:
            for o in range(width):
                four = np.int8(wt[i0, o] + wt[i1, o] + wt[i2, o] + wt[i3, o])
                out[o] += np.int16(four)
        else:
            for o in range(width):
                four = np.int8(wt[i0, o] + wt[i1, o] + wt[i2, o] + wt[i3, o])
                out[o] -= np.int16(four)
        c += 4
    while c < count:
        i0 = first + index[ri, c]
        for o in range(width):
            out[o] += np.int16(sign * wt[i0, o])
        c += 1


@njit(**_inner, fastmath=_fast)
def _layer_norm_terms(u, ru, z_hat, layer, width, a, b):
    """mean(u) A + mean(z_hat u) B: what layer norm subtracts from the tangent u."""
    plain, shaped = np.float32(0), np.float32(0)
    for o in range(width):
        plain += u[ru, o]
    if b != 0:
        for o in range(width):
            shaped += u[ru, o] * z_hat[layer, o]
    return (plain * a + shaped * b) / np.float32(width)


@njit(**_inner, fastmath=_fast)
def _to_loss(u, ru, w_out, g, width):
    """Return g . (W_out u): the logits' tangent, forwards, then its slope."""
    total = np.float32(0)
    for c in range(g.size):
        tangent = np.float32(0)
        for o in range(width):
            tangent += u[ru, o] * w_out[c, o]
        total += g[c] * tangent
    return total


@njit(**_inner, fastmath=_fast)
def _mask(u, ru, on, layer, width):
    for o in range(width):
        u[ru, o] *= np.float32(on[layer, o])


@njit(**_inner, fastmath=_fast)
def _follow(
    ru, layer, wt, first, widths, w_out, g, a, b, z_hat, on, r, index, counts, scratch
):  # fmt: skip
    """F_layer(u) of the float32 tangent u = scratch[ru], which is used up."""
    top = widths.size - 2
    total, factor = np.float32(0), np.float32(1)
    u, spare = ru, _V
    for k in range(layer, top):
        width = widths[k + 1]
        factor *= r[k]
        total -= factor * _layer_norm_terms(scratch, u, z_hat, k, width, a[k], b[k])
        if k + 1 == top:
            break
        for c in range(counts[k + 1]):
            scratch[_KEPT, c] = scratch[u, index[k + 1, c]]
        add_rows(
            scratch, spare, wt, first[k + 1], index, k + 1, scratch, _KEPT, counts[k + 1],
            widths[k + 2],
        )  # fmt: skip
        u, spare = spare, u
    _mask(scratch, u, on, top - 1, widths[top])
    return total + factor * _to_loss(scratch, u, w_out, g, widths[top])


@njit(**_inner)
def _corrections(
    wt, first, widths, w_out, g, logits, row, eps, logit_scale, a, b, z_hat, on, r, index, counts,
    scratch, counted, rounded,
):  # fmt: skip
    """A_l = F_(l+1)(W m) and B_l = F_(l+1)(W h) of every hidden layer, from the last one down.

    If `rounded`, all B but the last are 0.
    """
    top = widths.size - 2
    for layer in range(top - 1, -1, -1):
        if layer == top - 1:
            for o in range(widths[top]):
                scratch[_START, o] = np.float32(on[layer, o])
            a[layer] = _to_loss(scratch, _START, w_out, g, widths[top])
            b[layer] = np.float32(0)
            for c in range(g.size):
                b[layer] += g[c] * logits[row, c] / logit_scale
        else:
            width = widths[layer + 2]
            for o in range(width):
                counted[o] = 0
            _count_rows(
                counted, wt, first[layer + 1], index, layer + 1, counts[layer + 1], 1, width
            )
            for o in range(width):
                scratch[_START, o] = np.float32(counted[o])
            a[layer] = _follow(
                _START, layer + 1, wt, first, widths, w_out, g, a, b, z_hat, on, r, index, counts,
                scratch,
            )  # fmt: skip
            b[layer] = np.float32(0)
            if not rounded:
                b[layer] = eps * r[layer + 1] * r[layer + 1] * b[layer + 1]


@njit(**_inner, fastmath=_fast)
def _column_terms(z_hat, layer, wt, row, width, total, a, b):
    """Return `_layer_norm_terms` of a ternary tangent whose sum is known."""
    shaped = np.float32(0)
    if b != 0:
        for o in range(width):
            shaped += z_hat[layer, o] * np.float32(wt[row, o])
    return (total * a + shaped * b) / np.float32(width)


@njit(**_inner)
def _tangents(
    layer, units, n_units, weight, t, rt, q0, wt, first, widths, w_out, g, a, b, z_hat, on, r,
    index, counts, scratch, columns, column_sizes, picked, sums,
):  # fmt: skip
    """t[rt, q0 + u] = weight * t_j of every drawn unit j = units[layer, u].

    ``columns[q0 + u]`` lists the nonzero weights that leave it, the positive ones first;
    ``column_sizes`` says how many there are of each sign.
    """
    top = widths.size - 2
    if layer == top:
        for u in range(n_units):
            t[rt, q0 + u] = weight * g[units[layer, u]]
    else:
        width, above = widths[layer + 1], layer + 1
        for u in range(n_units):
            j = units[layer, u]
            total = -(a[layer] + z_hat[layer, j] * b[layer]) / np.float32(width)
            if on[layer, j] and above == top:
                for c in range(g.size):
                    total += g[c] * w_out[c, j]
            elif on[layer, j]:
                row, n_above = first[above] + j, widths[above + 1]
                q = q0 + u
                n_plus, n_minus = column_sizes[q, 0], column_sizes[q, 1]
                through = -_column_terms(
                    z_hat, above, wt, row, n_above, np.float32(n_plus - n_minus), a[above], b[above]
                )
                if above + 1 == top:
                    for o in range(n_above):
                        scratch[_U, o] = np.float32(wt[row, o])
                    _mask(scratch, _U, on, above, n_above)
                    through += _to_loss(scratch, _U, w_out, g, n_above)
                else:
                    n_out = widths[above + 2]
                    for o in range(n_out):
                        sums[o] = 0
                    plus, minus = 0, 0
                    for c in range(n_plus):
                        k = columns[q, c]
                        picked[0, plus] = k
                        plus += on[above, k]
                    _count_rows(sums, wt, first[above + 1], picked, 0, plus, 1, n_out)
                    for c in range(n_plus, n_plus + n_minus):
                        k = columns[q, c]
                        picked[0, minus] = k
                        minus += on[above, k]
                    _count_rows(sums, wt, first[above + 1], picked, 0, minus, -1, n_out)
                    for o in range(n_out):
                        scratch[_U, o] = np.float32(sums[o])
                    through += _follow(
                        _U, above + 1, wt, first, widths, w_out, g, a, b, z_hat, on, r, index,
                        counts, scratch,
                    )  # fmt: skip
                total += r[above] * through
            t[rt, q0 + u] = weight * r[layer] * total


@njit(cache=True, nogil=True)
def list_columns(wt, first, widths, units, n_units, columns, column_sizes):
    """List the nonzero weights that leave every drawn unit: positive ones, then negative ones."""
    q = 0
    for layer in range(widths.size - 2):
        for u in range(n_units[layer]):
            row, count = first[layer + 1] + units[layer, u], 0
            for sign in (1, -1):
                begin = count
                for k in range(widths[layer + 2]):
                    if wt[row, k] == sign:
                        columns[q, count] = k
                        count += 1
                column_sizes[q, 0 if sign == 1 else 1] = count - begin
            q += 1


@njit(**_inner, fastmath=_fast)
def _accumulate(sums, squares, entries, t, widths, n_units):
    """Add t_j h_i and its square for four samples: rows of sums are units, columns their inputs."""
    q = 0
    for layer in range(widths.size - 1):
        for _ in range(n_units[layer]):
            t0, t1, t2, t3 = t[0, q], t[1, q], t[2, q], t[3, q]
            for i in range(widths[layer]):
                a0, a1 = t0 * entries[0, layer, i], t1 * entries[1, layer, i]
                a2, a3 = t2 * entries[2, layer, i], t3 * entries[3, layer, i]
                sums[q, i] += (a0 + a1) + (a2 + a3)
            for i in range(widths[layer]):  # a loop of its own: LLVM vectorises one target a loop
                a0, a1 = t0 * entries[0, layer, i], t1 * entries[1, layer, i]
                a2, a3 = t2 * entries[2, layer, i], t3 * entries[3, layer, i]
                squares[q, i] += (a0 * a0 + a1 * a1) + (a2 * a2 + a3 * a3)
            q += 1


@njit(**_inner)
def _entries(x, b, h, widths, scale, offset, entries, row):
    """Fill entries[row, layer] with the inputs of each layer."""
    for i in range(widths[0]):
        entries[row, 0, i] = scale * np.float32(x[b, i]) + offset
    for layer in range(1, widths.size - 1):
        for i in range(widths[layer]):
            entries[row, layer, i] = h[layer - 1, i]


@njit(cache=True, nogil=True)
def unit_sums(
    x, y, weight, wt, first, widths, w_out, base, scale, offset, logit_scale, eps, rounded, state,
    threshold, units, n_units, columns, column_sizes, sums, squares, loss, hardness, correct,
):  # fmt: skip
    """Add every sample's w t_j h_i, and its square, to sums and squares (units, widest input).

    If `rounded`, the batch's states are there already: see `minibit.kernels.unit_forward`.
    """
    hidden, wide = widths.size - 2, wt.shape[1]
    tall = row_size(widths)
    z_hat, h = np.zeros((hidden, wide), np.float32), np.empty((hidden, wide), np.float32)
    on, r = np.empty((hidden, wide), np.uint8), np.empty(hidden, np.float32)
    index, value = np.empty((hidden + 1, tall), np.int32), np.empty((hidden + 1, tall), np.float32)
    counts, scratch = np.empty(hidden + 1, np.int64), np.empty((SCRATCH_ROWS, tall), np.float32)
    a, b_terms = np.empty(hidden, np.float32), np.empty(hidden, np.float32)
    logits, g = np.empty((1, w_out.shape[0]), np.float32), np.empty(w_out.shape[0], np.float32)
    picked, counted = np.empty((1, tall), np.int32), np.empty(wide, np.int16)
    t = np.zeros((4, sums.shape[0]), np.float32)
    entries = np.zeros((4, hidden + 1, tall), np.float32)
    filled = 0
    for b in range(x.shape[0]):
        if rounded:
            recall_one(
                b, state, widths, w_out, logit_scale, z_hat, h, on, r, index, value, counts, logits
            )
        else:
            forward_one(
                x, b, wt, first, widths, w_out, base, scale, logit_scale, eps, z_hat, h, on, r,
                index, value, counts, scratch, logits, 0,
            )  # fmt: skip
        loss[b], hardness[b], correct[b] = softmax(logits, 0, y[b], g)
        if hardness[b] <= threshold:
            continue
        for c in range(g.size):
            g[c] *= logit_scale
        _corrections(
            wt, first, widths, w_out, g, logits, 0, eps, logit_scale, a, b_terms, z_hat, on, r,
            index, counts, scratch, counted, rounded,
        )  # fmt: skip
        q = 0
        for layer in range(hidden + 1):
            _tangents(
                layer, units, n_units[layer], weight[b], t, filled, q, wt, first, widths, w_out, g,
                a, b_terms, z_hat, on, r, index, counts, scratch, columns, column_sizes, picked,
                counted,
            )  # fmt: skip
            q += n_units[layer]
        _entries(x, b, h, widths, scale, offset, entries, filled)
        filled += 1
        if filled == 4:
            _accumulate(sums, squares, entries, t, widths, n_units)
            filled = 0
    t[filled:] = np.float32(0)
    _accumulate(sums, squares, entries, t, widths, n_units)


@njit(cache=True, nogil=True)
def direction_sums(
    x, y, weight, wt, first, widths, w_out, base, scale, offset, logit_scale, eps, rounded, state,
    threshold, units, n_units, columns, column_sizes, offsets, unit_index, input_index, signs, sums,
    squares, loss, hardness, correct,
):  # fmt: skip
    """Add every sample's alignment with each sparse direction, and its square, to sums and squares.

    Entry m of a direction is the weight from input ``input_index[m]`` (``row_size(widths)`` times
    the layer, plus the input) to drawn unit ``unit_index[m]`` (all layers', laid end to end).
    """
    hidden, wide = widths.size - 2, wt.shape[1]
    tall = row_size(widths)
    z_hat, h = np.zeros((hidden, wide), np.float32), np.empty((hidden, wide), np.float32)
    on, r = np.empty((hidden, wide), np.uint8), np.empty(hidden, np.float32)
    index, value = np.empty((hidden + 1, tall), np.int32), np.empty((hidden + 1, tall), np.float32)
    counts, scratch = np.empty(hidden + 1, np.int64), np.empty((SCRATCH_ROWS, tall), np.float32)
    a, b_terms = np.empty(hidden, np.float32), np.empty(hidden, np.float32)
    logits, g = np.empty((1, w_out.shape[0]), np.float32), np.empty(w_out.shape[0], np.float32)
    picked, counted = np.empty((1, tall), np.int32), np.empty(wide, np.int16)
    tangents = np.zeros((1, columns.shape[0]), np.float32)
    entries = np.empty((1, hidden + 1, tall), np.float32)
    flat = entries.reshape(-1)
    for b in range(x.shape[0]):
        if rounded:
            recall_one(
                b, state, widths, w_out, logit_scale, z_hat, h, on, r, index, value, counts, logits
            )
        else:
            forward_one(
                x, b, wt, first, widths, w_out, base, scale, logit_scale, eps, z_hat, h, on, r,
                index, value, counts, scratch, logits, 0,
            )  # fmt: skip
        loss[b], hardness[b], correct[b] = softmax(logits, 0, y[b], g)
        if hardness[b] <= threshold:
            continue
        for c in range(g.size):
            g[c] *= logit_scale
        _corrections(
            wt, first, widths, w_out, g, logits, 0, eps, logit_scale, a, b_terms, z_hat, on, r,
            index, counts, scratch, counted, rounded,
        )  # fmt: skip
        q = 0
        for layer in range(hidden + 1):
            _tangents(
                layer, units, n_units[layer], weight[b], tangents, 0, q, wt, first, widths, w_out,
                g, a, b_terms, z_hat, on, r, index, counts, scratch, columns, column_sizes, picked,
                counted,
            )  # fmt: skip
            q += n_units[layer]
        _entries(x, b, h, widths, scale, offset, entries, 0)
        for p in range(sums.size):
            alignment = 0.0
            for m in range(offsets[p], offsets[p + 1]):
                alignment += signs[m] * flat[input_index[m]] * tangents[0, unit_index[m]]
            sums[p] += alignment
            squares[p] += alignment * alignment
