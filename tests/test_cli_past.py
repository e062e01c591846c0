"""What a log alone can do, at the command line: the library's answers, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from minibit.datasets import load_npz
from minibit.steps import LogError, StepLog

pytest.importorskip("typer")

from commands import answer, call, refused
from minibit.training import evaluate, model_of
from test_cli import make_data

STEPS = 12
TRAIN = ("--widths", 16, "--threads", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set of one's own."""
    return make_data(tmp_path_factory.mktemp("data") / "patterns.npz")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another one, of the same kind."""
    return make_data(tmp_path_factory.mktemp("data") / "others.npz", seed=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """A log of a few steps; tests leave it as it is."""
    path = tmp_path_factory.mktemp("run") / "run.steps"
    answer("train", "--data", data, *TRAIN, "--steps", STEPS, "--out", path)
    return path


@pytest.fixture(autouse=True)
def unchanged(trained):
    """No command changes the log that it reads."""
    before = trained.read_bytes()
    yield
    assert trained.read_bytes() == before


@pytest.fixture(scope="module")
def moved(trained):
    """A weight that changed, and its changes."""
    log = StepLog.open(trained)
    delta = log.diff(0, STEPS)["w1"]
    row, column = np.argwhere(delta)[0].tolist()
    return row, column, log.blame("w1", row, column)


@pytest.mark.parametrize("layer", ["w1", "0"])
def test_blame_lists_the_steps_that_changed_a_weight(trained, moved, tmp_path, layer):
    """As the library does; also after `history LOG`, and drawn."""
    row, column, changes = moved
    plot = tmp_path / "weight.svg"
    said = answer("blame", trained, layer, row, column, "--plot", plot)
    assert said["changes"] == [change._asdict() for change in changes]
    assert said["first"] + sum(c.after - c.before for c in changes) == said["last"]
    assert plot.read_text().startswith("<?xml")
    assert answer("history", trained, "blame", layer, row, column) == said
    assert f"{changes[0].step}" in call("blame", trained, layer, row, column).stdout


def test_blame_and_bisect_tell_of_an_images_answers(trained, data, tmp_path):
    """Every change, and the last turn of right and wrong."""
    log, dataset, image = StepLog.open(trained), load_npz(data), 5
    model, label = model_of(log.header), int(dataset.test_y[image])
    verdict = log.bisect(model, dataset.test_x[image], label)
    changes = [change._asdict() for change in verdict.changes]
    words = (trained, "--image", image, "--data", data)
    said = answer("blame", *words, "--plot", tmp_path / "a.svg")
    assert (said["label"], said["right"], said["changes"]) == (label, verdict.right, changes)
    assert said["last"] == log.answers(model, dataset.test_x[[image]])[-1, 0]
    for spelled in (("bisect", *words), ("history", trained, "bisect", *words[1:])):
        told = answer(*spelled, "--plot", tmp_path / "b.svg")
        assert (told["right"], told["step"], told["changes"]) == (*verdict[:2], changes)
    wrong = answer("bisect", *words, "--label", (label + 1) % 3)
    expected = log.bisect(model, dataset.test_x[image], (label + 1) % 3)
    assert (wrong["right"], wrong["step"]) == expected[:2]
    assert "for good" in call("bisect", *words).stdout or verdict.step is None


def test_a_fork_is_trained_on_with_another_seed(trained, data, tmp_path):
    """`train --resume` takes it up; without a change it ends where its parent does."""
    for seed in ([], ["--seed", 7]):
        path = tmp_path / f"fork{len(seed)}.steps"
        said = answer("history", trained, "fork", "--at", 5, "--out", path, *seed)
        assert (said["steps"], said["seed"]) == (5, 7 if seed else 0)
        assert said["digest"] == StepLog.open(trained).digest(5)
        words = ("train", "--resume", "--out", path, "--data", data, "--threads", 1)
        done = answer(*words, "--steps", STEPS, *seed)
        same = done["digest"] == StepLog.open(trained).digest()
        assert same == (not seed)
        assert "was begun with --seed" in refused(*words, "--steps", STEPS, "--seed", 8)


def test_a_fork_goes_on_with_other_data(trained, data, other, tmp_path):
    """It wants them from then on, and nothing else."""
    path = tmp_path / "fork.steps"
    said = call("fork", trained, "--at", 5, "--out", path, "--data", other).stdout
    assert f"train --resume --out {path} --data {other}" in said.replace("\n", "")
    words = ("train", "--resume", "--out", path, "--threads", 1, "--steps", STEPS)
    assert "dataset must be the one" in refused(*words, "--data", data, status=1)
    answer(*words, "--data", other)
    assert len(StepLog.open(path)) == STEPS
    assert "is not the data" in refused("replay", path, "--data", data)


def test_a_merge_is_measured_beside_both_forks(trained, data, tmp_path, monkeypatch):
    """Their accuracies, and that of all moves together; each is the end of its line in the plot."""
    forks = [tmp_path / name for name in "ab"]
    for seed, path in enumerate(forks, start=7):
        answer("fork", trained, "--at", 5, "--out", path, "--seed", seed)
        words = ("--resume", "--out", path, "--data", data, "--threads", 1)
        answer("train", *words, "--steps", STEPS - 2)
    out = tmp_path / "merged.steps"
    drawn = []
    monkeypatch.setattr("minibit.plots.save", lambda figure, path: drawn.append(figure))
    words = ("--out", out, "--data", data, "--plot", tmp_path / "a.svg")
    said = answer("history", forks[0], "merge", forks[1], *words)
    lines = {line.get_label(): line.get_ydata() for line in drawn[0].axes[0].lines}
    steps = {"log": STEPS - 2, "other": STEPS - 2, "merged": 2 * STEPS - 9}
    assert lines.keys() == steps.keys()
    for name, line in lines.items():
        ends = line[np.isfinite(line)]
        assert (len(line), len(ends)) == (steps["merged"] + 1, steps[name] + 1)
        assert ends[-1] == pytest.approx(100 * said["test_accuracies"][name])
        assert ends[5] == lines["log"][5]
    assert (said["shared"], said["own"]) == (5, [5, 5])
    log, dataset = StepLog.open(out), load_npz(data)
    accuracy = evaluate(log.replay(), model_of(log.header), dataset.test_x, dataset.test_y)
    assert said["test_accuracies"]["merged"] == accuracy
    assert said["digest"] == log.verify()
    assert answer("merge", *forks, "--out", tmp_path / "c")["test_accuracies"] == {}
    assert "parent=5" not in call("info", out).stdout
    assert "merge, steps 10-14" in call("info", out).stdout


def test_contributors_are_listed_and_reverted(trained, data, tmp_path):
    """Those that the log's neighbour names; without them it has none."""
    log, path = StepLog.open(trained), tmp_path / "shared.steps"
    with StepLog.create(path, log.header) as copy:
        names = [["ada", "bob"][n % 2] for n in range(STEPS)]
        copy.append(log.steps(), shares=[[(0, 1, name)] for name in names])
    assert answer("revert", path)["contributors"] == {"ada": 6, "bob": 6}
    plot = tmp_path / "both.svg"
    words = ("revert", "bob", "--out", tmp_path / "out", "--data", data, "--plot", plot)
    said = answer("history", path, *words)
    assert plot.read_bytes().startswith(b"<?xml")
    assert (said["reverted"], said["digest"]) == (6, StepLog.open(tmp_path / "out").verify())
    assert {*said["test_accuracies"]} == {"before", "after"}
    new = tmp_path / "new"
    assert "ada, bob; got 'eve'" in refused("revert", path, "eve", "--out", new)
    assert "nobody; got 'eve'" in refused("revert", trained, "eve", "--out", new)
    path.with_name("shared.steps.workers").write_bytes(b"{}\n")
    assert "line 1" in refused("revert", path, "bob", "--out", new)
    assert not new.exists()


