"""GGUF files of Llama and Qwen3: scales of groups, reordered rows, what is refused by name."""

import dataclasses

import numpy as np
import pytest

from minibit.base import to_bfloat16
from minibit.checkpoint import CheckpointError, load_gguf, save_gguf
from minibit.checkpoint.gguf.container import open_gguf
from minibit.checkpoint.gguf.models import gguf_name
from minibit.checkpoint.gguf.writer import NewTensor, write_gguf
from minibit.ternary import TernaryMatrix, from_ptq1_0, from_q2_0, from_tq1_0, from_tq2_0, to_q2_0
from minibit.transformer import (
    BitNetConfig,
    BitNetModel,
    RopeScaling,
    float_linear,
    generate,
    init_params,
    param_shapes,
)
from model_files import assert_same

LLAMA = BitNetConfig(
    9, 256, 512, 2, 4, 2, 64, 5e5, family="llama", own_head_dim=128, tied=False, bos=1, eos=(2, 3)
)
QWEN3 = dataclasses.replace(LLAMA, family="qwen3", tied=True, rms_eps=1e-6)
FAMILIES = {"llama": LLAMA, "qwen3": QWEN3}
UNPACK = {  # by the words of `save_gguf`: weights of a block, and what reads it
    "q2_0": (64, from_q2_0),
    "pq2_0": (128, lambda packed: from_q2_0(packed, 128)),
    "ptq1_0": (128, from_ptq1_0),
    "tq2_0": (256, from_tq2_0),
    "tq1_0": (256, from_tq1_0),
}
each_family = pytest.mark.parametrize("family", FAMILIES)
each_kind = pytest.mark.parametrize("kind", UNPACK)
Q = "layers.0.self_attn.q_proj"
TOKENS = np.arange(20).reshape(2, 10) % 9


