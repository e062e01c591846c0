"""The engine room: paths, instructions, and kernels of CPUs that are not here."""

import json
import os
import platform
import subprocess
import sys
from functools import cache

import numpy as np
import pytest

from minibit import kernels
from minibit.ternary.panels import (
    pack_columns,
    pack_columns_reference,
    pack_panels,
    pack_panels_reference,
    unpack_columns,
    unpack_panels,
)

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0") and not kernels.missing()
needs_jit = pytest.mark.skipif(not JIT, reason="kernels are compiled only with the JIT")
ON_X86 = pytest.mark.skipif(
    not JIT or platform.machine().lower() not in ("x86_64", "amd64"),
    reason="Numba compiles x86 code on x86",
)


def random_problem(batch, n_out, n_in):
    """Codes, activations and their exact product."""
    rng = np.random.default_rng(batch * 10007 + n_out * 101 + n_in)
    codes = rng.integers(-1, 2, (n_out, n_in)).astype(np.int8)
    x = rng.integers(-128, 128, (batch, n_in)).astype(np.int8)
    return x, codes, x.astype(np.int64) @ codes.astype(np.int64).T


# --- the path -----------------------------------------------------------------------------------


@needs_jit
def test_each_supported_path_can_be_asked_for(monkeypatch):
    """MINIBIT_KERNELS names it; auto is the last, the fastest."""
    for name in kernels.supported():
        monkeypatch.setenv("MINIBIT_KERNELS", name)
        assert kernels.path() == name
    monkeypatch.setenv("MINIBIT_KERNELS", "auto")
    assert kernels.path() == kernels.supported()[-1]


@needs_jit
def test_a_path_that_the_cpu_lacks_is_an_error(monkeypatch):
    """It names the path and what there is; a wrong name is another error."""
    monkeypatch.setattr(kernels, "supported", lambda: ("reference", "portable"))
    monkeypatch.setenv("MINIBIT_KERNELS", "amx")
    with pytest.raises(
        RuntimeError, match=r"amx: this CPU lacks it.*; there is reference, portable$"
    ):
        kernels.path()
    monkeypatch.setenv("MINIBIT_KERNELS", "fast")
    with pytest.raises(ValueError, match="must be one of auto, reference"):
        kernels.path()


def test_without_the_jit_everything_is_numpy(monkeypatch):
    """NUMBA_DISABLE_JIT=1 wins over any path."""
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    monkeypatch.setenv("MINIBIT_KERNELS", "vnni")
    assert kernels.path() == "reference"
    assert not kernels.compiled()


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({}, ("reference", "portable")),
        ({"avx2": True}, ("reference", "portable", "avx2")),
        ({"dotprod": True}, ("reference", "portable", "arm")),
        (
            {"avx2": True, "avx512vnni": True, "avx512bw": True, "avx512vl": True},
            ("reference", "portable", "avx2", "vnni"),
        ),
        ({"avx2": True, "avx512vnni": True}, ("reference", "portable", "avx2")),
        ({"amx-int8": True, "amx-tile": True}, ("reference", "portable")),
    ],
)
def test_a_path_is_offered_only_with_all_that_it_needs(monkeypatch, features, expected):
    """Each path by the features that LLVM reports."""
    monkeypatch.setattr(kernels, "_cpu_features", lambda: features)
    assert kernels.supported.__wrapped__() == expected


@ON_X86
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"NUMBA_CPU_NAME": "generic"}, {"reference", "portable"}),
        ({"NUMBA_ENABLE_AVX": "0"}, {"reference", "portable"}),
        ({"NUMBA_CPU_FEATURES": "+avx2,+fma"}, {"reference", "portable", "avx2"}),
    ],
)
def test_a_path_is_offered_only_if_numba_compiles_for_it(settings, expected, tmp_path):
    """What Numba is told, not what the CPU has; a product of the fastest path left is exact."""
    code = """
import numpy as np
from minibit import kernels
from minibit.matmul import ternary_matmul_int8
from minibit.ternary import TernaryMatrix
print(*kernels.supported())
matrix = TernaryMatrix.from_codes(np.ones((70, 100), np.int8))
print(ternary_matmul_int8(np.ones((1, 100), np.int8), matrix).sum())
"""
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "MINIBIT_KERNELS": "",
        **settings,
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    paths, total = done.stdout.splitlines()
    assert set(paths.split()) == expected & set(kernels.supported())
    assert total == "7000"


