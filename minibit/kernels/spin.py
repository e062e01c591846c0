"""Wait for a number in memory to change, without Python's lock and without the operating system.

May import: numpy, numba.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["wait"]

X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
I64 = ir.IntType(64)


@intrinsic
def _fresh(typingctx, array, index):  # type: ignore[no-untyped-def]
    """``_fresh(array, index)``: an int64 read from memory now, not kept from an earlier read."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.gep(builder.bitcast(data, I64.as_pointer()), [args[1]])
        if X86:  # tell the CPU that this is a waiting loop
            pause = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), pause), [])
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(array, types.intp), codegen


@njit(cache=True, nogil=True)
def wait(numbers: NDArray[Any], index: int, value: int, looks: int, grace: int) -> bool:
    """Look up to `looks` times whether ``numbers[index]`` is `value`; whether it was.

    If it was, look `grace` times more: whoever wrote the number may still hold Python's lock, and
    to ask for a lock that is held costs far more than to come a little later.
    """
    for _ in range(looks):
        if _fresh(numbers, index) == value:
            for _ in range(grace):
                _fresh(numbers, index)
            return True
    return False
