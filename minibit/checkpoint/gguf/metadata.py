"""A model's configuration in the words of GGUF.

    bitnet-b1.58.embedding_length                   hidden_size
    bitnet-b1.58.feed_forward_length                intermediate_size
    bitnet-b1.58.block_count                        layers
    bitnet-b1.58.attention.head_count, _kv          heads, kv_heads
    bitnet-b1.58.context_length                     max_positions
    bitnet-b1.58.rope.freq_base                     rope_theta, a float32
    bitnet-b1.58.attention.layer_norm_rms_epsilon   rms_eps, a float32
    bitnet-b1.58.vocab_size                         vocab_size
    tokenizer.ggml.bos_token_id, eos_token_id       bos, the first of eos
    tokenizer.ggml.eot_token_id, eom_token_id       more of eos
    minibit.eos_token_ids                           all of eos, as JSON, where there are several

A key begins with the file's ``general.architecture``: that of BitNet, ``llama`` or ``qwen3``, which
have ``attention.key_length`` besides, the width of a head. A head is tied where there is no
``output.weight``.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from minibit.base import in_file, shown
from minibit.checkpoint.gguf.container import GGUFFile
from minibit.transformer import BitNetConfig, Family

__all__ = ["config_entries", "read_config", "shortest"]

ARCHITECTURE = "bitnet-b1.58"
FAMILIES: dict[str, Family] = {  # architecture: family
    "bitnet": "bitnet",
    "bitnet-25": "bitnet",
    ARCHITECTURE: "bitnet",
    "llama": "llama",
    "qwen3": "qwen3",
}
SQUARED_RELU, SILU = "relu2", "silu"
ROTATION = "prism.hadamard."
NEUTRAL: dict[str, tuple[float, ...]] = {  # keys that change a model, and values that do not
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "attention.scale": (0,),
    "expert_count": (0,),
    "logit_scale": (0, 1),
}
ENDS = "minibit.eos_token_ids"
MOST_ENDS = 4096  # characters


def read_config(file: GGUFFile, *, squared_relu: bool = False) -> BitNetConfig:
    """Read a model's configuration out of a file's metadata; `squared_relu` is as for `load_gguf`.

    Raises `CheckpointError` for another architecture or activation, a size that is missing or
    impossible, or what would make another model of it: a rotation before projections, a window.
    """
    name = file.metadata.get("general.architecture")
    silu = f"{name}.hidden_activation" not in file.metadata and not squared_relu
    if name == "bitnet" and silu:
        raise file.error(
            "is of architecture 'bitnet', which llama.cpp runs with SiLU; if its model has squared "
            "ReLU, say so: squared_relu=True, or minibit convert --squared-relu"
        )
    if "general.architecture" not in file.metadata:
        raise file.error("does not say its general.architecture")
    if name not in FAMILIES:
        raise file.error(f"is of architecture {shown(name)}; known are {', '.join(FAMILIES)}")
    family = FAMILIES[str(name)]
    rotated = next((key for key in file.metadata if key.startswith(ROTATION)), None)
    if rotated is not None:
        raise file.error(f"has {shown(rotated)}: a rotation before products, not known here")
    for key, neutral in NEUTRAL.items():
        if file.metadata.get(f"{name}.{key}", neutral[0]) not in neutral:
            raise file.error(f"has {name}.{key}, which is not known here")

    def value(key: str, default: int | float | None = None) -> Any:
        stored = file.metadata.get(f"{name}.{key}", default)
        if isinstance(stored, bool) or not isinstance(stored, int | float):
            array = f"{name}.{key}" in file.metadata and stored is None
            got = "an array" if array else shown(stored)
            raise file.error(f"needs one number as {name}.{key}, has {got}")
        return stored if isinstance(stored, int) else shortest(stored)

    known = SQUARED_RELU if family == "bitnet" else SILU
    activation = file.metadata.get(f"{name}.hidden_activation", known)
    if activation != known:
        raise file.error(f"has the activation {shown(activation)}; {known} is known here")
    factors = {value(f"rope.{key}", 1.0) for key in ("scaling.factor", "scale_linear")}
    scaling = file.metadata.get(f"{name}.rope.scaling.type", "linear")
    if scaling != "none" and (scaling != "linear" or factors - {0, 1}):  # 0 means 1
        raise file.error("has scaled rotary positions, which are not known here")
    layers = value("block_count")
    if layers > len(file.tensors):
        raise file.error(f"claims {layers} blocks, and has {len(file.tensors)} tensors")
    table = file.tensors.get("token_embd.weight")
    bos, *ends = (_token(file, name) for name in ("bos", "eos", "eot", "eom"))
    eos = _ends(file, [token for token in ends if token is not None])
    heads = value("attention.head_count")
    wide = family != "bitnet" and f"{name}.attention.key_length" in file.metadata
    with in_file(file.path):
        config = BitNetConfig(
            vocab_size=value("vocab_size", table.shape[0] if table else None),
            hidden_size=value("embedding_length"),
            intermediate_size=value("feed_forward_length"),
            layers=layers,
            heads=heads,
            kv_heads=value("attention.head_count_kv", heads),
            max_positions=value("context_length"),
            rope_theta=float(value("rope.freq_base", 10000.0)),
            rms_eps=float(value("attention.layer_norm_rms_epsilon")),
            tied="output.weight" not in file.tensors,
            sub_norms="blk.0.attn_sub_norm.weight" in file.tensors,
            family=family,
            own_head_dim=value("attention.key_length") if wide else None,
            projection_norms="blk.0.attn_q_norm_in.weight" in file.tensors,
            bos=bos,
            eos=eos[0] if len(eos) == 1 else eos or None,
        )
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if value(key, config.head_dim) != config.head_dim:
            raise file.error(f"has {key} {value(key)}; heads of {config.head_dim} are known here")
    return config


def _token(file: GGUFFile, name: str) -> int | None:
    """Return a token that the metadata name, or None: also for -1, signed or not."""
    key = f"tokenizer.ggml.{name}_token_id"
    token = file.metadata.get(key)
    if key in file.metadata and type(token) is not int:
        raise file.error(f"has {key} {shown(token)}, must be a token")
    return token if isinstance(token, int) and token not in (-1, 2**32 - 1) else None


def _ends(file: GGUFFile, known: list[int]) -> tuple[int, ...]:
    """Return all end tokens: the list that minibit wrote, else those known by name."""
    listed = file.metadata.get(ENDS)
    if listed is None:
        return tuple(dict.fromkeys(known))
    try:
        tokens = json.loads(str(listed)[:MOST_ENDS])
    except (ValueError, RecursionError):
        tokens = None
    if not isinstance(tokens, list) or any(type(token) is not int for token in tokens):
        raise file.error(f"has {ENDS} {shown(listed)}, must be a list of tokens")
    return tuple(tokens)


def shortest(stored: float) -> float:
    """Return the shortest decimal that rounds to a float32: what its writer meant.

    Examples
    --------
    >>> float(np.float32(1e-5)), shortest(float(np.float32(1e-5)))
    (9.999999747378752e-06, 1e-05)
    """
    with np.errstate(over="ignore"):
        return float(str(np.float32(stored)))


def config_entries(config: BitNetConfig) -> dict[str, int | float | bool | str]:
    """Return the metadata that say what a configuration does, the architecture first."""
    if config.family == "bitnet" and config.own_head_dim is not None:
        raise ValueError("config must have heads of hidden_size / heads: BitNet's block has them")
    name = ARCHITECTURE if config.family == "bitnet" else config.family
    own: dict[str, int | float | bool | str] = {
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    }
    sizes: dict[str, int | float | bool | str] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "block_count": config.layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.head_dim,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_eps),
        "rope.freq_base": float(config.rope_theta),
        **({"hidden_activation": SQUARED_RELU} if config.family == "bitnet" else own),
    }
    entries: dict[str, int | float | bool | str] = {
        "general.architecture": name,
        **{f"{name}.{key}": value for key, value in sizes.items()},
    }
    ends = zip(("eos", "eot", "eom"), config.ends, strict=False)
    for name, token in (("bos", config.bos), *ends):
        if token is not None:
            entries[f"tokenizer.ggml.{name}_token_id"] = int(token)
    if len(config.ends) > 1:
        entries[ENDS] = json.dumps([int(token) for token in config.ends])
    return entries
