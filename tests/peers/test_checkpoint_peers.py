"""Checkpoints against transformers: its BitNet loads what we write, and computes what we compute.

What can be equal to the bit, and what cannot:

- ``bitlinear`` is decided to the bit. Its sums are of whole numbers, which float32 holds exactly up
  to 2**24, so their order does not matter; then one product and one division round.
- ``autobitlinear`` sums numbers that are rounded already (codes / s, and online codes * gamma), so
  its last bits depend on the order in which a BLAS adds. It is equal to the bit where no addition
  rounds: a token of one input, or scales that are powers of two.
- Everywhere, the scales and the codes of activations and weights are equal to the bit, given the
  same gamma; gamma itself is a mean, which torch sums in float32: equal within two units.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from minibit.absmean import absmax_quantize, absmean_quantize
from minibit.checkpoint import CheckpointError, load_bitnet, random_checkpoint
from minibit.checkpoint.hf.linear import published_linear, weight_scale_of
from minibit.checkpoint.safetensors import SafetensorsFile
from minibit.matmul import ternary_matmul
from minibit.ternary import TernaryMatrix, from_hf, to_hf
from minibit.transformer import BitNetConfig, BitNetModel, bit_linear, float_linear, packed_linear
from minibit.transformer.attend import causal_attention, positions, rotate
from minibit.transformer.blocks import embed, gated_unit, normalize
from model_files import WAYS, model_with_gains, save

pytestmark = pytest.mark.peers

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
bitnet = pytest.importorskip("transformers.integrations.bitnet")

CONFIG = BitNetConfig(
    96, 64, 176, layers=3, heads=4, kv_heads=2, max_positions=64, rope_theta=5e5, bos=1, eos=2
)
QUANTISED = [way for way in WAYS if way != "float"]
TOKENS = np.random.default_rng(0).integers(0, 96, (16, 40))  # 640 positions


@pytest.fixture(autouse=True, scope="module")
def eager():
    """Run torch as written: its compiler may join roundings, and takes minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.compiler.set_stance("force_eager"):
        yield
    torch.set_num_threads(threads)


def float_model(config=CONFIG, seed=3):
    """Master weights and gains that are not all 1."""
    return model_with_gains(config, seed)


def theirs(folder):
    """Load a directory with transformers; it leaves bfloat16 of autobitlinear as it is."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="eager"
    )
    return torch.nn.Module.float(model).eval()


def numpy(tensor):
    """A tensor as an array."""
    return tensor.detach().numpy()


def layer(way, w, x):
    """One linear layer of transformers with master weights w: its output, and its gamma."""
    n_out, n_in = w.shape
    codes, gamma = absmean_quantize(w)
    if way == "bitlinear":
        module = bitnet.BitLinear(n_in, n_out, bias=False, dtype=torch.float32)
        module.weight.copy_(torch.from_numpy(to_hf(codes)))
        module.weight_scale.fill_(float(weight_scale_of(gamma, WAYS[way])))
    elif way == "offline":
        module = bitnet.AutoBitLinear(n_in, n_out, bias=False, dtype=torch.float32)
        module.weight.data.copy_(torch.from_numpy(codes.astype(np.float32)))
        module.weight_scale.fill_(float(gamma))
    else:
        module = bitnet.AutoBitLinear(n_in, n_out, bias=False, online_quant=True)
        module.weight.data.copy_(torch.from_numpy(w))
        gamma = np.float32(torch.from_numpy(w).abs().mean().clamp(min=1e-5))
    with torch.no_grad():
        return numpy(module(torch.from_numpy(x))), codes, gamma


# --- packing and quantising --------------------------------------------------------------------


@pytest.mark.parametrize("n_out", [*range(1, 14), 64, 66])
def test_quantised_weights_are_packed_to_the_same_bytes(n_out):
    """pack_weights(rint(clip(w / gamma))) = to_hf(absmean_quantize(w)), ties and padding included.

    Every second weight is exactly half a gamma, which rounds to 0 (half to even).
    """
    rng = np.random.default_rng(n_out)
    sizes = np.tile(np.float32([0.5, 1.5]), (n_out, 12))  # gamma is 1
    w = rng.permuted(sizes, axis=1) * rng.choice(np.float32([-1, 1]), (n_out, 24))
    scale = 1.0 / torch.from_numpy(w).abs().mean().clamp_(min=1e-5)
    rounded = (torch.from_numpy(w) * scale).round().clamp(-1, 1)
    codes, gamma = absmean_quantize(w)
    assert gamma == 1.0 == float(scale)
    np.testing.assert_array_equal(codes, numpy(rounded))
    assert (codes[np.abs(w) == 0.5] == 0).all()
    packed = numpy(bitnet.pack_weights(rounded.clone()))
    np.testing.assert_array_equal(to_hf(codes), packed)
    np.testing.assert_array_equal(from_hf(packed, n_out), codes)
    unpacked = numpy(bitnet.unpack_weights(torch.from_numpy(packed), dtype=torch.float32))
    np.testing.assert_array_equal(unpacked[:n_out], codes)
    assert (unpacked[n_out:] == -1).all()
    np.testing.assert_array_equal(TernaryMatrix.from_hf(packed, n_out).codes(), codes)


def test_activations_are_quantised_to_the_same_codes_and_scales():
    """BitLinear's codes and scales, and ActQuant's values, bit for bit, ties included."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 96)).astype(np.float32)
    x[::2] = rng.integers(-254, 255, (100, 96)) / np.float32(2)  # halves: ties where s is 1
    x[::2, 0] = 127
    x[-1] = 0
    module = bitnet.BitLinear(96, 4, bias=False, dtype=torch.float32)
    their_codes, their_scale = module.activation_quant(torch.from_numpy(x))
    codes, scale = absmax_quantize(x)
    np.testing.assert_array_equal(codes, numpy(their_codes))
    np.testing.assert_array_equal(scale, numpy(their_scale))
    values = numpy(bitnet.ActQuant.apply(torch.from_numpy(x)))
    np.testing.assert_array_equal(codes / scale, values)


