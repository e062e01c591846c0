"""Families of blocks against transformers: random small Llama and Qwen3 models, made ternary.

Their weights are plain float32 numbers, of one magnitude beside 0 in a matrix or in each group of a
row, so that both programs compute the same float model: logits, greedy texts, gradients.
"""

import dataclasses

import numpy as np
import pytest

from minibit.checkpoint import load_bitnet, load_gguf, save_bitnet, save_gguf
from minibit.checkpoint.gguf.models import gguf_name
from minibit.checkpoint.ternary_floats import find_ternary
from minibit.language import loss_and_gradient
from minibit.ternary import TernaryMatrix
from minibit.transformer import (
    BitNetConfig,
    BitNetModel,
    RopeScaling,
    float_linear,
    generate,
    param_shapes,
)
from model_files import WAYS, model_with_gains, save

pytestmark = pytest.mark.peers

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.integrations.bitnet")

SIZES = {  # grouped queries; heads wider or narrower than hidden / heads; scales; tied or not
    "one scale": ({"kv_heads": 2, "tied": False}, None),
    "groups of 32, tied": ({"kv_heads": 4, "own_head_dim": 16, "tied": True}, 32),
    "groups of 64, wide": ({"kv_heads": 1, "own_head_dim": 64, "tied": False}, 64),
}
FAMILIES = {"llama": "Llama", "qwen3": "Qwen3"}
each_model = pytest.mark.parametrize(
    ("family", "sizes"), [(family, sizes) for family in FAMILIES for sizes in SIZES]
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Let torch leave the second CPU to others, and run as written."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.compiler.set_stance("force_eager"):
        yield
    torch.set_num_threads(threads)


def ternarised(shape, group, rng):
    """Codes times one scale, or times one for each group of a row: float32."""
    n_out, n_in = shape
    scales = rng.uniform(0.5, 1.5, (n_out, n_in // group) if group else (1, 1)) / np.sqrt(n_in)
    codes = rng.integers(-1, 2, shape).astype(np.float32)
    return codes * np.repeat(scales.astype(np.float32), group or n_in, axis=1)


def both(family, kind, seed=0):
    """A random model of ours, and the same of transformers."""
    settings, group = SIZES[kind]
    sizes = (97, 128, 256, 3, 4)  # vocabulary, hidden, intermediate, layers, heads
    constants = {"max_positions": 256, "rope_theta": 1e6, "rms_eps": 1e-6}
    config = BitNetConfig(*sizes, **constants, family=family, **settings)
    their_config = getattr(transformers, FAMILIES[family] + "Config")(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_positions,
        rms_norm_eps=config.rms_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tied,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    theirs = getattr(transformers, FAMILIES[family] + "ForCausalLM")(their_config).eval()
    rng = np.random.default_rng(seed)
    params = {
        name: ternarised(shape, group, rng)
        if len(shape) == 2
        else rng.uniform(0.6, 1.4, shape).astype(np.float32)
        for name, shape in param_shapes(config).items()
    }
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            ours = name.removeprefix("model.").removesuffix(".weight")
            parameter.copy_(torch.from_numpy(params[ours]))
    return BitNetModel(config, params, float_linear), theirs


@each_model
def test_the_logits_are_those_of_transformers(family, sizes):
    """float32, within 1e-5 of the largest, over two texts of 60 tokens."""
    ours, theirs = both(family, sizes)
    tokens = np.random.default_rng(1).integers(0, 97, (2, 60))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(ours.logits(tokens) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_stretched_positions_are_those_of_transformers(family, tmp_path):
    """``rope_type: llama3``, over texts seven times as long as the original."""
    model, _ = both(family, "one scale")
    config = dataclasses.replace(model.config, rope_scaling=RopeScaling(4.0, 1.0, 2.0, 9))
    ternary = {
        name: TernaryMatrix.from_codes(*find_ternary(w)) if name.endswith("_proj") else w
        for name, w in model.params.items()
    }
    model = BitNetModel(config, ternary, float_linear)
    save_bitnet(model, tmp_path / "a", linear_class=None)
    assert load_bitnet(tmp_path / "a").config == config
    expected = loaded(tmp_path / "a")
    assert np.abs(model.logits(TOKENS) - expected).max() <= 1e-5 * np.abs(expected).max()
    plain = BitNetModel(dataclasses.replace(config, rope_scaling=None), ternary, float_linear)
    assert np.abs(plain.logits(TOKENS) - expected).max() > 1e-2 * np.abs(expected).max()


@each_model
def test_a_greedy_text_is_that_of_transformers(family, sizes):
    """200 tokens after a prompt of five, with a cache on both sides.

    Where the two best logits are within their rounding, either token is right: no seed here has
    such a tie.
    """
    ours, theirs = both(family, sizes, seed=2)
    prompt = np.random.default_rng(3).integers(0, 97, 5)
    text = theirs.generate(
        torch.from_numpy(prompt[None]), max_new_tokens=200, do_sample=False, pad_token_id=0
    )
    assert list(generate(ours, prompt, 200)) == text[0, 5:].tolist()


@each_model
def test_gradients_are_those_of_transformers(family, sizes):
    """Of the mean loss, by the tape: each within 1e-4 of its largest slope."""
    ours, theirs = both(family, sizes, seed=4)
    tokens = np.random.default_rng(5).integers(0, 97, (3, 25))
    x, y = tokens[:, :-1], tokens[:, 1:]
    loss, gradient = loss_and_gradient(ours.config, dict(ours.params), x, y)
    logits = theirs(torch.from_numpy(x)).logits
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(y).flatten()
    )
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in theirs.named_parameters():
        slope = parameter.grad.numpy()
        ours_of_it = gradient[name.removeprefix("model.").removesuffix(".weight")]
        np.testing.assert_allclose(ours_of_it, slope, atol=1e-4 * np.abs(slope).max(), rtol=0)


@pytest.mark.parametrize("part", ["q_norm", "own head", "silu"])
def test_a_piece_of_another_family_would_be_seen(part):
    """The check can fail: each of Qwen3's pieces moves the logits by far more than 1e-5."""
    ours, theirs = both("qwen3", "one scale")
    tokens = np.random.default_rng(1).integers(0, 97, (1, 40))
    config, params = ours.config, dict(ours.params)
    if part == "q_norm":
        params["layers.0.self_attn.q_norm"] = np.ones(config.head_dim, np.float32)
    elif part == "own head":
        params["lm_head"] = params["embed_tokens"]
    else:
        config = dataclasses.replace(config, family="bitnet", sub_norms=False)
        params = {name: params[name] for name in param_shapes(config)}
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    wrong = BitNetModel(config, params, float_linear).logits(tokens)
    assert np.abs(wrong - expected).max() > 1e-3 * np.abs(expected).max()


# --- files -------------------------------------------------------------------------------------

TOKENS = np.random.default_rng(6).integers(0, 97, (2, 40))


def loaded(folder):
    """Load a directory with transformers, and return the logits of the tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return torch.nn.Module.float(model).eval()(torch.from_numpy(TOKENS)).logits.numpy()


@each_model
@pytest.mark.parametrize("shards", ["1GB", "200KB"])
def test_what_transformers_saves_is_read_and_written_back(family, sizes, shards, tmp_path):
    """Codes and scales found in plain floats; logits within 1e-5 of the largest, both ways."""
    _, theirs = both(family, sizes)
    theirs.save_pretrained(str(tmp_path / "theirs"), max_shard_size=shards)
    assert (len([*(tmp_path / "theirs").glob("*.safetensors")]) > 1) == (shards == "200KB")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS)).logits.numpy()
    model = load_bitnet(tmp_path / "theirs")
    projections = [w for name, w in model.params.items() if name.endswith("_proj")]
    group = SIZES[sizes][1]
    assert all(isinstance(w, TernaryMatrix) and w.group == group for w in projections)
    near = 1e-5 * np.abs(expected).max()
    assert np.abs(model.logits(TOKENS) - expected).max() <= near
    save_bitnet(model, tmp_path / "ours", linear_class=None)
    np.testing.assert_allclose(loaded(tmp_path / "ours"), expected, atol=near)


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("way", [way for way in WAYS if way != "float"])
@pytest.mark.parametrize("family", [*FAMILIES, "bitnet"])
def test_linear_classes_of_these_families_are_those_of_transformers(family, way, norms, tmp_path):
    """bitlinear and autobitlinear, and `use_rms_norm`: a norm before each projection.

    As for BitNet: an activation that rounds to the other int8 code moves some logits.
    """
    wide = None if family == "bitnet" else 24
    config = BitNetConfig(
        97, 64, 176, 2, 4, 2, 64, 1e6, family=family, own_head_dim=wide, projection_norms=norms
    )
    folder = save(model_with_gains(config, 3), tmp_path / "model", way)
    expected, model = loaded(folder), load_bitnet(folder)
    assert model.config == config
    difference = np.abs(model.logits(TOKENS) - expected)
    assert np.median(difference) < 1e-6 * max(1, np.abs(expected).max())
    assert difference.max() < 0.1 * np.abs(expected).max()
    if norms:
        plain = dataclasses.replace(config, projection_norms=False)
        params = {name: model.params[name] for name in param_shapes(plain)}
        assert np.median(np.abs(BitNetModel(plain, params).logits(TOKENS) - expected)) > 1e-3


# --- GGUF --------------------------------------------------------------------------------------


def gguf_model(family, seed=0):
    """A model with scales for 256 columns of a row, in float16: what TQ1_0 and TQ2_0 hold."""
    config = BitNetConfig(
        97, 256, 512, 2, 4, 2, 64, 1e6, 1e-6, False, family=family, own_head_dim=128
    )
    rng = np.random.default_rng(seed)
    params = dict(model_with_gains(config, seed).params)
    for name, shape in param_shapes(config).items():
        if name.endswith("_proj"):
            scale = rng.uniform(0.04, 0.08, (shape[0], shape[1] // 256)).astype(np.float16)
            params[name] = TernaryMatrix.from_codes(rng.integers(-1, 2, shape), scale)
    return BitNetModel(config, params, float_linear)


def as_llama_cpp(floats, heads):
    """The rows of q or k as llama.cpp's converter permutes them."""
    rows, columns = floats.shape
    return floats.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, -1)


@pytest.mark.parametrize("kind", ["tq2_0", "tq1_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gguf_package_reads_and_writes_the_same_tensors(family, kind, tmp_path):
    """Its quantiser makes our bytes of the permuted floats; a file of its writer is our model."""
    gguf = pytest.importorskip("gguf")
    model = gguf_model(family)
    save_gguf(model, tmp_path / "ours.gguf", kind)
    reader = gguf.GGUFReader(tmp_path / "ours.gguf")
    read = {tensor.name: tensor for tensor in reader.tensors}
    config = model.config
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", family)
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    number = gguf.GGMLQuantizationType[kind.upper()]
    for name, value in model.params.items():
        if not isinstance(value, TernaryMatrix):
            writer.add_tensor(gguf_name(name), np.asarray(value))
            np.testing.assert_array_equal(read[gguf_name(name)].data, value)
            continue
        floats, heads = value.rows(), {"q": config.heads, "k": config.kv_heads}
        letter = name.split(".")[-1][0]
        if family == "llama" and letter in heads:
            floats = as_llama_cpp(floats, heads[letter])
        packed = gguf.quants.quantize(floats, number)
        np.testing.assert_array_equal(read[gguf_name(name)].data, packed)
        writer.add_tensor(gguf_name(name), packed, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = load_gguf(tmp_path / "theirs.gguf")
    assert theirs.config == config
    assert theirs.linear is None
    tokens = TOKENS[:, :20]
    plain = BitNetModel(config, theirs.params, float_linear)
    np.testing.assert_array_equal(plain.logits(tokens), model.logits(tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same_of_our_gguf_file(family, tmp_path):
    """Its own reader of GGUF dequantises, and undoes the order of rows: logits within 1e-5."""
    pytest.importorskip("gguf")
    model = gguf_model(family)
    words = [f"word {i}" for i in range(97)]
    entries = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": words}
    save_gguf(model, tmp_path / "model.gguf", "tq2_0", metadata=entries)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS)).logits.numpy()
    assert np.abs(model.logits(TOKENS) - expected).max() <= 1e-5 * np.abs(expected).max()
