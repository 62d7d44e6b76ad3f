"""``show`` and ``explain``: everything about one call, and what happened to it in words.

``show`` of a session or a tenant is in ``group``."""

from __future__ import annotations

from dataclasses import dataclass

from agentd.cli import processes as listed
from agentd.cli import views, words
from agentd.cli.context import Context
from agentd.cli.control import limit_pairs
from agentd.cli.errors import EXIT_OK, NotFoundError, NotPermitted
from agentd.cli.plain import Plain, to_plain
from agentd.cli.table import Cell, Column, fold
from agentd.cli.targets import find
from agentd.processes import processes_of
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.units import format_bytes, format_duration

_DECISIONS = (
    Column(title="WHEN"),
    Column(title="ACTION"),
    Column(title="BY", least=6, rank=2),
    Column(title="WHY", least=20),
    Column(title="EVIDENCE", least=20, rank=1),
)
_PROCESSES = (
    Column(title="PID", right=True),
    Column(title="STATE"),
    Column(title="MEMORY", right=True),
    Column(title="CPU", right=True),
    Column(title="COMMAND", least=12),
)


@dataclass(frozen=True, slots=True)
class Known:
    """A call with what the daemon and the ledger have about it."""

    call: pb.Call
    decisions: list[pb.Decision]
    names: views.Names
    now: float


def look_up(context: Context) -> Known:
    """The call from the daemon's memory, else from the ledger. Raises NotFoundError."""
    text: str = context.args.call
    with context.connect() as api:
        snapshot = api.snapshot(with_ended=True)
        names = views.Names.of(snapshot)
        try:
            call_id = find(snapshot, text, kinds=("call",)).id
        except NotFoundError:
            # An id's length is fixed: a piece of one cannot be looked up in the ledger.
            if not text.startswith("c-") or len(text) != len("c-") + 16:
                raise
            call_id = text
        reply = api.history(pb.HistoryRequest(call_id=call_id, limit=1, with_decisions=True))
    call = next((c for c in snapshot.calls if c.id == call_id), None) or next(iter(reply.calls), None)
    if call is None:
        raise NotFoundError(f"no call {text!r}", remedy="'corral history' shows what the ledger holds")
    decisions = [d for d in reply.decisions if d.call_id == call_id] or list(call.outcome.decisions)
    return Known(call, sorted(decisions, key=lambda d: d.at), names, snapshot.at)


def show(context: Context) -> int:
    try:
        known = look_up(context)
    except NotFoundError:
        if context.args.call.startswith("c-"):
            raise  # an id says what it is of
        from agentd.cli import group

        return group.show(context)  # a session or a tenant, then; it says when it is neither
    call, names = known.call, known.names
    processes = processes_of(call.cgroup) if call.state != pb.CALL_STATE_ENDED else []
    if context.json:
        context.emit(
            {
                "call": views.call_plain(call, names),
                "decisions": [to_plain(decision) for decision in known.decisions],
                "processes": [listed.plain(process) for process in processes],
            }
        )
        return EXIT_OK
    ended = call.HasField("outcome")
    usage = call.outcome.usage if ended else call.usage
    context.say(context.heading(f"call {call.id}"))
    context.pairs(_identity(known))
    context.say("", context.heading("declared"))
    context.pairs(_intent_pairs(call.intent))
    context.say("", context.heading("granted" + ("" if call.grant.enforced else " (not enforced: observe-only)")))
    context.pairs(_grant_pairs(call.grant))
    context.say("", context.heading("used"))
    context.pairs(_usage_pairs(usage))
    if ended:
        context.say("", context.heading("outcome"))
        context.pairs(_outcome_pairs(call.outcome))
    if known.decisions:
        context.say("", context.heading("decisions"))
        context.table(_DECISIONS, [_decision_row(decision) for decision in known.decisions])
    if processes:
        context.say("", context.heading("processes"))
        context.table(_PROCESSES, [listed.row(process) for process in processes])
    return EXIT_OK


