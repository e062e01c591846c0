"""A model is its steps, stated as laws: log, replay, slices, edits, crashes."""

import json
import linecache
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from contextlib import contextmanager, suppress
from math import comb, log2
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibit.conformance import cases, decode
from minibit.noise_step import (
    Plan,
    SampledStep,
    UnitsStep,
    apply_update,
    digest,
    initial_params,
    sparse_update,
)
from minibit.steps import LogError, StepLog, compact, expand
from minibit.steps.bounds import draws
from minibit.steps.codes import encode_sampled
from minibit.steps.file import pack_header, pack_record, scan
from minibit.steps.replaying import advance, initial_flat

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "log_format.md"
few = settings(max_examples=20)


# --- Plans and steps to test with


@st.composite
def plans(draw, method=None):
    """Small plans of one to three layers."""
    method = method or draw(st.sampled_from(["sampled", "units"]))
    a_shape = st.tuples(st.integers(1, 6), st.integers(1, 9))
    if method == "sampled":
        a_shape |= st.lists(st.integers(1, 4), max_size=3).map(tuple)
    shapes = draw(st.lists(a_shape, min_size=1, max_size=3))
    return Plan(
        method=method,
        seed=draw(st.integers(0, 2**64 - 1)),
        names=tuple(f"w{i}" for i in range(len(shapes))),
        shapes=tuple(shapes),
        zeros=draw(st.integers(0, 2**32)),
        perturbations=draw(st.integers(1, 6)) if method == "sampled" else 0,
        units=tuple(draw(st.integers(0, n)) for n, _ in shapes) if method == "units" else (),
        inputs=tuple(draw(st.integers(0, n)) for _, n in shapes) if method == "units" else (),
    )


@st.composite
def steps_of(draw, plan):
    """One step that fits a plan."""
    if plan.method == "sampled":
        count = plan.perturbations
        codes = draw(st.lists(st.integers(-1, 1), min_size=count, max_size=count))
        return SampledStep(draw(st.sampled_from([2**27, 2**29])), np.array(codes, np.int8))
    layers = [
        draw(st.dictionaries(st.integers(0, size - 1), st.sampled_from([-1, 1]), max_size=9))
        if (size := units * inputs)
        else {}
        for units, inputs in zip(plan.units, plan.inputs, strict=True)
    ]
    return UnitsStep(
        tuple(np.array(sorted(layer), np.int64) for layer in layers),
        tuple(np.array([layer[q] for q in sorted(layer)], np.int8) for layer in layers),
    )


@st.composite
def runs(draw, method=None, most=40):
    """A plan and some steps of it."""
    plan = draw(plans(method))
    few_kinds = draw(st.lists(steps_of(plan), min_size=1, max_size=5))
    order = draw(st.lists(st.sampled_from(range(len(few_kinds))), max_size=most))
    return plan, [few_kinds[i] for i in order]


def header_of(plan):
    return {"plan": plan.to_dict(), "recipe": {"rate": 0.5}}


@contextmanager
def a_log(plan, steps=(), name="run.steps"):
    """A log in a folder of its own."""
    with (
        tempfile.TemporaryDirectory() as folder,
        StepLog.create(Path(folder) / name, header_of(plan)) as log,
    ):
        log.append(steps)
        yield log


def folded(plan, steps):
    """The weights after every step, by noise_step's own pure functions."""
    history = [initial_params(plan)]
    for number, step in enumerate(steps):
        history.append(apply_update(history[-1], *sparse_update(plan, number, step)))
    return history


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        assert a[name].dtype == b[name].dtype == np.int8


def same_steps(a, b):
    for one, other in zip(a, b, strict=True):
        if isinstance(one, SampledStep):
            assert one.numerator == other.numerator
            np.testing.assert_array_equal(one.codes, other.codes)
        else:
            for mine, theirs in zip(
                (*one.positions, *one.signs), (*other.positions, *other.signs), strict=True
            ):
                np.testing.assert_array_equal(mine, theirs)


SMALL = Plan("units", 3, ("a", "b"), ((6, 10), (4, 6)), zeros=2**31, units=(3, 2), inputs=(10, 4))
PAPER = Plan("sampled", 3, ("a", "b"), ((6, 10), (4, 6)), zeros=2**31, perturbations=8)


def random_steps(plan, count, seed=0):
    """Steps for SMALL and PAPER, busy enough to clamp."""
    rng = np.random.default_rng(seed)
    if plan.method == "sampled":
        codes = rng.integers(-1, 2, (count, plan.perturbations)).astype(np.int8)
        return [SampledStep(2**28, row) for row in codes]
    steps = []
    for _ in range(count):
        sizes = [u * i for u, i in zip(plan.units, plan.inputs, strict=True)]
        positions = [np.sort(rng.choice(n, rng.integers(0, 4), replace=False)) for n in sizes]
        signs = [rng.choice([-1, 1], q.size).astype(np.int8) for q in positions]
        steps.append(UnitsStep(tuple(positions), tuple(signs)))
    return steps


# --- Log and replay


def test_a_step_is_priced_by_its_entries_or_its_blocks_of_noise():
    """``size * density`` entries per kept perturbation, at least one per block of 65536."""
    plan = Plan("sampled", 0, ("w",), ((256, 1024),), 2**31, perturbations=4)
    codes = np.array([1, 0, -1, 1], np.int8)
    assert draws(plan, SampledStep(2**30, codes)) == 3 * 2**18 // 4
    assert draws(plan, SampledStep(1, codes)) == 3 * 2**18 // 2**16
    units = UnitsStep((np.array([0]), np.array([], np.int64)), (np.array([1]), np.array([])))
    assert draws(SMALL, units) == 3 * 1  # ten of ten inputs are no draw


