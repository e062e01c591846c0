# %% [markdown]
# # Train forwards only: perturb, measure, keep
#
# **The question.** Weights are -1, 0 or 1. Such a weight has no room for a small step. The usual
# training of a ternary network therefore keeps a float behind every weight (a *latent weight*,
# chapter 4), computes a gradient by a backward pass, and rounds. Can a ternary network learn
# without these floats and without the backward pass? And if a step leaves behind only a few small
# integers, what is the model then?
#
# Brickner's *noise_step* (manuscript, 2024) answers with a step of three parts.
#
# 1. **Perturb.** Draw some changes at random. Each is a **perturbation**: it proposes +1 or -1 to a
#    few of the weights, and nothing to the rest.
# 2. **Measure.** Run the network forwards with a tangent (chapter 1). This tells how fast the loss
#    moves along a perturbation: its slope, called the **alignment**.
# 3. **Keep.** Keep the perturbations with the larger half of the slopes, each with the sign that
#    makes the loss fall. So each perturbation leaves one integer, -1, 0 or +1, called its **tern**.
#    Forget everything else.
#
# A seed draws the same perturbations again. So the model *is* the seed and the terns. This chapter
# builds the step, and asks how far one may trust what it measures. Chapter 7b gets many more
# measurements out of each tangent. Chapter 7c counts what all of it costs.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minibit import noise, plots, training
from minibit.datasets import load_mnist, split
from minibit.dual import jvp_batch
from minibit.layers import cross_entropy, init_mlp
from minibit.noise_step import MLP, NoiseStep, Sampled, digest, geometric, keep_terns
from minibit.noise_step.unit_tangents import direction_sums
from minibit.results import load_results
from minibit.training.log_header import MNIST_MEAN, MNIST_STD

plots.style(show=True)
parts = split(load_mnist())  # 55,000 images to train on, 5,000 to look at (validation)
train_x, train_y = parts.train_x, parts.train_y.astype(np.int64)
valid_x, valid_y = parts.validation_x, parts.validation_y.astype(np.int64)


def draw_batch(seed, step, size):
    """Indices of training images, from the same counters as all noise."""
    return noise.integers(seed, len(train_y), size, domain=noise.USER, step=step)


def start(widths, seed, zeros):
    """The ternary weights that a seed means."""
    return init_mlp(widths, lambda k, shape: noise.initial_codes(seed, shape, zeros, layer=k))


# %% [markdown]
# ## The step, in a dozen lines
#
# Let $w$ be all weights and $L$ the loss on a batch of images. Draw $K$ perturbations
# $v_1, \dots, v_K$. In each of them a weight is nonzero with probability $s$, the **density**, and
# is then +1 or -1. The alignment of $v_i$ is the slope of the loss along it,
#
# $$a_i = \nabla L \cdot v_i .$$
#
# One Jacobian-vector product gives this number exactly (chapter 1). It runs forwards, and the
# gradient $\nabla L$ itself is never formed. The median of the sizes $|a_j|$ then decides which
# perturbations are kept, and the terns $c_i$ move the weights:
#
# $$c_i = \begin{cases} \operatorname{sign} a_i & |a_i| \ge \operatorname{median}_j |a_j| \\
# 0 & \text{else} \end{cases}
# \qquad\qquad w \leftarrow \operatorname{clamp}\Big(w - \sum_i c_i v_i,\, -1,\, 1\Big).$$
#
# The clamp sets a weight that would leave the range back to -1 or +1. That is the whole method.
# Here it is on digits of 14 x 14 pixels and a network of 196-24-24-10, with nothing but `jvp_batch`
# (many tangents in one pass) and the noise of chapter 6.


# %%
def pooled(images):
    """Digits of 14 x 14 pixels, uint8."""
    squares = images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4), dtype=np.float32)
    return squares.reshape(-1, 196).round().astype(np.uint8)


small_x, small_valid = pooled(train_x), pooled(valid_x)
small_net = MLP(1.0, 1 / 75, -33.3 / 75)  # layers.mlp of (x - 33.3) / 75, with logits x 1
SEED, K, DENSITY = 4, 32, 5e-4
first = start((196, 24, 24, 10), SEED, zeros=1 / 3)
size = sum(w.size for w in first.values())


