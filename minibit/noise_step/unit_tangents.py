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
every sample goes through alone, on additions, inside the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from minibit.base import finite, integer_array
from minibit.kernels import path
from minibit.kernels import threads as pool
from minibit.matmul import kernel_of_many
from minibit.noise_step.perceptron import MLP
from minibit.noise_step.unit_reference import (
    ChunkSums,
    Sums,
    alignments_reference,
    forward_reference,
    locate,
    unit_sums_reference,
)

__all__ = [
    "CHUNKS", "added", "chunk_edges", "direction_chunks", "direction_sums", "forward", "loss_sums",
    "mean_loss", "unit_sums",
]  # fmt: skip

if TYPE_CHECKING:
    from minibit.kernels.unit_forward import Batch, Network, Outcomes, Products
    from minibit.kernels.unit_tangents import Units

CHUNKS = 4  # a batch is always cut in as many parts, so sums do not depend on the thread count
EVERY = range(CHUNKS)
BLOCK = 256  # samples of a product: their sums and states stay within the second-level cache

T = TypeVar("T", bound=tuple[Any, ...])
Floats = NDArray[np.floating[Any]]  # float32 on the fast path
Params = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """A model's weights and a batch in the layout of the kernels; made anew for every step."""

    network: Network
    products: Products | None  # None, too, where activations are not rounded
    rounded: bool
    batch: Batch
    outcomes: Outcomes
    threads: int | None

    @classmethod
    def of(
        cls, model: MLP, params: Params, batch: Sequence[Any], threshold: float, threads: int | None
    ) -> Task | None:
        """Lay out weights and samples, which are checked already; None if nothing is compiled."""
        if (kernels := path()) == "reference":
            return None
        from minibit.kernels.pack import packed_panels
        from minibit.kernels.product import LANES
        from minibit.kernels.unit_forward import Batch, Outcomes, Products

        (x, y, weight), weights = batch, [*params.values()]
        rounded = model.activations == "int8" and len(weights) > 2
        row_sums = weights[0].sum(axis=1, dtype=np.int32).astype(np.float32)
        network, products = _network(model, weights, row_sums), None
        if rounded and kernels in LANES:
            products = Products(kernel_of_many(kernels), packed_panels(weights[:-1]), row_sums)
        loss, hardness = np.empty((2, len(x)), np.float32)
        logits = np.empty((len(x), len(network.w_out)), np.float32)
        outcomes = Outcomes(loss, hardness, np.empty(len(x), np.bool_), logits)
        samples = Batch(x, y, weight, np.float32(threshold))
        return cls(network, products, rounded, samples, outcomes, threads)

    def run(
        self,
        kernel: Callable[..., None],
        units: int,
        samples: int,
        arguments: Callable[[int], tuple[Any, ...]] = lambda chunk: (),
        chunks: range = EVERY,
    ) -> None:
        """Call the kernel for all parts of `chunks`.

        The batch is cut into `CHUNKS`, and a chunk into parts, which one thread computes in turn.
        ``arguments(chunk)`` are further arguments of the kernel for the parts of a chunk. The
        buffers hold the terms of so many `samples` and `units`.
        """
        from minibit.kernels.unit_forward import buffers, hidden_states

        net, batch, edges = self.network, self.batch, chunk_edges(len(self.batch.x))
        scratch = buffers(net, CHUNKS, units, samples)

        def chunk(number: int) -> bool:
            start, stop = edges[number : number + 2]
            blocks = -(-(stop - start) // BLOCK) if self.rounded else min(1, stop - start)
            for begin, end in pairwise(_cut(start, stop, blocks)):
                part = slice(begin, end)
                rows, outcomes = _part(batch, part), _part(self.outcomes, part)
                block = hidden_states(net, self.products, rows.x) if self.rounded else None
                kernel(net, rows, block, outcomes, *scratch[number], *arguments(number))
            return True

        tasks = [partial(chunk, number) for number in chunks]
        pool.run(tasks, self.threads or pool.cpus())


def _network(model: MLP, weights: Sequence[NDArray[np.int8]], row_sums: Floats) -> Network:
    """Lay out the weights."""
    from minibit.kernels.unit_forward import Network

    widths = np.array([weights[0].shape[1], *(w.shape[0] for w in weights)])
    first = np.cumsum([0, *widths[:-1]])
    wt = np.zeros((first[-1], widths[1:].max()), np.int8)
    for start, w in zip(first, weights, strict=False):
        wt[start : start + w.shape[1], : w.shape[0]] = w.T
    return Network(
        wt=wt,
        first=first,
        widths=widths,
        tall=int(widths.max()) // 64 * 64 + 64,
        w_out=weights[-1].astype(np.float32),
        base=row_sums * np.float32(model.input_offset),
        scale=np.float32(model.input_scale),
        offset=np.float32(model.input_offset),
        logit_scale=np.float32(model.logit_scale),
        eps=np.float32(model.eps),
    )


def _cut(start: int, stop: int, parts: int) -> list[int]:
    """Cut a range into even parts: for a short last part, products would compile more kernels."""
    return [int(edge) for edge in np.linspace(start, stop, parts + 1)]


def _part(arrays: T, part: slice) -> T:
    """Cut the same samples out of every array of a named tuple."""
    return type(arrays)(*(a[part] if isinstance(a, np.ndarray) else a for a in arrays))


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


def _checked(
    model: MLP, params: Params, x: Any, y: Any, weight: Any = None
) -> tuple[dict[str, NDArray[np.int8]], tuple[NDArray[Any], NDArray[np.int64], Floats]]:
    """Return codes, inputs (uint8 or float32), labels and weights as the kernels trust them.

    Arrays are contiguous; those of the batch are read-only, too: the kernels compile once.
    """
    model.check(params)
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
        raise ValueError(f"y must be one label per sample, ({len(x)},), got shape {y.shape}")
    y = integer_array("y", y, 0, classes - 1)
    for name, w in params.items():
        if w.dtype != np.int8 or (w.size and not -1 <= w.min() <= w.max() <= 1):
            raise ValueError(f"params[{name!r}] must be int8 codes -1, 0 and 1, got {w.dtype}")
    weight = np.ones(len(x)) if weight is None else np.asarray(weight)
    if weight.shape != y.shape:
        raise ValueError(f"weight must be one number per sample, ({len(x)},), got {weight.shape}")
    weight = np.ascontiguousarray(weight, np.float32)
    x, y = (np.ascontiguousarray(v)[:] for v in (x if x.dtype == np.uint8 else x.astype("f4"), y))
    x.flags.writeable = y.flags.writeable = False
    return {name: np.ascontiguousarray(w) for name, w in params.items()}, (x, y, weight)


def forward(
    model: MLP, params: Params, x: Any, y: NDArray[Any], threads: int | None = None
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Return logits (batch, classes), loss, 1 - p_y and correctness (batch,) of every sample."""
    codes, batch = _checked(model, params, x, y)
    if (task := Task.of(model, codes, batch, -np.inf, threads)) is None:
        return forward_reference(model, codes, *batch[:2])
    from minibit.kernels.unit_forward import forward as kernel

    task.run(kernel, units=0, samples=0)
    *outcomes, logits = task.outcomes
    return logits, *outcomes


def unit_sums(
    model: MLP,
    params: Params,
    x: Any,
    y: NDArray[Any],
    weight: Floats,
    units: Sequence[NDArray[np.int64]],
    threshold: float = -np.inf,
    threads: int | None = None,
) -> Sums:
    """Sum the alignments of all weights into the drawn units over samples.

    `x` is uint8 or float (batch, n_in), `y` its labels, `weight` (batch,) that of every sample in
    the sums, `units` one int64 array per layer. Samples with ``1 - p_y <= threshold`` count as
    learnt: their tangents are skipped.
    """
    codes, batch = _checked(model, params, x, y, weight)
    if len(units) != len(codes):
        raise ValueError(f"units must be one array per layer, {len(codes)}, got {len(units)}")
    for drawn, (name, w) in zip(units, codes.items(), strict=True):
        if drawn.size and not 0 <= drawn.min() <= drawn.max() < w.shape[0]:
            raise ValueError(f"units of {name!r} must lie in [0, {w.shape[0]}), got {drawn}")
    if (task := Task.of(model, codes, batch, threshold, threads)) is None:
        return unit_sums_reference(model, codes, *batch, units, threshold)
    from minibit.kernels.unit_tangents import unit_sums as kernel

    listed, widths = _listed(task.network, units), task.network.widths
    sums = np.zeros((CHUNKS, len(listed.columns), max(widths[:-1])), np.float32)
    squares = np.zeros_like(sums)
    task.run(kernel, len(listed.columns), 4, lambda n: (listed, sums[n], squares[n]))

    def by_layer(total: Floats) -> tuple[Floats, ...]:
        rows = np.split(total[: listed.counts.sum()], np.cumsum(listed.counts)[:-1])
        return tuple(r[:, :n_in] for r, n_in in zip(rows, widths, strict=False))

    return Sums(by_layer(sums.sum(0)), by_layer(squares.sum(0)), *task.outcomes[:3])


def direction_sums(
    model: MLP,
    params: Params,
    x: Any,
    y: NDArray[Any],
    weight: Floats,
    directions: Sequence[Any],
    threshold: float = -np.inf,
    threads: int | None = None,
) -> Sums:
    """Sum the alignments with sparse directions over samples; see `direction_sums_reference`."""
    sums = direction_chunks(model, params, x, y, weight, directions, threshold, threads)
    totals = (added(chunks).astype(np.float32) for chunks in (sums.alignments, sums.squares))
    alignments, squares = ((total,) for total in totals)
    return Sums(alignments, squares, sums.loss, sums.hardness, sums.correct)


def chunk_edges(samples: int) -> list[int]:
    """Return where the chunks of a batch begin, and where the last one ends.

    Examples
    --------
    >>> chunk_edges(10)
    [0, 2, 5, 7, 10]
    """
    return _cut(0, samples, CHUNKS)


def loss_sums(losses: Floats, weight: Floats, cuts: Sequence[int]) -> tuple[float, float]:
    """Return sum w L and sum w over chunks of samples, which begin and end at `cuts`.

    A chunk's sum is rounded to float32. Such sums add without an error in float64 (but where one is
    2**27 times another), so a batch has the same `mean_loss` whoever sums which of its chunks.

    Examples
    --------
    >>> loss_sums(np.float32([1, 2, 4]), np.float32([1, 1, 2]), [0, 2, 3])
    (11.0, 4.0)
    """
    weight = weight.astype(np.float64)
    total, weights = (
        sum(float(np.float32(each[begin:end].sum())) for begin, end in pairwise(cuts))
        for each in (weight * losses, weight)
    )
    return total, weights


def mean_loss(losses: Floats, weight: Floats) -> float:
    """Return the loss of a batch, sum w L / sum w; the plain mean where no sample weighs anything.

    Examples
    --------
    >>> mean_loss(np.float32([1, 2, 4]), np.float32([1, 1, 2]))
    2.75
    """
    weight = weight if weight.any() else np.ones_like(weight)
    total, weights = loss_sums(losses, weight, chunk_edges(len(losses)))
    return total / weights


def added(chunks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add sums over the chunks of a batch, (chunks, directions), first to last."""
    return reduce(np.add, chunks)  # (directions,)


def direction_chunks(
    model: MLP,
    params: Params,
    x: Any,
    y: NDArray[Any],
    weight: Floats,
    directions: Sequence[Any],
    threshold: float = -np.inf,
    threads: int | None = None,
    chunks: range = EVERY,
) -> ChunkSums:
    """Sum the alignments with sparse directions over each of some chunks of the batch.

    The chunks are four runs of samples, as equal as can be (`chunk_edges`). Samples of other chunks
    are not looked at.
    """
    offsets, positions, signs = directions[:3]
    codes, batch = _checked(model, params, x, y, weight)
    size = sum(w.size for w in codes.values())
    if positions.shape != signs.shape or positions.ndim != 1:
        raise ValueError(f"positions and signs must match, got {positions.shape}, {signs.shape}")
    if positions.size and not 0 <= positions.min() <= positions.max() < size:
        raise ValueError(f"positions must lie in [0, {size}), got up to {positions.max()}")
    if offsets[0] != 0 or offsets[-1] != positions.size or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets must rise from 0 to {positions.size}, got {offsets}")
    if not 0 <= chunks.start < chunks.stop <= CHUNKS or chunks.step != 1:
        raise ValueError(f"chunks must be some of {EVERY}, one after another, got {chunks}")
    sums = np.zeros((len(chunks), len(offsets) - 1))
    squares, edges = np.zeros_like(sums), chunk_edges(len(batch[0]))
    inside = slice(edges[chunks.start], edges[chunks.stop])
    if (task := Task.of(model, codes, batch, threshold, threads)) is None:
        measured = alignments_reference(model, codes, *batch, directions, threshold)
        a, loss, hardness, correct = measured
        for row, chunk in enumerate(chunks):
            some = a[slice(*edges[chunk : chunk + 2])]  # (samples, directions)
            sums[row], squares[row] = some.sum(0), (some**2).sum(0)
        return ChunkSums(sums, squares, loss[inside], hardness[inside], correct[inside])
    from minibit.kernels.unit_tangents import Directions
    from minibit.kernels.unit_tangents import direction_sums as kernel

    units, unit_index, layer_index, column = locate(codes, positions)
    entries = (unit_index, layer_index, column, signs.astype(np.float32))
    listed, sparse = _listed(task.network, units), Directions(offsets, *entries)

    def arguments(chunk: int) -> tuple[Any, ...]:
        row = chunks.index(chunk)
        return listed, sparse, sums[row], squares[row]

    task.run(kernel, len(listed.columns), 1, arguments, chunks)
    outcomes = _part(task.outcomes, inside)
    return ChunkSums(sums, squares, outcomes.loss, outcomes.hardness, outcomes.correct)
