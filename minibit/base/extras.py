"""What installs an extra, such as ``[app]``, where this package lies."""

from __future__ import annotations

from pathlib import Path

__all__ = ["install"]


def install(extra: str) -> str:
    """Return the command that installs an extra: in a checkout, or beside an installed wheel."""
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").is_file():
        return f"pip install -e '.[{extra}]' in {checkout}"
    return f"pip install 'minibit[{extra}]'"  # pip finds minibit installed, and adds the extra
