"""Adapters in files, as peft writes and reads them.

    adapter_model.safetensors    base_model.model.<name>.lora_A.weight    (r, n_in)
                                 base_model.model.<name>.lora_B.weight    (n_out, r)
                                 base_model.model.<name>.lora_magnitude_vector    (n_out,), DoRA
    adapter_config.json          {"peft_type": "LORA", "r": ..., "lora_alpha": ..., ...}

peft's names are those of the modules of transformers, where every name but that of the head begins
with ``model.``. A configuration that asks for what LoRA alone does not do is refused by its field.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import (
    CheckpointError,
    finite,
    first_not_finite,
    in_file,
    integer,
    number,
    one_of,
    read_json,
    shown,
    widen,
)
from minibit.checkpoint import SafetensorsFile, write_with_config

__all__ = ["load_adapters", "save_adapters"]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
KEY = re.compile(
    r"base_model\.model\.(?P<name>.+?)"
    r"\.(?:lora_(?P<part>[AB])\.weight|(?P<dora>lora_magnitude_vector)(?:\.weight)?|(?P<saved>weight))"
)
ENDS = {  # of peft's names, in the order of a file
    "weight": "weight",
    "A": "lora_A.weight",
    "B": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
}
KNOWN = (  # fields of peft: those that are honoured, and
    *("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "bias", "rank_pattern"),
    *("alpha_pattern", "use_dora", "modules_to_save", "init_lora_weights"),
    # those that say where adapters were put and how they began, or nothing about them
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "megatron_config", "megatron_core", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "runtime_config", "qalora_group_size"),
    *("ensure_weight_tying", "fan_in_fan_out"),
)
DEFAULTS = {"r": 8, "lora_alpha": 8}  # peft's
BIASES = ("none", "all", "lora_only")  # which biases were trained, and are in the file
STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "pissa")  # others change the base
CHECKS: dict[str, Callable[[str, Any], float]] = {  # of one module's value, and of all others'
    "rank_pattern": partial(integer, least=1, most=2**31 - 1),
    "alpha_pattern": partial(number, interval="(0, 1e30)"),
}
PATTERN = re.compile(r"[\w.^$|()\\-]{1,200}")  # what a stranger's regular expression may hold

Adapters = dict[str, dict[str, NDArray[np.float32]]]


def save_adapters(
    directory: str | os.PathLike[str],
    adapters: Mapping[str, Mapping[str, NDArray[Any]]],
    *,
    alpha: float | Mapping[str, float] = 8.0,
    rank_stabilized: bool = False,
    dropout: float = 0.0,
    root: str = "model.",
    base: str | None = None,
) -> None:
    """Write adapters as a directory that `load_adapters` reads, and peft.

    Parameters
    ----------
    directory : path-like
        Made if it is not there; a FileExistsError if it holds adapters.
    adapters : mapping of names to ``{"A": ..., "B": ...}``
        Written as float32. All or none have a ``"magnitude"`` (DoRA); ``{"weight": w}`` is written
        as a module of its own. A ValueError names what is missing, not finite or does not fit.
    alpha, rank_stabilized, dropout
        As in `minibit.lora.with_adapters`; they are no part of the adapters.
    root, base : str
        What peft's names of the matrices have before ours, but for ``lm_head``: "model." for a
        language model of transformers; and that model's name or path, which is only noted.

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
    ranks: dict[str, int] = {}  # of each module
    modules = {name: _module(name, root) for name in adapters}
    for name, parts in adapters.items():
        whole = set(parts) == {"weight"}
        if not whole and not {"A", "B"} <= set(parts) <= {"A", "B", "magnitude"}:
            raise ValueError(f"adapters[{name!r}] must have A and B, got {sorted(parts)}")
        floats = {part: _float32(parts[part], f"{name}.{part}") for part in ENDS if part in parts}
        for part, array in floats.items():
            arrays[f"base_model.model.{modules[name]}.{ENDS[part]}"] = array
        if not whole:
            a, b = floats["A"].shape, floats["B"].shape
            if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
                takes = "have A (r, n_in) and B (n_out, r)"
                raise ValueError(f"adapters[{name!r}] must {takes}, got {a} and {b}")
            ranks[modules[name]] = a[0]
    dora = sum("magnitude" in parts for parts in adapters.values())
    if not ranks or dora not in (0, len(ranks)):
        raise ValueError(f"adapters must be there, with a magnitude for all or none; got {dora}")
    scales = alpha if isinstance(alpha, Mapping) else dict.fromkeys(adapters, alpha)
    alphas = {module: _plain(scales[name]) for name, module in modules.items() if module in ranks}
    (rank, rank_pattern), (scale, alpha_pattern) = _patterns(ranks), _patterns(alphas)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if root else None,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scale,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "use_rslora": bool(rank_stabilized),
        "use_dora": bool(dora),
        "lora_dropout": float(dropout),
        "target_modules": list(ranks),
        "modules_to_save": [name for name in modules.values() if name not in ranks] or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    specs = {key: ("F32", array.shape) for key, array in arrays.items()}
    text = json.dumps(config, indent=2)
    write_with_config(directory, (WEIGHTS, CONFIG), text, specs, lambda key: [arrays[key]])


