"""What a newcomer meets: pages that cover every option, errors that say what to type."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minibit
from minibit.base import install
from minibit.checkpoint import load_bitnet
from minibit.datasets import load_text
from minibit.language import Vocabulary, shipped_folder, shipped_text

typer = pytest.importorskip("typer")

from typer.main import get_command  # noqa: E402

from commands import answer, call, refused  # noqa: E402
from minibit import cli, experiments  # noqa: E402
from minibit.bench import training as bench_training  # noqa: E402
from minibit.cli import measure, texts  # noqa: E402
from minibit.cli.app import app  # noqa: E402
from minibit.experiments import EXPERIMENTS, cpu_seconds  # noqa: E402
from minibit.results import load_results  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
COMMANDS = get_command(app).commands


# --- The page of the command line


def sections() -> dict[str, str]:
    """The parts of the page by their headings' anchors."""
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:]
    headings, bodies = parts[::2], parts[1::2]
    return {
        re.sub(r"[^a-z0-9-]", "", heading.lower().replace(" ", "-")): body
        for heading, body in zip(headings, bodies, strict=True)
    }


def test_the_table_of_commands_lists_each_command_once():
    """In the page's table, with a link to a section that there is; no other command."""
    rows = re.findall(r"^\| \[(`.+?`)\]\(#(.+?)\) \|", PAGE, re.MULTILINE)
    named = [name for names, _ in rows for name in re.findall(r"`(.+?)`", names)]
    assert sorted(named) == sorted(COMMANDS)
    assert {anchor for _, anchor in rows} <= sections().keys()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_page_covers_every_option_of_a_command(name):
    """In the command's own section; `--json` and `--help`, which all have, before the first."""
    rows = re.findall(r"^\| \[(`.+?`)\]\(#(.+?)\) \|", PAGE, re.MULTILINE)
    (anchor,) = (anchor for names, anchor in rows if f"`{name}`" in names)
    body = sections()[anchor]
    assert f"minibit {name}" in body
    for option in COMMANDS[name].params:
        for flag in option.opts:
            if flag.startswith("--") and flag not in ("--json", "--help"):
                assert re.search(rf"{flag}(?![\w-])", body), f"{name} {flag}"


def test_the_page_names_no_option_that_there_is_not():
    """Whatever follows a command in an example is an option of that command."""
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            words = re.sub(r"\s+#.*", "", line).split()
            if words[:1] != ["minibit"] or words[1] not in COMMANDS:
                continue
            flags = {flag for option in COMMANDS[words[1]].params for flag in option.opts}
            used = {word for word in words if word.startswith("--")}
            assert used <= flags | {"--json", "--help"}, line


def test_the_first_page_of_help_has_each_command_with_a_sentence():
    """`minibit --help`."""
    text = call("--help").stdout
    for name, command in COMMANDS.items():
        assert re.search(rf"\b{name}\b", text)
        assert command.help.strip().split("\n")[0]


# --- What is missing


def test_an_extra_is_installed_in_the_checkout_or_beside_the_wheel(tmp_path):
    """In a checkout by its folder; without a pyproject.toml pip knows the installation by name."""
    assert install("app") == f"pip install -e '.[app]' in {ROOT}"
    elsewhere = tmp_path / "site-packages" / "minibit" / "base" / "extras.py"
    elsewhere.parent.mkdir(parents=True)
    shutil.copy(Path(minibit.__file__).parent / "base" / "extras.py", elsewhere)
    spec = importlib.util.spec_from_file_location("extras", elsewhere)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.install("docs") == "pip install 'minibit[docs]'"


@pytest.mark.parametrize("missing", [("typer",), ("typer", "numpy")])
def test_without_typer_every_command_ends_with_the_same_line(missing):
    """Status 2, one line, which names what to type; with NumPy or without."""
    names = sorted(COMMANDS)
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
        "from minibit.cli import main\n"
        f"for name in {names!r}:\n"
        "    sys.argv = ['minibit', name]; assert main() == 2"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    lines = done.stderr.splitlines()
    assert len(lines) == len(names)
    for line in lines:
        assert line.startswith("error: the command line needs typer: pip install -e '.[app]' in ")


def test_an_old_python_is_told_which_one_is_needed(monkeypatch, capsys):
    """Before anything else is imported."""
    monkeypatch.setattr(sys, "argv", ["minibit", "train"])
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    assert cli.main() == 2
    assert capsys.readouterr().err == (
        "error: minibit needs Python 3.11 or newer; this is 3.9.18\n"
    )


