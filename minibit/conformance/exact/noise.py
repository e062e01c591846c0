"""Philox and all that is drawn from it, in Python integers and exact fractions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import cache
from itertools import count, islice
from math import comb
from typing import Any

import numpy as np

__all__ = ["NOISE", "Noise", "of"]

NAMES = (
    *("philox4x32", "words", "uniform", "integers", "noise_constants", "sparse_noise"),
    *("sparse_noise_many", "initial_codes", "draw_units", "draw_inputs"),
)
INITIAL, UNITS, INPUTS = 1, 3, 4  # domains


@cache
def table_of(numerator: int, bits: int) -> tuple[int, ...]:
    """Return cumulative binomial probabilities times 2**64, rounded down, while below 2**64 - 1."""
    block, q = 2**bits, 2**32 - numerator
    table, total = [], 0
    for hits in range(block + 1):
        if numerator == 0:
            total = 1 << 32 * block  # no nonzero, for certain
        else:
            total += comb(block, hits) * numerator**hits * q ** (block - hits)
        threshold = total * 2**64 >> 32 * block
        if threshold >= 2**64 - 1:
            break
        table.append(threshold)
    return tuple(table)


class Noise:
    """The contract of `minibit.noise`, each step of it a method that a wrong variant replaces."""

    rounds = 10

    def product(self, x: int, y: int) -> tuple[int, int]:
        """Return high and low half of a product of 32-bit words."""
        return divmod(x * y, 2**32)

    def add(self, x: int, y: int) -> int:
        """Add 32-bit words."""
        return (x + y) % 2**32

    def block(self, counter: Iterable[int], key: Iterable[int]) -> list[int]:
        """Return a block of Philox4x32, ten rounds."""
        c0, c1, c2, c3 = counter
        k0, k1 = key
        for _ in range(self.rounds):
            high0, low0 = self.product(0xD2511F53, c0)
            high1, low1 = self.product(0xCD9E8D57, c2)
            c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
            k0, k1 = self.add(k0, 0x9E3779B9), self.add(k1, 0xBB67AE85)
        return [c0, c1, c2, c3]

    def key(self, seed: int) -> tuple[int, int]:
        """Return the low half of the seed, then the high half."""
        return seed % 2**32, seed // 2**32

    def counter(self, block: int, domain: int, lane: int, step: int) -> tuple[int, ...]:
        """Return the counter words of a stream's block."""
        return block % 2**32, domain << 24, lane, step

    def stream(self, seed: int, domain: int, step: int, lane: int, start: int = 0) -> Iterator[int]:
        """Yield a stream's words from `start` on."""
        for block in count(start // 4):
            four = self.block(self.counter(block, domain, lane, step), self.key(seed))
            yield from four[start - 4 * block if block == start // 4 else 0 :]

    def draws(self, stream: Iterator[int]) -> Iterator[int]:
        """Yield 64-bit draws, the high half first."""
        while True:
            yield next(stream) * 2**32 + next(stream)

    def below(self, u: int, high: int) -> int:
        """Bring a draw below a bound."""
        return u * high // 2**64

    def unit(self, first: int, second: int) -> float:
        """Make 53 bits of two words a number below 1."""
        return (2**26 * (first // 32) + second // 64) / 2**53

    def numerator(self, share: float | int) -> int:
        """Round a share to 2**-32, half to even; an integer is the numerator itself."""
        return share if isinstance(share, int) else round(Fraction(share) * 2**32)

    def block_bits(self, numerator: int) -> int:
        """Return the most bits, 4 to 16, with at most one nonzero per block expected."""
        return next((b for b in range(16, 4, -1) if numerator << b <= 2**32), 4)

    def table(self, numerator: int, bits: int) -> tuple[int, ...]:
        """Return thresholds of the number of nonzeros in a block."""
        return table_of(numerator, bits)

    # Public functions.

    def philox4x32(self, counter: Any, key: Any) -> Any:
        """Apply Philox to arrays of counters."""
        counters = np.asarray(counter)
        rows = counters.reshape(-1, 4).tolist()
        pairs = np.broadcast_to(key, (*counters.shape[:-1], 2)).reshape(-1, 2).tolist()
        out = [self.block(row, pair) for row, pair in zip(rows, pairs, strict=True)]
        return np.array(out, np.uint32).reshape(counters.shape)

    def words(
        self, seed: int, domain: int, step: int, count: int, lane: int = 0, start: int = 0
    ) -> Any:
        """Return words of a stream."""
        return np.array([*islice(self.stream(seed, domain, step, lane, start), count)], np.uint32)

    def uniform(
        self, seed: int, shape: Any, *, domain: int = 255, step: int = 0, lane: int = 0
    ) -> Any:
        """Draw numbers in [0, 1)."""
        stream, size = self.stream(seed, domain, step, lane), int(np.prod(shape))
        drawn = [self.unit(next(stream), next(stream)) for _ in range(size)]
        return np.array(drawn, np.float64).reshape(shape)

    def integers(
        self, seed: int, high: int, shape: Any, *, domain: int, step: int = 0, lane: int = 0
    ) -> Any:
        """Draw whole numbers below `high`."""
        draws = self.draws(self.stream(seed, domain, step, lane))
        drawn = [self.below(next(draws), high) for _ in range(int(np.prod(shape)))]
        return np.array(drawn, np.int64).reshape(shape)

    def noise_constants(self, density: float | int) -> Any:
        """Return numerator, bits of a block and its table."""
        numerator = self.numerator(density)
        bits = self.block_bits(numerator)
        return numerator, bits, np.array(self.table(numerator, bits), np.uint64)

    def positions(self, stream: Iterator[int], hits: int, bits: int) -> dict[int, int]:
        """Draw distinct positions of a block and their signs."""
        taken: dict[int, int] = {}
        while len(taken) < hits:
            word = next(stream)
            taken.setdefault(self.position(word, bits), self.sign(word))
        return taken

    def position(self, word: int, bits: int) -> int:
        """Take the high bits of a word."""
        return word >> 32 - bits

    def sign(self, word: int) -> int:
        """Read the lowest bit: 1 is minus."""
        return -1 if word % 2 else 1

    def noise_counter(self, block: int, draw: int, perturbation: int, step: int) -> Any:
        """Return the counter words of the noise of a block."""
        return block, draw, perturbation, step

    def blocks(self, size: int, bits: int) -> int:
        """Count blocks; the last may be cut."""
        return -(-size >> bits)

    def sparse_noise(
        self,
        seed: int,
        step: int,
        perturbation: int,
        size: int,
        density: float | int,
        blocks: Any = None,
    ) -> Any:
        """Draw positions and signs of a perturbation's nonzeros."""
        numerator = self.numerator(density)
        bits = self.block_bits(numerator)
        signs: dict[int, int] = {}
        chosen = range(self.blocks(size, bits)) if blocks is None else {*np.ravel(blocks).tolist()}
        for block in chosen:
            stream = (
                word
                for draw in count()
                for word in self.block(
                    self.noise_counter(block, draw, perturbation, step), self.key(seed)
                )
            )
            u = next(stream) * 2**32 + next(stream)
            hits = sum(threshold <= u for threshold in self.table(numerator, bits))
            first = block << bits
            signs |= {first + at: s for at, s in self.positions(stream, hits, bits).items()}
        inside = sorted(position for position in signs if position < size)
        return np.array(inside, np.int64), np.array([signs[i] for i in inside], np.int8)

    def sparse_noise_many(
        self,
        seed: int,
        step: int,
        perturbations: Any,
        size: int,
        density: float | int,
        blocks: Any = None,
    ) -> Any:
        """Draw noise of several perturbations, one after the other, and where each begins."""
        numbers = np.asarray(perturbations).tolist()
        drawn = [self.sparse_noise(seed, step, n, size, density, blocks) for n in numbers]
        offsets = np.cumsum([0, *(len(positions) for positions, _ in drawn)])
        positions, signs = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        return offsets.astype(np.int64), positions, signs

    def initial_codes(self, seed: int, shape: Any, zeros: float | int, layer: int = 0) -> Any:
        """Draw codes that training starts from: a share of zeros, and signs."""
        drawn = islice(self.stream(seed, INITIAL, 0, layer), int(np.prod(shape)))
        codes = [0 if self.is_zero(w, self.numerator(zeros)) else self.sign(w) for w in drawn]
        return np.array(codes, np.int8).reshape(shape)

    def is_zero(self, word: int, numerator: int) -> bool:
        """Compare a word with the share of zeros."""
        return word < numerator

    def subset(self, stream: Iterator[int], n: int, size: int) -> list[int]:
        """Draw Floyd's subset: a repeated number gives way to the largest so far."""
        draws, taken = self.draws(stream), set[int]()
        for j in range(n - size, n):
            t = self.below(next(draws), j + 1)
            taken.add(j if t in taken else t)
        return sorted(taken)

    def draw_units(self, seed: int, step: int, layer: int, n_out: int, count: int) -> Any:
        """Draw units of a layer."""
        drawn = self.subset(self.stream(seed, UNITS, step, layer), n_out, count)
        return np.array(drawn, np.int64)

    def lane(self, layer: int, unit: int) -> int:
        """Return the lane of a unit's inputs."""
        return layer * 2**20 + unit

    def draw_inputs(
        self, seed: int, step: int, layer: int, unit: int, n_in: int, count: int
    ) -> Any:
        """Draw inputs of a unit."""
        stream = self.stream(seed, INPUTS, step, self.lane(layer, unit))
        return np.array(self.subset(stream, n_in, count), np.int64)


def of(noise: Noise) -> dict[str, Callable[..., Any]]:
    """Return the public functions of a contract, each giving a tuple."""

    def in_tuple(function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap one array."""

        def call(**args: Any) -> Any:
            """Call, and return a tuple."""
            out = function(**args)
            return out if isinstance(out, tuple) else (out,)

        return call

    return {name: in_tuple(getattr(noise, name)) for name in NAMES}


NOISE = of(Noise())
