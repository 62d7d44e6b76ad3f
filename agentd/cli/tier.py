"""``tier``: GPUs, engines, the sessions' KV caches and their context switches, as tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agentd.cli import words
from agentd.cli.context import Context
from agentd.cli.errors import EXIT_OK
from agentd.cli.plain import to_plain
from agentd.cli.table import Cell, Column, Style
from agentd.cli.views import Names
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.units import format_bytes, format_duration

DEVICES: Final = (
    Column(title="GPU", right=True),
    Column(title="NAME", least=8),
    Column(title="STATE"),
    Column(title="SM", right=True),
    Column(title="MEMORY", right=True),
    Column(title="POWER", right=True, rank=1),
    Column(title="ENERGY", right=True, rank=2),
    Column(title="TEMP", right=True, rank=3),
    Column(title="SWITCHES/S", right=True, rank=4),
    Column(title="DETAIL", least=12, rank=5),
)
PROCESSES: Final = (
    Column(title="GPU", right=True),
    Column(title="PID", right=True),
    Column(title="COMMAND", least=8, rank=3),
    Column(title="MEMORY", right=True),
    Column(title="SM", right=True),
    Column(title="TENANT", least=6, rank=2),
    Column(title="SESSION", least=8),
    Column(title="CALL", rank=1),
)
ENGINES: Final = (
    Column(title="ENGINE"),
    Column(title="KIND"),
    Column(title="STATE"),
    Column(title="RUNNING", right=True),
    Column(title="WAITING", right=True),
    Column(title="KV USED", right=True),
    Column(title="KV TOKENS", right=True, rank=2),
    Column(title="PREFIX HITS", right=True, rank=3),
    Column(title="CONTROL"),
    Column(title="URL", least=12, rank=4),
    Column(title="DETAIL", least=12, rank=5),
)
SESSIONS: Final = (
    Column(title="SESSION"),
    Column(title="TENANT", least=6, rank=2),
    Column(title="ENGINE", least=5, rank=1),
    Column(title="CONVERSATION", least=8, rank=5),
    Column(title="KV"),
    Column(title="TOKENS", right=True),
    Column(title="BYTES", right=True),
    Column(title="SINCE", right=True, rank=3),
    Column(title="SWITCHES", right=True, rank=4),
    Column(title="RECOMPUTED", right=True, rank=4),
    Column(title="WAITS FOR", rank=2),
    Column(title="WHY", least=12, rank=3),
)
SWITCHES: Final = (
    Column(title="AT", right=True),
    Column(title="SESSION"),
    Column(title="ENGINE", least=5, rank=1),
    Column(title="WHAT"),
    Column(title="TOKENS", right=True),
    Column(title="BYTES", right=True, rank=1),
    Column(title="TOOK", right=True),
    Column(title="WHY", least=12),
)

_STATES: Final = {"ok": Style.GOOD, "up": Style.GOOD, "unknown": Style.DIM, "down": Style.BAD}
_RESIDENCIES: Final = {"resident": Style.GOOD, "offloaded": Style.COLD, "dropped": Style.WARN}


def tier(context: Context) -> int:
    with context.connect() as api:
        status = api.tier()
        names = Names.of(api.snapshot(with_ended=True))
    if context.json:
        context.emit(to_plain(status))
        return EXIT_OK
    _print(context, status, names, context.args.switches)
    return EXIT_OK


def _print(context: Context, status: pb.TierStatus, names: Names, most: int) -> None:
    def part(title: str, columns: tuple[Column, ...], rows: list[list[Cell | str]]) -> None:
        if rows:
            context.say(context.heading(title))
            context.table(columns, rows)
            context.say("")

    if status.devices:
        part("GPUs", DEVICES, [_device(device) for device in status.devices])
        part("Processes on them", PROCESSES, [row for d in status.devices for row in _processes(d, names)])
    else:
        state = status.nvml or "off"
        context.say(f"no GPU ({state}){': ' + status.nvml_detail if status.nvml_detail else ''}", "")
    for device in status.devices:
        for fault in device.faults:
            context.say(f"GPU {device.index}: {fault}")
    part("Engines", ENGINES, [_engine(engine) for engine in status.engines])
    part("KV caches of sessions", SESSIONS, [_session(one, names, status.at) for one in status.sessions])
    newest = list(status.switches)[-most:]
    part("Context switches, the newest last", SWITCHES, [_switch(one, names) for one in newest])
    if status.engines and not status.sessions:
        context.say("no session has named its engine yet (the gateway, ReportTurn, or a call's intent does)", "")
    for hint in status.hints:
        context.say(f"to configure: {hint}")


def _share(message: pb.GpuDevice | pb.GpuProcess | pb.InferenceEngine, field: str) -> str:
    return f"{100 * getattr(message, field):.0f} %" if message.HasField(field) else "-"


def _device(device: pb.GpuDevice) -> list[Cell | str]:
    memory = "-"
    if device.HasField("memory_used_bytes") and device.HasField("memory_total_bytes"):
        memory = f"{format_bytes(device.memory_used_bytes)} of {format_bytes(device.memory_total_bytes)}"
    return [
        f"{device.index}" if not device.parent_uuid else f"└ {device.index}",
        device.name or "-",
        Cell(device.state, _STATES.get(device.state, Style.BAD)),
        _share(device, "sm_utilization"),
        memory,
        f"{device.power_watts:.0f} W" if device.HasField("power_watts") else "-",
        f"{device.energy_joules:,.0f} J" if device.HasField("energy_joules") else "-",
        f"{device.temperature_celsius:.0f} °C" if device.HasField("temperature_celsius") else "-",
        f"{device.context_switches_per_second:,.0f}" if device.HasField("context_switches_per_second") else "-",
        device.detail or "-",
    ]


def _processes(device: pb.GpuDevice, names: Names) -> Iterable[list[Cell | str]]:
    for process in device.processes:
        owned = bool(process.session_id)
        yield [
            str(device.index),
            str(process.pid),
            process.command or "-",
            format_bytes(process.memory_bytes) if process.HasField("memory_bytes") else "-",
            _share(process, "sm_share"),
            names.tenant(process.tenant_id) if owned else "-",
            names.session(process.session_id) if owned else Cell("nobody's", Style.DIM),
            process.call_id or "-",
        ]


def _engine(engine: pb.InferenceEngine) -> list[Cell | str]:
    return [
        engine.name,
        engine.kind,
        Cell(engine.state, _STATES.get(engine.state, Style.WARN)),
        f"{engine.running:,}" if engine.HasField("running") else "-",
        f"{engine.waiting:,}" if engine.HasField("waiting") else "-",
        _share(engine, "kv_used_share"),
        f"{engine.kv_capacity_tokens:,}" if engine.HasField("kv_capacity_tokens") else "-",
        _share(engine, "prefix_hit_share"),
        engine.policy if engine.control else Cell("observed only", Style.DIM),
        engine.url,
        engine.detail or engine.version or "-",
    ]


def _session(session: pb.KvSession, names: Names, now: float) -> list[Cell | str]:
    return [
        names.session(session.session_id),
        names.tenant(session.tenant_id),
        session.engine,
        session.conversation or "-",
        Cell(session.residency, _RESIDENCIES.get(session.residency, Style.DIM)),
        f"{session.tokens:,}",
        format_bytes(session.bytes) if session.bytes else "-",
        format_duration(max(0.0, now - session.since)),
        str(session.switches),
        f"{session.recomputed_tokens:,}",
        session.call_id or "-",
        session.why or "-",
    ]


def _switch(switch: pb.ContextSwitch, names: Names) -> list[Cell | str]:
    return [
        words.moment(switch.at),
        names.session(switch.session_id),
        switch.engine,
        switch.kind,
        f"{switch.tokens:,}",
        format_bytes(switch.bytes) if switch.bytes else "-",
        format_duration(switch.seconds),
        switch.why or "-",
    ]
