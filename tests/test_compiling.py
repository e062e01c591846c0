"""Compiled code that is kept in files, work that no signal cuts short, and life without Numba."""

import _imp
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from minibit import kernels
from minibit.kernels import interrupts
from minibit.kernels.interrupts import Stop, uninterrupted

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0") and not kernels.missing()
needs_jit = pytest.mark.skipif(not JIT, reason="kernels are compiled only with the JIT")
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="signals and forks are Linux's")

KERNEL = """
from minibit.kernels.compiling import njit
from minibit.kernels.other import FACTOR

@njit(cache=True, nogil=True)
def times(x):
    return FACTOR * x
"""

# JAX warns of forks, where another test has loaded it
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a kernel's source; its compiled code goes beside it, or into a home."""
    from numba.core import config

    from minibit.kernels import compiling

    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    compiling._said.clear()
    path = tmp_path / "kernels"
    path.mkdir()
    (path / "times.py").write_text(KERNEL)
    write_other(path, 3)
    yield path
    compiling._said.clear()


def write_other(folder, factor):
    """What the kernel's source imports."""
    (folder / "other.py").write_text(f"FACTOR = {factor}\n")


def run(folder, x=5):
    """A new process's first call, but for the process: the result, and whether it compiled."""
    from numba.core import event

    from minibit.kernels import compiling

    compiling._stamp.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        # Python takes a source of the same second and length for the one it has kept
        patch.setattr(sys, "dont_write_bytecode", True)
        for name in ("other", "times"):
            spec = importlib.util.spec_from_file_location(
                f"minibit.kernels.{name}", folder / f"{name}.py"
            )
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, spec.name, module)
            spec.loader.exec_module(module)
        with event.install_recorder("numba:compile") as recorder:
            result = module.times(x)
    return result, bool(recorder.buffer)


def files(folder):
    """The files of compiled code."""
    return sorted(folder.glob("**/*.code"))


@needs_jit
def test_compiled_code_is_found_again(folder, caplog):
    """A file for each choice of types; nothing is said."""
    assert run(folder) == (15, True)
    assert run(folder) == (15, False)
    assert run(folder, 0.5) == (1.5, True)
    assert run(folder, 0.5) == (1.5, False)
    assert len(files(folder)) == 2
    assert not caplog.records


