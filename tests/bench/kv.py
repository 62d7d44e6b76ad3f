"""Whose KV cache is where while tools run: Corral against the engine's own ways and other rules, live.

Agents talk to a real llama.cpp server, with a slot for a third of them, through the gateway of a real daemon, and run
their tools through its launcher. The model is small and of random weights; its KV cache is as real as any. All cells of
a repetition play the same plan, in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpu.engines import EngineConfig, EngineKind, LlamaCpp, make_engine
from gpu.engines.prometheus import Metrics
from gpu.policy import ShadowPrice
from tests.bench.harness import BenchError, Context
from tests.bench.kv_agents import TurnSeen, all_of, figures, play
from tests.bench.kv_daemon import Rule, agents_of
from tests.bench.kv_inprocess import InProcess
from tests.bench.kv_slots import Slots
from tests.bench.kv_work import SPEED, Plan, plan
from tests.bench.result import Figure, Result, Row
from tests.bench.stats import median
from tests.support import tiny_gguf
from tests.support.llamacpp import llamacpp

MIB: Final = 1 << 20
TURNS: Final = 10
BATCH: Final = 256  # tokens of a step: others wait for less than a tenth of a second while a prompt is computed
SLACK_TOKENS: Final = 400  # of a slot beyond what a session comes to
PATIENCE: Final = 4.0 / SPEED  # seconds that a turn may be overtaken, at the speed of the plan
#: What the daemon's configuration calls it, by the name of its cell. "": the engine is observed and left alone.
UNDER_DAEMON: Final[dict[str, str]] = {
    "engine": "",
    "ramcache": "",
    "keep": "always-keep",
    "offload": "always-offload",
    "lru": "lru",
    "infercept": "infercept",
    "continuum": "continuum",
    "ours": "corral",
}
OURS_ALONE: Final = "ours-slots"  # the same rule over the bench's own Slots, without a daemon
HOWS: Final = (*UNDER_DAEMON, OURS_ALONE)
SHARES: Final = {"all": 1.0, "half": 0.5, "quarter": 0.25}


@dataclass(frozen=True, slots=True)
class Cell:
    """``how``: one of HOWS. ``share``: of the sessions' KV that fits outside of the slots."""

    agents: int
    how: str
    share: str

    def room(self, one: Plan) -> int:
        """Whole MiB, as the engine's own cache takes no others."""
        size = one.tokens_at_end * tiny_gguf.KV_BYTES_PER_TOKEN * self.agents
        return max(1, round(SHARES[self.share] * size / MIB)) * MIB

    @property
    def has_room(self) -> bool:
        return self.how not in ("engine", "keep")


def cells(counts: tuple[int, ...], shares: tuple[str, ...], hows: tuple[str, ...]) -> list[Cell]:
    """Those that use no memory outside have one cell for all shares."""
    found = []
    for count in counts:
        for how in hows:
            for share in shares if Cell(count, how, "all").has_room else shares[:1]:
                found.append(Cell(count, how, share))
    return found


async def measure(context: Context) -> Result:
    runs = context.count(full=3, quick=1)
    result = Result(runs=runs)
    model = await asyncio.to_thread(tiny_gguf.write, context.directory / "tiny.gguf")
    if context.quick:
        chosen = cells((12,), ("all", "quarter"), ("engine", "ramcache", "ours"))
    else:
        chosen = cells((6, 12), tuple(SHARES), HOWS)
    for run in range(runs):
        order = chosen[run % len(chosen) :] + chosen[: run % len(chosen)]
        for cell in order:
            one = plan(cell.agents, TURNS, seed=run)
            row = await run_cell(context, model, cell, one)
            result.rows.append({"run": run, **row})
            context.say(f"run {run + 1} of {runs}: {json.dumps(row)}")
    summarise(result)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """One cell while it runs. ``save``: where the server at ``url`` saves slots. ``turns``: those that have ended."""

    cell: Cell
    plan: Plan
    engine: LlamaCpp
    url: str
    save: Path
    turns: list[TurnSeen]


