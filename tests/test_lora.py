"""LoRA and QLoRA as laws: what adapters add, what may move, what a file holds, what it weighs."""

import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit.checkpoint import CheckpointError
from minibit.conformance import cases
from minibit.dual import forward_gradient, jvp, jvp_batch
from minibit.experiments import lora as experiments
from minibit.experiments.runs import Runs
from minibit.lora import (
    LoRALinear,
    init_adapters,
    load_adapters,
    lora_linear,
    merge,
    save_adapters,
    unmerge,
    with_adapters,
)
from minibit.lora.accounting import (
    BITS,
    PYTHIA_12B,
    adapter_weights,
    full_fine_tune,
    gigabytes,
    inference,
    parameters,
    qlora_fine_tune,
)
from minibit.lora.frozen import Dequantized, frozen_linear
from minibit.nf4 import NF4Tensor, quantize_nf4
from minibit.noise import uniform
from minibit.noise.philox import DROPOUT
from minibit.tape import Adam, grad, value_and_grad, vjp
from minibit.ternary import TernaryMatrix
from minibit.transformer import (
    BitNetConfig,
    BitNetModel,
    bit_linear,
    float_linear,
    forward,
    init_params,
    pack_params,
)
from minibit.transformer.blocks import token_loss
from minibit.transformer.costs import SHAPES

KEY = "base_model.model.model.up.lora_{}.weight"
CONFIG = BitNetConfig(19, 32, 64, layers=2, heads=2, kv_heads=1, max_positions=16)


def drawn(shape, seed=0):
    """Normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def layer_of(n_out=6, n_in=4, rank=2, seed=0, quantise=False, **settings):
    """A layer whose parts are all drawn, B too."""
    base = drawn((n_out, n_in), seed)
    base = quantize_nf4(base, block=64) if quantise else base
    return LoRALinear(
        base, drawn((rank, n_in), seed + 1), drawn((n_out, rank), seed + 2), **settings
    )


def model(quantise, rank=2):
    """A small transformer with adapters, and its tokens."""
    params = init_params(CONFIG, 0)
    if quantise:
        params = experiments.with_nf4(params)
    adapters = init_adapters(params, rank, seed=3)
    tokens = np.random.default_rng(1).integers(0, 19, (3, 9))
    return params, adapters, tokens


def loss_of(params, tokens, alpha=4.0):
    """The loss as a function of the adapters."""

    def loss(adapters):
        adapted = with_adapters(params, adapters, alpha=alpha)
        logits = forward(CONFIG, adapted, tokens[:, :-1], linear=lora_linear)
        return token_loss(logits, tokens[:, 1:])

    return loss


def moved(adapters, size=0.1):
    """Adapters whose B is not zero."""
    return {
        name: {"A": pair["A"], "B": size * drawn(pair["B"].shape, i)}
        for i, (name, pair) in enumerate(adapters.items())
    }


# --- The layer


def test_merging_into_nf4_gives_nf4():
    """What was in four bits stays in four bits."""
    layer = LoRALinear(quantize_nf4(drawn((4, 8))), drawn((2, 8)), drawn((4, 2)))
    assert isinstance(merge(layer), NF4Tensor)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_an_adapter_is_its_delta_added_to_the_base(rank, n_in, n_out, stabilized, seed):
    """layer(x) = x (W + delta)^T, and delta has rank r at most."""
    layer = layer_of(n_out, n_in, rank, seed, alpha=3.0, rank_stabilized=stabilized)
    x = drawn((5, n_in), seed + 9)
    y = x.astype(np.float64) @ (layer.base.astype(np.float64) + layer.delta()).T
    np.testing.assert_allclose(layer(x), y, rtol=1e-4, atol=1e-4)
    assert np.linalg.matrix_rank(layer.delta().astype(np.float64), tol=1e-5) <= rank
    assert layer.scaling == pytest.approx(3.0 / (rank**0.5 if stabilized else rank))


@pytest.mark.parametrize("quantise", [False, True])
def test_fresh_adapters_change_nothing(quantise):
    """B = 0: the logits are those of the base, to the bit."""
    params, adapters, tokens = model(quantise)
    adapted = with_adapters(params, adapters)
    before = forward(CONFIG, params, tokens, linear=lora_linear)
    np.testing.assert_array_equal(forward(CONFIG, adapted, tokens, linear=lora_linear), before)
    if not quantise:
        np.testing.assert_array_equal(before, forward(CONFIG, params, tokens, linear=float_linear))


def test_fresh_a_is_uniform_within_one_over_the_root_of_n_in():
    """Kaiming's range, mean 0, variance bound^2 / 3, and different in every matrix and seed."""
    params = {"a_proj": np.zeros((3, 400)), "b_proj": np.zeros((3, 400))}
    adapters = init_adapters(params, 50, seed=1)
    a = adapters["a_proj"]["A"]
    assert a.shape == (50, 400)
    assert a.dtype == np.float32
    assert 0.999 / 20 < np.abs(a).max() <= 1 / 20
    assert abs(a.mean()) < 4 / 20 / np.sqrt(3 * a.size)
    assert a.var() == pytest.approx(1 / 400 / 3, rel=0.05)
    assert not np.array_equal(a, adapters["b_proj"]["A"])
    assert not np.array_equal(a, init_adapters(params, 50, seed=2)["a_proj"]["A"])
    assert not adapters["a_proj"]["B"].any()


