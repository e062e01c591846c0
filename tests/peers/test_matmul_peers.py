"""The ternary product and its quantisers against PyTorch, in the order of published code."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from minibit.absmean import absmax_quantize, absmean_quantize  # noqa: E402
from minibit.matmul import ternary_matmul, ternary_matmul_int8  # noqa: E402
from minibit.ternary import TernaryMatrix  # noqa: E402

pytestmark = pytest.mark.peers

SHAPES = [(1, 1, 1), (1, 256, 784), (5, 33, 65), (60, 100, 200), (3, 17, 1100)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_integer_product_is_that_of_torch(shape):
    """Exact sums: torch's int64 product of the same codes."""
    batch, n_out, n_in = shape
    rng = np.random.default_rng(n_in)
    codes = rng.integers(-1, 2, (n_out, n_in), dtype=np.int8)
    x = rng.integers(-128, 128, (batch, n_in), dtype=np.int8)
    expected = torch.from_numpy(x).long() @ torch.from_numpy(codes).long().T
    z = ternary_matmul_int8(x, TernaryMatrix.from_codes(codes))
    np.testing.assert_array_equal(z, expected.numpy())


@pytest.mark.parametrize("shape", [(1, 1), (7, 100), (3, 4, 65), (64, 1000)])
def test_activation_codes_equal_the_published_ones_bit_for_bit(shape):
    """``scale = 127 / absmax.clamp_(min=1e-5)``, ``(x * scale).round().clamp_(-128, 127)``."""
    x = np.random.default_rng(shape[-1]).standard_normal(shape).astype(np.float32)
    tokens = torch.from_numpy(x)
    scale = 127 / tokens.abs().max(dim=-1, keepdim=True).values.clamp_(min=1e-5)
    expected = (tokens * scale).round().clamp_(-128, 127).to(torch.int8)
    codes, scales = absmax_quantize(x)
    np.testing.assert_array_equal(codes, expected.numpy())
    np.testing.assert_array_equal(scales, scale.numpy())


@pytest.mark.parametrize("shape", [(1, 1), (7, 100), (256, 784)])
def test_weight_codes_equal_the_published_ones(shape):
    """``scale = 1 / weight.abs().mean().clamp_(min=1e-5)``; its mean is a float32 sum."""
    w = np.random.default_rng(shape[0]).standard_normal(shape).astype(np.float32)
    weight = torch.from_numpy(w)
    scale = 1.0 / weight.abs().mean().clamp_(min=1e-5)
    expected = (weight * scale).round().clamp_(-1, 1).to(torch.int8).numpy()
    codes, gamma = absmean_quantize(w)
    np.testing.assert_allclose(gamma, 1 / scale.item(), rtol=1e-6)
    # Two last bits of gamma apart, only a weight within 1e-6 of half a gamma may differ.
    clear = np.abs(np.abs(w) / gamma - 0.5) > 1e-6
    np.testing.assert_array_equal(codes[clear], expected[clear])


@pytest.mark.parametrize("batch", [1, 60])
def test_a_whole_layer_agrees_with_a_float64_one(batch):
    """BitLinear's forward: quantise, multiply, scale; within float32's rounding of the result."""
    rng = np.random.default_rng(batch)
    codes = rng.integers(-1, 2, (120, 300), dtype=np.int8)
    x = rng.standard_normal((batch, 300)).astype(np.float32)
    q, scale = absmax_quantize(x)
    exact = torch.from_numpy(q).double() @ torch.from_numpy(codes).double().T
    exact = exact / torch.from_numpy(scale).double() * float(np.float32(0.04))
    y = ternary_matmul(x, TernaryMatrix.from_codes(codes, 0.04))
    np.testing.assert_allclose(y, exact.numpy(), rtol=3 * 2.0**-23, atol=0)
