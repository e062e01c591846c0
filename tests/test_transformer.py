"""The language model as laws: what a token may see, what positions mean, what each piece is."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibit.absmean import absmean_quantize
from minibit.base import widen
from minibit.dual import jvp, jvp_batch
from minibit.kernels import compiled
from minibit.layers import cross_entropy, rms_norm, squared_relu
from minibit.matmul import ternary_matmul
from minibit.noise import uniform
from minibit.noise.philox import INITIAL
from minibit.tape import grad, value_and_grad, vjp
from minibit.ternary import TernaryMatrix
from minibit.transformer import (
    BitNetConfig,
    BitNetModel,
    RopeScaling,
    bit_linear,
    blocks,
    check_params,
    float_linear,
    forward,
    generate,
    init_params,
    pack_params,
    packed_linear,
    param_shapes,
)
from minibit.transformer import attend as attention
from minibit.transformer.attend import causal_attention, positions, rotate, turn_reference
from minibit.transformer.blocks import (
    ONE_HOT,
    embed,
    gain_back_reference,
    gated_unit,
    gated_unit_reference,
    normalize,
    normalize_back_reference,
    normalize_reference,
    silu_unit,
    token_loss,
)
from minibit.transformer.model import logits_of

VOCAB = 11
CONFIG = BitNetConfig(VOCAB, 16, 20, layers=2, heads=4, kv_heads=2, max_positions=12)
KINDS = {
    "grouped": CONFIG,
    "all heads": dataclasses.replace(CONFIG, kv_heads=4),
    "one key head, own head": dataclasses.replace(CONFIG, kv_heads=1, tied=False),
    "no sub-norms": dataclasses.replace(CONFIG, sub_norms=False),
    "slow rotation": dataclasses.replace(CONFIG, rope_theta=500000.0, rms_eps=1e-3),
    "llama": dataclasses.replace(CONFIG, family="llama", tied=False),
    "qwen3, wide heads": dataclasses.replace(CONFIG, family="qwen3", own_head_dim=6),
    "a norm before each projection": dataclasses.replace(CONFIG, projection_norms=True),
    "qwen3, all norms": dataclasses.replace(
        CONFIG, family="qwen3", own_head_dim=2, projection_norms=True
    ),
}
needs_kernels = pytest.mark.skipif(not compiled(), reason="kernels are not compiled")
texts = st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=10)


def floats(*shape, seed=0):
    """Normal numbers in float64."""
    return np.random.default_rng(seed).standard_normal(shape)


def draw_params(config, dtype=np.float64, seed=0):
    """Initial parameters with gains that are not 1."""
    drawn = init_params(config, seed)
    rng = np.random.default_rng(seed)
    return {
        name: (w * (1 + 0.2 * rng.standard_normal(w.shape))).astype(dtype)
        for name, w in drawn.items()
    }


def draw_tokens(*shape, seed=0):
    """Tokens of the small vocabulary."""
    return np.random.default_rng(seed).integers(0, VOCAB, shape)


class PlainCache:
    """The cache that `forward` asks for, in its simplest form."""

    def __init__(self, layers):
        self.pairs = [None] * layers
        self.length = 0

    def extend(self, layer, k, v):
        """Append to a layer; the last layer completes the tokens."""
        if self.pairs[layer] is not None:
            k, v = (np.concatenate(pair, 2) for pair in zip(self.pairs[layer], (k, v), strict=True))
        self.pairs[layer] = k, v
        if layer == len(self.pairs) - 1:
            self.length = k.shape[2]
        return k, v


def plain_forward(config, params, text):
    """The block of a family for one text, written token by token and head by head."""
    hidden, d = config.hidden_size, config.head_dim

    def norm(x, name):
        return params[name] * x / np.sqrt(np.mean(x * x) + config.rms_eps)

    def project(x, name):
        if config.projection_norms:
            x = norm(x, name + "_proj.rms_norm")
        return params[name + "_proj"] @ x

    def heads_of(x, name):
        heads = x.reshape(-1, d)
        return [norm(head, name) for head in heads] if config.family == "qwen3" else heads

    def turn(x, position):
        out = np.empty(d)
        for i in range(d // 2):
            angle = position * config.rope_theta ** (-2 * i / d)
            a, b = x[i], x[i + d // 2]
            out[i] = a * np.cos(angle) - b * np.sin(angle)
            out[i + d // 2] = b * np.cos(angle) + a * np.sin(angle)
        return out

    stream = [params["embed_tokens"][token] for token in text]
    for layer in range(config.layers):
        at = f"layers.{layer}."
        keys, values, attended = [], [], []
        for t, x in enumerate(stream):
            h = norm(x, at + "input_layernorm")
            q, k, v = (project(h, f"{at}self_attn.{name}") for name in "qkv")
            keys.append([turn(part, t) for part in heads_of(k, at + "self_attn.k_norm")])
            values.append(v.reshape(-1, d))
            heads = []
            for head, part in enumerate(heads_of(q, at + "self_attn.q_norm")):
                of = head // (config.heads // config.kv_heads)
                query = turn(part, t)
                scores = np.array([query @ keys[s][of] / np.sqrt(d) for s in range(t + 1)])
                odds = np.exp(scores) / np.exp(scores).sum()
                heads.append(sum(p * values[s][of] for s, p in enumerate(odds)))
            attended.append(np.concatenate(heads))
        for t in range(len(text)):
            o = attended[t]
            if config.sub_norms:
                o = norm(o, at + "self_attn.attn_sub_norm")
            x = stream[t] + project(o, at + "self_attn.o")
            h = norm(x, at + "post_attention_layernorm")
            gate, up = (project(h, f"{at}mlp.{name}") for name in ("gate", "up"))
            squared = np.where(gate > 0, gate, 0) ** 2
            h = (squared if config.family == "bitnet" else gate / (1 + np.exp(-gate))) * up
            if config.sub_norms:
                h = norm(h, at + "mlp.ffn_sub_norm")
            stream[t] = x + project(h, at + "mlp.down")
    out = params["embed_tokens" if config.tied else "lm_head"]
    assert out.shape == (config.vocab_size, hidden)
    assert set(params) == set(param_shapes(config))
    return np.array([out @ norm(x, "norm") for x in stream])


# --- the whole model ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_the_published_block_token_by_token(kind):
    """Against loops over tokens, heads and pairs in float64; the tables of angles are float32."""
    config = KINDS[kind]
    params, tokens = draw_params(config), draw_tokens(3, 9)
    logits = forward(config, params, tokens)
    assert logits.shape == (3, 9, VOCAB)
    for row, text in zip(logits, tokens, strict=True):
        np.testing.assert_allclose(row, plain_forward(config, params, text), atol=3e-6)


def test_float32_in_float32_out():
    """And near to float64."""
    params, tokens = draw_params(CONFIG), draw_tokens(2, 7)
    logits = forward(CONFIG, {k: v.astype(np.float32) for k, v in params.items()}, tokens)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, forward(CONFIG, params, tokens), atol=2e-5)


@given(texts, st.integers(1, 9), st.integers(1, VOCAB - 1), st.sampled_from(["float", "bit"]))
def test_no_later_token_changes_an_earlier_logit(text, position, change, kind):
    """The causal law, to the bit: also with a scale for each token's activations."""
    position = min(position, len(text) - 1)
    params, linear = draw_params(CONFIG, np.float32), {"float": float_linear, "bit": bit_linear}
    before = forward(CONFIG, params, [text], linear=linear[kind])
    changed = [*text[:position], (text[position] + change) % VOCAB, *text[position + 1 :]]
    after = forward(CONFIG, params, [changed], linear=linear[kind])
    np.testing.assert_array_equal(before[0, :position], after[0, :position])
    assert not np.array_equal(before[0, position], after[0, position])


