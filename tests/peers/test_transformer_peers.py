"""The transformer's gradients against torch's autograd, and its pieces against torch's own."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from minibit.bench.language import torch_loss  # noqa: E402
from minibit.language import loss_and_gradient  # noqa: E402
from minibit.transformer import BitNetConfig, bit_linear, float_linear, init_params  # noqa: E402
from minibit.transformer.attend import causal_attention, positions, rotate  # noqa: E402

pytestmark = pytest.mark.peers

SMALL = BitNetConfig(31, 48, 96, layers=2, heads=4, kv_heads=2, max_positions=32)
CONFIGS = {
    "grouped": SMALL,
    "all heads": dataclasses.replace(SMALL, kv_heads=4),
    "own head, no sub-norms": dataclasses.replace(SMALL, tied=False, sub_norms=False),
    "slow rotation": dataclasses.replace(SMALL, rope_theta=500000.0, kv_heads=1),
}


def problem(config, dtype, seed=0):
    """Parameters with gains that are not 1, and a batch."""
    rng = np.random.default_rng(seed)
    params = {
        name: (w * (1 + 0.2 * rng.standard_normal(w.shape))).astype(dtype)
        for name, w in init_params(config, seed).items()
    }
    tokens = rng.integers(0, config.vocab_size, (4, 25))
    return params, tokens[:, :-1], tokens[:, 1:]


def autograd(config, params, x, y, weights):
    """Loss and gradient by torch."""
    tensors = {name: torch.tensor(w, requires_grad=True) for name, w in params.items()}
    loss = torch_loss(config, tensors, torch.tensor(x), torch.tensor(y), weights)
    loss.backward()
    return loss.item(), {name: w.grad.numpy() for name, w in tensors.items()}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_are_torchs(kind, threads):
    """Every parameter in float32 to 1e-4 of its largest slope, in one part or in several."""
    config = CONFIGS[kind]
    params, x, y = problem(config, np.float32)
    loss, gradient = loss_and_gradient(config, params, x, y, threads=threads)
    expected, slopes = autograd(config, params, x, y, "float")
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, slope in slopes.items():
        assert gradient[name].dtype == np.float32
        scale = np.abs(slope).max()
        np.testing.assert_allclose(gradient[name], slope, atol=1e-4 * scale, rtol=0, err_msg=name)


@pytest.mark.parametrize("kind", CONFIGS)
def test_straight_through_gradients_are_torchs(kind):
    """Ternary weights, int8 activations, detached as the published code does it.

    Where the two round one activation differently, a slope moves by a step of 1 / 127: most entries
    agree to float32, all to that.
    """
    config = CONFIGS[kind]
    params, x, y = problem(config, np.float32)
    loss, gradient = loss_and_gradient(config, params, x, y, linear=bit_linear)
    expected, slopes = autograd(config, params, x, y, "b1.58")
    assert loss == pytest.approx(expected, rel=2e-4)
    for name, slope in slopes.items():
        error = np.abs(gradient[name] - slope) / np.abs(slope).max()
        assert np.median(error) < 1e-4, name
        assert error.max() < 0.05, name


def test_float_gradients_agree_to_float64():
    """In float64 the two programs differ by rounding and by the float32 angles alone."""
    params, x, y = problem(SMALL, np.float64)
    _, gradient = loss_and_gradient(SMALL, params, x, y, linear=float_linear)
    tensors = {name: torch.tensor(w, requires_grad=True) for name, w in params.items()}
    torch_loss(SMALL, tensors, torch.tensor(x), torch.tensor(y), "float").backward()
    for name, w in tensors.items():
        slope = w.grad.numpy()
        np.testing.assert_allclose(gradient[name], slope, atol=5e-6 * np.abs(slope).max())


def test_attention_is_torchs():
    """Grouped queries included, by ``enable_gqa``."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, heads, 9, 8)) for heads in (6, 2, 2))
    ours = causal_attention(q, k, v, future=positions(2, 9, 8).future)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (q, k, v)), is_causal=True, enable_gqa=True
    )
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-12)


def test_rotations_are_those_of_transformers():
    """`apply_rotary_pos_emb` with the tables of Llama, to the rounding of float32 angles."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = pytest.importorskip("transformers").LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=64, rope_theta=500000.0
    )
    x = np.random.default_rng(0).standard_normal((2, 50, 4, 16)).astype(np.float32)
    tensor = torch.from_numpy(x).transpose(1, 2)  # (batch, heads, length, head_dim)
    cos, sin = llama.LlamaRotaryEmbedding(config)(tensor, torch.arange(50)[None])
    theirs, _ = llama.apply_rotary_pos_emb(tensor, tensor, cos, sin)
    theta = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
    ours = rotate(x, positions(2, 50, 16, theta=theta))
    np.testing.assert_allclose(ours, theirs.transpose(1, 2).numpy(), atol=1e-5)
