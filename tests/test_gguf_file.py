"""GGUF: what is written is read back, what is damaged is refused by its byte."""

import dataclasses
import hashlib
import itertools
import struct
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibit.checkpoint import CheckpointError, load_gguf, save_gguf
from minibit.checkpoint.gguf.container import BLOCKS, open_gguf
from minibit.checkpoint.gguf.models import gguf_name
from minibit.checkpoint.gguf.writer import NewTensor, write_gguf
from minibit.ternary import TernaryMatrix, to_i2_s, to_tq1_0, to_tq2_0
from minibit.transformer import (
    BitNetConfig,
    BitNetModel,
    float_linear,
    init_params,
    pack_params,
    param_shapes,
)
from model_files import assert_same

SMALL = BitNetConfig(
    7, 256, 256, layers=2, heads=4, kv_heads=2, max_positions=64, rope_theta=500000.0, bos=1, eos=2
)
KINDS = ("tq2_0", "tq1_0", "i2_s")
every_kind = pytest.mark.parametrize("kind", KINDS)
TOKENS = np.arange(40).reshape(2, 20) % 7
Q = "blk.0.attn_q.weight"


def model_of(config=SMALL, seed=0, **changes):
    """A random packed model whose scales float16 holds exactly."""
    params = pack_params(init_params(config, seed))
    for name, value in params.items():
        if isinstance(value, TernaryMatrix):
            half = np.float32(np.float16(value.scale))
            params[name] = TernaryMatrix.from_codes(value.codes(), half)
        elif value.ndim == 1:
            params[name] = np.linspace(0.5, 1.5, value.size, dtype=np.float32)
    return BitNetModel(config, params | changes)


def text(value):
    """A string as GGUF has it."""
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entries_of(file):
    """The metadata of a file as its writer takes them."""
    return {key: value for key, value in file.metadata.items() if value is not None}


def rewrite(path, entries=None, tensors=None, drop=()):
    """Write a file again with other entries or tensors: name -> (type, shape, bytes)."""
    file = open_gguf(path)
    kept = {name: (t.kind, t.shape, file.bytes_of(t).copy()) for name, t in file.tensors.items()}
    both = kept | (tensors or {})
    new = [
        NewTensor(name, kind, shape, lambda data=data: [data])
        for name, (kind, shape, data) in both.items()
        if name not in drop
    ]
    meta = {key: value for key, value in entries_of(file).items() if key not in drop}
    write_gguf(path, meta | (entries or {}), new, overwrite=True)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a small model's file by kind; the tests make copies."""
    folder = tmp_path_factory.mktemp("gguf")
    for kind in KINDS:
        save_gguf(model_of(), folder / f"{kind}.gguf", kind)
    return {kind: (folder / f"{kind}.gguf").read_bytes() for kind in KINDS}


@pytest.fixture
def path(saved, tmp_path):
    """A fresh TQ2_0 file of the small model."""
    (tmp_path / "model.gguf").write_bytes(saved["tq2_0"])
    return tmp_path / "model.gguf"


# --- round trips -------------------------------------------------------------------------------


@every_kind
def test_what_is_written_is_read_back_bit_for_bit(kind, tmp_path):
    """load(save(m)) = m: configuration, codes, scales, gains, embedding; so the logits too."""
    model = model_of()
    save_gguf(model, tmp_path / "m.gguf", kind)
    again = load_gguf(tmp_path / "m.gguf")
    assert_same(again, model)
    np.testing.assert_array_equal(again.logits(TOKENS), model.logits(TOKENS))


@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(SMALL, tied=False, bos=None, eos=None),
        dataclasses.replace(SMALL, sub_norms=False, kv_heads=4),
        dataclasses.replace(SMALL, rms_eps=1e-6, rope_theta=10000.0, layers=1),
    ],
    ids=["head-of-its-own", "no-sub-norms", "other-constants"],
)
def test_the_configuration_comes_back(config, tmp_path):
    """Tied or not, with sub-norms or not, and constants that are no float32, like 1e-6."""
    save_gguf(model_of(config), tmp_path / "m.gguf", "i2_s")
    assert_same(load_gguf(tmp_path / "m.gguf"), model_of(config))


@pytest.mark.parametrize("layout", ["x86", "arm", "rows"])
def test_the_three_layouts_of_i2_s_come_back_and_the_file_says_which(layout, tmp_path):
    """Our files name the layout; with the wrong one, legal codes in a wrong order come out."""
    model = model_of()
    save_gguf(model, tmp_path / "m.gguf", "i2_s", layout=layout)
    assert_same(load_gguf(tmp_path / "m.gguf"), model)
    assert_same(load_gguf(tmp_path / "m.gguf", layout=layout), model)
    other = load_gguf(tmp_path / "m.gguf", layout="arm" if layout != "arm" else "x86")
    q = "layers.0.self_attn.q_proj"
    assert (other.params[q].codes() != model.params[q].codes()).any()


