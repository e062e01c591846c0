"""The parts that every command shares: output, failures, lists of numbers."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from typer.core import TyperCommand

from minibit import plots
from minibit.base import check_file, install, printable
from minibit.datasets import Dataset, load_npz
from minibit.kernels import compiled, requested
from minibit.steps import MAGIC

OUT = "model.steps"  # the log of `minibit train`, if no other is named
Json = Annotated[bool, "--json", "Print one JSON object as the last line of standard output."]
Force = Annotated[bool, "Overwrite what is there."]
Plot = Annotated[Path | None, "Draw it into this .svg, .png or .pdf file."]

_EXTRAS = {"matplotlib": "app", "tokenizers": "app", "dask": "cluster", "distributed": "cluster"}


class BadUse(Exception):
    """A command was asked for something that makes no sense: exit status 2."""


@contextmanager
def bad_use(prefix: str = "") -> Iterator[None]:
    """Make a BadUse of an error about what an option names."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise BadUse(f"{prefix}{error}") from error


class Output(logging.Handler):
    """Where a command's words go; what strangers wrote among them steers no terminal.

    People read standard output; with ``--json`` that holds the object alone, and the words go to
    standard error. A command shows the package's log messages as warnings.
    """

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json
        self.status = 0  # of a command that ends without an error
        self._console = Console(stderr=as_json, highlight=False, markup=False, soft_wrap=True)
        self._errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def write(self, text: str) -> None:
        """Show text as it grows, at once; control characters are shown, not obeyed."""
        stream = sys.stderr if self.as_json else sys.stdout
        coding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(printable(text, keep="\n\t").encode(coding, "replace").decode(coding))
        stream.flush()

    def say(self, text: str = "", style: str = "") -> None:
        """Print a line; long ones are left whole, so that they can be copied."""
        self._console.print(printable(text, keep="\n"), style=style or None)

    def warn(self, text: str) -> None:
        """Print a warning to standard error."""
        self._errors.print(f"warning: {printable(text)}", style="yellow")

    def note(self, text: str) -> None:
        """Print a line to standard error, beside the result."""
        self._errors.print(printable(text))

    def emit(self, record: logging.LogRecord) -> None:
        """Print what the package logged as a warning."""
        self.warn(record.getMessage())

    def facts(self, pairs: Mapping[str, object]) -> None:
        """Print names and values in two columns."""
        width = max(map(len, pairs))
        for name, value in pairs.items():
            self.say(f"{name:<{width}}  {printable(value)}")

    def table(self, head: list[str], rows: list[list[str]]) -> None:
        """Print rows under a head: the first column to the left, the others to the right."""
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for number, row in enumerate([head, *rows]):
            cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
            self.say("  ".join(cells).rstrip(), style="bold" if number == 0 else "")

    def result(self, fields: Mapping[str, Any]) -> None:
        """End with the JSON object, where it was asked for."""
        if self.as_json:
            print(json.dumps(dict(fields), default=_plain), flush=True)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turn errors inside the block into one sentence and an exit status."""
        logger = logging.getLogger("minibit")
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        try:
            with bad_use():
                requested()
            yield
        except (typer.Exit, BrokenPipeError):  # the reader closed the pipe
            raise
        except BadUse as error:
            raise self._failed(str(error), 2) from error
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            message = f"this needs {error.name}: {install(extra)}"
            raise self._failed(message, 2) from error
        except ImportError as error:  # which says itself what to install
            raise self._failed(str(error), 2) from error
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            raise self._failed(str(error) or type(error).__name__, 1) from error
        finally:
            logger.removeHandler(self)

    def _failed(self, message: str, status: int) -> typer.Exit:
        """Say what went wrong, and return the exit to raise."""
        self._errors.print(printable(f"error: {message}", keep="\n"), style="red")
        with suppress(OSError):  # standard output may be the fault
            self.result({"error": message, "exit_status": status})
        return typer.Exit(status)


def command(work: Callable[..., Mapping[str, Any]]) -> Callable[..., None]:
    """Make a command of ``work(out, ...)``: it gets ``--json``, and it ends as all of them do.

    What the function returns is the JSON object. Errors become one sentence and an exit status;
    without one the status is `out.status`, which the function may set. An option may be written
    ``Annotated[type, "--name", "help"]``, by default with the name of its parameter, an argument
    ``Annotated[type, "NAME", "help"]``.
    """
    signature = inspect.signature(work, eval_str=True)
    _, *parameters = signature.parameters.values()
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters.append(inspect.Parameter("as_json", kind, default=False, annotation=Json))
    parameters = [_with_option(parameter) for parameter in parameters]

    @functools.wraps(work)
    def run(as_json: bool, **options: Any) -> None:
        out = Output(as_json)
        with out.failures():
            out.result(work(out, **options))
            if out.status:
                raise typer.Exit(out.status)

    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(run)["__signature__"] = signature.replace(parameters=parameters, return_annotation=None)
    return run


def _with_option(parameter: inspect.Parameter) -> inspect.Parameter:
    """Make typer's option of one that is written in words."""
    kind, *words = get_args(parameter.annotation)
    if not isinstance(words[0], str):
        return parameter
    name = f"--{parameter.name.replace('_', '-')}" if len(words) == 1 else words[0]
    if name.startswith("--"):
        option = typer.Option(name, help=words[-1])
    else:
        option = typer.Argument(metavar=name, help=words[-1])
    return parameter.replace(annotation=Annotated[kind, option])


