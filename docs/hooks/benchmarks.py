"""Recorded benchmarks, put where a page says ``<!-- benchmark NAME -->``.

A report is what ``minibit bench NAME --out docs/benchmarks/FILE.json`` wrote. Of each, the page
gets a picture and a table of times (ours, those of peers, the limit), the figures beside their
bars, and the command and the machine. ``<!-- benchmarks -->`` is the list of all. MkDocs calls the
``on_*`` functions.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any

from tables import as_table, machine

from minibit.bench import BENCHMARKS, Figure, quantity
from minibit.plots import PALETTE, figure, label_axes, style

RECORDS = Path(__file__).resolve().parents[1] / "benchmarks"
Times = dict[str, dict[str, float]]  # a case to seconds of each way

NAMES = {  # of ways, where the page names them otherwise than the report
    "int8": "minibit, int8",
    "end to end": "minibit, float32",
    "portable": "minibit, any CPU's kernel",
    "two threads": "minibit, two threads",
    "int8 from memory": "minibit, from memory",
    "nf4": "minibit",
    "doubly quantised": "minibit, doubly quantised",
    "numpy float32": "NumPy float32",
    "numpy": "NumPy",
    "copy": "copy of the bytes",
    "read": "plain read",
    "read from memory": "plain read, from memory",
    "peak": "peak of dot products",
}
LIMITS = ("plain read", "peak of dot products")
LEFT_OUT = ("one thread", "roofline")  # the first is int8 once more


def times_of_ways(details: Mapping[str, Any]) -> Times:
    """Take details that map a case to the seconds of each way."""
    return {
        case: {NAMES.get(way, way): s for way, s in ways.items() if way not in LEFT_OUT}
        for case, ways in details.items()
        if case not in LEFT_OUT
    }


def times_of_quantisers(details: Mapping[str, Any]) -> Times:
    """Take the two quantisers, each beside NumPy's expression."""
    (times,) = details.values()
    return {
        name: {"minibit": times[name], "NumPy": times[f"numpy {name}"]}
        for name in ("absmean", "absmax")
    }


def times_of_topk(details: Mapping[str, Any]) -> Times:
    """Take the choice per token, and products of a token with 60% zeros."""
    cases: Times = {}
    for sparsity, times in details["choice"].items():
        for name, seconds in times.items():
            tokens, way = name.split(": ")
            way = way.replace("topk_mask", "minibit").replace("argpartition", "NumPy argpartition")
            cases.setdefault(f"choice, {float(sparsity):.0%} zeros, {tokens}", {})[way] = seconds
    for shape, product in details["product"].items():
        at = product["zeros"].index(0.6)
        cases[f"product, {shape}"] = {
            f"minibit, {way} product": product[way][at] for way in ("dense", "sparse")
        }
    return cases


def times_of_language_models(details: Mapping[str, Any]) -> Times:
    """Take training steps of every size, float and b1.58."""
    cases: Times = {}
    for size, times in details.items():
        for name, seconds in times.items():
            weights, _, way = name.partition(", ")
            way = "PyTorch" if way == "torch" else f"minibit, {way or 'one thread'}"
            if size != "many rows":  # ratios
                cases.setdefault(f"{size} {weights}", {})[way] = seconds
    return cases


def times_of_workers(details: Mapping[str, Any]) -> Times:
    """Take the median step of each preset here and on workers."""
    return {
        preset: {
            way: median(step[which] for step in steps)
            for which, way in enumerate(("minibit, one process", "minibit, two workers"))
        }
        for preset, steps in details["seconds"].items()
    }


def times_of_steps(details: Mapping[str, Any]) -> Times:
    """Take the mean training step, and the forward passes that it is measured in."""
    cases: Times = {}
    for preset, cost in details.items():
        cases[preset] = {
            "minibit, a step": mean(cost["step_seconds"]),
            "minibit, its own forward pass": mean(cost["own"]),
            "NumPy forward pass": mean(cost["forward"]),
        }
        if cost["naive_forward_passes"] is not None:
            title = f"{cost['perturbations']} dense JVPs, one by one"
            cases[preset][title] = cost["naive_forward_passes"] * mean(cost["forward"])
    return cases


def times_of_start(details: Mapping[str, Any]) -> Times:
    """Take the import, the first product and the slowest of the further kernels."""
    parts: dict[str, Callable[[list[float]], float]] = {
        "import": lambda seconds: seconds[0],
        "first product": lambda seconds: seconds[1],
        "slowest further kernel": lambda seconds: max(seconds[2:]),
    }
    ways = {"hidden": "minibit, SciPy hidden", "as installed": "minibit, SciPy installed"}
    return {
        part: {ways[kind]: take(seconds) for kind, seconds in details["seconds"].items()}
        for part, take in parts.items()
    }


