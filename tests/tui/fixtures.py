"""A host with two tenants, as the daemon would stream it; times are fixed."""

from __future__ import annotations

from typing import Any

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.source.fixture import FixtureSource
from tui.source.protocol import Away, CallPast, Moment, Update

NOW = 1_800_000_000.0
MIB = 1 << 20
ENDED = "c-01hx00000000e5xy"  # of ended_call()
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


def samples(call_id: str = BURST, *, count: int = 40, peak: int = 129 * MIB) -> list[pb.Sample]:
    """A call that grows to ``peak``, works in waves, and waits for memory near the end; two samples a second."""
    made = []
    cpu = read = stall = 0
    for number in range(count):
        part = (number + 1) / count
        cpu += 450_000 if number % 8 < 5 else 60_000
        read += 3 * MIB if number % 10 == 0 else 40_000
        stall += 200_000 if part > 0.8 else 0
        usage = pb.Usage(
            cpu_usec=cpu,
            memory_now_bytes=int(peak * part),
            memory_peak_bytes=int(peak * part),
            read_bytes=read,
            written_bytes=number * 1000,
            memory_stall_usec=stall,
        )
        made.append(pb.Sample(at=NOW - 20 + number / 2, call_id=call_id, state=pb.CALL_STATE_RUNNING, usage=usage))
    return made


def past_of_burst() -> CallPast:
    call = next(call for call in snapshot(later=True).calls if call.id == BURST)
    call.intent.memory_peak_bytes = 96 * MIB
    decisions = [decision("advise", NOW - 2), decision()]
    return CallPast(call=call, decisions=decisions, samples=samples(), names={"t-greedy": "greedy"})


def ended_call() -> CallPast:
    """Killed: with an outcome, its paragraph and suggestions."""
    call = pb.Call(
        id=ENDED,
        tenant_id="t-greedy",
        session_id="s-rollout",
        command="python crunch.py",
        state=pb.CALL_STATE_ENDED,
        begun_at=NOW - 400,
        brakes=1,
        intent=pb.Intent(tool="python", call_class="data", memory_peak_bytes=128 * MIB, cpu_cores=1, pids=40),
        grant=pb.Grant(enforced=True, brake_bytes=128 * MIB, limits=pb.Limits(memory_max_bytes=256 * MIB, cpu_cores=2)),
        cgroup="/corral/t-greedy/s-rollout/calls/c-01hx00000000e5xy",
    )
    told = [decision("brake", NOW - 380, call.id), decision("kill", NOW - 370, call.id)]
    call.outcome.MergeFrom(
        pb.Outcome(
            call_id=call.id,
            reason="brake_killed",
            ended_at=NOW - 370,
            wait_status=9,
            wall_seconds=30,
            held_seconds=10,
            decisions=told,
            usage=pb.Usage(cpu_usec=4_000_000, memory_peak_bytes=240 * MIB, faults=61_478, forks=2, execs=1),
            summary="The 'python' call was stopped at its memory threshold and then ended: it used 240 MiB of its hard "
            "limit of 256 MiB: waiting cannot help.",
            suggestions=["do the work in smaller pieces", "declare a memory peak above 256 MiB"],
            leftovers=1,
        )
    )
    return CallPast(call=call, decisions=told, samples=[], names={"t-greedy": "greedy", "s-rollout": "rollout"})


def moments() -> list[Moment]:
    """An hour ago and half an hour ago, with a decision at each."""
    made = []
    for place, at in enumerate((NOW - 3600, NOW - 1800)):
        picture = snapshot(at=at)
        for call in picture.calls:
            call.begun_at = at - 30
        made.append(
            Moment(
                at=at,
                snapshot=picture,
                decisions=[decision("brake", at)],
                previous=(None, NOW - 3600)[place],
                next=(NOW - 1800, None)[place],
                first=NOW - 3600,
                last=NOW,
            )
        )
    return made


def loaded() -> list[Update]:
    """The host under pressure, with budgets, forecasts, a model and a tier: everything that a daemon can tell."""
    picture = snapshot(later=True)
    test, burst, build = picture.calls
    test.state = pb.CALL_STATE_THROTTLED
    test.squeeze.MergeFrom(
        pb.Squeeze(
            since=NOW - 4,
            memory_high_bytes=192 * MIB,
            cpu_weight=20,
            egress_bytes_per_second=4 * MIB,
            reason="acme is over its share while greedy waits",
        )
    )
    for call, median, high in ((test, 180, 420), (burst, 96, 300)):
        call.forecast.MergeFrom(
            pb.Forecast(
                memory_median_bytes=median * MIB, memory_high_bytes=high * MIB, remaining_seconds=21,
                lives=41, kind="tool + class",
            )
        )  # fmt: skip
    burst.recognition.MergeFrom(
        pb.Recognition(rule="shell", seconds_before=0.004, cpu_usec_before=1500, memory_bytes_before=200 * 1024)
    )
    build.eta_seconds = 8
    build.waits_for = "420 MiB of the host's memory"
    tokens = pb.Budget(
        resource="tokens", scope="session", limit=1e6, used=930_000, remaining=70_000, hard=True,
        period_seconds=86_400, refills_at=NOW + 5000, band=pb.BUDGET_BAND_CRITICAL,
    )  # fmt: skip
    cpu = pb.Budget(
        resource="cpu_seconds", scope="tenant", limit=7200, used=3000, remaining=4200, band=pb.BUDGET_BAND_MEDIUM
    )
    stock = pb.Budget(
        resource="memory_byte_seconds", scope="tenant", limit=2.0**43, used=2.0**40, remaining=2.0**43 - 2.0**40,
        hard=True, band=pb.BUDGET_BAND_PLENTY,
    )  # fmt: skip
    picture.tenants[0].budgets.extend([cpu, stock])
    session = next(one for one in picture.sessions if one.id == "s-rollout")
    session.budgets.append(tokens)
    session.container, session.rules = "4f2b0c7d9e11aa", "claude-code"
    session.turns.MergeFrom(
        pb.Turns(
            turns=31, prompt_tokens=812_000, cached_tokens=640_000, generated_tokens=21_000, model_seconds=410,
            gpu_seconds=90, joules=31_000,
        )
    )  # fmt: skip
    picture.tier.MergeFrom(tier())
    return [pb.WatchResponse(snapshot=snapshot()), pb.WatchResponse(snapshot=picture)]


