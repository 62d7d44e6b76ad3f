"""Three recorded agents in too little memory: HIGH beside twice LOW, with nothing between them, with a static split,
and under Corral. The experiment of the AgentCgroup paper (arXiv 2602.09345), with real calls in groups of their own,
every 2 MiB chunk timed by itself, and an agent's framework apart from its tools.

Sizes: the traces' MB are 10^6 bytes, and 100 of them are added to each agent, as in the paper; totals are MiB. Each
cell has the same limit in the kernel, on a group above all three. An agent survives when its framework and every call
followed its schedule to the end. An agent waits for its calls: its clock stands while one takes longer than recorded.

Under Corral the operator's whole say is used: HIGH's tenant has the higher priority and the larger CPU weight.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agentd.api.client import Client, connect
from agentd.cli.errors import CliError
from agentd.cli.replay.player import Played, Stage, play
from agentd.cli.replay.player import Result as Process
from agentd.embedded import EmbeddedDaemon, cgroup_mounts
from agentd.proto.corral.v1 import corral_pb2 as pb
from controller.simulate.plan import MB, Plan, plan
from controller.simulate.trace import Trace, TraceError, read_trace
from tests.bench.density import TRACES
from tests.bench.harness import LAUNCHER, BenchError, Context
from tests.bench.result import REPOSITORY, Figure, Result, Row
from tests.bench.stats import median, percentile

MIB: Final = 1 << 20
ADDED_MB: Final = 100.0
BASE_BYTES: Final = 285 * MB  # of a framework: 185, and what is added
RESAMPLES: Final = 1000  # of the bootstrap
NAMES: Final = ("high", "low1", "low2")
REPLAYER: Final = REPOSITORY / "agentd" / "launcher" / "corral-replay"
CELLS: Final = ("alone", "none", "split", "ours")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One experiment. ``total`` bytes for all three."""

    high: str
    total: int
    speed: float

    @property
    def name(self) -> str:
        return f"{self.high.partition('__')[0]} {self.total // MIB} MiB {self.speed:g}x"


LOW: Final = "sigmavirus24__github3.py-673"
DASK, PRE_COMMIT = "dask__dask-11628", "pre-commit__pre-commit-2524"
SETTINGS: Final = (
    Setting(high=DASK, total=1100 * MIB, speed=50),
    Setting(high=DASK, total=1300 * MIB, speed=50),
    Setting(high=DASK, total=1100 * MIB, speed=10),
    Setting(high=DASK, total=1300 * MIB, speed=10),
    # alone it needs 1871 MiB: here it and the frameworks of the others fit, and nothing else
    Setting(high=PRE_COMMIT, total=2500 * MIB, speed=50),
)


@dataclass(slots=True, kw_only=True)
class Run:
    """What one run of one cell gave, by agent."""

    played: dict[str, Played]
    oom_kills: int
    brakes: int = 0
    held: float = 0.0
    killed: int = 0  # calls that Corral ended


async def measure(context: Context) -> Result:
    rounds = context.count(full=20, quick=2)
    settings = SETTINGS[:1] if context.quick else SETTINGS
    result = Result(runs=rounds, mode="hybrid" if (memory_root() / "memory.usage_in_bytes").exists() else "unified")
    for setting in settings:
        plans = _plans(setting)
        runs: dict[str, list[Run]] = {cell: [] for cell in CELLS}
        for turn in range(rounds):
            for i in range(len(CELLS)):
                cell = CELLS[(turn + i) % len(CELLS)]
                run = await _run(context, cell, setting, plans)
                runs[cell].append(run)
                result.rows += _rows(setting, cell, turn, run)
            context.say(f"{setting.name}: {turn + 1} of {rounds} rounds")
        _summarise(result, setting, runs)
    result.notes.append("memory.high alone needs cgroup v2 and is not among these cells on a hybrid host")
    return result


