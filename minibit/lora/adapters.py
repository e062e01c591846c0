"""LoRA: a matrix that stays as it is, and beside it a product of two thin ones that learns.

Training moves ``r (n_in + n_out)`` numbers instead of ``n_in n_out``, so that gradients and
optimizer state are small; B begins at zero, so that nothing changes before the first step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer, last_axis, number
from minibit.dual import stop_gradient
from minibit.lora.frozen import Frozen, floats_of, frozen_linear, plain_linear
from minibit.nf4 import NF4Tensor
from minibit.noise import ADAPTERS, DROPOUT, uniform
from minibit.ternary import TernaryMatrix
from minibit.transformer import Linear, float_linear

__all__ = ["LoRALinear", "init_adapters", "lora_linear", "with_adapters"]

Array = Any  # an ndarray, or a Dual, which behaves like one


@dataclass(frozen=True, eq=False, repr=False)
class LoRALinear:
    """A frozen matrix and its adapter: in the place of a weight, something to multiply by.

    ``y = base(x) + scaling (dropout(x) A^T) B^T``,  ``base(x) = x W^T``

    W is frozen: float, NF4 (that is QLoRA), or b1.58, which is multiplied as its model does. A and
    B are trained, and with DoRA a `magnitude` m: both terms are then multiplied by
    ``m / ||W + scaling B A||``, where the norms of the rows count as constants for the derivative.
    Parts that do not fit one another are a TypeError or ValueError that names the attribute.

    Attributes
    ----------
    base : float array, NF4Tensor or TernaryMatrix, shape (n_out, n_in)
    A, B : float arrays or duals, shapes (r, n_in) and (n_out, r)
    alpha : float
        Above 0; what B A is multiplied by before it is divided by the rank (or its root).
    rank_stabilized : bool
        ``alpha / sqrt(r)``, which keeps the size of a step independent of r.
    dropout : float, 0 to below 1
        Share of the adapter's inputs that training sets to zero; the others grow by
        ``1 / (1 - dropout)``.
    lane : int
        Number of the matrix, so that each draws zeros of its own.
    magnitude : float array, shape (n_out,), optional
        DoRA's m.
    linear : callable (x, w), optional
        What multiplies by a float base, `bit_linear` for one that its model quantises at each use;
        by default the base is multiplied as it is. A packed base takes `plain_linear` alone, if x
        is not to be quantised for a `TernaryMatrix`.

    Notes
    -----
    Source: Hu et al., arXiv 2106.09685; with an NF4 base Dettmers et al., arXiv 2305.14314;
    rank-stabilised Kalajdzievski, arXiv 2312.03732; DoRA Liu et al., arXiv 2402.09353.

    Examples
    --------
    >>> base = np.float32([[1, 0], [0, 1], [1, 1]])  # (n_out, n_in)
    >>> layer = LoRALinear(base, A=np.float32([[1, -1]]), B=np.float32([[0], [0], [3]]), alpha=2)
    >>> layer(np.float32([[5, 4]]))  # 5 - 4, times 3, times 2 / 1: added to the last output
    array([[ 5.,  4., 15.]], dtype=float32)
    >>> layer.shape, layer.rank, layer.scaling
    ((3, 2), 1, 2.0)
    """

    base: Any
    A: Array
    B: Array
    alpha: float = 8.0
    rank_stabilized: bool = False
    dropout: float = 0.0
    lane: int = field(default=0, kw_only=True)
    magnitude: Array | None = field(default=None, kw_only=True)
    linear: Linear | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check that base, A, B and magnitude fit."""
        floats = getattr(getattr(self.base, "dtype", None), "kind", "") == "f"
        if not floats and not isinstance(self.base, NF4Tensor | TernaryMatrix):
            takes = "a float array, an NF4Tensor or a TernaryMatrix"
            raise TypeError(f"base must be {takes}, got {_kind(self.base)}")
        for name in ("A", "B"):
            part = getattr(self, name)
            if getattr(getattr(part, "dtype", None), "kind", "") != "f" or part.ndim != 2:
                raise TypeError(f"{name} must be a float matrix, got {_kind(part)}")
        n_out, n_in = _matrix(self.base)
        rank = self.A.shape[0]
        if rank < 1 or tuple(self.A.shape) != (rank, n_in):
            raise ValueError(f"A must have shape (r, {n_in}), r above 0, got {tuple(self.A.shape)}")
        if tuple(self.B.shape) != (n_out, rank):
            raise ValueError(f"B must have shape ({n_out}, {rank}), got {tuple(self.B.shape)}")
        number("alpha", self.alpha, "(0, inf)")
        number("dropout", self.dropout, "[0, 1)")
        if self.magnitude is not None:
            if (got := tuple(self.magnitude.shape)) != (n_out,):
                raise ValueError(f"magnitude must have shape ({n_out},), got {got}")
            if self.linear is not None or isinstance(self.base, TernaryMatrix):
                raise ValueError("magnitude takes a base that is not quantised at each use")

    def __repr__(self) -> str:
        """Say the shape, the rank, and what the base is."""
        return f"LoRALinear(shape={self.shape}, rank={self.rank}, base={_kind(self.base)})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the base, (n_out, n_in)."""
        return tuple(self.base.shape)

    @property
    def rank(self) -> int:
        """Rows of A: r."""
        return int(self.A.shape[0])

    @property
    def scaling(self) -> float:
        """The factor of B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    @property
    def nbytes(self) -> int:
        """Bytes of base and adapter."""
        return int(self.base.nbytes + self.A.nbytes + self.B.nbytes)

    def delta(self) -> Array:
        """Return what merging adds, shape (n_out, n_in): ``scaling B A`` but for DoRA."""
        change = (self.B @ self.A) * self.scaling
        if self.magnitude is None:
            return change
        base = floats_of(self.base)
        return (base + change) * self._lengths()[:, None] - base

    def _lengths(self) -> Array:
        """DoRA's factor of each row, (n_out,): its norm is a constant."""
        merged = floats_of(self.base) + stop_gradient((self.B @ self.A) * self.scaling)
        return self.magnitude / np.linalg.norm(merged, axis=1).astype(np.float32)

    def __call__(self, x: Array, noise: tuple[int, int] | None = None) -> Array:
        """Multiply x, (..., n_in): ``base(x) + scaling (dropout(x) A^T) B^T``, (..., n_out).

        With `noise`, (seed, step), there is dropout: of entry i of the flattened x, where number i
        of the stream of domain `DROPOUT`, this step and this layer's lane is below `dropout`.
        Without, and in use, nothing is dropped.
        """
        last_axis("x", x, self.shape[1])
        h = x
        if self.dropout and noise is not None:
            seed, step = noise
            draws = uniform(seed, tuple(x.shape), domain=DROPOUT, step=step, lane=self.lane)
            h = x * ((draws >= self.dropout) / (1 - self.dropout)).astype(x.dtype)
        y = self._base(x)  # (..., n_out)
        change = (h @ self.A.T @ self.B.T) * self.scaling
        if self.magnitude is None:
            return y + change
        lengths = self._lengths()  # (n_out,)
        return y + (lengths - 1) * (y if h is x else self._base(h)) + lengths * change

    def _base(self, x: Array) -> Array:
        """Multiply by the base: packed kinds by themselves, floats as their model does."""
        packed = (
            isinstance(self.base, NF4Tensor | TernaryMatrix) and self.linear is not plain_linear
        )
        return (frozen_linear if packed or self.linear is None else self.linear)(x, self.base)