@few
@given(runs(), st.integers(1, 40))
def test_a_log_gives_back_its_steps_and_its_weights(run, batch):
    """Steps as appended, weights as noise_step's pure functions fold them, digests of both."""
    plan, steps = run
    history = folded(plan, steps)
    with a_log(plan) as log:
        for start in range(0, len(steps), batch):
            log.append(steps[start : start + batch])
        again = StepLog.open(log.path)
        assert len(log) == len(again) == len(steps)
        assert again.plan == plan
        assert again.header == json.loads(json.dumps(header_of(plan)))
        assert again.nbytes == log.nbytes == log.path.stat().st_size
        same_steps([*again.steps()], steps)
        same(again.replay(), history[-1])
        assert again.verify() == again.digest() == log.digest() == digest(history[-1])
        for step in {0, len(steps) // 2, len(steps)}:
            same(again.weights_at(step), history[step])
            same(again.replay(until=step), history[step])
            assert again.digest(step) == digest(history[step])


@few
@given(runs(), st.data())
def test_walking_visits_the_weights_of_every_step_asked_for(run, data):
    """One replay, any increasing steps; each dict is its own."""
    plan, steps = run
    at = sorted(data.draw(st.sets(st.integers(0, len(steps)))))
    history = folded(plan, steps)
    with a_log(plan, steps) as log:
        visited = [*log.walk(at)]
    assert [step for step, _ in visited] == at
    for step, params in visited:
        same(params, history[step])


@few
@given(runs(), st.data())
def test_rows_alone_equal_the_rows_of_the_whole(run, data):
    """Any rows of any layer at any step, doubled and out of order, without the others."""
    plan, steps = run
    step = data.draw(st.integers(0, len(steps)))
    layer = data.draw(st.integers(0, len(plan.names) - 1))
    n_out, *others = plan.shapes[layer] or (1,)
    rows = data.draw(st.lists(st.integers(0, n_out - 1), max_size=4))
    with a_log(plan, steps) as log:
        whole = log.weights_at(step)[plan.names[layer]].reshape(n_out, *others)
        np.testing.assert_array_equal(log.slice(layer, np.array(rows, int), step), whole[rows])
        np.testing.assert_array_equal(log.slice(plan.names[layer], slice(None), step), whole)
        assert log.slice(layer, n_out - 1, step).shape == (1, *others)
        assert log.slice(layer, np.zeros(n_out, bool)).shape == (0, *others)


def test_rows_sum_all_moves_of_a_step_before_they_clamp():
    """At density 1/2 and eight perturbations, nearly every weight is hit several times a step."""
    rng = np.random.default_rng(0)
    steps = [SampledStep(2**31, rng.integers(-1, 2, 8).astype(np.int8)) for _ in range(4)]
    with a_log(PAPER, steps) as log:
        for step in range(5):
            whole = log.weights_at(step)
            np.testing.assert_array_equal(log.slice("a", slice(None), step), whole["a"])
            np.testing.assert_array_equal(log.slice("b", [3, 1], step), whole["b"][[3, 1]])


def test_rows_of_a_larger_layer_come_from_their_own_noise_blocks(monkeypatch):
    """Sampled: only blocks that meet the rows are drawn; the rows agree across block borders."""
    from minibit import noise

    shapes = ((50, 700), (300, 50), (4, 9000))
    plan = Plan("sampled", 5, ("a", "b", "c"), shapes, 2**31, perturbations=4)
    rng = np.random.default_rng(0)
    steps = [SampledStep(2**20, rng.integers(-1, 2, 4).astype(np.int8)) for _ in range(20)]
    asked = []
    with a_log(plan, steps) as log:
        whole = log.replay()
        draw = noise.sparse_noise_many

        def watched(seed, step, numbers, size, density, blocks):
            asked.append([*blocks])
            return draw(seed, step, numbers, size, density, blocks)

        monkeypatch.setattr(noise, "sparse_noise_many", watched)
        for layer, rows in (("a", [0, 49, 20]), ("c", [1]), ("b", [299, 0]), ("b", [120])):
            np.testing.assert_array_equal(log.slice(layer, rows), whole[layer][rows])
    assert [120 * 50 + 35_000 >> 12, 121 * 50 + 34_999 >> 12] == [10, 10]  # blocks of 2**12
    assert {tuple(blocks) for blocks in asked[-20:]} == {(10,)}


@few
@given(runs(), st.data())
def test_differences_add_up(run, data):
    """w_a + diff(a, b) = w_b; diff(a, b) + diff(b, c) = diff(a, c); diff(b, a) = -diff(a, b)."""
    plan, steps = run
    a, b, c = (data.draw(st.integers(0, len(steps))) for _ in range(3))
    with a_log(plan, steps) as log:
        ab, bc, ac, ba = log.diff(a, b), log.diff(b, c), log.diff(a, c), log.diff(b, a)
        before, after = log.weights_at(a), log.weights_at(b)
    same({name: before[name] + ab[name] for name in ab}, after)
    same({name: ab[name] + bc[name] for name in ab}, ac)
    same({name: -ab[name] for name in ab}, ba)


def test_weights_returned_are_the_callers_own():
    """Writing into them changes no later answer."""
    with a_log(SMALL, random_steps(SMALL, 3)) as log:
        expected = log.digest()
        for params in (log.replay(), log.weights_at(0), dict(log.walk([3]))[3]):
            params["a"][:] = 1
        log.header["plan"] = None
        assert log.digest() == StepLog.open(log.path).digest() == expected
        assert log.header["plan"] is not None


@pytest.mark.parametrize("step", [-1, 4])
def test_steps_that_are_not_there_are_refused(step):
    """Weights are known after 0 to len(log) steps."""
    with a_log(SMALL, random_steps(SMALL, 3)) as log:
        for ask in (
            log.replay,
            log.weights_at,
            log.digest,
            lambda n: log.diff(0, n),
            lambda n: [*log.walk([n])],
            lambda n: log.slice(0, 0, n),
        ):
            with pytest.raises(ValueError, match=rf"must lie in \[0, 3\], got {step}"):
                ask(step)
        for at in ([2, 1], [3, 3]):
            with pytest.raises(ValueError, match="must increase"):
                [*log.walk(at)]
        with pytest.raises(ValueError, match="layer must"):
            log.slice(2, 0)
        with pytest.raises(ValueError, match="layer must"):
            log.slice("c", 0)
        with pytest.raises(IndexError):
            log.slice(0, 6)


def test_records_hold_at_most_32_steps_and_one_density():
    """Appending 70 steps, the last of another density, makes records of 32, 32, 5 and 1."""
    steps = random_steps(PAPER, 69)
    with a_log(PAPER, [*steps, SampledStep(2**27, steps[0].codes)]) as log:
        assert [record.steps for record in log.records] == [32, 32, 5, 1]
        assert [record.first for record in StepLog.open(log.path).records] == [0, 32, 64, 69]
        size = log.nbytes
        log.append([])
        assert log.nbytes == size
        log.append(steps[0])
        assert len(log) == 71


@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_every_path_replays_to_the_same_weights(kernels, monkeypatch):
    """Fixed runs, with Numba's kernels and without: the digests that the page's reader finds."""
    monkeypatch.setenv("MINIBIT_KERNELS", kernels)
    sampled = Plan("sampled", 9, ("a",), ((40, 200),), 2**31, perturbations=16)
    terns = (np.arange(480) % 7 % 3 - 1).astype(np.int8).reshape(30, 16)
    units = Plan("units", 9, ("a",), ((40, 200),), 2**31, units=(5,), inputs=(30,))
    where = [np.arange(step % 4, 150, 1 + step % 11) for step in range(30)]
    digests = []
    for plan, steps in (
        (sampled, [SampledStep(2**22, row) for row in terns]),
        (units, [UnitsStep((q,), ((q % 5 % 2 * 2 - 1).astype(np.int8),)) for q in where]),
    ):
        with a_log(plan, steps) as log:
            digests.append(log.verify()[:16])
            page_reader()["replay"](log.path.read_bytes())
    assert digests == ["ca290d13502772d1", "4a3999e416c83057"]


def test_threads_read_while_another_appends():
    """Every reader sees a whole prefix, and the same weights for the same step."""
    steps = random_steps(SMALL, 120)
    expected = [digest(params) for params in folded(SMALL, steps)]
    wrong = []
    with a_log(SMALL) as log:

        def read():
            for _ in range(15):
                step = len(log)
                if log.digest(step) != expected[step] or digest(log.replay(step)) != expected[step]:
                    wrong.append(step)
                if not np.array_equal(log.slice("a", [1], step), log.weights_at(step)["a"][[1]]):
                    wrong.append(step)

        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        for start in range(0, 120, 10):
            log.append(steps[start : start + 10])
        for reader in readers:
            reader.join()
        assert log.verify() == expected[-1]
    assert wrong == []


# --- Sizes


def test_a_strict_run_keeps_within_its_bytes():
    """1550 steps of 128 codes, half of them zero: 40,500 bytes with a header of 1,300."""
    plan = Plan("sampled", 0, ("w",), ((2, 2),), 2**31, perturbations=128)
    rng = np.random.default_rng(0)
    codes = np.repeat([[0, 1]], 64, axis=1) * rng.choice([-1, 1], (1550, 128))
    steps = [
        SampledStep(numerator, rng.permutation(row).astype(np.int8))
        for numerator, row in zip([9] * 300 + [5] * 400 + [2] * 850, codes, strict=True)
    ]
    with a_log(plan, steps) as log:
        assert log.nbytes - len(pack_header(log.header)) <= 40_500 - 1_300 - 18
        payloads = sum(len(record.payload) for record in log.records)
        assert payloads <= 1550 * 128 * 1.5 / 8 + 5 * len(log.records)


def test_a_units_run_costs_little_more_than_its_entropy():
    """Records of 32 steps at a real run's densities: under 3.5% above log2 C(N, K) + K, framed."""
    sizes = (12_544, 4096, 4096, 1024)
    plan = Plan(
        "units", 0, ("a", "b", "c", "d"), ((16, 784), (16, 256), (16, 256), (4, 256)), 2**31,
        units=(16, 16, 16, 4), inputs=(784, 256, 256, 256),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    ideal, steps = 0.0, []
    for step in range(256):
        counts = [int(0.003 * 0.133 ** (step / 800) * n + rng.random()) for n in sizes]
        positions = [
            np.sort(rng.choice(n, k, replace=False)) for n, k in zip(sizes, counts, strict=True)
        ]
        signs = [rng.choice([-1, 1], k).astype(np.int8) for k in counts]
        steps.append(UnitsStep(tuple(positions), tuple(signs)))
        ideal += sum(log2(comb(n, k)) + k for n, k in zip(sizes, counts, strict=True))
    with a_log(plan, steps) as log:
        spent = 8 * (log.nbytes - len(pack_header(log.header)))
    assert ideal < spent < 1.035 * ideal


@few
@given(runs(), st.data())
def test_the_compact_form_expands_to_the_weights(run, data):
    """Exactly, at any step."""
    plan, steps = run
    step = data.draw(st.integers(0, len(steps)))
    with a_log(plan, steps) as log:
        same(expand(plan, compact(log, step)), log.weights_at(step))


def test_a_damaged_compact_form_is_refused():
    """Every byte of it, every cut, and another plan."""
    with a_log(SMALL, random_steps(SMALL, 20)) as log:
        data = compact(log)
    for offset in range(len(data)):
        for bad in (data[:offset], data[:offset] + bytes([data[offset] ^ 4]) + data[offset + 1 :]):
            with pytest.raises(LogError, match="compact model"):
                expand(SMALL, bad)
    other = Plan.from_dict({**SMALL.to_dict(), "seed": 4})
    with pytest.raises(LogError, match="compact model"):
        expand(other, data)


# --- Edits


@few
@given(runs(), st.data())
def test_masking_leaves_out_the_moves_of_the_steps(run, data):
    """The copy replays as if they had not been; the original is not touched."""
    plan, steps = run
    chosen = data.draw(st.sets(st.sampled_from(range(len(steps))))) if steps else set()
    params = initial_params(plan)
    for number, step in enumerate(steps):
        if number not in chosen:
            params = apply_update(params, *sparse_update(plan, number, step))
    with a_log(plan, steps) as log:
        before = log.path.read_bytes()
        edited = log.mask(chosen, log.path.with_name("edited"))
        assert log.path.read_bytes() == before
        again = StepLog.open(edited.path)
        same(edited.replay(), params)
        assert again.verify() == digest(params)
        assert len(again) == len(steps)
        assert again.header["edits"][0]["source"] == log.digest()
        same(log.mask(slice(None), log.path.with_name("none")).replay(), initial_params(plan))


@few
@given(runs(), st.data())
def test_negating_turns_the_moves_round_and_back(run, data):
    """Weights move the other way; the same edit again gives back the steps, so the weights."""
    plan, steps = run
    chosen = data.draw(st.sets(st.sampled_from(range(len(steps))))) if steps else set()
    params = initial_params(plan)
    for number, step in enumerate(steps):
        positions, deltas = sparse_update(plan, number, step)
        params = apply_update(params, positions, -deltas if number in chosen else deltas)
    with a_log(plan, steps) as log:
        there = log.negate(chosen, log.path.with_name("there"))
        same(there.replay(), params)
        back = there.negate(chosen, log.path.with_name("back"))
        same_steps([*back.steps()], steps)
        assert back.verify() == log.digest()
        assert [edit["edit"] for edit in back.header["edits"]] == ["negate", "negate"]


def test_the_tail_undone_in_reverse_gives_the_weights_before_it():
    """Where nothing clamps, moves can be taken back one by one, last first."""
    params = {"w": np.zeros((2, 20), np.int8)}
    plan = Plan("units", 3, ("w",), ((2, 20),), 2**32, units=(2,), inputs=(20,))
    first = UnitsStep((np.arange(0, 40, 2),), (np.ones(20, np.int8),))
    second = UnitsStep((np.arange(0, 40, 4),), (-np.ones(10, np.int8),))
    with a_log(plan, [first, second]) as log:
        moves = [sparse_update(plan, number, step) for number, step in enumerate(log.steps())]
        params = log.replay()
        for positions, deltas in reversed(moves):
            params = apply_update(params, positions, -deltas)
        same(params, log.weights_at(0))


@few
@given(runs(), st.data())
def test_one_log_after_another_keeps_each_steps_own_noise(run, data):
    """a.concat(b): a's weights after len(a) steps, then b's moves with b's seed and numbers."""
    plan, steps = run
    other = Plan.from_dict({**plan.to_dict(), "seed": data.draw(st.integers(0, 2**64 - 1))})
    more = data.draw(st.lists(st.sampled_from(steps), max_size=5)) if steps else []
    with a_log(plan, steps) as a, a_log(other, more) as b:
        joined = a.concat(b, a.path.with_name("joined"))
        assert len(joined) == len(a) + len(b)
        assert joined.digest(len(a)) == a.digest()
        params = a.replay()
        for number, step in enumerate(more):
            params = apply_update(params, *sparse_update(other, number, step))
        same(joined.replay(), params)
        assert StepLog.open(joined.path).verify() == digest(params)

        # Concatenation is associative, and an empty log changes nothing.
        left = joined.concat(a, a.path.with_name("left"))
        right = a.concat(b.concat(a, a.path.with_name("b+a")), a.path.with_name("right"))
        assert left.digest() == right.digest()
        assert left.header.get("segments") == right.header.get("segments")

        # Masking an edited log keeps its segments; new steps after them have their own number.
        masked = joined.mask([], a.path.with_name("masked"))
        assert masked.digest() == joined.digest()
        if steps:
            number = len(joined)
            joined.append(steps[0])
            expected = apply_update(params, *sparse_update(plan, number, steps[0]))
            same(StepLog.open(joined.path).replay(), expected)


def test_steps_appended_within_the_headers_segments_take_their_names():
    """As when a joined log was cut within its second part, recovered, and written on."""
    steps = random_steps(SMALL, 6)
    header = {**header_of(SMALL), "segments": [[5, 7, 3], [6, 0, 2]]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        with StepLog.create(path, header) as log:
            for step in steps:
                log.append(step)
        names = [(5, 7), (5, 8), (5, 9), (6, 0), (6, 1), (SMALL.seed, 5)]
        params = initial_params(SMALL)
        for (seed, number), step in zip(names, steps, strict=True):
            plan = Plan.from_dict({**SMALL.to_dict(), "seed": seed})
            params = apply_update(params, *sparse_update(plan, number, step))
        assert StepLog.open(path).verify() == digest(params)
        page_reader()["replay"](path.read_bytes())


def test_logs_of_other_plans_do_not_follow_each_other():
    """Shapes, names, method and draws must agree."""
    with a_log(SMALL) as a, a_log(PAPER) as b:
        with pytest.raises(ValueError, match="only logs of one plan"):
            a.concat(b, a.path.with_name("joined"))
        assert not a.path.with_name("joined").exists()


def test_an_edit_never_writes_over_a_file():
    """Not even its own source."""
    with a_log(SMALL, random_steps(SMALL, 2)) as log:
        before = log.path.read_bytes()
        for edit in (log.negate, log.mask):
            with pytest.raises(FileExistsError, match="exists; nothing was changed"):
                edit(0, log.path)
        assert log.path.read_bytes() == before


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, [[1, 2]]),
        ([4, 0, 1, 1], [[0, 2], [4, 5]]),
        (slice(-2, None), [[3, 5]]),
        (range(0, 5, 2), [[0, 1], [2, 3], [4, 5]]),
        (np.array([True, False, False, True, True]), [[0, 1], [3, 5]]),
        (np.int64(2), [[2, 3]]),
        ([], []),
    ],
)
def test_steps_to_edit_are_named_as_numpy_would(steps, expected):
    """A number, a list, a slice, a range or a mask; the header keeps them as intervals."""
    with a_log(SMALL, random_steps(SMALL, 5)) as log:
        edited = log.mask(steps, log.path.with_name("edited"))
        assert edited.header["edits"][0]["steps"] == expected


