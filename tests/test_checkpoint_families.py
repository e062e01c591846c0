"""Directories of Llama and Qwen3 as laws: what is ternary is found, what is not is named."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit.base import to_bfloat16, widen
from minibit.checkpoint import CheckpointError, load_bitnet, random_checkpoint, save_bitnet
from minibit.checkpoint.hf.config import Storage, read_config
from minibit.checkpoint.safetensors import SafetensorsFile, write_safetensors
from minibit.checkpoint.ternary_floats import GROUPS, NotTernaryError, find_ternary
from minibit.ternary import TernaryMatrix
from minibit.transformer import (
    BitNetConfig,
    BitNetModel,
    Decoder,
    RopeScaling,
    float_linear,
    init_params,
    param_shapes,
)
from model_files import WAYS, assert_same, model_with_gains, save

LLAMA = BitNetConfig(
    40, 64, 96, 2, 4, 2, 64, 5e5, family="llama", own_head_dim=24, tied=False, bos=1, eos=(2, 3)
)
QWEN3 = replace(LLAMA, family="qwen3", tied=True, rms_eps=1e-6, own_head_dim=32)
FAMILIES = {"llama": LLAMA, "qwen3": QWEN3}
each_family = pytest.mark.parametrize("family", FAMILIES)
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 9))
PROJECTION = "layers.1.mlp.down_proj"  # of 96 columns: groups of 32 alone


def ternary_model(config, group=None, seed=0):
    """Ternary projections that float activations meet, with scales of float16."""
    rng = np.random.default_rng(seed)
    params = dict(model_with_gains(config, seed).params)
    for name, (n_out, *n_in) in param_shapes(config).items():
        if name.endswith("_proj"):
            width = n_in[0] if group is None or n_in[0] % group else group
            shape = (n_out, n_in[0] // width) if group and width < n_in[0] else ()
            scale = np.float32(rng.uniform(0.1, 0.3, shape).astype(np.float16))
            codes = rng.integers(-1, 2, (n_out, n_in[0]))
            codes[:, :: max(n_in[0] // 8, 1)] = 1  # no group of zeros
            params[name] = TernaryMatrix.from_codes(codes, scale)
    return BitNetModel(config, params, float_linear)


def rewrite(folder, change):
    """Write the tensors of a directory anew, as arrays that `change` has changed in place."""
    path = folder / "model.safetensors"
    file = SafetensorsFile(path)
    arrays = {name: np.array(file.array(name)) for name in file.tensors}
    types = {name: tensor.dtype for name, tensor in file.tensors.items()}
    change(arrays, types)
    path.unlink()
    specs = {name: (types[name], array.shape) for name, array in arrays.items()}
    write_safetensors(path, specs, lambda name: [arrays[name]])


def reconfigure(folder, **changes):
    """Change fields of a configuration; None removes one."""
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


# --- codes and scales in plain floats ----------------------------------------------------------


@given(st.data())
def test_the_codes_and_the_widest_groups_are_found_exactly(data):
    """find(s c) = c, s: the product to the bit, in groups at least as wide as those drawn."""
    group = data.draw(st.sampled_from(GROUPS))
    n_in = group * data.draw(st.integers(1, 3)) if group > 32 else 32 * data.draw(st.integers(1, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    n_out = data.draw(st.integers(1, 5))
    codes = rng.integers(-1, 2, (n_out, n_in)).astype(np.int8)
    codes[0, 0] = 1
    distinct = data.draw(st.integers(1, 3))  # few scales: wider groups often fit
    scales = rng.choice(np.float32([0.3, 0.02, 7])[:distinct], (n_out, n_in // group))
    weights = codes * np.repeat(scales, group, axis=1)
    bits = data.draw(st.booleans())
    found, scale = find_ternary(to_bfloat16(weights) if bits else weights)
    np.testing.assert_array_equal(found, codes)
    matrix = TernaryMatrix.from_codes(found, scale)
    expected = widen(to_bfloat16(weights)) if bits else weights
    np.testing.assert_array_equal(matrix.rows(), expected)
    assert matrix.group is None or matrix.group >= group
    used = scales[np.abs(codes).reshape(n_out, -1, group).any(axis=-1)]
    assert (matrix.group is None) == (len(set(used.tolist())) == 1)


@pytest.mark.parametrize("width", [64, 128, 256])
def test_a_wider_group_is_told_from_two_narrow_ones_by_hand(width):
    """Two halves of one magnitude are one group, a half of zeros says nothing."""
    weights = np.zeros((2, 2 * width), np.float32)
    weights[0, ::5], weights[1, : width // 2 : 3] = 0.5, -0.25
    weights[1, width:] = 2
    _, scales = find_ternary(weights)
    np.testing.assert_array_equal(scales, [[0.5, 0.5], [0.25, 2]])
    weights[1, width // 2] = 0.5
    _, scales = find_ternary(weights)
    assert scales.shape == (2, 4)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 40), (6, 95)])
def test_the_first_weight_that_is_not_ternary_is_named(row, column):
    """Its value, its place, what its group has; and a later one has no say."""
    weights = ternary_model(LLAMA).params[PROJECTION].rows()[:7]
    weights[row, column] = 0.01
    weights[6, 95] = 0.02
    with pytest.raises(NotTernaryError, match=rf"0.0[12] at \({row}, {column}\), and") as caught:
        find_ternary(weights)
    assert caught.value.place == row * 96 + column


def test_a_matrix_that_no_group_divides_has_one_scale_or_is_refused():
    """48 columns: rows of two magnitudes are no format that there is."""
    weights = np.ones((3, 48), np.float32)
    codes, scale = find_ternary(-weights)
    assert (codes == -1).all()
    assert scale == 1
    weights[1] = 2
    with pytest.raises(NotTernaryError, match="row 0 has the magnitude 1, another row 2") as caught:
        find_ternary(weights)
    assert caught.value.place == 0


# --- directories -------------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("group", [None, 32, 64])
def test_plain_floats_come_back_as_the_codes_and_scales_that_they_were(family, group, tmp_path):
    """Configuration, codes, scales and all else, and the logits: float activations stay floats."""
    model = ternary_model(FAMILIES[family], group)
    save_bitnet(model, tmp_path / "a", linear_class=None)
    again = load_bitnet(tmp_path / "a")
    assert_same(again, model)
    assert again.linear is float_linear
    np.testing.assert_array_equal(again.logits(TOKENS), model.logits(TOKENS))
    save_bitnet(again, tmp_path / "b", linear_class=None)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@each_family
@pytest.mark.parametrize("way", ["bitlinear", "offline", "online"])
@pytest.mark.parametrize("norms", [False, True])
def test_linear_classes_come_back(family, way, norms, tmp_path):
    """int8 activations, and a norm before each projection: as BitNet's own directories."""
    config = replace(FAMILIES[family], projection_norms=norms)
    model = model_with_gains(config, 1)
    again = load_bitnet(save(model, tmp_path / "model", way))
    assert again.config == config
    if way == "online":
        assert_same(again, model)
        return
    assert {type(w) for n, w in again.params.items() if n.endswith("_proj")} == {TernaryMatrix}
    save_bitnet(again, tmp_path / "again", linear_class=WAYS[way].linear_class)
    assert_same(load_bitnet(tmp_path / "again"), again)
    text = [5, 6, 7]
    decoder = Decoder(again)
    decoder.append(text)
    np.testing.assert_allclose(
        decoder.logits(), again.logits([text])[0, -1], atol=1e-5 * np.abs(decoder.logits()).max()
    )


