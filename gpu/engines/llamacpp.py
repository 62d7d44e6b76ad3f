"""llama.cpp's server: slots that hold one session's KV each, saved to and restored from files.

The server knows slots, not sessions: which session has which slot is the caller's (``KvRef.slot``). A saved slot is a
file in the server's own ``--slot-save-path``, named by a hash of the session's id, so that no id can name a path. The
server never deletes those files; the operator gives that directory a size (a tmpfs, a quota).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Final, TypeVar

import msgspec

from gpu.engines.base import Engine
from gpu.engines.http import HttpClient
from gpu.engines.prometheus import Metrics
from gpu.engines.types import (
    Capability,
    EngineInfo,
    EngineKind,
    EngineMetrics,
    KvMoved,
    KvRef,
    Slot,
    Support,
    no,
    untried,
    yes,
)
from gpu.errors import EngineRefused, InvalidValue, NotSupported

# Saving hundreds of megabytes to a slow disk takes its time, and giving up half way helps nobody (seconds).
_MOVE_TIMEOUT: Final = 120.0
_SAVE_PATH: Final = "start it with --slot-save-path DIRECTORY"
_SLOTS: Final = "start it with --slots"

_T = TypeVar("_T")


class _Slot(msgspec.Struct):
    id: int
    n_ctx: int
    is_processing: bool
    n_prompt_tokens: int = 0  # absent until the slot's first request


class _Saved(msgspec.Struct):
    n_saved: int
    n_written: int


class _Restored(msgspec.Struct):
    n_restored: int
    n_read: int


class _Erased(msgspec.Struct):
    n_erased: int


class LlamaCpp(Engine):
    """
    :param bytes_per_token: of the KV cache; None: learned from the first save
    """

    kind: ClassVar[EngineKind] = EngineKind.LLAMACPP
    _metrics_remedy: ClassVar[str] = "start it with --metrics"

    cannot: ClassVar[Mapping[Capability, str]] = {
        Capability.KV_EVENTS: "llama.cpp publishes no events of its KV cache",
        Capability.PRIORITY: "llama.cpp serves requests in the order in which they come",
        Capability.RESET: "llama.cpp erases slot by slot: drop each session",
        Capability.PAUSE: "llama.cpp has no pause",
        Capability.QUOTA: "a slot has the context that the server gave it at its start",
    }

    def __init__(self, name: str, client: HttpClient, *, bytes_per_token: int | None = None) -> None:
        super().__init__(name, client)
        self._bytes_per_token = bytes_per_token
        # Slots that we filled from a file: the server shows their tokens only once a request has run in them.
        self._restored: dict[int, str] = {}

    async def _probe(self) -> EngineInfo:
        props = await self._optional("/props")
        models = (await self._optional("/v1/models")).get("data")
        model = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else {}
        meta = model.get("meta") if isinstance(model.get("meta"), dict) else {}
        try:
            slots: list[Slot] | None = await self.slots()
        except NotSupported:
            slots = None
        metrics = await self._http.request("GET", "/metrics")
        save = await self._saves()
        contexts = [slot.context_tokens for slot in slots or ()]
        count = len(slots) if slots is not None else _whole(props.get("total_slots"))
        context = contexts[0] if contexts else _whole(meta.get("n_ctx")) if isinstance(meta, dict) else None
        listed = yes("GET /slots") if slots is not None else no(f"it does not list its slots: {_SLOTS}")
        return EngineInfo(
            name=self.name,
            kind=self.kind,
            url=self._http.url,
            version=str(props.get("build_info") or ""),
            model=str(model.get("id") or ""),
            capabilities=self._capabilities(
                {
                    Capability.METRICS: yes("GET /metrics")
                    if metrics.status == 200
                    else no(f"it serves no /metrics: {self._metrics_remedy}"),
                    Capability.KV_USE: listed,
                    Capability.SESSION_KV: listed,
                    Capability.BIND: yes("id_slot in the request"),
                    Capability.HOLD: yes("by sending no other session's request to the slot"),
                    Capability.OFFLOAD: save,
                    Capability.RESTORE: save,
                    Capability.DROP: save,
                }
            ),
            context_tokens=context,
            slots=count,
            kv_tokens=sum(contexts) if contexts else None,
            kv_bytes_per_token=self._bytes_per_token,
        )

    async def _saves(self) -> Support:
        """Whether slots can be saved, without saving one: an empty file name is refused, but by another refusal."""
        response = await self._http.request("POST", "/slots/0?action=save", body={"filename": ""})
        if response.status == 501:
            return no(f"it does not save slots: {_SAVE_PATH}")
        if response.status == 400:
            return yes("POST /slots/ID?action=save|restore|erase")
        return untried(f"asked about slot actions, it answered with status {response.status}")

    async def slots(self) -> list[Slot]:
        """All slots.

        :raises NotSupported: the server was started without its slot list
        """
        try:
            raw = await self._http.get("/slots", list[_Slot])
        except EngineRefused as error:
            if error.status in (404, 501):
                raise self._unsupported(Capability.SESSION_KV, "it does not list its slots", _SLOTS) from error
            raise
        return [
            Slot(id=one.id, context_tokens=one.n_ctx, busy=one.is_processing, tokens=one.n_prompt_tokens) for one in raw
        ]

    async def metrics(self) -> EngineMetrics:
        """The metrics page, and how full the slots are. A server that lists no slots has no KV use."""
        page = await self.scrape()
        read = self._read(page, time.monotonic_ns())
        try:
            slots = await self.slots()
        except NotSupported:
            return read
        total = sum(slot.context_tokens for slot in slots)
        used = sum(slot.tokens for slot in slots)
        return EngineMetrics(
            at_nsec=read.at_nsec,
            kv_used=used / total if total else None,
            kv_used_tokens=used,
            kv_total_tokens=total,
            running=read.running,
            waiting=read.waiting,
            prompt_tokens_total=read.prompt_tokens_total,
            cached_tokens_total=read.cached_tokens_total,
            generated_tokens_total=read.generated_tokens_total,
        )

    def _read(self, page: Metrics, at_nsec: int) -> EngineMetrics:
        return EngineMetrics(
            at_nsec=at_nsec,
            running=page.whole("llamacpp:requests_processing"),
            waiting=page.whole("llamacpp:requests_deferred"),
            prompt_tokens_total=page.whole("llamacpp:prompt_tokens_total"),
            cached_tokens_total=page.whole("llamacpp:prompt_tokens_cached_total"),
            generated_tokens_total=page.whole("llamacpp:tokens_predicted_total"),
        )

    # --- controls -----------------------------------------------------------------------------------------------------

    def request_fields(self, ref: KvRef, *, priority: int | None = None) -> Mapping[str, Any]:
        if priority is not None:
            raise self._refused(Capability.PRIORITY)
        return {"id_slot": self._slot(ref), "cache_prompt": True}

    async def hold(self, ref: KvRef, seconds: float) -> KvMoved:
        """Says what the slot holds; holding it is the caller's, by sending it no other session's request."""
        slot = await self._known(ref)
        size = None if self._bytes_per_token is None else slot.tokens * self._bytes_per_token
        return KvMoved(tokens=slot.tokens, bytes=size)

    async def offload(self, ref: KvRef) -> KvMoved:
        """Save the slot to a file, then erase it. If the erase fails, the KV is in both places and nothing is lost.

        Waits for a request that runs in the slot. An empty slot is refused: saving it (a second time, say) would
        overwrite the session's file with nothing.

        :raises InvalidValue: no such slot, or it is empty
        """
        begun = time.monotonic()
        slot = await self._known(ref)
        if slot.tokens == 0 and not slot.busy and self._restored.get(slot.id) != ref.session:
            raise InvalidValue(
                f"engine {self.name}: slot {slot.id} holds no KV that could be offloaded for session {ref.session}",
                remedy="see whether it was offloaded already, or another slot is its own",
            )
        saved = await self._act(ref, "save", _Saved, Capability.OFFLOAD, body={"filename": file_name(ref.session)})
        if saved.n_saved > 0 and self._bytes_per_token is None:
            # The file has a small header, and the token ids; the remainder is KV.
            self._bytes_per_token = saved.n_written // saved.n_saved
        await self._act(ref, "erase", _Erased, Capability.DROP)
        self._restored.pop(slot.id, None)
        return KvMoved(tokens=saved.n_saved, bytes=saved.n_written, seconds=time.monotonic() - begun)

    async def restore(self, ref: KvRef) -> KvMoved:
        """
        :raises EngineRefused: the session was never saved here, or the slot has less context than it needs
        """
        begun = time.monotonic()
        slot = await self._known(ref)
        body = {"filename": file_name(ref.session)}
        restored = await self._act(ref, "restore", _Restored, Capability.RESTORE, body=body)
        self._restored[slot.id] = ref.session
        return KvMoved(tokens=restored.n_restored, bytes=restored.n_read, seconds=time.monotonic() - begun)

    async def drop(self, ref: KvRef) -> KvMoved:
        begun = time.monotonic()
        slot = await self._known(ref)
        erased = await self._act(ref, "erase", _Erased, Capability.DROP)
        self._restored.pop(slot.id, None)
        size = None if self._bytes_per_token is None else erased.n_erased * self._bytes_per_token
        return KvMoved(tokens=erased.n_erased, bytes=size, seconds=time.monotonic() - begun)

    async def _act(self, ref: KvRef, action: str, kind: type[_T], capability: Capability, *, body: object = None) -> _T:
        path = f"/slots/{self._slot(ref)}?action={action}"
        try:
            return await self._http.send("POST", path, kind, body={} if body is None else body, limit=_MOVE_TIMEOUT)
        except EngineRefused as error:
            if error.status == 501:
                raise self._unsupported(capability, "it does not save slots", _SAVE_PATH) from error
            raise

    def _slot(self, ref: KvRef) -> int:
        if ref.slot is None:
            raise InvalidValue(
                f"engine {self.name}: session {ref.session} has no slot",
                remedy="give KvRef.slot: llama.cpp knows no sessions",
            )
        return ref.slot

    async def _known(self, ref: KvRef) -> Slot:
        """The slot, checked: the server answers an action on a slot that it does not have as if all were well."""
        wanted = self._slot(ref)
        slots = await self.slots()
        for slot in slots:
            if slot.id == wanted:
                return slot
        raise InvalidValue(
            f"engine {self.name}: slot {wanted} of session {ref.session} does not exist",
            remedy=f"it has {len(slots)}, counted from 0",
        )


def file_name(session: str) -> str:
    """The file of a session's saved KV, in the server's directory; the same after a restart of either side."""
    return f"corral-{hashlib.sha256(session.encode()).hexdigest()[:32]}.kv"


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
