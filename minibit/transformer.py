"""A BitNet language model: the published block of BitNet b1.58 2B4T, in plain functions.

    x <- x + o(attn_sub_norm(attention(q, k, v of input_layernorm(x))))
    x <- x + down(ffn_sub_norm(max(gate, 0)^2 up)),  gate and up of post_attention_layernorm(x)
    logits = norm(x) embed_tokens^T

`forward` is a pure function of a configuration, a flat dict of parameters (named as the published
files name them) and tokens. It takes as arguments what multiplies (`float_linear`, `bit_linear` for
training, `packed_linear` for inference), what makes inputs sparse, and a cache of keys and values.
`minibit.dual` and `minibit.tape` differentiate it as it stands.

Projections are ``(n_out, n_in)``; the pieces are in `minibit.blocks` and `minibit.attention`.

May import: numpy, minibit.dual, minibit.ternary, minibit.matmul, minibit.absmean, minibit.layers,
minibit.noise, minibit.attention, minibit.blocks, minibit.sampling, minibit.decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.absmean import absmean_quantize, fake_quant_activation, fake_quant_weight
from minibit.attention import Positions, causal_attention, positions, rotate
from minibit.blocks import embed, gated_unit, normalize, widen
from minibit.decoding import Decoder, KVCache, generate
from minibit.dual import Dual
from minibit.layers import ternary_linear
from minibit.matmul import head_matmul, ternary_matmul
from minibit.noise import uniform
from minibit.philox import INITIAL
from minibit.sampling import sample
from minibit.ternary import TernaryMatrix

__all__ = [
    "BitNetConfig",
    "BitNetModel",
    "Decoder",
    "KVCache",
    "bit_linear",
    "check_params",
    "float_linear",
    "forward",
    "generate",
    "init_params",
    "pack_params",
    "packed_linear",
    "param_shapes",
    "sample",
]

Array = Any  # an ndarray, or a Dual, which behaves like one
Params = Mapping[str, Any]  # name -> array, Dual or TernaryMatrix
Linear = Callable[[Any, Any], Any]
Sparsify = Callable[[Any, str], Any]


@dataclass(frozen=True)
class BitNetConfig:
    """Sizes and constants of a BitNet model.

    Attributes
    ----------
    vocab_size, hidden_size, intermediate_size, layers : int
        Tokens, width of the residual stream, width of the gated unit, blocks.
    heads, kv_heads : int
        Query heads, and key and value heads: `kv_heads` divides `heads`, which divides the width.
    max_positions : int
        Most tokens of a text, those in a cache included.
    rope_theta, rms_eps : float
    tied : bool
        Whether the output head is the embedding.
    bos, eos : int, optional
        First and last token of a text, where there are such.
    sub_norms : bool
        Whether the inputs of the output projections are normalised: as published.

    Raises
    ------
    TypeError, ValueError
        If a size is no whole number or does not fit the others; it is named.

    Examples
    --------
    >>> config = BitNetConfig(83, hidden_size=48, intermediate_size=128, layers=2, heads=2,
    ...                       kv_heads=2, max_positions=64)
    >>> config.head_dim
    24
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    max_positions: int
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5
    tied: bool = True
    bos: int | None = None
    eos: int | None = None
    sub_norms: bool = True

    def __post_init__(self) -> None:
        """Check that the sizes fit one another."""
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads",
            "max_positions",
        ):  # fmt: skip
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int | np.integer):
                raise TypeError(f"{name} must be a whole number, got {size!r}")
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if self.hidden_size % self.heads or self.head_dim % 2:
            raise ValueError(
                "hidden_size must be heads times an even number (rotary pairs), "
                f"got {self.hidden_size} for {self.heads} heads"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads, got {self.kv_heads} and {self.heads}")
        for name in ("rope_theta", "rms_eps"):
            value = getattr(self, name)
            if not 2.0**-126 <= value < 2.0**128:  # what float32 holds in full
                raise ValueError(f"{name} must be above 0 and finite in float32, got {value}")
        for name in ("bos", "eos"):
            token = getattr(self, name)
            if token is None:
                continue
            if isinstance(token, bool) or not isinstance(token, int | np.integer):
                raise TypeError(f"{name} must be a whole number or None, got {token!r}")
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"{name} must be a token below {self.vocab_size}, got {token}")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.heads


