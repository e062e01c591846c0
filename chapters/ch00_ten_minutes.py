# %% [markdown]
# # 1.58 bits in ten minutes
#
# **The question.** What does "1.58 bits" mean, why would anybody want it, and what does it cost?
#
# A neural network is, for the most part, a long list of numbers: its **weights**. Usually each of
# them takes 16 or 32 bits. In a **ternary** network a weight is one of three numbers: -1, 0 or +1.
# A choice among three carries $\log_2 3 \approx 1.58$ bits, hence the name.
#
# This page needs no other chapter. On the site, the output stands under each piece of code; in a
# terminal, `minibit chapters 0 --run` prints it.

# %%
from math import log2

import matplotlib.pyplot as plt
import numpy as np

from minibit import noise, plots
from minibit.absmean import absmean_quantize, fake_quant_weight
from minibit.datasets import load_mnist
from minibit.layers import ternary_linear
from minibit.noise_step import NoiseStep, Units, geometric
from minibit.results import load_results
from minibit.ternary import pack_base3, unpack_base3
from minibit.training import evaluate, model_of, shipped_log
from minibit.transformer import costs

plots.style(show=True)
rng = np.random.default_rng(0)

# %% [markdown]
# ## Why: each weight is read for each token
#
# A language model writes a text piece by piece. A piece is called a **token**: a word, or a part of
# one. For each new token the computer brings every weight from memory, multiplies it by one number,
# adds the product to a sum, and drops it. For the next token it reads all of them again.
#
# So two things grow with the bits of a weight: the memory that the model fills, and the time for a
# token. Take a language model with the sizes of LLaMA 7B (Touvron et al. 2023), which has 7 billion
# weights. Say that the memory delivers 50 GB per second; then no program can write more tokens per
# second than this:

# %%
shape = costs.SHAPES["7B"]
ends = 2 * shape.head_weights  # the embedding (tokens to numbers) and the head (numbers to tokens)
gigabytes = {}
for bits in (16, 8, 4, 1.6):
    gigabytes[bits] = (shape.matrix_weights * bits + ends * 16) / 8e9
    read = gigabytes[bits] - shape.head_weights * 16 / 8e9  # of the embedding, one row per token
    print(f"{bits:4} bits per weight: {gigabytes[bits]:4.1f} GB, at most {50 / read:4.1f} tokens/s")
print(f"16 bits take {gigabytes[16] / gigabytes[1.6]:.1f} times the memory of 1.6")
assert 6 < gigabytes[16] / gigabytes[1.6] < 8

# %% [markdown]
# (The first and the last matrix stay at 16 bits, here as in BitNet b1.58. That is why the memory
# shrinks by less than 10 times.)
#
# The same is true of energy. To read 16 bits from the memory beside a large chip costs far more
# than the multiplication and the addition that the weight is read for (O'Connor et al. 2017; Jouppi
# et al. 2021, for chips of 7 nm). The unit is the picojoule (pJ):

# %%
reading, computing = 2 * costs.DRAM_PJ_PER_BYTE, costs.FP16.pj
print(f"read a weight of 16 bits: {reading:.1f} pJ; multiply and add: {computing:.1f} pJ")
print(f"reading costs {reading / computing:.0f} times as much")
assert reading > 100 * computing

# %% [markdown]
# A server that answers many people at once reads a weight once for all of them. There, trits save
# less; chapter 10b counts how much.
#
# ## What a trit is
#
# A **bit** is a choice between two values. A **trit** is a choice among three. A byte has 256
# states and five trits have $3^5 = 243$, so five trits fit into one byte: 1.6 bits per weight.

# %%
weights = np.array([-1, 0, 1, 1, 0], np.int8)
packed = pack_base3(weights)
print(weights, "in one byte:", packed)
assert packed.size == 1
assert (unpack_base3(packed, 5) == weights).all()
print(f"a trit: {log2(3):.3f} bits; stored: {8 / 5} bits")

# %% [markdown]
# Nothing has to be multiplied, either. The product of a row of trits and an input is a sum: add the
# inputs where the weight is +1, subtract those where it is -1, skip the rest.

# %%
x = np.array([0.5, 2.0, 1.0, -3.0, 7.0])
assert weights @ x == x[weights == 1].sum() - x[weights == -1].sum()
print("weights times inputs:", weights @ x)

