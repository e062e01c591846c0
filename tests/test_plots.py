"""Pictures: one look, readable, the same bytes every time."""

import colorsys
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from minibit import plots

mpl = pytest.importorskip("matplotlib")


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour (WCAG 2)."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_every_colour_stands_out_from_white_and_from_the_others():
    """At least 2:1 in contrast with the page; all different."""
    assert len(set(plots.PALETTE)) == len(plots.PALETTE) >= 6
    for colour in plots.PALETTE:
        assert 1.05 / (luminance(colour) + 0.05) > 2, colour


def in_the_dark(colour: str) -> str:
    """What a dark page of the site makes of a colour: its filter, by the matrices of CSS."""
    css = (Path(__file__).resolve().parents[1] / "docs/assets/site.css").read_text("utf-8")
    rule = re.search(r"img\.figure \{ filter: invert\((.*?)\) hue-rotate\(180deg\); \}", css)
    amount = float(rule[1])
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    turned = 2 * np.array([0.213, 0.715, 0.072]) - np.eye(3)  # by half a circle: luminance stays
    rgb = np.clip(turned @ (amount + rgb * (1 - 2 * amount)), 0, 1)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in rgb)


def test_figures_stand_out_in_the_dark_and_keep_their_hues():
    """White becomes the dark page's background; colours stand out by 2:1, hues stay."""
    paper = luminance(in_the_dark("#ffffff")) + 0.05
    assert abs(paper - luminance("#1e2429") - 0.05) < 0.01, "the background of slate with hue 210"
    assert (luminance(in_the_dark("#000000")) + 0.05) / paper > 10
    for colour in plots.PALETTE:
        drawn = in_the_dark(colour)
        assert (luminance(drawn) + 0.05) / paper > 2, (colour, drawn)
        if colour == "#000000":
            continue
        hues = [
            colorsys.rgb_to_hsv(*(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)))[0]
            for c in (colour, drawn)
        ]
        apart = abs(hues[0] - hues[1])
        assert min(apart, 1 - apart) < 30 / 360, (colour, drawn)


def test_a_style_as_a_context_leaves_everything_as_it_was():
    """Settings hold inside the block and are put back after it."""
    before = dict(mpl.rcParams)
    with plots.style():
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == plots.PALETTE
        assert mpl.rcParams["axes.grid"]
    assert dict(mpl.rcParams) == before


def test_a_style_that_is_only_called_stays():
    """Chapters call it once at their top."""
    with mpl.rc_context():
        plots.style()
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == plots.PALETTE


def test_importing_plots_does_not_import_matplotlib():
    """Whoever draws nothing pays nothing."""
    code = "import sys, minibit.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[app\]'"):
        plots.style()


def test_drawing_touches_no_pyplot():
    """No window and no global list of figures: a figure can be drawn in any thread."""
    code = (
        "import io, sys; from minibit import plots;"
        "figure = plots.history_figure([0, 1], {'test': [.1, .9]}, title='t');"
        "figure.savefig(io.BytesIO(), format='svg'); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_training_figure_shows_loss_and_accuracies_with_named_axes():
    """Loss on the left at its own steps; accuracies in percent on the right, named."""
    figure = plots.training_figure(
        [1, 2, 9], [2.3, np.nan, 0.5], [0, 9], {"test": [0.1, 0.9]}, title="small, seed 0"
    )
    left, right = figure.axes
    assert left.get_xlabel() == right.get_xlabel() == "step"
    assert left.get_ylabel() == "loss of the batch (nats)"
    assert right.get_ylabel() == "accuracy (%)"
    assert left.get_title(loc="left") == "small, seed 0"
    np.testing.assert_array_equal(left.lines[0].get_xydata(), [[1, 2.3], [2, np.nan], [9, 0.5]])
    np.testing.assert_allclose(right.lines[0].get_xydata(), [[0, 10], [9, 90]])
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["test"]


def test_a_history_figure_names_every_line():
    """One line for each set of data, in percent, named in the legend, told apart without colour."""
    figure = plots.history_figure(
        [0, 3], {"validation": [0.1, 0.5], "test": [0.2, 0.6]}, title="model.steps"
    )
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["validation", "test"]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [20, 60])
    assert axes.lines[0].get_marker() != axes.lines[1].get_marker()
    assert axes.get_ylabel() == "accuracy (%)"
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_a_roofline_bends_where_arithmetic_becomes_the_limit():
    """The line is the smaller of slope and roof; without either there is none, only points."""
    points = {"one": (1.0, 2e9), "many": (64.0, 3e10)}
    drawn = plots.roofline_figure(points, bandwidth=1e10, peak=8e10, title="x")
    x, y = drawn.axes[0].lines[0].get_data()
    np.testing.assert_allclose(y, np.minimum(10 * x, 80))
    assert x.min() == pytest.approx(0.5)
    assert x.max() == pytest.approx(128)
    assert len(plots.roofline_figure(points, title="x").axes[0].lines) == 2


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_a_figure_is_saved_in_the_format_of_its_name(tmp_path, ending):
    """The file starts as its format does."""
    figure = plots.history_figure([0, 1], {"test": [0.1, 0.9]}, title="t")
    path = plots.save(figure, tmp_path / f"a.{ending}")
    start = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[ending]
    assert path.read_bytes().startswith(start)


def test_the_same_picture_is_the_same_svg(tmp_path):
    """No date, no random names: a rebuilt site changes nothing. And it is well-formed XML."""
    for name in ("a.svg", "b.svg"):
        figure = plots.history_figure([0, 1], {"test": [0.1, 0.9]}, title="t")
        plots.save(figure, tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.svg", "b.svg"))
    assert first == second
    assert ElementTree.fromstring(first).tag.endswith("svg")


def test_an_unknown_format_is_refused_and_nothing_is_written(tmp_path):
    """The message lists the formats."""
    figure = plots.history_figure([0, 1], {"test": [0.1, 0.9]}, title="t")
    for name in ("a.gif", "plain"):
        with pytest.raises(ValueError, match=r"\.svg, \.png or \.pdf"):
            plots.save(figure, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("settings", "saved"), [("show=True", 2), ("", 0)])
def test_a_script_that_asks_for_it_saves_its_open_figures(tmp_path, settings, saved):
    """Without a screen, in the current folder, under the script's name, which is printed."""
    (tmp_path / "drawn.py").write_text(
        "import matplotlib.pyplot as plt\nfrom minibit import plots\n"
        f"plots.style({settings})\nplt.figure()\nplt.figure()\n"
    )
    run = {"cwd": tmp_path, "env": os.environ | {"MPLBACKEND": "agg"}, "text": True, "check": True}
    done = subprocess.run([sys.executable, "drawn.py"], stdout=subprocess.PIPE, **run)
    names = ["drawn_1.svg", "drawn_2.svg"][:saved]
    assert done.stdout.split() == names
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == names
    typed = (tmp_path / "drawn.py").read_text()
    subprocess.run([sys.executable], input=typed, **run)  # no script: nothing more is saved
    assert len(list(tmp_path.iterdir())) == 1 + saved
