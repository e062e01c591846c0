"""Language models of characters: what is drawn, what is learnt, what is kept."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit.bench import Options
from minibit.bench import language as bench
from minibit.datasets import load_text
from minibit.experiments import language as experiment
from minibit.experiments.runs import Runs
from minibit.language import (
    LINEAR,
    SIZES,
    Optimizer,
    Recipe,
    TrainedModel,
    Vocabulary,
    draw_batch,
    evaluate_loss,
    learning_rate,
    loss_and_gradient,
    recipe,
    shipped_model,
    shipped_text,
    train_language,
    write_text,
)
from minibit.layers import cross_entropy
from minibit.noise import integers, uniform
from minibit.noise.philox import BATCH, TOKENS
from minibit.results import load_results
from minibit.tape import grad
from minibit.ternary import TernaryMatrix
from minibit.transformer import (
    BitNetModel,
    Decoder,
    bit_linear,
    forward,
    generate,
    init_params,
    packed_linear,
    sample,
)

ROOT = Path(__file__).resolve().parents[1]
TINY = Recipe("b1.58", 8, 12, heads=2, peak=0.02, context=8, batch=4, steps=40, warmup=4)


# --- characters and batches ----------------------------------------------------------------------


@given(st.text(min_size=1, max_size=40))
def test_a_text_comes_back_from_its_tokens(text):
    """Characters in order of their code points; decoding undoes encoding."""
    vocabulary = Vocabulary.of(text)
    assert list(vocabulary.characters) == sorted(set(text))
    tokens = vocabulary.encode(text)
    assert vocabulary.decode(tokens) == text
    assert tokens.dtype == np.int64
    assert 0 <= tokens.min() <= tokens.max() < len(vocabulary)


def test_what_the_vocabulary_has_not_is_named():
    """A character, a token, and characters that are no vocabulary."""
    vocabulary = Vocabulary.of("banana")
    with pytest.raises(ValueError, match="the character 'x'"):
        vocabulary.encode("bax")
    for tokens in ([3], [-1]):
        with pytest.raises(ValueError, match=r"tokens must lie in \[0, 2\]"):
            vocabulary.decode(tokens)
    with pytest.raises(TypeError, match="integers, got float64"):
        vocabulary.decode([1.7])
    assert vocabulary.decode([]) == ""
    for characters in ("", "aba"):
        with pytest.raises(ValueError, match="distinct, and one at least"):
            Vocabulary(characters)


def test_the_last_tenth_of_the_text_is_held_out():
    """Nothing is in both parts, nothing is lost."""
    vocabulary, train, validation = shipped_text()
    assert vocabulary.decode(train) + vocabulary.decode(validation) == load_text()
    assert len(validation) == pytest.approx(len(load_text()) / 10, abs=1)


def test_a_batch_is_rows_of_the_text_that_the_seed_and_the_step_pick():
    """And the targets are the characters after them."""
    tokens = np.random.default_rng(0).integers(0, 9, 300)
    x, y = draw_batch(tokens, seed=5, step=7, batch=6, context=20)
    starts = integers(5, 280, 6, domain=BATCH, step=7)
    for row, after, start in zip(x, y, starts, strict=True):
        np.testing.assert_array_equal(row, tokens[start : start + 20])
        np.testing.assert_array_equal(after, tokens[start + 1 : start + 21])
    assert not np.array_equal(x, draw_batch(tokens, 5, 8, 6, 20)[0])
    assert not np.array_equal(x, draw_batch(tokens, 6, 7, 6, 20)[0])


def test_every_row_of_a_text_can_be_drawn():
    """The first and the last start included, and as often as any other."""
    starts = np.concatenate([draw_batch(np.arange(11), 0, t, 100, 8)[0][:, 0] for t in range(9)])
    counts = np.bincount(starts)
    assert len(counts) == 3
    assert (np.abs(counts - 300) < 75).all()  # five standard deviations


def test_a_text_shorter_than_a_row_is_refused():
    """A row and the character after it are needed: for a batch, and for a loss."""
    assert draw_batch(np.arange(9), 0, 0, batch=2, context=8)[1].tolist() == 2 * [[*range(1, 9)]]
    with pytest.raises(ValueError, match="more than context = 8, got 8"):
        draw_batch(np.arange(8), 0, 0, batch=2, context=8)
    config = TINY.config(9)
    with pytest.raises(ValueError, match="more than 8, got 8"):
        evaluate_loss(config, init_params(config, 0), np.arange(8))


# --- losses and gradients ------------------------------------------------------------------------


def test_the_loss_of_a_text_is_the_mean_over_its_rows():
    """Each token of each whole row is predicted once, however many rows go at a time."""
    config, tokens = TINY.config(9), np.random.default_rng(1).integers(0, 9, 45)
    params = init_params(config, 0)
    x, y = tokens[:40].reshape(5, 8), tokens[1:41].reshape(5, 8)
    expected = cross_entropy(forward(config, params, x, linear=bit_linear), y)
    for rows in (1, 2, 128):
        loss = evaluate_loss(config, params, tokens, linear=bit_linear, rows=rows)
        assert loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
@pytest.mark.parametrize("rows", [1, 4, 5])
def test_parts_of_a_batch_add_up_to_its_gradient(rows, threads):
    """Loss and gradient of the whole batch, however many threads share it."""
    config = TINY.config(9)
    params = {name: w.astype(np.float64) for name, w in init_params(config, 0).items()}
    x, y = np.random.default_rng(rows).integers(0, 9, (2, rows, 8))
    loss, gradient = loss_and_gradient(config, params, x, y, threads=threads)

    def whole(params):
        return cross_entropy(forward(config, params, x), y)

    assert loss == pytest.approx(float(whole(params)), rel=1e-12)
    for name, g in grad(whole)(params).items():
        np.testing.assert_allclose(gradient[name], g, rtol=1e-6, atol=1e-9)


def test_an_optimizer_on_several_threads_moves_the_same_way():
    """Every share of the parameters is clipped by the length of the whole gradient."""
    params = init_params(TINY.config(9), 0)
    rng = np.random.default_rng(0)
    gradient = {name: rng.standard_normal(w.shape).astype(np.float32) for name, w in params.items()}
    alone, shared = (Optimizer(params, threads=threads) for threads in (1, 3))
    for _ in range(3):
        norm = shared.step(gradient, 0.01, 0.1, clip=0.5)
        assert list(norm) == list(params)
        for name, w in alone.step(gradient, 0.01, 0.1, clip=0.5).items():
            np.testing.assert_allclose(norm[name], w, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", [1.0, np.inf])
def test_a_gradient_that_is_not_finite_is_named_and_moves_nothing(wrong, clip):
    """No length can be shortened to 1, and Adam would remember it for good."""
    params = init_params(TINY.config(9), 0)
    gradient = {name: np.ones_like(w) for name, w in params.items()}
    spoilt = gradient | {"norm": np.full_like(params["norm"], wrong)}
    optimizer, other = (Optimizer(params, threads=2) for _ in range(2))
    for each in (optimizer, other):
        each.step(gradient, 0.01, 0.1, clip)
    with pytest.raises(ValueError, match="gradient of 'norm' holds NaN or infinity at step 1; no"):
        optimizer.step(spoilt, 0.01, 0.1, clip)
    norm, expected = (each.step(gradient, 0.01, 0.1, clip) for each in (optimizer, other))
    for name in params:
        np.testing.assert_array_equal(norm[name], expected[name])


def test_training_that_breaks_down_says_so_at_the_step():
    """A learning rate beyond all bounds: an error, and no model of NaN."""
    plan = dataclasses.replace(TINY, weights="float", peak=1e38, warmup=0)
    with (
        np.errstate(all="ignore"),
        pytest.raises(ValueError, match=r"holds NaN or infinity at step [1-9]"),
    ):
        train_language(plan, text=load_text()[:2000])


def test_the_learning_rate_rises_falls_and_drops_at_half_way():
    """``peak (1 - step / steps)``, times 2/3 from the half on, after a linear warm-up."""
    plan = recipe("55k", "float", steps=1000)
    peak = plan.peak
    assert learning_rate(plan, 0) == pytest.approx(peak / 100)
    assert learning_rate(plan, 49) == pytest.approx(peak * 0.951 * 0.5)
    assert learning_rate(plan, 499) == pytest.approx(peak * 0.501)
    assert learning_rate(plan, 500) == pytest.approx(peak * 0.5 * 2 / 3)
    assert learning_rate(plan, 999) == pytest.approx(peak * 0.001 * 2 / 3)


# --- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", list(LINEAR))
def test_training_learns_a_text_that_repeats(weights):
    """Five characters in a circle: from log 5 to almost nothing."""
    plan = dataclasses.replace(TINY, weights=weights, steps=120)
    trained = train_language(plan, seed=1, text="abcde" * 40)
    assert trained.losses[0] == pytest.approx(np.log(5), abs=0.4)
    assert trained.losses[-10:].mean() < 0.2
    assert write_text(trained.model(), trained.vocabulary, "abc", 20, temperature=0) == (
        "deabcdeabcdeabcdeabc"
    )


def test_a_run_depends_on_its_seed_alone():
    """The same twice; another seed, or a stop of the same schedule, as it should be."""
    text = load_text()[:2000]
    first, again, other = (train_language(TINY, seed, text=text) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.losses, again.losses)
    for name, w in first.params.items():
        np.testing.assert_array_equal(w, again.params[name])
    assert not np.array_equal(first.losses, other.losses)
    short = train_language(TINY, 3, text=text, stop=5)
    np.testing.assert_array_equal(short.losses, first.losses[:5])
    threaded = train_language(TINY, 3, text=text, stop=5, threads=2)
    np.testing.assert_allclose(threaded.losses, first.losses[:5], rtol=1e-3)


def test_a_run_is_its_recipe_step_by_step():
    """Clipped gradients, Adam with betas 0.9 and 0.95, decay in the first half: written out."""
    plan = dataclasses.replace(
        TINY, weights="float", steps=6, warmup=2, peak=0.01, weight_decay=2.0, clip=0.3
    )
    text = load_text()[:500]
    trained = train_language(plan, seed=7, text=text)
    vocabulary = Vocabulary.of(text)
    tokens, config = vocabulary.encode(text), plan.config(len(vocabulary))
    params = {name: w.astype(np.float64) for name, w in init_params(config, 7).items()}
    mean = {name: np.zeros_like(w) for name, w in params.items()}
    square = {name: np.zeros_like(w) for name, w in params.items()}
    for step, rate in enumerate((0.5, 5 / 6, 4 / 6, 2 / 6, 2 / 9, 1 / 9)):
        x, y = draw_batch(tokens, 7, step, plan.batch, plan.context)
        loss, gradient = loss_and_gradient(config, params, x, y)
        assert trained.losses[step] == pytest.approx(loss, abs=1e-4)
        length = np.sqrt(sum(np.sum(g * g) for g in gradient.values()))
        assert length > plan.clip
        for name, w in params.items():
            g = gradient[name] * plan.clip / length
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.95 * square[name] + 0.05 * g * g
            move = mean[name] / (1 - 0.9 ** (step + 1))
            move = move / (np.sqrt(square[name] / (1 - 0.95 ** (step + 1))) + 1e-8)
            shrink = 1 - 0.01 * rate * (2.0 if step < 3 else 0.0)
            params[name] = shrink * w - 0.01 * rate * move
    for name, w in params.items():
        np.testing.assert_allclose(trained.params[name], w, atol=2e-3, err_msg=name)
        assert np.median(np.abs(trained.params[name] - w)) < 1e-5


def test_every_step_is_reported_with_its_parameters():
    """Number, loss and parameters after the step."""
    seen = []
    trained = train_language(
        TINY, text="abcd" * 20, stop=3, progress=lambda *told: seen.append(told)
    )
    assert [done for done, _, _ in seen] == [1, 2, 3]
    np.testing.assert_allclose([loss for _, loss, _ in seen], trained.losses, rtol=1e-6)
    np.testing.assert_array_equal(seen[-1][2]["embed_tokens"], trained.params["embed_tokens"])
    assert trained.seconds > 0


def test_the_sizes_are_named_by_their_ternary_weights():
    """55,296, 221,184 and 884,736 weights in projections; all see two million characters."""
    for size in SIZES:
        for weights in LINEAR:
            plan = recipe(size, weights)
            shapes = init_params(plan.config(83), 0)
            count = sum(w.size for name, w in shapes.items() if name.endswith("_proj"))
            assert plan.projections == count
            assert f"{count / 1000:.0f}k" == size
            assert plan.steps * plan.batch * plan.context == pytest.approx(2e6, rel=1e-3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: recipe("1k", "float"), "size must be '55k', '221k' or '885k', got '1k'"),
        (lambda: recipe("55k", "binary"), "weights must be 'float' or 'b1.58', got 'binary'"),
        (lambda: recipe("55k", "float", steps=0), "steps must be at least 1"),
        (lambda: train_language(TINY, text="abcabc"), "more than context = 8, got 6"),
        (lambda: train_language(TINY, text="abc" * 9, stop=-1), "stop must be at least 0"),
    ],
)
def test_nonsense_is_refused_by_name(call, match):
    """Before anything is trained."""
    with pytest.raises(ValueError, match=match):
        call()


# --- what is kept, and what is written -----------------------------------------------------------


def test_a_trained_model_comes_back_from_its_file(tmp_path):
    """Recipe, characters, parameters, losses; and no part of a file is left behind."""
    trained = train_language(TINY, 2, text="hello world " * 5, stop=4)
    trained.save(tmp_path / "model.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["model.npz"]
    back = TrainedModel.load(tmp_path / "model.npz")
    assert (back.recipe, back.seed, back.vocabulary) == (TINY, 2, trained.vocabulary)
    assert back.seconds == trained.seconds
    np.testing.assert_array_equal(back.losses, trained.losses)
    tokens = trained.vocabulary.encode("hello world hello")
    assert back.loss(tokens) == trained.loss(tokens)
    np.testing.assert_array_equal(
        back.model().logits(tokens[None, :8]), trained.model().logits(tokens[None, :8])
    )


def test_another_file_is_refused(tmp_path):
    """Text, another archive, pickled objects, parameters of another size: all a ValueError."""
    path = tmp_path / "model.npz"
    with pytest.raises(FileNotFoundError):
        TrainedModel.load(path)
    trained = train_language(TINY, text="hello world " * 5, stop=0)
    trained.save(path)
    with np.load(path) as file:
        parts = dict(file)
    bad = {
        "text": None,
        "no recipe": {"x": np.ones(3)},
        "pickled": parts | {"losses": np.array([{}], object)},
        "another size": parts | {"params.norm": np.ones(9, np.float32)},
        "far too large": parts | {"params.norm": np.ones(10**6, np.float32)},
        "float64": parts | {"params.norm": np.ones(8)},
        "too many layers": parts
        | {"about": np.array(str(parts["about"]).replace('"layers": 2', '"layers": 1000000000'))},
        "no parameter": {key: w for key, w in parts.items() if key != "params.norm"},
    }
    for content in bad.values():
        if content is None:
            path.write_text("no archive")
        else:
            np.savez(path, **content)
        with pytest.raises(ValueError, match="is no trained language model"):
            TrainedModel.load(path)


def test_an_array_that_is_too_large_is_not_unpacked(tmp_path, monkeypatch):
    """Its size stands in the archive's table: the error comes before the array."""
    path = tmp_path / "model.npz"
    train_language(TINY, text="hello world " * 5, stop=0).save(path)
    with np.load(path) as file:
        parts = dict(file)
    np.savez_compressed(path, **parts | {"params.norm": np.ones(10**6, np.float32)})
    read = np.lib.npyio.NpzFile.__getitem__

    def watched(self, name):
        assert name != "params.norm"
        return read(self, name)

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", watched)
    with pytest.raises(ValueError, match="norm takes 4000128 bytes, it may take 32"):
        TrainedModel.load(path)


