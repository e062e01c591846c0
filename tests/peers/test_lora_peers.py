"""LoRA against peft on one transformer: outputs, gradients, files both ways, merging.

Whole models are compared in float64: in float32 each of the two is 2e-6 away from that by rounding
alone, adapters or not. (transformers keeps float32 in its norms, which leaves 6e-7 to 9e-7.) Single
layers, on the same inputs, and merged matrices are compared in float32.
"""

import json

import numpy as np
import pytest

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # peft's call
]

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from minibit.checkpoint import save_bitnet  # noqa: E402
from minibit.lora import (  # noqa: E402
    LoRALinear,
    init_adapters,
    load_adapters,
    lora_linear,
    merge,
    save_adapters,
    unmerge,
    with_adapters,
)
from minibit.tape import value_and_grad  # noqa: E402
from minibit.transformer import (  # noqa: E402
    BitNetConfig,
    BitNetModel,
    float_linear,
    forward,
    init_params,
    param_shapes,
)
from minibit.transformer.blocks import token_loss  # noqa: E402

CONFIG = BitNetConfig(96, 64, 176, layers=3, heads=4, kv_heads=2, max_positions=64)
TOKENS = np.random.default_rng(0).integers(0, 96, (8, 40))
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As much as this needs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def params():
    """Weights of the base, gains that are not 1."""
    rng = np.random.default_rng(3)
    drawn = init_params(CONFIG, 3)
    for name, shape in param_shapes(CONFIG).items():
        if len(shape) == 1:
            drawn[name] = (1 + 0.2 * rng.standard_normal(shape)).astype(np.float32)
    return drawn


@pytest.fixture(scope="module")
def folder(params, tmp_path_factory):
    """The base as transformers reads it."""
    path = tmp_path_factory.mktemp("base") / "model"
    save_bitnet(BitNetModel(CONFIG, params, float_linear), path, linear_class=None)
    return path


def their_base(folder):
    """The base, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def theirs(folder, **settings):
    """The base with fresh adapters of peft."""
    torch.manual_seed(0)  # of A
    config = peft.LoraConfig(target_modules=TARGETS, task_type="CAUSAL_LM", **settings)
    return peft.get_peft_model(their_base(folder), config).eval()


def randomise(model, seed=0):
    """Give B values, so that adapters do something; return all of peft's numbers by name."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, w in model.named_parameters():
            if ".lora_B." in name:
                drawn = rng.standard_normal(tuple(w.shape)).astype(np.float32)
                w.copy_(torch.from_numpy(0.05 * drawn))


def logits_of(model):
    """Logits of the tokens, in float64."""
    with torch.no_grad():
        return model.double()(torch.from_numpy(TOKENS)).logits.numpy()


def assert_close(logits, expected):
    """Within 1e-6 of the largest logit, which is about 1.6."""
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def ours(params, adapters, settings):
    """Logits of ours, in float64."""
    wide = {name: w.astype(np.float64) for name, w in params.items()}
    adapted = with_adapters(wide, adapters, **settings)
    return forward(CONFIG, adapted, TOKENS, linear=lora_linear)


SETTINGS = [
    {"r": 8, "lora_alpha": 16},
    {"r": 4, "lora_alpha": 8, "use_rslora": True},
    {"r": 3, "lora_alpha": 5, "lora_dropout": 0.25},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "rslora", "dropout"])
