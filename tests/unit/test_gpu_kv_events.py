"""vLLM's KV events: decoding, the index, and a real PUB and ROUTER pair that loses messages."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu.engines import Batch, Cleared, Gap, KvEventStream, KvIndex, KvUpdate, Removed, Restarted, Stored
from gpu.engines.vllm_events import BadEvent, KvEvent, decode
from gpu.errors import EngineUnreachable, InvalidValue

needs_zmq = pytest.mark.skipif(importlib.util.find_spec("zmq") is None, reason="pyzmq is not installed (extra gpu)")

END = (1 << 64) - 1


def stored(*hashes: int | bytes, session: str = "s", size: int = 16, medium: str | None = "GPU") -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": list(hashes),
        "parent_block_hash": None,
        "token_ids": [1] * size * len(hashes),
        "block_size": size,
        "lora_id": None,
        "medium": medium,
        "lora_name": None,
        "session_id": session,
    }


def removed(*hashes: int | bytes, medium: str | None = "GPU") -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": medium}


def message(at: float, *events: Any, rank: int | None = 0) -> bytes:
    return msgspec.msgpack.encode([at, list(events), rank])


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_maps_arrays_and_both_forms_of_a_batch() -> None:
    expected = (Stored((1, 2), 16, "GPU", "s"), Removed((1,)), Cleared())
    new = [stored(1, 2), removed(1, medium=None), {"type": "AllBlocksCleared"}]
    assert decode(3, message(1.5, *new, rank=2)) == Batch(3, 1.5, expected, rank=2)
    assert decode(3, msgspec.msgpack.encode({"ts": 1.5, "events": new})) == Batch(3, 1.5, expected)
    old = [["BlockStored", [1, 2], None, [1] * 32, 16, None, "GPU"], ["BlockRemoved", [1]], ["AllBlocksCleared"]]
    assert decode(3, message(1.5, *old)).events == (Stored((1, 2), 16), Removed((1,)), Cleared())


def test_a_later_versions_events_are_counted_and_left_alone() -> None:
    batch = decode(0, message(1.0, {"type": "BlockPondered", "x": 1}, {**stored(b"h"), "group_idx": 0}, ["New", 1]))
    assert (batch.unknown, len(batch.events)) == (2, 1)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(5),
        msgspec.msgpack.encode([1.0]),
        msgspec.msgpack.encode(["now", []]),
        msgspec.msgpack.encode([float("inf"), []]),
        msgspec.msgpack.encode([1.0, {}]),
        msgspec.msgpack.encode([1.0, [7]]),
        msgspec.msgpack.encode([1.0, [[]]]),
        msgspec.msgpack.encode([1.0, [{"type": 4}]]),
        message(1.0, {**stored(1), "block_size": 0}),
        message(1.0, {**stored(1), "block_size": True}),
        message(1.0, {**stored(1), "block_hashes": "abc"}),
        message(1.0, {**stored(1), "block_hashes": [None]}),
        message(1.0, {**stored(1), "medium": "x" * 65}),
        message(1.0, {"type": "BlockRemoved"}),
        b"\x91" * 100_000,
    ],
)
def test_what_is_no_batch(payload: bytes) -> None:
    with pytest.raises(BadEvent):
        decode(0, payload)


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(payload: bytes) -> None:
    try:
        decode(0, payload)
    except BadEvent:
        return


# --- the index --------------------------------------------------------------------------------------------------------


def batch(*events: KvEvent) -> Batch:
    return Batch(0, 0.0, events)


def test_tokens_by_session_and_medium() -> None:
    index = KvIndex()
    index.feed(batch(Stored((1, 2), 16, "GPU", "a"), Stored((3,), 16, "GPU", "b"), Stored((1,), 16, "CPU", "a")))
    assert index.sessions() == {"a": {"GPU": 32, "CPU": 16}, "b": {"GPU": 16}}
    assert index.by_medium() == {"GPU": 48, "CPU": 16}
    index.feed(batch(Removed((1, 99), "GPU")))
    assert (index.tokens("a"), index.tokens("a", "CPU"), index.tokens("nobody")) == (16, 16, 0)
    index.feed(batch(Removed((2,)), Removed((3,))))
    assert index.sessions() == {"a": {"CPU": 16}}


def test_a_gap_makes_it_uncertain_until_the_cache_is_cleared_or_the_engine_restarts() -> None:
    for heal in (batch(Cleared()), Restarted()):
        index = KvIndex()
        index.feed(batch(Stored((1,), 16)))
        index.feed(Gap(3, 5, "lost"))
        assert (index.certain, len(index)) == (False, 1)
        index.feed(heal)
        assert (index.certain, len(index)) == (True, 0)


def test_it_is_bounded() -> None:
    index = KvIndex(max_blocks=2)
    index.feed(batch(Stored((1, 2, 3), 16)))
    assert (len(index), index.certain) == (2, False)


def test_a_block_that_two_sessions_computed_stays_until_both_copies_are_gone() -> None:
    """As the real vLLM 0.32 tells it when a second session's prompt ends with a block that the first has."""
    index = KvIndex()
    index.feed(batch(Stored((1, 2), 32, session="a"), Stored((2,), 32, session="b")))
    assert (index.tokens("a"), index.tokens("b"), index.copies) == (64, 32, 3)
    index.feed(batch(Removed((2,))))
    assert (index.tokens("a"), index.tokens("b"), index.copies) == (64, 32, 2)
    index.feed(batch(Removed((2,))))
    assert index.sessions() == {"a": {"GPU": 32}}