def test_the_rows_of_a_batch_do_not_see_each_other():
    """A text's logits are the same alone."""
    params, tokens = draw_params(CONFIG), draw_tokens(4, 6)
    together = forward(CONFIG, params, tokens)
    for row, text in zip(together, tokens, strict=True):
        np.testing.assert_allclose(forward(CONFIG, params, text[None])[0], row, atol=1e-12)


@settings(max_examples=25)
@given(texts, st.sets(st.integers(1, 9)), st.sampled_from([*KINDS]))
def test_a_cache_changes_nothing(text, cuts, kind):
    """A text in pieces, each after a cache of the earlier ones, has the logits of the whole."""
    config = KINDS[kind]
    params = draw_params(config)
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    cache, pieces = PlainCache(config.layers), []
    for start, end in pairwise(edges):
        pieces.append(forward(config, params, [text[start:end]], cache=cache))
    assert cache.length == len(text)
    whole = forward(config, params, [text])
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-6)


def test_grouped_queries_are_repeated_keys():
    """Two key heads for four queries: as four key heads of which each two are equal."""
    many = KINDS["all heads"]
    params, tokens = draw_params(CONFIG), draw_tokens(2, 8)
    repeated = dict(params)
    for name, w in params.items():
        if name.endswith(("k_proj", "v_proj")):
            heads = w.reshape(2, CONFIG.head_dim, 16)
            repeated[name] = np.repeat(heads, 2, axis=0).reshape(16, 16)
    np.testing.assert_allclose(
        forward(CONFIG, params, tokens), forward(many, repeated, tokens), atol=1e-12
    )


def test_the_head_is_the_embedding_only_if_tied():
    """An own head that equals the embedding gives the tied model; another does not."""
    own = dataclasses.replace(CONFIG, tied=False)
    params, tokens = draw_params(CONFIG), draw_tokens(1, 5)
    tied = forward(CONFIG, params, tokens)
    same = forward(own, params | {"lm_head": params["embed_tokens"]}, tokens)
    np.testing.assert_array_equal(tied, same)
    other = forward(own, params | {"lm_head": -params["embed_tokens"]}, tokens)
    np.testing.assert_array_equal(tied, -other)


