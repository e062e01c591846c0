"""Merging: an adapter becomes part of its matrix, and is taken out again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minibit.lora.adapters import LoRALinear
from minibit.lora.frozen import Frozen
from minibit.nf4 import NF4Tensor, quantize_nf4
from minibit.ternary import TernaryMatrix

__all__ = ["merge", "unmerge"]


def merge(layer: Any) -> Any:
    """Add an adapter to its matrix: ``W + scaling B A``, of the kind that W is.

    `layer` is a `LoRALinear`, or a mapping of names to weights, in which each of these is merged
    and the rest stays. A float matrix is rounded once more. An NF4 matrix is dequantised, added to
    and quantised again, with the same blocks: much of a small adapter is lost in that (chapter 14
    measures it). To keep it, merge into the floats: ``layer.base.dequantize() + layer.delta()``. A
    `TernaryMatrix` holds no such sum: a TypeError; NF4 no sum that is not finite: a ValueError.

    Examples
    --------
    >>> import numpy as np
    >>> merge(LoRALinear(np.float32([[1, 2]]), np.float32([[1, 1]]), np.float32([[3]]), alpha=1))
    array([[4., 5.]], dtype=float32)
    """
    return _moved(layer, +1)


def unmerge(weights: Any, layer: LoRALinear) -> Any:
    """Take an adapter out of merged weights: ``W' - scaling B A``, of the kind that W' is.

    `weights` are what `merge` returned of `layer`, whose own base is not looked at. The result is
    the base but for rounding: a unit in the last place or two for floats, and for NF4 many codes.
    Weights of another kind or shape, and a layer with a magnitude, are a TypeError or ValueError.

    Examples
    --------
    >>> import numpy as np
    >>> layer = LoRALinear(np.float32([[1, 2]]), np.float32([[1, 1]]), np.float32([[3]]), alpha=1)
    >>> unmerge(merge(layer), layer)
    array([[1., 2.]], dtype=float32)
    """
    if not isinstance(layer, LoRALinear):
        raise TypeError(f"layer must be a LoRALinear, got {type(layer).__name__}")
    if layer.magnitude is not None:
        raise ValueError("layer has a magnitude: its base cannot be told from merged weights")
    return _moved(replace(layer, base=weights), -1)


def _moved(layer: Any, sign: int) -> Any:
    """Add the adapter, or take it away."""
    if isinstance(layer, Mapping):
        bare = {name: w.base if isinstance(w, Frozen) else w for name, w in layer.items()}
        layers = {name: w for name, w in bare.items() if isinstance(w, LoRALinear)}
        return bare | {name: _moved(w, sign) for name, w in layers.items()}
    if not isinstance(layer, LoRALinear):
        got = type(layer).__name__
        raise TypeError(f"layer must be a LoRALinear or a mapping that has some, got {got}")
    base, change = layer.base, sign * layer.delta()
    if isinstance(base, TernaryMatrix):
        raise TypeError("layer must have a float or NF4 base: a TernaryMatrix holds no such sum")
    if not isinstance(base, NF4Tensor):
        return (base + change).astype(base.dtype)
    return quantize_nf4(base.dequantize() + change, base.block, base.offset is not None)