class Cache(Protocol):
    """Keys and values of the tokens so far: what `forward` needs of a cache.

    Attributes
    ----------
    length : int
        Tokens held, before the call: the position of its first token. It grows by the call's tokens
        once the last layer has been extended.
    """

    @property
    def length(self) -> int:
        """Tokens held."""

    def extend(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Append (batch, kv_heads, length, head_dim) to a layer's keys and values; return all."""


def param_shapes(config: BitNetConfig) -> dict[str, tuple[int, ...]]:
    """List the parameters of a model: their names and shapes, in the order of the forward pass.

    Parameters
    ----------
    config : BitNetConfig

    Returns
    -------
    dict
        Name to shape. Vectors are the gains of norms; projections are ``(n_out, n_in)``.

    Examples
    --------
    >>> config = BitNetConfig(83, 48, 128, layers=1, heads=4, kv_heads=2, max_positions=64)
    >>> for name, shape in param_shapes(config).items():
    ...     print(name, shape)
    embed_tokens (83, 48)
    layers.0.input_layernorm (48,)
    layers.0.self_attn.q_proj (48, 48)
    layers.0.self_attn.k_proj (24, 48)
    layers.0.self_attn.v_proj (24, 48)
    layers.0.self_attn.attn_sub_norm (48,)
    layers.0.self_attn.o_proj (48, 48)
    layers.0.post_attention_layernorm (48,)
    layers.0.mlp.gate_proj (128, 48)
    layers.0.mlp.up_proj (128, 48)
    layers.0.mlp.ffn_sub_norm (128,)
    layers.0.mlp.down_proj (48, 128)
    norm (48,)
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    kept = config.kv_heads * config.head_dim
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kept, hidden),
        "self_attn.v_proj": (kept, hidden),
        "self_attn.attn_sub_norm": (hidden,),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.ffn_sub_norm": (inner,),
        "mlp.down_proj": (hidden, inner),
    }
    if not config.sub_norms:
        block = {name: shape for name, shape in block.items() if not name.endswith("sub_norm")}
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (config.vocab_size, hidden)}
    for layer in range(config.layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
    shapes["norm"] = (hidden,)
    if not config.tied:
        shapes["lm_head"] = (config.vocab_size, hidden)
    return shapes


def check_params(config: BitNetConfig, params: Params) -> None:
    """Check that parameters are those of a configuration.

    Parameters
    ----------
    config : BitNetConfig
    params : mapping of names to arrays or `TernaryMatrix`

    Raises
    ------
    TypeError
        If a gain is not of floats: only embedding and head may be bits of bfloat16.
    ValueError
        If one is missing, unknown or of another shape; the first is named.

    Examples
    --------
    >>> config = BitNetConfig(83, 48, 128, layers=1, heads=2, kv_heads=2, max_positions=64)
    >>> check_params(config, {})
    Traceback (most recent call last):
    ValueError: params must have 'embed_tokens' of shape (83, 48), it is missing
    """
    shapes = param_shapes(config)
    for name, shape in shapes.items():
        if name not in params:
            raise ValueError(f"params must have {name!r} of shape {shape}, it is missing")
        got = tuple(params[name].shape)
        if got != shape:
            raise ValueError(f"params[{name!r}] must have shape {shape}, got {got}")
        if len(shape) == 1 and params[name].dtype.kind != "f":
            raise TypeError(f"params[{name!r}] must be floats, got {params[name].dtype}")
    if len(params) > len(shapes):
        unknown = next(name for name in params if name not in shapes)
        raise ValueError(f"params has {unknown!r}, which this configuration has not")


def init_params(config: BitNetConfig, seed: int) -> dict[str, NDArray[np.float32]]:
    """Draw the parameters of a model to be trained.

    Uniform around 0, from Philox: embeddings (and a head that is not tied) of standard deviation
    0.05, projections of ``1 / sqrt(n_in)``. Gains are 1.

    Parameters
    ----------
    config : BitNetConfig
    seed : int
        Below 2**64.

    Returns
    -------
    dict
        Names and shapes of `param_shapes`, float32.

    Examples
    --------
    >>> config = BitNetConfig(83, 48, 128, layers=1, heads=2, kv_heads=2, max_positions=64)
    >>> params = init_params(config, seed=0)
    >>> f"{params['embed_tokens'].std():.3f}"
    '0.050'
    """
    params = {}
    for lane, (name, shape) in enumerate(param_shapes(config).items()):
        if len(shape) == 1:
            params[name] = np.ones(shape, np.float32)
            continue
        std = 0.05 if name in ("embed_tokens", "lm_head") else 1 / math.sqrt(shape[1])
        draws = uniform(seed, shape, domain=INITIAL, lane=lane)
        params[name] = ((2 * draws - 1) * (math.sqrt(3) * std)).astype(np.float32)
    return params


# What multiplies.


def float_linear(x: Array, w: Array) -> Array:
    """Multiply by float weights: ``y = x w^T``.

    Parameters
    ----------
    x : float array, shape (..., n_in)
    w : float array, shape (n_out, n_in)

    Returns
    -------
    array, shape (..., n_out)

    Examples
    --------
    >>> float_linear(np.float32([[1, 2]]), np.float32([[1, -1]]))
    array([[-1.]], dtype=float32)
    """
    return ternary_linear(x, w)


def bit_linear(x: Array, w: Array, strength: float = 1.0) -> Array:
    """Multiply as BitNet b1.58 trains: both sides fake-quantised, derivatives straight through.

    ``y = fake_quant_activation(x) fake_quant_weight(w)^T``: int8 a token, ternary a matrix.

    Parameters
    ----------
    x : float array, shape (..., n_in)
        All finite.
    w : float array, shape (n_out, n_in)
        The latent weights.
    strength : float, 0 to 1
        Lambda of a warm-up (`minibit.absmean.fake_quant_weight`), on both sides.

    Returns
    -------
    array, shape (..., n_out)

    Examples
    --------
    >>> bit_linear(np.float32([[127, 64]]), np.float32([[1, -3]]))  # gamma is 2
    array([[-128.]], dtype=float32)
    """
    return ternary_linear(fake_quant_activation(x, strength), fake_quant_weight(w, strength))


def packed_linear(x: Array, w: TernaryMatrix) -> NDArray[np.float32]:
    """Multiply by packed ternary weights, with int8 activations: inference.

    The values of `bit_linear` but for the rounding of float32 sums: here they are exact.

    Parameters
    ----------
    x : float array, shape (..., n_in)
    w : TernaryMatrix, shape (n_out, n_in)

    Returns
    -------
    float32 array, shape (..., n_out)

    Examples
    --------
    >>> packed_linear(np.float32([[127, 64]]), TernaryMatrix.from_codes([[0, -1]], scale=2.0))
    array([[-128.]], dtype=float32)
    """
    return ternary_matmul(x, w)


def pack_params(params: Params) -> dict[str, Any]:
    """Quantise and pack the projections of trained parameters; the rest stays as it is.

    Parameters
    ----------
    params : mapping
        Float projections ``*_proj`` become `TernaryMatrix`, by `absmean_quantize`.

    Returns
    -------
    dict

    Examples
    --------
    >>> packed = pack_params({"layers.0.mlp.up_proj": np.float32([[1, -3]]), "norm": np.ones(2)})
    >>> packed["layers.0.mlp.up_proj"].codes()
    array([[ 0, -1]], dtype=int8)
    """
    packed = dict(params)
    for name, w in params.items():
        if name.endswith("_proj") and not isinstance(w, TernaryMatrix):
            codes, gamma = absmean_quantize(w)
            packed[name] = TernaryMatrix.from_codes(codes, gamma)
    return packed


# The model.


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

    Parameters
    ----------
    config : BitNetConfig
    params : mapping
        As `param_shapes` lists. Projections may be anything that `linear` takes; the embedding (and
        the head) floats or bfloat16 bits as uint16.
    tokens : integer array, shape (batch, length)
        From 0 to vocab_size - 1.
    linear : callable (x, w) -> x w^T
        `float_linear`, `bit_linear` or `packed_linear`; called with x of shape (rows, n_in), one
        row a token.
    sparsify : callable (x, site) -> array of the shape of x, optional
        Called on the inputs of the projections, site ``"qkv"``, ``"o"``, ``"gate_up"`` or
        ``"down"``, before `linear`.
    cache : Cache, optional
        Keys and values of earlier tokens, which these go on from and are added to.

    Returns
    -------
    array, shape (batch, length, vocab_size)

    Raises
    ------
    TypeError, ValueError
        If tokens are no integers, out of range (the first is named), not of two axes, or reach
        beyond `max_positions`; if parameters or cache do not fit the configuration.

    Notes
    -----
    The block is that of microsoft/bitnet-b1.58-2B-4T. A token's logits depend on no later token.

    Examples
    --------
    >>> config = BitNetConfig(83, 48, 128, layers=1, heads=2, kv_heads=1, max_positions=64)
    >>> forward(config, init_params(config, seed=0), [[1, 2, 3]]).shape
    (1, 3, 83)
    """
    check_params(config, params)
    tokens = check_tokens(config, tokens)
    batch, length = tokens.shape
    start = 0 if cache is None else cache.length
    if isinstance(cache, KVCache) and cache.layers != config.layers:
        raise ValueError(f"the cache must have {config.layers} layers, it has {cache.layers}")
    if start + length > config.max_positions:
        held = f" after {start} in the cache" if start else ""
        raise ValueError(
            f"tokens must fit into max_positions = {config.max_positions}, got {length}{held}"
        )
    at = positions(batch, length, config.head_dim, config.rope_theta, start)
    x = embed(params["embed_tokens"], tokens.reshape(-1))  # (batch length, hidden)
    for layer in range(config.layers):
        x = x + attention(config, params, layer, x, at, linear, sparsify, cache)
        x = x + feed_forward(config, params, layer, x, linear, sparsify)
    x = normalize(x, params["norm"], eps=config.rms_eps)
    logits = head(x, params["embed_tokens" if config.tied else "lm_head"])
    return logits.reshape(batch, length, config.vocab_size)


def attention(
    config: BitNetConfig,
    params: Params,
    layer: int,
    x: Array,
    at: Positions,
    linear: Linear,
    sparsify: Sparsify | None = None,
    cache: Cache | None = None,
) -> Array:
    """Compute what the attention of a layer adds to the residual stream, x (rows, hidden)."""
    name, eps = f"layers.{layer}.", config.rms_eps
    h = normalize(x, params[name + "input_layernorm"], eps=eps)  # (rows, hidden)
    h = h if sparsify is None else sparsify(h, "qkv")
    name += "self_attn."

    def project(which: str, heads: int) -> Array:
        y = linear(h, params[f"{name}{which}_proj"])  # (rows, heads head_dim)
        return y.reshape(at.batch, at.length, heads, config.head_dim)

    q = rotate(project("q", config.heads), at)
    k = rotate(project("k", config.kv_heads), at)
    q, k, v = (
        np.transpose(y, (0, 2, 1, 3)) for y in (q, k, project("v", config.kv_heads))
    )  # (batch, heads, length, head_dim)
    if cache is not None:
        k, v = cache.extend(layer, k, v)  # (batch, kv_heads, start + length, head_dim)
    o = causal_attention(q, k, v, future=at.future)
    o = np.transpose(o, (0, 2, 1, 3)).reshape(x.shape)  # (rows, hidden)
    if config.sub_norms:
        o = normalize(o, params[name + "attn_sub_norm"], eps=eps)
    o = o if sparsify is None else sparsify(o, "o")
    return linear(o, params[name + "o_proj"])


def feed_forward(
    config: BitNetConfig,
    params: Params,
    layer: int,
    x: Array,
    linear: Linear,
    sparsify: Sparsify | None = None,
) -> Array:
    """Compute what the gated unit of a layer adds to the residual stream, x (rows, hidden)."""
    name, eps = f"layers.{layer}.", config.rms_eps
    h = normalize(x, params[name + "post_attention_layernorm"], eps=eps)  # (rows, hidden)
    h = h if sparsify is None else sparsify(h, "gate_up")
    name += "mlp."
    gate, up = (linear(h, params[f"{name}{which}_proj"]) for which in ("gate", "up"))
    h = gated_unit(gate, up)  # (rows, intermediate)
    if config.sub_norms:
        h = normalize(h, params[name + "ffn_sub_norm"], eps=eps)
    h = h if sparsify is None else sparsify(h, "down")
    return linear(h, params[name + "down_proj"])


def head(x: Array, w: Array) -> Array:
    """Multiply by the output head, x (rows, hidden): float32 or bfloat16 bits, or any floats."""
    if not isinstance(x, Dual) and w.dtype in (np.float32, np.uint16) and not isinstance(w, Dual):
        return head_matmul(x, w)
    return x @ np.transpose(w if isinstance(w, Dual) else widen(w))  # (rows, vocab)


def check_tokens(config: BitNetConfig, tokens: ArrayLike) -> NDArray[np.int64]:
    """Return tokens as an integer array (batch, length), or say what is wrong with them."""
    array = np.asarray(tokens)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"tokens must be integers, got {array.dtype}")
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"tokens must have shape (batch, length), got {array.shape}")
    if array.size and (array.min() < 0 or array.max() >= config.vocab_size):
        wrong = (array < 0) | (array >= config.vocab_size)
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        limit = config.vocab_size - 1
        raise ValueError(f"tokens must be 0 to {limit}, got {array[first]} at {first}")
    return array.astype(np.int64, copy=False)


