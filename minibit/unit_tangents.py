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

May import: numpy, minibit.layers, minibit.kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.kernels import compiled
from minibit.kernels.threads import cpus
from minibit.layers import mlp, ternary_linear

__all__ = [
    "MLP",
    "Sums",
    "direction_sums",
    "direction_sums_reference",
    "forward",
    "forward_reference",
    "unit_sums",
    "unit_sums_reference",
]

WIDEST = 2**15 - 1  # units of a hidden layer: the kernels count their tangents in int16
CHUNKS = 4  # a batch is always cut in as many parts, so sums do not depend on the thread count

Floats = NDArray[np.floating[Any]]  # float32 on the fast path
Params = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class MLP:
    """The paper's network as a model function: `minibit.layers.mlp` with its constants filled in.

    ``logits = logit_scale * mlp(input_scale * x + input_offset)``. Called, it is a pure function of
    ``(params, x)`` like any other model; `NoiseStep` knows a fast path for it.
    """

    logit_scale: float = 1.0
    input_scale: float = 1.0
    input_offset: float = 0.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse constants that leave no model."""
        if not (np.isfinite(self.logit_scale) and self.logit_scale > 0):
            raise ValueError(f"logit_scale must be positive and finite, got {self.logit_scale}")
        if not (np.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"eps must be positive and finite, got {self.eps}")

    def __call__(
        self, params: Params, x: Any, linear: Callable[[Any, Any], Any] = ternary_linear
    ) -> Any:
        """Return the logits, ``(batch, classes)``, of inputs ``(batch, n_in)``."""
        x = self.input_scale * _as_float(x) + self.input_offset
        return mlp(params, x, logit_scale=self.logit_scale, eps=self.eps, linear=linear)

    def check(self, params: Params) -> None:
        """Refuse parameters that are no MLP, or not in the order of its layers."""
        names = [f"w{layer + 1}" for layer in range(len(params))]
        if list(params) != names:
            raise ValueError(f"params of an MLP must be {names}, in order, got {list(params)}")
        shapes = [np.shape(w) for w in params.values()]
        chained = all(len(s) == 2 and min(s) > 0 for s in shapes)
        if chained and any(s[0] > WIDEST for s in shapes[:-1]):
            raise ValueError(f"params of an MLP may have hidden layers of {WIDEST}, got {shapes}")
        if not chained or any(a[0] != b[1] for a, b in itertools.pairwise(shapes)):
            raise ValueError(
                f"params of an MLP must be (n_out, n_in), each n_in the n_out before, got {shapes}"
            )


@dataclass(frozen=True)
class Sums:
    """Sums over a batch: of weighted alignments, of their squares, and what the samples did."""

    alignments: tuple[
        Floats, ...
    ]  # a layer: (units, n_in); for directions one entry: (directions,)
    squares: tuple[Floats, ...]  # likewise
    loss: Floats  # (batch,)
    hardness: Floats  # (batch,), 1 - p_y
    correct: NDArray[np.bool_]  # (batch,)


def _as_float(x: Any) -> Any:
    return x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype.kind in "ui" else x


# --- plain NumPy: the specification ---------------------------------------------------------------


def _states(model: MLP, params: Params, x: Any) -> tuple[list[Any], list[Any], list[Any], Any]:
    """Run the model: inputs of every layer, z_hat and r of every hidden one, and the logits."""
    *hidden, last = (w.astype(np.float32) for w in params.values())
    h = model.input_scale * _as_float(x) + model.input_offset  # (batch, n_in)
    inputs, z_hats, rs = [h], [], []
    for w in hidden:
        z = h @ w.T  # (batch, n_out)
        centred = z - z.mean(axis=1, keepdims=True)
        r = 1 / np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + np.float32(model.eps))
        z_hat = centred * r
        h = np.maximum(z_hat, 0)
        inputs.append(h)
        z_hats.append(z_hat)
        rs.append(r)  # (batch, 1)
    return inputs, z_hats, rs, np.float32(model.logit_scale) * (h @ last.T)


def _outcome(logits: Any, y: Any) -> tuple[Any, Any, Any, Any]:
    """Loss, 1 - p_y, correctness and g = softmax - onehot of every sample."""
    rows = np.arange(len(y))
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    p /= p.sum(axis=1, keepdims=True)
    loss = -shifted[rows, y] + np.log(np.exp(shifted).sum(axis=1))
    others = p.copy()
    others[rows, y] = 0
    hardness = others.sum(axis=1)
    g = p
    g[rows, y] = -hardness  # p - 1 without cancellation
    return (
        loss.astype(np.float32),
        hardness.astype(np.float32),
        logits.argmax(axis=1) == y,
        g.astype(np.float32),
    )


def _tangents(
    model: MLP, params: Params, states: Any, g: Any, units: Sequence[NDArray[np.int64]]
) -> list[Any]:
    """t_j of every drawn unit of every layer: (batch, units)."""
    _, z_hats, rs, _ = states
    weights = [w.astype(np.float32) for w in params.values()]
    g = g * np.float32(model.logit_scale)
    top = len(weights) - 1

    def follow(layer: int, u: Any) -> Any:
        """F_layer of tangents u: (batch, k, width) or (k, width), the same for all samples."""
        if layer == top:
            return np.einsum("bku,bu->bk", np.broadcast_to(u, (len(g), *u.shape[-2:])), g)
        z_hat = z_hats[layer][:, None, :]  # (batch, 1, width)
        on = z_hat > 0
        through = follow(layer + 1, (u * on) @ weights[layer + 1].T)  # (batch, k)
        mean_term = follow(layer + 1, on.astype(np.float32) @ weights[layer + 1].T)  # (batch, 1)
        shape_term = follow(layer + 1, (z_hat * on) @ weights[layer + 1].T)  # (batch, 1)
        r = rs[layer]
        return r * (through - u.mean(-1) * mean_term - (u * z_hat).mean(-1) * shape_term)

    return [
        follow(layer, np.eye(w.shape[0], dtype=np.float32)[units[layer]])
        for layer, w in enumerate(weights)
    ]


def forward_reference(
    model: MLP, params: Params, x: Any, y: NDArray[Any]
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Return logits, loss, 1 - p_y and correctness of every sample; the twin of `forward`."""
    logits = _states(model, params, x)[3]
    loss, hardness, correct, _ = _outcome(logits, y)
    return logits, loss, hardness, correct


