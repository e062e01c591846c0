"""Q-Sparse: keep the K largest activations of every token."""

from minibit.topk.choice import block_topk_mask as block_topk_mask
from minibit.topk.choice import topk_count as topk_count
from minibit.topk.choice import topk_mask as topk_mask
from minibit.topk.choice import topk_mask_reference as topk_mask_reference
from minibit.topk.products import TernaryColumns as TernaryColumns
from minibit.topk.products import sparse_ternary_matmul as sparse_ternary_matmul
from minibit.topk.products import sparse_ternary_matmul_int8 as sparse_ternary_matmul_int8
from minibit.topk.scaling_laws import LawFit as LawFit
from minibit.topk.scaling_laws import fit_scaling_law as fit_scaling_law
from minibit.topk.scaling_laws import optimal_interval as optimal_interval
from minibit.topk.scaling_laws import optimal_sparsity as optimal_sparsity
from minibit.topk.scaling_laws import scaling_law as scaling_law
from minibit.topk.sparsify import SITES as SITES
from minibit.topk.sparsify import block_topk_sparsify as block_topk_sparsify
from minibit.topk.sparsify import sparsifier as sparsifier
from minibit.topk.sparsify import topk_quantize as topk_quantize
from minibit.topk.sparsify import topk_sparsify as topk_sparsify

__all__ = [
    "SITES",
    "LawFit",
    "TernaryColumns",
    "block_topk_mask",
    "block_topk_sparsify",
    "fit_scaling_law",
    "optimal_interval",
    "optimal_sparsity",
    "scaling_law",
    "sparse_ternary_matmul",
    "sparse_ternary_matmul_int8",
    "sparsifier",
    "topk_count",
    "topk_mask",
    "topk_mask_reference",
    "topk_quantize",
    "topk_sparsify",
]
