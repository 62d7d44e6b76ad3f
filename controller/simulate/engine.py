"""The simulator: agents that play recorded traces on one host, in virtual time, under a policy.

Events lie in a heap; between two of them nothing changes. What a policy decides in a round takes effect at once: a
brake's round takes well under a millisecond live (docs/benchmarks.md), and no event here is shorter. The model is of
memory: calls do not slow each other down through CPUs or disks.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Sequence
from typing import Final

from controller.forecast import Kind, Learner, life_of
from controller.model import CallId, SessionId, TenantId
from controller.policy.account import unwatched_growth
from controller.simulate.calls import NO_LIMIT, Agent, SimCall
from controller.simulate.plan import Plan, PlannedCall
from controller.simulate.policies import Policy
from controller.simulate.report import Report
from controller.state import Stage, State, Step, StepKind

_NUDGE: Final = 1e-6  # seconds: an agent's own step comes after the end of a call at the same moment
_LEAST: Final = 1e-9  # seconds between two events of a call: below it a clock would not advance
_MOST_TRIES: Final = 20  # of one call: an agent whose call is killed again and again goes on without it
_MOST_ROUNDS: Final = 10_000  # at one moment: more is a policy that goes round in circles


class SimulationError(Exception):
    """The simulated policy broke the simulator's rules: names the rule. A defect of the policy."""


