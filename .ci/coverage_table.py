#!/usr/bin/env python3
"""Print which lines and branches of the rooms that chapters teach are run by tests.

    .ci/coverage_table.py FILE.json      of `coverage json`

Exit status 1 if a room has less than 95% of its lines or of its branches.
"""

import json
import sys
from collections import Counter
from pathlib import Path

ROOMS = ("dual", "ternary", "absmean", "noise", "noise_step", "steps", "topk", "nf4")
LEAST = 95.0
COUNTS = ("covered_lines", "num_statements", "covered_branches", "num_branches")


def main(path: str) -> int:
    """Print a line per room, and return the exit status."""
    sums = {room: Counter() for room in ROOMS}
    for name, entry in json.loads(Path(path).read_text(encoding="utf-8"))["files"].items():
        room = name.partition("minibit/")[2].partition("/")[0].removesuffix(".py")
        if room in sums:
            sums[room].update({count: entry["summary"][count] for count in COUNTS})
    low = []
    print(f"{'room':<12}{'lines':>8}{'branches':>10}")
    for room, each in sums.items():
        shares = [100 * each[a] / max(1, each[b]) for a, b in (COUNTS[:2], COUNTS[2:])]
        print(f"{room:<12}{shares[0]:>7.1f}%{shares[1]:>9.1f}%")
        low += [room] * (min(shares) < LEAST)
    if low:
        print(f"below {LEAST:.0f}%: {', '.join(low)}")
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
