"""Wrong readers of a log: each replaces one step of the format, or leaves one check out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minibit.conformance.exact.noise import Noise
from minibit.conformance.exact.steps import Bits, Damage, Log, Moves

__all__ = ["STEPS"]


class Wrong(Log):
    """A reader that does not compare digests yet, so that its weights can be seen."""

    lenient = frozenset({"digest", "trailing-payload"})


class EachMoveClamped(Wrong):
    """A clamp after every move."""

    def moved(self, weights: list[int], moves: Moves) -> list[int]:
        """Clamp one after the other."""
        total = list(weights)
        for position, move in moves:
            total[position] = max(-1, min(1, total[position] + move))
        return total


class NotClamped(Wrong):
    """No clamp: int8 that goes on counting."""

    def moved(self, weights: list[int], moves: Moves) -> list[int]:
        """Add only."""
        total = list(weights)
        for position, move in moves:
            total[position] += move
        return total


class SignOfUpdate(Wrong):
    """Weights move along the gradient."""

    def code(self, bits: Bits) -> int:
        """Exchange the signs."""
        return -super().code(bits)

    def sign(self, bits: Bits) -> int:
        """Exchange the signs."""
        return -super().sign(bits)


class PlanSeed(Wrong):
    """Segments give numbers, but not seeds."""

    def names(self, header: Any, total: int) -> Iterator[tuple[int, int]]:
        """Use the plan's seed."""
        for _, number in super().names(header, total):
            yield header["plan"]["seed"], number


class NumberedFromFile(Wrong):
    """Segments give seeds, but not numbers."""

    def names(self, header: Any, total: int) -> Iterator[tuple[int, int]]:
        """Count steps of the file."""
        for number, (seed, _) in enumerate(super().names(header, total)):
            yield seed, number


class SegmentsGoOn(Wrong):
    """Steps after the segments go on from the last of them."""

    def names(self, header: Any, total: int) -> Iterator[tuple[int, int]]:
        """Count on."""
        drawn = [*super().names(header, total)]
        length = sum(min(count, total) for _, _, count in header.get("segments", []))
        for n, name in enumerate(drawn):
            seed, number = drawn[length - 1] if 0 < length <= n else name
            yield seed, number + max(0, n - length + 1) * (length > 0)


class FirstOfSegment(Wrong):
    """All steps of a segment are drawn by its first number."""

    def names(self, header: Any, total: int) -> Iterator[tuple[int, int]]:
        """Repeat it."""
        for seed, first, count in header["segments"]:
            yield from [(seed, first)] * min(count, total)


class SeedInDoubles(Wrong):
    """JSON that reads whole numbers as doubles."""

    noise = type(
        "_", (Noise,), {"key": lambda self, seed: Noise.key(self, int(float(seed)) % 2**64)}
    )()


class OffsetZero(Wrong):
    """All layers begin at the first weight."""

    def offset(self, shapes: Any, layer: int) -> int:
        """Return 0, but for the whole."""
        return super().offset(shapes, layer) if layer == len(shapes) else 0


class OffsetOfOneLayer(Wrong):
    """A layer begins behind the one before, as if that were the first."""

    def offset(self, shapes: Any, layer: int) -> int:
        """Add one layer alone."""
        whole = super().offset(shapes, layer)
        return whole - super().offset(shapes, layer - 1) if 0 < layer < len(shapes) else whole


class BigEndian(Wrong):
    """The numerator's high byte first."""

    def numerator(self, payload: bytes) -> int:
        """Reverse, and stay within the share 1."""
        return int.from_bytes(payload[:4], "big") % (2**32 + 1)


class InputsPerLayer(Wrong):
    """All units of a layer share their inputs."""

    noise = type("_", (Noise,), {"lane": lambda self, layer, unit: layer << 20})()


class LaneLeftOut(Wrong):
    """Initial weights of all layers come from lane 0."""

    noise = type(
        "_",
        (Noise,),
        {
            "initial_codes": lambda self, seed, shape, zeros, layer=0: Noise.initial_codes(
                self, seed, shape, zeros, 0
            )
        },
    )()


class AmongAllUnits(Wrong):
    """Candidates are counted among all units of a layer."""

    def candidates(self, plan: Any, seed: int, step: int, layer: int) -> list[int]:
        """Begin with unit 0."""
        return super().candidates(
            {**plan, "units": [s[0] for s in plan["shapes"]]}, seed, step, layer
        )


class UnitsNotDrawn(Wrong):
    """Units are not sorted."""

    noise = type(
        "_",
        (Noise,),
        {"subset": lambda self, stream, n, size: Noise.subset(self, stream, n, size)[::-1]},
    )()


