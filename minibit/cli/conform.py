"""``minibit conform``: whether a port, in any language, does what minibit does."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from minibit.cli.common import BadUse, Output, bad_use, command
from minibit.conformance import (
    LEVELS,
    VERDICTS,
    Case,
    LogReport,
    Port,
    Report,
    VectorReport,
    all_cases,
    examine,
    fuzz_cases,
    judge_vectors,
    level_of,
    replay_through,
    request_of,
    smallest,
    write_flat,
)

MOST_SHOWN = 20  # deviations that people read; --json has them all


@command
def conform(
    out: Output,
    module: Annotated[str, "[MODULE]", "A Python module, by name or by its .py file."] = "",
    port: Annotated[str, "A port's command: JSON lines over its stdin and stdout."] = "",
    only: Annotated[str, "Cases whose id or call contains this text."] = "",
    seconds: Annotated[float, "Time limit per case."] = 10.0,
    as_list: Annotated[bool, "--list", "List the cases instead."] = False,
    write: Annotated[Path | None, "Write the cases into this folder as flat text files."] = None,
    fuzz: Annotated[int, "Instead of the vectors, so many random cases of each call."] = 0,
    seed: Annotated[int, "Of the random cases."] = 0,
    log: Annotated[Path | None, "Instead of the vectors, let the port replay this log."] = None,
    mutants: Annotated[bool, "Judge the vectors: each known bug must fail in some case."] = False,
) -> dict[str, Any]:
    """Run the vectors against a port: what conforms, what deviates, what is not offered.

    Exit status 1 if a case deviates, was not run, or none is offered; with --mutants if a case lets
    a bug pass that it names.
    """
    if (bool(module) + bool(port) + as_list + mutants + (write is not None)) != 1:
        raise BadUse("name one of MODULE, --port, --list, --write or --mutants")
    if ((fuzz != 0 or log is not None) and not (module or port)) or (fuzz and log):
        raise BadUse("--fuzz and --log, one of them, go with MODULE or --port")
    if fuzz < 0 or not 0 <= seed < 2**64:
        raise BadUse(f"--fuzz must be positive and --seed in [0, 2^64), got {fuzz} and {seed}")
    if mutants:
        with bad_use("--only: "):
            return _judge(out, judge_vectors(all_cases(), only))
    chosen = [case for case in all_cases() if only in case.id or only in case.call]
    if not chosen:
        raise BadUse(f"--only {only}: no case has it in its id or call")
    if as_list:
        return _list(out, chosen)
    if write is not None:
        paths = write_flat(chosen, write)
        out.say(f"wrote {len(chosen)} cases into {len(paths)} files of {write}")
        return {"cases": len(chosen), "files": [str(path) for path in paths]}
    if not seconds > 0:
        raise BadUse(f"--seconds must be positive, got {seconds}")
    drawn = [*fuzz_cases(fuzz, seed, only)]
    if fuzz and not drawn:
        raise BadUse(f"--only {only}: no call has it of which random cases are drawn")
    with Port(of_module(module) if module else _words(port), seconds) as asked:
        if log is not None:
            return {"port": module or port, **_replay(out, replay_through(asked.answer, log))}
        report = _fuzz(out, asked, drawn) if fuzz else examine(asked.answer, chosen)
    show(out, report)
    out.status = int(not report.passed)
    return {"port": module or port, **report.as_json()}


def _fuzz(out: Output, asked: Port, drawn: list[tuple[Case, list[int]]]) -> Report:
    """Ask random cases; of each call that deviates also the smallest case that does."""
    report = examine(asked.answer, [case for case, _ in drawn])
    choices = {case.id: numbers for case, numbers in drawn}

    def fails(case: Case) -> bool:
        """Whether the port deviates in a case."""
        return examine(asked.answer, [case]).counts()["deviates"] > 0

    found = [smallest(r.case, choices[r.case.id], fails) for r in report.smallest()]
    small = examine(asked.answer, found)
    for case in found:
        out.say(f"the smallest case of {case.call} that was found: {json.dumps(request_of(case))}")
    return Report((*report.results, *small.results))


def _replay(out: Output, report: LogReport) -> dict[str, Any]:
    """Print the digest after each record, up to one that differs."""
    count = len(report.digests) if report.wrong is None else report.wrong + 1
    for number, digest in enumerate(report.digests[:count]):
        differs = number == report.wrong
        out.say(f"record {number:>4}  {digest}{'  is not the digest in the file' * differs}")
    if report.fault:
        out.say(report.fault)
    agree = len(report.digests) if report.wrong is None else report.wrong
    out.say(f"the first {agree} of {report.records} records replay to their digests")
    out.status = int(not report.passed)
    return {"passed": report.passed, "agree": agree, **asdict(report)}


def _judge(out: Output, report: VectorReport) -> dict[str, Any]:
    """Print which known bugs no case catches, and which cases let one pass that they name."""
    for name, catching in report.catching.items():
        if not catching:
            out.say(f"{name}: no case catches it")
        for case in report.missing[name]:
            out.say(f"{name}: {case} names it, and lets it pass")
    caught = sum(map(bool, report.catching.values()))
    out.say(f"{caught} of {len(report.catching)} known bugs are caught: {report.share:.1%}")
    out.status = int(not report.passed)
    return {"passed": report.passed, "share": report.share, **asdict(report)}


def of_module(name: str) -> list[str]:
    """Return the command that answers for a Python module, if there is one."""
    try:
        known = Path(name).is_file() if name.endswith(".py") else importlib.util.find_spec(name)
    except (ImportError, ValueError):
        known = None
    if not known and not (Path(f"{name.partition('.')[0]}.py").is_file() or Path(name).is_dir()):
        raise BadUse(f"no module {name!r}")
    return [sys.executable, "-m", "minibit.conformance.serving", name]


def _words(port: str) -> list[str]:
    """Split a port's command, whose program must be there."""
    try:
        words = shlex.split(port)
    except ValueError as error:
        raise BadUse(f"--port {port}: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise BadUse(f"--port {port}: no such program")
    return words


def _list(out: Output, chosen: list[Case]) -> dict[str, Any]:
    """Print the cases by level."""
    rows = [[case.id, case.call, level_of(case), ", ".join(case.flags)] for case in chosen]
    for identity, call, level, flags in rows:
        out.say(f"{identity}  {call}  [{level}]  {flags}")
    fields = ("id", "call", "level", "comment", "flags")
    return {
        "cases": [
            dict(zip(fields, (c.id, c.call, level_of(c), c.comment, list(c.flags)), strict=True))
            for c in chosen
        ]
    }


def show(out: Output, report: Report) -> None:
    """Print the coverage table, then of each call that deviates its smallest case."""
    rows, missing = [], []
    for level in LEVELS:
        for call in report.calls(level):
            counts = report.counts(level, call)
            if counts["not offered"] == counts.total():
                missing.append(call)
            else:
                rows.append([f"{level:<8}  {call}", *(str(counts[v] or "") for v in VERDICTS)])
        if counts := report.counts(level):
            rows.append([f"{level:<8}  (all)", *(str(counts[v] or "") for v in VERDICTS)])
    out.table(["level     call", *VERDICTS], rows)
    if missing:
        out.say(f"\nnot offered: {', '.join(sorted(set(missing)))}")
    for result in report.smallest()[:MOST_SHOWN]:
        count = report.counts(call=result.case.call)["deviates"]
        out.say(f"\n{result.case.call} deviates in {count}; the smallest: {result.case.id}", "bold")
        out.say(f"  {result.detail}")
        for flag, note in result.hints():
            sure = "this is" if result.answer_is_that_of else "perhaps"
            out.say(f"  {sure} {flag!r}: {note['goes_wrong']}; it shows as: {note['shows']}")
    lost = [result.fault for result in report.results if result.verdict == "not run"]
    if lost:
        out.say(f"\n{len(lost)} cases were not run: {lost[0]}")
    counts = report.counts()
    if not counts["conforms"] and not counts["deviates"]:
        out.say("\nnone of the public names is offered")
    words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    out.say(f"\n{len(report.results)} cases: {words}")
