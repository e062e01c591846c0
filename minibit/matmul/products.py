"""The ternary product: activations times a ternary matrix, as fast as the machine allows.

    ternary_matmul_int8   z = q codes^T                      int8 activations, exact int32 sums
    ternary_matmul        s = 127 / max|x| per token,  q = rint(s x),  y = (gamma / s) (q codes^T);
                          with a scale per group, s, q and the product are per group and added up
    head_matmul           y = x w^T, unquantised: the head of a language model

A kernel computes the same numbers as its reference, bit for bit. Which kernel runs is decided when
a `TernaryMatrix` is made (`minibit.kernels.path`), because it also decides how the weights lie in
memory (`minibit.ternary.panels`). One token is a matter of memory, many are one of arithmetic:
there are two kernels per path. Threads are used where they pay, above some 25 microseconds of work.
All functions may be called from several threads at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minibit.base import finite, float32, last_axis, not_finite, one_of, thread_count, unmasked
from minibit.matmul.rotation import RotatedMatrix
from minibit.ternary import ROWS, TernaryMatrix

__all__ = [
    "MAX_INPUTS",
    "kernel_of_many",
    "ternary_matmul",
    "ternary_matmul_int8",
    "ternary_matmul_int8_reference",
    "ternary_matmul_reference",
]

MAX_INPUTS = 2**17
"""Most inputs: one sum of codes left in place, ``64 * 2 * -128`` an input, then reaches -2**31."""

Array = NDArray[Any]
Kernel = Callable[..., bool]
_empty, _ndarray = np.empty, np.ndarray  # looked up once
_INT8, _INT32, _FLOAT32 = np.dtype(np.int8), np.dtype(np.int32), np.dtype(np.float32)


def ternary_matmul_int8_reference(x: Array, matrix: TernaryMatrix) -> NDArray[np.int32]:
    """Multiply int8 codes by ternary codes: the specification of `ternary_matmul_int8`.

    `x` and `matrix` are as there. Sums of float64 are whole numbers far below 2**53 here, so they
    are exact in any order.

    Examples
    --------
    >>> ternary_matmul_int8_reference(np.int8([[2, 3]]), TernaryMatrix.from_codes([[1, -1]]))
    array([[-1]], dtype=int32)
    """
    x = _checked(x, matrix, _INT8)
    w = matrix.codes().astype(np.float64)  # (n_out, n_in)
    z: NDArray[np.int32] = (x.astype(np.float64) @ w.T).astype(np.int32)  # (..., n_out)
    return z


def ternary_matmul_reference(x: Array, matrix: TernaryMatrix) -> NDArray[np.float32]:
    """Quantise activations, multiply exactly, scale, and add groups up: a few lines of NumPy.

    The specification of `ternary_matmul`, with its `x` and `matrix`: all in float32, in this order.

    Examples
    --------
    >>> ternary_matmul_reference(np.float32([[127, 64]]), TernaryMatrix.from_codes([[1, -1]]))
    array([[63.]], dtype=float32)
    """
    x = _checked(x, matrix, _FLOAT32)
    finite("x", x)
    if matrix.group is not None:
        return _grouped_reference(x, matrix.codes(), np.asarray(matrix.scale), matrix.group)
    q, scale = _absmax(x)
    z = ternary_matmul_int8_reference(q, matrix)  # (..., n_out)
    with np.errstate(over="ignore", invalid="ignore"):  # silent, as compiled code is
        y: NDArray[np.float32] = z.astype(np.float32) * (np.float32(matrix.scale) / scale)
    return y


def _absmax(x: Array) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise along the last axis: codes, and scales (..., 1)."""
    absmax = np.abs(x).max(axis=-1, keepdims=True, initial=np.float32(1e-5))  # (..., 1)
    scale = np.float32(1) / absmax * np.float32(127)
    return np.rint(x * scale).astype(np.int8), scale