def model_of(config, group=None, seed=0, linear=None, packed_tables=False):
    """A random model with ternary projections, scales of float16, gains that are not 1."""
    rng = np.random.default_rng(seed)
    params = init_params(config, seed)
    for name, shape in param_shapes(config).items():
        table = name in ("embed_tokens", "lm_head")
        if len(shape) == 1:
            params[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif not table or packed_tables:
            scales = (shape[0], shape[1] // group) if group else ()
            scale = np.float32(rng.uniform(0.05, 0.1, scales).astype(np.float16))
            params[name] = TernaryMatrix.from_codes(rng.integers(-1, 2, shape), scale)
    return BitNetModel(config, params, linear)


def rewrite(path, entries=None, tensors=None, drop=()):
    """Write a file again with other entries or tensors: name -> (number, shape, bytes)."""
    file = open_gguf(path)
    kept = {name: (t.kind, t.shape, file.bytes_of(t).copy()) for name, t in file.tensors.items()}
    new = [
        NewTensor(name, kind, shape, lambda data=data: [data])
        for name, (kind, shape, data) in (kept | (tensors or {})).items()
        if name not in drop
    ]
    meta = {k: v for k, v in file.metadata.items() if v is not None and k not in drop}
    write_gguf(path, meta | (entries or {}), new, overwrite=True)
    return path


@pytest.fixture
def path(tmp_path):
    """A Q2_0 file of a small Llama with scales of groups."""
    save_gguf(model_of(LLAMA, 64), tmp_path / "m.gguf", "q2_0")
    return tmp_path / "m.gguf"


@each_family
@each_kind
@pytest.mark.parametrize("grouped", [False, True])
def test_what_is_written_is_read_back_bit_for_bit(family, kind, grouped, tmp_path):
    """Configuration, codes, the scales of blocks as groups, gains, embedding; so the logits."""
    model = model_of(FAMILIES[family], UNPACK[kind][0] if grouped else None)
    save_gguf(model, tmp_path / "m.gguf", kind)
    again = load_gguf(tmp_path / "m.gguf")
    assert_same(again, model)
    np.testing.assert_array_equal(again.logits(TOKENS), model.logits(TOKENS))
    assert open_gguf(tmp_path / "m.gguf").metadata["general.architecture"] == family


def test_i2_s_keeps_the_one_scale_of_a_llama(tmp_path):
    """bitnet.cpp's type, for Llama3-8B-1.58 and the like."""
    model = model_of(LLAMA)
    save_gguf(model, tmp_path / "m.gguf", "i2_s")
    assert_same(load_gguf(tmp_path / "m.gguf"), model)


@each_kind
def test_wide_groups_are_written_once_for_each_block(kind, tmp_path):
    """256 columns with one scale, in blocks of 64, 128 or 256: the same values."""
    model = model_of(QWEN3, 256)
    save_gguf(model, tmp_path / "m.gguf", kind)
    again = load_gguf(tmp_path / "m.gguf")
    for name, value in model.params.items():
        if isinstance(value, TernaryMatrix):
            assert again.params[name].group == UNPACK[kind][0]
            np.testing.assert_array_equal(again.params[name].rows(), value.rows())


@each_family
@each_kind
def test_rows_of_q_and_k_are_interleaved_for_llama_alone(family, kind, tmp_path):
    """By hand for heads of 128: rows 0, 64, 1, 65, .. of each head; scales go with their rows."""
    block, unpack = UNPACK[kind]
    model = model_of(FAMILIES[family], block)
    save_gguf(model, tmp_path / "m.gguf", kind)
    file = open_gguf(tmp_path / "m.gguf")
    pairs = [row for i in range(64) for row in (i, 64 + i)]
    for name, heads in (("q_proj", 4), ("k_proj", 2), ("v_proj", 2)):
        matrix = model.params[f"layers.1.self_attn.{name}"]
        tensor = file.tensors[f"blk.1.attn_{name[0]}.weight"]
        codes, scales = unpack(file.bytes_of(tensor).reshape(tensor.shape[0], -1))
        turned = family == "llama" and name != "v_proj"
        order = [
            128 * h + (row if turned else i) for h in range(heads) for i, row in enumerate(pairs)
        ]
        np.testing.assert_array_equal(codes, matrix.codes()[order])
        np.testing.assert_array_equal(scales, matrix.scale[order])


def test_projection_norms_have_names_of_their_own(tmp_path):
    """As bitnet.cpp's embedding models: attn_q_norm_in beside Qwen3's attn_q_norm."""
    config = dataclasses.replace(QWEN3, projection_norms=True)
    model = model_of(config)
    save_gguf(model, tmp_path / "m.gguf", "q2_0")
    assert_same(load_gguf(tmp_path / "m.gguf"), model)
    assert gguf_name(f"{Q}.rms_norm") == "blk.0.attn_q_norm_in.weight"
    assert gguf_name("layers.0.self_attn.q_norm") == "blk.0.attn_q_norm.weight"
    names = [gguf_name(name) for name in param_shapes(config)]
    assert len(set(names)) == len(names)


@each_family
@each_kind
def test_packed_embeddings_stay_packed(family, kind, tmp_path):
    """All matrices in one type, as in published files; tied or with a head of their own."""
    model = model_of(FAMILIES[family], UNPACK[kind][0], packed_tables=True)
    save_gguf(model, tmp_path / "m.gguf", kind)
    again = load_gguf(tmp_path / "m.gguf")
    assert_same(again, model)
    assert list(generate(again, [1, 2], 5)) == list(generate(model, [1, 2], 5))


@each_family
@pytest.mark.parametrize("number", [0, 1, 30])
@pytest.mark.parametrize("group", [None, 32])
def test_projections_stored_as_floats_are_found_exactly(family, number, group, tmp_path):
    """F32, F16 and BF16: one magnitude in a matrix, or in each group of a row."""
    config = FAMILIES[family]
    model = model_of(config, group)
    rng = np.random.default_rng(1)
    for name, value in model.params.items():
        if isinstance(value, TernaryMatrix):
            scale = rng.choice(np.float32([0.25, 0.375, 2]), np.shape(value.scale))
            model.params[name] = TernaryMatrix.from_codes(value.codes(), scale)
    save_gguf(model_of(config), tmp_path / "m.gguf", "q2_0")
    tensors = {}
    for name, value in model.params.items():
        floats = value.rows() if isinstance(value, TernaryMatrix) else np.asarray(value)
        if family == "llama" and name.endswith(("q_proj", "k_proj")):
            pairs = floats.reshape(-1, 2, 64, floats.shape[1])  # as llama.cpp's converter has it
            floats = pairs.swapaxes(1, 2).reshape(floats.shape)
        if name.endswith("_proj"):
            stored = {0: floats, 1: floats.astype(np.float16), 30: to_bfloat16(floats)}[number]
            tensors[gguf_name(name)] = number, floats.shape, stored
        else:
            tensors[gguf_name(name)] = 0, floats.shape, floats.astype("<f4")
    rewrite(tmp_path / "m.gguf", tensors=tensors)
    assert_same(load_gguf(tmp_path / "m.gguf"), model)


def test_a_file_says_if_activations_stay_floats(tmp_path):
    """float_linear comes back; a stranger's word is refused."""
    model = model_of(QWEN3, 64, linear=float_linear)
    save_gguf(model, tmp_path / "m.gguf", "q2_0")
    again = load_gguf(tmp_path / "m.gguf")
    assert again.linear is float_linear
    np.testing.assert_array_equal(again.logits(TOKENS), model.logits(TOKENS))
    rewrite(tmp_path / "m.gguf", drop=["minibit.activations"])
    assert load_gguf(tmp_path / "m.gguf").linear is None
    rewrite(tmp_path / "m.gguf", entries={"minibit.activations": "int4"})
    with pytest.raises(CheckpointError, match=r"has minibit.activations 'int4'"):
        load_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("scaling", [RopeScaling(), RopeScaling(32.0, 1.5, 3.0, 40)])
def test_positions_of_llama_3_1_are_a_table_of_divisors(scaling, tmp_path):
    """rope_freqs.weight: 1 for quick pairs, the factor for slow ones; in a Llama alone."""
    config = dataclasses.replace(LLAMA, rope_scaling=scaling)
    model = model_of(config)
    save_gguf(model, tmp_path / "m.gguf", "q2_0")
    file = open_gguf(tmp_path / "m.gguf")
    table = file.bytes_of(file.tensors["rope_freqs.weight"]).view("<f4")
    np.testing.assert_array_equal(table, scaling.divisors(128, 5e5))
    assert (table[0], table[-1]) == (1, scaling.factor)
    assert_same(load_gguf(tmp_path / "m.gguf"), model)
    rewrite(tmp_path / "m.gguf", drop=["minibit.rope_scaling"])
    if scaling == RopeScaling():
        assert_same(load_gguf(tmp_path / "m.gguf"), model)
    else:  # other constants, that no table tells
        with pytest.raises(CheckpointError, match="scales rotary frequencies in a way"):
            load_gguf(tmp_path / "m.gguf")
    for entry in ("[0]", "[1, 1, 1]", "[4, 1, 9]", "{", '["a", 2, 3]', "[1, 2, 3, 4, 5]", "7"):
        rewrite(tmp_path / "m.gguf", entries={"minibit.rope_scaling": entry})
        with pytest.raises(CheckpointError, match="scales rotary frequencies in a way"):
            load_gguf(tmp_path / "m.gguf")
    other = dataclasses.replace(QWEN3, rope_scaling=scaling)
    with pytest.raises(ValueError, match="config must have no rope_scaling"):
        save_gguf(model_of(other), tmp_path / "q.gguf", "q2_0")


def test_the_width_of_a_head_follows_from_the_sizes_if_it_is_left_out(tmp_path):
    """attention.key_length, as llama.cpp takes it."""
    config = dataclasses.replace(LLAMA, own_head_dim=None)
    save_gguf(model_of(config), tmp_path / "m.gguf", "q2_0")
    lengths = [f"llama.attention.{name}_length" for name in ("key", "value")]
    rewrite(tmp_path / "m.gguf", drop=[*lengths, "llama.rope.dimension_count"])
    assert load_gguf(tmp_path / "m.gguf").config == config


def test_a_number_of_two_meanings_is_read_by_its_size(tmp_path):
    """Type 42 in blocks of 128, as a fork wrote it before it had 142."""
    model = model_of(QWEN3, 128, packed_tables=True)
    save_gguf(model, tmp_path / "m.gguf", "pq2_0")
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    for tensor in open_gguf(tmp_path / "m.gguf").tensors.values():
        if tensor.kind == 142:
            at = content.index(tensor.name.encode()) + len(tensor.name) + 4 + 16
            assert content[at] == 142
            content[at] = 42
    (tmp_path / "fork.gguf").write_bytes(content)
    assert_same(load_gguf(tmp_path / "fork.gguf"), model)


# --- parts -------------------------------------------------------------------------------------


def split(path, folder, count=3):
    """Cut a file into parts as llama-gguf-split does: all metadata in the first."""
    file = open_gguf(path)
    names = list(file.tensors)
    for number in range(count):
        entries = {"split.no": number, "split.count": count, "split.tensors.count": len(names)}
        if not number:
            entries |= {k: v for k, v in file.metadata.items() if v is not None}
        tensors = [
            NewTensor(name, t.kind, t.shape, lambda tensor=t: [file.bytes_of(tensor)])
            for name, t in file.tensors.items()
            if names.index(name) % count == number
        ]
        write_gguf(folder / f"m-{number + 1:05}-of-{count:05}.gguf", entries, tensors)
    return sorted(folder.glob("m-*.gguf"))


@pytest.mark.parametrize("count", [2, 3, 31])
def test_a_split_file_is_read_whole_by_any_part(count, path, tmp_path):
    """The same model, also where parts hold no tensor."""
    expected = load_gguf(path)
    for part in split(path, tmp_path, count)[:: count // 2]:
        assert_same(load_gguf(part), expected)


def test_parts_that_are_not_those_of_one_file_are_refused(path, tmp_path):
    """Missing, renamed, of another file, doubled, too few; and damage names its part."""
    parts = split(path, tmp_path)
    whole = [part.read_bytes() for part in parts]

    def refused(message, part=parts[0]):
        with pytest.raises(CheckpointError, match=message) as caught:
            load_gguf(part)
        for name, content in zip(parts, whole, strict=True):
            name.write_bytes(content)
        return caught.value

    parts[1].unlink()
    refused("m-00002-of-00003.gguf.*no such file")
    parts[1].rename(tmp_path / "x.gguf")
    refused(
        "is a part of 3, which are found by names like NAME-00001-of-00003", tmp_path / "x.gguf"
    )
    parts[1].write_bytes(whole[2])
    refused("m-00002-of-00003.gguf: has split.no 2 and split.count 3, by its name they are 1 and 3")
    rewrite(parts[0], entries={"split.tensors.count": 99})
    refused(r"says that the parts hold 99 tensors, they hold \d+", parts[2])
    for entry in (1025, "3", 2.0):
        rewrite(parts[0], entries={"split.count": entry})
        refused("has split.count .*; at most 1024 parts are read")
    norm = {"output_norm.weight": (0, (256,), np.ones(256, "<f4"))}
    for part in parts[:2]:
        rewrite(part, tensors=norm)
    refused("output_norm.weight.*is in m-00001-of-00003.gguf, too")
    (part,) = (part for part in parts if "blk.1.attn_norm.weight" in open_gguf(part).tensors)
    rewrite(part, tensors={"blk.1.attn_norm.weight": (0, (256,), np.full(256, np.nan, "<f4"))})
    assert refused(r"blk.1.attn_norm.weight.*holds nan at 0").file == str(part)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"prism.hadamard.version": 1}, "has 'prism.hadamard.version': a rotation before products"),
        ({"prism.hadamard.weight_names": ["blk.0.attn_q.weight"]}, "'prism.hadamard.weight_names'"),
        ({"llama.attention.sliding_window": 4096}, "has llama.attention.sliding_window"),
        ({"llama.expert_count": 8}, "has llama.expert_count"),
        ({"llama.attention.causal": False}, "has llama.attention.causal"),
        ({"llama.attention.scale": 0.5}, "has llama.attention.scale"),
        ({"llama.logit_scale": 0.5}, "has llama.logit_scale"),
        ({"llama.hidden_activation": "relu2"}, "has the activation 'relu2'; silu is known here"),
        ({"llama.attention.key_length": 63}, "own_head_dim must be even"),
        ({"llama.attention.value_length": 64}, "has attention.value_length 64; heads of 128"),
        ({"llama.rope.dimension_count": 64}, "has rope.dimension_count 64; heads of 128"),
        ({"llama.rope.scaling.type": "yarn"}, "scaled rotary positions"),
        ({"llama.attention.key_length": "128"}, "needs one number as llama.attention.key_length"),
    ],
    ids=str,
)
def test_what_would_make_another_model_is_refused_by_name(entries, message, path):
    """Never ignored: fluent nonsense would come of it."""
    rewrite(path, entries=entries)
    with pytest.raises(CheckpointError, match=message):
        load_gguf(path)


