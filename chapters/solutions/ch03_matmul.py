# %% [markdown]
# # Solutions: the ternary product

# %%
import numpy as np

from minibit import kernels
from minibit.matmul import MAX_INPUTS, ternary_matmul_int8
from minibit.ternary import TernaryMatrix
from minibit.ternary.panels import pack_panels_reference

rng = np.random.default_rng(0)

# %% [markdown]
# **1.** With $c$ cores a product takes the longer of computing, $t / c$, and reading, $b / B$. Base
# 3 reads $0.8\,b$. While both compute, panels win. Base 3 wins once its own computing is hidden,
# that is from $c = t_3 B / b$ cores on: there panels wait for the cache, and base 3 waits less. If
# its compute time is three times that of panels, and the cache gives twice what one core's panels
# read, $c = 6$.


# %%
def seconds(cores, compute, read):
    """The longer of the two."""
    return max(compute / cores, read)


t2, t3, read = 1.0, 3.0, 0.5  # the cache brings a matrix in half the time of one core's panels
wins = [c for c in range(1, 65) if seconds(c, t3, 0.8 * read) < seconds(c, t2, read)]
print(f"base 3 is faster from {wins[0]} cores on: just above {t3 / read:.0f}")
assert wins == list(range(7, 65))
if kernels.path() in ("vnni", "amx") and kernels._cpu_features().get("avx512vbmi"):
    from minibit.kernels import base3

    codes = rng.integers(-1, 2, (64, 640), dtype=np.int8)
    q, out = rng.integers(-127, 128, 640, dtype=np.int8), np.empty(64, np.int32)
    base3.product(q, base3.pack(codes), base3.TABLE, out)  # and it is exact
    np.testing.assert_array_equal(out, codes.astype(int) @ q)

# %% [markdown]
# **2.** Where codes stay in place (`vnni`, `amx`), the sums of group $j$ are $4^j$ times too large.
# For twice the inputs those of group 3, rows 48 to 63 of a panel, reach $\pm 2^{32}$ and wrap;
# group 2 has a factor of 4 to spare. Paths that shift codes down to 0..2 first sum at most
# $2 \cdot 128$ an input and are far from the end. Here with the sums of NumPy in int32, which wrap
# as the kernels' do:


# %%
def group(j, n_in):
    """Row of code 1 in group j, and activations of -128: multiplied in place, then shifted back."""
    with np.errstate(over="ignore"):
        total = np.full(n_in, 2 * 4**j * -128, np.int32).sum(dtype=np.int32)
        ones = np.full(n_in, -128, np.int32).sum(dtype=np.int32)
    return int(total >> 2 * j) - int(ones)  # sum of (t + 1) q less the sum of q


for n_in in (MAX_INPUTS, 2 * MAX_INPUTS):
    right = [group(j, n_in) == -128 * n_in for j in range(4)]
    print(f"{n_in:,} inputs: groups 0 to 3 right: {right}")
    assert right == [True, True, True, n_in == MAX_INPUTS]
exact = ternary_matmul_int8(
    np.full((1, MAX_INPUTS), -128, np.int8),
    TernaryMatrix.from_codes(np.ones((64, MAX_INPUTS), np.int8)),
)
assert (exact == -128 * MAX_INPUTS).all()

# %% [markdown]
# **3.** Two groups exchanged, `d[:, 2] << 2 | d[:, 1] << 4`: every test that knows where a code
# belongs, `test_a_panel_puts_each_code_where_the_layout_says` first, and all that compare kernel
# and reference, for the kernel packs as before. A matrix in which the two groups of rows are alike
# does not notice: that is why the tests draw their codes.


# %%
def wrong(codes):
    """`pack_panels_reference` with groups 1 and 2 exchanged, for 64 rows and 64 columns."""
    d = (codes + 1).astype(np.uint8).reshape(4, 16, 16, 4)  # j r q c
    return (d[0] | d[2] << 2 | d[1] << 4 | d[3] << 6).transpose(1, 0, 2).reshape(-1)


codes = rng.integers(-1, 2, (64, 64), dtype=np.int8)
alike = codes.copy()
alike[32:48] = alike[16:32]
assert (wrong(codes) != pack_panels_reference(codes)).any()
assert (wrong(alike) == pack_panels_reference(alike)).all()
