"""Hugging Face's directories, of BitNet, Llama and Qwen3: from a model to what transformers loads.

A tensor is made when its place in the file is reached, and forgotten after it, so a model is
written with one matrix expanded at a time, and a random one of any size takes no more memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from minibit.absmean import absmean_quantize
from minibit.base import one_of, to_bfloat16, widen
from minibit.checkpoint.hf.config import (
    LinearClass,
    Mode,
    Storage,
    config_json,
    file_name,
    finds_codes,
    tensor_names,
)
from minibit.checkpoint.hf.linear import weight_scale_of
from minibit.checkpoint.safetensors import Produce, Specs, as_written, write_with_config
from minibit.checkpoint.ternary_floats import NotTernaryError, find_ternary
from minibit.ternary import TernaryMatrix, to_hf
from minibit.transformer import BitNetConfig, BitNetModel, float_linear, param_shapes

__all__ = ["PUBLISHED_2B_4T", "random_checkpoint", "save_bitnet"]

PUBLISHED_2B_4T = BitNetConfig(
    vocab_size=128_256,
    hidden_size=2560,
    intermediate_size=6912,
    layers=30,
    heads=20,
    kv_heads=5,
    max_positions=4096,
    rope_theta=500_000.0,
    rms_eps=1e-5,
    tied=True,
    bos=128_000,
    eos=128_001,
)
"""The configuration of microsoft/bitnet-b1.58-2B-4T."""

ROWS = 4096  # of floats that are made, at a time
LEGAL = np.array([b for b in range(256) if not b & b >> 1 & 0x55], np.uint8)  # (81,)


def save_bitnet(
    model: BitNetModel,
    directory: str | os.PathLike[str],
    *,
    linear_class: LinearClass | None = "bitlinear",
    quantization_mode: Mode = "offline",
) -> None:
    """Write a model as a Hugging Face directory, which transformers and `load_bitnet` read.

    Parameters
    ----------
    model : BitNetModel
        Embeddings that are bfloat16 bits are written as such, other floats as float32; packed
        embeddings, and projections written as floats, in the smallest type that holds their scales.
    directory : path-like
        Made if it is not there; that it holds a checkpoint is a FileExistsError.
    linear_class : {"bitlinear", "autobitlinear"}, optional
        "bitlinear": packed projections, with ``weight_scale = 1 / gamma``. "autobitlinear": packed
        with gamma itself, or online. None: floats that are never quantised, which only a model of
        `float_linear` has: of a Llama or Qwen3 those that its ternary projections stand for.
    quantization_mode : {"offline", "online"}
        For "autobitlinear": "online" writes the master weights, which are quantised at each use.

    Raises
    ------
    ValueError
        If master weights are asked for and a projection is ternary; if floats that are never
        quantised are asked for and the model multiplies otherwise; if a packed projection has only
        zeros, a scale that is not above 0, or a number of rows that is no multiple of 4, which
        transformers cannot read; if packed ones are asked for and groups of columns have scales, or
        the model multiplies ternary weights by floats; if a float is not finite, or a matrix of
        them all zeros, or a Llama's or Qwen3's float projection not ternary; if a BitNet has no
        sub-norms, or the model another part that transformers has not.

    Notes
    -----
    Codes, gammas and floats come back bit for bit, with one exception: about one gamma in six is no
    rounded reciprocal, and comes back from "bitlinear" one unit in the last place away. Float
    projections are quantised by `absmean_quantize` where a packed form is asked for.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> from minibit.transformer import init_params
    >>> config = BitNetConfig(83, 48, 128, layers=1, heads=2, kv_heads=2, max_positions=64)
    >>> folder = mkdtemp()
    >>> save_bitnet(BitNetModel(config, init_params(config, seed=0)), folder)
    >>> sorted(os.listdir(folder))
    ['config.json', 'model.safetensors']
    """
    storage = _storage(linear_class, quantization_mode)
    names = tensor_names(model.config, storage)
    shapes = param_shapes(model.config)
    specs: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, param in names.items():
        value = model.params[param]
        if storage.packed and param.endswith("_proj"):
            if isinstance(value, TernaryMatrix):
                _check_packable(value, param, model)
            specs[name] = _packed_spec(name, shapes[param])
        elif not isinstance(value, TernaryMatrix):
            specs[name] = ("BF16" if value.dtype == np.uint16 else "F32", shapes[param])
        elif model.linear is float_linear or not param.endswith("_proj"):
            specs[name] = _float_type(value), shapes[param]
        else:
            rule = "must be float to be written as master weights"
            raise ValueError(f"{param} {rule}, got ternary weights")
    if linear_class is None and model.linear is not float_linear:
        raise ValueError(
            "linear_class None stores floats that are never quantised, and this model does not "
            "multiply by float_linear. Its master weights are kept, as b1.58, by linear_class "
            "'autobitlinear' with quantization_mode 'online'; as a float model, "
            "BitNetModel(config, params, float_linear), it would compute something else"
        )

    @cache
    def matrix(param: str) -> TernaryMatrix:
        """Return a projection, quantised once for its two tensors."""
        value = model.params[param]
        if isinstance(value, TernaryMatrix):
            return value
        return TernaryMatrix.from_codes(*absmean_quantize(value))

    def produce(name: str) -> Iterator[NDArray[Any]]:
        param = names[name]
        if name.endswith("_scale"):
            yield _scale(np.float32(matrix(param).scale), param, storage)
        elif specs[name][0] == "U8":
            codes = matrix(param).codes()
            if not codes.any():
                rule = "must not be all zeros: no reader takes it for a trained layer"
                raise ValueError(f"{param} {rule}")
            yield to_hf(codes)
        elif isinstance(value := model.params[param], TernaryMatrix):
            yield from _values(value, param, specs[name][0])
        else:
            if param.endswith("_proj") and finds_codes(model.config, storage):
                _check_ternary(value, param)
            yield as_written(param, value)

    bits = specs[file_name("embed_tokens")][0] == "BF16"
    text = config_json(model.config, storage, "bfloat16" if bits else "float32")
    _write(directory, text, specs, produce)


def random_checkpoint(
    directory: str | os.PathLike[str],
    config: BitNetConfig = PUBLISHED_2B_4T,
    *,
    seed: int = 0,
    linear_class: LinearClass = "bitlinear",
) -> None:
    """Write a checkpoint of random ternary weights: as large as a real one, and as fast.

    Codes are even draws of -1, 0, 1, scales ``sqrt(1.5 / n_in)`` (which keeps the variance), norms
    1, embeddings normal; floats are bfloat16. No more than one matrix is in memory.

    Parameters
    ----------
    directory, linear_class
        As for `save_bitnet`, whose errors these are, too.
    config : BitNetConfig
        By default that of the published 2B model: about 1.2 GB.
    seed : int
        Not negative.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> config = BitNetConfig(83, 48, 128, layers=1, heads=2, kv_heads=2, max_positions=64)
    >>> folder = mkdtemp()
    >>> random_checkpoint(folder, config)
    >>> os.path.getsize(f"{folder}/model.safetensors")
    17550
    """
    storage = _storage(linear_class, "offline")
    rng = np.random.Generator(np.random.Philox(seed))
    names = tensor_names(config, storage)
    shapes = param_shapes(config)
    specs = {
        name: _packed_spec(name, shapes[param], "BF16")
        if param.endswith("_proj")
        else ("BF16", shapes[param])
        for name, param in names.items()
    }

    def produce(name: str) -> Iterator[NDArray[Any]]:
        dtype, shape = specs[name]
        param = names[name]
        if dtype == "U8":
            yield LEGAL[rng.integers(0, LEGAL.size, shape, np.uint8)]
        elif name.endswith("_scale"):
            gamma = np.float32(np.sqrt(1.5 / shapes[param][1]))
            yield to_bfloat16(_scale(gamma, param, storage))
        elif len(shape) == 1:
            yield to_bfloat16(np.ones(shape, np.float32))
        else:
            for row in range(0, shape[0], ROWS):
                rows = min(ROWS, shape[0] - row)
                normal = rng.standard_normal((rows, shape[1]), np.float32)
                normal *= np.float32(1 / 32)
                yield to_bfloat16(normal)

    _write(directory, config_json(config, storage, "bfloat16"), specs, produce)


def _storage(linear_class: Any, mode: Any) -> Storage:
    """Return how projections are to be stored, if there is such a way."""
    one_of("linear_class", linear_class, (*get_args(LinearClass), None))
    if mode not in get_args(Mode) or (mode == "online" and linear_class != "autobitlinear"):
        raise ValueError(
            "quantization_mode must be 'offline', or 'online' for 'autobitlinear', "
            f"got {mode!r} for {linear_class!r}"
        )
    return Storage(linear_class, mode)


def _packed_spec(
    name: str, shape: tuple[int, ...], scales: str = "F32"
) -> tuple[str, tuple[int, ...]]:
    """Return type and shape of a packed projection in a file, or of its scale."""
    if shape[0] % 4:
        rule = "transformers reads packed projections of a multiple of 4"
        raise ValueError(f"{name} has {shape[0]} rows; {rule}")
    return (scales, (1,)) if name.endswith("_scale") else ("U8", (shape[0] // 4, *shape[1:]))


def _check_packable(matrix: TernaryMatrix, param: str, model: BitNetModel) -> None:
    """Refuse a ternary projection that a linear class would make another of."""
    rule = "is stored as floats, by linear_class None: a packed projection"
    if matrix.group is not None:
        raise ValueError(f"{param} {rule} has one scale, got groups of {matrix.group} columns")
    if model.linear is float_linear:
        raise ValueError(f"{param} {rule} takes int8 activations, and float_linear does not")


def _check_ternary(floats: NDArray[Any], param: str) -> None:
    """Refuse floats in which the reader would find no codes."""
    try:
        find_ternary(as_written(param, floats))
    except NotTernaryError as error:
        raise ValueError(f"{param} has {error}") from error


def _float_type(matrix: TernaryMatrix) -> str:
    """Choose the smallest type of floats that holds a matrix's scales exactly."""
    scales = np.asarray(matrix.scale, np.float32)
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16).astype(np.float32)
    if (widen(to_bfloat16(scales)) == scales).all():
        return "BF16"
    return "F16" if (halves == scales).all() else "F32"


