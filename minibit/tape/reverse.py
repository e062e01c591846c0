"""Reverse mode out of forward mode: record the tangent program of a JVP, then transpose it.

    t_k = sum of terms A_kj t_j         j < k,  every A_kj one of fourteen linear operations
    c_j <- c_j + A_kj^T c_k             k = last, ..., first

The whole gradient of one number, for a few times the cost of the function and for the memory of
every A. `grad` differentiates all that `jvp` does, custom rules included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from minibit.base import real_numbers
from minibit.dual import Array, Dual, Tree, floating, jvp, leaves, map_tree, value_of, zip_trees
from minibit.tape import transposes as transposes
from minibit.tape.recorder import Line, Recorder, Tape


def vjp(fn: Callable[..., Tree], primals: Any) -> tuple[Tree, Pullback]:
    """Evaluate a function, and record how to carry cotangents of its output back.

        out = f(x),   pullback(c) = J(x)^T c,   so that  <c, J v> = <J^T c, v>

    Parameters
    ----------
    fn : callable
        As for `minibit.dual.jvp`: plain NumPy code.
    primals : tuple of floating arrays, or of trees of them
        None is held constant; so is whatever `fn` takes from outside.

    Returns
    -------
    out : tree
        What ``fn(*primals)`` returns; its arrays are read-only, as the program may hold them.
    pullback : Pullback
        Takes a tree of the structure and shapes of `out`, or None for a part that does not matter;
        returns new arrays of the structure, shapes and types of `primals`, a tuple.

    Notes
    -----
    A primal that is not floating, or an output that is not real, is a TypeError; a function without
    a rule, or a custom rule that is not linear in its tangents, a `NoRuleError`. Kinks take the
    conventions of `minibit.dual.rules`. Calls nest, also with `jvp` and `jvp_batch`, in any order.
    Arrays that `fn` multiplies by, or picks with, are held, not copied: they must not be written to
    before the last call of `pullback`.

    Examples
    --------
    >>> out, pullback = vjp(lambda x, y: x * np.sin(y), (2.0, 0.0))
    >>> [float(c) for c in pullback(1.0)]
    [0.0, 2.0]
    """
    if not isinstance(primals, list | tuple):
        got = type(primals).__name__
        raise TypeError(f"primals must be a tuple, one entry an argument: got {got}")
    out, pullback = _record(fn, tuple(primals), "primals")
    return map_tree(_read_only, out), pullback


def _read_only(out: Any) -> Any:
    """View an output so that nobody writes to what the program holds: the exponential, say."""
    if type(out) is not np.ndarray:
        return out
    view = out.view()
    view.flags.writeable = False
    return view


def value_and_grad(fn: Callable[..., Array]) -> Callable[..., tuple[Array, Tree]]:
    """Evaluate a function that returns one number, and its gradient: every slope at once.

        value_and_grad(f)(p, ...) = f(p, ...), (df/dp_1, df/dp_2, ...)

    The first argument of `fn` is a tree of floating arrays (an array, dict, list or tuple); the
    others are constants. The gradient has the structure, shapes and types of that tree; None in it
    is held constant, and has gradient None. Errors are those of `vjp`; also if `fn` returns
    anything but one number. Each part of the program is let go as soon as it is read.

    Examples
    --------
    >>> value, slopes = value_and_grad(lambda p: p["a"] @ p["b"])(
    ...     {"a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])}
    ... )
    >>> float(value), slopes
    (11.0, {'a': array([3., 4.]), 'b': array([1., 2.])})
    """

    @functools.wraps(fn)
    def both(params: Tree, *args: Any, **kwargs: Any) -> tuple[Array, Tree]:
        out, pullback = _record(lambda p: fn(p, *args, **kwargs), params, "params", whole=True)
        if isinstance(out, dict | list | tuple) or out is None:
            raise TypeError(f"fn must return one number, got a {type(out).__name__}: see vjp")
        if np.ndim(out) != 0:
            raise ValueError(f"fn must return one number, got shape {np.shape(out)}: see vjp")
        return out, pullback._back(1.0, keep=False)

    return both


def grad(fn: Callable[..., Array]) -> Callable[..., Tree]:
    """Differentiate a function that returns one number: the gradient of `value_and_grad` alone.

    Of the same arguments as `fn`; it may be differentiated again, in either mode.

    Examples
    --------
    >>> grad(lambda x: np.sum(x**3))(np.array([1.0, 2.0]))
    array([ 3., 12.])
    """

    @functools.wraps(fn)
    def gradient(params: Tree, *args: Any, **kwargs: Any) -> Tree:
        return value_and_grad(fn)(params, *args, **kwargs)[1]

    return gradient


def _record(
    fn: Callable[..., Tree], primals: Tree, name: str, whole: bool = False
) -> tuple[Tree, Pullback]:
    """Run `jvp` with a recorder for each tangent; `whole`: the tree is one argument, not many."""
    tape = Tape()

    def variable(x: Any, _: Any, name: str) -> Any:
        if x is None:
            return None
        x = floating(x, name)
        return tape.variable(tuple(x.shape), x.dtype)

    tangents = zip_trees(variable, primals, primals, name)
    inputs = len(tape.program)
    args = ((primals,), (tangents,)) if whole else (primals, tangents)
    out, outputs = jvp(fn, *args)
    skeleton = map_tree(lambda x: None if x is None else 0, primals)
    return out, Pullback(tape, skeleton, inputs, outputs)


class Pullback:
    """The transposed program: carries cotangents of a function's outputs back to its inputs.

    `vjp` makes it. It may be called any number of times, also from several threads at once. It
    holds its program, and the arrays that the program scales by, for as long as it lives.

    Examples
    --------
    >>> _, pullback = vjp(lambda x: np.sum(x * np.sin(x)), (np.zeros(5),))
    >>> print(pullback)
    t0 = input              (5,) float64
    t1 = t0 * (5,)          (5,) float64
    t2 = t0 * (5,)          (5,) float64
    t3 = t1 * (5,)          (5,) float64
    t4 = t2 + t3            (5,) float64
    t5 = sum(t4)            () float64
    >>> len(pullback), pullback.nbytes  # the sine, the cosine and x
    (6, 120)
    """

    __slots__ = ("_inputs", "_outputs", "_skeleton", "_tape")

    def __init__(self, tape: Tape, skeleton: Tree, inputs: int, outputs: Tree) -> None:
        self._tape, self._skeleton, self._inputs, self._outputs = tape, skeleton, inputs, outputs

    def __call__(self, cotangent: Tree) -> Tree:
        """Return ``J^T c``, a tuple of the structure of the primals."""
        return self._back(cotangent, keep=True)

    def __len__(self) -> int:
        """Return the number of variables of the program."""
        return len(self._tape.program)

    def __str__(self) -> str:
        """Write the program out: each variable, its terms, its shape and type."""
        lines = []
        for number, (shape, dtype, terms) in enumerate(self._tape.program):
            total = " + ".join(transposes.written(*term) for term in terms) or "input"
            lines.append(f"{f't{number} = {total}':<23} {shape} {dtype}")
        return "\n".join(lines)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays that the program holds, some of which the caller holds anyway.

        Each counts once, and a slice from its first to its last entry.
        """
        used: dict[int, tuple[int, int]] = {}  # of each array: from where to where it is used
        operands = [arrays for line in self._tape.program for _, _, arrays in line.terms]
        for array in map(value_of, leaves(operands)):
            if isinstance(array, np.ndarray):
                low, high = byte_bounds(array)
                while isinstance(array.base, np.ndarray):
                    array = array.base
                before = used.get(id(array), (low, high))
                used[id(array)] = min(low, before[0]), max(high, before[1])
        return sum(high - low for low, high in used.values())

    def _back(self, cotangent: Tree, keep: bool) -> Tree:
        seeds: list[tuple[int, Array]] = []

        def seed(variable: Any, c: Any, name: str) -> None:
            if variable is None:
                raise TypeError(f"{name} must be None, as the output is")
            c = c if isinstance(c, Dual) else np.asarray(c)
            real_numbers(name, c, variable.shape)
            if isinstance(variable, Recorder):  # any other output does not depend on the primals
                c = c if c.dtype == variable.dtype else c.astype(variable.dtype)
                seeds.append((variable.number, c))

        zip_trees(seed, self._outputs, cotangent, "the cotangent")
        slopes = iter(_pull(self._tape.program, seeds, self._inputs, keep))
        return map_tree(lambda x: None if x is None else next(slopes), self._skeleton)


def _pull(
    program: list[Line], seeds: list[tuple[int, Array]], inputs: int, keep: bool
) -> list[Array]:
    """Carry cotangents from the last variable to the first; return those of the inputs.

    A cotangent is None until something reaches it, and *owned* if nobody else can see its memory:
    what arrives next is added in place. Without `keep`, each line is let go once it is read. Those
    of float16 are summed in float32.
    """
    cotangents: list[Array] = [None] * len(program)
    owned = [False] * len(program)

    def add(number: int, piece: Array, fresh: bool) -> None:
        before = cotangents[number]
        if before is None:
            cotangents[number], owned[number] = piece, fresh
        elif owned[number] and isinstance(piece, np.ndarray):
            np.add(before, piece, out=before)
        elif fresh and isinstance(before, np.ndarray):
            cotangents[number], owned[number] = np.add(before, piece, out=piece), True
        else:
            total = cotangents[number] = before + piece
            owned[number] = type(total) is np.ndarray

    for number, c in seeds:
        add(number, c, False)
    for number in range(len(program) - 1, inputs - 1, -1):
        terms = program[number].terms if keep else program.pop().terms
        c = cotangents.pop()
        if c is None:
            continue
        mine = owned[number] and len(terms) == 1
        for source, transpose, arrays in terms:
            shape, dtype, _ = program[source]
            dtype = np.float32 if dtype == np.float16 else dtype
            if transpose is transposes.scatter and owned[source] and isinstance(c, np.ndarray):
                transposes.add_at(cotangents[source], c, *arrays)
                continue
            piece = transpose(c, shape, mine, *arrays)
            if piece.shape != shape or piece.dtype != dtype:
                piece = transposes.fit(piece, shape, dtype)
            fresh = type(piece) is np.ndarray and (
                transpose in transposes.NEW
                or (piece.base is None and piece is not c)
                or (mine and piece.flags.writeable)
            )
            add(source, piece, fresh)
    for number, c in enumerate(cotangents):  # the cotangents of the inputs remain
        shape, dtype, _ = program[number]
        if c is None:
            cotangents[number] = np.zeros(shape, dtype)
        elif c.dtype != dtype:
            cotangents[number] = c.astype(dtype)
        elif not isinstance(c, Dual) and not owned[number]:
            cotangents[number] = np.array(c)
    return cotangents
