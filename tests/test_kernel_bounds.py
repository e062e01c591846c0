"""Kernels check no bounds: here each proves its own, at the ends of memory and on emulated vectors.

What a caller hands over (activations, weights, products) lies here against pages that may not be
touched: a load or a store too far ends the process. What a kernel keeps to itself is watched by
running its Python text over vectors in NumPy, whose loads and stores look where they go.
"""

import os
import subprocess
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

from minibit import kernels
from minibit.ternary.panels import pack_panels_reference

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
pytestmark = pytest.mark.skipif(not JIT, reason="kernels are compiled only with the JIT")


def random_problem(batch, n_out, n_in):
    """Activations, codes and their exact product."""
    rng = np.random.default_rng(batch * 10007 + n_out * 101 + n_in)
    codes = rng.integers(-1, 2, (n_out, n_in)).astype(np.int8)
    x = rng.integers(-128, 128, (batch, n_in)).astype(np.int8)
    return x, codes, x.astype(np.int64) @ codes.astype(np.int64).T


# --- what callers hand over ---------------------------------------------------------------------

AT_THE_END_OF_MEMORY = """
import ctypes, importlib, mmap, sys
import numpy as np
from minibit.kernels import pack
from minibit.ternary.panels import pack_columns_reference, pack_panels_reference

system, page, kept = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE, []
system.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

def fenced(array, at_end):
    # a copy that ends, or begins, beside a page that may be neither read nor written
    inner = -(-max(array.nbytes, 1) // page) * page
    room = mmap.mmap(-1, inner + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    for fence in (start, start + page + inner):
        assert system.mprotect(fence, page, 0) == 0
    at = page + (inner - array.nbytes if at_end else 0)
    copy = np.frombuffer(room, array.dtype, array.size, at).reshape(array.shape)
    copy[...] = array
    kept.append(room)
    return copy

names, few = sys.argv[1].split(","), (1, 2, 3, 7, 8, 9, 57, 63, 64, 65)
shapes = [(1 + i % 2 * (3 + i), n_out, n_in) for i, n_in in enumerate(few) for n_out in (1, 17, 64)]
shapes += [(batch, 129, 70) for batch in (1, 2, 5, 12, 13, 25)] + [(1, 80, 4100), (3, 66, 4100)]
for batch, n_out, n_in in shapes:
    rng = np.random.default_rng(batch + 100 * n_in)
    codes = rng.integers(-1, 2, (n_out, n_in)).astype(np.int8)
    x = rng.integers(-127, 128, (batch, n_in)).astype(np.int8)
    x[:, 0] = 127  # so that floats are quantised to themselves
    exact = x.astype(np.int64) @ codes.T.astype(np.int64)
    for at_end in (True, False):
        own, held = fenced(codes, at_end), {}
        for kind, packed in (
            ("panels", pack_panels_reference(codes)), ("columns", pack_columns_reference(codes))
        ):
            held[kind] = fenced(np.zeros_like(packed), at_end)
            assert getattr(pack, kind)(own, held[kind])
            assert np.array_equal(held[kind], packed)
        for name in names:
            module = importlib.import_module(f"minibit.kernels.{name}")
            weights = held["columns" if name == "portable" else "panels"]
            if name == "vnni_matvec" and batch > 1:
                continue
            for dtype, gamma in ((np.int32, None), (np.float32, np.float32(1))):
                tokens = fenced(x.astype(np.int8 if gamma is None else np.float32), at_end)
                groups = -(-n_out // 64)
                for first in range(groups):  # all rows, then the last panel alone
                    out = fenced(np.full((batch, n_out), 7, dtype), at_end)
                    assert module.product(tokens, weights, out, first, groups, gamma)
                    assert np.array_equal(out[:, 64 * first :], exact[:, 64 * first :]), name
                    assert (out[:, : 64 * first] == 7).all(), name
        kept.clear()
print("whole")
"""


def modules():
    """Kernels of the product that this CPU can run."""
    found = ["portable", "arm"]
    if "avx2" in kernels.supported():
        found.append("avx2")
    if "vnni" in kernels.supported():
        found += ["vnni_matvec", "vnni_few", "vnni_matmat"]
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="fences are made by Linux's mprotect")
def test_kernels_touch_nothing_before_or_behind_their_arrays():
    """Packers and products, with every array against a page that may not be touched."""
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END_OF_MEMORY, ",".join(modules())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "whole\n", f"exit status {done.returncode}\n{done.stderr}"


