"""Adam whose means live in a file: the bits of Adam, within a budget, and safe files."""

import gc
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit import kernels
from minibit.lora import PagedAdam, paged
from minibit.lora.paged import HEADER, MAGIC, PAGE
from minibit.tape import Adam

LINUX = sys.platform == "linux"


def drawn(shape, seed=0, dtype=np.float32):
    """Normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def tree(seed=0):
    """Parameters of both types and several shapes, one held constant, one empty."""
    return {
        "a": drawn((70, 300), seed),
        "b": [drawn((9,), seed + 1, np.float64), None],
        "c": drawn((40_000,), seed + 2, np.float64),
        "d": drawn((0, 4), seed + 3),
        "e": drawn((), seed + 4),
    }


def assert_same(a, b):
    """Bit for bit, types included."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif a is not None:
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def resident(adam):
    """Bytes of the optimizer's map that are in this process's memory (Linux)."""
    address = np.frombuffer(adam._map, np.uint8).__array_interface__["data"][0]
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the map is not listed")


# --- The arithmetic


@pytest.mark.parametrize("share", [20, 10**9, 1])
def test_paged_adam_has_the_bits_of_adam(share):
    """Parameters and means after 6 steps: a twentieth of the state, one byte, all of it."""
    plain = Adam(tree(), lr=0.03, betas=(0.8, 0.95), weight_decay=0.1)
    budget = max(plain.nbytes // share, 1)
    with PagedAdam(tree(), 0.03, (0.8, 0.95), weight_decay=0.1, budget=budget) as adam:
        assert adam.nbytes == plain.nbytes
        for step in range(6):
            grads = tree(step + 10)
            if step == 2:
                grads["c"] = None
            decay = 0.2 if step > 3 else None
            expected = plain.step(grads, lr=0.1 / (step + 1), weight_decay=decay)
            assert_same(adam.step(grads, lr=0.1 / (step + 1), weight_decay=decay), expected)
        for index in range(len(plain._means)):
            np.testing.assert_array_equal(adam._means[index], plain._means[index])
            np.testing.assert_array_equal(adam._squares[index], plain._squares[index])
        assert adam.steps == plain.steps == 6
    assert_same(adam.params, plain.params)


def test_a_twentieth_of_a_large_state_is_enough(monkeypatch):
    """4.8 MB of means in strips of 128 KB each: bit-equal, and more strips than one."""
    strips = []
    real = paged.adam_move()

    def counted(*arrays):
        """Count the strips."""
        strips.append(arrays[0].size)
        real(*arrays)

    w = {"w": drawn((600, 1000))}
    plain = Adam(w)
    with PagedAdam(w, budget=plain.nbytes // 20) as adam:
        monkeypatch.setattr(paged, "adam_move", lambda: counted)
        for step in range(3):
            g = {"w": drawn((600, 1000), step + 1)}
            assert_same(adam.step(g), plain.step(g))
    assert len(strips) >= 3 * 18
    assert max(strips) * 2 * 4 <= plain.nbytes // 20


@given(st.integers(1, 10 * PAGE), st.integers(1, 60_000), st.sampled_from([np.float32, np.float64]))
def test_no_budget_and_no_size_changes_a_bit(budget, size, dtype):
    """Strips end anywhere."""
    p, g = drawn(size, 1, dtype), drawn(size, 2, dtype)
    with PagedAdam(p, budget=budget) as adam:
        for _ in range(2):
            params_after = adam.step(g)
    plain = Adam(p)
    plain.step(g)
    assert_same(params_after, plain.step(g))


def test_the_plain_pass_has_the_same_bits(monkeypatch):
    """Without kernels, too."""
    monkeypatch.setattr(kernels, "compiled", lambda: False)
    p, g = drawn(40_000), drawn(40_000, 1)
    with PagedAdam(p, budget=1) as adam:
        assert_same(adam.step(g), Adam(p).step(g))


# --- Memory


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_no_more_than_the_budget_is_ever_resident(monkeypatch):
    """After every strip of a step over 32 MB of means, at most the budget and its neighbours."""
    p, g = drawn(4_000_000), drawn(4_000_000, 1)
    budget, seen = 1 << 20, []
    with PagedAdam({"w": p}, budget=budget) as adam:
        real = paged.adam_move()

        def watched(*arrays):
            """Look at the fullest moment: a strip is done and not yet let go."""
            real(*arrays)
            seen.append(resident(adam))

        monkeypatch.setattr(paged, "adam_move", lambda: watched)
        for _ in range(2):
            adam.step({"w": g})
        assert adam.nbytes == 32_000_000
        assert len(seen) == 2 * 31
        assert budget <= max(seen) <= budget + 4 * PAGE
        assert resident(adam) <= 2 * PAGE
        monkeypatch.setattr(paged.PagedAdam, "_advise", lambda *_: None)
        adam.step({"w": g})
        assert resident(adam) == pytest.approx(32_000_000, rel=0.02)  # what happens otherwise


@pytest.mark.skipif(not LINUX, reason="counts open files in /proc")
def test_temporary_files_vanish(tmp_path, monkeypatch):
    """No name in the folder at any time; nothing open after close, or when it is forgotten."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def opened():
        """How many files of the folder this process has open, deleted ones too."""
        links = Path("/proc/self/fd").iterdir()
        return sum(str(tmp_path) in os.readlink(link) for link in links if link.is_symlink())

    adam = PagedAdam(drawn(10))
    adam.step(drawn(10, 1))
    assert not list(tmp_path.iterdir())
    assert opened() == 1
    adam.close()
    adam.close()
    assert opened() == 0
    forgotten = PagedAdam(drawn(10))
    del forgotten
    gc.collect()
    assert opened() == 0


def test_a_closed_optimizer_refuses_to_step():
    """The parameters stay."""
    adam = PagedAdam(drawn(10))
    moved = adam.step(drawn(10, 1))
    adam.close()
    with pytest.raises(ValueError, match="closed"):
        adam.step(drawn(10, 1))
    assert_same(adam.params, moved)


# --- Files


def test_a_file_goes_on_where_it_was_closed(tmp_path):
    """Two processes' worth of steps are those of one; the file stays."""
    path, plain = tmp_path / "adam.state", Adam(tree(), weight_decay=0.1)
    params = tree()
    for part in range(3):
        with PagedAdam(params, weight_decay=0.1, budget=9 * PAGE, path=path) as adam:
            assert adam.steps == 2 * part
            for step in range(2):
                params = adam.step(tree(10 * part + step))
                expected = plain.step(tree(10 * part + step))
                assert_same(params, expected)
    assert path.stat().st_size % PAGE == 0
    assert path.stat().st_size >= plain.nbytes


def kept(tmp_path):
    """A file that was closed after a step."""
    path = tmp_path / "adam.state"
    with PagedAdam(drawn(1000), path=path) as adam:
        adam.step(drawn(1000, 1))
    return path


def cut(path):
    """Lose the last byte."""
    os.truncate(path, path.stat().st_size - 1)


def grow(path):
    """Gain one."""
    with path.open("ab") as file:
        file.write(b"\0")


def spoil(offset):
    """Change one byte."""

    def change(path):
        """At that place."""
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)

    return change


def empty(path):
    """Lose everything."""
    path.write_bytes(b"")


def reopen(path):
    """Open and never close: what a crash leaves."""
    code = f"from minibit.lora.paged import PagedAdam; import numpy as np, os\n" \
           f"a = PagedAdam(np.ones(1000, np.float32), path={str(path)!r}); os._exit(0)"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)


