"""Adam, and the schedules of BitNet b1.58's recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer, number, real_numbers
from minibit.dual import Tree, leaves, map_tree, zip_trees
from minibit.kernels import compiled

FloatArray = NDArray[Any]

TINY = 2.0**-126  # least eps: the least number that float32 holds in full
SMALLEST = 1e-30  # sum of squares below which float32 may have lost some


class Adam:
    """Adam with decoupled weight decay: two running means for every parameter.

        m <- beta1 m + (1 - beta1) g               running mean of the gradient
        v <- beta2 v + (1 - beta2) g^2             and of its square
        p <- (1 - lr decay) p - lr m' / (sqrt(v') + eps)

    with m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t), which undo the start at 0.

    Parameters
    ----------
    params : tree of float32 or float64 arrays
        Another type is a TypeError; None is held constant. Never written to: each step returns new
        arrays. `steps` counts the steps taken.
    lr : float
        Learning rate; `step` takes another, too. A number out of range is a ValueError.
    betas : pair of float, in [0, 1)
        Memory of the mean and of the mean square: about ``1 / (1 - beta)`` steps.
    eps : float, at least 2**-126
        Added to the root; a parameter whose gradient was always 0 does not move.
    weight_decay : float, at least 0
        Share of a parameter that a step takes away, per unit of `lr`.

    Notes
    -----
    All arithmetic is in the type of each parameter. A NaN or an infinity in a gradient spoils its
    own entry for good, and no other; one whose square overflows (1e20 in float32) makes its entry
    stand still from then on. The compiled step and the plain one agree to the bit. Source: Kingma
    and Ba, arXiv 1412.6980, algorithm 1; Loshchilov and Hutter, arXiv 1711.05101, algorithm 2.

    Examples
    --------
    >>> adam = Adam({"w": np.array([1.0, -2.0])}, lr=0.1)
    >>> adam.step({"w": np.array([0.3, -50.0])})["w"].round(6)  # the first step is lr * sign(g)
    array([ 0.9, -1.9])
    """

    def __init__(
        self,
        params: Tree,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        beta1, beta2 = (number(f"betas[{i}]", beta, "[0, 1)") for i, beta in enumerate(betas))
        self.betas = beta1, beta2
        self.lr = number("lr", lr, "[0, inf)")
        self.eps = number("eps", eps, f"[{TINY}, inf)")
        self.weight_decay = number("weight_decay", weight_decay, "[0, inf)")
        self.steps = 0
        self._now: list[FloatArray] = []

        def index(p: Any, _: Any, name: str) -> int | None:
            if p is None:
                return None
            kind = p.dtype if hasattr(p, "dtype") else type(p).__name__
            if kind not in (np.float32, np.float64, "float"):
                takes = "be float32 or float64, or None to stay constant"
                raise TypeError(f"{name} must {takes}, got {kind}")
            self._now.append(np.asarray(p, order="C"))
            return len(self._now) - 1

        self._indices = zip_trees(index, params, params, "params")
        self._means = [np.zeros(p.size, p.dtype) for p in self._now]
        self._squares = [np.zeros(p.size, p.dtype) for p in self._now]

    @property
    def params(self) -> Tree:
        """The parameters now."""
        return map_tree(lambda i: None if i is None else self._now[i], self._indices)

    @property
    def nbytes(self) -> int:
        """Memory of the two running means."""
        return sum(state.nbytes for state in self._means + self._squares)

    def step(self, grads: Tree, lr: float | None = None, weight_decay: float | None = None) -> Tree:
        """Move against a gradient, and return the new parameters.

        `grads` has the structure and shapes of the parameters; None instead of an array or a
        subtree leaves that as it is, means and all. A schedule gives `lr` and `weight_decay`. On a
        TypeError or ValueError, for what does not fit or is out of range, nothing has moved.
        """
        gradients, constants = self._begin(grads, lr, weight_decay)
        move = adam_move()
        for i, g in gradients:
            p = self._now[i]
            out = np.empty_like(p)
            arrays = (p, g, self._means[i], self._squares[i], out)
            move(*(a.reshape(-1) for a in arrays), np.array(constants, p.dtype))
            self._now[i] = out
        return self.params

    def _begin(
        self, grads: Tree, lr: float | None, weight_decay: float | None
    ) -> tuple[list[tuple[int, FloatArray]], tuple[float, ...]]:
        """Check a step and count it; return (index, gradient) pairs and a move's constants."""
        lr = number("lr", self.lr if lr is None else lr, "[0, inf)")
        decay = self.weight_decay if weight_decay is None else weight_decay
        decay = number("weight_decay", decay, "[0, inf)")
        gradients: list[tuple[int, FloatArray]] = []

        def collect(i: int | None, g: Any, name: str) -> None:
            if i is None:
                raise TypeError(f"{name} must be None, as its parameter is")
            p, g = self._now[i], np.asarray(g)
            real_numbers(name, g, p.shape)
            gradients.append((i, np.asarray(g, p.dtype, order="C")))

        zip_trees(collect, self._indices, grads, "grads")
        self._check()
        self.steps += 1
        (beta1, beta2), t = self.betas, self.steps
        constants = (
            beta1, 1 - beta1, beta2, 1 - beta2,
            1 - lr * decay, lr / (1 - beta1**t), math.sqrt(1 - beta2**t), self.eps,
        )  # fmt: skip
        return gradients, constants

    def _check(self) -> None:
        """Check that the means can be moved; an optimizer that keeps them elsewhere says how."""


