"""The sizes of a model and the family of its blocks, and the parameters that they ask for.

    family    gated unit           norms beside those of the residual stream
    bitnet    max(gate, 0)^2 up    before o and before down (`sub_norms`)
    llama     silu(gate) up        none
    qwen3     silu(gate) up        of each head of q and of k, before the rotation

In every family each projection may have a norm of its own (`projection_norms`), and a head a width
of its own (`own_head_dim`). Parameters are a flat dict, named as the published files name them,
without the leading ``model.`` and the trailing ``.weight``; `param_shapes` lists them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer, number, one_of
from minibit.noise import INITIAL, uniform

__all__ = [
    "BitNetConfig",
    "Family",
    "Params",
    "RopeScaling",
    "check_params",
    "init_params",
    "param_shapes",
]

Params = Mapping[str, Any]  # name -> array, Dual or TernaryMatrix
Family = Literal["bitnet", "llama", "qwen3"]


class RopeScaling(NamedTuple):
    """How Llama 3.1 stretches its rotary positions to longer texts: slow angles turn more slowly.

    An angle that turns around within ``original / high`` positions keeps its speed; one that takes
    more than ``original / low`` gets it divided by `factor`; between the two the speed goes over
    from one to the other, linearly in ``original / wavelength``.

    Source: Llama 3.1's configuration, ``rope_type: llama3`` of transformers.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192  # positions that the model was trained with before

    def divisors(self, head_dim: int, theta: float) -> NDArray[np.float32]:
        """Return what the speed of each pair is divided by, (head_dim / 2,).

        Examples
        --------
        >>> RopeScaling(original=100).divisors(8, theta=10000.0).round(2)
        array([1.  , 3.36, 8.  , 8.  ], dtype=float32)
        """
        speed = theta ** (-np.arange(0, head_dim, 2) / head_dim)  # (half,)
        turns = self.original * speed / (2 * math.pi)  # original / wavelength
        smooth = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return (1 / ((1 - smooth) / self.factor + smooth)).astype(np.float32)


@dataclass(frozen=True)
class BitNetConfig:
    """Sizes and constants of a model, and the family of its blocks: BitNet, Llama or Qwen3.

    A size that is no whole number is a TypeError, one that does not fit the others a ValueError.
    Tokens that begin or end a text may lie outside of a small vocabulary, as in models drawn at
    random: then no token is ever one of them.

    Examples
    --------
    >>> config = BitNetConfig(83, hidden_size=48, intermediate_size=128, layers=2, heads=2,
    ...                       kv_heads=2, max_positions=64)
    >>> config.head_dim
    24
    """

    vocab_size: int
    hidden_size: int  # width of the residual stream
    intermediate_size: int  # width of the gated unit
    layers: int
    heads: int  # of queries; divides the width, unless `own_head_dim` says the width of a head
    kv_heads: int  # of keys and values; divides `heads`
    max_positions: int  # most tokens of a text, those in a cache included
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5
    tied: bool = True  # whether the output head is the embedding
    bos: int | None = None  # first token of a text, where there is one
    eos: int | tuple[int, ...] | None = None  # each of these tokens ends a text
    sub_norms: bool = True  # of BitNet alone: a norm before o and down, as published
    family: Family = "bitnet"
    own_head_dim: int | None = None  # width of a head, where it is not hidden_size / heads
    projection_norms: bool = False  # whether each projection has a norm of its own before it
    rope_scaling: RopeScaling | None = None  # of positions, if the model stretches them

    def __post_init__(self) -> None:
        """Check that the sizes fit one another."""
        for size in (field.name for field in fields(self) if field.type == "int"):
            integer(size, getattr(self, size), 1)
        one_of("family", self.family, get_args(Family))
        if self.family != "bitnet":
            object.__setattr__(self, "sub_norms", False)
        if self.own_head_dim is not None:
            if integer("own_head_dim", self.own_head_dim, 2) % 2:
                raise ValueError(f"own_head_dim must be even (pairs), got {self.own_head_dim}")
            if self.own_head_dim * self.heads == self.hidden_size:
                object.__setattr__(self, "own_head_dim", None)  # equal models, equal configurations
        elif self.hidden_size % self.heads or self.head_dim % 2:
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
        if self.rope_scaling is not None:
            factor, low, high, original = self.rope_scaling
            number("rope_scaling.factor", factor, "[1, inf)")
            number("rope_scaling.low", low, "(0, inf)")
            number("rope_scaling.high", high, f"({low}, inf)")
            integer("rope_scaling.original", original, 1)
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
    def rope_divisors(self) -> NDArray[np.float32] | None:
        """What the speeds of rotary pairs are divided by, (head_dim / 2,); None for 1."""
        if self.rope_scaling is None:
            return None
        return self.rope_scaling.divisors(self.head_dim, self.rope_theta)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.heads if self.own_head_dim is None else self.own_head_dim


def param_shapes(config: BitNetConfig) -> dict[str, tuple[int, ...]]:
    """List the parameters of a model: their names and shapes, in the order of the forward pass.

    Vectors are the gains of norms; matrices are ``(n_out, n_in)``.

    Examples
    --------
    >>> config = BitNetConfig(83, 48, 128, layers=1, heads=4, kv_heads=2, max_positions=64)
    >>> shapes = param_shapes(config)
    >>> list(shapes)[0], list(shapes)[-1], shapes["layers.0.self_attn.k_proj"]
    ('embed_tokens', 'norm', (24, 48))
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    mixed, kept = config.heads * config.head_dim, config.kv_heads * config.head_dim
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (mixed, hidden),
        "self_attn.k_proj": (kept, hidden),
        "self_attn.v_proj": (kept, hidden),
        "self_attn.q_norm": (config.head_dim,),
        "self_attn.k_norm": (config.head_dim,),
        "self_attn.attn_sub_norm": (mixed,),
        "self_attn.o_proj": (hidden, mixed),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.ffn_sub_norm": (inner,),
        "mlp.down_proj": (hidden, inner),
    }
    if not config.sub_norms:
        block = {name: shape for name, shape in block.items() if not name.endswith("sub_norm")}
    if config.family != "qwen3":
        del block["self_attn.q_norm"], block["self_attn.k_norm"]
    if config.projection_norms:
        matrices = [(name, shape[1:]) for name, shape in block.items() if name.endswith("_proj")]
        block |= {f"{name}.rms_norm": width for name, width in matrices}
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (config.vocab_size, hidden)}
    for layer in range(config.layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
    shapes["norm"] = (hidden,)
    if not config.tied:
        shapes["lm_head"] = (config.vocab_size, hidden)
    return shapes


def check_params(config: BitNetConfig, params: Params) -> None:
    """Check that parameters, arrays or `TernaryMatrix` by name, are those of a configuration.

    A ValueError names the first that is missing, unknown or of another shape, a TypeError a gain
    that is not of floats: only embedding and head may be bits of bfloat16.

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
    """Draw the parameters of a model to be trained, float32, by the names of `param_shapes`.

    Uniform around 0, from Philox with a seed below 2**64: embeddings (and a head that is not tied)
    of standard deviation 0.05, projections of ``1 / sqrt(n_in)``. Gains are 1.

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
