# %% [markdown]
# # A model is its steps
#
# **The question.** Training wrote down only which of the seed's proposals it kept. Is that enough
# to be the model? And what can be done with a model that is a list of decisions, and not a list of
# weights?
#
# The weights after $n$ steps are
#
# $$w_n = \operatorname{clamp}(w_{n-1} + \delta_{n-1},\ -1,\ 1), \qquad w_0 =
# \text{initial}(\text{seed}),$$
#
# and each $\delta$ is a sum of integers: the noise of that step, which the seed gives back, picked
# by the step's codes. No float is involved. Whoever has the seed and the codes has every $w_n$, bit
# for bit.

# %%
import tempfile
import time
from itertools import pairwise
from math import comb, log2
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from minibit import plots
from minibit.bench import expect_time
from minibit.datasets import load_mnist, split
from minibit.noise_step import (
    NoiseStep,
    Plan,
    SampledStep,
    Units,
    apply_update,
    digest,
    geometric,
    initial_params,
    sparse_update,
)
from minibit.steps import LogError, StepLog, compact, expand
from minibit.steps.codes import BitWriter
from minibit.steps.file import FRAME
from minibit.steps.replaying import advance, initial_flat
from minibit.training import PRESETS, evaluate, train
from minibit.training.log_header import model_of

plots.style(show=True)
folder = Path(tempfile.mkdtemp())
parts = split(load_mnist())  # 55,000 training images; the last 5,000 are for looking

result = train("small", seed=0, out=folder / "run.steps", steps=240, split_name="validation")
log = StepLog.open(folder / "run.steps")
model = model_of(log.header)


def accuracy(params):
    """Share of the validation images that the weights name right."""
    return evaluate(params, model, parts.validation_x, parts.validation_y)


print(
    f"{len(log)} steps, {log.nbytes / 1000:.1f} KB; validation accuracy {accuracy(log.replay()):.1%}"
)
print(
    f"its {log.plan.size:,} weights at five trits per byte: {result.packed_weight_bytes / 1000:.1f} KB"
)
assert log.digest() == result.digest == digest(log.replay())
assert accuracy(log.replay()) > 0.93
assert log.nbytes < result.packed_weight_bytes / 2

# %% [markdown]
# From the log to the weights, for a corner of 32 x 32 weights of the second layer. The seed draws
# the first weights (a blue plus is +1, an orange dash -1). Each step adds its moves to them, and
# the sum of all is the model:

# %%
half, corner = len(log) // 2, np.s_[:32, :32]
pieces = {
    "the seed's weights": log.weights_at(0)["w2"][corner],
    f"moves of steps 1 to {half}": log.diff(0, half)["w2"][corner],
    f"moves of steps {half + 1} to {len(log)}": log.diff(half, len(log))["w2"][corner],
    "the model": log.replay()["w2"][corner],
}
drawn, early, late, replayed = pieces.values()
assert np.array_equal(drawn + early + late, replayed)

# %% tags=["hide-input"]
fig, panels = plt.subplots(1, 4, figsize=(10, 2.9))
fig.set_label(
    "Four squares of small plus signs and dashes, with +, + and = between them: the "
    "weights that the seed draws, the moves of the first and of the second half of the steps, which "
    "are few, and the weights of the model."
)
for panel, (name, matrix), sign in zip(panels, pieces.items(), ("+", "+", "=", ""), strict=True):
    for value, marker, colour in ((1, "+", plots.PALETTE[0]), (-1, "_", plots.PALETTE[1])):
        rows, columns = np.nonzero(np.sign(matrix) == value)
        panel.plot(columns, rows, marker, color=colour, markersize=4)
    panel.set(xticks=[], yticks=[], xlim=(-1, 32), ylim=(32, -1), aspect="equal")
    panel.set_title(name, fontsize=10)
    panel.text(1.1, 0.5, sign, transform=panel.transAxes, ha="center", va="center", fontsize=16)
    panel.grid(False)