def test_targets_are_picked_by_the_last_part_of_the_name():
    """Seven projections a layer by default; the rest stays as it was, the same objects."""
    params, adapters, _ = model(False)
    assert len(adapters) == 14
    some = init_adapters(params, 2, targets=["q_proj", "up_proj"])
    assert sorted({name.split(".")[-1] for name in some}) == ["q_proj", "up_proj"]
    adapted = with_adapters(params, some)
    assert sum(isinstance(w, LoRALinear) for w in adapted.values()) == 4
    assert all(adapted[name] is params[name] for name in params if name not in some)


def test_dropout_draws_from_philox_by_seed_step_and_lane():
    """Entries below the share are dropped, others grow; the base sees all of x."""
    layer = layer_of(dropout=0.3, lane=5, alpha=2.0)
    x = drawn((40, 4), 7)
    kept = uniform(8, (40, 4), domain=DROPOUT, step=9, lane=5) >= 0.3
    by_hand = x @ layer.base.T + (x * kept / np.float32(0.7)) @ layer.A.T @ layer.B.T
    y = layer(x, noise=(8, 9))
    np.testing.assert_allclose(y, by_hand, rtol=1e-4, atol=1e-4)
    assert y.dtype == np.float32
    for other in (None, (8, 10), (9, 9)):
        assert not np.array_equal(y, layer(x, other))
    np.testing.assert_array_equal(layer(x), layer_of(lane=5, alpha=2.0)(x))


def test_each_matrix_of_a_model_drops_inputs_of_its_own():
    """Lanes count the adapters."""
    params, adapters, _ = model(False)
    adapted = with_adapters(params, adapters, dropout=0.5)
    lanes = [w.lane for w in adapted.values() if isinstance(w, LoRALinear)]
    assert lanes == list(range(14))


# --- Derivatives


@pytest.mark.parametrize("quantise", [False, True])
def test_only_adapters_have_gradients_and_they_are_right(quantise):
    """Reverse mode agrees with forward mode along a random direction, and with a difference."""
    params, adapters, tokens = model(quantise)
    adapters = moved(adapters)
    loss = loss_of(params, tokens)
    value, gradient = value_and_grad(loss)(adapters)
    v = {name: {k: drawn(x.shape, i) for k, x in pair.items()}
         for i, (name, pair) in enumerate(adapters.items())}  # fmt: skip
    _, slope = jvp(loss, (adapters,), (v,))
    inner = sum(np.vdot(gradient[n][k], v[n][k]) for n in adapters for k in "AB")
    assert inner == pytest.approx(float(slope), rel=1e-4)
    near = [
        float(loss({n: {k: adapters[n][k] + h * v[n][k] for k in "AB"} for n in adapters}))
        for h in (np.float32(-1e-3), np.float32(1e-3))
    ]
    assert float(slope) == pytest.approx((near[1] - near[0]) / 2e-3, rel=0.02, abs=2e-3)
    assert float(value) == pytest.approx(sum(near) / 2, abs=1e-3)


def test_the_four_bit_base_has_the_gradients_of_its_floats():
    """Dequantising per product is the float model of the dequantised weights."""
    params, adapters, tokens = model(True)
    adapters = moved(adapters)
    floats = {n: w.dequantize() if isinstance(w, NF4Tensor) else w for n, w in params.items()}
    value, gradient = value_and_grad(loss_of(params, tokens))(adapters)
    expected, slopes = value_and_grad(loss_of(floats, tokens))(adapters)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for name, pair in slopes.items():
        for part, slope in pair.items():
            scale = np.abs(slope).max()
            np.testing.assert_allclose(gradient[name][part], slope, atol=1e-4 * scale)


