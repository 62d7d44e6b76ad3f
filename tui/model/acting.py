"""What an operator is about to do, in words, before it is done; and changes of limits as people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

from agentd.proto.corral.v1 import corral_pb2 as pb
from tui.model.rows import Row
from tui.model.text import size
from tui.source.protocol import Action, Verb

MAX_NAMED: Final = 5  # targets in a question; more are counted
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
OFF: Final = ("off", "max", "none")


class ChangeError(ValueError):
    """The text is no change; says what would be."""


def calls_of(rows: Sequence[Row]) -> list[pb.Call]:
    """The calls that an action on these rows reaches, each once. Ended ones are none."""
    found: dict[str, pb.Call] = {}
    for row in rows:
        for one in row.below if row.kind != "call" else (row,):
            if one.call is not None and one.call.state != pb.CALL_STATE_ENDED:
                found[one.id] = one.call
    return list(found.values())


def question(verb: Verb, rows: Sequence[Row]) -> str:
    """What will happen if the answer is yes."""
    calls = calls_of(rows)
    held = sum(call.usage.memory_now_bytes for call in calls)
    many = f"{len(calls)} call" + ("" if len(calls) == 1 else "s")
    names = [f"{row.kind} {row.label}" + (f": {_command(row)}" if _command(row) else "") for row in rows[:MAX_NAMED]]
    if len(rows) > MAX_NAMED:
        names.append(f"and {len(rows) - MAX_NAMED} more")
    match verb:
        case "kill":
            head = f"Kill {many}?"
            tail = (
                f"Every process of them is ended at once, {size(held)} become free. Their agents are told that an "
                "operator did it. The agents' own processes are left alone."
            )
        case "freeze":
            head = f"Freeze {many}?"
            tail = (
                f"They stop where they are and keep their {size(held)} of memory until they are thawed. "
                "Connections that they hold may time out."
            )
        case "thaw":
            held_now = [call for call in calls if call.state in (pb.CALL_STATE_FROZEN, pb.CALL_STATE_BRAKED)]
            head = f"Thaw {many}?"
            tail = f"{len(held_now)} of them {'is' if len(held_now) == 1 else 'are'} held and will go on."
        case _:
            head, tail = f"Change {many}?", ""
    return "\n".join([head, *names, "", tail]).rstrip()


def _command(row: Row) -> str:
    from tui.model.text import clean

    return clean(row.call.command)[:120] if row.call is not None else ""


def parse_limits(text: str, row: Row) -> Action:
    """``brake 512M``, ``memory 1G``, ``cpu 1.5``, ``pids 100``, several with commas; ``off`` lifts one. Raises
    ChangeError."""
    values: dict[str, float] = {}
    for piece in text.split(","):
        name, _, value = piece.strip().partition(" ")
        value = value.strip().lower()
        if name not in ("brake", "memory", "cpu", "pids") or not value:
            raise ChangeError(f"{piece.strip()[:40]!r} is no limit; give brake 512M, memory 1G, cpu 1.5, pids 100")
        if name in values:
            raise ChangeError(f"{name} stands there twice; give it once")
        if name == "brake" and row.kind != "call":
            raise ChangeError(f"only calls have a brake; give memory, cpu or pids for a {row.kind}")
        values[name] = _value(name, value)
    return Action(
        verb="limits",
        target=row.id,
        brake_bytes=int(values["brake"]) if "brake" in values else None,
        memory_max_bytes=int(values["memory"]) if "memory" in values else None,
        cpu_cores=values.get("cpu"),
        pids=int(values["pids"]) if "pids" in values else None,
    )


def _value(name: str, text: str) -> float:
    if text in OFF:
        return 0.0 if name == "brake" else -1.0  # as the API says: a threshold of 0 is disarmed, a limit of -1 lifted
    if name in ("brake", "memory"):
        found = _SIZE.fullmatch(text)
        if found is None:
            raise ChangeError(f"{text[:40]!r} is no size; give 512M, 1.5G or off")
        return float(math.floor(float(found[1]) * 1024.0 ** _POWERS[found[2].lower()]))
    try:
        number = float(text) if name == "cpu" else float(int(text))
    except ValueError:
        raise ChangeError(f"{text[:40]!r} is no number of {'cores' if name == 'cpu' else 'processes'}") from None
    if not 0 < number < 1e7:
        raise ChangeError(f"{text[:40]} is out of range; give more than 0, or off")
    return number


def parse_priority(text: str, row: Row) -> Action:
    words = text.strip()
    if not (words.isascii() and words.isdecimal() and len(words) <= 3 and int(words) <= 100):
        raise ChangeError(f"{words[:40]!r} is no priority; give 0 (acted on first) to 100 (acted on last)")
    return Action(verb="priority", target=row.id, priority=int(words))


def describe(action: Action, row: Row) -> str:
    """What a change of limits or priority will do to what there is now."""
    what = f"{row.kind} {row.label}"
    if action.verb == "priority":
        now = row.call.grant.priority if row.call is not None else row.tenant.priority if row.tenant else None
        told = f" from {now}" if now is not None and row.kind != "session" else ""
        return f"Priority of {what}{told} to {action.priority}: 0 is acted on first under pressure, 100 last."
    lines = [f"Change limits of {what}?"]
    used = row.call.usage.memory_now_bytes if row.call is not None else None
    limits = row.call.grant.limits if row.call is not None else row.tenant.limits if row.kind == "tenant" else None  # type: ignore[union-attr]
    if action.brake_bytes is not None:
        before = size(row.call.grant.brake_bytes) if row.call is not None and row.call.grant.brake_bytes else "off"
        lines.append(f"brake: {before} to {size(action.brake_bytes) if action.brake_bytes else 'off'}")
        lines += _over("brake: it is stopped at once", used, action.brake_bytes)
    if action.memory_max_bytes is not None:
        before = size(limits.memory_max_bytes) if limits is not None and limits.memory_max_bytes > 0 else "none"
        after = size(action.memory_max_bytes) if action.memory_max_bytes > 0 else "none"
        lines.append(f"memory limit: {before} to {after}")
        lines += _over("limit: the kernel reclaims, and may end it", used, action.memory_max_bytes)
    if action.cpu_cores is not None:
        before = f"{limits.cpu_cores:g}" if limits is not None and limits.cpu_cores > 0 else "none"
        lines.append(f"CPU: {before} to {f'{action.cpu_cores:g}' if action.cpu_cores > 0 else 'none'} cores")
    if action.pids is not None:
        before = str(limits.pids) if limits is not None and limits.pids > 0 else "none"
        lines.append(f"processes: {before} to {action.pids if action.pids > 0 else 'none'}")
    return "\n".join(lines)


def _over(words: str, used: int | None, ceiling: int) -> list[str]:
    return [f"  it uses {size(used)}, above this {words}"] if used is not None and 0 < ceiling < used else []
