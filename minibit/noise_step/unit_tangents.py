"""Unit tangents: how the loss answers a bump in one unit, forwards only.

Nudge pre-activation j of layer l in one sample and follow the nudge to the loss: that number is the
unit tangent t_j. Every weight into the unit moves the pre-activation in proportion to its input, so

    alignment of weight (j, i) = sum_b t_j[b] h_i[b]

and one forward tangent serves all of the unit's inputs. A sparse perturbation v is a sum of such
entries, so its alignment is a sum too: ``a(v) = sum over nonzeros of sign * t_j h_i``.

With z_l the pre-activations of hidden layer l, ``z_hat = r (z - mean z)``, r = 1 / sigma, m the
ReLU's mask and h = m z_hat, the tangent u of z_l has the loss tangent

    F_l(u) = r_l [ F_(l+1)(W_(l+1) (m_l u)) - mean(u) A_l - mean(z_hat_l u) B_l ]
    A_l = F_(l+1)(W_(l+1) m_l),   B_l = F_(l+1)(W_(l+1) h_l)
    F(u) = g . u at the logits, g = logit_scale (softmax - onehot)

(A and B, what layer norm subtracts, serve all units of a sample), and ``t_j = F_l(e_j)``. Products
go forwards: W acts on tangents of its inputs. The sum ``sum_b t_j h`` over all inputs is the
gradient of the unit's weights, obtained forwards for the few units drawn, used for one ranking and
forgotten.

B needs no product: W_(l+1) h_l is z_(l+1) itself, and a layer norm answers a change of its input
along that input through eps alone, so ``B_l = F_(l+1)(z_(l+1)) = eps r_(l+1)^2 B_(l+1)``, down from
``B = g . logits / logit_scale`` at the last hidden layer.

A model with int8 activations (`minibit.layers.mlp`) differs in three places: h_l is what the next
layer gets, codes over their scale; m marks the codes above 0; and B is 0 but at the last hidden
layer, for the standard deviations below count as constant. Its products are `ternary_matmul_int8`
of a block of samples, exact in any order: of pixels as ``W x = W (x - 128) + 128 W 1``, of codes as
they are. (Where bytes have no dot product it is additions again, as exact.) With float activations
every sample goes through alone, on additions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from minibit.base import finite, integer_array
from minibit.kernels import compiled
from minibit.noise_step.perceptron import MLP
from minibit.noise_step.prepared import CHUNKS, prepare, run
from minibit.noise_step.unit_reference import (
    Sums,
    direction_sums_reference,
    forward_reference,
    locate,
    unit_sums_reference,
)

__all__ = ["direction_sums", "forward", "unit_sums"]

if TYPE_CHECKING:
    from minibit.kernels.unit_forward import Block, Network, Outcomes
    from minibit.kernels.unit_tangents import Units

T = TypeVar("T", bound=tuple[Any, ...])
Floats = NDArray[np.floating[Any]]  # float32 on the fast path
Params = Mapping[str, NDArray[Any]]


def _listed(net: Network, units: Sequence[NDArray[np.int64]]) -> Units:
    """Drawn units as one table, and the nonzero weights that leave them."""
    from minibit.kernels.unit_tangents import Units, list_columns

    counts = np.array([len(u) for u in units])
    table = np.zeros((len(units), max(1, counts.max())), np.int64)
    for row, drawn in zip(table, units, strict=True):
        row[: len(drawn)] = drawn
    columns = np.empty((max(1, counts.sum()), net.wt.shape[1]), np.int32)
    listed = Units(table, counts, columns, np.zeros((len(columns), 2), np.int32))
    list_columns(net, listed)
    return listed


def _outcomes(batch: int) -> Outcomes:
    """Room for what is known of every sample."""
    from minibit.kernels.unit_forward import Outcomes

    loss, hardness = np.empty(batch, np.float32), np.empty(batch, np.float32)
    return Outcomes(loss, hardness, np.empty(batch, np.bool_))


def _part(arrays: T, part: slice) -> T:
    """Cut the same samples out of every array of a named tuple."""
    return type(arrays)(*(a[part] if isinstance(a, np.ndarray) else a for a in arrays))


def check_batch(params: Params, x: Any, y: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return contiguous inputs (uint8 or float32) and labels, or say what is wrong with them."""
    x, y = np.asarray(x), np.asarray(y)
    *_, last = params.values()
    n_in, classes = next(iter(params.values())).shape[1], last.shape[0]
    if x.ndim != 2 or x.shape[1] != n_in:
        raise ValueError(f"x must be (batch, {n_in}), got shape {x.shape}")
    if x.dtype.kind not in "uif":
        raise TypeError(f"x must be integers or floats, got {x.dtype}")
    if x.dtype.kind == "f":
        finite("x", x)
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must be one label a sample, ({len(x)},), got shape {y.shape}")
    y = integer_array("y", y, 0, classes - 1)
    if x.dtype != np.uint8:
        x = x.astype(np.float32)
    return _read_only(x), _read_only(y)


