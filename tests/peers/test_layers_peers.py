"""Layers against torch, values and Jacobian-vector products."""

import numpy as np
import pytest

from minibit.dual import jvp
from minibit.layers import cross_entropy, layer_norm, mlp, relu, rms_norm, squared_relu

torch = pytest.importorskip("torch")
functional = torch.nn.functional

pytestmark = [
    pytest.mark.peers,
    # torch.func.jvp's own use of torch.jit, on its first call
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]


def floats(*shape, seed=0):
    """Normal numbers in float64."""
    return np.random.default_rng(seed).standard_normal(shape)


LABELS = np.arange(32) % 10
PAIRS = {
    "layer_norm": (layer_norm, lambda x: functional.layer_norm(x, x.shape[-1:], eps=1e-5)),
    "rms_norm": (rms_norm, lambda x: functional.rms_norm(x, x.shape[-1:], eps=1e-5)),
    "relu": (relu, torch.relu),
    "squared_relu": (squared_relu, lambda x: torch.relu(x) ** 2),
    "cross_entropy": (
        lambda x: cross_entropy(x, LABELS, "none"),
        lambda x: functional.cross_entropy(x, torch.from_numpy(LABELS), reduction="none"),
    ),
    "mean cross_entropy": (
        lambda x: cross_entropy(x, LABELS),
        lambda x: functional.cross_entropy(x, torch.from_numpy(LABELS)),
    ),
}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("name", PAIRS)
def test_values_and_tangents_are_torchs(name, scale):
    """Our function and torch's, our jvp and torch.func.jvp, in float64 to 1e-12."""
    ours, theirs = PAIRS[name]
    x, x_dot = scale * floats(32, 10), floats(32, 10, seed=1)
    out, tangent = jvp(ours, (x,), (x_dot,))
    expected = torch.func.jvp(theirs, (torch.from_numpy(x),), (torch.from_numpy(x_dot),))
    for mine, torchs in zip((out, tangent), expected, strict=True):
        np.testing.assert_allclose(mine, torchs.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_float32_agrees_to_float32(name):
    """The same in float32, within a few units in the last place of the largest entry."""
    ours, theirs = PAIRS[name]
    x = floats(32, 10).astype(np.float32)
    mine, torchs = ours(x), theirs(torch.from_numpy(x)).numpy()
    assert mine.dtype == torchs.dtype
    np.testing.assert_allclose(mine, torchs, atol=8 * 2.0**-24 * max(1, np.abs(torchs).max()))


def test_slopes_at_zero_are_torchs():
    """In torch, too, relu'(0) = 0."""
    zero, one = np.zeros(1), np.ones(1)
    for ours, theirs in (PAIRS["relu"], PAIRS["squared_relu"]):
        expected = torch.func.jvp(theirs, (torch.zeros(1).double(),), (torch.ones(1).double(),))
        np.testing.assert_array_equal(jvp(ours, (zero,), (one,))[1], expected[1].numpy())


def test_the_mlp_and_its_loss_have_torchs_tangent():
    """784-256-256-256-10 on ternary weights: loss of each sample along a random direction."""
    shapes = {"w1": (256, 784), "w2": (256, 256), "w3": (256, 256), "w4": (10, 256)}
    rng = np.random.default_rng(0)
    params = {name: rng.integers(-1, 2, shape).astype(float) for name, shape in shapes.items()}
    moves = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    x = floats(32, 784, seed=2)

    def ours(params):
        return cross_entropy(mlp(params, x, logit_scale=0.12), LABELS, "none")

    def theirs(params):
        h = torch.from_numpy(x)
        for name in ("w1", "w2", "w3"):
            h = torch.relu(functional.layer_norm(h @ params[name].T, (256,), eps=1e-5))
        logits = 0.12 * (h @ params["w4"].T)
        return functional.cross_entropy(logits, torch.from_numpy(LABELS), reduction="none")

    def as_torch(arrays):
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    out, tangent = jvp(ours, (params,), (moves,))
    expected = torch.func.jvp(theirs, (as_torch(params),), (as_torch(moves),))
    np.testing.assert_allclose(out, expected[0].numpy(), rtol=1e-10)
    np.testing.assert_allclose(tangent, expected[1].numpy(), rtol=1e-9, atol=1e-10)
