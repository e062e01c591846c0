"""The PyTorch port behind ``minibit conform --port "python docs/ports/torch/adapter.py [FILE]"``.

One JSON line per case comes in, one goes out. Arrays travel as bit patterns:
``{"dtype": "float32", "shape": [2], "bits": "3f800000 80000000"}``; a number is one of shape [].
"""

import importlib.util
import json
import struct
import sys
from pathlib import Path

import torch

path = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("minibit_torch.py")
spec = importlib.util.spec_from_file_location("port", path)
port = importlib.util.module_from_spec(spec)
spec.loader.exec_module(port)
torch.set_num_threads(1)

FORMATS = dict(bool="B", int8="b", uint8="B", int32="i", uint32="I", int64="q", uint64="Q")
FORMATS |= dict(float16="e", float32="f", float64="d")


class NotOffered(Exception):
    """The port has no such call, or not with such arguments."""


def decode(value):
    """Return arrays as tensors, numbers as Python's own but for float32, the rest as it is."""
    if isinstance(value, list):
        return tuple(map(decode, value))
    if not isinstance(value, dict):
        return value
    if "function" in value:
        given = {name: decode(item) for name, item in value.get("given", {}).items()}
        function, name = call_of(value["function"]), value.get("argument")
        return lambda *x: function(**{name: x[0]}, **given) if name else function(*x, **given)
    if value.get("make") == "NF4Tensor":
        return port.quantize_nf4(**decode(value["args"]))
    if value.get("make") == "TernaryMatrix":
        return decode(value["args"])  # codes, scale
    if "steps" in value or "make" in value:
        raise NotOffered
    if "dtype" not in value:
        return {name: decode(item) for name, item in value.items()}
    words = value["bits"].split()
    entries = [struct.unpack(">" + FORMATS[value["dtype"]], bytes.fromhex(w))[0] for w in words]
    if not value["shape"] and value["dtype"] != "float32":
        return bool(entries[0]) if value["dtype"] == "bool" else entries[0]
    wide = {"uint32": "int64", "uint64": "int64"}.get(value["dtype"], value["dtype"])
    return torch.tensor(entries, dtype=getattr(torch, wide)).reshape(value["shape"])


def encode(value, dtype=None):
    """Write a tensor, or an integer or list of them of a given dtype."""
    if isinstance(value, dict):
        return {name: encode(item, dtype) for name, item in value.items()}
    tensor = isinstance(value, torch.Tensor)
    name = dtype or str(value.dtype).removeprefix("torch.")
    shape = list(value.shape) if tensor else [len(value)] if isinstance(value, list) else []
    entries = value.reshape(-1).tolist() if tensor else value if shape else [value]
    bits = " ".join(struct.pack(">" + FORMATS[name], entry).hex() for entry in entries)
    return {"dtype": name, "shape": shape, "bits": bits}


def shaped(function, dtype=None):
    """Give a function of a count the argument `shape`."""

    def call(shape, **args):
        sides = [shape] if isinstance(shape, int) else list(shape)
        count = int(torch.tensor(sides, dtype=torch.int64).prod())
        return encode(function(count=count, **args).reshape(sides), dtype)

    return call


def noise_constants(density):
    """Write numbers and the table, which torch has no type for."""
    numerator, bits, table = port.noise_constants(density)
    return encode(numerator, "int64"), encode(bits, "int64"), {**encode(table, "uint64")}


def sparse_noise(blocks=None, **args):
    """Take blocks as a tensor, a tuple or one number."""
    chosen = blocks.tolist() if isinstance(blocks, torch.Tensor) else blocks
    return port.sparse_noise(blocks=[chosen] if isinstance(chosen, int) else chosen, **args)


def ternary_matmul(x, matrix):
    """Take the matrix apart; the port has one scale per matrix, and no groups."""
    scale = torch.as_tensor(matrix.get("scale", 1.0))
    if scale.ndim:
        raise NotOffered
    return port.ternary_matmul(x, matrix["codes"], scale.item())


def step_log(file):
    """Write the weights before the first step and after each, and where the log is torn."""
    _, history, torn = port.replay(bytes(file.tolist()))
    return torch.stack(history), encode(-1 if torn is None else torn, "int64")


def quantize_nf4(**args):
    """Write what a file holds of the tensor, and its weights."""
    tensor = port.quantize_nf4(**args)
    names = ("nested_codes", "nested_absmax", "offset")
    nested = tuple(tensor[name] for name in names if name in tensor)
    return (tensor["packed"], tensor["absmax"], port.dequantize_nf4(tensor), *nested)


CALLS = dict(
    quantize_nf4=quantize_nf4,
    nf4_matmul=lambda x, tensor: x.float() @ port.dequantize_nf4(tensor).T,
    StepLog=step_log,
    ternary_matmul=ternary_matmul,
    ternary_matmul_int8=lambda x, matrix: port.ternary_matmul_int8(x, matrix["codes"]),
    philox4x32=lambda **args: encode(port.philox4x32(**args), "uint32"),
    words=lambda **args: encode(port.words(**args), "uint32"),
    uniform=shaped(port.uniform),
    integers=shaped(port.integers),
    initial_codes=shaped(port.initial_codes),
    draw_inputs=lambda unit, **args: port.draw_inputs(units=[unit], **args)[0],
    topk_count=lambda **args: encode(port.topk_count(**args), "int64"),
    noise_constants=noise_constants,
    sparse_noise=sparse_noise,
    jvp=lambda fn, primals, tangents: torch.func.jvp(fn, primals, tangents),
)
SAME = (
    *("draw_units", "pack2", "unpack2", "pack_base3", "unpack_base3", "pack_bitplanes"),
    *("unpack_bitplanes", "to_hf", "from_hf", "absmean_quantize", "absmax_quantize"),
    *("binary_quantize", "fake_quant_weight", "fake_quant_activation", "bit_linear"),
    *("ternary_linear", "layer_norm", "rms_norm", "relu", "squared_relu", "cross_entropy", "mlp"),
    *("topk_mask", "block_topk_mask", "topk_sparsify", "block_topk_sparsify", "topk_quantize"),
    *("nearest_code", "dynamic_map"),
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
