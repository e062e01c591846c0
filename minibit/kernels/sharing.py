"""Work that threads share inside a kernel: phases, cut into chunks that any free thread takes.

One token passes some hundred small products, each of which needs the one before; a pool of threads
would cost more than a product. So the threads walk through all phases together and claim chunks by
an atomic addition. When none is left, a thread looks for chunks that are claimed and not yet done;
one that stays so for longer than a chunk takes belongs to a thread that has lost its CPU, and is
done once more. No thread waits for another that starts late, never, or stops in the middle. For
that, **a chunk must write the same values whichever thread does it, and whenever**: what a phase
reads is written by no later phase.

``work`` is an int64 array of zeros ``(phases, FLAGS + chunks)``: a counter of claims, and from
`FLAGS` on (another cache line) a flag for each chunk.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minibit.kernels.compiling import Array, njit
from minibit.kernels.spin import I64, element, pause, read

FLAGS = 8  # place of a phase's first flag
LOOKS = 1000  # at a flag: 10 to 40 microseconds, by how long a CPU pauses at each


@intrinsic
def _add_one(typingctx, array, index):
    """``_add_one(array, index)``: add 1 to an int64, atomically; return what it was."""

    def codegen(context, builder, signature, args):
        pointer = element(context, builder, signature, args)
        return builder.atomic_rmw("add", pointer, ir.Constant(I64, 1), "seq_cst")

    return types.int64(array, types.intp), codegen


@njit(cache=True, nogil=True)
def take(work: Array, phase: int, chunks: int) -> int:
    """Return the next chunk that this thread should do; `chunks` when all of them are done."""
    at = phase * work.shape[1]
    if read(work, at) < chunks:
        chunk = _add_one(work, at)
        if chunk < chunks:
            return int(chunk)
    for chunk in range(chunks):
        looks = 0
        while read(work, at + FLAGS + chunk) == 0:
            looks += 1
            if looks == LOOKS:
                return chunk
            pause()
    return chunks


@njit(cache=True, nogil=True)
def finish(work: Array, phase: int, chunk: int) -> None:
    """Say that a chunk is done; a thread that sees the flag sees all that the chunk wrote."""
    _add_one(work, phase * work.shape[1] + FLAGS + chunk)
