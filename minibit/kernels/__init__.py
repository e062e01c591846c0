"""The engine room: every Numba function of the package, one file per hot path.

Each kernel has a ``*_reference`` twin of the same signature, plain NumPy, in the module that
teaches it; the tests hold the two equal. Nothing here is imported until a hot path first runs, so
that ``import minibit`` does not pay for Numba.

May import: numpy, numba.
"""

from __future__ import annotations

import os
from functools import cache

__all__ = ["PATHS", "compiled", "path"]

PATHS = ("reference", "portable", "avx2", "vnni", "amx")


@cache
def _supported() -> tuple[str, ...]:
    """Paths that this CPU can run, slowest first."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    found = ["reference", "portable"]
    if features.get("avx2"):
        found.append("avx2")
    if features.get("avx512vnni") and features.get("avx512bw") and features.get("avx512vl"):
        found.append("vnni")
    if features.get("amx-int8") and "vnni" in found:
        found.append("amx")
    return tuple(found)


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
    wanted = os.environ.get("MINIBIT_KERNELS", "auto")
    if wanted == "reference":
        return wanted
    if wanted != "auto" and wanted not in PATHS:
        names = ", ".join(("auto", *PATHS))
        raise ValueError(f"MINIBIT_KERNELS must be one of {names}, got {wanted!r}")
    supported = _supported()
    if wanted == "auto":
        return supported[-1]
    if wanted not in supported:
        raise RuntimeError(
            f"MINIBIT_KERNELS={wanted}: this CPU lacks it; it has {', '.join(supported)}"
        )
    return wanted


def compiled() -> bool:
    """Whether hot paths run their Numba kernels (else their plain NumPy references)."""
    return path() != "reference"
