"""``bench start``: how long it takes until the first product is there.

Figures are medians of fresh processes in turn. The first process, which fills Numba's cache of
compiled code, is not counted. Numba imports SciPy's linear algebra if it finds it, which takes
longer than all the rest and is of no use here: judged are times with SciPy hidden.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

from minibit.bench import Figure, Options, Report, installed

__all__ = ["start"]

ROUNDS = 7  # processes of each kind
CHILD = """
import sys
if sys.argv[1] == "hidden":
    sys.modules["scipy"] = None
from time import perf_counter as now
import numpy as np
start = now()
import minibit
from minibit.absmean import absmax_quantize
from minibit.matmul import ternary_matmul, ternary_matmul_int8
imported = now()
matrix = minibit.TernaryMatrix.from_codes(np.ones((256, 784), np.int8))
z = ternary_matmul_int8(np.ones((1, 784), np.int8), matrix)
times = [start, imported, now()]
for further in (
    lambda: ternary_matmul(np.ones((1, 784), np.float32), matrix),
    lambda: ternary_matmul_int8(np.ones((12, 784), np.int8), matrix),
    lambda: absmax_quantize(np.ones((2, 784), np.float32)),
):
    further()
    times.append(now())
print(np.diff(times).tolist())
"""


def start(options: Options) -> Report:
    """Time the import, the first product and three more kernels, in processes of their own."""
    kinds = ("hidden", "as installed") if installed("scipy") else ("hidden",)
    times: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    _seconds("as installed")  # fills the cache
    for _ in range(ROUNDS):
        for kind in kinds:
            times[kind].append(_seconds(kind))
    medians = {kind: np.median(rows, axis=0).tolist() for kind, rows in times.items()}
    importing, first, *further = medians["hidden"]
    figures = [
        Figure("import minibit, after NumPy", importing, "s", 0.1, False),
        Figure("first call, compiled before", first, "s", 0.35, False),
        Figure("the slowest of three further kernels", max(further), "s", 0.02, False),
    ]
    notes = ["Medians of fresh processes; compiled code is in Numba's cache."]
    if "as installed" in medians:
        seconds = medians["as installed"][1]
        figures.append(Figure("first call, with SciPy installed", seconds, "s"))
        notes.append("SciPy is hidden from the judged figures: Numba imports it if it is there.")
    return Report(figures, notes, {"seconds": medians})


def _seconds(kind: str) -> list[float]:
    """Seconds of each part in a fresh process."""
    command = [sys.executable, "-c", CHILD, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    parts: list[float] = json.loads(done.stdout)
    return parts
