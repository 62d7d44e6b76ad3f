"""Everything about one call, one session, one tenant, as lines. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from rich.text import Text

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.model.board import Board
from tui.model.columns import BAND_STYLES
from tui.model.lines import decision_line
from tui.model.plot import Point, Rule, plot, rates, side_by_side
from tui.model.rows import STATES, UNKNOWN
from tui.model.text import bar, clean, clock, rate, size, span

WIDE: Final = 120  # cells from which two plots stand side by side
MAX_PROCESSES: Final = 40
_NETWORKS: Final = {0: "any", 1: "any", 2: "none", 3: "listed destinations"}
_PRESSURE: Final = {0: "wait", 1: "wait", 2: "degrade", 3: "fail fast"}


def title(words: str) -> Text:
    return Text(words.upper(), "bold underline", no_wrap=True)


def fact(name: str, words: str, style: str = "") -> Text:
    text = Text()
    text.append(f"{name:12} ", "dim")
    text.append(words, style)
    return text


def _percent(value: float) -> str:
    return f"{value * 100:.0f}%"


def _cores(value: float) -> str:
    return f"{value:.2f}"


def _bytes_rate(value: float) -> str:
    return f"{size(value)}/s" if value >= 0.5 else "0 B/s"


def _points(samples: Sequence[pb.Sample], *names: str) -> list[Point]:
    """The sum of counters of Usage over time, from the samples that know all of them."""
    found = []
    for sample in samples:
        usage = sample.usage
        if all(name == "cpu_usec" or usage.HasField(name) for name in names):
            found.append((sample.at, float(sum(getattr(usage, name) for name in names))))
    return found


def call_facts(call: pb.Call, board: Board, names: Mapping[str, str], now: float) -> list[Text]:
    state = STATES.get(call.state, UNKNOWN)
    ended = call.HasField("outcome")
    wall = call.outcome.wall_seconds if ended else max(0.0, now - call.begun_at)
    held = call.outcome.held_seconds if ended else call.held_seconds
    if call.HasField("held_since") and not ended:
        held += max(0.0, now - call.held_since)
    good = not ended or call.outcome.reason in ("", "exited")
    word = f"{state.glyph if good else '✗'} {clean(call.outcome.reason) if ended else state.word}"
    tenant, session = board.tenants.get(call.tenant_id), board.sessions.get(call.session_id)
    tenant_name = tenant.name if tenant else names.get(call.tenant_id, "")
    session_name = session.name if session else names.get(call.session_id, "")
    lines = [
        fact("command", clean(call.command) or "-", "bold"),
        fact("state", f"{word}, begun {clock(call.begun_at)}, {span(wall)}", state.style if good else "bold red"),
        fact("of", f"{clean(tenant_name) or call.tenant_id} / {clean(session_name) or call.session_id}   {call.id}"),
    ]
    if held or call.brakes:
        lines.append(fact("held", f"{span(held)}, braked {call.brakes} times"))
    if call.cgroup:
        lines.append(fact("cgroup", clean(call.cgroup)))
    return lines + _learned(call) + _done_to(call, now)


def _learned(call: pb.Call) -> list[Text]:
    """What calls like it came to, and how it was recognised where it did not declare itself."""
    lines = []
    forecast = call.forecast
    if call.HasField("forecast") and forecast.lives:
        words = []
        if forecast.HasField("memory_median_bytes"):
            words.append(f"peak {size(forecast.memory_median_bytes)} in the middle")
        if forecast.HasField("memory_high_bytes"):
            words.append(f"{size(forecast.memory_high_bytes)} at the 98th percentile")
        if forecast.HasField("remaining_seconds"):
            words.append(f"{span(forecast.remaining_seconds)} to go")
        lines.append(fact("such calls", f"{', '.join(words)}   ({forecast.lives} of {clean(forecast.kind)})"))
    if call.HasField("recognition"):
        seen = call.recognition
        words = [f"by rule {clean(seen.rule)}, {span(seen.seconds_before)} after it began"]
        words.append(f"CPU {span(seen.cpu_usec_before / 1e6)} before that")
        if seen.HasField("memory_bytes_before"):
            words.append(f"{size(seen.memory_bytes_before)} stay the agent's")
        lines.append(fact("recognised", ", ".join(words)))
    return lines


def _done_to(call: pb.Call, now: float) -> list[Text]:
    """What it waits for, and what the ladder took from it."""
    lines = []
    if call.state == pb.CALL_STATE_QUEUED or call.waits_for:
        when = f", about {span(call.eta_seconds)} more" if call.HasField("eta_seconds") else ""
        lines.append(fact("waits for", f"{clean(call.waits_for) or 'its turn'}{when}", "cyan"))
    if call.HasField("squeeze"):
        squeeze = call.squeeze
        words = [f"for {span(max(0.0, now - squeeze.since))}"] if squeeze.since else []
        if squeeze.HasField("memory_high_bytes"):
            words.append(f"memory slowed above {size(squeeze.memory_high_bytes)}")
        if squeeze.HasField("cpu_weight"):
            words.append(f"CPU weight {squeeze.cpu_weight}")
        if squeeze.HasField("io_weight"):
            words.append(f"I/O weight {squeeze.io_weight}")
        if squeeze.HasField("egress_bytes_per_second"):
            words.append(f"network {size(squeeze.egress_bytes_per_second)}/s out")
        reason = f": {clean(squeeze.reason)}" if squeeze.reason else ""
        lines.append(fact("throttled", f"{', '.join(words)}{reason}", "yellow"))
    return lines


def call_contract(call: pb.Call) -> list[Text]:
    """Declared, granted and used, side by side: where an intent was wrong it shows."""
    intent, grant = call.intent, call.grant
    usage = call.outcome.usage if call.HasField("outcome") else call.usage
    limits = grant.limits

    def size_of(message: pb.Intent | pb.Usage | pb.Limits | pb.Grant, name: str) -> str:
        return size(getattr(message, name)) if message.HasField(name) and getattr(message, name) > 0 else "-"

    cpu = usage.cpu_usec / 1e6
    rows = [
        ("", "declared", "granted", "used"),
        ("memory", size_of(intent, "memory_typical_bytes"), "", size_of(usage, "memory_now_bytes")),
        (
            "peak",
            size_of(intent, "memory_peak_bytes"),
            size_of(limits, "memory_max_bytes"),
            size_of(usage, "memory_peak_bytes"),
        ),
        ("brake", "", size_of(grant, "brake_bytes"), f"{call.brakes} times"),
        ("notice", "", size_of(grant, "notify_bytes"), ""),
        (
            "CPU",
            f"{intent.cpu_cores:g} cores" if intent.HasField("cpu_cores") else "-",
            f"{limits.cpu_cores:g} cores" if limits.cpu_cores > 0 else "-",
            span(cpu),
        ),
        (
            "processes",
            str(intent.pids) if intent.HasField("pids") else "-",
            str(limits.pids) if limits.pids > 0 else "-",
            str(usage.pids_now) if usage.HasField("pids_now") else "-",
        ),
        (
            "duration",
            span(intent.duration_seconds) if intent.HasField("duration_seconds") else "-",
            f"until {span(intent.deadline_seconds)}" if intent.HasField("deadline_seconds") else "-",
            span(call.outcome.wall_seconds) if call.HasField("outcome") else "",
        ),
        ("priority", str(intent.priority) if intent.HasField("priority") else "-", str(grant.priority), ""),
        ("network", _NETWORKS.get(intent.network, "?"), "", _traffic(usage)),
        ("GPU", "yes" if intent.gpu else "no", "", ""),
        ("pressure", _PRESSURE.get(intent.on_pressure, "?"), "" if grant.enforced else "only observed", ""),
    ]  # fmt: skip
    lines = []
    for number, (name, *cells) in enumerate(rows):
        text = Text(no_wrap=True)
        text.append(f"{name:12} ", "dim")
        text.append("".join(f"{cell:20}" for cell in cells).rstrip(), "dim" if not number else "")
        lines.append(text)
    more = [
        f"{label} {getattr(usage, name):,}"
        for label, name in (("faults", "faults"), ("major", "major_faults"), ("forks", "forks"), ("execs", "execs"))
        if usage.HasField(name)
    ]
    if more:
        lines.append(fact("counted", ", ".join(more)))
    lines += [fact("note", clean(note), "yellow") for note in grant.notes]
    return lines


def _traffic(usage: pb.Usage) -> str:
    if not usage.HasField("net_rx_bytes"):
        return "-"
    return f"{size(usage.net_rx_bytes)} in, {size(usage.net_tx_bytes)} out"


def call_plots(call: pb.Call, samples: Sequence[pb.Sample], now: float, width: int, height: int) -> list[Text]:
    """Memory, CPU, stalls and I/O over the call's life, against what bounds them."""
    since = min([call.begun_at, *(sample.at for sample in samples[:1])])
    until = max(call.outcome.ended_at if call.HasField("outcome") else now, since + 1.0)
    limits = call.grant.limits
    rules = [
        rule
        for rule in (
            Rule("forecast", float(call.forecast.memory_high_bytes), "green"),
            Rule("declared", float(call.intent.memory_peak_bytes), "cyan"),
            Rule("brake", float(call.grant.brake_bytes), "yellow"),
            Rule("limit", float(max(0, limits.memory_max_bytes)), "red"),
        )
        if rule.value > 0
    ]
    wide = width >= WIDE
    each = (width - 2) // 2 if wide else width
    draw = partial(plot, since=since, until=until, width=each, height=height)
    memory = draw("memory", _points(samples, "memory_now_bytes"), number=size, rules=rules)
    cores = [(at, value / 1e6) for at, value in rates(_points(samples, "cpu_usec"))]
    cpu_rules = [Rule("limit", limits.cpu_cores, "red")] if limits.cpu_cores > 0 else []
    cpu = draw("CPU cores", cores, number=_cores, rules=cpu_rules, style="blue", least=0.1)
    stalls = [(at, value / 1e6) for at, value in rates(_points(samples, "memory_stall_usec"))]
    psi = draw("waits for memory (PSI)", stalls, number=_percent, style="yellow", least=0.1)
    moved = rates(_points(samples, "read_bytes", "written_bytes"))
    io = draw("read and written", moved, number=_bytes_rate, style="magenta", least=1024.0)
    if wide:
        return [*side_by_side(memory, cpu, each), Text(), *side_by_side(psi, io, each)]
    return [*memory, Text(), *cpu, Text(), *psi, Text(), *io]


