"""In which order the weights of a block stand, whether a rotation is folded in, how heads turn.

No byte says any of this, and a wrong reader decodes every value of a wrong order. What a trained
network says is in `minibit.checkpoint.diagnosis.matrices`: axes that two matrices share. Each
question is answered by scores, and where the best of them does not stand out, by "cannot tell".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from minibit.checkpoint.diagnosis.layouts import orders
from minibit.checkpoint.diagnosis.matrices import (
    Gram,
    Role,
    View,
    agreement,
    spectral_agreement,
    unit_rows,
)

__all__ = ["Answer", "head_order", "order_of", "rotation_of"]

AXES = 512  # channels that an order is judged by
ROTATED = 1024  # and a rotation: its largest block
READERS, WRITERS = ("q", "k", "v", "gate", "up"), ("o", "down")
FITS, STANDS_OUT = 6.0, 4.0  # standard errors
FOLDED, UNFOLDED = 1.6, 1.25  # multiples of the edge of noise, and of what there is unfolded
PAIRED, LEAD, CLEAR_LEAD = 3.0, 0.5, 2.5  # standard errors, of rotary pairs
HEADS, HEAD = 8, 256  # of a layer, and the longest
Views = Mapping[Role, View]
Rows = dict[tuple[Role, int], Gram]


@dataclass
class Answer:
    """What the scores say: `choice` is None where no one of them stands out."""

    choice: str | None = None
    scores: dict[str, float] = field(default_factory=dict)


def _pick(scores: dict[str, float], fits: float, stands_out: float) -> Answer:
    """Choose the best of some scores if it is good enough, and better than all others."""
    ranked = sorted(scores, key=lambda name: -scores[name])
    best = scores[ranked[0]] if ranked else 0.0
    second = scores[ranked[1]] if len(ranked) > 1 else 0.0
    return Answer(ranked[0] if best >= fits and best - second >= stands_out else None, scores)


def order_of(views: Views, family: set[Role]) -> Answer:
    """Find the order of the weights of a family: tensors of one layout, written by one program."""
    first = next(iter(family))
    layout = views[first].layout
    scores: dict[str, float] = {}
    rows: Rows = {}  # inner products of rows are the same for all orders of columns
    for order in orders(layout) if layout else [None]:
        read = dict(views)
        if order is not None and (order.rows or order.name in ("HF", "I2_S")):
            rows = {}
        for role in family:
            if order is not None and not order.divides(views[role].shape):
                break
            read[role] = View(views[role].entry, order)
        else:
            parts = [agreement(*pair) for pair in _shared_axes(read, family, AXES, rows)]
            name = order.order if order else "as it is"
            scores[name] = float(np.sum(parts) / np.sqrt(max(1, len(parts))))
    return _pick(scores, FITS, STANDS_OUT)


def _shared_axes(views: Views, family: set[Role], most: int, rows: Rows) -> list[tuple[Gram, Gram]]:
    """Return for each axis that the family's matrices share: inner products on both its sides.

    What is known of rows is taken from `rows`, and what is not is put there.
    """
    pairs = []
    layouts = [views[role].layout for role in family]
    by_rows = any(layout is not None and layout.rows for layout in layouts)
    readers = [role for role in views if role[1] in READERS]
    writers = [role for role in views if role[1] in WRITERS]
    if family & {*(writers if by_rows else readers)}:  # else every order says the same
        pairs += _pair(views, [r for r in readers if r in family] or readers, writers, most, rows)
    for layer, name in views:
        units = [(layer, "gate"), (layer, "up")]
        if name != "down" or not all(unit in views for unit in units):
            continue
        if family & {*(units if by_rows else [(layer, name)])}:
            pairs += _pair(views, [(layer, name)], units, most, rows, np.multiply)
    return pairs


def _pair(
    views: Views,
    readers: list[Role],
    writers: list[Role],
    most: int,
    rows: Rows,
    join: Callable[[Gram, Gram], Gram] = np.add,
) -> list[tuple[Gram, Gram]]:
    """Join the Gram matrices of columns, and those of rows, of matrices with one axis in common."""
    if not readers or not writers:
        return []
    length = views[readers[0]].shape[1]
    readers = [role for role in readers if views[role].shape[1] == length]
    writers = [role for role in writers if views[role].shape[0] == length]
    count = min(views[role].whole_blocks(most) for role in readers)
    if not writers or count < 8:
        return []
    columns = views[readers[0]].of_columns(count)
    for role in readers[1:]:
        columns += views[role].of_columns(count)
    for role in writers:
        if (role, count) not in rows:
            rows[role, count] = views[role].of_rows(count)
    joined = rows[writers[0], count]
    for role in writers[1:]:
        joined = join(joined, rows[role, count])
    return [(columns, joined)]


def rotation_of(views: Views, family: set[Role]) -> Answer:
    """Find the block of a Walsh-Hadamard rotation that is folded into a family's columns.

    The choice is "none", or the block's length. Signs before the rotation, which only metadata
    know, change the signs of columns alone.
    """
    natural = [agreement(*pair) for pair in _shared_axes(views, family, AXES, {})]
    score = float(np.sum(natural) / np.sqrt(max(1, len(natural))))
    if score >= FITS:
        return Answer("none", {"none": score})
    pairs = _shared_axes(views, family, ROTATED, {})
    lengths = {len(one) for one, _ in pairs}
    widths = [[pair for pair in pairs if len(pair[0]) == length] for length in lengths]
    scores = {"none": max(map(spectral_agreement, widths), default=0.0)}
    for block in (32, 64, 128, 256, 512, 1024):
        turned = [
            spectral_agreement([(_rotated(one, block), other) for one, other in same])
            for same in widths
            if len(same[0][0]) % block == 0
        ]
        if turned:
            scores[str(block)] = max(turned)
    best = max(scores, key=lambda name: scores[name])
    others = max((scores[name] for name in scores if name != best), default=0.0)
    clear = best != "none" and scores[best] >= FOLDED and scores[best] >= UNFOLDED * others
    return Answer(best if clear else None, scores)


def _rotated(gram: Gram, block: int) -> Gram:
    """Return ``H G H`` with the Walsh-Hadamard matrix in blocks along the diagonal of H."""
    for _ in range(2):  # both axes in turn
        gram = _hadamard(gram.T, block)
    return gram


def _hadamard(rows: Gram, block: int) -> Gram:
    """Apply the normalised Sylvester-Walsh-Hadamard matrix to blocks of the last axis."""
    parts = rows.reshape(-1, block)
    width = 1
    while width < block:
        pairs = parts.reshape(len(parts), -1, 2, width)
        parts = np.concatenate(
            [pairs[:, :, :1] + pairs[:, :, 1:], pairs[:, :, :1] - pairs[:, :, 1:]], axis=2
        ).reshape(len(parts), block)
        width *= 2
    turned: Gram = parts.reshape(rows.shape) / np.float32(np.sqrt(block))
    return turned


def head_order(views: Views, heads: int, kv_heads: int) -> Answer:
    """Find whether rotary pairs of q and k lie half a head apart, or side by side.

    The rotation multiplies the row of q at one end of a pair by the row of k at the other, so in a
    trained network these two correlate more than rows of other pairs do. Rows of neighbouring
    frequencies correlate a little as well, which are side by side if pairs lie half a head apart;
    so that choice takes any lead, and the other a clear one.
    """
    squares: list[Gram] = []
    for layer, name in views:
        if name != "q" or (layer, "k") not in views:
            continue
        q, k = views[layer, "q"], views[layer, "k"]
        if q.shape[0] % heads or k.shape[0] % kv_heads or heads % kv_heads:
            continue
        size = q.shape[0] // heads
        if size * kv_heads != k.shape[0] or size % 2 or q.shape[1] != k.shape[1]:
            continue
        if size > HEAD:
            continue
        columns = min(q.whole_blocks(2048), k.whole_blocks(2048))
        for head in range(min(HEADS, kv_heads)):
            one = q.values(head * (heads // kv_heads) * size + np.arange(size), columns)
            other = k.values(head * size + np.arange(size), columns)
            squares.append(_gram_between(one, other) ** 2)
    scores = {}
    if squares and len(squares[0]) >= 8:
        size = len(squares[0])
        index = np.arange(size)
        table = np.stack([square for square in squares if len(square) == size])
        for words, partner in (
            ("half a head apart", (index + size // 2) % size),
            ("side by side", index ^ 1),
        ):
            mask = np.ones((size, size), bool)
            mask[index, index] = mask[index, partner] = False
            apart, rest = table[:, index, partner].reshape(-1), table[:, mask].reshape(-1)
            error = max(float(rest.std()), 1e-20) / np.sqrt(len(apart))
            scores[words] = float((apart.mean() - rest.mean()) / error)
    if not scores:
        return Answer()
    half, side = scores.values()
    choice = None
    if max(half, side) >= PAIRED and not -CLEAR_LEAD < half - side < LEAD:
        choice = max(scores, key=lambda name: scores[name])
    return Answer(choice, scores)


def _gram_between(one: NDArray[np.float32], other: NDArray[np.float32]) -> Gram:
    """Return the cosines of the rows of two matrices."""
    cosines: Gram = unit_rows(one) @ unit_rows(other).T
    return cosines
