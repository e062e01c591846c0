"""The forward pass of the ternary MLP, in two ways, for `minibit.kernels.unit_tangents`.

With float activations a sample goes through alone (`forward_one`), on additions: weights arrive
transposed and stacked, one row an input of one layer; a nonzero input adds or subtracts a
contiguous row, and zero inputs and zero weights are skipped.

With int8 activations the products are those of `minibit.matmul`, for a block of samples at once.
What stands between two of them is here: `round_rows` normalises, rounds and rectifies whole sums,
`rectify_rows` does the same without rounding, for the last hidden layer. The states of a block
(codes, their scales, the last layer's z_hat, every layer's 1 / sigma) are what `recall_one` then
lays out for one sample, as `forward_one` would have left it.

Buffers are two-dimensional and functions take (buffer, row) rather than views: a view costs an
atomic reference count, which two threads would fight over.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from minibit.kernels.quantise import quantise_row

__all__ = [
    "SCRATCH_ROWS",
    "add_rows",
    "added_rows",
    "forward",
    "forward_one",
    "recall_one",
    "rectify_rows",
    "round_rows",
    "row_size",
    "softmax",
]

# Inner functions use buffers that their callers own, so they need no reference counts (_nrt=False).
_inner = {"cache": True, "nogil": True, "forceinline": True, "_nrt": False}
_fast = {"reassoc", "contract", "nsz"}
_Z, SCRATCH_ROWS = 0, 5  # the other rows are those of the tangents


@njit(cache=True, nogil=True)
def row_size(widths):
    """Entries of a buffer's row: the widest layer's, and one that compaction may overwrite."""
    return widths.max() + 1


@njit(**_inner, fastmath=_fast)
def add_rows(out, ro, wt, first, index, ri, value, rv, count, width):
    """out[ro] = sum_c value[rv, c] * wt[first + index[ri, c]]: four rows at a time."""
    for o in range(width):
        out[ro, o] = np.float32(0)
    c = 0
    while c + 4 <= count:
        i0, i1 = first + index[ri, c], first + index[ri, c + 1]
        i2, i3 = first + index[ri, c + 2], first + index[ri, c + 3]
        a0, a1 = value[rv, c], value[rv, c + 1]
        a2, a3 = value[rv, c + 2], value[rv, c + 3]
        for o in range(width):
            out[ro, o] += (a0 * np.float32(wt[i0, o]) + a1 * np.float32(wt[i1, o])) + (
                a2 * np.float32(wt[i2, o]) + a3 * np.float32(wt[i3, o])
            )
        c += 4
    while c < count:
        i0, a0 = first + index[ri, c], value[rv, c]
        for o in range(width):
            out[ro, o] += a0 * np.float32(wt[i0, o])
        c += 1


@njit(**_inner, fastmath=_fast)
def _norm_relu(z, rz, z_hat, h, on, row, width, eps):
    """z_hat = (z - mean) r, h = relu(z_hat), on = z_hat > 0; return r = 1 / sqrt(var + eps)."""
    total = np.float32(0)
    for o in range(width):
        total += z[rz, o]
    mean = total / np.float32(width)
    var = np.float32(0)
    for o in range(width):
        d = z[rz, o] - mean
        var += d * d
    r = np.float32(1.0 / np.sqrt(var / np.float32(width) + eps))
    for o in range(width):
        v = (z[rz, o] - mean) * r
        z_hat[row, o] = v
        h[row, o] = max(v, np.float32(0))
        on[row, o] = v > 0
    return r


@njit(**_inner)
def nonzeros(values, row, index, kept, target, width):
    """Compact the nonzero entries of values[row] into row `target`; return how many there are."""
    count = 0
    for k in range(width):
        v = values[row, k]
        index[target, count] = k
        kept[target, count] = v
        count += v != 0
    return count


@njit(**_inner)
def _bytes(x, b, index, kept, width):
    """Compact the nonzero entries of sample b, eight at a time: most of an image is empty."""
    count = 0
    for block in range(0, width // 8 * 8, 8):
        some = x[b, block] != 0
        for k in range(1, 8):
            some |= x[b, block + k] != 0
        if some:
            for k in range(8):
                v = x[b, block + k]
                index[0, count] = block + k
                kept[0, count] = v
                count += v != 0
    for k in range(width // 8 * 8, width):
        v = x[b, k]
        index[0, count] = k
        kept[0, count] = v
        count += v != 0
    return count


@njit(**_inner, fastmath=_fast)
def head(out, ro, w, u, ru, width, scale):
    """out[ro] = scale * (w u[ru]) by dot products, for the few rows of the last layer."""
    for c in range(w.shape[0]):
        total = np.float32(0)
        for o in range(width):
            total += u[ru, o] * w[c, o]
        out[ro, c] = scale * total


@njit(**_inner)
def forward_one(
    x, b, wt, first, widths, w_out, base, scale, logit_scale, eps,
    z_hat, h, on, r, index, value, counts, scratch, logits, out,
):  # fmt: skip
    """Logits of sample b into logits[out]; row l of index, value, counts is layer l's input."""
    top = widths.size - 2  # layers are numbered 0 .. top, the last one gives the logits
    counts[0] = _bytes(x, b, index, value, widths[0])
    for layer in range(max(top, 1)):
        width = widths[layer + 1]
        add_rows(
            scratch, _Z, wt, first[layer], index, layer, value, layer, counts[layer], width
        )  # fmt: skip
        if layer == 0:
            for o in range(width):
                scratch[_Z, o] = scale * scratch[_Z, o] + base[o]
        if top == 0:
            for o in range(width):
                logits[out, o] = logit_scale * scratch[_Z, o]
            return
        r[layer] = _norm_relu(scratch, _Z, z_hat, h, on, layer, width, eps)
        counts[layer + 1] = nonzeros(h, layer, index, value, layer + 1, width)
    head(logits, out, w_out, h, top - 1, widths[top], logit_scale)


