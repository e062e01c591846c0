# %% [markdown]
# # Learning in ternary, forwards only
#
# **The question.** Weights are -1, 0 or 1. They have no room for a small step, so the usual training of such networks keeps a float copy of every weight, computes a gradient by a backward pass, and rounds.
# Can a ternary network learn without the copy and without the backward pass? And if all that a step leaves behind is a few integers, what is the model then?
#
# The answer of Brickner's *noise_step* (manuscript, 2024): propose sparse ternary changes, measure by a forward tangent how the loss answers each of them, keep the better half, forget the rest. The model is a seed and what was kept.
# This chapter builds that step, then a second one that learns much faster from the same kind of measurement, and weighs both.

# %%
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread, so that the times below compare
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import time
import tracemalloc
from dataclasses import replace
from math import comb, log2
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np

from minibit import noise, plots, training
from minibit.absmean import fake_quant_activation
from minibit.bench import expect_time
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
    keep_terns,
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


# %% [markdown]
# ## The step, in a dozen lines
#
# Let $w$ be all weights and $L$ the loss on a batch. Draw $K$ perturbations $v_i$, each weight nonzero with probability $s$ and then $+1$ or $-1$. The **alignment** of $v_i$ is the slope of the loss along it,
#
# $$a_i = \nabla L \cdot v_i,$$
#
# one Jacobian-vector product (chapter 1): exact, forwards, and the gradient itself is never formed. Then, with the median over the step's own scores,
#
# $$c_i = \begin{cases} \operatorname{sign} a_i & |a_i| \ge \operatorname{median}_j |a_j| \\ 0 & \text{else} \end{cases}
# \qquad\qquad w \leftarrow \operatorname{clamp}\Big(w - \sum_i c_i v_i,\, -1,\, 1\Big).$$
#
# That is all of it. Here on digits of 14 x 14 pixels and a network of 196-24-24-10, with nothing but `jvp_batch` and the noise of chapter 6:


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
# `NoiseStep` is this step for any pure function of (parameters, inputs). It sums in another order; for `MLP` it takes another road altogether (below). Alignments then differ in their last bits.
# But a code depends on an alignment only through its sign and its rank, weights are integers, and so nothing accumulates. After 100 steps all three have the same weights, to the bit:

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
# The last line is why that may be asserted on any machine: float32 errs by less. In a long run some score does come as close as rounding, and then two machines decide differently. So codes are decided once, and logged; only their *replay* is promised to be exact.
#
# Ties, odd $K$ and empty perturbations are left open in the manuscript. `keep_terns` decides: ties with the median stay, of an even $K$ exactly half is kept, of an odd one half and one more, and an alignment of exactly 0 gets code 0 whatever the median is.

# %%
none = np.zeros(4)
assert keep_terns([4, -3, 2, 1], none, "absolute").tolist() == [1, -1, 0, 0]
assert keep_terns([2, -2, 2, 1], none, "absolute").tolist() == [1, -1, 1, 0]  # three tie
assert keep_terns([4, -3, 2], none[:3], "absolute").tolist() == [1, -1, 0]
assert keep_terns([0, 0, 0, -1], none, "absolute").tolist() == [0, 0, 0, -1]  # median 0

# %% [markdown]
# ## What an alignment tells, and what it doesn't
#
# An alignment is a slope at the weights, for infinitely little of $v$. What the step does is go all the way to $w - c\,v$. How well does the one predict the other?
# We train a network of 784-64-64-10 on MNIST for a while, then take 150 perturbations one by one.

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

fig, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.4))
t = np.linspace(-2, 2, 17)
for p, colour in zip(np.argsort(-np.abs(a[tried]))[[2, 25, 60]], plots.PALETTE, strict=False):
    left.plot(t, [1000 * (loss_along(p, s) - loss_along(0, 0)) for s in t], color=colour)
    left.plot(t, 1000 * a[p] * t, "--", color=colour, linewidth=0.9)
