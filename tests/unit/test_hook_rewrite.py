"""How corral-hook rewrites commands, and what it takes them for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.hook import classify, shell
from agentd.hook.rewrite import MAX_COMMAND, Wrapping, is_wrapped, worth_wrapping, wrap, wrapped_argv

PLAIN = Wrapping("corral-exec", "bash", {})

# Anything, with a liking for what shells and our scanner find special.
_SPECIAL = "cd\xa0a|echo| |'|\"|\\|&&|;|&|\n|$(|)|`|<<|EOF|{|}|#|${x}|x=1|export\xa0y=2|>&2|2>/dev/null|if|fi|é|*|-"
_commands = st.lists(
    st.sampled_from([*_SPECIAL.replace("\xa0", " ").split("|"), "|", "||"]) | st.text(max_size=3), max_size=12
).map(" ".join)


@pytest.mark.parametrize(
    ("command", "call_class", "tool"),
    [
        ("pytest -q", "test", "pytest"),
        ("python3.11 -m pytest tests", "test", "pytest"),
        ("/venv/bin/python -m unittest", "test", "unittest"),
        ("cd sub && FOO=1 timeout 60 uv run pytest -x 2>&1 | tail -20", "test", "pytest"),
        ("npm run test:unit -- --watch=false", "test", "npm"),
        ("npm test", "test", "npm"),
        ("cargo test --workspace", "test", "cargo"),
        ("go test ./...", "test", "go"),
        ("make -j4 check", "test", "make"),
        ("make -j4", "build", "make"),
        ("cargo build --release", "build", "cargo"),
        ("docker build .", "build", "docker"),
        ("docker ps", "container", "docker"),
        ("cmake --build build && ctest", "test", "ctest"),
        ("pip install -r requirements.txt", "install", "pip"),
        ("uv pip install x", "install", "pip"),
        ("uv sync", "install", "uv"),
        ("npm ci", "install", "npm"),
        ("yarn", "install", "yarn"),
        ("sudo apt-get -y install gcc", "install", "apt-get"),
        ("go get x", "install", "go"),
        ("git -C x status", "git", "git"),
        ("grep -rn 'a|b; c' . | sort | head", "search", "grep"),
        ("git log | grep fix", "git", "git"),
        ("npx tsc --noEmit", "lint", "tsc"),
        ("ruff check .", "lint", "ruff"),
        ("npm run dev", "serve", "npm"),
        ("curl -sS https://example.org | jq .", "network", "curl"),
        ("python script.py", "script", "python3"),
        ("ls -la && cat x", "file", "ls"),
        ("for f in *.py; do pytest $f; done", "test", "pytest"),
        ("if [ -e x ]; then make; fi", "build", "make"),
        ("(cd x && make)", "build", "make"),
        ("cat <<EOF > run.sh\nmake test\nEOF", "file", "cat"),
        ('eval "pytest -q"', "test", "pytest"),
        ("my-own-tool --fast", "", "my-own-tool"),
        ("cd x", "", ""),
        ("X=1", "", ""),
        ("", "", ""),
        ("'", "", ""),
    ],
)
def test_classes(command: str, call_class: str, tool: str) -> None:
    assert classify.classify(command) == (call_class, tool)


def test_the_table_has_no_row_that_another_hides() -> None:
    seen: set[tuple[str, str]] = set()
    for call_class, programs, firsts in classify.RULES:
        for program in programs:
            assert (program, "") not in seen, f"{program} of {call_class} is caught by an earlier rule"
            seen |= {(program, first) for first in firsts or {""}}


@pytest.mark.parametrize(
    ("command", "prefix", "rest"),
    [
        ("cd a && make", "cd a &&", " make"),
        ("cd 'a b'; export X=1\nmake; cd ..", "cd 'a b'; export X=1\n", "make; cd .."),
        ("cd $(git rev-parse --show-toplevel) && make", "cd $(git rev-parse --show-toplevel) &&", " make"),
        # a child inherits neither of these: they must be where they are counted on
        ("X=1; echo $X", "", "X=1; echo $X"),
        ("set -e; make", "", "set -e; make"),
        ("source venv/bin/activate && pytest", "", "source venv/bin/activate && pytest"),
        ("cd a && source env && pytest", "cd a &&", " source env && pytest"),
        ("export X=$(make) && y", "", "export X=$(make) && y"),
        # what the next command gets depends on the first
        ("cd a || exit 1", "", "cd a || exit 1"),
        ("cd a | cat", "", "cd a | cat"),
        ("cd a && server &", "", "cd a && server &"),
        # nothing but the shell's own state
        ("cd a", "cd a", ""),
        ("source venv/bin/activate", "source venv/bin/activate", ""),
        ("cd a && export X=1", "cd a && export X=1", ""),
        # what follows is no plain list, but what stands before it is
        ("cd a && cat <<E\nx\nE", "cd a &&", " cat <<E\nx\nE"),
        ("cd a && (cd b; make)", "cd a &&", " (cd b; make)"),
        ("cd a && if true; then make; fi", "cd a &&", " if true; then make; fi"),
        ("if true; then cd a; fi; make", "", "if true; then cd a; fi; make"),
        ("cd a && (make) &", "", "cd a && (make) &"),
        ("cd 'a && make", "", "cd 'a && make"),
        ("cd a # && not this\nmake", "cd a # && not this\n", "make"),
        ("cd a && echo \\", "cd a &&", " echo \\"),
    ],
)
def test_what_stays_in_the_agents_own_shell(command: str, prefix: str, rest: str) -> None:
    assert shell.split_prefix(command) == (prefix, rest)


@pytest.mark.parametrize(
    ("command", "wrapped"),
    [
        ("pytest -q", "corral-exec --tool=pytest --class=test -- bash -c 'pytest -q'"),
        ("cd a &&  make", "cd a &&  corral-exec --tool=make --class=build -- bash -c 'make'"),
        ("echo it's", "corral-exec --tool=echo --class=file -- bash -c 'echo it'\"'\"'s'"),
        ("cd a && server &", "corral-exec --tool=server -- bash -c 'cd a && server ' &"),
        ("a & b", "corral-exec --tool=a -- bash -c 'a & b'"),
        ("a; b &", "corral-exec --tool=a -- bash -c 'a; b &'"),
        ("ls a\\ ", "corral-exec --tool=ls --class=file -- bash -c 'ls a\\ '"),
    ],
)
def test_wrapping(command: str, wrapped: str) -> None:
    assert worth_wrapping(command)
    assert wrap(command, PLAIN) == wrapped
    assert not worth_wrapping(wrapped), "never twice"


def test_options_are_words() -> None:
    wrapping = Wrapping(
        "/opt/my tools/corral-exec", "/bin/sh", {"memory": "1G:2G", "network": "a b; rm x", "fail": "open"}, "/run/o-1"
    )
    assert wrap("true", wrapping) == (
        "'/opt/my tools/corral-exec' --tool=true --class=file --memory=1G:2G '--network=a b; rm x' --fail=open "
        "--outcome-file=/run/o-1 -- /bin/sh -c 'true'"
    )
    assert not worth_wrapping(wrap("true", wrapping))
    assert wrapped_argv("cd x && true", wrapping)[-4:] == ["--", "/bin/sh", "-c", "cd x && true"]


@pytest.mark.parametrize(
    ("command", "is_one"),
    [
        ("corral-exec -- true", True),
        ("cd x && /usr/lib/corral/corral-exec --memory :1G -- bash -c 'a; b'", True),
        ("sudo corral-exec -- true; corral run -- true", True),
        ("corral-exec -- true; make", False),
        ("echo corral-exec", False),
        ("corral ps", False),
        ("cd x", False),
    ],
)
def test_what_is_wrapped_already(command: str, is_one: bool) -> None:
    assert is_wrapped(command) is is_one


@pytest.mark.parametrize(
    "command", ["", "  \n", "a\0b", "x" * (MAX_COMMAND + 1), "cd ..", "export A=1", "git push now"]
)
def test_what_is_left_alone(command: str) -> None:
    assert not worth_wrapping(command, (r"^git push\b", "never"))


@given(_commands)
def test_any_command_is_wrapped_once_and_not_lost(command: str) -> None:
    if not worth_wrapping(command):
        return
    wrapped = wrap(command, PLAIN)
    assert wrapped != command
    assert not worth_wrapping(wrapped)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corral-exec that only runs its command: what is tested is what the shells make of the line."""
    path = tmp_path_factory.mktemp("bin") / "corral-exec"
    path.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n')
    path.chmod(0o755)
    return path


