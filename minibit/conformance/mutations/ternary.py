"""Wrong variants of packings and file layouts."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from minibit.conformance.exact.ternary import (
    TERNARY as RIGHT,
)
from minibit.conformance.exact.ternary import (
    in_base,
    packed_hf,
    packed_i2_s,
    packed_tq,
    padded,
    ptq1_block,
    q2_block,
    stq_groups,
    stq_number,
    tq1_block,
    tq2_block,
)

__all__ = ["TERNARY"]

SHIFTS = (0, 2, 4, 6)


def _digits(base: int, width: int, order: int = 1, fill: int = 1, offset: int = 0) -> Any:
    """Return a packing with digits in another order, padding or offset."""

    def pack(codes: Any) -> Any:
        """Pack groups."""
        groups = padded(codes, width)
        count = np.size(codes) - (len(groups) - 1) * width
        if groups:
            groups[-1][count:] = [fill] * (width - count)
        values = [in_base(group[::order], base) + offset for group in groups]
        return np.array(values, np.int64).astype(np.uint8)

    return pack


def _columns(name: str) -> Any:
    """Pack a matrix by its columns."""
    return lambda codes: RIGHT[name](np.ascontiguousarray(codes.T) if codes.ndim > 1 else codes)[0]


def _one_byte_more(codes: Any) -> Any:
    """Pack a byte too many."""
    return np.append(RIGHT["pack2"](codes)[0], np.uint8(85))


def _planes(change: Callable[[Any], Any]) -> Any:
    """Return bit planes that are changed."""
    return lambda codes: change(RIGHT["pack_bitplanes"](codes)[0])


def _nonzero_and_sign(codes: Any) -> Any:
    """Pack what is not zero, and the sign."""
    plus, minus = RIGHT["pack_bitplanes"](codes)[0]
    return np.stack([plus | minus, minus])


def _neighbours(codes: Any) -> Any:
    """Put four neighbouring rows in a byte."""
    quarter = -(-len(codes) // 4)
    rows = np.full((4 * quarter, codes.shape[1]), -1, np.int8)
    rows[: len(codes)] = codes
    return packed_hf(rows.reshape(quarter, 4, -1).transpose(1, 0, 2).reshape(rows.shape))


def _floor_rows(codes: Any) -> Any:
    """Round the number of byte rows down: what is left over is dropped."""
    return packed_hf(codes[: len(codes) // 4 * 4])


def _truncated_half(scale: float) -> bytes:
    """Cut a scale to float16, toward zero."""
    half = np.float16(scale)
    if float(half) > scale:
        half = np.nextafter(half, np.float16(0))
    return struct.pack("<e", float(half))


def _half_up(scale: float) -> bytes:
    """Round a scale half way between two of float16 up."""
    half = np.float16(scale)
    above = np.nextafter(half, np.float16(np.inf))
    return struct.pack("<e", above if (float(half) + float(above)) / 2 <= scale else half)


def _tq1_floor(e: list[int]) -> list[int]:
    """Round 256 v / 243 down."""
    groups = [[e[j + 32 * n] for n in range(5)] for j in range(32)]
    groups += [[e[160 + j + 16 * n] for n in range(5)] for j in range(16)]
    groups += [[*(e[240 + j + 4 * n] for n in range(4)), 0] for j in range(4)]
    return [256 * in_base(group[::-1], 3) // 243 for group in groups]


def _tq1_lowest_first(e: list[int]) -> list[int]:
    """Put the lowest digit first."""
    groups = [[e[j + 32 * n] for n in range(5)] for j in range(32)]
    groups += [[e[160 + j + 16 * n] for n in range(5)] for j in range(16)]
    groups += [[*(e[240 + j + 4 * n] for n in range(4)), 0] for j in range(4)]
    return [-(-256 * in_base(group, 3) // 243) for group in groups]


def _tq1_tail(e: list[int]) -> list[int]:
    """Take the four digits of the tail for the lower ones."""
    tail = [in_base([e[240 + j + 4 * n] for n in range(4)][::-1], 3) for j in range(4)]
    return [*tq1_block(e)[:48], *(-(-256 * v // 243) for v in tail)]


def _tq1_one_stride(e: list[int]) -> list[int]:
    """Use neighbours in the place of strides."""
    groups = [e[5 * j : 5 * j + 5] for j in range(48)]
    groups += [[*e[240 + 4 * j : 244 + 4 * j], 0] for j in range(4)]
    return [-(-256 * in_base(group[::-1], 3) // 243) for group in groups]


def _tq2_neighbours(e: list[int]) -> list[int]:
    """Put four neighbours in a byte."""
    return [in_base(e[4 * j : 4 * j + 4], 4) for j in range(64)]


def _tq2_one_group(e: list[int]) -> list[int]:
    """Use one group of 256, with codes 64 apart."""
    return [in_base([e[j + 64 * n] for n in range(4)], 4) for j in range(64)]


def _blocks_in_columns(codes: Any, scale: Any = 1.0) -> Any:
    """Lay out all first blocks of the rows, then all second ones."""
    packed = packed_tq(codes, scale, tq2_block)
    return packed.reshape(len(codes), -1, 66).swapaxes(0, 1).reshape(packed.shape)


def _scale_of_first(block: Any) -> Any:
    """Use the first block's scale for the row."""
    return lambda codes, scale=1.0: packed_tq(
        codes, np.broadcast_to(scale, (len(codes), codes.shape[1] // 256))[:, :1], block
    )


def _big_endian(scale: float) -> bytes:
    """Put the high byte first."""
    return struct.pack(">e", scale)


def _i2(change: Callable[..., Any]) -> Any:
    """Return an I2_S writer with another layout or order."""
    return lambda codes, scale=1.0, layout="x86": change(codes, scale, layout)


def _no_tail(codes: Any, scale: float, layout: str) -> Any:
    """End after four bytes of scale."""
    return packed_i2_s(codes, scale, layout)[:-28]


def _scale_a_row(codes: Any, scale: float, layout: str) -> Any:
    """Write the scale after each row."""
    rows = [packed_i2_s(row[None], scale, layout) for row in codes]
    return np.concatenate([row[:-32] for row in rows[:-1]] + [rows[-1]])[: codes.size // 4 + 28]


def _ptq1_one_stride(e: list[int]) -> list[int]:
    """Use neighbours in the place of strides."""
    groups = [e[5 * j : 5 * j + 5] for j in range(24)]
    groups += [[*e[120 + 4 * j : 124 + 4 * j], 0] for j in range(2)]
    return [-(-256 * in_base(group[::-1], 3) // 243) for group in groups]


def _ptq1_first_stage(e: list[int]) -> list[int]:
    """Walk all bytes in one stage of 24."""
    groups = [[e[j + 24 * n] for n in range(5)] for j in range(24)]
    groups += [[*(e[120 + j + 2 * n] for n in range(4)), 0] for j in range(2)]
    return [-(-256 * in_base(group[::-1], 3) // 243) for group in groups]


def _q2_strided(e: list[int]) -> list[int]:
    """Put codes in a byte that lie a quarter of the block apart."""
    width = len(e) // 4
    return [in_base([e[j + width * n] for n in range(4)], 4) for j in range(width)]


def _q2(change: Callable[[list[int]], list[int]], first: bool = True) -> Any:
    """Return a writer of Q2_0 with another order, or another place of the scale."""
    return lambda codes, scale=1.0, block=64: packed_tq(
        codes, scale, change, weights=block, first=first
    )


def _stq_neighbours(e: list[int]) -> list[int]:
    """Take four neighbours for a group."""
    numbers = [stq_number(e[4 * g : 4 * g + 4]) for g in range(64)]
    return _stq(numbers)


def _stq(numbers: list[tuple[int, int]], high: int = 16, order: int = 1) -> list[int]:
    """Put slots and signs together."""
    slots, signs = zip(*numbers, strict=True)
    low = 16 // high
    halves = [low * slots[g] + high * slots[g + 1] for g in range(0, 64, 2)]
    return [*halves, *(in_base(signs[g : g + 8][::order], 2) for g in range(0, 64, 8))]


def _stq_any_zeros(e: list[int]) -> list[int]:
    """Pack groups that have not exactly one zero as if the first weight were it."""
    groups = [[e[64 * c + j + 16 * p] for p in range(4)] for c in range(4) for j in range(16)]
    return _stq([stq_number(group if group.count(1) == 1 else [1, 2, 2, 2]) for group in groups])


def _stq_swapped_signs(e: list[int]) -> list[int]:
    """Exchange the second and the third sign."""
    exchanged = (0, 2, 1, 3)
    return _stq([(slot // 4 * 4 + exchanged[slot % 4], sign) for slot, sign in stq_groups(e)])


def _first_sign_only(packed: Any) -> Any:
    """Take the sign for that of the first weight which is not 0."""
    codes, scales = RIGHT["from_stq1_0"](packed)
    groups = codes.reshape(len(codes), -1, 4, 16).swapaxes(2, 3)
    flipped = groups.copy()
    for at in np.ndindex(groups.shape[:-1]):
        others = np.flatnonzero(groups[at])
        flipped[at][others[1:]] *= groups[at][others[0]]
    return flipped.swapaxes(2, 3).reshape(codes.shape).copy(), scales


def _read(name: str, change: Callable[..., Any]) -> Any:
    """Return a reader whose first result is changed."""

    def read(packed: Any, **args: Any) -> Any:
        """Read and change."""
        first, *others = RIGHT[name](packed, **args)
        return (change(first, packed), *others)

    return read


def _lenient(name: str) -> Any:
    """Return a reader that takes what no writer writes, and more bytes than it needs."""
    return lambda packed, **args: RIGHT[name](packed, **args)[0]


def _swapped_scales(packed: Any) -> Any:
    """Return scales of the blocks in the other order."""
    codes, scales = RIGHT["from_tq2_0"](packed)
    return codes, scales[:, ::-1].copy()


TERNARY: dict[str, Callable[..., Any]] = {
    "pack2/highest-first": _digits(4, 4, order=-1),
    "pack2/padding-is-minus-one": _digits(4, 4, fill=0),
    "pack2/offset": _digits(4, 4, offset=85),
    "pack2/column-order": _columns("pack2"),
    "pack2/byte-of-nothing": _one_byte_more,
    "pack_base3/highest-first": _digits(3, 5, order=-1),
    "pack_base3/padding-is-minus-one": _digits(3, 5, fill=0),
    "pack_base3/wrong-power": lambda codes: np.array(
        [in_base(g[:4], 3) + 27 * g[4] for g in padded(codes, 5)], np.uint8
    ),
    "pack_base3/offset": _digits(3, 5, offset=13),
    "pack_base3/column-order": _columns("pack_base3"),
    "pack_bitplanes/planes-swapped": _planes(lambda p: p[::-1].copy()),
    "pack_bitplanes/nonzero-and-sign": _nonzero_and_sign,
    "pack_bitplanes/highest-first": _planes(
        lambda p: np.packbits(np.unpackbits(p, axis=-1, bitorder="little"), axis=-1)
    ),
    "unpack2/code-3": _lenient("unpack2"),
    "unpack2/trailing-bytes": _lenient("unpack2"),
    "unpack2/highest-first": lambda packed, count: np.array(
        [(int(b) >> s & 3) - 1 for b in packed for s in (6, 4, 2, 0)][:count], np.int8
    ),
    "unpack_base3/byte-243": _lenient("unpack_base3"),
    "unpack_base3/highest-first": lambda packed, count: np.array(
        [int(b) // 3**n % 3 - 1 for b in packed for n in range(4, -1, -1)][:count], np.int8
    ),
    "unpack_bitplanes/both-planes": _lenient("unpack_bitplanes"),
    "unpack_bitplanes/trailing-bytes": _lenient("unpack_bitplanes"),
    "unpack_bitplanes/planes-swapped": _read("unpack_bitplanes", lambda codes, _: -codes),
    "to_hf/neighbouring-rows": _neighbours,
    "to_hf/padding-is-zero": lambda codes: packed_hf(codes, fill=0),
    "to_hf/rows-rounded-down": _floor_rows,
    "to_hf/highest-first": lambda codes: packed_hf(codes, (6, 4, 2, 0)),
    "to_hf/transposed": lambda codes: packed_hf(codes.T.copy()),
    "from_hf/code-3": _lenient("from_hf"),
    "from_hf/neighbouring-rows": lambda packed, n_out: np.stack(
        [(row >> s & 3).astype(np.int8) - np.int8(1) for row in packed for s in (0, 2, 4, 6)]
    )[:n_out],
    "from_hf/padding-kept": lambda packed, n_out: RIGHT["from_hf"](packed, 4 * len(packed))[0],
    "to_tq1_0/fraction-rounded-down": lambda codes, scale=1.0: packed_tq(codes, scale, _tq1_floor),
    "to_tq1_0/lowest-first": lambda codes, scale=1.0: packed_tq(codes, scale, _tq1_lowest_first),
    "to_tq1_0/tail-of-four": lambda codes, scale=1.0: packed_tq(codes, scale, _tq1_tail),
    "to_tq1_0/neighbours": lambda codes, scale=1.0: packed_tq(codes, scale, _tq1_one_stride),
    "to_tq1_0/scale-of-zeros": lambda codes, scale=1.0: packed_tq(
        codes, scale, tq1_block, zero_scale=True
    ),
    "to_tq1_0/scale-of-first-block": _scale_of_first(tq1_block),
    "to_tq2_0/neighbours": lambda codes, scale=1.0: packed_tq(codes, scale, _tq2_neighbours),
    "to_tq2_0/one-group": lambda codes, scale=1.0: packed_tq(codes, scale, _tq2_one_group),
    "to_tq2_0/scale-half-up": lambda codes, scale=1.0: packed_tq(
        codes, scale, tq2_block, half=_half_up
    ),
    "to_tq2_0/scale-truncated": lambda codes, scale=1.0: packed_tq(
        codes, scale, tq2_block, _truncated_half
    ),
    "to_tq2_0/big-endian": lambda codes, scale=1.0: packed_tq(codes, scale, tq2_block, _big_endian),
    "to_tq2_0/scale-of-zeros": lambda codes, scale=1.0: packed_tq(
        codes, scale, tq2_block, zero_scale=True
    ),
    "to_tq2_0/scale-of-first-block": _scale_of_first(tq2_block),
    "to_tq2_0/blocks-in-columns": _blocks_in_columns,
    "from_tq1_0/no-such-byte": lambda packed: RIGHT["from_tq1_0"](packed),
    "from_tq1_0/rows-joined": lambda packed: tuple(
        part.reshape(1, -1) for part in RIGHT["from_tq1_0"](packed)
    ),
    "from_tq1_0/digits-of-v": _read("from_tq1_0", lambda codes, packed: np.roll(codes, 1, axis=1)),
    "from_tq2_0/code-3": lambda packed: RIGHT["from_tq2_0"](packed),
    "from_tq2_0/scales-swapped": _swapped_scales,
    "from_tq2_0/neighbours": _read(
        "from_tq2_0",
        lambda codes, _: codes.reshape(-1, 4, 32).swapaxes(1, 2).reshape(codes.shape).copy(),
    ),
    "to_ptq1_0/neighbours": lambda codes, scale=1.0: packed_tq(
        codes, scale, _ptq1_one_stride, weights=128
    ),
    "to_ptq1_0/one-stage": lambda codes, scale=1.0: packed_tq(
        codes, scale, _ptq1_first_stage, weights=128
    ),
    "to_ptq1_0/scale-first": lambda codes, scale=1.0: packed_tq(
        codes, scale, ptq1_block, weights=128, first=True
    ),
    "from_ptq1_0/no-such-byte": lambda packed: RIGHT["from_ptq1_0"](packed),
    "from_ptq1_0/neighbours": _read(
        "from_ptq1_0",
        lambda codes, _: codes.reshape(-1, 8, 16).swapaxes(1, 2).reshape(codes.shape).copy(),
    ),
    "to_q2_0/strided": _q2(_q2_strided),
    "to_q2_0/scale-last": _q2(q2_block, first=False),
    "to_q2_0/highest-first": _q2(
        lambda e: [in_base(e[j : j + 4][::-1], 4) for j in range(0, len(e), 4)]
    ),
    "to_q2_0/block-ignored": lambda codes, scale=1.0, block=64: packed_tq(
        codes, np.repeat(scale, block // 64, axis=-1), q2_block, weights=64, first=True
    ),
    "from_q2_0/code-3": lambda packed, **args: RIGHT["from_q2_0"](packed, **args),
    "from_q2_0/folded": lambda packed, **args: (
        np.minimum(RIGHT["from_q2_0"](packed, **args)[0], np.int8(1)),
        RIGHT["from_q2_0"](packed, **args)[1],
    ),
    "from_q2_0/scale-last": lambda packed, **args: RIGHT["from_q2_0"](packed, **args, first=False),
    "from_q2_0/block-ignored": lambda packed, **args: RIGHT["from_q2_0"](packed),
    "to_stq1_0/neighbours": lambda codes, scale=1.0: packed_tq(codes, scale, _stq_neighbours),
    "to_stq1_0/high-half-first": lambda codes, scale=1.0: packed_tq(
        codes, scale, lambda e: _stq(stq_groups(e), high=1)
    ),
    "to_stq1_0/signs-highest-first": lambda codes, scale=1.0: packed_tq(
        codes, scale, lambda e: _stq(stq_groups(e), order=-1)
    ),
    "to_stq1_0/signs-exchanged": lambda codes, scale=1.0: packed_tq(
        codes, scale, _stq_swapped_signs
    ),
    "to_stq1_0/any-zeros": lambda codes, scale=1.0: packed_tq(codes, scale, _stq_any_zeros),
    "from_stq1_0/first-sign-only": _first_sign_only,
    "from_stq1_0/neighbours": _read(
        "from_stq1_0",
        lambda codes, _: codes.reshape(-1, 4, 16).swapaxes(1, 2).reshape(codes.shape).copy(),
    ),
    "to_i2_s/lowest-first": _i2(lambda c, s, a: packed_i2_s(c, s, a, (0, 2, 4, 6))),
    "to_i2_s/groups-of-128": _i2(lambda c, s, a: packed_i2_s(c, s, "x86")),
    "to_i2_s/groups-of-64": _i2(lambda c, s, a: packed_i2_s(c, s, "arm")),
    "to_i2_s/quarters-of-rows": _i2(
        lambda c, s, a: np.append(packed_hf(c, (6, 4, 2, 0)).ravel(), packed_i2_s(c, s, a)[-32:])
    ),
    "to_i2_s/tail-too-short": _i2(_no_tail),
    "to_i2_s/scale-a-row": _i2(_scale_a_row),
    "from_i2_s/layout-ignored": lambda packed, shape, layout="x86": RIGHT["from_i2_s"](
        packed, shape, "arm" if layout == "x86" else "x86" if shape[1] % 128 == 0 else "rows"
    ),
    "from_i2_s/lowest-first": lambda packed, shape, layout="x86": RIGHT["from_i2_s"](
        np.append(
            [
                int(f"{b:08b}"[6:] + f"{b:08b}"[4:6] + f"{b:08b}"[2:4] + f"{b:08b}"[:2], 2)
                for b in packed[:-32]
            ],
            packed[-32:],
        ).astype(np.uint8),
        shape,
        layout,
    ),
    "from_i2_s/scale-first": lambda packed, shape, layout="x86": RIGHT["from_i2_s"](
        np.append(packed[32:], packed[:32]), shape, layout
    ),
}
TERNARY |= {
    "to_i2_s/scale-not-checked": _i2(lambda c, s, a: packed_i2_s(c, float(np.float32(s)), a)),
    **{
        f"{name}/scale-not-checked": RIGHT[name]
        for name in (
            "from_i2_s",
            "from_tq1_0",
            "from_tq2_0",
            "from_ptq1_0",
            "from_q2_0",
            "from_stq1_0",
        )
    },
    "unpack_base3/last-digit-of-27": lambda packed, count: np.array(
        [int(b) // n % 3 - 1 for b in packed for n in (1, 3, 9, 27, 27)][:count], np.int8
    ),
    "TernaryMatrix.codes/digits": lambda self: self.codes() + np.int8(1),
    "TernaryMatrix.packed2/padded-rows": lambda self: np.concatenate(
        [RIGHT["pack2"](row)[0] for row in self.codes()]
    ),
    "TernaryMatrix.from_hf/neighbouring-rows": lambda packed, n_out, scale: (
        np.stack([(row >> s & 3).astype(np.int8) - np.int8(1) for row in packed for s in SHIFTS])[
            :n_out
        ],
        np.float32(scale),
    ),
    "TernaryMatrix.from_hf/scale-inverted": lambda packed, n_out, scale: (
        RIGHT["from_hf"](packed, n_out)[0],
        np.float32(1 / scale),
    ),
    "TernaryMatrix.from_packed2/column-order": lambda packed, shape, scale: (
        RIGHT["unpack2"](packed, shape[0] * shape[1])[0].reshape(shape[::-1]).T.copy(),
        np.float32(scale),
    ),
    **{
        f"{kind}.from_codes/{flag}": change
        for kind in ("TernaryMatrix", "TernaryColumns")
        for flag, change in (
            ("clipped", lambda codes, scale: (np.clip(codes, -1, 1), np.float32(scale))),
            ("scale-in-half", lambda codes, scale: (codes, np.float32(np.float16(scale)))),
        )
    },
    "TernaryColumns.codes/transposed": lambda self: self.codes().T.copy(),
    "TernaryColumns.codes/one-band": lambda self: np.where(
        np.arange(self.shape[0])[:, None] < 256, self.codes(), np.int8(0)
    ),
    "check_codes/rounded": lambda codes, ndim=None: np.rint(codes).astype(np.int8),
    "check_codes/clipped": lambda codes, ndim=None: np.clip(codes, -1, 1).astype(np.int8),
    "check_codes/any-axes": lambda codes, ndim=None: codes,
    "check_codes/wide": lambda codes, ndim=None: codes,
    "pack2/code-of-2": _digits(4, 4),
    "to_i2_s/columns-dropped": _i2(
        lambda c, s, a: packed_i2_s(c[:, : c.shape[1] // 128 * 128], s, a)
    ),
}
