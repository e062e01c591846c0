"""The doctor: what a file really is, whatever it is declared as."""

import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from commands import answer, call, refused
from doctor_zoo import ZOO, Weights, about, blocks_file, encode, weights, write_gguf
from minibit.checkpoint import doctor, picture, save_gguf, write_safetensors
from minibit.checkpoint.diagnosis.content import MOST as SAMPLE
from minibit.checkpoint.diagnosis.content import whole_content
from minibit.checkpoint.diagnosis.doctor import as_fields
from minibit.checkpoint.diagnosis.drawing import byte_diagram
from minibit.checkpoint.diagnosis.layouts import HF, LAYOUTS, decode, frames, orders
from minibit.checkpoint.diagnosis.matrices import agreement, spectral_agreement
from minibit.checkpoint.diagnosis.sources import Entry
from minibit.language import shipped_folder
from minibit.ternary import (
    from_hf,
    from_i2_s,
    to_hf,
    to_i2_s,
    to_ptq1_0,
    to_q2_0,
    to_stq1_0,
    to_tq1_0,
    to_tq2_0,
)
from minibit.transformer import BitNetConfig, BitNetModel, init_params

SEEDS = (1001,)  # on which no threshold of the doctor was chosen
MOST = 128_000_000  # bytes of memory, whatever a file's size
PAGE = Path(__file__).resolve().parents[1] / "docs" / "formats.md"
ENCODERS = {
    "Q2_0": to_q2_0,
    "PQ2_0": lambda codes, scale: to_q2_0(codes, scale, 128),
    "TQ2_0": to_tq2_0,
    "TQ1_0": to_tq1_0,
    "PTQ1_0": to_ptq1_0,
    "STQ1_0": to_stq1_0,
    "I2_S": lambda codes, scale: to_i2_s(codes, scale)[:-32],
}


def codes_of(name, seed=0):
    """Random codes that a layout holds."""
    codes = np.random.default_rng(seed).integers(-1, 2, (4, 512)).astype(np.int8)
    if name == "STQ1_0":
        codes = np.where(codes == 0, np.int8(1), codes)
        codes.reshape(4, 2, 4, 4, 16)[:, :, :, 2] = 0
    return codes


def made(name, seed, folder, model=None):
    """A file of the zoo, in a folder."""
    path = folder / re.sub(r"\W+", "_", name)
    if not any(word in name for word in ("hugging", "floats")):
        path = path.with_suffix(".gguf")
    return ZOO[name].make(path, model or weights(seed))


# --- The table of layouts


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_table_reads_what_the_package_writes(name):
    """Codes and scales of each layout, decoded by the table, are those that were encoded."""
    codes = codes_of(name)
    packed = np.asarray(ENCODERS[name](codes, 0.375))
    read, scales = decode(LAYOUTS[name], packed.reshape(-1, LAYOUTS[name].nbytes))
    np.testing.assert_array_equal(read.reshape(codes.shape), codes)
    assert scales is None or (scales == 0.375).all()


