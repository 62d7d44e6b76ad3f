"""The demo's view of its daemon: the API as an operator, and the kernel's own numbers beside it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from agentd.api.client import connect
from agentd.demo.runner import Session
from agentd.embedded import cgroup_mounts
from agentd.proto.corral.v1 import corral_pb2 as pb

SETTLED_WITHIN: Final = 8.0  # seconds until the last end is in the ledger and its leaf is removed
LIMIT: Final = 1000  # calls in one History


class Operator:
    """The operator's connection. Every method raises agentd.api.client.ApiError."""

    def __init__(self, socket: Path) -> None:
        self._client = connect(str(socket))

    async def close(self) -> None:
        await self._client.close()

    async def snapshot(self) -> pb.SnapshotResponse:
        return await self._client.call(self._client.operator.Snapshot, pb.SnapshotRequest())

    def watch(self) -> AsyncIterator[pb.WatchResponse]:
        """Ends with the daemon."""
        return self._client.stream(self._client.operator.Watch, pb.WatchRequest(interval_seconds=0.5))

    async def open_session(self, tenant: str, name: str, uid: int | None) -> Session:
        """A session whose calls are begun by processes of ``uid`` (None: by our own)."""
        request = pb.OpenSessionRequest(tenant=tenant, name=name, uid=os.getuid() if uid is None else uid)
        reply = await self._client.call(self._client.agent.OpenSession, request)
        return Session(tenant=tenant, name=name, id=reply.session.id, token=reply.token, uid=uid)

    async def close_session(self, session: Session) -> None:
        await self._client.call(self._client.agent.CloseSession, pb.CloseSessionRequest(session_id=session.id))

    async def ended(self, sessions: Sequence[str], calls: int) -> pb.HistoryResponse:
        """The sessions' calls from the ledger, with decisions, once ``calls`` ends are in it.

        After SETTLED_WITHIN seconds: what is there by then. The ledger is written in batches, off the path of a call,
        and has no event that says "written".
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SETTLED_WITHIN
        while True:
            merged = pb.HistoryResponse()
            for session_id in sessions:
                request = pb.HistoryRequest(session_id=session_id, limit=LIMIT, with_decisions=True)
                merged.MergeFrom(await self._client.call(self._client.operator.History, request))
            if sum(call.HasField("outcome") for call in merged.calls) >= calls or loop.time() > deadline:
                return merged
            await asyncio.sleep(0.1)


def tenant_cpu(root: str, snapshot: pb.SnapshotResponse) -> dict[str, int]:
    """usage_usec of each tenant's group by the kernel's cpu.stat, which keeps what removed leaves had used."""
    used: dict[str, int] = {}
    for tenant in snapshot.tenants:
        for mount in cgroup_mounts():
            stat = mount / root / tenant.id / "cpu.stat"
            if stat.is_file():
                words = dict(line.split(" ", 1) for line in stat.read_text("ascii").splitlines())
                # v1 has a cpu.stat as well, without this key
                if "usage_usec" in words:
                    used[tenant.name] = int(words["usage_usec"])
                    break
    return used


async def leaves(root: str) -> list[str]:
    """Groups of calls that still exist after SETTLED_WITHIN seconds, and processes in any group of ours."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLED_WITHIN
    while True:
        left = sorted({*_call_groups(root), *_processes(root)})
        if not left or loop.time() > deadline:
            return left
        await asyncio.sleep(0.1)


def _call_groups(root: str) -> list[str]:
    return [str(path) for mount in cgroup_mounts() for path in (mount / root).glob("*/*/calls/*") if path.is_dir()]


def _processes(root: str) -> list[str]:
    """Processes below any session; the daemon's own leaf is beside them."""
    found = []
    for mount in cgroup_mounts():
        for file in (mount / root).glob("t-*/**/cgroup.procs"):
            try:
                found += [f"process {pid} in {file.parent}" for pid in Path(file).read_text("ascii").split()]
            except OSError:
                continue  # the group was removed while we looked
    return found