@pytest.mark.parametrize("granted", [True, False])
def test_amx_is_offered_only_if_the_system_grants_it(monkeypatch, granted):
    """The CPU's features are not enough: the kernel must let the process use the tiles."""
    names = ("avx2", "avx512vnni", "avx512bw", "avx512vl", "amx-int8", "amx-tile")
    monkeypatch.setattr(kernels, "_cpu_features", lambda: dict.fromkeys(names, True))
    monkeypatch.setattr(kernels, "_amx_granted", lambda: granted)
    assert ("amx" in kernels.supported.__wrapped__()) is granted


# --- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (65, 65), (33, 7), (130, 130), (0, 5), (5, 0)])
def test_layouts_hold_every_code_and_pad_with_weight_zero(shape):
    """Packing and unpacking are inverse; compiled packers give the bytes of the references."""
    codes = np.random.default_rng(sum(shape)).integers(-1, 2, shape).astype(np.int8)
    frozen = np.asfortranarray(codes)
    frozen.flags.writeable = False
    for pack, reference, unpack in (
        (pack_panels, pack_panels_reference, unpack_panels),
        (pack_columns, pack_columns_reference, unpack_columns),
    ):
        packed = pack(frozen)
        np.testing.assert_array_equal(packed, reference(codes), strict=True)
        np.testing.assert_array_equal(unpack(packed, shape), codes, strict=True)
        digits = packed[:, None] >> np.array([0, 2, 4, 6]) & 3
        assert digits.sum(dtype=int) - digits.size == codes.sum(dtype=int)  # padding adds nothing