def _check_codes(params: Params) -> None:
    """Refuse weights that are no codes; the kernels trust what was checked here."""
    for name, w in params.items():
        if w.dtype != np.int8 or (w.size and not -1 <= w.min() <= w.max() <= 1):
            raise ValueError(f"params[{name!r}] must be int8 codes -1, 0 and 1, got {w.dtype}")


def _check_weight(batch: int, weight: Any) -> Floats:
    weight = np.asarray(weight)
    if weight.shape != (batch,):
        raise ValueError(f"weight must be one number a sample, ({batch},), got {weight.shape}")
    return np.ascontiguousarray(weight, np.float32)


def _check_units(params: Params, units: Sequence[NDArray[np.int64]]) -> None:
    if len(units) != len(params):
        raise ValueError(f"units must be one array a layer, {len(params)}, got {len(units)}")
    for drawn, (name, w) in zip(units, params.items(), strict=True):
        if drawn.size and not 0 <= drawn.min() <= drawn.max() < w.shape[0]:
            raise ValueError(f"units of {name!r} must lie in [0, {w.shape[0]}), got {drawn}")


def _check_directions(params: Params, offsets: Any, positions: Any, signs: Any) -> None:
    size = sum(w.size for w in params.values())
    if positions.shape != signs.shape or positions.ndim != 1:
        raise ValueError(f"positions and signs must match, got {positions.shape}, {signs.shape}")
    if positions.size and not 0 <= positions.min() <= positions.max() < size:
        raise ValueError(f"positions must lie in [0, {size}), got up to {positions.max()}")
    if offsets[0] != 0 or offsets[-1] != positions.size or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets must rise from 0 to {positions.size}, got {offsets}")


