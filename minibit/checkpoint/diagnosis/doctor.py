"""`doctor`: what a file really is, in a sentence, with what that rests on."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from minibit.base import CheckpointError, shown
from minibit.checkpoint.diagnosis.content import (
    CLEAR,
    FLOATS,
    Content,
    fits,
    float_content,
    packed_content,
    row_content,
    whole_content,
)
from minibit.checkpoint.diagnosis.layouts import HF, LAYOUTS, Layout, orders
from minibit.checkpoint.diagnosis.matrices import Role, View, role_of
from minibit.checkpoint.diagnosis.orders import Answer, head_order, order_of, rotation_of
from minibit.checkpoint.diagnosis.sources import Entry, Source, open_source
from minibit.checkpoint.gguf.types import NAMED, TYPES, fitting

__all__ = ["Diagnosis", "Finding", "TensorReport", "as_fields", "doctor", "picture"]

TERNARY = {"TQ1_0", "TQ2_0", "I2_S", "Q2_0", "PQ2_0", "PTQ1_0", "STQ1_0"}
WITH_TWO = {"Q2_0", "PQ2_0"}  # whose code 3 is legal, and means +2
LAYERS = 3  # that orders are judged by: the first, the middle and the last
INTERLEAVED = ("llama", "mistral", "mistral3")  # architectures that turn neighbours in llama.cpp


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


@dataclass
class Diagnosis:
    """What a path is: tensor by tensor, and in a sentence."""

    path: str
    kind: str
    verdict: str
    findings: list[Finding] = field(default_factory=list)
    tensors: list[TensorReport] = field(default_factory=list)
    layouts: dict[str, int] = field(default_factory=dict)  # how many tensors are of which
    order: dict[str, Answer] = field(default_factory=dict)  # by layout
    rotation: dict[str, Any] = field(default_factory=dict)
    heads: Answer = field(default_factory=Answer)

    @property
    def healthy(self) -> bool:
        """Whether no fault was found."""
        return not any(finding.fault for finding in self.findings)

    @property
    def kinds(self) -> set[str]:
        """The kinds of all findings."""
        return {finding.kind for finding in self.findings}


def doctor(path: str | os.PathLike[str]) -> Diagnosis:
    """Say what a model file, or a folder of them, really holds.

    A type number is not believed: the size between two offsets says which layouts are possible, the
    scales of a sample which of them fits, and the axes that matrices of a trained network share in
    which order its weights stand. Each question may be left open: "cannot tell" is an answer.

    Parameters
    ----------
    path : path-like
        A GGUF file, or any part of a split one; a safetensors file; a directory of Hugging Face.
        It is never written to, nor mapped beyond its header: of each tensor a sample is read, at
        most a megabyte, so that memory is bounded whatever the file's size.

    Returns
    -------
    Diagnosis
        With the ``verdict``, the ``findings`` (faults and notes) and a report per tensor. A file
        that is no model, or is damaged, is a finding and no error.

    Examples
    --------
    >>> from minibit.language import shipped_folder
    >>> diagnosis = doctor(shipped_folder())
    >>> diagnosis.layouts, diagnosis.order["HF"].choice, diagnosis.healthy
    ({'F32': 24, 'HF': 14}, 'rows a quarter apart, lowest bits first', True)
    """
    path = Path(path)
    try:
        source = open_source(path)
    except (CheckpointError, OSError) as error:
        message = str(error)
        kind = "damaged" if "no GGUF file" not in message and "no model" not in message else "other"
        return Diagnosis(str(path), "unknown", message, [Finding(kind, message)])
    found = Diagnosis(str(path), source.kind, "")
    found.findings += [Finding(kind, message) for kind, message in source.faults]
    views: dict[Role, View] = {}
    for entry in source.entries:
        report, layout = _examined(entry, found)
        found.tensors.append(report)
        key = report.layout or f"{entry.declared}?"
        found.layouts[key] = found.layouts.get(key, 0) + 1
        role = role_of(entry.name)
        if role and (layout is not None or entry.declared in FLOATS) and len(entry.shape) == 2:
            views[role] = View(entry, layout)
    _judge_orders(source, found, _some_layers(views))
    found.verdict = _verdict(found)
    return found


def _examined(entry: Entry, found: Diagnosis) -> tuple[TensorReport, Layout | None]:
    """Look at one tensor."""

    def finding(kind: str, message: str, fault: bool = True) -> None:
        found.findings.append(Finding(kind, f"{shown(entry.name)} {message}", entry.name, fault))

    allowed = [layout.name for layout in fits(entry)]
    report = TensorReport(entry.name, entry.shape, entry.declared, allowed, entry.declared)
    content, layout = Content(None, 0.0), None
    if entry.number is None and entry.declared == "U8" and len(entry.shape) == 2:
        content, layout, report.layout = row_content(entry), HF, "HF"
    elif entry.declared in FLOATS:
        if _short(entry, finding):
            return report, None
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


def _short(entry: Entry, finding: Any) -> bool:
    """Tell of a tensor that has fewer bytes than its declaration takes."""
    if entry.number is None or entry.number not in TYPES:
        return False
    size = TYPES[entry.number][0].size(entry.shape)
    if size is None or size <= entry.room:
        return False
    finding("truncated", f"takes {size} bytes as {entry.declared}, and has {entry.room}")
    return True


def _packed(entry: Entry, report: TensorReport, finding: Any) -> Content:
    """Find the layout of a tensor of blocks in a GGUF file, from its size and its bytes."""
    report.layout = None
    meanings = TYPES.get(entry.number or 0, ())
    names = {meaning.name for meaning in meanings}
    by_size = next(fitting(meanings, entry.shape, entry.room, entry.unit), None)
    if by_size is not None and by_size.name not in TERNARY:
        report.layout = by_size.name  # not ternary, and of the right size: not looked into
        return Content(None, 0.0)
    if not entry.room:
        finding("truncated", "has no bytes: the file ends before it")
        return Content(None, 0.0)
    content = packed_content(entry, [LAYOUTS[name] for name in report.allowed])
    if content.score < CLEAR:
        framed = [layout for layout in LAYOUTS.values() if layout.scale is not None]
        content = max(content, packed_content(entry, framed), key=lambda content: content.score)
    named = sorted(names & TERNARY) or report.allowed
    if content.score < CLEAR:
        if entry.number in NAMED:
            finding("named", f"is of type {entry.number}: {NAMED[entry.number]}")
            report.layout = NAMED[entry.number].partition(" ")[0]
            return Content(None, 0.0)
        if not entry.read(0, 1 << 16).any():
            finding("all-zeros", "is all zero bytes: an upload that lost its weights")
        elif _short(entry, finding):
            return Content(None, 0.0)
        fallback = next((LAYOUTS[name] for name in report.allowed if name in named), None)
        if fallback is None:
            finding("unknown", f"of {entry.declared} fits no layout known here")
            return Content(None, 0.0)
        content = packed_content(entry, [fallback])  # its scales are the fault
        finding("unclear", f"of {entry.declared} has no block whose scales are good", False)
        content = replace(content, layout=fallback)
    layout = content.layout
    if layout is None:
        return Content(None, 0.0)
    report.layout = layout.name
    size = layout.size(entry.matrix) or 0
    if size > entry.room:
        finding("truncated", f"takes {size} bytes as {layout.name}, and has {entry.room}")
    elif layout.name not in report.allowed:
        finding("size", f"has {entry.room} bytes, and holds {layout.name}, which takes {size}")
    first = meanings[0].name if meanings else None
    if layout.name != first:
        other = f"{entry.declared} in ggml" if first else "no type of ggml"
        finding("type-number", f"is of type {entry.number}, {other}, and holds {layout.name}")
    if layout.scale != LAYOUTS[layout.name].scale:
        place = "first" if layout.scale == 0 else "last"
        finding("scale-place", f"holds {layout.name} with the scale {place} in each block")
    if layout.coding != LAYOUTS[layout.name].coding:
        finding("coding", f"holds {layout.name} with plain base-3 bytes, not binary fractions")
    return whole_content(entry, layout)


def _codes(content: Content, layout: str, finding: Any) -> None:
    """Tell of codes and scales that no healthy tensor has."""
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


def _some_layers(views: dict[Role, View]) -> dict[Role, View]:
    """Keep the first, the middle and the last layer."""
    layers = sorted({layer for layer, _ in views})
    kept = {layers[i * (len(layers) - 1) // (LAYERS - 1)] for i in range(LAYERS)} if layers else {}
    return {role: view for role, view in views.items() if role[0] in kept}


def _judge_orders(source: Source, found: Diagnosis, views: dict[Role, View]) -> None:
    """Find the order of each layout's weights, then rotations, then the order within heads."""
    families: dict[str, set[Role]] = {}
    for role, view in views.items():
        families.setdefault(view.layout.name if view.layout else "floats", set()).add(role)
    for name, family in families.items():
        if name == "floats":
            continue
        answer = order_of(views, family)
        found.order[name] = answer
        published = LAYOUTS.get(name, HF).order
        if answer.choice not in (None, published):
            message = f"the weights of {name} stand {answer.choice}; published: {published}"
            known = name == "I2_S"  # published in three orders
            found.findings.append(Finding("order", message, fault=not known))
        for role in family:
            layout = views[role].layout
            choices = [o for o in orders(layout) if o.order == answer.choice] if layout else []
            if choices:
                views[role] = View(views[role].entry, choices[0])
    _judge_rotation(source, found, views, families)
    heads, kv_heads = _head_counts(source)
    if heads and kv_heads:
        found.heads = head_order(views, heads, kv_heads)
        arch = source.metadata.get("general.architecture")
        due = "side by side" if arch in INTERLEAVED else "half a head apart"
        if found.heads.choice not in (None, due):
            message = f"rotary pairs of q and k stand {found.heads.choice}, and {shown(arch)} turns"
            found.findings.append(Finding("heads", f"{message} those {due}"))