class Simulation:
    """``agents`` slots over ``plans``, each starting somewhere in a trace drawn at random and going on with others
    (``repeat``), or each playing one plan from its begin to its end. Deterministic for a ``seed``."""

    def __init__(
        self,
        plans: Sequence[Plan],
        policy: Policy,
        *,
        memory: int,
        agents: int | None = None,
        repeat: bool = False,
        seconds: float = float("inf"),
        seed: int = 0,
        tick: float = 1.0,
        cpus: float = float("inf"),
        learner: Learner | None = None,
        tenants: int = 4,
    ) -> None:
        self._plans = list(plans)
        self._policy = policy
        self._memory = memory
        self._capacity = memory - int(memory * policy.host_reserve)
        self._repeat = repeat
        self._seconds = seconds
        self._tick = tick
        self._cpus = cpus
        self._random = random.Random(seed)  # noqa: S311  # a simulation must be repeatable
        self._learner = learner if learner is not None else Learner()
        self._events: list[tuple[float, int, SimCall | Agent | None, int]] = []
        self._number = itertools.count()
        self._now = 0.0
        self._calls: dict[CallId, SimCall] = {}  # those that wait or have begun
        self._agents_memory = 0
        self._calls_memory = 0
        self._queue: list[Agent] = []  # agents that wait for their reservation
        self._reserved = 0
        self._round_due = False
        self._ticked = False
        self._area = 0.0
        count = agents if agents is not None else len(self._plans)
        self.report = Report(policy=policy.name, agents=count, memory=memory)
        self._agents = [self._agent(index, tenants) for index in range(count)]

    # --- life ---------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Until every trace has ended, or ``seconds`` are over."""
        began = time.perf_counter()
        for agent in self._agents:
            self._start(agent)
        if self._policy.decide is not None:
            self._push(self._tick, None, 0)
        while self._events:
            at, _, what, version = heapq.heappop(self._events)
            if at > self._seconds or (what is None and not self._going_on()):
                break
            if what is not None and version != what.version:
                continue
            self._area += (self._agents_memory + self._calls_memory) * (at - self._now)
            self._now = at
            if what is None:
                self._ticked = True  # what only time changes is looked at once a tick
                for call in self._calls.values():
                    if call.stage is Stage.RUNNING:
                        self._forecast(call)
                self._round_due = True
                self._push(at + self._tick, None, 0)
            elif isinstance(what, SimCall):
                self._call_goes_on(what)
            else:
                self._agent_goes_on(what)
            if self._round_due:
                self._rounds()
            self._ticked = False
        return self._finish(time.perf_counter() - began)

    def _finish(self, real: float) -> Report:
        end = self._seconds if self._seconds != float("inf") else self._now
        report = self.report
        report.seconds, report.real_seconds = end, real
        report.memory_mean = self._area / self._now if self._now else 0.0
        for agent in self._agents:
            done = agent.done_at(min(end, self._now))
            took = end if self._repeat else agent.ended_at
            report.slow_downs.append(took / done if done > 0 else float("inf"))
        return report

    def _going_on(self) -> bool:
        return any(not agent.finished for agent in self._agents)

    def _push(self, at: float, what: SimCall | Agent | None, version: int) -> None:
        heapq.heappush(self._events, (at, next(self._number), what, version))

    # --- agents ---------------------------------------------------------------------------------------------------

    def _agent(self, index: int, tenants: int) -> Agent:
        plan = self._random.choice(self._plans) if self._repeat else self._plans[index % len(self._plans)]
        clock = self._random.random() * plan.seconds if self._repeat else 0.0
        return Agent(
            index=index,
            tenant_id=TenantId(f"t-{index % tenants}"),
            session_id=SessionId(f"s-{index:04d}"),
            priority=50,
            plan=plan,
            clock=clock,
            since=0.0,
            begun_clock=clock,
        )

    def _start(self, agent: Agent) -> None:
        """The agent's process begins, once what its policy reserves for it is there."""
        agent.started = False
        if self._policy.reserve is not None:
            agent.reserved = self._policy.reserve(agent.plan)
            if self._queue or self._reserved + agent.reserved > self._memory:
                if agent not in self._queue:
                    self._queue.append(agent)
                return
            self._reserved += agent.reserved
        agent.started = True
        agent.waits = False
        agent.since = self._now
        steps = agent.plan.framework.steps if agent.plan.framework is not None else ()
        agent.step = max((i for i, step in enumerate(steps) if step.at <= agent.clock), default=-1)
        agent.next_call = sum(1 for c in agent.plan.calls if c.start < agent.clock)
        self._agent_uses(agent, steps[agent.step].nbytes if agent.step >= 0 else 0)
        self._schedule_agent(agent)

    def _schedule_agent(self, agent: Agent) -> None:
        agent.version += 1
        if agent.started and not agent.waits and not agent.finished:
            self._push(agent.next_at() + _NUDGE, agent, agent.version)

    def _agent_goes_on(self, agent: Agent) -> None:
        """Its clock stands at a step of its framework, the begin of a call, or the end of its trace."""
        plan = agent.plan
        steps = plan.framework.steps if plan.framework is not None else ()
        agent.clock, agent.since = agent.clock_at(self._now), self._now
        while agent.step + 1 < len(steps) and steps[agent.step + 1].at <= agent.clock:
            agent.step += 1
            self._agent_uses(agent, steps[agent.step].nbytes)
        lost = agent.started is False
        while not lost and agent.next_call < len(plan.calls) and plan.calls[agent.next_call].start <= agent.clock:
            planned = plan.calls[agent.next_call]
            agent.next_call += 1
            self._ask(agent, planned)
            lost = agent.started is False
        if lost:
            return
        if agent.clock >= plan.seconds - _NUDGE and not agent.calls:
            self._trace_ended(agent)
        elif agent.next_at() > self._now or agent.next_call < len(plan.calls) or agent.step + 1 < len(steps):
            self._schedule_agent(agent)

    def _trace_ended(self, agent: Agent) -> None:
        self.report.traces_ended += 1
        agent.runs += 1
        agent.progress += agent.plan.seconds - agent.begun_clock
        agent.begun_clock = agent.clock = 0.0
        agent.started = False
        self._agent_uses(agent, 0)
        self._unreserve(agent)
        if not self._repeat:
            agent.finished, agent.ended_at = True, self._now
            return
        agent.plan = self._random.choice(self._plans)
        agent.session_id = SessionId(f"s-{agent.index:04d}-{agent.runs}")
        self._start(agent)

    def _unreserve(self, agent: Agent) -> None:
        self._reserved -= agent.reserved
        agent.reserved = 0
        waiting, self._queue = self._queue, []
        for other in waiting:
            self._start(other)

    def _agent_uses(self, agent: Agent, nbytes: int) -> None:
        grew = nbytes > agent.memory
        self._agents_memory += nbytes - agent.memory
        agent.memory = nbytes
        if grew:
            self._check_memory()
        self._round_due = True

    def _review_agent(self, agent: Agent) -> None:
        """Whether it waits for a call, now that one has changed."""
        waits = any(call.keeps_agent_waiting(self._now) for call in agent.calls.values())
        if waits != agent.waits:
            agent.clock, agent.since = agent.clock_at(self._now), self._now
            agent.waits = waits
            self._schedule_agent(agent)
        elif not waits and not agent.calls and agent.clock_at(self._now) >= agent.plan.seconds - _NUDGE:
            self._schedule_agent(agent)

    # --- calls ---------------------------------------------------------------------------------------------------

    def _ask(self, agent: Agent, planned: PlannedCall) -> None:
        call = SimCall(
            id=CallId(f"c-{agent.index:04d}-{agent.runs:04d}-{planned.number:05d}"),
            agent=agent,
            planned=planned,
            kind=Kind(
                tenant=agent.tenant_id, tool=planned.tool, call_class=planned.call_class, session=agent.session_id
            ),
            asked_at=self._now,
        )
        agent.calls[call.id] = self._calls[call.id] = call
        if self._policy.decide is None:
            self._begin(call, NO_LIMIT)
            return
        self._forecast(call)
        self._review_agent(agent)
        self._round_due = True

    def _forecast(self, call: SimCall) -> None:
        call.need = self._learner.forecast(
            call.kind,
            ident=call.id,
            elapsed=call.clock_at(self._now),
            usage=call.usage,
            growing=call.stage is Stage.HELD,
        )

    def _begin(self, call: SimCall, granted: int) -> None:
        call.stage = Stage.RUNNING
        call.begun_at = call.since = self._now
        call.granted = granted
        if self._now > call.asked_at:
            call.waited_seconds += self._now - call.asked_at
            self.report.waited_seconds.append(self._now - call.asked_at)
        self._call_goes_on(call)

    def _call_goes_on(self, call: SimCall) -> None:
        """It runs, and its clock stands at a step, at where it has caught up, or at its end."""
        schedule = call.planned.schedule
        call.clock, call.since = call.clock_at(self._now), self._now
        if call.clock >= schedule.end - 1e-9:
            self._end(call)
            return
        while call.step + 1 < len(schedule.steps) and schedule.steps[call.step + 1].at <= call.clock + 1e-9:
            call.step += 1
            call.wanted = schedule.steps[call.step].nbytes
        self._grow(call)

    def _grow(self, call: SimCall) -> None:
        """Takes what its schedule holds; past its threshold it is stopped there. One without a threshold goes up to
        its notice at the most, which makes a round, and on from there."""
        braked = call.wanted > call.granted
        usage = min(call.wanted, max(call.granted, call.usage)) if braked else call.wanted
        noticed = call.granted == NO_LIMIT and usage > (notice := call.usage + self._unwatched_growth())
        usage = notice if noticed else usage
        freed, grew = usage < call.usage, usage > call.usage
        self._calls_memory += usage - call.usage
        call.usage = usage
        if braked:
            call.stage, call.held_since = Stage.HELD, self._now
            call.version += 1
            self.report.brakes += 1
            self.report.calls_braked += not call.braked
            call.braked = True
            self._forecast(call)
            self._round_due = True
        else:
            call.version += 1
            following = self._now if noticed else call.next_at()
            self._push(max(following, self._now + _LEAST), call, call.version)
            self._round_due |= freed or noticed
        if grew:
            self._check_memory()
        if call.id in self._calls:
            self._review_agent(call.agent)

    def _resume(self, call: SimCall, granted: int) -> None:
        """A held call goes on under a higher threshold; one that wants still more is stopped again by ``_grow``."""
        call.granted = max(call.granted, granted)
        if call.stage is Stage.HELD:
            held = self._now - (call.held_since if call.held_since is not None else self._now)
            if call.wanted <= call.granted:
                call.held_seconds += held
                if held:
                    self.report.held_seconds.append(held)
                call.held_since = None
                call.stage, call.since = Stage.RUNNING, self._now
                self._grow(call)
            else:  # the same hold goes on, at a higher use
                since = call.held_since
                self._grow(call)
                call.held_since = since

    def _end(self, call: SimCall) -> None:
        self._forget(call)
        self.report.calls_ended += 1
        schedule = call.planned.schedule
        samples = [(step.at, step.nbytes) for step in schedule.steps]
        self._learner.learn(life_of(call.kind, schedule.end, samples))
        self._review_agent(call.agent)

    def _forget(self, call: SimCall) -> None:
        self._calls_memory -= call.usage
        call.usage = 0
        call.version += 1
        del self._calls[call.id]
        del call.agent.calls[call.id]
        self._round_due = True

    def _kill(self, call: SimCall) -> None:
        """Its leaf is killed; its agent takes the offer to begin it anew, _MOST_TRIES times."""
        self.report.lost_seconds += call.clock_at(self._now)
        call.tries += 1
        if call.tries >= _MOST_TRIES:
            self.report.calls_given_up += 1
            self._forget(call)
            self._review_agent(call.agent)
            return
        call.catch_up = max(call.catch_up, call.clock_at(self._now))
        self._calls_memory -= call.usage
        call.usage = call.granted = call.wanted = 0
        call.clock, call.step = 0.0, -1
        call.stage, call.held_since, call.asked_at = Stage.WAITING, None, self._now
        call.squeezed = call.advised = False
        call.version += 1
        self._round_due = True
        if self._policy.decide is None:
            self._begin(call, NO_LIMIT)
        else:
            self._forecast(call)
            self._review_agent(call.agent)

    # --- memory ---------------------------------------------------------------------------------------------------

    def _check_memory(self) -> None:
        """The kernel's OOM killer, when more is used than there is: the largest call; the agents' own processes are
        protected by their oom_score_adj under control, and otherwise as likely as any of their size."""
        self.report.memory_peak = max(
            self.report.memory_peak, min(self._memory, self._agents_memory + self._calls_memory)
        )
        while self._agents_memory + self._calls_memory > self._memory:
            call = max(self._calls.values(), key=lambda c: (c.usage, c.id), default=None)
            agent = max(self._agents, key=lambda a: (a.memory, a.index))
            takes_agent = call is None or call.usage == 0 or (self._policy.decide is None and agent.memory > call.usage)
            if call is not None and not takes_agent:
                self.report.calls_oom_killed += 1
                self._kill(call)
            else:
                self._lose(agent)

    def _lose(self, agent: Agent) -> None:
        """Its process is gone, and its calls with it; it begins its trace anew."""
        self.report.agents_lost += 1
        for call in list(agent.calls.values()):
            self._forget(call)
        self._agents_memory -= agent.memory
        agent.memory = 0
        agent.clock = agent.begun_clock = 0.0
        agent.version += 1
        agent.started = False
        reserved, agent.reserved = agent.reserved, 0
        self._reserved -= reserved
        self._start(agent)

    # --- rounds ---------------------------------------------------------------------------------------------------

    def _rounds(self) -> None:
        """The policy decides until nothing more follows from what it decided at this moment."""
        decide = self._policy.decide
        for _ in range(_MOST_ROUNDS):
            self._round_due = False
            if decide is None:
                return
            if not self._something_to_decide():
                return
            self.report.rounds += 1
            state = self.state()
            changed = False
            for step in decide(state, self._policy.config):
                changed |= self._carry_out(step)
            if not (self._round_due and changed):
                return
        raise SimulationError(f"policy {self._policy.name} made {_MOST_ROUNDS} rounds at {self._now:.3f} s")

    def _something_to_decide(self) -> bool:
        if any(c.stage is not Stage.RUNNING or (c.squeezed and self._ticked) for c in self._calls.values()):
            return True
        free = self._free()
        short = free < self._policy.config.arm_below * self._capacity and any(c.unarmed for c in self._calls.values())
        return short or free < 0 or (self._ticked and self._policy.config.disarm_above < 1.0)

    def _free(self) -> int:
        """Bytes neither used nor promised by a threshold."""
        calls = self._calls.values()
        return (
            self._capacity - self._agents_memory - sum(c.usage if c.unarmed else max(c.usage, c.granted) for c in calls)
        )

    def _unwatched_growth(self) -> int:
        """As controller.plenty: how far a call without a threshold grows until somebody looks. Bytes."""
        if self._policy.decide is None:
            return NO_LIMIT
        watched = sum(c.unarmed for c in self._calls.values()) + len(self._agents)
        return unwatched_growth(self._free(), watched)

    def state(self) -> State:
        """The host as the policy sees it at this moment."""
        return State(
            at=self._now,
            capacity=self._capacity,
            reserve=self._memory - self._capacity,
            agents=self._agents_memory,
            cpus=self._cpus,
            calls=tuple(sorted((c.facts() for c in self._calls.values()), key=lambda f: f.id)),
        )

    def _carry_out(self, step: Step) -> bool:
        """Whether anything changed that another round might answer."""
        call = self._calls.get(step.call_id)
        if call is None:
            return False
        match step.kind:
            case StepKind.ADMIT:
                self._begin(call, step.brake or NO_LIMIT)
            case StepKind.RAISE | StepKind.THAW:
                self._resume(call, step.brake)
            case StepKind.RELAX:
                call.granted, call.squeezed = max(call.granted, step.brake), False
            case StepKind.THROTTLE:
                call.granted, call.squeezed = max(call.usage, step.brake), True
                return False
            case StepKind.ARM:
                call.granted = max(call.usage, step.brake)
                return False
            case StepKind.DISARM:
                call.granted = NO_LIMIT
                return False
            case StepKind.FREEZE:
                self._freeze(call)
            case StepKind.KILL:
                killed = self.report.calls_killed
                killed[step.code] = killed.get(step.code, 0) + 1
                self._kill(call)
            case StepKind.ADVISE:
                call.advised = True
                return False
            case _:
                return False
        return True

    def _freeze(self, call: SimCall) -> None:
        if call.stage is Stage.RUNNING:
            call.clock = call.clock_at(self._now)
            call.stage, call.held_since = Stage.HELD, self._now
            call.granted = call.usage
            call.version += 1
            self.report.frozen += 1
            self._review_agent(call.agent)
