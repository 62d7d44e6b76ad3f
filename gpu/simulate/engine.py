"""A discrete-event model of an engine that agents take turns on, under any ``KvPolicy``.

The model, and what it leaves out:

- a turn waits until the pool holds all that it will need (context, prompt and what it will generate: real engines admit
  on the prompt alone and preempt later); turns are admitted in the policy's order, the first one blocks the others;
- prefill: one queue in front of ``replicas`` servers, each as fast as ``forward`` says; decoding: a token every
  ``decode_base + decode_each x batch`` seconds, with the batch as it is when decoding begins;
- KV goes out and comes back over a link with one queue each way, beside the computation; what has begun of a context is
  in the pool, the next part may be outside, the end may be gone (``partial``; else all of it is at one place); a copy
  out that has not ended when the call ends is given up, as the KV is still there;
- where all that paused sessions hold does not make enough room, the policy is asked again, about turns at the end of
  the queue: as of pauses that last as long as turns waited lately.

With ``delays=False`` nothing that a policy does delays anything: turns begin when their calls end, and run as long as
they would with all KV in place; what is computed again and copied is charged all the same. So all policies meet the
same timeline, and can be measured against one optimum. Where running turns alone outgrow the pool, nothing idle fits.

A policy learns durations only from calls that ended before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Final

from gpu.errors import InvalidValue
from gpu.policy import Durations, KvAction, KvDecision, KvPolicy, Pause, Place, Tier, Waiting
from gpu.simulate.knowledge import Clairvoyant, Learner
from gpu.simulate.model import EngineModel, Outcome
from gpu.simulate.timeline import IdleKv, Timeline
from gpu.simulate.workload import Script

_VIEW_EVERY: Final = 0.05  # seconds for which a view of all paused sessions stays good enough
_AGAIN: Final = 0.25  # seconds until a copy in that found no room is tried again
_MARGIN: Final = 0.01  # of the pool: made free beyond the need, so that not every turn must ask


@dataclass(slots=True)
class _Session:
    name: str
    script: Script
    at: int = 0  # the step that is next or runs
    context: int = 0
    resident: int = 0  # tokens in the pool, from the beginning of the context
    outside: int = 0  # those after them that are offloaded
    moving: int = 0  # tokens that are being copied
    paused: bool = False
    running: bool = False
    copying: str = ""  # "out", "in"
    copy: int = 0  # number of the copy or timer that is valid
    timer: int = 0
    began: float = 0.0  # the session
    idle_since: float = 0.0  # end of the last turn
    pause_since: float = 0.0
    arrived: float = 0.0
    waited: float = 0.0
    resident_since: float = 0.0
    known: Durations | None = None
    total: int = 0  # of the running turn
    put_out: bool = False  # some of its KV was not in the pool when it began

    @property
    def place(self) -> Place:
        if self.resident:
            return Place.RESIDENT
        return Place.OFFLOADED if self.outside else Place.DROPPED


class _Engine:
    def __init__(
        self,
        scripts: Sequence[Script],
        model: EngineModel,
        policy: KvPolicy,
        *,
        admission: bool,
        oracle: bool,
        delays: bool,
    ) -> None:
        self.delays: Final = delays
        self.model: Final = model
        self.policy: Final = policy
        self.admission: Final = admission
        self.oracle: Final = Clairvoyant() if oracle else None
        self.learner: Final = Learner()
        self.sessions: Final = [_Session(f"s{number:04d}", one) for number, one in enumerate(scripts)]
        self.by_name: Final = {one.name: one for one in self.sessions}
        self.events: Final[list[tuple[float, int, str, _Session, int]]] = []
        self.serial: Final = count()
        self.now = 0.0
        self.used = 0
        self.outside = 0  # tokens, those on their way out included
        self.leaving = 0  # tokens being copied out
        self.running_tokens = 0
        self.running = 0
        self.waiting: list[_Session] = []
        self.new: deque[_Session] = deque()
        self.open = 0
        self.paused: Final[dict[str, _Session]] = {}
        self.servers: Final = [0.0] * model.replicas
        self.link = {"out": 0.0, "in": 0.0}
        self.waits: Final[deque[float]] = deque(maxlen=100)
        self.view: tuple[Pause, ...] = ()
        self.view_at = -1.0
        self.out = Outcome(
            policy=policy.name,
            timeline=Timeline(capacity=model.pool, host_tokens=model.host_bytes / model.bytes_per_token),
        )

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        for one in self.sessions:
            self._later(one.script.starts, "new", one, 0)
        while self.events:
            self.now, _, what, session, number = heappop(self.events)
            match what:
                case "new":
                    self.new.append(session)
                    self._admit_new()
                case "call-ended":
                    self._call_ended(session)
                case "first-token":
                    self._first_token(session)
                case "turn-ended":
                    self._turn_ended(session)
                case "copied" if number == session.copy:
                    self._copied(session)
                case "ttl" if number == session.timer and session.paused:
                    self._apply(self.policy.expired(self._pause(session), self._tier()))
                case "restore" if number == session.timer and session.paused:
                    self._restore(session)
                case _:
                    continue  # overtaken by what happened since
            self._schedule()
        return self.out

    def _later(self, after: float, what: str, session: _Session, number: int) -> None:
        heappush(self.events, (self.now + max(0.0, after), next(self.serial), what, session, number))

    # --- sessions and turns -------------------------------------------------------------------------------------------

    def _admit_new(self) -> None:
        while self.new:
            session = self.new[0]
            if self.admission and self.open:
                need = session.script.steps[0].tokens
                if not self.policy.admit(need, self._tier(fresh=True)).admitted:
                    return
            self.new.popleft()
            self.open += 1
            session.began = session.arrived = session.idle_since = self.now
            self.waiting.append(session)

    def _call_ended(self, session: _Session) -> None:
        step = session.script.steps[session.at]
        self.learner.ended(step.kinds, step.pause)
        session.paused = False
        del self.paused[session.name]
        self._keep_after_all(session)
        session.at += 1
        session.arrived = self.now
        self.waiting.append(session)

    def _keep_after_all(self, session: _Session) -> None:
        """What is being copied out is still in the pool: the copy is given up."""
        if session.copying == "out":
            session.copying, session.copy = "", next(self.serial)
            self.leaving -= session.moving
            self.outside -= session.moving

    def _schedule(self) -> None:
        while self.waiting:
            if len(self.waiting) == 1:
                head = self.waiting[0]
            else:
                views = [
                    Waiting(
                        session=one.name,
                        tokens=one.context + one.script.steps[one.at].tokens,
                        waited=self.now - one.arrived,
                        where=one.place,
                    )
                    for one in self.waiting
                ]
                head = self.by_name[self.policy.order(views, self._tier())[0]]
            if not self._try_to_run(head):
                return
            self.waiting.remove(head)

    def _try_to_run(self, session: _Session) -> bool:
        if self.delays and self.running >= self.model.most_running * self.model.replicas:
            return False
        step = session.script.steps[session.at]
        self._keep_after_all(session)
        context = 0 if step.fresh else session.context
        total = context + step.tokens
        mine = session.resident + (session.moving if session.copying == "in" else 0)
        if total - mine > self.model.pool - self.used:
            self._make_room(session, total - mine)
            if self.delays and total - mine > self.model.pool - self.used:
                return False
        self._begin(session, context, total, mine)
        return True

    def _begin(self, session: _Session, context: int, total: int, mine: int) -> None:
        step, model = session.script.steps[session.at], self.model
        self._charge_held(session)
        self.used += total - mine
        self.out.most_used = max(self.out.most_used, self.used)
        self.running_tokens += total
        self.running += 1
        session.running = True
        session.total = total
        session.put_out = bool(context) and session.resident < session.context
        self.waits.append(self.now - session.arrived)
        if context:
            moved = 2 * model.swap.seconds(context * model.bytes_per_token) if model.swap else float("inf")
            self.out.timeline.idle.append(
                IdleKv(session.idle_since, self.now, context, model.forward.seconds(context), moved)
            )
        self.out.timeline.room.append((self.now, max(0, model.pool - self.running_tokens)))
        self.out.timeline.unavoidable += model.forward.seconds(context + step.prompt) - model.forward.seconds(context)
        if step.fresh and not session.copying:
            self.outside -= session.outside
            session.outside = 0
        if session.copying == "in":
            return
        if session.outside:
            self._copy(session, "in", session.outside)
        else:
            self._prefill(session)

    def _prefill(self, session: _Session) -> None:
        step, forward = session.script.steps[session.at], self.model.forward
        context = 0 if step.fresh else session.context
        lost = context - min(context, session.resident)
        again = forward.seconds(context) - forward.seconds(context - lost)
        self.out.recomputed += again
        self.out.recomputed_tokens += lost
        self.out.computed_tokens += step.prompt + lost
        seconds = forward.seconds(context + step.prompt) - forward.seconds(context)
        server = min(range(len(self.servers)), key=self.servers.__getitem__)
        seconds += again if self.delays else 0.0
        done = self.servers[server] = max(self.now, self.servers[server]) + seconds
        self._later(done - self.now, "first-token", session, 0)

    def _first_token(self, session: _Session) -> None:
        delay = self.now - session.arrived
        self.out.first_token.append(delay)
        if session.put_out:
            session.waited += delay
        batch = self.running / self.model.replicas
        each = self.model.decode_base + self.model.decode_each * batch
        self._later(session.script.steps[session.at].generated * each, "turn-ended", session, 0)

    def _turn_ended(self, session: _Session) -> None:
        self.out.turns += 1
        self.out.wall = self.now
        self.running -= 1
        self.running_tokens -= session.total
        session.running = False
        session.context = session.resident = session.total
        session.idle_since = session.resident_since = session.pause_since = self.now
        if session.at + 1 == len(session.script.steps):
            self.used -= session.context
            session.resident = 0
            self.out.session_seconds.append(self.now - session.script.starts)
            self.open -= 1
        else:
            step = session.script.steps[session.at]
            session.paused = True
            session.timer = next(self.serial)
            session.known = (
                self.oracle.truth(step.pause) if self.oracle is not None else self.learner.durations(step.kinds)
            )
            self.paused[session.name] = session
            self._later(step.pause, "call-ended", session, 0)
            self._apply(self.policy.at_pause(self._pause(session), self._tier()))
        self._admit_new()

    # --- KV -----------------------------------------------------------------------------------------------------------

    def _apply(self, decision: KvDecision) -> None:
        session = self.by_name[decision.session]
        if session.running or session.copying:
            return
        match decision.action:
            case KvAction.KEEP:
                if decision.ttl is not None and session.paused:
                    session.timer = next(self.serial)
                    self._later(decision.ttl, "ttl", session, session.timer)
            case KvAction.DROP:
                self._drop(session, decision.tokens)
            case KvAction.OFFLOAD:
                self._offload(session, decision.tokens)
            case _:
                raise InvalidValue(
                    f"policy {self.policy.name}: {decision.action} is no answer here", remedy="mend the policy"
                )

    def _offload(self, session: _Session, part: int | None) -> None:
        tokens = min(session.resident, session.resident if part is None else part)
        if not tokens:
            return
        room = self.model.host_bytes // self.model.bytes_per_token - self.outside
        if self.model.swap is None or tokens > room:
            self._drop(session, tokens + session.outside if self.model.partial else None)
            return
        self.outside += tokens
        self.out.most_outside = max(self.out.most_outside, self.outside * self.model.bytes_per_token)
        self.out.offloads += 1
        self.leaving += tokens
        self._copy(session, "out", tokens)

    def _drop(self, session: _Session, part: int | None) -> None:
        tokens = session.resident + session.outside if part is None else part
        away = min(tokens, session.outside)
        here = min(tokens - away, session.resident)
        if away + here:
            self.out.drops += 1
        self._charge_held(session)
        session.outside -= away
        self.outside -= away
        session.resident -= here
        self.used -= here

    def _charge_held(self, session: _Session) -> None:
        self.out.held += session.resident * (self.now - session.resident_since)
        session.resident_since = self.now

    def _copy(self, session: _Session, way: str, tokens: int) -> None:
        if self.model.swap is None:
            raise InvalidValue("an engine without a link cannot copy", remedy="give the model a swap")
        seconds = self.model.swap.seconds(tokens * self.model.bytes_per_token)
        session.copying, session.copy, session.moving = way, next(self.serial), tokens
        self.out.moves += seconds
        if not self.delays:
            self._copied(session)
            return
        done = self.link[way] = max(self.now, self.link[way]) + seconds
        self._later(done - self.now, "copied", session, session.copy)

    def _copied(self, session: _Session) -> None:
        way, session.copying, tokens = session.copying, "", session.moving
        self._charge_held(session)
        if way == "out":
            self.leaving -= tokens
            self.used -= tokens
            session.resident -= tokens
            session.outside += tokens
            if session.paused:
                self._plan_restore(session)
            return
        self.out.restores += 1
        self.outside -= tokens
        session.outside -= tokens
        session.resident += tokens
        if session.running:
            self._prefill(session)

    def _plan_restore(self, session: _Session, *, least: float = 0.0) -> None:
        planned = self.policy.before_return(self._pause(session), self._tier())
        if planned is not None:
            session.timer = next(self.serial)
            self._later(max(least, planned.after), "restore", session, session.timer)

    def _restore(self, session: _Session) -> None:
        if not session.outside or session.copying:
            return
        planned = self.policy.before_return(self._pause(session), self._tier())
        if planned is None or planned.after > 1e-3 or session.outside > self.model.pool - self.used:
            self._plan_restore(session, least=_AGAIN)
            return
        self.used += session.outside
        self.out.most_used = max(self.out.most_used, self.used)
        self._copy(session, "in", session.outside)

    def _make_room(self, session: _Session, need: int) -> None:
        """For a turn. What is being copied out already counts as room to come."""
        short = need - (self.model.pool - self.used) - self.leaving
        if short <= 0:
            return
        margin = short + int(_MARGIN * self.model.pool)
        tier = self._tier(fresh=True)
        pauses = tuple(one for one in self.view if not self.by_name[one.session].copying)
        for decision in self.policy.under_pressure(pauses, tier, margin):
            self._apply(decision)
        short = need - (self.model.pool - self.used) - self.leaving
        queued: list[_Session] = []
        for other in sorted(self.waiting, key=lambda one: (-one.arrived, one.name)):
            if short <= 0:
                break
            if other is not session and other.resident and not other.copying:
                short -= other.resident
                queued.append(other)
        if queued:
            freed = sum(one.resident for one in queued)
            views = [self._pause(one, expected=tier.queueing) for one in queued]
            for decision in self.policy.under_pressure(views, self._tier(), freed):
                self._apply(decision)

    # --- what a policy sees -------------------------------------------------------------------------------------------

    def _pause(self, session: _Session, *, expected: float | None = None) -> Pause:
        """:param expected: of a turn in the queue, seconds that it will wait in all"""
        queued = expected is not None
        return Pause(
            session=session.name,
            tokens=session.resident or session.outside,
            outside=session.outside if session.resident else 0,
            elapsed=self.now - (session.arrived if queued else session.pause_since),
            expected=expected,
            durations=session.known if session.known is not None and not queued else (),
            last_used=session.idle_since,
            where=session.place,
            waited=session.waited,
        )

    def _tier(self, *, fresh: bool = False) -> Tier:
        model = self.model
        if fresh or self.now - self.view_at > _VIEW_EVERY:
            self.view = tuple(self._pause(one) for one in self.paused.values())
            self.view_at = self.now
        missing = sum(one.script.steps[one.at].tokens + one.context - one.resident for one in self.waiting)
        return Tier(
            bytes_per_token=model.bytes_per_token,
            capacity=model.pool,
            used=self.used - self.leaving,
            running_tokens=self.running_tokens,
            forward=model.forward,
            swap=model.swap,
            offload_free=max(0, model.host_bytes - self.outside * model.bytes_per_token),
            partial=model.partial,
            queueing=sum(self.waits) / len(self.waits) if self.waits else 0.0,
            waiting_tokens=missing,
            paused=self.view,
        )


def simulate(
    scripts: Sequence[Script],
    model: EngineModel,
    policy: KvPolicy,
    *,
    admission: bool = False,
    oracle: bool = False,
    delays: bool = True,
) -> Outcome:
    """
    :param delays: False: no policy delays anything, so that all meet the same timeline
    :param admission: ask the policy before a session begins; else all begin when they come
    :param oracle: policies are told how long each pause lasts: for a reference only
    :raises InvalidValue: a script's context does not fit into the pool
    """
    for one in scripts:
        if delays and one.largest > model.pool:
            raise InvalidValue(
                f"script {one.name}: a context of {one.largest} tokens in a pool of {model.pool}",
                remedy="give the model a larger pool, or the script fewer turns",
            )
    return _Engine(scripts, model, policy, admission=admission, oracle=oracle, delays=delays).run()
