"""The engine room: every Numba function of the package, one file per hot path.

Each kernel has a ``*_reference`` twin of the same signature, plain NumPy, in the module that
teaches it; the tests hold the two equal. Nothing here is imported until a hot path first runs, so
that ``import minibit`` does not pay for Numba.
"""

from __future__ import annotations

import atexit
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from functools import cache

__all__ = ["PATHS", "compiled", "layout", "path", "supported"]

PATHS = ("reference", "portable", "arm", "avx2", "vnni", "amx")


@cache
def supported() -> tuple[str, ...]:
    """Paths that this CPU can run, slowest first.

    ``reference`` is NumPy, ``portable`` Numba without intrinsics, ``arm`` the byte dot product of
    Arm (``sdot``), ``avx2``, ``vnni`` (AVX-512) and ``amx`` those of x86.
    """
    found = ["reference", "portable"]
    features = _cpu_features()
    if features.get("dotprod"):
        found.append("arm")
    if features.get("avx2"):
        found.append("avx2")
    if features.get("avx512vnni") and features.get("avx512bw") and features.get("avx512vl"):
        found.append("vnni")
    amx = features.get("amx-int8") and features.get("amx-tile")
    if amx and "vnni" in found and _amx_granted():
        found.append("amx")
    return tuple(found)


def _cpu_features() -> Mapping[str, bool]:
    """Names of the instruction sets of this CPU, by LLVM; none where LLVM cannot tell."""
    import llvmlite.binding as llvm

    try:
        features: Mapping[str, bool] = llvm.get_host_cpu_features()
    except RuntimeError:
        features = {}
    if not features and (sys.platform, platform.machine()) == ("darwin", "arm64"):
        return {"dotprod": True}  # every Apple CPU that runs arm64 code has it
    return features


def _amx_granted() -> bool:
    """Ask the system to let this process use AMX's tiles; Linux is asked once and remembers."""
    if sys.platform != "linux":
        return False
    import ctypes

    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    system = ctypes.CDLL(None, use_errno=True)
    return int(system.syscall(arch_prctl, request_permission, tile_data)) == 0


def layout(name: str) -> str:
    """Layout of the weights that a path multiplies by: ``packed2``, ``columns`` or ``panels``.

    See `minibit.ternary.panels`.
    """
    return {"reference": "packed2", "portable": "columns"}.get(name, "panels")


def path() -> str:
    """Name of the kernel path in force: one of `PATHS`.

    ``MINIBIT_KERNELS`` picks it (``auto``, the default, takes the fastest that the CPU has); with
    Numba's JIT off (``NUMBA_DISABLE_JIT=1``) it is always ``reference``.

    Raises
    ------
    ValueError
        If ``MINIBIT_KERNELS`` is not a known name.
    RuntimeError
        If it names a path that this CPU lacks.
    """
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "reference"
    wanted = os.environ.get("MINIBIT_KERNELS") or "auto"
    if wanted == "reference":
        return wanted
    if wanted != "auto" and wanted not in PATHS:
        names = ", ".join(("auto", *PATHS))
        raise ValueError(f"MINIBIT_KERNELS must be one of {names}, got {wanted!r}")
    has = supported()
    if wanted == "auto":
        return has[-1]
    if wanted not in has:
        raise RuntimeError(f"MINIBIT_KERNELS={wanted}: this CPU lacks it; it has {', '.join(has)}")
    return wanted


def compiled() -> bool:
    """Whether hot paths run their Numba kernels (else their plain NumPy references)."""
    if path() == "reference":
        return False
    _give_numba_a_cache()
    return True


@cache
def _give_numba_a_cache() -> None:
    """Let Numba keep its compiled code in a folder of this process where it finds no other.

    It looks beside the source, then in the user's cache folder, and refuses to compile if it can
    write to neither: on a read-only system without a home.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    while home and not os.path.exists(home) and home != os.path.dirname(home):
        home = os.path.dirname(home)
    if (
        os.environ.get("NUMBA_CACHE_DIR")
        or _is_writable(os.path.dirname(__file__))
        or _is_writable(home)
    ):
        return
    folder = tempfile.mkdtemp(prefix="minibit-numba-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = folder
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = folder


def _is_writable(folder: str) -> bool:
    """Whether a file can be made there; asked by making one."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
