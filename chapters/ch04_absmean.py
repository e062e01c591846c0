# %% [markdown]
# # From floats to trits: quantization-aware training with straight-through (STE)
#
# **The question.** Which trits and which scale stand best for a matrix of floats? And why do they
# work so badly unless training sees them?
#
# BitNet b1.58 takes two lines for a weight matrix, *absmean*, and two for a token of activations,
# *absmax*:
#
# $$\gamma = \max(\operatorname{mean}|W|,\ 10^{-5}), \qquad T =
# \operatorname{clip}\!\left(\operatorname{rint}\frac{W}{\gamma}, -1, 1\right), \qquad W \approx
# \gamma\, T,$$
#
# $$s = \frac{127}{\max(\max|x|,\ 10^{-5})}, \qquad c = \operatorname{rint}(s\,x), \qquad x \approx
# c / s.$$
#
# $W$ is the matrix, $T$ its trits; $x$ are the activations of a token, $c$ their codes of 8 bits.
# rint rounds to the nearest whole number, and a half to the even one; clip cuts at -1 and 1. There
# is one $\gamma$ per matrix and one $s$ per token. $10^{-5}$ prevents a division by zero.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minibit import plots
from minibit.absmean import (
    absmax_quantize,
    absmean_quantize,
    binary_quantize,
    fake_quant_activation,
    fake_quant_weight,
)
from minibit.datasets import load_mnist
from minibit.dual import derivative, jvp
from minibit.layers import cross_entropy, ternary_linear

plots.style(show=True)
rng = np.random.default_rng(0)
ONE = np.float32(1)


def cosine(a, b):
    """How far two arrays point in the same direction."""
    return float(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b)))


w = rng.standard_normal((768, 1024)).astype(np.float32)  # (n_out, n_in)
codes, gamma = absmean_quantize(w)
assert abs(gamma - np.abs(w).mean()) < 1e-6
assert (codes == np.clip(np.rint(w * (ONE / gamma)), -1, 1)).all()
print(f"gamma {gamma:.4f}, zeros {np.mean(codes == 0):.1%}, cosine {cosine(w, codes):.3f}")

# %% [markdown]
# The same rule on a small matrix. Left, the floats. In the middle, the same numbers as points on a
# line: between the dashed lines, at $-\gamma/2$ and $\gamma/2$, they become 0; outside they keep
# their sign. Right, the trits.

# %% tags=["hide-input"]
little = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
trits, g = absmean_quantize(little)
tints = {-1: plots.PALETTE[1], 0: "#888888", 1: plots.PALETTE[0]}
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.9), width_ratios=(1, 1.2, 1))
fig.set_label(
    "A matrix of 6 x 8 floats; its numbers as points on a line, grey between two dashed lines around "
    "0, orange to the left of them, blue to the right; and the matrix of -1, 0 and +1 that they become."
)
for panel, matrix, title in (
    (left, little, "floats $W$"),
    (right, trits, r"trits $T$, and one $\gamma$"),
):
    for (i, j), value in np.ndenumerate(matrix):
        text = f"{value:+.1f}" if matrix is little else f"{value:+d}" if value else "0"
        colour = tints[int(trits[i, j])]
        panel.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    panel.set(xticks=[], yticks=[], xlim=(-0.6, 7.6), ylim=(5.6, -0.6), title=title)
    panel.grid(False)
for (i, j), value in np.ndenumerate(little):
    middle.plot(value, 5 - i + 0.08 * j, "o", color=tints[int(trits[i, j])])
for edge in (-g / 2, g / 2):
    middle.axvline(edge, color="#888888", linestyle="--", linewidth=1)
middle.set_xticks([-g, 0, g], [r"$-\gamma$", "0", r"$\gamma$"])
middle.set(yticks=[], xlabel="weight", title="what a weight becomes")

# %% [markdown]
# ## What the scale does
#
# $\gamma$ does two things. It is the **threshold**: $|w| > \gamma/2$ keeps its sign, all else is 0.
# And it is the **value** that the signs stand for. Neither is optimal. The picture puts $k\gamma$
# in the place of $\gamma$, for weights of three distributions, and draws the relative error
# $\lVert W - k\gamma\,T_k \rVert / \lVert W \rVert$.

