"""docs/examples and docs/integrations.md: what people copy must be right."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import corral_client
from agentd.hook import config, contract

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples"
TEXT = (DOCS / "integrations.md").read_text()


def test_every_example_is_mentioned_and_every_mention_is_there() -> None:
    mentioned = set(re.findall(r"[\w-]+\.(?:json|toml|py)\b", TEXT))
    for path in EXAMPLES.iterdir():
        assert path.name in mentioned, path.name
    for name in re.findall(r"\(examples/([\w.-]+)\)", TEXT):
        assert (EXAMPLES / name).is_file(), name


@pytest.mark.parametrize("agent", contract.AGENTS)
def test_hooks_are_those_of_the_agent(agent: str) -> None:
    (path,) = EXAMPLES.glob(f"{agent}-*.json")
    content = json.loads(path.read_text())
    hooks = content.get("hooks", content)
    assert "PreToolUse" in hooks
    commands = re.findall(r'"command": "([^"]+)"', path.read_text())
    assert commands
    assert {command.partition(" ")[2] for command in commands} == {f"--agent {agent}"}
    assert set(hooks) <= {"PreToolUse", "PostToolUse", "PostToolUseFailure"}
    matchers = {entry["matcher"].lower() for entries in hooks.values() for entry in entries if "matcher" in entry}
    assert matchers <= contract.SHELL_TOOLS


def test_the_configuration_is_valid_and_names_every_key() -> None:
    data = (EXAMPLES / "hook.toml").read_bytes()
    read = config.parse("hook.toml", data)
    assert read.classes["test"] == {"memory": "300M:4G", "deadline": "30m"}
    for key in config.Config._fields:
        assert re.search(rf"^\[?{'class' if key == 'classes' else key}\b", data.decode(), re.MULTILINE), key
    defaults = config.Config()
    for key in ("enabled", "decision", "fail", "shell", "openhands", "tools"):
        assert getattr(read, key) == getattr(defaults, key), f"{key}: the example shows the default"


def test_the_program_uses_what_there_is() -> None:
    tree = ast.parse((EXAMPLES / "client.py").read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "corral"
    }
    assert used
    assert used <= set(corral_client.__all__)


def test_states_of_the_launcher_are_documented() -> None:
    source = (DOCS.parent / "agentd" / "launcher" / "tell.c").read_text()
    link = (DOCS.parent / "agentd" / "launcher" / "link.c").read_text()
    options = (DOCS.parent / "agentd" / "launcher" / "options.c").read_text()
    states = set(re.findall(r'start\("(\w+)"\)', source)) | set(re.findall(r'tell_failed\("(\w+)"', link + options))
    assert states == set(re.findall(r"^\| `(\w+)` \| ", TEXT.partition("| `state` |")[2], re.MULTILINE))
