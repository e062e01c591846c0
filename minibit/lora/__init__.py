"""LoRA: a matrix that stays as it is, and beside it a product of two thin ones that learns."""

from minibit.lora.adapters import LoRALinear as LoRALinear
from minibit.lora.adapters import init_adapters as init_adapters
from minibit.lora.adapters import lora_linear as lora_linear
from minibit.lora.adapters import with_adapters as with_adapters
from minibit.lora.merging import merge as merge
from minibit.lora.merging import unmerge as unmerge
from minibit.lora.paged import PagedAdam as PagedAdam
from minibit.lora.peft_files import load_adapters as load_adapters
from minibit.lora.peft_files import save_adapters as save_adapters

__all__ = [
    "LoRALinear",
    "PagedAdam",
    "init_adapters",
    "load_adapters",
    "lora_linear",
    "merge",
    "save_adapters",
    "unmerge",
    "with_adapters",
]
