# %% [markdown]
# # Layers of a ternary neural network
#
# **The question.** A row of ternary weights can only add and subtract its inputs: no weight of
# 0.03, no scale behind it. What keeps the numbers of such a network in hand?
#
# Our model throughout this book is the multi-layer perceptron of noise_step: 784-256-256-256-10,
# ternary weights, no scales, no biases,
#
# $$h \leftarrow \mathrm{relu}(\mathrm{layernorm}(h W^\top)) \quad \text{three times}, \qquad
# \text{logits} = c\, h W_4^\top.$$
#
# It is a function of `(params, x)` and nothing else. This chapter runs it on MNIST before any
# training, to see what is there before learning starts.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minibit import plots
from minibit.datasets import load_mnist
from minibit.dual import jvp, jvp_batch
from minibit.layers import (
    cross_entropy,
    init_mlp,
    layer_norm,
    mlp,
    relu,
    squared_relu,
    ternary_linear,
)

plots.style(show=True)
mnist = load_mnist()
pixels = mnist.train_x[:1024] / np.float32(255)  # (batch, 784), 0 to 1
x = (pixels - np.float32(0.1307)) / np.float32(0.3081)  # mean and spread of all training pixels
labels = mnist.train_y[:1024]


def draw(zeros, seed=0):
    """A source of random codes, as `init_mlp` takes it."""
    rng = np.random.default_rng(seed)
    return lambda layer, shape: (rng.choice([-1, 1], shape) * (rng.random(shape) >= zeros)).astype(
        np.int8
    )


params = init_mlp((784, 256, 256, 256, 10), draw(zeros=0.7))
assert {w.dtype for w in params.values()} == {np.dtype(np.int8)}
assert mlp(params, x).dtype == np.float32

# %% [markdown]
# ## A sum of random signs grows
#
# With a share $z$ of zeros, an output is a sum of about $(1-z)\,n$ inputs with random signs: a
# random walk. Its mean square is $(1 - z)\, n$ times that of the inputs. Rectified, half of that is
# left. So each hidden layer multiplies the activations by $\sqrt{(1-z)\,n/2}$: about 6 at 70%
# zeros, 9 at a third, where a float network would be initialised to 1. Behind three layers nothing
# is left of a common order of magnitude.


# %%
def spreads(params, x, norm):
    """Standard deviation of each layer's product, with the norm or without it."""
    h, out = x, []
    for w in params.values():
        z = ternary_linear(h, w)  # (batch, n_out)
        out.append(z.std())
        h = relu(layer_norm(z) if norm else z)
    return out


curves = {}
for zeros in (1 / 3, 0.7):
    drawn = init_mlp((784, 256, 256, 256, 10), draw(zeros))
    plain, normed = spreads(drawn, x, norm=False), spreads(drawn, x, norm=True)
    curves[zeros] = plain, normed
    growth = plain[2] / plain[1]
    print(
        f"{zeros:.0%} zeros: x {growth:.1f} a hidden layer, expected {np.sqrt((1 - zeros) * 256 / 2):.1f}"
    )
    assert 0.8 < growth / np.sqrt((1 - zeros) * 256 / 2) < 1.25
    assert plain[3] > 500 * normed[3] / normed[0]

# %% tags=["hide-input"]
fig, axes = plt.subplots()
for (zeros, (plain, normed)), color in zip(curves.items(), plots.PALETTE, strict=False):
    axes.plot(range(1, 5), plain, "o-", color=color, label=f"{zeros:.0%} zeros, no norm")
    axes.plot(range(1, 5), normed, "s--", color=color, label=f"{zeros:.0%} zeros, layer norm")
axes.set(yscale="log", xticks=range(1, 5))
plots.label_axes(
    axes, "layer", "standard deviation of $h W^\\top$", "Without a norm, every layer multiplies"
)

# %% [markdown]
# **Layer norm takes any scale away**: $\mathrm{layernorm}(s z) = \mathrm{layernorm}(z)$ for
# $s > 0$, up to its $\varepsilon = 10^{-5}$. That is why hidden layers need no scale: whatever it
# was, the norm would undo it. Here are the weights of the second layer multiplied by 1,000 (as
# floats), and the logits that come out.