def _identity(known: Known) -> list[tuple[str, Cell | str]]:
    call = known.call
    queued = call.state == pb.CALL_STATE_QUEUED
    pairs: list[tuple[str, Cell | str]] = [
        ("command", call.command or "-"),
        ("tenant", f"{known.names.tenant(call.tenant_id)} ({call.tenant_id})"),
        ("session", f"{known.names.session(call.session_id)} ({call.session_id})"),
        ("state", words.state(call.state)),
        (
            "asked" if queued else "begun",
            f"{words.moment(call.begun_at)} ({format_duration(views.age(call, known.now))} long)",
        ),
        ("held", f"{format_duration(_held(call, known.now))}, braked {call.brakes}×"),
        ("cgroup", call.cgroup or ("none yet" if queued else "none (observe-only)")),
    ]
    if call.parent_id:
        pairs.insert(3, ("inside", call.parent_id))
    if call.HasField("recognition"):
        pairs.append(("recognised", _recognition_text(call.recognition)))
    if call.waits_for:
        pairs.append(("waits for", call.waits_for + _about(call)))
    if call.HasField("forecast"):
        pairs.append(("forecast", _forecast(call.forecast)))
    return pairs


def _recognition_text(known: pb.Recognition) -> str:
    before = f"ran {format_duration(known.seconds_before)} before it was placed"
    used = f"{format_duration(known.cpu_usec_before / 1e6)} of CPU"
    if known.HasField("memory_bytes_before"):
        used += f" and {format_bytes(known.memory_bytes_before)} of memory, which stay the agent's"
    return f"by rule {known.rule}; {before}, with {used}"


def _about(call: pb.Call) -> str:
    return f" (about {format_duration(call.eta_seconds)} more)" if call.HasField("eta_seconds") else ""


def _forecast(forecast: pb.Forecast) -> str:
    """From the calls like this one that ended: ``typically 300M, 49 of 50 within 1.2G; 12s more (20 calls: tool)``."""
    parts = []
    if forecast.HasField("memory_median_bytes"):
        parts.append(f"typically {format_bytes(forecast.memory_median_bytes)}")
    if forecast.HasField("memory_high_bytes"):
        parts.append(f"49 of 50 within {format_bytes(forecast.memory_high_bytes)}")
    text = ", ".join(parts)
    if forecast.HasField("remaining_seconds"):
        text += f"; {format_duration(forecast.remaining_seconds)} more"
    return f"{text} (from {forecast.lives} calls: {forecast.kind})"


def _held(call: pb.Call, now: float) -> float:
    current = max(0.0, now - call.held_since) if call.HasField("held_since") else 0.0
    return call.held_seconds + current


def _intent_pairs(intent: pb.Intent) -> list[tuple[str, Cell | str]]:
    egress = ", ".join(f"{rule.network} port {rule.port}" if rule.port else rule.network for rule in intent.egress)
    network = {pb.NETWORK_MODE_NONE: "none", pb.NETWORK_MODE_EGRESS_LIST: egress}.get(intent.network, "any")
    pressure = {pb.ON_PRESSURE_DEGRADE: "take less", pb.ON_PRESSURE_FAIL_FAST: "fail at once"}
    inference = intent.inference
    return [
        ("tool", intent.tool or "-"),
        ("class", intent.call_class or "-"),
        ("memory typical", words.optional_bytes(intent, "memory_typical_bytes")),
        ("memory peak", words.optional_bytes(intent, "memory_peak_bytes")),
        ("cpu", words.cores(intent)),
        ("pids", words.optional_count(intent, "pids")),
        ("duration", _seconds(intent, "duration_seconds")),
        ("deadline", _seconds(intent, "deadline_seconds")),
        ("priority", str(intent.priority) if intent.HasField("priority") else "-"),
        ("network", network),
        ("gpu", "yes" if intent.gpu else "no"),
        ("on pressure", pressure.get(intent.on_pressure, "wait")),
        ("inference", f"{inference.engine} / {inference.conversation}" if inference.engine else "-"),
    ]


