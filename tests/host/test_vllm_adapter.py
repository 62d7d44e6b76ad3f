"""The adapter against the real vLLM on the CPU: ``scripts/test --vllm``."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu.engines import (
    Answer,
    Batch,
    Capability,
    EngineConfig,
    EngineKind,
    EngineMetrics,
    KvEventStream,
    KvIndex,
    KvRef,
    Restarted,
    Vllm,
    discover,
)
from gpu.errors import EngineRefused, EngineUnreachable
from tests.support import tiny_hf
from tests.support.vllm import BLOCK, BLOCKS, CONTEXT, PYTHON, RealVllm

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(400),  # a start takes 30 s on an idle machine, minutes on a busy one
    pytest.mark.skipif(not PYTHON, reason="needs the real vLLM: scripts/test --vllm installs it and runs this"),
]

WITHIN = 60.0  # seconds


@pytest.fixture(scope="module")
def server() -> Iterator[RealVllm]:
    directory = Path(tempfile.mkdtemp(prefix="cv", dir="/tmp"))  # short: sockets are in it
    made = RealVllm(tiny_hf.write(directory / "model"), directory)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def engine(server: RealVllm) -> AsyncIterator[Vllm]:
    config = EngineConfig(name="v", url=server.url, priorities=True, events=server.events, replay=server.replay)
    (found,) = await discover([config])
    assert isinstance(found.engine, Vllm), found.problem
    yield found.engine
    await found.engine.close()


class Follower:
    """An index that follows the stream, and what it was fed."""

    def __init__(self, server: RealVllm) -> None:
        self.index = KvIndex()
        self.seen: list[object] = []
        self.stream = KvEventStream(server.events, engine="v", replay=server.replay, topic=server.topic)
        self.changed = asyncio.Event()

    async def run(self) -> None:
        async for update in self.stream:
            self.index.feed(update)
            self.seen.append(update)
            self.changed.set()
            # each copy of a block takes one of the pool's, of which vLLM keeps one for itself
            assert self.index.copies < BLOCKS

    async def until(self, so: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN):
            while not so():
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def following(server: RealVllm) -> AsyncIterator[Follower]:
    made = Follower(server)
    async with made.stream:
        task = asyncio.create_task(made.run())
        try:
            yield made
            assert not task.done() or task.exception() is None, task.exception()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def turn(server: RealVllm, engine: Vllm, session: str, prompt: str, tokens: int, *, priority: int = 50) -> Any:
    fields = engine.request_fields(KvRef(session=session), priority=priority)
    body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, **fields}
    return await server.post("/v1/completions", body)


async def metrics_when(engine: Vllm, so: Callable[[EngineMetrics], bool]) -> EngineMetrics:
    async with asyncio.timeout(WITHIN):
        while True:
            read = await engine.metrics()
            if so(read):
                return read


async def idle(engine: Vllm) -> None:
    await metrics_when(engine, lambda read: read.running == 0 and read.waiting == 0)


async def test_it_is_found_and_says_what_it_can(server: RealVllm) -> None:
    (found,) = await discover([EngineConfig(name="v", url=server.url, events=server.events, priorities=True)])
    info = found.info
    assert info is not None, found.problem
    assert found.engine is not None
    assert (info.kind, info.model, info.context_tokens, info.kv_tokens) == (
        EngineKind.VLLM,
        "tiny",
        CONTEXT,
        BLOCK * BLOCKS,
    )
    assert info.version[:2] == "0."
    for capability in (
        Capability.METRICS,
        Capability.KV_EVENTS,
        Capability.SESSION_KV,
        Capability.BIND,
        Capability.PRIORITY,
        Capability.RESET,
        Capability.PAUSE,
    ):
        assert info.capabilities[capability].answer is Answer.YES, capability
    for capability in (Capability.HOLD, Capability.OFFLOAD, Capability.DROP, Capability.QUOTA):
        assert info.capabilities[capability].answer is Answer.NO, capability
    await found.engine.close()
    (other,) = await discover([EngineConfig(name="v", url=server.url)])
    assert other.info is not None
    assert other.engine is not None
    assert server.events in other.info.capabilities[Capability.KV_EVENTS].note
    await other.engine.close()


async def test_metrics_of_a_prompt_that_is_found_again(server: RealVllm, engine: Vllm) -> None:
    before = await engine.metrics()
    prompt = "Who was it? " * 40  # 480 tokens, 15 blocks
    first = (await turn(server, engine, "m", prompt, 8))["usage"]
    again = (await turn(server, engine, "m", prompt, 8))["usage"]
    assert first["prompt_tokens"] == 480
    # the last token is always computed, and with it its block
    assert again["prompt_tokens_details"]["cached_tokens"] == 480 - BLOCK
    after = await metrics_when(engine, lambda read: read.running == 0)
    computed, cached = after.prompt_tokens_total, after.cached_tokens_total
    assert computed is not None
    assert cached is not None
    assert computed - (before.prompt_tokens_total or 0) == 480 + BLOCK
    assert cached - (before.cached_tokens_total or 0) == 480 - BLOCK
    assert (after.generated_tokens_total or 0) - (before.generated_tokens_total or 0) == 16
    assert after.prefix_hit_rate is not None
    assert after.kv_used == 0.0  # the pool's use by requests that run: what is cached counts as free


async def test_running_waiting_and_preempted_by_priority(server: RealVllm, engine: Vllm) -> None:
    before = (await engine.metrics()).preemptions_total or 0
    # five times 1,700 tokens in a pool of 4,096: the last two begin, and are put out by those who go first
    turns = [
        asyncio.create_task(turn(server, engine, f"p{at}", f"agent {at} " + "word " * 180, 700, priority=20 * at))
        for at in range(5)
    ]
    busy = await metrics_when(engine, lambda read: bool(read.running and read.waiting))
    assert busy.kv_used_tokens
    ended = []
    for done in asyncio.as_completed(turns):
        ended.append((await done)["choices"][0]["finish_reason"])
    assert ended == ["length"] * 5
    after = await metrics_when(engine, lambda read: read.running == 0)
    assert (after.preemptions_total or 0) > before


async def test_a_higher_priority_is_served_first(server: RealVllm, engine: Vllm) -> None:
    """While two fill the pool, one of low and one of high priority wait: the later and higher runs before."""
    await idle(engine)
    order: list[str] = []

    async def one(name: str, priority: int, tokens: int) -> None:
        await turn(server, engine, name, f"{name} " * 300, tokens, priority=priority)
        order.append(name)

    fill = [asyncio.create_task(one(f"fill{at}", 100, 200)) for at in range(2)]
    await metrics_when(engine, lambda read: read.running == 2)
    low = asyncio.create_task(one("low", 0, 400))
    await metrics_when(engine, lambda read: bool(read.waiting) or (read.running or 0) > 2)
    high = asyncio.create_task(one("high", 90, 400))
    await asyncio.gather(*fill, low, high)
    assert order.index("high") < order.index("low")


async def test_kv_events_name_sessions_and_are_replayed(server: RealVllm, engine: Vllm) -> None:
    async with following(server) as early:
        # the whole history came by replay, to one who was not there
        shared = "You are an agent. " * 20  # 360 tokens
        await turn(server, engine, "one", shared + "First task.", 4)
        await early.until(lambda: early.index.tokens("one") > 0)
        await turn(server, engine, "two", shared + "Second task, which is longer than the first was.", 4)
        await early.until(lambda: early.index.tokens("two") > 0)
        assert early.index.certain
        # the shared prefix is the first one's: finding it caused no event
        assert early.index.tokens("one") >= 352
        assert early.index.tokens("two") <= 3 * BLOCK

        # Lose messages deliberately: those that come now are taken off the socket and thrown away.
        seen = len(early.seen)
        lost = 0
        keep = early.stream._take

        async def lose(frames: list[bytes]) -> None:
            nonlocal lost
            lost += 1
            early.changed.set()

        early.stream._take = lose  # type: ignore[method-assign]
        await turn(server, engine, "lost", "Nobody hears of this one. " * 10, 40)
        await early.until(lambda: lost >= 2)
        assert early.index.tokens("lost") == 0
        early.stream._take = keep  # type: ignore[method-assign]
        await turn(server, engine, "next", "But of this one somebody does. " * 10, 4)
        await early.until(lambda: early.index.tokens("next") > 0)
        replayed = [one for one in early.seen[seen:] if isinstance(one, Batch) and one.replayed]
        assert len(replayed) >= lost
        assert early.index.tokens("lost") > 0
        assert early.index.certain
        sequence = [one.seq for one in early.seen if isinstance(one, Batch)]
        assert sequence == list(range(len(sequence)))  # each once, in order

        async with following(server) as late:
            await late.until(lambda: len(late.seen) >= len(early.seen))
            assert late.index.sessions() == early.index.sessions()
            assert late.index.copies == early.index.copies


async def test_a_full_pool_evicts_the_oldest_and_the_index_agrees(server: RealVllm, engine: Vllm) -> None:
    async with following(server) as follower:
        await turn(server, engine, "old", "An old conversation. " * 40, 4)
        await follower.until(lambda: follower.index.tokens("old") > 0)
        for at in range(4):  # more than the pool, one after the other
            await turn(server, engine, f"new{at}", f"{at} newer and longer " * 70, 100)
        await follower.until(lambda: follower.index.tokens("old") == 0 and follower.index.tokens("new3") > 0)
        assert follower.index.certain


async def test_a_reset_is_refused_while_a_request_runs_and_a_pause_keeps_it(server: RealVllm, engine: Vllm) -> None:
    await idle(engine)
    running = asyncio.create_task(turn(server, engine, "long", "A long story: ", 1500))
    await metrics_when(engine, lambda read: read.running == 1)
    with pytest.raises(EngineRefused, match="running requests hold blocks"):
        await engine.reset()
    await engine.pause()
    before = (await engine.metrics()).generated_tokens_total
    for _ in range(5):  # looks at the engine, in which it would have gone on
        await engine.metrics()
    assert not running.done()
    assert (await engine.metrics()).generated_tokens_total == before
    await engine.resume()
    assert (await running)["choices"][0]["finish_reason"] == "length"
    async with following(server) as follower:
        await idle(engine)
        await engine.reset()
        # told with the next request's events, not before
        await turn(server, engine, "after", "After the reset. " * 10, 4)
        await follower.until(lambda: follower.index.tokens("after") > 0)
        assert set(follower.index.sessions()) == {"after"}


async def test_it_dies_and_comes_back(server: RealVllm, engine: Vllm) -> None:
    """Last in this file: its death is not the server's that others began with."""
    async with following(server) as follower:
        await turn(server, engine, "before", "Before the end. " * 20, 4)
        await follower.until(lambda: follower.index.tokens("before") > 0)
        started = (await engine.metrics()).started_at
        server.stop()
        with pytest.raises(EngineUnreachable):
            await engine.metrics()
        await asyncio.to_thread(server.start)
        again = await engine.metrics()
        assert started is not None
        assert again.started_at is not None
        assert again.started_at > started
        assert (await engine.info(refresh=True)).model == "tiny"
        await turn(server, engine, "after", "After the return. " * 20, 4)
        await follower.until(lambda: follower.index.tokens("after") > 0)
        assert any(isinstance(one, Restarted) for one in follower.seen)
        assert set(follower.index.sessions()) == {"after"}