# --- The model in the package, by name


def test_the_model_in_the_package_carries_its_tokenizer():
    """The characters of the book, in order; `tokenizers` reads it to the same tokens."""
    text = (shipped_folder() / "tokenizer.json").read_text(encoding="utf-8")
    vocabulary = shipped_text()[0]
    assert text == vocabulary.tokenizer()
    assert Vocabulary.of_tokenizer(text) == vocabulary
    pytest.importorskip("tokenizers")
    sample = load_text()[:500]
    published = texts.Published(text, "here")
    assert published.encode(sample) == vocabulary.encode(sample).tolist()
    assert published.decode(published.encode(sample)) == sample


def test_shipped_names_the_model_in_the_package(tmp_path, monkeypatch):
    """For generate, chat, convert and info; a file of that name goes first."""
    monkeypatch.chdir(tmp_path)
    words = ("--prompt", "CAT, n. ", "--count", 70)
    said = answer("generate", "shipped", *words)
    assert said["text"] == answer("generate", *words)["text"]
    assert said["text"] == answer("generate", shipped_folder(), *words)["text"]
    assert answer("chat", "shipped", "--count", 3, typed="A cat\n")["turns"][0]["new_tokens"] <= 3
    about = answer("info", "shipped")
    assert about["projection_weights"] == 221_184
    assert about["files"].keys() == {"config.json", "model.safetensors", "tokenizer.json"}
    report = answer("convert", "shipped", "copy")
    assert (report["source"], report["projections"]) == ("shipped", 14)
    assert load_bitnet("copy").config == load_bitnet(shipped_folder()).config
    assert (tmp_path / "copy" / "tokenizer.json").is_file()
    (tmp_path / "shipped").write_text("my own")
    assert "shipped is no directory" in refused("generate", "shipped", *words, status=1)


@pytest.mark.parametrize(
    "text", ["A cat is", "CAT, n. ", "and/or so", "CAT,", "it's", "long " * 100]
)
def test_a_text_in_the_place_of_a_model_is_told_where_it_goes(text, tmp_path, monkeypatch):
    """As it would be typed; a path with a suffix is just not there."""
    monkeypatch.chdir(tmp_path)
    complaint = refused("generate", text)
    assert "no such file or directory; to go on with a text: generate --prompt " in complaint
    assert "--prompt" not in refused("generate", "model.gguf")


def test_info_says_what_a_model_is(tmp_path, monkeypatch):
    """A directory, a GGUF file, and latent weights; a log stays a log."""
    monkeypatch.chdir(tmp_path)
    answer("convert", "shipped", "m.gguf", "--kind", "i2_s", "--layout", "rows")
    shown = call("info", "m.gguf").stdout
    assert "BitNet language model, a GGUF file" in shown
    assert "221,184, ternary, in 14 projections, 2 blocks of width 96" in shown
    assert "83 tokens; tokenizer: characters" in shown
    assert "a Hugging Face directory" in call("info", shipped_folder()).stdout
    (tmp_path / "empty").mkdir()
    assert "there is no log empty" in refused("info", "empty")
    assert "there is no log none" in refused("info", "none")
    assert answer("info", ROOT / "minibit" / "data" / "small.steps")["steps"] == 800


def test_only_characters_make_a_tokenizer_ours():
    """A merge, a missing number, another part: the `tokenizers` package reads it instead."""
    ours = Vocabulary("ab\n").tokenizer()
    assert Vocabulary.of_tokenizer(ours) == Vocabulary("ab\n")
    for old, new in (
        ('"merges": []', '"merges": ["a b"]'),
        ('"b": 1', '"b": 7'),
        ('"a": 0', '"aa": 0'),
        ('"normalizer": null', '"normalizer": {"type": "NFC"}'),
        ('"model"', '"modal"'),
        ("{", ""),
    ):
        assert old in ours
        assert Vocabulary.of_tokenizer(ours.replace(old, new)) is None


# --- Logs


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A log of three steps on data of its own, in the current folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    x = (80 * labels[:, None, None] + rng.integers(0, 50, (120, 6, 8))).astype(np.uint8)
    np.savez(tmp_path / "own.npz", x=x, y=labels)
    words = ("train", "--data", "own.npz", "--widths", 8)
    answer(*words, "--steps", 3)
    return words


