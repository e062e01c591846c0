"""Derivatives of plain NumPy code, each by one pass of `Dual` arrays through it.

A pass gives a Jacobian-vector product (JVP), exact, and nothing of the pass is kept. Every `fn`
returns an array or a tree of arrays (dicts, lists, tuples), and has plain NumPy code inside.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from minibit.base import real_numbers
from minibit.dual.apply import join_parts, make_dual, part, tag_of
from minibit.dual.array import Dual, floating, matching
from minibit.dual.entries import value_of
from minibit.dual.tangents import ZERO, Array, Directions, NoRuleError, Tangent, as_array
from minibit.dual.trees import Tree, leaves, map_tree, zip_trees

_tags = itertools.count(1)  # one for each derivative being taken; the innermost has the highest


def jvp(fn: Callable[..., Tree], primals: Any, tangents: Any) -> tuple[Tree, Tree]:
    """Evaluate a function and its derivative along one direction, in one pass.

        out = f(x),   tangent_out = J(x) v = d/dt f(x + t v) at t = 0

    Parameters
    ----------
    fn : callable
        Takes the primals as its arguments.
    primals : tuple of floating arrays, or of trees of them
        A primal without a tangent may be anything.
    tangents : tuple of the same structure
        An array of each primal's shape, converted to its floating type. None in the place of an
        array or a subtree holds it constant, and costs nothing.

    Returns
    -------
    out, tangent_out : trees
        What ``fn(*primals)`` returns, to the bit but for functions that are composed of others; and
        arrays of its shapes and types, zeros where it does not depend on the primals.

    Notes
    -----
    An integer or complex primal with a tangent, or another structure or shape, is a TypeError or
    ValueError; a function without a rule, a `NoRuleError`. Kinks take the conventions of
    `minibit.dual.rules`; a NaN or an infinity flows as in the formula. Calls nest to any order.

    Examples
    --------
    >>> out, tangent = jvp(lambda x, y: x * np.sin(y), (2.0, 0.0), (1.0, 1.0))
    >>> float(out), float(tangent)
    (0.0, 2.0)
    """
    return _push(fn, primals, tangents, batch=False)


def jvp_batch(fn: Callable[..., Tree], primals: Any, tangents: Any) -> tuple[Tree, Tree]:
    """Evaluate a function once and its derivatives along many directions.

        tangent_out[d] = J(x) v[d]   for every direction d

    `fn` and `primals` are as in `jvp`; each array of `tangents`, and each tangent that is returned,
    has one leading axis more: ``(directions, *shape)``. It is a ValueError, too, if the numbers of
    directions (0 is one) differ, or if no primal has a tangent.

    Examples
    --------
    >>> _, tangents = jvp_batch(np.sum, (np.ones(3),), (np.eye(3),))
    >>> tangents
    array([1., 1., 1.])
    """
    return _push(fn, primals, tangents, batch=True)


def _push(fn: Callable[..., Tree], primals: Any, tangents: Any, batch: bool) -> tuple[Tree, Tree]:
    """Call `fn` on duals of a new tag, and part its output: `jvp`, or with `batch` `jvp_batch`."""
    if not (isinstance(primals, list | tuple) and isinstance(tangents, list | tuple)):
        got = f"{type(primals).__name__} and {type(tangents).__name__}"
        raise TypeError(f"primals and tangents must be tuples, one entry an argument: got {got}")
    tag = next(_tags)
    counts: dict[int, str] = {}  # number of directions: the first primal that has it

    def seed(value: Any, tangent: Any, name: str) -> Any:
        primal = floating(value, name)
        dot = matching(tangent, primal, name, batch)
        if batch:
            if isinstance(dot, Tangent):
                raise NoRuleError("jvp_batch cannot push a tangent of jvp_batch: use jvp in rules")
            counts.setdefault(dot.shape[0], name)
            dot = Directions(dot)
        return make_dual(primal, dot, tag)

    args = zip_trees(seed, tuple(primals), tuple(tangents), "primals")
    if batch and len(counts) != 1:
        got = ", ".join(f"{n} for {name}" for n, name in counts.items()) or "none"
        raise ValueError(f"jvp_batch takes at least one tangent, and one number of them, got {got}")
    lead = tuple(counts)

    def tangent_of(leaf: Any) -> Any:
        if isinstance(leaf, Dual) and leaf.tag == tag:
            dot = leaf.tangent
            if isinstance(dot, Tangent):  # a rule may call jvp on tangents of its own
                return dot.stack if lead and isinstance(dot, Directions) else dot
            if lead:  # the same along every direction
                dot = np.broadcast_to(dot, (*lead, *leaf.shape))
            shared = isinstance(dot, np.ndarray) and not dot.flags.writeable
            return dot.copy() if shared else dot
        if leaf is None:
            return None
        leaf = as_array(leaf)
        real_numbers("the output of fn", leaf, leaf.shape)
        return np.zeros((*lead, *leaf.shape), leaf.dtype if leaf.dtype.kind == "f" else np.float64)

    out = fn(*args)
    return map_tree(lambda leaf: part(leaf, tag)[0], out), map_tree(tangent_of, out)


def derivative(fn: Callable[..., Tree]) -> Callable[..., Tree]:
    """Differentiate a function of one number.

        derivative(f)(x) = df/dx,   of the shape of f(x)

    It takes the arguments of `fn`, holds those after the first constant, and may be differentiated
    again. A first argument with axes is a ValueError, an integer a TypeError.

    Examples
    --------
    >>> float(derivative(derivative(lambda x: x**3))(2.0))
    12.0
    """

    @functools.wraps(fn)
    def slope(x: Any, *args: Any, **kwargs: Any) -> Tree:
        if np.ndim(x) != 0:
            raise ValueError(f"derivative takes a number, got shape {np.shape(x)}: use jacfwd")
        return jvp(lambda t: fn(t, *args, **kwargs), (x,), (1.0,))[1]

    return slope


def jacfwd(fn: Callable[..., Tree]) -> Callable[..., Tree]:
    """Differentiate a function of one array: the whole Jacobian, a direction for every entry.

        J[..., i] = d f(x) / d x[i],   shape (*out.shape, *x.shape)

    As `derivative` of `fn`, but at a floating array: ``x.size`` tangents flow together.

    Examples
    --------
    >>> jacfwd(lambda x: x[::-1] ** 2)(np.array([1.0, 3.0]))
    array([[0., 6.],
           [2., 0.]])
    """

    @functools.wraps(fn)
    def jacobian(x: Any, *args: Any, **kwargs: Any) -> Tree:
        x = floating(x, "the argument of jacfwd")
        basis = np.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
        _, columns = jvp_batch(lambda x: fn(x, *args, **kwargs), (x,), (basis,))
        return map_tree(lambda c: np.moveaxis(c, 0, -1).reshape((*c.shape[1:], *x.shape)), columns)

    return jacobian


def forward_gradient(
    fn: Callable[[Tree], Array], params: Tree, directions: Tree
) -> tuple[Array, Tree]:
    """Estimate a gradient from directional derivatives alone.

        g = mean over d of (grad f . v[d]) v[d],   E[g] = grad f  when  E[v v^T] = I

    `fn` takes `params`, a tree of floating arrays, and returns one number, else it is a ValueError.
    `directions` has the structure of `params`, each array ``(directions, *shape)``. Draw the
    entries independently with mean 0 and variance 1 (normal, or -1 and +1). None holds a part
    constant: its estimate is None. No directions give zeros.

    Returned are ``fn(params)`` and the estimate. It is unbiased; the variance of each entry is
    about the squared length of the whole gradient, divided by the number of directions.
    Source: Baydin et al. 2022, Gradients without Backpropagation (arXiv 2202.08587).

    Examples
    --------
    >>> value, estimate = forward_gradient(lambda x: np.sum(x * x), np.array([1.0, 2.0]), np.eye(2))
    >>> float(value), estimate  # the two axes: half of each entry of the gradient
    (5.0, array([1., 2.]))
    """
    value, slopes = jvp_batch(fn, (params,), (directions,))
    if np.ndim(slopes) != 1:
        raise ValueError(f"fn must return one number, got shape {np.shape(value)}")
    n = max(len(slopes), 1)

    def estimate(direction: Any, primal: Any, _: str) -> Any:
        if direction is None:
            return None
        v = as_array(direction).astype(as_array(primal).dtype)  # (directions, *shape)
        return np.tensordot(slopes, v, axes=1) / n

    return value, zip_trees(estimate, directions, params, "directions")


def stop_gradient(tree: Tree) -> Tree:
    """Hold the values of a tree constant: drop their tangents, of every order.

    Examples
    --------
    >>> float(derivative(lambda x: x * stop_gradient(x))(3.0))
    3.0
    """
    return map_tree(value_of, tree)


def straight_through(fn: Callable[..., Array]) -> Callable[..., Array]:
    """Give a function the derivative of the identity: for steps and roundings.

        y = f(x),   y_dot = x_dot

    `fn` takes an array first and returns one of its shape, else it is a ValueError; its result gets
    the floating type of that array. Its other arguments are constants. Source: Bengio et al. 2013,
    Estimating or Propagating Gradients Through Stochastic Neurons (arXiv 1308.3432).

    Examples
    --------
    >>> float(derivative(straight_through(np.round))(1.7))
    1.0
    """

    @functools.wraps(fn)
    def wrapped(x: Array, *args: Any, **kwargs: Any) -> Array:
        if isinstance(x, Dual):
            primal, tangent = part(x, tag_of(x))
            return make_dual(wrapped(primal, *args, **kwargs), tangent, x.tag)
        x = floating(x, "the argument of a straight-through function")
        out = np.asarray(fn(x, *map(stop_gradient, args), **stop_gradient(kwargs)))
        if out.shape != x.shape:
            raise ValueError(f"straight_through keeps the shape: {x.shape} became {out.shape}")
        return out.astype(x.dtype, copy=False)

    return wrapped


class custom_jvp:
    """A function with a derivative of its own: decorate it, then give its rule with `defjvp`.

        out, tangent_out = rule(primals, tangents)

    The rule receives two tuples of the arguments' structure and returns the output and its
    tangent. It must be linear in the tangents, and written with the operations that
    `minibit.dual.tangents` lists, applied to them directly (no ``np.asarray``, no in-place change):
    then it also holds for many directions, nested derivatives and reverse mode. The tangent of a
    constant is zeros; of an argument that is not floating, None. A rule may return None, too: the
    tangent of an output that does not move. Keyword arguments are constants, passed to both; a dual
    among them, or before `defjvp` was called, is a `NoRuleError`. A rule that returns no pair, or a
    tangent that is not real, is a TypeError; another shape than its output's, a ValueError.

    Examples
    --------
    >>> @custom_jvp
    ... def clipped(x):
    ...     return np.clip(x, -1, 1)
    >>> @clipped.defjvp
    ... def rule(primals, tangents):
    ...     return clipped(*primals), tangents[0]  # pretend that it never saturates
    >>> float(derivative(clipped)(5.0))
    1.0
    """

    def __init__(self, fn: Callable[..., Tree]) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.rule: Callable[..., tuple[Tree, Tree]] | None = None

    def defjvp(self, rule: Callable[..., tuple[Tree, Tree]]) -> Callable[..., tuple[Tree, Tree]]:
        """Set the rule, and return it (so that this is a decorator)."""
        self.rule = rule
        return rule

    def __call__(self, *args: Any, **kwargs: Any) -> Tree:
        """Call the function; if a dual is among its arguments, by the rule."""
        if not any(isinstance(arg, (Dual, dict, list, tuple)) for arg in (*args, *kwargs.values())):
            return self.fn(*args, **kwargs)  # the usual case, without a walk through trees
        tag = max(map(tag_of, leaves(args)), default=-1)
        name = getattr(self.fn, "__name__", repr(self.fn))
        if any(tag_of(leaf) >= 0 for leaf in leaves(kwargs)):
            raise NoRuleError(f"{name} met a Dual as a keyword argument: pass it by position")
        if tag < 0:
            return self.fn(*args, **kwargs)
        if self.rule is None:
            raise NoRuleError(f"no rule for {name}: it is custom_jvp, give it one with .defjvp")
        primals = map_tree(lambda leaf: part(leaf, tag)[0], args)

        def tangent_of(leaf: Any) -> Any:
            dot = part(leaf, tag)[1]
            if dot is not ZERO:
                return dot
            leaf = as_array(leaf)
            return np.zeros(leaf.shape, leaf.dtype) if leaf.dtype.kind == "f" else None

        tangents = map_tree(tangent_of, args)
        returned: Any = self.rule(primals, tangents, **kwargs)
        if not (isinstance(returned, list | tuple) and len(returned) == 2):
            got = type(returned).__name__
            raise TypeError(f"the rule of {name} must return (output, tangent), got a {got}")
        out, out_dot = returned

        def join(leaf: Any, dot: Any, _: str) -> Any:
            leaf, dot = as_array(leaf), as_array(dot)
            real_numbers(f"the tangent from the rule of {name}", dot, leaf.shape)
            return join_parts(leaf, dot, tag)

        return zip_trees(join, out, out_dot, f"the output of {name}")
