"""Hugging Face's directories, of BitNet, Llama and Qwen3: from files to a model.

A directory must hold the tensors that its configuration says, of the shapes that it says, and no
others but those that can be no part of the model, which is checked before a weight is touched.
Then, tensor by tensor:

    projections   uint8, 2 bits per weight   -> a `TernaryMatrix`, never expanded; its pages let go
                  floats (master weights)    -> float32
                  floats as they are, of a   -> a `TernaryMatrix` with the scales that they have,
                  Llama or Qwen3                of the matrix or of groups of columns
    norms         any floats                 -> float32
    embeddings    bfloat16                   -> stay in the mapped file, as uint16 bits
                  other floats               -> float32

The reader refuses faults of real uploads: projections that are all zeros (microsoft/BitNet#608),
latent weights where ternary ones belong (unilm#1502), scales that are none.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import CheckpointError, first_not_finite, widen
from minibit.checkpoint.hf.config import Storage, file_name, finds_codes, read_config, tensor_names
from minibit.checkpoint.hf.linear import gamma_of
from minibit.checkpoint.hf.shards import Tensors, inside, open_tensors
from minibit.checkpoint.safetensors import SafetensorsFile, Tensor
from minibit.checkpoint.ternary_floats import NotTernaryError, find_ternary
from minibit.ternary import TernaryMatrix, to_hf
from minibit.transformer import BitNetConfig, BitNetModel, float_linear, param_shapes

__all__ = ["load_bitnet"]

FLOATS = ("BF16", "F16", "F32", "F64")
HEAD = "lm_head.weight"
ANGLES = ".rotary_emb.inv_freq"
TERNARY = (-1.0, 0.0, 1.0)
ZEROS = "holds only zeros: an upload that lost its weights"


def load_bitnet(directory: str | os.PathLike[str]) -> BitNetModel:
    """Read a BitNet, or a ternary Llama or Qwen3, from a Hugging Face directory.

    ``W = codes / weight_scale`` (``linear_class: bitlinear``) or ``codes * weight_scale``
    (``autobitlinear``, offline), as the configuration says. A Llama or Qwen3 without a
    ``quantization_config`` holds the weights themselves: ``W = scale * codes`` is found in them,
    with one scale, or one for each 256, 128, 64 or 32 columns of a row.

    Parameters
    ----------
    directory : path-like
        Holds ``config.json`` and ``model.safetensors``, or shards and their index. Floats may be
        bfloat16, float16, float32 or float64, which is rounded.

    Returns
    -------
    BitNetModel
        Ternary projections are `TernaryMatrix`; master weights (``autobitlinear``, online) float32,
        quantised at each use; without a ``quantization_config`` its ``linear`` is `float_linear`,
        so that activations stay floats, as in transformers. (``dataclasses.replace(model,
        linear=None)`` quantises them to int8, as llama.cpp does, and decodes far faster.) bfloat16
        embeddings lie in the mapped file: delete or replace it, but don't shorten it.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged or pickled; if the configuration says what the block of its
        ``model_type`` has not; if a tensor is missing, unexpected, or of another type or shape; if
        a packed byte holds the 2-bit code 3, a matrix only zeros, a packed slot latent weights, a
        scale what is not above 0, or floats a NaN or an infinity; if the floats of a Llama or Qwen3
        are not ternary: the first that is not is named. It names file, tensor and byte.

    Notes
    -----
    Source: transformers, ``integrations/bitnet.py``, and microsoft/bitnet-b1.58-2B-4T.

    Examples
    --------
    >>> load_bitnet("nowhere")
    Traceback (most recent call last):
        ...
    minibit.base.damage.CheckpointError: nowhere: there is no such directory
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise CheckpointError("there is no such directory", folder)
    config, storage = read_config(inside(folder, "config.json"))
    tensors = _of_model(open_tensors(folder), config)
    embedding = file_name("embed_tokens")
    if config.tied and HEAD in tensors:
        if embedding not in tensors:  # the file names the one matrix as the head alone
            tensors[embedding] = tensors.pop(HEAD)
        elif _same(tensors[HEAD], tensors[embedding]):
            del tensors[HEAD]  # a whole state dict was saved
        else:  # as in transformers, a head that the file has is used
            config = replace(config, tied=False)
    names = tensor_names(config, storage)
    shapes = param_shapes(config)
    for name in names:
        if name not in tensors:
            raise CheckpointError("is missing", folder, name)
    for name, (file, tensor) in tensors.items():
        if name not in names:
            file.damage("is not expected by the configuration", tensor.name)
    for name, param in names.items():
        _check_tensor(*tensors[name], shapes[param], storage)
    params: dict[str, Any] = {}
    for param, shape in shapes.items():
        name = file_name(param)
        file, tensor = tensors[name]
        if name + "_scale" in names:
            gamma = _gamma(*tensors[name + "_scale"], storage)
            params[param] = _ternary(file, tensor, shape, gamma)
        elif finds_codes(config, storage) and param.endswith("_proj"):
            params[param] = _found(file, tensor)
        else:
            params[param] = _floats(file, tensor, mapped=param in ("embed_tokens", "lm_head"))
        file.release(tensor.name)
    return BitNetModel(config, params, None if storage.linear_class else float_linear)


