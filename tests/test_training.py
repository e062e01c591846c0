"""Training runs: what a command writes, and what survives an interruption."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minibit.datasets import Dataset, load_mnist
from minibit.kernels import compiled
from minibit.noise_step import MLP, digest, initial_params
from minibit.noise_step.unit_tangents import forward
from minibit.results import load_results
from minibit.steps import StepLog
from minibit.training import PRESETS, evaluate, loop, shipped_log, train
from minibit.training.course import Course, Pool, shifted
from minibit.training.log_header import model_of, other_data, training_header

KILLS = int(os.environ.get("MINIBIT_TEST_KILLS", "3"))


def blobs(classes=4, seed=0):
    """Sixteen-pixel images of a few well separated classes."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 200, (classes, 16))

    def draw(n):
        y = rng.integers(0, classes, n).astype(np.uint8)
        noise = rng.integers(0, 56, (n, 16))
        return (centres[y] + noise).astype(np.uint8), y

    return Dataset(*draw(600), *draw(200), name="blobs", digest="b" * 64, sample_shape=(4, 4))


def run(out, method="units", seed=3, **fields):
    """A short run on blobs: schedules over 96 steps, three records."""
    return train(
        "small" if method == "units" else "strict",
        seed,
        out,
        **{
            "dataset": blobs(),
            "widths": (24, 24),
            "threads": 1,
            "steps": 96,
            "batch": (64, 128),
            "rate": (0.05, 0.01),
            "density": (0.01, 0.002),
            **fields,
        },
    )


