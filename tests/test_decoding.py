"""Decoding: the cache, the draw, and one token at a time equal to all at once."""

import dataclasses
import math
import threading

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minibit import kernels
from minibit.matmul import ternary_matmul
from minibit.noise import uniform
from minibit.noise.philox import TOKENS
from minibit.transformer import (
    BitNetConfig,
    BitNetModel,
    Decoder,
    KVCache,
    RopeScaling,
    decoding,
    float_linear,
    generate,
    init_params,
    pack_params,
    sample,
)
from minibit.transformer import packed_token as packed_step
from minibit.transformer.blocks import normalize

SMALL = BitNetConfig(83, 48, 128, layers=2, heads=4, kv_heads=2, max_positions=80)
CONFIGS = {
    "grouped queries": SMALL,
    "one key head": BitNetConfig(31, 40, 72, 1, heads=4, kv_heads=1, max_positions=80),
    "a head for each": BitNetConfig(300, 64, 192, 3, heads=2, kv_heads=2, max_positions=80),
    "odd sizes": BitNetConfig(7, 36, 50, 2, heads=3, kv_heads=3, max_positions=80),
    "no sub-norms": BitNetConfig(83, 48, 128, 2, 4, 2, max_positions=80, sub_norms=False),
    "own head": BitNetConfig(83, 48, 128, 2, 4, 2, max_positions=80, tied=False),
    "several chunks": BitNetConfig(200, 768, 1600, 1, heads=4, kv_heads=2, max_positions=80),
    "many narrow heads": BitNetConfig(50, 64, 64, 1, heads=32, kv_heads=32, max_positions=80),
    "other constants": BitNetConfig(83, 48, 128, 2, 4, 2, 80, rope_theta=500.0, rms_eps=0.3),
    "llama": BitNetConfig(83, 48, 128, 2, 4, 2, 80, family="llama", tied=False),
    "qwen3": BitNetConfig(83, 48, 128, 2, 4, 2, 80, family="qwen3", own_head_dim=20),
    "a norm each": BitNetConfig(83, 48, 128, 2, 4, 2, 80, projection_norms=True),
    "wide heads": BitNetConfig(83, 48, 128, 2, 4, 2, 80, own_head_dim=20),
    "stretched": BitNetConfig(83, 48, 128, 2, 4, 2, 80, rope_scaling=RopeScaling(original=9)),
}
compiled = pytest.mark.skipif(not kernels.compiled(), reason="needs compiled kernels")


def packed(config: BitNetConfig, seed: int = 0) -> BitNetModel:
    """A random packed model, with gains that are not all one."""
    params = pack_params(init_params(config, seed))
    rng = np.random.default_rng(seed)
    for name, value in params.items():
        if isinstance(value, np.ndarray) and value.ndim == 1:
            params[name] = rng.uniform(0.5, 1.5, value.shape).astype(np.float32)
    return BitNetModel(config, params)


def tokens_of(config: BitNetConfig, count: int, seed: int = 0) -> list[int]:
    """Random tokens."""
    return np.random.default_rng(seed).integers(0, config.vocab_size, count).tolist()


def one_by_one(model: BitNetModel, tokens: list[int], **options) -> np.ndarray:
    """Logits after every token, each read alone, (tokens, vocab)."""
    decoder, rows = Decoder(model, **options), []
    for token in tokens:
        decoder.append([token])
        rows.append(decoder.logits())
    return np.array(rows)


def assert_near(outputs, expected):
    """Equal but for float32 sums, except where a sum decided how an activation is rounded."""
    worst = np.abs(outputs - expected).max(axis=-1) / np.abs(expected).max()  # (tokens,)
    assert np.mean(worst < 1e-5) >= 0.9
    assert worst.max() < 0.1


# --- The cache


