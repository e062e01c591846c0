"""Double quantisation: the absmax of every block, in 8 bits.

The absmaxes of a matrix are all positive and much alike, so their mean is taken off, and the
differences are quantised like weights, by 256 numbers in blocks of 256:

    offset        = mean(absmax)
    nested_absmax = max|absmax - offset|          over 256 neighbours
    nested_code   = nearest entry of dynamic_map to (absmax - offset) / nested_absmax
    absmax        ~ dynamic_map[nested_code] * nested_absmax + offset

That is 8/64 + 32/(64 * 256) = 0.127 bits per weight in place of 0.5.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from minibit import kernels
from minibit.nf4.codebooks import Floats, midpoints, nearest_code, spaced

__all__ = ["NESTED_BLOCK", "dequantize_absmax", "dynamic_map", "quantize_absmax"]

NESTED_BLOCK = 256


@cache
def dynamic_map() -> Floats:
    """Return the codebook of 8-bit dynamic quantisation: 7 decades, the higher the finer.

    For i = 0..6, the midpoints of ``linspace(0.1, 1, 2**i + 1)`` times ``10**(i - 6)``, with both
    signs; and 0 and 1. Float32 (256,), ascending from -0.9929688 (there is no -1) to 1, entry 127
    is 0; read-only.

    Notes
    -----
    8-bit approximations for parallelism (arXiv 1511.04561), in the variant of 8-bit optimizers
    (arXiv 2110.02861); bit for bit as ``create_dynamic_map`` of bitsandbytes.

    Examples
    --------
    >>> code = dynamic_map()
    >>> code.shape, float(code[127]), float(code[255])
    ((256,), 0.0, 1.0)
    """
    decades = [np.float32(10.0 ** (i - 6)) * midpoints(spaced(0.1, 1, 2**i + 1)) for i in range(7)]
    magnitudes = np.concatenate(decades)  # (127,)
    code = np.sort(np.concatenate([-magnitudes, np.array([0, 1], np.float32), magnitudes]))
    code.flags.writeable = False
    return code


def quantize_absmax(absmax: Floats) -> tuple[NDArray[np.uint8], Floats, np.float32]:
    """Quantise the absmaxes (blocks,) to 8 bits: nested codes (blocks,), nested absmaxes, offset.

    The offset is `mean_of_torch`; a ValueError refuses one that is not finite (an absmax is not, or
    their sum overflows float32). A code is the nearest entry of `dynamic_map` to the product with
    ``1 / nested_absmax``, the lower one at a midpoint. Where all differences of a nested block are
    zero that is 0 / 0, and the codes are 0 as the peers have it: times an absmax of 0 they are
    worth 0 all the same.

    Notes
    -----
    QLoRA (arXiv 2305.14314), section 3. bitsandbytes on CUDA takes the nearest entry, as here. On
    the CPU it looks codes up in a table of 65,536 bins, which is coarser than the map near zero: a
    few codes differ, by entries that lie within a bin of each other.

    Examples
    --------
    >>> codes, nested, offset = quantize_absmax(np.float32([1, 2, 6]))
    >>> float(offset), nested.tolist(), codes.tolist()
    (3.0, [3.0], [23, 47, 255])
    """
    offset = mean_of_torch(absmax)
    if not np.isfinite(offset):
        raise ValueError(
            f"double quantisation needs a finite mean of the absmaxes, got {offset} from "
            f"{absmax.size} of them, the largest {absmax.max()}"
        )
    differences = absmax - offset  # (blocks,)
    count = -(-differences.size // NESTED_BLOCK)
    rows = np.zeros((count, NESTED_BLOCK), np.float32)
    rows.reshape(-1)[: differences.size] = differences
    nested = np.abs(rows).max(axis=1)  # (count,)
    with np.errstate(all="ignore"):
        s = rows * (np.float32(1) / nested)[:, None]  # 0 / 0 where all differences are 0
    codes = nearest_code(s, dynamic_map())
    codes[np.isnan(s)] = 0
    return codes.reshape(-1)[: differences.size].copy(), nested, offset


def dequantize_absmax(
    nested_codes: NDArray[np.uint8], nested_absmax: Floats, offset: np.float32
) -> Floats:
    """Undo `quantize_absmax`: ``dynamic_map[nested_codes] * nested_absmax + offset``.

    The product and the sum are rounded to float32 one after the other.

    Examples
    --------
    >>> dequantize_absmax(np.uint8([127, 255]), np.float32([3]), np.float32(3))
    array([3., 6.], dtype=float32)
    """
    if not kernels.compiled():
        return dequantize_absmax_reference(nested_codes, nested_absmax, offset)
    from minibit.kernels.nf4 import decode_absmax

    absmax = np.empty(nested_codes.size, np.float32)
    decode_absmax(nested_codes, nested_absmax, offset, dynamic_map(), absmax)
    return absmax


def dequantize_absmax_reference(
    nested_codes: NDArray[np.uint8], nested_absmax: Floats, offset: np.float32
) -> Floats:
    """Undo `quantize_absmax` in two lines of NumPy."""
    nested = np.repeat(nested_absmax, NESTED_BLOCK)[: nested_codes.size]  # (blocks,)
    absmax: Floats = dynamic_map()[nested_codes] * nested + offset
    return absmax


def mean_of_torch(values: Floats) -> np.float32:
    """Return the float32 mean of a vector in the order in which PyTorch sums on one thread.

    A sum of float32 depends on its order, and the offset is stored, so the order is part of the
    format: 8 lanes and 4 vectors side by side; of these rows, 16 or more are summed one after the
    other, then as many such sums, and so on over 4 levels; last the levels, the 4, what is left
    over, and the lanes. Above 32,768 values PyTorch splits the sum between threads, and its last
    bits depend on how many there are.
    """
    lanes = 8 if values.size >= 8 else 1
    vectors = values[: values.size // lanes * lanes].reshape(-1, lanes)
    fours = len(vectors) // 4
    four = _cascade(vectors[: 4 * fours].reshape(fours, 4 * lanes)).reshape(4, lanes)
    for row in vectors[4 * fours :]:
        four[0] += row
    total = _in_turn(four)  # (lanes,)
    rest = _in_turn(values[len(vectors) * lanes :, None])  # (1,)
    total = _in_turn(np.concatenate([rest, total])[:, None])  # (1,)
    return np.float32(total[0] / np.float32(values.size))


def _cascade(rows: Floats) -> Floats:
    """Sum rows ``(count, width)`` over 4 levels of at least 16 terms each: ``(width,)``."""
    step = 1 << max(4, max(len(rows) - 1, 0).bit_length() // 4)
    levels = []
    for _ in range(3):
        full = len(rows) // step
        levels.append(_in_turn(rows[full * step :]))
        rows = _in_turn(rows[: full * step].reshape(full, step, rows.shape[1]).swapaxes(0, 1))
    return _in_turn(np.stack([*levels, _in_turn(rows)]))


def _in_turn(rows: Floats) -> Floats:
    """Sum over the first axis, one after the other."""
    total = np.zeros(rows.shape[1:], np.float32)
    with np.errstate(over="ignore"):  # an infinite mean is the caller's to refuse
        for row in rows:
            total += row
    return total