def test_a_block_in_two_groups_of_layers_is_two_blocks_and_one_time_its_tokens() -> None:
    index = KvIndex()
    index.feed(batch(Stored((1,), 16, session="a"), Stored((1,), 16, session="a", group=1)))
    assert (index.tokens("a"), index.by_medium(), len(index)) == (16, {"GPU": 16}, 2)
    index.feed(batch(Removed((1,), group=1)))
    assert (index.tokens("a"), len(index)) == (16, 1)


_events = st.lists(
    st.one_of(
        st.builds(
            Stored,
            st.lists(st.integers(0, 6), max_size=4).map(tuple),
            st.sampled_from([8, 16]),
            st.sampled_from(["GPU", "CPU"]),
            st.sampled_from(["", "a", "b"]),
        ),
        st.builds(Removed, st.lists(st.integers(0, 6), max_size=4).map(tuple), st.sampled_from(["GPU", "CPU"])),
        st.just(Cleared()),
    ),
    max_size=30,
)


@given(_events)
def test_it_always_agrees_with_a_plain_replay(events: list[KvEvent]) -> None:
    index = KvIndex()
    plain: dict[tuple[str, Any], list[tuple[int, str]]] = {}  # every copy's size and session, also those removed since
    copies: dict[tuple[str, Any], int] = {}
    for event in events:
        index.feed(batch(event))
        match event:
            case Stored():
                for one in event.hashes:
                    plain.setdefault((event.medium, one), []).append((event.block_size, event.session))
                    copies[event.medium, one] = copies.get((event.medium, one), 0) + 1
            case Removed():
                for key in ((event.medium, one) for one in event.hashes):
                    if key in copies:
                        copies[key] -= 1
                    if not copies.get(key, 0):
                        plain.pop(key, None)
                        copies.pop(key, None)
            case Cleared():
                plain.clear()
                copies.clear()
    expected: dict[str, dict[str, int]] = {}
    for (medium, _), stored in plain.items():
        for session in {session for _, session in stored}:
            places = expected.setdefault(session, {})
            places[medium] = places.get(medium, 0) + stored[0][0]  # one content has one size
    assert index.copies == sum(copies.values())
    assert index.sessions() == expected
    assert len(index) == len(plain)


# --- the stream -------------------------------------------------------------------------------------------------------