def test_the_tape_holds_packed_weights_and_no_floats_of_them():
    """Of floats, reverse mode keeps nothing of a frozen NF4 matrix; a float base is held whole."""
    w = drawn((256, 64))
    x, arrays = drawn((2, 64)), {}
    for base in (w, quantize_nf4(w)):
        _, pullback = vjp(lambda x, base=base: np.sum(frozen_linear(x, base)), (x,))
        arrays[type(base)] = pullback.nbytes
        np.testing.assert_allclose(
            pullback(np.float32(1))[0][0], np.asarray(Dequantized(quantize_nf4(w))).sum(1), atol=9
        )
    assert arrays[np.ndarray] >= w.nbytes
    assert arrays[NF4Tensor] == 0


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_a_frozen_product_is_differentiated_in_every_mode(shape):
    """y_dot = x_dot W^T for one tangent, many, and backwards; for rows, stacks and vectors."""
    tensor = quantize_nf4(drawn((5, 4)))
    w = tensor.dequantize()
    x, v, many = drawn(shape, 1), drawn(shape, 2), drawn((7, *shape), 3)
    multiply = partial(frozen_linear, w=tensor)
    out, along = jvp(multiply, (x,), (v,))
    np.testing.assert_allclose(out, x @ w.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(along, v @ w.T, rtol=1e-5, atol=1e-5)
    _, each = jvp_batch(multiply, (x,), (many,))
    np.testing.assert_allclose(each, many @ w.T, rtol=1e-5, atol=1e-5)
    c = drawn((*shape[:-1], 5), 4)
    np.testing.assert_allclose(vjp(multiply, (x,))[1](c)[0], c @ w, rtol=1e-5, atol=1e-5)


def test_training_moves_adapters_and_leaves_the_base():
    """Twenty steps of Adam lower the loss; the base has the bytes that it had."""
    params, adapters, tokens = model(True)
    before = {n: np.array(getattr(w, "packed", w)) for n, w in params.items()}
    loss, adam = loss_of(params, tokens), Adam(adapters, lr=1e-2)
    for _ in range(20):
        adam.step(grad(loss)(adam.params))
    assert float(loss(adam.params)) < float(loss(adapters)) - 0.2
    for name, w in params.items():
        np.testing.assert_array_equal(getattr(w, "packed", w), before[name])


def test_forward_gradients_train_adapters_too():
    """Unbiased from directional derivatives alone; A held constant by None."""
    params, adapters, tokens = model(True, rank=1)
    loss, rng = loss_of(params, tokens), np.random.default_rng(0)
    exact = grad(loss)(adapters)
    total = {name: np.zeros_like(pair["B"]) for name, pair in adapters.items()}
    rounds = 6
    for _ in range(rounds):
        v = {n: {"A": None, "B": rng.choice(np.float32([-1, 1]), (128, *p["B"].shape))}
             for n, p in adapters.items()}  # fmt: skip
        _, estimate = forward_gradient(loss, adapters, v)
        assert all(pair["A"] is None for pair in estimate.values())
        for name, pair in estimate.items():
            total[name] += pair["B"] / rounds
    a = np.concatenate([total[n].ravel() for n in total])
    b = np.concatenate([exact[n]["B"].ravel() for n in total])
    n = b.size
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert abs(cosine - np.sqrt(768 / (768 + n))) < 0.08


# --- Merging


@pytest.mark.parametrize("quantise", [False, True])
def test_a_merged_float_model_is_the_model_with_adapters_beside(quantise):
    """Logits to float32's rounding; mappings keep what has no adapter."""
    params, adapters, tokens = model(quantise)
    adapted = with_adapters(params, moved(adapters), alpha=4.0)
    if quantise:
        merged = {
            n: w.base.dequantize() + w.delta() if isinstance(w, LoRALinear) else w
            for n, w in adapted.items()
        }
    else:
        merged = merge(adapted)
        assert merged["norm"] is params["norm"]
        assert all(w.dtype == np.float32 for w in merged.values())
    beside = forward(CONFIG, adapted, tokens, linear=lora_linear)
    np.testing.assert_allclose(forward(CONFIG, merged, tokens), beside, atol=2e-5)


@given(st.integers(0, 50))
def test_unmerging_gives_the_base_back_to_rounding(seed):
    """Two roundings of numbers as large as the sum."""
    layer = layer_of(seed=seed, alpha=4.0)
    merged = merge(layer)
    limit = 2.0**-23 * (np.abs(merged) + np.abs(layer.delta()) + np.abs(layer.base))
    assert (np.abs(unmerge(merged, layer) - layer.base) <= limit).all()


def test_merging_into_four_bits_loses_small_adapters():
    """An adapter far below the steps of NF4 vanishes; un-merging brings no base back."""
    layer = layer_of(64, 64, 2, quantise=True)
    tiny = LoRALinear(layer.base, layer.A, layer.B, alpha=1e-3)
    merged = merge(tiny)
    assert isinstance(merged, NF4Tensor)
    change = merged.dequantize() - layer.base.dequantize()
    assert np.linalg.norm(change - tiny.delta()) > 0.5 * np.linalg.norm(tiny.delta())
    loud = LoRALinear(layer.base, layer.A, layer.B, alpha=1.0)
    back = unmerge(merge(loud), loud)
    assert isinstance(back, NF4Tensor)
    assert 0.05 < np.mean(back.codes() != layer.base.codes()) < 0.9


def test_merging_keeps_block_and_double_quantisation():
    """The merged tensor is stored as the base was."""
    for double in (False, True):
        base = quantize_nf4(drawn((64, 128)), block=128, double_quant=double)
        merged = merge(LoRALinear(base, drawn((2, 128)), drawn((64, 2))))
        assert (merged.block, merged.offset is not None) == (128, double)
        assert merged.bits_per_parameter == base.bits_per_parameter


# --- Files


@pytest.mark.parametrize(
    "case",
    [c for c in cases("lora") if c.call == "save_adapters" and "magnitude" not in c.args],
    ids=lambda case: case.id,
)
def test_files_have_the_keys_of_peft(tmp_path, case):
    """What `minibit.conformance` expects of the keys, with shapes; and the names come back."""
    from minibit.checkpoint.safetensors import SafetensorsFile

    name, root = case.args["name"], case.args["root"]
    save_adapters(tmp_path, {name: {"A": drawn((2, 3)), "B": drawn((4, 2))}}, root=root)
    file = SafetensorsFile(tmp_path / "adapter_model.safetensors")
    shapes = dict(zip(case.expect[0], [(2, 3), (4, 2)], strict=True))
    assert {key: tensor.shape for key, tensor in file.tensors.items()} == shapes
    assert list(load_adapters(tmp_path, root=root)[0]) == [name]


def test_what_is_saved_is_loaded(tmp_path):
    """Every number and setting; nothing is written over."""
    params, adapters, _ = model(False)
    adapters = moved(adapters)
    settings = {"alpha": 12.5, "rank_stabilized": True, "dropout": 0.25}
    save_adapters(tmp_path / "new", adapters, **settings)
    saved, read = load_adapters(tmp_path / "new")
    assert read == settings
    assert sorted(saved) == sorted(adapters)
    for name, pair in saved.items():
        assert list(pair) == ["A", "B"]
        for part in "AB":
            np.testing.assert_array_equal(pair[part], adapters[name][part])
            assert pair[part].flags.owndata or pair[part].base is None
    assert with_adapters(params, saved, **read)["layers.0.mlp.up_proj"].scaling == 12.5 / 2**0.5
    with pytest.raises(FileExistsError, match="never written over"):
        save_adapters(tmp_path / "new", adapters)


def config_of(folder, **changes):
    """Change fields of a configuration; None removes one."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA', got 'IA3'"),
        ({"r": 3}, "has rank 2, but adapter_config.json says r = 3"),
        ({"r": True}, "r must be an integer"),
        ({"r": None}, "has rank 2, but adapter_config.json says r = 8"),
        ({"lora_alpha": "much"}, "lora_alpha must (be a real number|lie in)"),
        ({"lora_alpha": -1}, "lora_alpha must (be a real number|lie in)"),
        ({"lora_dropout": 1.0}, "lora_dropout must lie in"),
        ({"use_rslora": "yes"}, "use_rslora must be False or True"),
        ({"bias": "some"}, "bias must be 'none', 'all' or 'lora_only', got 'some'"),
        ({"lora_alpha": float("inf")}, "Infinity"),
        ({"lora_alpha": 10**400}, "digits"),
        ({"use_dora": True}, "has lora_A and no magnitude"),
        ({"use_dora": "yes"}, "use_dora must be False or True"),
        ({"rank_pattern": {"up": 4}}, "has rank 2, but adapter_config.json says r = 4"),
        ({"rank_pattern": {"(a+)+b": 4}}, "rank_pattern must map names to numbers"),
        ({"alpha_pattern": {"up": -4}}, "alpha_pattern of 'up' must lie in"),
        ({"modules_to_save": ["lm_head"]}, "has no lm_head, which adapter_config.json lists"),
        *(
            ({"init_lora_weights": start}, "init_lora_weights must leave the base as it is")
            for start in ("pissa_niter_16", "olora", "corda", "loftq", "lora_ga", 3)
        ),
        ({"lora_bias": True}, "lora_bias is True: that is more than LoRA"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"use_something_new": {"a": 1}}, "use_something_new is"),
    ],
)
def test_a_configuration_that_is_not_plain_lora_is_refused_by_its_field(tmp_path, changes, match):
    """Anything that changes what the numbers mean."""
    save_adapters(tmp_path, {"up": {"A": drawn((2, 3)), "B": drawn((4, 2))}})
    config_of(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=match):
        load_adapters(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": "all"},
        {"bias": "lora_only"},
        {"fan_in_fan_out": True},
        {"r": None, "lora_alpha": None},
        dict.fromkeys(("bias", "use_rslora", "use_dora", "lora_dropout", "rank_pattern")),
    ],
    ids=str,
)
def test_a_configuration_that_changes_no_number_is_not_refused(tmp_path, changes):
    """Biases that no matrix has, how a layer stores weights, fields that are null or missing."""
    save_adapters(tmp_path, {"up": {"A": drawn((8, 3)), "B": drawn((4, 8))}}, alpha=8)
    expected, settings = load_adapters(tmp_path)
    path = tmp_path / "adapter_config.json"
    left = json.loads(path.read_text()) | changes
    for config in (left, {k: v for k, v in left.items() if v is not None}):
        path.write_text(json.dumps(config))
        adapters, read = load_adapters(tmp_path)
        assert read == settings
        np.testing.assert_array_equal(adapters["up"]["A"], expected["up"]["A"])


def test_a_bias_that_was_trained_is_refused(tmp_path):
    """Its tensor is no adapter's, whatever the configuration says of biases."""
    pair = {KEY.format("A"): ("F32", drawn((2, 3))), KEY.format("B"): ("F32", drawn((4, 2)))}
    raw(tmp_path, pair | {"base_model.model.model.up.bias": ("F32", drawn((4,)))})
    config_of(tmp_path, bias="all")
    with pytest.raises(CheckpointError, match=r"up\.bias.*expected base_model\.model"):
        load_adapters(tmp_path)


def test_ranks_alphas_magnitudes_and_whole_weights_travel_in_files(tmp_path):
    """Adapters of different rank and alpha, DoRA's magnitude, a head: what is saved is loaded."""
    adapters = {
        "layers.0.up": {"A": drawn((2, 3)), "B": drawn((4, 2)), "magnitude": drawn((4,))},
        "layers.1.up": {"A": drawn((1, 3)), "B": drawn((4, 1)), "magnitude": drawn((4,))},
        "lm_head": {"weight": drawn((9, 3))},
    }
    alpha = {"layers.0.up": 4.0, "layers.1.up": 8.0, "lm_head": 1.0}
    save_adapters(tmp_path, adapters, alpha=alpha)
    again, settings = load_adapters(tmp_path)
    for name, parts in adapters.items():
        for part, array in parts.items():
            np.testing.assert_array_equal(again[name][part], array)
    assert settings["alpha"] == {"layers.0.up": 4.0, "layers.1.up": 8.0}
    params = {"layers.0.up": drawn((4, 3)), "layers.1.up": drawn((4, 3)), "lm_head": drawn((9, 3))}
    adapted = with_adapters(params, again, **settings)
    assert [adapted[f"layers.{i}.up"].scaling for i in (0, 1)] == [2.0, 8.0]
    assert adapted["lm_head"] is again["lm_head"]["weight"]


@pytest.mark.parametrize("part", ["A", "B"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_adapter_that_is_not_finite_is_refused_where_it_is_read(tmp_path, part, bad):
    """The message names the tensor and the entry."""
    pair = {"A": drawn((2, 3)), "B": drawn((4, 2))}
    pair[part][1, 0] = bad
    raw(tmp_path, {KEY.format(name): ("F32", array) for name, array in pair.items()})
    with pytest.raises(CheckpointError, match=f"lora_{part}.*must be finite, got {bad} at entry"):
        load_adapters(tmp_path)


def test_dora_scales_each_row_to_its_magnitude():
    """``y = x W'^T`` with ``W' = m (W + s B A) / ||W + s B A||``; merging gives this W'."""
    w, a, b = drawn((6, 4)), drawn((2, 4), 1), drawn((6, 2), 2)
    m, x = np.abs(drawn((6,), 3)) + 0.5, drawn((5, 4), 4)
    layer = LoRALinear(w, a, b, alpha=3, magnitude=m)
    moved = w + 1.5 * b @ a
    expected = moved * (m / np.linalg.norm(moved, axis=1))[:, None]
    np.testing.assert_allclose(layer(x), x @ expected.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(merge(layer), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="layer has a magnitude"):
        unmerge(expected, layer)
    with pytest.raises(ValueError, match="not quantised at each use"):
        LoRALinear(w, a, b, magnitude=m, linear=bit_linear)


def test_a_fresh_pissa_adapter_changes_nothing(tmp_path):
    """Its base is what is left of W without the largest singular directions."""
    w, x = drawn((6, 8)), drawn((3, 8), 1)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    root = np.sqrt(s[:2] / 2)
    pair = {"A": root[:, None] * vt[:2], "B": u[:, :2] * root}
    save_adapters(tmp_path, {"up": pair}, alpha=4)
    config_of(tmp_path, init_lora_weights="pissa")
    adapters, settings = load_adapters(tmp_path)
    layer = with_adapters({"up": w}, adapters, **settings)["up"]
    np.testing.assert_allclose(layer(x), x @ w.T, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="float array for PiSSA"):
        with_adapters({"up": quantize_nf4(w)}, adapters, **settings)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("targets", [None, ["q_proj"]])
def test_a_b158_model_stays_quantised_beside_its_adapters(packed, targets):
    """Fresh adapters leave the logits, of all projections, those without an adapter too."""
    config = BitNetConfig(40, 64, 64, layers=1, heads=4, kv_heads=2, max_positions=64)
    params = init_params(config, 0)
    whole = BitNetModel(config, pack_params(params) if packed else params)
    adapted = with_adapters(whole.params, init_adapters(params, rank=2, targets=targets))
    tokens = np.arange(8)[None]
    again = BitNetModel(config, adapted, lora_linear).logits(tokens)
    np.testing.assert_allclose(again, whole.logits(tokens), rtol=1e-5, atol=1e-5)
    assert set(merge(adapted)) == set(params) if not packed else True


@pytest.mark.parametrize("family", ["bitnet", "llama", "qwen3"])
def test_adapters_learn_beside_every_family_of_blocks(family):
    """Fresh ones change nothing, and ten steps of Adam lower the loss; the base stays."""
    config = BitNetConfig(19, 32, 64, 2, 2, 1, 16, family=family, own_head_dim=24)
    params = init_params(config, 0)
    adapters = init_adapters(params, rank=4)
    tokens = np.random.default_rng(1).integers(0, 19, (3, 9))

    def loss(adapters):
        adapted = with_adapters(params, adapters)
        logits = forward(config, adapted, tokens[:, :-1], linear=lora_linear)
        return token_loss(logits, tokens[:, 1:])

    first = loss(adapters)
    assert first == token_loss(forward(config, params, tokens[:, :-1]), tokens[:, 1:])
    adam = Adam(adapters, lr=1e-2)
    for _ in range(20):
        adam.step(grad(loss)(adam.params))
    assert loss(adam.params) < first - 0.2
    assert all(np.array_equal(w, init_params(config, 0)[name]) for name, w in params.items())


@pytest.mark.parametrize("targets", [None, ["q_proj"]])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_adapters_beside_groups_of_scales_leave_activations_as_the_model_has_them(family, targets):
    """Floats in a model of `float_linear`, to the bit while B is 0; and the base is never moved."""
    config = BitNetConfig(19, 64, 96, 2, 4, 2, 16, family=family, own_head_dim=24)
    rng = np.random.default_rng(0)
    params = init_params(config, 0)
    for name, w in params.items():
        if name.endswith("_proj"):
            scale = rng.uniform(0.1, 0.2, (w.shape[0], w.shape[1] // 32))
            params[name] = TernaryMatrix.from_codes(rng.integers(-1, 2, w.shape), scale)
    tokens = rng.integers(0, 19, (3, 9))
    adapters = init_adapters(params, rank=4, targets=targets)
    for linear in (float_linear, None):
        whole = BitNetModel(config, params, linear)
        adapted = with_adapters(whole.params, adapters)
        logits = forward(config, adapted, tokens, linear=lora_linear)
        np.testing.assert_array_equal(logits, whole.logits(tokens))

        def loss(adapters, whole=whole):
            adapted = with_adapters(whole.params, adapters)
            logits = forward(config, adapted, tokens[:, :-1], linear=lora_linear)
            return token_loss(logits, tokens[:, 1:])

        adam = Adam(adapters, lr=1e-2)
        for _ in range(15):
            adam.step(grad(loss)(adam.params))
        assert loss(adam.params) < loss(adapters) - 0.1


def test_a_packed_ternary_base_has_a_derivative_straight_through_its_quantisers():
    """The tangent of x goes through codes * scale; the base refuses to take an adapter in."""
    w = TernaryMatrix.from_codes(np.random.default_rng(0).integers(-1, 2, (6, 4)), 0.5)
    layer = LoRALinear(w, drawn((2, 4)), drawn((6, 2), 1), alpha=2)
    x, x_dot = drawn((3, 4), 2), drawn((3, 4), 3)
    _, y_dot = jvp(layer, (x,), (x_dot,))
    full = w.codes() * 0.5 + layer.delta()
    np.testing.assert_allclose(y_dot, x_dot @ full.T, rtol=1e-5, atol=1e-6)
    gradient = grad(lambda v: np.sum(layer(v)))(x)
    np.testing.assert_allclose(gradient, np.ones((3, 6)) @ full, rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="holds no such sum"):
        merge(layer)


def raw(folder, tensors):
    """Write a weights file with any tensors, beside a good configuration."""
    from minibit.checkpoint.safetensors import write_safetensors

    save_adapters(folder, {"up": {"A": drawn((2, 3)), "B": drawn((4, 2))}})
    path = folder / "adapter_model.safetensors"
    path.unlink()
    specs = {key: (dtype, x.shape) for key, (dtype, x) in tensors.items()}
    write_safetensors(path, specs, lambda key: [tensors[key][1]])


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({KEY.format("A"): ("F32", drawn((2, 3)))}, "has lora_A and no B"),
        ({KEY.format("C"): ("F32", drawn((2, 3)))}, "lora_C.*expected base_model"),
        ({"base_model.model.up.lora_A.weight": ("F32", drawn((2, 3)))}, "expected base_model"),
        ({KEY.format("A"): ("F32", drawn((2,)))}, "must be a matrix of floats"),
        ({KEY.format("A"): ("I32", np.ones((2, 3), np.int32))}, "must be a matrix of floats"),
        ({KEY.format("B"): ("F32", drawn((4, 3)))}, "has rank 3"),
        ({}, "holds no adapters"),
    ],
)
def test_damaged_weights_are_refused_by_tensor(tmp_path, tensors, match):
    """Names, types, ranks and missing halves."""
    raw(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=match):
        load_adapters(tmp_path)


def test_cut_files_are_refused_and_half_precision_is_widened(tmp_path):
    """A missing or short file is named; bfloat16 and float16 become float32 exactly."""
    raw(tmp_path, {
        KEY.format("A"): ("BF16", np.uint16([[0x3F80, 0xC000], [0x3E00, 0]])),
        KEY.format("B"): ("F16", np.float16([[0.1, 2]])),
    })  # fmt: skip
    adapters, _ = load_adapters(tmp_path)
    np.testing.assert_array_equal(adapters["up"]["A"], np.float32([[1, -2], [0.125, 0]]))
    np.testing.assert_array_equal(adapters["up"]["B"], np.float32(np.float16([[0.1, 2]])))
    assert all(x.dtype == np.float32 for x in adapters["up"].values())
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="adapter_model"):
        load_adapters(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        load_adapters(tmp_path)


# --- Errors that teach


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"base": np.ones((6, 4), int)}, TypeError, "base must be a float array.*int64"),
        ({"base": "w"}, TypeError, "base must be a float array.*str"),
        ({"base": np.ones(4)}, ValueError, r"base must have shape \(n_out, n_in\), got \(4,\)"),
        ({"A": np.ones((2, 5))}, ValueError, r"A must have shape \(r, 4\)"),
        ({"A": np.ones((0, 4)), "B": np.ones((6, 0))}, ValueError, "r above 0"),
        ({"A": np.ones(4)}, TypeError, "A must be a float matrix"),
        ({"B": [[1.0]]}, TypeError, "B must be a float matrix, got list"),
        ({"B": np.ones((2, 6))}, ValueError, r"B must have shape \(6, 2\), got \(2, 6\)"),
        ({"alpha": 0}, ValueError, "alpha must lie in"),
        ({"alpha": np.nan}, ValueError, "alpha must lie in"),
        ({"dropout": 1.0}, ValueError, "dropout must lie in"),
    ],
)
def test_parts_that_do_not_fit_are_named(change, error, match):
    """The attribute, what it got and what it takes."""
    good = {"base": drawn((6, 4)), "A": drawn((2, 4)), "B": drawn((6, 2))}
    with pytest.raises(error, match=match):
        LoRALinear(**(good | change))


