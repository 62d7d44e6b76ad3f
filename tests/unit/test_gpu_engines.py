"""vLLM, SGLang, LMCache and discovery, against answers built from what the engines' sources and pages say.

Not recorded from running engines: those need gigabytes, or a GPU. Names and shapes are those of vLLM 0.33, SGLang
0.5.23 and LMCache 0.5.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from gpu.engines import (
    Answer,
    Capability,
    EngineConfig,
    EngineKind,
    KvRef,
    LmCache,
    LmCacheConfig,
    SgLang,
    Vllm,
    discover,
    kv_bytes_per_token,
    make_engine,
)
from gpu.errors import BadAnswer, EngineRefused, InvalidValue, NotSupported
from tests.support.engine_fake import FakeEngine, fake_engine, openapi

REF = KvRef(session="session-1")

VLLM_METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 5.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.25
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1000.0
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 250.0
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="m"} 7.0
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 1000.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 90.0
# TYPE vllm:kv_offload_store_bytes_total counter
vllm:kv_offload_store_bytes_total{engine="0"} 4096.0
# TYPE vllm:kv_offload_load_bytes_total counter
vllm:kv_offload_load_bytes_total{engine="0"} 1024.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="32",enable_prefix_caching="True",engine="0",num_gpu_blocks="128"} 1.0
vllm:cache_config_info{block_size="32",enable_prefix_caching="True",engine="1",num_gpu_blocks="128"} 1.0
"""