def _seconds(intent: pb.Intent, field: str) -> str:
    return format_duration(getattr(intent, field)) if intent.HasField(field) else "-"


def _grant_pairs(grant: pb.Grant) -> list[tuple[str, Cell | str]]:
    notes: list[tuple[str, Cell | str]] = [("note", note) for note in grant.notes]
    return [
        *limit_pairs(grant.limits),
        ("notify at", words.optional_bytes(grant, "notify_bytes")),
        ("brake at", words.optional_bytes(grant, "brake_bytes")),
        ("priority", str(grant.priority)),
        *notes,
    ]


def _usage_pairs(usage: pb.Usage) -> list[tuple[str, Cell | str]]:
    def stall(field: str) -> str:
        return words.cpu(getattr(usage, field)) if usage.HasField(field) else "-"

    def both(one: str, other: str, first: str, second: str) -> str:
        return f"{words.optional_bytes(usage, first)} {one}, {words.optional_bytes(usage, second)} {other}"

    return [
        (
            "cpu",
            f"{words.cpu(usage.cpu_usec)} (user {words.cpu(usage.cpu_user_usec)}, "
            f"system {words.cpu(usage.cpu_system_usec)}), waited for one {stall('run_wait_usec')}",
        ),
        ("memory", both("now", "at most", "memory_now_bytes", "memory_peak_bytes")),
        ("faults", f"{words.optional_count(usage, 'faults')}, {words.optional_count(usage, 'major_faults')} major"),
        ("files", both("read", "written", "read_bytes", "written_bytes")),
        ("disk", both("read", "written", "disk_read_bytes", "disk_written_bytes")),
        ("network", both("received", "sent", "net_rx_bytes", "net_tx_bytes")),
        (
            "processes",
            f"{words.optional_count(usage, 'pids_now')} now, {words.optional_count(usage, 'forks')} forks, "
            f"{words.optional_count(usage, 'execs')} execs, {words.optional_count(usage, 'switches')} switches",
        ),
        (
            "stalled",
            f"memory {stall('memory_stall_usec')}, cpu {stall('cpu_stall_usec')}, io {stall('io_stall_usec')}",
        ),
        ("oom kills", words.optional_count(usage, "oom_kills")),
    ]


def _outcome_pairs(outcome: pb.Outcome) -> list[tuple[str, Cell | str]]:
    status = words.wait_status(outcome.wait_status) if outcome.HasField("wait_status") else "not seen by anybody"
    suggestions: list[tuple[str, Cell | str]] = [("try", text) for text in outcome.suggestions]
    return [
        ("reason", words.reason(outcome.reason)),
        ("status", status),
        ("ended", words.moment(outcome.ended_at)),
        ("wall", format_duration(outcome.wall_seconds)),
        ("held", format_duration(outcome.held_seconds)),
        ("left behind", f"{outcome.leftovers} processes" if outcome.leftovers else "nothing"),
        ("summary", outcome.summary or "nothing was done to this call"),
        *suggestions,
    ]


def _decision_row(decision: pb.Decision) -> list[Cell | str]:
    return [
        words.moment(decision.at),
        decision.action,
        decision.policy,
        decision.reason,
        words.evidence(decision) or "-",
    ]


def explain(context: Context) -> int:
    try:
        known = look_up(context)
    except NotPermitted:
        # An agent asks about its own call: it may not see the host, but its token opens the call's outcome.
        return _explain_to_agent(context)
    call = known.call
    lines = ended_in_words(call.outcome) if call.HasField("outcome") else living_in_words(known)
    if context.json:
        plain: dict[str, Plain] = {
            "call_id": call.id,
            "state": words.state(call.state).text,
            "reason": call.outcome.reason if call.HasField("outcome") else None,
            "text": " ".join(lines),
            "suggestions": list(call.outcome.suggestions),
            "decisions": [to_plain(decision) for decision in known.decisions],
        }
        context.emit(plain)
        return EXIT_OK
    _say_folded(context, lines)
    for decision in known.decisions:
        numbers = words.evidence(decision)
        text = f"{words.moment(decision.at)} {decision.action} by {decision.policy}: {decision.reason}"
        _say_folded(context, [f"- {text} ({numbers})" if numbers else f"- {text}"])
    _say_folded(context, [f"try: {suggestion}" for suggestion in call.outcome.suggestions])
    return EXIT_OK


