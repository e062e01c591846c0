# %% [markdown]
# # Fine-tuning in four bits
#
# **The question.** A model has learnt one kind of text, and now it should learn another. To train
# all of its weights takes six times the memory that it takes to use them. How few numbers have to
# move? And may those that stand still be kept in four bits?
#
# The published answer is QLoRA: 65 billion parameters, fine-tuned on one card of 48 GB instead
# of 780. We count where the gigabytes go, build the three parts (adapters, a frozen base in NF4,
# optimizer state that lives in a file), and measure what is lost.

# %%
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from minibit import plots
from minibit.dual import forward_gradient
from minibit.experiments.lora import SMALL, fine_tune, small_base, with_nf4
from minibit.language import draw_batch, evaluate_loss
from minibit.lora import (
    LoRALinear,
    PagedAdam,
    init_adapters,
    load_adapters,
    lora_linear,
    merge,
    save_adapters,
    with_adapters,
)
from minibit.lora.accounting import (
    PYTHIA_12B,
    full_fine_tune,
    gigabytes,
    inference,
    parameters,
    qlora_fine_tune,
)
from minibit.nf4 import quantize_nf4
from minibit.results import load_results
from minibit.tape import Adam, grad, vjp
from minibit.transformer import forward
from minibit.transformer.blocks import token_loss
from minibit.transformer.costs import SHAPES

plots.style(show=True)
BLUE, RED, GREEN, PINK, *_ = plots.PALETTE
rng = np.random.default_rng(0)

# %% [markdown]
# ## 780 gigabytes
#
# Weights and gradient in 16 bits, Adam's two means in 32: 12 bytes per parameter. Nothing else is
# needed to get the published figure:

# %%
full = full_fine_tune(65e9)
print(*full, sep="\n")
print(f"{gigabytes(full):8.2f} GB  in all")
assert gigabytes(full) == 780

# %% [markdown]
# Two thirds of it are Adam's, for weights that mostly move a little. If instead a few numbers move,
# beside weights that stand still, then gradient and means are small, and the weights may be stored
# in any form that can be multiplied by. In NF4 with double quantisation (chapter 13) and with
# adapters of rank 64 (the next section explains them), for one text of 512 tokens:

# %%
qlora = qlora_fine_tune(SHAPES["65B"])
print(*qlora, sep="\n")
print(f"{gigabytes(qlora):8.2f} GB  in all")
assert 45 < gigabytes(qlora) < 46
single = gigabytes(qlora_fine_tune(SHAPES["65B"], bits="NF4"))
print(f"{single:8.2f} GB  without double quantisation")
assert gigabytes(qlora) < 48 < single

# %% [markdown]
# It fits, and without double quantisation it would not: 0.37 bits per weight are three gigabytes.
# (A card of 48 GB has a little more than 48 x $10^9$ bytes, and a runtime takes some. The last
# lines depend on the text's length; Adam's 6.4 GB are what the paper moves off the card when a long
# text comes.)
#
# The same counting says what a figure for *using* a model means. Twelve billion parameters "in
# about 12 GB" are weights of 8 bits:

# %%
bits = ("bfloat16", "int8", "NF4, double quantisation")
for kind in bits:
    lines = inference(PYTHIA_12B, kind, gated=False)
    weights = sum(line.bytes for line in lines[:2]) / 1e9
    print(f"{kind}: weights {weights:.1f} GB, with a text of 2048 tokens {gigabytes(lines):.1f} GB")
    for line in lines:
        print(f"    {line}")
print(f"parameters: {parameters(PYTHIA_12B, gated=False) / 1e9:.2f} billion")
assert 12 < sum(line.bytes for line in inference(PYTHIA_12B, "int8", gated=False)[:2]) / 1e9 < 12.5

