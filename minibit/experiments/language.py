"""``minibit experiment language``: float and b1.58 language models of three sizes, over seeds.

Beside them the count models, a sample of the largest b1.58 model, and what a token costs in
decoding. Every run is a process of its own with one thread, two at a time, so that two CPUs are
used best.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from minibit.bench import interleaved
from minibit.bench.language import keep_freed_memory
from minibit.counting import kneser_ney, witten_bell
from minibit.datasets import load_text
from minibit.experiments.runs import folder_of_runs, in_own_process, keep, kept
from minibit.language import (
    LINEAR,
    SIZES,
    TrainedModel,
    evaluate_loss,
    recipe,
    shipped_text,
    train_language,
    write_text,
)
from minibit.transformer import (
    SHAPES,
    BitNetConfig,
    BitNetModel,
    Decoder,
    float_linear,
    init_params,
    pack_params,
)

__all__ = ["language", "one_run"]

POINTS = 40  # of a curve
CHECKS = 10  # validation losses of a run
LATE = 200  # batches whose mean is the late training loss
SAMPLE = 2000  # characters
BLOCKS = ("700M", "1.3B")  # of the paper: one block of each
DECODED = 32  # tokens of a timed text


def language(
    seeds: Sequence[int], say: Callable[[str], None], folder: str | Path | None = None
) -> list[dict[str, Any]]:
    """Train every size with float and with b1.58 weights once a seed, and measure the models.

    The smallest size is also trained without sub-norms.

    Parameters
    ----------
    seeds : sequence of int
    say : callable
        Gets a line after every run.
    folder : path, optional
        Keeps the runs (``SIZE_WEIGHTS_SEED.json`` and the model, ``.npz``; ``_plain`` is without
        sub-norms); those that are there already are not repeated. By default a scratch folder,
        which is removed.

    Returns
    -------
    list of dict
        Rows of kind ``run``, ``count``, ``sample`` and ``decode``.
    """
    wanted = [
        (size, weights, seed, True)
        for seed in seeds
        for size in reversed(SIZES)
        for weights in LINEAR
    ]
    wanted += [(next(iter(SIZES)), weights, seed, False) for seed in seeds for weights in LINEAR]

    def ready(run: tuple[str, str, int, bool]) -> dict[str, Any]:
        found = _in_own_process(*run, place)
        without = "" if found["sub_norms"] else " without sub-norms"
        say(
            f"{found['size']} {found['weights']}{without}, seed {found['seed']}: validation "
            f"{found['validation_loss']:.4f}, training {found['training_loss']:.4f}, "
            f"{found['seconds']:.0f} s"
        )
        return found

    with folder_of_runs(folder) as place:
        with ThreadPoolExecutor(2) as pool:
            rows = list(pool.map(ready, wanted))
        rows += count_rows() + sample_rows(place, seeds[0]) + decode_rows(place, seeds[0])
    return rows


def one_run(size: str, weights: Any, seed: int, sub_norms: bool, folder: Path) -> dict[str, Any]:
    """Train one model in this process; keep it and what it came to in the folder."""
    made = recipe(size, weights, sub_norms=sub_norms)
    vocabulary, train, validation = shipped_text()
    config, linear = made.config(len(vocabulary)), LINEAR[weights]
    checks: list[tuple[int, float]] = []
    spent = 0.0

    def progress(done: int, _: float, params: Any) -> None:
        nonlocal spent
        if done % max(1, made.steps // CHECKS) == 0 or done == made.steps:
            start = time.perf_counter()
            checks.append((done, evaluate_loss(config, params, validation, linear=linear)))
            spent += time.perf_counter() - start

    begin = time.process_time()
    trained = train_language(made, seed, progress=progress)
    cpu = time.process_time() - begin
    seconds = trained.seconds - spent
    name = _name(size, weights, seed, sub_norms)
    trained.save(folder / f"{name}.npz")
    tokens = made.steps * made.batch * made.context
    edges = np.linspace(0, made.steps, min(POINTS, made.steps) + 1).astype(int)
    found = {
        "kind": "run",
        "size": size,
        "weights": weights,
        "seed": seed,
        "sub_norms": sub_norms,
        "projections": made.projections,
        "parameters": int(sum(w.size for w in trained.params.values())),
        "hidden": made.hidden,
        "peak": made.peak,
        "steps": made.steps,
        "tokens": tokens,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "tokens_per_second": tokens / seconds,
        "validation_loss": checks[-1][1],
        "training_loss": trained.loss(train[: len(validation)]),
        "late_training_loss": float(trained.losses[-LATE:].mean()),
        "curve": {
            "steps": [int(end) for end in edges[1:]],
            "training": [round(float(trained.losses[a:b].mean()), 4) for a, b in pairwise(edges)],
            "checked": [step for step, _ in checks],
            "validation": [round(loss, 4) for _, loss in checks],
        },
    }
    keep(folder / f"{name}.json", found)
    return found


def _name(size: str, weights: str, seed: int, sub_norms: bool) -> str:
    """Name the files of a run."""
    return f"{size}_{weights}_{seed}" + ("" if sub_norms else "_plain")


def _in_own_process(
    size: str, weights: str, seed: int, sub_norms: bool, folder: Path
) -> dict[str, Any]:
    """Run `one_run` in a process with one thread, unless its file is there."""
    path = folder / f"{_name(size, weights, seed, sub_norms)}.json"
    if not path.exists():
        in_own_process(__name__, size, weights, str(seed), str(int(sub_norms)), str(folder))
    return kept(path)


def count_rows() -> list[dict[str, Any]]:
    """Losses of the count models on the held-out text, by characters of context."""
    text = load_text()
    cut = len(text) * 9 // 10
    rows = []
    for context in range(1, 6):
        for name, make in (("kneser_ney", kneser_ney), ("witten_bell", witten_bell)):
            loss = make(text[:cut], context).loss(text[cut:])
            rows.append(
                {"kind": "count", "model": name, "context": context, "validation_loss": loss}
            )
    return rows


def sample_rows(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Write with the largest b1.58 model; count the words that the text has, too."""
    trained = TrainedModel.load(folder / f"{list(SIZES)[-1]}_b1.58_{seed}.npz")
    model = trained.model()
    rows = []
    for temperature in (1.0, 0.8, 0.5):
        text = write_text(model, trained.vocabulary, "\n", SAMPLE, temperature=temperature)
        known, words = known_words(text)
        rows.append(
            {
                "kind": "sample",
                "size": list(SIZES)[-1],
                "weights": "b1.58",
                "temperature": temperature,
                "words": words,
                "known": known,
                "known_share": known / words,
                "text": text,
            }
        )
    return rows


