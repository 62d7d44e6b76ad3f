"""The llama.cpp adapter against the real server (xllamacpp) and a model of random weights."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gpu.engines import Answer, Capability, EngineConfig, EngineKind, KvRef, LlamaCpp, discover, make_engine
from gpu.errors import EngineRefused, EngineUnreachable, InvalidValue, NotSupported
from gpu.ledger import ContextSwitch, Dropped, KvLedger, Offloaded, Restored, SwitchKind, Turn
from tests.support import tiny_gguf
from tests.support.llamacpp import llamacpp

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp has no wheel for this machine: no llama.cpp server"
)

PROMPT = "You are agent 7. Read the file, then say what it holds. " * 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
async def engine(model: Path, tmp_path: Path) -> AsyncIterator[LlamaCpp]:
    async with llamacpp(model, tmp_path) as url:
        made = make_engine(EngineConfig(name="local", url=url), EngineKind.LLAMACPP)
        assert isinstance(made, LlamaCpp)
        yield made
        await made.close()


async def complete(engine: LlamaCpp, ref: KvRef, prompt: str = PROMPT, *, generate: int = 2) -> dict[str, Any]:
    """One turn, as an agent's request that carries the adapter's fields. Returns the server's timings."""
    body = {"prompt": prompt, "n_predict": generate, "temperature": 0, "ignore_eos": True, **engine.request_fields(ref)}
    request = urllib.request.Request(  # noqa: S310  # our own server, over http
        (await engine.info()).url + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )

    def send() -> dict[str, Any]:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            timings: dict[str, Any] = json.load(answer)["timings"]
            return timings

    return await asyncio.to_thread(send)


async def test_what_it_is_and_what_it_can_do(engine: LlamaCpp) -> None:
    info = await engine.info()
    assert (info.kind, info.slots, info.context_tokens, info.kv_tokens) == (EngineKind.LLAMACPP, 2, 2048, 4096)
    assert info.model.endswith("tiny.gguf")
    assert set(info.capabilities) == set(Capability)
    can = {one for one, support in info.capabilities.items() if support.answer is Answer.YES}
    assert can == {
        Capability.METRICS,
        Capability.KV_USE,
        Capability.SESSION_KV,
        Capability.BIND,
        Capability.HOLD,
        Capability.OFFLOAD,
        Capability.RESTORE,
        Capability.DROP,
    }
    assert all(support.note for support in info.capabilities.values())


async def test_metrics_count_what_was_computed_and_what_was_cached(engine: LlamaCpp) -> None:
    before = await engine.metrics()
    assert (before.prompt_tokens_total, before.kv_used, before.waiting) == (0, 0.0, 0)
    first = await complete(engine, KvRef(session="s", slot=0))
    again = await complete(engine, KvRef(session="s", slot=0))
    after = await engine.metrics()
    assert after.prompt_tokens_total == first["prompt_n"] + again["prompt_n"]
    assert after.cached_tokens_total == again["cache_n"] > 100
    assert after.generated_tokens_total == 4
    assert after.kv_used_tokens is not None
    assert after.kv_used_tokens >= first["prompt_n"]
    assert after.kv_used == after.kv_used_tokens / 4096


async def test_offloaded_kv_comes_back_in_another_slot_without_prefill(engine: LlamaCpp) -> None:
    home, elsewhere = KvRef(session="agent/../7", slot=0), KvRef(session="agent/../7", slot=1)
    first = await complete(engine, home)
    out = await engine.offload(home)
    assert out.tokens is not None
    assert out.bytes is not None
    assert out.tokens >= first["prompt_n"]
    # Two bytes for each element of keys and values, and a file header that grows with the tokens.
    assert 1.0 <= out.bytes / (out.tokens * tiny_gguf.KV_BYTES_PER_TOKEN) < 1.05
    assert (await engine.slots())[0].tokens == 0
    back = await engine.restore(elsewhere)
    assert (back.tokens, back.bytes) == (out.tokens, out.bytes)
    turn = await complete(engine, elsewhere)
    assert turn["prompt_n"] <= 1 + 1  # the last token is always computed
    assert turn["cache_n"] >= first["prompt_n"] - 2


