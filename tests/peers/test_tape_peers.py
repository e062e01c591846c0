"""Gradients against torch's autograd, steps of Adam against torch's AdamW."""

from itertools import pairwise

import numpy as np
import pytest

from minibit.layers import cross_entropy, mlp, rms_norm
from minibit.tape import Adam, clip_by_global_norm, value_and_grad

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.peers


def normal(seed, *shape, dtype=np.float64):
    """Normal numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def gradients_of_torch(loss, params, *rest):
    """The value and the gradients by torch, for a dict of arrays."""
    tensors = {name: torch.tensor(p, requires_grad=True) for name, p in params.items()}
    value = loss(tensors, *(torch.tensor(r) for r in rest))
    value.backward()
    return value.item(), {name: t.grad.numpy() for name, t in tensors.items()}


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-11), (np.float32, 1e-4)])
def test_the_gradient_of_the_mlp_is_torchs(dtype, rtol):
    """Layer norm, relu, cross entropy, four matrices."""
    widths = (30, 24, 24, 24, 10)
    params = {
        f"w{i + 1}": normal(i, n, m, dtype=dtype) for i, (m, n) in enumerate(pairwise(widths))
    }
    x, labels = normal(9, 64, 30, dtype=dtype), np.arange(64) % 10

    def theirs(p, x, labels):
        functional = torch.nn.functional
        for name in ("w1", "w2", "w3"):
            x = torch.relu(functional.layer_norm(x @ p[name].T, (24,)))
        return functional.cross_entropy(0.12 * x @ p["w4"].T, labels)

    value, gradient = value_and_grad(lambda p: cross_entropy(mlp(p, x, logit_scale=0.12), labels))(
        params
    )
    expected_value, expected = gradients_of_torch(theirs, params, x, labels)
    assert value == pytest.approx(expected_value, rel=rtol)
    for name in params:
        assert gradient[name].dtype == dtype
        size = np.abs(expected[name]).max()
        np.testing.assert_allclose(gradient[name], expected[name], rtol=0, atol=rtol * size)


def test_the_gradient_of_attention_with_an_embedding_is_torchs():
    """A gather with repeats, stacked products, a softmax, a mask, a gain and a tied head."""
    tokens = np.random.default_rng(0).integers(0, 11, (3, 7))
    params = {"table": normal(0, 11, 8), "q": normal(1, 8, 8), "gain": normal(2, 8)}
    future = np.triu(np.full((7, 7), -1e9), 1)

    def ours(p):
        h = rms_norm(p["table"][tokens], p["gain"])  # (batch, tokens, 8)
        heads = (h @ p["q"].T).reshape(3, 7, 2, 4).transpose(0, 2, 1, 3)
        scores = heads @ np.swapaxes(heads, -1, -2) / 2 + future
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = weights / weights.sum(axis=-1, keepdims=True)
        mixed = (weights @ heads).transpose(0, 2, 1, 3).reshape(3, 7, 8)
        return cross_entropy((mixed + h) @ p["table"].T, tokens)

    def theirs(p, tokens):
        h = torch.nn.functional.rms_norm(p["table"][tokens], (8,), p["gain"], 1e-5)
        heads = (h @ p["q"].T).reshape(3, 7, 2, 4).transpose(1, 2)
        weights = torch.softmax(heads @ heads.mT / 2 + torch.tensor(future), -1)
        mixed = (weights @ heads).transpose(1, 2).reshape(3, 7, 8)
        logits = (mixed + h) @ p["table"].T
        return torch.nn.functional.cross_entropy(logits.reshape(21, 11), tokens.reshape(21))

    value, gradient = value_and_grad(ours)(params)
    expected_value, expected = gradients_of_torch(theirs, params, tokens)
    assert value == pytest.approx(expected_value, rel=1e-12)
    for name in params:
        np.testing.assert_allclose(gradient[name], expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 2e-5)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_walks_as_torchs_adamw(dtype, rtol, decay):
    """Twenty steps with gradients of all sizes, a rate that changes, and clipping."""
    start = normal(0, 50, dtype=dtype)
    sizes = 10.0 ** normal(1, 50).astype(dtype)
    adam = Adam([start], 0.05, betas=(0.9, 0.95), weight_decay=decay)
    tensor = torch.tensor(start, requires_grad=True)
    peer = torch.optim.AdamW([tensor], 0.05, betas=(0.9, 0.95), weight_decay=decay)
    for step in range(20):
        g = (sizes * normal(2 + step, 50)).astype(dtype)
        lr = 0.05 * (1 - step / 20)
        (mine,) = adam.step(clip_by_global_norm([g], 3.0), lr=lr)
        tensor.grad = torch.tensor(g)
        torch.nn.utils.clip_grad_norm_([tensor], 3.0)
        peer.param_groups[0]["lr"] = lr
        peer.step()
    np.testing.assert_allclose(mine, tensor.detach().numpy(), rtol=0, atol=max(rtol, 1e-6))