def test_wrong_arguments_of_functions_are_named():
    """Unknown names, ranks, targets, kinds and files."""
    params = {"up_proj": drawn((6, 4)), "norm": drawn((4,))}
    pair = {"A": drawn((2, 4)), "B": drawn((6, 2))}
    with pytest.raises(ValueError, match="rank must be at least 1"):
        init_adapters(params, 0)
    with pytest.raises(ValueError, match="targets has 'down_proj'"):
        init_adapters(params, targets=["up_proj", "down_proj"])
    with pytest.raises(ValueError, match="params has no name"):
        init_adapters({"norm": drawn((4,))})
    with pytest.raises(ValueError, match=r"params\['norm'\] must have shape"):
        init_adapters(params, targets=["norm"])
    with pytest.raises(ValueError, match="adapters has 'down_proj'"):
        with_adapters(params, {"down_proj": pair})
    with pytest.raises(ValueError, match="must have A and B"):
        with_adapters(params, {"up_proj": {"A": pair["A"]}})
    with pytest.raises(ValueError, match=r"adapters\['up_proj'\]: B must have shape"):
        with_adapters(params, {"up_proj": {"A": pair["A"], "B": drawn((5, 2))}})
    for wrong in (drawn((6, 4)), None):
        with pytest.raises(TypeError, match="layer must be a LoRALinear"):
            merge(wrong)
    with pytest.raises(TypeError, match="layer must be a LoRALinear"):
        unmerge(drawn((6, 4)), params)
    with pytest.raises(ValueError, match="A must have shape"):
        unmerge(drawn((6, 5)), LoRALinear(params["up_proj"], **pair))
    with pytest.raises(ValueError, match=r"x must have shape .* n_in = 4, got \(3, 5\)"):
        LoRALinear(params["up_proj"], **pair)(drawn((3, 5)))


