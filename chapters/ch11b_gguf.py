# %% [markdown]
# # GGUF: models for llama.cpp and bitnet.cpp
#
# **The question.** llama.cpp and bitnet.cpp read a model from one file and not from a directory.
# Its format is GGUF. Several kinds of file have the same numbers in different places. What in the
# file says how to read it, and what does it not say?
#
# [GGUF](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) is as plain as safetensors
# (chapter 11), with binary fields in the place of JSON. A magic word, a version and two counts come
# first. Then comes the metadata: a key, a type and a value for each entry. Then comes one entry for
# each tensor, and then the bytes. We make a small random model, write it, and read the beginning by
# hand.

# %%
import math
import struct
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from minibit import plots
from minibit.checkpoint import load_gguf, save_gguf
from minibit.checkpoint.gguf.container import BLOCKS, open_gguf
from minibit.language import evaluate_loss, shipped_model, shipped_text, write_text
from minibit.matmul import ternary_matmul, walsh_hadamard
from minibit.ternary import TernaryMatrix, from_i2_s, to_q2_0
from minibit.transformer import (
    BitNetConfig,
    BitNetModel,
    float_linear,
    init_params,
    pack_params,
)

plots.style(show=True)
rng = np.random.default_rng(0)
folder = Path(tempfile.mkdtemp())
sizes = BitNetConfig(
    vocab_size=256,
    hidden_size=256,
    intermediate_size=512,
    layers=2,
    heads=4,
    kv_heads=2,
    max_positions=128,
)
small = BitNetModel(sizes, pack_params(init_params(sizes, seed=1)))
save_gguf(small, folder / "i2_s.gguf", "i2_s")
raw = (folder / "i2_s.gguf").read_bytes()
magic, version, tensors, entries = struct.unpack_from("<4sIQQ", raw)
print(f"{magic}, version {version}, {tensors} tensors, {entries} entries of metadata; the first:")
(width,) = struct.unpack_from("<Q", raw, 24)
key = raw[32 : 32 + width].decode()
kind, size = struct.unpack_from("<IQ", raw, 32 + width)
value = raw[44 + width : 44 + width + size].decode()
print(f"  {key} (type {kind}, a text) = {value}")
assert (magic, version, tensors, value) == (b"GGUF", 3, 24, "bitnet-b1.58")

# %% [markdown]
# The first value decides more than it seems to. A GGUF file does not say what a model computes:
# programs know that from the *name* of its architecture. `bitnet-b1.58` means that the activation
# function is the square of ReLU. `bitnet` means SiLU, $x / (1 + e^{-x})$, because the first models
# of that name had it. The published model under the wrong name runs and writes text, but its
# perplexity on WikiText is 99.8 instead of 17.1
# ([microsoft/BitNet#588](https://github.com/microsoft/BitNet/issues/588)). `load_gguf` therefore
# refuses `bitnet`, unless the caller says which activation it is.
#
# ## Three types for the same codes
#
# The same weights take different space. The types TQ1_0 and TQ2_0 of ggml, the library under
# llama.cpp, have a float16 scale for every 256 weights, although all scales of a BitNet matrix are
# equal. I2_S of bitnet.cpp has one float32 scale for the whole matrix.

# %%
loaded = {}
for kind in ("tq1_0", "tq2_0", "i2_s"):
    save_gguf(small, folder / f"{kind}.gguf", kind, overwrite=True)
    loaded[kind] = load_gguf(folder / f"{kind}.gguf")
    tensor = open_gguf(folder / f"{kind}.gguf").tensors["blk.0.ffn_up.weight"]
    bits = 8 * tensor.nbytes / math.prod(tensor.shape)
    print(f"{BLOCKS[tensor.kind][0]:6} {bits:.4f} bits per weight")
tokens = rng.integers(0, 256, (1, 64))
exact = small.logits(tokens)
for kind, again in loaded.items():
    scales = [
        (w.scale, again.params[n].scale) for n, w in small.params.items() if n.endswith("_proj")
    ]
    change = max(abs(float(new) / float(old) - 1) for old, new in scales)
    apart = np.abs(again.logits(tokens) - exact).max() / np.abs(exact).max()
    print(f"{kind:6} scales move by {change:.1e} at most, logits by {apart:.1e} of the largest")
    assert change == apart == 0 if kind == "i2_s" else 0 < change <= 2**-11
