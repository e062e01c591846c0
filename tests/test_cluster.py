"""The same training on many machines: one set of codes, whoever measures, whatever is lost."""

import pickle
import random
from collections import OrderedDict
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit.cluster import crews, replica, train_on
from minibit.cluster.crews import crew_of
from minibit.cluster.messages import (
    ANSWERED,
    BEHIND,
    CODES,
    EXACT,
    REFUSED,
    ROUNDED,
    SUMS,
    UNKNOWN,
    Answer,
    Task,
    run_name,
)
from minibit.cluster.remote import Remote
from minibit.cluster.replica import answer, brief_of
from minibit.cluster.sums import Part, decode, draw_range, join, ranges
from minibit.datasets import load_npz
from minibit.noise_step import Plan, Sampled, Units, draw_candidates, forward
from minibit.noise_step.moves import draw_directions
from minibit.steps import StepLog, pack_steps
from minibit.training import train
from minibit.training.log_header import other_data
from test_training import blobs

SHORT = {
    "widths": (24, 24),
    "steps": 40,
    "total_steps": 40,
    "batch": (64, 128),
    "rate": (0.05, 0.01),
    "density": (0.01, 0.002),
    "perturbations": 24,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The blobs as a file, which every worker reads."""
    path, dataset = tmp_path_factory.mktemp("data") / "blobs.npz", blobs()
    np.savez(
        path,
        train_x=dataset.train_x.reshape(-1, 4, 4),
        train_y=dataset.train_y,
        test_x=dataset.test_x.reshape(-1, 4, 4),
        test_y=dataset.test_y,
    )
    return path


def serial(path, data, preset, **fields):
    """A run in this process."""
    return train(preset, 3, path, dataset=load_npz(data), threads=1, **{**SHORT, **fields})


@pytest.fixture(scope="module", params=["strict", "small"])
def run(request, tmp_path_factory, data):
    """A serial run, its preset and its log."""
    path = tmp_path_factory.mktemp("serial") / "a.steps"
    return request.param, serial(path, data, request.param), StepLog.open(path)


def steps_equal(a, b):
    """Whether two logs hold the same steps."""
    return [pickle.dumps(s) for s in a.steps()] == [pickle.dumps(s) for s in b.steps()]


# --- Messages

some_bytes = st.binary(max_size=40)


@given(
    st.binary(min_size=8, max_size=8),
    st.lists(some_bytes, max_size=5),
    some_bytes,
    st.lists(st.integers(0, 2**32 - 1), min_size=5, max_size=5),
    st.lists(st.integers(0, 2**32 - 1), max_size=5),
    st.lists(st.integers(0, 255), min_size=3, max_size=3),
)
def test_a_task_comes_out_as_it_went_in(run, records, brief, numbers, exact, small):
    """Every field, for all values that its bytes can hold."""
    chunks, form = (small[0], small[1]), small[2]
    told = tuple(exact), numbers[4], tuple(records), brief
    task = Task(run, *numbers[:4], chunks, form, *told)
    assert Task.unpack(task.pack()) == task


@given(st.integers(0, 3), some_bytes, st.floats(allow_nan=False))
def test_an_answer_comes_out_as_it_went_in(kind, body, loss):
    """Every field, for all values that its bytes can hold."""
    told = Answer(kind, b"12345678", 7, loss, 0.5, 9, 2**32 - 1, 2**32 - 1, 0.25, body)
    assert Answer.unpack(told.pack()) == told


@given(st.binary(max_size=120))
def test_strange_bytes_are_refused_and_never_raised_on_a_worker(message):
    """A worker answers whatever comes, and a client reads an answer or says that it is none."""
    told = Answer.unpack(answer(message))
    assert told.kind in (UNKNOWN, REFUSED)
    if len(message) < 45:
        with pytest.raises(ValueError, match="must answer 45 bytes"):
            Answer.unpack(message)


# --- Ranges


@given(st.integers(1, 300), st.integers(1, 40))
def test_ranges_cover_all_items_once(count, parts):
    """End to end, none empty, sizes one apart."""
    plan = Plan("sampled", 0, ("w",), ((2, 3),), 0, perturbations=count)
    cuts = ranges(plan, parts)
    assert [i for first, stop in cuts for i in range(first, stop)] == [*range(count)]
    sizes = {stop - first for first, stop in cuts}
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def test_a_range_draws_what_the_whole_step_draws_there():
    """Perturbations keep their numbers, units their layers and inputs."""
    plan = Plan("sampled", 5, ("a", "b"), ((6, 9), (4, 6)), 0, perturbations=7)
    whole = draw_directions(plan, 3, 2**30)
    part = draw_range(plan, 3, 2**30, 2, 5)
    start, stop = whole.offsets[2], whole.offsets[5]
    np.testing.assert_array_equal(part.positions, whole.positions[start:stop])
    np.testing.assert_array_equal(part.signs, whole.signs[start:stop])
    plan = Plan("units", 5, ("a", "b"), ((6, 9), (4, 6)), 0, units=(3, 2), inputs=(4, 6))
    whole = draw_candidates(plan, 3)
    part = draw_range(plan, 3, 0, 1, 4)
    assert [u.tolist() for u in part.units] == [
        whole.units[0][1:].tolist(),
        whole.units[1][:1].tolist(),
    ]
    np.testing.assert_array_equal(part.columns[0], whole.columns[0][1:])
    assert part.columns[1] is None


@pytest.mark.parametrize("damage", [b"", b"\x01", b"\xff" * 5, bytes(300)])
def test_a_body_that_its_range_cannot_have_is_refused(damage):
    """Too short, too long, moves that are not in the range."""
    for plan in (
        Plan("sampled", 5, ("a",), ((6, 9),), 0, perturbations=7),
        Plan("units", 5, ("a",), ((6, 9),), 0, units=(3,), inputs=(9,)),
    ):
        method = Sampled(score="t") if plan.method == "sampled" else Units()
        forms = (SUMS, CODES, ROUNDED, EXACT) if plan.method == "sampled" else (SUMS,)
        for form in forms:
            with pytest.raises(ValueError, match=r"bytes|moves"):
                decode(
                    method, plan, Part(1, 3, (0, 4), form, (2,)), damage * (form != CODES) or b"12"
                )


def test_of_equal_scores_the_lowest_candidate_wins_whoever_measured_it(monkeypatch):
    """Ties between workers end as in `keep_moves`."""
    plan = Plan("units", 5, ("a",), ((6, 9),), 0, units=(2,), inputs=(9,))

    class Three:
        def quotas(self, plan, step):
            return [3]

    def body(*positions):
        q = np.array(positions, "<u4")
        signs = np.ones(len(q), np.int8)
        return (
            len(q).to_bytes(4, "little") + q.tobytes() + signs.tobytes() + np.ones(len(q)).tobytes()
        )

    bodies = [(Part(0, 1, (0, 4), SUMS), body(2, 5)), (Part(1, 2, (0, 4), SUMS), body(9, 10))]
    record = join(Three(), plan, 0, 0, bodies)
    assert record.positions[0].tolist() == [2, 5, 9]


# --- Runs


class Inline(Executor):
    """The least that an executor can be: it runs each task at once."""

    def submit(self, function, *arguments):
        """Return a future that is done."""
        future = Future()
        future.set_result(function(*arguments))
        return future


@pytest.mark.parametrize("cut", [None, "perturbations"])
@pytest.mark.parametrize("workers", [1, 2, 3, 5, 9])
def test_the_codes_are_those_of_a_serial_run(tmp_path, data, run, workers, cut):
    """For every number of workers and each cut, of both methods."""
    preset, result, log = run
    if cut and preset == "small":
        with pytest.raises(ValueError, match="cut is for method sampled"):
            train_on(Inline(), preset, 3, tmp_path / "a.steps", data=data, cut=cut, **SHORT)
        return
    with ThreadPoolExecutor(2) as pool:
        options = {"data": data, "workers": workers, "cut": cut, **SHORT}
        ours = train_on(pool, preset, 3, tmp_path / "a.steps", **options)
    assert ours.digest == result.digest
    assert steps_equal(StepLog.open(tmp_path / "a.steps"), log)
    assert ours.test_accuracy == result.test_accuracy
    assert ours.loss == result.loss
    assert ours.traffic.tasks >= 40 * min(workers, 4)


def test_scores_of_absolute_alignments_need_no_squares(tmp_path, data):
    """Half the bytes, and still the codes of a serial run."""
    result = serial(tmp_path / "a.steps", data, "strict", score="absolute")
    for number, (cut, body) in enumerate((("samples", 8 + 2 * 24), ("perturbations", 4 * 12))):
        out, options = tmp_path / f"{number}.steps", {"score": "absolute", "workers": 2, **SHORT}
        ours = train_on(Inline(), "strict", 3, out, data=data, cut=cut, **options)
        assert ours.digest == result.digest
        assert ours.traffic.up <= 80 * (45 + body) + 400


@pytest.mark.parametrize("kind", ["processes", "one of our own", "executorlib", "mpi4py"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_any_executor_will_do(tmp_path, data, run, kind):
    """Processes, an executor of one's own, and those of packages, where these are installed."""
    preset, result, _ = run
    if kind == "processes":
        engine = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    elif kind == "executorlib":
        package = pytest.importorskip("executorlib")
        engine = package.SingleNodeExecutor(max_workers=2, block_allocation=True)
    elif kind == "mpi4py":
        package = pytest.importorskip("mpi4py.futures", exc_type=ImportError)
        engine = package.MPIPoolExecutor(max_workers=2, main=False)
    else:
        engine = Inline()
    with engine:
        out = tmp_path / "a.steps"
        ours = train_on(engine, preset, 3, out, data=data, workers=2, **SHORT)
    assert ours.digest == result.digest


def test_a_run_goes_on_from_its_log_with_new_workers(tmp_path, data, run):
    """Workers begin anew, retrace the log, and go on as if the client had never been stopped."""
    preset, result, _ = run
    out = tmp_path / "a.steps"
    with ThreadPoolExecutor(2) as pool:
        train_on(pool, preset, 3, out, data=data, **{**SHORT, "steps": 17})
        replica._replicas.clear()
        ours = train_on(pool, preset, 3, out, data=data, resume=True, steps=40)
    assert ours.digest == result.digest


@pytest.mark.parametrize("others", [False, True], ids=["seed", "data"])
def test_workers_go_on_with_a_fork_by_its_own_seed_and_data(tmp_path, data, run, others):
    """The codes of a serial run, also of workers that come late, without the parent's data."""
    _, _, log = run
    own = tmp_path / "own.npz"
    with np.load(data) as arrays:
        np.savez(own, **{**arrays, "train_y": arrays["train_y"][::-1]} if others else arrays)
    dataset = load_npz(own)
    entry = other_data(log, 9, dataset) if others else None
    for name in ("serial", "workers"):
        log.fork(9, tmp_path / name, None if others else 7, entry)
    rest = {"resume": True, "steps": 20}
    expected = train(out=tmp_path / "serial", dataset=dataset, threads=1, **rest)
    with ThreadPoolExecutor(2) as pool:
        for steps in (14, 20):
            replica._replicas.clear()
            options = {"workers": 2, **rest, "steps": steps}
            ours = train_on(pool, out=tmp_path / "workers", data=own, **options)
    assert ours.digest == expected.digest != log.digest(20)
    assert steps_equal(StepLog.open(tmp_path / "serial"), StepLog.open(tmp_path / "workers"))


def test_a_step_of_a_forks_parent_is_not_measured_on_the_forks_data(tmp_path, data, run):
    """Batches of steps before the fork are the parent's; a worker says so."""
    _, _, log = run
    fork = log.fork(9, tmp_path / "b", data=other_data(log, 9, load_npz(data)))
    brief = brief_of(fork.header, str(data), "parent")
    numerator = getattr(next(iter(log.steps())), "numerator", 0)
    task = Task(run_name(brief), 0, numerator, 0, 1, (0, 4), SUMS, (), 0, (), brief)
    told = Answer.unpack(answer(task.pack()))
    assert told.kind == REFUSED
    assert "step 0 was taken on the data of the fork's parent" in told.reason


def test_a_worker_answers_before_it_makes_what_is_left_of_a_step(data, run, monkeypatch):
    """What the client waits for is a part's own samples; the rest is done before the next task."""
    _, _, log = run
    work, passes = [], []

    class Later:
        def __init__(self, target, args):
            work.append(lambda: target(*args))

        def start(self):
            """Wait until the answer is there."""

    def counted(model, params, x, y, threads):
        passes.append(len(x))
        return forward(model, params, x, y, threads)

    one = replica.Replica(log.header, load_npz(data))
    probe = min(replica.PROBE, one.course.batch_size(0))
    monkeypatch.setattr(replica.threading, "Thread", Later)
    monkeypatch.setattr(replica, "forward", counted)
    sampled = log.plan.method == "sampled"
    numerator = one.method.numerator(0) if sampled else 0
    stop, chunks = (24, (0, 1)) if sampled else (4, (0, 4))
    task = Task(b"", 0, numerator, 0, stop, chunks, ROUNDED if sampled else SUMS, (), 0)
    told = one.measure(task, b"12345678")
    assert told.kind == ANSWERED
    assert passes == [probe]
    assert told.samples == one.course.batch_size(0) // (4 if sampled else 1)
    (ahead,) = work
    ahead()
    if sampled:  # three chunks of four
        assert passes == [probe, one.course.batch_size(0) - told.samples]
    known, drawn = len(passes), one._next
    assert drawn is not None
    ahead()
    assert one.measure(task, b"12345678")._replace(seconds=0) == told._replace(seconds=0)
    record = pack_steps(log.plan, [next(iter(log.steps()))])
    after = task._replace(step=1, numerator=numerator, records=(record,))
    assert one.measure(after, b"12345678").kind == ANSWERED
    assert one._batch is drawn
    assert passes[known:] == [probe]


def test_what_fails_ahead_of_a_task_is_told_in_its_answer(data, run, monkeypatch):
    """The thread that looks ahead is silent; the next task does the same, and answers why not."""
    _, _, log = run
    brief = brief_of(log.header, str(data), f"{random.random()}")
    method = replica.Replica(log.header, load_npz(data)).method
    remote = Remote(crew_of(Inline(), 2), log.plan, method, brief)
    draw = replica.Course.batch

    def fails(self, step):
        if step:
            raise OSError("the data are gone")
        return draw(self, step)

    monkeypatch.setattr(replica.Course, "batch", fails)
    remote.step()
    with pytest.raises(RuntimeError, match="OSError: the data are gone"):
        remote.step()


def test_without_threads_a_task_does_what_no_thread_did_ahead_of_it(data, run, monkeypatch):
    """Where none can start, or none gets its turn, codes are the same."""
    _, _, log = run

    class NoThread:
        def __init__(self, target, args):
            pass

        def start(self):
            """Fail, as where a process may have no more threads."""
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(replica.threading, "Thread", NoThread)
    brief = brief_of(log.header, str(data), f"{random.random()}")
    method = replica.Replica(log.header, load_npz(data)).method
    remote = Remote(crew_of(Inline(), 2), log.plan, method, brief)
    for record in list(log.steps())[:12]:
        assert pickle.dumps(remote.step().record) == pickle.dumps(record)


def test_a_log_says_which_worker_measured_what_and_can_do_without_one(tmp_path, data, run):
    """Ranges of every step, beside the log, also after a stop; a worker's own are then reverted."""
    preset, _, _ = run
    out, options = tmp_path / "a.steps", {**SHORT, "data": data, "workers": 2}
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        cut = "perturbations" if preset == "strict" else None
        train_on(pool, preset, 3, out, cut=cut, **{**options, "steps": 5})
        train_on(pool, preset, 3, out, data=data, workers=2, cut=cut, resume=True, steps=9)
    log = StepLog.open(out)
    cuts = [(first, stop) for first, stop in ranges(log.plan, 2)]
    assert len(log.shares()) == 9
    for own in log.shares():
        assert [(share.first, share.stop) for share in own] == cuts
    names = {share.name for own in log.shares() for share in own}
    for number, name in enumerate(sorted(names)):
        reverted = log.revert(name, tmp_path / str(number))
        assert reverted.verify() != log.digest()
    if len(names) == 1:  # one process was quick enough for both
        assert reverted.digest() == log.digest(0)


def test_moves_of_all_workers_are_not_reverted_by_name(tmp_path, data):
    """Cut by samples every worker has the whole range; the error names the cut that parts moves."""
    out = tmp_path / "a.steps"

    def named(worker, sent, told):
        return told.pack()

    start = serial(out, data, "strict", steps=3)
    remote = remote_with(StepLog.open(out), data, 2, named)
    with StepLog.create(tmp_path / "b.steps", StepLog.open(out).header) as log:
        for _ in range(3):
            taken = remote.step()
            log.append([taken.record], shares=[taken.shares])
    assert log.digest() == start.digest
    assert [share[:2] for share in log.shares()[0]] == [(0, 24), (0, 24)]
    with pytest.raises(ValueError, match=r"3 steps .* by samples, first step 0.*'perturbations'"):
        log.revert("00" * 8, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_worker_that_joins_late_needs_the_log_alone(data, run):
    """One that took part in nothing knows weights and samples after it retraced the records."""
    _, _, log = run
    brief = brief_of(log.header, str(data), "late")
    method = replica.Replica(log.header, load_npz(data)).method
    remote = Remote(crew_of(Inline(), 2), log.plan, method, brief)
    steps = [*log.steps()]
    for number, record in enumerate(steps):
        if number in (9, 25, 26):
            replica._replicas.clear()
        assert pickle.dumps(remote.step().record) == pickle.dumps(record), number
    assert remote.traffic.again >= 3


def test_an_answer_depends_on_its_task_alone(data, run):
    """Asked again, or by way of other steps, a worker answers the same bytes but for its time."""
    _, _, log = run
    records = tuple(pack_steps(log.plan, [step]) for step in log.steps())[:6]
    brief = brief_of(log.header, str(data), "pure")
    numerator = getattr(next(iter(log.steps())), "numerator", 0)
    form, numbers = (EXACT, (1, 3)) if numerator else (SUMS, ())
    task = Task(run_name(brief), 6, numerator, 1, 4, (0, 4), form, numbers, 0, records, brief)

    def sense():
        told = Answer.unpack(answer(task.pack()))
        assert told.kind == ANSWERED, told.reason
        return told._replace(seconds=0)

    first = sense()
    assert sense() == first
    replica._replicas.clear()
    assert sense() == first
    behind = Answer.unpack(answer(task._replace(base=9, step=9, records=(), brief=b"").pack()))
    assert (behind.kind, behind.step) == (BEHIND, 6)


class Faulty:
    """Workers, each with a name of its own, whose answers go through a fault first."""

    def __init__(self, count, fault):
        self.count, self.fault, self.turn, self.sent = count, fault, 0, 0

    def lanes(self):
        """Return a lane per worker."""
        return [
            crews.Lane(f"lane {k}", lambda task, k=k: self.ask(k, task)) for k in range(self.count)
        ]

    def ask(self, worker, message):
        """Answer a task as a worker with that fault does."""
        self.sent += 1
        future = Future()
        try:
            told = Answer.unpack(answer(message))
            told = told._replace(worker=bytes([worker]) * 8)
            future.set_result(self.fault(worker, self.sent, told))
        except Exception as error:
            future.set_exception(error)
        return future


def remote_with(log, data, count, fault, **options):
    """Steps of the run taken by so many faulty workers."""
    brief = brief_of(log.header, str(data), f"{random.random()}")
    method = replica.Replica(log.header, load_npz(data)).method
    return Remote(Faulty(count, fault), log.plan, method, brief, **options)


def turned(plan, body):
    """Sums of the right form that are wrong: another square, a first move turned round."""
    count = int.from_bytes(body[:4], "little")
    at = len(body) - 1 if plan.method == "sampled" else 4 + 4 * count
    flip = 0x40 if plan.method == "sampled" else 0xFE  # 1 and -1 as int8
    return body[:at] + bytes([body[at] ^ flip]) + body[at + 1 :] if count else body


def test_a_worker_that_lies_is_named_and_left_out(data, run):
    """With every range checked, lies change no code; one in four lies, from the third step on."""
    _, _, log = run

    def lie(worker, sent, told):
        if worker == 2 and told.kind == ANSWERED and told.step >= 3:
            told = told._replace(body=turned(log.plan, told.body))
        return told.pack()

    remote = remote_with(log, data, 4, lie, check=1.0)
    for record in list(log.steps())[:12]:
        assert pickle.dumps(remote.step().record) == pickle.dumps(record)
    assert list(remote.left_out) == ["02" * 8]
    assert "other sums at step" in remote.left_out["02" * 8]


def test_of_two_that_differ_the_client_itself_decides(data, run):
    """There is no third to ask."""
    _, _, log = run

    def lie(worker, sent, told):
        if worker == 1 and told.kind == ANSWERED:
            told = told._replace(body=turned(log.plan, told.body))
        return told.pack()

    remote = remote_with(log, data, 2, lie, check=1.0)
    for record in list(log.steps())[:12]:
        assert pickle.dumps(remote.step().record) == pickle.dumps(record)
    assert list(remote.left_out) == ["01" * 8]


def test_a_worker_with_other_weights_is_found_without_any_check(data, run):
    """Answers carry a checksum of weights and samples; those that differ are left out."""
    _, _, log = run

    def stray(worker, sent, told):
        if worker == 0 and told.kind == ANSWERED and told.step >= 2:
            told = told._replace(state=told.state ^ 1)
        return told.pack()

    remote = remote_with(log, data, 3, stray)
    for record in list(log.steps())[:6]:
        assert pickle.dumps(remote.step().record) == pickle.dumps(record)
    assert "other weights at step 2" in remote.left_out["00" * 8]


def test_a_worker_that_rounds_otherwise_is_left_out_before_its_sums_are_used(data, run):
    """Logits of a few samples are compared to the bit, from the first step on."""
    _, _, log = run

    turn, replicas = [0], [OrderedDict() for _ in range(4)]  # the last is the client's own

    def become(who):
        turn[0], replica._replicas = who, replicas[who]

    def rounds(model, params, x, y, threads):
        logits, *rest = forward(model, params, x, y, threads)
        if turn[0] == 1:
            logits[0, 0] = np.nextafter(logits[0, 0], np.float32(9))
        return logits, *rest

    class Apart(Faulty):
        """Each worker has a replica of its own."""

        def ask(self, worker, message):
            become(worker)
            return super().ask(worker, message)

    brief = brief_of(log.header, str(data), f"{random.random()}")
    method = replica.Replica(log.header, load_npz(data)).method
    crew = Apart(3, lambda worker, sent, told: told.pack())
    remote = Remote(crew, log.plan, method, brief)
    decide = remote._tasks.measured_here

    def here(part):
        become(3)
        return decide(part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replica, "_replicas", replicas[0])
        patch.setattr(replica, "forward", rounds)
        patch.setattr(remote._tasks, "measured_here", here)
        for record in list(log.steps())[:4]:
            assert pickle.dumps(remote.step().record) == pickle.dumps(record)
    assert list(remote.left_out) == ["01" * 8]
    assert "other weights at step 0" in remote.left_out["01" * 8]


@pytest.mark.parametrize("junk", [b"", b"nonsense", None, 7, bytes(45)])
def test_nonsense_from_a_worker_ends_no_run(data, run, junk):
    """Its tasks go elsewhere; what it said is told."""
    _, _, log = run
    remote = remote_with(
        log, data, 3, lambda worker, sent, told: junk if worker == 1 else told.pack()
    )
    for record in list(log.steps())[:4]:
        assert pickle.dumps(remote.step().record) == pickle.dumps(record)
    assert len(remote.left_out) == 1


def test_lost_tasks_run_elsewhere(data, run):
    """Every fifth task raises, as tasks of a killed worker do."""
    _, _, log = run

    def lost(worker, sent, told):
        if sent % 5 == 0:
            raise ConnectionError("the worker is gone")
        return told.pack()

    remote = remote_with(log, data, 3, lost)
    for record in list(log.steps())[:12]:
        assert pickle.dumps(remote.step().record) == pickle.dumps(record)
    assert remote.traffic.again >= 6
    assert not remote.left_out


def test_a_run_without_workers_ends_in_an_error_and_keeps_its_steps(tmp_path, data, run):
    """The message says what became of the workers; the log has every step that was taken."""
    preset, _, log = run

    class Dies(Inline):
        calls = 0

        def submit(self, function, *arguments):
            Dies.calls += 1
            if Dies.calls > 60:
                raise RuntimeError("cannot schedule new futures after shutdown")
            return super().submit(function, *arguments)

    out = tmp_path / "a.steps"
    with pytest.raises(RuntimeError, match=r"got no answer in .* tries.*after shutdown"):
        train_on(Dies(), preset, 3, out, data=data, workers=2, **SHORT)
    left = StepLog.open(out)
    assert len(left) >= 20
    assert steps_equal(left, log) or len(left) < len(log)
    left.verify()


def test_a_worker_with_other_data_is_refused_by_name(tmp_path, data, run):
    """Both digests are named; nothing is trained."""
    _, _, log = run
    other = tmp_path / "other.npz"
    dataset = blobs(seed=9)
    names = ("train_x", "train_y", "test_x", "test_y")
    np.savez(other, **{name: getattr(dataset, name) for name in names})
    brief = brief_of(log.header, str(other), "other")
    remote = Remote(crew_of(Inline(), 2), log.plan, None, brief)
    with pytest.raises(RuntimeError, match=f"digest {log.header['data']['digest'][:16]}.*other"):
        remote.step()


def test_a_worker_of_another_version_is_refused(data, run, monkeypatch):
    """The client's version and the worker's are named."""
    _, _, log = run
    brief = brief_of(log.header, str(data), "version")
    monkeypatch.setattr("minibit.__version__", "9.9")
    task = Task(run_name(brief), 0, 0, 0, 1, (0, 4), SUMS, (), 0, (), brief)
    told = Answer.unpack(answer(task.pack()))
    assert told.kind == REFUSED
    assert "0.1.0" in told.reason
    assert "9.9" in told.reason


@pytest.mark.parametrize("engine", [None, 3, "tcp://127.0.0.1:8786", object()])
def test_what_is_no_engine_is_refused(engine):
    """The message says what is."""
    with pytest.raises(TypeError, match="Executor or a Dask client"):
        train_on(engine)


@pytest.mark.parametrize(
    ("preset", "options", "complaint"),
    [
        ("small", {"check": 1.5}, r"check must lie in \[0, 1\], got 1.5"),
        ("small", {"check": "all"}, "check must be a real number, got 'all'"),
        ("small", {"patience": -1}, r"patience must lie in \[0, inf\), got -1"),
        ("small", {"cut": "samples"}, "cut is for method sampled, got 'samples'"),
        ("small", {"alone": True}, "alone is for method sampled"),
        ("strict", {"cut": "rows"}, "cut must be 'samples' or 'perturbations', got 'rows'"),
        ("strict", {"cut": "samples", "alone": True}, "cut must be 'perturbations' where"),
        ("strict", {"workers": 0}, "workers must be at least 1, got 0"),
        ("strict", {"steps": -1}, "steps must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_asked_leaves_no_log_and_no_change(
    tmp_path, data, preset, options, complaint
):
    """A new run has no file then; a log that was to go on, torn, is as it was, byte for byte."""
    with pytest.raises((TypeError, ValueError), match=complaint):
        train_on(Inline(), preset, 3, tmp_path / "a", data=data, **{**SHORT, **options})
    assert list(tmp_path.iterdir()) == []
    serial(tmp_path / "a", data, preset, steps=3)
    torn = (tmp_path / "a").read_bytes() + b"\x01"
    (tmp_path / "a").write_bytes(torn)
    with pytest.raises((TypeError, ValueError), match=complaint):
        train_on(Inline(), out=tmp_path / "a", data=data, resume=True, **options)
    with pytest.raises(ValueError, match="dataset must be the one the log was trained on, blobs"):
        train_on(Inline(), out=tmp_path / "a", resume=True)
    assert (tmp_path / "a").read_bytes() == torn


def test_alone_workers_answer_codes_and_need_the_fewest_bytes(tmp_path, data):
    """1.6 bits a perturbation and 45 bytes of head; each range keeps its own median."""
    with ThreadPoolExecutor(2) as pool:
        ours = train_on(
            pool, "strict", 3, tmp_path / "a.steps", data=data, workers=2, alone=True, **SHORT
        )
    assert ours.traffic.up <= ours.traffic.answers * (45 + 3)
    for step in StepLog.open(tmp_path / "a.steps").steps():
        for half in (step.codes[:12], step.codes[12:]):
            assert np.count_nonzero(half) >= 6 or not half.any()
    with pytest.raises(ValueError, match="method sampled"):
        train_on(Inline(), "small", 3, tmp_path / "b.steps", data=data, alone=True, **SHORT)


def test_a_density_that_follows_the_loss_follows_the_workers_loss(tmp_path, data):
    """As in a serial run, also after a resume."""
    falling = {"density_by_loss": ((1.3, 0.004), (1.2, 0.002)), "density": (0.01, 0.01)}
    result = serial(tmp_path / "a.steps", data, "strict", **falling)
    with ThreadPoolExecutor(2) as pool:
        out = tmp_path / "b.steps"
        train_on(pool, "strict", 3, out, data=data, **{**SHORT, **falling, "steps": 21})
        ours = train_on(pool, "strict", 3, out, data=data, resume=True, steps=40)
    assert ours.digest == result.digest