def test_adapters_that_do_not_fit_a_file_are_refused_before_it_is_made(tmp_path):
    """Ranks that differ, missing halves, none at all: no folder appears."""
    good = {"A": drawn((2, 3)), "B": drawn((4, 2))}
    for adapters, match in (
        ({}, "must be there"),
        ({"a": good | {"magnitude": drawn((4,))}, "b": good}, "a magnitude for all or none"),
        ({"a": good | {"A": np.full((2, 3), np.nan)}}, "must be finite"),
        ({"a": {"A": drawn((2, 3))}}, "must have A and B"),
        ({"a": {"A": drawn((2, 3)), "B": drawn((4, 3))}}, "must have A"),
    ):
        with pytest.raises(ValueError, match=match):
            save_adapters(tmp_path / "x", adapters)
    assert not (tmp_path / "x").exists()


# --- Accounting


def test_a_full_fine_tune_of_65_billion_takes_780_gb():
    """12 bytes a parameter: 2 and 2 for weight and gradient, 8 for Adam."""
    assert gigabytes(full_fine_tune(65e9)) == 780
    exact = parameters(SHAPES["65B"])
    assert exact == pytest.approx(65.2e9, rel=2e-3)  # published
    assert 780 < gigabytes(full_fine_tune(exact)) < 784


