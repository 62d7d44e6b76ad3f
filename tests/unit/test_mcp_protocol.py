"""corral-mcp: the protocol's two eras, and hostile lines."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.hook.state import State
from agentd.mcp.daemon import Daemon, plain
from agentd.mcp.main import serve
from agentd.mcp.protocol import LEGACY, MAX_LINE, MODERN, Server
from agentd.mcp.tools import INSTRUCTIONS, Tools
from agentd.proto.corral.v1 import corral_pb2 as pb

CALL = "c-0123456789abcdef"
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


class Offline(Daemon):
    """A session whose daemon's API cannot be asked, except for budgets."""

    def __init__(self, session: str = "s-1", budgets: list[dict[str, Any]] | None = None) -> None:
        super().__init__({"CORRAL_SESSION": session})
        self._budgets = budgets or []

    def budgets(self) -> list[dict[str, Any]]:
        return self._budgets


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "run").mkdir(mode=0o700)
    return {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "CORRAL_SESSION": "s-1"}


def server(environment: Mapping[str, str], daemon: Daemon | None = None) -> Server:
    tools = Tools(daemon or Offline(environment.get("CORRAL_SESSION", "")), environment)
    return Server("corral", "1", INSTRUCTIONS, tools.all())


def ask(at: Server, method: str, params: dict[str, Any] | None = None, *, modern: bool = True) -> dict[str, Any]:
    params = {**(params or {}), **({"_meta": META} if modern else {})}
    line = at.answer(json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).encode())
    assert line is not None
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    answer: dict[str, Any] = json.loads(line)
    assert (answer["jsonrpc"], answer["id"]) == ("2.0", 7)
    return answer


def use(at: Server, tool: str, **arguments: object) -> tuple[str, dict[str, Any] | None]:
    """The text, and the data (None: the tool failed), which must be as the tool's schema says."""
    result = ask(at, "tools/call", {"name": tool, "arguments": arguments})["result"]
    assert [part["type"] for part in result["content"]] == ["text"]
    if result["isError"]:
        assert "structuredContent" not in result
        return result["content"][0]["text"], None
    schema = next(one for one in ask(at, "tools/list")["result"]["tools"] if one["name"] == tool)["outputSchema"]
    jsonschema.validate(result["structuredContent"], schema)
    return result["content"][0]["text"], result["structuredContent"]


def test_stateless_era(environment: dict[str, str]) -> None:
    at = server(environment)
    found = ask(at, "server/discover")["result"]
    assert found["supportedVersions"] == [*MODERN, *LEGACY]
    assert found["capabilities"] == {"tools": {}}
    listed = ask(at, "tools/list")["result"]
    for result in (found, listed):
        assert result["resultType"] == "complete"
        assert result["_meta"]["io.modelcontextprotocol/serverInfo"] == {"name": "corral", "version": "1"}
        assert (result["cacheScope"], result["ttlMs"] > 0) == ("public", True)
    assert [tool["name"] for tool in listed["tools"]] == ["declare_intent", "get_budget", "explain_last_call"]
    for tool in listed["tools"]:
        jsonschema.Draft202012Validator.check_schema(tool["inputSchema"])
        jsonschema.Draft202012Validator.check_schema(tool["outputSchema"])
    assert ask(at, "ping")["error"]["code"] == -32601, "this revision has none"