# --- what a kernel keeps to itself --------------------------------------------------------------


@dataclass
class Address:
    """An address inside an array, which remembers the array."""

    array: np.ndarray
    at: int = 0

    def __add__(self, offset):
        """Move on by bytes."""
        return Address(self.array, self.at + offset)


class Bits(int):
    """A mask whose shifts wrap at 32 bits, as a machine's do."""

    def __lshift__(self, by):
        """Shift into the sign, and no further."""
        return _signed(int(self) << by)


def _signed(word):
    """Read the lower 32 bits as a signed number."""
    return (word + 2**31) % 2**32 - 2**31


def _within(array, at, count):
    """Return `count` int32 from byte `at`; outside of the array this fails."""
    if isinstance(array, Address):
        array, at = array.array, array.at + at
    flat = array.reshape(-1).view(np.uint8)
    assert 0 <= at <= flat.size - 4 * count, f"byte {at} of {flat.size}"
    return flat[at : at + 4 * count].view(np.int32)


def _valid(count, lanes):
    """Lanes that a mask lets through."""
    return int(np.clip(count, 0, lanes))


def _dot(acc, unsigned, signed):
    """VPDPBUSD on int32 lanes."""
    left = np.ascontiguousarray(unsigned).view(np.uint8).astype(np.int32)
    products = left * np.ascontiguousarray(signed).view(np.int8)
    return acc + products.reshape(-1, 4).sum(axis=1, dtype=np.int32)


def _length(count):
    """A number, or the length of a tuple."""
    return count if isinstance(count, int) else len(count)


def _tile_load(array, offset, stride, valid, count, lanes):
    tile, some = np.zeros((_length(count), lanes), np.int32), _valid(valid, lanes)
    for row in range(len(tile) if some else 0):
        tile[row, :some] = _within(array, offset + stride * row, some)
    return tile


def _tile_store(array, offset, stride, valid, tile):
    some = _valid(valid, tile.shape[1])
    for row in range(len(tile) if some else 0):
        _within(array, offset + stride * row, some)[:] = tile[row, :some]


def _tile_store_rows(array, offset, valid, tile):
    some = _valid(valid, tile.size)
    _within(array, offset, some)[:] = tile.reshape(-1)[:some]


def _tile_splat(array, offset, count, lanes):
    words = [_within(array, offset + 4 * row, 1) for row in range(_length(count))]
    return np.repeat(np.array(words), lanes, axis=1)


