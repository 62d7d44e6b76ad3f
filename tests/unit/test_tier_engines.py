"""Watching engines: what is found, one that goes and comes back, one that began anew, one whose key is wrong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentd.config import EngineSection
from agentd.tier.engines import EngineWatch, Reading
from agentd.tier.worker import Worker
from gpu.engines import Capability
from tests.support.engine_fake import fake_engine

SLOTS = [{"id": 0, "n_ctx": 2048, "is_processing": False, "n_prompt_tokens": 100}]


def page(prompt: int, *, running: int = 1) -> str:
    return (
        f"llamacpp:prompt_tokens_total {prompt}\nllamacpp:tokens_predicted_total 7\n"
        f"llamacpp:requests_processing {running}\nllamacpp:requests_deferred 2\n"
    )


def routes(prompt: int = 50) -> dict[str, tuple[int, Any]]:
    return {
        "GET /metrics": (200, page(prompt)),
        "GET /slots": (200, SLOTS),
        "GET /props": (200, {"total_slots": 1, "build_info": "b11434"}),
        "GET /v1/models": (200, {"data": [{"id": "tiny"}]}),
        "POST /slots/0?action=save": (400, {}),
    }


class Seen:
    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self.restarts = 0

    def restart(self, watch: EngineWatch) -> None:
        self.restarts += 1


@asynccontextmanager
async def watched(url: str, **section: Any) -> AsyncIterator[tuple[EngineWatch, Seen]]:
    seen = Seen()
    watch = EngineWatch(
        "local",
        EngineSection(url=url, interval=0.1, timeout=5.0, **section),
        on_reading=lambda watch, reading: seen.readings.append(reading),
        on_restart=seen.restart,
        on_events=lambda watch: None,
        share=1.0,
    )
    watch.start()
    try:
        yield watch, seen
    finally:
        await watch.stop()


async def until(watch: EngineWatch, so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not so():
            await watch.changed.wait()


async def test_what_is_found() -> None:
    async with fake_engine(routes()) as engine, watched(engine.url) as (watch, seen):
        await until(watch, lambda: watch.state == "up")
        view = watch.view()
        assert (view.kind, view.version, view.running, view.waiting) == ("llamacpp", "b11434", 1, 2)
        assert (view.kv_used_share, view.kv_capacity_tokens, view.prompt_tokens) == (100 / 2048, 2048, 50)
        assert {one.name for one in view.capabilities} == {str(one) for one in Capability}
        assert (view.control, view.policy) == (False, "")
        assert not watch.acts
        assert seen.readings[0].slots[0].tokens == 100
        assert watch.cost > 0


async def test_an_engine_that_began_anew() -> None:
    served = routes(prompt=500)
    async with fake_engine(served) as engine, watched(engine.url, control=True) as (watch, seen):
        await until(watch, lambda: watch.state == "up")
        assert watch.acts
        rounds = watch.rounds
        served["GET /metrics"] = (200, page(3))
        await until(watch, lambda: watch.rounds >= rounds + 2)
        assert seen.restarts == 1
        assert seen.readings[-1].metrics is not None
        assert seen.readings[-1].metrics.prompt_tokens_total == 3


async def test_an_engine_that_goes_and_comes_back() -> None:
    served = routes()
    async with fake_engine(served) as engine, watched(engine.url) as (watch, _):
        await until(watch, lambda: watch.state == "up")
        answers = dict(served)
        for route in answers:
            served[route] = (503, "loading")
        await until(watch, lambda: watch.state == "down")
        assert "503" in watch.view().detail
        assert watch.view().running is None  # of then, not of now
        served.update(answers)
        await until(watch, lambda: watch.state == "up")
        assert watch.view().detail == ""


async def test_nothing_listens_there() -> None:
    async with watched("http://127.0.0.1:1") as (watch, seen):
        await until(watch, lambda: watch.state == "down")
        assert "engine local" in watch.detail
        assert seen.readings == []
        assert watch.view().kind == "auto"


async def test_its_key_is_read_from_a_file(tmp_path: Path) -> None:
    key = tmp_path / "key"
    async with fake_engine(routes()) as engine, watched(engine.url, api_key_file=key) as (watch, _):
        await until(watch, lambda: watch.state == "down")
        assert "engines.local.api_key_file" in watch.detail
        key.write_text("secret\nanything else\n")
        await until(watch, lambda: watch.state == "up")
        assert "secret" not in repr(watch.view())


async def test_rubbish_is_an_engine_that_is_down() -> None:
    for rubbish in ("\x00\xff not metrics {", "llamacpp:prompt_tokens_total 1\n" + "x" * 100):
        served: dict[str, tuple[int, Any]] = {"GET /metrics": (200, rubbish), "GET /slots": (200, "[{]")}
        async with fake_engine(served) as engine, watched(engine.url, kind="llamacpp") as (watch, _):
            await until(watch, lambda: watch.rounds > 0)  # run before the next one is made
            assert watch.state == "down"
            assert watch.detail


async def test_a_worker_runs_one_thing_after_the_other_and_hands_on_errors() -> None:
    worker = Worker("corral-test")
    order: list[int] = []
    posted = asyncio.Event()
    loop = asyncio.get_running_loop()

    def fail() -> None:
        raise ValueError("mine")

    worker.post(lambda: order.append(1))
    with pytest.raises(ValueError, match="mine"):
        await worker.run(fail)
    worker.post(lambda: loop.call_soon_threadsafe(posted.set))
    assert await worker.run(lambda: len(order)) == 1
    await posted.wait()
    worker.close()
    assert await worker.run(lambda: 2) == 2  # a closed one begins anew when it is needed
    worker.close()


async def test_whoever_gives_up_does_not_wait_for_a_thread_that_hangs() -> None:
    worker = Worker("corral-test")
    let_go = threading.Event()
    hanging = asyncio.ensure_future(worker.run(let_go.wait))
    await asyncio.sleep(0)
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    let_go.set()
    assert await worker.run(lambda: "after it") == "after it"
    worker.close()
