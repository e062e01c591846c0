"""Wait for a number in memory to change, without Python's lock and without the operating system."""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["I64", "element", "pause", "read", "wait"]

X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
I64 = ir.IntType(64)


def element(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Return the address of element ``args[1]`` of a contiguous array."""
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.gep(data, [args[1]])


@intrinsic
def read(typingctx, array, index):  # type: ignore[no-untyped-def]
    """``read(array, index)``: an int64 as it is now; what was written before it is seen, too."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = element(context, builder, signature, args)
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(array, types.intp), codegen


@intrinsic
def pause(typingctx):  # type: ignore[no-untyped-def]
    """``pause()``: tell the CPU that this is a loop that waits."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if X86:
            pause = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), pause), [])
        return context.get_dummy_value()

    return types.void(), codegen


@njit(cache=True, nogil=True)
def wait(numbers: NDArray[Any], index: int, value: int, looks: int, grace: int) -> bool:
    """Look up to `looks` times whether ``numbers[index]`` is `value`; whether it was.

    If it was, look `grace` times more: whoever wrote the number may still hold Python's lock, and
    to ask for a lock that is held costs far more than to come a little later.
    """
    for _ in range(looks):
        if read(numbers, index) == value:
            for _ in range(grace):
                read(numbers, index)
                pause()
            return True
        pause()
    return False
