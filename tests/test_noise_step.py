"""Training in ternary without backpropagation, stated as laws."""

import itertools
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minibit.absmean import absmax_quantize, fake_quant_activation
from minibit.conformance import answer_of, cases, judge
from minibit.kernels import compiled, supported
from minibit.kernels import threads as kernel_threads
from minibit.kernels.threads import cpus
from minibit.layers import (
    ACTIVATIONS,
    cross_entropy,
    layer_norm,
    mlp,
    relu,
    squared_relu,
    ternary_linear,
)
from minibit.noise import (
    LEVELS,
    draw_inputs,
    draw_units,
    inputs_of_units,
    sparse_noise,
    sparse_noise_many,
    uniform,
)
from minibit.noise_step import (
    MLP,
    NoiseStep,
    Plan,
    Sampled,
    SampledStep,
    Units,
    UnitsStep,
    apply_update,
    digest,
    direction_sums_by_jvp,
    geometric,
    initial_params,
    keep_moves,
    keep_terns,
    sparse_update,
    unit_sums_by_jvp,
)
from minibit.noise_step.unit_reference import (
    direction_sums_reference,
    forward_reference,
    unit_sums_reference,
)
from minibit.noise_step.unit_tangents import (
    added,
    chunk_edges,
    direction_chunks,
    direction_sums,
    forward,
    loss_sums,
    mean_loss,
    unit_sums,
)

widths = st.lists(st.integers(8, 40), min_size=2, max_size=5).map(tuple)
SETTINGS = {"sampled": Sampled(density=0.005, score="t"), "units": Units(units=4, rate=0.05)}


def problem(shape, seed, batch=32, zeros=0.4):
    """A random ternary MLP, inputs and labels."""
    rng = np.random.default_rng(seed)
    params = {
        f"w{i + 1}": rng.choice(
            np.array([-1, 0, 1], np.int8), (b, a), p=[(1 - zeros) / 2, zeros, (1 - zeros) / 2]
        )
        for i, (a, b) in enumerate(itertools.pairwise(shape))
    }
    x = rng.integers(0, 255, (batch, shape[0]), dtype=np.uint8)
    x[rng.random(x.shape) < 0.6] = 0
    y = rng.integers(0, shape[-1], batch)
    weight = rng.uniform(0.5, 2, batch).astype(np.float32)
    return params, x, y, weight