# %% [markdown]
# ## A change of low rank
#
# LoRA leaves the matrix $W$ alone and learns a product of two thin matrices beside it:
#
# $$y = x W^T + \frac{\alpha}{r}\,(x A^T) B^T, \qquad A: (r, n_{in}), \quad B: (n_{out}, r) .$$
#
# $x$ are the layer's inputs and $y$ its outputs, $r$ is the rank, and the constant $\alpha$ sets
# the size of the change. The product is a change $\Delta W = \frac{\alpha}{r} B A$ of rank $r$ at
# most, for $r\,(n_{in} + n_{out})$ numbers instead of $n_{in} n_{out}$. $A$ begins random, $B$ at
# zero: before the first step nothing has changed, and yet $B$ has a gradient. $A$ has none until
# $B$ has moved.

# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(8.4, 3.4))
fig.set_label(
    "One layer: inputs go through a wide grey box, the frozen matrix in four bits, and beside it "
    "through two thin coloured boxes, A and B; both ways are added. Dashed arrows lead the gradient "
    "back through all of them, but only A and B have Adam's means, in a file."
)
frozen, moving = "#bbbbbb", RED
for (left_, low, width, height), text, colour in (
    ((2.2, 1.9, 3.2, 1.5), "W in NF4: frozen\n4.13 bits per weight", frozen),
    ((2.2, 0.5, 0.9, 0.9), "A", moving),
    ((4.5, 0.5, 0.9, 0.9), "B", moving),
    ((7.5, 0.5, 1.9, 0.9), "Adam's means\nof A and B, in a file", moving),
):
    axes.add_patch(plt.Rectangle((left_, low), width, height, color=colour, alpha=0.5, lw=0))
    axes.text(left_ + width / 2, low + height / 2, text, ha="center", va="center", fontsize=9)
axes.text(0.5, 1.7, "x", ha="center", va="center")
axes.text(6.6, 1.7, "+", ha="center", va="center", fontsize=14)
axes.text(7.4, 1.95, "y", ha="center", va="center")
axes.text(3.8, 1.15, "r numbers", ha="center", va="center", fontsize=8)
forwards = [((0.7, 1.8), (2.1, 2.7)), ((0.7, 1.6), (2.1, 1.05)), ((3.2, 1.0), (4.4, 1.0))]
forwards += [((5.5, 2.7), (6.4, 1.85)), ((5.5, 1.05), (6.4, 1.6)), ((6.8, 1.72), (7.3, 1.9))]
backwards = [((6.4, 2.15), (5.5, 3.0)), ((2.1, 3.0), (0.6, 2.1)), ((6.4, 1.35), (5.5, 0.8))]
backwards += [((4.4, 0.75), (3.2, 0.75)), ((2.1, 0.75), (0.6, 1.4))]
for ways, style, colour in ((forwards, "-", BLUE), (backwards, "--", GREEN)):
    for begin, end in ways:
        arrow = {"arrowstyle": "->", "ls": style, "color": colour, "lw": 1.5}
        axes.annotate("", end, begin, arrowprops=arrow)
axes.annotate(
    "", (5.6, 0.35), (7.4, 0.7), arrowprops={"arrowstyle": "->", "color": moving, "lw": 1.5}
)
axes.text(6.6, 0.25, "moves them", ha="center", fontsize=8)
axes.plot([], [], "-", color=BLUE, label="forwards")
axes.plot([], [], "--", color=GREEN, label="the gradient, back")
axes.set(xlim=(0, 9.6), ylim=(0, 3.7))
axes.set_title("What stands still and what moves", loc="left")
axes.legend(loc="upper right")
axes.axis("off")

# %% [markdown]
# Is a fine-tune's change of low rank? We train a model of 55k weights on the first half of the
# package's text for some seconds, then all of its weights on the second half in UPPER CASE, and
# look at the singular values of the change.

# %%
config, params, train, validation = small_base()
moved, _ = fine_tune(
    replace(SMALL, method="full", rank=0, rate=4e-3), config, params, train, validation
)


