"""BitNet models as GGUF files: the form that llama.cpp and bitnet.cpp read.

    tensor                                  holds                              as
    token_embd, output                      embedding, head that is not tied   F32, F16, BF16
    blk.N.attn_q, _k, _v, _output           projections of the attention       TQ1_0, TQ2_0, I2_S
    blk.N.ffn_gate, _up, _down              projections of the gated unit      TQ1_0, TQ2_0, I2_S
    blk.N.attn_norm, ffn_norm, output_norm  gains                              F32
    blk.N.attn_sub_norm, ffn_sub_norm       gains before the last projections  F32

Three things that such files don't say, or say wrongly, are settled here:

- *Activation.* Programs choose it by ``general.architecture``. ``bitnet-b1.58`` and ``bitnet-25``
  mean squared ReLU, which the published model has; ``bitnet`` means SiLU (the models of 1bitLLM),
  and running the published model as such raises its perplexity from 17.1 to 99.8
  (microsoft/BitNet#588). `save_gguf` writes ``bitnet-b1.58`` and names the activation besides.
- *Rotary pairs.* Files of the llama architecture have the rows of q and k reordered so that pairs
  are neighbours. Those of BitNet have not: ggml rotates them as halves (``ROPE_TYPE_NEOX``), as
  Hugging Face does, so rows stay where they are.
- *I2_S.* Three orders of codes share one type id, see `minibit.ternary.published`.
  Files of bitnet.cpp don't tell which; ours do, under ``minibit.i2_s_layout``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from minibit.base import CheckpointError, shown
from minibit.checkpoint.gguf.container import BF16, F32, I2_S, TQ1_0, TQ2_0, GGUFFile, open_gguf
from minibit.checkpoint.gguf.metadata import config_entries, read_config
from minibit.checkpoint.gguf.tensors import (
    check_encodable,
    encoded,
    read_floats,
    read_gain,
    read_projection,
    read_table,
)
from minibit.checkpoint.gguf.writer import Entry, NewTensor, write_gguf
from minibit.checkpoint.safetensors import as_written
from minibit.ternary import I2Layout, TernaryMatrix
from minibit.transformer import BitNetModel, bit_linear, pack_params, packed_linear, param_shapes

__all__ = ["GGUFKind", "gguf_name", "load_gguf", "save_gguf"]

GGUFKind = Literal["tq2_0", "tq1_0", "i2_s"]
_KINDS: dict[str, tuple[int, int]] = {  # tensor type and general.file_type
    "tq2_0": (TQ2_0, 37),
    "tq1_0": (TQ1_0, 36),
    "i2_s": (I2_S, 40),
}
_LAYOUT = "minibit.i2_s_layout"

_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
_IN_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """Return what GGUF calls a parameter.

    Parameters
    ----------
    name : str
        As `minibit.transformer.param_shapes` has it.

    Examples
    --------
    >>> gguf_name("layers.3.mlp.down_proj"), gguf_name("norm")
    ('blk.3.ffn_down.weight', 'output_norm.weight')
    """
    if name in _NAMES:
        return f"{_NAMES[name]}.weight"
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{_IN_BLOCK[rest]}.weight"


# Reading.


def load_gguf(
    path: str | os.PathLike[str], *, layout: I2Layout | None = None, squared_relu: bool = False
) -> BitNetModel:
    """Read a BitNet model from a GGUF file.

    Parameters
    ----------
    path : path
        A file with projections in TQ1_0, TQ2_0 or I2_S, or in F32, F16 or BF16 that hold nothing
        but 0 and one magnitude. It is mapped, and never written to.
    layout : {"x86", "arm", "rows"}, optional
        The order of codes in I2_S, which a file of bitnet.cpp does not tell: the wrong one gives a
        model that runs and talks nonsense. By default what the file says, if `save_gguf` wrote it,
        else ``x86``, which the published files have.
    squared_relu : bool
        Read a file of architecture ``bitnet`` too, on your word that the model has squared ReLU and
        not SiLU, as that name means to llama.cpp.

    Returns
    -------
    BitNetModel
        Projections as `TernaryMatrix`, decoded one at a time and packed as this CPU wants them.
        The embedding, and a head that is not tied, stay mapped: float32 or bfloat16 bits. F16 is
        held as bfloat16 where that is exact (it is, for what once was bfloat16), else as float32.

    Raises
    ------
    CheckpointError
        If there is no such file, or it is damaged, or no BitNet model, or of another activation; if
        a tensor is missing, too many, of another shape, not finite, or all zeros (a known defect of
        uploads); if the blocks of a matrix have different scales, for which a `TernaryMatrix` has
        no place; if a projection holds latent weights. File, tensor and byte are named.
    ImportError
        If an embedding is of a type that only the ``gguf`` package decodes (Q4_K, Q6_K and the
        like, as llama-quantize makes), and it is not installed.

    Notes
    -----
    The header is read here and not by the ``gguf`` package: that does not know I2_S, believes the
    counts of a damaged header, and takes several arrays for each word of a vocabulary.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from minibit.transformer import BitNetConfig, init_params
    >>> config = BitNetConfig(7, 128, 128, layers=1, heads=2, kv_heads=1, max_positions=64)
    >>> model = BitNetModel(config, pack_params(init_params(config, seed=0)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.gguf"
    ...     save_gguf(model, path, "i2_s")
    ...     again = load_gguf(path)
    >>> again.config == config
    True
    >>> bool(np.array_equal(again.logits([[1, 2]]), model.logits([[1, 2]])))
    True
    """
    file = open_gguf(path)
    parts = file.metadata.get("split.count", 1)
    if type(parts) is not int or parts > 1:
        number = file.metadata.get("split.no", 0)
        which = number + 1 if type(number) is int else shown(number)
        raise file.error(
            f"is part {which} of {shown(parts)} of a split file: join them first, with "
            "llama-gguf-split --merge"
        )
    config = read_config(file, squared_relu=squared_relu)
    chosen = _layout(file, layout)
    shapes = param_shapes(config)
    wanted = {gguf_name(name): name for name in shapes}
    matrices = (found for found, name in wanted.items() if name.endswith("_proj"))
    scales = {found.removesuffix(".weight") + ".scale" for found in matrices}
    for found in file.tensors:
        if found == "rope_freqs.weight":
            _check_factors(file)
        elif found not in wanted and found not in scales:
            raise file.error("is no part of a BitNet model as known here", file.tensors[found])
    params: dict[str, Any] = {}
    for found, name in wanted.items():
        tensor = file.tensors.get(found)
        if tensor is None:
            raise CheckpointError(f"has no tensor {found}", file.path)
        if tensor.shape != shapes[name]:
            raise file.error(f"has shape {tensor.shape}, must have {shapes[name]}", tensor)
        with np.errstate(all="ignore"):  # of numbers that are then refused
            if name.endswith("_proj"):
                params[name] = read_projection(file, tensor, chosen)
            elif len(tensor.shape) == 1:
                params[name] = read_gain(file, tensor)
            else:
                params[name] = read_table(file, tensor)
        file.release(tensor)
    return BitNetModel(config, params)


def _layout(file: GGUFFile, layout: str | None) -> I2Layout:
    """Choose the order of codes in I2_S."""
    chosen = layout or file.metadata.get(_LAYOUT, "x86")
    if chosen in get_args(I2Layout):
        return cast(I2Layout, chosen)
    if layout is None:
        raise file.error(f"has {_LAYOUT} {shown(chosen)}")
    raise ValueError(f"layout must be 'x86', 'arm' or 'rows', got {layout!r}")


def _check_factors(file: GGUFFile) -> None:
    """Refuse factors on the frequencies of rotary positions, unless they are all 1."""
    tensor = file.tensors["rope_freqs.weight"]
    if tensor.kind != F32 or not (read_floats(file, tensor) == 1).all():
        raise file.error("scales rotary frequencies, which is not known here", tensor)


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
    """Write a BitNet model as a GGUF file, whole or not at all.

    Parameters
    ----------
    model : BitNetModel
        Float projections are quantised by `absmean_quantize`; embedding and gains are written as
        they are (F32, or BF16 for bfloat16 bits).
    path : path
    kind : {"tq2_0", "tq1_0", "i2_s"}
        Type of the projections. TQ1_0 and TQ2_0 are ggml's own, take n_in in multiples of 256, and
        round the scale of a matrix to float16: a relative change of at most 2**-11. I2_S is
        bitnet.cpp's and keeps the scale.
    layout : {"x86", "arm", "rows"}
        The order of codes in I2_S, see `minibit.ternary.published.to_i2_s`; the file says it, for
        us alone.
    metadata : mapping, optional
        More entries: a name (``general.name``), a tokenizer (`minibit.checkpoint.gguf.tokenizer`).
    overwrite : bool
        Replace a file that is there.

    Raises
    ------
    FileExistsError
        If there is such a file, and `overwrite` is not given; it is left as it is.
    ValueError
        If the model multiplies by float weights, a projection has a shape that `kind` cannot hold,
        is all zeros, or has a scale that is not above 0, or (TQ1_0, TQ2_0) one that float16 holds
        only as a subnormal; if a float is not finite, or an embedding all zeros. Projections are
        never written as floats instead.

    Notes
    -----
    Codes are exact, so rounding (half to even here, half away from zero in ggml) has no say.
    bitnet.cpp multiplies by ``token_embd`` at the end, also where the file has an ``output``.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from minibit.transformer import BitNetConfig, init_params
    >>> config = BitNetConfig(7, 256, 256, layers=1, heads=2, kv_heads=1, max_positions=64)
    >>> model = BitNetModel(config, init_params(config, seed=0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_gguf(model, pathlib.Path(folder) / "model.gguf")
    ...     file = open_gguf(pathlib.Path(folder) / "model.gguf")
    >>> file.tensors["blk.0.attn_k.weight"][:3]
    ('blk.0.attn_k.weight', 35, (128, 256))
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    if model.linear not in (None, bit_linear, packed_linear):
        raise ValueError("model must have ternary projections, its linear is another")
    params = pack_params(model.params)
    tensors = [_new(name, params[name], kind, layout) for name in param_shapes(model.config)]
    entries: dict[str, Entry] = {
        **config_entries(model.config),
        "general.file_type": _KINDS[kind][1],
        "general.quantization_version": 2,
        **({_LAYOUT: layout} if kind == "i2_s" else {}),
        **(metadata or {}),
    }
    write_gguf(path, entries, tensors, overwrite=overwrite)


def _new(name: str, value: Any, kind: str, layout: I2Layout) -> NewTensor:
    """Prepare a tensor; what it cannot hold is refused now, before anything is written."""
    found = gguf_name(name)
    if not isinstance(value, TernaryMatrix):
        floats = as_written(name, value)
        brains = floats.dtype == np.uint16
        stored = floats.astype("<u2" if brains else "<f4", copy=False)
        return NewTensor(found, BF16 if brains else F32, stored.shape, lambda: [stored])
    code, _ = _KINDS[kind]
    try:
        check_encodable(value, code, layout)
    except ValueError as error:
        raise ValueError(f"{name} cannot be written as {kind}: {error}") from error

    def chunks() -> Iterable[NDArray[np.uint8]]:
        codes = value.codes()
        if not codes.any():
            raise ValueError(f"{name} cannot be written as {kind}: all its codes are 0")
        return encoded(codes, value.scale, code, layout)

    return NewTensor(found, code, value.shape, chunks)