def known_words(sample: str) -> tuple[int, int]:
    """Count the words of a sample that occur in the text, whatever their case, and all its words.

    A last word that the end cuts off counts like any other.
    """
    known = set(re.findall(r"[a-z]+", load_text().lower()))
    words = re.findall(r"[a-z]+", sample.lower())
    return sum(word in known for word in words), len(words)


def decode_rows(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Time one token after another: the trained models, and single blocks of the paper's sizes."""
    rows = []
    for size in SIZES:
        trained = TrainedModel.load(folder / f"{size}_b1.58_{seed}.npz")
        float32 = BitNetModel(trained.config, trained.params, float_linear)
        rows.append(_decode_row("model", size, trained.model(), float32))
    for size in BLOCKS:
        shape = SHAPES[size]
        config = BitNetConfig(
            83, shape.hidden, shape.intermediate, 1, shape.heads, shape.kv_heads, max_positions=64
        )
        params = init_params(config, 0)
        float32 = BitNetModel(config, params, float_linear)
        rows.append(_decode_row("block", size, BitNetModel(config, pack_params(params)), float32))
    return rows


def _decode_row(what: str, size: str, packed: BitNetModel, float32: BitNetModel) -> dict[str, Any]:
    """Interleave the two, as one slow moment of the machine should hit both."""
    count = min(DECODED, packed.config.max_positions)

    def passes(model: BitNetModel) -> Callable[[], object]:
        def go() -> None:
            decoder = Decoder(model, threads=1)
            for token in range(count):
                decoder.append([token % model.config.vocab_size])
                decoder.logits()

        return go

    candidates = {"packed": passes(packed), "float32": passes(float32)}
    times = interleaved(candidates, seconds=1.0, warmups=1)
    found: dict[str, Any] = {"kind": "decode", "what": what, "size": size}
    for name, model in (("packed", packed), ("float32", float32)):
        found[name] = {
            "seconds_per_token": float(np.median(times[name])) / count,
            "bytes": model.nbytes,
            "projection_bytes": sum(
                int(w.nbytes) for key, w in model.params.items() if key.endswith("_proj")
            ),
        }
    return found


if __name__ == "__main__":
    keep_freed_memory()
    _size, _weights, _seed, _sub_norms, _folder = sys.argv[1:]
    one_run(_size, _weights, int(_seed), bool(int(_sub_norms)), Path(_folder))
