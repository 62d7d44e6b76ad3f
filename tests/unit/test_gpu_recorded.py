"""The adapters, against what running engines really answered (tests/data/engines: versions, commands)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from gpu.engines import Answer, Capability, EngineConfig, EngineKind, KvRef, SgLang, Vllm, discover
from gpu.errors import EngineRefused
from tests.support.engine_fake import FakeEngine, fake_engine

DATA: Final = Path(__file__).parents[1] / "data" / "engines"


def recorded(name: str) -> dict[str, tuple[int, Any]]:
    """Routes of a fake engine. Of a request that was made twice, the first answer."""
    routes: dict[str, tuple[int, Any]] = {"GET /metrics": (200, (DATA / name / "metrics.txt").read_text())}
    for one in json.loads((DATA / name / "responses.json").read_text()):
        answer = one["answer"]
        text = json.dumps(answer) if isinstance(answer, str) and one["request"].endswith("/open_session") else answer
        routes.setdefault(one["request"], (one["status"], text))
    return routes


def refusals(name: str, request: str) -> list[tuple[int, Any]]:
    rows = json.loads((DATA / name / "responses.json").read_text())
    return [(one["status"], one["answer"]) for one in rows if one["request"] == request and one["status"] >= 300]


async def found(fake: FakeEngine, **options: Any) -> Any:
    (one,) = await discover([EngineConfig(name="e", url=fake.url, **options)])
    assert one.info is not None, one.problem
    return one


async def test_vllm_0_32() -> None:
    async with fake_engine(recorded("vllm-0.32.0")) as fake:
        one = await found(fake, priorities=True, events="ipc:///run/engine/kv.sock")
        assert isinstance(one.engine, Vllm)
        assert (one.info.kind, one.info.version, one.info.model) == (EngineKind.VLLM, "0.32.0", "tiny")
        assert (one.info.context_tokens, one.info.kv_tokens) == (2048, 4096)
        can = one.info.capabilities
        for capability in (Capability.SESSION_KV, Capability.BIND, Capability.RESET, Capability.PAUSE):
            assert can[capability].answer is Answer.YES, capability
        assert "session_id" in can[Capability.SESSION_KV].note
        read = await one.engine.metrics()
        assert (read.running, read.waiting, read.kv_total_tokens) == (0, 0, 4096)
        assert (read.prompt_tokens_total, read.cached_tokens_total) == vllm_sources()
        assert read.preemptions_total
        assert read.started_at is not None
        await one.engine.reset()
        await one.engine.pause()
        await one.engine.resume()
        await one.engine.close()


def vllm_sources() -> tuple[int, int]:
    """Prompt tokens by source, read from the page by hand."""
    lines = (DATA / "vllm-0.32.0" / "metrics.txt").read_text().splitlines()

    def of(source: str) -> int:
        (line,) = [
            one for one in lines if one.startswith("vllm:prompt_tokens_by_source_total") and f'"{source}"' in one
        ]
        return round(float(line.split()[-1]))

    return of("local_compute"), of("local_cache_hit")


async def test_vllm_0_32_that_is_not_followed_says_where_it_publishes() -> None:
    async with fake_engine(recorded("vllm-0.32.0")) as fake:
        one = await found(fake)
        assert "ipc:///run/engine/kv.sock" in one.info.capabilities[Capability.KV_EVENTS].note
        assert one.info.capabilities[Capability.BIND].answer is Answer.NO
        await one.engine.close()


async def test_sglang_0_5_23() -> None:
    async with fake_engine(recorded("sglang-0.5.23")) as fake:
        one = await found(fake, priorities=True)
        assert isinstance(one.engine, SgLang)
        assert (one.info.kind, one.info.version) == (EngineKind.SGLANG, "0.5.23")
        # /server_info says null: the model's own context is in the metrics
        assert (one.info.context_tokens, one.info.kv_tokens) == (8192, 4096)
        can = one.info.capabilities
        for capability in (Capability.HOLD, Capability.DROP, Capability.RESET, Capability.PAUSE, Capability.PRIORITY):
            assert can[capability].answer is Answer.YES, capability
        read = await one.engine.metrics()
        assert (read.kv_used, read.kv_used_tokens, read.kv_total_tokens) == (0.13, 547, 4096)
        # 869 prompt tokens of four requests, in three label sets, of which 299 were found in the cache
        assert (read.prompt_tokens_total, read.cached_tokens_total, read.generated_tokens_total) == (570, 299, 32)
        assert read.preemptions_total == 0
        await one.engine.hold(KvRef(session="s-1"), 30)
        await one.engine.drop(KvRef(session="s-1"))
        await one.engine.reset()
        await one.engine.pause()
        await one.engine.resume()
        await one.engine.close()


async def test_sglang_0_5_23_tells_by_itself_that_it_schedules_by_priority() -> None:
    routes = recorded("sglang-0.5.23")
    async with fake_engine(routes) as fake:
        one = await found(fake)
        assert "set priorities" in one.info.capabilities[Capability.PRIORITY].note
        await one.engine.close()
    status, server = routes["GET /server_info"]
    async with fake_engine(
        {**routes, "GET /server_info": (status, {**server, "enable_priority_scheduling": False})}
    ) as fake:
        one = await found(fake, priorities=True)
        assert "--enable-priority-scheduling" in one.info.capabilities[Capability.PRIORITY].note
        await one.engine.close()


async def test_sglang_0_5_23_refuses_a_session_that_is_open() -> None:
    (answer,) = refusals("sglang-0.5.23", "POST /open_session")
    async with fake_engine({**recorded("sglang-0.5.23"), "POST /open_session": answer}) as fake:
        one = await found(fake)
        with pytest.raises(EngineRefused, match="still open"):
            await one.engine.hold(KvRef(session="s-1"), 30)
        await one.engine.close()
