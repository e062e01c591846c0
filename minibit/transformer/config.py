"""The sizes of a BitNet model, and the parameters that they ask for: names, shapes, first values.

Parameters are a flat dict, named as the published files name them, without the leading ``model.``
and the trailing ``.weight``. Vectors are the gains of norms; matrices are ``(n_out, n_in)``.

    embed_tokens                        (vocab, hidden)
    layers.0.self_attn.q_proj, o_proj   (hidden, hidden)
    layers.0.self_attn.k_proj, v_proj   (kv_heads head_dim, hidden)
    layers.0.mlp.gate_proj, up_proj     (intermediate, hidden)
    layers.0.mlp.down_proj              (hidden, intermediate)
    lm_head                             (vocab, hidden), if it is not the embedding
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer
from minibit.noise import INITIAL, uniform

__all__ = ["BitNetConfig", "Params", "check_params", "init_params", "param_shapes"]

Params = Mapping[str, Any]  # name -> array, Dual or TernaryMatrix


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
    bos : int, optional
        First token of a text, where there is one.
    eos : int or tuple of int, optional
        What ends a text: each of these tokens. They may lie outside of a small vocabulary, as in
        models drawn at random: then nothing is ever one of them.
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
    eos: int | tuple[int, ...] | None = None
    sub_norms: bool = True

    def __post_init__(self) -> None:
        """Check that the sizes fit one another."""
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads",
            "max_positions",
        ):  # fmt: skip
            integer(name, getattr(self, name), 1)
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
        for name, tokens in (("bos", () if self.bos is None else (self.bos,)), ("eos", self.ends)):
            for token in tokens:
                integer(name, token, 0, 2**31 - 1)

    @property
    def ends(self) -> tuple[int, ...]:
        """All tokens that end a text."""
        if self.eos is None:
            return ()
        return self.eos if isinstance(self.eos, tuple) else (self.eos,)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.heads


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
