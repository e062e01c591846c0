"""``minibit train-language``: from a text to a directory that the other commands take."""

import signal

import numpy as np
import pytest

from minibit.checkpoint import load_bitnet
from minibit.datasets import load_text
from minibit.language import Vocabulary, recipe, train_params
from minibit.transformer import BitNetModel, init_params, pack_params

typer = pytest.importorskip("typer")

from commands import answer, call, refused  # noqa: E402
from minibit.cli import train_language as command  # noqa: E402
from minibit.cli.convert import LEEWAY, compare  # noqa: E402
from minibit.cli.progress import RunProgress  # noqa: E402

WORDS = ("--size", "55k", "--steps", 12)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A short text in a file of its own."""
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(load_text()[:6000] + "é€\n" * 10, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """A model of a few steps, and what the command said of it. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("models") / "mine"
    plot = folder.with_name("losses.svg")
    return folder, answer("train-language", text, *WORDS, "--out", folder, "--plot", plot)


def test_the_directory_is_the_model_that_the_library_trains(text, trained):
    """Codes and scales of `train_language` on the same nine tenths; its characters in order."""
    folder, said = trained
    whole = text.read_text(encoding="utf-8")
    settings = recipe("55k", "b1.58", steps=12, warmup=1)
    vocabulary = Vocabulary.of(whole)
    assert said["out"] == str(folder)
    assert Vocabulary.of_tokenizer((folder / "tokenizer.json").read_text("utf-8")) == vocabulary
    tokens, config = vocabulary.encode(whole), settings.config(len(vocabulary))
    params, _ = train_params(settings, init_params(config, 0), tokens[: len(tokens) * 9 // 10], 0)
    expected = BitNetModel(config, pack_params(params))
    report = compare(expected, load_bitnet(folder), LEEWAY["bitlinear"])  # raises on other codes
    assert report["projections"] == 14
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (said["steps"], said["interrupted"], said["vocabulary"]) == (12, False, len(vocabulary))
    assert said["held_out_loss"] < np.log(len(vocabulary))  # it has learnt something
    assert folder.with_name("losses.svg").read_bytes().startswith(b"<?xml")


def test_a_seed_gives_the_same_weights_again(text, trained, tmp_path):
    """And another seed others."""
    folder, said = trained
    again = answer("train-language", text, *WORDS, "--out", tmp_path / "a")
    assert again["held_out_loss"] == said["held_out_loss"]
    weights = [(path / "model.safetensors").read_bytes() for path in (folder, tmp_path / "a")]
    assert weights[0] == weights[1]
    other = answer("train-language", text, *WORDS, "--seed", 1, "--out", tmp_path / "b")
    assert other["held_out_loss"] != said["held_out_loss"]


def test_what_was_trained_writes_talks_converts_and_is_described(trained, tmp_path):
    """`generate`, `chat`, `convert` and `info` take it; texts outlast its 64 positions."""
    folder, said = trained
    reply = answer("generate", folder, "--prompt", "A é", "--count", 150)
    assert reply["new_tokens"] == 150
    assert answer("chat", folder, "--count", 5, typed="A cat\n")["turns"][0]["user"] == "A cat"
    answer("convert", folder, tmp_path / "m.gguf", "--kind", "i2_s", "--layout", "rows")
    same = answer("generate", tmp_path / "m.gguf", "--prompt", "A é", "--count", 150)
    assert same["text"] == reply["text"]
    about = answer("info", folder)
    assert (about["weights"], about["tokenizer"]) == ("ternary", "characters")
    assert about["config"]["vocab_size"] == said["vocabulary"]


def test_people_read_the_losses_and_how_to_write(text, tmp_path):
    """Held-out loss beside that of a guess, and the command that writes with the model."""
    done = call("train-language", text, *WORDS, "--out", tmp_path / "my model")
    assert done.exit_code == 0
    for word in ("held-out loss", "of a guess", "characters", "55,296 ternary weights"):
        assert word in done.stdout
    assert f"generate '{tmp_path / 'my model'}' --prompt" in done.stdout


def test_what_is_no_text_is_named(tmp_path):
    """Status 2, and nothing is written."""
    out = ("--out", tmp_path / "out")
    assert "there is no text" in refused("train-language", tmp_path / "none.txt", *out)
    assert "is a folder" in refused("train-language", tmp_path, *out)
    for name, content, complaint in (
        ("empty", b"", "has 0 characters; a model needs at least 650"),
        ("short", b"a cat\n" * 20, "has 120 characters"),
        ("latin", b"caf\xe9 " * 500, "is no UTF-8 text: byte 3"),
        ("picture", b"\x89PNG\r\n" * 500, "is no UTF-8 text: byte 0"),
        ("zeros", b"text\0" * 500, r"is no text: its character 4 is '\x00'"),
    ):
        (tmp_path / name).write_bytes(content)
        assert complaint in refused("train-language", tmp_path / name, *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [650, 651, 659])
def test_the_shortest_text_that_is_taken_can_be_trained_on(tmp_path, count):
    """What is held out fills a row; one character less is refused."""
    (tmp_path / "text").write_text(("ab " * 300)[:count])
    said = answer("train-language", tmp_path / "text", "--size", "55k", "--steps", 1,
                  "--out", tmp_path / "out")  # fmt: skip
    assert np.isfinite(said["held_out_loss"])


def test_line_ends_and_a_mark_at_the_start_are_no_characters(tmp_path):
    """As editors on Windows write them."""
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbf" + b"a cat\r\n" * 200)
    assert command.training_text(tmp_path / "text") == "a cat\n" * 200


def test_a_model_that_is_there_stays_unless_force_is_given(text, trained, tmp_path):
    """--force replaces a checkpoint, keeps other files of its folder, and touches nothing else."""
    folder = tmp_path / "mine"
    words = ("train-language", text, "--size", "55k", "--steps", 1, "--out", folder)
    answer(*words)
    (folder / "notes.txt").write_text("mine")
    before = (folder / "model.safetensors").read_bytes()
    assert "Choose another --out, or add --force" in refused(*words, "--seed", 3)
    assert (folder / "model.safetensors").read_bytes() == before
    answer(*words, "--seed", 3, "--force")
    assert (folder / "model.safetensors").read_bytes() != before
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpeg").write_text("x")
    photos = ("--out", tmp_path / "photos", "--force")
    assert "more than a checkpoint" in refused("train-language", text, *photos)


def test_options_that_make_no_sense_are_refused(text, tmp_path):
    """Before any work."""
    out = ("--out", tmp_path / "out")
    assert "--size must be one of 55k, 221k" in refused("train-language", text, "--size", 1, *out)
    assert "--steps" in refused("train-language", text, "--steps", 0, *out)
    assert "--seed must be below" in refused("train-language", text, "--seed", 2**64, *out)
    assert "a directory" in refused("train-language", text, "--out", tmp_path / "a.npz")
    assert "no folder" in refused("train-language", text, "--out", tmp_path / "no" / "a")
    assert "--plot" in refused("train-language", text, "--plot", tmp_path / "a.jpeg", *out)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_keeps_what_was_learnt(text, tmp_path, monkeypatch):
    """Status 1, and a model of the steps that were taken."""

    class Stopped(RunProgress):
        def report(self, step, steps, fields):
            if step == 3:
                signal.raise_signal(signal.SIGINT)  # as the keys do
            super().report(step, steps, fields)

    monkeypatch.setattr(command, "RunProgress", Stopped)
    words = ("train-language", text, "--size", "55k", "--out", tmp_path / "out")
    done = call(*words)
    assert done.exit_code == 1
    assert "Stopped after 3 of 1953 steps." in done.stdout
    assert "Traceback" not in done.output
    assert answer("generate", tmp_path / "out", "--count", 5)["new_tokens"] == 5
    said = answer(*words, "--force", status=1)
    assert (said["steps"], said["interrupted"]) == (3, True)


def test_stopped_before_the_first_step_nothing_is_written(text, tmp_path, monkeypatch):
    """And that is said."""

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "train_params", stopped)
    words = ("train-language", text, "--out", tmp_path / "out")
    assert "before the first step; nothing was written" in refused(*words, status=1)
    assert not (tmp_path / "out").exists()