assert all(
    np.array_equal(w.codes(), loaded["tq1_0"].params[n].codes())
    for n, w in small.params.items()
    if n.endswith("_proj")
)

# %% [markdown]
# The codes are exact in all three. Rounding plays no part here: ggml rounds halves away from zero
# and we round them to even, but a code is already a whole number. Only the scale is rounded, to
# float16, by at most $2^{-11}$ of itself. A scale below $2^{-14}$, where float16 loses bits, is
# refused.
#
# Then why do logits move a hundred times as much as scales? Because activations are rounded to 8
# bits. A number near the middle between two codes falls to the other side and moves by a whole
# step. With float weights, and nothing rounded in between, the same two models differ by about as
# much as their scales do:


# %%
def unrounded(model):
    """The model whose layers multiply floats by gamma times the codes."""
    floats = {
        n: w.scale * w.codes().astype(np.float32) if n.endswith("_proj") else w
        for n, w in model.params.items()
    }
    return BitNetModel(model.config, floats, float_linear)


plain, moved = (unrounded(m).logits(tokens) for m in (small, loaded["tq2_0"]))
apart = np.abs(moved - plain).max() / np.abs(plain).max()
print(f"without rounding of activations, logits move by {apart:.1e} of the largest")
assert apart < 2**-10

# %% [markdown]
# ## Three layouts under one name
#
# I2_S is one type number, 36, but three orders of codes: that of the first x86 builds of
# bitnet.cpp, that of its builds for Arm, and that of later x86 builds. Which sixteen weights share
# the first four bytes?

# %%
probe = np.full(128 * 4 // 4 + 32, 0b01010101, np.uint8)  # all codes 0
probe[:4] = 0b10101010  # codes 1 in four bytes
grids = {layout: from_i2_s(probe, (4, 128), layout)[0] for layout in ("x86", "arm", "rows")}
print({layout: int(shown.sum()) for layout, shown in grids.items()})
assert all(shown.sum() == 16 for shown in grids.values())

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(9, 1.9))
titles = ("x86: 32 columns apart", "Arm: 16 columns apart", "later x86: four rows")
for axis, shown, title in zip(axes, grids.values(), titles, strict=True):
    axis.imshow(shown, cmap="Blues", vmin=0, vmax=1.3, aspect="auto", interpolation="nearest")
    axis.set(xlabel="column", yticks=range(4), title=title)
    axis.grid(False)
axes[0].set_ylabel("row")
fig.suptitle("The sixteen weights of the first four bytes", y=1.08)

# %% [markdown]
# No byte tells them apart. Each reading of a file is legal, has the same scale and the same numbers
# of -1, 0 and 1. But each reading is another model:

# %%
q = "layers.0.mlp.up_proj"
right = small.params[q].codes()
for layout in ("x86", "arm", "rows"):
    other = load_gguf(folder / "i2_s.gguf", layout=layout)
    same = np.mean(other.params[q].codes() == right)
    cosine = np.vdot(other.logits(tokens), exact) / (
        np.linalg.norm(other.logits(tokens)) * np.linalg.norm(exact)
    )
    print(
        f"read as {layout:4}: {same:6.1%} of the codes are right, cosine of the logits {cosine:.3f}"
    )
    assert (
        np.bincount(other.params[q].codes().ravel() + 1).tolist()
        == np.bincount(right.ravel() + 1).tolist()
    )
    assert same == 1 if layout == "x86" else same < 0.6

# %% [markdown]
# So the caller must say the layout (`layout=`; the default is the first one, which the published
# files have). `save_gguf` writes the layout under a key of the metadata that other programs ignore.
#
# ## Rows that are reordered, or not
#
# Rotary position embedding (RoPE, chapter 10) turns *pairs* of coordinates. There are two ways to
# pair them: neighbours (the original LLaMA), or one half with the other (Hugging Face). Programs
# that convert to GGUF reorder the rows of the query and key matrices for models that ggml turns by
# neighbours. It turns BitNet by halves, so the rows of BitNet stay. If they are reordered all the
# same, the model still runs:


# %%
def reordered(matrix: TernaryMatrix, heads: int) -> TernaryMatrix:
    """Rows as the llama architecture has them in GGUF: halves become neighbours."""
    codes = matrix.codes()
    pairs = codes.reshape(heads, 2, -1, codes.shape[1])  # (heads, halves, head_dim / 2, n_in)
    return TernaryMatrix.from_codes(pairs.swapaxes(1, 2).reshape(codes.shape), matrix.scale)


swapped = dict(small.params)
for layer in range(sizes.layers):
    for which, heads in (("q", sizes.heads), ("k", sizes.kv_heads)):
        name = f"layers.{layer}.self_attn.{which}_proj"
        swapped[name] = reordered(small.params[name], heads)
wrong = BitNetModel(sizes, swapped).logits(tokens)
apart = np.abs(wrong - exact).max(axis=-1)[0]  # (tokens,)
print(f"apart after 1 token {apart[0]:.1e}, after 64 tokens {apart[-1]:.2f}")
assert apart[0] < 1e-5 < 0.1 < apart[-1]  # one token attends to itself alone: nothing to see

# %% [markdown]
# For the first token nothing is different: it looks at itself alone, and position 0 is not turned.
# Each later token is compared with others in wrong pairs.
#
# ## A scale for each group of columns
#
# BitNet has one scale per matrix. Most ternary models since then have more: a float16 scale for
# every 64 or 128 weights of a row, which is what the types Q2_0 and PTQ1_0 hold. A product must
# then stop at the end of each group. Within a group the sum is exact in integers; it becomes a
# float, is multiplied by its scale, and the groups are added up:
#
# $$y_o = \sum_g \gamma_{og} \, (1 / s_g) \, z_{og}, \qquad z_{og} = \sum_{k \in g} q_k \, c_{ok}.$$
#
# Here $o$ counts the outputs, $g$ the groups and $k$ the columns; $c$ are the codes of the weights
# and $\gamma$ their scales. The activations $q$ have a scale $s_g$ per group, too. `ternary_matmul`
# does so whenever a `TernaryMatrix` has such scales.

# %%
codes = rng.integers(-1, 2, (3, 128)).astype(np.int8)
groups = TernaryMatrix.from_codes(codes, [[0.5, 2.0], [1.0, 0.25], [4.0, 8.0]])
x = rng.integers(-9, 10, (1, 128)).astype(np.float32)
x[:, ::64] = 127  # the largest of each group: whole numbers then stay what they are
by_hand = sum(
    np.asarray(groups.scale)[:, g] * (x[:, 64 * g : 64 * g + 64] @ codes[:, 64 * g : 64 * g + 64].T)
    for g in (0, 1)
)
print(groups, ternary_matmul(x, groups), by_hand)
assert (ternary_matmul(x, groups) == by_hand).all()

# %% [markdown]
# ## Four faults that no round trip sees
#
# In a block of Q2_0 the scale comes first, then 16 bytes of four codes each, the first code in the
# lowest bits. A fork of llama.cpp had blocks of 128 under the same type number. Some models are
# rotated: their activations must be turned by `walsh_hadamard` before the product. A program that
# gets one of these wrong still reads back what it wrote. What does the fault do to a real model? We
# take the language model of this package, put the last projection of each layer into Q2_0, and read
# it in five ways. The rest of the model stays as it is.

# %%
model, vocabulary = shipped_model()
text = shipped_text()[2][:6000]  # of the validation text
floats = {n: w.rows() if n.endswith("_proj") else w for n, w in model.params.items()}
last = [name for name in floats if name.endswith("down_proj")]