def some_units(params, seed):
    """A few distinct units of every layer."""
    rng = np.random.default_rng(seed)
    return [
        np.sort(rng.choice(len(w), max(1, len(w) // 2), replace=False)) for w in params.values()
    ]


def some_directions(params, seed, count=7):
    """Sparse directions, the first one empty."""
    rng = np.random.default_rng(seed)
    size = sum(w.size for w in params.values())
    drawn = [
        np.sort(rng.choice(size, min(size, 5) if p else 0, replace=False)) for p in range(count)
    ]
    positions = np.concatenate(drawn).astype(np.int64)
    offsets = np.cumsum([0, *map(len, drawn)])
    return offsets, positions, rng.choice(np.array([-1, 1], np.int8), positions.size)


kinds = st.sampled_from(ACTIVATIONS)


def model_for(shape, activations="float"):
    """Constants that keep the logits of a small network in range."""
    return MLP(
        logit_scale=1 / max(1, shape[-2]) ** 0.5,
        input_scale=0.0127,
        input_offset=-0.42,
        activations=activations,
    )


def clear(model, params, x, y, threshold=-1.0):
    """Whether no pre-activation sits on the ReLU's kink or half between two codes.

    Nor a sample on the threshold, nor two largest logits that tie. There float32 and float64 may
    fall on different sides, and both are right.
    """
    h = model.input_scale * x.astype(np.float64) + model.input_offset
    *hidden, _ = params.values()
    for layer, w in enumerate(hidden):
        z = h @ w.T
        z_hat = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + model.eps)
        if model.activations == "int8" and layer + 1 < len(hidden):
            absmax = np.abs(z_hat).max(1, keepdims=True)
            scaled = 127 * z_hat / absmax
            if absmax.min() < 0.01 or np.abs(scaled - np.floor(scaled) - 0.5).min() < 2e-4:
                return False
            h = np.maximum(np.rint(scaled), 0) * absmax / 127
            continue
        if np.abs(z_hat).min() < 1e-4:
            return False
        h = np.maximum(z_hat, 0)
    logits, _, hardness, _ = forward_reference(model, params, x, y)
    second, first = np.sort(logits, axis=1)[:, -2:].T
    return min(np.abs(hardness - threshold).min(), (first - second).min()) > 1e-4


def agree(sums, expected, bound):
    """Every entry within `bound` of the largest."""
    for a, b in zip(sums, expected, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0) <= bound * max(np.abs(b).max(initial=0), 1e-3)


# --- alignments -----------------------------------------------------------------------------------


@settings(max_examples=25)
@given(widths, st.integers(0, 1000), kinds)
def test_unit_tangents_equal_the_jvp_of_the_plain_model(shape, seed, activations):
    """Weights into a unit: fast path against float64 duals, within 1e-5 of the largest."""
    params, x, y, weight = problem(shape, seed, batch=32 if activations == "float" else 6)
    model, units = model_for(shape, activations), some_units(params, seed)
    assume(clear(model, params, x, y))
    fast = unit_sums(model, params, x, y, weight, units)
    plain = unit_sums_by_jvp(model, params, x.astype(float), y, weight, units, dtype=np.float64)
    agree(fast.alignments, plain.alignments, 1e-5)
    agree(fast.squares, plain.squares, 1e-5)
    np.testing.assert_allclose(fast.loss, plain.loss, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fast.hardness, plain.hardness, rtol=1e-4, atol=1e-5)


@settings(max_examples=25)
@given(widths, st.integers(0, 1000), kinds)
def test_sparse_directions_equal_the_jvp_of_the_plain_model(shape, seed, activations):
    """Alignments of sparse perturbations: fast path against float64 duals, 1e-5 of the largest."""
    params, x, y, weight = problem(shape, seed, batch=32 if activations == "float" else 6)
    model, directions = model_for(shape, activations), some_directions(params, seed)
    assume(clear(model, params, x, y))
    fast = direction_sums(model, params, x, y, weight, directions)
    plain = direction_sums_by_jvp(
        model, params, x.astype(float), y, weight, directions, dtype=np.float64
    )
    agree(fast.alignments, plain.alignments, 1e-5)
    agree(fast.squares, plain.squares, 1e-5)
    assert fast.alignments[0][0] == 0  # the empty direction


@settings(max_examples=25)
@given(widths, st.integers(0, 1000), st.sampled_from([-1.0, 0.4, 0.8]), kinds)
def test_the_kernels_equal_their_references(shape, seed, threshold, activations):
    """Same sums from one sample at a time as from whole batches, easy samples left out of both."""
    params, x, y, weight = problem(shape, seed, batch=32 if activations == "float" else 6)
    model, units = model_for(shape, activations), some_units(params, seed)
    directions = some_directions(params, seed)
    assume(clear(model, params, x, y, threshold))
    for fast, plain in (
        (unit_sums, unit_sums_reference),
        (direction_sums, direction_sums_reference),
    ):
        drawn = units if fast is unit_sums else directions
        sums = fast(model, params, x, y, weight, drawn, threshold=threshold)
        expected = plain(model, params, x, y, weight, drawn, threshold=threshold)
        agree(sums.alignments, expected.alignments, 2e-5)
        agree(sums.squares, expected.squares, 2e-5)
    for a, b in zip(
        forward(model, params, x, y), forward_reference(model, params, x, y), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def any_function(params, x):
    """An MLP without a `linear` argument: each candidate is a direction of its own."""
    return model_for((20, 12, 4))(params, x)


@pytest.mark.parametrize(
    ("sums", "model"),
    [
        (unit_sums, model_for((20, 12, 4))),
        (unit_sums_reference, model_for((20, 12, 4))),
        (unit_sums_by_jvp, model_for((20, 12, 4))),
        (unit_sums_by_jvp, any_function),
        (direction_sums, model_for((20, 12, 4))),
        (direction_sums_reference, model_for((20, 12, 4))),
        (direction_sums_by_jvp, any_function),
    ],
)
def test_a_sample_on_the_threshold_counts_as_learnt(sums, model):
    """``1 - p_y <= threshold`` gives no tangents, equality included: as if its weight were 0."""
    params, x, y, weight = problem((20, 12, 4), 6, batch=8)
    drawn = some_units(params, 6) if "unit" in sums.__name__ else some_directions(params, 6)
    hardness = sums(model, params, x, y, weight, drawn).hardness
    threshold = np.sort(hardness)[3]
    hard = np.where(hardness > threshold, weight, 0)
    assert np.count_nonzero(hard) == 4
    left = sums(model, params, x, y, weight, drawn, threshold=threshold)
    expected = sums(model, params, x, y, hard, drawn)
    agree(left.alignments, expected.alignments, 1e-6)
    agree(left.squares, expected.squares, 1e-6)


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_the_papers_network_agrees_on_every_input_type(dtype, activations):
    """784-256-256-256-10 at 1e-5 of the largest alignment, pixels or floats."""
    shape = (784, 256, 256, 256, 10)
    seed, batch = (3, 24) if activations == "float" else (4, 8)
    params, x, y, weight = problem(shape, seed, batch=batch, zeros=0.7)
    model = MLP(0.12, input_scale=0.0127, input_offset=-0.42, activations=activations)
    assert activations == "float" or clear(model, params, x, y)
    units = [np.array([0, 9, 255]), np.array([7, 200]), np.array([5]), np.array([0, 9])]
    fast = unit_sums(model, params, x.astype(dtype), y, weight, units)
    plain = unit_sums_by_jvp(model, params, x.astype(float), y, weight, units, dtype=np.float64)
    agree(fast.alignments, plain.alignments, 1e-5)
    agree(fast.squares, plain.squares, 1e-5)


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_sums_do_not_depend_on_the_number_of_threads(activations, monkeypatch):
    """A batch is always cut in the same parts: equal to the bit on 1, 2 and 5 threads."""
    monkeypatch.setattr("minibit.noise_step.unit_tangents.BLOCK", 8)
    shape = (40, 30, 24, 20, 7)
    params, x, y, weight = problem(shape, 1, batch=101)
    units, model = some_units(params, 1), model_for(shape, activations)
    one, *others = (
        unit_sums(model, params, x, y, weight, units, threshold=0.5, threads=n) for n in (1, 2, 5)
    )
    for other in others:
        for a, b in zip(
            one.alignments + one.squares, other.alignments + other.squares, strict=True
        ):
            np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(not compiled(), reason="there are no threads without kernels")
@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (3, 3), (None, cpus())])
def test_so_many_threads_share_a_batch_as_there_are_workers(workers, threads, monkeypatch):
    """As many as asked for, and the processors of this process where nobody asks."""
    params, x, y, _ = problem((20, 12, 4), 40)
    asked, run = [], kernel_threads.run
    monkeypatch.setattr(
        kernel_threads, "run", lambda tasks, most: (asked.append(most), run(tasks, most))[1]
    )
    forward(MLP(), params, x, y, workers)
    assert asked == [threads]


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_a_large_eps_lets_changes_of_scale_through(activations):
    """What a norm answers to a change along its own output grows with eps: no term is forgotten."""
    shape = (20, 16, 14, 12, 5)
    params, x, y, weight = problem(shape, 2, batch=6)
    model, units = replace(model_for(shape, activations), eps=4.0), some_units(params, 2)
    assert clear(model, params, x, y)
    fast = unit_sums(model, params, x, y, weight, units)
    plain = unit_sums_by_jvp(model, params, x.astype(float), y, weight, units, dtype=np.float64)
    agree(fast.alignments, plain.alignments, 1e-5)


# --- int8 activations -----------------------------------------------------------------------------


def int8_network(batch=16, seed=4):
    """A network of uneven widths with int8 activations, and a batch for it."""
    shape = (40, 24, 33, 20, 7)
    return model_for(shape, "int8"), *problem(shape, seed, batch=batch)


def test_int8_activations_are_absmax_codes_of_what_the_norms_return():
    """Spelled out: hidden layers but the last hand on relu(codes) / scale; the last one floats."""
    model, params, x, y, _ = int8_network()
    h = (model.input_scale * x + model.input_offset).astype(np.float32)
    *rounded, last, head = (w.astype(np.float32) for w in params.values())
    for w in rounded:
        codes, scale = absmax_quantize(layer_norm(h @ w.T, model.eps))
        h = np.maximum(codes, 0) / scale
    h = np.maximum(layer_norm(h @ last.T, model.eps), 0)
    expected = model.logit_scale * h @ head.T
    np.testing.assert_allclose(model(params, x), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(forward(model, params, x, y)[0], expected, rtol=1e-4, atol=1e-4)
    rough = forward(replace(model, activations="float"), params, x, y)[0]
    assert 1e-3 < np.abs(rough - expected).max() < 0.1


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_networks_of_one_hidden_layer_or_none_have_nothing_to_round(activations):
    """The last hidden layer hands floats to the logits: both kinds are one model."""
    for shape in ((30, 20, 6), (30, 20)):
        params, x, y, _ = problem(shape, 1)
        a, b = (forward(model_for(shape, kind), params, x, y)[0] for kind in ("float", activations))
        np.testing.assert_array_equal(a, b)


def test_what_holding_the_deviations_leaves_out_is_below_the_rounding():
    """Straight-through with whole layer norms gives the same alignments to a hundredth."""
    model, params, x, y, weight = int8_network(batch=64)

    def whole(params, x, linear=ternary_linear):
        h = model.input_scale * x + model.input_offset
        *rounded, last, head = params.values()
        for w in rounded:
            h = relu(fake_quant_activation(layer_norm(linear(h, w), model.eps)))
        h = relu(layer_norm(linear(h, last), model.eps))
        return model.logit_scale * linear(h, head)

    args = (params, x.astype(float), y, weight, some_units(params, 0))
    constant, full, exact = (
        unit_sums_by_jvp(f, *args, dtype=np.float64)
        for f in (model, whole, replace(model, activations="float"))
    )
    agree(constant.alignments, full.alignments, 0.01)
    for layer in (0, 1):  # above them nothing is left out
        h, f, e = (sums.alignments[layer] for sums in (constant, full, exact))
        assert 0 < np.abs(h - f).max() < 0.2 * np.abs(f - e).max()


@pytest.mark.parametrize("path", ["portable", "avx2", "vnni", "amx"])
def test_int8_sums_are_the_same_on_every_path_of_the_products(path, monkeypatch):
    """Integer products are exact, so which kernel makes them does not show in a single bit."""
    if path not in supported() or not compiled():
        pytest.skip(f"no {path} here")
    model, params, x, y, weight = int8_network(batch=50)
    units = some_units(params, 0)
    expected = unit_sums(model, params, x, y, weight, units)
    monkeypatch.setenv("MINIBIT_KERNELS", path)
    sums = unit_sums(model, params, x, y, weight, units)
    for a, b in zip(
        (*sums.alignments, *sums.squares, sums.loss),
        (*expected.alignments, *expected.squares, expected.loss),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_samples_count_once_however_a_batch_is_cut(monkeypatch):
    """Blocks of three or of all: the same sums but for their order, the same losses to the bit."""
    model, params, x, y, weight = int8_network(batch=50)
    units, directions = some_units(params, 0), some_directions(params, 0)
    for sums, drawn in ((unit_sums, units), (direction_sums, directions)):
        whole = sums(model, params, x, y, weight, drawn)
        with monkeypatch.context() as patch:
            patch.setattr("minibit.noise_step.unit_tangents.BLOCK", 3)
            parts = sums(model, params, x, y, weight, drawn)
        agree(parts.alignments, whole.alignments, 1e-5)
        agree(parts.squares, whole.squares, 1e-5)
        np.testing.assert_array_equal(parts.loss, whole.loss)


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_chunks_add_up_to_the_sums_of_the_batch_whoever_sums_them(activations):
    """To the bit, with the outcomes of the samples of each chunk, and of no others."""
    shape = (20, 12, 8, 4)
    params, x, y, weight = problem(shape, 3, batch=530)
    model, directions = model_for(shape, activations), some_directions(params, 3)
    whole = direction_sums(model, params, x, y, weight, directions)
    parts = [
        direction_chunks(model, params, x, y, weight, directions, chunks=range(*pair))
        for pair in ((0, 1), (1, 2), (2, 4))
    ]
    for total, each in ((whole.alignments, 0), (whole.squares, 1)):
        chunks = np.concatenate([part[each] for part in parts])  # (chunks, directions)
        np.testing.assert_array_equal(added(chunks).astype(np.float32), total[0])
    for number, theirs in enumerate((whole.loss, whole.hardness, whole.correct), 2):
        assert len(parts[0][number]) == chunk_edges(530)[1]
        np.testing.assert_array_equal(np.concatenate([part[number] for part in parts]), theirs)
    for chunks in (range(0), range(3, 5), range(-1, 2), range(0, 4, 2)):
        with pytest.raises(ValueError, match="chunks must be some of"):
            direction_chunks(model, params, x, y, weight, directions, chunks=chunks)


@given(st.integers(1, 300), st.floats(1e-4, 1e3), st.integers(0, 9))
def test_a_batch_has_one_loss_whoever_sums_which_of_its_chunks(samples, size, seed):
    """To the bit, for every cut between chunks; it is the weighted mean."""
    rng = np.random.default_rng(seed)
    losses = (size * rng.random(samples)).astype(np.float32)
    weight = rng.choice(np.float32([1, 3, 20]), samples)
    whole, edges = mean_loss(losses, weight), chunk_edges(samples)
    assert whole == pytest.approx(np.average(losses.astype(float), weights=weight), rel=1e-6)
    for cut in ([0, 1, 4], [0, 2, 4], [0, 1, 2, 3, 4]):
        sums = []
        for low, high in pairwise(cut):
            begin, *cuts = edges[low : high + 1]
            part = slice(begin, cuts[-1])
            sums.append(loss_sums(losses[part], weight[part], [0, *(e - begin for e in cuts)]))
        for order in (sums, sums[::-1]):
            total, weights = (sum(each) for each in zip(*order, strict=True))
            assert total / weights == whole


def test_float_inputs_of_whole_numbers_are_as_good_as_pixels():
    """Pixels go through the ternary product less 128, floats through additions: the same model."""
    model, params, x, y, _ = int8_network(batch=12)
    x[0], x[1] = 0, 255  # the ends of the range
    assert clear(model, params, x, y)
    pixels, floats = (forward(model, params, v, y)[0] for v in (x, x.astype(np.float32)))
    np.testing.assert_allclose(pixels, floats, rtol=1e-5, atol=1e-5)


def test_int8_activations_that_are_not_finite_are_refused():
    """No code stands for NaN: the step says so, and nothing moves."""
    model, params, x, y, _ = int8_network()
    stepper = NoiseStep(model, params, 0)
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(ValueError, match="finite"):
        stepper.step(np.full(x.shape, 1e300), y)
    assert stepper.steps == 0


def test_a_step_learns_with_int8_activations():
    """Two dozen steps on one batch at least halve what is left of its loss."""
    model, params, x, y, _ = int8_network(batch=64)
    stepper = NoiseStep(model, params, 0, "units", units=8, rate=0.05)
    losses = [stepper.step(x, y).loss for _ in range(24)]
    assert losses[-1] < 0.75 * losses[0]


def gated(params, x, linear=ternary_linear):
    """A model that is no MLP: a squared-ReLU gate."""
    h = linear(x, params["up"]) * squared_relu(linear(x, params["gate"]) / 8)
    return 0.4 * linear(h, params["down"])


def gated_plain(params, x):
    """The same without the `linear` argument."""
    return gated(params, x)


def gated_problem():
    """Weights, inputs and labels that the gate can learn."""
    rng = np.random.default_rng(5)
    params = {
        name: rng.integers(-1, 2, shape).astype(np.int8)
        for name, shape in (("up", (24, 9)), ("gate", (24, 9)), ("down", (4, 24)))
    }
    x = rng.standard_normal((160, 9)).astype(np.float32)
    return params, x, (x[:, 0] * x[:, 1] > 0).astype(np.int64) + 2 * (x[:, 2] > 0)


def test_a_shared_tangent_equals_one_direction_a_weight():
    """`linear` with a bump, or a one-hot direction for every candidate: the same alignments."""
    params, x, y = gated_problem()
    weight, units = np.ones(len(y), np.float32), [np.array([1, 4]), np.array([0]), np.array([3])]
    shared = unit_sums_by_jvp(gated, params, x, y, weight, units)
    direct = unit_sums_by_jvp(gated_plain, params, x, y, weight, units)
    agree(shared.alignments, direct.alignments, 1e-5)
    agree(shared.squares, direct.squares, 1e-5)


def test_a_weight_used_twice_cannot_share():
    """One bump serves one use of a weight; a second one is an error that names it."""

    def twice(params, x, linear=ternary_linear):
        return linear(x, params["w"]) + linear(x + 1, params["w"])

    params, x = {"w": np.ones((3, 2), np.int8)}, np.ones((4, 2), np.float32)
    with pytest.raises(ValueError, match="'w' again"):
        unit_sums_by_jvp(twice, params, x, np.zeros(4, int), np.ones(4), [np.array([0])])


# --- vectors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [case for case in cases("noise_step") if case.call == "NoiseStep.step"],
    ids=lambda case: case.id,
)
def test_steps_of_any_function_are_those_of_the_vectors(case):
    """A model that is no MLP, and shares no tangents, comes to the same sums, moves and weights."""

    def plain(**constants):
        model = MLP(**constants)
        return lambda params, x: model(params, x)

    offered = SimpleNamespace(NoiseStep=NoiseStep, MLP=plain)
    assert judge(case, answer_of(case, offered)) is None


# --- what is kept ---------------------------------------------------------------------------------


def test_half_of_an_even_number_is_kept():
    """The median of an even number lies between the middle two."""
    codes = keep_terns(np.array([0.1, -3.0, 2.0, -0.2]), np.ones(4), "absolute")
    np.testing.assert_array_equal(codes, [0, -1, 1, 0])


def test_ties_with_the_median_are_kept_and_zeros_get_no_code():
    """A score >= median keeps all ties; an alignment of 0 has no sign."""
    codes = keep_terns(np.array([1.0, -1.0, 1.0, 0.0, 0.0]), np.ones(5), "absolute")
    np.testing.assert_array_equal(codes, [1, -1, 1, 0, 0])
    np.testing.assert_array_equal(keep_terns(np.zeros(4), np.zeros(4), "t"), [0, 0, 0, 0])
    np.testing.assert_array_equal(keep_terns(np.zeros(0), np.zeros(0), "t"), [])


def test_an_odd_number_keeps_its_middle_score():
    """(K + 1) / 2 of K."""
    assert np.count_nonzero(keep_terns(np.arange(1.0, 6), np.ones(5), "absolute")) == 3


def test_the_t_score_prefers_agreement_to_size():
    """A large alignment whose samples disagree ranks below a small one that all share."""
    a, squares = np.array([5.0, 1.0]), np.array([1000.0, 0.26])
    np.testing.assert_array_equal(keep_terns(a, squares, "absolute"), [1, 0])
    np.testing.assert_array_equal(keep_terns(a, squares, "t"), [0, 1])


@given(st.integers(0, 10_000), st.integers(0, 30))
def test_moves_are_legal_best_and_as_many_as_asked(seed, count):
    """No move leaves {-1, 0, 1}; every kept score is at least every legal one left out."""
    rng = np.random.default_rng(seed)
    a = rng.integers(-3, 4, (3, 8)).astype(float)  # many ties and zeros
    squares, w = rng.integers(1, 3, a.shape), rng.integers(-1, 2, a.shape).astype(np.int8)
    positions, signs = keep_moves(a, squares, w, count)
    score = np.abs(a).ravel() / np.sqrt(squares.ravel())
    legal = (np.abs(w - np.sign(a)) <= 1).ravel() & (a.ravel() != 0)
    assert len(positions) == min(count, legal.sum())
    assert legal[positions].all()
    np.testing.assert_array_equal(positions, np.unique(positions))
    np.testing.assert_array_equal(signs, -np.sign(a.ravel()[positions]))
    rest = np.setdiff1d(np.flatnonzero(legal), positions)
    if len(positions) and len(rest):
        assert score[positions].min() >= score[rest].max()
        tied = score[positions].min() == score[rest]
        last = positions[score[positions] == score[positions].min()].max()
        assert not tied.any() or last < rest[tied].min()  # lowest candidate wins


# --- choices and weights --------------------------------------------------------------------------


def test_a_sampled_choice_is_the_clamped_sum_of_its_perturbations():
    """The new w is clamp(w - sum_i c_i v_i), summed first."""
    plan = Plan("sampled", 9, ("a", "b"), ((6, 50), (4, 6)), zeros=2**31, perturbations=16)
    codes = np.array([1, -1, 0, 1] * 4, np.int8)
    numerator = round(0.05 * 2**32)
    total = np.zeros(plan.size, np.int64)
    for i, c in enumerate(codes):
        positions, signs = sparse_noise(9, 3, i, plan.size, numerator)
        total[positions] -= c * signs.astype(np.int64)
    start = initial_params(plan)
    new = apply_update(start, *sparse_update(plan, 3, SampledStep(numerator, codes)))
    flat = np.concatenate([w.ravel() for w in start.values()])
    expected = np.clip(flat + total, -1, 1)
    np.testing.assert_array_equal(np.concatenate([w.ravel() for w in new.values()]), expected)
    assert np.abs(flat + total).max() > 1  # the clamp had work to do


def test_a_units_choice_moves_the_drawn_candidates_and_nothing_else():
    """Candidate u * inputs + i is the i-th drawn input of the u-th drawn unit."""
    plan = Plan("units", 4, ("a", "b"), ((9, 20), (5, 9)), 2**31, units=(3, 2), inputs=(6, 9))
    choice = UnitsStep(
        (np.array([1, 13]), np.array([10])), (np.array([1, -1], np.int8), np.array([1], np.int8))
    )
    positions, deltas = sparse_update(plan, 7, choice)
    units = draw_units(4, 7, 0, 9, 3)
    first = units[0] * 20 + draw_inputs(4, 7, 0, int(units[0]), 20, 6)[1]
    second = units[2] * 20 + draw_inputs(4, 7, 0, int(units[2]), 20, 6)[1]
    third = 180 + draw_units(4, 7, 1, 5, 2)[1] * 9 + 1
    assert dict(zip(positions.tolist(), deltas.tolist(), strict=True)) == {
        int(first): 1,
        int(second): -1,
        int(third): 1,
    }


def test_only_units_that_move_have_their_inputs_drawn(monkeypatch):
    """Replay pays for the units that were chosen, not for all that the step drew."""
    from minibit.noise_step import moves

    plan = Plan("units", 4, ("a",), ((9, 20),), 2**31, units=(5,), inputs=(6,))
    choice = UnitsStep((np.array([7, 8, 25]),), (np.array([1, -1, 1], np.int8),))
    expected, asked = sparse_update(plan, 7, choice), []

    def watched(seed, step, layer, units, n_in, count):
        asked.extend(units)
        return inputs_of_units(seed, step, layer, units, n_in, count)

    monkeypatch.setattr(moves, "inputs_of_units", watched)
    update = sparse_update(plan, 7, choice)
    np.testing.assert_array_equal(update, expected)
    assert asked == draw_units(4, 7, 0, 9, 5)[[1, 4]].tolist()


def test_an_update_leaves_its_argument_alone_and_clamps_once():
    """-1 + 2 - ... is summed before it is clamped."""
    w = {"w": np.array([[-1, 0, 1]], np.int8)}
    new = apply_update(w, np.array([0, 1, 2]), np.array([2, -5, 1], np.int32))
    np.testing.assert_array_equal(new["w"], [[1, -1, 1]])
    np.testing.assert_array_equal(w["w"], [[-1, 0, 1]])


@pytest.mark.parametrize("positions", [[3], [0, 3], [-1], [-1, 2]])
def test_an_update_outside_of_the_weights_is_refused(positions):
    """Three weights are 0, 1 and 2; position 3 is the first that is none."""
    with pytest.raises(ValueError, match=r"positions must lie in \[0, 3\)"):
        apply_update(
            {"w": np.zeros((1, 3), np.int8)}, np.array(positions), np.ones(len(positions), np.int32)
        )


def test_the_digest_is_that_of_the_bytes_in_order():
    """SHA-256 of int8 in C order, layer after layer: what any port can compute."""
    import hashlib

    w = {"a": np.array([[1, -1], [0, 1]], np.int8), "b": np.array([[1]], np.int8)}
    assert digest(w) == hashlib.sha256(bytes([1, 255, 0, 1, 1])).hexdigest()
    assert digest({"a": np.asfortranarray(w["a"]), "b": w["b"]}) == digest(w)


# --- the step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sampled", "units"])
def test_steps_replay_from_their_choices_alone(method):
    """Seed and choices give the weights back, without the data."""
    plan = Plan("units", 2, ("w1", "w2"), ((16, 30), (5, 16)), 2**31)
    params, (_, x, y, _) = initial_params(plan), problem((30, 16, 5), 2)
    stepper = NoiseStep(model_for((30, 16, 5)), params, 2, SETTINGS[method])
    again = params
    for step in range(6):
        choice = stepper.step(x, y).record
        again = apply_update(again, *sparse_update(stepper.plan, step, choice))
    assert digest(again) == digest(stepper.params) != digest(params)


@pytest.mark.parametrize("method", ["sampled", "units"])
@pytest.mark.parametrize("model", [gated, gated_plain])
def test_any_pure_function_learns(model, method):
    """A gate that is no MLP: the loss falls by a quarter without a backward pass."""
    params, x, y = gated_problem()
    stepper = NoiseStep(model, params, 0, SETTINGS[method])
    losses = [stepper.step(x, y).loss for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.75 * losses[0]


def test_the_fast_path_decides_as_the_plain_model_does():
    """Codes of both differ only where a score lies within 1e-5 of the threshold."""
    shape = (60, 32, 32, 10)
    params, x, y, _ = problem(shape, 8, batch=64)
    model = model_for(shape)
    fast = NoiseStep(model, params, 1, "sampled", density=0.005, score="t")
    plain = NoiseStep(
        lambda p, v: model(p, v.astype(np.float32)), params, 1, "sampled", density=0.005, score="t"
    )
    a, b = fast.step(x, y), plain.step(x, y)
    median = np.median(b.scores[0])
    apart = np.abs(b.scores[0] - median) > 1e-5 * b.scores[0].max()
    np.testing.assert_array_equal(a.record.codes[apart], b.record.codes[apart])
    assert apart.mean() > 0.9
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)


@pytest.mark.parametrize("inputs", [None, (9, 7)])
def test_units_never_clamp(inputs):
    """Every move of a units step changes its weight: order and signs can be undone."""
    params, x, y, _ = problem((30, 20, 6), 3)
    stepper = NoiseStep(
        model_for((30, 20, 6)), params, 3, "units", units=8, inputs=inputs, rate=0.3
    )
    for _ in range(5):
        before = np.concatenate([w.ravel() for w in stepper.params.values()])
        plan, at = stepper.plan, stepper.steps
        positions, deltas = sparse_update(plan, at, stepper.step(x, y).record)
        after = np.concatenate([w.ravel() for w in stepper.params.values()])
        np.testing.assert_array_equal(after[positions], before[positions] + deltas)
        assert len(positions)


def test_a_fraction_of_the_inputs_can_be_candidates():
    """With `inputs` below n_in only drawn inputs move, and replay agrees."""
    params, x, y, _ = problem((30, 20, 6), 3)
    stepper = NoiseStep(
        model_for((30, 20, 6)), params, 3, "units", units=8, inputs=(5, 20), rate=0.5
    )
    choice = stepper.step(x, y).record
    assert choice.positions[0].max() < 8 * 5
    assert digest(stepper.params) == digest(
        apply_update(params, *sparse_update(stepper.plan, 0, choice))
    )


def test_weights_of_samples_count():
    """Weight 0 removes a sample, weight 2 counts it twice."""
    params, x, y, _ = problem((20, 12, 4), 6, batch=8)
    model, units = model_for((20, 12, 4)), some_units(params, 6)
    weight = np.array([0, 2, 1, 1, 1, 1, 1, 1], np.float32)
    sums = unit_sums(model, params, x, y, weight, units)
    twice = np.array([1, 1, 2, 3, 4, 5, 6, 7])
    expected = unit_sums(model, params, x[twice], y[twice], np.ones(8, np.float32), units)
    agree(sums.alignments, expected.alignments, 1e-5)


@pytest.mark.parametrize("method", ["sampled", "units"])
def test_the_loss_is_the_mean_of_the_samples_by_their_weights(method):
    """sum w_b L_b / sum w_b; where no sample weighs anything, the plain mean, and nothing moves."""
    params, x, y, weight = problem((20, 12, 4), 6, batch=8)
    model = model_for((20, 12, 4))
    losses = forward(model, params, x, y)[1].astype(float)
    stepper = NoiseStep(model, params, 0, SETTINGS[method])
    empty = stepper.step(x, y, weight=np.zeros(8))
    assert empty.loss == pytest.approx(losses.mean(), rel=1e-6)
    assert digest(stepper.params) == digest(params)
    expected = (weight * losses).sum() / weight.sum()
    assert abs(expected - losses.mean()) > 0.01
    assert stepper.step(x, y, weight=weight).loss == pytest.approx(expected, rel=1e-6)


def test_a_rate_of_less_than_a_move_moves_now_and_then():
    """floor(rate N + u) of a layer's N candidates move, u drawn anew for each step and layer."""
    params, x, y, _ = problem((30, 20, 6), 3)
    stepper = NoiseStep(model_for((30, 20, 6)), params, 3, "units", units=4, rate=1 / 200)
    quotas = []
    for step in range(12):
        draws = uniform(3, (2,), domain=LEVELS, step=step)
        quotas.append([int(n / 200 + u) for n, u in zip((4 * 30, 4 * 20), draws, strict=True)])
        choice = stepper.step(x, y).record
        assert [len(moved) for moved in choice.positions] == quotas[-1]
    assert {quota for layers in quotas for quota in layers} == {0, 1}


def test_workers_of_a_step_are_now_called_threads():
    """The name before still works, and says so."""
    with pytest.warns(DeprecationWarning, match="workers is now called threads"):
        run = NoiseStep(model_for((20, 12, 4)), problem((20, 12, 4), 1)[0], 0, workers=2)
    assert run.objective.threads == 2


def test_a_schedule_is_a_function_of_the_step():
    """First and last value as given, geometric between, constant for `every` steps."""
    rate = geometric(0.08, 0.02, 5)
    np.testing.assert_allclose([rate(0), rate(2), rate(4), rate(9)], [0.08, 0.04, 0.02, 0.02])
    schedule = geometric(1.0, 0.5, 100, every=32)
    assert schedule(0) == schedule(31) != schedule(32) == schedule(63)


def test_a_perturbation_of_density_zero_changes_nothing():
    """Empty perturbations have alignment 0 and code 0."""
    params, x, y, _ = problem((20, 12, 4), 6, batch=8)
    stepper = NoiseStep(model_for((20, 12, 4)), params, 0, "sampled", density=0.0)
    assert not stepper.step(x, y).record.codes.any()


def test_settings_of_the_other_method_are_refused():
    """No setting is silently without effect: the message lists those of the method."""
    params, x, y, _ = problem((20, 12, 4), 6, batch=8)
    with pytest.raises(TypeError, match="has the settings units, inputs, rate, got density"):
        NoiseStep(MLP(), params, 0, "units", density=0.1)
    with pytest.raises(TypeError, match=r"settings belong into Sampled.*got score beside it"):
        NoiseStep(MLP(), params, 0, Sampled(), score="t")
    stepper = NoiseStep(model_for((20, 12, 4)), params, 0, "units")
    with pytest.raises(ValueError, match="density is a setting of Sampled"):
        stepper.step(x, y, density=0.1)
    assert stepper.steps == 0


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_has_64_bits(seed):
    """What the key of Philox does not hold names no run."""
    with pytest.raises(ValueError, match=r"seed must lie in"):
        NoiseStep(MLP(), problem((20, 12, 4), 6)[0], seed)


def test_a_schedule_in_stairs_holds_each_value_for_every_steps():
    """Of 7 steps by 3: the values of steps 0, 3 and 6, each from its step on."""
    smooth, stairs = geometric(0.08, 0.02, 7), geometric(0.08, 0.02, 7, every=3)
    held = [smooth(step) for step in (0, 0, 0, 3, 3, 3, 6, 6)]
    assert [stairs(step) for step in range(8)] == held


def test_pixels_are_float32_before_they_are_scaled():
    """Bytes and the same numbers as float32 have the same logits, in float32."""
    model, params = model_for((20, 12, 4)), problem((20, 12, 4), 6)[0]
    pixels = np.random.default_rng(0).integers(0, 256, (5, 20)).astype(np.uint8)
    logits = model(params, pixels)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, model(params, pixels.astype(np.float32)))


def test_a_name_with_settings_is_the_method_with_these_settings():
    """``"units", units=3`` and ``Units(units=3)`` make one plan."""
    params = problem((20, 12, 4), 6)[0]
    named = NoiseStep(MLP(), params, 0, "units", units=3)
    assert named.plan == NoiseStep(MLP(), params, 0, Units(units=3)).plan


def test_a_run_starts_at_the_weights_of_its_plan():
    """`NoiseStep.start` draws the initial weights from seed and zeros, as a replay does."""
    shapes = {"w1": (12, 20), "w2": (4, 12)}
    stepper = NoiseStep.start(MLP(), shapes, 7, Units(units=3), zeros=0.7)
    assert stepper.plan.zeros == round(0.7 * 2**32)
    assert digest(stepper.params) == digest(initial_params(stepper.plan))
    assert NoiseStep.start(MLP(), shapes, 7).plan.zeros == round(2**32 / 3)  # a third by default


def test_sums_of_arguments_that_do_not_match_are_refused():
    """Labels one per sample, and directions whose positions and signs are as many."""
    params, x, y, weight = problem((20, 12, 4), 6)
    units = [np.arange(2), np.arange(2)]
    with pytest.raises(
        ValueError, match=r"y must be one label per sample, \(32,\), got shape \(31,\)"
    ):
        unit_sums(MLP(), params, x, y[:-1], weight, units)
    directions = np.array([0, 2]), np.array([3, 9]), np.array([1], np.int8)
    with pytest.raises(ValueError, match=r"positions and signs must match, got \(2,\), \(1,\)"):
        direction_sums(MLP(), params, x, y, weight, directions)


@pytest.mark.parametrize("inputs", [None, 5])
@pytest.mark.parametrize("method", ["sampled", "units"])
def test_a_choice_moves_the_same_weights_whoever_draws(method, inputs):
    """`StepResult.update` is `sparse_update` of the choice alone, which draws only what is kept."""
    params, x, y, _ = problem((30, 20, 6), 3)
    settings = Units(units=8, inputs=inputs, rate=0.3) if method == "units" else Sampled(16, 0.02)
    stepper = NoiseStep(model_for((30, 20, 6)), params, 3, settings)
    for step in range(3):
        result = stepper.step(x, y)
        again = sparse_update(stepper.plan, step, result.record)
        np.testing.assert_array_equal(result.update.positions, again.positions)
        np.testing.assert_array_equal(result.update.deltas, again.deltas)


BAD = {
    "method": (dict(method="gradient"), ValueError, "method"),
    "score": (dict(score="z"), ValueError, "score"),
    "perturbations": (dict(perturbations=0), ValueError, "perturbations"),
    "units": (dict(method="units", units=(3, 99)), ValueError, "units"),
    "inputs": (dict(method="units", inputs=0), ValueError, "inputs"),
    "seed": (dict(seed=-1), ValueError, "seed"),
    "half a seed": (dict(seed=1.5), TypeError, "seed"),
    "half a perturbation": (dict(perturbations=2.5), ValueError, "perturbations"),
    "zeros": (dict(zeros=1.5), ValueError, "zeros"),
    "rate": (dict(method="units", rate=1.5), ValueError, "rate"),
    "density": (dict(density=-0.1), ValueError, "density"),
    "a density that no step can name": (dict(density=1.0), ValueError, "density must lie below 1"),
    "a schedule of nothing": (dict(density=lambda step: None), TypeError, "density must be"),
    "a schedule of NaN": (dict(density=lambda step: float("nan")), ValueError, "got nan"),
    "a schedule of words": (
        dict(method="units", rate="high"),
        TypeError,
        "rate must be a real number",
    ),
    "threshold": (dict(threshold=float("nan")), ValueError, "threshold must be below 1"),
    "a threshold for all": (dict(threshold=1.0), ValueError, "threshold must be below 1"),
    "threads": (dict(threads=0), ValueError, "threads must be at least 1"),
    "half a unit": (dict(method="units", units=2.5), TypeError, "units must be"),
}


@pytest.mark.parametrize(
    ("method", "settings", "kind", "match"),
    [
        (Units, dict(units=0), ValueError, "units must be at least 1, got 0"),
        (Units, dict(units=(3, -1)), ValueError, "units must be at least 1, got -1"),
        (Units, dict(units=None), TypeError, "units must be an integer, got None"),
        (Units, dict(units=2.0), TypeError, "units must be an int or one int per layer, got 2.0"),
        (Units, dict(units=True), TypeError, "units must be an integer, got True"),
        (Units, dict(inputs=(4, 2.5)), TypeError, "inputs must be an integer, got 2.5"),
        (Units, dict(inputs=0), ValueError, "inputs must be at least 1"),
        (Units, dict(rate=1.01), ValueError, r"rate must lie in \[0, 1\], got 1.01"),
        (Units, dict(rate="high"), TypeError, "rate must be a real number"),
        (Sampled, dict(perturbations=0), ValueError, "perturbations must be 1, 2, ..., got 0"),
        (Sampled, dict(density=-0.1), ValueError, r"density must lie in \[0, 1\], got -0.1"),
        (Sampled, dict(density=1.0), ValueError, "density must lie below 1, got 1.0"),
        (Sampled, dict(density="low"), TypeError, "density must be a real number"),
        (Sampled, dict(score="f"), ValueError, "score must be 'absolute' or 't', got 'f'"),
    ],
)
def test_settings_are_checked_where_they_are_made(method, settings, kind, match):
    """A method of impossible settings is none: no run is needed to find out."""
    with pytest.raises(kind, match=match):
        method(**settings)


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_arguments_are_named(case):
    """Each error names the argument."""
    fields, kind, match = BAD[case]
    params, x, y, _ = problem((20, 12, 4), 6, batch=8)
    with pytest.raises(kind, match=match):
        NoiseStep(model_for((20, 12, 4)), params, **{"seed": 0, **fields}).step(x, y)


@pytest.mark.parametrize("method", ["sampled", "units"])
@pytest.mark.parametrize(
    ("model", "loss", "match"),
    [
        (lambda p, x: (x @ p["w1"].T) * np.nan, None, "finite losses"),
        (lambda p, x: x @ p["w1"].T, lambda out, y: (out**2).mean(), r"got shape \(\)"),
        (lambda p, x: x @ p["w1"].T, lambda out, y: out**2, r"got shape \(8, 4\)"),
    ],
)
def test_a_model_or_loss_that_returns_nonsense_is_refused(method, model, loss, match):
    """NaN, one loss for the batch, one for each output: an error, and nothing moves."""
    params, x, y, _ = problem((20, 4), 6, batch=8)
    stepper = NoiseStep(model, params, 0, method, loss=loss)
    with pytest.raises(ValueError, match=match):
        stepper.step(x, y)
    assert stepper.steps == 0
    assert digest(stepper.params) == digest(params)


def test_inputs_that_float32_does_not_hold_are_refused():
    """The fast path's losses, too, must be finite: each of them."""
    params, x, y, _ = problem((20, 12, 4), 6, batch=8)
    stepper = NoiseStep(MLP(), params, 0)
    wrong = pytest.raises(ValueError, match="losses must be finite, got nan for sample 5")
    with np.errstate(over="ignore", invalid="ignore"), wrong:
        stepper.step(np.where(np.arange(8)[:, None] == 5, 1e300, x), y)


def test_an_alignment_that_overflowed_is_never_kept():
    """Infinite and NaN alignments count as 0, and leave the others' ranks alone."""
    a = np.array([[np.inf, 1.0, np.nan, -2.0]])
    positions, signs = keep_moves(a, np.array([[np.inf, 1, 1, 1]]), np.zeros((1, 4), np.int8), 3)
    np.testing.assert_array_equal(positions, [1, 3])
    np.testing.assert_array_equal(signs, [-1, 1])
    np.testing.assert_array_equal(keep_terns(a[0], np.ones(4), "absolute"), [0, 1, 0, -1])


def test_numpys_integers_name_the_same_run():
    """A seed may be a NumPy integer; the plan is JSON all the same."""
    import json

    params = problem((20, 12, 4), 6)[0]
    plan = NoiseStep(MLP(), params, np.int64(3), "units", units=np.int64(2)).plan
    assert json.dumps(plan.to_dict()) == json.dumps(
        NoiseStep(MLP(), params, 3, "units", units=2).plan.to_dict()
    )
    loose = Plan("sampled", np.uint64(3), ("a",), ((np.int64(2), 3),), np.int64(7), np.int8(2))
    assert json.dumps(loose.to_dict()) == json.dumps(
        Plan("sampled", 3, ("a",), ((2, 3),), 7, 2).to_dict()
    )


@pytest.mark.parametrize(
    ("params", "kind", "match"),
    [
        ({}, TypeError, "params"),
        ([np.ones((2, 2), np.int8)], TypeError, "params"),
        ({"w1": np.ones((2, 2))}, TypeError, r"params\['w1'\] must be int8"),
        ({"w1": np.full((2, 2), 2, np.int8)}, ValueError, "must hold -1, 0 and 1, got 2"),
        ({"w1": np.full((2, 2), -128, np.int8)}, ValueError, "got -128"),
        ({"w2": np.ones((2, 2), np.int8)}, ValueError, "in order"),
        ({"w1": np.ones((2, 2), np.int8), "w2": np.ones((2, 3), np.int8)}, ValueError, "n_in"),
    ],
)
def test_parameters_that_are_no_ternary_network_are_refused(params, kind, match):
    """int8 codes in {-1, 0, 1}, layers that fit, in order."""
    with pytest.raises(kind, match=match):
        NoiseStep(MLP(), params, 0)


def test_a_hidden_layer_is_as_wide_as_int16_counts():
    """32767 units pass, one more is refused; the last layer may be wider."""
    one = np.int8(1)

    def check(hidden):
        shapes = {"w1": (hidden, 3), "w2": (2**15, hidden)}
        MLP().check({name: np.broadcast_to(one, shape) for name, shape in shapes.items()})

    check(2**15 - 1)
    with pytest.raises(ValueError, match=r"hidden layers of 32767, got \[\(32768, 3\)"):
        check(2**15)


@pytest.mark.parametrize(
    ("x", "y", "weight", "match"),
    [
        (np.ones((3, 20)), np.zeros(2, int), None, "x and y"),
        (np.ones((0, 20)), np.zeros(0, int), None, "x and y"),
        (np.ones((3, 19)), np.zeros(3, int), None, "x must"),
        (np.full((3, 20), np.nan), np.zeros(3, int), None, "x must be finite"),
        (np.ones((3, 20)), np.array([0, 1, 4]), None, "y must"),
        (np.ones((3, 20)), np.array([0, 1, -1]), None, "y must"),
        (np.ones((3, 20)), np.zeros(3), None, "y must"),
        (np.ones((3, 20)), np.zeros(3, int), np.array([1, -1, 1.0]), "weight"),
        (np.ones((3, 20)), np.zeros(3, int), np.ones(2), "weight"),
    ],
)
def test_bad_batches_are_refused_before_anything_moves(x, y, weight, match):
    """Shapes, labels, weights and finite inputs are checked on the fast path too."""
    params = problem((20, 12, 4), 6)[0]
    stepper = NoiseStep(MLP(), params, 0)
    with pytest.raises((ValueError, TypeError), match=match):
        stepper.step(x, y, weight=weight)
    assert stepper.steps == 0
    assert digest(stepper.params) == digest(params)


def test_activations_of_another_kind_are_refused():
    """By the model and by the layer function; the message says what there is."""
    with pytest.raises(ValueError, match="activations must be 'float' or 'int8', got 'int4'"):
        MLP(activations="int4")
    with pytest.raises(ValueError, match="activations must be 'float' or 'int8', got 8"):
        mlp({"w1": np.ones((2, 2), np.int8)}, np.ones((1, 2)), activations=8)


@pytest.mark.parametrize("field", ["logit_scale", "eps"])
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_constants_that_leave_no_model_are_refused(field, bad):
    """Scale and eps must be positive and finite."""
    with pytest.raises(ValueError, match=field):
        MLP(**{field: bad})


def test_a_loss_of_ones_own_is_used():
    """Any per-sample negative log-likelihood; here cross entropy by hand gives the same codes."""
    params, x, y = gated_problem()
    own = NoiseStep(
        gated, params, 0, density=0.02, loss=lambda z, t: cross_entropy(z, t, reduction="none")
    )
    default = NoiseStep(gated, params, 0, density=0.02)
    np.testing.assert_array_equal(own.step(x, y).record.codes, default.step(x, y).record.codes)


def test_perturbations_are_those_of_the_noise():
    """The step's directions come from (seed, step, perturbation): nothing else is drawn."""
    params, x, y, _ = problem((20, 12, 4), 6, batch=8)
    stepper = NoiseStep(model_for((20, 12, 4)), params, 5, perturbations=8, density=0.02)
    stepper.steps = 3
    result = stepper.step(x, y)
    drawn = sparse_noise_many(5, 3, np.arange(8), stepper.plan.size, 0.02)
    weight = np.ones(8, np.float32)
    sums = direction_sums(model_for((20, 12, 4)), params, x, y, weight, drawn)
    np.testing.assert_array_equal(result.alignments[0], sums.alignments[0] / 8)


def test_raw_pixels_share_a_tangent_without_wrapping_around():
    """A model that hands uint8 pixels to `linear` gets the squares of numbers, not of bytes."""

    def pixels(params, x, linear=ternary_linear):
        return 0.001 * linear(x, params["w"])

    rng = np.random.default_rng(0)
    params = {"w": rng.integers(-1, 2, (4, 6)).astype(np.int8)}
    x, y = rng.integers(0, 256, (9, 6), dtype=np.uint8), rng.integers(0, 4, 9)
    args = (params, x, y, np.ones(9), [np.array([0, 3])])
    shared = unit_sums_by_jvp(pixels, *args)
    direct = unit_sums_by_jvp(lambda p, v: pixels(p, v.astype(np.float32)), *args)
    agree(shared.squares, direct.squares, 1e-5)


def test_a_model_that_shares_wrongly_is_told_what_linear_needs():
    """Each parameter once, one row per sample; a parameter left out is named."""
    params = {"a": np.ones((2, 3), np.int8), "b": np.ones((2, 2), np.int8)}
    args = (params, np.ones((4, 4, 3)), np.zeros(4, int), np.ones(4), [np.array([0])] * 2)

    def positions(params, x, linear=ternary_linear):
        return linear(x, params["a"]).sum(1)

    def forgetful(params, x, linear=ternary_linear):
        return linear(x[:, 0], params["a"])

    with pytest.raises(ValueError, match="one row per sample with 'a'"):
        unit_sums_by_jvp(positions, *args)
    with pytest.raises(ValueError, match=r"never got \['b'\]"):
        unit_sums_by_jvp(forgetful, *args)


@pytest.mark.parametrize("method", ["sampled", "units"])
def test_a_model_that_gives_nan_is_an_error(method):
    """No step is taken on tangents that are no numbers."""
    params, x, y = gated_problem()
    stepper = NoiseStep(lambda p, v: gated(p, v) * np.nan, params, 0, SETTINGS[method])
    with pytest.raises(ValueError, match="model must give finite"):
        stepper.step(x, y)
    assert stepper.steps == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weight": np.ones(3, np.float32)}, "weight must be one number per sample"),
        ({"units": [np.array([0]), np.array([99])]}, "units of 'w2' must lie in"),
        ({"units": [np.array([0])]}, "units must be one array per layer"),
        ({"params": {"w1": np.ones((5, 6)), "w2": np.ones((3, 5), np.int8)}}, "w1.*int8 codes"),
    ],
    ids=str,
)
def test_the_kernels_are_called_with_nothing_unchecked(change, match):
    """Short weights, units out of range and floats for codes never reach compiled code."""
    params, x, y, weight = problem((6, 5, 3), 0, batch=8)
    units = [np.array([0]), np.array([1])]
    args = {"params": params, "x": x, "y": y, "weight": weight, "units": units, **change}
    with pytest.raises(ValueError, match=match):
        unit_sums(model_for((6, 5, 3)), **args)


