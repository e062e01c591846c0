"""What a log alone can do, stated as laws: each answer is that of a replay from scratch."""

import json
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minibit.kernels import compiled
from minibit.noise_step import (
    SampledStep,
    UnitsStep,
    apply_update,
    digest,
    initial_params,
    sparse_update,
)
from minibit.steps import Change, LogError, StepLog, changes, compact, contributors, expand
from minibit.steps.snapshots import path_of, to_keep
from test_steps import (
    PAPER,
    SMALL,
    a_log,
    few,
    folded,
    header_of,
    page_reader,
    plans,
    random_steps,
    runs,
    same,
    same_steps,
    steps_of,
)

seeds = st.integers(0, 2**64 - 1)


def fold_on(plan, params, named_steps):
    """Move weights along by steps, each with its own seed and number."""
    for seed, number, step in named_steps:
        seeded = replace(plan, seed=seed)
        params = apply_update(params, *sparse_update(seeded, number, step))
    return params


@st.composite
def two_branches(draw):
    """A plan, its steps, where two forks leave them, and each fork's seed and later steps."""
    plan = draw(plans())
    kinds = draw(st.lists(steps_of(plan), min_size=2, max_size=5))
    several = st.lists(st.sampled_from(kinds), max_size=6)
    steps = draw(several.filter(bool))
    at = draw(st.integers(1, len(steps))), draw(st.integers(1, len(steps)))
    return plan, steps, [(n, draw(st.none() | seeds), draw(several)) for n in at]


@contextmanager
def forked(plan, steps, branches):
    """A log, and its forks with their own steps appended."""
    with a_log(plan, steps) as log:
        forks = []
        for number, (step, seed, more) in enumerate(branches):
            forks.append(log.fork(step, log.path.with_name(f"fork{number}"), seed))
            forks[-1].append(more)
        yield log, *forks


# --- Forks and merges


@few
@given(two_branches())
def test_a_fork_has_the_first_steps_and_draws_the_others_by_its_seed(run):
    """Its weights are the parent's, then those of its own steps; its file replays everywhere."""
    plan, steps, branches = run
    with forked(plan, steps, branches) as (log, *forks):
        before = log.path.read_bytes()
        for fork, (at, seed, more) in zip(forks, branches, strict=True):
            by = plan.seed if seed is None else seed
            named = [(by, at + n, step) for n, step in enumerate(more)]
            expected = fold_on(plan, log.weights_at(at), named)
            again = StepLog.open(fork.path)
            same(again.replay(), expected)
            assert again.verify() == digest(expected)
            assert again.digest(at) == log.digest(at)
            assert again.drawn_by(len(again)) == (by, len(again))
            assert again.header["edits"][0]["source"] == log.digest(at)
            assert again.header["edits"][0]["steps"] == [[0, at]]
            page_reader()["replay"](fork.path.read_bytes())
        assert log.path.read_bytes() == before


@few
@given(two_branches(), seeds)
def test_a_fork_of_a_fork_keeps_the_names_of_both(run, seed):
    """Steps of the first parent, of the first fork, then of the second, each by its own seed."""
    plan, steps, branches = run
    with forked(plan, steps, branches[:1]) as (log, fork):
        at, first, more = branches[0]
        second = fork.fork(len(fork), log.path.with_name("second"), seed)
        second.append(steps[0])
        by = plan.seed if first is None else first
        named = [(by, at + n, step) for n, step in enumerate(more)]
        named.append((seed, at + len(more), steps[0]))
        same(StepLog.open(second.path).replay(), fold_on(plan, log.weights_at(at), named))
        masked = second.mask([], log.path.with_name("masked"))
        assert masked.drawn_by(len(masked)) == (seed, len(masked))
        earlier = fork.fork(0, log.path.with_name("earlier"))
        assert earlier.digest() == log.digest(0)
        assert earlier.drawn_by(0) == log.drawn_by(0)


@few
@given(two_branches())
def test_a_merge_adds_the_moves_of_both_branches(run):
    """The parent's steps, then each branch's, with the noise that they had there."""
    plan, steps, branches = run
    with forked(plan, steps, branches) as (log, a, b):
        files = [one.path.read_bytes() for one in (log, a, b)]
        merged = a.merge(b, log.path.with_name("merged"))
        assert files == [one.path.read_bytes() for one in (log, a, b)]
        shared = merged.header["edits"][-1]["parent"]
        assert shared >= min(at for at, _, _ in branches)
        own = [(*b.drawn_by(n), step) for n, step in enumerate(b.steps())][shared:]
        expected = fold_on(plan, a.replay(), own)
        again = StepLog.open(merged.path)
        same(again.replay(), expected)
        assert again.verify() == digest(expected)
        assert again.digest(len(a)) == a.digest()
        assert len(again) == len(a) + len(b) - shared
        assert again.header["edits"][-1]["other"] == b.digest()
        page_reader()["replay"](merged.path.read_bytes())


