# %% [markdown]
# # Solutions: GGUF

# %%
import tempfile
from pathlib import Path

import numpy as np

from minibit.checkpoint import CheckpointError, load_gguf, save_gguf
from minibit.ternary import TernaryMatrix, from_i2_s, from_tq2_0, to_i2_s, to_tq2_0
from minibit.transformer import BitNetConfig, BitNetModel, init_params, param_shapes

rng = np.random.default_rng(0)
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
config = BitNetConfig(7, 256, 256, layers=1, heads=4, kv_heads=4, max_positions=16)


def model_with(scale, zeros_in=()):
    """A model whose projections are random trits of one scale; some are all zeros."""
    params = init_params(config, 0)
    for name, shape in param_shapes(config).items():
        if name.endswith("_proj"):
            codes = rng.integers(-1, 2, shape).astype(np.int8) * (name not in zeros_in)
            params[name] = TernaryMatrix.from_codes(codes, scale)
    return BitNetModel(config, params)


# %% [markdown]
# **1.** `i2_s` keeps one float32 for the matrix, `tq2_0` a float16 for each 256 weights. $10^{-6}$
# in float16 is a subnormal number, a multiple of $2^{-24}$: 17 of them, and 1.3% off. Every weight
# would be wrong by that, and nobody would be told.

# %%
half = float(np.float16(1e-6))
print(f"1e-6 becomes {half:.4e}: {half / 1e-6 - 1:.1%} off")
assert half == 17 * 2.0**-24
assert 0.013 < half / 1e-6 - 1 < 0.014
tiny = model_with(1e-6)
save_gguf(tiny, folder / "tiny.gguf", "i2_s")
name = "layers.0.self_attn.q_proj"
assert load_gguf(folder / "tiny.gguf").params[name].scale == np.float32(1e-6)
try:
    save_gguf(tiny, folder / "refused.gguf", "tq2_0")
except ValueError as error:
    print(error)
else:
    raise AssertionError("a scale that float16 does not hold was written")
assert not (folder / "refused.gguf").exists()

# %% [markdown]
# **2.** Both put four codes into a byte: columns $c, c + 32, c + 64, c + 96$ for x86, and
# $c, c + 16, c + 32, c + 48$ of half as many for Arm. Of 128 columns 32 have the same byte and bits
# in both, and are right whatever the codes are. The others are right when two codes happen to be
# equal, a third of the time.

# %%
there = np.arange(128)  # which column the Arm reading finds where an x86 file has column c
moved = np.empty(128, int)
for column in there:
    codes = -np.ones((1, 128), np.int8)
    codes[0, column] = 1
    (moved[column],) = np.flatnonzero(from_i2_s(to_i2_s(codes), (1, 128), layout="arm")[0][0] == 1)
fixed = np.mean(moved == there)
print(
    f"{fixed:.0%} of the columns stay where they are:", np.flatnonzero(moved == there)[:20], "..."
)
codes = rng.integers(-1, 2, (256, 512)).astype(np.int8)
agree = np.mean(from_i2_s(to_i2_s(codes), codes.shape, layout="arm")[0] == codes)
print(f"{agree:.1%} agree, expected {fixed + (1 - fixed) / 3:.1%}")
assert fixed == 1 / 4
assert abs(agree - (fixed + (1 - fixed) / 3)) < 0.01

# %% [markdown]
# **3.** Within the header a string, a list or a count that goes on beyond the end; behind it the
# offset and the size of a tensor, which the header has told before. The error has the byte.

# %%
content = (folder / "tiny.gguf").read_bytes()
found = {}
for at in (3, 20, 200, len(content) // 2, len(content) - 33):
    (folder / "cut.gguf").write_bytes(content[:at])
    try:
        load_gguf(folder / "cut.gguf")
    except CheckpointError as error:
        found[at] = error.offset
        print(f"cut at {at:,}:", str(error).replace(str(folder), "..."))
assert len(found) == 5
assert None not in found.values()

# %% [markdown]
# **4.** Anything: nothing is multiplied by it. A reader passes over such blocks and takes the scale
# of the others, which must be one. A matrix of such blocks alone has no scale at all, and no
# trained matrix is all zeros: it is a known defect of uploads, and refused.

# %%
codes = rng.integers(-1, 2, (2, 512)).astype(np.int8)
codes[0, :256] = 0
back, scales = from_tq2_0(to_tq2_0(codes, 0.5))
print("scales of the blocks:", scales.ravel())
np.testing.assert_array_equal(back, codes)
assert scales[0, 0] == 0
assert set(scales.ravel()[1:]) == {0.5}
try:
    save_gguf(model_with(0.5, zeros_in=(name,)), folder / "zeros.gguf", "tq2_0")
    load_gguf(folder / "zeros.gguf")
    complaint = ""
except (CheckpointError, ValueError) as error:
    complaint = str(error).replace(str(folder), "...")
print(complaint)
assert "all its codes are 0" in complaint
temporary.cleanup()
