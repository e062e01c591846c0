# %% [markdown]
# # Solutions: NF4

# %%
from statistics import NormalDist

import numpy as np

from minibit.nf4 import (
    NF4_CODE,
    NF4Tensor,
    codebook_quantize,
    dynamic_map,
    nearest_code,
    quantize_nf4,
)
from minibit.nf4.codebooks import midpoints
from minibit.nf4.double_quant import mean_of_torch

rng = np.random.default_rng(0)
w = rng.standard_normal((1024, 1024)).astype(np.float32)

# %% [markdown]
# **1.** Code 7, the zero of the table, as any weight between the midpoints beside it. What comes
# back is $+0$: the sign of a zero is not stored.

# %%
tensor = quantize_nf4(np.float32([-0.0, 1.0]))
assert tensor.codes()[0] == 7
back = tensor.dequantize()[0]
assert back == 0
assert not np.signbit(back)

# %% [markdown]
# **2.** A product with the rounded reciprocal and a quotient differ in the last bit for about a
# quarter of all weights. A code changes only where a midpoint lies between the two: some one weight
# in ten million. So random weights hardly ever show it, and the vectors hold cases that were looked
# for.

# %%
blocks = w.reshape(-1, 64)
absmax = np.abs(blocks).max(axis=1, keepdims=True)
product, quotient = blocks * (np.float32(1) / absmax), blocks / absmax
bits = np.mean(product != quotient)
codes = np.sum(nearest_code(product) != nearest_code(quotient))
print(f"{bits:.0%} of the quotients differ in the last bit, {codes} of {w.size:,} codes")
assert 0.1 < bits < 0.5
assert codes < 5
m, a = np.float32(1.4349476), np.float32(-0.48742214)  # of the chapter: it does occur
assert nearest_code(a * (np.float32(1) / m)) != nearest_code(a / m)

# %% [markdown]
# **3.** Eight numbers: four quantiles above zero, three below, and zero. The outermost probability
# is the mean of $1 - 1/16$ and $1 - 1/14$. Lloyd's table for the same quotients loses a good tenth
# less; at four bits it was 5%. With few numbers, an exact zero and an exact 1 cost more.


# %%
def quantiles(half):
    """The rule of `normal_float` with `half` numbers above zero, in float64."""
    outermost = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    inverse = NormalDist().inv_cdf
    above = [inverse(p) for p in np.linspace(outermost, 0.5, half + 1)[:-1]]
    below = [-inverse(p) for p in np.linspace(outermost, 0.5, half)[:-1]]
    return np.sort([*below, 0, *above]) / max(above)


def lost(book):
    """Relative error of the weights."""
    return float(np.linalg.norm(codebook_quantize(w, book) - w) / np.linalg.norm(w))


np.testing.assert_allclose(quantiles(8), NF4_CODE, atol=1e-6)
book = quantiles(4)
s, weight = product.ravel().astype(float), np.repeat(absmax.ravel().astype(float) ** 2, 64)
best = book.copy()
for _ in range(60):
    at = np.searchsorted((best[1:] + best[:-1]) / 2, s)
    best = np.bincount(at, weight * s) / np.bincount(at, weight)
print("quantiles:", book.round(3), "Lloyd:", best.round(3))
print(f"error {lost(book):.3f} and {lost(best):.3f}: {lost(book) / lost(best) - 1:.0%} more")
assert 1.05 < lost(book) / lost(best) < 1.3

# %% [markdown]
# **4.** NumPy sums pairwise in blocks of its own, PyTorch in lanes: for many vectors the two
# float32 means differ in the last bit. The offset is *stored*, and all absmaxes are quantised
# against it: with another one a difference near a midpoint gets another code, files are no longer
# equal byte for byte, and nobody can tell a rounding from a bug.

# %%
draws = [np.abs(rng.standard_normal((1000, 64))).max(axis=1).astype(np.float32) for _ in range(200)]
pairs = [(mean_of_torch(v), v.mean()) for v in draws]
other = np.mean([a != b for a, b in pairs])
print(f"{other:.0%} of the offsets differ, by {max(abs(a / b - 1) for a, b in pairs):.1e} at most")
assert other > 0.05
assert max(abs(a / b - 1) for a, b in pairs) < 1e-6
assert dynamic_map().size == 256

# %% [markdown]
# **5.** 8 rows of 96 are 12 blocks of 64. A decoder that starts each row anew takes
# $\lceil 96/64 \rceil = 2$ scales a row (and so 16), or one. Either way most weights are multiplied
# by a neighbour's scale: no crash, and an error several times that of four bits. Rows of unequal
# size show it best.

# %%
rows = (
    rng.standard_normal((8, 96)).astype(np.float32) * 2.0 ** np.arange(8, dtype=np.float32)[:, None]
)
whole = quantize_nf4(rows)
assert isinstance(whole, NF4Tensor)
assert whole.absmax.size == 12
right = NF4_CODE[whole.codes()] * whole.absmax[np.arange(768).reshape(8, 96) // 64]
np.testing.assert_array_equal(right, whole.dequantize())
row_scale = NF4_CODE[whole.codes()] * whole.absmax[np.arange(8)][:, None]
errors = [np.linalg.norm(v - rows) / np.linalg.norm(rows) for v in (right, row_scale)]
print("relative error: {:.2f}; with a scale a row {:.2f}".format(*errors))
assert errors[0] < 0.15
assert errors[1] > 0.5
assert midpoints(NF4_CODE).size == 15
