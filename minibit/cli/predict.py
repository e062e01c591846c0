"""``minibit predict``: the network of a log names a digit, from a picture or from the data.

A picture is laid out as MNIST has digits: light ink on a dark ground, fitted into 20 x 20 pixels,
the centre of mass in the middle of 28 x 28 (the playground does the same with strokes).
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from minibit import training
from minibit.base import read_whole
from minibit.cli.common import (
    OUT,
    BadUse,
    Output,
    bad_use,
    check_choice,
    command,
    default_logs,
    percent,
)
from minibit.cli.logs import SPLITS, Data, Step, data_of, open_log, samples_of
from minibit.plots import require
from minibit.steps import StepLog

SIDE, FITTED = 28, 20  # pixels of an image, and of the square that the ink is fitted into
LEAST_INK = 0.1  # of the strongest: below it lies the grain of the paper
MOST_PIXELS, MOST_BYTES = 1 << 26, 1 << 28  # of a picture
BAR = 30  # characters of a probability of 1
WIDEST = 80  # pixels of an image that is drawn


@command
def predict(
    out: Output,
    image: Annotated[
        Path | None, "[FILE.png]", "A picture of one digit, on a plain ground."
    ] = None,
    index: Annotated[
        int | None, typer.Option("--index", min=0, help="Instead: the image of this number.")
    ] = None,
    split: Annotated[str, "--split", "Of --index: test, validation or train."] = "test",
    log_path: Annotated[
        Path | None, "--log", f"Default: the last {OUT} here, else the one in the package."
    ] = None,
    step: Step = None,
    data: Data = None,
) -> dict[str, Any]:
    """Name a digit, and draw it with the probability of each answer."""
    if (image is None) == (index is None):
        raise BadUse("predict takes either FILE.png or --index N")
    check_choice("--split", split, SPLITS)
    log, name = _log(out, log_path, step)
    model, label = training.model_of(training.training_header(log)), None
    shape: tuple[int, ...] = SIDE, SIDE
    index = index or 0
    if image is not None:
        x = read_digit(image).reshape(-1)
        n_in = log.plan.shapes[0][1]
        if len(x) != n_in:
            raise BadUse(
                f"a picture is read as {SIDE} x {SIDE} pixels; this log takes {n_in} inputs"
            )
    else:
        dataset = data_of(log, data)
        samples, labels = samples_of(log, dataset, split)
        if index >= len(samples):
            has = f"{len(samples)}, the images of {split}"
            raise BadUse(f"--index must be below {has}; got {index}")
        x, label, shape = samples[index], int(labels[index]), dataset.sample_shape
    logits = np.asarray(model(log.replay(step), x[None]), np.float64)[0]  # (classes,)
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    answer = int(chances.argmax())
    _draw(out, x, shape, chances)
    out.say(f"It is a {answer}: {percent(chances[answer])}.", style="bold")
    if label is not None:
        out.say(f"Its label is {label}{'' if label == answer else ': the network errs'}.")
    fields = {"answer": answer, "probabilities": chances.tolist(), "label": label}
    return {"log": name, "steps": len(log) if step is None else step, **fields}


def _log(out: Output, path: Path | None, step: int | None) -> tuple[StepLog, str]:
    """Open the log that was named, else the last that `train` wrote here, else the package's."""
    names = default_logs()[:-1]
    if path is None and not names:
        log, name = training.shipped_log(), "in the package"
        if step is not None and step > len(log):
            raise BadUse(f"the log in the package has {len(log)} steps, so no weights after {step}")
        out.say(f"log: the one in the package ({len(log)} steps); there is no {OUT} here")
        return log, name
    path = path or names[-1]
    log = open_log(out, path, step)
    out.say(f"log: {path} ({len(log)} steps)")
    return log, str(path)


