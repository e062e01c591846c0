"""Hugging Face's BitNet directories: from files to a model.

A configuration says which tensors there must be and of what shape; a directory must hold these and
no others. All of that is checked before a weight is touched. Then, tensor by tensor:

    projections   uint8, 2 bits a weight     -> a `TernaryMatrix`, never expanded; its pages let go
                  floats (master weights)    -> float32
    norms         any floats                 -> float32
    embeddings    bfloat16                   -> stay in the mapped file, as uint16 bits
                  float16, float32           -> float32

What real uploads got wrong is refused: projections that are all zeros (microsoft/BitNet#608),
latent weights where ternary ones belong (unilm#1502), scales that are none.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from minibit.base import CheckpointError, first_not_finite, widen
from minibit.checkpoint.hf.config import Storage, file_name, read_config, tensor_names
from minibit.checkpoint.hf.linear import gamma_of
from minibit.checkpoint.hf.shards import Tensors, inside, open_tensors
from minibit.checkpoint.safetensors import SafetensorsFile, Tensor
from minibit.ternary import TernaryMatrix, to_hf
from minibit.transformer import BitNetModel, float_linear, param_shapes

__all__ = ["load_bitnet"]

FLOATS = ("BF16", "F16", "F32")
HEAD = "lm_head.weight"
TERNARY = (-1.0, 0.0, 1.0)


def load_bitnet(directory: str | os.PathLike[str]) -> BitNetModel:
    """Read a BitNet model from a Hugging Face directory.

    ``W = codes / weight_scale`` (``linear_class: bitlinear``) or ``codes * weight_scale``
    (``autobitlinear``, offline), as the configuration says.

    Parameters
    ----------
    directory : path-like
        Holds ``config.json`` and ``model.safetensors``, or shards and their index. Floats may be
        bfloat16, float16 or float32.

    Returns
    -------
    BitNetModel
        Ternary projections are `TernaryMatrix`; master weights (``autobitlinear``, online) float32,
        quantised at each use; without a ``quantization_config`` the model's ``linear`` is
        `float_linear`. bfloat16 embeddings lie in the mapped file, which must not be shortened
        while the model is used (replacing or deleting it is harmless).

    Raises
    ------
    CheckpointError
        If a file is missing, damaged or pickled; if the configuration says what the published block
        has not; if a tensor is missing, unexpected, or of another type or shape; if a packed byte
        holds the 2-bit code 3, a projection only zeros, a packed slot latent weights, a scale what
        is not above 0, a norm, an embedding or master weights a NaN or an infinity. It names file,
        tensor and byte.

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
    tensors = open_tensors(folder)
    if config.tied and HEAD in tensors:
        if _same(tensors[HEAD], tensors.get(file_name("embed_tokens"))):
            del tensors[HEAD]  # a whole state dict was saved
        else:  # as in transformers, a head that the file has is used
            config = replace(config, tied=False)
    names = tensor_names(config, storage)
    shapes = param_shapes(config)
    _check_names(tensors, names, folder)
    for name, param in names.items():
        _check_tensor(*tensors[name], shapes[param], storage)
    params: dict[str, Any] = {}
    for param, shape in shapes.items():
        name = file_name(param)
        file, tensor = tensors[name]
        if param in ("embed_tokens", "lm_head"):
            params[param] = _embedding(file, tensor)
        elif name + "_scale" in names:
            gamma = _gamma(*tensors[name + "_scale"], storage)
            params[param] = _ternary(file, tensor, shape, gamma)
        else:
            params[param] = _floats(file, tensor)
        file.release(name)
    return BitNetModel(config, params, None if storage.linear_class else float_linear)


def _same(one: tuple[SafetensorsFile, Tensor], other: Any) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    if other is None or (one[1].dtype, one[1].shape) != (other[1].dtype, other[1].shape):
        return False
    a, b = (file.array(tensor.name).view("u1") for file, tensor in (one, other))
    return bool(np.array_equal(a, b))