# %%
shapes = {
    "uniform": rng.uniform(-1, 1, w.shape).astype(np.float32),
    "normal": w,
    "heavy tails (Student t, 3)": rng.standard_t(3, w.shape).astype(np.float32),
}
multiples = np.linspace(0.4, 3, 40)
curves = {}
for name, v in shapes.items():
    v = v[:256]
    g = np.abs(v).mean()
    errors, angles = [], []
    for k in multiples:
        t = np.clip(np.rint(v / (k * g)), -1, 1)
        errors.append(np.linalg.norm(v - k * g * t) / np.linalg.norm(v))
        angles.append(cosine(v, t))
    curves[name] = errors, angles
    best, chosen = multiples[np.argmin(errors)], cosine(v, absmean_quantize(v)[0])
    print(f"{name}: least error at {best:.2f} gamma; cosine {chosen:.3f}, best {max(angles):.3f}")
    assert 1.2 < best < 2.2
    assert 0 < max(angles) - chosen < (0.015 if name == "normal" else 0.04)

# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4))
for name, (errors, angles) in curves.items():
    left.plot(multiples, errors)
    right.plot(multiples, angles, label=name)
for axes in (left, right):
    axes.axvline(1, color="#888888", linewidth=0.8, linestyle="--")
plots.label_axes(left, "scale, in units of mean |w|", "relative error", "Lost")
plots.label_axes(right, "scale, in units of mean |w|", "cosine of W and T", "Kept")

# %% [markdown]
# The dashed line is absmean. For squared error, a scale half as large again would suit normal
# weights better. But where a norm follows the layer, only the direction counts, since layer norm
# and RMS norm divide any factor away: there, absmean loses less than 0.015 of a cosine of 0.90. It
# also has fewer zeros: 31%, close to the third at which a trit carries most (chapter 2).
#
# For normal weights all of that is arithmetic. Let $t = \sqrt{2/\pi}/2 = 0.399$ be the threshold in
# standard deviations, $\varphi$ the density of the normal distribution and $\Phi$ its distribution
# function. The share of zeros is $2\Phi(t) - 1$ and the cosine $2\varphi(t) / \sqrt{2 - 2\Phi(t)}$.
# Signs alone (`binary_quantize`, BitNet's first, with one bit per weight) have $\sqrt{2/\pi}$.

# %%
t = np.sqrt(2 / np.pi) / 2
density = np.exp(-t * t / 2) / np.sqrt(2 * np.pi)
nonzero = np.mean(np.abs(rng.standard_normal(4_000_000)) > t)  # 2 - 2 Phi(t)
signs, beta = binary_quantize(w)
print(f"trits: {cosine(w, codes):.4f}, expected {2 * density / np.sqrt(nonzero):.4f}")
print(f"signs: {cosine(w, signs):.4f}, expected {np.sqrt(2 / np.pi):.4f}")
assert abs(np.mean(codes == 0) - (1 - nonzero)) < 0.002
assert abs(cosine(w, codes) - 2 * density / np.sqrt(nonzero)) < 0.002
assert abs(cosine(w, signs) - np.sqrt(2 / np.pi)) < 0.002

# %% [markdown]
# ## Five traps
#
# Ports of the two rules to other programs go wrong in five places. Here are four of them, on three
# matrices: normal weights of an ordinary size (standard deviation, or *spread*, 0.02), small ones
# ($2 \cdot 10^{-5}$), and one made of 1 and 3, where $\gamma = 2$ and every 1 is a tie, halfway
# between two codes.


# %%
def half_away(v):
    """Round as C's `round` does."""
    return np.copysign(np.floor(np.abs(v) + 0.5), v)


def variant(v, gamma=None, rounding=np.rint):
    """Ternary codes of v, with something else in place of gamma or of rounding half to even."""
    gamma = max(np.abs(v).mean(), 1e-5) if gamma is None else gamma
    return np.clip(rounding(v / gamma), -1, 1)


