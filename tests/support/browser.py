"""A page in a real headless Chromium, driven by the DevTools protocol over a pipe: real pointer, real keys, no port.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-extensions",
)
_PATIENCE_S = 120


class Page:
    """An opened page.

    Attributes:
        requests: addresses of everything that was asked for, the page itself among them.
        faults: errors of scripts, and what the page's own policy refused.
    """

    def __init__(self, receive: int, send: int) -> None:
        self._receive, self._send, self._rest = receive, send, b""
        self._count, self._session = 0, ""
        self._pointer = (0.0, 0.0)
        self.requests: list[str] = []
        self.faults: list[str] = []

    def open(self, address: str, *, width: int, height: int, dark: bool) -> None:
        """Load a page into a window of that many pixels."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        given = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in given, given
        return given["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until a JavaScript expression holds."""
        end = time.monotonic() + _PATIENCE_S
        while not self.evaluate(expression):
            assert time.monotonic() < end, expression

    def point_at(self, selector: str) -> None:
        """Move the pointer onto the middle of the first line of an element."""
        at = self.evaluate(
            f"""(() => {{
                const element = document.querySelector({json.dumps(selector)});
                element.scrollIntoView({{block: "center"}});
                const box = element.getClientRects()[0];
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        self._pointer = at
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])

    def click(self, selector: str, *, count: int = 1) -> None:
        """Click an element in its middle, so many times in a row."""
        self.point_at(selector)
        x, y = self._pointer
        for time_ in range(count):
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=time_ + 1)

    def write(self, text: str) -> None:
        """Put text where the focus is, as if it had been typed."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, *, ctrl: bool = False, shift: bool = False) -> None:
        """Press and let go a key, by its name and its virtual code."""
        held = 2 * ctrl + 8 * shift
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                modifiers=held,
                **(text if kind == "keyDown" else {}),
            )

    def tap(self, x: float, y: float) -> None:
        """Touch the window at a place and let go. What a browser makes of it comes a little later."""
        self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def picture(self, file: Path) -> None:
        """Write what the window shows as a PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result; events that come before it are noted."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session and not method.startswith("Target."):
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._receive, 2**20)
            assert data, "the browser has ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.faults.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.faults.append(parameters["entry"]["text"])


@contextmanager
def opened(address: str, profile: Path, *, width: int = 1200, height: int = 800, dark: bool = False) -> Iterator[Page]:
    """A page in a browser of its own.

    Args:
        address: of the page.
        profile: a folder for what the browser keeps; it is created.
        width, height: of the window, in pixels; below 600 it is a phone's.
        dark: the user prefers dark pages.
    """
    assert CHROMIUM
    read_here, write_there = os.pipe()
    read_there, write_here = os.pipe()
    arguments = [CHROMIUM, *_OPTIONS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    process = subprocess.Popen(  # Chromium reads from 3 and writes to 4
        ["bash", "-c", f'exec "$0" "$@" 3<&{read_there} 4>&{write_there}', *arguments],
        pass_fds=(read_there, write_there),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_there)
    os.close(write_there)
    try:
        page = Page(read_here, write_here)
        page.open(address, width=width, height=height, dark=dark)
        yield page
        page.call("Browser.close")
    finally:
        os.close(write_here)
        os.close(read_here)
        try:
            process.wait(_PATIENCE_S)
        finally:
            process.kill()
            process.wait()