def claim(text):
    """Write another header."""

    def change(path):
        """In the place of the true one."""
        data = path.read_bytes()
        header = (MAGIC + text).ljust(HEADER, b"\0")
        path.write_bytes(header + data[HEADER:])

    return change


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (cut, "must have .* bytes, got"),
        (grow, "must have .* bytes, got"),
        (empty, r"holds no means of PagedAdam \(byte 0\)"),
        (spoil(0), r"holds no means of PagedAdam \(byte 0\)"),
        (spoil(len(MAGIC)), "has a damaged header"),
        (spoil(PAGE + 5), "is damaged: its means do not have the checksum"),
        (spoil(2 * PAGE + 3999), "is damaged: its means do not have the checksum"),
        (claim(b"[]"), "has a damaged header"),
        (claim(b"\xff\xfe{"), "has a damaged header"),
        (claim(b"[" * 4000), "has a damaged header"),
        (claim(b'{"arrays": 1, "steps": 0}'), "has a damaged header"),
        (claim(b'{"arrays": 1, "steps": 0, "crc32": 0}'), "belongs to other parameters"),
        (reopen, "in use, or was not closed"),
    ],
    ids=lambda x: getattr(x, "__name__", "") or "",
)
def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path, damage, match):
    """Short, long, spoiled anywhere, hostile, or left in the middle: named, and not written to."""
    path = kept(tmp_path)
    damage(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=match):
        PagedAdam(drawn(1000), path=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("steps", [b"-1", b"1.5", b"true", b"null"])
def test_a_number_of_steps_that_is_none_is_refused(tmp_path, steps):
    """Steps divide by 1 - beta^t."""
    path = kept(tmp_path)
    data = path.read_bytes()
    header = data[len(MAGIC) : HEADER].rstrip(b"\0")
    claim(re.sub(rb'"steps": \d+', b'"steps": ' + steps, header))(path)
    with pytest.raises(ValueError, match="says that it took"):
        PagedAdam(drawn(1000), path=path)


@pytest.mark.parametrize("other", [drawn(1001), drawn(1000, 0, np.float64), [drawn(500)] * 2])
def test_a_file_of_other_parameters_is_refused(tmp_path, other):
    """Number, sizes and types must be those of the file."""
    with pytest.raises(ValueError, match="belongs to other parameters"):
        PagedAdam(other, path=kept(tmp_path))


def test_two_cannot_use_a_file_at_once(tmp_path):
    """The first marks it as open."""
    path = kept(tmp_path)
    with (
        PagedAdam(drawn(1000), path=path),
        pytest.raises(ValueError, match="in use"),
    ):
        PagedAdam(drawn(1000), path=path)
    PagedAdam(drawn(1000), path=path).close()


def test_a_file_that_is_cut_meanwhile_is_found_before_the_step(tmp_path):
    """Instead of ending the process; nothing has moved."""
    path = tmp_path / "adam.state"
    adam = PagedAdam(drawn(1000), path=path)
    moved = adam.step(drawn(1000, 1))
    os.truncate(path, PAGE)
    with pytest.raises(ValueError, match=r"had .* bytes, now it has"):
        adam.step(drawn(1000, 2))
    assert adam.steps == 1
    assert_same(adam.params, moved)


def test_a_file_without_room_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    """All room is reserved at the start: later there would be no error to catch."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        PagedAdam(drawn(1000), path=tmp_path / "adam.state")
    with pytest.raises(OSError, match="No space left"):
        PagedAdam(drawn(1000))
    assert not list(tmp_path.iterdir())


def test_systems_without_advice_or_reservation_only_lose_these(tmp_path, monkeypatch):
    """The means are right where nothing can be let go."""
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    for name in ("MADV_DONTNEED", "MADV_WILLNEED"):
        monkeypatch.delattr(mmap, name, raising=False)
    p, g = drawn(40_000), drawn(40_000, 1)
    with PagedAdam(p, budget=1, path=tmp_path / "adam.state") as adam:
        assert_same(adam.step(g), Adam(p).step(g))


# --- Errors that teach


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"budget": 0}, ValueError, "budget must be at least 1"),
        ({"budget": 1.5}, TypeError, "budget must be an integer"),
        ({"budget": True}, TypeError, "budget must be an integer"),
        ({"lr": -1}, ValueError, "lr must lie"),
        ({"eps": 0}, ValueError, "eps must lie"),
    ],
)
def test_wrong_settings_are_named(tmp_path, change, error, match):
    """And no file is made."""
    with pytest.raises(error, match=match):
        PagedAdam(drawn(10), path=tmp_path / "x", **change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("grads", "error", "match"),
    [
        ({"a": drawn((4,))}, ValueError, r"grads\['a'\] must have shape \(3,\), got \(4,\)"),
        ({"a": np.array(["x"] * 3)}, TypeError, r"grads\['a'\] must hold real numbers, got <U1"),
        ({"b": drawn((3,))}, TypeError, "structure"),
    ],
)
def test_wrong_gradients_are_named_and_nothing_moves(grads, error, match):
    """As Adam's."""
    with PagedAdam({"a": drawn((3,))}) as adam:
        before = adam.params["a"].copy()
        with pytest.raises(error, match=match):
            adam.step(grads)
        with pytest.raises(ValueError, match="lr must lie"):
            adam.step({"a": drawn((3,))}, lr=np.nan)
        assert adam.steps == 0
        np.testing.assert_array_equal(adam.params["a"], before)
