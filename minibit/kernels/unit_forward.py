"""The forward pass of the ternary MLP, in two ways, for `minibit.kernels.unit_tangents`.

With float activations a sample goes through alone, on additions: weights arrive transposed and
stacked, a row per input of a layer; a nonzero input adds or subtracts a contiguous row, and zero
inputs and zero weights are skipped. With int8 activations a block of samples goes through at once
(`hidden_states`), on the products of `minibit.matmul`; what stands between two of them is here, and
the states of a block are then laid out for one sample, as if it had gone through alone.

Buffers are two-dimensional and functions take (buffer, row) rather than views: a view costs an
atomic reference count, which two threads would fight over. Numbers that are the same in every call
are typed, not literal: for literals Numba would compile a function again.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from minibit.kernels.compiling import njit
from minibit.kernels.quantise import quantise_row

# All buffers are their callers', so nothing needs reference counts (_nrt=False).
_outer = {"cache": True, "nogil": True, "_nrt": False}
_inner = _outer | {"forceinline": True}
_fast = {"reassoc", "contract", "nsz"}
_ZERO, _SCRATCH_ROWS = np.int64(0), 5  # row 0 is the forward pass's, the others the tangents'
_MIDDLE = 128  # of a pixel's values: less it, a pixel is an int8


class Network(NamedTuple):
    """The weights of a ternary MLP and its numbers."""

    wt: Any  # int8 (all layers' inputs, widest n_out): W transposed, layer below layer
    first: Any  # int64: first row of every layer
    widths: Any  # int64: n_in of the first layer, then n_out of every layer
    tall: int  # entries of a buffer's row: the widest layer's, and one that compaction overwrites
    w_out: Any  # float32 (classes, n_in)
    base: Any  # float32 (n_out,): the first layer's answer to a constant input of `offset`
    scale: np.float32  # inputs are scale x + offset
    offset: np.float32
    logit_scale: np.float32
    eps: np.float32


class Products(NamedTuple):
    """The products with the hidden layers, where bytes have dot products; else there are none."""

    multiply: Callable[..., bool]  # see `minibit.kernels.product.product`
    panels: tuple[Any, ...]  # of each layer
    row_sums: Any  # float32 (n_out,) of the first layer: W 1


class Batch(NamedTuple):
    """Samples, their labels, and what they weigh in the sums."""

    x: Any  # uint8 or float32 (batch, n_in)
    y: Any  # int64 (batch,)
    weight: Any  # float32 (batch,)
    threshold: np.float32  # samples with 1 - p_y up to it are learnt: their tangents are skipped


class Block(NamedTuple):
    """The states of a block of samples with int8 activations."""

    codes: Any  # int8 (layers, block, widest), of all hidden layers but the last
    scales: Any  # float32 (layers, block), of the codes
    last: Any  # float32 (block, width): z_hat of the last hidden layer
    norms: Any  # float32 (layers, block): every layer's 1 / sigma


class Outcomes(NamedTuple):
    """Results of every sample."""

    loss: Any  # float32 (batch,)
    hardness: Any  # float32 (batch,): 1 - p_y
    correct: Any  # bool (batch,)
    logits: Any  # float32 (batch, classes)


class Sample(NamedTuple):
    """The state of one sample; a row of z_hat, h, on is a hidden layer's."""

    z_hat: Any
    h: Any  # relu(z_hat), or codes over their scale
    on: Any  # whether h > 0
    r: Any  # 1 / sigma
    index: Any  # a row is a layer's input: the numbers of its nonzero entries,
    value: Any  # the entries,
    counts: Any  # and how many they are
    scratch: Any
    logits: Any  # (1, at least classes)
    g: Any  # softmax - onehot

    @classmethod
    def allocate(cls, net: Network) -> Sample:
        """Allocate the arrays with NumPy: Numba would take a second to compile that."""
        hidden = len(net.widths) - 2
        counts = (*(hidden,) * 3, 1, *(hidden + 1,) * 2, 1, _SCRATCH_ROWS, 1, 1)
        rows = rows_of(sum(counts), net.tall)
        z_hat, h, on, r, index, value, sizes, scratch, logits, g = (
            rows[end - count : end] for count, end in zip(counts, accumulate(counts), strict=True)
        )
        on, index, sizes = on.view(np.uint8), index.view(np.int32), sizes.view(np.int64)[0]
        g = g[0, : len(net.w_out)]
        return cls(z_hat, h, on, r[0], index, value, sizes, scratch, logits, g)


