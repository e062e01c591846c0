# %% [markdown]
# # Solutions: the same training on many machines

# %%
import importlib.util
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import struct
import tempfile
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from minibit.cluster import Remote, train_on
from minibit.cluster.crews import Lane
from minibit.cluster.messages import UNKNOWN, Answer, Task
from minibit.cluster.replica import Replica, brief_of
from minibit.cluster.rounded import Known, pack_rounded, read_rounded
from minibit.cluster.sums import draw_range
from minibit.datasets import load_mnist
from minibit.noise_step import Objective, added, keep_terns
from minibit.steps import StepLog
from minibit.training import Course, train

temporary = tempfile.TemporaryDirectory()
folder, data = Path(temporary.name), load_mnist()
RUN = {"steps": 40, "total_steps": 40, "batch": (512, 512), "shifts": 1}
train("strict", 0, folder / "serial.steps", threads=1, **RUN)
log = StepLog.open(folder / "serial.steps")
plan, records, K = log.plan, [*log.steps()], log.plan.perturbations
course = Course(log.header, data, plan.seed)
method = course.recipe.settings()


class Worker:
    """A worker in this process; `lie` may change its answers, `before` its replica."""

    def __init__(self, name, lie=lambda told: told, before=lambda replica: None):
        self.name, self.lie, self.before = name, lie, before
        self.replica, self.received = None, []

    def submit(self, message):
        self.received.append(len(message))
        task, future = Task.unpack(message), Future()
        if self.replica is None and not task.brief:
            told = Answer(UNKNOWN, self.name, 0)
        else:
            self.replica = self.replica or Replica(log.header, data)
            self.before(self.replica)
            told = self.lie(self.replica.measure(task, self.name))
        future.set_result(told.pack())
        return future


class Crew:
    """Workers that come and go."""

    def __init__(self, *workers):
        self.workers = [*workers]

    def lanes(self):
        return [Lane(worker.name.decode(), worker.submit) for worker in self.workers]


def client_of(crew, check=0.0, nonce=""):
    """A client at step 0."""
    return Remote(crew, plan, method, brief_of(log.header, None, nonce), check=check)


def negated(told):
    """The same answer, with every alignment turned round."""
    body = bytearray(told.body)
    np.frombuffer(body, "<i2", K, offset=8)[:] *= -1
    return told._replace(body=bytes(body))


# %% [markdown]
# **1.** From two on, now and then. Sums over two, three or eight chunks have other last bits than
# over four, in every step; a code differs where two scores at the median lie so near each other
# that a last bit decides, which random sums hardly ever do. A run of many steps meets one, and then
# the law `test_the_codes_are_those_of_a_serial_run` is broken. Here such a pair is made: two
# perturbations whose alignments are the same numbers in another order.

# %%
rng = np.random.default_rng(0)
other_sums, other_codes = dict.fromkeys((2, 3, 8, 32), 0), dict.fromkeys((2, 3, 8, 32), 0)
sizes = np.float32([0.01] * 63 + [1, 1] + [100] * 63)
for _ in range(100):
    each = sizes * (1 + rng.random((512, K), dtype=np.float32))  # (samples, perturbations)
    each[:, 64] = rng.permutation(each[:, 63])  # the two in the middle

    def codes_of(chunks, each=each):
        """Sums over so many chunks, joined from first to last, and the codes that they give."""
        total = sum(part.sum(axis=0) for part in np.array_split(each, chunks))
        return total, keep_terns(total, np.ones(K, np.float32), "absolute")

    four, kept = codes_of(4)
    for chunks in other_sums:
        total, codes = codes_of(chunks)
        other_sums[chunks] += int((total != four).any())
        other_codes[chunks] += int((codes != kept).any())
print("of 100 steps other sums:", other_sums, "other codes:", other_codes)
assert min(other_sums.values()) > 90
assert min(other_codes.values()) > 10

# %% [markdown]
# **2.** A refusal, then one task with the brief and 39 records. The brief is the same whenever it
# comes; the records grow with the steps, some 30 bytes each. The weights would be 66,868 bytes at
# any step.

# %%
received = {}
for joins in (10, 39):
    crew = Crew(Worker(b"first wk"), Worker(b"other wk"))
    late, remote = Worker(b"the late"), client_of(crew, nonce=str(joins))
    for number in range(40):
        if number == joins:
            crew.workers.append(late)
        remote.step()
    received[joins] = late.received
    print(f"joins at step {joins}: bytes {late.received[:3]}")
per_record = (received[39][1] - received[10][1]) / 29
print(f"{per_record:.0f} bytes for each step that was missed")
assert 20 < per_record < 60
assert received[39][1] < 66_868 / 10

# %% [markdown]
# **3.** One that two workers tell alike. The parts are measured twice: if both that measure are
# yours, they agree, and nobody asks further. If one is honest, a third decides; the third may be
# yours, and then the honest one is left out. So two of four outvote the others in some runs.
# (One worker alone can lie unseen about what is not compared: the seconds that it took.)

# %%
for trial in range(40):  # who is asked third is chance
    crew = Crew(
        Worker(b"honest 1"),
        Worker(b"honest 2"),
        Worker(b"liar one", negated),
        Worker(b"liar two", negated),
    )
    remote, wrong = client_of(crew, check=1.0, nonce=f"two of four {trial}"), 0.0
    for expected in records[:12]:
        wrong = np.mean(remote.step().record.codes != expected.codes)
        if remote.left_out or wrong:
            break
    if wrong:
        break