class ManyValues(TyperCommand):
    """A command whose list options take several values at once: ``--seeds 0 1 2``.

    Only words that look like whole numbers, ranges or lists of them are taken, so that a file name
    after the list stays what it is.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its values, then parse as usual."""
        names = {
            name
            for param in self.params
            if getattr(param, "multiple", False)
            for name in param.opts
        }
        spread: list[str] = []
        option = ""
        for before, word in pairwise(["", *args]):
            if word in names:
                option = word
            elif not re.fullmatch(r"\d[\d,-]*", word):
                option = ""
            elif option and before != option:
                spread.append(option)
            spread.append(word)
        return super().parse_args(ctx, spread)


def check_choice(option: str, value: str | None, known: Iterable[str]) -> Any:
    """Return a value if the option knows it; None, which is no option, is let through."""
    if value is not None and value not in known:
        raise BadUse(f"{option} must be one of {', '.join(known)}, got {value!r}")
    return value


def whole_numbers(words: list[str], option: str) -> list[int]:
    """Read ``["3", "5,8", "10-12"]`` as 3, 5, 8, 10, 11, 12, in this order."""
    numbers: list[int] = []
    for part in ",".join(words).split(","):
        match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", part.strip())
        if not match:
            raise BadUse(f"{option} takes whole numbers and ranges like 3 or 10-20, got {part!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first > 10_000_000:
            raise BadUse(f"{option}: {part} is no range")
        numbers += range(first, last + 1)
    return numbers


def check_new_file(path: Path, option: str, *, force: bool | None = None) -> None:
    """Check that a file can be made: its folder is there, and it would overwrite nothing.

    With `force` it may overwrite any file but a log; None is of a command without that option.
    """
    if path.is_dir():
        raise BadUse(f"{option} {path} is a folder")
    if force and is_log(path):
        raise BadUse(f"{path} is a minibit log; nothing was changed. Choose another {option}")
    if path.exists() and not force:
        or_force = "" if force is None else ", or add --force"
        raise BadUse(f"{path} exists; nothing was changed. Choose another {option}{or_force}")
    if not path.absolute().parent.is_dir():
        raise BadUse(f"{option} {path}: there is no folder {path.absolute().parent}")


def default_logs() -> list[Path]:
    """List the names that `minibit train` gives logs here, as far as they are taken, and the next.

    They are model.steps, model-2.steps, and so on.
    """
    names = [Path(OUT)]
    while names[-1].exists():
        names.append(Path(f"model-{len(names) + 1}.steps"))
    return names


def is_log(path: Path) -> bool:
    """Whether a file begins as a log does."""
    return path.is_file() and starts(path, MAGIC)


def starts(path: Path, magic: bytes) -> bool:
    """Whether a file begins with these bytes; a pipe, which is no file, is an error."""
    check_file(path)
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def check_plot(path: Path | None) -> None:
    """Check that a plot, if one is asked for, can be drawn; one that exists is drawn anew."""
    if path is None:
        return
    check_new_file(path, "--plot", force=True)
    with bad_use("--plot: "):
        plots.require(path)


def own_data(path: Path) -> Dataset:
    """Load the data set of a ``--data`` option."""
    with bad_use("--data: "):
        return load_npz(path)


def this_command() -> str:
    """Return the command that this process was started with, as one would type it again."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return f"{shlex.quote(Path(sys.executable).name)} -m minibit"
    on_path = shutil.which(started.name)
    if on_path and started.exists() and started.samefile(on_path):  # argv[0] may be relative
        return started.name
    return shlex.quote(str(started))


@contextmanager
def compile_clock() -> Iterator[Callable[[], float]]:
    """Time what Numba compiles inside the block; kernels from its cache cost nothing here.

    Yields a function that returns the seconds so far.
    """
    if not compiled():
        yield lambda: 0.0
        return
    from numba.core import event

    with event.install_recorder("numba:compile") as recorder:

        def seconds() -> float:
            total, depth, begin = 0.0, 0, 0.0
            for when, compilation in recorder.buffer:  # compilations nest: only the outermost count
                if depth == 0:
                    begin = when
                depth += 1 if compilation.is_start else -1
                if depth == 0:
                    total += when - begin
            return total

        yield seconds


def kilobytes(count: int) -> str:
    """Write a number of bytes for people: 1 KB = 1000 bytes."""
    return f"{count / 1000:.1f} KB" if count >= 1000 else f"{count} bytes"


def percent(share: float) -> str:
    """Write a share for people."""
    return f"{100 * share:.2f}%"


def _plain(value: Any) -> Any:
    """Give a NumPy number or a path as JSON."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
