"""Numbers and states in the words that the tables use. Pure."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Final

from agentd.cli.table import Cell, Style
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.units import format_bytes, format_duration

STATES: Final[dict[int, Cell]] = {
    pb.CALL_STATE_QUEUED: Cell("queued", Style.COLD),
    pb.CALL_STATE_RUNNING: Cell("running", Style.GOOD),
    pb.CALL_STATE_THROTTLED: Cell("throttled", Style.WARN),
    pb.CALL_STATE_BRAKED: Cell("braked", Style.WARN),
    pb.CALL_STATE_FROZEN: Cell("frozen", Style.COLD),
    pb.CALL_STATE_ENDED: Cell("ended", Style.DIM),
}
STATE_WORDS: Final = tuple(cell.text for cell in STATES.values())
UNTROUBLED: Final = frozenset({"exited", ""})
HARMLESS: Final = frozenset({"failed", "signalled", "cancelled", "braked"})
_DONE: Final = {
    "advise": "advised",
    "throttle": "throttled",
    "relax": "throttle lifted",
    "brake": "braked",
    "raise": "raised",
    "freeze": "frozen",
    "thaw": "thawed",
    "kill": "killed",
    "adopt": "left processes adopted",
    "queue": "queued",
    "refuse": "refused",
    "limit": "limits changed",
    "offload": "KV offloaded",
    "restore": "KV restored",
    "drop": "KV dropped",
}


def state(number: int) -> Cell:
    return STATES.get(number, Cell(f"unknown {number}", Style.DIM))


def reason(code: str) -> Cell:
    """An outcome's reason code, coloured by how bad it is."""
    style = Style.GOOD if code in UNTROUBLED else Style.WARN if code in HARMLESS else Style.BAD
    return Cell(code or "-", style)


def optional_bytes(message: pb.Usage | pb.Tenant | pb.Grant | pb.Limits | pb.Intent, field: str) -> str:
    """A byte count that may not be set (this host cannot say, or nothing was declared): then "-"."""
    if not message.HasField(field):
        return "-"
    return limit_bytes(getattr(message, field))


def optional_rate(message: pb.Limits, field: str) -> str:
    text = optional_bytes(message, field)
    return text if text in ("-", "unlimited") else f"{text}/s"


def optional_count(message: pb.Usage | pb.Limits | pb.Intent, field: str) -> str:
    if not message.HasField(field):
        return "-"
    value = getattr(message, field)
    return "unlimited" if value == -1 else f"{value:,}"


def limit_bytes(value: int) -> str:
    return "unlimited" if value == -1 else format_bytes(value)


def cores(message: pb.Limits | pb.Intent) -> str:
    if not message.HasField("cpu_cores"):
        return "-"
    return "unlimited" if message.cpu_cores == -1 else f"{message.cpu_cores:g} cores"


def cpu(usec: int) -> str:
    return format_duration(usec / 1e6)


def percent(message: pb.HostStatus, field: str) -> str:
    return f"{getattr(message, field):.1f} %" if message.HasField(field) else "-"


def moment(at: float) -> str:
    """Unix seconds as local time of the day, with the date where it is not today's."""
    if not at:
        return "-"
    then, today = time.localtime(at), time.localtime()
    same_day = (then.tm_year, then.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", then)


def wait_status(status: int) -> str:
    """As of waitpid(2): "exit status 1" or "signal 9 (SIGKILL)"."""
    import os
    import signal

    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"signal {number} ({signal.Signals(number).name})"
        except ValueError:
            return f"signal {number}"
    return f"exit status {os.WEXITSTATUS(status)}"


def what_was_done(decisions: Iterable[pb.Decision]) -> str:
    """ "braked 2×, raised": each action once, in the order of its first time; "-" when nothing was done."""
    counts = Counter(decision.action for decision in decisions)
    parts = [
        f"{_DONE.get(action, action)} {n}×" if n > 1 else _DONE.get(action, action) for action, n in counts.items()
    ]
    return ", ".join(parts) or "-"


def number(name: str, value: float) -> str:
    """A number of an evidence, in the unit that its name ends with."""
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith(("_seconds", "_s")):
        return format_duration(value)
    if name.endswith("_usec"):
        return format_duration(value / 1e6)
    if name.endswith(("_percent", "_pct")):
        return f"{value:.1f} %"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"


def evidence(decision: pb.Decision) -> str:
    return ", ".join(
        f"{name.rsplit('_', 1)[0].replace('_', ' ') if name.endswith(_SUFFIXES) else name.replace('_', ' ')} "
        f"{number(name, value)}"
        for name, value in sorted(decision.evidence.items())
    )


_SUFFIXES: Final = ("_bytes", "_seconds", "_s", "_usec", "_percent", "_pct")
