# %% [markdown]
# # One tangent for all weights into a unit
#
# **The question.** A step of chapter 7 follows 128 perturbations through the whole network, one
# forward tangent each, and gets 128 numbers. Can one tangent answer for more than one proposal?
#
# Yes, because many weights act on the loss through the same place. A **unit** is one output of a
# layer, and hundreds of weights lead into it. Each of them can only do one thing: move the sum that
# the unit forms. So it is enough to know how the loss answers a push at this sum. This slope is the
# **unit tangent**. One forward tangent finds it, and then the slope of every weight into the unit
# is one multiplication.
#
# With this, a step can look at tens of thousands of single weights instead of 128 perturbations.
# This chapter derives the formula, checks it, rounds the activations to make it faster, and trains
# with it.

# %%
from dataclasses import replace
from math import comb, log2
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np

from minibit import noise, plots, training
from minibit.absmean import fake_quant_activation
from minibit.datasets import load_mnist, split
from minibit.dual import jvp, jvp_batch
from minibit.layers import (
    cross_entropy,
    init_mlp,
    layer_norm,
    mlp,
    relu,
    rms_norm,
    ternary_linear,
)
from minibit.noise_step import (
    MLP,
    NoiseStep,
    Sampled,
    Units,
    digest,
    direction_sums_by_jvp,
    geometric,
    unit_sums_by_jvp,
)
from minibit.noise_step.unit_tangents import direction_sums, unit_sums
from minibit.results import load_results
from minibit.steps import StepLog
from minibit.training.log_header import MNIST_MEAN, MNIST_STD, model_of

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


def pooled(images):
    """Digits of 14 x 14 pixels, as floats near mean 0 and spread 1."""
    squares = images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4), dtype=np.float32)
    return (squares.reshape(-1, 196).round() - np.float32(33.3)) / np.float32(75)


small_x, small_valid = pooled(train_x), pooled(valid_x)
small = start((196, 24, 24, 10), seed=4, zeros=1 / 3)

# %% [markdown]
# ## From a weight to the loss
#
# Look at one layer and one sample. The layer gets inputs $h_i$. Unit $j$ forms its
# **pre-activation** $z_j = \sum_i w_{ji} h_i$, the sum before any norm or ReLU. If weight $(j, i)$
# grows by 1, then $z_j$ grows by $h_i$, and nothing else in the layer changes. So if $t_j$ is the
# slope of the loss when $z_j$ moves, the unit tangent, then for a batch of samples $b$
#
# $$\text{alignment of weight } (j, i) = \sum_b t_j[b]\, h_i[b] .$$
#
# It remains to find $t_j$: push $z_j$ and follow the push forwards to the loss. Let $u$ be any push
# of all pre-activations of layer $l$ (for unit $j$ alone it is $e_j$, a 1 at place $j$ and zeros
# elsewhere), and write $F_l(u)$ for the slope of the loss along it. The layers of this network are
#
# $$\hat z = r\,(z - \bar z), \qquad r = 1/\sigma, \qquad h = m\,\hat z, \qquad z' = W h :$$
#
# layer norm takes the mean $\bar z$ away and divides by the standard deviation $\sigma$; ReLU keeps
# what is positive (its mask $m$ is 1 there, else 0); and the next matrix $W$ makes the
# pre-activations $z'$ of layer $l + 1$. A push goes through them one after another:
#
# 1. **Layer norm.** The push changes the mean and the deviation, too, so *all* units move:
#    $\dot{\hat z} = r\,(u - \bar u - \hat z\,\overline{\hat z u})$. A bar is a mean over units.
# 2. **ReLU.** Open units pass their part of it, closed ones pass nothing: $m\,\dot{\hat z}$.
# 3. **The next matrix.** The push at layer $l + 1$ is $W (m\,\dot{\hat z})$. From here on it is the
#    same question, one layer up: $F_l(u) = F_{l+1}\big(W(m\,\dot{\hat z})\big)$.
#
# Slopes are linear in the push. So the three terms of layer norm become three values of $F_{l+1}$:
#
# $$F_l(u) = r \big[\, F_{l+1}(W (m u)) \;-\; \bar u \, A_l \;-\; \overline{\hat z u} \; B_l
# \,\big],$$
#
# $$A_l = F_{l+1}(W m), \qquad B_l = F_{l+1}(W h), \qquad t_j = F_l(e_j) .$$
#
# - The first term is the push itself.
# - $A_l$ is the slope if all open units rise by the same amount. Layer norm takes a common rise
#   away, so the share $\bar u$ of it is subtracted.
# - $B_l$ is the slope if all open units grow by the same factor. Layer norm takes a common factor
#   away, so the share $\overline{\hat z u}$ of it is subtracted.
#
# $A_l$ and $B_l$ do not depend on $u$: one value of each per sample serves all units of the layer.
# The recursion ends at the logits, where the slope of the cross entropy is known: with the
# probabilities $p$, $F_L(u) = (p - \text{onehot}) \cdot u$. In every product $W$ acts on a push of
# its inputs, so all of this runs forwards.