def lay_out(flat, like=first):
    """Cut flat arrays (..., weights) into the layers' shapes."""
    ends = np.cumsum([w.size for w in like.values()])
    pieces = np.split(flat, ends[:-1], axis=-1)
    return {
        name: piece.reshape(*flat.shape[:-1], *w.shape)
        for piece, (name, w) in zip(pieces, like.items(), strict=True)
    }


def one_step(params, x, y, step):
    """The weights after a step, its terns (K,), and the sizes of its alignments (K,)."""
    offsets, positions, signs = noise.sparse_noise_many(SEED, step, range(K), size, DENSITY)
    v = np.zeros((K, size), np.float32)  # (perturbations, weights)
    v[np.repeat(np.arange(K), np.diff(offsets)), positions] = signs
    w = np.concatenate([w.ravel() for w in params.values()]).astype(np.float32)
    _, a = jvp_batch(lambda p: cross_entropy(small_net(p, x), y), (lay_out(w),), (lay_out(v),))
    score = np.abs(a)  # (perturbations,)
    codes = np.where(score >= np.median(score), np.sign(a), 0)
    return lay_out(np.clip(w - codes @ v, -1, 1).astype(np.int8)), codes, score


params, every_code, margins = first, [], []
for step in range(100):
    i = draw_batch(SEED, step, 256)
    params, codes, score = one_step(params, small_x[i], train_y[i], step)
    every_code.append(codes)
    margins.append(np.abs(score - np.median(score)).min() / score.max())
accuracy = np.mean(small_net(params, small_valid).argmax(axis=1) == valid_y)
print(f"validation accuracy after 100 steps of {K} perturbations: {accuracy:.1%}, by chance 10%")
assert accuracy > 0.5

# %% [markdown]
# Here is one step, on the 24 x 24 weights between the two hidden layers alone, with eight
# perturbations. **Perturb:** each square is one of them; a blue plus is +1, an orange dash -1.
# **Measure:** the bars are the alignments. **Keep:** the four bars that reach the dashed lines, the
# median size, are kept, each against its slope; the other four are forgotten. On the right, the
# weights before the step and after it.

# %%
floats = {name: w.astype(np.float32) for name, w in first.items()}
offsets, positions, signs = noise.sparse_noise_many(SEED, 4, range(8), 24 * 24, 0.015)
v = np.zeros((8, 24 * 24), np.float32)
v[np.repeat(np.arange(8), np.diff(offsets)), positions] = signs
v = v.reshape(8, 24, 24)  # (perturbations, n_out, n_in)
x, y = small_x[:256], train_y[:256]
_, a = jvp_batch(
    lambda w: cross_entropy(small_net({**floats, "w2": w}, x), y), (floats["w2"],), (v,)
)
median = np.median(np.abs(a))
terns = keep_terns(a, np.zeros(8), "absolute")
after = np.clip(floats["w2"] - np.tensordot(terns, v, 1), -1, 1)
assert np.count_nonzero(terns) == 4

# %% tags=["hide-input"]
fig = plt.figure(figsize=(9.6, 4.4))
fig.set_label(
    "Above, eight squares with a few plus signs and dashes: the perturbations. In the middle a bar "
    "for each: its alignment, with two dashed lines at the median size. Below, the squares of the "
    "four longest bars, two of them with the signs exchanged; the other four squares are empty."
)
grid = fig.add_gridspec(3, 10, height_ratios=(1, 1.1, 1))


def trits(place, matrix, title="", note=""):
    """Draw a matrix of trits: a blue plus for +1, an orange dash for -1."""
    axes = fig.add_subplot(place)
    for value, marker, colour in ((1, "+", plots.PALETTE[0]), (-1, "_", plots.PALETTE[1])):
        rows, columns = np.nonzero(matrix == value)
        axes.plot(columns, rows, marker, color=colour, markersize=3.5)
    axes.set(xticks=[], yticks=[], xlim=(-1, 24), ylim=(24, -1), aspect="equal")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(note, fontsize=9)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_alpha(0.4)
    return axes


