"""Recorded results: what long experiments came to, as the chapters draw it.

They lie beside the chapters, which an installation carries in the package and a checkout beside it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["chapter_number", "chapters_folder", "load_results"]


def chapters_folder() -> Path:
    """Return the folder of the chapters: that of the installed package, else of its checkout.

    Raises
    ------
    RuntimeError
        If there is none.

    Examples
    --------
    >>> (chapters_folder() / "ch01_dual.py").is_file()
    True
    """
    package = Path(__file__).parent
    for folder in (package / "_chapters", package.parent / "chapters"):
        if any(folder.glob("ch*.py")):
            return folder
    raise RuntimeError("this installation carries no chapters: reinstall minibit")


def chapter_number(stem: str) -> str:
    """Return the number of a chapter from the name of its file; a later part has a letter, too.

    Raises
    ------
    ValueError
        If `stem` is not ``chNN_name`` or ``chNNx_name``, x a letter.

    Examples
    --------
    >>> chapter_number("ch07_noise_step"), chapter_number("ch07b_unit_tangents")
    ('7', '7b')
    """
    if not (match := re.fullmatch(r"ch(\d\d)([a-z]?)_\w+", stem)):
        raise ValueError(f"stem must be that of a chapter, ch07_noise_step, got {stem!r}")
    return f"{int(match[1])}{match[2]}"


def load_results(name: str) -> dict[str, Any]:
    """Return what an experiment came to, as it was recorded.

    Parameters
    ----------
    name : str
        That of ``minibit experiment NAME``, which measures it again.

    Returns
    -------
    dict
        ``experiment``, ``command``, ``seeds``, ``environment``, and ``rows``, a list of dicts.

    Raises
    ------
    ValueError
        If nothing is recorded under that name; the message lists what is.

    Examples
    --------
    >>> load_results("train")["command"]
    'minibit experiment train --seeds 0 1 2'
    """
    files = {path.stem: path for path in (chapters_folder() / "results").glob("*.json")}
    if name not in files:
        raise ValueError(f"name must be one of {', '.join(sorted(files))}, got {name!r}")
    results: dict[str, Any] = json.loads(files[name].read_text(encoding="utf-8"))
    return results
