"""``minibit experiment language``: float and b1.58 language models of three sizes, over seeds.

Beside them the count models, a sample of the largest b1.58 model, and what a token costs in
decoding. The smallest size is also trained without sub-norms.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from minibit.bench import medians
from minibit.counting import kneser_ney, witten_bell
from minibit.datasets import load_text
from minibit.experiments.runs import Row, Runs
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


def language(seeds: Sequence[int], runs: Runs) -> list[Row]:
    """Train every size with float and with b1.58 weights once per seed, and measure the models.

    Rows are of kind ``run``, ``count``, ``sample`` and ``decode``. The models are kept, too.
    """
    settings = [
        {"size": size, "weights": weights, "seed": seed, "sub_norms": sub_norms}
        for sub_norms, sizes in ((True, list(reversed(SIZES))), (False, list(SIZES)[:1]))
        for seed in seeds
        for size in sizes
        for weights in LINEAR
    ]
    line = (
        "{size} {weights}, seed {seed}, sub-norms {sub_norms}: validation {validation_loss:.4f}, "
        "training {training_loss:.4f}, {seconds:.0f} s"
    )
    rows = runs.rows(one_run, settings, line)
    models = {s: TrainedModel.load(runs.folder / f"{s}_b1.58_{seeds[0]}.npz") for s in SIZES}
    size, largest = list(models.items())[-1]
    return [*rows, *count_rows(), *sample_rows(size, largest), *decode_rows(models)]


def one_run(folder: Path, size: str, weights: Any, seed: int, sub_norms: bool) -> Row:
    """Train one model and keep it."""
    settings = recipe(size, weights, sub_norms=sub_norms)
    vocabulary, train, validation = shipped_text()
    config, linear, steps = settings.config(len(vocabulary)), LINEAR[weights], settings.steps
    checks: list[tuple[int, float]] = []
    spent = 0.0

    def progress(done: int, _: float, params: Any) -> None:
        nonlocal spent
        if done % max(1, steps // CHECKS) == 0 or done == steps:
            start = time.perf_counter()
            checks.append((done, evaluate_loss(config, params, validation, linear=linear)))
            spent += time.perf_counter() - start

    begin = time.process_time()
    trained = train_language(settings, seed, progress=progress)
    cpu, seconds = time.process_time() - begin, trained.seconds - spent
    plain = "" if sub_norms else "_plain"
    trained.save(folder / f"{size}_{weights}_{seed}{plain}.npz")
    tokens = steps * settings.batch * settings.context
    edges = np.linspace(0, steps, min(POINTS, steps) + 1).astype(int)
    curve = {
        "steps": [int(end) for end in edges[1:]],
        "training": [round(float(trained.losses[a:b].mean()), 4) for a, b in pairwise(edges)],
        "checked": [step for step, _ in checks],
        "validation": [round(loss, 4) for _, loss in checks],
    }
    return {
        **{"kind": "run", "size": size, "weights": weights, "seed": seed, "sub_norms": sub_norms},
        "projections": settings.projections,
        "parameters": int(sum(w.size for w in trained.params.values())),
        **{"hidden": settings.hidden, "peak": settings.peak, "steps": steps, "tokens": tokens},
        **{"seconds": seconds, "cpu_seconds": cpu, "tokens_per_second": tokens / seconds},
        "validation_loss": checks[-1][1],
        "training_loss": trained.loss(train[: len(validation)]),
        "late_training_loss": float(trained.losses[-LATE:].mean()),
        "curve": curve,
    }


def count_rows() -> list[Row]:
    """Losses of the count models on the held-out text, by characters of context."""
    text = load_text()
    train, rest = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    return [
        {
            **{"kind": "count", "model": model.__name__, "context": context},
            "validation_loss": model(train, context).loss(rest),
        }
        for context in range(1, 6)
        for model in (kneser_ney, witten_bell)
    ]


def sample_rows(size: str, trained: TrainedModel) -> list[Row]:
    """Write with a model; count the words that the text has, too."""
    model, about = trained.model(), {"kind": "sample", "size": size, "weights": "b1.58"}
    rows = []
    for temperature in (1.0, 0.8, 0.5):
        text = write_text(model, trained.vocabulary, "\n", SAMPLE, temperature=temperature)
        known, words = known_words(text)
        counts = {"words": words, "known": known, "known_share": known / words}
        rows.append({**about, "temperature": temperature, **counts, "text": text})
    return rows


def known_words(sample: str) -> tuple[int, int]:
    """Count a sample's words that occur in the text, whatever their case, and all its words."""
    known = set(re.findall(r"[a-z]+", load_text().lower()))
    words = re.findall(r"[a-z]+", sample.lower())
    return sum(word in known for word in words), len(words)


def decode_rows(models: dict[str, TrainedModel]) -> list[Row]:
    """Time one token after another: the trained models, and single blocks of the paper's sizes."""
    rows = [_decode_row("model", size, each.config, each.params) for size, each in models.items()]
    for size in BLOCKS:
        shape = SHAPES[size]
        widths = (83, shape.hidden, shape.intermediate, 1, shape.heads, shape.kv_heads)
        config = BitNetConfig(*widths, max_positions=64)
        rows.append(_decode_row("block", size, config, init_params(config, 0)))
    return rows


def _decode_row(kind: str, size: str, config: BitNetConfig, params: dict[str, Any]) -> Row:
    """Interleave packed and float32 weights, as a slow moment of the machine should hit both."""
    count = min(DECODED, config.max_positions)

    def decode(model: BitNetModel) -> None:
        decoder = Decoder(model, threads=1)
        for token in range(count):
            decoder.append([token % config.vocab_size])
            decoder.logits()

    models = {
        "packed": BitNetModel(config, pack_params(params)),
        "float32": BitNetModel(config, dict(params), float_linear),
    }
    ways = {name: partial(decode, model) for name, model in models.items()}
    times = medians(ways, seconds=1.0, warmups=1)
    row: Row = {"kind": "decode", "what": kind, "size": size}
    for name, model in models.items():
        projections = [w for key, w in model.params.items() if key.endswith("_proj")]
        row[name] = {
            "seconds_per_token": times[name] / count,
            "bytes": model.nbytes,
            "projection_bytes": sum(int(w.nbytes) for w in projections),
        }
    return row
