"""Whose KV cache is where while tools run: Corral's rule against the engine's own ways and other rules, live.

Agents talk to a real llama.cpp server through the gateway, with a slot for a third of them. The model is small and of
random weights; its KV cache is as real as any. All cells of a repetition play the same plan; cells are interleaved.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from agentd.gateway import Admission, Ask, Gateway, TurnReport, Upstream
from gpu.engines import EngineConfig, EngineKind, LlamaCpp, make_engine
from gpu.policy import AlwaysKeep, AlwaysOffload, Continuum, InferCept, KvPolicy, LeastRecentlyUsed, ShadowPrice
from tests.bench.harness import BenchError, Context
from tests.bench.kv_slots import Slots
from tests.bench.kv_work import GENERATED, SPEED, Agent, History, Plan, plan
from tests.bench.result import Figure, Result, Row
from tests.bench.stats import median, percentile
from tests.support import tiny_gguf
from tests.support.llamacpp import llamacpp

MIB: Final = 1 << 20
TURNS: Final = 10
BATCH: Final = 256  # tokens of a step: others wait for less than a tenth of a second while a prompt is computed
SLACK_TOKENS: Final = 400  # of a slot beyond what a session comes to
PATIENCE: Final = 4.0 / SPEED  # seconds that a turn may be overtaken, at the speed of the plan
POLICIES: Final[dict[str, Callable[[], KvPolicy]]] = {
    "keep": AlwaysKeep,
    "offload": AlwaysOffload,
    "lru": LeastRecentlyUsed,
    "infercept": InferCept,
    "continuum": Continuum,
    "ours": lambda: ShadowPrice(patience=PATIENCE),
}
SHARES: Final = {"all": 1.0, "half": 0.5, "quarter": 0.25}


@dataclass(frozen=True, slots=True)
class Cell:
    """``how``: "engine", "ramcache", or a policy. ``share``: of the sessions' KV that fits outside of the slots."""

    agents: int
    how: str
    share: str

    def room(self, one: Plan) -> int:
        """Whole MiB, as the engine's own cache takes no others."""
        size = one.tokens_at_end * tiny_gguf.KV_BYTES_PER_TOKEN * self.agents
        return max(1, round(SHARES[self.share] * size / MIB)) * MIB


def cells(counts: tuple[int, ...], shares: tuple[str, ...], hows: tuple[str, ...]) -> list[Cell]:
    """Those that use no memory outside have one cell for all shares."""
    found = []
    for count in counts:
        for how in hows:
            for share in shares[:1] if how in ("engine", "keep") else shares:
                found.append(Cell(count, how, share))
    return found


@dataclass
class _Port:
    """TurnPort: binds turns to slots where there are any to bind, and keeps what the gateway measured."""

    slots: Slots | None
    reports: list[TurnReport] = field(default_factory=list)

    async def admit(self, ask: Ask) -> Admission:
        if self.slots is None or not ask.turn:
            return Admission(session=ask.token)
        slot = await self.slots.acquire(ask.token)
        return Admission(session=ask.token, fields={"id_slot": slot, "cache_prompt": True})

    def ended(self, admission: Admission, report: TurnReport) -> None:
        self.reports.append(report)
        if self.slots is not None:
            self.slots.release(admission.session, tokens=report.prompt + report.generated)
            self.slots.prefilled(report.prompt - report.cached, report.prefill_seconds or 0.0)


async def measure(context: Context) -> Result:
    runs = context.count(full=3, quick=1)
    result = Result(runs=runs)
    model = await asyncio.to_thread(tiny_gguf.write, context.directory / "tiny.gguf")
    if context.quick:
        chosen = cells((12,), ("all", "quarter"), ("engine", "ramcache", "ours"))
    else:
        chosen = cells((6, 12), tuple(SHARES), ("engine", "ramcache", *POLICIES))
    for run in range(runs):
        order = chosen[run % len(chosen) :] + chosen[: run % len(chosen)]
        for cell in order:
            one = plan(cell.agents, TURNS, seed=run)
            row = await _run(context, model, cell, one)
            result.rows.append({"run": run, **row})
            context.say(f"run {run + 1} of {runs}: {json.dumps(row)}")
    summarise(result)
    return result


