"""The agents of the bench ``kv``: turns over HTTP, measured where an agent sees them, and tool calls in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from agentd.gateway import Upstream
from tests.bench.harness import BenchError
from tests.bench.kv_work import GENERATED, Agent, Call
from tests.bench.result import Row
from tests.bench.stats import percentile
from tests.support import tiny_gguf

_BLANK: Final = [[token, False] for token in range(tiny_gguf.FIRST_LETTER)]


class Place(Protocol):
    """Where agents run: under a daemon, or with slots of the bench's own."""

    async def call(self, agent: Agent, call: Call) -> None:
        """A tool call, from its begin to its end."""
        ...

    async def gone(self, agent: Agent) -> None:
        """The agent has ended."""
        ...


@dataclass(frozen=True, slots=True)
class TurnSeen:
    """Seconds since the request was sent. ``prefill``: of that, as the engine says. Tokens of the prompt."""

    agent: str
    at: float  # of the loop's clock
    first_token: float
    prefill: float
    computed: int
    cached: int


class _Choice(msgspec.Struct):
    text: str = ""


class _Timings(msgspec.Struct):
    prompt_n: int = 0
    cache_n: int = 0
    prompt_ms: float = 0.0


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    timings: _Timings | None = None


async def play(agent: Agent, url: str, key: str, place: Place, seen: Callable[[TurnSeen], None]) -> None:
    """All turns of an agent, and its calls. Raises BenchError."""
    await asyncio.sleep(agent.start)
    text = agent.opening
    client = Upstream(url, engine="gateway", api_key=key)
    try:
        for number, call in enumerate(agent.calls):
            said, ended = await turn(client, agent.name, text)
            seen(ended)
            text += said + agent.result(number)
            await place.call(agent, call)
    finally:
        client.close()
    await place.gone(agent)


async def all_of(agents: tuple[Agent, ...], one: Callable[[Agent], Awaitable[None]]) -> float:
    """Seconds that they took together."""
    clock = asyncio.get_running_loop().time
    began = clock()
    async with asyncio.TaskGroup() as group:
        for agent in agents:
            group.create_task(_run(one, agent))
    return clock() - began


async def _run(one: Callable[[Agent], Awaitable[None]], agent: Agent) -> None:
    await one(agent)


async def turn(client: Upstream, agent: str, text: str) -> tuple[str, TurnSeen]:
    """One turn: what the model said, and how it went."""
    body = {
        "prompt": text,
        "max_tokens": GENERATED,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "cache_prompt": True,
        # Letters only: half a character has no text, and would come with a later token.
        "logit_bias": _BLANK,
    }
    raw, first = b"", None
    encoded = msgspec.json.encode(body)
    clock = asyncio.get_running_loop().time
    sent = clock()
    async with client.exchange("POST", "/v1/completions", [], encoded) as response:
        while part := await response.read():
            if first is None:
                first = clock() - sent
            raw += part
        status = response.head.status
    if status != 200 or first is None:
        raise BenchError(f"a turn was answered with status {status}: {raw[:300].decode('utf-8', 'replace')}")
    said, timings = [], None
    for line in raw.split(b"\n"):
        if line.startswith(b"data: {"):
            event = msgspec.json.decode(line[6:], type=_Event)
            said += [choice.text for choice in event.choices]
            timings = event.timings or timings
    if timings is None:
        raise BenchError(f"a turn's answer has no timings: {raw[-300:].decode('utf-8', 'replace')}")
    return "".join(said), TurnSeen(agent, sent, first, timings.prompt_ms / 1e3, timings.prompt_n, timings.cache_n)


def figures(turns: list[TurnSeen], wall: float) -> Row:
    firsts = [one.first_token for one in turns]
    waits = [max(0.0, one.first_token - one.prefill) for one in turns]
    return {
        "turns": len(turns),
        "computed_tokens": sum(one.computed for one in turns),
        "prompt_tokens": sum(one.computed + one.cached for one in turns),
        "wall_seconds": round(wall, 3),
        "ttft_p50_ms": round(percentile(firsts, 50) * 1e3, 2),
        "ttft_p99_ms": round(percentile(firsts, 99) * 1e3, 2),
        "ttft_mean_ms": round(sum(firsts) / len(firsts) * 1e3, 2),
        "waited_p99_ms": round(percentile(waits, 99) * 1e3, 2),
    }