async def test_an_empty_slot_does_not_overwrite_what_was_saved(engine: LlamaCpp) -> None:
    ref = KvRef(session="s", slot=0)
    with pytest.raises(InvalidValue, match="holds no KV"):
        await engine.offload(ref)
    await complete(engine, ref)
    out = await engine.offload(ref)
    with pytest.raises(InvalidValue, match="offloaded already"):
        await engine.offload(ref)
    assert (await engine.restore(ref)).tokens == out.tokens
    # Out again before a turn has run: the server shows no tokens in the slot, and yet they are there.
    assert (await engine.offload(ref)).tokens == out.tokens
    assert (await engine.restore(ref)).tokens == out.tokens
    await engine.drop(ref)
    with pytest.raises(InvalidValue, match="holds no KV"):
        await engine.offload(ref)


async def test_a_slot_that_is_busy_is_offloaded_when_its_request_is_done(engine: LlamaCpp) -> None:
    ref = KvRef(session="s", slot=1)
    running = asyncio.create_task(complete(engine, ref, generate=600))
    while not (await engine.slots())[1].busy:
        if running.done():  # over before we looked: once more
            await running
            running = asyncio.create_task(complete(engine, ref, generate=600))
    out = await engine.offload(ref)
    timings = await running
    assert out.tokens is not None
    assert out.tokens >= timings["prompt_n"] + timings["predicted_n"] - 1


async def test_a_session_too_long_for_the_slot_is_refused_and_the_file_stays(model: Path, tmp_path: Path) -> None:
    ref = KvRef(session="s", slot=0)
    async with llamacpp(model, tmp_path, context=4096) as url:
        engine = make_engine(EngineConfig(name="large", url=url), EngineKind.LLAMACPP)
        assert isinstance(engine, LlamaCpp)
        await complete(engine, ref)
        out = await engine.offload(ref)
        async with llamacpp(model, tmp_path, context=512) as narrow:
            small = make_engine(EngineConfig(name="small", url=narrow), EngineKind.LLAMACPP)
            with pytest.raises(EngineRefused, match="No available space"):
                await small.restore(ref)
            await small.close()
        assert (await engine.restore(ref)).tokens == out.tokens
        await engine.close()


async def test_a_saved_slot_survives_a_restart_of_the_server(model: Path, tmp_path: Path) -> None:
    ref = KvRef(session="s-1", slot=0)
    async with llamacpp(model, tmp_path) as url:
        engine = make_engine(EngineConfig(name="one", url=url), EngineKind.LLAMACPP)
        assert isinstance(engine, LlamaCpp)
        await complete(engine, ref)
        out = await engine.offload(ref)
        await engine.close()
    async with llamacpp(model, tmp_path) as url:
        engine = make_engine(EngineConfig(name="two", url=url), EngineKind.LLAMACPP)
        assert isinstance(engine, LlamaCpp)
        assert (await engine.restore(ref)).tokens == out.tokens
        assert (await complete(engine, ref))["cache_n"] > 100
        await engine.close()


async def test_dropped_kv_is_computed_again(engine: LlamaCpp) -> None:
    ref = KvRef(session="s", slot=1)
    first = await complete(engine, ref)
    held = await engine.hold(ref, 5.0)
    assert held.tokens is not None
    dropped = await engine.drop(ref)
    assert dropped.tokens == held.tokens >= first["prompt_n"]
    assert (await complete(engine, ref))["prompt_n"] == first["prompt_n"]