def test_a_file_that_does_not_name_its_layout_is_read_as_x86(tmp_path):
    """bitnet.cpp's files have no such entry; the published ones are of the first x86 kind."""
    for layout in ("x86", "arm"):
        save_gguf(model_of(), tmp_path / f"{layout}.gguf", "i2_s", layout=layout)
        rewrite(tmp_path / f"{layout}.gguf", drop=["minibit.i2_s_layout"])
    assert_same(load_gguf(tmp_path / "x86.gguf"), model_of())
    q = "layers.0.self_attn.q_proj"
    read = load_gguf(tmp_path / "arm.gguf").params[q].codes()
    assert (read != model_of().params[q].codes()).any()
    assert_same(load_gguf(tmp_path / "arm.gguf", layout="arm"), model_of())


@every_kind
def test_a_tensor_holds_the_bytes_of_its_type_and_rows_are_not_reordered(kind, saved, tmp_path):
    """File bytes of q = to_*(codes of q, scale): no permutation for interleaved rotary pairs."""
    (tmp_path / "m.gguf").write_bytes(saved[kind])
    file = open_gguf(tmp_path / "m.gguf")
    to = {"tq2_0": to_tq2_0, "tq1_0": to_tq1_0, "i2_s": to_i2_s}[kind]
    for name, matrix in model_of().params.items():
        if isinstance(matrix, TernaryMatrix):
            expected = to(matrix.codes(), float(matrix.scale)).reshape(-1)
            tensor = file.tensors[gguf_name(name)]
            assert BLOCKS[tensor.kind][0] == kind.upper()
            np.testing.assert_array_equal(file.bytes_of(tensor), expected, err_msg=name)


@every_kind
def test_the_scale_is_rounded_to_float16_by_ggmls_types_and_kept_by_i2_s(kind, tmp_path):
    """TQ: |s' - s| <= 2**-11 s, the nearest float16; I2_S: the float32 itself."""
    scale = np.float32(0.0123456)
    name = "layers.1.mlp.down_proj"
    model = model_of()
    model.params[name] = TernaryMatrix.from_codes(model.params[name].codes(), scale)
    save_gguf(model, tmp_path / "m.gguf", kind)
    read = load_gguf(tmp_path / "m.gguf").params[name].scale
    assert read == (scale if kind == "i2_s" else np.float32(np.float16(scale)))
    assert abs(read - scale) <= scale * 2**-11


