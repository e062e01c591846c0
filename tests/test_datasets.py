"""Data sets: what the package carries, and files that a user brings."""

import gzip
import hashlib
import io
import lzma
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minibit import datasets
from minibit.datasets import Dataset, load_mnist, load_npz, load_text, read_idx, split

TYPE_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    """Write an array as an IDX file, straight from the format's description."""
    kind = array.dtype.str[1:]
    header = bytes([0, 0, TYPE_CODES[kind], array.ndim])
    return header + np.array(array.shape, ">u4").tobytes() + array.astype(">" + kind).tobytes()


def idx_arrays():
    """Small arrays of every type that the format knows."""
    return st.sampled_from(sorted(TYPE_CODES)).flatmap(
        lambda kind: arrays(kind, array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4))
    )


def test_mnist_is_the_published_data():
    """Shapes, types, first labels and counts of each digit, as published."""
    mnist = load_mnist()
    assert (mnist.train_x.shape, mnist.train_y.shape) == ((60000, 784), (60000,))
    assert (mnist.test_x.shape, mnist.test_y.shape) == ((10000, 784), (10000,))
    assert {a.dtype.name for a in (mnist.train_x, mnist.train_y, mnist.test_x)} == {"uint8"}
    assert mnist.train_y[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test_y[:5].tolist() == [7, 2, 1, 0, 4]
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(mnist.test_y).tolist() == counts
    assert (mnist.classes, mnist.features, mnist.sample_shape) == (10, 784, (28, 28))


def test_the_usual_normalisation_constants_are_those_of_the_training_pixels():
    """Mean 0.1307 and standard deviation 0.3081 of the training pixels over 255."""
    pixels = load_mnist().train_x.astype(np.float32) / 255
    assert round(float(pixels.mean(dtype=np.float64)), 4) == 0.1307
    assert round(float(pixels.std(dtype=np.float64)), 4) == 0.3081


def test_mnist_is_decoded_once_and_cannot_be_written():
    """Every caller shares one read-only copy."""
    assert load_mnist() is load_mnist()
    with pytest.raises(ValueError, match="read-only"):
        load_mnist().train_x[0, 0] = 1


def test_the_digest_is_that_of_the_published_files(tmp_path):
    """The digest of MNIST brought as a file is the digest of the package's own."""
    mnist = load_mnist()
    inner = b"".join(bytes.fromhex(d) for d in datasets._MNIST.values())
    assert mnist.digest == hashlib.sha256(inner).hexdigest()
    path = tmp_path / "digits.npz"
    np.savez(
        path,
        train_x=mnist.train_x.reshape(-1, 28, 28),
        train_y=mnist.train_y.astype(np.int64),
        test_x=mnist.test_x.reshape(-1, 28, 28),
        test_y=mnist.test_y,
    )
    brought = load_npz(path)
    assert brought.digest == mnist.digest
    assert (brought.name, brought.sample_shape) == ("digits.npz", (28, 28))
    np.testing.assert_array_equal(brought.test_x, mnist.test_x)


@pytest.mark.parametrize("damage", ["flip", "cut", "other", "missing"])
def test_damaged_package_data_is_an_error_that_names_the_file(tmp_path, monkeypatch, damage):
    """Nothing but the published bytes is ever returned."""
    name = "t10k-labels-idx1-ubyte"
    packed = bytearray(datasets._package_bytes(f"mnist/{name}.xz"))
    if damage == "flip":
        packed[len(packed) // 2] ^= 1
    elif damage == "cut":
        packed = packed[:-9]
    elif damage == "other":
        packed = bytearray(lzma.compress(idx_bytes(np.zeros(10000, np.uint8))))
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    if damage != "missing":
        (tmp_path / "data" / "mnist" / f"{name}.xz").write_bytes(packed)
    monkeypatch.setattr(datasets.resources, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match=name):
        datasets._package_idx(name, datasets._MNIST[name])


def test_the_text_is_plain_ascii_and_whole():
    """From the first entry to the last, ASCII."""
    text = load_text()
    assert text.startswith("ABASEMENT, n.")
    assert text.isascii()
    assert "\nZOOLOGY, n." in text
    assert len(text) == 380683


@given(idx_arrays())
def test_idx_files_of_every_type_come_back(array):
    """read(write(a)) = a, bit for bit, in the machine's own byte order."""
    array_read = read_idx(idx_bytes(array))
    assert array_read.dtype == array.dtype
    assert array_read.shape == array.shape
    assert array_read.tobytes() == array.tobytes()


@given(idx_arrays(), st.data())
def test_an_idx_file_cut_or_lengthened_is_an_error_that_says_where(array, data):
    """Every proper prefix is refused at its end, and so is any byte to spare."""
    whole = idx_bytes(array)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match=f"byte {cut}"):
        read_idx(whole[:cut])
    with pytest.raises(ValueError, match=f"goes on at byte {len(whole)}"):
        read_idx(whole + b"\0")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\x89PNG\r\n", "byte 0"),
        (b"version https://git-lfs.github.com/spec/v1\n", "byte 0 .*a git-lfs pointer"),
        (b"\0\0\x0a\1\0\0\0\0", "byte 2 has the type code 0x0A"),
        (b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"\0", "byte 3 says 255 dimensions"),
        (b"\0\0\x0e\4" + b"\xff" * 16, "ends at byte 20"),
    ],
)
def test_what_is_no_idx_file_is_refused_at_its_first_wrong_byte(content, complaint):
    """The message names the byte; a header that promises 2**131 bytes allocates nothing."""
    with pytest.raises(ValueError, match=complaint):
        read_idx(content)