SGLANG_METRICS = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m"} 4.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{model_name="m"} 2.0
# TYPE sglang:token_usage gauge
sglang:token_usage{model_name="m"} 0.6
# TYPE sglang:kv_used_tokens gauge
sglang:kv_used_tokens{model_name="m"} 600.0
# TYPE sglang:kv_available_tokens gauge
sglang:kv_available_tokens{model_name="m"} 300.0
# TYPE sglang:kv_evictable_tokens gauge
sglang:kv_evictable_tokens{model_name="m"} 100.0
# TYPE sglang:cache_hit_rate gauge
sglang:cache_hit_rate{model_name="m"} 0.4
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="m"} 500.0
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{model_name="m"} 200.0
# TYPE sglang:num_retracted_requests_total counter
sglang:num_retracted_requests_total{model_name="m"} 3.0
"""

LMCACHE_METRICS = """\
# TYPE lmcache:local_cache_usage gauge
lmcache:local_cache_usage{worker_id="0"} 1048576.0
# TYPE lmcache:retrieve_hit_rate gauge
lmcache:retrieve_hit_rate{worker_id="0"} 0.75
# TYPE lmcache:local_cpu_evict_count counter
lmcache:local_cpu_evict_count_total{worker_id="0"} 12.0
"""

VLLM: Mapping[str, tuple[int, Any]] = {
    "GET /version": (200, {"version": "0.33.0"}),
    "GET /v1/models": (200, {"object": "list", "data": [{"id": "m", "max_model_len": 8192, "owned_by": "vllm"}]}),
    "GET /metrics": (200, VLLM_METRICS),
    "GET /openapi.json": openapi("/v1/completions", "/metrics"),
}
SGLANG: Mapping[str, tuple[int, Any]] = {
    "GET /server_info": (200, {"version": "0.5.23", "context_length": 4096, "max_total_num_tokens": 1000}),
    "GET /model_info": (200, {"model_path": "some/model"}),
    "GET /metrics": (200, SGLANG_METRICS),
    "GET /openapi.json": openapi("/open_session", "/close_session", "/flush_cache", "/pause_generation"),
    "POST /open_session": (200, '"session-1"'),
    "POST /close_session": (200, ""),
    "POST /flush_cache": (200, "Cache flushed."),
    "POST /pause_generation": (200, {"status": "ok"}),
    "POST /continue_generation": (200, {"status": "ok"}),
}


def vllm(engine: FakeEngine, **options: Any) -> Vllm:
    made = make_engine(EngineConfig(name="v", url=engine.url, **options), EngineKind.VLLM)
    assert isinstance(made, Vllm)
    return made


def sglang(engine: FakeEngine, **options: Any) -> SgLang:
    made = make_engine(EngineConfig(name="s", url=engine.url, **options), EngineKind.SGLANG)
    assert isinstance(made, SgLang)
    return made


def lmcache(engine: FakeEngine, *, server: bool = True, instance: str = "lm0") -> LmCache:
    config = LmCacheConfig(instance=instance, server=engine.url if server else "", model="m", world_size=2)
    made = make_engine(EngineConfig(name="l", url=engine.url, lmcache=config), EngineKind.LMCACHE)
    assert isinstance(made, LmCache)
    return made


# --- vLLM -------------------------------------------------------------------------------------------------------------


async def test_vllm_info_and_metrics() -> None:
    async with fake_engine(VLLM) as fake:
        engine = vllm(fake, bytes_per_token=2048)
        info = await engine.info()
        assert (info.version, info.model, info.context_tokens) == ("0.33.0", "m", 8192)
        assert (info.kv_tokens, info.kv_bytes_per_token) == (2 * 128 * 32, 2048)
        read = await engine.metrics()
        assert (read.running, read.waiting, read.kv_used) == (4, 5, 0.375)
        assert (read.kv_used_tokens, read.kv_total_tokens) == (3072, 8192)
        assert (read.prompt_tokens_total, read.cached_tokens_total, read.generated_tokens_total) == (750, 250, 90)
        assert (read.prefix_hit_rate, read.preemptions_total) == (0.25, 7)
        assert (read.offloaded_bytes_total, read.loaded_bytes_total) == (4096, 1024)
        await engine.close()


async def test_vllm_says_what_it_cannot_do_in_this_set_up() -> None:
    async with fake_engine(VLLM) as fake:
        engine = vllm(fake)
        can = (await engine.info()).capabilities
        for capability, word in {
            Capability.HOLD: "37003",
            Capability.RESET: "VLLM_SERVER_DEV_MODE",
            Capability.PRIORITY: "--scheduling-policy priority",
            Capability.KV_EVENTS: "--kv-events-config",
            Capability.OFFLOAD: "by its own rule",
        }.items():
            assert can[capability].answer is Answer.NO
            assert word in can[capability].note
        with pytest.raises(NotSupported, match="37003"):
            await engine.hold(REF, 5)
        with pytest.raises(NotSupported, match="VLLM_SERVER_DEV_MODE"):
            await engine.reset()
        with pytest.raises(NotSupported, match="--scheduling-policy"):
            engine.request_fields(REF, priority=1)
        assert engine.request_fields(REF) == {}
        await engine.close()


async def test_vllm_in_development_mode_with_priorities_and_events() -> None:
    routes = {
        **VLLM,
        "GET /openapi.json": openapi("/reset_prefix_cache", "/pause"),
        "POST /reset_prefix_cache": (200, ""),
        "POST /pause?mode=keep": (200, {"status": "paused"}),
        "POST /resume": (200, {}),
    }
    async with fake_engine(routes) as fake:
        engine = vllm(fake, priorities=True, events="ipc:///run/x")
        can = (await engine.info()).capabilities
        for capability in (Capability.RESET, Capability.PAUSE, Capability.PRIORITY, Capability.KV_EVENTS):
            assert can[capability].answer is Answer.YES
        # Ours: higher is served first. vLLM's: lower is.
        assert engine.request_fields(REF, priority=100) == {"priority": 0, "session_id": "session-1"}
        assert engine.request_fields(REF, priority=0) == {"priority": 100, "session_id": "session-1"}
        await engine.reset()
        await engine.pause()
        await engine.resume()
        assert [route for route, _ in fake.asked][-3:] == [
            "POST /reset_prefix_cache",
            "POST /pause?mode=keep",  # the default would end what runs
            "POST /resume",
        ]
        with pytest.raises(InvalidValue, match="priority 101"):
            engine.request_fields(REF, priority=101)
        await engine.close()


async def test_vllm_that_cannot_reset_because_requests_run() -> None:
    """Recorded from vLLM 0.32.0: it refuses with status 200."""
    routes = {**VLLM, "POST /reset_prefix_cache": (200, {"success": False})}
    async with fake_engine(routes) as fake:
        engine = vllm(fake)
        with pytest.raises(EngineRefused, match="running requests hold blocks"):
            await engine.reset()
        await engine.close()


async def test_vllm_without_a_description_of_its_paths_is_untried() -> None:
    async with fake_engine({**VLLM, "GET /openapi.json": (404, {})}) as fake:
        engine = vllm(fake)
        assert (await engine.info()).capabilities[Capability.RESET].answer is Answer.UNTRIED
        await engine.close()


async def test_vllm_that_has_not_profiled_its_memory_yet() -> None:
    page = VLLM_METRICS.replace('num_gpu_blocks="128"', 'num_gpu_blocks="None"')
    async with fake_engine({**VLLM, "GET /metrics": (200, page)}) as fake:
        engine = vllm(fake)
        read = await engine.metrics()
        assert (read.kv_used, read.kv_used_tokens, read.kv_total_tokens) == (0.375, None, None)
        await engine.close()


async def test_info_is_asked_once_and_again_on_request() -> None:
    async with fake_engine(VLLM) as fake:
        engine = vllm(fake)
        await engine.info()
        asked = len(fake.asked)
        assert (await engine.info()) is (await engine.info())
        assert len(fake.asked) == asked
        await engine.info(refresh=True)
        assert len(fake.asked) == 2 * asked
        await engine.close()


# --- SGLang -----------------------------------------------------------------------------------------------------------


async def test_sglang_info_and_metrics() -> None:
    async with fake_engine(SGLANG) as fake:
        engine = sglang(fake)
        info = await engine.info()
        assert (info.version, info.model, info.context_tokens, info.kv_tokens) == ("0.5.23", "some/model", 4096, 1000)
        assert info.capabilities[Capability.HOLD].answer is Answer.YES
        assert info.capabilities[Capability.SESSION_KV].answer is Answer.NO
        read = await engine.metrics()
        assert (read.running, read.waiting, read.kv_used) == (4, 2, 0.6)
        assert (read.kv_used_tokens, read.kv_total_tokens) == (600, 1000)
        assert (read.prompt_tokens_total, read.cached_tokens_total) == (300, 200)
        assert (read.prefix_hit_rate, read.preemptions_total) == (0.4, 3)
        await engine.close()


async def test_sglang_holds_by_a_streaming_session_and_drops_by_closing_it() -> None:
    async with fake_engine(SGLANG) as fake:
        engine = sglang(fake, priorities=True)
        await engine.hold(REF, 30.0)
        (opened,) = fake.bodies("POST /open_session")
        assert (opened["session_id"], opened["streaming"], opened["timeout"]) == ("session-1", True, 30.0)
        assert engine.request_fields(REF, priority=7) == {"session_params": {"id": "session-1"}, "priority": 7}
        await engine.drop(REF)
        assert fake.bodies("POST /close_session") == [{"session_id": "session-1"}]
        await engine.reset()
        await engine.pause()
        assert fake.bodies("POST /pause_generation") == [{"mode": "in_place"}]  # the default would end what runs
        await engine.resume()
        with pytest.raises(InvalidValue, match="more than 0"):
            await engine.hold(REF, 0)
        with pytest.raises(NotSupported, match="by its own rule"):
            await engine.offload(REF)
        await engine.close()


async def test_sglang_that_opens_another_session_or_refuses() -> None:
    async with fake_engine({**SGLANG, "POST /open_session": (200, '"other"')}) as fake:
        engine = sglang(fake)
        with pytest.raises(BadAnswer, match="'other', not 'session-1'"):
            await engine.hold(REF, 1)
        await engine.close()
    async with fake_engine({**SGLANG, "POST /open_session": (400, {"error": {"message": "still open"}})}) as fake:
        engine = sglang(fake)
        with pytest.raises(EngineRefused, match="still open"):
            await engine.hold(REF, 1)
        await engine.close()


@pytest.mark.parametrize(
    ("version", "answer"), [("0.5.24.post1", Answer.YES), ("0.5.3", Answer.UNTRIED), ("", Answer.UNTRIED)]
)
async def test_sglang_holding_depends_on_the_version(version: str, answer: Answer) -> None:
    routes = {**SGLANG, "GET /server_info": (404, {}), "GET /get_server_info": (200, {"version": version})}
    async with fake_engine(routes) as fake:
        engine = sglang(fake)
        assert (await engine.info()).capabilities[Capability.HOLD].answer is answer
        await engine.close()


async def test_sglang_without_metrics_and_sessions() -> None:
    routes = {route: answer for route, answer in SGLANG.items() if "metrics" not in route}
    async with fake_engine({**routes, "GET /openapi.json": openapi("/generate")}) as fake:
        engine = sglang(fake)
        can = (await engine.info()).capabilities
        assert {can[one].answer for one in (Capability.METRICS, Capability.HOLD, Capability.PAUSE)} == {Answer.NO}
        with pytest.raises(NotSupported, match="--enable-metrics"):
            await engine.metrics()
        with pytest.raises(NotSupported, match="--enable-priority-scheduling"):
            engine.request_fields(REF, priority=3)
        await engine.close()


# --- LMCache ----------------------------------------------------------------------------------------------------------

LMCACHE: Mapping[str, tuple[int, Any]] = {
    "GET /metrics": (200, LMCACHE_METRICS),
    "POST /lookup": (200, {"event_id": "Lookup1", "layout_info": {"lm0": ["LocalCPUBackend", 3]}}),
    "POST /pin": (200, {"event_id": "Pin1", "num_tokens": 3}),
    "POST /move": (200, {"event_id": "Move1", "num_tokens": 3}),
    "POST /clear": (200, {"event_id": "Clear1", "num_tokens": 9}),
    "POST /cache/prefetches": (202, {"request_id": "p1", "status": "submitted"}),
    "PUT /quota/a%2Fb": (200, {"cache_salt": "a/b", "limit_gb": 0.5, "status": "ok"}),
}
TOKENS = KvRef(session="a/b", tokens=(1, 2, 3))


async def test_lmcache_controls() -> None:
    async with fake_engine(LMCACHE) as fake:
        engine = lmcache(fake)
        read = await engine.metrics()
        assert (read.cache_bytes, read.prefix_hit_rate, read.evictions_total) == (1048576, 0.75, 12)
        assert await engine.lookup(TOKENS) == {"lm0": ("LocalCPUBackend", 3)}
        assert (await engine.hold(TOKENS, 5)).tokens == 3
        assert fake.bodies("POST /pin") == [{"instance_id": "lm0", "location": "LocalCPUBackend", "tokens": [1, 2, 3]}]
        assert (await engine.offload(TOKENS)).tokens == 3
        assert fake.bodies("POST /move") == [
            {
                "old_position": ["lm0", "LocalCPUBackend"],
                "new_position": ["lm0", "LocalDiskBackend"],
                "tokens": [1, 2, 3],
                "copy": False,
            }
        ]
        await engine.restore(TOKENS)
        assert fake.bodies("POST /cache/prefetches") == [
            {"model_name": "m", "world_size": 2, "token_ids": [1, 2, 3], "cache_salt": "a/b", "instance_id": "lm0"}
        ]
        await engine.set_quota(TOKENS, 1 << 29)
        assert fake.bodies("PUT /quota/a%2Fb") == [{"limit_gb": 0.5}]
        await engine.reset()
        assert engine.request_fields(TOKENS) == {"cache_salt": "a/b"}
        with pytest.raises(NotSupported, match="not one session"):
            await engine.drop(TOKENS)
        with pytest.raises(InvalidValue, match="by content"):
            await engine.hold(REF, 5)
        with pytest.raises(InvalidValue, match="quota of -1"):
            await engine.set_quota(TOKENS, -1)
        await engine.close()


async def test_lmcache_without_its_services() -> None:
    async with fake_engine(LMCACHE) as fake:
        engine = lmcache(fake, server=False, instance="")
        can = (await engine.info()).capabilities
        for one in (Capability.HOLD, Capability.OFFLOAD, Capability.RESTORE, Capability.QUOTA, Capability.RESET):
            assert can[one].answer is Answer.NO
            assert "configured" in can[one].note
        for act in (engine.hold(TOKENS, 5), engine.offload(TOKENS), engine.restore(TOKENS), engine.reset()):
            with pytest.raises(NotSupported, match="no controller is configured"):
                await act
        with pytest.raises(NotSupported, match="no LMCache server"):
            await engine.set_quota(TOKENS, 1)
        await engine.close()
        engine = lmcache(fake, server=False)
        await engine.restore(TOKENS)  # by the controller, then: back from the slow place
        assert fake.bodies("POST /move")[0]["new_position"] == ["lm0", "LocalCPUBackend"]
        await engine.close()


# --- discovery --------------------------------------------------------------------------------------------------------


async def test_kinds_are_found_out_from_the_metrics() -> None:
    async with fake_engine(VLLM) as one, fake_engine(SGLANG) as two, fake_engine(LMCACHE) as three:
        found = await discover(
            [
                EngineConfig(name="one", url=one.url),
                EngineConfig(name="two", url=two.url),
                EngineConfig(name="three", url=three.url),
            ]
        )
        kinds = [None if it.info is None else it.info.kind for it in found]
        assert kinds == [EngineKind.VLLM, EngineKind.SGLANG, EngineKind.LMCACHE]
        for it in found:
            assert it.engine is not None
            assert it.info is not None
            assert set(it.info.capabilities) == set(Capability)
            assert all(support.note for support in it.info.capabilities.values())
            await it.engine.close()


async def test_one_that_cannot_be_asked_is_said_and_the_others_are_found() -> None:
    async with fake_engine(VLLM) as well, fake_engine({"GET /metrics": (200, "node_load1 3\n")}) as stranger:
        found = await discover(
            [
                EngineConfig(name="well", url=well.url),
                EngineConfig(name="stranger", url=stranger.url),
                EngineConfig(name="nobody", url="http://127.0.0.1:9", kind=EngineKind.VLLM, timeout=2),
            ]
        )
    assert found[0].info is not None
    assert found[0].engine is not None
    assert (found[1].engine, found[1].info) == (None, None)
    assert "set kind to one of llamacpp, vllm, sglang, lmcache" in found[1].problem
    assert found[2].engine is not None  # its kind is known: it can be asked again
    assert "engine nobody" in found[2].problem
    await found[0].engine.close()
    await found[2].engine.close()


async def test_two_engines_of_one_name() -> None:
    config = EngineConfig(name="twin", url="http://h")
    with pytest.raises(InvalidValue, match="twin"):
        await discover([config, config])


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "x" * 65},
        {"name": "a/../b"},
        {"url": "h:1"},
        {"replay": "ipc:///x"},
        {"bytes_per_token": 0},
        {"timeout": 0},
    ],
)
def test_configurations_that_are_none(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        EngineConfig(**{"name": "e", "url": "http://h", **fields})


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(EngineConfig(name="e", url="http://h", api_key="secret"))


def test_bytes_of_a_token() -> None:
    assert kv_bytes_per_token(layers=4, kv_heads=2, head_dim=64) == 2048  # the tiny model's, at f16
    assert kv_bytes_per_token(layers=32, kv_heads=8, head_dim=128, bytes_per_element=1) == 65536
    with pytest.raises(InvalidValue):
        kv_bytes_per_token(layers=0, kv_heads=2, head_dim=64)


@pytest.mark.parametrize("session", ["", "x" * 129, "a\nb"])
def test_session_ids_that_are_none(session: str) -> None:
    with pytest.raises(InvalidValue):
        KvRef(session=session)
    with pytest.raises(InvalidValue, match="slots count from 0"):
        KvRef(session="s", slot=-1)