def _of_model(tensors: Tensors, config: BitNetConfig) -> Tensors:
    """Return the tensors that transformers looks at, under the names of a whole model.

    A file without a name in ``model.`` was saved without the head's class. Angles of positions,
    which the configuration gives, and layers beyond those that it counts are left out.
    """
    if not any(name.startswith("model.") for name in tensors):
        tensors = {n if n == HEAD else f"model.{n}": tensor for n, tensor in tensors.items()}
    layer = re.compile(r"model\.layers\.([0-9]{1,9})\.")
    beyond = {n for n in tensors if (m := layer.match(n)) and int(m[1]) >= config.layers}
    return {n: t for n, t in tensors.items() if n not in beyond and not n.endswith(ANGLES)}


def _same(one: tuple[SafetensorsFile, Tensor], other: tuple[SafetensorsFile, Tensor]) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    if (one[1].dtype, one[1].shape) != (other[1].dtype, other[1].shape):
        return False
    a, b = (file.array(tensor.name).view("u1") for file, tensor in (one, other))
    return bool(np.array_equal(a, b))


def _check_tensor(
    file: SafetensorsFile, tensor: Tensor, shape: tuple[int, ...], storage: Storage
) -> None:
    """Raise if a tensor is not of the type and shape that its place takes."""
    floats, why = tensor.dtype in FLOATS, ""
    if tensor.name.endswith("_scale"):
        expected, fits = "floats of shape (1,)", floats and tensor.shape in ((1,), ())
    elif tensor.name.endswith("_proj.weight") and storage.packed:
        rows = -(-shape[0] // 4), *shape[1:]
        ternary = storage.linear_class == "autobitlinear"  # it saves codes as floats, too
        fits = (tensor.dtype, tensor.shape) == ("U8", rows)
        fits = fits or (ternary and floats and tensor.shape == shape)
        expected = f"U8 {rows} (four rows per byte)"
        why = ": latent weights in a packed slot" if floats else ""
    else:
        expected, fits = f"floats of shape {shape}", floats and tensor.shape == shape
        why = ": packed weights, but no configuration of how" if tensor.dtype == "U8" else ""
    if not fits:
        got = f"{tensor.dtype} {tensor.shape}{why}"
        file.damage(f"expected {expected}, got {got}", tensor.name, tensor.begin)


def _floats(file: SafetensorsFile, tensor: Tensor, *, mapped: bool = False) -> NDArray[Any]:
    """Return fresh float32, or bits of bfloat16 in place: finite, a matrix's not all zero."""
    stored = file.array(tensor.name)
    if tensor.dtype != "BF16":
        with np.errstate(over="ignore"):  # infinite is what it then is
            floats = stored.astype(np.float32)
    elif not mapped:
        floats = widen(stored)
    else:
        floats = np.array(stored) if tensor.begin % 2 else stored  # at an even address
    first = first_not_finite(floats)
    if first is not None:
        value = widen(floats.reshape(-1)[first : first + 1])[0]
        at = tensor.begin + first * stored.itemsize
        file.damage(f"must be finite, got {value}", tensor.name, at)
    if floats.ndim == 2 and not floats.any():
        file.damage(ZEROS, tensor.name, tensor.begin)
    return floats


def _found(file: SafetensorsFile, tensor: Tensor) -> TernaryMatrix:
    """Return a projection whose codes and scales are found in its floats."""
    try:
        return TernaryMatrix.from_codes(*find_ternary(_floats(file, tensor, mapped=True)))
    except NotTernaryError as error:
        at = tensor.begin + error.place * file.array(tensor.name).itemsize
        file.damage(str(error), tensor.name, at)


def _gamma(file: SafetensorsFile, tensor: Tensor, storage: Storage) -> np.float32:
    """Return the scale of a projection, a number above 0."""
    scale = np.float32(_floats(file, tensor).reshape(-1)[0])
    gamma = gamma_of(scale, storage) if scale > 0 else scale
    if not (scale > 0 and 0 < gamma < np.inf):
        file.damage(f"must be a scale above 0, got {scale}", tensor.name, tensor.begin)
    return gamma


def _ternary(
    file: SafetensorsFile, tensor: Tensor, shape: tuple[int, ...], gamma: np.float32
) -> TernaryMatrix:
    """Return a projection, from packed bytes or from floats that are -1, 0 or 1."""
    n_out = shape[0]
    if tensor.dtype in FLOATS:
        floats = _floats(file, tensor)
        wrong = ~np.isin(floats, TERNARY)
        if wrong.any():
            first = int(np.argmax(wrong))
            at = tensor.begin + first * file.array(tensor.name).itemsize
            got = f"got {floats.reshape(-1)[first]}: latent weights in a ternary slot"
            file.damage(f"expected -1, 0 or 1, {got}", tensor.name, at)
        return TernaryMatrix.from_codes(floats.astype(np.int8), gamma)
    packed = file.array(tensor.name)  # (ceil(n_out / 4), n_in)
    zeros = to_hf(np.zeros((n_out, 1), np.int8))  # a column of zeros: (ceil(n_out / 4), 1)
    mask = zeros | zeros << 1  # without the bits of rows beyond n_out
    if (packed & mask == zeros).all():
        file.damage(ZEROS, tensor.name, tensor.begin)
    try:
        return TernaryMatrix.from_hf(packed, n_out, gamma)
    except ValueError:
        first = int(np.flatnonzero(packed & (packed >> 1) & 0x55)[0])
        byte = packed.reshape(-1)[first]
        message = f"holds the 2-bit code 3 in byte {byte:#04x}; legal are 0, 1, 2 for -1, 0, 1"
        file.damage(message, tensor.name, tensor.begin + first)