left.set_xticks([-2, -1, 0, 1, 2])
plots.label_axes(left, "$t$ in $w + t\\,v$", "change of the loss (millinats)", "Slopes, dashed")
for chosen, marker, name in ((keep, "o", "kept"), (~keep, "x", "rejected")):
    right.plot(-1000 * np.abs(a[tried][chosen]), 1000 * change[chosen], marker, label=name)
right.axline((0, 0), slope=1, color="#888888", linewidth=0.8)
plots.label_axes(right, "predicted, $-|a|$ (millinats)", "measured (millinats)", "The whole move")
falls = np.mean(change[keep] < 0), np.mean(change[~keep] < 0)
print(f"the loss falls for {falls[0]:.0%} of the kept, {falls[1]:.0%} of the rejected")
assert falls[0] > 0.75

# %% [markdown]
# Most moves do what their slope says. Some don't, since the curves bend within one step; and all kept moves go together, though each was judged alone.
# A smaller density makes the promise better and the step smaller: hence schedules that fall.
#
# The other error is the batch. Call $a_b$ the alignment on sample $b$ alone, so that $a$ is their mean. A large $|a|$ may be the voice of a few samples; the **t score** asks how far they agree,
#
# $$\text{t score} = \frac{|\sum_b a_b|}{\sqrt{\sum_b a_b^2}},$$
#
# which ranks like the t-statistic $|\text{mean}| / \text{standard deviation}$ and needs one more sum. Let 20,000 other images be the truth, and see how often the codes from 256 have its sign:

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
# By t more signs are right, and the slopes that they add up to are a little smaller: it prefers the sure to the large. Which is better, training has to say. 150 steps, two seeds each:

# %%
reached = {}
for score in ("absolute", "t"):
    runs = [train_sampled(score, seed, 150) for seed in range(2)]
    reached[score] = [training.evaluate(run, net, valid_x, valid_y) for run in runs]
    print(f"{score:8}:", ", ".join(f"{r:.1%}" for r in reached[score]))
assert np.mean(reached["t"]) > np.mean(reached["absolute"]) + 0.01

# %% [markdown]
# Two more changes cost nothing: logits times 0.12 (a ternary last layer makes them far too large, and the softmax saturates) and 70% zeros in the initial weights.

# %%
paper = MLP(0.12, SCALE, OFFSET)
weights = train_sampled("t", 0, 150, paper, zeros=0.7)
both = training.evaluate(weights, paper, valid_x, valid_y)
print(f"t score, logits x 0.12, 70% zeros: {both:.1%}")
assert both > max(reached["t"])

# %% [markdown]
# ## One tangent for all inputs of a unit
#
# 128 perturbations are 128 forward tangents, each through the whole network, for 128 numbers. There is a better bargain. A tangent is linear in its direction. Bump the pre-activation of unit $j$ in sample $b$, follow the bump to the loss, and call the slope $t_j[b]$, the **unit tangent**.
# Weight $(j, i)$ moves that pre-activation by $h_i[b]$, so
#
# $$\text{alignment of weight } (j, i) = \sum_b t_j[b] \, h_i[b].$$
#
# One tangent, and every input of the unit is answered. The bump goes through layer norm ($\hat z = r (z - \bar z)$, $r = 1/\sigma$, here with ReLU's mask $m$ and $h = m \hat z$) by its JVP $\dot{\hat z} = r (u - \bar u - \hat z \, \overline{\hat z u})$, so the slope of the loss along a tangent $u$ of layer $l$'s pre-activations is
#
# $$F_l(u) = r \big[ F_{l+1}(W (m u)) - \bar u \, F_{l+1}(W m) - \overline{\hat z u} \; F_{l+1}(W h) \big], \qquad F_L(u) = (p - \text{onehot}) \cdot u, \qquad t_j = F_l(e_j).$$
#
# $W$ is the next layer's matrix and always acts on a tangent of its inputs: forwards. The second and third value of $F_{l+1}$ are what layer norm takes away from any bump; they are the same for all units of a sample.


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

    def follow(layer, u):  # tangents (batch, k, n_out) of one layer -> slopes (batch, k)
        if layer == len(weights) - 1:
            return (u @ g[:, :, None])[..., 0]
        w, hat = weights[layer + 1].T, hats[layer][:, None, :]
        through = follow(layer + 1, (u * (hat > 0)) @ w)
        a = follow(layer + 1, (hat > 0) @ w)  # (batch, 1)
        b = follow(layer + 1, np.maximum(hat, 0) @ w)  # (batch, 1)
        return rs[layer] * (through - u.mean(axis=2) * a - (u * hat).mean(axis=2) * b)

    bumps = [np.broadcast_to(np.eye(len(w)), (len(x), len(w), len(w))) for w in weights]
    return [*inputs, h], [follow(layer, bump) for layer, bump in enumerate(bumps)]