def test_gamma_is_torchs_within_two_units_and_the_codes_are_its_own():
    """Its mean is summed in float32; given its gamma, WeightQuant's values are ours bit for bit."""
    rng = np.random.default_rng(0)
    for n_out, n_in in ((64, 176), (300, 257), (640, 2560)):
        w = (rng.standard_normal((n_out, n_in)) * 0.03).astype(np.float32)
        codes, gamma = absmean_quantize(w)
        their_gamma = np.float32(torch.from_numpy(w).abs().mean().clamp(min=1e-5))
        assert abs(gamma - their_gamma) <= 2 * np.spacing(gamma)
        values = numpy(bitnet.WeightQuant.apply(torch.from_numpy(w)))
        np.testing.assert_array_equal(values, codes / (np.float32(1) / their_gamma))


# --- one linear layer --------------------------------------------------------------------------


def test_a_bitlinear_layer_is_equal_to_the_bit():
    """Any input, any order of the sum; the fused product is within two units of it."""
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((256, 320)) * 0.04).astype(np.float32)
    x = rng.standard_normal((64, 320)).astype(np.float32)
    expected, codes, gamma = layer("bitlinear", w, x)
    np.testing.assert_array_equal(published_linear(x, codes, gamma, WAYS["bitlinear"]), expected)
    fused = ternary_matmul(x, TernaryMatrix.from_codes(codes, gamma))
    assert (np.abs(fused - expected) <= 2 * np.spacing(np.abs(expected))).all()
    assert (fused == expected).mean() > 0.4


@pytest.mark.parametrize("way", ["offline", "online"])
def test_an_autobitlinear_layer_is_equal_to_the_bit_where_nothing_is_summed(way):
    """Tokens of one input: what is left is the order of products and quotients, given its gamma."""
    rng = np.random.default_rng(1)
    w = (rng.standard_normal((256, 320)) * 0.04).astype(np.float32)
    x = np.zeros((320, 320), np.float32)
    np.fill_diagonal(x, rng.standard_normal(320))
    expected, codes, gamma = layer(way, w, x)
    np.testing.assert_array_equal(published_linear(x, codes, gamma, WAYS[way]), expected)
    assert np.count_nonzero(expected) > expected.size / 2