def test_what_a_stateless_request_must_carry(environment: dict[str, str]) -> None:
    at = server(environment)
    bare = ask(at, "tools/list", modern=False)["error"]
    assert (bare["code"], bare["data"]["supported"]) == (-32602, [*MODERN, *LEGACY])
    half = {"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}
    assert ask(at, "tools/list", half, modern=False)["error"]["code"] == -32602
    other = {"_meta": {**META, "io.modelcontextprotocol/protocolVersion": "1900-01-01"}}
    error = ask(at, "tools/list", other, modern=False)["error"]
    assert (error["code"], error["data"]["requested"]) == (-32022, "1900-01-01")
    # an ask for the handshake's era in the form of the other one: not that either
    other = {"_meta": {**META, "io.modelcontextprotocol/protocolVersion": "2025-11-25"}}
    assert ask(at, "tools/list", other, modern=False)["error"]["code"] == -32022


@pytest.mark.parametrize(("requested", "got"), [*zip(LEGACY, LEGACY, strict=True), ("2031-01-01", "2025-11-25")])
def test_handshake_era(environment: dict[str, str], requested: str, got: str) -> None:
    at = server(environment)
    params = {"protocolVersion": requested, "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    result = ask(at, "initialize", params, modern=False)["result"]
    assert (result["protocolVersion"], result["capabilities"]) == (got, {"tools": {}})
    assert at.answer(b'{"jsonrpc":"2.0","method":"notifications/initialized"}') is None
    assert ask(at, "ping", modern=False)["result"] == {}
    assert "resultType" not in ask(at, "tools/list", modern=False)["result"]
    assert ask(at, "resources/list", modern=False)["error"]["code"] == -32601


@pytest.mark.parametrize(
    ("line", "code", "identifier"),
    [
        (b"{", -32700, None),
        (b"\xff\xfe", -32700, None),
        (b"[" * 100_000, -32700, None),
        (b"[]", -32600, None),
        (b'{"id": 1, "method": "ping"}', -32600, None),
        (b'{"jsonrpc": "2.0", "id": null, "method": "ping"}', -32600, None),
        (b'{"jsonrpc": "2.0", "id": true, "method": "ping"}', -32600, None),
        (b'{"jsonrpc": "2.0", "id": 1}', -32600, 1),
        (b'{"jsonrpc": "2.0", "id": "a", "method": "ping", "params": []}', -32602, "a"),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": 1}}', -32602, 1),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "initialize"}', -32602, 1),
    ],
)
def test_bad_messages(environment: dict[str, str], line: bytes, code: int, identifier: object) -> None:
    answer = server(environment).answer(line)
    assert answer is not None
    error = json.loads(answer)
    assert (error["error"]["code"], error["id"]) == (code, identifier)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"name": "rm"}, "Unknown tool: rm"),
        ({"name": 7}, "Unknown tool: 7"),
        ({}, "Unknown tool"),
        ({"name": "get_budget", "arguments": []}, "arguments is an object"),
    ],
)
def test_bad_calls_of_tools(environment: dict[str, str], params: dict[str, Any], says: str) -> None:
    error = ask(server(environment), "tools/call", params)["error"]
    assert (error["code"], says in error["message"]) == (-32602, True)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_methods = st.sampled_from(["initialize", "ping", "tools/list", "tools/call", "server/discover", "notifications/x"])
_names = st.sampled_from(["declare_intent", "get_budget", "explain_last_call"])
_keys = st.sampled_from(
    ["memory_peak", "memory_typical", "cpu", "pids", "duration_seconds", "network", "on_pressure", "call_class", "x"]
)


@given(st.binary(max_size=100) | _json.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_lines_are_answered_or_ignored(line: bytes) -> None:
    answer = server({}).answer(line)
    assert answer is None or json.loads(answer)["jsonrpc"] == "2.0"


@given(_methods, _names, st.dictionaries(_keys, _json | st.just("2G"), max_size=4), st.booleans())
def test_arbitrary_requests_are_answered(method: str, name: str, arguments: dict[str, Any], modern: bool) -> None:
    params = {"name": name, "arguments": arguments}
    answer = ask(server({}), method, params, modern=modern)
    assert ("result" in answer) != ("error" in answer)


def test_long_lines_and_defects_do_not_end_the_server(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Offline):
        def budgets(self) -> list[dict[str, Any]]:
            raise ZeroDivisionError("a defect")

    ping = b'{"jsonrpc":"2.0","id":3,"method":"ping"}\n'
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "get_budget", "_meta": META}}
    lines = io.BytesIO(b"x" * (2 * MAX_LINE + 5) + b"\n\n" + json.dumps(call).encode() + b"\n" + ping)
    out = io.BytesIO()
    serve(server(environment, Broken()), lines, out)
    answers = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [answer.get("error", {}).get("code") for answer in answers] == [-32700, -32603, None]
    assert "ZeroDivisionError" in capsys.readouterr().err


# --- the tools