# %% [markdown]
# The digest (SHA-256 of the weights) at which training ended is that of the replay. Training used
# floats, threads and a BLAS; replay uses none of them.
#
# ## What lies on disk
#
# A header in JSON: the *plan* (seed, shapes, how many candidates per step) which replay needs, and
# the recipe, which it does not. Then records of up to 32 steps. Each adds 19 bytes to its codes:
# how many steps, how long, a check of these two, 8 bytes of the weights' digest, and a CRC-32. [The
# log format](../log_format.md) has every byte, a reader in plain Python, and a file worked by hand.

# %%
starts = [0, *(record.offset for record in log.records), log.nbytes]
record = log.records[0]
sizes = {"steps": 1, "length": 4, "check": 2, "codes": len(record.payload), "digest": 8, "crc": 4}

print(
    f"header {starts[1]} bytes, framing {FRAME} bytes for each of {len(log.records)} records of 32 steps or fewer"
)
assert FRAME == 19
assert starts[1] < 1318

# %% tags=["hide-input"]
fig, axes = plt.subplots(2, 1, figsize=(8, 3.2), height_ratios=[1, 1])
for i, (a, b) in enumerate(pairwise(starts)):
    colour = plots.PALETTE[6] if i == 0 else plots.PALETTE[i % 2]
    axes[0].barh(0, b - a, left=a, color=colour, edgecolor="white")
axes[0].text(starts[1] / 2, 0, "header", color="white", ha="center", va="center", rotation=90)
for i, (name, size) in enumerate(sizes.items()):
    axes[1].barh(0, 1, left=i, color=plots.PALETTE[i], edgecolor="white")
    axes[1].text(i + 0.5, 0, f"{name}\n{size:,}", ha="center", va="center", color="white")
for axis, title in zip(
    axes, ["the file, in bytes", "one record, in bytes (not to scale)"], strict=True
):
    axis.set(yticks=[], title=title)
    axis.grid(False)
axes[1].set_xticks([])

# %% [markdown]
# Why a CRC, and a check beside it? A log is written for minutes or hours, and its writer may be
# killed. So two things must never be confused: a file that *ends early*, which opens to its longest
# good prefix, and a file that is *damaged*, which is an error. A length that was damaged points
# past the end, and would look like a file that ends early; the check tells. The CRC runs on through
# the file, so a lost record is noticed like a changed one.

# %%
data = log.path.read_bytes()
(folder / "cut.steps").write_bytes(data[:-100])
cut = StepLog.open(folder / "cut.steps")
print(cut.warning)
assert len(cut) == log.records[-1].first
assert cut.verify() == log.digest(len(cut))

record = log.records[2]
for name, changed in {
    "one bit of a length": data[: record.offset + 2]
    + bytes([data[record.offset + 2] ^ 64])
    + data[record.offset + 3 :],
    "a lost record": data[: record.offset] + data[record.end :],
}.items():
    (folder / "damaged.steps").write_bytes(changed)
    try:
        StepLog.open(folder / "damaged.steps")
    except LogError as error:
        log_error = error
    print(f"{name}: {log_error}")
    assert log_error.offset == record.offset
    del log_error

# %% [markdown]
# ## What the codes cost
#
# Method `sampled` (the paper's) leaves one of $-1, 0, +1$ for each perturbation. `0`, `10`, `11`
# for $0, +1, -1$ cost $2 - p_0$ bits if a share $p_0$ is zero. The median keeps exactly half: there
# the code costs 1.5 bits, and so does the entropy. No arithmetic coder could do better.
#
# Method `units` leaves *which* $K$ of $N$ candidates moved: $\log_2 \binom{N}{K}$ bits, and $K$
# signs. Sorted positions are gaps, gaps are nearly geometric, and for geometric gaps Golomb's code
# is the best that spends whole bits: a quotient by $m \approx \ln 2 / p$ in unary, the rest in
# binary. Rice's shortcut rounds $m$ to a power of two. Both are made for a stream that goes on for
# ever; here each subset is short and its size is known. So `logcodes` chooses
# $m \approx 0.7\,\text{room}/k$ anew at each move from the room and the moves that are left, stores
# no parameter, and spends on the last gap just the logarithm of its room.

# %%
rng = np.random.default_rng(0)


def gap_bits(positions, size):
    """Bits of `logcodes`' code."""
    bits = BitWriter()
    bits.subset(positions.tolist(), size)
    return sum(map(len, bits.parts))