# %%
def unit_tangents(weights, x, y):
    """Inputs h (batch, n_in) and unit tangents t (batch, n_out) of every layer, in float64."""
    h, inputs, hats, rs = x, [], [], []
    for w in weights[:-1]:
        z = h @ w.T  # (batch, n_out)
        r = 1 / np.sqrt(z.var(axis=1, keepdims=True) + 1e-5)  # (batch, 1)
        hat = r * (z - z.mean(axis=1, keepdims=True))
        inputs, hats, rs, h = [*inputs, h], [*hats, hat], [*rs, r], np.maximum(hat, 0)
    logits = h @ weights[-1].T  # (batch, classes)
    g = np.exp(logits - logits.max(axis=1, keepdims=True))
    g = g / g.sum(axis=1, keepdims=True) - np.eye(g.shape[1])[y]  # p - onehot

    def follow(layer, u):  # F: pushes (batch, k, n_out) of one layer -> slopes (batch, k)
        if layer == len(weights) - 1:
            return (u @ g[:, :, None])[..., 0]
        w, hat = weights[layer + 1].T, hats[layer][:, None, :]
        through = follow(layer + 1, (u * (hat > 0)) @ w)
        A = follow(layer + 1, (hat > 0) @ w)  # (batch, 1)
        B = follow(layer + 1, np.maximum(hat, 0) @ w)  # (batch, 1)
        return rs[layer] * (through - u.mean(axis=2) * A - (u * hat).mean(axis=2) * B)

    bumps = [np.broadcast_to(np.eye(len(w)), (len(x), len(w), len(w))) for w in weights]
    return [*inputs, h], [follow(layer, bump) for layer, bump in enumerate(bumps)]


# %% [markdown]
# To check it, we take 300 weights and give each of them a direction of its own, as chapter 7 would
# have to:

# %%
size = sum(w.size for w in small.values())
doubles = {name: w.astype(float) for name, w in small.items()}
i = draw_batch(1, 0, 64)
x, y = small_x[i].astype(float), train_y[i]
inputs, tangents = unit_tangents([*doubles.values()], x, y)
alignments = np.concatenate([(t.T @ h).ravel() / 64 for t, h in zip(tangents, inputs, strict=True)])

checked = noise.integers(0, size, 300, domain=noise.USER)
ends = np.cumsum([w.size for w in small.values()])[:-1]
single = {
    name: piece.reshape(-1, *small[name].shape)
    for name, piece in zip(small, np.split(np.eye(size)[checked], ends, axis=1), strict=True)
}
_, direct = jvp_batch(lambda p: cross_entropy(mlp(p, x), y), (doubles,), (single,))
error = np.abs(alignments[checked] - direct).max() / np.abs(direct).max()
count = sum(t.shape[1] for t in tangents)
print(f"{count} tangents for {size:,} weights; largest error {error:.1e}")
assert error < 1e-12

# %% [markdown]
# The formula, drawn for one image and one unit of the last hidden layer. (1) The unit is pushed
# by 1. (2) Layer norm answers in all units: it subtracts a share of the common rise, $\bar u$
# (orange), and a share of the common factor, $\overline{\hat z u}$ (green). (3) Closed units pass
# nothing. (4) The next matrix hands the rest to the logits of the ten digits. (5) Each colour
# followed to the loss: the push itself, less $\bar u A$, less $\overline{\hat z u} B$. What is left
# is the unit tangent $t_j$.

# %%
w1, w2, w3 = doubles.values()
image, label = x[0], y[:1]
h = relu(layer_norm((w1 @ image)[None]))[0]  # (24,)
z = w2 @ h  # (24,)
r = 1 / np.sqrt(z.var() + 1e-5)
hat = r * (z - z.mean())
on = hat > 0
j = int(np.argsort(hat)[-2])  # an open unit, far from the mean
u = np.eye(24)[j]
shares = {  # what layer norm makes of the push
    "the push": r * u,
    r"less $\bar u$": np.full(24, -r * u.mean()),
    r"less $\hat z\,\overline{\hat z u}$": -r * hat * (u * hat).mean(),
}


