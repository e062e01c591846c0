"""``minibit bench``: measure, and compare with the bar."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from minibit.bench import BENCHMARKS, Options, run
from minibit.cli.common import BadUse, Json, Output, check_plot, percent, whole_numbers
from minibit.plots import roofline_figure, save


def bench(
    name: Annotated[str, typer.Argument(help="Which; without a name, list them.")] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Exit with status 1 if a figure misses its bar.")
    ] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Measure other libraries too, where installed.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Default: one for costs, every CPU for training."),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="For train: which, default small; for step: one of its two.")
    ] = "",
    seeds: Annotated[
        list[str] | None, typer.Option(help="For train: which seeds, e.g. --seeds 0 1 2.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="For gemv and matmul: draw a roofline (SVG, PNG, PDF).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a benchmark: figures beside their bars, and what they were measured on."""
    out = Output(as_json)
    with out.failures():
        if not name:
            out.facts({key: BENCHMARKS[key].summary for key in sorted(BENCHMARKS)})
            out.result({"benchmarks": sorted(BENCHMARKS)})
            return
        if name not in BENCHMARKS:
            raise BadUse(f"no benchmark {name!r}; there are {', '.join(sorted(BENCHMARKS))}")
        if preset and preset not in (known := BENCHMARKS[name].presets):
            takes = f"takes --preset {', '.join(known)}" if known else "takes no --preset"
            raise BadUse(f"bench {name} {takes}; got {preset!r}")
        if plot is not None:
            if not BENCHMARKS[name].roofline:
                raise BadUse(f"bench {name} draws no plot")
            check_plot(plot)
        options = Options(threads=threads, peers=peers, preset=preset)
        if seeds:
            options = Options(threads, peers, preset, tuple(whole_numbers(seeds, "--seeds")))
        result = run(name, options)
        _show(out, result)
        if plot is not None:
            save(roofline_figure(**result["details"]["roofline"]), plot)
            out.say(f"wrote {plot}")
        out.result(result)
        if check and not result["passed"]:
            raise typer.Exit(1)


def _show(out: Output, result: dict[str, Any]) -> None:
    """Print the figures, and what they were measured on."""
    place = result["environment"]
    versions = ", ".join(f"{key} {value}" for key, value in place["versions"].items())
    out.facts(
        {
            "CPU": f"{place['cpu']} ({place['cpus']} available), {place['system']}",
            "kernels": place["kernel_path"],
            "threads": place["threads"],
            "versions": versions,
        }
    )
    out.say()
    rows = []
    for figure in result["figures"]:
        bar, verdict = "", ""
        if figure["bar"] is not None:
            sign = "at least" if figure["at_least"] else "at most"
            bar = f"{sign} {_number(figure['bar'], figure['unit'])}"
            verdict = "ok" if figure["passed"] else "MISSED"
        rows.append([figure["name"], _number(figure["value"], figure["unit"]), bar, verdict])
    out.table(["figure", "value", "bar", ""], rows)
    for note in result["notes"]:
        out.say()
        out.say(note)


def _number(value: float, unit: str) -> str:
    """Write a figure with its unit."""
    if unit == "share":
        return percent(value)
    if unit == "bytes":
        return f"{value:,.0f} bytes"
    if unit == "x":
        return f"{value:.2f}x"
    return f"{value:.4g} {unit}"
