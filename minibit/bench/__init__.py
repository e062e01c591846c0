"""Benchmarks: what was measured, how, on what, and whether it reaches its bar.

A benchmark is a function of `Options` that returns a `Report`: a list of `Figure`, each with its
unit and, where there is one, its bar. `BENCHMARKS` names them all. `run` starts one in a process of
its own, so that its thread count is in force before NumPy is loaded, and so that NumPy runs at its
best on this CPU.

Times are compared only within one process, interleaved: every candidate runs once in turn, round
after round, and the medians are compared. A machine that slows down slows all of them.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Figure",
    "Options",
    "Report",
    "environment",
    "interleaved",
    "run",
]


@dataclass(frozen=True)
class Options:
    """What was asked of a benchmark.

    Attributes
    ----------
    threads : int, optional
        Threads for NumPy's BLAS and for kernels. Default: what the benchmark is about: one for
        costs, every CPU for training runs.
    peers : bool
        Measure other libraries too, where they are installed.
    preset : str
        For ``train``: which preset; empty for the default.
    seeds : tuple of int
        For ``train``.
    """

    threads: int | None = None
    peers: bool = False
    preset: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Figure:
    """One measured number, and the bar that it must reach.

    Attributes
    ----------
    name : str
        What was measured.
    value : float
    unit : str
        ``"s"``, ``"bytes"``, ``"forward passes"``; a share has ``"share"``, a ratio ``"x"``.
    bar : float or None
        None: shown, not judged.
    at_least : bool
        Whether the value must be at least the bar; else it must be at most the bar.
    """

    name: str
    value: float
    unit: str
    bar: float | None = None
    at_least: bool = True

    @property
    def passed(self) -> bool:
        """Whether the bar is reached; true without a bar, false for NaN."""
        if self.bar is None:
            return True
        return self.value >= self.bar if self.at_least else self.value <= self.bar


@dataclass(frozen=True)
class Report:
    """What a benchmark found.

    Attributes
    ----------
    figures : tuple of Figure
    notes : tuple of str
        Sentences on how it was measured, and on what was left out.
    details : dict
        Everything behind the figures, JSON types.
    """

    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every figure reaches its bar."""
        return all(figure.passed for figure in self.figures)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types, with ``passed`` for each figure and for all."""
        figures = [asdict(figure) | {"passed": figure.passed} for figure in self.figures]
        return {
            "passed": self.passed,
            "figures": figures,
            "notes": list(self.notes),
            "details": dict(self.details),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Report:
        """Rebuild a report from `to_dict`'s result."""
        figures = tuple(
            Figure(**{key: value for key, value in row.items() if key != "passed"})
            for row in fields["figures"]
        )
        return cls(figures, tuple(fields["notes"]), fields["details"])


@dataclass(frozen=True)
class Benchmark:
    """A named benchmark.

    Attributes
    ----------
    summary : str
        One line for the list.
    function : str
        ``"module:function"``, imported when it runs; the function takes `Options` and returns a
        `Report`.
    own_process : bool
        Whether it compares times with NumPy, whose threads are settled before it is loaded: it then
        runs in a process of its own, on one thread or as many as asked for. Else it runs here.
    presets : tuple of str
        The training presets that it can be asked for; none where it trains nothing.
    roofline : bool
        Whether its details hold what `minibit.plots.roofline_figure` takes.
    """

    summary: str
    function: str
    own_process: bool = True
    presets: tuple[str, ...] = ()
    roofline: bool = False