def unit_sums_reference(
    model: MLP,
    params: Params,
    x: Any,
    y: NDArray[Any],
    weight: Floats,
    units: Sequence[NDArray[np.int64]],
    threshold: float = -np.inf,
) -> Sums:
    """Sum the alignments of all weights into the drawn units over samples; plain NumPy."""
    states = _states(model, params, x)
    loss, hardness, correct, g = _outcome(states[3], y)
    kept = np.where(hardness > threshold, weight, 0).astype(np.float32)[:, None]  # (batch, 1)
    alignments, squares = [], []
    for h, t in zip(states[0], _tangents(model, params, states, g, units), strict=True):
        t = kept * t  # (batch, units)
        alignments.append(t.T @ h)  # (units, n_in)
        squares.append((t**2).T @ h**2)
    return Sums(tuple(alignments), tuple(squares), loss, hardness, correct)


def direction_sums_reference(
    model: MLP,
    params: Params,
    x: Any,
    y: NDArray[Any],
    weight: Floats,
    offsets: NDArray[np.int64],
    positions: NDArray[np.int64],
    signs: NDArray[np.int8],
    threshold: float = -np.inf,
) -> Sums:
    """Sum the alignments with sparse directions over samples; plain NumPy.

    Direction p is ``signs`` at flat ``positions`` (over the layers laid end to end), entries
    ``offsets[p]`` to ``offsets[p + 1]``.
    """
    states = _states(model, params, x)
    loss, hardness, correct, g = _outcome(states[3], y)
    kept = np.where(hardness > threshold, weight, 0).astype(np.float32)[:, None]
    units, unit_index, layer_index, column = _locate(params, positions)
    input_index = np.cumsum([0, *(w.shape[1] for w in params.values())])[layer_index] + column
    tangents = kept * np.concatenate(_tangents(model, params, states, g, units), axis=1)
    inputs = np.concatenate(states[0], axis=1)  # (batch, all inputs)
    entries = signs * inputs[:, input_index] * tangents[:, unit_index]  # (batch, nonzeros)
    padded = np.concatenate(
        [np.zeros((len(y), 1)), np.cumsum(entries, axis=1, dtype=np.float64)], 1
    )
    a = np.diff(padded[:, offsets], axis=1)  # (batch, directions)
    return Sums(
        (a.sum(0).astype(np.float32),),
        ((a**2).sum(0).astype(np.float32),),
        loss,
        hardness,
        correct,
    )


