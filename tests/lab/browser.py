"""A headless Chromium that is told what to do by the DevTools protocol over a pipe: no driver, no port, no library.

Life: ``Browser`` starts one with a profile of its own and one page, and ends it by its process id. The page's console,
its errors and every address it asks for are kept for tests to look at.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .lab_tools import PATIENCE_S

CHROMIUM = "/usr/bin/chromium"
_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-extensions "
    "--disable-background-networking --disable-component-update --disable-sync --disable-default-apps "
    "--disable-breakpad --disable-crash-reporter --no-default-browser-check --mute-audio --hide-scrollbars "
    "--disable-features=Translate,OptimizationHints,MediaRouter,DialMediaRouteProvider --remote-debugging-pipe"
)
_START_S = 60.0
KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), " ": (32, " ")} | {
    f"Arrow{name}": (code, "") for name, code in (("Left", 37), ("Up", 38), ("Right", 39), ("Down", 40))
}


def _pipe() -> tuple[int, int]:
    """Its ends, out of the way of the numbers the browser wants."""
    found = []
    for fd in os.pipe():
        found.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20))
        os.close(fd)
    return found[0], found[1]


class BrowserError(Exception):
    """It says no."""


class Browser:
    """One page. Use it in a ``with``."""

    def __init__(self, profile: Path, size: tuple[int, int] = (1440, 900)) -> None:
        self.console: list[str] = []
        self.requests: list[str] = []
        self._number, self._held, self._session = 0, b"", ""
        mine, its = _pipe(), _pipe()
        words = [
            CHROMIUM,
            *_FLAGS.split(),
            f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
        ]
        self._process = subprocess.Popen(
            # The pipe's ends have to be the file descriptors 3 and 4.
            [
                "bash",
                "-c",
                f'exec "$@" 3<&{mine[0]} 4>&{its[1]} {mine[0]}<&- {its[1]}>&-',
                "chromium",
                *words,
                "about:blank",
            ],
            pass_fds=(mine[0], its[1]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(mine[0])
        os.close(its[1])
        self._write, self._read = mine[1], its[0]
        os.set_blocking(self._read, False)
        try:
            self._open(size)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it and all of its processes, which are a session of their own."""
        for fd in (self._write, self._read):
            with contextlib.suppress(OSError):
                os.close(fd)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_START_S)

    def _open(self, size: tuple[int, int]) -> None:
        end = time.monotonic() + _START_S
        page = ""
        while not page:
            found = self._call("Target.getTargets", {}, _START_S)["targetInfos"]
            page = next((item["targetId"] for item in found if item["type"] == "page"), "")
            if time.monotonic() > end:
                raise BrowserError("no page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1,
            mobile=False,
        )

    # protocol

    def call(self, method: str, /, **params: Any) -> dict[str, Any]:
        """A command's result. Raises BrowserError."""
        return self._call(method, params, _START_S)

    def _call(self, method: str, params: Mapping[str, Any], patience: float) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        end = time.monotonic() + patience
        while time.monotonic() < end:
            found = self._next(end - time.monotonic())
            if found is not None and found.get("id") == number:
                if "error" in found:
                    raise BrowserError(f"{method}: {found['error'].get('message')}")
                return dict(found["result"])
        raise BrowserError(f"{method}: no answer")

    def _next(self, patience: float) -> dict[str, Any] | None:
        while b"\0" not in self._held:
            if not select.select([self._read], [], [], max(patience, 0))[0]:
                return None
            data = os.read(self._read, 1 << 20)
            if not data:
                raise BrowserError("it has ended")
            self._held += data
        line, _, self._held = self._held.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, params: Mapping[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning", "assert"}:
            self.console.append(
                " ".join(str(item.get("value", item.get("description", ""))) for item in params["args"])
            )
        elif method == "Runtime.exceptionThrown":
            told = params["exceptionDetails"]
            self.console.append(str(told.get("exception", {}).get("description") or told["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in {"error", "warning"}:
            self.console.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    # what tests do

    def go(self, url: str) -> None:
        """Load a page anew."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Value of an expression (awaited). Raises BrowserError."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            told = found["exceptionDetails"]
            raise BrowserError(str(told.get("exception", {}).get("description") or told["text"]))
        return found["result"].get("value")

    def until(self, condition: str, patience: float = 3 * PATIENCE_S) -> Any:
        """Wait until an expression is true; its value. Raises AssertionError with the expression."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            value = self.run(condition)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {condition}; console: {self.console}")

    def click(self, selector: str) -> None:
        """A real click in the middle of an element."""
        place = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'nearest'}});"
            " const r = (e.querySelector?.('.shape') || e).getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=place[0],
                y=place[1],
                button="left" if kind != "mouseMoved" else "none",
                clickCount=1,
            )

    def press(self, key: str, times: int = 1) -> None:
        """A real key."""
        code, text = KEYS[key]
        for _ in range(times):
            common = {"key": key, "code": key if key != " " else "Space", "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
            self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def media(self, **features: str) -> None:
        """``media(prefers_color_scheme="dark")``."""
        found = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=found)

    def picture(self, file: Path) -> None:
        """A PNG of what is to be seen."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def wait_for(self, condition: Callable[[], bool], patience: float = 3 * PATIENCE_S) -> None:
        """Until something outside the page is so."""
        end = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < end
            self.run("1")  # reads what the browser has to say meanwhile
            time.sleep(0.05)