def test_an_embedding_of_bfloat16_bits_is_its_float32():
    """The upper halves of float32, held as uint16: looked up and multiplied as what they are."""
    params, tokens = draw_params(CONFIG, np.float32), draw_tokens(2, 5)
    bits = (params["embed_tokens"].view(np.uint32) >> 16).astype(np.uint16)
    widened = widen(bits)
    np.testing.assert_array_equal(widened.view(np.uint32) & 0xFFFF, 0)
    np.testing.assert_allclose(widened, params["embed_tokens"], rtol=2**-7)
    logits = forward(CONFIG, params | {"embed_tokens": bits}, tokens)
    expected = forward(CONFIG, params | {"embed_tokens": widened}, tokens)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("group", [None, 32])
def test_packed_matrices_everywhere_are_the_floats_that_they_stand_for(tied, group):
    """Projections by float activations, embedding and head: scale * codes, never expanded."""
    config = BitNetConfig(33, 64, 96, 2, 4, 2, 12, family="qwen3", own_head_dim=24, tied=tied)
    rng = np.random.default_rng(0)
    packed = draw_params(config, np.float32)
    for name, shape in param_shapes(config).items():
        if len(shape) == 2:
            scale = rng.uniform(0.1, 0.3, (shape[0], shape[1] // group) if group else ())
            packed[name] = TernaryMatrix.from_codes(rng.integers(-1, 2, shape), scale)
    plain = {n: w.rows() if isinstance(w, TernaryMatrix) else w for n, w in packed.items()}
    tokens = rng.integers(0, 33, (2, 9))
    expected = forward(config, plain, tokens)
    logits = forward(config, packed, tokens, linear=float_linear)
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())
    model = BitNetModel(config, packed, float_linear)
    assert list(generate(model, [1, 2], 9)) == list(
        generate(BitNetModel(config, plain, float_linear), [1, 2], 9)
    )
    assert model.nbytes < 0.3 * BitNetModel(config, plain, float_linear).nbytes
    quantised = BitNetModel(config, packed).logits(tokens)  # the head's inputs, too
    x = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)
    head = packed["embed_tokens" if tied else "lm_head"]
    one = logits_of(config, packed, x, packed_linear)
    normed = normalize(x, packed["norm"], eps=config.rms_eps)
    np.testing.assert_array_equal(one, ternary_matmul(normed, head))
    assert 1e-4 < np.abs(quantised - expected).max() < 0.1 * np.abs(expected).max()


# --- what multiplies, and what makes sparse ----------------------------------------------------


def test_packed_weights_give_the_logits_of_fake_quantised_ones():
    """int8 activations and ternary codes, summed exactly or as float32: one rounding apart."""
    params, tokens = draw_params(CONFIG, np.float32), draw_tokens(3, 8)
    trained = forward(CONFIG, params, tokens, linear=bit_linear)
    packed = pack_params(params)
    used = forward(CONFIG, packed, tokens, linear=packed_linear)
    difference = np.abs(trained - used)
    assert np.median(difference) < 1e-5
    assert difference.max() < 0.05  # one activation may round the other way, and all follows
    for name, w in packed.items():
        assert isinstance(w, TernaryMatrix) == name.endswith("_proj")
        if name.endswith("_proj"):
            codes, gamma = absmean_quantize(params[name])
            np.testing.assert_array_equal(w.codes(), codes)
            assert w.scale == gamma


def test_projections_of_bfloat16_bits_are_the_numbers_that_they_stand_for():
    """As in the output head: a float model takes them, and never as integers."""
    params = {name: w.astype(np.float32) for name, w in draw_params(CONFIG).items()}
    bits, numbers = dict(params), dict(params)
    for name in (name for name in params if name.endswith("_proj")):
        bits[name] = (params[name].view(np.uint32) >> 16).astype(np.uint16)
        numbers[name] = (params[name].view(np.uint32) & 0xFFFF0000).view(np.float32)
    tokens = draw_tokens(2, 5)
    models = (BitNetModel(CONFIG, p, float_linear) for p in (bits, numbers))
    logits, expected = (model.logits(tokens) for model in models)
    np.testing.assert_array_equal(logits, expected)
    with pytest.raises(TypeError, match="got uint16"):
        BitNetModel(CONFIG, bits).logits(tokens)


def test_without_strength_a_bit_linear_is_a_float_linear():
    """The warm-up starts from the float model; at full strength it is another."""
    x, w = floats(5, 16), floats(7, 16, seed=1)
    np.testing.assert_array_equal(bit_linear(x, w, 0.0), float_linear(x, w))
    assert np.abs(bit_linear(x, w) - float_linear(x, w)).max() > 0.1
    half = bit_linear(x, w, 0.5)
    assert not np.array_equal(half, bit_linear(x, w))


