# %% [markdown]
# # Solutions: a model is its steps

# %%
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from zlib import crc32

import numpy as np

from minibit.conformance import cases_of
from minibit.datasets import load_mnist, split
from minibit.noise_step import (
    Plan,
    SampledStep,
    apply_update,
    digest,
    initial_params,
    sparse_update,
)
from minibit.steps import LogError, StepLog
from minibit.training import train
from minibit.training.log_header import model_of

temporary = tempfile.TemporaryDirectory()
folder, data = Path(temporary.name), load_mnist()
train("small", seed=0, out=folder / "run.steps", steps=60, split_name="validation")
log = StepLog.open(folder / "run.steps")
model, parts = model_of(log.header), split(data)

# %% [markdown]
# **1.** A CRC is linear: the CRC of a changed message is that of the message, exclusive-or that of
# the change alone. So it is enough to try each change of one byte once, on zeros. None of the 5 x
# 255 has a CRC whose low half is zero. (Changes of two bytes can: 16 bits tell 65,536 cases apart.)

# %%
blank = crc32(bytes(5)) & 0xFFFF
for at, change in product(range(5), range(1, 256)):
    changed = bytearray(5)
    changed[at] = change
    assert crc32(changed) & 0xFFFF != blank
message, other = b"\x20\x00\x01\x00\x00", b"\x20\x40\x01\x00\x00"
difference = bytes(a ^ b for a, b in zip(message, other, strict=True))
assert crc32(message) ^ crc32(other) == crc32(difference) ^ crc32(bytes(5))  # linear

# %% [markdown]
# **2.** For `units` yes: no move is ever cut off, so the order does not matter and the clamp does
# nothing. For `sampled` no: a push against the end is lost on the way, and a sum of all has it.


# %%
def summed(plan, steps):
    """First weights and all moves, in one sum without a clamp: flat int64."""
    total = np.concatenate([w.ravel() for w in initial_params(plan).values()]).astype(np.int64)
    for number, step in enumerate(steps):
        positions, deltas = sparse_update(plan, number, step)
        np.add.at(total, positions, deltas)
    return total


def flat(params):
    return np.concatenate([w.ravel() for w in params.values()])


assert (summed(log.plan, log.steps()) == flat(log.replay())).all()
plan = Plan("sampled", 0, ("w",), ((100, 100),), zeros=2**31, perturbations=32)
codes = np.random.default_rng(0).integers(-1, 2, (100, 32)).astype(np.int8)
with StepLog.create(folder / "sampled.steps", {"plan": plan.to_dict()}) as sampled:
    sampled.append([SampledStep(2**21, row) for row in codes])
wrong = np.mean(summed(plan, sampled.steps()) != flat(sampled.replay()))
print(f"sampled: {wrong:.1%} of the sums are not the weights")
assert wrong > 0.01

# %% [markdown]
# **3.** The noise that they drew first: the seed of the log and the numbers 0, 1, ... again. The
# header says so in `segments`, and `drawn_by` reads it.

# %%
masked = log.mask(range(0, len(log), 3), folder / "masked.steps")
joined = log.concat(masked, folder / "joined.steps")
print(joined.header["segments"])
assert joined.drawn_by(len(log)) == (log.plan.seed, 0)
params = log.replay()
for number, step in enumerate(masked.steps()):
    params = apply_update(params, *sparse_update(log.plan, number, step))
assert joined.digest() == digest(params)

# %% [markdown]
# **4.** A sketch: the page [the log format](../log_format.md) has a reader of some hundred lines,
# and five ports of this site have another each. Begin with the header, then frame records, then
# Philox, then one method. `minibit conform --port` asks yours; these are the files that it will
# get:

# %%
files = [case for case in cases_of("steps") if case.call.startswith("StepLog")]
refused = [case for case in files if case.refuse]
print(f"{len(files)} cases about logs, {len(refused)} of files that must be refused")
assert refused
assert len(files) > len(refused) > 5

# %% [markdown]
# **5.** The log opens to its last whole record; if a part of one more is there, a warning says so,
# and nothing before it is touched. Here it dies between two records, so that nothing is lost at
# all.

# %%
script = f"""
import os, signal
from minibit.steps import StepLog
from minibit.steps.file import Appender
old, count = StepLog.open({str(folder / "run.steps")!r}), 0
with StepLog.create({str(folder / "killed.steps")!r}, old.header) as log:
    for step in old.steps():
        if count == 45:
            os.kill(os.getpid(), signal.SIGKILL)
        log.append(step)
        count += 1
"""
if sys.platform != "win32":
    done = subprocess.run([sys.executable, "-c", script], check=False)
    killed = StepLog.open(folder / "killed.steps")
    print(f"killed before step 45: {len(killed)} steps are there")
    assert done.returncode == -9
    assert len(killed) == 45
    assert not killed.warning
    assert killed.verify() == log.digest(len(killed))

# %% [markdown]
# **6.** The step of its last turn made it what it is; without it the answer falls back, unless
# another step does the same. Most other answers stay: one step changes few of them.

# %%
shown = parts.validation_x[:200]
answers = log.answers(model, shown)  # (steps + 1, images)
turns = answers[1:] != answers[:-1]
last = {i: int(np.flatnonzero(turns[:, i])[-1]) for i in np.flatnonzero(turns.any(axis=0))}
latest = sorted(last.items(), key=lambda pair: pair[1])[-10:]
fell, others = [], []
for image, step in latest:
    without = log.mask([step], folder / f"without{image}.steps")
    now = np.argmax(model(without.replay(), shown), axis=1)
    fell.append(now[image] != answers[-1, image])
    others.append(np.mean(np.delete(now != answers[-1], image)))
print(f"{sum(fell)} of the {len(latest)} answers that turned last change without their last turn")
print(f"of the others, {np.mean(others):.1%} change")
assert any(fell)
assert np.mean(others) < 0.1

# %% [markdown]
# **7.** Moves are added and each step is clamped. `a.merge(b)` takes a's steps, then b's own. Where
# no weight is pushed beyond its end on either way, the sum does not depend on the order, and the
# weights agree. Moves that both branches made can meet at an end; then they need not.

# %%
log.fork(40, folder / "fork.steps", 1)
train(out=folder / "fork.steps", resume=True, steps=60)
fork = StepLog.open(folder / "fork.steps")
one, two = log.merge(fork, folder / "one-two.steps"), fork.merge(log, folder / "two-one.steps")
a, b = flat(one.replay()), flat(two.replay())
total = flat(log.replay()).astype(int) + flat(fork.replay()) - flat(log.weights_at(40))
differ = a != b
print(f"{differ.sum()} of {a.size:,} weights differ by the order of merging")
assert (np.abs(total[differ]) >= 1).all()
calm = np.abs(total) <= 1  # the plain sum stays within the ends
assert np.mean(differ) < 0.01
assert np.mean(a[calm] == total[calm]) > 0.999

# %% [markdown]
# **8.** Who asks for weights that go by the snapshot: its weights do not have the digest of the
# log's record. A changed running CRC is found by its entry; the log itself is not touched and still
# replays.

# %%
path = log.snapshots(every=32)
content = bytearray(path.read_bytes())
content[len(content) // 2] ^= 1
path.write_bytes(content)
try:
    StepLog.open(log.path).weights_at(len(log))
except LogError as error:
    complaint = str(error)
print(complaint.replace(str(folder), "..."))
assert path.name in complaint
path.unlink()
assert digest(StepLog.open(log.path).replay()) == log.digest()
temporary.cleanup()
