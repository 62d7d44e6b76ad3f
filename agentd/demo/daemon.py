"""The demo's view of its daemon: the API as an operator, and the kernel's own numbers beside it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import grpc

from agentd.demo.runner import Session
from agentd.embedded import cgroup_mounts
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.proto.corral.v1.corral_pb2_grpc import AgentServiceStub, OperatorServiceStub

TIMEOUT: Final = 10.0  # seconds for one request
SETTLED_WITHIN: Final = 8.0  # seconds until the last end is in the ledger and its leaf is removed
LIMIT: Final = 1000  # calls in one History


class DaemonFailed(Exception):
    """The daemon refused a request or went away: names the request and what it said."""


class Client:
    """The operator's connection. Every method raises DaemonFailed."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)])
        self._operator = OperatorServiceStub(self._channel)
        self._agent = AgentServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def snapshot(self) -> pb.SnapshotResponse:
        try:
            return await self._operator.Snapshot(pb.SnapshotRequest(), timeout=TIMEOUT)
        except grpc.aio.AioRpcError as err:
            raise _failed("Snapshot", err) from err

    async def watch(self) -> AsyncIterator[pb.WatchResponse]:
        """Ends with the daemon."""
        try:
            async for update in self._operator.Watch(pb.WatchRequest(interval_seconds=0.5)):
                yield update
        except grpc.aio.AioRpcError as err:
            raise _failed("Watch", err) from err

    async def open_session(self, tenant: str, name: str, uid: int | None) -> Session:
        """A session whose calls are begun by processes of ``uid`` (None: by our own)."""
        request = pb.OpenSessionRequest(tenant=tenant, name=name, uid=os.getuid() if uid is None else uid)
        try:
            reply = await self._agent.OpenSession(request, timeout=TIMEOUT)
        except grpc.aio.AioRpcError as err:
            raise _failed(f"OpenSession {tenant}/{name}", err) from err
        return Session(tenant=tenant, name=name, id=reply.session.id, token=reply.token, uid=uid)

    async def close_session(self, session: Session) -> None:
        try:
            await self._agent.CloseSession(pb.CloseSessionRequest(session_id=session.id), timeout=TIMEOUT)
        except grpc.aio.AioRpcError as err:
            raise _failed(f"CloseSession {session.tenant}/{session.name}", err) from err

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
                try:
                    merged.MergeFrom(await self._operator.History(request, timeout=TIMEOUT))
                except grpc.aio.AioRpcError as err:
                    raise _failed("History", err) from err
            if sum(call.HasField("outcome") for call in merged.calls) >= calls or loop.time() > deadline:
                return merged
            await asyncio.sleep(0.1)


def _failed(request: str, err: grpc.aio.AioRpcError) -> DaemonFailed:
    return DaemonFailed(f"{request}: agentd said {err.code().name}: {err.details()}")


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