def test_qlora_of_65_billion_fits_into_48_gb():
    """It fits with double quantisation, by less than without; sixteen bits do not fit."""
    totals = {bits: gigabytes(qlora_fine_tune(SHAPES["65B"], bits=bits)) for bits in BITS}
    assert 40 < totals["NF4, double quantisation"] < totals["NF4"] < 48.5
    assert totals["NF4, double quantisation"] < 48
    assert totals["NF4"] - totals["NF4, double quantisation"] == pytest.approx(3.02, abs=0.02)
    assert totals["bfloat16"] > 130


def test_twelve_billion_weights_of_eight_bits_take_twelve_gb():
    """Which precision the figure of 12 GB belongs to."""
    weights = {
        bits: sum(line.bytes for line in inference(PYTHIA_12B, bits, gated=False)[:2]) / 1e9
        for bits in BITS
    }
    assert 11.5 < weights["int8"] < 12.5
    assert weights["bfloat16"] > 23
    assert weights["NF4, double quantisation"] < 7
    assert parameters(PYTHIA_12B, gated=False) == pytest.approx(11.85e9, rel=1e-3)  # published


def test_adapters_are_counted_as_they_are_made():
    """The formula is the number of entries of real adapters; NF4's bits are those of a tensor."""
    from minibit.transformer.costs import Shape

    params = init_params(CONFIG, 0)
    adapters = init_adapters(params, 3)
    shape = Shape(32, 64, 2, 2, 1, 19)
    count = sum(x.size for pair in adapters.values() for x in pair.values())
    assert adapter_weights(shape, 3) == count
    assert parameters(shape) == sum(w.size for w in params.values() if w.ndim == 2) + 19 * 32
    for double, bits in ((False, "NF4"), (True, "NF4, double quantisation")):
        tensor = quantize_nf4(drawn((256, 256)), double_quant=double)
        assert tensor.bits_per_parameter == pytest.approx(BITS[bits], abs=1e-3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: qlora_fine_tune(SHAPES["7B"], bits="NF5"), "bits must be 'float32'"),
        (lambda: qlora_fine_tune(SHAPES["7B"], rank=0), "rank must be at least 1"),
        (lambda: inference(SHAPES["7B"], "int9"), "bits must be 'float32'"),
        (lambda: inference(SHAPES["7B"], "int8", tokens=-1), "tokens must be at least 0"),
    ],
)
def test_wrong_questions_about_memory_are_named(call, match):
    """The argument, what it got and what it takes."""
    with pytest.raises(ValueError, match=match):
        call()