out = [bytes.fromhex(name).decode() for name in remote.left_out]
print(f"in run {trial + 1}: wrong codes {wrong:.0%}; left out: {out}")
assert wrong > 0
slow = Crew(*(Worker(b"worker %d" % k, lambda told: told._replace(seconds=9.0)) for k in (1, 2)))
remote = client_of(slow, check=1.0, nonce="slow")
for expected in records[:3]:
    assert np.array_equal(remote.step().record.codes, expected.codes)
assert not remote.left_out  # nine seconds a step, and nobody doubts it

# %% [markdown]
# **4.** At its first answer after the bit has flipped, by the checksum of weights and samples that
# every answer carries: no part has to be measured twice for that.


# %%
def flipped(replica):
    """Turn one weight round before step 5 is measured."""
    if replica.step == 5 and replica.params["w2"][0, 0] == before:
        replica.params["w2"] = replica.params["w2"].copy()
        replica.params["w2"][0, 0] = -1 if before != -1 else 1


before = log.weights_at(5)["w2"][0, 0]
crew = Crew(Worker(b"worker 1"), Worker(b"worker 2"), Worker(b"the ill ", before=flipped))
remote = client_of(crew, nonce="ill")
for expected in records[:10]:
    assert np.array_equal(remote.step().record.codes, expected.codes)
print(remote.left_out)
(reason,) = remote.left_out.values()
assert "other weights at step" in reason

# %% [markdown]
# **5.** The client: it measures the part itself, and leaves out whom it contradicts. That costs it
# the work of a worker, for this one part.

# %%
crew = Crew(Worker(b"honest 1"), Worker(b"the liar", negated))
remote = client_of(crew, check=1.0, nonce="two")
for expected in records[:5]:
    assert np.array_equal(remote.step().record.codes, expected.codes)
assert [*remote.left_out] == [b"the liar".hex()]

# %% [markdown]
# **6.** Nothing. The tasks go out again, and the log is the same, byte for byte; only the traffic
# is more.


# %%
class Forgetful(Executor):
    """Two threads; each fifth task is lost."""

    def __init__(self):
        self.pool, self.count = ThreadPoolExecutor(2), 0

    def submit(self, function, *arguments):
        self.count += 1
        if self.count % 5 == 0:
            lost = Future()
            lost.set_exception(ConnectionError("the worker is gone"))
            return lost
        return self.pool.submit(function, *arguments)

    def shutdown(self, wait=True, **options):
        self.pool.shutdown(wait)


with Forgetful() as executor:
    run = train_on(executor, "strict", 0, folder / "lost.steps", workers=2, **RUN)
print(f"{run.traffic.again} of {run.traffic.tasks} tasks went out again")
assert run.traffic.again > 5
assert (folder / "lost.steps").read_bytes() == (folder / "serial.steps").read_bytes()

# %% [markdown]
# **7.** Nearly all of them: with steps 256 times as wide some bounds reach across the median at
# once. Codes are right because only what is certain is decided by bounds; everything else is asked
# for.


# %%
def pack_8_bits(sums):
    """As `pack_rounded`, with 126 for the largest code in place of 32,766."""
    body = []
    for kind, chunks in enumerate((sums.alignments, sums.squares)):
        total = np.sqrt(added(chunks)) if kind else added(chunks)
        step = np.abs(total).max() / 126
        rounded = np.rint(total / step)
        codes = np.where(rounded == 0, np.sign(total), rounded).astype("<i2")
        body += [struct.pack("<d", step), codes.tobytes()]
    return b"".join(body)


objective = Objective(course.model, None, course.recipe.threshold, 1)
asked = {"16 bits": 0, "8 bits": 0}
for number, kept in enumerate(records[:15]):
    drawn = draw_range(plan, number, kept.numerator, 0, K)
    samples, weights = course.batch(number), log.weights_at(number)
    halves = [
        method.measure_chunks(objective, weights, samples, drawn, range(*chunks))
        for chunks in ((0, 2), (2, 4))
    ]
    for name, pack in (("16 bits", lambda s: pack_rounded(s, "t")), ("8 bits", pack_8_bits)):
        known = Known([[read_rounded(pack(half), K, "t") for half in halves]], "t")
        open_now = known.open()
        asked[name] += len(open_now) > 0
        if len(open_now) == 0:
            assert np.array_equal(known.codes(), kept.codes)
    course.saw(np.concatenate([half.hardness for half in halves]), 0.0)
print("steps of 15 that ask for exact sums:", asked)
assert asked["8 bits"] > 10 > asked["16 bits"]

# %% [markdown]
# **8.** Each task that a dead worker held runs elsewhere, Dask's nanny starts another worker, and
# that one asks for the log. The digest is that of the serial run.

# %%
if importlib.util.find_spec("distributed"):
    import signal

    from distributed import Client
    from distributed.deploy.subprocess import SubprocessCluster

    def kill(client):
        """Kill one of the workers after a moment."""
        time.sleep(1)
        first = next(iter(client.run(os.getpid, on_error="ignore").values()))
        os.kill(first, signal.SIGKILL)

    workers = {"n_workers": 2, "threads_per_worker": 1, "silence_logs": 50}
    with SubprocessCluster(**workers) as local, Client(local) as client:
        client.wait_for_workers(2, timeout=60)
        killer = threading.Thread(target=kill, args=(client,))
        killer.start()
        run = train_on(client, "strict", 0, folder / "dask.steps", patience=20, **RUN)
        killer.join()
    print(f"digest {run.digest[:16]}... after one worker was killed")
    assert run.digest == log.digest()
temporary.cleanup()
