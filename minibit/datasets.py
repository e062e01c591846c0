"""Data: the handwritten digits and the text that the package carries, and files of your own.

Nothing here reaches outside the package unless a path is given. Arrays are read-only, so the copy
that a process decodes once can be shared by everything in it.

A data set is named by its digest, so that a log can say what it was trained on:

    digest = SHA-256(d(train_x) d(train_y) d(test_x) d(test_y)),   d(a) = SHA-256(a as an IDX file)

For MNIST the four inner digests are those of the published files.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import math
import os
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibit.base import beginning, refuse_entries

__all__ = ["Dataset", "Split", "load_mnist", "load_npz", "load_text", "read_idx", "split"]

# SHA-256 of the published IDX files, unpacked.
_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_FOUR_KEYS = ("train_x", "train_y", "test_x", "test_y")
_KEYS = (_FOUR_KEYS, ("x_train", "y_train", "x_test", "y_test"), ("x", "y"))  # the second: Keras
_VALIDATION_PART = 12
_LARGE, _RATIO = 1 << 26, 200  # what unpacks to more bytes, packed better than so, is a bomb
_PIECE = 1 << 12  # bytes at a time; of so many packed ones, 90 MB at most come
_TEST_PART = 7  # of a file with x and y alone, the last seventh is the test set, as in MNIST


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled samples: a training set and a test set, pixels and labels as read-only bytes."""

    train_x: NDArray[np.uint8]  # (train, features), 0 to 255
    train_y: NDArray[np.uint8]  # (train,), labels from 0
    test_x: NDArray[np.uint8]  # (test, features)
    test_y: NDArray[np.uint8]  # (test,)
    name: str  # "mnist", or the file's
    digest: str  # hexadecimal, as the module describes it
    sample_shape: tuple[int, ...]  # before samples were flattened: (28, 28), or (features,)

    @property
    def features(self) -> int:
        """Number of inputs of a sample."""
        return int(self.train_x.shape[1])

    @property
    def classes(self) -> int:
        """Number of classes: the largest label, plus one."""
        return max(int(self.train_y.max()), int(self.test_y.max())) + 1


class Split(NamedTuple):
    """The training samples cut in two: those to train on, and those to choose by."""

    train_x: NDArray[np.uint8]
    train_y: NDArray[np.uint8]
    validation_x: NDArray[np.uint8]
    validation_y: NDArray[np.uint8]


def split(dataset: Dataset, validation: int | None = None) -> Split:
    """Cut the last training samples off as the validation split.

    Parameters
    ----------
    dataset : Dataset
        Left as it is; the parts are views of its arrays.
    validation : int, optional
        How many samples; 0 leaves the validation split empty. Default: a twelfth of the training
        samples, rounded down, at least one: the last 5,000 of MNIST's 60,000. A negative number,
        or one that leaves nothing to train on, is a ValueError.

    Examples
    --------
    >>> parts = split(load_mnist())
    >>> parts.train_x.shape, parts.validation_x.shape
    ((55000, 784), (5000, 784))
    """
    total = len(dataset.train_x)
    if validation is None:
        validation = max(total // _VALIDATION_PART, 1)
    if not 0 <= validation < total:
        raise ValueError(
            f"validation must be 0 to {total - 1} (of {total} training samples), got {validation}"
        )
    cut = total - validation
    x, y = dataset.train_x, dataset.train_y
    return Split(x[:cut], y[:cut], x[cut:], y[cut:])


@cache
def load_mnist() -> Dataset:
    """Read MNIST from the package: 60,000 and 10,000 handwritten digits, 28 x 28.

    The four published files are packed with xz; they are unpacked in memory, once per process, and
    checked against their SHA-256. A ValueError names a packed file that is damaged or missing.

    Notes
    -----
    Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", CC BY-SA 3.0.

    Examples
    --------
    >>> mnist = load_mnist()
    >>> mnist.train_x.shape, mnist.train_x.dtype, mnist.classes
    ((60000, 784), dtype('uint8'), 10)
    """
    arrays = [_package_idx(name, expected) for name, expected in _MNIST.items()]
    inner = b"".join(bytes.fromhex(expected) for expected in _MNIST.values())
    return _dataset(arrays, "mnist", hashlib.sha256(inner).hexdigest())


@cache
def load_text() -> str:
    """Read the text that the package carries: A. Bierce, "The Devil's Dictionary" (1911).

    Entries only, ASCII, in the public domain.

    Examples
    --------
    >>> load_text().splitlines()[0]
    'ABASEMENT, n.  A decent and customary mental attitude in the presence'
    """
    return _package_bytes("devils_dictionary.txt").decode("ascii")


def read_idx(source: str | os.PathLike[str] | bytes) -> NDArray[Any]:
    """Read an array in the IDX format of the MNIST files.

    Two zero bytes, a type code (0x08 uint8, 0x09 int8, 0x0B int16, 0x0C int32, 0x0D float32,
    0x0E float64), the number of dimensions, each of them as a big-endian uint32, then the items,
    big-endian, in C order.

    `source` is a file (one that begins as xz or gzip do is unpacked), or the content of one. The
    array is read-only, in the machine's own byte order; an empty dimension makes it empty. Of what
    is no IDX file, is cut short or has bytes to spare, a ValueError says at which byte.

    Examples
    --------
    >>> read_idx(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9]))
    array([[7, 8, 9]], dtype=uint8)
    """
    if isinstance(source, bytes):
        data, name = source, "IDX data"
    else:
        data, name = _unpacked(Path(source)), str(source)
    if len(data) < 4:
        raise ValueError(f"{name}: ends at byte {len(data)}, inside the 4 bytes of the magic")
    if data[:2] != b"\0\0":
        raise ValueError(f"{name}: byte 0 must begin two zero bytes in IDX; {beginning(data)}")
    if data[2] not in _IDX_TYPES:
        known = ", ".join(f"0x{code:02X}" for code in _IDX_TYPES)
        raise ValueError(f"{name}: byte 2 has the type code 0x{data[2]:02X}; known are {known}")
    dtype, start = np.dtype(_IDX_TYPES[data[2]]), 4 + 4 * data[3]
    if len(data) < start:
        raise ValueError(
            f"{name}: ends at byte {len(data)}, inside its {data[3]} dimensions (to byte {start})"
        )
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], ">u4"))
    if len(shape) > 32:
        raise ValueError(f"{name}: byte 3 says {len(shape)} dimensions; at most 32 are read")
    end = start + math.prod(shape) * dtype.itemsize
    if len(data) != end:
        verb = "ends" if len(data) < end else "goes on"
        raise ValueError(
            f"{name}: {verb} at byte {min(len(data), end)}; its shape {shape} of {dtype.name} "
            f"takes {end} bytes, the file has {len(data)}"
        )
    array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return _frozen(array.astype(dtype.newbyteorder("="), copy=False))