def test_a_model_is_used_as_it_was_trained():
    """Float with float weights, b1.58 with packed ones: the loss is that of training."""
    text = load_text()[:3000]
    for weights in LINEAR:
        trained = train_language(dataclasses.replace(TINY, weights=weights), text=text)
        model, tokens = trained.model(), trained.vocabulary.encode(text[:81])
        x, y = tokens[:80].reshape(10, 8), tokens[1:81].reshape(10, 8)
        used = float(cross_entropy(model.logits(x), y))
        assert used == pytest.approx(trained.loss(tokens), abs=2e-3)


def test_writing_reads_the_last_half_anew_when_the_context_is_full():
    """By hand: every character is drawn after 4 to 7 others, with the number of its place."""
    trained = train_language(TINY, text=load_text()[:2000], stop=30)
    model, vocabulary = trained.model(), trained.vocabulary
    prompt = "".join(vocabulary.characters[i % len(vocabulary)] for i in range(11))
    text = vocabulary.encode(prompt).tolist()
    length = 4
    for position in range(11, 31):
        if length == 8:
            length = 4
        decoder = Decoder(model)
        decoder.append(text[-length:])
        number = float(uniform(9, 1, domain=TOKENS, step=position)[0])
        text.append(sample(decoder.logits(), number, temperature=0.7, top_k=5))
        length += 1
    written = write_text(model, vocabulary, prompt, 20, temperature=0.7, top_k=5, seed=9)
    assert written == vocabulary.decode(text[11:])
    with pytest.raises(ValueError, match="one character at least"):
        write_text(model, vocabulary, "", 5)