def _explain_to_agent(context: Context) -> int:
    token = context.environment.get("CORRAL_TOKEN", "")
    if not token:
        raise NotPermitted(
            f"{context.args.call}: only operators and the call's own session may ask",
            remedy="set CORRAL_TOKEN to the session's token",
        )
    with context.connect(token=token) as api:
        outcome = api.outcome(context.args.call)
    if context.json:
        context.emit(
            {
                "call_id": outcome.call_id,
                "state": "ended",
                "reason": outcome.reason,
                "text": " ".join(ended_in_words(outcome)),
                "suggestions": list(outcome.suggestions),
                "decisions": [to_plain(decision) for decision in outcome.decisions],
            }
        )
        return EXIT_OK
    _say_folded(context, ended_in_words(outcome))
    _say_folded(context, [f"try: {suggestion}" for suggestion in outcome.suggestions])
    return EXIT_OK


def ended_in_words(outcome: pb.Outcome) -> list[str]:
    status = f" with {words.wait_status(outcome.wait_status)}" if outcome.HasField("wait_status") else ""
    peak = (
        f", at most {format_bytes(outcome.usage.memory_peak_bytes)} of memory"
        if outcome.usage.HasField("memory_peak_bytes")
        else ""
    )
    first = (
        f"{outcome.call_id} ended{status} (reason: {outcome.reason}) after "
        f"{format_duration(outcome.wall_seconds)}, using {words.cpu(outcome.usage.cpu_usec)} of CPU{peak}."
    )
    return [first, outcome.summary or "Nothing was done to it."]


def living_in_words(known: Known) -> list[str]:
    """What is happening to a call that has not ended, and why."""
    call = known.call
    lasted = format_duration(views.age(call, known.now))
    now = words.optional_bytes(call.usage, "memory_now_bytes")
    brake = words.optional_bytes(call.grant, "brake_bytes")
    held = format_duration(max(0.0, known.now - call.held_since)) if call.HasField("held_since") else "some time"
    last = known.decisions[-1] if known.decisions else None
    why = f" because: {last.reason}" if last else ""
    match call.state:
        case pb.CALL_STATE_QUEUED:
            if call.waits_for:
                why = f": {call.waits_for}"
            return [f"{call.id} has waited {lasted} for room and has not started{why}{_about(call)}."]
        case pb.CALL_STATE_BRAKED:
            return [
                f"{call.id} was stopped at its memory threshold (brake {brake}, usage now {now}) and has been held for "
                f"{held}{why}.",
                "A policy decides within its bound whether it gets more room or is ended.",
            ]
        case pb.CALL_STATE_FROZEN:
            if call.waits_for:
                return [
                    f"{call.id} has been held for {held}, so that others get to their end{why}{_about(call)}.",
                    "A policy decides within its bound whether it goes on or is ended.",
                ]
            return [f"{call.id} has been frozen for {held}{why}.", f"'corral thaw {call.id}' lets it go on."]
        case pb.CALL_STATE_RUNNING | pb.CALL_STATE_THROTTLED:
            room = f", brake at {brake}" if brake != "-" else ", no brake armed"
            braked = (
                f" It was braked {call.brakes}× and held {format_duration(call.held_seconds)}." if call.brakes else ""
            )
            return [
                f"{call.id} has been running for {lasted}: {words.cpu(call.usage.cpu_usec)} of CPU, {now} of memory "
                f"now{room}.{braked}"
            ]
        case _:
            return [f"{call.id} is {words.state(call.state).text}{why}; its outcome is not known yet."]


def _say_folded(context: Context, paragraphs: list[str]) -> None:
    from agentd.cli.table import clean

    for paragraph in paragraphs:
        context.say(*fold(clean(paragraph), context.width))