async def test_the_ledger_sees_what_the_server_did(engine: LlamaCpp) -> None:
    """The ledger's reading of a turn, against the real numbers of kept, offloaded, dropped and silently evicted KV."""
    book = KvLedger(bytes_per_token=tiny_gguf.KV_BYTES_PER_TOKEN)
    ref, other = KvRef(session="mine", slot=0), KvRef(session="other", slot=0)

    async def turn(at: int) -> list[SwitchKind]:
        timings = await complete(engine, ref)
        seen = book.apply(
            "mine",
            Turn(
                at_nsec=at,
                computed=timings["prompt_n"],
                cached=timings["cache_n"],
                generated=timings["predicted_n"],
                seconds=timings["prompt_ms"] / 1000,
            ),
        )
        return [one.kind for one in seen if isinstance(one, ContextSwitch)]

    assert await turn(1) == []
    assert await turn(2) == []  # kept
    out = await engine.offload(ref)
    book.apply("mine", Offloaded(at_nsec=3, why="test", tokens=out.tokens, bytes=out.bytes, seconds=out.seconds))
    back = await engine.restore(ref)
    book.apply("mine", Restored(at_nsec=4, why="test", tokens=back.tokens, bytes=back.bytes, seconds=back.seconds))
    assert await turn(5) == []  # nothing was computed again
    await engine.drop(ref)
    book.apply("mine", Dropped(at_nsec=6, why="test"))
    assert await turn(7) == [SwitchKind.RECOMPUTED]
    await complete(engine, other, "Another agent's words, which share no beginning with the first. " * 9)
    assert await turn(8) == [SwitchKind.RECOMPUTED]  # nobody told: the other session took the slot
    found = book.session("mine")
    assert found is not None
    assert found.recomputed_tokens > 2 * 500


async def test_restoring_what_was_never_saved_is_refused(engine: LlamaCpp) -> None:
    with pytest.raises(EngineRefused, match="status 400") as caught:
        await engine.restore(KvRef(session="nobody", slot=0))
    assert caught.value.status == 400


async def test_a_slot_that_does_not_exist(engine: LlamaCpp) -> None:
    for act in (engine.drop, engine.offload, engine.restore):
        with pytest.raises(InvalidValue, match=r"slot 9 .* does not exist; it has 2"):
            await act(KvRef(session="s", slot=9))
    with pytest.raises(InvalidValue, match="has no slot"):
        engine.request_fields(KvRef(session="s"))


async def test_what_it_cannot_do_is_said(engine: LlamaCpp) -> None:
    ref = KvRef(session="s", slot=0)
    with pytest.raises(NotSupported, match="in the order in which they come") as caught:
        engine.request_fields(ref, priority=3)
    assert caught.value.capability == Capability.PRIORITY
    with pytest.raises(NotSupported, match="drop each session"):
        await engine.reset()
    with pytest.raises(NotSupported, match="quota"):
        await engine.set_quota(ref, 1)
    with pytest.raises(NotSupported):
        await engine.pause()


async def test_a_server_that_saves_no_slots(model: Path) -> None:
    async with llamacpp(model, None) as url:
        (found,) = await discover([EngineConfig(name="bare", url=url)])
        assert found.info is not None
        assert found.engine is not None
        assert found.info.kind is EngineKind.LLAMACPP  # found out from its metrics
        support = found.info.capabilities[Capability.OFFLOAD]
        assert (support.answer, support.note) == (
            Answer.NO,
            "it does not save slots: start it with --slot-save-path DIRECTORY",
        )
        assert isinstance(found.engine, LlamaCpp)
        await complete(found.engine, KvRef(session="s", slot=0))
        with pytest.raises(NotSupported, match="--slot-save-path"):
            await found.engine.offload(KvRef(session="s", slot=0))
        await found.engine.close()


async def test_a_server_that_went_away(model: Path, tmp_path: Path) -> None:
    async with llamacpp(model, tmp_path) as url:
        engine = make_engine(EngineConfig(name="gone", url=url), EngineKind.LLAMACPP)
    with pytest.raises(EngineUnreachable, match="engine gone"):
        await engine.metrics()
    (found,) = await discover([EngineConfig(name="gone", url=url)])
    assert (found.engine, found.info) == (None, None)
    assert "check that it runs" in found.problem
    await engine.close()
