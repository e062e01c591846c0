"""Whether an implementation conforms: every case that it offers, by level, with hints.

    integers   noise and logs: replay is bit for bit
    codes      packings and quantisers: bit for bit, floats too
    floats     layers, products, models: within the bound of the case
    training   derivatives, steps, optimizers

A case *conforms*, *deviates*, is *not offered*, or was *not run*, where a port failed too often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import minibit
from minibit.conformance.cases import (
    Case,
    cases,
    functions_named,
    notes,
    vector_files,
)
from minibit.conformance.mutations import MUTATIONS, answer_with
from minibit.conformance.running import Deviation, answer_of, judge

__all__ = [
    "LEVELS",
    "VERDICTS",
    "Report",
    "Result",
    "all_cases",
    "cases_of",
    "conform",
    "examine",
    "level_of",
]

LEVELS = ("integers", "codes", "floats", "training")
VERDICTS = ("conforms", "deviates", "not offered", "not run")
INTEGERS = ("logs", "noise", "steps")  # modules of vectors
TRAINING = ("dual", "dual_methods", "lora", "noise_step", "tape", "training")


@dataclass(frozen=True)
class Result:
    """The verdict on a case; `deviation` and `fault` say how it deviates, or why it was not run."""

    case: Case
    verdict: str
    answer: Mapping[str, Any]
    deviation: Deviation | None = None
    fault: str = ""
    answer_is_that_of: str = ""  # the mutation that gives this very answer

    @property
    def detail(self) -> str:
        """Say in one line where the answer differs."""
        return self.fault or str(self.deviation or "")

    def hints(self) -> Iterator[tuple[str, Mapping[str, str]]]:
        """Yield the flags that may explain a deviation, with their notes; one alone if known."""
        table = notes(self.case.module)
        known = self.answer_is_that_of.partition("/")[2]
        for flag in (known,) if known in table else self.case.flags:
            yield flag, table[flag]


@dataclass(frozen=True)
class Report:
    """The results of all cases that were tried, in order."""

    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """Whether something conforms and nothing else was found wrong."""
        counts = self.counts()
        return counts["conforms"] > 0 and not counts["deviates"] and not counts["not run"]

    def counts(self, level: str = "", call: str = "") -> Counter[str]:
        """Count verdicts, of one level or one call if it is named."""
        return Counter(
            result.verdict
            for result in self.results
            if level in ("", level_of(result.case)) and call in ("", result.case.call)
        )

    def calls(self, level: str) -> list[str]:
        """List the public names that the cases of a level call, in order."""
        return list(dict.fromkeys(r.case.call for r in self.results if level_of(r.case) == level))

    def smallest(self) -> list[Result]:
        """Return of each call that deviates the smallest case, one with a result if there is."""
        wrong = [result for result in self.results if result.verdict == "deviates"]
        wrong.sort(key=lambda r: (r.case.refuse is not None, _size(r.case.args)), reverse=True)
        return list({result.case.call: result for result in wrong}.values())

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain JSON."""
        return {
            "passed": self.passed,
            "cases": len(self.results),
            **_named(self.counts()),
            "levels": {level: _named(self.counts(level)) for level in LEVELS},
            "calls": {
                call: {"level": level, **_named(self.counts(level, call))}
                for level in LEVELS
                for call in self.calls(level)
            },
            "deviations": [_as_json(r) for r in self.results if r.verdict == "deviates"],
        }


def all_cases() -> list[Case]:
    """Return the cases of every file of vectors that is in the schema."""
    names = vector_files()
    return [case for name in names for case in cases(name)]


def cases_of(room: str) -> list[Case]:
    """Return the cases that call what a room offers; none for a room without vectors.

    Examples
    --------
    >>> sorted({case.call for case in cases_of("matmul")})
    ['head_matmul', 'ternary_matmul', 'ternary_matmul_int8']
    """
    if room not in minibit.ORDER:
        return []
    public = import_module(f"minibit.{room}").__all__
    first = ((case, case.call.partition(".")[0]) for case in all_cases())
    return [case for case, name in first if name == room or name in public]