def _judge_rotation(
    source: Source, found: Diagnosis, views: dict[Role, View], families: dict[str, set[Role]]
) -> None:
    """Compare the rotation that the metadata declare with the one that the weights have."""
    declared = source.metadata.get("prism.hadamard.block_size")
    claims = [key for key in source.metadata if key.startswith("prism.hadamard.")]
    largest = max(families.values(), key=len, default=set())
    packed = [family for name, family in families.items() if name != "floats"]
    answer = Answer()
    for family in packed or [largest]:
        if family and answer.choice is None:
            answer = rotation_of(views, family)
    found.rotation = {"declared": declared, "found": answer.choice, "scores": answer.scores}
    if claims and answer.choice == "none":
        message = (
            "the metadata declare a folded rotation (prism.hadamard), and the weights have none"
        )
        found.findings.append(Finding("rotation-declared", message))
    elif claims and answer.choice not in (None, str(declared)):
        message = f"the metadata declare a rotation in blocks of {shown(declared)}"
        found.findings.append(Finding("rotation-block", f"{message}, the weights: {answer.choice}"))
    elif claims:
        message = f"folded with a rotation in blocks of {shown(declared)}, which readers must apply"
        found.findings.append(Finding("folded", message, fault=False))
    elif answer.choice not in (None, "none"):
        message = (
            f"the weights are folded with a rotation in blocks of {answer.choice}, and no metadata "
            "say so: a reader that leaves it out talks nonsense"
        )
        found.findings.append(Finding("rotation-missing", message))


