"""Kernels check no bounds: here each proves its own, at the ends of memory and on emulated vectors.

What a caller hands over (activations, weights, products) lies here against pages that may not be
touched: a load or a store too far ends the process. What a kernel keeps to itself is watched by
running its Python text over vectors in NumPy, whose loads and stores look where they go.
"""

import os
import subprocess
import sys
import types
from functools import cache

import numpy as np
import pytest

from minibit import kernels
from minibit.ternary.panels import arrange_scales, pack_panels_reference, restore_scales

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0") and not kernels.missing()
pytestmark = pytest.mark.skipif(not JIT, reason="kernels are compiled only with the JIT")


def random_problem(batch, n_out, n_in):
    """Activations, codes and their exact product."""
    rng = np.random.default_rng(batch * 10007 + n_out * 101 + n_in)
    codes = rng.integers(-1, 2, (n_out, n_in)).astype(np.int8)
    x = rng.integers(-128, 128, (batch, n_in)).astype(np.int8)
    return x, codes, x.astype(np.int64) @ codes.astype(np.int64).T


# --- what callers hand over ---------------------------------------------------------------------

AT_THE_END_OF_MEMORY = """
import ctypes, mmap, sys
from functools import partial
import numpy as np
from minibit.kernels import grouped, pack, portable
from minibit.kernels.product import LANES, product
from minibit.ternary.panels import (
    arrange_scales, pack_columns_reference, pack_panels_reference
)

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

paths, few = sys.argv[1].split(","), (1, 2, 3, 7, 8, 9, 57, 63, 64, 65)
shapes = [(1 + i % 2 * (3 + i), n_out, n_in) for i, n_in in enumerate(few) for n_out in (1, 17, 64)]
shapes += [(batch, 129, 70) for batch in (1, 2, 3, 5, 6, 7, 12, 13, 25)]
shapes += [(1, 80, 4100), (3, 66, 4100)]
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
            assert getattr(pack, kind)(own, n_out, held[kind])
            assert np.array_equal(held[kind], packed)
        for path in paths:
            panels = path != "portable"
            weights = held["panels" if panels else "columns"]
            multiply = partial(product, LANES[path]) if panels else portable.product
            for dtype, gamma in ((np.int32, None), (np.float32, np.float32(1))):
                tokens = fenced(x.astype(np.int8 if gamma is None else np.float32), at_end)
                groups = -(-n_out // 64)
                for first in range(groups):  # all rows, then the last panel alone
                    out = fenced(np.full((batch, n_out), 7, dtype), at_end)
                    assert multiply(tokens, weights, out, first, groups, gamma)
                    assert np.array_equal(out[:, 64 * first :], exact[:, 64 * first :]), path
                    assert (out[:, : 64 * first] == 7).all(), path
        kept.clear()
for batch, n_out, n_in, group in ((1, 70, 96, 32), (5, 129, 128, 64), (13, 64, 256, 256)):
    rng = np.random.default_rng(batch)
    codes = rng.integers(-1, 2, (n_out, n_in)).astype(np.int8)
    x = rng.integers(-127, 128, (batch, n_in)).astype(np.float32)
    x[:, ::group] = 127
    scales = rng.choice([0.5, 1, 4], (n_out, n_in // group)).astype(np.float32)
    exact = x @ (codes * np.repeat(scales, group, axis=1)).T
    for at_end in (True, False):
        for path in paths:
            layout = "columns" if path == "portable" else "panels"
            pack_all = pack_columns_reference if path == "portable" else pack_panels_reference
            weights = fenced(pack_all(codes), at_end)
            laid = fenced(arrange_scales(scales, layout), at_end)
            tokens, out = fenced(x, at_end), fenced(np.zeros((batch, n_out), np.float32), at_end)
            if path == "portable":
                multiply = portable.grouped_product
            else:
                multiply = partial(grouped.product, LANES[path])
            assert multiply(tokens, weights, laid, group, out, 0, -(-n_out // 64))
            assert np.array_equal(out, exact), path
        kept.clear()
print("whole")
"""


def paths():
    """Kernel paths of the product that this CPU can run; that of Arm is plain LLVM elsewhere."""
    return ["portable", "arm", *({"avx2", "vnni"} & set(kernels.supported()))]


@pytest.mark.skipif(sys.platform != "linux", reason="fences are made by Linux's mprotect")
def test_kernels_touch_nothing_before_or_behind_their_arrays():
    """Packers and products, with every array against a page that may not be touched."""
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END_OF_MEMORY, ",".join(paths())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "whole\n", f"exit status {done.returncode}\n{done.stderr}"


# --- what a kernel keeps to itself --------------------------------------------------------------


ONE_CODE = np.uint32(0x03030303)


