"""One step against the gradient: shortened if it is long, then AdamW, betas (0.9, 0.95)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from minibit.kernels.threads import run
from minibit.language.losses import shares
from minibit.tape import Adam, global_norm

__all__ = ["Optimizer"]


class Optimizer:
    """AdamW with betas 0.9 and 0.95, a share of the parameters on every thread.

    `params` is a mapping of float arrays, at the start and after each step; `steps` counts these.
    The result does not depend on `threads`: every parameter moves by itself.

    Examples
    --------
    >>> optimizer = Optimizer({"w": np.ones(2), "b": np.ones(1)}, threads=2)
    >>> optimizer.step({"w": np.ones(2), "b": np.ones(1)}, lr=0.1, weight_decay=0.0)["b"].round(3)
    array([0.9])
    """

    def __init__(self, params: Mapping[str, Any], *, threads: int = 1) -> None:
        self.params = dict(params)
        self.steps = 0
        self._shares = shares(params, min(threads, len(params)))
        self._parts = [
            Adam({name: params[name] for name in names}, betas=(0.9, 0.95))
            for names in self._shares
        ]

    def step(
        self, gradient: Mapping[str, Any], lr: float, weight_decay: float, clip: float = math.inf
    ) -> dict[str, Any]:
        """Shorten the gradient to length `clip`, move against it, return the new parameters.

        A ValueError names a parameter whose gradient holds NaN or infinity; then nothing moves.
        """
        squares = [0.0] * len(self._parts)

        def measure(i: int) -> bool:
            squares[i] = global_norm([gradient[name] for name in self._shares[i]]) ** 2
            return True

        def move(i: int) -> bool:
            mine = {name: gradient[name] for name in self._shares[i]}
            if shrink < 1:
                mine = {name: g * g.dtype.type(shrink) for name, g in mine.items()}
            self._parts[i].step(mine, lr, weight_decay)
            return True

        everyone = range(len(self._parts))
        run([partial(measure, i) for i in everyone])
        length = math.sqrt(sum(squares))
        if not math.isfinite(length):
            for name in self.params:
                if not np.isfinite(gradient[name]).all():
                    where = f"the gradient of {name!r} holds NaN or infinity at step {self.steps}"
                    raise ValueError(f"{where}; nothing was moved. A lower learning rate may help")
        shrink = clip / length if length > clip else 1.0
        run([partial(move, i) for i in everyone])
        moved = {name: w for part in self._parts for name, w in part.params.items()}
        self.params = {name: moved[name] for name in self.params}
        self.steps += 1
        return self.params
