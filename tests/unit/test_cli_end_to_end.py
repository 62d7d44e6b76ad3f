"""Every command in a process of its own, against a daemon that answers the API on a real socket."""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.unit.cli_support import (
    ACME,
    BETA,
    BRAKED,
    CODER,
    FROZEN,
    KILLED,
    ROLLOUT,
    TESTING,
    TOKEN,
    FakeDaemon,
    corral,
    serve,
)


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    fake, server = await serve(tmp_path / "api.sock")
    yield fake
    await server.stop(None)


async def _json(daemon: FakeDaemon, *argv: str) -> Any:
    done = await corral(*argv, "--json", api=daemon.target)
    assert done.code == 0, done.err
    return json.loads(done.out)


async def test_ps(daemon: FakeDaemon) -> None:
    done = await corral("ps", "--tenant", "beta", "--state", "braked", api=daemon.target)
    assert done.code == 0
    lines = done.out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(f"{BRAKED}  beta    rollout")
    assert "\x1b" not in done.out
    assert done.err == "this host cannot: memory.high (cgroup v1) (see: corral doctor)\n"


async def test_ps_json_has_stable_keys(daemon: FakeDaemon) -> None:
    whole = await _json(daemon, "ps", "--all", "--sort", "memory")
    assert set(whole) == {"at", "host", "calls"}
    assert len(whole["calls"]) == 5
    first = whole["calls"][0]
    assert set(first) == {field.name for field in pb.Call.DESCRIPTOR.fields} | {"tenant", "session"}
    assert (first["id"], first["tenant"], first["session"]) == (TESTING, "acme", "coder")
    assert first["usage"]["memory_now_bytes"] == 210 << 20


async def test_nothing_is_running(daemon: FakeDaemon) -> None:
    daemon.empty = True
    done = await corral("ps", api=daemon.target)
    assert done.out == "nothing is running; try: corral run -- true\n"
    assert "observe-only" in done.err
    assert (await corral("history", api=daemon.target)).out.startswith("the ledger holds no such call")
    assert (await corral("session", "list", api=daemon.target)).out.startswith("no session is open")
    assert (await corral("tenant", "list", api=daemon.target)).out.startswith("no tenant yet")


async def test_top_once(daemon: FakeDaemon) -> None:
    done = await corral("top", "--once", api=daemon.target)
    assert done.code == 0
    assert done.out.startswith("2 CPUs · memory 2 GiB of 8 GiB")
    assert done.out.splitlines()[4].startswith(TESTING)
    assert set(await _json(daemon, "top", "--once")) == {"at", "host", "tenants", "calls"}
    both = await corral("top", "--once", "--replay", "x", api=daemon.target)
    assert (both.code, "leave out --replay" in both.err) == (2, True)
    away = await corral("top", api=daemon.target)
    assert away.code == 2
    assert "corral top --once" in away.err


async def test_show(daemon: FakeDaemon) -> None:
    done = await corral("show", "00e5xy", api=daemon.target)
    assert done.code == 0, done.err
    for text in (
        f"call {KILLED}",
        "beta (t-01hx0000000000bb)",
        "signal 9 (SIGKILL)",
        "no room came within the bound",
        "usage 129 MiB",
        "declare --memory 128M:256M",
    ):
        assert text in done.out
    whole = await _json(daemon, "show", KILLED)
    assert set(whole) == {"call", "decisions", "processes"}
    assert {decision["action"] for decision in whole["decisions"]} == {"brake", "kill"}
    asked = daemon.last(pb.HistoryRequest)
    assert asked.call_id == KILLED
    assert asked.with_decisions


async def test_show_looks_into_the_ledger_for_a_call_that_the_daemon_forgot(daemon: FakeDaemon) -> None:
    done = await corral("show", "c-01hx000000009999", api=daemon.target)
    assert done.code == 5
    assert "corral history" in done.err
    assert daemon.last(pb.HistoryRequest).call_id == "c-01hx000000009999"


async def test_explain(daemon: FakeDaemon) -> None:
    done = await corral("explain", KILLED, api=daemon.target)
    assert done.code == 0
    assert "(reason: brake_killed) after 40 s" in done.out
    assert "try: process the file in parts" in done.out
    live = await _json(daemon, "explain", BRAKED)
    assert live["state"] == "braked"
    assert live["reason"] is None
    assert "because: its memory passed the armed threshold" in live["text"]


