"""The playground: one page, driven in a browser as a reader would, and held against Python."""

import functools
import json
import re
import runpy
import struct
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import minibit as mb
from minibit.datasets import load_mnist
from minibit.language import shipped_model, write_text
from minibit.steps import StepLog
from minibit.training import model_of, shipped_log

ROOT = Path(__file__).resolve().parents[1]
SITE = runpy.run_path(str(ROOT / ".ci" / "site_check.py"))
HOOK = runpy.run_path(str(ROOT / "docs" / "hooks" / "playground.py"))
BROWSER = SITE["find_browser"]()
MOST = 400_000  # bytes of the page
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38}
KEYS |= {"ArrowRight": 39, "ArrowDown": 40, "Delete": 46}
CONTROLS = "a[href], button, input, select, textarea, [tabindex='0']"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
]


class Page:
    """A page in a browser without a network."""

    def __init__(self, url, profile, width=1280, *, trace=False, **features):
        self.browser = SITE["Browser"](BROWSER, str(profile))
        target = self.browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self.call = functools.partial(self.browser.call, session=attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.call("Emulation.setTouchEmulationEnabled", enabled=width < 500, maxTouchPoints=2)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        media = [{"name": name.replace("_", "-"), "value": v} for name, v in features.items()]
        self.call("Emulation.setEmulatedMedia", features=media)
        if trace:
            self.trace()
        self.call("Page.navigate", url=url)
        self.until("document.body?.dataset.ready === 'true'")

    def trace(self):
        """Have the browser note every task from now on."""
        config = {"includedCategories": ["toplevel", "devtools.timeline"]}
        self.browser.call("Tracing.start", transferMode="ReportEvents", traceConfig=config)

    def tasks(self, thread):
        """Return the tasks of threads of a name since `trace`: (milliseconds, those of the CPU)."""
        self.js("console.timeStamp('here')")  # which process is the page's
        first = len(self.browser.events)
        self.browser.call("Tracing.end")
        while not any(
            event["method"] == "Tracing.tracingComplete" for event in self.browser.events[first:]
        ):
            self.js("0")  # what arrives before the answer is kept
        noted = self.browser.events[first:]
        del self.browser.events[first:]
        pieces = [
            event["params"]["value"]
            for event in noted
            if event["method"] == "Tracing.dataCollected"
        ]
        events = [event for piece in pieces for event in piece]
        (process,) = {event["pid"] for event in events if event["name"] == "TimeStamp"}
        threads = {
            event["tid"]
            for event in events
            if event["name"] == "thread_name"
            and event["pid"] == process
            and event["args"]["name"].startswith(thread)
        }
        return [
            (event["dur"] / 1e3, event.get("tdur", 0) / 1e3)
            for event in events
            if event["name"].endswith("RunTask")
            and event["ph"] == "X"
            and event["pid"] == process
            and event["tid"] in threads
        ]

    def js(self, expression):
        """Return the value of an expression."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression, seconds=180):
        """Wait until an expression holds."""
        end = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < end, f"never: {expression}; {self.text('replay-status')}"
            time.sleep(0.05)

    def text(self, name):
        """Return the text of an element."""
        return self.js(f"document.getElementById({name!r}).textContent")

    def says(self, name, start):
        """Wait until the text of an element begins so."""
        self.until(f"document.getElementById({name!r}).textContent.startsWith({start!r})")

    def fill(self, form, **fields):
        """Fill a form in and send it; wait until it is done."""
        for name, value in fields.items():
            self.js(f"document.getElementById({form!r}).elements[{name!r}].value = {value!r}")
        self.js(f"document.getElementById({form!r}).requestSubmit()")
        self.until(f"!document.getElementById({form!r}).dataset.busy")

    def file(self, link):
        """Return the bytes behind a download link."""
        read = f"fetch(document.getElementById({link!r}).href).then((r) => r.arrayBuffer())"
        return bytes(self.js(f"{read}.then((b) => Array.from(new Uint8Array(b)))"))

    def drop(self, content):
        """Drop what an expression gives on the page, beside its text: a file, or a text."""
        self.js(f"""{{
          const carried = new DataTransfer(), content = {content};
          if (typeof content === "string") carried.items.add(content, "text/plain");
          else carried.items.add(content);
          const event = new DragEvent("drop", {{ dataTransfer: carried, bubbles: true }});
          document.documentElement.dispatchEvent(event);
        }}""")

    def open_log(self, data, name):
        """Drop a log on the page."""
        self.drop(f"new File([Uint8Array.from({json.dumps(list(data))})], {name!r})")
        self.says("replay-status", name)

    def shipped(self):
        """Show the shipped log again."""
        self.js("document.getElementById('accuracy').textContent = ''")
        self.js("document.getElementById('shipped').click()")
        self.until("document.getElementById('accuracy').textContent === '97.6% of 500'")

    def press(self, key, times=1, modifiers=0):
        """Press a key."""
        fields = {"key": key, "windowsVirtualKeyCode": KEYS.get(key) or ord(key.upper())}
        fields["modifiers"] = modifiers
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 and not modifiers else "")
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", **fields, text=text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def tab_to(self, selector, *keys):
        """Press Tab until an element has the focus, then keys."""
        for _ in range(120):
            self.press("Tab")
            if self.js(f"document.activeElement.matches({selector!r})"):
                for key in keys:
                    self.press(key)
                return
        raise AssertionError(f"Tab never reaches {selector}")

    def touch(self, selector, points):
        """Touch an element at points in [0, 1], in one stroke of a finger."""
        box = self.js(f"""{{
          const e = document.querySelector({selector!r});
          e.scrollIntoView({{ block: "center" }});
          const b = e.getBoundingClientRect();
          [b.left, b.top, b.width, b.height];
        }}""")
        for i, (x, y) in enumerate(points):
            at = {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
            kind = "touchStart" if i == 0 else "touchMove"
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[at])
        if len(points) > 1:  # the finger rests: after a fling, the browser takes no tap for a while
            time.sleep(0.2)
            self.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[at])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def tap(self, selector, expression):
        """Tap an element until an expression holds: a tap that takes long is a long press."""
        for _ in range(6):
            self.touch(selector, [(0.5, 0.5)])
            with suppress(AssertionError):
                return self.until(expression, seconds=15)
        raise AssertionError(f"{selector} is tapped in vain: never {expression}")

    def named(self):
        """Return the nodes of the accessibility tree that are not ignored: (role, name, node)."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""), node)
            for node in nodes
            if not node["ignored"]
        ]

    def stroke(self, points):
        """Draw a stroke on the board, points in [0, 1]."""
        self.js("document.getElementById('board').scrollIntoView({block: 'center'})")
        box = self.js("{const b = document.getElementById('board').getBoundingClientRect();"
                      " [b.left, b.top, b.width]}")  # fmt: skip
        for i, (x, y) in enumerate(points):
            at = {"x": box[0] + x * box[2], "y": box[1] + y * box[2], "button": "left"}
            kind = "mousePressed" if i == 0 else "mouseMoved"
            self.call("Input.dispatchMouseEvent", type=kind, buttons=1, clickCount=1, **at)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", clickCount=1, **at)

    def seen(self):
        """Return the 784 pixels that the model gets, and the page's probabilities of them."""
        self.until("modules['page.mjs'].state().probabilities !== null")
        state = self.js("{const s = modules['page.mjs'].state(); [s.pixels, s.probabilities]}")
        return np.uint8(state[0]), np.array(state[1])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The page as one file."""
    out = tmp_path_factory.mktemp("playground") / "playground.html"
    subprocess.run([sys.executable, ROOT / "docs/hooks/playground.py", out], check=True)
    return out


@pytest.fixture(scope="module")
def page(path, tmp_path_factory):
    """The page, opened from its folder."""
    opened = Page(path.as_uri(), tmp_path_factory.mktemp("profile"))
    yield opened
    faults = SITE["heard"](opened.browser.events, path.parent.as_uri())
    opened.browser.close()
    assert not faults


@pytest.fixture
def browse(path, tmp_path):
    """A function that opens the page in a browser of its own, which hears of no fault."""
    pages = []

    def opened(width=1280, **features):
        pages.append(Page(path.as_uri(), tmp_path / str(len(pages)), width, **features))
        return pages[-1]

    yield opened
    for page in pages:
        page.browser.close()
        assert not SITE["heard"](page.browser.events, path.parent.as_uri())


@pytest.fixture(scope="module")
def network():
    """The shipped log's weights, and a function from pixels to probabilities."""
    log = shipped_log()
    params, model = log.replay(), model_of(log.header)

    def probabilities(pixels, params=params):
        z = np.float64(model(params, pixels.reshape(1, -1)))[0]
        return np.exp(z - z.max()) / np.exp(z - z.max()).sum()

    return params, probabilities


