"""Ternary codes, their packings, and a matrix that holds them."""

from minibit.ternary.ggml import from_ptq1_0 as from_ptq1_0
from minibit.ternary.ggml import from_q2_0 as from_q2_0
from minibit.ternary.ggml import from_tq1_0 as from_tq1_0
from minibit.ternary.ggml import from_tq2_0 as from_tq2_0
from minibit.ternary.ggml import to_ptq1_0 as to_ptq1_0
from minibit.ternary.ggml import to_q2_0 as to_q2_0
from minibit.ternary.ggml import to_tq1_0 as to_tq1_0
from minibit.ternary.ggml import to_tq2_0 as to_tq2_0
from minibit.ternary.matrix import TernaryMatrix as TernaryMatrix
from minibit.ternary.packings import check_codes as check_codes
from minibit.ternary.packings import pack2 as pack2
from minibit.ternary.packings import pack_base3 as pack_base3
from minibit.ternary.packings import pack_bitplanes as pack_bitplanes
from minibit.ternary.packings import unpack2 as unpack2
from minibit.ternary.packings import unpack_base3 as unpack_base3
from minibit.ternary.packings import unpack_bitplanes as unpack_bitplanes
from minibit.ternary.panels import ROWS as ROWS
from minibit.ternary.panels import pack_columns as pack_columns
from minibit.ternary.panels import pack_panels as pack_panels
from minibit.ternary.published import I2Layout as I2Layout
from minibit.ternary.published import from_hf as from_hf
from minibit.ternary.published import from_i2_s as from_i2_s
from minibit.ternary.published import to_hf as to_hf
from minibit.ternary.published import to_i2_s as to_i2_s
from minibit.ternary.sherry import from_stq1_0 as from_stq1_0
from minibit.ternary.sherry import to_stq1_0 as to_stq1_0

__all__ = [
    "TernaryMatrix",
    "check_codes",
    "from_hf",
    "from_i2_s",
    "from_ptq1_0",
    "from_q2_0",
    "from_stq1_0",
    "from_tq1_0",
    "from_tq2_0",
    "pack2",
    "pack_base3",
    "pack_bitplanes",
    "to_hf",
    "to_i2_s",
    "to_ptq1_0",
    "to_q2_0",
    "to_stq1_0",
    "to_tq1_0",
    "to_tq2_0",
    "unpack2",
    "unpack_base3",
    "unpack_bitplanes",
]
