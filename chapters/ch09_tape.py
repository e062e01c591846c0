# %% [markdown]
# # Reverse mode out of forward mode
#
# **The question.** A forward pass with a tangent tells one slope of the loss. A network of 334,336
# weights has as many slopes, and almost everybody trains with all of them, from one backward pass.
# How does one pass find them all? What does it have to keep? And how good is the training that we
# have done without it?
#
# The usual answer to the first question is a second set of rules, one for each function, that run
# backwards. We need none. The rules of chapter 1 hold all there is to know; it is enough to write
# down what they do to a tangent, and to read that from the end.

# %%
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread, so that the times below compare
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import time
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np

from minibit import diagrams, noise, plots
from minibit.absmean import fake_quant_weight
from minibit.bench import expect_time
from minibit.datasets import load_mnist, split
from minibit.dual import forward_gradient, jvp, straight_through
from minibit.experiments.mlp import accuracy, straight_through_run
from minibit.layers import cross_entropy, init_mlp, mlp, ternary_linear
from minibit.results import load_results
from minibit.tape import Adam, grad, value_and_grad, vjp
from minibit.tape.recorder import Tape
from minibit.tape.transposes import fit

plots.style(show=True)
rng = np.random.default_rng(0)

# %% [markdown]
# ## A tangent without values
#
# A rule does to tangents only what is linear in them, in fourteen ways: add, scale by an array,
# multiply by a matrix, sum, index, ... (chapter 1). So at a given point a whole function is, for
# its tangents, a **program of linear steps**, whatever it does to its values. Give it a tangent
# that has no values: an object that answers each operation with a note of what was asked. Here is a
# layer of a network and what its `jvp` wrote down:


# %%
def layer(x, w):
    return np.sum(np.tanh(x @ w.T) ** 2) / 2


x, w = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))
out, pullback = vjp(layer, (x, w))
print(pullback)
assert "t4 = (5, 3) @ t2" in str(pullback)

# %% [markdown]
# A shape in the place of an operand is an array that the function had computed anyway:
# `t4 = (5, 3) @ t2` multiplies by $x$. Two tangents, $\dot x$ and $\dot w$, go in; no line has an
# unknown factor. The program is a product of sparse matrices,
#
# $$J = A_n \cdots A_2 A_1 .$$
#
# `jvp` multiplies it from the right, by a direction $v$: one column of answers, $J v$, whatever the
# number of outputs. The loss has *one* output. Multiply from the left instead, by a **cotangent**
# $c$ of the outputs: $c^T A_n \cdots A_1$, one row, and for $c = 1$ this row is the gradient. From
# the left means: the last line first, and each line transposed,
#
# $$t_k = \sum_j A_{kj}\, t_j \qquad\longrightarrow\qquad c_j \mathrel{+}= A_{kj}^T\, c_k, \quad k =
# n, \ldots, 1 .$$
#
# That is the whole of reverse mode, and it fits in a few lines:

# %%
tape = Tape()  # a list of lines; each holds its terms: j, the transpose of A_kj, what A was given
recorders = tuple(tape.variable(a.shape, a.dtype) for a in (x, w))  # t0 and t1: no values
_, last = jvp(layer, (x, w), recorders)

c = [np.zeros(shape) for shape, _, _ in tape.program]  # a cotangent for every variable
c[last.number] = np.ones(())
for k in reversed(range(len(tape.program))):
    for j, transpose, arrays in tape.program[k].terms:
        piece = transpose(c[k], c[j].shape, False, *arrays)
        c[j] = c[j] + fit(piece, c[j].shape, c[j].dtype)

y = np.tanh(x @ w.T)
by_hand = (y * (1 - y * y)).T @ x  # the chain rule, written out
assert np.allclose(c[1], by_hand)
assert np.array_equal(c[1], pullback(1.0)[1])
assert np.array_equal(c[1], grad(lambda w: layer(x, w))(w))

# %% [markdown]
# Both modes on one graph, for $L = w_1 w_2 + \sin w_1$ at $w_1 = 2$ and $w_2 = 3$. **Forwards**
# (left), a tangent enters at *one* input, here $w_1$, and goes along with the values: at the end it
# is the slope of $L$ along that input. **Backwards** (right), a 1 enters at the output and goes
# against the arrows, times the same derivatives: each input gets its slope, all from one pass.
# Where two arrows meet, what they bring is added.

