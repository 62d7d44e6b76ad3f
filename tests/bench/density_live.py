"""The cells at the edge of bench density, live: recorded agents in real memory, back to back from random starts at ten
times their speed, at half their size in 4 GiB: under Corral, with nothing, and with an oracle that reserves each
trace's own peak. Beside each the simulator's figure for the same cell, with the same agents at the same places to
begin with.

What it is not: the agents burn no CPU (two cores cannot spin for 33 agents), so what a host's CPUs do to a dense host
is not seen; a call's own clock does not stand still while it is held (it catches up); one that was killed is not begun
anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from agentd.api.client import Client, connect
from agentd.cli.errors import CliError
from agentd.cli.replay.player import AgentClock, Stage, play
from agentd.embedded import EmbeddedDaemon
from agentd.proto.corral.v1 import corral_pb2 as pb
from controller.simulate.density import measure as simulate
from controller.simulate.plan import MB, Plan, Schedule
from controller.simulate.policies import Policy, peak_of, policy
from controller.simulate.report import Report
from tests.bench.density import SLOW_DOWN, read_plans
from tests.bench.harness import LAUNCHER, BenchError, Context
from tests.bench.isolation import REPLAYER, clean_environment, limit, memory_root, oom_kills, usage_file
from tests.bench.result import Figure, Result, Row

MEMORY: Final = 4 << 30
SCALE: Final = 0.5
BASE_BYTES: Final = round(185 * MB * SCALE)
SECONDS: Final = 90.0
TENANTS: Final = 4
READY_WITHIN: Final = 60.0  # seconds for all processes to be there
NICE: Final = -7
ENDED_BY: Final = frozenset({"brake", "ladder"})  # for want of memory
LOOK: Final = 0.25  # seconds between two readings of the memory in use
# policy → agents: two below, at and two above what the simulator finds (docs/benchmarks.md, Density)
CELLS: Final = {"corral": (31, 33, 35), "none": (27, 29, 31), "oracle": (26, 28, 30)}
QUICK: Final = {"corral": (33,), "none": (33,)}
QUICK_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    policy: str
    agents: int
    seconds: float
    seed: int


@dataclass(slots=True, kw_only=True)
class Live:
    """One run of one cell. ``slow_downs``: of each agent, the time it took over the time that was recorded for that."""

    slow_downs: list[float] = field(default_factory=list)
    agents_lost: int = 0
    oom_killed: int = 0  # calls, by the kernel
    killed: Counter[str] = field(default_factory=Counter)  # calls, by Corral: policy → number
    calls: int = 0
    brakes: int = 0
    held: float = 0.0
    memory: list[int] = field(default_factory=list)

    @property
    def slow_down(self) -> float:
        return sum(self.slow_downs) / len(self.slow_downs)

    @property
    def calls_killed(self) -> int:
        return self.oom_killed + self.killed.total()


@dataclass(slots=True, kw_only=True)
class Agent:
    """One place of the host: plays a trace from somewhere on, then others. Seconds are real ones."""

    index: int
    plan: Plan
    begun_at: float  # seconds of the plan
    done: float = 0.0  # of plans that ended, seconds of the plan
    setting_up: float = 0.0  # the bench's own: sessions and processes that are started
    lost: int = 0
    clock: AgentClock = field(default_factory=AgentClock)
    since: float = 0.0  # when it began to set up the plan that it plays; 0: it waits for its reservation

    def slow_down(self, began: float, now: float) -> float:
        setting_up, done = self.setting_up, self.done
        if self.clock.began is not None:
            setting_up += self.clock.began - max(began, self.since)
            done += min(self.clock.shows(now), self.plan.seconds)
        elif self.since:
            setting_up += now - max(began, self.since)
        return (now - began - setting_up) / done if done > 0 else float("inf")


async def measure(context: Context) -> Result:
    plans = [_still(plan) for plan in read_plans(scale=SCALE, base_bytes=BASE_BYTES)]
    cells, seconds = (QUICK, QUICK_SECONDS) if context.quick else (CELLS, SECONDS)
    result = Result(runs=context.count(full=1, quick=1), mode="live")
    free = _free()
    if free < MEMORY * 1.1:
        raise BenchError(f"{free >> 20} MiB are available; the cells need {MEMORY >> 20} MiB and a tenth more")
    for turn in range(result.runs):
        for name, numbers in cells.items():
            for agents in numbers:
                seed = 1 + turn
                context.say(f"{name}, {agents} agents: {seconds:g} s, then the same simulated")
                one = Cell(policy=name, agents=agents, seconds=seconds, seed=seed)
                live = await _run(context, one, plans)
                chosen = policy(name, plans)
                cell = simulate(plans, chosen, memory=MEMORY, agents=agents, seconds=seconds, seeds=[seed])
                result.rows.append(_row(name, agents, seed, live, cell.reports[0]))
    _summarise(result)
    result.notes.append(
        f"{len(plans)} traces at half their size in {MEMORY >> 30} GiB for {seconds:g} s a cell, without the CPU time "
        "that was recorded: what is compared is memory"
    )
    return result


def _still(one: Plan) -> Plan:
    """Without its load of the CPUs."""

    def idle(schedule: Schedule) -> Schedule:
        return replace(schedule, steps=tuple(replace(step, cores=0.0) for step in schedule.steps))

    framework = idle(one.framework) if one.framework is not None else None
    return replace(one, framework=framework, calls=tuple(replace(c, schedule=idle(c.schedule)) for c in one.calls))


def rest_of(one: Plan, at: float) -> Plan:
    """What is left of a plan at ``at`` seconds. A call that runs there is left out, as in the simulator."""
    if at <= 0:
        return one
    framework = one.framework
    if framework is not None:
        before = [step for step in framework.steps if step.at <= at][-1:]
        steps = [replace(step, at=0.0) for step in before]
        steps += [replace(step, at=step.at - at) for step in framework.steps if step.at > at]
        framework = replace(framework, steps=tuple(steps), end=framework.end - at)
    calls = tuple(replace(call, start=call.start - at) for call in one.calls if call.start >= at)
    return replace(one, seconds=one.seconds - at, framework=framework, calls=calls)


def _free() -> int:
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise BenchError("/proc/meminfo has no MemAvailable; the kernel is older than 3.14")


# --- a run


async def _run(context: Context, cell: Cell, plans: Sequence[Plan]) -> Live:
    folder = context.directory / "run"
    folder.mkdir(exist_ok=True)
    chance = random.Random(cell.seed)  # noqa: S311 - the simulator's draws, in its order
    drawn = []
    for index in range(cell.agents):
        plan = chance.choice(plans)
        drawn.append(Agent(index=index, plan=plan, begun_at=chance.random() * plan.seconds))
    host: _Corral | _Bare = _Corral(context) if cell.policy == "corral" else _Bare(folder)
    live = Live()
    async with host:
        places = _Places(host, folder, plans, chance, policy(cell.policy, plans))
        tasks = [asyncio.create_task(places.fill(agent)) for agent in drawn]
        try:
            began = await places.begin()
            while (now := time.monotonic()) < began + cell.seconds:
                live.memory.append(int(host.usage.read_text("ascii")) - host.beside)
                done, _ = await asyncio.wait(tasks, timeout=LOOK, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:  # an agent's place is filled for ever: it can only have failed
                    task.result()
            live.slow_downs = [agent.slow_down(began, now) for agent in drawn]
            await host.look(live)
            live.agents_lost = max(live.agents_lost, sum(agent.lost for agent in drawn))
        except CliError as err:
            raise BenchError(f"{cell.policy}, {cell.agents} agents: {err}; {host.words()}") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return live


class _Places:
    """Fills the places of a host with one trace after the other."""

    def __init__(
        self, host: _Corral | _Bare, folder: Path, plans: Sequence[Plan], chance: random.Random, chosen: Policy
    ) -> None:
        self._host, self._folder, self._plans, self._chance = host, folder, plans, chance
        self._reserve = chosen.reserve
        self._reserved = 0
        self._line: deque[Agent] = deque()
        self._free = asyncio.Condition()
        self._begin = asyncio.Event()
        self._all_ready = asyncio.Event()
        self._began = 0.0
        self._starting = self._ready = 0

    async def begin(self) -> float:
        """All agents that may, at the same moment, once their processes stand ready. That moment."""
        with contextlib.suppress(TimeoutError):  # a process that does not come is an error of its own
            await asyncio.wait_for(self._all_ready.wait(), READY_WITHIN)
        self._began = time.monotonic()
        self._begin.set()
        return self._began

    async def _stand_by(self) -> None:
        self._ready += 1
        if self._ready == self._starting:  # those that wait for their reservation are not among them
            self._all_ready.set()
        await self._begin.wait()

    async def fill(self, agent: Agent) -> None:
        for run in range(1_000_000):
            wanted = peak_of(agent.plan) if self._reserve is not None else 0
            async with self._free:
                self._line.append(agent)  # in the order in which they ask, as in the simulator: none is passed by
                while self._line[0] is not agent or self._reserved + wanted > MEMORY:
                    await self._free.wait()
                self._line.popleft()
                self._reserved += wanted
                self._free.notify_all()
            await self._one(agent, run)
            async with self._free:
                self._reserved -= wanted
                self._free.notify_all()
            agent.plan, agent.begun_at = self._chance.choice(self._plans), 0.0

    async def _one(self, agent: Agent, run: int) -> None:
        agent.plan = rest_of(agent.plan, agent.begun_at)
        agent.clock, agent.since = AgentClock(ready=self._stand_by), time.monotonic()
        self._starting += 1
        tag, tenant = f"{agent.index:03d}-{run}", f"t{agent.index % TENANTS}"
        session, stage = await self._host.session(agent.index, tag)
        played = await play(agent.plan, stage, tag=tag, session="", token="", tenant=tenant, clock=agent.clock)
        agent.setting_up += (agent.clock.began or time.monotonic()) - max(self._began, agent.since)
        agent.done += agent.plan.seconds
        agent.lost += played.framework is not None and played.framework.status != 0
        agent.clock, agent.since = AgentClock(), 0.0
        for file in self._folder.glob(f"{tag}-*"):
            file.unlink()
        await self._host.close(session)


class _Bare:
    """Plain groups: one with the limit, and below it one for the agents' own processes and one for their calls."""

    beside: int = 0  # bytes in use below it that are no part of the experiment

    def __init__(self, folder: Path) -> None:
        self._root = memory_root()
        self._top = self._root / f"corral-bench-density-{os.getpid()}"
        self._groups = (self._top / "agents", self._top / "calls")
        self._stage = Stage(replayer=folder / "enter", launcher=None, folder=folder, environment=clean_environment())

    async def __aenter__(self) -> _Bare:
        self._top.mkdir()
        if not (self._root / "memory.usage_in_bytes").exists():
            (self._top / "cgroup.subtree_control").write_text("+memory")
        limit(self._top, MEMORY)
        for group in self._groups:
            group.mkdir()
        agents, calls = self._groups
        # a framework is the one that announces itself
        text = f'#!/bin/sh\ncase "$1" in --announce) g={agents};; *) g={calls};; esac\necho $$ >$g/cgroup.procs'
        self._stage.replayer.write_text(f'{text} && exec {REPLAYER} "$@"\n', encoding="utf-8")
        self._stage.replayer.chmod(0o755)
        return self

    @property
    def usage(self) -> Path:
        return usage_file(self._top)

    async def __aexit__(self, *_: object) -> None:
        for attempt in range(50):  # what was killed leaves its group a moment later
            try:
                for group in (*self._groups, self._top):
                    if group.is_dir():
                        group.rmdir()
                break
            except OSError:
                if attempt == 49:
                    raise
                await asyncio.sleep(0.1)

    async def session(self, index: int, name: str) -> tuple[str, Stage]:
        return "", self._stage

    async def close(self, session: str) -> None:
        pass

    async def look(self, live: Live) -> None:
        agents, calls = self._groups
        live.agents_lost, live.oom_killed = oom_kills(agents), oom_kills(calls)

    def words(self) -> str:
        return "no daemon is part of this cell"


