"""The tensors of a GGUF file as a BitNet model holds them, and back.

    projections   TQ1_0, TQ2_0, I2_S, or floats of one magnitude   `TernaryMatrix`
    embeddings    F32, F16, BF16; others through the gguf package  float32, or bits of bfloat16
    gains         F32, F16, BF16                                   float32

Floats stay mapped where nothing changes; a projection is decoded a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import CheckpointError, first_not_finite, install, to_bfloat16, widen
from minibit.checkpoint.gguf.container import (
    BF16,
    BLOCKS,
    F16,
    F32,
    I2_S,
    TQ1_0,
    TQ2_0,
    GGUFFile,
    Tensor,
)
from minibit.ternary import (
    I2Layout,
    TernaryMatrix,
    from_i2_s,
    from_tq1_0,
    from_tq2_0,
    to_i2_s,
    to_tq1_0,
    to_tq2_0,
)

_FLOATS = {F32: "<f4", F16: "<f2", BF16: "<u2"}
_TQ = {TQ1_0: (from_tq1_0, to_tq1_0), TQ2_0: (from_tq2_0, to_tq2_0)}
_ROWS = 64  # of a matrix, decoded together: what they take stays in the cache


def read_gain(file: GGUFFile, tensor: Tensor) -> NDArray[np.float32]:
    """Read the gains of a norm."""
    gain = np.array(read_floats(file, tensor))
    _check_finite(file, tensor, gain)
    return gain


def read_table(file: GGUFFile, tensor: Tensor) -> NDArray[Any]:
    """Read an embedding: float32, or bfloat16 bits as uint16; mapped, where nothing changes."""
    table: NDArray[Any]
    if tensor.kind == BF16:
        table = file.bytes_of(tensor).view("<u2").reshape(tensor.shape)
    elif tensor.kind == F16:
        table = _brains(file.bytes_of(tensor).view("<f2").reshape(tensor.shape))
    else:
        table = read_floats(file, tensor)
    _check_finite(file, tensor, table)
    if not table.any():
        raise file.error("is all zeros: an upload that went wrong", tensor)
    return table


def _brains(halves: NDArray[np.float16]) -> NDArray[Any]:
    """Turn float16 into bits of bfloat16 if all of it is exact, else into float32."""
    brains = np.empty(halves.shape, np.uint16)
    for rows in _spans(len(halves)):
        floats = halves[rows].astype(np.float32)
        brains[rows] = to_bfloat16(floats)
        if (widen(brains[rows]) != floats).any():
            return halves.astype(np.float32)
    return brains


def _check_finite(file: GGUFFile, tensor: Tensor, numbers: NDArray[Any], row: int = 0) -> None:
    """Raise for the first NaN or infinity of a tensor, or of its rows from `row` on."""
    first = first_not_finite(numbers)
    if first is None:
        return
    flat = row * math.prod(tensor.shape[1:]) + first
    index = ", ".join(str(int(i)) for i in np.unravel_index(flat, tensor.shape))
    number = widen(numbers.reshape(-1)[first : first + 1])[0]
    _, weights, size = BLOCKS[tensor.kind]
    raise file.error(f"holds {number} at {index}", tensor, flat // weights * size)


def read_floats(file: GGUFFile, tensor: Tensor, rows: slice = slice(None)) -> NDArray[np.float32]:
    """Read a tensor, or some rows of it, as float32: as it is mapped, if it is that."""
    name, weights, _ = BLOCKS[tensor.kind]
    if tensor.kind == I2_S or (weights > 1 and len(tensor.shape) == 1):
        raise file.error(f"is of type {name}, which holds no such tensor", tensor)
    raw = file.bytes_of(tensor).reshape(tensor.shape[0], -1)[rows]
    shape = (len(raw), *tensor.shape[1:])
    if tensor.kind in _FLOATS:
        stored = raw.reshape(-1).view(_FLOATS[tensor.kind]).reshape(shape)
        return np.asarray(widen(stored), np.float32)
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        message = f"{file.path}: {tensor.name} of type {name} needs gguf: {install('app')}"
        raise ImportError(message) from error
    floats = np.empty(shape, np.float32)
    for span in _spans(len(raw)):
        floats[span] = dequantize(raw[span], GGMLQuantizationType(tensor.kind))
    return floats


def read_projection(file: GGUFFile, tensor: Tensor, layout: I2Layout) -> TernaryMatrix:
    """Read a projection, a few rows at a time; every block that is not zero has one scale."""
    if tensor.kind not in (*_FLOATS, *_TQ, I2_S):
        name = BLOCKS[tensor.kind][0]
        raise file.error(f"is of type {name}; projections are ternary, or floats", tensor)
    spans = list(_spans(tensor.shape[0]))
    codes, scale, largest = np.empty(tensor.shape, np.int8), np.float32(0), np.float32(0)
    if tensor.kind in _FLOATS:
        for rows in spans:
            floats = read_floats(file, tensor, rows)
            _check_finite(file, tensor, floats, rows.start)
            largest = max(largest, np.float32(np.abs(floats).max()))
    if tensor.kind == I2_S:
        at = tensor.nbytes - 32
        stored = file.bytes_of(tensor)[at : at + 4].view("<f4")[0]
        if not (np.isfinite(stored) and stored >= 0):
            raise file.error(f"has the scale {stored}, must be finite and above 0", tensor, at)
    for rows in spans:
        if tensor.kind in _FLOATS:
            codes[rows], used = _signs(file, tensor, rows, largest), largest
        else:
            codes[rows], used = _decoded(file, tensor, rows, layout)
        if used and scale and used != scale:
            raise _two_scales(file, tensor, rows, scale, used)
        scale = used or scale
    if not scale:
        raise file.error("is all zeros: an upload that went wrong", tensor)
    factor = file.tensors.get(tensor.name.removesuffix(".weight") + ".scale")
    if factor is not None:
        if factor.shape != (1,):
            raise file.error(f"has shape {factor.shape}, must have (1,)", factor)
        scale = scale * read_gain(file, factor)[0]
        if not 0 < scale < np.inf:
            raise file.error(f"makes the scale of {tensor.name} {scale:g}", factor)
    try:
        return TernaryMatrix.from_codes(codes, scale)
    except ValueError as error:
        raise file.error(str(error), tensor) from error


def _spans(count: int) -> Iterator[slice]:
    """Cut rows into spans; each but the last has a multiple of four, as I2_S may need."""
    return (slice(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS))


def _decoded(
    file: GGUFFile, tensor: Tensor, rows: slice, layout: I2Layout
) -> tuple[NDArray[np.int8], np.float32]:
    """Decode some rows of TQ1_0, TQ2_0 or I2_S: their codes, and their one scale (0 if none)."""
    raw = file.bytes_of(tensor)
    n_out, n_in = tensor.shape
    size = n_out * n_in // 4 if tensor.kind == I2_S else tensor.nbytes
    width, count = size // n_out, rows.stop - rows.start  # bytes per row, rows
    part = raw[rows.start * width : rows.stop * width]
    try:
        if tensor.kind == I2_S:
            codes, scale = from_i2_s(np.concatenate([part, raw[size:]]), (count, n_in), layout)
            return codes, scale if codes.any() else np.float32(0)
        codes, scales = _TQ[tensor.kind][0](part.reshape(count, width))
    except ValueError as error:
        if count > 4:  # say in which rows it is
            for start in range(rows.start, rows.stop, 4):
                _decoded(file, tensor, slice(start, min(start + 4, rows.stop)), layout)
        where = f"in rows {rows.start} to {rows.stop - 1}: {error}"
        raise file.error(where, tensor, rows.start * width) from error
    used = scales[codes.reshape(*scales.shape, 256).any(axis=-1)]  # of blocks that are not zero
    if not used.all():
        where = f"in rows {rows.start} to {rows.stop - 1}"
        raise file.error(f"has weights in blocks of scale 0 {where}", tensor, rows.start * width)
    if used.size and (used != used[0]).any():
        raise _two_scales(file, tensor, rows, used[0], used[used != used[0]][0])
    return codes, used[0] if used.size else np.float32(0)


def _two_scales(
    file: GGUFFile, tensor: Tensor, rows: slice, one: np.float32, other: np.float32
) -> CheckpointError:
    """Say that a matrix was quantised block by block, which no BitNet is."""
    where = f"up to row {rows.stop - 1}; a ternary matrix has one scale"
    at = tensor.nbytes // tensor.shape[0] * rows.start
    return file.error(f"has blocks of scale {one:g} and {other:g} {where}", tensor, at)


def _signs(file: GGUFFile, tensor: Tensor, rows: slice, largest: np.float32) -> NDArray[np.int8]:
    """Read codes from floats that are 0 or of one magnitude."""
    floats = read_floats(file, tensor, rows)
    wrong = (floats != 0) & (np.abs(floats) != largest)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        at = (rows.start + row, column)
        raise file.error(
            f"holds latent weights ({floats[row, column]:g} at {at}, {largest:g} elsewhere): "
            "a GGUF file of BitNet has its projections quantised",
            tensor,
            (at[0] * tensor.shape[1] + column) * BLOCKS[tensor.kind][2],
        )
    return np.sign(floats).astype(np.int8)


def encoded(
    codes: NDArray[np.int8], scale: np.float32, kind: int, layout: I2Layout
) -> Iterator[NDArray[np.uint8]]:
    """Encode codes (n_out, n_in) as a type of BLOCKS, some rows at a time.

    Raises ValueError if the type cannot hold the shape or the scale.
    """
    if kind != I2_S:
        encode = partial(_TQ[kind][1], scale=scale)
        yield from (encode(codes[rows]) for rows in _spans(len(codes)))
        return
    for rows in _spans(len(codes)):
        packed = to_i2_s(codes[rows], float(scale), layout)
        yield packed[:-32]
    yield packed[-32:]


def check_encodable(matrix: TernaryMatrix, kind: int, layout: I2Layout) -> None:
    """Raise ValueError for a projection that a type cannot hold with any codes.

    That is: for a shape of no whole blocks, a scale that is not above 0, or one that float16 holds
    as a subnormal only, so less exactly than 2**-11.
    """
    scale, (n_out, n_in) = np.float32(matrix.scale), matrix.shape
    if not scale > 0:
        raise ValueError(f"its scale must be above 0, got {scale:g}")
    half = np.float32(np.float16(scale)) if scale < 65520 else np.float32(np.inf)
    if kind != I2_S and half != scale and not 2**-14 <= half < np.inf:
        raise ValueError(f"its scale {scale:g} is no normal float16; i2_s keeps it as float32")
    last = (n_out - 1) % _ROWS + 1  # rows of the span that may not fit
    list(encoded(np.ones((last, n_in), np.int8), scale, kind, layout))