@pytest.mark.parametrize("method", ["units", "sampled"])
def test_a_run_learns_and_its_log_gives_the_weights_back(tmp_path, method):
    """The digest at the end of training is that of a replay; accuracy far above chance."""
    result = run(tmp_path / "a.steps", method)
    log = StepLog.open(tmp_path / "a.steps")
    params = log.replay()
    data = blobs()
    assert result.digest == digest(params) == log.verify()
    assert result.test_accuracy == evaluate(params, model_of(log.header), data.test_x, data.test_y)
    assert result.test_accuracy > 0.65
    start = evaluate(initial_params(log.plan), model_of(log.header), data.test_x, data.test_y)
    assert start < 0.5
    assert result.log_bytes == (tmp_path / "a.steps").stat().st_size
    assert result.steps == len(log) == len(result.step_seconds) == 96
    assert result.packed_weight_bytes == -(-log.plan.size // 5)
    assert result.batch_sizes[0] == 64
    assert result.batch_sizes[-1] > 64


@pytest.mark.parametrize("method", ["units", "sampled"])
def test_a_log_says_which_activations_its_model_has(tmp_path, method):
    """What is trained is what is measured: the header names the kind, a resumed run keeps it."""
    result = run(tmp_path / "a.steps", method, activations="int8", steps=64)
    header = StepLog.open(tmp_path / "a.steps").header
    assert header["recipe"]["activations"] == model_of(header).activations == "int8"
    again = train(out=tmp_path / "a.steps", resume=True, dataset=blobs(), threads=1, steps=96)
    log, data = StepLog.open(tmp_path / "a.steps"), blobs()
    whole = run(tmp_path / "b.steps", method, activations="int8", threads=2)
    assert again.digest == log.verify()
    assert log.digest(64) == result.digest == StepLog.open(tmp_path / "b.steps").digest(64)
    # Guessing has 0.25. Few sampled steps learn little: seeds and CPUs differ, from 0.41 to 0.71.
    assert whole.test_accuracy > {"units": 0.65, "sampled": 0.5}[method]
    rounded = forward(model_of(header), log.replay(), data.test_x, data.test_y)[0]
    assert again.test_accuracy == np.mean(rounded.argmax(axis=1) == data.test_y)
    exact = replace(model_of(header), activations="float")
    assert (forward(exact, log.replay(), data.test_x, data.test_y)[0] != rounded).any()


def test_older_logs_have_float_activations(tmp_path):
    """A header that does not say is of the one kind there was; one of no known kind is refused."""
    run(tmp_path / "a.steps", steps=1, activations="float")
    header = StepLog.open(tmp_path / "a.steps").header
    older = {k: v for k, v in header["recipe"].items() if k != "activations"}
    StepLog.create(tmp_path / "b", {**header, "recipe": older}).close()
    assert model_of(training_header(StepLog.open(tmp_path / "b"))) == model_of(header)
    assert train(out=tmp_path / "b", resume=True, dataset=blobs(), steps=1).steps == 1
    assert StepLog.open(tmp_path / "b").digest() == StepLog.open(tmp_path / "a.steps").digest()
    for kind in ("int4", 8, None, ["int8"]):
        path = tmp_path / f"{kind}"
        StepLog.create(path, {**header, "recipe": {**older, "activations": kind}}).close()
        with pytest.raises(ValueError, match=r"with activations .*; known are float"):
            train(out=path, resume=True, dataset=blobs())


def test_a_preset_that_no_run_can_have_is_refused():
    """Where it is written, before any run."""
    with pytest.raises(ValueError, match="activations must be 'float' or 'int8', got 'int4'"):
        replace(PRESETS["small"], activations="int4")
    with pytest.raises(ValueError, match=r"threshold must be below 1, .* got 1\.0"):
        replace(PRESETS["small"], threshold=1.0)


@pytest.mark.parametrize("resume", [False, True])
def test_what_is_no_argument_of_a_run_is_named(tmp_path, resume):
    """Before there is a log, or a change of one."""
    with pytest.raises(TypeError, match="a preset has no field colour, speed"):
        train(out=tmp_path / "a", resume=resume, dataset=blobs(), speed=2, colour=1)
    assert not (tmp_path / "a").exists()


def test_a_seed_names_a_run_and_threads_do_not_matter(tmp_path):
    """The same file from one thread and from two; another from another seed."""
    logs = []
    for k, (seed, threads) in enumerate([(3, 1), (3, 2), (4, 1)]):
        run(tmp_path / f"{k}.steps", seed=seed, threads=threads, steps=40)
        logs.append((tmp_path / f"{k}.steps").read_bytes())
    assert logs[0] == logs[1]
    assert logs[0] != logs[2]


def test_threads_may_still_be_called_workers(tmp_path):
    """The name that they had goes on, with a warning."""
    with pytest.warns(DeprecationWarning, match="workers is now called threads"):
        result = train(out=tmp_path / "a.steps", dataset=blobs(), widths=(4,), workers=1, steps=1)
    assert result.steps == 1


def test_a_shorter_run_is_a_prefix(tmp_path):
    """`steps` stops early and changes no schedule: the weights of both runs agree at its end."""
    run(tmp_path / "whole.steps")
    result = run(tmp_path / "short.steps", steps=40)
    assert result.steps == 40
    assert StepLog.open(tmp_path / "whole.steps").digest(40) == result.digest


def test_schedules_stretch_over_more_steps_than_the_preset_has(tmp_path, monkeypatch):
    """Asking for more steps than the preset's number is a longer run, not an error."""
    monkeypatch.setitem(PRESETS, "small", replace(PRESETS["small"], steps=10))
    result = run(tmp_path / "a.steps", steps=20)
    assert result.steps == 20
    assert StepLog.open(tmp_path / "a.steps").header["recipe"]["steps"] == 20
    with pytest.raises(ValueError, match="steps must be at most the log's 20"):
        train(out=tmp_path / "a.steps", resume=True, dataset=blobs(), steps=21)


def test_schedules_run_over_the_steps_asked_for(tmp_path):
    """`total_steps` below the preset's number is a shorter run, as it is a longer one above."""
    result = run(tmp_path / "a.steps", steps=None, total_steps=20)
    assert result.steps == StepLog.open(tmp_path / "a.steps").header["recipe"]["steps"] == 20
    assert [*result.batch_sizes[[0, 10, -1]]] == [64, round(64 * 2 ** (10 / 19)), 128]


def test_two_numbers_of_units_are_for_hidden_layers_and_outputs(tmp_path):
    """The last of them is the output layer's, the first that of all others; or one a layer."""
    cases = [((5, 2), [5, 5, 2]), ((6, 5, 2), [6, 5, 2]), ((9,), [9, 9, 4])]
    for k, (units, expected) in enumerate(cases):
        run(tmp_path / f"{k}.steps", steps=1, units=units)
        assert StepLog.open(tmp_path / f"{k}.steps").header["plan"]["units"] == expected


def test_what_is_prepared_does_not_grow_with_the_number_of_steps(tmp_path, monkeypatch):
    """Two billion steps begin like two: memory, and a time that is left."""
    monkeypatch.setattr("minibit.training.loop.REPORT_SECONDS", 0.0)
    seen = []

    def third(progress):
        seen.append(progress)
        if len(seen) == 3:
            raise KeyboardInterrupt

    run(tmp_path / "warm.steps", steps=1)
    tracemalloc.start()
    result = run(tmp_path / "a.steps", steps=2_000_000_000, progress=third)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert (result.steps, result.interrupted) == (3, True)
    for done, progress in enumerate(seen, start=1):  # batches of 64 up to 128, geometrically
        mean = (128 - 64) / np.log(2) / 64
        assert progress.remaining == pytest.approx(
            progress.seconds * mean * 2_000_000_000 / done, rel=1e-3
        )


def test_a_run_takes_the_place_of_a_log_only_if_asked_to(tmp_path):
    """With its first record; a run that is stopped before leaves the old log as it is."""
    run(tmp_path / "a.steps", steps=8)
    before = (tmp_path / "a.steps").read_bytes()

    def stops(progress):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minibit.training.loop._Run.one_step", stops)
        stopped = run(tmp_path / "a.steps", seed=4, overwrite=True)
    assert (stopped.steps, stopped.interrupted) == (0, True)
    assert (tmp_path / "a.steps").read_bytes() == before
    again = run(tmp_path / "a.steps", seed=4, steps=8, overwrite=True)
    assert StepLog.open(tmp_path / "a.steps").verify() == again.digest
    assert [*tmp_path.iterdir()] == [tmp_path / "a.steps"]


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("recipe", "logit_scale", True),
        ("recipe", "logit_scale", "0.1"),
        ("data", "input_scale", None),
        ("data", "input_scale", 1e300),
        ("data", "input_offset", [1.0]),
        ("data", "split", 7),
        ("data", "split", "none"),
        ("recipe", "preset", 7),
        ("recipe", "logit_scale", 1e30),
        ("data", "input_offset", -1e30),
    ],
)
def test_numbers_of_a_header_that_are_none_are_refused(tmp_path, part, name, value):
    """Truth values, texts, 1e30 and what is larger: the field is named, no traceback."""
    run(tmp_path / "a.steps", steps=1)
    header = StepLog.open(tmp_path / "a.steps").header
    StepLog.create(tmp_path / "b", {**header, part: {**header[part], name: value}}).close()
    for ask in (
        lambda: training_header(StepLog.open(tmp_path / "b")),
        lambda: train(out=tmp_path / "b", resume=True, dataset=blobs()),
    ):
        with pytest.raises(ValueError, match=rf"{part}\.{name} must be"):
            ask()


