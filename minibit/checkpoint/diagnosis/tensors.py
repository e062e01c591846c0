"""One tensor: what it is declared as, what its size allows, what its bytes say, what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from minibit.base import shown
from minibit.checkpoint.diagnosis.content import (
    CLEAR,
    FLOATS,
    Content,
    fits,
    float_content,
    packed_content,
    row_content,
    scale_content,
    whole_content,
)
from minibit.checkpoint.diagnosis.layouts import HF, LAYOUTS, Layout
from minibit.checkpoint.diagnosis.sources import Entry
from minibit.checkpoint.gguf.types import NAMED, TYPES, fitting

__all__ = ["TERNARY", "Finding", "TensorReport", "examined"]

TERNARY = set(LAYOUTS)
WITH_TWO = {"Q2_0", "PQ2_0"}  # whose code 3 is legal, and means +2
SOME = 0.1  # a share of codes 3 above which bytes are no ternary codes
Tell = Callable[..., None]  # (kind, message, fault=True)


@dataclass(frozen=True)
class Finding:
    """Something that a reader should know: a fault, or a note."""

    kind: str  # one word, the same for every file
    message: str
    tensor: str | None = None
    fault: bool = True


@dataclass
class TensorReport:
    """One tensor: what it is declared as, what its size allows, what its bytes say."""

    name: str
    shape: tuple[int, ...]
    declared: str
    allowed: list[str]  # layouts whose size fits between the offsets
    layout: str | None  # by its bytes
    score: float = 0.0
    codes: dict[str, int] = field(default_factory=dict)  # a histogram of the sample
    zeros: float = 0.0
    scales: dict[str, int] = field(default_factory=dict)
    scale_range: tuple[float, float] | None = None
    granularity: str = ""


def examined(entry: Entry, findings: list[Finding]) -> tuple[TensorReport, Layout | None]:
    """Look at one tensor: a report, the layout of its bytes if that is known, and what is wrong."""

    def finding(kind: str, message: str, fault: bool = True) -> None:
        findings.append(Finding(kind, f"{shown(entry.name)} {message}", entry.name, fault))

    allowed = [layout.name for layout in fits(entry)]
    report = TensorReport(entry.name, entry.shape, entry.declared, allowed, entry.declared)
    content, layout = Content(None, 0.0), None
    if entry.number is None and entry.declared == "U8" and len(entry.shape) == 2:
        content = row_content(entry)
        if content.share("2") > SOME:  # NF4 of bitsandbytes, say
            finding("unknown", "holds bytes of a layout that is not known here", False)
            return report, None
        layout, report.layout = HF, "HF"
    elif entry.declared in FLOATS:
        if _short(entry, finding):
            return report, None
        if entry.name.endswith(("_scale", ".scale")):
            content = scale_content(entry)
            _scales(content, finding)
        else:
            content = float_content(entry) or content
            if "not finite" in content.scales:
                finding("not-finite", "holds NaN or infinities")
    elif entry.number is not None:
        content = _packed(entry, report, finding)
        layout = content.layout
        if layout is None:
            return report, None
    report.score = round(content.score, 3)
    report.codes, report.zeros = content.codes, round(content.share("0"), 4)
    report.scales, report.scale_range = content.scales, content.scale_range
    report.granularity = content.granularity
    if report.codes and entry.declared not in FLOATS:
        _codes(content, report.layout or "", finding)
    return report, layout


def _short(entry: Entry, finding: Tell) -> bool:
    """Tell of a tensor that has fewer bytes than its declaration takes."""
    if entry.number is None or entry.number not in TYPES:
        return False
    size = TYPES[entry.number][0].size(entry.shape)
    if size is None or size <= entry.room:
        return False
    finding("truncated", f"takes {size} bytes as {entry.declared}, and has {entry.room}")
    return True


def _packed(entry: Entry, report: TensorReport, finding: Tell) -> Content:
    """Find the layout of a tensor of blocks in a GGUF file, from its size and its bytes."""
    report.layout = None
    meanings = TYPES.get(entry.number or 0, ())
    names = {meaning.name for meaning in meanings}
    by_size = next(fitting(meanings, entry.shape, entry.room, entry.unit), None)
    if by_size is not None and by_size.name not in TERNARY:
        report.layout = by_size.name  # not ternary, and of the right size: not looked into
        return Content(None, 0.0)
    if not entry.room:
        finding("truncated", "has no bytes: the file ends before it, or another tensor is there")
        return Content(None, 0.0)
    content = packed_content(entry, [LAYOUTS[name] for name in report.allowed])
    if content.score < CLEAR:
        framed = [layout for layout in LAYOUTS.values() if layout.scale is not None]
        content = max(content, packed_content(entry, framed), key=lambda content: content.score)
    layout = content.layout
    if content.score < CLEAR or layout is None:
        layout = _by_size_alone(entry, report, sorted(names & TERNARY), finding)
    if layout is None:
        return Content(None, 0.0)
    report.layout = layout.name
    _mismatches(entry, report.allowed, layout, finding)
    return whole_content(entry, layout)


def _by_size_alone(
    entry: Entry, report: TensorReport, names: list[str], finding: Tell
) -> Layout | None:
    """Say why no block fits, and return the declared layout if its size does."""
    if entry.number in NAMED:
        finding("named", f"is of type {entry.number}: {NAMED[entry.number]}")
        report.layout = NAMED[entry.number].partition(" ")[0]
        return None
    if not entry.read(0, 1 << 16).any():
        finding("all-zeros", "is all zero bytes: an upload that lost its weights")
    elif _short(entry, finding):
        return None
    for name in report.allowed:
        if name in (names or report.allowed):
            finding("unclear", f"of {entry.declared} has no block whose scales are good", False)
            return LAYOUTS[name]
    finding("unknown", f"of {entry.declared} fits no layout known here")
    return None


def _mismatches(entry: Entry, allowed: list[str], layout: Layout, finding: Tell) -> None:
    """Compare what a tensor holds with its room, its number, and the layout as published."""
    size = layout.size(entry.matrix) or 0
    if size > entry.room:
        finding("truncated", f"takes {size} bytes as {layout.name}, and has {entry.room}")
    elif layout.name not in allowed:
        finding("size", f"has {entry.room} bytes, and holds {layout.name}, which takes {size}")
    first = TYPES[entry.number][0].name if entry.number in TYPES else None
    if layout.name != first:
        other = f"{entry.declared} in ggml" if first else "no type of ggml"
        finding("type-number", f"is of type {entry.number}, {other}, and holds {layout.name}")
    if layout.scale != LAYOUTS[layout.name].scale:
        place = "first" if layout.scale == 0 else "last"
        finding("scale-place", f"holds {layout.name} with the scale {place} in each block")
    if layout.coding != LAYOUTS[layout.name].coding:
        finding("coding", f"holds {layout.name} with plain base-3 bytes, not binary fractions")


def _codes(content: Content, layout: str, finding: Tell) -> None:
    """Tell of codes that no healthy tensor has, and of its scales."""
    if content.codes["2"]:
        share = f"{100 * content.share('2'):.2f}% of its codes are 3"
        if layout in WITH_TWO:
            finding("code-3", f"is not ternary: {share}, which stand for +2", False)
        else:
            finding("code-3", f"holds code 3, which {layout} does not have: {share}")
    if content.codes["illegal"]:
        finding("illegal", f"holds {content.codes['illegal']} trits of bytes that nobody writes")
    if content.count and content.share("0") == 1:
        finding("all-zeros", "holds only weights of 0")
    _scales(content, finding)


def _scales(content: Content, finding: Tell) -> None:
    """Tell of scales that no healthy tensor has."""
    count = max(1, sum(content.scales.values()))
    for kind, slug in (
        ("zero", "scale-zero"),
        ("negative", "scale-negative"),
        ("not finite", "scale-nan"),
        ("denormal", "scale-denormal"),
    ):
        if number := content.scales.get(kind, 0):
            words = "zero over weights" if kind == "zero" else kind
            finding(slug, f"has {number} of {count} scales that are {words}")
