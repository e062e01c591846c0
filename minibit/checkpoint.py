"""Real files: BitNet checkpoints of Hugging Face, and GGUF.

    load_bitnet, save_bitnet   a directory of config.json and safetensors, as transformers has it
    random_checkpoint          the same with random weights, of any size
    load_gguf, save_gguf       a GGUF file, as llama.cpp and bitnet.cpp have it

A file is a stranger's until it is checked. Sizes are compared with the file before anything of that
size is made, and whatever is wrong is a `CheckpointError` that names file, tensor and byte.
`minibit.safetensors_file` has the bytes, `minibit.hf_config` the configuration, `minibit.hf_reader`
and `minibit.hf_writer` the model; `minibit.gguf_file` is the other format.
"""

from __future__ import annotations

from minibit.damage import CheckpointError
from minibit.gguf_file import load_gguf, save_gguf
from minibit.hf_reader import load_bitnet
from minibit.hf_writer import PUBLISHED_2B_4T, random_checkpoint, save_bitnet

__all__ = [
    "PUBLISHED_2B_4T",
    "CheckpointError",
    "load_bitnet",
    "load_gguf",
    "random_checkpoint",
    "save_bitnet",
    "save_gguf",
]