def load_npz(path: str | os.PathLike[str], *, test: int | None = None) -> Dataset:
    """Read a data set of your own from a NumPy ``.npz`` file, and name it after the file.

    Parameters
    ----------
    path : path
        Holds ``train_x``, ``train_y``, ``test_x`` and ``test_y`` (or, as Keras names them,
        ``x_train``, ...), or ``x`` and ``y`` alone. Samples have any shape (they are flattened) and
        any type of numbers, whose values are whole and lie in [0, 255]; so do labels, one per
        sample, which may also be texts such as "7".
    test : int, optional
        With ``x`` and ``y`` alone: how many of the last rows are the test set. Rows are taken as
        they lie, never shuffled. Default: the last seventh, rounded down, at least one.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no ``.npz`` file, holds Python objects (never unpickled), unpacks to more than
        64 MB and 200 times its size, lacks a key, or a key has the wrong values or shape; the
        message names the key.
    """
    path = Path(path)
    content = _npz_arrays(path)
    keys = [*content]
    if not keys[2:]:
        x, y = _pair(path, content, "x", "y")
        rows = len(x)
        test = max(rows // _TEST_PART, 1) if test is None else test
        if not 0 < test < rows:
            raise ValueError(f"{path}: test must be 1 to {rows - 1} (of {rows} rows), got {test}")
        arrays = [x[:-test], y[:-test], x[-test:], y[-test:]]
    elif test is not None:
        raise ValueError(f"{path}: test={test} is for files with x and y alone")
    else:
        arrays = [*_pair(path, content, *keys[:2]), *_pair(path, content, *keys[2:])]
        if arrays[0].shape[1:] != arrays[2].shape[1:]:
            raise ValueError(
                f"{path}: samples of {keys[0]} have shape {arrays[0].shape[1:]}, "
                f"of {keys[2]} {arrays[2].shape[1:]}; they must agree"
            )
    inner = b"".join(_idx_digest(a) for a in arrays)
    return _dataset(arrays, path.name, hashlib.sha256(inner).hexdigest())


def _dataset(arrays: list[NDArray[Any]], name: str, digest: str) -> Dataset:
    """Flatten the samples and freeze the arrays."""
    sample_shape = arrays[0].shape[1:]
    train_x, train_y, test_x, test_y = (
        _frozen(a.reshape(len(a), -1) if a.ndim > 1 else a) for a in arrays
    )  # (samples, features) and (samples,)
    return Dataset(train_x, train_y, test_x, test_y, name, digest, sample_shape)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view."""
    view = array.view()
    view.flags.writeable = False
    return view


def _package_bytes(name: str) -> bytes:
    """Read a file of the package's data."""
    try:
        return resources.files("minibit").joinpath("data", *name.split("/")).read_bytes()
    except OSError as error:
        raise ValueError(f"minibit/data/{name} is missing from the installation") from error


def _package_idx(name: str, expected: str) -> NDArray[Any]:
    """Unpack one of the package's IDX files and check its digest."""
    packed, path = _package_bytes(f"mnist/{name}.xz"), f"minibit/data/mnist/{name}.xz"
    try:
        data = lzma.decompress(packed)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}): reinstall minibit") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected:
        raise ValueError(
            f"{path} is not the published file: its SHA-256 is {digest}, it should be {expected}; "
            "reinstall minibit"
        )
    return read_idx(data)