def lora_linear(x: Array, w: Any, noise: tuple[int, int] | None = None) -> Array:
    """Multiply by a weight of any kind that a fine-tune has: the `linear` of a transformer.

    x is (..., n_in), w a LoRALinear, NF4Tensor, TernaryMatrix or float array, (n_out, n_in). With
    `noise`, (seed, step), a `LoRALinear` drops inputs: bind it for a step of training, by
    ``partial(lora_linear, noise=(0, step))``.

    Examples
    --------
    >>> from minibit.nf4 import quantize_nf4
    >>> lora_linear(np.float32([[1, 2]]), quantize_nf4(np.float32([[1, -1]])))
    array([[-1.]], dtype=float32)
    """
    if isinstance(w, Frozen):
        return w(x)
    return w(x, noise) if isinstance(w, LoRALinear) else frozen_linear(x, w)


def init_adapters(
    params: Mapping[str, Any], rank: int = 8, *, seed: int = 0, targets: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Draw adapters for the matrices of a model: A uniform within ``1 / sqrt(n_in)``, B zero.

    The result, name to ``{"A": (r, n_in), "B": (n_out, r)}`` in float32, is a tree that `grad` and
    optimizers take.

    Parameters
    ----------
    params : mapping of names to anything with a shape
    rank : int
        r, at least 1.
    seed : int
        Matrix number i, in the order of `params`, takes the numbers of domain `ADAPTERS`, lane i.
    targets : sequence of str, optional
        Last parts of the names to adapt; by default every name that ends in ``_proj``. A ValueError
        names one that no matrix has.

    Notes
    -----
    The range is peft's (Kaiming's with ``a = sqrt(5)``); the numbers are not.

    Examples
    --------
    >>> adapters = init_adapters({"up_proj": np.zeros((6, 4)), "norm": np.ones(4)}, rank=2)
    >>> {name: {part: x.shape for part, x in pair.items()} for name, pair in adapters.items()}
    {'up_proj': {'A': (2, 4), 'B': (6, 2)}}
    """
    rank = integer("rank", rank, 1)
    if targets is None:
        names = [name for name in params if name.endswith("_proj")]
    else:
        missing = [t for t in targets if not any(n.split(".")[-1] == t for n in params)]
        if missing:
            raise ValueError(f"targets has {missing[0]!r}, with which no name of params ends")
        names = [name for name in params if name.split(".")[-1] in set(targets)]
    if not names:
        raise ValueError("params has no name that ends in '_proj': say targets")
    adapters = {}
    for lane, name in enumerate(names):
        n_out, n_in = _matrix(params[name], f"params[{name!r}]")
        draws = uniform(seed, (rank, n_in), domain=ADAPTERS, lane=lane)
        a = ((2 * draws - 1) / math.sqrt(n_in)).astype(np.float32)  # (r, n_in)
        adapters[name] = {"A": a, "B": np.zeros((n_out, rank), np.float32)}
    return adapters


def with_adapters(
    params: Mapping[str, Any],
    adapters: Mapping[str, Mapping[str, Array]],
    *,
    alpha: float | Mapping[str, float] = 8.0,
    rank_stabilized: bool = False,
    dropout: float = 0.0,
    pissa: bool = False,
    linear: Linear | None = None,
) -> dict[str, Any]:
    """Put adapters beside their matrices: a `LoRALinear` in the place of each.

    The result is for `minibit.transformer.forward` with ``linear=lora_linear``. Nothing is copied
    but the bases of PiSSA. An adapter that does not fit is a TypeError or ValueError.

    Parameters
    ----------
    params : mapping of names to weights
    adapters : mapping of names to ``{"A": ..., "B": ...}``
        As `init_adapters` and `load_adapters` return them; duals, inside of `grad`. DoRA has a
        ``"magnitude"`` besides; ``{"weight": w}`` takes the place of a head or an embedding.
    alpha, rank_stabilized, dropout
        As `LoRALinear` takes them; alpha may be a mapping of names to floats.
    pissa : bool
        Whether the adapters began as the largest singular directions of the matrices (PiSSA,
        arXiv 2404.02948): ``W - scaling B0 A0``, without these directions, is then the base.
    linear : callable (x, w), optional
        What multiplies by float projections, those without an adapter, too. By default as the
        model of `params` does (a `BitNetModel`'s params know), else as they are.

    Examples
    --------
    >>> params = {"up_proj": np.float32([[1, 2], [3, 4]])}
    >>> with_adapters(params, init_adapters(params, rank=1))
    {'up_proj': LoRALinear(shape=(2, 2), rank=1, base=float32)}
    """
    adapted = dict(params)
    linear = getattr(params, "linear", None) if linear is None else linear
    if linear is float_linear and any(isinstance(w, TernaryMatrix) for w in params.values()):
        linear = plain_linear
    elif linear in (float_linear, lora_linear, frozen_linear):
        linear = None
    beside = partial(LoRALinear, rank_stabilized=rank_stabilized, dropout=dropout, linear=linear)
    for lane, (name, parts) in enumerate(adapters.items()):
        if name not in params:
            raise ValueError(f"adapters has {name!r}, which params has not")
        if set(parts) == {"weight"}:
            shape, got = tuple(params[name].shape), tuple(parts["weight"].shape)
            if got != shape:
                raise ValueError(f"adapters[{name!r}] must have shape {shape}, got {got}")
            adapted[name] = parts["weight"]
            continue
        if not {"A", "B"} <= set(parts) <= {"A", "B", "magnitude"}:
            raise ValueError(f"adapters[{name!r}] must have A and B, got {sorted(parts)}")
        scale = alpha[name] if isinstance(alpha, Mapping) else alpha
        try:
            adapted[name] = layer = beside(params[name], **parts, alpha=scale, lane=lane)
            if pissa:
                adapted[name] = replace(layer, base=_without_principal(layer.base, layer.rank))
        except (TypeError, ValueError) as error:
            raise type(error)(f"adapters[{name!r}]: {error}") from None
    if linear is not None:
        for name, w in adapted.items():
            of_itself = isinstance(w, NF4Tensor | TernaryMatrix) and linear is not plain_linear
            if name.endswith("_proj") and not isinstance(w, LoRALinear) and not of_itself:
                adapted[name] = Frozen(w, linear)
    return adapted


def _without_principal(base: Any, rank: int) -> NDArray[np.float32]:
    """Take the `rank` largest singular directions out of a matrix: PiSSA's base."""
    if not isinstance(base, np.ndarray):
        raise TypeError(f"base must be a float array for PiSSA, got {type(base).__name__}")
    u, s, vt = np.linalg.svd(base.astype(np.float64), full_matrices=False)
    return np.asarray((u[:, rank:] * s[rank:]) @ vt[rank:], base.dtype)  # (n_out, n_in)


def _matrix(weights: Any, name: str = "base") -> tuple[int, int]:
    """Return n_out and n_in."""
    shape = tuple(getattr(weights, "shape", ()))
    if len(shape) != 2:
        raise ValueError(f"{name} must have shape (n_out, n_in), got {shape}")
    return int(shape[0]), int(shape[1])


def _kind(value: Any) -> str:
    """Name the type of an array's numbers, or the type of anything else."""
    return str(getattr(value, "dtype", type(value).__name__))
