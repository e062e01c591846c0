"""`doctor`: what a file really is, in a sentence, with what that rests on."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minibit.base import CheckpointError, shown
from minibit.checkpoint.diagnosis.content import FLOATS
from minibit.checkpoint.diagnosis.layouts import HF, LAYOUTS, orders
from minibit.checkpoint.diagnosis.matrices import Role, View, role_of
from minibit.checkpoint.diagnosis.orders import Answer, head_order, order_of, rotation_of
from minibit.checkpoint.diagnosis.sources import Source, open_source
from minibit.checkpoint.diagnosis.tensors import TERNARY, Finding, TensorReport, examined

__all__ = ["Diagnosis", "as_fields", "doctor", "picture"]

LAYERS = 3  # that orders are judged by: the first, the middle and the last
INTERLEAVED = ("llama", "mistral", "mistral3")  # architectures that turn neighbours in llama.cpp


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
        report, layout = examined(entry, found.findings)
        found.tensors.append(report)
        key = report.layout or f"{entry.declared}?"
        found.layouts[key] = found.layouts.get(key, 0) + 1
        role = role_of(entry.name)
        if role and (layout is not None or entry.declared in FLOATS) and len(entry.shape) == 2:
            views[role] = View(entry, layout)
    _judge_orders(source, found, _some_layers(views))
    found.verdict = _verdict(found)
    return found


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
        return f"{sentence}; no fault was found."
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
    report, layout = examined(entry, [])
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