for k in range(8):
    above = trits(grid[0, k], v[k], f"$v_{k + 1}$")
    below = trits(
        grid[2, k],
        -terns[k] * v[k],
        note=f"$c_{k + 1}$ = {terns[k]:+d}" if terns[k] else f"$c_{k + 1}$ = 0",
    )
    if k == 0:
        above.set_ylabel("perturb")
        below.set_ylabel("keep")
bars = fig.add_subplot(grid[1, :8])
bars.bar(np.arange(8), 1000 * a, 0.6, color=[plots.PALETTE[2] if c else "#888888" for c in terns])
for sign in (1, -1):
    bars.axhline(sign * 1000 * median, color="#888888", linestyle="--", linewidth=1)
bars.axhline(0, color="#888888", linewidth=0.8)
bars.set(xticks=[], xlim=(-0.5, 7.5), ylabel="alignment\n(millinats)")
trits(grid[0, 8:], floats["w2"], "weights before")
trits(grid[2, 8:], after, note="weights after")
fig.suptitle("A step: perturb, measure, keep")

# %% [markdown]
# `NoiseStep` is this step for any pure function of parameters and inputs. For `MLP` it measures
# with faster kernels (chapter 7b). All three sum in different orders, so their alignments differ in
# the last bits. But a tern depends only on the sign of its alignment and on its rank among the
# others, and weights are integers. So the small differences do not add up. After 100 steps all
# three have the same weights, bit for bit:

# %%
slow = NoiseStep(lambda p, x: small_net(p, x), first, SEED, Sampled(K, DENSITY))
fast = NoiseStep(small_net, first, SEED, Sampled(K, DENSITY))
for step in range(100):
    i = draw_batch(SEED, step, 256)
    for one in (slow, fast):
        result = one.step(small_x[i], train_y[i])
        assert np.array_equal(result.record.codes, every_code[step])
assert digest(slow.params) == digest(fast.params) == digest(params)
print("digest of all three:", digest(params)[:16], "...")
print(f"closest that any score came to its median: {min(margins):.1e} of the largest")
assert min(margins) > 5e-5

# %% [markdown]
# The last line says why the assertion holds on any machine: rounding in float32 is smaller than the
# closest distance to a median. In a long run some score does come as close as rounding, and then
# two machines decide differently. So the terns are decided once and written to a log. Exact
# repetition is promised for the *replay* of a log, not for the training.
#
# The manuscript leaves open what happens at ties, at an odd $K$, and when a perturbation changes
# nothing. `keep_terns` decides as follows. A score equal to the median is kept. Of an even $K$
# exactly half is kept, of an odd $K$ one more than the half. An alignment of exactly 0 gets the
# tern 0, whatever the median is.

# %%
none = np.zeros(4)
assert keep_terns([4, -3, 2, 1], none, "absolute").tolist() == [1, -1, 0, 0]
assert keep_terns([2, -2, 2, 1], none, "absolute").tolist() == [1, -1, 1, 0]  # three tie
assert keep_terns([4, -3, 2], none[:3], "absolute").tolist() == [1, -1, 0]
assert keep_terns([0, 0, 0, -1], none, "absolute").tolist() == [0, 0, 0, -1]  # median 0

# %% [markdown]
# ## What an alignment tells, and what it doesn't
#
# An alignment is a slope: it holds for a very small part of $v$. The step takes all of it and goes
# to $w - c\,v$. How well does the slope predict the whole move? We train a network of 784-64-64-10
# on MNIST for a while. Then we try 150 perturbations one by one.

# %%
SCALE, OFFSET = 1 / (255 * MNIST_STD), -MNIST_MEAN / MNIST_STD
net = MLP(1.0, SCALE, OFFSET)  # logits x 1, pixels to mean 0 and standard deviation 1


