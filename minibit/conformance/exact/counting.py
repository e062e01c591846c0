"""Smoothed counts of characters as exact fractions, from a text's substrings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from fractions import Fraction
from math import log
from typing import Any

import numpy as np

__all__ = ["COUNTING", "Counted"]


class Counted:
    """A text, and the smoothing of its counts; `wrong` names one mistake."""

    def __init__(self, text: str, context: int, kind: str, wrong: str = "") -> None:
        self.text, self.context, self.kind, self.wrong = text, context, kind, wrong
        self.characters = "".join(sorted(set(text)))
        self.counts: list[dict[str, Counter[str]]] = []
        for order in range(context + 1):
            seen: dict[str, Counter[str]] = defaultdict(Counter)
            grams = [text[i : i + order + 1] for i in range(len(text) - order)]
            if kind == "kneser-ney" and order < context and wrong != "counts-for-kinds":
                longer = {text[i : i + order + 2] for i in range(len(text) - order - 1)}
                grams = [gram[1:] for gram in sorted(longer)]
            for gram in grams:
                seen[gram[:-1]][gram[-1]] += 1
            self.counts.append(seen)

    def cuts(self, order: int) -> tuple[Fraction, ...]:
        """Discounts of counts of 1, 2 and more, from the counts of counts."""
        ones = Counter(n for row in self.counts[order].values() for n in row.values())
        n1, n2, n3, n4 = (ones[i] for i in (1, 2, 3, 4))
        if self.wrong == "one-discount":
            return (Fraction(1, 2),) * 3
        usual = (Fraction(1, 2), Fraction(1), Fraction(3, 2))
        if not (n1 and n2 and n3 and n4):
            return usual
        y = Fraction(n1, n1 + 2 * n2)
        cuts = (1 - 2 * y * Fraction(n2, n1), 2 - 3 * y * Fraction(n3, n2), 3 - 4 * y * n4 / n3)
        good = all(0 < cut <= i for i, cut in enumerate(cuts, 1))
        return cuts if good else usual

    def chance(self, history: str, character: str) -> Fraction:
        """Chance of a character after a history, of at most `context` characters."""
        p = Fraction(1, len(self.characters))
        for order in range(min(len(history), self.context) + 1):
            row = self.counts[order].get(history[len(history) - order :])
            if row is None:
                continue
            total = sum(row.values())
            if self.kind == "witten-bell":
                kinds = 1 if self.wrong == "one-kind" else len(row)
                p = Fraction(row[character] + kinds * p, total + kinds)
            else:
                cut = self.cuts(order)
                left = [(n - cut[min(n, 3) - 1], cut[min(n, 3) - 1]) for n in row.values()]
                mine = row[character]
                share = mine - cut[min(mine, 3) - 1] if mine else Fraction(0)
                p = (share + sum(taken for _, taken in left) * p) / total
            if self.wrong == "longest-alone" and order < self.context:
                p = Fraction(1, len(self.characters))
        return p

    def probabilities(self, history: str) -> Any:
        """Chances of all characters after a history."""
        return np.array([float(self.chance(history, c)) for c in self.characters])

    def loss(self, text: str) -> float:
        """Mean of minus the logarithm of each character's chance."""
        past = (text[max(i - self.context, 0) : i] for i in range(len(text)))
        total = -sum(log(self.chance(h, c)) for h, c in zip(past, text, strict=True))
        return total / len(text) / (log(2) if self.wrong == "bits-for-nats" else 1)


def discounts(counts: Any, wrong: str = "") -> tuple[Any]:
    """Return the discounts of counts of 0, 1, 2 and more, from counts of counts."""
    ones = Counter(counts.tolist())
    n1, n2, n3, n4 = (Fraction(ones[i]) for i in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return (np.array([0.0, 0.5, 1.0, 1.5]),)
    y = n1 / (n1 + (1 if wrong == "without-the-two" else 2) * n2)
    cuts = [Fraction(0), 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    if wrong == "one-for-all":
        cuts[2] = cuts[3] = cuts[1]
    return (np.array([float(cut) for cut in cuts]),)


def counted(kind: str, wrong: str = "") -> Callable[..., Any]:
    """Return the chances after some histories, and the loss of a text, of a kind of smoothing."""

    def model(text: str, context: int, histories: Any, held_out: str) -> tuple[Any, float]:
        """Count, and ask."""
        model = Counted(text, context, kind, wrong)
        return np.stack([model.probabilities(h) for h in histories]), model.loss(held_out)

    return model


COUNTING: dict[str, Callable[..., tuple[Any, ...]]] = {
    "counting.discounts": discounts,
    "counting.kneser_ney": counted("kneser-ney"),
    "counting.witten_bell": counted("witten-bell"),
}
