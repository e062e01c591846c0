"""NF4 in exact fractions, each float32 operation rounded once, in the order of the peers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from minibit.conformance.exact.numbers import float32, nearest

__all__ = ["NF4", "PlainNF4"]

NUMBERS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
SMALLEST = Fraction(float(np.float32(1e-38)))


def book_of(numbers: Any) -> list[Fraction]:
    """Return a codebook as fractions."""
    return [float32(Fraction(number)) for number in np.asarray(numbers).tolist()]


def middles(points: Sequence[Fraction]) -> list[Fraction]:
    """Return the midpoints of neighbours, rounded to float32."""
    return [float32(float32(a + b) / 2) for a, b in pairwise(points)]


def scaled(w: Sequence[Fraction], block: int) -> tuple[list[Fraction], list[Fraction]]:
    """Divide by the absmax of each block; a full one by its reciprocal."""
    values, absmaxes = [], []
    for start in range(0, len(w), block):
        part = w[start : start + block]
        absmax = max(map(abs, part))
        divisor = max(absmax, SMALLEST)
        if len(part) == block:
            inverse = float32(1 / divisor)
            quotients = [float32(x * inverse) for x in part]
        else:
            absmax, quotients = divisor, [float32(x / divisor) for x in part]
        values += [min(max(q, Fraction(-1)), Fraction(1)) for q in quotients]
        absmaxes.append(absmax)
    return values, absmaxes


def midpoints_of(first: str, last: str, count: int) -> list[Fraction]:
    """Midpoints of evenly spaced points, as float32 counts them from the nearer end."""
    begin, end = float32(Fraction(first)), float32(Fraction(last))
    step = float32(float32(end - begin) / (count - 1))
    points = [
        float32(begin + step * i if i < count // 2 else end - step * (count - 1 - i))
        for i in range(count)
    ]
    return middles(points)


def dynamic_book() -> list[Fraction]:
    """256 numbers: seven decades of midpoints with both signs, 0 and 1."""
    sizes = [
        float32(float32(Fraction(10) ** (i - 6)) * middle)
        for i in range(7)
        for middle in midpoints_of("0.1", "1", 2**i + 1)
    ]
    return sorted([*(-size for size in sizes), Fraction(0), Fraction(1), *sizes])


def in_turn(terms: Sequence[Fraction]) -> Fraction:
    """Sum one after the other, each sum rounded."""
    total = Fraction(0)
    for term in terms:
        total = float32(total + term)
    return total


def cascade(terms: Sequence[Fraction]) -> Fraction:
    """Sum in 4 levels of at least 16 terms."""
    step = 1 << max(4, max(len(terms) - 1, 0).bit_length() // 4)
    levels, rest = [], list(terms)
    for _ in range(3):
        full = len(rest) // step
        levels.append(in_turn(rest[full * step :]))
        rest = [in_turn(rest[n * step : n * step + step]) for n in range(full)]
    return in_turn([*levels, in_turn(rest)])


def mean_in_order(values: Sequence[Fraction]) -> Fraction:
    """Mean in the order of PyTorch on one thread: 8 lanes of 4 vectors."""
    lanes = 8 if len(values) >= 8 else 1
    count = len(values) // lanes
    fours, sums = count // 4, []
    for lane in range(lanes):
        column = values[lane : count * lanes : lanes]
        four = [cascade(column[n : 4 * fours : 4]) for n in range(4)]
        four[0] = in_turn([four[0], *column[4 * fours :]]) if fours else in_turn(column)
        sums.append(in_turn(four))
    total = in_turn([in_turn(values[count * lanes :]), *sums])
    return float32(total / len(values))


def quantize_nf4(w: Any, block: int = 64, double_quant: bool = False) -> tuple[Any, ...]:
    """Packed codes, absmaxes and weights; nested codes, their absmaxes and the offset."""
    book = book_of(NUMBERS)
    bounds = middles(book)
    flat = [Fraction(float(np.float32(x))) for x in np.ravel(w).tolist()]
    values, absmaxes = scaled(flat, block)
    codes = [bisect_left(bounds, s) for s in values]
    filled = [*codes, *[7] * (len(codes) % 2)]
    packed = np.array(
        [16 * a + b for a, b in zip(filled[::2], filled[1::2], strict=True)], np.uint8
    )
    more: tuple[Any, ...] = ()
    if double_quant:
        absmaxes, *rest = nested(absmaxes)
        more = tuple(rest)
    weights = [nearest(book[code] * absmaxes[n // block]) for n, code in enumerate(codes)]
    stored = np.array([nearest(absmax) for absmax in absmaxes], np.float32)
    return (packed, stored, np.array(weights, np.float32).reshape(np.shape(w)), *more)


def nested(absmaxes: Sequence[Fraction]) -> tuple[Any, ...]:
    """Quantise absmaxes: what comes back, codes, nested absmaxes, offset."""
    book, offset = dynamic_book(), mean_in_order(absmaxes)
    bounds = middles(book)
    differences = [float32(absmax - offset) for absmax in absmaxes]
    codes, back, largest = [], [], []
    for start in range(0, len(differences), 256):
        part = differences[start : start + 256]
        most = max(map(abs, part))
        inverse = float32(1 / most) if most else Fraction(0)
        for x in part:
            code = bisect_left(bounds, float32(x * inverse)) if most else 0
            codes.append(code)
            back.append(float32(float32(book[code] * most) + offset))
        largest.append(nearest(most))
    return back, np.array(codes, np.uint8), np.array(largest, np.float32), nearest(offset)


def codebook_quantize(w: Any, codebook: Any = NUMBERS, block: int = 64) -> tuple[Any]:
    """Return the nearest entries times their absmaxes."""
    book = book_of(codebook)
    bounds = middles(book)
    values, absmaxes = scaled([Fraction(x) for x in np.ravel(w).tolist()], block)
    codes = [bisect_left(bounds, s) for s in values]
    out = [nearest(book[code] * absmaxes[n // block]) for n, code in enumerate(codes)]
    return (np.array(out, np.float32).reshape(np.shape(w)),)


def nearest_code(s: Any, codebook: Any = NUMBERS) -> tuple[Any]:
    """Return the index of the nearest entry of each value."""
    book = book_of(codebook)
    bounds = middles(book)
    codes = [bisect_left(bounds, Fraction(x)) for x in np.ravel(s).tolist()]
    return (np.array(codes, np.uint8).reshape(np.shape(s)),)


class PlainNF4:
    """Weights of NF4 that are not packed."""

    def __init__(self, block: int = 64, **args: Any) -> None:
        packed, _, self.weights, *rest = quantize_nf4(block=block, **args)
        self.block, self.offset = block, rest[-1] if rest else None
        self.shape = np.shape(self.weights)
        self.codes = codes_of(packed, self.shape)

    def dequantize(self) -> Any:
        """Return the weights."""
        return self.weights


def codes_of(packed: Any, shape: Any) -> Any:
    """Return the codes of packed bytes, the first of each two in the high half."""
    flat = [half for byte in packed.tolist() for half in (byte // 16, byte % 16)]
    return np.array(flat[: int(np.prod(shape))], np.uint8).reshape(shape)


def nf4_matmul(x: Any, tensor: Any) -> tuple[Any]:
    """``x W^T`` in fractions, rounded once."""
    rows = [[Fraction(entry) for entry in row] for row in tensor.dequantize().tolist()]
    out = [
        [nearest(sum(Fraction(a) * w for a, w in zip(token, row, strict=True))) for row in rows]
        for token in x.reshape(-1, x.shape[-1]).tolist()
    ]
    return (np.array(out, np.float32).reshape(*x.shape[:-1], -1),)


NF4: dict[str, Callable[..., tuple[Any, ...]]] = {
    "NF4Tensor.codes": lambda self: (self.codes,),
    "NF4Tensor.dequantize": lambda self, dtype="float32": (self.weights.astype(dtype),),
    "codebook_quantize": codebook_quantize,
    "dynamic_map": lambda: (np.array([nearest(x) for x in dynamic_book()], np.float32),),
    "nearest_code": nearest_code,
    "nf4_matmul": nf4_matmul,
    "quantize_nf4": quantize_nf4,
}