def train_sampled(score, seed, steps, model=net, zeros=1 / 3):
    density = geometric(3e-4, 3e-5, 150)
    first = start((784, 64, 64, 10), seed, zeros)
    run = NoiseStep(model, first, seed, Sampled(density=density, score=score))
    for step in range(steps):
        i = draw_batch(seed, step, 512)
        run.step(train_x[i], train_y[i])
    return run.params


weights = train_sampled("t", 0, steps=60)
flat = np.concatenate([w.ravel() for w in weights.values()]).astype(np.float32)
probes = noise.sparse_noise_many(99, 0, range(1000), flat.size, 1e-4)  # offsets, positions, signs
offsets, positions, signs = probes
i = 20_000 + draw_batch(99, 0, 1024) % 35_000  # not among the first 20,000 images
x, y, ones = train_x[i], train_y[i], np.ones(1024, np.float32)
a = direction_sums(net, weights, x, y, ones, probes).alignments[0] / 1024  # (directions,)


def loss_along(p, t):
    """Loss of the batch at w + t v_p, not clamped."""
    out, entries = flat.copy(), slice(offsets[p], offsets[p + 1])
    out[positions[entries]] += np.float32(t) * signs[entries]
    return float(np.mean(cross_entropy(net(lay_out(out, weights), x), y)))


tried = np.arange(150)
change = np.array([loss_along(p, -np.sign(a[p])) for p in tried]) - loss_along(0, 0)
keep = np.abs(a[tried]) >= np.median(np.abs(a))
t = np.linspace(-2, 2, 17)
falls = np.mean(change[keep] < 0), np.mean(change[~keep] < 0)
print(f"the loss falls for {falls[0]:.0%} of the kept, {falls[1]:.0%} of the rejected")
assert falls[0] > 0.75

# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.4))
for p, colour in zip(np.argsort(-np.abs(a[tried]))[[2, 25, 60]], plots.PALETTE, strict=False):
    left.plot(t, [1000 * (loss_along(p, s) - loss_along(0, 0)) for s in t], color=colour)
    left.plot(t, 1000 * a[p] * t, "--", color=colour, linewidth=0.9)
left.set_xticks([-2, -1, 0, 1, 2])
plots.label_axes(left, "$t$ in $w + t\\,v$", "change of the loss (millinats)", "Slopes, dashed")
for chosen, marker, name in ((keep, "o", "kept"), (~keep, "x", "rejected")):
    right.plot(-1000 * np.abs(a[tried][chosen]), 1000 * change[chosen], marker, label=name)
right.axline((0, 0), slope=1, color="#888888", linewidth=0.8)
plots.label_axes(right, "predicted, $-|a|$ (millinats)", "measured (millinats)", "The whole move")

# %% [markdown]
# On the left, three perturbations: the curve is the loss, the dashed line is what the slope
# promises. On the right, each point is one whole move. On the grey line it does exactly what its
# slope says.
#
# Most moves come near it. Some do not, since their curve bends before $t = 1$. Also, all kept moves
# are made together, while each was measured alone. With a smaller density the slope predicts
# better, but the step is smaller. Therefore the density of a run falls from step to step.
#
# The batch is a second source of error. Call $a_b$ the alignment on sample $b$ alone; $a$ is the
# mean of these. A large $|a|$ may come from a few samples only. The **t score** asks how far the
# samples agree,
#
# $$\text{t score} = \frac{|\sum_b a_b|}{\sqrt{\sum_b a_b^2}} .$$
#
# It ranks perturbations as the t-statistic does (a mean divided by its standard error), and needs
# only one more sum. We let 20,000 other images stand for the truth, and count how often the terns
# from 256 images have the sign of the truth:

# %%
many = train_x[:20_000], train_y[:20_000], np.ones(20_000, np.float32)
truth = direction_sums(net, weights, *many, probes).alignments[0] / 20_000
some = direction_sums(net, weights, x[:256], y[:256], ones[:256], probes)
agree = {}
for score in ("absolute", "t"):
    codes = keep_terns(some.alignments[0], some.squares[0], score)
    agree[score] = np.mean(np.sign(truth)[codes != 0] == codes[codes != 0])
    print(f"{score:8}: {agree[score]:.1%} right signs, slopes add up to {codes @ truth:.2f}")
