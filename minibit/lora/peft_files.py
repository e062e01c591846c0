"""Adapters in files, as peft writes and reads them.

    adapter_model.safetensors    base_model.model.<name>.lora_A.weight    (r, n_in)
                                 base_model.model.<name>.lora_B.weight    (n_out, r)
    adapter_config.json          {"peft_type": "LORA", "r": ..., "lora_alpha": ..., ...}

peft's names are those of the modules of transformers, where every name but that of the head begins
with ``model.``. A configuration that asks for what LoRA alone does not do is refused by its field.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import CheckpointError, read_json, shown, widen
from minibit.checkpoint import SafetensorsFile, write_with_config

__all__ = ["load_adapters", "save_adapters"]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
KEY = re.compile(r"base_model\.model\.(?P<name>.+)\.lora_(?P<part>[AB])\.weight")
FLOATS = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
OTHER = (  # fields of peft that change what the numbers mean; each must be absent, empty or false
    *("use_dora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern"),
    *("modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters"),
    *("alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config"),
    *("velora_config", "monteclora_config"),
)

Adapters = dict[str, dict[str, NDArray[np.float32]]]


def save_adapters(
    directory: str | os.PathLike[str],
    adapters: Mapping[str, Mapping[str, NDArray[Any]]],
    *,
    alpha: float = 8.0,
    rank_stabilized: bool = False,
    dropout: float = 0.0,
    root: str = "model.",
    base: str | None = None,
) -> None:
    """Write adapters as a directory that `load_adapters` reads, and peft.

    Parameters
    ----------
    directory : path-like
        Made if it is not there; must not hold adapters.
    adapters : mapping of names to ``{"A": ..., "B": ...}``
        All of one rank; written as float32.
    alpha, rank_stabilized, dropout
        As in `minibit.lora.LoRALinear`; they are no part of the adapters.
    root : str
        What peft's names of the matrices have before ours, but for ``lm_head``: "model." for a
        language model of transformers.
    base : str, optional
        Name or path of the model that the adapters belong to; only noted.

    Raises
    ------
    FileExistsError
        If the directory holds adapters.
    ValueError
        If there are none, an A or a B is missing or does not fit, or ranks differ.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> folder = mkdtemp()
    >>> pair = {"A": np.ones((2, 4), np.float32), "B": np.zeros((6, 2), np.float32)}
    >>> save_adapters(folder, {"layers.0.mlp.up_proj": pair}, alpha=16)
    >>> adapters, settings = load_adapters(folder)
    >>> list(adapters), settings
    (['layers.0.mlp.up_proj'], {'alpha': 16.0, 'rank_stabilized': False, 'dropout': 0.0})
    """
    arrays: dict[str, NDArray[Any]] = {}
    ranks = set()
    for name, pair in adapters.items():
        if set(pair) != {"A", "B"}:
            raise ValueError(f"adapters[{name!r}] must have A and B, got {sorted(pair)}")
        a, b = (np.asarray(pair[part], np.float32) for part in "AB")
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise ValueError(
                f"adapters[{name!r}] must have A (r, n_in) and B (n_out, r), got {a.shape} and "
                f"{b.shape}"
            )
        ranks.add(a.shape[0])
        for part, array in (("A", a), ("B", b)):
            arrays[f"base_model.model.{_module(name, root)}.lora_{part}.weight"] = array
    if len(ranks) != 1:
        raise ValueError(f"adapters must be there, and of one rank: got ranks {sorted(ranks)}")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if root else None,
        "base_model_name_or_path": base,
        "r": ranks.pop(),
        "lora_alpha": int(alpha) if float(alpha).is_integer() else float(alpha),
        "use_rslora": bool(rank_stabilized),
        "lora_dropout": float(dropout),
        "target_modules": [_module(name, root) for name in adapters],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }

    def produce(key: str) -> Iterator[NDArray[Any]]:
        yield arrays[key]

    specs = {key: ("F32", array.shape) for key, array in arrays.items()}
    text = json.dumps(config, indent=2)
    write_with_config(directory, (WEIGHTS, CONFIG), text, specs, produce)


def load_adapters(
    directory: str | os.PathLike[str], *, root: str = "model."
) -> tuple[Adapters, dict[str, Any]]:
    """Read adapters that peft or `save_adapters` wrote.

    Parameters
    ----------
    directory : path-like
        With ``adapter_model.safetensors`` and ``adapter_config.json``.
    root : str
        What peft's names have before ours; see `save_adapters`.

    Returns
    -------
    adapters : dict
        Name to ``{"A": (r, n_in), "B": (n_out, r)}``, float32 whatever the file has.
    settings : dict
        alpha, rank_stabilized, dropout: what `minibit.lora.with_adapters` takes beside.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, a name is none of LoRA's, an A or a B is missing or does
        not have the rank that the configuration says, or that asks for something else than LoRA
        (DoRA, biases, a rank for each layer, ...): file, tensor or field are named.

    Examples
    --------
    >>> load_adapters("nowhere")
    Traceback (most recent call last):
    minibit.base.damage.CheckpointError: nowhere/adapter_config.json: there is no such file
    """
    folder = Path(directory)
    config = _read_config(folder / CONFIG)
    file = SafetensorsFile(folder / WEIGHTS)
    adapters: Adapters = {}
    for key, tensor in file.tensors.items():
        found = KEY.fullmatch(key)
        name = None if found is None else _name(found["name"], root)
        if found is None or name is None:
            file.damage(
                f"expected base_model.model.{root}<name>.lora_A.weight or lora_B.weight", key
            )
        if tensor.dtype not in FLOATS or len(tensor.shape) != 2:
            file.damage(
                f"must be a matrix of floats, got {tensor.dtype} of shape {tensor.shape}", key
            )
        rank = tensor.shape[0 if found["part"] == "A" else 1]
        if rank != config["r"]:
            file.damage(f"has rank {rank}, but {CONFIG} says r = {config['r']}", key)
        adapters.setdefault(name, {})[found["part"]] = _floats(file.array(key), tensor.dtype)
    for name, pair in adapters.items():
        if len(pair) != 2:
            file.damage(f"has lora_{next(iter(pair))} and no other", _module(name, root))
    if not adapters:
        file.damage("holds no adapters")
    pairs = {name: {part: adapters[name][part] for part in "AB"} for name in sorted(adapters)}
    return pairs, {
        "alpha": float(config["lora_alpha"]),
        "rank_stabilized": config.get("use_rslora", False),
        "dropout": float(config.get("lora_dropout", 0.0)),
    }


def _read_config(path: Path) -> dict[str, Any]:
    """Return a configuration that is one of LoRA, with rank and alpha."""
    config = read_json(path)

    def number(value: Any, least: float, whole: bool = False) -> bool:
        kinds = int if whole else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and value >= least

    checks = {
        "peft_type": (config.get("peft_type") == "LORA", "'LORA'"),
        "r": (number(config.get("r"), 1, whole=True), "a whole number, at least 1"),
        "lora_alpha": (number(config.get("lora_alpha"), 1e-30), "a number above 0"),
        "lora_dropout": (
            number(config.get("lora_dropout", 0), 0) and config.get("lora_dropout", 0) < 1,
            "in [0, 1)",
        ),
        "use_rslora": (isinstance(config.get("use_rslora", False), bool), "true or false"),
        "bias": (config.get("bias", "none") == "none", "'none'"),
    }
    for name, (good, takes) in checks.items():
        if not good:
            raise CheckpointError(f"{name} must be {takes}, got {shown(config.get(name))}", path)
    for name in OTHER:
        if config.get(name):
            raise CheckpointError(
                f"{name} is {shown(config[name])}: that is more than LoRA, and not read here", path
            )
    return config


def _module(name: str, root: str) -> str:
    """Return peft's name of a matrix."""
    return name if name == "lm_head" else root + name


def _name(module: str, root: str) -> str | None:
    """Return our name of a matrix, or None if it is no name under that root."""
    if module == "lm_head":
        return module
    return module[len(root) :] if module.startswith(root) and len(module) > len(root) else None


def _floats(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Return a tensor of a file as float32 in memory of its own."""
    with np.errstate(over="ignore"):
        return np.array(widen(array), np.float32)
