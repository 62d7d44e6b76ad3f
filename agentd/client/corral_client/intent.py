"""What a call declares that it needs, as options of corral-exec."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict


class Declared(TypedDict, total=False):
    """The keywords of ``run`` and ``call``: the fields of Intent."""

    tool: str
    call_class: str
    memory: int | str | tuple[int, int] | None
    cpu: float | None
    pids: int | None
    duration: float | None
    deadline: float | None
    priority: int | None
    network: Literal["any", "none"] | Sequence[str]
    gpu: bool
    on_pressure: Literal["wait", "degrade", "fail_fast"]
    engine: str
    conversation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """Bytes, seconds, cores; None or empty: not declared. Ranges are the daemon's to judge (it raises Refused).

    ``memory``: the peak in bytes; (typical, peak); or as corral-exec writes it, "300M:1G". The brake is armed at the
    peak.
    ``call_class``: test, build, install, git, search, data, ...; learned from the command where empty.
    ``network``: "any", "none", or destinations, each "CIDR" or "CIDR:PORT" ("[V6CIDR]:PORT").
    ``priority``: 0 (acted on first) to 100. ``duration`` and ``deadline`` count from the call's begin.
    """

    tool: str = ""
    call_class: str = ""
    memory: int | str | tuple[int, int] | None = None
    cpu: float | None = None
    pids: int | None = None
    duration: float | None = None
    deadline: float | None = None
    priority: int | None = None
    network: Literal["any", "none"] | Sequence[str] = "any"
    gpu: bool = False
    on_pressure: Literal["wait", "degrade", "fail_fast"] = "wait"
    engine: str = ""
    conversation: str = ""

    @classmethod
    def of(cls, base: Intent | None, declared: Declared) -> Intent:
        """``base`` with what is declared beside it; a keyword wins."""
        return dataclasses.replace(base, **declared) if base is not None else cls(**declared)

    def options(self) -> list[str]:
        """Of corral-exec. What was not declared is left out, so that CORRAL_* variables of the environment count."""
        words: list[str] = []

        def add(name: str, value: object) -> None:
            words.append(f"--{name}={value}")  # one word: a value that begins with "-" is no option

        for name, text in (
            ("tool", self.tool),
            ("class", self.call_class),
            ("engine", self.engine),
            ("conversation", self.conversation),
        ):
            if text:
                add(name, text)
        if self.memory is not None:
            add("memory", _memory(self.memory))
        for name, number in (
            ("cpu", self.cpu),
            ("pids", self.pids),
            ("duration", self.duration),
            ("deadline", self.deadline),
            ("priority", self.priority),
        ):
            if number is not None:
                add(name, f"{number:f}" if isinstance(number, float) else number)
        if self.network != "any":
            add("network", self.network if isinstance(self.network, str) else ",".join(self.network))
        if self.gpu:
            words.append("--gpu")
        if self.on_pressure != "wait":
            add("on-pressure", self.on_pressure)
        return words


def _memory(memory: int | str | tuple[int, int]) -> str:
    if isinstance(memory, str):
        return memory
    if isinstance(memory, int):
        return f":{memory}"
    typical, peak = memory
    return f"{typical}:{peak}"
