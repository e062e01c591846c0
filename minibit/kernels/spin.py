"""Wait for a number in memory to change, without Python's lock and without the operating system."""

from __future__ import annotations

import platform
import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from minibit.kernels.compiling import Array, njit

X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
I64 = ir.IntType(64)


def element(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Return the address of element ``args[1]`` of a contiguous array."""
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.gep(data, [args[1]])


@intrinsic
def read(typingctx, array, index):
    """``read(array, index)``: an int64 as it is now; what was written before it is seen, too."""

    def codegen(context, builder, signature, args):
        pointer = element(context, builder, signature, args)
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(array, types.intp), codegen


@intrinsic
def pause(typingctx):
    """``pause()``: tell the CPU that this is a loop that waits."""

    def codegen(context, builder, signature, args):
        if X86:
            pause = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), pause), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def nap(typingctx):
    """``nap()``: sleep for 50 microseconds; on Windows, whose C library cannot, go on at once."""

    def codegen(context, builder, signature, args):
        if sys.platform != "win32":
            usleep = ir.FunctionType(ir.IntType(32), [ir.IntType(32)])
            function = cgutils.get_or_insert_function(builder.module, usleep, "usleep")
            builder.call(function, [ir.Constant(ir.IntType(32), 50)])
        return context.get_dummy_value()

    return types.void(), codegen


@njit(cache=True, nogil=True)
def wait(numbers: Array, index: int, last: int, looks: int, grace: int) -> int:
    """Look up to `looks` times for a value of ``numbers[index]`` other than `last`; return it.

    If there is one, look `grace` times more: whoever wrote the number may still hold Python's lock,
    and to ask for a lock that is held costs far more than to come a little later. Else `last`.
    """
    for _ in range(looks):
        value = read(numbers, index)
        if value != last:
            for _ in range(grace):
                read(numbers, index)
                pause()
            return int(value)
        pause()
    return last


@njit(cache=True, nogil=True)
def settle(numbers: Array, step: int, value: int, looks: int, grace: int) -> None:
    """Wait until none of ``numbers[::step]`` is `value`; after `looks` looks with naps between.

    It is one call into compiled code, in which Python runs no signal handler: nothing can end the
    wait but the numbers.
    """
    waited = False
    for index in range(0, numbers.size, step):
        count = 0
        while read(numbers, index) == value:
            waited = True
            count += 1
            if count < looks:
                pause()
            else:
                nap()
    if waited:
        for _ in range(grace):
            read(numbers, 0)
            pause()