def test_the_page_is_small_and_names_nothing_outside(path):
    """Under 400 KB in all; no address of another host."""
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < MOST
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


def test_the_page_alone_links_to_no_page_of_the_site(path):
    """The site's page leads to chapters and guide; the one that stands alone has no dead link."""
    alone, around = path.read_text(encoding="utf-8"), HOOK["page"]()
    assert '="../' not in alone
    assert re.findall(r'href="(\.\./[^"]*)"', around)
    for link in re.findall(r'href="\.\./([^"]*)index.html"', around):
        page = ROOT / "docs" / f"{link.strip('/') or 'index'}.md"
        assert page.is_file() or (ROOT / f"{link.strip('/')}.py").is_file(), link


def test_a_part_of_the_page_says_that_it_is_one(path):
    """Opened by itself, the file in docs/ names the command; the page has nothing of that."""
    part = (ROOT / "docs" / "playground" / "index.html").read_text(encoding="utf-8")
    assert "python docs/hooks/playground.py playground.html" in part
    assert "docs/hooks" not in path.read_text(encoding="utf-8")


def test_a_digit_is_shown_before_the_reader_draws(browse):
    """The first test image, its answer and its units; the first stroke clears the board of it."""
    page = browse()
    assert page.seen()[0].tolist() == load_mnist().test_x[0].ravel().tolist()
    page.until("document.querySelectorAll('#units button').length === 16")
    assert page.text("answer").startswith("It is a 7: ")
    assert page.text("board-hint").startswith("Test image 0, which is a 7. Draw on the board")
    page.stroke([(0.5, 0.2), (0.5, 0.5), (0.5, 0.8)])
    pixels, _ = page.seen()
    assert (pixels.reshape(28, 28)[6:22, 13:15] > 200).all()
    assert page.text("board-hint").startswith("Draw on the board")


