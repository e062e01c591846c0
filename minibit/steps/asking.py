"""Causes of a change: the steps that changed a weight or an answer, and the last of them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Change", "Verdict", "changes", "top_answers", "verdict"]


class Change(NamedTuple):
    """A step that turned one value into another: a weight's code, or the label that an image got.

    `step` counts from 0, as edits count: masking it alone leaves `before` where it was, then.
    """

    step: int
    before: int
    after: int


class Verdict(NamedTuple):
    """Since when a label is right, or wrong, for good."""

    right: bool  # whether the last weights give the label that was expected
    step: int | None  # the last one that changed this; None if it was so from the first weights on
    changes: list[Change]  # of the answer, in turn


def changes(values: Iterable[int]) -> list[Change]:
    """Return the steps at which a value changes; the first value is that before all steps.

    Examples
    --------
    >>> changes([0, 0, 1, -1])
    [Change(step=1, before=0, after=1), Change(step=2, before=1, after=-1)]
    """
    pairs = enumerate(pairwise(values))
    return [Change(step, int(a), int(b)) for step, (a, b) in pairs if a != b]


def verdict(answers: NDArray[np.int64], label: int) -> Verdict:
    """Say since when answers, (steps + 1,), are `label`, or are not, up to the end.

    Examples
    --------
    >>> verdict(np.array([7, 3, 7, 3, 3]), 3)[:2], verdict(np.array([7, 3, 3]), 7)[:2]
    ((True, 2), (False, 0))
    >>> verdict(np.array([3, 3]), 3)[:2]
    (True, None)
    """
    right = answers == label
    flips = np.flatnonzero(right[1:] != right[:-1])
    last = int(flips[-1]) if flips.size else None
    return Verdict(bool(right[-1]), last, changes(answers.tolist()))


def top_answers(outputs: Any, batch: int) -> NDArray[np.int64]:
    """Return the class with the largest logit of each sample, the first of several."""
    logits: NDArray[Any] = np.asarray(outputs)
    if logits.ndim != 2 or len(logits) != batch or not logits.shape[1]:
        raise ValueError(
            f"logits must return an array ({batch}, classes), got shape {logits.shape}"
        )
    answers: NDArray[np.int64] = logits.argmax(1)
    return answers