def test_what_was_trained_on_is_called_training(run):
    """In history and in evaluate; kept apart, it is validation."""
    head = call("history", "model.steps", "--data", "own.npz").stdout.splitlines()
    assert head[0].split() == ["step", "training", "test"]
    assert head[-1].startswith("training: the last twelfth")
    said = call("evaluate", "model.steps", "--data", "own.npz", "--split", "validation").stdout
    assert re.search(r"% of 8 training samples, after 3 steps\n.*validation samples, too", said)
    answer(*run, "--steps", 3, "--split", "validation", "--out", "apart.steps")
    head = call("history", "apart.steps", "--data", "own.npz").stdout.splitlines()
    assert head[0].split() == ["step", "validation", "test"]


def test_a_resume_without_anything_to_do_says_so(run):
    """And changes nothing; with more steps it goes on."""
    before = Path("model.steps").read_bytes()
    more = ("--resume", "--data", "own.npz", "--steps")
    for steps in (2, 3):
        done = call("train", *more, steps)
        assert done.exit_code == 0
        assert "Nothing to do: model.steps has already 3 steps." in done.stdout
        assert Path("model.steps").read_bytes() == before
    done = call("train", *more, 4)
    assert "Nothing to do" not in done.stdout
    assert answer("replay", "model.steps", "--data", "own.npz")["steps"] == 4


# --- Measurements


@pytest.mark.parametrize("command", ["bench", "experiment"])
def test_what_can_be_measured_is_listed(command):
    """By `list`, and without a name."""
    listed = answer(command, "list")
    assert listed == answer(command)
    (names,) = listed.values()
    text = call(command, "list").stdout
    assert all(re.search(rf"^{name} +\w", text, re.MULTILINE) for name in names)


def test_figures_of_one_seed_say_so(monkeypatch):
    """No mean, no deviation and no lowest of one."""
    figures = dict.fromkeys(["wall_seconds", "compile_seconds", "log_bytes"], 7.0)
    run = {"test_accuracy": 0.97, "packed_weight_bytes": 1, **figures}
    monkeypatch.setattr(bench_training, "train_run", lambda *_, **__: run)
    report = bench_training.train(bench_training.Options(seeds=(4,)))
    names = [figure.name for figure in report.figures]
    assert names[0] == "test accuracy, 1 seed"
    assert not [name for name in names if "mean" in name or "deviation" in name]


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_the_price_of_an_experiment_is_that_of_its_recorded_runs(name):
    """For the recorded seeds it is their sum; each further seed adds the same."""
    one, two, three, four = (cpu_seconds(name, range(n)) for n in (1, 2, 3, 4))
    assert 0 < one < two < three < four
    assert four - three == pytest.approx(three - two)
    if name == "language":
        rows = load_results(name)["rows"]
        recorded = sum(row["cpu_seconds"] for row in rows if row["kind"] == "run")
        assert three == pytest.approx(recorded)


def test_an_experiment_says_what_it_costs_keeps_rows_and_goes_on(tmp_path, monkeypatch):
    """Ctrl-C after two of three runs: they are kept, told of, and not repeated."""
    asked = []

    def run(folder, seed):
        asked.append(seed)
        if seed == 2 and asked.count(2) == 1:
            raise KeyboardInterrupt
        return {"seed": seed, "loss": 0.5}

    def work(seeds, runs):
        return runs.rows(run, [{"seed": seed} for seed in seeds], "seed {seed}", here=True)

    monkeypatch.setattr(experiments, "call", lambda _, arguments: work(*arguments))
    words = ("experiment", "mlp", "--out", tmp_path)
    done = call(*words)
    assert done.exit_code == 1
    assert re.search(r"^3 seeds: about \d+ minutes of CPU time", done.stdout)
    assert "Each run is kept in" in done.stdout
    assert "stopped; 2 runs are kept in" in done.stderr
    done = call(*words)
    assert done.exit_code == 0
    assert "2 runs are in" in done.stdout
    assert asked == [0, 1, 2, 2]
    assert (tmp_path / "mlp.json").is_file()
    assert re.match(
        r"1 seed: about", call("experiment", "mlp", "--seeds", 7, "--out", tmp_path).stdout
    )


def test_part_of_a_run_is_no_measurement(monkeypatch):
    """Ctrl-C ends a benchmark or an experiment; a run that it cut short is not counted."""

    class Cut:
        interrupted = True

    monkeypatch.setattr(bench_training.training, "train", lambda *_, **__: Cut)
    with pytest.raises(KeyboardInterrupt):
        bench_training.scratch_run("small", 0)
    assert measure.run  # the benchmark command runs through it