def test_the_shipped_log_replays_to_the_digest_of_python(page, network):
    """The page's SHA-256 is that of the weights that Python replays; so is its accuracy."""
    params, _ = network
    assert page.text("digest") == mb.digest(params) == page.text("expected")
    data, model = load_mnist(), model_of(shipped_log().header)
    right = (model(params, data.test_x[:500]).argmax(1) == data.test_y[:500]).mean()
    assert page.text("accuracy") == f"{100 * right:.1f}% of 500"
    assert page.text("seed") == "0"


def test_a_drawing_is_classified_as_python_classifies_its_pixels(page, network):
    """Probabilities of the drawn pixels differ by less than 1e-5; units can be switched off."""
    page.js("document.getElementById('clear').click()")
    page.stroke([(0.3, 0.25), (0.7, 0.25), (0.55, 0.5), (0.45, 0.8)])
    pixels, probabilities = page.seen()
    assert pixels.max() == 255
    np.testing.assert_allclose(probabilities, network[1](pixels), atol=1e-5)
    page.until("document.querySelectorAll('#units button').length === 16")
    unit = page.js("document.querySelector('#units button').dataset.unit")
    page.js("document.querySelector('#units button').click()")
    page.until(f"document.querySelector('[data-unit=\"{unit}\"]').ariaPressed === 'true'")
    params = {name: w.copy() for name, w in network[0].items()}
    params["w2"][:, int(unit)] = 0  # nothing of the unit is read any more
    _, without = page.seen()
    np.testing.assert_allclose(without, network[1](pixels, params), atol=1e-5)


def test_the_keyboard_draws_too(page):
    """Arrows and space leave a stroke; Delete clears it."""
    page.js("document.getElementById('clear').click(); document.getElementById('board').focus()")
    page.press(" ")
    page.press("ArrowDown", 10)
    page.press(" ")
    pixels, _ = page.seen()
    assert (pixels.reshape(28, 28)[6:22, 13:15] > 200).all(), "a vertical line in the middle"
    page.press("Delete")
    page.until("document.getElementById('answer').textContent === 'Nothing is drawn yet.'")


def test_the_slider_shows_any_moment_of_the_training(page):
    """Accuracy after a step is Python's."""
    page.js("{const t = document.getElementById('time'); t.value = 100;"
            " t.dispatchEvent(new Event('input')); 0}")  # fmt: skip
    page.until("/%/.test(document.getElementById('step').textContent)")
    log, data = shipped_log(), load_mnist()
    logits = model_of(log.header)(log.replay(100), data.test_x[:500])
    right = (logits.argmax(1) == data.test_y[:500]).mean()
    assert page.text("step") == f"100 of 800: {100 * right:.1f}%"


@pytest.mark.parametrize("kind", ["mask", "negate", "shuffle", "layer"])
def test_an_edited_log_replays_in_python_to_the_same_digest(page, kind, tmp_path):
    """Every edit is a log; masking and negating are `StepLog`'s own."""
    page.fill("edit", kind=kind, **{"from": "300", "to": "420", "layer": "2", "seed": "5"})
    said = page.text("edited")
    assert said.startswith("Right before: 97.6%. After: "), said
    file = tmp_path / "edited.steps"
    file.write_bytes(page.file("edited-file"))
    log = StepLog.open(file)
    assert log.verify() in said
    assert len(log) == 800
    if kind in ("mask", "negate"):
        own = getattr(shipped_log(), kind)(slice(300, 420), tmp_path / "own.steps")
        assert log.verify() == own.verify()


def test_an_address_carries_an_edit(page):
    """The link of an edit makes it again."""
    page.fill("edit", kind="mask", **{"from": "0", "to": "50"})
    said, link = page.text("edited"), page.js("document.getElementById('edited-link').href")
    assert link.endswith("#edit=mask,0,50,2,5")
    page.js("document.getElementById('edited').textContent = ''")
    page.js(f"location.hash = ''; location.href = {link!r}")
    page.says("edited", "Right")
    assert page.text("edited") == said