def _grouped_reference(x: Array, codes: Array, scales: Array, group: int) -> NDArray[np.float32]:
    """Quantise, multiply and scale each group of columns, and add the groups up in their order."""
    y = np.zeros((*x.shape[:-1], len(codes)), np.float32)
    for number in range(scales.shape[1]):
        columns = slice(number * group, (number + 1) * group)
        q, scale = _absmax(x[..., columns])
        z = q.astype(np.float64) @ codes[:, columns].T.astype(np.float64)  # exact: whole numbers
        with np.errstate(over="ignore", invalid="ignore"):
            y += z.astype(np.float32) * (scales[:, number] * (np.float32(1) / scale))
    return y


def ternary_matmul_int8(
    x: Array, matrix: TernaryMatrix, *, threads: int | None = None
) -> NDArray[np.int32]:
    """Multiply int8 activations by ternary codes: ``z = x codes^T``, exact in int32.

    The scale of the matrix is not applied.

    Parameters
    ----------
    x : int8 array, shape (..., n_in)
        Any values, -128 included. Strided and read-only arrays are fine; no rows give no rows.
    matrix : TernaryMatrix, shape (n_out, n_in)
        n_in at most `MAX_INPUTS`.
    threads : int, optional
        At most so many threads; the default is what `minibit.kernels.threads.cpus` says.

    Returns
    -------
    int32 array, shape (..., n_out)

    Raises
    ------
    TypeError, ValueError
        If `x` is not int8 or does not fit the matrix, `matrix` is no `TernaryMatrix` or has more
        than `MAX_INPUTS` inputs, or `threads` is no integer above 0.

    Examples
    --------
    >>> matrix = TernaryMatrix.from_codes([[1, 0, -1], [1, 1, 1]])
    >>> ternary_matmul_int8(np.int8([[2, 3, 5]]), matrix)
    array([[-3, 10]], dtype=int32)
    """
    if (
        (threads is None or threads == 1)
        and type(x) is _ndarray
        and type(matrix) is TernaryMatrix
        and x.shape == matrix._one_token
        and x.dtype is _INT8
        and x.flags.carray
    ):  # a short cut: a 256 x 256 product takes less time than the full checks
        out = _empty(matrix._one_result, _INT32)
        _one(matrix._path)(x, matrix._packed, out, 0, matrix._groups, None)
        return out
    rows = _rows(x, matrix, _INT8)
    out = np.empty((rows.shape[0], matrix.shape[0]), _INT32)
    _multiply(rows, matrix, out, None, threads)
    return out if rows is x else out.reshape(*np.asarray(x).shape[:-1], matrix.shape[0])