def test_an_idx_file_may_be_packed(tmp_path):
    """Whatever its name: browsers unpack a .gz and keep the name. A damaged one is named."""
    array = np.arange(600, dtype=np.int16).reshape(2, 300)
    for pack in (lzma.compress, gzip.compress, bytes):
        for suffix in (".xz", ".gz", ""):
            path = tmp_path / f"a{suffix}"
            path.write_bytes(pack(idx_bytes(array)))
            np.testing.assert_array_equal(read_idx(path), array)
            np.testing.assert_array_equal(read_idx(str(path)), array)
    for pack in (lzma.compress, gzip.compress):
        whole = pack(idx_bytes(array))
        for bad in (whole[:-9], whole[:40] + b"???" + whole[43:]):
            path.write_bytes(bad)
            with pytest.raises(ValueError, match=r"a: cannot be unpacked"):
                read_idx(path)


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress])
def test_an_idx_bomb_is_refused_before_it_is_unpacked(tmp_path, pack, monkeypatch):
    """Memory is bounded by the file, however much it says it holds."""
    monkeypatch.setattr(datasets, "_LARGE", 1 << 20)
    path = tmp_path / "bomb"
    path.write_bytes(pack(idx_bytes(np.zeros((40, 1 << 20), np.uint8))))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bomb: cannot be unpacked: \d+ bytes unpack to more"):
        read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 25_000_000  # a piece of 4096 bytes, unpacked
    tracemalloc.stop()