@pytest.mark.parametrize("method", ["units", "sampled"])
def test_a_log_that_was_trained_in_the_page_replays_in_python(page, method, tmp_path):
    """Training lowers the loss, and its log has the digest that the page names."""
    page.fill("train", method=method, seed="18446744073709551615", steps="40", on="shipped")
    said = page.text("trained")
    file = tmp_path / "trained.steps"
    file.write_bytes(page.file("trained-file"))
    log = StepLog.open(file)
    assert len(log) == 40
    assert log.plan.seed == 2**64 - 1
    assert log.verify() in said, said
    data = load_mnist()
    logits = model_of(log.header)(log.replay(), data.test_x[:400])
    assert (logits.argmax(1) == data.test_y[:400]).mean() > 0.5
    unseen = model_of(log.header)(log.replay(), data.test_x[400:500]).argmax(1)
    right = (unseen == data.test_y[400:500]).mean()
    assert f" {100 * right:.1f}% of the 100 images that it never saw are right." in said
    shown = subprocess.run(
        [sys.executable, "-m", "minibit", "replay", file], capture_output=True, text=True
    )
    assert log.verify() in shown.stdout, shown


@pytest.mark.parametrize(("seed", "temperature"), [(0, 0.8), (1, 1.0), (2, 0.5)])
def test_it_writes_what_minibit_writes(page, seed, temperature):
    """The same prompt, seed and temperature: the same text, beyond the model's context."""
    prompt, count = "LOVE, n.", 90
    page.fill("write", prompt=prompt, seed=seed, temperature=temperature, count=count)
    own = write_text(*shipped_model(), prompt, count, seed=seed, temperature=temperature)
    assert page.text("text") == prompt + own


@pytest.mark.parametrize("damage", ["flip", "cut", "foreign", "empty", "unread"])
def test_a_file_that_is_no_good_log_is_named_and_the_page_goes_on(page, damage):
    """What is wrong is said; what was shown stays. A torn tail is left out, and said."""
    good = bytearray(shipped_log().path.read_bytes())
    before = page.text("digest")
    if damage == "flip":
        good[2000] ^= 8
    data = {
        "flip": bytes(good),
        "cut": bytes(good[:-5]),
        "foreign": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "empty": b"",
        "unread": bytes(good[:14]) + bytes(200),
    }[damage]
    page.open_log(data, f"{damage}.steps")
    said = page.text("replay-status")
    if damage == "cut":
        assert "torn" in said
        assert "Its last bytes, from" in said
        page.shipped()
        assert page.text("digest") == before
    else:
        assert "was not replayed" in said, said
        assert page.text("digest") == before


def crafted(plan, payloads=(), steps=32, **fields):
    """The bytes of a log of records whose digests are zeros."""
    header = json.dumps({"plan": plan, **fields}, sort_keys=True, separators=(",", ":")).encode()
    data = b"\x89MBL\r\n\x1a\n" + struct.pack("<HI", 1, len(header)) + header
    crc = zlib.crc32(data)
    parts = [data, struct.pack("<I", crc)]
    for payload in payloads:
        head = struct.pack("<BI", steps, len(payload))
        record = head + struct.pack("<H", zlib.crc32(head, crc) & 0xFFFF) + payload + bytes(8)
        crc = zlib.crc32(record, crc)
        parts += [record, struct.pack("<I", crc)]
    return b"".join(parts)


def plan_of(shapes, perturbations):
    """A plan of method sampled."""
    names = [f"w{layer}" for layer in range(len(shapes))]
    return {"method": "sampled", "seed": 0, "names": names, "shapes": shapes, "zeros": 0,
            "perturbations": perturbations, "units": [], "inputs": []}  # fmt: skip