def test_adapters_that_peft_saves_give_its_outputs(settings, params, folder, tmp_path):
    """Logits within 1e-6 of the largest, from the files alone; A's range is peft's."""
    model = theirs(folder, **settings)
    fresh = model.base_model.model.model.layers[0].mlp.up_proj.lora_A["default"].weight
    assert fresh.abs().max().item() <= 1 / 64**0.5
    assert fresh.abs().max().item() > 0.95 / 64**0.5
    randomise(model)
    model.save_pretrained(tmp_path)
    adapters, read = load_adapters(tmp_path)
    assert len(adapters) == 21
    assert read == {
        "alpha": float(settings["lora_alpha"]),
        "rank_stabilized": settings.get("use_rslora", False),
        "dropout": settings.get("lora_dropout", 0.0),
    }
    logits = ours(params, adapters, read)
    expected = logits_of(model)
    assert np.abs(expected - logits_of(their_base(folder))).max() > 0.05
    assert_close(logits, expected)


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "rslora", "dropout"])
def test_adapters_that_we_save_give_peft_our_outputs(settings, params, folder, tmp_path):
    """Logits within 1e-6 of the largest; what peft saves of them again holds the same numbers."""
    rng = np.random.default_rng(1)
    adapters = {
        name: {"A": p["A"], "B": (0.05 * rng.standard_normal(p["B"].shape)).astype(np.float32)}
        for name, p in init_adapters(params, settings["r"], seed=1).items()
    }
    ways = {
        "alpha": float(settings["lora_alpha"]),
        "rank_stabilized": settings.get("use_rslora", False),
        "dropout": settings.get("lora_dropout", 0.0),
    }
    save_adapters(tmp_path / "ours", adapters, **ways)
    model = peft.PeftModel.from_pretrained(their_base(folder), tmp_path / "ours").eval()
    logits = ours(params, adapters, ways)
    model.save_pretrained(tmp_path / "theirs")
    assert_close(logits, logits_of(model))
    again, read = load_adapters(tmp_path / "theirs")
    assert read == ways
    assert again.keys() == adapters.keys()
    for name, pair in adapters.items():
        for part in "AB":
            np.testing.assert_array_equal(again[name][part], pair[part])


def test_some_layers_alone_are_adapted_there_too(params, folder, tmp_path):
    """Adapters beside one matrix make no others: the targets of the file are whole names."""
    name = "layers.1.self_attn.v_proj"
    pair = init_adapters(params, 2, targets=["v_proj"])[name]
    adapters = {name: {"A": pair["A"], "B": np.ones_like(pair["B"])}}
    save_adapters(tmp_path, adapters, alpha=1.0)
    model = peft.PeftModel.from_pretrained(their_base(folder), tmp_path).eval()
    assert sum("lora_A" in key for key, _ in model.named_parameters()) == 1
    logits = ours(params, adapters, {"alpha": 1.0})
    assert_close(logits, logits_of(model))


def test_every_adapted_layer_gives_pefts_outputs_on_its_inputs(params, folder, tmp_path):
    """All 21, in float32, within 1e-6."""
    model = theirs(folder, r=8, lora_alpha=16)
    randomise(model)
    model.save_pretrained(tmp_path)
    adapters, read = load_adapters(tmp_path)
    adapted, seen = with_adapters(params, adapters, **read), {}
    for name, module in model.base_model.model.model.named_modules():
        if name in adapters:
            module.register_forward_hook(
                lambda _, args, out, name=name: seen.update({name: (args[0], out)})
            )
    with torch.no_grad():
        model(torch.from_numpy(TOKENS))
    assert seen.keys() == adapters.keys()
    for name, (x, y) in seen.items():
        output = adapted[name](x.numpy())
        assert output.dtype == np.float32
        limit = 1e-6 * max(1, y.abs().max().item())
        np.testing.assert_allclose(output, y.numpy(), rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize("stabilised", [False, True])
def test_merging_and_unmerging_are_pefts(stabilised, params, folder, tmp_path):
    """Every merged matrix within 1e-6, and back again."""
    model = theirs(folder, r=4, lora_alpha=8, use_rslora=stabilised)
    randomise(model)
    model.save_pretrained(tmp_path)
    adapters, read = load_adapters(tmp_path)
    adapted = with_adapters(params, adapters, **read)
    merged = merge(adapted)
    model.merge_adapter()
    seen = dict(model.base_model.model.model.named_parameters())
    for name, layer in adapted.items():
        if isinstance(layer, LoRALinear):
            w = seen[f"{name}.base_layer.weight"].detach().numpy()
            np.testing.assert_allclose(merged[name], w, rtol=0, atol=1e-6)
            assert np.abs(w - params[name]).max() > 0.01
    model.unmerge_adapter()
    for name, layer in adapted.items():
        if isinstance(layer, LoRALinear):
            w = seen[f"{name}.base_layer.weight"].detach().numpy()
            np.testing.assert_allclose(unmerge(merged[name], layer), w, rtol=0, atol=1e-6)


def test_gradients_of_adapters_are_autograds(params, folder, tmp_path):
    """Loss and every A and B, to 1e-4 of the largest slope; the base has none."""
    model = theirs(folder, r=4, lora_alpha=8)
    randomise(model)
    model.save_pretrained(tmp_path)
    adapters, read = load_adapters(tmp_path)
    x, y = TOKENS[:, :-1], TOKENS[:, 1:]

    def loss(adapters):
        adapted = with_adapters(params, adapters, **read)
        return token_loss(forward(CONFIG, adapted, x, linear=lora_linear), y)

    value, gradient = value_and_grad(loss)(adapters)
    logits = model(torch.from_numpy(x)).logits
    expected = torch.nn.functional.cross_entropy(
        logits.reshape(-1, 96), torch.from_numpy(y.reshape(-1))
    )
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-6)
    slopes = {name: w.grad for name, w in model.named_parameters()}
    assert all(slope is None for name, slope in slopes.items() if "lora_" not in name)
    for name, pair in gradient.items():
        for part, slope in pair.items():
            key = f"base_model.model.model.{name}.lora_{part}.default.weight"
            theirs_slope = slopes[key].numpy()
            limit = 1e-4 * np.abs(theirs_slope).max()
            np.testing.assert_allclose(slope, theirs_slope, rtol=0, atol=limit)