def test_the_table_has_the_orders_of_i2_s():
    """Its x86 and arm orders are those of the package."""
    codes = codes_of("I2_S")
    for layout in list(orders(LAYOUTS["I2_S"]))[:2]:
        packed = to_i2_s(codes, 1.0, layout.order.partition(":")[0])
        read, _ = decode(layout, packed[:-32].reshape(-1, layout.nbytes))
        np.testing.assert_array_equal(read.reshape(codes.shape), codes)
        assert (from_i2_s(packed, codes.shape, layout.order[:3])[0] == codes).all()


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_order_is_another_and_places_each_weight_once(name):
    """No two weights share a place, and no two orders are the same."""
    kinds = list(orders(LAYOUTS[name]))
    for layout in kinds:
        assert len({tuple(place) for place in layout.places.tolist()}) == len(layout.places)
    assert len({layout.order for layout in kinds}) == len(kinds)
    assert len({(l.rows, l.places.tobytes()) for l in kinds}) == len(kinds)  # noqa: E741


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "I2_S"])
def test_the_zoo_writes_what_the_package_writes(name):
    """The zoo's encoder, which goes by the table of places, is right for published layouts."""
    codes, layout = codes_of(name), LAYOUTS[name]
    ours = encode(layout, codes, np.full(codes.size // layout.weights, 0.375))
    np.testing.assert_array_equal(ours, ENCODERS[name](codes, 0.375).reshape(-1))


def test_code_three_and_bytes_that_nobody_writes_are_kept_apart():
    """Two bits of 3 are read as 2; a byte that no encoder of base 3 writes as 3."""
    block = np.zeros((1, 34), np.uint8)
    block[0, 2] = 0b11100100
    assert decode(LAYOUTS["PQ2_0"], block)[0][0, :4].tolist() == [-1, 0, 1, 2]
    block = np.zeros((1, 28), np.uint8)
    block[0, 0] = 1  # ceil(256 v / 243) is 0, then 2
    assert (decode(LAYOUTS["PTQ1_0"], block)[0][0, :80:16] == 3).all()


# --- The zoo


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ZOO)
def test_the_doctor_names_every_animal_of_the_zoo(name, seed, tmp_path):
    """Layout, order, rotation and exactly the faults that were planted, in bounded memory."""
    animal, path = ZOO[name], made(name, seed, tmp_path)
    tracemalloc.start()
    found = doctor(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MOST
    assert found.kinds == animal.kinds, found.verdict
    down = [t.layout for t in found.tensors if re.search(r"down(_proj)?\.weight$", t.name)]
    assert set(down) - {None} == ({animal.layout} if animal.layout else set())
    assert None not in down or name == "truncated"  # there, the last matrix is gone
    if animal.rotation != "?":
        assert found.rotation.get("found") == animal.rotation
    if animal.layout in found.order and animal.order != "?":
        published = LAYOUTS.get(animal.layout, HF).order
        assert found.order[animal.layout].choice == (animal.order or published)
    faults = [finding.message for finding in found.findings if finding.fault]
    assert (faults or ["no fault was found"])[0] in found.verdict
    json.dumps(as_fields(found), allow_nan=False)


def test_the_zoo_has_thirty_animals():
    """And each fault that the doctor names by its bytes is planted in one of them."""
    assert len(ZOO) >= 30
    kinds = set().union(*(animal.kinds for animal in ZOO.values()))
    assert {"order", "scale-place", "type-number", "size", "rotation-missing", "heads"} <= kinds


def test_a_file_is_never_written_to(tmp_path):
    """Its bytes and its time stay."""
    path = made("pq2_0 under 42", 0, tmp_path)
    before = path.read_bytes(), path.stat().st_mtime_ns
    doctor(path)
    picture(path, "blk.0.ffn_down.weight")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_weights_that_were_never_trained_leave_the_order_open(tmp_path):
    """Random codes share no axes: no order stands out, nothing is claimed."""
    rng = np.random.default_rng(3)
    model = weights(3)
    noise = {r: rng.integers(-1, 2, c.shape).astype(np.int8) for r, c in model.codes.items()}
    model = Weights(noise, model.embedding, model.heads, rng)
    found = doctor(blocks_file(tmp_path / "noise.gguf", model, LAYOUTS["Q2_0"]))
    assert found.layouts["Q2_0"] == 12
    assert found.order["Q2_0"].choice is None
    assert found.rotation["found"] is None
    assert found.heads.choice is None
    assert not found.findings
    assert "cannot be told" in found.verdict
    assert "cannot tell whether a rotation" in found.verdict


def test_the_shipped_model_is_healthy():
    """The package's own directory, packed four rows a byte."""
    found = doctor(shipped_folder())
    assert found.healthy
    assert found.layouts == {"F32": 24, "HF": 14}
    right, *wrong = found.order["HF"].scores.values()
    assert 40 < right < 80  # standard errors, as the page of formats says
    assert max(np.abs(wrong)) < 4


@pytest.mark.parametrize("kind", ["tq2_0", "i2_s"])
def test_what_the_package_writes_is_healthy(kind, tmp_path):
    """A file of `save_gguf` is what it is declared as; weights of no training leave orders open."""
    config = BitNetConfig(64, 256, 256, 1, 4, 2, 64)
    save_gguf(BitNetModel(config, init_params(config, 0)), tmp_path / "a.gguf", kind)
    found = doctor(tmp_path / "a.gguf")
    assert found.healthy, found.verdict
    assert found.layouts[kind.upper()] == 7
    assert {t.declared for t in found.tensors} == {kind.upper(), "F32"}
    assert found.order[kind.upper()].choice is None


def test_bytes_that_are_no_ternary_codes_are_not_called_so(tmp_path):
    """Four-bit weights are uint8 as well: code 3 in a quarter of the pairs says that."""
    raw = np.random.default_rng(0).integers(0, 256, (64, 96), np.uint8)
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a.weight": ("U8", raw.shape)}, lambda name: [raw])
    found = doctor(path)
    assert found.kinds == {"unknown"}
    assert found.healthy
    assert found.layouts == {"U8": 1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x80\x02}q\x00", "a pickle"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x89MBL\r\n\x1a\n", "a log of minibit: `minibit info` reads it"),
        (b"", "it begins with b''"),
        (b"GGUF\x03", "a header has 24"),
    ],
)
def test_what_is_no_model_is_named_as_what_it_is(content, words, tmp_path):
    """A verdict, and no error."""
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    found = doctor(path)
    assert words in found.verdict
    assert not found.healthy