def tier() -> pb.TierStatus:
    """Two devices (one lost), two engines (one down), sessions in every residency."""
    gpu = pb.GpuDevice(
        index=0, uuid="GPU-1", name="NVIDIA H100 80GB HBM3", state="ok", memory_total_bytes=80 << 30,
        memory_used_bytes=71 << 30, sm_utilization=0.83, memory_utilization=0.4, power_watts=512, energy_joules=4.1e6,
        temperature_celsius=61, context_switches_per_second=1234.5, faults=["XID 31: MMU fault"],
        processes=[
            pb.GpuProcess(pid=900, memory_bytes=60 << 30, sm_share=0.8, command="llama-server"),
            pb.GpuProcess(pid=4100, memory_bytes=4 << 30, sm_share=0.03, call_id=BURST, command="python burst.py"),
        ],
    )  # fmt: skip
    lost = pb.GpuDevice(index=1, uuid="GPU-2", name="NVIDIA H100 80GB HBM3", state="lost", detail="fell off the bus")
    local = pb.InferenceEngine(
        name="local", kind="llamacpp", version="b6000", url="http://127.0.0.1:8080", state="up", running=2, waiting=1,
        kv_used_share=0.86, kv_capacity_tokens=262_144, prefix_hit_share=0.71, preemptions=3,
        capabilities=[
            pb.EngineCapability(name="offload", answer="yes"),
            pb.EngineCapability(name="priority", answer="no", note="llama.cpp has none"),
        ],
    )  # fmt: skip
    down = pb.InferenceEngine(name="big", kind="vllm", state="down", detail="nobody answers at 10.0.0.7:8000")
    kept = pb.KvSession(
        session_id="s-coder", engine="local", residency="resident", since=NOW - 12, why="back soon: 9 s expected",
        tokens=31_000, bytes=3 << 30, call_id=TEST, keep_until=NOW + 30,
    )  # fmt: skip
    away = pb.KvSession(
        session_id="s-rollout", engine="local", residency="offloaded", since=NOW - 3600, why="a pause of an hour",
        tokens=90_000, bytes=9 << 30, call_id=TAR, recomputed_tokens=1200,
    )  # fmt: skip
    gone = pb.KvSession(
        session_id="s-gone", engine="local", residency="dropped", since=NOW - 60, tokens=10, bytes=1 << 20
    )
    return pb.TierStatus(
        at=NOW, nvml="ready", devices=[gpu, lost], engines=[local, down], sessions=[kept, away, gone],
        switches=[
            pb.ContextSwitch(
                at=NOW - 3600, session_id="s-rollout", engine="local", kind="offloaded", why="a pause of an hour",
                tokens=90_000, bytes=9 << 30, seconds=1.2,
            ),
            pb.ContextSwitch(
                at=NOW - 60, session_id="s-gone", engine="local", kind="dropped", why="room for s-coder", tokens=10,
                bytes=1 << 20, seconds=0.001,
            ),
        ],
        policy="corral", hints=["engine big is down: see its log"],
    )  # fmt: skip


BUDGETS = [
    pb.Budget(resource="memory_bytes", scope="tenant", limit=256.0 * MIB, used=129.0 * MIB, remaining=127.0 * MIB),
    pb.Budget(resource="calls", scope="session", limit=8, used=8, remaining=0),
]
PROCESSES = [
    pb.Process(pid=pid, parent_pid=parent, state=state, memory_bytes=mib * MIB, cpu_seconds=cpu, command=command)
    for pid, parent, state, mib, cpu, command in (
        (4100, 1, "running", 90, 12.5, "python burst.py"),
        (4101, 4100, "sleeping", 30, 0.2, "sh -c \x1b[2Jx"),
        (4102, 4101, "stopped", 9, 0.01, "sleep 5"),
    )
]
FEATURES = [
    pb.Feature(name="tripwire", found=False, detail="no BTF", cost="no brake in the kernel", remedy="boot with BTF"),
    pb.Feature(name="cgroup", found=True, detail="hybrid"),
]


def source(updates: list[Update], **options: Any) -> FixtureSource:
    """With a past, budgets and processes, unless ``options`` say otherwise."""
    given: dict[str, Any] = {
        "moments": moments(),
        "calls": [past_of_burst(), ended_call()],
        "budgets": BUDGETS,
        "processes": PROCESSES,
        "features": FEATURES,
    }
    return FixtureSource(updates, **(given | options))