@pytest.mark.parametrize("way", QUANTISED)
def test_every_layer_is_equal_to_the_bit_where_sums_are_exact(way):
    """Scales and gamma powers of two: both our products and theirs are the same numbers."""
    rng = np.random.default_rng(2)
    w = rng.choice(np.float32([-1, 0, 0, 1]), (256, 320)) / np.float32(16)
    w[:, ::2], w[:, 1::2] = 0, np.where(w[:, 1::2] >= 0, 1, -1) / np.float32(16)  # gamma 1 / 32
    x = rng.integers(-127, 128, (64, 320)).astype(np.float32)
    x[:, 0] = 127
    x *= np.float32(2) ** rng.integers(-8, 8, (64, 1)).astype(np.float32)
    expected, codes, gamma = layer(way, w, x)
    assert gamma == 1 / 32
    np.testing.assert_array_equal(published_linear(x, codes, gamma, WAYS[way]), expected)
    np.testing.assert_array_equal(
        ternary_matmul(x, TernaryMatrix.from_codes(codes, gamma)), expected
    )
    np.testing.assert_array_equal(bit_linear(x, w), expected)


@pytest.mark.parametrize("way", ["offline", "online"])
def test_an_autobitlinear_layer_is_within_the_rounding_of_its_sums(way):
    """|difference| <= (n_in + 4) 2**-24 sum |x_i w_i| on both sides, for any input."""
    rng = np.random.default_rng(3)
    w = (rng.standard_normal((256, 320)) * 0.04).astype(np.float32)
    x = rng.standard_normal((64, 320)).astype(np.float32)
    expected, codes, gamma = layer(way, w, x)
    size = gamma * (np.abs(x) @ np.abs(codes).astype(np.float32).T)  # sum |x_i w_i|
    bound = 2 * (320 + 4) * 2.0**-24 * 1.02 * size
    for ours in (
        ternary_matmul(x, TernaryMatrix.from_codes(codes, gamma)),
        bit_linear(x, w),
        published_linear(x, codes, gamma, WAYS[way]),
    ):
        assert (np.abs(ours - expected) <= bound).all()
        assert np.abs(ours - expected).max() < 2e-6 * np.abs(expected).max()


# --- a model -----------------------------------------------------------------------------------


def watched(reference):
    """Run the reference on the tokens, and return the input and output of every module."""
    seen = {}

    def watch(name):
        def hook(module, args, output):
            if args and torch.is_tensor(args[0]) and torch.is_tensor(output):
                seen[name] = numpy(args[0]), numpy(output)

        return hook

    for name, module in reference.model.named_modules():
        module.register_forward_hook(watch(name))
    with torch.no_grad():
        reference(torch.from_numpy(TOKENS))
    return seen


