"""Parts of a weight matrix, decoded from its file in any layout, and how these parts vary together.

A network's matrices share axes: what `down` and `o` write into a channel of the residual stream, a
row of theirs, is what `q`, `k`, `v`, `gate` and `up` read from it, a column of theirs; a unit of
the gated layer is a row of `gate` and `up` and a column of `down`. In a trained network two
channels that are written alike are read alike, so the inner products of columns on one side and of
rows on the other correlate, pair by pair. `agreement` measures that: some tens of standard errors
for the right order of the columns, none for a wrong one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minibit.base import widen
from minibit.checkpoint.diagnosis.content import FLOATS, sampled
from minibit.checkpoint.diagnosis.layouts import Layout, decode
from minibit.checkpoint.diagnosis.sources import Entry

__all__ = ["Role", "View", "agreement", "role_of", "spectral_agreement", "unit_rows"]

Floats = NDArray[np.float32]
Gram = NDArray[np.float32]
ACROSS = 512  # rows, or columns, that a Gram matrix sums over
TURNS = 100
_GGUF = re.compile(r"blk\.(\d{1,5})\.(attn_(?:q|k|v|output)|ffn_(?:gate|up|down))\.weight")
_HF = re.compile(
    r"(?:.*\.)?layers\.(\d{1,5})\.(?:self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj\.weight"
)
_NAMES = {"attn_output": "o", "attn_q": "q", "attn_k": "k", "attn_v": "v"}
_NAMES |= {"ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down"}

Role = tuple[int, str]  # layer, and q, k, v, o, gate, up or down


def role_of(name: str) -> Role | None:
    """Return what a tensor is in its network, by its name in GGUF or Hugging Face files.

    Examples
    --------
    >>> role_of("blk.3.ffn_down.weight"), role_of("model.layers.0.self_attn.q_proj.weight")
    ((3, 'down'), (0, 'q'))
    """
    match = _GGUF.fullmatch(name) or _HF.fullmatch(name)
    return (int(match[1]), _NAMES.get(match[2], match[2])) if match else None


@dataclass(frozen=True)
class View:
    """A tensor read in a layout, or as floats (None)."""

    entry: Entry
    layout: Layout | None

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in); of bytes that hold four rows each, four times their rows."""
        n_out, n_in = self.entry.matrix
        return (4 * n_out if self._stacked else n_out), n_in

    @property
    def _stacked(self) -> bool:
        """Whether the declared rows are those of bytes, as Hugging Face has it."""
        return self.layout is not None and self.layout.rows and self.entry.number is None

    def values(self, rows: NDArray[np.int64], columns: int) -> Floats:
        """Return the first columns of some rows: codes, or floats as they are."""
        n_out, n_in = self.shape
        layout, entry = self.layout, self.entry
        if layout is None:
            form = np.dtype(FLOATS[entry.declared])
            raw = entry.read_rows(rows, n_in * form.itemsize, 0, columns * form.itemsize)
            floats: Floats = np.nan_to_num(widen(raw.view(form)).astype(np.float32))
            return floats
        if layout.rows:
            quarter = -(-n_out // 4)
            far = layout.order.startswith("rows a quarter")
            byte = rows % quarter if far else rows // 4
            slot = rows // quarter if far else layout.places[rows % 4, 1]
            raw = entry.read_rows(byte, n_in, 0, columns)
            twos = raw >> (2 * slot.astype(np.uint8))[:, None] & 3
            return twos.astype(np.float32) - np.float32(1)
        stride, count = n_in // layout.weights * layout.nbytes, columns // layout.weights
        raw = entry.read_rows(rows, stride, 0, count * layout.nbytes)
        codes, _ = decode(layout, raw.reshape(-1, layout.nbytes))
        return codes.reshape(len(rows), columns).astype(np.float32)

    def whole_blocks(self, columns: int) -> int:
        """Return so many columns at most that blocks divide."""
        unit = 1 if self.layout is None or self.layout.rows else self.layout.weights
        return min(columns, self.shape[1]) // unit * unit

    def of_columns(self, count: int) -> Gram:
        """Return the inner products of the first columns, (count, count), each of length 1."""
        return _gram(self.values(sampled(self.shape[0], ACROSS), count).T)

    def of_rows(self, count: int) -> Gram:
        """Return the inner products of the first rows, (count, count)."""
        return _gram(self.values(np.arange(count), self.whole_blocks(ACROSS)))


def _gram(vectors: Floats) -> Gram:
    """Return the cosines of all pairs of rows."""
    unit = unit_rows(vectors)
    gram: Gram = unit @ unit.T
    return gram


def unit_rows(vectors: Floats) -> Floats:
    """Return rows of length 1, those of zeros as they are; however large numbers are."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    vectors = vectors / np.maximum(largest, np.float32(1e-30))
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = vectors / np.maximum(length, np.float32(1e-20))
    return unit


def _standard(gram: Gram) -> Gram:
    """Return the entries off the diagonal, less their mean and over their deviation."""
    pairs = ~np.eye(len(gram), dtype=bool)
    others = gram[pairs].astype(np.float64)
    standard: Gram = (gram - np.float32(others.mean())) / np.float32(max(others.std(), 1e-20))
    np.fill_diagonal(standard, 0)
    return standard


def agreement(one: Gram, other: Gram) -> float:
    """Return the correlation of pairs in two Gram matrices, in its standard errors.

    About a standard normal number where the axes of both have nothing to do with each other, as
    for a wrong order of columns.
    """
    count = len(one)
    if count < 8:
        return 0.0
    total = (_standard(one) * _standard(other)).sum(dtype=np.float64)
    mean = float(total) / (count * (count - 1))
    return mean * float(np.sqrt(count * (count - 1) / 2))


def spectral_agreement(pairs: list[tuple[Gram, Gram]]) -> float:
    """Return the agreement of pairs of Gram matrices up to unknown signs of one set of axes.

    With signs s the products of entries are ``c s s^T`` and noise. The pairs' products are added,
    as a rotation has the same signs in each layer; the largest eigenvalue of the sum rises above
    the edge of noise, ``2 sqrt(n)``, of which this is the multiple: above about 1.5, signs explain
    the products.
    """
    if not pairs or len(pairs[0][0]) < 8:
        return 0.0
    products = np.zeros_like(pairs[0][0])
    for one, other in pairs:
        products += _standard(one) * _standard(other)
    edge = 2 * np.sqrt(len(pairs) * len(products))
    vector = np.cos(np.arange(len(products)) ** 2).astype(
        np.float32
    )  # nothing special; the power method turns it
    for _ in range(TURNS):
        vector = (
            products @ vector + np.float32(1.5 * edge) * vector
        )  # the shift keeps negative ones small
        vector /= np.linalg.norm(vector)
    return float(vector @ products @ vector / edge)