# %%
w1, w2 = 2.0, 3.0
_, slope = jvp(lambda a, b: a * b + np.sin(a), (w1, w2), (1.0, 0.0))
slopes = vjp(lambda a, b: a * b + np.sin(a), (w1, w2))[1](1.0)
print(f"forwards: {slope:.2f}; backwards: {slopes[0]:.2f} and {slopes[1]:.2f}")
assert np.allclose([slope, *slopes], [w2 + np.cos(w1), w2 + np.cos(w1), w1])

# %% tags=["hide-input"]
axes = diagrams.drawing(
    10.2, 2.8, "One graph: tangents forwards (left), cotangents backwards (right)"
)
axes.figure.set_label(
    "A graph of two inputs, their product, a sine, and their sum L, drawn twice. Left, blue arrows "
    "lead from the inputs to L with a tangent at each node: 1 and 0 at the inputs, 2.58 at L. "
    "Right, orange arrows lead back from L, with 1 at L, 2.58 at the first input, 2 at the second."
)
places = {
    "w1": (0.75, 2.05, f"$w_1$ = {w1:g}"),
    "w2": (0.75, 0.45, f"$w_2$ = {w2:g}"),
    "sine": (2.5, 2.05, f"sine = {np.sin(w1):.2f}"),
    "product": (2.5, 0.45, f"product = {w1 * w2:g}"),
    "L": (4.2, 1.25, f"$L$ = {w1 * w2 + np.sin(w1):.2f}"),
}
edges = [("w1", "sine"), ("w1", "product"), ("w2", "product"), ("sine", "L"), ("product", "L")]
forwards = {"w1": 1, "w2": 0, "sine": np.cos(w1), "product": w2, "L": slope}
backwards = {"w1": slopes[0], "w2": slopes[1], "sine": 1, "product": 1, "L": 1}
for shift, numbers, colour in ((0, forwards, plots.PALETTE[0]), (5.3, backwards, plots.PALETTE[1])):
    nodes = {
        name: diagrams.box(axes, across + shift, up, text, colour="#888888")
        for name, (across, up, text) in places.items()
    }
    for tail, head in edges:
        ends = (nodes[tail].right, nodes[head].left)
        diagrams.arrow(axes, *(ends if numbers is forwards else ends[::-1]), colour=colour)
    for name, value in numbers.items():
        across, up = nodes[name].top
        axes.text(across, up + 0.1, f"{value:.3g}", ha="center", color=colour, fontsize=10)

# %% [markdown]
# The module does the same and takes care of memory: a cotangent that nothing has reached is `None`
# instead of zeros, one that nobody else sees is added to in place, and `grad` drops each line once
# it is read.
#
# How do we know that a transpose is right? $A^T$ is defined by
# $\langle c, A v\rangle = \langle A^T c, v\rangle$, so two numbers have to agree, one from each
# mode, for *any* $c$ and $v$. The tests hold that for every rule of the table. Here for a network
# of three layers with a norm:

# %%
params = {f"w{i}": rng.standard_normal((20, 20)) for i in (1, 2, 3)}
v = {name: rng.standard_normal((20, 20)) for name in params}
batch = rng.standard_normal((50, 20))
logits, tangent = jvp(lambda p: mlp(p, batch), (params,), (v,))
cotangent = rng.standard_normal(logits.shape)
(back,) = vjp(lambda p: mlp(p, batch), (params,))[1](cotangent)
forward = np.vdot(cotangent, tangent)
reverse = sum(np.vdot(back[name], v[name]) for name in params)
print(f"<c, J v> = {forward:.12f}, <J^T c, v> = {reverse:.12f}")
assert np.isclose(forward, reverse, rtol=1e-12)

# %% [markdown]
# One table has a second advantage: what was said once about derivatives holds in both directions. A
# quantiser with the straight-through derivative (chapter 4) passes cotangents as it passes
# tangents, and a gradient is NumPy code again, so it can be differentiated: along one direction
# this is a column of the Hessian's product, $H v$, without $H$.

