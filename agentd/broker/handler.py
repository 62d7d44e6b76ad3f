"""What the broker asks of the daemon, and what it offers it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agentd.broker.peer import Peer
from agentd.wire import Begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    call_id: str
    enforced: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a call ended: the reason's code, the paragraph for the agent ("" where nothing was done to it), and ``notes``
    on what else it should know: budgets that are low."""

    reason: str
    paragraph: str = ""
    suggestions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Link(Protocol):
    """The way back to the launcher of one call. Pushing never blocks nor raises; on a closed link it does nothing."""

    @property
    def closed(self) -> bool: ...

    def queued(self, eta: float | None, message: str) -> None:
        """The call waits: ``eta`` in seconds, None unknown. May be said again; only before begin() returns."""

    def acted(self) -> None:
        """Something was done to the call: the launcher will wait for the outcome."""


class BrokerHandler(Protocol):
    """Each method may raise ControllerError: the peer is answered REFUSED with its code and text. Anything else raised
    is a defect: it is logged, and the peer is answered REFUSED with the code ``internal``.

    ``peer.pidfd`` is the broker's and is closed when the method returns: ``os.dup`` it to keep it.
    """

    async def begin(self, peer: Peer, begin: Begin, link: Link) -> Granted:
        """Make the call and move ``peer.pid`` into its leaf. Cancelled when the launcher hangs up while this waits;
        what was made by then is for this method to undo. Once it has returned, exactly one of ended() and hung_up()
        follows, unless the broker is closed first (a restart: the call goes on, its launcher will resume)."""

    async def ended(self, call_id: str, wait_status: int, want: bool) -> Ended:
        """The launcher saw the call's process end. What is returned is sent when ``want``."""

    async def hung_up(self, call_id: str) -> None:
        """The launcher vanished without END."""

    async def resume(self, peer: Peer, call_id: str, link: Link) -> None:
        """A launcher whose daemon went away takes its call up again. ``peer`` is the launcher, ``peer.pidfd_pid`` the
        call's first process (None once it has ended): whether it may is this method's to check. ended() or hung_up()
        follows as after begin()."""

    async def open_session(self, peer: Peer, tenant: str, name: str) -> tuple[str, str]:
        """The new session's id and token."""

    async def close_session(self, peer: Peer, token: str, kill: bool) -> None:
        """Close the session of ``token``. Refused while calls run, unless ``kill``, which ends them."""

    async def enter(self, peer: Peer, session_id: str | None, token: str | None) -> None:
        """``peer`` becomes an agent process of the session (exactly one of the two is given)."""
