"""How a matrix lies in memory while it is multiplied: panels, or columns.

A product reads every weight in order, so the order of the bytes is the order of the loop. Two bits
a code in both layouts, the code plus 1, and padding has weight 0:

    panels    [n_out / 64][n_in / 4][16][4]   64 rows together, four rows per byte
    columns   [n_in / 4][n_out]               4 columns together, all rows side by side

*Panels* are for CPUs with dot products of bytes (``vpdpbusd``, ``vpmaddubsw``, ``sdot``), which
multiply 4 neighbouring bytes by 4 activations and add. Byte ``4 r + c`` of vector ``q`` (of 64
bytes) of panel ``p`` holds column ``4 q + c``: in bits ``2 j`` and ``2 j + 1``, the code of row
``64 p + 16 j + r``. Masked with ``3 << 2 j``, a vector is 16 rows of 4 neighbouring columns: what
one instruction takes, and all four masks meet the same 4 activations. Rows are filled up to 64,
columns to 64 too (a block of AMX), and the first byte lies where a cache line begins.

*Columns* are for any CPU: byte ``r`` of line ``q`` holds row r and columns 4 q .. 4 q + 3, so a
plain loop over rows multiplies by one activation at a time, and compilers turn it into vectors.

Scales of groups of columns lie in the order of the loop, too: those of the 64 rows of a panel side
by side for each group, in float16 where that holds all of them exactly, as it does in every file
whose scales are float16; beside columns, those of all rows side by side, in float32.

    panels    [n_out / 64][groups][64]        columns   [groups][n_out]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit import kernels
from minibit.base import plain
from minibit.ternary.packings import Bytes, Codes, pack2
from minibit.ternary.published import from_hf

__all__ = [
    "PACK",
    "arrange_scales",
    "pack_columns",
    "pack_columns_reference",
    "pack_panels",
    "pack_panels_reference",
    "repack_hf",
    "restore_scales",
    "rows_of",
    "unpack_columns",
    "unpack_panels",
]

ROWS = 64  # in a panel
Floats = NDArray[np.float32]


def _digits(codes: Codes, rows: int, columns: int) -> Bytes:
    """Code plus 1, filled up with weight 0 to multiples of `rows` and `columns`."""
    n_out, n_in = codes.shape
    filled = (-(-n_out // rows) * rows, -(-n_in // columns) * columns)
    digits = np.ones(filled, np.uint8)
    np.add(codes, 1, out=digits[:n_out, :n_in], casting="unsafe")
    return digits


def pack_panels_reference(codes: Codes) -> Bytes:
    """Pack codes into panels, in three lines of NumPy: see `pack_panels`."""
    digits = _digits(codes, ROWS, 64)
    d = digits.reshape(digits.shape[0] // ROWS, 4, 16, digits.shape[1] // 4, 4)  # p j r q c
    packed = d[:, 0] | d[:, 1] << 2 | d[:, 2] << 4 | d[:, 3] << 6  # p r q c
    return np.ascontiguousarray(packed.transpose(0, 2, 1, 3)).reshape(-1)  # p q r c


def pack_columns_reference(codes: Codes) -> Bytes:
    """Pack codes into columns: see `pack_columns`."""
    digits = _digits(codes, 1, 16)
    d = digits.reshape(digits.shape[0], digits.shape[1] // 4, 4)  # r q j
    packed = d[..., 0] | d[..., 1] << 2 | d[..., 2] << 4 | d[..., 3] << 6  # r q
    return np.ascontiguousarray(packed.T).reshape(-1)  # q r


def pack_panels(codes: Codes) -> Bytes:
    """Pack int8 codes ``(n_out, n_in)`` into panels of 64 rows: what byte dot products read.

    ``ceil(n_out / 64) * ceil(n_in / 64) * 1024`` bytes, the first at a multiple of 64 if packed by
    the kernel; which also checks, and raises a ValueError for what is no code. The reference
    trusts.

    Examples
    --------
    >>> panel = pack_panels(np.ones((17, 3), np.int8)).reshape(16, 16, 4)  # vector, row, column
    >>> [f"{byte:08b}" for byte in panel[0, 0]]  # rows 0 and 16 have code 1, rows 32 and 48 none
    ['01011010', '01011010', '01011010', '01010101']
    """
    return _packed("panels", codes, pack_panels_reference)


def pack_columns(codes: Codes) -> Bytes:
    """Pack codes as `pack_panels` does, but into ``ceil(n_in / 16) * 4`` lines of 4 columns.

    A plain loop over the rows reads these.

    Examples
    --------
    >>> [f"{byte:08b}" for byte in pack_columns(np.int8([[1, 0, -1, 0], [0, 0, 0, 1]]))[:2]]
    ['01000110', '10010101']
    """
    return _packed("columns", codes, pack_columns_reference)


PACK: dict[str, Callable[[Codes], Bytes]] = {  # by the names of `minibit.kernels.layout`
    "packed2": pack2,
    "columns": pack_columns,
    "panels": pack_panels,
}


def repack_hf(packed: Bytes, n_out: int, layout: str) -> Bytes:
    """Pack a matrix of Hugging Face's layout as ``PACK[layout]`` packs its codes.

    By way of int8 codes that takes four times the room of both; the kernels expand a few rows at a
    time. It refuses what `from_hf` refuses.

    Examples
    --------
    >>> from minibit.ternary.published import to_hf
    >>> repack_hf(to_hf(np.int8([[1, 0], [0, 0], [0, 0], [0, 1]])), 4, "packed2")
    array([ 86, 149], dtype=uint8)
    """
    fits = packed.ndim == 2 and packed.shape[0] == -(-n_out // 4) and packed.dtype == np.uint8
    if layout != "packed2" and fits and kernels.compiled():
        repacked = _by_kernel(layout, plain(packed), n_out)
        if repacked is not None:
            return repacked
    return PACK[layout](from_hf(packed, n_out))  # `from_hf` names what is wrong


def _packed(layout: str, codes: Codes, reference: Callable[[Codes], Bytes]) -> Bytes:
    """Pack codes by the kernel, if there is one."""
    if not kernels.compiled():
        return reference(codes)
    packed = _by_kernel(layout, plain(codes, np.int8), codes.shape[0])
    if packed is None:
        raise ValueError("codes must be -1, 0 or 1")
    return packed


def _by_kernel(layout: str, source: NDArray[Any], n_out: int) -> Bytes | None:
    """Pack int8 codes, or the bytes of Hugging Face's layout; None if one is no code."""
    from minibit.kernels import pack

    n_in = source.shape[1]
    if layout == "panels":
        packed, by = pack.empty_panels(n_out, n_in), pack.panels
    else:
        packed, by = np.empty(-(-n_in // 16) * 4 * n_out, np.uint8), pack.columns
    return packed if by(source, n_out, packed) else None


def unpack_panels(packed: Bytes, shape: tuple[int, int]) -> Codes:
    """Undo `pack_panels`: int8 of `shape`, (n_out, n_in).

    Examples
    --------
    >>> unpack_panels(pack_panels(np.int8([[1, 0, -1]])), (1, 3))
    array([[ 1,  0, -1]], dtype=int8)
    """
    n_out, n_in = shape
    vectors = packed.reshape(-(-n_out // ROWS), -(-n_in // 64) * 16, 16, 4)  # p q r c
    rows = np.ascontiguousarray(vectors.transpose(0, 2, 1, 3))[:, None]  # p 1 r q c
    digits = rows >> np.array([0, 2, 4, 6], np.uint8)[:, None, None, None] & 3  # p j r q c
    filled = digits.reshape(-(-n_out // ROWS) * ROWS, -(-n_in // 64) * 64)
    return filled[:n_out, :n_in].view(np.int8) - np.int8(1)


def unpack_columns(packed: Bytes, shape: tuple[int, int]) -> Codes:
    """Undo `pack_columns`: int8 of `shape`, (n_out, n_in).

    Examples
    --------
    >>> unpack_columns(pack_columns(np.int8([[1, 0, -1]])), (1, 3))
    array([[ 1,  0, -1]], dtype=int8)
    """
    n_out, n_in = shape
    lines = np.ascontiguousarray(packed.reshape(-(-n_in // 16) * 4, n_out).T)  # r q
    digits = lines[..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3  # r q j
    filled = digits.reshape(n_out, -(-n_in // 16) * 16)
    return filled[:, :n_in].view(np.int8) - np.int8(1)


def arrange_scales(scales: Floats, layout: str) -> NDArray[Any]:
    """Lay float32 scales of groups, (n_out, groups), out as the product of a layout reads them.

    Panels hold the bits of float16 where these are exact, of the scale times 64, 16, 4 or 1 by the
    row's place in its byte: sums of codes left in place count 1, 4, 16 or 64 times. Else float32.

    Examples
    --------
    >>> arrange_scales(np.float32([[0.5, 0.25]]), "panels").view("f2").reshape(2, 64)[:, :2]
    array([[32.,  0.],
           [16.,  0.]], dtype=float16)
    """
    if layout != "panels":
        return np.ascontiguousarray(scales.T if layout == "columns" else scales)
    n_out, groups = scales.shape
    filled = np.zeros((-(-n_out // ROWS) * ROWS, groups), np.float32)
    filled[:n_out] = scales
    turned = filled.reshape(-1, ROWS, groups).transpose(0, 2, 1).reshape(-1)
    with np.errstate(over="ignore"):
        halves = (turned * np.tile(_TIMES, turned.size // ROWS)).astype(np.float16)
    back = halves.astype(np.float32) / np.tile(_TIMES, turned.size // ROWS)
    return _aligned(halves.view(np.uint16) if np.array_equal(back, turned) else turned)


def _aligned(array: NDArray[Any]) -> NDArray[Any]:
    """Copy a flat array to where a cache line begins, so that no load of 64 bytes meets two."""
    room = np.empty(array.nbytes + 63, np.uint8)
    begin = -room.ctypes.data % 64
    copy = room[begin : begin + array.nbytes].view(array.dtype)
    copy[:] = array
    return copy


_TIMES = np.repeat(np.array([64, 16, 4, 1], np.float32), 16)  # a panel's rows


def restore_scales(arranged: NDArray[Any], layout: str, n_out: int, rows: Any = None) -> Floats:
    """Undo `arrange_scales`: float32 of shape (n_out, groups), or of some rows alone.

    Examples
    --------
    >>> restore_scales(arrange_scales(np.float32([[0.5, 0.1]]), "panels"), "panels", 1)
    array([[0.5, 0.1]], dtype=float32)
    """
    rows = np.arange(n_out) if rows is None else rows
    if layout != "panels":
        turned = arranged.T if layout == "columns" else arranged
        return np.ascontiguousarray(turned[rows])
    groups = arranged.size // (-(-n_out // ROWS) * ROWS) if n_out else 0
    panels = arranged.reshape(-(-n_out // ROWS), groups, ROWS)
    picked = panels[rows // ROWS, :, rows % ROWS]  # (rows, groups)
    if arranged.dtype != np.uint16:
        return picked
    return picked.view(np.float16).astype(np.float32) / _TIMES[rows % ROWS, None]


def rows_of(packed: Bytes, layout: str, shape: tuple[int, int], rows: NDArray[np.intp]) -> Codes:
    """Unpack some rows alone, from panels or columns: int8 of shape (rows, n_in).

    Examples
    --------
    >>> rows_of(pack_panels(np.int8([[1, 0], [0, -1]])), "panels", (2, 2), np.array([1, 0]))
    array([[ 0, -1],
           [ 1,  0]], dtype=int8)
    """
    n_out, n_in = shape
    if layout == "columns":
        lines = packed.reshape(-(-n_in // 16) * 4, n_out)[:, rows].T  # r q
        digits = np.ascontiguousarray(lines)[..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    else:
        vectors = packed.reshape(-(-n_out // ROWS), -(-n_in // 64) * 16, 16, 4)  # p q r c
        shifts = (2 * (rows % ROWS // 16)).astype(np.uint8)[:, None, None]
        digits = vectors[rows // ROWS, :, rows % 16] >> shifts & 3  # rows q c
    filled = digits.reshape(len(rows), digits.shape[1] * 4)
    return filled[:, :n_in].view(np.int8) - np.int8(1)