def ternary_matmul(
    x: Array,
    matrix: TernaryMatrix | RotatedMatrix,
    *,
    threads: int | None = None,
    activations: Literal["int8", "float32"] = "int8",
) -> NDArray[np.float32]:
    """Multiply float activations by a ternary matrix, with int8 activations inside.

    ``s = (1 / max(max|x|, 1e-5)) * 127`` per token, ``q = rint(x s)`` (half to even),
    ``y = float32(q codes^T) (gamma / s)``; equal to `ternary_matmul_reference` bit for bit.

    Where each group of columns has scales of its own, each group of a token is quantised with an
    ``s_g`` of its own, too, and with ``q_g``, ``codes_g`` and ``gamma_g`` of group g::

        y = sum_g float32(q_g codes_g^T) (gamma_g (1 / s_g))      float32, from the first g on

    The error of rounding a token (or its group) is at most ``max|x| / 254`` per input (BitNet
    b1.58, arXiv 2402.17764; the order of operations is that of the published code).

    Parameters
    ----------
    x : float array, shape (..., n_in)
        Cast to float32; all finite. A token of zeros gives zeros; no rows give no rows.
    matrix, threads
        As for `ternary_matmul_int8`; a `RotatedMatrix` turns `x` first.
    activations : {"int8", "float32"}
        "float32" leaves `x` as it is and multiplies by ``scale * codes`` through NumPy, some rows
        at a time: for models whose activations were never quantised. Sums may differ in the last
        bits between machines; a NaN or an infinity of `x` goes through.

    Returns
    -------
    float32 array, shape (..., n_out)
        Infinite beyond float32's range; NaN where 0 meets a ``gamma / s`` beyond it.

    Raises
    ------
    TypeError, ValueError
        As `ternary_matmul_int8`, but `x` is of floats. The first entry that is NaN or infinite as
        float32 is named. If `activations` is another word.

    Examples
    --------
    >>> matrix = TernaryMatrix.from_codes([[1, 0, -1], [1, 1, 1]], scale=0.5)
    >>> ternary_matmul(np.float32([[127, 64, -1]]), matrix)
    array([[64., 95.]], dtype=float32)
    """
    if (
        (threads is None or threads == 1)
        and type(x) is _ndarray
        and type(matrix) is TernaryMatrix
        and x.shape == matrix._one_token
        and x.dtype is _FLOAT32
        and x.flags.carray
        and activations == "int8"
    ):
        out = _empty(matrix._one_result, _FLOAT32)
        if _one(matrix._path)(x, matrix._packed, out, 0, matrix._groups, matrix._scale):
            return out
    if isinstance(matrix, RotatedMatrix):
        x, matrix = matrix.turned(float32("x", x)), matrix.matrix
    rows = _rows(x, matrix, _FLOAT32)
    out = np.empty((rows.shape[0], matrix.shape[0]), _FLOAT32)
    if one_of("activations", activations, ("int8", "float32")) == "float32":
        _multiply_floats(rows, matrix, out)
    elif not _multiply(rows, matrix, out, matrix._scale, threads):
        raise not_finite("x", _checked(x, matrix, _FLOAT32))
    return out if rows is x else out.reshape(*np.asarray(x).shape[:-1], matrix.shape[0])


def _rows(x: Array, matrix: TernaryMatrix, dtype: np.dtype[Any]) -> Array:
    """Return x as a plain matrix, one token per row; checked, and copied unless it is one."""
    if (
        type(x) is np.ndarray
        and type(matrix) is TernaryMatrix
        and x.dtype is dtype
        and x.ndim == 2
        and x.shape[1] == matrix.shape[1] <= MAX_INPUTS
        and x.flags.carray
    ):
        return x
    x = _checked(x, matrix, dtype)
    return np.array(x, dtype, order="C").reshape(math.prod(x.shape[:-1]), matrix.shape[1])


def _checked(x: Array, matrix: TernaryMatrix, dtype: np.dtype[Any]) -> Array:
    """Return x as an array of `dtype` that fits the matrix, or say why it does not."""
    if not isinstance(matrix, TernaryMatrix):
        raise TypeError(f"matrix must be a TernaryMatrix, got {type(matrix).__name__}")
    x = float32("x", x) if dtype is _FLOAT32 else unmasked("x", x)
    if x.dtype != dtype:
        raise TypeError(f"x must be int8, got {x.dtype}")
    n_in = matrix.shape[1]
    last_axis("x", x, n_in)
    if n_in > MAX_INPUTS:
        raise ValueError(f"matrix must have at most {MAX_INPUTS} inputs, got {n_in}")
    return x


# Which kernel, and how many at once. Each takes (x, weights, out, first, last, gamma), computes
# groups first..last of 64 rows of the matrix, and says if all was finite.


@cache
def _one(path: str) -> Kernel:
    """Import the kernel of a path for one token."""
    if path == "portable":
        from minibit.kernels.portable import product

        kernel: Kernel = product
        return kernel
    from minibit.kernels.product import LANES, tile_product

    return tile_product(1, 4, LANES[path])


@cache
def kernel_of_many(path: str) -> Kernel:
    """Import the kernels of a path for several tokens."""
    if path == "portable":
        return _columns_many
    from minibit.kernels.product import LANES, product

    return _amx_many if path == "amx" else partial(product, LANES[path])


def _amx_many(
    x: Array, panels: Array, out: Array, first: int, last: int, gamma: np.float32 | None
) -> bool:
    """Multiply many tokens with AMX; up to 12, one tile of VNNI, with that: it pads less."""
    from minibit.kernels import amx

    product = amx.product if x.shape[0] > 12 else kernel_of_many("vnni")
    return bool(product(x, panels, out, first, last, gamma))


