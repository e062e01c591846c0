"""Sums in 16 bits, and what they decide: which perturbations a step keeps, or who has to be asked.

A worker that has a part of the batch answers its sums of all perturbations as multiples of

    spacing = largest / 32766,   code = rint(sum / spacing), but 0 for a sum of exactly 0 alone

which it says, too: one spacing for the alignments, and one for the roots of their squares' sums,
which differ less than these do. So the client knows each sum over the
batch within bounds, and hence each score. A perturbation is kept for certain if fewer than half of
the scores can lie above its own, and left out for certain if half of them do lie above. What is
between, or has no certain sign, is *open*: the client asks for its exact sums, in which it adds the
chunks of the batch as a serial run does. So codes are those of a serial run always.

The bounds hold to the bit, for rounding is monotone: sums of float64 are bounded with a slack of
2**-20 spacings (squares also of 2**-30 of themselves), a thousand times what adding in another
order may change; from there on float32 and the score are computed from both bounds by the same
operations as a serial run's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibit.noise_step import ChunkSums, added, keep_terns, t_score

__all__ = ["Bounds", "Known", "pack_exact", "pack_rounded", "read_exact", "read_rounded"]

MOST = 32766  # the largest code
NOT_FINITE = -32768
HUGE = 1e150  # and more count as not finite
SLACK = 2.0**-20  # of a spacing
HALF = 0.5 + SLACK
_SPACING = struct.Struct("<d")
Floats = NDArray[np.float64]
Score = Literal["absolute", "t"]


class Bounds(NamedTuple):
    """What sums of one kind lie between, (perturbations,)."""

    low: Floats
    high: Floats
    spacing: float  # of the alignments; squares have no signs, so none that cancel: 0


def kinds(sums: ChunkSums, score: Score) -> list[Floats]:
    """Return the arrays that a score needs: alignments, and their squares for the t score."""
    return [sums.alignments, sums.squares][: 2 if score == "t" else 1]


def pack_rounded(sums: ChunkSums, score: Score) -> bytes:
    """Return a worker's sums over its chunks, rounded to 16 bits."""
    body = []
    for kind, chunks in enumerate(kinds(sums, score)):  # (chunks, perturbations)
        with np.errstate(invalid="ignore", over="ignore"):
            total = added(chunks)
        if kind:
            chunks, total = np.sqrt(chunks), np.sqrt(total)
        sizes = np.abs([*chunks, total])  # (chunks + 1, perturbations)
        finite = (sizes < HUGE).all(axis=0)
        spacing = max(sizes[:, finite].max(initial=0) / MOST, np.finfo(float).tiny)
        codes = np.full(len(total), NOT_FINITE, "<i2")
        rounded = np.rint(total[finite] / spacing)
        codes[finite] = np.where(rounded == 0, np.sign(total[finite]), rounded)
        body += [_SPACING.pack(spacing), codes.tobytes()]
    return b"".join(body)


def read_rounded(body: bytes, count: int, score: Score) -> list[Bounds]:
    """Read `pack_rounded`; a ValueError if the body is none of so many perturbations."""
    size = _SPACING.size + 2 * count
    number = 2 if score == "t" else 1
    if len(body) != number * size:
        raise ValueError(f"{count} rounded sums take {number * size} bytes, got {len(body)}")
    bounds = []
    for at in range(0, len(body), size):
        (spacing,) = _SPACING.unpack_from(body, at)
        codes = np.frombuffer(body, "<i2", count, at + _SPACING.size).astype(np.float64)
        if not 0 < spacing < HUGE or (at and ((codes < 0) & (codes != NOT_FINITE)).any()):
            raise ValueError(
                f"rounded sums have a positive spacing and squares, got spacing {spacing}"
            )
        size_of = np.abs(codes)
        inner = np.where(size_of > 1, size_of - HALF, 0)  # towards 0
        outer = np.where(size_of > 0, size_of + HALF, 0)
        low = np.where(codes > 0, inner, -outer) * spacing
        high = np.where(codes > 0, outer, -inner) * spacing
        unknown = codes == NOT_FINITE
        if at:
            low, high, spacing = low**2 * (1 - 2.0**-30), high**2 * (1 + 2.0**-30), 0.0
        low, high = np.where(unknown, -np.inf, low), np.where(unknown, np.inf, high)
        bounds.append(Bounds(low, high, spacing))
    return bounds


def pack_exact(sums: ChunkSums, score: Score, numbers: Sequence[int]) -> bytes:
    """Return the sums of some perturbations, over each chunk, in float64."""
    return b"".join(chunks[:, [*numbers]].astype("<f8").tobytes() for chunks in kinds(sums, score))


def read_exact(body: bytes, chunks: int, count: int, score: Score) -> list[Floats]:
    """Read `pack_exact`: arrays (chunks, count); a ValueError if the body is not as long."""
    number = 2 if score == "t" else 1
    if len(body) != 8 * number * chunks * count:
        raise ValueError(
            f"{count} exact sums take {8 * number * chunks * count} bytes, got {len(body)}"
        )
    return [*np.frombuffer(body, "<f8").reshape(number, chunks, count).astype(np.float64)]


