"""The program. It never stops a tool: whatever fails is one line on stderr, and the exit status is 0.

os.path instead of pathlib, no argparse, no logging: each import is paid for by every command that an agent runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from agentd.sockets import BROKER, default_socket

if TYPE_CHECKING:
    from agentd.hook.config import Config
    from agentd.hook.contract import Event
    from agentd.hook.rewrite import Wrapping
    from agentd.hook.state import State

MAX_EVENT: Final = 32 << 20  # bytes; an event holds a tool's whole answer
USAGE: Final = """\
usage: corral-hook [--agent claude|codex|vscode|openhands]   answer one event of a hook (JSON on stdin)
       corral-hook wrap COMMAND                              print COMMAND as the hook would rewrite it
       corral-hook -c COMMAND                                be a shell: run COMMAND, the whole of it as one call

Put it into an agent's hooks PreToolUse, PostToolUse and, where there is one, PostToolUseFailure: docs/integrations.md.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in (["--help"], ["-h"]):
        _write(1, USAGE)
        return 0
    try:
        if words[:1] in (["wrap"], ["-c"]) and len(words) == 2:
            return _wrap_by_hand(words[0], words[1])
        agent = _agent(words)
        return _answer(agent, _read_event())
    except Exception as err:  # a hook that fails must not take the agent's tool with it
        _say(f"{str(err) or type(err).__name__}; the tool runs unchanged")
        return 0


def _agent(words: list[str]) -> str:
    from agentd.hook.contract import AGENTS

    if not words:
        return ""
    if len(words) == 2 and words[0] == "--agent" and words[1] in AGENTS:
        return words[1]
    raise ValueError(f"arguments {' '.join(words)!r} are not understood; see 'corral-hook --help'")


def _read_event() -> object:
    import json

    data = sys.stdin.buffer.read(MAX_EVENT + 1)
    if len(data) > MAX_EVENT:
        raise ValueError(f"the event on stdin is longer than {MAX_EVENT} bytes")
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except ValueError as err:
        raise ValueError(f"the event on stdin is no JSON: {err}") from None


def _answer(agent: str, data: object) -> int:
    from agentd.hook import contract

    event = contract.read(data, agent)
    config = _config()
    if not config.enabled or not _runs_commands(event.tool, config.tools):
        return 0
    answer: dict[str, Any] | None = None
    if event.is_before:
        answer = before(event, config, os.environ)
    elif event.is_after:
        answer = after(event, os.environ)
    if answer is not None:
        import json

        _write(1, json.dumps(answer) + "\n")
    return 0