# %%
w = rng.standard_normal((4, 3)).astype(np.float32)
target = rng.standard_normal((4, 3)).astype(np.float32)
slope = grad(lambda w: np.sum(fake_quant_weight(w) * target))(w)
assert np.array_equal(slope, target)  # as if there were no rounding

quadratic = rng.standard_normal((3, 3))
_, product = jvp(grad(lambda z: z @ quadratic @ z / 2), (np.ones(3),), (np.array([1.0, 0, 0]),))
assert np.allclose(product, (quadratic + quadratic.T)[:, 0] / 2)

# %% [markdown]
# ## What it costs: time
#
# The unit is a forward pass of the paper's network, 784-256-256-256-10, on 1024 images.

# %%
parts = split(load_mnist())
train_x = (parts.train_x[:20_000] / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)
train_y = parts.train_y[:20_000].astype(np.int64)
codes = init_mlp((784, 256, 256, 256, 10), lambda k, s: noise.initial_codes(0, s, 0.7, layer=k))
weights = {name: w.astype(np.float32) for name, w in codes.items()}
along = {name: rng.standard_normal(w.shape, dtype=np.float32) for name, w in weights.items()}
size = sum(w.size for w in weights.values())
images, labels = train_x[:1024], train_y[:1024]


def loss(params, images=images, labels=labels):
    return cross_entropy(mlp(params, images, logit_scale=0.12), labels)


work = {
    "a forward pass": lambda: loss(weights),
    "jvp: one slope": lambda: jvp(loss, (weights,), (along,)),
    f"grad: {size:,} slopes": lambda: grad(loss)(weights),
}
seconds = {name: [] for name in work}
for _ in range(9):
    for name, call in work.items():
        begin = time.perf_counter()
        call()
        seconds[name].append(time.perf_counter() - begin)
base = min(seconds["a forward pass"])
passes = {name: min(each) / base for name, each in seconds.items()}
for name, each in passes.items():
    print(f"{name:22} {each:4.1f} forward passes")
one_slope, all_slopes = list(passes.values())[1:]
print(
    f"all slopes by jvp: {one_slope * size:,.0f} forward passes, "
    f"{base * one_slope * size / 3600:.1f} h"
)
expect_time(1 < one_slope < 10, "a slope costs more than one forward pass and less than ten")
expect_time(1 < all_slopes < 20, "all slopes cost more than one forward pass and less than twenty")

# %% [markdown]
# Both modes do two more products per layer, of the sizes that the layer has:
# $\dot h W^T + h \dot W^T$ the one, $c W$ and $c^T h$ the other (the first layer saves one, as its
# inputs don't move). So a tangent and a whole gradient cost about the same. That is no accident: it
# is the same program, and a matrix has as many entries as its transpose.
#
# ## What it costs: memory
#
# The price is elsewhere. `jvp` may forget each primal as soon as the next one is computed. Reverse
# mode begins with the *last* line, and that needs what the last layer computed; the first line
# waits for the first layer's. So everything that a line scales by is held until the way back. We
# give the network more and more hidden layers, and measure the most memory that is allocated at any
# one time beside weights and images:


# %%
def most_allocated(call):
    tracemalloc.start()
    call()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


depths = (1, 2, 4, 8, 16)
narrow = images[:, :256].copy()
measurements = {"forward pass": [], "jvp": [], "grad": [], "bytes of the tape": []}
for depth in depths:
    deep = {f"w{k}": along["w2"] for k in range(1, depth + 1)} | {f"w{depth + 1}": along["w4"]}

    def deep_loss(params):
        return loss(params, narrow)

    measurements["forward pass"].append(most_allocated(lambda p=deep: deep_loss(p)))
    measurements["jvp"].append(most_allocated(lambda p=deep: jvp(deep_loss, (p,), (p,))))
    measurements["grad"].append(most_allocated(lambda p=deep: grad(deep_loss)(p)))
    measurements["bytes of the tape"].append(vjp(deep_loss, (deep,))[1].nbytes)