@njit(**_inner)
def softmax(logits, row, label, g):
    """Fill g = softmax - onehot; return (loss, 1 - p_label, whether label is the argmax)."""
    classes = g.size
    best = 0
    for o in range(1, classes):
        if logits[row, o] > logits[row, best]:
            best = o
    total = 0.0
    for o in range(classes):
        total += np.exp(np.float64(logits[row, o]) - np.float64(logits[row, best]))
    others = 0.0
    for o in range(classes):
        p = np.exp(np.float64(logits[row, o]) - np.float64(logits[row, best])) / total
        g[o] = p
        if o != label:
            others += p
    g[label] = -others  # p - 1 without cancellation
    loss = np.log(total) - (np.float64(logits[row, label]) - np.float64(logits[row, best]))
    return loss, np.float32(others), best == label


@njit(**_inner)
def _scaled(z, b, shift, factor, base, row):
    """row[0] = factor (z[b] + shift) + base: the pre-activations of sample b."""
    for o in range(row.shape[1]):
        row[0, o] = factor * (np.float32(z[b, o]) + shift[o]) + base[o]


@njit(**_inner, fastmath=_fast)
def _normalise(row, eps):
    """row[0] <- z_hat = (z - mean z) r; return r = 1 / sqrt(var + eps)."""
    total = np.float32(0)
    for o in range(row.shape[1]):
        total += row[0, o]
    mean = total / np.float32(row.shape[1])
    var = np.float32(0)
    for o in range(row.shape[1]):
        d = row[0, o] - mean
        var += d * d
    r = np.float32(1.0 / np.sqrt(var / np.float32(row.shape[1]) + eps))
    for o in range(row.shape[1]):
        row[0, o] = (row[0, o] - mean) * r
    return r


@njit(cache=True, nogil=True)
def added_rows(x, wt, first, n_in, z):
    """z[b] = W x[b] by additions, of n_in inputs: for floats, and without byte products."""
    index, value = np.empty((1, n_in + 1), np.int32), np.empty((1, n_in + 1), np.float32)
    for b in range(x.shape[0]):
        count = _bytes(x, b, index, value, n_in)
        add_rows(z, b, wt, first, index, 0, value, 0, count, z.shape[1])


