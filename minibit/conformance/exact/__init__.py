"""Expectations computed without the function under test: exact fractions and integers.

`EXACT` names, for each public function, an independent one that takes the same arguments and
returns a tuple. Nothing here imports a room of mathematics: of `PLAIN`, which stands for the
package, a matrix is its codes and its scale.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from minibit.conformance.exact.absmean import ABSMEAN
from minibit.conformance.exact.checkpoint import CHECKPOINT
from minibit.conformance.exact.costs import COSTS
from minibit.conformance.exact.counting import COUNTING
from minibit.conformance.exact.dual_methods import METHODS
from minibit.conformance.exact.gguf import Reader
from minibit.conformance.exact.histories import HISTORIES
from minibit.conformance.exact.lora import LORA, Layer
from minibit.conformance.exact.matmul import MATMUL
from minibit.conformance.exact.nf4 import NF4, PlainNF4
from minibit.conformance.exact.noise import NOISE
from minibit.conformance.exact.plans import PLANS
from minibit.conformance.exact.runs import RUNS
from minibit.conformance.exact.steps import Log
from minibit.conformance.exact.ternary import TERNARY
from minibit.conformance.exact.topk import TOPK
from minibit.conformance.exact.transformer import TRANSFORMER, Config, Model, bit_linear, product

__all__ = ["EXACT", "PLAIN"]

EXACT: dict[str, Callable[..., tuple[Any, ...]]] = {
    **ABSMEAN,
    **CHECKPOINT,
    **COSTS,
    **COUNTING,
    **HISTORIES,
    **LORA,
    **MATMUL,
    **METHODS,
    **NF4,
    **NOISE,
    "StepLog": Log().replay,
    "checkpoint.open_gguf": lambda file: Reader().read(file),
    **PLANS,
    **RUNS,
    **TERNARY,
    **TOPK,
    **TRANSFORMER,
}


class PlainMatrix:
    """A ternary matrix that is not packed; `scale` is a number, or (n_out, groups)."""

    def __init__(self, codes: Any, scale: Any = 1.0) -> None:
        self._codes, self.scale = np.asarray(codes), np.float32(scale)

    @classmethod
    def from_codes(cls, codes: Any, scale: Any = 1.0) -> PlainMatrix:
        """Keep codes as they are."""
        return cls(codes, scale)

    def codes(self) -> Any:
        """Return the codes."""
        return self._codes


PLAIN = SimpleNamespace(
    BitNetConfig=Config,
    BitNetModel=Model,
    SampledStep=SimpleNamespace,
    UnitsStep=SimpleNamespace,
    mlp=None,  # an argument that no exact computation calls
    LoRALinear=Layer,
    TernaryMatrix=PlainMatrix,
    bit_linear=bit_linear,
    float_linear=product,
    packed_linear=bit_linear,
    TernaryColumns=PlainMatrix,
    quantize_nf4=PlainNF4,
)
