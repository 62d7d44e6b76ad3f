"""A daemon that answers the API with a fixed host, and records what it was asked; for the tests of the command line."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.proto.corral.v1 import corral_pb2_grpc as rpc

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_800_000_000.0
ACME, BETA = "t-01hx0000000000aa", "t-01hx0000000000bb"
CODER, ROLLOUT = "s-01hx0000000000aa", "s-01hx0000000000bb"
TESTING, BRAKED, QUEUED, FROZEN, KILLED = (f"c-01hx0000000{n}xy" for n in ("0a1", "0b2", "0c3", "0d4", "0e5"))
MIB = 1 << 20
TOKEN = "a token; with 'quotes'"  # noqa: S105  # nobody's


CPU_BUDGET = pb.Budget(
    resource="cpu_seconds",
    scope="tenant",
    limit=36_000,
    used=34_200,
    remaining=1800,
    hard=True,
    period_seconds=86_400,
    refills_at=NOW + 3600,
    band=pb.BUDGET_BAND_CRITICAL,
)
TOKEN_BUDGET = pb.Budget(
    resource="tokens", scope="session", limit=2e6, used=5200, remaining=1_994_800, band=pb.BUDGET_BAND_PLENTY
)


def brake_decision(call_id: str = BRAKED) -> pb.Decision:
    return pb.Decision(
        at=NOW - 4,
        action="brake",
        policy="brake",
        reason="its memory passed the armed threshold",
        tenant_id=BETA,
        session_id=ROLLOUT,
        call_id=call_id,
        evidence={"usage_bytes": 129.0 * MIB, "brake_bytes": 128.0 * MIB},
    )


def kill_decision() -> pb.Decision:
    return pb.Decision(
        at=NOW - 30,
        action="kill",
        policy="brake",
        reason="no room came within the bound",
        tenant_id=BETA,
        session_id=ROLLOUT,
        call_id=KILLED,
        evidence={"waited_seconds": 30.0, "headroom_bytes": 0.0},
    )


def ended_call() -> pb.Call:
    usage = pb.Usage(
        cpu_usec=3_200_000,
        cpu_user_usec=3_000_000,
        cpu_system_usec=200_000,
        memory_peak_bytes=130 * MIB,
        faults=33_000,
        read_bytes=5 * MIB,
        written_bytes=1024,
        net_rx_bytes=100,
        net_tx_bytes=300,
    )
    return pb.Call(
        id=KILLED,
        session_id=ROLLOUT,
        tenant_id=BETA,
        command="python burst.py",
        intent=pb.Intent(tool="Bash", call_class="data", memory_peak_bytes=128 * MIB),
        grant=pb.Grant(brake_bytes=128 * MIB, priority=20, enforced=True),
        state=pb.CALL_STATE_ENDED,
        begun_at=NOW - 70,
        held_seconds=30,
        brakes=1,
        usage=usage,
        cgroup=f"corral/{BETA}/{ROLLOUT}/calls/{KILLED}",
        outcome=pb.Outcome(
            call_id=KILLED,
            reason="brake_killed",
            ended_at=NOW - 30,
            wait_status=9,
            usage=usage,
            wall_seconds=40,
            held_seconds=30,
            decisions=[brake_decision(KILLED), kill_decision()],
            summary="The call was stopped at 128 MiB, the memory that it had declared, and ended 30 s later.",
            suggestions=["declare --memory 128M:256M", "process the file in parts"],
        ),
    )


def snapshot(*, with_ended: bool = False) -> pb.SnapshotResponse:
    """Two tenants, two sessions and a call in every state."""

    def live(call_id: str, command: str, state: pb.CallState, **more: Any) -> pb.Call:
        acme = call_id == TESTING
        call = pb.Call(
            id=call_id,
            session_id=CODER if acme else ROLLOUT,
            tenant_id=ACME if acme else BETA,
            command=command,
            state=state,
            grant=pb.Grant(priority=70 if acme else 20, enforced=True),
        )
        call.MergeFrom(pb.Call(**more))
        return call

    calls = [
        live(
            TESTING,
            "pytest -q tests/unit",
            pb.CALL_STATE_RUNNING,
            begun_at=NOW - 12.5,
            intent=pb.Intent(tool="Bash", call_class="test", memory_typical_bytes=200 * MIB, cpu_cores=1.5),
            grant=pb.Grant(brake_bytes=512 * MIB, notify_bytes=200 * MIB, limits=pb.Limits(pids=4096)),
            usage=pb.Usage(cpu_usec=9_800_000, memory_now_bytes=210 * MIB, memory_peak_bytes=231 * MIB, pids_now=5),
        ),
        live(
            BRAKED,
            "python \x1b[31mburst.py\nrm -rf",
            pb.CALL_STATE_BRAKED,
            begun_at=NOW - 20,
            held_since=NOW - 4,
            brakes=1,
            intent=pb.Intent(tool="Bash", call_class="data"),
            grant=pb.Grant(brake_bytes=128 * MIB),
            usage=pb.Usage(cpu_usec=2_000_000, memory_now_bytes=129 * MIB, memory_peak_bytes=129 * MIB, pids_now=2),
        ),
        live(QUEUED, "make -j4", pb.CALL_STATE_QUEUED, begun_at=NOW - 1, intent=pb.Intent(call_class="build")),
        live(
            FROZEN,
            "tar czf all.tgz .",
            pb.CALL_STATE_FROZEN,
            begun_at=NOW - 3700,
            held_since=NOW - 60,
            usage=pb.Usage(cpu_usec=50_000, memory_now_bytes=3 * MIB, pids_now=1),
        ),
    ]
    return pb.SnapshotResponse(
        at=NOW,
        host=pb.HostStatus(
            kernel="6.18.2",
            mode="hybrid",
            cpus=2,
            memory_total_bytes=8192 * MIB,
            memory_available_bytes=6144 * MIB,
            cpu_pressure=12.34,
            memory_pressure=0.0,
            missing=["memory.high (cgroup v1)"],
            version="0.1.0",
        ),
        tenants=[
            pb.Tenant(
                id=ACME,
                name="acme",
                priority=70,
                limits=pb.Limits(memory_max_bytes=4096 * MIB, cpu_cores=-1),
                memory_now_bytes=210 * MIB,
                cpu_usec=9_800_000,
                budgets=[CPU_BUDGET],
            ),
            pb.Tenant(id=BETA, name="beta", priority=20, cpu_usec=2_050_000),
        ],
        sessions=[
            pb.Session(
                id=CODER, tenant_id=ACME, name="coder", uid=1000, opened_at=NOW - 100, labels={"task": "fix", "a": "b"}
            ),
            pb.Session(
                id=ROLLOUT,
                tenant_id=BETA,
                name="rollout",
                uid=1001,
                opened_at=NOW - 4000,
                budgets=[TOKEN_BUDGET],
                turns=pb.Turns(turns=3, prompt_tokens=5000, cached_tokens=4000, generated_tokens=200, model_seconds=12),
            ),
            *(
                [pb.Session(id="s-01hx0000000000cc", tenant_id=BETA, uid=1001, opened_at=NOW - 90, closed_at=NOW - 80)]
                if with_ended
                else []
            ),
        ],
        calls=[*calls, *([ended_call()] if with_ended else [])],
    )


@dataclass
class FakeDaemon(rpc.AgentServiceServicer, rpc.OperatorServiceServicer):
    """``fail`` makes every RPC answer that status. ``asked`` are the requests, in order."""

    asked: list[Message] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    fail: tuple[grpc.StatusCode, str] | None = None
    empty: bool = False
    target: str = ""

    async def _note(self, request: Message, context: Any) -> None:
        self.asked.append(request)
        self.tokens.append(dict(context.invocation_metadata()).get("corral-token", ""))
        if self.fail is not None:
            await context.abort(*self.fail)

    def last(self, kind: type[Message]) -> Any:
        return next(request for request in reversed(self.asked) if isinstance(request, kind))

    async def Snapshot(self, request: pb.SnapshotRequest, context: Any) -> pb.SnapshotResponse:
        await self._note(request, context)
        if self.empty:
            return pb.SnapshotResponse(at=NOW, host=pb.HostStatus(mode="observe", cpus=2))
        return snapshot(with_ended=request.with_ended)

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:
        await self._note(request, context)
        yield pb.WatchResponse(snapshot=snapshot())
        yield pb.WatchResponse(decision=brake_decision())

    async def History(self, request: pb.HistoryRequest, context: Any) -> pb.HistoryResponse:
        await self._note(request, context)
        if self.empty or (request.call_id and request.call_id not in (KILLED, BRAKED)):
            return pb.HistoryResponse()
        if request.call_id == BRAKED:
            return pb.HistoryResponse(decisions=[brake_decision()])
        return pb.HistoryResponse(calls=[ended_call()], decisions=[brake_decision(KILLED), kill_decision()])

    async def SetTenant(self, request: pb.SetTenantRequest, context: Any) -> pb.SetTenantResponse:
        await self._note(request, context)
        made = pb.Tenant(id=BETA, name=request.name, limits=request.limits, priority=request.priority)
        return pb.SetTenantResponse(tenant=made)

    async def SetLimits(self, request: pb.SetLimitsRequest, context: Any) -> pb.SetLimitsResponse:
        await self._note(request, context)
        return pb.SetLimitsResponse()

    async def SetBudget(self, request: pb.SetBudgetRequest, context: Any) -> pb.SetBudgetResponse:
        await self._note(request, context)
        return pb.SetBudgetResponse(budgets=[CPU_BUDGET] if request.HasField("limit") else [])

    async def SetPriority(self, request: pb.SetPriorityRequest, context: Any) -> pb.SetPriorityResponse:
        await self._note(request, context)
        return pb.SetPriorityResponse()

    async def Freeze(self, request: pb.FreezeRequest, context: Any) -> pb.FreezeResponse:
        await self._note(request, context)
        return pb.FreezeResponse(call_ids=[TESTING])

    async def Thaw(self, request: pb.ThawRequest, context: Any) -> pb.ThawResponse:
        await self._note(request, context)
        return pb.ThawResponse(call_ids=[FROZEN])

    async def Kill(self, request: pb.KillRequest, context: Any) -> pb.KillResponse:
        await self._note(request, context)
        return pb.KillResponse(call_ids=[BRAKED, FROZEN])

    async def Doctor(self, request: pb.DoctorRequest, context: Any) -> pb.DoctorResponse:
        await self._note(request, context)
        return pb.DoctorResponse(
            features=[
                pb.Feature(name="cgroup", found=not self.empty, detail="hybrid", cost="no limits", remedy="mount it"),
                pb.Feature(name="fentry", found=False, detail="EPERM", cost="nothing much", remedy="another kernel"),
            ]
        )

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Any) -> pb.OpenSessionResponse:
        await self._note(request, context)
        return pb.OpenSessionResponse(session=pb.Session(id=CODER, name=request.name), token=TOKEN)

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Any) -> pb.CloseSessionResponse:
        await self._note(request, context)
        return pb.CloseSessionResponse()

    async def GetBudget(self, request: pb.GetBudgetRequest, context: Any) -> pb.GetBudgetResponse:
        await self._note(request, context)
        ceiling = pb.Budget(resource="pids", scope="tenant", limit=500, used=20, remaining=480, hard=True)
        return pb.GetBudgetResponse(budgets=[ceiling, CPU_BUDGET])

    async def GetOutcome(self, request: pb.GetOutcomeRequest, context: Any) -> pb.GetOutcomeResponse:
        await self._note(request, context)
        return pb.GetOutcomeResponse(outcome=ended_call().outcome)


async def serve(path: Path) -> tuple[FakeDaemon, grpc.aio.Server]:
    # What the command line never calls keeps the generated answer, UNIMPLEMENTED.
    daemon = FakeDaemon(target=f"unix:{path}")  # type: ignore[abstract]  # see above
    server = grpc.aio.server()
    rpc.add_AgentServiceServicer_to_server(daemon, server)
    rpc.add_OperatorServiceServicer_to_server(daemon, server)
    server.add_insecure_port(daemon.target)
    await server.start()
    return daemon, server


@dataclass(frozen=True, slots=True)
class Finished:
    code: int
    out: str
    err: str


async def corral(*argv: str, api: str = "", environment: dict[str, str] | None = None) -> Finished:
    """The command line in a process of its own, without a terminal."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CORRAL_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agentd.cli",
        *argv,
        cwd=ROOT,
        env=clean | ({"CORRAL_API": api} if api else {}) | (environment or {}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Finished(process.returncode, out.decode(), err.decode())