def test_a_prompt_that_fits_is_read_in_full():
    """More than half a context, up to all of it: the first character is that of `generate`."""
    trained = train_language(TINY, text=load_text()[:2000], stop=0)
    model, vocabulary = trained.model(), trained.vocabulary
    rng = np.random.default_rng(0)
    for length in (5, 7):
        for seed in range(5):
            tokens = rng.integers(0, len(vocabulary), length).tolist()
            first = list(generate(model, tokens, 1, temperature=5.0, seed=seed))
            prompt = vocabulary.decode(tokens)
            written = write_text(model, vocabulary, prompt, 1, temperature=5.0, seed=seed)
            assert written == vocabulary.decode(first)


def test_the_model_in_the_package_is_that_of_the_experiment():
    """Its loss on the held-out text is that of the 221k b1.58 run of seed 0; nothing is lost."""
    model, vocabulary = shipped_model()
    _, _, validation = shipped_text()
    assert model.config == recipe("221k", "b1.58").config(len(vocabulary))
    assert sum(isinstance(w, TernaryMatrix) for w in model.params.values()) == 14
    results = load_results("language")
    (run,) = (
        row
        for row in results["rows"]
        if row["kind"] == "run"
        and (row["size"], row["weights"], row["seed"]) == ("221k", "b1.58", 0)
    )
    loss = evaluate_loss(model.config, model.params, validation, linear=packed_linear)
    assert loss == pytest.approx(run["validation_loss"], abs=1e-4)
    for page in ("README.md", "docs/getting_started.md", "docs/reference/language.md"):
        assert f"{loss:.3f} nats per character" in (ROOT / page).read_text()