async def test_an_agent_explains_its_own_call_with_its_token(daemon: FakeDaemon) -> None:
    daemon.fail = (grpc.StatusCode.PERMISSION_DENIED, "operators only")
    refused = await corral("explain", KILLED, api=daemon.target)
    assert refused.code == 4
    assert "CORRAL_TOKEN" in refused.err
    asked = await corral("explain", KILLED, api=daemon.target, environment={"CORRAL_TOKEN": "tk"})
    assert asked.code == 4  # this daemon refuses everything; what matters is what was asked, and as whom
    assert daemon.last(pb.GetOutcomeRequest).call_id == KILLED
    assert daemon.tokens[-1] == "tk"


async def test_history(daemon: FakeDaemon) -> None:
    done = await corral("history", "--since", "1h", "--session", "rollout", "--limit", "5", api=daemon.target)
    assert done.code == 0
    assert "brake_killed" in done.out
    assert "braked, killed" in done.out
    asked = daemon.last(pb.HistoryRequest)
    assert (asked.session_id, asked.limit) == (ROLLOUT, 5)
    assert asked.since > 1e9
    filtered = await _json(daemon, "history", "--reason", "oom_call")
    assert filtered["calls"] == []
    assert daemon.last(pb.HistoryRequest).limit == 10_000


@pytest.mark.parametrize(
    ("line", "request_type", "target", "said"),
    [
        (f"freeze {TESTING[-6:]}", pb.FreezeRequest, TESTING, f"froze call {TESTING} (pytest -q tests/unit)"),
        ("thaw rollout", pb.ThawRequest, ROLLOUT, f"thawed 1 call of session {ROLLOUT} (rollout): {FROZEN}"),
        ("kill beta", pb.KillRequest, BETA, f"killed 2 calls of tenant beta: {BRAKED}, {FROZEN}"),
    ],
)
async def test_freeze_thaw_kill(daemon: FakeDaemon, line: str, request_type: Any, target: str, said: str) -> None:
    done = await corral(*shlex.split(line), api=daemon.target)
    assert done.out == said + "\n"
    assert daemon.last(request_type).target == target
    whole = await _json(daemon, *shlex.split(line))
    assert whole["action"] == line.split(maxsplit=1)[0]
    assert whole["targets"][0]["id"] == target


async def test_a_typo_among_targets_does_nothing_at_all(daemon: FakeDaemon) -> None:
    done = await corral("kill", "beta", "betaa", api=daemon.target)
    assert done.code == 5
    assert "'betaa'" in done.err
    assert not any(isinstance(request, pb.KillRequest) for request in daemon.asked)


async def test_limits(daemon: FakeDaemon) -> None:
    shown = await corral("limits", TESTING, api=daemon.target)
    assert "brake at     512 MiB" in shown.out
    assert "pids         4,096" in shown.out
    tenant = await _json(daemon, "limits", "acme")
    assert tenant["limits"]["memory_max_bytes"] == 4096 << 20
    done = await corral("limits", TESTING, "--memory-max", "1G", "--brake", "500M", "--cpu", "2", api=daemon.target)
    assert done.out == f"call {TESTING} (pytest -q tests/unit): memory max 1 GiB, cpu 2 cores, brake at 500 MiB\n"
    asked = daemon.last(pb.SetLimitsRequest)
    assert (asked.target, asked.limits.memory_max_bytes, asked.brake_bytes) == (TESTING, 1 << 30, 500 << 20)
    assert not asked.HasField("notify_bytes")
    wrong = await corral("limits", "acme", "--brake", "1G", api=daemon.target)
    assert wrong.code == 2
    assert "thresholds" in wrong.err


async def test_priority(daemon: FakeDaemon) -> None:
    done = await corral("priority", "coder", "90", api=daemon.target)
    assert done.out == f"session {CODER} (coder): priority 90\n"
    assert daemon.last(pb.SetPriorityRequest).target == CODER