def load_adapters(
    directory: str | os.PathLike[str], *, root: str = "model."
) -> tuple[Adapters, dict[str, Any]]:
    """Read adapters that peft or `save_adapters` wrote to a directory: adapters and settings.

    `root` is what peft's names have before ours; see `save_adapters`. The adapters map names to
    ``{"A": (r, n_in), "B": (n_out, r)}``, with DoRA also ``"magnitude": (n_out,)``, or to
    ``{"weight": ...}`` for a head or an embedding that was trained whole; float32 whatever the file
    has. The settings are what `minibit.lora.with_adapters` takes beside: alpha, rank_stabilized,
    dropout, and pissa where it is so.

    A `CheckpointError` names file, tensor or field: where one is missing, damaged or unknown, a
    number is not finite, or a rank is not that of the configuration.

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
    saved: Adapters = {}
    for key, tensor in file.tensors.items():
        match = KEY.fullmatch(key)
        name = None if match is None else _name(match["name"], root)
        if match is None or name is None or (match["saved"] and ".lora_" in key):
            file.damage(
                f"expected base_model.model.{root}<name>.lora_A.weight or lora_B.weight", key
            )
        kind, axes = ("vector", 1) if match["dora"] else ("matrix", 2)
        if tensor.dtype not in ("F16", "BF16", "F32", "F64") or len(tensor.shape) != axes:
            file.damage(
                f"must be a {kind} of floats, got {tensor.dtype} of shape {tensor.shape}", key
            )
        with np.errstate(over="ignore"):
            array = np.array(widen(file.array(key)), np.float32)  # in memory of its own
        entry = first_not_finite(array)
        if entry is not None:
            file.damage(f"must be finite, got {array.reshape(-1)[entry]} at entry {entry}", key)
        if match["saved"]:
            if match["name"].split(".")[-1] not in (config.get("modules_to_save") or ()):
                file.damage(
                    f"is a whole weight that {CONFIG} does not list in modules_to_save", key
                )
            saved[name] = {"weight": array}
            continue
        if match["dora"] and not config.get("use_dora"):
            file.damage(f"is a magnitude, but {CONFIG} says nothing of use_dora", key)
        part = match["part"] or "magnitude"
        rank = _by_pattern(config.get("rank_pattern"), match["name"], config["r"])
        if match["part"] and (got := array.shape["AB".index(part)]) != rank:
            file.damage(f"has rank {got}, but {CONFIG} says r = {rank}", key)
        adapters.setdefault(name, {})[part] = array
    parts = ("A", "B", "magnitude") if config.get("use_dora") else ("A", "B")
    for name, pair in adapters.items():
        if missing := [part for part in parts if part not in pair]:
            file.damage(f"has lora_{next(iter(pair))} and no {missing[0]}", _module(name, root))
    if not adapters:
        file.damage("holds no adapters")
    for module in config.get("modules_to_save") or ():
        if module not in {name.split(".")[-1] for name in saved}:
            file.damage(f"has no {module}, which {CONFIG} lists in modules_to_save")
    pairs = {name: {part: adapters[name][part] for part in parts} for name in sorted(adapters)}
    scale, patterns = float(config["lora_alpha"]), config.get("alpha_pattern")
    alphas = {name: float(_by_pattern(patterns, _module(name, root), scale)) for name in pairs}
    settings: dict[str, Any] = {
        "alpha": alphas if patterns else scale,
        "rank_stabilized": config.get("use_rslora", False),
        "dropout": float(config.get("lora_dropout", 0.0)),
    }
    if config.get("init_lora_weights") == "pissa":
        settings["pissa"] = True
    return pairs | saved, settings


def _read_config(path: Path) -> dict[str, Any]:
    """Return a configuration of which every field is honoured or harmless; null is left out."""
    stored = {name: value for name, value in read_json(path).items() if value is not None}
    config = DEFAULTS | stored
    with in_file(path):
        one_of("peft_type", config.get("peft_type"), ("LORA",))
        CHECKS["rank_pattern"]("r", config.get("r"))
        CHECKS["alpha_pattern"]("lora_alpha", config.get("lora_alpha"))
        number("lora_dropout", config.get("lora_dropout", 0), "[0, 1)")
        for name in ("use_rslora", "use_dora"):
            one_of(name, config.get(name, False), (False, True))
        one_of("bias", config.get("bias", "none"), BIASES)
        for name, check in CHECKS.items():
            patterns = config.get(name) or {}
            if not isinstance(patterns, dict) or not all(map(PATTERN.fullmatch, patterns)):
                raise ValueError(f"{name} must map names to numbers, got {shown(patterns)}")
            for pattern, value in patterns.items():
                check(f"{name} of {shown(pattern)}", value)
        modules = config.get("modules_to_save") or []
        if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
            raise ValueError(f"modules_to_save must be a list of names, got {shown(modules)}")
        if config.get("init_lora_weights", True) not in STARTS:
            got = shown(config["init_lora_weights"])
            raise ValueError(
                f"init_lora_weights must leave the base as it is, or be 'pissa', got {got}: other "
                "starts change the base in ways that the files do not tell"
            )
    for name, value in config.items():
        if value and name not in KNOWN:
            raise CheckpointError(
                f"{name} is {shown(value)}: that is more than LoRA, and not read here", path
            )
    return config


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the entry of the first pattern that a module's name ends with, as peft does."""
    for pattern, value in (patterns or {}).items():
        with contextlib.suppress(re.error):
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
    return default


def _patterns(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the most frequent value, and the modules that have another."""
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {module: value for module, value in values.items() if value != usual}


def _plain(value: float) -> int | float:
    """Return a whole number as an integer, as peft writes it."""
    return int(value) if float(value).is_integer() else float(value)


def _float32(values: Any, name: str) -> NDArray[np.float32]:
    """Return an array as float32, if every entry is finite."""
    with np.errstate(over="ignore"):
        array = np.asarray(values, np.float32)
    finite(f"adapters[{name!r}]", array)
    return array


def _module(name: str, root: str) -> str:
    """Return peft's name of a matrix."""
    return name if name == "lm_head" else root + name


def _name(module: str, root: str) -> str | None:
    """Return our name of a matrix, or None if it is no name under that root."""
    if module == "lm_head":
        return module
    return module[len(root) :] if module.startswith(root) and len(module) > len(root) else None
