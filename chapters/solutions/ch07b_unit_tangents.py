# %% [markdown]
# # Solutions: one tangent for all weights into a unit

# %%
import tempfile
from pathlib import Path

import numpy as np

from minibit.dual import jvp
from minibit.layers import cross_entropy, layer_norm, ternary_linear
from minibit.noise_step import (
    MLP,
    apply_update,
    digest,
    sparse_update,
    unit_sums_by_jvp,
)
from minibit.steps import StepLog
from minibit.training import train

rng = np.random.default_rng(0)


def codes(*shape):
    """Random ternary weights."""
    return rng.integers(-1, 2, shape).astype(np.int8)


# %% [markdown]
# **1.** $W h$ *is* the next layer's pre-activation $z$, so the push along it is a change of scale.
# By layer norm $z$ becomes $\hat z$ with $r = 1 / \sqrt{\mathrm{var}\,z + \varepsilon}$, and
# $\dot{\hat z} = \hat z\,(1 - r^2\,\mathrm{var}\,z) = \varepsilon r^2\,\hat z$. ReLU and the matrix
# hand this on: the next push is $\varepsilon r^2\,W' h'$. So the kernels get $B_l$ from $B_{l+1}$
# by one product of numbers, in place of a product of matrices.

# %%
z = rng.standard_normal((4, 32)) * np.array([[1], [1e-2], [1e-3], [1e-4]])
hat, answer = jvp(layer_norm, (z,), (z,))
r2 = 1 / (z.var(axis=1, keepdims=True) + 1e-5)
np.testing.assert_allclose(answer, 1e-5 * r2 * hat, atol=1e-9)
print("a norm answers a change of scale by", (1e-5 * r2).ravel().round(6))

# %% [markdown]
# **2.** The one that compares with duals (`error < 1e-12`). By the first solution $B_l$ is as good
# as zero wherever a norm follows; it counts in the last hidden layer, before the logits. Without it
# the alignments there are off by up to a third of the largest, on this small random network, and
# nine of ten signs are still the right ones: most moves go the right way, so it learns, from worse
# advice.

# %%
n, batch = 24, 64
w2, w3 = codes(n, n).astype(float), codes(10, n).astype(float)
h1, y = np.maximum(rng.standard_normal((batch, n)), 0), rng.integers(0, 10, batch)
z2 = h1 @ w2.T  # (batch, units)


def from_last_hidden(z):
    """Loss of each sample from the last hidden layer's pre-activations."""
    return cross_entropy(0.12 * np.maximum(layer_norm(z), 0) @ w3.T, y, "none")


hat = layer_norm(z2)
r = 1 / np.sqrt(z2.var(axis=1) + 1e-5)  # (batch,)
logits = 0.12 * np.maximum(hat, 0) @ w3.T
B = jvp(lambda u: cross_entropy(u, y, "none"), (logits,), (logits,))[1]  # F(W h)
exact = np.stack(
    [jvp(from_last_hidden, (z2,), (np.tile(np.eye(n)[j], (batch, 1)),))[1] for j in range(n)],
    axis=1,
)  # (batch, units): the unit tangents
without = exact + (r * B)[:, None] * hat / n  # the term that is subtracted, put back
alignments, dropped = exact.T @ h1, without.T @ h1  # of all weights into the units
off = np.abs(dropped - alignments).max() / np.abs(alignments).max()
same = np.mean(np.sign(dropped) == np.sign(alignments))
print(f"without B: off by up to {off:.1%} of the largest, {same:.1%} of the signs are the same")
assert off > 1e-3
assert same > 0.8

# %% [markdown]
# **3.** A move that the clamp would change is not legal for `units`, so each step is a plain sum,
# and what is added can be taken away again, last step first. `sampled` proposes without looking:
# pushes against the end are lost on the way, and there is nothing to take away for them (chapter 8
# counts).

# %%
with tempfile.TemporaryDirectory() as temporary:
    path = Path(temporary) / "run.steps"
    train("small", 0, path, steps=40, batch=(256, 256), threads=1)
    log = StepLog.open(path)
    params, steps = log.replay(), [*log.steps()]
    for number in reversed(range(40)):
        positions, deltas = sparse_update(log.plan, number, steps[number])
        params = apply_update(params, positions, -deltas)
    assert digest(params) == log.digest(0)

# %% [markdown]
# **4.** `linear` refuses the second use and names the weight: one bump at a pre-activation can
# stand for a weight only if the weight acts at this one place. Without `linear` each candidate has
# a direction of its own, which is right for any function, and takes a tangent for each weight.


# %%
def twice(params, x, linear=ternary_linear):
    """Two uses of one matrix."""
    return linear(x, params["w"]) + linear(x + 1, params["w"])


def twice_plainly(params, x):
    return x @ params["w"].T + (x + 1) @ params["w"].T


params, x = {"w": codes(3, 5)}, rng.standard_normal((8, 5)).astype(np.float32)
labels, ones, units = rng.integers(0, 3, 8), np.ones(8, np.float32), [np.array([0, 2])]
try:
    unit_sums_by_jvp(twice, params, x, labels, ones, units)
    complaint = ""
except ValueError as error:
    complaint = str(error)
print(complaint)
assert "'w' again" in complaint
found = unit_sums_by_jvp(twice_plainly, params, x, labels, ones, units).alignments[0]
logits = twice_plainly({"w": params["w"].astype(float)}, x)
p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(3)[labels]
np.testing.assert_allclose(found, (p.T @ (2 * x + 1))[[0, 2]], rtol=1e-4, atol=1e-4)

# %% [markdown]
# **5.** Nothing: the last hidden layer hands floats on, and here it is the only one. Were it
# rounded, too, the logits would be those of $h = \max(q, 0) / s$. No norm follows them, so a change
# by a common factor moves the loss, and $B_l = F(W h)$ is a number like others; leaving it out
# would be an error of the size that solution 2 measures, not one of $\varepsilon$.

# %%
one = {"w1": codes(20, 30), "w2": codes(6, 20)}
pixels = rng.integers(0, 256, (16, 30)).astype(np.uint8)
plain, rounded = (
    MLP(0.12, 1 / 75, -1.0, activations=kind)(one, pixels) for kind in ("float", "int8")
)
np.testing.assert_array_equal(plain, rounded)
print(
    f"B of the last hidden layer: {np.abs(B).mean():.3f} of a loss of {from_last_hidden(z2).mean():.2f}"
)
assert np.abs(B).mean() > 0.01
