"""NF4: weights in 4 bits, by quantiles of the normal distribution."""

from minibit.nf4.bitsandbytes import from_bitsandbytes as from_bitsandbytes
from minibit.nf4.bitsandbytes import to_bitsandbytes as to_bitsandbytes
from minibit.nf4.codebooks import E2M1_CODE as E2M1_CODE
from minibit.nf4.codebooks import E3M0_CODE as E3M0_CODE
from minibit.nf4.codebooks import INT4_CODE as INT4_CODE
from minibit.nf4.codebooks import NF4_CODE as NF4_CODE
from minibit.nf4.codebooks import codebook_quantize as codebook_quantize
from minibit.nf4.codebooks import nearest_code as nearest_code
from minibit.nf4.codebooks import normal_float as normal_float
from minibit.nf4.double_quant import dynamic_map as dynamic_map
from minibit.nf4.microscaling import from_mxfp4 as from_mxfp4
from minibit.nf4.microscaling import from_nvfp4 as from_nvfp4
from minibit.nf4.microscaling import to_mxfp4 as to_mxfp4
from minibit.nf4.microscaling import to_nvfp4 as to_nvfp4
from minibit.nf4.optimal import optimal_codebook as optimal_codebook
from minibit.nf4.product import nf4_matmul as nf4_matmul
from minibit.nf4.product import nf4_matmul_reference as nf4_matmul_reference
from minibit.nf4.product import quantize_nf4 as quantize_nf4
from minibit.nf4.product import quantize_nf4_reference as quantize_nf4_reference
from minibit.nf4.tensor import NF4Tensor as NF4Tensor
from minibit.nf4.tensor import dequantize_nf4_reference as dequantize_nf4_reference

__all__ = [
    "E2M1_CODE",
    "E3M0_CODE",
    "INT4_CODE",
    "NF4_CODE",
    "NF4Tensor",
    "codebook_quantize",
    "dequantize_nf4_reference",
    "dynamic_map",
    "from_bitsandbytes",
    "from_mxfp4",
    "from_nvfp4",
    "nearest_code",
    "nf4_matmul",
    "nf4_matmul_reference",
    "normal_float",
    "optimal_codebook",
    "quantize_nf4",
    "quantize_nf4_reference",
    "to_bitsandbytes",
    "to_mxfp4",
    "to_nvfp4",
]