def rest(logits):
    """The loss of the image."""
    return cross_entropy(logits[None], label)


logits = w3 @ np.maximum(hat, 0)
slopes = [
    float(jvp(rest, (logits,), (w3 @ (on * share),))[1]) for share in shares.values()
]  # r F(W(m u)), - r mean(u) A, - r mean(z_hat u) B
assert np.isclose(sum(slopes), tangents[1][0, j])

# %% tags=["hide-input"]
fig, panels = plt.subplots(1, 5, figsize=(11, 2.7), width_ratios=(1, 1, 1, 1, 0.9))
fig.set_label(
    "Five bar charts: a push at one of 24 units; what layer norm makes of it in all units; what ReLU "
    "lets through; what arrives at the ten digits; and at the loss the three terms push, A and B, "
    "which add up to the unit tangent."
)
units = np.arange(24)
panels[0].bar(units, u, 0.8)
below, above = np.zeros(24), np.zeros(24)
for colour, share in zip(plots.PALETTE[:3], shares.values(), strict=False):
    foot = np.where(share < 0, below, above)
    panels[1].bar(units, share, 0.8, bottom=foot, color=colour)
    below, above = below + np.minimum(share, 0), above + np.maximum(share, 0)
moved = sum(shares.values())
panels[2].bar(units, np.where(on, moved, 0), 0.8, color=plots.PALETTE[5])
panels[3].bar(range(10), w3 @ (on * moved), 0.8, color=plots.PALETTE[5])
feet = np.cumsum([0, *slopes[:2]])
panels[4].bar(range(3), slopes, 0.7, bottom=feet, color=plots.PALETTE[:3])
panels[4].bar(3, sum(slopes), 0.7, color=plots.PALETTE[3])
panels[4].set_xticks(range(4), ["push", "$A$", "$B$", "$t_j$"])
titles = ("push one unit", "layer norm", "ReLU", "next matrix", "at the loss")
for number, (panel, title) in enumerate(zip(panels, titles, strict=True), start=1):
    panel.axhline(0, color="#888888", linewidth=0.8)
    panel.set_title(f"{number}. {title}", loc="left")
    panel.set_xlabel({4: "digit", 5: ""}.get(number, "unit"))
fig.suptitle("One push on its way to the loss")

# %% [markdown]
# In full openness: with *all* units drawn, `alignments` is the gradient of the loss, entry by
# entry, found forwards. This took one tangent per unit, where a backward pass needs two products
# per layer. So it is no way to compute whole gradients. It is a way to *sample* them: draw a few
# units, look at their rows of the gradient, keep the best moves, forget the rest.
#
# That is method `units`. The method of chapter 7, called `sampled`, is stricter: it uses the same
# tangents inside, but its decision sees only $K$ sums over random directions.
#
# The package's kernels take one sample at a time. They add rows of int8 weights, and the state of a
# sample takes a few kilobytes. Here are both kinds of sums on the paper's 784-256-256-256-10,
# against float64 duals of the plain model:

# %%
SCALE, OFFSET = 1 / (255 * MNIST_STD), -MNIST_MEAN / MNIST_STD
paper = MLP(0.12, SCALE, OFFSET)  # logits x 0.12, pixels to mean 0 and standard deviation 1
big = start((784, 256, 256, 256, 10), 0, zeros=0.7)
big_size = sum(w.size for w in big.values())
i = draw_batch(2, 0, 64)
x, y, ones = train_x[i], train_y[i], np.ones(64, np.float32)

drawn = [noise.draw_units(0, 0, k, *sizes) for k, sizes in enumerate([(256, 16)] * 3 + [(10, 4)])]
quick = unit_sums(paper, big, x, y, ones, drawn)
exact = unit_sums_by_jvp(paper, big, x.astype(float), y, ones, drawn, dtype=np.float64)
few = noise.sparse_noise_many(0, 0, range(16), big_size, 6e-5)
quick_few = direction_sums(paper, big, x, y, ones, few)
exact_few = direction_sums_by_jvp(paper, big, x.astype(float), y, ones, few, dtype=np.float64)
for name, got, want in (("units", quick, exact), ("sampled", quick_few, exact_few)):
    got, want = (np.concatenate([a.ravel() for a in sums.alignments]) for sums in (got, want))
    error = np.abs(got - want).max() / np.abs(want).max()
    print(f"{name:7}: {want.size:6,} alignments, error up to {error:.1e} of the largest")
    assert error < 1e-5

