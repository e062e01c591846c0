"""Processes of their own: with a thread count that is in force before NumPy is loaded."""

from __future__ import annotations

import ctypes
import json
import os
import pkgutil
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["call", "clean_environment", "environment", "in_own_process", "keep_freed_memory"]

# Settings that make OpenBLAS choose kernels for another CPU, or smaller tiles, than it would.
_SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_VERBOSE")
_PEERS = ("torch", "bitsandbytes", "transformers", "distributed")
_THREADS = ("OPENBLAS", "OMP", "MKL", "BLIS", "NUMEXPR", "NUMBA")


def clean_environment(threads: int) -> dict[str, str]:
    """Return this process's environment with `threads` BLAS threads and NumPy at its best."""
    kept = {key: value for key, value in os.environ.items() if key not in _SLOWING}
    kept |= {f"{name}_NUM_THREADS": str(threads) for name in _THREADS}
    return kept | {"VECLIB_MAXIMUM_THREADS": str(threads)}


def in_own_process(
    function: str, arguments: Sequence[Any], threads: int, title: str
) -> dict[str, Any]:
    """Call ``"module:function"`` in a new process with its own thread count.

    Arguments and result are JSON; the result is the last line that the process prints. A
    RuntimeError names `title` and the status of a process that fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "minibit.bench", function, json.dumps(arguments)],
        env=clean_environment(threads),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the process of {title} ended with status {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def call(function: str, arguments: Sequence[Any]) -> Any:
    """Import ``"module:function"`` and call it."""
    return pkgutil.resolve_name(function)(*arguments)


def environment(threads: int) -> dict[str, Any]:
    """Return what a measurement runs on: CPU, kernel path, threads, versions of what is loaded."""
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
            **{name: version(name) for name in _PEERS if sys.modules.get(name)},
        },
    }


def _cpu_model() -> str:
    """Name of the CPU."""
    name = ""
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    elif os.access("/proc/cpuinfo", os.R_OK):
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
        name = "".join(re.findall(r"model name\s*:(.*)", text)[:1]).strip()
    return name or platform.processor() or platform.machine()


def keep_freed_memory() -> bool:
    """Let the C library keep what arrays have freed, for the rest of this process.

    Else glibc gives the 50 MB that a step of a language model frees back to the system, and the
    next step has every page given and zeroed anew: a fifth of its time, PyTorch's alike. Threads
    get one heap. Without glibc there is nothing to set, and the result is False.
    """
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return False
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h
    settings = ((trim_threshold, 2**31 - 1), (mmap_threshold, 2**25), (arena_max, 1))
    return all([library.mallopt(option, value) == 1 for option, value in settings])
