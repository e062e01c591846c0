"""The owner's addresses, from ``[project.urls]`` of ``pyproject.toml`` and from nowhere else.

``Repository`` becomes the link at the top of every page and of every test, ``Documentation`` the
address of the site. Placeholders (any address at example.org) are left out, so that no page leads
nowhere. MkDocs calls the ``on_*`` functions.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]


def addresses(project: Path = ROOT / "pyproject.toml") -> dict[str, str]:
    """Return the addresses that are filled in, by name."""
    urls = tomllib.loads(project.read_text(encoding="utf-8"))["project"].get("urls", {})
    return {
        name: url.rstrip("/")
        for name, url in urls.items()
        if not (urlsplit(url).hostname or "").endswith("example.org")
    }


def on_config(config: Any) -> Any:
    """Set the addresses (MkDocs calls this first)."""
    urls = addresses()
    if "Documentation" in urls:
        config.site_url = f"{urls['Documentation']}/"
    if "Repository" in urls:
        config.repo_url, config.repo_name = urls["Repository"], "Source"
        config.extra["source"] = f"{urls['Repository']}/blob/main"
    return config


def on_post_page(output: str, **_: Any) -> str:
    """Keep the theme from asking the repository's host for stars and forks."""
    return output.replace(' data-md-component="source"', "")
