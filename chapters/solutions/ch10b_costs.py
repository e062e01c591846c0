# %% [markdown]
# # Solutions: what a ternary model saves, on paper

# %%
import json
from importlib import resources

import numpy as np

from minibit.transformer import costs
from minibit.transformer.costs import B158, FP16, SHAPES, Weights

# %% [markdown]
# **1.** One factor cannot be near 1 for the matrices and above 3 for the embeddings. Small models
# in b1.58, whose embeddings are most of their bytes, come out far too small.

# %%
file = resources.files("minibit") / "transformer" / "published.json"
points = [c for c in json.loads(file.read_text())["cases"] if c["function"] == "memory_gb"]
gb = np.array([case["published"] for case in points])
parts = []
for case in points:
    shape, each = SHAPES[case["shape"]], {"fp16": FP16, "b1.58": B158}[case["weights"]].bytes
    parts.append([shape.matrix_weights * each / 1e9, 4 * shape.head_weights / 1e9])
parts = np.array(parts)  # (points, 2)
one = parts.sum(axis=1)
factor = one @ gb / (one @ one)
off_one, off_two = factor * one - gb, parts @ np.linalg.lstsq(parts, gb, rcond=None)[0] - gb
print(f"one factor {factor:.2f}: off by up to {np.abs(off_one / gb).max():.0%}")
print(f"two factors: off by up to {np.abs(off_two / gb).max():.1%}")
assert len(points) == 7
assert np.abs(off_one).max() > 5 * np.abs(off_two).max()
assert np.abs(off_one / gb).max() > 0.2

# %% [markdown]
# **2.** Weights: 13B in b1.58 reads fewer bytes than 3B in FP16, by a fixed amount. Each token of
# cache costs it more. The quotient of the two is the number. 70B has 8 heads for keys and values
# where 13B has 40, so a token of its cache is *smaller*: there is nothing to turn.

# %%
big, small = SHAPES["13B"], SHAPES["3B"]
saved = costs.step_bytes(small, FP16) - costs.step_bytes(big, B158)
turn = saved / (costs.cache_bytes(big, 1) - costs.cache_bytes(small, 1))
print(f"13B b1.58 is slower from {turn:,.0f} tokens on")
times = [
    [costs.step_seconds(s, w, tokens=int(turn) + more) for s, w in ((big, B158), (small, FP16))]
    for more in (-10, 10)
]
assert times[0][0] < times[0][1]
assert times[1][0] > times[1][1]
assert costs.cache_bytes(SHAPES["70B"], 1) < costs.cache_bytes(big, 1)

# %% [markdown]
# **3.** One card of 80 GB, texts of 512 tokens. By hand: matrices, embedding and head once, the
# rest over the cache of one text.

# %%
memory, tokens = 80e9, 512
for name, weights in (("FP16", FP16), ("b1.58", B158)):
    held = big.matrix_weights * weights.bytes + 2 * big.head_weights * 2
    cache = 2 * big.layers * big.hidden * tokens * 2  # as many heads of keys as of queries
    batch = int((memory - held) / cache)
    print(f"{name}: {held / 1e9:.1f} GB of weights, {cache / 1e6:.0f} MB for a text: {batch} texts")
    assert batch == costs.largest_batch(big, weights, memory=memory, tokens=tokens)
    assert held + batch * cache <= memory < held + (batch + 1) * cache

# %% [markdown]
# **4.** Five trits per byte are 0.2 bytes per weight in place of 0.25, a fifth of the bytes of the
# matrices. But the head, the embedding's row and the cache stay in 16 bits, and what is left to
# save shrinks.

# %%
seven = SHAPES["7B"]
thirds = Weights(0.2, B158.pj)
energy = {
    name: sum(costs.token_energy(seven, w, tokens=512))
    for name, w in (("FP16", FP16), ("2 bits", B158), ("1.6 bits", thirds))
}
for name, each in energy.items():
    print(f"{name:9} {1e3 * each:6.1f} mJ per token, {energy['FP16'] / each:.2f} times less")
more = 1 - energy["1.6 bits"] / energy["2 bits"]
print(f"five per byte saves {more:.0%} more, not 20%")
assert 0.1 < more < 0.2