def test_threads_are_one_at_least():
    """Nobody would do the work."""
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        train_language(TINY, text=load_text()[:2000], threads=0)


# --- the experiment and the benchmark ------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """A size that trains in no time."""
    sizes = {"1k": {"hidden": 8, "inner": 12, "heads": 2, "peaks": (0.01, 0.02)}}
    for module in (experiment, bench):
        monkeypatch.setattr(module, "SIZES", sizes)
        monkeypatch.setattr(module, "recipe", lambda *a, **b: recipe_of(*a, **b))

    def recipe_of(size, weights, **overrides):
        fields = dict(sizes[size])
        peak = dict(zip(LINEAR, fields.pop("peaks"), strict=True))[weights]
        tiny = Recipe(weights, **fields, peak=peak, context=16, steps=20, warmup=2)
        return dataclasses.replace(tiny, **overrides)

    return sizes


def test_the_experiment_has_a_row_for_every_run_and_repeats_none(tmp_path, small, monkeypatch):
    """Curves and losses of each run; a second call finds them in the folder."""
    vocabulary, train, validation = shipped_text()
    train, validation = train[:3000], validation[:400]
    monkeypatch.setattr(experiment, "shipped_text", lambda: (vocabulary, train, validation))
    monkeypatch.setattr(experiment, "BLOCKS", ())
    monkeypatch.setattr(experiment, "SAMPLE", 60)
    monkeypatch.setattr(experiment, "count_rows", lambda: [{"kind": "count"}])
    lines = []
    rows = experiment.language((0, 5), Runs(tmp_path, "language", lines.append, processes=0))
    runs = [row for row in rows if row["kind"] == "run"]
    assert {(row["weights"], row["seed"], row["sub_norms"]) for row in runs} == {
        (weights, seed, norms) for weights in LINEAR for seed in (0, 5) for norms in (True, False)
    }
    for row in runs:
        name = f"1k_{row['weights']}_{row['seed']}" + ("" if row["sub_norms"] else "_plain")
        trained = TrainedModel.load(tmp_path / f"{name}.npz")
        assert trained.config.sub_norms is row["sub_norms"]
        assert row["validation_loss"] == pytest.approx(trained.loss(validation))
        assert row["training_loss"] == pytest.approx(trained.loss(train[: len(validation)]))
        assert row["tokens"] == 20 * 16 * 16
        assert row["curve"]["checked"][-1] == row["steps"]
        assert row["curve"]["validation"][-1] == pytest.approx(row["validation_loss"], abs=1e-4)
        assert np.mean(row["curve"]["training"]) == pytest.approx(trained.losses.mean(), abs=0.05)
    assert len(lines) == 8
    (decode,) = (row for row in rows if row["kind"] == "decode")
    for kind in ("packed", "float32"):  # of so small a model, panels are mostly padding
        assert decode[kind]["bytes"] > 0
        assert decode[kind]["seconds_per_token"] > 0
    monkeypatch.setattr(experiment, "train_language", None)
    again = experiment.language((0, 5), Runs(tmp_path, "language", lines.append, processes=0))
    assert [row for row in again if row["kind"] == "run"] == runs