async def _run(context: Context, model: Path, cell: Cell, one: Plan) -> Row:
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
        slots = None
        if cell.how in POLICIES:
            slots = Slots(
                engine,
                count=count,
                policy=POLICIES[cell.how](),
                store_bytes=0 if cell.how == "keep" else room,
                bytes_per_token=tiny_gguf.KV_BYTES_PER_TOKEN,
                directory=save,
            )
        port = _Port(slots)
        gateway = Gateway(port, Upstream(url, engine="llama"), tells_usage=True)
        address = await gateway.listen_tcp("127.0.0.1", 0)
        history = History(list(one.earlier))
        clock = asyncio.get_running_loop().time
        watching = asyncio.create_task(_watch(engine, clock)) if slots is None else None
        began = clock()
        try:
            async with asyncio.TaskGroup() as group:
                for agent in one.agents:
                    group.create_task(_agent(agent, f"http://{address[0]}:{address[1]}", slots, history))
            wall = clock() - began
        finally:
            held = await _stop(watching)
            await gateway.close()
            if slots is not None:
                await slots.close()
                held = slots.totals.held_byte_seconds
            await engine.close()
            for file in save.iterdir():
                file.unlink()
    return {
        "agents": cell.agents,
        "how": cell.how,
        "room": cell.share,
        "room_mib": 0 if cell.how in ("engine", "keep") else room // MIB,
        **_figures(port.reports, wall),
        "held_mib_seconds": round(held / MIB, 1),
        "offloads": slots.totals.offloads if slots else None,
        "restores": slots.totals.restores if slots else None,
        "drops": slots.totals.drops if slots else None,
        "failures": slots.totals.failures if slots else None,
        "moving_seconds": round(slots.totals.moving_seconds, 3) if slots else None,
    }


def _figures(reports: list[TurnReport], wall: float) -> Row:
    bad = [one for one in reports if one.error or one.estimated or one.first_token is None]
    if bad:
        raise BenchError(f"{len(bad)} of {len(reports)} turns failed: {bad[0]}")
    firsts = [one.first_token or 0.0 for one in reports]
    return {
        "turns": len(reports),
        "computed_tokens": sum(one.prompt - one.cached for one in reports),
        "prompt_tokens": sum(one.prompt for one in reports),
        "wall_seconds": round(wall, 3),
        "ttft_p50_ms": round(percentile(firsts, 50) * 1e3, 2),
        "ttft_p99_ms": round(percentile(firsts, 99) * 1e3, 2),
    }


async def _agent(agent: Agent, url: str, slots: Slots | None, history: History) -> None:
    await asyncio.sleep(agent.start)
    text = agent.opening
    client = Upstream(url, engine="gateway", api_key=agent.name)
    try:
        for turn, call in enumerate(agent.calls):
            text += await _turn(client, text) + agent.result(turn)
            if slots is not None:
                slots.pause_begun(agent.name, durations=history.of(call.kind))
            await asyncio.sleep(call.seconds)
            if slots is not None:
                slots.pause_ended(agent.name)
            history.ended(call)
    finally:
        client.close()
    if slots is not None:
        slots.forget(agent.name)


class _Choice(msgspec.Struct):
    text: str = ""


class _Event(msgspec.Struct):
    choices: list[_Choice] = []


async def _turn(client: Upstream, text: str) -> str:
    """One turn; what the model said."""
    body = {
        "prompt": text,
        "max_tokens": GENERATED,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "cache_prompt": True,
        # Letters only: half a character has no text, and would come with a later token.
        "logit_bias": [[token, False] for token in range(tiny_gguf.FIRST_LETTER)],
    }
    raw = b""
    async with client.exchange("POST", "/v1/completions", [], msgspec.json.encode(body)) as response:
        while part := await response.read():
            raw += part
        status = response.head.status
    if status != 200:
        raise BenchError(f"a turn was answered with status {status}: {raw[:300].decode('utf-8', 'replace')}")
    said = []
    for line in raw.split(b"\n"):
        if line.startswith(b"data: {"):
            event = msgspec.json.decode(line[6:], type=_Event)
            said += [choice.text for choice in event.choices]
    return "".join(said)


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
        others = {how for how in ("engine", "ramcache", *POLICIES) if how != "ours"}
        for key, name in (("wall_seconds", "wall"), ("ttft_p99_ms", "ttft_p99")):
            best = min((found for how in others if (found := mid(how, share, key)) is not None), default=None)
            ours = mid("ours", share, key)
            if best and ours is not None:
                summary[f"{name}_over_best_{share}"] = Figure(value=ours / best, unit="times", at_most=1.0)
    for how in ("engine", "ramcache", *POLICIES):
        for share in SHARES:
            computed = values(how, share, "computed_tokens")
            if computed:
                summary[f"tokens_{how}_{share}"] = Figure(value=median(computed), unit="tokens", samples=computed)
    result.notes.append(
        "agents start their prompts with words of their own: no cell gains by a prefix that agents share; "
        "held_mib_seconds of engine and ramcache are those of idle slots alone, as its cache tells no size"
    )