def call_outcome(call: pb.Call) -> list[Text]:
    if not call.HasField("outcome"):
        return []
    outcome = call.outcome
    good = outcome.reason in ("", "exited")
    status = f", wait status {outcome.wait_status}" if outcome.HasField("wait_status") else ""
    lines = [
        fact("ended", f"{clean(outcome.reason)} at {clock(outcome.ended_at)}{status}", "green" if good else "bold red")
    ]
    lines.append(Text(clean(outcome.summary)) if outcome.summary else Text("nothing was done to it", "dim"))
    lines += [fact("try", clean(suggestion)) for suggestion in outcome.suggestions]
    if outcome.leftovers:
        lines.append(fact("left behind", f"{outcome.leftovers} processes", "yellow"))
    return lines


def decisions(found: Sequence[pb.Decision], board: Board) -> list[Text]:
    lines = []
    for decision in found:
        text = decision_line(decision, board)
        if decision.policy:
            text.append(f"  by {clean(decision.policy)}", "dim")
        # evidence is why the page is open: it may take a second line
        text.no_wrap, text.overflow = False, "fold"
        lines.append(text)
    return lines or [Text("none", "dim")]


def process_tree(processes: Sequence[pb.Process]) -> list[Text]:
    """Parents before their children, which stand deeper."""
    known = {process.pid for process in processes}
    below: dict[int, list[pb.Process]] = {}
    for process in processes:
        parent = process.parent_pid if process.parent_pid in known and process.parent_pid != process.pid else 0
        below.setdefault(parent, []).append(process)
    lines: list[Text] = []
    waiting = [(process, 0) for process in reversed(below.get(0, []))]
    while waiting and len(lines) < MAX_PROCESSES:
        process, depth = waiting.pop()
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{process.pid:>8} ")
        text.append(
            f"{clean(process.state):10} {size(process.memory_bytes):>9} {span(process.cpu_seconds):>7}  ", "dim"
        )
        text.append("  " * min(depth, 12) + ("└ " if depth else "") + clean(process.command))
        lines.append(text)
        waiting += [(child, depth + 1) for child in reversed(below.get(process.pid, []))]
    if len(processes) > len(lines):
        lines.append(Text(f"and {len(processes) - len(lines)} more", "dim"))
    return lines or [Text("no process is in its leaf", "dim")]


