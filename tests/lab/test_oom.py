"""The host runs out of memory, really: in a guest, which has nothing else to lose."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from pathlib import Path

from tests.host.daemon_tools import MIB, end, events_of, go, line, load_program, one_daemon

HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
WITHIN = 300.0  # seconds
LEFT = 160 * MIB  # what is left to the guest before the call begins to grow


def _available() -> int:
    (found,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(found.split()[1]) * 1024


async def test_the_host_runs_out_and_the_call_goes() -> None:
    """The daemon is stopped meanwhile, or it would act in time: what is tried is what the kernel does without it, and
    whether the daemon can tell afterwards. Huge pages take most of the memory, which is quicker than to touch it."""
    async with one_daemon(tenants={"acme": {}}) as daemon:
        session = await daemon.open_session("acme")
        async with events_of(daemon, session) as events:
            steps = ("pid", "wait", f"touch:{LEFT + 256 * MIB}", "pause")
            process = await daemon.launch(session, load_program(), *steps, stdin=asyncio.subprocess.PIPE)
            main = os.pidfd_open(int((await line(process)).split()[1]))
            os.kill(daemon.pid, signal.SIGSTOP)
            try:
                HUGE_PAGES.write_text(str((_available() - LEFT) // (2 * MIB)))
                go(process)
                assert await asyncio.to_thread(_gone, main), "the kernel killed nobody"
            finally:
                os.close(main)
                HUGE_PAGES.write_text("0")
                os.kill(daemon.pid, signal.SIGCONT)
            status, _, err = await end(process)
            outcome = await events.outcome()
        assert status == -signal.SIGKILL
        assert outcome.reason == "oom_host"
        assert outcome.usage.oom_kills >= 1
        assert "because the whole host ran out of memory" in outcome.summary
        assert f"corral: {outcome.summary}" in err


def _gone(pidfd: int) -> bool:
    """Waits for the end of a process: near the end of its memory an emulated machine is slow."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(int(WITHIN * 1000)))