def test_an_empty_log_has_no_step_to_edit():
    """Nothing of it can be masked but nothing."""
    with a_log(SMALL) as log:
        with pytest.raises(ValueError, match="steps must be those of the log, which has none"):
            log.mask(0, log.path.with_name("out"))
        assert len(log.mask([], log.path.with_name("out"))) == 0
        with pytest.raises(TypeError, match="steps must be one step or several, got 5"):
            log.append(5)


@pytest.mark.parametrize("steps", [5, -1, [0, 5], [0.5], np.ones(4, bool), "all", None])
def test_steps_that_cannot_be_edited_are_refused(steps):
    """Out of range, no integers, a mask of another length; no file appears."""
    with a_log(SMALL, random_steps(SMALL, 5)) as log:
        with pytest.raises((ValueError, TypeError), match="steps"):
            log.mask(steps, log.path.with_name("edited"))
        assert [*log.path.parent.iterdir()] == [log.path]


# --- Damage, crashes, writers


def test_opening_never_writes_even_to_a_torn_log():
    """Bytes and times stay; the tail is told of; appending refuses; recovery cuts it, once."""
    steps = random_steps(SMALL, 8)
    with a_log(SMALL, steps[:4]) as log:
        log.append(steps[4:6])
        log.close()
        whole, path = log.path.read_bytes(), log.path
        good = log.records[-1].offset
        path.write_bytes(whole[:-3])
        before = path.stat()
        torn = StepLog.open(path)
        assert (len(torn), torn.nbytes, torn.torn_at) == (4, good, good)
        assert torn.warning.startswith(f"torn at byte {good}: a record of ")
        torn.verify()
        torn.mask(0, path.with_name("edited")).close()
        with pytest.raises(LogError, match=r"StepLog\.recover cuts it"):
            torn.append(steps[4])
        after = path.stat()
        assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, len(whole) - 3)
        with StepLog.recover(path) as mended:
            assert (mended.torn_at, mended.warning) == (None, "")
            assert path.read_bytes() == whole[:good]
            mended.append(steps[4:6])
            assert path.read_bytes() == whole


