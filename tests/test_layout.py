"""The shape of the house: rooms in one order, each with its chapter, tests and reference page."""

import ast
import fnmatch
import importlib
import inspect
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import minibit
from minibit import ORDER, SUPPORT

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minibit"
FOUNDATIONS = ("base", "kernels")  # what all rooms may import, and what imports none
FILES = {  # dotted name of every module below minibit -> its file
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path.parent != PACKAGE or not path.stem.startswith("__")
}
ROOMS = {name.partition(".")[0] for name in FILES}
HEAVY = ("numba", "llvmlite", "matplotlib", "rich", "safetensors", "scipy", "typer")
OFFERED = (*ORDER, "datasets", "training")  # the rooms whose names `minibit` offers
LINES = {  # of Python that a room may have, docstrings too: a new idea brings its budget along
    "base": 940,
    "kernels": 4_420,
    "dual": 2_064,
    "ternary": 1_380,
    "matmul": 632,
    "absmean": 285,
    "layers": 350,
    "noise": 700,
    "noise_step": 1_920,
    "steps": 2_470,
    "tape": 980,
    "transformer": 1_940,
    "checkpoint": 4_620,
    "topk": 850,
    "nf4": 1_285,
    "lora": 1_300,
    "cluster": 1_870,
    "datasets": 400,
    "training": 852,
    "language": 790,
    "counting": 300,
    "plots": 309,
    "diagrams": 130,
    "results": 100,
    "experiments": 1_520,
    "bench": 1_676,
    "cli": 3_905,
    "conformance": 10_530,
    "": 200,  # the face of the package
}
ALL_LINES = 49_270  # and each idea that is added brings its own