@settings(max_examples=15)
@given(
    rows=st.integers(1, 70),
    blocks=st.integers(1, 3),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_that_a_type_takes_comes_back(rows, blocks, kind, seed, tmp_path_factory):
    """Spans of rows that end anywhere: the same codes as those put in."""
    from minibit.checkpoint.gguf.tensors import encoded, read_projection

    codes = np.random.default_rng(seed).integers(-1, 2, (rows, 256 * blocks)).astype(np.int8)
    codes[0, 0] = 1
    number = {"tq2_0": 35, "tq1_0": 34, "i2_s": 36}[kind]
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    tensor = NewTensor(
        "w", number, codes.shape, lambda: encoded(codes, np.float32(0.5), number, "x86")
    )
    write_gguf(path, {}, [tensor], overwrite=True)
    file = open_gguf(path)
    matrix = read_projection(file, file.tensors["w"], "x86")
    np.testing.assert_array_equal(matrix.codes(), codes)
    assert matrix.scale == np.float32(0.5)


def test_float_weights_are_quantised_as_training_does(tmp_path):
    """save(latent) = save(absmean(latent))."""
    params = init_params(SMALL, seed=3)
    save_gguf(BitNetModel(SMALL, params), tmp_path / "a.gguf", "i2_s")
    save_gguf(BitNetModel(SMALL, pack_params(params)), tmp_path / "b.gguf", "i2_s")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("bits", [np.float32, np.uint16])
def test_the_embedding_stays_mapped_and_the_file_is_never_written_to(bits, tmp_path):
    """Its array is a view of the file's pages, private ones: a write to it stays in memory."""
    model = model_of()
    if bits is np.uint16:
        table = model.params["embed_tokens"].view(np.uint32) >> 16
        model.params["embed_tokens"] = table.astype(np.uint16)
    save_gguf(model, tmp_path / "m.gguf")
    before = hashlib.sha256((tmp_path / "m.gguf").read_bytes()).digest()
    table = load_gguf(tmp_path / "m.gguf").params["embed_tokens"]
    assert table.dtype == bits
    assert table.base is not None
    assert table.flags.carray  # aligned, in order and writable: kernels take it without a copy
    np.testing.assert_array_equal(table, model.params["embed_tokens"])
    table[:] = 0
    assert hashlib.sha256((tmp_path / "m.gguf").read_bytes()).digest() == before


# --- other people's files ----------------------------------------------------------------------


def test_a_float16_embedding_is_held_as_bfloat16_where_that_is_exact(path):
    """float16(bfloat16 x) is exact, subnormals too; 1 + 2**-10 is not, and makes it float32."""
    shape = (7, 256)
    exact = np.resize(np.float16([1, -0.5078125, 2.0**-24, 1.2e-5, 0]), shape)
    exact = (exact.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    exact = exact.astype(np.float16)
    rewrite(path, tensors={"token_embd.weight": (1, shape, exact)})
    table = load_gguf(path).params["embed_tokens"]
    assert table.dtype == np.uint16
    wide = (table.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(wide, exact.astype(np.float32))
    exact[6, 255] = 1 + 2**-10
    rewrite(path, tensors={"token_embd.weight": (1, shape, exact)})
    table = load_gguf(path).params["embed_tokens"]
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, exact.astype(np.float32))


@pytest.mark.parametrize("kind", [0, 1, 30])
def test_projections_stored_as_floats_of_one_magnitude_are_codes(kind, path):
    """F32, F16 and BF16 that hold 0 and +-s are read as codes and s, never quantised again."""
    codes = model_of().params["layers.0.self_attn.q_proj"].codes()
    floats = 0.375 * codes.astype(np.float32)
    raw = {0: floats, 1: floats.astype(np.float16), 30: floats.view(np.uint16)[:, 1::2]}[kind]
    rewrite(path, tensors={Q: (kind, (256, 256), np.ascontiguousarray(raw))})
    matrix = load_gguf(path).params["layers.0.self_attn.q_proj"]
    np.testing.assert_array_equal(matrix.codes(), codes)
    assert matrix.scale == np.float32(0.375)


def test_a_scale_in_a_tensor_of_its_own_multiplies(path):
    """llama.cpp's optional blk.N.NAME.scale."""
    before = load_gguf(path).params["layers.0.self_attn.q_proj"].scale
    rewrite(path, tensors={"blk.0.attn_q.scale": (0, (1,), np.float32([0.5]))})
    assert load_gguf(path).params["layers.0.self_attn.q_proj"].scale == before / 2
    rewrite(path, tensors={"blk.0.attn_q.scale": (0, (2,), np.float32([0.5, 1]))})
    with pytest.raises(CheckpointError, match=r"must have \(1,\)"):
        load_gguf(path)
    for factor in (0.0, -1.0, np.inf):
        rewrite(path, tensors={"blk.0.attn_q.scale": (0, (1,), np.float32([factor]))})
        with pytest.raises(CheckpointError, match=r"makes the scale|holds inf"):
            load_gguf(path)


@pytest.mark.parametrize("name", ["bitnet-25", "bitnet"])
def test_other_names_of_the_architecture(name, path):
    """bitnet-25 is the same block; bitnet means SiLU unless the file, or the caller, says not."""
    renamed = {
        key.replace("bitnet-b1.58.", f"{name}."): value
        for key, value in entries_of(open_gguf(path)).items()
    }
    renamed["general.architecture"] = name
    rewrite(path, entries=renamed)
    assert_same(load_gguf(path), model_of())
    rewrite(path, drop=[f"{name}.hidden_activation"])
    if name == "bitnet":
        with pytest.raises(CheckpointError, match="SiLU"):
            load_gguf(path)
    assert_same(load_gguf(path, squared_relu=True), model_of())
    rewrite(path, entries={f"{name}.hidden_activation": "silu"})
    with pytest.raises(CheckpointError, match="activation 'silu'"):
        load_gguf(path, squared_relu=True)


def test_what_a_published_file_leaves_out_is_taken_as_llama_cpp_does(path):
    """Rows of the embedding, as many key heads as heads, 10000, head_dim."""
    a = "bitnet-b1.58."
    gone = [f"{a}vocab_size", f"{a}rope.freq_base", f"{a}rope.dimension_count"]
    expected = dataclasses.replace(SMALL, kv_heads=SMALL.heads, rope_theta=10000.0)
    save_gguf(model_of(expected), path, overwrite=True)
    rewrite(path, drop=[*gone, f"{a}attention.head_count_kv", f"{a}hidden_activation"])
    assert load_gguf(path).config == expected


def test_rotary_factors_of_one_change_nothing_and_others_are_refused(path):
    """rope_freqs scales frequencies, which the model as known here has not."""
    rewrite(path, tensors={"rope_freqs.weight": (0, (32,), np.ones(32, np.float32))})
    assert_same(load_gguf(path), model_of())
    rewrite(path, tensors={"rope_freqs.weight": (0, (32,), np.full(32, 2, np.float32))})
    with pytest.raises(CheckpointError, match="rotary frequencies"):
        load_gguf(path)


def test_an_embedding_that_only_gguf_decodes_says_what_to_install(path, monkeypatch):
    """A missing extra is an error that names its pip install."""
    blocks = np.zeros((7, 8 * 34), np.uint8)
    rewrite(path, tensors={"token_embd.weight": (8, (7, 256), blocks)})
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[app\]'"):
        load_gguf(path)


# --- the container -----------------------------------------------------------------------------


def test_every_type_of_metadata_is_read(tmp_path):
    """Whole numbers of four widths, floats of two, truth, text, arrays of each: by hand."""
    kinds = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
    body = b"".join(
        text(f"k{kind}") + struct.pack("<I", kind) + struct.pack(form, 7)
        for kind, form in kinds.items()
    )
    body += text("half") + struct.pack("<If", 6, 0.5) + text("deep") + struct.pack("<Id", 12, 0.1)
    body += text("list") + struct.pack("<IIQ3h", 9, 3, 3, 1, 2, 3)
    body += text("end") + struct.pack("<I", 8) + text("é")
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 2, 0, len(kinds) + 4) + body)
    expected = {f"k{kind}": 7 for kind in kinds}
    expected |= {"half": 0.5, "deep": 0.1, "list": None, "end": "é"}
    assert open_gguf(path).metadata == expected