@pytest.mark.parametrize("plan", [SMALL, PAPER], ids=["units", "sampled"])
def test_a_log_cut_anywhere_replays_to_a_prefix_of_its_run(plan):
    """Every byte past the header: the weights after the last whole record; recovery agrees."""
    steps = random_steps(plan, 6)
    with a_log(plan) as log:
        for start in (0, 3, 4):
            log.append(steps[start : {0: 3, 3: 4, 4: 6}[start]])
        log.close()
        data, path = log.path.read_bytes(), log.path.with_name("cut")
        expected = [digest(params) for params in folded(plan, steps)]
        ends = {log.records[0].offset: 0, **{r.end: r.first + r.steps for r in log.records}}
        for cut in range(log.records[0].offset, len(data) + 1):
            path.write_bytes(data[:cut])
            opened = StepLog.open(path)
            assert len(opened) == max(n for end, n in ends.items() if end <= cut)
            assert opened.verify() == expected[len(opened)]
            with StepLog.recover(path) as mended:
                assert len(mended) == len(opened)
            assert path.stat().st_size == opened.nbytes


def test_recovery_leaves_a_damaged_log_alone():
    """Damage before the end is for its owner to judge."""
    with a_log(SMALL, random_steps(SMALL, 40)) as log:
        log.close()
        data = bytearray(log.path.read_bytes())
        data[log.records[0].offset + 9] ^= 1
        log.path.write_bytes(data)
        for read in (StepLog.open, StepLog.recover):
            with pytest.raises(LogError, match="nothing was changed") as caught:
                read(log.path)
            assert caught.value.offset == log.records[0].offset
        assert log.path.read_bytes() == data


@contextmanager
def a_log_of_other_digests(steps):
    """A log of nine steps, of good framing; its second record has another run's digest."""
    with a_log(SMALL) as log:
        for start in (0, 3, 6):
            log.append(steps[start : start + 3])
        log.close()
        data = pack_header(log.header)
        crc = scan(data).crc
        for number, record in enumerate(log.records):
            wrong = bytes(8) if number == 1 else record.digest
            framed, crc = pack_record(record.steps, record.payload, wrong, crc)
            data += framed
        log.path.write_bytes(data)
        yield StepLog.open(log.path)


