"""``bench nf4``: NF4's product and its decoder beside NumPy and bitsandbytes, and what it stores.

Timed as `minibit.bench.products` says, through the public functions, on one thread. bitsandbytes
multiplies float32 activations, as we do; its kernel for bfloat16 activations, which needs AVX-512
BF16 and weights in an order of its own, is shown beside, without a bar.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from minibit.bench import Figure, Options, Report
from minibit.bench.products import _medians
from minibit.nf4 import NF4Tensor, dequantize_nf4_reference, nf4_matmul, quantize_nf4

__all__ = ["SIDE", "nf4"]

SIDE = 4096  # of the square matrix
BLOCK = 64
BITS = (4.5, 4.127)  # a parameter: plain, and doubly quantised
SECONDS = 4.0  # for all candidates of a kind

Candidates = dict[str, Callable[[], object]]


def nf4(options: Options) -> Report:
    """Time one token, several, quantising and dequantising; compute the bits from the object."""
    threads = options.threads or 1
    rng = np.random.default_rng(0)
    w = rng.standard_normal((SIDE, SIDE), dtype=np.float32)
    x = rng.standard_normal((1, SIDE), dtype=np.float32)
    tensor, double = quantize_nf4(w, BLOCK), quantize_nf4(w, BLOCK, double_quant=True)
    floats = tensor.dequantize()
    peers = options.peers and importlib.util.find_spec("bitsandbytes") is not None
    products: Candidates = {
        "nf4": lambda: nf4_matmul(x, tensor, threads=threads),
        "doubly quantised": lambda: nf4_matmul(x, double, threads=threads),
        "numpy float32": lambda: x @ floats.T,
    }
    decoders: Candidates = {
        "nf4": tensor.dequantize,
        "numpy": lambda: dequantize_nf4_reference(tensor),
    }
    if peers:
        product, half, decoder = _bitsandbytes(w, x)
        products |= {"bitsandbytes": product} | ({"bitsandbytes bfloat16": half} if half else {})
        decoders["bitsandbytes"] = decoder
    one, back = _medians(products, SECONDS), _medians(decoders, SECONDS)
    many = {tokens: _tokens(tensor, floats, tokens, rng, threads) for tokens in (4, 16, 64)}
    name = f"{SIDE} x {SIDE}"
    figures = [_speed(f"{name}: one token", one, "numpy float32", 5.0)]
    if peers:
        figures.append(_speed(f"{name}: one token", one, "bitsandbytes", 15.0))
    if "bitsandbytes bfloat16" in one:
        figures.append(_speed(f"{name}: one token", one, "bitsandbytes bfloat16"))
    ratio = one["numpy float32"] / one["doubly quantised"]
    figures.append(Figure(f"{name}: one token, doubly quantised, over numpy float32", ratio, "x"))
    figures += [
        _speed(f"{name}: {tokens} tokens", times, "numpy float32") for tokens, times in many.items()
    ]
    figures.append(_speed(f"{name}: dequantise", back, "numpy"))
    if peers:
        figures.append(_speed(f"{name}: dequantise", back, "bitsandbytes", 3.0))
    figures.append(Figure("packed bytes read", tensor.nbytes / one["nf4"] / 1e9, "GB/s"))
    for what, held, most in zip(("NF4", "doubly quantised"), (tensor, double), BITS, strict=True):
        bits = round(held.bits_per_parameter, 3)
        figures.append(Figure(f"{what}: storage", bits, "bits a parameter", most, at_least=False))
    details: dict[str, Any] = {"one token": one, "dequantise": back}
    details |= {f"{tokens} tokens": times for tokens, times in many.items()}
    return Report(tuple(figures), _notes(options, peers), details)


def _tokens(
    tensor: NF4Tensor,
    floats: np.ndarray[Any, np.dtype[np.float32]],
    tokens: int,
    rng: np.random.Generator,
    threads: int,
) -> dict[str, float]:
    """Median seconds of several tokens."""
    x = rng.standard_normal((tokens, SIDE), dtype=np.float32)
    return _medians(
        {
            "nf4": lambda: nf4_matmul(x, tensor, threads=threads),
            "numpy float32": lambda: x @ floats.T,
        },
        SECONDS / 4,
    )


def _bitsandbytes(
    w: np.ndarray[Any, np.dtype[np.float32]], x: np.ndarray[Any, np.dtype[np.float32]]
) -> tuple[Callable[[], object], Callable[[], object] | None, Callable[[], object]]:
    """Return the peer's product, that for bfloat16 where this CPU has it, and its decoder."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from bitsandbytes import functional
        from bitsandbytes.autograd._functions import matmul_4bit
    packed, state = functional.quantize_4bit(torch.from_numpy(w), blocksize=BLOCK, quant_type="nf4")
    token = torch.from_numpy(x)

    def product() -> object:
        with torch.no_grad():
            return matmul_4bit(token, packed, quant_state=state)

    def decoder() -> object:
        return functional.dequantize_4bit(packed, state)

    if not functional.has_avx512bf16():  # type: ignore[no-untyped-call,unused-ignore]
        return product, None, decoder
    again, other = functional.quantize_4bit(torch.from_numpy(w), blocksize=BLOCK, quant_type="nf4")
    laid, state_of = functional._convert_weight_packed_for_cpu(again, other)
    short = token.bfloat16()

    def half() -> object:
        with torch.no_grad():
            return matmul_4bit(short, laid, quant_state=state_of)

    return product, half, decoder


def _speed(what: str, times: dict[str, float], peer: str, bar: float | None = None) -> Figure:
    """Say how many times as fast as another way ours is."""
    return Figure(f"{what}, speed over {peer}", times[peer] / times["nf4"], "x", bar)


def _notes(options: Options, peers: bool) -> tuple[str, ...]:
    """Say what was measured, and what was left out."""
    notes = ["Medians of one interleaved run; each candidate warms its caches before it is timed."]
    if options.peers and not peers:
        notes.append("bitsandbytes is not installed: its figures are left out.")
    if (options.threads or 1) != 1:
        notes.append("The bars are meant for one thread.")
    return tuple(notes)
