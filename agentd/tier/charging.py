"""Whose a GPU process is, by its cgroup, and what it used: on the call's own Usage, or on its session's account."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from agentd.tier.view import Owner
from controller.backend import Whose
from controller.model import CallId, ControllerError, SessionId
from controller.recognise.source import group_of, is_within
from controller.registry import Registry, Session

_log: Final = structlog.get_logger("corral.gpus")

ChargeSession = Callable[[SessionId, float, float], None]
"""Session, GPU-seconds, joules: what no call of it used. May raise ControllerError where the session has ended."""


class ChargedHost(Protocol):
    """Of ``controller.host.Host`` what is needed here."""

    @property
    def registry(self) -> Registry: ...
    def whose(self, pid: int) -> Whose: ...


class HostCharges:
    """agentd.tier.gpus.Charges.

    Pids are those of the host, as the driver reports them: processes in containers included. A process outside of every
    session is nobody's. A call's own Usage counts what its processes used, and from there its budgets are charged; what
    the session's other processes used is charged to the session through ``charge_session``.
    """

    def __init__(self, host: ChargedHost, charge_session: ChargeSession | None = None) -> None:
        self._host = host
        self._charge_session = charge_session

    def owner_of(self, pid: int) -> Owner | None:
        try:
            whose = self._host.whose(pid)
        except (ControllerError, OSError) as err:
            _log.debug("a GPU process could not be looked up", pid=pid, error=str(err))
            return None
        sessions = self._host.registry.sessions
        session = sessions.get(whose.session_id) if whose.session_id is not None else self._container_of(pid)
        if session is None:
            return None
        return Owner(tenant_id=session.tenant.id, session_id=session.id, call_id=whose.call_id or "")

    def _container_of(self, pid: int) -> Session | None:
        """The session that is the process's container: an attached one, whose processes stay in their own cgroup."""
        attached = [
            (session.attachment.group, session)
            for session in self._host.registry.sessions.values()
            if session.attachment is not None and session.attachment.group
        ]
        if not attached:
            return None
        path = group_of(pid)
        return next((session for group, session in attached if is_within(path, group)), None)

    def charge(self, owner: Owner, *, memory_bytes: int, gpu_seconds: float, joules: float) -> None:
        call = self._host.registry.calls.get(CallId(owner.call_id)) if owner.call_id else None
        if call is not None and call.outcome is None:
            call.used_gpu(memory_bytes, gpu_seconds, joules)
        elif self._charge_session is not None and (gpu_seconds > 0 or joules > 0):
            # also the last part of a call that has ended meanwhile: its Usage is closed, and the session had it
            with contextlib.suppress(ControllerError):
                self._charge_session(SessionId(owner.session_id), gpu_seconds, joules)
