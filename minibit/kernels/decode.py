"""One token through a packed language model: one kernel, for one thread or several.

A layer has five phases, which the threads share chunk by chunk (`minibit.kernels.sharing`):

    1  norm, quantise once        rows of q, k and v
    2                             heads of keys and values: rotate, append, attend
    3  norm, quantise             rows of o, added to the stream
    4  norm, quantise once        rows of gate and up together, squared ReLU and product
    5  norm, quantise             rows of down, added to the stream

Norms and quantised activations are a few microseconds of work, less than it takes to hand them
over: every thread that takes a chunk computes its own copy. Each phase of each layer writes into
memory of its own, which keeps its values to the end of the token: so a chunk may be done twice.

Products are exact sums of integers, so they equal the plain forward pass of `minibit.transformer`
bit for bit, as do rotations and gates. The sums of norms, of scores and of mixed values, which
NumPy and BLAS take in orders of their own, and the exponential may differ in the last bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from minibit.kernels import arm, avx2, portable, vnni_matvec
from minibit.kernels.head import matvec_bfloat16, matvec_float32
from minibit.kernels.quantise import quantise_row
from minibit.kernels.sharing import finish, take

__all__ = ["CHUNK_ROWS", "HEAD_ROWS", "KINDS", "PHASES", "head", "layers", "norm_row"]

KINDS = {"portable": (0,), "arm": (0,) * 2, "avx2": (0,) * 3, "vnni": (0,) * 4, "amx": (0,) * 4}
"""For each kernel path a tuple whose length, a part of its type, picks the product."""

PHASES = 5  # of a layer
CHUNK_ROWS = 64  # least rows of a matrix in a chunk, but for the last
CHUNK = 65536  # bytes of weights in a chunk, about
HEAD_ROWS = 32  # rows of the head in a chunk


def _rows(kind, codes, held, sums, first, last):  # type: ignore[no-untyped-def]
    """Write the int32 products of groups first..last of 64 rows with one token's codes."""


@overload(_rows)
def _rows_of_kind(kind, codes, held, sums, first, last):  # type: ignore[no-untyped-def]
    """Pick the product of a path by the length of `kind`."""
    modules = {1: portable, 2: arm, 3: avx2, 4: vnni_matvec}
    product = modules[len(kind)].product

    def rows(kind, codes, held, sums, first, last):  # type: ignore[no-untyped-def]
        product(codes, held, sums, first, last, None)

    return rows


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _mean_square(x):  # type: ignore[no-untyped-def]
    """Mean of the squares, summed in the order that fills the vectors."""
    total = np.float32(0)
    for i in range(x.size):
        total += x[i] * x[i]
    return total / np.float32(x.size)


@njit(cache=True, nogil=True)
def norm_row(x: NDArray[Any], gain: NDArray[Any], eps: np.float32, out: NDArray[Any]) -> None:
    """Write ``x (1 / sqrt(mean x^2 + eps)) gain`` of one token."""
    inverse = np.float32(1) / np.sqrt(_mean_square(x) + eps)
    for i in range(x.size):
        out[i] = (x[i] * inverse) * gain[i]


@njit(cache=True, nogil=True)
def _codes(x, gain, eps, normed, codes):  # type: ignore[no-untyped-def]
    """Normalise one token and quantise it; return the scale, -1 if an entry is not finite.

    With an empty gain the token is taken as it is: the model has no norm there.
    """
    row = codes.reshape(1, codes.size)
    if gain.size == 0:
        return quantise_row(x.reshape(1, x.size), 0, row, 0)
    norm_row(x, gain, eps, normed)
    return quantise_row(normed.reshape(1, normed.size), 0, row, 0)


