"""A real headless Chromium for tests, spoken to over its DevTools protocol."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
BROWSER = next((path for name in _NAMES if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"no browser on the PATH: none of {', '.join(_NAMES)}")
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0")
_START_SECONDS = 60


class Tab:
    """A page in the browser, and what it complained about."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.complaints: list[str] = []
        """What the page logged: errors, and whatever its policy refused."""
        self.requests: list[str] = []
        """Every address the page asked for."""

    async def open(self, path: Path, *, width: int = 1200, is_dark: bool = False) -> None:
        for domain in ("Page", "Log", "Network", "Runtime"):
            await self._command(f"{domain}.enable")
        await self._command(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        await self.emulate(scheme="dark" if is_dark else "light")
        await self._command("Page.navigate", url=path.as_uri())
        await self._event("Page.loadEventFired")

    async def emulate(self, *, scheme: str = "light", medium: str = "screen") -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self._command("Emulation.setEmulatedMedia", media=medium, features=[feature])

    async def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = await self._command("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def becomes(self, expression: str) -> None:
        """Waits, frame by frame, until a JavaScript expression is true."""
        framed = f"new Promise(done => requestAnimationFrame(() => done(Boolean({expression}))))"
        async with asyncio.timeout(_START_SECONDS):
            while not (await self._command("Runtime.evaluate", expression=framed, awaitPromise=True))["result"][
                "value"
            ]:
                pass

    async def press(self, key: str, code: int) -> None:
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            await self._command(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text
            )

    async def _command(self, method: str, **parameters: object) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._receive()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])

    async def _event(self, method: str) -> None:
        while (await self._receive()).get("method") != method:
            pass

    async def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = await self._socket.receive_json(timeout=_START_SECONDS)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Log.entryAdded":
                self.complaints.append(parameters["entry"]["text"])
            case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled":
                self.complaints.append(str(parameters))
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
        return message


@asynccontextmanager
async def tab(profile: Path) -> AsyncIterator[Tab]:
    """A browser of its own with one page, ended when the block is."""
    assert BROWSER is not None
    browser = await asyncio.create_subprocess_exec(
        BROWSER, *_FLAGS, f"--user-data-dir={profile}", "about:blank", stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_START_SECONDS):
            port = await _port(browser)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as response:
                targets = await response.json()
            page = next(target for target in targets if target["type"] == "page")
            async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Tab(socket)
    finally:
        with suppress(ProcessLookupError):
            browser.kill()
        await browser.communicate()


async def _port(browser: asyncio.subprocess.Process) -> str:
    assert browser.stderr is not None
    while line := await browser.stderr.readline():
        if found := re.search(rb"DevTools listening on ws://127\.0\.0\.1:(\d+)/", line):
            return found[1].decode()
    raise AssertionError("the browser ended before it listened")
