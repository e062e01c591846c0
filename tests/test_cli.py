"""The command line: what each command does, says, returns, and refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minibit
from minibit.datasets import load_npz
from minibit.layers import mlp
from minibit.noise_step import Plan, SampledStep, digest, initial_params
from minibit.steps import MAGIC, StepLog, compact
from minibit.steps.codes import encode_sampled
from minibit.steps.file import Appender, pack_header, pack_record, scan

typer = pytest.importorskip("typer")

from commands import answer, call, refused  # noqa: E402
from minibit import absmean, bench, plots, results, training  # noqa: E402
from minibit.cli import chapters as chapters_command  # noqa: E402
from minibit.cli.common import BadUse, kilobytes, whole_numbers  # noqa: E402
from minibit.cli.progress import clock, columns  # noqa: E402
from minibit.cli.train import PARTS, _TrainingProgress  # noqa: E402
from minibit.conformance import cases_of  # noqa: E402

STEPS = 6


def spawn(*words: object, **settings) -> subprocess.Popen:
    """Start a command in a process of its own."""
    command = [sys.executable, "-m", "minibit", *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings
    )


def make_data(path: Path, seed: int = 0) -> Path:
    """Three noisy patterns of 8 x 8 pixels: easy to learn, quick to train on."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 200, (3, 8, 8))
    labels = rng.integers(0, 3, 300)
    x = (patterns[labels] + rng.integers(0, 56, (300, 8, 8))).astype(np.uint8)
    np.savez(path, train_x=x[:240], train_y=labels[:240], test_x=x[240:], test_y=labels[240:])
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set of one's own."""
    return make_data(tmp_path_factory.mktemp("data") / "patterns.npz")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """A log of a few steps, and what `train` said of it. Tests leave it as it is."""
    path = tmp_path_factory.mktemp("run") / "run.steps"
    words = ("train", "--data", data, "--widths", "16", "--steps", STEPS, "--out", path)
    return path, answer(*words, "--threads", 1)


# --- Starting


def test_the_version_is_that_of_the_package(tmp_path):
    """``--version`` works in any folder, and as ``python -m minibit``."""
    assert call("--version").stdout == f"minibit {minibit.__version__}\n"
    source = str(Path(minibit.__file__).parents[1])
    process = spawn("--version", cwd=tmp_path, env={**os.environ, "PYTHONPATH": source})
    assert process.communicate() == (f"minibit {minibit.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "status"), [([], 2), (["info", "a.steps"], 2), (["--version"], 0)]
)
def test_without_the_extra_a_sentence_names_it(words, status):
    """No typer, no traceback: what to install, and status 2; the version is told all the same."""
    code = (
        "import sys; sys.modules['typer'] = None;"
        f"sys.argv = ['minibit', *{words!r}]; from minibit.cli import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == status
    if status:
        assert "pip install -e '.[app]'" in done.stderr
        assert "Traceback" not in done.stderr
    else:
        assert done.stdout == f"minibit {minibit.__version__}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
@pytest.mark.parametrize("words", [("info",), ("info", "--json"), ("--version",), ("--help",)])
def test_a_full_disk_behind_standard_output_is_one_sentence(trained, words):
    """Status 1 and the reason, no traceback, nothing said again while Python ends."""
    words = (*words, str(trained[0])) if words[0] == "info" else words
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "minibit", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if "rror" in line or "Except" in line]
    assert errors == ["error: [Errno 28] No space left on device"]


@pytest.mark.parametrize("words", [("info",), ("info", "--json"), ("--version",)])
def test_a_reader_that_has_had_enough_ends_the_command_without_a_word(trained, words):
    """Status 1, as after any pipe that closes; no error, no traceback."""
    words = (*words, str(trained[0])) if words[0] == "info" else words
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "minibit", *words], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert done.returncode == 1
    assert not re.search("rror|Except|Traceback", done.stderr)


def test_standard_files_that_are_closed_are_not_opened_for_something_else(trained, tmp_path):
    """What is written to standard output or error never lands in a file that the command opens."""
    out = tmp_path / "a.safetensors"
    command = '"$0" -m minibit export "$1" "$2" >&- 2>&- <&-'
    done = subprocess.run(["/bin/sh", "-c", command, sys.executable, str(trained[0]), str(out)])
    assert done.returncode == 0
    again = tmp_path / "b.safetensors"
    answer("export", trained[0], again)
    assert out.read_bytes() == again.read_bytes()