def share_by_rank(matrix):
    """Share of the squared length that the first 1, 2, ... directions hold."""
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    return np.cumsum(squares) / squares.sum()


shares, of_noise = {}, {}
for name in ("layers.0.self_attn.q_proj", "layers.0.mlp.up_proj", "layers.1.mlp.down_proj"):
    shares[name] = share_by_rank(moved[name] - params[name])
    of_noise[name] = share_by_rank(rng.standard_normal(params[name].shape))
    print(f"{name:27} rank 8 holds {shares[name][7]:.0%}, of noise {of_noise[name][7]:.0%}")
    assert shares[name][7] > of_noise[name][7] + 0.1
    assert 1 / 3 - 0.05 < of_noise[name][7] < 0.5
assert min(share[7] for share in shares.values()) > 0.75

# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(6.4, 3))
for name, color in zip(shares, (BLUE, RED, GREEN), strict=True):
    axes.plot(np.arange(1, 49), shares[name], color=color, label=name.removeprefix("layers."))
    axes.plot(np.arange(1, 49), of_noise[name], ":", color=color, linewidth=1)
axes.axvline(8, color="#888888", linewidth=0.8, linestyle="--")
plots.label_axes(
    axes, "rank", "share of the change", "How much of a full fine-tune a rank holds (dotted: noise)"
)

# %% [markdown]
# Eight directions of 48 hold four fifths and more of the change (of noise: a third to a half),
# although nothing asked the full fine-tune for a low rank. LoRA asks another question: how good is
# the best change *within* rank $r$? Only training can tell.
#
# ## A frozen base that nobody holds as floats
#
# Reverse mode multiplies by $W$ twice: $x W^T$ forwards, and $c\,W$ backwards, where $c$ is the
# gradient in $y$. In between, the tape (chapter 9) would hold $W$ as floats, of all layers at once.
# So our frozen product gives the tape an object that NumPy takes for an array. It holds only packed
# codes, and dequantises them for each product.

# %%
x, y = draw_batch(train, 0, 0, 16, 64)
adapters = init_adapters(params, rank=8)
packed = with_nf4(params)


def loss(adapters, base=packed, alpha=16):
    adapted = with_adapters(base, adapters, alpha=alpha)
    return token_loss(forward(config, adapted, x, linear=lora_linear), y)


tape_bytes = {}
for name, base in (("float32", params), ("NF4", packed)):
    tape_bytes[name] = vjp(lambda a, base=base: loss(a, base), (adapters,))[1].nbytes
    print(f"the tape with a base in {name}: {tape_bytes[name] / 1e6:.2f} MB")
    assert loss(adapters, base) == token_loss(forward(config, base, x, linear=lora_linear), y)
projections = sum(w.nbytes for name, w in params.items() if name.endswith("_proj"))
print(f"the projections as floats: {projections / 1e6:.2f} MB")
assert tape_bytes["float32"] - tape_bytes["NF4"] > 0.85 * projections
fresh = grad(loss)(adapters)["layers.0.mlp.up_proj"]
assert not fresh["A"].any()
assert fresh["B"].any()

# %% [markdown]
# The difference is the floats of the projections, except q, k and v of the first layer: their
# inputs don't depend on any adapter, so no gradient goes back through them. Activations are the
# larger part here, since the batch has more rows than the matrices; in a model of billions it is
# the other way round.
#
# Now 100 steps of Adam on the adapters alone. This repeats a run of the experiment below:

# %%
results = load_results("lora")
small = next(row for row in results["rows"] if row["kind"] == "small")
tuned, curve = fine_tune(SMALL, config, params, train, validation, checks=1)
before = evaluate_loss(config, params, validation)
print(f"upper case before {before:.3f}, after {curve[-1][1]:.3f}; in the file {small['after']:.3f}")
assert abs(before - small["before"]) < 0.05
assert abs(curve[-1][1] - small["after"]) < 0.05
trained = {name: {"A": w.A, "B": w.B} for name, w in tuned.items() if isinstance(w, LoRALinear)}
with tempfile.TemporaryDirectory() as folder:
    save_adapters(folder, trained, alpha=16)  # as peft, Hugging Face's library
    sizes = {path.name: path.stat().st_size for path in Path(folder).iterdir()}
    again, settings = load_adapters(folder)
