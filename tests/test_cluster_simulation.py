"""What steps take on slow lines, as it is computed: laws that hold for every number of workers."""

from math import inf, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit.cluster.simulation import (
    PACKET,
    TIMEOUT,
    Costs,
    Link,
    all_reduce_seconds,
    step_seconds,
)

FREE = Costs(alone=0.0, shared=0.0, up=0.0, down=0.0)
workers = st.integers(1, 300)
costs = st.builds(
    Costs,
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 5000),
    st.floats(0, 5000),
    st.floats(0, 0.01),
    st.floats(0, 0.5),
)
links = st.builds(Link, st.floats(0, 0.3), st.floats(1e4, 1e9), st.floats(0, 0.2), st.just(1))


@given(st.floats(0, 1), st.floats(0, 1), workers)
def test_without_lines_a_step_is_what_is_repeated_and_a_share_of_the_rest(alone, shared, count):
    """So the gain over one worker stays below (alone + shared) / alone."""
    seconds = step_seconds(count, Costs(alone, shared, 500, 50), Link(), steps=3)
    np.testing.assert_allclose(seconds, alone + shared / count, atol=1e-12)
    if alone:
        assert (alone + shared) / seconds[0] <= (alone + shared) / alone + 1e-9


@given(workers, costs, links, st.floats(1e4, 1e9), st.floats(1, 3))
def test_nothing_is_quicker_for_a_worse_line(count, cost, link, own, factor):
    """Step by step: more delay, more loss, less bandwidth, a slower client, more bytes."""
    options = {"own": own, "steps": 5, "seed": 3}
    seconds = step_seconds(count, cost, link, **options)
    worse = [
        step_seconds(count, cost, link._replace(delay=link.delay * factor), **options),
        step_seconds(count, cost, link._replace(loss=link.loss * factor), **options),
        step_seconds(count, cost, link._replace(bandwidth=link.bandwidth / factor), **options),
        step_seconds(count, cost, link._replace(hops=2), **options),
        step_seconds(count, cost, link, **{**options, "own": own / factor}),
        step_seconds(count, cost._replace(up=cost.up * factor), link, **options),
        step_seconds(count, cost._replace(handling=cost.handling * factor), link, **options),
    ]
    for other in worse:
        assert (other >= seconds - 1e-12).all()
    all_reduced = all_reduce_seconds(count, cost, link, steps=5)
    slower = all_reduce_seconds(count, cost, link._replace(delay=link.delay * factor), steps=5)
    assert (slower >= all_reduced - 1e-12).all()


@given(st.integers(1, 60), costs, st.floats(0, 0.3), st.floats(1e4, 1e7))
def test_steps_end_when_a_queue_that_is_walked_through_ends(count, cost, delay, own):
    """Task by task, answer by answer; without losses, and with workers that are equally quick."""
    cost = cost._replace(spread=0.0)
    clock, arrivals = 0.0, []
    for _ in range(count):
        clock += cost.handling + 8 * cost.down / own
        arrivals.append(clock + 2 * delay + cost.alone + cost.shared / count)
    clock = 0.0
    for arrival in arrivals:
        clock = max(clock, arrival) + 8 * cost.up / own
    seconds = step_seconds(count, cost, Link(delay), own=own, steps=2)
    np.testing.assert_allclose(seconds, clock)


@pytest.mark.parametrize("seconds", [step_seconds, all_reduce_seconds])
def test_costs_that_cannot_be_are_refused(seconds):
    """The message names the field."""
    for name in Costs._fields:
        for wrong in (-1.0, inf):
            with pytest.raises(ValueError, match=rf"{name} must lie in \[0, inf\), got {wrong}"):
                seconds(2, FREE._replace(**{name: wrong}), Link())


