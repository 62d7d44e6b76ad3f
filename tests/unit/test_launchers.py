"""Who a launcher is: by token, by the session that it names, by its cgroup, by its user; and every refusal."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable

import pytest

from agentd.broker import Peer
from agentd.launchers import Launchers
from agentd.wire import Begin
from controller.backend import Whose
from controller.config import HostConfig, TenantConfig
from controller.host import Host
from controller.model import (
    CallId,
    CgroupError,
    ControllerError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    SessionId,
    new_call_id,
    new_session_id,
)
from tests.support.backend import FixedReader, RecordingBackend, RecordingJournal

PID = os.getpid()  # a process that /proc knows
ALICE, BOB, STRANGER = 1000, 1001, 1002


class Link:
    """What the broker gives to the handler."""

    def __init__(self) -> None:
        self.closed = False
        self.news: list[str] = []
        self.acts = 0

    def queued(self, eta: float | None, message: str) -> None:
        self.news.append(message)

    def acted(self) -> None:
        self.acts += 1


class PlacedBackend(RecordingBackend):
    """``places``: in which session and call a process is."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[int, Whose] = {}

    def whose(self, pid: int) -> Whose:
        return self.places.get(pid, Whose())


class Rig:
    def __init__(self, *, default_tenant: str | None = None) -> None:
        self.backend = PlacedBackend()
        config = HostConfig(
            tenants=(
                TenantConfig(name="acme", uids=frozenset({ALICE})),
                TenantConfig(name="other", uids=frozenset({BOB})),
            ),
            default_tenant=default_tenant,
        )
        self.host = Host(config, self.backend, RecordingJournal(), FixedReader())
        self.launchers = Launchers(self.host)
        self.link = Link()

    def session(self, uid: int = ALICE, tenant: str = "acme") -> tuple[SessionId, str]:
        view, token = self.host.open_session(tenant=tenant, name="agent", uid=uid, labels={})
        return view.id, token

    async def begin(self, uid: int, *, pid: int = PID, token: str = "", session: str = "") -> CallId:
        begin = Begin(argv=("tool",), token=token, session=session)
        return CallId((await self.launchers.begin(Peer(pid=pid, uid=uid, gid=uid), begin, self.link)).call_id)

    def session_of(self, call_id: CallId) -> SessionId:
        return self.host.registry.call(call_id).session.id


MakeRig = Callable[..., Rig]


@pytest.fixture
async def rigs() -> AsyncIterator[MakeRig]:
    made: list[Rig] = []

    def make(*, default_tenant: str | None = None) -> Rig:
        rig = Rig(default_tenant=default_tenant)
        rig.host.start()
        made.append(rig)
        return rig

    yield make
    for rig in made:
        await rig.host.stop()


@pytest.fixture
async def rig(rigs: MakeRig) -> Rig:
    return rigs()


async def test_the_token_comes_first(rig: Rig) -> None:
    named, token = rig.session()
    inside, _ = rig.session()
    rig.backend.places[PID] = Whose(inside)
    assert rig.session_of(await rig.begin(ALICE, token=token)) == named
    assert rig.session_of(await rig.begin(ALICE, token=token, session=named)) == named
    assert rig.session_of(await rig.begin(0, token=token)) == named  # root may act for everyone


async def test_then_the_session_that_is_named(rig: Rig) -> None:
    named, _ = rig.session()
    inside, _ = rig.session()
    rig.backend.places[PID] = Whose(inside)
    assert rig.session_of(await rig.begin(ALICE, session=named)) == named


async def test_then_the_one_inside_which_it_runs(rig: Rig) -> None:
    """Proven by the kernel: even another user's process (a tool that changed its uid) belongs there."""
    inside, _ = rig.session()
    rig.backend.places[PID] = Whose(inside)
    assert rig.session_of(await rig.begin(ALICE)) == inside
    assert rig.session_of(await rig.begin(STRANGER)) == inside
    assert rig.session_of(await rig.begin(STRANGER, session=inside)) == inside


async def test_then_one_of_its_user_which_ends_some_time_after_its_calls(rig: Rig) -> None:
    first = await rig.begin(ALICE)
    second = await rig.begin(ALICE)
    opened = rig.session_of(first)
    assert rig.session_of(second) == opened
    assert not rig.host.registry.sessions[opened].managed
    for call_id in (first, second):
        rig.backend.leaves[call_id].pids.clear()
        await rig.launchers.ended(call_id, 0, True)
    session = rig.host.registry.sessions[opened]
    rig.host.sessions.sweep()
    assert opened in rig.host.registry.sessions, "its user's next call may come at once"
    assert session.idle_since is not None
    session.idle_since -= 3600
    rig.host.sessions.sweep()
    assert opened not in rig.host.registry.sessions


async def test_the_default_tenant_takes_strangers(rigs: MakeRig) -> None:
    rig = rigs(default_tenant="everyone")
    assert rig.host.registry.call(await rig.begin(STRANGER)).tenant.name == "everyone"


async def test_a_call_inside_a_call_knows_its_parent(rig: Rig) -> None:
    _, token = rig.session()
    outer = await rig.begin(ALICE, token=token)
    rig.backend.places[PID] = Whose(rig.session_of(outer), outer)
    assert rig.host.registry.call(await rig.begin(ALICE)).parent_id == outer
    assert rig.host.registry.call(await rig.begin(ALICE, token=token)).parent_id == outer
    _, other = rig.session()
    assert rig.host.registry.call(await rig.begin(ALICE, token=other)).parent_id is None  # of another session
    rig.backend.places[PID] = Whose(rig.session_of(outer), new_call_id())  # one that has ended meanwhile
    assert rig.host.registry.call(await rig.begin(ALICE)).parent_id is None