class _Corral:
    """A daemon that may use the memory, and the kernel's limit above it."""

    beside: int = 0

    def __init__(self, context: Context) -> None:
        directory = context.directory / f"d{len(list(context.directory.glob('d*')))}"
        directory.mkdir()
        self._daemon = EmbeddedDaemon(
            directory,
            tenants={f"t{number}": {} for number in range(TENANTS)},
            settings={"daemon": {"log_format": "text"}, "host": {"memory": str(MEMORY)}},
            label="corral-bench",
        )
        self._top = memory_root() / self._daemon.name
        folder = context.directory / "run"
        enter = folder / "enter-session"  # a framework is the one that announces itself
        text = f'#!/bin/sh\ncase "$1" in --announce) exec {context.compile("enter")} {REPLAYER} "$@";; esac'
        enter.write_text(f'{text}\nexec {REPLAYER} "$@"\n', encoding="utf-8")
        enter.chmod(0o755)
        environment = {**clean_environment(), "CORRAL_SOCKET": str(self._daemon.broker_socket)}
        self._stage = Stage(replayer=enter, launcher=LAUNCHER, folder=folder, environment=environment)
        self._stack = contextlib.AsyncExitStack()
        self._client: Client

    async def __aenter__(self) -> _Corral:
        self._stack.push_async_callback(self._purge)
        try:
            await self._daemon.start()
            self._client = await self._stack.enter_async_context(connect(str(self._daemon.operator_socket)))
        except BaseException:
            await self._stack.aclose()
            raise
        # what its unit's CPUWeight=500 comes to beside others of weight 100, where systemd does not run
        os.setpriority(os.PRIO_PROCESS, self._daemon.pid, NICE)
        own = self._top / "agentd"  # the daemon is no part of the experiment: what it holds now is put on top
        self.beside = int(usage_file(own).read_text("ascii")) if own.is_dir() else 0
        limit(self._top, MEMORY + self.beside)
        return self

    @property
    def usage(self) -> Path:
        return usage_file(self._top)

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _purge(self) -> None:
        await asyncio.shield(self._daemon.purge(within=60))

    async def session(self, index: int, name: str) -> tuple[str, Stage]:
        request = pb.OpenSessionRequest(tenant=f"t{index % TENANTS}", name=name, uid=os.getuid())
        opened = await self._client.call(self._client.agent.OpenSession, request)
        environment = {**self._stage.environment, "CORRAL_TOKEN": opened.token}
        return opened.session.id, replace(self._stage, environment=environment)

    async def close(self, session: str) -> None:
        request = pb.CloseSessionRequest(session_id=session, kill=True)
        await self._client.call(self._client.agent.CloseSession, request)

    async def look(self, live: Live) -> None:
        async for call in self._calls():
            live.calls += 1
            live.brakes += call.brakes
            live.held += call.outcome.held_seconds
            live.oom_killed += call.outcome.reason.startswith("oom_")
            for decision in call.outcome.decisions:
                if decision.action == "kill" and decision.policy in ENDED_BY:
                    live.killed[decision.policy] += 1
        live.agents_lost = sum(oom_kills(group) for group in self._top.glob("*/*/agent"))

    async def _calls(self) -> AsyncIterator[pb.Call]:
        past = await self._client.call(
            self._client.operator.History, pb.HistoryRequest(limit=10_000, with_decisions=True)
        )
        for call in past.calls:
            yield call

    def words(self) -> str:
        return f"agentd says:\n{self._daemon.log_tail()}"


