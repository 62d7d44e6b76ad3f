"""The growth of agents' own processes: what they take while nobody asks, and what makes a round in time.

An agent is never held, and takes what it needs; calls have to give way. So each session's own processes have a notice
in the kernel, a share of what is left ahead of their use, as calls without a threshold have. It is set anew when it has
fired, and when what is left has halved meanwhile.
"""

from __future__ import annotations

from typing import Final

from controller.model import ControllerError, SessionId
from controller.plenty import Plenty
from controller.registry import Session
from controller.shared import Shared

_PARTS: Final = 8  # of the host's reserve: it must not be used up before anybody looks


class Growth:
    def __init__(self, shared: Shared, plenty: Plenty) -> None:
        self._shared = shared
        self._plenty = plenty

    def watch_all(self) -> None:
        """After a start: those sessions whose agents an earlier daemon let in."""
        for session in self._shared.registry.sessions.values():
            if self._shared.backend.agent_pids(session.tenant.id, session.id):
                self.watch(session)

    def watch(self, session: Session) -> None:
        """Arms the session's notice."""
        within = self._step()
        session.watched = within
        self._shared.backend.watch_agent(session.tenant.id, session.id, within)

    def grew(self, session_id: SessionId) -> bool:
        """Its own processes have grown past their notice. Whether that is a session of ours: then its tenant's memory
        has been read anew."""
        session = self._shared.registry.sessions.get(session_id)
        if session is None:
            return False
        try:
            session.tenant.memory_now = self._shared.backend.tenant_memory(session.tenant.id)
        except ControllerError:
            return False  # it is being closed
        self.watch(session)
        return True

    def adjust(self) -> None:
        """Notices that were armed when twice as much was left are moved nearer."""
        within = self._step()
        for session in self._shared.registry.sessions.values():
            if session.watched > 2 * within:
                self.watch(session)

    def _step(self) -> int:
        reserve = int(self._shared.total() * self._shared.config.memory_reserve)
        return max(self._plenty.unwatched_growth(), reserve // _PARTS)
