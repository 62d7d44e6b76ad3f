"""A daemon's Watch stream of many calls that change all the time, for the dashboard's benchmark: no cgroup, no agent.

    python -m tests.bench.tui_server SOCKET CALLS

The pictures are made beforehand, so that the machine is the dashboard's while it is measured. Each second's picture has
another memory, CPU time, counters and, for one call in ten, another state than the one before.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.proto.corral.v1 import corral_pb2_grpc as rpc

PICTURES: Final = 30  # that are made; then they come again, with later counters
TENANTS: Final = 10
SESSIONS: Final = 100
MIB: Final = 1 << 20
TOOLS: Final = ("pytest", "make", "git", "python", "grep")


def picture(count: int, tick: int) -> pb.SnapshotResponse:
    made = random.Random(tick)  # noqa: S311 - the same load in every run
    snapshot = pb.SnapshotResponse(
        host=pb.HostStatus(
            kernel="6.18",
            mode="unified",
            cpus=64,
            memory_total_bytes=512 << 30,
            memory_available_bytes=made.randrange(512 << 30),
        )
    )
    for tenant in range(TENANTS):
        snapshot.tenants.add(id=f"t-{tenant}", name=f"tenant{tenant}", limits=pb.Limits(memory_max_bytes=64 << 30))
    for session in range(SESSIONS):
        snapshot.sessions.add(
            id=f"s-{session}", tenant_id=f"t-{session % TENANTS}", name=f"session{session}", opened_at=1.0
        )
    for number in range(count):
        state = pb.CALL_STATE_BRAKED if made.random() < 0.1 else pb.CALL_STATE_RUNNING
        snapshot.calls.add(
            id=f"c-01hx{number:010d}",
            session_id=f"s-{number % SESSIONS}",
            tenant_id=f"t-{number % TENANTS}",
            command=f"python -m pytest -q tests/unit/test_{number}.py --maxfail=1",
            state=state,
            begun_at=time.time() - number,
            intent=pb.Intent(tool=TOOLS[number % len(TOOLS)], call_class="test", memory_peak_bytes=512 * MIB),
            grant=pb.Grant(brake_bytes=512 * MIB, priority=50, enforced=True),
            usage=pb.Usage(
                memory_now_bytes=made.randrange(600 * MIB), memory_peak_bytes=600 * MIB, pids_now=made.randrange(1, 40)
            ),
        )
    return snapshot


class Host(rpc.OperatorServiceServicer):
    """What the benchmark does not ask for answers UNIMPLEMENTED."""

    def __init__(self, count: int) -> None:
        self._pictures = [picture(count, tick) for tick in range(PICTURES)]
        self._made = random.Random(7)  # noqa: S311
        self._tick = 0

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:
        while True:
            snapshot = self._pictures[self._tick % PICTURES]
            self._tick += 1
            snapshot.at = time.time()
            for call in snapshot.calls:
                usage = call.usage
                usage.cpu_usec = self._tick * 1_000_000 + self._made.randrange(900_000)
                usage.faults = self._tick * 1_000 + self._made.randrange(900)
                usage.read_bytes = usage.written_bytes = self._tick * MIB + self._made.randrange(MIB)
                usage.net_rx_bytes = usage.net_tx_bytes = self._tick * 1_000
            yield pb.WatchResponse(snapshot=snapshot)
            call = snapshot.calls[self._made.randrange(len(snapshot.calls))]
            told = pb.Decision(at=snapshot.at, action="brake", reason="past its threshold", call_id=call.id)
            told.evidence["usage_bytes"] = 512.0 * MIB
            yield pb.WatchResponse(decision=told)
            await asyncio.sleep(request.interval_seconds or 1.0)


async def main(socket: str, count: int) -> None:
    server = grpc.aio.server()
    rpc.add_OperatorServiceServicer_to_server(Host(count), server)  # type: ignore[abstract]
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
