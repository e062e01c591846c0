"""The language model in the package: 221,184 ternary weights, trained on the book beside it.

    recipe            221k, b1.58, seed 0: two million characters, one thread
    held-out text     1.733 nats per character
    file              96 KB, 32 KB of it the float32 embedding of 83 characters
    tokenizer.json    these characters, in order

It is the run of seed 0 of ``minibit experiment language`` (``chapters/results/language.json``), by
``minibit convert``.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from minibit.checkpoint import load_bitnet
from minibit.language.characters import Vocabulary, shipped_text
from minibit.transformer import BitNetModel

__all__ = ["shipped_folder", "shipped_model"]


def shipped_folder() -> Path:
    """Return the folder of the language model in the package, a Hugging Face directory.

    Examples
    --------
    >>> sorted(path.name for path in shipped_folder().iterdir())
    ['config.json', 'model.safetensors', 'tokenizer.json']
    """
    return Path(str(resources.files("minibit").joinpath("data", "language_model")))


def shipped_model() -> tuple[BitNetModel, Vocabulary]:
    """Return the language model in the package, of packed ternary projections, and its characters.

    Examples
    --------
    >>> model, vocabulary = shipped_model()
    >>> model.config.layers, model.config.hidden_size, len(vocabulary)
    (2, 96, 83)
    """
    return load_bitnet(shipped_folder()), shipped_text()[0]
