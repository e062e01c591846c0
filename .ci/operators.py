"""Break rooms of the package operator by operator, drawn by a seed, for ``.ci/mutants --all``.

    a < b       a <= b, a >= b           a + b   a - b, and so on        not a   a
    1           2, 0                     True    False                   -a      a
    a and b     a or b                   if a:   if not a:               return a    return None
    f(a)        pass                     x += 1, x[i] = a, raise, break  pass

Texts, annotations and what a ``raise`` says stay as they are. Of each room's mutants a sample is
drawn. The tests of the rooms run once, unbroken, and note which lines each test reaches; then every
mutant is tried in a fork of a process that has loaded pytest: the fork imports the room with the
mutant in it and runs the room's tests that reach its line, the quickest first and the cases of the
vectors last, to the first that fails. They run without JIT; what none notices is tried with JIT, as
a room's ways to its kernels need it. A survivor is *argued* if `.ci/survivors.txt` says in a line
why no test should fail.
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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("dual", "ternary", "absmean", "noise", "noise_step", "steps", "topk", "nf4")
MORE_TESTS = {
    "dual": ("test_rules.py",),
    "ternary": ("test_ternary_blocks.py", "test_matmul.py"),
    "steps": ("test_logfile.py", "test_histories.py", "test_writers.py"),
}
VECTORS = "tests/test_vectors.py::test_case"
FILES = {  # of vectors that call a room, besides its own
    "dual": ("dual_methods", "tape", "layers"),
    "ternary": ("matmul", "gguf_file"),
    "noise_step": ("choices", "costs", "plans"),
    "steps": ("logs", "noise_step"),
    "nf4": ("lora",),
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

    def apply(self) -> str:
        """Return the file's text with the change in it."""
        text = (ROOT / self.file).read_text(encoding="utf-8")
        return text[: self.start] + self.new + text[self.end :]

    def name(self) -> str:
        """Name the change by its place in words, which stay when lines move."""
        text = (ROOT / self.file).read_text(encoding="utf-8")
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


def sample_of(room: str, size: int, seed: int) -> list[Change]:
    """Draw changes of a room, in order."""
    every = []
    for path in files_of(room):
        file = path.relative_to(ROOT).as_posix()
        every += changes(file, path.read_text(encoding="utf-8"))
    chosen = random.Random(f"{room} {seed}").sample(range(len(every)), min(size, len(every)))
    return [every[i] for i in sorted(chosen)]


def tests_of(room: str) -> list[str]:
    """Return a room's tests: its files, and the cases of the vectors."""
    own = (f"test_{room}.py", *MORE_TESTS.get(room, ()))
    return [*(f"tests/{name}" for name in own), VECTORS]


class Times:
    """A plugin of pytest that notes how long each test took, and lets none live on caches."""

    def __init__(self, rooms: Sequence[str]) -> None:
        self.seconds: dict[str, float] = {}
        self.rooms = rooms

    def pytest_runtest_setup(self) -> None:
        """Forget what earlier tests let the rooms keep, or only they would reach its lines."""
        for name, module in list(sys.modules.items()):
            if name.startswith(tuple(f"minibit.{room}" for room in self.rooms)):
                for thing in list(vars(module).values()):
                    getattr(thing, "cache_clear", int)()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Add the time of a test's setup, call and teardown."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


class Cases:
    """A plugin of pytest that keeps of the vectors those that call some rooms."""

    def __init__(self, rooms: Sequence[str]) -> None:
        files = (file for room in rooms for file in (room, *FILES.get(room, ())))
        self.starts = tuple(f"{VECTORS}[{file}/" for file in files)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave out the others."""
        items[:] = [
            item
            for item in items
            if not item.nodeid.startswith(VECTORS) or item.nodeid.startswith(self.starts)
        ]


class Chosen:
    """A plugin of pytest that keeps some tests, in their order."""

    def __init__(self, tests: list[str]) -> None:
        self.place = {test: number for number, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep and sort."""
        items[:] = [item for item in items if item.nodeid in self.place]
        items.sort(key=lambda item: self.place[item.nodeid])


