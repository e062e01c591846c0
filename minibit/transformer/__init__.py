"""Language models in plain functions: the blocks of BitNet b1.58 2B4T, of Llama and of Qwen3."""

from minibit.transformer.blocks import token_loss as token_loss
from minibit.transformer.config import BitNetConfig as BitNetConfig
from minibit.transformer.config import Family as Family
from minibit.transformer.config import RopeScaling as RopeScaling
from minibit.transformer.config import check_params as check_params
from minibit.transformer.config import init_params as init_params
from minibit.transformer.config import param_shapes as param_shapes
from minibit.transformer.costs import SHAPES as SHAPES
from minibit.transformer.costs import Shape as Shape
from minibit.transformer.costs import cache_bytes as cache_bytes
from minibit.transformer.decoding import Decoder as Decoder
from minibit.transformer.decoding import generate as generate
from minibit.transformer.kv_cache import KVCache as KVCache
from minibit.transformer.model import BitNetModel as BitNetModel
from minibit.transformer.model import Sparsify as Sparsify
from minibit.transformer.model import forward as forward
from minibit.transformer.projections import Linear as Linear
from minibit.transformer.projections import bit_linear as bit_linear
from minibit.transformer.projections import float_linear as float_linear
from minibit.transformer.projections import pack_params as pack_params
from minibit.transformer.projections import packed_linear as packed_linear
from minibit.transformer.sampling import check_sampling as check_sampling
from minibit.transformer.sampling import sample as sample

__all__ = [
    "BitNetConfig",
    "BitNetModel",
    "Decoder",
    "KVCache",
    "bit_linear",
    "check_params",
    "float_linear",
    "forward",
    "generate",
    "init_params",
    "pack_params",
    "packed_linear",
    "param_shapes",
    "sample",
]
