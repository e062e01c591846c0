"""Who judges the vectors: our planted bugs, each of which a case must catch whose flag names it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import minibit
from minibit.conformance.cases import Case
from minibit.conformance.mutations import MUTATIONS, caught

__all__ = ["VectorReport", "judge_vectors"]


@dataclass(frozen=True)
class VectorReport:
    """Of every wrong variant, by name, the cases that name it: those that catch it, and others."""

    catching: dict[str, list[str]]
    missing: dict[str, list[str]]

    @property
    def share(self) -> float:
        """How many of the variants some case catches, in [0, 1]."""
        return sum(map(bool, self.catching.values())) / len(self.catching)

    @property
    def passed(self) -> bool:
        """Whether every variant is caught, by each case that names it."""
        return self.share == 1 and not any(self.missing.values())


def judge_vectors(chosen: Iterable[Case], only: str = "") -> VectorReport:
    """Put each wrong variant with `only` in its name into minibit, and run the cases that name it.

    Examples
    --------
    >>> from minibit.conformance import cases
    >>> report = judge_vectors(cases("absmean"), only="absmean_quantize/half-away")
    >>> report.share, len(report.catching["absmean_quantize/half-away"]) > 0
    (1.0, True)
    """
    names = [name for name in MUTATIONS if only in name]
    if not names:
        raise ValueError(f"only must be part of a wrong variant's name, got {only!r}")
    report = VectorReport({name: [] for name in names}, {name: [] for name in names})
    for case in chosen:
        for name in report.catching.keys() & set(case.mutations):
            noticed = caught(case, name, minibit) is not None
            (report.catching if noticed else report.missing)[name].append(case.id)
    return report