def test_whatever_replays_names_the_first_record_that_replays_differently():
    """Weights of step 4 on are nobody's: no call gives them, none writes; those before are good."""
    steps = random_steps(SMALL, 9)
    with a_log_of_other_digests(steps) as log, a_log(SMALL, steps) as whole:
        out, before = log.path.with_name("out"), log.path.read_bytes()
        for ask in (
            log.verify,
            log.replay,
            log.digest,
            lambda: log.replay(4),
            lambda: log.weights_at(6),
            lambda: [*log.walk([0, 5])],
            lambda: log.diff(0, 9),
            lambda: compact(log),
            lambda: log.mask(0, out),
            lambda: log.negate(8, out),
            lambda: log.concat(whole, out),
            lambda: whole.concat(log, out),
            lambda: StepLog.recover(log.path),
            lambda: log.append(steps[0]),
        ):
            with pytest.raises(LogError, match=r"record 1 \(steps 3 to 5\) replays") as caught:
                ask()
            assert (caught.value.offset, caught.value.steps) == (log.records[1].offset, 3)
        assert log.path.read_bytes() == before
        assert not out.exists()
        assert log.digest(3) == whole.digest(3)
        assert dict(log.walk([1, 3])).keys() == {1, 3}


def test_recovery_cuts_nothing_off_a_log_that_replays_differently():
    """A torn tail after a wrong digest stays: the log is for its owner to judge."""
    with a_log_of_other_digests(random_steps(SMALL, 9)) as log:
        log.path.write_bytes(log.path.read_bytes()[:-2])
        with pytest.raises(LogError, match="record 1"):
            StepLog.recover(log.path)
        assert StepLog.open(log.path).torn_at == log.records[2].offset


def test_a_damaged_log_is_salvaged_up_to_the_damage(tmp_path):
    """The error names the file, counts the good steps, and the copy is a log of just these."""
    steps = random_steps(SMALL, 100)
    with a_log(SMALL, steps) as log:
        data = bytearray(log.path.read_bytes())
        data[log.records[2].offset + 9] ^= 1
        bad = tmp_path / "bad"
        bad.write_bytes(data)
        with pytest.raises(LogError, match=r"bad: a record's.* 64 steps before.*minibit salvage"):
            StepLog.open(bad)
        good = StepLog.salvage(bad, tmp_path / "good")
        assert good.verify() == log.digest(64)
        assert (len(good), good.warning) == (64, "")
        assert bad.read_bytes() == data
        with pytest.raises(FileExistsError):
            StepLog.salvage(bad, tmp_path / "good")
        whole = StepLog.salvage(log.path, tmp_path / "whole")
        assert whole.path.read_bytes() == log.path.read_bytes()
        (tmp_path / "torn").write_bytes(log.path.read_bytes()[:-3])
        assert len(StepLog.salvage(tmp_path / "torn", tmp_path / "mended")) == 96
    with a_log_of_other_digests(steps[:9]) as other:
        assert len(StepLog.salvage(other.path, tmp_path / "three")) == 3
    bad.write_bytes(data[:60] + b"?" + data[61:])
    with pytest.raises(LogError, match="bad: the header's CRC-32"):
        StepLog.salvage(bad, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_no_log(make, tmp_path):
    """A pipe that nobody writes would be waited for; a folder holds no steps."""
    make(tmp_path / "x")
    with pytest.raises(LogError, match="x: is no file"):
        StepLog.open(tmp_path / "x")


def test_what_people_have_in_the_place_of_a_log_is_said(tmp_path):
    """A repository cloned without its large files holds pointers; a download may be a page."""
    for content, kind in (
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        (b"<!DOCTYPE html>", "a web page"),
    ):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(LogError, match=f"x: not a minibit log: it begins with .*{kind}"):
            StepLog.open(tmp_path / "x")


def test_a_large_file_that_is_no_log_is_not_read(tmp_path):
    """Its first bytes tell: a gigabyte of zeros costs a few KB."""
    with (tmp_path / "x").open("wb") as file:
        file.truncate(1 << 30)
    tracemalloc.start()
    with pytest.raises(LogError, match="x: not a minibit log"):
        StepLog.open(tmp_path / "x")
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_a_record_without_steps_of_its_plan_is_an_error_with_its_byte():
    """Well framed bytes that no writer wrote: told when they are read."""
    data = pack_header(header_of(PAPER))
    framed, _ = pack_record(2, b"\x00\x00\x00\x40\x00", bytes(8), scan(data).crc)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(data + framed)
        with pytest.raises(LogError, match="16 codes cannot lie in 8 bits") as caught:
            StepLog.open(path).replay()
    assert caught.value.offset == len(data)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"method": "guessed"}, "method"),
        ({"names": ["a", "a"]}, "names"),
        ({"names": ["a", 1]}, "names"),
        ({"shapes": [[6, 10]]}, "each name has a shape"),
        ({"shapes": [[6, 10], [4, -6]]}, "a shape has at most 8 sides"),
        ({"shapes": [[6, 10], [4]]}, r"shapes are \(n_out, n_in\)"),
        ({"shapes": [[6, 10], 4]}, "cannot be read"),
        ({"shapes": [[6, 10], [2**14, 2**14]]}, r"268435516 weights .* the most is 2\*\*28"),
        ({"shapes": [[6, 10], [1, 2**25]]}, r"up to 2\*\*20 and 2\*\*24"),
        ({"shapes": [[6, 10], [2**20 + 1, 6]]}, r"up to 2\*\*20 and 2\*\*24"),
        (
            {"shapes": [[6, 10], [2**10, 2**15]], "units": [3, 2**10], "inputs": [10, 2**14 + 1]},
            r"draws 16778240 inputs; the most is 2\*\*24",
        ),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"zeros": 2**32 + 1}, "zeros"),
        ({"zeros": 1e400}, "not JSON compliant"),
        ({"zeros": "a"}, "cannot be read"),
        ({"seed": 1.5}, "cannot be read"),
        ({"seed": True}, "cannot be read"),
        ({"seed": "1"}, "cannot be read"),
        ({"names": "ab"}, "names must be a list"),
        ({"units": [7, 2]}, "units and inputs lie within"),
        ({"units": [3]}, "each layer has units"),
        ({"inputs": [-1, 2]}, "units and inputs lie within"),
        ({"names": [], "shapes": [], "units": [], "inputs": []}, "there is a layer"),
        ({"method": "sampled"}, "perturbations"),
    ],
)
def test_plans_that_nothing_can_be_drawn_from_are_refused(change, wrong, tmp_path):
    """When a log is made, before there is a file; the message names the law."""
    header = {"plan": {**SMALL.to_dict(), **change}}
    with pytest.raises(ValueError, match=wrong):
        StepLog.create(tmp_path / "x", header)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("header", [{}, {"plan": []}, {"plan": {"seed": 1}}])
def test_a_header_without_a_plan_is_refused_on_reading(header, tmp_path):
    """A well framed file of something else."""
    (tmp_path / "x").write_bytes(pack_header(header))
    with pytest.raises(LogError, match="plan"):
        StepLog.open(tmp_path / "x")


@pytest.mark.parametrize("segments", [{}, [[1, 2]], [[1, 2, 0]], [[1, 2, 2**32]], [[-1, 2, 1]], 5])
def test_segments_that_name_no_noise_are_refused(segments, tmp_path):
    """They must be lists of seed, first number and count."""
    (tmp_path / "x").write_bytes(pack_header({**header_of(SMALL), "segments": segments}))
    with pytest.raises(LogError, match="segments"):
        StepLog.open(tmp_path / "x")