class Publisher:
    """What vLLM's publisher does: PUB and ROUTER, a ring of the last messages. Can lose messages on purpose."""

    def __init__(self, directory: Path, *, ring: int = 100) -> None:
        import zmq
        import zmq.asyncio

        self.zmq = zmq
        self.context = zmq.asyncio.Context()
        self.endpoint, self.replay = f"ipc://{directory}/kv", f"ipc://{directory}/kvr"
        self.ring: deque[tuple[int, bytes]] = deque(maxlen=ring)
        self.seq = 0
        self.replays = 0
        self.silent = False
        self.open()

    def open(self) -> None:
        # XPUB is a PUB whose subscriptions can be awaited: the test needs no sleep until a subscriber has arrived.
        self.pub = self.context.socket(self.zmq.XPUB)
        self.pub.bind(self.endpoint)
        self.router = self.context.socket(self.zmq.ROUTER)
        self.router.bind(self.replay)
        self.task = asyncio.create_task(self.answer())

    async def answer(self) -> None:
        while True:
            client, _, first = await self.router.recv_multipart()
            if self.silent:
                continue
            self.replays += 1
            for seq, payload in self.ring:
                if seq >= int.from_bytes(first, "big"):
                    await self.router.send_multipart([client, b"", seq.to_bytes(8, "big"), payload])
            await self.router.send_multipart([client, b"", END.to_bytes(8, "big"), b""])

    async def send(self, at: float, *events: Any, lose: bool = False, raw: bytes | None = None) -> None:
        payload = message(at, *events) if raw is None else raw
        self.ring.append((self.seq, payload))
        if not lose:
            await self.pub.send_multipart([b"kv", self.seq.to_bytes(8, "big"), payload])
        self.seq += 1

    async def subscribed(self) -> None:
        assert await self.pub.recv() == b"\x01kv"

    async def restart(self) -> None:
        """A new engine at the same place: counts from 0, with an empty ring."""
        self.seq = 0
        self.ring.clear()

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.context.destroy(linger=0)


@pytest.fixture
async def publisher(tmp_path: Path) -> AsyncIterator[Publisher]:
    made = Publisher(tmp_path)
    yield made
    await made.close()


def stream(publisher: Publisher, *, replay: bool = True, seconds: float = 30.0) -> KvEventStream:
    return KvEventStream(
        publisher.endpoint,
        engine="v",
        replay=publisher.replay if replay else "",
        topic="kv",
        replay_seconds=seconds,
    )


async def take(events: KvEventStream, count: int) -> list[KvUpdate]:
    return [await anext(events) for _ in range(count)]


def seqs(updates: list[KvUpdate]) -> list[int | str]:
    found: list[int | str] = []
    for one in updates:
        match one:
            case Batch():
                found.append(one.seq)
            case Gap():
                found.append(f"gap {one.first}-{one.last}")
            case Restarted():
                found.append("restarted")
    return found


@needs_zmq
async def test_a_late_subscriber_gets_what_was_before(publisher: Publisher) -> None:
    await publisher.send(1.0, stored(1))
    await publisher.send(2.0, stored(2))
    async with stream(publisher) as events:
        await publisher.subscribed()
        await publisher.send(3.0, removed(1))
        updates = await take(events, 3)
    assert seqs(updates) == [0, 1, 2]
    assert [one.replayed for one in updates if isinstance(one, Batch)] == [True, True, False]
    index = KvIndex()
    for update in updates:
        index.feed(update)
    assert (index.tokens("s"), index.certain) == (16, True)


@needs_zmq
async def test_lost_messages_are_replayed_in_order_and_once(publisher: Publisher) -> None:
    async with stream(publisher) as events:
        await publisher.subscribed()
        await publisher.send(1.0, stored(1))
        await publisher.send(2.0, stored(2), lose=True)
        await publisher.send(3.0, stored(3), lose=True)
        await publisher.send(4.0, stored(4))
        await publisher.send(5.0, stored(5))
        updates = await take(events, 5)
        assert seqs(updates) == [0, 1, 2, 3, 4]
    assert publisher.replays == 2  # at the start, and for the hole


@needs_zmq
async def test_what_the_ring_no_longer_has_is_a_gap(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path, ring=2)
    try:
        async with stream(publisher) as events:
            await publisher.subscribed()
            await publisher.send(1.0, stored(1))
            for at in (2.0, 3.0, 4.0, 5.0):
                await publisher.send(at, stored(int(at)), lose=True)
            await publisher.send(6.0, stored(6))
            assert seqs(await take(events, 4)) == [0, "gap 1-3", 4, 5]
    finally:
        await publisher.close()


@needs_zmq
async def test_without_a_replay_endpoint_a_hole_is_said(publisher: Publisher) -> None:
    async with stream(publisher, replay=False) as events:
        await publisher.subscribed()
        await publisher.send(1.0, stored(1))
        await publisher.send(2.0, stored(2), lose=True)
        await publisher.send(3.0, stored(3))
        updates = await take(events, 3)
        assert seqs(updates) == [0, "gap 1-1", 2]
        assert updates[1] == Gap(1, 1, "there is no replay endpoint")


