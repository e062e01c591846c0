# %% [markdown]
# # Solutions: 1.58 bits in ten minutes

# %%
import numpy as np

from minibit.absmean import fake_quant_weight
from minibit.datasets import load_mnist
from minibit.layers import cross_entropy
from minibit.tape import grad

# %% [markdown]
# **1.** For a threshold $t$ the best scale is the mean magnitude $m(t)$ of the weights that are
# kept. A weight of magnitude $t$ loses $t^2$ as a zero and $(m - t)^2$ as a trit, so at the best
# threshold both are equal: $t = m(t) / 2$. Absmean's $\gamma / 2$ is smaller, because $\gamma$ is
# the mean of *all* magnitudes, the small ones too.

# %%
w = np.abs(np.random.default_rng(0).standard_normal(1_000_000))
thresholds = np.linspace(0, 1.5, 151)  # in units of gamma, as on the slider
kept = [w[w > t * w.mean()] for t in thresholds]
errors = [np.sum(w**2) - k.sum() ** 2 / k.size for k in kept]  # with the best scale
best = thresholds[np.argmin(errors)]
print(f"least error at {best:.2f} gamma; absmean takes 0.5")
assert 0.7 < best < 0.85
m = kept[np.argmin(errors)].mean() / w.mean()
assert abs(best - m / 2) < 0.01

# %% [markdown]
# **2.** Seven trits have more states than eleven bits. Seventeen trits do fit into 27 bits, and
# take 0.7% less than five in a byte. But no machine has a unit of 27 bits: groups would begin in
# the middle of bytes, and every trit costs a division of a number of 27 bits in place of a table of
# 243 rows.

# %%
assert 3**7 > 2**11
assert 3**17 < 2**27
saving = 1 - (27 / 17) / (8 / 5)
print(f"17 in 27 bits save {saving:.2%}")
assert 0.007 < saving < 0.008

# %% [markdown]
# **3.** About a hundred steps: the float solution knows which pixels count, and the latent weights
# have to move only as far as it takes for some of them to cross a border. It is rounded badly, not
# wrong.

# %%
data = load_mnist()
x, test_x = ((part / np.float32(255) - 0.1307) / 0.3081 for part in (data.train_x, data.test_x))
x, test_x, y = x[:20_000].astype(np.float32), test_x.astype(np.float32), data.train_y.astype(int)


def descend(sees, w, steps, rate=0.03):
    """Momentum on batches of 256, at the weights that the network sees; the rate falls to 0."""
    draws, velocity = np.random.default_rng(0), np.zeros_like(w)
    slope = grad(lambda w, x, y: cross_entropy(x @ sees(w).T, y))
    for step in range(steps):
        rows = draws.integers(len(x), size=256)
        velocity = np.float32(0.9) * velocity + slope(w, x[rows], y[rows])
        w = w - np.float32(rate * (1 - step / steps)) * velocity
    return w


def right(w):
    """Share of the test images that the trits of w name right."""
    return np.mean(np.argmax(test_x @ fake_quant_weight(w).T, axis=1) == data.test_y)


start = 0.01 * np.random.default_rng(0).standard_normal((10, 784)).astype(np.float32)
solution = descend(lambda w: w, start, 400)
latent = right(descend(fake_quant_weight, start, 400))
after = {n: right(descend(fake_quant_weight, solution, n)) for n in (0, 25, 50, 100)}
print(f"from a random start, 400 steps: {latent:.1%}")
print("from the float solution:", ", ".join(f"{n}: {share:.1%}" for n, share in after.items()))
assert after[0] < latent - 0.1
assert after[100] > latent - 0.01
