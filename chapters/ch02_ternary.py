# %% [markdown]
# # Trits and the bytes that hold them
#
# **The question.** A weight is -1, 0 or 1. How many bits is that, and which bit of which byte?
#
# Mathematics answers the first half. The second depends on the file: every file format has an order
# of its own, one name stands for three of them, and the wrong order gives weights that look
# perfectly right. This chapter changes one weight at a time and draws which byte changes.

# %%
import lzma
from math import ceil, log2

import matplotlib.pyplot as plt
import numpy as np

from minibit import plots, ternary
from minibit.ternary import TernaryMatrix, pack2, pack_base3, pack_bitplanes

plots.style(show=True)
rng = np.random.default_rng(0)


def draw(*shape, zeros=1 / 3):
    """Random codes with a given share of zeros, and as many +1 as -1 on average."""
    return (rng.choice([-1, 1], shape) * (rng.random(shape) >= zeros)).astype(np.int8)


# %% [markdown]
# ## What a trit weighs
#
# Three values that are equally likely carry $\log_2 3 = 1.585$ bits: hence the 1.58 in the name.
# With a share $z$ of zeros, and as many +1 as -1, the entropy in bits is
#
# $$H(z) = -z \log_2 z - (1 - z) \log_2 \tfrac{1 - z}{2},$$
#
# which has its maximum $\log_2 3$ at $z = 1/3$ and falls slowly on both sides. Two points of this
# curve matter in this book. Rounding normal weights to ternary ones by their mean magnitude
# $\gamma$ (chapter 4) sends all $|w| < \gamma / 2$ to zero. And the networks of chapter 7 start
# from 70% zeros.


# %%
def entropy(z):
    """Bits per weight at a share z of zeros, for 0 < z < 1."""
    return -z * np.log2(z) - (1 - z) * np.log2((1 - z) / 2)


w = rng.standard_normal(1_000_000)
absmean_zeros = np.mean(np.abs(w) < np.abs(w).mean() / 2)
print(f"a trit: {log2(3):.3f} bits")
print(f"absmean: {absmean_zeros:.1%} zeros, {entropy(absmean_zeros):.3f} bits per weight")
print(f"70% zeros: {entropy(0.7):.3f} bits per weight")
assert abs(entropy(1 / 3) - log2(3)) < 1e-12
assert 0.30 < absmean_zeros < 0.32
assert 1 - entropy(absmean_zeros) / log2(3) < 0.002
assert 0.73 < entropy(0.7) / 1.6 < 0.75

# %% [markdown]
# So weights that come from rounding carry all but 0.2% of what a trit can, while weights with 70%
# zeros could take a quarter less than five per byte does (*base 3*, below). A general compressor
# finds most of that (the dots: LZMA, on weights of two bits), and never all: it works on bytes.

# %%
shares = np.linspace(0.05, 0.95, 10)
packed = [pack2(draw(200_000, zeros=z)) for z in shares]
packed_bits = [8 * len(lzma.compress(p)) / 200_000 for p in packed]
z = np.linspace(0.001, 0.999, 400)
assert all(bits > entropy(z) for bits, z in zip(packed_bits, shares, strict=True))
assert 1.6 < max(packed_bits) < 1.7
assert 1.6 - packed_bits[7] > 0.8 * (1.6 - entropy(shares[7]))  # at 75% zeros

# %% tags=["hide-input"]
fig, axes = plt.subplots()
axes.plot(z, entropy(z), label="entropy $H(z)$")
axes.plot(shares, packed_bits, "o", label="LZMA on 2-bit codes, measured")
for bits, name in ((2.0, "2-bit, bit-planes"), (1.6, "base 3"), (log2(3), "")):
    axes.axhline(bits, color="#888888", linewidth=0.8, linestyle="--")
    axes.text(0.02, bits + 0.02, name, color="#555555", fontsize=9)
axes.plot([absmean_zeros, 0.7], [entropy(absmean_zeros), entropy(0.7)], "D", color="black")
axes.text(absmean_zeros, 1.42, "absmean", ha="center")
axes.text(0.68, 1.05, "chapter 7 starts here", ha="right")
plots.label_axes(axes, "share of zeros", "bits per weight", "What a ternary weight carries")

# %% [markdown]
# ## Why five to a byte
#
# $k$ trits have $3^k$ states and need $\lceil k \log_2 3 \rceil$ whole bits. The waste depends on
# how close a power of 3 comes under a power of 2. $3^5 = 243$ is close under $2^8 = 256$, and a
# byte is a unit that machines like. The next group that wastes less has 17 trits in 27 bits, which
# are no whole number of bytes.