def test_a_configuration_of_peft_that_is_more_than_lora_is_refused(folder, tmp_path):
    """Starts that change the base: by the field that peft writes."""
    from minibit.checkpoint import CheckpointError

    theirs(folder, r=4, init_lora_weights="olora").save_pretrained(tmp_path / "olora")
    with pytest.raises(CheckpointError, match="init_lora_weights"):
        load_adapters(tmp_path / "olora")


def test_biases_that_a_model_does_not_have_change_nothing(folder, tmp_path):
    """BitNet's matrices have none: whichever peft would train, the file holds adapters alone."""
    for bias in ("none", "all", "lora_only"):
        theirs(folder, r=4, bias=bias).save_pretrained(tmp_path / bias)
        config = json.loads((tmp_path / bias / "adapter_config.json").read_text())
        assert config["bias"] == bias
        adapters, _ = load_adapters(tmp_path / bias)
        assert {part for pair in adapters.values() for part in pair} == {"A", "B"}


class Stack(torch.nn.Module):
    """Two projections and a head, to put any kind of adapter beside."""

    def __init__(self):
        super().__init__()
        self.up_proj = torch.nn.Linear(8, 12, bias=False)
        self.down_proj = torch.nn.Linear(12, 8, bias=False)
        self.lm_head = torch.nn.Linear(8, 9, bias=False)

    def forward(self, x):
        """Their product."""
        return self.lm_head(self.down_proj(self.up_proj(x)))


@pytest.mark.parametrize(
    "kind",
    [
        {"use_dora": True},
        {"rank_pattern": {"down_proj": 3}, "alpha_pattern": {"up_proj": 5}},
        {"use_dora": True, "use_rslora": True, "rank_pattern": {"up_proj": 4}},
        {"init_lora_weights": "pissa"},
        {"modules_to_save": ["lm_head"], "init_lora_weights": "orthogonal"},
    ],
    ids=str,
)
def test_every_kind_of_adapter_that_is_read_computes_what_peft_computes(kind, tmp_path):
    """DoRA, patterns of ranks and alphas, PiSSA, whole modules: outputs within 1e-5."""
    torch.manual_seed(0)
    theirs = Stack()
    params = {
        name.removesuffix(".weight"): w.detach().numpy().copy()
        for name, w in theirs.named_parameters()
    }
    targets = ["up_proj", "down_proj"]
    adapted = peft.get_peft_model(
        theirs, peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets, **kind)
    )
    with torch.no_grad():
        for name, w in adapted.named_parameters():
            if w.requires_grad:
                w += 0.1 * torch.randn_like(w) * (1 if "lora_" in name else 3)
    adapted.save_pretrained(tmp_path)
    if kind.get("init_lora_weights") == "pissa":  # peft writes that it began as nothing else
        path = tmp_path / "adapter_config.json"
        config = json.loads(path.read_text()) | {"init_lora_weights": "pissa"}
        path.write_text(json.dumps(config))
    adapters, settings = load_adapters(tmp_path, root="")
    ours = with_adapters(params, adapters, **settings)
    x = np.random.default_rng(1).standard_normal((5, 8), dtype=np.float32)
    y = x
    for name in (*targets, "lm_head"):
        y = lora_linear(y, ours[name])
    expected = adapted.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