TRAPS = {
    "eps added, not maxed": lambda v: variant(v, gamma=np.abs(v).mean() + 1e-5),
    "cast for round": lambda v: variant(v, rounding=np.trunc),
    "half away from zero": lambda v: variant(v, rounding=half_away),
    "scale inverted": lambda v: variant(v, gamma=1 / np.abs(v).mean()),
}
ordinary = np.float32(0.02) * w
small = np.float32(2e-5) * w
tied = np.float32([[1, -3] * 32, [-1, 3] * 32])
print(f"{'codes that differ':22}{'ordinary':>10}{'small':>10}{'1 and 3':>10}")
differ = {}
for name, trap in TRAPS.items():
    differ[name] = [np.mean(trap(v) != absmean_quantize(v)[0]) for v in (ordinary, small, tied)]
    print(f"{name:22}" + "".join(f"{share:>10.2%}" for share in differ[name]))
assert 0 < differ["eps added, not maxed"][0] < 0.001 < 0.05 < differ["eps added, not maxed"][1]
assert min(differ["cast for round"][:2]) > 0.2
assert differ["half away from zero"] == [0, 0, 0.5]
assert differ["scale inverted"][0] == np.mean(absmean_quantize(ordinary)[0] != 0)  # all zeros

# %% [markdown]
# An **inverted scale** (published files hold $\gamma$ or $1/\gamma$, by configuration) sends all
# small weights to zero, and a **cast** to integers all below $\gamma$. Both are noticed at once. An
# **added epsilon** ($10^{-5}$), which the paper's formula has and the published code has not, moves
# a few codes in ten thousand: nobody notices, but the codes are not those of a reference. A **tie**
# does not occur among random weights.
#
# Ties do occur among activations. A bfloat16 has 8 significant bits. If the largest of a token is
# $127 \cdot 2^e$ with a whole number $e$, the scale is a power of two and every odd multiple of
# half a step $1/s$ is a tie. Here are 4,000 random tokens, of different sizes.

# %%
tokens = rng.standard_normal((4000, 256)) * 2 ** rng.uniform(-3, 3, (4000, 1))
bits = tokens.astype(np.float32).view(np.uint32) + np.uint32(0x8000)  # bfloat16: the upper half
tokens = (bits & np.uint32(0xFFFF0000)).view(np.float32)  # (tokens, n_in)
c, s = absmax_quantize(tokens)
away = half_away(tokens * s) != c
hit = away.any(axis=1)
print(f"half away from zero changes codes in {hit.sum()} tokens of 4000,")
print(f"and there {away[hit].sum(axis=1).mean():.0f} of 256 codes")
largest = np.abs(tokens).max(axis=1)
assert set(np.frexp(largest[hit])[0]) == {127 / 128}
assert 10 < hit.sum() < 80
assert away[hit].sum(axis=1).mean() > 20

# %% [markdown]
# The fifth trap is the order of operations. Let $m$ be the largest magnitude. `127 / m` in PyTorch
# is a reciprocal and a product, so the published scale is $127 \cdot \mathrm{fl}(1/m)$, where fl
# rounds to a float, and is rounded once more. An entry that is half of the largest has $s x = 63.5$
# in exact arithmetic: the last bit of $s$ decides.

# %%
m = np.arange(1, 1001, dtype=np.float32)[:, None]
half = np.concatenate([m, m / 2], axis=1)  # (1000, 2)
c, s = absmax_quantize(half)
direct = np.rint(half * (np.float32(127) / m))
print(f"scales that differ: {np.mean(s != np.float32(127) / m):.0%}")
print(f"tokens whose codes differ: {np.mean((c != direct).any(axis=1)):.0%}")
for n in (15, 47):
    print(f"m = {n}: published {c[n - 1]}, with 127 / m {direct[n - 1].astype(int)}")
assert c[14].tolist() == [127, 64]
assert direct[14].tolist() == [127, 63]
assert 0.1 < np.mean((c != direct).any(axis=1)) < 0.5

# %% [markdown]
# ## What activations lose
#
# 255 levels are plenty, if the values fill them. One outlier makes the step wide for all: the step
# is $a/127$ for a largest entry $a$, and an evenly spread rounding error is step$/\sqrt{12}$. So if
# the others have spread 1, their relative error is $a / (127\sqrt{12})$, until all round to 0.