# %% [markdown]
# ## From floats to trits
#
# Here is a small matrix of floats. **Absmean**, the rule of BitNet b1.58 (Ma et al. 2024), makes
# trits of it:
#
# 1. Take the mean of all magnitudes. It is called $\gamma$ (gamma).
# 2. Divide each weight by $\gamma$ and round to the nearest of -1, 0, +1.
# 3. Keep the trits, and $\gamma$ as the one **scale** of the matrix: $W \approx \gamma\, T$.
#
# So a weight becomes 0 if its magnitude is below $\gamma / 2$, and keeps its sign otherwise.

# %%
W = rng.standard_normal((6, 8)).astype(np.float32)
T, gamma = absmean_quantize(W)
print(f"gamma = {gamma:.3f}, and the trits are\n{T}")
assert (np.sign(W) * (np.abs(W) > gamma / 2) == T).all()

# %% tags=["hide-input"]
fig, panels = plt.subplots(1, 3, figsize=(9.6, 2.9))
pictures = {
    "floats $W$": W,
    "trits $T$": T,
    rf"$\gamma\,T$, with $\gamma$ = {gamma:.2f}": gamma * T,
}
for axes, (title, matrix) in zip(panels, pictures.items(), strict=True):
    limit = 1 if matrix is T else 2.5
    axes.imshow(matrix, cmap="PuOr", vmin=-limit, vmax=limit)
    for (i, j), value in np.ndenumerate(matrix):
        text = f"{value:+d}" if matrix is T and value else f"{value:.2g}" if value else "0"
        dark = abs(value) > 0.7 * limit
        axes.text(j, i, text, ha="center", va="center", fontsize=7, color="w" if dark else "k")
    axes.set(title=title, xticks=[], yticks=[])
    axes.grid(False)

# %% [markdown]
# **Try it.** On the site, this slider moves the threshold below which a weight becomes 0. The scale
# is always the one that suits these trits best: the mean magnitude of the weights that are kept.
#
# <div class="trit-slider"></div>
#
# A threshold of 0 leaves only signs: one bit per weight. A high one leaves almost only zeros.
# Between them lies the least **error**: the length of $W - \gamma\,T$ over the length of $W$. The
# number of bits is the **entropy**: what a trit carries if zeros come that often. It is largest,
# 1.58 bits, when a third of the trits are zeros.
#
# The same on a large matrix, whose weights follow a normal distribution:

# %%
large = rng.standard_normal((1000, 1000)).astype(np.float32)
trits, gamma = absmean_quantize(large)
zeros = np.mean(trits == 0)
error = np.linalg.norm(large - gamma * trits) / np.linalg.norm(large)
cosine = np.sum(large * trits) / np.linalg.norm(large) / np.linalg.norm(trits.astype(float))
print(f"zeros {zeros:.1%}, relative error {error:.0%}, cosine {cosine:.2f}")
assert 0.30 < zeros < 0.32
assert 0.88 < cosine < 0.92

# %% [markdown]
# The error is large. But a layer adds up many products, and only the sum counts. The **cosine**
# compares the directions of the trits and of the floats: 1 means the same direction, 0 means a
# right angle.
#
# ## Three ways to get there
#
# How good a ternary network is depends on when it learns that its weights are trits.
#
# 1. **After training.** Train with floats, then round (*post-training quantization*, PTQ).
# 2. **During training** (*quantization-aware training*, QAT). Keep a float behind each trit, its
#    *latent weight*. Each step rounds it and runs the network with the trits. The derivative of
#    rounding is 0 almost everywhere, so nothing would ever move. Therefore the backward pass
#    pretends that rounding did nothing: this is the **straight-through estimator** (STE; Bengio et
#    al. 2013). Most ternary language models are trained so.
# 3. **Forwards only.** Keep the trits alone. Propose changes, measure how the loss would answer,
#    keep the best ones (*noise_step*, Brickner 2024). There are no latent weights and no backward
#    pass.

# %% tags=["hide-input"]
latent = np.linspace(-2, 2, 401)
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.8))
left.plot(latent, np.clip(np.rint(latent), -1, 1))
right.plot(latent, latent, color=plots.PALETTE[1])
for axes, title in ((left, "Forwards: stairs"), (right, "Backwards: as if it were a diagonal")):
    axes.set_ylim(-2.1, 2.1)
    plots.label_axes(axes, r"latent weight, in units of $\gamma$", "what the network sees", title)

# %% [markdown]
# We try all three on a very small network: one matrix of 10 x 784 weights that names the digit on
# an image of 28 x 28 pixels (MNIST; LeCun et al. 1998). First the two ways with floats:

# %%
mnist = load_mnist()