GOOD = random_steps(SMALL, 1)[0]
NONE = (np.empty(0, np.int64), np.empty(0, np.int8))


@pytest.mark.parametrize(
    ("plan", "step", "wrong"),
    [
        (SMALL, random_steps(PAPER, 1)[0], "takes UnitsStep, got SampledStep"),
        (PAPER, GOOD, "takes SampledStep, got UnitsStep"),
        (PAPER, SampledStep(1, np.zeros(7, np.int8)), "8 codes, got 7"),
        (PAPER, SampledStep(1, np.full(8, 2, np.int8)), r"codes must lie in \[-1, 1\]"),
        (PAPER, SampledStep(1, np.zeros(8)), "codes must be integers"),
        (PAPER, SampledStep(2**32, np.zeros(8, np.int8)), "numerator"),
        (PAPER, SampledStep(0.5, np.zeros(8, np.int8)), "integer"),
        (SMALL, UnitsStep((NONE[0],), (NONE[1],)), "2 layers, got 1"),
        (SMALL, UnitsStep((np.array([30]), NONE[0]), (np.array([1]), NONE[1])), r"\[0, 29\]"),
        (SMALL, UnitsStep((np.array([1, 1]), NONE[0]), (np.array([1, 1]), NONE[1])), "increase"),
        (SMALL, UnitsStep((np.array([1]), NONE[0]), (np.array([0]), NONE[1])), "one sign"),
        (SMALL, UnitsStep((np.array([1]), NONE[0]), NONE[1:] * 2), "one sign"),
    ],
)
def test_steps_that_do_not_fit_the_plan_are_refused_whole(plan, step, wrong):
    """One bad step among good ones: nothing of the batch is written."""
    with a_log(plan, random_steps(plan, 2)) as log:
        before = log.path.read_bytes()
        with pytest.raises((TypeError, ValueError), match=wrong):
            log.append([*random_steps(plan, 1), step])
        assert log.path.read_bytes() == before
        assert len(log) == 2


def test_a_log_is_never_made_over_a_file(tmp_path):
    """The file that is there stays as it is."""
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError, match="exists; nothing was changed"):
        StepLog.create(tmp_path / "x", header_of(SMALL))
    assert (tmp_path / "x").read_text() == "mine"


def test_a_log_in_no_folder_is_refused_by_its_own_name(tmp_path):
    """The message names the folder, not the file that would have been written first."""
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        StepLog.create(tmp_path / "none" / "x", header_of(SMALL))


def test_a_file_system_without_locks_can_hold_a_log(monkeypatch):
    """Then two writers are told apart by the file's length alone; nobody else is blamed."""
    fcntl = pytest.importorskip("fcntl")

    def unsupported(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    steps = random_steps(SMALL, 3)
    with a_log(SMALL, steps[:1]) as log:
        StepLog.open(log.path).append(steps[1])
        with pytest.raises(LogError, match="changed since it was read"):
            log.append(steps[1])


def test_two_writers_are_told_apart():
    """By the lock while one writes; by what the file has become, after."""
    steps = random_steps(SMALL, 3)
    with a_log(SMALL, steps[:1]) as log:
        other = StepLog.open(log.path)
        for attempt in (lambda: other.append(steps[1]), lambda: StepLog.recover(log.path)):
            with pytest.raises(LogError, match="another writer holds"):
                attempt()
        log.append(steps[1])
        log.close()
        with pytest.raises(LogError, match="changed since it was read: it has"):
            other.append(steps[2])
        assert len(StepLog.open(log.path)) == 2
        log.append(steps[2])  # the first writer's view is still true
        log.close()
        log.path.rename(log.path.with_name("moved"))
        with pytest.raises((LogError, FileNotFoundError)):
            log.append(steps[0])


def test_another_log_of_the_same_length_is_noticed():
    """The path names other bytes than were read: their CRC-32 says so."""
    steps = random_steps(SMALL, 2)
    with a_log(SMALL, steps[:1]) as log, a_log(Plan.from_dict({**SMALL.to_dict(), "seed": 4})) as b:
        log.close()
        b.append(steps[:1])
        log.path.write_bytes(b.path.read_bytes())
        with pytest.raises(LogError, match="its bytes are others"):
            log.append(steps[1])
        assert log.path.read_bytes() == b.path.read_bytes()


def test_a_log_is_written_where_it_was_opened(tmp_path, monkeypatch):
    """Also after a change of directory, to which a relative path would lead elsewhere."""
    steps = random_steps(SMALL, 3)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    log = StepLog.create("x", header_of(SMALL))
    opened = StepLog.open("x")
    monkeypatch.chdir("there")
    log.append(steps[0])
    log.close()
    log.append(steps[1])
    log.close()
    with pytest.raises(LogError, match="changed since it was read: it has"):
        opened.append(steps[1])
    assert len(StepLog.open(tmp_path / "x")) == 2
    assert not [*(tmp_path / "there").iterdir()]


@pytest.mark.once
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, where a test loaded it
def test_a_forked_process_neither_writes_nor_unlocks_its_parents_log():
    """Both would append after the same record. Its own closing leaves the parent's lock."""
    steps = random_steps(SMALL, 3)
    with a_log(SMALL, steps[:1]) as log:
        child = os.fork()
        if not child:
            status = 1
            try:
                log.append(steps[1])
            except LogError as error:
                status = "forked" not in str(error)
            log.close()
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(LogError, match="another writer holds"):
            StepLog.recover(log.path)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(writing)
            os.read(reading, 1)  # lives on, until its parent is done
            os._exit(0)
        log.append(steps[1])
        log.close()
        StepLog.recover(log.path).close()
        os.close(writing)
        os.waitpid(child, 0)
        os.close(reading)


@pytest.mark.once
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, where a test loaded it
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads: the point here
@pytest.mark.parametrize("replaces", [False, True])
def test_a_process_forked_while_a_thread_appends_reads_the_log_as_it_was(replaces, monkeypatch):
    """It waits for no thread of its parent; to close the log takes nothing from the parent."""
    steps, sync, within, go_on = random_steps(SMALL, 3), os.fsync, threading.Event(), []

    def slow(file):
        within.set()
        while not go_on:
            time.sleep(0.001)
        sync(file)

    with a_log(SMALL, steps[:1]) as log:
        if replaces:
            log.close()
            log = StepLog.create(log.path, header_of(SMALL), overwrite=True)
        count = len(log)
        monkeypatch.setattr(os, "fsync", slow)
        thread = threading.Thread(target=log.append, args=(steps[1:],))
        thread.start()
        within.wait()
        child = os.fork()
        if not child:
            right = len(log) == count and log.digest() == digest(folded(SMALL, steps[:count])[-1])
            try:
                log.append(steps[1])
                right = False
            except LogError as error:
                right = right and "forked" in str(error)
            log.close()
            os._exit(not right)
        limit = time.monotonic() + 60
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > limit:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.001)
        go_on.append(1)
        thread.join()
        assert ended[1] == 0
        assert len(log) == len(StepLog.open(log.path)) == count + 2
        log.close()