class Known:
    """What the client knows of a step's perturbations: bounds of their sums, or exact ones.

    Parameters
    ----------
    ranges : sequence of ranges of the perturbations, each a sequence of groups of chunks
        Of each group what `read_rounded` returns.
    score : "absolute" or "t"
    """

    def __init__(self, ranges: Sequence[Sequence[Sequence[Bounds]]], score: Score) -> None:
        self.score = score
        # Of alignments, and of squares for the t score; (perturbations,), as float32 rounds them.
        self.low: list[Floats] = []
        self.high: list[Floats] = []
        for kind in range(len(ranges[0][0])):
            pairs = [_between([group[kind] for group in groups]) for groups in ranges]
            low, high = (_float32(np.concatenate(each)) for each in zip(*pairs, strict=True))
            self.low.append(np.maximum(low, 0) if kind else low)
            self.high.append(high)
        self.exact = np.zeros(len(self.low[0]), np.bool_)  # (perturbations,)

    def learn(self, numbers: NDArray[np.int64], sums: Sequence[Floats]) -> None:
        """Take up exact sums (chunks, numbers) over all chunks of the batch, in order."""
        for low, high, chunks in zip(self.low, self.high, sums, strict=True):
            with np.errstate(invalid="ignore", over="ignore"):
                low[numbers] = high[numbers] = _float32(added(chunks))
        self.exact[numbers] = True

    def open(self) -> NDArray[np.int64]:
        """Return the perturbations whose exact sums are needed; none if the codes are certain."""
        kept, dropped, signs = self._certain()
        undecided = ~(dropped | (kept & (signs != 2)) | (signs == 0))
        if (undecided & ~self.exact).any():
            undecided &= ~self.exact
        elif undecided.any():
            undecided = ~self.exact  # two scores within a rounding of each other, say
        return np.flatnonzero(undecided)

    def codes(self) -> NDArray[np.int8]:
        """Return the terns of the step, once nothing is open."""
        if self.exact.all():
            squares = self.low[1] if self.score == "t" else np.ones(len(self.exact))
            return keep_terns(self.low[0], squares, self.score)
        kept, _, signs = self._certain()
        return np.where(kept & (signs != 2), signs, 0).astype(np.int8)

    def _certain(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int8]]:
        """Say what is kept for certain, what is not, and the signs; 2 for one that is not known."""
        low, high = self._scores()
        count = len(low)
        # The median of an even number is a mean, which rounds to a score only next to it: 2**-50.
        above = count - np.searchsorted(np.sort(low), high * (1 + 2.0**-50), "right")
        may_be_above = count - np.searchsorted(np.sort(high), low, "right") - (high > low)
        kept, dropped = may_be_above <= (count - 1) // 2, above >= (count + 1) // 2
        signs = np.where(self.low[0] > 0, 1, np.where(self.high[0] < 0, -1, 2))
        signs[(self.low[0] == 0) & (self.high[0] == 0)] = 0
        signs[self.exact & ~np.isfinite(self.low[0])] = 0
        return kept, dropped, signs.astype(np.int8)

    def _scores(self) -> tuple[Floats, Floats]:
        """Return what each score lies between, as `keep_terns` computes it from float32 sums."""
        a, b = self.low[0], self.high[0]
        least = np.where(a > 0, a, np.where(b < 0, -b, 0))
        most = np.maximum(np.abs(a), np.abs(b))
        overflows = ~np.isfinite(a) | ~np.isfinite(b)  # then it counts as 0
        least[overflows] = 0
        most[overflows] = np.where(self.exact[overflows], 0, np.inf)
        if self.score != "t":
            return least, most
        below, over = self.low[1], self.high[1]
        below, over = (np.where(self.exact & np.isnan(each), 0, each) for each in (below, over))
        with np.errstate(invalid="ignore", over="ignore"):
            low = np.where(below > 0, t_score(least, over), 0)
            high = np.where((below > 0) | (over == 0), t_score(most, below), np.inf)
        return low, np.where((most == 0) | (over == 0), 0, np.where(np.isnan(high), np.inf, high))


def _between(groups: Sequence[Bounds]) -> tuple[Floats, Floats]:
    """Return what sums over the batch lie between, in whatever order its chunks are added."""
    slack = SLACK * sum([spacing for _, _, spacing in groups])
    zero = np.all([(each.low == 0) & (each.high == 0) for each in groups], axis=0)
    low = np.sum([each.low for each in groups], axis=0)
    high = np.sum([each.high for each in groups], axis=0)
    return np.where(zero, 0, low - slack), np.where(zero, 0, high + slack)


def _float32(sums: Floats) -> Floats:
    """Round sums as a serial run does; the values, in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        return sums.astype(np.float32).astype(np.float64)
