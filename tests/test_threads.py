"""Workers that every caller may use: whatever happens, a call ends, and so does the next."""

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from minibit.kernels import compiled
from minibit.kernels import threads as pool

JIT = compiled()
needs_jit = pytest.mark.skipif(not JIT, reason="without compiled code tasks run in their caller")
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="signals and forks are Linux's")


@pytest.fixture
def team(monkeypatch):
    """A new team of at most two workers, whatever the machine has."""
    monkeypatch.setattr(pool, "available", lambda: 3)
    monkeypatch.setattr(pool, "_team", None)
    assert squares(4) == [0, 1, 4, 9]
    yield pool._team
    pool._team.end()
    assert pool._team.workers == {}


def squares(count, threads=None):
    """A call of several tasks, each of which is long enough for a worker to come."""
    out = [-1] * count

    def task(i):
        pause(20)
        out[i] = i * i
        return True

    assert pool.run([partial(task, i) for i in range(count)], threads)
    return out


def pause(microseconds):
    """Let time go by without Python's lock, where there is compiled code."""
    if JIT:
        from minibit.kernels import spin

        spin.wait(np.zeros(1, np.int64), 0, 0, 40 * microseconds, 0)


def python(code, **environment):
    """Run a program; its output, without the last newline."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.rstrip("\n")


# --- who does a task ----------------------------------------------------------------------------


def test_a_worker_that_slept_is_woken():
    """A task comes long after the last one; so do several callers at once."""
    for seconds in (0.0, 0.02, 0.0):
        time.sleep(seconds)
        assert pool.run([lambda: True, lambda: True])
        assert not pool.run([lambda: True, lambda: False])


def test_more_tasks_than_the_team_has_workers_are_all_done():
    """Whoever is free takes the next; no task is done twice."""
    done = []
    assert pool.run([lambda i=i: done.append(i) is None for i in range(40)])
    assert sorted(done) == list(range(40))
    assert pool.run([])


def test_several_callers_share_the_workers():
    """No caller waits for another's workers, and each gets its own results."""
    wrong = []

    def caller():
        for count in (2, 3, 5, 8) * 20:
            if squares(count) != [i * i for i in range(count)]:
                wrong.append(count)

    callers = [threading.Thread(target=caller) for _ in range(6)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not wrong


@needs_jit
def test_workers_take_part(team):
    """Two tasks can be within at the same time."""
    assert any(meet() for _ in range(100))  # a worker that is busy may come too late
    assert len(team.workers) == 2


@needs_jit
def test_at_most_so_many_threads_take_part(team):
    """``threads=1`` is the caller alone, ``threads=2`` it and one worker."""
    for threads in (1, 2):
        places = set()

        def task(places=places):
            pause(200)
            places.add(threading.get_ident())
            return True

        assert pool.run([task] * 12, threads)
        assert threading.get_ident() in places
        assert len(places) <= threads


def test_a_result_is_let_go_of():
    """A worker keeps no array of a task that is over."""
    array = np.zeros(10)
    alive = weakref.ref(array)
    pool.run([lambda: True, partial(np.all, array == 0)])
    task = partial(lambda x: True, array)
    pool.run([lambda: True, task])
    del array, task
    assert alive() is None


@needs_jit
def test_waiting_ends_when_the_number_comes_or_the_looks_are_spent():
    """The reference of a spinning wait is a comparison."""
    from minibit.kernels import spin

    numbers = np.array([3, 4])
    assert spin.wait(numbers, 1, 3, 10, 2) == 4
    assert spin.wait(numbers, 1, 4, 10, 2) == 4
    spin.settle(numbers, 1, 5, 10, 2)  # none is 5
    spin.settle(numbers, 2, 4, 10, 2)  # numbers[1] is not looked at
    later = threading.Thread(target=lambda: (time.sleep(0.05), numbers.fill(0)))
    later.start()
    spin.settle(numbers, 1, 4, 10, 2)
    assert not numbers.any()
    later.join()


# --- how many -----------------------------------------------------------------------------------


@needs_jit
def test_the_team_is_no_larger_than_the_cpus_that_the_process_may_use(team, monkeypatch):
    """With the caller, a thread per CPU; with one CPU the caller does all."""
    assert squares(9, threads=9) == [i * i for i in range(9)]
    assert len(team.workers) == 2
    monkeypatch.setattr(pool, "available", lambda: 1)
    monkeypatch.setattr(pool, "_team", None)
    assert squares(9, threads=9) == [i * i for i in range(9)]
    assert pool._team.workers == {}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_the_cpus_follow_the_affinity_of_the_process():
    """A process that was put on one CPU uses one thread."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert pool.available() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert pool.available() <= len(before)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {}, 2**16),
        ("0::/", {"cpu.max": "max 100000"}, 2**16),
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "150000 100000"}, 2),  # a share of a CPU is worth a thread
        ("0::/", {"cpu.max": "5000 100000"}, 1),
        ("0::/", {"cpu.max": "nonsense"}, 2**16),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/host/path", {"cpu.max": "400000 100000"}, 4),  # its own group is the root it sees
        (
            "7:memory:/\n4:cpu,cpuacct:/a\n0::/",
            {
                "cpu/a/cpu.cfs_quota_us": "250000",
                "cpu/a/cpu.cfs_period_us": "100000",
                "memory/cpu.cfs_quota_us": "1",
            },
            3,
        ),
        (
            "1:cpu:/",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            2**16,
        ),
        (
            "4:cpu,cpuacct:/",
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "100000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            1,
        ),
    ],
)
def test_a_container_with_a_share_of_the_cpus_counts_as_so_many(tmp_path, groups, files, expected):
    """Quotas of control groups, version 1 and 2; a limit of any group above counts."""
    for name, text in {"proc/self/cgroup": groups}.items() | {
        (f"sys/fs/cgroup/{name}", text) for name, text in files.items()
    }:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert pool._quota.__wrapped__(tmp_path) == expected


def test_without_control_groups_there_is_no_limit(tmp_path):
    """Another system than Linux has no such files."""
    assert pool._quota.__wrapped__(tmp_path) == 2**16


def test_the_limit_of_the_container_bounds_the_threads(monkeypatch):
    """The default number of threads is the smaller of both."""
    monkeypatch.delenv("MINIBIT_THREADS", raising=False)
    monkeypatch.setattr(pool, "_quota", lambda: 1)
    assert pool.available() == pool.cpus() == 1


# --- interrupts ---------------------------------------------------------------------------------


@needs_jit
def test_an_interrupt_at_any_bytecode_leaves_the_next_call_right(team):
    """KeyboardInterrupt is raised before each bytecode that a caller runs, one call after another.

    A signal comes at fewer places than a trace function does.
    """
    reached, stop_at = 0, 0

    def trace(frame, event, _argument):
        nonlocal reached
        if frame.f_code.co_filename != pool.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            reached += 1
            if reached == stop_at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    while True:
        reached, stop_at = 0, stop_at + 1
        sys.settrace(trace)
        try:
            pool.run([lambda: True, lambda: True, lambda: True])
        except KeyboardInterrupt:
            continue
        finally:
            sys.settrace(before)
            assert squares(3) == [0, 1, 4]
        break
    assert stop_at > 100
    assert pool._team is team


def interrupted(call, seconds, again):
    """Whether SIGALRM interrupts a call after so many seconds, and again and again until it ends.

    The handler raises KeyboardInterrupt wherever Python runs it, but for what is outside the call.
    It stays: a signal may come late, by another thread, and Python complains where nobody hears it.
    """
    code = call.__code__

    def interrupt(_number, frame):
        while frame is not None and frame.f_code is not code:
            frame = frame.f_back
        if frame is not None:
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # Hypothesis looks at each collection, where Python reports what is raised
    signal.setitimer(signal.ITIMER_REAL, seconds, again)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.enable()
    return False


@needs_jit
def test_a_handler_may_call_at_any_bytecode_of_a_call(monkeypatch):
    """It waits for nothing that its own thread has begun, be it the team or the team's workers."""
    monkeypatch.setattr(pool, "available", lambda: 3)
    reached, stop_at, inner = 0, 0, []

    def trace(frame, event, _argument):
        nonlocal reached
        if frame.f_code.co_filename != pool.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            reached += 1
            if reached == stop_at:
                inner.append(squares(3))
        return trace

    before = sys.gettrace()
    while reached >= stop_at:
        monkeypatch.setattr(pool, "_team", None)
        reached, stop_at = 0, stop_at + 1
        sys.settrace(trace)
        try:
            assert pool.run([lambda: True, lambda: True, lambda: True])
        finally:
            sys.settrace(before)
        assert squares(3) == [0, 1, 4]
        pool._team.end()
    assert stop_at > 400
    assert inner == [[0, 1, 4]] * (stop_at - 1)


@needs_jit
@ON_LINUX
@pytest.mark.parametrize("again", [0.0, 0.0001])
def test_nobody_writes_into_an_array_after_an_interrupt(team, again):
    """Signals come at any time, also again and again while the caller waits for its workers."""
    out = np.zeros(3, np.int64)

    def task(i):
        for _ in range(20):
            pause(10)
            out[i] += 1
        return True

    def call():
        pool.run([partial(task, i) for i in range(3)])

    interrupts = 0
    for trial in range(300):
        out[:] = 0
        interrupts += interrupted(call, 1e-5 + trial * 1e-6, again)
        now = out.tolist()
        time.sleep(0.0005)
        assert out.tolist() == now
        assert squares(3) == [0, 1, 4]
    assert interrupts > 100


@needs_jit
@ON_LINUX
def test_a_signal_handler_may_call_while_its_thread_is_within_a_call(team):
    """The inner call gets its own results, and so does the outer one."""
    inner = []
    before = signal.signal(signal.SIGALRM, lambda *_: inner.append(squares(3)))
    try:
        for trial in range(100):
            signal.setitimer(signal.ITIMER_REAL, 1e-5 + trial * 1e-6)
            assert squares(5) == [0, 1, 4, 9, 16]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(inner) > 30
    assert all(result == [0, 1, 4] for result in inner)


# --- threads that fail --------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_where_no_thread_can_start_the_caller_does_all(monkeypatch, error):
    """A limit on processes or memory costs time, not the product; later it may be lifted."""

    def refuse(*_):
        raise error

    monkeypatch.setattr(pool, "available", lambda: 3)
    monkeypatch.setattr(pool, "_team", None)
    start = pool.start_new_thread
    monkeypatch.setattr(pool, "start_new_thread", refuse)
    assert squares(4) == [0, 1, 4, 9]
    monkeypatch.setattr(pool, "start_new_thread", start)
    assert squares(4) == [0, 1, 4, 9]
    if JIT:
        assert len(pool._team.workers) == 2
        pool._team.end()


@needs_jit
@pytest.mark.parametrize("asleep", [False, True])
def test_a_worker_that_dies_costs_its_thread_and_at_most_the_call(team, asleep):
    """An exception from outside ends it anywhere; a task that it had begun is no result.

    Nobody does such a task once more: what it did to an array it might do twice.
    """

    def kill():
        for ident, frame in sys._current_frames().items():
            while frame is not None and frame.f_code.co_name != "serve":
                frame = frame.f_back
            if frame is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(ident), ctypes.py_object(SystemExit)
                )

    out, right, failed = np.zeros(4, np.int64), 0, 0

    def task(i):
        for _ in range(5):
            pause(10)
            out[i] += 1
        return True

    for trial in range(60):
        if asleep:
            time.sleep(0.002)
        timer = threading.Timer(trial * 1e-5, kill)
        timer.start()
        for _ in range(5):
            out[:] = 0
            try:
                assert pool.run([partial(task, i) for i in range(4)])
                assert out.tolist() == [5, 5, 5, 5]
                right += 1
            except RuntimeError as error:
                failed += 1
                if "a task has no result" not in str(error):
                    raise
        timer.join()
    assert right > failed
    assert any(meet() for _ in range(100))  # who was killed in its sleep dies when it is woken