def test_values_that_change_nothing_are_read(path):
    """As many programs write them."""
    expected = load_gguf(path)
    neutral = {
        "attention.sliding_window": 0, "expert_count": 0, "attention.causal": True,
        "attention.scale": 0.0, "logit_scale": 1.0, "hidden_activation": "silu",
    }  # fmt: skip
    rewrite(path, entries={f"llama.{key}": value for key, value in neutral.items()})
    assert_same(load_gguf(path), expected)


def test_biases_and_the_code_for_two_are_refused_by_name(path):
    """No tensor is left over, and +2 is never taken for +1."""
    whole = path.read_bytes()
    bias = {"blk.0.attn_q.bias": (0, (512,), np.ones(512, "<f4"))}
    rewrite(path, tensors=bias)
    with pytest.raises(CheckpointError, match=r"attn_q.bias.*is no part of a Llama"):
        load_gguf(path)
    path.write_bytes(whole)
    file = open_gguf(path)
    tensor = file.tensors["blk.0.ffn_up.weight"]
    packed = file.bytes_of(tensor).copy().reshape(512, 4, 18)
    packed[70, 1, 5] |= 0b11  # code 3 in a block of row 70
    rewrite(path, tensors={tensor.name: (42, tensor.shape, packed)})
    with pytest.raises(CheckpointError, match=r"in rows 68 to 71: .*code 3") as caught:
        load_gguf(path)
    begin = open_gguf(path).tensors[tensor.name].offset
    assert caught.value.offset == begin + 68 * 72


