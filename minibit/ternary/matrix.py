"""A ternary matrix: packed codes and one scale, ``W ~ scale * codes`` with codes in {-1, 0, 1}."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit import kernels
from minibit.base import integer
from minibit.ternary.packings import check_codes, check_scale, check_shape, pack2, unpack2
from minibit.ternary.panels import PACK, ROWS, repack_hf, unpack_columns, unpack_panels

__all__ = ["TernaryMatrix"]


@dataclass(frozen=True, eq=False, slots=True)
class TernaryMatrix:
    """An immutable ternary matrix: packed codes and one scale, ``W = scale * codes``.

    Make one with `from_codes`, `from_packed2` or `from_hf`. It holds a single copy of the weights,
    in the layout that this CPU's product reads (`minibit.ternary.panels`), chosen when the matrix
    is made; `codes` and `packed2` derive what they return. Pickles carry the canonical 2-bit form,
    so they travel between machines. Safe to share between threads: nothing in it changes.

    Attributes
    ----------
    shape : tuple of two ints
        (n_out, n_in).
    scale : float32
        One factor for the whole matrix; finite.

    Examples
    --------
    >>> matrix = TernaryMatrix.from_codes([[1, 0, -1], [0, 0, 1]], scale=0.5)
    >>> matrix, matrix.packed_nbytes
    (TernaryMatrix(shape=(2, 3), scale=0.5), 2)
    >>> matrix.codes()
    array([[ 1,  0, -1],
           [ 0,  0,  1]], dtype=int8)
    """

    _packed: NDArray[np.uint8]  # read-only: panels, columns, or for the reference path `packed2`
    _path: str  # the kernel path that multiplies by it, see `minibit.kernels.path`
    shape: tuple[int, int]
    scale: np.float32
    _one_token: tuple[int, int] | None  # shape of one token if the matrix is small, for the product
    _one_result: tuple[int, int]  # and the shape of its product
    _groups: int  # of 64 rows, the unit in which kernels count rows

    @classmethod
    def from_codes(cls, codes: ArrayLike, scale: float | np.float32 = 1.0) -> TernaryMatrix:
        """Pack a copy of `codes`, a matrix as `check_codes` has it, of any memory order.

        `scale` is one finite number (an array of one entry will do), rounded to float32; else a
        TypeError or ValueError says so.
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
        cls, packed: ArrayLike, shape: tuple[int, int], scale: float | np.float32 = 1.0
    ) -> TernaryMatrix:
        """Read a matrix from the canonical 2-bit form: `pack2` of its codes in C order.

        The bytes are copied; what they hold beyond the last code is dropped. Errors are those of
        `unpack2` and `from_codes`, and a ValueError for a `shape` that is no (n_out, n_in).
        """
        shape = check_shape(shape)
        return cls.from_codes(unpack2(packed, shape[0] * shape[1]).reshape(shape), scale)

    @classmethod
    def from_hf(
        cls, packed: ArrayLike, n_out: int, scale: float | np.float32 = 1.0
    ) -> TernaryMatrix:
        """Read a matrix as `minibit.ternary.from_hf` does, without expanding the whole to codes.

        `scale` and what is refused of it are as for `from_codes`.
        """
        packed, n_out = np.asarray(packed), integer("n_out", n_out)
        path = kernels.path()
        repacked = repack_hf(packed, n_out, kernels.layout(path))
        return cls._of(repacked, path, (n_out, packed.shape[1]), scale)

    @classmethod
    def _of(
        cls, packed: NDArray[np.uint8], path: str, shape: tuple[int, int], scale: float | np.float32
    ) -> TernaryMatrix:
        """Make a matrix of bytes that are packed in the layout of the kernel path."""
        n_out, n_in = shape
        packed.flags.writeable = False
        small = path != "reference" and 0 < n_in <= _SMALL and 0 < n_out <= _SMALL
        one_token = (1, n_in) if small else None
        return cls(packed, path, shape, _one_scale(scale), one_token, (1, n_out), -(-n_out // ROWS))

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

    @property
    def nbytes(self) -> int:
        """Bytes that the weights take in memory as held here, padding included (no scale)."""
        return self._packed.nbytes

    @property
    def packed_nbytes(self) -> int:
        """Bytes that the weights take in a file, as `packed2`: a quarter of a byte each."""
        return -(-self.shape[0] * self.shape[1] // 4)

    def __repr__(self) -> str:
        """Shape and scale; never the weights."""
        return f"{type(self).__name__}(shape={self.shape}, scale={self.scale:g})"

    def __reduce__(self) -> tuple[Callable[..., TernaryMatrix], tuple[object, ...]]:
        """Pickle through the canonical form: a layout made for one CPU never reaches another."""
        return (TernaryMatrix.from_packed2, (self.packed2(), self.shape, self.scale))


_SMALL = 2048  # most inputs and outputs of a matrix whose product takes the short cut


def _one_scale(scale: float | np.float32) -> np.float32:
    """Round a scale to float32; anything but one finite number is refused."""
    array = check_scale(scale)
    if array.size != 1:
        raise ValueError(f"scale must be one number, got shape {array.shape}")
    with np.errstate(over="ignore", under="ignore"):
        one = np.float32(array.reshape(()))
    if not np.isfinite(one):
        raise ValueError(f"scale must be finite as float32, got {array.reshape(())}")
    return one
