"""The time of a step on many machines and slow lines, computed from measurements on one.

The client hands W tasks to its own line, one after another; each crosses to its worker, which
computes and answers; the answers queue at the client's line. A step ends with the last of them:

    arrived_k  = k (handling + 8 down / own) + way_k(down)               k = 1 ... W
    answered_k = arrived_k + (alone + shared / W) e_k + way_k(up)
    step       = max over k of  answered_(k) + (W + 1 - k) 8 up / own    (k) in order of arrival

``way`` is a message's time on a line: its delay, its bits over the rate, and a timeout for each
time that its last packet is lost, twice as long each time. ``e`` is how much slower a worker is
this time, lognormal. Delays are drawn from Philox, so the same seed gives the same seconds.

Lost packets within a long message cost no timeout, they slow it down: its rate is at most
``packet / trip sqrt(3 / (2 loss))`` (Mathis et al. 1997), a `trip` being twice the delay.
"""

from __future__ import annotations

from math import ceil, inf, log2, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer, number
from minibit.noise import uniform

__all__ = ["PACKET", "TIMEOUT", "Costs", "Link", "all_reduce_seconds", "step_seconds"]

PACKET = 1448  # bytes of a message that a packet of 1500 carries
TIMEOUT = 0.2  # seconds over the trip after which Linux sends a lost last packet again
MOST_LOST = 12  # losses of one packet, one after another, that are told apart


class Link(NamedTuple):
    """A line between the client and a worker."""

    delay: float = 0.0  # seconds, one way
    bandwidth: float = inf  # bits per second
    loss: float = 0.0  # share of lost packets
    hops: int = 1  # lines of this kind, one after another: 2 by way of a scheduler

    def seconds(self, size: float) -> float:
        """Return what a message of so many bytes takes if its last packet is not lost."""
        rate = self.bandwidth
        if size > PACKET and self.loss and self.delay:
            rate = min(rate, 8 * PACKET / (2 * self.delay) * sqrt(1.5 / self.loss))
        return self.hops * (self.delay + 8 * size / rate)

    def checked(self) -> Link:
        """Return the link, or raise a ValueError that names the field."""
        number("delay", self.delay, "[0, inf)")
        number("loss", self.loss, "[0, 1)")
        integer("hops", self.hops, 1)
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth must be positive, got {self.bandwidth}")
        return self


class Costs(NamedTuple):
    """The costs of one step, as measured."""

    alone: float  # seconds that every worker computes: batch, forward pass
    shared: float  # seconds of work that the workers share
    up: float  # bytes of an answer
    down: float  # bytes of a task
    handling: float = 0.0  # seconds of the client per worker
    spread: float = 0.0  # of the logarithm of a worker's time, from one time to the next

    def checked(self) -> Costs:
        """Return the costs, or raise a ValueError that names the field."""
        for name, cost in self._asdict().items():
            number(name, cost, "[0, inf)")
        return self


def step_seconds(
    workers: int,
    costs: Costs,
    link: Link,
    *,
    own: float = inf,
    steps: int = 200,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Draw what each of so many steps takes on that many workers.

    Parameters
    ----------
    workers : int
        W, each behind a link of its own.
    costs : Costs
        Of a step, measured on one machine.
    link : Link
        From the client to a worker.
    own : float
        Bits per second of the client's own line, which all messages share, one direction at a time.
    steps, seed : int
        How many steps are drawn, and what names the draws. With another delay, loss or bandwidth
        they meet the same luck.

    Returns
    -------
    float64 array, shape (steps,)

    Raises
    ------
    TypeError, ValueError
        If a number of workers or steps, a cost or a field of the link is out of range.

    Examples
    --------
    >>> costs = Costs(alone=0.1, shared=0.4, up=545, down=63)
    >>> step_seconds(4, costs, Link(delay=0.05), steps=2)
    array([0.3, 0.3])
    """
    shape = integer("steps", steps, 1), integer("workers", workers, 1)
    costs = costs.checked()
    if not own > 0:
        raise ValueError(f"own must be positive, got {own}")
    turn = np.arange(1, workers + 1)  # (workers,)
    luck = uniform(seed, (4, *shape))  # (4, steps, workers)
    slower = np.exp(costs.spread * _normal(luck[0], luck[1]))  # (steps, workers)
    at = turn * (costs.handling + 8 * costs.down / own)  # when a task is on its way
    at = at + _way(costs.down, link.checked(), luck[2])  # (steps, workers)
    at = at + (costs.alone + costs.shared / workers) * slower
    at = np.sort(at + _way(costs.up, link, luck[3]), axis=1)
    ends = at + (workers + 1 - turn) * 8 * costs.up / own
    return np.asarray(ends.max(axis=1), np.float64)  # (steps,)


def all_reduce_seconds(
    workers: int, costs: Costs, link: Link, *, steps: int = 200, seed: int = 0
) -> NDArray[np.float64]:
    """Draw what each of so many steps takes where gradients of ``costs.up`` bytes are all-reduced.

    ``alone + shared / W`` seconds of computing, then the quicker of two ways to add W gradients: a
    ring, ``2 (W - 1)`` rounds of messages of ``up / W`` bytes (Patarasuk and Yuan 2009), or up and
    down a tree, ``2 ceil(log2 W)`` rounds of whole gradients. All workers send in a round, which
    ends with the slowest message.

    Parameters
    ----------
    workers, costs, link, steps, seed
        As in `step_seconds`; `link` leads from worker to worker, ``down`` and ``handling`` count
        nothing.

    Examples
    --------
    >>> all_reduce_seconds(2, Costs(0, 1, up=1e6, down=0), Link(0, 8e6), steps=1)
    array([1.5])
    """
    shape = integer("steps", steps, 1), integer("workers", workers, 1)
    costs = costs.checked()
    luck = uniform(seed, (2, *shape))  # (2, steps, workers)
    slower = np.exp(costs.spread * _normal(*luck)).max(axis=1)  # (steps,)
    ways = []
    for rounds, size in (
        (2 * (workers - 1), costs.up / workers),
        (2 * ceil(log2(workers)), costs.up),
    ):
        chance = uniform(seed, (steps, rounds), lane=1) ** (1 / workers)  # of the unluckiest
        ways.append(_way(size, link.checked(), chance).sum(axis=1))
    return np.asarray((costs.alone + costs.shared / workers) * slower + np.minimum(*ways))


def _way(size: float, link: Link, chance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the seconds of messages, of which each is as unlucky as its number in [0, 1) says."""
    trip = 2 * link.delay + TIMEOUT
    waits = np.zeros_like(chance)
    arrives = (1 - link.loss) ** link.hops  # at the first try; of several hops a lost one repeats
    for lost in range(MOST_LOST):
        waits += np.where(chance >= 1 - (1 - arrives) ** (lost + 1), trip * 2**lost, 0)
    return link.seconds(size) + waits


def _normal(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a standard normal number for each pair of uniform ones (Box and Muller 1958)."""
    return np.asarray(np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v))