def test_floats_are_stored_in_the_smallest_type_that_holds_their_scales(tmp_path):
    """bfloat16 for scales of 8 bits, float16 for scales of 11, float32 else."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, (64, 96))
    for scale, dtype in ((0.375, "BF16"), (float(np.float16(0.3)), "F16"), (0.3, "F32")):
        model = ternary_model(LLAMA)
        packed = TernaryMatrix.from_codes(codes, scale)
        folder = tmp_path / dtype
        params = dict(model.params) | {PROJECTION: packed}
        save_bitnet(BitNetModel(LLAMA, params, float_linear), folder, linear_class=None)
        file = SafetensorsFile(folder / "model.safetensors")
        assert file.tensors[f"model.{PROJECTION}.weight"].dtype == dtype
        assert load_bitnet(folder).params[PROJECTION].scale == np.float32(scale)


def test_packed_embeddings_are_written_as_the_floats_that_they_stand_for(tmp_path):
    """Of a model from a file that has them packed; the head too."""
    model = ternary_model(LLAMA, 32)
    rng = np.random.default_rng(1)
    for name in ("embed_tokens", "lm_head"):
        scale = np.float32([0.25, 0.5])[rng.integers(0, 2, (40, 2))]
        model.params[name] = TernaryMatrix.from_codes(rng.integers(-1, 2, (40, 64)), scale)
    save_bitnet(model, tmp_path / "a", linear_class=None)
    again = load_bitnet(tmp_path / "a")
    assert again.params["lm_head"].dtype == np.uint16
    logits = model.logits(TOKENS)
    np.testing.assert_allclose(again.logits(TOKENS), logits, atol=1e-5 * np.abs(logits).max())


@each_family
def test_latent_weights_are_refused_by_tensor_place_and_byte(family, tmp_path):
    """Of a float model nothing is rounded to ternary in silence."""
    save_bitnet(ternary_model(FAMILIES[family], 32), tmp_path / "a", linear_class=None)
    name = f"model.{PROJECTION}.weight"

    def change(arrays, types):
        arrays[name] = arrays[name].astype(np.float32)
        arrays[name][5, 50] *= np.float32(1.25)
        types[name] = "F32"

    rewrite(tmp_path / "a", change)
    with pytest.raises(CheckpointError, match=r"no ternary weights: .* among its 32") as caught:
        load_bitnet(tmp_path / "a")
    tensor = SafetensorsFile(tmp_path / "a" / "model.safetensors").tensors[name]
    row, column = 5, caught.value.offset // 4 - tensor.begin // 4 - 5 * 96
    assert caught.value.tensor == name
    assert 32 <= column < 64
    assert f"({row}, {column})" in str(caught.value)


@pytest.mark.parametrize(
    ("number", "message"),
    [(np.nan, "must be finite, got nan"), (np.inf, "must be finite, got inf"), (0, "only zeros")],
)
def test_floats_that_are_none_are_refused(number, message, tmp_path):
    """A matrix of NaN, of infinities, of zeros."""
    save_bitnet(ternary_model(LLAMA), tmp_path / "a", linear_class=None)

    def change(arrays, types):
        arrays[f"model.{PROJECTION}.weight"][:] = number
        types[f"model.{PROJECTION}.weight"] = "F16"

    rewrite(tmp_path / "a", change)
    with pytest.raises(CheckpointError, match=message):
        load_bitnet(tmp_path / "a")


def test_a_model_in_shards_is_read_whole(tmp_path):
    """Three files and an index, as the published ones of more than 5 GB."""
    model = ternary_model(QWEN3, 32)
    save_bitnet(model, tmp_path / "a", linear_class=None)
    path = tmp_path / "a" / "model.safetensors"
    file = SafetensorsFile(path)
    places = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(file.tensors)}
    for shard in sorted(set(places.values())):
        names = [name for name, place in places.items() if place == shard]
        specs = {name: (file.tensors[name].dtype, file.tensors[name].shape) for name in names}
        write_safetensors(tmp_path / "a" / shard, specs, lambda name: [file.array(name)])
    path.unlink()
    (tmp_path / "a" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert_same(load_bitnet(tmp_path / "a"), model)


def test_what_transformers_would_compute_otherwise_is_not_written(tmp_path):
    """Groups in a class of one scale, float activations in a class of int8 ones, latent floats."""
    llama, packed = ternary_model(LLAMA, 32), ternary_model(LLAMA)
    latent = BitNetModel(LLAMA, init_params(LLAMA, 0), float_linear)
    norms = BitNetModel(
        config := replace(LLAMA, projection_norms=True), init_params(config, 0), float_linear
    )
    uneven = replace(LLAMA, heads=6)
    for model, linear_class, message in (
        (llama, "bitlinear", "q_proj is stored as floats, .* one scale, got groups of 32"),
        (packed, "autobitlinear", "takes int8 activations, and float_linear does not"),
        (replace(packed, linear=None), None, "must be float to be written as master weights"),
        (latent, None, "_proj has no ternary weights: .* among its 32 columns"),
        (norms, None, "config must have no projection_norms"),
        (BitNetModel(uneven, init_params(uneven, 0)), "bitlinear", "heads that divide hidden_size"),
        (
            BitNetModel(
                wide := replace(LLAMA, family="bitnet", sub_norms=True), init_params(wide, 0)
            ),
            "bitlinear",
            "heads of hidden_size / heads",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            save_bitnet(model, tmp_path / "none", linear_class=linear_class)
        assert not (tmp_path / "none").exists() or not list((tmp_path / "none").iterdir())


@each_family
def test_random_checkpoints_are_of_any_family(family, tmp_path):
    """Packed ones, as for BitNet."""
    random_checkpoint(tmp_path / "a", FAMILIES[family], linear_class="autobitlinear")
    model = load_bitnet(tmp_path / "a")
    assert model.config == FAMILIES[family]
    assert np.isfinite(model.logits(TOKENS)).all()


# --- configurations ----------------------------------------------------------------------------

LLAMA3_8B = {  # HF1BitLLM/Llama3-8B-1.58-100B-tokens
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 8192,
    "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_cache": True, "vocab_size": 128256,
    "quantization_config": {"modules_to_not_convert": None, "quant_method": "bitnet"},
}  # fmt: skip
QWEN3_8B = {  # the sizes of Qwen/Qwen3-8B
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 12288,
    "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3",
    "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip


def test_published_configurations_are_understood(tmp_path):
    """Fields as the model cards' files have them."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA3_8B))
    config, storage = read_config(path)
    sizes = (128256, 4096, 14336, 32, 32, 8, 8192)
    assert config == BitNetConfig(
        *sizes, 5e5, 1e-5, tied=False, bos=128000, eos=128001, family="llama"
    )
    assert storage == Storage("bitlinear")
    path.write_text(json.dumps(QWEN3_8B))
    config, storage = read_config(path)
    assert (config.family, config.head_dim, config.own_head_dim) == ("qwen3", 128, None)
    assert storage == Storage(None)
    assert sum(int(np.prod(shape)) for shape in param_shapes(config).values()) == 8_190_735_360