def imports(name: str) -> Iterator[tuple[str, str]]:
    """Every ``(module, name)`` that a file imports from minibit, inside functions too."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names if alias.name.startswith("minibit.")]
            yield from ((module.removeprefix("minibit."), "") for module in modules)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            if node.module == "minibit":
                yield from ((alias.name, "") for alias in node.names if alias.name in ROOMS)
            elif (node.module or "").startswith("minibit."):
                module = str(node.module).removeprefix("minibit.")
                for alias in node.names:  # `from minibit.noise import philox` imports a file
                    inner = f"{module}.{alias.name}"
                    yield (inner, "") if inner in FILES else (module, alias.name)


def room_of(module: str) -> str:
    """The room that a module lies in."""
    return module.partition(".")[0]


def test_every_folder_and_file_is_a_room_of_the_order():
    """`ORDER` and `SUPPORT` name all rooms there are, and no other."""
    assert {*ORDER, *SUPPORT, *FOUNDATIONS} & ROOMS | {*ORDER, *SUPPORT} == ROOMS


@pytest.mark.parametrize("room", ORDER)
def test_a_room_has_its_chapter_test_and_reference_page(room):
    """One idea, four places, one name."""
    number = ORDER.index(room) + 1
    assert list((ROOT / "chapters").glob(f"ch{number:02d}*_{room}.py"))
    assert (ROOT / f"tests/test_{room}.py").is_file() or (ROOT / f"tests/{room}").is_dir()
    assert (ROOT / f"docs/reference/{room}.md").is_file()


def test_no_chapter_stands_without_its_room():
    """Its number and name are those of a room; chapter 0, the way in, is of none.

    A later part of a chapter, b, c and so on, has the room's number and the name of a file or a
    folder in it; `neighbours` compares the whole room with what others do.
    """
    parts: dict[str, list[str]] = {}
    for path in sorted((ROOT / "chapters").glob("ch*.py")):
        number, part, name = re.fullmatch(r"ch(\d\d)([b-z]?)_(\w+)", path.stem).groups()
        parts.setdefault(number, []).append(part)
        if part and name != "neighbours":
            assert f"{ORDER[int(number) - 1]}.{name}" in FILES, path.name
        elif not part and number != "00":
            assert ORDER[int(number) - 1] == name, path.name
    assert [*parts] == [f"{number:02}" for number in range(len(ORDER) + 1)]
    for number, letters in parts.items():
        assert "".join(letters) == "bcdefgh"[: len(letters) - 1], f"chapter {number}: {letters}"


def test_every_reference_page_shows_the_room_of_its_name():
    """``docs/reference/NAME.md`` has a heading and ``::: minibit.NAME``."""
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert page.stem in ROOMS, page.name
        assert text.startswith("# "), page.name
        assert f"\n::: minibit.{page.stem}\n" in text, page.name


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_room_imports_only_rooms_above_it_through_their_face(name):
    """`base` and `kernels` import no room; others import earlier rooms, and no file of theirs."""
    room, order = room_of(name), (*FOUNDATIONS, *ORDER)
    for module, imported in imports(name):
        other = room_of(module)
        if other == room:
            continue
        if room == "cluster" and other in ("training", "datasets"):
            continue  # a training run's steps, taken elsewhere: it is no mathematics of its own
        if room in order:
            assert other in order, f"{name} imports {other}, which is no room of mathematics"
            assert order.index(other) < order.index(room), f"{name} imports {other}, a later room"
        if room in FOUNDATIONS:
            assert other in FOUNDATIONS, f"{name} imports the room {other}"
        if other not in FOUNDATIONS and room not in ("bench", "experiments"):  # which measure files
            assert module == other, f"{name} imports the file {module} {imported}, not its room"


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_inside_a_room_imports_run_in_no_circle(room):
    """Imports inside functions, and those for types alone, count too."""
    graph = {
        name: {module for module, _ in imports(name) if room_of(module) == room} - {name}
        for name in FILES
        if room_of(name) == room
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_private_name_stays_in_its_file(name):
    """No file imports a ``_name`` of another one."""
    private = [f"{module}.{imported}" for module, imported in imports(name) if imported[:1] == "_"]
    assert not [entry for entry in private if "__version__" not in entry]


def test_no_file_of_a_room_hides_a_function_of_its_name():
    """``minibit.topk.choice`` is a file, so the room offers no function `choice`."""
    for room in OFFERED:
        files = {name.split(".")[1] for name in FILES if name.startswith(f"{room}.")}
        face = importlib.import_module(f"minibit.{room}")
        hidden = [name for name in files if not inspect.ismodule(getattr(face, name, face))]
        assert not hidden, f"minibit.{room}: {hidden}"


@pytest.mark.parametrize("import_line", ["import minibit", "from minibit import *"])
def test_importing_minibit_imports_nothing_heavy(import_line):
    """Neither the package nor all its rooms cost more than NumPy: no compiler, plots, commands."""
    code = f"{import_line}\nimport sys; print(sorted(set(sys.modules) & set({HEAVY!r})))"
    assert python(code) == "[]\n"


def test_a_name_imports_its_room_and_no_other():
    """`load_mnist` needs the data sets and what all rooms share."""
    code = "import minibit, sys; minibit.load_mnist; print(*sys.modules)"
    rooms = {name.split(".")[1] for name in python(code).split() if name.startswith("minibit.")}
    assert rooms <= {"datasets", "base"}


def test_a_file_imports_under_its_name_from_before_rooms_were_folders():
    """With a warning that says where it is; it is the same module, not a copy."""
    with pytest.warns(DeprecationWarning, match="logfile is minibit"):
        old = importlib.import_module("minibit.logfile")
    assert old is importlib.import_module("minibit.steps.file")
    for module in minibit._Moved.places.values():
        assert module in FILES, module
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        importlib.import_module("minibit.nowhere")


def python(code: str) -> str:
    """What a fresh Python prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_package_offers_what_its_rooms_list():
    """``minibit.__all__`` joins the rooms' lists; what two rooms list is one thing."""
    offered: dict[str, object] = {"__version__": minibit.__version__}
    for room in OFFERED:
        module = importlib.import_module(f"minibit.{room}")
        for name in module.__all__:
            thing = getattr(module, name)
            assert offered.setdefault(name, thing) is thing, f"two rooms list {name}"
            assert getattr(minibit, name) is thing, f"minibit.{name} is not that of {room}"
            assert name not in ROOMS, f"{name} would hide the room of that name"
    assert set(offered) == set(minibit.__all__)
    assert len(minibit.__all__) == len(set(minibit.__all__))


