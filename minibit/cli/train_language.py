"""``minibit train-language``: a small ternary language model of a text of one's own.

It learns characters: the recipe is that of chapter 10. The last tenth of the text is held out.
"""

from __future__ import annotations

import re
import shlex
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from minibit import plots
from minibit.base import whole_path
from minibit.bench import keep_freed_memory
from minibit.checkpoint import save_bitnet
from minibit.cli.common import (
    BadUse,
    Force,
    Output,
    Plot,
    bad_use,
    check_choice,
    check_plot,
    command,
    kilobytes,
    this_command,
)
from minibit.cli.convert import check_target, extras
from minibit.cli.progress import RunProgress, clock
from minibit.cli.texts import read_text
from minibit.language import (
    LINEAR,
    SIZES,
    TrainedModel,
    Vocabulary,
    evaluate_loss,
    recipe,
    train_params,
)
from minibit.transformer import init_params

LEAST = 650  # characters: the held-out tenth of them fills a row
HELD_OUT = 40_000  # characters of the held-out text that are measured, at most
GLANCE = 8_192  # of them, along the way
CHECKS = 10  # looks at the held-out text along the way
PARTS = ((0, "loss {loss}"), (58, "held-out {held_out}"), (30, "{left} left"))


@command
def train_language(
    out: Output,
    path: Annotated[Path, "TEXT", f"A file of UTF-8 text, {LEAST} characters or more."],
    size: Annotated[str, f"Ternary weights: {', '.join(SIZES)}."] = "221k",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Batches of 1,024 characters; default 1953.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first weights and the batches.")] = 0,
    out_path: Annotated[Path, "--out", "Directory of the model."] = Path("language-model"),
    force: Force = False,
    threads: Annotated[
        int, typer.Option(min=1, help="Parts of a batch side by side; the rounding depends on it.")
    ] = 1,
    plot: Plot = None,
) -> dict[str, Any]:
    """Train a small ternary language model on a text, and keep it as a model directory.

    Ctrl-C ends the training and keeps what it has learnt so far.
    """
    check_choice("--size", size, SIZES)
    if seed >= 2**64:
        raise BadUse(f"--seed must be below 2**64, got {seed}")
    check_target(out_path, False, force, "--out")
    check_plot(plot)
    text = training_text(path)
    settings = recipe(size, "b1.58")
    if steps is not None:
        settings = recipe(size, "b1.58", steps=steps, warmup=min(settings.warmup, steps // 10))
    keep_freed_memory()
    with RunProgress("reading the text, the first step", PARTS) as line:
        run = _Run(line, text, settings, seed)
        stopped = run.train(threads)
    if not run.losses:
        raise RuntimeError("stopped before the first step; nothing was written")
    trained = run.trained()
    held_out = trained.loss(run.held_out)
    run.checks[len(run.losses)] = held_out
    kept = extras(out_path) if force else []
    with whole_path(out_path, overwrite=force) as part:
        save_bitnet(trained.model(), part)
        (part / "tokenizer.json").write_text(trained.vocabulary.tokenizer(), encoding="utf-8")
        size_of = sum(file.stat().st_size for file in part.iterdir())
        for file in kept:
            shutil.copy2(file, part / file.name, follow_symlinks=False)
    if plot is not None:
        plots.save(plots.losses_figure(run.losses, run.checks, title=f"{path.name}, {size}"), plot)
    late = float(np.mean(run.losses[-100:]))
    vocabulary = len(trained.vocabulary)
    if stopped:
        out.say(f"Stopped after {len(run.losses)} of {settings.steps} steps.", style="bold")
    out.facts(
        {
            "held-out loss": f"{held_out:.3f} nats per character",
            "of a guess": f"{np.log(vocabulary):.3f}, the logarithm of {vocabulary}",
            "training loss": f"{late:.3f}, mean of the last {min(100, len(run.losses))} batches",
            "text": f"{len(text):,} characters, {vocabulary} different; the last tenth is held out",
            "model": f"{settings.projections:,} ternary weights, {kilobytes(size_of)}",
            "steps": f"{len(run.losses)} in {run.seconds:.1f} s",
        }
    )
    if plot is not None:
        out.say(f"The losses are drawn in {plot}.")
    prompt = next((word for word in text.split() if word.isprintable()), text[:1])[:40]
    words = f"{shlex.quote(str(out_path))} --prompt {shlex.quote(prompt)}"
    out.say(f"Write with: {this_command()} generate {words}")
    out.status = int(stopped)
    return {
        "out": str(out_path),
        "held_out_loss": held_out,
        "training_loss": late,
        "steps": len(run.losses),
        "interrupted": stopped,
        "characters": len(text),
        "vocabulary": vocabulary,
        "size": size,
        "seed": seed,
        "bytes": size_of,
        "seconds": run.seconds,
    }


class _Run:
    """A training run: what it has come to after each step, shown and remembered."""

    def __init__(self, line: RunProgress, text: str, settings: Any, seed: int) -> None:
        self.vocabulary = Vocabulary.of(text)
        tokens = self.vocabulary.encode(text)
        cut = len(tokens) * 9 // 10
        self.tokens, self.held_out = tokens[:cut], tokens[cut : cut + HELD_OUT]
        self.settings, self.seed, self._line = settings, seed, line
        self.losses: list[float] = []
        self.checks: dict[int, float] = {}  # steps to loss on the held-out text
        self.params: Any = None
        self._begin = self._last = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds from the start to the last step."""
        return self._last - self._begin

    def train(self, threads: int) -> bool:
        """Take all steps; return whether Ctrl-C has ended them."""
        start = init_params(self.settings.config(len(self.vocabulary)), self.seed)
        try:
            train_params(
                self.settings, start, self.tokens, self.seed, threads=threads, progress=self._took
            )
        except KeyboardInterrupt:
            return True
        return False

    def trained(self) -> TrainedModel:
        """Return the model after the last step."""
        losses = np.array(self.losses, np.float32)
        return TrainedModel(
            self.settings, self.seed, self.vocabulary, self.params, losses, self.seconds
        )

    def _took(self, step: int, loss: float, params: Any) -> None:
        """Remember and show a step; every now and then, look at the held-out text."""
        self.params, steps = params, self.settings.steps
        self.losses.append(loss)
        if step % max(1, steps // CHECKS) == 0 and step < steps:
            config = self.settings.config(len(self.vocabulary))
            glance = self.held_out[:GLANCE]
            linear = LINEAR[self.settings.weights]
            self.checks[step] = evaluate_loss(config, params, glance, linear=linear)
        self._last = time.perf_counter()
        seen = [*self.checks.values()]
        fields = {
            "loss": f"{float(np.mean(self.losses[-20:])):.3f}",
            "held_out": f"{seen[-1]:.3f}" if seen else "?",
            "left": clock(self.seconds / step * (steps - step)),
        }
        self._line.report(step, steps, fields)


def training_text(path: Path) -> str:
    """Read a text to train on; BadUse says of a file that is none what is wrong with it."""
    if not path.is_file():
        raise BadUse(f"{path} is a folder" if path.is_dir() else f"there is no text {path}")
    with bad_use():
        text = read_text(path)
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if control := re.search(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]", text):
        raise BadUse(f"{path} is no text: its character {control.start()} is {control[0]!r}")
    if len(text) < LEAST:
        raise BadUse(f"{path} has {len(text)} characters; a model needs at least {LEAST}")
    return text