def test_what_is_no_file_is_not_read(tmp_path):
    """A pipe would be waited for."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="is no file"):
            read_idx(path)
    with pytest.raises(FileNotFoundError):
        load_npz(tmp_path / "pipe")


def small() -> dict[str, np.ndarray]:
    """Four good arrays."""
    rng = np.random.default_rng(0)
    return {
        "train_x": rng.integers(0, 256, (12, 2, 3), dtype=np.uint8),
        "train_y": rng.integers(0, 4, 12),
        "test_x": rng.integers(0, 256, (5, 2, 3), dtype=np.uint8),
        "test_y": rng.integers(0, 4, 5),
    }


def saved(path: Path, contents: dict[str, object]) -> Path:
    """Write an npz file."""
    np.savez(path, **contents)
    return path


def test_a_file_of_four_arrays_is_flattened_and_frozen(tmp_path):
    """Samples become rows; labels become bytes; both read-only."""
    contents = small()
    dataset = load_npz(saved(tmp_path / "own.npz", contents | {"notes": np.arange(3)}))
    assert isinstance(dataset, Dataset)
    np.testing.assert_array_equal(dataset.train_x, contents["train_x"].reshape(12, 6))
    np.testing.assert_array_equal(dataset.test_y, contents["test_y"])
    assert (dataset.features, dataset.sample_shape) == (6, (2, 3))
    assert not dataset.train_x.flags.writeable
    assert not dataset.test_y.flags.writeable


@pytest.mark.parametrize("kind", ["u1", "?", "i1", ">i2", "i8", "u8", "f2", "f4", ">f8", "g"])
def test_whole_numbers_of_every_type_are_the_same_data_set(tmp_path, kind):
    """0 to 255 as float64 (fetch_openml) or int64 are pixels; labels may be texts, and columns."""
    contents = small()
    if kind in ("?", "i1"):
        contents = {key: values % 2 for key, values in contents.items()}
    expected = load_npz(saved(tmp_path / "own.npz", contents))
    other = {key: values.astype(kind) for key, values in contents.items()}
    assert load_npz(saved(tmp_path / "a.npz", other)).digest == expected.digest
    other["train_y"] = contents["train_y"].astype(str)
    other["test_y"] = contents["test_y"].astype("S")[:, None]
    assert load_npz(saved(tmp_path / "a.npz", other)).digest == expected.digest


def test_the_names_that_keras_gives_are_read(tmp_path):
    """x_train, y_train, x_test, y_test; with test it is refused as four arrays are."""
    names = {"train_x": "x_train", "train_y": "y_train", "test_x": "x_test", "test_y": "y_test"}
    contents = small()
    path = saved(tmp_path / "keras.npz", {names[key]: contents[key] for key in contents})
    expected = load_npz(saved(tmp_path / "own.npz", contents))
    assert load_npz(path).digest == expected.digest
    with pytest.raises(ValueError, match="x and y alone"):
        load_npz(path, test=2)
    contents["test_x"] = contents["test_x"] / 255
    path = saved(tmp_path / "keras.npz", {names[key]: contents[key] for key in contents})
    with pytest.raises(ValueError, match=r"x_test must be whole .*np.round\(255 \* x_test\)"):
        load_npz(path)


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b"not an npy file at all",
        b"\x93NUMPY\x07\x00",
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
        "((((",
        "",
        "[" * 9000,
        "'a' * 10**10",
        "{'descr': 5, 'fortran_order': False, 'shape': (20, 12), }",
        "{'descr': '|V9999999999', 'fortran_order': False, 'shape': (20, 12), }",
        "{'descr': [('a', '<f8')] * 3, 'fortran_order': False, 'shape': (20, 12), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (20., 12), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': ((20,), 12), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-20, 12), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (2**70, 12), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 999999999), }",
        "{'descr': '|u1', 'fortran_order': 'no', 'shape': (20, 12), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (20, 12), }",
        "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (20, 1), }",
    ],
    ids=str,
)
def test_a_member_that_is_no_array_is_a_value_error(tmp_path, member):
    """Whatever NumPy's own reader says of it: the key is named, and little memory is taken."""
    if isinstance(member, str):
        header = member.encode()
        size = struct.pack("<H", len(header) + 1)
        member = b"\x93NUMPY\x01\x00" + size + header + b"\n" + bytes(240)
    labels = io.BytesIO()
    np.save(labels, np.zeros(20, np.int64))
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", member)
        archive.writestr("y.npy", labels.getvalue())
    with pytest.raises(ValueError, match=r"d\.npz: x "):
        load_npz(tmp_path / "d.npz")


@pytest.mark.parametrize(("test", "expected"), [(None, 2), (5, 5)])
def test_a_file_of_x_and_y_is_cut_at_its_end_in_order(tmp_path, test, expected):
    """The last seventh of 15 rows is 2; or as many as asked for."""
    x, y = np.arange(30, dtype=np.uint8).reshape(15, 2), np.arange(15) % 3
    dataset = load_npz(saved(tmp_path / "own.npz", {"x": x, "y": y}), test=test)
    np.testing.assert_array_equal(dataset.train_x, x[: 15 - expected])
    np.testing.assert_array_equal(dataset.test_x, x[15 - expected :])
    np.testing.assert_array_equal(dataset.test_y, y[15 - expected :])


