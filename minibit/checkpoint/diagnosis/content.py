"""What the bytes of one tensor say by themselves: which block fits, its codes, its scales.

A float16 in the right place of every block is a positive number near all the others; anywhere else
it is made of codes, and one in three is negative. So the share of *good* scales, positive, normal
and within a factor of 16 of their median, tells which frame of a block fits, whatever the type
number says: 1 for the right one, about 1/4 for others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import widen
from minibit.checkpoint.diagnosis.layouts import LAYOUTS, Layout, decode, frames
from minibit.checkpoint.diagnosis.sources import Entry

__all__ = [
    "Content",
    "fits",
    "float_content",
    "packed_content",
    "row_content",
    "sampled",
    "scale_content",
    "whole_content",
]

Codes = NDArray[np.int8]
ROWS, BYTES = 24, 2176  # of a sample: rows, and bytes of each (a multiple of 34 and of 64)
MOST = 1 << 18  # bytes of a tensor in the frame that fits
CLEAR = 0.75  # a frame fits if this share of its scales is good
FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}


@dataclass
class Content:
    """What a sample of a tensor holds, read in one layout."""

    layout: Layout | None
    score: float
    codes: dict[str, int] = field(default_factory=dict)  # of -1, 0, 1, 2 (code 3), illegal
    scales: dict[str, int] = field(default_factory=dict)
    scale_range: tuple[float, float] | None = None
    granularity: str = ""  # of floats: tensor, row, group of 64, ...

    @property
    def count(self) -> int:
        """How many codes were looked at."""
        return sum(self.codes.values())

    def share(self, code: str) -> float:
        """Return the share of a code."""
        return self.codes.get(code, 0) / max(1, self.count)


def _histogram(codes: Codes) -> dict[str, int]:
    """Count the codes of a sample."""
    counts = np.bincount(codes.reshape(-1).view(np.uint8), minlength=256)
    names = {"-1": 255, "0": 0, "1": 1, "2": 2, "illegal": 3}
    return {name: int(counts[value]) for name, value in names.items()}


def sampled(n_out: int, most: int = ROWS) -> NDArray[np.int64]:
    """Return some rows, evenly spread."""
    return np.unique(np.linspace(0, n_out - 1, min(n_out, most)).astype(np.int64))


def fits(entry: Entry) -> list[Layout]:
    """List the layouts that the room of a tensor has bytes for, exactly (but for padding)."""
    room = range(entry.room - entry.unit + 1, entry.room + 1)
    return [layout for layout in LAYOUTS.values() if layout.size(entry.matrix) in room]


def packed_content(entry: Entry, layouts: list[Layout]) -> Content:
    """Read a sample in each frame of some layouts, and return what the best one says."""
    best = Content(None, 0.0)
    for layout in layouts:
        for frame in frames(layout):
            content = _flat(entry, frame) if frame.scale is None else _read(entry, frame)
            if content is not None and content.score > best.score + 1e-9:
                best = content
    return best


def whole_content(entry: Entry, layout: Layout) -> Content:
    """Read all of a small tensor in one frame, and a larger sample of others."""
    if layout.scale is None:
        return _flat(entry, layout)
    stride = entry.matrix[1] // layout.weights * layout.nbytes
    rows = max(ROWS, MOST // stride)
    return _read(entry, layout, rows, min(stride, MOST)) or Content(layout, 0.0)


def _read(entry: Entry, layout: Layout, most_rows: int = ROWS, most: int = BYTES) -> Content | None:
    """Read a sample in one frame."""
    n_out, n_in = entry.matrix
    stride = n_in // layout.weights * layout.nbytes
    length = min(stride, most // layout.nbytes * layout.nbytes)
    if not stride or n_in % layout.weights:
        return None
    rows = sampled(min(n_out, entry.room // stride), most_rows)
    if not rows.size:
        return None
    blocks = entry.read_rows(rows, stride, 0, length).reshape(-1, layout.nbytes)
    codes, scales = decode(layout, blocks)
    content = Content(layout, 0.0, _histogram(codes))
    if scales is None:
        return None
    good = _scales(content, scales, np.equal(np.abs(codes).max(axis=1), 0), 2.0**-14)
    wrong = content.share("illegal") + content.share("2")
    content.score = good * (1 - min(1.0, 4 * wrong))
    return content


def _flat(entry: Entry, layout: Layout) -> Content:
    """Read a sample of I2_S, whose codes are counted alike in each order: two bits, and a tail."""
    n_out, n_in = entry.matrix
    count = n_out * n_in // 4
    length = count if count <= MOST else MOST // 8
    starts = np.unique(np.linspace(0, count - length, 8).astype(np.int64)).tolist()
    sample = np.concatenate([entry.read(start, length) for start in starts])
    codes = (sample[:, None] >> np.array([6, 4, 2, 0], np.uint8) & 3).astype(np.int8) - np.int8(1)
    content = Content(layout, 0.0, _histogram(codes))
    tail = entry.read(count, 4)
    scales = tail.view("<f4") if tail.size == 4 else np.zeros(0, np.float32)
    good = _scales(content, scales, np.zeros(len(scales), bool), 2.0**-126)
    content.score = good * (1 - min(1.0, 4 * content.share("2")))
    return content


def _scales(
    content: Content, scales: NDArray[np.float32], empty: NDArray[np.bool_], tiny: float
) -> float:
    """Count the scales of a sample by kind, and return the share of good ones."""
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(scales)
        zero, negative = scales == 0, finite & np.signbit(scales) & (scales != 0)
        denormal = finite & (scales != 0) & (np.abs(scales) < tiny)
        good = finite & (scales >= max(tiny, 1e-30))
        middle = np.median(scales[good]) if good.any() else 1.0
        near = good & (scales > middle / 16) & (scales < middle * 16)
    content.scales = {
        "good": int(good.sum()),
        "zero": int((zero & ~empty).sum()),
        "zero of zeros": int((zero & empty).sum()),
        "negative": int(negative.sum()),
        "not finite": int((~finite).sum()),
        "denormal": int((denormal & ~negative).sum()),
        "far off": int((good & ~near).sum()),
    }
    if good.any():
        content.scale_range = (float(scales[good].min()), float(scales[good].max()))
    judged = len(scales) - int((zero & empty).sum())
    return float(near.sum() / judged) if judged else 0.0


def row_content(entry: Entry) -> Content:
    """Count the codes of a tensor of bytes whose four codes are of four rows."""
    n_out, n_in = entry.matrix
    bytes_ = entry.read_rows(sampled(n_out), n_in, 0, min(n_in, BYTES))
    codes = _histogram(
        np.stack([bytes_ >> 2 * i & 3 for i in range(4)]).astype(np.int8) - np.int8(1)
    )
    return Content(None, 1 - min(1.0, 4 * codes["2"] / max(1, sum(codes.values()))), codes)


def scale_content(entry: Entry) -> Content:
    """Count the scales of a tensor of floats that holds nothing else."""
    form = np.dtype(FLOATS[entry.declared])
    raw = entry.read(0, min(entry.room, MOST) // form.itemsize * form.itemsize)
    with np.errstate(over="ignore"):
        scales = widen(raw.view(form)).astype(np.float32)
    content = Content(None, 0.0)
    content.score = _scales(content, scales, np.zeros(len(scales), bool), 2.0**-126)
    return content


def float_content(entry: Entry) -> Content | None:
    """Say of floats whether they are ternary times a scale, and how much shares one.

    Returns None if they are neither; the scale is of the whole tensor, of a row, or of a group of
    columns, the coarsest that holds for every row of the sample.
    """
    n_out, n_in = entry.matrix
    size = np.dtype(FLOATS[entry.declared]).itemsize
    columns = min(n_in, 2048)
    raw = entry.read_rows(sampled(n_out), n_in * size, 0, columns * size)
    with np.errstate(over="ignore", invalid="ignore"):
        floats = np.abs(widen(raw.view(FLOATS[entry.declared])).astype(np.float32))
    content = Content(None, 0.0)
    if not np.isfinite(floats).all():
        content.scales = {"not finite": int((~np.isfinite(floats)).sum())}
        return content
    if not floats.any() or len(entry.shape) < 2:
        return None
    groups: dict[str, Any] = {"tensor": floats.reshape(1, -1), "row": floats}
    for width in (256, 128, 64, 32):
        if columns % width == 0:
            groups[f"group of {width}"] = floats.reshape(-1, width)
    for name, parts in groups.items():
        largest = parts.max(axis=1, keepdims=True)
        if ((parts == 0) | (parts == largest)).all():
            zeros = int((floats == 0).sum())
            if name.startswith("group") and zeros == 0:
                return None
            content.granularity, content.score = name, 1.0
            values = widen(raw.view(FLOATS[entry.declared])).astype(np.float32)
            content.codes = _histogram(np.sign(values).astype(np.int8))
            used = largest[largest > 0]
            content.scale_range = (float(used.min()), float(used.max()))
            return content
    return None
