"""Snapshots and histories as tables. Pure: messages in, rows out; no connection, no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from agentd.cli import words
from agentd.cli.plain import Plain, to_plain
from agentd.cli.table import Cell, Column, Style
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.units import format_bytes, format_duration

NOTHING_RUNNING: Final = "nothing is running; try: corral run -- true"

CALL_COLUMNS: Final = (
    Column(title="CALL"),
    Column(title="TENANT", least=6, rank=1),
    Column(title="SESSION", least=8, rank=2),
    Column(title="TOOL", least=6, rank=5),
    Column(title="CLASS", least=5, rank=6),
    Column(title="STATE"),
    Column(title="AGE", right=True, rank=3),
    Column(title="CPU", right=True, rank=2),
    Column(title="MEMORY", right=True),
    Column(title="PEAK", right=True, rank=4),
    Column(title="BRAKE", right=True, rank=5),
    Column(title="PIDS", right=True, rank=7),
    Column(title="PRIO", right=True, rank=8),
    Column(title="COMMAND", least=12),
)

HISTORY_COLUMNS: Final = (
    Column(title="CALL"),
    Column(title="TENANT", least=6, rank=1),
    Column(title="SESSION", least=8, rank=3),
    Column(title="TOOL", least=6, rank=4),
    Column(title="CLASS", least=5, rank=5),
    Column(title="ENDED", right=True, rank=4),
    Column(title="WALL", right=True),
    Column(title="CPU", right=True, rank=2),
    Column(title="PEAK", right=True),
    Column(title="FAULTS", right=True, rank=8),
    Column(title="READ", right=True, rank=7),
    Column(title="WRITTEN", right=True, rank=7),
    Column(title="NETWORK", right=True, rank=7),
    Column(title="REASON"),
    Column(title="DONE TO IT", least=10, rank=1),
    Column(title="COMMAND", least=12, rank=6),
)


@dataclass(slots=True)
class Names:
    """Ids to the names that people gave."""

    tenants: dict[str, str] = field(default_factory=dict)
    sessions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, snapshot: pb.SnapshotResponse) -> Names:
        return cls(
            {tenant.id: tenant.name for tenant in snapshot.tenants},
            {session.id: session.name for session in snapshot.sessions},
        )

    def also(self, names: Mapping[str, str]) -> Names:
        """With those that an answer of the ledger brings along."""
        return Names({**names, **self.tenants}, {**names, **self.sessions})

    def tenant(self, tenant_id: str) -> str:
        return self.tenants.get(tenant_id) or tenant_id

    def session(self, session_id: str) -> str:
        return self.sessions.get(session_id) or session_id


def age(call: pb.Call, now: float) -> float:
    """Seconds since the begin; of an ended call, how long it lasted."""
    if call.HasField("outcome"):
        return call.outcome.wall_seconds
    return max(0.0, now - call.begun_at)


SORTS: Final[dict[str, Callable[[pb.Call, float], float | str]]] = {
    "begun": lambda call, now: call.begun_at,
    "age": lambda call, now: -age(call, now),
    "memory": lambda call, now: -call.usage.memory_now_bytes,
    "peak": lambda call, now: -call.usage.memory_peak_bytes,
    "cpu": lambda call, now: -call.usage.cpu_usec,
    "priority": lambda call, now: -call.grant.priority,
    "tenant": lambda call, now: call.tenant_id,
    "session": lambda call, now: call.session_id,
    "state": lambda call, now: call.state,
}


def select(
    snapshot: pb.SnapshotResponse,
    *,
    tenant: str = "",
    session: str = "",
    state: str = "",
    sort: str = "begun",
    reverse: bool = False,
) -> list[pb.Call]:
    """The snapshot's calls that match: ``tenant`` and ``session`` by id or name, ``state`` by its word."""
    names = Names.of(snapshot)
    calls = [
        call
        for call in snapshot.calls
        if (not tenant or tenant in (call.tenant_id, names.tenant(call.tenant_id)))
        and (not session or session in (call.session_id, names.session(call.session_id)))
        and (not state or words.state(call.state).text == state)
    ]
    key = SORTS[sort]
    return sorted(calls, key=lambda call: (key(call, snapshot.at), call.id), reverse=reverse)


def call_rows(calls: Iterable[pb.Call], names: Names, now: float) -> list[list[Cell | str]]:
    return [
        [
            call.id,
            names.tenant(call.tenant_id),
            names.session(call.session_id),
            call.intent.tool or "-",
            call.intent.call_class or "-",
            words.state(call.state),
            format_duration(age(call, now)),
            words.cpu(call.usage.cpu_usec),
            words.optional_bytes(call.usage, "memory_now_bytes"),
            words.optional_bytes(call.usage, "memory_peak_bytes"),
            words.optional_bytes(call.grant, "brake_bytes"),
            words.optional_count(call.usage, "pids_now"),
            str(call.grant.priority),
            call.command or "-",
        ]
        for call in calls
    ]


def network_bytes(usage: pb.Usage) -> str:
    if not (usage.HasField("net_rx_bytes") or usage.HasField("net_tx_bytes")):
        return "-"
    return format_bytes(usage.net_rx_bytes + usage.net_tx_bytes)