def test_a_log_without_contributors_says_so(trained):
    """An empty list for programs, a sentence for people."""
    assert answer("revert", trained)["contributors"] == {}
    assert "names a contributor" in call("revert", trained).stdout


ON_A_LOG = (  # every command that reads a log
    ("replay", "LOG"),
    ("evaluate", "LOG", "--data", "DATA"),
    ("history", "LOG", "--data", "DATA"),
    ("info", "LOG"),
    ("export", "LOG", "NEW.safetensors"),
    ("edit", "LOG", "--mask", 0, "--out", "NEW"),
    ("blame", "LOG", "w1", 0, 0),
    ("bisect", "LOG", "--image", 0, "--data", "DATA"),
    ("fork", "LOG", "--at", 0, "--out", "NEW"),
    ("merge", "LOG", "WHOLE", "--out", "NEW"),
    ("merge", "WHOLE", "LOG", "--out", "NEW"),
    ("revert", "LOG"),
    ("snapshots", "LOG"),
    ("train", "--resume", "--threads", 1, "--out", "LOG", "--data", "DATA"),
)


@pytest.mark.parametrize("words", ON_A_LOG, ids=lambda words: "-".join(map(str, words[:2])))
def test_a_log_that_is_none_damaged_or_not_there_is_named_and_kept(trained, data, tmp_path, words):
    """Nothing at its place, a text, an empty file, a changed byte: what is wrong, and at which."""
    path, log = tmp_path / "a.steps", StepLog.open(trained)
    with StepLog.create(path, log.header) as copy:
        for step in log.steps():
            copy.append(step)
    whole, fourth = path.read_bytes(), copy.records[3].offset
    changed = whole[: fourth + 1] + bytes([whole[fourth + 1] ^ 4]) + whole[fourth + 2 :]
    names = {"LOG": path, "WHOLE": trained, "DATA": data, "NEW": tmp_path / "new"}
    names["NEW.safetensors"] = tmp_path / "new.safetensors"
    command = [names.get(word, word) for word in words]
    for content, status, complaint in (
        (None, 2, f"there is no log {path}"),
        (b"my notes", 1, f"{path}: not a minibit log: it begins with b'my notes'"),
        (b"", 1, "the file ends within the log's header, after 0 bytes (byte 0)"),
        (changed, 1, f"{path}: a record's head is damaged: its check does not fit (byte {fourth});"
                     " its 3 steps before are good, `minibit salvage` copies them"),
    ):  # fmt: skip
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        said = refused(*command, status=status).replace("\n", " ")
        assert complaint in said
        assert "nothing was changed" in said or content is None
        left = [] if content is None else [path]
        assert [*tmp_path.iterdir()] == left
        assert all(one.read_bytes() == content for one in left)