def golomb_bits(positions, m):
    """Bits of Golomb's code with one parameter; Rice's if m is a power of two."""
    quotient, rest = np.divmod(np.diff(positions, prepend=-1) - 1, m)
    width = int(m - 1).bit_length()
    return int(np.sum(quotient + 1 + width - (rest < (1 << width) - m)))


size, counts = 12_544, [1, 2, 4, 8, 16, 32, 64, 128, 256]
above = {"gaps, m from what is left": [], "Golomb, one m": [], "Rice, m a power of two": []}
for count in counts:
    ideal = log2(comb(size, count)) + count
    m = max(1, round(0.69 * size / count))
    draws = [np.sort(rng.choice(size, count, replace=False)) for _ in range(200)]
    for name, cost in zip(
        above,
        (
            lambda q: gap_bits(q, size),
            lambda q, m=m: golomb_bits(q, m),
            lambda q, m=m: golomb_bits(q, 1 << round(np.log2(m))),
        ),
        strict=True,
    ):
        mean = np.mean([cost(q) for q in draws]) + count  # one sign bit each
        above[name].append(100 * (mean / ideal - 1))

p0 = np.linspace(0.01, 0.99, 99)
entropy = -p0 * np.log2(p0) - (1 - p0) * np.log2((1 - p0) / 2)

assert np.min(2 - p0 - entropy) > -1e-12
assert abs((2 - 0.5) - entropy[49]) < 1e-12  # they touch at one half
assert max(above["gaps, m from what is left"][3:]) < 1.0
assert all(
    a < b for a, b in zip(above["gaps, m from what is left"], above["Golomb, one m"], strict=True)
)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
axes[0].plot(p0, 2 - p0, label="0, 10, 11")
axes[0].plot(p0, entropy, label="entropy")
axes[0].axhline(log2(3), color=plots.PALETTE[6], linewidth=0.8, linestyle=":", label=r"$\log_2 3$")
plots.label_axes(axes[0], "share of zeros", "bits per code")
for name, percent in above.items():
    axes[1].semilogx(counts, percent, marker="o", label=name)
axes[1].set_ylim(0, 8)
plots.label_axes(axes[1], f"moves K among {size:,}", "above the entropy (%)")

# %% [markdown]
# And of the run above, with everything counted: the numbers of moves, the digests, the framing. The
# codes come out near the "entropy", which takes every subset for equally likely. They are not: some
# units gain more than others, so moves cluster, and a code that looks at what is left gains a
# little by it.

# %%
candidates = [units * inputs for units, inputs in zip(log.plan.units, log.plan.inputs, strict=True)]
moved = np.array([[len(sign) for sign in step.signs] for step in log.steps()])  # (steps, layers)
ideal = sum(
    log2(comb(n, k)) + k for row in moved.tolist() for n, k in zip(candidates, row, strict=True)
)
payload = 8 * sum(len(record.payload) for record in log.records)
print(
    f"{moved.sum():,} moves; entropy {ideal / 8000:.2f} KB, codes {payload / 8000:.2f} KB, file {log.nbytes / 1000:.2f} KB"
)
assert 0.95 * ideal < payload < 1.03 * ideal
assert 8 * log.nbytes < 1.12 * ideal  # this run is short, and its header weighs

# %% [markdown]
# ## History
#
# Any step's weights are a replay away, and one walk visits as many of them as we like. So the run
# can be looked at long after it ended, on data that nobody had at the time.

# %%
at = list(range(0, len(log) + 1, 20))
begin = time.perf_counter()
past = [accuracy(params) for _, params in log.walk(at)]
print(f"{len(at)} points of the past, evaluated in {time.perf_counter() - begin:.1f} s")
changed = {
    name: np.count_nonzero(delta) / delta.size for name, delta in log.diff(0, len(log)).items()
}
print({name: f"{share:.1%}" for name, share in changed.items()})
assert past[0] < 0.3 < 0.93 < past[-1]
assert all(share < 0.4 for share in changed.values())

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=[2, 1])
axes[0].plot(at, [100 * a for a in past], marker="o")
plots.label_axes(axes[0], "steps", "validation accuracy (%)")
axes[1].bar(list(changed), [100 * share for share in changed.values()])
plots.label_axes(axes[1], "layer", "weights that differ from the seed's (%)")