def close(ours, expected):
    """Within 1e-5, or 1e-5 of the largest if that is above 1."""
    return np.abs(ours - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_linear_agrees_on_the_references_own_inputs(way, tied, tmp_path):
    """Each of the 21 projections, within 1e-5."""
    folder = save(float_model(dataclasses.replace(CONFIG, tied=tied)), tmp_path / "model", way)
    seen, ours = watched(theirs(folder)), load_bitnet(folder)
    projections = [name for name in seen if name.endswith("_proj")]
    assert len(projections) == 7 * CONFIG.layers
    for name in projections:
        x, y = seen[name]
        w = ours.params[name]
        linear = ours.linear or (packed_linear if isinstance(w, TernaryMatrix) else bit_linear)
        assert close(linear(x.reshape(-1, x.shape[-1]), w).reshape(y.shape), y), name


@pytest.mark.parametrize("way", WAYS)
def test_all_between_the_linears_agrees_on_the_references_own_inputs(way, tmp_path):
    """Embedding, norms, rotary attention of grouped queries, gated units: within 1e-5."""
    folder = save(float_model(), tmp_path / "model", way)
    seen, ours = watched(theirs(folder)), load_bitnet(folder)
    batch, length = TOKENS.shape
    at = positions(batch, length, CONFIG.head_dim, CONFIG.rope_theta)

    def heads(name, count):
        y = seen[name][1].reshape(batch, length, count, CONFIG.head_dim)
        return y if name.endswith("v_proj") else rotate(y, at)

    np.testing.assert_array_equal(
        embed(ours.params["embed_tokens"], TOKENS), seen["embed_tokens"][1]
    )
    norms = [name for name in seen if name.endswith(("norm", "layernorm"))]
    assert len(norms) == 4 * CONFIG.layers + 1
    for name in norms:
        x, y = seen[name]
        rows = normalize(x.reshape(-1, x.shape[-1]), ours.params[name], eps=CONFIG.rms_eps)
        assert close(rows.reshape(y.shape), y), name
    for layer in range(CONFIG.layers):
        name = f"layers.{layer}.self_attn."
        q, k, v = (
            heads(f"{name}{which}_proj", count).transpose(0, 2, 1, 3)
            for which, count in (
                ("q", CONFIG.heads),
                ("k", CONFIG.kv_heads),
                ("v", CONFIG.kv_heads),
            )
        )  # (batch, heads, length, head_dim)
        o = causal_attention(q, k, v, future=at.future).transpose(0, 2, 1, 3)
        assert close(o.reshape(batch, length, -1), seen[f"{name}attn_sub_norm"][0]), name
        name = f"layers.{layer}.mlp."
        gate, up = (seen[f"{name}{which}_proj"][1] for which in ("gate", "up"))
        assert close(gated_unit(gate, up), seen[f"{name}ffn_sub_norm"][0]), name


@pytest.mark.parametrize("way", WAYS)
def test_the_logits_of_a_model_agree(way, tmp_path):
    """Over 640 positions: median difference below 1e-6, the likeliest token the same on 95%.

    A single activation that rounds to the other int8 code moves some logits by a hundredth.
    """
    folder = save(float_model(), tmp_path / "model", way)
    with torch.no_grad():
        expected = numpy(theirs(folder)(torch.from_numpy(TOKENS)).logits)
    logits = load_bitnet(folder).logits(TOKENS)
    difference = np.abs(logits - expected)
    assert np.median(difference) < 1e-6
    assert (logits.argmax(-1) == expected.argmax(-1)).mean() >= 0.95
    assert difference.max() < (1e-4 if way == "float" else 0.1)
    assert expected.std() > 0.2


@pytest.mark.parametrize("way", ["bitlinear", "offline"])
def test_a_scale_of_the_other_convention_is_seen(way, tmp_path):
    """The check can fail: gamma taken for 1 / gamma moves the logits by far more than 1e-6."""
    folder = save(float_model(), tmp_path / "model", way)
    model = load_bitnet(folder)
    inverted = {
        name: TernaryMatrix.from_codes(value.codes(), 1 / value.scale)
        if isinstance(value, TernaryMatrix)
        else value
        for name, value in model.params.items()
    }
    with torch.no_grad():
        expected = numpy(theirs(folder)(torch.from_numpy(TOKENS)).logits)
    wrong = BitNetModel(model.config, inverted).logits(TOKENS)
    assert np.median(np.abs(wrong - expected)) > 1e-3


@pytest.mark.parametrize("way", ["bitlinear", "online", "float"])
def test_what_transformers_saves_is_read(way, tmp_path):
    """save_pretrained, in one file and in shards: the same parameters as ours.

    (autobitlinear offline it cannot save: packing is not the reverse of its unpacking.)
    """
    folder = save(float_model(), tmp_path / "ours", way)
    ours = load_bitnet(folder)
    reference = theirs(folder)
    for name, size in (("one", "1GB"), ("shards", "60KB")):
        reference.save_pretrained(str(tmp_path / name), max_shard_size=size)
        again = load_bitnet(tmp_path / name)
        assert again.config == ours.config
        assert (again.linear is float_linear) == (way == "float")
        for param, value in ours.params.items():
            if isinstance(value, TernaryMatrix):
                np.testing.assert_array_equal(again.params[param].codes(), value.codes())
                assert again.params[param].scale == value.scale
            else:
                np.testing.assert_array_equal(again.params[param], value)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1


def logits_of_both(folder):
    """The logits of a few tokens, ours and those of transformers."""
    with torch.no_grad():
        expected = numpy(theirs(folder)(torch.from_numpy(TOKENS[:2])).logits)
    return load_bitnet(folder).logits(TOKENS[:2]), expected


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"rope_type": "default", "rope_theta": 100.0}},
        {"rope_scaling": {}},
        {"rope_scaling": {"type": "linear", "factor": 1.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 1.0, "rope_theta": 5e5}},
        {"partial_rotary_factor": 0.5},
        {"eos_token_id": [3, -1], "bos_token_id": -1},
        {"num_hidden_layers": 2},
    ],
    ids=str,
)
def test_what_a_configuration_may_say_is_what_transformers_computes(changes, tmp_path):
    """Kinds of positions, tokens that are none, fewer layers than the file has: the same logits."""
    folder = save(float_model(), tmp_path / "model", "float")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    logits, expected = logits_of_both(folder)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_scaled_positions_that_are_refused_would_give_other_logits(tmp_path):
    """What is refused is not what would have been computed."""
    folder = save(float_model(), tmp_path / "model", "float")
    ours, _ = logits_of_both(folder)
    path = folder / "config.json"
    scaling = {"rope_scaling": {"type": "linear", "factor": 2.0}}
    path.write_text(json.dumps(json.loads(path.read_text()) | scaling))
    with torch.no_grad():
        expected = numpy(theirs(folder)(torch.from_numpy(TOKENS[:2])).logits)
    assert np.abs(ours - expected).max() > 1e-2
    with pytest.raises(CheckpointError, match="rope_scaling must be null"):
        load_bitnet(folder)


