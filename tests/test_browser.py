"""The report's page in a real browser: no error, no request, figures drawn, light and dark.

Chromium is driven over --remote-debugging-pipe: JSON messages of the DevTools protocol, ended by NUL, on its
descriptors 3 and 4. What the page asks of the network and logs as an error is what the browser itself reports.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import time

import pytest
from test_report import ALL, written  # noqa: F401 - a fixture

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome: the page can't be opened"),
]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run", "--remote-debugging-pipe", "--hide-scrollbars"]
# The browser wants its pipe on descriptors 3 and 4; a process between puts them there.
START = "import os, sys; a, b = map(int, sys.argv[1:3]); os.dup2(a, 103); os.dup2(b, 104); "
START += "os.dup2(103, 3); os.dup2(104, 4); os.execv(sys.argv[3], sys.argv[3:])"


class Page:
    """A page in a browser of its own: `faults` are its errors and requests; `js` evaluates in it."""

    def __init__(self, path, profile, size=(1200, 900), dark=False):
        read, self.out = os.pipe()
        self.back, write = os.pipe()
        command = [sys.executable, "-c", START, str(read), str(write), BROWSER, *FLAGS, f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            command, pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read), os.close(write)
        self.buffer, self.count, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.url = path.resolve().as_uri()
        assert "errorText" not in self.call("Page.navigate", url=self.url), f"can't open {self.url}"
        self.wait(lambda: any(e["method"] == "Page.loadEventFired" for e in self.events))
        time.sleep(0.3)  # what a script starts late
        self.js("0")  # reads the events of that time

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.out)  # a browser without its pipe leaves
        os.close(self.back)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def call(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        found = []
        self.wait(lambda: found.extend(e for e in self.events if e.get("id") == self.count) or found)
        self.events.remove(found[0])
        assert "error" not in found[0], found[0]
        return found[0]["result"]

    def wait(self, done, seconds=60):
        end = time.monotonic() + seconds
        while not done():
            assert select.select([self.back], [], [], max(0, end - time.monotonic()))[0], "the browser doesn't answer"
            data = os.read(self.back, 1 << 20)
            assert data, "the browser ended"
            *messages, self.buffer = (self.buffer + data).split(b"\0")
            for event in map(json.loads, messages):
                self.events.append({"method": "", **event})

    def js(self, expression):
        """Its value, JSON."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    @property
    def faults(self):
        """Errors, warnings, and requests other than for the page itself."""
        out = []
        for event in self.events:
            params = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                out.append(f"exception: {params['exceptionDetails']['text']}")
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                out.append(f"log: {params['entry']['text']}")
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                out.append(f"console: {params['type']}")
            elif event["method"] == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if url != self.url and not url.startswith("data:"):  # figures hold their images themselves
                    out.append(f"request: {url}")
        return out


@pytest.fixture(scope="module")
def page(written, tmp_path_factory):  # noqa: F811
    with Page(written[0] / "index.html", tmp_path_factory.mktemp("profile")) as page:
        yield page


def test_no_error_and_no_request(page):
    assert page.faults == []
    assert page.js("document.title") == "A <title> & more"


def test_figures_are_drawn(page):
    """Every figure's image is decoded, and lies within the page."""
    boxes = page.js(
        "Object.fromEntries([...document.querySelectorAll('figure')].map(f => { const i = f.querySelector('img');"
        "const b = i.getBoundingClientRect(); return [f.id, [i.naturalWidth, b.width, b.height, b.x, b.right]]; }))"
    )
    assert set(boxes) == ALL
    for name, (natural, width, height, left, right) in boxes.items():
        assert natural > 900 and width > 300 and height > 150 and left >= 0 and right <= 1200, name


def test_all_runs_and_the_main_tables_are_shown(page):
    assert page.js("document.querySelectorAll('#runs tbody tr').length") == 20
    shown = page.js("[...document.querySelectorAll('details[open]')].map(d => d.id)")
    assert shown == ["parameters", "holdout", "compared"]


def test_nothing_is_wider_than_the_page(written, tmp_path):  # noqa: F811
    with Page(written[0] / "index.html", tmp_path, size=(400, 800)) as page:
        assert page.js("document.documentElement.scrollWidth") <= 400
        assert page.faults == []


def test_dark_pages_are_dark(written, tmp_path, page):  # noqa: F811
    colour = "getComputedStyle(document.body).{}.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + +part, 0)"
    ink, paper = colour.format("color"), colour.format("backgroundColor")
    with Page(written[0] / "index.html", tmp_path, dark=True) as dark:
        assert dark.js(ink) - dark.js(paper) > 400
    assert page.js(paper) - page.js(ink) > 400


@pytest.mark.parametrize(
    ("planted", "fault"),
    [
        ("fetch('http://127.0.0.1:9/x').catch(() => {})", "request: http://127.0.0.1:9/x"),
        ("new Image().src = 'https://example.invalid/a.png'", "request: https://example.invalid/a.png"),
        ("throw new Error('planted')", "exception: "),
        ("console.error('planted')", "console: error"),
        ("setTimeout(() => missing(), 50)", "exception: "),
    ],
)
def test_what_is_planted_is_seen(written, tmp_path, planted, fault):  # noqa: F811
    text = (written[0] / "index.html").read_text().replace("</body>", f"<script>{planted}</script></body>")
    (tmp_path / "index.html").write_text(text)
    with Page(tmp_path / "index.html", tmp_path / "profile") as page:
        assert any(found.startswith(fault) for found in page.faults), page.faults
