"""Counting characters: the honest baseline of every small language model.

How often did each character follow the last few? Two classical answers, both mixtures of a long
history with the next shorter one, down to the uniform distribution over V characters:

    p(c | h) = share(h c) + rest(h) p(c | h'),      h' = h without its first character

    Witten-Bell:   share = N(h c) / (N(h) + T(h)),              rest = T(h) / (N(h) + T(h))
    Kneser-Ney:    share = (N(h c) - D(N(h c))) / N(h),         rest = sum_c D(N(h c)) / N(h)

N counts, T(h) is the number of different characters seen after h, and a history never seen has
rest 1. Kneser-Ney is the *modified* one of Chen and Goodman: three discounts D for counts of 1, 2
and more, and, below the longest history, N(h c) counts not how often ``h c`` occurred but how many
different characters stood before it.

Nothing loops over characters. An n-gram is known by one integer, ``V id(h) + c``, with the ids of
the (n-1)-grams found one order earlier, so that sorting integers counts n-grams of any length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer

__all__ = ["CountModel", "discounts", "kneser_ney", "witten_bell"]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

FALLBACK = (0.5, 1.0, 1.5)  # discounts where counts of counts give none, as KenLM's


class _Order(NamedTuple):
    """The n-grams of one length: what each adds, and what each history leaves to shorter ones."""

    keys: Integers  # (grams,), rising: V id(history) + character
    share: Floats  # (grams,)
    rest: Floats  # (histories,)


@dataclass(frozen=True, eq=False)
class CountModel:
    """A distribution of the next character, made by `kneser_ney` or `witten_bell`."""

    characters: str  # the V that may occur, in order of their code points
    context: int  # how many characters back the model looks
    _orders: tuple[_Order, ...] = field(repr=False)

    def loss(self, text: str) -> float:
        """Mean negative log probability of the characters of a text, in nats per character.

        The first ``context`` characters see what there is of a history: the first sees none. A
        ValueError says that `text` is empty, or names its first character that may not occur.

        Examples
        --------
        >>> round(witten_bell("abracadabra", 2).loss("abra"), 4)
        0.5381
        """
        if not text:
            raise ValueError("text must not be empty: it has no mean")
        return float(-np.log(self._predict(self._codes(text, "text"))).mean())

    def probabilities(self, history: str) -> Floats:
        """Probability of each of ``characters`` after a history: float64, (V,), with sum one.

        The last ``context`` characters of `history` matter. It may be empty, or never seen; its
        first character that may not occur is named by a ValueError.

        Examples
        --------
        >>> model = witten_bell("abab", 1)
        >>> model.probabilities("a")  # (0 + 1/2) / 3 and (2 + 1/2) / 3
        array([0.16666667, 0.83333333])
        """
        past = self._codes(history, "history")[max(len(history) - self.context, 0) :]
        size = len(self.characters)
        tried = np.empty((size, len(past) + 1), np.int64)  # (V, tokens + 1)
        tried[:, :-1] = past
        tried[:, -1] = np.arange(size)
        return self._predict(tried)[:, -1]

    def _predict(self, codes: Integers) -> Floats:
        """Probability of every character given those before it in its row; (..., tokens)."""
        size = len(self.characters)
        p = np.full(codes.shape, 1 / size)
        history = np.zeros(codes.shape, np.int64)  # id of the (n-1)-gram before, -1 if never seen
        for order in self._orders:
            known = history >= 0
            at = np.searchsorted(order.keys, np.where(known, size * history + codes, -1))
            at = np.minimum(at, len(order.keys) - 1)
            seen = known & (order.keys[at] == size * history + codes)
            share = np.where(seen, order.share[at], 0.0)
            p = np.where(known, share + order.rest[history] * p, p)
            history = np.full(codes.shape, -1)
            history[..., 1:] = np.where(seen, at, -1)[..., :-1]
        return p

    def _codes(self, text: str, name: str) -> Integers:
        """Place of every character of a text among those that may occur."""
        points, alphabet = _points(text), _points(self.characters)
        codes = np.minimum(np.searchsorted(alphabet, points), len(alphabet) - 1)
        unknown = np.flatnonzero(alphabet[codes] != points)
        if unknown.size:
            first = int(unknown[0])
            raise ValueError(
                f"{name} holds {text[first]!r} at {first}, which is not among the characters of "
                "the model; name all that may occur as `characters`"
            )
        return codes.astype(np.int64)


def kneser_ney(text: str, context: int, characters: Iterable[str] | None = None) -> CountModel:
    """Count a text, smoothed by modified Kneser-Ney, interpolated.

    The equation is that of the module, with `discounts` estimated for each length of history from
    its own counts of counts. Below the shortest history, the distribution is uniform.

    Parameters
    ----------
    text : str
        Not empty, or it is a ValueError; one stream, without marks for where it starts.
    context : int
        Length of the longest history, 0 or more; else a TypeError or ValueError.
    characters : iterable of str, optional
        Characters that may occur; a ValueError names one of the text's that it lacks. Default:
        those of the text.

    Notes
    -----
    S. F. Chen, J. Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling",
    Harvard TR-10-98 (1998), "Modified Kneser-Ney smoothing"; R. Kneser, H. Ney, "Improved
    backing-off for m-gram language modeling", ICASSP 1995. An n-gram that only begins the text has
    nothing before it, and counts 0 among the shorter ones.

    Examples
    --------
    >>> model = kneser_ney("abracadabra", 2)
    >>> model.characters
    'abcdr'
    >>> (140 * model.probabilities("ab")).round(6)
    array([ 11.,   6.,   6.,   6., 111.])
    """
    return _count(text, context, characters, _kneser_ney_shares, distinct=True)


def witten_bell(text: str, context: int, characters: Iterable[str] | None = None) -> CountModel:
    """Count a text, smoothed by Witten and Bell's rule.

    The equation is that of the module: T(h) estimates how often something new follows. Arguments
    and errors are those of `kneser_ney`.

    Notes
    -----
    I. H. Witten, T. C. Bell, "The zero-frequency problem", IEEE Trans. Information Theory 37(4),
    1991, method C; in the recursive form of Chen and Goodman (1998).

    Examples
    --------
    >>> witten_bell("aab", 0).probabilities("")  # (2 + 2/2) / (3 + 2), (1 + 2/2) / (3 + 2)
    array([0.6, 0.4])
    """
    return _count(text, context, characters, _witten_bell_shares, distinct=False)


def discounts(counts: Integers) -> Floats:
    """Estimate modified Kneser-Ney's discounts for counts of 0, 1, 2 and more.

    ``Y = n1 / (n1 + 2 n2)``, ``D1 = 1 - 2 Y n2 / n1``, ``D2 = 2 - 3 Y n3 / n2``,
    ``D3 = 3 - 4 Y n4 / n3``, where ``nk`` n-grams have count k; D0 is 0.

    `counts` (grams,) says how often each n-gram of one length was counted; returned are float64,
    (4,). Where one of n1 to n4 is 0, or a discount is outside of ``0 < Dk <= k`` (both happen for
    short texts, and for single characters, of which there are few), they are 0, 1/2, 1, 3/2, the
    fallback of K. Heafield's KenLM. Source: Chen and Goodman (1998), as in `kneser_ney`.

    Examples
    --------
    >>> discounts(np.repeat([1, 2, 3, 4], [8, 4, 2, 1]))
    array([0.  , 0.5 , 1.25, 2.  ])
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == k)) for k in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) > 0:
        y = n1 / (n1 + 2 * n2)
        estimate = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 < d <= k for k, d in enumerate(estimate, start=1)):
            return np.array([0.0, *estimate])
    return np.array([0.0, *FALLBACK])


