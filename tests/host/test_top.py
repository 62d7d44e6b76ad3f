"""The dashboard in a real terminal (tmux), with a real daemon and real calls."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.daemons import REPOSITORY, DaemonFactory, DaemonUnderTest

pytestmark = pytest.mark.host

WITHIN = 30.0  # seconds for what must come to the screen


class Tmux:
    """A server of its own with one window, so that no other terminal of the machine is touched."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "tmux.sock"
        self._directory = directory

    async def run(self, *words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "tmux", "-f", "/dev/null", "-S", str(self._socket), *words,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == 0, f"tmux {' '.join(words)}: {err.decode()}"
        return out.decode("utf-8", "replace")

    async def start(self, *command: str, width: int = 160, height: int = 45) -> None:
        variables = {
            "PYTHONPATH": str(REPOSITORY),
            "XDG_STATE_HOME": str(self._directory),
            "LC_ALL": "C.UTF-8",
            "TERM": "tmux-256color",
        }
        line = shlex.join(
            ["env", "-u", "COLUMNS", "-u", "LINES", *(f"{name}={value}" for name, value in variables.items()), *command]
        )
        # the window stays when the command ends, so that a test can read why
        await self.run("new-session", "-d", "-x", str(width), "-y", str(height), f"{line}; echo ended $?; exec cat")

    async def screen(self) -> str:
        return await self.run("capture-pane", "-p")

    async def press(self, *keys: str) -> None:
        await self.run("send-keys", *keys)

    async def until(self, *texts: str, absent: str = "") -> str:
        """The screen once it shows all ``texts``. A terminal tells nobody when it changes: it has to be asked."""
        screen = ""
        try:
            async with asyncio.timeout(WITHIN):
                while True:
                    screen = await self.screen()
                    if all(text in screen for text in texts) and not (absent and absent in screen):
                        return screen
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pytest.fail(f"no {texts} (without {absent!r}) on the screen after {WITHIN:g} s:\n{screen}")

    async def close(self) -> None:
        if self._socket.exists():
            await self.run("kill-server")


@pytest.fixture
async def tmux(short_tmp: Path) -> AsyncIterator[Tmux]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is missing: apt-get install tmux (scripts/setup does)")
    made = Tmux(short_tmp)
    yield made
    await made.close()


def _top(daemon: DaemonUnderTest, *options: str) -> list[str]:
    return [sys.executable, "-m", "agentd.cli", "--api", f"unix:{daemon.operator_socket}", "top", *options]


async def test_an_operator_watches_freezes_goes_back_and_kills(daemons: DaemonFactory, tmux: Tmux) -> None:
    daemon = await daemons.start(
        tenants={"acme": {"memory_max": "512M"}}, settings={"ledger": {"sample_interval": "200ms"}}
    )
    session = await daemon.open_session("acme", "coder")
    await tmux.start(*_top(daemon, "--interval", "0.2"))
    await tmux.until("acme", "coder", "0 calls")
    call = await daemon.launch(
        session, "/bin/sleep", "300", options=("--tool", "napper", "--class", "test", "--memory", "16M:64M"),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await tmux.until("napper", "● running", "brake 64 MiB", "/bin/sleep 300")

    await tmux.press("End", "Up", "Up", "Enter")  # tenant, session, call: none is below it
    await tmux.press("h", "Home", "Down", "Down", "Enter")
    screen = await tmux.until("host › acme › coder › napper", "declared 64 MiB", "PROCESSES")
    assert "/bin/sleep 300" in screen

    await tmux.press("f")
    await tmux.until("Freeze 1 call?", "they are thawed")
    await tmux.press("y")
    await tmux.until("❄ frozen", absent="Freeze 1 call?")
    await tmux.press("t", "y")
    await tmux.until("● running", "thaw")

    # the decision that froze it is in the ledger: back to when it was taken
    await tmux.press("h", "[")
    await tmux.until("stopped at", "n is now", "napper")
    await tmux.press("n")
    await tmux.until("napper", absent="stopped at")

    await tmux.press("k")
    await tmux.until("Kill 1 call?")
    await tmux.press("y")
    assert await call.wait() == -9
    await tmux.until("0 calls", absent="/bin/sleep 300")
    await tmux.press("e")
    await tmux.until("operator_killed", "with ended")

    await daemon.stop()
    await tmux.until("daemon away since", "trying again")
    await daemon.start()
    await tmux.until("acme", absent="daemon away")
    await tmux.press("q")
    await tmux.until("ended 0")


async def test_a_recording_of_real_calls_is_replayed(daemons: DaemonFactory, tmux: Tmux, short_tmp: Path) -> None:
    daemon = await daemons.start()
    session = await daemon.open_session("acme", "coder")
    await daemon.launch(
        session, "/bin/sleep", "300", options=("--tool", "napper"),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    while not (await daemon.snapshot()).calls:
        pass  # it has not begun yet
    path = short_tmp / "out.corral"
    recorder = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agentd.cli", "--api", f"unix:{daemon.operator_socket}",
        "record", str(path), "--for", "1s", "--interval", "0.2",
        cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    await recorder.communicate()
    assert recorder.returncode == 0
    await daemon.stop()
    await tmux.start(sys.executable, "-m", "agentd.cli", "top", "--replay", str(path), width=80, height=24)
    await tmux.until("napper", "● running", "stopped at")  # played to its end
    await tmux.press("k")
    await tmux.until("this is a recording")
    await tmux.press("q")
    await tmux.until("ended 0")