# %%
floats = {name: w.astype(np.float64) for name, w in params.items()}
logits = mlp(floats, x)
scaled = mlp(floats | {"w2": 1000 * floats["w2"]}, x)
print(
    f"largest change of a logit: {np.abs(scaled - logits).max():.1e}, of logits up to {np.abs(logits).max():.1f}"
)
assert np.abs(scaled - logits).max() < 1e-5 * np.abs(logits).max()

# %% [markdown]
# Its other half, the centring, is what lets a rectifier cut in the middle: after it, about half of
# the units are silent on every image. The picture follows one batch through the first and the third
# layer.

# %%
h, shown = x, []
for layer, name in enumerate(("w1", "w2", "w3")):
    z = ternary_linear(h, params[name])
    normed = layer_norm(z)
    h = relu(normed)
    silent = np.mean(h == 0)
    assert 0.48 < silent < 0.52
    assert 0.4 < np.mean(h == 0, axis=1).min() <= np.mean(h == 0, axis=1).max() < 0.6  # an image
    assert 0.48 < np.mean(h * h) < 0.52  # half of the variance 1 is left
    if layer != 1:
        shown.append((layer + 1, {"product": z, "layer norm": normed, "relu": h}))
print(f"relu silences {silent:.1%} of the third layer")

# %% tags=["hide-input"]
fig, panels = plt.subplots(2, 3, figsize=(8, 4))
for row, (layer, stages), color in zip(panels, shown, plots.PALETTE, strict=False):
    for axes, (label, values) in zip(row, stages.items(), strict=True):
        axes.hist(values.ravel(), bins=60, color=color, log=True)
        axes.set_title(f"layer {layer}: {label}", loc="left")
        axes.set_yticks([])
        axes.set_yticks([], minor=True)
panels[0, 0].set_ylabel("log count")
panels[1, 0].set_ylabel("log count")
for axes in panels[1]:
    axes.set_xlabel("value")

# %% [markdown]
# ## What layer norm does not mend
#
# A random layer also forgets. Part of a unit's value is the same for every image (its mean over the
# batch); only the rest tells images apart. The constant part grows from layer to layer, as relu
# makes all inputs positive and so alike. Training has to work against that.

# %%
h, constant = x, []
for name in ("w1", "w2", "w3"):
    z = ternary_linear(h, params[name])
    constant.append(z.mean(axis=0).var() / z.var())
    h = relu(layer_norm(z))
print(
    "share of the variance that is the same for all images:",
    ", ".join(f"{share:.0%}" for share in constant),
)
assert constant[0] < 0.35 < 0.45 < constant[1] < constant[2]

# %% [markdown]
# ## The last layer needs a scale
#
# No norm follows the logits, so their scale counts: it is the temperature of the softmax. Unscaled,
# they are sums of some 77 rectified activations of mean square 1/2, with a spread of about
# $\sqrt{77/2} \approx 6$: a network that knows nothing is sure of it.

# %%
assert round(0.3 * 256) == 77  # activations that a row of the last layer adds or subtracts
scales = np.geomspace(0.01, 2, 24)
losses = [float(cross_entropy(mlp(params, x, logit_scale=float(c)), labels)) for c in scales]


def sureness(c):
    """Mean probability of the likeliest class."""
    exps = np.exp(c * (logits - logits.max(axis=1, keepdims=True)))
    return np.mean(exps.max(axis=1) / exps.sum(axis=1))


each = {c: cross_entropy(mlp(params, x, logit_scale=c), labels, "none") for c in (0.12, 1.0)}
at = {c: losses_of.mean() for c, losses_of in each.items()}
worst = {c: np.sort(losses_of)[-256:].sum() / losses_of.sum() for c, losses_of in each.items()}
print(f"spread of the logits: {logits.std():.1f}; ln 10 = {np.log(10):.2f}")
for c, value in at.items():
    print(
        f"c = {c}: loss {value:.2f}, {sureness(c):.0%} sure, {worst[c]:.0%} of the loss from a quarter of the images"
    )
assert 3 < logits.std() < 9
assert worst[1.0] > worst[0.12]
assert at[1.0] > 5 > np.log(10) + 1 > at[0.12]
assert sureness(1) > 0.7 > 0.4 > sureness(0.12)

# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
left.plot(scales, losses)
left.axhline(np.log(10), color="#888888", linestyle="--", label="ln 10: guessing")
right.plot(scales, [sureness(c) for c in scales])
for axes in (left, right):
    axes.axvline(0.12, color=plots.PALETTE[1], linewidth=0.8, label="c = 0.12")
    axes.set_xscale("log")
plots.label_axes(left, "logit scale c", "cross entropy, nats", "Loss before training")
plots.label_axes(right, "logit scale c", "probability", "How sure of its answer")

# %% [markdown]
# Where a sure softmax is wrong, the loss is about the winner's logit less the label's: eight of ten
# classes hardly count, and the worst images carry more of the mean. This book uses $c = 0.12$ (the
# orange line); chapter 7 measures what it is worth.
#
# ## Dead pixels are biases
#
# 67 pixels at the border are 0 in every training image. Fed as 0, their 17,152 weights would never
# do anything. But the input is centred, so a dead pixel is the constant
# $-0.1307 / 0.3081 = -0.424$, and its weights are a bias of their unit, in steps of 0.424. The
# network has no other.

# %%
dead = ~mnist.train_x.any(axis=0)  # (784,)
bias = x[:, dead] @ params["w1"][:, dead].T.astype(np.float32)  # (batch, n_out)
print(
    f"{dead.sum()} dead pixels; biases spread {bias[0].std():.2f}, expected {0.4242 * np.sqrt(67 * 0.3):.2f}"
)
assert dead.sum() == 67
assert dead.sum() * 256 == 17_152
assert (np.ptp(bias, axis=0) < 1e-3).all()  # the same for every image
assert abs(bias[0].std() / (0.4242 * np.sqrt(67 * 0.3)) - 1) < 0.15

move = {name: np.zeros_like(w) for name, w in floats.items()}
move["w1"][0, dead] = 1.0  # one unit's dead weights
of_raw = jvp(lambda p: mlp(p, pixels), (floats,), (move,))[1]
of_centred = jvp(lambda p: mlp(p, x), (floats,), (move,))[1]
print(
    f"logits' tangent along dead weights: {np.abs(of_raw).max()} raw, {np.abs(of_centred).max():.2f} centred"
)
assert np.abs(of_raw).max() == 0
assert np.abs(of_centred).max() > 0.1

# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
image = left.imshow(mnist.train_x.std(axis=0).reshape(28, 28))
fig.colorbar(image, ax=left, label="of 255")
left.plot(*np.nonzero(dead.reshape(28, 28))[::-1], "s", color=plots.PALETTE[1], markersize=4)
left.set(xticks=[], yticks=[])
left.grid(False)
left.set_title("spread of each pixel; dead ones orange", loc="left")
right.hist(bias[0], bins=0.1307 / 0.3081 * np.arange(-12.5, 13.5), color=plots.PALETTE[1])
plots.label_axes(right, "bias from dead pixels", "units", "What they add to each of 256 units")

# %% [markdown]
# ## Tangents through layers
#
# Every function here is plain NumPy, so chapter 1's `jvp` differentiates it as it stands. Layer
# norm's rule comes out as
#
# $$\dot z = r\,\bigl(\dot x - \overline{\dot x} - z\,\overline{z \dot x}\bigr), \qquad r =
# 1/\sqrt{\mathrm{var}\,x + \varepsilon}:$$
#
# it removes from a tangent what shifts all units alike, and what scales them all. So **a hidden
# layer's own weights are a direction of slope zero**: moving along them scales the layer, and the
# norm takes it away. The last layer's are not.


# %%
def loss(params):
    return cross_entropy(mlp(params, x, logit_scale=0.12), labels)


slopes = []
for name in params:
    along = {other: w if other == name else np.zeros_like(w) for other, w in floats.items()}
    slopes.append(float(jvp(loss, (floats,), (along,))[1]))
    print(f"slope of the loss along {name} itself: {slopes[-1]: .1e}")
assert max(np.abs(slopes[:3])) < 1e-5 < 0.01 < abs(slopes[3])