# --- figures


def _finite(value: float) -> float | None:
    """None: an agent got nothing done at all, so the mean has no end."""
    return value if value != float("inf") else None


def _row(name: str, agents: int, seed: int, live: Live, simulated: Report) -> Row:
    row: Row = {"policy": name, "agents": agents, "seed": seed, "slow_down": _finite(live.slow_down)}
    row |= {"agents_lost": live.agents_lost, "calls_oom_killed": live.oom_killed, "calls": live.calls}
    row |= {"calls_killed": live.killed.total(), "killed_by": " ".join(f"{k}:{n}" for k, n in live.killed.items())}
    row |= {"brakes": live.brakes, "held_s": live.held}
    row |= {"memory_mean_bytes": sum(live.memory) / len(live.memory), "memory_peak_bytes": max(live.memory)}
    row |= {
        "simulated_slow_down": _finite(simulated.mean_slow_down),
        "simulated_agents_lost": simulated.agents_lost,
        "simulated_calls_oom_killed": simulated.calls_oom_killed,
        "simulated_calls_killed": sum(simulated.calls_killed.values()),
        "simulated_calls": simulated.calls_ended,
        "simulated_brakes": simulated.brakes,
        "simulated_memory_mean_bytes": simulated.memory_mean,
        "fits": live.agents_lost + live.calls_killed == 0 and live.slow_down <= SLOW_DOWN,
        "simulated_fits": simulated.lost_nothing and simulated.mean_slow_down <= SLOW_DOWN,
    }
    return row