print("saved:", ", ".join(f"{name} {size / 1e3:.1f} KB" for name, size in sorted(sizes.items())))
assert all(np.array_equal(again[name]["B"], trained[name]["B"]) for name in trained)

# %% [markdown]
# ## How much of a full fine-tune it recovers
#
# The experiment (`minibit experiment lora`): a float model of 221k weights and the recipe of
# chapter 10 learn the first half of the text, 2 million characters. Then 600 batches of the second
# half: in **upper case**, which the model hardly knows, or **plain**. Of the second half, eight
# tenths are trained on. The ninth tenth chose the learning rates (seed 0, separately for the full
# fine-tune and for QLoRA, whose rate LoRA takes over). The last tenth gives the losses here.
#
# The share recovered is $(L_0 - L) / (L_0 - L_{full})$, with $L_0$ the loss of the float model
# before, $L$ the loss after, and $L_{full}$ that after the full fine-tune. So QLoRA pays for its
# four bits, too.

# %%
rows = [row for row in results["rows"] if row["kind"] == "run" and not row["choice"]]
tried = [row for row in results["rows"] if row["kind"] == "run" and row["choice"]]
chosen = {(r["task"], r["method"]): r["rate"] for r in results["rows"] if r["kind"] == "chosen"}
seeds = results["seeds"]
for key, rate in chosen.items():
    each = {r["rate"]: r["after"]["validation"] for r in tried if (r["task"], r["method"]) == key}
    print(f"{key}: " + ", ".join(f"{r:g} {v:.4f}" for r, v in each.items()) + f" -> {rate:g}")
    assert each[rate] == min(each.values())


def runs(task, method, rank=None):
    """The runs of a kind, by seed."""
    group = [r for r in rows if (r["task"], r["method"]) == (task, method)]
    return sorted((r for r in group if rank in (None, r["rank"])), key=lambda r: r["seed"])


WAYS = {
    ("full", 0): "full",
    ("lora", 8): "LoRA, r = 8",
    ("qlora", 8): "QLoRA, r = 8",
    ("qlora", 16): "QLoRA, r = 16",
}
share, table = {}, {}
for task in ("upper", "plain"):
    whole = runs(task, "full")
    gain = [r["before"]["test"] - r["after"]["test"] for r in whole]
    start = np.mean([r["before"]["test"] for r in whole])
    print(f"{task}: {start:.4f} before; a full fine-tune gains {np.mean(gain):.4f}")
    for (method, rank), label in WAYS.items():
        ours = runs(task, method, rank)
        if not ours:
            continue
        assert [r["seed"] for r in ours] == seeds
        parts = [
            (r["before"]["test"] - r["after"]["test"]) / g for r, g in zip(ours, gain, strict=True)
        ]
        share[task, method, rank] = np.array(parts)
        losses = [r["after"]["test"] for r in ours]
        print(
            f"    {label:14} {np.mean(losses):.4f} +- {np.std(losses, ddof=1):.4f}  "
            f"{np.mean(parts):6.1%} +- {np.std(parts, ddof=1):.1%}   {ours[0]['bytes'] / 1e3:7.1f} KB"
        )
assert np.mean(share["upper", "qlora", 8]) >= 0.90
assert np.mean(share["upper", "lora", 8]) >= 0.90
assert np.mean(share["plain", "qlora", 8]) < 0.90

