"""Bounds on what a log may say: a forged header or record must not cost more than a moment.

A log comes from strangers. Its header's plan names numbers that a replay draws by, and its records
name more, so both are checked before anything is drawn: a `Plan` by `checked_plan`, the choice of a
step by `checked_step`. (`minibit.steps.file` bounds the bytes of both, `minibit.base.strict_json`
the header's JSON.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from minibit.base import integer, integer_array
from minibit.noise_step import Plan, SampledStep, UnitsStep

__all__ = ["candidates", "checked_plan", "checked_step", "draws", "payable"]

Step: TypeAlias = SampledStep | UnitsStep
WORD = 1 << 32
MOST_WEIGHTS = 1 << 28  # of a model: 0.27 GB as they are replayed, a byte each
MOST_INPUTS = 1 << 24  # of a layer that draws among them; also inputs that a step draws in all
MOST_DRAWS = 1 << 24  # entries of a step's perturbations, expected: about two seconds


def draws(plan: Plan, step: Step) -> int:
    """Return about how many numbers a step draws: entries and noise blocks, or units and inputs."""
    if isinstance(step, SampledStep):
        kept = int(np.count_nonzero(step.codes))
        return -(-kept * plan.size * max(step.numerator, 1 << 16) >> 32)
    layers = zip(step.positions, plan.shapes, plan.units, plan.inputs, strict=True)
    return sum(u * (i if i < n_in else 1) for q, (_, n_in), u, i in layers if len(q))


def candidates(plan: Plan) -> list[int]:
    """How many moves each layer chooses among in a step of method ``units``."""
    return [units * inputs for units, inputs in zip(plan.units, plan.inputs, strict=True)]


def checked_step(plan: Plan, step: Any) -> Step:
    """Return a step with int8 and int64 arrays, of the plan's method and in its ranges."""
    kind = SampledStep if plan.method == "sampled" else UnitsStep
    if not isinstance(step, kind):
        raise TypeError(
            f"a log of method {plan.method!r} takes {kind.__name__}, got {type(step).__name__}"
        )
    if isinstance(step, SampledStep):
        numerator = integer("numerator", step.numerator, 0, WORD - 1)
        codes = integer_array("codes", step.codes, -1, 1, ndim=1)
        if codes.size != plan.perturbations:
            raise ValueError(f"a step has {plan.perturbations} codes, got {codes.size}")
        return payable(plan, SampledStep(numerator, codes.astype(np.int8)))
    layers = len(plan.shapes)
    if not len(step.positions) == len(step.signs) == layers:
        raise ValueError(
            f"a step has positions and signs of {layers} layers, "
            f"got {len(step.positions)} and {len(step.signs)}"
        )
    positions, signs = [], []
    for layer, size in enumerate(candidates(plan)):
        name = f"positions of layer {layer}"
        moves = integer_array(name, step.positions[layer], 0, size - 1, ndim=1)
        sign = integer_array(f"signs of layer {layer}", step.signs[layer], -1, 1, ndim=1)
        if (np.diff(moves) <= 0).any():
            raise ValueError(f"{name} must increase")
        if moves.size != sign.size or not sign.all():
            raise ValueError(
                f"layer {layer} needs one sign, -1 or +1, for each of its {moves.size} positions"
            )
        positions.append(moves)
        signs.append(sign.astype(np.int8))
    return UnitsStep(tuple(positions), tuple(signs))


def payable(plan: Plan, step: SampledStep) -> SampledStep:
    """Return a step if its perturbations can be drawn in a moment."""
    if (count := draws(plan, step)) > MOST_DRAWS:
        raise ValueError(
            f"a step of {np.count_nonzero(step.codes)} perturbations of {plan.size} weights draws "
            f"{count} entries at density {step.numerator / WORD:.3g}; the most is 2**24"
        )
    return step


def checked_plan(fields: Any) -> Plan:
    """Read a plan from a header's JSON; ValueError for numbers that nothing can be drawn from."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"plan must be an object, got {type(fields).__name__}")
    try:
        plan = Plan.from_dict(fields)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"plan cannot be read: {type(error).__name__}: {error}") from None
    layers = len(plan.names)
    tame = all(len(shape) <= 8 and all(n > 0 for n in shape) for shape in plan.shapes)
    size = plan.size if tame else 0
    laws = {
        "method is 'sampled' or 'units'": plan.method in ("sampled", "units"),
        "names are distinct strings": all(isinstance(name, str) for name in plan.names)
        and layers == len(set(plan.names)),
        "there is a layer, and no more than 4096": 0 < layers <= 4096,
        "each name has a shape": layers == len(plan.shapes),
        "a shape has at most 8 sides, each of at least 1": tame,
        f"{size} weights take as many bytes; the most is 2**28": size <= MOST_WEIGHTS,
        "seed lies in [0, 2**64)": 0 <= plan.seed < 1 << 64,
        "zeros lie in [0, 2**32]": 0 <= plan.zeros <= WORD,
    }
    if plan.method == "sampled":
        laws["perturbations lie in [1, 2**32)"] = 0 < plan.perturbations < WORD
    else:
        flat = tame and all(len(shape) == 2 for shape in plan.shapes)
        layer = [*zip(plan.units, plan.inputs, plan.shapes if flat else (), strict=False)]
        drawn = sum(units * inputs for units, inputs, (_, n_in) in layer if inputs < n_in)
        laws |= {
            "shapes are (n_out, n_in), up to 2**20 and 2**24": flat
            and all(n_out <= 1 << 20 and n_in <= MOST_INPUTS for n_out, n_in in plan.shapes),
            "each layer has units and inputs": len(plan.units) == len(plan.inputs) == layers,
            "units and inputs lie within the shapes": all(
                0 <= units <= n_out and 0 <= inputs <= n_in
                for units, inputs, (n_out, n_in) in layer
            ),
            f"a step draws {drawn} inputs; the most is 2**24": drawn <= MOST_INPUTS,
        }
    for law, holds in laws.items():
        if not holds:
            raise ValueError(f"plan: {law}; got {dict(fields)!r:.300}")
    return plan