# --- damage ------------------------------------------------------------------------------------


def test_a_file_cut_anywhere_is_refused_by_its_byte(path):
    """Every prefix of the header, and prefixes of the data: CheckpointError, with an offset."""
    whole = path.read_bytes()
    header = min(t.offset for t in open_gguf(path).tensors.values())
    for length in [*range(0, header, 7), *range(header, len(whole), 9973), len(whole) - 33]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as caught:
            load_gguf(path)
        assert caught.value.offset is not None
        assert str(path) in str(caught.value)


def test_a_thousand_fuzzed_headers_are_refused_or_read_without_a_large_allocation(path):
    """Bytes replaced at random, numbers set to extremes: no crash, under 4 MB each."""
    whole = path.read_bytes()
    header = min(t.offset for t in open_gguf(path).tensors.values())
    rng = np.random.default_rng(5)
    extremes = [2**64 - 1, 2**63, 2**32, 2**31 - 1, 1 << 40, 0]
    refused = 0
    tracemalloc.start()
    try:
        for round_ in range(1000):
            data = bytearray(whole)
            if round_ % 2:
                at = int(rng.integers(0, header - 8))
                data[at : at + 8] = struct.pack("<Q", extremes[round_ % 6])
            else:
                for at in rng.integers(0, header, 1 + round_ % 5):
                    data[at] = rng.integers(0, 256)
            path.write_bytes(data)
            try:
                open_gguf(path)
                if round_ % 10 == 0:
                    load_gguf(path)
            except CheckpointError:
                refused += 1
        assert tracemalloc.get_traced_memory()[1] < 4e6 + len(whole) * 2
    finally:
        tracemalloc.stop()
    assert refused > 500


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (struct.pack("<I", 8) + text("ab"), "ab"),
        (struct.pack("<II", 9, 5) + struct.pack("<Q3i", 3, 1, 2, 3), None),
        (struct.pack("<II", 9, 8) + struct.pack("<Q", 2) + text("") + text(""), None),
    ],
    ids=["string", "numbers", "strings"],
)
def test_a_value_may_end_where_the_file_ends_and_no_later(entry, value, tmp_path):
    """A length that is all that is left is taken; with one byte less the file is refused."""
    path = tmp_path / "m.gguf"
    whole = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("key") + entry
    path.write_bytes(whole)
    assert open_gguf(path).metadata == {"key": value}
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"has .* (and|left)"):
        open_gguf(path)


