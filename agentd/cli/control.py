"""``freeze``, ``thaw``, ``kill``, ``limits``, ``priority`` and ``tenant set``: what an operator does."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from agentd.cli import targets, views, words
from agentd.cli.context import Context
from agentd.cli.errors import EXIT_OK, UsageError
from agentd.cli.plain import Plain, to_plain
from agentd.cli.table import Cell
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.units import UnitError, parse_size

_PAST = {"freeze": "froze", "thaw": "thawed", "kill": "killed"}


def act(context: Context) -> int:
    """Freeze, thaw or kill every TARGET. All are looked up before the first is touched: a typo does half of nothing."""
    verb: str = context.args.command
    with context.connect() as api:
        snapshot = api.snapshot()
        found = [targets.find(snapshot, text) for text in context.args.targets]
        if verb != "thaw":
            context.confirm(_question(verb, snapshot, found))
        do: Callable[[str], list[str]] = {"freeze": api.freeze, "thaw": api.thaw, "kill": api.kill}[verb]
        done = [(target, do(target.id)) for target in found]
    if context.json:
        context.emit(
            {
                "action": verb,
                "targets": [{"kind": t.kind, "id": t.id, "call_ids": list(calls)} for t, calls in done],
            }
        )
        return EXIT_OK
    for target, calls in done:
        if not calls:
            context.say(f"{target.label}: no call to {verb}")
        elif target.kind == "call":
            context.say(f"{_PAST[verb]} {target.label}")
        else:
            context.say(f"{_PAST[verb]} {_count(calls)} of {target.label}: {', '.join(calls)}")
    return EXIT_OK


def _question(verb: str, snapshot: pb.SnapshotResponse, found: list[targets.Found]) -> str:
    parts = []
    for target in found:
        calls = targets.calls_of(snapshot, target)
        parts.append(target.label if target.kind == "call" else f"{target.label} with {_count(calls)}")
    return f"{verb} {', '.join(parts)}?"


def _count(calls: list[str] | list[pb.Call]) -> str:
    return f"{len(calls)} call" + ("" if len(calls) == 1 else "s")


def limits(context: Context) -> int:
    args = context.args
    wanted = limits_of(args)
    notify, brake = _threshold("--notify", args.notify), _threshold("--brake", args.brake)
    with context.connect() as api:
        snapshot = api.snapshot()
        target = targets.find(snapshot, args.target)
        if wanted is None and notify is None and brake is None:
            return _show_limits(context, snapshot, target)
        if (notify is not None or brake is not None) and target.kind != "call":
            raise UsageError(
                f"{target.label}: thresholds (--notify, --brake) are a call's", remedy="name a call, see: corral ps"
            )
        request = pb.SetLimitsRequest(target=target.id, limits=wanted, notify_bytes=notify, brake_bytes=brake)
        api.set_limits(request)
    if context.json:
        context.emit({"target": target.id, "kind": target.kind, "set": to_plain(request)})
    else:
        changed = [text for text in (_limits_text(wanted), _thresholds_text(notify, brake)) if text]
        context.say(f"{target.label}: {', '.join(changed)}")
    return EXIT_OK


def _show_limits(context: Context, snapshot: pb.SnapshotResponse, target: targets.Found) -> int:
    call = next((c for c in snapshot.calls if c.id == target.id), None)
    tenant = next((t for t in snapshot.tenants if t.id == target.id), None)
    if call is not None:
        held, priority, grant = call.grant.limits, call.grant.priority, call.grant
    elif tenant is not None:
        held, priority, grant = tenant.limits, tenant.priority, None
    else:
        owner = next(s.tenant_id for s in snapshot.sessions if s.id == target.id)
        raise UsageError(
            f"{target.label}: a session's own limits are not part of the API's snapshot",
            remedy=f"its tenant's: corral limits {views.Names.of(snapshot).tenant(owner)}",
        )
    if context.json:
        shown: dict[str, Plain] = {
            "target": target.id,
            "kind": target.kind,
            "priority": priority,
            "limits": to_plain(held),
        }
        if grant is not None:
            shown |= {key: to_plain(grant)[key] for key in ("notify_bytes", "brake_bytes")}
        context.emit(shown)
        return EXIT_OK
    pairs = limit_pairs(held)
    if grant is not None:
        pairs += [
            ("notify at", words.optional_bytes(grant, "notify_bytes")),
            ("brake at", words.optional_bytes(grant, "brake_bytes")),
        ]
    context.say(context.heading(target.label))
    context.pairs([*pairs, ("priority", str(priority))])
    return EXIT_OK


def limit_pairs(held: pb.Limits) -> list[tuple[str, Cell | str]]:
    return [
        ("memory max", words.optional_bytes(held, "memory_max_bytes")),
        ("memory high", words.optional_bytes(held, "memory_high_bytes")),
        ("memory low", words.optional_bytes(held, "memory_low_bytes")),
        ("cpu", words.cores(held)),
        ("cpu weight", words.optional_count(held, "cpu_weight")),
        ("pids", words.optional_count(held, "pids")),
        ("io weight", words.optional_count(held, "io_weight")),
        ("io max", words.optional_rate(held, "io_bytes_per_second")),
        ("egress max", words.optional_rate(held, "egress_bytes_per_second")),
    ]


def priority(context: Context) -> int:
    value = parse_priority(context.args.value)
    with context.connect() as api:
        target = targets.find(api.snapshot(), context.args.target)
        api.set_priority(target.id, value)
    if context.json:
        context.emit({"target": target.id, "kind": target.kind, "priority": value})
    else:
        context.say(f"{target.label}: priority {value}")
    return EXIT_OK


def tenant_set(context: Context) -> int:
    args = context.args
    wanted = limits_of(args)
    value = parse_priority(args.priority) if args.priority is not None else None
    with context.connect() as api:
        tenant = api.set_tenant(args.name, wanted, value)
    if context.json:
        context.emit(to_plain(tenant))
        return EXIT_OK
    context.say(context.heading(f"tenant {tenant.name}"))
    context.pairs([("id", tenant.id), ("priority", str(tenant.priority)), *limit_pairs(tenant.limits)])
    return EXIT_OK


def limits_of(args: argparse.Namespace) -> pb.Limits | None:
    """The limits that the options ask for; None without any. Raises UsageError with the option's name."""
    wanted = pb.Limits()
    for option, field in (
        ("memory_max", "memory_max_bytes"),
        ("memory_high", "memory_high_bytes"),
        ("memory_low", "memory_low_bytes"),
        ("io_max", "io_bytes_per_second"),
        ("egress_max", "egress_bytes_per_second"),
    ):
        text = getattr(args, option)
        if text is not None:
            setattr(wanted, field, _size(f"--{option.replace('_', '-')}", text))
    if args.cpu is not None:
        wanted.cpu_cores = _cores(args.cpu)
    for option, field, low, high in (
        ("cpu_weight", "cpu_weight", 1, 10_000),
        ("pids", "pids", 1, 4_194_304),
        ("io_weight", "io_weight", 1, 10_000),
    ):
        text = getattr(args, option)
        if text is not None:
            setattr(wanted, field, _whole(f"--{option.replace('_', '-')}", text, low, high, lifts=option == "pids"))
    return wanted if wanted.ListFields() else None