# %% [markdown]
# Nor must all of the weights be rebuilt: a few rows of one layer need only their own draws. For
# `sampled` these are the noise blocks that meet the rows, for `units` the layer's.

# %%
rows = log.slice("w2", [7, 100], step=200)
print(f"rows 7 and 100 of w2 after 200 steps: {rows.shape}, {np.count_nonzero(rows)} nonzeros")
assert np.array_equal(rows, log.weights_at(200)["w2"][[7, 100]])

# %% [markdown]
# ## The model without its history
#
# A log tells how the model came to be. If only the model matters, the *net* moves from the seed's
# weights to the final ones will do. A weight that moved and moved back is then not told at all.

# %%
small = compact(log)
print(
    f"log {log.nbytes / 1000:.1f} KB, compact {len(small) / 1000:.1f} KB, weights alone {result.packed_weight_bytes / 1000:.1f} KB"
)
assert digest(expand(log.plan, small)) == log.digest()
assert len(small) < log.nbytes

# %% [markdown]
# ## Editing the past
#
# The paper suggests to "edit past steps by masking or negation", and leaves it untried. Each edit
# below writes a new log; this one is never touched. Masked steps move nothing, negated ones move
# the other way, and all others stay as they were trained, for weights that are now different.

# %%
tenth, hundredth = len(log) // 10, len(log) // 100
orders = [rng.permutation(len(log)) for _ in range(5)]
edits = {  # each edit once or, where its steps are drawn, five times
    "as trained": ("mask", [[]]),
    "last step masked": ("mask", [[len(log) - 1]]),
    "1% masked": ("mask", [order[:hundredth] for order in orders]),
    "10% masked": ("mask", [order[:tenth] for order in orders]),
    "last 10% masked": ("mask", [range(len(log) - tenth, len(log))]),
    "1% negated": ("negate", [order[:hundredth] for order in orders]),
    "10% negated": ("negate", [order[:tenth] for order in orders]),
    "last 10% negated": ("negate", [range(len(log) - tenth, len(log))]),
}
after, spread = {}, {}
for i, (name, (edit, draws)) in enumerate(edits.items()):
    edited = [
        getattr(log, edit)(steps, folder / f"edit{i}-{j}.steps") for j, steps in enumerate(draws)
    ]
    measured = [100 * accuracy(one.replay()) for one in edited]
    after[name] = np.mean(measured)
    spread[name] = np.std(measured, ddof=1) if len(measured) > 1 else 0.0
names = list(after)[::-1]
assert log.digest() == result.digest
assert abs(after["last step masked"] - after["as trained"]) < 1
assert after["10% negated"] < after["10% masked"] < after["as trained"]
assert after["10% masked"] < after["last 10% masked"]
assert spread["10% negated"] > spread["10% masked"]

# %% tags=["hide-input"]
fig, axis = plt.subplots(figsize=(8, 3))
axis.barh(names, [after[name] for name in names], xerr=[spread[name] for name in names])
for i, name in enumerate(names):
    text = f"{after[name]:.1f}" + (f" ± {spread[name]:.1f}" if spread[name] else "")
    axis.text(3, i, text, va="center", color="white")
plots.label_axes(axis, "validation accuracy (%)", "")

# %% [markdown]
# (Steps drawn at random: mean and standard deviation of five draws.) One late step hardly matters.
# Steps from anywhere matter more than the last ones, since all that came after was chosen on top of
# them, and a move that is turned round costs more than one that is missing. How much more depends
# on which steps were drawn. An edit is a way to ask what a step was for; it is no way to improve a
# model.
#
# ## Who did it
#
# `blame` names the steps that changed a weight: one row is replayed, and compared step by step.
# `answers` gives what every step's weights name some images, in one walk, and with any function
# from weights and images to logits. When did an image come right for good?

# %%
row, column = np.argwhere(log.diff(0, len(log))["w2"])[0].tolist()
for step, before, then in log.blame("w2", row, column):
    print(f"w2[{row}, {column}]: step {step} turned {before} into {then}")

