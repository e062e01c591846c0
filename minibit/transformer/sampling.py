"""Sampling: a token from its logits and one number in [0, 1).

    p_i = exp((z_i - max z) / temperature),   of the k largest,   of those the fewest with top_p

Nothing here is random: where the number comes from, the caller decides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from minibit.base import integer, largest, number

__all__ = ["check_sampling", "sample"]


def sample(
    logits: ArrayLike,
    uniform: float,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> int:
    """Draw a token from its logits with one number in [0, 1): everything else is decided.

    At temperature 0: the largest logit, of equal ones the first. Above, in this order and in
    float64:

    1. `top_k`: keep the k largest logits.
    2. ``p_i = exp((z_i - max z) / temperature)``, not yet divided by its sum; 0 if not kept.
    3. `top_p`: of those kept, keep the fewest largest whose p sum to at least top_p times the sum
       of all kept.
    4. In the order of the vocabulary, the first kept token at which the running sum of p exceeds
       `uniform` times the sum of the kept.

    Equal logits are kept from the lowest index on. `logits` (vocab,) of minus infinity rule a token
    out; `uniform` lies in [0, 1), `temperature` is at least 0, `top_k` at least 1 (beyond the
    vocabulary it keeps all), and `top_p` above 0, at most 1. A TypeError or ValueError names what
    is out of range: a logit may be neither NaN nor plus infinity, nor all of them minus infinity.

    Examples
    --------
    >>> z = np.log([0.5, 0.3, 0.2])
    >>> [sample(z, u) for u in (0.0, 0.4, 0.6, 0.9)]
    [0, 0, 1, 2]
    >>> [sample(z, u, top_p=0.7) for u in (0.0, 0.4, 0.6, 0.9)]  # 0.5 / 0.8 and 0.3 / 0.8
    [0, 0, 0, 1]
    >>> sample(z, 0.99, temperature=0)
    0
    """
    check_sampling(temperature, top_k, top_p)
    z = np.asarray(logits)
    if z.ndim != 1 or not z.size or z.dtype.kind not in "fiu":
        raise ValueError(f"logits must be numbers of shape (vocab,), got {z.dtype} {z.shape}")
    uniform = number("uniform", uniform, "[0, 1)")
    best = int(np.argmax(z))  # the first of the largest, or the first NaN
    if not np.isfinite(z[best]):
        raise ValueError(f"logits must hold a finite largest number, got {z[best]} at {best}")
    if temperature == 0:
        return best
    z = z.astype(np.float64)
    if top_k is not None and top_k < z.size:
        z = np.where(largest(z, top_k), z, -np.inf)
    with np.errstate(over="ignore", under="ignore"):
        p = np.exp((z - z[best]) / temperature)  # (vocab,)
    if top_p is not None and top_p < 1:
        sums = np.cumsum(np.sort(p)[::-1])
        p[~largest(z, min(1 + int(np.searchsorted(sums, top_p * sums[-1])), z.size))] = 0
    sums = np.cumsum(p)
    # A number below 1 times the sum is below the sum also when rounded: there is such a token.
    return int(np.searchsorted(sums, uniform * sums[-1], side="right"))


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise a TypeError or ValueError that names what `sample` cannot take."""
    number("temperature", temperature, "[0, inf)")
    if top_k is not None:
        integer("top_k", top_k, 1)
    if top_p is not None:
        number("top_p", top_p, "(0, 1]")