def budgets(found: Sequence[pb.Budget], width: int) -> list[Text]:
    """What is left of each, as a bar of what was used; those that are used up say how scarce, and until when."""
    lines = []
    for budget in found:
        part = budget.used / budget.limit if budget.limit > 0 else 0.0
        show = _AMOUNTS.get(budget.resource, size if budget.resource.endswith("bytes") else _plain)
        style = "red" if part >= 1 else "yellow" if part >= 0.8 else "green"
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{clean(budget.scope):8} {clean(budget.resource).replace('_', ' '):20} ", "dim")
        text.append(bar(part, min(30, max(10, width - 76))), f"{style} on grey23")
        text.append(f" {show(budget.used)} of {show(budget.limit)}, {show(budget.remaining)} left")
        band = _BANDS.get(budget.band)
        if band is not None:
            text.append(f"  {band}", BAND_STYLES.get(budget.band, ""))
            text.append("  hard" if budget.hard else "  told only", "dim")
        if budget.HasField("refills_at"):
            text.append(f"  full again at {clock(budget.refills_at)}", "dim")
        lines.append(text)
    return lines or [
        Text(
            "no budget is set: corral tenant set NAME --memory-max 2G --cpu 2; corral budget set NAME cpu_seconds 1h",
            "dim",
        )
    ]


