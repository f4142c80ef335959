"""A headless Chromium, driven over a pipe with the DevTools protocol: no port, no driver, no package.

https://chromedevtools.github.io/devtools-protocol/ names the methods and events.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PATIENCE = 60  # seconds for one answer: a busy machine with few cores is slow


class Browser:
    """One page. events: everything that the browser said since it was opened."""

    def __init__(self, profile: Path) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        assert program, "no Chromium on this machine: run `make browser`"
        flags = [
            "--headless=new",
            "--no-sandbox",  # its sandbox does not work for root, as in most containers
            "--disable-gpu",
            "--no-first-run",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
        ]
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()
        # The browser reads file descriptor 3 and writes 4.
        command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        with open(profile / "browser.log", "wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", command, program, *flags], pass_fds=(to_browser, from_browser), stderr=log
            )
        os.close(to_browser)
        os.close(from_browser)
        self.events: list[dict[str, Any]] = []
        self._number, self._session, self._received = 0, "", b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._session = ""
        self.call("Browser.close")
        self._process.wait(PATIENCE)
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method. Events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while (answer := self._receive(deadline)).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, file: Path | str, width: int, height: int = 900) -> None:
        """Show a file or an address in a window of `width` CSS pixels; returns when it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.events.clear()
        self.call("Page.navigate", url=file if isinstance(file, str) else file.resolve().as_uri())
        deadline = time.monotonic() + PATIENCE
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive(deadline))
        self.run("document.fonts.ready.then(() => true)")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, as JSON holds it."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, file: Path, top: int = 0, height: int | None = None) -> None:
        """The page in its whole width as PNG, from `top` on; to its end without `height`."""
        width, end = self.run("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": top, "width": width, "height": min(height or end, end - top), "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser said nothing for {PATIENCE} s"
            more = os.read(self._from, 1 << 20)
            assert more, f"the browser ended with {self._process.wait(PATIENCE)}; see browser.log in its profile"
            self._received += more
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)
