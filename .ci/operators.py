"""Break rooms of the package operator by operator, drawn by a seed, for ``.ci/mutants --all``.

    a < b       a <= b, a >= b           a + b   a - b, and so on        not a   a
    1           2, 0                     True    False                   -a      a
    a and b     a or b                   if a:   if not a:               return a    return None
    f(a)        pass                     x += 1, x[i] = a, raise, break  pass

Texts, annotations and what a ``raise`` says stay as they are. Of each room's mutants a sample is
drawn. The room's tests run once, unbroken, and note which lines each test reaches; then every
mutant is tried in a fork of a process that has loaded pytest: the fork imports the room with the
mutant in it and runs the tests that reach its line, the quickest first, to the first that fails.
They run without JIT, and if none fails with it, as a room's ways to its kernels need it. A survivor
is *argued* if `.ci/survivors.txt` says in a line why no test should fail.
"""

from __future__ import annotations

import ast
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("dual", "ternary", "absmean", "noise", "noise_step", "steps", "topk", "nf4")
MORE_TESTS = {
    "dual": ("test_rules.py",),
    "ternary": ("test_matmul.py",),
    "steps": ("test_logfile.py", "test_histories.py", "test_writers.py"),
}
MEMORY = 8 << 30  # bytes of addresses that a mutant's tests may take
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}


@dataclass(frozen=True)
class Change:
    """One mutant: in `file`, at `line`, the text from `start` to `end` becomes `new`."""

    file: str
    line: int
    start: int  # characters from the file's begin
    end: int
    old: str
    new: str

    def apply(self, text: str) -> str:
        """Return the file's text with the change in it."""
        return text[: self.start] + self.new + text[self.end :]

    def name(self, text: str) -> str:
        """Name the change by its place in words, which stay when lines move."""
        code = text.splitlines()[self.line - 1].strip()
        old, new = (" ".join(part.split()) for part in (self.old, self.new))
        return f"{self.file}: {code} [{old} -> {new}]"


def changes(file: str, text: str) -> list[Change]:
    """List all changes of a file, in order."""
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def place(row: int, column: int) -> int:
        """Characters before a position that the parser gives in bytes of UTF-8."""
        return starts[row - 1] + len(lines[row - 1].encode()[:column].decode())

    out = []
    for node, new in _changes_of(ast.parse(text)):
        start = place(node.lineno, node.col_offset)
        end = place(node.end_lineno, node.end_col_offset)
        out.append(Change(file, node.lineno, start, end, text[start:end], new))
    return sorted(set(out), key=lambda change: (change.start, change.end, change.new))


def _changes_of(node: ast.AST) -> Iterator[tuple[Any, str]]:
    """Yield nodes and what stands for them, at any depth."""
    if isinstance(node, ast.JoinedStr | ast.Raise):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST):
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                continue
            if isinstance(child, ast.Assign) and ast.unparse(child.targets[0]) == "__all__":
                continue
            yield from _changes_at(child)
            yield from _changes_of(child)


