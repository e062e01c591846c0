# %% [markdown]
# # Solutions: perturb, measure, keep

# %%
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from minibit.noise_step import apply_update, digest, keep_terns
from minibit.noise_step.methods import t_score
from minibit.steps import StepLog
from minibit.training import train

# %% [markdown]
# **1.** The middle score of an odd $K$ *is* the median, so it is dropped: $(K - 1)/2$ are kept in
# place of $(K + 1)/2$. Where more than half of the perturbations are empty the median is 0; the
# others are kept either way, and an empty one has the tern 0 either way. What differs is a tie: if
# all scores are equal, none is larger than the median, and the step would do nothing.


# %%
def strictly(a):
    """Terns of the scores that are larger than the median."""
    return np.where(np.abs(a) > np.median(np.abs(a)), np.sign(a), 0).astype(int)


none = np.zeros(5)
for a, ours, other in (
    ([5.0, -4, 3, 2, 1], [1, -1, 1, 0, 0], [1, -1, 0, 0, 0]),  # odd
    ([0.0, 0, 0, 0, -1], [0, 0, 0, 0, -1], [0, 0, 0, 0, -1]),  # many empty
    ([2.0, -2, 2, 2, -2], [1, -1, 1, 1, -1], [0, 0, 0, 0, 0]),  # all tie
):
    assert keep_terns(a, none, "absolute").tolist() == ours
    assert strictly(a).tolist() == other

# %% [markdown]
# **2.** $|10 - 9| / \sqrt{100 + 81} = 0.07$ against $1 / \sqrt{0.25 + 0.25} = 1.41$, the largest
# that two samples can give. The second: its samples agree. Drawn from laws with these means and
# spreads, the first has the right sign on 256 other samples in some four of five cases, the second
# in all.

# %%
a = np.array([[10.0, -9.0], [0.5, 0.5]])  # (perturbations, samples)
scores = t_score(a.sum(axis=1), (a**2).sum(axis=1))
print("t scores:", scores.round(2))
np.testing.assert_allclose(scores, [1 / np.sqrt(181), np.sqrt(2)])
rng = np.random.default_rng(0)
means = [rng.normal(0.5, spread, (1000, 256)).mean(axis=1) for spread in (9.5, 0.5)]
right = [np.mean(m > 0) for m in means]
print(f"right signs on other samples: {right[0]:.0%} and {right[1]:.0%}")
assert 0.7 < right[0] < 0.9
assert right[1] == 1

# %% [markdown]
# **3.** Yes. After each of them: 1, 1, 1, and then 0. Once at the end: $1 + 1 + 1 - 1 = 2$, which
# is cut to 1. And after each of them the order would matter, too, so a step sums first: then no
# order is left.

# %%
w, one_by_one = {"w": np.array([[1]], np.int8)}, {"w": np.array([[1]], np.int8)}
for move in (1, 1, -1):
    one_by_one = apply_update(one_by_one, np.array([0]), np.array([move]))
at_the_end = apply_update(w, np.array([0]), np.array([1 + 1 - 1]))
assert one_by_one["w"] == 0
assert at_the_end["w"] == 1

# %% [markdown]
# **4.** Those of the record that was not yet written: at most 32, as a record holds so many, and
# the one that was being taken. The rest of the file replays, and the run goes on from there to the
# same weights.

# %%
with tempfile.TemporaryDirectory() as temporary:
    whole, killed = Path(temporary) / "whole.steps", Path(temporary) / "killed.steps"
    run = {"batch": (256, 256), "widths": (784, 32, 10), "units": (8, 4), "total_steps": 96}
    train("small", 3, whole, threads=1, steps=96, **run)
    script = f"from minibit.training import train; train('small', 3, {str(killed)!r}, threads=1, **{run})"
    process = subprocess.Popen([sys.executable, "-c", script])
    while process.poll() is None and not (killed.exists() and killed.stat().st_size > 1400):
        time.sleep(0.002)
    process.kill()
    process.wait()
    reference, log = StepLog.open(whole), StepLog.open(killed)
    left = len(log)
    print(f"{left} steps are left of the run that was killed")
    assert left % 32 == 0
    assert log.digest() == reference.digest(left)
    train(out=killed, resume=True, threads=1, steps=96)
    assert digest(StepLog.open(killed).replay()) == reference.digest()
