# %% [markdown]
# # Solutions: layers without scales

# %%
import numpy as np

from minibit.datasets import load_mnist
from minibit.dual import derivative, jvp
from minibit.layers import cross_entropy, init_mlp, layer_norm, mlp, relu, rms_norm, ternary_linear
from minibit.noise import initial_codes

rng = np.random.default_rng(0)

# %% [markdown]
# **1.** Let $c = x - \mathrm{mean}\,x$ and $r = 1 / \sqrt{\mathrm{mean}\,c^2 + \varepsilon}$, so
# $z = r c$. Then $\dot r = -r^3\,\mathrm{mean}(c\,\dot c)$, hence $\dot z = r\dot c + \dot r c =
# r\,(\dot c - z\,\mathrm{mean}(z\,\dot c))$. As $\mathrm{mean}\,z = 0$ the mean of $\dot x$ drops
# out of the last term. Both $\dot c$ and $z$ have mean 0, so $\dot z$ has.

# %%
x, x_dot = rng.standard_normal((2, 5, 8))
z, z_dot = jvp(layer_norm, (x,), (x_dot,))
r = 1 / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
c_dot = x_dot - x_dot.mean(axis=1, keepdims=True)
by_hand = r * (c_dot - z * np.mean(z * x_dot, axis=1, keepdims=True))
np.testing.assert_allclose(z_dot, by_hand)
np.testing.assert_allclose(z_dot.mean(axis=1), 0, atol=1e-15)

# %% [markdown]
# **2.** A power of two changes the exponent of a float and none of its digits. So every rounding on
# the way falls as it did, and the factor cancels in the division. With $c = 3$ the sums round
# elsewhere. And $\varepsilon$ is added to a variance that has grown by $c^2$: left alone, it would
# weigh $c^2$ times less beside it.

# %%
f = rng.standard_normal((50, 64)).astype(np.float32)


def scaled(c, eps):
    """The norm of c times f."""
    return layer_norm(np.float32(c) * f, eps=eps)


plain = scaled(1, 1e-5)
assert (scaled(8, 64e-5) == plain).all()
assert (scaled(3, 9e-5) != plain).any()
np.testing.assert_allclose(scaled(3, 9e-5), plain, rtol=1e-4, atol=1e-6)
small = [np.abs(scaled(2.0**-8, eps) - plain).max() for eps in (1e-5 / 2**16, 1e-5)]
print(f"at a 256th of the size: off by {small[0]}, with eps left alone {small[1]:.2f}")
assert small[0] == 0
assert small[1] > 0.1

# %% [markdown]
# **3.** They hardly differ: signs are drawn evenly, so the sum over the units of a row is near zero
# already, and there is little to centre. About half of the units are silent on average; only,
# without the centring that share moves more from image to image. The constant part stays what it
# was. (On centred rows the two norms are one.)

# %%
images = load_mnist().train_x[:1024] / np.float32(255)
start = (images - np.float32(0.1307)) / np.float32(0.3081)
params = init_mlp((784, 256, 256, 256, 10), lambda k, s: initial_codes(0, s, 0.7, layer=k))
found = {}
for norm in (layer_norm, rms_norm):
    h, rows = start, []
    for name in ("w1", "w2", "w3"):
        z = ternary_linear(h, params[name])  # (batch, n_out)
        h = relu(norm(z))
        silent = np.mean(h == 0, axis=1)
        rows.append((silent.mean(), silent.std(), z.mean(axis=0).var() / z.var()))
    found[norm.__name__] = rows
    for layer, (mean, spread, constant) in enumerate(rows, 1):
        print(
            f"{norm.__name__:11}layer {layer}: {mean:.1%} silent, +- {spread:.1%} from image to "
            f"image; constant part {constant:.0%}"
        )
layered, rooted = (np.array(found[name]) for name in ("layer_norm", "rms_norm"))
assert np.abs(layered[:, 0] - rooted[:, 0]).max() < 0.06
assert np.abs(layered[:, 2] - rooted[:, 2]).max() < 0.1
assert (rooted[1:, 1] > layered[1:, 1]).all()

# %% [markdown]
# **4.** $\frac{d}{dc} = \mathrm{mean}\,\big((\mathrm{softmax}(c z) - \mathrm{onehot}(y)) \cdot
# z\big)$. At $c = 0$ the softmax is $1/10$ everywhere: the slope is the mean logit less the mean
# logit of the labels. Before training nothing favours the label, so it is small; it is what
# training makes large.

# %%
labels = load_mnist().train_y[:1024]
logits = mlp({name: w.astype(np.float64) for name, w in params.items()}, start)  # (batch, 10)
slope = derivative(lambda c: cross_entropy(c * logits, labels))(0.0)
by_hand = logits.mean() - logits[np.arange(1024), labels].mean()
print(f"slope at c = 0: {slope:.3f}; spread of the logits {logits.std():.1f}")
np.testing.assert_allclose(slope, by_hand)
np.testing.assert_allclose(cross_entropy(0 * logits, labels), np.log(10))
assert abs(slope) < logits.std() / 2