def times_of_decoding(details: Mapping[str, Any]) -> Times:
    """Take a token and the loading of the files, beside transformers where it was measured."""
    ours, peer = details["minibit"], details["transformers"]
    cases: Times = {
        "a token": {"minibit": ours["token"], "plain read": ours["read"]},
        "loading": {"minibit": ours["load"]},
    }
    if peer:
        cases["a token"]["transformers"] = peer["token"]
        cases["loading"]["transformers"] = peer["load"]
    return cases


def times_of_runs(details: Mapping[str, Any]) -> Times:
    """Take whole training runs, a seed each."""
    return {
        f"{details['preset']}, seed {run['seed']}": {
            "minibit": run["wall_seconds"],
            "minibit, of the CPU": run["cpu_seconds"],
        }
        for run in details["runs"]
    }


TIMES: dict[str, Callable[[Mapping[str, Any]], Times]] = {
    **dict.fromkeys(("gemv", "matmul", "nf4"), times_of_ways),
    **{"quantise": times_of_quantisers, "topk": times_of_topk, "lm": times_of_language_models},
    **{"cluster": times_of_workers, "step": times_of_steps, "start": times_of_start},
    **{"decode": times_of_decoding, "train": times_of_runs},
}


def records() -> dict[str, dict[str, Any]]:
    """Return all recorded reports by the names of their files."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(RECORDS.glob("*.json"))
    }


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of a report; whether they reach their bars is judged anew."""
    fields = ("name", "value", "unit", "bar", "at_least")
    return [Figure(*(row[field] for field in fields)) for row in report["figures"]]


def ways_of(times: Times) -> list[str]:
    """Return the ways that any case has: ours, then peers, then limits."""
    ways = list(dict.fromkeys(way for case in times.values() for way in case))

    def rank(way: str) -> int:
        return 0 if way.startswith("minibit") else 2 if way.startswith(LIMITS) else 1

    return sorted(ways, key=rank)


def duration(seconds: float | None) -> str:
    """Write a time to three digits, in the unit that suits it; nothing for none."""
    if seconds is None:
        return ""
    size, unit = next(
        (size, unit)
        for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (0.0, "ns"))
        if seconds >= size
    )
    number = seconds / (size or 1e-9)
    return f"{number:.{max(0, 2 - math.floor(math.log10(number)))}f} {unit}"


def times_table(times: Times) -> str:
    """Write a table of times; of cases and ways, those that are more have the rows."""
    ways = ways_of(times)
    rows = [
        ["", *times],
        *([way, *(duration(case.get(way)) for case in times.values())] for way in ways),
    ]
    return as_table(rows if len(ways) >= len(times) else list(zip(*rows, strict=True)))


def picture(times: Times) -> bytes:
    """Draw all times as an SVG: a line for each case, a mark for each way."""
    from matplotlib.ticker import LogLocator, NullFormatter

    drawing, (axes,) = figure()
    ways = ways_of(times)
    drawing.set_size_inches(5.2, 1.3 + 0.3 * len(times) + 0.1 * len(ways))  # readable on a phone
    seconds = [s for case in times.values() for s in case.values()]
    scale, unit = (1.0, "seconds") if min(seconds) > 1 else (1e3, "milliseconds")
    markers = {"ours": iter("os^vdph*"), "peers": iter("DPX<>*8h")}
    colours = iter([*PALETTE[1:6], *PALETTE[1:6]])
    for way in ways:
        points = [
            (scale * case[way], -row) for row, case in enumerate(times.values()) if way in case
        ]
        if way.startswith(LIMITS):
            colour = "black" if way in LIMITS else "0.55"
            look: dict[str, Any] = {"color": colour, "marker": "|", "ms": 14, "mew": 2}
        elif way.startswith("minibit"):
            look = {"color": PALETTE[0], "marker": next(markers["ours"])}
        else:
            look = {"color": next(colours), "marker": next(markers["peers"])}
        axes.plot(*zip(*points, strict=True), label=way, ls="", **({"ms": 6} | look))
    axes.set_xscale("log")
    within = max(seconds) < 100 * min(seconds)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if within else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([-row for row in range(len(times))], list(times))
    axes.set_ylim(0.6 - len(times), 0.6)
    label_axes(axes, f"{unit}, on a logarithmic scale", "")
    axes.get_legend().remove()
    drawing.legend(loc="outside lower center", ncols=2, fontsize="small")
    content = io.BytesIO()
    with style():
        drawing.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def margin(judged: Figure) -> float:
    """Return how many times as good as its bar a figure is; less than 1 is a miss."""
    assert judged.bar is not None
    value, bar = (max(v, 1e-12) for v in (judged.value, judged.bar))
    return value / bar if judged.at_least else bar / value