def test_sparsify_meets_the_inputs_of_the_projections():
    """Four sites a layer, in order, with their widths; what it returns is what is multiplied."""
    params, tokens = draw_params(CONFIG), draw_tokens(2, 3)
    seen = []

    def look(x, site):
        seen.append((site, x.shape))
        return x

    plain = forward(CONFIG, params, tokens)
    np.testing.assert_array_equal(forward(CONFIG, params, tokens, sparsify=look), plain)
    layer = [("qkv", (6, 16)), ("o", (6, 16)), ("gate_up", (6, 16)), ("down", (6, 20))]
    assert seen == 2 * layer
    silent = {
        site: forward(CONFIG, params, tokens, sparsify=lambda x, s, site=site: x * (s != site))
        for site in ("o", "down", "qkv", "gate_up")
    }
    nothing = {k: np.zeros_like(w) if k.endswith("o_proj") else w for k, w in params.items()}
    np.testing.assert_allclose(silent["o"], forward(CONFIG, nothing, tokens), atol=1e-12)
    np.testing.assert_allclose(silent["qkv"], silent["o"], atol=1e-12)
    nothing = {k: np.zeros_like(w) if k.endswith("down_proj") else w for k, w in params.items()}
    np.testing.assert_allclose(silent["down"], forward(CONFIG, nothing, tokens), atol=1e-12)
    np.testing.assert_allclose(silent["gate_up"], silent["down"], atol=1e-12)


def test_a_model_multiplies_as_the_type_of_its_weights_says():
    """Packed weights packed, float weights fake-quantised; a float model asks for it."""
    params, tokens = draw_params(CONFIG, np.float32), draw_tokens(1, 6)
    packed = BitNetModel(CONFIG, pack_params(params))
    np.testing.assert_array_equal(
        packed.logits(tokens), forward(CONFIG, packed.params, tokens, linear=packed_linear)
    )
    np.testing.assert_array_equal(
        BitNetModel(CONFIG, params).logits(tokens),
        forward(CONFIG, params, tokens, linear=bit_linear),
    )
    whole = BitNetModel(CONFIG, params, float_linear)
    np.testing.assert_array_equal(whole.logits(tokens), forward(CONFIG, params, tokens))
    assert whole.nbytes == sum(4 * w.size for w in params.values())
    assert packed.nbytes == sum(w.nbytes for w in packed.params.values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        packed.params = {}


# --- positions and attention -------------------------------------------------------------------


def test_the_first_token_is_not_turned_and_no_length_changes():
    """Position 0 has angle 0; a rotation keeps the length of every pair."""
    x = floats(2, 6, 3, 8)
    y = rotate(x, positions(2, 6, 8))
    np.testing.assert_array_equal(y[:, 0], x[:, 0])
    pairs = np.hypot(x[..., :4], x[..., 4:]), np.hypot(y[..., :4], y[..., 4:])
    np.testing.assert_allclose(*pairs, rtol=1e-6)
    assert np.abs(y[:, 1:] - x[:, 1:]).max() > 0.1


def test_stretched_positions_turn_slow_pairs_more_slowly():
    """By hand: theta 10^4, head_dim 8, speeds 1, 0.1, 0.01, 0.001, trained with 200 positions.

    200 / wavelength is 31.8, 3.18, 0.318, 0.0318: above 4 the speed stays, below 1 it is divided by
    8, and 3.18 is 0.728 of the way: ``1 / (0.272 / 8 + 0.728)``.
    """
    scaling = RopeScaling(original=200)
    np.testing.assert_allclose(scaling.divisors(8, 1e4), [1, 1.3128, 8, 8], rtol=1e-4)
    plain, stretched = positions(1, 9, 8), positions(1, 9, 8, divisors=scaling.divisors(8, 1e4))
    np.testing.assert_array_equal(stretched.cos[..., 0], plain.cos[..., 0])
    np.testing.assert_allclose(stretched.sin[8, 0, 1, 2], np.sin(8 * 0.01 / 8), rtol=1e-6)
    config = dataclasses.replace(CONFIG, rope_scaling=RopeScaling(original=4))
    assert config != CONFIG
    params = draw_params(config)
    logits, before = (forward(c, params, draw_tokens(1, 9)) for c in (config, CONFIG))
    assert np.abs(logits - before)[0, 1:].max() > 1e-3


def test_the_first_pair_turns_by_one_radian_a_token():
    """By hand: head_dim 4, theta 100: the pairs (0, 2) and (1, 3) turn by p and by p / 10."""
    x = np.zeros((1, 3, 1, 4))
    x[..., 0] = x[..., 3] = 1
    y = rotate(x, positions(1, 3, 4, theta=100.0))[0, :, 0]
    p = np.arange(3)
    expected = np.stack([np.cos(p), -np.sin(p / 10), np.sin(p), np.cos(p / 10)], axis=1)
    np.testing.assert_allclose(y, expected, atol=1e-7)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 300))
def test_a_product_of_rotated_vectors_depends_on_their_distance_alone(a, b, shift):
    """``rotate(q, a) . rotate(k, b) = rotate(q, a + s) . rotate(k, b + s)``."""
    q, k = floats(2, 1, 1, 1, 16)

    def product(a, b):
        turned = rotate(q, positions(1, 1, 16, start=a)), rotate(k, positions(1, 1, 16, start=b))
        return np.sum(turned[0] * turned[1])

    # angles of up to 500 are float32: off by 500 * 2**-24 each, times the lengths
    assert product(a, b) == pytest.approx(product(a + shift, b + shift), abs=2e-3)


