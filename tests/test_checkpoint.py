"""Checkpoints of Hugging Face: what is written comes back, what is damaged is refused by name."""

import json
import mmap
import os
import pickle
import re
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibit.checkpoint import (
    PUBLISHED_2B_4T,
    CheckpointError,
    load_bitnet,
    load_gguf,
    random_checkpoint,
    save_bitnet,
)
from minibit.checkpoint.hf.config import Storage, config_json, read_config, tensor_names
from minibit.checkpoint.hf.linear import gamma_of, published_linear, weight_scale_of
from minibit.checkpoint.hf.shards import inside
from minibit.checkpoint.safetensors import (
    DTYPES,
    MOST_HEADER,
    SafetensorsFile,
    write_safetensors,
)
from minibit.matmul import ternary_matmul
from minibit.ternary import TernaryMatrix, from_hf, to_hf
from minibit.transformer import (
    BitNetConfig,
    BitNetModel,
    float_linear,
    init_params,
    pack_params,
    param_shapes,
)
from model_files import WAYS, assert_equal, assert_same, model_with_gains, save

CONFIG = BitNetConfig(
    40, 32, 48, layers=2, heads=4, kv_heads=2, max_positions=64, rope_theta=5e5, bos=1, eos=2
)
ways = pytest.mark.parametrize("way", WAYS)
UP = "model.layers.1.mlp.up_proj.weight"
EMBED = "model.embed_tokens.weight"
NORM = "model.layers.0.input_layernorm.weight"
TOKENS = np.arange(24).reshape(2, 12)
INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-00002.safetensors"


def float_model(config=CONFIG, seed=0):
    """Master weights and gains that are not all 1."""
    return model_with_gains(config, seed)