# %%
outliers = np.geomspace(4, 4000, 25)
rest = rng.standard_normal((64, 1023)).astype(np.float32)  # spread 1
lost = []
for a in outliers:
    x = np.concatenate([np.full((64, 1), a, np.float32), rest], axis=1)
    lost.append(np.linalg.norm((fake_quant_activation(x) - x)[:, 1:]) / np.linalg.norm(rest))
formula = outliers / 127 / np.sqrt(12)
fine = outliers < 100
assert np.allclose(np.array(lost)[fine], formula[fine], rtol=0.05)
assert lost[-1] == 1  # nothing of the others is left

# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(6.4, 3))
axes.loglog(outliers, lost, "o", label="measured")
axes.loglog(
    outliers, np.minimum(formula, 1), color="#888888", label=r"$a / (127 \sqrt{12})$, at most 1"
)
plots.label_axes(axes, "outlier $a$, in spreads of the others", "relative error of the others")

# %% [markdown]
# With one scale per token the damage stays within its token. A norm before the quantiser does not
# help: it divides a token by one number, and absmax divides any such number away.
#
# Now one layer, in integers: multiply codes by codes, then divide by $s$ and multiply by $\gamma$.
# That is the product of the fake-quantised floats, which are what training sees.

# %%
x = rng.standard_normal((128, 1024)).astype(np.float32)  # (batch, n_in)
c, s = absmax_quantize(x)
assert (absmax_quantize(8 * x)[0] == c).all()
exact = c.astype(np.int32) @ codes.T.astype(np.int32)  # (batch, n_out) int32
y = exact / s * gamma
faked = ternary_linear(fake_quant_activation(x), fake_quant_weight(w))
print(f"integers against floats: {np.abs(y - faked).max() / np.abs(y).max():.1e} of the largest")
print(f"cosine of the activations {cosine(x, c / s):.5f}, of the outputs {cosine(y, x @ w.T):.3f}")
assert np.abs(y - faked).max() < 1e-5 * np.abs(y).max()
assert cosine(x, c / s) > 0.9998
assert abs(cosine(y, x @ w.T) - cosine(w, codes)) < 0.01

# %% [markdown]
# The outputs point as far off as the weights do, and int8 costs nothing beside that. A cosine of
# 0.89 on random inputs may sound good enough. Real inputs aren't random.
#
# ## Why training must know of it
#
# Take the smallest classifier there is, softmax regression on MNIST: logits $x W^\top$ with $W$ of
# 10 x 784. Its gradient has a closed form, $(p - y)^\top x$, with $p$ the ten probabilities and $y$
# 1 at the label, else 0. We train it several times on the same batches, and change only what the
# forward pass **sees** of the weights: the floats themselves; their ternary values; or a warm-up
# $W + \lambda\,(\gamma T - W)$, with $\lambda$ rising from 0 to 1, that starts from the trained
# floats.
#
# In the last two the loss depends on $T$, but the step moves $W$. The true derivative of rounding
# is zero, which is useless. **Straight-through** takes that of the identity instead:
# `fake_quant_weight` returns $\gamma T$ and passes tangents on untouched.

# %%
mnist = load_mnist()


def normalised(pixels):
    """Pixels less their mean, over their spread."""
    return (pixels / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)


train_x, train_y = normalised(mnist.train_x[:10_000]), mnist.train_y[:10_000]
test_x, test_y = normalised(mnist.test_x), mnist.test_y


def gradient(seen, x, labels):
    """The gradient of the mean cross entropy in the weights that are seen."""
    logits = x @ seen.T  # (batch, 10)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(x)), labels] -= 1
    return p.T @ x / len(x)  # (10, 784)


