"""The scaling law of sparsely activated models: how much sparsity is best, and how sure that is.

    L(N, S) = E + A(S) / N^alpha,      A(S) = B + C exp(beta / (1 - S))

N counts the parameters, S is the share of them that a token leaves out. For a number of active
parameters ``N_a = N (1 - S)``, which cost time, more sparsity means a larger model, and the loss is
least where ``alpha A(S) = (1 - S) A'(S)``: near ``1 - beta / alpha`` if B is small, whatever E, C
and N_a are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.base import install, number, refuse_entries
from minibit.tape import value_and_grad

__all__ = [
    "PUBLISHED",
    "LawFit",
    "fit_scaling_law",
    "optimal_interval",
    "optimal_sparsity",
    "scaling_law",
]

PUBLISHED = {"E": 1.86, "B": 0.01, "C": 1.89, "alpha": 0.10, "beta": 0.05}
"""Constants for full precision, as printed: two decimals each (arXiv 2407.10969v3)."""

NAMES = ("E", "B", "C", "alpha", "beta")


def scaling_law(
    N: ArrayLike,
    S: ArrayLike,
    *,
    E: float = PUBLISHED["E"],
    B: float = PUBLISHED["B"],
    C: float = PUBLISHED["C"],
    alpha: float = PUBLISHED["alpha"],
    beta: float = PUBLISHED["beta"],
    active: bool = False,
) -> Any:
    """Predict the loss of a model by its size and sparsity: ``E + A(S) / N^alpha``, nats per token.

    ``A(S) = B + C exp(beta / (1 - S))``.

    Parameters
    ----------
    N : array or number
        Parameters; above 0, or a ValueError says so.
    S : array or number
        Share of zeros among activations, from 0 to below 1; broadcasts with N.
    E, B, C, alpha, beta : float
        By default the published ones, for full precision.
    active : bool
        Whether N counts active parameters: the model then has ``N / (1 - S)``.

    Notes
    -----
    Q-Sparse (arXiv 2407.10969). Fitted to models of 300M to 7B weights on their texts: it says
    nothing of other texts.

    Examples
    --------
    >>> round(float(scaling_law(7e9, 0.4)), 3)
    2.074
    >>> bool(scaling_law(1e9, 0.5, active=True) < scaling_law(1e9, 0.0, active=True))
    True
    """
    N, S = np.asarray(N, float), np.asarray(S, float)
    refuse_entries("N", N, ~(N > 0), "be above 0")
    refuse_entries("S", S, ~((S >= 0) & (S < 1)), "lie in [0, 1)")
    total = N / (1 - S) if active else N
    with np.errstate(over="ignore"):
        loss = E + (B + C * np.exp(beta / (1 - S))) / total**alpha
    return loss if loss.ndim else float(loss)


def optimal_sparsity(
    alpha: float = PUBLISHED["alpha"],
    beta: float = PUBLISHED["beta"],
    B: float = PUBLISHED["B"],
    C: float = PUBLISHED["C"],
) -> float:
    """Find the sparsity of least loss, from 0 to below 1, for given active parameters.

    Where ``A(S) (1 - S)^alpha`` is least: ``alpha (B + C e^u) = C u e^u`` with
    ``u = beta / (1 - S)``; 0 if the loss grows from there on. alpha, beta and C are above 0, B is
    at least 0, or a ValueError says so; E does not matter.

    Notes
    -----
    The right side less the left grows with u, so there is one root, found by bisection. With B = 0
    it is ``u = alpha``, that is ``S = 1 - beta / alpha``.

    Examples
    --------
    >>> f"{optimal_sparsity():.3f}"  # the published constants; the paper says 0.4558
    '0.502'
    >>> f"{optimal_sparsity(alpha=0.1, beta=0.05, B=0.0, C=1.0):.3f}"
    '0.500'
    """
    for name, value in (("alpha", alpha), ("beta", beta), ("C", C)):
        number(name, value, "(0, inf)")
    number("B", B, "[0, inf)")
    low, high = 0.0, alpha * (1 + B / C)  # u - alpha - alpha B e^-u / C is below, and above, 0
    for _ in range(200):
        u = (low + high) / 2
        low, high = (u, high) if u < alpha * (1 + B / C * math.exp(-u)) else (low, u)
    return max(0.0, 1 - beta / high)


def optimal_interval(
    digits: int = 2,
    *,
    alpha: float = PUBLISHED["alpha"],
    beta: float = PUBLISHED["beta"],
    B: float = PUBLISHED["B"],
    C: float = PUBLISHED["C"],
) -> tuple[float, float]:
    """Bound the best sparsity, given that constants were printed to so many decimals.

    Each of alpha, beta, B and C may be half a unit of its last of `digits` decimals more or less.
    `optimal_sparsity` grows with alpha and B, and falls with beta and C, so two corners bound it.

    Examples
    --------
    >>> low, high = optimal_interval()
    >>> f"{low:.2f} to {high:.2f}"
    '0.42 to 0.57'
    """
    half = 0.5 * 10.0**-digits
    least = optimal_sparsity(alpha - half, beta + half, max(B - half, 0.0), C + half)
    most = optimal_sparsity(alpha + half, beta - half, B + half, C - half)
    return least, most


@dataclass(frozen=True)
class LawFit:
    """A scaling law fitted to losses.

    `constants` are E, B, C, alpha and beta; `objective` is the mean Huber loss of the logarithm
    that was reached; `samples` are constants fitted to data drawn again with replacement, which
    tell how sure the fit is.

    Examples
    --------
    >>> fit = LawFit({"E": 1.0, "B": 0.0, "C": 2.0, "alpha": 0.2, "beta": 0.1}, 0.0)
    >>> fit.optimal_sparsity
    0.5
    """

    constants: dict[str, float]
    objective: float
    samples: tuple[dict[str, float], ...] = ()

    @property
    def optimal_sparsity(self) -> float:
        """Return the best sparsity for a given number of active parameters."""
        return _best(self.constants)

    def interval(self, name: str, share: float = 0.9) -> tuple[float, float]:
        """Return the range of the middle `share` of the samples of a constant or of the optimum.

        `name` is that of the constant, or ``"optimal_sparsity"``. Without samples: a ValueError.
        """
        values = [_best(s) if name == "optimal_sparsity" else s[name] for s in self.samples]
        if not values:
            raise ValueError("the fit has no samples: ask for them with `resamples`")
        low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
        return float(low), float(high)


def fit_scaling_law(
    N: ArrayLike,
    S: ArrayLike,
    losses: ArrayLike,
    *,
    delta: float = 1e-3,
    resamples: int = 0,
    seed: int = 0,
) -> LawFit:
    """Fit the law as the paper does: L-BFGS on the Huber loss of the logarithm.

    ``min mean huber_delta(log L(N, S) - log loss)`` over the logarithms of E, B, C, alpha and beta,
    which keeps them above 0, from several starts.

    Parameters
    ----------
    N, S, losses : arrays, shape (runs,)
        Parameters, sparsity and final loss of each run, at least as many as constants; all finite,
        N and losses above 0. A ValueError names what is not.
    delta : float
        Where the Huber loss turns from a square to a line: 1e-3 as published.
    resamples, seed : int
        How many times to fit to runs drawn with replacement, and the seed of that draw.

    Notes
    -----
    Q-Sparse (arXiv 2407.10969), after Hoffmann et al. (arXiv 2203.15556). The gradient is that of
    `minibit.tape`. Needs SciPy: a ModuleNotFoundError names the extra that brings it.

    Examples
    --------
    >>> N, S = np.repeat([1e5, 1e6, 1e7], 4), np.tile([0.0, 0.3, 0.6, 0.8], 3)
    >>> losses = scaling_law(N, S, E=1.0, B=0.1, C=9.0, alpha=0.3, beta=0.1)
    >>> f"{fit_scaling_law(N, S, losses).optimal_sparsity:.2f}"
    '0.67'
    """
    N, S, losses = (np.asarray(a, float).reshape(-1) for a in (N, S, losses))
    if not len(N) == len(S) == len(losses):
        raise ValueError(f"N, S and losses must be as long, got {len(N)}, {len(S)}, {len(losses)}")
    if len(N) < len(NAMES):
        raise ValueError(f"losses must be {len(NAMES)} at least, as many as constants: {len(N)}")
    scaling_law(N, S)  # checks both
    refuse_entries("losses", losses, ~((losses > 0) & np.isfinite(losses)), "lie in (0, inf)")
    rng, runs = np.random.default_rng(seed), np.arange(len(N))
    least = float(losses.min())
    grid = itertools.product((0.3, 0.8), (0.1, 0.3), (0.03, 0.2))
    starts = [np.log([share * least, 0.1, 3.0, alpha, beta]) for share, alpha, beta in grid]
    constants, objective = _minimise(N, S, losses, delta, starts)
    start = np.log([max(constants[name], 1e-6) for name in NAMES])
    samples = []
    for _ in range(resamples):
        drawn = rng.choice(runs, len(runs))
        samples.append(_minimise(N[drawn], S[drawn], losses[drawn], delta, [start])[0])
    return LawFit(constants, objective, tuple(samples))


def _minimise(
    N: NDArray[np.float64],
    S: NDArray[np.float64],
    losses: NDArray[np.float64],
    delta: float,
    starts: Sequence[NDArray[np.float64]],
) -> tuple[dict[str, float], float]:
    """Return the constants of the best of several descents, and its objective."""
    try:
        from scipy.optimize import minimize
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the fit needs SciPy: {install('app')}", name="scipy") from error

    log_n, rest, log_loss = np.log(N), 1 / (1 - S), np.log(losses)

    def objective(theta: Any) -> Any:
        e, b, c, alpha, beta = (np.exp(theta[i]) for i in range(5))
        law = e + (b + c * np.exp(beta * rest)) * np.exp(-alpha * log_n)  # (runs,)
        error = np.abs(np.log(law) - log_loss)
        square = np.minimum(error, delta)
        return np.mean(square * (error - square / 2)) / delta**2

    slope = value_and_grad(objective)
    box = [(math.log(1e-6), math.log(1e4))] * 3 + [(math.log(1e-3), math.log(3.0))] * 2
    options: Any = {"jac": True, "method": "L-BFGS-B", "options": {"maxiter": 3000}}
    descents = [minimize(slope, start, bounds=box, **options) for start in starts]
    best = min(descents, key=lambda descent: float(descent.fun))
    constants = dict(zip(NAMES, (float(c) for c in np.exp(best.x)), strict=True))
    return constants, float(best.fun) * delta**2


def _best(constants: dict[str, float]) -> float:
    """Return the best sparsity by constants."""
    return optimal_sparsity(**{name: constants[name] for name in ("alpha", "beta", "B", "C")})
