"""Who gets a page of ``corral top --web``: whoever has its address, and nobody else."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import psutil
import pytest

from agentd.cli.errors import UsageError
from agentd.cli.top import _listening
from tui import web
from tui.web import WebDashboard, WebError, is_loopback

QUITS = """
import sys
print("__GANGLION__", flush=True)
while kind := sys.stdin.buffer.read(1):
    if b'"quit"' in sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(4), "big")):
        break
"""
HANGS = "import signal; print('__GANGLION__', flush=True); signal.pause()"


@asynccontextmanager
async def served(script: str) -> AsyncIterator[WebDashboard]:
    said: list[str] = []
    made = WebDashboard([sys.executable, "-c", script], host="127.0.0.1", port=0, said=said.append)
    ready = asyncio.Event()
    serving = asyncio.create_task(made.serve_forever(ready))
    await ready.wait()
    assert said == [made.address]
    try:
        yield made
    finally:
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving


@pytest.fixture
async def dashboard() -> AsyncIterator[WebDashboard]:
    """Its pages' processes do nothing but end when they are told to."""
    async with served(QUITS) as made:
        yield made


async def _get(url: str, **headers: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as client, client.get(url, headers=headers) as answer:
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        return answer.status, await answer.text("latin-1")


async def test_the_address_opens_the_page_and_nothing_of_it_comes_from_elsewhere(dashboard: WebDashboard) -> None:
    status, text = await _get(dashboard.address)
    assert status == 200
    assert f"ws://127.0.0.1:{dashboard.port}/{dashboard.secret}/ws" in text
    elsewhere = [part for part in text.split('"') if "//" in part and f"127.0.0.1:{dashboard.port}/" not in part]
    assert elsewhere == []
    for path in ("static/js/textual.js", "static/css/xterm.css", "static/fonts/RobotoMono-VariableFont_wght.ttf"):
        assert (await _get(f"{dashboard.address}{path}"))[0] == 200


async def test_the_port_alone_gives_nothing(dashboard: WebDashboard) -> None:
    root = f"http://127.0.0.1:{dashboard.port}"
    other = "A" * len(dashboard.secret)
    for path in ("/", "/ws", "/static/js/textual.js", f"/{other}/", f"/{other}/ws", "/download/unknown", "/%2e%2e/"):
        status, text = await _get(root + path)
        assert status == 404, path
        assert dashboard.secret not in text


async def test_another_name_or_another_site_is_refused(dashboard: WebDashboard) -> None:
    assert (await _get(dashboard.address, Host="evil.example"))[0] == 421
    assert (await _get(dashboard.address, Host=f"localhost:{dashboard.port}"))[0] == 200
    assert (await _get(dashboard.address, Origin="http://evil.example"))[0] == 403
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await client.ws_connect(f"{dashboard.address}ws", origin="http://evil.example")
    assert refused.value.status == 403


async def test_only_so_many_pages(dashboard: WebDashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_PAGES", 1)
    async with aiohttp.ClientSession() as client:
        async with client.ws_connect(f"{dashboard.address}ws"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await client.ws_connect(f"{dashboard.address}ws")
            assert refused.value.status == 503
        await dashboard.all_closed.wait()  # the handler ends a moment after the client has gone
        async with client.ws_connect(f"{dashboard.address}ws"):
            pass


@pytest.mark.parametrize("script", [QUITS, HANGS])
async def test_a_page_that_is_closed_ends_its_process(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "PATIENCE", 0.2 if script is HANGS else 60.0)
    before = set(psutil.Process().children())
    async with served(script) as made, aiohttp.ClientSession() as client:
        async with client.ws_connect(f"{made.address}ws") as page:
            await page.send_json(["ping", 1])
            assert await page.receive_json() == ["pong", 1]
            assert len(set(psutil.Process().children()) - before) == 1
        await made.all_closed.wait()
        assert set(psutil.Process().children()) == before


async def test_the_end_of_the_server_ends_open_pages() -> None:
    before = set(psutil.Process().children())
    async with aiohttp.ClientSession() as client:
        async with served(QUITS) as made:
            page = await client.ws_connect(f"{made.address}ws")
            await page.send_json(["ping", 1])
            assert await page.receive_json() == ["pong", 1]
        assert set(psutil.Process().children()) == before
        await page.close()


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", '["stdin"]', '["resize", 3]', '["stdin", 3]'])
async def test_nonsense_ends_its_own_page_alone(dashboard: WebDashboard, text: str) -> None:
    async with aiohttp.ClientSession() as client, client.ws_connect(f"{dashboard.address}ws") as page:
        await page.send_str(text)
        answer = await page.receive()
        assert answer.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    assert (await _get(dashboard.address))[0] == 200


def test_addresses() -> None:
    assert _listening("127.0.0.1:8000") == ("127.0.0.1", 8000)
    assert _listening("[::1]:0") == ("::1", 0)
    for text in ("8000", ":8000", "a:b", "a:70000", "a:-1", "a:²"):
        with pytest.raises(UsageError, match="HOST:PORT"):
            _listening(text)
    assert is_loopback("::1")
    assert is_loopback("127.9.9.9")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("example.com")


def test_a_port_that_is_taken() -> None:
    first = WebDashboard(["true"], host="127.0.0.1", port=0)
    try:
        with pytest.raises(WebError, match="choose another port"):
            WebDashboard(["true"], host="127.0.0.1", port=first.port)
    finally:
        first.close()


async def test_the_command_line_says_who_may_and_ends_at_a_signal() -> None:
    process = await asyncio.create_subprocess_exec(
        *shlex.split(f"{sys.executable} -m agentd.cli --api unix:/nonexistent/s top --web --listen 127.0.0.1:0"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    address = (await process.stdout.readline()).decode().strip()
    assert (await _get(address))[0] == 200
    process.terminate()
    _, err = await process.communicate()
    assert process.returncode == 0
    assert b"whoever has this address acts as you" in err