@njit(cache=True, nogil=True)
def _step(held, n_out):  # type: ignore[no-untyped-def]
    """Return the groups of 64 rows in a chunk: about `CHUNK` bytes of weights."""
    groups = (n_out + CHUNK_ROWS - 1) // CHUNK_ROWS
    return max(1, CHUNK // max(held.size // groups, 1))


@njit(cache=True, nogil=True)
def _chunks(held, n_out):  # type: ignore[no-untyped-def]
    """Chunks that the rows of a matrix are cut into."""
    groups = (n_out + CHUNK_ROWS - 1) // CHUNK_ROWS
    return (groups + _step(held, n_out) - 1) // _step(held, n_out)


@njit(cache=True, nogil=True)
def _sums(kind, codes, held, n_out, chunk, sums):  # type: ignore[no-untyped-def]
    """Write the int32 sums of one chunk of rows; return its first row, and the next chunk's."""
    step, groups = _step(held, n_out), (n_out + CHUNK_ROWS - 1) // CHUNK_ROWS
    first, last = chunk * step, min((chunk + 1) * step, groups)
    _rows(kind, codes, held, sums[:n_out].reshape(1, n_out), first, last)
    return CHUNK_ROWS * first, min(CHUNK_ROWS * last, n_out)


@njit(cache=True, nogil=True)
def _rotate(x, begin, cos, sin, out):  # type: ignore[no-untyped-def]
    """Rotate one head's pairs ``(i, i + half)``: the rotate-half form of RoPE."""
    half = out.size // 2
    for i in range(half):
        left, right = x[begin + i], x[begin + half + i]
        out[i] = left * cos[i] - right * sin[i]
        out[half + i] = right * cos[i] + left * sin[i]


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _scores(queries, keys, length, scores):  # type: ignore[no-untyped-def]
    """Write ``queries keys^T``; each key is read once for all queries."""
    for t in range(length):
        for j in range(queries.shape[0]):
            total = np.float32(0)
            for i in range(keys.shape[1]):
                total += queries[j, i] * keys[t, i]
            scores[j, t] = total


@njit(cache=True, nogil=True)
def _attend(  # type: ignore[no-untyped-def]
    projected, keys, values, position, cos, sin, head, mixed
):
    """Append one head's key and value, and let its group of queries attend to all so far."""
    kv_heads, _, width = keys.shape
    group = mixed.size // width // kv_heads
    own_keys, own_values = keys[head], values[head]  # (capacity, width)
    at_key = mixed.size + head * width
    at_value = at_key + kv_heads * width
    _rotate(projected, at_key, cos, sin, own_keys[position])
    for i in range(width):
        own_values[position, i] = projected[at_value + i]
    queries, factor = np.empty((group, width), np.float32), np.float32(1 / np.sqrt(width))
    for j in range(group):
        _rotate(projected, (head * group + j) * width, cos, sin, queries[j])
        for i in range(width):
            queries[j, i] *= factor
    length = position + 1
    scores = np.empty((group, length), np.float32)
    _scores(queries, own_keys, length, scores)
    for j in range(group):
        largest = scores[j, 0]
        for t in range(1, length):
            largest = max(largest, scores[j, t])
        total = np.float32(0)
        for t in range(length):
            scores[j, t] = np.exp(np.float32(scores[j, t] - largest))
            total += scores[j, t]
        average = np.zeros(width, np.float32)
        for t in range(length):
            weight = np.float32(scores[j, t] / total)
            for i in range(width):
                average[i] += weight * own_values[t, i]
        begin = (head * group + j) * width
        for i in range(width):  # at once: another thread may be reading these values already
            mixed[begin + i] = average[i]


@njit(cache=True, nogil=True)
def _project(  # type: ignore[no-untyped-def]
    kind, x, gain, eps, normed, codes, weights, gammas, sums, projected, n_kv, work, phase
):
    """Phase 1: queries, keys and values of one token, end to end; False if not finite."""
    n_q = projected.size - 2 * n_kv
    in_q, in_k = _chunks(weights[0], n_q), _chunks(weights[1], n_kv)
    chunks, finite = in_q + in_k + _chunks(weights[2], n_kv), True
    chunk = take(work, phase, chunks)
    if chunk == chunks:
        return True
    token = codes[: x.size].reshape(1, x.size)
    scale = _codes(x, gain, eps, normed[: x.size], codes[: x.size])
    while chunk < chunks:
        which, part, begin, n_out = 0, chunk, 0, n_q
        if chunk >= in_q + in_k:
            which, part, begin, n_out = 2, chunk - in_q - in_k, n_q + n_kv, n_kv
        elif chunk >= in_q:
            which, part, begin, n_out = 1, chunk - in_q, n_q, n_kv
        if scale > 0:
            factor = np.float32(gammas[which] / scale)
            first, last = _sums(kind, token, weights[which], n_out, part, sums)
            for r in range(first, last):
                projected[begin + r] = np.float32(sums[r]) * factor
        else:
            finite = False
        finish(work, phase, chunk)
        chunk = take(work, phase, chunks)
    return finite


@njit(cache=True, nogil=True)
def _into_stream(  # type: ignore[no-untyped-def]
    kind, x, gain, eps, normed, codes, held, gamma, sums, stream, out, work, phase
):
    """Phases 3 and 5: norm, quantise, multiply, add the stream; False if not finite."""
    chunks, finite = _chunks(held, stream.size), True
    chunk = take(work, phase, chunks)
    if chunk == chunks:
        return True
    token = codes[: x.size].reshape(1, x.size)
    scale = _codes(x, gain, eps, normed[: x.size], codes[: x.size])
    while chunk < chunks:
        if scale > 0:
            factor = np.float32(gamma / scale)
            first, last = _sums(kind, token, held, stream.size, chunk, sums)
            for r in range(first, last):
                out[r] = stream[r] + np.float32(sums[r]) * factor
        else:
            finite = False
        finish(work, phase, chunk)
        chunk = take(work, phase, chunks)
    return finite


@njit(cache=True, nogil=True)
def _gate(  # type: ignore[no-untyped-def]
    kind, x, gain, eps, normed, codes, weights, gammas, sums, ups, gated, work, phase
):
    """Phase 4: ``relu(gate)^2 up``, the same rows of both matrices in turn; False if not finite."""
    inner = gated.size
    chunks, finite = _chunks(weights[4], inner), True
    chunk = take(work, phase, chunks)
    if chunk == chunks:
        return True
    token = codes[: x.size].reshape(1, x.size)
    scale = _codes(x, gain, eps, normed[: x.size], codes[: x.size])
    while chunk < chunks:
        if scale > 0:
            first, last = _sums(kind, token, weights[4], inner, chunk, sums)
            _sums(kind, token, weights[5], inner, chunk, ups)
            for_gate, for_up = np.float32(gammas[4] / scale), np.float32(gammas[5] / scale)
            for r in range(first, last):
                positive = max(np.float32(sums[r]) * for_gate, np.float32(0))
                gated[r] = (positive * positive) * (np.float32(ups[r]) * for_up)
        else:
            finite = False
        finish(work, phase, chunk)
        chunk = take(work, phase, chunks)
    return finite


@njit(cache=True, nogil=True)
def layer(
    kind: tuple[int, ...],
    stream: tuple[NDArray[Any], ...],
    gains: tuple[NDArray[Any], ...],
    eps: np.float32,
    weights: tuple[NDArray[Any], ...],
    gammas: NDArray[Any],
    room: tuple[NDArray[Any], ...],
    keys: NDArray[Any],
    values: NDArray[Any],
    position: int,
    cos: NDArray[Any],
    sin: NDArray[Any],
    work: NDArray[Any],
    phase: int,
) -> bool:
    """Take one token through a layer, together with all who call this with the same arguments.

    `stream`: the residual stream ``(hidden,)`` before the layer, after attention and after the
    layer. `gains`: those before q, k, v; before o; before gate and up; before down (the second and
    last may be empty). `weights`, `gammas`: q, k, v, o, gate, up, down. `room`: for q, k and v end
    to end; the mixed heads; the gated units. `keys`, `values`: ``(kv_heads, capacity, head_dim)``;
    this token's go to `position`. `phase`: the first of this layer's `PHASES`. False if an
    activation is not finite; the rest is then meaningless.
    """
    (x, middle, after), (projected, mixed, gated) = stream, room
    widest = max(x.size, mixed.size, gated.size)
    normed, codes = np.empty(widest, np.float32), np.empty(widest, np.int8)
    sums, ups = np.empty(widest, np.int32), np.empty(gated.size, np.int32)
    n_kv, heads = keys.shape[0] * keys.shape[2], keys.shape[0]
    finite = _project(
        kind, x, gains[0], eps, normed, codes, weights, gammas, sums, projected, n_kv, work, phase
    )
    head = take(work, phase + 1, heads)
    while head < heads:
        _attend(projected, keys, values, position, cos, sin, head, mixed)
        finish(work, phase + 1, head)
        head = take(work, phase + 1, heads)
    finite &= _into_stream(
        kind, mixed, gains[1], eps, normed, codes, weights[3], gammas[3], sums, x, middle, work,
        phase + 2,
    )  # fmt: skip
    finite &= _gate(
        kind, middle, gains[2], eps, normed, codes, weights, gammas, sums, ups, gated, work,
        phase + 3,
    )  # fmt: skip
    finite &= _into_stream(
        kind, gated, gains[3], eps, normed, codes, weights[6], gammas[6], sums, middle, after, work,
        phase + 4,
    )  # fmt: skip
    return bool(finite)


@intrinsic
def _pointer(typingctx, address):  # type: ignore[no-untyped-def]
    """``_pointer(address)``: an integer as an address."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.uint64), codegen


@njit(cache=True, nogil=True)
def layers(
    kind: tuple[int, ...],
    addresses: NDArray[Any],
    sizes: NDArray[Any],
    caches: NDArray[Any],
    kept: NDArray[Any],
    eps: np.float32,
    gammas: NDArray[Any],
    streams: NDArray[Any],
    room: tuple[NDArray[Any], ...],
    position: int,
    cos: NDArray[Any],
    sin: NDArray[Any],
    work: NDArray[Any],
) -> bool:
    """Take one token through all layers, together with all who call this with the same arguments.

    ``addresses (layers, 11)`` are those of each layer's 7 weights and 4 gains, ``sizes (11,)``
    their lengths; ``caches (2, layers)`` those of keys and values, of shape `kept`. The arrays of a
    layer are made of them here: no thread asks for Python's lock before the token is done.
    ``streams (2 layers + 1, hidden)``, and the arrays of `room`, ``(layers, ...)``, hold what lies
    between the phases.
    """
    finite, shape = True, (kept[0], kept[1], kept[2])
    for number in range(addresses.shape[0]):
        at = addresses[number]
        weights = (
            carray(_pointer(at[0]), sizes[0], np.uint8),
            carray(_pointer(at[1]), sizes[1], np.uint8),
            carray(_pointer(at[2]), sizes[2], np.uint8),
            carray(_pointer(at[3]), sizes[3], np.uint8),
            carray(_pointer(at[4]), sizes[4], np.uint8),
            carray(_pointer(at[5]), sizes[5], np.uint8),
            carray(_pointer(at[6]), sizes[6], np.uint8),
        )
        gains = (
            carray(_pointer(at[7]), sizes[7], np.float32),
            carray(_pointer(at[8]), sizes[8], np.float32),
            carray(_pointer(at[9]), sizes[9], np.float32),
            carray(_pointer(at[10]), sizes[10], np.float32),
        )
        keys = carray(_pointer(caches[0, number]), shape, np.float32)
        values = carray(_pointer(caches[1, number]), shape, np.float32)
        stream = (streams[2 * number], streams[2 * number + 1], streams[2 * number + 2])
        between = (room[0][number], room[1][number], room[2][number])
        finite &= layer(
            kind, stream, gains, eps, weights, gammas[number], between, keys, values, position,
            cos, sin, work, PHASES * number,
        )  # fmt: skip
    return bool(finite)


def _matvec(x, w, out):  # type: ignore[no-untyped-def]
    """Write ``w x`` in float32."""


@overload(_matvec)
def _matvec_of_type(x, w, out):  # type: ignore[no-untyped-def]
    """Pick the product by the type of the weights: float32, or the bits of bfloat16."""
    matvec = matvec_float32 if w.dtype.name == "float32" else matvec_bfloat16

    def product(x, w, out):  # type: ignore[no-untyped-def]
        matvec(x, w, out)

    return product


@njit(cache=True, nogil=True)
def head(
    x: NDArray[Any],
    gain: NDArray[Any],
    eps: np.float32,
    w: NDArray[Any],
    logits: NDArray[Any],
    work: NDArray[Any],
) -> bool:
    """Write the logits of one token: last norm, then ``w (vocabulary, hidden)``; shared by rows."""
    chunks = (w.shape[0] + HEAD_ROWS - 1) // HEAD_ROWS
    chunk = take(work, 0, chunks)
    if chunk < chunks:
        normed = np.empty(x.size, np.float32)
        norm_row(x, gain, eps, normed)
        while chunk < chunks:
            rows = slice(chunk * HEAD_ROWS, min((chunk + 1) * HEAD_ROWS, w.shape[0]))
            _matvec(normed, w[rows], logits[rows])
            finish(work, 0, chunk)
            chunk = take(work, 0, chunks)
    return True
