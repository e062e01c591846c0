"""Wrong variants of Philox and of what is drawn from it: each replaces one step of the contract."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from minibit.conformance.exact.noise import Noise, of

__all__ = ["NOISE"]


class NineRounds(Noise):
    """One round too few."""

    rounds = 9


class Doubles(Noise):
    """Products of two 32-bit words in doubles, which hold 53 bits."""

    def product(self, x: int, y: int) -> tuple[int, int]:
        """Divide a rounded product."""
        return int(float(x) * float(y) / 2**32), x * y % 2**32


class KeyNotWrapped(Noise):
    """Key sums that saturate."""

    def add(self, x: int, y: int) -> int:
        """Stop at the largest word."""
        return min(x + y, 2**32 - 1)


class CountsFirst(Noise):
    """Counters that go up before the first output, as in NumPy's generator."""

    def block(self, counter: Any, key: Any) -> list[int]:
        """Add 1 to the first word."""
        c0, *others = counter
        return super().block([(c0 + 1) % 2**32, *others], key)


class KeySwapped(Noise):
    """Key words in the other order."""

    def block(self, counter: Any, key: Any) -> list[int]:
        """Swap them."""
        k0, k1 = key
        return super().block(counter, (k1, k0))


class SeedSwapped(Noise):
    """Halves of the seed exchanged."""

    def key(self, seed: int) -> tuple[int, int]:
        """High half first."""
        return seed >> 32, seed % 2**32


class Seed32(Noise):
    """A seed of 32 bits."""

    def key(self, seed: int) -> tuple[int, int]:
        """Low half alone."""
        return seed % 2**32, 0


class CounterOrder(Noise):
    """Lane and step exchanged."""

    def counter(self, block: int, domain: int, lane: int, step: int) -> tuple[int, ...]:
        """Step before lane."""
        return block, domain << 24, step, lane

    def noise_counter(self, block: int, draw: int, perturbation: int, step: int) -> Any:
        """Step before perturbation."""
        return block, draw, step, perturbation


