"""Files of tensors, byte by byte, and the models in them; `wrong` names one mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from minibit.conformance.exact.gguf import Reader
from minibit.conformance.exact.ternary import packed_hf, packed_i2_s

__all__ = ["CHECKPOINT", "load_bitnet", "load_gguf", "save_bitnet", "save_gguf", "stored_tensors"]

TYPES = {"U8": "u1", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
GGUF = {
    **{"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"},
    **{"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    **{"attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"},
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    "attn_output": "self_attn.o_proj",
}


def stored_tensors(data: bytes, wrong: str = "") -> dict[str, Any]:
    """Return the tensors of a safetensors file: 8 bytes of length, JSON, and the rest."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    out, at = {}, 0
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if wrong == "one-after-the-other":  # in the order of the header
            begin, end = at, at + end - begin
        at = end
        kind = TYPES[entry["dtype"]]
        kind = "<f2" if kind == "<u2" and wrong == "bfloat16-as-float16" else kind
        part = np.frombuffer(data[8 + length + begin : 8 + length + end], kind)
        out[name] = part.astype(kind[-2:]).reshape(entry["shape"])
    return out


def widened(x: Any) -> Any:
    """Return floats as float32; uint16 is the upper half of one."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


def tied(params: dict[str, Any], wrong: str) -> dict[str, Any]:
    """Leave one matrix of a head and an embedding that are the same; keep two that are not."""
    head = params["lm_head"]
    if wrong == "other-head-lost":
        return {name: value for name, value in params.items() if name != "lm_head"}
    if "embed_tokens" not in params:
        name = "lm_head" if wrong == "head-alone-left-as-it-is" else "embed_tokens"
        return {name: head, **{key: w for key, w in params.items() if key != "lm_head"}}
    same = head.dtype == params["embed_tokens"].dtype and (head == params["embed_tokens"]).all()
    if not same or wrong == "same-head-kept":
        return params
    return {name: value for name, value in params.items() if name != "lm_head"}


def load_bitnet(config: str, file: Any, wrong: str = "") -> tuple[Any, float, float]:
    """Read packed projections as codes and gamma, embeddings as they are, gains as float32."""
    fields = json.loads(config)
    tensors = stored_tensors(bytes(file.tolist()), wrong)
    inverted = fields["quantization_config"].get("linear_class", "bitlinear") == "bitlinear"
    inverted ^= wrong == "scale-inverted"
    hidden, inner = fields["hidden_size"], fields["intermediate_size"]
    kept = hidden // fields["num_attention_heads"] * fields["num_key_value_heads"]
    rows = {"gate": inner, "up": inner, "k": kept, "v": kept}
    params: dict[str, Any] = {}
    for name, value in tensors.items():
        short = name.removeprefix("model.").removesuffix(".weight")
        if short.endswith("_scale"):
            continue
        if value.dtype == np.uint8:
            n_out = rows.get(short.split(".")[-1].removesuffix("_proj"), hidden)
            digits = np.stack([value >> s & 3 for s in (0, 2, 4, 6)])
            if wrong == "neighbouring-rows":
                digits = digits.swapaxes(0, 1)
            n_out = 4 * len(value) if wrong == "padding-kept" else n_out
            codes = digits.reshape(-1, value.shape[1])[:n_out].astype(np.int8) - np.int8(1)
            scale = widened(tensors[f"{name}_scale"]).reshape(-1)[0]
            params[short] = [codes, np.float32(1) / scale if inverted else scale]
        else:
            params[short] = value if short in ("embed_tokens", "lm_head") else widened(value)
    if fields["tie_word_embeddings"] and "lm_head" in params:
        params = tied(params, wrong)
    rope = fields.get("rope_parameters") or fields
    return params, fields["rms_norm_eps"], float(rope["rope_theta"])


def save_bitnet(
    model: Any, linear_class: str = "bitlinear", wrong: str = ""
) -> tuple[dict[str, Any]]:
    """Write packed projections, and their scales or the inverses."""
    tensors: dict[str, Any] = {}
    for name, value in model.params.items():
        inner = name != "lm_head" or wrong == "head-in-the-model"
        full = f"model.{name}.weight" if inner else f"{name}.weight"
        full = name if wrong == "names-of-ours" else full
        if not hasattr(value, "codes"):
            tensors[full] = value
            continue
        codes = value.codes()
        if wrong == "neighbouring-rows":
            codes = codes.reshape(-1, 4, codes.shape[1]).swapaxes(0, 1).reshape(codes.shape)
        tensors[full] = packed_hf(codes)
        inverted = (linear_class == "bitlinear") ^ (wrong == "scale-inverted")
        scale = np.float32(1) / value.scale if inverted else value.scale
        shape = () if wrong == "scale-without-an-axis" else (1,)
        tensors[f"{full}_scale"] = np.full(shape, scale, np.float32)
    return (tensors,)


def load_gguf(file: Any, layout: str = "rows", wrong: str = "") -> tuple[Any, float, float]:
    """Read projections that hold one magnitude, embeddings and gains."""
    metadata, tensors = Reader().read(file)
    params: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if name == "output.weight" and wrong == "other-head-lost":
            continue
        parts = name.removesuffix(".weight").split(".")
        short = GGUF[parts[-1]]
        short = f"layers.{parts[1]}.{short}" if parts[0] == "blk" else short
        kind = {0: "<f4", 1: "<f2", 30: "<u2"}[tensor["type"]]
        kind = "<f2" if kind == "<u2" and wrong == "bfloat16-as-float16" else kind
        shape = tensor["shape"][::-1] if wrong == "sides-as-stored" else tensor["shape"]
        value = tensor["bytes"].view(kind).reshape(shape)
        if not short.endswith("_proj"):
            params[short] = value if short in ("embed_tokens", "lm_head") else widened(value)
            continue
        floats = widened(value)
        gamma = np.float32(1) if wrong == "magnitude-is-one" else np.abs(floats).max()
        params[short] = [np.sign(floats).astype(np.int8), gamma]
    name = metadata["general.architecture"]
    eps = metadata[f"{name}.attention.layer_norm_rms_epsilon"]
    return params, float(str(np.float32(eps))), float(metadata[f"{name}.rope.freq_base"])


def save_gguf(model: Any, kind: str, layout: str, wrong: str = "") -> tuple[dict[str, Any]]:
    """Return type, shape and bytes of each tensor; projections as I2_S in rows."""
    out: dict[str, Any] = {}
    names = {ours: theirs for theirs, ours in GGUF.items()}
    for name, value in model.params.items():
        short = name.split(".", 2)[2] if name.startswith("layers.") else name
        full = f"blk.{name.split('.')[1]}." if name.startswith("layers.") else ""
        full += f"{names[short]}.weight"
        full = name if wrong == "names-of-ours" else full
        if hasattr(value, "codes"):
            codes = value.codes()
            scale = 1.0 if wrong == "magnitude-is-one" else float(value.scale)
            shift = (0, 2, 4, 6) if wrong == "lowest-first" else (6, 4, 2, 0)
            out[full] = [36, [*codes.shape], packed_i2_s(codes, scale, layout, shift)]
        else:
            half = value.dtype == np.uint16
            stored = value if not half or wrong != "bfloat16-widened" else widened(value)
            code = 30 if stored.dtype == np.uint16 else 0
            data = np.frombuffer(stored.astype(stored.dtype.newbyteorder("<")).tobytes(), np.uint8)
            out[full] = [code, [*value.shape], data]
    return (out,)


CHECKPOINT: dict[str, Callable[..., tuple[Any, ...]]] = {
    "load_bitnet": load_bitnet,
    "load_gguf": load_gguf,
    "save_bitnet": save_bitnet,
    "save_gguf": save_gguf,
}