@pytest.mark.once
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, where a test loaded it
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads: the point here
def test_an_append_in_which_a_handler_forks_is_its_parents_alone(monkeypatch):
    """Both processes go on after the handler; one of them writes."""
    steps, pack, children = random_steps(SMALL, 3), StepLog._pack, []

    def fork(*arguments):
        packed = pack(*arguments)
        children.append(os.fork())
        return packed

    with a_log(SMALL, steps[:1]) as log:
        monkeypatch.setattr(StepLog, "_pack", fork)
        try:
            log.append(steps[1])
        except LogError as error:
            os._exit(not (children == [0] and "forked" in str(error) and len(log) == 1))
        if children == [0]:
            os._exit(1)
        assert os.waitpid(children[0], 0)[1] == 0
        assert len(StepLog.open(log.path)) == len(log) == 2
        assert StepLog.open(log.path).verify() == log.digest()


@pytest.mark.once
@pytest.mark.parametrize("handler", ["read", "close", "append"])
def test_a_handler_may_use_a_log_at_any_line_of_an_append(handler):
    """It reads what was there, or closes the log, which ends the append; it may not append."""
    steps, line, left, outcomes = random_steps(SMALL, 4), 0, [0], set()

    def use(log):
        if handler == "read":
            outcomes.add(("read", len(log)))
        elif handler == "close":
            log.close()
        else:
            with suppress(LogError):
                log.append(steps[3])
                outcomes.add(("appended", len(log)))

    while left[0] <= 0:
        line += 1
        left[0] = line

        def trace(frame, event, _argument):
            if Path(frame.f_code.co_filename).parent.name != "steps":
                return None
            if event == "line":
                left[0] -= 1
                if left[0] == 0:
                    use(log)
            return trace

        with a_log(SMALL, steps[:2]) as log:
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                log.append(steps[2])
            except (LogError, OSError):
                outcomes.add("refused")
            finally:
                sys.settrace(before)
            log.close()
            again = StepLog.open(log.path)
            assert again.verify() == log.digest()
            assert len(again) == len(log)
    assert line > 40
    if handler == "read":
        assert {("read", 2), ("read", 3)} <= outcomes
        assert "refused" not in outcomes


def test_a_log_takes_the_place_of_another_with_its_first_record():
    """Until then the old one is there, whole and locked; closed before, the new one is gone."""
    steps = random_steps(SMALL, 5)
    with a_log(SMALL, steps[:3]) as old:
        old.close()
        before, path = old.path.read_bytes(), old.path
        with StepLog.create(path, header_of(PAPER), overwrite=True):
            with pytest.raises(LogError, match="another writer holds"):
                StepLog.recover(path)
            assert path.read_bytes() == before
        assert path.read_bytes() == before
        assert [*path.parent.iterdir()] == [path]
        new = StepLog.create(path, header_of(PAPER), overwrite=True)
        new.append(random_steps(PAPER, 1))
        assert len(StepLog.open(path)) == 1
        assert StepLog.open(path).plan == PAPER
        assert [*path.parent.iterdir()] == [path]
        for attempt in (StepLog.recover, lambda p: StepLog.create(p, {}, overwrite=True)):
            with pytest.raises(LogError):
                attempt(path)
        new.append(random_steps(PAPER, 2))
        new.close()
        assert len(StepLog.recover(path)) == 3
        text = path.with_name("thesis")
        text.write_text("years of work")
        with pytest.raises(FileExistsError, match="no minibit log"):
            StepLog.create(text, header_of(SMALL), overwrite=True)
        assert text.read_text() == "years of work"
        with StepLog.create(path.with_name("new"), header_of(SMALL), overwrite=True) as first:
            assert first.path.exists()


def test_a_live_run_keeps_its_log():
    """A second writer is refused, whatever it asks for; the first goes on."""
    steps = random_steps(SMALL, 2)
    with a_log(SMALL, steps[:1]) as log:
        with pytest.raises(LogError, match="another writer holds"):
            StepLog.create(log.path, header_of(SMALL), overwrite=True)
        log.append(steps[1])
        assert len(StepLog.open(log.path)) == 2


def test_dense_steps_cost_no_more_memory_than_sparse_ones():
    """Many entries are drawn part by part, and are the same; too many are refused everywhere."""
    plan = Plan("sampled", 1, ("a", "b"), ((1200, 1000), (10,)), 2**31, perturbations=40)
    codes = (np.arange(40) % 3 - 1).astype(np.int8)
    step = SampledStep(2**28, codes)  # 27 of 40 kept, density 1/16: two million entries
    positions, deltas = sparse_update(plan, 0, step)
    expected = np.concatenate([w.reshape(-1) for w in initial_params(plan).values()])
    expected[positions] = np.clip(expected[positions] + deltas, -1, 1)
    flat = initial_flat(plan)
    tracemalloc.start()
    advance(flat, plan, 0, step)
    assert tracemalloc.get_traced_memory()[1] < 80_000_000
    tracemalloc.stop()
    np.testing.assert_array_equal(flat, expected)
    dense = SampledStep(2**32 - 1, np.ones(40, np.int8))
    plan = Plan("sampled", 1, ("a",), ((2000, 1000),), 2**31, perturbations=40)
    with a_log(plan) as log:
        with pytest.raises(ValueError, match=r"40 perturbations of 2000000 weights .*2\*\*24"):
            log.append(dense)
        data = log.path.read_bytes()
        framed, _ = pack_record(1, encode_sampled([dense]), bytes(8), scan(data).crc)
        log.path.write_bytes(data + framed)
        with pytest.raises(LogError, match="draws 80000000 entries"):
            StepLog.open(log.path).replay()


def test_a_log_moved_under_its_writer_is_noticed():
    """Steps are not written to a file that nobody will find."""
    steps = random_steps(SMALL, 2)
    with a_log(SMALL, steps[:1]) as log:
        moved = log.path.rename(log.path.with_name("moved"))
        with pytest.raises(LogError, match="it was moved"):
            log.append(steps[1])
        assert len(StepLog.open(moved)) == 1


def fills(file, data, write=os.write):
    """Write as a disk that is nearly full does: 40 bytes, then no more."""
    if len(data) < 40:
        raise OSError(28, "No space left on device")
    return write(file, data[:40])


def test_a_disk_that_fills_up_costs_no_step(monkeypatch):
    """Half a record does not stay: the file is as it was, and the log goes on."""
    steps = random_steps(SMALL, 40)
    with a_log(SMALL, steps[:20]) as log:
        before = log.path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fills)
            with pytest.raises(OSError, match="No space"):
                log.append(steps[20:])
        assert (len(log), log.path.read_bytes()) == (20, before)
        log.append(steps[20:])
        assert StepLog.open(log.path).verify() == digest(folded(SMALL, steps)[-1])


