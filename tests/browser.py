"""Debian's Chromium (or Chrome) without a screen, driven by selenium."""

import contextlib
import json
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from flm_jax.demo.server import Server

webdriver = pytest.importorskip("selenium.webdriver", reason="it drives the browser")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
DRIVER = shutil.which("chromedriver") or ""


@contextlib.contextmanager
def served(folder: pathlib.Path) -> Iterator[str]:
    """The address of a folder on the loopback."""
    server = Server(folder)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server.address
    finally:
        server.stop()
        thread.join()


class Page:
    """A browser with one page of the demo."""

    def __init__(self):
        if not (CHROMIUM and DRIVER):
            pytest.skip("there is no Chromium (apt install chromium chromium-driver)")
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
            options.add_argument(f"--{word}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(DRIVER)
        self.driver = webdriver.Chrome(options, service)
        self.driver.set_script_timeout(60)

    def screen(self, width: int = 1280, dark: bool = False) -> None:
        sizes = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, address: str) -> None:
        self.logs()
        self.driver.get(address)
        self.settle()

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, until: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 60
        while not until():
            assert time.monotonic() < end, f"{what}: {self.text('body')}\n{self.logs()}"
            time.sleep(0.05)

    def settle(self) -> None:
        """Waits until all models have written."""
        idle = "return document.body.dataset.state === 'idle'"
        self.wait(lambda: self.run(idle), "the page is not ready")

    def text(self, css: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", css)

    def tokens(self, column: int = 0, css: str = "i") -> list[str]:
        """The tokens that a column shows."""
        find = "document.querySelectorAll('article')[arguments[0]].querySelectorAll(arguments[1])"
        return self.run(f"return [...{find}].map((i) => i.textContent)", column, f".tokens {css}")

    def timing(self, column: int = 0) -> str:
        css = f"article:nth-of-type({column + 1}) .timing"
        return self.text(css)

    def set(self, name: str, value) -> None:
        """Changes a control as a person does."""
        self.run(
            "const node = document.getElementById(arguments[0]); node.value = arguments[1];"
            "for (const kind of ['input', 'change']) node.dispatchEvent(new Event(kind));",
            name, value,
        )  # fmt: skip
        self.settle()

    def click(self, css: str, which: int = 0) -> None:
        self.run("document.querySelectorAll(arguments[0])[arguments[1]].click()", css, which)
        self.settle()

    def logs(self) -> list[str]:
        """What the page complained of since it was last asked."""
        return [line["message"] for line in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses that were asked for since it was last asked."""
        lines = (
            json.loads(line["message"])["message"] for line in self.driver.get_log("performance")
        )
        sent = (line["params"] for line in lines if line["method"] == "Network.requestWillBeSent")
        return [params["request"]["url"] for params in sent]
