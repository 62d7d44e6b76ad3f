"""The three tools. Descriptions and answers are for a language model: short, with numbers, saying what to do."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Final

from agentd.hook.state import INTENT_AGE, State, StateError
from agentd.mcp.daemon import Daemon
from agentd.mcp.protocol import Result, Tool, ToolError
from controller.budget.words import human_amount
from controller.model import Intent, InvalidRequest, Network, OnPressure, is_id
from controller.policy.text import human_bytes, human_seconds

INSTRUCTIONS: Final = (
    "Commands on this host run under Corral, which limits and explains them. Before a command that will use much "
    "memory or run long, declare_intent; after one that was stopped or killed, explain_last_call; before planning many "
    "heavy steps, get_budget."
)

_SIZE: Final = {"type": "string", "description": "a size such as 300M or 2G (binary units)"}
_DECLARE: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "memory_peak": {**_SIZE, "description": "what it may burst to, such as 2G; it is held or ended beyond that"},
        "memory_typical": {**_SIZE, "description": "where it will mostly stay, such as 300M"},
        "cpu": {"type": "number", "description": "cores"},
        "pids": {"type": "integer", "description": "processes at once"},
        "duration_seconds": {"type": "number", "description": "how long you expect it to take"},
        "deadline_seconds": {"type": "number", "description": "it is ended after that"},
        "network": {"type": "string", "enum": ["any", "none"]},
        "on_pressure": {
            "type": "string",
            "enum": ["wait", "degrade", "fail_fast"],
            "description": "when the host is full: wait for room, take less, or fail at once",
        },
        "call_class": {
            "type": "string",
            "description": "only for the next command of this class: test, build, install, ...",
        },
        "call_id": {"type": "string", "description": "a call that runs already, instead of the next command"},
    },
    "additionalProperties": False,
}
_DECLARED: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"applies_to": {"type": "string"}, "declared": {"type": "object"}},
    "required": ["applies_to", "declared"],
}
_BUDGET: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"budgets": {"type": "array", "items": {"type": "object"}}},
    "required": ["budgets"],
}
_EXPLAIN: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"call_id": {"type": "string", "description": "another call than the last one"}},
    "additionalProperties": False,
}
_EXPLAINED: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "call_id": {"type": "string"},
        "reason": {"type": "string"},
        "summary": {"type": "string"},
        "suggestions": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["call_id", "reason", "summary", "suggestions"],
}
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_WRITTEN: Final = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


class Tools:
    def __init__(self, daemon: Daemon, environment: Mapping[str, str]) -> None:
        self._daemon = daemon
        self._environment = environment

    def all(self) -> tuple[Tool, ...]:
        return (
            Tool(
                name="declare_intent",
                title="Declare what a command needs",
                description=(
                    "Declare what your next shell command will need (memory, CPU, time), so that it is given room "
                    "instead of being stopped at a default. Declare honestly: too little gets it stopped, too much "
                    "makes it wait. With call_id it changes what a running call declared. A declaration tightens "
                    "limits; it never lifts those of the operator."
                ),
                input_schema=_DECLARE,
                output_schema=_DECLARED,
                read_only=False,
                run=self.declare_intent,
            ),
            Tool(
                name="get_budget",
                title="What is left to use",
                description=(
                    "What this session and its tenant may still use: ceilings (memory, CPU, processes) and budgets "
                    "that are used up (CPU time, calls, tokens, money, ...), these with a band: plenty, medium, low "
                    "or critical. Plan with it: at medium be choosy, at low finish what matters, at critical wrap up. "
                    "When a hard budget is used up no command starts."
                ),
                input_schema={"type": "object", "additionalProperties": False},
                output_schema=_BUDGET,
                read_only=True,
                run=self.get_budget,
            ),
            Tool(
                name="explain_last_call",
                title="What happened to the last command",
                description=(
                    "How your last command ended and why: whether it was held, throttled or killed, the numbers, and "
                    "what to try next. Use it when a command died or was slow for no reason of its own."
                ),
                input_schema=_EXPLAIN,
                output_schema=_EXPLAINED,
                read_only=True,
                run=self.explain_last_call,
            ),
        )

    # --- declare_intent

    def declare_intent(self, arguments: Mapping[str, Any]) -> Result:
        known = dict(arguments)
        call_id = known.pop("call_id", "")
        intent, options = _intent(known)
        if not options:
            raise ToolError("Nothing was declared: give at least one of memory_peak, cpu, duration_seconds, ...")
        if call_id:
            self._daemon.update_intent(_call_id(call_id), intent)
            return Result(f"Declared for {call_id}: {_listed(options)}.", {"applies_to": call_id, "declared": options})
        session = self._daemon.session
        if not session:
            raise ToolError(
                "This agent runs in no session of Corral (CORRAL_SESSION is not set), so that a declaration could "
                "reach another agent's command. Start the agent in a session, or declare on the command itself: "
                "corral-exec "
                + " ".join(f"--{name.replace('_', '-')}={value}" for name, value in options.items())
                + " -- COMMAND"
            )
        try:
            State.open(self._environment).declare(session, {"call_class": intent.call_class, "options": options})
        except StateError as err:
            raise ToolError(f"The declaration cannot be kept: {err}") from None
        which = f"your next {intent.call_class} command" if intent.call_class else "your next command"
        return Result(
            f"Declared for {which}, if it comes within {human_seconds(INTENT_AGE)}: {_listed(options)}.",
            {"applies_to": which, "declared": options},
        )

    # --- get_budget

    def get_budget(self, arguments: Mapping[str, Any]) -> Result:
        if arguments:
            raise ToolError(f"get_budget takes no arguments, not {', '.join(map(str, arguments))}.")
        budgets = self._daemon.budgets()
        if not budgets:
            return Result("Nothing is limited for this session or its tenant.", {"budgets": []})
        return Result("\n".join(_budget_line(budget, time.time()) for budget in budgets), {"budgets": budgets})

    # --- explain_last_call

    def explain_last_call(self, arguments: Mapping[str, Any]) -> Result:
        unknown = set(arguments) - {"call_id"}
        if unknown:
            raise ToolError(
                f"explain_last_call knows no {', '.join(sorted(map(str, unknown)))}; give call_id or nothing."
            )
        told = None if arguments.get("call_id") else self._told_to_the_hook()
        call_id = _call_id(arguments["call_id"]) if arguments.get("call_id") else str((told or {}).get("call_id", ""))
        try:
            call_id = call_id or self._daemon.last_call()
            if not call_id:
                raise ToolError("No command of this session has ended under Corral lately.")
            return _explained(self._daemon.outcome(call_id))
        except ToolError:
            if told is None:
                raise
        # the daemon cannot be asked (agents often may not use its API): what corral-exec was told is enough
        data = {
            "call_id": str(told.get("call_id", "")),
            "reason": str(told.get("reason") or told.get("code") or told.get("state") or "unknown"),
            "summary": str(told.get("message", "")),
            "suggestions": [str(text) for text in told.get("suggestions") or ()],
        }
        return Result(_explanation(data), data)

    def _told_to_the_hook(self) -> dict[str, Any] | None:
        """What the hook learnt of this session's last command. Of no session there may be several agents."""
        if not self._daemon.session:
            return None
        try:
            return State.open(self._environment).last(self._daemon.session)
        except StateError:
            return None


