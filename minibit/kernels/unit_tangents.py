"""Unit tangents of the ternary MLP and their sums, one sample at a time, on additions.

Weights, buffers and the state of a sample, a few kilobytes, are those of
`minibit.kernels.unit_forward`: a unit that is on adds or subtracts a contiguous row of weights;
masked units and zero weights are skipped; every sample adds to the sums and is forgotten. Formulas
and plain twins: `minibit.noise_step.unit_tangents` and `unit_reference`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minibit.kernels.compiling import njit
from minibit.kernels.unit_forward import add_rows, sample_outcome

# All buffers are their callers', so nothing needs reference counts (_nrt=False).
_outer = {"cache": True, "nogil": True, "_nrt": False}
_inner = _outer | {"forceinline": True}
_fast = {"reassoc", "contract", "nsz"}
_U, _V, _KEPT, _START = np.int64(1), np.int64(2), np.int64(3), np.int64(4)
_ZERO, _PLUS, _MINUS = np.int64(0), np.int64(1), np.int64(-1)


class Units(NamedTuple):
    """The drawn units: a table with a row per layer, and lists of all layers' laid end to end."""

    table: Any  # int64 (layers, most)
    counts: Any  # int64 (layers,)
    columns: Any  # int32 (units, widest): where the weights that leave a unit are 1, then -1
    sizes: Any  # int32 (units, 2): how many of each there are


class Directions(NamedTuple):
    """Sparse directions: entries ``offsets[p]`` to ``offsets[p + 1]`` are direction p's."""

    offsets: Any
    units: Any  # an entry's unit, counted among the drawn units of all layers
    layers: Any  # the layer of that unit
    inputs: Any  # the input of the layer that the entry's weight reads
    signs: Any  # float32


@njit(**_inner)
def _count_rows(out, net, layer, index, ri, count, sign):
    """out += sign * sum_c W^T[index[ri, c]] of a layer, in int16: additions alone."""
    wt, first, width, c = net.wt, net.first[layer], net.widths[layer + 1], 0
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
def _layer_norm_terms(own, terms, ru, layer, width):
    """mean(u) A + mean(z_hat u) B: what layer norm subtracts from the tangent u = scratch[ru]."""
    plain, shaped, u = np.float32(0), np.float32(0), own.scratch
    for o in range(width):
        plain += u[ru, o]
    if terms.b[layer] != 0:
        for o in range(width):
            shaped += u[ru, o] * own.z_hat[layer, o]
    return (plain * terms.a[layer] + shaped * terms.b[layer]) / np.float32(width)


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
def _follow(net, own, terms, ru, layer):
    """F_layer(u) of the float32 tangent u = scratch[ru], which is used up."""
    widths, scratch, index, counts = net.widths, own.scratch, own.index, own.counts
    top = widths.size - 2
    total, factor = np.float32(0), np.float32(1)
    u, spare = ru, _V
    for k in range(layer, top):
        width = widths[k + 1]
        factor *= own.r[k]
        total -= factor * _layer_norm_terms(own, terms, u, k, width)
        if k + 1 == top:
            break
        for c in range(counts[k + 1]):
            scratch[_KEPT, c] = scratch[u, index[k + 1, c]]
        add_rows(scratch, spare, net, k + 1, index, k + 1, scratch, _KEPT, counts[k + 1])
        u, spare = spare, u
    _mask(scratch, u, own.on, top - 1, widths[top])
    return total + factor * _to_loss(scratch, u, net.w_out, own.g, widths[top])


@njit(**_inner)
def _corrections(net, own, terms, block):
    """A_l = F_(l+1)(W m) and B_l = F_(l+1)(W h) of every hidden layer, from the last one down.

    With int8 activations, where there is a block, all B but the last are 0.
    """
    widths, scratch, counted, a, b = net.widths, own.scratch, terms.counted, terms.a, terms.b
    top = widths.size - 2
    for layer in range(top - 1, -1, -1):
        b[layer] = np.float32(0)
        if layer == top - 1:
            for o in range(widths[top]):
                scratch[_START, o] = np.float32(own.on[layer, o])
            a[layer] = _to_loss(scratch, _START, net.w_out, own.g, widths[top])
            for c in range(own.g.size):
                b[layer] += own.g[c] * own.logits[0, c] / net.logit_scale
        else:
            width, count = widths[layer + 2], own.counts[layer + 1]
            for o in range(width):
                counted[o] = 0
            _count_rows(counted, net, layer + 1, own.index, layer + 1, count, _PLUS)
            for o in range(width):
                scratch[_START, o] = np.float32(counted[o])
            a[layer] = _follow(net, own, terms, _START, layer + 1)
            if block is None:
                b[layer] = net.eps * own.r[layer + 1] * own.r[layer + 1] * b[layer + 1]


@njit(**_inner, fastmath=_fast)
def _column_terms(net, own, terms, row, layer, width, total):
    """Return `_layer_norm_terms` of a ternary tangent, a row of weights, whose sum is known."""
    shaped = np.float32(0)
    if terms.b[layer] != 0:
        for o in range(width):
            shaped += own.z_hat[layer, o] * np.float32(net.wt[row, o])
    return (total * terms.a[layer] + shaped * terms.b[layer]) / np.float32(width)


