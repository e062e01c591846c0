# %% [markdown]
# # Dual numbers: a derivative that rides along
#
# **The question.** A network has a hundred thousand weights, and somebody proposes to nudge all of
# them at once, each by its own small amount. How fast does the loss move? Can we know it exactly,
# in one pass, without keeping anything of the pass?
#
# We can, and it takes no backpropagation. This chapter builds the tool: a number that carries its
# own derivative. Everything that trains in this book stands on it.

# %%
import timeit
import tracemalloc
from math import sqrt

import matplotlib.pyplot as plt
import numpy as np

import minibit as mb
from minibit import plots
from minibit.dual.rules import CONSTANT, RULES

plots.style(show=True)
rng = np.random.default_rng(0)

# %% [markdown]
# ## A number with a tangent
#
# Add to the real numbers a symbol $\varepsilon$ with $\varepsilon^2 = 0$, as complex numbers add
# $i$ with $i^2 = -1$. A **dual number** $x + \dot x\,\varepsilon$ has a *primal* $x$ and a
# *tangent* $\dot x$. Multiply two:
#
# $$(x + \dot x\,\varepsilon)(y + \dot y\,\varepsilon) = xy + (\dot x y + x \dot y)\,\varepsilon .$$
#
# The product rule falls out of the algebra. For every smooth function the Taylor series stops after
# the first power of $\varepsilon$: $f(x + \dot x\,\varepsilon) = f(x) + f'(x)\,\dot
# x\,\varepsilon$.

# %%
z = mb.Dual(3.0, 1.0) * mb.Dual(2.0, 4.0)
print("(3 + e)(2 + 4e) =", z.primal, "+", z.tangent, "e")
assert (z.primal, z.tangent) == (6.0, 14.0)

# %% [markdown]
# Two pictures of it. A dual number is a point of a curve with an arrow: where it is, and where it
# is going. And a product is an area: while both sides grow, two strips are added, $\dot x y$ and
# $x \dot y$. The corner is a small number times a small number, and that is what
# $\varepsilon^2 = 0$ drops.

# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.4))
fig.set_label(
    "Left: a curve with three arrows along it, each beginning at a dual number's primal and pointing "
    "as its tangent says. Right: a rectangle of 3 by 2 with a strip along two of its sides; the "
    "small corner where the strips would meet is left out."
)
grid = np.linspace(-0.4, 3.4, 200)
left.plot(grid, np.sin(grid) + grid / 3, color=plots.PALETTE[0])
for at in (0.3, 1.5, 2.7):
    here = np.sin(mb.Dual(at, 0.6)) + mb.Dual(at, 0.6) / 3
    end = at + 0.6, here.primal + here.tangent
    arrow = {"arrowstyle": "->", "color": plots.PALETTE[1], "lw": 1.8}
    left.annotate("", end, (at, here.primal), arrowprops=arrow)
    left.plot(at, here.primal, "o", color=plots.PALETTE[1])
left.annotate("primal", (0.3, 0.4), (0.7, 0.2), ha="left")
left.annotate("tangent", (0.9, 1.2), (-0.3, 1.1), ha="left")
left.set_ylim(-0.6, 1.95)
plots.label_axes(left, "x", "f(x)", "f of a dual number")
x, x_dot, y, y_dot, small = 3, 1, 2, 4, 0.2  # (3 + e)(2 + 4e), with e drawn as 0.2
for corner, width, height, name, colour in (
    ((0, 0), x, y, "$xy$ = 6", "#bbbbbb"),
    ((x, 0), small * x_dot, y, r"$\dot x y$ = 2", plots.PALETTE[5]),
    ((0, y), x, small * y_dot, r"$x \dot y$ = 12", plots.PALETTE[4]),
):
    right.add_patch(plt.Rectangle(corner, width, height, color=colour, ec="white"))
    middle = corner[0] + width / 2, corner[1] + height / 2
    right.text(*middle, name, ha="center", va="center", rotation=90 * (width < 1), color="black")