def _locate(params: Params, positions: NDArray[np.int64]) -> tuple[Any, ...]:
    """Units touched per layer; every position's place among those, its layer and its input."""
    units, unit_index, column = [], np.empty_like(positions), np.empty_like(positions)
    layer_index = np.empty_like(positions)
    start = drawn = 0
    for layer, w in enumerate(params.values()):
        inside = (positions >= start) & (positions < start + w.size)
        unit, column[inside] = np.divmod(positions[inside] - start, w.shape[1])
        touched, place = np.unique(unit, return_inverse=True)
        units.append(touched)
        unit_index[inside] = drawn + place
        layer_index[inside] = layer
        start += w.size
        drawn += len(touched)
    return tuple(units), unit_index, layer_index, column


# --- the fast path --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Prepared:
    """Weights as the kernels want them; lives for one step."""

    wt: NDArray[np.int8]  # (all layers' inputs, widest n_out): W transposed, layer below layer
    first: NDArray[np.int64]  # first row of every layer
    widths: NDArray[np.int64]  # n_in of the first layer, then n_out of every layer
    w_out: Floats  # (classes, n_in)
    base: Floats  # first layer's answer to a constant input of input_offset
    scale: np.float32
    offset: np.float32
    logit_scale: np.float32
    eps: np.float32


def _prepare(model: MLP, params: Params) -> _Prepared:
    weights = list(params.values())
    widths = np.array([weights[0].shape[1], *(w.shape[0] for w in weights)])
    first = np.cumsum([0, *widths[:-1]])
    wt = np.zeros((first[-1], widths[1:].max()), np.int8)
    for start, w in zip(first, weights, strict=False):
        wt[start : start + w.shape[1], : w.shape[0]] = w.T
    offset = np.float32(model.input_offset)
    return _Prepared(
        wt=wt,
        first=first,
        widths=widths,
        w_out=weights[-1].astype(np.float32),
        base=(weights[0].sum(axis=1, dtype=np.int64) * np.float64(offset)).astype(np.float32),
        scale=np.float32(model.input_scale),
        offset=offset,
        logit_scale=np.float32(model.logit_scale),
        eps=np.float32(model.eps),
    )