def _changes_at(node: ast.AST) -> Iterator[tuple[Any, str]]:
    """Yield a node with what stands for it."""
    match node:
        case ast.Compare(ops=[op]):
            for other in COMPARISONS[type(op)]:
                yield node, _text(node, ops=[other()])
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            yield node, _text(node, op=ARITHMETIC[type(op)]())
        case ast.AugAssign(op=op):
            if type(op) in ARITHMETIC:
                yield node, _text(node, op=ARITHMETIC[type(op)]()).strip("()")
            yield node, "pass"
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert(), operand=operand):
            yield node, f"({ast.unparse(operand)})"
        case ast.Constant(value=bool(value)):
            yield node, str(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield from ((node, f"({other!r})") for other in (value + 1, value - 1))
        case ast.BoolOp(op=op):
            yield node, _text(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            yield test, f"(not ({ast.unparse(test)}))"
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield node, "return None"
        case ast.Expr(value=ast.Call() | ast.Yield() | ast.YieldFrom()):
            yield node, "pass"
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            yield node, "pass"
        case ast.Raise() | ast.Break() | ast.Continue() | ast.Delete():
            yield node, "pass"


def _text(node: Any, **fields: Any) -> str:
    """Write a node with other fields, in parentheses."""
    return f"({ast.unparse(type(node)(**{**dict(ast.iter_fields(node)), **fields}))})"


def files_of(room: str) -> list[Path]:
    """Return the files of a room."""
    folder = ROOT / "minibit" / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def sample_of(room: str, size: int, seed: int) -> tuple[list[Change], int]:
    """Draw changes of a room, in order, and say of how many."""
    every = []
    for path in files_of(room):
        file = path.relative_to(ROOT).as_posix()
        every += changes(file, path.read_text(encoding="utf-8"))
    chosen = random.Random(f"{room} {seed}").sample(range(len(every)), min(size, len(every)))
    return [every[i] for i in sorted(chosen)], len(every)


def tests_of(room: str) -> list[str]:
    """Return the files of a room's tests."""
    every = (f"test_{room}.py", *MORE_TESTS.get(room, ()), "test_vectors.py")
    return [f"tests/{name}" for name in every]


class Times:
    """A plugin of pytest that notes how long each test took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Add the time of a test's setup, call and teardown."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


class Chosen:
    """A plugin of pytest that keeps some tests, in their order."""

    def __init__(self, tests: list[str]) -> None:
        self.place = {test: number for number, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep and sort."""
        items[:] = [item for item in items if item.nodeid in self.place]
        items.sort(key=lambda item: self.place[item.nodeid])


class RoomTests:
    """The tests of a room, with JIT or without: which of them reach a line, and what they notice.

    A context manager: a process in which changes are tried waits inside it.
    """

    def __init__(self, room: str, folder: Path, jit: bool) -> None:
        times, data = folder / f"{room}-{jit}.json", folder / f"{room}-{jit}.coverage"
        self._environment = environment(jit)
        command = [sys.executable, __file__, "measure", room, str(times), str(data)]
        done = subprocess.run(
            command, cwd=ROOT, env=self._environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{done.stdout}{done.stderr}\nthe tests of {room} must pass unbroken")
        self.room, self.seconds = room, json.loads(times.read_text())
        self._reach = lines_reached(data)

    def __enter__(self) -> RoomTests:
        """Start the process that is forked."""
        self._server = subprocess.Popen(
            [sys.executable, __file__, "serve", self.room],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._server.communicate()

    def reach(self, change: Change) -> list[str]:
        """List the tests that run a line, the quickest first; all of them if it runs at import."""
        reached = self._reach.get((change.file, change.line), set())
        names = self.seconds if "" in reached else reached
        return sorted(names, key=lambda name: self.seconds.get(name, 0.0))

    def notice(self, change: Change, text: str) -> bool:
        """Try a change of a file's text: whether a test fails, or the tests do not end in time."""
        tests = self.reach(change)
        if not tests:
            return False
        limit = 20 + 5 * sum(self.seconds.get(test, 0.0) for test in tests)
        task = {"file": change.file, "text": change.apply(text), "tests": tests, "limit": limit}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(task), file=self._server.stdin, flush=True)
        noticed: bool = json.loads(self._server.stdout.readline())
        return noticed


def lines_reached(data: Path) -> dict[tuple[str, int], set[str]]:
    """Read which tests run each line of a file; a line that runs at import has a test ``""``."""
    from coverage.numbits import numbits_to_nums

    reached: dict[tuple[str, int], set[str]] = {}
    with sqlite3.connect(data) as database:
        rows = database.execute(
            "select file.path, context.context, line_bits.numbits from line_bits "
            "join file on file.id = line_bits.file_id "
            "join context on context.id = line_bits.context_id"
        )
        for path, context, bits in rows:
            for line in numbits_to_nums(bits):
                place = (Path(path).relative_to(ROOT).as_posix(), line)
                reached.setdefault(place, set()).add(context.partition("|")[0])
    return reached


def environment(jit: bool) -> dict[str, str]:
    """Return the environment of tests, which have the same examples every time."""
    return {k: v for k, v in os.environ.items() if k != "MINIBIT_KERNELS"} | {
        "NUMBA_DISABLE_JIT": str(int(not jit)),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "CI": "1",
        "MPLBACKEND": "agg",
    }


def measure(room: str, times: str, data: str) -> int:
    """Run a room's tests under coverage, test by test; write their times and the lines reached."""
    import pytest

    os.environ["COVERAGE_FILE"] = data
    target = "minibit." + room if (ROOT / "minibit" / f"{room}.py").is_file() else f"minibit/{room}"
    plugin, quiet = Times(), ["-q", "-p", "no:cacheprovider", "--cov-report="]
    status = pytest.main(
        [*quiet, f"--cov={target}", "--cov-context=test", *tests_of(room)], plugins=[plugin]
    )
    Path(times).write_text(json.dumps(plugin.seconds))
    return int(status)


def serve(room: str) -> int:
    """Try each change that a line of standard input holds, in a fork; print how it ended."""
    import hypothesis.extra.numpy  # noqa: F401, what every test loads
    import pytest

    loaded = "ignore::pytest.PytestAssertRewriteWarning"  # Hypothesis is, before its plugin
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-W", loaded, *tests_of(room)]
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            silent = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(silent, stream)
            _put(ROOT / task["file"], task["text"])
            os._exit(pytest.main(arguments, plugins=[Chosen(task["tests"])]))
        print(json.dumps(_fails(child, task["limit"])), flush=True)
    return 0


def _put(path: Path, text: str) -> None:
    """Let a file that is imported from now on have this text."""
    get_code = SourceFileLoader.get_code

    def changed(self: SourceFileLoader, name: str) -> Any:
        """Compile the text in place of the file."""
        if Path(self.path) == path:
            return compile(text, str(path), "exec", dont_inherit=True)
        return get_code(self, name)

    SourceFileLoader.get_code = changed  # type: ignore[assignment,method-assign]


def _fails(child: int, limit: float) -> bool:
    """Wait for a fork, for so many seconds: whether a test failed, or did not end."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) not in (0, 1, 2):
                raise SystemExit(f"pytest did not run: exit status {os.WEXITSTATUS(status)}")
            return status != 0
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def try_room(room: str, size: int, seed: int, folder: Path) -> dict[str, int]:
    """Try a sample of a room's changes; print what survives, and return the counts."""
    begin, argued = time.perf_counter(), arguments()
    chosen, count = sample_of(room, size, seed)
    counts = dict.fromkeys(("killed", "argued", "survived"), 0)
    plain, compiled = (RoomTests(room, folder, jit) for jit in (False, True))
    print(f"{room}: {len(chosen)} of {count} changes, {len(plain.seconds)} tests", flush=True)
    with plain, compiled:
        whole = (ROOT / chosen[0].file).read_text(encoding="utf-8")
        nothing = replace(chosen[0], start=0, end=0, new="")
        if plain.notice(nothing, whole) or compiled.notice(nothing, whole):
            raise SystemExit(f"the tests of {room} fail in a fork with nothing changed")
        for change in chosen:
            text = (ROOT / change.file).read_text(encoding="utf-8")
            noticed, name = plain.notice(change, text), change.name(text)
            if not noticed:
                noticed = compiled.notice(change, text)
            result = "killed" if noticed else "argued" if name in argued else "survived"
            counts[result] += 1
            if result != "killed":
                reach = {*plain.reach(change), *compiled.reach(change)}
                print(f"{result}  {name}  (line {change.line}, {len(reach)} tests)", flush=True)
    words = ", ".join(f"{number} {result}" for result, number in counts.items())
    print(f"{room}: {words}; {time.perf_counter() - begin:.0f} s", flush=True)
    return counts


def arguments() -> dict[str, str]:
    """Read why survivors may survive: ``NAME  # reason``, a line each."""
    lines = (ROOT / ".ci" / "survivors.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.rpartition("  # ") for line in lines if line.strip() and line[0] != "#")
    return {name.strip(): reason for name, _, reason in pairs}


def main(rooms: Sequence[str], size: int, seed: int) -> int:
    """Try rooms, and print the share that is killed; 0 if no change survived."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        counts = [try_room(room, size, seed, Path(folder)) for room in rooms]
    killed, argued, survived = (
        sum(count[key] for count in counts) for key in ("killed", "argued", "survived")
    )
    share = killed / max(1, killed + survived)
    print(f"{killed} killed, {argued} argued, {survived} survived: {share:.1%} without the argued")
    return int(survived > 0)


if __name__ == "__main__":  # a process of `RoomTests`
    sys.exit({"measure": measure, "serve": serve}[sys.argv[1]](*sys.argv[2:]))