def _read_only(values: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous view that is read-only, whatever came: the kernels compile once."""
    view = np.ascontiguousarray(values)[:]
    view.flags.writeable = False
    return view


def forward(
    model: MLP, params: Params, x: Any, y: NDArray[Any], workers: int | None = None
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Return logits (batch, classes), loss, 1 - p_y and correctness (batch,) of every sample."""
    model.check(params)
    _check_codes(params)
    x, labels = check_batch(params, x, y)
    if not compiled():
        return forward_reference(model, params, x, labels)
    from minibit.kernels.unit_forward import Sample
    from minibit.kernels.unit_forward import forward as kernel

    w, outcomes = prepare(model, params), _outcomes(len(x))
    logits = np.empty((len(x), w.network.w_out.shape[0]), np.float32)

    rooms = [Sample.room(w.network) for _ in range(CHUNKS)]

    def work(chunk: int, part: slice, block: Block | None) -> None:
        own, found = rooms[chunk], _part(outcomes, part)
        kernel(w.network, x[part], labels[part], block, own, logits[part], found)

    run(w, x, work, workers)
    return logits, *outcomes


def unit_sums(
    model: MLP,
    params: Params,
    x: Any,
    y: NDArray[Any],
    weight: Floats,
    units: Sequence[NDArray[np.int64]],
    threshold: float = -np.inf,
    workers: int | None = None,
) -> Sums:
    """Sum the alignments of all weights into the drawn units over samples.

    Parameters
    ----------
    x : uint8 or float array, shape (batch, n_in)
    y : integer array, shape (batch,)
    weight : float32 array, shape (batch,)
        Weight of every sample in the sums.
    units : one int64 array a layer
        The drawn units.
    threshold : float
        Samples with ``1 - p_y <= threshold`` count as learnt: their tangents are skipped.
    """
    model.check(params)
    x, labels = check_batch(params, x, y)
    _check_codes(params)
    weight = _check_weight(len(x), weight)
    _check_units(params, units)
    if not compiled():
        return unit_sums_reference(model, params, x, labels, weight, units, threshold)
    from minibit.kernels import unit_tangents as kernel
    from minibit.kernels.unit_forward import Sample

    w, outcomes = prepare(model, params), _outcomes(len(x))
    batch, net = kernel.Batch(x, labels, weight, np.float32(threshold)), w.network
    drawn = _listed(net, units)
    sums = np.zeros((CHUNKS, len(drawn.columns), max(net.widths[:-1])), np.float32)
    squares = np.zeros_like(sums)
    rooms = [(Sample.room(net), kernel.Terms.room(net, drawn, 4)) for _ in range(CHUNKS)]

    def work(chunk: int, part: slice, block: Block | None) -> None:
        own, terms = rooms[chunk]
        kernel.unit_sums(
            net, _part(batch, part), block, drawn, own, terms, sums[chunk], squares[chunk],
            _part(outcomes, part),
        )  # fmt: skip

    run(w, x, work, workers)

    def by_layer(total: Floats) -> tuple[Floats, ...]:
        rows = np.split(total[: drawn.counts.sum()], np.cumsum(drawn.counts)[:-1])
        return tuple(r[:, :n_in] for r, n_in in zip(rows, net.widths, strict=False))

    return Sums(by_layer(sums.sum(0)), by_layer(squares.sum(0)), *outcomes)


def direction_sums(
    model: MLP,
    params: Params,
    x: Any,
    y: NDArray[Any],
    weight: Floats,
    directions: Sequence[Any],
    threshold: float = -np.inf,
    workers: int | None = None,
) -> Sums:
    """Sum the alignments with sparse directions over samples; see `direction_sums_reference`."""
    offsets, positions, signs = directions[:3]
    model.check(params)
    x, labels = check_batch(params, x, y)
    _check_codes(params)
    weight = _check_weight(len(x), weight)
    _check_directions(params, offsets, positions, signs)
    if not compiled():
        return direction_sums_reference(model, params, x, labels, weight, directions, threshold)
    from minibit.kernels import unit_tangents as kernel
    from minibit.kernels.unit_forward import Sample

    w, outcomes = prepare(model, params), _outcomes(len(x))
    batch, net = kernel.Batch(x, labels, weight, np.float32(threshold)), w.network
    units, unit_index, layer_index, column = locate(params, positions)
    entries = (unit_index, layer_index, column, signs.astype(np.float32))
    sparse = kernel.Directions(offsets, *entries)
    drawn = _listed(net, units)
    sums = np.zeros((CHUNKS, len(offsets) - 1))
    squares = np.zeros_like(sums)
    rooms = [(Sample.room(net), kernel.Terms.room(net, drawn, 1)) for _ in range(CHUNKS)]

    def work(chunk: int, part: slice, block: Block | None) -> None:
        own, terms = rooms[chunk]
        kernel.direction_sums(
            net, _part(batch, part), block, drawn, sparse, own, terms, sums[chunk],
            squares[chunk], _part(outcomes, part),
        )  # fmt: skip

    run(w, x, work, workers)
    alignments, their_squares = (total.sum(0).astype(np.float32) for total in (sums, squares))
    return Sums((alignments,), (their_squares,), *outcomes)