# --- The experiment


def test_the_second_half_is_cut_once_and_never_seen_before():
    """Eight, one and one tenths of the second half; upper case keeps length and vocabulary."""
    vocabulary, first, train, validation, test = experiments.halves("plain")
    _, _, upper, *_ = experiments.halves("upper")
    assert len(first) == 190341
    assert len(train) + len(validation) + len(test) == 380683 - 190341
    assert len(upper) == len(train)
    assert abs(len(test) - len(validation)) <= 1
    assert vocabulary.decode(upper) == vocabulary.decode(train).upper()
    assert len(vocabulary) == 83


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "tape", "forward"])
def test_every_way_of_fine_tuning_moves_what_it_says(method):
    """Full: all; LoRA and QLoRA: A and B; the others B alone, beside NF4."""
    rank = 0 if method == "full" else 2
    job = experiments.Job(0, "upper", method, rank, 1e-2, steps=2)
    params = init_params(CONFIG, 0)
    tokens = np.random.default_rng(0).integers(0, 19, 400)
    tuned, curve = experiments.fine_tune(job, CONFIG, params, tokens, tokens, checks=1)
    assert [step for step, _ in curve] == [2]
    if method == "full":
        assert all(not np.array_equal(tuned[name], w) for name, w in params.items())
        return
    fresh = init_adapters(params, 2, seed=0)
    for name, pair in fresh.items():
        layer = tuned[name]
        assert isinstance(layer.base, NF4Tensor if method != "lora" else np.ndarray)
        assert layer.alpha == 4
        assert layer.B.any()
        assert np.array_equal(layer.A, pair["A"]) == (method in ("tape", "forward"))
    assert tuned["embed_tokens"] is params["embed_tokens"]


