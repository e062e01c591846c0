# %% [markdown]
# # The same training on many machines
#
# **The question.** A worker that computes gradients sends a float for every weight, at every step:
# 1.3 MB for the 334,336 weights of our network, and as much comes back. That is why large models
# are trained where cables are short. Chapter 8 says that a step is a few dozen bytes. Can many
# machines take a step together, on slow lines, and send nothing else? And does the model then still
# depend on its seed alone, and not on who helped?
#
# A run has one *client*, which decides the steps and writes the log, and *workers*, which measure.
# The *data* do not travel: every worker has them, and a digest says that they are the same. The
# *weights* do not travel: they follow from the seed and the steps so far. So the client sends a
# step's number and what the last step kept, and a worker answers with sums, two small numbers for
# each perturbation.

# %%
import importlib.util
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker is one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import tempfile
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from math import ceil, log2
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from minibit import plots
from minibit.bench import expect_time, medians
from minibit.cluster import Remote, train_on
from minibit.cluster.crews import Lane
from minibit.cluster.messages import UNKNOWN, Answer, Task
from minibit.cluster.replica import Replica, brief_of
from minibit.cluster.rounded import Known, pack_rounded, read_rounded
from minibit.cluster.simulation import Costs, Link, all_reduce_seconds, step_seconds
from minibit.cluster.sums import draw_range, ranges
from minibit.datasets import load_mnist
from minibit.layers import cross_entropy, mlp
from minibit.noise_step import (
    Objective,
    SampledStep,
    added,
    apply_update,
    forward,
    keep_terns,
    sparse_update,
)
from minibit.noise_step.unit_reference import locate
from minibit.results import load_results
from minibit.steps import StepLog
from minibit.tape import value_and_grad
from minibit.training import Course, train

plots.style(show=True)
temporary = tempfile.TemporaryDirectory()
folder, data = Path(temporary.name), load_mnist()
STEPS = 40
RUN = {"steps": STEPS, "total_steps": STEPS, "batch": (512, 512), "shifts": 1}

serial = train("strict", 0, folder / "serial.steps", threads=1, **RUN)
log = StepLog.open(folder / "serial.steps")
plan, records = log.plan, [*log.steps()]
K = plan.perturbations
print(f"{STEPS} steps in one process: test accuracy {serial.test_accuracy:.1%}")
print(f"digest {serial.digest[:16]}..., {plan.size:,} weights, {plan.perturbations} perturbations")
print(f"as float32: {4 * plan.size / 1e6:.1f} MB")
assert plan.size == 334_336
assert serial.test_accuracy > 0.5

# %% [markdown]
# ## A step, cut and joined
#
# A step draws sparse random perturbations $v_i$ of the weights. The *alignment* $a_{ib}$ is the
# derivative of the loss of sample $b$ along $v_i$ (chapter 7). The sums $\sum_b a_{ib}$ and
# $\sum_b a_{ib}^2$ over the batch give each perturbation a score. Those with a score above the
# median are kept, with the sign of their sum: these signs, and zeros for the others, are the step's
# *codes*. Should workers share the perturbations or the samples?
#
# To *cut between perturbations* is the simple way. Every perturbation has a number, and its noise
# is a function of seed, step and number (chapter 6). A worker draws a range of numbers and measures
# it over the whole batch; the client lays the answers end to end, takes the median over all of
# them, and has the codes:

# %%
course = Course(log.header, data, plan.seed)
method, batch = course.recipe.settings(), course.batch(0)
objective = Objective(course.model, None, course.recipe.threshold, 1)
first_weights, numerator = log.weights_at(0), method.numerator(0)


def measure(first, stop):
    """Sums of alignments and of their squares, of a range of perturbations."""
    drawn = draw_range(plan, 0, numerator, first, stop)
    sums = method.measure(objective, first_weights, batch, drawn)
    return sums.alignments[0], sums.squares[0]  # (stop - first,) each


joined, alone = {}, {}
for workers in (1, 2, 3, 8, 32):
    answers = [measure(*cut) for cut in ranges(plan, workers)]
    alignments, squares = map(np.concatenate, zip(*answers, strict=True))  # (perturbations,)
    joined[workers] = keep_terns(alignments, squares, "t")
    alone[workers] = np.concatenate([keep_terns(*each, "t") for each in answers])
    assert np.array_equal(joined[workers], records[0].codes)
    different = np.mean(alone[workers] != joined[workers])
    print(f"{workers:2} workers: the codes of the serial step; alone, {different:.1%} differ")
assert np.array_equal(alone[1], joined[1])
assert np.mean(alone[32] != joined[32]) > 0.05

