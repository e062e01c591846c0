"""The table of docs/ports.md: what of each port conforms, found when the site is made.

A port whose tool is missing has a row that says so.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from minibit.conformance.conforming import examine
from minibit.conformance.ports import Port

PORTS = Path(__file__).resolve().parents[1] / "ports"
MARK = "<!-- conformance -->"
VERDICTS = ("conforms", "deviates", "not offered", "not run")
NAMES = {"js": "JavaScript", "rust": "Rust", "torch": "PyTorch", "jax": "JAX"}


def command(port: str, folder: Path) -> list[str]:
    """Return what starts a port; a RuntimeError names the tool that is missing."""
    if port in ("torch", "jax"):
        if importlib.util.find_spec(port) is None:
            raise RuntimeError(port)
        return [sys.executable, str(PORTS / port / "adapter.py")]
    tool = {"js": "node", "rust": "rustc"}[port]
    if shutil.which(tool) is None:
        raise RuntimeError(tool)
    if port == "js":
        return [tool, str(PORTS / "js" / "adapter.mjs")]
    built = str(folder / "port")
    source = str(PORTS / "rust" / "adapter.rs")
    subprocess.run([tool, "-O", "--edition", "2021", source, "-o", built], check=True)
    return [built]


@cache
def row(port: str) -> str:
    """Run all vectors against one port, and write its row."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            started = command(port, Path(folder))
        except RuntimeError as missing:
            return f"| {NAMES[port]} | `{missing}` is not installed here | | | |"
        with Port(started, seconds=60.0) as asked:
            counts = examine(asked.answer).counts()
    return " | ".join([f"| {NAMES[port]}", *(str(counts[verdict]) for verdict in VERDICTS)]) + " |"


def table() -> str:
    """Run all ports, and write the table."""
    head = f"| port | {' | '.join(VERDICTS)} |\n|---|---|---|---|---|"
    return "\n".join([head, *map(row, NAMES)])


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table in its place (MkDocs calls this for every page)."""
    return markdown.replace(MARK, table()) if MARK in markdown else markdown