growth = {
    name: (counts[-1] - counts[-2]) / (8 * 1024 * 256 * 4) for name, counts in measurements.items()
}
for name, each in growth.items():
    print(
        f"{name:18} {measurements[name][-1] / 1e6:5.1f} MB; each layer adds {each:4.1f} arrays of "
        "activations"
    )
assert growth["forward pass"] < 0.05
assert growth["jvp"] < 0.05
assert growth["grad"] > 3
assert measurements["jvp"][-1] < 0.4 * measurements["grad"][-1]

# %% tags=["hide-input"]
fig, axes = plt.subplots()
for name, counts in measurements.items():
    dashed = "--" if name == "bytes of the tape" else "-"
    axes.plot(depths, np.array(counts) / 1e6, dashed, marker="o", label=name)
plots.label_axes(
    axes, "hidden layers of 256 units", "MB", "Memory beside weights and batch of 1024"
)

# %% [markdown]
# Forward mode's line is flat: depth is free. Reverse mode holds several arrays for every layer: the
# input of the product, the mask of the rectifier, and what layer norm multiplies by. (Hand-written
# backward passes hold less, and *checkpointing* computes again instead of holding. Then the line is
# less steep, but memory still grows with the depth.)
#
# ## Between the two: forward gradients
#
# Could a few slopes do? Take random directions $v_d$ with independent entries of mean 0 and
# variance 1. Then
#
# $$g = \frac1K \sum_{d=1}^{K} (\nabla L \cdot v_d)\, v_d, \qquad E[g] = \nabla L$$
#
# is an unbiased estimate from $K$ forward tangents, a **forward gradient**. How near does it come?
# Its error is $\nabla L$ seen through $K$ random directions in $n$ dimensions: the cosine of the
# angle between estimate and truth is about $\sqrt{K / (K + n)}$. A small network, digits of 14 x 14
# pixels and 5,520 weights:

# %%
pooled = train_x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)
test_pooled = parts.validation_x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)
test_pooled = (test_pooled / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)
sizes = {"w1": (24, 196), "w2": (24, 24), "w3": (10, 24)}
small = {name: rng.standard_normal(s, dtype=np.float32) for name, s in sizes.items()}
n = sum(w.size for w in small.values())


def small_loss(params, x, y):
    return cross_entropy(mlp(params, x, logit_scale=0.2), y)


def estimate(params, x, y, count):
    v = {k: rng.standard_normal((count, *s), dtype=np.float32) for k, s in sizes.items()}
    return forward_gradient(lambda p: small_loss(p, x, y), params, v)[1]


def flat(tree):
    return np.concatenate([a.ravel() for a in tree.values()])


x, y = pooled[:256], train_y[:256]
exact = flat(grad(small_loss)(small, x, y))
counts, cosines = 2 ** np.arange(0, 10), []
for count in counts:
    g = flat(estimate(small, x, y, int(count)))
    cosines.append(g @ exact / np.linalg.norm(g) / np.linalg.norm(exact))
expected = np.sqrt(counts / (counts + n))
print(f"cosine with {counts[-1]} directions {cosines[-1]:.3f}, expected {expected[-1]:.3f}")
assert abs(cosines[-1] - expected[-1]) < 0.05
assert n == 5520

# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(5, 3.2))
axes.loglog(counts, np.abs(cosines), "o", label="measured")
axes.loglog(counts, expected, "-", label=r"$\sqrt{K/(K+n)}$")
axes.loglog(
    [counts[0], counts[-1]], [1, 1], "--", color="#888888", label="exact: two tangents' cost"
)
plots.label_axes(
    axes, "directions K", "cosine to the gradient", f"Forward gradients in {n:,} dimensions"
)
axes.legend(loc="center left", bbox_to_anchor=(0, 0.72))

# %% [markdown]
# 512 directions for a cosine of 0.3; the exact gradient is there for the price of one or two. Does
# training feel it? The same start, the same 100 batches, Adam with the same settings (a learning
# rate of 0.2, falling to 0: of 0.1, 0.2 and 0.4 none is much better for any of them):


# %%
def train_small(gradient, steps=100):
    adam = Adam(small)
    for step in range(steps):
        i = noise.integers(0, len(train_y), 256, domain=noise.USER, step=step)
        adam.step(gradient(adam.params, pooled[i], train_y[i]), lr=0.2 * (1 - step / steps))
    return np.mean(mlp(adam.params, test_pooled).argmax(axis=1) == parts.validation_y)