def _check_names(tensors: Tensors, names: dict[str, str], folder: Path) -> None:
    """Raise for the first tensor that is missing, or is none of this model's."""
    for name in names:
        if name not in tensors:
            raise CheckpointError("is missing", folder, name)
    for name, (file, _) in tensors.items():
        if name not in names:
            file.damage("is not expected by the configuration", name)


def _check_tensor(
    file: SafetensorsFile, tensor: Tensor, shape: tuple[int, ...], storage: Storage
) -> None:
    """Raise if a tensor is not of the type and shape that its place takes."""
    name, got = tensor.name, f"{tensor.dtype} {tensor.shape}"
    if name.endswith("_scale"):
        if tensor.dtype not in FLOATS or tensor.shape not in ((1,), ()):
            file.damage(f"expected floats of shape (1,), got {got}", name, tensor.begin)
        return
    rows = -(-shape[0] // 4), *shape[1:]
    if not name.endswith("_proj.weight") or not storage.packed:
        if tensor.dtype in FLOATS and tensor.shape == shape:
            return
        expected = f"floats of shape {shape}"
        why = ": packed weights, but no configuration of how" if tensor.dtype == "U8" else ""
    else:
        if tensor.dtype == "U8" and tensor.shape == rows:
            return
        ternary = storage.linear_class == "autobitlinear"  # as its state dict has them
        if ternary and tensor.dtype in FLOATS and tensor.shape == shape:
            return
        expected = f"U8 {rows} (four rows a byte)"
        why = ": latent weights in a packed slot" if tensor.dtype in FLOATS else ""
    file.damage(f"expected {expected}, got {got}{why}", name, tensor.begin)


def _embedding(file: SafetensorsFile, tensor: Tensor) -> NDArray[Any]:
    """Return bfloat16 bits in place, or float32: finite, and not all zero."""
    if tensor.dtype != "BF16":
        return _floats(file, tensor)
    bits = file.array(tensor.name)
    if tensor.begin % 2:
        bits = np.array(bits)  # to an even address
    _check_finite(file, tensor, bits)
    if not bits.any():
        _refuse_zeros(file, tensor)
    return bits


def _floats(file: SafetensorsFile, tensor: Tensor) -> NDArray[np.float32]:
    """Return a fresh float32 array of floats that are finite, and of a matrix's not all zero."""
    array = file.array(tensor.name)
    floats: NDArray[np.float32] = (
        widen(array) if tensor.dtype == "BF16" else array.astype(np.float32)
    )
    _check_finite(file, tensor, floats)
    if floats.ndim == 2 and not floats.any():
        _refuse_zeros(file, tensor)
    return floats


def _check_finite(file: SafetensorsFile, tensor: Tensor, numbers: NDArray[Any]) -> None:
    """Raise for the first NaN or infinity of a tensor, given as floats or as bits of bfloat16."""
    first = first_not_finite(numbers)
    if first is not None:
        stored = file.array(tensor.name)
        number = numbers.reshape(-1)[first : first + 1]
        value = (widen(number) if number.dtype == np.uint16 else number)[0]
        at = tensor.begin + first * stored.itemsize
        file.damage(f"must be finite, got {value}", tensor.name, at)


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
    kept = zeros | zeros << 1  # without the bits of rows beyond n_out
    if (packed & kept == zeros).all():
        _refuse_zeros(file, tensor)
    try:
        return TernaryMatrix.from_hf(packed, n_out, gamma)
    except ValueError:
        first = int(np.flatnonzero(packed & (packed >> 1) & 0x55)[0])
        byte = packed.reshape(-1)[first]
        message = f"holds the 2-bit code 3 in byte {byte:#04x}; legal are 0, 1, 2 for -1, 0, 1"
        file.damage(message, tensor.name, tensor.begin + first)


def _refuse_zeros(file: SafetensorsFile, tensor: Tensor) -> NoReturn:
    """Raise for a projection without a weight."""
    file.damage("holds only zeros: an upload that lost its weights", tensor.name, tensor.begin)
