"""Scheduler, workers and client on machines of their own, behind slow lines that lose packets.

Each is a network namespace, joined to the others by a bridge in one more; its processes reach the
rest through a relay, which holds each piece of a stream back for 50 ms, and one in a hundred for
the 300 ms more that TCP takes to send a lost last packet again (`simulation.TIMEOUT`, a trip).

A busy machine takes longer for everything but the lines. So the same run takes steps with the
relays' delay and without it, in turn: those without it are what a step costs here, now, and the
simulation adds the lines to that.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np
import pytest

from minibit.cluster.simulation import Costs, Link, step_seconds
from minibit.datasets import load_npz
from minibit.kernels import compiled
from minibit.training import train
from test_cluster import SHORT, data  # noqa: F401

pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(not compiled(), reason="once, with kernels, is enough of processes")
DELAY, LOSS = 0.05, 0.01
ROUNDS, NEAR, FAR = 3, 8, 12  # steps without the delay and with it, by turns
FIRST = 2  # steps of each turn in which workers begin anew
STEPS = ROUNDS * (NEAR + FAR)
FEW = {**SHORT, "steps": STEPS, "total_steps": STEPS}
PARTS = ("scheduler", "a", "b", "client")
RELAY = """
import os, queue, random, socket, sys, threading, time
slow, (delay, loss, *lines) = sys.argv[1], map(eval, sys.argv[2:])

def pump(source, sink, late):
    pieces = queue.Queue()
    def send():
        while (due := pieces.get()) is not None:
            time.sleep(max(0, due[0] - time.monotonic()))
            sink.sendall(due[1])
        sink.close()
    threading.Thread(target=send, daemon=True).start()
    while piece := source.recv(1 << 16):
        wait = delay + (2 * delay + 0.2 if late.random() < loss else 0)
        pieces.put((time.monotonic() + os.path.exists(slow) * wait, piece))
    pieces.put(None)

def serve(listener, target):
    late = random.Random(7)
    while True:
        near = listener.accept()[0]
        try:
            far = socket.create_connection(target)
        except OSError:  # nobody is there yet
            near.close()
            continue
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for ends in ((near, far), (far, near)):
            threading.Thread(target=pump, args=(*ends, late), daemon=True).start()

for here, there in lines:
    listener = socket.create_server(here)
    threading.Thread(target=serve, args=(listener, there)).start()
"""
CLIENT = """
import ast, json, sys
from pathlib import Path
from distributed import Client
from minibit.cluster import train_on
slow, data, out, turns, first, fields = sys.argv[1:4] + [*map(ast.literal_eval, sys.argv[4:])]
if __name__ == "__main__":
    seconds, stop, options = {"near": [], "far": []}, 0, fields
    with Client("tcp://127.0.0.1:9000", timeout=30) as client:
        client.wait_for_workers(2, timeout=60)
        for name, steps in turns:
            Path(slow).touch() if name == "far" else Path(slow).unlink(missing_ok=True)
            stop += steps
            result = train_on(client, "strict", 3, out, data=data, **{**options, "steps": stop})
            seconds[name] += result.step_seconds[first:].tolist()
            options = {"resume": True}
    print(json.dumps({"digest": result.digest, **seconds, **vars(result.traffic)}))
"""


@pytest.fixture
def lines():
    """A function that starts a command in one of the namespaces; all end with the test."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces of one's own need root and iproute2")
    prefix = f"minibit{os.getpid()}"
    with ExitStack() as stack:

        def ip(*words):
            done = subprocess.run(["ip", *map(str, words)], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces here: ip {words}: {done.stderr.strip()}")

        def space(part):
            ip("netns", "add", f"{prefix}{part}")
            stack.callback(subprocess.run, ["ip", "netns", "del", f"{prefix}{part}"])

        space("switch")
        ip("-n", f"{prefix}switch", "link", "add", "bridge", "type", "bridge")
        ip("-n", f"{prefix}switch", "link", "set", "bridge", "up")
        for number, part in enumerate(PARTS, 1):
            space(part)
            inside, outside = ("-n", f"{prefix}{part}"), ("-n", f"{prefix}switch")
            peer = ("peer", "name", f"port{number}", "netns", f"{prefix}switch")
            ip(*inside, "link", "add", "line", "type", "veth", *peer)
            ip(*outside, "link", "set", f"port{number}", "master", "bridge", "up")
            ip(*inside, "address", "add", f"10.77.0.{number}/24", "dev", "line")
            ip(*inside, "link", "set", "line", "up")
            ip(*inside, "link", "set", "lo", "up")

        def start(part, *command, **settings):
            words = ["ip", "netns", "exec", f"{prefix}{part}", sys.executable, *map(str, command)]
            process = subprocess.Popen(words, **settings)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start


def test_slow_lines_change_no_code_and_take_the_time_that_was_computed(
    tmp_path,
    data,  # noqa: F811
    lines,
):
    """The serial digest, and a mean step within 30% of the simulation's.

    A task crosses two lines, and an answer six with Dask: the worker tells the scheduler, that
    tells the client, which asks for the answer by the same way, and gets it.
    """
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    dask = "-m", "distributed.cli.dask_scheduler", "--no-dashboard", "--host", "10.77.0.1"
    lines("scheduler", *dask, "--port", "8786", **quiet)
    slow = tmp_path / "slow"  # while this file is there, the relays hold pieces back
    to_scheduler = repr((("127.0.0.1", 9000), ("10.77.0.1", 8786)))
    for number, part in ((2, "a"), (3, "b")):
        to_worker = repr(((f"10.77.0.{number}", 9001), ("127.0.0.1", 9002)))
        lines(part, "-c", RELAY, slow, DELAY, LOSS, to_scheduler, to_worker, **quiet)
        worker = "-m", "distributed.cli.dask_worker", "tcp://127.0.0.1:9000", "--nthreads", "1"
        contact = "--worker-port", "9002", "--contact-address", f"tcp://10.77.0.{number}:9001"
        listen = "--listen-address", "tcp://127.0.0.1:9002"
        lines(part, *worker, "--no-nanny", "--no-dashboard", *listen, *contact[2:], **quiet)
    lines("client", "-c", RELAY, slow, DELAY, LOSS, to_scheduler, **quiet)
    time.sleep(1)
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    turns = [("near", NEAR), ("far", FAR)] * ROUNDS
    words = script, slow, data, tmp_path / "b.steps", turns, FIRST, repr(FEW)
    client = lines("client", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stdout, stderr = client.communicate(timeout=180)
    assert client.returncode == 0, stderr
    said = json.loads(stdout.splitlines()[-1])
    serial = train("strict", 3, tmp_path / "a.steps", dataset=load_npz(data), threads=1, **FEW)
    assert said["digest"] == serial.digest
    near, far = np.median(said["near"]), np.mean(said["far"])
    costs = Costs(near, 0.0, said["up"] / said["answers"], said["down"] / said["tasks"])
    expected = np.mean(step_seconds(2, costs, Link(DELAY, loss=LOSS, hops=4)))
    print(f"a step took {far:.3f} s ({near:.3f} s without lines), computed were {expected:.3f} s")
    print(np.round(said["near"], 3), np.round(said["far"], 3))
    assert 0.7 < far / expected < 1.3, (near, far, expected)