def test_equal_keys_average_the_values_so_far():
    """Without a preference, token t gets the mean of values 0 to t."""
    v = floats(1, 2, 5, 4)
    o = causal_attention(
        floats(1, 2, 5, 4), np.zeros((1, 2, 5, 4)), v, future=positions(1, 5, 4).future
    )
    expected = np.cumsum(v, axis=2) / np.arange(1, 6)[:, None]
    np.testing.assert_allclose(o, expected, atol=1e-12)


def test_large_scores_do_not_overflow():
    """Scores in the thousands pick one value each; float32 would overflow at 89."""
    q = np.float32(1000) * np.eye(4, dtype=np.float32)[None, None]
    v = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    np.testing.assert_array_equal(causal_attention(q, q, v), v)


def test_one_token_needs_no_mask():
    """After a cache, one query sees every key; more queries see their own past."""
    assert positions(1, 1, 4, start=7).future is None
    future = positions(1, 2, 4, start=3).future
    assert future.astype(int).tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]


# --- derivatives -------------------------------------------------------------------------------


def loss_of(config, tokens, linear=float_linear):
    """Return the loss as a function of the parameters: what training differentiates."""
    return lambda params: token_loss(
        forward(config, params, tokens[:, :-1], linear=linear), tokens[:, 1:]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_tangent_is_the_slope_of_the_loss(kind):
    """Against central differences in float64."""
    config = KINDS[kind]
    params, loss = draw_params(config), loss_of(config, draw_tokens(2, 7))
    direction = draw_params(config, seed=5)
    _, tangent = jvp(loss, (params,), (direction,))
    ahead, behind = (
        loss({name: w + step * direction[name] for name, w in params.items()})
        for step in (1e-6, -1e-6)
    )
    assert tangent == pytest.approx((ahead - behind) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("linear", [float_linear, bit_linear])
@pytest.mark.parametrize("kind", KINDS)
def test_reverse_mode_is_the_transpose_of_forward_mode(kind, linear):
    """The dot-product test on all logits: ``<c, J v> = <J^T c, v>``."""
    config = KINDS[kind]
    params, tokens = draw_params(config), draw_tokens(2, 6)
    direction = {name: floats(*w.shape, seed=len(name)) for name, w in params.items()}

    def logits(params):
        return forward(config, params, tokens, linear=linear)

    cotangent = floats(2, 6, VOCAB)
    _, tangent = jvp(logits, (params,), (direction,))
    _, pullback = vjp(logits, (params,))
    (gradient,) = pullback(cotangent)
    ahead = np.sum(cotangent * tangent)
    back = sum(np.sum(gradient[name] * direction[name]) for name in params)
    assert ahead == pytest.approx(back, rel=1e-10)
    assert set(gradient) == set(params)


def test_the_norms_own_way_back_is_the_transpose_of_its_tangent():
    """In float32, where it has one: ``<c, J (u, v)> = <J^T c, (u, v)>``."""
    (x, u, c), (gain, v) = floats(3, 6, 16).astype(np.float32), floats(2, 16).astype(np.float32)

    def norm(x, gain):
        return blocks.normalize(x, gain, eps=1e-5)

    _, tangent = jvp(norm, (x, gain), (u, v))
    x_back, gain_back = vjp(norm, (x, gain))[1](c)
    ahead = np.sum(c * tangent, dtype=np.float64)
    assert ahead == pytest.approx(np.vdot(x_back, u) + np.vdot(gain_back, v), rel=1e-4)


def test_a_gradient_is_float32_and_reaches_every_parameter():
    """No parameter is left out, and none becomes float64 on the way."""
    params, tokens = draw_params(CONFIG, np.float32), draw_tokens(4, 9)
    for linear in (float_linear, bit_linear):
        loss, gradient = value_and_grad(loss_of(CONFIG, tokens, linear))(params)
        assert loss.dtype == np.float32
        for name, g in gradient.items():
            assert g.dtype == np.float32, name
            assert g.shape == params[name].shape
            assert np.abs(g).max() > 0, name


def test_many_directions_flow_together():
    """`jvp_batch` gives what `jvp` gives for each."""
    params, loss = draw_params(CONFIG), loss_of(CONFIG, draw_tokens(2, 5))
    directions = {name: floats(3, *w.shape, seed=1) for name, w in params.items()}
    _, together = jvp_batch(loss, (params,), (directions,))
    for i, tangent in enumerate(together):
        _, alone = jvp(loss, (params,), ({name: d[i] for name, d in directions.items()},))
        assert tangent == pytest.approx(alone, rel=1e-10)


def test_a_gradient_can_be_differentiated_again():
    """A product with the Hessian, forward over reverse, against differences of gradients."""
    config = dataclasses.replace(CONFIG, layers=1)
    params, loss = draw_params(config), loss_of(config, draw_tokens(1, 5))
    direction = draw_params(config, seed=3)
    _, curved = jvp(grad(loss), (params,), (direction,))
    ahead, behind = (
        grad(loss)({name: w + step * direction[name] for name, w in params.items()})
        for step in (1e-5, -1e-5)
    )
    for name, c in curved.items():
        np.testing.assert_allclose(c, (ahead[name] - behind[name]) / 2e-5, atol=2e-6, rtol=2e-4)


# --- the pieces --------------------------------------------------------------------------------


def test_the_pieces_are_those_of_layers():
    """Norm, gated unit and loss with rules of their own: the values of the plain functions."""
    x, gain, up = floats(6, 10), floats(10, seed=1), floats(6, 10, seed=2)
    labels = np.arange(6) % 10
    np.testing.assert_allclose(normalize(x, gain, eps=1e-3), rms_norm(x, gain, 1e-3), rtol=1e-12)
    np.testing.assert_allclose(gated_unit(x, up), squared_relu(x) * up, rtol=1e-12)
    np.testing.assert_allclose(silu_unit(x, up), x / (1 + np.exp(-x)) * up, rtol=1e-12)
    assert token_loss(x, labels) == pytest.approx(cross_entropy(x, labels), rel=1e-12)


@pytest.mark.parametrize(
    ("ours", "plain", "arguments"),
    [
        (
            lambda x, g: normalize(x, g, eps=1e-3),
            lambda x, g: rms_norm(x, g, 1e-3),
            (floats(6, 10), floats(10, seed=1)),
        ),
        (gated_unit, lambda g, u: squared_relu(g) * u, (floats(6, 10), floats(6, 10, seed=2))),
        (
            silu_unit,
            lambda g, u: g / (1 + np.exp(-g)) * u,
            (floats(6, 10), floats(6, 10, seed=2)),
        ),
        (
            lambda z: token_loss(z, np.arange(6)),
            lambda z: cross_entropy(z, np.arange(6)),
            (floats(6, 10),),
        ),
    ],
    ids=["normalize", "gated_unit", "silu_unit", "token_loss"],
)
def test_a_rule_of_its_own_is_the_derivative_of_the_plain_function(ours, plain, arguments):
    """Operation by operation, `minibit.dual` comes to the same tangent."""
    directions = tuple(floats(*x.shape, seed=7) for x in arguments)
    expected = jvp(plain, arguments, directions)[1]
    np.testing.assert_allclose(jvp(ours, arguments, directions)[1], expected, rtol=1e-10, atol=0)


@needs_kernels
@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 99))
def test_kernels_of_norm_and_gate_equal_their_references(rows, width, seed):
    """float32 sums of `width` terms apart, entry by entry; the gate to the bit."""
    x, c, gain = (a.astype(np.float32) for a in floats(3, rows, width, seed=seed))
    gain = gain[0]
    near = {"rtol": width * 2.0**-23, "atol": 1e-5}
    normed, expected = blocks._normalize_kernel(x, gain, 1e-5), normalize_reference(x, gain, 1e-5)
    for ours, plain in zip(normed, expected, strict=True):
        assert ours.dtype == plain.dtype == np.float32
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)
    _, unit, r = expected
    back = blocks._normalize_back(c, c.shape, False, unit, r, gain)
    scale = 1 + np.abs(r).max() * np.abs(c * gain).max()
    plain = normalize_back_reference(c, unit, r, gain)
    np.testing.assert_allclose(back / scale, plain / scale, **near)
    scale = 1 + np.abs(c * unit).sum(axis=0).max()
    plain = gain_back_reference(c, unit)
    normed = blocks._gain_back(c, gain.shape, False, unit)
    np.testing.assert_allclose(normed / scale, plain / scale, **near)
    for ours, plain in zip(
        blocks._gated_unit_kernel(x, c), gated_unit_reference(x, c), strict=True
    ):
        np.testing.assert_array_equal(ours, plain)