_LIFT = ("max", "unlimited", "none", "-1")


def _size(option: str, text: str) -> int:
    if text.lower() in _LIFT:
        return -1
    try:
        return parse_size(text)
    except UnitError as err:
        raise UsageError(f"{option}: {err}", remedy="'max' lifts the limit") from None


def _threshold(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    if text.lower() in ("off", *_LIFT):
        return 0
    try:
        return parse_size(text)
    except UnitError as err:
        raise UsageError(f"{option}: {err}", remedy="'off' disarms it") from None


def _cores(text: str) -> float:
    if text.lower() in _LIFT:
        return -1.0
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.01 <= value <= 4096:
        raise UsageError(f"--cpu {text!r} is not a number of cores", remedy="0.01 to 4096, or 'max' to lift the limit")
    return value


def _whole(option: str, text: str, low: int, high: int, *, lifts: bool = False) -> int:
    if lifts and text.lower() in _LIFT:
        return -1
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and low <= int(text) <= high):
        raise UsageError(f"{option} {text!r} is out of range", remedy=f"{low} to {high}")
    return int(text)


def parse_priority(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and int(text) <= 100):
        raise UsageError(f"priority {text!r} is out of range", remedy="0 (acted on first) to 100 (acted on last)")
    return int(text)


def _limits_text(wanted: pb.Limits | None) -> str:
    if wanted is None:
        return ""
    return ", ".join(f"{name} {text}" for name, text in limit_pairs(wanted) if text != "-")


def _thresholds_text(notify: int | None, brake: int | None) -> str:
    parts = [
        f"{name} {'off' if value == 0 else 'at ' + words.limit_bytes(value)}"
        for name, value in (("notify", notify), ("brake", brake))
        if value is not None
    ]
    return ", ".join(parts)