def test_fields_that_are_left_out_are_those_of_transformers(tmp_path):
    """By family: heads, key heads, their width, positions, eps, theta."""
    path = tmp_path / "config.json"
    sizes = {"vocab_size": 9, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1}
    path.write_text(json.dumps(sizes | {"model_type": "llama"}))
    expected = BitNetConfig(
        9, 64, 8, 1, 32, 32, 2048, rope_theta=1e4, rms_eps=1e-6, tied=False, family="llama"
    )
    assert read_config(path)[0] == expected
    path.write_text(json.dumps(sizes | {"model_type": "qwen3"}))
    others = {"family": "qwen3", "own_head_dim": 128, "max_positions": 32768}
    assert read_config(path)[0] == replace(expected, **others)


LLAMA3 = {  # as in Llama 3.1, for a shorter text
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
BAD_FIELDS = {
    "llama": {
        "biases": ({"attention_bias": True}, "attention_bias must be false"),
        "biases of the unit": ({"mlp_bias": True}, "mlp_bias must be false"),
        "another activation": ({"hidden_act": "relu2"}, 'hidden_act must be "silu" or "swish"'),
        "other positions": (
            {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}},
            "rope_scaling must be null or of rope_type 'default', .* or 'llama3', got .*yarn",
        ),
        "positions of Llama 3.1 and more": (
            {"rope_scaling": LLAMA3 | {"attention_factor": 2}},
            "rope_type 'llama3' must not come with 'attention_factor'",
        ),
        "a part of them": (
            {"rope_scaling": LLAMA3, "partial_rotary_factor": 0.5},
            "must not come with partial_rotary_factor 0.5",
        ),
        "no factor": (
            {"rope_scaling": LLAMA3 | {"factor": None}}, "factor must be a real number, got None",
        ),
        "a factor below 1": ({"rope_scaling": LLAMA3 | {"factor": 0.5}}, "factor must lie in"),
        "low above high": (
            {"rope_scaling": LLAMA3 | {"low_freq_factor": 4}}, r"rope_scaling.high must lie in \(4",
        ),
        "an odd width": ({"head_dim": 7}, r"own_head_dim must be even"),
        "no width": ({"head_dim": "8"}, "head_dim must be an integer"),
    },
    "qwen3": {
        "biases": ({"attention_bias": True}, "attention_bias must be false"),
        "a window": ({"use_sliding_window": True}, "use_sliding_window must be false"),
        "layers of two types": (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types must be all full_attention, got",
        ),
        "another method": ({"quantization_config": {"quant_method": "awq"}}, 'must be "bitnet"'),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "case"), [(family, case) for family in FAMILIES for case in BAD_FIELDS[family]]
)
def test_what_a_block_has_not_is_refused_by_name(family, case, tmp_path):
    """Never ignored."""
    save_bitnet(ternary_model(FAMILIES[family]), tmp_path / "a", linear_class=None)
    changes, message = BAD_FIELDS[family][case]
    reconfigure(tmp_path / "a", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_bitnet(tmp_path / "a")


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_positions_of_llama_3_1_are_read_and_come_back(name, tmp_path):
    """By either name; the original positions are those of the model if they are left out."""
    save_bitnet(ternary_model(LLAMA), tmp_path / "a", linear_class=None)
    reconfigure(tmp_path / "a", **{"rope_parameters": None, name: LLAMA3 | {"rope_theta": 5e5}})
    model = load_bitnet(tmp_path / "a")
    assert model.config == replace(LLAMA, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32))
    save_bitnet(model, tmp_path / "b", linear_class=None)
    assert_same(load_bitnet(tmp_path / "b"), model)
    left_out = {k: v for k, v in LLAMA3.items() if not k.startswith("original")}
    reconfigure(tmp_path / "a", **{name: left_out})
    assert load_bitnet(tmp_path / "a").config.rope_scaling == RopeScaling(original=64)