def test_latent_floats_are_refused_by_their_first_place(path):
    """Row, column, byte."""
    tensor = open_gguf(path).tensors["blk.0.ffn_up.weight"]
    floats = np.ones(tensor.shape, "<f4")
    floats[3, 40] = 0.5
    rewrite(path, tensors={tensor.name: (0, tensor.shape, floats)})
    with pytest.raises(CheckpointError, match=r"no ternary weights: 0.5 at \(3, 40\)") as caught:
        load_gguf(path)
    begin = open_gguf(path).tensors[tensor.name].offset
    assert caught.value.offset == begin + 4 * (3 * 256 + 40)


@pytest.mark.parametrize(
    ("group", "kind", "message"),
    [
        (32, "q2_0", "a block of 64 columns has one scale there, and each 32 columns here"),
        (64, "ptq1_0", "a block of 128 columns has one scale there"),
        (128, "tq2_0", "a block of 256 columns has one scale there"),
        (64, "i2_s", "a matrix has one scale there, and each 64 columns here"),
    ],
)
def test_groups_narrower_than_a_block_are_not_written(group, kind, message, tmp_path):
    """Refused with the projection's name before a byte is written."""
    with pytest.raises(ValueError, match=f"q_proj cannot be written as {kind}: {message}"):
        save_gguf(model_of(LLAMA, group), tmp_path / "m.gguf", kind)
    assert not list(tmp_path.iterdir())


