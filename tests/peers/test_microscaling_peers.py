"""MXFP4 and NVFP4 against the package gguf, bit for bit."""

import numpy as np
import pytest

from minibit.nf4 import from_mxfp4, from_nvfp4, to_mxfp4, to_nvfp4

gguf = pytest.importorskip("gguf")
TYPES = gguf.GGMLQuantizationType
pytestmark = pytest.mark.peers


def weights():
    """Rows over twelve decades, with zeros and ties."""
    rng = np.random.default_rng(4)
    w = rng.standard_normal((60, 256)) * 10.0 ** rng.uniform(-6, 6, (60, 1))
    w[0, :32] = 0
    w[1, :64] = rng.integers(-24, 25, 64) / 4
    return w.astype(np.float32)


@pytest.mark.skipif(not hasattr(TYPES, "MXFP4"), reason="this gguf knows no MXFP4")
def test_mxfp4_has_the_bytes_and_the_floats_of_gguf():
    """Quantised and dequantised."""
    packed = to_mxfp4(weights())
    np.testing.assert_array_equal(packed, gguf.quants.quantize(weights(), TYPES.MXFP4))
    rng = np.random.default_rng(5)
    for rows in (packed, rng.integers(0, 253, (20, 17 * 9)).astype(np.uint8)):
        floats = gguf.quants.dequantize(rows, TYPES.MXFP4)
        np.testing.assert_array_equal(from_mxfp4(rows), floats, strict=True)


@pytest.mark.skipif(not hasattr(TYPES, "NVFP4"), reason="this gguf knows no NVFP4")
def test_nvfp4_has_the_floats_of_gguf():
    """It only reads; scales of every byte that is a number."""
    rng = np.random.default_rng(6)
    rows = rng.integers(0, 256, (100, 36 * 4)).astype(np.uint8)
    rows.reshape(100, 4, 36)[:, :, :4] %= 0x7F
    w = weights() / np.abs(weights()).max(axis=1, keepdims=True) * 1000
    for packed in (rows, to_nvfp4(w)):
        floats = gguf.quants.dequantize(packed, TYPES.NVFP4)
        np.testing.assert_array_equal(from_nvfp4(packed), floats, strict=True)