# %% tags=["hide-input"]
kinds = [("upper", "lora", 8), ("upper", "qlora", 8), *(("plain", *w) for w in list(WAYS)[1:])]
labels = [f"{task}\n{method}\nr = {rank}" for task, method, rank in kinds]
fig, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.3))
for (method, rank), color in zip(WAYS, plots.PALETTE, strict=False):
    for r in runs("upper", method, rank)[:1]:
        left.plot(*zip(*r["curve"], strict=True), "o-", color=color, label=WAYS[method, rank])
plots.label_axes(left, "batches", "nats per character", "Upper case, validation, seed 0")
for i, key in enumerate(kinds):
    right.bar(i, 100 * np.mean(share[key]), color=BLUE if key[0] == "upper" else RED, width=0.7)
    right.plot([i] * len(seeds), 100 * share[key], "k.", markersize=5)
right.axhline(90, color="#888888", linewidth=0.8, linestyle="--")
right.set_xticks(range(len(kinds)), labels)
plots.label_axes(right, "", "% of the full fine-tune's gain", "Recovered (points: seeds)")

# %% [markdown]
# A large change of one kind (all letters become other characters) is recovered almost whole, in
# four bits as well as in floats. A small, diffuse one (more of the same author) is not: its gain is
# a few hundredths of a nat, and part of that is out of a low rank's reach, or is the price of four
# bits. A higher rank gets more of it.
#
# The runs also show bytes, and what the model forgets:

# %%
one = {method: runs("upper", method, rank)[0] for method, rank in list(WAYS)[:3]}
print(f"{'':16}{'full':>10}{'LoRA':>10}{'QLoRA':>10}")
for entry in ("frozen_bytes", "weight_bytes", "gradient_bytes", "optimizer_bytes", "bytes"):
    print(f"{entry:16}" + "".join(f"{r[entry] / 1e3:7.1f} KB" for r in one.values()))
assert one["qlora"]["bytes"] < one["lora"]["bytes"] / 2 < one["full"]["bytes"] / 4
forgets = {m: np.mean([r["forgets"] for r in runs("upper", m)]) for m in one}
plain = np.mean([r["before"]["test"] for r in runs("plain", "full")])
print(f"on plain text {plain:.2f} before; after upper case:", end=" ")
print(", ".join(f"{m} {v:.2f}" for m, v in forgets.items()))
assert forgets["qlora"] < forgets["full"]

# %% [markdown]
# QLoRA trains a tenth of the numbers here, and in all a sixth of the bytes: this model is so small
# that its float embedding and its adapters weigh more than its packed base. In a large one the base
# is nearly everything. And adapters forget less of what the model knew: they could not move the
# embedding.
#
# ## Merging, and what four bits keep of it
#
# After training, $W + \frac{\alpha}{r} B A$ can take the place of both. In floats that is exact to
# rounding. A base in NF4 has to be dequantised, added to, and quantised *again*: an entry moves
# only if the change carries it over the border between two codes, and then it moves too far. Users
# of peft (issue 2321) and of QLoRA (issue 28) report that the merged model answers differently.

# %%
merged = [r["merged"] for r in runs("upper", "qlora")]
beside = np.mean([r["after"]["test"] for r in runs("upper", "qlora")])
names = {"base_nf4": "NF4, no adapters", "float32": "merged in floats", "nf4": "merged into NF4"}
print(f"adapters beside    {beside:.4f}")
for key, label in names.items():
    print(f"{label:18} {np.mean([m[key] for m in merged]):.4f}")
same = np.mean([m["same_codes"] for m in merged])
error = np.mean([m["relative_error"] for m in merged])
print(f"{same:.0%} of the codes stay; what arrives is wrong by {error:.0%} of the change's length")
assert all(
    abs(m["float32"] - r["after"]["test"]) < 1e-4
    for m, r in zip(merged, runs("upper", "qlora"), strict=True)
)
assert all(m["nf4"] > m["float32"] + 0.005 for m in merged)
quiet = [m["merged"] for m in runs("plain", "qlora", 8)]
lost = np.mean([m["nf4"] - m["float32"] for m in quiet])
won = np.mean([m["base_nf4"] - m["float32"] for m in quiet])
print(f"plain text: adapters won {won:.4f} nats, merging into NF4 loses {lost:.4f} of them again")
assert 0 < lost < won

