"""``minibit doctor``: what a model file really is, by its bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from minibit import checkpoint
from minibit.checkpoint import Diagnosis
from minibit.cli.common import BadUse, Output, Plot, check_plot, command, percent
from minibit.cli.models import model_path
from minibit.plots import codes_figure, save

MOST_SHOWN = 20  # findings


@command
def doctor(
    out: Output,
    path: Annotated[Path, "PATH", "A GGUF or safetensors file, a directory, or shipped."],
    plot: Plot = None,
    tensor: Annotated[str, "For --plot: the name of the tensor whose codes are drawn."] = "",
) -> dict[str, Any]:
    """Say what a model file really holds: layouts, orders, rotations, and what is wrong with it.

    Exit status 1 if there is a fault.
    """
    path = model_path(path)
    if tensor and plot is None:
        raise BadUse("--tensor is for --plot FILE")
    check_plot(plot)
    found = checkpoint.doctor(path)
    _say(out, found)
    if plot is not None:
        name = tensor or next((t.name for t in found.tensors if t.codes), None)
        if name is None:
            raise BadUse(f"{path} has no tensor of codes to draw")
        try:
            codes = checkpoint.picture(path, name)
        except KeyError as error:
            raise BadUse(str(error.args[0])) from error
        out.say(f"drew {name} as {save(codes_figure(codes, title=name), plot)}")
    out.status = 0 if found.healthy else 1
    return checkpoint.as_fields(found)


def _say(out: Output, found: Diagnosis) -> None:
    """Tell of the file, its layouts, and each kind of finding."""
    out.say(found.verdict, style="bold")
    if not found.tensors:
        return
    head = ["layout", "tensors", "zeros", "code 3", "score"]
    rows = []
    for name, count in found.layouts.items():
        same = [t for t in found.tensors if t.layout == name and t.codes]
        total = sum(sum(t.codes.values()) for t in same)
        cells = ["", "", ""]
        if total:
            shares = [sum(t.codes[code] for t in same) / total for code in ("0", "2")]
            cells = [*map(percent, shares), f"{min(t.score for t in same):.2f}"]
        rows.append([name, str(count), *cells])
    out.table(head, rows)
    for name, answer in found.order.items():
        scores = ", ".join(f"{order} {score:.1f}" for order, score in answer.scores.items())
        out.say(f"order of {name}: {answer.choice or 'cannot tell'} (standard errors: {scores})")
    rotation = found.rotation.get("found")
    if rotation != "none":
        out.say(f"rotation: {'cannot tell' if rotation is None else f'in blocks of {rotation}'}")
    if found.heads.scores:
        out.say(f"rotary pairs of q and k: {found.heads.choice or 'cannot tell'}")
    for finding in found.findings[:MOST_SHOWN]:
        out.say(f"{'fault' if finding.fault else 'note'}: {finding.message}")
    if len(found.findings) > MOST_SHOWN:
        out.say(f"and {len(found.findings) - MOST_SHOWN} more, see --json")
