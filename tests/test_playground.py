"""The playground: one page, driven in a browser as a reader would, and held against Python."""

import functools
import importlib.util
import json
import runpy
import subprocess
import sys
import time
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
BROWSER = SITE["find_browser"]()
MOST = 400_000  # bytes of the page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
]


class Page:
    """A page in a browser without a network."""

    def __init__(self, url, profile, width=1280, **features):
        self.browser = SITE["Browser"](BROWSER, str(profile))
        target = self.browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self.call = functools.partial(self.browser.call, session=attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        media = [{"name": name.replace("_", "-"), "value": v} for name, v in features.items()]
        self.call("Emulation.setEmulatedMedia", features=media)
        self.call("Page.navigate", url=url)
        self.until("document.body?.dataset.ready === 'true'")

    def js(self, expression):
        """Return the value of an expression."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression, seconds=60):
        """Wait until an expression holds."""
        end = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < end, f"never: {expression}; {self.text('replay-status')}"
            time.sleep(0.05)

    def text(self, name):
        """Return the text of an element."""
        return self.js(f"document.getElementById({name!r}).textContent")

    def fill(self, form, **fields):
        """Fill a form in and send it; wait until it is done."""
        for name, value in fields.items():
            self.js(f"document.getElementById({form!r}).elements[{name!r}].value = {value!r}")
        self.js(f"document.getElementById({form!r}).requestSubmit()")
        self.until(f"!document.querySelector('#{form} button').disabled")

    def file(self, link):
        """Return the bytes behind a download link."""
        read = f"fetch(document.getElementById({link!r}).href).then((r) => r.arrayBuffer())"
        return bytes(self.js(f"{read}.then((b) => Array.from(new Uint8Array(b)))"))

    def open_log(self, data, name):
        """Drop a file on the page."""
        text = json.dumps(list(data))
        self.js(f"""{{
          const carried = new DataTransfer();
          carried.items.add(new File([Uint8Array.from({text})], {name!r}));
          document.body.dispatchEvent(new DragEvent("drop", {{ dataTransfer: carried }}));
        }}""")
        self.until(f"document.getElementById('replay-status').textContent.startsWith({name!r})")

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
        pixels = self.js("modules['page.mjs'].state().pixels")
        self.until("modules['page.mjs'].state().probabilities !== null")
        return np.uint8(pixels), np.array(self.js("modules['page.mjs'].state().probabilities"))


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

    def press(key, times=1):
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                text = {"text": " "} if key == " " and kind == "keyDown" else {}
                page.call("Input.dispatchKeyEvent", type=kind, key=key, **text)

    press(" ")
    press("ArrowDown", 10)
    press(" ")
    pixels, _ = page.seen()
    assert (pixels.reshape(28, 28)[6:22, 13:15] > 200).all(), "a vertical line in the middle"
    press("Delete")
    assert page.text("answer") == "Nothing is drawn yet."


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
    page.until("document.getElementById('edited').textContent.startsWith('Right')")
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
        page.js("document.getElementById('shipped').click()")
        page.until(f"document.getElementById('digest').textContent === {before!r}")
    else:
        assert "was not replayed" in said, said
        assert page.text("digest") == before


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_every_control_has_a_name(path, tmp_path, width, scheme):
    """No sideways scroll, in light and dark, with and without motion; no error in the console."""
    calm = "reduce" if scheme == "dark" else "no-preference"
    page = Page(path.as_uri(), tmp_path, width, prefers_color_scheme=scheme,
                prefers_reduced_motion=calm)  # fmt: skip
    assert page.js("document.documentElement.scrollWidth") == width
    nameless = page.js("""[...document.querySelectorAll('input, select, textarea, button, canvas')]
      .filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).length""")
    assert nameless == 0
    page.js("document.getElementById('sample').click()")
    page.seen()
    faults = SITE["heard"](page.browser.events, path.parent.as_uri())
    page.browser.close()
    assert not faults


def test_the_module_of_the_page_is_found():
    """The assembled page's parts are the modules as they lie in the folder."""
    spec = importlib.util.spec_from_file_location("hook", ROOT / "docs/hooks/playground.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    port = hook.linked("ports/js/minibit.mjs")
    assert "export " not in port.split("return {")[0].split("\n/**")[0]
    source = (ROOT / "docs/ports/js/minibit.mjs").read_text(encoding="utf-8")
    lines = set(port.splitlines())
    changed = [line for line in source.splitlines() if line.removeprefix("export ") not in lines]
    assert not changed
