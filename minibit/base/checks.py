"""Checks of arguments: each returns what the code works with, or names argument, value and rule.

A number that comes as a truth value, a string or a masked array is refused everywhere: each is
usually a mistake, and would pass for something else.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.base.bfloat16 import from_bfloat16

PIECE = 1 << 16  # numbers that are looked at together: they stay in the cache
T = TypeVar("T")


# --- One number, one word


def integer(name: str, value: Any, least: int | None = 0, most: int | None = None) -> int:
    """Return an integer, no float even if whole, as a plain int in ``[least, most]``.

    Examples
    --------
    >>> integer("rank", np.int64(8), 1)
    8
    >>> integer("seed", -1, 0, 2**64 - 1)
    Traceback (most recent call last):
        ...
    ValueError: seed must lie in [0, 2**64), got -1
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        whole = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, got {value!r:.80} of type {type(value).__name__}"
        ) from None
    if (least is not None and whole < least) or (most is not None and whole > most):
        raise ValueError(f"{name} must {bounds(least, most)}, got {whole}")
    return whole


def integers_up_to(*ranges: tuple[str, Any, Any]) -> list[int]:
    """Return integers of ``[0, most]``, each given as ``(name, value, most)``; see `integer`."""
    return [integer(name, value, 0, most) for name, value, most in ranges]


def bounds(least: int | None, most: int | None) -> str:
    """Write an integer's rule: ``be at least 1``, ``lie in [0, 5]``, ``lie in [0, 2**64)``."""
    if most is None:
        return f"be at least {least}"
    for limit, end in ((most, "]"), (most + 1, ")")):
        if limit >= 1 << 16 and limit & (limit - 1) == 0:
            return f"lie in [{least}, 2**{limit.bit_length() - 1}{end}"
    return f"lie in [{least}, {most}]"


def thread_count(value: Any, name: str = "threads") -> int | None:
    """Return a number of threads, at least 1; None, the default everywhere, is let through."""
    return None if value is None else integer(name, value, 1)


def number(name: str, value: Any, interval: str = "(-inf, inf)") -> float:
    """Return a finite real number as a plain float, in an interval as mathematics writes it.

    Examples
    --------
    >>> number("dropout", np.float32(1), "[0, 1)")
    Traceback (most recent call last):
        ...
    ValueError: dropout must lie in [0, 1), got 1.0
    """
    try:
        if isinstance(value, bool | np.bool_ | str | bytes) or np.ndim(value):
            raise TypeError
        real = float(value)
    except TypeError:
        raise TypeError(
            f"{name} must be a real number, got {value!r:.80} of type {type(value).__name__}"
        ) from None
    except OverflowError:  # an integer beyond the largest float
        real = math.inf
    low, high = map(float, interval[1:-1].split(","))
    inside = low < real < high or (real == low and interval[0] == "[")
    inside = inside or (real == high and interval[-1] == "]")
    if not (inside and math.isfinite(real)):
        takes = "be finite" if interval == "(-inf, inf)" else f"lie in {interval}"
        raise ValueError(f"{name} must {takes}, got {real}")
    return real


def one_of(name: str, value: Any, known: Iterable[T]) -> T:
    """Return the known value that equals `value` and is of its type; else list them all."""
    options = list(known)
    for option in options:
        if type(value) is type(option) and value == option:
            return option
    *others, last = map(repr, options)
    listed = f"{', '.join(others)} or {last}" if others else last
    raise ValueError(f"{name} must be {listed}, got {value!r:.80}")


# --- Arrays


def unmasked(name: str, values: ArrayLike) -> NDArray[Any]:
    """Return values as an array; a masked one is refused, as its mask would be lost."""
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: fill it with .filled first")
    return np.asarray(values)


def floats(
    name: str, values: ArrayLike, *, axis: bool = False, filled: bool = False
) -> NDArray[Any]:
    """Return an array of floats as it is; one of bfloat16 (of `ml_dtypes`) as float32.

    With `axis` it must have one at least, and with `filled` an entry.
    """
    array = unmasked(name, values)
    if array.dtype.name == "bfloat16":
        return from_bfloat16(array.view(np.uint16))
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be an array of floats, got {array.dtype}")
    if axis and not array.ndim:
        raise ValueError(f"{name} must have at least one axis, got a single number")
    if filled and not array.size:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}")
    return array