@njit(cache=True, nogil=True)
def round_rows(z, shift, factors, base, eps, codes, scales, norms):
    """codes = max(rint(scale z_hat), 0), scale = 127 / max|z_hat|: what the next layer multiplies.

    z_hat is layer norm's answer to ``factors[b] (z[b] + shift) + base``, and norms[b] its r. A
    sample that is not finite gets codes 0 and a scale of NaN, and with it a loss of NaN.
    """
    row = np.empty((1, z.shape[1]), np.float32)
    for b in range(z.shape[0]):
        _scaled(z, b, shift, factors[b], base, row)
        norms[b] = _normalise(row, eps)
        scales[b] = quantise_row(row, 0, codes, b)
        if scales[b] < 0:
            codes[b], scales[b] = 0, np.nan
        for o in range(row.shape[1]):
            codes[b, o] = max(codes[b, o], np.int8(0))


@njit(cache=True, nogil=True)
def rectify_rows(z, shift, factors, base, eps, z_hat, norms):
    """z_hat[b] of the last hidden layer, as floats, and norms[b]; see `round_rows`."""
    row = np.empty((1, z.shape[1]), np.float32)
    for b in range(z.shape[0]):
        _scaled(z, b, shift, factors[b], base, row)
        norms[b] = _normalise(row, eps)
        for o in range(row.shape[1]):
            z_hat[b, o] = row[0, o]


@njit(**_inner)
def _dequantise(codes, layer, b, inverse, h, on, width):
    """h = codes / scale and on = codes > 0, in two loops: LLVM vectorises one target a loop."""
    for o in range(width):
        h[layer, o] = np.float32(codes[layer, b, o]) * inverse
    for o in range(width):
        on[layer, o] = codes[layer, b, o] > 0


@njit(**_inner)
def _rectify(last, b, z_hat, h, on, layer, width):
    """Copy z_hat of the last hidden layer, and h = relu(z_hat), on = z_hat > 0."""
    for o in range(width):
        z_hat[layer, o] = last[b, o]
    for o in range(width):
        h[layer, o] = max(last[b, o], np.float32(0))
    for o in range(width):
        on[layer, o] = last[b, o] > 0


@njit(**_inner)
def recall_one(b, state, widths, w_out, logit_scale, z_hat, h, on, r, index, value, counts, logits):
    """Lay out the state of sample b of a block as `forward_one` does, z_hat of the last layer only.

    State: codes (layers, block, widest), scales (layers, block) of all hidden layers but the last;
    its z_hat (block, width); norms (layers, block) of all.
    """
    codes, scales, last, norms = state
    top = widths.size - 2
    for layer in range(top - 1):
        width = widths[layer + 1]
        r[layer] = norms[layer, b]
        inverse = np.float32(1) / scales[layer, b]
        _dequantise(codes, layer, b, inverse, h, on, width)
        counts[layer + 1] = nonzeros(h, layer, index, value, layer + 1, width)
    r[top - 1] = norms[top - 1, b]
    _rectify(last, b, z_hat, h, on, top - 1, widths[top])
    head(logits, 0, w_out, h, top - 1, widths[top], logit_scale)


@njit(cache=True, nogil=True)
def forward(
    x, y, wt, first, widths, w_out, base, scale, logit_scale, eps, rounded, state, logits, loss,
    hardness, correct,
):  # fmt: skip
    """Fill logits (batch, classes), loss, 1 - p_y and correct (batch,) of a batch.

    If `rounded`, the batch's states are there already: codes, scales, last and norms.
    """
    hidden, wide = widths.size - 2, wt.shape[1]
    tall = row_size(widths)
    z_hat, h = np.empty((hidden, wide), np.float32), np.empty((hidden, wide), np.float32)
    on, r = np.empty((hidden, wide), np.uint8), np.empty(hidden, np.float32)
    index, value = np.empty((hidden + 1, tall), np.int32), np.empty((hidden + 1, tall), np.float32)
    counts, scratch = np.empty(hidden + 1, np.int64), np.empty((SCRATCH_ROWS, tall), np.float32)
    g = np.empty(logits.shape[1], np.float32)
    for b in range(x.shape[0]):
        if rounded:
            _rectify(state[2], b, z_hat, h, on, hidden - 1, widths[hidden])
            head(logits, b, w_out, h, hidden - 1, widths[hidden], logit_scale)
        else:
            forward_one(
                x, b, wt, first, widths, w_out, base, scale, logit_scale, eps, z_hat, h, on, r,
                index, value, counts, scratch, logits, b,
            )  # fmt: skip
        loss[b], hardness[b], correct[b] = softmax(logits, b, y[b], g)