Shares = Callable[[Integers, Integers, int], tuple[Floats, Floats]]


def _kneser_ney_shares(
    counts: Integers, history: Integers, histories: int
) -> tuple[Floats, Floats]:
    """Share of each n-gram and rest of each history; counts (grams,), history (grams,)."""
    taken = discounts(counts)[np.minimum(counts, 3)]  # (grams,)
    total = np.bincount(history, counts, histories)  # N(h)
    rest = np.bincount(history, taken, histories)
    nothing = total == 0
    total[nothing], rest[nothing] = 1, 1
    return (counts - taken) / total[history], rest / total


def _witten_bell_shares(
    counts: Integers, history: Integers, histories: int
) -> tuple[Floats, Floats]:
    """Share of each n-gram and rest of each history, as for `_kneser_ney_shares`."""
    types = np.bincount(history, minlength=histories).astype(np.float64)  # T(h)
    total = np.bincount(history, counts, histories) + types
    nothing = total == 0
    total[nothing], types[nothing] = 1, 1
    return counts / total[history], types / total


def _count(
    text: str, context: int, characters: Iterable[str] | None, shares: Shares, *, distinct: bool
) -> CountModel:
    """Count n-grams of 1 to context + 1 characters and turn each order's counts into shares."""
    context = integer("context", context)
    if not text:
        raise ValueError("text must not be empty: there is nothing to count")
    alphabet = set(text if characters is None else characters)
    if wrong := [c for c in alphabet if len(c) != 1]:
        raise ValueError(f"characters must be single ones, got {wrong[0]!r}")
    if missing := sorted(set(text) - alphabet):
        raise ValueError(f"characters lacks {missing[0]!r}, which is in the text")
    model = CountModel("".join(sorted(alphabet)), context, ())
    codes, size = model._codes(text, "text"), len(model.characters)

    tables: list[tuple[Integers, Integers]] = []  # keys and counts, shortest first
    history = np.zeros(len(codes), np.int64)  # ids of what stands before each character
    before: Integers | None = None  # ids of the n-grams that end at each character
    for n in range(1, min(context + 1, len(codes)) + 1):
        end = codes[n - 1 :]  # (grams that occur,)
        keys, first, ids, counts = np.unique(
            size * history + end, return_index=True, return_inverse=True, return_counts=True
        )
        if distinct and before is not None:  # each n-gram counts once for the suffix it ends with
            suffix = before[1:][first]
            shorter = tables[-1][0]
            tables[-1] = shorter, np.bincount(suffix, minlength=len(shorter))
        tables.append((keys, counts))
        before, history = ids, ids[:-1]

    orders, histories = [], 1
    for keys, counts in tables:
        share, rest = shares(counts, keys // size, histories)
        orders.append(_Order(keys, share, rest))
        histories = len(keys)
    return CountModel(model.characters, context, tuple(orders))


def _points(text: str) -> NDArray[Any]:
    """Code points of a text, lone surrogates included."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
