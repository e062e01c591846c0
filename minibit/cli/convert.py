"""``minibit convert``: the same language model in another kind of file, and proof that it is.

    source                                 becomes
    a Hugging Face directory               a Hugging Face directory, or a GGUF file
    a GGUF file                            a Hugging Face directory, or a GGUF file
    a model of minibit's own (``.npz``)    a Hugging Face directory, or a GGUF file

The command compares the new file with the source before it takes its name: codes, scales,
all other tensors, and the logits of a few tokens. Where a checkpoint is replaced, files of the
directory that are no part of it (a model card, notes) stay.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np

from minibit import checkpoint
from minibit.base import whole_path, widen
from minibit.checkpoint import CHAT_TEMPLATE, HUGGING_FACE, GGUFKind
from minibit.cli.common import BadUse, Force, Output, check_choice, command, kilobytes, starts
from minibit.cli.models import COMPANIONS, IN_GGUF, Source, model_path, read_model
from minibit.ternary import I2Layout, TernaryMatrix
from minibit.transformer import BitNetModel, float_linear, pack_params

KINDS = get_args(GGUFKind)
STYLES: dict[str, dict[str, Any]] = {  # how a directory stores projections, for `save_bitnet`
    "bitlinear": {"linear_class": "bitlinear"},
    "autobitlinear": {"linear_class": "autobitlinear"},
    "online": {"linear_class": "autobitlinear", "quantization_mode": "online"},
    "float": {"linear_class": None},
}
LEEWAY = dict.fromkeys(KINDS, 2**-11)  # of a scale, relative to itself
LEEWAY |= {"i2_s": 0.0, "bitlinear": 2**-22}
READERS = (
    "Read by minibit, and by bitnet.cpp (I2_S in the layout of its CPU). llama.cpp itself knows no "
    "architecture bitnet-b1.58, only bitnet, which has another activation."
)
OTHER_READERS = (
    "Read by minibit. llama.cpp has the architecture, and the types TQ1_0, TQ2_0 and (since July "
    "2026) Q2_0; PQ2_0 and PTQ1_0 are of PrismML's fork of it, I2_S is bitnet.cpp's."
)
KEPT_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".md")


@command
def convert(
    out: Output,
    source: Annotated[Path, "SOURCE", "A directory, a .gguf or a .npz file, or shipped."],
    target: Annotated[Path, "OUT", "A .gguf file, or a directory to be made."],
    kind: Annotated[str, f"Type of the projections in GGUF: {', '.join(KINDS)}."] = "tq2_0",
    layout: Annotated[str, "Order of codes in I2_S, as written: x86, arm or rows."] = "x86",
    source_layout: Annotated[
        str | None, "Order of codes in I2_S, as read, if the file is silent."
    ] = None,
    linear: Annotated[
        str | None, "Of a directory: bitlinear, autobitlinear, online (masters) or float."
    ] = None,
    squared_relu: Annotated[bool, "A GGUF file named 'bitnet' has squared ReLU."] = False,
    force: Force = False,
) -> dict[str, Any]:
    """Write a language model as another kind of file, and check that it is the same model."""
    path = model_path(source)
    check_choice("--kind", kind, KINDS)
    check_choice("--layout", layout, get_args(I2Layout))
    check_choice("--source-layout", source_layout, get_args(I2Layout))
    check_choice("--linear", linear, STYLES)
    to_gguf = target.suffix == ".gguf"
    if to_gguf and linear is not None:
        raise BadUse("--linear is for directories; a GGUF file has --kind")
    check_target(target, to_gguf, force)
    begin = time.perf_counter()
    try:
        reading: dict[str, Any] = {"layout": source_layout, "squared_relu": squared_relu}
        read = read_model(path, **reading, masters=linear == "online", publish=True)
        style = kind if to_gguf else linear or _style(read.model)
        if style == "float" and read.model.config.family != "bitnet":
            read = read._replace(model=replace(read.model, linear=float_linear))
        kept = extras(target) if force else []
        with whole_path(target, overwrite=force) as part:
            expected = read.model
            if style not in ("online", "float"):  # as packed files have it
                plain = float_linear if to_gguf and expected.linear is float_linear else None
                expected = BitNetModel(expected.config, pack_params(expected.params), plain)
            if to_gguf:
                _write_gguf(read, part, kind, layout, source.name)
                written = checkpoint.load_gguf(part)
            else:
                checkpoint.save_bitnet(read.model, part, **STYLES[style])
                for name, content in read.companions.items():
                    (part / name).write_bytes(content)
                written = checkpoint.load_bitnet(part)
            report = compare(expected, written, LEEWAY.get(style, 0.0))
            del written
            files = [part] if to_gguf else list(part.iterdir())
            size = sum(file.stat().st_size for file in files)
            for file in kept:
                shutil.copy2(file, part / file.name, follow_symlinks=False)
    except ImportError as error:
        raise BadUse(str(error)) from error
    if to_gguf:
        _warn_of_tokenizer(out, target)
        of_bitnet = expected.config.family == "bitnet"
        out.say(READERS if of_bitnet else OTHER_READERS, style="dim")
    fields = {
        "source": str(source),
        "source_format": read.form,
        "out": str(target),
        "format": f"GGUF, {kind.upper()}" if to_gguf else f"Hugging Face, {style}",
        **report,
        "bytes": size,
        "kept": [file.name for file in kept],
        "seconds": time.perf_counter() - begin,
    }
    _say(out, fields)
    return fields


def _style(model: BitNetModel) -> str:
    """Choose the style that stores projections as the model has them."""
    packed = [w for w in model.params.values() if isinstance(w, TernaryMatrix)]
    if model.linear is float_linear or any(w.group is not None for w in packed):
        return "float"
    return "bitlinear" if packed else "online"


def _write_gguf(source: Source, path: Path, kind: Any, layout: Any, name: str) -> None:
    """Write a GGUF file, the tokenizer in its metadata."""
    entries: dict[str, Any] = {"general.name": name}
    for key, companion in IN_GGUF.items():
        if (text := source.text(companion)) is not None:
            entries[key] = text
    if HUGGING_FACE in entries:
        entries |= checkpoint.ggml_tokenizer(entries[HUGGING_FACE], source.model.config.vocab_size)
    if template := source.template()[0]:
        entries[CHAT_TEMPLATE] = template
    checkpoint.save_gguf(source.model, path, kind, layout=layout, metadata=entries)


def _warn_of_tokenizer(out: Output, path: Path) -> None:
    """Say what other programs will miss in a GGUF file that was written."""
    metadata = checkpoint.open_gguf(path).metadata
    if HUGGING_FACE not in metadata:
        out.warn(f"the source has no tokenizer.json, so {path} has no words")
    elif "tokenizer.ggml.tokens" not in metadata:
        out.warn(
            f"the tokenizer is no byte-level byte-pair encoding: {path} holds it for minibit, and "
            "llama.cpp cannot use it"
        )
    elif "tokenizer.ggml.pre" not in metadata:
        out.warn(
            "the tokenizer cuts text in a way for which no name is known: llama.cpp will guess"
        )


def compare(ours: BitNetModel, theirs: BitNetModel, leeway: float = 0.0) -> dict[str, Any]:
    """Compare two models: configuration, codes and floats must be equal, scales nearly so.

    `leeway` is the largest relative difference of a scale. Returns the numbers of ``tensors`` and
    ``projections``, ``digest`` (SHA-256 of the codes, in order, int8), ``largest_scale_change``
    (relative) and ``largest_logit_difference`` (of 16 tokens). A ValueError names what differs
    first.
    """
    if ours.config != theirs.config:
        raise ValueError(f"the configuration differs: {ours.config} and {theirs.config}")
    digest, change, projections = hashlib.sha256(), 0.0, 0
    for name, value in ours.params.items():
        other = theirs.params[name]
        if isinstance(value, TernaryMatrix) and isinstance(other, np.ndarray):
            value, other = value.rows(), widen(other).astype(np.float32)  # an embedding, as floats
        if type(value) is not type(other):
            raise ValueError(f"{name} differs in kind: {type(value)} and {type(other)}")
        if not isinstance(value, TernaryMatrix):
            if value.dtype != other.dtype or not np.array_equal(value, other):
                raise ValueError(f"{name} differs: {value.dtype} and {other.dtype}")
            continue
        codes = value.codes()
        if not np.array_equal(codes, other.codes()):
            raise ValueError(f"the codes of {name} differ")
        digest.update(codes.tobytes())
        projections += 1
        moved = _moved(value.scale, other.scale)
        if not moved <= leeway:
            raise ValueError(f"the scale of {name} differs: {value.scale} and {other.scale}")
        change = max(change, moved)
    count = min(16, ours.config.max_positions)
    tokens = np.linspace(0, ours.config.vocab_size - 1, count).astype(np.int64)[None]
    difference = float(np.abs(ours.logits(tokens) - theirs.logits(tokens)).max())
    if change == 0 and difference != 0:
        raise ValueError(f"all tensors are equal, and logits differ by {difference:g}")
    return {
        "tensors": len(ours.params),
        "projections": projections,
        "digest": digest.hexdigest(),
        "largest_scale_change": change,
        "largest_logit_difference": difference,
    }


def _moved(scale: Any, other: Any) -> float:
    """Return the largest change of a scale, relative to itself: of the matrix, or of groups."""
    one, two = np.atleast_2d(np.float64(scale)), np.atleast_2d(np.float64(other))
    if one.size > 1 and two.size > 1:  # blocks may be narrower than groups, and the reverse
        width = max(one.shape[1], two.shape[1])
        one, two = (np.repeat(s, width // s.shape[1], axis=1) for s in (one, two))
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = np.where(one == two, 0, np.abs(two - one) / np.abs(one))
    return float(moved.max())


def _say(out: Output, fields: dict[str, Any]) -> None:
    """Tell of the new file, and how it compares with its source."""
    change, difference = fields["largest_scale_change"], fields["largest_logit_difference"]
    rounded = f"rounded by the format: by {change:.2g} of themselves at most" if change else "equal"
    out.say(f"{fields['out']} is the model of {fields['source']}.", style="bold")
    out.facts(
        {
            "format": f"{fields['format']}, from {fields['source_format']}",
            "size": kilobytes(fields["bytes"]),
            "codes": f"equal, {fields['projections']} projections of {fields['tensors']} tensors",
            "scales": rounded,
            "other tensors": "equal",
            "logits": f"{difference:.2g} apart at most" if difference else "equal",
            "digest": fields["digest"],
        }
        | ({"kept": ", ".join(fields["kept"])} if fields["kept"] else {})
    )


def check_target(target: Path, to_gguf: bool, force: bool, option: str = "OUT") -> None:
    """Refuse a target that cannot be made, or would overwrite what nobody asked to lose."""
    if not to_gguf and target.suffix in (".npz", ".safetensors", ".bin", ".json"):
        kinds = "a .gguf file or a directory" if option == "OUT" else "a directory"
        raise BadUse(f"{option} must be {kinds}, got {target}")
    if not target.absolute().parent.is_dir():
        raise BadUse(f"{option} {target}: there is no folder {target.absolute().parent}")
    if not (target.exists() or target.is_symlink()):
        return
    if not force:
        raise BadUse(
            f"{target} exists; nothing was changed. Choose another {option}, or add --force"
        )
    if to_gguf:
        if not (target.is_file() and starts(target, b"GGUF")):
            raise BadUse(f"{target} is no GGUF file, so --force doesn't overwrite it")
        return
    files = list(target.iterdir()) if target.is_dir() and not target.is_symlink() else [target]
    plain = all(file.is_file() and file.suffix in KEPT_SUFFIXES for file in files)
    if not plain or (files and not (target / "config.json").is_file()):
        raise BadUse(f"{target} holds more than a checkpoint, so --force doesn't replace it")


def extras(folder: Path) -> list[Path]:
    """List the files of a directory that are no part of its checkpoint: a card, notes, adapters."""
    if not folder.is_dir():
        return []
    weights = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
    own = ("config.json", *COMPANIONS)
    files = (file for file in folder.iterdir() if file.name not in own)
    return sorted(file for file in files if not weights.fullmatch(file.name))
