"""Functions and prepared objects among the arguments of a vector, in a form any language can read.

    {"function": "relu"}                                      a public function, by name
    {"function": "rms_norm", "argument": "x", "given": {..}}  a public function of one argument
    {"inputs": ["x", "y"], "steps": [["z", "multiply", "x", "y"], ["out", "add", "z", 1.0]]}
    {"make": "TernaryMatrix", "args": {"codes": .., "scale": ..}}   an object made beforehand

A step is the name of its result, an operation of `OPERATIONS`, and operands: the name of an input
or an earlier result, a number, or a function. The last result is the function's value. Operations
work entry by entry, with NumPy's broadcasting, or over all entries where the table says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minibit.conformance.values import decode

__all__ = ["OPERATIONS", "builder"]

OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y,
    "power": lambda x, y: x**y,
    "matmul": lambda x, y: x @ y,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sqrt": np.sqrt,
    "square": np.square,
    "round": np.rint,  # half to even
    "clip": np.clip,  # x, lowest, highest
    "sort": np.sort,  # along the last axis
    "sum": np.sum,  # of all entries, as are the following
    "mean": np.mean,
    "var": np.var,  # over n
    "prod": np.prod,
    "max": np.max,
    "norm": np.linalg.norm,
}


def builder(offered: Any) -> Callable[[Mapping[str, Any]], Any]:
    """Return what makes functions and objects out of the names that a module offers."""

    def build(value: Mapping[str, Any]) -> Any:
        """Make one function or object."""
        if "steps" in value:
            return _of_steps(value, offered, build)
        if "make" in value:
            args = {name: decode(item, build) for name, item in value["args"].items()}
            maker = MAKERS.get(value["make"])
            return maker(offered, args) if maker else getattr(offered, value["make"])(**args)
        function = getattr(offered, value["function"])
        fixed = {name: decode(item, build) for name, item in value.get("given", {}).items()}
        if "argument" in value:
            return lambda x: function(**{value["argument"]: x}, **fixed)
        return lambda *args: function(*args, **fixed)

    return build


def _with_rule(offered: Any, args: dict[str, Any]) -> Any:
    """Return a function that has the tangent ``rule(*primals, *tangents)``, if there is a rule."""
    function = offered.custom_jvp(args["fn"])
    if "rule" in args:
        function.defjvp(lambda x, x_dot: (function(*x), args["rule"](*x, *x_dot)))
    return function


MAKERS: dict[str, Callable[..., Any]] = {
    "NF4Tensor": lambda offered, args: offered.quantize_nf4(**args),
    "TernaryColumns": lambda offered, args: offered.TernaryColumns.from_codes(**args),
    "TernaryMatrix": lambda offered, args: offered.TernaryMatrix.from_codes(**args),
    "custom_jvp": _with_rule,
}


def _of_steps(value: Mapping[str, Any], offered: Any, build: Any) -> Callable[..., Any]:
    """Return the function that a list of operations tells of."""

    def function(*inputs: Any) -> Any:
        """Carry out the steps."""
        results: dict[str, Any] = dict(zip(value["inputs"], inputs, strict=True))
        results |= getattr(function, "outer", {})
        out = None
        for name, operation, *operands in value["steps"]:
            args = [_operand(operand, results, offered, build) for operand in operands]
            if operation == "derivative":  # of a function of one number, at a number
                out = offered.derivative(args[0])(args[1])
            else:
                out = OPERATIONS[operation](*args)
            results[name] = out
        return out

    return function


def _operand(operand: Any, results: dict[str, Any], offered: Any, build: Any) -> Any:
    """Return a result by its name, a number, or an inner function, which sees all results."""
    if isinstance(operand, str):
        return results[operand]
    if isinstance(operand, dict):
        inner = _of_steps(operand, offered, build)
        inner.outer = dict(results)  # type: ignore[attr-defined]
        return inner
    return operand