def test_known_words_are_those_of_the_text_in_any_case():
    """Words are runs of letters; two of these four occur."""
    assert experiment.known_words("Abasement, the qzx!\n zzyzx") == (2, 4)
    assert experiment.known_words(load_text()[:5000])[0] == len(
        re.findall("[a-z]+", load_text()[:5000].lower())
    )


def test_the_count_models_have_a_loss_for_each_context():
    """Kneser-Ney and Witten-Bell, one to five characters back, on the held-out tenth."""
    rows = experiment.count_rows()
    losses = {(row["model"], row["context"]): row["validation_loss"] for row in rows}
    assert len(losses) == 10
    falling = [losses["kneser_ney", context] for context in range(1, 6)]
    assert falling == sorted(falling, reverse=True)
    assert losses["kneser_ney", 5] < losses["witten_bell", 5]


def test_the_benchmark_judges_cost_and_threads(small, monkeypatch):
    """At most three times PyTorch's step where that is installed; 1.6 on two threads, 64 rows."""
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(bench, "cpus", lambda: 2)
    report = bench.lm(Options(threads=1))
    bars = {figure.name: (figure.bar, figure.at_least) for figure in report.figures}
    for weights in LINEAR:
        assert bars[f"1k {weights}: a step"] == (None, True)
        assert bars[f"1k {weights}: speed of two threads over one"] == (None, True)
        assert bars[f"1k {weights}, 64 rows: speed of two threads over one"] == (1.6, True)
        if bench.installed("torch"):
            assert bars[f"1k {weights}: a step, over PyTorch's"] == (3.0, False)
    assert all(figure.value > 0 for figure in report.figures)


def test_what_is_not_measured_is_said(small, monkeypatch):
    """Without PyTorch or a second CPU there are fewer figures, and a note for each."""
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(bench, "cpus", lambda: 1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    report = bench.lm(Options(threads=1))
    assert [figure.name for figure in report.figures] == ["1k float: a step", "1k b1.58: a step"]
    assert len(report.notes) == 4


def test_kept_memory_is_not_asked_for_again():
    """Arrays of megabytes, made and freed again and again, cost pages only once."""
    resource = pytest.importorskip("resource")
    code = """
import resource, numpy as np
from minibit.bench.processes import keep_freed_memory
kept = keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(500_000) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first, *_, last = (faults() for _ in range(4))
print(int(kept), first, last)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, first, last = map(int, done.stdout.split())
    assert resource
    if kept:
        assert first > 5000
        assert last < 100


def test_the_model_of_a_run_is_frozen():
    """A trained model is data: its configuration fits its parameters."""
    trained = train_language(TINY, text="hello world " * 5, stop=0)
    assert isinstance(trained.model(), BitNetModel)
    with pytest.raises(dataclasses.FrozenInstanceError):
        trained.seed = 3
