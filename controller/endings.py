"""The end of a call: who ended it, what it left behind, what it used, and the leaf's removal.

A call is *ending* once its main process has been waited for (the launcher's END, EndCall) or something ended it; it is
*ended* once its outcome is known. In between, processes that outlived the main one get a short grace, and are then
adopted into the session or killed, as configured. The leaf goes after the ledger has committed the end, never before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from controller.model import Action, Budget, ControllerError, Outcome, Reason, Tripwire
from controller.policy.advice import Expected
from controller.policy.leftovers import judge
from controller.policy.outcome import Proof, explain, reason_of
from controller.registry import Call, now
from controller.shared import Shared
from controller.throttle import end_squeeze

log = structlog.get_logger("corral.endings")

_REMOVE_RETRY = 0.05  # seconds; the kernel lets go of a leaf some ms after its last process
_REMOVE_TRIES = 100
_KILL_PATIENCE = 5.0  # seconds for killed processes to be gone (uninterruptible I/O may hold them)
_END_PATIENCE = 2.0  # seconds that an emptied call waits for the exit status from whoever started it
_LOST_PATIENCE = 5.0
_OF_MEMORY = frozenset({Reason.OOM_CALL, Reason.OOM_TENANT, Reason.OOM_HOST, Reason.BRAKE_KILLED})


class Endings:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.on_settled: Callable[[Call], None] = _nothing  # the owner's: queues and sessions may go on
        self.on_measured: Callable[[Call], tuple[Budget, ...]] = _no_budgets  # the owner's: its use is final
        self.expected: Callable[[Call], Expected | None] = _unknown  # the owner's: what such calls come to
        self.unused: Callable[[], int] = int  # the owner's: bytes that may still be used; see controller.plenty
        self.on_forget: Callable[[Call], None] = _nothing  # the owner's: whoever holds the call lets go

    # --- what may end a call ----------------------------------------------------------------------------------------

    def main_exited(self, call: Call, wait_status: int | None) -> None:
        """The main process was waited for. The outcome follows at once, or after the grace for what it left behind."""
        if call.ending or call.outcome is not None:
            return
        call.ending = True
        call.wait_status = wait_status
        self.on_forget(call)
        if not self._still_runs(call):
            self._settle(call, leftovers=call.leftovers, empty=True)
            return
        if call.killed_as is not None:
            self._later(call, _KILL_PATIENCE, self._settle_stuck)
            return
        self._later(call, self._shared.config.leftover_grace, self._deal_with_leftovers)

    def emptied(self, call: Call) -> None:
        """The leaf has no process left."""
        if call.outcome is not None:
            return
        if call.ending:
            self._settle(call, leftovers=call.leftovers)
        elif call.recognition is not None and call.wait_status is not None:
            self._settle_unwaited(call)  # the kernel told how its main process ended
        elif call.launcher_lost or call.killed_as is not None:
            # nobody else will say more than we know, except a launcher that is about to: give it a moment
            if call.launcher and not call.launcher_lost:
                self._later(call, _END_PATIENCE, self._settle_unwaited)
            else:
                self._settle_unwaited(call)
        else:
            self._later(call, _LOST_PATIENCE if call.launcher else _END_PATIENCE, self._settle_unwaited)

    def kill(self, call: Call, reason: Reason, why: str, evidence: dict[str, float] | None = None) -> None:
        """Ends the call and the calls begun inside it. The first reason stays."""
        if call.outcome is not None or call.killed_as is not None:
            return
        for nested in [c for c in call.session.calls.values() if c.parent_id == call.id]:
            self.kill(nested, reason, f"the call inside which it ran was ended: {why}")
        call.killed_as = reason
        policy = {
            Reason.BRAKE_KILLED: "brake",
            Reason.PRESSURE_KILLED: "ladder",
            Reason.OPERATOR_KILLED: "operator",
            Reason.BUDGET_EXHAUSTED: "budget",
            Reason.OOM_CALL: "oom",
        }
        self._shared.decide(call, Action.KILL, policy.get(reason, "lifetime"), why, evidence=evidence)
        self.on_forget(call)
        self._shared.remember(call)  # a daemon that dies now must not leave the reason unknown
        try:
            self._shared.backend.kill(call.ref)
        except ControllerError as err:
            log.error("a call could not be killed", call=call.id, error=str(err))
        if not self._still_runs(call):
            self.emptied(call)

    def launcher_lost(self, call: Call) -> None:
        """The launcher went away without END: whoever started the tool gave it up."""
        if call.ending or call.outcome is not None:
            return
        call.launcher_lost = True
        self.kill(call, Reason.CANCELLED, "the process that started it went away")

    def watch_deadline(self, call: Call) -> None:
        """Ends the call at the deadline that it declared, counted from its begin. At once where that has passed."""
        if call.intent.deadline is not None:
            left = call.begun_at + call.intent.deadline - now()
            self._later(call, max(0.0, left), self._deadline)

    def _deadline(self, call: Call) -> None:
        self.kill(call, Reason.TIMEOUT, "it reached the deadline that it declared")

    def kill_again(self, call: Call) -> None:
        """An earlier daemon was ending the call, and may have died before its processes did."""
        self._shared.backend.kill(call.ref)
        if not self._still_runs(call):
            self.emptied(call)

    def remove(self, call: Call) -> None:
        """The end is on disk: the leaf may go."""
        self._remove(call, _REMOVE_TRIES)

    # --- settling ----------------------------------------------------------------------------------------------------

    def _settle_when_empty(self, call: Call) -> None:
        if self._still_runs(call):
            self._later(call, _KILL_PATIENCE, self._settle_stuck)
        else:
            self._settle(call, leftovers=call.leftovers, empty=True)

    def _settle_unwaited(self, call: Call) -> None:
        if call.outcome is None and not call.ending:
            call.ending = True
            self._settle(call, leftovers=0)

    def _settle_stuck(self, call: Call) -> None:
        if call.outcome is None:
            pids = list(self._shared.backend.pids(call.ref))
            log.warning("processes of a killed call are still there", call=call.id, pids=pids[:16])
            self._settle(call, leftovers=len(pids))

    def _deal_with_leftovers(self, call: Call) -> None:
        if call.outcome is not None:
            return
        if not self._shared.backend.pids(call.ref):  # it is dying still, and leaves nothing behind
            self._settle_when_empty(call)
            return
        # what they used so far is the call's; from here on the session is charged
        usage = self._shared.backend.usage(call.ref)
        verdict = judge(self._shared.config.leftovers, usage=usage.memory_now or 0, unused=self.unused())
        if not verdict.adopt:
            self._end_leftovers(call, verdict.why)
            return
        try:
            self._release_stopped(call)
            count = self._shared.backend.adopt_leftovers(call.ref)
        except ControllerError as err:
            log.warning("left-over processes could not be adopted, they are ended", call=call.id, error=str(err))
            self._end_leftovers(call, "they could not be adopted")
            return
        if count:
            self._shared.decide(
                call, Action.ADOPT, "leftovers", f"{count} processes outlived the call and belong to the session now"
            )
        call.measured(usage)
        self._settle(call, leftovers=count, measured=True)

    def _end_leftovers(self, call: Call, why: str) -> None:
        call.leftovers = len(self._shared.backend.pids(call.ref))
        self._shared.decide(
            call, Action.KILL, "leftovers", f"{call.leftovers} processes outlived the call and were ended: {why}"
        )
        self._shared.backend.kill(call.ref)
        self._settle_when_empty(call)

    def _release_stopped(self, call: Call) -> None:
        """Processes that the brake stopped while the call was ending: outside of it nobody would ever resume them."""
        if not call.stopped:
            return
        grant = replace(call.grant, tripwire=Tripwire())
        self._shared.backend.limit_call(call.ref, grant, call.intent)
        stopped, call.stopped = call.stopped, set()
        self._shared.backend.thaw(call.ref, stopped)

    def _settle(self, call: Call, *, leftovers: int, measured: bool = False, empty: bool = False) -> None:
        """``empty``: the backend has just said that no process is left."""
        if call.outcome is not None:
            return
        call.cancel_timers()
        self.on_forget(call)
        end_squeeze(call)
        shared = self._shared
        if not measured:
            try:
                call.measured(shared.backend.usage(call.ref, empty=empty))
                measured = True
            except ControllerError as err:
                log.warning("a call's last reading failed; the last sample stands", call=call.id, error=str(err))
        outcome = self._outcome(call, leftovers, measured=measured)
        call.outcome = outcome
        shared.backend.ended(call.ref)
        shared.meter.ended(call.tenant.name, outcome)
        call.tenant.running -= 1
        shared.registry.retire(call)
        shared.journal.call_ended(call.view(), lambda: self.remove(call))
        shared.publish(call)
        call.ended.set()
        self.on_settled(call)

    def _outcome(self, call: Call, leftovers: int, *, measured: bool) -> Outcome:
        proof = self._proof(call, measured=measured)
        ended_at = now()
        wall = ended_at - call.begun_at
        expected = self.expected(call) if reason_of(proof) in _OF_MEMORY else None
        told = explain(
            intent=call.intent,
            grant=call.grant,
            usage=call.usage,
            proof=proof,
            wall_seconds=wall,
            held_seconds=call.held_seconds,
            expected=expected,
        )
        return Outcome(
            call_id=call.id,
            reason=told.reason,
            ended_at=ended_at,
            wait_status=call.wait_status,
            usage=call.usage,
            wall_seconds=wall,
            held_seconds=call.held_seconds,
            decisions=tuple(call.decisions),
            summary=told.summary,
            suggestions=told.suggestions,
            leftovers=leftovers,
            budgets=self.on_measured(call),
        )

    def _proof(self, call: Call, *, measured: bool) -> Proof:
        kernel = self._shared.backend.proof(call.ref, measured=measured)
        return Proof(
            wait_status=call.wait_status,
            killed_as=call.killed_as,
            oom_kills=kernel.oom_kills,
            oom_tenant_kills=kernel.oom_tenant_kills,
            oom_host_kills=kernel.oom_host_kills,
            oom_at_root=kernel.oom_at_root,
            pids_refused=kernel.pids_refused,
            connects_refused=kernel.connects_refused,
            launcher_lost=call.launcher_lost,
            decisions=call.decisions,
            no_space=kernel.no_space,
            full_disk=kernel.full_disk,
            packets_held=kernel.packets_held,
            squeezed_seconds=call.squeezed_seconds,
            queued_seconds=call.begun_at - call.asked_at if call.was_queued else 0.0,
        )

    def _remove(self, call: Call, tries: int) -> None:
        """The end is on disk: the leaf may go. Forks that raced with the adoption are found here, and ended."""
        try:
            if self._shared.backend.remove_call(call.ref):
                return
            if tries in {_REMOVE_TRIES // 2, 1}:
                self._shared.backend.kill(call.ref)
        except ControllerError as err:
            log.warning("a leaf could not be removed yet", call=call.id, error=str(err))
        if tries > 0:
            asyncio.get_running_loop().call_later(_REMOVE_RETRY, self._remove, call, tries - 1)
        else:
            log.error("a leaf stays behind; the next start of the daemon will remove it", call=call.id)

    # --- small things -------------------------------------------------------------------------------------------------

    def _still_runs(self, call: Call) -> bool:
        try:
            return self._shared.backend.occupied(call.ref)
        except ControllerError:
            return False  # the leaf is gone

    @staticmethod
    def _later(call: Call, seconds: float, then: Callable[[Call], None]) -> None:
        call.timers.append(asyncio.get_running_loop().call_later(seconds, then, call))


def _nothing(call: Call) -> None:
    pass


def _unknown(call: Call) -> Expected | None:
    return None


def _no_budgets(call: Call) -> tuple[Budget, ...]:
    return ()
