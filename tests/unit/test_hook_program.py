"""corral-hook as the agents run it: events on stdin, answers on stdout, and never in the way of a tool."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.hook import config, contract, main
from agentd.hook.state import INTENT_AGE, State, StateError

HOOK = Path(main.__file__).parent

# As the agents send them: docs/integrations.md has the sources.
CLAUDE = {
    "session_id": "abc123",
    "transcript_path": "/home/u/.claude/projects/x.jsonl",
    "cwd": "/home/u/project",
    "permission_mode": "default",
    "hook_event_name": "PreToolUse",
    "tool_name": "Bash",
    "tool_input": {"command": "pytest -q", "description": "Run the tests", "timeout": 120_000},
    "tool_use_id": "toolu_01ABC",
}
CODEX = {
    "session_id": "0199-thread",
    "turn_id": "turn-1",
    "transcript_path": None,
    "cwd": "/home/u/project",
    "hook_event_name": "PreToolUse",
    "model": "gpt",
    "permission_mode": "default",
    "tool_name": "Bash",
    "tool_input": {"command": "pytest -q"},
    "tool_use_id": "call-shell",
}
VSCODE = {
    "timestamp": "2026-11-24T12:00:00Z",
    "hookEventName": "PreToolUse",
    "sessionId": "s",
    "cwd": "/home/u/project",
    "tool_name": "run_in_terminal",
    "tool_input": {"command": "pytest -q", "explanation": "tests", "isBackground": False},
    "tool_use_id": "tool-123",
}
OPENHANDS = {
    "event_type": "PreToolUse",
    "tool_name": "terminal",
    "tool_input": {"command": "pytest -q", "is_input": False, "timeout": None, "reset": False},
    "tool_response": None,
    "session_id": "s",
    "working_dir": "/w",
    "metadata": {},
}
TOLD = {
    "state": "ended",
    "call_id": "c-1",
    "status": 9,
    "reason": "brake_killed",
    "message": 'It used "240 MiB".',
    "suggestions": ["declare more"],
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With a launcher and a daemon's socket, which the hook only looks for."""
    launcher = tmp_path / "corral-exec"
    launcher.write_text("#!/bin/sh\n")
    launcher.chmod(0o755)
    (tmp_path / "socket").touch()
    (tmp_path / "run").mkdir(mode=0o700)
    return {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "HOME": str(tmp_path / "home"),
        "CORRAL_SOCKET": str(tmp_path / "socket"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "PYTHONPATH": str(HOOK.parent.parent),
    }


def hook(environment: dict[str, str], event: object, *arguments: str) -> tuple[Any, str]:
    """The answer (None: nothing was said) and stderr."""
    data = event if isinstance(event, bytes) else json.dumps(event).encode()
    done = subprocess.run(
        [sys.executable, "-m", "agentd.hook", *arguments],
        input=data,
        capture_output=True,
        env=environment,
        timeout=30,
        check=True,  # whatever happens: an exit status of 2 would block the tool
    )
    return (json.loads(done.stdout) if done.stdout else None), done.stderr.decode()


def outcome_file(environment: dict[str, str], use_id: str) -> Path:
    return Path(environment["XDG_RUNTIME_DIR"], "corral-hook", f"outcome-{use_id}")


def wrapped(environment: dict[str, str], use_id: str, command: str = "pytest -q") -> str:
    return (
        "corral-exec --tool=pytest --class=test --fail=open "
        f"--outcome-file={outcome_file(environment, use_id)} -- bash -c '{command}'"
    )


def test_claude_code(environment: dict[str, str]) -> None:
    answer, err = hook(environment, CLAUDE)
    assert err == ""
    assert answer == {
        "hookSpecificOutput": {
            "hookEventName": "PreToolUse",
            # the whole input: Claude Code replaces it; no permissionDecision: the user is asked as ever
            "updatedInput": {
                "command": wrapped(environment, "toolu_01ABC"),
                "description": "Run the tests",
                "timeout": 120_000,
            },
        }
    }


def test_codex_takes_a_rewritten_command_only_with_allow(environment: dict[str, str]) -> None:
    answer, _ = hook(environment, CODEX)
    assert answer == {
        "hookSpecificOutput": {
            "hookEventName": "PreToolUse",
            "permissionDecision": "allow",
            "updatedInput": {"command": wrapped(environment, "call-shell")},
        }
    }
    # which is never guessed from less than both of Codex's fields
    for missing in ("turn_id", "model"):
        answer, _ = hook(environment, {key: value for key, value in CODEX.items() if key != missing})
        assert "permissionDecision" not in answer["hookSpecificOutput"]
    answer, _ = hook(environment, CODEX, "--agent", "claude")
    assert "permissionDecision" not in answer["hookSpecificOutput"]


def test_vs_code(environment: dict[str, str]) -> None:
    answer, _ = hook(environment, VSCODE)
    updated = answer["hookSpecificOutput"]["updatedInput"]
    assert updated == {"command": wrapped(environment, "tool-123"), "explanation": "tests", "isBackground": False}


def test_openhands_cannot_rewrite(environment: dict[str, str], tmp_path: Path) -> None:
    assert hook(environment, OPENHANDS) == (None, "")
    (tmp_path / "hook.toml").write_text('openhands = "deny"\n')
    environment["CORRAL_HOOK_CONFIG"] = str(tmp_path / "hook.toml")
    answer, _ = hook(environment, OPENHANDS)
    assert answer["decision"] == "deny"
    command = answer["reason"].partition("Run it as: ")[2]
    assert command == "corral-exec --tool=pytest --class=test --fail=open -- bash -c 'pytest -q'"
    again = {**OPENHANDS, "tool_input": {"command": command}}
    assert hook(environment, again) == (None, ""), "what the model then runs is let through"


@pytest.mark.parametrize("name", ["PostToolUse", "PostToolUseFailure"])
def test_the_outcome_is_fed_back_once(environment: dict[str, str], name: str) -> None:
    hook(environment, CLAUDE)
    path = outcome_file(environment, "toolu_01ABC")
    path.write_text(json.dumps(TOLD))
    event = {**CLAUDE, "hook_event_name": name, "tool_response": {"stdout": "", "stderr": "Killed"}}
    answer, err = hook(environment, event)
    assert (answer, err) == (
        {
            "hookSpecificOutput": {
                "hookEventName": name,
                "additionalContext": 'Corral, tool call c-1, reason brake_killed: It used "240 MiB".',
            }
        },
        "",
    )
    assert not path.exists()
    assert hook(environment, event) == (None, "")


def test_what_the_model_has_seen_is_not_repeated(environment: dict[str, str]) -> None:
    hook(environment, CLAUDE)
    outcome_file(environment, "toolu_01ABC").write_text(json.dumps(TOLD))
    response = {"stdout": "", "stderr": f"corral: {TOLD['message']}\n"}
    answer, _ = hook(environment, {**CLAUDE, "hook_event_name": "PostToolUse", "tool_response": response})
    text = answer["hookSpecificOutput"]["additionalContext"]
    assert text == (
        "Corral, tool call c-1, reason brake_killed: see the line of the output that begins with 'corral:'."
    )


def test_a_low_budget_is_told_unless_the_output_has_it() -> None:
    note = "the hard budget of cpu_seconds of this tenant is low: 10 s of 1 min 40 s left, it is full again in 3 s"
    ended: dict[str, Any] = {"state": "ended", "call_id": "c-1", "reason": "exited", "message": "", "notes": [note]}
    assert main.told(ended, {"stdout": "ok"}) == f"Corral: {note}."
    assert main.told(ended, {"stderr": f"corral-exec: note: {note}\n"}) == ""
    killed = {**ended, "reason": "oom_call", "message": "It was killed."}
    assert main.told(killed, None) == f"Corral, tool call c-1, reason oom_call: It was killed. Corral: {note}."
    assert main.told({**ended, "notes": []}, "ok") == ""


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({**TOLD, "message": ""}, ""),
        ({"state": "uncontrolled", "status": 0}, ""),
        ({"state": "refused", "code": "budget_exhausted", "message": "used up"}, "did not start this command (budget_"),
        ({"state": "no_daemon", "message": "cannot reach"}, "could not start this command: cannot reach"),
        ({"message": 7}, ""),
    ],
)
def test_what_is_told(told: dict[str, Any], says: str) -> None:
    text = main.told(told, None)
    assert (says in text) if says else (text == "")


