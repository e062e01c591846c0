"""Text of strangers, as it may be shown: a name in a file may steer a terminal, or be endless."""

from __future__ import annotations

__all__ = ["printable", "shown"]

MOST = 100  # characters that an error shows of a value


def printable(text: object, keep: str = "") -> str:
    r"""Return text with every character that is not for reading written as its escape.

    Letters, digits, marks and spaces of all languages stay. Control characters, changes of
    direction, invisible characters and halves of surrogates become ``\x1b``, ``\u202e``, ...

    Parameters
    ----------
    text : object
        Turned into a string first.
    keep : str
        Characters that stay all the same, such as a line's end.

    Examples
    --------
    >>> print(printable("Grüße \x1b[2J"))
    Grüße \x1b[2J
    """
    line = str(text)
    if line.isprintable():
        return line
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in line
    )


def shown(value: object) -> str:
    r"""Return a value of a file for an error: one line of ASCII, quoted, of bounded length.

    Examples
    --------
    >>> print(shown(["é"]), shown("x" * 1000)[-24:])
    ['\xe9'] xxx... (1002 characters)
    """
    line = ascii(value)
    return line if len(line) <= MOST else f"{line[:80]}... ({len(line)} characters)"