def _plans(setting: Setting) -> dict[str, Plan]:
    folder = Path(os.environ.get(TRACES) or REPOSITORY.parent / "shared" / "traces" / "compact")
    made = {}
    for name, task in zip(NAMES, (setting.high, LOW, LOW), strict=True):
        try:
            trace = read_trace(folder / f"haiku__{task}.json")
        except TraceError as err:
            raise BenchError(f"{err}; set {TRACES} to the directory of the traces") from None
        made[name] = plan(_lifted(trace), speed=setting.speed, base_bytes=BASE_BYTES)
    return made


def _lifted(trace: Trace) -> Trace:
    return replace(trace, memory_mb=tuple(mb + ADDED_MB for mb in trace.memory_mb))


async def _run(context: Context, cell: str, setting: Setting, plans: dict[str, Plan]) -> Run:
    folder = context.directory / "run"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    if cell == "ours":
        return await _ours(context, setting, plans, folder)
    names = NAMES[:1] if cell == "alone" else NAMES
    with _Groups(setting.total, split=cell == "split") as groups:
        played = await _together(
            {name: plans[name] for name in names},
            {name: Stage(replayer=groups.wrapper(name, folder), launcher=None, folder=folder,
                         environment=clean_environment()) for name in names},
        )  # fmt: skip
        return Run(played=played, oom_kills=groups.oom_kills())


async def _together(
    plans: dict[str, Plan], stages: dict[str, Stage], sessions: dict[str, tuple[str, str]] | None = None
) -> dict[str, Played]:
    async with asyncio.TaskGroup() as group:
        tasks = {}
        for name, one in plans.items():
            session, token = (sessions or {}).get(name, ("", ""))
            going = play(one, stages[name], tag=name, session=session, token=token, tenant=name)
            tasks[name] = group.create_task(going)
    return {name: task.result() for name, task in tasks.items()}


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("CORRAL_")}


# --- without Corral


def memory_root() -> Path:
    """The hierarchy that limits memory."""
    for mount in cgroup_mounts():
        if (mount / "memory.usage_in_bytes").exists() or "memory" in _controllers(mount):
            return mount
    raise BenchError("no mounted cgroup hierarchy limits memory; see corral doctor")


def _controllers(mount: Path) -> list[str]:
    try:
        return (mount / "cgroup.controllers").read_text("ascii").split()
    except OSError:
        return []


