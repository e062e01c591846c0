"""Benchmarks: what was measured, how, on what, and whether it reaches its bar.

A benchmark is a function of `Options` that returns a `Report`: a list of `Figure`, each with its
unit and, where there is one, its bar. `BENCHMARKS` names them all and `run` runs one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from minibit.base import one_of, thread_count
from minibit.bench.processes import (
    call,
    clean_environment,
    environment,
    in_own_process,
    keep_freed_memory,
)
from minibit.bench.timing import Candidates, expect_time, interleaved, medians, warm_medians

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Candidates",
    "Figure",
    "Options",
    "Report",
    "clean_environment",
    "command",
    "environment",
    "expect_time",
    "in_own_process",
    "installed",
    "interleaved",
    "keep_freed_memory",
    "medians",
    "missing",
    "notes",
    "quantity",
    "run",
    "run_here",
    "speeds",
    "warm_medians",
]


@dataclass(frozen=True)
class Options:
    """The options of a benchmark."""

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
    """The report of a benchmark: figures, sentences on how, and the numbers behind them."""

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


def quantity(value: float, unit: str) -> str:
    """Write a number with its unit, one of those that `Figure` has.

    Examples
    --------
    >>> quantity(0.861, "share"), quantity(43.0, "x"), quantity(1.2e9, "bytes")
    ('86.10%', '43.00x', '1,200,000,000 bytes')
    """
    if unit == "share":
        return f"{value:.2%}"
    if unit == "bytes":
        return f"{value:,.0f} bytes"
    return f"{value:.2f}x" if unit == "x" else f"{value:.4g} {unit}"


def speeds(
    title: str,
    times: Mapping[str, float],
    ours: str,
    bars: Mapping[str, float | None],
    words: Mapping[str, str] | None = None,
) -> list[Figure]:
    """Return figures of how many times as fast ours is as other ways, of those that were timed.

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
        if {ours, way} <= times.keys()
    ]


def installed(module: str) -> bool:
    """Whether a module can be imported."""
    return importlib.util.find_spec(module) is not None


def missing(peer: str, module: str, asked: bool = True) -> list[str]:
    """Say that a peer's figures are left out, if they were asked for and it is not installed."""
    if not asked or installed(module):
        return []
    return [f"{peer} is not installed: its figures are left out."]


def notes(options: Options, peer: str, module: str) -> list[str]:
    """Say how medians were taken, and what was left out."""
    return [
        "Medians of one interleaved run; each candidate warms its caches before it is timed.",
        *missing(peer, module, options.peers),
        *(["The bars are meant for one thread."] if (options.threads or 1) != 1 else []),
    ]


@dataclass(frozen=True)
class Benchmark:
    """A named benchmark: a line for the list, and a function of `Options` that returns a `Report`.

    It runs in a process of its own where it compares times with NumPy, whose threads are settled
    when it is loaded: on one thread, or as many as asked for.
    """

    summary: str
    function: str  # "module:function", imported when it runs
    own_process: bool = True
    presets: tuple[str, ...] = ()  # of training, that it can be asked for
    roofline: bool = False  # whether its details hold what `minibit.plots.roofline_figure` takes


_SUMMARIES = {  # file and function to a line for the list
    "training:train": "accuracy, seconds and log bytes of a preset over seeds",
    "training:step": "what a training step costs, in forward passes of its own batch",
    "products:gemv": "the ternary product of one token, beside NumPy and what memory gives",
    "products:matmul": "the ternary product of many tokens, beside NumPy and the CPU's peak",
    "start:start": "seconds to import, to the first product, and to further kernels",
    "language:lm": "a training step of a language model, beside PyTorch and on two threads",
    "products:quantise": "absmean and absmax at 4096 x 4096, beside NumPy",
    "topk:topk": "choosing the K largest, and the product that skips zeros beside the dense one",
    "nf4:nf4": "NF4's product and its decoder at 4096 x 4096, beside NumPy and bitsandbytes",
    "cluster:cluster": "a training step on two workers, and what travels, beside one process",
    "decoding:decode": "tokens per second and memory of the published 2B size, beside plain reads",
}
_HERE = ("train", "start", "decode")  # the first has every CPU, the others start processes
_PRESETS = {
    "train": ("paper", "strict", "small", "accurate"),
    "step": ("strict", "accurate"),
}
BENCHMARKS: dict[str, Benchmark] = {
    name: Benchmark(
        _SUMMARIES[f"{file}:{name}"],
        f"minibit.bench.{file}:{name}",
        own_process=name not in _HERE,
        presets=_PRESETS.get(name, ()),
        roofline=name in ("gemv", "matmul"),
    )
    for file, name in (function.split(":") for function in _SUMMARIES)
}


def run(name: str, options: Options) -> dict[str, Any]:
    """Run a benchmark and return `Report.to_dict`, with its name, command and what it ran on.

    An unknown name or option is a ValueError, a process that failed a RuntimeError.
    """
    benchmark = BENCHMARKS[one_of("name of a benchmark", name, sorted(BENCHMARKS))]
    thread_count(options.threads)
    one_of(f"preset of benchmark {name}", options.preset, ("", *benchmark.presets))
    if not options.seeds:
        raise ValueError("seeds must not be empty")
    if not benchmark.own_process:
        return run_here(name, asdict(options))
    threads = options.threads or 1
    arguments = [name, asdict(replace(options, threads=threads))]
    return in_own_process("minibit.bench:run_here", arguments, threads, f"benchmark {name}")


def run_here(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Run a benchmark in this process; fields are those of `Options`."""
    from minibit.kernels.threads import cpus

    options = Options(**fields)
    report: Report = call(BENCHMARKS[name].function, [options])
    about = {"benchmark": name, "command": command(name, options)}
    return about | {"environment": environment(options.threads or cpus())} | report.to_dict()


def command(name: str, options: Options) -> str:
    """Return the command that runs a benchmark with these options.

    Examples
    --------
    >>> command("gemv", Options(threads=2, peers=True))
    'minibit bench gemv --threads 2 --peers'
    """
    words = ["minibit", "bench", name]
    words += ["--preset", options.preset] if options.preset else []
    words += ["--seeds", *map(str, options.seeds)] if name == "train" else []
    words += ["--threads", str(options.threads)] if options.threads else []
    return " ".join([*words, *(["--peers"] if options.peers else [])])