async def run_cell(context: Context, model: Path, cell: Cell, one: Plan, turns: list[TurnSeen] | None = None) -> Row:
    """``turns`` is filled with each turn, for whoever looks closer."""
    count = max(1, cell.agents // 3)
    room = cell.room(one)
    save = context.directory / "slots"
    save.mkdir(exist_ok=True)
    served = llamacpp(
        model,
        save,
        slots=count,
        context=count * (one.tokens_at_end + SLACK_TOKENS),
        cache_ram_mib=room // MIB if cell.how == "ramcache" else 0,
        batch=BATCH,
    )
    async with served as url:
        engine = make_engine(EngineConfig(name="llama", url=url), EngineKind.LLAMACPP)
        if not isinstance(engine, LlamaCpp):
            raise BenchError("the adapter of llama.cpp is another class")
        stage = _Stage(cell=cell, plan=one, engine=engine, url=url, save=save, turns=[] if turns is None else turns)
        try:
            row = await (_without_daemon(stage) if cell.how == OURS_ALONE else _under_daemon(context, stage))
        finally:
            await engine.close()
            for file in save.iterdir():
                file.unlink()
    named: Row = {"agents": cell.agents, "how": cell.how, "room": cell.share}
    return {**named, "room_mib": room // MIB if cell.has_room else 0, **row}


async def _under_daemon(context: Context, stage: _Stage) -> Row:
    cell, one, turns = stage.cell, stage.plan, stage.turns
    policy = UNDER_DAEMON[cell.how]
    rule = Rule(policy=policy, room=cell.room(one) if cell.has_room else MIB, directory=stage.save)
    async with agents_of(context, stage.url, rule, one) as agents:
        clock = asyncio.get_running_loop().time
        watching = None if policy else asyncio.create_task(_watch(stage.engine, clock))
        try:
            wall = await all_of(
                one.agents,
                lambda agent: play(agent, agents.url, agents.key(agent), agents, turns.append),
            )
        finally:
            held = await _stop(watching)
        told = await agents.totals()
    if not policy:
        return {**figures(turns, wall), "held_mib_seconds": round(held / MIB, 1)}
    held = told.total("corral_kv_pause_byte_seconds_total") or 0.0
    return {
        **figures(turns, wall),
        "held_mib_seconds": round(held / MIB, 1),
        "offloads": _switches(told, "offloaded"),
        "restores": _switches(told, "restored"),
        "drops": _switches(told, "dropped"),
        "recomputed": _switches(told, "recomputed"),
        "failures": told.whole("corral_kv_move_failures_total"),
    }


def _switches(told: Metrics, kind: str) -> int:
    samples = told.samples("corral_kv_switches_total")
    return round(sum(one.value for one in samples if one.labels.get("kind") == kind))


async def _without_daemon(stage: _Stage) -> Row:
    cell, turns = stage.cell, stage.turns
    slots = Slots(
        stage.engine,
        count=max(1, cell.agents // 3),
        policy=ShadowPrice(patience=PATIENCE),
        store_bytes=cell.room(stage.plan),
        bytes_per_token=tiny_gguf.KV_BYTES_PER_TOKEN,
        directory=stage.save,
    )
    place = InProcess(slots, stage.url, stage.plan.earlier)
    address = await place.listen()
    try:
        wall = await all_of(stage.plan.agents, lambda agent: play(agent, address, agent.name, place, turns.append))
    finally:
        await place.close()
    return {
        **figures(turns, wall),
        "held_mib_seconds": round(slots.totals.held_byte_seconds / MIB, 1),
        "offloads": slots.totals.offloads,
        "restores": slots.totals.restores,
        "drops": slots.totals.drops,
        "failures": slots.totals.failures,
    }


async def _watch(engine: LlamaCpp, clock: Callable[[], float]) -> float:
    """Byte-seconds in idle slots, of an engine that is left alone; its own cache does not tell its size."""
    held, last = 0.0, clock()
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(0.25)
            slots = await engine.slots()
            now = clock()
            held += sum(one.tokens for one in slots if not one.busy) * tiny_gguf.KV_BYTES_PER_TOKEN * (now - last)
            last = now
    return held


async def _stop(watching: asyncio.Task[float] | None) -> float:
    if watching is None:
        return 0.0
    watching.cancel()
    return await watching


def summarise(result: Result) -> None:
    """Ratios of medians over the repetitions, of the larger number of agents."""
    agents = max(int(str(row["agents"])) for row in result.rows)

    def values(how: str, share: str, key: str, *, of: int = agents) -> list[float]:
        return [
            float(row[key] or 0)
            for row in result.rows
            if (row["agents"], row["how"]) == (of, how) and (row["room"] == share or row["room_mib"] == 0)
        ]

    def mid(how: str, share: str, key: str) -> float | None:
        found = values(how, share, key)
        return median(found) if found else None

    def ratio(over: str, under: str, share: str, key: str) -> float | None:
        above, below = mid(over, share, key), mid(under, share, key)
        return above / below if above is not None and below else None

    summary = result.summary
    summary["tokens_ratio_engine"] = Figure(
        value=ratio("engine", "ours", "all", "computed_tokens"), unit="times", at_least=3.0
    )
    summary["tokens_ratio_ramcache"] = Figure(
        value=ratio("ramcache", "ours", "quarter", "computed_tokens"), unit="times", at_least=1.3
    )
    for share in SHARES:
        others = {how for how in UNDER_DAEMON if how != "ours"}
        for key, name in (("wall_seconds", "wall"), ("ttft_p99_ms", "ttft_p99")):
            best = min((found for how in others if (found := mid(how, share, key)) is not None), default=None)
            ours = mid("ours", share, key)
            if best and ours is not None:
                summary[f"{name}_over_best_{share}"] = Figure(value=ours / best, unit="times", at_most=1.0)
    for how in HOWS:
        for share in SHARES:
            computed = values(how, share, "computed_tokens")
            if computed:
                summary[f"tokens_{how}_{share}"] = Figure(value=median(computed), unit="tokens", samples=computed)
    result.notes.append(
        "agents start their prompts with words of their own: no cell gains by a prefix that agents share; "
        "held_mib_seconds of engine and ramcache are those of idle slots alone, as its cache tells no size"
    )
