"""minibit: 1.58-bit deep learning in plain NumPy.

``import minibit as mb`` offers the public names of every room, and the data and training loops. A
room is imported when one of its names is first used: the import itself costs nothing.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from minibit.absmean import *
    from minibit.checkpoint import *
    from minibit.cluster import *
    from minibit.datasets import *
    from minibit.dual import *
    from minibit.layers import *
    from minibit.lora import *
    from minibit.matmul import *
    from minibit.nf4 import *
    from minibit.noise import *
    from minibit.noise_step import *
    from minibit.steps import *
    from minibit.tape import *
    from minibit.ternary import *
    from minibit.topk import *
    from minibit.training import *
    from minibit.transformer import *

__version__ = "0.1.0"

# The rooms of the house. Each builds on those above it, and chapter N is about the Nth.
ORDER = (
    *("dual", "ternary", "matmul", "absmean", "layers", "noise", "noise_step", "steps", "tape"),
    *("transformer", "checkpoint", "topk", "nf4", "lora", "cluster"),
)
SUPPORT = (
    *(
        "datasets",
        "training",
        "language",
        "counting",
        "plots",
        "diagrams",
        "results",
        "experiments",
    ),
    *("bench", "cli", "conformance"),
)

# Which room a public name comes from, so that one name imports one room.
_NAMES = {
    "dual": (
        "Dual NoRuleError custom_jvp derivative forward_gradient jacfwd jvp jvp_batch "
        "stop_gradient straight_through"
    ),
    "ternary": (
        "TernaryMatrix check_codes from_hf from_i2_s from_ptq1_0 from_q2_0 from_stq1_0 from_tq1_0 "
        "from_tq2_0 pack2 pack_base3 pack_bitplanes to_hf to_i2_s to_ptq1_0 to_q2_0 to_stq1_0 "
        "to_tq1_0 to_tq2_0 unpack2 unpack_base3 unpack_bitplanes"
    ),
    "matmul": (
        "MAX_INPUTS RotatedMatrix head_matmul head_matmul_reference ternary_matmul "
        "ternary_matmul_int8 ternary_matmul_int8_reference ternary_matmul_reference walsh_hadamard"
    ),
    "absmean": (
        "absmax_quantize absmax_quantize_reference absmean_quantize absmean_quantize_reference "
        "binary_quantize fake_quant_activation fake_quant_weight"
    ),
    "layers": "cross_entropy init_mlp layer_norm mlp relu rms_norm squared_relu ternary_linear",
    "noise": (
        "draw_inputs draw_units initial_codes integers noise_constants philox4x32 sparse_noise "
        "sparse_noise_many uniform words"
    ),
    "noise_step": (
        "MLP NoiseStep Plan Sampled SampledStep StepResult Units UnitsStep apply_update digest "
        "direction_sums_by_jvp geometric initial_params keep_moves keep_terns sparse_update "
        "unit_sums_by_jvp"
    ),
    "steps": "LogError StepLog compact expand",
    "tape": (
        "Adam Pullback clip_by_global_norm global_norm grad two_stage two_stage_weight_decay "
        "value_and_grad vjp"
    ),
    "transformer": (
        "BitNetConfig BitNetModel Decoder KVCache bit_linear check_params float_linear forward "
        "generate init_params pack_params packed_linear param_shapes sample"
    ),
    "checkpoint": (
        "PUBLISHED_2B_4T CheckpointError Diagnosis doctor load_bitnet load_gguf random_checkpoint "
        "save_bitnet save_gguf"
    ),
    "topk": (
        "SITES LawFit TernaryColumns block_topk_mask block_topk_sparsify fit_scaling_law "
        "optimal_interval optimal_sparsity scaling_law sparse_ternary_matmul "
        "sparse_ternary_matmul_int8 sparsifier topk_count topk_mask topk_mask_reference "
        "topk_quantize topk_sparsify"
    ),
    "nf4": (
        "E2M1_CODE E3M0_CODE INT4_CODE NF4_CODE NF4Tensor codebook_quantize "
        "dequantize_nf4_reference dynamic_map from_bitsandbytes from_mxfp4 from_nvfp4 nearest_code "
        "nf4_matmul nf4_matmul_reference normal_float optimal_codebook quantize_nf4 "
        "quantize_nf4_reference to_bitsandbytes to_mxfp4 to_nvfp4"
    ),
    "lora": (
        "LoRALinear PagedAdam init_adapters load_adapters lora_linear merge save_adapters unmerge "
        "with_adapters"
    ),
    "cluster": "ClusterResult Traffic local_cluster train_on",
    "datasets": "Dataset Split load_mnist load_npz load_text read_idx split",
    "training": "PRESETS Preset Progress TrainResult evaluate shipped_log train",
}
_ROOM_OF = {name: room for room, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import the room of a name, or the room of that name, on first use (PEP 562)."""
    if name in ORDER or name in SUPPORT:
        return import_module(f"minibit.{name}")
    if name == "__all__":
        return ["__version__", *_ROOM_OF]
    if name in _ROOM_OF:
        value = globals()[name] = getattr(import_module(f"minibit.{_ROOM_OF[name]}"), name)
        return value
    raise AttributeError(f"module 'minibit' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names and the rooms."""
    return sorted({*globals(), *_ROOM_OF, *ORDER, *SUPPORT})


# Where files lay before rooms were folders: old name=new place. An old name still imports.
_MOVED = (
    "trees=dual.trees tangents=dual.tangents rules=dual.rules rules_sums=dual.rules_sums "
    "rules_shape=dual.rules_shape dual_array=dual.array packings=ternary.packings "
    "layouts=ternary.published ggml_blocks=ternary.ggml panels=ternary.panels "
    "hf_panels=ternary.panels head=matmul.float_weights philox=noise.philox density=noise.density "
    "subsets=noise.subsets moves=noise_step.moves choices=noise_step.methods "
    "noise_step.records=noise_step.moves "
    "perceptron=noise_step.perceptron unit_reference=noise_step.unit_reference "
    "unit_states=noise_step.unit_tangents unit_tangents=noise_step.unit_tangents "
    "alignments=noise_step.alignments logfile=steps.file logcodes=steps.codes "
    "replay=steps.replaying history=steps.history netmoves=steps.net_moves edits=steps.edits "
    "transposes=tape.transposes recorder=tape.recorder optimizers=tape.adam "
    "costs=transformer.costs bitnet_config=transformer.config projections=transformer.projections "
    "attention=transformer.attend blocks=transformer.blocks kv_cache=transformer.kv_cache "
    "sampling=transformer.sampling packed_step=transformer.packed_token "
    "decoding=transformer.decoding damage=base.damage safetensors_file=checkpoint.safetensors "
    "hf_config=checkpoint.hf.config hf_shards=checkpoint.hf.shards hf_linear=checkpoint.hf.linear "
    "hf_reader=checkpoint.hf.reader hf_writer=checkpoint.hf.writer "
    "gguf_container=checkpoint.gguf.container gguf_metadata=checkpoint.gguf.metadata "
    "gguf_tensors=checkpoint.gguf.tensors gguf_tokenizer=checkpoint.gguf.tokenizer "
    "gguf_writer=checkpoint.gguf.writer gguf_file=checkpoint.gguf.models topk_choice=topk.choice "
    "scaling=topk.scaling_laws sparse_matmul=topk.products codebooks=nf4.codebooks "
    "double_quant=nf4.double_quant nf4_tensor=nf4.tensor bitsandbytes_layout=nf4.bitsandbytes "
    "frozen=lora.frozen adapter_file=lora.peft_files paged=lora.paged accounting=lora.accounting "
    "presets=training.presets resampling=training.course training.resampling=training.course "
    "training_log=training.log_header"
)


class _Moved(Loader, MetaPathFinder):
    """Import a file under its name from before, with a warning that says where it is."""

    places: ClassVar[dict[str, str]] = dict(pair.split("=") for pair in _MOVED.split())

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find old names only."""
        old = name.removeprefix("minibit.")
        return ModuleSpec(name, self) if old != name and old in self.places else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the file itself in the place of the module that was to be filled."""
        new = f"minibit.{self.places[module.__name__.removeprefix('minibit.')]}"
        warnings.warn(f"{module.__name__} is {new} now", DeprecationWarning, stacklevel=6)
        sys.modules[module.__name__] = import_module(new)


sys.meta_path.append(_Moved())