# %% [markdown]
# ## The step of method `units`, and a run
#
# 1. **Draw units:** 16 in each hidden layer and 4 of the output. A **candidate** is a change of one
#    weight into a drawn unit by +1 or -1: there are 21,760 of them, for 334,336 weights.
# 2. **Measure.** One tangent per drawn unit gives the alignment of each candidate; the t score
#    ranks them. The move of a candidate is one step against its alignment. A move is legal if the
#    weight stays between -1 and 1.
# 3. **Keep** the best legal moves of each layer, a share of its candidates called the `rate`. What
#    a step leaves behind is which candidates moved, and in which direction.
#
# Since only legal moves are kept, no weight is ever clamped. So the moves of all steps can be added
# in any order, and undone exactly.
#
# `training` adds the data: images also shifted by one pixel, and **re-sampling**. An image counts
# as learnt if the network was sure of it at its last visit ($1 - p_y \le 0.1$). It is then drawn
# with probability 1/20, and counts 20 times if it is drawn. So the expected sums stay the same,
# while most of a batch is images that still teach something. Learnt images get no tangents at all.
#
# These are the first 160 steps of preset `small`, on the 55,000 images outside of the validation
# split. The accuracy along the run comes from the log, replayed to each of these steps:

# %%
STEPS = 160
folder = TemporaryDirectory()
path = Path(folder.name) / "small.steps"
run = training.train("small", 0, path, steps=STEPS, split_name="validation")
log = StepLog.open(path)
at = [0, 5, 10, *range(20, STEPS + 1, 20)]
model = model_of(log.header)  # of int8 activations: see below
along = [training.evaluate(params, model, valid_x, valid_y) for _, params in log.walk(at)]
print(
    f"validation {run.validation_accuracy:.1%}, test {run.test_accuracy:.1%}: {run.seconds:.1f} s"
)
print("digest after training:", run.digest[:16], "...")
print("digest of the replay: ", log.verify()[:16], "...")
assert run.digest == log.verify() == digest(log.replay())
assert along[-1] == run.validation_accuracy > 0.92

candidates = [u * n for u, n in zip(log.plan.units, log.plan.inputs, strict=True)]
assert (sum(candidates), big_size) == (21_760, 334_336)


def ideal_bytes(moves):
    """Entropy of a step: which k of the N candidates of each layer moved, and a sign for each."""
    return sum(log2(comb(n, k)) + k for n, k in zip(candidates, moves, strict=True)) / 8


kept_moves = [[len(layer) for layer in step.positions] for step in log.steps()]
ideal = np.cumsum([ideal_bytes(moves) for moves in kept_moves])  # (steps,)
files = [*((record.first, record.offset) for record in log.records), (STEPS, log.nbytes)]
packed = run.packed_weight_bytes
folder.cleanup()

# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.4))
left.plot(at, 100 * np.array(along), marker="o")
plots.label_axes(left, "step", "accuracy, validation (%)", "A run, from its log")
right.plot(np.arange(1, STEPS + 1), ideal / 1000, label="entropy of the kept moves")
right.plot(*np.transpose(files) * [[1], [1e-3]], "o", label="file, with its header")
right.axhline(packed / 1000, color="#888888", linestyle="--", label="weights, five trits per byte")
plots.label_axes(right, "step", "KB (1000 bytes)", "What the run leaves behind")

# %% [markdown]
# That is the model: a seed, and these bytes. Chapter 8 opens them, and chapter 7c compares their
# size with the weights.
#
# ## Int8 between the layers
#
# The forward pass, in floats, takes more than a quarter of such a step (the table below). Chapter 3
# has a product that is much quicker, and exact, if it multiplies int8 numbers. Pixels are such
# numbers already: $W x = W (x - 128) + 128\, W \mathbf 1$. Hidden activations can be rounded to 8
# bits as in BitNet (chapter 4), with a scale $s$ per sample:
#
# $$q = \mathrm{rint}(s\,\hat z), \qquad s = \frac{127}{\max|\hat z|}, \qquad h = \max(q, 0) / s .$$
#
# `MLP(activations="int8")` is that model. Every hidden layer rounds except the last one, which
# hands floats to the logits, as in a language model. Rounding changes the model and not only its
# speed, so the header of a log says which kind it is, and an evaluation must use the same kind.
#
# The tangents go straight through: rounding counts as the identity (chapter 4), and a unit whose
# code is 0 passes nothing. The formula for $A_l$ stays. The formula for $B_l$ would now cost a
# product, because $W h$ with the unrounded $h$ is no longer the next layer's pre-activation. But
# $B_l$ measures a change by a common factor, and the next layer norm takes such a factor away. Only
# its $\varepsilon$ and the rounding errors get through. So the rule of this model treats the
# standard deviation of a rounded layer as a constant: $B_l = 0$, except at the last hidden layer.
# The kernels follow that rule to $10^{-5}$. Below, "straight-through" leaves nothing out. It
# differs from the rule much less than rounding itself changes the alignments:

# %%
paper8 = replace(paper, activations="int8")
i = draw_batch(2, 1, 24)
x, y, ones = train_x[i], train_y[i], np.ones(24, np.float32)


def straight(params, x, linear=ternary_linear):
    """Straight-through rounding, and nothing else left out."""
    h = SCALE * x + OFFSET
    for name in ("w1", "w2"):
        h = relu(fake_quant_activation(layer_norm(linear(h, params[name]))))
    h = relu(layer_norm(linear(h, params["w3"])))
    return 0.12 * linear(h, params["w4"])


plain_x = x.astype(float)
quick, rule, proper, unrounded = (
    np.concatenate([a.ravel() for a in sums.alignments])
    for sums in (
        unit_sums(paper8, big, x, y, ones, drawn),
        *(
            unit_sums_by_jvp(model, big, plain_x, y, ones, drawn, dtype=np.float64)
            for model in (paper8, straight, paper)
        ),
    )
)
largest = np.abs(rule).max()
for name, got in (("kernels", quick), ("straight-through", proper), ("no rounding", unrounded)):
    print(f"{name:17}: {np.abs(got - rule).max() / largest:.1e} of the largest from the rule")
assert np.abs(proper - rule).max() < 2e-3 * largest < np.abs(unrounded - rule).max()

# %% [markdown]
# (In float32 a number may round to another code than in float64, if it lies close to the middle
# between two codes. Then the first line is larger. The tests use samples without such a case.)
#
# `minibit experiment activations` measured what this brings: three seeds per preset and kind,
# trained without the last 5,000 training images and judged on them. The times are milliseconds for
# a forward pass and for a step of 1,024 images, on one thread.

# %%
results = load_results("activations")
print(f"{results['command']}, on {results['environment']['cpu']}")
print("preset    activations   validation       forward    step   CPU s")
for row in results["rows"]:
    accuracy = f"{row['validation_accuracy']:.2%} ±{row['validation_accuracy_std']:.2%}"
    times = row["milliseconds"]
    print(
        f"{row['preset']:<9} {row['activations']:<11}   {accuracy}   {times['forward']:5.1f}"
        f"  {times['step']:6.1f}  {row['cpu_seconds']:6.0f}"
    )
saved = {}
for fine, rough in zip(results["rows"][::2], results["rows"][1::2], strict=True):
    assert (rough["activations"], fine["activations"]) == ("int8", "float")
    assert rough["validation_accuracy"] > fine["validation_accuracy"] - 0.002
    assert rough["milliseconds"]["forward"] < 0.62 * fine["milliseconds"]["forward"]
    if fine["preset"] != "strict":
        assert 0.25 < fine["milliseconds"]["forward"] / fine["milliseconds"]["step"] < 0.33
    saved[fine["preset"]] = 1 - rough["milliseconds"]["step"] / fine["milliseconds"]["step"]
print("a step saves", ", ".join(f"{share:.1%} ({name})" for name, share in saved.items()))
assert saved["strict"] < 0.05 < 0.1 < min(saved["small"], saved["accurate"]) < 0.15

# %% [markdown]
# The accuracy holds. The forward pass takes about 60% of its time. A step saves only these few
# milliseconds, because most of it is tangents, which add rows as before. For `small` and `accurate`
# that is about an eighth of a step, and these presets round. `strict` has 128 directions that touch
# hundreds of units, gains a few hundredths, and stays in floats. `paper` stays as published.
#
# ## A network that is no MLP
#
# Neither method needs to know what a layer is; a pure function is enough. Take a bilinear network,
# whose hidden units multiply two ternary views of the image, without ReLU and without layer norm:
#
# $$\text{logits} = 0.2 \; W_3 \; \mathrm{rmsnorm}\big( (W_1 x) \odot (W_2 x) \big).$$
#
# A function that takes a `linear` argument, and calls it wherever it multiplies by a weight, lets
# `units` push the results of these products. One tangent then serves a unit, as above. Without that
# argument each candidate is a direction of its own: the same numbers, at `n_in` times the price.


