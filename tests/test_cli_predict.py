"""``minibit predict``: pictures laid out as MNIST's, and the answer of the log that is named."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from minibit.datasets import load_mnist
from minibit.training import evaluate, model_of, shipped_log

typer = pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from matplotlib.image import imsave  # noqa: E402

from commands import answer, call, refused  # noqa: E402
from minibit.cli.predict import as_mnist, ink_of  # noqa: E402

SHOWN = 200  # test images that are drawn on paper


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """No log lies in the current folder."""
    monkeypatch.chdir(tmp_path)


def on_paper(digit, factor=9, shape=(400, 350), corner=(70, 30)):
    """A test image, enlarged, as dark ink somewhere on light paper: grey, (rows, columns)."""
    picture = np.full(shape, 0.95)
    large = np.kron(digit.reshape(28, 28) / 255, np.ones((factor, factor)))
    rows, columns = (slice(a, a + n) for a, n in zip(corner, large.shape, strict=True))
    picture[rows, columns] -= 0.9 * large
    return picture


def save(path, grey):
    """Write a grey picture as PNG."""
    imsave(path, np.repeat(grey[..., None], 3, axis=2))
    return path


def test_a_digit_from_the_data_is_named_drawn_and_judged():
    """The answer is the network's; ten bars, a digit, its label, and which log."""
    mnist, log = load_mnist(), shipped_log()
    said = answer("predict", "--index", 3)
    logits = model_of(log.header)(log.replay(), mnist.test_x[3:4])[0].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(said["probabilities"], expected, rtol=1e-5)
    assert said["answer"] == expected.argmax() == said["label"] == mnist.test_y[3]
    lines = call("predict", "--index", 3).stdout.splitlines()
    assert "the one in the package (800 steps); there is no model.steps here" in lines[0]
    assert [line[30] for line in lines[3:13]] == list("0123456789")
    assert sum("█" in line[30:] for line in lines) >= 1
    assert lines[-2] == f"It is a 0: {100 * max(said['probabilities']):.2f}%."
    assert lines[-1] == "Its label is 0."


def test_a_wrong_answer_is_called_so():
    """The first test image that the shipped network errs on."""
    mnist, log = load_mnist(), shipped_log()
    model, weights = model_of(log.header), log.replay()
    wrong = next(
        i
        for i in range(500)
        if not evaluate(weights, model, mnist.test_x[i : i + 1], mnist.test_y[i : i + 1])
    )
    said = call("predict", "--index", wrong).stdout
    assert f"Its label is {mnist.test_y[wrong]}: the network errs." in said


def test_drawn_digits_are_read_about_as_well_as_the_test_images():
    """Dark on light, nine times as large, off the middle: at most 3% fewer are named right."""
    mnist, log = load_mnist(), shipped_log()
    model, weights = model_of(log.header), log.replay()
    own, labels = mnist.test_x[:SHOWN], mnist.test_y[:SHOWN]
    drawn = np.stack([as_mnist(ink_of(on_paper(x))).reshape(-1) for x in own])
    direct = evaluate(weights, model, own, labels)
    assert evaluate(weights, model, drawn, labels) >= direct - 0.03
    assert evaluate(weights, model, 255 - drawn, labels) < 0.5  # the test can fail


def test_a_picture_on_disk_is_named(tmp_path):
    """The same answer for a PNG as for the image that it shows."""
    digit = load_mnist().test_x[0]
    path = save(tmp_path / "seven.png", on_paper(digit))
    said = answer("predict", path)
    assert (said["answer"], said["label"]) == (7, None)
    assert said["log"] == "in the package"


@given(arrays.arrays(np.float64, (9, 7), elements=st.sampled_from([0.0, 0.5, 1.0])))
def test_ink_is_fitted_into_20_pixels_around_its_centre_of_mass(ink):
    """As the playground does it: the longer side 20, the centre of mass in the middle."""
    if not ink.any():
        return
    image = as_mnist(ink).astype(np.float64)  # (28, 28)
    middles = np.arange(28) + 0.5
    assert image.sum()
    held = [np.flatnonzero(image.any(axis=a)) for a in (0, 1)]
    assert (
        19 <= max(np.ptp(line) + 1 for line in held) <= 21
        or 0 in held[0]
        or 0 in held[1]
        or (27 in held[0] or 27 in held[1])
    )
    if min(line[0] for line in held) > 0 and max(line[-1] for line in held) < 27:
        for axis in (0, 1):
            centre = image.sum(axis=1 - axis) @ middles / image.sum()
            assert abs(centre - 14) < 0.05


