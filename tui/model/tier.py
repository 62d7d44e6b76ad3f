"""The inference tier as lines: devices and who uses them, engines, where each session's KV cache is and why. Pure."""

from __future__ import annotations

import textwrap
from typing import Final

from rich.text import Text

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.model.board import Board
from tui.model.columns import NEAR
from tui.model.details import fact, title
from tui.model.lines import line, name_of
from tui.model.text import bar, clean, clock, rate, size, span

BAR: Final = 12  # cells
MAX_PROCESSES: Final = 8  # of a device
MAX_SESSIONS: Final = 60
MAX_SWITCHES: Final = 12
NOTHING: Final = "This daemon reports no GPU and no inference engine. To see them here:"
# what, and what has to be there
WANTED: Final = (
    ("devices", "NVIDIA's driver on this host (nvidia-smi works); restart agentd after it was installed"),
    ("engines", "llama.cpp, vLLM or SGLang, named in agentd's configuration (docs/configuration.md)"),
    ("check", "corral config check says whether a configuration is right, corral doctor what the host lacks"),
    ("sessions", "calls that declare where they belong: corral run --engine NAME --conversation ID -- COMMAND"),
)
# glyph and style of where a session's KV cache is; the word stands beside them
RESIDENCY: Final = {
    "resident": ("●", "green"),
    "offloaded": ("◒", "yellow"),
    "dropped": ("○", "red"),
    "none": ("·", "dim"),
}
_SWITCH: Final = {"preempted": "▼", "offloaded": "▼", "restored": "▲", "dropped": "✗", "recomputed": "↻"}


def tier_lines(board: Board, width: int, now: float) -> list[Text]:
    tier = board.tier
    if tier is None or not (tier.devices or tier.engines):
        lines = [title("GPUs and inference engines"), Text(), Text(NOTHING), Text()]
        for name, words in WANTED:
            lines += _folded(name, words, width)
        return lines + _hints(tier, width) + _bound(board)
    lines = [title("devices"), *_devices(tier, board, width), Text()]
    lines += [title("engines"), *_engines(tier, width), Text()]
    lines += [title("kv cache by session"), *_sessions(tier, board, width, now), Text()]
    lines += [title("last context switches"), *_switches(tier, board)]
    return lines + _hints(tier, width) + _bound(board)


def kv_facts(board: Board, session_id: str, now: float) -> list[Text]:
    """For a session's page: where its KV cache is, on each engine."""
    if board.tier is None:
        return []
    return [
        fact("KV cache", f"{glyph} {_kv_words(one, now)}", style)
        for one in board.tier.sessions
        if one.session_id == session_id
        for glyph, style in [RESIDENCY.get(one.residency, ("?", ""))]
    ]


def _folded(name: str, words: str, width: int, style: str = "") -> list[Text]:
    first, *more = textwrap.wrap(words, max(20, width - 14)) or [""]
    return [fact(name, first, style), *(Text(f"{'':13}{rest}", style) for rest in more)]


def _devices(tier: pb.TierStatus, board: Board, width: int) -> list[Text]:
    lines: list[Text] = []
    for device in tier.devices:
        text = line()
        label = "MIG  " if device.parent_uuid else "GPU "
        text.append(f"{label}{device.index} ", "bold")
        text.append(f"{clean(device.name)}  ", "")
        if device.state != "ok":
            text.append(f"{clean(device.state)}: {clean(device.detail)}", "bold white on red")
            lines.append(text)
            continue
        if device.HasField("memory_used_bytes") and device.memory_total_bytes:
            part = device.memory_used_bytes / device.memory_total_bytes
            text.append(bar(part, BAR), f"{'red' if part >= 0.95 else 'yellow' if part >= NEAR else 'green'} on grey23")
            text.append(f" {size(device.memory_used_bytes)} of {size(device.memory_total_bytes)}")
        for name, field, style in (("SM", "sm_utilization", ""), ("mem", "memory_utilization", "dim")):
            if device.HasField(field):
                text.append(f"  {name} {getattr(device, field) * 100:.0f}%", style)
        if device.HasField("power_watts"):
            text.append(f"  {device.power_watts:.0f} W")
        if device.HasField("energy_joules"):
            text.append(f"  {_joules(device.energy_joules)}", "dim")
        if device.HasField("temperature_celsius"):
            text.append(f"  {device.temperature_celsius:.0f} °C", "dim")
        if device.HasField("context_switches_per_second"):
            text.append(f"  {rate(device.context_switches_per_second)} switches/s")
        lines.append(text)
        lines += [line(f"    {clean(fault)}", "bold red") for fault in device.faults]
        for process in sorted(device.processes, key=lambda p: -p.memory_bytes)[:MAX_PROCESSES]:
            text = line(f"    {process.pid:>8} ", "dim")
            memory = size(process.memory_bytes) if process.HasField("memory_bytes") else "-"
            share = f"{process.sm_share * 100:.0f}%" if process.HasField("sm_share") else "-"
            whose = process.call_id or process.session_id or process.tenant_id
            text.append(f"{memory:>9}  SM {share:>4}  ", "")
            text.append(name_of(board, whose) if whose else "nobody of ours", "" if whose else "dim")
            text.append(f"  {clean(process.command)}", "dim")
            lines.append(text)
        if len(device.processes) > MAX_PROCESSES:
            lines.append(line(f"    and {len(device.processes) - MAX_PROCESSES} more", "dim"))
    if not lines:
        why = f"{clean(tier.nvml)}: {clean(tier.nvml_detail)}" if tier.nvml else "switched off in the configuration"
        lines = _folded("none", why, width, "dim")
    return lines


