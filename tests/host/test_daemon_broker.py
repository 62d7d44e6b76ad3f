"""Hostile and broken peers at the real daemon's broker, while calls go on working beside them."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from agentd import wire
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.host.daemon_tools import (
    NOBODY,
    WITHIN,
    end,
    go,
    leaves,
    line,
    live_call,
    load_program,
    one_daemon,
    soon,
)
from tests.support.daemons import REPOSITORY, DaemonUnderTest, Session
from tests.support.reach import skip_unless_others_can_reach_us

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]
PIPE = asyncio.subprocess.PIPE
CONNECTS = 10_000
BATCH = 250


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon() -> AsyncIterator[DaemonUnderTest]:
    tenants = {"acme": {"uids": [NOBODY]}, "other": {}}
    async with one_daemon(tenants=tenants, settings={"broker": {"begin_timeout": "500ms"}}) as started:
        before = await _descriptors(started)
        yield started
        await soon("no leaf is left", lambda: not leaves(started))
        await soon("no descriptor is left", lambda: _count(started) <= before)


def _count(daemon: DaemonUnderTest) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


async def _descriptors(daemon: DaemonUnderTest) -> int:
    """With everything made that is made on first use: the API's connection, one call's way, the ledger's reader."""
    session = await daemon.open_session("acme")
    assert (await daemon.call(session, load_program(), "exit:0"))[0] == 0
    await daemon.history(session, ended=1)
    await soon("no leaf is left", lambda: not leaves(daemon))
    return _count(daemon) + 2


@contextlib.contextmanager
def peer(daemon: DaemonUnderTest) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.setblocking(False)
        sock.connect(str(daemon.broker_socket))
        yield sock


async def receive(sock: socket.socket) -> wire.Message | None:
    """The daemon's next message; None when it hung up."""
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(WITHIN):
            packet = await asyncio.get_running_loop().sock_recv(sock, wire.MAX_MESSAGE)
        return wire.decode(packet) if packet else None
    return None


async def ask(sock: socket.socket, packet: bytes, *descriptors: int) -> wire.Message | None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())] if descriptors else []
    sock.sendmsg([packet], rights)
    return await receive(sock)


async def works(daemon: DaemonUnderTest, session: Session) -> None:
    assert (await daemon.call(session, load_program(), "say:works"))[:2] == (0, "works\n")


# --- who -------------------------------------------------------------------------------------------------------------


async def test_a_token_is_good_for_its_own_user_only(daemon: DaemonUnderTest) -> None:
    skip_unless_others_can_reach_us()
    mine, theirs = await daemon.open_session("acme"), await daemon.open_session("acme", uid=NOBODY)
    await works(daemon, theirs)
    for stolen in ({"CORRAL_TOKEN": mine.token}, {"CORRAL_TOKEN": "", "CORRAL_SESSION": mine.id}):
        environment = {"CORRAL_SESSION": mine.id, **stolen}
        process = await daemon.launch(theirs, load_program(), "say:ran", environment=environment)
        status, out, err = await end(process)
        assert (status, out) == (125, "")
        assert "refused" in err
        assert "session" in err
    assert mine.token not in daemon.log_file.read_text()


async def test_tokens_that_are_no_longer_or_never_were(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    await works(daemon, session)
    close = pb.CloseSessionRequest(session_id=session.id)
    await daemon.client.call(daemon.client.agent.CloseSession, close)
    for token in (session.token, secrets.token_urlsafe(24), "x", "\N{SNOWMAN}" * 40, "y" * 256):
        environment = {"CORRAL_TOKEN": token, "CORRAL_SESSION": ""}
        process = await daemon.launch(session, load_program(), "say:ran", environment=environment)
        status, out, err = await end(process)
        assert (status, out) == (125, ""), token
        assert "open a session" in err or "token" in err, err


async def test_sessions_of_other_tenants_cannot_be_opened(daemon: DaemonUnderTest) -> None:
    skip_unless_others_can_reach_us()
    theirs = await daemon.open_session("acme", uid=NOBODY)
    for tenant in ("other", "unheard-of"):
        code = (
            "import sys; from agentd.cli.broker import open_session; from agentd.cli.errors import CliError\n"
            f"try: print(open_session({str(daemon.broker_socket)!r}, {tenant!r}, 'x'))\n"
            "except CliError as err: sys.exit(str(err))"
        )
        process = await asyncio.create_subprocess_exec(
            *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable, "-c", code),
            stdout=PIPE,
            stderr=PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *(p for p in sys.path if p)]),
                "HOME": "/",
            },
        )
        status, out, err = await end(process)
        if "Permission denied" in err and "agentd" not in err:
            pytest.skip(f"the checkout cannot be read by other users: {err}")
        assert (status, out) == (1, "")
        assert f"user {NOBODY} may not open sessions of tenant" in err
    await works(daemon, theirs)


