"""Notices of agents' own processes: the kernel tells when those of a session have grown by so much.

They are never braked. But what they take is no longer there for calls, and between two samples nobody would see it.
The programs know an agent's leaf as they know a call's, with a notice alone and no gate.
"""

from __future__ import annotations

import structlog

from bpf import BpfError
from controller.backends.kernelside import KernelSide
from controller.cgroup import CgroupFileError, Group
from controller.model import ControllerError, SessionId

log = structlog.get_logger("corral.agentwatch")


class AgentWatch:
    """``kernel`` None, or one without the tripwire: nothing is watched."""

    def __init__(self) -> None:
        self._of_group: dict[int, SessionId] = {}
        self._groups: dict[SessionId, int] = {}

    def arm(self, kernel: KernelSide | None, group: Group, session_id: SessionId, within: int) -> None:
        """A notice once the group uses ``within`` bytes more than now; it replaces an earlier one. Some 60 µs.
        A group that is gone, or that the programs have no place for, is not watched: samples have to do."""
        if kernel is None or "tripwire" not in kernel.parts:
            return
        try:
            notify = (group.fast_stat().memory_now or 0) + within
            known = self._groups.get(session_id)
            if known is not None:
                kernel.arm(known, notify=notify, brake=None)
                return
            cgroup_id = group.id
            kernel.register(cgroup_id, notify=notify, gpu=True, memory_cgroup=group.memory_id())
        except CgroupFileError:
            return  # its session has just been closed
        except (BpfError, ControllerError) as err:
            log.warning("an agent's growth is not watched; samples have to do", session=session_id, error=str(err))
            return
        self._groups[session_id] = cgroup_id
        self._of_group[cgroup_id] = session_id

    def session_of(self, cgroup_id: int) -> SessionId | None:
        return self._of_group.get(cgroup_id)

    def forget(self, kernel: KernelSide | None, session_id: SessionId) -> None:
        cgroup_id = self._groups.pop(session_id, None)
        if cgroup_id is None:
            return
        self._of_group.pop(cgroup_id, None)
        if kernel is not None:
            try:
                kernel.forget(cgroup_id)
            except BpfError as err:
                log.warning("an agent's group could not be forgotten", session=session_id, error=str(err))