class LowestBitFirst(Wrong):
    """Bits are read from the lowest of a byte."""

    class bits(Bits):
        """Reversed bytes."""

        def byte(self, value: int) -> str:
            """Reverse."""
            return f"{value:08b}"[::-1]


class GammaOfNext(Wrong):
    """Gamma codes of x + 1."""

    class bits(Bits):
        """One less."""

        def gamma(self) -> int:
            """Subtract."""
            return max(1, super().gamma() - 1)


def _gamma_of(width: int) -> type[Log]:
    """Return a reader whose gamma codes wrap in a word."""

    def gamma(self: Bits) -> int:
        """Take what the word holds."""
        return Bits.gamma(self) & (1 << width) - 1

    return type("_", (Wrong,), {"bits": type("_", (Bits,), {"gamma": gamma})})


class LongFirst(Wrong):
    """Truncated binary without the offset of its long codes."""

    class bits(Bits):
        """Whole bits only."""

        def uniform(self, size: int) -> int:
            """Forget the offset."""
            bits = (size - 1).bit_length()
            short = (1 << bits) - size
            if bits == 0:
                return 0
            x = self.number(bits - 1)
            return x if x < short else min(2 * x + self.number(1), size - 1)


class FixedWidth(Wrong):
    """Numbers in whole bits, without truncation."""

    class bits(Bits):
        """As many bits as the largest needs."""

        def uniform(self, size: int) -> int:
            """Read a plain number."""
            return min(self.number((size - 1).bit_length()), size - 1)