def damaged_table(change):
    """A file of two tensors whose table has one thing changed."""
    lines = [{"name": "a", "sides": [8], "kind": 0, "at": 0}]
    lines.append({"name": "b", "sides": [8], "kind": 0, "at": 32})
    entries = []
    change(lines, entries)
    body = b"".join(text(key) + struct.pack("<II", 4, value) for key, value in entries)
    for line in lines:
        lengths = line["sides"]
        body += text(line["name"]) + struct.pack(f"<I{len(lengths)}Q", len(lengths), *lengths)
        body += struct.pack("<IQ", line["kind"], line["at"])
    head = b"GGUF" + struct.pack("<IQQ", 3, len(lines), len(entries)) + body
    return head + bytes(-len(head) % 32) + bytes(64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, e: t[1].update(at=0), "overlaps tensor 'a'"),
        (lambda t, e: t[1].update(at=2**64 - 32), "the file has"),
        (lambda t, e: t[1].update(at=64), "the file has"),
        (lambda t, e: t[1].update(sides=[2**63]), "impossible shape"),
        (lambda t, e: t[1].update(sides=[0]), "impossible shape"),
        (lambda t, e: t[1].update(sides=[]), "axes"),
        (lambda t, e: t[1].update(sides=[8, 1, 1, 1, 1]), "axes"),
        (lambda t, e: t[1].update(name="a"), "listed twice"),
        (lambda t, e: t[1].update(name=b"\xff"), "no UTF-8"),
        (lambda t, e: t[1].update(kind=4), "of type 4"),
        (lambda t, e: t[1].update(kind=35), "no whole blocks"),
        (lambda t, e: e.append(("general.alignment", 24)), "alignment 24"),
        (lambda t, e: e.append(("general.alignment", 0)), "alignment 0"),
        (lambda t, e: e.append(("general.alignment", 2**31)), "alignment"),
        (lambda t, e: e.extend([("x", 1), ("x", 1)]), "'x' twice"),
    ],
)
def test_a_table_that_cannot_be_is_refused(change, message, tmp_path):
    """Overlaps, places outside the file, impossible sides, names given twice, odd alignments."""
    path = tmp_path / "m.gguf"
    path.write_bytes(damaged_table(lambda lines, entries: None))
    assert list(open_gguf(path).tensors) == ["a", "b"]
    path.write_bytes(damaged_table(change))
    with pytest.raises(CheckpointError, match=message):
        open_gguf(path)