def test_openhands_has_the_context_at_the_top() -> None:
    event = contract.read({**OPENHANDS, "event_type": "PostToolUse"})
    assert contract.context(event, "x") == {"additionalContext": "x"}


@pytest.mark.parametrize(
    "event",
    [
        {**CLAUDE, "tool_name": "Read", "tool_input": {"file_path": "/x"}},
        {**CLAUDE, "tool_name": "mcp__x__run"},
        {**CLAUDE, "tool_input": {"command": "cd .."}},
        {**CLAUDE, "tool_input": {"command": ""}},
        {**CLAUDE, "tool_input": {"command": ["pytest"]}},
        {**CLAUDE, "tool_input": {}},
        {**CLAUDE, "tool_input": None},
        {**CLAUDE, "hook_event_name": "SessionStart"},
        {**CLAUDE, "tool_name": None},
    ],
)
def test_what_is_none_of_its_business(environment: dict[str, str], event: object) -> None:
    assert hook(environment, event) == (None, "")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe\0", "no JSON"),
        (b"[" * 100_000, "recursion"),
        (b"[1]", "is list, not an object"),
        (b"{}", "no hook_event_name"),
        (b'{"hook_event_name": 7}', "no hook_event_name"),
    ],
)
def test_garbage_lets_the_tool_through(environment: dict[str, str], data: bytes, says: str) -> None:
    answer, err = hook(environment, data)
    assert answer is None
    assert err.startswith("corral-hook: ")
    assert err.endswith("; the tool runs unchanged\n")
    assert says in err
    assert err.count("\n") == 1


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*CLAUDE, *VSCODE, *OPENHANDS, "turn_id", "model"]), _json, max_size=8))
def test_arbitrary_events_raise_only_what_is_documented(data: dict[str, Any]) -> None:
    try:
        event = contract.read(data)
    except contract.BadEvent:
        return
    assert isinstance(event.command, str)
    contract.rewritten(event, "x", "none")
    main.told(data, event.response)


