# %% [markdown]
# # Solutions: noise that every language reproduces

# %%
from math import comb, exp, factorial

import numpy as np

from minibit.noise import noise_constants, sparse_noise, words

# %% [markdown]
# **1.** One call covers the count and two hits; a block of $k$ hits takes
# $\lceil (k - 2) / 4 \rceil$ more. Large blocks are cheaper *per hit*. But what is asked for is
# often a row, and a block is drawn whole: at 8 hits to a block, a row of 784 weights makes us draw
# some 8 times as many hits for nothing.


# %%
def calls_per_hit(m):
    """Philox calls over hits, for counts of Poisson's law with mean m (duplicates aside)."""
    law = [exp(-m) * m**k / factorial(k) for k in range(60)]
    return sum(p * (1 + max(-(-(k - 2) // 4), 0)) for k, p in enumerate(law)) / m


cost = {m: calls_per_hit(m) for m in (1, 8)}
print("calls per hit:", {m: round(each, 2) for m, each in cost.items()})
assert 1.05 < cost[1] < 1.15
assert 0.3 < cost[8] < 0.4
numerator, block_bits, _ = noise_constants(6e-5)
B = 1 << block_bits
drawn = {m: -(-784 // (m * B)) * m for m in (1, 8)}  # hits of the blocks that hold a row
print(f"hits that a row needs: {784 * 6e-5:.2f}; drawn for it, at least:", drawn)
assert drawn[8] * cost[8] > 2 * drawn[1] * cost[1]  # the calls for one row
some = sparse_noise(0, 1, 2, 20 * B, 6e-5, blocks=[7])
whole = sparse_noise(0, 1, 2, 20 * B, 6e-5)
np.testing.assert_array_equal(some[0], whole[0][whole[0] // B == 7])

# %% [markdown]
# **2.** Places stay as they are, and a sign is still a fair coin that nothing else depends on: the
# statistics hold, and so does `test_signs_are_even_and_independent_of_place_and_count`. But they
# are other numbers. `test_sparse_noise_equals_the_oracle_at_every_density` fails, at the first
# block with a word whose place was taken. A law is not a format.


# %%
def block_of(stream, count, later):
    """Place to sign, for `count` places of 16; of a place named twice, the first or later sign."""
    signs = {}
    for word in stream.tolist():
        if len(signs) == count:
            break
        place = word >> 28
        if later or place not in signs:
            signs[place] = 1 - 2 * (word & 1)
    return signs


streams = words(0, 255, 0, count=4000 * 64).reshape(4000, 64)  # (blocks, words)
first, later = ([block_of(s, 8, rule) for s in streams] for rule in (False, True))
assert all(a.keys() == b.keys() for a, b in zip(first, later, strict=True))
for blocks in (first, later):
    assert abs(sum(sum(b.values()) for b in blocks)) < 4 * np.sqrt(8 * 4000)
other = np.mean([a != b for a, b in zip(first, later, strict=True)])
print(f"{other:.0%} of the blocks have another sign somewhere")
assert other > 0.5

# %% [markdown]
# **3.** The lowest bit of the place *is* then the sign: odd places are always -1. Signs are even
# over all; what notices is their independence of the place.

# %%
word = words(0, 255, 1, count=10_000)
place, sign = (word & 15).astype(int), 1 - 2 * (word & 1).astype(int)
assert abs(sign.sum()) < 4 * 100
assert np.corrcoef(place % 2, sign)[0, 1] < -0.999
honest = np.corrcoef((word >> np.uint32(28)) % 2, sign)[0, 1]  # top bits and the lowest
assert abs(honest) < 4 / 100

# %% [markdown]
# **4.** Rename the numbers by any permutation: the draws have the same law as before, so a subset
# and its image are equally likely, and permutations lead from any subset of $m$ to any other. For
# $m = n$ the $i$-th new number takes $n / (n - i + 1)$ draws on average:
# $n\,(1 + 1/2 + \dots + 1/n)$ in all, where Floyd takes $n$.

# %%
rng = np.random.default_rng(0)


def by_repeating(n, m):
    """Subset and number of draws."""
    chosen, draws = set(), 0
    while len(chosen) < m:
        chosen.add(int(rng.integers(n)))
        draws += 1
    return frozenset(chosen), draws


subsets = [by_repeating(5, 2)[0] for _ in range(10_000)]
counts = np.array([subsets.count(s) for s in set(subsets)])
assert counts.size == comb(5, 2)
assert (np.abs(counts - 1000) < 4 * np.sqrt(1000 * 0.9)).all()
expected = 16 * sum(1 / i for i in range(1, 17))
mean = np.mean([by_repeating(16, 16)[1] for _ in range(4000)])
print(f"16 of 16: {mean:.1f} draws, expected {expected:.1f}; Floyd takes 16")
assert abs(mean - expected) < 1.5

# %% [markdown]
# **5.** Cut every product to so many bits and compare with the exact floors. Rounding errors of
# some units in the last place grow by a factor of $2^{14}$ as $P(0)$ is squared 14 times, so 64
# bits are far from enough; what is needed beyond depends on how near to a whole number a floor
# happens to be.


# %%
def table_in(bits, entries):
    """Count table with all intermediate results cut to `bits` behind the point."""
    p, q = numerator, 2**32 - numerator
    term = q << bits >> 32
    for _ in range(block_bits):
        term = term * term >> bits
    total, table = term, []
    for j in range(entries):
        table.append(total >> (bits - 64))
        term = term * (B - j) * p // ((j + 1) * q)
        total += term
    return table


exact = noise_constants(6e-5)[2].tolist()
right = [bits for bits in range(64, 160) if table_in(bits, len(exact)) == exact]
least = next(bits for bits in right if all(more in right for more in range(bits, 160)))
print(f"right from {least} bits on")
assert 70 < least < 110
