"""A host with two tenants, as the daemon would stream it; times are fixed."""

from __future__ import annotations

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.source import Away, Update

NOW = 1_800_000_000.0
MIB = 1 << 20
TEST, BURST, BUILD, TAR = (f"c-01hx00000000{n}xy" for n in ("a1", "b2", "c3", "d4"))


def snapshot(*, at: float = NOW, later: bool = False) -> pb.SnapshotResponse:
    """``later``: a second on, with CPU used, one call braked and one gone."""

    def call(call_id: str, command: str, state: pb.CallState, *, brake: int = 0, **more: object) -> pb.Call:
        acme = call_id == TEST
        made = pb.Call(
            id=call_id,
            tenant_id="t-acme" if acme else "t-greedy",
            session_id="s-coder" if acme else "s-rollout",
            command=command,
            state=state,
            grant=pb.Grant(enforced=True, brake_bytes=brake or None),
        )
        made.MergeFrom(pb.Call(**more))  # type: ignore[arg-type]  # fields of Call, by name
        return made

    calls = [
        call(
            TEST,
            "pytest -q tests/unit",
            pb.CALL_STATE_RUNNING,
            brake=512 * MIB,
            begun_at=NOW - 12.5,
            intent=pb.Intent(tool="Bash", call_class="test"),
            usage=pb.Usage(cpu_usec=10_700_000 if later else 9_800_000, memory_now_bytes=210 * MIB),
        ),
        call(
            BURST,
            "python \x1b[31mburst.py --rows 5000000 [bold]not markup[/bold]",
            pb.CALL_STATE_BRAKED if later else pb.CALL_STATE_RUNNING,
            brake=128 * MIB,
            begun_at=NOW - 20,
            intent=pb.Intent(tool="Bash", call_class="data"),
            usage=pb.Usage(cpu_usec=2_000_000, memory_now_bytes=(129 if later else 110) * MIB),
        ),
        call(BUILD, "make -j4", pb.CALL_STATE_QUEUED, begun_at=NOW - 1, intent=pb.Intent(call_class="build")),
        call(
            TAR,
            "tar czf all.tgz .",
            pb.CALL_STATE_FROZEN,
            begun_at=NOW - 3700,
            usage=pb.Usage(cpu_usec=50_000, memory_now_bytes=3 * MIB),
        ),
    ]
    return pb.SnapshotResponse(
        at=at + later,
        host=pb.HostStatus(
            kernel="6.18.2",
            mode="hybrid",
            cpus=2,
            memory_total_bytes=8192 * MIB,
            memory_available_bytes=6144 * MIB,
            cpu_pressure=12.3,
            memory_pressure=0,
            missing=["memory.high (cgroup v1)"],
            version="0.1.0",
        ),
        tenants=[
            pb.Tenant(id="t-greedy", name="greedy", limits=pb.Limits(memory_max_bytes=256 * MIB)),
            pb.Tenant(id="t-acme", name="acme", memory_now_bytes=230 * MIB),
            pb.Tenant(id="t-idle", name="idle"),
        ],
        sessions=[
            pb.Session(id="s-coder", tenant_id="t-acme", name="coder", opened_at=NOW - 100),
            pb.Session(id="s-rollout", tenant_id="t-greedy", name="rollout", opened_at=NOW - 4000),
            pb.Session(id="s-old", tenant_id="t-greedy", name="old", opened_at=NOW - 9000, closed_at=NOW - 8000),
        ],
        calls=[c for c in calls if not (later and c.id == TAR)],
    )


def decision(action: str = "brake", at: float = NOW, call_id: str = BURST) -> pb.Decision:
    return pb.Decision(
        at=at,
        action=action,
        policy="brake",
        reason="its memory passed the armed threshold",
        tenant_id="t-greedy",
        session_id="s-rollout",
        call_id=call_id,
        evidence={"usage_bytes": 129.0 * MIB, "brake_bytes": 128.0 * MIB},
    )


def running() -> list[Update]:
    return [
        pb.WatchResponse(snapshot=snapshot()),
        pb.WatchResponse(decision=decision("advise", NOW)),
        pb.WatchResponse(decision=decision()),
        pb.WatchResponse(snapshot=snapshot(later=True)),
    ]


def empty() -> list[Update]:
    return [pb.WatchResponse(snapshot=pb.SnapshotResponse(at=NOW, host=pb.HostStatus(mode="observe", cpus=2)))]


def away() -> list[Update]:
    return [*running(), Away(NOW - 15, "no daemon answers")]
