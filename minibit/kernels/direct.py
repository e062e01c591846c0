"""The shortest way into compiled code, for products that take less time than a call.

A Numba function looks at the types of its arguments, picks what it compiled for them, and calls
that: half a microsecond for three arrays. Who has checked the types already can call what was
compiled, and saves a third of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["direct"]


def direct(kernel: Any, *arguments: object) -> Callable[..., Any]:
    """Call a kernel once, and return what it compiled: **no type is checked from then on**.

    The kernel must have been compiled for one choice of types only. Where this version of Numba
    keeps its code elsewhere, the kernel itself is returned.
    """
    kernel(*arguments)
    compiled = list(getattr(kernel, "overloads", {}).values())
    entry: Callable[..., Any] = getattr(compiled[0], "entry_point", kernel) if compiled else kernel
    return entry if len(compiled) == 1 else kernel
