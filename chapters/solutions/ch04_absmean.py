# %% [markdown]
# # Solutions: from floats to trits

# %%
import json
from importlib.resources import files

import numpy as np

from minibit.absmean import absmean_quantize, fake_quant_weight
from minibit.conformance import cases_of, conform
from minibit.datasets import load_mnist
from minibit.layers import layer_norm, ternary_linear

rng = np.random.default_rng(0)

# %% [markdown]
# **1.** Let a share $d$ of the codes be nonzero. The new mean magnitude is
# $\gamma' = d\,\gamma \le \gamma$. A zero stays zero. Any other has magnitude $\gamma$, so its
# ratio is $\gamma / \gamma' = 1/d \ge 1$, which rounds and clips to its sign. So the codes stay,
# $d$ stays, and $\gamma$ shrinks by $d$ in every round, until it stops at the floor of $10^{-5}$;
# there the ratio is still at least 1. (Where all codes are nonzero it stays as it is.)

# %%
w = rng.standard_normal((64, 64)).astype(np.float32)
codes, first = absmean_quantize(w)
density, gammas, value = np.mean(codes != 0), [first], w
for _ in range(60):
    value = fake_quant_weight(value)
    again, gamma = absmean_quantize(value)
    np.testing.assert_array_equal(again, codes)
    gammas.append(gamma)
print(f"density {density:.3f}; gamma:", *(f"{g:.3g}" for g in gammas[:5]), "...", gammas[-1])
np.testing.assert_allclose(gammas[1:10], first * density ** np.arange(1, 10), rtol=1e-5)
assert gammas[-1] == np.float32(1e-5)

# %% [markdown]
# **2.** $\sum (w - s t)^2$ is a parabola in $s$ with its least value at $s = \sum w t / \sum t^2$.
# Where $t \ne 0$ it has the sign of $w$, so $w t = |w|$: the mean magnitude of the weights that
# kept a sign. A hidden layer's norm divides its scale away again. Behind a last layer there is no
# norm: its scale is how sure the softmax is.

# %%
best = np.sum(w * codes) / np.sum(codes != 0)
np.testing.assert_allclose(best, np.abs(w[codes != 0]).mean(), rtol=1e-6)
errors = [np.sum((w - s * codes) ** 2) for s in (0.99 * best, best, 1.01 * best)]
assert errors[1] == min(errors)
x = rng.standard_normal((8, 64)).astype(np.float32)
by_gamma, by_best = (ternary_linear(x, s * codes.astype(np.float32)) for s in (first, best))
print(f"gamma {first:.3f}, best {best:.3f}")
np.testing.assert_allclose(layer_norm(by_gamma), layer_norm(by_best), atol=1e-4)  # hidden
assert np.abs(by_gamma - by_best).max() > 1  # last

# %% [markdown]
# **3.** A port is a module with the public names; here is one with each mistake, held against the
# vectors. The cases that fail are printed.


# %%
class Port:
    """`absmax_quantize` with another rounding, or another order of operations."""

    def __init__(self, rounding, scale_of):
        self.rounding, self.scale_of = rounding, scale_of

    def absmax_quantize(self, x):
        x = np.asarray(x)
        if not np.isfinite(x).all():
            raise ValueError(f"x must be finite, got {x}")
        largest = np.maximum(np.abs(x).max(axis=-1, keepdims=True, initial=0), np.float32(1e-5))
        scale = self.scale_of(largest)
        return self.rounding(x * scale).astype(np.int8), scale


def half_away(v):
    """Round as C does."""
    return np.copysign(np.floor(np.abs(v) + 0.5), v)


def published(largest):
    return np.float32(1) / largest * np.float32(127)


def failing(port):
    """Ids of the cases with a result that the port gets wrong."""
    cases = [c for c in cases_of("absmean") if c.call == "absmax_quantize" and not c.refuse]
    report = conform(port, cases)
    return [r.case.id for r in report.results if r.verdict == "deviates"]


rounded = failing(Port(half_away, published))
divided = failing(Port(np.rint, lambda largest: np.float32(127) / largest))
print("half away from zero:", *rounded)
print("127 / m:", *divided)
assert not failing(Port(np.rint, published))
assert rounded
assert divided
names = {
    case["id"]
    for case in json.loads((files("minibit") / "vectors/absmean.json").read_text())["cases"]
}
assert {*rounded, *divided} <= names

# %% [markdown]
# **4.** At $\lambda = 1$ the slope is 0: nothing moves any more, and the trits stay those that the
# weights had when the warm-up ended. Straight-through goes on training from there. On the
# regression of the chapter:


# %%
data = load_mnist()
pixels = (data.train_x[:10_000] / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)
labels = data.train_y[:10_000].astype(int)


def gradient(seen, x, y):
    """Of the mean cross entropy, in the weights that are seen."""
    p = np.exp(x @ seen.T - (x @ seen.T).max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return p.T @ x / len(x)


def train(slope, steps=200, warm=100):
    """Codes at the end of the warm-up, codes at the end, and the share named right."""
    draws = np.random.default_rng(0)
    w = 0.01 * draws.standard_normal((10, 784)).astype(np.float32)
    for step in range(steps):
        strength = min(step / warm, 1)
        rows = draws.integers(len(pixels), size=256)
        seen = fake_quant_weight(w, strength)
        w = w - np.float32(0.05) * slope(strength) * gradient(seen, pixels[rows], labels[rows])
        if step == warm:
            middle = absmean_quantize(w)[0]
    right = np.mean(np.argmax(pixels @ fake_quant_weight(w).T, axis=1) == labels)
    return middle, absmean_quantize(w)[0], right


frozen, through = train(lambda s: np.float32(1 - s)), train(lambda s: np.float32(1))
for name, (middle, end, right) in {"1 - lambda": frozen, "straight-through": through}.items():
    print(f"{name}: {np.mean(middle != end):.1%} of the codes change after it; {right:.1%} right")
assert (frozen[0] == frozen[1]).all()
assert (through[0] != through[1]).any()
assert through[2] > frozen[2]

# %% [markdown]
# **5.** It divides the codes by $\mathrm{fl}(1/\gamma)$. The reciprocal of a rounded reciprocal is
# not always the number again: for about a sixth of all $\gamma$ it is the neighbour, one bit off.
# The module keeps it so because the published code does, and a checkpoint is to be read bit for
# bit.

# %%
gamma = rng.uniform(1, 2, 1_000_000).astype(np.float32)
back = np.float32(1) / (np.float32(1) / gamma)
differ = np.mean(back != gamma)
print(f"{differ:.1%} of all gammas differ")
assert 0.14 < differ < 0.18
np.testing.assert_array_max_ulp(back, gamma, 1)
one = np.array([[gamma[np.argmax(back != gamma)]]])  # a matrix of one weight: its gamma
assert fake_quant_weight(one) != one
