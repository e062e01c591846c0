# %% [markdown]
# # Load a model: real files
#
# **The question.** A published model is a directory that a stranger made. Which byte of it is which weight? And how do we know that we read it right, when
# a wrong reading gives weights that look just as good?
#
# We make a small random model, so that nothing must be downloaded, and write it as Hugging Face's BitNet models are written: a `config.json` and a `model.safetensors`.
# The published model, [microsoft/bitnet-b1.58-2B-4T](https://huggingface.co/microsoft/bitnet-b1.58-2B-4T), differs in its sizes only, which we know too.

# %%
import json
import math
import struct
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from minibit import plots
from minibit.checkpoint import (
    PUBLISHED_2B_4T,
    CheckpointError,
    load_bitnet,
    load_gguf,
    random_checkpoint,
    save_bitnet,
    save_gguf,
)
from minibit.checkpoint.gguf.container import BLOCKS, open_gguf
from minibit.checkpoint.hf.config import Storage
from minibit.checkpoint.hf.linear import gamma_of, published_linear, weight_scale_of
from minibit.matmul import ternary_matmul
from minibit.ternary import TernaryMatrix, from_i2_s, to_hf
from minibit.transformer import (
    BitNetConfig,
    BitNetModel,
    float_linear,
    init_params,
    pack_params,
    param_shapes,
)

plots.style(show=True)
rng = np.random.default_rng(0)
folder = Path(tempfile.mkdtemp())
config = BitNetConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=176,
    layers=2,
    heads=4,
    kv_heads=2,
    max_positions=128,
)
random_checkpoint(folder / "model", config, seed=0)
for path in sorted((folder / "model").iterdir()):
    print(f"{path.stat().st_size:8,} bytes  {path.name}")

# %% [markdown]
# ## Eight bytes, a text, and the rest
#
# Safetensors is a good format because it is nearly none: eight bytes that tell a length, as many bytes of JSON, and then the tensors, end to end. No code runs on opening it, as it does with
# pickled weights (`.bin`, `.pt`), which minibit never opens. So the standard library reads it in three lines.

# %%
content = (folder / "model" / "model.safetensors").read_bytes()
length = int.from_bytes(content[:8], "little")
header = json.loads(content[8 : 8 + length])
data = content[8 + length :]
print("length:", content[:8].hex(" "), "=", length)
print("header:", content[8:150].decode(), "...")
name = "model.layers.1.mlp.up_proj.weight"
print(f"{name}:", header[name])
assert len(data) == max(
    entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"
)

# %% [markdown]
# Where do the bytes go? In the published model, more than half of them are no ternary weights at all but the embedding table, which is also the output head, in bfloat16.
# (The shapes follow from the configuration, so we need not have the file.) Ternary weights made the rest so small.

# %%
kinds = {"embedding = head": 0, "attention": 0, "feed-forward": 0, "norms and scales": 0}
for param, shape in param_shapes(PUBLISHED_2B_4T).items():
    size = math.prod(shape)
    if param.endswith("_proj"):
        kinds["attention" if "self_attn" in param else "feed-forward"] += size // 4
        kinds["norms and scales"] += 2
    else:
        kinds["embedding = head" if param == "embed_tokens" else "norms and scales"] += 2 * size
total = sum(kinds.values())
weights = sum(math.prod(shape) for shape in param_shapes(PUBLISHED_2B_4T).values())

fig, axes = plt.subplots(figsize=(8, 1.5))
left = 0.0
for i, (kind, size) in enumerate(kinds.items()):
    axes.barh(
        0,
        size / 1e6,
        left=left,
        color=plots.PALETTE[i],
        edgecolor="white",
        label=f"{kind}: {size / 1e6:,.1f} MB",
    )
    left += size / 1e6
axes.set(
    yticks=[],
    xlabel="MB",
    title=f"The published model's {weights:,} parameters: {total / 1e9:.2f} GB in the file",
)
axes.grid(False)
axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.5), fontsize=8)
assert weights == 2_412_820_480
assert 1.17e9 < total < 1.19e9
assert kinds["embedding = head"] > total / 2
assert 4 * weights / total > 8  # against float32

# %% [markdown]
# ## Four rows of a byte
#
# The projection above is a matrix of 176 by 64, but the header says `[44, 64]` of `U8`. A byte holds one column of four rows, two bits each, the code plus 1. Which four? Not neighbours: row $r$ of the file holds the rows
# $r,\ R + r,\ 2R + r,\ 3R + r$ of the matrix, with $R = \lceil n_\text{out} / 4 \rceil$. The file does not say so; issue 412 of microsoft/BitNet asks for it.