class Terms(NamedTuple):
    """Arrays in which the tangents of a sample, or of four, are computed: see `unit_tangents`."""

    a: Any  # what layer norm subtracts from every tangent
    b: Any
    counted: Any  # scratch of int16 sums
    picked: Any
    t: Any  # (samples, units): the tangents
    entries: Any  # (samples, layers, tall): the inputs of each layer

    @classmethod
    def allocate(cls, net: Network, units: int, samples: int) -> Terms:
        """Allocate the arrays for so many drawn units and samples."""
        hidden = len(net.widths) - 2
        return cls(
            np.empty(hidden, np.float32),
            np.empty(hidden, np.float32),
            rows_of(1, net.tall, np.int16)[0],
            rows_of(1, net.tall, np.int32),
            rows_of(samples, units),
            rows_of(samples * (hidden + 1), net.tall).reshape(samples, hidden + 1, net.tall),
        )


def buffers(net: Network, count: int, units: int, samples: int) -> list[tuple[Sample, Terms]]:
    """Allocate for each thread the state of a sample, and the terms of `samples` and `units`."""
    return [(Sample.allocate(net), Terms.allocate(net, units, samples)) for _ in range(count)]


def rows_of(count: int, width: int, dtype: Any = np.float32) -> Any:
    """Zeros ``(count, width)``, whose first row begins where a cache line does."""
    room = np.zeros(count * width * np.dtype(dtype).itemsize + 63, np.uint8)
    begin = -room.ctypes.data % 64
    return room[begin : begin + room.size - 63].view(dtype).reshape(count, width)


@njit(**_inner, fastmath=_fast)
def add_rows(out, ro, net, layer, index, ri, value, rv, count):
    """out[ro] = sum_c value[rv, c] * W^T[index[ri, c]] of a layer: four rows at a time."""
    wt, first, width = net.wt, net.first[layer], net.widths[layer + 1]
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
def _normalise(row, width, eps):
    """row[0] <- z_hat = (z - mean z) r; return r = 1 / sqrt(var + eps)."""
    total = np.float32(0)
    for o in range(width):
        total += row[0, o]
    mean = total / np.float32(width)
    var = np.float32(0)
    for o in range(width):
        d = row[0, o] - mean
        var += d * d
    r = np.float32(1.0 / np.sqrt(var / np.float32(width) + eps))
    for o in range(width):
        row[0, o] = (row[0, o] - mean) * r
    return r


@njit(**_inner)
def _rectify(rows, b, own, layer, width):
    """Note z_hat of a hidden layer, h = relu(z_hat) and on: LLVM vectorises one target a loop."""
    for o in range(width):
        own.z_hat[layer, o] = rows[b, o]
    for o in range(width):
        own.h[layer, o] = max(rows[b, o], np.float32(0))
    for o in range(width):
        own.on[layer, o] = rows[b, o] > 0


@njit(**_inner)
def _nonzeros(values, row, index, kept, target, width):
    """Compact the nonzero entries of values[row] into row `target`; return how many there are.

    Eight zeros are passed over at once: most of an image is empty.
    """
    count = 0
    for start in range(0, width, 8):
        stop, some = min(start + 8, width), False
        for k in range(start, stop):
            some |= values[row, k] != 0
        for k in range(start, stop if some else start):
            v = values[row, k]
            index[target, count] = k
            kept[target, count] = v
            count += v != 0
    return count


