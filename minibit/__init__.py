"""minibit: 1.58-bit deep learning in plain NumPy.

``import minibit as mb`` offers what every room lists in its ``__all__``, and the data and training
loops. A room is imported when one of its names is first used, so that the import itself costs
nothing; Numba, plots and the command line wait until they are needed, too.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minibit.absmean import *
    from minibit.checkpoint import *
    from minibit.datasets import *
    from minibit.dual import *
    from minibit.layers import *
    from minibit.lora import *
    from minibit.matmul import *
    from minibit.nf4 import *
    from minibit.noise import *
    from minibit.noise_step import *
    from minibit.steps import *
    from minibit.tape import *
    from minibit.ternary import *
    from minibit.topk import *
    from minibit.training import *
    from minibit.transformer import *

__version__ = "0.1.0"

_ROOMS = (
    "dual",
    "ternary",
    "matmul",
    "absmean",
    "layers",
    "noise",
    "noise_step",
    "steps",
    "tape",
    "transformer",
    "checkpoint",
    "topk",
    "nf4",
    "lora",
    "datasets",
    "training",
)


def __getattr__(name: str) -> Any:
    """Find a name in the rooms, which are imported on the way (PEP 562)."""
    if find_spec(f"minibit.{name}") is not None:  # a room, or another module
        return import_module(f"minibit.{name}")
    if name == "__all__":
        rooms = [import_module(f"minibit.{room}") for room in _ROOMS]
        return ["__version__", *(public for room in rooms for public in room.__all__)]
    if not name.startswith("_"):
        for room in _ROOMS:
            module = import_module(f"minibit.{room}")
            if name in module.__all__:
                value = globals()[name] = getattr(module, name)
                return value
    raise AttributeError(f"module 'minibit' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names and the rooms."""
    return sorted({*globals(), *__getattr__("__all__"), *_ROOMS})
