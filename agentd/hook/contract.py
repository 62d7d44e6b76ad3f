"""The dialects of the agents' hooks: Claude Code, Codex, VS Code and OpenHands share one contract, nearly.

docs/integrations.md has the differences with their sources. What matters here:

- Codex takes a rewritten input only together with ``permissionDecision: allow``, which there approves nothing.
- In Claude Code ``allow`` skips the question to the user: it is given only where the configuration says so.
- OpenHands cannot rewrite, and puts its additional context at the top level.
- A command that fails raises PostToolUseFailure in Claude Code, PostToolUse elsewhere.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

AGENTS: Final = ("claude", "codex", "vscode", "openhands")
# Names of the tools that run shell commands, in lower case: Claude Code and Codex; VS Code; OpenHands.
SHELL_TOOLS: Final = frozenset(
    {"bash", "shell", "run_in_terminal", "runinterminal", "runterminalcommand", "terminal", "execute_bash"}
)


class BadEvent(Exception):
    """What came is no event of a hook."""


class Event(NamedTuple):
    """``name`` as the agent calls it. ``tool_input`` is the agent's own object; ``use_id`` "" where it gives none."""

    agent: str
    name: str
    tool: str
    tool_input: dict[str, Any]
    use_id: str
    response: object

    @property
    def is_before(self) -> bool:
        return self.name == "PreToolUse"

    @property
    def is_after(self) -> bool:
        return self.name in {"PostToolUse", "PostToolUseFailure"}

    @property
    def command(self) -> str:
        """Of a tool that runs shell commands; "" for any other."""
        command = self.tool_input.get("command")
        return command if isinstance(command, str) else ""


def read(data: object, agent: str = "") -> Event:
    """Raises BadEvent."""
    if not isinstance(data, dict):
        raise BadEvent(f"the event on stdin is {type(data).__name__}, not an object")
    name = data.get("hook_event_name") or data.get("hookEventName") or data.get("event_type")
    if not isinstance(name, str):
        raise BadEvent("the event on stdin has no hook_event_name")
    tool_input = data.get("tool_input")
    use_id = data.get("tool_use_id")
    tool = data.get("tool_name")
    return Event(
        agent=agent or _agent(data),
        name=name,
        tool=tool if isinstance(tool, str) else "",
        tool_input=tool_input if isinstance(tool_input, dict) else {},
        use_id=use_id if isinstance(use_id, str) else "",
        response=data.get("tool_response", data.get("error", data.get("tool_output"))),
    )


def _agent(data: dict[str, Any]) -> str:
    if "event_type" in data:
        return "openhands"
    if "hookEventName" in data:
        return "vscode"
    # Both: a guess of "codex" makes the answer say "allow", which must never reach an agent that asks its user.
    if isinstance(data.get("turn_id"), str) and isinstance(data.get("model"), str):
        return "codex"
    return "claude"


def rewritten(event: Event, command: str, decision: str) -> dict[str, Any] | None:
    """The answer that runs ``command`` instead; None where this agent cannot."""
    if event.agent == "openhands":
        return None
    # the whole object: what is left out is lost (Claude Code replaces the input, it does not merge)
    answer: dict[str, Any] = {"hookEventName": event.name, "updatedInput": {**event.tool_input, "command": command}}
    if event.agent == "codex":
        answer["permissionDecision"] = "allow"
    elif decision != "none":
        answer["permissionDecision"] = decision
        answer["permissionDecisionReason"] = "runs as a tool call of Corral"
    return {"hookSpecificOutput": answer}


def denied(event: Event, reason: str) -> dict[str, Any]:
    """The command does not run; the model is told why. Of OpenHands."""
    return {"decision": "deny", "reason": reason}


def context(event: Event, text: str) -> dict[str, Any]:
    """The answer that tells the model ``text``."""
    if event.agent == "openhands":
        return {"additionalContext": text}
    return {"hookSpecificOutput": {"hookEventName": event.name, "additionalContext": text}}
