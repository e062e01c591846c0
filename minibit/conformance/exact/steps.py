"""The log of a run, read and replayed in Python integers, as ``docs/log_format.md`` has it.

Each step of the format is a method, which a wrong variant replaces.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from math import isfinite, prod
from typing import Any

import numpy as np

from minibit.conformance.exact.noise import INPUTS, UNITS, Noise

__all__ = ["Bits", "Damage", "Log"]

MAGIC = b"\x89MBL\r\n\x1a\n"
Moves = list[tuple[int, int]]


class Damage(ValueError):
    """A file that no reader may take."""


class Bits:
    """Codes of a payload, read from the highest bit of a byte to the lowest."""

    def __init__(self, data: bytes) -> None:
        self.bits, self.at = "".join(map(self.byte, data)), 0

    def byte(self, value: int) -> str:
        """Bits of a byte, in reading order."""
        return f"{value:08b}"

    def number(self, count: int) -> int:
        """Read so many bits."""
        self.at += count
        if self.at > len(self.bits):
            raise Damage("codes go past the payload's end")
        return int("0" + self.bits[self.at - count : self.at], 2)

    def gamma(self) -> int:
        """Read n zeros, a one, and n bits."""
        n = 0
        while self.number(1) == 0:
            n += 1
        return (1 << n) + self.number(n)

    def uniform(self, size: int) -> int:
        """Read truncated binary: the first values take one bit less."""
        bits = (size - 1).bit_length()
        if bits == 0:
            return 0
        short = (1 << bits) - size
        x = self.number(bits - 1)
        return x if x < short else 2 * x + self.number(1) - short

    def modulus(self, room: int, k: int) -> int:
        """Golomb's parameter for a gap below room, with k moves to come."""
        return room if k == 1 else max(1, (7 * room + 5 * k) // (10 * k))

    def room(self, n: int, start: int, k: int) -> int:
        """How many values a gap may take."""
        return n - start - k + 1

    def quotient(self, most: int) -> int:
        """Zeros up to a one, which the greatest does without."""
        q = 0
        while q < most and self.number(1) == 0:
            q += 1
        return q

    def rest(self, m: int, room: int, q: int) -> int:
        """Read what is left of a gap, below m and below what is left of the room."""
        return self.uniform(min(m, room - q * m))

    def subset(self, count: int, n: int) -> list[int]:
        """Read increasing positions."""
        positions, start = [], 0
        for k in range(count, 0, -1):
            room = self.room(n, start, k)
            m = self.modulus(room, k)
            q = self.quotient((room - 1) // m)
            positions.append(start + q * m + self.rest(m, room, q))
            start = positions[-1] + 1
        return positions


class Log:
    """A log: `replay` gives the weights after every step, and where it is torn, -1 if it is not."""

    bits = Bits
    noise = Noise()
    lenient: frozenset[str] = frozenset()  # checks that a wrong variant leaves out
    least_head = 7  # bytes; what is shorter is a cut

    def check(self, name: str, good: bool) -> None:
        """Refuse, unless this check is left out."""
        if not good and name not in self.lenient:
            raise Damage(name)

    def header(self, data: bytes) -> tuple[dict[str, Any], int, int]:
        """Header, running CRC-32, and where records begin."""
        if len(data) < 14:
            raise Damage("the file ends within the header")
        magic, version, length = struct.unpack_from("<8sHI", data)
        self.check("magic", magic == MAGIC)
        self.check("version", version == 1)
        self.check("header-length", length <= 2**20)
        at = 14 + min(length, len(data))
        crc = zlib.crc32(data[:at])
        self.check("header-crc", crc.to_bytes(4, "little") == data[at : at + 4])
        text = data[14:at].decode(errors="replace" if "utf-8" in self.lenient else "strict")
        finite: Any = {"parse_float": self.finite, "parse_constant": self.finite}
        content = json.loads(text, object_pairs_hook=self.once, **finite)
        self.check_plan(content["plan"])
        return content, crc, at + 4

    def finite(self, text: str) -> float:
        """Refuse NaN and what is beyond a double."""
        self.check("number-not-finite", isfinite(float(text)))
        return float(text)

    def check_plan(self, plan: Any) -> None:
        """Refuse a plan that no step can be drawn by."""
        method, names, shapes = plan["method"], plan["names"], plan["shapes"]
        self.check("method", method in ("sampled", "units"))
        self.check("name-twice", len(set(names)) == len(names))
        self.check("side-of-0", all(side > 0 for shape in shapes for side in shape))
        self.check("zeros-above-one", plan["zeros"] <= 2**32)
        layers = (
            zip(shapes, plan["units"], plan["inputs"], strict=True) if method == "units" else ()
        )
        for (n_out, n_in), units, inputs in layers:
            self.check("more-than-there-are", units <= n_out and inputs <= n_in)

    def once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Refuse a key that comes twice."""
        self.check("key-twice", len({key for key, _ in pairs}) == len(pairs))
        return dict(pairs)

    def crc(self, part: bytes, running: int) -> int:
        """Go on with the CRC-32 of all that came before."""
        return zlib.crc32(part, running)

    def records(self, data: bytes, crc: int, at: int) -> Iterator[tuple[bytes, int, bytes, int]]:
        """Payload, number of steps, digest and end of each record, up to a torn tail."""
        while len(data) - at >= self.least_head:
            steps, length, check = struct.unpack_from("<BIH", data, at)
            right = self.crc(data[at : at + 5], crc) & 0xFFFF == check
            if not right and self.hole(data, at, at + 7):
                return
            self.check("head", right)
            end = at + 7 + length + 8
            if end + 4 > len(data):
                return
            crc = self.crc(data[at:end], crc)
            if data[end : end + 4] != crc.to_bytes(4, "little"):
                near = len(data) - at <= 65536 and self.hole(data, at, end + 4)
                if (end + 4 == len(data) or near) and "record-crc" not in self.lenient:
                    return
                self.check("record-crc", False)
            self.check("steps-of-a-record", 1 <= steps <= 32)
            yield data[at + 7 : end - 8], steps, data[end - 8 : end], end + 4
            at = end + 4

    def sector(self, start: int) -> int:
        """Return the first byte of the sector that holds a byte."""
        return start // 512 * 512

    def hole(self, data: bytes, start: int, stop: int) -> bool:
        """Tell whether a sector that holds bytes of a record is all zeros, from `start` on."""
        sectors = range(self.sector(start), stop, 512)
        return not all(any(data[max(start, at) : at + 512]) for at in sectors)

    def numerator(self, payload: bytes) -> int:
        """Read the density of a record's steps."""
        return int.from_bytes(payload[:4], "little")

    def candidates(self, plan: dict[str, Any], seed: int, step: int, layer: int) -> list[int]:
        """Flat positions in a layer that a step may move."""
        (n_out, n_in), units = plan["shapes"][layer], plan["units"][layer]
        inputs = plan["inputs"][layer]
        drawn: Any = range(n_out)
        if units < n_out:
            drawn = self.noise.subset(self.noise.stream(seed, UNITS, step, layer), n_out, units)
        positions = []
        for unit in drawn:
            columns: Any = range(n_in)
            if inputs < n_in:
                stream = self.noise.stream(seed, INPUTS, step, self.noise.lane(layer, unit))
                columns = self.noise.subset(stream, n_in, inputs)
            positions += [unit * n_in + column for column in columns]
        return positions

    def offset(self, shapes: Any, layer: int) -> int:
        """Where a layer begins among all weights."""
        return sum(prod(shape) for shape in shapes[:layer])

    def sign(self, bits: Bits) -> int:
        """Read the sign of a move."""
        return 1 - 2 * bits.number(1)

    def code(self, bits: Bits) -> int:
        """Read a ternary code of a perturbation."""
        return bits.number(1) and 1 - 2 * bits.number(1)

    def unpack(self, plan: Any, payload: bytes, count: int) -> Iterator[dict[str, Any]]:
        """Yield the choices of a record: numerator and codes, or positions and signs per layer."""
        sampled, layers = plan["method"] == "sampled", range(len(plan["shapes"]))
        bits = self.bits(payload[4:] if sampled else payload)
        ranges = [] if sampled else [(bits.gamma() - 1, bits.gamma()) for _ in layers]
        for _ in range(count):
            if sampled:
                codes = [self.code(bits) for _ in range(plan["perturbations"])]
                yield {"numerator": self.numerator(payload), "codes": np.array(codes, np.int8)}
                continue
            positions, signs = [], []
            for layer, (least, span) in zip(layers, ranges, strict=True):
                moves = least + bits.uniform(span)
                most = plan["units"][layer] * plan["inputs"][layer]
                self.check("moves-beyond-candidates", moves <= most)
                picked = bits.subset(min(moves, most), most)
                positions.append(np.array(picked, np.int64))
                signs.append(np.array([self.sign(bits) for _ in picked], np.int8))
            yield {"positions": positions, "signs": signs}
        self.check("trailing-payload", len(bits.bits) - bits.at < 8)

    def moves_of(self, plan: Any, step: dict[str, Any], seed: int, number: int) -> Moves:
        """Return what a choice moves: -code v of each perturbation, or candidates of each layer."""
        moves: Moves = []
        if "codes" in step:
            size = self.offset(plan["shapes"], len(plan["shapes"]))
            for i, code in enumerate(step["codes"].tolist()):
                if code:
                    noise = self.noise.sparse_noise(seed, number, i, size, step["numerator"])
                    moves += [(int(p), -code * int(s)) for p, s in zip(*noise, strict=True)]
            return moves
        for layer, picked in enumerate(step["positions"]):
            places = self.candidates(plan, seed, number, layer)
            first = self.offset(plan["shapes"], layer)
            signs = step["signs"][layer].tolist()
            moves += [(first + places[q], s) for q, s in zip(picked.tolist(), signs, strict=True)]
        return moves

    def names(self, header: Any, total: int) -> Iterator[tuple[int, int]]:
        """Seed and number that each step is drawn with."""
        drawn = [
            (seed, first + i)
            for seed, first, count in header.get("segments", [])
            for i in range(min(count, total))
        ]
        yield from drawn
        for number in range(len(drawn), total):
            yield header["plan"]["seed"], number

    def initial(self, plan: Any) -> list[int]:
        """Weights before the first step."""
        return [
            int(code)
            for layer, shape in enumerate(plan["shapes"])
            for code in self.noise.initial_codes(plan["seed"], prod(shape), plan["zeros"], layer)
        ]

    def moved(self, weights: list[int], moves: Moves) -> list[int]:
        """Sum all moves of a step, then clamp each weight once."""
        total = list(weights)
        for position, move in moves:
            total[position] += move
        return [max(-1, min(1, w)) for w in total]

    def replay(self, file: Any) -> tuple[Any, int]:
        """Return weights after each step, int8 (steps + 1, weights), and where the log is torn."""
        data = bytes(np.asarray(file, np.uint8).tolist())
        header, crc, end = self.header(data)
        plan = header["plan"]
        records = [*self.records(data, crc, end)]
        names = self.names(header, sum(steps for _, steps, _, _ in records))
        weights = self.initial(plan)
        history = [weights]
        for payload, steps, digest, stop in records:
            for step in self.unpack(plan, payload, steps):
                weights = self.moved(weights, self.moves_of(plan, step, *next(names)))
                history.append(weights)
            own = hashlib.sha256(bytes(w & 255 for w in weights)).digest()[:8]
            self.check("digest", own == digest)
            end = stop
        return np.array(history, np.int8), -1 if end == len(data) else end
