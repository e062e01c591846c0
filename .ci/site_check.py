"""Open every page of the built site in headless Chromium, with no network, and look for faults.

    python .ci/site_check.py [SITE] [--shots FOLDER]

Each page is opened at 390 and at 1280 pixels. It fails if the page writes an error to the console,
asks any other host for anything, gets an error as an answer, scrolls sideways, or shows a formula
or an image that was not drawn. Before that, every link and anchor within the site is looked up in
its files. Only the standard library is used: a server for the pages on the loopback address, and
Chromium's DevTools protocol over a pipe. With ``--shots``, a picture of each page at each width is
kept.
"""

from __future__ import annotations

import argparse
import base64
import functools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

WIDTHS = (390, 1280)
SECONDS = 30  # the longest that one answer or one page may take
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-default-apps",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no network, whatever is there
    "--remote-debugging-pipe",
)

# Run in the page once it has settled. `clips`: the element or one around it keeps what is too wide.
LOOK = r"""
(async () => {
  await document.fonts.ready;
  const width = WIDTH;
  if (window.innerWidth !== width || document.documentElement.clientWidth !== width)
    throw new Error(`the window is ${window.innerWidth} pixels wide`);
  const name = (e) => `<${e.tagName.toLowerCase()} class="${e.getAttribute("class") || ""}">`;
  const clips = (e) => {
    for (; e && e !== document.body; e = e.parentElement) {
      const style = getComputedStyle(e);
      if (style.overflowX !== "visible" || style.position === "fixed") return true;
    }
    return false;
  };
  const faults = [];
  const scroll = document.documentElement.scrollWidth;
  if (scroll > width) faults.push(`the page is ${scroll} pixels wide in a window of ${width}`);
  for (const e of document.querySelectorAll(".md-content *")) {
    const box = e.getBoundingClientRect();
    if (box.width && box.right > width + 1 && !clips(e)) {
      faults.push(`${name(e)} ends at ${Math.round(box.right)} of ${width} pixels`);
      break;
    }
  }
  for (const e of document.querySelectorAll(".katex-error"))
    faults.push(`KaTeX refused: ${e.textContent} (${e.title})`);
  for (const e of document.querySelectorAll(".arithmatex"))
    if (!e.querySelector(".katex")) faults.push(`a formula was not drawn: ${e.textContent}`);
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const inside = words.currentNode.parentElement;
    if (inside.closest("code, pre, script, style, .katex, .arithmatex")) continue;
    const raw = words.currentNode.data.match(/\\[()\[\]]|\$[^$]*\$|\\[a-z]+\{|\$\$/);
    if (raw) faults.push(`raw formula in the text: ${raw[0]}`);
  }
  for (const e of document.images)
    if (!e.complete || !e.naturalWidth) faults.push(`an image was not drawn: ${e.src}`);
  const formulas = document.querySelectorAll(".arithmatex .katex").length;
  return JSON.stringify({faults, formulas, height: document.documentElement.scrollHeight});
})()
"""