assert agree["t"] > agree["absolute"]

# %% [markdown]
# By the t score more signs are right, but the slopes that they add up to are a little smaller: it
# prefers sure moves to large ones. Only training can say which is better. Here are 150 steps with
# two seeds each:

# %%
reached = {}
for score in ("absolute", "t"):
    runs = [train_sampled(score, seed, 150) for seed in range(2)]
    reached[score] = [training.evaluate(run, net, valid_x, valid_y) for run in runs]
    print(f"{score:8}:", ", ".join(f"{r:.1%}" for r in reached[score]))
assert np.mean(reached["t"]) > np.mean(reached["absolute"]) + 0.01

# %% [markdown]
# Two more changes cost nothing. The first multiplies the logits by 0.12: a ternary last layer makes
# them far too large, and then the softmax gives almost all probability to one class and hardly
# reacts to a change. The second sets 70% of the initial weights to zero.

# %%
paper = MLP(0.12, SCALE, OFFSET)
weights = train_sampled("t", 0, 150, paper, zeros=0.7)
both = training.evaluate(weights, paper, valid_x, valid_y)
print(f"t score, logits x 0.12, 70% zeros: {both:.1%}")
assert both > max(reached["t"])

# %% [markdown]
# ## The paper's network, to the end
#
# Preset `paper` is the method as published. `strict` has the changes above, and draws images that
# are still hard more often (chapter 7b). Both take 1,550 steps of 128 perturbations on
# 784-256-256-256-10. `minibit experiment train` ran them with three seeds:

# %%
results = load_results("train")
rows = {row["preset"]: row for row in results["rows"]}
print(f"{results['command']}, on {results['environment']['cpu']}")
for name in ("paper", "strict"):
    row = rows[name]
    print(
        f"{name:7} {row['test_accuracy']:.2%} ±{row['test_accuracy_std']:.2%} of the test images, "
        f"log {row['log_bytes'] / 1000:.1f} KB, weights {row['packed_weight_bytes'] / 1000:.1f} KB"
    )
    assert row["log_bytes"] < 0.6 * row["packed_weight_bytes"]
assert rows["strict"]["test_accuracy"] > 0.95 > 0.9 > rows["paper"]["test_accuracy"] > 0.89

# %% [markdown]
# The log of terns is smaller than the weights themselves, packed five per byte. Chapter 8 opens
# such a log.
#
# **Limits.**
#
# - The terns of a step are chosen one by one and applied together. With many perturbations most of
#   the kept half is noise: the median keeps $K/2$ however little they say. So more perturbations
#   per step help less and less.
# - Ranking needs all scores in one place. On many machines each perturbation sends a float to that
#   place and gets a tern back. A tern alone cannot be ranked against others.
# - The path of the *weights* is exact, the training is not. Alignments are floats, and another
#   machine may decide a near tie differently.
#
# **Exercises.**
#
# 1. Keep scores that are *strictly* larger than the median. What happens to an odd $K$? And what if
#    many perturbations are empty? (`test_ties_with_the_median_are_kept_and_zeros_get_no_code`,
#    `test_an_odd_number_keeps_its_middle_score`.)
# 2. There are two samples. One perturbation has the alignments 10 and -9 on them, another has 0.5
#    and 0.5, so their means tie. What does the t score say, and which one would you trust on other
#    samples? (`test_the_t_score_prefers_agreement_to_size`.)
# 3. Two perturbations of a step both push a weight from 1 by +1, and a third by -1. Does it matter
#    whether the clamp is applied after each of them, or once at the end?
#    (`test_a_sampled_choice_is_the_clamped_sum_of_its_perturbations`.)
# 4. Kill a training run and continue it. Which steps are lost at most?
#    (`test_a_killed_run_is_a_prefix_and_goes_on`.)
#
# **Sources.**
#
# - Brickner (2024), *noise_step: Training in 1.58b With No Gradient Memory*, manuscript.
# - LeCun, Bottou, Bengio and Haffner (1998), *Gradient-Based Learning Applied to Document
#   Recognition*, Proceedings of the IEEE 86.