def before(event: Event, config: Config, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The answer to PreToolUse; None: let it run as it is."""
    from agentd.hook import contract
    from agentd.hook.rewrite import worth_wrapping, wrap

    command = event.command
    if not worth_wrapping(command, config.leave):
        return None
    if event.agent == "openhands" and config.openhands == "leave":
        return None
    found = _wrapping(command, config, environment, event.use_id)
    if found is None:
        return None
    rewritten = wrap(command, found)
    if event.agent == "openhands":
        return contract.denied(event, f"On this host commands run under Corral. Run it as: {rewritten}")
    return contract.rewritten(event, rewritten, config.decision)


def after(event: Event, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The answer to PostToolUse: what Corral has to say about the command; None: nothing."""
    from agentd.hook import contract
    from agentd.hook.state import State

    state = State.open(environment)
    outcome = state.take_outcome(event.use_id)
    state.sweep()
    if outcome is None:
        return None
    state.keep_last(environment.get("CORRAL_SESSION", ""), outcome)
    text = told(outcome, event.response)
    return contract.context(event, text) if text else None


def told(outcome: dict[str, Any], response: object) -> str:
    """What the model should know: what was done to the command, and which budgets are low; "" where that is nothing."""
    import json

    notes = [text for text in outcome.get("notes") or () if isinstance(text, str)]
    if not notes and not outcome.get("message"):
        return ""  # most commands: their answers may be long
    said = json.dumps(response)
    # corral-exec prints one on stderr where the command began so low
    budgets = " ".join(f"Corral: {note}." for note in notes if json.dumps(note)[1:-1] not in said)
    return " ".join(text for text in (_happened(outcome, said), budgets) if text)


def _happened(outcome: dict[str, Any], said: str) -> str:
    import json

    message = outcome.get("message")
    if not isinstance(message, str) or not message:
        return ""
    state, code = outcome.get("state"), outcome.get("code")
    if state == "refused":
        return f"Corral did not start this command ({code}): {message}"
    if state != "ended":
        return f"Corral could not start this command: {message}"
    head = f"Corral, tool call {outcome.get('call_id')}, reason {outcome.get('reason')}: "
    # corral-exec has printed the paragraph on stderr, too: a model that was shown it need not read it twice
    seen = json.dumps(message)[1:-1] in said
    return head + ("see the line of the output that begins with 'corral:'." if seen else message)


def _wrap_by_hand(verb: str, command: str) -> int:
    """``wrap`` and ``-c``. A command that is not wrapped runs in the shell as it is."""
    from agentd.hook.rewrite import worth_wrapping, wrap, wrapped_argv

    line, argv = command, ["bash", "-c", command]
    try:
        config = _config()
        argv[0] = config.shell
        found = None
        if config.enabled and worth_wrapping(command, config.leave):
            found = _wrapping(command, config, os.environ, "")
        if found is not None:
            line, argv = wrap(command, found), wrapped_argv(command, found)
    except Exception as err:  # as in main
        _say(f"{str(err) or type(err).__name__}; the command runs unchanged")
    if verb == "-c":
        os.execvp(argv[0], argv)  # noqa: S606 - what the agent asked for
    _write(1, line + "\n")
    return 0


def _wrapping(command: str, config: Config, environment: Mapping[str, str], use_id: str) -> Wrapping | None:
    """How to wrap ``command``; None where there is nothing to wrap it with, which is said."""
    from agentd.hook import shell
    from agentd.hook.classify import classify
    from agentd.hook.rewrite import Wrapping
    from agentd.hook.state import State, StateError

    launcher = _launcher(environment)
    if not launcher:
        _say("no corral-exec in PATH, CORRAL_EXEC or /usr/lib/corral; the tool runs unchanged")
        return None
    socket = environment.get("CORRAL_SOCKET") or default_socket(BROKER, environment)
    if config.fail == "open" and not os.path.exists(socket):  # noqa: PTH110
        _say(f"no daemon at {socket}; the tool runs unchanged")
        return None
    call_class, tool = classify(shell.split_prefix(command)[1])
    options = config.options(call_class)
    outcome_file = ""
    try:
        state = State.open(environment)
        outcome_file = state.outcome_path(use_id) if use_id else ""
        options |= _declared(state, environment.get("CORRAL_SESSION", ""), call_class, tool)
    except StateError as err:
        _say(f"{err}; the command's outcome will be on its stderr alone")
    return Wrapping(launcher, config.shell, {**options, "fail": config.fail}, outcome_file)


def _declared(state: State, session: str, call_class: str, tool: str) -> dict[str, str]:
    """What the agent declared for this command (declare_intent of the MCP server)."""
    from agentd.hook.config import ConfigError, options

    found = state.take_intent(session, call_class, tool) if session else None
    if found is None:
        return {}
    try:
        return options(found.get("options"), "the declared intent")
    except ConfigError as err:
        _say(f"{err}; it is left out")
        return {}


def _launcher(environment: Mapping[str, str]) -> str:
    """The launcher as it will stand in the command; "" where there is none."""
    named = environment.get("CORRAL_EXEC", "")
    if named:
        return named if os.access(named, os.X_OK) else ""
    for folder in environment.get("PATH", "").split(":"):
        if folder and os.access(f"{folder}/corral-exec", os.X_OK):
            return "corral-exec"  # found again by the agent's shell, and short for whoever reads the command
    beside = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "launcher")  # noqa: PTH100, PTH118, PTH120
    for folder in (beside, "/usr/lib/corral", "/usr/libexec/corral"):
        if os.access(f"{folder}/corral-exec", os.X_OK):
            return f"{folder}/corral-exec"
    return ""


def _runs_commands(tool: str, more: tuple[str, ...]) -> bool:
    from agentd.hook.contract import SHELL_TOOLS

    return tool.lower() in SHELL_TOOLS or tool in more


def _config() -> Config:
    from agentd.hook.config import Config, ConfigError, load

    try:
        return load()
    except ConfigError as err:
        _say(f"{err}; the hook goes on with its defaults")
        return Config()


def _say(text: str) -> None:
    line = "".join(char if char.isprintable() else " " for char in text)
    _write(2, f"corral-hook: {line[:1000]}\n")


def _write(descriptor: int, text: str) -> None:
    """Unbuffered, and never an error: a reader that went away is no fault of the tool."""
    data = text.encode("utf-8", "replace")
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        return


if __name__ == "__main__":
    sys.exit(main())