# %% [markdown]
# The joined codes equal those of the serial step in every place. The second column is what the
# manuscript proposes for many machines: each worker takes the median of its own range alone, and
# sends codes and no sums. A median of 4 perturbations is no median of 128. It is another algorithm,
# and a later section measures whether it learns as well.
#
# But half of the perturbations are not half of the work. What takes time is one tangent for each
# unit that a perturbation touches (chapter 7b), and while perturbations are dense, as a run's first
# are, they touch the same units again and again:

# %%
for step in (0, STEPS - 1):
    touched = []
    for count in (K // 2, K):
        drawn = draw_range(plan, step, method.numerator(step), 0, count)
        touched.append(sum(map(len, locate(first_weights, drawn.positions)[0])))
    print(f"step {step}: 64 perturbations touch {touched[0]} units, 128 touch {touched[1]}")
    if step == 0:
        assert touched[0] > 0.75 * touched[1]

# %% [markdown]
# To *cut between samples* gives every worker a part of the batch, and half of the samples are half
# of the work. But a float sum depends on the order of its terms, and a sum that is joined from
# other parts has other last bits. So the parts are always the same four *chunks*, whatever the
# number of workers: a serial run, too, sums over each chunk apart and adds the four sums from first
# to last. A worker has one chunk or more, and with more than four workers a range of the
# perturbations as well.


# %%
def two_workers(step):
    """Sums of all perturbations of a step, by two workers, over two chunks each."""
    drawn = draw_range(plan, step, records[step].numerator, 0, K)
    samples, weights = course.batch(step), log.weights_at(step)
    return [
        method.measure_chunks(objective, weights, samples, drawn, range(*chunks))
        for chunks in ((0, 2), (2, 4))
    ]


halves = two_workers(0)
chunks = [np.concatenate([half[kind] for half in halves]) for kind in (0, 1)]  # (4, K) each
exact = [added(each).astype(np.float32) for each in chunks]
assert np.array_equal(keep_terns(*exact, "t"), records[0].codes)
print(f"two workers, exact: {8 * 2 * 2 * K:,} bytes from each")

# %% [markdown]
# Exact sums over each chunk take many bytes, and the codes need few of their bits: most scores lie
# so far from the median that a rough sum decides. So a worker rounds its sums to 16 bits, as
# multiples of one *spacing*, and the client computes bounds for each score
# (`minibit.cluster.rounded`). A perturbation is *open* if its bounds reach across the median, or if
# its sum may be of either sign. The client asks for the exact sums of the open ones alone. So the
# codes are always those of a serial run, and few steps ask a second time:

# %%
opened = []
for number, kept in enumerate(records):
    halves = two_workers(number)
    bounds = [read_rounded(pack_rounded(half, "t"), K, "t") for half in halves]
    known = Known([bounds], "t")
    opened.append(len(known.open()))
    if not opened[-1]:
        assert np.array_equal(known.codes(), kept.codes)
    course.saw(np.concatenate([half.hardness for half in halves]), 0.0)
print(f"{np.count_nonzero(opened)} of {len(records)} steps leave a perturbation open")
low, high, spacing = bounds[0][0]
sizes = np.abs(low + high) / 2
print(f"a rounded sum is right within half of {spacing:.1e}; the largest is {sizes.max():.1f}")
assert np.count_nonzero(opened) <= 4

# %% [markdown]
# `train_on` takes a whole run in this way, on anything that has `submit`: the executors of Python's
# `concurrent.futures`, those of other packages, or a Dask cluster. Here two threads, and a list of
# everything that passes:


# %%
class Wire(Executor):
    """Two threads, and a copy of what passes: (task, answer), as bytes."""

    def __init__(self):
        self.pool, self.messages = ThreadPoolExecutor(2), []

    def submit(self, function, task):
        future = self.pool.submit(function, task)
        future.add_done_callback(lambda done: self.messages.append((task, done.result())))
        return future

    def shutdown(self, wait=True, **options):
        self.pool.shutdown(wait)


with Wire() as wire:
    run = train_on(wire, "strict", 0, folder / "threads.steps", workers=2, **RUN)
traffic = run.traffic
print(f"{run.steps} steps on two threads: digest {run.digest[:16]}...")
print(
    f"{traffic.tasks} tasks, of which {traffic.again} again, to workers that did not know the run"
)
assert run.digest == serial.digest
assert (folder / "threads.steps").read_bytes() == (folder / "serial.steps").read_bytes()
assert (folder / "threads.steps.workers").is_file()

# %% [markdown]
# The files are equal, byte for byte: the log of a run does not depend on who made it. (Who measured
# which range is named beside it, in `threads.steps.workers`.)
#
# ## What travels
#
# These are two of the messages, a task and its answer, from the middle of the run. A *record* is
# what one step kept, as the log codes it.

# %%
middle = [pair for pair in wire.messages if Task.unpack(pair[0]).step == STEPS // 2]
message, reply = middle[0]
task, told = Task.unpack(message), Answer.unpack(reply)
print(f"task: step {task.step}, perturbations {task.first} to {task.stop - 1}")
print(f"  over chunks {task.chunks[0]} to {task.chunks[1] - 1} of the batch")
print(f"  density {task.numerator / 2**32:.2e}, {len(task.records)} record from step {task.base}")
print(f"answer: loss {told.loss / told.weight:.3f} of {told.samples} samples, {told.seconds:.3f} s")
print(f"  weights, hard samples and logits {told.state:08x}")

down = {
    "run": 8, "step": 4, "density": 4, "first": 4, "stop": 4, "chunks": 2, "form": 1, "exact": 2,
    "from": 4, "records": 2, "length": 4, "what the last step kept": len(task.records[0]),
}  # fmt: skip
up = {
    "kind": 1, "worker": 8, "step": 4, "loss": 8, "weight": 8, "correct": 4, "samples": 4,
    "state": 4, "seconds": 4,
    "spacing": 8, "sums": 2 * 128, "spacing of squares": 8, "sums of squares": 2 * 128,
}  # fmt: skip
assert sum(down.values()) == len(message)
assert sum(up.values()) == len(reply)

sizes = np.array([[len(m) for m in pair] for pair in wire.messages])  # (tasks, 2)
steady = np.median(sizes, axis=0)
print(f"median: {steady[0]:.0f} bytes down, {steady[1]:.0f} up, per worker and step")
assert steady[0] < 200
assert steady[1] < 600

# %% tags=["hide-input"]
fig, axes = plt.subplots(2, 1, figsize=(9, 3))
for axis, parts, title in zip(axes, (down, up), ("task", "answer"), strict=True):
    left = 0
    for i, (name, size) in enumerate(parts.items()):
        colour = plots.PALETTE[i % 6]
        axis.barh(0, size, left=left, color=colour, edgecolor="white")
        if size > 0.05 * sum(parts.values()):
            axis.text(left + size / 2, 0, f"{name}\n{size}", ha="center", va="center", color="w")
        left += size
    axis.set(yticks=[], xlim=(0, left), title=f"{title}: {left} bytes")
    axis.grid(False)
axes[1].set_xlabel("bytes")

# %% [markdown]
# Nothing in a message grows with the number of weights. Here it stands beside other ways, for $W$
# workers that share $K = 128$ perturbations of $n$ weights. An answer has a head of 45 bytes, a
# task one of 39:
#
# | what travels | bytes up, per worker and step | bytes down |
# |---|---|---|
# | gradients in float32, all-reduced in a ring | $4n \cdot 2(W-1)/W$ | as many |
# | here: rounded sums up, codes down | $45 + 16 + 4K/\max(1, \lfloor W/4 \rfloor)$ | $39$ and a record |
# | here, cut by perturbations: sums up | $45 + 8K/W$ | the same |
# | here, alone: codes up, codes down | $45 + \lceil K/5W \rceil$ | the same |
# | codes alone, as the paper counts them | $\log_2 3 \cdot K/8W$ | $\log_2 3 \cdot K/8$ |
# | MeZO (Malladi et al. 2023): a scalar for each perturbation, one per worker | $4$ | $4(W-1)$ |
#
# The ring's formula is that of Patarasuk and Yuan (2009): $2(W-1)$ times, each worker passes on a
# $W$-th of the gradient. MeZO's row assumes that each worker measures one perturbation by two
# forward passes, sends the difference of the two losses in float32, and gets those of all others.

# %%
n = plan.size
record = len(task.records[0])
crews = np.array([2, 4, 8, 16, 32, 64, 128])
bytes_of = {
    "float32 gradients": 2 * 4 * n * 2 * (crews - 1) / crews,
    "here: rounded sums up": 45 + 16 + 4 * K / np.maximum(crews // 4, 1) + 39 + record,
    "here, alone: codes up": 45 + np.ceil(K / crews / 5) + 39 + record,
    "codes alone, as the paper counts": log2(3) * K / 8 * (1 + 1 / crews),
    "MeZO": 4.0 * crews,
}
for name, each in bytes_of.items():
    print(f"{name:33}{each[0]:>12,.0f} bytes with 2 workers, {each[-1]:>11,.0f} with 128")
assert (
    abs(bytes_of["here: rounded sums up"][0] - steady.sum()) < 8
)  # the records differ by some bytes
assert bytes_of["float32 gradients"][0] / bytes_of["here: rounded sums up"][0] > 4000
assert 1.33e6 < 4 * n < 1.34e6

# %% tags=["hide-input"]
fig, axis = plt.subplots(figsize=(7, 3.8))
for (name, each), marker in zip(bytes_of.items(), "osD^v", strict=True):
    axis.loglog(crews, each, marker=marker, label=name)
axis.set_xscale("log", base=2)
axis.xaxis.set_major_formatter("{x:g}")
axis.set_ylim(4, 1e8)
plots.label_axes(axis, "workers", "bytes per worker and step, up and down")
axis.legend(ncols=2, loc="center", bbox_to_anchor=(0.5, 0.6))

# %% [markdown]
# Bytes alone do not compare methods: a gradient says more than 128 codes, and a run by codes takes
# more steps (chapter 7c has both accuracies). But the line limits which methods are possible at
# all. Here is one of 1 Mbit/s:

# %%
names = "float32 gradients", "here: rounded sums up"
by_gradients, by_sums = (8 * bytes_of[name][0] / 1e6 for name in names)
print(f"2 workers, per step: gradients {by_gradients:.1f} s, rounded sums {by_sums:.3f} s")
assert by_sums < 0.01 < 20 < by_gradients

# %% [markdown]
# ## A worker that comes late
#
# What does a worker hold? The data, the weights, and how hard each sample was when it was last seen
# (chapter 7b draws hard ones more often). All three follow from the data and the steps. So a worker
# that comes late asks for the steps, makes their forward passes, and has the same weights and draws
# the same samples.
#
# `Remote` is the client that `train_on` uses; it takes one step at a time. We give it workers of
# our own. Each has a *replica*: its own copy of the weights, and of what is known of the samples.


# %%
class Worker:
    """A worker in this process. `lie` may change what it answers."""

    def __init__(self, name, lie=lambda told: told):
        self.name, self.lie, self.replica, self.received = name, lie, None, []

    def submit(self, message):
        self.received.append(len(message))
        task, future = Task.unpack(message), Future()
        if self.replica is None and not task.brief:
            told = Answer(UNKNOWN, self.name, 0)  # "which run?"
        else:
            self.replica = self.replica or Replica(log.header, data)
            told = self.lie(self.replica.measure(task, self.name))
        future.set_result(told.pack())
        return future


class Crew:
    """Workers that come and go."""

    def __init__(self, *workers):
        self.workers = [*workers]

    def lanes(self):
        return [Lane(worker.name.decode(), worker.submit) for worker in self.workers]


crew = Crew(Worker(b"worker 1"), Worker(b"worker 2"))
late = Worker(b"the late")
remote = Remote(crew, plan, method, brief_of(log.header, None, "late"))
for number, expected in enumerate(records):
    if number == 25:
        crew.workers.append(late)
    taken = remote.step()
    assert np.array_equal(taken.record.codes, expected.codes)
print("the late worker was sent, in bytes:", late.received[:5], "...")
print(f"the weights, five to a byte, would be {ceil(n / 5):,}")
assert late.received[1] < ceil(n / 5) / 10
assert max(late.received[2:]) < 200

# %% [markdown]
# The late worker does not know the run, and says so to its first task. The client sends that task
# again, with the *brief* (mostly the log's header) and the records of 25 steps. From then on the
# late worker gets what the others get. A process that was killed and started again does the same,
# so no state of a worker has to be saved.
#
# In a long run the price of coming late is one forward pass for every step that was missed. The
# steps' tangents are not measured again.
#
# ## A worker that lies
#
# An answer carries one checksum over three things: the worker's weights, the list of samples that
# it takes to be hard, and the logits of a few samples of the batch. A worker with other weights (a
# bit flipped in its memory) or other logits (a CPU that rounds otherwise) has another checksum, and
# is found at once. A worker that *lies* has the right weights and sends false sums. The client
# cannot tell from the sums. But an honest answer depends on the task alone. So the client gives
# some of the parts to two workers and compares their answers bit by bit; where they differ, a third
# worker decides. Here one worker in four negates its alignments, from the start:


# %%
def negated(told):
    """The same answer, with every alignment turned round."""
    body = bytearray(told.body)
    np.frombuffer(body, "<i2", K, offset=8)[:] *= -1  # after the spacing of the sums
    return told._replace(body=bytes(body))


def steps_until_found(check, steps):
    """Steps until the liar was left out (None: never), and the share of wrong codes until then."""
    workers = [Worker(b"honest %d" % k) for k in (1, 2, 3)]
    crew = Crew(*workers, Worker(b"the liar", negated))
    remote = Remote(crew, plan, method, brief_of(log.header, None, str(check)), check=check)
    wrong = []
    for expected in records[:steps]:
        wrong.append(np.mean(remote.step().record.codes != expected.codes))
        if remote.left_out:
            assert [*remote.left_out] == [b"the liar".hex()]
            return remote.steps, wrong, remote
    return None, wrong, remote


for check in (0.0, 0.25, 1.0):
    at, wrong, remote = steps_until_found(check, 6 if check == 0 else STEPS)
    fate = f"left out at step {at - 1}" if at else "never found"
    print(f"{check:4.0%} of the parts checked: {fate}; wrong codes at step 0: {wrong[0]:.0%}")
    if check == 0:
        assert at is None
        assert 0.2 < wrong[0] < 0.5
    if check == 1:
        assert at == 1
        assert max(wrong) == 0
print(remote.left_out)

# %% [markdown]
# A liar is compared when its own part is checked, or when it is the second that measures another's.
# With a share $c$ of the parts checked, the probability that it still goes unnoticed after $t$
# steps is about $(1-c)^{2t}$. Which parts are checked is drawn from the operating system's
# randomness and told to nobody. The codes of the steps before stay in the log. Where steps were cut
# between samples, every code is the work of all workers. If you want to be able to take back what
# one worker put in, train with `cut="perturbations"`: then `StepLog.revert` writes a copy of the
# log without the codes of a named worker.

# %%
shares = [0.02, 0.05, 0.1, 0.25]
t = np.arange(0, 121)
half = [ceil(log2(0.5) / (2 * log2(1 - c))) for c in shares]
print("half of all liars are found after", dict(zip(shares, half, strict=True)), "steps")
assert half == [18, 7, 4, 2]

# %% tags=["hide-input"]
fig, axis = plt.subplots(figsize=(6.4, 3))
for c in shares:
    axis.plot(t, 100 * (1 - c) ** (2 * t), label=f"{c:.0%} checked twice")
plots.label_axes(axis, "step", "liars not yet found (%)")

# %% [markdown]
# ## On Dask
#
# The pools above live on one machine. Dask has workers on other machines, which come and go, behind
# one *scheduler*; other packages of its family start them on SLURM, on Kubernetes or in a cloud.
# The extra `[cluster]` installs Dask: in a checkout, `pip install -e '.[cluster]'`.
#
# In a program of yours, `local_cluster(2)` of `minibit.cluster` starts two workers on this machine.
# The call must stand below `if __name__ == "__main__":`, because workers import the program. (It is
# Dask's `LocalCluster` without the profiler, which would interrupt a busy worker again and again.)
# `Client("tls://scheduler:8786")` connects to a cluster that runs already. This page is a script
# without such a line, so it starts its workers as commands:

# %%
if importlib.util.find_spec("distributed"):
    from distributed import Client
    from distributed.deploy.subprocess import SubprocessCluster

    options = {"n_workers": 2, "threads_per_worker": 1}
    with SubprocessCluster(**options, silence_logs=50) as local, Client(local) as client:
        client.wait_for_workers(2, timeout=60)
        out = folder / "dask.steps"
        train_on(client, "strict", 0, out, **{**RUN, "steps": 4})  # workers connect, and compile
        run = train_on(client, out=out, resume=True, steps=24)
    print(f"digest {run.digest[:16]}..., after {run.steps} steps on two processes")
    for part, each in run.traffic.parts.items():
        print(f"{part:12}{1000 * each:7.1f} ms per step")
    one = 1000 * np.median(serial.step_seconds[4:24])
    both = 1000 * np.median(run.step_seconds)
    print(f"median step: {both:.1f} ms on two workers, {one:.1f} ms in one process")
    assert run.digest == log.digest(24)
    assert run.traffic.up / run.traffic.answers < 600
else:
    print("Dask is not installed here: pip install -e '.[cluster]' in a checkout")
temporary.cleanup()

# %% [markdown]
# If a worker dies, its task goes to another; if the scheduler dies, the run ends with an error, and
# `resume=True` goes on from the log. Both end with the digest of a run that nobody disturbed. The
# bytes above are those of task and answer, without what Dask wraps around them.
#
# *Measuring* is the slowest worker's part of a step, *on the way* are messages and Dask, *deciding*
# is the client's part. Batches of 512 samples are small: a worker has little to do, and the way
# weighs much. `minibit bench cluster` times the two workers with batches of 4,096 beside one
# process.

# %% [markdown]
# ## A thousand workers on slow lines
#
# `minibit.cluster.simulation` computes the time of a step on many machines from measurements on
# one: the seconds that every worker repeats, the seconds that workers share, and the bytes above.
# Tasks leave through the client's own line one after another; each line has a delay; a lost packet
# is sent again after a timeout; and a step ends with its slowest worker.
#
# First the seconds, measured here on one thread, with batches of 4,096 and the density of the
# middle of a run. Every worker repeats the batch and its forward pass. (It makes most of the pass
# while it waits for the next task, but we count all of it.) Workers share the tangents. The times
# of one chunk and of four tell the two apart: what grows with the chunks is shared. Every worker
# also moves its weights by the codes of all, which takes longer if each worker brings perturbations
# of its own.

# %%
recipe = {**log.header["recipe"], "batch": [4096, 4096]}
large = Course({**log.header, "recipe": recipe}, data, plan.seed)
middle = round(1.5e-5 * 2**32)
floats = {name: w.astype(np.float32) for name, w in first_weights.items()}
rng = np.random.default_rng(0)


def part_of(chunks):
    """A worker's step: batch, all perturbations over so many chunks, forward pass of the others."""
    drawn = draw_range(plan, 0, middle, 0, K)
    x, y, weight = large.batch(0)
    sums = method.measure_chunks(objective, first_weights, (x, y, weight), drawn, range(chunks))
    rest = len(sums.loss)
    if rest < len(y):
        forward(large.model, first_weights, x[rest:], y[rest:], 1)


many = replace(plan, perturbations=16 * K)
kept = SampledStep(middle, rng.choice(np.array([-1, 0, 0, 1], np.int8), 16 * K))


def move():
    """What every worker does with the codes of 16 workers."""
    return apply_update(first_weights, *sparse_update(many, 0, kept))


x, y, _ = large.batch(0)
pixels = (x * np.float32(objective.model.input_scale)) + np.float32(objective.model.input_offset)


def loss(params):
    return cross_entropy(mlp(params, pixels, logit_scale=0.12), y)


work = {
    "one chunk": lambda: part_of(1),
    "four chunks": lambda: part_of(4),
    "forward pass": lambda: loss(floats),
    "gradient": lambda: value_and_grad(lambda p: np.mean(loss(p)))(floats),
    "a normal number for each weight": lambda: rng.standard_normal(n, np.float32),
    "moving by 16 times 128 codes": move,
}
seconds = medians(work, seconds=0, least_rounds=5, warmups=1)
for name, each in seconds.items():
    print(f"{name:32}{1000 * each:7.1f} ms")
shared = (seconds["four chunks"] - seconds["one chunk"]) * 4 / 3
moving = seconds["moving by 16 times 128 codes"] / 16
repeated = max(seconds["four chunks"] - shared, 0) + moving
print(f"every worker repeats {1000 * repeated:.0f} ms, shared are {1000 * shared:.0f} ms")
expect_time(shared > repeated, "most of a step is shared")

# %% [markdown]
# Speed-up is the time on one machine over the time on many, each method beside itself. Three things
# are assumed: a worker's time varies by a tenth; the client spends 1 ms for a task and its answer
# (Dask's documentation speaks of 0.2 to 1 ms); and the client's line is ten or a hundred times as
# wide as a worker's. Gradients and MeZO cut the batch into as many parts as there are workers,
# which they can: nobody asks them for equal bits. A fixed number of perturbations is shared as if
# cuts into chunks and into ranges were worth the same, which flatters it beyond four workers.

# %%
workers = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000])
lines = {
    "1 Mbit/s, 50 ms, 1% lost": (Link(0.05, 1e6, 0.01), 1e8),
    "100 Mbit/s, 10 ms, 0.1% lost": (Link(0.01, 1e8, 0.001), 1e9),
}
base = {"handling": 1e-3, "spread": 0.1}
gradient = Costs(0, seconds["gradient"], up=4 * n, down=0, **base)
draw, passes = seconds["a normal number for each weight"], 2 * seconds["forward pass"]
mezo = Costs(draw, passes, up=45 + 4, down=31 + 4, **base)  # drawn once, for the weights' move


def fixed(crew, link, own):
    """128 perturbations, shared by all: there are no more parts than four for each."""
    crew = min(crew, 4 * K)
    up = 45 + 16 + 4 * K / max(crew // 4, 1)
    costs = Costs(repeated, shared, up=up, down=39 + record, **base)
    return step_seconds(crew, costs, link, own=own).mean()


def growing(crew, link, own):
    """128 perturbations for each worker; a task carries the codes of all."""
    every = repeated + (crew - 1) * moving
    costs = Costs(every, crew * shared, up=45 + 8 * K, down=39 + 1.5 * K * crew / 8, **base)
    return step_seconds(crew, costs, link, own=own).mean() / crew


def gradients(crew, link, own):
    return all_reduce_seconds(crew, gradient, link).mean()


def scalars(crew, link, own):
    """One perturbation for each worker, and all of them for the weights of each."""
    costs = mezo._replace(alone=crew * draw, shared=crew * passes, down=31 + 4 * crew)
    return step_seconds(crew, costs, link, own=own).mean() / crew


def split_batch(crew, link, own):
    """One perturbation, and a part of the batch for each worker."""
    return step_seconds(crew, mezo, link, own=own).mean()


one = repeated + shared
methods = {
    "here, 128 perturbations for each worker": (growing, one),
    "here, 128 perturbations in all": (fixed, one),
    "MeZO, a perturbation for each worker": (scalars, draw + passes),
    "MeZO, the batch shared": (split_batch, draw + passes),
    "gradients, all-reduced": (gradients, gradient.shared),
}
gain = {}
for title, line in lines.items():
    for name, (method_seconds, alone_seconds) in methods.items():
        speedup = [1, *(alone_seconds / method_seconds(int(w), *line) for w in workers[1:])]
        gain[title, name] = np.array(speedup)
for (title, name), each in gain.items():
    print(f"{title:29} {name:40} {each[3]:8.3g} with 8, {each[-1]:8.3g} with 1000")
slow, fast = lines
everywhere = gain[slow, "gradients, all-reduced"][1:]
ours, mezos = (gain[slow, name][-1] for name in [*methods][0:3:2])
print(f"gradients on slow lines: at most {everywhere.max():.3f} of one machine's speed")
expect_time(everywhere.max() < 0.5, "gradients on slow lines are slower than one machine")
expect_time(ours > 5, "perturbations of its own for each worker pay on slow lines")
expect_time(ours > 2 * mezos, "dense perturbations bend the curve earlier")
assert gain[fast, "here, 128 perturbations in all"].max() < one / repeated * 1.05

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
for axis, title in zip(axes, lines, strict=True):
    for name, marker in zip(methods, "os^vD", strict=True):
        axis.loglog(workers, gain[title, name], marker=marker, label=name)
    axis.axhline(1, color="#888888", linewidth=0.8)
    plots.label_axes(axis, "workers", "speed-up over one machine", title)
    axis.get_legend().remove()
axes[1].set_ylabel("")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

# %% [markdown]
# A step of this small network that is cut into more and more parts gains little: every worker still
# makes the forward pass, and waits for the line. But a step can measure more. With 128
# perturbations for each worker, every worker is as busy as one machine alone, and waits for the
# line once in a step. That curve bends where the client has to tell each worker the codes of all,
# and each worker has to move by them. MeZO's curve bends earlier: its perturbations are dense, and
# a worker has to draw those of all others. Gradients on the slow lines are slower than one machine
# alone.
#
# More perturbations per step are worth less and less (chapter 7): a speed-up in perturbations is
# not one in accuracy.

# %% [markdown]
# ## What it costs in accuracy
#
# Joined sums cost nothing: the codes are those of one process. Three things are left to measure,
# and `minibit experiment cluster` does, in runs of `strict` with 400 steps, on images that were
# kept apart. Points show the mean of three seeds, bars one standard deviation each way.
#
# - *Alone*: each worker takes the median of its own range, and only codes travel.
# - *Federated*: each of eight workers has data of its own, which nobody else sees. An alignment is
#   a sum over samples, so the sums over parts of the data add up to the sum over all. The data are
#   split at random, or by label: then no worker sees more than three of the ten digits.
# - *A liar*: one worker in four, each with a range of the perturbations, negates its alignments
#   from the start.

# %%
results = load_results("cluster")
print(f"{results['command']}, on {results['environment']['cpu']}")
rows = {name: [] for name in ("alone", "federated", "liar")}
for row in results["rows"]:
    rows[row["experiment"]].append(row)
pooled = rows["alone"][0]
panels = {
    "a median for each worker": {
        "all" if row["workers"] == 1 else f"{row['workers']}": row for row in rows["alone"]
    },
    "data of eight workers": {
        "pooled": pooled,
        **{
            {"label": "by label", "random": "at random"}[row["kind"]]: row
            for row in rows["federated"]
        },
    },
    "one in four lies; checked": {
        "no liar": pooled,
        **{
            f"{row['check']:.0%}": row for row in sorted(rows["liar"], key=lambda row: row["check"])
        },
    },
}
for title, bars in panels.items():
    for name, row in bars.items():
        print(
            f"{title:26} {name:10} {row['validation_accuracy']:.2%} ±{row['validation_accuracy_std']:.2%}"
        )
found_at = {row["check"]: [run["left_out_at"] for run in row["runs"]] for row in rows["liar"]}
print("the liar was left out at steps", {c: at for c, at in found_at.items() if c})

accuracy = pooled["validation_accuracy"]
assert pooled["workers"] == 1
assert all(abs(row["validation_accuracy"] - accuracy) < 0.01 for row in rows["alone"])
assert all(abs(row["validation_accuracy"] - accuracy) < 0.01 for row in rows["federated"])
for row in rows["liar"]:
    if row["check"]:
        assert abs(row["validation_accuracy"] - accuracy) < 0.01
        assert max(run["left_out_at"] for run in row["runs"]) < 100
    else:
        assert 0.02 < accuracy - row["validation_accuracy"] < 0.06
        assert not any(run["left_out_at"] for run in row["runs"])

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(10, 3), sharey=True)
for axis, (title, bars) in zip(axes, panels.items(), strict=True):
    means = [100 * row["validation_accuracy"] for row in bars.values()]
    errors = [100 * row["validation_accuracy_std"] for row in bars.values()]
    axis.errorbar([*bars], means, yerr=errors, fmt="o", capsize=4)
    axis.set(xlim=(-0.5, len(bars) - 0.5), ylim=(89, 95), title=title)
axes[0].set_ylabel("validation accuracy (%)")
axes[0].set_xlabel("workers")

# %% [markdown]
# The median of each worker's own range does no harm that three seeds could show, down to a worker
# with four perturbations. It makes other codes, not worse ones. What is lost is the law of this
# chapter: such codes depend on the number of workers. `train_on(..., alone=True)` takes steps in
# this way.
#
# Data that lie apart do no harm either, even where a worker has never seen most of the digits,
# because what is ranked is the sum. By label the runs came out even higher than pooled ones, by
# more than the spread. More than the split differs there: a batch that is drawn in eighths holds
# nearly as many of one digit as of another, and each worker knows its own hard samples. We have not
# tested which of them it is. This part is an experiment: `train_on` gives every worker all the
# data. Two things would change in earnest. No other worker can measure a range of data that it has
# not, so lies about private data cannot be checked in this way; and sums tell something about the
# data that they are summed over.
#
# A quarter of lies, never checked, does not ruin the run: three quarters of the codes outvote them.
# It loses some percent. With a small share of the parts checked, the liar is gone after a few
# steps, and nothing of it is seen in the end.
#
# ## Secure use
#
# - **A log is a model.** Whoever can read the log, or all messages to one worker, has the weights.
#   Treat a log as you treat weights.
# - **A scheduler runs code.** Whoever can connect to a Dask scheduler can run any Python on its
#   workers. On a network that you share with others, use TLS: Dask takes certificates from its
#   configuration (`distributed.comm.tls`), and `Client("tls://...")` uses them.
# - **Answers are data.** A client reads an answer as numbers and checks lengths, ranges, order and
#   signs before it uses them; nothing in an answer is executed, and what is no answer costs its
#   worker the place in the crew.
# - **A hostile worker** can be late, answer nothing, or lie. Late costs patience, lies cost a share
#   of the codes until they are found. Two workers that lie *alike* outvote an honest one: the check
#   finds single liars and faults, it is no defence against a crew of which many belong to one
#   enemy. And a worker that was left out can come back as a new process under another name. Who may
#   join is for TLS to say.
# - A worker needs the data, and so it sees the data. Nothing here hides them.
#
# **Limits.**
#
# - The codes are equal as long as the machines round alike. Sums are floats; another CPU, BLAS or
#   version of NumPy may err otherwise in the last bit. At every step the client compares the
#   workers' checksums of weights, hard samples and a few logits, to the bit. Where workers differ,
#   the client measures for itself; those that differ from it are left out by name, before their
#   sums are used. So a crew of different machines goes on with those that round as the client does,
#   or ends in an error that says so. It never goes on with two kinds of weights.
# - Sums that differ in a last bit, from workers whose checksums agree, go unnoticed where no part
#   is checked; then the log is still a valid run, though not that of the serial engine.
# - Every worker draws the whole batch and makes its forward pass. That part is repeated, not
#   shared. A worker measures its own chunks first and answers; the pass of the others, and the next
#   batch, it makes while the answer is under way and the client decides. What takes longer than
#   that bounds the speed-up.
# - A step waits for its slowest worker. A task is sent again after `patience` seconds, to another.
# - The client decides. If it dies, the log has all but the last record of up to 32 steps, and a new
#   client goes on.
#
# **Exercises.**
#
# 1. Cut the batch into as many chunks as there are workers, in place of four. From which number of
#    workers on does a code differ? Which law of the tests would break?
#    (`test_the_codes_are_those_of_a_serial_run`)
# 2. Let the late worker come at step 39. How many bytes does it get, and which of them grow with
#    the steps? (`test_a_worker_that_joins_late_needs_the_log_alone`)
# 3. Write a lie that two honest workers would not notice even with `check=1`. (You may own two of
#    the workers. `test_a_worker_that_lies_is_named_and_left_out` has a lie of one.)
# 4. Flip one bit of a worker's weights. At which step is it found, and by what?
#    (`test_a_worker_with_other_weights_is_found_without_any_check`)
# 5. Two workers differ and there is no third. Who decides?
#    (`test_of_two_that_differ_the_client_itself_decides`)
# 6. Give `train_on` an executor that loses every fifth task. What changes in the log?
#    (`test_lost_tasks_run_elsewhere`)
# 7. Round sums to 8 bits. How many steps ask for exact ones? Why are the codes still right?
#    (`test_rounded_sums_never_decide_otherwise_than_exact_ones`)
# 8. Kill Dask's workers while a run goes on. (`test_killed_workers_cost_no_step`)
#
# **Sources.**
#
# - Brickner (2024), *noise_step: Training in 1.58b With No Gradient Memory*, manuscript.
# - Malladi et al. (2023), *Fine-Tuning Language Models with Just Forward Passes*, arXiv:2305.17333.
# - Patarasuk and Yuan (2009), *Bandwidth Optimal All-reduce Algorithms for Clusters of
#   Workstations*, Journal of Parallel and Distributed Computing 69.
# - Rocklin (2015), *Dask: Parallel Computation with Blocked Algorithms and Task Scheduling*,
#   Proceedings of the Python in Science Conference.
