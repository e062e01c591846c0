# %% [markdown]
# # What forward-only training costs, and its neighbours
#
# **The question.** Chapters 7 and 7b train without a backward pass. What does a step cost in time
# and in memory, and how many bytes does it leave behind? And what do other methods do that use
# forward passes only?
#
# The unit of time is one forward pass of the paper's network, 784-256-256-256-10, in NumPy
# (float32, 1,024 images, one thread). The words are those of the two chapters: a *perturbation* is
# a random change that is proposed to the weights, its *alignment* is the slope of the loss along
# it, a *tern* is the -1, 0 or +1 that is kept of it. Method `sampled` ranks perturbations. Method
# `units` ranks *candidates*: single weights that lead into a few drawn units.

# %%
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread, so that the times below compare
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import time
import tracemalloc
from math import comb, log2
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np

from minibit import noise, plots, training
from minibit.bench import expect_time
from minibit.datasets import load_mnist, split
from minibit.dual import jvp, jvp_batch
from minibit.layers import cross_entropy, init_mlp, mlp
from minibit.noise_step import MLP, NoiseStep, Sampled, Units, geometric
from minibit.results import load_results
from minibit.steps import StepLog
from minibit.training.log_header import MNIST_MEAN, MNIST_STD

plots.style(show=True)
parts = split(load_mnist())
train_x, train_y = parts.train_x, parts.train_y.astype(np.int64)

SCALE, OFFSET = 1 / (255 * MNIST_STD), -MNIST_MEAN / MNIST_STD
paper = MLP(0.12, SCALE, OFFSET)  # logits x 0.12, pixels to mean 0 and standard deviation 1
paper8 = MLP(0.12, SCALE, OFFSET, activations="int8")  # hidden activations in 8 bits (chapter 7b)
shapes = (784, 256, 256, 256, 10)
big = init_mlp(shapes, lambda k, shape: noise.initial_codes(0, shape, 0.7, layer=k))
big_size = sum(w.size for w in big.values())

# %% [markdown]
# ## Time
#
# "The JVP runs alongside inference", says the manuscript of noise_step. How much does it add to
# inference? Each row is the median of several runs, taken in turn:

# %%
i = noise.integers(4, len(train_y), 1024, domain=noise.USER)
pixels, labels = train_x[i], train_y[i]
x = (SCALE * pixels + OFFSET).astype(np.float32)
floats = {name: w.astype(np.float32) for name, w in big.items()}
dense = {name: np.float32(noise.initial_codes(1, w.shape, 0.5)) for name, w in big.items()}
eight = {name: np.stack([v] * 8) for name, v in dense.items()}


def loss_at(p):
    return cross_entropy(mlp(p, x, logit_scale=0.12), labels)


def stepper(settings, model=paper):
    learner = NoiseStep(model, big, 0, settings, threads=1)
    return lambda: learner.step(pixels, labels)


work = {
    "a forward pass": lambda: loss_at(floats),
    "with one tangent (jvp)": lambda: jvp(loss_at, (floats,), (dense,)),
    "with eight tangents (jvp_batch)": lambda: jvp_batch(loss_at, (floats,), (eight,)),
    "sampled, 128 at density 6e-5": stepper(Sampled(density=6e-5, score="t")),
    "sampled, 128 at density 3.7e-6": stepper(Sampled(density=3.7e-6, score="t")),
    "units, 52 with 21,760 candidates": stepper(Units((16, 16, 16, 4))),
    "the same, int8 activations": stepper(Units((16, 16, 16, 4)), paper8),
}
seconds = {name: [] for name in work}
for _ in range(6):
    for name, call in work.items():
        begin = time.perf_counter()
        call()
        seconds[name].append(time.perf_counter() - begin)
medians = {name: np.median(each[1:]) for name, each in seconds.items()}
passes = {name: each / medians["a forward pass"] for name, each in medians.items()}
for name, each in medians.items():
    print(f"{name:34}{1000 * each:7.1f} ms = {passes[name]:5.1f} forward passes")
_, one, eight_at_once, early, late, by_units, _ = passes.values()
print(f"128 dense tangents, eight at a time: about {16 * eight_at_once:.0f} forward passes")
expect_time(1.1 < one < 8, "one dense tangent costs some forward passes")
expect_time(late < early < 16 * eight_at_once, "sparse tangents cost less, late ones the least")
expect_time(by_units < 12, "a step by units costs less than 12 forward passes")