@each_family
def test_what_changes_no_logit_is_read(family, tmp_path):
    """A window that is not used, layers of the one type, a name of SiLU, dropouts."""
    save_bitnet(ternary_model(FAMILIES[family]), tmp_path / "a", linear_class=None)
    expected = load_bitnet(tmp_path / "a")
    reconfigure(
        tmp_path / "a",
        hidden_act="swish",
        attention_dropout=0.1,
        use_sliding_window=False,
        sliding_window=4096,
        layer_types=["full_attention"] * 2,
        pretraining_tp=1,
    )
    assert_same(load_bitnet(tmp_path / "a"), expected)


@each_family
def test_fuzzed_configurations_give_errors_or_models(family, tmp_path):
    """200 of them, with fields of any kind: an error of ours, or a model."""
    save_bitnet(ternary_model(FAMILIES[family]), tmp_path / "a", linear_class=None)
    path = tmp_path / "a" / "config.json"
    fields = json.loads(path.read_text())
    rng = np.random.default_rng(0)
    strange = [None, True, -1, 0, 3, 2**40, 1e-30, 0.5, "x", [], {}, [1, "a"], {"rope_type": 3}]
    strange += [LLAMA3, LLAMA3 | {"factor": "8"}, {"quant_method": "bitnet", "use_rms_norm": True}]
    names = [*fields, "rope_scaling", "quantization_config", "layer_types", "use_sliding_window"]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(200):
        changed = {rng.choice(names): strange[rng.integers(len(strange))] for _ in range(2)}
        path.write_text(json.dumps(fields | changed))
        try:
            load_bitnet(tmp_path / "a")
        except CheckpointError:  # no other error is ours
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
    assert min(outcomes.values()) > 5, outcomes
