"""Language models in files of any kind: read, and described.

    a Hugging Face directory               config.json, safetensors, tokenizer.json
    a GGUF file                            all of it in one file
    a model of minibit's own (``.npz``)    latent weights, recipe and characters

``shipped`` names the model in the package, unless there is a file of that name.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from minibit import checkpoint
from minibit.base import read_whole
from minibit.checkpoint import CHAT_TEMPLATE, GENERATION, HUGGING_FACE
from minibit.cli.common import BadUse, Output, kilobytes, starts
from minibit.cli.texts import chat_template
from minibit.language import TrainedModel, Vocabulary, shipped_folder
from minibit.ternary import TernaryMatrix
from minibit.transformer import BitNetModel

SHIPPED = Path("shipped")
COMPANIONS = (  # of a Hugging Face directory: what goes along with the weights
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
IN_GGUF = {  # a key of GGUF's metadata: the companion that it holds
    HUGGING_FACE: "tokenizer.json",
    CHAT_TEMPLATE: "chat_template.jinja",
    GENERATION: "generation_config.json",
}
KINDS = {  # for people
    "Hugging Face": "a Hugging Face directory",
    "GGUF": "a GGUF file",
    "minibit": "latent weights of minibit's own training",
}
TITLES = {"bitnet": "BitNet", "llama": "Llama", "qwen3": "Qwen3"}
MOST = 1 << 26  # bytes of a companion


class Source(NamedTuple):
    """A model that was read, and what goes along with it, named as in a Hugging Face directory."""

    path: Path
    form: str
    model: BitNetModel
    companions: dict[str, bytes]

    def place(self, name: str) -> str:
        """Say where a companion came from."""
        keys = {companion: key for key, companion in IN_GGUF.items()}
        in_file = self.form == "GGUF" and name in keys
        return f"{self.path}: {keys[name]}" if in_file else str(self.path / name)

    def text(self, name: str) -> str | None:
        """Return a companion's text, or None; the first byte that is no UTF-8 is named."""
        if name not in self.companions:
            return None
        try:
            return self.companions[name].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.place(name)} is no UTF-8 text: byte {error.start}") from None

    def template(self) -> tuple[str | None, str]:
        """Return the chat template, or None, and the place that it comes from."""
        name = "chat_template.jinja"
        if (text := self.text(name)) is None:
            name = "tokenizer_config.json"
            settings = self.text(name)
            text = None if settings is None else chat_template(settings, self.place(name))
        return text, self.place(name)


def model_path(path: Path, hint: str = "") -> Path:
    """Return the path of a model: that of the package for ``shipped``.

    Where there is none, BadUse says so, and adds the `hint`.
    """
    if path == SHIPPED and not path.exists():
        return shipped_folder()
    if not os.path.exists(path):  # unlike Path.exists, of a name that is too long, too
        raise BadUse(f"{path}: there is no such file or directory{hint}")
    return path


def is_model(path: Path) -> bool:
    """Whether a path is one of a language model's, by what it begins with: a log is none."""
    if not path.exists():
        return path == SHIPPED
    if path.is_dir():
        return (path / "config.json").is_file()
    return path.is_file() and (starts(path, b"GGUF") or starts(path, b"PK"))


def companions_of(folder: Path, *, publish: bool = False) -> dict[str, bytes]:
    """Read what goes along with a directory's weights.

    What is read to `publish` it is a part of the directory: a link out of it may lead to a secret.
    """
    companions = {}
    for name in COMPANIONS:
        if (folder / name).is_file():
            if publish:
                checkpoint.inside(folder, name)
            companions[name] = read_whole(folder / name, MOST)
    return companions


def read_model(
    path: Path,
    *,
    layout: Any = None,
    squared_relu: bool = False,
    masters: bool = False,
    publish: bool = False,
) -> Source:
    """Read a model of any kind, and what goes along with it: its content decides, not its name.

    `layout` and `squared_relu` are of GGUF files (`load_gguf`), `masters` keeps the latent weights
    of a ``.npz`` file, `publish` is as for `companions_of`.
    """
    if path.is_dir():
        companions = companions_of(path, publish=publish)
        return Source(path, "Hugging Face", checkpoint.load_bitnet(path), companions)
    if starts(path, b"GGUF"):
        model = checkpoint.load_gguf(path, layout=layout, squared_relu=squared_relu)
        metadata = checkpoint.open_parts(path).metadata
        texts = {name: metadata.get(key) for key, name in IN_GGUF.items()}
        companions = {name: text.encode() for name, text in texts.items() if isinstance(text, str)}
        return Source(path, "GGUF", model, companions)
    if not starts(path, b"PK"):
        raise ValueError(f"{path} is no directory, no GGUF file and no model of minibit's")
    trained = TrainedModel.load(path)
    kept = masters and trained.recipe.weights != "float"
    model = BitNetModel(trained.config, dict(trained.params)) if kept else trained.model()
    return Source(
        path, "minibit", model, {"tokenizer.json": trained.vocabulary.tokenizer().encode()}
    )


def tell_about(out: Output, path: Path) -> dict[str, Any]:
    """Print what a model is, and return it: ``minibit info``."""
    source = read_model(path)
    config, params = source.model.config, source.model.params
    projections = [w for name, w in params.items() if name.endswith("_proj")]
    ternary = any(isinstance(w, TernaryMatrix) for w in projections)
    files = [*path.iterdir()] if path.is_dir() else [path]
    text = source.text("tokenizer.json")
    characters = None if text is None else Vocabulary.of_tokenizer(text)
    fields = {
        "format": KINDS[source.form],
        "weights": "ternary" if ternary else "float",
        "projections": len(projections),
        "projection_weights": sum(math.prod(w.shape) for w in projections),
        "config": vars(config),
        "tokenizer": "none" if text is None else "characters" if characters else "tokenizer.json",
        "files": {file.name: file.stat().st_size for file in sorted(files) if file.is_file()},
        "memory_bytes": source.model.nbytes,
    }
    size = sum(fields["files"].values())
    out.facts(
        {
            "model": f"{TITLES[config.family]} language model, {fields['format']}",
            "weights": f"{fields['projection_weights']:,}, {fields['weights']}, in "
            f"{fields['projections']} projections, {config.layers} blocks of width "
            f"{config.hidden_size}",
            "vocabulary": f"{config.vocab_size:,} tokens; tokenizer: {fields['tokenizer']}",
            "positions": f"{config.max_positions:,}",
            "files": f"{kilobytes(size)}: {', '.join(fields['files'])}",
            "memory": kilobytes(fields["memory_bytes"]),
        }
    )
    return fields