def _summarise(result: Result) -> None:
    for name, agents in dict.fromkeys((str(row["policy"]), int(row["agents"] or 0)) for row in result.rows):
        rows = [row for row in result.rows if (row["policy"], row["agents"]) == (name, agents)]

        def mean(key: str, rows: list[Row] = rows) -> float | None:
            values = [float(value) for row in rows if (value := row[key]) is not None]
            return sum(values) / len(values) if len(values) == len(rows) else None

        cell = f"{name}_{agents}"
        for key in ("slow_down", "agents_lost", "calls_killed", "calls_oom_killed"):
            for who in ("", "simulated_"):
                unit = "ratio" if key == "slow_down" else "a run"
                result.summary[f"{cell}_{who}{key}"] = Figure(value=mean(f"{who}{key}"), unit=unit)
        for who in ("", "simulated_"):
            key = f"{who}memory_mean_bytes"
            result.summary[f"{cell}_{key}"] = Figure(value=mean(key), unit="bytes")
        if mean("slow_down") is None or mean("simulated_slow_down") is None:
            result.notes.append(f"{name}, {agents} agents: one got nothing done, so there is no mean slow-down")
    ours = [row for row in result.rows if row["policy"] == "corral" and row["agents"] == 33]
    lost = sum(int(row["agents_lost"] or 0) for row in ours)
    result.summary["agents_lost"] = Figure(value=lost, unit="count", at_most=0)
    agree = [float(row["fits"] == row["simulated_fits"]) for row in result.rows]
    result.summary["verdicts_alike"] = Figure(value=sum(agree) / len(agree), unit="share of cells")