def meet():
    """Whether two tasks are within at the same time, so that one of them has a worker."""
    met = threading.Barrier(2, timeout=0.5)
    try:
        return pool.run([lambda: met.wait() >= 0, lambda: met.wait() >= 0])
    except (threading.BrokenBarrierError, RuntimeError):
        return False


def test_what_a_task_raises_reaches_the_caller_after_all_have_ended():
    """The first task's exception, whatever others raise; what is no Exception comes at once."""

    def fail(error):
        raise error

    slow = partial(squares, 1)
    for errors in ([KeyError, IndexError], [MemoryError]):
        done = []
        tasks = [lambda done=done: done.append(squares(2)) is None for _ in range(2)]
        tasks += [partial(fail, error) for error in errors]
        with pytest.raises(errors[0]):
            pool.run([*tasks, slow])
        assert len(done) == 2
    for tasks in ([partial(fail, SystemExit), slow], [slow, partial(fail, SystemExit)]):
        with pytest.raises((SystemExit, RuntimeError)):  # it ends the worker that it comes to
            pool.run(tasks)
        assert squares(3) == [0, 1, 4]


@needs_jit
def test_where_affinity_is_refused_workers_go_on(team, monkeypatch):
    """Containers refuse sched_setaffinity, and take CPUs away while a process runs."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    for _ in range(3):
        time.sleep(0.003)  # workers fall asleep, and are woken
        assert squares(4) == [0, 1, 4, 9]
    assert len(team.workers) == 2


# --- processes ----------------------------------------------------------------------------------


@needs_jit
@ON_LINUX
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads: the point here
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what JAX says of it, where it is loaded
def test_a_fork_while_another_thread_is_at_any_bytecode_leaves_both_processes_right(monkeypatch):
    """Whatever that thread has begun, it does not exist in the child, which waits for nothing."""
    monkeypatch.setattr(pool, "available", lambda: 3)
    monkeypatch.setattr(pool, "_team", None)
    pause(1)  # compiled before any child needs it
    reached, stop_at = 0, 1
    stopped, go_on = threading.Event(), threading.Event()

    def trace(frame, event, _argument):
        nonlocal reached
        if frame.f_code.co_filename != pool.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            reached += 1
            if reached == stop_at:
                stopped.set()
                go_on.wait()
        return trace

    def other():
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            pool.run([lambda: True, lambda: True, lambda: True])
        finally:
            sys.settrace(before)
            stopped.set()

    while reached >= stop_at - 7:
        reached = 0
        stopped.clear()
        go_on.clear()
        caller = threading.Thread(target=other)
        caller.start()
        stopped.wait()
        child = os.fork()
        if child == 0:
            os._exit(0 if squares(4) == [0, 1, 4, 9] else 1)
        assert exit_status(child) == 0
        assert squares(4) == [0, 1, 4, 9]
        go_on.set()
        caller.join()
        pool._team.end()
        pool._team, stop_at = None, stop_at + 7
    assert stop_at > 400


def exit_status(child):
    """Wait for a child process, which hangs if it takes a minute."""
    limit = time.monotonic() + 60
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
    return ended[1]


@needs_jit
@ON_LINUX
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads: the point here
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what JAX says of it, where it is loaded
def test_a_fork_in_the_middle_of_a_call_leaves_both_processes_right(team):
    """The child does not wait for the parent's workers; a task that they had begun is no result."""
    children = []

    def fork(*_):
        children.append(os.fork())

    before = signal.signal(signal.SIGALRM, fork)
    try:
        for trial in range(30):
            signal.setitimer(signal.ITIMER_REAL, 1e-5 + trial * 5e-6)
            try:
                right = squares(5) == [0, 1, 4, 9, 16]
            except RuntimeError as error:
                right = children[-1] == 0 and "forked within the call" in str(error)
            while len(children) <= trial:
                time.sleep(0.0005)
            if children[-1] == 0:
                os._exit(0 if right and squares(4) == [0, 1, 4, 9] else 1)
            assert right
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [exit_status(child) for child in children] == [0] * len(children)


def test_a_program_with_sleeping_workers_ends():
    """The team's threads do not keep Python from leaving."""
    python("from minibit.kernels.threads import run; run([lambda: True, lambda: True])")


@pytest.mark.parametrize("first", ["before", "inside"])
def test_a_program_may_multiply_while_it_exits(first):
    """Handlers of atexit run after the workers have left, and before the first product, too."""
    code = f"""
import atexit, time
from minibit.kernels import threads
threads.available = lambda: 3
def product():
    print(threads.run([lambda: time.sleep(0.001) is None] * 3), flush=True)
atexit.register(product)
if {first!r} == "before":
    product()
atexit.register(product)
"""
    assert python(code).split() == ["True"] * (3 if first == "before" else 2)


@needs_jit
@ON_LINUX
def test_disturbed_products_do_not_hang_and_are_right():
    """The short form of ``.ci/soak``: signals, forks, moved and killed threads, damaged code."""
    soak = Path(__file__).resolve().parents[1] / ".ci" / "soak"
    command = [sys.executable, str(soak), "--seconds", "6", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing hung, nothing was wrong, nothing crashed" in done.stdout