def _intent(arguments: dict[str, Any]) -> tuple[Intent, dict[str, str | int | float]]:
    """Checked as the daemon would check it, and as the hook's options. Raises ToolError."""
    unknown = [str(name) for name in arguments if name not in _DECLARE["properties"]]
    if unknown:
        raise ToolError(f"Unknown: {', '.join(unknown)}. Known: {', '.join(_DECLARE['properties'])}.")
    typical, peak = _size(arguments, "memory_typical"), _size(arguments, "memory_peak")
    cpu = _number(arguments, "cpu")
    pids = _number(arguments, "pids")
    duration, deadline = _number(arguments, "duration_seconds"), _number(arguments, "deadline_seconds")
    network, pressure = arguments.get("network", "any"), arguments.get("on_pressure", "wait")
    if pids is not None and pids != int(pids):
        raise ToolError(f"pids: {pids} is not a whole number.")
    if network not in ("any", "none"):
        raise ToolError(f"network: {str(network)[:40]!r} is unknown; choose any or none.")
    if pressure not in list(OnPressure):
        raise ToolError(f"on_pressure: {str(pressure)[:40]!r} is unknown; choose {', '.join(OnPressure)}.")
    call_class = arguments.get("call_class", "")
    if not isinstance(call_class, str):
        raise ToolError("call_class: give a word, such as test or build.")
    try:
        intent = Intent(
            call_class=call_class,
            memory_typical=typical,
            memory_peak=peak,
            cpu=cpu,
            pids=None if pids is None else int(pids),
            duration=duration,
            deadline=deadline,
            network=Network(network),
            on_pressure=OnPressure(pressure),
        )
    except InvalidRequest as err:
        raise ToolError(f"That cannot be declared: {err}") from None
    options: dict[str, str | int | float] = {}
    if typical is not None or peak is not None:
        options["memory"] = f"{'' if typical is None else typical}{'' if peak is None else f':{peak}'}"
    for name, number in (("cpu", cpu), ("pids", intent.pids), ("duration", duration), ("deadline", deadline)):
        if number is not None:
            options[name] = number
    if network != "any":
        options["network"] = network
    if pressure != "wait":
        options["on_pressure"] = pressure
    return intent, options


