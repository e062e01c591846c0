"""Processes of their own: with a thread count that is in force before NumPy is loaded."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["call", "clean_environment", "environment", "in_own_process", "keep_freed_memory"]

# Settings that make OpenBLAS choose kernels for another CPU, or smaller tiles, than it would.
_SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_VERBOSE")
_THREADS = ("OPENBLAS", "OMP", "MKL", "BLIS", "NUMEXPR", "NUMBA")


def clean_environment(threads: int) -> dict[str, str]:
    """Return this process's environment with `threads` BLAS threads and NumPy at its best."""
    kept = {key: value for key, value in os.environ.items() if key not in _SLOWING}
    kept |= {f"{name}_NUM_THREADS": str(threads) for name in _THREADS}
    return kept | {"VECLIB_MAXIMUM_THREADS": str(threads)}


def in_own_process(function: str, arguments: Sequence[Any], threads: int, title: str = "") -> Any:
    """Call ``"module:function"`` in a new process with its own thread count.

    Arguments and result are JSON; the result is the last line that the process prints. A
    RuntimeError names `title` (by default the function) and the status of a process that fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "minibit.bench", function, json.dumps(arguments)],
        env=clean_environment(threads),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"the process of {title or function} ended with status {done.returncode}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def call(function: str, arguments: Sequence[Any], fields: Mapping[str, Any] | None = None) -> Any:
    """Import ``"module:function"`` and call it."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments, **(fields or {}))


def environment(threads: int) -> dict[str, Any]:
    """Say on what is measured, JSON types: CPU, kernel path, threads in force, versions."""
    from minibit import __version__, kernels
    from minibit.kernels.threads import available

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "cpu": _cpu_model(),
        "cpus": available(),
        "kernel_path": kernels.path(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "minibit": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numba": "none" if kernels.missing() else version("numba"),
            "blas": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        },
    }


def _cpu_model() -> str:
    """Name of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.stdout.strip():
            return done.stdout.strip()
    return platform.processor() or platform.machine()


def keep_freed_memory() -> bool:
    """Let the C library keep what arrays have freed, for the rest of this process.

    A step of a language model frees some 50 MB, and glibc gives them back to the system: the next
    step then has every page given and zeroed anew, about a fifth of its time, PyTorch's alike.
    Threads get one heap. Without glibc there is nothing to set, and the result is False.

    Examples
    --------
    >>> keep_freed_memory() in (True, False)
    True
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h
    settings = ((trim_threshold, 2**31 - 1), (mmap_threshold, 2**25), (arena_max, 1))
    return all([library.mallopt(option, value) == 1 for option, value in settings])
