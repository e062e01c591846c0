"""Rows cut into blocks, each with a scale of its own in float16: what all types of ggml share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.ternary.packings import Bytes, Codes, check_bytes, check_codes, check_scale

__all__ = ["Block"]


class Block(NamedTuple):
    """A block of a row: so many weights in so many bytes, two of which are their scale."""

    weights: int
    nbytes: int
    first: bool = False  # the scale stands before the codes, else behind them

    def cut(self, codes: ArrayLike, scale: ArrayLike) -> tuple[Codes, Bytes]:
        """Return codes in blocks, and the bytes of each block's scale.

        Shapes (n_out, blocks, weights) and (n_out, blocks, 2). A block of zeros has scale 0: its
        largest magnitude, as ggml takes it. Errors are those that `to_tq1_0` names.
        """
        codes = check_codes(codes, ndim=2)
        n_out, n_in = codes.shape
        if n_in % self.weights:
            raise ValueError(
                f"codes must have n_in a multiple of {self.weights}, got shape {codes.shape}"
            )
        blocks = codes.reshape(n_out, n_in // self.weights, self.weights)
        exact = check_scale(scale)
        with np.errstate(over="ignore", under="ignore"):
            halves = exact.astype(np.float32).astype("<f2")  # rounded twice, as gguf does
        if not (np.isfinite(halves) & (exact >= 0) & ((exact == 0) | (halves > 0))).all():
            raise ValueError(
                f"scale must be finite, >= 0 and within float16's range, got {scale!r}"
            )
        try:
            scales = np.broadcast_to(halves, blocks.shape[:2])
        except ValueError:
            raise ValueError(
                f"scale must broadcast to (n_out, n_in / {self.weights}) = {blocks.shape[:2]}, "
                f"got {exact.shape}"
            ) from None
        scales = np.where(blocks.any(axis=-1), scales, np.zeros((), "<f2")).astype("<f2")
        return blocks, scales[..., None].view(np.uint8)

    def join(self, body: Bytes, halves: Bytes) -> Bytes:
        """Return rows of whole blocks, of the bytes of codes and scales."""
        parts = [halves, body] if self.first else [body, halves]
        blocks = np.concatenate(parts, axis=-1)  # (n_out, blocks, bytes)
        return blocks.reshape(blocks.shape[0], blocks.shape[1] * blocks.shape[2])

    def split(self, packed: ArrayLike, kind: str) -> tuple[Bytes, NDArray[np.float32]]:
        """Cut rows into blocks: the bytes of their codes, and their scales (n_out, blocks).

        A TypeError or ValueError names what is no such row, or the first scale that is negative or
        not finite.
        """
        packed = np.asarray(packed)
        if packed.ndim != 2 or packed.shape[1] % self.nbytes:
            raise ValueError(
                f"packed must have shape (n_out, blocks * {self.nbytes}), got {packed.shape}"
            )
        packed = check_bytes(packed, packed.shape, kind)
        blocks = packed.reshape(len(packed), packed.shape[1] // self.nbytes, self.nbytes)
        halves, body = (
            (blocks[..., :2], blocks[..., 2:])
            if self.first
            else (blocks[..., -2:], blocks[..., :-2])
        )
        scales = np.ascontiguousarray(halves).view("<f2")[..., 0].astype(np.float32)
        illegal = ~(np.isfinite(scales) & (scales >= 0))
        if illegal.any():
            row, block = (int(i) for i in np.argwhere(illegal)[0])
            raise ValueError(
                f"packed must hold finite scales >= 0, got {scales[row, block]} "
                f"in block {(row, block)}"
            )
        return body, scales