async def test_tenants(daemon: FakeDaemon) -> None:
    done = await corral("tenant", "set", "gamma", "--memory-max", "2G", "--priority", "30", api=daemon.target)
    assert "tenant gamma" in done.out
    asked = daemon.last(pb.SetTenantRequest)
    assert (asked.name, asked.limits.memory_max_bytes, asked.priority) == ("gamma", 2 << 30, 30)
    await corral("tenant", "set", "gamma", "--pids", "10", api=daemon.target)
    assert not daemon.last(pb.SetTenantRequest).HasField("priority")
    listed = await _json(daemon, "tenant", "list")
    assert [(tenant["id"], tenant["name"]) for tenant in listed["tenants"]] == [(ACME, "acme"), (BETA, "beta")]


async def test_sessions(daemon: FakeDaemon) -> None:
    opened = await corral(
        "session", "open", "--api", daemon.target, "--tenant", "acme", "--name", "n", "--label", "k=v"
    )
    words = dict(part.partition("=")[::2] for part in shlex.split(opened.out)[1:])
    assert words == {"CORRAL_SESSION": CODER, "CORRAL_TOKEN": TOKEN}
    assert dict(daemon.last(pb.OpenSessionRequest).labels) == {"k": "v"}
    listed = await _json(daemon, "session", "list", "--all")
    assert [session["name"] for session in listed["sessions"]] == ["rollout", "coder", ""]
    closed = await corral("session", "close", "coder", "--kill", api=daemon.target)
    assert closed.out == f"closed session {CODER}\n"
    assert daemon.last(pb.CloseSessionRequest).kill
    own = await corral("session", "close", api=daemon.target, environment={"CORRAL_TOKEN": "tk"})
    assert own.code == 0
    assert daemon.tokens[-1] == "tk"
    nobody = await corral("session", "close", api=daemon.target)
    assert nobody.code == 2


async def test_doctor_asks_the_daemon_and_adds_what_it_did_not_say(daemon: FakeDaemon) -> None:
    launcher = {"CORRAL_EXEC": "/bin/true"}
    told = await corral("doctor", "--json", api=daemon.target, environment=launcher)
    assert told.code == 0, told.err
    whole = json.loads(told.out)
    assert whole["source"].startswith("agentd at ")
    assert whole["essential_missing"] == []
    features = {feature["name"]: feature for feature in whole["features"]}
    assert len(features) == len(whole["features"])  # none twice
    assert features["fentry"]["remedy"] == "another kernel"
    assert features["cgroup"]["detail"] == "hybrid"  # the daemon's word, not ours
    assert features["corral-exec"]["detail"] == "/bin/true"
    daemon.empty = True
    done = await corral("doctor", api=daemon.target, environment=launcher)
    assert done.code == 1
    assert "essential and missing: cgroup" in done.err


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
        (grpc.StatusCode.PERMISSION_DENIED, 4),
        (grpc.StatusCode.UNAUTHENTICATED, 4),
        (grpc.StatusCode.NOT_FOUND, 5),
        (grpc.StatusCode.FAILED_PRECONDITION, 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
        (grpc.StatusCode.INTERNAL, 1),
        (grpc.StatusCode.UNAVAILABLE, 3),
    ],
)
async def test_what_the_daemon_says_is_one_line_and_a_status(
    daemon: FakeDaemon, status: grpc.StatusCode, code: int
) -> None:
    daemon.fail = (status, "intent.pids: 0 is out of range;\n1 to 100")
    done = await corral("ps", api=daemon.target)
    assert done.code == code
    assert done.out == ""
    assert "intent.pids: 0 is out of range; 1 to 100" in done.err
    assert done.err.count("\n") == 1


async def test_no_daemon(tmp_path: Path) -> None:
    absent = await corral("ps", api=f"unix:{tmp_path}/none.sock")
    assert absent.code == 3
    assert absent.err.startswith(f"corral: agentd is not running: {tmp_path}/none.sock does not exist; start it with")
    assert absent.err.count("\n") == 1
    deaf = tmp_path / "deaf.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(deaf))
        left = await corral("ps", "--api", str(deaf))
    assert left.code == 3
    assert "nobody listens" in left.err
    assert left.err.count("\n") == 1
    tcp = await corral("ps", "--api", "localhost:1")
    assert tcp.code == 2
    assert "CORRAL_TLS_CA" in tcp.err