# %%
begin, end = header[name]["data_offsets"]
packed = np.frombuffer(data[begin:end], np.uint8).reshape(header[name]["shape"])  # (44, 64)
quarters = [(packed >> 2 * i & 3).astype(np.int8) - 1 for i in range(4)]  # four of (44, 64)
codes = np.concatenate(quarters)  # (176, 64): the quarters one after the other
neighbours = np.stack(quarters, axis=1).reshape(176, 64)  # four neighbours a byte: wrong

model = load_bitnet(folder / "model")
np.testing.assert_array_equal(model.params["layers.1.mlp.up_proj"].codes(), codes)

fig, axes = plt.subplots(1, 2, figsize=(7, 2.8))
for axis, byte_of, title in zip(
    axes,
    (np.arange(12) % 3, np.arange(12) // 4),
    ("Hugging Face: R = 3 rows apart", "not so: four neighbours"),
    strict=True,
):
    axis.barh(np.arange(12), 1, 0.9, color=[plots.PALETTE[i] for i in byte_of], alpha=0.5)
    for row, byte in enumerate(byte_of):
        axis.text(
            0.5,
            row,
            f"row {row} of the matrix: byte row {byte}",
            ha="center",
            va="center",
            fontsize=7,
        )
    axis.set(xticks=[], yticks=[], title=title)
    axis.invert_yaxis()
    axis.grid(False)

# %% [markdown]
# The wrong reading has the same numbers of -1, 0 and 1, so nothing looks wrong. The model speaks, too; it just says something else. Only a second opinion tells: another
# implementation on the same file, which is what minibit's tests ask of transformers.

# %%
counts = [np.bincount(codes.ravel() + 1).tolist(), np.bincount(neighbours.ravel() + 1).tolist()]
print("how many of -1, 0, 1:", counts)
assert counts[0] == counts[1]


def misread(matrix):
    """The same bytes, taken for four neighbours each."""
    n_out, n_in = matrix.shape
    file = to_hf(matrix.codes())  # (n_out / 4, n_in)
    rows = np.stack([(file >> 2 * i & 3).astype(np.int8) - 1 for i in range(4)], axis=1)
    return TernaryMatrix.from_codes(rows.reshape(n_out, n_in), matrix.scale)


def change(model, function):
    """A model whose ternary matrices went through a function."""
    return BitNetModel(
        model.config,
        {
            key: function(value) if isinstance(value, TernaryMatrix) else value
            for key, value in model.params.items()
        },
    )


tokens = rng.integers(0, 256, (4, 32))
logits, wrong = model.logits(tokens), change(model, misread).logits(tokens)
same = np.mean(logits.argmax(-1) == wrong.argmax(-1))
print(
    f"spread of the logits: {logits.std():.3f} and {wrong.std():.3f}; the same likeliest token at {same:.0%} of the positions"
)
assert abs(logits.std() - wrong.std()) < 0.1 * logits.std()
assert same < 0.9

# %% [markdown]
# ## One name, two meanings
#
# Beside each packed matrix lies a number, `weight_scale`. With $z$ the integer product of the codes, and $s = 127 / \max|x|$ the scale of a token, the layer computes, by the `linear_class` of the configuration,
#
# | `linear_class` | weight_scale $w$ | $y$ |
# |---|---|---|
# | `bitlinear` (the default) | $1/\gamma$ | $z / (w s)$ |
# | `autobitlinear`, offline | $\gamma$ | $(\sum_i (q_i / s)\, t_i)\, w$ |
# | `autobitlinear`, online | none: master weights | $\sum_i (q_i / s)(t_i / (1/\gamma))$ |
#
# All mean $\gamma z / s$. Nothing in the tensor tells whether to divide or to multiply: a program that gets it wrong scales a layer by $\gamma^2$.
# The sub-norms hide that behind values, gates and ups; behind queries, keys and outputs, nothing does.

# %%
offsets = header[f"{name}_scale"]["data_offsets"]
scale = (np.frombuffer(data[slice(*offsets)], "<u2").astype(np.uint32) << 16).view(np.float32)[0]
gamma = model.params["layers.1.mlp.up_proj"].scale
print(f"weight_scale {scale}, gamma {gamma:.6f}, product {scale * gamma:.7f}")
assert gamma == np.float32(1) / scale

inverted = change(model, lambda m: TernaryMatrix.from_codes(m.codes(), 1 / m.scale)).logits(tokens)
print(
    f"scales inverted: correlation with the right logits {np.corrcoef(inverted.ravel(), logits.ravel())[0, 1]:.2f}"
)
assert np.corrcoef(inverted.ravel(), logits.ravel())[0, 1] < 0.9

# %% [markdown]
# They also round differently. The first is decided to the bit, because float32 adds whole numbers exactly (up to $2^{24}$), in any order. The other two add numbers that are rounded already, and
# each BLAS adds in its own order. minibit always has the exact $z$, and multiplies it by $\gamma / s$, which is rounded first. In units of the last place of the largest output:

# %%
x = rng.standard_normal((64, 64)).astype(np.float32)
exact = {}
for way in (Storage("bitlinear"), Storage("autobitlinear"), Storage("autobitlinear", "online")):
    label = f"{way.linear_class} {way.mode}"
    exact[label] = published_linear(x, codes, gamma, way)
reference = exact["bitlinear offline"]
exact["minibit's product"] = ternary_matmul(x, model.params["layers.1.mlp.up_proj"])
unit = np.spacing(np.abs(reference).max())
for label, y in exact.items():
    print(f"{label:24s} differs by at most {np.abs(y - reference).max() / unit:.1f}")
assert all(np.abs(y - reference).max() <= 8 * unit for y in exact.values())

# %% [markdown]
# One more trap lies in the reciprocal. The file of a `bitlinear` model holds $1/\gamma$ in float32, and not every float32 number $\gamma$ is the reciprocal of one: above $\sqrt 2$ (and below 2, times any power of two)
# the reciprocals are $\gamma^2 2^{-24}$ apart and the numbers $2^{-23}$, so a share of $2/\gamma^2$ can be had. The others come back from the file one unit in the last place away. `autobitlinear` keeps $\gamma$.

# %%
gammas = np.sort(rng.uniform(1, 2, 8000).astype(np.float32))
stored = Storage("bitlinear")
kept = np.array([gamma_of(weight_scale_of(g, stored), stored) == g for g in gammas])
bins = gammas.reshape(40, 200).mean(axis=1)
share = kept.reshape(40, 200).mean(axis=1)
expected = np.minimum(1, 2 / bins**2)
fig, axes = plt.subplots(figsize=(6, 2.6))
axes.plot(bins, share, "o", label="measured")
axes.plot(bins, expected, label=r"$\min(1, 2/\gamma^2)$")
plots.label_axes(axes, r"$\gamma$ (times any power of two)", "share that survives")
print(f"{1 - kept.mean():.1%} of all gammas are the reciprocal of no float32")
assert np.abs(share - expected).max() < 0.15
assert abs((1 - kept.mean()) - (3 - 2 * math.sqrt(2))) < 0.02  # the mean of 1 - 2/g^2 above sqrt 2

# %% [markdown]
# ## Half a float
#
# bfloat16 is the upper half of a float32: same exponent, 8 significant bits. NumPy has no such type, but the two bytes are enough: shift them up by 16 bits, and they are a float32. So the embedding stays in the file. minibit maps it into memory, where the
# product of the output head reads it; the ternary matrices are rearranged into the order that the CPU's instructions want ([chapter 3](ch03_matmul.md)), 2 bits to 2 bits, and their pages of the file are given back. What a program holds of the
# published model is then about what the file has.

# %%
embedding = model.params["embed_tokens"]
values = (embedding[:1, :4].astype(np.uint32) << 16).view(np.float32)
print(embedding[0, :4], "->", values[0])
weight_bytes = sum(value.nbytes for key, value in model.params.items() if key.endswith("_proj"))
in_file = sum(
    e["data_offsets"][1] - e["data_offsets"][0] for e in header.values() if e.get("dtype") == "U8"
)
print(
    f"ternary weights: {in_file:,} bytes in the file, {weight_bytes:,} in memory (padded to whole panels)"
)
assert embedding.dtype == np.uint16
assert embedding.base is not None  # a view of the map
assert in_file <= weight_bytes < 1.2 * in_file

# %% [markdown]
# ## There and back
#
# `save_bitnet` writes all three forms. A model of packed weights has lost its master weights, so it cannot be written as `online`; one with master weights can be written as any, and is quantised on the way if need be.
# From here on, a file and its model are the same thing: nothing is lost either way.

# %%
for label, how in {
    "bitlinear": {"linear_class": "bitlinear"},
    "autobitlinear": {"linear_class": "autobitlinear"},
}.items():
    save_bitnet(model, folder / label, **how)
    again = load_bitnet(folder / label)
    np.testing.assert_array_equal(again.logits(tokens), logits)
    print(f"{label}: the same logits, bit for bit")
try:
    save_bitnet(model, folder / "online", linear_class="autobitlinear", quantization_mode="online")
except ValueError as error:
    refusal = str(error)
print(refusal)
assert "must be float" in refusal

# %% [markdown]
# ## Believing nothing
#
# A header may say that a tensor has $2^{40}$ rows, that it begins before the file does, or that the shard lies in `../../.ssh`. So every size is compared with the file's before anything of that size is made, tensors must fill the file
# without a gap or an overlap, and each must be what the configuration calls for. The rest of the list is what real uploads got wrong: matrices of zeros, latent weights where ternary ones belong, bytes with the code 3.


# %%
def attempt(damage, content, config_text=None):
    """Write a damaged checkpoint, and print what reading it says."""
    directory = folder / f"damaged-{damage}".replace(" ", "-")
    directory.mkdir()
    text = (folder / "model" / "config.json").read_text() if config_text is None else config_text
    (directory / "config.json").write_text(text)
    (directory / "model.safetensors").write_bytes(content)
    try:
        load_bitnet(directory)
    except CheckpointError as error:
        print(f"{damage}:\n    {str(error).removeprefix(str(directory))}")
        return error
    raise AssertionError(damage)


def reheaded(old, new):
    """The file with a piece of its header's text replaced, and its length mended."""
    text = content[8 : 8 + length].replace(old, new, 1)
    assert text != content[8 : 8 + length]
    return len(text).to_bytes(8, "little") + text + data


at = 8 + length + begin  # where the packed matrix begins
zeros = to_hf(np.zeros((176, 64), np.int8)).tobytes()
errors = [
    attempt("cut short", content[:-100]),
    attempt("a header of 8 EB", b"\xff" * 7 + b"\x7f" + content[8:]),
    attempt("a huge shape", reheaded(b"[256,64]", b"[281474976710655,64]")),
    attempt(
        "an overlap", reheaded(f"[{begin},{end}]".encode(), f"[{begin - 64},{end - 64}]".encode())
    ),
    attempt("the code 3", content[: at + 5] + b"\x03" + content[at + 6 :]),
    attempt("zeros", content[:at] + zeros + content[at + len(zeros) :]),
    attempt("a name twice", reheaded(b'"model.norm.weight"', f'"{name}"'.encode())),
    attempt(
        "another activation",
        content,
        (folder / "model" / "config.json").read_text().replace("relu2", "silu"),
    ),
]
assert errors[4].offset == at + 5
assert errors[4].tensor == errors[5].tensor == name

# %% [markdown]
# ## The other format: GGUF
#
# llama.cpp and bitnet.cpp read one file and not a directory: [GGUF](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). It is as plain as safetensors, with binary fields in place of JSON: a magic word, a
# version and two counts; then metadata, a key, a type and a value each; then one line for each tensor; then the bytes. We read the beginning by hand, too.

# %%
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
# That first value decides more than it seems to. A GGUF file does not say what a model computes: programs know that by the *name* of the architecture. `bitnet-b1.58` means squared ReLU, and `bitnet` means SiLU, because the
# first models of that name had it. The published model under the wrong name runs, and talks; but its perplexity on WikiText is 99.8 and not 17.1
# ([microsoft/BitNet#588](https://github.com/microsoft/BitNet/issues/588)). `load_gguf` therefore refuses `bitnet`, unless the caller vouches for the activation.
#
# The same weights take different room. ggml's own types have a float16 scale for every 256 weights, though all the scales of a BitNet matrix are one and the same; bitnet.cpp's I2_S has one float32 for the matrix.

# %%
loaded = {}
for kind in ("tq1_0", "tq2_0", "i2_s"):
    save_gguf(small, folder / f"{kind}.gguf", kind, overwrite=True)
    loaded[kind] = load_gguf(folder / f"{kind}.gguf")
    tensor = open_gguf(folder / f"{kind}.gguf").tensors["blk.0.ffn_up.weight"]
    print(
        f"{BLOCKS[tensor.kind][0]:6} {8 * tensor.nbytes / math.prod(tensor.shape):.4f} bits a weight"
    )
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
# Codes are exact in all three. Rounding has no say here: ggml rounds halves away from zero and we round them to even, but a code is already whole. Only the scale is rounded, to float16, by $2^{-11}$ of itself at most;
# a scale below $2^{-14}$, where float16 runs out of bits, is refused.
#
# Why do logits then move a hundred times as much as scales? Because activations are rounded to 8 bits: a number near the middle between two of them falls to the other side, and moves by a whole step. The same
# two models, with the same weights as floats and nothing rounded in between, differ by about what their scales do.


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
# ### Three layouts under one name
#
# I2_S is one type id, 36, for three orders of codes: that of the first x86 builds of bitnet.cpp, that of Arm, and that of later x86 builds. Which weights share the first byte?

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 1.9))
for axis, layout, title in zip(
    axes,
    ("x86", "arm", "rows"),
    ("x86: 32 columns apart", "Arm: 16 columns apart", "later x86: four rows"),
    strict=True,
):
    probe = np.full(128 * 4 // 4 + 32, 0b01010101, np.uint8)  # all codes 0
    probe[:4] = 0b10101010  # codes 1 in four bytes
    shown, _ = from_i2_s(probe, (4, 128), layout)  # (4, 128)
    axis.imshow(shown, cmap="Blues", vmin=0, vmax=1.3, aspect="auto", interpolation="nearest")
    axis.set(xlabel="column", yticks=range(4), title=title)
    axis.grid(False)
    assert shown.sum() == 16
axes[0].set_ylabel("row")
fig.suptitle("The sixteen weights of the first four bytes", y=1.08)

# %% [markdown]
# No byte tells them apart: each reading of a file is legal, has the same scale and the same numbers of -1, 0 and 1. It is only another model.

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
        f"read as {layout:4}: {100 * same:5.1f}% of the codes are the right ones, cosine of the logits {cosine:.3f}"
    )
    assert (
        np.bincount(other.params[q].codes().ravel() + 1).tolist()
        == np.bincount(right.ravel() + 1).tolist()
    )
    assert same == 1 if layout == "x86" else same < 0.6