@pytest.mark.parametrize("key", ["train_x", "train_y", "test_x", "test_y"])
def test_the_digest_depends_on_every_array(tmp_path, key):
    """One changed value, in any of the four, is another data set."""
    contents = small()
    before = load_npz(saved(tmp_path / "a.npz", contents)).digest
    contents[key] = contents[key].copy()
    contents[key].flat[-1] ^= 1
    assert load_npz(saved(tmp_path / "b.npz", contents)).digest != before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"train_x": np.full((12, 6), 0.5)}, "train_x must be whole .*float64 within .* scale it"),
        (
            {"test_x": np.full((5, 2, 3), -1, np.int16)},
            r"test_x must be whole .*-1 at \(0, 0, 0\)$",
        ),
        ({"test_x": np.full((5, 2, 3), 256)}, r"test_x must be whole .*got 256 at \(0, 0, 0\)$"),
        ({"test_x": np.array([[0, 2], [np.nan, 1]] * 5)[:5]}, r"test_x .*, got nan at \(1, 0\)$"),
        ({"test_x": np.array([[0, 2], [np.inf, 1]] * 5)[:5]}, r"test_x .*, got inf at \(1, 0\)$"),
        ({"test_x": np.array([[0, 2], [9.25, 1]] * 5)[:5]}, r"test_x .*, got 9.25 at \(1, 0\)$"),
        ({"train_x": np.zeros((12, 6), complex)}, "train_x must be whole .*got complex128"),
        ({"train_x": np.zeros((12, 6), "U3")}, "train_x must be whole .*got <U3"),
        ({"train_x": np.zeros(12, np.uint8)}, r"train_x must have shape .*\(12,\)"),
        ({"train_x": np.zeros((0, 6), np.uint8), "train_y": np.zeros(0, int)}, "train_x .*empty"),
        ({"test_x": np.zeros((5, 7), np.uint8)}, r"train_x have shape \(2, 3\), of test_x \(7,\)"),
        ({"train_y": np.full(12, 0.5)}, "train_y must be whole numbers .*got float64 within"),
        ({"train_y": np.full(12, "seven")}, "train_y must be labels from 0 to 255: .*'seven'"),
        ({"train_y": np.zeros((12, 2), int)}, r"train_y must have shape \(12,\).*argmax\(axis=1\)"),
        ({"test_y": np.zeros(4, int)}, r"test_y must have shape \(5,\)"),
        ({"test_y": np.array([0, 1, -1, 2, -7])}, "test_y must be whole .*, got -1 at 2$"),
        ({"train_y": np.full(12, 256)}, "train_y must be whole .*, got 256 at 0$"),
        (
            {"test_y": np.array([None] * 5, dtype=object)},
            r"test_y cannot .*Object.*write test_y\.ast",
        ),
    ],
)
def test_a_wrong_array_is_an_error_that_names_its_key(tmp_path, change, complaint):
    """dtype, shape, labels, and Python objects, which are never unpickled."""
    with pytest.raises(ValueError, match=complaint):
        load_npz(saved(tmp_path / "own.npz", small() | change))


def test_missing_keys_are_listed_beside_those_found(tmp_path):
    """The message says what is needed and what is there."""
    contents = small()
    del contents["test_y"]
    with pytest.raises(ValueError, match=r"needs the keys .*test_y .*has test_x, train_x, train_y"):
        load_npz(saved(tmp_path / "own.npz", contents))
    with pytest.raises(ValueError, match="has none"):
        load_npz(saved(tmp_path / "own.npz", {"images": np.zeros(3)}))


def test_a_test_count_out_of_range_is_refused(tmp_path):
    """Both parts hold at least one row, and the count is only for x and y."""
    x, y = np.zeros((4, 1), np.uint8), np.zeros(4, int)
    path = saved(tmp_path / "own.npz", {"x": x, "y": y})
    for test in (0, 4, -1):
        with pytest.raises(ValueError, match="test must be 1 to 3"):
            load_npz(path, test=test)
    with pytest.raises(ValueError, match="x and y alone"):
        load_npz(saved(tmp_path / "four.npz", small()), test=2)
    one = saved(tmp_path / "one.npz", {"x": x[:1], "y": y[:1]})
    with pytest.raises(ValueError, match="of 1 rows"):
        load_npz(one)