def test_ctrl_c_while_the_command_line_starts_is_no_traceback(monkeypatch):
    """Between the first import and the command: status 130, as shells have it."""

    class Stopped:
        def find_spec(self, name, path=None, target=None):
            if name == "minibit.cli.app":
                raise KeyboardInterrupt

    def stopped(**_):
        raise KeyboardInterrupt

    from minibit.cli import app as module  # noqa: F401
    from minibit.cli import main

    monkeypatch.setattr(sys, "argv", ["minibit", "info", "a.steps"])
    monkeypatch.setattr("minibit.cli.app.app", stopped)
    assert main() == 130
    monkeypatch.delitem(sys.modules, "minibit.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Stopped(), *sys.meta_path])
    assert main() == 130


@pytest.mark.parametrize(("module", "words"), [("matplotlib", ("history", "--plot", "a.svg"))])
def test_a_command_whose_library_is_missing_names_the_extra(
    trained, data, monkeypatch, module, words
):
    """Status 2, and what to install."""
    monkeypatch.setitem(sys.modules, module, None)
    complaint = refused(words[0], trained[0], *words[1:], "--data", data)
    assert "pip install -e '.[app]'" in complaint


@pytest.mark.parametrize(
    "words",
    [
        ("fly",),
        ("train", "--steps", "0"),
        ("train", "--steps", "many"),
        ("train", "--seed", "-1"),
        ("train", "--threads", "0"),
        ("train", "now"),
        ("replay",),
        ("history", "a.steps", "--every", "0"),
        ("edit", "a.steps", "--negate", "1"),
        ("bench", "train", "--threads", "0"),
    ],
)
def test_wrong_words_end_with_status_two_before_any_work(words, tmp_path, monkeypatch):
    """The parser refuses them; nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert refused(*words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["replay", "evaluate", "history", "info", "edit", "export"])
def test_every_command_helps(command):
    """``--help`` says what it takes."""
    done = call(command, "--help")
    assert done.exit_code == 0
    assert "--json" in done.stdout


# --- train


def test_training_says_what_it_came_to(trained, data):
    """The JSON line: accuracy, digest, steps, sizes and times, all those of the log on disk."""
    path, said = trained
    log = StepLog.open(path)
    assert said["steps"] == len(log) == STEPS
    assert said["log_bytes"] == path.stat().st_size == log.nbytes
    assert said["packed_weight_bytes"] == -(-(16 * 64 + 3 * 16) // 5)
    assert said["digest"] == log.digest()
    dataset = load_npz(data)
    source = log.header["data"]
    x = dataset.test_x * np.float32(source["input_scale"]) + np.float32(source["input_offset"])
    right = mlp(log.replay(), x).argmax(axis=1) == dataset.test_y
    assert said["test_accuracy"] == right.mean()
    assert min(said["seconds"], said["compile_seconds"], said["cpu_seconds"]) >= 0
    assert said["interrupted"] is False
    assert log.header["data"]["digest"] == load_npz(data).digest


def test_training_tells_people_how_to_come_back(data, tmp_path):
    """Accuracy, sizes side by side, time, digest and the command to replay; a plot is drawn."""
    path, plot = tmp_path / "a log.steps", tmp_path / "a.svg"
    done = call(
        *("train", "--data", data, "--widths", 16, "--steps", 2, "--out", path, "--plot", plot)
    )
    assert done.exit_code == 0, done.output
    for word in ("test accuracy", "packed weights", "time", StepLog.open(path).digest()):
        assert word in done.stdout
    assert f"replay '{path}' --data {data}" in done.stdout
    assert plot.read_bytes().startswith(b"<?xml")


def test_without_a_name_the_log_takes_the_first_that_is_free(data, tmp_path, monkeypatch):
    """Nothing is ever overwritten: model.steps, then model-2.steps; --resume takes the last."""
    monkeypatch.chdir(tmp_path)
    words = ("train", "--data", data, "--widths", 16, "--steps", 1)
    assert [answer(*words)["log"] for _ in range(3)] == [
        "model.steps",
        "model-2.steps",
        "model-3.steps",
    ]
    assert answer("train", "--data", data, "--steps", 2, "--resume")["log"] == "model-3.steps"
    assert [len(StepLog.open(path)) for path in sorted(tmp_path.iterdir())] == [1, 2, 1]


def test_an_existing_log_is_overwritten_only_by_force(trained, data, tmp_path):
    """Without --force: status 2 and the same bytes; with it: a new log."""
    path = Path(shutil.copy(trained[0], tmp_path / "run.steps"))
    before = path.read_bytes()
    words = ("train", "--data", data, "--widths", 16, "--steps", 1, "--out", path)
    assert "exists; nothing was changed" in refused(*words)
    assert path.read_bytes() == before
    assert answer(*words, "--force", "--seed", 5)["steps"] == 1
    assert StepLog.open(path).plan.seed == 5


def test_force_keeps_the_old_log_until_there_is_a_new_one(trained, data, tmp_path, monkeypatch):
    """A run that cannot begin costs nothing."""
    path = Path(shutil.copy(trained[0], tmp_path / "run.steps"))
    words = ("train", "--data", data, "--steps", 1, "--out", path, "--force")
    monkeypatch.setenv("MINIBIT_KERNELS", "amx")
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    monkeypatch.setattr("minibit.kernels.supported", lambda: ("reference", "portable"))
    assert "this CPU lacks it" in refused(*words, status=1)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [trained[0].read_bytes()]


def test_force_leaves_the_log_of_a_live_run_alone(trained, data, tmp_path):
    """The old log is locked first: status 1, the same bytes, and no second name stays."""
    path = Path(shutil.copy(trained[0], tmp_path / "run.steps"))
    words = ("train", "--data", data, "--widths", 16, "--steps", 1, "--out", path, "--force")
    with StepLog.recover(path):
        assert "another writer holds" in refused(*words, status=1)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [trained[0].read_bytes()]


@pytest.mark.parametrize("stop", ["first step", "interrupt", "full disk"])
def test_a_forced_run_that_is_stopped_early_costs_nothing(
    trained, data, tmp_path, monkeypatch, stop
):
    """Before the first record the old log is where it was, and the message says so."""
    path = Path(shutil.copy(trained[0], tmp_path / "run.steps"))

    def fills(file, framed):
        raise OSError(28, "No space left on device")

    def stops(*_):
        raise KeyboardInterrupt

    if stop == "full disk":
        monkeypatch.setattr(Appender, "append", fills)
    elif stop == "interrupt":
        monkeypatch.setattr(training.loop._Run, "warm_up", stops)
    else:
        monkeypatch.setattr(training.loop._Run, "one_step", stops)
    words = ("train", "--data", data, "--widths", 4, "--steps", 40, "--out", path, "--threads", 1)
    said = refused(*words, "--force", status=1).replace("\n", " ")
    assert ("No space left" if stop == "full disk" else "stopped") in said
    assert f"{path} is as it was" in said
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [trained[0].read_bytes()]


def test_a_forced_run_that_is_stopped_later_keeps_both_logs(trained, data, tmp_path, monkeypatch):
    """The new steps under the name, the old ones under one that the command says."""
    path = Path(shutil.copy(trained[0], tmp_path / "run.steps"))
    step = training.loop._Run.one_step

    def stops(run):
        if run.stepper.steps == 33:
            raise KeyboardInterrupt
        return step(run)

    monkeypatch.setattr(training.loop._Run, "one_step", stops)
    words = ("train", "--data", data, "--widths", 4, "--steps", 40, "--out", path, "--threads", 1)
    done = call(*words, "--force")
    assert done.exit_code == 1
    assert len(StepLog.open(path)) == 33
    (old,) = tmp_path.glob("run.steps.*.old")
    assert f"The log that was there before is {old}." in done.stdout
    assert old.read_bytes() == trained[0].read_bytes()


def test_a_full_disk_says_what_was_kept_and_how_to_go_on(data, tmp_path, monkeypatch):
    """Status 1, the error's own words, and the steps that the log has."""
    write, path = Appender.append, tmp_path / "run.steps"

    def fills(file, framed):
        if len(StepLog.open(path)):
            raise OSError(28, "No space left on device")
        write(file, framed)

    monkeypatch.setattr(Appender, "append", fills)
    words = ("train", "--data", data, "--widths", 4, "--steps", 40, "--out", path, "--threads", 1)
    said = refused(*words, status=1)
    assert "No space left on device" in said
    assert "has 32 good steps, --resume goes on" in said.replace("\n", " ")


def test_no_other_command_overwrites_a_log(trained, data, tmp_path):
    """Not even with --force, nor a plot of that name; and a run's log and plot are two files."""
    path = Path(shutil.copy(trained[0], tmp_path / "run.svg"))
    for words in (
        ("history", path, "--data", data, "--plot", path),
        ("replay", path, "--data", data, "--out", path, "--force"),
    ):
        assert "is a minibit log; nothing was changed" in refused(*words)
    new = tmp_path / "new.svg"
    assert "both" in refused("train", "--data", data, "--steps", 1, "--out", new, "--plot", new)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [trained[0].read_bytes()]


def test_force_spares_what_is_no_log(data, tmp_path):
    """A mistyped --out doesn't cost a document."""
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    assert "no minibit log" in refused("train", "--data", data, "--out", path, "--force")
    assert path.read_text() == "years of work"


def test_a_resumed_run_goes_on_where_the_log_ends(trained, data, tmp_path):
    """The old steps stay as they are; preset, seed and widths come from the log."""
    path = Path(shutil.copy(trained[0], tmp_path / "run.steps"))
    said = answer("train", "--resume", "--out", path, "--data", data, "--steps", STEPS + 3)
    assert said["steps"] == STEPS + 3
    assert StepLog.open(path).digest(STEPS) == trained[1]["digest"]
    assert said["digest"] == StepLog.open(path).digest()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--preset", "paper"), "begun with --preset small"),
        (("--seed", "3"), "begun with --seed 0"),
        (("--split", "validation"), "begun with --split final"),
        (("--widths", "8"), "settled by the log"),
        (("--force",), "choose one"),
    ],
)
def test_resuming_refuses_what_the_log_has_settled(trained, data, tmp_path, words, complaint):
    """Status 2, and the log stays as it is."""
    path = Path(shutil.copy(trained[0], tmp_path / "run.steps"))
    assert complaint in refused("train", "--resume", "--out", path, "--data", data, *words)
    assert path.read_bytes() == trained[0].read_bytes()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--preset", "huge"), "--preset must be one of paper, strict, small, accurate"),
        (("--split", "half"), "--split must be one of final, validation"),
        (("--seed", 2**64), "--seed must be below 2**64"),
        (("--widths", "0"), "--widths must be at least 1"),
        (("--widths", "ten"), "--widths takes whole numbers"),
        (("--plot", "a.gif"), ".svg, .png or .pdf"),
        (("--plot", "nowhere/a.svg"), "there is no folder"),
        (("--out", "nowhere/a.steps"), "there is no folder"),
        (("--out", "."), "is a folder"),
        (("--resume", "--out", "none.steps"), "there is no log none.steps"),
        (("--data", "none.npz"), "--data: none.npz: no such file"),
    ],
)
def test_training_refuses_what_makes_no_sense(tmp_path, monkeypatch, words, complaint):
    """One sentence that names the option, status 2, and no file."""
    monkeypatch.chdir(tmp_path)
    assert complaint in refused("train", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_data_file_is_an_error_that_names_the_key(tmp_path):
    """Status 2; nothing is trained."""
    path = tmp_path / "bad.npz"
    np.savez(path, x=np.full((4, 3), 0.5), y=np.zeros(4, int))
    complaint = refused("train", "--data", path, "--out", tmp_path / "a.steps")
    assert "x must be whole numbers from 0 to 255" in complaint
    assert not (tmp_path / "a.steps").exists()


def test_ctrl_c_keeps_every_step_and_says_how_to_go_on(tmp_path):
    """SIGINT: status 1, a log that replays, the command to resume; and resuming works."""
    rng = np.random.default_rng(0)
    source, path = tmp_path / "wide.npz", tmp_path / "run.steps"
    x, y = rng.integers(0, 256, (600, 400), dtype=np.uint8), rng.integers(0, 10, 600)
    np.savez(source, x=x, y=y)
    words = ("train", "--data", source, "--widths", "64", "--threads", 1, "--out", path)
    process = spawn(*words, "--json")
    end = time.monotonic() + 240
    while not (path.exists() and len(StepLog.open(path))) and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 1, stderr
    assert "Traceback" not in stderr
    assert f"train --resume --out {path} --data {source}" in stderr
    said = json.loads(stdout.splitlines()[-1])
    log = StepLog.open(path)
    assert said["interrupted"] is True
    assert 32 <= said["steps"] == len(log) < 600
    assert said["digest"] == log.verify()
    more = answer("train", "--resume", "--out", path, "--data", source, "--steps", len(log) + 1)
    assert more["steps"] == len(log) + 1


def test_a_first_ctrl_c_waits_for_the_step_to_end():
    """Before any step it stops at once; then it is kept until the step is done; a second isn't."""
    point = training.Progress(1, 9, 2.3, 0.1, 0.5, 4.0, 700)
    before = signal.getsignal(signal.SIGINT)
    with _TrainingProgress() as run:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        run.show(point)
        signal.raise_signal(signal.SIGINT)  # kept
        with pytest.raises(KeyboardInterrupt):
            run.show(point)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_mnist_is_trained_and_replayed_without_naming_data(tmp_path):
    """The main job: no --data; replay gives the same digest and the same accuracy."""
    path = tmp_path / "digits.steps"
    trained = answer("train", "--steps", 2, "--out", path)
    replayed = answer("replay", path)
    assert trained["packed_weight_bytes"] == 66_868
    for name in ("test_accuracy", "digest", "steps", "log_bytes", "packed_weight_bytes"):
        assert trained[name] == replayed[name], name


# --- What is done with a log


def test_a_replay_gives_digest_and_accuracy_of_the_training(trained, data):
    """Same numbers from the log alone, with the fields that scripts rely on."""
    path, said = trained
    replayed = answer("replay", path, "--data", data)
    for name in ("test_accuracy", "digest", "steps", "log_bytes", "packed_weight_bytes"):
        assert replayed[name] == said[name], name
    assert {"seconds", "compile_seconds", "cpu_seconds"} <= replayed.keys()


def test_a_replay_to_a_step_writes_those_weights(trained, data, tmp_path):
    """--step N --out FILE: int8 weights after N steps, and their digest."""
    out = tmp_path / "weights.npz"
    said = answer("replay", trained[0], "--data", data, "--step", 2, "--out", out)
    log = StepLog.open(trained[0])
    assert said["digest"] == log.digest(2)
    with np.load(out, allow_pickle=False) as weights:
        arrays = dict(weights)
    assert digest(arrays) == log.digest(2)
    assert {w.dtype for w in arrays.values()} == {np.dtype(np.int8)}
    assert "exists" in refused("replay", trained[0], "--data", data, "--out", out)


def test_a_digest_that_does_not_fit_is_a_failure(trained, data, monkeypatch):
    """Status 1: the work was asked for rightly, and failed."""

    def wrong(log):
        raise ValueError("record 0 replays to another digest")

    monkeypatch.setattr(StepLog, "verify", wrong)
    assert "another digest" in refused("replay", trained[0], "--data", data, status=1)


def test_evaluate_measures_each_split(trained, data):
    """60 test samples, 20 = 240 / 12 for validation; what was trained on is named so."""
    accuracies = {
        name: answer("evaluate", trained[0], "--data", data, "--split", name)
        for name in ("test", "validation", "train")
    }
    assert [accuracies[name]["samples"] for name in accuracies] == [60, 20, 240]
    assert accuracies["test"]["accuracy"] == trained[1]["test_accuracy"]
    assert [accuracies[name]["seen_in_training"] for name in accuracies] == [False, True, True]
    assert "--split must be" in refused("evaluate", trained[0], "--split", "all")


def test_a_validation_run_keeps_its_validation_samples_apart(data, tmp_path):
    """--split validation: 220 samples trained on, 20 kept; history and evaluate say so."""
    path = tmp_path / "run.steps"
    words = ("--data", data, "--widths", 16, "--steps", 3)
    said = answer("train", *words, "--split", "validation", "--out", path)
    measured = answer("evaluate", path, "--data", data, "--split", "validation")
    assert measured["accuracy"] == said["validation_accuracy"]
    assert measured["seen_in_training"] is False
    assert answer("evaluate", path, "--data", data, "--split", "train")["samples"] == 220
    assert answer("history", path, "--data", data)["validation_seen_in_training"] is False


def test_history_runs_from_the_first_weights_to_the_last(trained, data, tmp_path):
    """Points every N steps and the end; the last one is the trained accuracy; a plot is drawn."""
    plot = tmp_path / "history.png"
    said = answer("history", trained[0], "--data", data, "--every", 4, "--plot", plot)
    assert said["steps"] == [0, 4, 6]
    assert len(said["validation"]) == len(said["test"]) == 3
    assert said["test"][-1] == trained[1]["test_accuracy"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    shown = call("history", trained[0], "--data", data).stdout.splitlines()
    assert shown[0].split("  ")[0] == "step"
    assert shown[0].split() == ["step", "training", "test"]
    assert len(shown) == 1 + STEPS + 1 + 1


def test_info_counts_every_byte(trained):
    """Sizes of the file, of the net moves and of the packed weights; no data is needed."""
    path, _ = trained
    log, said = StepLog.open(path), answer("info", path)
    assert said["log_bytes"] == path.stat().st_size
    assert said["compact_bytes"] == len(compact(log))
    payloads = sum(len(record.payload) for record in log.records)
    assert said["framing_bytes"] == said["log_bytes"] - payloads
    assert said["float32_bytes"] == 4 * log.plan.size
    assert said["header"] == log.header
    assert "seed" in call("info", path).stdout


def test_info_tells_layers_of_any_shape(tmp_path):
    """A sampled log's parameters need not be matrices."""
    plan = Plan("sampled", 0, ("a", "b"), ((4, 3, 2), (5,)), zeros=0, perturbations=2)
    StepLog.create(tmp_path / "a.steps", {"plan": plan.to_dict()}).close()
    assert "4x3x2, 5\n" in call("info", tmp_path / "a.steps").stdout


def test_what_a_strangers_log_says_steers_no_terminal(tmp_path):
    """In facts, tables, errors and warnings, escapes are shown as what they are."""
    plan = Plan("sampled", 0, ("a",), ((4,),), zeros=0, perturbations=2)
    trick = "\x1b]0;owned\x07\u202e\n"
    header = {"plan": plan.to_dict(), "recipe": {"preset": trick}, "data": {"name": trick}}
    path = tmp_path / f"{trick[:1]}.steps"
    StepLog.create(path, header).close()
    for command in ("info", "replay", "evaluate"):
        said = call(command, path)
        assert "\\x1b" in said.output
        assert not set(said.output) & set("\x1b\x07\u202e"), command


def test_one_training_sample_is_enough_for_all_but_a_validation_split(tmp_path):
    """It can be trained on, replayed and measured; only a split of it makes no sense."""
    x = np.arange(12, dtype=np.uint8).reshape(3, 4)
    data, log = tmp_path / "one.npz", tmp_path / "one.steps"
    np.savez(data, train_x=x[:1], train_y=[0], test_x=x, test_y=[0, 1, 0])
    answer("train", "--data", data, "--widths", 4, "--steps", 1, "--out", log, "--threads", 1)
    for split in ("test", "train"):
        answer("evaluate", log, "--data", data, "--split", split)
    said = refused("evaluate", log, "--data", data, "--split", "validation", status=1)
    assert "of 1 training samples" in said


def test_masking_every_step_gives_the_initial_weights(trained, tmp_path):
    """The edited copy replays to them, the source is as it was, and info tells of the edit."""
    before, out = trained[0].read_bytes(), tmp_path / "masked.steps"
    said = answer("edit", trained[0], "--mask", "0", "1-3", "4,5", "--out", out)
    assert said["edited"] == STEPS
    assert said["digest"] == digest(initial_params(StepLog.open(trained[0]).plan))
    assert trained[0].read_bytes() == before
    assert "mask, steps 0-5" in call("info", out).stdout


def test_negating_a_step_twice_gives_the_log_back(trained, tmp_path):
    """The last step clamps nothing of the others: turned round twice, the same digest."""
    last = STEPS - 1
    once, twice = tmp_path / "once.steps", tmp_path / "twice.steps"
    assert answer("edit", trained[0], "--negate", last, "--out", once)["edited"] == 1
    assert StepLog.open(once).digest() != trained[1]["digest"]
    assert answer("edit", "--negate", last, once, "--out", twice)["digest"] == trained[1]["digest"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "either --negate STEPS or --mask STEPS"),
        (("--negate", "1", "--mask", "2"), "either --negate STEPS or --mask STEPS"),
        (("--mask", STEPS), f"steps 0 to {STEPS - 1}, there is no {STEPS}"),
        (("--mask", "3-1"), "3-1 is no range"),
        (("--mask", "1.5"), "takes whole numbers"),
        (("--mask", "0-999999999999"), "is no range"),
    ],
)
def test_an_edit_that_makes_no_sense_writes_nothing(trained, tmp_path, words, complaint):
    """Status 2, one sentence, no file."""
    out = tmp_path / "edited.steps"
    assert complaint in refused("edit", trained[0], *words, "--out", out)
    assert not out.exists()


