"""The Walsh-Hadamard transform before a product, stated as laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit.dual import jvp
from minibit.matmul import RotatedMatrix, ternary_matmul, walsh_hadamard
from minibit.ternary import TernaryMatrix


def sylvester(n):
    """H_2n = [[H_n, H_n], [H_n, -H_n]], in integers."""
    h = np.ones((1, 1), int)
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h


@given(st.integers(0, 7), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_it_is_sylvesters_matrix_in_each_block_within_its_bound(power, blocks, seed):
    """|y - exact| <= (log2(n) + 2) 2^-24 sum |x| / sqrt(n)."""
    rng, n = np.random.default_rng(seed), 2**power
    x = (rng.standard_normal((3, blocks * n)) * 10.0 ** rng.integers(-4, 4, blocks * n)).astype(
        "f4"
    )
    signs = rng.choice([-1, 1], blocks * n)
    y = walsh_hadamard(x, signs, n)
    assert y.dtype == np.float32
    parts = (x.astype(np.float64) * signs).reshape(3, blocks, n)
    exact = (parts @ sylvester(n).T / np.sqrt(n)).reshape(x.shape)
    bound = (power + 2) * 2.0**-24 * np.abs(parts).sum(-1, keepdims=True) / np.sqrt(n)
    assert (np.abs(y - exact) <= np.broadcast_to(bound, parts.shape).reshape(x.shape)).all()


def test_twice_is_the_identity_and_lengths_stay():
    """H H^T = n I; whole numbers in blocks of four are exact."""
    x = np.random.default_rng(1).integers(-50, 50, (5, 12)).astype(np.float32)
    y = walsh_hadamard(x, block=4)
    np.testing.assert_array_equal(walsh_hadamard(y, block=4), x)
    np.testing.assert_array_equal((y * y).sum(axis=1), (x * x).sum(axis=1))


def test_it_is_linear_in_forward_mode():
    """The tangent is turned as the primal is."""
    rng = np.random.default_rng(2)
    x, v = rng.standard_normal((2, 3, 16))
    signs = rng.choice([-1, 1], 16)
    out, tangent = jvp(lambda x: walsh_hadamard(x, signs, 8), (x,), (v,))
    np.testing.assert_array_equal(out, walsh_hadamard(x, signs, 8))
    np.testing.assert_array_equal(tangent, walsh_hadamard(v, signs, 8))


@pytest.mark.parametrize("activations", ["int8", "float32"])
def test_a_rotated_matrix_turns_what_it_meets(activations):
    """(W R^T)(R x) is W x; without the rotation it is something else."""
    rng = np.random.default_rng(3)
    codes, signs = rng.integers(-1, 2, (70, 128)).astype(np.int8), rng.choice([-1, 1], 128)
    matrix = TernaryMatrix.from_codes(codes, rng.random((70, 2)) + 0.5)
    rotated, x = RotatedMatrix(matrix, signs, 64), rng.standard_normal((4, 128)).astype(np.float32)
    y = ternary_matmul(x, rotated, activations=activations)
    turned = ternary_matmul(rotated.turned(x), matrix, activations=activations)
    np.testing.assert_array_equal(y, turned)
    w = walsh_hadamard(matrix.rows(), block=64) * signs  # W = (W R^T) R
    error = np.linalg.norm(y - x @ w.T) / np.linalg.norm(x @ w.T)
    assert error < (0.02 if activations == "int8" else 1e-5)
    without = ternary_matmul(x, matrix, activations=activations)
    assert abs(np.corrcoef(without.ravel(), y.ravel())[0, 1]) < 0.3


def test_what_does_not_fit_is_refused():
    """Blocks, signs, types: each error says what came."""
    x = np.zeros((2, 12), np.float32)
    for block in (3, 8, 24):
        with pytest.raises(ValueError, match=f"power of two that divides 12, got {block}"):
            walsh_hadamard(x, block=block)
    with pytest.raises(ValueError, match="block must be a power of two that divides 12, got 12"):
        walsh_hadamard(x)
    with pytest.raises(ValueError, match=r"signs must have shape \(12,\), got \(2,\)"):
        walsh_hadamard(x, [1, 1], 4)
    with pytest.raises(ValueError, match="signs must be 1 or -1, got 0 at 3"):
        walsh_hadamard(x, [1, 1, 1, 0] * 3, 4)
    for wrong in (np.zeros((2, 4), int), np.float32(1)):
        with pytest.raises(TypeError, match="x must be an array of floats"):
            walsh_hadamard(wrong)
    with pytest.raises(TypeError, match="matrix must be a TernaryMatrix, got list"):
        RotatedMatrix([[1]], [1], 1)