def _unpacked(path: Path) -> bytes:
    """Read a file, through xz or gzip where it begins as they do."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is no file")
    data = path.read_bytes()
    try:
        if data[:6] == b"\xfd7zXZ\0":
            return _bounded(lzma.LZMAFile(io.BytesIO(data)), len(data))
        if data[:2] == b"\x1f\x8b":
            return _bounded(gzip.GzipFile(fileobj=io.BytesIO(data)), len(data))
    except Exception as error:  # whatever the unpackers raise
        raise ValueError(f"{path}: cannot be unpacked: {error}") from error
    return data


def _bounded(file: IO[bytes] | gzip.GzipFile, packed: int) -> bytes:
    """Read what so many packed bytes unpack to, unless it is a bomb."""
    most, data = max(_LARGE, _RATIO * packed), bytearray()
    while piece := file.read(_PIECE):
        data += piece
        if len(data) > most:
            raise ValueError(f"{packed} bytes unpack to more than {most}; write it unpacked")
    return bytes(data)


def _npz_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Load the arrays of an npz file that make a data set, in the order of `_KEYS`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(32)
        if start.startswith(b"\x93NUMPY"):
            raise ValueError(
                f"{path}: holds one array without a key; write np.savez(path, x=x, y=y)"
            )
        try:
            archive = zipfile.ZipFile(file)
        except Exception as error:  # whatever zipfile raises
            why = str(error) if start.startswith(b"PK") else beginning(start)
            raise ValueError(f"{path}: not a NumPy .npz file: {why}") from error
        known = [key for keys in _KEYS for key in keys if f"{key}.npy" in archive.namelist()]
        for keys in _KEYS:
            if set(keys) <= set(known):
                return {key: _npy(path, archive, key) for key in keys}
    raise ValueError(
        f"{path}: needs the keys {', '.join(_FOUR_KEYS)} (or x_train, ..., or x and y), "
        f"has {', '.join(sorted(known)) or 'none'}"
    )


def _npy(path: Path, archive: zipfile.ZipFile, key: str) -> NDArray[Any]:
    """Read one array of an npz file."""
    try:
        with archive.open(f"{key}.npy") as file:
            data = _bounded(file, archive.getinfo(f"{key}.npy").compress_size)
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # whatever zipfile, its unpackers and NumPy raise
        hint = f"; write {key}.astype(np.uint8)" if "Object arrays" in str(error) else ""
        raise ValueError(f"{path}: {key} cannot be read: {error}{hint}") from error


def _pair(
    path: Path, content: dict[str, NDArray[Any]], x_key: str, y_key: str
) -> list[NDArray[np.uint8]]:
    """Return samples of at least one feature as bytes, and one label for each of them."""
    x, y = content[x_key], content[y_key]
    if x.ndim < 2 or x.size == 0:
        raise ValueError(
            f"{path}: {x_key} must have shape (samples, ...) and not be empty, got {x.shape}"
        )
    if y.shape == (len(x), 1):  # as Keras has some
        y = y[:, 0]
    if y.shape != x.shape[:1]:
        hint = f"; of one-hot labels take {y_key}.argmax(axis=1)" if y.ndim == 2 else ""
        raise ValueError(
            f"{path}: {y_key} must have shape {x.shape[:1]}, one label for each row of {x_key}, "
            f"got {y.shape}{hint}"
        )
    if y.dtype.kind in "SU":
        try:
            y = y.astype(np.float64)
        except ValueError as error:
            raise ValueError(f"{path}: {y_key} must be labels from 0 to 255: {error}") from None
    return [_as_bytes(path, x_key, x), _as_bytes(path, y_key, y)]


def _as_bytes(path: Path, key: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return whole numbers from 0 to 255, of whatever type, as bytes."""
    name = f"{path}: {key}"
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be whole numbers from 0 to 255, got {values.dtype}")
    with np.errstate(invalid="ignore"):
        small = np.ascontiguousarray(values.astype(np.uint8, copy=False))
    wrong = small != values  # true for NaN, too
    if wrong.any() and 0 <= values.min() <= values.max() <= 1:
        raise ValueError(
            f"{name} must be whole numbers from 0 to 255, got {values.dtype} within [0, 1]; "
            f"scale it: np.round(255 * {key}).astype(np.uint8)"
        )
    refuse_entries(name, values, wrong, "be whole numbers from 0 to 255")
    return small


def _idx_digest(array: NDArray[np.uint8]) -> bytes:
    """SHA-256 of the array as an IDX file of type uint8."""
    header = bytes([0, 0, 0x08, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    sha = hashlib.sha256(header)
    sha.update(array.data)
    return sha.digest()