def _engines(tier: pb.TierStatus, width: int) -> list[Text]:
    lines: list[Text] = []
    for engine in tier.engines:
        text = line()
        up = engine.state == "up"
        text.append("● " if up else "✗ ", "green" if up else "bold red")
        text.append(f"{clean(engine.name):12} ", "bold")
        text.append(f"{clean(engine.kind)} {clean(engine.version)}  ", "dim")
        if not up:
            text.append(f"{clean(engine.state)}: {clean(engine.detail)}", "bold red")
            lines.append(text)
            continue
        if engine.HasField("running"):
            text.append(f"{engine.running} running  ")
        if engine.HasField("waiting"):
            text.append(f"{engine.waiting} waiting  ", "yellow" if engine.waiting else "")
        if engine.HasField("kv_used_share"):
            part = engine.kv_used_share
            text.append("KV ")
            text.append(bar(part, BAR), f"{'red' if part >= 0.95 else 'yellow' if part >= NEAR else 'green'} on grey23")
            of = f" of {rate(engine.kv_capacity_tokens)} tokens" if engine.kv_capacity_tokens else ""
            text.append(f" {part * 100:.0f}%{of}  ")
        if engine.HasField("prefix_hit_share"):
            text.append(f"prefix hits {engine.prefix_hit_share * 100:.0f}%  ")
        if engine.HasField("preemptions"):
            text.append(f"{engine.preemptions} preemptions", "yellow" if engine.preemptions else "")
        lines.append(text)
        can = [clean(c.name) for c in engine.capabilities if c.answer == "yes"]
        cannot = [clean(c.name) for c in engine.capabilities if c.answer == "no"]
        if can:
            lines += _folded("  can", ", ".join(can), width, "dim")
        if cannot:
            lines += _folded("  cannot", ", ".join(cannot), width, "dim")
    return lines or _folded("none", "no engine is configured", width, "dim")


def _sessions(tier: pb.TierStatus, board: Board, width: int, now: float) -> list[Text]:
    """The largest first."""
    lines: list[Text] = []
    for one in sorted(tier.sessions, key=lambda s: (-s.bytes, s.session_id))[:MAX_SESSIONS]:
        glyph, style = RESIDENCY.get(one.residency, ("?", ""))
        text = line()
        text.append(f"{glyph} ", style)
        text.append(f"{name_of(board, one.session_id):16.16} ", "bold")
        text.append(_kv_words(one, now))
        if one.call_id:
            text.append(f"  waits for {name_of(board, one.call_id).rpartition('/')[2]}", "cyan")
        lines.append(text)
    if len(tier.sessions) > MAX_SESSIONS:
        lines.append(line(f"and {len(tier.sessions) - MAX_SESSIONS} more", "dim"))
    if tier.policy:
        lines.append(line(f"decided by: {clean(tier.policy)}", "dim"))
    return lines or _folded("none", "no session has had a turn on a configured engine yet", width, "dim")


def _kv_words(one: pb.KvSession, now: float) -> str:
    words = f"{clean(one.residency):9} {size(one.bytes):>9} {rate(one.tokens):>5} tokens  on {clean(one.engine)}"
    words += f"  for {span(max(0.0, now - one.since))}"
    if one.why:
        words += f": {clean(one.why)}"
    if one.HasField("keep_until"):
        left = one.keep_until - now
        words += f", kept {span(left)} more" if left > 0 else ", its time to live is over"
    if one.recomputed_tokens:
        words += f", {rate(one.recomputed_tokens)} tokens computed again"
    return words


def _switches(tier: pb.TierStatus, board: Board) -> list[Text]:
    """The newest first."""
    lines = []
    for one in reversed(tier.switches[-MAX_SWITCHES:]):
        text = line()
        text.append(f"{clock(one.at)} ", "dim")
        text.append(f"{_SWITCH.get(one.kind, '·')} {clean(one.kind):10} ", "bold")
        text.append(f"{name_of(board, one.session_id)} on {clean(one.engine)}  {size(one.bytes)}, ")
        text.append(f"{rate(one.tokens)} tokens in {span(one.seconds)}  ")
        text.append(clean(one.why), "dim")
        lines.append(text)
    return lines or [line("none", "dim")]


def _hints(tier: pb.TierStatus | None, width: int) -> list[Text]:
    if tier is None or not tier.hints:
        return []
    return [Text(), *(one for hint in tier.hints for one in _folded("hint", clean(hint), width, "yellow"))]


def _bound(board: Board) -> list[Text]:
    """Calls that say which conversation on which engine they belong to, or that want a GPU."""
    calls = [call for call in board.calls.values() if call.intent.HasField("inference") or call.intent.gpu]
    if not calls:
        return []
    lines = [Text(), title("calls that declare a GPU or an engine")]
    for call in calls:
        inference = call.intent.inference
        words = clean(f"{inference.engine} {inference.conversation}".strip()) or "GPU"
        lines.append(fact(clean(call.intent.tool or call.id)[:12], f"{words}   {clean(call.command)}"))
    return lines


def _joules(value: float) -> str:
    return f"{value / 3.6e6:.2f} kWh" if value >= 3.6e5 else f"{value / 1000:.1f} kJ"
