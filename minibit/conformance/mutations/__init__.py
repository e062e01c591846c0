"""Wrong variants, by name ``function/flag``: what ports get wrong; some case fails each.

A variant takes the arguments of the function that it stands for. It is put in that function's
place, in the call itself or among a case's arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minibit.conformance.cases import Case
from minibit.conformance.exact.costs import WRONG as COSTS
from minibit.conformance.exact.dual_methods import WRONG as DUAL_METHODS
from minibit.conformance.exact.histories import WRONG as HISTORIES
from minibit.conformance.exact.plans import WRONG as PLANS
from minibit.conformance.exact.runs import WRONG as RUNS
from minibit.conformance.mutations.absmean import ABSMEAN
from minibit.conformance.mutations.adapters import ADAPTERS
from minibit.conformance.mutations.choices import CHOICES
from minibit.conformance.mutations.derivatives import DERIVATIVES
from minibit.conformance.mutations.dual import DUAL
from minibit.conformance.mutations.gguf import GGUF
from minibit.conformance.mutations.layers import LAYERS
from minibit.conformance.mutations.models import MODELS
from minibit.conformance.mutations.nf4 import NF4
from minibit.conformance.mutations.noise import NOISE
from minibit.conformance.mutations.steps import STEPS
from minibit.conformance.mutations.ternary import TERNARY
from minibit.conformance.mutations.topk import TOPK
from minibit.conformance.mutations.training import TRAINING
from minibit.conformance.running import Deviation, answer_of, judge

__all__ = ["MUTATIONS", "answer_with", "caught"]

MUTATIONS: dict[str, Callable[..., Any]] = {
    **ABSMEAN,
    **ADAPTERS,
    **CHOICES,
    **COSTS,
    **DERIVATIVES,
    **DUAL,
    **DUAL_METHODS,
    **GGUF,
    **HISTORIES,
    **LAYERS,
    **MODELS,
    **NF4,
    **NOISE,
    **PLANS,
    **RUNS,
    **STEPS,
    **TERNARY,
    **TOPK,
    **TRAINING,
}


class _Mutated:
    """A module that offers a wrong variant under one name."""

    def __init__(self, offered: Any, name: str, variant: Callable[..., Any]) -> None:
        self.offered, self.name, self.variant = offered, name, variant

    def __getattr__(self, name: str) -> Any:
        """Return the variant, or what the module itself has."""
        return self.variant if name == self.name else getattr(self.offered, name)


def answer_with(case: Case, mutation: str, offered: Any) -> dict[str, Any]:
    """Run a case with a mutation in its function's place, and write down the answer."""
    name, variant = mutation.partition("/")[0], MUTATIONS[mutation]
    if name == case.call:
        return answer_of(case, offered, variant)
    return answer_of(case, _Mutated(offered, name, variant))


def caught(case: Case, mutation: str, offered: Any) -> Deviation | None:
    """Run a case with a mutation in its function's place: how it deviates, None if it passes."""
    return judge(case, answer_with(case, mutation, offered))