@needs_kernels
@pytest.mark.parametrize("back", [False, True])
def test_the_kernel_of_rotation_equals_its_reference(back):
    """Within the rounding of two products and a sum; and back undoes forth."""
    at = positions(3, 7, 10, start=4)
    x = floats(3, 7, 2, 10).astype(np.float32)
    turned = attention._turn(x, cos=at.cos, sin=at.sin, back=back)
    np.testing.assert_allclose(turned, turn_reference(x, at.cos, at.sin, back), atol=1e-6)
    again = attention._turn(turned, cos=at.cos, sin=at.sin, back=not back)
    np.testing.assert_allclose(again, x, atol=2e-6)


def test_kernels_and_plain_numpy_come_to_the_same_gradient(monkeypatch):
    """The whole model in float32 by either path; NaN passes through both gates."""
    params, tokens = draw_params(CONFIG, np.float32), draw_tokens(4, 9)
    gradient = grad(loss_of(CONFIG, tokens))(params)
    monkeypatch.setenv("MINIBIT_KERNELS", "reference")
    for name, plain in grad(loss_of(CONFIG, tokens))(params).items():
        np.testing.assert_allclose(gradient[name], plain, atol=2e-6 * (1 + np.abs(plain).max()))
    monkeypatch.undo()
    gates = np.float32([[np.nan, -1, 0, 2]])
    for function in (gated_unit_reference, blocks._gated_unit_kernel):
        y = function(gates, np.ones_like(gates))[0]
        np.testing.assert_array_equal(y, [[np.nan, 0, 0, 4]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sigmoid_gate_is_sure_at_both_ends(dtype):
    """Far below 0 it is shut, far above open, without an overflow; NaN stays."""
    gate = np.array([-1e4, -90, 0, 90, 1e4, np.nan], dtype)
    ones = np.ones_like(gate)
    y, slope = jvp(silu_unit, (gate, ones), (ones, 0 * ones))
    assert y.dtype == slope.dtype == dtype
    np.testing.assert_allclose(y, [0, 0, 0, 90, 1e4, np.nan], atol=1e-30)
    np.testing.assert_allclose(slope, [0, 0, 0.5, 1, 1, np.nan], atol=1e-30)


def test_an_embedding_adds_up_the_slopes_of_equal_tokens():
    """In a small vocabulary by a product, in a large one by a gather: the same gradient."""
    tokens = np.array([3, 1, 3, 3])
    weights = floats(4, 5)
    for vocab in (8, ONE_HOT + 1):
        table = floats(vocab, 5, seed=1)
        gradient = grad(lambda table: np.sum(embed(table, tokens) * weights))(table)
        expected = np.zeros((vocab, 5))
        np.add.at(expected, tokens, weights)
        np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_a_large_vocabulary_makes_no_one_hot_matrix():
    """Reverse mode then keeps the tokens alone, not a row of the vocabulary for each."""
    table, tokens = np.ones((100_000, 2), np.float32), np.arange(50)
    _, pullback = vjp(lambda table: embed(table, tokens), (table,))
    assert pullback.nbytes < 1000


def test_initial_parameters_are_uniform_draws_of_philox():
    """Lane i for the i-th parameter; standard deviation 0.05, or one over the root of inputs."""
    params = init_params(CONFIG, seed=3)
    assert list(params) == list(param_shapes(CONFIG))
    assert {w.dtype for w in params.values()} == {np.dtype(np.float32)}
    for lane, (name, w) in enumerate(params.items()):
        if w.ndim == 1:
            assert (w == 1).all()
            continue
        std = 0.05 if name == "embed_tokens" else w.shape[1] ** -0.5
        draws = uniform(3, w.shape, domain=INITIAL, lane=lane)
        np.testing.assert_allclose(w, (2 * draws - 1) * np.sqrt(3) * std, rtol=1e-6)
        assert w.std() == pytest.approx(std, rel=0.15)
    assert not np.array_equal(params["embed_tokens"], init_params(CONFIG, 4)["embed_tokens"])


# --- what does not fit -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hidden_size": 18}, "hidden_size must be heads times an even number"),
        ({"hidden_size": 12}, "hidden_size must be heads times an even number"),
        ({"kv_heads": 3}, "kv_heads must divide heads, got 3 and 4"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"rms_eps": 0.0}, "rms_eps must be above 0"),
        ({"rms_eps": 1e-45}, "rms_eps must be above 0 and finite in float32"),
        ({"rope_theta": float("nan")}, "rope_theta must be above 0"),
        ({"rope_theta": 2.0**128}, "rope_theta must be above 0 and finite in float32"),
        ({"eos": (3, -1)}, r"eos must lie in \[0, 2\*\*31\)"),
        ({"family": "gemma"}, "family must be 'bitnet', 'llama' or 'qwen3', got 'gemma'"),
        ({"own_head_dim": 3}, r"own_head_dim must be even \(pairs\), got 3"),
        ({"own_head_dim": 0}, "own_head_dim must be at least 2"),
        ({"rope_scaling": RopeScaling(0.5)}, r"rope_scaling.factor must lie in \[1, inf\)"),
        ({"rope_scaling": RopeScaling(low=4)}, r"rope_scaling.high must lie in \(4, inf\)"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change, match):
    """By name, before any array is made."""
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(CONFIG, **change)


def test_configurations_of_equal_models_are_equal():
    """A head's width that follows from the sizes needs no saying; sub-norms are BitNet's alone."""
    assert dataclasses.replace(CONFIG, own_head_dim=4) == CONFIG
    wide = dataclasses.replace(CONFIG, own_head_dim=4, heads=2)
    assert (wide.head_dim, dataclasses.replace(wide, heads=4)) == (4, CONFIG)
    llama = dataclasses.replace(CONFIG, family="llama")
    assert llama == dataclasses.replace(CONFIG, family="llama", sub_norms=False)
    assert llama != dataclasses.replace(CONFIG, sub_norms=False)
    assert [*param_shapes(llama)] == [*param_shapes(dataclasses.replace(CONFIG, sub_norms=False))]


@pytest.mark.parametrize("size", [2.0, True, "4"])
def test_a_size_is_a_whole_number(size):
    """Not a float, a truth value or text."""
    with pytest.raises(TypeError, match="layers must be an integer"):
        dataclasses.replace(CONFIG, layers=size)


@pytest.mark.parametrize(
    ("tokens", "error", "match"),
    [
        ([[1, VOCAB, 2]], ValueError, rf"\[0, 10\], got {VOCAB} at \(0, 1\)"),
        ([[1, 2], [0, -1]], ValueError, r"\[0, 10\], got -1 at \(1, 1\)"),
        ([1, 2], ValueError, r"shape \(batch, length\), got \(2,\)"),
        ([[]], ValueError, r"shape \(batch, length\), got \(1, 0\)"),
        ([[1.0]], TypeError, "integers, got float64"),
        ([[True]], TypeError, "integers, got bool"),
        ([[1] * 13], ValueError, "max_positions = 12, got 13"),
    ],
)
def test_tokens_that_do_not_fit_are_named(tokens, error, match):
    """Where, what was there, and what would fit."""
    with pytest.raises(error, match=match):
        forward(CONFIG, draw_params(CONFIG), tokens)


def test_a_full_cache_takes_no_more():
    """The tokens of the cache count."""
    params, cache = draw_params(CONFIG), PlainCache(CONFIG.layers)
    forward(CONFIG, params, draw_tokens(1, 10), cache=cache)
    with pytest.raises(ValueError, match="max_positions = 12, got 3 after 10 in the cache"):
        forward(CONFIG, params, draw_tokens(1, 3), cache=cache)
    assert forward(CONFIG, params, draw_tokens(1, 2), cache=cache).shape == (1, 2, VOCAB)


def test_parameters_that_do_not_fit_are_named():
    """Missing, unknown, transposed: in the model, and in a forward pass."""
    params = draw_params(CONFIG)
    name = "layers.1.mlp.down_proj"
    missing = {key: w for key, w in params.items() if key != name}
    with pytest.raises(ValueError, match=rf"'{name}' of shape \(16, 20\), it is missing"):
        BitNetModel(CONFIG, missing)
    with pytest.raises(ValueError, match=rf"\['{name}'\] must have shape \(16, 20\), got \(20, 16"):
        forward(CONFIG, params | {name: params[name].T}, [[1]])
    with pytest.raises(ValueError, match="'lm_head', which this configuration has not"):
        check_params(CONFIG, params | {"lm_head": params["embed_tokens"]})
    with pytest.raises(ValueError, match="sub_norm', which this configuration has not"):
        BitNetModel(KINDS["no sub-norms"], params)


def test_an_empty_batch_has_empty_logits():
    """No rows in, no rows out."""
    assert forward(CONFIG, draw_params(CONFIG), np.zeros((0, 4), int)).shape == (0, 4, VOCAB)


@pytest.mark.parametrize("take", [lambda f, *x: f(*x), lambda f, *x: vjp(f, x)[0]])
@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (gated_unit, [(4, 8), (8,)]),
        (lambda x, gain: normalize(x, gain, eps=1e-5), [(4, 8), (1,)]),
        (lambda x, gain: normalize(x, gain, eps=1e-5), [(2, 4, 8), (8,)]),
        (lambda x: rotate(x, positions(1, 3, 4)), [(1, 5, 1, 4)]),
        (lambda x: rotate(x, positions(1, 3, 4)), [(1, 3, 1, 8)]),
        (lambda x: rotate(x, positions(1, 3, 4)), [(3, 1, 4)]),
    ],
)
def test_shapes_that_do_not_fit_never_reach_a_kernel(function, shapes, take):
    """A kernel would read beyond the end of the shorter array: with a rule, and without."""
    with pytest.raises(ValueError, match=r"must have (one )?shape"):
        take(function, *(np.ones(shape, np.float32) for shape in shapes))