doubles = {name: w.astype(float) for name, w in params.items()}
i = draw_batch(1, 0, 64)
x, y = (small_x[i] - 33.3) / 75, train_y[i]
inputs, tangents = unit_tangents([*doubles.values()], x, y)
alignments = np.concatenate([(t.T @ h).ravel() / 64 for t, h in zip(tangents, inputs, strict=True)])

checked = noise.integers(0, size, 300, domain=noise.USER)  # weights, each as a direction of its own
_, direct = jvp_batch(
    lambda p: cross_entropy(mlp(p, x), y), (doubles,), (lay_out(np.eye(size)[checked]),)
)
error = np.abs(alignments[checked] - direct).max() / np.abs(direct).max()
print(
    f"{sum(t.shape[1] for t in tangents)} tangents for {size:,} weights; largest error {error:.1e}"
)
assert error < 1e-12

# %% [markdown]
# To be open about it: with all units drawn, `alignments` above *is* the gradient of the loss, entry by entry, obtained forwards. It cost a tangent per unit where a backward pass costs two products per layer, so this is no way to compute whole gradients.
# It is a way to *sample* them: draw a few units, look at their rows of the gradient, keep the best moves, throw the rest away.
#
# That is method `units`. The strict variant, `sampled`, stands beside it: it uses the same tangents inside, but all that its decision ever sees is $K$ sums over random directions.
#
# The package's kernels take one sample at a time through additions of int8 rows, with the state of a sample in a few kilobytes. Both kinds of sums, on the paper's 784-256-256-256-10, against float64 duals of the plain model:

# %%
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
# ## Int8 between the layers
#
# Those kernels spend a third of their time on the forward pass, in floats. Chapter 3 has a product that is much quicker, and exact, if what it multiplies is int8. Pixels are: $W x = W (x - 128) + 128\, W \mathbf 1$. Hidden activations can be made so, as BitNet does (chapter 4), each sample to its own scale:
#
# $$q = \mathrm{rint}(s\,\hat z), \qquad s = \frac{127}{\max|\hat z|}, \qquad h = \max(q, 0) / s .$$
#
# `MLP(activations="int8")` is that model. All hidden layers round but the last, which hands floats to the logits, as a language model's head gets them. This changes the model, not only its speed, so the log's header says which kind it is, and whoever evaluates must use the same.
#
# The tangents go straight through: rounding counts as the identity, and a unit whose code is 0 passes nothing. $A$ stays as it was. $B_l = F_{l+1}(W h)$ would cost a product now, for $W h$ with the unrounded $h$ is no longer the next pre-activation. But of it only $\varepsilon$ and rounding errors get through the next norm; so the rule takes the standard deviation of a rounded layer for a constant, and $B$ is 0 but for the last layer.
# The kernels keep that rule to $10^{-5}$, and it lies far closer to straight-through proper than rounding itself moves the alignments:

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
# (A code may fall on the other side of a half in float32 than in float64, and then the first line is larger: the tests choose samples for which none does.)
#
# What it comes to, by `minibit experiment activations`: three seeds a preset and kind, without the last 5,000 training images and judged on them; milliseconds of a forward pass and of a step of 1,024 images, on one thread.

# %%
results = load_results("activations")
print(f"{results['command']}, on {results['environment']['cpu']}")
print("preset    activations   validation       forward    step   CPU s")
for row in results["rows"]:
    accuracy = f"{row['validation_accuracy']:.2%} ±{row['validation_accuracy_std']:.2%}"
    times = row["milliseconds"]
    print(
        f"{row['preset']:<9} {row['activations']:<11}   {accuracy}   {times['forward']:5.1f}  {times['step']:6.1f}  {row['cpu_seconds']:6.0f}"
    )