async def test_nobody_takes_over_a_call_that_is_not_his(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    process = await daemon.launch(session, load_program(), "say:here", "wait", stdin=PIPE)
    assert await line(process) == "here"
    call = await live_call(daemon, session)
    resume = wire.encode(wire.Resume(call_id=call.id))
    pidfd = os.pidfd_open(os.getpid())
    try:
        with peer(daemon) as sock:
            answer = await ask(sock, resume, pidfd)  # a process of ours, but not the call's
        assert isinstance(answer, wire.Refused)
        with peer(daemon) as sock:
            # a pidfd of another process than the one that connects
            other = os.pidfd_open(process.pid)
            try:
                answer = await ask(sock, wire.encode(wire.Begin(argv=("x",), token=session.token)), other)
            finally:
                os.close(other)
        assert isinstance(answer, wire.Refused)
        assert "names process" in answer.message
    finally:
        os.close(pidfd)
    assert [c.id for c in (await daemon.snapshot()).calls if c.session_id == session.id] == [call.id]
    go(process)
    assert await end(process) == (0, "", "")


# --- what ------------------------------------------------------------------------------------------------------------


async def test_garbage_is_refused_in_words(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    begin = wire.encode(wire.Begin(argv=("x",), token=session.token))
    packets = [
        b"\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"CRL1" + b"\xff" * 200,
        begin[:-1],
        begin + b"\0",
        wire.encode(wire.End(wait_status=0, want=True)),
        wire.encode(wire.Ok()),
        begin,  # complete, but without its pidfd
        *(secrets.token_bytes(size) for size in (4, 8, 64, 4096, wire.MAX_MESSAGE)),
    ]
    for packet in packets:
        with peer(daemon) as sock:
            answer = await ask(sock, packet)
            assert isinstance(answer, wire.Refused), packet[:40]
            assert answer.message
            assert await receive(sock) is None, "and it hangs up"
    await works(daemon, session)
    assert not [c for c in (await daemon.snapshot()).calls if c.session_id == session.id]


async def test_descriptors_that_nobody_asked_for(daemon: DaemonUnderTest) -> None:
    """Many, or of the wrong kind: none stays open in the daemon (the module's fixture counts them)."""
    session = await daemon.open_session("acme")
    begin = wire.encode(wire.Begin(argv=("x",), token=session.token))
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        for descriptors in ([null], [null] * 2, [null] * 100):
            with peer(daemon) as sock:
                assert isinstance(await ask(sock, begin, *descriptors), wire.Refused)
    finally:
        os.close(null)
    await works(daemon, session)


async def test_silent_connections_are_closed_and_hold_nobody_up(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(peer(daemon)) for _ in range(500)]
        for _ in range(3):
            await works(daemon, session)
        for sock in silent:
            answer = await receive(sock)
            assert isinstance(answer, wire.Refused)
            assert answer.code == "timeout"
            assert await receive(sock) is None


async def test_ten_thousand_connects(daemon: DaemonUnderTest) -> None:
    session = await daemon.open_session("acme")
    quiet = await daemon.launch(session, load_program(), "say:here", "wait", stdin=PIPE)
    assert await line(quiet) == "here"
    for batch in range(CONNECTS // BATCH):
        with contextlib.ExitStack() as stack:
            for _ in range(BATCH):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                sock.setblocking(False)
                while True:
                    try:
                        sock.connect(str(daemon.broker_socket))
                    except BlockingIOError:  # the backlog is full: the daemon has to come to it
                        await asyncio.sleep(0.001)
                    else:
                        break
        if batch % 8 == 0:
            await works(daemon, session)
    go(quiet)
    assert await end(quiet) == (0, "", "")
    snapshot = await daemon.snapshot()
    assert not [c for c in snapshot.calls if c.session_id == session.id]
