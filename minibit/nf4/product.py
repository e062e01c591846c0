"""NF4: weights in 4 bits, by quantiles of the normal distribution, and their product with floats.

    absmax = max|w|                          over 64 neighbours
    code   = nearest entry of NF4_CODE to w / absmax
    w      ~ NF4_CODE[code] * absmax         4.5 bits a weight, 4.127 with double quantisation
    y      = x W^T                           activations stay float32

The bytes are those of bitsandbytes, and so are the codes, bit for bit, ties, zeros, tails and all:
what is quantised here can be read there, and the other way round (`to_bitsandbytes`,
`from_bitsandbytes`). Where the 16 numbers come from, and what else one could take, is said in
`minibit.nf4.codebooks`; how the absmaxes are quantised in their turn in `minibit.nf4.double_quant`;
the tensor itself is in `minibit.nf4.tensor`, and the names and JSON of a file in
`minibit.nf4.bitsandbytes`. All of their names that one needs are public here.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    """Quantise weights as `quantize_nf4` does, in a few lines of NumPy.

    Parameters
    ----------
    w : float array of any shape with an axis
    block : int
    double_quant : bool
    check_finite : bool

    Returns
    -------
    NF4Tensor

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
    return _tensor(array.shape, block, packed, absmax, double_quant)


def quantize_nf4(
    w: ArrayLike, block: int = 64, double_quant: bool = False, *, check_finite: bool = True
) -> NF4Tensor:
    """Quantise weights to 4 bits, with one absmax for every block.

    ``s = w (1 / max(absmax, 1e-38))``, ``code = #{midpoints of NF4_CODE below s}``.

    Parameters
    ----------
    w : float array of any shape with an axis, usually (n_out, n_in)
        Cast to float32 and flattened. Not empty, all finite.
    block : int
        32, 64, 128, ... or 4096 neighbours share an absmax; the last block may be shorter.
    double_quant : bool
        Whether the absmaxes are quantised too, to 8 bits (`minibit.nf4.double_quant`).
    check_finite : bool
        False lets NaN and infinities pass, and does what bitsandbytes does: NaN makes its block
        NaN, -inf comes back as +inf, and beside an infinity all finite weights are NaN.

    Returns
    -------
    NF4Tensor

    Raises
    ------
    TypeError
        If `w` does not hold floats, or `block` is no whole number.
    ValueError
        If `w` is empty, has no axis, or an entry is NaN or infinite as float32 (the first is
        named); if `block` is none of the above; if `double_quant` is asked for and the absmaxes
        have no finite mean in float32.

    Notes
    -----
    QLoRA (arXiv 2305.14314), section 3, as bitsandbytes 0.50 computes it. A value at a midpoint has
    the lower code. A block of zeros has codes 7 and absmax 0. A shorter last block is divided by
    its absmax, not multiplied by the reciprocal, and stores at least 1e-38. An odd number of
    weights is filled up with code 7. Negative zero comes back as zero.

    Examples
    --------
    >>> tensor = quantize_nf4(np.float32([[2.0, 0.1], [-1.9, 0.0]]))
    >>> tensor.codes()
    array([[15,  8],
           [ 0,  7]], dtype=uint8)
    >>> tensor.absmax
    array([2.], dtype=float32)
    """
    from minibit import kernels

    block, array = check_block(block), checked_weights(w, check_finite=False)
    if not kernels.compiled():
        return quantize_nf4_reference(array, block, double_quant, check_finite=check_finite)
    from minibit.kernels.nf4 import quantise

    flat = plain(array).reshape(-1)
    packed = np.empty(-(-flat.size // 2), np.uint8)
    absmax = np.empty(-(-flat.size // block), np.float32)
    if not quantise(flat, midpoints(NF4_CODE), block, packed, absmax):
        return quantize_nf4_reference(array, block, double_quant, check_finite=check_finite)
    return _tensor(array.shape, block, packed, absmax, double_quant)


def _tensor(
    shape: tuple[int, ...],
    block: int,
    packed: NDArray[np.uint8],
    absmax: Floats,
    double_quant: bool,
) -> NF4Tensor:
    """Put a tensor together, its absmaxes quantised if that is asked for."""
    if not double_quant:
        return NF4Tensor(shape, block, packed, absmax)
    codes, nested, offset = quantize_absmax(absmax)
    return NF4Tensor(shape, block, packed, None, offset, codes, nested)


def nf4_matmul_reference(x: ArrayLike, tensor: NF4Tensor) -> Floats:
    """Multiply activations by NF4 weights: ``y = x W^T``, W dequantised.

    Parameters
    ----------
    x : float array, shape (..., n_in)
    tensor : NF4Tensor, shape (n_out, n_in)

    Returns
    -------
    float32 array, shape (..., n_out)

    Examples
    --------
    >>> nf4_matmul_reference(np.float32([[3, 5]]), quantize_nf4(np.float32([[2, 0], [-2, 2]])))
    array([[6., 4.]], dtype=float32)
    """
    y: Floats = _activations(x, tensor) @ dequantize_nf4_reference(tensor).T
    return y


def nf4_matmul(x: ArrayLike, tensor: NF4Tensor, *, threads: int | None = None) -> Floats:
    """Multiply float32 activations by NF4 weights: ``y = x W^T``.

    Up to 4 tokens read the packed weights, each in turn, an eighth of float32's bytes. For more,
    slices of the matrix that fit into a cache are dequantised and multiplied by NumPy.

    Parameters
    ----------
    x : float array, shape (..., n_in)
        Cast to float32. NaN and infinities pass, as in any product of floats. No rows give no rows.
    tensor : NF4Tensor, shape (n_out, n_in)
    threads : int, optional
        At most so many threads for up to 4 tokens, where the matrix is large; the default is what
        `minibit.kernels.threads.cpus` says. With more tokens NumPy's own setting counts.

    Returns
    -------
    float32 array, shape (..., n_out)
        Sums of float32 in the order that suits the CPU, the same for every number of threads: no
        further than ``(n_in + 4) 2**-24 sum |x_i w_i|`` from the exact product.

    Raises
    ------
    TypeError
        If `x` is not of floats or `tensor` is no `NF4Tensor`.
    ValueError
        If `tensor` is no matrix, the number of inputs differs, or `threads` is below 1.

    Notes
    -----
    A derivative takes the floats: ``x @ tensor.dequantize().T``, in either mode.

    Examples
    --------
    >>> nf4_matmul(np.float32([[3, 5]]), quantize_nf4(np.float32([[2, 0], [-2, 2]])))
    array([[6., 4.]], dtype=float32)
    """
    from minibit import kernels

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
    from minibit import kernels
    from minibit.kernels import nf4

    n_out, n_in = tensor.shape
    lanes = nf4.LANES.get(kernels.path())
    if lanes is not None and n_in % (8 * len(lanes)):
        lanes = lanes[:8]
    if lanes is None or n_in % (8 * len(lanes)):
        kernel = partial(nf4.matvec, x, tensor.packed, absmax, pair_table(), tensor.block, out)
    else:
        vector = 8 * len(lanes)  # weights
        line = np.empty((n_in // vector, 8, len(lanes)), np.float32)
        nf4.arrange(x, line)
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
