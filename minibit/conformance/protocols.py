"""The meaning of a call that is no plain function of its arguments: classes, and their state.

Each takes the module that offers the name, and the arguments of the case.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from minibit.conformance.adapter_protocols import ADAPTERS
from minibit.conformance.exact.dual_methods import METHODS as DUAL_METHODS
from minibit.conformance.file_protocols import FILES
from minibit.conformance.model_protocols import MODELS
from minibit.conformance.plan_protocols import PLANS
from minibit.conformance.run_protocols import RUNS

__all__ = ["PROTOCOLS"]


def step_log(offered: Any, file: Any) -> Any:
    """Weights before the first step and after each, and where the log is torn (-1: nowhere)."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run.steps"
        path.write_bytes(np.asarray(file, np.uint8).tobytes())
        log = offered.StepLog.open(path)
        log.verify()
        states = [log.weights_at(step) for step in range(len(log) + 1)]
    flat = [np.concatenate([w.reshape(-1) for w in state.values()]) for state in states]
    return np.stack(flat), -1 if log.torn_at is None else log.torn_at


def quantize_nf4(offered: Any, **args: Any) -> Any:
    """Packed codes, absmax and dequantised weights; nested codes, their absmax and offset."""
    tensor = offered.quantize_nf4(**args)
    parts = (tensor.packed, tensor.absmax, tensor.dequantize())
    if tensor.offset is None:
        return parts
    return (*parts, tensor.nested_codes, tensor.nested_absmax, tensor.offset)


def to_bitsandbytes(offered: Any, **args: Any) -> Any:
    """Return the arrays by name, and the state's JSON as text with sorted keys."""
    arrays = dict(offered.to_bitsandbytes(**args))
    (key,) = (key for key in arrays if key.endswith("__nf4"))
    return arrays, json.dumps(json.loads(bytes(arrays.pop(key))), sort_keys=True)


def from_bitsandbytes(offered: Any, arrays: Any, state: Any, name: str = "weight") -> Any:
    """Return the weights of arrays beside a state, JSON, which a file has as bytes."""
    key = f"{name}.quant_state.bitsandbytes__{json.loads(state)['quant_type']}"
    file = {**arrays, key: np.frombuffer(state.encode(), np.uint8)}
    return offered.from_bitsandbytes(file, name).dequantize()


def adam(
    offered: Any,
    param: Any,
    grads: Any,
    lr: Any,
    weight_decay: Any,
    betas: Any,
    eps: float,
    kind: str = "Adam",
) -> Any:
    """Return the parameter (n,) after each of the steps: (steps, n)."""
    optimizer = getattr(offered, kind)(param, betas=tuple(betas), eps=eps)
    return np.stack(
        [
            np.array(optimizer.step(np.full_like(param, g), lr=rate, weight_decay=decay))
            for g, rate, decay in zip(
                *map(np.ndarray.tolist, (grads, lr, weight_decay)), strict=True
            )
        ]
    )


def clip_by_global_norm(offered: Any, grads: Any, limit: float) -> Any:
    """Return a list of arrays."""
    return ([*offered.clip_by_global_norm([*grads], limit)],)


def lora_linear(offered: Any, x: Any, **args: Any) -> Any:
    """Return what a layer makes of x, and its merged weights as floats."""
    layer = offered.LoRALinear(**args)
    merged = offered.merge(layer)
    return layer(x), getattr(merged, "dequantize", lambda: merged)()


def save_adapters(offered: Any, name: str, root: str, magnitude: bool = False) -> Any:
    """Return the keys of the tensors in the file that one adapter is saved to, sorted."""
    pair: dict[str, Any] = {"A": np.zeros((2, 3), np.float32), "B": np.zeros((4, 2), np.float32)}
    pair |= {"magnitude": np.ones(4, np.float32)} if magnitude else {}
    with TemporaryDirectory() as folder:
        offered.save_adapters(Path(folder) / "adapter", {name: pair}, root=root)
        data = (Path(folder) / "adapter" / "adapter_model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return (sorted(key for key in header if key != "__metadata__"),)


def geometric(offered: Any, at: Any, **args: Any) -> Any:
    """Return the schedule's values at some steps."""
    schedule = offered.geometric(**args)
    return np.array([schedule(step) for step in at.tolist()])


def grad(offered: Any, fn: Any, x: Any) -> Any:
    """Return the gradient of a function at x."""
    return offered.grad(fn)(x)


def value_and_grad(offered: Any, fn: Any, x: Any) -> Any:
    """Return the value of a function at x, and its gradient."""
    return offered.value_and_grad(fn)(x)


def init_mlp(offered: Any, widths: Any, codes: Any) -> Any:
    """Return the parameters of an MLP whose layers have these codes, drawn one after the other."""
    return offered.init_mlp(widths, lambda layer, shape: codes[layer])


def sparsifier(offered: Any, x: Any, site: str, **args: Any) -> Any:
    """Return what is left of the inputs x of one site."""
    return offered.sparsifier(**args)(x, site)


def fit_scaling_law(offered: Any, **args: Any) -> Any:
    """Return the constants by name."""
    return offered.fit_scaling_law(**args).constants


def jacfwd(offered: Any, fn: Any, x: Any) -> Any:
    """Return the Jacobian of a function at x."""
    return offered.jacfwd(fn)(x)


def vjp(offered: Any, fn: Any, primals: Any, cotangent: Any) -> Any:
    """Return the value of a function, and what its pullback makes of a cotangent."""
    out, pullback = offered.vjp(fn, primals)
    return (out, *pullback(cotangent))


def dual_method(name: str) -> Callable[..., Any]:
    """Return a method of dual arrays: primal and tangent, or what it says of the primal alone."""

    def call(offered: Any, x: Any, x_dot: Any, args: Any) -> Any:
        """Make the array, and take its answer apart."""
        out = getattr(offered.Dual(x, x_dot), name)(*args.values())
        if isinstance(out, tuple):
            return ([*out],)
        return (out.primal, out.tangent) if hasattr(out, "tangent") else out

    return call


PROTOCOLS: dict[str, Callable[..., Any]] = {
    **{name: dual_method(name.removeprefix("Dual.")) for name in DUAL_METHODS},
    **ADAPTERS,
    **FILES,
    **MODELS,
    **PLANS,
    **RUNS,
    "Adam": adam,
    "PagedAdam": partial(adam, kind="PagedAdam"),
    "LoRALinear": lora_linear,
    "StepLog": step_log,
    "clip_by_global_norm": clip_by_global_norm,
    "from_bitsandbytes": from_bitsandbytes,
    "geometric": geometric,
    "fit_scaling_law": fit_scaling_law,
    "grad": grad,
    "init_mlp": init_mlp,
    "jacfwd": jacfwd,
    "quantize_nf4": quantize_nf4,
    "save_adapters": save_adapters,
    "sparsifier": sparsifier,
    "to_bitsandbytes": to_bitsandbytes,
    "value_and_grad": value_and_grad,
    "vjp": vjp,
}
