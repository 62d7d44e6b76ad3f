"""What memory.low hands down to agents' own processes on cgroup v2.

An agent's leaf is protected without end; but a leaf gets no more than the groups above it hand down. What they hand
down beyond what their children claim is not lost: with the mount option memory_recursiveprot, which systemd sets, the
kernel shares it out among all children by their size (mm/page_counter.c: effective_protection), calls among them. So a
protection without end on a session or a tenant shelters the calls as well as the agent, and reclaim takes from both.
Each session therefore hands down what its agent uses now, rounded up, and each tenant the sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from controller.cgroup import CgroupFileError, NoSuchGroup, Tree
from controller.model import Limits, SessionId, TenantId

WITHOUT_END: Final = 1 << 46  # bytes: 64 TiB, the most that a limit may be
STEP: Final = 1 << 20  # bytes: the least by which what is handed down changes
_PARTS: Final = 16  # of an agent's memory: the share that may be handed down too much, and then shelters its calls


def handed_down(used: int) -> int:
    """What a session hands down for an agent that uses so many bytes: more than that, by a sixteenth or STEP at most;
    in steps, so that it changes seldom."""
    step = max(STEP, 1 << max(0, used.bit_length() - _PARTS.bit_length()))
    return (used // step + 1) * step


class Shelter:
    """Of the tenants of one tree. Does nothing where the kernel has no memory.low."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._sessions: dict[SessionId, int] = {}
        self._tenants: dict[TenantId, int] = {}

    @property
    def available(self) -> bool:
        return self._tree.mode == "unified" and "memory" in self._tree.controllers

    def of_agent(self) -> Limits:
        """For the leaf of agents' own processes."""
        return Limits(memory_low=WITHOUT_END) if self.available else Limits()

    def adjust(self, tenant_id: TenantId, sessions: Iterable[SessionId], *, tenant: bool) -> None:
        """Reads each agent's use, some 15 µs, and writes what has changed. ``tenant`` False: an operator has set the
        tenant's own memory.low, which stands. Raises ControllerError when a group refuses it."""
        if not self.available:
            return
        total = 0
        for session_id in sessions:
            try:
                used = self._tree.agent(tenant_id, session_id).memory_now() or 0
                wanted = handed_down(used)
                if self._sessions.get(session_id) != wanted:
                    self._tree.session(tenant_id, session_id).set(Limits(memory_low=wanted))
                    self._sessions[session_id] = wanted
            except (NoSuchGroup, CgroupFileError):
                self._sessions.pop(session_id, None)
                continue  # it is being closed
            total += wanted
        if tenant and self._tenants.get(tenant_id) != total:
            self._tree.tenant(tenant_id).set(Limits(memory_low=total))
            self._tenants[tenant_id] = total

    def forget_session(self, session_id: SessionId) -> None:
        self._sessions.pop(session_id, None)

    def forget_tenant(self, tenant_id: TenantId) -> None:
        """Its limits were set anew, or it is gone."""
        self._tenants.pop(tenant_id, None)
