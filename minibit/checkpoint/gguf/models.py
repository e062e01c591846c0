"""Models as GGUF files, of BitNet, Llama and Qwen3: the form that llama.cpp and bitnet.cpp read.

    tensor                                  holds                              as
    token_embd, output                      embedding, head that is not tied   floats, or packed
    blk.N.attn_q, _k, _v, _output           projections of the attention       TQ1_0, TQ2_0, I2_S,
    blk.N.ffn_gate, _up, _down              projections of the gated unit      Q2_0, PQ2_0, PTQ1_0
    blk.N.attn_norm, ffn_norm, output_norm  gains                              F32
    blk.N.attn_sub_norm, ffn_sub_norm       gains before BitNet's o and down   F32
    blk.N.attn_q_norm, attn_k_norm          gains of Qwen3's heads             F32
    blk.N.attn_q_norm_in, ffn_up_norm_in    gains before each projection       F32

Four things that such files don't say, or say wrongly, are settled here:

- *Activation.* Programs choose it by ``general.architecture``: ``bitnet-b1.58`` and ``bitnet-25``
  mean squared ReLU, ``bitnet`` means SiLU, which raises the perplexity of the published model from
  17.1 to 99.8 (microsoft/BitNet#588). `save_gguf` writes ``bitnet-b1.58`` and the activation.
- *Rotary pairs.* ggml rotates BitNet's as halves (``ROPE_TYPE_NEOX``), as Hugging Face does, so
  rows of q and k stay where they are, as Qwen3's do. For ``llama`` it rotates neighbours, and
  its converter interleaves the halves of each head of q and k: undone here, and done again.
- *Activations.* llama.cpp quantises them to int8 for every product with packed weights, block by
  block, and so does the model that is read. `save_gguf` says, for us alone, if they stay floats.
- *I2_S.* Three orders of codes share one type id, see `minibit.ternary.published`.
  Files of bitnet.cpp don't tell which; ours do, under ``minibit.i2_s_layout``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from minibit.base import one_of, shown
from minibit.checkpoint.gguf.container import (
    BF16,
    F32,
    I2_S,
    TQ1_0,
    TQ2_0,
    GGUFFile,
    Tensor,
)
from minibit.checkpoint.gguf.metadata import config_entries, read_config, shortest
from minibit.checkpoint.gguf.parts import open_parts
from minibit.checkpoint.gguf.tensors import (
    block_scales,
    check_encodable,
    encoded,
    read_gain,
    read_projection,
    read_table,
)
from minibit.checkpoint.gguf.writer import Entry, NewTensor, write_gguf
from minibit.checkpoint.safetensors import as_written
from minibit.ternary import I2Layout, TernaryMatrix
from minibit.transformer import (
    BitNetConfig,
    BitNetModel,
    RopeScaling,
    bit_linear,
    float_linear,
    pack_params,
    packed_linear,
    param_shapes,
)

__all__ = ["GGUFKind", "gguf_name", "load_gguf", "save_gguf"]

GGUFKind = Literal["tq2_0", "tq1_0", "i2_s", "q2_0", "pq2_0", "ptq1_0"]
_GUESSED = 1024  # llama.cpp's file type of what has no number in it
_KINDS: dict[str, tuple[int, int]] = {  # tensor type and general.file_type
    "tq2_0": (TQ2_0, 37),
    "tq1_0": (TQ1_0, 36),
    "i2_s": (I2_S, 40),
    "q2_0": (42, 41),
    "pq2_0": (142, _GUESSED),
    "ptq1_0": (143, _GUESSED),
}
_LAYOUT = "minibit.i2_s_layout"
_ACTIVATIONS = "minibit.activations"
_PLAIN = "float32"
FREQUENCIES = "rope_freqs.weight"
_SCALING = "minibit.rope_scaling"  # low, high and original of `RopeScaling`, as JSON

_TITLES = {"bitnet": "BitNet model", "llama": "Llama", "qwen3": "Qwen3"}
_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
_IN_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """Return what GGUF calls a parameter of `minibit.transformer.param_shapes`."""
    if name in _NAMES:
        return f"{_NAMES[name]}.weight"
    _, layer, rest = name.split(".", 2)
    projection = rest.removesuffix(".rms_norm")  # and if it is that, a norm before it
    return f"blk.{layer}.{_IN_BLOCK[projection]}{'' if rest == projection else '_norm_in'}.weight"


def _interleaved(config: BitNetConfig, param: str) -> NDArray[np.int64] | None:
    """Return the rows of q or k as llama.cpp's Llama has them, by their numbers here.

    Each head's halves are interleaved: row 2 i + j of a head is its row i + j head_dim / 2 here.
    """
    heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(param.split(".")[-1])
    if config.family != "llama" or heads is None:
        return None
    rows = np.arange(heads * config.head_dim).reshape(heads, 2, -1)  # (heads, halves, half)
    return np.swapaxes(rows, 1, 2).reshape(-1)


# Reading.


def load_gguf(
    path: str | os.PathLike[str], *, layout: I2Layout | None = None, squared_relu: bool = False
) -> BitNetModel:
    """Read a BitNet, or a ternary Llama or Qwen3, from a GGUF file.

    Parameters
    ----------
    path : path
        Its projections are TQ1_0, TQ2_0, Q2_0, PQ2_0, PTQ1_0 or I2_S, or floats that hold nothing
        but 0 and one magnitude; in a Llama or Qwen3 each block may have its own, and each group of
        32 to 256 columns of floats. It is mapped, and never written to. If it was split, any part
        will do: the others lie beside it.
    layout : {"x86", "arm", "rows"}, optional
        The order of codes in I2_S: the wrong one gives a model that runs and talks nonsense. By
        default what the file says, if `save_gguf` wrote it, else ``x86``, as published files have.
    squared_relu : bool
        Read a file of architecture ``bitnet`` too, on your word that the model has squared ReLU and
        not SiLU, as that name means to llama.cpp.

    Returns
    -------
    BitNetModel
        Projections as `TernaryMatrix`, decoded one at a time and packed as this CPU wants them;
        `packed_linear` multiplies, with int8 activations, unless the file is of a `float_linear`
        model that `save_gguf` wrote. A packed embedding stays packed. Another, and a head that is
        not tied, stay mapped: float32 or bfloat16 bits. F16 becomes bfloat16 where that is exact
        (it is, for what once was bfloat16), else float32.

    Raises
    ------
    CheckpointError
        If the file is damaged, of another architecture or activation, or says what is not known
        here, such as ``prism.hadamard``, a rotation before products; if a tensor is missing, too
        many, of another shape, not finite, or all zeros (a known defect of uploads); if a
        projection has the 2-bit code 3 (+2), latent weights, or, in a BitNet, blocks of different
        scales. It names file, tensor and byte.
    ImportError
        If an embedding is of a type that only the ``gguf`` package decodes (Q4_K, Q6_K and the
        like), and it is not installed.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> from minibit.transformer import BitNetConfig, init_params
    >>> config = BitNetConfig(7, 128, 128, layers=1, heads=2, kv_heads=1, max_positions=64)
    >>> model = BitNetModel(config, pack_params(init_params(config, seed=0)))
    >>> path = mkdtemp() + "/model.gguf"
    >>> save_gguf(model, path, "i2_s")
    >>> bool(np.array_equal(load_gguf(path).logits([[1, 2]]), model.logits([[1, 2]])))
    True
    """
    file = open_parts(path)
    config = read_config(file, squared_relu=squared_relu)
    order: Any = file.metadata.get(_LAYOUT, "x86") if layout is None else layout
    if layout is None and order not in get_args(I2Layout):
        raise file.error(f"has {_LAYOUT} {shown(order)}")
    one_of("layout", order, get_args(I2Layout))
    activations = file.metadata.get(_ACTIVATIONS)
    if activations not in (None, _PLAIN):
        raise file.error(f"has {_ACTIVATIONS} {shown(activations)}")
    groups = config.family != "bitnet"
    shapes = param_shapes(config)
    names = {gguf_name(param): param for param in shapes}
    projections = (name for name, param in names.items() if param.endswith("_proj"))
    scales = {name.removesuffix(".weight") + ".scale" for name in projections}
    for name, tensor in file.tensors.items():
        if name == FREQUENCIES:
            config = _with_scaling(file, tensor, config)
        elif name not in names and name not in scales:
            raise file.error(f"is no part of a {_TITLES[config.family]} as known here", tensor)
    params: dict[str, Any] = {}
    for name, param in names.items():
        if name not in file.tensors:
            raise file.error(f"has no tensor {name}")
        tensor = file.tensors[name]
        if tensor.shape != shapes[param]:
            raise file.error(f"has shape {tensor.shape}, must have {shapes[param]}", tensor)
        with np.errstate(all="ignore"):  # of numbers that are then refused
            if param.endswith("_proj"):
                rows = _interleaved(config, param)
                rows = None if rows is None else np.argsort(rows)
                params[param] = read_projection(file, tensor, order, groups=groups, order=rows)
            elif len(tensor.shape) == 1:
                params[param] = read_gain(file, tensor)
            else:
                params[param] = read_table(file, tensor, groups)
        file.release(tensor)
    return BitNetModel(config, params, None if activations is None else float_linear)


def _with_scaling(file: GGUFFile, tensor: Tensor, config: BitNetConfig) -> BitNetConfig:
    """Return the configuration with the scaling of positions that a table of divisors has.

    It must be that of Llama 3.1, with the constants that the file says, if it is ours, or those of
    the published models: the table alone does not tell them.
    """
    if tensor.kind != F32 or tensor.shape != (config.head_dim // 2,):
        raise file.error("is no float32 for each pair of a head", tensor)
    table = read_gain(file, tensor)
    if (table == 1).all():
        return config
    try:
        constants = json.loads(str(file.metadata.get(_SCALING, "[]"))[:100])
        scaling = RopeScaling(shortest(float(table.max())), *constants)
        scaled = replace(config, rope_scaling=scaling)
        near = np.isclose(scaling.divisors(config.head_dim, config.rope_theta), table, rtol=1e-5)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        near = np.zeros(1, bool)
    if config.family != "llama" or not near.all():
        raise file.error("scales rotary frequencies in a way that is not known here", tensor)
    return scaled


# Writing.


def save_gguf(
    model: BitNetModel,
    path: str | os.PathLike[str],
    kind: GGUFKind = "tq2_0",
    *,
    layout: I2Layout = "x86",
    metadata: Mapping[str, Entry] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model as a GGUF file, whole or not at all.

    Parameters
    ----------
    model : BitNetModel
        Float projections are quantised by `absmean_quantize`, unless `float_linear` multiplies by
        them; embedding and gains are written as they are (F32, or BF16 for bfloat16 bits), packed
        embeddings as projections.
    path : path
    kind : {"tq2_0", "tq1_0", "i2_s", "q2_0", "pq2_0", "ptq1_0"}
        Type of the projections. I2_S is bitnet.cpp's and keeps the scale of a matrix. The others
        round scales to float16, a relative change of at most 2**-11, and take n_in in multiples of
        their block, to which groups of columns must not be narrower: 256 for TQ1_0 and TQ2_0, 64
        for Q2_0, which are ggml's own, 128 for PQ2_0 and PTQ1_0, which PrismML's fork reads.
    layout : {"x86", "arm", "rows"}
        The order of codes in I2_S, see `minibit.ternary.to_i2_s`; the file says it, for us alone.
    metadata : mapping, optional
        More entries: a name (``general.name``), a tokenizer (`minibit.checkpoint.gguf.tokenizer`).
    overwrite : bool
        Replace a file that is there, which else is a FileExistsError.

    Raises
    ------
    ValueError
        If the model multiplies by float weights; if a projection is all zeros, or `kind` cannot
        hold its shape or scales; if a float is not finite, or an embedding all zeros.
        Projections are never written as floats instead.

    bitnet.cpp multiplies by ``token_embd`` at the end, also where the file has an ``output``.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> from minibit.transformer import BitNetConfig, init_params
    >>> config = BitNetConfig(7, 256, 256, layers=1, heads=2, kv_heads=1, max_positions=64)
    >>> path = mkdtemp() + "/model.gguf"
    >>> save_gguf(BitNetModel(config, init_params(config, seed=0)), path)
    >>> open_parts(path).tensors["blk.0.attn_k.weight"][:3]
    ('blk.0.attn_k.weight', 35, (128, 256))
    """
    one_of("kind", kind, _KINDS)
    projections = (w for name, w in model.params.items() if name.endswith("_proj"))
    packed = all(isinstance(w, TernaryMatrix) for w in projections)
    known = (None, bit_linear, packed_linear, *((float_linear,) if packed else ()))
    if model.linear not in known:
        raise ValueError("model must have ternary projections, its linear is another")
    params, config = pack_params(model.params), model.config
    for name, value in params.items():
        grouped = isinstance(value, TernaryMatrix) and value.group is not None
        if grouped and config.family == "bitnet" and name.endswith("_proj"):
            raise ValueError(f"{name} must have one scale, as a BitNet's, got groups of columns")
    tensors = [
        _new(name, params[name], kind, layout, _interleaved(config, name))
        for name in param_shapes(config)
    ]
    if config.rope_scaling is not None:
        tensors.append(NewTensor(FREQUENCIES, F32, (config.head_dim // 2,), _divisors(config)))
    entries: dict[str, Entry] = {
        **config_entries(config),
        "general.file_type": _KINDS[kind][1],
        "general.quantization_version": 2,
        **({_LAYOUT: layout} if kind == "i2_s" else {}),
        **({} if config.rope_scaling is None else {_SCALING: json.dumps(config.rope_scaling[1:])}),
        **({_ACTIVATIONS: _PLAIN} if model.linear is float_linear else {}),
        **(metadata or {}),
    }
    write_gguf(path, entries, tensors, overwrite=overwrite)


def _divisors(config: BitNetConfig) -> Callable[[], Iterable[NDArray[Any]]]:
    """Return what gives the table of divisors, which llama.cpp reads for a Llama alone."""
    if config.family != "llama":
        raise ValueError("config must have no rope_scaling: llama.cpp has it for a Llama alone")
    return lambda: [np.asarray(config.rope_divisors).astype("<f4", copy=False)]


def _new(
    name: str, value: Any, kind: str, layout: I2Layout, order: NDArray[np.int64] | None
) -> NewTensor:
    """Prepare a tensor; values that it cannot hold are refused now, before anything is written."""
    if not isinstance(value, TernaryMatrix):
        floats = as_written(name, value)
        code, stored_as = (BF16, "<u2") if floats.dtype == np.uint16 else (F32, "<f4")
        stored = floats.astype(stored_as, copy=False)
        return NewTensor(gguf_name(name), code, stored.shape, lambda: [stored])
    code, _ = _KINDS[kind]
    try:
        check_encodable(value, code, layout)
    except ValueError as error:
        narrow = kind != "i2_s" and value.group is None
        hint = "; i2_s in the layout 'rows' takes every shape" if narrow else ""
        raise ValueError(f"{name} cannot be written as {kind}: {error}{hint}") from error

    def chunks() -> Iterable[NDArray[np.uint8]]:
        codes, scales = value.codes(), block_scales(value, code)
        if not codes.any():
            raise ValueError(f"{name} cannot be written as {kind}: all its codes are 0")
        if np.ndim(scales):
            used = codes.reshape(*scales.shape, -1).any(axis=-1)
            if not scales[used].all():
                raise ValueError(f"{name} cannot be written as {kind}: codes meet a scale of 0")
        if order is not None:
            codes, scales = codes[order], scales[order] if np.ndim(scales) else scales
        return encoded(codes, scales, code, layout)

    return NewTensor(gguf_name(name), code, value.shape, chunks)