BENCHMARKS: dict[str, Benchmark] = {
    "train": Benchmark(
        "accuracy, seconds and log bytes of a preset over seeds",
        "minibit.bench.training:train",
        own_process=False,
        presets=("paper", "strict", "small", "accurate"),
    ),
    "step": Benchmark(
        "what a training step costs, in forward passes of its own batch",
        "minibit.bench.training:step",
        presets=("strict", "accurate"),
    ),
    "gemv": Benchmark(
        "the ternary product of one token, beside NumPy and what memory gives",
        "minibit.bench.products:gemv",
        roofline=True,
    ),
    "matmul": Benchmark(
        "the ternary product of many tokens, beside NumPy and the CPU's peak",
        "minibit.bench.products:matmul",
        roofline=True,
    ),
    "start": Benchmark(
        "seconds to import, to the first product, and to further kernels",
        "minibit.bench.start:start",
        own_process=False,  # what it measures runs in processes of its own
    ),
    "lm": Benchmark(
        "a training step of a language model, beside PyTorch and on two threads",
        "minibit.bench.language:lm",
    ),
    "quantise": Benchmark(
        "absmean and absmax at 4096 x 4096, beside NumPy",
        "minibit.bench.products:quantise",
    ),
    "topk": Benchmark(
        "choosing the K largest, and the ternary product that skips zeros, beside the dense one",
        "minibit.bench.topk:topk",
    ),
    "nf4": Benchmark(
        "NF4's product and its decoder at 4096 x 4096, beside NumPy and bitsandbytes",
        "minibit.bench.nf4:nf4",
    ),
    "decode": Benchmark(
        "tokens a second and memory of the published 2B size, beside what memory gives",
        "minibit.bench.decoding:decode",
        own_process=False,  # what it measures runs in processes of its own
    ),
}


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 2.0,
    least_rounds: int = 5,
    warmups: int = 2,
) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Time functions in turn, round after round, until the time is used up.

    Parameters
    ----------
    candidates : dict
        Name to function without arguments.
    seconds : float
        For all of them together, warm-ups apart.
    least_rounds : int
        Rounds that are run even if they take longer.
    warmups : int
        Calls of each that are not timed: compilation, caches.

    Returns
    -------
    dict
        Name to the seconds of every round, float64 ``(rounds,)``; compare their medians.

    Examples
    --------
    >>> times = interleaved({"short": lambda: sum(range(10)), "long": lambda: sum(range(100000))},
    ...                     seconds=0.01)
    >>> bool(np.median(times["short"]) < np.median(times["long"]))
    True
    """
    if not candidates:
        raise ValueError("candidates must not be empty")
    for function in candidates.values():
        for _ in range(warmups):
            function()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < least_rounds or time.perf_counter() < end:
        for name, function in candidates.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: np.array(found) for name, found in times.items()}


def environment(threads: int) -> dict[str, Any]:
    """Say on what a benchmark runs: CPU, kernel path, threads, versions.

    Parameters
    ----------
    threads : int
        The thread count in force.

    Returns
    -------
    dict
        JSON types.
    """
    import numba

    from minibit import __version__, kernels

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "cpu": _cpu_model(),
        "cpus": cpus(),
        "kernel_path": kernels.path(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "minibit": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numba": numba.__version__,
            "blas": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        },
    }


def cpus() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    """Name of the CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.stdout.strip():
            return done.stdout.strip()
    return platform.processor() or platform.machine()


# Settings that make OpenBLAS choose kernels for another CPU, or smaller tiles, than it would.
_SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_VERBOSE")
_THREADS = ("OPENBLAS", "OMP", "MKL", "BLIS", "NUMEXPR", "NUMBA")


def clean_environment(threads: int) -> dict[str, str]:
    """Return this process's environment with `threads` BLAS threads and NumPy at its best."""
    kept = {key: value for key, value in os.environ.items() if key not in _SLOWING}
    kept |= {f"{name}_NUM_THREADS": str(threads) for name in _THREADS}
    return kept | {"VECLIB_MAXIMUM_THREADS": str(threads)}


def run(name: str, options: Options) -> dict[str, Any]:
    """Run a benchmark and return its report with what it ran on.

    Parameters
    ----------
    name : str
        One of `BENCHMARKS`.
    options : Options

    Returns
    -------
    dict
        `Report.to_dict`, and ``benchmark``, ``environment``: JSON types.

    Raises
    ------
    ValueError
        If there is no such benchmark, or an option makes no sense.
    RuntimeError
        If its process failed; what it printed went to standard error.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(sorted(BENCHMARKS))}")
    if options.threads is not None and options.threads < 1:
        raise ValueError(f"threads must be at least 1, got {options.threads}")
    if options.preset and options.preset not in BENCHMARKS[name].presets:
        known = ", ".join(BENCHMARKS[name].presets) or "none"
        raise ValueError(f"preset of benchmark {name} must be {known}, got {options.preset!r}")
    if not BENCHMARKS[name].own_process:
        return run_here(name, options)
    options = replace(options, threads=options.threads or 1)
    command = [sys.executable, "-m", "minibit.bench", name, json.dumps(asdict(options))]
    done = subprocess.run(
        command,
        env=clean_environment(options.threads or 1),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the process of benchmark {name} ended with status {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_here(name: str, options: Options) -> dict[str, Any]:
    """Run a benchmark in this process."""
    module, _, function = BENCHMARKS[name].function.partition(":")
    report: Report = getattr(importlib.import_module(module), function)(options)
    about = {"benchmark": name, "environment": environment(options.threads or cpus())}
    return about | report.to_dict()
