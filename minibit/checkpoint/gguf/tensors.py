"""The tensors of a GGUF file as a model holds them, and back.

    projections   `PACKED` types, I2_S, or floats of few magnitudes   `TernaryMatrix`
    embeddings    F32, F16, BF16; others through the gguf package     float32, or bits of bfloat16
                  `PACKED` types                                      `TernaryMatrix`
    gains         F32, F16, BF16                                      float32

A BitNet's projection has one scale; in a Llama or Qwen3 each block may have its own. Floats stay
mapped where nothing changes; a projection is decoded a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

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
from minibit.checkpoint.ternary_floats import NotTernaryError, find_ternary
from minibit.ternary import (
    I2Layout,
    TernaryMatrix,
    from_i2_s,
    from_ptq1_0,
    from_q2_0,
    from_tq1_0,
    from_tq2_0,
    to_i2_s,
    to_ptq1_0,
    to_q2_0,
    to_tq1_0,
    to_tq2_0,
)


class Packed(NamedTuple):
    """A type of codes in blocks, each with a scale: a block's weights, what reads, what writes."""

    weights: int
    unpack: Callable[..., tuple[NDArray[np.int8], NDArray[np.float32]]]
    pack: Callable[..., NDArray[np.uint8]]


PACKED = {
    "TQ1_0": Packed(256, from_tq1_0, to_tq1_0),
    "TQ2_0": Packed(256, from_tq2_0, to_tq2_0),
    "Q2_0": Packed(64, from_q2_0, to_q2_0),
    "PQ2_0": Packed(128, partial(from_q2_0, block=128), partial(to_q2_0, block=128)),
    "PTQ1_0": Packed(128, from_ptq1_0, to_ptq1_0),
}
_FLOATS = {F32: "<f4", F16: "<f2", BF16: "<u2"}
_ROWS = 64  # of a matrix, decoded together: what they take stays in the cache


def read_gain(file: GGUFFile, tensor: Tensor) -> NDArray[np.float32]:
    """Read the gains of a norm."""
    gain = np.array(read_floats(file, tensor))
    _check_finite(file, tensor, gain)
    return gain


def read_table(file: GGUFFile, tensor: Tensor, groups: bool = False) -> Any:
    """Read an embedding: float32, or bfloat16 bits as uint16; mapped, where nothing changes.

    Types of groups stay packed, as a `TernaryMatrix`; ggml's older ones only if told of `groups`.
    """
    if tensor.type in PACKED and (groups or tensor.kind not in (TQ1_0, TQ2_0)):
        return read_projection(file, tensor, groups=True)
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
        try:
            floats[span] = dequantize(raw[span], GGMLQuantizationType(tensor.kind))
        except (NotImplementedError, ValueError) as error:
            raise file.error(f"is of type {name}, which gguf does not decode", tensor) from error
    return floats


def read_projection(
    file: GGUFFile,
    tensor: Tensor,
    layout: I2Layout = "x86",
    *,
    groups: bool = False,
    order: NDArray[np.int64] | None = None,
) -> TernaryMatrix:
    """Read a projection, a few rows at a time: every block that is not zero has one scale.

    With `groups` the blocks of a type may have scales of their own. `order` are the numbers of the
    rows of the tensor in the order of the matrix, by default as they are.
    """
    if tensor.kind in _FLOATS and groups:
        codes, scale = _found(file, tensor)
    else:
        codes, scale = _read_codes(file, tensor, layout, groups)
    if not np.any(scale):
        raise file.error("is all zeros: an upload that went wrong", tensor)
    factor = file.tensors.get(tensor.name.removesuffix(".weight") + ".scale")
    if factor is not None:
        if factor.shape != (1,):
            raise file.error(f"has shape {factor.shape}, must have (1,)", factor)
        scale = scale * read_gain(file, factor)[0]
        if not 0 < np.max(scale) < np.inf:
            raise file.error(f"makes the scale of {tensor.name} {np.max(scale):g}", factor)
    if order is not None:
        codes, scale = codes[order], scale[order] if np.ndim(scale) else scale
    try:
        return TernaryMatrix.from_codes(codes, scale)
    except ValueError as error:
        raise file.error(str(error), tensor) from error


