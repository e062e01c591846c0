"""Expectations computed without the function under test: exact fractions and integers.

`EXACT` names, for each public function, an independent one that takes the same arguments and
returns a tuple. Nothing here imports a room of mathematics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minibit.conformance.exact import absmean

__all__ = ["EXACT"]

EXACT: dict[str, Callable[..., tuple[Any, ...]]] = {
    name: getattr(module, name)
    for module, names in (
        (
            absmean,
            "absmean_quantize absmax_quantize binary_quantize fake_quant_weight "
            "fake_quant_activation",
        ),
    )
    for name in names.split()
}