@few
@given(two_branches(), st.integers(1, 5), st.data())
def test_a_walk_shows_at_each_step_what_a_replay_from_scratch_ends_with(run, every, data):
    """In a log, a fork and a merge, of increasing steps; snapshots beside them change nothing."""
    plan, steps, branches = run
    with forked(plan, steps, branches) as (log, a, b):
        merged = a.merge(b, log.path.with_name("merged"))
        for one in (log, a, merged):
            params, expected = initial_params(plan), {}
            for number, step in enumerate([*one.steps(), None]):
                expected[number] = params
                if step:
                    params = fold_on(plan, params, [(*one.drawn_by(number), step)])
            at = sorted(data.draw(st.sets(st.sampled_from(range(len(one) + 1)))))
            again = StepLog.open(one.path)
            for _ in range(2):
                visited = [*again.walk(at)]
                assert [step for step, _ in visited] == at
                for step, weights in visited:
                    same(weights, expected[step])
                again.snapshots(every)


def test_merging_a_fork_with_its_parent_adds_its_own_steps_alone():
    """A parent that went on is a branch, too; one that did not is shared as a whole."""
    steps = random_steps(SMALL, 8)
    with forked(SMALL, steps[:5], [(3, 9, steps[5:]), (5, 9, [])]) as (log, fork, same_as_log):
        merged = log.merge(fork, log.path.with_name("merged"))
        same_steps([*merged.steps()], [*steps[:5], *steps[5:]])
        assert [merged.drawn_by(n) for n in (2, 4, 5, 7)] == [(3, 2), (3, 4), (9, 3), (9, 5)]
        whole = log.merge(same_as_log, log.path.with_name("whole"))
        assert (len(whole), whole.digest()) == (5, log.digest())


def test_logs_that_are_no_forks_of_one_parent_are_not_merged():
    """Another plan, another seed, or nothing in common: an error, and no file."""
    steps = random_steps(SMALL, 4)
    other = replace(SMALL, seed=4)
    with a_log(SMALL, steps) as a, a_log(PAPER) as b, a_log(other, steps) as c:
        with a_log(SMALL, steps[1:]) as d, a_log(SMALL) as e:
            for log, complaint in ((b, "one plan"), (c, "one plan"), (d, "the first"), (e, "0 st")):
                with pytest.raises(ValueError, match=complaint):
                    a.merge(log, a.path.with_name("merged"))
        assert [*a.path.parent.iterdir()] == [a.path]


@pytest.mark.parametrize(
    ("step", "seed", "complaint"),
    [(5, None, r"step must lie in \[0, 4\], got 5"), (-1, None, "step"), (2, -1, "seed"),
     (2, 2**64, "seed"), (1.5, None, "step")],
)  # fmt: skip
def test_a_fork_that_cannot_be_is_refused(step, seed, complaint):
    """Steps that are not there, seeds that are none; nothing is written."""
    with a_log(SMALL, random_steps(SMALL, 4)) as log:
        with pytest.raises((ValueError, TypeError), match=complaint):
            log.fork(step, log.path.with_name("fork"), seed)
        with pytest.raises(FileExistsError):
            log.fork(2, log.path)
        assert [*log.path.parent.iterdir()] == [log.path]


def test_what_is_no_log_is_neither_merged_nor_joined():
    """The message says what came; of two plans it names the fields that differ."""
    steps = random_steps(SMALL, 2)
    with a_log(SMALL, steps) as log, a_log(PAPER, random_steps(PAPER, 2)) as other:
        for combine in (log.merge, log.concat):
            for wrong in (None, "a.steps", SMALL):
                with pytest.raises(TypeError, match="other must be a StepLog, got"):
                    combine(wrong, log.path.with_name("out"))
            with pytest.raises(ValueError, match=r"got method 'units' and 'sampled'; perturb.* 0"):
                combine(other, log.path.with_name("out"))
        assert [*log.path.parent.iterdir()] == [log.path]


def test_a_fork_says_what_its_data_are():
    """The entry `data` of the header is replaced, and only in the fork; it must be JSON."""
    with a_log(SMALL, random_steps(SMALL, 4)) as log:
        fork = log.fork(2, log.path.with_name("fork"), data={"name": "other"})
        assert fork.header["data"] == {"name": "other"}
        assert "data" not in log.header
        for wrong, complaint in ((5, "data must be an entry of a header"),
                                 ({"x": object()}, "header must be of JSON types")):  # fmt: skip
            with pytest.raises(TypeError, match=complaint):
                log.fork(2, log.path.with_name("other"), data=wrong)
        assert not log.path.with_name("other").exists()


