"""The shape of the house: one idea, four files, one name; each room builds on earlier ones."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import minibit

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minibit"

# The order of the rooms, by chapter; beside each, the other files that its idea is cut into.
ROOMS: dict[str, tuple[int, tuple[str, ...]]] = {
    "dual": (1, ("trees", "tangents", "rules", "rules_sums", "rules_shape", "dual_array")),
    "ternary": (2, ("packings", "layouts", "ggml_blocks", "panels", "hf_panels")),
    "matmul": (3, ("head",)),
    "absmean": (4, ()),
    "layers": (5, ()),
    "noise": (6, ("philox", "density", "subsets")),
    "noise_step": (
        7,
        (
            *("moves", "choices", "perceptron", "unit_reference", "unit_states", "unit_tangents"),
            "alignments",
        ),
    ),
    "steps": (8, ("logfile", "logcodes", "replay", "history", "netmoves", "edits")),
    "tape": (9, ("transposes", "recorder", "optimizers")),
    "transformer": (
        10,
        (
            *("costs", "bitnet_config", "projections", "attention", "blocks"),
            *("kv_cache", "sampling", "packed_step", "decoding"),
        ),
    ),
    "checkpoint": (
        11,
        (
            "damage",
            "safetensors_file",
            "hf_config",
            "hf_shards",
            "hf_linear",
            "hf_reader",
            "hf_writer",
            "gguf_container",
            "gguf_metadata",
            "gguf_tensors",
            "gguf_tokenizer",
            "gguf_writer",
            "gguf_file",
        ),
    ),
    "topk": (12, ("topk_choice", "scaling", "sparse_matmul")),
    "nf4": (13, ("codebooks", "double_quant", "nf4_tensor", "bitsandbytes_layout")),
    "lora": (14, ("frozen", "adapter_file", "paged", "accounting")),
    "cluster": (15, ()),
}
SUPPORT = (
    *("training", "presets", "resampling", "training_log"),
    *("language", "datasets", "counting", "plots", "cli", "bench", "experiments"),
    "conformance",
)
ROW = {name: row for room, (row, parts) in ROOMS.items() for name in (room, *parts)}
FOLDERS = {path.parent for path in PACKAGE.glob("*/__init__.py")} - {PACKAGE / "kernels"}
SOURCES = {  # the files of each module; a support room may be a folder
    **{path.stem: [path] for path in PACKAGE.glob("[a-z]*.py")},
    **{folder.name: sorted(folder.glob("*.py")) for folder in FOLDERS},
}
MODULES = sorted(SOURCES)
BUILT = [room for room in ROOMS if room in MODULES]
HEAVY = ("numba", "llvmlite", "matplotlib", "rich", "safetensors", "scipy", "typer")


def imported(paths: list[Path]) -> set[str]:
    """Every module that files import, inside functions too; ``from a import b``: a and a.b."""
    found: set[str] = set()
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{paths[0]}: imports are absolute"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(names: set[str]) -> set[str]:
    """The rooms of minibit among imported names: ``minibit.noise.words`` lies in ``noise``."""
    parts = [name.split(".") for name in names if name.startswith("minibit.")]
    return {part[1] for part in parts} & {*MODULES, "kernels", *ROW, *SUPPORT}


def defined_in(room: str) -> dict[str, object]:
    """The functions and classes that a room lists, those of its other files included."""
    module = importlib.import_module(f"minibit.{room}")
    things = {name: getattr(module, name) for name in module.__all__}
    return {
        name: thing
        for name, thing in things.items()
        if inspect.isroutine(thing) or inspect.isclass(thing)
    }


@pytest.mark.parametrize("room", BUILT)
def test_a_module_has_its_chapter_test_and_reference_page(room):
    """One idea, four files, one name."""
    number, _ = ROOMS[room]
    for path in (
        f"chapters/ch{number:02d}_{room}.py",
        f"tests/test_{room}.py",
        f"docs/reference/{room}.md",
    ):
        assert (ROOT / path).is_file(), path


def test_no_chapter_stands_without_its_module():
    """The other direction: a chapter's number and name are those of a room that is built."""
    chapters = {path.stem for path in (ROOT / "chapters").glob("*.py")}
    assert chapters <= {f"ch{ROOMS[room][0]:02d}_{room}" for room in BUILT}


def test_every_reference_page_shows_the_module_of_its_name():
    """``docs/reference/NAME.md`` has a heading and ``::: minibit.NAME``."""
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert page.stem in MODULES, page.name
        assert text.startswith("# "), page.name
        assert f"\n::: minibit.{page.stem}\n" in text, page.name


def test_every_module_has_a_place_in_the_order():
    """A new file is put into a room, or among the support rooms, here."""
    assert set(MODULES) <= {*ROW, *SUPPORT}


@pytest.mark.parametrize("name", [name for name in MODULES if name in ROW])
def test_a_room_imports_only_rooms_before_it(name):
    """Maths imports its own row, earlier rows and kernels; never a support room."""
    for other in rooms_of(imported(SOURCES[name])) - {"kernels"}:
        assert other in ROW, f"{name} imports {other}, which is no room of mathematics"
        assert ROW[other] <= ROW[name], (
            f"{name} (row {ROW[name]}) imports {other} (row {ROW[other]})"
        )


@pytest.mark.parametrize("path", sorted((PACKAGE / "kernels").glob("*.py")), ids=lambda p: p.stem)
def test_a_kernel_imports_no_room(path):
    """The engine room stands alone: NumPy, Numba and other kernels."""
    assert rooms_of(imported([path])) <= {"kernels"}


@pytest.mark.parametrize("what", ["import minibit", "from minibit import *"])
def test_importing_minibit_imports_nothing_heavy(what):
    """Neither the package nor all its rooms cost more than NumPy: no compiler, plots, commands."""
    code = f"{what}\nimport sys; print(sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_package_offers_what_its_rooms_list():
    """``minibit.__all__`` joins the rooms' lists; what two rooms list is one thing."""
    offered: dict[str, object] = {"__version__": minibit.__version__}
    for room in (*BUILT, "datasets", "training"):
        module = importlib.import_module(f"minibit.{room}")
        for name in module.__all__:
            thing = getattr(module, name)
            assert offered.setdefault(name, thing) is thing, f"two rooms list {name}"
            assert getattr(minibit, name) is thing, f"minibit.{name} is not that of {room}"
            assert name not in ROW, f"{name} would hide the module of that name"
    assert set(offered) <= set(minibit.__all__)
    assert len(minibit.__all__) == len(set(minibit.__all__))


@pytest.mark.parametrize("room", BUILT)
def test_a_public_docstring_is_a_contract(room):
    """A first sentence; a function's also tells of every parameter and shows an example."""
    for name, thing in defined_in(room).items():
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
            found = private.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path.relative_to(ROOT)}: {found[0]}"
