# %% [markdown]
# # Solutions: what forward training costs

# %%
import tempfile
from math import comb, log2
from pathlib import Path

import numpy as np

from minibit import noise
from minibit.datasets import load_mnist
from minibit.dual import jvp
from minibit.layers import cross_entropy, init_mlp, mlp
from minibit.noise_step import MLP, NoiseStep, Units
from minibit.steps import StepLog
from minibit.training import PRESETS, train

data = load_mnist()
first = init_mlp((784, 256, 256, 256, 10), lambda k, s: noise.initial_codes(0, s, 0.7, layer=k))

# %% [markdown]
# **1.** Times and the memory in use may change. Sums, codes, bytes and accuracies must not: a batch
# is always cut into the same parts, and their sums are added in the same order, whoever computes
# them.

# %%
records = []
for threads in (1, 2):
    run = NoiseStep(MLP(0.12), first, 0, Units((16, 16, 16, 4)), threads=threads)
    for step in range(3):
        rows = noise.integers(0, 60_000, 256, domain=noise.USER, step=step)
        records.append(run.step(data.train_x[rows], data.train_y[rows].astype(int)).record)
for one, two in zip(records[:3], records[3:], strict=True):
    for a, b in zip(one.positions + one.signs, two.positions + two.signs, strict=True):
        np.testing.assert_array_equal(a, b)

# %% [markdown]
# **2.** $\lfloor \text{rate} \cdot N + u \rfloor$ with $u$ uniform in $[0, 1)$, drawn anew for each
# layer and step: 0 or 1, and the rate on average. A layer without a move costs no bits of
# candidates; one move among 12,544 costs its $\log_2 N$ bits and a sign, under two bytes.

# %%
rate, candidates = 1e-4, [16 * 784, 16 * 256, 16 * 256, 4 * 256]
run = NoiseStep(MLP(0.12), first, 0, Units((16, 16, 16, 4), rate=rate), threads=1)
rows = np.arange(256)
moves = []
for _ in range(60):
    record = run.step(data.train_x[rows], data.train_y[rows].astype(int)).record
    moves.append([len(layer) for layer in record.positions])
moves = np.array(moves)  # (steps, layers)
print(
    "moves per step and layer:",
    moves.mean(axis=0).round(2),
    "expected",
    rate * np.array(candidates),
)
assert set(moves[:, 1:].ravel()) <= {0, 1}
assert set(moves[:, 0]) <= {1, 2}
assert np.abs(moves.mean(axis=0) - rate * np.array(candidates)).max() < 0.2
assert log2(12_544) + 1 < 16

# %% [markdown]
# **3.** The two points are no longer even about $w$, so half of the curvature stays in the
# difference. For a small $\epsilon$ that is nothing, and terns agree as before. For whole moves the
# one-sided difference agrees less: it measures one way, and the slope speaks for both. (It also
# saves half of the passes.)

# %%
K = 48
floats = {name: w.astype(np.float32) for name, w in first.items()}
size, ends = sum(w.size for w in first.values()), np.cumsum([w.size for w in first.values()])[:-1]
flat = np.concatenate([w.ravel() for w in floats.values()])
pixels = (data.train_x[:256] / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)
labels = data.train_y[:256].astype(int)


def lay_out(values):
    """Cut a flat array into the layers' shapes."""
    pieces = np.split(values, ends)
    return {
        name: piece.reshape(floats[name].shape) for name, piece in zip(floats, pieces, strict=True)
    }


def loss(values):
    return float(cross_entropy(mlp(lay_out(values), pixels, logit_scale=0.12), labels))


def terns(a):
    return np.where(np.abs(a) >= np.median(np.abs(a)), np.sign(a), 0)


offsets, positions, signs = noise.sparse_noise_many(7, 0, range(K), size, 6e-5)
v = np.zeros((K, size), np.float32)
v[np.repeat(np.arange(K), np.diff(offsets)), positions] = signs
exact = terns(
    [
        jvp(
            lambda p: cross_entropy(mlp(p, pixels, logit_scale=0.12), labels),
            (lay_out(flat),),
            (lay_out(row),),
        )[1]
        for row in v
    ]
)
here, agree = loss(flat), {}
for epsilon in (np.float32(0.05), np.float32(1)):
    ahead = np.array([loss(flat + epsilon * row) for row in v])
    behind = np.array([loss(flat - epsilon * row) for row in v])
    agree[f"{epsilon:g}"] = [np.mean(terns(a) == exact) for a in (ahead - behind, ahead - here)]
    pair, single = agree[f"{epsilon:g}"]
    print(f"epsilon {epsilon:g}: the same terns for {pair:.0%} by pairs, {single:.0%} one-sided")
assert agree["1"][1] <= agree["1"][0]
assert agree["1"][1] < max(agree["0.05"])

# %% [markdown]
# **4.** Weights at five trits per byte are 66.9 KB. At the last rate of `small` a step is worth
# what its $k$ of $N$ candidates are; the quotient is the number of steps. A short run at this rate,
# and what its file holds per step, agrees. So no run of that length is needed to know (and
# `minibit info` shows it).

# %%
small = PRESETS["small"]
kept = [small.rate[1] * n for n in candidates]
bits = sum(log2(comb(n, round(k))) + round(k) for n, k in zip(candidates, kept, strict=True))
packed = -(-size // 5)
print(
    f"{bits / 8:.1f} bytes per step by entropy: {8 * packed / bits:,.0f} steps in {packed:,} bytes"
)
with tempfile.TemporaryDirectory() as temporary:
    path = Path(temporary) / "last.steps"
    train(
        "small", 0, path, steps=96, batch=(256, 256), rate=(small.rate[1], small.rate[1]), threads=1
    )
    log = StepLog.open(path)
    each = sum(len(record.payload) for record in log.records) / len(log)
print(f"in a file: {each:.1f} bytes per step")
assert 0.8 * bits / 8 < each < 1.3 * bits / 8
assert 8 * packed / bits > small.steps
