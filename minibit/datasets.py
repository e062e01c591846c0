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
import lzma
import math
import os
import zipfile
import zlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
_VALIDATION_PART = 12
_LARGE, _RATIO = 1 << 30, 200  # an npz member of more bytes, packed better than so, is a zip bomb
_TEST_PART = 7  # of a file with x and y alone, the last seventh is the test set, as in MNIST


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled samples: a training set and a test set, pixels and labels as bytes.

    Attributes
    ----------
    train_x : uint8 array, shape (train, features)
        Pixels, 0 to 255, read-only.
    train_y : uint8 array, shape (train,)
        Labels, from 0.
    test_x, test_y
        The same for the test set.
    name : str
        What to call it: ``"mnist"``, or the file's name.
    digest : str
        Hexadecimal SHA-256 of the four arrays, as the module describes it.
    sample_shape : tuple of int
        Shape of one sample before it was flattened: ``(28, 28)``, or ``(features,)``.
    """

    train_x: NDArray[np.uint8]
    train_y: NDArray[np.uint8]
    test_x: NDArray[np.uint8]
    test_y: NDArray[np.uint8]
    name: str
    digest: str
    sample_shape: tuple[int, ...]

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
        samples, rounded down, at least one: the last 5,000 of MNIST's 60,000.

    Raises
    ------
    ValueError
        If `validation` is negative, or leaves nothing to train on.

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

    The four published files are packed with xz; they are unpacked in memory and checked against
    their SHA-256. Decoded once per process.

    Returns
    -------
    Dataset
        ``train_x`` (60000, 784), ``train_y`` (60000,), ``test_x`` (10000, 784), ``test_y``.

    Raises
    ------
    ValueError
        If a packed file is damaged or missing; the message names it.

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

    Parameters
    ----------
    source : path or bytes
        A file (one ending in ``.xz`` or ``.gz`` is unpacked), or the content of one.

    Returns
    -------
    array
        In the machine's own byte order, read-only. An empty dimension gives an empty array.

    Raises
    ------
    ValueError
        If the content is no IDX file, is cut short or has bytes to spare; the message says at
        which byte.

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
        raise ValueError(f"{name}: byte 0 starts with {data[:2].hex()}, an IDX file with 0000")
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
        what = "ends" if len(data) < end else "goes on"
        raise ValueError(
            f"{name}: {what} at byte {min(len(data), end)}; its shape {shape} of {dtype.name} "
            f"takes {end} bytes, the file has {len(data)}"
        )
    array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return _frozen(array.astype(dtype.newbyteorder("="), copy=False))


def load_npz(path: str | os.PathLike[str], *, test: int | None = None) -> Dataset:
    """Read a data set of your own from a NumPy ``.npz`` file.

    Parameters
    ----------
    path : path
        Holds ``train_x``, ``train_y``, ``test_x`` and ``test_y``, or ``x`` and ``y`` alone. Samples
        are uint8 of any shape (they are flattened), labels are integers from 0 to 255.
    test : int, optional
        With ``x`` and ``y`` alone: how many of the last rows are the test set. Rows are taken as
        they lie, never shuffled. Default: the last seventh, rounded down, at least one.

    Returns
    -------
    Dataset
        Named after the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no ``.npz`` file, holds Python objects (never unpickled), lacks a key, or a key
        has the wrong dtype, shape or labels; the message names the key.
    """
    path = Path(path)
    found = _npz_arrays(path)
    if set(_FOUR_KEYS) <= found.keys():
        if test is not None:
            raise ValueError(f"{path}: test={test} is for files with x and y alone")
        arrays = [found[key] for key in _FOUR_KEYS]
        keys = _FOUR_KEYS
    elif {"x", "y"} <= found.keys():
        _check_pair(path, "x", found["x"], "y", found["y"])
        rows = len(found["x"])
        test = max(rows // _TEST_PART, 1) if test is None else test
        if not 0 < test < rows:
            raise ValueError(f"{path}: test must be 1 to {rows - 1} (of {rows} rows), got {test}")
        cut = rows - test
        arrays = [found["x"][:cut], found["y"][:cut], found["x"][cut:], found["y"][cut:]]
        keys = ("x", "y", "x", "y")
    else:
        raise ValueError(
            f"{path}: needs the keys {', '.join(_FOUR_KEYS)} (or x and y), "
            f"has {', '.join(sorted(found)) or 'none'}"
        )
    for first in (0, 2):
        _check_pair(path, keys[first], arrays[first], keys[first + 1], arrays[first + 1])
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise ValueError(
            f"{path}: samples of train_x have shape {arrays[0].shape[1:]}, "
            f"of test_x {arrays[2].shape[1:]}; they must agree"
        )
    arrays = [np.ascontiguousarray(a, np.uint8) for a in arrays]
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
    place = resources.files("minibit").joinpath("data", *name.split("/"))
    try:
        return place.read_bytes()
    except OSError as error:
        raise ValueError(f"minibit/data/{name} is missing from the installation") from error


def _package_idx(name: str, expected: str) -> NDArray[Any]:
    """Unpack one of the package's IDX files and check its digest."""
    packed = _package_bytes(f"mnist/{name}.xz")
    try:
        data = lzma.decompress(packed)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(
            f"minibit/data/mnist/{name}.xz is damaged ({error}): reinstall minibit"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ValueError(
            f"minibit/data/mnist/{name}.xz is not the published file: "
            f"its SHA-256 is {found}, it should be {expected}; reinstall minibit"
        )
    return read_idx(data)


def _unpacked(path: Path) -> bytes:
    """Read a file, through xz or gzip where its name says so."""
    data = path.read_bytes()
    try:
        if path.suffix == ".xz":
            return lzma.decompress(data)
        if path.suffix == ".gz":
            return gzip.decompress(data)
    except (lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path}: cannot be unpacked: {error}") from error
    return data


def _npz_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Load the arrays of an npz file that a data set may use."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    damage = (
        *(ValueError, OSError, EOFError, MemoryError, RuntimeError, NotImplementedError),
        *(zlib.error, lzma.LZMAError, zipfile.BadZipFile),
    )
    found = {}
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except damage as error:
            raise ValueError(f"{path}: not a NumPy .npz file") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError(
                f"{path}: holds one array without a key; write np.savez(path, x=x, y=y)"
            )
        for key in {*_FOUR_KEYS, "x", "y"} & set(archive.files):
            try:
                _check_member(archive.zip, key)
                found[key] = archive[key]
            except damage as error:
                raise ValueError(f"{path}: {key} cannot be read: {error}") from error
    return found