class _Groups:
    """Plain groups, as a container's: one above all with the whole limit, one for each agent (with a third, where it is
    split), and the same for their CPU time (with equal weights), as Corral's are in groups, too. Removed at the end."""

    def __init__(self, total: int, *, split: bool) -> None:
        name = f"corral-bench-isolation-{os.getpid()}"
        self._root = memory_root()
        self._top = self._root / name
        cpu = next((mount for mount in cgroup_mounts() if (mount / "cpu.shares").exists()), self._root)
        self._tops = list(dict.fromkeys((self._top, cpu / name)))
        self._total, self._split = total, split

    def __enter__(self) -> _Groups:
        for top in self._tops:
            top.mkdir()
        weigh(self._tops[-1])
        if "memory" in (have := _controllers(self._root)):
            (self._top / "cgroup.subtree_control").write_text("+memory +cpu" if "cpu" in have else "+memory")
        limit(self._top, self._total)
        for name in NAMES:
            for top in self._tops:
                (top / name).mkdir()
            if self._split:
                limit(self._top / name, self._total // len(NAMES))
        return self

    def __exit__(self, *_: object) -> None:
        for top in self._tops:
            for name in NAMES:
                with contextlib.suppress(FileNotFoundError):
                    (top / name).rmdir()
            with contextlib.suppress(FileNotFoundError):
                top.rmdir()

    def wrapper(self, name: str, folder: Path) -> Path:
        """A replayer that enters the agent's groups first."""
        path = folder / f"enter-{name}"
        enter = " && ".join(f"echo $$ > {top / name}/cgroup.procs" for top in self._tops)
        path.write_text(f'#!/bin/sh\n{enter} && exec {REPLAYER} "$@"\n')
        path.chmod(0o755)
        return path

    def oom_kills(self) -> int:
        return sum(oom_kills(group) for group in (self._top, *(self._top / name for name in NAMES)))


def limit(group: Path, nbytes: int) -> None:
    v1 = group / "memory.limit_in_bytes"
    (v1 if v1.exists() else group / "memory.max").write_text(str(nbytes))


def weigh(group: Path) -> None:
    """All of the CPU time that it wants, against whatever else this machine does: the cells are compared, not the
    hours at which they ran."""
    shares, weight = group / "cpu.shares", group / "cpu.weight"
    if shares.exists():
        shares.write_text("262144")
    elif weight.exists():
        weight.write_text("10000")


def oom_kills(group: Path) -> int:
    """Of this group alone (v1's oom_control and v2's memory.events.local both say it)."""
    for name in ("memory.oom_control", "memory.events.local"):
        with contextlib.suppress(OSError):
            for line in (group / name).read_text("ascii").splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


# --- under Corral


@contextlib.asynccontextmanager
async def _daemon(context: Context, setting: Setting) -> AsyncIterator[tuple[EmbeddedDaemon, Client]]:
    directory = context.directory / f"d{len(list(context.directory.glob('d*')))}"
    directory.mkdir()
    daemon = EmbeddedDaemon(
        directory,
        tenants={
            "high": {"priority": 80, "cpu_weight": 10000},
            "low1": {"priority": 20, "cpu_weight": 10},
            "low2": {"priority": 20, "cpu_weight": 10},
        },
        settings={"daemon": {"log_format": "text"}, "host": {"memory": str(setting.total)}},
        label="corral-bench",
    )
    try:
        await daemon.start()
        async with connect(str(daemon.operator_socket)) as client:
            yield daemon, client
    finally:
        await asyncio.shield(daemon.purge())


async def _ours(context: Context, setting: Setting, plans: dict[str, Plan], folder: Path) -> Run:
    async with _daemon(context, setting) as (daemon, client):
        top = memory_root() / daemon.name
        own = top / "agentd"  # the daemon is no part of the experiment: what it holds now is put on top
        holds = int(usage_file(own).read_text("ascii")) if own.is_dir() else 0
        limit(top, setting.total + holds)
        for mount in cgroup_mounts():
            weigh(mount / daemon.name)
        sessions = {}
        for name in NAMES:
            request = pb.OpenSessionRequest(tenant=name, name=name, uid=os.getuid())
            opened = await client.call(client.agent.OpenSession, request)
            sessions[name] = (opened.session.id, opened.token)
        environment = {**clean_environment(), "CORRAL_SOCKET": str(daemon.broker_socket), "PYTHONPATH": str(REPOSITORY)}
        stage = Stage(replayer=REPLAYER, launcher=LAUNCHER, folder=folder, environment=environment)
        try:
            played = await _together(plans, dict.fromkeys(NAMES, stage), sessions)
        except* CliError as err:
            raise BenchError(f"{setting.name}: {err.exceptions[0]}; agentd says:\n{daemon.log_tail()}") from None
        run = Run(played=played, oom_kills=sum(oom_kills(path) for path in top.rglob("*") if path.is_dir()))
        run.oom_kills += oom_kills(top)
        history = pb.HistoryRequest(limit=10_000, with_decisions=True)
        past = await client.call(client.operator.History, history)
        for call in past.calls:
            run.brakes += call.brakes
            run.held += call.outcome.held_seconds
        run.killed = sum(1 for decision in past.decisions if decision.action == "kill")
        return run


def usage_file(group: Path) -> Path:
    v1 = group / "memory.usage_in_bytes"
    return v1 if v1.exists() else group / "memory.current"


# --- figures


def _survived(one: Played) -> bool:
    everything = [*one.calls, *([one.framework] if one.framework else [])]
    return all(process.status == 0 and process.complete for process in everything)


def _agent_lived(one: Played) -> bool:
    return one.framework is None or (one.framework.status == 0 and one.framework.complete)


def _chunks(one: Played) -> list[float]:
    """Milliseconds of each chunk that its framework and calls touched."""
    processes: list[Process] = [*one.calls, *([one.framework] if one.framework else [])]
    return [nsec / 1e6 for process in processes for nsec in process.latencies]


def _rows(setting: Setting, cell: str, turn: int, run: Run) -> list[Row]:
    rows: list[Row] = []
    for name, one in run.played.items():
        chunks = _chunks(one)
        rows.append(
            {
                "setting": setting.name,
                "cell": cell,
                "round": turn,
                "agent": name,
                "survived": _survived(one),
                "agent_lived": _agent_lived(one),
                "makespan_s": one.wall,
                "planned_s": one.plan.seconds,
                "chunks": len(chunks),
                **{f"p{p}_ms": percentile(chunks, p) if chunks else None for p in (50, 95, 99)},
                "oom_kills": run.oom_kills,
                "brakes": run.brakes,
                "held_s": run.held,
                "calls_killed": run.killed,
            }
        )
    return rows


def _summarise(result: Result, setting: Setting, runs: dict[str, list[Run]]) -> None:
    """Keys end with the setting; the first setting's stand without it, too: those are the paper's."""
    ended = f" ({setting.name})"
    pooled = {cell: [_chunks(run.played["high"]) for run in found] for cell, found in runs.items()}
    alone = [value for chunks in pooled["alone"] for value in chunks]
    for cell, found in runs.items():
        high = [value for chunks in pooled[cell] for value in chunks]
        lived = [float(_survived(one)) for run in found for one in run.played.values()]
        target = 1.0 if cell == "ours" else None
        result.summary[f"survival_{cell}{ended}"] = Figure(value=_mean(lived), unit="share", at_least=target)
        result.summary[f"high_p95_{cell}_ms{ended}"] = Figure(value=percentile(high, 95), unit="ms", samples=high)
        spans = [one.wall / one.plan.seconds for run in found for name, one in run.played.items() if name == "high"]
        result.summary[f"high_makespan_{cell}{ended}"] = Figure(value=median(spans), unit="x planned", samples=spans)
        if cell != "alone":
            low = [one.wall / one.plan.seconds for run in found for n, one in run.played.items() if n != "high"]
            result.summary[f"low_makespan_{cell}{ended}"] = Figure(value=median(low), unit="x planned", samples=low)
        if cell == "none":
            continue
        if cell == "ours":
            ratio = percentile(high, 95) / percentile(alone, 95)
            result.summary[f"high_p95_ratio{ended}"] = Figure(value=ratio, unit="ratio", at_most=1.2)
            low_end, high_end = bootstrap(pooled[cell], pooled["alone"], 95)
            result.notes.append(
                f"high_p95_ratio{ended}: 95% of {RESAMPLES} resamples lie in {low_end:.3f}–{high_end:.3f}"
            )
            finished = [float(_survived(one)) for run in found for name, one in run.played.items() if name != "high"]
            result.summary[f"low_finished{ended}"] = Figure(value=_mean(finished), unit="share", at_least=1.0)
            agents = [float(_agent_lived(one)) for run in found for one in run.played.values()]
            result.summary[f"agents_lived{ended}"] = Figure(value=_mean(agents), unit="share", at_least=1.0)
            for key, values in (("brakes", [float(r.brakes) for r in found]), ("held_s", [r.held for r in found])):
                result.summary[f"{key}_per_run{ended}"] = Figure(value=median(values), unit="", samples=values)
            killed = sum(run.killed for run in found)
            result.summary[f"calls_killed{ended}"] = Figure(value=killed, unit="count", at_most=0)
            result.summary[f"oom_kills{ended}"] = Figure(value=sum(r.oom_kills for r in found), unit="count", at_most=0)


def bootstrap(ours: Sequence[list[float]], alone: Sequence[list[float]], percent: float) -> tuple[float, float]:
    """The interval that holds the middle 95 % of the ratio of both percentiles, over whole runs drawn with replacement
    (chunks of one run are not independent)."""
    chance = random.Random(20261124)  # noqa: S311 - resamples of a measurement, the same in every run
    ratios = []
    for _ in range(RESAMPLES):
        one = [value for chunks in chance.choices(ours, k=len(ours)) for value in chunks]
        other = [value for chunks in chance.choices(alone, k=len(alone)) for value in chunks]
        ratios.append(percentile(one, percent) / percentile(other, percent))
    return percentile(ratios, 2.5), percentile(ratios, 97.5)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