@pytest.mark.parametrize("n_in", [96, 4096 * 12])
def test_the_share_of_zeros_of_i2_s_is_that_of_its_weights(n_in, tmp_path):
    """Small tensors are counted whole, whatever part of a block they end in; large by a sample."""
    codes = np.random.default_rng(0).integers(-1, 2, (60, n_in)).astype(np.int8)
    codes[:20] = 1  # the first third has no zeros
    entry, layout = _i2_s_entry(codes, tmp_path / "packed"), LAYOUTS["I2_S"]
    counted = whole_content(entry, layout)
    expected = (codes == 0).mean()
    assert counted.share("0") == pytest.approx(expected, abs=0 if n_in == 96 else 0.05)
    assert counted.count == codes.size if n_in == 96 else counted.count == 4 * SAMPLE


def _i2_s_entry(codes, path):
    """Write two bits a weight, in the order of rows, and a scale."""
    path.write_bytes(to_i2_s(codes, 0.5, "rows").tobytes())
    return Entry("w", codes.shape, "I2_S", path, 0, path.stat().st_size)


def test_folders_without_a_model_are_named(tmp_path):
    """Nothing in it, pickled weights, two GGUF models; and where nothing is."""
    assert "neither safetensors nor GGUF" in doctor(tmp_path).verdict
    assert "there is no such file" in doctor(tmp_path / "nothing").verdict
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    assert "never opened" in doctor(tmp_path).verdict
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert "2 GGUF models; name one" in doctor(tmp_path).verdict


# --- Memory