def _check_member(archive: Any, key: str) -> None:
    """Refuse a member that would unpack to far more than any data set does: a zip bomb."""
    for member in archive.infolist():
        unpacked, packed = member.file_size, member.compress_size
        if member.filename in (key, f"{key}.npy") and unpacked > max(_LARGE, _RATIO * packed):
            raise ValueError(f"{packed} bytes unpack to {unpacked}; write it with np.savez")


def _check_pair(path: Path, x_key: str, x: NDArray[Any], y_key: str, y: NDArray[Any]) -> None:
    """Raise unless x is bytes with at least one feature and y is one label for each of its rows."""
    if x.dtype != np.uint8:
        raise ValueError(
            f"{path}: {x_key} must be uint8 (0 to 255), got {x.dtype}; "
            "scale it, for instance np.round(255 * x).astype(np.uint8)"
        )
    if x.ndim < 2 or x.size == 0:
        raise ValueError(
            f"{path}: {x_key} must have shape (samples, ...) and not be empty, got {x.shape}"
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"{path}: {y_key} must be integers, got {y.dtype}")
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"{path}: {y_key} must have shape {x.shape[:1]}, one label for each row of {x_key}, "
            f"got {y.shape}"
        )
    wrong = np.flatnonzero((y < 0) | (y > 255))
    if wrong.size:
        row = int(wrong[0])
        raise ValueError(f"{path}: {y_key} must be labels from 0 to 255, got {y[row]} at row {row}")


def _idx_digest(array: NDArray[np.uint8]) -> bytes:
    """SHA-256 of the array as an IDX file of type uint8."""
    header = bytes([0, 0, 0x08, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    sha = hashlib.sha256(header)
    sha.update(array.data)
    return sha.digest()