def test_an_edit_never_overwrites(trained):
    """Not even the log that it reads."""
    before = trained[0].read_bytes()
    assert "exists" in refused("edit", trained[0], "--mask", "1", "--out", trained[0])
    assert trained[0].read_bytes() == before


def test_an_export_is_what_other_libraries_read(trained, tmp_path):
    """safetensors: int8 tensors equal to the replayed weights, with their digest beside them."""
    from safetensors import safe_open

    out = tmp_path / "model.safetensors"
    answer("export", trained[0], out, "--step", 3)
    log = StepLog.open(trained[0])
    with safe_open(out, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    for name, codes in log.replay(3).items():
        assert arrays[name].dtype == np.int8
        np.testing.assert_array_equal(arrays[name], codes)
    assert about["digest"] == log.digest(3)
    assert json.loads(about["plan"]) == log.header["plan"]
    assert "exists" in refused("export", trained[0], out)
    assert ".safetensors" in refused("export", trained[0], tmp_path / "model.bin")


@pytest.mark.parametrize("command", ["replay", "evaluate", "history", "info", "export"])
def test_a_damaged_log_is_a_failure_that_names_the_byte(trained, data, tmp_path, command):
    """Status 1, the offset, and nothing written; with --json the object says the same."""
    whole = bytearray(trained[0].read_bytes())
    whole[40] ^= 1
    path = tmp_path / "bad.steps"
    path.write_bytes(whole)
    more = [tmp_path / "a.safetensors"] if command == "export" else []
    assert "byte" in refused(command, path, *more, status=1)
    said = answer(command, path, *more, status=1)
    assert said["exit_status"] == 1
    assert "byte" in said["error"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("command", ["replay", "evaluate", "history", "info", "export"])
def test_a_log_that_is_not_there_is_bad_use(tmp_path, command):
    """Status 2; a folder is no log either."""
    more = [tmp_path / "a.safetensors"] if command == "export" else []
    assert "there is no log" in refused(command, tmp_path / "none.steps", *more)
    assert f"there is no log {tmp_path}: it is a folder" in refused(command, tmp_path, *more)


def other_seed(source: Path, path: Path) -> Path:
    """Copy a log with good checksums and another seed in its plan: it replays to other weights."""
    contents = scan(source.read_bytes())
    header = json.loads(contents.header)
    header["plan"]["seed"] += 1
    data = pack_header(header)
    crc = scan(data).crc
    for record in contents.records:
        framed, crc = pack_record(record.steps, record.payload, record.digest, crc)
        data += framed
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "words",
    [
        ("replay", "--data"),
        ("replay", "--step", 1, "--data"),
        ("evaluate", "--data"),
        ("history", "--data"),
        ("info",),
        ("edit", "--mask", 1, "--out", "new"),
        ("export", "new.safetensors"),
        ("train", "--resume", "--steps", STEPS + 1, "--data"),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_a_log_that_replays_differently_is_used_by_no_command(trained, data, tmp_path, words):
    """Status 1, the record is named; nothing is written, and the log stays as it is."""
    path = other_seed(trained[0], tmp_path / "other.steps")
    before = path.read_bytes()
    command, *more = (tmp_path / w if str(w).startswith("new") else w for w in words)
    more += [data] if more and more[-1] == "--data" else []
    log = ["--out", path] if command == "train" else [path]
    assert "record 0 (steps 0 to 5) replays to digest" in refused(command, *log, *more, status=1)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]


def test_a_damaged_log_is_salvaged_into_a_new_one(trained, tmp_path):
    """The message of any command names file, good steps and this command; it copies those."""
    path, out = tmp_path / "bad.steps", tmp_path / "good.steps"
    with StepLog.create(path, StepLog.open(trained[0]).header) as log:
        for step in StepLog.open(trained[0]).steps():
            log.append(step)
    data = bytearray(path.read_bytes())
    data[log.records[4].offset + 8] ^= 1
    path.write_bytes(data)
    said = refused("info", path, status=1)
    assert f"{path}: a record's CRC-32" in said
    assert "its 4 steps before are good, `minibit salvage` copies them" in said
    answered = answer("salvage", path, out)
    assert (answered["steps"], answered["left_out"]) == (4, len(data) - log.records[4].offset)
    assert answered["digest"] == StepLog.open(out).verify() == log.digest(4)
    assert "4 good steps" in call("salvage", path, tmp_path / "again.steps").stdout
    assert "exists" in refused("salvage", path, out)
    assert "there is no log" in refused("salvage", tmp_path / "none", tmp_path / "new")
    assert path.read_bytes() == data


def test_resuming_a_torn_log_says_what_it_cuts_off(trained, data, tmp_path):
    """Where it is torn, how many bytes go, and where the run goes on."""
    path = tmp_path / "torn.steps"
    path.write_bytes(trained[0].read_bytes() + b"\x01\x02")
    done = call("train", "--resume", "--out", path, "--data", data, "--steps", STEPS + 1)
    assert done.exit_code == 0
    assert f"torn at byte {trained[0].stat().st_size}" in done.stderr
    assert f"--resume cuts the last 2 bytes off and goes on after step {STEPS}" in done.stderr


def test_what_a_log_says_of_itself_does_not_steer_the_terminal(tmp_path):
    """Control characters are shown as escapes, long values cut; errors, tables and names, too."""
    escape = "\x1b]0;owned\x07\x1b[2J\u202e"
    plan = Plan("units", 0, (escape,), ((2, 4),), zeros=2**31, units=(1,), inputs=(4,))
    header = {
        "plan": plan.to_dict(),
        "recipe": {"preset": escape, "activations": [escape] * 10_000},
        "data": {"name": escape, "split": {escape: escape}},
        "edits": [escape, {"edit": escape, "steps": [[1, 2]]}, *[[]] * 1000],
    }
    path = tmp_path / f"{escape}.steps".replace("/", "")
    StepLog.create(path, header).close()
    done = call("info", path)
    assert r"\x1b]0;owned\x07\x1b[2J\u202e" in done.stdout
    assert len(done.stdout) < 5000
    torn = path.with_name(f"{escape}2")
    torn.write_bytes(path.read_bytes() + b"\1")
    for said in (
        done.stdout,
        call("info", torn).stderr,
        refused("replay", path, status=1),
        refused("info", f"{path}x"),
    ):
        assert "\x1b" not in said
        assert "\x07" not in said
        assert "\u202e" not in said


def test_info_does_not_replay_what_would_take_long(tmp_path):
    """A few bytes can ask for many draws: the sizes are told, net moves are not counted."""
    for shape, numerator in (((3000, 3000), 1), ((1000, 1000), 2**32 - 1)):
        plan = Plan("sampled", 0, ("w",), (shape,), zeros=2**31, perturbations=16)
        data = pack_header({"plan": plan.to_dict()})
        step = SampledStep(numerator, np.ones(16, np.int8))
        payload = encode_sampled([step] * 3)
        path = tmp_path / "a.steps"
        path.write_bytes(data + pack_record(3, payload, bytes(8), scan(data).crc)[0])
        assert answer("info", path)["compact_bytes"] is None
        assert "not counted" in call("info", path).stdout


def test_a_torn_log_is_read_up_to_its_tear_with_a_warning(trained, tmp_path):
    """A killed run: what is whole is used, the rest is told of, the file stays as it is."""
    path = tmp_path / "torn.steps"
    path.write_bytes(trained[0].read_bytes() + b"\x01\x02")
    done = call("info", path, "--json")
    assert done.exit_code == 0
    assert f"torn at byte {trained[0].stat().st_size}" in done.stderr
    assert json.loads(done.stdout)["torn_at"] == trained[0].stat().st_size
    assert path.stat().st_size == trained[0].stat().st_size + 2


@pytest.mark.parametrize(
    "change",
    [{"recipe": None}, {"data": "mnist"}, {"data": {"name": "mnist"}}, {"edits": 7, "recipe": []}],
    ids=str,
)
def test_a_log_of_no_training_run_is_told_apart(trained, data, tmp_path, change):
    """A header is free beyond its plan: info shows what it has, other commands say what lacks."""
    source, path = StepLog.open(trained[0]), tmp_path / "other.steps"
    with StepLog.create(path, source.header | change) as log:
        log.append(source.steps())
    assert answer("info", path)["steps"] == STEPS
    assert answer("export", path, tmp_path / "a.safetensors")["digest"] == source.digest()
    for words in (("replay", path), ("history", path), ("train", "--resume", "--out", path)):
        complaint = refused(*words, "--data", data, status=1)
        assert "is no log of a training run" in complaint


@pytest.mark.parametrize("command", ["replay", "evaluate", "history"])
def test_another_data_set_than_the_logs_is_refused(trained, tmp_path, command):
    """By digest, not by name; and a log that was not trained on MNIST asks for its data."""
    other = make_data(tmp_path / "patterns.npz", seed=1)
    assert "is not the data" in refused(command, trained[0], "--data", other)
    if command == "replay":  # the weights need no data
        assert answer(command, trained[0])["test_accuracy"] is None
    else:
        assert "trained on patterns.npz: give it with --data" in refused(command, trained[0])


@pytest.mark.parametrize("command", ["replay", "evaluate", "export"])
def test_a_step_beyond_the_end_is_refused(trained, tmp_path, command):
    """Status 2, with the number of steps."""
    more = [tmp_path / "a.safetensors"] if command == "export" else []
    complaint = refused(command, trained[0], *more, "--step", STEPS + 1)
    assert f"has {STEPS} steps" in complaint


# --- chapters


@pytest.fixture
def two_chapters(tmp_path, monkeypatch):
    """A folder of two chapters: one draws, the other fails."""
    folder = tmp_path / "chapters"
    folder.mkdir()
    (folder / "ch01_good.py").write_text(
        "# %% [markdown]\n# # A good one\n\n# %%\nimport matplotlib.pyplot as plt\n"
        "from pathlib import Path\nfrom minibit import plots\nplots.style(show=True)\n"
        "Path('scratch.txt').write_text('x')\nplt.subplots()\nprint('forty-two')\n"
    )
    (folder / "ch02_bad.py").write_text("# %% [markdown]\n# # A bad one\n\n# %%\nassert 1 == 2\n")
    chapters = [
        chapters_command.Chapter("1", "good", "A good one", folder / "ch01_good.py"),
        chapters_command.Chapter("2", "bad", "A bad one", folder / "ch02_bad.py"),
    ]
    monkeypatch.setattr(chapters_command, "find_chapters", lambda: chapters)
    return folder


def test_every_chapter_is_listed_under_its_title():
    """Numbers, names and first headings, from wherever minibit is installed."""
    chapters = answer("chapters")["chapters"]
    assert chapters
    for chapter in chapters:
        text = Path(chapter["path"]).read_text(encoding="utf-8")
        assert f"# # {chapter['title']}\n" in text
        number = re.fullmatch(r"(\d+)([a-z]?)", chapter["number"])
        name = f"ch{int(number[1]):02}{number[2]}_{chapter['name']}.py"
        assert chapter["path"].endswith(name)


def test_an_installed_package_has_its_own_chapters(tmp_path, monkeypatch):
    """``minibit/_chapters`` comes first, a checkout's folder second; without either, status 1."""
    package = tmp_path / "minibit"
    (package / "_chapters").mkdir(parents=True)
    (tmp_path / "chapters").mkdir()
    monkeypatch.setattr(results, "__file__", str(package / "results.py"))
    assert "carries no chapters" in refused("chapters", status=1)
    for folder, title in ((tmp_path / "chapters", "Outside"), (package / "_chapters", "Inside")):
        (folder / "ch01_dual.py").write_text(f"# %% [markdown]\n# # {title}\n")
        (folder / "notes.py").write_text("no chapter")
        assert [row["title"] for row in answer("chapters")["chapters"]] == [title]


@pytest.mark.parametrize("which", ["1", "01", "good", "ch01", "ch01_good", "ch01_good.py"])
def test_a_chapter_is_shown_by_number_or_name(two_chapters, which):
    """Its script, to read or to redirect into a file."""
    assert call("chapters", which).stdout == (two_chapters / "ch01_good.py").read_text()


@pytest.mark.parametrize("which", ["7b", "07b", "ch07b", "unit_tangents"])
def test_a_later_part_of_a_chapter_has_a_letter(which):
    """It is listed after the part that it goes on from, and found by number or name."""
    listed = [chapter["number"] for chapter in answer("chapters")["chapters"]]
    assert listed[listed.index("7") :][:2] == ["7", "7b"]
    (chapter,) = answer("chapters", which)["chapters"]
    assert (chapter["number"], chapter["name"]) == ("7b", "unit_tangents")


def test_a_chapter_that_is_not_there_is_refused(two_chapters):
    """With the list of those that are."""
    assert "there are 1 good, 2 bad" in refused("chapters", "17")


def test_a_chapter_is_run_and_its_figures_kept(two_chapters, tmp_path, monkeypatch):
    """Script and SVG in the folder; what the chapter wrote elsewhere is gone with its scratch."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "kept"
    said = answer("chapters", "good", "--run", "--out", out)
    assert said["passed"] is True
    assert sorted(path.name for path in out.iterdir()) == ["ch01_good.py", "ch01_good_1.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chapters", "kept"]
    assert "exists; nothing was changed" in refused("chapters", "good", "--out", out)
    assert answer("chapters", "good", "--run")["passed"] is True
    assert Path("ch01_good_1.svg").read_bytes() == (out / "ch01_good_1.svg").read_bytes()


def test_a_chapter_is_written_as_a_notebook_of_its_cells(two_chapters, tmp_path):
    """Format 4.5, text and code in order, nothing run; a file that is there stays as it is."""
    book = tmp_path / "good.ipynb"
    assert answer("chapters", "1", "--notebook", book)["notebook"] == str(book)
    written = json.loads(book.read_text(encoding="utf-8"))
    assert (written["nbformat"], written["nbformat_minor"]) == (4, 5)
    text, code, last = written["cells"]
    assert "`minibit chapters 1 --check my_dual.py`" in last["source"][0]
    assert (text["cell_type"], text["source"]) == ("markdown", ["# A good one"])
    assert (code["cell_type"], code["outputs"], code["execution_count"]) == ("code", [], None)
    assert code["source"][0] == "import matplotlib.pyplot as plt\n"
    assert code["source"][-1] == "print('forty-two')"
    assert text["id"] != code["id"]
    refused("chapters", "2", "--notebook", book, status=1)
    assert json.loads(book.read_text(encoding="utf-8")) == written
    assert "ends in .ipynb" in refused("chapters", "2", "--notebook", tmp_path / "bad.txt")
    assert "takes one chapter" in refused("chapters", "--notebook", tmp_path / "all.ipynb")


def test_a_readers_file_is_held_against_the_vectors_of_one_chapter(tmp_path):
    """Status 0 if all that it offers conforms, 1 with the case that deviates; other rooms' not."""
    right = tmp_path / "my_absmean.py"
    right.write_text("from minibit import *\n")
    said = answer("chapters", "4", "--check", right)
    assert said["passed"]
    assert set(said["calls"]) <= set(absmean.__all__)
    assert said["conforms"] == said["cases"] == len(cases_of("absmean")) > 30
    wrong = tmp_path / "my_wrong.py"
    wrong.write_text(
        "def absmean_quantize(w):\n    return w.round().astype('int8'), w.dtype.type(1)\n"
    )
    said = answer("chapters", "absmean", "--check", wrong, status=1)
    assert {row["call"] for row in said["deviations"]} == {"absmean_quantize"}
    assert said["not_offered"] > 0
    text = call("chapters", "4", "--check", wrong).stdout
    assert "absmean_quantize deviates in" in text
    assert "tests/test_absmean.py" in text
    assert "has no vectors" in refused("chapters", "0", "--check", right)
    assert "takes one chapter" in refused("chapters", "--check", right)
    assert "no module" in refused("chapters", "4", "--check", tmp_path / "nowhere.py")


def test_a_chapter_that_fails_fails_the_run(two_chapters):
    """All are run; status 1 names the one whose claim does not hold."""
    said = answer("chapters", "--run", status=1)
    assert {row["name"]: row["passed"] for row in said["chapters"]} == {"good": True, "bad": False}


# --- bench


@pytest.fixture
def low(monkeypatch):
    """A benchmark that misses one of its bars."""

    def measured(options):
        figures = (
            bench.Figure("fast", 3.0, "x", 2.0),
            bench.Figure("small", 5.0, "bytes", 4.0, at_least=False),
            bench.Figure("seeds", float(sum(options.seeds)), "x"),
        )
        return bench.Report(figures, ("Made up.",))

    monkeypatch.setattr(sys.modules[__name__], "measured", measured, raising=False)
    monkeypatch.setitem(
        bench.BENCHMARKS, "low", bench.Benchmark("made up", f"{__name__}:measured", False)
    )
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def test_bench_lists_its_benchmarks():
    """Without a name."""
    assert {"train", "step"} <= set(answer("bench")["benchmarks"])
    assert "step" in call("bench").stdout


def test_bench_check_fails_below_a_bar(low):
    """Status 1 with --check, 0 without; the table says which; every figure is in the JSON."""
    assert call("bench", "low").exit_code == 0
    done = call("bench", "low", "--check")
    assert done.exit_code == 1
    assert "MISSED" in done.stdout
    said = answer("bench", "low", "--check", status=1)
    assert [figure["passed"] for figure in said["figures"]] == [True, False, True]
    assert {"cpu", "kernel_path", "threads", "versions"} <= said["environment"].keys()


def test_bench_records_a_report_that_says_how_to_repeat_it(low, tmp_path):
    """--out writes what --json prints, anew each time, and never over a log."""
    record = tmp_path / "low.json"
    for threads in ("1", "2"):
        said = answer("bench", "low", "--peers", "--threads", threads, "--out", str(record))
        assert json.loads(record.read_text()) == said
        assert said["command"] == f"minibit bench low --threads {threads} --peers"
    assert "there is no folder" in refused("bench", "low", "--out", str(tmp_path / "no" / "a.json"))
    record.write_bytes(MAGIC)
    assert "is a minibit log" in refused("bench", "low", "--out", str(record))


def test_bench_takes_several_seeds_after_one_option(low):
    """--seeds 3 4 5, with the name before or after."""
    for words in (("bench", "low", "--seeds", "3", "4", "5"), ("bench", "--seeds", "3-5", "low")):
        assert answer(*words)["figures"][2]["value"] == 12


def test_a_preset_that_a_benchmark_does_not_know_is_bad_use():
    """Status 2 and a sentence, before any process is started."""
    assert "takes --preset strict, accurate" in refused("bench", "step", "--preset", "paper")
    assert "takes no --preset" in refused("bench", "gemv", "--preset", "small")


def test_an_unknown_benchmark_is_refused():
    """With the list of those that are."""
    said = refused("bench", "nothing")
    assert "NAME must be one of " in said
    assert {"step", "train"} <= set(re.findall(r"\w+", said.split("one of ")[1]))


# --- Small things


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8))
def test_whole_numbers_come_back_from_every_way_of_writing_them(numbers):
    """Apart, with commas, and as ranges."""
    words = [str(number) for number in numbers]
    assert whole_numbers(words, "--x") == numbers
    assert whole_numbers([",".join(words)], "--x") == numbers
    assert whole_numbers([f"{n}-{n + 2}" for n in numbers[:1]], "--x") == [
        *range(numbers[0], numbers[0] + 3)
    ]