def test_wrong_arguments_let_the_tool_through(environment: dict[str, str]) -> None:
    answer, err = hook(environment, CLAUDE, "--agent", "unheard-of")
    assert answer is None
    assert "see 'corral-hook --help'" in err


def test_without_a_launcher_or_a_daemon_nothing_is_wrapped(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "socket").unlink()
    answer, err = hook(environment, CLAUDE)
    assert (answer, "no daemon at" in err) == (None, True)
    # but where nothing may run uncontrolled, corral-exec is there to refuse it
    (tmp_path / "hook.toml").write_text('fail = "closed"\n')
    answer, _ = hook({**environment, "CORRAL_HOOK_CONFIG": str(tmp_path / "hook.toml")}, CLAUDE)
    assert "--fail=closed" in answer["hookSpecificOutput"]["updatedInput"]["command"]
    answer, err = hook({**environment, "CORRAL_EXEC": str(tmp_path / "none")}, CLAUDE)
    assert (answer, "no corral-exec" in err) == (None, True)


def test_an_outcome_needs_a_safe_place(environment: dict[str, str], tmp_path: Path) -> None:
    """Anybody may make a directory in /tmp beforehand, to read or to steer what is written there."""
    directory = tmp_path / "run" / "corral-hook"
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    answer, err = hook(environment, CLAUDE)
    assert "--outcome-file" not in answer["hookSpecificOutput"]["updatedInput"]["command"]
    assert "not a directory of this user alone" in err
    directory.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError):
        State.open(environment)


@pytest.mark.parametrize("use_id", ["", "../x", "a/b", "x" * 200, "ü", "a b"])
def test_an_id_that_cannot_be_a_name_has_no_file(environment: dict[str, str], use_id: str) -> None:
    answer, _ = hook(environment, {**CLAUDE, "tool_use_id": use_id})
    assert "--outcome-file" not in answer["hookSpecificOutput"]["updatedInput"]["command"]
    assert State.open(environment).take_outcome(use_id) is None


# --- configuration

FULL = b"""
decision = "ask"
fail = "closed"
shell = "/bin/sh"
tools = ["my_shell"]
leave = ["^ssh "]

[default]
memory = "1G:4G"
priority = 40

[class.test]
memory = "300M:2G"
deadline = "20m"
on_pressure = "wait"
"""


