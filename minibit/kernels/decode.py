"""One token through a packed language model: one kernel, for one thread or several.

A layer has five phases, which the threads share chunk by chunk (`minibit.kernels.sharing`):

    1  norm, quantise once        rows of q, k and v
    2                             heads of keys and values: rotate, append, attend
    3  norm, quantise             rows of o, added to the stream
    4  norm, quantise once        rows of gate and up together, squared ReLU and product
    5  norm, quantise             rows of down, added to the stream

Norm and quantising take less time than handing them over: every thread that takes a chunk does its
own. Each phase of each layer writes into memory of its own, so a chunk may be done twice. Products,
rotations and gates equal the plain forward pass of `minibit.transformer` bit for bit; sums of
norms, of scores and of mixed values, and the exponential, may differ in the last bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import carray, types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from minibit.kernels import portable
from minibit.kernels.compiling import Array, njit
from minibit.kernels.head import matvec
from minibit.kernels.product import LANES, Tokens, multiply
from minibit.kernels.quantise import quantise_row, sum_row
from minibit.kernels.sharing import finish, take

KINDS = {"portable": ((),)} | {path: ((),) * lanes for path, lanes in LANES.items()}
"""For each kernel path a tuple whose length, a part of its type, picks the product."""

PHASES = 5  # of a layer
CHUNK_ROWS = 64  # least rows of a matrix in a chunk, but for the last
CHUNK = 65536  # bytes of weights in a chunk, about
HEAD_ROWS = 32  # rows of the head in a chunk
_Q, _O, _GATE, _DOWN = (np.int64(i) for i in (0, 3, 4, 6))  # typed, for kernels compile literals


class Model(NamedTuple):
    """A packed model as the kernels take it, and the arrays that one phase hands to the next."""

    kind: tuple[tuple[()], ...]  # see `KINDS`
    addresses: NDArray[np.uint64]  # (layers, 11), of a layer's 7 weights and 4 gains
    sizes: NDArray[np.int64]  # (11,), their lengths
    gammas: NDArray[np.float32]  # (layers, 7)
    eps: np.float32
    streams: NDArray[np.float32]  # (2 layers + 1, hidden), before, amid and after each layer
    projected: NDArray[np.float32]  # (layers, ...): queries, keys and values, end to end
    mixed: NDArray[np.float32]  # (layers, hidden): the mixed heads
    gated: NDArray[np.float32]  # (layers, inner): the gated units


class Context(NamedTuple):
    """A token's context: its number, its rotation, and the keys and values before it."""

    position: int
    cos: NDArray[np.float32]  # (head_dim / 2,)
    sin: NDArray[np.float32]
    caches: NDArray[np.uint64]  # (2, layers): addresses of keys and of values
    cache_shape: tuple[int, int, int]  # kv_heads, capacity, head_dim


class _Layer(NamedTuple):
    """One layer: q, k, v, o, gate, up, down, and the gains before q, o, gate and down."""

    weights: Any
    gains: Any  # the second and last may be empty: there is no norm
    gammas: Any
    eps: Any
    keys: Any  # (kv_heads, capacity, head_dim)
    values: Any