@njit(**_inner, fastmath=_fast)
def _logits(net, own):
    """Logits by dot products of the last hidden layer with the few rows of the last one."""
    row = net.widths.size - 3
    for c in range(net.w_out.shape[0]):
        total = np.float32(0)
        for o in range(net.widths[row + 1]):
            total += own.h[row, o] * net.w_out[c, o]
        own.logits[0, c] = net.logit_scale * total


@njit(**_inner)
def _forward_one(net, x, b, own):
    """Run sample b through the network."""
    widths, scratch, index, value = net.widths, own.scratch, own.index, own.value
    top = widths.size - 2  # layers are numbered 0 .. top, the last one gives the logits
    own.counts[0] = _nonzeros(x, b, index, value, 0, widths[0])
    for layer in range(max(top, 1)):
        width = widths[layer + 1]
        add_rows(scratch, _ZERO, net, layer, index, layer, value, layer, own.counts[layer])
        if layer == 0:
            for o in range(width):
                scratch[0, o] = net.scale * scratch[0, o] + net.base[o]
        if top == 0:
            for o in range(width):
                own.logits[0, o] = net.logit_scale * scratch[0, o]
            return
        own.r[layer] = _normalise(scratch, width, net.eps)
        _rectify(scratch, 0, own, layer, width)
        own.counts[layer + 1] = _nonzeros(own.h, layer, index, value, layer + 1, width)
    _logits(net, own)


@njit(**_inner)
def _softmax(own, label):
    """Fill g = softmax - onehot; return (loss, 1 - p_label, whether label is the argmax)."""
    logits, g = own.logits, own.g
    classes = g.size
    best = 0
    for o in range(1, classes):
        if logits[0, o] > logits[0, best]:
            best = o
    total = 0.0
    for o in range(classes):
        total += np.exp(np.float64(logits[0, o]) - np.float64(logits[0, best]))
    others = 0.0
    for o in range(classes):
        p = np.exp(np.float64(logits[0, o]) - np.float64(logits[0, best])) / total
        g[o] = p
        if o != label:
            others += p
    g[label] = -others  # p - 1 without cancellation
    loss = np.log(total) - (np.float64(logits[0, label]) - np.float64(logits[0, best]))
    return loss, np.float32(others), best == label


@njit(**_inner)
def _norm_of_sums(z, b, shift, factor, base, eps, row):
    """row[0] = layer norm of the pre-activations ``factor (z[b] + shift) + base``; return its r."""
    for o in range(row.shape[1]):
        row[0, o] = factor * (np.float32(z[b, o]) + shift[o]) + base[o]
    return _normalise(row, row.shape[1], eps)


@njit(cache=True, nogil=True)
def _added_rows(net, layer, x, z):
    """z[b] = W x[b] of a layer by additions: for floats, and without byte products."""
    n_in = net.widths[layer]
    index, value = np.empty((1, n_in + 1), np.int32), np.empty((1, n_in + 1), np.float32)
    for b in range(x.shape[0]):
        count = _nonzeros(x, b, index, value, 0, n_in)
        add_rows(z, b, net, layer, index, 0, value, 0, count)


@njit(cache=True, nogil=True)
def _round_rows(z, shift, factors, base, eps, codes, scales, norms):
    """codes = max(rint(scale z_hat), 0), scale = 127 / max|z_hat|: what the next layer multiplies.

    z_hat is layer norm's answer to ``factors[b] (z[b] + shift) + base``, and norms[b] its r. A
    sample that is not finite gets codes 0 and a scale of NaN, and with it a loss of NaN.
    """
    row = np.empty((1, z.shape[1]), np.float32)
    for b in range(z.shape[0]):
        norms[b] = _norm_of_sums(z, b, shift, factors[b], base, eps, row)
        scales[b] = quantise_row(row, 0, codes, b)
        if scales[b] < 0:
            codes[b], scales[b] = 0, np.nan
        for o in range(row.shape[1]):
            codes[b, o] = max(codes[b, o], np.int8(0))