class RoomTests:
    """The tests of rooms, with JIT or without: which of them reach a line, and what they notice.

    A context manager: a process in which changes are tried waits inside it.
    """

    def __init__(self, rooms: Sequence[str], folder: Path, jit: bool) -> None:
        times, data = folder / f"{jit}.json", folder / f"{jit}.coverage"
        self._environment = environment(jit)
        command = [sys.executable, "-P", __file__, "measure", str(times), str(data), *rooms]
        done = subprocess.run(
            command, cwd=ROOT, env=self._environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{done.stdout}{done.stderr}\nthe tests must pass unbroken")
        self.seconds = json.loads(times.read_text())
        self._reach = lines_reached(data)

    def __enter__(self) -> RoomTests:
        """Start the process that is forked."""
        self._server = subprocess.Popen(
            [sys.executable, "-P", __file__, "serve"],
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
        """List a room's tests that run a line: all of them if it runs at import.

        The quickest come first, and those of the vectors last.
        """
        reached = self._reach.get((change.file, change.line), set())
        own = tuple(tests_of(Path(change.file).parts[1].removesuffix(".py")))
        names = [
            name for name in (self.seconds if "" in reached else reached) if name.startswith(own)
        ]
        return sorted(names, key=lambda name: (VECTORS in name, self.seconds.get(name, 0.0)))

    def notice(self, change: Change) -> bool:
        """Try a change: whether a test fails, or the tests do not end in time."""
        tests, new = self.reach(change), change.apply()
        of_vectors = [name for name in tests if VECTORS in name]
        parts = tests[: len(tests) - len(of_vectors)], of_vectors
        return any(self._ask(change.file, new, names) for names in parts if names)

    def _ask(self, file: str, text: str, tests: list[str]) -> bool:
        """Let a fork run tests with another text of a file: whether one fails."""
        limit = 60 + 5 * sum(self.seconds.get(test, 0.0) for test in tests)
        task = {"file": file, "text": text, "tests": tests, "limit": limit}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(task), file=self._server.stdin, flush=True)
        noticed: bool = json.loads(self._server.stdout.readline())
        return noticed


def lines_reached(data: Path) -> dict[tuple[str, int], set[str]]:
    """Read which tests run each line of a file; a line that runs at import has a test ``""``."""
    reached: dict[tuple[str, int], set[str]] = {}
    with sqlite3.connect(data) as database:
        rows = database.execute(
            "select distinct file.path, context.context, arc.tono from arc "
            "join file on file.id = arc.file_id "
            "join context on context.id = arc.context_id where arc.tono > 0"
        )
        for path, context, line in rows:
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


def measure(times: str, data: str, *rooms: str) -> int:
    """Run the tests of rooms under coverage, test by test; write their times and lines reached."""
    import pytest

    os.environ["COVERAGE_FILE"] = data
    plugin = Times(rooms)
    ours = "no:minibit.conformance.pytest_plugin"  # or the rooms are imported before lines count
    quiet = ["-q", "-p", "no:cacheprovider", "-p", ours, "--cov-report="]
    files = dict.fromkeys(name for room in rooms for name in tests_of(room))
    targets = [f"--cov=minibit.{room}" for room in rooms]
    status = pytest.main(
        [*quiet, *targets, "--cov-branch", "--cov-context=test", *files],
        plugins=[plugin, Cases(rooms)],
    )
    Path(times).write_text(json.dumps(plugin.seconds))
    return int(status)


def serve() -> int:
    """Try each change that a line of standard input holds, in a fork; print how it ended."""
    import hypothesis.extra.numpy  # noqa: F401, what every test loads
    import pytest

    loaded = "ignore::pytest.PytestAssertRewriteWarning"  # Hypothesis is, before its plugin
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-W", loaded]
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
            names = task["tests"]
            files = dict.fromkeys(
                VECTORS if VECTORS in name else name.partition("::")[0] for name in names
            )
            os._exit(pytest.main([*arguments, *files], plugins=[Chosen(names)]))
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


def arguments() -> dict[str, str]:
    """Read why survivors may survive: ``NAME  # reason``, a line each."""
    lines = (ROOT / ".ci" / "survivors.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.rpartition("  # ") for line in lines if line.strip() and line[0] != "#")
    return {name.strip(): reason for name, _, reason in pairs}


def unnoticed(rooms: Mapping[str, list[Change]], jit: bool) -> dict[str, list[Change]]:
    """Try changes of rooms; return those that no test notices."""
    out: dict[str, list[Change]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as folder,
        RoomTests([*rooms], Path(folder), jit) as tests,
    ):
        first = next(iter(rooms.values()))[0]
        nothing = replace(first, start=0, end=0, new="")
        if tests.notice(nothing):
            raise SystemExit("the tests fail in a fork with nothing changed")
        for room, chosen in rooms.items():
            begin = time.perf_counter()
            out[room] = [change for change in chosen if not tests.notice(change)]
            seconds, how = time.perf_counter() - begin, "with" if jit else "without"
            noticed = len(chosen) - len(out[room])
            words = f"{noticed} of {len(chosen)} changes noticed {how} JIT; {seconds:.0f} s"
            print(f"{room}: {words}", flush=True)
    return out


def main(rooms: Sequence[str], size: int, seed: int) -> int:
    """Try rooms, and print the share that is killed; 0 if no change survived."""
    reasons, drawn = arguments(), {room: sample_of(room, size, seed) for room in rooms}
    left = {room: some for room, some in unnoticed(drawn, jit=False).items() if some}
    left = unnoticed(left, jit=True) if left else left
    totals: Counter[str] = Counter()
    for room, chosen in drawn.items():
        names = [change.name() for change in left.get(room, [])]
        for name in names:
            print("argued  " if name in reasons else "survived", name)
        argued = sum(name in reasons for name in names)
        counts = {"killed": len(chosen) - len(names), "argued": argued}
        counts["survived"] = len(names) - argued
        print(f"{room}: {', '.join(f'{number} {result}' for result, number in counts.items())}")
        totals.update(counts)
    killed, argued, survived = (totals[key] for key in ("killed", "argued", "survived"))
    share = killed / max(1, killed + survived)
    print(f"{killed} killed, {argued} argued, {survived} survived: {share:.1%} without the argued")
    return int(survived > 0)


if __name__ == "__main__":  # a process of `RoomTests`
    sys.exit({"measure": measure, "serve": serve}[sys.argv[1]](*sys.argv[2:]))
