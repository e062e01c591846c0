"""Between text and tokens: tokenizers, whole characters in a stream, chat templates.

A model directory brings its ``tokenizer.json``, which the ``tokenizers`` package reads; one whose
tokens are single characters, as those of our own models, needs no package. A model with none, but
256 to 512 tokens, is taken to speak bytes: token b below 256 is byte b of UTF-8.

Chat templates are published as programs in a template language. Three of them are rendered here by
name instead (`TEMPLATES`), without running anything of a stranger's. Their markers become single
tokens, what people type never does.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Protocol

from minibit.base import checked_json, read_whole
from minibit.language import Vocabulary

MOST = 1 << 26  # bytes of a tokenizer or of its settings
WINDOW = 64  # tokens that are looked at once more, if none of them ends in a whole character


class Tokens(Protocol):
    """A tokenizer: text into tokens, and back."""

    def encode(self, text: str, *, typed: bool = False) -> list[int]:
        """Return the tokens of a text; with `typed`, no marker in it counts as one."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, U+FFFD where bytes are no whole character."""

    def token(self, marker: str) -> int | None:
        """Return the token of a marker like ``<|eot_id|>``, if there is one."""


class Published:
    """A ``tokenizer.json``, read by the ``tokenizers`` package; errors name the file by `where`.

    Truncation and padding, which many published files ask for, are for batches of training.
    """

    def __init__(self, text: str, where: str) -> None:
        from tokenizers import Tokenizer

        _try_in_a_process(text, where)
        with _tokenizing(f"{where} is no tokenizer"):
            self._tokenizer, self._typed = Tokenizer.from_str(text), Tokenizer.from_str(text)
            for tokenizer in (self._tokenizer, self._typed):
                tokenizer.no_truncation()
                tokenizer.no_padding()
        self._typed.encode_special_tokens = True  # markers in a text are plain text
        self._where = where

    def encode(self, text: str, *, typed: bool = False) -> list[int]:
        """Return the tokens of a text; a character that has none is a ValueError."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is no Unicode: a surrogate at {error.start}") from None
        tokenizer = self._typed if typed else self._tokenizer
        with _tokenizing(f"{self._where} fails on this text"):
            encoding = tokenizer.encode(text, add_special_tokens=False)
            ids = list(encoding.ids)
            if tokenizer.normalizer is not None:  # it may drop or join characters
                text = tokenizer.normalizer.normalize_str(text)
                encoding = tokenizer.encode(text, add_special_tokens=False)
        covered = bytearray(len(text))
        for begin, end in encoding.offsets:
            covered[begin:end] = b"\1" * (end - begin)
        for character, is_covered in zip(text, covered, strict=True):
            if not is_covered and not character.isspace():
                raise ValueError(f"{self._where} has no token for {character!r}")
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; markers are left out."""
        with _tokenizing(f"{self._where} fails on tokens {list(tokens)}"):
            return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def token(self, marker: str) -> int | None:
        """Return the token of a marker."""
        token: int | None = self._tokenizer.token_to_id(marker)
        return token


PLAIN = (  # parts that are known to be harmless
    *("BPE", "ByteLevel", "Split", "Sequence", "Fuse", "TemplateProcessing", "Regex", "NFC"),
    *("NFD", "NFKC", "NFKD", "StripAccents", "Lowercase", "Prepend"),
)
OTHER = re.compile(rf'"type"\s*:\s*"(?!(?:{"|".join(PLAIN)})")')
MOST_MEMORY = 1 << 31  # bytes that a tokenizer may take while it is tried
MOST_SECONDS = 60


