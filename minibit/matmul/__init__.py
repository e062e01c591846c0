"""The ternary product: activations times a ternary matrix, as fast as the machine allows."""

from minibit.matmul.float_weights import head_matmul as head_matmul
from minibit.matmul.float_weights import head_matmul_reference as head_matmul_reference
from minibit.matmul.products import MAX_INPUTS as MAX_INPUTS
from minibit.matmul.products import kernel_of_many as kernel_of_many
from minibit.matmul.products import ternary_matmul as ternary_matmul
from minibit.matmul.products import ternary_matmul_int8 as ternary_matmul_int8
from minibit.matmul.products import ternary_matmul_int8_reference as ternary_matmul_int8_reference
from minibit.matmul.products import ternary_matmul_reference as ternary_matmul_reference
from minibit.matmul.rotation import RotatedMatrix as RotatedMatrix
from minibit.matmul.rotation import walsh_hadamard as walsh_hadamard

__all__ = [
    "MAX_INPUTS",
    "RotatedMatrix",
    "head_matmul",
    "head_matmul_reference",
    "ternary_matmul",
    "ternary_matmul_int8",
    "ternary_matmul_int8_reference",
    "ternary_matmul_reference",
    "walsh_hadamard",
]
