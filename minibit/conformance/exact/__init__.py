"""Expectations computed without the function under test: exact fractions and integers.

`EXACT` names, for each public function, an independent one that takes the same arguments and
returns a tuple. Nothing here imports a room of mathematics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minibit.conformance.exact.absmean import ABSMEAN
from minibit.conformance.exact.noise import NOISE

__all__ = ["EXACT"]

EXACT: dict[str, Callable[..., tuple[Any, ...]]] = {**ABSMEAN, **NOISE}
