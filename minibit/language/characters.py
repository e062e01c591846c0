"""A text as numbers: its characters are the tokens, and batches of them are drawn from Philox.

Every model of one seed sees the same characters in the same order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer_array, parse_object
from minibit.datasets import load_text
from minibit.noise import BATCH, integers

__all__ = ["Tokens", "Vocabulary", "draw_batch", "shipped_text"]

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Vocabulary:
    """The distinct characters of a text, in order of their code points: a character is its index.

    Examples
    --------
    >>> vocabulary = Vocabulary.of("banana")
    >>> vocabulary.encode("nab")
    array([2, 0, 1])
    >>> vocabulary.decode([1, 0, 2])
    'ban'
    """

    characters: str

    def __post_init__(self) -> None:
        """Check that no character stands twice."""
        if not self.characters or len(set(self.characters)) != len(self.characters):
            raise ValueError(f"characters must be distinct, and one at least: {self.characters!r}")

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """List the characters of a text."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        """Return the number of characters."""
        return len(self.characters)

    def encode(self, text: str) -> Tokens:
        """Return the index of every character; one that is not listed is a ValueError."""
        index = {character: i for i, character in enumerate(self.characters)}
        unknown = next((c for c in text if c not in index), None)
        if unknown is not None:
            raise ValueError(f"text has the character {unknown!r}, which the vocabulary has not")
        return np.array([index[character] for character in text], np.int64)

    def decode(self, tokens: Any) -> str:
        """Return the characters of tokens, joined; one out of range is a ValueError."""
        indices = integer_array("tokens", np.ravel(tokens), 0, len(self) - 1)
        return "".join(self.characters[i] for i in indices)

    def tokenizer(self) -> str:
        """Return a ``tokenizer.json`` whose tokens are the characters.

        Byte-pair encoding without a merge: what it begins with, single characters, is where it
        ends.
        """
        absent = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor")
        vocab = {character: i for i, character in enumerate(self.characters)}
        fields: dict[str, Any] = {"version": "1.0", "added_tokens": [], **dict.fromkeys(absent)}
        fields |= {"decoder": {"type": "Fuse"}}
        fields |= {"model": {"type": "BPE", "vocab": vocab, "merges": []}}
        return json.dumps(fields, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def of_tokenizer(cls, text: str) -> Vocabulary | None:
        """Return the vocabulary of which `tokenizer` makes this ``tokenizer.json``, or None.

        Examples
        --------
        >>> Vocabulary.of_tokenizer(Vocabulary("abn").tokenizer())
        Vocabulary(characters='abn')
        >>> Vocabulary.of_tokenizer("{}") is None
        True
        """
        if '"merges": []' not in text:
            return None
        try:
            fields = parse_object(text.encode())
            vocabulary = cls("".join(fields["model"]["vocab"]))
            return vocabulary if json.loads(vocabulary.tokenizer()) == fields else None
        except (ValueError, KeyError, TypeError):
            return None


def shipped_text() -> tuple[Vocabulary, Tokens, Tokens]:
    """Return the vocabulary of the text in the package, its first nine tenths and its last.

    Examples
    --------
    >>> vocabulary, train, validation = shipped_text()
    >>> len(vocabulary), len(train), len(validation)
    (83, 342614, 38069)
    """
    text = load_text()
    vocabulary = Vocabulary.of(text)
    tokens = vocabulary.encode(text)
    cut = len(tokens) * 9 // 10
    return vocabulary, tokens[:cut], tokens[cut:]


def draw_batch(
    tokens: Tokens, seed: int, step: int, batch: int = 16, context: int = 64
) -> tuple[Tokens, Tokens]:
    """Draw rows of a text, and for every token the one after it.

    The starts are ``integers(seed, len(tokens) - context, batch)`` of the stream of domain `BATCH`
    and this step; both results are int64 (batch, context). A ValueError unless there are more
    tokens than `context`.

    Examples
    --------
    >>> x, y = draw_batch(np.arange(100), seed=0, step=3, batch=2, context=5)
    >>> x
    array([[41, 42, 43, 44, 45],
           [31, 32, 33, 34, 35]])
    >>> bool((y == x + 1).all())
    True
    """
    if len(tokens) <= context:
        raise ValueError(f"tokens must be more than context = {context}, got {len(tokens)}")
    starts = integers(seed, len(tokens) - context, batch, domain=BATCH, step=step)  # (batch,)
    rows = tokens[starts[:, None] + np.arange(context + 1)]  # (batch, context + 1)
    return rows[:, :-1], rows[:, 1:]