gradients = {
    "1 direction": lambda p, x, y: estimate(p, x, y, 1),
    "8 directions": lambda p, x, y: estimate(p, x, y, 8),
    "32 directions": lambda p, x, y: estimate(p, x, y, 32),
    "exact": grad(small_loss),
}
reached = {name: train_small(gradient) for name, gradient in gradients.items()}
least = dict.fromkeys(gradients, np.inf)
for _ in range(15):
    for name, gradient in gradients.items():
        begin = time.perf_counter()
        gradient(small, x, y)
        least[name] = min(least[name], time.perf_counter() - begin)
for name, share in reached.items():
    print(
        f"{name:14} {share:.1%} of the validation images, {1e3 * least[name]:5.1f} ms per gradient"
    )
shares = list(reached.values())
assert shares == sorted(shares)
assert shares[-1] > shares[-2] + 0.02
expect_time(
    least["32 directions"] > 2 * least["exact"], "32 directions take over twice an exact gradient"
)

# %% [markdown]
# A step of 32 directions costs several times an exact one, and does less. An estimate that must
# tell every weight its slope wastes its measurements. noise_step asks for less: not the gradient,
# but which few of many proposed moves are good; and it measures each move in the place where it is
# cheap (chapter 7b).
#
# ## The baseline
#
# Here, then, is what everybody else does with a ternary network. Keep **latent** float weights $w$;
# compute with their codes, and let the derivative pass through the rounding as if it were not
# there:
#
# $$\text{codes} = \mathrm{clip}(\mathrm{round}(w), -1, 1), \qquad \dot{\text{codes}} = \dot w .$$
#
# Move the latent weights by **Adam**: a running mean $m$ of the gradient, divided by the root of a
# running mean $v$ of its square,
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1)\, g, \quad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2,
# \quad
# w \leftarrow w - \eta\, \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} .$$
#
# A weight whose slope keeps its sign moves by about $\eta$ per step, whatever the slope's size;
# after some dozens of such steps it crosses $\pm\frac12$ and its code flips. Six lines:

# %%
ternary = straight_through(lambda w: np.clip(np.rint(w), -1, 1))


def latent_loss(params, x, y):
    linear = lambda h, w: ternary_linear(h, ternary(w))  # noqa: E731
    return cross_entropy(mlp(params, x, logit_scale=0.12, linear=linear), y)


adam = Adam({name: 0.5 * a for name, a in along.items()}, lr=0.02)
losses, latent = [], []
for step in range(60):
    latent.append(adam.params["w4"][0, :40])
    i = noise.integers(1, len(train_y), 512, domain=noise.USER, step=step)
    value, gradient = value_and_grad(latent_loss)(adam.params, train_x[i], train_y[i])
    adam.step(gradient)
    losses.append(float(value))
print(f"loss {losses[0]:.2f}, after 60 steps {losses[-1]:.2f}")
assert losses[-1] < 0.5 < losses[0]

# %% [markdown]
# On the left the rounding, as the two passes see it: stairs forwards, whose slope is 0, and a
# diagonal backwards, whose slope is 1. On the right four of the latent weights during these steps.
# They move a little in each step, but the network notices only when one crosses a dashed line: then
# its code changes.

# %%
walks = np.array(latent)  # (steps, weights)
turns = np.diff(np.clip(np.rint(walks), -1, 1), axis=0) != 0  # (steps - 1, weights)
moving = np.argsort(-turns.sum(axis=0))[:4]
print("changes of their codes:", turns[:, moving].sum(axis=0))
assert turns[:, moving].any(axis=0).all()

# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.2))
fig.set_label(
    "Left: stairs at -1, 0 and 1, and a diagonal through them. Right: four lines that wander over 60 "
    "steps, some of them across dashed lines at -0.5 and 0.5."
)
grid = np.linspace(-2, 2, 401)
left.plot(grid, np.clip(np.rint(grid), -1, 1), label="forwards: the code")
left.plot(grid, grid, "--", label="backwards: as if it were this")
plots.label_axes(left, "latent weight", "what the pass sees", "Rounding, straight through")
right.plot(walks[:, moving])
for edge in (-0.5, 0.5):
    right.axhline(edge, color="#888888", linestyle="--", linewidth=1)
