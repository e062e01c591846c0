"""Work that threads share inside a kernel: phases, cut into chunks that whoever is free takes.

One token passes some hundred small products, each of which needs the one before. Giving every one
of them to a pool of threads would cost more than the product itself, so the threads walk through
all phases together. In each they claim chunks by an atomic addition. When none is left, a thread
looks for chunks that are claimed and not yet done; one that stays so for longer than a chunk takes
belongs to a thread that has lost its CPU, and is simply done once more.

So nobody waits for anybody: if a helper starts late or never, or is stopped in the middle, the
others do its share, and if it comes when all is done it passes through. For that, **a chunk must
write the same values whoever does it, and whenever**: what a phase reads is written by no later
phase.

``work`` is an int64 array of zeros ``(phases, FLAGS + chunks)``: a counter of claims, and from
`FLAGS` on (another cache line) a flag for each chunk.

May import: numpy, numba.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["FLAGS", "finish", "take"]

FLAGS = 8  # place of a phase's first flag
LOOKS = 1000  # at a flag: 10 to 40 microseconds, by how long a CPU pauses at each

X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
I64 = ir.IntType(64)


def _element(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Return the address of element ``args[1]`` of a contiguous array."""
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.gep(data, [args[1]])


@intrinsic
def _add_one(typingctx, array, index):  # type: ignore[no-untyped-def]
    """``_add_one(array, index)``: add 1 to an int64, atomically; return what it was."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = _element(context, builder, signature, args)
        return builder.atomic_rmw("add", pointer, ir.Constant(I64, 1), "seq_cst")

    return types.int64(array, types.intp), codegen


@intrinsic
def _read(typingctx, array, index):  # type: ignore[no-untyped-def]
    """``_read(array, index)``: an int64 as it is now; what was written before it is seen, too."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = _element(context, builder, signature, args)
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(array, types.intp), codegen


@intrinsic
def _pause(typingctx):  # type: ignore[no-untyped-def]
    """``_pause()``: tell the CPU that this is a loop that waits."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if X86:
            pause = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), pause), [])
        return context.get_dummy_value()

    return types.void(), codegen


@njit(cache=True, nogil=True)
def take(work: NDArray[Any], phase: int, chunks: int) -> int:
    """Return the next chunk that this thread should do; `chunks` when all of them are done."""
    at = phase * work.shape[1]
    if _read(work, at) < chunks:
        chunk = _add_one(work, at)
        if chunk < chunks:
            return int(chunk)
    for chunk in range(chunks):
        looks = 0
        while _read(work, at + FLAGS + chunk) == 0:
            looks += 1
            if looks == LOOKS:
                return chunk
            _pause()
    return chunks


@njit(cache=True, nogil=True)
def finish(work: NDArray[Any], phase: int, chunk: int) -> None:
    """Say that a chunk is done; who finds that out sees all that was written."""
    _add_one(work, phase * work.shape[1] + FLAGS + chunk)
