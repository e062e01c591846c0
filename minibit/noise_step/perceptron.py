"""The paper's network as a model: `minibit.layers.mlp` with its constants.

An evaluation of the weights needs these constants, too: `minibit.training` writes them into the
header of every log.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minibit.base import number, one_of
from minibit.layers import ACTIVATIONS, mlp, ternary_linear

__all__ = ["MLP"]

WIDEST = 2**15 - 1  # units of a hidden layer: the kernels count their tangents in int16

Params = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class MLP:
    """The paper's network as a model function: `minibit.layers.mlp` with its constants filled in.

    ``logits = logit_scale * mlp(input_scale * x + input_offset)``. Called, it is a pure function of
    ``(params, x)`` like any other model; `NoiseStep` knows a fast path for it.

    Attributes
    ----------
    logit_scale, input_scale, input_offset, eps : float
    activations : "float" or "int8"
        What the layers hand on, see `minibit.layers.mlp`: with ``"int8"`` the products between two
        hidden layers are of integers, and exact.
    """

    logit_scale: float = 1.0
    input_scale: float = 1.0
    input_offset: float = 0.0
    eps: float = 1e-5
    activations: Literal["float", "int8"] = "float"

    def __post_init__(self) -> None:
        """Refuse constants that leave no model."""
        number("logit_scale", self.logit_scale, "(0, inf)")
        number("eps", self.eps, "(0, inf)")
        one_of("activations", self.activations, ACTIVATIONS)

    def __call__(
        self, params: Params, x: Any, linear: Callable[[Any, Any], Any] = ternary_linear
    ) -> Any:
        """Return the logits, ``(batch, classes)``, of inputs ``(batch, n_in)``."""
        x = self.input_scale * as_float(x) + self.input_offset
        return mlp(
            params,
            x,
            logit_scale=self.logit_scale,
            eps=self.eps,
            linear=linear,
            activations=self.activations,
        )

    def check(self, params: Params) -> None:
        """Refuse parameters that are no MLP, or not in the order of its layers."""
        names = [f"w{layer + 1}" for layer in range(len(params))]
        if list(params) != names:
            raise ValueError(f"params of an MLP must be {names}, in order, got {list(params)}")
        shapes = [np.shape(w) for w in params.values()]
        chained = all(len(s) == 2 and min(s) > 0 for s in shapes)
        if chained and any(s[0] > WIDEST for s in shapes[:-1]):
            raise ValueError(f"params of an MLP may have hidden layers of {WIDEST}, got {shapes}")
        if not chained or any(a[0] != b[1] for a, b in itertools.pairwise(shapes)):
            raise ValueError(
                f"params of an MLP must be (n_out, n_in), each n_in the n_out before, got {shapes}"
            )


def as_float(x: Any) -> Any:
    """Pixels as float32; floats, and duals, as they are."""
    return x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype.kind in "ui" else x