def test_numpys_integers_name_the_same_run(tmp_path):
    """Seed and widths may be NumPy's."""
    run(tmp_path / "a.steps", steps=2)
    run(tmp_path / "b.steps", steps=np.int64(2), seed=np.uint64(3), widths=np.array([24, 24]))
    assert (tmp_path / "a.steps").read_bytes() == (tmp_path / "b.steps").read_bytes()


@pytest.mark.parametrize("side", [1, 3, 4])
def test_samples_that_are_no_images_are_not_shifted(tmp_path, side):
    """A pixel's shift would leave nothing of a row."""
    y = np.arange(30, dtype=np.uint8) % 3
    x = np.repeat(40 * y[:, None], side * 5, axis=1)
    data = Dataset(x, y, x, y, name="rows", digest="e" * 64, sample_shape=(side, 5))
    run(tmp_path / "a.steps", dataset=data, steps=1)
    shifts = StepLog.open(tmp_path / "a.steps").header["recipe"]["shifts"]
    assert shifts == (5 if side == 4 else 1)


def test_a_run_that_fails_lets_go_of_its_log(tmp_path, monkeypatch):
    """Also while its error is kept, as a notebook does: the log can be resumed at once."""
    monkeypatch.setattr("minibit.training.loop.REPORT_SECONDS", 0.0)

    def fails(progress):
        raise ValueError("no display")

    with pytest.raises(ValueError, match="no display") as kept:
        run(tmp_path / "a.steps", progress=fails)
    assert train(out=tmp_path / "a.steps", resume=True, dataset=blobs(), steps=3).steps == 3
    assert kept.tb is not None