plots.label_axes(right, "step", "latent weight", "A code changes at a dashed line")

# %% [markdown]
# What comes out are int8 codes for the very network that noise_step trains: no scales, no biases,
# and the same images (shifted by a pixel now and then), the same test. `minibit experiment mlp`
# runs 200, 800 and 2,400 steps of 512 images with three seeds, on all training images; learning
# rate, batch and shifts were chosen before, on the last 5,000 of them. Beside it runs noise_step's
# preset `small`; the crosses are the ends of all its presets (chapter 7c).

# %%
results = load_results("mlp")
presets = load_results("train")["rows"]

print(f"{results['command']}, on {results['environment']['cpu']}")
for row in results["rows"]:
    share = f"{row['test_accuracy']:.2%} ±{row['test_accuracy_std']:.2%}"
    shifted = "" if row["shifts"] > 1 else ", no shifts"
    print(
        f"{row['method'] + shifted:36}{row['steps']:>6} steps  {share}  {row['cpu_seconds']:5.1f} s"
    )
adam_rows = {
    row["steps"]: row
    for row in results["rows"]
    if row["method"].startswith("Adam") and row["shifts"] > 1
}
by_preset = {row["preset"]: row for row in presets}
assert adam_rows[800]["test_accuracy"] > 0.978
assert adam_rows[2400]["test_accuracy"] > by_preset["accurate"]["test_accuracy"]
assert adam_rows[800]["cpu_seconds"] < by_preset["small"]["cpu_seconds"]
ours = np.array(adam_rows[2400]["runs"][0]["curve"])  # (marks, 3): steps, CPU seconds, accuracy
theirs = np.array(results["rows"][-1]["runs"][0]["curve"])
for column in (0, 1):
    assert (np.interp(theirs[:, column], ours[:, column], ours[:, 2]) > theirs[:, 2]).all()

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(9.2, 3.6), sharey=True)
for row in results["rows"]:
    if row["shifts"] == 1:
        continue
    colour = plots.PALETTE[1 if row["method"].startswith("noise_step") else 0]
    shade = {200: 0.35, 800: 0.65}.get(row["steps"], 1.0) if colour == plots.PALETTE[0] else 1.0
    steps, cpu, shares = np.array(row["runs"][0]["curve"]).T
    for panel, along_x in zip(axes, (steps, cpu), strict=True):
        name = f"{row['method'].removesuffix(', straight-through')}, {row['steps']:,} steps"
        panel.plot(along_x, 100 * (1 - shares), color=colour, alpha=shade, label=name)
for row in presets:
    for panel, abscissa in zip(axes, (row["steps"], row["cpu_seconds"]), strict=True):
        panel.plot(
            abscissa, 100 * (1 - row["test_accuracy"]), "x", color=plots.PALETTE[1], markersize=7
        )
        panel.annotate(
            row["preset"],
            (abscissa, 100 * (1 - row["test_accuracy"])),
            xytext=(4, 4),
            textcoords="offset points",
        )
for panel in axes:
    panel.set(xscale="log", yscale="log", yticks=[1, 2, 5, 10, 20, 50])
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("")
plots.label_axes(axes[0], "steps", "test error, %", "The same network, step by step")
plots.label_axes(axes[1], "CPU seconds", "", "By the time it takes")
axes[0].legend(loc="lower left", fontsize="small")
axes[1].get_legend().remove()

# %% [markdown]
# No comfort for the forward-only side: the baseline is more accurate at every number of steps and
# at every number of seconds. Its shortest run, made again on this machine:

# %%
again = accuracy(straight_through_run(0, 200))
before = adam_rows[200]["runs"][0]["test_accuracy"]
print(f"200 steps, seed 0: {again:.2%} of the test images; the file has {before:.2%}")
assert abs(again - before) < 0.005

# %% [markdown]
# What does it hold, and what does it leave? While it trains: the latent weights, their gradient,
# Adam's two means, and the tape.