def test_ink_is_what_differs_from_the_ground():
    """Light on dark and dark on light, faint or strong, with or without opacity: the same ink."""
    ink = np.zeros((6, 5))
    ink[2:4, 1:4] = [[0.5, 1, 0.5], [1, 0, 0.25]]
    clear = np.zeros((6, 5, 4))
    clear[..., 3] = ink
    white = clear + np.array([1, 1, 1, 0])
    grainy = 0.8 - 0.5 * ink + 0.01 * np.arange(5)
    for picture in (ink, 1 - ink, 0.2 + 0.3 * ink, clear, white):
        np.testing.assert_allclose(ink_of(picture), ink, atol=1e-12)
    np.testing.assert_allclose(ink_of(grainy), ink, atol=0.1)
    for blank in (np.ones((4, 4)), np.zeros((4, 4, 3)), np.full((4, 4), 0.5)):
        with pytest.raises(ValueError, match="blank"):
            ink_of(blank)


def test_a_picture_without_a_digit_is_named(tmp_path):
    """Status 2: no file, no PNG, damaged, blank, too large."""
    assert "no such file" in refused("predict", "none.png")
    (tmp_path / "text.png").write_text("hello")
    assert "text.png is no PNG picture" in refused("predict", "text.png")
    whole = save(tmp_path / "blank.png", np.ones((30, 30))).read_bytes()
    assert "blank.png: the picture is blank" in refused("predict", "blank.png")
    (tmp_path / "cut.png").write_bytes(whole[:40])
    assert "cut.png is a damaged PNG" in refused("predict", "cut.png")
    bomb = whole[:16] + (60_000).to_bytes(4, "big") * 2 + whole[24:]
    (tmp_path / "bomb.png").write_bytes(bomb)
    assert "60000 x 60000 pixels" in refused("predict", "bomb.png")


def test_what_makes_no_sense_is_refused():
    """One of the two, an image that there is, a step that the log has."""
    assert "either FILE.png or --index" in refused("predict")
    assert "either FILE.png or --index" in refused("predict", "a.png", "--index", 1)
    assert "below 10000" in refused("predict", "--index", 10_000)
    assert "no log a.steps" in refused("predict", "--index", 0, "--log", "a.steps")
    assert "has 800 steps" in refused("predict", "--index", 0, "--step", 801)


def test_the_last_log_here_is_taken_and_named(tmp_path):
    """That of `minibit train`; --step takes its weights on the way; --log names another."""
    answer("train", "--steps", 1)
    answer("train", "--steps", 2, "--seed", 5)
    said = answer("predict", "--index", 0)
    assert (said["log"], said["steps"]) == ("model-2.steps", 2)
    assert "log: model-2.steps (2 steps)" in call("predict", "--index", 0).stdout
    other = answer("predict", "--index", 0, "--log", "model.steps")
    assert other["log"] == "model.steps"
    assert other["probabilities"] != said["probabilities"]
    first = answer("predict", "--index", 0, "--step", 0)
    assert first["steps"] == 0
    assert first["probabilities"] != said["probabilities"]


def test_a_log_of_other_data_takes_its_own_images_alone(tmp_path):
    """--data with --index; a picture of a digit has 784 pixels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    x = (80 * labels[:, None, None] + rng.integers(0, 50, (60, 6, 8))).astype(np.uint8)
    np.savez(tmp_path / "own.npz", x=x, y=labels)
    answer("train", "--data", "own.npz", "--widths", 8, "--steps", 1)
    said = answer("predict", "--index", 0, "--data", "own.npz")
    assert len(said["probabilities"]) == 3
    picture = save(tmp_path / "a.png", on_paper(load_mnist().test_x[0]))
    assert "takes 48 inputs" in refused("predict", picture)
