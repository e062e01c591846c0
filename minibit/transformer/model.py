"""A language model in the published block of BitNet b1.58 2B4T, of Llama or of Qwen3.

    x <- x + o(attn_sub_norm(attention(q, k, v of input_layernorm(x))))
    x <- x + down(ffn_sub_norm(unit(gate, up))),  gate and up of post_attention_layernorm(x)
    logits = norm(x) embed_tokens^T

The sub-norms, and ``unit(gate, up) = max(gate, 0)^2 up``, are BitNet's; Llama and Qwen3 have
``silu(gate) up`` and none, and Qwen3 normalises every head of q and k.

`forward` is a pure function of a configuration, a flat dict of parameters and tokens; what
multiplies, what makes inputs sparse, and a cache of keys and values are arguments. `minibit.dual`
and `minibit.tape` differentiate it as it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.base import integer_array, widen
from minibit.dual import Dual
from minibit.matmul import head_matmul
from minibit.ternary import TernaryMatrix
from minibit.transformer.attend import Positions, causal_attention, positions, rotate
from minibit.transformer.blocks import embed, gated_unit, normalize, silu_unit
from minibit.transformer.config import BitNetConfig, Params, check_params
from minibit.transformer.kv_cache import Cache, KVCache
from minibit.transformer.projections import Linear, ModelParams, by_type, float_linear

__all__ = ["BitNetModel", "forward"]

Array = Any  # an ndarray, or a Dual, which behaves like one
Sparsify = Callable[[Any, str], Any]


def forward(
    config: BitNetConfig,
    params: Params,
    tokens: ArrayLike,
    *,
    linear: Linear = float_linear,
    sparsify: Sparsify | None = None,
    cache: Cache | None = None,
) -> Array:
    """Run the model: for every token, the logits of the token after it.

    The block is that of the configuration's family: microsoft/bitnet-b1.58-2B-4T, or
    `LlamaForCausalLM` and `Qwen3ForCausalLM` of transformers. A token's logits depend on no later
    token.

    Parameters
    ----------
    config : BitNetConfig
    params : mapping
        As `param_shapes` lists. Projections may be anything that `linear` takes; the embedding (and
        the head) floats, bfloat16 bits as uint16, or a `TernaryMatrix`, which `linear` takes, too.
    tokens : integer array, shape (batch, length)
        From 0 to vocab_size - 1; the logits are (batch, length, vocab_size).
    linear : callable (x, w) -> x w^T
        `float_linear`, `bit_linear` or `packed_linear`, for x (rows, n_in), one row per token.
    sparsify : callable (x, site) -> array of the shape of x, optional
        Called on the inputs of projections, site ``"qkv"``, ``"o"``, ``"gate_up"`` or ``"down"``.
    cache : Cache, optional
        Keys and values of earlier tokens, which these go on from and are added to.

    Raises
    ------
    TypeError, ValueError
        If tokens are no integers, out of range (the first is named), not of two axes, or reach
        beyond `max_positions`; if parameters or cache do not fit the configuration, or a `KVCache`
        holds tokens of other parameters.

    Examples
    --------
    >>> config = BitNetConfig(83, 48, 128, layers=1, heads=2, kv_heads=1, max_positions=64)
    >>> from minibit.transformer import init_params
    >>> forward(config, init_params(config, seed=0), [[1, 2, 3]]).shape
    (1, 3, 83)
    """
    check_params(config, params)
    array = np.asarray(tokens)
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"tokens must have shape (batch, length), got {array.shape}")
    array = integer_array("tokens", array, 0, config.vocab_size - 1)
    batch, length = array.shape
    start = 0 if cache is None else cache.length
    if start + length > config.max_positions:
        before = f" after {start} in the cache" if start else ""
        raise ValueError(
            f"tokens must fit into max_positions = {config.max_positions}, got {length}{before}"
        )
    if isinstance(cache, KVCache):
        cache.claim(config, params)
    at = positions(batch, length, config.head_dim, config.rope_theta, start, config.rope_divisors)
    x = embed(params["embed_tokens"], array.reshape(-1))  # (batch length, hidden)
    x = run_layers(config, params, x, at, linear, sparsify, cache)
    return logits_of(config, params, x, linear).reshape(batch, length, config.vocab_size)


def run_layers(
    config: BitNetConfig,
    params: Params,
    x: Array,
    at: Positions,
    linear: Linear,
    sparsify: Sparsify | None = None,
    cache: Cache | None = None,
) -> Array:
    """Run all layers over the residual stream, x (rows, hidden), one row per token."""
    head_dim, heads_first = config.head_dim, (0, 2, 1, 3)
    unit = gated_unit if config.family == "bitnet" else silu_unit

    def normed(x: Array, name: str) -> Array:
        """Normalise rows, if the configuration has this norm."""
        gain = params.get(layer + name)
        return x if gain is None else normalize(x, gain, eps=config.rms_eps)

    def inputs(x: Array, norm: str, site: str) -> Array:
        """Normalise the inputs of projections, and make them sparse."""
        x = normed(x, norm)
        return x if sparsify is None else sparsify(x, site)

    def project(x: Array, name: str) -> Array:
        name = f"{name}_proj"
        return linear(normed(x, f"{name}.rms_norm"), params[layer + name])

    def heads(letter: str) -> Array:
        y = project(h, f"self_attn.{letter}")  # (rows, heads head_dim)
        count = y.shape[-1] // head_dim
        y = normed(y.reshape(-1, head_dim), f"self_attn.{letter}_norm")  # (rows heads, head_dim)
        return y.reshape(at.batch, at.length, count, head_dim)

    for number in range(config.layers):
        layer = f"layers.{number}."
        h = inputs(x, "input_layernorm", "qkv")  # (rows, hidden)
        q, k, v = rotate(heads("q"), at), rotate(heads("k"), at), heads("v")
        q, k, v = (np.transpose(y, heads_first) for y in (q, k, v))
        if cache is not None:
            k, v = cache.extend(number, k, v)  # (batch, kv_heads, start + length, head_dim)
        o = causal_attention(q, k, v, future=at.future)  # (batch, heads, length, head_dim)
        o = np.transpose(o, heads_first).reshape(x.shape[0], config.heads * head_dim)
        o = inputs(o, "self_attn.attn_sub_norm", "o")
        x = x + project(o, "self_attn.o")
        h = inputs(x, "post_attention_layernorm", "gate_up")
        h = unit(project(h, "mlp.gate"), project(h, "mlp.up"))  # (rows, intermediate)
        x = x + project(inputs(h, "mlp.ffn_sub_norm", "down"), "mlp.down")
    return x


def logits_of(config: BitNetConfig, params: Params, x: Array, linear: Linear) -> Array:
    """Normalise the residual stream, x (rows, hidden), and multiply it by the output head.

    Floats as they are; a packed head as `linear` multiplies by projections.
    """
    x = normalize(x, params["norm"], eps=config.rms_eps)
    w = params["embed_tokens" if config.tied else "lm_head"]  # floats, bits of bfloat16, or packed
    if isinstance(w, TernaryMatrix):
        return linear(x, w)
    if not isinstance(x, Dual) and w.dtype in (np.float32, np.uint16) and not isinstance(w, Dual):
        return head_matmul(x, w)
    return x @ np.transpose(w if isinstance(w, Dual) else widen(w))  # (rows, vocab)


@dataclass(frozen=True, eq=False)
class BitNetModel:
    """A configuration and its parameters: frozen data over plain functions.

    `params` are as `param_shapes` lists, the projections float or `TernaryMatrix`; a ValueError if
    they do not fit the configuration. By default `linear` multiplies each projection as its type
    says: a `TernaryMatrix` by `packed_linear`, float weights by `bit_linear`. `float_linear` makes
    a float model.

    Examples
    --------
    >>> config = BitNetConfig(83, 48, 128, layers=1, heads=2, kv_heads=1, max_positions=64)
    >>> from minibit.transformer import init_params, pack_params
    >>> model = BitNetModel(config, pack_params(init_params(config, seed=0)))
    >>> model.logits([[1, 2, 3]]).shape
    (1, 3, 83)
    """

    config: BitNetConfig
    params: Any
    linear: Linear | None = None

    def __post_init__(self) -> None:
        """Check that the parameters fit, and let them know what multiplies them."""
        check_params(self.config, self.params)
        linear = by_type if self.linear is None else self.linear
        if getattr(self.params, "linear", None) is not linear:
            object.__setattr__(self, "params", ModelParams(self.params, linear))

    def logits(self, tokens: ArrayLike, cache: Cache | None = None) -> NDArray[np.float32]:
        """Return the logits of the next tokens, (batch, length, vocab_size); see `forward`."""
        linear = self.params.linear
        return np.asarray(forward(self.config, self.params, tokens, linear=linear, cache=cache))

    @property
    def nbytes(self) -> int:
        """Bytes that the parameters take in memory."""
        return sum(int(value.nbytes) for value in self.params.values())