@pytest.mark.parametrize("room", ORDER)
def test_a_public_docstring_is_a_contract(room):
    """A first sentence; a function's also tells of every parameter and shows an example."""
    module = importlib.import_module(f"minibit.{room}")
    for name in module.__all__:
        thing = getattr(module, name)
        if not (inspect.isroutine(thing) or inspect.isclass(thing)):
            continue
        docstring = inspect.getdoc(thing) or ""
        where = f"minibit.{room}.{name}"
        assert re.match(r"[A-Z`].*?[.:]\n|[A-Z`].*\.$", docstring, re.DOTALL), (
            f"{where}: no sentence"
        )
        if not inspect.isroutine(thing):
            continue
        _, _, examples = docstring.partition("\nExamples\n--------\n")
        assert ">>> " in examples, f"{where} has no example under `Examples`"
        words = set(re.findall(r"\w+", docstring))
        missing = set(inspect.signature(thing).parameters) - words
        assert not missing, f"{where} says nothing of {sorted(missing)}"


def test_the_version_is_one():
    """Package metadata, citation and changelog name the same version."""
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {minibit.__version__}\n" in citation
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE)[1] == minibit.__version__
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert metadata["tool"]["hatch"]["version"]["path"] == "minibit/__init__.py"


def test_data_that_others_made_carries_its_notice():
    """Each file of others' data is named in a notice of ``LICENSES/``."""
    notices = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "LICENSES").iterdir())
    assert "minibit/data/mnist/" in notices
    for path in (PACKAGE / "data").rglob("*"):
        if path.is_file() and path.suffix != ".xz":
            assert path.relative_to(ROOT).as_posix() in notices
        elif path.is_file():
            assert path.stem in notices


def test_no_text_names_a_place_on_somebodys_machine():
    """Paths in code, chapters, tests and pages are relative, or the reader's own."""
    private = re.compile(r"(?<![\w.])/(?:home|root|work|Users|tmp)/\w")
    folders = (PACKAGE, ROOT / "chapters", ROOT / "docs", ROOT / "tests", ROOT / ".ci")
    paths = [path for folder in folders for path in folder.rglob("*")]
    for path in [*paths, *ROOT.glob("*.md"), *ROOT.glob("*.toml")]:
        if path.suffix in (".py", ".md", ".toml", ".json", ".yml", ".css"):
            match = private.search(path.read_text(encoding="utf-8"))
            assert match is None, f"{path.relative_to(ROOT)}: {match[0]}"


def test_every_folder_says_which_file_to_read_first():
    """A folder of Python files has a README, which names each file that the folder holds."""
    for folder in {path.parent for path in FILES.values()} - {PACKAGE}:
        readme = folder / "README.md" if folder.parent == PACKAGE else folder.parent / "README.md"
        text = readme.read_text(encoding="utf-8")
        if folder.name in ("bench", "experiments", "kernels"):
            continue  # one file per measurement or hot path: the README tells of the kind
        for path in folder.glob("[a-z]*.py"):
            assert f"`{path.name}`" in text or f"`{folder.name}/`" in text, path


def lines_of(room: str) -> int:
    """Lines of all Python files of a room, or of those that lie in no room."""
    outside = PACKAGE.glob("__*.py")
    paths = [path for name, path in FILES.items() if room_of(name) == room] if room else outside
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


@pytest.mark.parametrize("room", sorted({*ROOMS, ""}))
def test_line_budget_of_a_room(room):
    """What a room gains in one place it saves in another, or `LINES` says that it may grow."""
    assert room in LINES, f"LINES has no budget for {room}"
    assert lines_of(room) <= LINES[room], f"{room or 'minibit'} has outgrown its budget"


def test_line_budget_of_the_package():
    """All rooms have a budget, which is for rooms that exist, and all together have one."""
    assert LINES.keys() == {*ROOMS, ""}
    assert sum(map(lines_of, LINES)) <= ALL_LINES


def test_what_is_left_out_without_the_jit_is_there():
    """Each name of the list is that of a file, so that none is run again by a slip of the pen."""
    names = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}
    once = runpy.run_path(str(ROOT / "tests" / "conftest.py"))["ONCE"].split()
    assert not [name for name in once if not fnmatch.filter(names, name)]
    assert len(once) == len({*once})
