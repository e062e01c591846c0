"""The playground as one page that needs nothing else: ``python docs/hooks/playground.py OUT.html``.

The page's modules, its style, and the files that it shows are put into its index.html, the files
packed by gzip. So it opens from a server, from a folder (where browsers let no module
import another, and no worker a module) and without a network. Each module becomes a function that
returns what it exports; nothing else about it is changed, so the engine is the JavaScript port.

MkDocs calls `on_post_build`.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from minibit.datasets import load_mnist, load_text
from minibit.training import shipped_log

DOCS = Path(__file__).resolve().parents[1]
PORT = ("ports/js/minibit.mjs", "ports/js/training.mjs")
DIGITS = 500  # of the test images
EXPORT = re.compile(r"^export (?:const|class|function\*?) (\[[^\]]*\]|\w+)", re.MULTILINE)
IMPORT = re.compile(r'^import (\{[^}]*\}) from "[^"]*?(\w+\.mjs)";$', re.MULTILINE)


def linked(module: str) -> str:
    """Return a module as a statement that a script can have: it sets ``modules[NAME]``."""
    text = (DOCS / module).read_text(encoding="utf-8")
    names = [name for exported in EXPORT.findall(text) for name in re.findall(r"\w+", exported)]
    body = IMPORT.sub(r'const \1 = modules["\2"];', text)
    body = re.sub(r"^export ", "", body, flags=re.MULTILINE)
    assert not re.search(r"^(import|export)\b", body, re.MULTILINE), module
    own, exported = Path(module).name, ", ".join(names)
    return f'modules["{own}"] = (() => {{\n{body}\nreturn {{ {exported} }};\n}})();\n'


BEGIN = """globalThis.playground = {
  worker: URL.createObjectURL(new Blob([port.textContent, worker.textContent])),
  digest: DIGEST,
};"""


def files() -> dict[str, bytes]:
    """Return what the page shows: a log, test images with their labels, the language model."""
    data = load_mnist()
    model = resources.files("minibit").joinpath("data", "language_model")
    return {
        "small.steps": resources.files("minibit").joinpath("data", "small.steps").read_bytes(),
        "digits": data.test_y[:DIGITS].tobytes() + data.test_x[:DIGITS].tobytes(),
        "config.json": model.joinpath("config.json").read_bytes(),
        "model.safetensors": model.joinpath("model.safetensors").read_bytes(),
        "characters": "".join(sorted(set(load_text()))).encode(),
    }


def page(*, site: bool = True) -> str:
    """Return the whole page; without the `site` around it, it links to none of its pages."""
    html = (DOCS / "playground" / "index.html").read_text(encoding="utf-8")
    html, notices = re.subn(r"<!-- parts -->.*?<!-- end -->\n", "", html)
    assert notices == 1
    if not site:
        html = re.sub(r'^ *<p><a href="\.\./[^"]*">[^<]*</a></p>\n', "", html, flags=re.MULTILINE)
        html = re.sub(r'<a href="\.\./[^"]*">([^<]*)</a>', r"\1", html)
    style = (DOCS / "playground" / "style.css").read_text(encoding="utf-8")
    parts = []
    for name, content in files().items():
        packed = base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()
        parts.append(f'<script type="text/plain" id="file-{name}">{packed}</script>')
    port = '"use strict";\nconst modules = {};\n' + "".join(map(linked, PORT))
    worker, own = linked("playground/worker.mjs"), linked("playground/page.mjs")
    parts += [
        f'<script id="port">{port}</script>',
        f'<script type="text/plain" id="worker">{worker}</script>',
        f"<script>{BEGIN.replace('DIGEST', json.dumps(shipped_log().verify()))}\n{own}</script>",
    ]
    for place, text in (
        ('<link rel="stylesheet" href="style.css">', f"<style>\n{style}</style>"),
        ('<script type="module" src="page.mjs"></script>', "\n".join(parts)),
    ):
        assert place in html, place
        html = html.replace(place, text)
    return html


def on_post_build(config: Any) -> None:
    """Write the page into the site, in place of its parts."""
    folder = Path(config["site_dir"]) / "playground"
    for part in folder.iterdir():
        part.unlink()
    (folder / "index.html").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(site=False), encoding="utf-8")
