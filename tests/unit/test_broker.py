"""The broker over a real socket, with a handler that only records: honest peers, careless ones, hostile ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agentd import wire
from agentd.broker import Broker, Granted, Link, Peer
from agentd.broker.connection import code_of
from controller.model import InvalidRequest, NotFound, Refused, new_call_id, new_session_id
from tests.unit.broker_client import BEGIN, Client, Clients, shrunk
from tests.unit.broker_handler import Recorder, granted

BEARER = "a-session-s-token"


@pytest.fixture
def handler() -> Recorder:
    return Recorder()


@pytest.fixture
async def broker(tmp_path: Path, handler: Recorder) -> AsyncIterator[Broker]:
    made = Broker(tmp_path / "broker.sock", handler, begin_timeout=30.0)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def connect(broker: Broker) -> Iterator[Clients]:
    clients = Clients(broker.path)
    yield clients
    clients.close()


def open_files() -> set[str]:
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.add(str(descriptor.readlink()))
    return found


async def test_begin_to_outcome(connect: Clients, handler: Recorder) -> None:
    handler.outcome = ("braked", "stopped at 100 MiB")
    client = connect()
    client.begin(wire.encode(wire.Begin(argv=("make", "-j"), token=BEARER)))
    call_id = await client.granted()
    peer, begin = handler.begins[0]
    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.getuid(), os.getgid())
    assert peer.pidfd_pid == os.getpid()
    assert begin.argv == ("make", "-j")
    assert begin.token == BEARER
    client.send(wire.End(wait_status=256, want=True))
    assert await client.receive() == wire.OutcomeReply(reason="braked", paragraph="stopped at 100 MiB")
    assert await client.receive() is None
    assert await handler.next("ended") == ("ended", call_id, 256, True)
    assert handler.events.empty(), "no hang-up is reported after an END"


async def test_end_without_want_is_not_answered(connect: Clients, handler: Recorder) -> None:
    client = connect()
    client.begin()
    call_id = await client.granted()
    client.send(wire.End(wait_status=0, want=False))
    client.close()
    assert await handler.next("ended") == ("ended", call_id, 0, False)


async def test_the_pidfd_lives_as_long_as_the_request_and_no_longer(
    connect: Clients, handler: Recorder, broker: Broker
) -> None:
    seen: list[int] = []

    async def look(peer: Peer, begin: wire.Begin, link: Link) -> Granted | None:
        assert peer.pidfd is not None
        os.fstat(peer.pidfd)
        seen.append(peer.pidfd)
        return None

    handler.on_begin = look
    client = connect()
    client.begin()
    await client.granted()
    client.send(wire.End(wait_status=0, want=True))
    await client.receive()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(seen[0])


async def test_messages_pushed_to_the_launcher(connect: Clients, handler: Recorder) -> None:
    go = asyncio.Event()

    async def queue(peer: Peer, begin: wire.Begin, link: Link) -> Granted | None:
        link.queued(12.5, "4 calls are ahead")
        await go.wait()
        link.acted()  # before the grant: it must not be lost
        return None

    handler.on_begin = queue
    client = connect()
    client.begin()
    assert await client.receive() == wire.Queued(eta=12.5, message="4 calls are ahead")
    go.set()
    call_id = await client.granted()
    assert await client.receive() == wire.Acted()
    link = handler.links[call_id]
    link.acted()
    link.queued(None, "too late")
    client.send(wire.End(wait_status=0, want=True))
    assert isinstance(await client.receive(), wire.OutcomeReply), "ACTED is said once, QUEUED not after the grant"
    assert await client.receive() is None
    assert link.closed
    link.acted()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("over budget", code="budget_exhausted", remedy="wait"), "budget_exhausted"),
        (NotFound("no such session", field="session"), "not_found"),
        (InvalidRequest("too much", field="intent.cpu"), "invalid_request"),
    ],
)
async def test_a_refusal_carries_code_and_text(
    connect: Clients, handler: Recorder, error: Refused | NotFound | InvalidRequest, code: str
) -> None:
    async def refuse(peer: Peer, begin: wire.Begin, link: Link) -> Granted | None:
        raise error

    handler.on_begin = refuse
    client = connect()
    client.begin()
    assert await client.refused() == wire.Refused(code=code, message=str(error))
    assert code_of(error) == code


async def test_a_defect_of_the_handler_is_answered_and_the_broker_lives(connect: Clients, handler: Recorder) -> None:
    async def fail(peer: Peer, begin: wire.Begin, link: Link) -> Granted | None:
        raise KeyError("a bug")

    handler.on_begin = fail
    client = connect()
    client.begin()
    answer = await client.refused()
    assert answer.code == "internal"
    assert "a bug" not in answer.message, "a peer learns nothing of the daemon's inside"
    handler.on_begin = None
    client = connect()
    client.begin()
    await client.granted()
    handler.outcome_error = KeyError("another")
    client.send(wire.End(wait_status=9, want=True))
    assert (await client.refused()).code == "internal"


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"GET / HTTP/1.1\r\n\r\n",
        BEGIN[:-1],
        BEGIN + b"\1",
        struct.pack("<4sHH", b"CRL1", 77, 0),
        wire.encode(wire.End(wait_status=0, want=True)),
        wire.encode(wire.Grant(call_id=new_call_id(), enforced=True)),
        wire.encode(wire.Ok()),
        b"CRL1" + bytes(70_000),
    ],
    ids=["byte", "http", "cut", "tail", "type", "end-first", "grant", "ok", "oversize"],
)
async def test_garbage_is_refused_and_nothing_begins(connect: Clients, handler: Recorder, data: bytes) -> None:
    client = connect()
    client.send(data)
    assert (await client.refused()).code == "protocol"
    assert not handler.begins
    honest = connect()
    honest.begin()
    await honest.granted()


async def test_a_bad_request_is_told_from_a_bad_packet(connect: Clients, handler: Recorder) -> None:
    client = connect()
    client.begin(BEGIN + struct.pack("<HHId", wire.Tag.CPU, 0, 8, -3.0))
    answer = await client.refused()
    assert answer.code == "invalid_request"
    assert "intent.cpu" in answer.message
    assert not handler.begins


async def test_begin_twice_is_a_hang_up(connect: Clients, handler: Recorder) -> None:
    client = connect()
    client.begin()
    call_id = await client.granted()
    client.begin()
    assert (await client.refused()).code == "protocol"
    assert await handler.next("hung_up") == ("hung_up", call_id)


async def test_resume_and_end_may_come_together(connect: Clients, handler: Recorder) -> None:
    call_id = new_call_id()
    handler.outcome = ("failed", "text")
    client = connect()
    client.send_with_pidfd(wire.Resume(call_id=call_id))
    client.send(wire.End(wait_status=256, want=True))
    assert await client.receive() == wire.Ok()
    assert isinstance(await client.receive(), wire.OutcomeReply)
    assert await handler.next("resume") == ("resume", call_id, os.getpid())
    assert await handler.next("ended") == ("ended", call_id, 256, True)


async def test_a_launcher_that_resumes_ends_and_leaves_is_heard_out(connect: Clients, handler: Recorder) -> None:
    call_id = new_call_id()
    client = connect()
    client.send_with_pidfd(wire.Resume(call_id=call_id))
    client.send(wire.End(wait_status=0, want=False))
    client.close()
    assert await handler.next("resume") == ("resume", call_id, os.getpid())
    assert await handler.next("ended") == ("ended", call_id, 0, False)


async def test_resume_may_come_without_a_pidfd(connect: Clients, handler: Recorder) -> None:
    call_id = new_call_id()
    client = connect()
    client.send(wire.Resume(call_id=call_id))
    assert await client.receive() == wire.Ok()
    assert await handler.next("resume") == ("resume", call_id, None)
    client.close()
    assert await handler.next("hung_up") == ("hung_up", call_id)


async def test_open_and_enter_on_one_connection(connect: Clients, handler: Recorder) -> None:
    client = connect()
    client.send(wire.Open(tenant="acme", name="nightly"))
    opened = await client.receive()
    assert isinstance(opened, wire.Opened)
    client.send_with_pidfd(wire.Enter(token=opened.token))
    assert await client.receive() == wire.Ok()
    assert await handler.next("enter") == ("enter", os.getpid(), None, opened.token)
    client.send(wire.Close(token=opened.token, kill=True))
    assert await client.receive() == wire.Ok()
    assert await handler.next("close") == ("close", opened.token, True)


async def test_suggestions_come_with_the_outcome(connect: Clients, handler: Recorder) -> None:
    handler.outcome, handler.suggestions = ("oom_call", "It was killed."), ("use less", "declare more")
    client = connect()
    client.begin()
    await client.granted()
    client.send(wire.End(wait_status=9, want=True))
    assert await client.receive() == wire.OutcomeReply(
        reason="oom_call", paragraph="It was killed.", suggestions=("use less", "declare more")
    )


async def test_a_flood_behind_a_request_is_dropped(connect: Clients, handler: Recorder) -> None:
    async def forever(peer: Peer, begin: wire.Begin, link: Link) -> Granted | None:
        link.queued(None, "full")
        await asyncio.Event().wait()
        return None

    handler.on_begin = forever
    client = connect()
    client.begin()
    assert isinstance(await client.receive(), wire.Queued)
    for _ in range(6):
        client.send_with_pidfd(BEGIN)
    assert (await client.refused()).code == "protocol"
    await handler.next("cancelled")


async def test_hang_up_in_the_queue_cancels_the_begin(connect: Clients, handler: Recorder, broker: Broker) -> None:
    async def forever(peer: Peer, begin: wire.Begin, link: Link) -> Granted | None:
        link.queued(None, "full")
        await asyncio.Event().wait()
        return None

    handler.on_begin = forever
    client = connect()
    client.begin()
    assert isinstance(await client.receive(), wire.Queued)
    client.close()
    await handler.next("cancelled")
    assert broker.connections == 0


async def test_a_grant_that_nobody_waits_for_is_reported(connect: Clients, handler: Recorder) -> None:
    started = asyncio.Event()

    async def stubborn(peer: Peer, begin: wire.Begin, link: Link) -> Granted | None:
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return granted()

    handler.on_begin = stubborn
    client = connect()
    client.begin()
    await started.wait()
    client.close()
    begun = await handler.next("begin")
    assert await handler.next("hung_up") == ("hung_up", begun[1])


async def test_hang_up_of_a_running_call(connect: Clients, handler: Recorder) -> None:
    client = connect()
    client.begin()
    call_id = await client.granted()
    client.close()
    assert await handler.next("hung_up") == ("hung_up", call_id)


async def test_a_launcher_that_leaves_before_it_reads_acted_has_ended_all_the_same(
    connect: Clients, handler: Recorder
) -> None:
    """The kernel tells of what it left unread before it hands out its END."""
    client = connect()
    client.begin()
    call_id = await client.granted()
    assert await handler.next("begin") == ("begin", call_id)
    handler.links[call_id].acted()
    client.send(wire.End(wait_status=0, want=False))
    client.close()
    assert await handler.events.get() == ("ended", call_id, 0, False)


async def test_a_launcher_that_has_left_when_acted_is_told_has_ended_all_the_same(
    connect: Clients, handler: Recorder
) -> None:
    client = connect()
    client.begin()
    call_id = await client.granted()
    assert await handler.next("begin") == ("begin", call_id)
    client.send(wire.End(wait_status=0, want=False))
    client.close()
    handler.links[call_id].acted()  # the broker has not come to read the END yet
    assert await handler.events.get() == ("ended", call_id, 0, False)


async def test_hang_up_while_its_end_is_handled_is_none(connect: Clients, handler: Recorder, broker: Broker) -> None:
    handler.outcome_gate = asyncio.Event()
    client = connect()
    client.begin()
    call_id = await client.granted()
    client.send(wire.End(wait_status=9, want=True))
    assert await handler.next("ended") == ("ended", call_id, 9, True)
    client.close()
    await shrunk(broker, 0)
    handler.outcome_gate.set()
    await broker.close()
    assert handler.events.empty()


async def test_closing_the_broker_ends_no_call(tmp_path: Path, handler: Recorder) -> None:
    broker = Broker(tmp_path / "b.sock", handler)
    await broker.start()
    client = Client(broker.path)
    client.begin()
    await client.granted()
    await handler.next("begin")
    await broker.close()
    assert await client.receive() is None
    assert handler.events.empty()
    assert not broker.path.exists()
    client.close()


async def test_pidfds_are_checked(connect: Clients, handler: Recorder) -> None:
    client = connect()
    client.send(BEGIN)
    assert "without a pidfd" in (await client.refused()).message
    client = connect()
    client.send_with_pidfd(BEGIN, os.getppid())
    assert "names process" in (await client.refused()).message
    client = connect()
    with open("/dev/null") as null:
        client.send(BEGIN, null.fileno())
    assert "is no pidfd" in (await client.refused()).message
    assert not handler.begins


async def test_smuggled_descriptors_are_closed(connect: Clients, handler: Recorder, tmp_path: Path) -> None:
    smuggled = tmp_path / "smuggled"
    smuggled.write_text("x")
    fds = [os.open(smuggled, os.O_RDONLY) for _ in range(50)]
    client, flood = connect(), connect()
    client.send(BEGIN, *fds)
    flood.send(b"", fds[0])  # an empty packet can carry descriptors, too
    for fd in fds:
        os.close(fd)
    assert "descriptors" in (await client.refused()).message
    await flood.refused()
    assert str(smuggled) not in open_files()
    assert not handler.begins


async def test_the_socket_of_a_process_that_ended_is_no_identity(broker: Broker, handler: Recorder) -> None:
    client = Client.__new__(Client)
    client.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            client.sock.connect(os.fspath(broker.path))
        os._exit(0)
    pidfd = os.pidfd_open(child)
    await asyncio.to_thread(os.waitpid, child, 0)
    client.sock.setblocking(False)
    client.send(BEGIN, pidfd)
    os.close(pidfd)
    assert (await client.refused()).code == "protocol"
    client.close()
    assert not handler.begins


async def test_session_ids_are_checked_before_the_handler(connect: Clients, handler: Recorder) -> None:
    client = connect()
    client.send_with_pidfd(wire.Enter(session=new_session_id()))
    assert await client.receive() == wire.Ok()
    client.send_with_pidfd(struct.pack("<4sHHHHI3s", b"CRL1", wire.Type.ENTER, 0, wire.Tag.SESSION, 0, 3, b"../"))
    assert (await client.refused()).code == "invalid_request"
