"""``minibit conform``: whether a port, in any language, does what minibit does."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

from minibit.cli.common import BadUse, Output, command
from minibit.conformance import (
    LEVELS,
    VERDICTS,
    Case,
    Port,
    Report,
    all_cases,
    examine,
    level_of,
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
) -> dict[str, Any]:
    """Run the vectors against a port: what conforms, what deviates, what is not offered.

    Exit status 1 if a case deviates, was not run, or none is offered.
    """
    chosen = [case for case in all_cases() if only in case.id or only in case.call]
    if not chosen:
        raise BadUse(f"--only {only}: no case has it in its id or call")
    if (bool(module) + bool(port) + as_list + (write is not None)) != 1:
        raise BadUse("name one of MODULE, --port, --list or --write")
    if as_list:
        return _list(out, chosen)
    if write is not None:
        paths = write_flat(chosen, write)
        out.say(f"wrote {len(chosen)} cases into {len(paths)} files of {write}")
        return {"cases": len(chosen), "files": [str(path) for path in paths]}
    if not seconds > 0:
        raise BadUse(f"--seconds must be positive, got {seconds}")
    with Port(_of_module(module) if module else _words(port), seconds) as asked:
        report = examine(asked.answer, chosen)
    _show(out, report)
    out.status = int(not report.passed)
    return {"port": module or port, **report.as_json()}


def _of_module(name: str) -> list[str]:
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


def _show(out: Output, report: Report) -> None:
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