class Browser:
    """One headless Chromium, spoken to over its DevTools pipe: JSON messages, ended by NUL."""

    def __init__(self, program: str, profile: str) -> None:
        in_read, in_write = os.pipe()
        out_read, out_write = os.pipe()
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        # The browser reads commands from its descriptor 3 and writes answers to its descriptor 4.
        shell = 'in=$1 out=$2; shift 2; exec "$@" 3<&"$in" 4>&"$out"'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", str(in_read), str(out_write), *command],
            pass_fds=(in_read, out_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(in_read)
        os.close(out_write)
        self.sending, self.receiving = in_write, out_read
        self.buffer, self.last, self.events = b"", 0, list[dict[str, Any]]()

    def read(self, until: float) -> dict[str, Any]:
        """Return the next message."""
        while b"\0" not in self.buffer:
            ready, _, _ = select.select(
                [self.receiving], [], [], max(0.0, until - time.monotonic())
            )
            if not ready:
                raise TimeoutError(f"no answer from the browser in {SECONDS} s")
            chunk = os.read(self.receiving, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser ended")
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(message))

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method and return its result; events that arrive before it are kept."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.sending, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS
        while (answer := self.read(until)).get("id") != self.last:
            if "method" in answer:
                self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def wait_for(self, method: str) -> None:
        """Read until an event of this name has come."""
        until = time.monotonic() + SECONDS
        while not any(event["method"] == method for event in self.events):
            message = self.read(until)
            if "method" in message:
                self.events.append(message)

    def close(self) -> None:
        """End the browser."""
        try:
            self.call("Browser.close")
            self.process.wait(5)
        except (OSError, RuntimeError, TimeoutError, subprocess.TimeoutExpired):
            self.process.kill()
        self.process.wait()
        os.close(self.sending)
        os.close(self.receiving)


def find_browser() -> str | None:
    """Return the path of a Chromium, or None; ``CHROMIUM`` names one."""
    wanted = os.environ.get("CHROMIUM")
    found = [wanted] if wanted else [*map(shutil.which, NAMES), MAC]
    return next((path for path in found if path and Path(path).exists()), None)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """Do nothing."""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve `folder` on a free port of the loopback address."""
    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def heard(events: list[dict[str, Any]], base: str) -> list[str]:
    """Return the faults that the browser's events tell of."""
    faults = []
    for event in events:
        method, params = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            text = details.get("exception", {}).get("description", details["text"])
            faults.append(f"an error in a script: {text}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            said = [str(arg.get("value", arg.get("description"))) for arg in params["args"]]
            faults.append(f"console error: {' '.join(said)}")
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = params["entry"]
            faults.append(f"console error: {entry['text']} {entry.get('url', '')}")
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith((f"{base}/", "data:", "blob:")):
                faults.append(f"a request to another host: {url}")
        elif method == "Network.responseReceived" and params["response"]["status"] >= 400:
            faults.append(f"{params['response']['status']} for {params['response']['url']}")
    return faults


class Links(HTMLParser):
    """The anchors of a page, and the addresses that it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors, self.addresses = {""}, list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take in the attributes of an element."""
        fields = {name: value or "" for name, value in attrs}
        self.anchors |= {fields[name] for name in ("id", "name") if name in fields}
        if tag == "a" and "href" in fields:
            self.addresses.append(fields["href"])


def dead_links(site: Path) -> Iterator[str]:
    """Yield a sentence for each link to a page or an anchor that the site does not have."""
    pages = {
        page.relative_to(site).as_posix(): Links(page.read_text(encoding="utf-8"))
        for page in sorted(site.rglob("*.html"))
    }
    for page, links in pages.items():
        for address in dict.fromkeys(links.addresses):
            target, anchor = urldefrag(urljoin(f"file:///{page}", address))
            if not target.startswith("file:///"):
                continue
            path = unquote(target.removeprefix("file:///"))
            path += "index.html" if path.endswith("/") or not path else ""
            if not (site / path).is_file():
                yield f"{page} links to {address}: no such page"
            elif path in pages and unquote(anchor) not in pages[path].anchors:
                yield f"{page} links to {address}: no such anchor"


def check_page(
    browser: Browser, base: str, path: str, width: int, shot: Path | None = None
) -> tuple[list[str], int]:
    """Open one page at one width: its faults, and how many formulas it shows."""
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    call = functools.partial(browser.call, session=session)
    for domain in ("Page", "Runtime", "Log", "Network"):
        call(f"{domain}.enable")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    call("Emulation.setDeviceMetricsOverride", **size)
    call("Emulation.setScrollbarsHidden", hidden=True)  # the page has all of the width
    browser.events.clear()
    call("Page.navigate", url=f"{base}/{path}")
    browser.wait_for("Page.loadEventFired")
    look = LOOK.replace("WIDTH", str(width))
    answer = call("Runtime.evaluate", expression=look, awaitPromise=True, returnByValue=True)
    if "exceptionDetails" in answer:
        raise RuntimeError(f"{path}: {answer['exceptionDetails']}")
    found = json.loads(answer["result"]["value"])
    if shot:
        size["height"] = min(found["height"], 16000)
        call("Emulation.setDeviceMetricsOverride", **size)
        picture = call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        shot.write_bytes(base64.b64decode(picture["data"]))
    faults = [*heard(browser.events, base), *found["faults"]]
    browser.call("Target.closeTarget", targetId=target)
    return faults, found["formulas"]


QUERIES = {  # what people look for, and which page must come first
    "1.58 bits": "chapters/ch00_ten_minutes/",
    "straight-through": "chapters/|glossary/",
    "STE": "chapters/|glossary/",
    "QAT": "chapters/|glossary/",
    "load a model": "chapters/ch11_checkpoint/|chapters/ch10_transformer/|command_line/",
    "benchmark": "command_line/|chapters/|reference/bench",
    "NF4": "chapters/ch13_nf4/",
    "double quantisation": "chapters/ch13_nf4/|reference/nf4/",
    "packing": "chapters/ch02_ternary/",
    "llama.cpp": "chapters/ch11b_gguf/|chapters/ch11_checkpoint/|command_line/|reliability/",
}
SEARCH = """
(async () => {
  const wait = (ms) => new Promise((go) => setTimeout(go, ms));
  const box = document.querySelector(".md-search__input"), out = [];
  box.focus();
  for (const query of QUERIES) {
    box.value = query;
    box.dispatchEvent(new Event("input"));
    box.dispatchEvent(new Event("keyup"));
    await wait(out.length ? 800 : 4000); // the index is read at the first
    out.push(document.querySelector(".md-search-result__item a")?.href);
  }
  return JSON.stringify(out);
})()
"""


def check_search(site: Path, program: str) -> Iterator[str]:
    """Ask the site's search, and yield the words whose first hit is another page than wanted."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            with serve(site) as base:
                target = browser.call("Target.createTarget", url="about:blank")["targetId"]
                attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
                call = functools.partial(browser.call, session=attached["sessionId"])
                call("Page.enable")
                call("Page.navigate", url=f"{base}/")
                browser.wait_for("Page.loadEventFired")
                look = SEARCH.replace("QUERIES", json.dumps([*QUERIES]))
                answer = call(
                    "Runtime.evaluate", expression=look, awaitPromise=True, returnByValue=True
                )
                hits = json.loads(answer["result"]["value"])
                for (query, wanted), hit in zip(QUERIES.items(), hits, strict=True):
                    page = (hit or "").removeprefix(f"{base}/")
                    if not page.startswith(tuple(wanted.split("|"))):
                        yield f"search for {query!r} finds {page or 'nothing'}, not {wanted}"
        finally:
            browser.close()


def check_site(
    site: Path, program: str, shots: Path | None = None
) -> Iterator[tuple[str, int, list[str], int]]:
    """Check every page at every width: ``(page, width, faults, formulas)``."""
    pages = sorted(site.rglob("*.html"))
    if not pages:
        raise SystemExit(f"{site} has no page: build the site first")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            with serve(site) as base:
                for page in pages:
                    path = page.relative_to(site).as_posix().removesuffix("index.html")
                    name = path.strip("/").replace("/", "-") or "index"
                    for width in WIDTHS:
                        shot = shots / f"{name}-{width}.png" if shots else None
                        yield path or "/", width, *check_page(browser, base, path, width, shot)
        finally:
            browser.close()


def main() -> int:
    """Run the check; 0 if no page has a fault."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("site", nargs="?", type=Path, default=Path("site"))
    parser.add_argument("--shots", type=Path, help="keep pictures of the pages in this folder")
    options = parser.parse_args()
    program = find_browser()
    if program is None:
        print("site_check: no Chromium here; install it, or name one in CHROMIUM", file=sys.stderr)
        return 2
    if options.shots:
        options.shots.mkdir(parents=True, exist_ok=True)
    dead = list(dead_links(options.site))
    print(*dead, f"dead links: {len(dead)}", sep="\n", flush=True)
    astray = list(check_search(options.site, program))
    print(*astray, f"searches that go astray: {len(astray)}", sep="\n", flush=True)
    passed = failed = formulas = 0
    for path, width, faults, drawn in check_site(options.site, program, options.shots):
        for fault in dict.fromkeys(faults):
            print(f"{path} at {width} px: {fault}", flush=True)
        failed += bool(faults)
        passed += not faults
        formulas += drawn
    print(f"{formulas} formulas drawn, on pages at widths of {WIDTHS} pixels")
    print(f"pages: {passed} passed, {failed} failed")
    return 1 if failed or dead or astray else 0


if __name__ == "__main__":
    sys.exit(main())