def test_a_configuration(environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "home" / ".config" / "corral"
    folder.mkdir(parents=True)
    (folder / "hook.toml").write_bytes(FULL)
    answer, err = hook(environment, {**CLAUDE, "tool_name": "my_shell"})
    assert err == ""
    assert answer["hookSpecificOutput"]["permissionDecision"] == "ask"
    assert answer["hookSpecificOutput"]["updatedInput"]["command"] == (
        "corral-exec --tool=pytest --class=test --memory=300M:2G --priority=40 --deadline=20m --on-pressure=wait "
        f"--fail=closed --outcome-file={outcome_file(environment, 'toolu_01ABC')} -- /bin/sh -c 'pytest -q'"
    )
    assert hook(environment, {**CLAUDE, "tool_input": {"command": "ssh host make"}}) == (None, "")
    (folder / "hook.toml").write_text("enabled = false\n")
    assert hook(environment, CLAUDE) == (None, "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = ", "h.toml: Invalid value"),
        ("\xff", "h.toml: 'utf-8' codec"),
        ("speed = 1", "speed: unknown key; known here: class, enabled"),
        ("enabled = 1", "enabled: 1 is neither"),
        ('decision = "yes"', "choose none or ask or allow"),
        ('fail = ["open"]', "choose open or closed"),
        ("shell = ''", "shell: '' is no program"),
        ("tools = 'Bash'", "no list of texts"),
        ("leave = ['(']", "no regular expression"),
        ("default = 1", "default: 1 is no table"),
        ("class = 1", "class: unknown key"),
        ("[class.test]\nram = 1", "class.test.ram: unknown key; known here: memory"),
        ("[default]\ncpu = true", "default.cpu: True is neither"),
        ('[default]\nmemory = "1G\\u0000"', "default.memory"),
    ],
)
def test_a_mistake_is_named(text: str, says: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.parse("h.toml", text.encode("latin-1"))
    assert says in str(caught.value)


def test_a_mistake_does_not_stop_the_hook(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "hook.toml").write_text("speed = 1\n")
    answer, err = hook({**environment, "CORRAL_HOOK_CONFIG": str(tmp_path / "hook.toml")}, CLAUDE)
    assert answer is not None
    assert "goes on with its defaults" in err
    _, err = hook({**environment, "CORRAL_HOOK_CONFIG": str(tmp_path / "none")}, CLAUDE)
    assert "no such file" in err


# --- intents that were declared beforehand


def test_a_declared_intent_is_for_the_next_command_that_fits(environment: dict[str, str]) -> None:
    environment["CORRAL_SESSION"] = "s-1"
    state = State.open(environment)
    state.declare("s-1", {"call_class": "test", "options": {"memory": "2G:6G"}})
    answer, _ = hook(environment, {**CLAUDE, "tool_input": {"command": "git status"}})
    assert "--memory" not in answer["hookSpecificOutput"]["updatedInput"]["command"]
    answer, _ = hook(environment, CLAUDE)
    assert "--memory=2G:6G" in answer["hookSpecificOutput"]["updatedInput"]["command"]
    answer, _ = hook(environment, CLAUDE)
    assert "--memory" not in answer["hookSpecificOutput"]["updatedInput"]["command"], "once"


def test_a_declared_intent_of_another_session_or_of_long_ago_is_not_taken(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State.open(environment)
    state.declare("s-1", {"options": {"memory": "1G"}})
    assert state.take_intent("s-2", "test", "pytest") is None
    then = time.time() + INTENT_AGE + 1
    monkeypatch.setattr(time, "time", lambda: then)
    assert state.take_intent("s-1", "test", "pytest") is None
    assert not os.listdir(state.directory)  # noqa: PTH208 - the directory is a text here


def test_what_nobody_fetched_is_swept(environment: dict[str, str]) -> None:
    state = State.open(environment)
    old, new = Path(state.outcome_path("old")), Path(state.outcome_path("new"))
    for path in (old, new):
        path.write_text("{}")
    os.utime(old, (1, 1))
    state.sweep()
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_an_outcome_that_cannot_be_read_is_none(environment: dict[str, str], content: str) -> None:
    state = State.open(environment)
    Path(state.outcome_path("x")).write_bytes(content.encode("latin-1"))
    assert state.take_outcome("x") is None


# --- by hand


def test_wrap_and_help(environment: dict[str, str]) -> None:
    def by_hand(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "agentd.hook", *arguments],
            capture_output=True,
            env=environment,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout.decode()

    assert by_hand("wrap", "cd x && make").startswith("cd x && corral-exec --tool=make")
    assert by_hand("wrap", "cd x") == "cd x\n"
    assert by_hand("--help").startswith("usage: corral-hook")


def test_it_imports_the_standard_library_alone_and_nothing_slow() -> None:
    slow = {"argparse", "pathlib", "logging", "asyncio", "dataclasses", "shlex", "subprocess", "hashlib", "tempfile"}
    for path in [*HOOK.glob("*.py"), HOOK.parent / "sockets.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in names:
                assert (
                    name.startswith(("agentd.hook", "agentd.sockets"))
                    or name.partition(".")[0] in sys.stdlib_module_names
                ), name
                assert name not in slow, f"{path.name} imports {name}"