def bfloat16(floats):
    """Upper halves of float32 numbers."""
    return (np.asarray(floats, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def raw(path):
    """Header and data of a safetensors file, as a stranger would read it."""
    content = Path(path).read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put(path, header, data):
    """Write a safetensors file as anyone might: nothing is checked."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + data)


def retensor(folder, **changes):
    """Write the checkpoint's tensors again, some of them changed (None: left out)."""
    path = Path(folder) / "model.safetensors"
    header, data = raw(path)
    header.pop("__metadata__", None)
    tensors = {
        name: (e["dtype"], tuple(e["shape"]), data[slice(*e["data_offsets"])])
        for name, e in header.items()
    }
    tensors |= changes
    header, data = {}, b""
    for name, tensor in tensors.items():
        if tensor is not None:
            dtype, shape, content = tensor
            offsets = [len(data), len(data) + len(content)]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            data += content
    put(path, header, data)


def reconfigure(folder, **changes):
    """Write the checkpoint's config.json again, some fields changed (None: left out)."""
    path = Path(folder) / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


def as_tensor(array, dtype=None):
    """What `retensor` takes, from an array."""
    names = {"uint8": "U8", "uint16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
    return dtype or names[array.dtype.name], array.shape, array.tobytes()


@pytest.fixture
def folder(tmp_path):
    """A small packed checkpoint."""
    return save(float_model(), tmp_path / "model")


# --- what is written comes back ----------------------------------------------------------------


@ways
def test_a_model_comes_back_bit_for_bit(way, tmp_path):
    """load(save(model)) has the codes, scales and floats of the model, and its logits."""
    model = float_model()
    model = load_bitnet(save(model, tmp_path / "first", way))  # gamma is now that of a file
    again = load_bitnet(save(model, tmp_path / "second", way))
    assert again.config == CONFIG
    assert again.linear is model.linear
    assert_same(model, again)
    np.testing.assert_array_equal(model.logits(TOKENS), again.logits(TOKENS))
    for name in ("config.json", "model.safetensors"):
        first, second = (tmp_path / prefix / name for prefix in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("way", ["bitlinear", "offline"])
def test_master_weights_are_packed_by_absmean(way, tmp_path):
    """Saving float projections in a packed form quantises them as `pack_params` does."""
    model = float_model()
    loaded = load_bitnet(save(model, tmp_path / "model", way))
    for name, expected in pack_params(model.params).items():
        if isinstance(expected, TernaryMatrix):
            np.testing.assert_array_equal(loaded.params[name].codes(), expected.codes())
            ulps = abs(loaded.params[name].scale - expected.scale) / np.spacing(expected.scale)
            assert ulps <= (1 if way == "bitlinear" else 0)
        else:
            assert_equal(loaded.params[name], expected)


def test_master_weights_and_float_models_keep_what_multiplies(tmp_path):
    """Online quantises at each use, and no quantization_config means never."""
    model = float_model()
    online = load_bitnet(save(model, tmp_path / "online", "online"))
    plain = load_bitnet(save(model, tmp_path / "float", "float"))
    for name, value in model.params.items():
        assert_equal(online.params[name], value)
        assert_equal(plain.params[name], value)
    assert plain.linear is float_linear
    np.testing.assert_array_equal(online.logits(TOKENS), model.logits(TOKENS))
    floats = BitNetModel(CONFIG, model.params, float_linear)
    np.testing.assert_array_equal(plain.logits(TOKENS), floats.logits(TOKENS))


def test_an_untied_head_has_a_name_without_model(tmp_path):
    """lm_head.weight, as transformers names it; it and the embedding come back."""
    config = replace(CONFIG, tied=False, bos=None, eos=None)
    model = float_model(config)
    loaded = load_bitnet(save(model, tmp_path / "model"))
    assert loaded.config == config
    assert "lm_head.weight" in raw(tmp_path / "model" / "model.safetensors")[0]
    assert_equal(loaded.params["lm_head"], model.params["lm_head"])


def test_bfloat16_embeddings_stay_in_the_file(tmp_path):
    """They are a view of the map, writable for kernels, and what is written to it stays private."""
    model = float_model()
    bits = bfloat16(model.params["embed_tokens"])
    model = BitNetModel(CONFIG, model.params | {"embed_tokens": bits})
    path = save(model, tmp_path / "model") / "model.safetensors"
    before = path.read_bytes()
    embedding = load_bitnet(path.parent).params["embed_tokens"]
    assert_equal(embedding, bits)
    assert embedding.base is not None
    assert embedding.flags.carray
    embedding[0, 0] += 1
    assert path.read_bytes() == before
    assert json.loads((path.parent / "config.json").read_text())["dtype"] == "bfloat16"


def test_bfloat16_at_an_odd_byte_is_copied(folder):
    """Kernels want aligned arrays; a file need not have them."""
    bits = bfloat16(load_bitnet(folder).params["embed_tokens"])
    retensor(folder, **{"model.embed_tokens.weight": as_tensor(bits)})
    header, data = raw(folder / "model.safetensors")
    text = json.dumps(header).encode()
    for spaces in range(2):  # one of the two lengths is odd
        put(folder / "model.safetensors", text + b" " * spaces, data)
        embedding = load_bitnet(folder).params["embed_tokens"]
        assert_equal(embedding, bits)
        assert embedding.flags.aligned


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_floats_of_every_width_become_float32(folder, dtype):
    """Norms and master weights: exactly the numbers of the file."""
    gains = np.linspace(-2, 3, 32, dtype=np.float32).astype(np.float16).astype(np.float32)
    gains = (bfloat16(gains).astype(np.uint32) << 16).view(np.float32)  # fits all three
    stored = {"F16": gains.astype(np.float16), "BF16": bfloat16(gains), "F32": gains}[dtype]
    retensor(folder, **{NORM: as_tensor(stored)})
    assert_equal(load_bitnet(folder).params["layers.0.input_layernorm"], gains)


def test_float16_embeddings_become_float32(folder):
    """The head is float32 or bfloat16; float16 is widened, exactly."""
    table = load_bitnet(folder).params["embed_tokens"].astype(np.float16)
    retensor(folder, **{"model.embed_tokens.weight": as_tensor(table)})
    assert_equal(load_bitnet(folder).params["embed_tokens"], table.astype(np.float32))


def test_ternary_floats_are_read_where_transformers_holds_them(tmp_path):
    """autobitlinear offline unpacks on loading, so its state dict has floats -1, 0, 1."""
    folder = save(float_model(), tmp_path / "model", "offline")
    before = load_bitnet(folder)
    codes = before.params["layers.1.mlp.up_proj"].codes().astype(np.float32)
    retensor(folder, **{UP: as_tensor(bfloat16(codes))})
    for name, value in before.params.items():
        assert_equal(load_bitnet(folder).params[name], value)


def test_packed_rows_beyond_a_multiple_of_four_are_sliced_off(tmp_path):
    """n_out = 6 takes two rows of bytes, whose padding decodes to -1 and belongs to nobody."""
    config = replace(CONFIG, hidden_size=24, heads=4, kv_heads=1)  # k and v have 6 rows
    folder = save(float_model(config), tmp_path / "model", "online")
    rng = np.random.default_rng(0)
    codes, changes = {}, {}
    for name, param in tensor_names(config, WAYS["bitlinear"]).items():
        if name.endswith("_scale"):
            changes[name] = as_tensor(np.float32([2]))
        elif name.endswith("_proj.weight"):
            codes[param] = rng.integers(-1, 2, param_shapes(config)[param]).astype(np.int8)
            changes[name] = as_tensor(to_hf(codes[param]))
    retensor(folder, **changes)
    reconfigure(folder, quantization_config={"quant_method": "bitnet"})
    params = load_bitnet(folder).params
    assert params["layers.0.self_attn.k_proj"].shape == (6, 24)
    for param, expected in codes.items():
        np.testing.assert_array_equal(params[param].codes(), expected)
        assert params[param].scale == 0.5
    k = "model.layers.0.self_attn.k_proj.weight"
    padded = to_hf(np.zeros((6, 24), np.int8)) | 0b10_00_00_00 * np.uint8([[0], [1]])  # row 7: +1
    retensor(folder, **{k: as_tensor(padded)})
    with pytest.raises(CheckpointError, match=r"k_proj.*holds only zeros"):
        load_bitnet(folder)


# --- one name, two meanings --------------------------------------------------------------------


def test_weight_scale_divides_in_one_class_and_multiplies_in_the_other(folder):
    """The same bytes under the other linear_class are another model: 1 / gamma for gamma."""
    before = load_bitnet(folder)
    reconfigure(folder, quantization_config={
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
    })  # fmt: skip
    after = load_bitnet(folder)
    for name, matrix in before.params.items():
        if isinstance(matrix, TernaryMatrix):
            np.testing.assert_array_equal(after.params[name].codes(), matrix.codes())
            np.testing.assert_allclose(after.params[name].scale * matrix.scale, 1, rtol=2e-7)
            assert matrix.scale < 0.5 < 2 < after.params[name].scale


@given(st.floats(2.0**-20, 2.0**20, width=32))
def test_gamma_through_its_reciprocal_moves_at_most_one_unit(gamma):
    """1 / (1 / gamma) in float32 is gamma or its neighbour, and what came back once, stays."""
    storage, gamma = Storage("bitlinear"), np.float32(gamma)
    back = gamma_of(weight_scale_of(gamma, storage), storage)
    assert abs(back - gamma) <= np.spacing(gamma)
    assert gamma_of(weight_scale_of(back, storage), storage) == back
    kept = Storage("autobitlinear")
    assert gamma_of(weight_scale_of(gamma, kept), kept) == gamma


def test_about_one_gamma_in_six_is_no_reciprocal():
    """Where gamma's fraction is above sqrt(2), reciprocals are sparser than float32."""
    rng, storage = np.random.default_rng(0), Storage("bitlinear")
    gammas = rng.uniform(1, 2, 4000).astype(np.float32)
    lost = [g for g in gammas if gamma_of(weight_scale_of(g, storage), storage) != g]
    assert 0.15 < len(lost) / len(gammas) < 0.19
    assert min(lost) > 1.414


def test_bfloat16_scales_of_published_files_come_back():
    """All 2**12 positive bfloat16 numbers around 1, through gamma and back."""
    storage = Storage("bitlinear")
    scales = (np.arange(0x3C00, 0x4C00, dtype=np.uint32) << 16).view(np.float32)
    assert all(weight_scale_of(gamma_of(s, storage), storage) == s for s in scales)


@pytest.mark.parametrize("way", ["bitlinear", "offline", "online"])
def test_the_product_is_that_of_every_linear_class(way):
    """gamma z / s in whichever order: within the rounding of the published order's sums."""
    rng = np.random.default_rng(1)
    codes = rng.integers(-1, 2, (48, 96)).astype(np.int8)
    x, gamma = rng.standard_normal((16, 96)).astype(np.float32), np.float32(0.0317)
    ours = ternary_matmul(x, TernaryMatrix.from_codes(codes, gamma))
    theirs = published_linear(x, codes, gamma, WAYS[way])
    bound = 4 * 2.0**-23 * gamma * np.abs(x).sum(axis=-1, keepdims=True)
    if way == "bitlinear":
        bound = 3 * np.spacing(np.abs(ours))
    assert (np.abs(ours - theirs) <= bound).all()
    assert np.abs(theirs).max() > 0.1


def test_the_published_product_without_a_configuration_is_a_float_product():
    """x (gamma codes)^T, nothing rounded to int8."""
    x = np.float32([[0.3, 2.0]])
    np.testing.assert_array_equal(
        published_linear(x, np.int8([[1, -1]]), 2.0, WAYS["float"]), x @ np.float32([[2], [-2]])
    )


# --- the configuration -------------------------------------------------------------------------


@pytest.mark.parametrize("storage", WAYS.values())
def test_a_configuration_comes_back(storage, tmp_path):
    """read(write(config, storage)) = config, storage."""
    config = replace(CONFIG, tied=False, rms_eps=1e-6, bos=None)
    (tmp_path / "config.json").write_text(config_json(config, storage, "float32"))
    assert read_config(tmp_path / "config.json") == (config, storage)


def test_the_published_configuration_is_understood(tmp_path):
    """Fields as microsoft/bitnet-b1.58-2B-4T has them, before transformers 5 moved rope_theta."""
    fields = {
        "architectures": ["BitNetForCausalLM"], "bos_token_id": 128000, "eos_token_id": 128001,
        "hidden_act": "relu2", "hidden_size": 2560, "initializer_range": 0.02,
        "intermediate_size": 6912, "max_position_embeddings": 4096, "model_type": "bitnet",
        "rms_norm_eps": 1e-05, "num_attention_heads": 20, "num_hidden_layers": 30,
        "num_key_value_heads": 5, "rope_theta": 500000.0, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 128256,
        "quantization_config": {
            "quant_method": "bitnet", "linear_class": "autobitlinear",
            "quantization_mode": "offline",
        },
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    assert read_config(path) == (PUBLISHED_2B_4T, Storage("autobitlinear", "offline"))
    path.write_text(json.dumps(fields | {"quantization_config": {"quant_method": "bitnet"}}))
    assert read_config(path)[1] == Storage("bitlinear")
    path.write_text(json.dumps(fields | {"num_key_value_heads": None, "eos_token_id": [7, 9]}))
    assert read_config(path)[0].kv_heads == 20
    assert read_config(path)[0].eos == (7, 9)


def test_a_theta_beside_the_sizes_holds_where_rope_parameters_have_none(folder):
    """As transformers has it: theirs, else that of the configuration, else the published one."""
    default = {"rope_type": "default"}
    for rope, beside, expected in (
        ({**default, "rope_theta": 7.0}, 9.0, 7.0), (default, 9.0, 9.0), (default, None, 500_000.0),
        ({"type": "default"}, 9.0, 9.0),
    ):  # fmt: skip
        reconfigure(folder, rope_parameters=rope, rope_theta=beside)
        assert read_config(folder / "config.json")[0].rope_theta == expected


def test_the_published_configuration_has_its_number_of_parameters():
    """2,412,820,480, embeddings counted once."""
    shapes = param_shapes(PUBLISHED_2B_4T)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 2_412_820_480


BAD_CONFIGS = {
    "another model": (
        {"model_type": "gemma"}, 'model_type must be "bitnet" or "llama" or "qwen3", got \'gemma\'',
    ),
    "no model": ({"model_type": None}, "no model_type"),
    "another activation": ({"hidden_act": "silu"}, 'hidden_act must be "relu2", got \'silu\''),
    "biases": ({"attention_bias": True}, "attention_bias must be false"),
    "scaled positions": ({"rope_scaling": {"factor": 2}}, "rope_scaling must be null"),
    "other positions": ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'default'"),
    "no positions": ({"rope_parameters": [1]}, "rope_type 'default'"),
    "other positions, as of old": (
        {"rope_parameters": {"type": "linear", "factor": 2}}, "rope_type 'default', .*got .*linear",
    ),
    "positions scaled as of old": (
        {"rope_scaling": {"type": "yarn", "factor": 1}}, "rope_scaling must be null .*got .*yarn",
    ),
    "part of a head turned": (
        {"rope_scaling": {"type": "linear", "factor": 1}, "partial_rotary_factor": 0.5},
        "rope_scaling must be null",
    ),
    "positions scaled from a shorter text": (
        {"rope_parameters": {"rope_type": "dynamic", "original_max_position_embeddings": 16}},
        "rope_parameters must be null",
    ),
    "positions by layer": (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "an object 'full_attention'",
    ),
    "theta beyond float32": ({"rope_parameters": {"rope_theta": 1e299}}, "rope_theta must be"),
    "eps below float32": ({"rms_norm_eps": 1e-60}, "rms_eps must be above 0 .* in float32"),
    "theta of text": ({"rope_parameters": {"rope_theta": "5e5"}}, "rope_theta must be a real"),
    "theta 0": ({"rope_parameters": {"rope_theta": 0}}, "rope_theta must lie in"),
    "a huge theta": ({"rope_parameters": {"rope_theta": 10**400}}, "an integer of 401 digits"),
    "no size": ({"hidden_size": None}, "hidden_size must be an integer, got None"),
    "a negative size": ({"vocab_size": -40}, r"vocab_size must lie in \[1, 2.*, got -40"),
    "a size of 0": ({"intermediate_size": 0}, "intermediate_size must lie in"),
    "a fraction": ({"hidden_size": 32.0}, "hidden_size must be an integer, got 32.0"),
    "a truth": ({"num_hidden_layers": True}, "num_hidden_layers must be an integer"),
    "a huge size": ({"vocab_size": 2**40}, "vocab_size must lie in"),
    "many layers": ({"num_hidden_layers": 10**9}, r"num_hidden_layers must lie in \[1, 4096\]"),
    "heads that do not fit": ({"num_attention_heads": 5}, "hidden_size must be heads times"),
    "groups that do not fit": ({"num_key_value_heads": 3}, "kv_heads must divide heads"),
    "wide heads": ({"head_dim": 16}, "head_dim must be hidden_size / num_attention_heads, got 16"),
    "a head_dim of text": ({"head_dim": "8" * 99}, "head_dim must be"),
    "a huge token": ({"eos_token_id": [3, 2**31]}, "eos must lie in"),
    "a token of text": ({"bos_token_id": "<s>"}, "bos_token_id must be an integer"),
    "no token in a list": ({"eos_token_id": ["a"]}, "eos_token_id must be an integer"),
    "tied to a number": ({"tie_word_embeddings": 1}, "tie_word_embeddings must be False or True"),
    "eps 0": ({"rms_norm_eps": 0}, "rms_norm_eps must lie in"),
    "eps infinite": ({"rms_norm_eps": 1e999}, "Infinity is no JSON number"),
    "another method": ({"quantization_config": {"quant_method": "gptq"}}, 'must be "bitnet"'),
    "no method": ({"quantization_config": {"linear_class": "bitlinear"}}, "name its quant_method"),
    "no object": ({"quantization_config": "bitnet"}, "must name its quant_method, got 'bitnet'"),
    "another class": (
        {"quantization_config": {"quant_method": "bitnet", "linear_class": ["x"]}},
        "linear_class must be",
    ),
    "another mode": (
        {"quantization_config": {"quant_method": "bitnet", "quantization_mode": "never"}},
        "quantization_mode must be",
    ),
    "norms inside, of another eps": (
        {"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True}},
        "rms_norm_eps of quantization_config must be that of .* norms, 1e-05, got 1e-06",
    ),
    "norms inside, of no eps": (
        {"quantization_config": {
            "quant_method": "bitnet", "use_rms_norm": True, "rms_norm_eps": None,
        }},
        "rms_norm_eps of quantization_config must be a real number, got None",
    ),
    "some float layers": (
        {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["q_proj"]}},
        r"modules_to_not_convert must be null, or name .* no projection, got \['q_proj'\]",
    ),
    "a quantised head": (
        {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": []}},
        r"modules_to_not_convert must be null, or name 'lm_head' .*, got \[\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_configuration_of_another_block_is_refused(case, folder):
    """What the file says and this block has not is never ignored; the field is named."""
    changes, message = BAD_CONFIGS[case]
    reconfigure(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_bitnet(folder)
    assert caught.value.file == str(folder / "config.json")
    assert isinstance(caught.value, ValueError)


def test_a_configuration_of_text_that_is_no_json_is_refused_by_byte(folder):
    """Cut, doubled, no object, no UTF-8, too deep, too long."""
    path = folder / "config.json"
    text = path.read_bytes()
    for damaged, message, offset in (
        (text[:100], "no JSON", 100),
        (b'{"a": 1,\n "\xc3\xa9": }', "no JSON: Expecting value", 16),
        (b'{"a": 1, "b": {"c": 2, "c": 2}}', "'c' is named twice", 23),
        (b"[1, 2]", "a JSON list, no object", 0),
        (b'{"a": "\xff"}', "no UTF-8", 7),
        (b'{"a": NaN}', "NaN is no JSON number", 6),
        (b'{"a": ' + b"[" * 200_000, "nested over 64 deep", 69),
        (b'{"a": ' + b"9" * 5000 + b"}", "an integer of 5000 digits", 6),
        (b"{" + b" " * 2**20, "the most is 1048576", None),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_bitnet(folder)
        assert caught.value.offset == offset
    path.unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: there is no such file"):
        load_bitnet(folder)


# --- damage ------------------------------------------------------------------------------------

FULL = np.linspace(-1, 1, 48 * 32, dtype=np.float32).reshape(48, 32)
LOST = {
    "a missing tensor": ({NORM: None}, NORM, "is missing"),
    "a missing scale": ({f"{UP}_scale": None}, f"{UP}_scale", "is missing"),
    "an unexpected tensor": ({"x": as_tensor(FULL)}, "x", "is not expected by the configuration"),
    "a narrow head beside a tied embedding": (
        {"lm_head.weight": as_tensor(np.ones((40, 31), np.float32))}, "lm_head.weight",
        r"expected floats of shape \(40, 32\)",
    ),
    "latent weights in a packed slot": (
        {UP: as_tensor(FULL)}, UP,
        r"expected U8 \(12, 32\) \(four rows per byte\), got F32 \(48, 32\): latent weights",
    ),
    "unpacked codes": (
        {UP: ("I8", (48, 32), bytes(48 * 32))}, UP, r"expected U8 \(12, 32\).*got I8 \(48, 32\) \(",
    ),
    "packed rows of another matrix": (
        {UP: as_tensor(np.ones((13, 32), np.uint8))}, UP, r"expected U8 \(12, 32\).*got U8 \(13",
    ),
    "a vector for a matrix": (
        {UP: as_tensor(np.ones(384, np.uint8))}, UP, r"expected U8 \(12, 32\).*got U8 \(384,\)",
    ),
    "a long norm": ({NORM: as_tensor(np.ones(33, np.float32))}, NORM, r"of shape \(32,\), got F32"),
    "a norm of doubles beyond float32": (
        {NORM: as_tensor(np.full(32, 1e39))}, NORM, "must be finite, got inf",
    ),
    "a bias": (
        {"model.layers.0.self_attn.q_proj.bias": as_tensor(np.ones(32, np.float32))},
        "model.layers.0.self_attn.q_proj.bias", "is not expected by the configuration",
    ),
    "a norm of integers": ({NORM: ("I32", (32,), bytes(128))}, NORM, "got I32"),
    "a norm of NaN": (
        {NORM: as_tensor(np.where(np.arange(32) == 3, np.nan, 1).astype(np.float32))}, NORM,
        "must be finite, got nan",
    ),
    "all-zero weights": (
        {UP: as_tensor(to_hf(np.zeros((48, 32), np.int8)))}, UP, "holds only zeros",
    ),
    "the 2-bit code 3": (
        {UP: as_tensor(np.where(np.arange(384) == 77, 0xC5, 0).astype(np.uint8).reshape(12, 32))},
        UP, "holds the 2-bit code 3 in byte 0xc5",
    ),
    "a scale of 0": ({f"{UP}_scale": as_tensor(np.float32([0]))}, f"{UP}_scale", "above 0, got 0"),
    "a negative scale": (
        {f"{UP}_scale": as_tensor(np.float32([-2]))}, f"{UP}_scale", r"above 0, got -2\.0",
    ),
    "a scale whose reciprocal is infinite": (
        {f"{UP}_scale": as_tensor(np.float32([1e-45]))}, f"{UP}_scale", r"above 0, got 1\.4",
    ),
    "an infinite scale": (
        {f"{UP}_scale": as_tensor(np.float32([np.inf]))}, f"{UP}_scale", "finite, got inf",
    ),
    "two scales": (
        {f"{UP}_scale": as_tensor(np.float32([1, 1]))}, f"{UP}_scale", r"floats of shape \(1,\)",
    ),
    "a scale of bytes": (
        {f"{UP}_scale": as_tensor(np.uint8([1]))}, f"{UP}_scale", r"floats of shape \(1,\), got U8",
    ),
    "a small vocabulary": (
        {"model.embed_tokens.weight": as_tensor(np.ones((39, 32), np.uint16))},
        "model.embed_tokens.weight", r"of shape \(40, 32\), got BF16 \(39, 32\)",
    ),
    "an embedding of NaN": (
        {EMBED: as_tensor(np.where(np.arange(1280) == 70, 0xFFC0, 1).astype("u2").reshape(40, 32))},
        EMBED, "must be finite, got nan",
    ),
    "an infinite embedding": (
        {EMBED: as_tensor(np.where(np.arange(1280) == 70, 0xFF80, 1).astype("u2").reshape(40, 32))},
        EMBED, "must be finite, got -inf",
    ),
    "an embedding of zeros": (
        {EMBED: as_tensor(np.zeros((40, 32), np.uint16))}, EMBED, "holds only zeros",
    ),
}  # fmt: skip
BYTES = {  # where in its tensor the damage begins, where that is not the first byte
    "a norm of NaN": 12,
    "the 2-bit code 3": 77,
    "an embedding of NaN": 140,
    "an infinite embedding": 140,
}


@pytest.mark.parametrize("case", LOST)
def test_a_tensor_that_does_not_fit_is_refused(case, folder):
    """The error names the file, the tensor, the byte, what came and what was expected."""
    changes, name, message = LOST[case]
    retensor(folder, **changes)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=message) as caught:
        load_bitnet(folder)
    error = caught.value
    assert error.tensor == name
    assert f"tensor '{name}'" in str(error)
    if "missing" in str(error):
        assert error.file == str(folder)
    else:
        assert error.file == str(folder / "model.safetensors")
    if error.offset is not None:
        header, data = raw(folder / "model.safetensors")
        begin = len(before) - len(data) + header[name]["data_offsets"][0]
        assert error.offset == begin + BYTES.get(case, 0)
        assert f"(byte {error.offset})" in str(error)
    else:
        assert "missing" in message or "expected" in message
    assert (folder / "model.safetensors").read_bytes() == before


def test_every_2_bit_code_3_of_a_file_is_found(folder):
    """Any byte, any of its four places."""
    rng = np.random.default_rng(0)
    for digit in range(4):
        packed = to_hf(rng.integers(-1, 2, (48, 32)).astype(np.int8))
        at = int(rng.integers(packed.size))
        packed.reshape(-1)[at] |= 3 << 2 * digit
        retensor(folder, **{UP: as_tensor(packed)})
        with pytest.raises(CheckpointError, match="2-bit code 3"):
            load_bitnet(folder)


def test_latent_weights_are_told_from_ternary_floats(tmp_path):
    """Floats may stand in autobitlinear offline if each is -1, 0 or 1; the first other is named."""
    folder = save(float_model(), tmp_path / "model", "offline")
    floats = np.ones((48, 32), np.float32)
    floats[1, 3] = 0.99
    retensor(folder, **{UP: as_tensor(floats)})
    with pytest.raises(CheckpointError, match=r"got 0\.99.*: latent weights in a") as caught:
        load_bitnet(folder)
    header, data = raw(folder / "model.safetensors")
    size = (folder / "model.safetensors").stat().st_size
    begin = size - len(data) + header[UP]["data_offsets"][0]
    assert caught.value.offset == begin + 4 * (32 + 3)
    retensor(folder, **{UP: as_tensor(np.zeros((48, 32), np.float32))})
    with pytest.raises(CheckpointError, match="holds only zeros"):
        load_bitnet(folder)


@pytest.mark.parametrize("way", ["online", "float"])
def test_master_weights_must_be_floats_finite_and_not_all_zero(way, tmp_path):
    """Packed bytes without a configuration of how are refused, as are zeros and infinities."""
    folder = save(float_model(), tmp_path / "model", way)
    for array, message in (
        (np.zeros((12, 32), np.uint8), r"floats of shape \(48, 32\), got U8 \(12, 32\): packed"),
        (np.zeros((48, 32), np.float32), "holds only zeros"),
        (np.full((48, 32), -np.inf, np.float32), "must be finite, got -inf"),
    ):
        retensor(folder, **{UP: as_tensor(array)})
        with pytest.raises(CheckpointError, match=message) as caught:
            load_bitnet(folder)
        assert caught.value.tensor == UP


def test_a_cut_file_is_refused_wherever_it_is_cut(folder):
    """Every length below the whole: the header or the tensors do not fit."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in (*range(0, 12), 1000, *range(len(whole) - 9, len(whole))):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: .*byte"):
            load_bitnet(folder)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match=rf"end at byte {len(whole)}, the file at"):
        load_bitnet(folder)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    """One tensor of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "no JSON": (b"{", "no JSON"),
    "a list": (b"[]", "a JSON list, no object"),
    "a name twice": (b'{"a": 1, "a": 2}', "'a' is named twice"),
    "a field twice": (b'{"a": {"dtype": "F32", "dtype": "U8"}}', "'dtype' is named twice"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, "__metadata__ must map names to strings"),
    "metadata of text": ({"__metadata__": "pt"}, "__metadata__ must map names to strings"),
    "an entry of text": ({"a": "F32"}, "'a': must have .* got 'F32'"),
    "a field too few": ({"a": {"dtype": "F32", "shape": [2]}}, "'a': must have"),
    "a field too many": ({"a": entry() | {"stride": 1}}, "'a': must have"),
    "an unknown type": ({"a": entry("F8")}, "dtype must be one of BOOL, .*got 'F8'"),
    "a type of lists": ({"a": entry(["F32"])}, "dtype must be one of"),
    "a negative shape": ({"a": entry(shape=(-2,))}, r"sizes, got \[-2\]"),
    "a negative pair": ({"a": entry(shape=(-1, -2))}, r"sizes, got \[-1, -2\]"),
    "a fraction": ({"a": entry(shape=(2.0,))}, r"sizes, got \[2.0\]"),
    "a truth": ({"a": entry(shape=(True, 2))}, "sizes, got"),
    "a huge shape": ({"a": entry(shape=(2**63, 2**63))}, "sizes, got"),
    "a large shape": ({"a": entry(shape=(2**40, 2**40))}, "takes .* bytes, its data_offsets hold"),
    "many axes": ({"a": entry(shape=(1,) * 7 + (2, 1))}, "at most 8 sizes"),
    "a shape of text": ({"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}}, "sizes"),
    "offsets reversed": ({"a": entry(offsets=(8, 0))}, r"must be \[begin, end\], got \[8, 0\]"),
    "offsets below 0": ({"a": entry(offsets=(-8, 0))}, r"must be \[begin, end\]"),
    "three offsets": ({"a": entry(offsets=(0, 4, 8))}, r"must be \[begin, end\]"),
    "offsets beyond": ({"a": entry(shape=(4,), offsets=(0, 16))}, "ends at byte .* but the file"),
    "offsets far beyond": ({"a": entry(offsets=(2**47, 2**47 + 8))}, "ends at byte"),
    "a size that differs": ({"a": entry(shape=(3,))}, r"shape \[3\] takes 12 bytes, .* hold 8"),
    "a size that is less": ({"a": entry(shape=(1,))}, r"shape \[1\] takes 4 bytes, .* hold 8"),
    "an overlap": (
        {"a": entry(shape=(1,), offsets=(0, 4)), "b": entry()}, "overlaps|the tensors end",
    ),
    "a gap": ({"a": entry("U8", (4,), (4, 8))}, "leaves a gap after the header"),
    "a gap between": (
        {"a": entry("U8", (2,), (0, 2)), "b": entry("U8", (4,), (4, 8))}, "gap after 'a'",
    ),
    "bytes of nobody": ({"a": entry("U8", (4,), (0, 4))}, "the tensors end at byte"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_the_file_does_not_bear_out_is_refused(case, tmp_path):
    """Eight bytes of data, and a header that says something else of them."""
    header, message = HEADERS[case]
    path = tmp_path / "x.safetensors"
    put(path, header, bytes(8))
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert caught.value.file == str(path)


def test_a_fault_of_a_header_is_named_by_its_byte_of_the_file(tmp_path):
    """Text begins at byte 8, data right after it: offsets count from the first byte of all."""
    path = tmp_path / "x.safetensors"
    gap = {"a": entry("U8", (4,), (4, 8))}
    for header, byte in (
        (b'{"a": 1, "a": 2}', 8 + 9),
        ({"__metadata__": {"a": 1}}, 8),
        (gap, 8 + len(json.dumps(gap)) + 4),
    ):
        put(path, header, bytes(8))
        with pytest.raises(CheckpointError, match=rf"\(byte {byte}\)") as caught:
            SafetensorsFile(path)
        assert caught.value.offset == byte


def test_a_header_may_end_where_the_file_ends_and_no_later(tmp_path):
    """The bound is the file's size without the length itself, to the byte."""
    path = tmp_path / "x.safetensors"
    put(path, b"{}", b"")
    assert SafetensorsFile(path).tensors == {}
    path.write_bytes((3).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="a header of 3 bytes, but 2 follow"):
        SafetensorsFile(path)


def test_overlapping_tensors_are_refused_by_name_and_byte(tmp_path):
    """The later one is named, with the byte where it begins too early."""
    path = tmp_path / "x.safetensors"
    header = {"a": entry("U8", (6,), (0, 6)), "b": entry("U8", (4,), (4, 8))}
    put(path, header, bytes(8))
    with pytest.raises(CheckpointError, match="'b': overlaps 'a', which ends at") as caught:
        SafetensorsFile(path)
    assert caught.value.offset == 8 + len(json.dumps(header)) + 4


def test_a_huge_header_is_refused_before_it_is_read(tmp_path):
    """A length beyond the limit, or beyond the file: nothing of that size is made."""
    path = tmp_path / "x.safetensors"
    for length, message in (
        (2**63 - 1, f"a header of {2**63 - 1} bytes; the most is {MOST_HEADER}"),
        (MOST_HEADER + 1, "the most is"),
        (MOST_HEADER, f"a header of {MOST_HEADER} bytes, but 2 follow"),
        (3, "a header of 3 bytes, but 2 follow"),
    ):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        tracemalloc.start()
        with pytest.raises(CheckpointError, match=message) as caught:
            SafetensorsFile(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert caught.value.offset == 0
        assert peak < 100_000


def fuzzed(rng, text):
    """A header with a few bytes, numbers or words changed."""
    text = bytearray(text)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(text)))
        match int(rng.integers(6)):
            case 0:
                text[at] = int(rng.integers(256))
            case 1:
                del text[at : at + int(rng.integers(1, 20))]
            case 2:
                text[at:at] = bytes(rng.integers(32, 127, int(rng.integers(1, 9)), np.uint8))
            case 3:
                text[at:at] = text[at : at + int(rng.integers(1, 200))]
            case 4:
                numbers = list(re.finditer(rb"\d+", text))
                number = numbers[int(rng.integers(len(numbers)))]
                value = [b"0", b"-1", b"1e9", b"9" * 30, b"4294967296", b"null", b'"8"', b"[]"]
                text[slice(*number.span())] = value[int(rng.integers(len(value)))]
            case 5:
                text[at] ^= 1 << int(rng.integers(8))
        if not text:
            return b"{}"
    return bytes(text)


def test_a_thousand_fuzzed_headers_give_errors_and_take_no_memory(folder):
    """Each is read, or refused by a CheckpointError, in little memory."""
    rng = np.random.default_rng(0)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    text, data = whole[8 : 8 + length], whole[8 + length :]
    small = path.with_name("fuzzed.safetensors")
    messages = []
    tracemalloc.start()
    for i in range(1000):
        header = fuzzed(rng, text)
        said = len(header) if i % 10 else int(rng.integers(2**63)) >> int(rng.integers(63))
        small.write_bytes(struct.pack("<Q", said) + header + data)
        try:
            for name in SafetensorsFile(small).tensors:
                assert isinstance(name, str)
        except CheckpointError as error:
            messages.append(str(error))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(messages) > 900
    assert all(str(small) in message for message in messages)
    assert max(map(len, messages)) < len(str(small)) + 1000
    assert peak < 1_000_000


def test_a_hundred_fuzzed_configurations_give_errors_or_models(folder):
    """Whatever a config.json says, load_bitnet returns a model or raises a CheckpointError."""
    rng = np.random.default_rng(1)
    text = (folder / "config.json").read_bytes()
    refused = 0
    for _ in range(100):
        (folder / "config.json").write_bytes(fuzzed(rng, text))
        try:
            assert isinstance(load_bitnet(folder), BitNetModel)
        except CheckpointError:
            refused += 1
    assert refused > 50


def test_a_hostile_name_is_shown_short_and_escaped(tmp_path):
    """A name of a thousand letters with a terminal's escape in it."""
    path = tmp_path / "x.safetensors"
    put(path, {"\x1b[31m" + "n" * 1000: "F32"}, bytes(8))
    with pytest.raises(CheckpointError, match=r"x1b\[31mnnn") as caught:
        SafetensorsFile(path)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300


# --- directories -------------------------------------------------------------------------------


def shards(folder, cut=7):
    """Cut a checkpoint's tensors into two files with an index, and return the index."""
    path = folder / "model.safetensors"
    header, data = raw(path)
    header.pop("__metadata__")
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"metadata": {"total_size": len(data)}, "weight_map": {}}
    for i, shard in enumerate(names):
        part = list(header)[:cut] if i == 0 else list(header)[cut:]
        mine, content = {}, b""
        for name in part:
            begin, end = header[name]["data_offsets"]
            offsets = [len(content), len(content) + end - begin]
            mine[name] = header[name] | {"data_offsets": offsets}
            content += data[begin:end]
            index["weight_map"][name] = shard
        put(folder / shard, mine, content)
    path.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards_are_one_model(folder):
    """Two files and an index: the same parameters."""
    before = load_bitnet(folder)
    shards(folder)
    after = load_bitnet(folder)
    assert_same(before, after)


def test_an_index_must_say_what_the_shards_hold(folder):
    """A tensor too many, one too few, one that lies elsewhere, a shard that is missing."""
    index = shards(folder)
    path = folder / "model.safetensors.index.json"
    first, second = sorted(set(index["weight_map"].values()))
    some = next(name for name, shard in index["weight_map"].items() if shard == first)
    for weight_map, message, where in (
        (index["weight_map"] | {"extra": first}, "'extra': is not here", first),
        (index["weight_map"] | {some: second}, f"'{some}': is not in the index", first),
        (index["weight_map"] | {some: "gone.safetensors"}, "no such file", "gone.safetensors"),
        ({}, "is missing", ""),
        ([], "weight_map must map", path.name),
        ({"a": 1}, "weight_map must map", path.name),
    ):
        path.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message) as caught:
            load_bitnet(folder)
        assert caught.value.file == str(folder / where)
    path.write_bytes(b'{"weight_map": ' + b" " * 2**24)
    with pytest.raises(CheckpointError, match="the most is 16777216"):
        load_bitnet(folder)


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "..\\x.safetensors",
     "C:x.safetensors", "x\0.safetensors", ".safetensors", "~/x.safetensors",
     "x.safetensors\n", "x.bin", "x.pt", "", "x" * 300 + ".safetensors"],
)  # fmt: skip
def test_path_tricks_of_an_index_are_refused(name, folder):
    """A shard is a plain name of this directory that ends in .safetensors."""
    index = shards(folder)
    weight_map = dict.fromkeys(index["weight_map"], name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"no plain file name|not a \.safetensors file"):
        load_bitnet(folder)


def link(path, to):
    """Make a link, or skip where there are none."""
    try:
        path.symlink_to(to)
    except OSError:
        pytest.skip("no symbolic links here")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_out_of_the_directory_is_not_followed(name, folder, tmp_path):
    """To a file elsewhere, however it got there; within the directory, it is followed."""
    (folder / name).rename(tmp_path / name)
    link(folder / name, tmp_path / name)
    with pytest.raises(CheckpointError, match=f"'{name}' is a link out of the directory"):
        load_bitnet(folder)
    (folder / name).unlink()
    (tmp_path / name).rename(folder / f"real-{name}")
    link(folder / name, f"real-{name}")
    assert isinstance(load_bitnet(folder), BitNetModel)


def test_a_directory_of_the_hugging_face_cache_is_read(folder, tmp_path):
    """snapshots/REVISION holds links into blobs, and into nothing else."""
    cache = tmp_path / "models--a--b"
    snapshot, blobs = cache / "snapshots" / "0123", cache / "blobs"
    for directory in (snapshot, blobs):
        directory.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(blobs / f"hash-of-{name}")
        link(snapshot / name, f"../../blobs/hash-of-{name}")
    assert isinstance(load_bitnet(snapshot), BitNetModel)
    link(tmp_path / "latest", snapshot)
    assert isinstance(load_bitnet(tmp_path / "latest"), BitNetModel)
    (tmp_path / "other.safetensors").write_bytes(b"")
    link(snapshot / "other.safetensors", "../../../other.safetensors")
    with pytest.raises(CheckpointError, match="is a link out of the directory"):
        inside(snapshot, "other.safetensors")


def test_pickled_weights_are_never_opened(folder, tmp_path):
    """A pickle beside config.json does not run, and the error says why it was left alone."""

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor model\.saf"):
        load_bitnet(folder)
    for name in ("pytorch_model.bin", "model.pt"):
        (folder / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(CheckpointError, match=f"pickled weights .*{name}.* never opened"):
            load_bitnet(folder)
        (folder / name).unlink()
    assert not (tmp_path / "ran").exists()


def test_what_is_no_directory_or_no_file_is_refused(folder, tmp_path):
    """A file for the directory, a directory for the file, nothing at all."""
    with pytest.raises(CheckpointError, match="there is no such directory"):
        load_bitnet(folder / "config.json")
    with pytest.raises(CheckpointError, match="there is no such directory"):
        load_bitnet(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is no file"):
        load_bitnet(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", INDEX, SHARD])
def test_pipes_folders_and_links_in_place_of_a_file_are_refused_at_once(name, folder):
    """A pipe without a writer would be waited for; a link may lead to nothing, or to itself."""
    if name in (INDEX, SHARD):
        shards(folder)
    path = folder / name
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=f"{name}: is no file"):
        load_bitnet(folder)
    path.rmdir()
    for target, message in ((name, "link to itself|link to nothing"), ("no", "link to nothing")):
        link(path, target)
        with pytest.raises(CheckpointError, match=message):
            load_bitnet(folder)
        path.unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(path)
        with pytest.raises(CheckpointError, match=f"{name}: is no file"):
            load_bitnet(folder)


def test_a_file_that_grew_while_it_was_opened_is_refused(folder, monkeypatch):
    """Between the look at its size and the map, a download may have gone on."""
    path, map_file = folder / "model.safetensors", mmap.mmap

    def grow(*args, **kwargs):
        with path.open("ab") as file:
            file.write(b"more")
        return map_file(*args, **kwargs)

    monkeypatch.setattr(mmap, "mmap", grow)
    with pytest.raises(CheckpointError, match=r"had \d+ bytes, and now \d+: it is being written"):
        load_bitnet(folder)


# --- safetensors -------------------------------------------------------------------------------


def test_a_file_worked_by_hand_is_read_and_written(tmp_path):
    """Every byte: the length 120, the header with 5 spaces, two bfloat16 numbers, three bytes."""
    text = (
        b'{"__metadata__":{"format":"pt"},'
        b'"b":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},'
        b'"a":{"dtype":"U8","shape":[3,1],"data_offsets":[4,7]}}'
    )
    text += b" " * (-len(text) % 8)
    by_hand = bytes([len(text)]) + bytes(7) + text + b"\x80\x3f\x00\xc0" + b"\x07\x08\x09"
    path = tmp_path / "x.safetensors"
    path.write_bytes(by_hand)
    file = SafetensorsFile(path)
    np.testing.assert_array_equal(file.array("b"), np.uint16([0x3F80, 0xC000]))  # 1, -2
    np.testing.assert_array_equal(file.array("a"), np.uint8([[7], [8], [9]]))
    assert file.tensors["b"].begin == 8 + len(text)
    arrays = {"a": np.uint8([[7], [8], [9]]), "b": np.uint16([0x3F80, 0xC000])}
    write_safetensors(
        tmp_path / "y.safetensors",
        {"a": ("U8", (3, 1)), "b": ("BF16", (2,))},
        lambda name: [arrays[name]],
    )
    assert (tmp_path / "y.safetensors").read_bytes() == by_hand


def test_the_bytes_are_those_of_the_safetensors_package(tmp_path):
    """What we write is what it writes, and it reads what we write: all types but bfloat16."""
    numpy = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    arrays = {
        f"{name}.weight": rng.integers(0, 2, shape).astype(dtype)
        for name, dtype in DTYPES.items()
        if name != "BF16"
        for shape in [(3, 5)]
    } | {"scalar": np.array(2, np.float32), "empty": np.zeros((0, 3), np.uint8)}
    names = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}
    specs = {name: (names[array.dtype], array.shape) for name, array in arrays.items()}
    write_safetensors(tmp_path / "ours", specs, lambda name: [arrays[name]])
    numpy.save_file(arrays, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    file = SafetensorsFile(tmp_path / "theirs")
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.array(name), array)
        file.release(name)
        np.testing.assert_array_equal(file.array(name), array)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    """Pieces that do not add up leave nothing behind, and no file is written over."""
    path = tmp_path / "x.safetensors"
    for pieces in ([np.zeros(3, np.uint8)], [np.zeros(5, np.uint8)], []):
        with pytest.raises(ValueError, match=f"'a' takes 4 bytes, got {sum(map(len, pieces))}"):
            write_safetensors(path, {"a": ("U8", (4,))}, lambda _, pieces=pieces: pieces)
        assert not list(tmp_path.iterdir())
    halves = [np.arange(2, dtype=np.uint8), np.arange(4, dtype=np.uint8)[::2]]
    write_safetensors(path, {"a": ("U8", (4,))}, lambda _: halves)
    np.testing.assert_array_equal(SafetensorsFile(path).array("a"), [0, 1, 0, 2])
    with pytest.raises(FileExistsError, match="exists; nothing was changed"):
        write_safetensors(path, {"a": ("U8", (4,))}, lambda _: halves)


def test_released_pages_leave_memory(tmp_path):
    """Resident memory falls by the tensor that was read and let go."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("only Linux tells")

    def resident():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    path, size = tmp_path / "x.safetensors", 1 << 24
    write_safetensors(path, {"a": ("U8", (size,))}, lambda _: [np.ones(size, np.uint8)])
    file = SafetensorsFile(path)
    before = resident()
    assert file.array("a").sum() == size
    growth = resident() - before
    file.release("a")
    assert growth > 0.9 * size
    assert resident() - before < 0.2 * size
    assert file.array("a")[-1] == 1


# --- writing -----------------------------------------------------------------------------------


def test_a_checkpoint_is_never_written_over(folder):
    """Not by a model, not by a random one, and not where only shards lie."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for write in (
        lambda: save(float_model(seed=1), folder),
        lambda: random_checkpoint(folder, CONFIG),
    ):
        with pytest.raises(FileExistsError, match="holds a checkpoint"):
            write()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "config.json").unlink()
    with pytest.raises(FileExistsError, match="holds a checkpoint"):
        save(float_model(), folder)


def test_what_cannot_be_read_back_is_not_written(tmp_path):
    """Zeros, scales, rows, sub-norms, masters that are lost, and classes that do not exist."""
    model = float_model()
    packed = pack_params(model.params)
    name = "layers.0.mlp.up_proj"
    codes = packed[name].codes()

    def with_matrix(matrix):
        return BitNetModel(CONFIG, packed | {name: matrix})

    tries = [
        (with_matrix(TernaryMatrix.from_codes(0 * codes)), {}, f"{name} must not be all zeros"),
        (with_matrix(TernaryMatrix.from_codes(codes, 0.0)), {}, "must have a scale above 0, got 0"),
        (with_matrix(TernaryMatrix.from_codes(codes, -1.0)), {}, "a scale above 0, got -1"),
        (with_matrix(TernaryMatrix.from_codes(codes, 1e-45)), {}, r"a scale above 0, got 1\.4"),
        (BitNetModel(CONFIG, packed),
         {"linear_class": "autobitlinear", "quantization_mode": "online"},
         "must be float to be written as master weights"),
        (BitNetModel(CONFIG, packed), {"linear_class": None}, "must be float to be written"),
        (model, {"linear_class": None}, "this model does not multiply by float_linear.*'online'"),
        (model, {"linear_class": "linear"}, "linear_class must be"),
        (model, {"quantization_mode": "never"}, "quantization_mode must be"),
        (model, {"quantization_mode": "online"}, "quantization_mode must be"),
        (BitNetModel(CONFIG, packed | {"norm": np.full(32, 1e300)}), {}, "norm must be .* got inf"),
        (BitNetModel(CONFIG, packed | {"embed_tokens": np.full((40, 32), 0x7FC0, np.uint16)}), {},
         r"embed_tokens must be finite, got the bits 0x7fc0 at \(0, 0\)"),
        (BitNetModel(CONFIG, packed | {"embed_tokens": np.zeros((40, 32), np.float32)}), {},
         "embed_tokens must not be all zeros"),
        (float_model(replace(CONFIG, sub_norms=False)), {}, "config must have sub_norms"),
        (float_model(replace(CONFIG, hidden_size=24, kv_heads=1)), {}, "k_proj.* has 6 rows"),
    ]  # fmt: skip
    for i, (bad, how, message) in enumerate(tries):
        with pytest.raises(ValueError, match=message):
            save_bitnet(bad, tmp_path / str(i), **how)
        assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_a_random_checkpoint_is_that_of_its_seed(linear_class, tmp_path):
    """Same seed, same bytes; another seed, others; even codes, and scales that keep the size."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        random_checkpoint(tmp_path / name, CONFIG, seed=seed, linear_class=linear_class)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    model = load_bitnet(tmp_path / "a")
    assert model.config == CONFIG
    assert model.params["embed_tokens"].dtype == np.uint16
    codes = np.concatenate(
        [p.codes().ravel() for p in model.params.values() if isinstance(p, TernaryMatrix)]
    )
    for value in (-1, 0, 1):
        assert 0.31 < np.mean(codes == value) < 0.36
    scale = model.params["layers.0.mlp.up_proj"].scale
    np.testing.assert_allclose(scale, np.sqrt(1.5 / 32), rtol=2**-8)
    assert np.isfinite(model.logits(TOKENS)).all()
    assert 0.05 < model.logits(TOKENS).std() < 1


def test_a_random_checkpoint_refuses_what_no_file_holds(tmp_path):
    """As saving does: rows, sub-norms, classes."""
    for config, how, message in (
        (replace(CONFIG, hidden_size=24, kv_heads=1), {}, "has 6 rows"),
        (replace(CONFIG, sub_norms=False), {}, "sub_norms"),
        (CONFIG, {"linear_class": "linear"}, "linear_class must be"),
    ):
        with pytest.raises(ValueError, match=message):
            random_checkpoint(tmp_path / "x", config, **how)
        assert not list(tmp_path.glob("*/*"))


def test_packed_weights_are_never_expanded_and_embeddings_never_copied(tmp_path):
    """At its peak, loading holds the packed weights, once, and a few rows: no int8, no head."""
    code = """if True:
        import sys, tracemalloc
        from minibit import kernels
        from minibit.checkpoint import load_bitnet, random_checkpoint
        from minibit.transformer import BitNetConfig
        config = BitNetConfig(8000, 512, 1024, layers=6, heads=8, kv_heads=4, max_positions=64)
        tracemalloc.start()
        random_checkpoint(sys.argv[1], config)
        _, written = tracemalloc.get_traced_memory()
        load_bitnet(sys.argv[1])  # compiles
        peaks = []
        for _ in range(3):  # a table of Python's own may double while one of them loads
            tracemalloc.clear_traces()
            tracemalloc.reset_peak()
            model = load_bitnet(sys.argv[1])
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.clear_traces()
        peak = min(peaks)
        packed = sum(p.nbytes for n, p in model.params.items() if n.endswith("_proj"))
        print(written, peak, packed, model.params["embed_tokens"].nbytes, kernels.compiled())
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")],
        capture_output=True,
        text=True,
        check=True,
    )
    *sizes, compiled = done.stdout.split()
    written, peak, packed, head = map(int, sizes)
    largest = 512 * 1024  # weights of a matrix
    assert packed == 6 * (2 * 512 * 512 + 2 * 256 * 512 + 3 * largest) / 4
    assert peak < packed + (largest if compiled == "True" else 12 * largest)
    assert peak < head
    assert written < 40e6 < 4 * packed * 4 + 2 * head


def test_the_layout_of_a_saved_matrix_is_hugging_faces(folder):
    """The file's bytes, unpacked by the reference, are the model's codes."""
    header, data = raw(folder / "model.safetensors")
    model = load_bitnet(folder)
    for name, param in tensor_names(CONFIG, WAYS["bitlinear"]).items():
        if header[name]["dtype"] == "U8":
            packed = np.frombuffer(data[slice(*header[name]["data_offsets"])], np.uint8)
            matrix = model.params[param]
            n_out, n_in = matrix.shape
            codes = from_hf(packed.reshape(-1, n_in), n_out)
            np.testing.assert_array_equal(codes, matrix.codes())


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_any_ternary_matrix_comes_back_from_a_file(tmp_path_factory, seed):
    """Codes and gamma, in the class that keeps gamma itself."""
    rng = np.random.default_rng(seed)
    params = pack_params(float_model().params)
    name = "layers.1.self_attn.v_proj"
    codes = rng.integers(-1, 2, (16, 32)).astype(np.int8)
    codes[0, 0] = 1
    params[name] = TernaryMatrix.from_codes(codes, np.float32(rng.uniform(1e-3, 10)))
    folder = tmp_path_factory.mktemp("any")
    assert_equal(
        load_bitnet(save(BitNetModel(CONFIG, params), folder, "offline")).params[name], params[name]
    )


HARMLESS = {  # what transformers computes the same logits with
    "plain positions": {"rope_scaling": {"rope_type": "default"}},
    "no scaling": {"rope_scaling": {}},
    "scaled by 1": {"rope_scaling": {"type": "linear", "factor": 1.0}},
    "scaled beyond the longest text": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "scaled by 1, as of late": {
        "rope_parameters": {"rope_type": "linear", "factor": 1, "rope_theta": 5e5}
    },
    "a part that plain positions ignore": {"partial_rotary_factor": 0.5},
    "tokens below 0": {"bos_token_id": -1, "eos_token_id": [3, -1]},
    "no end": {"eos_token_id": -1},
    "modules that have no product": {
        "quantization_config": {
            "quant_method": "bitnet", "linear_class": "autobitlinear",
            "quantization_mode": "online",
            "modules_to_not_convert": ["lm_head", "model.embed_tokens", "norm"],
        }
    },
    "no number of positions": {"max_position_embeddings": None},
}  # fmt: skip


@pytest.mark.parametrize("case", HARMLESS)
def test_what_changes_no_logit_is_not_refused(case, tmp_path):
    """The configuration is read, and the logits stay; see the peers' tests for transformers."""
    folder = save(float_model(), tmp_path / "model", "online")
    expected = load_bitnet(folder)
    reconfigure(folder, **HARMLESS[case])
    model = load_bitnet(folder)
    np.testing.assert_array_equal(model.logits(TOKENS), expected.logits(TOKENS))
    ends = {"tokens below 0": (3,), "no end": ()}
    assert model.config.ends == ends.get(case, (2,))
    assert model.config.bos == (None if case == "tokens below 0" else 1)
    assert model.config.max_positions == (2048 if case == "no number of positions" else 64)


def test_the_theta_of_rope_scaling_comes_first(folder):
    """As transformers has it: where rope_scaling says anything, rope_parameters are not read."""
    scaling = {"rope_type": "default", "rope_theta": 7.0}
    reconfigure(folder, rope_scaling=scaling, rope_parameters={"rope_type": "yarn", "factor": 8})
    assert read_config(folder / "config.json")[0].rope_theta == 7.0


def test_heads_that_are_left_out_are_those_of_transformers(folder):
    """20 heads, 5 of keys and values: its defaults, which no tensor shows."""
    path = folder / "config.json"
    reconfigure(folder, hidden_size=160, num_attention_heads=None, num_key_value_heads=None)
    config, _ = read_config(path)
    assert (config.heads, config.kv_heads) == (20, 5)


OTHER_TENSORS = {  # how a file may hold the same model
    "doubles": lambda tensors: {
        name: as_tensor(np.frombuffer(data, "<f4").astype(np.float64).reshape(shape))
        for name, (_, shape, data) in tensors.items()
    },
    "angles of positions": lambda tensors: {
        f"model.{prefix}rotary_emb.inv_freq": as_tensor(np.ones(4, np.float32))
        for prefix in ("", "layers.0.self_attn.")
    },
    "a layer too many": lambda tensors: {
        name.replace("layers.1", "layers.2"): tensor for name, tensor in tensors.items()
    },
    "no class of a head": lambda tensors: dict.fromkeys(tensors) | {
        name.removeprefix("model."): tensor for name, tensor in tensors.items()
    },
    "the head alone": lambda tensors: {EMBED: None, "lm_head.weight": tensors[EMBED]},
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_TENSORS)
def test_other_ways_to_hold_a_model_are_read(case, tmp_path):
    """Each gives the parameters of the model as it was saved, bit for bit."""
    folder = save(float_model(), tmp_path / "model", "float")
    expected = load_bitnet(folder)
    header, data = raw(folder / "model.safetensors")
    tensors = {
        name: (e["dtype"], tuple(e["shape"]), data[slice(*e["data_offsets"])])
        for name, e in header.items()
        if name != "__metadata__"
    }
    retensor(folder, **OTHER_TENSORS[case](tensors))
    assert_same(load_bitnet(folder), expected)


@pytest.mark.parametrize("equal", [True, False])
def test_a_head_beside_a_tied_embedding_is_used_where_it_differs(tmp_path, equal):
    """A whole state dict holds both: an equal head is the embedding, another is the head."""
    config = BitNetConfig(40, 64, 64, layers=1, heads=4, kv_heads=2, max_positions=64)
    model = BitNetModel(config, init_params(config, 0))
    save_bitnet(model, tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    file = SafetensorsFile(path)
    arrays = {n: (t.dtype, t.shape, np.array(file.array(n))) for n, t in file.tensors.items()}
    kind, shape, table = arrays["model.embed_tokens.weight"]
    arrays["lm_head.weight"] = kind, shape, table if equal else table[::-1].copy()
    path.unlink()
    write_safetensors(path, {n: a[:2] for n, a in arrays.items()}, lambda n: [arrays[n][2]])
    loaded = load_bitnet(tmp_path / "a")
    assert loaded.config.tied == equal
    logits = load_bitnet(tmp_path / "a").logits([[1, 2]])
    expected = model.logits([[1, 2]])
    np.testing.assert_allclose(
        logits, expected if equal else expected[..., ::-1], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"\x80\x02}q\x00" + bytes(60), "pickle"),
        (b"GGUF" + bytes(60), "a GGUF file"),
    ],
    ids=str,
)
def test_what_lies_in_the_place_of_a_checkpoint_is_said(tmp_path, content, told):
    """Pointers, pages, archives and pickles: the error says what the file begins with."""
    for path, read in (
        (tmp_path / "x.safetensors", SafetensorsFile),
        (tmp_path / "x.gguf", load_gguf),
    ):
        path.write_bytes(content)
        if told == "a GGUF file" and read is load_gguf:
            continue
        with pytest.raises(CheckpointError, match=f"begins with.*{told}"):
            read(path)
    config = tmp_path / "config.json"
    config.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"begins with.*{told}"):
        load_bitnet(tmp_path)