def read_digit(path: Path) -> NDArray[np.uint8]:
    """Read a picture of a digit, uint8 (28, 28) as MNIST has it; BadUse if it is none."""
    require()
    from matplotlib.image import imread

    with bad_use():
        head = read_whole(path, MOST_BYTES)[:24]
        if head[:8] != b"\x89PNG\r\n\x1a\n" or len(head) < 24:
            raise ValueError(f"{path} is no PNG picture")
        width, height = struct.unpack(">II", head[16:])
        if not 0 < width * height <= MOST_PIXELS:
            raise ValueError(
                f"{path} has {width} x {height} pixels; at most {MOST_PIXELS} are read"
            )
        try:
            pixels = np.asarray(imread(path), np.float64)  # (rows, columns[, channels])
        except Exception as error:  # whatever the reader raises
            raise ValueError(f"{path} is a damaged PNG picture: {error}") from error
        with bad_use(f"{path}: "):
            return as_mnist(ink_of(pixels))


def ink_of(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ink of a picture, (rows, columns), from 0, the ground, to 1, its strongest.

    `pixels` are grey or in channels, with or without opacity, from 0 to 1. The ground is what most
    of the border has; ink is what is darker than a light ground, or lighter than a dark one. A
    ValueError if there is none.
    """
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels  # (rows, columns, channels)
    channels = [*np.moveaxis(pixels, -1, 0)]
    opacity = channels.pop() if len(channels) in (2, 4) else np.ones(pixels.shape[:2])
    grey = opacity * np.mean(channels, axis=0) + 1 - opacity  # on white paper
    for picture in (grey, opacity):  # white ink on a transparent ground shows by its opacity alone
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        ground = float(np.median(border))
        ink = np.maximum(ground - picture if ground > 0.5 else picture - ground, 0)
        if ink.max() > LEAST_INK:
            ink /= ink.max()
            return np.where(ink < LEAST_INK, 0, ink)
    raise ValueError("the picture is blank")


def as_mnist(ink: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Lay out ink (rows, columns), 0 to 1, as MNIST has digits: uint8 (28, 28).

    Its box is scaled so that the longer side is 20 pixels. A pixel is the mean of the ink that it
    covers; the centre of mass lies in the middle.
    """
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = FITTED / max(box.shape)

    def paint(top: float, left: float) -> NDArray[np.float64]:
        down = _covered(box.shape[0], scale, top)  # (28, rows)
        return down @ box @ _covered(box.shape[1], scale, left).T  # (28, 28)

    top, left = ((SIDE - scale * length) / 2 for length in box.shape)
    first, middles = paint(top, left), np.arange(SIDE) + 0.5
    centre = first.sum(axis=1) @ middles, first.sum(axis=0) @ middles
    top, left = (a + SIDE / 2 - c / first.sum() for a, c in zip((top, left), centre, strict=True))
    return np.rint(255 * paint(top, left)).astype(np.uint8)


def _covered(count: int, scale: float, start: float) -> NDArray[np.float64]:
    """Return the length of each pixel, (28, count), that each of `count` scaled pixels covers."""
    edges, pixels = start + scale * np.arange(count + 1), np.arange(SIDE)[:, None]
    lengths = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return np.asarray(np.maximum(lengths, 0))


def _draw(
    out: Output, x: NDArray[np.uint8], shape: tuple[int, ...], chances: NDArray[np.float64]
) -> None:
    """Print the image, two rows of pixels per line, and beside it a bar for each answer."""
    shades, block = " ░▒▓█", "█"
    try:
        shades.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        shades, block = " .+#@", "#"
    lines: list[str] = []
    if len(shape) == 2 and shape[1] <= WIDEST:
        rows = x.reshape(shape).astype(np.float64)
        pairs = [rows[i : i + 2].mean(axis=0) for i in range(0, shape[0], 2)]
        lines = ["".join(shades[round(4 * v / 255)] for v in row) for row in pairs]
    bars = [f"{i}  {block * round(BAR * p):<{BAR}} {percent(p):>7}" for i, p in enumerate(chances)]
    top = max(0, (len(lines) - len(bars)) // 2)
    width = max(map(len, lines), default=0)
    for i in range(max(len(lines), len(bars))):
        line = lines[i] if i < len(lines) else ""
        bar = bars[i - top] if 0 <= i - top < len(bars) else ""
        out.say(f"{line:<{width}}  {bar}".rstrip())