def test_an_intent_is_kept_for_the_hook(environment: dict[str, str]) -> None:
    text, data = use(
        server(environment),
        "declare_intent",
        memory_typical="300M",
        memory_peak="1.5G",
        duration_seconds=90,
        pids=64,
        network="none",
        on_pressure="fail_fast",
        call_class="test",
    )
    assert text == (
        "Declared for your next test command, if it comes within 15 min 0 s: memory typical 300 MiB, "
        "memory peak 1.5 GiB, pids 64, duration 1 min 30 s, network none, on_pressure fail_fast."
    )
    assert data is not None
    taken = State.open(environment).take_intent("s-1", "test", "pytest")
    assert taken is not None
    assert taken["options"] == data["declared"]
    assert data["declared"]["memory"] == "314572800:1610612736"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "at least one of"),
        ({"ram": "1G"}, "Unknown: ram. Known: memory_peak"),
        ({"memory_peak": "lots"}, "write it as 300M or 2G"),
        ({"memory_peak": 7}, "no size"),
        ({"memory_peak": "9" * 400}, "no size"),
        ({"memory_peak": "1K"}, "memory_peak: 1024 is out of range"),
        ({"memory_peak": "1G", "memory_typical": "2G"}, "is above the peak"),
        ({"cpu": "2"}, "not a number"),
        ({"cpu": True}, "not a number"),
        ({"cpu": 1e400}, "not a number"),
        ({"pids": 1.5}, "not a whole number"),
        ({"network": "some"}, "choose any or none"),
        ({"on_pressure": ["wait"]}, "is unknown; choose wait"),
        ({"call_class": "a\x1b[2J", "cpu": 1}, "cannot be printed"),
        ({"call_id": "../../x", "cpu": 1}, "no id of a call"),
        ({"call_id": CALL, "cpu": 1}, "runs in no session"),
    ],
)
def test_bad_intents_are_errors_that_a_model_can_act_on(
    environment: dict[str, str], arguments: dict[str, object], says: str
) -> None:
    text, data = use(server(environment), "declare_intent", **arguments)
    assert data is None
    assert says in text


def test_an_agent_without_a_session_is_told(environment: dict[str, str]) -> None:
    del environment["CORRAL_SESSION"]
    text, data = use(server(environment), "declare_intent", memory_peak="1G")
    assert data is None
    assert "corral-exec --memory=:1073741824 -- COMMAND" in text
    text, data = use(server(environment), "explain_last_call")
    assert (data, "corral session open" in text) == (None, True)


def test_budgets(environment: dict[str, str]) -> None:
    rows = [
        {"resource": "memory_bytes", "scope": "tenant", "limit": 2.0**31, "used": 2.0**30, "remaining": 2.0**30},
        {
            "resource": "cpu_seconds",
            "scope": "session",
            "limit": 60.0,
            "remaining": 5.0,
            "hard": True,
            "refills_at": time.time() + 7200.9,
            "band": "critical",
        },
        {"resource": "calls", "scope": "tenant", "limit": 8.0, "remaining": 7.0},
    ]
    text, data = use(server(environment, Offline(budgets=rows)), "get_budget")
    assert text.splitlines() == [
        "tenant memory_bytes: 1 GiB left of 2 GiB",
        "session cpu_seconds: 5 s left of 1 min 0 s (critical, hard, full again in 2 h 0 min)",
        "tenant calls: 7 left of 8",
    ]
    assert data == {"budgets": rows}
    assert use(server(environment, Offline()), "get_budget")[1] == {"budgets": []}
    assert use(server(environment), "get_budget", x=1)[1] is None


def test_what_is_said_of_a_budget_has_words_for_its_band() -> None:
    stock = pb.Budget(resource="tokens", scope="session", limit=5.0, remaining=1.0, band=pb.BUDGET_BAND_LOW)
    assert plain(stock)["band"] == "low"
    assert "refills_at" not in plain(stock)


def test_the_last_call_without_the_daemons_api(environment: dict[str, str]) -> None:
    told = {"state": "ended", "call_id": CALL, "reason": "oom_call", "message": "It was killed.", "suggestions": ["a"]}
    State.open(environment).keep_last("s-1", told)
    text, data = use(server(environment), "explain_last_call")
    assert text == f"Call {CALL}, reason oom_call: It was killed."
    assert data == {"call_id": CALL, "reason": "oom_call", "summary": "It was killed.", "suggestions": ["a"]}
    State.open(environment).keep_last("s-1", {"state": "refused", "code": "budget_exhausted", "message": "Used up."})
    text, _ = use(server(environment), "explain_last_call")
    assert text == "Call (not started), reason budget_exhausted: Used up."
    assert use(server(environment), "explain_last_call", call_id="c-../x")[1] is None
    assert use(server(environment), "explain_last_call", call=CALL)[1] is None


def test_the_program() -> None:
    ping = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'
    done = subprocess.run([sys.executable, "-m", "agentd.mcp"], input=ping, capture_output=True, check=True, timeout=30)
    assert (json.loads(done.stdout), done.stderr) == ({"jsonrpc": "2.0", "id": 1, "result": {}}, b"")
    done = subprocess.run([sys.executable, "-m", "agentd.mcp", "--x"], capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stderr.startswith(b"usage: corral-mcp")) == (2, True)