def prepared(pixels):
    """Pixels with mean 0 and standard deviation 1."""
    return (pixels / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)


train_x, train_y = prepared(mnist.train_x[:20_000]), mnist.train_y[:20_000].astype(np.int64)
test_x, test_y = prepared(mnist.test_x), mnist.test_y


def accuracy(w):
    """Share of the test images whose digit has the largest output."""
    return float(np.mean(np.argmax(test_x @ w.T, axis=1) == test_y))


def train(sees, steps=400, rate=0.03):
    """Descend along the gradient at the weights that the network sees."""
    draws = np.random.default_rng(0)
    w = np.float32(0.01) * draws.standard_normal((10, 784), dtype=np.float32)
    velocity = np.zeros_like(w)
    for step in range(steps):
        rows = draws.integers(len(train_x), size=256)
        outputs = train_x[rows] @ sees(w).T  # (batch, 10)
        p = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(256), train_y[rows]] -= 1
        velocity = np.float32(0.9) * velocity + p.T @ train_x[rows] / 256  # straight through
        w = w - np.float32(rate * (1 - step / steps)) * velocity
    return w


floats = train(lambda w: w)
latent = train(fake_quant_weight)  # the network sees gamma times trits

# %% [markdown]
# Now forwards only. `NoiseStep` gets a function and a start, and no gradient. A **unit** is one of
# the ten outputs. In each step `NoiseStep` computes, with one derivative that runs forwards along
# with the network (chapter 1), how the loss answers a small push at each unit. From that it chooses
# which trits to move.


# %%
def outputs(params, x, linear=ternary_linear):
    """Return the ten outputs for each image."""
    return 0.05 * linear(x, params["w"])  # 0.05: the scale of the matrix


start = {"w": noise.initial_codes(0, (10, 784), 0.7)}  # 70% zeros
# The rate: the share of all proposed moves that are made, from 2% down to 0.1%
learner = NoiseStep(outputs, start, 0, Units((10,), rate=geometric(0.02, 0.001, 200)))
for step in range(200):
    rows = noise.integers(0, len(train_x), 512, domain=noise.USER, step=step)
    learner.step(train_x[rows], train_y[rows])

scores = {
    "floats": accuracy(floats),
    "trits, rounded after training": accuracy(fake_quant_weight(floats)),
    "trits, trained straight-through": accuracy(fake_quant_weight(latent)),
    "trits, trained forwards only": accuracy(learner.params["w"].astype(np.float32)),
}
for name, score in scores.items():
    print(f"{score:6.1%}  {name}")
best, rounded, straight, forwards = scores.values()
assert rounded < straight - 0.15
assert straight > best - 0.03
assert straight - 0.06 < forwards < best

# %% [markdown]
# Rounding afterwards loses most, because the errors of neighbouring weights add up. Training that
# sees the trits chooses errors that cancel (chapter 4 measures both). Training forwards only comes
# close, and keeps no float weights at all.
#
# ## What it costs
#
# For language models the published answer is: the larger the model, the less it loses. The measure
# is **perplexity**: a model of perplexity 10 is as unsure of the next token as if it chose among 10
# equally likely ones; lower is better. BitNet b1.58 with 3 billion weights has a perplexity of
# 9.91, the same model in floats 10.04; at 700 million they have 12.87 and 12.33 (Ma et al. 2024,
# table 1).
#
# Our own models are thousands of times smaller and show the same. Each was trained three times on
# the characters of one book. The loss is in **nats per character**, the natural logarithm of the
# perplexity:

# %%
language = load_results("language")
loss = {}
for row in language["rows"]:
    if row["kind"] == "run" and row["sub_norms"]:
        loss.setdefault((row["size"], row["weights"]), []).append(row["validation_loss"])
print("weights   float   b1.58   more by")
gaps = []
for size in ("55k", "221k", "885k"):
    one, other = (np.mean(loss[size, kind]) for kind in ("float", "b1.58"))
    gaps.append(other / one - 1)
    print(f"{size:8} {one:6.3f}  {other:6.3f}  {gaps[-1]:7.1%}")
assert gaps == sorted(gaps, reverse=True)
assert gaps[-1] < 0.01

# %% [markdown]
# ## A model in 37 KB
#
# At the end, the model at the centre of this book. It has 334,336 ternary weights in four layers
# and was trained forwards only. Its file holds no matrix but a **log** of the training: a seed for
# the first weights, and for each step which trits moved. The package carries the log of one run.
# From it the weights come back, to the bit:

# %%
log = shipped_log()
model, params = model_of(log.header), log.replay()
share = evaluate(params, model, mnist.test_x, mnist.test_y)
recorded = next(row for row in load_results("train")["rows"] if row["preset"] == "small")["runs"][0]
print(f"{len(log)} steps in {log.nbytes:,} bytes; {share:.2%} of 10,000 test images are right")
assert log.digest() == recorded["digest"]
assert share == recorded["test_accuracy"]
count = sum(w.size for w in params.values())
print(f"its {count:,} weights: {count / 5:,.0f} bytes at five per byte, {4 * count:,} as floats")
assert log.nbytes < count / 5

# %% [markdown]
# This is how it recognises digits. Below each image stand the **probabilities** that the network
# gives to the ten digits. The third is hard: the network gets it wrong, and is not sure of it.

# %%
chosen = [0, 7, 247, 18]
logits = model(params, mnist.test_x[chosen])  # (4, 10)
p = np.exp(logits - logits.max(axis=1, keepdims=True))
p /= p.sum(axis=1, keepdims=True)
for i, row in zip(chosen, p, strict=True):
    print(f"image {i}: a {mnist.test_y[i]}; the network says {row.argmax()} with {row.max():.0%}")
assert (p.argmax(axis=1) == mnist.test_y[chosen]).tolist() == [True, True, False, True]
assert p.max(axis=1).argmin() == 2

# %% tags=["hide-input"]
fig, panels = plt.subplots(2, 4, figsize=(9.2, 3.8), height_ratios=(1.3, 1))
for i, row, above, below in zip(chosen, p, *panels, strict=True):
    above.imshow(mnist.test_x[i].reshape(28, 28), cmap="gray_r")
    above.set(title=f"a {mnist.test_y[i]}", xticks=[], yticks=[])
    above.grid(False)
    colours = [plots.PALETTE[0 if d == mnist.test_y[i] else 1] for d in range(10)]
    below.bar(range(10), 100 * row, color=colours)
    below.set(xticks=range(10), ylim=(0, 100), xlabel="digit")
panels[1, 0].set_ylabel("probability (%)")

# %% [markdown]
# ## What is in this book
#
# Each chapter is one idea, and one module of the package.
#
# | you want | chapters |
# |---|---|
# | the ideas: derivatives forwards, trits, layers, training with and without a backward pass, a language model | this one, then chapter 1, chapter 4, chapter 5, chapter 7, chapter 7b, chapter 9, chapter 10 |
# | bytes: packing, random numbers from a seed, logs, model files | chapter 2, chapter 6, chapter 8, chapter 11, chapter 11b |
# | costs: products on a CPU, what training takes, what a large model saves | chapter 3, chapter 7c, chapter 10b |
# | other methods: sparse activations, four-bit weights, adapters | chapter 12, chapter 13, chapter 14 |
# | many machines | chapter 15 |
#
# **Limits.** Small networks on an easy task say little about large ones. The format alone gives no
# speed: without a program that is made for trits, a processor gains nothing (chapter 3). And
# training straight-through is not cheaper: the latent floats need all the memory of a float
# network.
#
# **Exercises.**
#
# 1. Which threshold of the slider gives the least error, and is it that of absmean? (Chapter 4
#    draws the answer for three kinds of weights.)
# 2. Why do seven trits not fit into eleven bits, and why does nobody store 17 trits in 27 bits?
#    (Chapter 2.)
# 3. Let `train` begin at `floats` and see trits from then on. How many steps does it need to be as
#    good as `latent`? (`test_the_derivative_is_the_identity` says what flows back.)
#
# **Sources.**
#
# - Ma et al. (2024), *The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits*,
#   arXiv:2402.17764.
# - Touvron et al. (2023), *LLaMA: Open and Efficient Foundation Language Models*, arXiv:2302.13971.
# - Bengio, Léonard and Courville (2013), *Estimating or Propagating Gradients Through Stochastic
#   Neurons for Conditional Computation*, arXiv:1308.3432.
# - Brickner (2024), *noise_step: Training in 1.58b With No Gradient Memory*, manuscript.
# - LeCun, Bottou, Bengio and Haffner (1998), *Gradient-Based Learning Applied to Document
#   Recognition*, Proceedings of the IEEE 86.
# - O'Connor et al. (2017), *Fine-Grained DRAM: Energy-Efficient DRAM for Extreme Bandwidth
#   Systems*, MICRO.
# - Jouppi et al. (2021), *Ten Lessons From Three Generations Shaped Google's TPUv4i*, ISCA.
