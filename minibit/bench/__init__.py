"""Benchmarks: what was measured, how, on what, and whether it reaches its bar.

A benchmark is a function of `Options` that returns a `Report`: a list of `Figure`, each with its
unit and, where there is one, its bar. `BENCHMARKS` names them all and `run` runs one.

    timing       candidates take turns; medians are compared
    processes    a process of its own, and the description of what it runs on
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from minibit.bench.processes import call, clean_environment, environment, in_own_process
from minibit.bench.timing import Candidates, expect_time, interleaved, medians, warm_medians

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Candidates",
    "Figure",
    "Options",
    "Report",
    "clean_environment",
    "environment",
    "expect_time",
    "in_own_process",
    "installed",
    "interleaved",
    "medians",
    "notes",
    "run",
    "run_here",
    "speeds",
    "warm_medians",
]


@dataclass(frozen=True)
class Options:
    """What was asked of a benchmark."""

    threads: int | None = None  # default: one for costs, every CPU for training runs
    peers: bool = False  # measure other libraries too, where they are installed
    preset: str = ""  # of `train` and `step`; empty for the default
    seeds: Sequence[int] = (0, 1, 2)  # of `train`


@dataclass(frozen=True)
class Figure:
    """One measured number, and the bar that it must reach: at least, or at most.

    A share has the unit ``"share"``, a ratio ``"x"``. A figure without a bar is shown, not judged.
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
    """What a benchmark found: figures, sentences on how, and the numbers behind them."""

    figures: Sequence[Figure]
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every figure reaches its bar."""
        return all(figure.passed for figure in self.figures)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types, with ``passed`` for each figure and for all."""
        return {
            "passed": self.passed,
            "figures": [asdict(figure) | {"passed": figure.passed} for figure in self.figures],
            "notes": list(self.notes),
            "details": dict(self.details),
        }


def speeds(
    title: str,
    times: Mapping[str, float],
    ours: str,
    bars: Mapping[str, float | None],
    words: Mapping[str, str] | None = None,
) -> list[Figure]:
    """Say how many times as fast as other ways ours is, leaving out what was not timed.

    `bars` are the least speeds, by way; `words` name ways otherwise than `times` does.

    Examples
    --------
    >>> (figure,) = speeds("4 x 4", {"a": 1.0, "b": 8.0}, "a", {"b": 5.0, "torch": None})
    >>> figure.name, figure.value, figure.passed
    ('4 x 4, speed over b', 8.0, True)
    """
    return [
        Figure(
            f"{title}, speed over {(words or {}).get(way, way)}", times[way] / times[ours], "x", bar
        )
        for way, bar in bars.items()
        if ours in times and way in times
    ]


def installed(module: str) -> bool:
    """Whether a module can be imported."""
    return importlib.util.find_spec(module) is not None


def notes(options: Options, peer: str, module: str) -> list[str]:
    """Say how medians were taken, and what was left out."""
    sentences = [
        "Medians of one interleaved run; each candidate warms its caches before it is timed."
    ]
    if options.peers and not installed(module):
        sentences.append(f"{peer} is not installed: its figures are left out.")
    if (options.threads or 1) != 1:
        sentences.append("The bars are meant for one thread.")
    return sentences


@dataclass(frozen=True)
class Benchmark:
    """A named benchmark: a line for the list, and a function of `Options` that returns a `Report`.

    One that compares times with NumPy runs in a process of its own, as NumPy's threads are settled
    when it is loaded, on one thread or as many as asked for.
    """

    summary: str
    function: str  # "module:function", imported when it runs
    own_process: bool = True
    presets: tuple[str, ...] = ()  # of training, that it can be asked for
    roofline: bool = False  # whether its details hold what `minibit.plots.roofline_figure` takes


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


def run(name: str, options: Options) -> dict[str, Any]:
    """Run a benchmark and return `Report.to_dict`, with its name and what it ran on.

    A name that is not in `BENCHMARKS`, or an option that it does not know, is a ValueError, a
    process that failed a RuntimeError; what it printed went to standard error.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(sorted(BENCHMARKS))}")
    if options.threads is not None and options.threads < 1:
        raise ValueError(f"threads must be at least 1, got {options.threads}")
    if options.preset and options.preset not in BENCHMARKS[name].presets:
        known = ", ".join(BENCHMARKS[name].presets) or "none"
        raise ValueError(f"preset of benchmark {name} must be {known}, got {options.preset!r}")
    if not options.seeds:
        raise ValueError("seeds must not be empty")
    if not BENCHMARKS[name].own_process:
        return run_here(name, asdict(options))
    threads = options.threads or 1
    arguments = [name, asdict(replace(options, threads=threads))]
    report: dict[str, Any] = in_own_process(
        "minibit.bench:run_here", arguments, threads, f"benchmark {name}"
    )
    return report


def run_here(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Run a benchmark in this process; fields are those of `Options`."""
    from minibit.kernels.threads import cpus

    options = Options(**fields)
    report: Report = call(BENCHMARKS[name].function, [options])
    about = {"benchmark": name, "environment": environment(options.threads or cpus())}
    return about | report.to_dict()
