"""Runs on Dask: the same codes, whatever is killed meanwhile."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from minibit.cluster import local_cluster, train_on
from minibit.datasets import load_npz
from minibit.kernels import compiled
from minibit.steps import StepLog
from minibit.training import train
from test_cluster import SHORT, data, serial, steps_equal  # noqa: F401

pytest.importorskip("distributed")
pytestmark = [
    pytest.mark.skipif(not compiled(), reason="once, with kernels, is enough of processes"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Port .* is already in use"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
KILLS = int(os.environ.get("MINIBIT_KILLS", "3"))  # of workers; 10 and more on demand
LONG = {**SHORT, "steps": 160, "total_steps": 160}


@pytest.fixture(scope="module")
def cluster():
    """Two workers, each a process with one thread."""
    with local_cluster(2, dashboard_address=None, silence_logs=50) as local:
        yield local


@pytest.fixture
def client(cluster):
    """A client of two workers that are there."""
    from distributed import Client

    with Client(cluster) as one:
        one.wait_for_workers(2, timeout=60)
        yield one


def test_nothing_but_steps_keeps_a_local_worker_busy(cluster, client):
    """One thread each; no sampled stacks, no memory that is given back; elsewhere Dask's own."""
    import dask

    def settings():
        profile = dask.config.get("distributed.worker.profile.enabled")
        names = ("MALLOC_TRIM_THRESHOLD_", "MINIBIT_THREADS", "OMP_NUM_THREADS")
        return profile, *map(os.environ.get, names)

    assert {*client.run(settings).values()} == {(False, None, "1", "1")}
    assert {*client.nthreads().values()} == {1}
    assert settings()[0] is True


@pytest.mark.parametrize("preset", ["strict", "small"])
def test_dask_takes_the_steps_of_a_serial_run(tmp_path, data, client, preset):  # noqa: F811
    """Two workers, one range each; what travels is counted in bytes."""
    result = serial(tmp_path / "a.steps", data, preset)
    ours = train_on(client, preset, 3, tmp_path / "b.steps", data=data, **SHORT)
    assert ours.digest == result.digest
    assert steps_equal(StepLog.open(tmp_path / "a.steps"), StepLog.open(tmp_path / "b.steps"))
    assert ours.traffic.tasks < 2 * 40 + 12
    if preset == "strict":
        assert ours.traffic.up <= ours.traffic.answers * (45 + 2 * (8 + 2 * 24))


def test_killed_workers_cost_no_step(tmp_path, data, client):  # noqa: F811
    """Workers die at random moments; the nanny starts others, which retrace the log and join."""
    longer = {**LONG, "steps": 54 * KILLS, "total_steps": 54 * KILLS}
    result = serial(tmp_path / "a.steps", data, "small", **longer)
    rng, done = random.Random(7), threading.Event()

    def kill():
        for _ in range(KILLS):
            if done.wait(rng.uniform(0.2, 0.8)):
                return
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            for pid in client.run(os.getpid, on_error="ignore").values():
                if isinstance(pid, int) and len(workers) > 1:
                    os.kill(pid, signal.SIGKILL)
                    break

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        ours = train_on(client, "small", 3, tmp_path / "b.steps", data=data, patience=20, **longer)
    finally:
        done.set()
        killer.join()
    assert ours.digest == result.digest
    assert not ours.left_out


def test_a_worker_added_half_way_takes_part(tmp_path, data, cluster, client):  # noqa: F811
    """From the log alone: the step is then cut into three ranges."""
    result = serial(tmp_path / "a.steps", data, "small", **LONG)
    seen = []

    def show(progress):
        seen.append(progress.step)
        if len(seen) == 1:
            cluster.scale(3)
            client.wait_for_workers(3, timeout=60)

    try:
        ours = train_on(client, "small", 3, tmp_path / "b.steps", data=data, progress=show, **LONG)
    finally:
        cluster.scale(2)
    assert ours.digest == result.digest
    assert ours.traffic.answers > 2 * 160


SCHEDULER = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
WORKER = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-dashboard", "--no-nanny"]