def test_a_head_that_a_list_of_modules_leaves_out_is_quantised_and_refused(tmp_path):
    """modules_to_not_convert []: transformers quantises the head and its input, we have floats."""
    folder = save(float_model(), tmp_path / "model", "online")
    ours, expected = logits_of_both(folder)
    np.testing.assert_allclose(ours, expected, atol=0.1)
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    fields["quantization_config"]["modules_to_not_convert"] = []
    path.write_text(json.dumps(fields))
    with torch.no_grad():
        quantised = numpy(theirs(folder)(torch.from_numpy(TOKENS[:2])).logits)
    assert np.median(np.abs(quantised - expected)) > 1e-2
    with pytest.raises(CheckpointError, match="modules_to_not_convert must be null, or name"):
        load_bitnet(folder)


TENSORS = {
    "doubles": lambda tensors: {name: t.double() for name, t in tensors.items()},
    "angles": lambda tensors: tensors | {"model.rotary_emb.inv_freq": torch.ones(8)},
    "the head alone": lambda tensors: {
        "lm_head.weight" if name == "model.embed_tokens.weight" else name: t
        for name, t in tensors.items()
    },
    "no class of a head": lambda tensors: {
        name.removeprefix("model."): t for name, t in tensors.items()
    },
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_transformers_takes_for_the_model_are_taken_so(case, tmp_path):
    """Doubles, buffers that nothing reads, one of two tied matrices, names without their prefix."""
    torch_files = pytest.importorskip("safetensors.torch")
    folder = save(float_model(), tmp_path / "model", "float")
    path = folder / "model.safetensors"
    tensors = {name: t.clone() for name, t in torch_files.load_file(path).items()}
    torch_files.save_file(TENSORS[case](tensors), path, {"format": "pt"})
    logits, expected = logits_of_both(folder)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_bfloat16_checkpoints_agree_in_float32(linear_class, tmp_path):
    """Embeddings, norms and scales of bfloat16, widened by both: the head's bits are the same."""
    random_checkpoint(tmp_path / "model", CONFIG, seed=5, linear_class=linear_class)
    model = load_bitnet(tmp_path / "model")
    reference = theirs(tmp_path / "model")
    np.testing.assert_array_equal(
        numpy(reference.model.embed_tokens.weight).view(np.uint32) >> 16,
        model.params["embed_tokens"],
    )
    with torch.no_grad():
        expected = numpy(reference(torch.from_numpy(TOKENS)).logits)
    difference = np.abs(model.logits(TOKENS) - expected)
    assert np.median(difference) < 1e-6
    assert (model.logits(TOKENS).argmax(-1) == expected.argmax(-1)).mean() >= 0.95


def test_torch_reads_the_same_tensors(tmp_path):
    """safetensors' own reader: every tensor of a file that we wrote, bit for bit."""
    safe_open = pytest.importorskip("safetensors").safe_open
    random_checkpoint(tmp_path / "model", CONFIG)
    path = Path(tmp_path / "model" / "model.safetensors")
    file = SafetensorsFile(path)
    with safe_open(str(path), "pt") as reader:
        assert set(reader.keys()) == set(file.tensors)
        for name in file.tensors:
            tensor = reader.get_tensor(name)
            bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
            np.testing.assert_array_equal(numpy(bits), file.array(name))