def test_resuming_what_is_no_training_log_is_refused(tmp_path):
    """A log without recipe, or with one that no preset can be: an error that says so."""
    run(tmp_path / "a.steps", steps=1)
    header = StepLog.open(tmp_path / "a.steps").header
    for name, change, match in (
        ("b", {"recipe": {}}, "no log of a training run"),
        ("c", {"data": None}, "no log of a training run"),
        ("d", {"recipe": {**header["recipe"], "batch": "x"}}, "recipe is no preset: batch"),
        ("e", {"recipe": {**header["recipe"], "colour": 1}}, "recipe is no preset: .*colour"),
        (
            "f",
            {"recipe": {**header["recipe"], "method": "sampled"}},
            "method 'sampled' and 'units'",
        ),
    ):
        StepLog.create(tmp_path / name, {**header, **change}).close()
        with pytest.raises(ValueError, match=match):
            train(out=tmp_path / name, resume=True, dataset=blobs())


def test_resuming_with_another_recipe_is_refused(tmp_path):
    """The log's recipe is settled; the same fields again are fine."""
    run(tmp_path / "a.steps", steps=1)
    with pytest.raises(ValueError, match="rate must be that of the log"):
        train(out=tmp_path / "a.steps", resume=True, dataset=blobs(), rate=(0.1, 0.1))
    again = train(
        out=tmp_path / "a.steps", resume=True, dataset=blobs(), rate=(0.05, 0.01), steps=2
    )
    assert again.steps == 2


def test_weights_that_are_no_codes_are_not_measured():
    """The kernels hold int8: a float weight would be cut to an integer without a word."""
    data, x = blobs(), {"w1": np.full((4, 16), 0.3, np.float32)}
    with pytest.raises(ValueError, match="must be int8 codes"):
        evaluate(x, MLP(), data.test_x, data.test_y)
    with pytest.raises(ValueError, match="at least one sample"):
        evaluate({"w1": np.ones((4, 16), np.int8)}, MLP(), data.test_x[:0], data.test_y[:0])


class Interrupt:
    """A progress callback that behaves like Ctrl-C at a step."""

    def __init__(self, after):
        """Interrupt once `after` calls came."""
        self.calls, self.after = 0, after

    def __call__(self, progress):
        """Count, and interrupt."""
        self.calls += 1
        if self.calls >= self.after:
            raise KeyboardInterrupt


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no such signals")
@pytest.mark.parametrize("again", [0.0, 0.01])
def test_an_interrupt_at_any_time_of_a_run_gives_its_result(tmp_path, again, lost_interrupts):
    """In mid-step, while a record is written and while the end is measured; once, or repeatedly."""
    code = loop._Run.go.__code__

    def interrupt(_number, frame):
        while frame is not None and frame.f_code is not code:
            frame = frame.f_back
        if frame is not None:
            raise KeyboardInterrupt

    run(tmp_path / "warm.steps", steps=1)
    before = signal.signal(signal.SIGALRM, interrupt)
    stopped = 0
    try:
        for trial in range(12):
            path = tmp_path / f"{trial}.steps"
            signal.setitimer(signal.ITIMER_REAL, 0.01 + trial * 0.01, again)
            result = run(path, threads=2)
            signal.setitimer(signal.ITIMER_REAL, 0)
            log = StepLog.open(path)
            assert result.interrupted or result.steps == 96
            assert result.steps == len(log)
            assert result.digest == log.verify()
            stopped += result.interrupted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stopped


def test_ctrl_c_keeps_everything_and_resume_goes_on(tmp_path, monkeypatch):
    """No step is lost; a resumed run ends with all steps and a log that verifies."""
    monkeypatch.setattr("minibit.training.loop.REPORT_SECONDS", 0.0)
    first = run(tmp_path / "a.steps", progress=Interrupt(after=41))
    assert first.interrupted
    assert first.steps == 41
    again = train(out=tmp_path / "a.steps", resume=True, dataset=blobs(), threads=1, steps=96)
    assert not again.interrupted
    assert again.steps == 96
    assert StepLog.open(tmp_path / "a.steps").verify() == again.digest
    assert again.test_accuracy > 0.8


