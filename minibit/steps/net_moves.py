"""The compact form of a model: the net moves from the seed's weights to the final ones.

A log tells how a model came to be; the compact form tells only what it is, given its plan. Each
layer is three subsets: which initial zeros are now +-1 (a sign bit each), which initial +-1 have
changed, and which of these went on to the other sign. Each is a count in gamma code (plus one) and
positions in the gap code of `minibit.steps.codes`. The last 8 bytes are the first 8 of the SHA-256
of the weights, so a changed byte, or another plan, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from minibit.noise_step import Params, Plan, digest, initial_params
from minibit.steps.codes import BitReader, BitWriter
from minibit.steps.file import DIGEST, LogError

__all__ = ["expand", "net_moves"]


def net_moves(plan: Plan, params: Mapping[str, NDArray[np.int8]]) -> bytes:
    """Code weights as what differs from the plan's initial ones; `expand` undoes it."""
    bits = BitWriter()

    def subset(chosen: NDArray[np.bool_]) -> None:
        where = np.flatnonzero(chosen)
        bits.gamma(where.size + 1)
        bits.subset(where.tolist(), chosen.size)

    for name, start in initial_params(plan).items():
        before, after = start.reshape(-1), params[name].reshape(-1)
        from_zero = after[before == 0]
        subset(from_zero != 0)
        bits.signs(from_zero[from_zero != 0])
        kept = before[before != 0] == after[before != 0]
        subset(~kept)
        subset(after[before != 0][~kept] != 0)
    return bits.payload() + bytes.fromhex(digest(params))[:DIGEST]


def expand(plan: Plan, data: bytes) -> Params:
    """Rebuild the weights from a log's plan and the data that `compact` returned.

    Raises
    ------
    LogError
        If the data are damaged or belong to another plan.

    Examples
    --------
    >>> plan = Plan("sampled", 0, ("w1",), ((2, 5),), 2**31, perturbations=4)
    >>> expand(plan, net_moves(plan, {"w1": np.ones((2, 5), np.int8)}))["w1"]
    array([[1, 1, 1, 1, 1],
           [1, 1, 1, 1, 1]], dtype=int8)
    """
    params = initial_params(plan)
    try:
        bits = BitReader(data[: max(0, len(data) - DIGEST)])

        def subset(size: int) -> list[int]:
            count = bits.gamma() - 1
            if count > size:
                raise ValueError(f"{count} of {size} weights cannot move")
            return bits.subset(count, size)

        for w in params.values():
            flat = w.reshape(-1)
            zeros, others = np.flatnonzero(flat == 0), np.flatnonzero(flat)
            moved = zeros[subset(zeros.size)]
            flat[moved] = bits.signs(moved.size)
            changed = others[subset(others.size)]
            through = changed[subset(changed.size)]
            turned = -flat[through]
            flat[changed] = 0
            flat[through] = turned
        bits.close()
    except ValueError as error:
        raise LogError(f"no compact model of this plan: {error}") from None
    if bytes.fromhex(digest(params))[:DIGEST] != data[-DIGEST:]:
        raise LogError("the compact model's digest does not fit: damaged, or of another plan")
    return params