# %%
def bilinear(params, x, linear=ternary_linear):
    h = linear(x, params["left"]) * linear(x, params["right"])  # (batch, 32)
    return 0.2 * linear(rms_norm(h), params["out"])


def plain(params, x):
    return bilinear(params, x)


shapes = {"left": (32, 196), "right": (32, 196), "out": (10, 32)}
seeds = {
    name: noise.initial_codes(0, shape, 0.7, layer=k)
    for k, (name, shape) in enumerate(shapes.items())
}
shared = Units((8, 8, 4), rate=geometric(0.02, 0.002, 120))
sparse = Sampled(64, density=geometric(2e-3, 3e-4, 120), score="t")
curves = {}
for method, settings in (("units", shared), ("sampled", sparse)):
    learner = NoiseStep(bilinear, seeds, 0, settings)
    curve = []
    for step in range(121):
        if step % 12 == 0:
            curve.append(np.mean(bilinear(learner.params, small_valid).argmax(axis=1) == valid_y))
        i = draw_batch(3, step, 512)
        learner.step(small_x[i], train_y[i])
    print(f"{method:7}: {curve[-1]:.1%}")
    curves[method] = 100 * np.array(curve)
    assert curve[-1] > {"units": 0.9, "sampled": 0.75}[method]

# %% tags=["hide-input"]
fig, axes = plt.subplots()
for (method, curve), marker in zip(curves.items(), "os", strict=True):
    axes.plot(range(0, 121, 12), curve, marker=marker, label=method)
plots.label_axes(axes, "step", "accuracy, validation (%)", "A bilinear network, 12,864 weights")

# %%
by_unit, by_weight = (
    NoiseStep(model, learner.params, 0, Units((2, 2, 1))).step(small_x[:64], train_y[:64])
    for model in (bilinear, plain)
)
for a, b in zip(by_unit.alignments, by_weight.alignments, strict=True):
    assert np.allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())
print(f"5 tangents or {sum(a.size for a in by_weight.alignments)}: the same alignments")

# %% [markdown]
# **Limits.**
#
# - A tangent can be shared only if each weight is used once. Where a weight is used again (a
#   convolution, a recurrent network, the tokens of a sequence), `linear` refuses, and each
#   candidate costs a direction.
# - The candidates of a step are ranked one by one and moved together. If many move at once, they
#   disturb each other; therefore `units` has a `rate`, which falls along the run.
# - With all units drawn this is a gradient, computed in an expensive way. It pays while few units
#   are drawn.
#
# **Exercises.**
#
# 1. Show that $F_{l+1}(W h) = \varepsilon r^2 \, F_{l+2}(W' h')$, one layer up, with the
#    $\varepsilon$ of layer norm: a norm does not answer a change of scale. Where do the kernels use
#    it? (`test_unit_tangents_equal_the_jvp_of_the_plain_model`.)
# 2. Drop the term with $B_l$ from `follow`. Which assertion notices, and does the network still
#    learn? (`test_the_kernels_equal_their_references`.)
# 3. Take a log of `units`: negate all steps and append them in reverse. Why do you end at the
#    weights of the seed, and why not with `sampled`? (`test_units_never_clamp`.)
# 4. Give the bilinear network `left` twice. What does `linear` say, and what do you get without it?
#    (`test_a_weight_used_twice_cannot_share`,
#    `test_a_shared_tangent_equals_one_direction_a_weight`.)
# 5. Give an `MLP` with one hidden layer int8 activations. What changes, and why nothing?
#    (`test_networks_of_one_hidden_layer_or_none_have_nothing_to_round`.) In a network with three,
#    round the last hidden layer, too: what becomes of $B_l$ there?
#
# **Sources.**
#
# - Brickner (2024), *noise_step: Training in 1.58b With No Gradient Memory*, manuscript.
# - Ba, Kiros and Hinton (2016), *Layer Normalization*, arXiv:1607.06450.
# - Ma et al. (2024), *The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits*,
#   arXiv:2402.17764.
# - LeCun, Bottou, Bengio and Haffner (1998), *Gradient-Based Learning Applied to Document
#   Recognition*, Proceedings of the IEEE 86.
