"""NF4 against bitsandbytes on the CPU: bit for bit, and where not, why not."""

import numpy as np
import pytest

from minibit.nf4 import (
    NF4_CODE,
    dequantize_nf4_reference,
    dynamic_map,
    from_bitsandbytes,
    nf4_matmul,
    normal_float,
    quantize_nf4,
    to_bitsandbytes,
)
from minibit.nf4.codebooks import midpoints
from minibit.nf4.double_quant import mean_of_torch

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

BIN = 2 / 65_535  # of the table in which the peer's CPU code looks nested codes up
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


@pytest.fixture(autouse=True)
def one_thread():
    """One thread, so that torch's mean has one order; and no compiler of torch's own."""
    before, compiler = torch.get_num_threads(), torch._dynamo.config.disable
    torch.set_num_threads(1)
    torch._dynamo.config.disable = True
    yield
    torch.set_num_threads(before)
    torch._dynamo.config.disable = compiler


@pytest.fixture(params=["auto", "reference"])
def path(request, monkeypatch):
    """The kernels, and plain NumPy."""
    monkeypatch.setenv("MINIBIT_KERNELS", request.param)


def peer(w, block, double=False):
    """Codes and state of bitsandbytes."""
    from bitsandbytes import functional

    return functional.quantize_4bit(
        torch.from_numpy(w), blocksize=block, quant_type="nf4", compress_statistics=double
    )


def floats(packed, state):
    """What bitsandbytes dequantises to."""
    from bitsandbytes import functional

    return functional.dequantize_4bit(packed, state).numpy()


