"""Rules: what they match, what their files may say, and what those that come with Corral say of known agents."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.model import InvalidRequest, NotFound
from controller.recognise.rules import (
    MAX_TEXT,
    Kind,
    Library,
    Parent,
    ShellUse,
    command_of,
    judge,
    parse,
    shell_use,
)

NAMES = Library().names()


def kind(rules: str, argv: list[str], parent: Parent = Parent.AGENT, path: str = "") -> Kind:
    return judge(Library().load(rules), parent, path or f"/usr/bin/{argv[0]}", argv).kind


@pytest.mark.parametrize(
    ("argv", "use"),
    [
        (["bash", "-c", "ls"], ShellUse.COMMAND),
        (["bash", "-lc", "ls"], ShellUse.COMMAND),
        (["bash", "-c", "-l", "ls"], ShellUse.COMMAND),
        (["bash", "-o", "pipefail", "-c", "ls"], ShellUse.COMMAND),
        (["bash", "--norc", "--noprofile"], ShellUse.FED),
        (["-bash"], ShellUse.FED),
        (["bash", "-i"], ShellUse.FED),
        (["bash", "-s", "x"], ShellUse.FED),
        (["bash", "--rcfile", "/tmp/rc"], ShellUse.FED),
        (["bash", "script.sh", "-c", "x"], ShellUse.SCRIPT),
        (["bash", "-e", "script.sh"], ShellUse.SCRIPT),
        (["bash", "-c"], ShellUse.COMMAND),
        (["bash"], ShellUse.FED),
        ([], ShellUse.FED),
    ],
)
def test_how_a_shell_was_started(argv: list[str], use: ShellUse) -> None:
    assert shell_use(argv) is use


def test_the_command_is_the_text_of_a_shell_or_the_words() -> None:
    assert command_of(["/bin/bash", "-c", "-l", "make -j2"]) == "make -j2"
    assert command_of(["git", "status"]) == "git status"
    assert command_of(["bash"]) == "bash"
    assert command_of([]) == ""


@given(st.lists(st.text(max_size=200), max_size=30), st.sampled_from(Parent), st.text(max_size=80))
def test_whatever_an_agent_executes_is_judged(argv: list[str], parent: Parent, path: str) -> None:
    for name in NAMES:
        verdict = judge(Library().load(name), parent, path, argv)
        assert verdict.rule
    assert len(command_of(argv)) <= MAX_TEXT


CLAUDE = "source /root/.claude/shell-snapshots/snapshot-bash-1.sh && eval 'npm test' < /dev/null && pwd -P >| /tmp/x"


@pytest.mark.parametrize(
    ("rules", "argv", "wanted"),
    [
        ("generic", ["bash", "-lc", "make"], Kind.CALL),
        ("generic", ["git", "status"], Kind.CALL),
        ("generic", ["python3", "-m", "pytest", "-q"], Kind.CALL),
        ("generic", ["python3", "worker.py"], Kind.HELPER),
        ("generic", ["node", "index.js"], Kind.HELPER),
        ("generic", ["npx", "-y", "@modelcontextprotocol/server-filesystem", "/"], Kind.HELPER),
        ("generic", ["sh", "-c", "npx -y @modelcontextprotocol/server-git"], Kind.HELPER),
        ("generic", ["gopls", "serve"], Kind.HELPER),
        ("generic", ["node", "/x/pyright/langserver.index.js", "--stdio"], Kind.HELPER),
        ("generic", ["bash"], Kind.SHELL),
        ("generic", ["tmux", "new-session", "-d"], Kind.AGENT),
        ("claude-code", ["/bin/bash", "-c", CLAUDE], Kind.CALL),
        ("claude-code", ["/bin/zsh", "-c", "-l", CLAUDE], Kind.CALL),
        ("claude-code", ["rg", "--files"], Kind.HELPER),
        ("claude-code", ["git", "status"], Kind.HELPER),
        ("codex", ["bash", "-lc", "cargo test"], Kind.CALL),
        ("codex", ["codex-linux-sandbox", "--sandbox-policy-cwd", "/x", "--", "cargo", "test"], Kind.CALL),
        ("codex", ["bwrap", "--argv0", "codex-linux-sandbox", "--", "codex"], Kind.CALL),
        ("codex", ["codex", "exec", "fix it"], Kind.AGENT),
        ("aider", ["/bin/zsh", "-c", "pytest"], Kind.CALL),
        ("aider", ["git", "commit"], Kind.HELPER),
        ("openhands", ["/bin/bash"], Kind.SHELL),
        ("openhands", ["python", "-m", "ipykernel_launcher"], Kind.HELPER),
        ("swe-agent", ["/bin/bash"], Kind.SHELL),
        ("swe-agent", ["/bin/sh", "-c", "git diff"], Kind.CALL),
    ],
)
def test_children_of_known_agents(rules: str, argv: list[str], wanted: Kind) -> None:
    assert kind(rules, argv) is wanted


def test_what_a_fed_shell_starts_is_a_call_and_what_enters_a_container_too() -> None:
    for rules in NAMES:
        assert kind(rules, ["make"], Parent.SHELL) is Kind.CALL, rules
    assert kind("generic", ["/opt/anything", "-x"], Parent.ENTRY) is Kind.CALL
    assert kind("generic", ["claude", "-p", "fix it"], Parent.ENTRY) is Kind.AGENT
    assert kind("generic", ["bash"], Parent.ENTRY) is Kind.SHELL
    assert kind("openhands", ["/opt/anything"], Parent.ENTRY) is Kind.HELPER


def test_the_program_counts_as_well_as_what_it_calls_itself() -> None:
    assert kind("codex", ["codex-linux-sandbox", "--", "ls"], path="/usr/lib/codex/codex") is Kind.CALL


def rule_file(text: str) -> bytes:
    return f'version = 1\nname = "mine"\ndescription = ""\n{text}'.encode()


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ('otherwise = "shell"', "otherwise is 'shell'"),
        ('[[rule]]\nname = "a"\nis = "call"\n[[rule]]\nname = "a"\nis = "call"', "two rules are named 'a'"),
        ('[[rule]]\nname = "a"\nis = "tool"', "Invalid enum value 'tool'"),
        ('[[rule]]\nname = "a"\nis = "call"\nprogram = ["x"]', "unknown field `program`"),
        ('[[rule]]\nname = "../x"\nis = "call"', "regex"),
        ("x = ", "Invalid value"),
    ],
)
def test_a_wrong_file_is_refused_with_its_cause(text: str, cause: str) -> None:
    with pytest.raises(InvalidRequest, match=r"mine\.toml: ") as refused:
        parse(rule_file(text), "mine.toml")
    assert cause in str(refused.value)


def test_a_file_of_a_newer_version_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="newer than this daemon's"):
        parse(rule_file("").replace(b"version = 1", b"version = 2"), "x")


def test_the_operators_own_rules_come_first(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(rule_file('otherwise = "call"'))
    (tmp_path / "generic.toml").write_bytes(rule_file("").replace(b'"mine"', b'"generic"'))
    library = Library(tmp_path)
    assert judge(library.load("mine"), Parent.AGENT, "/bin/x", ["x"]).kind is Kind.CALL
    assert library.load().rule == ()
    assert set(library.names()) == {*NAMES, "mine"}
    (tmp_path / "mine.toml").rename(tmp_path / "other.toml")
    with pytest.raises(InvalidRequest, match=r"call the file mine\.toml"):
        library.load("other")


@pytest.mark.parametrize("name", ["../generic", "no-such", "a/b", ".hidden", "x" * 100])
def test_a_name_never_leaves_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound, match="no set of rules"):
        Library(tmp_path).load(name)
