"""``corral trace`` without bcc: what the worker says, how it ends, what a client gets. Workers here are scripts."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from agentd.api.client import ApiError, connect
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.trace import Event, Notice, Table, TraceError, Tracer, tracer, worker
from agentd.trace.tracer import Line
from controller.model import CallState
from tests.unit.api_fake import Served, serve

EVENT = {"tool": "files", "at": 12.5, "pid": 7, "command": "sh", "text": "/etc/passwd", "value": 3.0}
TABLE = {"tool": "syscalls", "columns": ["SYSCALL", "TIMES"], "rows": [["read", "3"]]}
# until it is told to end
WAITS = """
import json, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print(json.dumps({"ready": ["files"]}), flush=True)
signal.sigwait([signal.SIGTERM])
print(json.dumps({"table": %r}), flush=True)
"""


def script(directory: Path, text: str) -> Tracer:
    path = directory / "worker.py"
    path.write_text(text)
    return Tracer(python=sys.executable, worker=path)


def says(*lines: Any, status: int = 0) -> str:
    printed = "\n".join(f"print({line if isinstance(line, str) else json.dumps(line)!r})" for line in lines)
    return f"import sys\n{printed}\nsys.exit({status})\n"


async def everything(traced: Tracer, ended: asyncio.Event | None = None) -> list[Line]:
    found = traced.trace(Path("/none"), tools=["files"], seconds=5.0, ended=ended or asyncio.Event())
    async with aclosing(found) as lines:
        return [line async for line in lines]


async def test_lines_become_events_tables_and_notices(tmp_path: Path) -> None:
    lines = [{"ready": ["files", "offcpu"]}, {"event": EVENT}, {"notice": "lost 3"}, {"table": TABLE}]
    assert await everything(script(tmp_path, says(*lines))) == [
        Notice("tracing files, offcpu"),
        Event(tool="files", at=12.5, pid=7, command="sh", text="/etc/passwd", value=3.0),
        Notice("lost 3"),
        Table(tool="syscalls", columns=("SYSCALL", "TIMES"), rows=(("read", "3"),)),
    ]


@pytest.mark.parametrize(
    "nonsense", ["'not json'", {"event": {}}, {"event": 3}, [], {"later": 1}, {"table": {"tool": 1}}, {"ready": 4}]
)
async def test_what_is_not_understood_costs_only_itself(tmp_path: Path, nonsense: Any) -> None:
    assert await everything(script(tmp_path, says(nonsense, {"notice": "after"}))) == [Notice("after")]


async def test_a_worker_that_dies_says_so(tmp_path: Path) -> None:
    dying = "import sys; print('no such helper', file=sys.stderr); sys.exit(9)"
    assert await everything(script(tmp_path, dying)) == [Notice("the tracing worker ended with 9: no such helper")]
    assert await everything(script(tmp_path, says({"notice": "no headers"}, status=3))) == [Notice("no headers")]


async def test_the_end_of_the_call_brings_the_tables(tmp_path: Path) -> None:
    ended = asyncio.Event()
    found = script(tmp_path, WAITS % TABLE).trace(Path("/x"), tools=["files"], seconds=60.0, ended=ended)
    async with aclosing(found) as lines:
        assert await anext(lines) == Notice("tracing files")
        ended.set()
        (table,) = [line async for line in lines]
    assert isinstance(table, Table)


async def test_leaving_ends_the_worker_and_frees_its_place(tmp_path: Path) -> None:
    traced = script(tmp_path, WAITS % TABLE)
    before = set(psutil.Process().children())
    open_ = [traced.trace(Path("/x"), tools=[], seconds=60.0, ended=asyncio.Event()) for _ in range(2)]
    for lines in open_:
        await anext(lines)
    assert len(set(psutil.Process().children()) - before) == 2
    with pytest.raises(TraceError, match="2 calls are being traced"):
        await everything(traced)
    for lines in open_:
        await lines.aclose()
    assert set(psutil.Process().children()) == before
    lines = traced.trace(Path("/x"), tools=[], seconds=60.0, ended=asyncio.Event())
    assert await anext(lines) == Notice("tracing files")
    await traced.close()
    assert [line async for line in lines] == [Notice("the tracing worker ended with -9: it said nothing")]
    assert set(psutil.Process().children()) == before


async def test_a_worker_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracer, "PATIENCE", 0.1)
    stubborn = """