@pytest.mark.parametrize("words", ON_A_LOG[:-1], ids=lambda words: "-".join(map(str, words[:2])))
def test_a_torn_log_is_read_up_to_its_tear_and_never_mended(trained, data, tmp_path, words):
    """A warning says how many steps are good; only `train --resume` cuts the rest off."""
    path, log = tmp_path / "a.steps", StepLog.open(trained)
    with StepLog.create(path, log.header) as copy:
        for step in log.steps():
            copy.append(step)
    torn = path.read_bytes()[:-3]
    path.write_bytes(torn)
    names = {"LOG": path, "WHOLE": trained, "DATA": data, "NEW": tmp_path / "new"}
    names["NEW.safetensors"] = tmp_path / "new.safetensors"
    done = call(*[names.get(word, word) for word in words])
    assert done.exit_code == 0, done.output
    assert f"its {STEPS - 1} steps are good" in done.stderr
    assert path.read_bytes() == torn


def test_snapshots_are_written_beside_the_log(trained):
    """Size and time are told; a second time they are written anew."""
    for _ in range(2):
        said = answer("history", trained, "snapshots", "--every", 4)
        assert said["bytes"] == Path(said["file"]).stat().st_size
    assert Path(said["file"]).name == "run.steps.snapshots"
    Path(said["file"]).unlink()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("blame", "LOG"), "either LAYER ROW COLUMN or --image N"),
        (("blame", "LOG", "w1", 1), "either LAYER ROW COLUMN or --image N"),
        (("blame", "LOG", "w1", 1, 1, "--image", 2), "either LAYER ROW COLUMN or --image N"),
        (("blame", "LOG", "w9", 1, 1), "layer must be one of"),
        (("blame", "LOG", "9", 1, 1), "layer must lie in"),
        (("blame", "LOG", "w1", 16, 1), "row must lie in [0, 15], got 16"),
        (("blame", "LOG", "w1", 1, 64), "column must lie in [0, 63], got 64"),
        (("blame", "LOG", "--image", 60, "--data", "DATA"), "--image must be below 60"),
        (("blame", "LOG", "--image", 1, "--split", "all"), "--split must be one of"),
        (("bisect", "LOG", "--image", 1), "give it with --data"),
        (("bisect", "LOG", "--image", 1, "--data", "DATA", "--label", 3), "must lie in [0, 3)"),
        (("bisect", "LOG", "--image", 1, "--plot", "a.txt"), ".svg"),
        (("fork", "LOG", "--at", 13, "--out", "NEW"), f"has {STEPS} steps, so no fork at 13"),
        (("fork", "LOG", "--at", 1, "--out", "LOG"), "nothing was changed. Choose another --out"),
        (("fork", "LOG", "--at", -1, "--out", "NEW"), "--at"),
        (("fork", "LOG", "--out", "NEW"), "--at"),
        (("fork", "LOG", "--at", 1, "--out", "NONE/new"), "there is no folder"),
        (("blame", "LOG", "w1", "x", 1), "[ROW]"),
        (("bisect", "LOG", "--image", 1, "--data", "OTHER"), "is not the data that the log was"),
        (("bisect", "LOG", "--image", -1, "--data", "DATA"), "--image"),
        (("fork", "LOG", "--at", 1, "--out", "NEW", "--seed", 2**64), "seed must lie in"),
        (("fork", "LOG", "--at", 1, "--out", "NEW", "--split", "final"), "--data names"),
        (("fork", "LOG", "--at", 1, "--out", "NEW", "--data", "WIDE"), "takes 64 inputs"),
        (("merge", "LOG", "FOREIGN", "--out", "NEW"), "have one plan; got seed 0 and 5"),
        (("merge", "LOG", "LOG", "--out", "NEW", "--data", "OTHER"), "is not the data that the"),
        (("merge", "LOG", "LOG", "--out", "LOG"), "nothing was changed. Choose another --out"),
        (("snapshots", "LOG", "--every", 0), "--every"),
        (("snapshots", "NONE"), "there is no log"),
        (("history", "LOG", "edit", "--mask", "5-3", "--out", "NEW"), "5-3 is no range"),
        (("edit", "LOG", "--negate", "", "--out", "NEW"), "takes whole numbers and ranges"),
        (("merge", "LOG", "STRANGER", "--out", "NEW"), "not even the first is the same"),
        (("merge", "LOG", "NEW", "--out", "NEW"), "there is no log"),
        (("revert", "LOG", "bob"), "NAME and --out"),
        (("revert", "LOG", "--plot", "a.svg"), "it goes with NAME and --out"),
        (("merge", "LOG", "LOG", "--out", "NEW", "--plot", "a.svg"), "give it with --data"),
        (("merge", "LOG", "LOG", "--out", "NEW", "--plot", "a.txt"), ".svg"),
        (("history", "LOG", "edit", "--mask", 12, "--out", "NEW"), "there is no 12"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_and_writes_nothing(
    trained, data, other, tmp_path, words, complaint
):
    """Status 2, one sentence, no file; what no option can do is not advised."""
    x = np.zeros((9, 30), np.uint8)
    np.savez(tmp_path / "wide.npz", x=x, y=np.arange(9) % 3)
    log = StepLog.open(trained)
    header = {**log.header, "plan": {**log.header["plan"], "seed": 5}}
    StepLog.create(tmp_path / "foreign", header).close()
    with StepLog.create(tmp_path / "stranger", log.header) as stranger:
        stranger.append([*log.steps()][1:])
    names = {"LOG": trained, "DATA": data, "NEW": tmp_path / "new", "WIDE": tmp_path / "wide.npz"}
    names |= {"FOREIGN": tmp_path / "foreign", "STRANGER": tmp_path / "stranger"}
    names |= {"OTHER": other, "NONE": tmp_path / "none", "NONE/new": tmp_path / "none" / "new"}
    said = refused(*(names.get(word, word) for word in words)).replace("\n", " ")
    assert complaint in said
    assert "--force" not in said
    assert not (tmp_path / "new").exists()


def test_an_old_or_foreign_file_of_snapshots_is_named(trained, data, tmp_path):
    """No command uses it: evaluation is from scratch, and the library refuses it."""
    path = tmp_path / "copy.steps"
    log = StepLog.open(trained)
    with StepLog.create(path, log.header) as copy:
        for step in log.steps():
            copy.append(step)
    answer("snapshots", path, "--every", 1)
    answer("edit", path, "--mask", 0, "--out", tmp_path / "edited.steps")
    snapshots = tmp_path / "copy.steps.snapshots"
    snapshots.rename(tmp_path / "edited.steps.snapshots")
    assert StepLog.open(path).weights_at(3).keys() == log.weights_at(3).keys()
    edited = StepLog.open(tmp_path / "edited.steps")
    digest = answer("replay", edited.path, "--data", data)["digest"]
    assert digest == edited.verify()
    with pytest.raises(LogError, match="is of another log"):
        edited.slice("w1", 0)
