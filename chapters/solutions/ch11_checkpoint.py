# %% [markdown]
# # Solutions: real files

# %%
import json
import tempfile
from pathlib import Path

import numpy as np

from minibit.checkpoint import CheckpointError, load_bitnet, save_bitnet
from minibit.matmul import ternary_matmul
from minibit.ternary import TernaryMatrix, from_hf, pack2, pack_base3, to_hf
from minibit.transformer import BitNetConfig, BitNetModel, init_params

rng = np.random.default_rng(0)
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
config = BitNetConfig(32, 16, 32, layers=2, heads=2, kv_heads=1, max_positions=16)
model = BitNetModel(config, init_params(config, 0))
save_bitnet(model, folder / "model")

# %% [markdown]
# **1.** The published model has 30 layers of hidden size 2560 and GLU size 6912, with 20 heads, 5
# of them for keys: 2.08 billion ternary weights, 521 MB at four per byte and 417 MB at five. A
# fifth less to read per token, and more to compute: digits of base 3 do not come off with a mask
# (chapter 3). A kernel whose time is the reading could win; it would decode once at loading
# otherwise, and the file is what is shipped.

# %%
d, f, kv = 2560, 6912, 5 * 128
weights = 30 * (2 * d * d + 2 * d * kv + 3 * d * f)
row = rng.integers(-1, 2, d).astype(np.int8)
sizes = {
    name: weights // d * pack(row).size / 1e6
    for name, pack in (("2 bits", pack2), ("base 3", pack_base3))
}
print(f"{weights / 1e9:.2f} billion weights;", {name: f"{mb:.0f} MB" for name, mb in sizes.items()})
assert round(sizes["2 bits"] - sizes["base 3"]) == 104

# %% [markdown]
# **2.** To -1: bits 00 are the code of -1. Who reads must know the number of rows, which the file's
# packed shape does not tell, and slice; it is in the configuration.

# %%
codes = rng.integers(-1, 2, (6, 8)).astype(np.int8)
packed = to_hf(codes)
assert packed.shape == (2, 8)
whole = from_hf(packed, 8)
np.testing.assert_array_equal(whole[:6], codes)
assert (whole[6:] == -1).all()

# %% [markdown]
# **3.** Another `rope_theta`, say, or another scale of one matrix: any number is a legal one. The
# shapes fit, the codes are codes, and the model computes something else. Only what a file says
# *twice* can be checked; a digest, or a text with a known loss, finds the rest.

# %%
path = folder / "model" / "config.json"
settings = json.loads(path.read_text())
names = [key for key in settings if "theta" in key] or ["rope_parameters"]
changed = {
    **settings,
    names[0]: 500.0
    if names[0] != "rope_parameters"
    else {**settings["rope_parameters"], "rope_theta": 500.0},
}
tokens = rng.integers(0, 32, (1, 8))
before = load_bitnet(folder / "model").logits(tokens)
path.write_text(json.dumps(changed))
after = load_bitnet(folder / "model").logits(tokens)
print(
    f"a changed {names[0]}: loaded without a word, logits differ by {np.abs(after - before).max():.1e}"
)
assert after.shape == before.shape
assert np.abs(after - before).max() > 0
path.write_text(json.dumps(settings))

# %% [markdown]
# **4.** Those whose largest magnitude is $127 \cdot 2^e$, of entries that are whole multiples of
# $2^e$. Then $127 \cdot \mathrm{fl}(1/m)$ is a power of two, no product is rounded, and sums of
# integers below $2^{24}$ are exact in float32 in any order. With other tokens theirs and ours round
# on different ways.

# %%
matrix = TernaryMatrix.from_codes(rng.integers(-1, 2, (64, 320)).astype(np.int8), 1 / 32)
exact = rng.integers(-127, 128, (16, 320)).astype(np.float32)
exact[:, 0] = 127
exact *= np.float32(2) ** rng.integers(-8, 8, (16, 1)).astype(np.float32)
other = rng.standard_normal((16, 320)).astype(np.float32)
for name, x in (("exact", exact), ("any", other)):
    scale = np.float32(1) / np.abs(x).max(axis=1, keepdims=True) * np.float32(127)
    theirs = (np.rint(x * scale) / scale) @ (matrix.codes().astype(np.float32) / 32).T  # on floats
    equal = np.mean(ternary_matmul(x, matrix) == theirs)
    print(f"{name} tokens: {equal:.0%} of the outputs are equal to the bit")
    assert (equal == 1) == (name == "exact")

# %% [markdown]
# **5.** A name of the index must be a plain file name of this directory: `/etc/passwd.safetensors`
# is refused as text, before anything is opened. A link with a plain name is refused once it is
# resolved and lies outside. The cache of Hugging Face consists of links into its own `blobs`,
# beside the snapshots: these alone are allowed, for the files were put there by the same program.

# %%
index = {"metadata": {}, "weight_map": {"model.norm.weight": "/etc/passwd.safetensors"}}
(folder / "tricked").mkdir()
(folder / "tricked" / "config.json").write_text(path.read_text())
(folder / "tricked" / "model.safetensors.index.json").write_text(json.dumps(index))
said = []
try:
    load_bitnet(folder / "tricked")
except CheckpointError as error:
    said.append(str(error))
(folder / "model" / "model.safetensors").rename(folder / "elsewhere.safetensors")
(folder / "model" / "model.safetensors").symlink_to(folder / "elsewhere.safetensors")
try:
    load_bitnet(folder / "model")
except CheckpointError as error:
    said.append(str(error))
print(*(text.replace(str(folder), "...") for text in said), sep="\n")
assert "no plain file name" in said[0]
assert "is a link out of the directory" in said[1]
temporary.cleanup()