class StartsAtBlocks(Noise):
    """Streams that can only begin at a block of four words."""

    def stream(self, seed: int, domain: int, step: int, lane: int, start: int = 0) -> Any:
        """Round the start down."""
        return super().stream(seed, domain, step, lane, start // 4 * 4)


class Start32(Noise):
    """A start of 32 bits."""

    def stream(self, seed: int, domain: int, step: int, lane: int, start: int = 0) -> Any:
        """Cut the start."""
        return super().stream(seed, domain, step, lane, start % 2**32)


class Words16(Noise):
    """Lane, step and perturbation of 16 bits."""

    def counter(self, block: int, domain: int, lane: int, step: int) -> tuple[int, ...]:
        """Cut lane and step."""
        return super().counter(block, domain, lane % 2**16, step % 2**16)

    def noise_counter(self, block: int, draw: int, perturbation: int, step: int) -> Any:
        """Cut perturbation and step."""
        return block, draw, perturbation % 2**16, step % 2**16


class Uniform32(Noise):
    """Uniform numbers of 32 bits."""

    def unit(self, first: int, second: int) -> float:
        """Use one word alone."""
        return first / 2**32


class UniformSwapped(Noise):
    """The second word is the high half."""

    def unit(self, first: int, second: int) -> float:
        """Exchange the words."""
        return super().unit(second, first)


class Uniform64(Noise):
    """All 64 bits, which rounding may bring to 1."""

    def unit(self, first: int, second: int) -> float:
        """Divide a rounded integer."""
        return (first * 2**32 + second) / 2**64


class Remainder(Noise):
    """Remainders, in place of the high half of a product."""

    def below(self, u: int, high: int) -> int:
        """Take the remainder."""
        return u % high


class BelowInDoubles(Noise):
    """Products in doubles."""

    def below(self, u: int, high: int) -> int:
        """Round twice."""
        return int(float(u) / 2**64 * high)


class Draws32(Noise):
    """Draws of one word."""

    def draws(self, stream: Any) -> Any:
        """Take a word for a draw."""
        for word in stream:
            yield word << 32


class LowWordFirst(Noise):
    """The first word of a draw is its low half."""

    def draws(self, stream: Any) -> Any:
        """Exchange the halves."""
        while True:
            low = next(stream)
            yield next(stream) << 32 | low


class HalfUp(Noise):
    """Numerators rounded half up."""

    def numerator(self, share: float | int) -> int:
        """Add one half."""
        return share if isinstance(share, int) else int(Fraction(share) * 2**32 + Fraction(1, 2))


class RoundedDown(Noise):
    """Numerators cut, as a cast to an integer does."""

    def numerator(self, share: float | int) -> int:
        """Drop the fraction."""
        return share if isinstance(share, int) else int(Fraction(share) * 2**32)


class SeedWraps(Noise):
    """Seeds below 0, which wrap in unsigned words."""

    def key(self, seed: int) -> tuple[int, int]:
        """Take the remainder."""
        return super().key(seed % 2**64)


class BlocksWrap(Noise):
    """Blocks that are counted in 32 bits."""

    def noise_counter(self, block: int, draw: int, perturbation: int, step: int) -> Any:
        """Begin anew behind 2**32 blocks."""
        return block % 2**32, draw, perturbation, step


class NumeratorAsShare(Noise):
    """An integer read as a share."""

    def numerator(self, share: float | int) -> int:
        """Make no difference, but for what is beyond 1."""
        return min(round(Fraction(share) * 2**32), 2**32)


class BlockTooSmall(Noise):
    """Fewer than one nonzero per block, not at most one."""

    def block_bits(self, numerator: int) -> int:
        """Use < for <=."""
        return next((b for b in range(16, 4, -1) if numerator << b < 2**32), 4)


class BlockTooLarge(Noise):
    """A block that may expect more than one."""

    def block_bits(self, numerator: int) -> int:
        """Round the logarithm up."""
        return min(16, max(4, super().block_bits(numerator) + (numerator % 2**20 == 1)))


class BlockUnbounded(Noise):
    """Blocks of 2**20."""

    def block_bits(self, numerator: int) -> int:
        """Go on to 20 bits."""
        return next((b for b in range(20, 4, -1) if 0 < numerator << b <= 2**32), 4)

    def table(self, numerator: int, bits: int) -> tuple[int, ...]:
        """Leave the table as of 2**16."""
        return super().table(numerator, min(bits, 16))


class TableInDoubles(Noise):
    """Binomials by their ratio, in doubles."""

    def table(self, numerator: int, bits: int) -> tuple[int, ...]:
        """Add up floats."""
        share, block = numerator / 2**32, 2**bits
        term, total, table = (1 - share) ** block, 0.0, []
        for hits in range(block):
            total += term
            if total * 2**64 >= 2**64 - 1:
                break
            table.append(int(total * 2**64))
            term *= (block - hits) / (hits + 1) * (share / max(1 - share, 1e-300))
        return tuple(table)


class Table96(Noise):
    """Binomials by their ratio, in fixed point with 96 fractional bits."""

    def table(self, numerator: int, bits: int) -> tuple[int, ...]:
        """Cut every term to 96 bits."""
        block, q, total, table = 2**bits, 2**32 - numerator, 0, []
        term = q << 64
        for _ in range(bits):
            term = term * term >> 96
        for hits in range(block):
            total += term
            if total >> 32 >= 2**64 - 1:
                break
            table.append(total >> 32)
            term = term * (block - hits) * numerator // ((hits + 1) * max(q, 1))
        return tuple(table)


class TableWithoutEnd(Noise):
    """A table that goes on after the probability is spent."""

    def table(self, numerator: int, bits: int) -> tuple[int, ...]:
        """Add a last entry."""
        return (*super().table(numerator, bits), 2**64 - 1)


class LowPositions(Noise):
    """Positions from the low bits."""

    def position(self, word: int, bits: int) -> int:
        """Mask the word."""
        return word & (1 << bits) - 1


class HighSign(Noise):
    """Signs from the highest bit."""

    def sign(self, word: int) -> int:
        """Read it as a signed word."""
        return -1 if word >> 31 else 1


class SignFlipped(Noise):
    """A set bit is plus."""

    def sign(self, word: int) -> int:
        """Exchange the signs."""
        return 1 if word % 2 else -1


class DrawNotCounted(Noise):
    """Further words of a block come from the next block's counter."""

    def noise_counter(self, block: int, draw: int, perturbation: int, step: int) -> Any:
        """Count blocks in the place of draws."""
        return block + draw, 0, perturbation, step


class SecondSign(Noise):
    """A position that comes twice takes its second sign."""

    def positions(self, stream: Any, hits: int, bits: int) -> dict[int, int]:
        """Overwrite."""
        taken: dict[int, int] = {}
        while len(taken) < hits:
            word = next(stream)
            taken[self.position(word, bits)] = self.sign(word)
        return taken


class DuplicatesCount(Noise):
    """A position that comes twice counts twice."""

    def positions(self, stream: Any, hits: int, bits: int) -> dict[int, int]:
        """Draw as many words as there are hits."""
        taken: dict[int, int] = {}
        for _ in range(hits):
            word = next(stream)
            taken.setdefault(self.position(word, bits), self.sign(word))
        return taken


class CutBlockSkipped(Noise):
    """A last block that is not full is left out."""

    def blocks(self, size: int, bits: int) -> int:
        """Round down."""
        return size >> bits


class CutBlockDrawnAgain(Noise):
    """Positions beyond the end are drawn again."""

    def sparse_noise(self, *args: Any, **keywords: Any) -> Any:
        """Fold what is beyond the end back."""
        size = keywords["size"]
        bits = self.block_bits(self.numerator(keywords["density"]))
        whole = super().sparse_noise(**{**keywords, "size": self.blocks(size, bits) << bits})
        positions, index = np.unique(whole[0] % size, return_index=True)
        return positions, whole[1][index]


class AtLeastOne(Noise):
    """Every block draws a nonzero."""

    def positions(self, stream: Any, hits: int, bits: int) -> dict[int, int]:
        """Raise no hits to one."""
        return super().positions(stream, max(hits, 1), bits)


class BlocksInSequence(Noise):
    """Blocks are numbered from the first that is asked for."""

    def sparse_noise(self, *args: Any, **keywords: Any) -> Any:
        """Draw as many blocks, from 0 on."""
        blocks = np.ravel(keywords.get("blocks", []))
        return super().sparse_noise(**{**keywords, "blocks": range(len(blocks))})


class BlockTwice(Noise):
    """Draw each block as often as it is asked for."""

    def sparse_noise(self, *args: Any, **keywords: Any) -> Any:
        """Join the draws of single blocks."""
        blocks = sorted(np.ravel(keywords.pop("blocks")).tolist())
        drawn = [super(BlockTwice, self).sparse_noise(**keywords, blocks=[b]) for b in blocks]
        positions, signs = zip(*drawn, strict=True)
        return np.concatenate(positions), np.concatenate(signs)


class ZeroAtTie(Noise):
    """A word equal to the numerator is a zero."""

    def is_zero(self, word: int, numerator: int) -> bool:
        """Use <= for <."""
        return word <= numerator


class ZerosRoundedDown(Noise):
    """A threshold that is one too small."""

    def is_zero(self, word: int, numerator: int) -> bool:
        """Lose one."""
        return word < numerator - 1


class Zeros32(Noise):
    """A threshold of 32 bits."""

    def is_zero(self, word: int, numerator: int) -> bool:
        """Lose 2**32."""
        return word < numerator % 2**32


class NoLane(Noise):
    """The layer, or unit, is in no lane."""

    def counter(self, block: int, domain: int, lane: int, step: int) -> tuple[int, ...]:
        """Use lane 0."""
        return super().counter(block, domain, 0, step)


class LaneWithoutLayer(Noise):
    """Inputs of a unit do not depend on its layer."""

    def lane(self, layer: int, unit: int) -> int:
        """Use the unit alone."""
        return unit


class LaneSwapped(Noise):
    """Unit and layer exchanged."""

    def lane(self, layer: int, unit: int) -> int:
        """Put the unit high."""
        return unit * 2**20 + layer


class DrawnAgain(Noise):
    """A number that comes twice is drawn again, not replaced by the largest."""

    def subset(self, stream: Any, n: int, size: int) -> list[int]:
        """Draw below n until there are enough."""
        draws, taken = self.draws(stream), set[int]()
        while len(taken) < size:
            taken.add(self.below(next(draws), n))
        return sorted(taken)


class Shuffled(Noise):
    """Another algorithm: the first of a shuffled list."""

    def subset(self, stream: Any, n: int, size: int) -> list[int]:
        """Swap from the front on."""
        numbers, draws = list(range(n)), self.draws(stream)
        for i in range(size):
            j = i + self.below(next(draws), n - i)
            numbers[i], numbers[j] = numbers[j], numbers[i]
        return sorted(numbers[:size])


class Unsorted(Noise):
    """Numbers in the order in which they are drawn."""

    def subset(self, stream: Any, n: int, size: int) -> list[int]:
        """Leave the order."""
        draws, taken = self.draws(stream), dict[int, None]()
        for j in range(n - size, n):
            t = self.below(next(draws), j + 1)
            taken[j if t in taken else t] = None
        return list(taken)


class OneAtLeast(Noise):
    """Count 0 draws one."""

    def subset(self, stream: Any, n: int, size: int) -> list[int]:
        """Raise the count."""
        return super().subset(stream, n, max(size, 1))


class OneShort(Noise):
    """The last of the loop is left out."""

    def subset(self, stream: Any, n: int, size: int) -> list[int]:
        """Draw one fewer."""
        return super().subset(stream, n - 1, size - 1)


class DomainSigned(Noise):
    """The domain in the lowest byte of its word."""

    def counter(self, block: int, domain: int, lane: int, step: int) -> tuple[int, ...]:
        """Forget the shift."""
        return block % 2**32, domain, lane, step


class OrderLost(Noise):
    """Perturbations sorted by number."""

    def sparse_noise_many(self, *args: Any, **keywords: Any) -> Any:
        """Sort them."""
        numbers = np.sort(keywords["perturbations"])
        return super().sparse_noise_many(**{**keywords, "perturbations": numbers})


WRONG: dict[str, tuple[type[Noise], str]] = {
    "nine-rounds": (NineRounds, "philox4x32 words"),
    "product-in-doubles": (Doubles, "philox4x32"),
    "key-sum-saturates": (KeyNotWrapped, "philox4x32"),
    "counts-before-output": (CountsFirst, "philox4x32"),
    "key-words-swapped": (KeySwapped, "philox4x32"),
    "seed-halves-swapped": (SeedSwapped, "words sparse_noise"),
    "seed-of-32-bits": (Seed32, "words sparse_noise"),
    "counter-order": (CounterOrder, "words sparse_noise"),
    "domain-not-shifted": (DomainSigned, "words uniform integers"),
    "starts-at-blocks": (StartsAtBlocks, "words"),
    "start-of-32-bits": (Start32, "words"),
    "counter-words-of-16-bits": (Words16, "words sparse_noise"),
    "uniform-of-32-bits": (Uniform32, "uniform"),
    "words-swapped": (UniformSwapped, "uniform"),
    "uniform-of-64-bits": (Uniform64, "uniform"),
    "remainder": (Remainder, "integers"),
    "product-of-draw-in-doubles": (BelowInDoubles, "integers"),
    "draws-of-32-bits": (Draws32, "integers draw_units draw_inputs"),
    "low-word-first": (LowWordFirst, "integers"),
    "numerator-half-up": (HalfUp, "noise_constants"),
    "numerator-rounded-down": (RoundedDown, "noise_constants sparse_noise initial_codes"),
    "seed-wraps": (SeedWraps, "words"),
    "blocks-wrap": (BlocksWrap, "sparse_noise"),
    "numerator-as-share": (NumeratorAsShare, "noise_constants initial_codes"),
    "block-too-small": (BlockTooSmall, "noise_constants"),
    "block-too-large": (BlockTooLarge, "noise_constants"),
    "block-unbounded": (BlockUnbounded, "noise_constants"),
    "table-in-doubles": (TableInDoubles, "noise_constants"),
    "table-of-96-bits": (Table96, "noise_constants"),
    "table-without-end": (TableWithoutEnd, "noise_constants"),
    "position-from-low-bits": (LowPositions, "sparse_noise"),
    "sign-from-high-bit": (HighSign, "sparse_noise initial_codes"),
    "signs-exchanged": (SignFlipped, "sparse_noise initial_codes"),
    "draw-not-counted": (DrawNotCounted, "sparse_noise"),
    "second-sign-kept": (SecondSign, "sparse_noise"),
    "duplicates-count": (DuplicatesCount, "sparse_noise"),
    "cut-block-skipped": (CutBlockSkipped, "sparse_noise"),
    "cut-block-drawn-again": (CutBlockDrawnAgain, "sparse_noise"),
    "one-at-least": (AtLeastOne, "sparse_noise"),
    "block-twice": (BlockTwice, "sparse_noise"),
    "blocks-in-sequence": (BlocksInSequence, "sparse_noise"),
    "order-lost": (OrderLost, "sparse_noise_many"),
    "zero-at-tie": (ZeroAtTie, "initial_codes"),
    "zeros-rounded-down": (ZerosRoundedDown, "initial_codes"),
    "zeros-of-32-bits": (Zeros32, "initial_codes"),
    "lane-left-out": (NoLane, "initial_codes draw_units"),
    "lane-without-layer": (LaneWithoutLayer, "draw_inputs"),
    "lane-swapped": (LaneSwapped, "draw_inputs"),
    "drawn-again": (DrawnAgain, "draw_units"),
    "shuffled": (Shuffled, "draw_units"),
    "unsorted": (Unsorted, "draw_units draw_inputs"),
    "one-short": (OneShort, "draw_units"),
    "count-raised": (OneAtLeast, "draw_units"),
}
NOISE: dict[str, Callable[..., Any]] = {
    f"{name}/{flag}": of(variant())[name]
    for flag, (variant, names) in WRONG.items()
    for name in names.split()
}