def _size(arguments: Mapping[str, Any], name: str) -> int | None:
    value = arguments.get(name)
    if value is None:
        return None
    match = _WRITTEN.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ToolError(f"{name}: {str(value)[:40]!r} is no size; write it as 300M or 2G.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _number(arguments: Mapping[str, Any], name: str) -> float | None:
    value = arguments.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:  # refuses NaN, too
        raise ToolError(f"{name}: {str(value)[:40]!r} is not a number.")
    return value


def _call_id(value: object) -> str:
    if not (isinstance(value, str) and is_id(value) and value.startswith("c-")):
        raise ToolError(f"call_id: {str(value)[:40]!r} is no id of a call ('c-' and 16 characters).")
    return value


def _listed(options: Mapping[str, object]) -> str:
    words = []
    for name, value in options.items():
        if name == "memory":
            typical, _, peak = str(value).partition(":")
            words += [f"memory typical {human_bytes(int(typical))}"] if typical else []
            words += [f"memory peak {human_bytes(int(peak))}"] if peak else []
        elif name in {"duration", "deadline"} and isinstance(value, (int, float)):
            words.append(f"{name} {human_seconds(value)}")
        else:
            words.append(f"{name} {value}")
    return ", ".join(words)


def _budget_line(budget: Mapping[str, Any], now: float) -> str:
    """A stock with its band and when it is full again; a ceiling with what is free now."""
    resource = str(budget.get("resource", ""))

    def shown(key: str) -> str:
        value = budget.get(key)
        return human_amount(resource, value) if isinstance(value, (int, float)) else "unknown"

    line = f"{budget.get('scope')} {resource}: {shown('remaining')} left of {shown('limit')}"
    band = budget.get("band")
    if not band:
        return line
    refills_at = budget.get("refills_at")
    refill = "never full again" if refills_at is None else f"full again in {human_seconds(max(0.0, refills_at - now))}"
    return f"{line} ({band}, {'hard' if budget.get('hard') else 'soft'}, {refill})"


def _explained(outcome: Any) -> Result:
    data = {
        "call_id": outcome.call_id,
        "reason": outcome.reason,
        "summary": outcome.summary,
        "suggestions": list(outcome.suggestions),
    }
    peak = outcome.usage.memory_peak_bytes if outcome.usage.HasField("memory_peak_bytes") else None
    used = f" It ran {human_seconds(outcome.wall_seconds)}" + (
        f" and used at most {human_bytes(peak)} of memory." if peak is not None else "."
    )
    return Result(_explanation(data) + ("" if outcome.summary else used), data)


def _explanation(data: Mapping[str, Any]) -> str:
    summary = data["summary"] or "Corral did nothing to it; its exit status is its own."
    return f"Call {data['call_id'] or '(not started)'}, reason {data['reason']}: {summary}"
