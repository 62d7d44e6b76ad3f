"""The CPU scheduler is asked for on a kernel that has none: the daemon says so and runs on."""

from __future__ import annotations

import asyncio

import pytest

from bpf import sched
from tests.support.daemons import DaemonFactory

WITHIN = 30.0


@pytest.mark.skipif(not sched.unavailable(), reason="this kernel can load it: tests/lab/test_sched.py")
async def test_without_sched_ext_it_is_said_and_calls_run(daemons: DaemonFactory) -> None:
    daemon = await daemons.start(settings={"sched": {"mode": "auto"}, "host": {"sample_interval": 0.1}})
    session = await daemon.open_session("acme")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WITHIN
    while True:  # it is tried at the first sample, of which nobody tells
        missing = [line for line in (await daemon.snapshot()).host.missing if "CPU scheduler" in line]
        if missing:
            break
        assert loop.time() < deadline
        await asyncio.sleep(0.05)
    assert missing[0].startswith("no CPU scheduler of our own (sched.mode): this kernel")
    assert "calls have cgroup weights instead" in missing[0]
    assert (await daemon.call(session, "/bin/true", options=("--priority", "90")))[0] == 0