@given(st.data())
def test_a_cache_returns_all_that_was_appended(data):
    """extend(k, v) is concatenation along the tokens, whatever the pieces and the room ahead."""
    config = BitNetConfig(9, 24, 32, layers=2, heads=3, kv_heads=3, max_positions=40)
    batch, capacity = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 50))
    cache = KVCache(config, batch, capacity)
    pieces = data.draw(st.lists(st.integers(0, 12), max_size=5))
    assume(sum(pieces) <= 40)
    rng, so_far = np.random.default_rng(0), [np.empty((2, batch, 3, 0, 8), np.float32)] * 2
    for piece in pieces:
        assert cache.length == so_far[0].shape[3]
        for layer in range(2):
            new = rng.standard_normal((2, batch, 3, piece, 8)).astype(np.float32)
            so_far[layer] = np.concatenate([so_far[layer], new], axis=3)
            context = cache.extend(layer, *new)
            np.testing.assert_array_equal(context, so_far[layer])
    assert cache.length == sum(pieces) <= cache.capacity <= 40


def test_the_room_doubles_up_to_the_models_positions():
    """Amortised appends: 1, 2, 4, ..., and never more than max_positions."""
    cache = KVCache(SMALL, capacity=3)
    rooms = []
    for length in range(1, 81):
        cache.reserve(length)
        rooms.append(cache.capacity)
    assert sorted(set(rooms)) == [3, 6, 12, 24, 48, 80]
    assert cache.nbytes == 2 * 2 * 80 * 2 * 12 * 4  # keys and values, layers, heads of 12
    with pytest.raises(ValueError, match="80 positions takes no 81"):
        cache.reserve(81)


def test_the_length_grows_with_the_last_layer():
    """An interrupted pass leaves the length, so that its tokens are simply written again."""
    cache, k = KVCache(SMALL), np.ones((1, 2, 5, 12), np.float32)
    cache.extend(0, k, k)
    assert cache.length == 0
    cache.extend(0, 2 * k, k)
    cache.extend(1, k, k)
    assert cache.length == 5
    assert cache.extend(0, k[:, :, :0], k[:, :, :0])[0].min() == 2


def test_truncating_forgets_the_last_tokens():
    """What comes next takes their places."""
    model, text = packed(SMALL), tokens_of(SMALL, 12)
    cache = KVCache(SMALL)
    model.logits([text], cache)
    cache.truncate(7)
    again = model.logits([text[7:]], cache)
    np.testing.assert_allclose(again[0], model.logits([text])[0, 7:], atol=1e-5)
    for wrong in (-1, 13):
        with pytest.raises(ValueError, match=r"length must lie in \[0, 12\]"):
            cache.truncate(wrong)


def test_keys_of_another_shape_are_refused():
    """Batch, heads and width are those of the cache; keys and values go together."""
    cache, k = KVCache(SMALL), np.ones((1, 2, 5, 12), np.float32)
    for keys, values in ((k[0], k[0]), (k[:, :1], k[:, :1]), (k, k[:, :, :4]), (k[..., :6],) * 2):
        with pytest.raises(ValueError, match=r"shape \(1, 2, tokens, 12\)"):
            cache.extend(0, keys, values)
    for sizes in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            KVCache(SMALL, *sizes)


# --- The draw


@given(
    st.lists(st.integers(-6, 6), min_size=1, max_size=12),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.none() | st.integers(1, 13),
    st.none() | st.floats(0.05, 1),
)
def test_a_draw_is_that_of_the_definition(logits, u, temperature, top_k, top_p):
    """Against a plain sort of (probability, index); whole logits, so that ties are frequent."""
    weights = [math.exp((z - max(logits)) / temperature) for z in logits]
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top_k]
    if top_p is not None and top_p < 1:
        total, running, count = sum(weights[i] for i in ranked), 0.0, 0
        while running < top_p * total:
            assume(count == 0 or abs(running / total - top_p) > 1e-9)
            running, count = running + weights[ranked[count]], count + 1
        assume(abs(running / total - top_p) > 1e-9)
        ranked = ranked[:count]
    total, running, expected = sum(weights[i] for i in ranked), 0.0, None
    for i in sorted(ranked):
        running += weights[i] / total
        assume(abs(running - u) > 1e-9)
        if expected is None and running > u:
            expected = i
    token = sample(logits, u, temperature=temperature, top_k=top_k, top_p=top_p)
    assert token == (max(ranked) if expected is None else expected)


