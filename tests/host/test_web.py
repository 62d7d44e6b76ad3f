"""The dashboard in a real browser (Debian's chromium, headless), with a real daemon and a real call."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.host.browser import browse, chromium
from tests.support.daemons import REPOSITORY, DaemonFactory

pytestmark = pytest.mark.host


async def test_an_operator_watches_and_freezes_in_a_browser(daemons: DaemonFactory, short_tmp: Path) -> None:
    chromium()
    daemon = await daemons.start(tenants={"acme": {"memory_max": "512M"}})
    session = await daemon.open_session("acme", "coder")
    call = await daemon.launch(
        session, "/bin/sleep", "300", options=("--tool", "napper", "--memory", "16M:64M"),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agentd.cli", "--api", f"unix:{daemon.operator_socket}", "top", "--web",
        "--listen", "127.0.0.1:0", "--interval", "0.2",
        cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(REPOSITORY), "XDG_STATE_HOME": str(short_tmp)},
    )  # fmt: skip
    try:
        assert server.stdout is not None
        address = (await server.stdout.readline()).decode().strip()
        async with browse(address) as browser:
            await browser.until("acme", "coder", "napper", "running", "brake 64 MiB")
            picture = await browser.picture()
            assert picture.startswith(b"\x89PNG")
            browser.forget()
            await browser.click(600, 400)  # below the table: the page has the keyboard then
            await browser.press("f")
            await browser.until("Freeze 1 call?")
            await browser.press("y")
            await browser.until("frozen")
            assert browser.refused == []
            assert {url.split("/")[2] for url in browser.requests if url.startswith("http")} == {address.split("/")[2]}
    finally:
        server.terminate()
        await server.wait()
    assert server.returncode == 0
    await daemon.stop()
    assert call.returncode is None
    call.kill()
    await call.wait()