async def test_refusals(rig: Rig) -> None:
    mine, token = rig.session()
    other, _ = rig.session()
    closed, stale = rig.session()
    await rig.host.close_session(closed, kill=False)
    cases: list[tuple[type[ControllerError], str, Callable[[], object]]] = [
        (NotAllowed, "pid namespace", lambda: rig.begin(ALICE, pid=0, token=token)),
        (NotAllowed, "not one of an open session", lambda: rig.begin(ALICE, token=f"{token}x")),
        (NotAllowed, "not one of an open session", lambda: rig.begin(ALICE, token=stale)),
        (NotAllowed, f"the caller is user {BOB}", lambda: rig.begin(BOB, token=token)),
        (InvalidRequest, "token is of another session", lambda: rig.begin(ALICE, token=token, session=other)),
        (NotFound, "no session", lambda: rig.begin(BOB, session=mine)),
        (NotFound, "no session", lambda: rig.begin(ALICE, session=closed)),
        (NotFound, "no session", lambda: rig.begin(ALICE, session=new_session_id())),
        (NotAllowed, "belongs to no tenant", lambda: rig.begin(STRANGER)),
    ]
    for kind, says, attempt in cases:
        with pytest.raises(kind, match=says) as caught:
            await attempt()  # type: ignore[misc]  # each returns a coroutine
        assert caught.value.remedy
    assert not rig.backend.leaves
    assert not rig.host.registry.calls


async def test_an_expired_token(rig: Rig) -> None:
    session, token = rig.session()
    rig.host.registry.sessions[session].token_expires = 1.0
    with pytest.raises(NotAllowed, match="has expired"):
        await rig.begin(ALICE, token=token)


async def test_a_session_that_is_being_closed_takes_no_call_inside_it(rig: Rig) -> None:
    inside, _ = rig.session()
    rig.host.registry.sessions[inside].closing = True
    rig.backend.places[PID] = Whose(inside)
    assert rig.session_of(await rig.begin(ALICE)) != inside


async def test_a_child_that_cannot_be_placed_leaves_no_call(rig: Rig) -> None:
    _, token = rig.session()
    rig.backend.fail_place = CgroupError("it has ended", remedy="try again")
    with pytest.raises(CgroupError):
        await rig.begin(ALICE, token=token)
    assert not rig.host.registry.calls


async def test_sessions_are_opened_for_their_own_users_only(rig: Rig) -> None:
    async def opens(uid: int, tenant: str) -> str:
        session, _ = await rig.launchers.open_session(Peer(pid=PID, uid=uid, gid=uid), tenant, "agent")
        return rig.host.registry.sessions[SessionId(session)].tenant.name

    assert await opens(ALICE, "acme") == "acme"
    assert await opens(ALICE, "") == "acme"
    assert await opens(0, "other") == "other"
    for uid, tenant in ((ALICE, "other"), (ALICE, "unheard-of"), (STRANGER, "acme"), (STRANGER, "")):
        with pytest.raises(NotAllowed):
            await opens(uid, tenant)
    with pytest.raises(NotFound):
        await opens(0, "unheard-of")


async def test_entering_a_session(rig: Rig) -> None:
    session, token = rig.session()
    peer = Peer(pid=PID, uid=ALICE, gid=ALICE)
    await rig.launchers.enter(peer, session, None)
    await rig.launchers.enter(peer, None, token)
    assert rig.backend.entered == [(session, PID)] * 2
    rig.backend.places[PID] = Whose(session)
    await rig.launchers.enter(peer, session, None)  # again: it is there already
    for place in (Whose(new_session_id()), Whose(session, new_call_id())):
        rig.backend.places[PID] = place
        with pytest.raises(NotAllowed, match="another session or a call"):
            await rig.launchers.enter(peer, session, None)
    rig.backend.places.clear()
    with pytest.raises(NotFound):
        await rig.launchers.enter(Peer(pid=PID, uid=BOB, gid=BOB), session, None)
    with pytest.raises(NotAllowed):
        await rig.launchers.enter(Peer(pid=PID, uid=BOB, gid=BOB), None, token)
    assert len(rig.backend.entered) == 3


async def test_resuming_a_call(rig: Rig) -> None:
    _, token = rig.session()
    call_id = await rig.begin(ALICE, token=token)
    call = rig.host.registry.call(call_id)
    rig.backend.places[PID] = Whose(call.session.id, call_id)
    link = Link()
    await rig.launchers.resume(Peer(pid=50, uid=ALICE, gid=ALICE, pidfd_pid=PID), call_id, link)
    assert call.launcher_pid == 50
    assert link.acts == 0
    await rig.host.freeze(call_id, by="operator")
    assert link.acts == 1
    later = Link()
    await rig.launchers.resume(Peer(pid=51, uid=ALICE, gid=ALICE, pidfd_pid=PID), call_id, later)
    assert later.acts == 1  # it learns of what was done while it was away
    with pytest.raises(NotAllowed, match="another user's"):
        await rig.launchers.resume(Peer(pid=52, uid=BOB, gid=BOB), call_id, Link())
    with pytest.raises(NotAllowed, match="not of call"):
        await rig.launchers.resume(Peer(pid=52, uid=ALICE, gid=ALICE, pidfd_pid=1), call_id, Link())
    with pytest.raises(NotFound):
        await rig.launchers.resume(Peer(pid=52, uid=ALICE, gid=ALICE), new_call_id(), Link())