# %%
k = np.arange(1, 60)
bits_per_trit = np.array([ceil(n * log2(3)) / n for n in k])
waste = 1.6 / log2(3) - 1
print(f"five per byte waste {waste:.2%}")
assert 0.0094 < waste < 0.0096
assert min(n for n in k if bits_per_trit[n - 1] < 1.6) == 17
assert ceil(17 * log2(3)) == 27

# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(6.4, 2.8))
axes.plot(k, bits_per_trit, "o-", linewidth=0.6)
axes.axhline(log2(3), color="#888888", linewidth=0.8, linestyle="--")
for n in (5, 17, 41):
    axes.text(n, 1.78, f"{n} in {ceil(n * log2(3))}", ha="center")
    axes.vlines(n, bits_per_trit[n - 1], 1.77, color="#444444", linewidth=0.6)
plots.label_axes(axes, "trits in a group", "bits per trit", "Groups of trits in whole bits")

# %% [markdown]
# ## Three dense packings, drawn
#
# Ten codes, three ways. Every cell is a bit, the highest of a byte on the left, with the weight
# that it belongs to; cells without a colour are padding. In the first two packings a weight has
# bits of its own. We change the weight and look which bits flip.

# %%
codes = np.array([-1, 0, 1, 1, -1, 0, 1, -1, 0, 1], np.int8)
PACKINGS = {"2-bit": pack2, "bit-planes": pack_bitplanes, "base 3": pack_base3}


def owners(pack, codes):
    """For every bit, highest first in each byte: the weight that moves it, or -1."""
    owner = np.full(8 * pack(codes).size, -1)
    for i in range(codes.size):
        packs = []
        for value in (-1, 0, 1):
            changed = codes.copy()
            changed[i] = value
            packs.append(np.unpackbits(pack(changed).reshape(-1)))
        owner[(packs[0] != packs[1]) | (packs[1] != packs[2])] = i
    return owner


assert [pack(codes).size for pack in PACKINGS.values()] == [3, 4, 2]
assert pack_base3(np.ones(5, np.int8))[0] == 242

# %% tags=["hide-input"]
fig, panels = plt.subplots(3, 1, figsize=(8, 3.6))
for axes, (name, pack) in zip(panels, PACKINGS.items(), strict=True):
    bits, owner = np.unpackbits(pack(codes).reshape(-1)), owners(pack, codes)
    if pack is pack_base3:  # bits are shared: colour by byte
        owner = np.repeat([0, 5], 8)
    places = np.arange(bits.size) + np.arange(bits.size) // 8  # a gap between bytes
    colors = ["#ffffff" if i < 0 else plots.PALETTE[i % 6] for i in owner]
    axes.bar(places, 1, 1, align="edge", color=colors, alpha=0.35, edgecolor="#444444")
    for x, bit, i in zip(places, bits, owner, strict=True):
        text = f"{bit}" if i < 0 or pack is pack_base3 else f"{bit}\n$w_{{{i}}}$"
        axes.text(x + 0.5, 0.48, text, ha="center", va="center", fontsize=8)
    axes.set(xlim=(0, 36), ylim=(0, 1), xticks=[], yticks=[])
    axes.set_title(f"{name}: {pack(codes).size} bytes", loc="left")
    axes.grid(False)
    axes.spines[:].set_visible(False)

# %% [markdown]
# - **2-bit** (`pack2`) stores $t + 1$, the first code in the lowest bits:
#   $\text{byte} = \sum_i (t_i + 1)\, 4^i$. Reading it is a shift and a mask. The fourth value, 3,
#   stands for nothing and is refused.
# - **Bit-planes** (`pack_bitplanes`) store where the ones are and where the minus ones are. A
#   product needs no decoding: the sum over one plane less the sum over the other.
# - **Base 3** (`pack_base3`) stores $\sum_i (t_i + 1)\, 3^i$, a number from 0 to 242. No weight has
#   a bit of its own, so reading takes a division (or a trick, below). It takes 0.95% more than the
#   entropy.
#
# All three fill the last byte with weight 0, so a kernel that reads past the end adds nothing to a
# product. For the multi-layer perceptron of this book:

# %%
shapes = [(256, 784), (256, 256), (256, 256), (10, 256)]
mlp_codes = [draw(*shape) for shape in shapes]
weights = sum(w.size for w in mlp_codes)
size = {name: sum(pack(w).size for w in mlp_codes) for name, pack in PACKINGS.items()}
print(f"{weights:,} weights; float32: {4 * weights / 1000:,.1f} KB")
for name, count in size.items():
    print(f"{name}: {count / 1000:.1f} KB")
