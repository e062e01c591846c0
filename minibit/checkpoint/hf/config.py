"""A checkpoint's config.json: the sizes of the model, and how its linear layers are stored.

    quantization_config                projections              weight_scale   y
    linear_class bitlinear (default)   uint8, 4 rows a byte     w = 1 / gamma  z / (s w)
    autobitlinear, mode offline        uint8, or floats -1 0 1  w = gamma      (z / s) w
    autobitlinear, mode online         floats, quantised later  none
    none                               floats, never quantised  none

(z is the integer product, s the scale of the activations, ``quantization_mode`` the mode.) One name
has two opposite meanings, and nothing in a tensor tells which: the configuration must be read, and
what it says beyond the published block is refused, not ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minibit.base import CheckpointError, read_json, shown
from minibit.transformer import BitNetConfig, param_shapes

__all__ = ["Storage", "config_json", "file_name", "read_config", "tensor_names"]

LinearClass = Literal["bitlinear", "autobitlinear"]
Mode = Literal["offline", "online"]
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
FIXED = {  # what the published block has, and a file may say
    "model_type": ("bitnet",),
    "hidden_act": ("relu2",),
    "attention_bias": (False, None),
    "rope_scaling": (None,),
}
QUANTIZATION = {  # what a quantization_config may say
    "quant_method": ("bitnet",),
    "linear_class": ("bitlinear", "autobitlinear"),
    "quantization_mode": ("offline", "online"),
    "use_rms_norm": (False, None),
}


@dataclass(frozen=True)
class Storage:
    """How the projections of a checkpoint are stored.

    Attributes
    ----------
    linear_class : {"bitlinear", "autobitlinear"}, optional
        None: no quantization_config, a float model.
    mode : {"offline", "online"}
    """

    linear_class: LinearClass | None = "bitlinear"
    mode: Mode = "offline"

    @property
    def packed(self) -> bool:
        """Whether the file holds ternary weights and their scales, and not float ones."""
        return self.linear_class == "bitlinear" or (
            self.linear_class == "autobitlinear" and self.mode == "offline"
        )


def read_config(path: Path) -> tuple[BitNetConfig, Storage]:
    """Read a config.json.

    Parameters
    ----------
    path : Path

    Returns
    -------
    BitNetConfig, Storage

    Raises
    ------
    CheckpointError
        If it is no such file, lacks a size, or says what the published block has not: another
        activation, biases, scaled positions, norms inside the linear layers.

    Notes
    -----
    ``rope_theta`` lies in ``rope_parameters`` (transformers 5) or beside the sizes (before, and
    also where the former leave it out). ``num_key_value_heads`` null means one per query head.
    """
    fields = read_json(path)
    _refuse_others(fields, FIXED, path)
    if "model_type" not in fields:
        raise CheckpointError("no model_type; expected 'bitnet'", path)
    if "num_key_value_heads" in fields and fields["num_key_value_heads"] is None:
        fields["num_key_value_heads"] = fields.get("num_attention_heads")
    sizes: dict[str, Any] = {ours: _size(fields, theirs, path) for theirs, ours in SIZES.items()}
    if sizes["layers"] > MOST_LAYERS:
        raise CheckpointError(
            f"num_hidden_layers must be at most {MOST_LAYERS}, got {sizes['layers']}", path
        )
    head_dim = fields.get("head_dim")
    if head_dim is not None and head_dim != sizes["hidden_size"] / sizes["heads"]:
        raise CheckpointError(
            f"head_dim must be hidden_size / num_attention_heads, got {shown(head_dim)}", path
        )
    tied = fields.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise CheckpointError(f"tie_word_embeddings must be true or false, got {shown(tied)}", path)
    rope_theta, rms_eps = _rope_theta(fields, path), _number(fields, "rms_norm_eps", 1e-5, path)
    bos, eos = _token(fields, "bos_token_id", path), _token(fields, "eos_token_id", path)
    bos = bos[0] if isinstance(bos, tuple) else bos
    try:
        config = BitNetConfig(
            **sizes, rope_theta=rope_theta, rms_eps=rms_eps, tied=tied, bos=bos, eos=eos
        )
    except (TypeError, ValueError) as error:  # the sizes do not fit one another
        raise CheckpointError(str(error), path) from None
    return config, _storage(fields.get("quantization_config"), path)


def config_json(config: BitNetConfig, storage: Storage, dtype: str) -> str:
    """Return the config.json of a model, as transformers reads it.

    Parameters
    ----------
    config : BitNetConfig
        With sub-norms: the published block has them.
    storage : Storage
    dtype : str
        "float32" or "bfloat16": what transformers computes in if not told otherwise.

    Raises
    ------
    ValueError
        If the configuration has no sub-norms.

    Examples
    --------
    >>> config = BitNetConfig(83, 48, 128, layers=1, heads=2, kv_heads=2, max_positions=64)
    >>> text = config_json(config, Storage("autobitlinear", "online"), "float32")
    >>> json.loads(text)["quantization_config"]["quantization_mode"]
    'online'
    """
    if not config.sub_norms:
        raise ValueError("config must have sub_norms: Hugging Face's BitNet block has them")
    fields: dict[str, Any] = {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "dtype": dtype,
        "hidden_act": "relu2",
        **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
        "rms_norm_eps": config.rms_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos,
        "eos_token_id": config.eos,
    }
    if storage.linear_class is not None:
        fields["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": storage.linear_class,
            "quantization_mode": storage.mode,
        }
    return json.dumps(fields, indent=2) + "\n"


def _refuse_others(fields: dict[str, Any], known: dict[str, tuple[Any, ...]], path: Path) -> None:
    """Raise if a field is given, and not as this model has it."""
    for name, values in known.items():
        if name in fields and not any(fields[name] is v or fields[name] == v for v in values):
            expected = " or ".join(json.dumps(value) for value in values)
            raise CheckpointError(f"{name} must be {expected}, got {shown(fields[name])}", path)


def _size(fields: dict[str, Any], name: str, path: Path) -> int:
    """Return a positive whole number that must be there: defaults of libraries differ."""
    size = fields.get(name)
    if type(size) is not int or not 0 < size < 2**31:
        got = shown(size) if name in fields else "none"
        raise CheckpointError(f"{name} must be a positive whole number, got {got}", path)
    return size


def _number(fields: dict[str, Any], name: str, default: float, path: Path) -> float:
    """Return a finite number above 0, or the published default."""
    value = fields.get(name, default)
    if type(value) not in (int, float) or not 0 < value < 1e300:
        raise CheckpointError(f"{name} must be a number above 0, got {shown(value)}", path)
    return float(value)


def _token(fields: dict[str, Any], name: str, path: Path) -> Any:
    """Return a token's number, a tuple of several, or None."""
    value = fields.get(name)
    tokens = value if isinstance(value, list) else [value]
    if value is None or not tokens:
        return None
    if any(type(token) is not int for token in tokens):
        raise CheckpointError(f"{name} must be a whole number, got {shown(value)}", path)
    return tokens[0] if len(tokens) == 1 else tuple(tokens)