for rough, fine in zip(results["rows"][1::2], results["rows"][::2], strict=True):
    assert (rough["activations"], fine["activations"]) == ("int8", "float")
    assert rough["validation_accuracy"] > fine["validation_accuracy"] - 0.002
    assert rough["milliseconds"]["forward"] < fine["milliseconds"]["forward"]

# %% [markdown]
# The accuracy holds. The forward pass takes little more than half of its time; a step saves as many milliseconds, and no more: most of it is tangents, which add rows as before. For `small` and `accurate` that is an eighth of a step, and they round. `strict`, whose 128 directions touch hundreds of units, gains a few hundredths, and stays in floats; `paper` stays as it was published.
#
# ## The step of method `units`, and a run
#
# 1. Draw units: 16 in each hidden layer, 4 of the output. Every weight into them is a candidate, 21,760 of 334,336.
# 2. Score each by t. Its move is one step against its alignment; a move that the clamp would cancel is not legal.
# 3. Per layer, keep the best share `rate`. The step's choice is which ones, and their directions.
#
# Since only legal moves are kept, nothing is ever clamped: steps can be summed in any order and undone exactly.
#
# `training` adds the data: images also shifted by one pixel, and **re-sampling**: an image that was learnt at its last visit ($1 - p_y \le 0.1$) is drawn with probability 1/20, and then counts 20 times. So the sums stay unbiased while most of a batch is images that still teach; the rest get no tangents at all.
# These are the first 160 steps of preset `small`, on the 55,000 images that leave the validation split apart. Its accuracy along the run comes from the log, replayed to each of these steps:

# %%
STEPS = 160
folder = TemporaryDirectory()
path = Path(folder.name) / "small.steps"
run = training.train("small", 0, path, steps=STEPS, split_name="validation")
log = StepLog.open(path)
at = [0, 5, 10, *range(20, STEPS + 1, 20)]
model = model_of(log.header)  # the weights are those of a model with int8 activations
along = [training.evaluate(params, model, valid_x, valid_y) for _, params in log.walk(at)]
print(
    f"validation {run.validation_accuracy:.1%}, test {run.test_accuracy:.1%}: {run.seconds:.1f} s"
)
print("digest after training:", run.digest[:16], "...")
print("digest of the replay: ", log.verify()[:16], "...")
assert run.digest == log.verify() == digest(log.replay())
assert along[-1] == run.validation_accuracy > 0.92


candidates = [u * n for u, n in zip(log.plan.units, log.plan.inputs, strict=True)]


def ideal_bytes(moves):
    """Entropy of a step: which k of the N candidates of each layer moved, and a sign for each."""
    return sum(log2(comb(n, k)) + k for n, k in zip(candidates, moves, strict=True)) / 8


kept_moves = [[len(layer) for layer in step.positions] for step in log.steps()]
ideal = np.cumsum([ideal_bytes(moves) for moves in kept_moves])  # (steps,)
files = [*((record.first, record.offset) for record in log.records), (STEPS, log.nbytes)]
packed = run.packed_weight_bytes
fig, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.4))
left.plot(at, 100 * np.array(along), marker="o")
plots.label_axes(left, "step", "accuracy, validation (%)", "A run, from its log")
right.plot(np.arange(1, STEPS + 1), ideal / 1000, label="entropy of the kept moves")
right.plot(*np.transpose(files) * [[1], [1e-3]], "o", label="file, with its header")
right.axhline(packed / 1000, color="#888888", linestyle="--", label="weights, five trits a byte")
plots.label_axes(right, "step", "KB (1000 bytes)", "What the run leaves behind")