def bars_table(judged: list[Figure]) -> str:
    """Write figures beside their bars, and how far each is from it: the bar is in the middle."""
    rows = [["figure", "measured", "bar", "margin"]]
    for one in judged:
        sign, times = "at least" if one.at_least else "at most", margin(one)
        at = round(50 * (1 + max(-1.0, min(1.0, math.log(times, 16)))))
        mark = f'<span class="margin" style="--at: {at}%" aria-hidden="true"></span>'
        measured, bar = (quantity(value, one.unit) for value in (one.value, one.bar))
        word = "" if one.passed else " **missed**"
        rows.append([one.name, measured, f"{sign} {bar}", f"{mark}{times:.2f}{word}"])
    return as_table(rows)


def verdict(all_figures: list[Figure]) -> str:
    """Say how many bars are reached, and name those that are missed."""
    judged = [one for one in all_figures if one.bar is not None]
    missed = [one.name for one in judged if not one.passed]
    if not judged:
        return "It has no bar."
    if not missed:
        count = {1: "The bar is", 2: "Both bars are"}.get(
            len(judged), f"All {len(judged)} bars are"
        )
        return f"{count} reached."
    reached = f"{len(judged) - len(missed)} of {len(judged)} bars are reached."
    return f"{reached} **Missed:** {'; '.join(missed)}."


def section(stem: str, report: Mapping[str, Any]) -> str:
    """Write what the page shows of one report."""
    every, times = figures(report), TIMES[report["benchmark"]](report["details"])
    judged = [one for one in every if one.bar is not None]
    others = [one for one in every if one.bar is None]
    parts = [
        f"**`{report['command']}`** {verdict(every)}",
        f"![Times of {', '.join(ways_of(times))}; the table below has the numbers]"
        f"(benchmarks/{stem}.svg){{ .figure }}",
        f'<div class="timings" markdown>\n\n{times_table(times)}\n\n</div>',
    ]
    if judged:
        parts.append(f'<div class="timings" markdown>\n\n{bars_table(judged)}\n\n</div>')
    if others:
        rows = [["figure", "measured"], *([o.name, quantity(o.value, o.unit)] for o in others)]
        count = f"{len(others)} further figures" if len(others) > 1 else "1 further figure"
        parts.append(
            f'<details markdown="block">\n<summary>{count}, without a bar</summary>\n\n'
            f"{as_table(rows)}\n\n</details>"
        )
    parts.append(
        f'<p class="measured" markdown>{" ".join(report["notes"])} '
        f"[The report](benchmarks/{stem}.json). Measured on "
        f"{machine(report['environment'])}.</p>"
    )
    return "\n\n".join(parts)


def sections(name: str) -> str:
    """Write all recorded reports of a benchmark; a ValueError names what is missing."""
    parts = []
    for stem, report in records().items():
        try:
            if report["benchmark"] == name:
                parts.append(section(stem, report))
        except KeyError as key:
            raise ValueError(f"docs/benchmarks/{stem}.json has no {key}") from key
    if not parts:
        raise ValueError(f"docs/benchmarks has no report of minibit bench {name}")
    return "\n\n".join(parts)


def overview() -> str:
    """Write the list of all reports, with the number of their bars and of those reached."""
    rows = [["command", "bars", "reached"]]
    place = list(BENCHMARKS)
    for report in sorted(records().values(), key=lambda one: place.index(one["benchmark"])):
        judged = [one for one in figures(report) if one.bar is not None]
        reached = sum(one.passed for one in judged)
        link = f"[`{report['command']}`](#{report['benchmark']})"
        mark = "" if reached == len(judged) else "**"
        rows.append([link, str(len(judged)), f"{mark}{reached}{mark}"])
    return as_table(rows)


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures; the reports lie in docs/ and come by themselves."""
    from mkdocs.structure.files import File

    for stem, report in records().items():
        content = picture(TIMES[report["benchmark"]](report["details"]))
        files.append(File.generated(config, f"benchmarks/{stem}.svg", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write what a page asks for."""
    markdown = re.sub("<!-- benchmarks -->", lambda _: overview(), markdown)
    return re.sub(r"<!-- benchmark (\w+) -->", lambda match: sections(match[1]), markdown)