def test_a_run_whose_scheduler_dies_ends_and_goes_on_from_its_log(tmp_path, data):  # noqa: F811
    """The error says so; with another scheduler the run ends as an undisturbed one."""
    from distributed import Client

    fields = {**SHORT, "steps": 64, "total_steps": 64}
    result = serial(tmp_path / "a.steps", data, "small", **fields)
    out, options = tmp_path / "b.steps", {"data": data, "patience": 5}
    processes = []

    def start(number):
        file = tmp_path / f"{number}.json"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        file_option = ["--scheduler-file", str(file)]
        processes.append(subprocess.Popen([*SCHEDULER, "--port", "0", *file_option], **quiet))
        while not file.exists():
            time.sleep(0.05)
        for _ in range(2):
            processes.append(subprocess.Popen([*WORKER, "--nthreads", "1", *file_option], **quiet))
        return file

    def kill(progress):
        if progress.step < 64:
            processes[0].kill()

    try:
        first, second = start(0), start(1)  # one is ready when the other has died
        with Client(scheduler_file=str(first), timeout=10) as one:  # it waits so long for the dead
            one.wait_for_workers(2, timeout=60)
            with pytest.raises(RuntimeError, match=r"lost|no worker|no answer"):
                train_on(one, "small", 3, out, progress=kill, **options, **fields)
        assert 0 < len(StepLog.open(out)) < 64
        with Client(scheduler_file=str(second), timeout=60) as one:
            one.wait_for_workers(2, timeout=60)
            ours = train_on(one, "small", 3, out, resume=True, steps=64, **options)
        assert ours.digest == result.digest
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_workers_behind_tls_take_the_steps_and_strangers_do_not(tmp_path, data):  # noqa: F811
    """Certificates of one's own, by Dask's configuration; without them nobody is let in."""
    import dask
    from distributed import Client, LocalCluster

    if not shutil.which("openssl"):
        pytest.skip("certificates of one's own need openssl")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    files = ["-subj", "/CN=minibit", "-keyout", key, "-out", certificate]
    subprocess.run([*make, *files], check=True, capture_output=True)
    tls = {"distributed.comm.tls.ca-file": certificate}
    for part in ("scheduler", "worker", "client"):
        tls[f"distributed.comm.tls.{part}.cert"] = certificate
        tls[f"distributed.comm.tls.{part}.key"] = key
    result = serial(tmp_path / "a.steps", data, "strict")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    tls_cluster = {"protocol": "tls://", "silence_logs": 50, **options}
    with dask.config.set(tls), LocalCluster(**tls_cluster) as local:
        address = local.scheduler_address
        assert address.startswith("tls://")
        with Client(address, timeout=30) as one:
            one.wait_for_workers(2, timeout=60)
            ours = train_on(one, "strict", 3, tmp_path / "b.steps", data=data, **SHORT)
        with pytest.raises(OSError, match=r"Timed out|closed"):
            Client(address.replace("tls://", "tcp://"), timeout=3)
    assert ours.digest == result.digest


def in_session(leader):
    """Processes of a session that have not ended."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(session) == leader and state != "Z":
            alive.append(path)
    return alive


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs the list of processes")
def test_a_killed_client_takes_its_workers_along_and_goes_on_from_its_log(tmp_path, data):  # noqa: F811
    """SIGKILL after the first record: no process stays, and --resume ends with the same digest."""
    pytest.importorskip("typer")
    fields = {"widths": (8,), "steps": 40}
    result = train("small", 0, tmp_path / "a.steps", dataset=load_npz(data), threads=1, **fields)
    out = tmp_path / "b.steps"
    command = [sys.executable, "-m", "minibit", "train", "--workers", "2", "--out", str(out)]
    command += ["--data", str(data), "--steps", "40"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen([*command, "--widths", "8"], **quiet, start_new_session=True)
    while not (out.exists() and len(StepLog.open(out))):
        assert first.poll() is None
        time.sleep(0.02)
    first.kill()
    first.wait()
    assert len(StepLog.open(out)) in (32, 40)
    end = time.monotonic() + 30
    while in_session(first.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not in_session(first.pid)
    subprocess.run([*command, "--resume"], **quiet, check=True, timeout=120)
    assert StepLog.open(out).verify() == result.digest