def level_of(case: Case) -> str:
    """Return the level of exactness that a case asks for."""
    if case.module in INTEGERS:
        return "integers"
    if case.module in TRAINING or case.call in ("jvp", "jvp_batch"):
        return "training"
    return "codes" if case.exact or case.refuse else "floats"


def conform(module: Any, chosen: Iterable[Case] | None = None) -> Report:
    """Run the vectors against what a Python module (or any object) offers under minibit's names.

    The module is called as it is, in this process: nothing limits its time. ``minibit conform``
    runs a module, or a port in any language, behind a process with a limit.

    Examples
    --------
    >>> import types
    >>> port = types.SimpleNamespace(absmean_quantize=minibit.absmean_quantize)
    >>> report = conform(port)
    >>> report.passed, report.counts()["deviates"]
    (True, 0)
    """
    return examine(lambda case: answer_of(case, module), chosen)


def examine(
    answer: Callable[[Case], Mapping[str, Any]], chosen: Iterable[Case] | None = None
) -> Report:
    """Judge the answer to each case; all of them by default.

    `answer` gives what a port writes, or ``{"fault": text}`` where it failed, or ``{"lost": text}``
    where it was not asked. Where all wrong answers of a function are those of one known wrong
    variant (`minibit.conformance.mutations`) and of no other, the results name it.
    """
    picked = all_cases() if chosen is None else chosen
    results = [_result(case, answer(case)) for case in picked]
    wrong: dict[frozenset[str], list[Result]] = {}
    for result in results:
        if result.deviation is not None and "out" in result.answer:
            wrong.setdefault(frozenset(functions_named(result.case)), []).append(result)
    variants = {
        result.case.id: name
        for same in wrong.values()
        for result in same
        if (name := _variant_of(result, same))
    }
    return Report(tuple(replace(r, answer_is_that_of=variants.get(r.case.id, "")) for r in results))


def _result(case: Case, answer: Mapping[str, Any]) -> Result:
    """Judge one answer."""
    if "skip" in answer:
        return Result(case, "not offered", answer)
    if "lost" in answer:
        return Result(case, "not run", answer, fault=answer["lost"])
    if "fault" in answer:
        return Result(case, "deviates", answer, fault=answer["fault"])
    deviation = judge(case, answer)
    return Result(case, "deviates" if deviation else "conforms", answer, deviation)


def _variant_of(result: Result, same: list[Result]) -> str:
    """Name the variant that gives all wrong answers of a function, or this one of a case's own."""
    functions = functions_named(result.case)
    known = [name for name in MUTATIONS if name.partition("/")[0] in functions]
    whole = [name for name in known if all(_is_answer_of(name, other) for other in same)]
    alone = [name for name in result.case.mutations if _is_answer_of(name, result)]
    return next((names[0] for names in (whole, alone) if len(names) == 1), "")


def _is_answer_of(mutation: str, result: Result) -> bool:
    """Whether a wrong variant answers a case as the port did."""
    case = result.case
    wrong = answer_with(case, mutation, minibit)
    if "out" not in wrong:
        return False
    exact = case.exact or case.refuse is not None
    variant = replace(case, expect=wrong["out"], refuse=None, exact=exact)
    return judge(variant, result.answer) is None


def _size(value: Any) -> int:
    """Count the letters that a case's arguments take, as bits or text."""
    if isinstance(value, Mapping):
        return sum(_size(item) for key, item in value.items() if key != "reads")
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(str(value))


def _named(counts: Counter[str]) -> dict[str, int]:
    """Write every verdict, those without a case too."""
    return {verdict.replace(" ", "_"): counts[verdict] for verdict in VERDICTS}


def _as_json(result: Result) -> dict[str, Any]:
    """Write a deviation with its hints."""
    return {
        "id": result.case.id,
        "call": result.case.call,
        "level": level_of(result.case),
        "detail": result.detail,
        "answer_is_that_of": result.answer_is_that_of or None,
        "hints": [{"flag": flag, **note} for flag, note in result.hints()],
    }
