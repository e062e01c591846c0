# %% [markdown]
# # Noise that every machine reproduces
#
# **The question.** A model is to be a seed and a list of its steps. Then the noise of step 1,312
# must be the same in ten years, on another processor, in another language, and for three rows of
# one layer alone if no more is asked for. Which random numbers allow that?
#
# Not those of a library. NumPy promises a `Generator`'s numbers only for the same build (Kern
# 2018); PyTorch's on a GPU depend on how many multiprocessors it has (PyTorch 2026); JAX changed
# its values in version 0.5.0 (JAX 2025). They are free to: nobody expects to read a stored model
# out of them. We do, so the noise is part of our file format, and this chapter is its
# specification.

# %%
import time
from math import comb

import matplotlib.pyplot as plt
import numpy as np

from minibit import noise, plots

plots.style(show=True)

# %% [markdown]
# ## Why not floats
#
# Sparse noise hits each weight (makes it nonzero) with a small probability $s$. The usual way jumps
# from one hit to the next: with $u$ uniform, the gap is $\lfloor \ln u / \ln(1-s) \rfloor$. But
# `log` is not specified to the last bit, and C libraries differ in it. Here are two float32
# roundings of that one formula, by natural and by binary logarithms.

# %%
s = 6e-5
u = (noise.uniform(0, 100_000) + 2.0**-25).astype(np.float32)  # (draws,)
natural = np.floor(np.log(u) / np.float32(np.log1p(-s)))
binary = np.floor(np.log2(u) / np.float32(np.log1p(-s) / np.log(2)))
differ = np.mean(natural != binary)
print(f"{differ:.2%} of the gaps differ")
assert differ > 1e-4

# %% [markdown]
# One different gap moves every hit after it. In float64 it is rarer, not gone. A gap of about $1/s$
# with a relative error of $2^{-53}$ crosses an integer with a probability of some $2^{-53}/s$, and
# a replay of a model of GPT-3's size draws many gaps (93,750 steps of 1,024 perturbations, half of
# them kept, density $3.7 \cdot 10^{-6}$ of $175 \cdot 10^9$ weights):

# %%
gaps = 93_750 * 1_024 / 2 * 175e9 * 3.7e-6
print(f"{gaps:.1e} gaps, about {gaps * 2.0**-53 / 3.7e-6:,.0f} of them in doubt")
assert gaps * 2.0**-53 / 3.7e-6 > 100

# %% [markdown]
# So no logarithm, and no float at all: every decision below compares integers.
#
# ## A generator without a state
#
# A generator with a state gives its millionth number after the 999,999 before it. A
# **counter-based** one is a plain function
#
# $$\text{words} = f(\text{key}, \text{counter}),$$
#
# a cipher of the counter. Ask for any counter, in any order, on any thread. We take
# **Philox4x32-10** (Salmon et al. 2011): four 32-bit counter words, a key of two, ten rounds. A
# round multiplies two of the words by constants, and exchanges the halves of the products:


# %%
def one_round(c, k):
    """One round of Philox, on Python integers."""
    high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
    high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
    return [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]


def philox_rounds(counter, key, rounds=10):
    """The words after each round; the key grows by fixed constants between rounds."""
    states = [list(counter)]
    for r in range(rounds):
        k = [(key[0] + r * 0x9E3779B9) % 2**32, (key[1] + r * 0xBB67AE85) % 2**32]
        states.append(one_round(states[-1], k))
    return states


for r, state in enumerate(philox_rounds([0, 0, 0, 0], [0, 0])):
    print(f"after round {r:2}:", " ".join(f"{word:08x}" for word in state))

# %% [markdown]
# The last line is the first of the three answers that its authors publish. All three:

