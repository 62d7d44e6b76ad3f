"""The control loop: what happens on the host makes rounds of controller.policy.rounds, and their steps are carried out.

A round is due when a call was stopped, has grown past a notice, ended, waits, or was let go; when limits changed;
when the kernel tells of memory pressure; when a hold reaches its bound; and once a sample while anybody waits, is held
or is short of memory. Several reasons within one turn of the event loop make one round.

A call that begins on a host with plenty of memory needs no round: see ``Plenty``, which lets in only what a round would
let in, and costs a few microseconds.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from controller.endings import Endings
from controller.facts import Facts
from controller.growth import Growth
from controller.holds import Holds
from controller.model import Action, ControllerError, Reason, Refused, SessionId, Squeeze, Tripwire
from controller.plenty import Plenty
from controller.policy.grant import Refusal
from controller.policy.rounds import decide
from controller.queueing import Queue, Wait
from controller.reclaims import Reclaims
from controller.registry import Call, now
from controller.shared import Shared
from controller.starts import Starts
from controller.state import State, Step, StepKind
from controller.throttle import relax, throttle

log = structlog.get_logger("corral.live")

_SLOW_WEIGHT = 25  # of CPU and I/O for a call that is slowed, where 100 is usual
_MUCH_SOONER = 0.25  # share by which an ETA must have changed to be told again,
_AT_LEAST = 1.0  # and seconds
_FORECASTS = 8  # made in one go where no round needs them
_MOST_AT_ONCE = 32  # calls that wait already: beyond, a newcomer joins them and is answered by the next round
_REMEDIES = {
    "no_memory": "retry later, declare less, or use on_pressure=wait",
    "too_many_calls": "end a call, wait (on_pressure=wait), or ask the operator for a higher max_calls",
    "queue": "wait (on_pressure=wait) or retry later",
    "no_cpu": "retry later, declare fewer cores, or use on_pressure=wait",
    "no_pids": "retry later, declare fewer processes, or use on_pressure=wait",
}


class Live:
    def __init__(
        self,
        shared: Shared,
        facts: Facts,
        plenty: Plenty,
        *,
        holds: Holds,
        endings: Endings,
        starts: Starts,
        queue: Queue,
    ) -> None:
        self._shared = shared
        self._facts = facts
        self._plenty = plenty
        self._holds = holds
        self._endings = endings
        self._starts = starts
        self._queue = queue
        self.growth = Growth(shared, plenty)
        self._reclaims = Reclaims(shared, self.soon)
        self._due: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- what makes a round ------------------------------------------------------------------------------------------

    def soon(self) -> None:
        """A round, once, in this turn of the loop."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_soon(self._run)

    def stop(self) -> None:
        self._reclaims.stop()
        if self._due is not None:
            self._due.cancel()
        if self._timer is not None:
            self._timer.cancel()

    def tick(self) -> None:
        """A round of samples is done."""
        self._plenty.refresh(now(), forecasts=_FORECASTS)
        self.growth.adjust()
        if self._is_anything_to_decide():
            self.soon()

    def something_ended(self, call: Call) -> None:
        self._plenty.forget(call)
        if self._is_anything_to_decide():
            self.soon()

    def noticed(self, call: Call) -> None:
        """It has grown past a notice; the next one is armed further up, and a round looks whether memory gets short."""
        if not call.held_by and not call.ending and call.killed_as is None:
            self._facts.read(call)
            self._plenty.refresh(now())
            self._arm(call, call.grant.tripwire.brake or 0)
            if self._is_anything_to_decide():
                self.soon()

    def agent_grew(self, session_id: SessionId) -> None:
        """An agent's own processes took memory that was free, or promised to calls."""
        if self.growth.grew(session_id):
            self._plenty.refresh(now())
            if self._is_anything_to_decide():
                self.soon()

    def pressed(self) -> None:
        """The kernel says that tasks stand still for want of memory: what was read is too old to go by."""
        if self._shared.registry.calls:
            self.soon()

    def _is_anything_to_decide(self) -> bool:
        return bool(len(self._queue) or self._holds.held or self._plenty.is_short or self._plenty.is_tight)

    def _run(self) -> None:
        self._due = None
        self.round()

    def round(self) -> None:
        self._release_unbraked()
        at = now()
        state = self._facts.state(at)
        for step in decide(state, self._shared.config.control()):
            call = self._shared.registry.calls.get(step.call_id)
            if call is not None:
                self._carry_out(call, step, at)
        self._afterwards(state, at)

    def _afterwards(self, state: State, at: float) -> None:
        self._plenty.refresh(at)
        self.growth.adjust()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held = [c.held_since for c in self._holds.held.values() if c.held_since and "operator" not in c.held_by]
        if held:
            left = max(0.05, min(held) + self._shared.config.call.hold_max - at)
            self._timer = asyncio.get_running_loop().call_later(left, self.soon)

    def _release_unbraked(self) -> None:
        """An operator took the threshold away, or its agent took its intent back: nothing is left to hold it for."""
        for call in [c for c in self._holds.held.values() if "brake" in c.held_by]:
            if call.grant.tripwire.brake is None and call.outcome is None and call.killed_as is None:
                self._holds.release(call, "its threshold was taken away")

    # --- a call that begins ------------------------------------------------------------------------------------------

    def ask(self, call: Call) -> Wait | None:
        """Begins a prepared call if it may begin now, else says what it waits for. Raises Refused, CannotEnforce, and
        what the backend raises when the leaf cannot be made."""
        self._starts.grant(call)
        idle = self._due is None and not len(self._queue) and not self._holds.held
        if idle and self._plenty.lets_in(call):
            self._begin(call, call.promised, ())
            return None
        if len(self._queue) > _MOST_AT_ONCE and call.intent.on_pressure.value == "wait":
            self.soon()
            return Wait(message=f"{len(self._queue)} calls wait already")
        at = now()
        state = self._facts.state(at, asking=call)
        mine: Step | None = None
        for step in decide(state, self._shared.config.control()):
            if step.call_id == call.id:
                mine = step
            elif (other := self._shared.registry.calls.get(step.call_id)) is not None:
                self._carry_out(other, step, at)
        self._afterwards(state, at)
        if mine is None:
            raise ControllerError(f"no decision was made about call {call.id}", remedy="report this: it is a defect")
        if mine.kind is StepKind.WAIT:
            return Wait(message=mine.reason, eta=mine.eta)
        if mine.kind is StepKind.REFUSE:
            raise self._refusal(call, mine)
        self._begin(call, mine.brake, _notes(mine))
        return None

    def estimate(self, call: Call) -> float | None:
        """Seconds until a call that waits, or asks, will typically begin. None: not known, or it has begun."""
        if call.begun:
            return None
        for step in decide(self._facts.state(now(), asking=call), self._shared.config.control()):
            if step.call_id == call.id:
                return step.eta
        return None

    def _refusal(self, call: Call, step: Step) -> Refused:
        remedy = _REMEDIES.get(step.code, "retry later")
        found = Refusal(code=step.code, field="", value="", message=step.reason, remedy=remedy)
        if step.code == "no_memory" and call.intent.memory_typical is not None:
            found = replace(found, field="intent.memory_typical", value=str(call.intent.memory_typical))
        self._starts.refused(call, found)
        return Refused(found.message, code=found.code, field=found.field, value=found.value, remedy=remedy)

    def _begin(self, call: Call, brake: int, notes: tuple[str, ...]) -> None:
        self._starts.begin(call, tripwire=self.tripwire(call, brake), notes=notes)
        call.trimmed = bool(brake) and brake < call.promised
        self._plenty.add(call)

    def tripwire(self, call: Call, brake: int) -> Tripwire:
        """``brake`` 0: none. Its notice is what the call declared as typical while that is ahead; and of a call without
        a threshold, how far it may grow before somebody looks whether there is still plenty."""
        if not self._shared.backend.can_brake:
            return Tripwire()
        brake = 0 if call.unbraked else brake
        notify = call.notice if call.notice is not None else call.intent.memory_typical
        if notify is not None and (notify <= call.memory or (brake and notify >= brake)):
            notify = None
        if not brake:
            watch = call.memory + self._plenty.unwatched_growth()
            notify = watch if notify is None else min(notify, watch)
        return Tripwire(notify=notify, brake=brake or None)

    # --- steps -------------------------------------------------------------------------------------------------------

    def _carry_out(self, call: Call, step: Step, at: float) -> None:
        if call.outcome is not None:
            return
        if not call.begun:
            self._answer(call, step, at)
            return
        if call.ending or call.killed_as is not None:
            return
        evidence = dict(step.evidence)
        try:
            match step.kind:
                case StepKind.RAISE | StepKind.THAW:
                    self._raise(call, step, evidence)
                case StepKind.HOLD:
                    call.waits_for = step.reason
                    call.eta = at + step.eta if step.eta is not None else None
                case StepKind.FREEZE:
                    self._holds.freeze_for_others(call, step.reason, evidence)
                case StepKind.KILL if step.code != "fail_fast" and self._reclaims.instead_of_the_end(call):
                    call.waits_for = "its page cache is being taken back"
                case StepKind.KILL:
                    reason = Reason.BRAKE_KILLED if "brake" in call.held_by else Reason.PRESSURE_KILLED
                    self._endings.kill(call, reason, step.reason, evidence)
                case StepKind.ADVISE:
                    call.advised = True
                    self._shared.decide(call, Action.ADVISE, "ladder", step.reason, evidence=evidence)
                case StepKind.THROTTLE:
                    self._throttle(call, step, evidence)
                case StepKind.RELAX:
                    self._relax(call, step, evidence)
                case StepKind.ARM | StepKind.DISARM:
                    self._arm(call, step.brake)
                    self._shared.decide(call, Action.LIMIT, "ladder", step.reason, evidence=evidence, quiet=True)
                case _:
                    pass
        except ControllerError as err:
            log.warning(
                "a step could not be carried out; the next round will see", call=call.id, step=step.kind, error=str(err)
            )

    def _answer(self, call: Call, step: Step, at: float) -> None:
        """A call that waits: it begins, goes on waiting, or is refused."""
        if self._queue.gave_up(call):
            return
        try:
            if step.kind is StepKind.ADMIT:
                self._starts.grant(call)  # its tenant's ceilings may have changed since it asked
                brake = min(step.brake, call.promised) if call.promised else step.brake
                self._begin(call, brake, _notes(step))
                self._queue.begun(call)
            elif step.kind is StepKind.REFUSE:
                raise self._refusal(call, step)
            elif step.kind is StepKind.WAIT:
                self._waits_on(call, step, at)
        except ControllerError as err:
            self._queue.failed(call, err)

    def _waits_on(self, call: Call, step: Step, at: float) -> None:
        was, call.waits_for = call.waits_for, step.reason
        before = call.eta - at if call.eta is not None else None
        changed = (before is None) != (step.eta is None)
        if before is not None and step.eta is not None:
            changed = abs(step.eta - before) > max(_AT_LEAST, _MUCH_SOONER * max(before, 0.0))
        if changed:
            call.eta = at + step.eta if step.eta is not None else None
            if call.tell_queued is not None:
                call.tell_queued(step.eta, step.reason)
        if changed or was != step.reason:
            self._shared.publish(call)

    def _throttle(self, call: Call, step: Step, evidence: dict[str, float]) -> None:
        """Slack that is taken back slows nobody, and is no news to its agent; pressure on the host does, and is."""
        self._arm(call, step.brake)
        call.trimmed = True
        if step.code == "pressure":
            squeeze = Squeeze(
                memory_high=step.brake, cpu_weight=_SLOW_WEIGHT, io_weight=_SLOW_WEIGHT, reason=step.reason
            )
            before = call.squeeze
            done = throttle(self._shared, call, squeeze, policy="ladder", evidence=evidence)
            if done.applied is not None and done.applied != before:
                return  # it is on record with what was slowed
        self._shared.decide(call, Action.LIMIT, "ladder", step.reason, evidence=evidence, quiet=True)
        self._shared.publish(call)

    def _relax(self, call: Call, step: Step, evidence: dict[str, float]) -> None:
        self._arm(call, step.brake)
        call.trimmed = 0 < step.brake < call.promised
        if call.squeeze is not None:
            relax(self._shared, call, policy="ladder", reason=step.reason)
            return
        self._shared.decide(call, Action.LIMIT, "ladder", step.reason, evidence=evidence, quiet=True)
        self._shared.publish(call)

    def _raise(self, call: Call, step: Step, evidence: dict[str, float]) -> None:
        self._arm(call, step.brake)
        call.trimmed = 0 < step.brake < call.promised
        if call.squeeze is not None and call.squeeze.memory_high is not None:
            # else it would be slowed below the threshold that it has just been given
            squeeze = replace(call.squeeze, memory_high=max(step.brake, call.squeeze.memory_high))
            call.squeeze = self._shared.backend.squeeze(call.ref, squeeze).applied
        self._holds.release(call, step.reason, evidence)

    def _arm(self, call: Call, brake: int) -> None:
        tripwire = self.tripwire(call, brake)
        if tripwire != call.grant.tripwire:
            self._shared.backend.arm(call.ref, tripwire)
            call.grant = replace(call.grant, tripwire=tripwire)
            self._shared.remember(call)


def _notes(step: Step) -> tuple[str, ...]:
    return (f"memory: {step.reason}; expect to be braked",) if step.code == "degraded" else ()