def test_a_file_of_eight_gigabytes_is_judged_in_bounded_memory(tmp_path):
    """Sparse, and so all zeros, which is what the doctor finds."""
    shape = (16384, 65536)  # 285 megabytes of PQ2_0
    size = shape[0] * shape[1] // 128 * 34
    path = tmp_path / "large.gguf"
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    tensors = {f"blk.{n}.{name}.weight": (142, shape, b"") for n in range(5) for name in names}
    offset = 0
    write_gguf(path, {name: (142, shape, b"") for name in tensors}, about(weights(0)))
    data = bytearray(path.read_bytes())
    for name in tensors:
        at = data.index(name.encode()) + len(name) + 4 + 16 + 4
        data[at : at + 8] = offset.to_bytes(8, "little")
        offset += size
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(len(data) + offset)
    assert path.stat().st_size > 8_000_000_000
    tracemalloc.start()
    found = doctor(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MOST
    assert found.layouts == {"PQ2_0": 35}
    assert "all-zeros" in found.kinds


# --- The statistics


def test_gram_matrices_agree_in_the_right_order_alone():
    """Two matrices that share an axis agree by many standard errors, and shuffled by none."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((64, 12))
    one, other = (shared + rng.standard_normal((64, 12)) for _ in range(2))
    grams = one @ one.T, other @ other.T
    assert agreement(*grams) > 6
    shuffled = [rng.permutation(64) for _ in range(200)]
    scores = [agreement(grams[0][np.ix_(p, p)], grams[1]) for p in shuffled]
    assert np.max(np.abs(scores)) < 5
    assert 0.7 < np.std(scores) < 1.4


def test_unknown_signs_hide_an_agreement_that_the_largest_eigenvalue_shows():
    """Signs of the axes make the plain score nothing, and leave the spectral one as it is."""
    rng = np.random.default_rng(1)
    shared = rng.standard_normal((256, 12))
    one, other = (shared + 0.5 * rng.standard_normal((256, 12)) for _ in range(2))
    signs = rng.choice([-1, 1], (256, 1))
    turned = (signs * one) @ (signs * one).T
    assert abs(agreement(turned, other @ other.T)) < 6
    plain = spectral_agreement([(one @ one.T, other @ other.T)])
    assert plain > 1.6
    assert spectral_agreement([(turned, other @ other.T)]) == pytest.approx(plain, rel=0.01)


# --- Hostile files


def test_every_fuzzed_file_ends_in_a_verdict(tmp_path):
    """Bytes changed, cut, repeated, in headers and in data; `.ci/fuzz doctor` tries more."""
    rng = np.random.default_rng(0)
    path = made("ptq1_0", 0, tmp_path)
    good = path.read_bytes()
    for _ in range(60):
        data = bytearray(good)
        for at in rng.integers(0, rng.choice([400, len(data)]), rng.integers(1, 6)):
            data[at] = rng.integers(256)
        if rng.random() < 0.3:
            del data[rng.integers(len(data)) :]
        path.write_bytes(data)
        found = doctor(path)
        assert found.verdict
        json.dumps(as_fields(found), allow_nan=False)


# --- Pictures, the page, the command


def test_a_picture_shows_the_codes_of_a_tensor(tmp_path):
    """In the order of the file's layout; also +2."""
    model = weights(5)
    path = made("ptq1_0", 5, tmp_path, model)
    np.testing.assert_array_equal(
        picture(path, "blk.1.ffn_down.weight", 200), model.codes[1, "down"][:200, :200]
    )
    path = made("q2_0 with +2", 5, tmp_path)
    assert set(np.unique(picture(path, "blk.0.ffn_down.weight"))) == {-1, 0, 1, 2}
    with pytest.raises(KeyError, match="is not in"):
        picture(path, "nothing")
    with pytest.raises(ValueError, match="no codes"):
        picture(path, "token_embd.weight")


def test_a_picture_of_bytes_with_four_rows_each():
    """A Hugging Face directory's codes, as the package reads them."""
    name = "model.layers.0.mlp.up_proj.weight"
    codes = picture(shipped_folder(), name)
    assert codes.shape == (256, 96)
    packed = to_hf(codes)
    np.testing.assert_array_equal(from_hf(packed, 256), codes)


def test_the_page_of_formats_draws_the_table():
    """Every layout of the table is on the page as `byte_diagram` draws it."""
    page = PAGE.read_text(encoding="utf-8")
    drawn = [*LAYOUTS.values(), *list(orders(LAYOUTS["I2_S"]))[1:]]
    for layout in drawn:
        assert f"```text\n{byte_diagram(layout)}\n```" in page, layout.name
    for layout in LAYOUTS.values():
        bits = 8 * layout.nbytes / layout.weights
        assert f"| {layout.name} | " in page
        assert f"| {layout.weights} | {layout.nbytes} | {bits:g} |" in page, layout.name


def test_every_frame_has_its_scale_at_one_end():
    """A frame is the layout, or the same block with the scale at its other end."""
    for layout in LAYOUTS.values():
        ends = {frame.scale for frame in frames(layout)}
        assert ends == ({None} if layout.scale is None else {0, layout.nbytes - 2})


def test_the_command_says_it_in_a_sentence_and_by_its_exit_status(tmp_path):
    """0 without a fault, 1 with one, 2 for what is not there."""
    fields = answer("doctor", "shipped")
    assert fields["healthy"]
    assert fields["order"]["HF"]["choice"] == HF.order
    path, drawing = made("pq2_0 under 42", 0, tmp_path), tmp_path / "codes.svg"
    done = call("doctor", path, "--plot", drawing)
    assert done.exit_code == 1
    assert "is of type 42" in done.stdout
    assert drawing.stat().st_size > 1000
    assert "no such file" in refused("doctor", "nowhere")
    assert "'none' is not in" in refused("doctor", path, "--plot", drawing, "--tensor", "none")
    assert "--tensor is for" in refused("doctor", path, "--tensor", "none")
