"""A headless Chromium, asked by its DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

needs_browser = pytest.mark.skipif(not PROGRAM, reason="there is no Chromium to open the page in")


@dataclass
class Opened:
    """A page in the browser, and what it has done so far."""

    browser: Browser
    session: str
    requests: list[str] = field(default_factory=list)
    """Addresses that it asked for."""
    console: list[str] = field(default_factory=list)
    """What it said there, errors of scripts and of policies among it."""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, session=self.session, **parameters)

    def look(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    def resize(self, width: int, height: int = 900) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def prefer(self, scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def picture(self) -> bytes:
        """The whole page as a PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def printed(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF")["data"])


class Browser:
    """The program; messages are JSON, each ended by a zero byte."""

    def __init__(self, folder: Path) -> None:
        to_it, from_us = os.pipe()
        from_it, to_us = os.pipe()

        def take_places() -> None:
            # It reads descriptor 3 and writes 4; neither pipe may lie there already.
            high = [os.dup(fd) for fd in (to_it, to_us)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self._process = subprocess.Popen(
            [
                PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-background-networking", "--disable-component-update",
                "--disable-dev-shm-usage", "--remote-debugging-pipe",
                f"--user-data-dir={folder}", "about:blank",
            ],
            close_fds=False, preexec_fn=take_places,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_it)
        os.close(to_us)
        self._to, self._from = os.fdopen(from_us, "wb"), os.fdopen(from_it, "rb")
        self._n_sent, self._rest = 0, b""
        self._pages: dict[str, Opened] = {}
        self._loaded: set[str] = set()

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = self._from.read1(1 << 20)
            assert piece, "the browser has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._n_sent += 1
        message: dict[str, Any] = {"id": self._n_sent, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._n_sent:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        page, told = self._pages.get(event.get("sessionId", "")), event.get("params", {})
        if page is None:
            return
        if event["method"] == "Network.requestWillBeSent":
            page.requests.append(told["request"]["url"])
        elif event["method"] == "Runtime.consoleAPICalled":
            page.console.append(str(told["args"]))
        elif event["method"] == "Runtime.exceptionThrown":
            page.console.append(str(told["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded":
            page.console.append(told["entry"]["text"])
        elif event["method"] == "Page.loadEventFired":
            self._loaded.add(page.session)

    def open(self, path: Path) -> Opened:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Opened(self, session)
        for domain in ("Network", "Runtime", "Log", "Page"):
            page.call(f"{domain}.enable")
        page.call("Page.navigate", url=path.resolve().as_uri())
        while session not in self._loaded:
            self._note(self._next())
        page.look("new Promise(done => setTimeout(done, 50))")
        return page

    def close(self) -> None:
        try:
            self.call("Browser.close")
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
        self._to.close()
        self._from.close()


@contextmanager
def browser_in(folder: Path) -> Iterator[Browser]:
    browser = Browser(folder)
    try:
        yield browser
    finally:
        browser.close()
