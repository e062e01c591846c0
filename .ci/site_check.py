"""Open every page of the built site in headless Chromium, with no network, and look for faults.

    python .ci/site_check.py [SITE] [--shots FOLDER]

Each page is opened at 390 and at 1280 pixels, and looked at in light and in dark. It fails if the
page writes an error to the console, asks any other host for anything, gets an error as an answer,
scrolls sideways, cuts a formula off, shows a formula or an image that was not drawn or an image
without a text in its place, has text that stands out from its background by less than 4.5 to 1, a
picture that glares in the dark, or a control that doesn't show when the keyboard is at it: see
`site_look.js`. Before that, every link and anchor within the site is looked up in its files, titles
are compared, and the site's search is asked. Only the standard library is used: a server for the
pages on the loopback address, and Chromium's DevTools protocol over a pipe. With ``--shots``,
pictures of each page are kept.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
LISTINGS = 3  # of test files, that are looked at
LOOK = Path(__file__).with_name("site_look.js")
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
    """The anchors of a page, the addresses that it links to, and its title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors, self.addresses, self.title = {""}, list[str](), ""
        self.in_title = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take in the attributes of an element."""
        fields = {name: value or "" for name, value in attrs}
        self.anchors |= {fields[name] for name in ("id", "name") if name in fields}
        if tag == "a" and "href" in fields:
            self.addresses.append(fields["href"])
        self.in_title = tag == "title" and not self.title  # a drawing has titles, too

    def handle_data(self, data: str) -> None:
        """Take in the page's title."""
        if self.in_title:
            self.title += data

    def handle_endtag(self, tag: str) -> None:
        """End the title."""
        self.in_title = False


def read_pages(site: Path) -> dict[str, Links]:
    """Read every page of the site."""
    return {
        page.relative_to(site).as_posix(): Links(page.read_text(encoding="utf-8"))
        for page in sorted(site.rglob("*.html"))
    }


def bad_titles(pages: dict[str, Links]) -> Iterator[str]:
    """Yield a sentence for each page that has no title, or that of another one."""
    first: dict[str, str] = {}
    for page, links in pages.items():
        title = " ".join(links.title.split())
        if not title:
            yield f"{page} has no title"
        elif page != "404.html" and first.setdefault(title, page) != page:
            yield f"{page} has the title of {first[title]}: {title}"


def dead_links(site: Path, pages: dict[str, Links]) -> Iterator[str]:
    """Yield a sentence for each link to a page or an anchor that the site does not have."""
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


def open_page(browser: Browser, width: int) -> tuple[str, Callable[..., dict[str, Any]]]:
    """Open an empty page of a width, in light: its target, and a function to call it by."""
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    call = functools.partial(browser.call, session=session)
    for domain in ("Page", "Runtime", "Log", "Network"):
        call(f"{domain}.enable")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    call("Emulation.setDeviceMetricsOverride", **size)
    call("Emulation.setScrollbarsHidden", hidden=True)  # the page has all of the width
    call("Emulation.setFocusEmulationEnabled", enabled=True)
    set_scheme(call, "light")
    return target, call


