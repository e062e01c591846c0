"""Forward mode agrees with jax.jvp on every rule, and with torch.func.jvp on models and kinks."""

import numpy as np
import pytest

from minibit.dual import custom_jvp, forward_gradient, jacfwd, jvp, jvp_batch
from rule_cases import CASES

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),  # torch's forward mode
]


def flat(out):
    """Put all entries of an output in one vector."""
    parts = out if isinstance(out, list | tuple) else [out]
    return np.concatenate([np.ravel(np.asarray(part)) for part in parts])


@pytest.fixture
def jax():
    """Give jax in double precision."""
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        yield jax


@pytest.fixture
def torch():
    """Give torch."""
    return pytest.importorskip("torch")


@pytest.mark.parametrize("case", [c for c in CASES if c.peer], ids=lambda c: c.name)
def test_the_same_code_has_the_same_jvp_in_jax(case, jax):
    """The case's code on jax.numpy, pushed by jax.jvp: values and tangents to rounding."""
    rng = np.random.default_rng(5)
    v = tuple(rng.standard_normal(x.shape) for x in case.args)
    out, tangent = jvp(lambda *args: case.call(np, *args), case.args, v)
    theirs = jax.jvp(lambda *args: case.call(jax.numpy, *args), case.args, v)
    np.testing.assert_allclose(flat(out), flat(theirs[0]), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(flat(tangent), flat(theirs[1]), rtol=1e-9, atol=1e-10)


def test_nearly_every_rule_has_a_case_for_jax():
    """What jax.numpy lacks is listed, so that a case cannot leave the comparison unseen."""
    without = {c.rule for c in CASES} - {c.rule for c in CASES if c.peer}
    assert without == {np.amax, np.amin}  # old names of max and min


def network(xp, w1, w2, x, labels):
    """Cross entropy of two layers with layer norm and ReLU."""
    h = x @ w1.T
    h = (h - h.mean(-1, keepdims=True)) / xp.sqrt(xp.var(h, -1, keepdims=True) + 1e-5)
    z = xp.maximum(h, 0 * h) @ w2.T
    return xp.mean(xp.log(xp.sum(xp.exp(z), -1)) - z[np.arange(len(labels)), labels])


@pytest.fixture
def problem():
    """Give weights, inputs, labels and directions of a small network."""
    rng = np.random.default_rng(2)
    arrays = rng.standard_normal((6, 5)), rng.standard_normal((3, 6)), rng.standard_normal((8, 5))
    return arrays, rng.integers(0, 3, 8), tuple(rng.standard_normal(a.shape) for a in arrays)


def torch_network(torch, labels):
    """Give the network in torch's own functions."""
    functional, labels = torch.nn.functional, torch.tensor(labels)

    def loss(w1, w2, x):
        h = functional.layer_norm(x @ w1.T, (w1.shape[0],))
        return functional.cross_entropy(functional.relu(h) @ w2.T, labels)

    return loss


def test_the_jvp_of_a_network_is_torchs(torch, problem):
    """torch.func.jvp of layer_norm, relu and cross_entropy: value and slope in float64."""
    arrays, labels, v = problem
    ours = jvp(lambda *args: network(np, *args, labels), arrays, v)
    tensors, directions = (tuple(map(torch.tensor, part)) for part in (arrays, v))
    theirs = torch.func.jvp(torch_network(torch, labels), tensors, directions)
    np.testing.assert_allclose(ours, [float(t) for t in theirs], rtol=1e-12)


def test_the_hessian_of_a_network_is_jaxs_and_torchs(torch, jax, problem):
    """Forward over forward: jacfwd(jacfwd) in all three."""
    (w1, w2, x), labels, _ = problem
    ours = jacfwd(jacfwd(lambda w: network(np, w1, w, x, labels)))(w2)
    jaxs = jax.jacfwd(jax.jacfwd(lambda w: network(jax.numpy, w1, w, x, labels)))(w2)
    np.testing.assert_allclose(ours, jaxs, rtol=1e-10, atol=1e-12)
    loss, fixed, moved = torch_network(torch, labels), torch.tensor(w1), torch.tensor(w2)
    torchs = torch.func.hessian(lambda w: loss(fixed, w, torch.tensor(x)))(moved)
    np.testing.assert_allclose(ours, torchs.numpy(), rtol=1e-10, atol=1e-12)


def test_many_directions_are_jaxs_vmap_of_jvp(jax, problem):
    """jvp_batch = vmap over the tangents of jax.jvp."""
    arrays, labels, _ = problem
    rng = np.random.default_rng(3)
    v = tuple(rng.standard_normal((7, *a.shape)) for a in arrays)
    _, ours = jvp_batch(lambda *args: network(np, *args, labels), arrays, v)

    def push(*directions):
        return jax.jvp(lambda *args: network(jax.numpy, *args, labels), arrays, directions)[1]

    np.testing.assert_allclose(ours, jax.vmap(push)(*v), rtol=1e-11)


def test_a_forward_gradient_is_built_of_torchs_jvp(torch, problem):
    """The estimate of Baydin et al. from torch's slopes along the same directions."""
    (w1, w2, x), labels, _ = problem
    v = np.random.default_rng(4).standard_normal((3, *w1.shape))
    _, ours = forward_gradient(lambda w: network(np, w, w2, x, labels), w1, v)
    loss, fixed = torch_network(torch, labels), (torch.tensor(w2), torch.tensor(x))
    slopes = [
        torch.func.jvp(lambda w: loss(w, *fixed), (torch.tensor(w1),), (torch.tensor(d),))[1]
        for d in v
    ]
    expected = np.mean([float(s) * d for s, d in zip(slopes, v, strict=True)], axis=0)
    np.testing.assert_allclose(ours, expected, rtol=1e-11)


def test_a_custom_rule_is_jaxs(jax):
    """The same custom_jvp in both: value, slope and curvature follow the given rule."""

    def define(custom, xp):
        @custom
        def f(x):
            return xp.log1p(xp.exp(x))

        @f.defjvp
        def _(primals, tangents):
            (x,), (x_dot,) = primals, tangents
            return f(x), 2 * x_dot / (1 + xp.exp(-x))  # twice the truth, to be seen

        return f

    ours, theirs = define(custom_jvp, np), define(jax.custom_jvp, jax.numpy)
    for x in (-1.0, 0.0, 2.0):
        first = jvp(ours, (x,), (1.0,))
        np.testing.assert_allclose(first, jax.jvp(theirs, (x,), (1.0,)), rtol=1e-14)
        second = jvp(lambda x: jvp(ours, (x,), (1.0,))[1], (x,), (1.0,))[1]
        expected = jax.jvp(lambda x: jax.jvp(theirs, (x,), (1.0,))[1], (x,), (1.0,))[1]
        np.testing.assert_allclose(second, expected, rtol=1e-14)


# Kinks: name -> ours, torch's, where, whether they agree. Where they do not, ours is documented.

KINKS = {
    "relu": (lambda x: np.maximum(x, 0), lambda t, x: t.relu(x), 0.0, True),
    "tie of two": (lambda x: np.maximum(x, 3 * x), lambda t, x: t.maximum(x, 3 * x), 0.0, True),
    "abs": (np.abs, lambda t, x: t.abs(x), 0.0, True),
    "max of ties": (
        lambda x: np.max(np.stack([x, 3 * x])),
        lambda t, x: t.amax(t.stack([x, 3 * x])),
        0.0,
        True,
    ),
    "norm": (
        lambda x: np.linalg.norm(np.stack([x, x])),
        lambda t, x: t.linalg.vector_norm(t.stack([x, x])),
        0.0,
        True,
    ),
    "0 ** 0": (lambda x: x**0, lambda t, x: x**0, 0.0, True),
    "0 ** x": (lambda x: 0.0**x, lambda t, x: t.pow(0.0, x), 0.0, True),
    "round": (lambda x: np.round(x) + x, lambda t, x: t.round(x) + x, 0.5, True),
    "clip at its bound": (lambda x: np.clip(x, -1, 1), lambda t, x: t.clamp(x, -1, 1), 1.0, False),
}


@pytest.mark.parametrize(("ours", "theirs", "x", "agree"), KINKS.values(), ids=KINKS)
def test_kinks_are_torchs_but_for_the_bounds_of_clip(torch, ours, theirs, x, agree):
    """At a bound torch.clamp has slope 1; ours is that of minimum(maximum(x, low), high): 0."""
    _, slope = jvp(ours, (x,), (1.0,))
    point, one = (torch.tensor(value, dtype=torch.float64) for value in (x, 1.0))
    _, expected = torch.func.jvp(lambda x: theirs(torch, x), (point,), (one,))
    assert (float(slope) == float(expected)) == agree