start = np.float32(0.01) * rng.standard_normal((10, 784), dtype=np.float32)
direction = rng.standard_normal(start.shape, dtype=np.float32)
batch, labels = train_x[:256], train_y[:256]
_, slope = jvp(
    lambda w: cross_entropy(batch @ fake_quant_weight(w).T, labels), (start,), (direction,)
)
closed = np.sum(gradient(fake_quant_weight(start), batch, labels) * direction)
print(f"slope along a direction: jvp {slope:.5f}, closed form at the ternary weights {closed:.5f}")
assert np.isclose(slope, closed, rtol=1e-3)
assert derivative(lambda v: np.clip(np.rint(v / 0.8), -1, 1))(0.7) == 0  # without straight-through
assert derivative(fake_quant_weight)(0.7) == 1

# %% [markdown]
# So the straight-through "gradient" is the gradient at the quantised weights, applied to the latent
# ones. Now train, with momentum and a rate that falls to zero.


# %%
def accuracy(w):
    """Share of test images named correctly."""
    return float(np.mean(np.argmax(test_x @ w.T, axis=1) == test_y))


def train(see, w, steps=400, rate=0.03, seed=0):
    """Train w by what the forward pass sees of it; every 10 steps keep the loss and w."""
    draws, velocity, losses, kept = np.random.default_rng(seed), np.zeros_like(w), [], []
    for step in range(steps):
        seen = see(w, step)
        if step % 10 == 0:
            losses.append(float(cross_entropy(test_x[:2000] @ seen.T, test_y[:2000])))
            kept.append(w)
        rows = draws.integers(len(train_x), size=256)
        velocity = np.float32(0.9) * velocity + gradient(seen, train_x[rows], train_y[rows])
        w = w - np.float32(rate * (1 - step / steps)) * velocity
    return w, losses, kept


float_w, _, float_kept = train(lambda w, step: w, start)
latent, _, latent_kept = train(lambda w, step: fake_quant_weight(w), start)
warm, warm_losses, _ = train(lambda w, step: fake_quant_weight(w, min(step / 200, 1)), float_w)
_, cold_losses, _ = train(lambda w, step: fake_quant_weight(w), float_w)

assert float_w.size == 7_840
rounded, trained = fake_quant_weight(float_w), fake_quant_weight(latent)
results = {
    "float": float_w,
    "float, then rounded to trits": rounded,
    "trits, trained straight-through": trained,
    "the latent floats behind these": latent,
    "trits, warmed up from the float solution": fake_quant_weight(warm),
}
scores = {name: accuracy(v) for name, v in results.items()}
for name, score in scores.items():
    print(f"{score:.1%}  {name}")

by_rounding = [accuracy(fake_quant_weight(v)) for v in float_kept]
at = np.arange(0, 400, 10)
assert scores["float"] > 0.9
assert scores["float, then rounded to trits"] < 0.8
assert scores["trits, trained straight-through"] > scores["float"] - 0.02
assert max(by_rounding[:5]) == max(by_rounding) > by_rounding[-1] + 0.03
assert scores["the latent floats behind these"] < scores["trits, trained straight-through"] - 0.1

# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4))
left.plot(at, [100 * accuracy(v) for v in float_kept], label="float")
left.plot(at, 100 * np.array(by_rounding), label="float, rounded")
left.plot(at, [100 * accuracy(fake_quant_weight(v)) for v in latent_kept], label="straight-through")
left.set_ylim(40, 95)
right.plot(at, cold_losses, color=plots.PALETTE[3], label="trits at once")
right.plot(at, warm_losses, color=plots.PALETTE[4], label=r"$\lambda$ from 0 to 1 in 200 steps")
plots.label_axes(left, "step", "test accuracy (%)", "From the same start")
plots.label_axes(right, "step", "test loss of what is seen (nats)", "From the float solution")

# %% [markdown]
# Rounding a trained model costs it 20 points here; trits that were trained as trits lose one. Look
# at where each solution lies.

# %%
logits = test_x @ float_w.T
near = {"rounded": rounded, "straight-through": trained}
for name, v in near.items():
    print(
        f"{name}: cosine to the float weights {cosine(v, float_w):.3f}, "
        f"of the logits {cosine(test_x @ v.T, logits):.3f}"
    )