def set_scheme(call: Callable[..., dict[str, Any]], scheme: str) -> None:
    """Let the system be light or dark."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    call("Emulation.setEmulatedMedia", features=features)


def evaluate(call: Callable[..., dict[str, Any]], expression: str) -> Any:
    """Return the value of an expression in a page."""
    answer = call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
    if "exceptionDetails" in answer:
        raise RuntimeError(f"{expression[:60]}: {answer['exceptionDetails']}")
    return answer["result"].get("value")


def check_page(
    browser: Browser, base: str, path: str, width: int, shot: str | None = None
) -> tuple[list[str], int]:
    """Open one page at one width: its faults in light and dark, and how many formulas it shows.

    `shot` is what the names of its pictures begin with.
    """
    target, call = open_page(browser, width)
    browser.events.clear()
    call("Page.navigate", url=f"{base}/{path}")
    browser.wait_for("Page.loadEventFired")
    evaluate(call, LOOK.read_text(encoding="utf-8"))
    faults, formulas = [], 0
    for scheme in SCHEMES:
        set_scheme(call, scheme)
        found = evaluate(call, f"siteLook.page({width}, {scheme!r})")
        faults += [f"{fault} ({scheme})" for fault in found["faults"]]
        formulas = found["formulas"]
        if shot:
            size = {"width": width, "height": min(found["height"], 16000)}
            call("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False)
            picture = call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
            Path(f"{shot}-{scheme}.png").write_bytes(base64.b64decode(picture["data"]))
            size["height"] = 900
            call("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False)
    tab = {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
    for scheme in reversed(SCHEMES):
        set_scheme(call, scheme)
        for kind in ("keyDown", "keyUp"):  # from now on, the page is used by the keyboard
            call("Input.dispatchKeyEvent", type=kind, **tab)
        faults += [f"{fault} ({scheme})" for fault in evaluate(call, "siteLook.focus()")]
    faults += heard(browser.events, base)
    browser.call("Target.closeTarget", targetId=target)
    return faults, formulas


QUERIES = {  # what people look for, and which page must come first
    "1.58 bits": "chapters/ch00_ten_minutes/",
    "straight-through": "chapters/|glossary/",
    "STE": "chapters/|glossary/",
    "QAT": "chapters/|glossary/",
    "load a model": "chapters/ch11_checkpoint/|chapters/ch10_transformer/|command_line/",
    "benchmark": "benchmarks/|command_line/|chapters/|reference/bench",
    "NF4": "chapters/ch13_nf4/",
    "double quantisation": "chapters/ch13_nf4/|reference/nf4/",
    "packing": "chapters/ch02_ternary/",
    "llama.cpp": "chapters/ch11b_gguf/|chapters/ch11_checkpoint/|command_line/|reliability/",
}
SEARCH = """
(async () => {
  const wait = (ms) => new Promise((go) => setTimeout(go, ms));
  const box = document.querySelector(".md-search__input"), out = [];
  const first = () => document.querySelector(".md-search-result__item a")?.href;
  box.focus();
  for (const query of QUERIES) {
    box.value = query;
    box.dispatchEvent(new Event("input"));
    box.dispatchEvent(new Event("keyup"));
    // The index is read at the first query.
    for (let tries = 0; !out.length && !first() && tries < 100; tries++) await wait(100);
    await wait(800);
    out.push(first());
  }
  return out;
})()
"""


def check_search(site: Path, program: str, queries: dict[str, str] = QUERIES) -> Iterator[str]:
    """Ask the site's search, and yield the words whose first hit is another page than wanted."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            with serve(site) as base:
                _, call = open_page(browser, WIDTHS[-1])
                call("Page.navigate", url=f"{base}/")
                browser.wait_for("Page.loadEventFired")
                hits = evaluate(call, SEARCH.replace("QUERIES", json.dumps([*queries])))
                for (query, wanted), hit in zip(queries.items(), hits, strict=True):
                    page = (hit or "").removeprefix(f"{base}/")
                    if not page.startswith(tuple(wanted.split("|"))):
                        yield f"search for {query!r} finds {page or 'nothing'}, not {wanted}"
        finally:
            browser.close()


def check_site(
    site: Path, program: str, shots: Path | None = None
) -> Iterator[tuple[str, int, list[str], int]]:
    """Check pages at every width: ``(page, width, faults, formulas)``.

    The listings of test files are made alike, and are half of the site: the longest stand for all.
    """
    pages = sorted(site.rglob("*.html"))
    if not pages:
        raise SystemExit(f"{site} has no page: build the site first")
    listings = sorted((site / "tests").glob("*/index.html"), key=lambda page: page.stat().st_size)
    pages = [page for page in pages if page not in listings[:-LISTINGS]]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            with serve(site) as base:
                for page in pages:
                    path = page.relative_to(site).as_posix().removesuffix("index.html")
                    name = path.strip("/").replace("/", "-") or "index"
                    for width in WIDTHS:
                        shot = str(shots / f"{name}-{width}") if shots else None
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
    pages = read_pages(options.site)
    dead, titles = list(dead_links(options.site, pages)), list(bad_titles(pages))
    print(*dead, f"dead links: {len(dead)}", sep="\n", flush=True)
    print(*titles, f"bad titles: {len(titles)}", sep="\n", flush=True)
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
    return 1 if failed or dead or titles or astray else 0


if __name__ == "__main__":
    sys.exit(main())