assert weights == 334_336
assert size["base 3"] == 66_869  # each matrix starts a byte
assert size["2-bit"] == 83_584

# %% [markdown]
# 66.9 KB is the figure that chapter 8 has to beat with a log of training steps.
#
# ## Who puts which weight where
#
# | layout | found in | a byte holds | scale |
# |---|---|---|---|
# | `to_hf` | Hugging Face BitNet checkpoints (safetensors) | four rows, a quarter of the matrix apart | its own tensor: $\gamma$ or $1/\gamma$, by configuration |
# | `to_tq1_0` | GGUF files, llama.cpp | five columns 32 (then 16) apart, base 3 | float16 per 256 weights |
# | `to_tq2_0` | GGUF files, llama.cpp | four columns 32 apart | float16 per 256 weights |
# | `to_i2_s` | GGUF files, bitnet.cpp | four columns 32 apart (x86), 16 apart (Arm), or four rows (newer x86) | one float32 at the end |
#
# bitnet.cpp (Wang et al. 2024) also has TL1 (two trits in 4 bits) and TL2 (three trits in 5 bits: a
# sign and one of 14 patterns), whose order depends on a kernel generated for one matrix shape;
# minibit reads neither.
#
# Now the experiment for each layout: change one weight of an 8 x 256 matrix and see which byte
# changes. The picture shows four bytes of each, and the weights that share them.


# %%
def byte_of(pack, shape):
    """For every weight: the flat index of the byte that holds it."""
    base = pack(np.ones(shape, np.int8)).reshape(-1)
    where = np.empty(shape, int)
    for index in np.ndindex(*shape):
        changed = np.ones(shape, np.int8)
        changed[index] = -1
        (where[index],) = np.flatnonzero(pack(changed).reshape(-1) != base)
    return where


shape = (8, 256)
maps = {
    "HF": byte_of(ternary.to_hf, shape),
    "TQ1_0": byte_of(ternary.to_tq1_0, shape),
    "TQ2_0": byte_of(ternary.to_tq2_0, shape),
    "I2_S x86": byte_of(ternary.to_i2_s, shape),
    "I2_S arm": byte_of(lambda t: ternary.to_i2_s(t, layout="arm"), shape),
    "I2_S rows": byte_of(lambda t: ternary.to_i2_s(t, layout="rows"), shape),
}
assert all(
    (np.bincount(where.ravel()).max() == 5) == (name == "TQ1_0") for name, where in maps.items()
)
assert (maps["HF"][:2] == maps["HF"][2:4]).all()  # rows 0, 2, 4, 6 share bytes
assert (maps["TQ2_0"][:, :32] == maps["TQ2_0"][:, 32:64]).all()
scale_bytes = 2 * np.arange(8)[:, None]  # TQ2_0 keeps a scale behind each row, I2_S one at the end
assert (maps["TQ2_0"][:, :32] == maps["I2_S x86"][:, :32] + scale_bytes).all()
assert (maps["I2_S rows"][0] == maps["I2_S rows"][3]).all()

# %% tags=["hide-input"]
fig, panels = plt.subplots(3, 2, figsize=(8, 5), sharex=True, sharey=True)
for axes, (name, where) in zip(panels.ravel(), maps.items(), strict=True):
    for n, index in enumerate([(0, 3), (1, 20), (5, 150), (6, 250)]):
        row, column = np.nonzero(where == where[index])
        axes.plot(column, row, "o-", color=plots.PALETTE[n], linewidth=0.8)
    axes.set_title(name, loc="left")
    axes.set(xlim=(-3, 258), ylim=(7.5, -0.5), xticks=range(0, 257, 32), yticks=range(8))
for axes in panels[:, 0]:
    axes.set_ylabel("row")
for axes in panels[-1]:
    axes.set_xlabel("column")

# %% [markdown]
# The reason is speed: a vector register of 32 bytes, shifted and masked four times, gives four runs
# of 32 neighbours. The file has the order that the kernel reads.
#
# TQ1_0 avoids the division. It stores the digits $d_i = t_i + 1$ of five trits as a binary
# fraction, $\lceil 256\, v / 243 \rceil$ with $v = 81 d_0 + \dots + d_4$. Then
# $3 \cdot \text{byte}$ moves the leading digit before the point, as 10 times 0.729 gives 7 and
# leaves 0.29: five multiplications read all five.