def read_blocks(raw, size=64, scale_first=True, shifts=(0, 2, 4, 6)):
    """Floats of the blocks of a (96, 256) matrix, by a layout that may be the wrong one."""
    width, count = 2 + size // 4, 96 * 256 // size
    blocks = raw[: count * width].reshape(count, width)
    halves, twos = (
        (blocks[:, :2], blocks[:, 2:]) if scale_first else (blocks[:, -2:], blocks[:, :-2])
    )
    scales = np.ascontiguousarray(halves).view("<f2").astype(np.float32)  # (blocks, 1)
    codes = (twos[..., None] >> np.array(shifts, np.uint8) & 3).reshape(count, size) - 1.0
    return (codes.astype(np.float32) * scales).reshape(96, 256)


signs = rng.choice([-1, 1], 256)
readers = {
    "as it is": read_blocks,
    "first code in the highest bits": lambda raw: read_blocks(raw, shifts=(6, 4, 2, 0)),
    "blocks of 128": lambda raw: read_blocks(raw, size=128),
    "scale last": lambda raw: read_blocks(raw, scale_first=False),
    "rotation left out": lambda raw: walsh_hadamard(read_blocks(raw), signs, 256),
}
losses = {}
for fault, read in readers.items():
    weights = floats | {
        n: read(to_q2_0(model.params[n].codes(), model.params[n].scale).reshape(-1)) for n in last
    }
    losses[fault] = evaluate_loss(model.config, weights, text, linear=float_linear)
    wrong = BitNetModel(model.config, weights, float_linear)
    sentence = write_text(wrong, vocabulary, "The ", 40, temperature=0.0)
    print(f"{fault:31} {losses[fault]:.2f} nats per character  {sentence!r}")
nothing = math.log(len(vocabulary.characters))
assert losses["as it is"] < 1.75
assert all(loss > nothing for fault, loss in losses.items() if fault != "as it is")

# %% tags=["hide-input"]
fig, axis = plt.subplots(figsize=(7.2, 2.6))
colors = [plots.PALETTE[0]] + [plots.PALETTE[1]] * 4
axis.barh(list(losses), list(losses.values()), color=colors)
axis.axvline(nothing, color="0.4", ls="--", lw=1)
axis.text(nothing, 0, "  a guess among all characters", va="center", color="0.4", fontsize=8)
axis.invert_yaxis()
axis.set(xlabel="nats per character", title="One projection per layer read in a wrong way")

# %% [markdown]
# Each of the four is worse than a guess among all characters. Yet all codes are legal, and so are
# most of the bytes that are wrongly read as scales. Sizes tell one of the faults: the next tensor's
# offset bounds the bytes of a tensor, and they fit blocks of one size alone. Where sizes cannot
# tell, statistics can: rows and columns of real weights are alike, and scales lie close together.
# `minibit doctor FILE` looks at both.
#
# **Limits.** A GGUF file is made to run in llama.cpp or bitnet.cpp. That was not tried here: the
# bytes are compared with those of the `gguf` package, and the vocabulary with that of transformers.
# Of the many architectures that GGUF has, BitNet, Llama and Qwen3 are read. The measured faults are
# those of one small model.
#
# **Exercises.**
#
# 1. Why is a matrix with a scale of $10^{-6}$ written as `i2_s` and refused as `tq2_0`? How far off
#    would it be? (`test_what_a_type_cannot_hold_is_refused_before_a_byte_is_written`)
# 2. About a third of the codes of a misread I2_S matrix are right by chance. The Arm reading of an
#    x86 file has more of them right. Where do these come from?
#    (`test_the_three_layouts_of_i2_s_come_back_and_the_file_says_which`)
# 3. Cut a file at any byte. Which field tells the reader that something is missing?
#    (`test_a_file_cut_anywhere_is_refused_by_its_byte`)
# 4. A block of 256 zeros may have any scale. What may a reader do with it, and what with a whole
#    matrix of such blocks? (`test_blocks_of_zeros_have_no_say_in_the_scale`,
#    `test_a_projection_of_zeros_is_refused`)
#
# **Sources.**
#
# - llama.cpp (2023), *GGUF*, ggml-org/ggml: docs/gguf.md.
# - Wang et al. (2024), *1-bit AI Infra: Part 1.1, Fast and Lossless BitNet b1.58 Inference on
#   CPUs*, arXiv:2410.16144.
# - Ma et al. (2025), *BitNet b1.58 2B4T Technical Report*, arXiv:2504.12285.