# %%
KNOWN = """
00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""
for line in KNOWN.split("\n")[1:-1]:
    numbers = [int(word, 16) for word in line.split()]
    counter, key, answer = numbers[:4], numbers[4:6], numbers[6:]
    assert philox_rounds(counter, key)[-1] == answer
    assert noise.philox4x32(counter, key).tolist() == answer

# %% [markdown]
# How many rounds does mixing take? Flip one bit of the counter, and count which share of the 128
# output bits flip. A random function flips half of them.

# %%
states = []
for flip in [0, *(1 << bit for bit in range(128))]:  # bits of the last known answer's counter
    flipped = [word ^ flip >> 32 * i & 0xFFFFFFFF for i, word in enumerate(counter)]
    states.append(philox_rounds(flipped, key))
states = np.array(states, np.uint32)  # (1 + 128, rounds + 1, 4)
share = np.bitwise_count(states[1:] ^ states[0]).sum(axis=2) / 128  # (128, rounds + 1)
assert abs(share[:, 10].mean() - 0.5) < 0.01
assert share[:, 2].min() < 0.15 < 0.35 < share[:, 6:].min()

# %% tags=["hide-input"]
fig, axes = plt.subplots()
axes.fill_between(range(11), share.min(0), share.max(0), alpha=0.25, label="least to most of 128")
axes.plot(share.mean(0), marker="o", label="mean over the flipped bit")
plots.label_axes(axes, "rounds", "share of output bits that flip")

# %% [markdown]
# After two rounds some bits have reached a tenth of the output; from six on, each flips about half
# of it. Salmon et al. find that seven rounds pass the test battery BigCrush; ten leave a margin.
#
# ## Where each number lives
#
# | word | holds |
# |---|---|
# | key | the seed: its low 32 bits, then its high ones |
# | counter 0 | the block |
# | counter 1 | the draw within the block (24 bits), and the *domain* above it (8 bits) |
# | counter 2 | the perturbation, or another lane (the layer, the unit) |
# | counter 3 | the step |
#
# The domain keeps noise, initial weights, batches and candidate draws apart: no two uses ever ask
# for the same counter. For everything but the noise, words are read as a *stream* over blocks 0, 1,
# 2, ...; any word of it is found at once.

# %%
stream = noise.words(seed=7, domain=noise.BATCH, step=3, count=1_000)
assert np.array_equal(noise.words(7, noise.BATCH, 3, count=5, start=900), stream[900:905])
assert noise.philox4x32([225, noise.BATCH << 24, 0, 3], [7, 0]).tolist() == stream[900:904].tolist()

# %% [markdown]
# ## Sparse noise, block by block
#
# One coin per weight would be simple, and costs a draw for each of 334,336 weights when 20 of them
# are hit. Instead, cut the weights into blocks of $B = 2^b$, and draw how many hits $k$ a block
# has. That count is binomial. With $p = \text{NUM}/2^{32}$ the density, as an exact fraction,
# precompute
#
# $$T_j = \left\lfloor 2^{64} \, P(k \le j) \right\rfloor, \qquad k = \#\{j : T_j \le u\} \text{ for
# one 64-bit draw } u.$$

# %%
for density in (6e-5, 1.5e-5, 3.7e-6):
    numerator, block_bits, table = noise.noise_constants(density)
    print(f"{density:.1e} = {numerator:6} / 2^32: blocks of 2^{block_bits}, T_0 = {table[0]:016x}")

numerator, block_bits, table = noise.noise_constants(6e-5)
B, p = 1 << block_bits, numerator / 2**32
binomial = np.array([comb(B, j) * p**j * (1 - p) ** (B - j) for j in range(6)])
assert np.allclose(np.diff(table[:6].astype(float)) / 2**64, binomial[1:], rtol=1e-9)

# %% [markdown]
# The table comes from exact rationals, so every language gets the same integers, and a count's
# probability is off by at most $2^{-64}$. $B$ is the largest power of two up to $1/p$, from $2^4$
# to $2^{16}$: so a block has between half a hit and one hit, as far as these limits allow. Then
# each further word names a place by its top $b$ bits and a sign by its lowest bit; a word whose
# place is taken is skipped. A binomial count, spread uniformly, is exactly the law of independent
# coins: the borders of the blocks leave no trace.
#
# One Philox call gives four words: two for the count, and two for the first two hits. Six
# perturbations, with their blocks:

# %%
size = 784 * 256 + 256 * 256 + 256 * 256 + 256 * 10  # the paper's MLP
print(f"{size:,} weights, of which a perturbation hits {size * 6e-5:.0f} on average")
offsets, positions, signs = noise.sparse_noise_many(0, 1, range(6), size, 6e-5)
owner = np.repeat(np.arange(6), np.diff(offsets))

# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(6.4, 2.8))
for sign, marker in ((1, "^"), (-1, "v")):
    axes.plot(positions[signs == sign], owner[signs == sign], marker, label=f"{sign:+d}")
axes.set_xticks(np.arange(0, size, B), minor=True)
axes.grid(axis="x", which="minor", alpha=0.5)
axes.grid(axis="x", which="major", visible=False)
plots.label_axes(axes, f"weight (lines: blocks of {B:,})", "perturbation")
axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
axes.invert_yaxis()

# %% [markdown]
# No block needs another. Weights of the third layer alone, from the blocks that hold them:

# %%
first, last = 784 * 256 + 256 * 256, 784 * 256 + 2 * 256 * 256  # where the third layer lies
ours = range(first // B, -(-last // B))
some, some_signs = noise.sparse_noise(0, 1, 2, size, 6e-5, blocks=ours)
whole, whole_signs = noise.sparse_noise(0, 1, 2, size, 6e-5)
inside = np.isin(whole // B, ours)
assert np.array_equal(some, whole[inside])
assert np.array_equal(some_signs, whole_signs[inside])
print(f"{len(ours)} of {-(-size // B)} blocks drawn, {some.size} of {whole.size} hits found")

# %% [markdown]
# The counts follow the binomial law; here over 200,000 blocks, to within four standard deviations.

# %%
blocks = 200_000
offsets, _, signs = noise.sparse_noise_many(1, 0, range(blocks), B, 6e-5)
observed = np.bincount(np.diff(offsets), minlength=6)[:6]
expected = blocks * binomial
spread = np.sqrt(expected * (1 - expected / blocks))
assert (abs(observed - expected) < 4 * spread).all()
assert abs(int(signs.sum())) < 4 * np.sqrt(signs.size)

# %% tags=["hide-input"]
fig, axes = plt.subplots()
axes.bar(range(6), observed / blocks, width=0.6, alpha=0.6, label="drawn")
axes.plot(expected / blocks, "ko", label="binomial")
plots.label_axes(axes, "hits in a block", "share of the blocks")

# %% [markdown]
# ## Initial weights, and which units may move
#
# One word per weight: below $Z = \text{zeros} \cdot 2^{32}$ it is 0, else its lowest bit is its
# sign. These weights are never stored. They are what the seed means.

# %%
codes = noise.initial_codes(0, (256, 784), zeros=0.7)
print({code: f"{np.mean(codes == code):.4f}" for code in (-1, 0, 1)})
assert abs(np.mean(codes == 0) - 0.7) < 4 * np.sqrt(0.7 * 0.3 / codes.size)

# %% tags=["hide-input"]
fig, panels = plt.subplots(1, 4, figsize=(6.4, 1.9))
for unit, panel in enumerate(panels):
    panel.imshow(codes[unit].reshape(28, 28), vmin=-1, vmax=1)
    panel.set(title=f"unit {unit}", xticks=[], yticks=[])

# %% [markdown]
# The method of the next chapter proposes changes to a few units. A subset of $m$ out of $n$ takes
# $m$ draws by **Floyd's algorithm**: for $j = n-m, \dots, n-1$ draw $t$ in $[0, j]$; take $t$, or
# $j$ itself if $t$ is taken already. After each turn the subset is uniform among those of its size
# within $[0, j]$: $j$ is in with probability (size)/($j$+1), as it must be.

# %%
print("units:", noise.draw_units(seed=0, step=0, layer=0, n_out=256, count=16).tolist())
print("inputs of unit 14:", noise.draw_inputs(0, 0, layer=0, unit=14, n_in=784, count=8).tolist())
pairs = np.array([noise.draw_units(0, step, 0, 5, 2) for step in range(10_000)])  # (steps, 2)
seen = np.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25)
seen = seen[seen > 0]  # the ten pairs
assert seen.size == 10
assert (abs(seen - 1_000) < 4 * np.sqrt(1_000 * 0.9)).all()

# %% [markdown]
# ## What it costs
#
# The noise of a step is 128 perturbations. One count a block stands in place of $B$ coins; timed
# here on the machine that made this page.

# %%
print(f"{128 * -(-size // B):,} counts in place of {128 * size:,} coins")
for density in (6e-5, 3.7e-6):
    noise.sparse_noise_many(0, 0, range(128), size, density)  # compiles, and makes the table
    start = time.perf_counter()
    for step in range(50):
        offsets, _, _ = noise.sparse_noise_many(0, step, range(128), size, density)
    each = (time.perf_counter() - start) / 50
    print(f"density {density:.1e}: {each * 1e6:,.0f} microseconds per step")

# %% [markdown]
# At density $3.7 \cdot 10^{-6}$ a perturbation has 1.24 hits on average, and some have none: the
# training step must say what such a perturbation scores.

# %%
offsets, _, _ = noise.sparse_noise_many(2, 0, range(20_000), size, 3.7e-6)
empty = np.mean(np.diff(offsets) == 0)
law = (1 - 3.7e-6) ** size
assert abs(round(3.7e-6 * 2**32) / 2**32 / 3.7e-6 - 1) < 3e-5  # the density that is drawn
print(f"{offsets[-1] / 20_000:.2f} hits on average; {empty:.3f} are empty, expected {law:.3f}")
assert abs(offsets[-1] / 20_000 - 1.24) < 0.03
assert abs(empty - law) < 4 * np.sqrt(law * (1 - law) / 20_000)

# %% [markdown]
# ## What a port needs
#
# - A product of two 32-bit words as 64 bits, and nothing else of arithmetic, for Philox.
# - The count table: exact integers once, or the 64-bit words copied from a log's constants.
# - The contracts in the docstrings of `philox4x32`, `words`, `noise_constants`, `sparse_noise`,
#   `initial_codes`, `draw_units` and `draw_inputs`: each says the domain, lane and order of its
#   words.
# - `minibit/vectors/noise.json`: cases with the mistake that each one catches.
#   `docs/ports/js/minibit.mjs` is such a port, in JavaScript, and passes them.
#
# Beware of namesakes: NumPy's own `Philox` is the variant of 64-bit words, and counts up before its
# first output.
#
# **Limits.** Philox mixes well by every test known; it is not made to withstand an adversary. A
# density is a multiple of $2^{-32}$, so $3.7 \cdot 10^{-6}$ is met to three parts in $10^5$. A
# bounded integer is biased by less than $2^{-64}$, and signs of initial weights are even only for
# an even $Z$. A stream has $2^{34}$ words; layers of inputs are numbered below $2^{12}$ and units
# below $2^{20}$. Dense noise is correct (density 1 hits every weight) but slow, since the last free
# places of a block are found by trial. And the *training* that uses this noise computes with
# floats: what replays exactly is what the log holds.
#
# **Exercises.**
#
# 1. A block with mean $m$ hits costs one Philox call, and one more for every four hits beyond two.
#    How many calls is that per hit, for $m = 1$ and $m = 8$? Why do we still take $m \le 1$? (What
#    must be redrawn for one row: `test_any_block_regenerated_alone_is_identical`.)
# 2. Make duplicates keep the later sign instead of the first. Which law still holds, and which test
#    fails? (`test_sparse_noise_equals_the_oracle_at_every_density`,
#    `test_signs_are_even_and_independent_of_place_and_count`.)
# 3. Take the place from the low bits and the sign from the lowest, too. Find the statistical test
#    that notices (`test_signs_are_even_and_independent_of_place_and_count`).
# 4. Draw a subset by repeating until $m$ distinct numbers are found. It is uniform as well: prove
#    it, and count its draws for $m = n$. `test_every_subset_is_equally_likely` holds for both; the
#    vector `units-collisions` for one.
# 5. Find the smallest number of bits in fixed point from which the table of density
#    $6 \cdot 10^{-5}$ comes out right (`test_count_tables_are_the_floors_of_exact_rationals`).
#
# **Sources.**
#
# - Salmon, Moraes, Dror and Shaw (2011), *Parallel Random Numbers: As Easy as 1, 2, 3*, SC.
# - L'Ecuyer and Simard (2007), *TestU01: A C Library for Empirical Testing of Random Number
#   Generators*, ACM Transactions on Mathematical Software 33.
# - Kern (2018), *NEP 19: Random Number Generator Policy*, NumPy Enhancement Proposals.
# - PyTorch (2026), *CUDA generator output depends on the device's SM count: seeding does not make
#   device-side sampling reproducible across GPU models or MIG slices*, issue 196613 of
#   pytorch/pytorch.
# - JAX (2025), change log of version 0.5.0: `jax_threefry_partitionable` is on by default.