@pytest.mark.parametrize("bad", ["", "-1", "1-", "1--2", "a", "1.0", "2-1", "1 2", "٣x"])
def test_what_is_no_whole_number_is_refused(bad):
    """The message quotes it."""
    with pytest.raises(BadUse, match="--x"):
        whole_numbers([bad], "--x")


def test_sizes_and_times_are_written_for_people():
    """1 KB = 1000 bytes; minutes and hours."""
    assert [kilobytes(n) for n in (7, 999, 1000, 66_868)] == [
        "7 bytes",
        "999 bytes",
        "1.0 KB",
        "66.9 KB",
    ]
    assert [clock(s) for s in (0, 59.2, 61, 3600)] == ["0 s", "1:00", "1:01", "1:00:00"]
    assert clock(float("inf")) == "?"


@pytest.mark.parametrize("width", [24, 40, 60, 80, 84, 100, 200])
def test_the_progress_line_fits_its_terminal(width):
    """One line at every width from 24 columns on."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(width=width, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    progress = Progress(*columns(width, PARTS), console=console)
    fields = {"loss": "0.123", "accuracy": "99.9%", "left": "59:59", "log": "999.9 KB"}
    progress.add_task("", total=600, completed=599, **fields)
    lines = console.render_lines(progress.get_renderable(), console.options)
    text = "".join(segment.text for segment in lines[0])
    console.file.close()
    assert len(lines) == 1
    assert "599/600" in text
    assert "loss 0.123" in text
    assert ("59:59 left" in text) == (width >= 40)
    assert ("log 999.9 KB" in text) == (width >= 80)
    assert ("━" in text) == (width >= 84)


def test_plots_are_checked_before_the_work(monkeypatch, tmp_path):
    """A wrong name for the plot costs no training."""
    monkeypatch.setattr(plots, "save", None)
    assert "--plot" in refused("train", "--plot", tmp_path / "a.jpeg")