assert cosine(trained, float_w) < cosine(rounded, float_w) + 0.02
assert cosine(test_x @ trained.T, logits) > cosine(test_x @ rounded.T, logits) + 0.03
halfway, end = (absmean_quantize(v)[0] for v in (latent_kept[20], latent))
print(f"codes that changed in the second half of training: {np.mean(halfway != end):.1%}")
print(f"zeros: {np.mean(end == 0):.0%}, by rounding {np.mean(rounded == 0):.0%}")
assert 0.01 < np.mean(halfway != end) < 0.15
assert np.mean(end == 0) > np.mean(rounded == 0) > 0.35

# %% [markdown]
# Measured by weights, the two are about equally far from the float solution. Measured by logits,
# the trained one is much nearer: it chose its 7,840 errors so that they cancel on real images,
# while rounding each weight alone lets them add up, as neighbouring pixels are alike. **The nearest
# trits are not the best trits**, and only the loss can tell.
#
# The figures and the picture show four more things:
#
# - The latent floats are no model. Run unrounded, they lose 15 points to their own trits. They
#   count how much evidence a trit still needs to change. (So a checkpoint of latent weights must
#   not be run without quantising them.)
# - Rounding gets no better as the float model does: the best rounded one comes within the first 40
#   steps.
# - Codes settle as the rate falls: in the second half of training, 6% of them change.
# - The warm-up avoids a shock: without it, the loss starts at more than twice that of the float
#   model. Here it buys nothing lasting: both curves end within 0.05 nats. Fine-tuning a large
#   model, where the shock undoes what long training built, is what the published recipe has it for.

# %%
print(f"first loss seen: at once {cold_losses[0]:.2f}, warmed up {warm_losses[0]:.2f}")
print(f"last: {cold_losses[-1]:.2f} and {warm_losses[-1]:.2f}")
assert cold_losses[0] > 2 * warm_losses[0]
assert abs(cold_losses[-1] - warm_losses[-1]) < 0.05
assert scores["trits, warmed up from the float solution"] > scores["float"] - 0.02

# %% [markdown]
# **Limits.** Straight-through is no derivative of anything: that it works is experience, and needs
# steps that are small against $\gamma$. Training keeps the latent floats, so it needs all of a
# float model's memory and more; chapter 7 trains without them. A softmax regression has no layer
# behind it whose norm would undo a scale, and 7,840 weights are few: how the gap to float models
# closes with size is a matter for language models. Gamma is summed in float64 here and in float32
# by PyTorch, so that it may differ by two units in the last place, and with it a code that lies on
# the edge.
#
# **Exercises.**
#
# 1. Prove that quantising $\gamma T$ again gives $T$ again, whatever $W$ was. What happens to
#    $\gamma$ from round to round, and where does it stop?
#    (`test_quantising_weights_again_keeps_their_codes`.)
# 2. Given the codes, which scale has the least squared error? Show that it is the mean magnitude of
#    the weights that kept a sign, and why a last layer would care and a hidden one wouldn't.
# 3. Change `rint` to `half_away` in a port of the module. Which of the vectors in
#    `minibit/vectors/absmean.json` catches it, and which catches `127 / m`? (`test_vectors`;
#    `test_activations_are_torchs_bit_for_bit` against PyTorch.)
# 4. Return $W + \lambda(\gamma T - W)$ with the derivative $1 - \lambda$, which is the true one
#    while no code flips and $\gamma$ is held. What happens at the end of the warm-up?
#    (`test_the_derivative_is_the_identity`.)
# 5. `fake_quant_weight` is not exactly $\gamma T$. For which $\gamma$ does it differ, by how much,
#    and why does the module keep it so?
#    (`test_fake_weights_are_codes_over_the_reciprocal_of_gamma`.)
#
# **Sources.**
#
# - Wang et al. (2023), *BitNet: Scaling 1-bit Transformers for Large Language Models*,
#   arXiv:2310.11453.
# - Ma et al. (2024), *The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits*,
#   arXiv:2402.17764.
# - Bengio, Léonard and Courville (2013), *Estimating or Propagating Gradients Through Stochastic
#   Neurons for Conditional Computation*, arXiv:1308.3432.
# - LeCun, Bottou, Bengio and Haffner (1998), *Gradient-Based Learning Applied to Document
#   Recognition*, Proceedings of the IEEE 86.