def test_an_interrupt_after_a_write_logs_no_step_twice(tmp_path, monkeypatch):
    """Ctrl-C when a record is in the file, and before the next step: the log has 32 steps."""
    append = StepLog.append

    def interrupted(log, *steps):
        monkeypatch.setattr(StepLog, "append", append)
        append(log, *steps)
        raise KeyboardInterrupt

    monkeypatch.setattr(StepLog, "append", interrupted)
    result = run(tmp_path / "a.steps", steps=40)
    assert result.interrupted
    assert result.steps == len(result.step_seconds) == 32
    assert StepLog.open(tmp_path / "a.steps").verify() == result.digest


def test_a_resumed_run_keeps_the_density_that_followed_the_loss(tmp_path):
    """Where the density falls with the loss, it does not rise again at a resume."""
    falling = {"density_by_loss": ((1.3, 0.004), (1.2, 0.002)), "density": (0.01, 0.01)}
    run(tmp_path / "a.steps", "sampled", steps=64, **falling)
    train(out=tmp_path / "a.steps", resume=True, dataset=blobs(), threads=1, steps=96)
    numerators = [step.numerator for step in StepLog.open(tmp_path / "a.steps").steps()]
    assert numerators == sorted(numerators, reverse=True)
    assert numerators[0] > numerators[63] == numerators[-1]


def test_the_density_falls_below_a_bar_and_not_at_it(tmp_path):
    """A bar is a loss below which its density holds."""
    bars = {"density_by_loss": ((1.5, 0.002),), "density": (0.01, 0.01)}
    run(tmp_path / "a.steps", "sampled", steps=1, **bars)
    course = Course(StepLog.open(tmp_path / "a.steps").header, blobs(), 3)
    course.follow(1.5)
    assert course.density == 0.01
    course.follow(np.nextafter(1.5, 0))
    assert course.density == 0.002


def test_the_density_that_follows_the_loss_never_rises(tmp_path):
    """The lowest of all bars that were passed counts, whatever their order."""
    bars = {"density_by_loss": ((9.0, 0.002), (9.0, 0.004)), "density": (0.01, 0.01)}
    run(tmp_path / "a.steps", "sampled", steps=3, **bars)
    numerators = [step.numerator for step in StepLog.open(tmp_path / "a.steps").steps()]
    assert numerators == [round(density * 2**32) for density in (0.01, 0.002, 0.002)]


def test_the_header_says_how_inputs_are_normalised(tmp_path):
    """Scale times input plus offset has mean 0 and standard deviation 1 over the training set."""
    run(tmp_path / "a.steps", steps=0)
    data = StepLog.open(tmp_path / "a.steps").header["data"]
    x = data["input_scale"] * blobs().train_x + data["input_offset"]
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-9)


def test_resume_takes_the_recipe_from_the_log_and_refuses_other_data(tmp_path):
    """A log trained on one data set does not go on with another."""
    run(tmp_path / "a.steps", steps=8)
    before = (tmp_path / "a.steps").read_bytes()
    other = blobs(seed=9)
    other = replace(other, name="other", digest="c" * 64)
    with pytest.raises(ValueError, match="dataset must be the one the log was trained on"):
        train(out=tmp_path / "a.steps", resume=True, dataset=other)
    assert (tmp_path / "a.steps").read_bytes() == before


def test_an_existing_log_is_not_overwritten(tmp_path):
    """Without `resume` a file that exists is an error."""
    run(tmp_path / "a.steps", steps=8)
    with pytest.raises(FileExistsError):
        run(tmp_path / "a.steps", steps=8)