def ties(size, rng):
    """Midpoints and their neighbours on both sides, in blocks whose absmax is 1 or 0.37."""
    mid = midpoints(NF4_CODE)
    near = np.concatenate(
        [mid, np.nextafter(mid, np.float32(2)), np.nextafter(mid, np.float32(-2))]
    )
    w = rng.choice(near, size).astype(np.float32)
    w[::32] = 1
    w[size // 2 :] *= np.float32(0.37)
    return w


INPUTS = {
    "normal": lambda size, rng: rng.standard_normal(size),
    "uniform": lambda size, rng: rng.uniform(-1, 1, size),
    "heavy tails": lambda size, rng: rng.standard_t(1.5, size),
    "ties and neighbours": ties,
    "zeros": lambda size, rng: np.zeros(size) * rng.choice([-1, 1], size),
    "sparse": lambda size, rng: rng.standard_normal(size) * (rng.random(size) < 0.01),
    "denormal": lambda size, rng: rng.standard_normal(size) * 1e-40,
    "about 1e-38": lambda size, rng: rng.standard_normal(size) * 1e-38,
    "huge": lambda size, rng: rng.uniform(-3.4e38, 3.4e38, size) / (1 + (size > 40) * 10),
    "many scales": lambda size, rng: rng.standard_normal(size) * 10.0 ** rng.uniform(-30, 30, size),
}
LENGTHS = (1, 3, 31, 32, 33, 64, 67, 1024, 1025, 4099, 20_480)


@pytest.mark.parametrize("kind", INPUTS)
def test_codes_absmax_and_values_are_the_peers_bit_for_bit(path, kind):
    """All lengths, tails and odd ones too; one row, where the peer's decoder is right."""
    rng = np.random.default_rng(0)
    for size in LENGTHS:
        w = INPUTS[kind](size, rng).astype(np.float32)
        for block in (32, 64, 256, 4096):
            packed, state = peer(w, block)
            tensor = quantize_nf4(w, block)
            np.testing.assert_array_equal(tensor.packed, packed.numpy().reshape(-1))
            np.testing.assert_array_equal(tensor.absmax, state.absmax.numpy(), strict=True)
            if packed.shape[0] > 1:  # else see the list below
                values = floats(packed, state).reshape(-1)
                np.testing.assert_array_equal(tensor.dequantize(), values, strict=True)


@pytest.mark.parametrize("kind", INPUTS)
def test_the_offset_and_the_nested_absmax_are_the_peers_bit_for_bit(path, kind):
    """With double quantisation; nested codes are too, or lie within a bin of the peer's table."""
    rng = np.random.default_rng(1)
    mid = midpoints(dynamic_map()).astype(np.float64)
    for size in (1, 33, 224, 256, 1025, 4099, 100_003):
        w = INPUTS[kind](size, rng).astype(np.float32)
        if kind in ("huge", "many scales"):
            w = np.clip(w, -1e34, 1e34)  # a finite mean
        packed, state = peer(w, 32, double=True)
        tensor = quantize_nf4(w, 32, double_quant=True)
        np.testing.assert_array_equal(tensor.packed, packed.numpy().reshape(-1))
        assert tensor.offset == np.float32(state.offset.item())
        np.testing.assert_array_equal(tensor.nested_absmax, state.state2.absmax.numpy())
        theirs = state.absmax.numpy()
        differ = np.flatnonzero(tensor.nested_codes != theirs)
        assert differ.size <= 0.1 * theirs.size
        nested = np.repeat(tensor.nested_absmax, 256)[differ].astype(np.float64)
        s = (quantize_nf4(w, 32).absmax[differ].astype(np.float64) - tensor.offset) / nested
        low, high = np.minimum(tensor.nested_codes, theirs), np.maximum(tensor.nested_codes, theirs)
        first, last = mid[low[differ]], mid[high[differ] - 1]  # the midpoints between the two
        assert (np.maximum(first - s, s - last) <= BIN).all()


@pytest.mark.parametrize("shape", [(8, 64), (3, 192), (130, 128), (5, 50), (7, 18)])
def test_matrices_decode_as_the_peers_do(path, shape):
    """In float32 and float16, with and without double quantisation."""
    rng = np.random.default_rng(2)
    w = rng.standard_normal(shape).astype(np.float32)
    for dtype in (np.float32, np.float16):
        for double in (False, True):
            packed, state = peer(w.astype(dtype), 64, double)
            arrays = {
                f"w.{key}" if key else "w": value.numpy()
                for key, value in {"": packed, **state.as_dict(packed=True)}.items()
            }
            tensor = from_bitsandbytes(arrays, "w")
            values = floats(packed, state)
            np.testing.assert_array_equal(tensor.dequantize(dtype), values, strict=True)


def test_nan_and_infinity_are_coded_as_the_peer_does(path):
    """With check_finite=False; by default they are refused."""
    w = np.random.default_rng(3).standard_normal(200).astype(np.float32)
    w[[3, 70, 75, 130, 199]] = np.nan, np.inf, -np.inf, -np.inf, np.nan
    packed, state = peer(w, 32)
    tensor = quantize_nf4(w, 32, check_finite=False)
    np.testing.assert_array_equal(tensor.packed, packed.numpy().reshape(-1))
    np.testing.assert_array_equal(tensor.absmax, state.absmax.numpy())
    np.testing.assert_array_equal(tensor.dequantize(), floats(packed, state).reshape(-1))


def test_the_tables_are_the_peers():
    """NF4 and its derivation, and the dynamic map."""
    from bitsandbytes import functional

    np.testing.assert_array_equal(
        functional.get_4bit_type("nf4", device="cpu").numpy(), NF4_CODE, strict=True
    )
    np.testing.assert_array_equal(
        functional.create_dynamic_map().numpy(), dynamic_map(), strict=True
    )
    pytest.importorskip("scipy")
    derived = functional.create_normal_map(offset=0.95).numpy()  # another than the default
    np.testing.assert_array_equal(normal_float(0.95), np.unique(derived))


def test_the_mean_is_torchs_bit_for_bit():
    """Every length to 1,100 and some above, on one thread."""
    rng = np.random.default_rng(4)
    for size in (*range(1, 1100), 5000, 16_384, 32_768, 65_537, 262_144):
        values = np.abs(rng.standard_normal(size)).astype(np.float32)
        assert mean_of_torch(values) == np.float32(torch.from_numpy(values).mean().item()), size


# --- files and layers ---------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
def test_the_peers_layer_loads_our_file_and_we_load_its_own(path, double, tmp_path):
    """Through safetensors; its layer then multiplies by our weights, and ours by its."""
    import bitsandbytes as bnb
    from safetensors.numpy import load_file, save_file

    rng = np.random.default_rng(5)
    w = rng.standard_normal((96, 128)).astype(np.float32)
    x = rng.standard_normal((3, 128)).astype(np.float32)
    tensor = quantize_nf4(w, 64, double)
    file = tmp_path / "ours.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in to_bitsandbytes(tensor).items()}, file)
    arrays = {name: torch.from_numpy(array) for name, array in load_file(file).items()}
    state = {name.removeprefix("weight."): array for name, array in arrays.items()}
    layer = bnb.nn.Linear4bit(128, 96, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit.from_prequantized(state.pop("weight"), state, device="cpu")
    np.testing.assert_array_equal(
        floats(layer.weight.data, layer.weight.quant_state), tensor.dequantize()
    )
    theirs = bnb.matmul_4bit(torch.from_numpy(x), layer.weight.data, layer.weight.quant_state)
    values = np.abs(dequantize_nf4_reference(tensor))
    bound = (128 + 4) * 2.0**-23 * (np.abs(x).astype(float) @ values.T)
    assert (np.abs(nf4_matmul(x, tensor) - theirs.numpy()) <= bound).all()
    back = from_bitsandbytes({k: v.numpy() for k, v in layer.state_dict().items()})
    np.testing.assert_array_equal(back.packed, tensor.packed)
    np.testing.assert_array_equal(back.dequantize(), tensor.dequantize())
    assert (back.offset is None) == (not double)


# --- where the peer differs, each with its reason -----------------------------------------------


@pytest.mark.skipif(not AVX512, reason="the peer's fault lies in its AVX-512 code")
@pytest.mark.parametrize("shape", [(8, 96), (65, 16), (9, 304), (8, 80)])
def test_peer_bug_rows_that_end_within_a_block_are_decoded_with_other_blocks_scales(shape):
    """Its AVX-512 decoder, taken where columns come in sixteens, gives a row n // block blocks.

    The bytes are equal, and its plain decoder gives our values: only that path is wrong.
    """
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    w = np.random.default_rng(6).standard_normal(shape).astype(np.float32)
    packed, state = peer(w, 64)
    tensor = quantize_nf4(w, 64)
    np.testing.assert_array_equal(tensor.packed, packed.numpy().reshape(-1))
    ours, theirs = tensor.dequantize(), floats(packed, state)
    row, column = np.indices(shape)
    wrong = NF4_CODE[tensor.codes()] * tensor.absmax[row * (shape[1] // 64) + column // 64]
    np.testing.assert_array_equal(theirs, wrong)
    error = [np.linalg.norm(values - w) / np.linalg.norm(w) for values in (ours, theirs)]
    assert error[0] < 0.11 < 0.14 < error[1]
    plain = _dequantize_4bit_compute(
        packed.reshape(-1), state.absmax, state.code, 64, w.shape, torch.float32
    )
    np.testing.assert_array_equal(ours, plain.numpy())


def test_peer_approximation_its_table_of_bins_misses_the_nearest_nested_code():
    """65,536 bins are coarser than the dynamic map near zero: ours is never further away."""
    from bitsandbytes import functional

    rng = np.random.default_rng(7)
    s = (rng.standard_normal(25_600) * 1e-3).astype(np.float32)
    s[::256] = 1
    theirs, state = functional.quantize_blockwise(torch.from_numpy(s), blocksize=256)
    assert (state.absmax.numpy() == 1).all()
    code = dynamic_map().astype(np.float64)
    ours = np.searchsorted(midpoints(dynamic_map()), s)
    differ = ours != theirs.numpy()
    assert 0.02 < differ.mean() < 0.12
    distance = [np.abs(code[codes[differ]] - s[differ]) for codes in (ours, theirs.numpy())]
    assert (distance[0] < distance[1]).all()


def test_peer_quirk_two_weights_in_a_row_come_back_as_a_column():
    """It takes one packed byte for a transposed weight; the values are ours."""
    w = np.float32([[1.0, -0.5]])
    packed, state = peer(w, 32)
    assert floats(packed, state).shape == (2, 1)
    np.testing.assert_array_equal(quantize_nf4(w, 32).dequantize(), floats(packed, state).T)


def test_peer_limit_absmaxes_whose_mean_overflows_make_its_offset_infinite():
    """And its weights NaN; ours are refused."""
    w = np.full(256, 3e38, np.float32)
    packed, state = peer(w, 32, double=True)
    assert np.isinf(state.offset.item())
    assert np.isnan(floats(packed, state)).all()
    with pytest.raises(ValueError, match="needs a finite mean of the absmaxes"):
        quantize_nf4(w, 32, double_quant=True)


def test_peer_limit_above_32768_blocks_its_offset_depends_on_the_threads():
    """So it is read from the file, never computed anew; ours is that of one thread."""
    rng = np.random.default_rng(8)
    differences = set()
    for _ in range(8):
        values = torch.from_numpy(np.abs(rng.standard_normal(200_000)).astype(np.float32))
        torch.set_num_threads(1)
        one = values.mean().item()
        assert mean_of_torch(values.numpy()) == np.float32(one)
        torch.set_num_threads(2)
        differences.add(values.mean().item() == one)
    assert False in differences