@njit(cache=True, nogil=True)
def _rectify_rows(z, shift, factors, base, eps, z_hat, norms):
    """z_hat[b] of the last hidden layer, as floats, and norms[b]; see `_round_rows`."""
    row = np.empty((1, z.shape[1]), np.float32)
    for b in range(z.shape[0]):
        norms[b] = _norm_of_sums(z, b, shift, factors[b], base, eps, row)
        for o in range(row.shape[1]):
            z_hat[b, o] = row[0, o]


@njit(**_inner)
def _recall_one(net, block, b, own):
    """Lay out the state of sample b as `_forward_one` does, z_hat of the last layer only."""
    for layer in range(net.widths.size - 3):
        width = net.widths[layer + 1]
        own.r[layer] = block.norms[layer, b]
        inverse = np.float32(1) / block.scales[layer, b]
        for o in range(width):  # h = codes / scale
            own.h[layer, o] = np.float32(block.codes[layer, b, o]) * inverse
        for o in range(width):
            own.on[layer, o] = block.codes[layer, b, o] > 0
        own.counts[layer + 1] = _nonzeros(own.h, layer, own.index, own.value, layer + 1, width)
    _recall_last(net, block, b, own)


@njit(**_inner)
def _recall_last(net, block, b, own):
    """Lay out the last hidden layer of sample b, and its logits."""
    last = net.widths.size - 3
    own.r[last] = block.norms[last, b]
    _rectify(block.last, b, own, last, net.widths[last + 1])
    _logits(net, own)


@njit(**_inner)
def sample_outcome(net, x, y, b, block, own, outcomes):
    """Run sample b, or lay out its state from its block, and write its outcome."""
    if block is None:
        _forward_one(net, x, b, own)
    else:
        _recall_one(net, block, b, own)
    outcomes.loss[b], outcomes.hardness[b], outcomes.correct[b] = _softmax(own, y[b])


@njit(**_outer)
def forward(net, batch, block, outcomes, own, _):
    """Fill the outcomes of a batch, logits too; float activations have no block."""
    for b in range(batch.x.shape[0]):
        if block is None:
            _forward_one(net, batch.x, b, own)
        else:
            _recall_last(net, block, b, own)
        outcomes.loss[b], outcomes.hardness[b], outcomes.correct[b] = _softmax(own, batch.y[b])
        for c in range(own.g.size):
            outcomes.logits[b, c] = own.logits[0, c]


def hidden_states(net: Network, products: Products | None, x: Any) -> Block:
    """Run a block of samples with int8 activations through the hidden layers."""
    batch, hidden = len(x), len(net.widths) - 2
    widths = net.widths[1:-1]
    codes = np.empty((hidden - 1, batch, max(widths)), np.int8)  # (layers, block, widest)
    scales, norms = np.empty((hidden - 1, batch), np.float32), np.empty((hidden, batch), np.float32)
    last = np.empty((batch, widths[-1]), np.float32)
    factors, base = np.full(batch, net.scale), net.base
    shift = np.zeros_like(base)
    if products and x.dtype == np.uint8:  # W x = W (x - 128) + 128 W 1
        x, shift = (x ^ np.uint8(_MIDDLE)).view(np.int8), np.float32(_MIDDLE) * products.row_sums
    for layer in range(hidden):
        if products and x.dtype == np.int8:
            z = np.empty((batch, widths[layer]), np.int32)  # (block, n_out)
            plain = np.ascontiguousarray(x[:, : net.widths[layer]])
            products.multiply(plain, products.panels[layer], z, 0, -(-z.shape[1] // 64), None)
        else:  # whole numbers below 2^24 are exact in float32, too
            z = np.empty((batch, widths[layer]), np.float32)
            _added_rows(net, layer, x, z)
        if layer < hidden - 1:
            x = codes[layer]
            _round_rows(z, shift, factors, base, net.eps, x, scales[layer], norms[layer])
            factors = 1 / scales[layer]
            base = shift = np.zeros(widths[layer + 1], np.float32)
    _rectify_rows(z, shift, factors, base, net.eps, last, norms[hidden - 1])
    return Block(codes, scales, last, norms)