def in_bash(command: str, directory: Path, path: Path) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        cwd=directory,
        env={"PATH": f"{path.parent}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        timeout=20,
        check=False,
    )
    return done.returncode, done.stdout.decode()


@pytest.mark.parametrize(
    "command",
    [
        "echo one; echo two >&2; exit 3",
        "echo \"a 'b' $HOME \\$x `echo sub` $(echo 'sub)' 2) | cat\"",
        "printf '%s\\n' 'it'\"'\"'s' \"say \\\"hi\\\"\" a\\ b",
        "cd sub && pwd && ls | wc -l",
        "cd sub && export A='x y'; echo \"$A\"; false",
        "X=1; set -o pipefail; false | echo $X",
        "cat <<'EOF'\n$not 'expanded' \"here\"\nEOF",
        "for i in 1 2; do echo $i; done && (exit 4)",
        "f() { echo in $1; }; f there",
        "echo 'unbalanced",
        "echo a # comment ' with a quote",
        "sleep 0 & wait; echo done",
        "cd sub && { echo x; false; } || echo recovered",
        "echo \\\nlong",
        "[[ a == a ]] && echo yes",
        "echo ünï 日本 $'\\x41'",
        "trap 'echo bye' EXIT; echo hi",
        "true &&\nfalse",
    ],
)
def test_a_wrapped_command_does_what_it_did(command: str, tmp_path: Path, stand_in: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").touch()
    assert worth_wrapping(command)
    assert in_bash(wrap(command, PLAIN), tmp_path, stand_in) == in_bash(command, tmp_path, stand_in)


@pytest.mark.parametrize(
    "command", ["cd sub && pwd", "cd sub; false || (true)", "cd sub && { false; } || cat <<E\nx\nE"]
)
def test_the_agents_shell_is_where_it_would_be(command: str, tmp_path: Path, stand_in: Path) -> None:
    """Agents keep the directory from one command to the next."""
    (tmp_path / "sub").mkdir()
    line = wrap(command, PLAIN)
    assert "corral-exec" in line
    assert in_bash(f"{line}\npwd", tmp_path, stand_in)[1].endswith(f"{tmp_path}/sub\n")


@settings(max_examples=40)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20), max_size=5))
def test_quoting_survives_two_shells(stand_in: Path, words: list[str]) -> None:
    command = "printf '<%s>' " + " ".join(shell.quote(word) for word in words)
    done = subprocess.run(
        ["bash", "-c", wrap(command, Wrapping(str(stand_in), "sh", {}))],
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        check=True,
    )
    assert done.stdout.decode() == ("".join(f"<{word}>" for word in words) or "<>")
