"""Work that threads share inside a kernel: phases, cut into chunks that whoever is free claims.

One token passes some hundred small products, each of which needs the one before. Giving every one
of them to a pool of threads would cost more than the product itself, so the threads walk through
all phases together. In each they claim chunks by an atomic addition and, when none is left, wait
until those that others claimed are finished.

Nobody waits for a thread that has claimed nothing: if a helper starts late or never, the others do
its share, and if it comes when all is done it passes through. So threads cannot block one another,
whatever else the pool is busy with, and a core that another process slows down simply takes fewer
chunks.

``work`` is an int64 array ``(phases, 16)`` of zeros: two counters a phase, on a cache line each.

May import: numpy, numba.
"""

from __future__ import annotations

import os
import platform
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["LINE", "claim", "finish", "is_open", "wait"]

LINE = 16  # int64 counters of a phase: claimed at 0, finished at 8, 64 bytes apart
_FINISHED = 8
LOOKS = 300  # some microseconds, before others are given the CPU

X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
I64 = ir.IntType(64)


def _counter(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Return the address of element ``args[1]`` of a contiguous array."""
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.gep(data, [args[1]])


@intrinsic
def _add_one(typingctx, array, index):  # type: ignore[no-untyped-def]
    """``_add_one(array, index)``: add 1 to an int64, atomically; return what it was."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = _counter(context, builder, signature, args)
        return builder.atomic_rmw("add", pointer, ir.Constant(I64, 1), "seq_cst")

    return types.int64(array, types.intp), codegen


@intrinsic
def _read(typingctx, array, index):  # type: ignore[no-untyped-def]
    """``_read(array, index)``: an int64 as it is now; what was written before it is seen, too."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = _counter(context, builder, signature, args)
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(array, types.intp), codegen


@njit(cache=True, nogil=True)
def is_open(work: NDArray[Any], phase: int, chunks: int) -> bool:
    """Whether a phase of so many chunks has one that nobody has claimed."""
    return bool(_read(work, phase * LINE) < chunks)


@njit(cache=True, nogil=True)
def claim(work: NDArray[Any], phase: int) -> int:
    """Claim the next chunk of a phase; a number beyond its chunks means that none was left."""
    return int(_add_one(work, phase * LINE))


@njit(cache=True, nogil=True)
def finish(work: NDArray[Any], phase: int) -> None:
    """Say that a claimed chunk is done; what it wrote is seen by all who `wait`."""
    _add_one(work, phase * LINE + _FINISHED)


@intrinsic
def _pause(typingctx):  # type: ignore[no-untyped-def]
    """``_pause()``: tell the CPU that this is a loop that waits."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if X86:
            pause = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), pause), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _yield(typingctx):  # type: ignore[no-untyped-def]
    """``_yield()``: let the system run another thread here, if one is waiting for a CPU."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if os.name == "posix":
            kind, module = ir.FunctionType(ir.IntType(32), []), builder.module
            function = module.globals.get("sched_yield")
            builder.call(function or ir.Function(module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@njit(cache=True, nogil=True)
def wait(work: NDArray[Any], phase: int, chunks: int) -> None:
    """Wait until all chunks of a phase are done.

    A thread that waits longer than a chunk takes waits for one that has lost its CPU: it offers its
    own.
    """
    looks = 0
    while _read(work, phase * LINE + _FINISHED) < chunks:
        looks += 1
        if looks < LOOKS:
            _pause()
        else:
            _yield()