# %% [markdown]
# That is the model: a seed, and these bytes. Chapter 8 opens them.
#
# ## Something that is no MLP
#
# Neither method knows what a layer is; both need only a pure function. Take a bilinear network, whose hidden units multiply two ternary views of the image, without ReLU or layer norm:
#
# $$\text{logits} = 0.2 \; W_3 \; \mathrm{rmsnorm}\big( (W_1 x) \odot (W_2 x) \big).$$
#
# If it takes a `linear` argument and calls it where it multiplies by a weight, `units` can bump the products, and one tangent serves a unit as above. If it doesn't, each candidate weight is a direction of its own: the same numbers, at `n_in` times the price.


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
float_x, float_valid = (np.float32((x - np.float32(33.3)) / 75) for x in (small_x, small_valid))
shared = Units((8, 8, 4), rate=geometric(0.02, 0.002, 120))
sparse = Sampled(64, density=geometric(2e-3, 3e-4, 120), score="t")
fig, axes = plt.subplots()
for method, settings, marker in (("units", shared, "o"), ("sampled", sparse, "s")):
    learner = NoiseStep(bilinear, seeds, 0, settings)
    curve, begin = [], time.perf_counter()
    for step in range(121):
        if step % 12 == 0:
            curve.append(np.mean(bilinear(learner.params, float_valid).argmax(axis=1) == valid_y))
        i = draw_batch(3, step, 512)
        learner.step(float_x[i], train_y[i])
    print(f"{method:7}: {curve[-1]:.1%}, {time.perf_counter() - begin:.1f} s")
    axes.plot(range(0, 121, 12), 100 * np.array(curve), marker=marker, label=method)
    assert curve[-1] > {"units": 0.9, "sampled": 0.75}[method]
plots.label_axes(axes, "step", "accuracy, validation (%)", "A bilinear network, 12,864 weights")

# %%
by_unit, by_weight = (
    NoiseStep(model, learner.params, 0, Units((2, 2, 1))).step(float_x[:64], train_y[:64])
    for model in (bilinear, plain)
)
for a, b in zip(by_unit.alignments, by_weight.alignments, strict=True):
    assert np.allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())
print(f"5 tangents or {sum(a.size for a in by_weight.alignments)}: the same alignments")

# %% [markdown]
# ## What it costs
#
# **Time.** "The JVP runs alongside inference", says the manuscript. How much does it add? One forward pass of the paper's network in NumPy (float32, batch 1024, one thread) is the unit. Interleaved runs, medians:

# %%
i = draw_batch(4, 0, 1024)
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
# A dense tangent adds two products to each of the forward pass, $\dot h W^T$ and $h V^T$ (one in the first layer, whose inputs don't move): as many as a backward pass has. So "alongside" is one more pass or two, for one number.
# It is the sparsity of $v$ that makes many of them cheap: few nonzeros touch few units, and units share.
#
# **Memory.** What training holds besides the batch, for the same network. Adam with straight-through (the usual way) is counted; the steps are measured, as the largest amount that one step had allocated in NumPy at any time.