# %% [markdown]
# **How far does a tangent see?** A ternary weight cannot move a little: it moves by 1, out of
# $\{-1, 0, 1\}$. Whether a slope says anything about such a jump is the question on which this
# whole book rests. Here are 48 single weights of the second layer: the slope along each, against
# what the loss does when the weight really moves by 1.

# %%
rng = np.random.default_rng(1)
w2 = floats["w2"]
picked = rng.choice(w2.size, 48, replace=False)
now = w2.reshape(-1)[picked]
steps = np.where(now == 0, rng.choice([-1, 1], 48), -now)  # every step stays in {-1, 0, 1}
moves = np.zeros((48, w2.size))
moves[np.arange(48), picked] = steps
moves = moves.reshape(48, *w2.shape)  # (directions, n_out, n_in)
few, their = x[:256].astype(np.float64), labels[:256]


def loss_of(w):
    return cross_entropy(mlp(floats | {"w2": w}, few, logit_scale=0.12), their)


before, slope = jvp_batch(loss_of, (w2,), (moves,))
change = np.array([loss_of(w2 + step) - before for step in moves])
agree = np.mean(np.sign(change) == np.sign(slope))
print(f"signs agree for {agree:.0%}, correlation {np.corrcoef(change, slope)[0, 1]:.3f}")
assert agree > 0.85
assert np.corrcoef(change, slope)[0, 1] > 0.95

# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(5, 3.6))
axes.axline((0, 0), slope=1, color="#888888", linewidth=0.8)
axes.plot(1e3 * slope, 1e3 * change, "o")
plots.label_axes(
    axes,
    "slope, $10^{-3}$ nats",
    "change of the loss, $10^{-3}$ nats",
    "A step of 1 against its tangent",
)

# %% [markdown]
# One weight of 256 into a unit that a norm divides by six: a step of 1 is small after all. Layer
# norm does that too.
#
# ## Two rectifiers
#
# BitNet's language models square their relu. Its slope has no jump at zero, it keeps relu's silent
# half, and it widens the range of the rest, which the norm in front of the next linear layer has to
# catch.

# %%
grid = np.linspace(-2, 2, 201)
curves = {f.__name__: jvp(f, (grid,), (np.ones_like(grid),)) for f in (relu, squared_relu)}
assert grid[100] == 0
assert all(slope[100] == 0 for _, slope in curves.values())

# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(5, 3))
for (name, (value, slope)), color in zip(curves.items(), plots.PALETTE, strict=False):
    axes.plot(grid, value, color=color, label=name)
    axes.plot(grid, slope, "--", color=color, label="its slope")
plots.label_axes(axes, "x", "value", "Both are 0 with slope 0 at x = 0")

# %% [markdown]
# **Limits.** All this is one random draw at the start of training; only ratios that hold for any
# draw are asserted. The agreement of slopes and steps is for one weight at a time: thousands that
# move together are another matter (chapter 7). A layer norm without gain and bias is the paper's;
# nothing here shows that it is best.
#
# **Exercises.**
#
# 1. Derive layer norm's tangent and show that $\mathrm{mean}\,\dot z = 0$.
#    `test_the_tangent_of_layer_norm_is_its_formula` checks yours.
# 2. `layer_norm(c x, eps=c * c * eps)` equals `layer_norm(x, eps)` to the last bit for powers of
#    two. Why these, and why must $\varepsilon$ be scaled too? (`test_a_norm_takes_a_scale_away`.)
# 3. Replace layer norm by `rms_norm`. What happens to the share of silent units, and to the
#    constant part? `test_rms_norm_of_centred_rows_is_layer_norm` says when the two agree.
# 4. The loss near $c = 0$ is $\ln 10$ whatever the weights are. What is its slope in $c$ there?
#    (`test_the_tangent_of_cross_entropy_is_softmax_less_one_hot`.)
#
# **Sources.**
#
# - Ba, Kiros and Hinton (2016), *Layer Normalization*, arXiv:1607.06450.
# - Zhang and Sennrich (2019), *Root Mean Square Layer Normalization*, arXiv:1910.07467.
# - So et al. (2021), *Primer: Searching for Efficient Transformers for Language Modeling*,
#   arXiv:2109.08668.
# - Brickner (2024), *noise_step: Training in 1.58b With No Gradient Memory*, manuscript.
