"""What the kernel reports about calls, turned into what the host does about it."""

from __future__ import annotations

import structlog

from controller.endings import Endings
from controller.holds import Holds
from controller.live import Live
from controller.model import Action, CallId, Reason, SessionId
from controller.policy.text import human_bytes
from controller.shared import Shared

log = structlog.get_logger("corral.events")


class KernelEvents:
    """The backend's listener. An event about a call that has ended meanwhile is nothing: both were on their way."""

    def __init__(self, shared: Shared, holds: Holds, endings: Endings, live: Live) -> None:
        self._shared = shared
        self._live = live
        self._holds = holds
        self._endings = endings

    def on_empty(self, call_id: CallId) -> None:
        call = self._shared.registry.calls.get(call_id)
        if call is not None and call.populated:
            self._endings.emptied(call)

    def on_braked(self, call_id: CallId, pid: int, usage: int, threshold: int, latency: float) -> None:
        call = self._shared.registry.calls.get(call_id)
        if call is not None:
            self._holds.braked(call, pid, usage, threshold, latency)

    def on_notice(self, call_id: CallId, usage: int, threshold: int) -> None:
        call = self._shared.registry.calls.get(call_id)
        if call is None:
            return
        if threshold in (call.intent.memory_typical, call.notice):
            self._shared.decide(
                call,
                Action.ADVISE,
                "kernel",
                f"grew past its typical size of {human_bytes(threshold)}",
                evidence={"usage_bytes": float(usage), "notify_bytes": float(threshold)},
            )
            self._shared.remember(call)
        self._live.noticed(call)

    def on_oom(self, call_id: CallId, kills: int) -> None:
        """The kernel killed a process of the call. A tool that lost a part is not left to limp: all of it goes, as
        memory.oom.group does on unified hosts."""
        call = self._shared.registry.calls.get(call_id)
        if call is None or call.killed_as is not None:
            return
        proof = self._shared.backend.proof(call.ref)
        if proof.oom_tenant_kills:
            reason, where = Reason.OOM_TENANT, "its tenant's limit"
        elif proof.oom_host_kills:
            reason, where = Reason.OOM_HOST, "the end of the host's memory"
        else:
            reason, where = Reason.OOM_CALL, "its own memory limit"
        self._endings.kill(
            call,
            reason,
            f"the kernel killed {kills} of its processes at {where}",
            {"oom_kills": float(kills), "memory_max_bytes": float(call.grant.limits.memory_max or 0)},
        )

    def on_pids_refused(self, call_id: CallId, refusals: int) -> None:
        call = self._shared.registry.calls.get(call_id)
        if call is None or any(d.policy == "pids" for d in call.decisions):
            return
        self._shared.decide(
            call,
            Action.ADVISE,
            "pids",
            f"it could not start a process: its limit is {call.grant.limits.pids_max} at once",
            evidence={"refused": float(refusals), "pids_max": float(call.grant.limits.pids_max or 0)},
        )
        self._shared.remember(call)

    def on_connect_refused(self, call_id: CallId, destination: str) -> None:
        call = self._shared.registry.calls.get(call_id)
        if call is None or any(d.policy == "network" for d in call.decisions):
            return
        self._shared.decide(
            call, Action.REFUSE, "network", f"a connection to {destination} was refused: its intent does not allow it"
        )
        self._shared.remember(call)

    def on_agent_grew(self, session_id: SessionId) -> None:
        self._live.agent_grew(session_id)

    def on_pressure(self) -> None:
        self._live.pressed()

    def on_exec(self, call_id: CallId, pid: int, parent: int, filename: str) -> None:
        log.debug("exec", call=call_id, pid=pid, parent=parent, filename=filename)
