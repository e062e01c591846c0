"""A ternary matrix: packed codes, and one scale or one per group of columns.

W = scale * codes        W[o, k] = scale[o, k // group] * codes[o, k]        codes in {-1, 0, 1}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit import kernels
from minibit.base import integer, refuse_entries
from minibit.ternary.packings import check_codes, check_scale, check_shape, pack2, unpack2
from minibit.ternary.panels import (
    PACK,
    ROWS,
    arrange_scales,
    repack_hf,
    restore_scales,
    rows_of,
    unpack_columns,
    unpack_panels,
)

__all__ = ["TernaryMatrix"]

GROUPS = (32, 64, 128, 256)
"""How many columns of a row may share a scale."""


@dataclass(frozen=True, eq=False)
class TernaryMatrix:
    """An immutable ternary matrix: packed codes, and one scale or one per group of columns.

    ``W = scale * codes``, or ``W[o, k] = scale[o, k // group] * codes[o, k]``. Make one with
    `from_codes`, `from_packed2` or `from_hf`. It holds a single copy of the weights, in the layout
    that this CPU's product reads (`minibit.ternary.panels`), chosen when the matrix is made;
    `codes`, `scale`, `rows` and `packed2` derive what they return. Pickles carry the canonical
    2-bit form, so they travel between machines. Safe to share between threads: nothing in it
    changes.

    Attributes
    ----------
    shape : tuple of two ints
        (n_out, n_in).
    scale : float32, or float32 array, shape (n_out, n_in / group)
        One factor for the whole matrix, or those of its groups; finite.
    group : int or None
        How many columns share a scale: 32, 64, 128 or 256; None if all do.

    Examples
    --------
    >>> matrix = TernaryMatrix.from_codes([[1, 0, -1], [0, 0, 1]], scale=0.5)
    >>> matrix, matrix.packed_nbytes
    (TernaryMatrix(shape=(2, 3), scale=0.5), 2)
    >>> matrix.codes()
    array([[ 1,  0, -1],
           [ 0,  0,  1]], dtype=int8)
    >>> TernaryMatrix.from_codes(np.ones((2, 64), np.int8), [[1, 2], [3, 4]])
    TernaryMatrix(shape=(2, 64), group=32)
    """

    _packed: NDArray[np.uint8]  # read-only: panels, columns, or for the reference path `packed2`
    _path: str  # the kernel path that multiplies by it, see `minibit.kernels.path`
    shape: tuple[int, int]
    group: int | None
    _scale: np.float32  # of the whole matrix; 1 if groups have their own
    _scales: NDArray[np.float32] | NDArray[np.uint16] | None  # as `arrange_scales` lays them out
    _one_token: tuple[int, int] | None  # shape of one token if the matrix is small, for the product
    _one_result: tuple[int, int]  # and the shape of its product
    _groups: int  # of 64 rows, the unit in which kernels count rows

    @classmethod
    def from_codes(cls, codes: ArrayLike, scale: ArrayLike = 1.0) -> TernaryMatrix:
        """Pack a copy of `codes`, a matrix as `check_codes` has it, of any memory order.

        `scale` is one finite number (an array of one entry will do), or an array ``(n_out,
        groups)`` whose groups of ``n_in / groups`` columns are 32, 64, 128 or 256 wide; rounded to
        float32. Else a TypeError or ValueError says so.
        """
        path = kernels.path()
        pack = PACK[kernels.layout(path)]
        if type(codes) is np.ndarray and codes.dtype == np.int8 and codes.ndim == 2:
            try:
                packed = pack(codes)  # compiled packers check as they go
            except ValueError:
                check_codes(codes)
                raise
        else:
            codes = check_codes(codes, ndim=2)
            packed = pack(codes)
        n_out, n_in = codes.shape
        return cls._of(packed, path, (n_out, n_in), scale)

    @classmethod
    def from_packed2(
        cls, packed: ArrayLike, shape: tuple[int, int], scale: ArrayLike = 1.0
    ) -> TernaryMatrix:
        """Read a matrix from the canonical 2-bit form: `pack2` of its codes in C order.

        The bytes are copied; what they hold beyond the last code is dropped. Errors are those of
        `unpack2` and `from_codes`, and a ValueError for a `shape` that is no (n_out, n_in).
        """
        shape = check_shape(shape)
        return cls.from_codes(unpack2(packed, shape[0] * shape[1]).reshape(shape), scale)

    @classmethod
    def from_hf(cls, packed: ArrayLike, n_out: int, scale: ArrayLike = 1.0) -> TernaryMatrix:
        """Read a matrix as `minibit.ternary.from_hf` does, without expanding the whole to codes.

        `scale` and what is refused of it are as for `from_codes`.
        """
        packed, n_out = np.asarray(packed), integer("n_out", n_out)
        path = kernels.path()
        repacked = repack_hf(packed, n_out, kernels.layout(path))
        return cls._of(repacked, path, (n_out, packed.shape[1]), scale)

    @classmethod
    def _of(
        cls, packed: NDArray[np.uint8], path: str, shape: tuple[int, int], scale: ArrayLike
    ) -> TernaryMatrix:
        """Make a matrix of bytes that are packed in the layout of the kernel path."""
        n_out, n_in = shape
        packed.flags.writeable = False
        one, scales, group = _scales_of(scale, shape)
        if scales is not None:
            scales = arrange_scales(scales, kernels.layout(path))
            scales.flags.writeable = False
        small = path != "reference" and 0 < n_in <= _SMALL and 0 < n_out <= _SMALL
        one_token = (1, n_in) if small and group is None else None
        panels = -(-n_out // ROWS)
        return cls(packed, path, shape, group, one, scales, one_token, (1, n_out), panels)

    @property
    def scale(self) -> np.float32 | NDArray[np.float32]:
        """The scale of the matrix, or those of its groups, a fresh array (n_out, groups)."""
        if self._scales is None:
            return self._scale
        return restore_scales(self._scales, kernels.layout(self._path), self.shape[0])

    def codes(self) -> NDArray[np.int8]:
        """Codes as a fresh int8 array, shape (n_out, n_in)."""
        match kernels.layout(self._path):
            case "panels":
                return unpack_panels(self._packed, self.shape)
            case "columns":
                return unpack_columns(self._packed, self.shape)
        return unpack2(self._packed, self.shape[0] * self.shape[1]).reshape(self.shape)

    def packed2(self) -> NDArray[np.uint8]:
        """Canonical 2-bit form for files, `pack2` of the codes: uint8, read-only."""
        if self._path == "reference":
            return self._packed.view()
        packed = pack2(self.codes())
        packed.flags.writeable = False
        return packed.view()

    def rows(self, indices: Any = slice(None)) -> NDArray[np.float32]:
        """Values of some rows, ``scale * codes``, as fresh float32 of shape (rows, n_in).

        `indices` are row numbers, one axis, negative ones from the end, or a slice; an IndexError
        names what lies outside. Only these rows are unpacked: a table of embeddings may stay as it
        is.
        """
        (n_out, n_in), layout = self.shape, kernels.layout(self._path)
        numbers = np.arange(n_out)[indices]
        if numbers.ndim != 1:
            raise IndexError(f"indices must have one axis, got shape {numbers.shape}")
        codes = (
            self.codes()[numbers]
            if layout == "packed2"
            else rows_of(self._packed, layout, self.shape, numbers)
        )
        if self._scales is None:
            return codes * self._scale
        scales = restore_scales(self._scales, layout, n_out, numbers)
        groups = codes.reshape(len(numbers), scales.shape[1], self.group or n_in)
        with np.errstate(over="ignore", under="ignore"):
            values: NDArray[np.float32] = (groups * scales[..., None]).reshape(len(numbers), n_in)
        return values

    @property
    def nbytes(self) -> int:
        """Bytes that codes and scales of groups take in memory as held here, padding included."""
        return self._packed.nbytes + (0 if self._scales is None else self._scales.nbytes)

    @property
    def packed_nbytes(self) -> int:
        """Bytes that the weights take in a file, as `packed2`: a quarter of a byte each."""
        return -(-self.shape[0] * self.shape[1] // 4)

    def __repr__(self) -> str:
        """Shape, and scale or size of groups; never the weights."""
        scale = f"scale={self._scale:g}" if self.group is None else f"group={self.group}"
        return f"{type(self).__name__}(shape={self.shape}, {scale})"

    def __reduce__(self) -> tuple[Callable[..., TernaryMatrix], tuple[object, ...]]:
        """Pickle through the canonical form: a layout made for one CPU never reaches another."""
        return (TernaryMatrix.from_packed2, (self.packed2(), self.shape, self.scale))


_SMALL = 2048  # most inputs and outputs of a matrix whose product takes the short cut


def _scales_of(
    scale: ArrayLike, shape: tuple[int, int]
) -> tuple[np.float32, NDArray[np.float32] | None, int | None]:
    """Round scales to float32: that of the matrix (else 1), those of groups, a group's columns."""
    array = check_scale(scale)
    with np.errstate(over="ignore", under="ignore"):
        rounded = array.astype(np.float32)
    refuse_entries("scale", array, ~np.isfinite(rounded), "be finite as float32")
    if array.size == 1:
        return np.float32(rounded.reshape(())), None, None
    n_out, n_in = shape
    widths = {n_in // group: group for group in GROUPS if n_in % group == 0}  # by their number
    if array.ndim != 2 or len(array) != n_out or array.shape[1] not in widths:
        groups = ", ".join(f"({n_out}, {number})" for number in widths)
        takes = f"be one number or have shape {groups} for groups of {', '.join(map(str, GROUPS))}"
        if not widths:
            takes = f"be one number, for {n_in} columns are no whole groups of 32"
        raise ValueError(f"scale must {takes}, got shape {array.shape}")
    return np.float32(1), rounded, widths[array.shape[1]]