# %% [markdown]
# So a reader must be told (`layout=`, by default the first, which the published files have). `save_gguf` writes the layout into the metadata, under a key that other programs pass over.
#
# One more trap lies where nobody looks. Rotary positions turn *pairs* of coordinates, and there are two ways to pair them: neighbours (the original LLaMA), or one half with the other (Hugging Face). Converters to
# GGUF reorder the rows of q and k for models that ggml turns by neighbours. It turns BitNet by halves, so its rows stay. Reordered once too often, the model still runs.


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
# **Limits.** The checks find what no checkpoint says, not what a checkpoint should not say: rows in another order are legal codes, and so are the weights of another model.
# The published block is the only one that is read; a configuration that asks for more (biases, scaled positions, norms inside the linear layers) is refused, not approximated. A map of a file shows what the file holds: whoever shortens it while a
# model uses it ends the program (replacing or deleting it is harmless). What a GGUF file is for, to run in llama.cpp or bitnet.cpp, was not tried here: its bytes are held to the `gguf` package, and its vocabulary to transformers.
#
# **Exercises.**
#
# 1. Two bits a weight have four values, and trits three. Pack a row of 2560 codes five to a byte ([chapter 2](ch02_ternary.md)): how many MB would the published file lose? Why is a file that is read once a token not written so?
# 2. Padding: give a matrix of 6 rows to `to_hf`. What do the two rows that nobody asked for decode to, and who must know? (`test_packed_rows_beyond_a_multiple_of_four_are_sliced_off`)
# 3. Write a header that lies about one number and is not caught. What does the model then hold? (`test_a_thousand_fuzzed_headers_give_errors_and_take_no_memory` tries at random.)
# 4. Which tokens make a layer of `autobitlinear` equal to ours to the bit, and why these? (`test_every_layer_is_equal_to_the_bit_where_sums_are_exact`)
# 5. An index of shards names `/etc/passwd.safetensors`, or a link to it. Where is either stopped, and why may the directories of the Hugging Face cache hold links all the same? (`test_path_tricks_of_an_index_are_refused`, `test_a_directory_of_the_hugging_face_cache_is_read`)
# 6. Why is a matrix with a scale of $10^{-6}$ written as `i2_s` and refused as `tq2_0`? How far off would it be? (`test_what_a_type_cannot_hold_is_refused_before_a_byte_is_written`)
# 7. About a third of the codes of a misread I2_S matrix are right by chance. Where do the others come from that the Arm reading of an x86 file gets right? (`test_the_three_layouts_of_i2_s_come_back_and_the_file_says_which`)
#
# **Sources.**
#
# - Ma et al. (2025), *BitNet b1.58 2B4T Technical Report*, arXiv:2504.12285.
# - Hugging Face (2025), *integrations/bitnet.py*, huggingface/transformers.
# - Hugging Face (2022), *Safetensors*, huggingface/safetensors: the format in its README.
# - llama.cpp (2023), *GGUF*, ggml-org/ggml: docs/gguf.md.
# - Wang et al. (2024), *1-bit AI Infra: Part 1.1, Fast and Lossless BitNet b1.58 Inference on
#   CPUs*, arXiv:2410.16144.