def test_the_experiment_keeps_its_runs_and_chooses_on_validation(tmp_path, monkeypatch):
    """Rates are chosen with the first seed; a second call repeats nothing."""
    calls = []

    def pretrain_run(folder, seed):
        """Stand in for minutes of training."""
        calls.append(seed)
        return {"seconds": 1.0}

    def one_run(folder, **fields):
        """Stand in for minutes of training."""
        calls.append(experiments.Job(**fields))
        full, rate = fields["method"] == "full", fields["rate"]
        after = {"validation": abs(np.log(rate / 2e-3)) if full else rate, "test": 1.0}
        row = {"kind": "run", "before": {"test": 2.0}, "after": after, "cpu_seconds": 1.0}
        return fields | row

    monkeypatch.setattr(experiments, "pretrain_run", pretrain_run)
    monkeypatch.setattr(experiments, "one_run", one_run)
    monkeypatch.setattr(experiments, "small_run", lambda seed: {"kind": "small", "seed": seed})
    done = Runs(tmp_path, "lora", lambda line: None, processes=0)
    rows = experiments.lora((4, 5), done)
    chosen = {(r["task"], r["method"]): r["rate"] for r in rows if r["kind"] == "chosen"}
    assert chosen["upper", "full"] == chosen["plain", "full"] == 2e-3
    assert chosen["upper", "qlora"] == 5e-3
    runs = [row for row in rows if row.get("choice") is False]
    assert len(runs) == 2 * 7 + 2
    assert {(r["method"], r["rate"]) for r in runs if r["rank"] == 1} == {
        ("tape", 5e-3),
        ("forward", 3e-3),
    }
    assert {row["rate"] for row in runs if row["method"] == "lora"} == {5e-3, 2.5e-3}
    assert rows[-1] == {"kind": "small", "seed": 4}
    before = len(calls)
    assert calls[:2] == [4, 5]
    assert len(set(calls)) == before
    assert experiments.lora((4, 5), done) == rows
    assert len(calls) == before


def test_sizes_count_four_numbers_for_each_that_moves():
    """Weight, gradient and two means; a frozen base counts as it is stored."""
    params, adapters, _ = model(True)
    adapted = with_adapters(params, adapters)
    moving = sum(x.size for pair in adapters.values() for x in pair.values())
    rows = experiments.sizes(adapted, moving)
    assert rows["frozen_bytes"] == sum(w.nbytes for w in params.values())
    assert rows["bytes"] == rows["frozen_bytes"] + 16 * moving
    count = sum(w.size for w in init_params(CONFIG, 0).values())
    assert experiments.sizes(init_params(CONFIG, 0), count)["bytes"] == 16 * count
