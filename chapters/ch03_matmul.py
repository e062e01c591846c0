# %% [markdown]
# # The ternary product: from a loop to the machine's limit
#
# **The question.** A product with weights of -1, 0 and 1 needs no multiplication: add some inputs,
# subtract others. So why does a loop that does just that lose to a library that multiplies floats?
# And how fast can it be?
#
# $$z_{r} = \sum_k t_{rk}\, q_k, \qquad t \in \{-1, 0, 1\},\quad q \in \{-128, \dots, 127\}$$
#
# We climb a ladder. Every rung computes the same int32 numbers, checked before it is timed. What
# matters at each step is how many bytes it reads, and how many weights one instruction handles.

# %%
import os
import re
import time

import matplotlib.pyplot as plt
import numpy as np
from numba import njit

from minibit import kernels, plots
from minibit.bench import expect_time
from minibit.matmul import MAX_INPUTS, ternary_matmul, ternary_matmul_int8, ternary_matmul_reference
from minibit.ternary import TernaryMatrix, pack2
from minibit.ternary.panels import pack_columns, pack_panels

plots.style(show=True)
rng = np.random.default_rng(3)
n_out, n_in = 2048, 4096
codes = rng.integers(-1, 2, (n_out, n_in), dtype=np.int8)  # (n_out, n_in)
q = rng.integers(-127, 128, n_in, dtype=np.int8)  # (n_in,)
expected = codes.astype(np.int64) @ q  # (n_out,)
seconds = {}


def climb(name, function, rounds=15):
    """Check a rung against the exact product, then take the median of its times."""
    np.testing.assert_array_equal(np.ravel(function()), expected)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    seconds[name] = float(np.median(times))
    print(
        f"{name:24s} {seconds[name] * 1e6:9.0f} us, {n_out * n_in / seconds[name] / 1e9:7.1f} weights a ns"
    )


w, x = codes.astype(np.float32), q.astype(np.float32)
climb("NumPy float32", lambda: (w @ x).astype(np.int32))

# %% [markdown]
# NumPy reads 4 bytes per weight. That is its limit: one token uses each weight once, so the time is
# that of reading the matrix.
#
# ## Rung 1: the loop without a multiplication
#
# Packed at 2 bits, four weights are one byte. Take each apart, and add, subtract, or do nothing.


# %%
@njit
def branches(packed, q, n_out):
    """Add where the code is 1, subtract where it is -1."""
    out, lines = np.zeros(n_out, np.int32), q.size // 4
    for r in range(n_out):
        total = 0
        for j in range(lines):
            byte = packed[r * lines + j]
            for i in range(4):
                code = (byte >> 2 * i) & 3
                if code == 2:
                    total += q[4 * j + i]
                elif code == 0:
                    total -= q[4 * j + i]
        out[r] = total
    return out


packed = pack2(codes)
climb("1 loop, no multiplication", lambda: branches(packed, q, n_out), rounds=3)
assert packed.nbytes == w.nbytes // 16
if kernels.compiled():
    expect_time(
        seconds["1 loop, no multiplication"] > seconds["NumPy float32"],
        "a loop with branches is slower than NumPy",
    )

# %% [markdown]
# A sixteenth of the bytes, and slower. A branch that random weights decide is guessed wrong a third
# of the time or more, and a wrong guess costs as much as dozens of multiplications. *Not
# multiplying saves nothing: the multiplier is there, and idle.* What costs is one weight at a time.
#
# ## Rung 2: four at a time, by table
#
# Four weights are one byte, and a byte has 256 values. For each four inputs, tabulate the sums of
# all 256; a row then looks up one sum per byte.