# %%
_, pullback = vjp(lambda p: latent_loss(p, images[:512], labels[:512]), (adam.params,))
megabytes = {
    "latent weights": 4 * size,
    "gradient": 4 * size,
    "Adam's means": adam.nbytes,
    "tape, 512 images": pullback.nbytes,
}
packed = -(-size // 5)
for name, count in megabytes.items():
    print(f"{name:18} {count / 1e6:5.2f} MB")
print(f"the codes that are left, five a byte: {packed / 1e3:.1f} KB")
print(f"noise_step's log of the preset small: {by_preset['small']['log_bytes'] / 1e3:.1f} KB")
assert sum(megabytes.values()) > 150 * packed
assert by_preset["small"]["log_bytes"] < packed

# %% [markdown]
# | | forward: `jvp`, noise_step | reverse: `grad`, Adam |
# |---|---|---|
# | one pass gives | the slope of all outputs along one direction | the slope of one output along all directions |
# | it holds | one layer at a time | all layers of the batch |
# | training holds | int8 codes, a few sums within a step | latent floats, gradient, two means: 16 bytes per weight, and the tape |
# | what is left | the codes, or the log that made them: each step a few integers | the codes |
# | on many machines | integers travel | gradients travel |
# | accuracy here | near 98%, for minutes of CPU time | the same for seconds |
#
# The forward-only road buys memory and a history in integers, and pays with time. From here on,
# language models are trained with the right column; what forward mode can do for them is an
# experiment of its own.
#
# **Limits.**
#
# - `fn` must be NumPy code that the rule table covers; writing into an array is refused (chapter
#   1).
# - The whole tape is held: no checkpointing. A pass through 16 layers holds 16 layers.
# - An array that a line scales by is held, not copied. Whoever changes it before the pullback is
#   called gets a wrong gradient.
# - Straight-through is not the derivative of rounding: the gradient is that of another function.
#   How far one may trust it, only experience can say.
# - Times and CPU seconds are those of one machine, one thread, and other work beside it. The
#   forward-gradient runs are one seed each.
#
# **Exercises.**
#
# 1. Transpose `np.cumsum` by hand: which later sums does an entry reach?
#    `test_reverse_mode_is_the_transpose_of_forward_mode` checks yours.
# 2. In the loop above, replace `c[j] + ...` by `...`. Which function shows the error, and why does
#    `layer` not? (`test_the_gradient_of_a_random_program_is_forward_modes`.)
# 3. Row 3 of an embedding is picked twice. What does its gradient get?
#    (`test_rows_picked_more_than_once_get_the_sum`.)
# 4. Write `hvp(f, x, v)` in one line, once with `jvp` outside and once with `grad` outside. Which
#    one keeps a tape of a tape? (`test_the_jvp_of_a_gradient_is_the_hessian_times_a_vector`.)
# 5. Adam's first step has length $\eta$ for any gradient. Show it, and find what $\epsilon$ does to
#    a gradient of $10^{-9}$. (`test_adam_moves_by_the_learning_rate_whatever_the_gradients_size`.)
# 6. Put the weight decay into the gradient instead of beside it. Which weights does Adam then decay
#    least? (The cases `adamw` of `minibit/vectors/tape.json`.)
#
# **Sources.**
#
# - Radul, Paszke, Frostig, Johnson and Maclaurin (2022), *You Only Linearize Once: Tangents
#   Transpose to Gradients*, arXiv:2204.10923.
# - Kingma and Ba (2014), *Adam: A Method for Stochastic Optimization*, arXiv:1412.6980.
# - Loshchilov and Hutter (2017), *Decoupled Weight Decay Regularization*, arXiv:1711.05101.
# - Bengio, Léonard and Courville (2013), *Estimating or Propagating Gradients Through Stochastic
#   Neurons for Conditional Computation*, arXiv:1308.3432.
# - Baydin, Pearlmutter, Syme, Wood and Torr (2022), *Gradients without Backpropagation*,
#   arXiv:2202.08587.
# - Chen, Xu, Zhang and Guestrin (2016), *Training Deep Nets with Sublinear Memory Cost*,
#   arXiv:1604.06174.
