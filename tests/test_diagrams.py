"""Boxes and arrows: where they lie, and what a drawing says."""

import numpy as np
import pytest

from minibit import diagrams, plots

mpl = pytest.importorskip("matplotlib")


@pytest.fixture
def axes():
    """A drawing that is closed afterwards."""
    from matplotlib import pyplot

    with plots.style():
        yield diagrams.drawing(6, 3, "A box and another")
    pyplot.close("all")


def test_a_drawing_is_measured_in_inches(axes):
    """Its limits are its size, both directions alike, and its title says what one sees."""
    assert (axes.get_xlim(), axes.get_ylim(), axes.get_aspect()) == ((0, 6), (0, 3), 1)
    assert tuple(axes.figure.get_size_inches()) == (6, 3)
    assert axes.get_title(loc="left") == "A box and another"


def test_the_edges_of_a_box_lie_around_its_middle(axes):
    """Half a width to the sides, half a height up and down."""
    place = diagrams.box(axes, 2, 1, "N", width=1, height=0.5)
    assert (place.left, place.right) == ((1.5, 1), (2.5, 1))
    assert (place.top, place.bottom) == ((2, 1.25), (2, 0.75))


def test_a_box_is_a_tint_and_a_line_of_its_colour_with_its_text(axes):
    """The tint lets light and dark pages through."""
    diagrams.box(axes, 2, 1, "norm", colour=plots.PALETTE[1], dashed=True)
    tint, line = axes.patches
    colour = mpl.colors.to_rgb(plots.PALETTE[1])
    np.testing.assert_allclose(tint.get_facecolor()[:3], colour)
    assert tint.get_facecolor()[3] < 0.5
    np.testing.assert_allclose(line.get_edgecolor(), (*colour, 1))
    assert line.get_linestyle() == "--"
    assert [text.get_text() for text in axes.texts] == ["norm"]


def test_an_arrow_has_the_colour_of_text_and_a_note_beside_its_middle(axes):
    """Unless it is given another colour."""
    with mpl.rc_context({"text.color": "#123456"}):
        diagrams.arrow(axes, (1, 1), (3, 1), "8 bits", offset=(0, 0.2))
    line, note = axes.texts
    assert note.get_position() == (2, 1.2)
    assert note.get_color() == "#123456"
    assert line.xy == (3, 1)
    np.testing.assert_allclose(line.arrow_patch.get_edgecolor()[:3], mpl.colors.to_rgb("#123456"))