def _head_counts(source: Source) -> tuple[int, int]:
    """Return the numbers of heads, and of heads of keys and values; 0 if nothing says them."""
    if source.kind == "GGUF":
        arch = source.metadata.get("general.architecture")
        names = [f"{arch}.attention.head_count", f"{arch}.attention.head_count_kv"]
    else:
        names = ["num_attention_heads", "num_key_value_heads"]
    heads, kv_heads = (source.metadata.get(name) for name in names)
    kv_heads = heads if kv_heads is None else kv_heads
    good = all(type(count) is int and 0 < count < 1 << 16 for count in (heads, kv_heads))
    return (int(heads), int(kv_heads)) if good else (0, 0)  # type: ignore[arg-type]


def _verdict(found: Diagnosis) -> str:
    """Say it in a sentence."""
    ternary = {name: n for name, n in found.layouts.items() if name in TERNARY | {"HF"}}
    if ternary:
        words = " and ".join(f"{n} tensors of {_named(found, name)}" for name, n in ternary.items())
    else:
        kinds = {t.granularity for t in found.tensors if t.granularity}
        words = "no packed ternary weights"
        if kinds:
            words += f", but floats that are ternary times a scale per {' or '.join(sorted(kinds))}"
    sentence = f"{found.kind} with {words}"
    choice = found.rotation.get("found")
    if choice is None and ternary:
        sentence += "; cannot tell whether a rotation is folded in"
    faults = [finding for finding in found.findings if finding.fault]
    if not faults:
        return f"{sentence}; nothing is wrong with it."
    first = faults[0].message if len(faults) == 1 else f"{len(faults)} faults, {faults[0].message}"
    return f"{sentence}; {first}."


def _named(found: Diagnosis, name: str) -> str:
    """Name a layout with its order, or say that the order cannot be told."""
    answer = found.order.get(name)
    if answer is None:
        return name
    return f"{name} ({answer.choice or 'the order of weights cannot be told'})"


def picture(path: str | os.PathLike[str], tensor: str, most: int = 256) -> np.ndarray[Any, Any]:
    """Return one tensor's first codes as a picture, int8 (rows, columns), at most so many each way.

    Codes are read in the layout and order that `doctor` finds; a KeyError if there is no such
    tensor, a ValueError if it holds no codes.

    Examples
    --------
    >>> from minibit.language import shipped_folder
    >>> picture(shipped_folder(), "model.layers.0.self_attn.q_proj.weight").shape
    (96, 96)
    """
    source = open_source(Path(path))
    entry = next((entry for entry in source.entries if entry.name == tensor), None)
    if entry is None:
        raise KeyError(f"tensor {shown(tensor)} is not in {path}")
    report, layout = _examined(entry, Diagnosis("", "", ""))
    if not report.codes or (layout is None and entry.declared not in FLOATS):
        raise ValueError(
            f"tensor {shown(tensor)} holds {report.layout or entry.declared}, no codes"
        )
    view = View(entry, layout)
    rows = np.arange(min(most, view.shape[0]))
    values = view.values(rows, view.whole_blocks(max(most, 256)))[:, :most]
    return np.sign(values).astype(np.int8) if layout is None else values.astype(np.int8)


def as_fields(found: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis as JSON has it."""
    return {
        "path": found.path,
        "kind": found.kind,
        "verdict": found.verdict,
        "healthy": found.healthy,
        "layouts": found.layouts,
        "findings": [vars(finding) for finding in found.findings],
        "order": {name: vars(answer) for name, answer in found.order.items()},
        "rotation": found.rotation,
        "heads": vars(found.heads),
        "tensors": [vars(report) for report in found.tensors],
    }