def _columns_many(
    x: Array, columns: Array, out: Array, first: int, last: int, gamma: np.float32 | None
) -> bool:
    """Multiply many tokens without byte instructions: unpack the rows and leave it to BLAS.

    float32 sums of whole numbers up to 128 n_in, 2**24 for `MAX_INPUTS`, are exact in any order.
    """
    from minibit.kernels.portable import product, widen
    from minibit.kernels.quantise import absmax

    batch, n_in = x.shape
    if batch < 48:
        return bool(product(x, columns, out, first, last, gamma))
    begin, end = ROWS * first, min(ROWS * last, out.shape[1])
    w = np.empty((n_in, end - begin), np.float32)
    widen(columns.reshape(-1, out.shape[1]), begin, end, w)
    if gamma is None:
        out[:, begin:end] = x.astype(np.float32) @ w  # (batch, rows)
        return True
    q, scale = np.empty((batch, n_in), np.float32), np.empty(batch, np.float32)
    if not absmax(x, q, scale):
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        np.multiply(q @ w, (gamma / scale)[:, None], out=out[:, begin:end])
    return True


def _multiply_floats(x: Array, matrix: TernaryMatrix, out: Array) -> None:
    """Fill `out` with the product of floats; about a million weights are unpacked at a time."""
    step = max(1, 2**20 // max(matrix.shape[1], 1) // ROWS) * ROWS
    for begin in range(0, matrix.shape[0], step):
        rows = slice(begin, begin + step)
        np.matmul(x, matrix.rows(rows).T, out=out[:, rows])


def _grouped(
    matrix: TernaryMatrix, x: Array, weights: Array, out: Array, first: int, last: int, gamma: Array
) -> bool:
    """Multiply by a matrix whose groups have scales; `gamma` is 1."""
    scales, group = matrix._scales, matrix.group
    assert scales is not None
    assert group is not None
    if matrix._path == "portable":
        from minibit.kernels.portable import grouped_product

        return bool(grouped_product(x, weights, scales, group, out, first, last))
    from minibit.kernels.grouped import product
    from minibit.kernels.product import LANES

    return product(LANES[matrix._path], x, weights, scales, group, out, first, last)


def _multiply(
    x: Array, matrix: TernaryMatrix, out: Array, gamma: np.float32 | None, threads: int | None
) -> bool:
    """Fill `out` with the product; False if an activation is not finite."""
    (batch, n_in), groups = x.shape, matrix._groups
    if threads is not None and (type(threads) is not int or threads < 1):
        threads = thread_count(threads)  # a plain positive int needs no check
    if matrix._path == "reference" or not out.size or not n_in:
        if gamma is None:
            out[...] = ternary_matmul_int8_reference(x, matrix)
        elif np.isfinite(x).all():
            out[...] = ternary_matmul_reference(x, matrix)
        else:
            return False
        return True
    kernel = (kernel_of_many if batch > 1 else _one)(matrix._path)
    if gamma is not None and matrix.group is not None:
        kernel = partial(_grouped, matrix)
    if threads == 1 or out.size * n_in < _PAYS:
        return kernel(x, matrix._packed, out, 0, groups, gamma)
    from minibit.kernels.threads import cpus, run

    threads = threads or cpus()
    if batch >= 24 * threads:  # cut the tokens into whole tiles of 12, else the rows of the matrix
        step = -(-batch // (12 * threads)) * 12
        cuts = [(slice(a, a + step), 0, groups) for a in range(0, batch, step)]
    else:
        step = -(-groups // threads)
        cuts = [(slice(batch), a, min(a + step, groups)) for a in range(0, groups, step)]
    return run(
        [
            partial(kernel, x[tokens], matrix._packed, out[tokens], first, last, gamma)
            for tokens, first, last in cuts
        ]
    )


_PAYS = 8_000_000  # multiplications: about 25 microseconds of reading weights or of arithmetic