@dataclass(frozen=True, eq=False)
class BitNetModel:
    """A configuration and its parameters: frozen data over plain functions.

    Attributes
    ----------
    config : BitNetConfig
    params : dict
        As `param_shapes` lists; projections float or `TernaryMatrix`.
    linear : callable (x, w), optional
        By default each projection is multiplied as its type says: a `TernaryMatrix` by
        `packed_linear`, float weights by `bit_linear`. `float_linear` makes a float model.

    Raises
    ------
    ValueError
        If the parameters do not fit the configuration.

    Examples
    --------
    >>> config = BitNetConfig(83, 48, 128, layers=1, heads=2, kv_heads=1, max_positions=64)
    >>> model = BitNetModel(config, pack_params(init_params(config, seed=0)))
    >>> model.logits([[1, 2, 3]]).shape
    (1, 3, 83)
    """

    config: BitNetConfig
    params: dict[str, Any]
    linear: Linear | None = None

    def __post_init__(self) -> None:
        """Check that the parameters fit."""
        check_params(self.config, self.params)

    def logits(self, tokens: ArrayLike, cache: Cache | None = None) -> NDArray[np.float32]:
        """Return the logits of the next tokens, (batch, length, vocab_size); see `forward`."""
        linear = _by_type if self.linear is None else self.linear
        out: NDArray[np.float32] = forward(
            self.config, self.params, tokens, linear=linear, cache=cache
        )
        return out

    @property
    def nbytes(self) -> int:
        """Bytes that the parameters take in memory."""
        return sum(int(value.nbytes) for value in self.params.values())


def _by_type(x: Array, w: Any) -> Array:
    """Multiply as the type of the weights says."""
    return packed_linear(x, w) if isinstance(w, TernaryMatrix) else bit_linear(x, w)
