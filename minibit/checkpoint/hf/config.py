"""A checkpoint's config.json: the sizes of the model, and how its linear layers are stored.

    quantization_config                projections              weight_scale   y
    linear_class bitlinear (default)   uint8, 4 rows per byte   w = 1 / gamma  z / (s w)
    autobitlinear, mode offline        uint8, or floats -1 0 1  w = gamma      (z / s) w
    autobitlinear, mode online         floats, quantised later  none
    none                               floats as they are       none

(z is the integer product, s the scale of the activations, ``quantization_mode`` the mode.) One name
has two opposite meanings, and nothing in a tensor tells which: the configuration must be read, and
what it says beyond the block of its ``model_type``, bitnet, llama or qwen3, is refused, not
ignored. Floats as they are, of a Llama or Qwen3, are ternary numbers of one magnitude, or of one
for each group of columns (`minibit.checkpoint.ternary_floats`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from minibit.base import CheckpointError, in_file, integer, number, one_of, read_json, shown
from minibit.transformer import BitNetConfig, Family, RopeScaling, param_shapes

__all__ = ["Storage", "config_json", "file_name", "finds_codes", "read_config", "tensor_names"]

LinearClass = Literal["bitlinear", "autobitlinear"]
Mode = Literal["offline", "online"]
BOOLS = (False, True)
MOST_LAYERS = 4096  # whatever a file says; other sizes are compared with its tensors
SIZES = {  # theirs: ours
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "max_position_embeddings": "max_positions",
}
NO_BIAS = (False, None)


class Kind(NamedTuple):
    """What transformers has for a ``model_type``."""

    architecture: str
    fixed: dict[str, tuple[Any, ...]]  # what the block has, and a file may say
    defaults: dict[str, Any]  # of fields that a file leaves out, and that no tensor shows
    theta: float
    eps: float


KINDS: dict[Family, Kind] = {
    "bitnet": Kind(
        "BitNetForCausalLM",
        {"hidden_act": ("relu2",), "attention_bias": NO_BIAS},
        {"num_attention_heads": 20, "num_key_value_heads": 5, "max_position_embeddings": 2048},
        500_000.0,
        1e-5,
    ),
    "llama": Kind(
        "LlamaForCausalLM",
        {"hidden_act": ("silu", "swish"), "attention_bias": NO_BIAS, "mlp_bias": NO_BIAS},
        {"num_attention_heads": 32, "num_key_value_heads": None, "max_position_embeddings": 2048},
        10_000.0,
        1e-6,
    ),
    "qwen3": Kind(
        "Qwen3ForCausalLM",
        {
            "hidden_act": ("silu", "swish"),
            "attention_bias": NO_BIAS,
            "use_sliding_window": (False, None),
        },
        {
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 32768,
            "head_dim": 128,
        },
        10_000.0,
        1e-6,
    ),
}
INNER_EPS = 1e-6  # of norms inside the linear layers, where a quantization_config does not say it
QUANTIZATION = {  # what a quantization_config may say
    "quant_method": ("bitnet",),
    "linear_class": ("bitlinear", "autobitlinear"),
    "quantization_mode": ("offline", "online"),
    "use_rms_norm": (False, None, True),
}
LLAMA3 = {  # ours: theirs
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "original": "original_max_position_embeddings",
}
SCALING = {"rope_type", "type", "rope_theta", "factor"}  # what may be said of scaled positions
NOT_CONVERTED = ("lm_head", "embed_tokens", "model.embed_tokens", "norm", "model.norm")


@dataclass(frozen=True)
class Storage:
    """How the projections of a checkpoint are stored."""

    linear_class: LinearClass | None = "bitlinear"  # None: no quantization_config, floats
    mode: Mode = "offline"

    @property
    def packed(self) -> bool:
        """Whether the file holds ternary weights and their scales, and not float ones."""
        return self.linear_class == "bitlinear" or (
            self.linear_class == "autobitlinear" and self.mode == "offline"
        )


def read_config(path: Path) -> tuple[BitNetConfig, Storage]:
    """Read a config.json.

    Raises `CheckpointError` if it is no such file, lacks a size, or says what the block of its
    ``model_type`` has not: another activation, biases, scaled positions, a sliding window.

    A field left out is as transformers has it: of a BitNet 20 heads, 5 of keys and values, 2048
    positions, no tied head. ``num_key_value_heads`` null means one per query head. A token below 0
    is none. ``use_rms_norm`` in a ``quantization_config`` means a norm before each projection.
    """
    given = read_json(path)
    if "model_type" not in given:
        raise CheckpointError(f"no model_type; expected {', '.join(KINDS)}", path)
    _refuse_others(given, {"model_type": get_args(Family)}, path)
    family: Family = given["model_type"]
    kind = KINDS[family]
    fields = kind.defaults | given
    _refuse_others(fields, kind.fixed, path)
    if fields["num_key_value_heads"] is None:
        fields["num_key_value_heads"] = fields.get("num_attention_heads")
    storage, inner = _storage(fields.get("quantization_config"), path)
    with in_file(path):
        sizes: dict[str, Any] = {
            ours: integer(theirs, fields.get(theirs), 1, 2**31 - 1)
            for theirs, ours in SIZES.items()
        }
        integer("num_hidden_layers", sizes["layers"], 1, MOST_LAYERS)
        head_dim = fields.get("head_dim")
        if family == "bitnet":
            if head_dim is not None and head_dim != sizes["hidden_size"] / sizes["heads"]:
                raise ValueError(
                    f"head_dim must be hidden_size / num_attention_heads, got {shown(head_dim)}"
                )
            head_dim = None
        elif head_dim is not None or family == "qwen3":
            head_dim = integer("head_dim", head_dim, 2, 2**31 - 1)
        if family == "qwen3":
            full = ["full_attention"] * sizes["layers"]
            if (layers := fields.get("layer_types")) not in (None, full):
                raise ValueError(f"layer_types must be all full_attention, got {shown(layers)}")
        eps = number("rms_norm_eps", fields.get("rms_norm_eps", kind.eps), "(0, inf)")
        if inner is not None and inner != eps:
            rule = f"must be that of the model's other norms, {eps}"
            raise ValueError(f"rms_norm_eps of quantization_config {rule}, got {inner}")
        theta, scaling = _rope(fields, kind.theta, sizes["max_positions"])
        bos, eos = (_token(fields, name) for name in ("bos_token_id", "eos_token_id"))
        config = BitNetConfig(
            **sizes,
            rope_theta=theta,
            rope_scaling=scaling,
            rms_eps=eps,
            tied=one_of("tie_word_embeddings", fields.get("tie_word_embeddings", False), BOOLS),
            bos=bos[0] if isinstance(bos, tuple) else bos,
            eos=eos,
            family=family,
            own_head_dim=head_dim,
            projection_norms=inner is not None,
        )
    return config, storage


def config_json(config: BitNetConfig, storage: Storage, dtype: str) -> str:
    """Return a config.json for transformers; ValueError for a model that it has not.

    `dtype` ("float32" or "bfloat16") is what transformers computes in if not told otherwise.
    """
    kind = KINDS[config.family]
    if config.family == "bitnet" and not config.sub_norms:
        raise ValueError("config must have sub_norms: Hugging Face's BitNet block has them")
    if config.family == "bitnet" and config.own_head_dim is not None:
        raise ValueError("config must have heads of hidden_size / heads: BitNet's block has them")
    if config.family == "llama" and config.hidden_size % config.heads:
        raise ValueError("config must have heads that divide hidden_size: transformers' Llama does")
    if config.projection_norms and storage.linear_class is None:
        raise ValueError("config must have no projection_norms: only a linear_class has them")
    fields: dict[str, Any] = {
        "architectures": [kind.architecture],
        "model_type": config.family,
        "dtype": dtype,
        "hidden_act": kind.fixed["hidden_act"][0],
        **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
        "rms_norm_eps": config.rms_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, **_rope_type(config.rope_scaling)},
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos,
        "eos_token_id": config.eos,
    }
    if config.family != "bitnet":
        fields["head_dim"] = config.head_dim
    if storage.linear_class is not None:
        fields["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": storage.linear_class,
            "quantization_mode": storage.mode,
        }
        if config.projection_norms:
            fields["quantization_config"] |= {"use_rms_norm": True, "rms_norm_eps": config.rms_eps}
    return json.dumps(fields, indent=2) + "\n"


def _refuse_others(fields: dict[str, Any], known: dict[str, tuple[Any, ...]], path: Path) -> None:
    """Raise if a field is given, and not as this model has it."""
    for name, values in known.items():
        if name in fields and not any(fields[name] is v or fields[name] == v for v in values):
            expected = " or ".join(json.dumps(value) for value in values)
            raise CheckpointError(f"{name} must be {expected}, got {shown(fields[name])}", path)


def _token(fields: dict[str, Any], name: str) -> Any:
    """Return a token's number, a tuple of several, or None; a number below 0 is no token."""
    value = fields.get(name)
    listed = value if isinstance(value, list) else [] if value is None else [value]
    tokens = tuple(token for token in listed if integer(name, token, None) >= 0)
    return tokens[0] if len(tokens) == 1 else tokens or None


