"""A ``tokenizer.json`` in the words of GGUF, which llama.cpp and bitnet.cpp need to speak.

    tokenizer.ggml.model         "gpt2": byte-pair encoding over bytes
    tokenizer.ggml.pre           how text is cut before it: llama.cpp's name for a pattern
    tokenizer.ggml.tokens        the vocabulary, spelt in GPT-2's letters for bytes
    tokenizer.ggml.token_type    1 ordinary, 3 a marker, 4 added, 5 unused
    tokenizer.ggml.merges        "LEFT RIGHT", the first to be made first
    tokenizer.ggml.add_bos_token whether a text begins with the first token of all

Only byte-level byte-pair encodings are translated, which BitNet's published models have. The whole
``tokenizer.json`` goes along as ``tokenizer.huggingface.json``, so that nothing is lost by it.
"""

from __future__ import annotations

from typing import Any

from minibit.base import JSONError, parse_object

__all__ = ["CHAT_TEMPLATE", "GENERATION", "HUGGING_FACE", "ggml_tokenizer"]

HUGGING_FACE = "tokenizer.huggingface.json"
CHAT_TEMPLATE = "tokenizer.chat_template"  # its text; llama.cpp reads it, too
GENERATION = "minibit.generation_config.json"  # for more end tokens than GGUF has names for
ORDINARY, MARKER, ADDED, UNUSED = 1, 3, 4, 5
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {  # what text is cut by: llama.cpp's name for it
    _WORDS + r"|\p{N}{1,3}" + _REST: "llama-bpe",
    _WORDS + r"|\p{N}" + _REST: "qwen2",
}


def ggml_tokenizer(text: str, vocab_size: int) -> dict[str, Any]:
    """Translate a ``tokenizer.json`` into entries for `minibit.checkpoint.save_gguf`.

    There are none if it is no byte-level byte-pair encoding. Of the model's `vocab_size` tokens
    those that the tokenizer lacks are listed as ``[PAD17]``, unused. ``tokenizer.ggml.pre`` is left
    out if the pattern has no name here; llama.cpp then warns, and uses its default.

    Raises ValueError if the text is no ``tokenizer.json``, or has a token beyond `vocab_size` or
    two of one number.

    Examples
    --------
    >>> import json
    >>> model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    >>> text = json.dumps({"model": model, "decoder": {"type": "ByteLevel"}})
    >>> entries = ggml_tokenizer(text, 4)
    >>> entries["tokenizer.ggml.tokens"], entries["tokenizer.ggml.merges"]
    (['a', 'b', 'ab', '[PAD3]'], ['a b'])
    """
    try:
        parts = parse_object(text.encode(), most=1 << 26)
        model, decoder = parts["model"], parts.get("decoder") or {}
        if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
            return {}
        if decoder.get("type") != "ByteLevel" or not model.get("merges"):
            return {}
        added = {entry["id"]: entry for entry in parts.get("added_tokens") or []}
        numbers = [*model["vocab"].items(), *((e["content"] + "", i) for i, e in added.items())]
        merges = [
            pair if isinstance(pair, str) else " ".join(part.replace(" ", "Ġ") for part in pair)
            for pair in model["merges"]
        ]
        pattern = _pattern_name(parts.get("pre_tokenizer") or {})
        begins = _begins_with_marker(parts.get("post_processor") or {})
    except (KeyError, TypeError, AttributeError, JSONError) as error:
        raise ValueError(f"the tokenizer is no tokenizer.json: {error!r}") from error
    names: dict[int, str] = {}
    for name, number in numbers:
        if type(number) is not int or not 0 <= number < vocab_size:
            raise ValueError(f"the tokenizer's {name!r} has number {number}, of {vocab_size}")
        if names.setdefault(number, name) != name:
            raise ValueError(f"the tokenizer has {names[number]!r} and {name!r} as {number}")
    kinds = {i: MARKER if entry.get("special") else ADDED for i, entry in added.items()}
    entries = {
        "model": "gpt2",
        "tokens": [names.get(i, f"[PAD{i}]") for i in range(vocab_size)],
        "token_type": [kinds.get(i, ORDINARY if i in names else UNUSED) for i in range(vocab_size)],
        "merges": merges,
        "pre": pattern,
        "add_bos_token": begins,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in entries.items() if value is not None}


def _begins_with_marker(after: Any) -> bool | None:
    """Whether the tokenizer puts a marker before a text; None if it does not say."""
    for step in after.get("processors", [after]):
        if step.get("type") == "TemplateProcessing" and step.get("single"):
            return "SpecialToken" in step["single"][0]
    return None


def _pattern_name(cuts: Any) -> str | None:
    """Return llama.cpp's name for the way text is cut before merging, if there is one here."""
    steps = cuts.get("pretokenizers", [cuts])
    for step in steps:
        pattern = step.get("pattern")
        if step.get("type") == "Split" and isinstance(pattern, dict):
            return PATTERNS.get(pattern.get("Regex", ""))
    alone = len(steps) == 1 and steps[0].get("type") == "ByteLevel"
    return "gpt-2" if alone and steps[0].get("use_regex", True) else None
