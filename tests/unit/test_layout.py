"""The house itself: sizes of modules, scripts that run, a lock that fits, nothing of one machine in the sources."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("agentd", "bpf", "controller", "gpu", "tui")
SOURCES = (*PACKAGES, "tests", "scripts")
CEILING = 500  # lines of a module
SCRIPTS = {path.name: path.read_text("utf-8") for path in sorted((REPOSITORY / "scripts").iterdir()) if path.is_file()}
SHELL_SCRIPTS = [name for name, text in SCRIPTS.items() if "bash" in text.splitlines()[0]]


def sources(*suffixes: str) -> Iterator[Path]:
    for top in SOURCES:
        for path in sorted((REPOSITORY / top).rglob("*")):
            generated = re.search(r"_pb2(_grpc)?\.pyi?$", path.name) or "__pycache__" in path.parts
            if path.is_file() and not generated and path.suffix in suffixes:
                yield path


def named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def test_no_module_is_longer_than_the_ceiling() -> None:
    lengths = {named(path): len(path.read_text("utf-8").splitlines()) for path in sources(".py", ".c", ".h")}
    assert lengths, "no sources were found"
    assert {name: lines for name, lines in lengths.items() if lines > CEILING} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_directory_with_modules_is_a_package(package: str) -> None:
    directories = {path.parent for path in sources(".py") if path.is_relative_to(REPOSITORY / package)}
    assert [named(directory) for directory in sorted(directories) if not (directory / "__init__.py").exists()] == []


def test_sources_name_no_machine() -> None:
    # put together here, so that this file does not find itself
    machine = re.compile("|".join(("/work" + "/main", "/work" + "/shared", "/root" + r"/\.pyenv")))
    found = [
        named(path)
        for path in sources(".py", ".c", ".h", ".sh", "")
        if machine.search(path.read_text("utf-8", "replace"))
    ]
    assert found == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_can_be_run_and_say_what_they_are(name: str) -> None:
    path = REPOSITORY / "scripts" / name
    lines = SCRIPTS[name].splitlines()
    assert path.stat().st_mode & stat.S_IXUSR, f"scripts/{name} is not executable"
    assert lines[0].startswith("#!"), f"scripts/{name} has no interpreter line"
    assert lines[1].startswith(("# ", '"""', "#")), f"scripts/{name} does not say what it does in its second line"


@pytest.mark.parametrize("name", SHELL_SCRIPTS)
def test_shell_scripts_parse_and_stop_at_errors(name: str) -> None:
    checked = subprocess.run(["bash", "-n", REPOSITORY / "scripts" / name], check=False, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert re.search(r"^set -euo pipefail$", SCRIPTS[name], re.MULTILINE), "does not stop at an error"


def test_ci_runs_every_part_that_people_run_by_default() -> None:
    run = REPOSITORY / ".ci" / "run"
    assert os.access(run, os.X_OK)
    (command,) = re.findall(r"^exec scripts/test (.*)</dev/null$", run.read_text("utf-8"), re.MULTILINE)
    (default,) = re.findall(r"parts=\((static .*?)\)$", SCRIPTS["test"], re.MULTILINE)
    assert command.split() == [f"--{part}" for part in default.split()]  # and no test is left out


def requirement_name(line: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", line)
    assert match, line
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def locked() -> dict[str, str]:
    """Name to block of requirements.lock."""
    blocks = re.split(r"\n(?=\S)", (REPOSITORY / "requirements.lock").read_text("utf-8").strip())
    return {requirement_name(block): block for block in blocks}


def test_lock_pins_every_dependency_with_hashes() -> None:
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    wanted = {requirement_name(line) for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]}
    have = locked()
    assert wanted - have.keys() == set(), "run scripts/lock"
    for name, block in have.items():
        assert re.match(r"[A-Za-z0-9._-]+==\S+( ;.*)? \\\n", block), f"{name} is not pinned"
        assert "--hash=sha256:" in block, f"{name} has no hash"


def test_lock_names_no_index() -> None:
    assert not re.search(r"https?://|--index|--find-links|file:", (REPOSITORY / "requirements.lock").read_text("utf-8"))