shown, labels = parts.validation_x[:100], parts.validation_y[:100]
begin = time.perf_counter()
answers = log.answers(model, shown)  # (steps + 1, images)
seconds = time.perf_counter() - begin
right = answers == labels
turns = right[1:] != right[:-1]  # (steps, images)
several = np.mean(turns.sum(axis=0) > 1)
print(f"{answers.size:,} answers in {seconds:.1f} s")
print(f"{several:.0%} of the images turned more than once, one {turns.sum(axis=0).max()} times")


def halved(image):
    """The turn that a binary search finds, between a first answer and another last one."""
    low, high = 0, len(log)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if right[middle, image] == right[-1, image] else (middle, high)
    return low


turned = np.flatnonzero(right[0] != right[-1])
last_turns = {image: int(np.flatnonzero(turns[:, image])[-1]) for image in turned}
missed = np.mean([halved(image) != last for image, last in last_turns.items()])
print(f"a binary search finds another turn than the last for {missed:.0%} of {len(turned)} images")
image = int(turned[0])
assert log.bisect(model, shown[image], int(labels[image])).step == last_turns[image]
assert several > 0.1
assert missed > 0.05

# %% [markdown]
# So `bisect`, which asks for the step after which an image is named right, or wrong, *for good*,
# does not halve. "For good" is about every later answer, so it walks through all of them. A forward
# pass of one image costs no more than the step that it follows.
#
# ## Other pasts
#
# `fork` keeps the first steps of a log and lets another seed draw the rest;
# `train(..., resume=True)` goes on with it. Two forks know things that neither knows alone. `merge`
# adds the moves of both.

# %%
at, more = 120, 40
forks = []
for seed in (1, 2, 3):
    log.fork(at, folder / f"fork{seed}.steps", seed)
    train(out=folder / f"fork{seed}.steps", resume=True, steps=at + more)
    forks.append(StepLog.open(folder / f"fork{seed}.steps"))
alone = [100 * accuracy(fork.replay()) for fork in forks]
pairs = [(0, 1), (0, 2), (1, 2)]
merges = [forks[i].merge(forks[j], folder / f"merge{i}{j}.steps") for i, j in pairs]
together = [100 * accuracy(merged.replay()) for merged in merges]
kept_on = 100 * accuracy(log.weights_at(at + 2 * more))
print(f"at the fork, after {at} steps: {100 * accuracy(log.weights_at(at)):.1f}%")
for name, measured in (("a fork", alone), ("two forks merged", together)):
    print(f"{name}: {np.mean(measured):.1f} ± {np.std(measured, ddof=1):.1f}%")
print(f"as many steps one after another as two forks have: {kept_on:.1f}%")
assert all(merged.digest(at) == log.digest(at) for merged in merges)
assert np.mean(together) > np.mean(alone) - 0.5
assert np.mean(together) < kept_on + 1

# %% [markdown]
# Moves of two branches add up, though each was chosen without the other: training in parallel for
# 40 steps, with one exchange at the end.
#
# ## Taking a contributor back
#
# Where workers or owners of data took part, a file beside the log says who measured which part of
# which step. `revert` writes the log without what one of them put in. Five owners with a sixth of
# the training images each take steps in turn; then the first wants out. `revert` takes out its
# moves exactly. But does the model forget? We compare with training again without it, on its own
# images and on the last sixth, which nobody trained on.

# %%
small, turns_each = PRESETS["small"], 20
images, targets = parts.train_x, parts.train_y.astype(np.int64)
forgotten = {name: [] for name in ("all five", "first reverted", "trained without it")}
for seed in (0, 1, 2):
    shards = np.array_split(np.random.default_rng(seed).permutation(len(targets)), 6)
    method = Units(small.settings().units, rate=geometric(*small.rate, 5 * turns_each))

    def learn(owners, seed=seed, shards=shards, method=method):
        """Steps in turn on each owner's images; those of owners who are out are left out."""
        stepper = NoiseStep.start(
            model, small.shapes, seed, method, zeros=small.zeros, threshold=small.threshold
        )
        draw, taken = np.random.default_rng(seed), []
        for step in range(5 * turns_each):
            chosen = draw.choice(shards[step % 5], 1024)
            if step % 5 not in owners:
                stepper.steps += 1
                continue
            taken.append(stepper.step(images[chosen], targets[chosen]).record)
        return stepper, taken

    stepper, taken = learn(range(5))
    drawn = sum(stepper.plan.units)
    path = folder / f"owners{seed}.steps"
    with StepLog.create(path, {"plan": stepper.plan.to_dict()}) as owned:
        owned.append(taken, shares=[[(0, drawn, f"owner {n % 5}")] for n in range(len(taken))])
    reverted = owned.revert("owner 0", folder / f"reverted{seed}.steps")
    own, nobodys = ((images[shard], targets[shard]) for shard in (shards[0], shards[5]))
    for name, params in zip(
        forgotten, (owned.replay(), reverted.replay(), learn(range(1, 5))[0].params), strict=True
    ):
        forgotten[name].append([100 * evaluate(params, model, *s) for s in (own, nobodys)])