# %%
megabytes = {
    "ternary weights, int8": big_size,
    "the same, five a byte": packed,
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
# No activation of a batch is kept: a sample goes through, adds to the sums, and is forgotten; with int8 activations, 256 of them at a time. (Adam's could be cut by smaller batches, too, at the same sums.) But read the last lines closely. The sums of `units` are 52 rows of a gradient, with their squares, once for each of the four parts into which a batch is cut, so that they don't depend on the number of threads: together more than a whole gradient at this size.
# They are gone when the step ends. So nothing of the kind outlives a step of either method; *within* a step, only `sampled` can say that it has no gradient memory (what it holds is mostly lists of the weights that leave the units it touches).
#
# **The log.** A tern that is zero half of the time carries $H(\tfrac12, \tfrac14, \tfrac14) = 1.5$ bits. A step of `units` carries, per layer, the choice of $k$ among $N$ candidates and $k$ signs, $\log_2 \binom{N}{k} + k$ bits.

# %%
preset = training.PRESETS["small"]
rate = geometric(*preset.rate, preset.steps)
quotas = [[round(rate(step) * n) for n in candidates] for step in range(preset.steps)]
whole = sum(ideal_bytes(quota) for quota in quotas)
print(f"sampled: {128 * 1.5 / 8:.0f} bytes a step, {1550 * 128 * 1.5 / 8000:.1f} KB for 1550 steps")
each = np.diff(ideal)
print(f"units: {each[:10].mean():.0f} bytes a step at first, {each[-10:].mean():.0f} later")
print(f"this run: {ideal[-1] / 1000:.1f} KB by entropy, {log.nbytes / 1000:.1f} KB on disk")
print(f"its preset's {preset.steps} steps: about {whole / 1000:.1f} KB by entropy")
print(f"weights at five trits a byte: {packed / 1000:.1f} KB")
assert log.nbytes < 1.1 * ideal[-1] + 2_000
assert log.nbytes < whole < packed
net_changes = log.diff(0, STEPS)
changed = sum(np.count_nonzero(change) for change in net_changes.values())
print(f"{np.sum(kept_moves):,} moves; {changed:,} of {big_size:,} weights differ from the seed's")
assert changed < np.sum(kept_moves) < 0.1 * big_size
folder.cleanup()

# %% [markdown]
# The log grows with every step and the weights do not. A run of some thousand steps leaves more bytes than its packed weights have, and then the log is a history, no longer the smallest form of the model. Chapter 8 has that form, too: the net moves alone.
#
# ## The presets, whole
#
# `minibit experiment train` runs the four presets to their end with three seeds each, on all 60,000 training images; hyper-parameters were chosen before, on the last 5,000 of them. Log and weights (five trits a byte) are in thousands of bytes, times are of all threads together.

# %%
results = load_results("train")
print(f"{results['command']}, on {results['environment']['cpu']}")
print("preset    method    steps   test accuracy    log  weights   CPU s")
for row in results["rows"]:
    accuracy = f"{row['test_accuracy']:.2%} ±{row['test_accuracy_std']:.2%}"
    sizes = f"{row['log_bytes'] / 1000:6.1f} {row['packed_weight_bytes'] / 1000:8.1f}"
    print(
        f"{row['preset']:<9} {row['method']:<9} {row['steps']:>5}   {accuracy} {sizes} {row['cpu_seconds']:>7.0f}"
    )
by_preset = {row["preset"]: row for row in results["rows"]}
assert by_preset["paper"]["test_accuracy"] > 0.89
assert by_preset["strict"]["test_accuracy"] > 0.94
assert by_preset["small"]["test_accuracy"] > 0.963
assert by_preset["accurate"]["test_accuracy"] > 0.978
assert by_preset["small"]["log_bytes"] < by_preset["small"]["packed_weight_bytes"]
assert by_preset["accurate"]["log_bytes"] > by_preset["accurate"]["packed_weight_bytes"]

# %% [markdown]
# `small` and `strict` leave less than their weights weigh; `accurate` buys its last percent with a log more than three times as large as the weights.
#
# ## Neighbours
#
# | method | what it needs of the model | published or measured |
# |---|---|---|
# | Adam with straight-through, the same network | float copy, backward pass, two moments | 98.5% of the test set after 800 steps (chapter 9) |
# | forward gradients (Baydin et al. 2022) | a JVP along a random direction | unbiased; each entry's variance is about $\lVert\nabla L\rVert^2$; chapter 9 measures how near they come |
# | the same on activations, local losses (Ren et al. 2022) | JVPs | MNIST test error 2.5%, CIFAR-10 31% |
# | MeZO (Malladi et al. 2023) | two forward passes, no tangent | 66B parameters fine-tuned; a run stored in under 0.1 MB, as a seed and 2 bytes a step |
# | EGGROLL | forward passes of low-rank changes, in int8 | population $2^{20}$: 3.40 bits a byte, a float transformer 3.58, at about 180 times the GPU hours |
# | FedKSeed | as MeZO, on many machines | under 18 KB a round |
# | sign-SGD, majority vote | a backward pass; signs travel | one bit a weight and round |
# | Bop, BOLD, GXNOR-Net | a backward signal, no latent weights | weights that flip |
#
# A public re-implementation of the sampled method reports 89.67% of the *training* images at best; it takes the median over chunks of 64.
#
# **Limits.**
#
# - A shared tangent serves one use of a weight. Where a weight is used again (a convolution, a recurrent net, tokens of a sequence), `linear` refuses, and each candidate costs a direction.
# - Codes of a step are chosen one by one and applied together. With many candidates most of a fixed half is noise: the median keeps $K/2$ however little they know, which is why `units` has a rate, and why more perturbations per step help less and less.
# - The log grows with the steps. Always compare it with the packed weights.
# - Ranking needs all scores in one place. On many machines each perturbation sends a float up and gets a tern back; a tern alone can't be ranked against others.
# - The weights' *path* is exact, the training is not: alignments are floats, and another machine may decide a near tie otherwise.
# - Times are those of this machine and these widths. A wider network gains less from additions of rows in cache.
#
# **Exercises.**
#
# 1. Show that $F_{l+1}(W h) = \varepsilon r^2 \, F_{l+2}(W' h')$ one layer up, with $\varepsilon$ layer norm's: a norm doesn't answer a change of scale. Where do the kernels use it? (`test_unit_tangents_equal_the_jvp_of_the_plain_model`.)
# 2. Drop the term with $\overline{\hat z u}$ from `follow`. Which assertion notices, and does the network still learn? (`test_the_kernels_equal_their_references`.)
# 3. Keep *strictly* more than the median. What becomes of an odd $K$, and of many empty perturbations? (`test_ties_with_the_median_are_kept_and_zeros_get_no_code`, `test_an_odd_number_keeps_its_middle_score`.)
# 4. On two samples, one perturbation has alignments 10 and -9, another 0.5 and 0.5. Their $|a|$ tie. What does t say, and which would you trust on other samples? (`test_the_t_score_prefers_agreement_to_size`.)
# 5. Turn a `units` log round: negate all steps and append them in reverse. Why do you end at the seed's weights, and why not with `sampled`? (`test_units_never_clamp`.)
# 6. Give the bilinear network `left` twice. What does `linear` say, and what do you get without it? (`test_a_weight_used_twice_cannot_share`, `test_a_shared_tangent_equals_one_direction_a_weight`.)
# 7. Give `MLP` of one hidden layer int8 activations. What changes, and why nothing? (`test_networks_of_one_hidden_layer_or_none_have_nothing_to_round`.) With three, round the last hidden layer, too: what becomes of $B$ there?
# 8. Kill a training run and go on with it. Which steps are lost at most? (`test_a_killed_run_is_a_prefix_and_goes_on`.)
#
# **Sources.**
#
# - Brickner (2024), *noise_step: Training in 1.58b With No Gradient Memory*, manuscript.
# - Baydin, Pearlmutter, Syme, Wood and Torr (2022), *Gradients without Backpropagation*,
#   arXiv:2202.08587.
# - Ren, Kornblith, Liao and Hinton (2022), *Scaling Forward Gradient With Local Losses*,
#   arXiv:2210.03310.
# - Malladi et al. (2023), *Fine-Tuning Language Models with Just Forward Passes*,
#   arXiv:2305.17333.
# - Sarkar et al. (2025), *Evolution Strategies at the Hyperscale*, arXiv:2511.16652.
# - Qin et al. (2023), *Federated Full-Parameter Tuning of Billion-Sized Language Models with
#   Communication Cost under 18 Kilobytes*, arXiv:2312.06353.
# - Bernstein, Zhao, Azizzadenesheli and Anandkumar (2018), *signSGD with Majority Vote is
#   Communication Efficient And Fault Tolerant*, arXiv:1810.05291.
# - Helwegen et al. (2019), *Latent Weights Do Not Exist: Rethinking Binarized Neural Network
#   Optimization*, arXiv:1906.02107.
# - Nguyen et al. (2024), *BOLD: Boolean Logic Deep Learning*, arXiv:2405.16339.
# - Deng, Jiao, Pei, Wu and Li (2017), *GXNOR-Net: Training deep neural networks with ternary
#   weights and activations without full-precision memory under a unified discretization
#   framework*, arXiv:1705.09283.
# - LeCun, Bottou, Bengio and Haffner (1998), *Gradient-Based Learning Applied to Document
#   Recognition*, Proceedings of the IEEE 86.
