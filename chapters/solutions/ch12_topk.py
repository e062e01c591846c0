# %% [markdown]
# # Solutions: fewer activations

# %%
import numpy as np

from minibit.absmean import absmax_quantize
from minibit.conformance import cases_of, conform
from minibit.matmul import ternary_matmul_int8
from minibit.results import load_results
from minibit.ternary import TernaryMatrix
from minibit.topk import (
    TernaryColumns,
    optimal_sparsity,
    scaling_law,
    sparse_ternary_matmul_int8,
    topk_mask,
    topk_quantize,
)

rng = np.random.default_rng(0)

# %% [markdown]
# **1.** Where all magnitudes are equal, all of them reach the largest: K = 1 keeps n entries. The
# cases that fail are printed; `exactly-k-of-equals` is the plainest.


# %%
class ByComparison:
    """A port that compares with the K-th magnitude."""

    @staticmethod
    def topk_mask(x, k):
        x = np.asarray(x)
        if not np.isfinite(x).all():
            raise ValueError(f"x must be finite, got {x}")
        threshold = np.sort(np.abs(x), axis=-1)[..., -k][..., None]
        return np.abs(x) >= threshold


equal = np.full((1, 9), -2.0, np.float32)
assert ByComparison.topk_mask(equal, 1).sum() == 9
assert topk_mask(equal, 1).sum() == 1
cases = [case for case in cases_of("topk") if case.call == "topk_mask" and not case.refuse]
report = conform(ByComparison, cases)
caught = [r.case.id for r in report.results if r.verdict == "deviates"]
print("caught by", *caught)
assert "topk/exactly-k-of-equals" in caught

# %% [markdown]
# **2.** The scale of a token is $127 / \max|x|$, and the largest entry is always kept: it is the
# same before and after. Then each entry is rounded by itself, so a kept one gets the same code, and
# one that is not kept gets 0 in both orders. With a scale for each block of 32, a block whose
# largest entry is not chosen has another largest one afterwards, and another scale.


# %%
def in_blocks(x):
    """Codes with a scale of their own for each 32."""
    return absmax_quantize(x.reshape(-1, 32))[0].reshape(x.shape)


x = rng.standard_normal((20, 256)).astype(np.float32)
mask = topk_mask(x, 24)
before, after = absmax_quantize(x)[0] * mask, absmax_quantize(x * mask)[0]
np.testing.assert_array_equal(before, after)
np.testing.assert_array_equal(topk_quantize(x, 24)[0], before)
assert (in_blocks(x) * mask == in_blocks(x * mask)).all(axis=1).mean() > 0.5
sparse = x.copy()
sparse[:, :32] = np.linspace(0.1, 0.2, 32, dtype=np.float32)  # a quiet block: none of it is kept
sparse[:, 0] = 9  # but for one, which is below another block's in the next line
by_place = np.ones(256, bool)
by_place[0] = False  # any choice that drops the largest of a block
assert (in_blocks(sparse) * by_place != in_blocks(sparse * by_place)).any()

# %% [markdown]
# **3.** With $N = N_a / (1 - S)$ the loss above $E$ is $A(S)\,(1 - S)^\alpha / N_a^\alpha$. Its
# derivative is zero where $A'(S)(1 - S) = \alpha A(S)$. Let $B = 0$: then
# $A'/A = \beta / (1 - S)^2$, so $\beta / (1 - S) = \alpha$ and $S^* = 1 - \beta/\alpha$. The left
# side grows with $S$; where it is above $\alpha A$ at $S = 0$ already,
# $\beta\,C e^\beta \ge \alpha\,(B + C e^\beta)$, dense is best.

# %%
alpha, beta, B, C = 0.10, 0.05, 0.01, 1.89
S = optimal_sparsity(alpha, beta, B, C)
A = B + C * np.exp(beta / (1 - S))
A_slope = C * np.exp(beta / (1 - S)) * beta / (1 - S) ** 2
np.testing.assert_allclose(alpha * A, (1 - S) * A_slope, rtol=1e-6)
np.testing.assert_allclose(optimal_sparsity(alpha, beta, 0, C), 1 - beta / alpha, rtol=1e-6)
assert optimal_sparsity(0.05, 0.06, 0, C) == 0  # beta above alpha: dense
law = {"alpha": 0.05, "beta": 0.06, "B": 0, "C": C, "E": 1.0}
assert (np.diff(scaling_law(1e9, np.linspace(0, 0.9, 50), active=True, **law)) > 0).all()

# %% [markdown]
# **4.** The kernel multiplies codes $t + 1 \in \{0, 1, 2\}$ by int8 activations. With activations
# of -128, which a caller may pass though no quantiser makes them, a product is at least $-256$, and
# $127 \cdot 256 = 32512 < 2^{15}$; one column more just reaches $-2^{15}$, and a second one is too
# many. All codes 1 and all activations -128 use it up. The products come out right all the same:

# %%
assert 127 * 2 * 128 < 2**15 - 1
assert 129 * 2 * 128 > 2**15
worst = np.full((1, 1000), -128, np.int8)
ones = np.ones((257, 1000), np.int8)
out = sparse_ternary_matmul_int8(worst, TernaryColumns.from_codes(ones))
np.testing.assert_array_equal(out, ternary_matmul_int8(worst, TernaryMatrix.from_codes(ones)))
assert (out == -128_000).all()

# %% [markdown]
# **5.** Nearly nothing: at `down` squared ReLU leaves fewer inputs than K, so top-K finds nothing
# to cut there. In the recorded runs it adds less than one percent of zeros at `down`, and tens of
# percent at each of the others.

# %%
runs = [
    r for r in load_results("topk")["rows"] if r["kind"] == "scratch" and 0.3 < r["sparsity"] < 0.4
]
added = {}
for run in runs:
    for site, share in run["zeros"]["sites"].items():
        added.setdefault(site, []).append(share["after"] - share["before"])
for site, shares in added.items():
    print(f"{site:8} {np.mean(shares):6.1%} of the inputs are zeros by top-K alone")
assert np.mean(added["down"]) < 0.02
assert min(np.mean(added[site]) for site in added if site != "down") > 0.3
