"""Ternary weights as BitNet's own files lay them out: Hugging Face and bitnet.cpp.

    layout   who                       four codes of a byte                 scale
    HF       transformers, bitlinear   rows a quarter of the matrix apart   in another tensor
    I2_S     bitnet.cpp (GGUF)         in three ways under one name         one, at the end

Both store t + 1 in two bits, and neither says in the file how codes are ordered: that is what this
module pins down. (ggml's own ternary types are in `minibit.ternary.ggml`.) Every ``from_*`` refuses
bytes that no ``to_*`` writes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from minibit.base import integer, one_of
from minibit.ternary.packings import (
    Bytes,
    Codes,
    check_bytes,
    check_codes,
    check_scale,
    check_shape,
    check_twos,
)

__all__ = ["from_hf", "from_i2_s", "to_hf", "to_i2_s"]

I2Layout = Literal["x86", "arm", "rows"]


def to_hf(codes: ArrayLike) -> Bytes:
    """Pack codes as Hugging Face's BitNet checkpoints do: quarters of the rows interleaved.

    ``packed[r] = sum_i (t[i * R + r] + 1) << 2i`` with ``R = ceil(n_out / 4)``, i = 0..3: byte row
    r holds rows r, R + r, 2R + r and 3R + r, not four neighbours. `codes` are ``(n_out, n_in)``, as
    `check_codes` has them; the result is uint8 ``(R, n_in)``. Rows that are missing to a multiple
    of four are filled with bits 00, as published, which **decode to -1**: a reader must slice to
    n_out.

    Notes
    -----
    Source: transformers, ``integrations/bitnet.py``, ``pack_weights``. The file holds the scale in
    a tensor of its own, whose meaning (gamma or 1 / gamma) depends on the configuration.

    Examples
    --------
    >>> to_hf([[1], [0], [-1], [0], [1]])
    array([[34],
           [ 5]], dtype=uint8)
    """
    codes = check_codes(codes, ndim=2)
    n_out, n_in = codes.shape
    quarter = -(-n_out // 4)
    digits = np.zeros((4 * quarter, n_in), np.uint8)
    np.add(codes, 1, out=digits[:n_out], casting="unsafe")
    d = digits.reshape(4, quarter, n_in)
    packed: Bytes = d[0] | d[1] << 2 | d[2] << 4 | d[3] << 6  # (quarter, n_in)
    return packed


def from_hf(packed: ArrayLike, n_out: int) -> Codes:
    """Unpack a Hugging Face BitNet checkpoint: the inverse of `to_hf`, int8 ``(n_out, n_in)``.

    The file doesn't tell `n_out`, the number of rows; the model's configuration does. `packed` is
    uint8 ``(ceil(n_out / 4), n_in)``, else a TypeError or ValueError says so; a ValueError names
    the first byte that holds the 2-bit code 3.

    Examples
    --------
    >>> from_hf(np.array([[34], [5]], np.uint8), n_out=5).ravel()
    array([ 1,  0, -1,  0,  1], dtype=int8)
    """
    packed, n_out = np.asarray(packed), integer("n_out", n_out)
    n_in = packed.shape[1] if packed.ndim == 2 else 0
    packed = check_bytes(packed, (-(-n_out // 4), n_in), f"n_out = {n_out} (four rows per byte)")
    check_twos(packed)
    twos = np.stack([packed >> 2 * i & 3 for i in range(4)])  # (4, quarter, n_in)
    codes: Codes = twos.reshape(4 * packed.shape[0], n_in)[:n_out].view(np.int8)  # (n_out, n_in)
    return codes - np.int8(1)


def to_i2_s(codes: ArrayLike, scale: float = 1.0, layout: I2Layout = "x86") -> Bytes:
    """Pack codes as bitnet.cpp's I2_S: two bits per weight and one scale for the whole matrix.

    Three layouts share one GGUF type id, and the file doesn't say which it holds:

    - ``x86``: of each 128 weights e = t + 1 of a row, byte p (0..31) is
      ``e[p] << 6 | e[32 + p] << 4 | e[64 + p] << 2 | e[96 + p]``; most published files;
    - ``arm``: the same with groups of 64 weights in 16 bytes;
    - ``rows``: byte (r, column) is ``e[4r] << 6 | e[4r + 1] << 4 | e[4r + 2] << 2 | e[4r + 3]``,
      the column of four neighbouring rows (newer x86 builds).

    The result is uint8 ``(n_out * n_in / 4 + 32,)``: its tail of 32 bytes starts with the scale as
    little-endian float32; the rest of it is 0 here (bitnet.cpp leaves it as it was).

    Parameters
    ----------
    codes : integer array, shape (n_out, n_in)
        As `check_codes` has it; n_in a multiple of 128 (x86) or 64 (arm), or n_out of 4 (rows):
        bitnet.cpp drops the rest without a word.
    scale : float
        Finite, not negative, and no number that float32 would round to 0.
    layout : {"x86", "arm", "rows"}

    Notes
    -----
    Source: microsoft/BitNet, ``src/ggml-bitnet-mad.cpp``, ``quantize_i2_s``; the ambiguity is
    microsoft/BitNet#585.

    Examples
    --------
    >>> packed = to_i2_s(np.eye(1, 128, dtype=np.int8), 0.5)
    >>> packed.size, packed[:2], packed[32:36].view("<f4")
    (64, array([149,  85], dtype=uint8), array([0.5], dtype=float32))
    """
    codes = check_codes(codes, ndim=2)
    exact = check_scale(scale)
    with np.errstate(over="ignore", under="ignore"):
        one = exact.astype("<f4")
    if one.size != 1 or not (np.isfinite(one) & ((one > 0) | (exact == 0))).all():
        raise ValueError(f"scale must be one finite number >= 0 as float32, got {scale!r}")
    outer, inner = _i2_groups(codes.shape, layout)
    e = (codes + np.int8(1)).view(np.uint8).reshape(outer, 4, inner)
    twos = e[:, 0] << 6 | e[:, 1] << 4 | e[:, 2] << 2 | e[:, 3]  # (outer, inner)
    tail = np.zeros(32, np.uint8)
    tail[:4] = one.reshape(1).view(np.uint8)
    return np.concatenate([twos.reshape(-1), tail])


def from_i2_s(
    packed: ArrayLike, shape: tuple[int, int], layout: I2Layout = "x86"
) -> tuple[Codes, np.float32]:
    """Unpack bitnet.cpp's I2_S, the inverse of `to_i2_s`: int8 codes of `shape`, and the scale.

    The bytes cannot tell which `layout` they have: the wrong one gives legal codes in a wrong
    order. `packed` is uint8 of the length that `shape`, (n_out, n_in), asks for, else a TypeError
    or ValueError says so; a ValueError also refuses the 2-bit code 3, and a scale that is negative
    or not finite.

    Examples
    --------
    >>> codes, scale = from_i2_s(to_i2_s(np.eye(1, 128, dtype=np.int8), 0.5), (1, 128))
    >>> codes[0, :3], float(scale)
    (array([1, 0, 0], dtype=int8), 0.5)
    """
    shape = check_shape(shape)
    outer, inner = _i2_groups(shape, layout)
    size = shape[0] * shape[1] // 4
    packed = check_bytes(packed, (size + 32,), f"shape = {shape} (four codes per byte, tail of 32)")
    check_twos(packed[:size])
    scale = np.ascontiguousarray(packed[size : size + 4]).view("<f4").astype(np.float32)[0]
    if not (np.isfinite(scale) and scale >= 0):
        raise ValueError(f"packed must hold a finite scale >= 0 at byte {size}, got {scale}")
    twos = (
        packed[:size].reshape(outer, 1, inner) >> np.array([[6], [4], [2], [0]], np.uint8) & 3
    )  # (outer, 4, inner)
    return twos.reshape(shape).view(np.int8) - np.int8(1), scale


def _i2_groups(shape: tuple[int, ...], layout: str) -> tuple[int, int]:
    """Split the flat matrix into (outer, 4, inner), the four codes of a byte along the middle."""
    n_out, n_in = shape
    one_of("layout", layout, ("x86", "arm", "rows"))
    inner = {"x86": 32, "arm": 16}.get(layout, n_in)
    axis, length, multiple = ("n_out", n_out, 4) if layout == "rows" else ("n_in", n_in, 4 * inner)
    if length % multiple:
        raise ValueError(
            f"layout {layout!r} needs {axis} a multiple of {multiple}, got shape {shape}"
        )
    return n_out // 4 if layout == "rows" else n_out * n_in // multiple, inner