for name, rows in forgotten.items():
    (own_mean, mean), (own_spread, deviation) = np.mean(rows, 0), np.std(rows, 0, ddof=1)
    print(
        f"{name}: {own_mean:.1f} ± {own_spread:.1f}% of its images, {mean:.1f} ± {deviation:.1f}% of nobody's"
    )
everyone, without, again = (np.mean(rows, 0) for rows in forgotten.values())
assert abs(again[0] - again[1]) < 1.5  # what the others taught names its images as well as any
assert abs(without[0] - without[1]) < 1.5
assert without[1] < again[1] < everyone[1] + 1

# %% [markdown]
# A digit that all owners have is not forgotten with one of them: its images are named about as well
# as images that nobody trained on, and so they are after training again without it. The reverted
# model is the worse of the two, for the other owners' moves were chosen with the reverted ones in
# place. What `revert` promises is exact and narrower: no move of that owner's steps is left. The
# others' steps were still chosen on top of them.
#
# ## Any step at once
#
# A replay to step $n$ costs $n$ steps. `snapshots` keeps the weights at the ends of some records
# beside the log, five trits per byte, and `weights_at` and `slice` go on from the last one before.
# A snapshot carries the log's running CRC, and its weights must have the digest of their record, so
# a file of another log, or of an older run, is refused.

# %%


def fastest(work, rounds=3):
    """Seconds of the quickest of some calls."""
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


whole = fastest(log.replay)
kept = log.snapshots(every=32)
visit = np.mean([fastest(lambda step=step: log.weights_at(step)) for step in (50, 130, 239)])
a_row = fastest(lambda: log.slice("w2", [7]))
print(f"snapshots {kept.stat().st_size / 1e6:.2f} MB beside {log.nbytes / 1e3:.1f} KB of steps")
print(
    f"replay {1e3 * whole:.0f} ms; any step {1e3 * visit:.0f} ms; one row at the end {1e3 * a_row:.0f} ms"
)
assert digest(log.weights_at(130)) == log.digest(130)
expect_time(visit < 0.6 * whole, "a step near a snapshot takes less than a whole replay")

# %% [markdown]
# The time of a whole replay grows with the log. The other two do not: a snapshot lies at most 32
# steps before any step. Its price is a fifth of a byte for each weight.
#
# ## Taking steps back
#
# A move that the clamp would cancel is never kept by `units`. So the last weights are the first
# ones plus the sum of all moves, and the steps, undone from the last to the first, lead back to the
# seed's weights.

# %%
moves = [sparse_update(log.plan, number, step) for number, step in enumerate(log.steps())]
params = log.replay()
for positions, deltas in reversed(moves):
    params = apply_update(params, positions, -deltas)
home = digest(params) == log.digest(0)
print("back at the seed's weights:", home)
assert home

# %% [markdown]
# `sampled` promises no such thing. Its perturbations fall anywhere, and where one pushes a weight
# that is 1 already, the clamp forgets the push.

# %%
plan = Plan("sampled", 0, ("w",), ((100, 100),), zeros=2**31, perturbations=32)
codes = rng.integers(-1, 2, (100, 32)).astype(np.int8)
with StepLog.create(folder / "sampled.steps", {"plan": plan.to_dict()}) as sampled:
    sampled.append([SampledStep(2**21, row) for row in codes])
params = sampled.replay()
for number, step in reversed(list(enumerate(sampled.steps()))):
    positions, deltas = sparse_update(plan, number, step)
    params = apply_update(params, positions, -deltas)