import signal
signal.signal(signal.SIGTERM, lambda *_: None)
print('{"ready": ["files"]}', flush=True)
while True:
    signal.pause()
"""
    ended = asyncio.Event()
    found = script(tmp_path, stubborn).trace(Path("/x"), tools=[], seconds=60.0, ended=ended)
    async with aclosing(found) as lines:
        await anext(lines)
        ended.set()
        assert [line async for line in lines] == [Notice("the tracing worker ended with -9: it said nothing")]


async def test_without_a_system_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentd.trace.tracer.shutil.which", lambda *_, **__: None)
    with pytest.raises(TraceError, match="python3-bpfcc"):
        await everything(Tracer())
    with pytest.raises(TraceError, match="No such file"):
        await everything(Tracer(python="/none/python3"))


def test_what_is_missing_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentd.trace.worker.os.geteuid", lambda: 1000)
    with pytest.raises(worker.Unable, match="only root"):
        worker.check()
    monkeypatch.setattr("agentd.trace.worker.os.geteuid", lambda: 0)
    monkeypatch.setattr("agentd.trace.worker.importlib.util.find_spec", lambda _: None)
    with pytest.raises(worker.Unable, match="apt-get install python3-bpfcc"):
        worker.check()
    monkeypatch.setattr("agentd.trace.worker.importlib.util.find_spec", lambda _: True)
    monkeypatch.setattr("agentd.trace.worker.platform.release", lambda: "9.9.9-none")
    with pytest.raises(worker.Unable, match=r"apt-get install linux-headers-9\.9\.9-none"):
        worker.check()


def test_a_call_that_opens_paths_without_end_takes_no_memory_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MAX_PATHS", 3)
    seen: dict[tuple[str, int], int] = {}
    assert [worker.count(seen, path, 0) for path in ("a", "b", "a", "c", "d", "e", "d", "c")] == [
        *(True, True, False, True, False, False, False, False)
    ]
    assert seen == {("a", 0): 2, ("b", 0): 1, ("c", 0): 2, worker.OTHERS: 3}


def test_quantiles_are_the_bounds_of_powers_of_two() -> None:
    class Sum:
        def __init__(self, count: int) -> None:
            self.count = count

    slots = [(12, Sum(1)), (3, Sum(50)), (4, Sum(49))]
    assert worker._quantile(slots, 0.5) == 8.0
    assert worker._quantile(slots, 0.99) == 16.0
    assert worker._quantile(slots, 1.0) == 4096.0


# --- over the API


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path, traced=script(tmp_path, WAITS % TABLE)) as it:
        yield it


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (pb.TraceRequest(tools=["strace"]), "tools: no such tool"),
        (pb.TraceRequest(seconds=601), "seconds: 601 s"),
        (pb.TraceRequest(seconds=-1), "seconds: -1 s"),
        (pb.TraceRequest(seconds=float("nan")), "seconds: nan s"),
        (pb.TraceRequest(call_id="../x"), "call_id"),
        (pb.TraceRequest(call_id=""), "call_id"),
    ],
)
async def test_what_makes_no_sense_is_refused(served: Served, request_: pb.TraceRequest, said: str) -> None:
    async with connect(served.operator) as api:
        with pytest.raises(ApiError, match=said):
            await anext(api.stream(api.operator.Trace, request_))


async def test_a_trace_ends_with_its_call(served: Served) -> None:
    session, _ = served.host.add_session("acme")
    call = served.host.add_call(session)
    async with connect(served.operator) as api:
        stream = api.stream(api.operator.Trace, pb.TraceRequest(call_id=call.id))
        assert (await anext(stream)).notice == "tracing files"
        served.host.calls[call.id] = gone = replace(call, state=CallState.ENDED)
        served.host.hub.publish(gone)
        rest = [update async for update in stream]
    assert [update.WhichOneof("update") for update in rest] == ["table"]
    async with connect(served.operator) as api:
        with pytest.raises(ApiError, match="is ended; trace a call while it runs"):
            await anext(api.stream(api.operator.Trace, pb.TraceRequest(call_id=call.id)))