def test_draws_follow_the_softmax():
    """Chi-square of 20,000 Philox draws among 8 tokens, within four standard deviations."""
    logits = np.random.default_rng(3).standard_normal(8)
    numbers = uniform(5, 20_000)
    counts = np.bincount([sample(logits, u) for u in numbers], minlength=8)
    expected = 20_000 * np.exp(logits) / np.exp(logits).sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < 7 + 4 * math.sqrt(2 * 7)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20), st.floats(0.01, 100))
def test_the_lowest_number_draws_the_first_kept_and_temperature_zero_the_largest(logits, high):
    """uniform = 0 is the first kept token; the greedy token is the top-1 token at any heat."""
    z = np.float32(logits)
    greedy = sample(z, 0.5, temperature=0)
    assert greedy == int(np.argmax(z))
    assert sample(z, 0.999, temperature=high, top_k=1) == greedy
    assert sample(z, 0.0, temperature=1e-300) == greedy
    kept = np.exp((z.astype(float) - z.max()) / high) > 0
    assert sample(z, 0.0, temperature=high) == int(np.argmax(kept))


def test_logits_that_differ_by_less_than_their_exponentials_keep_their_order():
    """Equal p are no ties: the larger logit is kept."""
    z = [0.0, 1e-27, -1e-27, 1e-27]
    assert sample(z, 0.999, top_k=1) == 1
    assert [sample(z, u, top_p=0.5) for u in (0.0, 0.999)] == [1, 3]
    assert [sample(z, u, top_k=2, temperature=50.0) for u in (0.0, 0.999)] == [1, 3]
    assert sample([1.0, 0.0, 1e-27], 0.999, top_k=2) == 2  # also beside a larger one


def test_temperature_zero_takes_the_first_of_equal_logits():
    """A tie goes to the lowest index, whatever the number drawn."""
    assert [sample([1.0, 3.0, 3.0], u, temperature=0) for u in (0.0, 0.999)] == [1, 1]
    assert sample(np.zeros(5), 0.999, temperature=0) == 0


def test_the_largest_number_below_one_draws_the_last_kept():
    """Also where the product with the sum rounds up to the sum."""
    below = np.nextafter(1.0, 0.0)
    assert sample(np.zeros(3), below) == 2
    assert sample([0.0, 0.0, -np.inf], below) == 1
    assert sample(np.full(7, 3.3), below, top_k=6) == 5
    for size in range(1, 400):  # some of their sums round
        assert sample(np.linspace(0, 3, size), below, temperature=0.7) == size - 1


