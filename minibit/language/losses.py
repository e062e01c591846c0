"""The loss of a language model, the mean of -log p(next character) in nats, and its gradient.

``L = sum over parts of (rows of the part / rows) L(part)``, the parts of a batch side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from minibit.kernels.threads import run
from minibit.language.characters import Tokens
from minibit.tape import value_and_grad
from minibit.transformer import BitNetConfig, Linear, Sparsify, float_linear, forward, token_loss

__all__ = ["evaluate_loss", "loss_and_gradient", "shares"]


def loss_and_gradient(
    config: BitNetConfig,
    params: Mapping[str, Any],
    x: Tokens,
    y: Tokens,
    *,
    linear: Linear = float_linear,
    sparsify: Sparsify | None = None,
    threads: int = 1,
) -> tuple[float, dict[str, Any]]:
    """Compute the mean loss of a batch and its gradient, a part of the rows on every thread.

    Tokens x and those after them, y, are (batch, context); config, params, linear and sparsify are
    as for `minibit.transformer.forward`. The gradient has the names, shapes and types of `params`.
    Keep NumPy's own threads at one (``OPENBLAS_NUM_THREADS=1``), or they compete with `threads`.

    Examples
    --------
    >>> from minibit.transformer import init_params
    >>> config = BitNetConfig(9, 4, 8, layers=1, heads=1, kv_heads=1, max_positions=8)
    >>> x = np.array([[1, 2, 3], [4, 5, 6]])
    >>> loss, gradient = loss_and_gradient(config, init_params(config, 0), x, x + 1)
    >>> gradient["norm"].shape
    (4,)
    """

    def loss_of(params: Mapping[str, Any], x: Tokens, y: Tokens, share: float) -> Any:
        logits = forward(config, params, x, linear=linear, sparsify=sparsify)
        return token_loss(logits, y) * share

    parts = np.array_split(np.arange(len(x)), min(threads, len(x)))
    slopes: list[Any] = [None] * len(parts)

    def part(i: int) -> bool:
        rows = slice(parts[i][0], parts[i][-1] + 1)
        slopes[i] = value_and_grad(loss_of)(params, x[rows], y[rows], len(parts[i]) / len(x))
        return True

    run([partial(part, i) for i in range(len(parts))])
    _, gradient = slopes[0]

    def add_up(names: list[str]) -> bool:
        for name in names:
            for _, piece in slopes[1:]:
                np.add(gradient[name], piece[name], out=gradient[name])
        return True

    run([partial(add_up, names) for names in shares(params, len(parts))])
    return float(sum(loss for loss, _ in slopes)), gradient


def shares(params: Mapping[str, Any], count: int) -> list[list[str]]:
    """Deal out parameters, the largest first, each to the share of the fewest weights."""
    shares: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for name in sorted(params, key=lambda name: -int(params[name].size)):
        least = sizes.index(min(sizes))
        shares[least].append(name)
        sizes[least] += int(params[name].size)
    return shares


def evaluate_loss(
    config: BitNetConfig,
    params: Mapping[str, Any],
    tokens: Tokens,
    *,
    linear: Linear = float_linear,
    sparsify: Sparsify | None = None,
    rows: int = 128,
) -> float:
    """Mean loss over a text, cut into rows of `max_positions` tokens one after the other.

    Every token but the first is predicted once, from those before it in its row; a rest shorter
    than a row is left out. The loss is in nats per token, of so many `rows` at a time; config,
    params, linear and sparsify are as for `minibit.transformer.forward`. A ValueError unless there
    are more than `max_positions` tokens.

    Examples
    --------
    >>> from minibit.transformer import init_params
    >>> config = BitNetConfig(9, 4, 8, layers=1, heads=1, kv_heads=1, max_positions=8)
    >>> params = init_params(config, 0) | {"norm": np.zeros(4, np.float32)}  # knows nothing
    >>> f"{evaluate_loss(config, params, np.arange(17) % 9):.4f}"  # log 9
    '2.1972'
    """
    context = config.max_positions
    count = (len(tokens) - 1) // context
    if not count:
        raise ValueError(f"tokens must be more than {context}, got {len(tokens)}")
    x, y = (tokens[a : a + count * context].reshape(count, context) for a in (0, 1))
    total = 0.0
    for first in range(0, count, rows):
        part = slice(first, first + rows)
        logits = forward(config, params, x[part], linear=linear, sparsify=sparsify)
        total += float(token_loss(logits, y[part])) * len(x[part])
    return total / count