@njit(**_inner)
def _through(net, own, terms, units, q, j, above):
    """F_above(W e_j), r_above left out: the tangent of unit j of the layer below, number q of all.

    Its nonzero weights are listed in ``units.columns[q]``, the positive ones first.
    """
    wt, widths, scratch, sums = net.wt, net.widths, own.scratch, terms.counted
    top, row, n_above = widths.size - 2, net.first[above] + j, widths[above + 1]
    n_plus, n_minus = units.sizes[q, 0], units.sizes[q, 1]
    total = np.float32(n_plus - n_minus)
    through = -_column_terms(net, own, terms, row, above, n_above, total)
    if above + 1 == top:
        for o in range(n_above):
            scratch[_U, o] = np.float32(wt[row, o])
        _mask(scratch, _U, own.on, above, n_above)
        return through + _to_loss(scratch, _U, net.w_out, own.g, n_above)
    n_out, picked = widths[above + 2], terms.picked
    for o in range(n_out):
        sums[o] = 0
    plus, minus = _ZERO, _ZERO
    for c in range(n_plus):
        k = units.columns[q, c]
        picked[0, plus] = k
        plus += own.on[above, k]
    _count_rows(sums, net, above + 1, picked, _ZERO, plus, _PLUS)
    for c in range(n_plus, n_plus + n_minus):
        k = units.columns[q, c]
        picked[0, minus] = k
        minus += own.on[above, k]
    _count_rows(sums, net, above + 1, picked, _ZERO, minus, _MINUS)
    for o in range(n_out):
        scratch[_U, o] = np.float32(sums[o])
    return through + _follow(net, own, terms, _U, above + 1)


@njit(**_inner)
def _tangents(net, own, terms, units, layer, q, weight, row):
    """t[row, q + u] = weight * t_j of every drawn unit j = units.table[layer, u], from number q."""
    top, t = net.widths.size - 2, terms.t
    for u in range(units.counts[layer]):
        j = units.table[layer, u]
        if layer == top:
            t[row, q + u] = weight * own.g[j]
        else:
            width, above = net.widths[layer + 1], layer + 1
            total = -(terms.a[layer] + own.z_hat[layer, j] * terms.b[layer]) / np.float32(width)
            if own.on[layer, j] and above == top:
                for c in range(own.g.size):
                    total += own.g[c] * net.w_out[c, j]
            elif own.on[layer, j]:
                total += own.r[above] * _through(net, own, terms, units, q + u, j, above)
            t[row, q + u] = weight * own.r[layer] * total


@njit(**_inner)
def _sample(net, batch, b, block, own, terms, units, row, outcomes):
    """Fill a row of tangents and of entries with sample b's; False, and not, if it is learnt."""
    sample_outcome(net, batch.x, batch.y, b, block, own, outcomes)
    if outcomes.hardness[b] <= batch.threshold:
        return False
    for c in range(own.g.size):
        own.g[c] *= net.logit_scale
    _corrections(net, own, terms, block)
    q = _ZERO
    for layer in range(net.widths.size - 1):
        _tangents(net, own, terms, units, layer, q, batch.weight[b], row)
        q += units.counts[layer]
    for i in range(net.widths[0]):
        terms.entries[row, 0, i] = net.scale * np.float32(batch.x[b, i]) + net.offset
    for layer in range(1, net.widths.size - 1):
        for i in range(net.widths[layer]):
            terms.entries[row, layer, i] = own.h[layer - 1, i]
    return True


@njit(**_outer)
def list_columns(net, units):
    """List the nonzero weights that leave every drawn unit: positive ones, then negative ones."""
    q = 0
    for layer in range(net.widths.size - 2):
        for u in range(units.counts[layer]):
            row, count = net.first[layer + 1] + units.table[layer, u], 0
            for sign in (1, -1):
                begin = count
                for k in range(net.widths[layer + 2]):
                    if net.wt[row, k] == sign:
                        units.columns[q, count] = k
                        count += 1
                units.sizes[q, 0 if sign == 1 else 1] = count - begin
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


@njit(**_outer)
def unit_sums(net, batch, block, outcomes, own, terms, units, sums, squares):
    """Add every sample's w t_j h_i, and its square, to sums and squares (units, widest input).

    `block` holds the states of samples with int8 activations, else it is None; there is room for
    the terms of four samples.
    """
    filled = _ZERO
    for b in range(batch.x.shape[0]):
        filled += _sample(net, batch, b, block, own, terms, units, filled, outcomes)
        if filled == 4:
            _accumulate(sums, squares, terms.entries, terms.t, net.widths, units.counts)
            filled = _ZERO
    for row in range(filled, 4):
        for q in range(terms.t.shape[1]):
            terms.t[row, q] = np.float32(0)
    _accumulate(sums, squares, terms.entries, terms.t, net.widths, units.counts)


@njit(**_outer)
def direction_sums(net, batch, block, outcomes, own, terms, units, directions, sums, squares):
    """Add each sample's alignments with sparse directions to sums and squares; as `unit_sums`."""
    entries, t = terms.entries, terms.t
    for b in range(batch.x.shape[0]):
        if _sample(net, batch, b, block, own, terms, units, _ZERO, outcomes):
            for p in range(sums.size):
                alignment = 0.0
                for m in range(directions.offsets[p], directions.offsets[p + 1]):
                    entry = entries[0, directions.layers[m], directions.inputs[m]]
                    alignment += directions.signs[m] * entry * t[0, directions.units[m]]
                sums[p] += alignment
                squares[p] += alignment * alignment