def test_a_panel_puts_each_code_where_the_layout_says():
    """Bits 2j of byte 4r + c of vector q of panel p: row 64p + 16j + r, column 4q + c."""
    codes = np.zeros((140, 200), np.int8)
    codes[101, 147] = 1  # 101 = 64 * 1 + 16 * 2 + 5, 147 = 4 * 36 + 3
    panels = pack_panels(codes).reshape(3, 64, 64)
    changed = np.argwhere(panels != 0b01_01_01_01)
    assert changed.tolist() == [[1, 36, 4 * 5 + 3]]
    assert panels[1, 36, 23] == 0b01_10_01_01
    columns = pack_columns(codes).reshape(52, 140)
    assert np.argwhere(columns != 0b01_01_01_01).tolist() == [[147 // 4, 101]]
    assert columns[36, 101] == 0b10_01_01_01


@needs_jit
@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (65, 200), (4096, 300)])
def test_panels_begin_where_a_cache_line_does(shape):
    """A load of 64 bytes then never crosses from one line to the next."""
    packed = pack_panels(np.zeros(shape, np.int8))
    assert packed.ctypes.data % 64 == 0
    assert packed.size == -(-shape[0] // 64) * -(-shape[1] // 64) * 1024


# --- instructions -------------------------------------------------------------------------------

COMPILE = """
import importlib, json, sys
from numba import types as t
weights, halves = (t.Array(kind, 1, "C", readonly=True) for kind in (t.uint8, t.uint16))
floats, places = t.Array(t.float32, 2, "C"), (t.int64, t.int64)
one_scale = t.Array(t.int8, 2, "C"), weights, t.Array(t.int32, 2, "C"), *places, t.none
groups = floats, weights, halves, floats, *places
texts = {}
for words in sys.argv[1:]:
    name, *tile = words.split()
    module = importlib.import_module(f"minibit.kernels.{name}")
    kernel = module.tile_product(*map(int, tile)) if tile else module.product
    kernel.disable_cache = True
    kernel.compile(groups if name == "grouped" else one_scale)
    texts[words] = kernel.inspect_asm(kernel.signatures[0])
print(json.dumps(texts))
"""
CPUS = {  # features that Numba is told of
    "cascadelake": "+avx512vnni",
    "sapphirerapids": "+amx-int8,+amx-tile",
    "haswell": "+avx2,+fma",
}
INSTRUCTIONS = [  # kernel file and tile, the CPU it is meant for, an instruction, how often
    ("product 1 4 16", "cascadelake", "vpdpbusd", 8),
    ("product 2 4 16", "cascadelake", "vpdpbusd", 16),
    ("product 5 4 16", "cascadelake", "vpdpbusd", 40),
    ("product 12 2 16", "cascadelake", "vpdpbusd", 48),
    ("amx", "sapphirerapids", "tdpbsud", 4),
    ("grouped 1 4 16 64", "cascadelake", "vpdpbusd", 64),
    ("grouped 6 2 16 32", "cascadelake", "vpdpbusd", 24),
    ("product 1 4 8", "haswell", "vpmaddubsw", 16),
    ("product 4 1 8", "haswell", "vpmaddubsw", 16),
    ("portable", "haswell", "vpmullw", 8),
]


@pytest.fixture(scope="module")
def assembly_for(tmp_path_factory):
    """A function: the assembly of all kernels for a CPU, compiled in a process of its own."""

    @cache
    def assembly(cpu):
        names = [name for name, meant_for, *_ in INSTRUCTIONS if meant_for == cpu]
        settings = {
            "NUMBA_CPU_NAME": cpu,
            "NUMBA_CPU_FEATURES": CPUS[cpu],
            "NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp(cpu)),
        }
        done = subprocess.run(
            [sys.executable, "-c", COMPILE, *names],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return assembly


@ON_X86
@pytest.mark.parametrize(("kernel", "cpu", "instruction", "at_least"), INSTRUCTIONS)
def test_a_kernel_uses_the_instruction_it_was_written_for(
    kernel, cpu, instruction, at_least, assembly_for
):
    """The assembly for the intended CPU holds it, and no sum spilled inside the loop."""
    lines = assembly_for(cpu)[kernel].splitlines()
    places = [i for i, line in enumerate(lines) if instruction in line]
    assert len(places) >= at_least
    if kernel.startswith("product"):  # 24 sums, 2 codes, 2 masks and broadcasts fit 32 registers
        loop = lines[places[0] : places[at_least - 1] + 1]
        register = "zmm" if instruction == "vpdpbusd" else "ymm"
        assert not [line for line in loop if "(%rsp)" in line and register in line]


CROSS_COMPILE = r"""
import re
import llvmlite.binding as llvm
from numba import types as t
from numba.core import codegen
from minibit.kernels import product, simd

class Taken(Exception):
    pass

finish = codegen.CPUCodeLibrary._finalize_final_module

def take(library):  # in place of machine code for this CPU, which may lack the instruction
    text = str(library._final_module)
    if "neon.sdot" in text:
        raise Taken(text)
    finish(library)

simd.ARM = True
codegen.CPUCodeLibrary._finalize_final_module = take
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
flat = t.Array(t.int8, 1, "C"), t.Array(t.uint8, 1, "C", readonly=True)
for tokens, groups in ((1, 4), (4, 1)):
    tile = simd.Tile(tokens, 4 * groups, 4)
    shape = t.Tuple([t.UniTuple(t.int64, count) for count in (tokens, groups, 4)])
    places = (t.int64,) * 3
    try:
        product.add_columns.compile((tile, shape, t.int64, flat[0], *places, flat[1], *places[1:]))
    except Taken as taken:
        text = str(taken)
    text = re.sub('"target-(cpu|features)"="[^"]*"', "", text)
    text = re.sub(r"llvm\.x86\.atomic[.\w]*", "x86_atomic", text).replace("immarg", "")  # refcounts
    module = llvm.parse_assembly(text)
    target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    machine = target.create_target_machine(cpu="neoverse-n1", opt=3)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    assembly = machine.emit_assembly(module)
    print(assembly.count("sdot"), assembly.count("smull"))
"""


@needs_jit
def test_the_arm_kernel_becomes_sdot(tmp_path):
    """Its inner loops, given to LLVM's backend for Arm, multiply with ``sdot`` alone."""
    done = subprocess.run(
        [sys.executable, "-c", CROSS_COMPILE],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    (one, one_smull), (four, four_smull) = counts
    assert one >= 32  # two vectors of 4 registers, times 4 groups of rows
    assert four >= 32  # times 4 tokens
    assert one_smull == four_smull == 0


@needs_jit
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 9])
def test_the_arm_kernel_is_exact_wherever_it_runs(batch):
    """It is plain LLVM, so its indices and sums can be tested on any CPU."""
    from minibit.kernels.product import LANES, product

    x, codes, expected = random_problem(batch, 137, 150)
    arguments = LANES["arm"], x, pack_panels_reference(codes)
    out = np.zeros((batch, 137), np.int32)
    assert product(*arguments, out, 0, 3, None)
    np.testing.assert_array_equal(out, expected)
    floats = np.zeros((batch, 137), np.float32)
    x, one = x.astype(np.float32), np.float32(1)
    assert product(arguments[0], x, arguments[2], floats, 0, 3, one)
    x[-1, -1] = np.nan
    assert not product(arguments[0], x, arguments[2], floats, 0, 3, one)


@needs_jit
@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize("kind", ["f2", "f4"])
def test_groups_on_arm_equal_the_reference_wherever_they_run(batch, kind):
    """Its tiles of 4 lanes, with scales of both sizes."""
    from minibit.kernels.grouped import product
    from minibit.kernels.product import LANES
    from minibit.matmul import ternary_matmul_reference
    from minibit.ternary import TernaryMatrix
    from minibit.ternary.panels import arrange_scales

    x, codes, _ = random_problem(batch, 137, 192)
    x = x.astype(np.float32)
    scales = np.random.default_rng(1).random((137, 3)).astype(kind)
    out = np.zeros((batch, 137), np.float32)
    panels = pack_panels_reference(codes)
    arranged = arrange_scales(scales.astype(np.float32), "panels")
    assert arranged.itemsize == scales.itemsize
    assert product(LANES["arm"], x, panels, arranged, 64, out, 0, 3)
    matrix = TernaryMatrix.from_codes(codes, scales)
    np.testing.assert_array_equal(out, ternary_matmul_reference(x, matrix))


# --- rungs beside the main path -----------------------------------------------------------------


def has(feature):
    """Whether LLVM reports a feature of this CPU."""
    return JIT and kernels._cpu_features().get(feature, False)


@pytest.mark.skipif(not has("avx512vbmi") or not has("avx512vnni"), reason="needs VBMI and VNNI")
@pytest.mark.parametrize("shape", [(1, 1), (80, 20), (133, 41), (17, 400), (64, 63)])
def test_the_base3_product_is_exact(shape):
    """Five digits a byte, taken apart by comparison and table."""
    from minibit.kernels import base3

    n_out, n_in = shape
    x, codes, expected = random_problem(1, n_out, n_in)
    filled = np.zeros(-(-n_in // 4) * 4, np.int8)
    filled[:n_in] = x[0]
    out = np.zeros(n_out, np.int32)
    packed = base3.pack(codes)
    assert packed.nbytes == -(-n_out // 80) * -(-n_in // 4) * 64
    base3.product(filled, packed, base3.TABLE, out)
    np.testing.assert_array_equal(out, expected[0])


@needs_jit
def test_the_base3_table_turns_digits_into_bit_fields():
    """Entry 27 d3 + 9 d2 + 3 d1 + d0 holds d0 | d1 << 2 | d2 << 4 | d3 << 6, by hand."""
    from minibit.kernels.base3 import TABLE

    assert TABLE[0] == 0
    assert TABLE[1 + 2 * 3 + 0 * 9 + 2 * 27] == 0b10_00_10_01
    assert TABLE[80] == 0b10_10_10_10


@needs_jit
@pytest.mark.parametrize("shape", [(1, 1), (3, 64), (33, 129), (5, 63)])
def test_the_bitplane_product_is_exact(shape):
    """AND, count, and -128 for the highest bit of two's complement."""
    from minibit.kernels import bitplanes

    n_out, n_in = shape
    x, codes, expected = random_problem(1, n_out, n_in)
    x[0, 0] = -128
    expected = codes.astype(np.int64) @ x[0]
    planes = np.zeros((2, n_out, -(-n_in // 64) * 64), bool)
    planes[:, :, :n_in] = codes == 1, codes == -1
    plus, minus = np.packbits(planes, axis=2, bitorder="little").view(np.uint64)
    out = np.zeros(n_out, np.int32)
    bitplanes.product(x[0], plus.copy(), minus.copy(), out)
    np.testing.assert_array_equal(out, expected)


# --- time at import -----------------------------------------------------------------------------


@needs_jit
def test_nothing_is_compiled_before_the_first_product():
    """Importing the modules and packing nothing imports no compiler."""
    code = (
        "import sys, minibit.matmul, minibit.absmean; "
        "print('numba' in sys.modules, 'llvmlite' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_an_empty_setting_is_no_setting(monkeypatch):
    """MINIBIT_KERNELS= means the same as leaving it out."""
    monkeypatch.delenv("MINIBIT_KERNELS", raising=False)
    expected = kernels.path()
    monkeypatch.setenv("MINIBIT_KERNELS", "")
    assert kernels.path() == expected
