"""GGUF files against the gguf package: its reader, its writer, its quantisers."""

import struct

import numpy as np
import pytest

from minibit.absmean import absmean_quantize
from minibit.checkpoint import load_gguf, save_gguf
from minibit.checkpoint.gguf.container import BLOCKS, I2_S, open_gguf
from minibit.checkpoint.gguf.models import gguf_name
from minibit.ternary import TernaryMatrix, to_tq1_0, to_tq2_0
from minibit.transformer import BitNetConfig, BitNetModel, init_params, pack_params

pytestmark = pytest.mark.peers

CONFIG = BitNetConfig(
    83, 256, 512, layers=2, heads=4, kv_heads=2, max_positions=64, rope_theta=500000.0, bos=1, eos=2
)
KINDS = ("tq2_0", "tq1_0")
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def gguf():
    """The package, imported when a test first needs it."""
    return pytest.importorskip("gguf")


def model_of(seed=0):
    """A random packed model, its embedding in bfloat16 bits."""
    params = pack_params(init_params(CONFIG, seed))
    bits = params["embed_tokens"].view(np.uint32) >> 16
    return BitNetModel(CONFIG, params | {"embed_tokens": bits.astype(np.uint16)})


def values_of(model, kind=None):
    """The model's tensors as float32 under their GGUF names; scales through float16 for a kind."""
    values = {}
    for name, value in model.params.items():
        if isinstance(value, TernaryMatrix):
            scale = value.scale if kind is None else np.float32(np.float16(value.scale))
            value = scale * value.codes().astype(np.float32)
        elif value.dtype == np.uint16:
            value = (value.astype(np.uint32) << 16).view(np.float32)
        values[gguf_name(name)] = value
    return values


def test_our_table_of_types_is_theirs(gguf):
    """Numbers, names, weights and bytes of a block, for all types that they know."""
    assert set(BLOCKS) >= {int(theirs) for theirs in gguf.GGMLQuantizationType}
    for kind, (name, weights, size) in BLOCKS.items():
        if kind != I2_S and kind <= max(gguf.GGMLQuantizationType):
            theirs = gguf.GGMLQuantizationType[name]
            assert int(theirs) == kind
            assert gguf.GGML_QUANT_SIZES[theirs] == (weights, size)


@every_kind
def test_their_reader_finds_what_we_wrote(gguf, kind, tmp_path):
    """GGUFReader on our file: metadata, shapes, and the bytes that its quantiser makes."""
    model = model_of()
    save_gguf(model, tmp_path / "m.gguf", kind)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "bitnet-b1.58"
    assert fields["bitnet-b1.58.attention.head_count_kv"] == 2
    assert fields["bitnet-b1.58.rope.freq_base"] == 500000.0
    assert fields["general.file_type"] == gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"]
    values = values_of(model)
    assert {tensor.name for tensor in reader.tensors} == set(values)
    for tensor in reader.tensors:
        expected = values[tensor.name]
        assert tuple(reversed(tensor.shape.tolist())) == expected.shape
        theirs = gguf.quants.quantize(expected, tensor.tensor_type)
        np.testing.assert_array_equal(tensor.data.reshape(-1), theirs.reshape(-1), tensor.name)


@every_kind
def test_our_file_is_the_one_that_their_writer_writes(gguf, kind, tmp_path):
    """GGUFWriter, given floats to quantise and the same entries: the same file, byte for byte."""
    model = model_of()
    save_gguf(model, tmp_path / "ours.gguf", kind)
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "bitnet-b1.58")
    for key, value in open_gguf(tmp_path / "ours.gguf").metadata.items():
        if key != "general.architecture":
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add[type(value)](key, value)
    for name, value in values_of(model).items():
        number = open_gguf(tmp_path / "ours.gguf").tensors[name].kind
        theirs = gguf.GGMLQuantizationType(number)
        writer.add_tensor(name, gguf.quants.quantize(value, theirs), raw_dtype=theirs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@every_kind
@pytest.mark.parametrize("alignment", [32, 64])
def test_we_read_what_their_writer_writes(gguf, kind, alignment, tmp_path):
    """A file as converters make it: a vocabulary, other entries, F16 embedding, any alignment."""
    model = model_of()
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "bitnet-b1.58")
    writer.add_custom_alignment(alignment)
    writer.add_name("a model")
    writer.add_token_list([f"token {i}" for i in range(CONFIG.vocab_size)])
    writer.add_token_scores([0.0] * CONFIG.vocab_size)
    writer.add_token_types([1] * CONFIG.vocab_size)
    writer.add_add_bos_token(True)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_block_count(CONFIG.layers)
    writer.add_context_length(CONFIG.max_positions)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.heads)
    writer.add_head_count_kv(CONFIG.kv_heads)
    writer.add_rope_freq_base(CONFIG.rope_theta)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(1.0)
    writer.add_layer_norm_rms_eps(CONFIG.rms_eps)
    projection = gguf.GGMLQuantizationType[kind.upper()]
    for name, value in values_of(model).items():
        if name == "token_embd.weight":
            writer.add_tensor(name, value.astype(np.float16))
        elif value.ndim == 1:
            writer.add_tensor(name, value)
        else:
            packed = gguf.quants.quantize(value, projection)
            writer.add_tensor(name, packed, raw_dtype=projection)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = load_gguf(tmp_path / "m.gguf")
    assert read.config == CONFIG
    for name, value in values_of(read).items():
        np.testing.assert_allclose(value, values_of(model, kind)[name], rtol=0, atol=2**-25)
    for name, value in read.params.items():
        if isinstance(value, TernaryMatrix):
            np.testing.assert_array_equal(value.codes(), model.params[name].codes())
            assert value.scale == np.float32(np.float16(model.params[name].scale))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q5_1", "TQ2_0"])
