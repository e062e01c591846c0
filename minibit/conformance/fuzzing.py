"""Random cases of the public calls, and the smallest that fails.

A case is a list of *choices*, whole numbers, and the entry of a call in `DRAWS` says how they
become its arguments; 0 is always the simplest choice: no further row, the weight 0, the seed 0.
Choices are words of Philox under a seed, so a case comes back from its name alone. What is expected
is the answer of minibit itself, with plain NumPy. A case that fails is made smaller, choice by
choice, while it fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any
from zlib import crc32

import numpy as np

import minibit
from minibit.conformance.cases import Case, cases, vector_files
from minibit.conformance.running import answer_of
from minibit.conformance.values import encode
from minibit.noise_step import Plan, SampledStep, UnitsStep

__all__ = ["DRAWS", "fuzz_cases", "smallest"]

DOMAIN = 255  # of the Philox stream: that of users
WORDS = 2048  # choices of a case; those beyond are 0
TRIES = 2000  # of the search for a smaller case
F32 = np.float32


class Choices:
    """Whole numbers, used one after the other; past their end they are 0.

    `used` has those that were asked for, reduced to what they chose, and `sizes` the places of
    those that said how many others follow.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = iter(numbers)
        self.used: list[int] = []
        self.sizes: list[int] = []

    def below(self, count: int) -> int:
        """Choose one of 0, ..., count - 1, with count at most 2^32."""
        choice: int = next(self._numbers, 0) % count
        self.used.append(choice)
        return choice

    def between(self, low: int, high: int) -> int:
        """Choose an integer in [low, high]."""
        return low + self.below(high - low + 1)

    def size(self, low: int, high: int) -> int:
        """Choose how many of something there are."""
        self.sizes.append(len(self.used))
        return self.between(low, high)

    def pick(self, *values: Any) -> Any:
        """Choose one of some values, the simplest first."""
        return values[self.below(len(values))]

    def wide(self) -> int:
        """Choose a number of 64 bits: often small, else of two words."""
        low, high = self.below(2**32), self.below(2**32)
        return low + (high << 32) * self.below(2)

    def codes(self, *shape: int) -> Any:
        """Choose codes -1, 0, 1."""
        entries = [self.pick(0, 1, -1) for _ in range(int(np.prod(shape)))]
        return np.array(entries, np.int8).reshape(shape)

    def bytes(self, *shape: int) -> Any:
        """Choose bytes."""
        entries = [self.below(256) for _ in range(int(np.prod(shape)))]
        return np.array(entries, np.uint8).reshape(shape)

    def floats(self, *shape: int) -> Any:
        """Choose float32 numbers in [-8, 8]: few halves, which often tie, quarters, or any."""
        kind = self.below(3)
        entries = [self._real(kind) for _ in range(int(np.prod(shape)))]
        return np.array(entries, F32).reshape(shape)

    def _real(self, kind: int) -> float:
        """Choose one number of some kind."""
        if kind < 2:
            number = self.below((5, 65)[kind])
            return (number + 1) // 2 / (-4 if number % 2 else 4) * (2 - kind)
        return (self.below(2**25) - 2**24) / 2**21 if self.below(2) else 0.0

    def share(self) -> Any:
        """Choose a density in (0, 1], as a float, or as its numerator over 2^32."""
        numerator = self.pick(2**31, self.between(1, 2**32))
        return self.pick(numerator / 2**32, np.int64(numerator))


Draw = Callable[[Choices], dict[str, Any]]


def _matrix(c: Choices) -> tuple[int, int]:
    """Choose the sides of a matrix."""
    return c.size(1, 5), c.size(1, 20)


def _ternary(codes: Any, scale: float) -> dict[str, Any]:
    """Encode a ternary matrix, made beforehand."""
    return {"make": "TernaryMatrix", "args": {"codes": encode(codes), "scale": encode(scale)}}


def _doubles(c: Choices, *shape: int) -> Any:
    """Choose float64 numbers."""
    return c.floats(*shape).astype(np.float64)


def _rows(c: Choices) -> dict[str, Any]:
    """Rows of floats, as x."""
    return {"x": c.floats(*_matrix(c))}


def _weights(c: Choices) -> dict[str, Any]:
    """Draw a matrix of floats, as w."""
    return {"w": c.floats(*_matrix(c))}


def _codes(c: Choices) -> dict[str, Any]:
    """Draw a matrix of codes."""
    return {"codes": c.codes(*_matrix(c))}


def _flat_codes(c: Choices) -> dict[str, Any]:
    """Draw a list of codes."""
    return {"codes": c.codes(c.size(1, 40))}