def test_targets_and_tokens_are_counted_from_the_front_and_not_repeated():
    """One target for two rows would be taken twice; -1 is the last row, and no one-hot column."""
    logits, table = np.zeros((1, 2, 3)), np.zeros((3, 2))
    for targets, match in (([[1]], r"targets of shape \(1, 2\)"), ([[0, -1]], "got -1")):
        rows = np.array(targets)
        with pytest.raises(ValueError, match=match):
            token_loss(logits, rows)
        with pytest.raises(ValueError, match=match):
            grad(token_loss)(logits, rows)
    with pytest.raises(ValueError, match="got -1"):
        embed(table, np.array([0, -1]))
    with pytest.raises(ValueError, match="got -1"):
        grad(lambda w: np.sum(embed(w, np.array([0, -1]))))(table)


def test_only_embedding_and_head_are_bits_of_bfloat16():
    """A gain of bits would be taken for the numbers 0 to 65535; a token is no fraction."""
    params = draw_params(CONFIG)
    for name in ("norm", "layers.0.mlp.ffn_sub_norm"):
        bits = np.full(params[name].shape, 0x3F80, np.uint16)
        with pytest.raises(TypeError, match=f"'{name}'.* must be floats, got uint16"):
            forward(CONFIG, params | {name: bits}, [[1]])
    with pytest.raises(TypeError, match="eos must be an integer"):
        dataclasses.replace(CONFIG, eos=1.5)