right.add_patch(
    plt.Rectangle((x, y), small * x_dot, small * y_dot, fill=False, ec="#888888", ls=":")
)
right.text(x + 0.75, y + 0.4, r"$\dot x \dot y\,\varepsilon^2 = 0$", va="center", color="#888888")
right.set(xlim=(0, 5), ylim=(0, 3))
right.grid(False)
plots.label_axes(right, r"$3 + \varepsilon$", r"$2 + 4\varepsilon$", "their product: 6 + 14 e")

# %% [markdown]
# Nothing in this needs scalars. With arrays for $x$ and $\dot x$, one pass through a function $f$
# gives the **Jacobian-vector product** (JVP) $J(x)\,v$: the derivative of the outputs along one
# direction $v$ of the inputs. Here is a network with a layer norm, written by someone who never
# heard of duals. `mb.jvp` runs it as it stands: NumPy asks each argument what `@` or `np.mean`
# means to it (`__array_ufunc__`, `__array_function__`), and a dual answers with a rule.


# %%
def layer_norm(x):
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)


def loss(weights, x, labels):
    h = x
    for w in weights[:-1]:
        h = np.maximum(layer_norm(h @ w.T), 0)  # (batch, n_out)
    logits = h @ weights[-1].T  # (batch, classes)
    z = logits - logits.max(axis=-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return -np.mean(log_p[np.arange(len(labels)), labels])


def draw_network(widths, dtype=np.float64):
    pairs = zip(widths[1:], widths[:-1], strict=True)
    return [(rng.standard_normal(s) / sqrt(s[1])).astype(dtype) for s in pairs]  # (n_out, n_in)


weights = draw_network([20, 16, 16, 5])
x, labels = rng.standard_normal((64, 20)), rng.integers(0, 5, 64)
v = [rng.standard_normal(w.shape) for w in weights]

value, slope = mb.jvp(loss, (weights, x, labels), (v, None, None))
print(f"loss {value:.4f}, moving at {slope:.4f} along v")
assert value == loss(weights, x, labels)  # the same bits as without a derivative

# %% [markdown]
# `None` says: the images and the labels stand still. They get no array of zeros; a constant costs
# nothing.
#
# ## Exact, where a difference quotient is not
#
# The obvious alternative runs the network twice, $(f(x + hv) - f(x - hv)) / 2h$. Then $h$ has to be
# chosen: if it is large, the curve bends, or a rectifier ($\max(x, 0)$) opens or closes between the
# two points (right of the dotted line, where the error jumps); if it is small, the subtraction
# cancels the leading digits. In float32 no $h$ is good.

# %%
steps = np.logspace(-10, 0, 41)


def moved(h, dtype=np.float64):
    return [(w + h * d).astype(dtype) for w, d in zip(weights, v, strict=True)]


def open_units(weights):
    """Tell which rectifiers are open, for every example: (layers, batch, n_out)."""
    h, is_open = x, []
    for w in weights[:-1]:
        h = np.maximum(layer_norm(h @ w.T), 0)
        is_open.append(h > 0)
    return np.array(is_open)


def central_difference(dtype, h):
    ahead, behind = moved(h, dtype), moved(-h, dtype)
    return (loss(ahead, x.astype(dtype), labels) - loss(behind, x.astype(dtype), labels)) / (2 * h)


errors = {
    dtype.__name__: [abs(central_difference(dtype, h) / slope - 1) for h in steps]
    for dtype in (np.float64, np.float32)
}
small = [w.astype(np.float32) for w in weights], x.astype(np.float32), labels
jvp32 = abs(mb.jvp(loss, small, (v, None, None))[1] / slope - 1)
print(f"float32: best difference {min(errors['float32']):.1e}, JVP {jvp32:.1e}")
assert min(errors["float32"]) > 3 * jvp32
assert min(errors["float64"]) < 1e-8
switched = np.array([(open_units(moved(h)) != open_units(moved(-h))).any() for h in steps])
first = int(np.argmax(switched))  # the least step over a kink
assert errors["float64"][first] > 1000 * errors["float64"][first - 1]

# %% tags=["hide-input"]
fig, axes = plt.subplots()
for (name, error), colour in zip(errors.items(), plots.PALETTE, strict=False):
    axes.loglog(steps, np.maximum(error, 1e-17), "o-", color=colour, label=f"difference, {name}")
axes.axhline(jvp32, color=plots.PALETTE[1], linestyle="--", label="JVP, float32: no h to choose")
axes.axvline(np.sqrt(steps[first - 1] * steps[first]), color="grey", linestyle=":")
axes.set(xlabel="step h", ylabel="relative error of the slope", title="A difference has a best h")
axes.legend(loc="lower right", frameon=True, edgecolor="none")

# %% [markdown]
# ## One rule table
#
# A rule is written once, as the formula of a textbook, with NumPy functions applied to primals and
# tangents. These are two of them, as they stand in `minibit/dual/rules.py`:
#
# ```python
# @rule(np.multiply)
# def _multiply(x, y, x_dot, y_dot):
#     return x * y, x_dot * y + x * y_dot
#
# @rule(np.true_divide)
# def _divide(x, y, x_dot, y_dot):
#     z = x / y
#     return z, (x_dot - z * y_dot) / y
# ```
#
# A rule does to a tangent only what is *linear* in it, and in fourteen ways: add, scale, matmul,
# sum, index, reshape and the like. So a tangent need not be an array. It may be `ZERO` (a
# constant), a dual (a derivative of a derivative), a stack of directions, or a recorder that writes
# the fourteen operations down, to transpose them: that would be reverse mode, out of the same
# rules. Functions that are flat wherever they have a slope (comparisons, rounding, `argmax`) need
# none. A function that has no rule and is not flat raises an error: no tangent gets lost silently.

# %%
print(f"{len(RULES)} functions have a rule, {len(CONSTANT)} are constant")
assert len(RULES) >= 60
try:
    mb.jvp(np.linalg.svd, (np.eye(2),), (np.eye(2),))
except mb.NoRuleError as error:
    print(error)
else:
    raise AssertionError("svd has no rule")

# %% [markdown]
# ## Derivatives inside derivatives
#
# Since a tangent may be a dual, JVPs nest: $f''$ is the JVP of a JVP. There is a known trap,
# *perturbation confusion*. In
#
# $$\frac{d}{dx}\Big( x \cdot \frac{d}{dy}(x + y)\Big|_{y=1} \Big)\Big|_{x=1}$$
#
# the inner derivative is 1, so the answer is 1. A program that uses the *same* $\varepsilon$ for
# both counts the movement of $x$ as a movement of $y$, and gets 2. Every call of `jvp` therefore
# takes a new integer tag, and treats a dual with another tag as a constant.

# %%
D = mb.derivative
confusing = D(lambda x: x * D(lambda y: x + y)(1.0))(1.0)
inner = (mb.Dual(1.0, 1.0) + mb.Dual(1.0, 1.0)).tangent  # d(x + y) with x and y moving on one e
print("with tags:", confusing, " with one epsilon for both:", inner)
assert confusing == 1.0
assert inner == 2.0
assert D(D(D(np.sin)))(0.0) == -1.0

# %% [markdown]
# ## Many directions at once
#
# The primal pass is the same for every direction, so `jvp_batch` runs it once. A tangent then has
# one extra *leading* axis, `(directions, *shape)`. That axis is easy to get wrong: the tangents of
# a vector, `(directions, n)`, added to a matrix `(m, n)` would broadcast their directions over its
# rows. So a stack of directions is a type of its own: to a rule it looks like a single tangent with
# a single tangent's axes.

# %%
directions = [rng.standard_normal((8, *w.shape)) for w in weights]
_, slopes = mb.jvp_batch(loss, (weights, x, labels), (directions, None, None))  # (directions,)
singles = [([d[i] for d in directions], None, None) for i in range(8)]
loop = [mb.jvp(loss, (weights, x, labels), single)[1] for single in singles]
assert slopes.shape == (8,)
assert np.allclose(slopes, loop, rtol=1e-10)

# %% [markdown]
# ## What it costs
#
# A layer that computes $XW^\top$ must also compute $\dot X W^\top + X \dot W^\top$: three products
# for one, two where the input stands still. For the network of this book (784-256-256-256-10) the
# first layer is most of the work. A *pass* is the time of one run without a derivative. The count
# of products is exact; times depend on the machine.

# %%
widths = [784, 256, 256, 256, 10]
big = draw_network(widths, np.float32)
big_v = [rng.standard_normal(w.shape, dtype=np.float32) for w in big]
images, digits = rng.random((1024, 784), dtype=np.float32), rng.integers(0, 10, 1024)


def seconds(run, repeats=5):
    """Shortest of some runs: what the machine can do when nobody disturbs it."""
    return min(timeit.repeat(run, number=1, repeat=repeats))


products = [m * n for m, n in zip(widths[1:], widths[:-1], strict=True)]
counted = (2 * products[0] + 3 * sum(products[1:])) / sum(products)
plain = seconds(lambda: loss(big, images, digits))
single = seconds(lambda: mb.jvp(loss, (big, images, digits), (big_v, None, None)))
eight = [np.stack([d] * 8) for d in big_v]
batch = seconds(lambda: mb.jvp_batch(loss, (big, images, digits), (eight, None, None)), 3) / 8
number = mb.Dual(1.0, 1.0)
overhead = seconds(lambda: [number * number for _ in range(1000)]) / 1000
print(f"plain {1e3 * plain:.1f} ms; JVP {single / plain:.2f} passes ({counted:.2f} in products)")
print(f"each of 8 directions {batch / plain:.2f} passes; one operation {1e6 * overhead:.0f} us")
assert abs(counted - 2.4) < 0.01
assert single / plain < 6  # wide, for a machine that does other things too
assert 1e-7 < overhead < 1e-3

# %% [markdown]
# The other cost is memory. A tangent lives as long as its primal, so a JVP holds the current
# activations a few times over, whatever the depth. Reverse mode keeps those of *every* layer until
# it comes back for them.


# %%
def peak(depth):
    """Most bytes that a JVP through `depth` layers of 256 holds at a time, beyond its arguments."""
    net = draw_network([256] * (depth + 1), np.float32)
    images = rng.random((1024, 256), dtype=np.float32)
    tracemalloc.start()
    mb.jvp(loss, (net, images, digits), (net, None, None))
    bytes_held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return bytes_held


activations = 1024 * 256 * 4  # bytes of one layer
print("activations held:", {depth: round(peak(depth) / activations, 1) for depth in (4, 8, 32)})
assert peak(32) < 1.1 * peak(4)

# %% [markdown]
# ## A gradient from slopes
#
# A JVP is one number per direction: the gradient's projection $\nabla f \cdot v$. Baydin et al.
# (2022) turn it into an estimate of the gradient, $g = (\nabla f \cdot v)\,v$ with random $v$. When
# the mean $E[vv^\top]$ is the identity $I$, the estimate is unbiased:
# $E[g] = E[vv^\top]\,\nabla f = \nabla f$. But in high dimension $v$ is almost at a right angle to
# the gradient. The mean over $K$ directions in $n$ dimensions has a cosine of about
# $\sqrt{K / (K + n)}$ to the gradient.

# %%
last = weights[-1]  # (5, 16)
n = last.size
assert n == 80


def of_last(w):
    return loss([*weights[:-1], w], x, labels)


gradient = mb.jacfwd(of_last)(last)  # n directions: the whole gradient
counts = np.array([1, 4, 16, 64, 256, 1024])
cosines = []
for count in counts:
    tries = []
    for _ in range(20):
        _, g = mb.forward_gradient(of_last, last, rng.choice([-1.0, 1.0], (count, *last.shape)))
        tries.append(np.sum(g * gradient) / (np.linalg.norm(g) * np.linalg.norm(gradient)))
    cosines.append(np.mean(tries))
expected = np.sqrt(counts / (counts + n))
print("directions: cosine ", *(f"{k}: {c:.2f} " for k, c in zip(counts, cosines, strict=True)))
assert np.all(np.abs(np.array(cosines) - expected) < 0.1)

# %% tags=["hide-input"]
fig, axes = plt.subplots()
axes.semilogx(counts, cosines, "o", color=plots.PALETTE[0], label="measured, mean of 20")
axes.semilogx(counts, expected, "--", color=plots.PALETTE[1], label=r"$\sqrt{K/(K+n)}$")
axes.axvline(n, color="grey", linestyle=":", label=f"n = {n} parameters")
axes.set(xlabel="directions K", ylabel="cosine to the gradient", title="K directions, n unknowns")
axes.legend()

# %% [markdown]
# So forward mode cannot give a full gradient cheaply. That takes as many directions as there are
# parameters: for the 80 above that is nothing, for the 334,336 weights of the big network it would
# be that many tangent passes, where reverse mode takes one. Chapter 7 trains anyway. It asks of
# each direction only whether the loss rises or falls along it, and keeps that answer, one trit.

# %%
size = sum(w.size for w in big)
print(f"{size:,} weights: one gradient would take {size * batch / 3600:.1f} hours forwards")
assert size == 334_336
assert size * batch / plain > 100_000  # passes

# %% [markdown]
# ## Kinks
#
# At a kink there is no derivative, and in a network of integers kinks are not rare: the inputs of a
# rectifier are often exactly zero. So the slope there is a convention, written down and tested:

# %%
assert D(lambda x: np.maximum(x, 0))(0.0) == 0.0  # a tie with a constant: the constant wins
assert D(lambda x: np.maximum(x, 3 * x))(0.0) == 2.0  # a tie of two duals is shared
assert D(np.abs)(0.0) == 0.0
assert D(lambda x: np.linalg.norm(x * np.ones(3)))(0.0) == 0.0  # the least subgradient
assert D(lambda x: x**0)(0.0) == 0.0  # 0 ** 0 = 1 does not move
assert D(lambda x: np.clip(x, -1, 1))(1.0) == 0.0  # torch says 1 here
assert D(np.round)(0.5) == 0.0

# %% [markdown]
# Rounding is flat almost everywhere, which is true and useless: no slope comes through a quantiser.
# `straight_through` replaces it by the identity's slope, `custom_jvp` by any rule of yours,
# `stop_gradient` by none.

# %%
ternary = mb.straight_through(lambda w: np.clip(np.rint(w), -1, 1))
out, tangent = mb.jvp(ternary, (np.array([-1.7, 0.2, 0.9]),), (np.array([1.0, 2.0, 3.0]),))
print(out, tangent)
assert out.tolist() == [-1.0, 0.0, 1.0]
assert tangent.tolist() == [1.0, 2.0, 3.0]

# %% [markdown]
# **Limits.** Real floating arrays only: integers and complex numbers carry no tangent. Code may
# write into arrays that came from a dual (`y = np.zeros_like(x)`, then `y[i] = x[i] * y[i - 1]`;
# views are written through, and the caller's arrays stay as they are). Code that writes a dual into
# a plain array, or leaves NumPy (`math.sin`, `float(x)`), stops with an error. Matrix
# decompositions have no rules here. `jvp_batch` holds `directions` copies of the current
# activations: for large networks, take the directions in groups. An operation costs some
# microseconds of Python; only with arrays of some thousand entries is that little.
#
# **Exercises.**
#
# 1. Why is `x_dot @ y_dot` missing from the matmul rule? The case `matrix-product` of
#    `minibit/vectors/dual.json` knows what happens with it.
# 2. Plant a sign error in a rule of `minibit/dual/rules.py` and run
#    `test_a_planted_sign_error_is_detected`: it plants one in every rule, one after the other.
#    Which errors could it not see?
# 3. Over *all* $2^n$ vectors of signs the forward gradient is exact. Show why, then read
#    `test_a_forward_gradient_over_every_sign_vector_is_the_gradient`.
# 4. Write a `custom_jvp` for $\log(1 + e^x)$ whose slope does not overflow at $x = 1000$;
#    `test_a_custom_rule_replaces_the_derivative_and_nests` shows the form.
# 5. The tangent of `np.prod` does not divide. What would go wrong in
#    `test_the_slope_at_a_kink_is_the_documented_one` ("prod with one zero") if it did?
#
# **Sources.**
#
# - Wengert (1964), *A Simple Automatic Derivative Evaluation Program*, Communications of the ACM 7.
# - Baydin, Pearlmutter, Radul and Siskind (2015), *Automatic Differentiation in Machine Learning: a
#   Survey*, arXiv:1502.05767.
# - Baydin, Pearlmutter, Syme, Wood and Torr (2022), *Gradients without Backpropagation*,
#   arXiv:2202.08587.