# %%
@njit
def lookup(columns, q, n_out):
    """Look up the sum of four columns by their byte; bytes of four columns lie side by side."""
    out = np.zeros(n_out, np.int32)
    table = np.zeros(256, np.int32)
    for j in range(q.size // 4):
        for byte in range(256):
            total = 0
            for i in range(4):
                total += (((byte >> 2 * i) & 3) - 1) * q[4 * j + i]
            table[byte] = total
        line = columns[j * n_out : (j + 1) * n_out]
        for r in range(n_out):
            out[r] += table[line[r]]
    return out


columns = pack_columns(codes)
climb("2 table of 256 sums", lambda: lookup(columns, q, n_out), rounds=5)

# %% [markdown]
# ## Rung 3: sixty-four at a time, by counting
#
# Put the ones of a row into one bit-plane, the minus ones into another, and the inputs into eight
# planes, one per binary digit. A product of planes is AND and a count:
# $\sum_b \pm 2^b\,(|P \wedge X_b| - |M \wedge X_b|)$. No weight is ever decoded, but every weight
# is met 8 times, once per digit.

# %%
if kernels.compiled():
    from minibit.kernels import bitplanes

    planes = np.packbits(np.stack([codes == 1, codes == -1]), axis=2, bitorder="little").view(
        np.uint64
    )
    plus, minus = planes[0].copy(), planes[1].copy()  # (n_out, n_in / 64) each
    counted = np.zeros(n_out, np.int32)

    def by_counting():
        bitplanes.product(q, plus, minus, counted)
        return counted

    climb("3 bit-planes", by_counting)

# %% [markdown]
# ## Rung 4: a loop that a compiler can see through
#
# Now multiply. Lay four columns of *all rows* side by side (`minibit.ternary.panels`, "columns"),
# and loop over rows: 16 or 32 rows fill a register, each is multiplied by the same input, and
# nothing is summed across lanes. Sums stay in int16 while they fit: $16 \cdot 2 \cdot 128 = 4096$ a
# step of 16 columns, so 8 steps. This is the portable kernel: plain Python text, and LLVM makes the
# vectors.

# %%
token = q[None]  # (1, n_in)


def on_path(path):
    """The library's product, on a kernel path: a matrix is laid out for the path in force when it is made."""
    before = os.environ.get("MINIBIT_KERNELS", "auto")
    os.environ["MINIBIT_KERNELS"] = path
    matrix = TernaryMatrix.from_codes(codes)
    os.environ["MINIBIT_KERNELS"] = before
    return lambda: ternary_matmul_int8(token, matrix, threads=1)


if kernels.compiled():
    climb("4 portable vectors", on_path("portable"))
    expect_time(
        seconds["4 portable vectors"] < seconds["1 loop, no multiplication"] / 4,
        "portable vectors are over 4 times as fast as the loop",
    )

# %% [markdown]
# ## Rung 5: the instruction that was made for this
#
# CPUs have a dot product of bytes: `vpdpbusd` (x86) multiplies 64 unsigned by 64 signed bytes and
# adds each four products into one of 16 int32 sums; `sdot` is Arm's. A *panel* is laid out for it:
# a 64-byte vector holds 64 rows by 4 columns. The unsigned side is $t + 1$ in place of $t$. The 1
# adds the sum of the inputs to each result, so that sum is subtracted once:
# $\sum_k t_k q_k = \sum_k (t_k + 1)\,q_k - \sum_k q_k$.
#
# The four codes of a byte belong to four *rows*, 16 apart. So the same four inputs, loaded once
# into all lanes, meet all four groups of rows. (With four columns in a byte it would take four such
# loads, and loading would be the limit: a core can load two vectors per cycle.) The codes are
# masked out and never shifted down. The sums of group $j$ are then $4^j$ times too large; one shift
# of each *sum* divides by that, exactly.

# %%
ones = np.eye(64, dtype=np.int8)  # row r has its one in column r
vectors = pack_panels(ones).reshape(16, 64)  # (column / 4, byte)
for row in range(64):  # column r is in vector r / 4; the row's code is in the bits of its group
    byte, group = 4 * (row % 16) + row % 4, row // 16
    assert vectors[row // 4, byte] == 0b01_01_01_01 + (1 << 2 * group)

# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(9.6, 1.9))
axes.imshow(np.tile(np.arange(64)[None] // 16, (4, 1)), cmap="Pastel1", aspect="auto")
for row in range(64):
    for column in range(4):
        axes.text(row, column, f"{4 * (row % 16) + column}", ha="center", va="center", fontsize=5)
axes.set_xticks(range(0, 64, 4))
axes.set_yticks(range(4))
axes.set(xlabel="row of the panel; one colour: the same 2 bits of a byte", ylabel="column")
axes.set_title("Which of the 64 bytes of a vector holds a weight", loc="left")
axes.grid(False)

# %%
fastest = kernels.path()
if kernels.compiled():
    climb(f"5 panels ({fastest})", on_path(fastest))
    expect_time(
        seconds[f"5 panels ({fastest})"] < seconds["NumPy float32"] / 2,
        "panels are over twice as fast as NumPy",
    )

# %% [markdown]
# ### The inner loop, as the machine sees it
#
# Vectors are spelled out in Numba through a small layer of intrinsics (`minibit/kernels/simd.py`),
# and one loop (`minibit/kernels/product.py`) compiles for any number of tokens, groups of rows and
# lanes. For one token, all four groups and 16 lanes, this is what two loads of weights become: each
# is masked four times, and meets four inputs in four dot products. Columns take turns between two
# sets of sums, so that no sum waits for the one before it.

# %%
if fastest in ("vnni", "amx"):
    from numba import types

    from minibit.kernels.product import Tokens, multiply

    loop = njit(nogil=True)(multiply.py_func)
    acts, minus = types.Array(types.int8, 1, "C"), types.Array(types.int32, 1, "C")
    tokens = types.NamedTuple((acts, types.intp, types.intp, minus, types.none), Tokens)
    panels, out = (
        types.Array(types.uint8, 1, "C", readonly=True),
        types.Array(types.int32, 2, "C"),
    )
    tile = types.Tuple([types.UniTuple(types.intp, count) for count in (1, 4, 16)])
    loop.compile((tokens, panels, out, types.intp, types.intp, types.intp, tile))
    lines = [line.strip() for line in loop.inspect_asm(loop.signatures[0]).splitlines()]
    dots = [i for i, line in enumerate(lines) if line.startswith("vpdpbusd")]
    used = [line for line in lines[dots[8] - 10 : dots[15] + 1] if not line.startswith(("#", "."))]
    print("\n".join(used[:26]))
    assert not [line for line in used if re.search(r"\bv?p?mul", line)]  # no other multiplication

# %% [markdown]
# So there *is* a multiplication, 64 per instruction, and it is free: the additions that a
# "multiplication-free" kernel would do instead cost the same instruction slots, one for 16 or 64
# lanes. The argument against multiplying is about energy and silicon, for chips that are still to
# be built. On the CPU that you have, ternary weights win because they are *small*.
#
# ## The roofline
#
# A kernel can be no faster than memory brings bytes, nor than the dot products multiply. One token
# uses each weight once: it sits on the slope. Many tokens use each weight many times, and reach the
# roof.

# %%
tokens_each = [1, 2, 4, 8, 12, 48, 192]
packed_matrix = TernaryMatrix.from_codes(codes)
speeds = []
for tokens in tokens_each:
    many = rng.integers(-127, 128, (tokens, n_in), dtype=np.int8)  # (tokens, n_in)
    np.testing.assert_array_equal(
        ternary_matmul_int8(many, packed_matrix, threads=1),
        many.astype(np.float64) @ codes.T.astype(np.float64),
    )
    times = []
    for _ in range(25):
        start = time.perf_counter()
        ternary_matmul_int8(many, packed_matrix, threads=1)
        times.append(time.perf_counter() - start)
    speeds.append(n_out * n_in * tokens / np.median(times) / 1e9)

# multiplications per byte of weights
intensity = np.array(tokens_each) * n_out * n_in / packed_matrix.nbytes
if fastest in ("vnni", "amx"):
    from minibit.kernels import peaks

    words = packed_matrix._packed.view(np.uint64)
    scratch = np.zeros(24 * 16, np.int32)
    peaks.read(words), peaks.vnni(10, scratch)
    bandwidth, peak = [], []
    for _ in range(9):
        start = time.perf_counter()
        peaks.read(words)
        bandwidth.append(words.nbytes / (time.perf_counter() - start) / 1e9)
        start = time.perf_counter()
        done = peaks.vnni(100_000, scratch)
        peak.append(done / (time.perf_counter() - start) / 1e9)
    bandwidth, peak = np.median(bandwidth), np.median(peak)
    print(f"plain read {bandwidth:.0f} GB/s, peak {peak:.0f} multiplications a ns")
    expect_time(speeds[0] < peak, "one token is nowhere near the roof")
    expect_time(max(speeds[1:]) > speeds[0], "many tokens are multiplied faster than one")

# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(7.2, 4.2))
if fastest in ("vnni", "amx"):
    slope = np.geomspace(0.2, 1000, 50)
    roof = np.minimum(slope * bandwidth, peak)
    axes.loglog(slope, roof, color="0.4", label="plain read, then vpdpbusd's peak")
axes.loglog(intensity, speeds, "o-", label=f"panels, 1 to {tokens_each[-1]} tokens")
for rung, (name, taken) in enumerate(seconds.items()):
    bytes_each = 4.0 if name == "NumPy float32" else 0.25
    axes.loglog(1 / bytes_each, n_out * n_in / taken / 1e9, "s", markersize=5)
    axes.annotate(
        name,
        (1 / bytes_each, n_out * n_in / taken / 1e9),
        textcoords="offset points",
        xytext=(-6, -3) if rung % 2 else (6, -3),  # in turn: neighbours would meet
        ha="right" if rung % 2 else "left",
        fontsize=7,
    )
plots.label_axes(
    axes, "multiplications per byte of weights", "multiplications per ns", "One core's roofline"
)

# %% [markdown]
# ## Fewer bytes: base 3
#
# On the slope, bytes are time. Five weights fit a byte ($3^5 = 243$): 1.6 bits each, a fifth less
# to read. But digits don't come off with a mask. The kernel in `minibit/kernels/base3.py` splits
# one off by two comparisons and looks the other four up in a table that fills two registers, 64
# bytes at once. So it pays where reading is all that counts, from memory, and not where the weights
# lie in a cache that is faster than the arithmetic.

# %%
if fastest in ("vnni", "amx") and kernels._cpu_features().get("avx512vbmi"):
    from minibit.kernels import base3

    packed = base3.pack(codes)
    token, result = rng.integers(-127, 128, (1, n_in), dtype=np.int8), np.empty(n_out, np.int32)
    print(
        f"{8 * packed_matrix.nbytes / codes.size:.2f} and {8 * packed.nbytes / codes.size:.2f} bits per weight"
    )
    for source, copies in (("from the cache", 1), ("from memory", 24)):
        panels = [TernaryMatrix.from_codes(codes) for _ in range(copies)]
        thirds = [base3.pack(codes) for _ in range(copies)]
        times = {"panels": [], "base 3": []}
        for _ in range(9):
            for name in times:
                start = time.perf_counter()
                for one, other in zip(panels, thirds, strict=True):
                    if name == "panels":
                        ternary_matmul_int8(token, one, threads=1)
                    else:
                        base3.product(token[0], other, base3.TABLE, result)
                times[name].append((time.perf_counter() - start) / copies)
        np.testing.assert_array_equal(result, ternary_matmul_int8(token, packed_matrix)[0])
        both = (1e6 * np.median(taken) for taken in times.values())
        print("{}: panels {:.0f} µs, base 3 {:.0f} µs".format(source, *both))

# %% [markdown]
# ## Two threads
#
# Products of one matrix's rows don't depend on each other, so threads share them as ranges of rows,
# and no bit changes. Two things keep two threads from being twice as fast. Where one core already
# takes all that memory gives, a second gets nothing more. And to wake a sleeping thread takes some
# 50 µs, as long as this whole product: so the workers look for the next product for a tenth of a
# millisecond before they sleep, without Python's lock (`minibit.kernels.threads`).

# %%
token = rng.integers(-127, 128, (1, n_in), dtype=np.int8)  # (1, n_in)
for threads in (1, 2):
    np.testing.assert_array_equal(
        ternary_matmul_int8(token, packed_matrix, threads=threads),
        ternary_matmul_int8(token, packed_matrix),
    )
    times = []
    for _ in range(30):
        start = time.perf_counter()
        ternary_matmul_int8(token, packed_matrix, threads=threads)
        times.append(time.perf_counter() - start)
    print(f"{threads} thread(s): {1e6 * np.median(times):.0f} µs a token")

# %% [markdown]
# ## Floats in, floats out
#
# A layer gets floats. `ternary_matmul` rounds each token to int8 by its largest magnitude (the next
# chapter), multiplies exactly, and scales. The kernels do this in the same pass, and give the bits
# of the three-line reference. A NaN is found by the same integer maximum that finds the scale:
# checking costs nothing extra.

# %%
floats = rng.standard_normal((5, n_in), dtype=np.float32)  # (batch, n_in)
scaled = TernaryMatrix.from_codes(codes, scale=0.02)
np.testing.assert_array_equal(
    ternary_matmul(floats, scaled), ternary_matmul_reference(floats, scaled)
)
exact = floats @ (scaled.scale * codes.astype(np.float32)).T
error = np.linalg.norm(ternary_matmul(floats, scaled) - exact) / np.linalg.norm(exact)
print(f"what int8 activations cost: {error:.2%} of the output")
assert error < 0.02
print(
    f"{packed_matrix.nbytes:,} bytes held, {packed_matrix.packed_nbytes:,} in a file; at most {MAX_INPUTS:,} inputs"
)

# %% [markdown]
# ## What a port needs
#
# 1. The panel layout of `minibit.ternary.panels`, or any other: it is private to a machine, and
#    files never hold it.
# 2. A dot product of unsigned by signed bytes into int32, or signed by signed with codes shifted
#    down to 0..2 (`sdot`). AVX2's `vpmaddubsw` keeps int16 sums: count how many fit. AMX wants
#    codes decoded into tiles; the layout above is already in its order.
# 3. Minus the sum of the inputs, and the order of float operations of `ternary_matmul_reference`.
# 4. The cases in `minibit/vectors/matmul.json`, and the bound: with codes left in place, one sum of
#    $64 \cdot 2 \cdot (-128)$ per input reaches $-2^{31}$ at $2^{17}$ inputs. More are refused.
#
# **Limits.** The times above are of this page's machine, on one core, beside whatever else ran
# there; `minibit bench gemv` and `minibit bench matmul` measure with more care. The AMX kernel has
# been compiled, and its indices run on emulated tiles, not timed. Small matrices (256 by 256) take
# about a microsecond, most of which is Python's call.
#
# **Exercises.**
#
# 1. Base 3 reads a fifth less and computes more: from how many cores on does it win where weights
#    lie in a cache that all share? Use the two speeds printed above;
#    `test_the_base3_product_is_exact` runs the kernel.
# 2. Double `MAX_INPUTS`: on which paths does `test_no_sum_overflows_up_to_the_bound_on_inputs`
#    fail, in which group of rows, and why not on the others?
# 3. Change one index in `pack_panels_reference`: which tests notice? Start with
#    `test_a_panel_puts_each_code_where_the_layout_says`.
#
# **Sources.**
#
# - Williams, Waterman and Patterson (2009), *Roofline: An Insightful Visual Performance Model for
#   Multicore Architectures*, Communications of the ACM 52.
# - Wang et al. (2024), *1-bit AI Infra: Part 1.1, Fast and Lossless BitNet b1.58 Inference on
#   CPUs*, arXiv:2410.16144.
