"""The engine room: every Numba function of the package, one file per hot path.

A kernel shares the contract of its ``*_reference``, plain NumPy, in the module that teaches it; the
tests hold the two equal. Nothing here is imported until a hot path first runs, so that
``import minibit`` does not pay for Numba.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from minibit.kernels.interrupts import uninterrupted

__all__ = ["PATHS", "compiled", "layout", "missing", "path", "requested", "supported", "takes"]

PATHS = ("reference", "portable", "arm", "avx2", "vnni", "amx")


@cache
def missing() -> str:
    """Why Numba cannot be used here, empty if it can; the first call imports it."""
    try:
        uninterrupted(lambda: importlib.import_module("numba"))
    except (ImportError, OSError) as error:  # OSError: a library that LLVM needs
        import logging

        reason = str(error) or type(error).__name__
        logging.getLogger("minibit").info("NumPy does all, slowly, without Numba: %s", reason)
        return reason
    return ""


@cache
def supported() -> tuple[str, ...]:
    """Paths that this CPU can run, slowest first; ``reference`` alone where Numba is missing.

    ``reference`` is NumPy, ``portable`` Numba without intrinsics, ``arm`` the byte dot product of
    Arm (``sdot``), ``avx2``, ``vnni`` (AVX-512) and ``amx`` those of x86.
    """
    if missing():
        return ("reference",)
    paths, features = ["reference", "portable"], uninterrupted(_cpu_features)
    if features.get("dotprod"):
        paths.append("arm")
    if features.get("avx2"):
        paths.append("avx2")
    if features.get("avx512vnni") and features.get("avx512bw") and features.get("avx512vl"):
        paths.append("vnni")
    amx = features.get("amx-int8") and features.get("amx-tile")
    if amx and "vnni" in paths and _amx_granted():
        paths.append("amx")
    return tuple(paths)


def _cpu_features() -> Mapping[str, bool]:
    """Instruction sets, by LLVM's names, of this CPU for which Numba is set to compile."""
    import llvmlite.binding as llvm
    from numba.core import config
    from numba.core.registry import cpu_target

    try:
        features: Mapping[str, bool] = llvm.get_host_cpu_features()
    except RuntimeError:
        features = {}
    if not features and (sys.platform, platform.machine()) == ("darwin", "arm64"):
        # every Apple CPU that runs arm64 code has it
        return {"dotprod": config.CPU_NAME is None and config.CPU_FEATURES is None}
    target = str(cpu_target.target_context.codegen().magic_tuple()[2]).split(",")
    return {name: has and f"+{name}" in target for name, has in features.items()}


def _amx_granted() -> bool:
    """Ask the system to let this process use AMX's tiles; Linux is asked once and remembers."""
    if sys.platform != "linux":
        return False
    import ctypes

    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    system = ctypes.CDLL(None, use_errno=True)
    return int(system.syscall(arch_prctl, request_permission, tile_data)) == 0


def layout(name: str) -> str:
    """Layout of a path's weights (`minibit.ternary.panels`): packed2, columns or panels."""
    return {"reference": "packed2", "portable": "columns"}.get(name, "panels")


def requested() -> str:
    """Return the path that ``MINIBIT_KERNELS`` asks for: ``auto``, or one of `PATHS`.

    Another word is a ValueError.
    """
    name = os.environ.get("MINIBIT_KERNELS") or "auto"
    if name != "auto" and name not in PATHS:
        names = ", ".join(("auto", *PATHS))
        raise ValueError(f"MINIBIT_KERNELS must be one of {names}, got {name!r}")
    return name


def path() -> str:
    """Name of the kernel path in force: one of `PATHS`.

    ``MINIBIT_KERNELS`` picks it: an unknown name is a ValueError; a path that this CPU lacks, or
    that needs Numba, which is missing, a RuntimeError. ``auto``, the default, takes the fastest
    that the CPU has, and ``reference`` where Numba is missing; with Numba's JIT off
    (``NUMBA_DISABLE_JIT=1``) it is always ``reference``.
    """
    name = requested()
    if name == "reference" or os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "reference"
    paths = supported()
    if name == "auto":
        return paths[-1]
    if missing():
        raise RuntimeError(f"MINIBIT_KERNELS={name} needs Numba (pip install numba): {missing()}")
    if name not in paths:
        raise RuntimeError(
            f"MINIBIT_KERNELS={name}: this CPU lacks it, or Numba does not compile for it; "
            f"there is {', '.join(paths)}"
        )
    return name


def compiled() -> bool:
    """Whether hot paths run their Numba kernels (else their plain NumPy references)."""
    return path() != "reference"


def takes(*arrays: Any) -> bool:
    """Whether kernels run and take these: float32 arrays in C order and writable, and no duals."""
    plain = all(type(a) is np.ndarray and a.dtype == np.float32 and a.flags.carray for a in arrays)
    return plain and compiled()


if not TYPE_CHECKING:  # a type checker would take every name for known

    def __getattr__(name: str) -> Any:
        """Import a file of kernels, whatever signals come: ``from minibit.kernels import nf4``."""
        if not name.startswith("_"):
            try:
                return uninterrupted(lambda: importlib.import_module(f"{__name__}.{name}"))
            except ModuleNotFoundError as error:
                if error.name != f"{__name__}.{name}":
                    raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
