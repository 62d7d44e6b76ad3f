"""Intent: what a tool call declares that it needs. Advisory: it can tighten what others allow and loosen nothing."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from controller.model.errors import InvalidRequest

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

MAX_MEMORY: Final = 64 * 1024 * GIB  # 64 TiB: more than any host; larger is a mistake in units
MIN_MEMORY: Final = 1 * MIB  # below this even /bin/true cannot start
MAX_CORES: Final = 4096.0
MAX_PIDS: Final = 4_194_304  # the kernel's PID_MAX_LIMIT on 64 bit
MAX_DURATION: Final = 30 * 86_400.0  # 30 days, in seconds
MAX_TEXT: Final = 256  # characters of a tool's, class's, engine's or conversation's name
MAX_COMMAND: Final = 4096  # bytes of the command that are kept (for people and for learning; never executed)
MAX_EGRESS: Final = 64
DEFAULT_PRIORITY: Final = 50


class OnPressure(StrEnum):
    """What the caller wants when there is not enough: wait for it, take less, or be told at once."""

    WAIT = "wait"
    DEGRADE = "degrade"
    FAIL_FAST = "fail_fast"


class Network(StrEnum):
    ANY = "any"
    NONE = "none"
    EGRESS_LIST = "egress_list"


@dataclass(frozen=True, slots=True)
class EgressRule:
    """One destination that a call may connect to: a network in CIDR form and a port (0 = every port)."""

    network: str
    port: int = 0

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_network(self.network)
        except ValueError as err:
            raise InvalidRequest(
                str(err),
                field="intent.egress",
                value=self.network,
                remedy="give an address or a CIDR network, e.g. 10.0.0.0/8",
            ) from None
        if not 0 <= self.port <= 65_535:
            raise InvalidRequest(
                f"port {self.port} is not a port",
                field="intent.egress",
                value=str(self.port),
                remedy="0 (every port) to 65535",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """All sizes in bytes, times in seconds, CPU in cores. ``None``: not declared.

    ``priority`` 0 (acted on first) to 100 (acted on last). ``deadline`` and ``duration`` count from the call's begin.
    ``memory_typical`` is where the call is expected to stay, ``memory_peak`` what it may burst to: the brake is armed
    at the peak, a notice at the typical size.
    """

    tool: str = ""
    call_class: str = ""  # test, build, install, git, search, data, ...; learned from the command where empty
    memory_typical: int | None = None
    memory_peak: int | None = None
    cpu: float | None = None
    pids: int | None = None
    duration: float | None = None
    deadline: float | None = None
    priority: int | None = None
    network: Network = Network.ANY
    egress: tuple[EgressRule, ...] = ()
    gpu: bool = False
    on_pressure: OnPressure = OnPressure.WAIT
    engine: str = ""
    conversation: str = ""

    def __post_init__(self) -> None:
        for name, text in (
            ("tool", self.tool),
            ("call_class", self.call_class),
            ("engine", self.engine),
            ("conversation", self.conversation),
        ):
            check_text(f"intent.{name}", text)
        _within("memory_typical", self.memory_typical, MIN_MEMORY, MAX_MEMORY, "bytes")
        _within("memory_peak", self.memory_peak, MIN_MEMORY, MAX_MEMORY, "bytes")
        _within("cpu", self.cpu, 0.01, MAX_CORES, "cores")
        _within("pids", self.pids, 1, MAX_PIDS, "processes")
        _within("duration", self.duration, 0.0, MAX_DURATION, "seconds")
        _within("deadline", self.deadline, 0.0, MAX_DURATION, "seconds")
        _within("priority", self.priority, 0, 100, "")
        if self.memory_typical and self.memory_peak and self.memory_typical > self.memory_peak:
            raise InvalidRequest(
                f"typical size {self.memory_typical} is above the peak {self.memory_peak}",
                field="intent.memory_typical",
                value=str(self.memory_typical),
                remedy="declare a peak of at least the typical size",
            )
        if len(self.egress) > MAX_EGRESS:
            raise InvalidRequest(
                f"{len(self.egress)} destinations",
                field="intent.egress",
                remedy=f"list at most {MAX_EGRESS}, or use networks",
            )
        if (self.network is Network.EGRESS_LIST) != bool(self.egress):
            raise InvalidRequest(
                f"network is {self.network.value!r} with {len(self.egress)} destinations",
                field="intent.network",
                value=self.network.value,
                remedy="give destinations exactly when network is 'egress_list'",
            )

    @property
    def asks_for_limits(self) -> bool:
        """Whether something was asked for that only the kernel can enforce."""
        return (
            self.memory_peak is not None
            or self.cpu is not None
            or self.pids is not None
            or self.network is not Network.ANY
        )


def check_text(field: str, text: str, limit: int = MAX_TEXT) -> str:
    """Refuse text that is too long or holds control characters (it will be shown on terminals and in logs)."""
    if len(text) > limit:
        raise InvalidRequest(
            f"{len(text)} characters", field=field, value=text[:40], remedy=f"use at most {limit} characters"
        )
    if not text.isprintable():
        raise InvalidRequest(
            "holds characters that cannot be printed", field=field, remedy="use printable text on one line"
        )
    return text


def command_text(argv: Sequence[str]) -> str:
    """The command as one printable line of at most MAX_COMMAND bytes; for people and for learning, never executed."""
    line = " ".join(" ".join(argv).split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    if len(line) <= MAX_COMMAND and line.isascii():
        return line
    return line.encode("utf-8", "replace")[:MAX_COMMAND].decode("utf-8", "ignore")


def _within(name: str, value: float | None, low: float, high: float, unit: str) -> None:
    # "not (low <= value <= high)" also refuses NaN
    if value is not None and not (low <= value <= high):
        raise InvalidRequest(
            f"{value} is out of range",
            field=f"intent.{name}",
            value=str(value),
            remedy=f"{low} to {high} {unit}".rstrip(),
        )