@pytest.mark.parametrize(
    ("offsets", "positions", "match"),
    [
        ([0, 1], [45], "positions"),
        ([0, 1], [-1], "positions"),
        ([0, 2], [1], "offsets"),
        ([1, 1], [1], "offsets"),
        ([0, 1, 0, 1], [1], "offsets"),
    ],
)
def test_directions_out_of_range_are_refused(offsets, positions, match):
    """Positions within the weights; offsets from 0 to their number, never falling."""
    params, x, y, weight = problem((6, 5, 3), 0, batch=8)
    signs = np.ones(len(positions), np.int8)
    with pytest.raises(ValueError, match=match):
        direction_sums(
            model_for((6, 5, 3)),
            params,
            x,
            y,
            weight,
            (np.array(offsets), np.array(positions), signs),
        )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: keep_terns(np.ones(4), np.ones(4), "size"),
            ValueError,
            "score must be 'absolute' or 't', got 'size'",
        ),
        (
            lambda: digest({"w1": np.ones((1, 2), np.float32)}),
            TypeError,
            r"params\['w1'\] must be int8 codes, got float32",
        ),
        (
            lambda: Units().plan({"w1": (2, 3), "b1": (2,)}, 0, 0),
            ValueError,
            r"params\['b1'\] must be \(n_out, n_in\) for units, got shape \(2,\)",
        ),
    ],
)
def test_a_score_codes_and_shapes_that_no_step_has_are_refused(call, error, message):
    """By name: another score, a digest of floats, units of what is no matrix."""
    with pytest.raises(error, match=message):
        call()
