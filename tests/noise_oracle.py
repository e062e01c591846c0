"""Reproducible noise in Python integers and exact fractions alone: what drawing is held to.

Scalar, and written from the docstrings of `minibit.noise`; nothing here imports the package.
"""

from fractions import Fraction
from functools import cache
from itertools import count, islice
from math import comb


def oracle_philox(counter, key):
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def oracle_words(seed, domain, step, lane, start=0):
    """Yield a stream's words from `start` on."""
    key = (seed % 2**32, seed // 2**32)
    for block in count(start // 4):
        four = oracle_philox((block, domain * 2**24, lane, step), key)
        yield from four[start - 4 * block if block == start // 4 else 0 :]


def oracle_draws(seed, domain, step, lane):
    """Yield a stream's 64-bit draws."""
    stream = oracle_words(seed, domain, step, lane)
    while True:
        yield next(stream) * 2**32 + next(stream)


def oracle_integers(seed, domain, step, lane, high):
    """Yield whole numbers below `high`: the high halves of draw times bound."""
    for u in oracle_draws(seed, domain, step, lane):
        yield u * high // 2**64


def oracle_uniforms(seed, domain, step, lane):
    """Yield 53 bits of each pair of words, as a fraction of 1: exact in float64."""
    stream = oracle_words(seed, domain, step, lane)
    while True:
        yield (2**26 * (next(stream) // 32) + next(stream) // 64) / 2**53


def oracle_numerator(share):
    return share if isinstance(share, int) else round(Fraction(share) * 2**32)


@cache
def oracle_constants(numerator):
    """Block bits and count table, by the sentence that defines each."""
    bits = max([4] + [b for b in range(4, 17) if numerator * 2**b <= 2**32])
    block, q = 2**bits, 2**32 - numerator
    table, total = [], 0
    for j in range(block + 1):
        if numerator == 0:
            total = 1 << 32 * block  # no nonzero, for certain
        else:
            total += comb(block, j) * numerator**j * q ** (block - j)
        threshold = total * 2**64 >> 32 * block
        if threshold >= 2**64 - 1:
            return bits, table
        table.append(threshold)
    raise AssertionError("the whole probability is 1")


def oracle_sparse_noise(seed, step, perturbation, size, share, blocks=None):
    bits, table = oracle_constants(oracle_numerator(share))
    noise = {}
    for block in range(-(-size // 2**bits)) if blocks is None else set(blocks):
        key = (seed % 2**32, seed // 2**32)
        stream = (
            w for draw in count() for w in oracle_philox((block, draw, perturbation, step), key)
        )
        u = next(stream) * 2**32 + next(stream)
        hits, taken = sum(threshold <= u for threshold in table), {}
        while len(taken) < hits:
            word = next(stream)
            taken.setdefault(word // 2 ** (32 - bits), -1 if word % 2 else 1)
        noise |= {block * 2**bits + at: sign for at, sign in taken.items()}
    inside = sorted(position for position in noise if position < size)
    return inside, [noise[position] for position in inside]


def oracle_initial_codes(seed, size, share, layer):
    drawn = islice(oracle_words(seed, 1, 0, layer), size)
    return [0 if w < oracle_numerator(share) else -1 if w % 2 else 1 for w in drawn]


def oracle_subset(seed, domain, step, lane, n, size):
    taken = set()
    for j, u in zip(range(n - size, n), oracle_draws(seed, domain, step, lane), strict=False):
        t = u * (j + 1) // 2**64
        taken.add(j if t in taken else t)
    return sorted(taken)