class Own(NamedTuple):
    """A thread's own arrays: a token, normalised and quantised, and sums of rows."""

    normed: Any
    codes: Any  # with room to fill a token up to 8s with 0
    minus: Any  # (1,), minus the sum of the codes
    sums: Any
    others: Any
    queries: Any  # (group, head_dim): those of a head of keys
    scores: Any  # (group, capacity)
    average: Any  # (head_dim,)

    @classmethod
    def allocate(cls, model: Model, context: Context) -> Own:
        """Allocate them with NumPy: Numba would take a second to compile that."""
        arrays = (model.projected, model.mixed, model.gated, model.streams)
        kv_heads, capacity, head_dim = context.cache_shape
        widest = max(a.shape[1] for a in arrays)
        group = model.mixed.shape[1] // head_dim // kv_heads
        return cls(
            np.empty(widest, np.float32),
            np.empty(-(-widest // 8) * 8, np.int8),
            np.empty(1, np.int32),
            np.empty(widest, np.int32),
            np.empty(widest, np.int32),
            np.empty((group, head_dim), np.float32),
            np.empty((group, capacity), np.float32),
            np.empty(head_dim, np.float32),
        )


def _rows(kind, own, n_in, packed, sums, first, last):
    """Write the int32 products of groups first..last of 64 rows with one token's codes."""


@overload(_rows)
def _rows_of_kind(kind, own, n_in, packed, sums, first, last):
    """Pick the product of a path by the length of `kind`."""

    def columns(kind, own, n_in, packed, sums, first, last):
        portable.product(own.codes[:n_in].reshape(1, n_in), packed, sums, first, last, None)

    def panels(kind, own, n_in, packed, sums, first, last):
        token = Tokens(own.codes, n_in, 1, own.minus, None)
        multiply(token, packed, sums, 0, first, last, (((),), ((), (), (), ()), kind))

    return columns if len(kind) == 1 else panels


@njit(cache=True, nogil=True, _nrt=False, fastmath={"reassoc", "contract"})
def _mean_square(x):
    """Mean of the squares, summed in the order that fills the vectors."""
    total = np.float32(0)
    for i in range(x.size):
        total += x[i] * x[i]
    return total / np.float32(x.size)


@njit(cache=True, nogil=True, _nrt=False)
def norm_row(x: Array, gain: Array, eps: np.float32, out: Array) -> None:
    """Write ``x (1 / sqrt(mean x^2 + eps)) gain`` of one token."""
    inverse = np.float32(1) / np.sqrt(_mean_square(x) + eps)
    for i in range(x.size):
        out[i] = (x[i] * inverse) * gain[i]


@njit(cache=True, nogil=True, _nrt=False)
def _quantise(own, x, gain, eps):
    """Normalise one token and quantise it; return the scale, -1 if an entry is not finite.

    With an empty gain the token is taken as it is: the model has no norm there.
    """
    if gain.size == 0:
        for i in range(x.size):
            own.normed[i] = x[i]
    else:
        norm_row(x, gain, eps, own.normed)
    used = (x.size + 7) // 8 * 8
    codes = own.codes[:used].reshape(1, used)
    for i in range(x.size, used):
        codes[0, i] = 0
    scale = quantise_row(own.normed[: x.size].reshape(1, x.size), 0, codes, 0)
    own.minus[0] = -sum_row(codes, 0)
    return scale


@njit(cache=True, nogil=True, _nrt=False)
def _step(packed, n_out):
    """Return the groups of 64 rows in a chunk: about `CHUNK` bytes of weights."""
    groups = (n_out + CHUNK_ROWS - 1) // CHUNK_ROWS
    return max(1, CHUNK // max(packed.size // groups, 1))


@njit(cache=True, nogil=True, _nrt=False)
def _chunks(packed, n_out):
    """Chunks that the rows of a matrix are cut into."""
    groups = (n_out + CHUNK_ROWS - 1) // CHUNK_ROWS
    return (groups + _step(packed, n_out) - 1) // _step(packed, n_out)


@njit(cache=True, nogil=True, _nrt=False)
def _sums(kind, own, n_in, packed, n_out, chunk, sums):
    """Write the int32 sums of one chunk of rows; return its first row, and the next chunk's."""
    step, groups = _step(packed, n_out), (n_out + CHUNK_ROWS - 1) // CHUNK_ROWS
    first, last = chunk * step, min((chunk + 1) * step, groups)
    _rows(kind, own, n_in, packed, sums[:n_out].reshape(1, n_out), first, last)
    return CHUNK_ROWS * first, min(CHUNK_ROWS * last, n_out)


@njit(cache=True, nogil=True, _nrt=False)
def _rotate(x, begin, cos, sin, out):
    """Rotate one head's pairs ``(i, i + half)``: the rotate-half form of RoPE."""
    half = out.size // 2
    for i in range(half):
        left, right = x[begin + i], x[begin + half + i]
        out[i] = left * cos[i] - right * sin[i]
        out[half + i] = right * cos[i] + left * sin[i]


@njit(cache=True, nogil=True, _nrt=False, fastmath={"reassoc", "contract"})
def _scores(queries, keys, length, scores):
    """Write ``queries keys^T``; each key is read once for all queries."""
    for t in range(length):
        for j in range(queries.shape[0]):
            total = np.float32(0)
            for i in range(keys.shape[1]):
                total += queries[j, i] * keys[t, i]
            scores[j, t] = total


@njit(cache=True, nogil=True, _nrt=False)
def _attend(projected, layer, context, own, head, mixed):
    """Append one head's key and value, and let its group of queries attend to all so far."""
    kv_heads, _, width = context.cache_shape
    position, cos, sin = context.position, context.cos, context.sin
    group = mixed.size // width // kv_heads
    keys, values = layer.keys[head], layer.values[head]  # (capacity, width)
    queries, scores, average = own.queries, own.scores, own.average
    at_key = mixed.size + head * width
    at_value = at_key + kv_heads * width
    _rotate(projected, at_key, cos, sin, keys[position])
    for i in range(width):
        values[position, i] = projected[at_value + i]
    factor = np.float32(1 / np.sqrt(width))
    for j in range(group):
        _rotate(projected, (head * group + j) * width, cos, sin, queries[j])
        for i in range(width):
            queries[j, i] *= factor
    length = position + 1
    _scores(queries, keys, length, scores)
    for j in range(group):
        largest = scores[j, 0]
        for t in range(1, length):
            largest = max(largest, scores[j, t])
        total = np.float32(0)
        for t in range(length):
            scores[j, t] = np.exp(np.float32(scores[j, t] - largest))
            total += scores[j, t]
        for i in range(width):
            average[i] = np.float32(0)
        for t in range(length):
            weight = np.float32(scores[j, t] / total)
            for i in range(width):
                average[i] += weight * values[t, i]
        begin = (head * group + j) * width
        for i in range(width):  # at once: another thread may be reading these values already
            mixed[begin + i] = average[i]


@intrinsic
def _pointer(typingctx, address):
    """``_pointer(address)``: an integer as an address."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.uint64), codegen


@njit(cache=True, nogil=True)
def _floats(address, size):
    """Make an array of what lies at an address."""
    return carray(_pointer(address), size, np.float32)


@njit(cache=True, nogil=True)
def _bytes(address, size):
    """Make an array of what lies at an address."""
    return carray(_pointer(address), size, np.uint8)


@njit(cache=True, nogil=True, _nrt=False)
def _multiply(kind, layer, own, number, x, stream, out, work, phase):
    """Norm, quantise and multiply one token, chunk by chunk; False if it is not finite.

    `number` is that of the first matrix, and says what becomes of the products: queries, keys and
    values lie end to end in `out`, gate and up are joined to ``relu(gate)^2 up``, the others are
    added to the stream.
    """
    n_kv = layer.keys.shape[0] * layer.keys.shape[2]
    n_out = out.size - 2 * n_kv if number == _Q else out.size
    packed = layer.weights[number]
    chunks, finite = _chunks(packed, n_out), True
    in_q, in_k = chunks, _chunks(layer.weights[_Q + 1], n_kv)
    if number == _Q:
        chunks += in_k + _chunks(layer.weights[_Q + 2], n_kv)
    chunk = take(work, phase, chunks)
    if chunk == chunks:
        return True
    scale = _quantise(own, x, layer.gains[number // 2], layer.eps)
    while chunk < chunks:
        if scale > 0:
            which, part, begin, rows = number, chunk, 0, n_out
            if number == _Q and chunk >= in_q + in_k:
                which, part, begin, rows = _Q + 2, chunk - in_q - in_k, n_out + n_kv, n_kv
            elif number == _Q and chunk >= in_q:
                which, part, begin, rows = _Q + 1, chunk - in_q, n_out, n_kv
            factor, packed = np.float32(layer.gammas[which] / scale), layer.weights[which]
            first, last = _sums(kind, own, x.size, packed, rows, part, own.sums)
            if number == _Q:
                for r in range(first, last):
                    out[begin + r] = np.float32(own.sums[r]) * factor
            elif number == _GATE:
                _sums(kind, own, x.size, layer.weights[_GATE + 1], rows, part, own.others)
                for_up = np.float32(layer.gammas[_GATE + 1] / scale)
                for r in range(first, last):
                    positive = max(np.float32(own.sums[r]) * factor, np.float32(0))
                    out[r] = (positive * positive) * (np.float32(own.others[r]) * for_up)
            else:
                for r in range(first, last):
                    out[r] = stream[r] + np.float32(own.sums[r]) * factor
        else:
            finite = False
        finish(work, phase, chunk)
        chunk = take(work, phase, chunks)
    return finite


@njit(cache=True, nogil=True)
def layers(model: Model, context: Context, own: Own, work: NDArray[np.int64]) -> bool:
    """Take one token through all layers, with all threads that call this for the same token.

    `own` alone is each thread's. False if an activation is not finite; the rest is then
    meaningless. The arrays of a layer are made of their addresses here: no thread asks for Python's
    lock before the token is done.
    """
    kind, finite, heads, sizes = model.kind, True, context.cache_shape[0], model.sizes
    for number in range(model.addresses.shape[0]):
        at, phase = model.addresses[number], PHASES * number
        layer = _Layer(
            (
                _bytes(at[0], sizes[0]),
                _bytes(at[1], sizes[1]),
                _bytes(at[2], sizes[2]),
                _bytes(at[3], sizes[3]),
                _bytes(at[4], sizes[4]),
                _bytes(at[5], sizes[5]),
                _bytes(at[6], sizes[6]),
            ),
            (
                _floats(at[7], sizes[7]),
                _floats(at[8], sizes[8]),
                _floats(at[9], sizes[9]),
                _floats(at[10], sizes[10]),
            ),
            model.gammas[number],
            model.eps,
            _floats(context.caches[0, number], context.cache_shape),
            _floats(context.caches[1, number], context.cache_shape),
        )
        x, middle = model.streams[2 * number], model.streams[2 * number + 1]
        projected, mixed, gated = model.projected[number], model.mixed[number], model.gated[number]
        finite &= _multiply(kind, layer, own, _Q, x, x, projected, work, phase)
        head = take(work, phase + 1, heads)
        while head < heads:
            _attend(projected, layer, context, own, head, mixed)
            finish(work, phase + 1, head)
            head = take(work, phase + 1, heads)
        finite &= _multiply(kind, layer, own, _O, mixed, x, middle, work, phase + 2)
        finite &= _multiply(kind, layer, own, _GATE, middle, middle, gated, work, phase + 3)
        after = model.streams[2 * number + 2]
        finite &= _multiply(kind, layer, own, _DOWN, gated, middle, after, work, phase + 4)
    return bool(finite)


@njit(cache=True, nogil=True, _nrt=False)
def head(
    x: Array, gain: Array, eps: np.float32, w: Array, normed: Array, logits: Array, work: Array
) -> None:
    """Write the logits of one token: last norm, then ``w (vocabulary, hidden)``; shared by rows.

    `normed` is each thread's own.
    """
    chunks, phase = (w.shape[0] + HEAD_ROWS - 1) // HEAD_ROWS, np.int64(0)
    chunk = take(work, phase, chunks)
    if chunk < chunks:
        norm_row(x, gain, eps, normed)
        while chunk < chunks:
            rows = slice(chunk * HEAD_ROWS, min((chunk + 1) * HEAD_ROWS, w.shape[0]))
            matvec(normed, w[rows], logits[rows])
            finish(work, phase, chunk)
            chunk = take(work, phase, chunks)
