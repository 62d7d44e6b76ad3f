"""What needs no API: the broker's socket, ``run``, ``doctor`` in-process, and the configuration."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import shlex
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd.cli import hostprobe, main
from agentd.cli.context import Context
from agentd.cli.doctor import COLUMNS, feature_rows
from agentd.cli.errors import CliError, NotFoundError
from agentd.cli.launcher import find_program
from agentd.cli.table import render
from agentd.wire import Enter, Message, Ok, Open, Opened, Refused, decode, encode
from tests.unit.cli_support import CODER, ROOT, TOKEN, Finished, corral

Answer = Callable[[Message], bytes]


async def _with_broker(tmp_path: Path, answer: Answer, *argv: str, **variables: str) -> tuple[Finished, list[Message]]:
    """Run the command against a socket that answers each packet; and what it was sent, with its descriptors."""
    path = tmp_path / "broker.sock"
    heard: list[Message] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                packet, descriptors, _, _ = socket.recv_fds(connection, 65_536, 4)
                for descriptor in descriptors:
                    assert "Pid:" in Path(f"/proc/self/fdinfo/{descriptor}").read_text()
                    os.close(descriptor)
                heard.append(decode(packet))
                assert bool(descriptors) == isinstance(heard[-1], Enter)
                reply = answer(heard[-1])
                if reply:
                    connection.send(reply)

        served = asyncio.create_task(asyncio.to_thread(serve))
        done = await corral(*argv, environment={"CORRAL_SOCKET": str(path), **variables})
        await asyncio.wait_for(served, 30)
    return done, heard


async def test_session_open_asks_the_broker_who_knows_our_uid(tmp_path: Path) -> None:
    done, heard = await _with_broker(
        tmp_path, lambda _: encode(Opened(session=CODER, token=TOKEN)), "session", "open", "--tenant", "acme"
    )
    assert heard == [Open(tenant="acme", name="")]
    assert done.code == 0, done.err
    assert done.out.startswith("export ")
    assert dict(part.partition("=")[::2] for part in shlex.split(done.out)[1:]) == {
        "CORRAL_SESSION": CODER,
        "CORRAL_TOKEN": TOKEN,
    }


async def test_session_open_json(tmp_path: Path) -> None:
    done, _ = await _with_broker(
        tmp_path, lambda _: encode(Opened(session=CODER, token=TOKEN)), "session", "open", "--json", "--tenant", "acme"
    )
    assert json.loads(done.out) == {"session": CODER, "token": TOKEN, "tenant": "acme", "name": ""}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"CORRAL_SESSION": CODER, "CORRAL_TOKEN": "tk"}, Enter(token="tk")),  # noqa: S106
        ({"CORRAL_SESSION": "s-01hx0000000000zz", "CORRAL_TOKEN": "of another"}, Enter(session=CODER)),
        ({}, Enter(session=CODER)),
    ],
)
async def test_session_exec_enters_with_its_own_pidfd_and_becomes_the_command(
    tmp_path: Path, variables: dict[str, str], expected: Enter
) -> None:
    argv = ("session", "exec", "--session", CODER, "--", "sh", "-c", 'echo "$CORRAL_SESSION $1"; exit 7', "x", "--json")
    done, heard = await _with_broker(tmp_path, lambda _: encode(Ok()), *argv, **variables)
    assert heard == [expected]
    assert (done.code, done.out) == (7, f"{CODER} --json\n")


async def test_session_exec_of_a_program_that_is_not_there(tmp_path: Path) -> None:
    done, _ = await _with_broker(
        tmp_path, lambda _: encode(Ok()), "session", "exec", "--session", CODER, "--", "no-such"
    )
    assert done.code == 5
    assert "no-such: no such program" in done.err


@pytest.mark.parametrize(
    ("reply", "code", "said"),
    [
        (
            encode(Refused(code="not_allowed", message="tenant acme: not yours; ask its owner")),
            4,
            "not yours; ask its owner",
        ),
        (encode(Refused(code="internal", message="see the log")), 1, "see the log"),
        (encode(Ok()), 1, "answered Ok"),
        (b"garbage", 1, "cannot be read"),
        (b"", 3, "hung up"),
    ],
)
async def test_what_the_broker_may_answer(tmp_path: Path, reply: bytes, code: int, said: str) -> None:
    done, _ = await _with_broker(tmp_path, lambda _: reply, "session", "open", "--tenant", "acme")
    assert done.code == code
    assert said in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""


async def test_no_broker(tmp_path: Path) -> None:
    done = await corral("session", "open", "--tenant", "acme", "--socket", str(tmp_path / "none"))
    assert done.code == 3
    assert "--socket or CORRAL_SOCKET" in done.err
    nobody = await corral("session", "open", "--socket", str(tmp_path / "none"))
    assert nobody.code == 2
    assert "corral tenant list" in nobody.err


def _script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


async def test_run_becomes_the_launcher_with_the_same_arguments(tmp_path: Path) -> None:
    launcher = _script(tmp_path / "corral-exec", 'printf "%s|" "$@"; exit 9')
    argv = ("run", "--memory", "1G", "--", "ls", "a b", "--json")
    done = await corral(*argv, environment={"CORRAL_EXEC": str(launcher)})
    assert (done.code, done.out) == (9, "--memory|1G|--|ls|a b|--json|")


def test_a_program_is_found_by_its_variable_then_in_its_places_then_in_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = _script(tmp_path / "corral-thing", "true")
    assert find_program("corral-thing", {"CORRAL_THING": str(program)}) == program
    assert find_program("corral-thing", {"PATH": str(tmp_path)}) == program
    monkeypatch.setattr("agentd.cli.launcher._PLACES", (tmp_path,))
    assert find_program("corral-thing", {"PATH": ""}) == program
    with pytest.raises(NotFoundError, match="CORRAL_THING=/none is not a program"):
        find_program("corral-thing", {"CORRAL_THING": "/none"})
    with pytest.raises(NotFoundError, match="scripts/build-launcher"):
        find_program("corral-other", {"PATH": ""})


def test_run_imports_nothing_heavy() -> None:
    """The price of ``corral run`` is a Python start: neither grpc nor argparse nor the model may come with it."""
    import subprocess

    code = (
        "import sys, os; os.execvpe = lambda *a: sys.exit(0 if not {'grpc', 'argparse', 'google.protobuf', 'msgspec',"
        " 'textual', 'asyncio'} & set(sys.modules) else str(sorted(sys.modules)));"
        "from agentd.cli import main; main(['run', '--', 'true'])"
    )
    environment = {**os.environ, "CORRAL_EXEC": "/bin/true"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_host_is_probed_in_this_process_without_an_exception() -> None:
    features = hostprobe.probe_host()
    names = [feature.name for feature in features]
    assert names[:6] == ["cgroup", "pidfd", "corral-exec", "root", "psi", "meminfo"]
    assert len(names) > 6
    for feature in features:
        assert feature.name
        if not feature.found:
            assert feature.cost, feature.name
            assert feature.detail or feature.remedy, feature.name


def test_a_probe_that_fails_is_a_line_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError(f"{name} is broken")

    monkeypatch.setattr("agentd.cli.hostprobe.importlib.import_module", broken)
    assert hostprobe.cgroup().detail == "controller.cgroup is broken"
    (ebpf,) = hostprobe.kernel_side()
    assert (ebpf.name, ebpf.found) == ("ebpf", False)
    assert hostprobe.pressure(tmp_path).found is False
    assert hostprobe.memory_info(tmp_path / "none").found is False
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\n")
    assert hostprobe.memory_info(tmp_path / "meminfo").found is False


def test_only_what_is_essential_fails_the_doctor() -> None:
    good = hostprobe.Feature("cgroup", True, "unified")
    bad = hostprobe.Feature("fentry", False, "EPERM", "little", "none")
    fatal = hostprobe.Feature("pidfd", False, "ENOSYS", "all", "a newer kernel")
    assert hostprobe.essential_missing([good, bad]) == []
    assert hostprobe.essential_missing([good, bad, fatal]) == ["pidfd"]
    assert render(COLUMNS, feature_rows([good, fatal])) == [
        "FEATURE  FOUND  DETAIL   WHAT IT COSTS YOU  REMEDY",
        "cgroup   yes    unified  -                  -",
        "pidfd    no     ENOSYS   all                a newer kernel",
    ]


async def test_doctor_without_a_daemon_probes_by_itself() -> None:
    done = await corral("doctor", "--json", environment={"CORRAL_API": "unix:/nonexistent/api.sock"})
    whole = json.loads(done.out)
    assert whole["source"] == "this process (no daemon)"
    assert done.code == (1 if whole["essential_missing"] else 0)
    assert {"name", "found", "detail", "cost", "remedy"} == set(whole["features"][0])
    assert "/nonexistent/api.sock does not exist" in done.err
    assert done.err.splitlines()[0].endswith("probing from here")
    asked_for = await corral("doctor", "--api", "unix:/nonexistent/api.sock")
    assert asked_for.code == 3


def test_config_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = tmp_path / "right.toml"
    right.write_text('[daemon]\nlog_level = "debug"\n')
    assert main(["config", "check", str(right)]) == 0
    assert capsys.readouterr().out == f"{right}: right\n"
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[daemon]\nlog_leve = 3\n")
    assert main(["config", "check", str(wrong)]) == 1
    assert f"{wrong}:2" in capsys.readouterr().err
    assert main(["config", "check", str(tmp_path / "none.toml")]) == 5
    assert "none.toml" in capsys.readouterr().err


def test_config_show_prints_a_file_that_means_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / "given.toml"
    given.write_text('[daemon]\nlog_level = "debug"\n[tenants.acme]\nmemory_max = "2G"\nuids = [1000]\n')
    assert main(["config", "show", str(given)]) == 0
    shown = tmp_path / "shown.toml"
    shown.write_text(capsys.readouterr().out)
    assert main(["config", "show", str(shown), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["config"]
    assert main(["config", "show", str(given), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"] == again
    assert again["daemon"]["log_level"] == "debug"


def test_config_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert "properties" in json.dumps(json.loads(capsys.readouterr().out))


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "goes_on"), [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("", False)]
)
def test_a_question_is_asked_on_a_terminal_and_only_yes_goes_on(
    typed: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", _Terminal(typed))
    err = io.StringIO()
    context = Context(argparse.Namespace(yes=False), err=err)
    if goes_on:
        context.confirm("kill call c-1?")
    else:
        with pytest.raises(CliError, match="nothing was done; answer y, or give -y"):
            context.confirm("kill call c-1?")
    assert err.getvalue() == "kill call c-1? [y/N] "


def test_no_question_with_yes_or_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr("sys.stdin", _Terminal("n\n"))
    Context(argparse.Namespace(yes=True), err=err).confirm("sure?")
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    Context(argparse.Namespace(yes=False), err=err).confirm("sure?")
    assert err.getvalue() == ""


async def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agentd.cli", "config", "schema"),
            cwd=ROOT,
            stdout=writing,
            stderr=asyncio.subprocess.PIPE,
        )
    finally:
        os.close(writing)
    _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"")
