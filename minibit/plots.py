"""Pictures: one palette and one style for chapters, the site and ``--plot``.

matplotlib is imported inside the functions, never with the module. `style` sets how everything
looks; the ``*_figure`` functions draw whole figures without pyplot, so they need no display, open
no window and are safe in any thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from minibit.base import open_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PALETTE",
    "Style",
    "figure",
    "history_figure",
    "label_axes",
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


def style() -> Style:
    """Set minibit's look for matplotlib: ``style()`` from now on, ``with style():`` for a block.

    Returns
    -------
    Style
        A context manager that puts the former settings back at the end of its block.

    Raises
    ------
    ModuleNotFoundError
        Without matplotlib; the message names the extra that brings it.

    Examples
    --------
    >>> import matplotlib as mpl
    >>> with style():
    ...     mpl.rcParams["axes.grid"]
    True
    """
    require()
    return Style()


def figure(rows: int = 1, columns: int = 1, *, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """Make a figure in minibit's look, known to no window and no pyplot.

    Parameters
    ----------
    rows, columns : int
        Panels.
    height : float
        Inches per row; a column is 4.8 inches wide, a single one 6.4.

    Returns
    -------
    figure : matplotlib Figure
    axes : list of matplotlib Axes
        Row by row.
    """
    with style():
        from matplotlib.figure import Figure

        width = 6.4 if columns == 1 else 4.8 * columns
        made = Figure(figsize=(width, height * rows), layout="constrained")
        panels = made.subplots(rows, columns, squeeze=False)  # (rows, columns)
    return made, list(panels.flat)


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
    """Draw a training run: the loss on the left, accuracies on the right.

    Parameters
    ----------
    steps, loss : arrays, shape (points,)
        The loss of the batch (nats) at some steps; NaN where there was none.
    measured_at, accuracies
        As `history_figure`.
    title : str
        What ran.

    Returns
    -------
    matplotlib Figure
    """
    made, (left, right) = figure(1, 2)
    left.plot(np.asarray(steps), np.asarray(loss, float), color=PALETTE[2])
    label_axes(left, "step", "loss of the batch (nats)", title)
    _draw_accuracies(right, measured_at, accuracies)
    label_axes(right, "step", "accuracy (%)")
    return made


def history_figure(
    steps: ArrayLike, accuracies: Mapping[str, Sequence[float]], *, title: str
) -> Figure:
    """Draw accuracies along a run, one line for each set of data.

    Parameters
    ----------
    steps : array, shape (points,)
        Steps that the weights had taken.
    accuracies : dict
        Name of the data (``"validation"``, ``"test"``) to accuracies, shares from 0 to 1.
    title : str
        Which log.

    Returns
    -------
    matplotlib Figure
    """
    made, (axes,) = figure()
    _draw_accuracies(axes, steps, accuracies)
    label_axes(axes, "step", "accuracy (%)", title)
    return made


def roofline_figure(
    points: Mapping[str, tuple[float, float]],
    *,
    bandwidth: float | None = None,
    peak: float | None = None,
    title: str,
) -> Figure:
    """Draw products on a roofline: no faster than memory brings weights, nor than the arithmetic.

    Parameters
    ----------
    points : dict
        Name to (multiplications a byte of weights, multiplications a second).
    bandwidth : float, optional
        Bytes a second of a plain read, the slope.
    peak : float, optional
        Multiplications a second at best, the roof.
    title : str
        What was measured.

    Returns
    -------
    matplotlib Figure
    """
    made, (axes,) = figure(height=4.2)
    found = np.array(list(points.values()), float).reshape(-1, 2)  # (points, 2)
    low, high = (found[:, 0].min(), found[:, 0].max()) if len(found) else (1.0, 1.0)
    x = np.geomspace(low / 2, high * 2, 50)
    roof = np.full(50, np.inf)
    if bandwidth is not None:
        roof = np.minimum(roof, x * bandwidth)
    if peak is not None:
        roof = np.minimum(roof, peak)
    if np.isfinite(roof).all():
        axes.loglog(x, roof / 1e9, color="0.4", label="plain read, then the peak of dot products")
    for number, (name, (intensity, speed)) in enumerate(points.items()):
        color = PALETTE[number % len(PALETTE)]
        axes.loglog(intensity, speed / 1e9, "os^Dv<>"[number % 7], color=color, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    label_axes(axes, "multiplications a byte of weights", "multiplications a ns", title)
    return made


def _draw_accuracies(
    axes: Axes, steps: ArrayLike, accuracies: Mapping[str, Sequence[float]]
) -> None:
    """Draw one line in percent for each set of data, told apart by colour and by marker."""
    for number, (name, shares) in enumerate(accuracies.items()):
        axes.plot(
            np.asarray(steps),
            100 * np.asarray(shares, float),
            color=PALETTE[number % len(PALETTE)],
            marker=_MARKERS[number % len(_MARKERS)],
            label=name,
        )


def save(made: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure to a file, in the format that its name ends with.

    Parameters
    ----------
    made : matplotlib Figure
    path : path
        Ends in ``.svg``, ``.png`` or ``.pdf``. An SVG holds no date: same picture, same bytes.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If the name ends otherwise; nothing is written.
    """
    path = Path(path)
    require(path)
    with style():
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        with open_whole(path, overwrite=True) as file:
            made.savefig(file, format=path.suffix[1:].lower(), metadata=metadata)
    return path


def require(path: Path | None = None) -> None:
    """Raise unless matplotlib is there, and `path`, where given, ends in a format of `save`.

    Raises
    ------
    ModuleNotFoundError
        The message names the extra that brings matplotlib.
    ValueError
        The message lists the formats.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pictures need matplotlib: pip install 'minibit[app]'", name="matplotlib"
        ) from error
    if path is not None and path.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise ValueError(f"a plot is written as .svg, .png or .pdf, got {str(path)!r}")
