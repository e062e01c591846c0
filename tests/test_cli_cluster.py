"""``minibit train`` on workers: the log of a run in one process, what it says, and refuses."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("distributed")

from commands import answer, call, refused
from minibit.cli.progress import columns
from minibit.cli.train import ON_WORKERS
from minibit.kernels import compiled
from minibit.steps import StepLog
from test_cli import make_data

pytestmark = [
    pytest.mark.skipif(not compiled(), reason="once, with kernels, is enough of processes"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
DASK = [sys.executable, "-m"]
SCHEDULER = [*DASK, "distributed.cli.dask_scheduler", "--no-dashboard", "--host", "127.0.0.1"]
WORKER = [*DASK, "distributed.cli.dask_worker", "--no-dashboard", "--no-nanny", "--nthreads", "1"]
LIAR = """
import minibit.cluster.replica as replica
from minibit.cluster.sums import encode
replica.encode = lambda *range: (body := encode(*range))[:-1] + bytes([body[-1] ^ 64])
"""
STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set, which workers find under the same path."""
    return make_data(tmp_path_factory.mktemp("data") / "patterns.npz")


@pytest.fixture(scope="module")
def words(data):
    """A short run."""
    return "train", "--data", data, "--widths", 16, "--steps", STEPS, "--preset", "strict"


@pytest.fixture(scope="module")
def serial(tmp_path_factory, words):
    """What the run comes to in one process."""
    return answer(*words, "--threads", 1, "--out", tmp_path_factory.mktemp("run") / "a.steps")


class Running:
    """A scheduler, and workers of several kinds."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "scheduler.json"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start(*SCHEDULER, "--port", "0")
        while not self.file.exists():
            time.sleep(0.05)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a part of the cluster."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.processes.append(
            subprocess.Popen([*command, "--scheduler-file", str(self.file)], **quiet)
        )
        return self.processes[-1]

    def wait(self, workers: int) -> None:
        """Wait until so many workers are there."""
        from distributed import Client

        with Client(scheduler_file=str(self.file), set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)

    def __enter__(self) -> "Running":
        """Return it; at the end all parts are killed."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill all parts."""
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def running(tmp_path):
    """A scheduler without workers."""
    with Running(tmp_path) as one:
        yield one


# --- Runs


def test_local_workers_make_the_log_of_one_process(tmp_path, words, serial):
    """The same steps; the object says who took them and what travelled; a plot is drawn."""
    out, plot = tmp_path / "b.steps", tmp_path / "b.svg"
    said = answer(*words, "--workers", 2, "--check", 1, "--out", out, "--plot", plot)
    assert said["digest"] == serial["digest"] == StepLog.open(out).verify()
    assert said["test_accuracy"] == serial["test_accuracy"]
    new = {"workers", "bytes_up", "bytes_down", "left_out", "step_seconds_by_part"}
    assert said.keys() == serial.keys() | new
    assert said["step_seconds_by_part"].keys() == {"measuring", "on the way", "deciding"}
    assert min(said["step_seconds_by_part"].values()) > 0
    assert said["workers"] == 2
    assert said["left_out"] == {}
    assert said["bytes_up"] >= 4 * 33  # two ranges, each measured twice
    assert said["bytes_down"] >= 4 * 31
    assert plot.read_bytes().startswith(b"<?xml")


def test_workers_of_a_scheduler_go_on_with_a_log(tmp_path, words, serial, running):
    """By a scheduler's file or address; one worker lies, and is named."""
    out = tmp_path / "b.steps"
    answer(*words[:-4], "--steps", 2, *words[-2:], "--threads", 1, "--out", out)
    running.start(*WORKER)
    running.start(*WORKER)
    running.start(*WORKER, "--preload", LIAR)
    running.wait(3)
    more = "--resume", "--out", out, "--steps", STEPS, "--data", words[2]
    said = answer("train", *more, "--scheduler", running.file, "--check", 1)
    assert StepLog.open(out).verify() == said["digest"] == serial["digest"]
    ((liar, why),) = said["left_out"].items()
    assert "answered other sums at step 2" in why
    assert len(liar) == 16
    assert said["workers"] == 2


