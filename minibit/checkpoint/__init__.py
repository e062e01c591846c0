"""Real files: BitNet checkpoints of Hugging Face, and GGUF."""

from minibit.base import CheckpointError as CheckpointError
from minibit.checkpoint.diagnosis.doctor import Diagnosis as Diagnosis
from minibit.checkpoint.diagnosis.doctor import as_fields as as_fields
from minibit.checkpoint.diagnosis.doctor import doctor as doctor
from minibit.checkpoint.diagnosis.doctor import picture as picture
from minibit.checkpoint.gguf.container import open_gguf as open_gguf
from minibit.checkpoint.gguf.models import GGUFKind as GGUFKind
from minibit.checkpoint.gguf.models import load_gguf as load_gguf
from minibit.checkpoint.gguf.models import save_gguf as save_gguf
from minibit.checkpoint.gguf.parts import open_parts as open_parts
from minibit.checkpoint.gguf.tokenizer import CHAT_TEMPLATE as CHAT_TEMPLATE
from minibit.checkpoint.gguf.tokenizer import GENERATION as GENERATION
from minibit.checkpoint.gguf.tokenizer import HUGGING_FACE as HUGGING_FACE
from minibit.checkpoint.gguf.tokenizer import ggml_tokenizer as ggml_tokenizer
from minibit.checkpoint.hf.reader import load_bitnet as load_bitnet
from minibit.checkpoint.hf.shards import inside as inside
from minibit.checkpoint.hf.writer import PUBLISHED_2B_4T as PUBLISHED_2B_4T
from minibit.checkpoint.hf.writer import random_checkpoint as random_checkpoint
from minibit.checkpoint.hf.writer import save_bitnet as save_bitnet
from minibit.checkpoint.safetensors import SafetensorsFile as SafetensorsFile
from minibit.checkpoint.safetensors import write_safetensors as write_safetensors
from minibit.checkpoint.safetensors import write_with_config as write_with_config

__all__ = [
    "PUBLISHED_2B_4T",
    "CheckpointError",
    "Diagnosis",
    "doctor",
    "load_bitnet",
    "load_gguf",
    "random_checkpoint",
    "save_bitnet",
    "save_gguf",
]
