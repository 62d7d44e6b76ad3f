"""A real browser, headless, through its own protocol (Chrome DevTools): what a page gets, keys, pictures."""

from __future__ import annotations

import asyncio
import base64
import itertools
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

WITHIN: Final = 60.0  # seconds for what must come; a browser starts slowly on a busy machine
_ESCAPES: Final = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[=>78]")


def chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is missing: apt-get install chromium (scripts/test does, as root)")
    return found


class Browser:
    """One window. ``text`` is what the page's web socket brought, without the terminal's escapes."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._changed = asyncio.Event()
        self._got = bytearray()
        self.requests: list[str] = []  # every address that the page asked for
        self.refused: list[str] = []  # what its security policy or the network kept from it
        self._reader = asyncio.create_task(self._read())

    @property
    def text(self) -> str:
        return _ESCAPES.sub(b"", bytes(self._got)).decode("utf-8", "replace")

    def forget(self) -> None:
        self._got.clear()

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(WITHIN):
            return await answer

    async def click(self, x: int, y: int) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def press(self, key: str) -> None:
        await self.send("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        await self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def until(self, *texts: str) -> str:
        return await self.until_true(lambda: all(text in self.text for text in texts), f"no {texts}")

    async def until_true(self, holds: Callable[[], bool], what: str) -> str:
        try:
            async with asyncio.timeout(WITHIN):
                while not holds():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pytest.fail(f"{what} after {WITHIN:g} s; refused: {self.refused}; the page got:\n{self.text[-4000:]}")
        return self.text

    async def picture(self) -> bytes:
        """PNG."""
        return base64.b64decode((await self.send("Page.captureScreenshot", format="png"))["data"])

    async def _read(self) -> None:
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                answer = self._answers.pop(said["id"])
                if "error" in said:
                    answer.set_exception(RuntimeError(str(said["error"])))
                else:
                    answer.set_result(said["result"])
                continue
            match said["method"], said["params"]:
                case "Network.webSocketFrameReceived", {"response": {"opcode": 2, "payloadData": str(payload)}}:
                    self._got += base64.b64decode(payload)
                case "Network.requestWillBeSent", {"request": {"url": str(url)}}:
                    self.requests.append(url)
                case "Network.loadingFailed", {"errorText": str(text)}:
                    self.refused.append(text)
                case "Log.entryAdded", {"entry": {"level": "error", "text": str(text)}}:
                    self.refused.append(text)
                case "Runtime.exceptionThrown", {"exceptionDetails": details}:
                    self.refused.append(str(details))
            self._changed.set()

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


@asynccontextmanager
async def browse(url: str, *, width: int = 1400, height: int = 800) -> AsyncIterator[Browser]:
    """Opens ``url`` in a browser of its own, with a profile of its own. Ended with the block."""
    with tempfile.TemporaryDirectory(prefix="corral-browser-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", f"--window-size={width},{height}",
            f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        draining: asyncio.Task[bytes] | None = None
        try:
            async with asyncio.timeout(WITHIN):
                while not (line := await process.stderr.readline()).startswith(b"DevTools listening on"):
                    assert line, "the browser ended at once"
            draining = asyncio.create_task(process.stderr.read())
            port = int((Path(profile) / "DevToolsActivePort").read_text().split()[0])
            async with aiohttp.ClientSession() as client:
                async with client.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    target = next(one for one in await answer.json() if one["type"] == "page")
                async with client.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=1 << 26) as socket:
                    browser = Browser(socket)
                    try:
                        for domain in ("Network", "Page", "Runtime", "Log"):
                            await browser.send(f"{domain}.enable")
                        await browser.send("Page.navigate", url=url)
                        yield browser
                    finally:
                        await browser.close()
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
            if draining is not None:
                await draining
