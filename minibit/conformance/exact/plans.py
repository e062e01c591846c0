"""Plans, settings and data sets, worked from their documents; `wrong` names one mistake."""

from __future__ import annotations

import hashlib
import io
import itertools
import struct
from collections.abc import Callable
from functools import partial
from math import exp, log, prod
from typing import Any

import numpy as np

from minibit.conformance.exact.histories import History
from minibit.conformance.exact.noise import Noise
from minibit.conformance.exact.runs import Runs

__all__ = ["PLANS", "WRONG"]

MNIST = (  # SHA-256 of the published IDX files, unpacked
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
IDX = {8: "B", 9: "b", 11: "h", 12: "i", 13: "f", 14: "d"}
NUMBERS = ("seed", "zeros", "perturbations")


def plain(fields: Any, wrong: str = "") -> dict[str, Any]:
    """Return a plan's fields as JSON has them, all of them."""
    empty = {"perturbations": 0, "units": (), "inputs": ()}
    out = {**empty, **fields}
    out["names"], out["shapes"] = [*out["names"]], [[*shape] for shape in out["shapes"]]
    out |= {name: [*out[name]] for name in ("units", "inputs")}
    out |= {name: int(out[name]) for name in NUMBERS}
    if wrong == "seed-of-53-bits":
        out["seed"] = int(float(out["seed"]))
    return {name: out[name] for name in ("method", "seed", "names", "shapes", "zeros", *empty)}


def plan(wrong: str = "", **fields: Any) -> Any:
    """Count weights."""
    shapes = fields["shapes"]
    return (sum((sum if wrong == "sum-of-sides" else prod)(shape) for shape in shapes),)


def to_dict(wrong: str = "", **fields: Any) -> Any:
    """Return the fields."""
    return (plain(fields, wrong),)


def from_dict(fields: Any, wrong: str = "") -> Any:
    """Read the fields; text is no list of names, and a fraction no seed."""
    if isinstance(fields["names"], str) and wrong != "names-of-letters":
        raise TypeError("names")
    if fields["seed"] != int(fields["seed"]) and wrong != "fraction-cut":
        raise TypeError("seed")
    return (plain(fields, wrong),)


def planned(settings: Any, shapes: Any, seed: int, zeros: int, method: str, wrong: str) -> Any:
    """Return the plan that a method's settings make."""
    names, sizes = [*shapes], [[*shape] for shape in shapes.values()]
    fields: dict[str, Any] = {"method": method, "seed": seed, "zeros": zeros}
    if wrong == "names-sorted":
        names = sorted(names)
    fields |= {"names": names, "shapes": sizes}
    if method == "sampled":
        return (plain({**fields, "perturbations": settings["perturbations"]}),)
    for name, axis in (("units", 0), ("inputs", 1)):
        most, given = [size[axis] for size in sizes], settings.get(name)
        if given is None:
            fields[name] = most[:1] * len(most) if wrong == "inputs-of-the-first" else most
        elif isinstance(given, int):
            fields[name] = [given if wrong == "not-cut" else min(given, n) for n in most]
        else:
            fields[name] = [*given]
    return (plain(fields),)


def sampled_plan(settings: Any, shapes: Any, seed: int, zeros: int, wrong: str = "") -> Any:
    """Plan a run of method sampled."""
    return planned(settings, shapes, seed, zeros, "sampled", wrong)


def units_plan(settings: Any, shapes: Any, seed: int, zeros: int, wrong: str = "") -> Any:
    """Plan a run of method units."""
    return planned(settings, shapes, seed, zeros, "units", wrong)


def numerator(density: float, wrong: str = "") -> Any:
    """Return a density times 2^32, half to even."""
    exact = Noise().numerator(density)
    if wrong == "rounded-down":
        exact = int(density * 2**32)
    return (round(density * 2**31) if wrong == "31-bits" else exact,)


def sampled_propose(plan: Any, step: int, density: float, wrong: str = "") -> Any:
    """Draw the perturbations of a step over all layers."""
    noise, share = Noise(), Noise().numerator(density)
    size = sum(prod(shape) for shape in plan["shapes"])
    numbers = np.arange(plan["perturbations"])
    if wrong == "lanes-from-1":
        numbers = numbers + 1
    step = 0 if wrong == "noise-of-step-0" else step
    return (*noise.sparse_noise_many(plan["seed"], step, numbers, size, share), share)


def units_propose(plan: Any, step: int, wrong: str = "") -> Any:
    """Draw units of each layer, and inputs of each unit where they are not all candidates."""
    runs, units, columns = Runs(wrong), [], []
    for layer, shape in enumerate(plan["shapes"]):
        drawn, rows = runs.candidates(shape, plan["seed"], step, layer, plan)
        units.append(np.array(drawn, np.int64))
        columns.append(np.array(rows, np.int64) if plan["inputs"][layer] < shape[1] else None)
    return units, columns


def quotas(plan: Any, rate: float, step: int, wrong: str = "") -> Any:
    """Return how many moves each layer may make."""
    return (Runs(wrong).quotas(plan["shapes"], plan["seed"], step, {**plan, "rate": rate}),)


def start(shapes: Any, seed: int, method: str, zeros: float, settings: Any, wrong: str = "") -> Any:
    """Return the weights and the plan of a run that begins."""
    share = Noise().numerator(zeros)
    made = planned(settings, shapes, seed, share, method, "")[0]
    if wrong == "a-third-of-zeros":
        made = {**made, "zeros": round(2**32 / 3)}
    params = History(wrong).initial_params(made)[0]
    return params, made


def begun(params: Any, wrong: str = "") -> Any:
    """Refuse weights that are no codes; else a run has taken 0 steps."""
    for w in params.values():
        if w.dtype != np.int8 and wrong != "dtype-not-checked":
            raise TypeError("params")
        if np.abs(w).max() > 1 and wrong != "codes-not-checked":
            raise ValueError("params")
    return (0,)


def check(params: Any, wrong: str = "") -> Any:
    """Refuse layers out of order, or that do not follow each other; else nothing."""
    if [*params] != [f"w{n + 1}" for n in range(len(params))] and wrong != "order-ignored":
        raise ValueError("params")
    shapes = [w.shape for w in params.values()]
    chained = all(a[0] == b[1] for a, b in itertools.pairwise(shapes))
    if not chained and wrong != "sides-ignored":
        raise ValueError("params")
    return (None,)


def preset(wrong: str = "", **recipe: Any) -> Any:
    """Return the shapes of the layers."""
    if recipe.get("activations", "float") not in ("float", "int8") and wrong != "float-then":
        raise ValueError("activations")
    widths = recipe["widths"]
    pairs = [[b, a] for a, b in itertools.pairwise(widths)]
    if wrong == "inputs-first":
        pairs = [pair[::-1] for pair in pairs]
    return ({f"w{n}": pair for n, pair in enumerate(pairs, 1)},)


def course(ends: Any, steps: int, step: int) -> float:
    """Return a geometric course's value."""
    low, high = ends
    return float(low * exp(log(high / low) * step / (steps - 1)))


def preset_settings(at: Any, wrong: str = "", **recipe: Any) -> Any:
    """Return the numbers of a method, and its density or rate at some steps."""
    steps = recipe["steps"]
    if recipe["method"] == "sampled":
        every = 1 if wrong == "every-step" else 32
        values = [course(recipe["density"], steps, t // every * every) for t in at.tolist()]
        return recipe["perturbations"], np.array(values)
    widths, units = recipe["widths"], [*recipe["units"]]
    layers = len(widths) - 1
    if len(units) != layers:
        last = units[0] if wrong == "first-for-all" else units[-1]
        units = [units[0]] * (layers - 1) + [last]
    if wrong != "not-cut":
        units = [min(n, n_out) for n, n_out in zip(units, widths[1:], strict=True)]
    values = [course(recipe["rate"], steps, t) for t in at.tolist()]
    return units, np.array(values)


# --- Data


def read_idx(source: Any, wrong: str = "") -> Any:
    """Read an array in the IDX format."""
    data = bytes(np.asarray(source, np.uint8).tolist())
    letter, axes = IDX[8 if wrong == "bytes-alone" else data[2]], data[3]
    if data[:2] != b"\0\0" and wrong != "magic-ignored":
        raise ValueError("byte 0")
    sides = struct.unpack_from(f">{axes}I", data, 4)
    order = "<" if wrong == "little-endian-items" else ">"
    count, begin = prod(sides), 4 + 4 * axes
    held = (len(data) - begin) // struct.calcsize(letter)
    if begin + count * struct.calcsize(letter) != len(data):
        if wrong != "length-not-compared":
            raise ValueError("byte")
        count = min(count, held)
        sides = (count,)
    items = struct.unpack_from(f"{order}{count}{letter}", data, begin)
    sides = sides[::-1] if wrong == "sides-turned-round" else sides
    return (np.array(items, letter).reshape(sides),)


def idx_digest(array: Any, wrong: str) -> bytes:
    """SHA-256 of an array of bytes as an IDX file."""
    order = "<" if wrong == "sides-little-endian" else ">"
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f"{order}{array.ndim}I", *array.shape)
    head = b"" if wrong == "entries-alone" else head
    return hashlib.sha256(head + array.tobytes()).digest()


def load_npz(file: Any, test: int | None = None, wrong: str = "") -> Any:
    """Return four arrays as bytes, their digest, and the shape of a sample."""
    content = np.load(io.BytesIO(bytes(np.asarray(file, np.uint8).tolist())))
    if "x" in content:
        x, y = content["x"], content["y"]
        rows = len(x)
        test = max(rows // 7, 1) if test is None else test
        cut = test if wrong == "first-rows-are-the-test" else rows - test
        parts = [x[:cut], y[:cut], x[cut:], y[cut:]]
        if wrong == "first-rows-are-the-test":
            parts = parts[2:] + parts[:2]
    else:
        names = ("train_x", "train_y", "test_x", "test_y")
        parts = [content[n if n in content else "_".join(n.split("_")[::-1])] for n in names]
    arrays = [np.array(part, float).astype(np.uint8) for part in parts]
    flat = [a.reshape(len(a), -1) if a.ndim > 1 else a for a in arrays]
    hashed = flat if wrong == "flattened-first" else arrays
    inner = b"".join(idx_digest(a, wrong) for a in hashed)
    if wrong == "one-hash":
        inner = b"".join(a.tobytes() for a in arrays)
    return (*flat, hashlib.sha256(inner).hexdigest(), [*arrays[0].shape[1:]])


def load_mnist(wrong: str = "") -> Any:
    """Return the digest of MNIST."""
    digests = [bytes.fromhex(text) for text in MNIST]
    if wrong == "images-first":
        digests = digests[::2] + digests[1::2]
    inner = "".join(MNIST).encode() if wrong == "hexadecimal-hashed" else b"".join(digests)
    return (hashlib.sha256(inner).hexdigest(),)


def dataset(train_x: Any, train_y: Any, test_x: Any, test_y: Any, wrong: str = "") -> Any:
    """Count features and classes."""
    labels = train_y if wrong == "labels-of-the-training-set" else [*train_y, *test_y]
    classes = len(set(labels)) if wrong == "labels-that-occur" else int(max(labels)) + 1
    return train_x.shape[1], classes


def split(
    train_x: Any,
    train_y: Any,
    test_x: Any,
    test_y: Any,
    validation: int | None = None,
    wrong: str = "",
) -> Any:
    """Cut the last samples off: a twelfth, rounded down."""
    total = len(train_x)
    if validation is None:
        validation = max(total // 12, 1)
        if wrong == "a-tenth":
            validation = max(total // 10, 1)
    cut = total - validation
    if wrong == "first-samples-cut":
        return (
            train_x[validation:],
            train_y[validation:],
            train_x[:validation],
            train_y[:validation],
        )
    return train_x[:cut], train_y[:cut], train_x[cut:], train_y[cut:]


FUNCTIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "Plan": (plan, "sum-of-sides"),
    "Plan.to_dict": (to_dict, "seed-of-53-bits"),
    "Plan.from_dict": (from_dict, "seed-of-53-bits names-of-letters fraction-cut"),
    "Sampled.plan": (sampled_plan, "names-sorted"),
    "Units.plan": (units_plan, "names-sorted inputs-of-the-first not-cut"),
    "Sampled.numerator": (numerator, "rounded-down 31-bits"),
    "Sampled.propose": (sampled_propose, "lanes-from-1 noise-of-step-0"),
    "Units.propose": (units_propose, "first-inputs inputs-a-layer"),
    "Units.quotas": (quotas, "lot-of-step-0 one-lot quota-rounded-down quota-to-the-nearest"),
    "NoiseStep.start": (start, "one-stream seed-of-32-bits lane-left-out a-third-of-zeros"),
    "NoiseStep": (begun, "dtype-not-checked codes-not-checked"),
    "MLP.check": (check, "order-ignored sides-ignored"),
    "Preset": (preset, "inputs-first float-then"),
    "Preset.settings": (preset_settings, "every-step first-for-all not-cut"),
    "read_idx": (
        read_idx,
        "bytes-alone little-endian-items sides-turned-round length-not-compared magic-ignored",
    ),
    "load_npz": (
        load_npz,
        "first-rows-are-the-test one-hash entries-alone sides-little-endian flattened-first",
    ),
    "load_mnist": (load_mnist, "images-first hexadecimal-hashed"),
    "Dataset": (dataset, "labels-of-the-training-set labels-that-occur"),
    "split": (split, "a-tenth first-samples-cut"),
}
PLANS: dict[str, Callable[..., Any]] = {name: f for name, (f, _) in FUNCTIONS.items()}
WRONG: dict[str, Callable[..., Any]] = {
    f"{name}/{flag}": partial(f, wrong=flag)
    for name, (f, flags) in FUNCTIONS.items()
    for flag in flags.split()
}