@needs_jit
@pytest.mark.parametrize("damage", ["empty", "torn", "zeros", "flipped", "longer", "foreign"])
def test_a_damaged_file_costs_a_compilation_and_a_line(folder, caplog, damage):
    """What a loss of power leaves, and what a disk does: never run, never fatal, mended."""
    run(folder, 0.5)
    (foreign,) = files(folder)
    before = run(folder)
    (path,) = set(files(folder)) - {foreign}
    data = path.read_bytes()
    places = {"torn": (1, 31, 32, 33, len(data) - 1), "flipped": (0, 40, len(data) // 2, -1)}
    for offset in places.get(damage, (0,)):
        caplog.clear()
        importlib.import_module("minibit.kernels.compiling")._said.clear()
        changed = bytearray(data)
        if damage == "flipped":
            changed[offset] ^= 1
        path.write_bytes(
            {
                "empty": b"",
                "torn": data[:offset],
                "zeros": bytes(len(data)),
                "longer": data + b"\0",
                "foreign": foreign.read_bytes(),  # whole, of another choice of types
            }.get(damage, bytes(changed))
        )
        assert run(folder) == before
        assert run(folder) == (15, False)
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == (damage != "foreign")
        assert all("times" in line and "damaged" in line for line in said)


@needs_jit
def test_where_no_folder_can_be_written_each_run_compiles_and_says_so(folder, caplog):
    """Read-only installs without a home: files stand where folders should be."""
    for name in ("__pycache__", "../home"):
        (folder / name).write_text("")
    assert run(folder) == (15, True)
    assert run(folder) == (15, True)
    (record,) = caplog.records
    assert "cannot keep kernels' compiled code" in record.getMessage()
    assert "__pycache__" in record.getMessage()
    assert record.levelno == logging.WARNING


@needs_jit
def test_the_home_is_used_where_the_source_cannot_be_written(folder, caplog):
    """The user's cache folder takes what the folder beside the source refuses."""
    (folder / "__pycache__").write_text("")
    assert run(folder) == (15, True)
    assert run(folder) == (15, False)
    assert files(folder.parent / "home" / "minibit")
    assert not caplog.records


@needs_jit
def test_without_a_home_only_the_source_has_a_folder(folder, monkeypatch):
    """A user whom the system does not know has ``~`` for a home, which is no folder."""
    from minibit.kernels import compiling

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert list(compiling._folders(folder)) == [folder / "__pycache__"]


@needs_jit
@pytest.mark.parametrize("function", ["replace", "urandom"])
def test_a_full_disk_leaves_no_torn_file(folder, caplog, monkeypatch, function):
    """A write that fails midway costs the file, and nothing else."""

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, function, full)
        assert run(folder) == (15, True)
    assert [path.name for path in folder.glob("**/*") if ".code" in path.name] == []
    assert "No space left on device" in caplog.records[0].getMessage()
    assert run(folder) == (15, True)
    assert run(folder) == (15, False)


@needs_jit
def test_a_change_in_an_imported_source_is_seen(folder):
    """What another file gives is compiled into the kernel; files of old sources are dropped."""
    assert run(folder) == (15, True)
    write_other(folder, 4)
    assert run(folder) == (20, True)
    assert run(folder) == (20, False)
    assert len(files(folder)) == 1


MAKER = """
from minibit.kernels.compiling import njit

def times_by(factor):
    @njit(cache=True)
    def kernel(x):
        return factor * x
    return kernel

three, four = times_by(3), times_by(4)

def times(x):
    return three(x), four(x)
"""


@needs_jit
def test_kernels_that_one_function_makes_have_files_of_their_own(folder):
    """A constant of the function around a kernel is compiled into it, as a tile's size is."""
    (folder / "times.py").write_text(MAKER)
    assert run(folder) == ((15, 20), True)
    assert run(folder) == ((15, 20), False)
    assert len(files(folder)) == 2


@needs_jit
def test_every_kernel_is_compiled_this_way():
    """No kernel file takes ``njit`` from Numba itself."""
    for path in Path(kernels.__file__).parent.glob("*.py"):
        if path.name != "compiling.py":
            text = path.read_text(encoding="utf-8")
            assert "numba.njit" not in text
            assert not [
                line
                for line in text.splitlines()
                if line.startswith("from numba import") and "njit" in line
            ], path.name


@needs_jit
@ON_LINUX
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads: the point here
def test_a_process_that_forks_while_another_thread_compiles_can_compile(folder):
    """The child does not wait for a lock that nobody in it can release."""
    from numba.core.compiler_lock import global_compiler_lock

    taken, go = threading.Event(), threading.Event()

    def compiler():
        with global_compiler_lock:
            taken.set()
            go.wait(0.2)

    thread = threading.Thread(target=compiler)
    thread.start()
    taken.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if run(folder) == (15, True) else 1)
    limit = time.monotonic() + 60
    while not (status := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    thread.join()
    assert status[1] == 0
    assert run(folder) == (15, False)  # of the child; the parent may compile, too


# --- work that no signal cuts short -------------------------------------------------------------


@pytest.fixture
def alarms(lost_interrupts):
    """Let SIGALRM raise KeyboardInterrupt in what a test does without interruption."""

    def interrupt(_number, frame):
        while frame is not None and frame.f_code is not uninterrupted.__code__:
            frame = frame.f_back
        if frame is not None:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda again: signal.setitimer(signal.ITIMER_REAL, 1e-6, again)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_the_result_or_the_error_of_the_work_comes_back():
    """In the main thread and in any other."""

    def fail():
        raise KeyError("a")

    for call in (lambda f: f(), in_another_thread):
        assert call(lambda: uninterrupted(lambda: 7)) == 7
        with pytest.raises(KeyError, match="a"):
            call(lambda: uninterrupted(fail))


def in_another_thread(function):
    """What a function returns or raises there."""
    outcome = []

    def call():
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if outcome[0][1] is not None:
        raise outcome[0][1]
    return outcome[0][0]


@ON_LINUX
@pytest.mark.parametrize("again", [0.0, 0.001])
def test_an_interrupt_comes_when_the_work_has_ended(alarms, again):
    """One signal, and one every millisecond."""
    for trial in range(20):
        done = []

        def work(done=done, wait=trial * 2e-4):
            time.sleep(wait)
            alarms(again)
            time.sleep(0.005)
            done.append(1)

        with pytest.raises(KeyboardInterrupt):
            uninterrupted(work)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert done


@ON_LINUX
@pytest.mark.parametrize("again", [0.0, 0.001])
def test_work_that_looks_at_stop_ends_early_and_its_result_comes_back(alarms, again):
    """KeyboardInterrupt is a wish to stop, and is not raised; another exception is."""
    stop = Stop()

    def work():
        begin = time.monotonic()
        alarms(again)
        while not stop.asked and time.monotonic() < begin + 60:
            time.sleep(0.001)
        return time.monotonic() - begin

    seconds = uninterrupted(work, stop)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert stop.asked
    assert seconds < 50
    stop = Stop()
    assert uninterrupted(lambda: stop.asked, stop) is False

    def late(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    with pytest.raises(TimeoutError):
        uninterrupted(work, stop)
    assert stop.asked


def test_work_is_done_in_its_caller_where_no_thread_can_start(monkeypatch):
    """A limit on processes is no reason to fail."""

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(interrupts, "start_new_thread", refuse)
    assert uninterrupted(threading.get_ident) == threading.get_ident()


def test_a_lock_that_an_interrupted_import_left_is_released():
    """Python's import takes a lock, and then enters its `try`."""
    _imp.acquire_lock()
    try:
        module = uninterrupted(lambda: importlib.import_module("colorsys"))
        assert module.__name__ == "colorsys"
        assert not _imp.lock_held()
    finally:
        if _imp.lock_held():
            _imp.release_lock()


@ON_LINUX
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads: the point here
def test_a_child_that_is_forked_as_work_ends_has_its_outcome(monkeypatch):
    """The thread that has done the work exists in the parent alone, wherever it is just then."""

    class Waiting(set):
        def discard(self, end):
            super().discard(end)
            ended.set()
            forked.wait(60)

    def fork(*_):
        ended.wait(60)
        children.append(os.fork())
        if children[0]:  # in the child, the event's own lock may be taken for ever
            forked.set()

    def work():  # from here on the thread runs for which the signal's handler waits
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        return 7

    ended, forked, children = threading.Event(), threading.Event(), []
    monkeypatch.setattr(interrupts, "_waiting", Waiting())
    before = signal.signal(signal.SIGALRM, fork)
    try:
        outcome = uninterrupted(work)
        while not children:
            time.sleep(0.001)
        if children == [0]:
            os._exit(0 if outcome == uninterrupted(lambda: 7) == 7 else 1)
    finally:
        signal.signal(signal.SIGALRM, before)
    limit = time.monotonic() + 60
    while not (status := os.waitpid(children[0], os.WNOHANG))[0]:
        if time.monotonic() > limit:
            os.kill(children[0], signal.SIGKILL)
        time.sleep(0.001)
    assert status[1] == 0


@ON_LINUX
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads: the point here
def test_a_child_forked_by_a_handler_does_not_wait_for_the_parents_thread():
    """The work goes on in the parent alone, and the child says so."""

    def work():  # until the main thread has forked
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        limit = time.monotonic() + 60
        while not children and time.monotonic() < limit:
            time.sleep(0.001)

    children = []
    before = signal.signal(signal.SIGALRM, lambda *_: children.append(os.fork()))
    try:
        try:
            uninterrupted(work)
        except ChildProcessError:
            os._exit(7)
    finally:
        if children and children[0] == 0:
            os._exit(8)
        signal.signal(signal.SIGALRM, before)
    limit = time.monotonic() + 60
    while not (status := os.waitpid(children[0], os.WNOHANG))[0]:
        if time.monotonic() > limit:
            os.kill(children[0], signal.SIGKILL)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(status[1]) == 7


# --- without Numba ------------------------------------------------------------------------------

BLOCK = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "llvmlite"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""

MATHS = """
import json
import numpy as np
import minibit as mb
from minibit.noise import words
rng = np.random.default_rng(0)
w, x = rng.standard_normal((70, 60), np.float32), rng.standard_normal((3, 60), np.float32)
codes, gamma = mb.absmean_quantize(w)
q, scale = mb.absmax_quantize(x)
matrix = mb.TernaryMatrix.from_codes(codes, gamma)
tensor = mb.quantize_nf4(rng.standard_normal((64, 64), np.float32))
_, tangent = mb.jvp(lambda x: mb.relu(x) @ w.T, (x,), (x,))
gradient = mb.grad(lambda w: mb.cross_entropy(x @ w.T, np.array([1, 2, 3])))(w)
log = mb.StepLog.open(LOG)
print(json.dumps([
    codes.sum(dtype=int).item(), q.sum(dtype=int).item(),
    mb.ternary_matmul(x, matrix).sum(dtype=float).item(),
    mb.ternary_matmul_int8(q, matrix).sum(dtype=int).item(),
    mb.pack2(codes).sum(dtype=int).item(),
    words(0, 0, 0, 3).sum(dtype=int).item(),
    int(mb.topk_mask(x, 7).sum()), mb.topk_sparsify(x, 7).sum(dtype=float).item(),
    tensor.packed.sum(dtype=int).item(), tensor.dequantize().sum(dtype=float).item(),
    round(float(np.abs(tangent).sum()), 3), round(float(np.abs(gradient).sum()), 3),
    log.digest(),
]))
"""


def python(code, **environment):
    """What a program prints; its standard error is empty."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@needs_jit
@pytest.mark.once
def test_the_first_token_of_a_packed_model_compiles_on_any_cpu(tmp_path):
    """With no compiled code at hand: what a kernel calls has flags of its own."""
    code = """
from minibit.transformer import BitNetConfig, BitNetModel, Decoder, init_params, pack_params
config = BitNetConfig(11, 16, 16, layers=1, heads=2, kv_heads=1, max_positions=8)
decoder = Decoder(BitNetModel(config, pack_params(init_params(config, seed=0))))
decoder.append([3])
print(decoder.logits().shape)
"""
    settings = {"MINIBIT_KERNELS": "portable", "NUMBA_CACHE_DIR": str(tmp_path)}
    assert python(code, **settings) == "(11,)\n"


def test_numpy_alone_gives_the_same_results_without_a_word(tmp_path):
    """Where Numba cannot be imported the reference path is taken: maths, and replay of a log."""
    from minibit.training import train

    log = str(tmp_path / "two.steps")
    train(out=log, steps=2, batch=(20, 20), widths=(32,), threads=1, dataset=little())
    code = MATHS.replace("LOG", repr(log))
    assert json.loads(python(BLOCK + code)) == json.loads(python(code))


def little():
    """A data set of 60 images of 16 pixels."""
    from minibit.datasets import Dataset

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 16)).astype(np.uint8), np.arange(60) % 10
    y = y.astype(np.uint8)
    return Dataset(x[:50], y[:50], x[50:], y[50:], "little", "c" * 64, (4, 4))


def test_a_path_that_needs_numba_is_an_error_where_it_is_missing():
    """``auto`` and ``reference`` take NumPy; a compiled path says what is needed."""
    code = f"""{BLOCK}
from minibit import kernels
print(kernels.path(), kernels.supported())
"""
    for name in ("auto", "reference", ""):
        assert python(code, MINIBIT_KERNELS=name) == "reference ('reference',)\n"
    code += "try: print(kernels.path())\nexcept RuntimeError as error: print(error)"
    code = code.replace("print(kernels.path(), kernels.supported())\n", "")
    answer = python(code, MINIBIT_KERNELS="avx2", NUMBA_DISABLE_JIT="0")
    assert answer == (
        "MINIBIT_KERNELS=avx2 needs Numba (pip install numba): No module named 'numba'\n"
    )


def test_the_command_line_says_once_that_numba_is_missing():
    """A line on standard error; the result is the same."""
    pytest.importorskip("typer")
    command = "generate --count 3 --json --temperature 0"
    code = f"import sys; sys.argv[1:] = {command.split()!r}; from minibit.cli import main; main()"
    answers = []
    for prefix in ("", BLOCK):
        done = subprocess.run(
            [sys.executable, "-c", prefix + code],
            env={**os.environ, "NUMBA_DISABLE_JIT": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout.splitlines()[-1])["text"])
        lines = [line for line in done.stderr.splitlines() if "Numba" in line]
        assert len(lines) == bool(prefix)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("command", ["info x.steps", "generate", "chapters", "bench step", "train"])
def test_every_command_names_a_wrong_kernel_path(command, capsys, monkeypatch):
    """``MINIBIT_KERNELS=junk`` is bad use, whether or not a command would multiply."""
    pytest.importorskip("typer")
    from minibit.cli import main

    monkeypatch.setenv("MINIBIT_KERNELS", "junk")
    monkeypatch.setattr(sys, "argv", ["minibit", *command.split()])
    assert main() == 2
    assert "MINIBIT_KERNELS must be one of auto, " in capsys.readouterr().err