def test_the_validation_split_is_not_trained_on(tmp_path):
    """With split_name 'validation' the header says so and an accuracy is reported."""
    data = blobs()
    poisoned = data.train_y.copy()
    poisoned[-50:] = (poisoned[-50:] + 1) % 4
    wrong = replace(data, train_y=poisoned, name="wrong", digest="d" * 64)
    fields = {"steps": 64, "split_name": "validation", "batch": (64, 64), "rate": (0.05, 0.02)}
    result = run(tmp_path / "v.steps", seed=0, dataset=wrong, **fields)
    assert result.validation_accuracy < 0.3  # labels nobody learnt
    assert result.test_accuracy > 0.8
    assert StepLog.open(tmp_path / "v.steps").header["data"]["split"] == "validation"
    run(tmp_path / "w.steps", seed=0, dataset=replace(wrong, train_y=data.train_y), **fields)
    assert (tmp_path / "v.steps").read_bytes() == (tmp_path / "w.steps").read_bytes()


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (dict(preset="huge"), "preset must be 'paper'"),
        (dict(seed=-1), "seed"),
        (dict(seed=2**64), "seed"),
        (dict(steps=-1), "steps"),
        (dict(threads=0), "threads"),
        (dict(split_name="test"), "split_name"),
        (dict(widths=(0,)), "widths"),
        (dict(batch=(0, 3)), "batch"),
        (dict(rate=(0.0, 0.1)), "rate"),
        (dict(colour="red"), "colour"),
        (dict(batch=64), "batch must be a pair"),
        (dict(units=4), "units must be a tuple"),
        (dict(widths=(24.0,)), "integer"),
        (dict(density=(1.0, 0.1)), "density must lie between 0 and 1"),
        (dict(density_by_loss=((2.0, 5.0),)), "density must lie between 0 and 1"),
        (dict(threshold=float("nan")), "threshold"),
        (dict(threshold=1.0), "threshold must be below 1"),
        (dict(easy_share=1e-9), "easy_share must be at least"),
        (dict(steps=1.5), "integer"),
        (dict(activations="int4"), "activations must be 'float' or 'int8', got 'int4'"),
        (dict(total_steps=1), "total_steps must be at least 2"),
        (dict(total_steps=2**32 + 1), "steps must be at most 4294967296"),
        (dict(widths=(2**29,)), "make 10737418240 weights, which take as many bytes; the most is"),
        (dict(batch=(64, 2**19)), "batch must be at most 262144"),
        (dict(perturbations=2**21), "perturbations must be at most 1048576"),
        (dict(logit_scale=float("inf")), "logit_scale must be positive and finite"),
        (dict(perturbations=True), "perturbations must be positive whole"),
    ],
    ids=str,
)
def test_bad_arguments_leave_no_file(tmp_path, fields, match):
    """Each error names the argument, before a log exists."""
    with pytest.raises((ValueError, TypeError), match=match):
        train(**{"out": tmp_path / "a.steps", "dataset": blobs(), "steps": 2, **fields})
    assert not list(tmp_path.iterdir())


def test_resampling_leaves_weighted_sums_unbiased():
    """Learnt samples are drawn a tenth as often and weigh ten times as much; hard ones weigh 1."""
    pool = Pool(np.zeros((2, 50, 3), np.uint8), np.zeros(50, np.int64), 1, 0.1, easy_share=0.1)
    pool.hard[:40] = 0.1  # not above the threshold: learnt
    drawn = [pool.draw(step, 500) for step in range(8)]
    sample, shift, weight = (np.concatenate(v) for v in zip(*drawn, strict=True))
    easy = sample < 40
    np.testing.assert_array_equal(weight, np.where(easy, 10, 1))
    assert abs(easy.mean() - 4 / 14) < 0.03
    mass = np.bincount(2 * sample + shift, weight, minlength=100) / weight.sum()
    assert abs(mass[:80].sum() - 0.8) < 0.03


def watched_draws(monkeypatch):
    """Record the pool, its table and the draw of each batch from now on."""
    draws, draw = [], Pool.draw

    def watched(pool, step, n):
        table = pool.hard.copy()
        draws.append((pool, table, *draw(pool, step, n)))
        return draws[-1][2:]

    monkeypatch.setattr(Pool, "draw", watched)
    return draws


def measured(log, step, pool):
    """1 - p_y of every sample under every shift, by the weights after `step` steps: the table."""
    model, params = model_of(log.header), log.weights_at(step)
    return np.stack([forward(model, params, x, pool.labels)[2] for x in pool.images], axis=1)


def test_the_table_holds_how_hard_each_sample_was_at_its_last_visit(tmp_path, monkeypatch):
    """hard[i, s]: 1 at first, then 1 - p_y before the step that last drew image i under shift s."""
    draws = watched_draws(monkeypatch)
    run(tmp_path / "a.steps", steps=6, activations="float")
    log, expected = StepLog.open(tmp_path / "a.steps"), np.ones((600, 5), np.float32)
    for step, (pool, table, sample, shift, _) in enumerate(draws):
        np.testing.assert_allclose(table, expected, rtol=1e-5)
        expected[sample, shift] = measured(log, step, pool)[sample, shift]
    assert len(draws) == 6
    assert 0.05 < (draws[-1][1] < 1).mean() < 0.5


