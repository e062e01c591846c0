"""Compiled Philox streams, sparse noise and subsets; `minibit.noise` teaches and specifies them.

All words are held in uint64, so that a product of two is exact and nothing turns to float.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minibit.kernels.compiling import Array, njit

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
MASK, HALF, ONE = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(1)


@njit(cache=True, nogil=True)
def _philox(c0: Any, c1: Any, c2: Any, c3: Any, seed: Any) -> Any:
    """Philox4x32-10 of one counter: four words."""
    k0, k1 = seed & MASK, seed >> HALF
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> HALF) ^ c1 ^ k0, p1 & MASK, (p0 >> HALF) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1, c2, c3


@njit(cache=True, nogil=True)
def words(seed: np.uint64, domain: int, step: int, count: int, lane: int, start: int) -> Array:
    """Words ``start, ..., start + count - 1`` of a stream."""
    out = np.empty(count, np.uint32)
    purpose, lane64, step64 = np.uint64(domain << 24), np.uint64(lane), np.uint64(step)
    for block in range(start // 4, (start + count + 3) // 4):
        four = _philox(np.uint64(block), purpose, lane64, step64, seed)
        at = 4 * block - start
        for i in range(4):
            if 0 <= at + i < count:
                out[at + i] = four[i]
    return out


@njit(cache=True, nogil=True)
def _doubled(old: Any) -> Any:
    """Copy an array into the front of one of twice its length."""
    new = np.empty(2 * len(old), old.dtype)
    new[: len(old)] = old
    return new


@njit(cache=True, nogil=True)
def sparse_noise(seed, step, perturbations, blocks, size, block_bits, table):
    """Draw the given blocks (increasing) of each perturbation, sorted by position within each."""
    most, shift, step64 = len(table), np.uint64(32 - block_bits), np.uint64(step)
    positions = np.empty(1024, np.int64)
    signs = np.empty(1024, np.int8)
    offsets = np.zeros(len(perturbations) + 1, np.int64)
    end = 0
    for i in range(len(perturbations) if most else 0):
        number = np.uint64(perturbations[i])
        for block in blocks:
            draw = np.uint64(0)  # of domain NOISE, which is 0
            four = _philox(np.uint64(block), draw, number, step64, seed)
            u = four[0] << HALF | four[1]
            count = 0  # #{j : T_j <= u}
            while count < most and table[count] <= u:
                count += 1
            while end + count > len(positions):
                positions, signs = _doubled(positions), _doubled(signs)
            begin, word = end, 2
            while end < begin + count:
                if word == 4:
                    draw += ONE
                    four = _philox(np.uint64(block), draw, number, step64, seed)
                    word = 0
                value = four[word]
                word += 1
                position = (block << block_bits) + np.int64(value >> shift)
                at = end
                while at > begin and positions[at - 1] > position:
                    at -= 1
                if at > begin and positions[at - 1] == position:
                    continue  # taken
                for later in range(end, at, -1):
                    positions[later] = positions[later - 1]
                    signs[later] = signs[later - 1]
                positions[at] = position
                signs[at] = -1 if value & ONE else 1
                end += 1
            while end > begin and positions[end - 1] >= size:
                end -= 1
        offsets[i + 1] = end
    return offsets, positions[:end].copy(), signs[:end].copy()


@njit(cache=True, nogil=True)
def subset(seed: np.uint64, domain: int, step: int, lane: int, n: int, count: int) -> Array:
    """Floyd's algorithm: `count` distinct numbers below n, in order."""
    if count == n:
        return np.arange(n)
    drawn = words(seed, domain, step, 2 * count, lane, np.int64(0))
    taken = np.zeros(n, np.bool_)
    for i in range(count):
        j = n - count + i
        high, low = np.uint64(drawn[2 * i]), np.uint64(drawn[2 * i + 1])
        limit = np.uint64(j + 1)  # below 2**32
        t = np.int64((high * limit + (low * limit >> HALF)) >> HALF)
        taken[j if taken[t] else t] = True
    chosen, end = np.empty(count, np.int64), 0
    for i in range(n):
        if taken[i]:
            chosen[end] = i
            end += 1
    return chosen


@njit(cache=True, nogil=True)
def subsets(seed, domain, step, lanes, sizes, counts):
    """Draw a `subset` of each lane, laid end to end."""
    drawn, end = np.empty(counts.sum(), np.int64), 0
    for k in range(lanes.size):
        drawn[end : end + counts[k]] = subset(seed, domain, step, lanes[k], sizes[k], counts[k])
        end += counts[k]
    return drawn
