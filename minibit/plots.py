"""Pictures: one palette and one style for chapters, the site and ``--plot``.

matplotlib is imported inside the functions, never with the module. The ``*_figure`` functions draw
without pyplot: they need no display, open no window and are safe in any thread.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from minibit.base import install, open_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PALETTE",
    "Style",
    "changes_figure",
    "codes_figure",
    "figure",
    "history_figure",
    "label_axes",
    "losses_figure",
    "require",
    "roofline_figure",
    "save",
    "style",
    "training_figure",
]

# Okabe and Ito (2008): told apart with any of the common kinds of colour blindness. Yellow is left
# out, as it is too light for a line on white.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_MARKERS = ["o", "s", "^", "D", "v", "P", "X"]  # beside the colour: print in grey stays readable

_SETTINGS: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "figure.facecolor": "white",  # stays readable on a dark page
    "figure.figsize": (6.4, 3.6),
    "font.size": 10,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "image.cmap": "cividis",
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",  # the same picture on every machine, whatever its fonts
    "svg.hashsalt": "minibit",  # the same bytes for the same picture
}


class Style:
    """The settings in force since `style` was called; as a context, they end with its block."""

    def __init__(self) -> None:
        import matplotlib as mpl
        from matplotlib.rcsetup import cycler

        self._before = {key: mpl.rcParams[key] for key in (*_SETTINGS, "axes.prop_cycle")}
        mpl.rcParams.update(_SETTINGS)
        mpl.rcParams["axes.prop_cycle"] = cycler("color", PALETTE)

    def __enter__(self) -> Style:
        """Return the style, which is in force already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put back what was there before."""
        import matplotlib as mpl

        mpl.rcParams.update(self._before)


def style(*, show: bool = False) -> Style:
    """Set minibit's look for matplotlib: ``style()`` from now on, ``with style():`` for a block.

    With `show`, a script that ends shows the figures of pyplot that are open: in windows where
    there is a screen, else as SVG files in the current folder, whose names it prints
    (``ch04_absmean_1.svg``). A notebook shows its figures itself. Without matplotlib, a
    ModuleNotFoundError names the extra that brings it.

    Examples
    --------
    >>> import matplotlib as mpl
    >>> with style():
    ...     mpl.rcParams["axes.grid"]
    True
    """
    require()
    script = Path(getattr(sys.modules["__main__"], "__file__", ""))  # a notebook has none
    if show and script.is_file():
        import_module("matplotlib.pyplot")  # first, so that it closes all figures after our turn
        atexit.unregister(_show_figures)
        atexit.register(_show_figures, script.stem)
    return Style()


def _show_figures(stem: str) -> None:
    """Show the figures that a script left open, or save them under its name."""
    from matplotlib import pyplot

    for number in pyplot.get_fignums():
        if pyplot.figure(number).canvas.required_interactive_framework:
            pyplot.show()
            return
        print(save(pyplot.figure(number), f"{stem}_{number}.svg"))


def figure(rows: int = 1, columns: int = 1, *, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """Make a figure in minibit's look, known to no window and no pyplot, and its panels row by row.

    A row is `height` inches high; a column is 4.8 inches wide, a single one 6.4.
    """
    with style():
        from matplotlib.figure import Figure

        width = 6.4 if columns == 1 else 4.8 * columns
        picture = Figure(figsize=(width, height * rows), layout="constrained")
        panels = picture.subplots(rows, columns, squeeze=False)  # (rows, columns)
    return picture, list(panels.flat)


def label_axes(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Name both axes, with units in the names, and the panel; a legend where lines have names.

    An axis of steps is marked at whole numbers.
    """
    if x == "step":
        axes.locator_params(axis="x", integer=True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, loc="left")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)


def training_figure(
    steps: ArrayLike,
    loss: ArrayLike,
    measured_at: ArrayLike,
    accuracies: Mapping[str, Sequence[float]],
    *,
    title: str,
) -> Figure:
    """Draw a training run: the loss on the left, accuracies, as `history_figure`, on the right.

    `loss` (points,) is that of the batch (nats) at some `steps`, NaN where there was none.
    """
    picture, (left, right) = figure(1, 2)
    left.plot(np.asarray(steps), np.asarray(loss, float), color=PALETTE[2])
    label_axes(left, "step", "loss of the batch (nats)", title)
    _draw_accuracies(right, measured_at, accuracies)
    return picture