# --- Who did it


def flips(values):
    """What `changes` returns, in a plain loop."""
    listed = [int(value) for value in values]
    return [
        Change(step, listed[step], listed[step + 1])
        for step in range(len(listed) - 1)
        if listed[step] != listed[step + 1]
    ]


@few
@given(runs(), st.data())
def test_blame_names_every_step_that_changed_a_weight(run, data):
    """As a look at all weights of all steps finds it, in layers of any shape."""
    plan, steps = run
    layer = data.draw(st.integers(0, len(plan.names) - 1))
    n_out, *inner = plan.shapes[layer] or (1,)
    row = data.draw(st.integers(0, n_out - 1))
    column = data.draw(st.integers(0, int(np.prod(inner)) - 1))
    history = [params[plan.names[layer]].reshape(n_out, -1) for params in folded(plan, steps)]
    with a_log(plan, steps) as log:
        expected = flips(weights[row, column] for weights in history)
        assert log.blame(layer, row, column) == expected
        assert log.blame(plan.names[layer], np.int64(row), column) == expected


def scores(params, x):
    """Three classes out of weights of any shape: sums over thirds of them, scaled by samples."""
    flat = np.concatenate([w.reshape(-1) for w in params.values()]).astype(np.int64)
    sums = np.array([flat[part::3].sum() for part in range(3)])
    return np.outer(x, sums)  # (batch, classes)


@few
@given(runs(), st.integers(0, 2))
def test_answers_and_verdicts_are_those_of_a_replay(run, label):
    """Every answer of every step; the last turn of right and wrong, or none."""
    plan, steps = run
    x = np.array([1, -2])
    expected = [scores(params, x).argmax(1) for params in folded(plan, steps)]
    with a_log(plan, steps) as log:
        answers = log.answers(scores, x)
        np.testing.assert_array_equal(answers, expected)
        verdict = log.bisect(scores, x[1], label)
    right = [bool(answer[1] == label) for answer in expected]
    turns = [n for n in range(len(steps)) if right[n] != right[n + 1]]
    assert verdict.right == right[-1]
    assert verdict.step == (turns[-1] if turns else None)
    assert verdict.changes == changes(answers[:, 1]) == flips(answers[:, 1])
    if turns:
        assert all(one == right[-1] for one in right[turns[-1] + 1 :])


def test_questions_that_have_no_answer_are_refused():
    """Layers, rows and columns that are not there; functions that return no logits; no label."""
    with a_log(SMALL, random_steps(SMALL, 3)) as log:
        for where, complaint in (
            (("c", 0, 0), "layer must"),
            ((2, 0, 0), "layer must"),
            ((0, 6, 0), r"row must lie in \[0, 5\], got 6"),
            ((0, 0, 10), r"column must lie in \[0, 9\], got 10"),
            ((0, -1, 0), "row must"),
        ):
            with pytest.raises(ValueError, match=complaint):
                log.blame(*where)
        for layer in (None, 0.5, True):
            for ask in (lambda n: log.blame(n, 0), lambda n: log.slice(n, 0)):
                with pytest.raises(TypeError, match="layer must be an integer, got"):
                    ask(layer)
        for rows in (6, -7, [0.5], "a", np.ones(3, bool)):
            with pytest.raises(IndexError, match="rows must index the 6 rows of a, got"):
                log.slice("a", rows)
        assert log.slice("a", []).shape == log.slice("a", slice(5, 2)).shape == (0, 10)
        with pytest.raises(TypeError, match="at must be several numbers of steps, got 3"):
            next(log.walk(3))
        with pytest.raises(ValueError, match=r"step must lie in \[0, 3\], got 4"):
            compact(log, 4)
        for bad in (lambda p, x: x, lambda p, x: np.ones((2, 3)), lambda p, x: np.ones((1, 0))):
            with pytest.raises(ValueError, match=r"logits must return an array \(1, classes\)"):
                log.answers(bad, np.ones(1))
        with pytest.raises(ValueError, match="label"):
            log.bisect(scores, 1, -1)


# --- Snapshots


@few
@given(runs(most=90), st.integers(1, 70), st.data())
def test_weights_by_snapshots_are_those_of_a_replay(run, every, data):
    """Of every step asked for, and rows of them; the log's own file is not touched."""
    plan, steps = run
    history = folded(plan, steps)
    with a_log(plan) as log:
        for start in range(0, len(steps), 7):
            log.append(steps[start : start + 7])
        before = log.path.read_bytes()
        path = log.snapshots(every)
        assert path == path_of(log.path)
        again = StepLog.open(log.path)
        layer = data.draw(st.integers(0, len(plan.names) - 1))
        for step in data.draw(st.sets(st.integers(0, len(steps)), max_size=6)) | {len(steps)}:
            same(again.weights_at(step), history[step])
            whole = history[step][plan.names[layer]]
            np.testing.assert_array_equal(
                again.slice(layer, slice(None), step), whole.reshape(-1, *whole.shape[1:])
            )
        assert log.path.read_bytes() == before


