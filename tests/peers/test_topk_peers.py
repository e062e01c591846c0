"""Q-Sparse against torch: `torch.topk` where there are no ties, and the authors' autograd function.

The function is ``TopkSparseFunction`` of ustcwhy/Q-Sparse, written out: a mask by `torch.topk` of
the magnitudes, and the gradient passed on as it is.
"""

import numpy as np
import pytest

from minibit.dual import jvp
from minibit.tape import vjp
from minibit.topk import topk_mask, topk_quantize, topk_sparsify

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.peers


class Sparse(torch.autograd.Function):
    """Keep the k largest magnitudes; straight-through."""

    @staticmethod
    def forward(ctx, x, k):
        """Scatter ones at the places that `torch.topk` returns."""
        places = torch.topk(x.abs(), k, dim=-1).indices
        return x * torch.zeros_like(x).scatter_(-1, places, 1.0)

    @staticmethod
    def backward(ctx, gradient):
        """Pass the gradient on."""
        return gradient, None


@pytest.mark.parametrize("n", [1, 48, 129, 4096])
@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_values_and_gradients_are_torchs(n, share):
    """Distinct magnitudes: the same entries; any cotangent comes back as it is."""
    rng = np.random.default_rng(n)
    x, c = rng.standard_normal((2, 7, n)).astype(np.float32)
    k = max(1, int(share * n))
    tensor = torch.from_numpy(x).requires_grad_()
    theirs = Sparse.apply(tensor, k)
    theirs.backward(torch.from_numpy(c))
    ours, pullback = vjp(lambda x: topk_sparsify(x, k), (x,))
    np.testing.assert_array_equal(ours, theirs.detach().numpy())
    np.testing.assert_array_equal(pullback(c)[0], tensor.grad.numpy())


def test_the_masked_gradient_is_that_of_plain_torch():
    """``x * mask`` with the mask held constant, as autograd differentiates it."""
    rng = np.random.default_rng(0)
    x, c = rng.standard_normal((2, 5, 64)).astype(np.float32)
    tensor = torch.from_numpy(x).requires_grad_()
    (tensor * torch.from_numpy(topk_mask(x, 20))).backward(torch.from_numpy(c))
    (back,) = vjp(lambda x: topk_sparsify(x, 20, straight=False), (x,))[1](c)
    np.testing.assert_array_equal(back, tensor.grad.numpy())
    _, tangent = jvp(lambda x: topk_sparsify(x, 20, straight=False), (x,), (c,))
    np.testing.assert_array_equal(tangent, back)


def test_among_equals_torch_keeps_as_many_but_leaves_the_choice_to_chance():
    """The kept magnitudes are the same multiset; which of the equals, only we promise."""
    x = np.random.default_rng(1).integers(-3, 4, (50, 200)).astype(np.float32)
    ours = np.sort(np.abs(topk_sparsify(x, 90)), axis=1)
    theirs = np.sort(Sparse.apply(torch.from_numpy(x), 90).abs().numpy(), axis=1)
    np.testing.assert_array_equal(ours, theirs)
    mask = topk_mask(x, 90)
    for row, kept in zip(np.abs(x), mask, strict=True):
        edge = row[kept].min()
        places = np.flatnonzero(row == edge)
        assert kept[places].tolist() == sorted(kept[places].tolist(), reverse=True)


def test_the_quantised_form_is_the_published_formula():
    """``RoundClip(127 x / gamma, -128, 127) * M`` in torch's float32."""
    x = np.random.default_rng(2).standard_normal((20, 100)).astype(np.float32)
    tensor = torch.from_numpy(x)
    gamma = tensor.abs().max(dim=-1, keepdim=True).values
    codes = (tensor * (127 / gamma)).round().clamp(-128, 127)
    mask = Sparse.apply(tensor, 40) != 0
    np.testing.assert_array_equal(topk_quantize(x, 40)[0], (codes * mask).numpy())
