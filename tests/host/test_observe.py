"""What an observer without root meets on a real host: processes of other users."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

ROOT = Path(__file__).parents[2]

# The observer gives its privilege up after a child of root's has been placed: as for a setuid program in a call.
CODE = """
import asyncio, os, subprocess, sys
from controller.backend import CallRef, SessionRecord
from controller.model import *
from controller.backends.observe import Observer

class Heard:
    def on_empty(self, call_id): heard.append(call_id)

heard = []

async def main():
    observer = Observer(("a test",))
    observer.start(Heard())
    tenant, session, call = new_tenant_id(), new_session_id(), new_call_id()
    ref = CallRef(tenant, session, call)
    observer.add_tenant(TenantView(id=tenant, name="t", limits=Limits(), priority=50))
    view = SessionView(id=session, tenant_id=tenant, name="", uid=65534, opened_at=0.0, labels={})
    observer.add_session(SessionRecord(session=view, token_hash="", token_expires=0.0))
    observer.add_call(ref, Intent(), Grant(limits=Limits(), tripwire=Tripwire(), priority=50, enforced=False))
    code = "print('up', flush=True); import sys; sys.stdin.readline()"
    child = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        os.setresuid(65534, 65534, 0)
        observer.place(ref, child.pid)
        usage = observer.usage(ref)
        print("bytes", usage.read_bytes, "pids", usage.pids_now, "faults", usage.faults is not None)
        try:
            observer.kill(ref)
        except NotAllowed as err:
            print("refused", err)
        print("alive", list(observer.pids(ref)) == [child.pid], "empty", heard)
        os.setresuid(0, 0, 0)
        observer.kill(ref)
        child.wait()
        while call not in heard:
            await asyncio.sleep(0)
        print("told", heard == [call])
        observer.stop()
    finally:
        os.setresuid(0, 0, 0)
        child.kill()
        child.communicate()

asyncio.run(main())
"""


def test_another_user_s_processes_are_counted_and_their_end_is_refused_in_words() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "[warning" not in line]
    assert said[0] == "bytes None pids 1 faults True"  # the kernel shows its bytes to its own user and to root
    assert "1 processes run as another user and were not ended" in said[1]
    assert "run agentd as root" in said[1]
    assert said[2:] == ["alive True empty []", "told True"]