def float32(
    name: str, values: ArrayLike, *, axis: bool = False, filled: bool = False
) -> NDArray[np.float32]:
    """Return an array of `floats` as float32; entries beyond it become infinite."""
    with np.errstate(over="ignore"):
        return floats(name, values, axis=axis, filled=filled).astype(np.float32, copy=False)


def integer_array(
    name: str, values: ArrayLike, least: int, most: int, ndim: int | None = None
) -> NDArray[np.int64]:
    """Return integers as int64, each in ``[least, most]``; an empty array may be of any type."""
    array = unmasked(name, values)
    if ndim is not None and array.ndim != ndim:
        axes = "1 axis" if ndim == 1 else f"{ndim} axes"
        raise ValueError(f"{name} must have {axes}, got shape {array.shape}")
    if not array.size:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    if array.min() < least or array.max() > most:
        refuse_entries(name, array, (array < least) | (array > most), bounds(least, most))
    return array.astype(np.int64, copy=False)


def real_numbers(name: str, array: Any, shape: Sequence[int | str]) -> None:
    """Raise an error unless an array, or a dual, is real and of a shape; a word fits any length.

    Examples
    --------
    >>> real_numbers("x", np.ones(3), ("directions", 3))
    Traceback (most recent call last):
        ...
    ValueError: x must have shape (directions, 3), got (3,)
    """
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got {array.dtype}")
    pairs = zip(shape, array.shape, strict=False)
    if len(shape) != array.ndim or any(n != m for n, m in pairs if not isinstance(n, str)):
        takes = str(tuple(shape)).replace("'", "")
        raise ValueError(f"{name} must have shape {takes}, got {tuple(array.shape)}")


def refuse_entries(name: str, array: NDArray[Any], wrong: NDArray[np.bool_], takes: str) -> None:
    """Raise a ValueError for the first entry that is wrong, if there is one, with its index."""
    if wrong.any():
        raise _wrong_entry(name, array, int(np.argmax(wrong)), takes)


def _wrong_entry(
    name: str, array: NDArray[Any], flat: int, takes: str, form: str = "{}"
) -> ValueError:
    """Return the error that names an entry by its index, or by its tuple of indices."""
    first = tuple(map(int, np.unravel_index(flat, array.shape)))
    at = f" at {first[0] if len(first) == 1 else first}" if first else ""
    return ValueError(f"{name} must {takes}, got {form.format(array[first])}{at}")


def first_not_finite(array: NDArray[Any]) -> int | None:
    """Return the flat index of the first NaN or infinity, or None; uint16 is bits of bfloat16."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, PIECE):
        part = flat[start : start + PIECE]
        bits = part.dtype == np.uint16
        wrong = part & np.uint16(0x7F80) == 0x7F80 if bits else ~np.isfinite(part)
        if wrong.any():
            return start + int(np.argmax(wrong))
    return None


def not_finite(name: str, array: NDArray[Any]) -> ValueError:
    """Return the error that names the first NaN or infinity of an array that has one."""
    form = "the bits {:#06x}" if array.dtype == np.uint16 else "{}"
    return _wrong_entry(name, array, first_not_finite(array) or 0, "be finite", form)


def finite(name: str, array: NDArray[Any]) -> None:
    """Raise a ValueError for the first NaN or infinity; uint16 is bits of bfloat16."""
    if first_not_finite(array) is not None:
        raise not_finite(name, array)


def last_axis(name: str, array: Any, length: int, symbol: str = "n_in") -> None:
    """Raise a ValueError unless the last axis of an array, or a dual, has this length."""
    if array.ndim == 0 or array.shape[-1] != length:
        takes = f"(..., {symbol}) with {symbol} = {length}"
        raise ValueError(f"{name} must have shape {takes}, got {tuple(array.shape)}")


def plain(array: NDArray[Any], dtype: Any = None) -> NDArray[Any]:
    """Return the one kind of array that kernels are compiled for, copied only if it is another.

    C order, aligned, writable, bytes in this machine's order; of `dtype`, where that is given.
    """
    if (dtype is None or array.dtype == dtype) and array.flags.carray and array.dtype.isnative:
        return array
    return np.array(array, dtype or array.dtype.newbyteorder("="), order="C")
