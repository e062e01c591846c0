"""``njit`` for kernels: as Numba's, with compiled code that is kept in files, and may be lost.

Numba's own files are read without a check: one that a full disk or a loss of power cut short ends
every later run, two processes that write at the same time may mix up their kernels, and a change in
a kernel that another file inlines is not seen. Here a file is named by the kernel, the sources and
constants that its code comes from, the types and the CPU; begins with the SHA-256 of the rest, and
counts only if that is right; and appears whole or not at all. Where it cannot be read or written
the kernel is compiled anew, and one line says so. Files lie in ``NUMBA_CACHE_DIR`` if that is set,
else beside the source, else in ``minibit`` in the user's cache folder.

A kernel is compiled where no signal's handler runs (`minibit.kernels.interrupts`), and a process
does not fork while it compiles: Numba's lock would stay taken for good.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numba
from numba.core import config
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.serialize import dumps
from numpy.typing import NDArray

from minibit.kernels.interrupts import uninterrupted

Array = NDArray[Any]
"""An array in the signature of a kernel; Numba takes the dtype from the argument."""

DIGEST = 32  # bytes of SHA-256


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a kernel at its first call, as ``numba.njit`` does; ``cache=True`` keeps its code."""
    kept = options.pop("cache", False)

    def decorate(function: Callable[..., Any]) -> Any:
        kernel = numba.njit(**options)(function)
        if not config.DISABLE_JIT:
            if kept:
                kernel._cache = _Files(function)
            kernel._compile_for_args = partial(_compile, kernel._compile_for_args)
        return kernel

    return decorate


def _compile(compiler: Callable[..., Any], *arguments: Any) -> Any:
    """Compile for the types of some arguments, whatever signals come."""
    return uninterrupted(partial(compiler, *arguments))


class _Files(NullCache):  # type: ignore[misc]
    """The files of one kernel's compiled code, a file for each choice of types."""

    def __init__(self, function: Callable[..., Any]) -> None:
        source = Path(function.__code__.co_filename)
        self.folder, self.stamp = source.parent, _stamp(source)
        self.name = f"{source.stem}.{function.__qualname__}.{sys.implementation.cache_tag}"
        self.constants = repr([cell.cell_contents for cell in function.__closure__ or ()])

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the code compiled for some types; None if it is not there, or is damaged."""
        target_context.refresh()
        try:
            name, key = self._file(sig, target_context.codegen())
            for folder in _folders(self.folder):
                with suppress(FileNotFoundError, NotADirectoryError):
                    data = (folder / name).read_bytes()
                    if hashlib.sha256(data[DIGEST:]).digest() != data[:DIGEST]:
                        raise ValueError(f"{folder / name} is damaged")
                    written_for, payload = pickle.loads(data[DIGEST:])
                    if written_for == key:
                        return CompileResult._rebuild(target_context, *payload)
        except Exception as error:
            _say("cannot read a kernel's compiled code, and compiles it anew", _reason(error))
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the code compiled for some types, in the first folder that takes it."""
        if data.lifted or data.library.has_dynamic_globals:
            return
        problems = []
        try:
            name, key = self._file(sig, data.codegen)
            body = dumps((key, data._reduce()))
            for folder in _folders(self.folder):
                try:
                    self._write(folder, name, hashlib.sha256(body).digest() + body)
                    return
                except OSError as error:
                    problems.append(_reason(error))
        except Exception as error:
            problems.append(_reason(error))
        _say("cannot keep kernels' compiled code, and compiles it in each run", "; ".join(problems))

    def _file(self, sig: Any, codegen: Any) -> tuple[str, tuple[str, ...]]:
        """Return a file's name, and all that its code depends on."""
        parts = numba.__version__, self.constants, repr(sig), *map(str, codegen.magic_tuple())
        key = (self.stamp, *parts)
        digest = hashlib.sha256("\n".join(key).encode()).hexdigest()
        return f"{self.name}.{key[0][:10]}.{digest[:16]}.code", key

    def _write(self, folder: Path, name: str, data: bytes) -> None:
        """Let a file appear whole, and drop those of the kernel that come from other sources."""
        folder.mkdir(parents=True, exist_ok=True)
        partial_file = folder / f".{name}.{os.getpid()}.{os.urandom(4).hex()}"
        try:
            partial_file.write_bytes(data)
            os.replace(partial_file, folder / name)
        finally:
            with suppress(OSError):
                partial_file.unlink(missing_ok=True)
        current = name.rpartition(".")[0].rpartition(".")[0]
        with suppress(OSError):
            for path in folder.glob(f"{self.name}.*.code"):
                if not path.name.startswith(f"{current}."):
                    path.unlink(missing_ok=True)


def _folders(source: Path) -> Iterator[Path]:
    """Yield the folders in which the compiled code of a source's folder may lie."""
    subfolder = f"{source.name}_{hashlib.sha256(str(source).encode()).hexdigest()[:16]}"
    if config.CACHE_DIR:
        yield Path(config.CACHE_DIR) / subfolder
        return
    yield source / "__pycache__"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if os.path.isabs(home):
        yield Path(home) / "minibit" / subfolder


@cache
def _stamp(source: Path) -> str:
    """Digest of a kernel file and of those that it imports, whose code it may inline."""
    sources, waiting = {source}, [source]
    while waiting:
        text = waiting.pop().read_text(encoding="utf-8")
        for module, names in _IMPORT.findall(text):
            for name in [module] if module else re.findall(r"\w+", names):
                path = source.with_name(f"{name}.py")
                if path not in sources and path.exists():
                    sources.add(path)
                    waiting.append(path)
    texts = b"\0".join(path.name.encode() + path.read_bytes() for path in sorted(sources))
    return hashlib.sha256(texts).hexdigest()


_IMPORT = re.compile(r"^from minibit\.kernels(?:\.(\w+))? import (\([^)]*\)|.*)$", re.MULTILINE)


def _reason(error: Exception) -> str:
    """Say what went wrong in a few words."""
    return str(error) or type(error).__name__


def _say(message: str, reason: str) -> None:
    """Write a line to standard error, the first time, unless logging is set up in another way."""
    if message not in _said:
        _said.add(message)
        logging.getLogger("minibit").warning("minibit %s: %s", message, reason)


_said: set[str] = set()


def _let_go() -> None:
    """Release Numba's lock after a fork, if it was taken before."""
    with suppress(RuntimeError):
        global_compiler_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire, after_in_parent=_let_go, after_in_child=_let_go
    )
