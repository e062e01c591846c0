"""What the kernels of unit tangents start from: weights as they want them, and blocks of samples.

With int8 activations the forward pass of a block is made here, product by product; what is left of
it for the tangents are the codes of every layer, their scales, z_hat of the last hidden layer, and
every layer's 1 / sigma. With float activations a sample goes through alone, inside the kernels, and
there is nothing to leave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minibit.kernels import layout, path, threads
from minibit.matmul import ternary_matmul_int8
from minibit.noise_step.perceptron import MLP
from minibit.ternary import TernaryMatrix

if TYPE_CHECKING:
    from minibit.kernels.unit_forward import Block, Network

__all__ = ["CHUNKS", "Prepared", "prepare", "run"]

CHUNKS = 4  # a batch is always cut in as many parts, so sums do not depend on the thread count
BLOCK = 256  # samples of a product: their sums and states stay within the second-level cache
MIDDLE = 128  # of a pixel's values: less it, a pixel is an int8

Floats = NDArray[np.floating[Any]]  # float32


@dataclass(frozen=True)
class Prepared:
    """Weights as the kernels want them; lives for one step."""

    network: Network
    row_sums: Floats  # (n_out,) of the first layer: W 1
    rounded: bool  # whether activations are int8
    matrices: tuple[TernaryMatrix, ...]  # of the hidden layers, where bytes have dot products


def prepare(model: MLP, params: Mapping[str, NDArray[np.int8]]) -> Prepared:
    """Lay out the weights of a model, which are checked already."""
    from minibit.kernels.unit_forward import Network

    weights = list(params.values())
    widths = np.array([weights[0].shape[1], *(w.shape[0] for w in weights)])
    first = np.cumsum([0, *widths[:-1]])
    wt = np.zeros((first[-1], widths[1:].max()), np.int8)
    for start, w in zip(first, weights, strict=False):
        wt[start : start + w.shape[1], : w.shape[0]] = w.T
    rounded = model.rounds(len(weights))
    packed = weights[:-1] if rounded and layout(path()) == "panels" else []
    row_sums = weights[0].sum(axis=1, dtype=np.int32).astype(np.float32)
    network = Network(
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
    return Prepared(network, row_sums, rounded, tuple(map(TernaryMatrix.from_codes, packed)))


def run(
    w: Prepared,
    x: NDArray[Any],
    work: Callable[[int, slice, Block | None], None],
    workers: int | None,
) -> None:
    """Call ``work(chunk, part, block)`` for all parts of a batch, on up to `workers` threads.

    One chunk's parts come one after the other, on one thread. `block` is None unless activations
    are rounded.
    """
    edges = _cut(0, len(x), CHUNKS)

    def chunk(number: int) -> bool:
        start, stop = edges[number : number + 2]
        blocks = -(-(stop - start) // BLOCK) if w.rounded else min(1, stop - start)
        for begin, end in pairwise(_cut(start, stop, blocks)):
            part = slice(begin, end)
            work(number, part, _rounded(w, x[part]) if w.rounded else None)
        return True

    threads.run([partial(chunk, number) for number in range(CHUNKS)], workers or threads.cpus())


def _cut(start: int, stop: int, parts: int) -> list[int]:
    """Cut a range evenly: no block is small, for which products would compile other kernels."""
    return [int(edge) for edge in np.linspace(start, stop, parts + 1)]


def _rounded(w: Prepared, x: NDArray[Any]) -> Block:
    """Run a block through the hidden layers."""
    from minibit.kernels.unit_forward import Block, rectify_rows, round_rows

    net, widths = w.network, w.network.widths
    batch, hidden = len(x), len(widths) - 2
    codes = np.empty((hidden - 1, batch, max(widths[1:-1])), np.int8)  # (layers, block, widest)
    scales = np.empty((hidden - 1, batch), np.float32)
    last = np.empty((batch, widths[hidden]), np.float32)
    norms = np.empty((hidden, batch), np.float32)
    factors, base = np.full(batch, net.scale), net.base
    shift = np.zeros_like(base)
    if x.dtype == np.uint8 and w.matrices:
        pixels = (x ^ np.uint8(MIDDLE)).view(np.int8)  # x - 128
        z, shift = _product(w, 0, pixels), np.float32(MIDDLE) * w.row_sums
    else:
        z = _product(w, 0, x)
    for layer in range(hidden - 1):
        round_rows(z, shift, factors, base, net.eps, codes[layer], scales[layer], norms[layer])
        z = _product(w, layer + 1, codes[layer])  # (block, n_out)
        factors = 1 / scales[layer]
        base = shift = np.zeros(z.shape[1], np.float32)
    rectify_rows(z, shift, factors, base, net.eps, last, norms[hidden - 1])
    return Block(codes, scales, last, norms)


def _product(w: Prepared, layer: int, x: NDArray[Any]) -> NDArray[Any]:
    """Multiply a layer's inputs, which may be followed by others: (block, at least n_in)."""
    net = w.network
    n_in, n_out = net.widths[layer], net.widths[layer + 1]
    if x.dtype == np.int8 and w.matrices:
        return ternary_matmul_int8(x[:, :n_in], w.matrices[layer], threads=1)
    from minibit.kernels.unit_forward import added_rows

    z = np.empty((len(x), n_out), np.float32)
    added_rows(x, net.wt, net.first[layer], n_in, z)  # whole numbers below 2^24 are exact, too
    return z