def test_a_hostile_name_is_shown_short_and_without_escapes(tmp_path):
    """A name of a kilobyte of escape sequences cannot write on a terminal."""
    path = tmp_path / "m.gguf"
    path.write_bytes(damaged_table(lambda t, e: t[1].update(name="\x1b[2J" * 300, kind=4)))
    with pytest.raises(CheckpointError) as caught:
        open_gguf(path)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_folder_and_a_missing_file_are_no_checkpoints(tmp_path):
    """CheckpointError names the path, and what is there instead."""
    try:
        (tmp_path / "gone.gguf").symlink_to("nothing")
    except OSError:
        pytest.skip("no symbolic links here")
    for path, message in (
        (tmp_path, "is no file"),
        (tmp_path / "none.gguf", "no such file"),
        (tmp_path / "gone.gguf", "a link to nothing"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_gguf(path)


def tq2(codes, scale):
    """A tensor (256, 256) as TQ2_0."""
    return (35, (256, 256), to_tq2_0(codes, scale))


def random_codes(seed=1):
    """Codes of a (256, 256) matrix."""
    return np.random.default_rng(seed).integers(-1, 2, (256, 256)).astype(np.int8)


def test_blocks_of_different_scales_are_refused(path):
    """A TernaryMatrix has one scale: within a span of rows, and between spans; no less, no more."""
    for rows, other in itertools.product((slice(3, 4), slice(192, 256)), (0.25, 1.0)):
        scales = np.full((256, 1), 0.5)
        scales[rows] = other
        rewrite(path, tensors={Q: tq2(random_codes(), scales)})
        with pytest.raises(CheckpointError, match="one scale") as caught:
            load_gguf(path)
        assert caught.value.tensor == Q


def test_weights_in_blocks_of_scale_0_are_refused(path):
    """Codes that the file multiplies by 0 must not come to life by their neighbours' scale."""
    for rows in (slice(3, 4), slice(192, 256)):
        scales = np.full((256, 1), 0.5)
        scales[rows] = 0
        rewrite(path, tensors={Q: tq2(random_codes(), scales)})
        with pytest.raises(CheckpointError, match="weights in blocks of scale 0 in rows"):
            load_gguf(path)


@every_kind
def test_blocks_of_zeros_have_no_say_in_the_scale(kind, tmp_path):
    """ggml gives a block of zeros the scale 0; the others' scale is the matrix's."""
    codes = random_codes()
    codes[:100] = 0
    name = "layers.0.self_attn.q_proj"
    model = model_of(**{name: TernaryMatrix.from_codes(codes, 0.5)})
    save_gguf(model, tmp_path / "m.gguf", kind)
    assert_same(load_gguf(tmp_path / "m.gguf"), model)


@pytest.mark.parametrize("kind", [0, 35, 36])
def test_a_projection_of_zeros_is_refused(kind, path):
    """A known defect of uploads (microsoft/BitNet#608)."""
    zeros = np.zeros((256, 256), np.int8)
    raw = {0: zeros.astype("<f4"), 35: to_tq2_0(zeros), 36: to_i2_s(zeros)}[kind]
    rewrite(path, tensors={Q: (kind, (256, 256), raw)})
    with pytest.raises(CheckpointError, match="all zeros"):
        load_gguf(path)


def test_latent_weights_are_refused_and_the_first_is_named(path):
    """Floats that are not of one magnitude were never quantised: their place and byte."""
    floats = random_codes().astype(np.float32)
    floats[70, 5] = 0.3
    rewrite(path, tensors={Q: (0, (256, 256), floats)})
    with pytest.raises(CheckpointError, match=r"latent weights \(0.3 at \(70, 5\)") as caught:
        load_gguf(path)
    start = open_gguf(path).tensors[Q].offset
    assert caught.value.offset == start + 4 * (70 * 256 + 5)
    floats[70, 5] = np.nan
    rewrite(path, tensors={Q: (0, (256, 256), floats)})
    with pytest.raises(CheckpointError, match="holds nan at 70, 5") as caught:
        load_gguf(path)
    assert caught.value.offset == start + 4 * (70 * 256 + 5)


def bad_i2s(byte, value):
    """An I2_S tensor with some bytes replaced."""
    raw = to_i2_s(random_codes(), 0.5)
    raw[byte : byte + len(value)] = np.frombuffer(value, np.uint8)
    return (36, (256, 256), raw)


@pytest.mark.parametrize(
    ("tensor", "message", "offset"),
    [
        (bad_i2s(64 * 130 + 9, b"\xff"), "rows 128 to 131.*code 3", 64 * 128),
        (bad_i2s(256 * 64, struct.pack("<f", np.nan)), "scale nan", 256 * 64),
        (bad_i2s(256 * 64, struct.pack("<f", -1.0)), "scale -1", 256 * 64),
        ((2, (256, 256), np.zeros((256, 8 * 18), np.uint8)), "is of type Q4_0", 0),
    ],
    ids=["code-3", "scale-nan", "scale-negative", "four-bit-weights"],
)
def test_bytes_that_no_encoder_writes_are_refused_by_their_rows(tensor, message, offset, path):
    """The 2-bit code 3, scales that are no scales, types that are not ternary."""
    rewrite(path, tensors={Q: tensor})
    with pytest.raises(CheckpointError, match=message) as caught:
        load_gguf(path)
    assert caught.value.tensor == Q
    assert caught.value.offset == open_gguf(path).tensors[Q].offset + offset


def test_a_gain_of_a_quantised_type_is_refused(path):
    """256 numbers are a block of TQ2_0, and no norm."""
    block = to_tq2_0(random_codes()[:1])
    rewrite(path, tensors={"blk.1.ffn_norm.weight": (35, (256,), block)})
    with pytest.raises(CheckpointError, match="TQ2_0, which holds no such tensor"):
        load_gguf(path)


def test_gains_that_are_not_finite_are_refused_by_their_byte(path):
    """One NaN in a norm: its place, its byte."""
    gain = np.ones(256, np.float32)
    gain[9] = np.inf
    rewrite(path, tensors={"blk.1.ffn_norm.weight": (0, (256,), gain)})
    with pytest.raises(CheckpointError, match="holds inf at 9") as caught:
        load_gguf(path)
    assert caught.value.offset == open_gguf(path).tensors["blk.1.ffn_norm.weight"].offset + 36


@pytest.mark.parametrize("kind", [0, 1, 30])
def test_embeddings_that_are_not_finite_or_all_zero_are_refused_by_their_byte(kind, path):
    """F32, F16 and BF16: one infinity, one NaN, or no number at all."""
    size = 4 if kind == 0 else 2

    def put(floats):
        bits = (floats.view(np.uint32) >> 16).astype(np.uint16)
        data = {0: floats, 1: floats.astype(np.float16), 30: bits}[kind]
        rewrite(path, tensors={"token_embd.weight": (kind, (7, 256), data)})

    for value in (-np.inf, np.nan):
        table = np.ones((7, 256), np.float32)
        table[5, 3] = value
        put(table)
        with pytest.raises(CheckpointError, match=rf"token_embd.*holds {value} at 5, 3") as caught:
            load_gguf(path)
        start = open_gguf(path).tensors["token_embd.weight"].offset
        assert caught.value.offset == start + size * (5 * 256 + 3)
    put(np.zeros((7, 256), np.float32))
    with pytest.raises(CheckpointError, match=r"token_embd.*all zeros"):
        load_gguf(path)


def test_missing_and_foreign_tensors_and_other_shapes_are_refused(path):
    """The file holds what its configuration says, no less and no more."""
    whole = path.read_bytes()
    cases = [
        ({}, ["blk.1.ffn_up.weight"], "no tensor blk.1.ffn_up.weight"),
        ({}, ["general.architecture"], "does not say its general.architecture"),
        ({"output_norm.scale": (0, (1,), np.ones(1, "<f4"))}, [], "no part of a BitNet"),
        ({}, ["token_embd.weight", "bitnet-b1.58.vocab_size"], "vocab_size"),
        ({"blk.0.attn_q.bias": (0, (256,), np.ones(256, "<f4"))}, [], "no part of a BitNet"),
        ({"blk.2.attn_norm.weight": (0, (256,), np.ones(256, "<f4"))}, [], "no part of a BitNet"),
        ({Q: (35, (128, 256), to_tq2_0(random_codes()[:128]))}, [], r"shape \(128, 256\)"),
    ]
    for tensors, drop, message in cases:
        path.write_bytes(whole)
        rewrite(path, tensors=tensors, drop=drop)
        with pytest.raises(CheckpointError, match=message):
            load_gguf(path)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("general.architecture", "gemma", "architecture 'gemma'; known are bitnet, .*, qwen3"),
        ("general.architecture", "llama", "needs one number as llama.block_count"),
        ("bitnet-b1.58.block_count", 2**32 - 1, "claims 4294967295 blocks"),
        ("bitnet-b1.58.embedding_length", "256", "needs one number"),
        ("bitnet-b1.58.embedding_length", True, "needs one number"),
        ("bitnet-b1.58.feed_forward_length", 128, "shape"),
        ("bitnet-b1.58.attention.head_count", 0, "heads"),
        ("bitnet-b1.58.attention.head_count", 3, "hidden_size"),
        ("bitnet-b1.58.attention.layer_norm_rms_epsilon", float("nan"), "rms_eps"),
        ("bitnet-b1.58.rope.freq_base", -1.0, "rope_theta"),
        ("bitnet-b1.58.rope.dimension_count", 32, "dimension_count"),
        ("bitnet-b1.58.rope.scaling.factor", 4.0, "rotary"),
        ("bitnet-b1.58.rope.scale_linear", 4.0, "rotary"),
        ("bitnet-b1.58.rope.scaling.type", "yarn", "rotary"),
        ("bitnet-b1.58.rope.freq_base", 1e-45, "rope_theta must be above 0 and finite in float32"),
        ("tokenizer.ggml.bos_token_id", 2**31, "bos must lie in"),
        ("minibit.eos_token_ids", "[1, true]", "must be a list of tokens"),
        ("minibit.eos_token_ids", "[" * 9999, "must be a list of tokens"),
        ("tokenizer.ggml.eos_token_id", "x", "must be a token"),
        ("minibit.i2_s_layout", "x87", "x87"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(entry, value, message, path):
    """Metadata of another kind, sizes that do not fit one another or the tensors."""
    rewrite(path, entries={entry: value})
    with pytest.raises(CheckpointError, match=message) as caught:
        load_gguf(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "entries",
    [
        {"bitnet-b1.58.rope.scaling.type": "none", "bitnet-b1.58.rope.scaling.factor": 4.0},
        {"bitnet-b1.58.rope.scaling.type": "linear", "bitnet-b1.58.rope.scaling.factor": 1.0},
        {"bitnet-b1.58.rope.scale_linear": 0.0},
        {"tokenizer.ggml.bos_token_id": 2**32 - 1},
    ],
    ids=str,
)
def test_what_changes_no_number_is_not_refused(entries, path):
    """As llama.cpp has it: kind "none" has no factor, a factor of 0 is 1, token -1 is none."""
    expected = load_gguf(path)
    rewrite(path, entries=entries)
    model = load_gguf(path)
    if "tokenizer.ggml.bos_token_id" in entries:
        assert model.config.bos is None
        config = dataclasses.replace(model.config, bos=expected.config.bos)
        model = dataclasses.replace(model, config=config)
    assert_same(model, expected)


# --- writing -----------------------------------------------------------------------------------


def test_a_file_is_never_overwritten_without_being_asked(path):
    """FileExistsError, the file as it was; overwrite=True replaces it whole."""
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="nothing was changed"):
        save_gguf(model_of(seed=1), path)
    assert path.read_bytes() == before
    save_gguf(model_of(seed=1), path, overwrite=True)
    assert_same(load_gguf(path), model_of(seed=1))


@pytest.mark.parametrize("there", [False, True])
def test_a_file_is_written_whole_or_not_at_all(there, path):
    """A tensor that fails half-way leaves the old file, or none, and no other beside it."""
    before = path.read_bytes()
    if not there:
        path.unlink()

    def chunks():
        yield np.zeros(4, "<f4")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_gguf(path, {}, [NewTensor("w", 0, (8,), chunks)], overwrite=True)
    short = NewTensor("w", 0, (8,), lambda: [np.zeros(4, "<f4")])
    with pytest.raises(ValueError, match="gave 16 bytes, takes 32"):
        write_gguf(path, {}, [short], overwrite=True)
    assert list(path.parent.iterdir()) == ([path] if there else [])
    assert not there or path.read_bytes() == before


def with_q(codes=None, scale=0.5):
    """The small model with another matrix in one place."""
    codes = random_codes() if codes is None else codes
    return model_of(**{"layers.0.self_attn.q_proj": TernaryMatrix.from_codes(codes, scale)})


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (with_q(np.zeros((256, 256), np.int8)), "i2_s", "q_proj .*codes are 0"),
        (with_q(scale=0.0), "i2_s", "above 0"),
        (with_q(scale=-0.5), "tq2_0", "above 0"),
        (with_q(scale=1e-6), "tq2_0", "no normal float16"),
        (with_q(scale=1e6), "tq1_0", "no normal float16"),
        (model_of(dataclasses.replace(SMALL, intermediate_size=128)), "tq2_0", "down_proj .*256"),
        (model_of(dataclasses.replace(SMALL, intermediate_size=96)), "i2_s", "down_proj .*128"),
        (model_of(), "q4_0", "kind must be"),
    ],
    ids=["zeros", "scale-0", "negative", "subnormal", "overflow", "tq-96", "i2s-96", "kind"],
)
def test_what_a_type_cannot_hold_is_refused_before_a_byte_is_written(
    model, kind, message, tmp_path
):
    """Never floats in their place (microsoft/BitNet#621): an error that names the projection."""
    with pytest.raises(ValueError, match=message):
        save_gguf(model, tmp_path / "m.gguf", kind)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_float_weights_is_refused(tmp_path):
    """GGUF of BitNet is ternary; a model that multiplies by floats would become another."""
    model = BitNetModel(SMALL, init_params(SMALL, 0), float_linear)
    with pytest.raises(ValueError, match="ternary projections"):
        save_gguf(model, tmp_path / "m.gguf")


