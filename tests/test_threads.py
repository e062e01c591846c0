"""Workers that watch for work: woken, shared, and gone when the program ends."""

import os
import subprocess
import sys
import time
import weakref
from functools import partial

import numpy as np
import pytest

from minibit.kernels import spin
from minibit.kernels import threads as pool

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")


def test_a_worker_that_slept_is_woken():
    """A task comes long after the last one; so do several callers at once."""
    for pause in (0.0, 0.02, 0.0):
        time.sleep(pause)
        assert pool.run([lambda: True, lambda: True])
        assert not pool.run([lambda: True, lambda: False])


def test_more_tasks_than_the_team_has_workers_are_all_done():
    """They go through the pool, as do those of a caller who finds the team busy."""
    done = []
    assert pool.run([lambda i=i: done.append(i) is None for i in range(40)])
    assert sorted(done) == list(range(40))
    if JIT:
        with pool._team().free:
            assert pool.run([lambda: True, lambda: True])


def test_a_result_is_let_go_of():
    """A worker keeps no array of a task that is over."""
    array = np.zeros(10)
    alive = weakref.ref(array)
    pool.run([lambda: True, partial(np.all, array == 0)])
    held = partial(lambda x: True, array)
    pool.run([lambda: True, held])
    del array, held
    assert alive() is None


def test_a_program_with_sleeping_workers_ends():
    """The team's threads do not keep Python from leaving."""
    code = "from minibit.kernels.threads import run; run([lambda: True, lambda: True])"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


@pytest.mark.skipif(not JIT, reason="a spinning wait is compiled")
def test_waiting_ends_when_the_number_comes_or_the_looks_are_spent():
    """The reference of a spinning wait is a comparison."""
    numbers = np.array([3, 4])
    assert spin.wait(numbers, 1, 4, 10, 2)
    assert not spin.wait(numbers, 1, 5, 10, 2)