def _within(array, at, count):
    """Return `count` int32 from byte `at`; outside of the array this fails."""
    flat = array.reshape(-1).view(np.uint8)
    assert 0 <= at <= flat.size - 4 * count, f"byte {at} of {flat.size}"
    return flat[at : at + 4 * count].view(np.int32)


def _length(count):
    """A number, or the length of a tuple."""
    return count if isinstance(count, int) else len(count)


def _tile_zero(tokens, groups, lanes):
    lanes = _length(lanes)
    return np.zeros((_length(tokens), 16 * _length(groups) // lanes, lanes), np.int32)


def _tile_codes(panels, at, first, sums):
    words, (_, vectors, lanes) = _within(panels, at, 16).view(np.uint32), sums.shape
    shifts = 2 * np.arange(first, first + vectors * lanes // 16, dtype=np.uint32)[:, None]
    if lanes < 16:
        return (words >> shifts & ONE_CODE).reshape(1, vectors, lanes)
    return (words & ONE_CODE << shifts).reshape(1, vectors, lanes)


def _tile_dot(tile, codes, array, offset, stride):
    tokens, vectors, lanes = tile.shape
    fours = [_within(array, offset + stride * token, 1) for token in range(tokens)]
    acts = np.array(fours).view(np.int8).astype(np.int32)  # (tokens, 4)
    unsigned = codes.view(np.uint8).reshape(-1, 4).astype(np.int32)  # (vectors * lanes, 4)
    if lanes == 8:  # int16 sums, each of two products
        pairs = acts.reshape(tokens, 1, 2, 2) * unsigned.reshape(-1, 2, 2)
        sums = tile.view(np.int16) + pairs.sum(-1).reshape(tokens, vectors, 16)
        assert abs(sums).max() < 2**15
        return sums.astype(np.int16).view(np.int32)
    return tile + (acts @ unsigned.T).reshape(tile.shape)


def _tile_add(total, sums):
    wide = sums.view(np.int16).astype(np.int32).reshape(*sums.shape, 2).sum(-1, dtype=np.int32)
    return total + (wide if total.shape[2] == 8 else sums)


def _tile_finish(tile, first, minus, scales, token):
    tokens, vectors, lanes = tile.shape
    shifts = 2 * (first + np.arange(vectors) % 4) if lanes == 16 else np.zeros(vectors, int)
    rows = (tile >> shifts[:, None]) + _within(minus, 4 * token, tokens)[:, None, None]
    if scales is None:
        return rows
    factors = _within(scales, 4 * token, tokens).view(np.float32)[:, None, None]
    return (rows.astype(np.float32) * factors).view(np.int32)


def _tile_fill(tile, first, words, at, step):
    tokens, vectors, lanes = tile.shape
    groups = first + np.arange(vectors) * lanes // 16
    rows = [[_within(words, 4 * (4 * (at + token * step) + group), 1) for group in groups]
            for token in range(tokens)]  # fmt: skip
    return np.broadcast_to(np.array(rows), tile.shape).astype(np.int32)


def _tile_group(total, sums, first, factors, at, step, scales, offset):
    tokens, vectors, lanes = sums.shape
    rows, half = scales[offset : offset + vectors * lanes], scales.itemsize == 2
    assert rows.size == vectors * lanes
    rows = (rows.view(np.float16) if half else rows).astype(np.float32).reshape(vectors, lanes)
    groups = first + np.arange(vectors) * lanes // 16
    counted, expected = (4 if lanes == 16 else 1) ** groups, (4 if half else 1) ** groups
    result = total.view(np.float32).copy()
    for token in range(tokens):
        factor = _within(factors, 4 * (at + token * step), 1).view(np.float32)
        exact = sums[token] // counted[:, None] * expected[:, None]
        result[token] += exact.astype(np.float32) * (rows * factor)
    return result.view(np.int32)


def _tile_load(array, offset, stride, present, valid, like):
    tile = np.zeros(like.shape, np.int32)
    some = int(np.clip(valid, 0, tile[0].size))
    for token in range(min(present, len(tile)) if some else 0):
        tile[token].reshape(-1)[:some] = _within(array, offset + stride * token, some)
    return tile


def _tile_store(array, offset, stride, present, valid, tile):
    some = int(np.clip(valid, 0, tile[0].size))
    for token in range(min(present, len(tile)) if some else 0):
        _within(array, offset + stride * token, some)[:] = tile[token].reshape(-1)[:some]


EMULATED = {
    "prefetch": lambda array, at: None,
    "tile_add": _tile_add,
    "tile_codes": _tile_codes,
    "tile_dot": _tile_dot,
    "tile_fill": _tile_fill,
    "tile_finish": _tile_finish,
    "tile_group": _tile_group,
    "tile_load": _tile_load,
    "tile_store": _tile_store,
    "tile_transpose": lambda tile: tile.transpose(2, 1, 0),
    "tile_zero": _tile_zero,
}


def _garbage(shape, dtype):
    """Room that is asked for uninitialised holds anything; nothing may come of it."""
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    return np.random.default_rng(size).integers(0, 256, size, np.uint8).view(dtype).reshape(shape)


@cache
def emulated(module, **constants):
    """Return the functions of a kernel file as plain Python over `EMULATED` vectors."""
    scopes = {}

    def scope_of(name):
        if name in scopes:
            return scopes[name]
        scope = scopes[name] = dict(vars(sys.modules[name]))
        scope |= {key: thing for key, thing in EMULATED.items() if key in scope}
        for key in scope.keys() - EMULATED.keys():
            thing = scope[key]
            function = getattr(thing, "py_func", getattr(thing, "__wrapped__", thing))
            if isinstance(function, types.FunctionType) and "minibit" in function.__module__:
                outside = scope_of(function.__module__)
                scope[key] = types.FunctionType(function.__code__, outside, key)
        scope["njit"] = lambda **options: lambda function: function
        scope["np"] = types.SimpleNamespace(**vars(np) | {"empty": _garbage})
        return scope

    scope = scope_of(module.__name__)
    assert constants.keys() <= scope.keys()
    scope |= constants
    return scope


@pytest.mark.parametrize(("n_out", "n_in"), [(1, 1), (10, 9), (65, 57), (130, 130)])
@pytest.mark.parametrize("batch", [1, 3, 8, 13, 25])
@pytest.mark.parametrize("tile", [(1, 4), (2, 4), (6, 4), (8, 2), (12, 2), (4, 1)])
def test_products_stay_within_their_buffers(tile, batch, n_out, n_in):
    """Every tile and width of registers, with small blocks, so that all of them end."""
    from minibit.kernels import product

    x, codes, expected = random_problem(batch, n_out, n_in)
    panels, groups = pack_panels_reference(codes), -(-n_out // 64)
    for lanes in (16,) if tile[0] > 4 else (16, 8, 4):
        blocks = {"COLUMNS": 64, "CHUNKS": 2, "FLUSH": 40}
        multiply = emulated(product, **blocks)["tile_product"](*tile, lanes)
        out = np.zeros((batch, n_out), np.int32)
        assert multiply(x, panels, out, 0, groups, None)
        np.testing.assert_array_equal(out, expected)
        floats, y = np.zeros((batch, n_out), np.float32), np.maximum(x, -127)
        y[:, 0] = 127  # quantised to itself
        assert multiply(y.astype(np.float32), panels, floats, 0, groups, np.float32(0.5))
        exact = y.astype(np.float32) @ codes.T.astype(np.float32) / 2
        np.testing.assert_array_equal(floats, exact)


@pytest.mark.parametrize(("n_out", "n_in", "group"), [(1, 32, 32), (65, 96, 32), (130, 256, 128)])
@pytest.mark.parametrize("batch", [1, 4, 13])
@pytest.mark.parametrize("tile", [(1, 4), (2, 4), (5, 2), (6, 2), (4, 1)])
@pytest.mark.parametrize("kind", ["f2", "f4"])
def test_products_of_groups_stay_within_their_buffers(tile, batch, n_out, n_in, group, kind):
    """Likewise with scales of groups, of either size; blocks of 7 tokens end within a tile."""
    from minibit.kernels import grouped

    x, codes, _ = random_problem(batch, n_out, n_in)
    x = np.maximum(x, -127).astype(np.float32)
    x[:, ::group] = 127  # quantised to itself
    scales = np.random.default_rng(n_in).choice([0.25, 0.5, 2], (n_out, n_in // group))
    w = codes * np.repeat(scales, group, axis=1)
    panels = pack_panels_reference(codes)
    arranged = arrange_scales(scales.astype(np.float32), "panels")
    if kind == "f4":
        arranged = arrange_scales(restore_scales(arranged, "panels", n_out) + 2**-20, "panels")
        w = codes * np.repeat(scales + 2**-20, group, axis=1)
    for lanes in (16,) if tile[1] == 2 else (16, 8, 4):
        multiply = emulated(grouped, BLOCK=7)["tile_product"](*tile, lanes, group)
        out = np.zeros((batch, n_out), np.float32)
        assert multiply(x, panels, arranged, out, 0, -(-n_out // 64))
        np.testing.assert_allclose(
            out, x @ w.T, rtol=0 if kind == "f2" else 1e-6, atol=0 if kind == "f2" else 1e-3
        )


def test_int16_sums_are_widened_in_time():
    """240 columns of the largest products: the emulated AVX2 says if a sum leaves int16."""
    from minibit.kernels import product

    multiply = emulated(product)["tile_product"](1, 4, 8)
    for code, x in ((1, -128), (1, 127), (-1, -128)):
        codes, out = np.full((64, 520), code, np.int8), np.zeros((1, 64), np.int32)
        tokens = np.full((1, 520), x, np.int8)
        assert multiply(tokens, pack_panels_reference(codes), out, 0, 1, None)
        assert (out == 520 * code * x).all()


# --- AMX, emulated ------------------------------------------------------------------------------


class TileUnit:
    """AMX's eight tiles in NumPy, from Intel's description of the instructions."""

    def __init__(self):
        self.tiles = None

    def configure(self, config, offset):
        """LDTILECFG: palette 1, sizes at bytes 16 (16 bits each) and 48; all tiles become 0."""
        assert (config.nbytes, offset) == (64, 0)
        assert config[0] == 1
        assert not config[1:16].any()
        assert config[16:32].view(np.uint16).tolist() == [64] * 8
        assert config[48:56].tolist() == [16] * 8
        assert not config[32:48].any()
        assert not config[56:].any()
        self.tiles = np.zeros((8, 16, 64), np.uint8)

    def release(self):
        """TILERELEASE."""
        self.tiles = None

    def zero(self, tile):
        """TILEZERO."""
        self.tiles[tile] = 0

    def load(self, tile, array, offset, stride):
        """TILELOADD: line i from offset + i * stride; out of bounds fails here."""
        flat = array.reshape(-1).view(np.uint8)
        for line in range(16):
            at = offset + line * stride
            assert 0 <= at <= flat.size - 64
            self.tiles[tile, line] = flat[at : at + 64]

    def store(self, tile, array, offset, stride):
        """TILESTORED."""
        flat = array.reshape(-1).view(np.uint8)
        for line in range(16):
            at = offset + line * stride
            assert 0 <= at <= flat.size - 64
            flat[at : at + 64] = self.tiles[tile, line]

    def dot(self, c, a, b):
        """TDPBSUD: C[m][n] += sum over k, i of signed A[m][4k + i] * unsigned B[k][4n + i]."""
        left = self.tiles[a].view(np.int8).reshape(16, 16, 4).astype(np.int32)  # m k i
        right = self.tiles[b].reshape(16, 16, 4).astype(np.int32)  # k n i
        self.tiles[c].view(np.int32)[...] += np.einsum("mki,kni->mn", left, right, dtype=np.int32)


def emulated_amx():
    """The product of `minibit.kernels.amx` as plain Python, over an emulated tile unit."""
    from minibit.kernels import amx

    unit = TileUnit()
    names = ("configure", "release", "zero", "load", "store", "dot")
    return emulated(amx, **{f"amx_{name}": getattr(unit, name) for name in names})["product"], unit


@pytest.mark.parametrize(
    ("batch", "n_out", "n_in"),
    [(1, 1, 1), (2, 64, 64), (33, 150, 130), (32, 32, 1024), (40, 112, 1100), (530, 17, 70)],
)
def test_the_amx_kernel_is_exact_on_emulated_tiles(batch, n_out, n_in):
    """Blocks, halves of panels, padding and tails fall where ``tdpbsud`` expects them."""
    product, unit = emulated_amx()
    x, codes, expected = random_problem(batch, n_out, n_in)
    panels = pack_panels_reference(codes)
    groups = -(-n_out // 64)
    out = np.full((batch, n_out), 7, np.int32)
    assert product(x, panels, out, 0, groups, None)
    np.testing.assert_array_equal(out, expected)
    assert unit.tiles is None  # released


def test_the_amx_kernel_takes_ranges_of_panels_and_floats():
    """It writes its own rows only, quantises like the others, and reports what is not finite."""
    product, _ = emulated_amx()
    x, codes, expected = random_problem(3, 270, 90)
    panels = pack_panels_reference(codes)
    out = np.full((3, 270), 7, np.int32)
    assert product(x, panels, out, 1, 4, None)
    np.testing.assert_array_equal(out[:, 64:256], expected[:, 64:256])
    assert (out[:, :64] == 7).all()
    assert (out[:, 256:] == 7).all()
    floats = np.zeros((3, 270), np.float32)
    x[:, 0] = 127  # scale 1 exactly, so that the codes are x
    x[:, 1:] = np.maximum(x[:, 1:], -127)
    assert product(x.astype(np.float32), panels, floats, 0, 5, np.float32(0.5))
    exact = x.astype(np.float64) @ codes.astype(np.float64).T * 0.5
    np.testing.assert_allclose(floats, exact, rtol=1e-6)
    assert not product(np.full((3, 90), np.inf, np.float32), panels, floats, 0, 5, np.float32(1))