@few
@given(st.lists(st.integers(1, 32), max_size=20), st.integers(1, 100))
def test_between_two_snapshots_lie_no_more_steps_than_asked_for(sizes, every):
    """Or those of one record; and none is taken that could be left out."""
    steps = random_steps(SMALL, 1)
    with a_log(SMALL) as log:
        for size in sizes:
            log.append(steps * size)
        kept = [record.end_step for record in to_keep(log.records, every)]
        ends = [record.end_step for record in log.records]
    points = [0, *kept, *ends[-1:]]
    for a, b in pairwise(points):
        assert b - a <= every or not any(a < end < b for end in ends)
    for a, b in zip(points, points[2:], strict=False):
        assert b - a > every


def test_only_the_steps_after_a_snapshot_are_drawn_again(monkeypatch):
    """Whole weights and rows alike: at most 32 steps of 200."""
    from minibit.steps import history

    steps = random_steps(SMALL, 200)
    unpacked = []
    with a_log(SMALL, steps) as log:
        log.close()
        log.snapshots()
        again, unpack = StepLog.open(log.path), history.unpack_steps
        monkeypatch.setattr(
            history,
            "unpack_steps",
            lambda plan, payload, count: unpacked.append(count) or unpack(plan, payload, count),
        )
        for step, most in ((150, 32), (128, 0), (129, 32), (20, 32), (200, 8)):
            for ask in (again.weights_at, lambda n: again.slice("a", [1], n)):
                unpacked.clear()
                ask(step)
                assert sum(unpacked) <= most, step


def test_a_log_that_is_written_on_keeps_its_snapshots():
    """They are of its first steps, whatever follows; new ones take their place."""
    steps = random_steps(SMALL, 120)
    with a_log(SMALL, steps[:70]) as log:
        old = log.snapshots().read_bytes()
        log.append(steps[70:])
        same(StepLog.open(log.path).weights_at(100), folded(SMALL, steps[:100])[-1])
        new = log.snapshots().read_bytes()
        assert new.startswith(old)
        assert len(new) > len(old)


def test_snapshots_of_other_steps_are_refused_and_never_used(tmp_path):
    """Another log's, an older run's of the same name and length, another plan's: named errors."""
    steps = random_steps(SMALL, 80)
    with StepLog.create(tmp_path / "a", header_of(SMALL)) as log:
        log.append(steps)
    log.snapshots()
    others = {
        "seed": (replace(SMALL, seed=4), steps, 32),
        "steps": (SMALL, random_steps(SMALL, 80, seed=1), 32),
        "records": (SMALL, steps, 30),
        "plan": (PAPER, random_steps(PAPER, 80), 32),
        "size": (replace(SMALL, shapes=((6, 12), (4, 6))), steps, 32),
    }
    for name, (plan, own, at_once) in others.items():
        with StepLog.create(tmp_path / name, header_of(plan)) as other:
            for start in range(0, 80, at_once):
                other.append(own[start : start + at_once])
        path_of(other.path).write_bytes(path_of(log.path).read_bytes())
        again = StepLog.open(other.path)
        for ask in (again.weights_at, lambda n, log=again: log.slice("a", [0], n)):
            with pytest.raises(LogError, match=r"snapshots: .*write the snapshots again"):
                ask(70)
        same(again.replay(70), folded(plan, own[:70])[-1])  # from scratch, as ever
        again.snapshots()
        same(again.weights_at(70), folded(plan, own[:70])[-1])


def test_damaged_snapshots_are_refused():
    """Any byte, any cut: an error that names the file, or the right weights."""
    steps = random_steps(SMALL, 40)
    expected = folded(SMALL, steps)[-1]
    with a_log(SMALL, steps) as log:
        log.close()
        path = log.snapshots(8)
        data, again = path.read_bytes(), StepLog.open(log.path)
        bad = [data[:cut] for cut in range(len(data))]
        bad += [data[:n] + bytes([data[n] ^ flip]) + data[n + 1 :] for n in range(len(data))
                for flip in (1, 128)]  # fmt: skip
        refused = 0
        for changed in bad:
            path.write_bytes(changed)
            try:
                same(again.weights_at(40), expected)
            except LogError as error:
                refused += str(path) in str(error)
        assert refused > len(bad) - 10
        path.write_text("notes")
        with pytest.raises(FileExistsError, match="holds no snapshots"):
            again.snapshots()
        with pytest.raises(ValueError, match="every"):
            again.snapshots(0)
        assert path.read_text() == "notes"