def _values(matrix: TernaryMatrix, param: str, dtype: str) -> Iterator[NDArray[Any]]:
    """Yield what a ternary matrix stands for, some rows at a time, as a type of floats."""
    seen = False
    for row in range(0, matrix.shape[0], ROWS):
        floats = matrix.rows(slice(row, row + ROWS))  # (rows, n_in)
        seen = seen or bool(floats.any())
        if dtype == "BF16":
            yield to_bfloat16(floats)
        else:
            yield floats.astype(np.float16 if dtype == "F16" else np.float32, copy=False)
    if not seen:
        raise ValueError(f"{param} must not be all zeros: no reader takes it for trained")


def _scale(gamma: np.float32, param: str, storage: Storage) -> NDArray[np.float32]:
    """Return a projection's weight_scale in the file."""
    with np.errstate(divide="ignore", over="ignore"):
        scale = weight_scale_of(gamma, storage) if gamma > 0 else np.float32(0)
    if not 0 < scale < np.inf:
        raise ValueError(f"{param} must have a scale above 0, got {gamma}")
    return scale.reshape(1)


def _write(directory: str | os.PathLike[str], text: str, specs: Specs, produce: Produce) -> None:
    """Write weights and configuration, unless there are any weights."""
    if any(Path(directory).glob("*.safetensors*")):
        raise FileExistsError(f"{directory} holds a checkpoint, which is never written over")
    write_with_config(directory, ("model.safetensors", "config.json"), text, specs, produce)