class RatioDown(Wrong):
    """Golomb's parameter rounded down."""

    class bits(Bits):
        """Another parameter."""

        def modulus(self, room: int, k: int) -> int:
            """Cut."""
            return room if k == 1 else max(1, 7 * room // (10 * k))


class RatioInDoubles(Wrong):
    """Golomb's parameter by 0.7 in doubles."""

    class bits(Bits):
        """Another parameter."""

        def modulus(self, room: int, k: int) -> int:
            """Round a double."""
            return room if k == 1 else max(1, int(0.7 * room / k + 0.5))


class RatioOfLast(Wrong):
    """Golomb's code for the last gap, too."""

    class bits(Bits):
        """Another parameter."""

        def modulus(self, room: int, k: int) -> int:
            """Forget the exception."""
            return max(1, (7 * room + 5 * k) // (10 * k))


class OneAfterGreatest(Wrong):
    """A one after the greatest quotient."""

    class bits(Bits):
        """Another end."""

        def quotient(self, most: int) -> int:
            """Read to the one."""
            q = 0
            while q <= most and self.number(1) == 0:
                q += 1
            return min(q, most)


class RestAmongAll(Wrong):
    """A rest coded among m, where fewer are left."""

    class bits(Bits):
        """Another size."""

        def rest(self, m: int, room: int, q: int) -> int:
            """Forget the room."""
            return min(self.uniform(m), room - q * m - 1)


class RoomForgets(Wrong):
    """Room that forgets the positions to come."""

    class bits(Bits):
        """Another room."""

        def room(self, n: int, start: int, k: int) -> int:
            """Count all."""
            return max(1, n - start)

        def subset(self, count: int, n: int) -> list[int]:
            """Stay among the candidates."""
            return [position % n for position in super().subset(count, n)]


class CrcAlone(Wrong):
    """Checksums of a record alone: only those of the first are as they should be."""

    def records(self, data: bytes, crc: int, at: int) -> Iterator[tuple[bytes, int, bytes, int]]:
        """Take any record."""
        while len(data) - at >= 7:
            length = int.from_bytes(data[at + 1 : at + 5], "little")
            end = at + 7 + length + 8
            if end + 4 > len(data):
                return
            yield data[at + 7 : end - 8], data[at], data[end - 8 : end], end + 4
            at = end + 4


class SectorsOfRecord(Log):
    """Sectors counted from the record's first byte."""

    def sector(self, start: int) -> int:
        """Begin with the record."""
        return start


class ZeroHead(Log):
    """Zeros in a record's head are a hole, whatever follows."""

    def hole(self, data: bytes, start: int, stop: int) -> bool:
        """Look at the head alone."""
        return not any(data[start:stop])


class SevenBytesAreCut(Log):
    """A whole head with nothing behind it counts as a part of one."""

    least_head = 8


class CutRefused(Log):
    """A file that was cut is refused."""

    def replay(self, file: Any) -> tuple[Any, int]:
        """Leave out the record in front of the tear, too."""
        weights, torn = super().replay(file)
        return (weights, torn) if torn < 0 else (weights[:1], torn)


class EverythingGood(Log):
    """The place of a tear is not told."""

    def replay(self, file: Any) -> tuple[Any, int]:
        """Say that nothing is torn."""
        return super().replay(file)[0], -1


class TearIsDamage(Log):
    """The tear is placed at the end of the file."""

    def replay(self, file: Any) -> tuple[Any, int]:
        """Name the file's length."""
        weights, torn = super().replay(file)
        return weights, torn if torn < 0 else len(file)


class DamageIsATear(Log):
    """Damage anywhere counts as the end of the file."""

    def replay(self, file: Any) -> tuple[Any, int]:
        """Cut until it can be read."""
        for stop in range(len(file), 0, -1):
            try:
                return super().replay(file[:stop])
            except Damage:
                continue
        return np.zeros((1, 0), np.int8), 0


def _lenient(name: str) -> type[Log]:
    """Return a reader that leaves a check out, and what follows from it."""
    follows = {"record-crc": {"digest"}, "head": {"record-crc", "digest"}}
    follows["header-length"] = {"header-crc"}
    follows["moves-beyond-candidates"] = {"digest", "trailing-payload"}
    checks = frozenset({name, *follows.get(name, set())})
    return type("_", (Log,), {"lenient": checks})


class HeadersAlone(Log):
    """What does not read as a log is a log without steps."""

    def replay(self, file: Any) -> tuple[Any, int]:
        """Return nothing."""
        return np.zeros((1, 0), np.int8), -1


PLAN_LAWS = ("name-twice", "side-of-0", "zeros-above-one", "more-than-there-are")
WRONG: dict[str, type[Log]] = {
    "each-move-clamped": EachMoveClamped,
    "not-clamped": NotClamped,
    "sign-of-update": SignOfUpdate,
    "seed-of-plan": PlanSeed,
    "numbered-from-file": NumberedFromFile,
    "segments-go-on": SegmentsGoOn,
    "offset-zero": OffsetZero,
    "offset-of-one-layer": OffsetOfOneLayer,
    "big-endian": BigEndian,
    "inputs-a-layer": InputsPerLayer,
    "lane-left-out": LaneLeftOut,
    "among-all-units": AmongAllUnits,
    "unsorted": UnitsNotDrawn,
    "lowest-bit-first": LowestBitFirst,
    "gamma-of-next": GammaOfNext,
    "long-codes-without-offset": LongFirst,
    "fixed-width": FixedWidth,
    "ratio-rounded-down": RatioDown,
    "ratio-in-doubles": RatioInDoubles,
    "ratio-of-last-gap": RatioOfLast,
    "one-after-greatest-quotient": OneAfterGreatest,
    "rest-among-all": RestAmongAll,
    "room-forgets": RoomForgets,
    "crc-of-record-alone": CrcAlone,
    "torn-log-lost": CutRefused,
    "tear-not-told": EverythingGood,
    "tear-at-the-end": TearIsDamage,
    "damage-is-a-tear": DamageIsATear,
    "no-header-needed": HeadersAlone,
    "header-crc-not-compared": _lenient("header-crc"),
    "record-crc-not-compared": _lenient("record-crc"),
    "digest-not-compared": _lenient("digest"),
    "version-not-compared": _lenient("version"),
    "magic-not-compared": _lenient("magic"),
    "header-length-not-bounded": _lenient("header-length"),
    "steps-not-bounded": _lenient("steps-of-a-record"),
    "key-twice": _lenient("key-twice"),
    "trailing-payload": _lenient("trailing-payload"),
    "unknown-method": _lenient("method"),
    "segment-of-one-number": FirstOfSegment,
    "seed-in-doubles": SeedInDoubles,
    "gamma-of-32-bits": _gamma_of(32),
    "gamma-of-64-bits": _gamma_of(64),
    "sectors-of-the-record": SectorsOfRecord,
    "zeros-are-a-hole": ZeroHead,
    "seven-bytes-are-cut": SevenBytesAreCut,
    "check-not-compared": _lenient("head"),
    "moves-cut-off": _lenient("moves-beyond-candidates"),
    "number-not-finite": _lenient("number-not-finite"),
    "text-not-utf-8": _lenient("utf-8"),
    **{flag: _lenient(flag) for flag in PLAN_LAWS},
}
STEPS: dict[str, Callable[..., Any]] = {
    f"StepLog/{flag}": variant().replay for flag, variant in WRONG.items()
}
