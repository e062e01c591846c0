"""What a log alone can do, stated as laws: each answer is that of a replay from scratch."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit.noise_step import apply_update, digest, sparse_update
from minibit.steps import StepLog
from test_steps import (
    PAPER,
    SMALL,
    a_log,
    few,
    page_reader,
    plans,
    random_steps,
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


def test_a_fork_says_what_its_data_are():
    """The entry `data` of the header is replaced, and only in the fork."""
    with a_log(SMALL, random_steps(SMALL, 4)) as log:
        fork = log.fork(2, log.path.with_name("fork"), data={"name": "other"})
        assert fork.header["data"] == {"name": "other"}
        assert "data" not in log.header