def _tile_dot_pair(tile, left, right, array, offset):
    fours = [_within(array, offset + 4 * m, 1).repeat(16) for m in range(len(tile) // 2)]
    both = [
        _dot(tile[2 * m + i], (left, right)[i], fours[m]) for m in range(len(fours)) for i in (0, 1)
    ]
    return np.array(both)


def _tile_dot_rows(tile, packed, four):
    masks = [np.int32(_signed(0x03030303 << 2 * j)) for j in range(len(tile))]
    return np.array([_dot(row, packed & bits, four) for row, bits in zip(tile, masks, strict=True)])


def _tile_scale(tile, array, offset):
    scales = _within(array, offset, len(tile)).view(np.float32)[:, None]
    return (tile.astype(np.float32) * scales).view(np.int32)


EMULATED = {
    "address": Address,
    "bits_of_float": lambda value: np.float32(value).view(np.int32),
    "float_of_bits": lambda bits: np.int32(bits).view(np.float32),
    "dot_tile": lambda acc, ones, tile: sum((_dot(acc * 0, ones, row) for row in tile), acc),
    "load": lambda array, at, lanes: _within(array, at, lanes).copy(),
    "load_splat": lambda array, at, lanes: _within(array, at, 1).repeat(lanes),
    "mask": lambda vector, bits: vector & np.int32(bits),
    "prefetch": lambda array, at: None,
    "splat": lambda value, lanes: np.full(lanes, value, np.int32),
    "store": lambda array, at, vector: np.copyto(_within(array, at, vector.size), vector),
    "tile_add": lambda left, right: left + right,
    "tile_add_vector": lambda tile, vector: tile + vector,
    "tile_count": len,
    "tile_dot_pair": _tile_dot_pair,
    "tile_dot_rows": _tile_dot_rows,
    "tile_half": lambda tile, which: tile[which::2],
    "tile_join": lambda left, right: np.stack([left, right], 1).reshape(-1, left.shape[1]),
    "tile_load": _tile_load,
    "tile_scale": _tile_scale,
    "tile_shift_left": lambda tile, bits: tile << bits,
    "tile_shift_right": lambda tile, bits: tile >> bits,
    "tile_splat": _tile_splat,
    "tile_store": _tile_store,
    "tile_store_rows": _tile_store_rows,
    "tile_times": lambda tile, scale: (tile.astype(np.float32) * scale).view(np.int32),
    "tile_transpose": np.transpose,
    "tile_unscale": lambda tile: tile >> np.array([0, 2, 4, 6])[: len(tile), None],
    "tile_zero": lambda count, lanes: np.zeros((count, lanes), np.int32),
    "ONE_CODE": Bits(0x03030303),
}


def _garbage(shape, dtype):
    """Room that is asked for uninitialised holds anything; nothing may come of it."""
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    return np.random.default_rng(size).integers(0, 256, size, np.uint8).view(dtype).reshape(shape)


def emulated(module, **constants):
    """Return the functions of a kernel file as plain Python over `EMULATED` vectors."""
    scopes = {}

    def scope_of(name):
        if name in scopes:
            return scopes[name]
        scope = scopes[name] = dict(vars(sys.modules[name]))
        scope |= {key: thing for key, thing in EMULATED.items() if key in scope}
        for key in scope.keys() - EMULATED.keys():
            function = getattr(scope[key], "py_func", scope[key])
            if isinstance(function, types.FunctionType) and "minibit" in function.__module__:
                outside = scope_of(function.__module__)
                scope[key] = types.FunctionType(function.__code__, outside, key)
        scope["np"] = types.SimpleNamespace(**vars(np) | {"empty": _garbage})
        return scope

    scope = scope_of(module.__name__)
    assert constants.keys() <= scope.keys()
    scope |= constants
    return scope


@pytest.mark.parametrize(
    ("n_out", "n_in"), [(1, 1), (10, 9), (64, 8), (65, 57), (127, 64), (129, 65), (17, 130)]
)
def test_the_matrix_vector_kernel_stays_within_its_buffers(n_out, n_in):
    """Its token, filled up to 8s, and every panel, on emulated vectors: integers and floats."""
    from minibit.kernels import vnni_matvec

    product = emulated(vnni_matvec)["product"]
    x, codes, expected = random_problem(1, n_out, n_in)
    panels, groups = pack_panels_reference(codes), -(-n_out // 64)
    out = np.zeros((1, n_out), np.int32)
    assert product(x, panels, out, 0, groups, None)
    np.testing.assert_array_equal(out, expected)
    x[0], x[0, 0] = np.maximum(x[0], -127), 127  # quantised to itself
    floats = np.zeros((1, n_out), np.float32)
    assert product(x.astype(np.float32), panels, floats, 0, groups, np.float32(0.5))
    np.testing.assert_array_equal(floats, x.astype(np.float32) @ codes.T.astype(np.float32) / 2)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7, 12, 13, 25, 30])
@pytest.mark.parametrize(("n_out", "n_in"), [(1, 1), (17, 65), (49, 136), (130, 70)])
@pytest.mark.parametrize("few", [True, False])
def test_kernels_of_several_tokens_stay_within_their_buffers(few, batch, n_out, n_in):
    """Padded or packed tokens and the last vector's excess, with small blocks, so that all end."""
    from minibit.kernels import vnni_few, vnni_matmat

    if few:
        product = emulated(vnni_few, BLOCK=2)["product"]
    else:
        product = emulated(vnni_matmat, COLUMNS=64, CHUNKS=2)["product"]
    x, codes, expected = random_problem(batch, n_out, n_in)
    panels, groups = pack_panels_reference(codes), -(-n_out // 64)
    out = np.zeros((batch, n_out), np.int32)
    assert product(x, panels, out, 0, groups, None)
    np.testing.assert_array_equal(out, expected)
    x = np.maximum(x, -127)
    x[:, 0] = 127  # quantised to itself
    floats = np.zeros((batch, n_out), np.float32)
    assert product(x.astype(np.float32), panels, floats, 0, groups, np.float32(0.5))
    np.testing.assert_array_equal(floats, x.astype(np.float32) @ codes.T.astype(np.float32) / 2)