# %%
digits = [2, 0, 1, 1, 2]
value = sum(d * 3 ** (4 - n) for n, d in enumerate(digits))
byte = -(-256 * value // 243)
read, rest = [], byte
for _ in range(5):
    read.append(3 * rest >> 8)
    rest = 3 * rest & 255
print(f"digits {digits} -> value {value} -> byte {byte} -> {read}")
assert read == digits

# %% [markdown]
# ## Traps
#
# **Zero bits are not weight 0.** Every 2-bit layout stores $t + 1$, so a file of zero bytes is a
# matrix of -1. This matters at the edge of Hugging Face's layout: rows missing to a multiple of
# four are filled with zero bits, and decode to -1. A reader that doesn't slice to `n_out` gets
# whole rows that subtract everything.

# %%
codes = draw(10, 64)
rows = ternary.from_hf(ternary.to_hf(codes), 12)  # the last byte row has room for 12
print("rows 10 and 11, which don't exist:", np.unique(rows[10:]))
assert (rows[:10] == codes).all()
assert (rows[10:] == -1).all()

# %% [markdown]
# **Three layouts, one name.** I2_S files don't say which of its three orders they hold. The wrong
# one raises no error: the same number of each code, in other places. Reading the x86 layout as
# Arm's leaves one code in four where it was. The others agree by chance, with probability
# $z^2 + (1-z)^2/2$ at a share $z$ of zeros, and the model talks nonsense.

# %%
codes = draw(256, 512)
wrong, _ = ternary.from_i2_s(ternary.to_i2_s(codes, layout="x86"), codes.shape, layout="arm")
agree = np.mean(wrong == codes)
chance = np.mean(codes == 0) ** 2 + np.mean(codes != 0) ** 2 / 2
print(f"{agree:.1%} of the weights agree; {(wrong == 0).sum() - (codes == 0).sum():+d} zeros")
assert (wrong == 0).sum() == (codes == 0).sum()
assert abs(agree - (1 / 4 + 3 / 4 * chance)) < 0.02

# %% [markdown]
# **Scales.** The blocks of GGUF (TQ1_0, TQ2_0) round the scale to float16, and a block of zeros
# gets scale 0, whatever the matrix's scale is: don't read "the" scale off the first block.

# %%
gamma = 0.0123
_, scales = ternary.from_tq2_0(ternary.to_tq2_0(draw(4, 512), gamma))
print(f"scale {gamma} comes back as {scales[0, 0]:.8f}, {abs(scales[0, 0] / gamma - 1):.1e} off")
assert 0 < abs(scales[0, 0] / gamma - 1) < 2.0**-11
assert ternary.from_tq2_0(ternary.to_tq2_0(np.zeros((1, 256), np.int8), gamma))[1] == 0

# %% [markdown]
# ## The matrix
#
# `TernaryMatrix` holds packed codes and one scale, and never changes. The order of its bytes is
# private (the fastest product needs another order on each kind of processor, chapter 3); `codes()`
# and `packed2()` give the orders that others need.

# %%
matrix = TernaryMatrix.from_codes(mlp_codes[0], scale=0.05)
print(matrix)
assert (matrix.codes() == mlp_codes[0]).all()
assert (matrix.packed2() == pack2(mlp_codes[0])).all()

# %% [markdown]
# **Limits.** None of these packings uses the zeros: at 70% of them a quarter of every byte carries
# nothing, and chapter 8 needs an entropy code to get at it. I2_S has no Python package to check
# against: its bytes are worked by hand from the published C code, and no file can tell which of its
# layouts it has, except by a model that talks sense.
#
# **Exercises.**
#
# 1. Show that a byte has an encoder in TQ1_0 exactly if it is $\lceil 256 v / 243 \rceil$ for some
#    $v$, and find the 13 that have none. `test_bytes_that_no_encoder_writes_are_refused` checks
#    them, and the tail of four digits, which has only 81.
# 2. Fill the last byte of `pack2` with bits 00 instead. Which test fails, and what would a kernel
#    that reads whole bytes compute? (`test_padding_weighs_nothing`.)
# 3. Find a matrix on which two of the I2_S layouts agree byte for byte. Why can
#    `test_the_three_i2_s_layouts_cannot_be_told_apart_by_their_bytes` not use it?
# 4. Twenty trits fit into 32 bits and forty into 64: what do these waste against five in 8?
#    `test_base_3_bytes_are_the_numbers_below_243` holds the byte's order; a port that packs wider
#    words must still give it.
#
# **Sources.**
#
# - Ma et al. (2024), *The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits*,
#   arXiv:2402.17764.
# - llama.cpp (2024), *ggml-quants: ternary packing for TriLMs and BitNet b1.58*, pull request 8151
#   of ggml-org/llama.cpp.
# - Wang et al. (2024), *1-bit AI Infra: Part 1.1, Fast and Lossless BitNet b1.58 Inference on
#   CPUs*, arXiv:2410.16144.
