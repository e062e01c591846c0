"""Steps as bits: the codes that a log's payloads are written in.

All bits are read from the highest of a byte to the lowest; the last byte is filled with zeros.

    sampled   0 -> `0`   +1 -> `10`   -1 -> `11`

costs exactly 1.5 bits per code if half of them are zero, which is their entropy.

    units     positions of K moves among N candidates: each gap in a Golomb code of m ~ 0.7 room / k

where ``room`` counts the values that the gap may take, and ``k`` the moves still to come. Golomb's
code with ``m ~ ln 2 / p`` is the best for gaps of density p; as the density of what is left is
known at each move, no parameter is stored, and the last gap, which is uniform, costs log2(room).
The whole stays about 0.4% above log2 C(N, K) + K for K = 10 or more, at about 1% for K = 3.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from minibit.noise_step import Plan, SampledStep, UnitsStep
from minibit.steps.bounds import Step, candidates, payable

__all__ = [
    "BitReader",
    "BitWriter",
    "decode_sampled",
    "decode_units",
    "encode_sampled",
    "encode_units",
    "pack_steps",
    "unpack_steps",
]

NUMERATOR = struct.Struct("<I")
MOST_PARTS = 1 << 20
TERNS = {0: "0", 1: "10", -1: "11"}


def pack_steps(plan: Plan, steps: Sequence[Step]) -> bytes:
    """Code the choices of the steps of one record; sampled ones must share their numerator."""
    sampled = [step for step in steps if isinstance(step, SampledStep)]
    if plan.method == "sampled":
        return encode_sampled(sampled)
    return encode_units([step for step in steps if isinstance(step, UnitsStep)], candidates(plan))


def unpack_steps(plan: Plan, payload: bytes, count: int) -> list[Step]:
    """Read `pack_steps`; ValueError if the payload is no such code."""
    if plan.method == "sampled":
        return [payable(plan, s) for s in decode_sampled(payload, count, plan.perturbations)]
    return [*decode_units(payload, count, candidates(plan))]


class BitWriter:
    """Collects codes; `payload` gives their bytes."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def gamma(self, value: int) -> None:
        """Write value >= 1 in Elias's gamma code: a zero for each bit but the first, then it."""
        bits = format(value, "b")
        self.parts.append("0" * (len(bits) - 1) + bits)

    def uniform(self, value: int, size: int) -> None:
        """Write 0 <= value < size in truncated binary: floor or ceiling of log2(size) bits."""
        bits = (size - 1).bit_length()
        short = (1 << bits) - size  # so many values take one bit less
        if value >= short:
            self.parts.append(format(value + short, f"0{bits}b") if bits else "")
        elif bits > 1:
            self.parts.append(format(value, f"0{bits - 1}b"))

    def subset(self, positions: Sequence[int], size: int) -> None:
        """Write increasing positions in [0, size), their number known: gap by gap."""
        start, k = 0, len(positions)
        for position in positions:
            room = size - start - k + 1  # the gap is one of 0, ..., room - 1
            m = modulus(room, k)
            quotient, rest = divmod(position - start, m)
            last = (room - 1) // m
            self.parts.append("0" * quotient + ("1" if quotient < last else ""))
            self.uniform(rest, min(m, room - quotient * m))
            start, k = position + 1, k - 1
            if len(self.parts) > MOST_PARTS:  # a string of few bits takes 50 bytes
                self.parts = ["".join(self.parts)]

    def signs(self, signs: NDArray[np.int8]) -> None:
        """Write one bit each: 0 for +1, 1 for -1."""
        self.parts.append("".join("1" if sign < 0 else "0" for sign in signs.tolist()))

    def payload(self) -> bytes:
        """Return all bits as bytes, the last filled with zeros."""
        bits = "".join(self.parts)
        count = -(-len(bits) // 8)
        return int("0" + bits.ljust(8 * count, "0"), 2).to_bytes(count, "big")


class BitReader:
    """Takes codes off a payload. Every method raises ValueError where they go past its end."""

    def __init__(self, payload: bytes) -> None:
        self.bits = bin(int.from_bytes(b"\x01" + payload, "big"))[3:]
        self.at = 0

    @property
    def left(self) -> int:
        """Number of bits not yet read."""
        return len(self.bits) - self.at

    def take(self, count: int) -> str:
        """Return the next bits."""
        if count > self.left:
            raise ValueError("the codes go past the payload's end")
        self.at += count
        return self.bits[self.at - count : self.at]

    def unary(self, most: int) -> int:
        """Count zeros up to a one, or up to `most`, where no one is written."""
        stop = self.bits.find("1", self.at, self.at + most)
        if stop < 0:
            return len(self.take(most))
        count = stop - self.at
        self.at = stop + 1
        return count

    def gamma(self) -> int:
        """Read `BitWriter.gamma`."""
        return int("1" + self.take(self.unary(self.left)), 2)

    def uniform(self, size: int) -> int:
        """Read `BitWriter.uniform`."""
        bits = (size - 1).bit_length()
        if not bits:
            return 0
        short = (1 << bits) - size
        value = int("0" + self.take(bits - 1), 2)
        return value if value < short else 2 * value + int(self.take(1)) - short

    def subset(self, count: int, size: int) -> list[int]:
        """Read `BitWriter.subset`: `unary` and `uniform`, written out, as replays wait for it."""
        positions: list[int] = []
        bits, at, end, start = self.bits, self.at, len(self.bits), 0
        for k in range(count, 0, -1):
            room = size - start - k + 1
            if room == 1:  # all that are left, without a bit
                positions += range(start, size)
                break
            m = modulus(room, k)
            most = (room - 1) // m
            one = bits.find("1", at, at + most)
            quotient = most if one < 0 else one - at
            at += most if one < 0 else quotient + 1
            span = min(m, room - quotient * m)
            width = (span - 1).bit_length()
            value = 0
            if width:
                short, stop = (1 << width) - span, at + width - 1
                value = int(bits[at:stop] or "0", 2)
                if value >= short:
                    value = 2 * value - short + (bits[stop : stop + 1] == "1")
                    stop += 1
                at = stop
            if at > end:
                raise ValueError("the codes go past the payload's end")
            start += quotient * m + value
            positions.append(start)
            start += 1
        self.at = at
        return positions

    def signs(self, count: int) -> NDArray[np.int8]:
        """Read `BitWriter.signs`."""
        bits = np.frombuffer(self.take(count).encode(), np.uint8)  # 48 or 49, ASCII
        return (97 - 2 * bits.astype(np.int16)).astype(np.int8)

    def close(self) -> None:
        """Check that fewer than eight bits are left, all zero."""
        if self.left > 7 or "1" in self.bits[self.at :]:
            raise ValueError(f"{self.left} bits follow the last code")


def modulus(room: int, k: int) -> int:
    """Golomb's parameter for the first of k gaps that share `room` values; one gap: all of them."""
    return room if k == 1 else max(1, (7 * room + 5 * k) // (10 * k))  # round(0.7 room / k)


def encode_sampled(steps: Sequence[SampledStep]) -> bytes:
    """Numerator (u32, little-endian), then the prefix code of every step's codes in turn.

    All steps must have the numerator of the first; codes in {-1, 0, 1}.
    """
    bits = BitWriter()
    bits.parts = [TERNS[code] for step in steps for code in step.codes.tolist()]
    return NUMERATOR.pack(steps[0].numerator) + bits.payload()


def decode_sampled(payload: bytes, steps: int, perturbations: int) -> list[SampledStep]:
    """Read `encode_sampled`; ValueError if the payload ends within the codes or goes on after."""
    if len(payload) < NUMERATOR.size:
        raise ValueError(f"a payload of {len(payload)} bytes has no numerator")
    (numerator,) = NUMERATOR.unpack_from(payload)
    bits = BitReader(payload[NUMERATOR.size :])
    count = steps * perturbations
    if count > bits.left:  # a code takes one bit or more: refuse before anything is allocated
        raise ValueError(f"{count} codes cannot lie in {bits.left} bits")
    stream = iter(bits.bits)
    try:
        codes = np.array(
            [0 if bit == "0" else 1 - 2 * int(next(stream)) for bit in islice(stream, count)],
            np.int8,
        )
    except StopIteration:
        raise ValueError("the codes go past the payload's end") from None
    bits.at = codes.size + int(np.count_nonzero(codes))
    if codes.size < count:
        raise ValueError("the codes go past the payload's end")
    bits.close()
    return [SampledStep(numerator, row) for row in codes.reshape(steps, perturbations)]


def encode_units(steps: Sequence[UnitsStep], candidates: Sequence[int]) -> bytes:
    """Least number of moves and span of each layer, then step by step, layer by layer, the moves.

    A layer's least number and span over the record are in gamma codes (plus one); then each step's
    number in truncated binary, its positions as a subset, and its signs.
    """
    bits = BitWriter()
    counts = [[len(step.signs[layer]) for step in steps] for layer in range(len(candidates))]
    ranges = [(min(moves), max(moves) - min(moves) + 1) for moves in counts]
    for least, span in ranges:
        bits.gamma(least + 1)
        bits.gamma(span)
    for number, step in enumerate(steps):
        for layer, (size, (least, span)) in enumerate(zip(candidates, ranges, strict=True)):
            bits.uniform(counts[layer][number] - least, span)
            bits.subset(step.positions[layer].tolist(), size)
            bits.signs(step.signs[layer])
    return bits.payload()


def decode_units(payload: bytes, steps: int, candidates: Sequence[int]) -> list[UnitsStep]:
    """Read `encode_units`; ValueError as for `decode_sampled`, or for more moves than can be."""
    bits = BitReader(payload)
    ranges = [(bits.gamma() - 1, bits.gamma()) for _ in candidates]
    decoded = []
    for _ in range(steps):
        positions, signs = [], []
        for size, (least, span) in zip(candidates, ranges, strict=True):
            count = least + bits.uniform(span)
            if count > min(size, bits.left):  # a move takes one bit or more
                raise ValueError(f"{count} moves among {size} candidates in {bits.left} bits")
            positions.append(np.array(bits.subset(count, size), np.int64))
            signs.append(bits.signs(count))
        decoded.append(UnitsStep(tuple(positions), tuple(signs)))
    bits.close()
    return decoded
