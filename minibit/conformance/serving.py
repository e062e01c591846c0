"""A Python module as a port: ``python -m minibit.conformance.serving MODULE``.

So that a module is judged as any other port is: in a process of its own, which may hang or die.
The module's own prints go to standard error; standard output has the answers alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

from minibit.conformance.cases import Case
from minibit.conformance.running import answer_of

__all__ = ["load_module", "main"]


def load_module(name: str) -> ModuleType:
    """Import a module by its dotted name, or by the path of its file.

    Raises
    ------
    ModuleNotFoundError
        If there is none; whatever the module itself raises.
    """
    path = Path(name)
    if path.suffix != ".py":
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"no file {name}", name=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def main(arguments: list[str]) -> int:
    """Answer the cases on standard input with what a module offers."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        module = load_module(arguments[0])
        for line in sys.stdin:
            case = Case(**json.loads(line), comment="", flags=(), mutations=())
            answer = {"id": case.id, **answer_of(case, module)}
            print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
