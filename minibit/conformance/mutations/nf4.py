"""Wrong variants of NF4, of double quantisation and of its product."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

__all__ = ["NF4"]

F32, SMALLEST = np.float32, np.float32(1e-38)
CODE: Any = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
DYNAMIC = np.sort(
    np.concatenate(
        [
            [0.0, 1.0],
            *(
                sign * 10.0 ** (i - 6) * (points[:-1] + points[1:]) / 2
                for i in range(7)
                for points in [np.linspace(0.1, 1, 2**i + 1)]
                for sign in (1, -1)
            ),
        ]
    )
).astype(F32)


def _nearest(s: Any, table: Any, side: Any = "left", bounds: Any = F32) -> Any:
    """Find the nearest entry; ties to the lower."""
    wide = np.asarray(table, bounds)
    return np.searchsorted((wide[:-1] + wide[1:]) / 2, s, side=side).astype(np.uint8)


def _nf4(
    w: Any,
    block: int = 64,
    double_quant: bool = False,
    table: Any = CODE,
    side: str = "left",
    bounds: Any = F32,
    low_first: bool = False,
    fill: int = 7,
    whole: str = "reciprocal",
    tail: str = "division",
    floor: Any = SMALLEST,
    stored: bool = True,
    one: bool = False,
    flush: bool = False,
    nested: Callable[..., Any] | None = None,
    product: Callable[..., Any] = lambda code, absmax: code * absmax,
) -> Any:
    """Quantise as `quantize_nf4` does, with one part that may be wrong."""
    flat = np.ravel(w).astype(F32)
    flat = np.where(np.abs(flat) < 2.0**-126, F32(0), flat) if flush else flat
    codes, absmaxes = [], []
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, block):
            part = flat[start : start + block]
            kind = whole if part.size == block else tail
            absmax = np.abs(flat if one else part).max()
            divisor = max(absmax, floor)
            s = part * (F32(1) / divisor) if kind == "reciprocal" else part / divisor
            codes.append(_nearest(np.clip(np.nan_to_num(s), F32(-1), F32(1)), table, side, bounds))
            absmaxes.append(divisor if part.size < block and stored else absmax)
        flat_codes, absmax = np.concatenate(codes), np.array(absmaxes, F32)
        padded = np.append(flat_codes, [fill] * (flat_codes.size % 2)).astype(np.uint8)
        first, second = padded[::2], padded[1::2]
        packed = second << 4 | first if low_first else first << 4 | second
        more: tuple[Any, ...] = ()
        if double_quant:
            absmax, *more = (nested or _nested)(absmax)
        back = product(np.asarray(table)[flat_codes], np.repeat(absmax, block)[: flat.size])
    return (packed, absmax, back.astype(F32).reshape(np.shape(w)), *more)


def _nested(
    absmax: Any,
    mean: Callable[..., Any] = lambda a: F32(np.add.accumulate(a)[-1] / F32(a.size)),
    block: int = 256,
    zero: int = 0,
    size: Callable[..., Any] = np.abs,
    choose: Callable[..., Any] = lambda s: _nearest(s, DYNAMIC),
    back: Callable[..., Any] = lambda d, n, offset: d * n + offset,
) -> Any:
    """Quantise absmaxes, with one part that may be wrong."""
    offset = F32(mean(absmax))
    differences = absmax - offset
    codes, nested = [], []
    for start in range(0, differences.size, block):
        part = differences[start : start + block]
        largest = size(part).max()
        s = part * (F32(1) / largest)
        codes.append(np.where(np.isnan(s), zero, choose(np.nan_to_num(s))))
        nested.append(largest)
    flat = np.concatenate(codes).astype(np.uint8)
    repeated = np.repeat(np.array(nested, F32), min(block, flat.size))[: flat.size]
    with np.errstate(all="ignore"):
        return back(DYNAMIC[flat], repeated, offset), flat, np.array(nested, F32), offset


def _binned(s: Any) -> Any:
    """Look codes up in 65,536 bins."""
    bins = np.clip((s + 1) / 2 * 65535, 0, 65535).astype(int)
    return _nearest(F32(bins / 65535 * 2 - 1), DYNAMIC)


def _with(**parts: Any) -> Callable[..., Any]:
    """Return a quantiser with wrong parts."""
    return lambda w, block=64, double_quant=False: _nf4(w, block, double_quant, **parts)


def _with_nested(**parts: Any) -> Callable[..., Any]:
    """Return a doubly quantising one with wrong parts."""
    return _with(nested=lambda absmax: _nested(absmax, **parts))


def _rounded(w: Any, codebook: Any, block: int = 64, **parts: Any) -> Any:
    """Round to a codebook, with one part that may be wrong."""
    return _nf4(w, block, table=np.asarray(codebook, F32), **parts)[2]


def _read(arrays: Any, state: Any, wrong: str, name: str = "weight") -> Any:
    """Read what a file holds of a weight, wrong in the way that is named."""
    from minibit import nf4

    state = json.loads(state)
    stored = np.ascontiguousarray(arrays[name].reshape(-1))
    packed = stored.astype(np.uint8) if wrong == "storage-as-numbers" else stored.view(np.uint8)
    absmax = arrays[f"{name}.absmax"]
    if "nested_offset" in state:
        offset = F32(0 if wrong == "offset-left-out" else state["nested_offset"])
        nested = np.repeat(arrays[f"{name}.nested_absmax"], 256)[: absmax.size]
        absmax = (DYNAMIC[absmax] * nested + offset).astype(F32)
    block = 64 if wrong == "block-of-64" else state["blocksize"]
    shape = tuple(state["shape"][::-1] if wrong == "shape-reversed" else state["shape"])
    if wrong == "low-half-first":
        packed = (packed >> 4 | packed << 4).astype(np.uint8)
    count = int(np.prod(shape))
    padded = np.resize(packed, -(-count // 2))
    blocks = np.resize(absmax.astype(F32), -(-count // block))
    return nf4.NF4Tensor(shape, block, padded, blocks).dequantize()


def _written(tensor: Any, wrong: str, name: str = "weight", dtype: str = "float32") -> Any:
    """Write what a file holds of a weight, wrong in the way that is named."""
    from minibit import nf4

    arrays = dict(nf4.to_bitsandbytes(tensor, name, dtype))
    key = f"{name}.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(arrays.pop(key)))
    if wrong == "packed-in-a-row":
        arrays[name] = arrays[name].reshape(1, -1)
    if wrong == "absmax-not-nested":
        arrays[f"{name}.absmax"] = tensor.absmax
    if wrong == "map-left-out":
        del arrays[f"{name}.quant_map"]
    if wrong == "blocksize-of-256":
        state["blocksize"] = 256
    if wrong == "size-for-shape":
        state["shape"] = [tensor.size]
    if wrong == "dtype-of-torch":
        state["dtype"] = f"torch.{dtype}"
    return arrays, json.dumps(state, sort_keys=True)


NF4: dict[str, Callable[..., Any]] = {
    "NF4Tensor.codes/low-half-first": lambda self: (
        self.codes().reshape(-1, 2)[:, ::-1].reshape(self.shape).copy()
    ),
    "NF4Tensor.codes/bytes": lambda self: self.packed,
    "NF4Tensor.dequantize/dtype-ignored": lambda self, dtype: self.dequantize(),
    "NF4Tensor.dequantize/absmax-in-half": lambda self, dtype: (
        CODE[self.codes()].astype(dtype)
        * np.repeat(self.absmax, self.block)[: self.size].reshape(self.shape).astype(dtype)
    ),
    "codebook_quantize/tie-to-the-upper": partial(_rounded, side="right"),
    "codebook_quantize/one-absmax": partial(_rounded, one=True),
    "codebook_quantize/codes-without-absmax": partial(_rounded, product=lambda code, _: code),
    "codebook_quantize/reciprocal-in-the-tail": partial(_rounded, tail="reciprocal"),
    "codebook_quantize/other-table": lambda w, codebook, block=64: _nf4(w, block)[2],
    **{
        f"from_bitsandbytes/{wrong}": partial(_read, wrong=wrong)
        for wrong in (
            *("storage-as-numbers", "offset-left-out", "block-of-64", "shape-reversed"),
            *("low-half-first", "fp4-read-as-nf4"),
        )
    },
    **{
        f"to_bitsandbytes/{wrong}": partial(_written, wrong=wrong)
        for wrong in (
            *("packed-in-a-row", "absmax-not-nested", "map-left-out", "blocksize-of-256"),
            *("size-for-shape", "dtype-of-torch"),
        )
    },
    "nf4_matmul/one-absmax-a-row": lambda x, tensor: (
        x
        @ (
            tensor.dequantize()
            / np.repeat(tensor.absmax, tensor.block)[: tensor.size].reshape(tensor.shape)
            * np.resize(tensor.absmax, len(tensor.dequantize()))[:, None]
        ).T
    ).astype(F32),
    "nf4_matmul/not-transposed": lambda x, tensor: (
        x @ tensor.dequantize().T.reshape(tensor.shape).T
    ),
    "quantize_nf4/other-table": _with(table=np.linspace(-1, 1, 16).astype(F32)),
    "quantize_nf4/low-half-first": _with(low_first=True),
    "quantize_nf4/filled-with-0": _with(fill=0),
    "quantize_nf4/tie-to-the-upper": _with(side="right"),
    "quantize_nf4/bounds-in-float64": _with(bounds=np.float64),
    "quantize_nf4/no-floor": _with(floor=F32(0)),
    "quantize_nf4/zero-of-the-tail": _with(stored=False),
    "quantize_nf4/subnormals-flushed": _with(flush=True),
    "quantize_nf4/one-absmax": _with(one=True),
    "quantize_nf4/division-in-a-full-block": _with(whole="division"),
    "quantize_nf4/reciprocal-in-the-tail": _with(tail="reciprocal"),
    "quantize_nf4/codes-without-absmax": _with(product=lambda code, absmax: code),
    "quantize_nf4/mean-in-float64": _with_nested(mean=lambda a: a.mean(dtype=np.float64)),
    "quantize_nf4/mean-in-turn": _with_nested(),
    "quantize_nf4/no-offset": _with_nested(mean=lambda a: F32(0)),
    "quantize_nf4/nested-blocks-of-64": _with_nested(block=64),
    "quantize_nf4/one-nested-absmax": _with_nested(block=1 << 30),
    "quantize_nf4/largest-difference-upwards": _with_nested(size=lambda part: part),
    "quantize_nf4/nan-is-127": _with_nested(zero=127),
    "quantize_nf4/table-of-bins": _with_nested(choose=_binned),
    "quantize_nf4/offset-before-product": _with_nested(back=lambda d, n, offset: d * (n + offset)),
    "nearest_code/tie-to-the-upper": lambda s, codebook=CODE: _nearest(s, codebook, "right"),
    "nearest_code/truncated": lambda s, codebook=CODE: np.clip(
        np.searchsorted(codebook, s, side="right") - 1, 0, len(codebook) - 1
    ).astype(np.uint8),
    "nearest_code/bounds-in-float64": lambda s, codebook=CODE: _nearest(
        s, codebook, bounds=np.float64
    ),
    "nf4_matmul/columns-exchanged": lambda x, tensor: (
        x @ tensor.dequantize().reshape(tensor.shape[0], -1, 2)[..., ::-1].reshape(tensor.shape).T
    ),
    "nf4_matmul/codes-alone": lambda x, tensor: (
        x @ (tensor.dequantize() / np.repeat(tensor.absmax, tensor.block).reshape(tensor.shape)).T
    ),
    "normal_float/quantiles-in-float64": lambda: np.nextafter(CODE, F32(2)),
    "normal_float/symmetric": lambda: np.concatenate([-CODE[:7:-1], CODE[8:]]),
    "dynamic_map/with-minus-one": lambda: np.append(F32(-1), DYNAMIC[1:]),
    "dynamic_map/linear": lambda: np.linspace(-1, 1, 256).astype(F32),
}