def _packed(valid: Sequence[int], per_byte: int) -> Draw:
    """Bytes that hold codes, and how many."""

    def draw(c: Choices) -> dict[str, Any]:
        """Draw them."""
        count = c.size(1, 40)
        packed = [valid[c.below(len(valid))] for _ in range(-(-count // per_byte))]
        return {"packed": np.array(packed, np.uint8), "count": count}

    return draw


def _stream(c: Choices) -> dict[str, Any]:
    """Draw the place of a stream of random words."""
    return {
        "seed": c.wide(),
        "domain": c.below(256),
        "step": c.below(2**32),
        "lane": c.pick(0, c.below(2**31)),
    }


def _sparse(c: Choices) -> dict[str, Any]:
    """Draw the place and the density of sparse noise."""
    return {
        "seed": c.wide(),
        "step": c.pick(0, c.below(2**32)),
        "perturbation": c.below(128),
        "size": c.size(1, 200),
        "density": c.share(),
    }


def _inputs(c: Choices) -> dict[str, Any]:
    """Choose the place of a draw of inputs."""
    n_in = c.size(1, 60)
    place = {"seed": c.wide(), "step": c.below(2**20), "layer": c.below(4), "unit": c.below(2**16)}
    return {**place, "n_in": n_in, "count": c.between(1, n_in)}


def _units(c: Choices) -> dict[str, Any]:
    """Choose the place of a draw of units."""
    n_out = c.size(1, 60)
    place = {"seed": c.wide(), "step": c.below(2**20), "layer": c.below(4)}
    return {**place, "n_out": n_out, "count": c.between(1, n_out)}


def _topk(c: Choices) -> dict[str, Any]:
    """Rows, and how many entries of each are kept."""
    rows, width = _matrix(c)
    return {"x": c.floats(rows, width), "k": c.between(1, width)}


def _blocks(c: Choices) -> dict[str, Any]:
    """Rows of whole blocks, and how many entries of each block are kept."""
    rows, count, m = c.size(1, 3), c.size(1, 4), c.size(1, 8)
    return {"x": c.floats(rows, count * m), "n": c.between(1, m), "m": m}


def _product(c: Choices) -> dict[str, Any]:
    """Rows of floats, and a ternary matrix."""
    rows, n_in = _matrix(c)
    matrix = _ternary(c.codes(c.size(1, 5), n_in), c.pick(1.0, 0.5, 0.1))
    return {"x": c.floats(rows, n_in), "matrix": matrix}


def _product_int8(c: Choices) -> dict[str, Any]:
    """Rows of int8, and a ternary matrix: wide enough for sums beyond 16 bits."""
    rows, n_in = c.size(1, 3), c.size(1, 300)
    x = c.bytes(rows, n_in).view(np.int8)
    return {"x": x, "matrix": _ternary(c.codes(c.size(1, 3), n_in), 1.0)}


def _linear(c: Choices) -> dict[str, Any]:
    """Rows of float64, and a matrix of codes."""
    rows, n_in = _matrix(c)
    return {"x": _doubles(c, rows, n_in), "w": c.codes(c.size(1, 5), n_in)}


def _normed(c: Choices, gains: bool) -> dict[str, Any]:
    """Rows, the gains of their columns if there are any, and eps."""
    rows, width = _matrix(c)
    args = {"x": _doubles(c, rows, width), "eps": c.pick(1e-5, 1e-6, 0.5)}
    return {**args, "gain": _doubles(c, width)} if gains else args


def _mlp(c: Choices) -> dict[str, Any]:
    """Layers of codes, and their inputs."""
    widths = [c.size(1, 6) for _ in range(c.size(2, 4))]
    params = {f"w{i + 1}": c.codes(n_out, n_in) for i, (n_in, n_out) in enumerate(pairwise(widths))}
    x = _doubles(c, c.size(1, 3), widths[0])
    return {
        "params": params,
        "x": x,
        "logit_scale": c.pick(1.0, 0.25),
        "activations": c.pick("float", "int8"),
    }


def _nf4(c: Choices) -> dict[str, Any]:
    """Weights of some blocks, the last one shorter or not."""
    return {"w": c.floats(c.size(1, 3), c.size(1, 80)), "block": c.pick(64, 32)}


def _log(c: Choices) -> dict[str, Any]:
    """Write a log of a few steps of a small network, in records of any length."""
    widths = [c.size(1, 6) for _ in range(c.size(2, 4))]
    shapes = tuple((n_out, n_in) for n_in, n_out in pairwise(widths))
    names = tuple(f"w{i + 1}" for i in range(len(shapes)))
    seed, zeros = c.wide(), c.between(1, 2**32 - 1)
    common: dict[str, Any] = {"seed": seed, "names": names, "shapes": shapes, "zeros": zeros}
    count = c.size(1, 5)
    steps: list[Any] = []
    if c.below(2) == 0:
        units = tuple(c.between(1, n_out) for n_out, _ in shapes)
        inputs = tuple(c.between(1, n_in) for _, n_in in shapes)
        plan = Plan("units", **common, units=units, inputs=inputs)
        candidates = [u * i for u, i in zip(units, inputs, strict=True)]
        for _ in range(count):
            chosen = [np.flatnonzero([c.below(2) for _ in range(n)]) for n in candidates]
            signs = [np.array([c.pick(1, -1) for _ in places], np.int8) for places in chosen]
            steps.append(UnitsStep(tuple(chosen), tuple(signs)))
    else:
        most = c.size(1, 9)
        plan = Plan("sampled", **common, perturbations=most)
        steps = [SampledStep(c.between(1, 2**31), c.codes(most)) for _ in range(count)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run.steps"
        with minibit.StepLog.create(path, {"plan": plan.to_dict()}) as log:
            while steps:
                length = c.between(1, len(steps))
                log.append(steps[:length])
                steps = steps[length:]
        return {"file": np.frombuffer(path.read_bytes(), np.uint8)}


EXACT = MappingProxyType({"exact": True})
FLOAT32 = MappingProxyType(
    {
        "within": {"atol": 1e-4, "rtol": 0.0},
        "why": "at most 20 float32 products of up to 8 are summed in any order: 160 x 20 x 2^-24 "
        "is 2e-4 in the worst case, of which random signs leave a tenth",
    }
)
FLOAT64 = MappingProxyType(
    {
        "within": {"atol": 1e-9, "rtol": 1e-9},
        "why": "a few float64 roundings of 2^-53, enlarged 1000 times where eps = 1e-6 divides",
    }
)
BASE3 = range(243)
TWO_BITS = [b for b in range(256) if not any(b >> s & 3 == 3 for s in (0, 2, 4, 6))]
DRAWS: dict[str, tuple[Draw, MappingProxyType[str, Any]]] = {
    "philox4x32": (
        lambda c: {
            "counter": np.array([c.below(2**32) for _ in range(4)], np.uint32),
            "key": np.array([c.below(2**32) for _ in range(2)], np.uint32),
        },
        EXACT,
    ),
    "words": (lambda c: {**_stream(c), "count": c.size(1, 9), "start": c.below(20)}, EXACT),
    "uniform": (lambda c: {**_stream(c), "shape": (c.size(1, 9),)}, EXACT),
    "integers": (
        lambda c: {**_stream(c), "shape": (c.size(1, 9),), "high": c.between(1, 2**32)},
        EXACT,
    ),
    "noise_constants": (lambda c: {"density": c.share()}, EXACT),
    "sparse_noise": (_sparse, EXACT),
    "initial_codes": (
        lambda c: {
            "seed": c.wide(),
            "shape": (c.size(1, 4), c.size(1, 20)),
            "zeros": c.share(),
            "layer": c.below(5),
        },
        EXACT,
    ),
    "draw_units": (_units, EXACT),
    "draw_inputs": (_inputs, EXACT),
    "StepLog": (_log, EXACT),
    "pack2": (_flat_codes, EXACT),
    "unpack2": (_packed(TWO_BITS, 4), EXACT),
    "pack_base3": (_flat_codes, EXACT),
    "unpack_base3": (_packed(BASE3, 5), EXACT),
    "pack_bitplanes": (_flat_codes, EXACT),
    "to_hf": (_codes, EXACT),
    "to_tq1_0": (lambda c: {"codes": c.codes(c.size(1, 2), 256), "scale": c.pick(1.0, 0.1)}, EXACT),
    "to_tq2_0": (lambda c: {"codes": c.codes(c.size(1, 2), 256), "scale": c.pick(1.0, 0.1)}, EXACT),
    "to_ptq1_0": (
        lambda c: {"codes": c.codes(c.size(1, 2), 256), "scale": c.pick(1.0, 0.1)},
        EXACT,
    ),
    "to_q2_0": (lambda c: {"codes": c.codes(c.size(1, 2), 256), "block": c.pick(64, 128)}, EXACT),
    "absmean_quantize": (_weights, EXACT),
    "absmax_quantize": (_rows, EXACT),
    "binary_quantize": (_weights, EXACT),
    "topk_mask": (_topk, EXACT),
    "block_topk_mask": (_blocks, EXACT),
    "topk_quantize": (_topk, EXACT),
    "quantize_nf4": (_nf4, EXACT),
    "ternary_matmul_int8": (_product_int8, EXACT),
    "ternary_matmul": (_product, FLOAT32),
    "ternary_linear": (_linear, FLOAT64),
    "rms_norm": (lambda c: _normed(c, True), FLOAT64),
    "layer_norm": (lambda c: _normed(c, False), FLOAT64),
    "relu": (_rows, EXACT),
    "squared_relu": (_rows, EXACT),
    "mlp": (_mlp, FLOAT64),
}


def fuzz_cases(count: int, seed: int, only: str = "") -> Iterator[tuple[Case, list[int]]]:
    """Yield cases, and the choices that make them: `count` of each call that has `only` in it.

    Case number i of a call is the same whatever the count and the other calls.

    Examples
    --------
    >>> case, choices = next(fuzz_cases(1, seed=7, only="topk_mask"))
    >>> case.id, case.call, len(case.expect)
    ('topk/topk_mask-7.0', 'topk_mask', 1)
    """
    for call in DRAWS:
        for number in range(count) if only in call else ():
            drawn = minibit.words(seed, DOMAIN, number, WORDS, lane=crc32(call.encode()) >> 1)
            yield case_of(call, drawn.tolist(), f"{call}-{seed}.{number}")


def case_of(call: str, choices: Sequence[int], name: str) -> tuple[Case, list[int]]:
    """Make the case of some choices; return it with those that it uses."""
    chosen = Choices(choices)
    draw, exactness = DRAWS[call]
    args = {key: value if _made(value) else encode(value) for key, value in draw(chosen).items()}
    case = Case(f"{module_of(call)}/{name}", call, args, "a random case", (), (), **exactness)
    with _plain_numpy():
        answer = answer_of(case, minibit)
    if "out" not in answer:
        raise ValueError(f"{case.id}: minibit refuses its own case: {answer['refused']}")
    return replace(case, expect=answer["out"]), chosen.used


def _made(value: Any) -> bool:
    """Whether an argument is an object that is made beforehand, and so encoded already."""
    return isinstance(value, dict) and "make" in value


@cache
def module_of(call: str) -> str:
    """Return the file of vectors that has a call."""
    return next(case.module for name in vector_files() for case in cases(name) if case.call == call)


@contextmanager
def _plain_numpy() -> Iterator[None]:
    """Let minibit answer without kernels inside the block."""
    before = os.environ.get("MINIBIT_KERNELS")
    os.environ["MINIBIT_KERNELS"] = "reference"
    try:
        yield
    finally:
        del os.environ["MINIBIT_KERNELS"]
        os.environ.update({} if before is None else {"MINIBIT_KERNELS": before})


def smallest(case: Case, choices: list[int], fails: Callable[[Case], bool]) -> Case:
    """Make a case that fails smaller while it fails: fewer choices, or as many and lower ones.

    Tries at most `TRIES` cases; the last that `fails` is asked of need not have failed.
    """
    name, left, again = case.id.partition("/")[2], TRIES, True
    while again:
        again = False
        for trial in _smaller(case.call, choices):
            if left == 0:
                return case
            left -= 1
            smaller, used = case_of(case.call, trial, name)
            if (len(used), used) < (len(choices), choices) and fails(smaller):
                case, choices, again = smaller, used, True
                break
    return case


def _smaller(call: str, choices: list[int]) -> Iterator[list[int]]:
    """Yield lists of choices that may be smaller: the largest steps first."""
    chosen = Choices(choices)
    DRAWS[call][0](chosen)
    lengths = {1, *(choices[place] + 1 for place in chosen.sizes if place < len(choices))}
    for place in chosen.sizes:  # how many there are: none, half, one less
        for value in dict.fromkeys((0, choices[place] // 2, choices[place] - 1)):
            if 0 <= value < choices[place]:
                yield [*choices[:place], value, *choices[place + 1 :]]
    for part in range(8):  # all others from some place on are 0
        yield choices[: len(choices) * part // 8]
    for place in chosen.sizes:  # one less, and not the last one but another
        if choices[place]:
            fewer = [*choices[:place], choices[place] - 1, *choices[place + 1 :]]
            for start in range(place + 1, len(choices)):
                yield from (fewer[:start] + fewer[start + length :] for length in lengths)
    for place, value in enumerate(choices):
        for lower in dict.fromkeys((0, value // 2 & ~1, value - 1)):
            if place not in chosen.sizes and 0 <= lower < value:
                yield [*choices[:place], lower, *choices[place + 1 :]]