def test_a_first_ctrl_c_of_a_terminal_ends_no_worker(tmp_path, data):
    """SIGINT to all processes at once: the step ends, all steps are kept, nothing else is said."""
    out = tmp_path / "a.steps"
    command = ["train", "--data", data, "--widths", 8, "--workers", 2, "--out", out]
    process = subprocess.Popen(
        [sys.executable, "-m", "minibit", *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        while not (out.exists() and len(StepLog.open(out))):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1, stderr
    assert "Traceback" not in stderr
    assert f"train --resume --out {out} --data {data}" in stdout
    steps = len(StepLog.open(out))
    assert 32 <= steps < 600
    assert f"Stopped after {steps} steps" in stdout


# --- What cannot be


def test_what_does_not_go_together_is_refused(tmp_path, words):
    """Status 2, and no log."""
    out = "--out", tmp_path / "a.steps"
    for more, complaint in (
        (("--workers", 2, "--scheduler", "tcp://127.0.0.1:1"), "choose one"),
        (("--workers", 2, "--threads", 2), "--threads are those of one process"),
        (("--scheduler", "tcp://127.0.0.1:1", "--threads", 2), "--threads are those"),
        (("--check", 0.5), "--check is for --workers or --scheduler"),
        (("--cut", "samples"), "--cut is for --workers or --scheduler"),
        (("--workers", 2, "--cut", "rows"), "--cut must be"),
        (("--workers", 2, "--check", 1.5), "--check"),
        (("--workers", 0), "--workers"),
        (("--scheduler", "here"), "must be an address such as tcp://10.0.0.5:8786"),
        (("--scheduler", "http://127.0.0.1:1"), "must be an address such as"),
        (("--scheduler", "tls://127.0.0.1:1"), "distributed.comm.tls: ca-file"),
        (("--scheduler", words[2]), "or a scheduler file"),
    ):
        assert complaint in refused(*words, *out, *more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [("--workers", 2), ("--scheduler", "tcp://127.0.0.1:1")])
def test_without_dask_the_extra_is_named(words, tmp_path, monkeypatch, option):
    """Status 2, before any work."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    said = refused(*words, "--out", tmp_path / "a.steps", *option)
    assert "pip install -e '.[cluster]'" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["nobody", "silent", "other"])
def test_a_scheduler_that_does_not_answer_is_an_error_in_time(words, tmp_path, monkeypatch, kind):
    """Nobody listens, one who says nothing, one who speaks otherwise; there is no log then."""
    monkeypatch.setattr("minibit.cli.crew.CONNECT", 2.0)  # of 10 seconds
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "tcp://{}:{}".format(*server.getsockname())

        def chat() -> None:
            with server.accept()[0] as peer:
                peer.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n" * 9)
                peer.recv(9999)

        if kind == "nobody":
            server.close()
        elif kind == "other":
            threading.Thread(target=chat, daemon=True).start()
        begin = time.monotonic()
        said = refused(*words, "--out", tmp_path / "a.steps", "--scheduler", address, status=1)
        assert time.monotonic() - begin < 15
    assert f"the scheduler {address} cannot be reached" in said
    assert "object at" not in said
    assert "refused" in said or kind != "nobody"
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_cannot_work_is_named(tmp_path, words, serial, running):
    """Without minibit, or with another version: it gets no more tasks; alone it ends the run."""
    out = tmp_path / "a.steps"
    command = *words, "--out", out, "--scheduler", running.file
    lacking = running.start(*WORKER, "--preload", "import sys; sys.modules['minibit'] = None")
    said = refused(*command, status=1)
    assert "has no minibit 0.1.0: " in said
    assert "has 0 good steps, --resume goes on" in said
    lacking.kill()
    running.start(*WORKER, "--preload", "import minibit; minibit.__version__ = '9.9'")
    said = refused(*command, "--force", status=1)
    assert "the client has minibit 0.1.0, this worker 9.9" in said
    assert f"{out} is as it was" in said
    running.start(*WORKER)
    running.wait(2)
    done = call(*command, "--force")
    assert done.exit_code == 0, done.output
    assert StepLog.open(out).verify() == serial["digest"]


@pytest.mark.parametrize("width", [60, 84, 119, 120, 160])
def test_the_progress_of_workers_fits_on_one_line(width):
    """What travels is shown where there is room for it."""
    from rich.console import Console
    from rich.progress import Progress

    with open(os.devnull, "w") as nowhere:
        console = Console(width=width, file=nowhere, force_terminal=True)
        bar = Progress(*columns(width, ON_WORKERS), console=console)
        fields = {"loss": "0.123", "accuracy": "99.9%", "left": "59:59", "log": "999.9 KB"}
        traffic = "16 workers, 10.1 KB up, 999 bytes down"
        bar.add_task("", total=600, completed=599, **fields, traffic=traffic)
        lines = console.render_lines(bar.get_renderable(), console.options)
    text = "".join(segment.text for segment in lines[0])
    assert len(lines) == 1
    assert (traffic in text) == (width >= 120)