def test_embeddings_of_other_types_are_their_dequantisation(gguf, name, tmp_path):
    """read_table = gguf.quants.dequantize, row by row, as float32."""
    from minibit.checkpoint.gguf.tensors import read_table
    from minibit.checkpoint.gguf.writer import NewTensor, write_gguf

    kind = gguf.GGMLQuantizationType[name]
    floats = np.random.default_rng(0).standard_normal((83, 256)).astype(np.float32)
    packed = gguf.quants.quantize(floats, kind)
    write_gguf(tmp_path / "m.gguf", {}, [NewTensor("t", int(kind), (83, 256), lambda: [packed])])
    file = open_gguf(tmp_path / "m.gguf")
    table = read_table(file, file.tensors["t"])
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, gguf.quants.dequantize(packed, kind))


def test_ties_are_rounded_apart_by_them_and_have_no_say_once_there_are_codes(gguf):
    """x = s / 2: rint gives 0, ggml (half away from zero) 1. Of codes, both make the same bytes."""
    latent = np.tile(np.float32([2.0, 1.0, -1.0, 0.5]), (3, 64))  # absmax 2: 1 and -1 are ties
    theirs = gguf.quants.dequantize(
        gguf.quants.quantize(latent, gguf.GGMLQuantizationType.TQ2_0),
        gguf.GGMLQuantizationType.TQ2_0,
    )
    np.testing.assert_array_equal(theirs[0, :4], [2, 2, -2, 0])
    np.testing.assert_array_equal(np.rint(latent[0, :4] / 2), [1, 0, 0, 0])
    codes, gamma = absmean_quantize(latent)  # gamma 1.125: no tie, and another scale
    values = gamma * codes.astype(np.float32)
    for to, name in ((to_tq1_0, "TQ1_0"), (to_tq2_0, "TQ2_0")):
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
        np.testing.assert_array_equal(to(codes, gamma), packed)


def test_a_header_that_they_believe_is_refused_here(gguf, tmp_path):
    """2**40 entries in a file of 24 bytes: a reason to read the header with distrust."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40))
    with pytest.raises(IndexError):  # after reading past the end
        gguf.GGUFReader(path)
    with pytest.raises(ValueError, match="claims 1099511627776 metadata entries"):
        open_gguf(path)


@pytest.mark.parametrize("pattern", ["llama-bpe", "qwen2", "gpt-2"])
def test_transformers_reads_our_vocabulary_and_cuts_text_into_the_same_tokens(pattern, tmp_path):
    """tokenizer.json -> tokenizer.ggml.* -> transformers' tokenizer: the same numbers."""
    tokenizers = pytest.importorskip("tokenizers")
    theirs = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    from minibit.checkpoint.gguf.tokenizer import PATTERNS, ggml_tokenizer
    from minibit.checkpoint.gguf.writer import write_gguf
    from minibit.datasets import load_text

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    parts = tokenizers.pre_tokenizers
    regex = next((regex for regex, name in PATTERNS.items() if name == pattern), None)
    tokenizer.pre_tokenizer = parts.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    if regex is not None:
        split = parts.Split(tokenizers.Regex(regex), behavior="isolated")
        tokenizer.pre_tokenizer = parts.Sequence([split, tokenizer.pre_tokenizer])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=parts.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = load_text()[:200_000]
    tokenizer.train_from_iterator([text], trainer)
    entries = ggml_tokenizer(tokenizer.to_str(), 610)
    assert entries["tokenizer.ggml.pre"] == pattern
    assert entries["tokenizer.ggml.token_type"][:3] == [3, 3, 1]
    write_gguf(tmp_path / "t.gguf", {"general.architecture": "bitnet-b1.58"} | entries, [])
    architecture, words, _ = theirs.get_gguf_tokenizer(str(tmp_path / "t.gguf"))
    read, _ = theirs.convert_gguf_tokenizer(architecture, words)
    sample = text[1000:3000] + " 12345 don't\n\n  été <s>…"
    assert read.encode(sample, add_special_tokens=False).ids == tokenizer.encode(sample).ids


def test_their_reader_finds_our_arrays(gguf, tmp_path):
    """Lists of strings and of whole numbers: ARRAY of STRING, ARRAY of INT32."""
    from minibit.checkpoint.gguf.writer import write_gguf

    entries = {"general.architecture": "x", "words": ["a", "", "é…"], "kinds": [1, -3, 2**31 - 1]}
    write_gguf(tmp_path / "a.gguf", entries, [])
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert fields["words"].contents() == entries["words"]
    assert fields["kinds"].contents() == entries["kinds"]
    assert fields["kinds"].types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]