def _read_codes(
    file: GGUFFile, tensor: Tensor, layout: I2Layout, groups: bool
) -> tuple[NDArray[np.int8], Any]:
    """Read codes, and one scale, or that of each block: 0 where it is all zeros."""
    if tensor.kind not in (*_FLOATS, I2_S) and tensor.type not in PACKED:
        name = BLOCKS[tensor.kind][0]
        raise file.error(f"is of type {name}; projections are ternary, or floats", tensor)
    n_out, n_in = tensor.shape
    spans = list(_spans(n_out))
    width = PACKED[tensor.type].weights if tensor.type in PACKED else n_in
    codes, scales = np.empty(tensor.shape, np.int8), np.empty((n_out, n_in // width), np.float32)
    scale, largest = np.float32(0), np.float32(0)
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
            codes[rows], scales[rows] = _signs(file, tensor, rows, largest), largest
        else:
            codes[rows], scales[rows] = _decoded(file, tensor, rows, layout)
        used = scales[rows][scales[rows] != 0]
        if used.size:
            scale = scale or used[0]
            if not groups and (used != scale).any():
                raise _two_scales(file, tensor, rows, scale, used[used != scale][0])
    one = not groups or ((scales == scale) | (scales == 0)).all()
    return codes, scale if one else scales


def _found(file: GGUFFile, tensor: Tensor) -> tuple[NDArray[np.int8], Any]:
    """Find codes and scales in floats."""
    if len(tensor.shape) != 2:
        raise file.error(f"has shape {tensor.shape}, is no matrix", tensor)
    stored = file.bytes_of(tensor).view(_FLOATS[tensor.kind]).reshape(tensor.shape)
    _check_finite(file, tensor, stored)
    try:
        return find_ternary(stored)
    except NotTernaryError as error:
        raise file.error(str(error), tensor, error.place * BLOCKS[tensor.kind][2]) from error


def _spans(count: int) -> Iterator[slice]:
    """Cut rows into spans; each but the last has a multiple of four, as I2_S may need."""
    return (slice(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS))


def _decoded(
    file: GGUFFile, tensor: Tensor, rows: slice, layout: I2Layout
) -> tuple[NDArray[np.int8], Any]:
    """Decode some rows: their codes, and the scales of their blocks, 0 for blocks of zeros."""
    raw = file.bytes_of(tensor)
    n_out, n_in = tensor.shape
    size = n_out * n_in // 4 if tensor.kind == I2_S else tensor.nbytes
    width, count = size // n_out, rows.stop - rows.start  # bytes per row, rows
    part = raw[rows.start * width : rows.stop * width]
    try:
        if tensor.kind == I2_S:
            codes, scale = from_i2_s(np.concatenate([part, raw[size:]]), (count, n_in), layout)
            return codes, scale if codes.any() else np.float32(0)
        codes, scales = PACKED[tensor.type].unpack(part.reshape(count, width))
    except ValueError as error:
        if count > 4:  # say in which rows it is
            for start in range(rows.start, rows.stop, 4):
                _decoded(file, tensor, slice(start, min(start + 4, rows.stop)), layout)
        where = f"in rows {rows.start} to {rows.stop - 1}: {error}"
        raise file.error(where, tensor, rows.start * width) from error
    used = codes.reshape(*scales.shape, -1).any(axis=-1)  # blocks that are not zero
    if not scales[used].all():
        where = f"in rows {rows.start} to {rows.stop - 1}"
        raise file.error(f"has weights in blocks of scale 0 {where}", tensor, rows.start * width)
    return codes, np.where(used, scales, np.float32(0))


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
    codes: NDArray[np.int8], scale: Any, kind: int, layout: I2Layout
) -> Iterator[NDArray[np.uint8]]:
    """Encode codes (n_out, n_in) as a type of BLOCKS, some rows at a time.

    The scale is one number, or of each block of the type. Raises ValueError if the type cannot hold
    the shape or the scale.
    """
    if kind != I2_S:
        pack = PACKED[BLOCKS[kind][0]].pack
        for rows in _spans(len(codes)):
            yield pack(codes[rows], scale[rows] if np.ndim(scale) else scale)
        return
    for rows in _spans(len(codes)):
        packed = to_i2_s(codes[rows], float(scale), layout)
        yield packed[:-32]
    yield packed[-32:]


def block_scales(matrix: TernaryMatrix, kind: int) -> Any:
    """Return a matrix's scales as a type has them: one, or one for each block.

    Raises ValueError if a block of the type is wider than a group of the matrix.
    """
    if matrix.group is None:
        return np.float32(matrix.scale)
    name = BLOCKS[kind][0]
    weights = PACKED[name].weights if name in PACKED else matrix.shape[1]
    if matrix.group % weights:
        blocks = f"a block of {weights} columns" if name in PACKED else "a matrix"
        raise ValueError(f"{blocks} has one scale there, and each {matrix.group} columns here")
    return np.repeat(np.asarray(matrix.scale), matrix.group // weights, axis=1)


def check_encodable(matrix: TernaryMatrix, kind: int, layout: I2Layout) -> None:
    """Raise ValueError for a projection that a type cannot hold with any codes.

    That is: for a shape of no whole blocks, groups narrower than blocks, a scale that is not above
    0 (of a group: below 0), or one that float16 holds as a subnormal only, so less exactly than
    2**-11.
    """
    n_out, n_in = matrix.shape
    scale = block_scales(matrix, kind)
    if not (scale > 0 if matrix.group is None else (scale >= 0).all()):
        raise ValueError(f"its scale must be above 0, got {np.min(scale):g}")
    with np.errstate(over="ignore"):
        half = np.asarray(scale).astype(np.float16).astype(np.float32)
    lost = (half != scale) & ~((half >= 2**-14) & (half < np.inf))
    if kind != I2_S and lost.any():
        first = np.asarray(scale)[lost][0]
        raise ValueError(f"its scale {first:g} is no normal float16; i2_s keeps it as float32")
    last = (n_out - 1) % _ROWS + 1  # rows of the span that may not fit
    part = scale[:last] if np.ndim(scale) else scale
    list(encoded(np.ones((last, n_in), np.int8), part, kind, layout))