def _rope_type(scaling: RopeScaling | None) -> dict[str, Any]:
    """Return the fields of rotary positions besides theta."""
    if scaling is None:
        return {"rope_type": "default"}
    return {"rope_type": "llama3"} | {LLAMA3[name]: v for name, v in scaling._asdict().items()}


def _rope(
    fields: dict[str, Any], default: float, positions: int
) -> tuple[float, RopeScaling | None]:
    """Return the base of the rotary positions, and their scaling if it is that of Llama 3.1.

    It lies in ``rope_scaling`` where that says anything, else in ``rope_parameters`` (transformers
    5), or beside the sizes (before, and also where these objects leave it out).
    """
    name = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    rope = fields.get(name)
    scaling = None
    if rope is not None:
        if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) == "llama3":
            scaling = _llama3(rope, name, positions, fields.get("partial_rotary_factor", 1))
        elif not isinstance(rope, dict) or not _plain(rope, "partial_rotary_factor" in fields):
            expected = "null or of rope_type 'default', without a factor, or 'llama3'"
            raise ValueError(f"{name} must be {expected}, got {shown(rope)}")
        nested = next((key for key, value in rope.items() if isinstance(value, dict)), None)
        if nested is not None:  # positions of their own for some layers
            raise ValueError(f"{name} must not have an object {shown(nested)}")
        fields = rope if "rope_theta" in rope else fields
    return number("rope_theta", fields.get("rope_theta", default), "(0, inf)"), scaling