@pytest.mark.skipif(not compiled(), reason="times are of compiled draws")
def test_any_step_of_a_long_run_is_at_hand_and_a_row_costs_little(tmp_path):
    """6,000 steps of 334,336 weights: any under 2% of the CPU time of a replay, a row under 5%."""
    widths = (784, 256, 256, 256, 10)
    shapes = tuple((n_out, n_in) for n_in, n_out in pairwise(widths))
    plan = replace(SMALL, names=("w1", "w2", "w3", "w4"), shapes=shapes, units=(16, 16, 16, 4))
    plan = replace(plan, inputs=widths[:-1])
    rng = np.random.default_rng(0)
    sizes = [units * inputs for units, inputs in zip(plan.units, plan.inputs, strict=True)]
    steps = []
    for step in range(6000):
        rate = 0.005 * 0.02 ** (step / 6000)  # of preset accurate
        layers = [np.unique(rng.integers(0, n, rng.poisson(rate * n))) for n in sizes]
        signs = [rng.choice(np.array([-1, 1], np.int8), q.size) for q in layers]
        steps.append(UnitsStep(tuple(layers), tuple(signs)))
    with StepLog.create(tmp_path / "long.steps", header_of(plan)) as log:
        log.append(steps)
    again = StepLog.open(log.path)
    again.snapshots()
    whole = cpu_seconds(again.replay, calls=1)
    for step in (20, 500, 2999, 5990, 6000):
        assert cpu_seconds(lambda step=step: again.weights_at(step)) < 0.02 * whole, step
        assert cpu_seconds(lambda step=step: again.slice("w2", [7], step)) < 0.05 * whole, step


def cpu_seconds(work, calls=3):
    """CPU time of the quickest of some calls."""
    seconds = []
    for _ in range(calls):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return min(seconds)


# --- Contributors


@st.composite
def shared_runs(draw):
    """A plan that has something to share, its steps, and who measured which part of each."""
    plan, steps = draw(runs(most=12).filter(lambda run: run[1] and items(run[0])))
    shares = []
    for _ in steps:
        inner = draw(st.sets(st.integers(1, max(1, items(plan) - 1)), max_size=3))
        cuts = [0, *sorted(cut for cut in inner if cut < items(plan)), items(plan)]
        shares.append([(a, b, draw(st.sampled_from("abc"))) for a, b in pairwise(cuts)])
    return plan, steps, shares


def items(plan):
    """How many perturbations, or drawn units, a step has."""
    return plan.perturbations if plan.method == "sampled" else sum(plan.units)


