"""One token through a packed model: what the threads of a machine do together.

All layers are one kernel (`minibit.kernels.decode`), whose rows the threads share chunk by chunk:
a token costs one start of the threads, and little more than reading the weights.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibit import kernels
from minibit.base import widen
from minibit.kernels.threads import cpus, run
from minibit.ternary import TernaryMatrix
from minibit.transformer.attend import positions
from minibit.transformer.config import BitNetConfig, Params
from minibit.transformer.kv_cache import KVCache
from minibit.transformer.model import BitNetModel
from minibit.transformer.projections import packed_linear

if TYPE_CHECKING:
    from minibit.kernels.decode import Context, Model, Own

__all__ = ["PackedArrays", "packed_arrays", "packed_step"]

Array = NDArray[Any]
Floats = NDArray[np.float32]

PAYS = 4_000_000  # bytes of weights from which a second thread is worth its start
MOST = 16  # threads, unless more are asked for: phases are short, and memory is soon the limit
PROJECTIONS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
NORMS = (
    *("input_layernorm", "self_attn.attn_sub_norm"),
    *("post_attention_layernorm", "mlp.ffn_sub_norm"),
)


class PackedArrays(NamedTuple):
    """The arguments of the kernels, and the arrays that they find by their addresses."""

    config: BitNetConfig
    params: Params  # the model's own, by which a cache knows it
    gains: list[tuple[Floats, ...]]  # a layer's: before q, k and v; o; gate and up; down
    weights: list[tuple[NDArray[np.uint8], ...]]  # a layer's, in the order of `PROJECTIONS`
    model: Model
    own: list[Own]  # each thread's arrays, allocated with the first token
    embedding: NDArray[Any]  # (vocab, hidden)
    norm: Floats
    head: NDArray[Any]  # (vocab, hidden)
    nbytes: int  # that one token reads


def packed_arrays(model: BitNetModel) -> PackedArrays | None:
    """Gather a packed model's arrays for the kernels; None for a model that they do not take."""
    config, params = model.config, model.params
    if model.linear not in (None, packed_linear) or not kernels.compiled():
        return None
    if config.family != "bitnet" or config.own_head_dim or config.projection_norms:
        return None
    layers = [f"layers.{layer}." for layer in range(config.layers)]
    matrices = [[params[name + projection] for projection in PROJECTIONS] for name in layers]
    flat = [matrix for row in matrices for matrix in row]
    if not all(isinstance(matrix, TernaryMatrix) and matrix.group is None for matrix in flat):
        return None
    path = flat[0]._path
    embedding = np.asarray(params["embed_tokens"])  # the array itself, also if it is a file's
    head = embedding if config.tied else np.asarray(params["lm_head"])
    if path == "reference" or any(matrix._path != path for matrix in flat):
        return None
    tables = (embedding, head)
    if any(w.dtype not in (np.float32, np.uint16) or not w.flags.c_contiguous for w in tables):
        return None
    from minibit.kernels.decode import KINDS, Model

    hidden, inner, count = config.hidden_size, config.intermediate_size, config.layers
    kept = config.kv_heads * config.head_dim

    def gain(name: str) -> Floats:
        if name not in params:  # sub-norms that the configuration has not
            return np.empty(0, np.float32)
        return np.ascontiguousarray(widen(params[name]), np.float32)

    gains = [tuple(gain(name + norm) for norm in NORMS) for name in layers]
    weights = [tuple(matrix._packed for matrix in row) for row in matrices]
    arrays = [(*row, *more) for row, more in zip(weights, gains, strict=True)]
    between = (hidden + 2 * kept, hidden, inner)  # q, k and v; mixed heads; gated units
    packed = Model(
        KINDS[path],
        np.array([[array.ctypes.data for array in row] for row in arrays], np.uint64),
        np.array([array.size for array in arrays[0]], np.int64),
        np.array([[matrix.scale for matrix in row] for row in matrices], np.float32),
        np.float32(config.rms_eps),
        np.empty((2 * count + 1, hidden), np.float32),
        *(np.empty((count, size), np.float32) for size in between),
    )
    nbytes = sum(matrix.nbytes for matrix in flat) + head.nbytes
    return PackedArrays(
        config, params, gains, weights, packed, [], embedding, gain("norm"), head, nbytes
    )


def packed_step(
    arrays: PackedArrays,
    token: int,
    cache: KVCache,
    *,
    threads: int | None = None,
    head: bool = True,
) -> Floats:
    """Read one token into the cache; return the logits after it, (vocab,), none without `head`.

    Equal to the plain forward pass of that token but for the exponential and the order of the sums
    in norms and attention: some 1e-7 of them, unless that decides how an activation is rounded to
    int8. Any number of threads gives the same bits. A ValueError if an activation is not finite or
    the cache another model's; the cache is then as long as before.
    """
    from minibit.kernels.decode import CHUNK_ROWS, HEAD_ROWS, PHASES, Context, Own
    from minibit.kernels.sharing import FLAGS

    config, number = arrays.config, cache.length
    cache.claim(config, arrays.params)
    cache.reserve(number + 1)
    at = positions(1, 1, config.head_dim, config.rope_theta, number, config.rope_divisors)
    cos, sin = at.cos[0, 0, 0], at.sin[0, 0, 1]  # (head_dim / 2,)
    context = Context(number, cos, sin, cache._addresses, cache._keys[0].shape[1:])
    arrays.model.streams[0] = widen(arrays.embedding[token])
    logits = np.empty(len(arrays.head) if head else 0, np.float32)
    rows = max(config.hidden_size + 2 * config.kv_heads * config.head_dim, config.intermediate_size)
    chunks = max(rows // CHUNK_ROWS + 3, config.kv_heads)  # at most, in a phase
    work = np.zeros((config.layers * PHASES, FLAGS + chunks), np.int64)
    for_head = np.zeros((1, FLAGS + len(logits) // HEAD_ROWS + 1), np.int64)
    if threads is None:
        threads = min(cpus(), MOST) if arrays.nbytes > PAYS else 1
    own, capacity = arrays.own, context.cache_shape[1]
    if len(own) < threads or own[0].scores.shape[1] != capacity:  # the cache grew
        own[:] = [Own.allocate(arrays.model, context) for _ in range(threads)]
    shared = (arrays, context, work, for_head, logits)
    if not run([partial(_walk, thread, *shared) for thread in own[:threads]]):
        raise ValueError(f"the model computed NaN or infinity at position {number}")
    cache._length = number + 1
    return logits


def _walk(
    own: Own, arrays: PackedArrays, context: Context, work: Array, for_head: Array, logits: Array
) -> bool:
    """Do one thread's share of every phase of a token; return whether all was finite."""
    from minibit.kernels.decode import head, layers

    model, normed = arrays.model, own.normed[: len(arrays.norm)]
    finite = layers(model, context, own, work)
    if len(logits):
        head(model.streams[-1], arrays.norm, model.eps, arrays.head, normed, logits, for_head)
    return bool(finite)
