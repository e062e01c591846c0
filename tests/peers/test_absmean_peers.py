"""The quantisers against torch: bit for bit in float32, values and derivatives.

The torch functions are the formulas of huggingface/transformers ``integrations/bitnet.py``
(``WeightQuant``, ``ActQuant``, ``BitLinear.activation_quant``), written out.
"""

import numpy as np
import pytest

from minibit.absmean import (
    absmax_quantize,
    absmean_quantize,
    binary_quantize,
    fake_quant_activation,
    fake_quant_weight,
)
from minibit.dual import jvp

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.peers,
    # torch.func.jvp's own use of torch.jit, on its first call
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

CASES = {
    "normal": lambda rng: rng.standard_normal((64, 96)),
    "tiny": lambda rng: rng.standard_normal((64, 96)) * 1e-6,
    "large": lambda rng: rng.standard_normal((64, 96)) * 1e30,
    "heavy tails": lambda rng: rng.standard_t(1.5, (64, 96)),
    "zeros": lambda rng: np.zeros((64, 96)),
    "whole numbers": lambda rng: rng.integers(-8, 9, (64, 96)),  # many ties
    "many scales": lambda rng: rng.standard_normal((64, 96)) * 10.0 ** rng.uniform(-7, 7, (64, 1)),
}


@pytest.fixture(params=CASES)
def values(request):
    """A float32 matrix; the kind is the test's name."""
    return CASES[request.param](np.random.default_rng(0)).astype(np.float32)


def torch_weight(w, gamma):
    """Return the published fake-quantised weights, given gamma."""
    scale = 1.0 / gamma
    return (w * scale).round().clamp(-1, 1) / scale


def torch_gamma(w):
    """Return the published scale of weights."""
    return w.abs().mean().clamp(min=1e-5)


def torch_activation(x):
    """Return the published codes and scale of activations."""
    scale = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
    return (x * scale).round().clamp(-128, 127), scale


@pytest.fixture(params=["auto", "reference"])
def path(request, monkeypatch):
    """The kernels, and plain NumPy."""
    monkeypatch.setenv("MINIBIT_KERNELS", request.param)


def test_gamma_is_torchs_to_two_units_in_the_last_place(path, values):
    """Torch sums in float32, in an order of its own; we in float64, and round once."""
    _, gamma = absmean_quantize(values)
    np.testing.assert_array_max_ulp(gamma, torch_gamma(torch.from_numpy(values)).numpy(), 2)


def test_fake_weights_are_torchs_bit_for_bit_given_the_same_gamma(path, values):
    """Codes, and codes / (1 / gamma)."""
    codes, gamma = absmean_quantize(values)
    w, shared = torch.from_numpy(values), torch.tensor(gamma)
    published = (w * (1.0 / shared)).round().clamp(-1, 1).numpy()
    np.testing.assert_array_equal(codes, published)
    np.testing.assert_array_equal(fake_quant_weight(values), torch_weight(w, shared).numpy())


def test_activations_are_torchs_bit_for_bit(path, values):
    """Codes, scales and values, nothing given."""
    codes, scale = absmax_quantize(values)
    published, published_scale = torch_activation(torch.from_numpy(values))
    np.testing.assert_array_equal(codes, published.to(torch.int8).numpy(), strict=True)
    np.testing.assert_array_equal(scale, published_scale.numpy(), strict=True)
    expected = (published / published_scale).numpy()
    np.testing.assert_array_equal(fake_quant_activation(values), expected, strict=True)


def test_every_absmax_has_torchs_scale(path):
    """A hundred thousand tokens, over all magnitudes: torch divides 127 as 127 times 1 / m."""
    rng = np.random.default_rng(1)
    m = (10.0 ** rng.uniform(-7, 37, (100_000, 1))).astype(np.float32)
    _, scale = absmax_quantize(m)
    np.testing.assert_array_equal(scale, torch_activation(torch.from_numpy(m))[1].numpy())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999, 1.0])
def test_the_warm_up_and_its_derivative_are_torchs(path, values, share):
    """x + lambda (q(x) - x).detach(): values to the bit (at 1: to rounding), the tangent as is."""
    v = np.random.default_rng(2).standard_normal(values.shape).astype(np.float32)
    gamma = torch.tensor(absmean_quantize(values)[1])

    def quantised(x):
        codes, scale = torch_activation(x)
        return codes / scale

    pairs = (
        (fake_quant_weight, lambda w: torch_weight(w, gamma)),
        (fake_quant_activation, quantised),
    )
    for ours, theirs in pairs:

        def published(x, theirs=theirs):
            return x + share * (theirs(x) - x).detach()

        x, v_torch = torch.from_numpy(values), torch.from_numpy(v)
        expected, expected_tangent = torch.func.jvp(published, (x,), (v_torch,))
        out, tangent = jvp(lambda x, ours=ours: ours(x, share), (values,), (v,))
        if share < 1:
            np.testing.assert_array_equal(out, expected.numpy(), strict=True)
        else:  # x + (q - x) is q but for rounding; ours is q
            slack = 2.0**-23 * np.abs(values).max()
            np.testing.assert_allclose(out, expected.numpy(), rtol=0, atol=slack)
        np.testing.assert_array_equal(tangent, expected_tangent.numpy(), strict=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_come_back_as_published(path, dtype):
    """Quantised in float32, then rounded to the type they came in (bfloat16 by hand: torch's)."""
    kind = getattr(torch, dtype)
    w = torch.from_numpy(CASES["normal"](np.random.default_rng(3))).to(kind)
    gamma = torch.tensor(absmean_quantize(w.float().numpy())[1])
    expected = torch_weight(w.float(), gamma).to(kind)
    ours = fake_quant_weight(w.numpy() if dtype == "float16" else w.float().numpy())
    assert ours.dtype == (np.float16 if dtype == "float16" else np.float32)
    assert torch.equal(torch.from_numpy(ours).to(kind), expected)


def test_binary_weights_are_torchs_where_no_weight_is_the_mean(values):
    """sign(w - mean w) mean|w|; where torch's sign is 0, ours is -1."""
    exact = torch.from_numpy(values.astype(np.float64))
    codes, beta = binary_quantize(values)
    signs = (exact - exact.mean()).sign().numpy()
    clear = np.abs(values - exact.mean().numpy()) > 1e-6 * np.abs(values).max()
    np.testing.assert_array_equal(codes[clear], signs[clear])
    assert (codes[signs == 0] == -1).all()
    np.testing.assert_allclose(beta, exact.abs().mean().numpy(), rtol=1e-6)