@pytest.mark.parametrize("method", ["units", "sampled"])
def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path, method):
    """Forward passes of the logged steps give the table back, so every later step is the same."""
    falling = {"density_by_loss": ((1.3, 0.004), (1.2, 0.002)), "density": (0.01, 0.01)}
    fields = falling if method == "sampled" else {}
    fields |= {"total_steps": 40}
    whole = run(tmp_path / "whole.steps", method, steps=40, **fields)
    for stop in (1, 7, 39):
        path = tmp_path / f"{stop}.steps"
        run(path, method, steps=stop, **fields)
        again = train(out=path, resume=True, dataset=blobs(), threads=1, steps=40)
        assert again.digest == whole.digest, stop


def test_shifts_move_images_by_one_pixel_and_fill_with_zeros():
    """Up, down, left, right; what leaves is lost, what enters is 0."""
    image = np.arange(1, 10, dtype=np.uint8)[None]
    plain, up, down, left, right = shifted(image, 5, (3, 3))[:, 0].reshape(5, 3, 3)
    np.testing.assert_array_equal(plain, image.reshape(3, 3))
    np.testing.assert_array_equal(up, [[4, 5, 6], [7, 8, 9], [0, 0, 0]])
    np.testing.assert_array_equal(down, [[0, 0, 0], [1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(left, [[2, 3, 0], [5, 6, 0], [8, 9, 0]])
    np.testing.assert_array_equal(right, [[0, 1, 2], [0, 4, 5], [0, 7, 8]])


def test_fewer_shifts_are_the_first_of_them():
    """From the images alone up to all five."""
    images = np.arange(36, dtype=np.uint8).reshape(4, 9)
    every = shifted(images, 5, (3, 3))  # (shifts, samples, n_in)
    for count in range(1, 6):
        np.testing.assert_array_equal(shifted(images, count, (3, 3)), every[:count])


def test_mnist_is_learnt_forwards_only(tmp_path):
    """A hundred steps of the default preset reach 85% on the test set; the log is a few KB."""
    steps, least = (100, 0.85) if compiled() else (8, 0.25)  # plain NumPy is a hundred times slower
    result = train(out=tmp_path / "m.steps", steps=steps, dataset=load_mnist(), threads=2)
    assert result.test_accuracy > least
    assert result.log_bytes < 20_000
    assert result.split == "final"
    assert result.validation_accuracy is None


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_training import blobs
from minibit.training import train
train("small", 3, sys.argv[1], dataset=blobs(), widths=(24, 24), threads=1, steps=3000,
      batch=(64, 64), rate=(0.05, 0.01), resume=len(sys.argv) > 2)
"""


def test_a_killed_run_is_a_prefix_and_goes_on(tmp_path):
    """After kill -9 at any moment the file replays to a prefix; at most one record is lost."""
    rng = np.random.default_rng()
    script = SCRIPT.format(tests=str(Path(__file__).parent))
    whole = tmp_path / "whole.steps"
    train(
        "small", 3, whole, dataset=blobs(), widths=(24, 24), threads=1, steps=640,
        total_steps=3000, batch=(64, 64), rate=(0.05, 0.01),
    )  # fmt: skip
    reference = StepLog.open(whole)
    for kill in range(KILLS):
        path = tmp_path / f"{kill}.steps"
        process = subprocess.Popen([sys.executable, "-c", script, str(path)])
        started = time.monotonic()
        while not (path.exists() and path.stat().st_size > 1500):
            assert process.poll() is None, "the writer ended by itself"
            assert time.monotonic() - started < 120
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        log = StepLog.open(path)
        whole_records = len(log)
        assert whole_records % 32 == 0
        common = min(whole_records, 640)
        assert log.digest(common) == reference.digest(common)
        again = train(out=path, resume=True, dataset=blobs(), threads=1, steps=whole_records + 5)
        assert again.steps == whole_records + 5
        assert StepLog.open(path).verify() == again.digest


# --- Forks


@pytest.mark.parametrize("method", ["units", "sampled"])
def test_a_fork_that_changes_nothing_goes_on_to_the_same_weights(tmp_path, method):
    """The parent's digest at its end, from a fork within a record."""
    whole = run(tmp_path / "a.steps", method)
    StepLog.open(tmp_path / "a.steps").fork(40, tmp_path / "b.steps")
    assert go_on(tmp_path / "b.steps").digest == whole.digest


@pytest.mark.parametrize("method", ["units", "sampled"])
@pytest.mark.parametrize("others", [False, True], ids=["seed", "data"])
def test_a_fork_goes_on_by_its_own_seed_and_data_however_often_it_is_stopped(
    tmp_path, method, others
):
    """Other steps than the parent's, the same after a stop, and a log that verifies."""
    run(tmp_path / "a.steps", method)
    log = StepLog.open(tmp_path / "a.steps")
    data = replace(blobs(seed=0), digest="c" * 64) if others else blobs()
    if others:
        data = replace(data, train_y=data.train_y[::-1].copy())
    entry = other_data(log, 40, data, "validation") if others else None
    results = []
    for name, stops in (("b", [96]), ("c", [50, 77, 96])):
        fork = log.fork(40, tmp_path / name, None if others else 9, entry)
        assert fork.header["data"].get("since") == (40 if others else None)
        results += [go_on(tmp_path / name, data, steps=steps) for steps in stops][-1:]
        again = StepLog.open(tmp_path / name)
        assert again.verify() == results[-1].digest
        assert again.drawn_by(95) == (3 if others else 9, 95)
        assert again.digest(40) == log.digest(40)
    assert results[0].digest == results[1].digest != log.digest()
    assert results[0].split == ("validation" if others else "final")


def go_on(path, data=None, steps=96):
    """Resume a run on blobs, or on other data."""
    return train(out=path, resume=True, dataset=data or blobs(), threads=1, steps=steps)


def test_a_forks_density_does_not_rise_again_on_other_data(tmp_path):
    """Where it followed the loss, it stays where the parent's was, whether stopped or not."""
    fields = {"density_by_loss": ((9.0, 0.004), (1.2, 0.001)), "easy_share": 1.0}
    run(tmp_path / "a.steps", "sampled", **fields)
    log = StepLog.open(tmp_path / "a.steps")
    last = [*log.steps()][63].numerator
    for name, stops in (("b", [96]), ("c", [64, 64, 96])):
        log.fork(64, tmp_path / name, data=other_data(log, 64, blobs()))
        digests = {go_on(tmp_path / name, steps=steps).digest for steps in stops}
        assert [*StepLog.open(tmp_path / name).steps()][64].numerator == last
    assert go_on(tmp_path / "b").digest in digests


def test_data_that_a_model_does_not_take_are_refused(tmp_path):
    """Other inputs, more classes, no images where they are shifted, no such split."""
    run(tmp_path / "a.steps", steps=2)
    log, data = StepLog.open(tmp_path / "a.steps"), blobs()
    for bad in (
        replace(data, train_x=data.train_x[:, :15], test_x=data.test_x[:, :15]),
        blobs(classes=5),
        replace(data, sample_shape=(16,)),
    ):
        with pytest.raises(ValueError, match="takes 16 inputs of images and 4 classes; blobs has"):
            other_data(log, 1, bad)
    with pytest.raises(ValueError, match="split_name"):
        other_data(log, 1, data, "all")


def test_a_log_whose_later_steps_have_several_seeds_is_not_trained_on(tmp_path):
    """As one that was joined, then cut within its second part."""
    run(tmp_path / "a.steps", steps=4)
    log = StepLog.open(tmp_path / "a.steps")
    header = {**log.header, "segments": [[3, 0, 4], [7, 0, 2]]}
    StepLog.create(tmp_path / "b.steps", header).close()
    with pytest.raises(ValueError, match="drawn by several seeds"):
        go_on(tmp_path / "b.steps")


def test_the_log_in_the_package_is_the_recorded_run():
    """Preset small, seed 0: its length, bytes and digest are those of the results."""
    log = shipped_log()
    row = next(row for row in load_results("train")["rows"] if row["preset"] == "small")
    recorded = row["runs"][0]
    assert (len(log), log.nbytes) == (row["steps"], row["log_bytes"])
    assert (recorded["seed"], log.verify()) == (0, recorded["digest"])
    assert log.header["recipe"]["preset"] == "small"