def _llama3(rope: dict[str, Any], name: str, positions: int, part: Any) -> RopeScaling:
    """Return the scaling of Llama 3.1 that a configuration has."""
    unknown = rope.keys() - {"rope_type", "type", "rope_theta", *LLAMA3.values()}
    if unknown or part != 1:
        what = shown(min(unknown)) if unknown else f"partial_rotary_factor {shown(part)}"
        raise ValueError(f"{name} of rope_type 'llama3' must not come with {what}")
    fields = {LLAMA3["original"]: positions} | rope
    factor, low, high = (
        number(LLAMA3[key], fields.get(LLAMA3[key])) for key in ("factor", "low", "high")
    )
    original = integer(LLAMA3["original"], fields[LLAMA3["original"]], 1, 2**31 - 1)
    return RopeScaling(factor, low, high, original)


def _plain(rope: dict[str, Any], partial: bool) -> bool:
    """Whether transformers turns by plain angles, up to max_position_embeddings."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" and (partial or rope.keys() - SCALING):
        return False
    return kind == "dynamic" or (kind in ("default", "linear") and rope.get("factor", 1) == 1)


def _storage(fields: Any, path: Path) -> tuple[Storage, float | None]:
    """Return how linear layers are stored, from a quantization_config.

    And, if these layers begin with norms of their own, the eps of these; else None.
    """
    if fields is None:
        return Storage(None), None
    if not isinstance(fields, dict) or "quant_method" not in fields:
        message = f"quantization_config must name its quant_method, got {shown(fields)}"
        raise CheckpointError(message, path)
    _refuse_others(fields, QUANTIZATION, path)
    skipped = fields.get("modules_to_not_convert")
    if skipped is not None and not (
        isinstance(skipped, list)
        and "lm_head" in skipped
        and all(s in NOT_CONVERTED for s in skipped)
    ):  # transformers quantises a head that a list leaves out, and its input
        expected = "null, or name 'lm_head' and no projection"
        message = f"modules_to_not_convert must be {expected}, got {shown(skipped)}"
        raise CheckpointError(message, path)
    linear_class = fields.get("linear_class", "bitlinear")
    storage = Storage(linear_class, fields.get("quantization_mode", "offline"))
    if not fields.get("use_rms_norm"):
        return storage, None
    with in_file(path):
        eps = fields.get("rms_norm_eps", INNER_EPS)
        return storage, number("rms_norm_eps of quantization_config", eps, "(0, inf)")


def finds_codes(config: BitNetConfig, storage: Storage) -> bool:
    """Whether projections are floats as they are, in which a reader finds codes and scales."""
    return config.family != "bitnet" and storage.linear_class is None


def tensor_names(config: BitNetConfig, storage: Storage) -> dict[str, str]:
    """List the tensors of a checkpoint: for each name in the file, the parameter it belongs to."""
    names = {}
    for param in param_shapes(config):
        name = file_name(param)
        names[name] = param
        if storage.packed and param.endswith("_proj"):
            names[f"{name}_scale"] = param
    return names


def file_name(param: str) -> str:
    """Return the name of a parameter's tensor in a file, such as ``model.norm.weight``."""
    return f"{param}.weight" if param == "lm_head" else f"model.{param}.weight"