REFUSED = {  # a log, and what the page says of it
    "steps": (lambda: crafted(plan_of([[9, 9]], 1), [bytes(9)] * 4000), "has 128000 steps"),
    "weights": (lambda: crafted(plan_of([[4000, 4000]], 1)), "has 16000000 weights"),
    "cube": (lambda: crafted(plan_of([[9, 9, 9]], 1)), "its layers are no matrices"),
    "moves": (
        lambda: crafted(plan_of([[1000, 1000]], 1), [b"\0\0\0\xc0" + b"\xaa" * 8] * 8),
        "its steps move more than 20000000 weights",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_log_that_asks_for_too_much_is_refused_and_the_page_goes_on(page, name):
    """Bounds on steps, weights and moves; the message says which, and what is shown stays."""
    before = page.text("digest")
    page.open_log(REFUSED[name][0](), f"{name}.steps")
    said = page.text("replay-status")
    assert f"{name}.steps was not replayed" in said
    assert REFUSED[name][1] in said
    assert "Shown is still the shipped log." in said
    assert page.text("digest") == before
    page.js("document.getElementById('sample').click()")
    page.seen()


def test_a_file_of_17_megabytes_is_not_even_read(page):
    """Its size and the bound are named; what was shown stays."""
    before = page.text("digest")
    page.drop("new File([new Uint8Array(17e6)], 'huge.steps')")
    page.says("replay-status", "huge")
    said = page.text("replay-status")
    assert said == "huge.steps has 17000000 bytes; this page takes logs up to 16 MB."
    assert page.text("digest") == before
    page.open_log(bytes(15_900), "zeros.steps")
    assert "was not replayed: it does not begin as a step log does (byte 0)" in page.text(
        "replay-status"
    )


def test_a_text_and_a_folder_are_no_logs(page, tmp_path):
    """What is dropped and is no file is named as such; nothing else happens."""
    page.drop("'a text'")
    assert page.text("replay-status") == "What was dropped is no file."
    data = {"items": [], "files": [str(tmp_path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.call("Input.dispatchDragEvent", type=kind, x=5, y=5, data=data)
    page.until("document.getElementById('replay-status').textContent.includes('a folder')")
    assert page.js("location.protocol") == "file:"
    assert page.text("digest") == page.text("expected")


def test_a_log_of_another_kind_of_model_is_replayed_and_no_drawing_is_asked_of_it(page):
    """Its digest is shown; that it takes no image is said where the answer would be."""
    fields = {"recipe": {"logit_scale": 1}, "data": {"input_scale": 1, "input_offset": 0}}
    page.js("document.getElementById('sample').click()")
    page.seen()
    page.open_log(crafted(plan_of([[9, 28], [10, 9]], 1), **fields), "other.steps")
    assert "0 steps" in page.text("replay-status")
    wanted = "This log's model takes 28 numbers, no image of 28 x 28."
    page.until(f"document.getElementById('answer').textContent === {wanted!r}")
    page.until(f"document.getElementById('accuracy').textContent === {wanted!r}")
    page.fill("edit", kind="mask", **{"from": "0", "to": "5"})
    assert "The log has 0 steps" in page.text("edited")
    page.open_log(crafted(plan_of([[9, 28]], 1)), "bare.steps")
    page.until("document.getElementById('answer').textContent.includes('does not say')")
    page.shipped()


def test_a_worker_that_does_not_answer_is_replaced(page):
    """One step that takes minutes can be stopped: the shipped log comes back, and writing works."""
    page.js("document.getElementById('replay-status').textContent = ''")
    slow = crafted(plan_of([[2000, 2000]], 4000), [b"\0\0\0\xc0" + b"\xaa" * 1000], steps=1)
    page.drop(f"new File([Uint8Array.from({json.dumps(list(slow))})], 'slow.steps')")
    page.until("document.getElementById('replay-status').textContent.includes('slow')")
    time.sleep(3)  # the worker has read the file and is at the step
    page.js("document.getElementById('stop').click()")
    page.says("replay-status", "The shipped log")
    assert page.text("digest") == page.text("expected")
    page.fill("write", prompt="LOVE, n.", seed="0", temperature="0", count="5")
    assert "5 characters written" in page.text("speed")
    page.js("document.getElementById('stop').click()")


ADDRESSES = {  # what stands after #edit=, and what is said of it
    "": "The address names no edit",
    "%": "The address names no edit",
    "mask,0": "The address names no edit",
    "explode,0,1,1,0": "The address names no edit",
    "mask,a,b,1,0": "The address names no edit",
    "mask,0,1,1,0,7": "The address names no edit",
    "mask,900,1000,1,0": "The log has 800 steps, counted from 0; got 900.",
    "mask,5,5,1,0": "No step lies from 5 up to 5: the first number must be the smaller.",
    "layer,0,5,9,0": "The model has layers 1 to 4, got 9.",
    "shuffle,0,5,1,99999999999999999999": "The seed must be a whole number from 0 to 18446744073",
    "mask%2C0%2C50%2C1%2C0": "Right before: 97.6%. After: ",
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_an_address_with_a_broken_edit_says_what_is_wrong(page, text):
    """No edit of it is made, nothing is thrown, and the page goes on."""
    page.js("document.getElementById('edited').textContent = ''; location.hash = ''")
    page.js(f"location.hash = 'edit={text}'")
    page.until("!/^(Editing.)?$/.test(document.getElementById('edited').textContent)")
    assert page.text("edited").startswith(ADDRESSES[text]), page.text("edited")
    assert page.js("document.activeElement.id") == "edit-title"


STRANGE = {  # form, its fields, where it answers, what it says
    "steps": (
        "train",
        {"steps": "0"},
        "trained",
        "The steps must be a whole number from 1 to 2000",
    ),
    "empty": (
        "train",
        {"steps": ""},
        "trained",
        "The steps must be a whole number from 1 to 2000, ",
    ),
    "seed": ("train", {"seed": "1e3", "steps": "5"}, "trained", "The seed must be a whole number"),
    "own": ("train", {"on": "own", "seed": "0"}, "trained", "Keep a digit of your own first"),
    "letter": (
        "write",
        {"prompt": "é", "count": "5"},
        "speed",
        'Prompt has "é", which is no token.',
    ),
    "heat": (
        "write",
        {"temperature": "9"},
        "speed",
        "The temperature must lie from 0 to 5, got 9.",
    ),
    "cold": ("write", {"temperature": ""}, "speed", "The temperature must lie from 0 to 5, got no"),
    "edit": (
        "edit",
        {"kind": "mask", "from": "", "to": "5"},
        "edited",
        "The first step must be a ",
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_form_that_is_filled_in_strangely_says_what_it_takes(page, name):
    """The message stands beside the form; the next try works."""
    form, fields, place, wanted = STRANGE[name]
    page.js(f"document.getElementById({form!r}).reset()")
    page.fill(form, **fields)
    assert page.text(place).startswith(wanted), page.text(place)
    page.js(f"document.getElementById({form!r}).reset()")


def test_numbers_that_are_none_and_too_many_are_named(page):
    """The table keeps what it showed; of many numbers the first 256 are taken."""

    def write(text):
        page.js("{const w = document.getElementById('weights');"
                f" w.value = {text!r}; w.dispatchEvent(new Event('input')); 0}}")  # fmt: skip
        return page.text("weights-said")

    before = page.text("quantised")
    assert write("1 2 three") == '"three" is no number that a float32 holds.'
    assert write("1e99") == '"1e99" is no number that a float32 holds.'
    assert write(" ") == "Write a number at least."
    assert page.text("quantised") == before
    assert write("1 " * 300) == "The first 256 of 300 numbers are taken."
    assert write("0.5, -0.25; [1e-3]") == ""
    assert "of 3 zero" in page.text("quantised")


def test_training_on_two_drawn_digits_replays_in_python(page, tmp_path):
    """A stroke and a ring are kept, learned from, stopped on the way, and forgotten again."""
    ring = [(0.5 + 0.3 * np.sin(a), 0.5 - 0.3 * np.cos(a)) for a in np.linspace(0, 6.3, 20)]
    for label, points in (("1", [(0.5, 0.2), (0.5, 0.8)]), ("0", ring)):
        page.js("document.getElementById('clear').click()")
        page.stroke(points)
        page.seen()
        page.js(f"document.getElementById('label').value = {label!r}")
        page.js("document.getElementById('keep').click()")
    assert page.text("kept") == "2 kept: 1 0."
    page.fill("train", method="units", seed="3", steps="12", on="own")
    said = page.text("trained")
    file = tmp_path / "trained.steps"
    file.write_bytes(page.file("trained-file"))
    assert StepLog.open(file).verify() in said
    assert said.startswith("12 steps"), said
    form = "document.getElementById('train')"
    page.js(f"{form}.elements.steps.value = 2000; {form}.requestSubmit()")
    page.says("trained", "Step 2")
    assert page.js(f"{form}.querySelector('button').textContent") == "Stop"
    time.sleep(0.5)
    page.js(f"{form}.requestSubmit()")
    page.until(f"!{form}.dataset.busy")
    file.write_bytes(page.file("trained-file"))
    assert 2 < len(StepLog.open(file)) < 2000
    assert StepLog.open(file).verify() in page.text("trained")
    page.js("document.getElementById('forget').click()")
    assert page.text("kept") == "No digit is kept."


def test_the_shipped_log_replays_within_two_seconds(page):
    """Of the worker's CPU: a share of the time, as others may use the machine."""
    page.trace()
    page.shipped()
    tasks = np.array(page.tasks("DedicatedWorker"))
    busy, own = tasks.sum(0)
    assert own > 100, "the worker's tasks are seen"
    replay = page.js("modules['page.mjs'].state().shown.milliseconds")
    assert replay * own / busy < 2000, (replay, own, busy)


def strokes(page):
    """Draw a long scribble."""
    page.js("document.getElementById('clear').click()")
    for turn in range(4):
        a = np.linspace(0, 12, 150)
        page.stroke([(0.5 + 0.4 * np.sin(x), 0.5 + 0.4 * np.cos(1.3 * x + turn)) for x in a])
    page.seen()


WORK = {  # what a reader does in each part of the page
    "replay": Page.shipped,
    "draw": strokes,
    "time": lambda page: page.js("""(async () => {
      const time = document.getElementById("time");
      for (let step = 0; step <= 800; step += 20) {
        time.value = step;
        time.dispatchEvent(new Event("input"));
        await new Promise((go) => setTimeout(go, 20));
      }
    })()"""),
    "edit": lambda page: page.fill("edit", kind="shuffle", seed="1", **{"from": "0", "to": "800"}),
    "train": lambda page: page.fill("train", seed="0", steps="15", on="shipped"),
    "write": lambda page: page.fill("write", prompt="A", seed="0", temperature="1", count="80"),
    "quantise": lambda page: page.js("""{
      const area = document.getElementById("weights");
      area.value = Array.from({ length: 256 }, (_, i) => Math.sin(i * i).toFixed(3)).join(" ");
      area.dispatchEvent(new Event("input"));
    }"""),
    "huge": lambda page: page.drop("new File([new Uint8Array(15.9e6)], 'zeros.steps')"),
}


@pytest.mark.parametrize("part", WORK)
def test_nothing_blocks_the_page_for_a_tenth_of_a_second(page, part):
    """No task of its thread takes longer, by the CPU's time: others use the machine."""
    page.trace()
    WORK[part](page)
    tasks = [own for _, own in page.tasks("CrRendererMain")]
    assert 0 < max(tasks) <= 100


def test_opening_the_page_blocks_it_no_longer(browse):
    """From the first byte to the accuracy, no task of the page's thread takes over 100 ms."""
    tasks = [own for _, own in browse(trace=True).tasks("CrRendererMain")]
    assert 0 < max(tasks) <= 100


def test_a_task_that_blocks_the_page_would_be_seen(page):
    """A loop that takes a quarter of a second of the CPU is noted as such."""
    page.trace()
    page.js("{let sum = 0; for (let i = 0; i < 4e8; i++) sum += i % 7; sum}")
    assert max(own for _, own in page.tasks("CrRendererMain")) > 100


def test_a_finger_draws_moves_the_slider_and_presses_buttons(browse, network):
    """By touch alone, on a narrow screen; a second finger leaves the stroke alone."""
    page = browse(390)
    page.touch("#board", [(0.3, 0.25), (0.5, 0.25), (0.7, 0.25), (0.6, 0.5), (0.45, 0.8)])
    pixels, probabilities = page.seen()
    assert pixels.max() == 255
    np.testing.assert_allclose(probabilities, network[1](pixels), atol=1e-5)
    page.touch("#time", [(0.99, 0.5), (0.7, 0.5), (0.4, 0.5), (0.25, 0.5)])
    assert 100 < page.js("Number(document.getElementById('time').value)") < 400
    pressed = "document.querySelectorAll('#units [aria-pressed=true]').length === 1"
    page.tap("#units button", pressed)
    page.tap("#clear", "document.getElementById('answer').textContent.startsWith('Nothing')")
    page.touch("#bars", [(0.03, 0.05)])
    assert page.text("weights-said") == "Weight 1 of 16 is 0.837."
    page.tap("#edit button", "document.getElementById('edited').textContent !== ''")
    page.says("edited", "Right before")
    page.js("document.getElementById('board').scrollIntoView({ block: 'center' })")
    box = page.js("{const b = document.getElementById('board').getBoundingClientRect();"
                  " [b.left, b.top]}")  # fmt: skip
    one, two = ({"x": box[0] + x, "y": box[1] + 60, "id": i} for i, x in enumerate((60, 200)))
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[one])
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[one, two])
    two["y"] += 90
    page.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[one, two])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    pixels, _ = page.seen()
    across = pixels.reshape(28, 28).max(0)
    assert (across > 100).sum() < 6, "a point, and no line to the second finger"


def test_the_keyboard_alone_reaches_and_works_every_control(browse):
    """Tab goes through all of them, each is seen, and each does what it is for."""
    page = browse()
    page.until("document.querySelectorAll('#units button').length === 16")
    page.js("document.querySelectorAll('a').forEach((a) => a.addEventListener('click', "
            "(event) => event.preventDefault()))")  # fmt: skip
    every = page.js(f"""[...document.querySelectorAll({CONTROLS!r})]
      .filter((e) => e.checkVisibility()).map((e, i) => (e.dataset.number = i)).length""")
    reached, hidden = [], []
    for _ in range(every):
        page.press("Tab")
        number, seen = page.js("""{
          const e = document.activeElement, box = e.getBoundingClientRect();
          const outline = getComputedStyle(e.closest(".button") ?? e);
          [Number(e.dataset.number), outline.outlineStyle !== "none" && box.right > 0
            && box.top < innerHeight && box.bottom > 0];
        }""")
        reached.append(number)
        hidden += [] if seen else [number]
    assert reached == list(range(every)), "in the order of the page, none twice"
    assert not hidden, page.js(f"{hidden}.map((i) => document.querySelector("
                               "`[data-number='${i}']`).outerHTML)")  # fmt: skip

    page.js("document.activeElement.blur(); scrollTo(0, 0)")
    page.press("Tab")
    page.press("Enter")
    assert page.js("location.hash") in ("#main", "")
    page.call("Page.setInterceptFileChooserDialog", enabled=True)
    page.tab_to("#file", "Enter")
    page.until("true")
    assert any(event["method"] == "Page.fileChooserOpened" for event in page.browser.events)
    page.tab_to("#shipped", "Enter")
    page.until(
        "/^(Replaying t|T)he shipped/.test(document.getElementById('replay-status').textContent)"
    )
    page.tab_to("#stop", " ")
    page.shipped()
    page.tab_to("#board", " ")
    page.press("ArrowDown", 9)
    page.press(" ")
    assert page.text("board-hint") == "The pen is up."
    page.seen()
    page.tab_to("#units button", " ")
    page.until("document.querySelectorAll('#units [aria-pressed=true]').length === 1")
    assert page.js("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.tab_to("#time", "Home")
    page.press("ArrowRight", 3)
    assert page.text("step").startswith("3 of 800")
    page.tab_to("#play", " ")
    assert page.js("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.press(" ")
    assert page.js("document.activeElement.getAttribute('aria-pressed')") == "false"
    page.tab_to("#watched", "7")
    assert page.js("document.activeElement.value") == "7"
    page.tab_to("#edit select", "ArrowDown")
    assert page.js("document.activeElement.value") == "negate"
    page.tab_to("#edit [name=from]", "9", "Enter")
    page.says("edited", "Right before")
    page.tab_to("#edited-file")
    page.tab_to("#edited-show", "Enter")
    page.says("replay-status", "The edited log")
    assert page.js("document.activeElement.id") == "replay-title"
    page.tab_to("#edited-link")
    page.tab_to("#train [name=steps]", "4")
    page.tab_to("#train button", " ")
    page.says("trained", "4 steps")
    page.tab_to("#label", "1")
    page.tab_to("#keep", " ")
    assert page.text("kept") == "1 kept: 1."
    page.tab_to("#forget", " ")
    assert page.text("kept") == "No digit is kept."
    page.tab_to("#write [name=count]", "6", "Enter")
    page.says("speed", "6 characters written")
    page.tab_to("#weights")
    page.press("a", modifiers=2)
    for key in "3 1":
        page.press(key)
    assert "of 2 zero" in page.text("quantised")
    page.tab_to("#bars")
    page.press("ArrowRight", 2)
    page.press("ArrowDown")
    assert page.text("weights-said") == "Weight 2 of 2 is 0.7."
    page.tab_to("#k", "Home")
    assert page.text("k-is") == "1"


def test_a_screen_reader_hears_names_and_news(page):
    """Every control has a name; what changes is said once, politely, and no run says each step."""
    page.js("document.getElementById('sample').click()")
    page.seen()
    page.until("document.querySelectorAll('#units button').length === 16")
    roles = {"button", "link", "slider", "spinbutton", "textbox", "combobox", "image", "img"}
    roles |= {"progressbar", "application", "region", "Canvas", "figure", "group", "log"}
    nodes = page.named()
    assert sum(role in roles for role, *_ in nodes) > 60
    assert not [(role, node) for role, name, node in nodes if role in roles and not name]
    (log,) = [node for role, _, node in nodes if role == "log"]
    assert {"name": "live", "value": {"type": "token", "value": "polite"}} in log["properties"]
    loud = [p for _, _, node in nodes for p in node.get("properties", []) if p["name"] == "live"]
    assert [p["value"]["value"] for p in loud if p["value"]["value"] != "off"] == ["polite"] * sum(
        p["value"]["value"] == "polite" for p in loud
    )
    page.until("/It is a \\d/.test(document.getElementById('said').textContent)")
    page.js("""globalThis.heard = [];
      new MutationObserver((list) => list.forEach((one) =>
        one.addedNodes.forEach((node) => heard.push(node.textContent)))
      ).observe(document.getElementById("said"), { childList: true });""")
    page.fill("train", method="units", seed="0", steps="20", on="shipped")
    page.fill("write", prompt="A", seed="0", temperature="1", count="30")
    page.js("{const t = document.getElementById('time'); t.value = 100;"
            " t.dispatchEvent(new Event('input')); 0}")  # fmt: skip
    page.until("heard.some((text) => text.startsWith('After step 100 '))")
    heard = page.js("heard")
    assert [text for text in heard if text.startswith("20 steps, a log of")]
    assert [text for text in heard if text.startswith("30 characters written")]
    assert len(heard) < 8, heard
    page.until("/^100 of 800: /.test(document.getElementById('time').ariaValueText "
               "?? document.getElementById('time').getAttribute('aria-valuetext'))")  # fmt: skip


@pytest.mark.parametrize("calm", [False, True])
def test_who_wants_less_motion_gets_it(browse, calm):
    """Play goes in eight jumps of 1.5 s each where motion is to be reduced, else in a hundred."""
    motion = "reduce" if calm else "no-preference"
    page = browse(prefers_reduced_motion=motion)
    page.js("""globalThis.steps = new Set();
      new MutationObserver(() => steps.add(document.getElementById("time").value)).observe(
        document.getElementById("step"), { childList: true });
      document.getElementById("play").click();""")
    page.until("steps.size > 1")
    time.sleep(2)
    page.js("document.getElementById('play').click()")
    steps = sorted(map(int, page.js("[...steps]")))
    assert np.diff(steps).min() == (100 if calm else 8)
    assert len(steps) <= 4 if calm else len(steps) > 4


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_stands_out_from_its_background(browse, width, scheme):
    """No sideways scroll, contrast of 4.5, a focus that is seen: filled in, and resized."""
    page = browse(width, prefers_color_scheme=scheme)
    page.until("document.querySelectorAll('#units button').length === 16")
    page.js("document.querySelector('#units button').click()")
    page.fill("edit", kind="layer", layer="2")
    page.fill("train", steps="3")
    page.fill("write", count="40")
    page.js(SITE["LOOK"].read_text(encoding="utf-8"))
    look = f"document.body.classList.add('md-content'), siteLook.page({width}, 'light')"
    assert page.js(look)["faults"] == []
    page.press("Tab")
    assert page.js("siteLook.focus()") == []
    for narrow in (320, 700, width):
        size = {"width": narrow, "height": 700, "deviceScaleFactor": 1, "mobile": narrow < 500}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        assert page.js("document.documentElement.scrollWidth") == narrow


def test_the_module_of_the_page_is_found():
    """The assembled page's parts are the modules as they lie in the folder."""
    port = HOOK["linked"]("ports/js/minibit.mjs")
    assert "export " not in port.split("return {")[0].split("\n/**")[0]
    source = (ROOT / "docs/ports/js/minibit.mjs").read_text(encoding="utf-8")
    lines = set(port.splitlines())
    changed = [line for line in source.splitlines() if line.removeprefix("export ") not in lines]
    assert not changed
