"""The JAX port behind ``minibit conform --port "python docs/ports/jax/adapter.py [FILE]"``.

One JSON line per case comes in, one goes out. Arrays travel as bit patterns:
``{"dtype": "float32", "shape": [2], "bits": "3f800000 80000000"}``; a number is one of shape [].
Many cases are in float64, so it is switched on; with ``JAX_ENABLE_X64=0`` those are not offered.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
import jax
import jax.numpy as jnp
import numpy as np

path = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("minibit_jax.py")
spec = importlib.util.spec_from_file_location("port", path)
port = importlib.util.module_from_spec(spec)
spec.loader.exec_module(port)


class NotOffered(Exception):
    """The port has no such call, or not with such arguments."""


def decode(value):
    """Return arrays as JAX arrays, numbers as Python's own but for float32, the rest as it is."""
    if isinstance(value, list):
        return tuple(map(decode, value))
    if not isinstance(value, dict):
        return value
    if "function" in value:
        given = {name: decode(item) for name, item in value.get("given", {}).items()}
        function, name = call_of(value["function"]), value.get("argument")
        return lambda *x: function(**{name: x[0]}, **given) if name else function(*x, **given)
    if value.get("make") in ("TernaryMatrix", "BitNetConfig"):
        return decode(value["args"])
    if "steps" in value or "make" in value:
        raise NotOffered
    if "dtype" not in value:
        return {name: decode(item) for name, item in value.items()}
    dtype = np.dtype(value["dtype"])
    data = bytes.fromhex(value["bits"].replace(" ", ""))
    array = np.frombuffer(data, dtype.newbyteorder(">")).astype(dtype).reshape(value["shape"])
    if not value["shape"] and dtype != np.float32:
        return array.item()
    if dtype == np.float64 and not jax.config.jax_enable_x64:
        raise NotOffered
    return jnp.asarray(array)


def encode(value, dtype=None):
    """Write an array, or a number or list of a given dtype."""
    if isinstance(value, dict):
        return {name: encode(item, dtype) for name, item in value.items()}
    array = np.asarray(value, dtype)
    data, digits = array.astype(array.dtype.newbyteorder(">")).tobytes().hex(), 2 * array.itemsize
    bits = " ".join(data[at : at + digits] for at in range(0, len(data), digits))
    return {"dtype": array.dtype.name, "shape": list(array.shape), "bits": bits}


def shaped(function, dtype=None):
    """Give a function of a count the argument `shape`."""

    def call(shape, **args):
        sides = [int(side) for side in np.ravel(shape)]
        drawn = np.asarray(function(count=int(np.prod(sides, dtype=int)), **args))
        return encode(drawn.reshape(sides), dtype)

    return call


def noise_constants(density):
    """Write numbers and the table, which are Python's integers."""
    numerator, bits, table = port.noise_constants(density)
    return encode(numerator, "int64"), encode(bits, "int64"), encode(table, "uint64")


def sparse_noise(blocks=None, **args):
    """Take blocks as an array, a tuple or one number."""
    return port.sparse_noise(blocks=None if blocks is None else np.ravel(blocks), **args)


def drawn(function):
    """Write what is drawn as int64."""
    return lambda **args: encode(np.asarray(function(**args)), "int64")


def ternary_matmul(x, matrix):
    """Take the matrix apart; the port has one scale per matrix, and no groups."""
    scale = np.asarray(matrix.get("scale", 1.0))
    if scale.ndim:
        raise NotOffered
    return port.ternary_matmul(x, matrix["codes"], scale.item())


def quantize_nf4(w, block=64, double_quant=False):
    """Write bytes, absmaxes and the weights that they give."""
    if double_quant:
        raise NotOffered
    packed, absmax = port.quantize_nf4(w, block)
    return packed, absmax, port.dequantize_nf4(packed, absmax, w.shape, block)


def keep_moves(**args):
    """Write candidates as int64."""
    positions, signs = port.keep_moves(**args)
    return encode(positions, "int64"), signs


def forward(config, params, tokens, **more):
    """Leave out what is no float model."""
    if more:
        raise NotOffered
    return jax.jit(lambda params: port.forward(config, params, tokens))(params)


CALLS = dict(
    words=port.words,
    philox4x32=port.philox4x32,
    uniform=shaped(port.uniform),
    integers=shaped(port.integers),
    initial_codes=shaped(port.initial_codes),
    noise_constants=noise_constants,
    sparse_noise=sparse_noise,
    draw_units=drawn(port.draw_units),
    draw_inputs=drawn(port.draw_inputs),
    topk_count=drawn(port.topk_count),
    ternary_matmul=ternary_matmul,
    ternary_matmul_int8=lambda x, matrix: port.ternary_matmul_int8(x, matrix["codes"]),
    quantize_nf4=quantize_nf4,
    keep_moves=keep_moves,
    forward=forward,
    jvp=lambda fn, primals, tangents: jax.jvp(fn, primals, tangents),
)
SAME = (
    *("absmean_quantize", "absmax_quantize", "binary_quantize", "fake_quant_weight"),
    *("fake_quant_activation", "bit_linear", "ternary_linear", "layer_norm", "rms_norm", "relu"),
    *("squared_relu", "cross_entropy", "mlp", "topk_mask", "block_topk_mask", "topk_sparsify"),
    *("block_topk_sparsify", "topk_quantize", "nearest_code", "keep_terns"),
)


def call_of(name):
    """Return what a call means, or say that the port has no such call."""
    if name not in CALLS and name not in SAME:
        raise NotOffered
    return CALLS.get(name) or getattr(port, name)


for line in sys.stdin:
    case = json.loads(line)
    try:
        out = call_of(case["call"])(**decode(case["args"]))
        out = out if isinstance(out, tuple) else (out,)
        answer = {"out": [item if isinstance(item, dict) else encode(item) for item in out]}
    except NotOffered:
        answer = {"skip": True}
    except Exception as error:
        answer = {"refused": str(error)}
    print(json.dumps({"id": case["id"], **answer}), flush=True)