def _columns(
    w: _Prepared, units: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Drawn units as one table, their number per layer, and the nonzero weights that leave them."""
    from minibit.kernels.unit_tangents import list_columns

    n_units = np.array([len(u) for u in units])
    table = np.zeros((len(units), max(1, n_units.max())), np.int64)
    for row, drawn in zip(table, units, strict=True):
        row[: len(drawn)] = drawn
    columns = np.empty((max(1, n_units.sum()), w.wt.shape[1]), np.int32)
    sizes = np.zeros((len(columns), 2), np.int32)
    list_columns(w.wt, w.first, w.widths, table, n_units, columns, sizes)
    return table, n_units, columns, sizes


def _run(work: Callable[[int, int, int], None], batch: int, workers: int | None) -> None:
    """Call work(chunk, start, stop) for every chunk of the batch, on up to `workers` threads."""
    edges = np.linspace(0, batch, CHUNKS + 1).astype(int)
    jobs = [(k, int(edges[k]), int(edges[k + 1])) for k in range(CHUNKS)]
    workers = min(workers or cpus(), CHUNKS)
    if workers == 1:
        for job in jobs:
            work(*job)
        return
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work, *job) for job in jobs]:
            done.result()


def check_batch(params: Params, x: Any, y: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return contiguous inputs (uint8 or float32) and labels, or say what is wrong with them."""
    x, y = np.asarray(x), np.asarray(y)
    *_, last = params.values()
    n_in, classes = next(iter(params.values())).shape[1], last.shape[0]
    if x.ndim != 2 or x.shape[1] != n_in:
        raise ValueError(f"x must be (batch, {n_in}), got shape {x.shape}")
    if x.dtype.kind not in "uif":
        raise TypeError(f"x must be integers or floats, got {x.dtype}")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise ValueError(f"x must be finite, got {x[first]} at {first}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must be one label a sample, ({len(x)},), got shape {y.shape}")
    if y.dtype.kind not in "iu":
        raise TypeError(f"y must be integer labels, got {y.dtype}")
    if y.size and (y.min() < 0 or y.max() >= classes):
        wrong = y[(y < 0) | (y >= classes)][0]
        raise ValueError(f"y must be labels from 0 to {classes - 1}, got {wrong}")
    if x.dtype != np.uint8:
        x = x.astype(np.float32)
    return _read_only(x), _read_only(y.astype(np.int64, copy=False))


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
    from minibit.kernels import unit_tangents as kernel

    w = _prepare(model, params)
    batch = len(x)
    logits = np.empty((batch, w.w_out.shape[0]), np.float32)
    loss, hardness = np.empty(batch, np.float32), np.empty(batch, np.float32)
    correct = np.empty(batch, np.bool_)

    def work(_: int, start: int, stop: int) -> None:
        part = slice(start, stop)
        kernel.forward(
            x[part], labels[part], w.wt, w.first, w.widths, w.w_out, w.base, w.scale,
            w.logit_scale, w.eps, logits[part], loss[part], hardness[part], correct[part],
        )  # fmt: skip

    _run(work, batch, workers)
    return logits, loss, hardness, correct


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

    w = _prepare(model, params)
    batch = len(x)
    loss, hardness = np.empty(batch, np.float32), np.empty(batch, np.float32)
    correct = np.empty(batch, np.bool_)
    table, n_units, columns, sizes = _columns(w, units)
    sums = np.zeros((CHUNKS, len(columns), max(w.widths[:-1])), np.float32)
    squares = np.zeros_like(sums)

    def work(chunk: int, start: int, stop: int) -> None:
        part = slice(start, stop)
        kernel.unit_sums(
            x[part], labels[part], weight[part], w.wt, w.first, w.widths, w.w_out, w.base, w.scale,
            w.offset, w.logit_scale, w.eps, np.float32(threshold), table, n_units, columns, sizes,
            sums[chunk], squares[chunk], loss[part], hardness[part], correct[part],
        )  # fmt: skip

    _run(work, batch, workers)

    def by_layer(total: Floats) -> tuple[Floats, ...]:
        rows = np.split(total[: n_units.sum()], np.cumsum(n_units)[:-1])
        return tuple(r[:, :n_in] for r, n_in in zip(rows, w.widths, strict=False))

    return Sums(by_layer(sums.sum(0)), by_layer(squares.sum(0)), loss, hardness, correct)


def direction_sums(
    model: MLP,
    params: Params,
    x: Any,
    y: NDArray[Any],
    weight: Floats,
    offsets: NDArray[np.int64],
    positions: NDArray[np.int64],
    signs: NDArray[np.int8],
    threshold: float = -np.inf,
    workers: int | None = None,
) -> Sums:
    """Sum the alignments with sparse directions over samples; see `direction_sums_reference`."""
    model.check(params)
    x, labels = check_batch(params, x, y)
    _check_codes(params)
    weight = _check_weight(len(x), weight)
    _check_directions(params, offsets, positions, signs)
    if not compiled():
        return direction_sums_reference(
            model, params, x, labels, weight, offsets, positions, signs, threshold
        )
    from minibit.kernels import unit_tangents as kernel

    w = _prepare(model, params)
    batch, directions = len(x), len(offsets) - 1
    loss, hardness = np.empty(batch, np.float32), np.empty(batch, np.float32)
    correct = np.empty(batch, np.bool_)
    units, unit_index, layer_index, column = _locate(params, positions)
    input_index = layer_index * kernel.row_size(w.widths) + column
    table, n_units, columns, sizes = _columns(w, units)
    sums, squares = np.zeros((CHUNKS, directions)), np.zeros((CHUNKS, directions))
    float_signs = signs.astype(np.float32)

    def work(chunk: int, start: int, stop: int) -> None:
        part = slice(start, stop)
        kernel.direction_sums(
            x[part], labels[part], weight[part], w.wt, w.first, w.widths, w.w_out, w.base, w.scale,
            w.offset, w.logit_scale, w.eps, np.float32(threshold), table, n_units, columns, sizes,
            offsets, unit_index, input_index, float_signs, sums[chunk], squares[chunk], loss[part],
            hardness[part], correct[part],
        )  # fmt: skip

    _run(work, batch, workers)
    return Sums(
        (sums.sum(0).astype(np.float32),),
        (squares.sum(0).astype(np.float32),),
        loss,
        hardness,
        correct,
    )