def losses_figure(losses: ArrayLike, held_out: Mapping[int, float], *, title: str) -> Figure:
    """Draw the training of a language model, in nats per character.

    `losses` (steps,) are those of the batches, drawn as means of the last twenty; `held_out` maps
    numbers of steps to the loss on held-out text.
    """
    picture, (axes,) = figure()
    values = np.asarray(losses, float)  # (steps,)
    sums, steps = np.concatenate([[0], np.cumsum(values)]), np.arange(1, len(values) + 1)
    first = np.maximum(steps - 20, 0)
    means = (sums[steps] - sums[first]) / (steps - first)
    axes.plot(steps, means, color=PALETTE[2], label="batches, mean of 20")
    axes.plot([*held_out], [*held_out.values()], label="held-out text", **_look(0))
    label_axes(axes, "step", "loss (nats per character)", title)
    return picture


def history_figure(
    steps: ArrayLike, accuracies: Mapping[str, Sequence[float]], *, title: str
) -> Figure:
    """Draw accuracies along a run, one line for each set of data.

    `steps` (points,) are those that the weights had taken; `accuracies` maps a name of the data
    (``"validation"``, ``"test"``) to shares from 0 to 1.
    """
    picture, (axes,) = figure()
    _draw_accuracies(axes, steps, accuracies, title)
    return picture


def changes_figure(
    steps: int, first: int, changes: Sequence[tuple[int, int, int]], *, name: str
) -> Figure:
    """Draw a whole number along a run of so many `steps`: `first`, then (step, before, after)."""
    picture, (axes,) = figure()
    at = [0, *(step + 1 for step, _, _ in changes), steps]
    values = [first, *(after for _, _, after in changes)]
    axes.step(at, [*values, values[-1]], where="post", color=PALETTE[0])
    axes.set_yticks(range(min(values), max(values) + 1))
    label_axes(axes, "step", name)
    return picture


def codes_figure(codes: ArrayLike, *, title: str) -> Figure:
    """Draw a matrix of codes as pixels, rows from the top: -1, 0, 1, and 2 where there is one."""
    picture, (axes,) = figure(height=5.0)
    matrix = np.asarray(codes)
    most = max(1, int(matrix.max(initial=0)))
    image = axes.imshow(matrix, vmin=-1, vmax=most, aspect="auto", cmap="cividis")
    axes.grid(visible=False)
    picture.colorbar(image, ticks=sorted({-1, 0, 1, *np.unique(matrix).tolist()}), label="code")
    label_axes(axes, "column", "row", title)
    return picture


def roofline_figure(
    points: Mapping[str, tuple[float, float]],
    *,
    bandwidth: float | None = None,
    peak: float | None = None,
    title: str,
) -> Figure:
    """Draw products on a roofline: no faster than memory brings weights, nor than the arithmetic.

    `points` maps a name to (multiplications per byte of weights, multiplications per second). The
    slope is `bandwidth`, bytes per second of a plain read; the roof `peak`, products per second.
    """
    picture, (axes,) = figure(height=4.2)
    intensities = [intensity for intensity, _ in points.values()] or [1.0]
    low, high = min(intensities), max(intensities)
    x = np.geomspace(low / 2, high * 2, 50)
    roof = np.full(50, np.inf)
    if bandwidth is not None:
        roof = np.minimum(roof, x * bandwidth)
    if peak is not None:
        roof = np.minimum(roof, peak)
    if np.isfinite(roof).all():
        axes.loglog(x, roof / 1e9, color="0.4", label="plain read, then the peak of dot products")
    for number, (name, (intensity, speed)) in enumerate(points.items()):
        axes.loglog(intensity, speed / 1e9, ls="", label=name, **_look(number))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    label_axes(axes, "multiplications per byte of weights", "multiplications per ns", title)
    return picture


def _draw_accuracies(
    axes: Axes, steps: ArrayLike, accuracies: Mapping[str, Sequence[float]], title: str = ""
) -> None:
    """Draw one line in percent for each set of data."""
    for number, (name, shares) in enumerate(accuracies.items()):
        percents = 100 * np.asarray(shares, float)
        axes.plot(np.asarray(steps), percents, label=name, **_look(number))
    label_axes(axes, "step", "accuracy (%)", title)


def _look(number: int) -> dict[str, Any]:
    """Return what tells the lines or points of a panel apart: colour and marker."""
    return {"color": PALETTE[number % 7], "marker": _MARKERS[number % 7]}


def save(picture: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure to a file, in the format that its name ends with, and return the path.

    A name that does not end in ``.svg``, ``.png`` or ``.pdf`` is a ValueError, and nothing is
    written. An SVG holds no date: same picture, same bytes.
    """
    path = Path(path)
    require(path)
    with style():
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        with open_whole(path, overwrite=True) as file:
            picture.savefig(file, format=path.suffix[1:].lower(), metadata=metadata)
    return path


def require(path: Path | None = None) -> None:
    """Raise unless matplotlib is there, and `path`, where given, ends in a format of `save`."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"pictures need matplotlib: {install('app')}", name="matplotlib"
        ) from error
    if path is not None and path.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise ValueError(f"a plot is written as .svg, .png or .pdf, got {str(path)!r}")
