"""Adapters in files, as peft writes and reads them.

    adapter_model.safetensors    base_model.model.<name>.lora_A.weight    (r, n_in)
                                 base_model.model.<name>.lora_B.weight    (n_out, r)
                                 base_model.model.<name>.lora_magnitude_vector    (n_out,), DoRA
    adapter_config.json          {"peft_type": "LORA", "r": ..., "lora_alpha": ..., ...}

peft's names are those of the modules of transformers, where every name but that of the head begins
with ``model.``. A configuration that asks for what LoRA alone does not do is refused by its field.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import (
    CheckpointError,
    finite,
    first_not_finite,
    from_bfloat16,
    in_file,
    integer,
    number,
    one_of,
    read_json,
    shown,
)
from minibit.checkpoint import SafetensorsFile, write_with_config

__all__ = ["load_adapters", "save_adapters"]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
KEY = re.compile(
    r"base_model\.model\.(?P<name>.+?)"
    r"\.(?:lora_(?P<part>[AB])\.weight|(?P<dora>lora_magnitude_vector)(?:\.weight)?|(?P<saved>weight))"
)
FLOATS = ("F16", "BF16", "F32", "F64")
READ = (  # fields of peft that are honoured
    *("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "bias", "rank_pattern"),
    *("alpha_pattern", "use_dora", "modules_to_save", "init_lora_weights"),
)
HARMLESS = (  # fields that say where adapters were put and how they began, or nothing about them
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "megatron_config", "megatron_core", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "runtime_config", "qalora_group_size"),
    "ensure_weight_tying",
)
STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "pissa")  # others change the base
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
        Made if it is not there; must not hold adapters.
    adapters : mapping of names to ``{"A": ..., "B": ...}``
        Written as float32. All or none have a ``"magnitude"`` (DoRA); ``{"weight": w}`` is written
        as a module of its own.
    alpha : float, or mapping of names to floats
    rank_stabilized, dropout
        As in `minibit.lora.with_adapters`; they are no part of the adapters.
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
        If there are none, or an A or a B is missing, not finite or does not fit.

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
    saved = []
    for name, parts in adapters.items():
        module = _module(name, root)
        if set(parts) == {"weight"}:
            saved.append(module)
            arrays[f"base_model.model.{module}.weight"] = _float32(parts["weight"], name)
            continue
        if not {"A", "B"} <= set(parts) <= {"A", "B", "magnitude"}:
            raise ValueError(f"adapters[{name!r}] must have A and B, got {sorted(parts)}")
        a, b = (_float32(parts[part], f"{name}.{part}") for part in "AB")
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise ValueError(
                f"adapters[{name!r}] must have A (r, n_in) and B (n_out, r), got {a.shape} and "
                f"{b.shape}"
            )
        ranks[module] = a.shape[0]
        for part, array in (("A", a), ("B", b)):
            arrays[f"base_model.model.{module}.lora_{part}.weight"] = array
        if "magnitude" in parts:
            vector = _float32(parts["magnitude"], f"{name}.magnitude")
            arrays[f"base_model.model.{module}.lora_magnitude_vector"] = vector
    dora = sum("magnitude" in parts for parts in adapters.values())
    if not ranks or dora not in (0, len(ranks)):
        raise ValueError(f"adapters must be there, with a magnitude for all or none; got {dora}")
    alphas = {
        _module(name, root): alpha[name] if isinstance(alpha, Mapping) else alpha
        for name in adapters
    }
    alphas = {module: alphas[module] for module in ranks}
    (rank, rank_pattern), (scale, alpha_pattern) = _patterns(ranks), _patterns(alphas)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if root else None,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _plain(scale),
        "rank_pattern": rank_pattern,
        "alpha_pattern": {module: _plain(value) for module, value in alpha_pattern.items()},
        "use_rslora": bool(rank_stabilized),
        "use_dora": bool(dora),
        "lora_dropout": float(dropout),
        "target_modules": list(ranks),
        "modules_to_save": saved or None,
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
        Name to ``{"A": (r, n_in), "B": (n_out, r)}``, with DoRA also ``"magnitude": (n_out,)``;
        ``{"weight": ...}`` for a head or an embedding that was trained whole. Float32 whatever the
        file has.
    settings : dict
        alpha, rank_stabilized, dropout, and pissa where it is so: what
        `minibit.lora.with_adapters` takes beside.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, a number is NaN or infinite, a name is none of LoRA's, an A
        or a B is missing or does not have the rank that the configuration says, or that asks for
        something that is not known here: file, tensor or field are named.

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
        axes = 1 if match["dora"] else 2
        if tensor.dtype not in FLOATS or len(tensor.shape) != axes:
            kind = "vector" if match["dora"] else "matrix"
            file.damage(
                f"must be a {kind} of floats, got {tensor.dtype} of shape {tensor.shape}", key
            )
        array = _floats(file.array(key), tensor.dtype)
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
        if part != "magnitude" and array.shape[0 if part == "A" else 1] != rank:
            got = array.shape[0 if part == "A" else 1]
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
    alphas = {
        name: float(
            _by_pattern(config.get("alpha_pattern"), _module(name, root), config["lora_alpha"])
        )
        for name in pairs
    }
    settings: dict[str, Any] = {
        "alpha": alphas if config.get("alpha_pattern") else float(config["lora_alpha"]),
        "rank_stabilized": config.get("use_rslora", False),
        "dropout": float(config.get("lora_dropout", 0.0)),
    }
    if config.get("init_lora_weights") == "pissa":
        settings["pissa"] = True
    return pairs | saved, settings


def _read_config(path: Path) -> dict[str, Any]:
    """Return a configuration of which every field is honoured or harmless."""
    config = read_json(path)

    with in_file(path):
        one_of("peft_type", config.get("peft_type"), ("LORA",))
        _rank("r", config.get("r"))
        _alpha("lora_alpha", config.get("lora_alpha"))
        number("lora_dropout", config.get("lora_dropout", 0), "[0, 1)")
        for name in ("use_rslora", "use_dora"):
            one_of(name, config.get(name, False), (False, True))
        one_of("bias", config.get("bias", "none"), ("none",))
        for name, check in (("rank_pattern", _rank), ("alpha_pattern", _alpha)):
            patterns = config.get(name) or {}
            if not isinstance(patterns, dict) or not all(map(PATTERN.fullmatch, patterns)):
                raise ValueError(f"{name} must map names to numbers, got {shown(patterns)}")
            for pattern, value in patterns.items():
                check(f"{name} of {shown(pattern)}", value)
        modules = config.get("modules_to_save") or []
        if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
            raise ValueError(f"modules_to_save must be a list of names, got {shown(modules)}")
        if config.get("init_lora_weights", True) not in STARTS:
            raise ValueError(
                "init_lora_weights must leave the base as it is, or be 'pissa', got "
                f"{shown(config['init_lora_weights'])}: other starts change the base in ways that "
                "the files do not tell"
            )
    for name, value in config.items():
        if value and name not in READ and name not in HARMLESS:
            raise CheckpointError(
                f"{name} is {shown(value)}: that is more than LoRA, and not read here", path
            )
    return config


def _rank(name: str, value: Any) -> int:
    return integer(name, value, 1, 2**31 - 1)


def _alpha(name: str, value: Any) -> float:
    return number(name, value, "(0, 1e30)")


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the entry of the first pattern that a module's name ends with, as peft does."""
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error:
            continue
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


def _floats(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Return a tensor of a file as float32 in memory of its own."""
    if dtype == "BF16":
        return from_bfloat16(array)
    with np.errstate(over="ignore"):
        return np.array(array, np.float32)