def adam_move() -> Callable[..., None]:
    """Pick the compiled pass where there is one."""
    if not compiled():
        return adam_step_reference
    from minibit.kernels.adam import adam_step

    move: Callable[..., None] = adam_step
    return move


def adam_step_reference(
    p: FloatArray,
    g: FloatArray,
    m: FloatArray,
    v: FloatArray,
    out: FloatArray,
    constants: FloatArray,
) -> None:
    """Write Adam's new parameters to `out`, and move the means `m` and `v` on in place.

    All are of one type, (size,), and constants, (8,), are beta1, 1 - beta1, beta2, 1 - beta2,
    1 - lr decay, lr / (1 - beta1^t), sqrt(1 - beta2^t) and eps.
    """
    keep1, take1, keep2, take2, shrink, rate, root, eps = constants
    m[...] = keep1 * m + take1 * g
    v[...] = keep2 * v + take2 * (g * g)
    out[...] = shrink * p - rate * (m / (np.sqrt(v) / root + eps))


def global_norm(tree: Tree) -> float:
    """Length of all arrays of a tree, taken as one vector: ``sqrt(sum of squares)``.

    None counts as nothing. Where squares overflow or vanish, the arrays are scaled before. An array
    that does not hold real numbers is a TypeError.

    Examples
    --------
    >>> global_norm({"a": np.array([3.0]), "b": [np.array([[0.0, 4.0]])]})
    5.0
    """
    arrays = [_flat(x) for x in leaves(tree) if x is not None]
    with np.errstate(over="ignore", under="ignore"):
        total = sum(float(np.dot(x, x)) for x in arrays)
    if SMALLEST < total < math.inf:
        return math.sqrt(total)
    largest = float(np.max([np.max(np.abs(x), initial=0) for x in arrays], initial=0))
    if largest == 0 or not math.isfinite(largest):
        return largest
    with np.errstate(under="ignore"):
        total = sum(float(np.sum(np.square(x.astype(np.float64) / largest))) for x in arrays)
    return largest * math.sqrt(total)


def _flat(x: Any) -> FloatArray:
    """Lay an array out in a row; one that is neither float32 nor float64 becomes float64."""
    x = np.asarray(x)
    real_numbers("a gradient", x, x.shape)
    flat: FloatArray = np.ravel(x, order="K")
    return flat if flat.dtype in (np.float32, np.float64) else flat.astype(np.float64)


def clip_by_global_norm(grads: Tree, limit: float) -> Tree:
    """Shorten a gradient to a length of `limit`, if it is longer; keep its direction.

        g <- g min(1, limit / |g|)

    Shapes and types stay; `grads` itself comes back if it is short enough. None stays None. A
    gradient that holds a NaN becomes NaN throughout, one with an infinity NaN there and 0
    elsewhere: neither has a direction. An array that is not of floats is a TypeError, as integers
    cannot be shortened; a `limit` that is not above 0, a ValueError.

    Examples
    --------
    >>> clip_by_global_norm([np.array([30.0, 40.0])], 1.0)
    [array([0.6, 0.8])]
    """
    if not limit > 0:
        raise ValueError(f"limit must be above 0, got {limit}")
    for g in leaves(grads):
        kind = g.dtype if hasattr(g, "dtype") else type(g).__name__
        if g is not None and getattr(kind, "kind", "") != "f":
            raise TypeError(f"grads must be float arrays, got {kind}")
    norm = global_norm(grads)
    if norm <= limit:
        return grads
    with np.errstate(invalid="ignore"):
        return map_tree(lambda g: None if g is None else g * g.dtype.type(limit / norm), grads)


def two_stage(step: int, steps: int, peak: float, second: float, warmup: int = 0) -> float:
    """Learning rate of the b1.58 recipe: a linear fall to 0, from a lower peak after half-way.

        lr = (peak if step < steps / 2 else second) (1 - step / steps) min(1, (step + 1) / warmup)

    The first step is 0; ``step`` beyond [0, steps], or 0 `steps`, is a ValueError. The published
    model of 700M weights has the peaks 1.5e-3 and 1e-3, the recipe a `warmup` of 375 steps.
    Source: "The Era of 1-bit LLMs: Training Tips, Code and FAQ" (microsoft/unilm).

    Examples
    --------
    >>> [round(two_stage(step, 8, 1.6e-3, 1e-3), 6) for step in (0, 3, 4, 7)]
    [0.0016, 0.001, 0.0005, 0.000125]
    """
    integer("step", step, 0, integer("steps", steps, 1))
    rate = (peak if 2 * step < steps else second) * (1 - step / steps)
    return rate * min(1.0, (step + 1) / warmup) if warmup > 0 else rate


def two_stage_weight_decay(step: int, steps: int, decay: float = 0.1) -> float:
    """Weight decay of the b1.58 recipe: `decay` in the first half of the steps, then 0.

    Source, and raises, as `two_stage`.

    Examples
    --------
    >>> [two_stage_weight_decay(step, 4) for step in range(4)]
    [0.1, 0.1, 0.0, 0.0]
    """
    integer("step", step, 0, integer("steps", steps, 1))
    return decay if 2 * step < steps else 0.0
