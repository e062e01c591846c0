"""A tensor in NF4: packed codes, the absmax of each block, and how to get floats back.

Two codes share a byte, the first in its high half; a lone last code is joined by code 7, zero. The
absmaxes are float32, or in turn 8-bit codes (`minibit.nf4.double_quant`). In blocks of b weights

    bits per weight = 4 + 32 / b                      b = 64: 4.5
                    = 4 + 8 / b + 32 / (256 b)        double quantisation: 4.127
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minibit import kernels
from minibit.nf4.codebooks import NF4_CODE, Floats, check_block
from minibit.nf4.double_quant import NESTED_BLOCK, dequantize_absmax

__all__ = ["NF4Tensor", "dequantize_nf4_reference"]


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class NF4Tensor:
    """Weights in NF4, immutable: ``w = NF4_CODE[code] * absmax`` of each block.

    Make one with `quantize_nf4` or `from_bitsandbytes`. It holds the bytes that a file holds, and
    nothing else: what is derived is computed when it is asked for. Safe to share between threads.
    Arrays that do not fit one another are a TypeError or ValueError that names the attribute.

    Attributes
    ----------
    packed : uint8 array, shape (ceil(n / 2),)
        Codes of the flattened weights, the first of each two in the high half. Read-only, like all
        arrays here.
    shape : tuple of ints
        Of the weights, usually (n_out, n_in).
    block : int
        Weights that share an absmax.
    absmax : float32 array, shape (ceil(n / block),)
        With double quantisation the dequantised one, computed anew each time.
    offset, nested_codes, nested_absmax : float32, uint8 array, float32 array, or each None
        With double quantisation the mean of the absmaxes, their entries of `dynamic_map`, and the
        absmax of each 256 differences.

    Examples
    --------
    >>> tensor = NF4Tensor((3,), 64, np.uint8([0xF7, 0x07]), np.float32([2]))
    >>> tensor.dequantize()
    array([ 2.,  0., -2.], dtype=float32)
    >>> tensor
    NF4Tensor(shape=(3,), block=64, 16.00 bits per parameter)
    """

    shape: tuple[int, ...]
    block: int
    packed: NDArray[np.uint8]
    _absmax: Floats | None = None
    offset: np.float32 | None = None
    nested_codes: NDArray[np.uint8] | None = None
    nested_absmax: Floats | None = None

    def __post_init__(self) -> None:
        """Freeze the arrays, and see that they fit."""
        shape = tuple(int(side) for side in self.shape)
        if not shape or min(shape) < 1:
            raise ValueError(f"shape must have an axis and no side of 0, got {shape}")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "block", check_block(self.block))
        blocks = -(-self.size // self.block)
        nested = (self.offset, self.nested_codes, self.nested_absmax)
        if {part is not None for part in nested} != {self._absmax is None}:
            raise ValueError(
                "either absmax, or offset, nested_codes and nested_absmax must be given"
            )
        self._freeze("packed", np.uint8, -(-self.size // 2))
        if self._absmax is not None:
            self._freeze("_absmax", np.float32, blocks)
        else:
            self._freeze("nested_codes", np.uint8, blocks)
            self._freeze("nested_absmax", np.float32, -(-blocks // NESTED_BLOCK))
            object.__setattr__(self, "offset", np.float32(self.offset))

    def _freeze(self, name: str, dtype: DTypeLike, size: int) -> None:
        """Put a read-only view in the place of an array, or say why it does not fit."""
        array, public = getattr(self, name), name.lstrip("_")
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            got = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"{public} must be an array of {np.dtype(dtype)}, got {got}")
        if array.shape != (size,):
            raise ValueError(
                f"{public} must have shape ({size},) for weights of shape {self.shape} "
                f"in blocks of {self.block}, got {array.shape}"
            )
        view = np.ascontiguousarray(array).view()
        view.flags.writeable = False
        object.__setattr__(self, name, view)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the stored fields alone."""
        parts = (self.offset, self.nested_codes, self.nested_absmax)
        return NF4Tensor, (self.shape, self.block, self.packed, self._absmax, *parts)

    def __repr__(self) -> str:
        """Say the shape, and the bits per weight."""
        bits = f"{self.bits_per_parameter:.2f} bits per parameter"
        return f"NF4Tensor(shape={self.shape}, block={self.block}, {bits})"

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def absmax(self) -> Floats:
        """The factor of each block, float32."""
        if self._absmax is not None:
            return self._absmax
        codes, nested, offset = self.nested_codes, self.nested_absmax, self.offset
        return dequantize_absmax(codes, nested, offset)  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored: codes, absmaxes, and an offset of 4 bytes."""
        arrays = (self.packed, self._absmax, self.nested_codes, self.nested_absmax)
        stored = sum(array.nbytes for array in arrays if array is not None)
        return stored + (0 if self.offset is None else self.offset.nbytes)

    @property
    def bits_per_parameter(self) -> float:
        """Bits stored, over the number of weights."""
        return 8 * self.nbytes / self.size

    def codes(self) -> NDArray[np.uint8]:
        """Return the code of every weight, 0 to 15: uint8, of the weights' shape."""
        pairs = np.stack([self.packed >> 4, self.packed & 15], axis=-1)  # (bytes, 2)
        return pairs.reshape(-1)[: self.size].reshape(self.shape)

    def dequantize(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Return the weights as floats: one float32 product each, then one rounding to `dtype`.

        That is float16, where what is too large becomes infinite, float32 or float64; another is a
        TypeError. Bit for bit what `dequantize_nf4_reference` and, where that is right,
        bitsandbytes return.
        """
        if not kernels.compiled():
            return dequantize_nf4_reference(self, dtype)
        target = _checked_dtype(dtype)
        values = np.empty(self.size, np.float32)
        fill(self, self.absmax, 0, values)
        with np.errstate(over="ignore"):
            return values.reshape(self.shape).astype(target, copy=False)


def dequantize_nf4_reference(tensor: NF4Tensor, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return the weights of an NF4 tensor as floats of a `dtype`: `NF4Tensor.dequantize` in NumPy.

    Examples
    --------
    >>> tensor = NF4Tensor((3,), 64, np.uint8([0xF7, 0x07]), np.float32([2]))
    >>> dequantize_nf4_reference(tensor, np.float16)
    array([ 2.,  0., -2.], dtype=float16)
    """
    target = _checked_dtype(dtype)
    absmax = np.repeat(tensor.absmax, tensor.block)[: tensor.size].reshape(tensor.shape)
    with np.errstate(invalid="ignore", over="ignore"):  # code 0 of an infinite absmax, if let in
        return (NF4_CODE[tensor.codes()] * absmax).astype(target, copy=False)


@cache
def pair_table() -> Floats:
    """Return the two weights of every byte, for kernels without vectors: (256, 2)."""
    byte = np.arange(256)
    return np.stack([NF4_CODE[byte >> 4], NF4_CODE[byte & 15]], axis=-1)


def fill(tensor: NF4Tensor, absmax: Floats, start: int, values: Floats) -> None:
    """Write the weights from flat number `start` on into `values`, by the kernels in force."""
    from minibit.kernels import nf4

    lanes: tuple[int, ...] = nf4.LANES.get(kernels.path(), ())
    tables = NF4_CODE, pair_table()
    nf4.dequantise(tensor.packed, absmax, *tables, tensor.block, start, values, lanes)


def _checked_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the type of floats that `NF4Tensor.dequantize` is to return, if it offers that."""
    target = np.dtype(dtype)
    if target not in (np.float16, np.float32, np.float64):
        raise TypeError(f"dtype must be float16, float32 or float64, got {target}")
    return target
