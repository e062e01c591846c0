"""Quantising to NF4 as bitsandbytes does, bit for bit, and the product with float activations."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from minibit import kernels
from minibit.base import float32, last_axis, plain, thread_count
from minibit.nf4.codebooks import (
    NF4_CODE,
    Floats,
    check_block,
    checked_weights,
    midpoints,
    nearest_code,
    scale_blocks,
)
from minibit.nf4.double_quant import quantize_absmax
from minibit.nf4.tensor import NF4Tensor, dequantize_nf4_reference, fill, pair_table

__all__ = ["nf4_matmul", "nf4_matmul_reference", "quantize_nf4", "quantize_nf4_reference"]

FEW = 4  # tokens that each read the packed weights; more share a slice of dequantised ones
SLICE = 1 << 18  # weights of such a slice: 1 MB of float32, which a second-level cache holds
PAYS = 4_000_000  # multiplications from which a second thread is worth waking


def quantize_nf4_reference(
    w: ArrayLike, block: int = 64, double_quant: bool = False, *, check_finite: bool = True
) -> NF4Tensor:
    """Quantise `w` in a few lines of NumPy, as `quantize_nf4` does.

    `block`, `double_quant` and `check_finite` are as there.

    Examples
    --------
    >>> quantize_nf4_reference(np.float32([2.0, 0.1, -1.9])).dequantize().round(3)
    array([ 2.   ,  0.159, -2.   ], dtype=float32)
    """
    block, array = check_block(block), checked_weights(w, check_finite)
    s, absmax = scale_blocks(array.reshape(-1), block)
    codes = np.full(s.size + s.size % 2, 7, np.uint8)  # a lone last code is joined by a zero
    codes[: s.size] = nearest_code(s)
    packed = (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)  # (ceil(n / 2),)
    return _nested(NF4Tensor(array.shape, block, packed, absmax), double_quant)


def quantize_nf4(
    w: ArrayLike, block: int = 64, double_quant: bool = False, *, check_finite: bool = True
) -> NF4Tensor:
    """Quantise weights to 4 bits, with one absmax for every block.

    ``s = w (1 / max(absmax, 1e-38))``, ``code = #{midpoints of NF4_CODE below s}``.

    Parameters
    ----------
    w : float array of any shape with an axis, usually (n_out, n_in)
        Cast to float32 and flattened. Not empty, all finite: a TypeError or ValueError names what
        is not, by its first entry.
    block : int
        32, 64, 128, ... or 4096 neighbours share an absmax; the last block may be shorter.
    double_quant : bool
        Whether the absmaxes are quantised too, to 8 bits (`minibit.nf4.double_quant`); a ValueError
        if they have no finite mean in float32.
    check_finite : bool
        False lets NaN and infinities pass, and does what bitsandbytes does: NaN makes its block
        NaN, -inf comes back as +inf, and beside an infinity all finite weights are NaN.

    Notes
    -----
    QLoRA (arXiv 2305.14314), section 3, as bitsandbytes 0.50 computes it. A value at a midpoint has
    the lower code. A block of zeros has codes 7 and absmax 0. A shorter last block is divided by
    its absmax, not multiplied by the reciprocal, and stores at least 1e-38. An odd number of
    weights is filled up with code 7. Negative zero comes back as zero.

    Examples
    --------
    >>> tensor = quantize_nf4(np.float32([[2.0, 0.1], [-1.9, 0.0]]))
    >>> tensor.codes(), tensor.absmax
    (array([[15,  8],
           [ 0,  7]], dtype=uint8), array([2.], dtype=float32))
    """
    block, array = check_block(block), checked_weights(w, check_finite=False)
    if kernels.compiled():
        from minibit.kernels.nf4 import quantise

        flat = plain(array).reshape(-1)
        packed = np.empty(-(-flat.size // 2), np.uint8)
        absmax = np.empty(-(-flat.size // block), np.float32)
        if quantise(flat, midpoints(NF4_CODE), block, packed, absmax):
            return _nested(NF4Tensor(array.shape, block, packed, absmax), double_quant)
    return quantize_nf4_reference(array, block, double_quant, check_finite=check_finite)


def _nested(tensor: NF4Tensor, double_quant: bool) -> NF4Tensor:
    """Quantise the absmaxes of a tensor too, if that is asked for."""
    if not double_quant:
        return tensor
    codes, nested, offset = quantize_absmax(tensor.absmax)
    return NF4Tensor(tensor.shape, tensor.block, tensor.packed, None, offset, codes, nested)


def nf4_matmul_reference(x: ArrayLike, tensor: NF4Tensor) -> Floats:
    """Multiply x by the weights of an NF4 tensor, dequantised, as `nf4_matmul` does.

    Examples
    --------
    >>> nf4_matmul_reference(np.float32([[3, 5]]), quantize_nf4(np.float32([[2, 0], [-2, 2]])))
    array([[6., 4.]], dtype=float32)
    """
    y: Floats = _activations(x, tensor) @ dequantize_nf4_reference(tensor).T
    return y


def nf4_matmul(x: ArrayLike, tensor: NF4Tensor, *, threads: int | None = None) -> Floats:
    """Multiply float32 activations by NF4 weights: ``y = x W^T``, float32 (..., n_out).

    Up to 4 tokens read the packed weights, each in turn, an eighth of float32's bytes. For more,
    slices of the matrix that fit into a cache are dequantised and multiplied by NumPy. Sums are of
    float32 in the order that suits the CPU, the same for every number of threads: no further than
    ``(n_in + 4) 2**-24 sum |x_i w_i|`` from the exact product.

    Parameters
    ----------
    x : float array, shape (..., n_in)
        Cast to float32. NaN and infinities pass, as in any product of floats. No rows give no rows.
    tensor : NF4Tensor, shape (n_out, n_in)
        What is not, or has another number of inputs, is a TypeError or ValueError.
    threads : int, optional
        At most so many threads for up to 4 tokens, where the matrix is large; the default is what
        `minibit.kernels.threads.cpus` says. With more tokens NumPy's own setting counts.

    Notes
    -----
    A derivative takes the floats: ``x @ tensor.dequantize().T``, in either mode.

    Examples
    --------
    >>> nf4_matmul(np.float32([[3, 5]]), quantize_nf4(np.float32([[2, 0], [-2, 2]])))
    array([[6., 4.]], dtype=float32)
    """
    x = _activations(x, tensor)
    threads = thread_count(threads)
    if not kernels.compiled():
        return nf4_matmul_reference(x, tensor)
    n_out, n_in = tensor.shape
    rows = plain(x).reshape(-1, n_in)
    out = np.empty((len(rows), n_out), np.float32)
    if len(rows) > FEW:
        _many(rows, tensor, out)
    elif len(rows):
        absmax = tensor.absmax
        for token, y in zip(rows, out, strict=True):
            _one(token, tensor, absmax, y, threads)
    return out.reshape(*x.shape[:-1], n_out)


def _one(x: Floats, tensor: NF4Tensor, absmax: Floats, out: Floats, threads: int | None) -> None:
    """Multiply one token, the rows of the matrix shared between threads."""
    from minibit.kernels import nf4

    n_out, n_in = tensor.shape
    lanes = nf4.LANES.get(kernels.path())
    if lanes is not None and n_in % (8 * len(lanes)):
        lanes = lanes[:8]
    if lanes is None or n_in % (8 * len(lanes)):
        kernel = partial(nf4.matvec, x, tensor.packed, absmax, pair_table(), tensor.block, out)
    else:
        vector = 8 * len(lanes)  # weights
        line = x.reshape(-1, len(lanes), 4, 2)[..., ::-1].reshape(-1, len(lanes), 8)
        line = np.ascontiguousarray(line.swapaxes(1, 2))  # (vectors, 8, lanes)
        shift, per = tensor.block.bit_length() - 1, (0,) * max(1, vector // tensor.block)
        kernel = partial(
            nf4.matvec_wide, line, tensor.packed, absmax, NF4_CODE, shift, lanes, per, out
        )
    if threads == 1 or n_out * n_in < PAYS:
        kernel(0, n_out)
        return
    from minibit.kernels.threads import cpus, run

    count = cpus() if threads is None else threads
    step = -(-n_out // (2 * count)) * 2  # pairs of rows
    run([partial(kernel, a, min(a + step, n_out)) for a in range(0, n_out, step)])


def _many(rows: Floats, tensor: NF4Tensor, out: Floats) -> None:
    """Multiply many tokens by one slice of rows after the other."""
    n_out, n_in = tensor.shape
    absmax, step = tensor.absmax, max(1, min(n_out, SLICE // n_in))
    weights = np.empty((step, n_in), np.float32)
    for a in range(0, n_out, step):
        part = weights[: min(step, n_out - a)]
        fill(tensor, absmax, a * n_in, part.reshape(-1))
        np.matmul(rows, part.T, out=out[:, a : a + len(part)])


def _activations(x: ArrayLike, tensor: NF4Tensor) -> Floats:
    """Return x as float32 that fits the matrix, or say why it does not."""
    if not isinstance(tensor, NF4Tensor):
        raise TypeError(f"tensor must be an NF4Tensor, got {type(tensor).__name__}")
    if len(tensor.shape) != 2:
        raise ValueError(f"tensor must have shape (n_out, n_in) to multiply by, got {tensor.shape}")
    array = float32("x", x)
    last_axis("x", array, tensor.shape[1])
    return array