def _try_in_a_process(text: str, where: str) -> None:
    """Let a process of its own read a tokenizer that is no plain byte-pair encoding.

    The crate behind ``tokenizers`` ends its process on some files, asking for memory that they
    claim. A tokenizer that ends the other process is refused here.
    """
    if not OTHER.search(text):
        return
    code = (
        "import sys; from tokenizers import Tokenizer\n"
        "try:\n"
        f"    import resource; resource.setrlimit(resource.RLIMIT_AS, ({MOST_MEMORY},) * 2)\n"
        "except (ImportError, ValueError, OSError): pass\n"
        "try: Tokenizer.from_str(sys.stdin.read()).encode('a ')\n"
        "except BaseException as error: print(error)"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=text.encode("utf-8", "surrogatepass"),
            capture_output=True,
            timeout=MOST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{where} is no tokenizer: it takes over {MOST_SECONDS} s") from None
    if done.returncode:
        raise ValueError(f"{where} is no tokenizer: reading it ended a process")


@contextmanager
def _tokenizing(failure: str) -> Iterator[None]:
    """Make a ValueError of whatever the ``tokenizers`` package raises.

    It has no error class of its own; and where its Rust code gives up, on a file that says what it
    did not expect, it raises what is no Exception at all.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ValueError(f"{failure}: {error}") from None


class Characters:
    """The vocabulary of a model of our own."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def encode(self, text: str, *, typed: bool = False) -> list[int]:
        """Return the index of every character; an unknown one is a ValueError."""
        return [int(token) for token in self._vocabulary.encode(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the characters."""
        return self._vocabulary.decode(list(tokens))

    def token(self, marker: str) -> int | None:
        """Return the index, if the marker is one character."""
        token = self._vocabulary.characters.find(marker) if len(marker) == 1 else -1
        return None if token < 0 else token


def read_tokens(text: str, where: str) -> Tokens:
    """Return the tokenizer of a ``tokenizer.json``; one of single characters needs no package."""
    vocabulary = Vocabulary.of_tokenizer(text)
    return Characters(vocabulary) if vocabulary else Published(text, where)


class Bytes:
    """Tokens that are the bytes of UTF-8; what lies above 255 has no text."""

    def encode(self, text: str, *, typed: bool = False) -> list[int]:
        """Return the bytes."""
        return list(text.encode("utf-8", "surrogateescape"))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the characters of the bytes."""
        return bytes(token for token in tokens if token < 256).decode("utf-8", "replace")

    def token(self, marker: str) -> int | None:
        """Return the byte, if the marker is one."""
        return ord(marker) if len(marker) == 1 and marker.isascii() else None


class Numbers:
    """The tokens themselves, written as numbers with spaces between them."""

    def encode(self, text: str, *, typed: bool = False) -> list[int]:
        """Read the numbers; anything else is a ValueError."""
        words = text.replace(",", " ").split()
        wrong = next((w for w in words if not (w.isascii() and w.isdigit() and len(w) < 10)), None)
        if wrong is not None:
            raise ValueError(f"with --ids, a text is numbers of tokens, got {wrong!r}")
        return [int(word) for word in words]

    def decode(self, tokens: Sequence[int]) -> str:
        """Write the numbers."""
        return "".join(f"{token} " for token in tokens)

    def token(self, marker: str) -> int | None:
        """Return None: no marker is a number."""
        return None


class TextStream:
    """Text as tokens come, in whole characters.

    A character may be cut into several tokens. The beginning of one, at most three bytes, decodes
    to at most three U+FFFD: so many at the end of a text wait for what comes next.

    Examples
    --------
    >>> stream = TextStream(Bytes().decode)
    >>> [stream.push(byte) for byte in "aé".encode()]
    ['a', '', 'é']
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._context = 0  # tokens that are told: the first may look different without them
        self._told = 0  # characters of the others that are told

    def push(self, token: int) -> str:
        """Take a token; return the text that it completes, maybe none."""
        self._tokens.append(token)
        return self._take(len(self._tokens) - self._context >= WINDOW)

    def end(self) -> str:
        """Return what still waits, broken as it is."""
        return self._take(True)

    def _take(self, whole: bool) -> str:
        begin = len(self._decode(self._tokens[: self._context]))
        text = self._decode(self._tokens)[begin:]
        waiting = 0 if whole else min(3, len(text) - len(text.rstrip("\ufffd")))
        end = len(text) - waiting
        new = text[self._told : end]
        self._told = max(self._told, end)
        if not waiting:
            self._tokens = self._tokens[self._context :]
            self._context, self._told = len(self._tokens), 0
        return new


@dataclass(frozen=True)
class Turn:
    """How a chat is written: pieces around a message; a piece that is a marker is one token."""

    before: tuple[str, ...]  # {role} and {Role} are filled in
    after: tuple[str, ...]
    end: str  # the marker that ends an answer

    def message(self, tokens: Tokens, role: str, text: str) -> list[int]:
        """Return the tokens of a message, its end included."""
        pieces = [*self._pieces(self.before, role), (text.strip(), False)]
        return _join(tokens, [*pieces, *self._pieces(self.after, role)])

    def opening(self, tokens: Tokens) -> list[int]:
        """Return the tokens before an answer."""
        return _join(tokens, self._pieces(self.before, "assistant"))

    def closing(self, tokens: Tokens) -> list[int]:
        """Return the tokens after an answer, the one that ends it first."""
        return _join(tokens, self._pieces(self.after, "assistant"))

    def _pieces(self, pieces: Iterable[str], role: str) -> list[tuple[str, bool]]:
        """Fill in the role; say of each piece whether it is a marker."""
        return [
            (piece.format(role=role, Role=role.capitalize()), piece.startswith("<|"))
            for piece in pieces
        ]


def _join(tokens: Tokens, pieces: list[tuple[str, bool]]) -> list[int]:
    """Return the tokens of pieces; what lies between two markers is encoded as one text."""
    ids: list[int] = []
    for is_marker, group in groupby(pieces, key=itemgetter(1)):
        parts = [piece for piece, _ in group]
        if not is_marker:
            ids += tokens.encode("".join(parts), typed=True)
            continue
        for marker in parts:
            token = tokens.token(marker)
            if token is None:
                raise ValueError(f"the chat template needs {marker}, which the tokenizer has not")
            ids.append(token)
    return ids


TEMPLATES = {
    "bitnet": Turn(("{Role}: ",), ("<|eot_id|>",), "<|eot_id|>"),  # microsoft/bitnet-b1.58-2B-4T
    "llama3": Turn(
        ("<|start_header_id|>", "{role}", "<|end_header_id|>", "\n\n"),
        ("<|eot_id|>",),
        "<|eot_id|>",
    ),
    "chatml": Turn(("<|im_start|>", "{role}\n"), ("<|im_end|>", "\n"), "<|im_end|>"),
    "plain": Turn((), ("\n",), "\n"),  # for models without a template
}
MARKERS = {  # what tells a template apart, the first that fits
    "llama3": ("<|start_header_id|>",),
    "chatml": ("<|im_start|>",),
    "bitnet": ("capitalize", "<|eot_id|>"),
}


def chat_template(text: str, where: str) -> str | None:
    """Return the chat template that a tokenizer_config.json has, the default one of several."""
    template = checked_json(text.encode(), where).get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    return template if isinstance(template, str) and template else None


def template_name(text: str | None, where: str) -> str | None:
    """Name a chat template: one of `TEMPLATES`; None if there is none, a ValueError if another."""
    if not text:
        return None
    for name, markers in MARKERS.items():
        if all(marker in text for marker in markers):
            return name
    known = ", ".join(TEMPLATES)
    raise ValueError(f"{where} has another chat template than {known}: choose with --template")


def read_text(path: Path) -> str:
    """Read a file of UTF-8; one that is too large or none is a ValueError."""
    try:
        return read_whole(path, MOST).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: byte {error.start}") from None
