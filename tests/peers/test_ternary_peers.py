"""File layouts against the packages that define them: gguf bit for bit, Hugging Face by torch."""

import numpy as np
import pytest

from minibit.ternary import from_hf, from_tq1_0, from_tq2_0, to_hf, to_tq1_0, to_tq2_0

pytestmark = pytest.mark.peers

TQ = {"TQ1_0": (to_tq1_0, from_tq1_0), "TQ2_0": (to_tq2_0, from_tq2_0)}


def random_codes(*shape, seed=0, zeros=1 / 3):
    """Codes with a given share of zeros."""
    rng = np.random.default_rng(seed)
    return (rng.choice([-1, 1], shape) * (rng.random(shape) >= zeros)).astype(np.int8)


@pytest.mark.parametrize("name", TQ)
@pytest.mark.parametrize("scale", [1.0, 0.1, 1e-5, 6.1e-5, 3e-8, 1234.5, 65504.0])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.998])
def test_gguf_quantises_to_our_bytes(name, scale, zeros):
    """quantize(scale * t) = to(t, scale), also for subnormal scales and blocks of zeros."""
    gguf = pytest.importorskip("gguf")
    codes = random_codes(33, 768, seed=int(1000 * zeros), zeros=zeros)
    kind = gguf.GGMLQuantizationType[name]
    theirs = gguf.quants.quantize(np.float32(scale) * codes.astype(np.float32), kind)
    np.testing.assert_array_equal(TQ[name][0](codes, scale), theirs)


@pytest.mark.parametrize("name", TQ)
def test_gguf_dequantises_our_bytes(name):
    """dequantize(to(t, s)) = s t, and our reader gives the same product of codes and scales."""
    gguf = pytest.importorskip("gguf")
    to, back = TQ[name]
    codes = random_codes(17, 1024)
    packed = to(codes, np.linspace(0.01, 3, 17 * 4).reshape(17, 4))
    theirs = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name])
    ours, scales = back(packed)
    np.testing.assert_array_equal(ours, codes)
    np.testing.assert_array_equal(np.repeat(scales, 256, axis=1) * ours, theirs)


@pytest.mark.parametrize("n_out", [1, 2, 3, 4, 5, 6, 7, 9, 64, 65])
def test_torch_unpacks_what_we_pack_for_hugging_face(n_out):
    """An unpacking written from the published one, in torch: shift, mask, stack the quarters."""
    torch = pytest.importorskip("torch")
    codes = random_codes(n_out, 13, seed=n_out)
    packed = torch.from_numpy(to_hf(codes))
    unpacked = torch.zeros((4 * packed.shape[0], 13), dtype=torch.int8)
    for i in range(4):
        rows = slice(i * packed.shape[0], (i + 1) * packed.shape[0])
        unpacked[rows] = ((packed & (3 << (2 * i))) >> (2 * i)).to(torch.int8) - 1
    np.testing.assert_array_equal(unpacked[:n_out].numpy(), codes)


@pytest.mark.parametrize("n_out", [1, 2, 5, 8, 10, 64, 2560 // 4])
def test_transformers_packs_and_unpacks_the_same_bytes(n_out):
    """pack_weights(t) = to_hf(t), and unpack_weights brings it back, up to padding."""
    torch = pytest.importorskip("torch")
    bitnet = pytest.importorskip("transformers.integrations.bitnet")
    codes = random_codes(n_out, 24, seed=n_out)
    theirs = bitnet.pack_weights(torch.from_numpy(codes.copy()).float()).numpy()
    np.testing.assert_array_equal(to_hf(codes), theirs)
    np.testing.assert_array_equal(from_hf(theirs, n_out), codes)
    unpacked = bitnet.unpack_weights(torch.from_numpy(theirs), dtype=torch.float32)
    np.testing.assert_array_equal(unpacked[:n_out].numpy(), codes)