@pytest.mark.parametrize(
    ("arguments", "options", "name"),
    [
        (([], 0.5), {}, "logits"),
        (([[1.0]], 0.5), {}, "logits"),
        ((["a"], 0.5), {}, "logits"),
        (([1.0, np.nan], 0.5), {}, "got nan at 1"),
        (([np.inf, 1.0], 0.5), {"temperature": 0}, "got inf at 0"),
        (([-np.inf, -np.inf], 0.5), {}, "got -inf"),
        (([1.0], 1.0), {}, "uniform"),
        (([1.0], math.nan), {}, "uniform"),
        (([1.0], 0.5), {"temperature": -1}, "temperature"),
        (([1.0], 0.5), {"temperature": math.nan}, "temperature"),
        (([1.0], 0.5), {"top_k": 0}, "top_k"),
        (([1.0], 0.5), {"top_p": 0}, "top_p"),
        (([1.0], 0.5), {"top_p": 1.01}, "top_p"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused_by_name(arguments, options, name):
    """Empty or non-finite logits, numbers and settings out of range."""
    with pytest.raises(ValueError, match=name):
        sample(*arguments, **options)


# --- One token at a time


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_one_by_one_give_the_logits_of_the_whole_text(name):
    """The fast step against the plain forward pass, which sees all tokens at once."""
    model = packed(CONFIGS[name])
    text = tokens_of(model.config, 70)
    assert_near(one_by_one(model, text), model.logits([text])[0])


def test_a_head_of_bfloat16_is_read_in_place():
    """uint16 bits of the upper half of float32, also where they are a read-only file's."""
    model = packed(SMALL)
    table = (model.params["embed_tokens"].view(np.uint32) >> 16).astype(np.uint16)
    table.flags.writeable = False
    model = BitNetModel(SMALL, model.params | {"embed_tokens": table})
    text = tokens_of(SMALL, 30)
    assert_near(one_by_one(model, text), model.logits([text])[0])


@pytest.mark.parametrize("linear", [None, float_linear])
def test_models_that_are_not_packed_decode_too(linear):
    """Float weights, quantised at each use or not."""
    model = BitNetModel(SMALL, init_params(SMALL, 1), linear)
    text = tokens_of(SMALL, 20)
    assert Decoder(model)._packed is None
    assert_near(one_by_one(model, text), model.logits([text])[0])


def test_how_a_prompt_is_cut_changes_nothing(monkeypatch):
    """Pieces of 16 tokens, the last one alone, or token by token: the same logits."""
    monkeypatch.setattr(decoding, "PIECE", 16)
    model, text = packed(SMALL), tokens_of(SMALL, 75)
    whole = model.logits([text])[0]
    decoder, rows, ends = Decoder(model), [], (1, 18, 19, 40, 75)
    for begin, end in zip((0, *ends), ends, strict=False):
        decoder.append(text[begin:end])
        rows.append(decoder.logits())
    assert decoder.text == tuple(text)
    assert decoder.cache.length == 75
    assert_near(np.array(rows), whole[np.array(ends) - 1])
    np.testing.assert_array_equal(decoder.logits(), rows[-1])  # nothing new: nothing read


@compiled
def test_two_new_tokens_are_read_as_each_of_them_alone():
    """The same bits: a packed model reads a single token in one way, last or not."""
    model, text = packed(SMALL), tokens_of(SMALL, 12)
    decoder = Decoder(model)
    for begin in range(0, 12, 2):
        decoder.append(text[begin : begin + 2])
        decoder.logits()
    np.testing.assert_array_equal(decoder.logits(), one_by_one(model, text)[-1])


@compiled
@pytest.mark.parametrize("name", ["a head for each", "several chunks"])
def test_every_number_of_threads_gives_the_same_bits(name):
    """Threads share rows, not sums."""
    model, text = packed(CONFIGS[name]), tokens_of(CONFIGS[name], 40)
    alone = one_by_one(model, text, threads=1)
    for threads in (2, 3, 5):
        np.testing.assert_array_equal(one_by_one(model, text, threads=threads), alone)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_prompt_is_read_on_as_many_threads_as_its_decoder_may_take(monkeypatch, threads):
    """One thread is a number of threads; every product of a projection is told it."""
    counts = []

    def multiply(x, w, threads):
        counts.append(threads)
        return ternary_matmul(x, w, threads=threads)

    monkeypatch.setattr(decoding, "ternary_matmul", multiply)
    decoder = Decoder(packed(SMALL), threads=threads)
    decoder.append([1, 2, 3])
    decoder.logits()
    assert counts == [threads] * 7 * SMALL.layers


@compiled
def test_many_texts_at_once_give_the_same_bits():
    """Decoders in threads of their own, each of which asks for three: none waits for another."""
    model, text = packed(SMALL), tokens_of(SMALL, 40)
    alone = one_by_one(model, text, threads=1)
    texts: list[np.ndarray] = []

    def work() -> None:
        texts.append(one_by_one(model, text, threads=3))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(texts) == 4
    for rows in texts:
        np.testing.assert_array_equal(rows, alone)


@compiled
def test_a_helper_that_comes_too_late_changes_nothing(monkeypatch):
    """The caller does all chunks; a second walk over the same work finds nothing to do."""
    model, text = packed(SMALL), tokens_of(SMALL, 10)
    alone = one_by_one(model, text, threads=1)

    def late(tasks):
        return tasks[0]() and all(task() for task in tasks[1:])

    monkeypatch.setattr(packed_step, "run", late)
    np.testing.assert_array_equal(one_by_one(model, text, threads=3), alone)


@compiled
@pytest.mark.parametrize("claimed", [1, 3, 1000])
def test_a_helper_that_claims_and_loses_its_cpu_is_not_waited_for(monkeypatch, claimed):
    """Chunks that are claimed and never done are done by the others, with the same bits."""
    model = packed(CONFIGS["several chunks"])
    text = tokens_of(model.config, 6)
    alone = one_by_one(model, text, threads=1)

    def stalled(tasks):
        *_, work, for_head, _ = tasks[0].args
        work[:, 0] = for_head[:, 0] = claimed
        return tasks[0]()

    monkeypatch.setattr(packed_step, "run", stalled)
    np.testing.assert_array_equal(one_by_one(model, text, threads=2), alone)


@compiled
def test_a_large_matrix_is_cut_into_chunks():
    """The configuration that stands for large ones has several chunks of q, of gate and of down."""
    from minibit.kernels.decode import _chunks

    arrays = packed_step.packed_arrays(packed(CONFIGS["several chunks"]))
    sizes = (768, 384, 384, 768, 1600, 1600, 768)
    counts = [_chunks(w, n_out) for w, n_out in zip(arrays.weights[0], sizes, strict=True)]
    assert min(counts[0], counts[4], counts[6]) >= 3


@compiled
@settings(max_examples=20)
@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.sampled_from([1e-5, 1.0]))
def test_the_kernels_norm_is_the_plain_one(width, seed, eps):
    """Within the rounding of a sum of `width` squares."""
    from minibit.kernels.decode import norm_row

    rng = np.random.default_rng(seed)
    x, gain = rng.standard_normal((2, width)).astype(np.float32)
    normed = np.empty(width, np.float32)
    norm_row(x, gain, np.float32(eps), normed)
    expected = normalize(x[None].astype(np.float64), gain.astype(np.float64), eps=eps)[0]
    np.testing.assert_allclose(normed, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["embed_tokens", "layers.1.mlp.ffn_sub_norm"])
def test_an_activation_that_is_not_finite_is_an_error_and_no_answer(name):
    """In the first layer's input, and deep inside; the cache is as long as before."""
    model = packed(SMALL)
    damaged = model.params[name].copy()
    damaged[..., 5] = np.inf
    decoder = Decoder(BitNetModel(SMALL, model.params | {name: damaged}), threads=2)
    decoder.append([3])
    with (
        pytest.raises(ValueError, match=r"NaN or infinity at position 0|finite"),
        np.errstate(invalid="ignore"),
    ):
        decoder.logits()
    assert decoder.cache.length == 0


def test_an_interrupted_reading_is_taken_up_again(monkeypatch):
    """Whenever it is interrupted: the tokens are still there, and are read the next time."""
    model, text = packed(SMALL), tokens_of(SMALL, 9)
    expected = one_by_one(model, text)

    def fail(*arguments, **options):
        real(*arguments, **options)
        raise KeyboardInterrupt

    for name in ("packed_step", "_read"):
        decoder, real = Decoder(model), getattr(decoding, name)
        decoder.append(text[:4])
        decoder.logits()
        decoder.append(text[4:])
        with monkeypatch.context() as patch:
            patch.setattr(decoding, name, fail)
            if name == "packed_step" and decoder._packed is None:
                continue
            with pytest.raises(KeyboardInterrupt):
                decoder.logits()
        assert_near(decoder.logits()[None], expected[-1:])
        assert decoder.cache.length == 9


# --- Generating


def test_a_greedy_text_takes_the_largest_logit_each_time():
    """generate(temperature=0) against the plain forward pass of the growing text."""
    model, text = packed(SMALL, seed=4), tokens_of(SMALL, 5)
    for token in generate(model, tuple(text), 20):
        logits = model.logits([text])[0, -1]
        assert logits[token] >= logits.max() - 1e-3  # a rounded activation may flip a near tie
        text.append(token)
    assert len(text) == 25


def test_the_number_of_a_token_is_that_of_its_place():
    """Token t is drawn with stream (seed, TOKENS, step t): however the text is cut into calls."""
    model, prompt = packed(SMALL, seed=2), tokens_of(SMALL, 6)
    options = {"temperature": 1.3, "top_k": 40, "top_p": 0.95}
    whole = list(generate(model, prompt, 20, seed=9, **options))
    decoder = Decoder(model)
    decoder.append(prompt)
    for position, token in enumerate(whole, start=6):
        number = float(uniform(9, 1, domain=TOKENS, step=position)[0])
        assert token == sample(decoder.logits(), number, **options)
        decoder.append([token])
    again = Decoder(model)
    again.append(prompt)
    assert [
        *again.generate(7, seed=9, **options),
        *again.generate(13, seed=9, **options),
    ] == whole
    assert list(generate(model, prompt, 20, seed=10, **options)) != whole


def test_a_text_that_forgets_its_beginning_goes_on_with_the_numbers_of_its_places():
    """The last tokens are read anew from position 0; the numbers are those of the whole text."""
    model, text = packed(SMALL, seed=2), tokens_of(SMALL, 80)
    decoder = Decoder(model)
    decoder.append(text)
    decoder.logits()
    decoder.forget(30)
    assert decoder.text == tuple(text[50:])
    np.testing.assert_allclose(decoder.logits(), model.logits([text[50:]])[0, -1], atol=1e-4)
    number = float(uniform(7, 1, domain=TOKENS, step=80)[0])
    expected = sample(decoder.logits(), number, temperature=2.0)
    assert list(decoder.generate(1, temperature=2.0, seed=7)) == [expected]
    decoder.forget(0)
    assert decoder.text == ()
    for keep in (-1, 1):
        with pytest.raises(ValueError, match=r"keep must lie in \[0, 0\]"):
            decoder.forget(keep)


def test_a_stop_token_ends_the_text_and_is_not_yielded():
    """The text stands as if the token had never been drawn."""
    model, prompt = packed(SMALL, seed=2), tokens_of(SMALL, 6)
    whole = list(generate(model, prompt, 20, temperature=1.0, seed=3))
    stop = whole[8]
    first = whole.index(stop)
    assert list(generate(model, prompt, 20, temperature=1.0, seed=3, stop=[stop])) == whole[:first]
    decoder = Decoder(model)
    decoder.append(prompt)
    assert list(decoder.generate(20, temperature=1.0, seed=3, stop=(stop,))) == whole[:first]
    assert decoder.text == (*prompt, *whole[:first])


def test_a_text_ends_where_the_positions_end():
    """No error: what was asked for is at most so many."""
    model = packed(SMALL)
    assert len(list(generate(model, tokens_of(SMALL, 77), 20))) == 3
    assert list(generate(model, tokens_of(SMALL, 80), 20)) == []


@pytest.mark.parametrize(
    ("prompt", "count", "options", "name"),
    [
        ([], 5, {}, "empty"),
        ([83], 5, {}, r"\[0, 82\], got 83"),
        ([-1], 5, {}, "got -1"),
        ([1] * 81, 5, {}, "at most 80 tokens"),
        ([1], -1, {}, "count"),
        ([1], 5, {"temperature": math.inf}, "temperature"),
        ([1], 5, {"top_p": 2.0}, "top_p"),
        ([1], 5, {"seed": -1}, "seed"),
        ([1], 5, {"seed": 2**64}, "seed"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused_at_once(prompt, count, options, name):
    """Before the first token is asked for."""
    with pytest.raises(ValueError, match=name):
        generate(packed(SMALL), prompt, count, **options)


def test_tokens_that_are_no_integers_are_refused():
    """And nothing is appended."""
    decoder = Decoder(packed(SMALL))
    with pytest.raises(TypeError):
        decoder.append([1, 2.5])
    with pytest.raises(ValueError, match="the text is empty"):
        decoder.logits()
    with pytest.raises(ValueError, match="threads"):
        Decoder(packed(SMALL), threads=0)
    assert decoder.text == ()


@pytest.mark.parametrize("linear", [None, float_linear])
def test_logits_that_are_not_finite_are_refused(linear):
    """Also where only the last norm spoils them, and where no activation is quantised."""
    params = dict(init_params(SMALL, 0) if linear else packed(SMALL).params)
    params["norm"] = np.full(48, np.nan, np.float32)
    decoder = Decoder(BitNetModel(SMALL, params, linear))
    decoder.append([1, 2])
    for _ in range(2):
        with pytest.raises(ValueError, match="NaN or infinity at position 1"):
            decoder.logits()


def test_nobody_can_change_the_logits_that_the_next_token_is_drawn_from():
    """Banning a token in the array that was handed out would change the text."""
    decoder = Decoder(packed(SMALL))
    decoder.append([1, 2])
    with pytest.raises(ValueError, match="read-only"):
        decoder.logits()[:] = 0
    own = decoder.logits().copy()
    own[:] = 0
    assert decoder.logits().any()


def test_a_cache_for_other_layers_is_refused_before_it_changes():
    """With more layers it would never grow, and every token would take the place of the last."""
    model = packed(SMALL)
    for layers in (1, 3):
        cache = KVCache(dataclasses.replace(SMALL, layers=layers))
        with pytest.raises(ValueError, match=f"must have 2 layers, it has {layers}"):
            model.logits([[1]], cache)
        assert cache.length == 0
    with pytest.raises(TypeError):
        cache.truncate(0.0)


def way_of_packed_steps(model, token, cache):
    """One token through the kernels of packed models."""
    return packed_step.packed_step(packed_step.packed_arrays(model), token, cache)


@pytest.mark.parametrize(
    "read",
    [
        lambda model, token, cache: model.logits([[token]], cache),
        lambda model, token, cache: decoding._read(model, [token], cache, None),
        pytest.param(way_of_packed_steps, marks=compiled),
    ],
    ids=["forward", "read", "packed step"],
)
def test_a_cache_with_tokens_belongs_to_the_model_that_read_them(read):
    """Another of the same sizes is refused, until the cache is empty; the same arrays are not."""
    model, other, cache = packed(SMALL), packed(SMALL, seed=1), KVCache(SMALL)
    for token in (5, 6):
        read(model, token, cache)
    read(BitNetModel(SMALL, dict(model.params)), 7, cache)  # another dict of the same arrays
    for wrong, message in (
        (other, "3 tokens that another model read"),
        (BitNetModel(SMALL, model.params | {"norm": model.params["norm"].copy()}), "3 tokens that"),
        (BitNetModel(dataclasses.replace(SMALL, rope_theta=7.0), model.params), "rope_theta=7"),
    ):
        with pytest.raises(ValueError, match=message):
            read(wrong, 8, cache)
        assert cache.length == 3
    expected = read(other, 8, KVCache(SMALL))
    cache.truncate(0)
    np.testing.assert_array_equal(read(other, 8, cache), expected)
    assert cache.length == 1


@pytest.mark.parametrize("u", [0.0, 0.5, 0.999])
def test_temperature_zero_with_equal_logits_takes_the_first(u):
    """Of logits that tie for the largest, temperature 0 takes the lowest index, whatever u is."""
    assert sample(np.zeros(5), u, temperature=0) == 0
    assert sample(np.float32([1, 3, 3, 2]), u, temperature=0) == 1
