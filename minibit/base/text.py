"""Text from strangers, made safe to show: a name in a file may steer a terminal, or be endless."""

from __future__ import annotations

from unicodedata import bidirectional, category

MOST = 100  # characters that an error shows of a value
STEERING = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of surrogates, ends of lines
TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def printable(text: object, keep: str = "") -> str:
    r"""Return text with every character that steers a terminal written as its escape.

    Control characters, ends of lines, changes of direction and halves of surrogates become
    ``\x1b``, ``\u202e``, ... Characters that a language writes with stay, its joiners and spaces
    too; so do the characters of `keep`, such as a line's end.

    Examples
    --------
    >>> print(printable("Grüße \x1b[2J"))
    Grüße \x1b[2J
    """
    line = str(text)
    if line.isprintable():
        return line
    return "".join(c.encode("unicode_escape").decode() if _steers(c, keep) else c for c in line)


def _steers(c: str, keep: str) -> bool:
    """Whether a terminal may act on a character instead of showing it."""
    return c not in keep and (category(c) in STEERING or bidirectional(c) in TURNING)


def shown(value: object) -> str:
    r"""Return a value of a file for an error: one line of ASCII, quoted, of bounded length.

    Examples
    --------
    >>> print(shown(["é"]), shown("x" * 1000)[-24:])
    ['\xe9'] xxx... (1002 characters)
    """
    line = ascii(value)
    return line if len(line) <= MOST else f"{line[:80]}... ({len(line)} characters)"
