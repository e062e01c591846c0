"""``bench nf4``: NF4's product and its decoder beside NumPy and bitsandbytes, and what it stores.

Timed through the public functions, on one thread. bitsandbytes multiplies float32 activations, as
we do; its kernel for bfloat16 activations, which needs AVX-512 BF16 and weights in an order of its
own, is shown beside, without a bar.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.bench import Figure, Options, Report, installed, notes, speeds, warm_medians
from minibit.nf4 import dequantize_nf4_reference, nf4_matmul, quantize_nf4

__all__ = ["SIDE", "nf4"]

SIDE = 4096  # of the square matrix
BLOCK = 64
SECONDS = 4.0  # for all candidates of a kind

Ways = dict[str, Callable[[], object]]
Floats = NDArray[np.float32]


def nf4(options: Options) -> Report:
    """Time one token, several, quantising and dequantising; compute the bits from the object."""
    threads = options.threads or 1
    rng = np.random.default_rng(0)
    w = rng.standard_normal((SIDE, SIDE), dtype=np.float32)
    x = rng.standard_normal((1, SIDE), dtype=np.float32)
    tensor, double = quantize_nf4(w, BLOCK), quantize_nf4(w, BLOCK, double_quant=True)
    floats = tensor.dequantize()

    def products(x: Floats) -> Ways:
        return {
            "nf4": lambda: nf4_matmul(x, tensor, threads=threads),
            "numpy float32": lambda: x @ floats.T,
        }

    decoders: Ways = {"nf4": tensor.dequantize, "numpy": lambda: dequantize_nf4_reference(tensor)}
    one_token = products(x)
    one_token["doubly quantised"] = lambda: nf4_matmul(x, double, threads=threads)
    if options.peers and installed("bitsandbytes"):
        peer_products, decoders["bitsandbytes"] = _bitsandbytes(w, x)
        one_token |= peer_products
    one, back = warm_medians(one_token, SECONDS), warm_medians(decoders, SECONDS)
    name = f"{SIDE} x {SIDE}"
    bars = {"numpy float32": 5.0, "bitsandbytes": 15.0, "bitsandbytes bfloat16": None}
    figures = speeds(f"{name}: one token", one, "nf4", bars)
    ratio = one["numpy float32"] / one["doubly quantised"]
    figures.append(Figure(f"{name}: one token, doubly quantised, over numpy float32", ratio, "x"))
    details: dict[str, Any] = {"one token": one, "dequantise": back}
    for tokens in (4, 16, 64):
        many = products(rng.standard_normal((tokens, SIDE), dtype=np.float32))
        times = details[f"{tokens} tokens"] = warm_medians(many, SECONDS / 4)
        figures += speeds(f"{name}: {tokens} tokens", times, "nf4", {"numpy float32": None})
    figures += speeds(f"{name}: dequantise", back, "nf4", {"numpy": None, "bitsandbytes": 3.0})
    figures.append(Figure("packed bytes read", tensor.nbytes / one["nf4"] / 1e9, "GB/s"))
    for title, weights, most in (("NF4", tensor, 4.5), ("doubly quantised", double, 4.127)):
        bits = round(weights.bits_per_parameter, 3)
        figures.append(Figure(f"{title}: storage", bits, "bits per parameter", most, False))
    return Report(figures, notes(options, "bitsandbytes", "bitsandbytes"), details)


def _bitsandbytes(w: Floats, x: Floats) -> tuple[Ways, Callable[[], object]]:
    """Return the peer's products, that for bfloat16 where this CPU has it, and its decoder."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from bitsandbytes import functional
        from bitsandbytes.autograd._functions import matmul_4bit

    def quantized() -> Any:
        return functional.quantize_4bit(torch.from_numpy(w), blocksize=BLOCK, quant_type="nf4")

    def product(token: Any, packed: Any, state: Any) -> Callable[[], object]:
        def multiply() -> object:
            with torch.no_grad():
                return matmul_4bit(token, packed, quant_state=state)

        return multiply

    packed, state = quantized()
    token = torch.from_numpy(x)
    ways = {"bitsandbytes": product(token, packed, state)}
    if functional.has_avx512bf16():  # type: ignore[no-untyped-call,unused-ignore]
        ordered = functional._convert_weight_packed_for_cpu(*quantized())
        ways["bitsandbytes bfloat16"] = product(token.bfloat16(), *ordered)
    return ways, lambda: functional.dequantize_4bit(packed, state)
