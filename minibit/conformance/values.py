"""Values of test vectors: arrays travel as bit patterns, so that -0, NaN and 64-bit integers do.

    {"dtype": "float32", "shape": [1, 2], "bits": "3f800000 80000000", "reads": [[1.0, -0.0]]}

`bits` are big-endian hexadecimal words, one an entry, in C order; `reads` is for people and is not
read. A number is an array of shape []. Text, true, false and null are JSON's own; lists and objects
hold further values. Functions and prepared objects are told in `functions.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["array_of", "decode", "encode", "is_array"]

DTYPES = {
    name: np.dtype(name)
    for name in (
        *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
        *("float16", "float32", "float64"),
    )
}


def is_array(value: Any) -> bool:
    """Tell whether an encoded value is an array (or a number)."""
    return isinstance(value, dict) and "dtype" in value


def array_of(value: Mapping[str, Any]) -> NDArray[Any]:
    """Return an encoded array as a NumPy array.

    Raises
    ------
    ValueError
        If the dtype is unknown, a word is not of its length, or words and shape do not agree.
    """
    try:
        dtype, shape, words = DTYPES[value["dtype"]], value["shape"], value["bits"].split()
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"no array: {str(value)[:80]!r} lacks dtype, shape or bits") from None
    if any(len(word) != 2 * dtype.itemsize for word in words):
        raise ValueError(f"bits of {dtype} have {2 * dtype.itemsize} hexadecimal digits a word")
    entries = np.frombuffer(bytes.fromhex("".join(words)), dtype.newbyteorder(">"))
    if entries.size != np.prod(shape, dtype=int):
        raise ValueError(f"bits hold {entries.size} entries, shape {shape} says otherwise")
    return entries.astype(dtype).reshape(shape)


def decode(value: Any, build: Callable[[Mapping[str, Any]], Any] | None = None) -> Any:
    """Return an encoded value as a Python function takes it.

    Arrays become NumPy arrays; integers, float64 numbers and truth values of shape [] Python's own;
    lists become tuples. `build` makes what an object with the key `function`, `steps` or `make`
    tells of.

    Examples
    --------
    >>> decode({"dtype": "int8", "shape": [2], "bits": "01 ff"})
    array([ 1, -1], dtype=int8)
    >>> decode([{"dtype": "uint64", "shape": [], "bits": "00000000000003e8"}, "text", None])
    (1000, 'text', None)
    """
    if is_array(value):
        array = array_of(value)
        if array.ndim == 0:
            python = array.dtype.kind in "biu" or array.dtype == np.float64
            return array.item() if python else array[()]
        return array
    if isinstance(value, list):
        return tuple(decode(item, build) for item in value)
    if isinstance(value, dict):
        if build is not None and value.keys() & {"function", "steps", "make"}:
            return build(value)
        return {key: decode(item, build) for key, item in value.items()}
    return value


def encode(value: Any, reads: bool = False) -> Any:
    """Return an array, a number, text, or a list or dict of such, as JSON that `decode` takes.

    A Python integer is an int64, or a uint64 beyond that; a Python float is a float64.

    Raises
    ------
    TypeError
        If the value is of another kind.

    Examples
    --------
    >>> encode(np.float32([1, -0.0]))
    {'dtype': 'float32', 'shape': [2], 'bits': '3f800000 80000000'}
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict):
        return {str(key): encode(item, reads) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, reads) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and value >= 2**63:
        value = np.uint64(value)
    array = np.asarray(value)
    name = array.dtype.name
    if name not in DTYPES:
        raise TypeError(f"a vector holds no {type(value).__name__} of dtype {name}")
    data, width = array.astype(array.dtype.newbyteorder(">")).tobytes().hex(), array.itemsize * 2
    words = [data[at : at + width] for at in range(0, len(data), width)]
    coded = {"dtype": name, "shape": list(array.shape), "bits": " ".join(words)}
    return {**coded, "reads": _reads(array.tolist())} if reads else coded


def _reads(entry: Any) -> Any:
    """Write what is not finite as text: JSON has no NaN."""
    if isinstance(entry, list):
        return [_reads(item) for item in entry]
    return entry if not isinstance(entry, float) or np.isfinite(entry) else str(entry)