def test_floats_that_could_not_be_read_back_are_not_written(tmp_path):
    """A NaN in a norm, an embedding of zeros: refused here rather than by the reader."""
    norm = np.where(np.arange(256) == 9, np.nan, 1).astype(np.float32)
    for name, value, message in (
        ("norm", norm, "norm must be finite, got nan at 9"),
        ("embed_tokens", np.zeros((7, 256), np.float32), "embed_tokens must not be all zeros"),
    ):
        with pytest.raises(ValueError, match=message):
            save_gguf(model_of(**{name: value}), tmp_path / "m.gguf")
        assert not list(tmp_path.iterdir())


def test_every_parameter_has_a_name_of_its_own():
    """gguf_name is one to one."""
    names = [gguf_name(name) for name in param_shapes(dataclasses.replace(SMALL, tied=False))]
    assert len(set(names)) == len(names) == 3 + 11 * SMALL.layers


def header_of(tmp_path, tensors):
    """A file whose tensors have any type number: name -> (number, shape, number of bytes)."""
    table, data = b"", b""
    for name, (kind, shape, count) in tensors.items():
        lengths = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        table += text(name) + lengths + struct.pack("<IQ", kind, len(data))
        data += bytes(count + -count % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0) + table
    path = tmp_path / "any.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


@pytest.mark.parametrize(
    ("kind", "count", "name"),
    [
        (42, 4 * 512 // 64 * 18, "Q2_0"),
        (42, 4 * 512 // 128 * 34, "PQ2_0"),
        (42, 4 * 512 // 256 * 42, "STQ1_0"),
        (142, 4 * 512 // 128 * 34, "PQ2_0"),
        (143, 4 * 512 // 128 * 28, "PTQ1_0"),
        (39, 4 * 512 // 32 * 17, "MXFP4"),
    ],
)
def test_a_number_of_several_meanings_is_told_by_its_size(tmp_path, kind, count, name):
    """Forks write other blocks under ggml's numbers; the next tensor's offset tells which."""
    for last in (False, True):  # in the middle of a file, and at its end
        other = {} if last else {"b": (0, (3,), 12)}
        file = open_gguf(header_of(tmp_path, {"a": (kind, (4, 512), count), **other}))
        assert (file.tensors["a"].type, file.tensors["a"].nbytes) == (name, count)


def test_bitnet_cpps_types_are_refused_by_name(tmp_path):
    """TL1 has a number of its own; TL2 has MXFP4's, and fewer bytes than that takes."""
    with pytest.raises(CheckpointError, match="TL1 of bitnet"):
        open_gguf(header_of(tmp_path, {"a": (38, (4, 512), 544)}))
    with pytest.raises(CheckpointError, match="too small for ggml"):
        open_gguf(header_of(tmp_path, {"a": (39, (4, 512), 448), "b": (0, (3,), 12)}))