changes = 2.0 ** np.arange(-12, 3)
w = rng.standard_normal((256, 256), dtype=np.float32)
layer = LoRALinear(
    quantize_nf4(w),
    rng.standard_normal((8, 256), dtype=np.float32),
    rng.standard_normal((256, 8), dtype=np.float32),
)
kept = []
for change in changes:
    ours = replace(layer, alpha=float(change) * 8 / np.sqrt(8))
    arrived = merge(ours).dequantize() - layer.base.dequantize()
    kept.append(np.linalg.norm(arrived - ours.delta()) / np.linalg.norm(ours.delta()))
print(f"a change of 1/64 of a weight arrives with an error of {kept[6]:.0%} of itself")
assert kept[6] > 1 > kept[12]

# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(6.4, 3))
axes.loglog(changes, kept, "o-")
plots.label_axes(
    axes,
    "size of the change / size of a weight",
    "relative error of the change",
    "What merging into NF4 does to an adapter",
)

# %% [markdown]
# For a change of the weights' own size the error is that of NF4 itself, about a tenth. For a change
# of a hundredth, what arrives is mostly error. So keep the adapters beside the base, or merge into
# floats and do without four bits.
#
# ## Few numbers: forward gradients?
#
# Chapter 9 found forward gradients hopeless for whole networks: $K$ directions in $n$ dimensions
# give an estimate whose cosine to the gradient is $\sqrt{K/(K+n)}$. Adapters have few dimensions.
# With $r = 1$, $A$ as it was drawn and only $B$ moving, 1,984 numbers remain, and no tape is
# needed.

# %%
ones = init_adapters(params, rank=1)
direction = {
    name: {"A": None, "B": rng.choice(np.float32([-1, 1]), (64, *pair["B"].shape))}
    for name, pair in ones.items()
}
_, guess = forward_gradient(loss, ones, direction)
exact = grad(loss)(ones)
a, b = (np.concatenate([tree[n]["B"].ravel() for n in ones]) for tree in (guess, exact))
cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
print(
    f"{b.size} numbers, 64 directions: cosine {cosine:.2f}, expected {np.sqrt(64 / (64 + b.size)):.2f}"
)
assert abs(cosine - np.sqrt(64 / (64 + b.size))) < 0.1

pair = {method: runs("upper", method)[0] for method in ("tape", "forward")}
gain = {m: r["before"]["test"] - r["after"]["test"] for m, r in pair.items()}
fraction = gain["forward"] / gain["tape"]
for method, r in pair.items():
    print(
        f"{method:8} {r['steps']} steps, {r['moving']:,} numbers: {r['before']['test']:.3f} -> "
        f"{r['after']['test']:.3f}, {r['cpu_seconds']:.0f} CPU seconds"
    )
assert pair["forward"]["moving"] == 1984
print(f"forward gradients get {fraction:.0%} of what the tape gets")
assert 0.5 < fraction < 0.9

# %% [markdown]
# With eight directions per step, on 221k weights in NF4 (with a learning rate of its own, chosen as
# above), the model learns without a backward pass. It stays behind the tape, which is also cheaper.
# Forward mode's one advantage is memory: no activation is kept.
#
# ## State that lives in a file
#
# Adam needs its two means once a step, in order. `PagedAdam` keeps them in a file that is mapped
# into memory, walks over it in strips, and gives the memory of each strip back to the system
# (`madvise`). The arithmetic is entry by entry, so the bits are those of `Adam`.

