"""Every writer of the package, at every failure: the old files, or the new ones whole."""

from collections.abc import Callable
from functools import partial
from itertools import count, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from faults import FULL, Fault, contents, failing, full_disk, put
from minibit.checkpoint import random_checkpoint, save_bitnet, save_gguf
from minibit.checkpoint.safetensors import write_safetensors
from minibit.language import Recipe, TrainedModel, Vocabulary
from minibit.lora import save_adapters
from minibit.noise_step import Plan, SampledStep
from minibit.steps import StepLog
from minibit.transformer import BitNetConfig, BitNetModel, init_params, pack_params

CONFIG = BitNetConfig(11, 128, 128, layers=1, heads=4, kv_heads=2, max_positions=64)
MODEL = BitNetModel(CONFIG, pack_params(init_params(CONFIG, seed=0)))
PLAN = Plan("sampled", 3, ("a",), ((6, 10),), zeros=2**31, perturbations=8)
STEP = SampledStep(2**28, np.ones(8, np.int8))
OLD = b"old" * 50


def log(path: Path) -> StepLog:
    """A log of two steps."""
    with StepLog.create(path, {"plan": PLAN.to_dict()}) as new:
        new.append([STEP, STEP])
    return new


def create(folder: Path) -> None:
    """Begin a log."""
    StepLog.create(folder / "a", {"plan": PLAN.to_dict()}).close()


def edit(folder: Path) -> None:
    """Write an edited copy of a log."""
    StepLog.open(folder / "run.steps").negate(1, folder / "a")


def language_model(folder: Path) -> None:
    """Save a model of characters."""
    recipe = Recipe("float", 16, 16, 2, 0.1, layers=1, context=8, steps=3)
    params = init_params(recipe.config(2), seed=0)
    TrainedModel(recipe, 0, Vocabulary("ab"), params, np.ones(3, np.float32), 1.5).save(
        folder / "a"
    )


def picture(folder: Path) -> None:
    """Draw a plot."""
    plots = pytest.importorskip("minibit.plots")
    pytest.importorskip("matplotlib")
    plots.save(plots.figure()[0], folder / "a.svg")


def command(words: str, folder: Path) -> None:
    """Run a command in the folder's name; an error it reports is one here."""
    call = pytest.importorskip("commands").call
    done = call(*(word.replace("@", f"{folder}/") for word in words.split()))
    if done.exit_code:
        raise OSError(done.output)


def tensors(folder: Path) -> None:
    """Write a file of one tensor."""
    pieces = [np.arange(9, dtype=np.uint8)]
    write_safetensors(folder / "a", {"x": ("U8", (9,))}, lambda _: pieces)


def adapters(folder: Path) -> None:
    """Save a pair."""
    save_adapters(folder, {"a": {"A": np.ones((2, 4)), "B": np.ones((6, 2))}})


def replay(folder: Path) -> None:
    """Replay into a file; what the weights are worth is another test's business."""
    logs = pytest.importorskip("minibit.cli.logs")
    data = SimpleNamespace(test_x=None, test_y=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "data_of", lambda log, path: data)
        patch.setattr(logs, "accuracy_of", lambda *_: 0.5)
        command("replay @run.steps --out @a --force", folder)


def start(kind: str, old: dict[str, bytes], folder: Path) -> None:
    """Put there what a writer reads, and what it finds in its place."""
    if kind == "log":
        log(folder / "run.steps")
    elif kind == "hf":
        save_bitnet(MODEL, folder / "hf")
    put(folder, old)


CARD = {"new/README.md": OLD}
WRITERS: dict[str, tuple[str, dict[str, bytes], Callable[[Path], object]]] = {
    "StepLog.create": ("", {}, create),
    "StepLog.negate": ("log", {}, edit),
    "write_safetensors": ("", {}, tensors),
    "save_gguf": ("", {}, lambda folder: save_gguf(MODEL, folder / "a", "i2_s")),
    "save_bitnet": ("", {}, lambda folder: save_bitnet(MODEL, folder / "new")),
    "save_bitnet beside a card": ("", CARD, lambda folder: save_bitnet(MODEL, folder / "new")),
    "random_checkpoint": ("", {}, lambda folder: random_checkpoint(folder, CONFIG)),
    "save_adapters": ("", {}, adapters),
    "TrainedModel.save": ("", {}, language_model),
    "TrainedModel.save again": ("", {"a": OLD}, language_model),
    "plots.save again": ("", {"a.svg": OLD}, picture),
    "replay --out --force": ("log", {"a": OLD}, replay),
    "export": ("log", {}, partial(command, "export @run.steps @a.safetensors")),
    "export --force": (
        "log",
        {"a.safetensors": OLD},
        partial(command, "export @run.steps @a.safetensors --force"),
    ),
    "convert to GGUF": ("hf", {}, partial(command, "convert @hf @a.gguf --kind i2_s")),
    "convert to GGUF --force": (
        "hf",
        {"a.gguf": b"GGUF" + OLD},
        partial(command, "convert @hf @a.gguf --kind i2_s --force"),
    ),
    "convert to a directory": ("hf", {}, partial(command, "convert @hf @new")),
    "convert to a directory --force": (
        "hf",
        CARD | {"new/config.json": OLD, "new/model.safetensors": OLD},
        partial(command, "convert @hf @new --force"),
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_fails_the_old_files_or_the_new_ones_are_there_whole(writer, tmp_path):
    """Fail at the 1st, 2nd, ... sync, link, rename, new folder, and at any byte of a file."""
    kind, there, write = WRITERS[writer]

    def attempt(name, fault):
        """Write into a folder of its own under a fault: what was there, what is, what failed."""
        folder = tmp_path / name
        folder.mkdir()
        start(kind, there, folder)
        before, error = contents(folder), None
        with fault as calls:
            try:
                write(folder)
            except (Fault, OSError) as caught:
                error = caught
        assert not [path for path in folder.rglob("*") if "minibit" in path.name]
        return before, contents(folder), error, calls

    old, new, error, _ = attempt("new", full_disk(1 << 30))
    assert error is None
    assert old != new

    def check(name, fault):
        before, after, error, calls = attempt(name, fault)
        assert before == old
        assert after in (old, new)
        assert after == new or error is not None
        return calls

    for call, error in product(("fsync", "link", "replace", "rename", "mkdir"), (FULL, Fault())):
        for number in count(1):
            calls = check(f"{call} {type(error).__name__} {number}", failing(call, number, error))
            if calls[0] < number:
                break
    sizes = {len(data) for name, data in new.items() if old.get(name) != data}
    for size in {0, *(size // 2 for size in sizes), *(size - 1 for size in sizes)}:
        check(f"full at {size}", full_disk(size))