def history_rows(calls: Iterable[pb.Call], names: Names) -> list[list[Cell | str]]:
    rows: list[list[Cell | str]] = []
    for call in calls:
        ended = call.HasField("outcome")
        usage = call.outcome.usage if ended else call.usage
        rows.append(
            [
                call.id,
                names.tenant(call.tenant_id),
                names.session(call.session_id),
                call.intent.tool or "-",
                call.intent.call_class or "-",
                words.moment(call.outcome.ended_at) if ended else "not ended",
                format_duration(call.outcome.wall_seconds) if ended else "-",
                words.cpu(usage.cpu_usec),
                words.optional_bytes(usage, "memory_peak_bytes"),
                words.optional_count(usage, "faults"),
                words.optional_bytes(usage, "read_bytes"),
                words.optional_bytes(usage, "written_bytes"),
                network_bytes(usage),
                words.reason(call.outcome.reason) if ended else words.state(call.state),
                words.what_was_done(call.outcome.decisions),
                call.command or "-",
            ]
        )
    return rows


def host_lines(snapshot: pb.SnapshotResponse) -> list[str]:
    """The host in one line, and one more for what it cannot do."""
    host = snapshot.host
    used = host.memory_total_bytes - host.memory_available_bytes
    lines = [
        f"{host.cpus} CPUs · memory {format_bytes(used)} of {format_bytes(host.memory_total_bytes)} · "
        f"pressure cpu {words.percent(host, 'cpu_pressure')}, memory {words.percent(host, 'memory_pressure')}, "
        f"io {words.percent(host, 'io_pressure')} · {host.mode or 'unknown'} · Linux {host.kernel or '?'} · "
        f"agentd {host.version or '?'}"
    ]
    lines.extend(limitations(host))
    return lines


def limitations(host: pb.HostStatus) -> list[str]:
    """What every screen must say: that nothing is enforced, and what this host lacks."""
    lines = ["observe-only: usage is seen, no limit is enforced on this host"] if host.mode == "observe" else []
    if host.missing:
        lines.append(f"this host cannot: {'; '.join(host.missing)} (see: corral doctor)")
    return lines


TENANT_COLUMNS: Final = (
    Column(title="TENANT", least=6),
    Column(title="ID", rank=3),
    Column(title="PRIO", right=True),
    Column(title="MEMORY", right=True),
    Column(title="MEMORY MAX", right=True),
    Column(title="MEMORY HIGH", right=True, rank=5),
    Column(title="CPU", right=True),
    Column(title="CPU MAX", right=True, rank=1),
    Column(title="PIDS MAX", right=True, rank=4),
    Column(title="SESSIONS", right=True, rank=2),
    Column(title="CALLS", right=True),
)


def tenant_rows(snapshot: pb.SnapshotResponse) -> list[list[Cell | str]]:
    rows: list[list[Cell | str]] = []
    for tenant in sorted(snapshot.tenants, key=lambda t: t.name):
        live = [c for c in snapshot.calls if c.tenant_id == tenant.id and c.state != pb.CALL_STATE_ENDED]
        sessions = [s for s in snapshot.sessions if s.tenant_id == tenant.id and not s.HasField("closed_at")]
        rows.append(
            [
                tenant.name,
                tenant.id,
                str(tenant.priority),
                words.optional_bytes(tenant, "memory_now_bytes"),
                words.optional_bytes(tenant.limits, "memory_max_bytes"),
                words.optional_bytes(tenant.limits, "memory_high_bytes"),
                words.cpu(tenant.cpu_usec),
                words.cores(tenant.limits),
                words.optional_count(tenant.limits, "pids"),
                str(len(sessions)),
                str(len(live)),
            ]
        )
    return rows


SESSION_COLUMNS: Final = (
    Column(title="SESSION"),
    Column(title="TENANT", least=6),
    Column(title="NAME", least=6),
    Column(title="STATE"),
    Column(title="UID", right=True, rank=2),
    Column(title="AGE", right=True),
    Column(title="CALLS", right=True),
    Column(title="MEMORY", right=True, rank=1),
    Column(title="LABELS", least=8, rank=3),
)


def session_rows(snapshot: pb.SnapshotResponse, sessions: Iterable[pb.Session]) -> list[list[Cell | str]]:
    names = Names.of(snapshot)
    rows: list[list[Cell | str]] = []
    for session in sessions:
        live = [c for c in snapshot.calls if c.session_id == session.id and c.state != pb.CALL_STATE_ENDED]
        closed = session.HasField("closed_at")
        memory = sum(c.usage.memory_now_bytes for c in live)
        rows.append(
            [
                session.id,
                names.tenant(session.tenant_id),
                session.name or "-",
                Cell("closed", Style.DIM) if closed else Cell("attached" if session.rules else "open", Style.GOOD),
                str(session.uid),
                format_duration(max(0.0, (session.closed_at if closed else snapshot.at) - session.opened_at)),
                str(len(live)),
                format_bytes(memory) if live else "-",
                " ".join(f"{key}={value}" for key, value in sorted(session.labels.items())) or "-",
            ]
        )
    return rows


def call_plain(call: pb.Call, names: Names) -> dict[str, Plain]:
    """A call for ``--json``: the proto's fields, and the names of its tenant and session."""
    return to_plain(call) | {"tenant": names.tenant(call.tenant_id), "session": names.session(call.session_id)}