lost = np.mean(params["w"] != initial_params(plan)["w"])
print(f"{lost:.1%} of the weights do not find home")
assert lost > 0.01

# %% [markdown]
# ## As large as GPT-3?
#
# The paper puts GPT-3 (175 billion weights) at 600 KB to 19 MB of steps: 93,750 steps of 32 to
# 1,024 perturbations. The bytes are simple. But each step must be replayed: half of the
# perturbations are kept, each with $3.7 \cdot 10^{-6}$ of the weights. We measure what an update
# costs here, at that density, and multiply.

# %%
plan = Plan("sampled", 0, ("w",), ((4000, 4000),), zeros=2**31, perturbations=128)
step = SampledStep(round(3.7e-6 * 2**32), np.tile(np.array([0, 1, 0, -1], np.int8), 32))
weights = initial_flat(plan)
advance(weights, plan, 0, step)  # warm
begin = time.perf_counter()
for number in range(1, 41):
    advance(weights, plan, number, step)  # as `replay` does, step by step
seconds = time.perf_counter() - begin
updates = sum(sparse_update(plan, number, step)[0].size for number in range(1, 41))
rate = updates / seconds

low, high = (93_750 * k * 1.5 / 8 for k in (32, 1024))
total = 93_750 * 512 * 175e9 * 3.7e-6
print(f"codes of 32 to 1,024 perturbations: {low / 1e6:.2f} to {high / 1e6:.1f} MB")
print(
    f"1,024 perturbations: {total:.1e} updates, {total / 175e9:.0f} a weight; dense, as the paper counts, {93_750 * 1024 * 175e9:.0e} sums"
)
print(f"measured: {rate:.1e} updates per second on one core, so {total / rate / 86400:,.0f} days")
assert round(low / 1e6, 2) == 0.56
assert round(high / 1e6, 1) == 18.0
assert 170 < total / 175e9 < 185
assert 1e4 < rate < 1e9

# %% [markdown]
# The file is as small as claimed. Replay is the price: the weights of such a model would be kept
# beside its steps, and the steps replayed only by who wants its history.
#
# **Limits.** The clamp is not invertible: a step that clamps cannot be undone. Negating it twice
# gives the step back, but not what the clamp has cut off a weight. A log grows with every step and
# the weights do not, so a long run's log outweighs its weights; then the compact form is the
# smaller one, and the log is kept for its history. A log fixes the noise for ever: a new sampler is
# a new format version. A digest tells *that* a replay differs, not why. And a step of a model says
# nothing about what was learnt from which image.
#
# **Exercises.**
#
# 1. A record's head carries 16 bits of a CRC-32. Why is one changed byte of the length never
#    missed, though half of the CRC is thrown away?
#    (`test_the_check_tells_every_change_of_one_byte_of_a_head`)
# 2. Sum all moves of the run above, unclamped and in any order, and add them to the first weights:
#    are these the last? Are they for the sampled log?
#    (`test_the_tail_undone_in_reverse_gives_the_weights_before_it`)
# 3. Join the log to its own masked copy with `concat`. Which noise do the second half's steps draw,
#    and where does the file say so? (`test_one_log_after_another_keeps_each_steps_own_noise`)
# 4. Write the reader of the log format in another language; `minibit/vectors/steps.json` holds
#    files that it must read, and files that it must refuse. (`tests/test_vectors.py`)
# 5. Kill a run with `kill -9`, and open what is left.
#    (`test_a_killed_writer_loses_at_most_what_it_was_writing`)
# 6. Which steps would you mask to turn one answer of the run above? Ask `answers`, mask the last
#    turn, and count the other answers that change.
#    (`test_answers_and_verdicts_are_those_of_a_replay`)
# 7. Merge a fork with its parent, then the other way round. When do the weights agree?
#    (`test_a_merge_adds_the_moves_of_both_branches`)
# 8. Change one byte of a file of snapshots. Who notices? (`test_damaged_snapshots_are_refused`)
#
# **Sources.**
#
# - Brickner (2024), *noise_step: Training in 1.58b With No Gradient Memory*, manuscript.
# - Brown et al. (2020), *Language Models are Few-Shot Learners*, arXiv:2005.14165.