def test_a_disk_that_fails_at_the_undoing_too_leaves_a_log_that_recovers(monkeypatch):
    """Half a record is on disk: an error; then torn; then mended."""
    steps = random_steps(SMALL, 40)
    with a_log(SMALL, steps[:20]) as log:

        def fails(file, size):
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fills)
            patch.setattr(os, "ftruncate", fails)
            with pytest.raises(OSError, match="No space"):
                log.append(steps[20:])
        assert len(log) == 20
        with pytest.raises(LogError, match="changed since"):
            log.append(steps[20:])
        log.close()
        assert len(StepLog.open(log.path)) == 20
        with StepLog.recover(log.path) as mended:
            mended.append(steps[20:])
            assert mended.verify() == digest(folded(SMALL, steps)[-1])


@contextmanager
def interrupted_at(count):
    """Raise KeyboardInterrupt at the count-th line of the log's own files that the block runs.

    Between a block's end and the release of its lock, Python looks for no signals; tracers do.
    """
    left = [count]

    def trace(frame, event, argument):
        file = frame.f_code.co_filename
        if Path(file).name not in ("log.py", "file.py"):
            return None
        if event == "line" and "with self._lock" not in linecache.getline(file, frame.f_lineno):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield left
    finally:
        sys.settrace(before)


@pytest.mark.once
@pytest.mark.parametrize("count", [3, 33], ids=["one record", "two records"])
def test_an_append_interrupted_at_any_line_leaves_object_and_file_in_step(count):
    """All of its steps or none, the same in both; what is missing is appended, and it verifies."""
    steps = random_steps(SMALL, count)
    expected, line = digest(folded(SMALL, steps)[-1]), 0
    outcomes = set()
    with a_log(SMALL) as log:
        start = log.path.read_bytes()
        while True:
            line += 1 if count == 3 else 3
            log.close()
            log.path.write_bytes(start)
            with StepLog.recover(log.path) as fresh:
                try:
                    with interrupted_at(line) as left:
                        fresh.append(steps)
                except KeyboardInterrupt:
                    pass
                outcomes.add(len(fresh))
                assert len(StepLog.open(log.path)) == len(fresh)
                assert fresh.nbytes == log.path.stat().st_size
                fresh.append(steps[len(fresh) :])
                assert fresh.digest() == StepLog.open(log.path).verify() == expected
            if left[0] > 0:
                break
    assert outcomes == {0, count}
    assert line > 40


@pytest.mark.once
@pytest.mark.parametrize("call", ["write", "fsync", "ftruncate"])
def test_an_append_interrupted_in_a_call_of_the_system_is_whole_or_gone(call, monkeypatch):
    """Before and after each call that changes the file, after half a write, too."""
    steps, real = random_steps(SMALL, 40), getattr(os, call)
    for after in (False, True):

        def interrupted(*arguments, after=after):
            if after:
                real(*arguments)
            raise KeyboardInterrupt

        with a_log(SMALL, steps[:20]) as log:
            with monkeypatch.context() as patch:
                if call == "ftruncate":
                    patch.setattr(os, "write", fills)
                patch.setattr(os, call, interrupted)
                with pytest.raises(KeyboardInterrupt):
                    log.append(steps[20:])
            assert len(log) in (20, 40)
            assert log.nbytes == log.path.stat().st_size
            log.append(steps[len(log) :])
            assert StepLog.open(log.path).verify() == digest(folded(SMALL, steps)[-1])


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from test_steps import SMALL, random_steps
from minibit.steps import StepLog
steps = random_steps(SMALL, 2000)
with StepLog.recover(sys.argv[1]) as log:
    while len(log) < len(steps):
        start = len(log)
        log.append(steps[start : start + 1 + start % 7])
        print(len(log), flush=True)
"""


@pytest.mark.once
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_killed_writer_loses_at_most_what_it_was_writing(tmp_path):
    """Kill -9 at random moments: every step that was acknowledged replays, and the run goes on."""
    path = tmp_path / "run.steps"
    StepLog.create(path, header_of(SMALL)).close()
    steps = random_steps(SMALL, 2000)
    rng = np.random.default_rng()
    environment = {**os.environ, "MINIBIT_KERNELS": "reference"}
    known = 0
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        with writer:
            assert writer.stdout is not None
            acknowledged = int(writer.stdout.readline())
            time.sleep(rng.uniform(0, 0.2))
            writer.kill()
            acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
        log = StepLog.open(path)
        assert known < acknowledged <= len(log) <= acknowledged + 7
        known = len(log)
    same_steps([*log.steps()], steps[:known])
    log.verify()


# --- Vectors, and the page that a porter reads


def page_reader():
    """The reader that the page prints, in a namespace of its own."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    reader = {}
    exec(code, reader)
    assert "minibit" not in code.replace("no log of", "")
    return reader


WHOLE = [case for case in cases("steps") if case.expect and decode(case.expect[1]) == -1]


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.id)
def test_file_vectors(case, tmp_path):
    """What is read is written again, record by record: the same bytes."""
    data = decode(case.args["file"]).tobytes()
    (tmp_path / "x").write_bytes(data)
    log = StepLog.open(tmp_path / "x")
    steps = [*log.steps()]
    assert len(steps) == len(log) == decode(case.expect[0]).shape[0] - 1
    with StepLog.create(tmp_path / "y", log.header) as written:
        for record in log.records:
            written.append(steps[record.first : record.end_step])
    assert (tmp_path / "y").read_bytes() == data


@few
@given(runs(most=12))
def test_the_pages_own_reader_replays_every_log(run):
    """docs/log_format.md prints a reader that shares nothing with the package, digests checked."""
    plan, steps = run
    with a_log(plan, steps) as log:
        log.append(steps[:1])
        history = page_reader()["replay"](log.path.read_bytes())
        flat = np.concatenate([w.reshape(-1) for w in log.replay().values()])
    assert history[-1] == flat.tolist()


@pytest.mark.parametrize("size", [700, 70_000])
def test_the_pages_own_reader_tells_torn_from_damaged_as_the_package_does(size):
    """Any sector, any byte of two records set to zeros: the same records, or damage, from both."""
    read = page_reader()["read"]
    start = pack_header(header_of(SMALL))
    first, crc = pack_record(3, bytes([1]) * 700, bytes(8), scan(start).crc)
    data = start + first + pack_record(3, bytes([2]) * size, bytes(8), crc)[0]
    holes = [(at, at + 512) for at in range(0, 2048, 512)]
    for begin, end in [*holes, *((at, at + 1) for at in range(len(start), 1100))]:
        begin = max(begin, len(start))
        changed = data[:begin] + bytes(end - begin) + data[end:]
        try:
            expected = [record.payload for record in scan(changed).records]
        except LogError:
            with pytest.raises(AssertionError, match="damage at byte"):
                read(changed)
        else:
            assert [payload for payload, _, _ in read(changed)[1]] == expected


def test_the_pages_worked_example_is_the_first_file_vector():
    """Its hex dump, byte for byte, at the offsets that it prints."""
    rows = re.findall(
        r"^ *(\d+)  ((?:[0-9a-f]{2} )*[0-9a-f]{2})", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    data = b""
    for offset, text in rows:
        assert int(offset) == len(data)
        data += bytes.fromhex(text)
    assert data == decode(cases("steps")[0].args["file"]).tobytes()
