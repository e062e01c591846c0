"""From Hugging Face's file layout straight to the layout of a product.

A checkpoint's matrix has 2 bits a weight in the file and 2 bits in memory, only in another order.
Going from one to the other by way of int8 codes takes four times the room of both; the kernels
expand a few rows at a time. (`minibit.ternary.published` has the file's order,
`minibit.ternary.panels` the other.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minibit.ternary.packings import pack2
from minibit.ternary.panels import empty_panels, pack_columns_reference, pack_panels_reference
from minibit.ternary.published import from_hf

__all__ = ["hold_hf", "hold_hf_reference"]

Bytes = NDArray[np.uint8]


def hold_hf_reference(packed: Bytes, n_out: int, layout: str) -> Bytes:
    """Rearrange a matrix as `hold_hf` does: through its codes, in two lines of NumPy."""
    codes = from_hf(packed, n_out)  # (n_out, n_in)
    return {
        "packed2": pack2,
        "columns": pack_columns_reference,
        "panels": pack_panels_reference,
    }[layout](codes)


def hold_hf(packed: Bytes, n_out: int, layout: str) -> Bytes:
    """Rearrange a matrix of a Hugging Face file as a product reads it.

    Parameters
    ----------
    packed : uint8 array, shape (ceil(n_out / 4), n_in)
        As `to_hf` returns it.
    n_out : int
    layout : {"panels", "columns", "packed2"}
        See `minibit.kernels.layout`.

    Returns
    -------
    uint8 array
        What ``pack_panels``, ``pack_columns`` or ``pack2`` make of the codes.

    Raises
    ------
    TypeError, ValueError
        As `from_hf` does.

    Examples
    --------
    >>> from minibit.ternary.published import to_hf
    >>> hold_hf(to_hf(np.int8([[1, 0], [0, 0], [0, 0], [0, 1]])), 4, "packed2")
    array([ 86, 149], dtype=uint8)
    """
    from minibit import kernels

    fits = packed.ndim == 2 and packed.shape[0] == -(-n_out // 4) and packed.dtype == np.uint8
    if layout == "packed2" or not fits or not kernels.compiled():
        return hold_hf_reference(packed, n_out, layout)
    from minibit.kernels import pack

    n_in = packed.shape[1]
    panels = layout == "panels"
    held = empty_panels(n_out, n_in) if panels else np.empty(-(-n_in // 16) * 4 * n_out, np.uint8)
    plain = packed if packed.flags.carray else np.array(packed, order="C")
    if not (pack.panels if panels else pack.columns)(plain, n_out, held):
        return hold_hf_reference(packed, n_out, layout)  # which names the byte
    return held