@pytest.mark.parametrize(("loss", "hops"), [(0.01, 1), (0.1, 1), (0.1, 2)])
def test_a_lost_packet_waits_for_a_timeout_that_doubles(loss, hops):
    """The mean over many steps: p / (1 - 2 p) timeouts a message, there and back."""
    p, delay = 1 - (1 - loss) ** hops, 0.03
    link = Link(delay, inf, loss, hops)
    seconds = step_seconds(1, FREE, link, steps=200_000)
    expected = 2 * hops * delay + 2 * (2 * delay + TIMEOUT) * p / (1 - 2 * p)
    assert seconds.mean() == pytest.approx(expected, rel=0.03)
    assert seconds.min() == pytest.approx(2 * hops * delay)
    waits = np.unique(np.round((seconds - 2 * hops * delay) / (2 * delay + TIMEOUT), 6))
    np.testing.assert_array_equal(waits, np.round(waits))


@given(st.integers(2, 200))
def test_many_workers_wait_for_the_unluckiest(count):
    """With a loss of p, a step of W workers is undisturbed with probability (1 - p)^2W."""
    link = Link(0.0, inf, 0.01)
    undisturbed = np.mean(step_seconds(count, FREE, link, steps=4000) == 0)
    chance = 0.99 ** (2 * count)
    assert undisturbed == pytest.approx(chance, abs=5 * np.sqrt(chance / 4000) + 1e-3)


def test_the_spread_of_workers_is_lognormal_and_the_slowest_counts():
    """One worker: mean and deviation of the logarithm; a thousand: the maximum of as many."""
    cost = Costs(alone=1.0, shared=0.0, up=0, down=0, spread=0.2)
    logs = np.log(step_seconds(1, cost, Link(), steps=100_000))
    assert abs(logs.mean()) < 0.004
    assert logs.std() == pytest.approx(0.2, rel=0.02)
    slowest = np.log(step_seconds(1000, cost, Link(), steps=200)).mean()
    assert slowest == pytest.approx(0.2 * 3.24, rel=0.03)  # E of the largest of 1,000 normals


def test_long_messages_are_slowed_by_losses_as_mathis_says():
    """At most a packet per trip times sqrt(3 / 2 p); short ones are not."""
    link = Link(0.05, 1e9, 0.01)
    rate = PACKET / 0.1 * np.sqrt(150)  # bytes per second
    assert link.seconds(1e6) == pytest.approx(0.05 + 1e6 / rate)
    assert link.seconds(1000) == pytest.approx(0.05 + 8e-6)


def test_gradients_go_round_a_ring_or_through_a_tree_whichever_is_quicker():
    """Bandwidth alone favours the ring, delay alone the tree; one worker sends nothing."""
    cost = Costs(alone=0.1, shared=0.8, up=1e6, down=0)
    for count in (2, 8, 256):
        ring = all_reduce_seconds(count, cost, Link(0, 8e6), steps=2)
        np.testing.assert_allclose(ring, 0.1 + 0.8 / count + 2 * (count - 1) / count)
        tree = all_reduce_seconds(count, cost, Link(0.05), steps=2)
        rounds = min(2 * (count - 1), 2 * np.ceil(log2(count)))
        np.testing.assert_allclose(tree, 0.1 + 0.8 / count + 0.05 * rounds)
    alone = all_reduce_seconds(1, cost, Link(0.05, 1e6, 0.1), steps=2)
    np.testing.assert_allclose(alone, 0.9)


def test_the_same_seed_draws_the_same_seconds():
    """And another seed others."""
    cost, link = Costs(0.1, 0.1, 500, 50, 0, 0.1), Link(0.05, 1e6, 0.05)
    first, again, other = (step_seconds(8, cost, link, seed=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"workers": 0}, "workers"),
        ({"workers": 1.5}, "workers"),
        ({"costs": FREE._replace(alone=-1)}, "alone"),
        ({"costs": FREE._replace(up=inf)}, "up"),
        ({"link": Link(-1)}, "delay"),
        ({"link": Link(0, 0)}, "bandwidth"),
        ({"link": Link(0, 1, 1)}, "loss"),
        ({"link": Link(0, 1, 0, 0)}, "hops"),
        ({"own": 0}, "own"),
        ({"steps": 0}, "steps"),
    ],
)
def test_what_no_line_or_cost_can_be_is_refused_by_name(bad, name):
    """The message begins with the argument or the field."""
    arguments = {"workers": 2, "costs": FREE, "link": Link()} | bad
    with pytest.raises((TypeError, ValueError), match=f"^{name} must"):
        step_seconds(**arguments)
