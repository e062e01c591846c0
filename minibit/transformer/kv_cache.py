"""A model's memory of the tokens so far: one key and value for each key head of each layer.

Keys and values are float32 (batch, kv_heads, capacity, head_dim), `length` of them in use.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.base import integer
from minibit.transformer.config import BitNetConfig, Params

__all__ = ["Cache", "KVCache"]

Array = Any  # an ndarray, or a Dual, which behaves like one
Floats = NDArray[np.float32]


class Cache(Protocol):
    """Keys and values of the tokens so far: what `forward` needs of a cache."""

    @property
    def length(self) -> int:
        """Tokens so far, the position of a call's first one; it grows with the last layer."""

    def extend(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Append (batch, kv_heads, length, head_dim) to a layer's keys and values; return all."""


class KVCache:
    """Keys and values of the tokens so far, for every layer, in float32.

    `batch` texts of the same length lie side by side. There is room for `capacity` tokens at first,
    and it is doubled when it is full, up to `max_positions` of the model: 8 bytes per token, layer
    and entry of the key heads. While the cache holds tokens it belongs to the model that read them;
    another of the same sizes is refused.

    Examples
    --------
    >>> from minibit.transformer import BitNetConfig, BitNetModel, init_params
    >>> config = BitNetConfig(83, 48, 128, layers=1, heads=2, kv_heads=1, max_positions=64)
    >>> model, cache = BitNetModel(config, init_params(config, seed=0)), KVCache(config)
    >>> whole = model.logits([[5, 6, 7]])
    >>> parts = [model.logits([[token]], cache) for token in (5, 6, 7)]
    >>> cache.length
    3
    >>> bool(abs(parts[2][0, 0] - whole[0, 2]).max() < 1e-5)
    True
    """

    def __init__(self, config: BitNetConfig, batch: int = 1, capacity: int = 64) -> None:
        self._most = config.max_positions
        self._length = 0
        self._owner: tuple[BitNetConfig, Params] | None = None
        room = min(integer("capacity", capacity, 1), self._most)
        shape = (integer("batch", batch, 1), config.kv_heads, room, config.head_dim)
        self._keys = [np.zeros(shape, np.float32) for _ in range(config.layers)]
        self._values = [np.zeros(shape, np.float32) for _ in range(config.layers)]
        self._addresses = self._find()

    @property
    def length(self) -> int:
        """Tokens held; the position of the next one."""
        return self._length

    @property
    def layers(self) -> int:
        """Layers that it holds keys and values of."""
        return len(self._keys)

    @property
    def capacity(self) -> int:
        """Tokens that there is room for."""
        return self._keys[0].shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, the room ahead included."""
        return sum(array.nbytes for array in (*self._keys, *self._values))

    def claim(self, config: BitNetConfig, params: Params) -> None:
        """Say whose keys and values follow: a model is its configuration and these very arrays.

        A ValueError if the number of layers is another, or if tokens of another model are held.
        """
        if self.layers != config.layers:
            raise ValueError(f"the cache must have {config.layers} layers, it has {self.layers}")
        if self._length and self._owner is not None:
            (its_config, its_params), reader = self._owner, ""
            if its_params is not params and not _same(its_params, params):
                reader = "another model read, or this one with other parameters"
            elif its_config is not config and its_config != config:
                reader = f"were read with {its_config}, got {config}"
            if reader:
                tokens = f"{self._length} tokens that {reader}"
                raise ValueError(f"the cache holds {tokens}; truncate(0) empties it")
        self._owner = config, params

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in all; a ValueError beyond `max_positions`."""
        if length > self._most:
            raise ValueError(f"a cache of {self._most} positions takes no {length} tokens")
        if length <= self.capacity:
            return
        room = min(max(length, 2 * self.capacity), self._most)
        for arrays in (self._keys, self._values):
            for layer, old in enumerate(arrays):  # one at a time: never all of them twice
                new = np.zeros((*old.shape[:2], room, old.shape[3]), np.float32)
                new[:, :, : self._length] = old[:, :, : self._length]
                arrays[layer] = new
        self._addresses = self._find()

    def _find(self) -> NDArray[np.uint64]:
        """Return the addresses of keys and values, (2, layers), for kernels."""
        both = (self._keys, self._values)
        return np.array([[array.ctypes.data for array in arrays] for arrays in both], np.uint64)

    def extend(self, layer: int, k: ArrayLike, v: ArrayLike) -> tuple[Floats, Floats]:
        """Append keys and values, (batch, kv_heads, tokens, head_dim), to a layer; return views.

        `length` grows with the last layer: until then, every layer appends at the same position.
        """
        k, v = np.asarray(k), np.asarray(v)
        batch, kv_heads, _, width = self._keys[layer].shape
        fits = k.ndim == 4 and (*k.shape[:2], k.shape[3]) == (batch, kv_heads, width)
        if not fits or v.shape != k.shape:
            shape = f"({batch}, {kv_heads}, tokens, {width})"
            raise ValueError(f"k and v must have shape {shape}, got {k.shape} and {v.shape}")
        end = self._length + k.shape[2]
        self.reserve(end)
        self._keys[layer][:, :, self._length : end] = k
        self._values[layer][:, :, self._length : end] = v
        if layer == len(self._keys) - 1:
            self._length = end
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def truncate(self, length: int) -> None:
        """Forget the tokens from position `length` on."""
        self._length = integer("length", length, 0, self._length)


def _same(one: Params, other: Params) -> bool:
    """Whether two mappings hold the same objects under the same names."""
    return len(one) == len(other) and all(other.get(name) is one[name] for name in one)