# %%
w = {"w": rng.standard_normal(2_000_000, dtype=np.float32)}
plain = Adam(w)
budget = plain.nbytes // 20
seconds = {"resident": 0.0, "paged": 0.0}
with PagedAdam(w, budget=budget) as paged:
    for _ in range(3):
        g = {"w": rng.standard_normal(2_000_000, dtype=np.float32)}
        for name, adam in (("resident", plain), ("paged", paged)):
            begin = time.perf_counter()
            out = adam.step(g)["w"]
            seconds[name] += time.perf_counter() - begin
        assert np.array_equal(plain.params["w"], out)
print(f"{plain.nbytes / 1e6:.0f} MB of means, a budget of {budget / 1e6:.1f} MB: equal to the bit")
print(f"{seconds['paged'] / seconds['resident']:.1f} times the time of a step in memory")

# %% [markdown]
# The system keeps pages that were given back while it has room, and writes them out when it has
# none: an optimizer that would not fit becomes slow instead of impossible. That is what the paper's
# paged optimizer does with a GPU's unified memory, for the moments when a long text needs the room.
#
# **Limits.**
#
# - Our base has 221k weights and one text; shares of 90% and more are those of *this* change of
#   case. Shares of the plain task are ratios of small numbers: look at the seeds.
# - The full fine-tune moves embedding and norms, which the adapters here leave alone. Its learning
#   rate has a grid of factors of two.
# - Rates were chosen with one seed, whose runs are also among those reported. The test tenth was
#   not looked at for it. Two choices lie at an end of their grid: QLoRA's on plain text, where the
#   loss is flat, and that of forward gradients, which might do better still.
# - No dropout, no weight decay in these fine-tunes. `LoRALinear` has dropout, drawn by Philox; both
#   halves of a batch on two threads would draw the same.
# - Of peft's adapters only LoRA beside linear layers is read: no DoRA, no biases, no rank or alpha
#   by layer. Each is refused by its field.
# - The accounting leaves out what a runtime takes: allocator, kernels, fragments.
# - `PagedAdam` keeps parameters and gradients in memory. A file that another process cuts *during*
#   a step ends the process; before a step it is found.
#
# **Exercises.**
#
# 1. Begin with $B$ random and $A$ zero instead. What has a gradient at first? And with both zero?
#    (`test_fresh_adapters_change_nothing`.)
# 2. Show that with $\alpha / r$ a gradient step's effect shrinks as $r$ grows, and that
#    $\alpha / \sqrt r$ mends it. (The case `rank-stabilised` of `minibit/vectors/lora.json`.)
# 3. In the rule of the frozen product, multiply by `tensor.dequantize().T`. Every derivative stays
#    as it was; what changes? (`test_the_tape_holds_packed_weights_and_no_floats_of_them`.)
# 4. Merge an adapter into NF4 and take it out again. How many codes are not the old ones, and why
#    is it not zero? (`test_merging_into_four_bits_loses_small_adapters`.)
# 5. Let `PagedAdam` hand no strip back. How much of the file is resident after a step, and after
#    ten? (`test_no_more_than_the_budget_is_ever_resident`.)
# 6. Train adapters for one matrix kind only. Which one recovers most?
#    (`init_adapters(..., targets=[...])`; `test_targets_are_picked_by_the_last_part_of_the_name`.)
#
# **Sources.**
#
# - Hu et al. (2021), *LoRA: Low-Rank Adaptation of Large Language Models*, arXiv:2106.09685.
# - Dettmers, Pagnoni, Holtzman and Zettlemoyer (2023), *QLoRA: Efficient Finetuning of Quantized
#   LLMs*, arXiv:2305.14314.
# - Kalajdzievski (2023), *A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA*,
#   arXiv:2312.03732.
# - Liu et al. (2024), *DoRA: Weight-Decomposed Low-Rank Adaptation*, arXiv:2402.09353.
# - Meng, Wang and Zhang (2024), *PiSSA: Principal Singular Values and Singular Vectors Adaptation
#   of Large Language Models*, arXiv:2404.02948.