def kept_by(plan, step, shares, name):
    """A step without a contributor's part, perturbation by perturbation or move by move."""
    gone = {n for first, stop, owner in shares if owner == name for n in range(first, stop)}
    if isinstance(step, SampledStep):
        codes = [0 if n in gone else code for n, code in enumerate(step.codes.tolist())]
        return SampledStep(step.numerator, np.array(codes, np.int8))
    layers, before = [], 0
    for units, inputs, q, sign in zip(
        plan.units, plan.inputs, step.positions, step.signs, strict=True
    ):
        kept = [m for m in range(len(q)) if before + int(q[m]) // inputs not in gone]
        layers.append((q[kept], sign[kept]))
        before += units
    return UnitsStep(tuple(q for q, _ in layers), tuple(sign for _, sign in layers))


@few
@given(shared_runs(), st.integers(1, 9), st.sampled_from("abc"))
def test_a_reverted_log_is_one_without_the_contributors_moves(run, batch, name):
    """Replayed from scratch without them; twice is once; original and shares stay."""
    plan, steps, shares = run
    with a_log(plan) as log:
        for start in range(0, len(steps), batch):
            part = slice(start, start + batch)
            log.append(steps[part], shares=shares[part])
        before = log.path.read_bytes()
        out = log.path.with_name("out")
        again = StepLog.open(log.path)
        assert again.shares() == [tuple(own) for own in shares]
        if not any(owner == name for own in shares for _, _, owner in own):
            with pytest.raises(ValueError, match=r"must be a contributor of .*: a|b|c"):
                again.revert(name, out)
            return
        reverted = again.revert(name, out)
        kept = [kept_by(plan, *one, name) for one in zip(steps, shares, strict=True)]
        same_steps([*reverted.steps()], kept)
        assert StepLog.open(out).verify() == digest(folded(plan, kept)[-1])
        edit = reverted.header["edits"][-1]
        assert (edit["edit"], edit["contributor"]) == ("revert", name)
        assert edit["source"] == log.digest()
        assert reverted.shares() == again.shares()
        twice = reverted.revert(name, log.path.with_name("twice"))
        assert twice.digest() == reverted.digest()
        assert log.path.read_bytes() == before


def in_shares(steps, names="ab"):
    """Halves of every step of SMALL, taken by two contributors in turn."""
    return [[(0, 2, names[n % 2]), (2, 5, names[1 - n % 2])] for n in range(len(steps))]


def test_copies_of_a_log_keep_its_contributors():
    """Edits, forks, merges and joined logs name them for the same steps."""
    steps = random_steps(SMALL, 8)
    with a_log(SMALL) as log:
        log.append(steps, shares=in_shares(steps))
        expected = log.shares()
        near = log.path.with_name
        assert log.mask(3, near("masked")).shares() == expected
        assert log.concat(log, near("joined")).shares() == expected * 2
        fork = log.fork(5, near("fork"), 9)
        fork.append(steps[5:7], shares=in_shares(steps[5:7], "cd"))
        assert fork.shares()[:5] == expected[:5]
        merged = log.merge(fork, near("merged"))
        assert merged.shares() == [*expected, *fork.shares()[5:]]
        assert merged.revert("c", near("reverted")).digest() != merged.digest()


def test_steps_without_contributors_cannot_be_reverted_by_name():
    """A run that went on alone: what is not named is not known, and the error says from where."""
    steps = random_steps(SMALL, 6)
    with a_log(SMALL) as log:
        log.append(steps[:3], shares=in_shares(steps[:3]))
        log.append(steps[3:])
        assert [bool(own) for own in log.shares()] == [True] * 3 + [False] * 3
        with pytest.raises(ValueError, match=r"3 steps of .* name no contributor, first step 3"):
            log.revert("a", log.path.with_name("out"))
    with a_log(SMALL, steps) as log:
        assert not contributors.path_of(log.path).exists()
        with pytest.raises(ValueError, match=r"must be a contributor of .*: nobody; got 'a'"):
            log.revert("a", log.path.with_name("out"))


def test_lines_of_steps_that_never_came_are_cut_when_the_log_goes_on():
    """As after a writer that was killed between the two files, and within a line."""
    steps = random_steps(SMALL, 8)
    shares = in_shares(steps)
    with a_log(SMALL) as log:
        log.append(steps[:4], shares=shares[:4])
        log.close()
        whole, path = log.path.read_bytes(), contributors.path_of(log.path)
        log.append(steps[4:], shares=shares[4:])
        log.close()
        for torn in (b"", b'{"crc":12'):
            log.path.write_bytes(whole)
            before = path.read_bytes()
            path.write_bytes(before + torn)
            assert len(StepLog.open(log.path).shares()) == 4
            assert path.read_bytes() == before + torn  # reading never writes
            with StepLog.recover(log.path) as again:
                again.append(steps[4:5])
                again.append(steps[5:], shares=in_shares(steps[5:], "cd"))
                own = again.shares()
            assert own[:4] == [tuple(one) for one in shares[:4]]
            assert own[4] == ()
            assert {share.name for share in own[5]} == {"c", "d"}
            assert StepLog.open(log.path).shares() == own


def test_an_append_that_fails_names_nobody(monkeypatch):
    """The next one cuts what was written for it."""
    steps = random_steps(SMALL, 4)
    with a_log(SMALL) as log:
        log.append(steps[:2], shares=in_shares(steps[:2]))
        with monkeypatch.context() as patch:
            patch.setattr("minibit.steps.file.Appender.append", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                log.append(steps[2:], shares=in_shares(steps[2:], "cd"))
        log.append(steps[2:], shares=in_shares(steps[2:], "ef"))
        names = [{share.name for share in own} for own in StepLog.open(log.path).shares()]
        assert names == [{"a", "b"}, {"a", "b"}, {"e", "f"}, {"e", "f"}]


def test_a_log_that_takes_anothers_place_has_its_own_contributors(tmp_path):
    """The old ones stay until the new log's first record, and go then; notes are kept."""
    steps = random_steps(SMALL, 4)
    path, side = tmp_path / "a", tmp_path / "a.workers"
    with StepLog.create(path, header_of(SMALL)) as log:
        log.append(steps, shares=in_shares(steps))
    for shares in (in_shares(steps, "cd"), None):
        before = side.read_bytes()
        with StepLog.create(path, header_of(SMALL), overwrite=True) as log:
            assert side.read_bytes() == before
            log.append(steps[:2], shares=shares and shares[:2])
        assert StepLog.open(path).shares() == [tuple(own) for own in shares or [(), ()]][:2]
    side.write_text("notes")
    with StepLog.create(tmp_path / "b", header_of(SMALL)) as log:
        log.append(steps[:1])
        (tmp_path / "b.workers").write_text("notes")
        with pytest.raises(FileExistsError, match="names no contributors"):
            log.append(steps[1:], shares=in_shares(steps[1:]))
        assert len(log) == 1
    (tmp_path / "c.workers").write_text("notes")
    with pytest.raises(FileExistsError, match="exists"):
        StepLog.open(path).fork(0, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_contributors_of_a_step_stand_in_one_line():
    """A second line for it is refused, although its CRC fits."""
    steps = random_steps(SMALL, 2)
    with a_log(SMALL) as log:
        log.append(steps, shares=in_shares(steps))
        path, again = contributors.path_of(log.path), StepLog.open(log.path)
        first = path.read_bytes().splitlines(keepends=True)[0]
        twice, _ = contributors.lines(0, [log.shares()[0]], json.loads(first)["crc"])
        path.write_bytes(first + twice)
        with pytest.raises(LogError, match="line 2: its step must be a number above 0, got 0"):
            again.shares()


def test_damaged_contributors_are_named_by_their_line():
    """Any byte of them changed, a line lost, doubled or moved; and those of another log."""
    steps = random_steps(SMALL, 3)
    with a_log(SMALL) as log, a_log(replace(SMALL, seed=4), steps) as other:
        log.append(steps, shares=in_shares(steps))
        path, again = contributors.path_of(log.path), StepLog.open(log.path)
        data = path.read_bytes()
        first, second, third = data.splitlines(keepends=True)
        for n in range(len(data)):
            if n == len(data) - 1:
                continue  # the last line is then cut, not damaged
            path.write_bytes(data[:n] + bytes([data[n] ^ 1]) + data[n + 1 :])
            with pytest.raises(LogError, match=r"workers: line [123]: "):
                again.shares()
        for wrong, line in (((second, third), 1), ((first, third), 2), ((first, first), 2),
                            ((first, third, second), 2)):  # fmt: skip
            path.write_bytes(b"".join(wrong))
            with pytest.raises(LogError, match=f"workers: line {line}: .*nothing was changed"):
                again.revert("a", log.path.with_name("out"))
        contributors.path_of(other.path).write_bytes(data)
        with pytest.raises(LogError, match=r"line 1: its CRC-32 does not fit: .* another log"):
            StepLog.open(other.path).shares()
        assert not log.path.with_name("out").exists()


@pytest.mark.parametrize(
    "shares",
    [[(0, 6, "a")], [(2, 2, "a")], [(0, 2, "a"), (1, 3, "b")], [(0, 2, "")], [(0, 2)], [3],
     [(0.0, 2, "a")], [(-1, 2, "a")], ["abc"]],
)  # fmt: skip
def test_shares_that_are_none_are_refused(shares):
    """Beyond the step, empty, across each other, nameless: an error before anything is written."""
    with a_log(SMALL) as log:
        with pytest.raises(ValueError, match="shares must be"):
            log.append(random_steps(SMALL, 1), shares=[shares])
        with pytest.raises(ValueError, match="one list per step, 1, got 2"):
            log.append(random_steps(SMALL, 1), shares=[[], []])
        assert len(log) == 0


# --- All of them, of logs that were edited in any way


class Past:
    """A log, and plain lists of what it must hold.

    A row is a step, the factor of its moves (0 if it was masked, -1 if it was negated) and its
    contributor. `names` are the seeds and numbers that the first steps are drawn by; step n after
    them is number n of the seed `rest`.
    """

    def __init__(self, log, rows, names, rest):
        self.log, self.rows, self.names, self.rest = log, rows, names, rest

    def name(self, number):
        """The seed and the number that a step is drawn by."""
        return self.names[number] if number < len(self.names) else (self.rest, number)

    def named(self):
        """The names of all steps there are."""
        return [self.name(number) for number in range(len(self.rows))]

    def append(self, steps, owner):
        """Log steps that one contributor measured."""
        count = items(self.log.plan)
        self.log.append(steps, shares=[[(0, count, owner)] if count else [] for _ in steps])
        self.rows = [*self.rows, *((step, 1, owner) for step in steps)]

    def weights(self):
        """The weights after every step, by noise_step's own functions."""
        history = [initial_params(self.log.plan)]
        for (seed, number), (step, factor, _) in zip(self.named(), self.rows, strict=True):
            seeded = replace(self.log.plan, seed=seed)
            positions, deltas = sparse_update(seeded, number, step)
            history.append(apply_update(history[-1], positions, factor * deltas))
        return history

    def edited(self, kind, out, data):
        """Edit the log and the lists, each in its way; the log's file must stay as it was."""
        log, rows, plan = self.log, self.rows, self.log.plan
        count = len(rows)
        numbers = data.draw(st.sets(st.integers(0, max(0, count - 1)), max_size=count))
        at, seed = max(numbers, default=0), data.draw(seeds)
        more = [step for step, _, _ in rows[:5]]
        if kind in ("mask", "negate"):
            factor = -1 if kind == "negate" else 0
            new = [
                (s, f * factor if n in numbers else f, who) for n, (s, f, who) in enumerate(rows)
            ]
            return Past(getattr(log, kind)(numbers, out), new, self.names, self.rest)
        if kind == "fork":
            new = Past(log.fork(at, out, seed), rows[:at], self.named()[:at], seed)
            new.append(more, "fork")
            return new
        if kind == "fork back":
            return Past(log.fork(at, out), rows[:at], self.names, self.rest)
        if kind == "revert":
            owners = sorted({who for _, _, who in rows})
            if not owners or not items(plan):
                return self
            name = data.draw(st.sampled_from(owners))
            new = [(step, 0 if who == name else factor, who) for step, factor, who in rows]
            return Past(log.revert(name, out), new, self.names, self.rest)
        if kind == "merge":
            if not count:
                return self
            path = out.with_name(f"{out.name}.branch")
            branch = Past(
                log.fork(at + 1, path, seed), rows[: at + 1], self.named()[: at + 1], seed
            )
            branch.append(more, "branch")
            merged = log.merge(branch.log, out)
            shared = merged.header["edits"][-1]["parent"]
            assert shared > at
            assert log.digest(shared) == branch.log.digest(shared)
            names = [*self.named(), *branch.named()[shared:]]
            return Past(merged, [*rows, *branch.rows[shared:]], names, plan.seed)
        with StepLog.create(
            out.with_name(f"{out.name}.other"), header_of(replace(plan, seed=seed))
        ) as other:
            tail = Past(other, [], [], seed)
            tail.append(more, "other")
            names, new = [*self.named(), *tail.named()], [*rows, *tail.rows]
            return Past(log.concat(other, out), new, names, plan.seed)


KINDS = ("mask", "negate", "fork", "fork back", "merge", "concat", "revert")


@few
@given(runs(most=8), st.integers(1, 9), st.lists(st.sampled_from(KINDS), max_size=4), st.data())
def test_every_question_to_an_edited_log_has_the_answer_of_a_replay_from_scratch(
    run, times, kinds, data
):
    """Edits of edits in any order; whole weights, rows, differences, causes, the compact form."""
    plan, steps = run
    assume(steps)
    x = np.array([1, -2])
    with a_log(plan) as log:
        past = Past(log, [], [], plan.seed)
        for number in range(times):
            past.append(steps, "ab"[number % 2])
        for number, kind in enumerate(kinds):
            before = past.log.path.read_bytes()
            new = past.edited(kind, log.path.with_name(f"edit{number}"), data)
            assert past.log.path.read_bytes() == before
            past = new
        history, count = past.weights(), len(past.rows)
        visits = data.draw(st.lists(st.integers(0, count), min_size=2, max_size=5))
        labels = np.stack([scores(params, x).argmax(1) for params in history])
        for every in (None, 1, 5):  # without snapshots, then with them
            if every:
                past.log.snapshots(every)
            again = StepLog.open(past.log.path)
            assert len(again) == count
            assert again.verify() == digest(history[-1])
            assert [again.drawn_by(n) for n in range(count + 2)] == [
                past.name(n) for n in range(count + 2)
            ]
            for n, params in again.walk(range(count + 1)):
                same(params, history[n])
            for n in visits:
                same(again.replay(n), history[n])
                same(again.weights_at(n), history[n])
                assert again.digest(n) == digest(history[n])
                same(expand(plan, compact(again, n)), history[n])
                for name in plan.names:
                    whole = np.atleast_1d(history[n][name])
                    np.testing.assert_array_equal(again.slice(name, slice(None, None, -1), n),
                                                  whole[::-1])  # fmt: skip
            a, b = visits[:2]
            same(again.diff(a, b), {name: history[b][name] - w for name, w in history[a].items()})
            along = [params[plan.names[-1]].reshape(-1)[-1] for params in history]
            last = np.atleast_1d(history[0][plan.names[-1]])
            where = len(last) - 1, last[0].size - 1
            assert again.blame(plan.names[-1], *where) == flips(along)
            np.testing.assert_array_equal(again.answers(scores, x), labels)
            verdict = again.bisect(scores, x[0], 1)
            assert verdict.changes == flips(labels[:, 0])
            right = (labels[:, 0] == 1).tolist()
            turns = [n for n in range(count) if right[n] != right[n + 1]]
            assert verdict[:2] == (right[-1], turns[-1] if turns else None)