def test_what_is_no_npz_file_is_refused(tmp_path):
    """Text, a single array, a cut archive, a folder, nothing at all."""
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_npz(tmp_path / "nowhere.npz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_npz(tmp_path)
    text = tmp_path / "text.npz"
    for content, kind in (("hello", "b'hello'"), ("<!DOCTYPE html>", "a web page")):
        text.write_text(content)
        with pytest.raises(ValueError, match=rf"not a NumPy \.npz file: it begins with .*{kind}"):
            load_npz(text)
    single = tmp_path / "single.npz"
    with single.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="holds one array"):
        load_npz(single)
    buffer = io.BytesIO()
    np.savez(buffer, **small())
    cut = tmp_path / "cut.npz"
    cut.write_bytes(buffer.getvalue()[:-40])
    with pytest.raises(ValueError, match=r"not a NumPy \.npz file: File is not a zip file"):
        load_npz(cut)
    whole = bytearray(buffer.getvalue())
    offset = whole.index(np.ascontiguousarray(small()["train_x"]).tobytes())
    whole[offset] ^= 1
    cut.write_bytes(whole)
    with pytest.raises(ValueError, match="train_x cannot be read"):
        load_npz(cut)


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_every_damage_to_an_npz_file_is_a_value_error(tmp_path, packing):
    """Random bytes changed, whatever zip, its packers or NumPy say of it (or nothing)."""
    path, rng = tmp_path / "own.npz", np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, array in small().items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", buffer.getvalue())
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for offset in rng.integers(0, len(whole), 3):
            damaged[offset] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            load_npz(path)
        except ValueError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, packing):
    """A member that unpacks to very much more than it takes is no data set, whatever it says."""
    monkeypatch.setattr(datasets, "_LARGE", 1 << 16)
    x, y = np.zeros((1 << 10, 1 << 14), np.uint8), np.arange(1 << 10) % 3
    member, labels = io.BytesIO(), io.BytesIO()
    np.save(member, x)
    np.save(labels, y)
    path = tmp_path / "bomb.npz"
    for said in (None, 1 << 16):  # the directory may lie about the size
        with zipfile.ZipFile(path, "w", packing) as archive:
            archive.writestr("x.npy", member.getvalue())
            archive.writestr("y.npy", labels.getvalue())
        if said:
            size = struct.pack("<I", len(member.getvalue()))
            path.write_bytes(path.read_bytes().replace(size, struct.pack("<I", said)))
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"x cannot be read: "):
            load_npz(path)
        if packing == zipfile.ZIP_DEFLATED:  # the others unpack 90 MB of 4096 bytes at most
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()
    x = np.random.default_rng(0).integers(0, 256, (1 << 10, 1 << 10), np.uint8)
    np.savez_compressed(tmp_path / "own.npz", x=x, y=y)
    assert load_npz(tmp_path / "own.npz").features == 1 << 10


def test_the_validation_split_is_the_last_training_images():
    """55,000 to train on and the last 5,000 to choose by: nothing lost, nothing twice."""
    mnist = load_mnist()
    parts = split(mnist)
    assert (len(parts.train_x), len(parts.validation_x)) == (55000, 5000)
    np.testing.assert_array_equal(parts.validation_x, mnist.train_x[55000:])
    np.testing.assert_array_equal(parts.validation_y, mnist.train_y[55000:])
    np.testing.assert_array_equal(parts.train_y, mnist.train_y[:55000])
    assert np.shares_memory(parts.train_x, mnist.train_x)
    assert len(split(mnist, 0).validation_x) == 0


@pytest.mark.parametrize(("rows", "expected"), [(240, 20), (12, 1), (2, 1)])
def test_other_data_keep_a_twelfth_for_validation(tmp_path, rows, expected):
    """As 5,000 is of 60,000; at least one sample."""
    x, y = np.zeros((rows, 1), np.uint8), np.zeros(rows, int)
    contents = {"train_x": x, "train_y": y, "test_x": x, "test_y": y}
    parts = split(load_npz(saved(tmp_path / "own.npz", contents)))
    assert len(parts.validation_x) == expected
    assert len(parts.train_x) == rows - expected


@pytest.mark.parametrize("validation", [-1, 60000, 10**9])
def test_a_split_that_leaves_nothing_to_train_on_is_refused(validation):
    """The message gives the range."""
    with pytest.raises(ValueError, match=f"0 to 59999 .*got {validation}"):
        split(load_mnist(), validation)
