"""The meaning of a call that is no plain function of its arguments: classes, and their state.

Each takes the module that offers the name, and the arguments of the case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["PROTOCOLS"]


PROTOCOLS: dict[str, Callable[..., Any]] = {}