def _rope_theta(fields: dict[str, Any], path: Path) -> float:
    """Return the base of the rotary positions, wherever it is written."""
    rope = fields.get("rope_parameters")
    if rope is None:
        return _number(fields, "rope_theta", 500_000.0, path)
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else None
    if kind != "default":
        raise CheckpointError(
            f"rope_parameters must be of rope_type 'default', got {shown(rope)}", path
        )
    nested = next((name for name, value in rope.items() if isinstance(value, dict)), None)
    if nested is not None:  # positions of their own for some layers
        raise CheckpointError(f"rope_parameters must not have an object {shown(nested)}", path)
    return _number(rope if "rope_theta" in rope else fields, "rope_theta", 500_000.0, path)


def _storage(fields: Any, path: Path) -> Storage:
    """Return how linear layers are stored, from a quantization_config."""
    if fields is None:
        return Storage(None)
    if not isinstance(fields, dict) or "quant_method" not in fields:
        raise CheckpointError(
            f"quantization_config must name its quant_method, got {shown(fields)}", path
        )
    _refuse_others(fields, QUANTIZATION, path)
    skipped = fields.get("modules_to_not_convert") or []
    if not isinstance(skipped, list) or any(name != "lm_head" for name in skipped):
        raise CheckpointError(
            f"modules_to_not_convert may name 'lm_head' only, got {shown(skipped)}", path
        )
    linear_class: LinearClass = fields.get("linear_class", "bitlinear")
    mode: Mode = fields.get("quantization_mode", "offline")
    return Storage(linear_class, mode)


def tensor_names(config: BitNetConfig, storage: Storage) -> dict[str, str]:
    """List the tensors of a checkpoint: for each name in the file, the parameter it belongs to.

    Examples
    --------
    >>> config = BitNetConfig(83, 48, 128, layers=1, heads=2, kv_heads=2, max_positions=64)
    >>> names = tensor_names(config, Storage())
    >>> names["model.layers.0.mlp.up_proj.weight_scale"]
    'layers.0.mlp.up_proj'
    """
    names = {}
    for param in param_shapes(config):
        name = file_name(param)
        names[name] = param
        if storage.packed and param.endswith("_proj"):
            names[f"{name}_scale"] = param
    return names


def file_name(param: str) -> str:
    """Return the name of a parameter's tensor in a file.

    Examples
    --------
    >>> file_name("norm"), file_name("lm_head")
    ('model.norm.weight', 'lm_head.weight')
    """
    return f"{param}.weight" if param == "lm_head" else f"model.{param}.weight"
