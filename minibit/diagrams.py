"""Boxes and arrows: the drawings of chapters, in the colours of `minibit.plots`.

A drawing is an axes without ticks whose unit is an inch. Text and lines have the colours that
matplotlib has for text; a box is tinted with its colour, so that it reads on light and dark pages
and in grey.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from minibit.plots import PALETTE, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Box", "arrow", "box", "drawing"]

Point = tuple[float, float]


class Box(NamedTuple):
    """Where a box lies: its middle and its size, in inches."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> Point:
        """The middle of its left edge."""
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> Point:
        """The middle of its right edge."""
        return self.x + self.width / 2, self.y

    @property
    def top(self) -> Point:
        """The middle of its upper edge."""
        return self.x, self.y + self.height / 2

    @property
    def bottom(self) -> Point:
        """The middle of its lower edge."""
        return self.x, self.y - self.height / 2


def drawing(width: float, height: float, title: str = "") -> Axes:
    """Open a figure of pyplot for a drawing of `width` by `height` inches; (0, 0) is lower left.

    `title` says in a sentence what one sees: the site has it as the text for those who don't see.
    """
    require()
    from matplotlib import pyplot

    axes: Axes = pyplot.figure(figsize=(width, height)).add_subplot()
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.set_axis_off()
    if title:
        axes.set_title(title, loc="left")
    return axes


def box(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    width: float = 1.2,
    height: float = 0.42,
    colour: str = PALETTE[0],
    dashed: bool = False,
) -> Box:
    """Draw a box around (x, y) with a text in it, and return where it lies."""
    from matplotlib.patches import FancyBboxPatch

    place = Box(x, y, width, height)
    corner, shape = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.07"
    style = "--" if dashed else "-"
    for alpha, face in ((0.2, True), (1.0, False)):  # the tint, then the line around it
        axes.add_patch(
            FancyBboxPatch(
                corner,
                width,
                height,
                boxstyle=shape,
                facecolor=colour if face else "none",
                edgecolor="none" if face else colour,
                alpha=alpha,
                linestyle=style,
                linewidth=1.3,
            )
        )
    axes.text(x, y, text, ha="center", va="center", fontsize=9)
    return place


def arrow(
    axes: Axes,
    start: Point,
    end: Point,
    text: str = "",
    *,
    colour: str | None = None,
    bend: float = 0.0,
    dashed: bool = False,
    offset: Point = (0.0, 0.1),
) -> None:
    """Draw an arrow from `start` to `end`, with a text beside its middle at `offset`.

    `bend` is how far the arrow's middle lies off the straight line, as a share of its length.
    """
    from matplotlib import rcParams

    ink = colour or rcParams["text.color"]
    look = {"arrowstyle": "-|>", "color": ink, "linewidth": 1.3, "shrinkA": 1, "shrinkB": 1}
    look |= {"linestyle": "--" if dashed else "-", "connectionstyle": f"arc3,rad={bend}"}
    axes.annotate("", end, start, arrowprops=look)
    if text:
        x, y = (start[0] + end[0]) / 2 + offset[0], (start[1] + end[1]) / 2 + offset[1]
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color=ink)