def test_scales_that_a_block_cannot_hold_are_not_written(tmp_path):
    """Of a group: negative, beyond float16, 0 beside codes that are not; 0 beside zeros is fine."""
    codes = np.ones((512, 256), np.int8)
    codes[1, 64:128] = 0
    for number, message in ((-0.5, "above 0"), (1e6, "no normal float16"), (0.0, "scale of 0")):
        scale = np.full((512, 4), 0.5, np.float32)
        scale[0, 1] = number
        model = model_of(LLAMA, 64)
        model.params[Q] = TernaryMatrix.from_codes(codes, scale)
        with pytest.raises(ValueError, match=message):
            save_gguf(model, tmp_path / "m.gguf", "q2_0")
    scale[0, 1], scale[1, 1], scale[2, 2] = 0.5, 0, 0.25
    model.params[Q] = TernaryMatrix.from_codes(codes, scale)
    save_gguf(model, tmp_path / "m.gguf", "q2_0")
    assert_same(load_gguf(tmp_path / "m.gguf"), model)


def test_a_bitnet_has_one_scale_whatever_its_blocks_hold(tmp_path):
    """Blocks of different scales stay refused there, in the types of groups too, both ways."""
    config = dataclasses.replace(LLAMA, family="bitnet", sub_norms=True, own_head_dim=None)
    model = model_of(config, 64)
    with pytest.raises(ValueError, match="q_proj must have one scale, as a BitNet's"):
        save_gguf(model, tmp_path / "m.gguf", "q2_0")
    save_gguf(model_of(config), tmp_path / "m.gguf", "q2_0")
    assert_same(load_gguf(tmp_path / "m.gguf"), model_of(config))
    matrix = model.params[Q]
    packed = to_q2_0(matrix.codes(), matrix.scale)
    rewrite(tmp_path / "m.gguf", tensors={gguf_name(Q): (42, matrix.shape, packed)})
    with pytest.raises(CheckpointError, match="a ternary matrix has one scale"):
        load_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("family", FAMILIES)
def test_fuzzed_files_are_refused_or_read(family, tmp_path):
    """300 files with a few bytes changed, half of them in the header: our error, or a model."""
    path, outcomes = tmp_path / "m.gguf", {"read": 0, "refused": 0}
    save_gguf(model_of(FAMILIES[family], 64, packed_tables=True), path, "q2_0")
    whole = path.read_bytes()
    header = min(t.offset for t in open_gguf(path).tensors.values())
    rng = np.random.default_rng(0)
    for number in range(300):
        content = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, header if number % 2 else len(content), rng.integers(1, 4))
        content[places] = rng.integers(0, 256, len(places))
        path.write_bytes(content)
        try:
            model = load_gguf(path)
        except CheckpointError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
            assert set(model.params) == set(param_shapes(model.config))
    assert min(outcomes.values()) > 30, outcomes
