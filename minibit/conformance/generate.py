"""``python -m minibit.conformance.generate [--check] [FILE ...]``: keep what vectors expect.

Expectations of every case whose function has an independent counterpart in `exact/` are computed
anew; within the case's bound both must agree. Without ``--check`` they are written into the file,
with it a difference is reported and the exit status is 1. The function under test is never called.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minibit.conformance.cases import cases, read_file, vector_files
from minibit.conformance.exact import EXACT, PLAIN
from minibit.conformance.running import answer_of, judge
from minibit.conformance.writing import dump

__all__ = ["differences", "main"]

FOLDER = Path(__file__).parents[1] / "vectors"


def differences(module: str) -> Iterator[str]:
    """Yield each case of a file that the exact computation contradicts."""
    for case in cases(module):
        if case.call in EXACT and case.expect is not None:
            deviation = judge(case, answer_of(case, PLAIN, EXACT[case.call]))
            if deviation is not None:
                yield f"{case.id}: {deviation}"


def rewritten(module: str) -> str:
    """Return a file's text with exact expectations, and its number of cases, computed anew."""
    content: dict[str, Any] = {**read_file(module)}
    entries = []
    for case, entry in zip(cases(module), content["cases"], strict=True):
        answer = {}
        if case.call in EXACT and case.expect is not None:
            answer = answer_of(case, PLAIN, EXACT[case.call])
        changed = "out" in answer and judge(case, answer) is not None
        entries.append({**entry, "expect": answer["out"]} if changed else entry)
    return dump({**content, "numberOfTests": len(entries), "cases": entries})


def main(arguments: Sequence[str] | None = None) -> int:
    """Check or write, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m minibit.conformance.generate")
    parser.add_argument("files", nargs="*", default=vector_files())
    parser.add_argument("--check", action="store_true", help="report differences, write nothing")
    options = parser.parse_args(arguments)
    status = 0
    for module in options.files:
        if not options.check:
            (FOLDER / f"{module}.json").write_text(rewritten(module), encoding="utf-8")
            continue
        for line in differences(module):
            print(line)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
