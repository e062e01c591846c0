"""How bitsandbytes keeps a quantised weight among the tensors of a safetensors file.

    weight                                 uint8 (ceil(n / 2), 1)     packed codes; or these bytes
                                                                      as numbers of another type
    weight.absmax                          float32 (blocks,), or with double quantisation uint8
    weight.quant_map                       float32 (16,)              NF4_CODE
    weight.nested_absmax                   float32                    only with double quantisation,
    weight.nested_quant_map                float32 (256,)             as this: dynamic_map
    weight.quant_state.bitsandbytes__nf4   uint8                      JSON: the rest

The JSON, as UTF-8 bytes in a tensor, has ``quant_type``, ``blocksize``, ``dtype`` (of the weights
before, and of what dequantising gives there), ``shape``, and with double quantisation
``nested_blocksize``, ``nested_dtype`` and ``nested_offset``. These are dictionaries of arrays, as
``safetensors.numpy`` saves and loads; whole models hold many, each under its own name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import JSONError, one_of, parse_object, shown
from minibit.nf4.codebooks import NF4_CODE
from minibit.nf4.double_quant import NESTED_BLOCK, dynamic_map
from minibit.nf4.tensor import NF4Tensor

__all__ = ["from_bitsandbytes", "to_bitsandbytes"]

STATE = "quant_state.bitsandbytes__"


def to_bitsandbytes(
    tensor: NF4Tensor, name: str = "weight", dtype: str = "float32"
) -> dict[str, NDArray[Any]]:
    """Return the arrays under which bitsandbytes saves an NF4 weight, for ``save_file``.

    Parameters
    ----------
    tensor : NF4Tensor
        Anything else is a TypeError.
    name : str
        Of the weight, for instance ``layers.0.mlp.up_proj.weight``.
    dtype : str
        ``"float16"``, ``"bfloat16"`` or ``"float32"``, or a ValueError: what bitsandbytes shall
        dequantise to.

    Examples
    --------
    >>> tensor = NF4Tensor((3,), 64, np.uint8([0xF7, 0x07]), np.float32([2]))
    >>> for key, array in to_bitsandbytes(tensor).items():
    ...     print(key, array.dtype, array.shape)
    weight uint8 (2, 1)
    weight.absmax float32 (1,)
    weight.quant_map float32 (16,)
    weight.quant_state.bitsandbytes__nf4 uint8 (72,)
    """
    if not isinstance(tensor, NF4Tensor):
        raise TypeError(f"tensor must be an NF4Tensor, got {type(tensor).__name__}")
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": tensor.block,
        "dtype": one_of("dtype", dtype, ("float16", "bfloat16", "float32")),
        "shape": list(tensor.shape),
    }
    arrays: dict[str, NDArray[Any]] = {
        name: tensor.packed[:, None],
        f"{name}.absmax": tensor.absmax if tensor.nested_codes is None else tensor.nested_codes,
        f"{name}.quant_map": NF4_CODE,
    }
    if tensor.nested_absmax is not None and tensor.offset is not None:
        arrays[f"{name}.nested_absmax"] = tensor.nested_absmax
        arrays[f"{name}.nested_quant_map"] = dynamic_map()
        state |= {
            "nested_blocksize": NESTED_BLOCK,
            "nested_dtype": "float32",
            "nested_offset": float(tensor.offset),
        }
    arrays[f"{name}.{STATE}nf4"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return arrays


def from_bitsandbytes(arrays: Mapping[str, NDArray[Any]], name: str = "weight") -> NF4Tensor:
    """Read an NF4 weight from the arrays under which bitsandbytes saves it.

    `arrays` maps names to arrays, of one weight or of a whole model; `name` is that of the weight.
    They are not copied: don't change them. The packed codes may be stored as another type
    (bitsandbytes' ``quant_storage``, for FSDP): their bytes count. A KeyError names an array that
    is missing, a TypeError or ValueError one, or an entry of the JSON, that is not as it has to be.
    FP4 is refused.

    Examples
    --------
    >>> tensor = NF4Tensor((3,), 64, np.uint8([0xF7, 0x07]), np.float32([2]))
    >>> from_bitsandbytes(to_bitsandbytes(tensor)).dequantize()
    array([ 2.,  0., -2.], dtype=float32)
    """
    if f"{name}.{STATE}fp4" in arrays:
        raise ValueError(f"{name} is FP4, not NF4: its codes mean other numbers")
    state = _state(_array(arrays, f"{name}.{STATE}nf4"), f"{name}.{STATE}nf4")
    packed = _array(arrays, name)
    if packed.ndim != 2 or packed.shape[1] != 1:
        raise ValueError(f"{name} must have shape (bytes, 1), got {packed.shape}")
    _check_map(arrays, f"{name}.quant_map", NF4_CODE)
    absmax = _array(arrays, f"{name}.absmax")
    shape, block = tuple(state["shape"]), state["blocksize"]
    packed = np.ascontiguousarray(packed.reshape(-1)).view(np.uint8)  # whatever quant_storage is
    if "nested_offset" not in state:
        if absmax.dtype == np.uint8:
            wrong = f"{name}.absmax holds codes of scales, but {name}.{STATE}nf4 no nested_offset"
            raise ValueError(f"{wrong}, got {shown(sorted(state))}")
        return NF4Tensor(shape, block, packed, absmax)
    _check_map(arrays, f"{name}.nested_quant_map", dynamic_map())
    one_of(f"{name}: nested_blocksize", state["nested_blocksize"], (NESTED_BLOCK,))
    offset = state["nested_offset"]
    if not abs(offset) <= float(np.finfo(np.float32).max):
        raise ValueError(f"{name}: nested_offset must be finite as float32, got {str(offset)[:20]}")
    nested = _array(arrays, f"{name}.nested_absmax")
    return NF4Tensor(shape, block, packed, None, np.float32(offset), absmax, nested)


def _array(arrays: Mapping[str, NDArray[Any]], key: str) -> NDArray[Any]:
    """Return an array that has to be there."""
    if key not in arrays:
        raise KeyError(f"{key} is missing; there are {', '.join(sorted(arrays)[:8]) or 'none'}")
    return np.asarray(arrays[key])


def _check_map(arrays: Mapping[str, NDArray[Any]], key: str, code: NDArray[np.float32]) -> None:
    """See that a file means the numbers that we mean."""
    entries = _array(arrays, key)
    if entries.shape != code.shape or not (entries == code).all():
        got = entries.tolist()[:4]
        raise ValueError(f"{key} must hold the {code.size} known entries, got {got}")


def _state(array: NDArray[Any], key: str) -> dict[str, Any]:
    """Read the JSON, and see that it has the fields that are needed, of the right kind."""
    if array.dtype != np.uint8 or array.ndim != 1:
        raise ValueError(f"{key} must be uint8 in one axis, got {array.dtype} {array.shape}")
    try:
        state = parse_object(array.tobytes(), most=1 << 16)
    except JSONError as error:
        raise ValueError(f"{key} holds no JSON that is read here: {error}") from None
    kinds: dict[str, Any] = {"quant_type": str, "blocksize": int, "shape": list}
    if "nested_offset" in state:
        kinds |= {"nested_offset": (int, float), "nested_blocksize": int}
    for entry, kind in kinds.items():
        if not isinstance(state.get(entry), kind):
            raise ValueError(f"{key}: {entry} is missing or wrong, got {state.get(entry)!r}")
    one_of(f"{key}: quant_type", state["quant_type"], ("nf4",))
    if not all(type(side) is int for side in state["shape"]):
        raise ValueError(f"{key}: shape must hold whole numbers, got {state['shape']}")
    return state