def _byte_seconds(value: float) -> str:
    return f"{value / 2**30 / 3600:.3g} GiB h"


_BANDS: Final = {
    pb.BUDGET_BAND_PLENTY: "plenty",
    pb.BUDGET_BAND_MEDIUM: "medium",
    pb.BUDGET_BAND_LOW: "low",
    pb.BUDGET_BAND_CRITICAL: "critical",
}
_AMOUNTS: Final[dict[str, Callable[[float], str]]] = {
    "cpu_seconds": span,
    "gpu_seconds": span,
    "memory_byte_seconds": _byte_seconds,
    "network_bytes": size,
}


def turns_fact(session: pb.Session) -> list[Text]:
    """What the session's model did."""
    if not session.HasField("turns"):
        return []
    turns = session.turns
    words = [f"{turns.turns} turns, {_plain(turns.prompt_tokens)} prompt tokens"]
    if turns.cached_tokens:
        words.append(f"{turns.cached_tokens / max(1, turns.prompt_tokens) * 100:.0f}% of them cached")
    words.append(f"{_plain(turns.generated_tokens)} generated, {span(turns.model_seconds)}")
    if turns.gpu_seconds:
        words.append(f"GPU {span(turns.gpu_seconds)}")
    if turns.joules:
        words.append(f"{turns.joules / 1000:.3g} kJ")
    return [fact("model", ", ".join(words))]


def _plain(value: float) -> str:
    return f"{value:g}" if value < 1000 else rate(value)