# %% [markdown]
# A dense tangent adds two products to each product of the forward pass, $\dot h W^T$ and $h V^T$
# (one in the first layer, whose inputs do not move). A backward pass has as many. So "alongside"
# means one or two further passes, for one number.
#
# Many tangents become cheap only because $v$ is sparse: its few nonzeros touch few units, and
# perturbations that touch the same unit share its tangent.
#
# ## Memory
#
# What does training hold besides the batch, for the same network? The usual way, Adam with
# straight-through gradients, is counted. The steps are measured: the largest amount that one step
# had allocated in NumPy at any time.

# %%
packed = -(-big_size // 5)  # five trits per byte
megabytes = {
    "ternary weights, int8": big_size,
    "the same, five per byte": packed,
    "Adam: latent weights": 4 * big_size,
    "Adam: gradient": 4 * big_size,
    "Adam: two moments": 8 * big_size,
    "Adam: activations of the batch": 4 * 1024 * (784 + 3 * 256 + 10),  # inputs, normalised z
}
adam = sum(count for name, count in megabytes.items() if name.startswith("Adam"))
for name in [*work][3:]:
    tracemalloc.start()
    work[name]()
    megabytes[name] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
for name, count in megabytes.items():
    print(f"{name:34}{count / 1e6:7.2f} MB")
print(f"Adam in all: {adam / 1e6:.1f} MB")
assert megabytes["sampled, 128 at density 3.7e-6"] < 4 * big_size < count  # the last: units
assert max(megabytes[name] for name in [*work][3:]) < adam / 2

# %% [markdown]
# No activations of a whole batch are kept. A sample goes through the network, adds to the sums, and
# is forgotten; with int8 activations this happens for 256 samples at a time. (Adam could hold fewer
# activations, too, if it cut its batch into smaller ones and added the gradients.)
#
# But look at the last lines. The sums of `units` are 52 rows of a gradient, with their squares. A
# batch is cut into four parts, and each part has its own sums, so that the result does not depend
# on the number of threads. Together they take more memory than a whole gradient of this network.
# They are gone when the step ends, so neither method keeps a gradient from one step to the next.
# But *within* a step only `sampled` can say that it has no gradient memory. What it holds is mostly
# lists of the weights that leave the units it touches.
#
# ## The bytes that a step leaves
#
# Half of the terns of a `sampled` step are 0, so a tern carries
# $H(\tfrac12, \tfrac14, \tfrac14) = 1.5$ bits. A step of `units` keeps, in each layer, $k$ of $N$
# candidates, with a sign each: $\log_2 \binom{N}{k} + k$ bits. Here are the first 160 steps of
# preset `small`:

# %%
preset = training.PRESETS["small"]
with TemporaryDirectory() as folder:
    path = Path(folder) / "small.steps"
    training.train("small", 0, path, steps=160, split_name="validation")
    log = StepLog.open(path)
    kept_moves = [[len(layer) for layer in step.positions] for step in log.steps()]
    net_changes, log_bytes = log.diff(0, 160), log.nbytes
candidates = [u * n for u, n in zip(log.plan.units, log.plan.inputs, strict=True)]


def ideal_bytes(moves):
    """Entropy of a step: which k of the N candidates of each layer moved, and a sign for each."""
    return sum(log2(comb(n, k)) + k for n, k in zip(candidates, moves, strict=True)) / 8


ideal = np.array([ideal_bytes(moves) for moves in kept_moves])  # (steps,)
rate = geometric(*preset.rate, preset.steps)
quotas = [[round(rate(step) * n) for n in candidates] for step in range(preset.steps)]
whole = sum(ideal_bytes(quota) for quota in quotas)
print(
    f"sampled: {128 * 1.5 / 8:.0f} bytes per step, {1550 * 128 * 1.5 / 8000:.1f} KB for 1550 steps"
)
print(f"units: {ideal[:10].mean():.0f} bytes per step at first, {ideal[-10:].mean():.0f} later")
print(f"160 steps: {ideal.sum() / 1000:.1f} KB by entropy, {log_bytes / 1000:.1f} KB on disk")
print(f"its preset's {preset.steps} steps: about {whole / 1000:.1f} KB by entropy")
print(f"weights at five trits per byte: {packed / 1000:.1f} KB")
assert log_bytes < 1.1 * ideal.sum() + 2_000
assert log_bytes < whole < packed
changed = sum(np.count_nonzero(change) for change in net_changes.values())
print(f"{np.sum(kept_moves):,} moves; {changed:,} of {big_size:,} weights differ from the seed's")
assert changed < np.sum(kept_moves) < 0.1 * big_size

# %% [markdown]
# The log grows with every step, the weights do not. A run of several thousand steps leaves more
# bytes than its packed weights have. Then the log is the history of the model, but no longer its
# smallest form. Chapter 8 has that form, too: it keeps only what changed between the first weights
# and the last.
#
# ## The four presets, to the end
#
# `minibit experiment train` ran the four presets to their end with three seeds each, on all 60,000
# training images. The settings were chosen before, on the last 5,000 of them. Log and weights (five
# trits per byte) are in thousands of bytes. Times are of all threads together.

# %%
results = load_results("train")
print(f"{results['command']}, on {results['environment']['cpu']}")
print("preset    method    steps   test accuracy    log  weights   CPU s")
for row in results["rows"]:
    accuracy = f"{row['test_accuracy']:.2%} ±{row['test_accuracy_std']:.2%}"
    sizes = f"{row['log_bytes'] / 1000:6.1f} {row['packed_weight_bytes'] / 1000:8.1f}"
    print(
        f"{row['preset']:<9} {row['method']:<9} {row['steps']:>5}   {accuracy} {sizes}"
        f" {row['cpu_seconds']:>7.0f}"
    )
by_preset = {row["preset"]: row for row in results["rows"]}
assert by_preset["paper"]["test_accuracy"] > 0.89
assert by_preset["strict"]["test_accuracy"] > 0.94
assert by_preset["small"]["test_accuracy"] > 0.963
assert by_preset["accurate"]["test_accuracy"] > 0.978
assert by_preset["small"]["log_bytes"] < by_preset["small"]["packed_weight_bytes"]
assert by_preset["strict"]["log_bytes"] < by_preset["strict"]["packed_weight_bytes"]
assert by_preset["accurate"]["log_bytes"] > 3 * by_preset["accurate"]["packed_weight_bytes"]

# %% [markdown]
# The logs of `small` and `strict` are smaller than their weights. `accurate` buys its last percent
# with a log more than three times as large as the weights.
#
# ## A slope without a tangent
#
# An alignment needs forward-mode differentiation. Two plain forward passes nearly do as well: take
# the loss at $w + \epsilon v$ and at $w - \epsilon v$. Half of their difference, over $\epsilon$,
# is close to the slope along $v$. **MeZO** fine-tunes language models with such pairs, one pair per
# step. **Evolution strategies** take many at once and add the perturbations up, each times its
# difference. **Forward gradients** add them up likewise, each times its exact slope.
#
# A float network may take a tiny $\epsilon$. In a ternary network only $\epsilon = 1$ is made of
# trits, and then the pair measures whole moves and not slopes. We compare both with the exact
# alignments of 64 perturbations of our network, in the code that all three of them share,
# `loss_at`:

# %%
K = 64
offsets, positions, signs = noise.sparse_noise_many(7, 0, range(K), big_size, 6e-5)
flat = np.concatenate([w.ravel() for w in floats.values()])
v = np.zeros((K, big_size), np.float32)  # (perturbations, weights)
v[np.repeat(np.arange(K), np.diff(offsets)), positions] = signs
ends = np.cumsum([w.size for w in floats.values()])[:-1]


def lay_out(flat):
    """Cut a flat array of all weights into the layers' shapes."""
    pieces = np.split(flat, ends)
    return {
        name: piece.reshape(w.shape)
        for piece, (name, w) in zip(pieces, floats.items(), strict=True)
    }


def pair(direction, epsilon):
    """Half the difference of two forward passes, over epsilon."""
    plus, minus = (loss_at(lay_out(flat + sign * epsilon * direction)) for sign in (1, -1))
    return float(plus - minus) / (2 * epsilon)


exact = np.array([jvp(loss_at, (floats,), (lay_out(row),))[1] for row in v])  # (perturbations,)
same, measured = {}, {}
for epsilon in (np.float32(0.01), np.float32(1)):
    measured[float(epsilon)] = pairs = np.array([pair(row, epsilon) for row in v])
    terns, ours = (
        np.where(np.abs(a) >= np.median(np.abs(a)), np.sign(a), 0) for a in (exact, pairs)
    )
    same[float(epsilon)] = np.mean(terns == ours)
    print(
        f"epsilon {epsilon:4g}: the same terns for {same[float(epsilon)]:.0%} of {K} perturbations"
    )
assert min(same.values()) > 0.8

# %% tags=["hide-input"]
fig, panels = plt.subplots(1, 2, figsize=(9.2, 3.4), sharey=True)
for panel, (epsilon, pairs) in zip(panels, measured.items(), strict=True):
    panel.plot(1000 * exact, 1000 * pairs, "o")
    panel.axline((0, 0), slope=1, color="#888888", linewidth=0.8)
    title = f"$\\epsilon$ = {epsilon:.2g}"
    plots.label_axes(panel, "exact slope (millinats)", "", title)
panels[0].set_ylabel("from two forward passes (millinats)")

# %% [markdown]
# With a small $\epsilon$ both agree, but for rounding. With whole moves they still agree on most
# perturbations, and the pair has an advantage: it needs no derivative, and all of its weights are
# small integers, so its forward passes can run on integer hardware. A tangent has another one: it
# is exact, and perturbations that touch the same units share it.
#
# ## The neighbours
#
# **Forward passes only.**
#
# | method | what a step measures | published or measured |
# |---|---|---|
# | forward gradients (Baydin et al. 2022) | slopes along dense random directions, by JVPs | unbiased; the variance of each entry is about $\lVert\nabla L\rVert^2$; chapter 9 measures how near they come |
# | the same on activations, with local losses (Ren et al. 2022) | slopes along pushes of activations, by JVPs | MNIST test error 2.5%, CIFAR-10 31% |
# | MeZO (Malladi et al. 2023) | two forward passes per step | 66B parameters fine-tuned; a run is stored as a seed and 2 bytes per step, in under 0.1 MB |
# | evolution strategies, EGGROLL (Sarkar et al. 2025) | forward passes of many low-rank changes, in int8 | with $2^{20}$ changes per step 3.40 bits per byte of text, a float transformer 3.58, at about 180 times the GPU hours |
# | FedKSeed (Qin et al. 2023) | as MeZO, on many machines | under 18 KB of traffic per round |
#
# **With a backward pass.**
#
# | method | what it needs | published or measured |
# |---|---|---|
# | Adam with straight-through gradients, the same network | latent weights, a backward pass, two moments | 98.5% of the test images after 800 steps (chapter 9) |
# | sign-SGD with majority vote (Bernstein et al. 2018) | a backward pass on each machine | only signs travel: one bit per weight and round |
# | Bop, BOLD, GXNOR-Net (Helwegen et al. 2019; Nguyen et al. 2024; Deng et al. 2017) | a backward pass, but no latent weights | weights flip when the signal is strong enough |
#
# **Limits.**
#
# - The log grows with the steps. Always compare it with the packed weights.
# - Times are those of one machine and of these widths. A wider network gains less from rows of
#   weights that stay in the cache.
# - The figures of the neighbours are their authors'. Tasks and networks differ, so the tables say
#   what is possible, and not who is better.
#
# **Exercises.**
#
# 1. Which of the numbers above change with the number of threads, and which must not?
#    (`test_sums_do_not_depend_on_the_number_of_threads`.)
# 2. A step of `units` with a rate of less than one move per layer: how many moves does it make, and
#    how many bytes? (`test_a_rate_of_less_than_a_move_moves_now_and_then`.)
# 3. Replace the pair of forward passes by one pass at $w + v$ and one at $w$. How does the share of
#    equal terns change, for both values of $\epsilon$?
# 4. How many steps of `small` fit into the bytes of its packed weights, if the rate stays at its
#    last value? Run them with `minibit train --steps` and compare with `minibit info`.
#
# **Sources.**
#
# - Brickner (2024), *noise_step: Training in 1.58b With No Gradient Memory*, manuscript.
# - Baydin, Pearlmutter, Syme, Wood and Torr (2022), *Gradients without Backpropagation*,
#   arXiv:2202.08587.
# - Ren, Kornblith, Liao and Hinton (2022), *Scaling Forward Gradient With Local Losses*,
#   arXiv:2210.03310.
# - Malladi et al. (2023), *Fine-Tuning Language Models with Just Forward Passes*, arXiv:2305.17333.
# - Sarkar et al. (2025), *Evolution Strategies at the Hyperscale*, arXiv:2511.16652.
# - Qin et al. (2023), *Federated Full-Parameter Tuning of Billion-Sized Language Models with
#   Communication Cost under 18 Kilobytes*, arXiv:2312.06353.
# - Bernstein, Zhao, Azizzadenesheli and Anandkumar (2018), *signSGD with Majority Vote is
#   Communication Efficient And Fault Tolerant*, arXiv:1810.05291.
# - Helwegen et al. (2019), *Latent Weights Do Not Exist: Rethinking Binarized Neural Network
#   Optimization*, arXiv:1906.02107.
# - Nguyen et al. (2024), *BOLD: Boolean Logic Deep Learning*, arXiv:2405.16339.
# - Deng, Jiao, Pei, Wu and Li (2017), *GXNOR-Net: Training deep neural networks with ternary
#   weights and activations without full-precision memory under a unified discretization framework*,
#   arXiv:1705.09283.
# - LeCun, Bottou, Bengio and Haffner (1998), *Gradient-Based Learning Applied to Document
#   Recognition*, Proceedings of the IEEE 86.