@needs_zmq
async def test_a_replay_endpoint_that_is_silent(publisher: Publisher) -> None:
    publisher.silent = True
    async with stream(publisher, seconds=0.05) as events:
        await publisher.subscribed()
        publisher.seq = 4
        await publisher.send(1.0, stored(1))
        updates = await take(events, 2)
        assert seqs(updates) == ["gap 0-3", 4]
        assert isinstance(updates[0], Gap)
        assert "silent" in updates[0].why


@needs_zmq
async def test_an_engine_that_begins_anew(publisher: Publisher) -> None:
    async with stream(publisher) as events:
        await publisher.subscribed()
        for at in (1.0, 2.0, 3.0):
            await publisher.send(at, stored(int(at)))
        await take(events, 3)
        await publisher.restart()
        await publisher.send(10.0, stored(9), lose=True)
        await publisher.send(11.0, stored(10))
        assert seqs(await take(events, 3)) == ["restarted", 0, 1]


@needs_zmq
async def test_rubbish_is_a_gap_and_the_stream_goes_on(publisher: Publisher) -> None:
    async with stream(publisher) as events:
        await publisher.subscribed()
        await publisher.send(1.0, stored(1))
        await publisher.send(2.0, raw=b"\xc1")
        await publisher.pub.send_multipart([b"kv", b"short", b""])
        await publisher.pub.send_multipart([b"kv"])
        await publisher.send(3.0, stored(3))
        assert seqs(await take(events, 3)) == [0, "gap 1-1", 2]
        assert events.bad == 3


@needs_zmq
async def test_a_closed_stream_ends(publisher: Publisher) -> None:
    events = stream(publisher, replay=False)
    async with events:
        pass
    with pytest.raises(StopAsyncIteration):
        await anext(events)


@needs_zmq
async def test_closing_ends_whoever_waits_but_a_cancelled_waiter_is_cancelled(publisher: Publisher) -> None:
    async def listen(events: KvEventStream) -> int:
        return len([update async for update in events])

    events = stream(publisher, replay=False)
    await events.__aenter__()
    await publisher.subscribed()
    cancelled, listener = (asyncio.create_task(listen(events)) for _ in range(2))
    await publisher.send(1.0, stored(1))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await events.close()
    assert await listener <= 1


@needs_zmq
async def test_an_endpoint_that_cannot_be_opened(publisher: Publisher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for bad in (
            KvEventStream(f"tcp://127.0.0.1:{taken.getsockname()[1]}", engine="v", bind=True),
            KvEventStream(publisher.endpoint, engine="v", replay="tcp://nonsense"),
        ):
            with pytest.raises(EngineUnreachable, match="engine v: KV events at"):
                await bad.__aenter__()


@needs_zmq
async def test_an_engine_that_connects_to_us() -> None:
    """What vLLM does with a plain tcp endpoint."""
    import zmq
    import zmq.asyncio

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    async with KvEventStream(f"tcp://127.0.0.1:{port}", engine="v", topic="kv", bind=True) as events:
        with zmq.asyncio.Context() as context, context.socket(zmq.XPUB) as pub:
            # A bound SUB sends its subscription when its own side next calls into it: so somebody must be listening.
            listener = asyncio.create_task(take(events, 1))
            pub.connect(f"tcp://127.0.0.1:{port}")
            assert await pub.recv() == b"\x01kv"
            await pub.send_multipart([b"kv", (0).to_bytes(8, "big"), message(1.0, stored(1))])
            assert seqs(await listener) == [0]


def test_an_ipc_path_is_not_taken_from_the_engine() -> None:
    with pytest.raises(InvalidValue, match="vLLM binds ipc endpoints itself"):
        KvEventStream("ipc:///run/x/kv", engine="v", bind=True)


@pytest.mark.parametrize("endpoint", ["", "http://x", "/run/x.sock", "ipc://" + "x" * 300])
def test_endpoints_that_are_none(endpoint: str) -> None:
    with pytest.raises(InvalidValue, match="endpoint"):
        KvEventStream(endpoint, engine="v")
