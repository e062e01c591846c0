# %% [markdown]
# # Solutions: trits and bytes

# %%
import numpy as np

from minibit import ternary
from minibit.ternary import pack2, pack_base3, unpack_base3

rng = np.random.default_rng(0)

# %% [markdown]
# **1.** A byte $b$ decodes to the digits of $v$ exactly if $b / 256$ lies in $[v/243,\ (v+1)/243)$:
# multiplying by 3 pushes out the digits of the fraction. The least such byte is
# $\lceil 256 v / 243 \rceil$, and it is what an encoder writes. As $256 / 243 > 1$, the 243 bytes
# differ, and 13 of 256 are left: those that share their digits with the byte below. The tail of
# four digits has 81 values.


# %%
def digits(byte, count=5):
    """What five multiplications by 3 push out over the point."""
    out = []
    for _ in range(count):
        out.append(3 * byte >> 8)
        byte = 3 * byte & 255
    return out


written = {-(-256 * v // 243) for v in range(243)}
rest = sorted(set(range(256)) - written)
print("written by no encoder:", rest)
assert len(rest) == 13
assert all(digits(byte) == digits(byte - 1) for byte in rest)
assert len({tuple(digits(byte)) for byte in written}) == 243
assert len({-(-256 * 3 * v // 243) for v in range(81)}) == 81  # four digits and a zero

# %% [markdown]
# **2.** `test_padding_weighs_nothing` fails. Bits 00 are the code -1: a kernel that reads whole
# bytes subtracts an input for each padded place. With zeros behind the inputs nobody would notice;
# with a buffer that holds something else there, each output is wrong by its sum.

# %%
codes = np.array([1, 0, -1, 1, 1], np.int8)  # the second byte has three places to spare
honest = pack2(codes)
wrong = honest.copy()
wrong[1] &= 0b11  # bits 00 in the place of 01 01 01
inputs = np.array([1.0, 2, 3, 4, 5, 10, 20, 30])  # what lies behind the five is another's


def product_of_whole_bytes(packed):
    """Sum of code times input over every place of every byte."""
    places = (packed[:, None] >> np.arange(0, 8, 2)) & 3  # (bytes, 4)
    return (places.ravel().astype(int) - 1) @ inputs


assert product_of_whole_bytes(honest) == codes @ inputs[:5]
assert product_of_whole_bytes(wrong) == codes @ inputs[:5] - 60

# %% [markdown]
# **3.** Any matrix whose codes are all alike, whatever its order: the layouts move codes about, and
# there is nothing to tell places apart. (Less plainly: one that repeats every 16 columns, for x86
# and Arm.) The test is about bytes that could be either, and then decodes *differently*: a matrix
# on which the layouts agree decodes to the same codes in both, so nothing would be wrong with it.

# %%
same = np.ones((4, 256), np.int8)
periodic = np.tile(rng.integers(-1, 2, (4, 16)).astype(np.int8), (1, 16))  # (4, 256)
for matrix in (same, periodic):
    x86, arm = (ternary.to_i2_s(matrix, layout=name) for name in ("x86", "arm"))
    np.testing.assert_array_equal(x86, arm)
    np.testing.assert_array_equal(ternary.from_i2_s(x86, (4, 256), layout="arm")[0], matrix)
other = rng.integers(-1, 2, (4, 256)).astype(np.int8)
assert (ternary.from_i2_s(ternary.to_i2_s(other), (4, 256), layout="arm")[0] != other).any()

# %% [markdown]
# **4.** All three take 1.6 bits: $32 / 20 = 64 / 40 = 8 / 5$. A wider word wins nothing until it
# holds a trit more, and $3^{21}$ and $3^{41}$ do not fit. What wider words save is loads, and a
# port may use them inside; a file's bytes are still five trits each, the first in the lowest digit.

# %%
assert 3**20 < 2**32 < 3**21
assert 3**40 < 2**64 < 3**41
assert 32 / 20 == 64 / 40 == 8 / 5
trits = rng.integers(-1, 2, 20).astype(np.int8)
word = int(((trits.astype(object) + 1) * 3 ** np.arange(20, dtype=object)).sum())  # in 32 bits
five_each = [word // 3**n % 3**5 for n in (0, 5, 10, 15)]
np.testing.assert_array_equal(pack_base3(trits), five_each)
np.testing.assert_array_equal(unpack_base3(np.array(five_each, np.uint8), 20), trits)
