"""The numbers of tensor types in GGUF files, and what a block of each takes.

A number is no name: forks gave free numbers to types of their own, and ggml gave the same numbers
to others later. So a number has one meaning or several here, the one of today's llama.cpp first,
and a reader takes the meaning whose size fits between the offsets of two tensors (`fitting`).

    39   MXFP4 (17 bytes for 32 weights)     in bitnet.cpp TL2 (some 5 bits for three)
    42   Q2_0 (18 for 64)                    before June 2026, in PrismML's fork, 34 for 128;
                                             in published files of Sherry STQ1_0 (42 for 256)
    43   not taken in llama.cpp yet          in later builds of Sherry STQ1_0
    36   free since llama.cpp dropped its    in bitnet.cpp I2_S (two bits, and a tail of 32)
         repacked types, 31 to 33, 36 to 38

Sources: ggml.h of llama.cpp (September 2026), of microsoft/BitNet and of PrismML-Eng/llama.cpp;
llama.cpp, pull requests 22836 (STQ1_0) and 24448 (Q2_0), issue 29058 (142 and 143).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["NAMED", "TYPES", "Meaning", "fitting"]

F32, F16, BF16, TQ1_0, TQ2_0, I2_S = 0, 1, 30, 34, 35, 36


class Meaning(NamedTuple):
    """What one program means by a number: a name, and the weights and bytes of a block."""

    name: str
    weights: int
    nbytes: int
    tail: int = 0  # bytes behind the blocks of a tensor

    def size(self, shape: tuple[int, ...]) -> int | None:
        """Return the bytes of a tensor (slowest axis first); None if blocks do not divide it."""
        count = math.prod(shape)
        if (count if self.tail else shape[-1]) % self.weights:  # with a tail, of the whole tensor
            return None
        return count // self.weights * self.nbytes + self.tail


_BLOCKS: dict[int, tuple[str, int, int]] = {  # of ggml, and those with one meaning
    F32: ("F32", 1, 4),
    F16: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    BF16: ("BF16", 1, 2),
    TQ1_0: ("TQ1_0", 256, 54),
    TQ2_0: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
    43: ("STQ1_0", 256, 42),
    142: ("PQ2_0", 128, 34),
    143: ("PTQ1_0", 128, 28),
}
TYPES: dict[int, tuple[Meaning, ...]] = {
    number: (Meaning(*block),) for number, block in _BLOCKS.items()
}
TYPES[I2_S] = (Meaning("I2_S", 4, 1, 32),)
TYPES[42] += (TYPES[142][0], TYPES[43][0])
NAMED = {  # bitnet.cpp's bytes are in the order of one CPU's kernel: known by name, not read
    38: "TL1 of bitnet.cpp",
    39: "TL2 of bitnet.cpp, too small for ggml's MXFP4",
}


def fitting(
    meanings: tuple[Meaning, ...], shape: tuple[int, ...], room: int, unit: int
) -> Iterator[Meaning]:
    """Yield the meanings whose tensor fills its `room`, but for padding to a multiple of `unit`.

    `room` are the bytes up to the next tensor, or to the end of the file.

    Examples
    --------
    >>> [block.name for block in fitting(TYPES[42], (256, 512), 256 * 512 * 34 // 128, 32)]
    ['PQ2_0']
    """
    for meaning in meanings:
        size = meaning.size(shape)
        if size is not None and size <= room < size + unit:
            yield meaning
