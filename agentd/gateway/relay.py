"""One request: who asks, may it run, on to the engine, and back byte by byte while it is measured."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

from agentd.gateway.body import Body
from agentd.gateway.client import Client, Limits
from agentd.gateway.errors import ClientGone, Refusal, UpstreamError
from agentd.gateway.figures import Meter
from agentd.gateway.http1 import RequestHead
from agentd.gateway.ports import Admission, Ask, TurnPort, TurnReport
from agentd.gateway.sse import EventFilter
from agentd.gateway.upstream import Response, Upstream
from agentd.log import get_logger

log = get_logger("corral.gateway")

TURNS: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
_LISTS: Final = frozenset({"/v1/models"})
# ``/session/TOKEN/v1/...``: for agents that can be given a base URL and no key
_BASE: Final = re.compile(r"/session/([A-Za-z0-9_-]{16,128})(/v1/[a-z/]+)")
_TOKEN: Final = re.compile(rb"[A-Za-z0-9._~+/=-]{1,256}")
_CONVERSATION: Final = re.compile(rb"[A-Za-z0-9._-]{0,64}")
_FORWARDED: Final = frozenset({b"accept", b"content-type", b"user-agent", b"traceparent"})
_MAX_COUNTED: Final = 8 << 20  # bytes of an answer that is no stream which are kept for its token counts
_UNASKED: Final = 64 * 1024  # bytes of a body that are read before its token is known
_MOST_SEEN: Final = 4096  # tokens
_BYTES_PER_TOKEN: Final = (
    4  # where the engine did not tell tokens, or it could not be read; English text has about four
)


@dataclass(slots=True)
class Totals:
    """Of the gateway as a whole, since it began."""

    requests: int = 0
    refused: int = 0
    reserved_fields: int = 0  # requests that said what only the gateway may
    unreadable: int = 0  # answers whose token counts could not be read


class Relay:
    """Serves requests to one engine. ``tells_usage``: it counts tokens in a stream without being asked (llama.cpp)."""

    def __init__(self, port: TurnPort, upstream: Upstream, limits: Limits, *, tells_usage: bool) -> None:
        self._port = port
        self._upstream = upstream
        self._limits = limits
        self._tells_usage = tells_usage
        self._streams: Counter[str] = Counter()
        self._seen: dict[tuple[str, int | None], None] = {}  # by last use
        self.totals = Totals()

    async def serve(self, client: Client, head: RequestHead) -> None:
        """Answers one request. Raises Refusal before an answer has begun, ClientGone."""
        self.totals.requests += 1
        path, token = _route(head)
        if path == "/health":
            _only(head, "GET", "HEAD")
            if head.chunked or head.length:
                client.keep_alive = False  # anybody may ask, so nothing of a body is kept
            text = b'{"status":"ok"}'
            await client.start(200, [(b"content-type", b"application/json")], length=len(text))
            if head.method == "GET":
                await client.send(text)
            return
        conversation = head.get(b"x-corral-conversation")
        if not _CONVERSATION.fullmatch(conversation):
            raise Refusal(
                400,
                "bad_conversation",
                "x-corral-conversation is not a conversation's name",
                remedy="use up to 64 of A-Z a-z 0-9 . _ -",
            )
        ask = Ask(token=token, uid=client.uid, conversation=conversation.decode("ascii"))
        if path in _LISTS:
            _only(head, "GET")
            await self._known(head, ask)
            await client.body(head, token)
            await self._port.admit(Ask(token=token, uid=client.uid, turn=False))
            await self._list(client, head, path)
            return
        _only(head, "POST")
        await self._turn(client, head, path, ask)

    async def _list(self, client: Client, head: RequestHead, path: str) -> None:
        try:
            async with self._upstream.exchange("GET", path, _passed(head), b"") as response:
                await self._pass(client, response, None)
        except UpstreamError as error:
            await self._broken(client, error)

    async def _turn(self, client: Client, head: RequestHead, path: str, ask: Ask) -> None:
        if self._streams[ask.token] >= self._limits.streams:
            raise Refusal(
                429,
                "too_many_streams",
                f"{self._limits.streams} turns of this session are under way",
                remedy="wait for one of them",
                retry_after=1.0,
            )
        self._streams[ask.token] += 1
        try:
            await self._known(head, ask)
            raw = await client.body(head, ask.token)
            began = asyncio.get_running_loop().time()
            body = Body(raw)
            size = len(raw)
            del raw
            if body.taken_out:
                self.totals.reserved_fields += 1
            ask = Ask(
                token=ask.token,
                uid=ask.uid,
                conversation=ask.conversation,
                prompt_bytes=size,
                model=body.model,
            )
            admission = await self._port.admit(ask)
            self._remember(ask)
            turn = _Turn(path, Meter(path, began), queued=asyncio.get_running_loop().time() - began, size=size)
            try:
                await self._forward(client, head, body, admission, turn)
            except BaseException as error:
                turn.failed(error)
                raise
            finally:
                self.totals.unreadable += turn.meter.counts.unreadable
                self._port.ended(admission, turn.report(asyncio.get_running_loop().time()))
        finally:
            self._streams[ask.token] -= 1
            if self._streams[ask.token] <= 0:
                del self._streams[ask.token]

    async def _known(self, head: RequestHead, ask: Ask) -> None:
        """Who has shown no valid token yet is asked for it before a large body is read: without one, nobody may fill
        the memory that requests share. Raises Refusal."""
        small = not head.chunked and (head.length or 0) <= _UNASKED
        if small or (ask.token, ask.uid) in self._seen:
            return
        await self._port.admit(Ask(token=ask.token, uid=ask.uid, turn=False))
        self._remember(ask)

    def _remember(self, ask: Ask) -> None:
        """Of a session that has ended since, a body is read in vain: each turn is admitted all the same."""
        self._seen.pop((ask.token, ask.uid), None)
        self._seen[ask.token, ask.uid] = None
        if len(self._seen) > _MOST_SEEN:
            del self._seen[next(iter(self._seen))]

    async def _forward(self, client: Client, head: RequestHead, body: Body, admission: Admission, turn: _Turn) -> None:
        strip = False
        tells = self._tells_usage or admission.tells_usage
        if body.stream and not tells and turn.path != "/v1/responses":
            strip = body.ask_for_usage()
        try:
            encoded = body.encode(admission.fields)
            async with self._upstream.exchange("POST", turn.path, _passed(head), encoded) as response:
                del encoded
                turn.status = response.head.status
                await self._pass(client, response, turn.meter, strip=strip)
        except UpstreamError as error:
            turn.error = "engine"
            if not client.began_answer:
                turn.status = error.status
            await self._broken(client, error)

    async def _pass(self, client: Client, response: Response, meter: Meter | None, *, strip: bool = False) -> None:
        """The engine's answer, as it comes."""
        head = response.head
        headers = [(key, value) for key, value in head.end_to_end() if key != b"set-cookie"]
        events = head.get(b"content-type").lower().startswith(b"text/event-stream")
        await client.start(head.status, headers, length=None if events and strip else head.length)
        loop = asyncio.get_running_loop()
        if events and meter is not None:
            stream = EventFilter(meter, strip=strip)
            try:
                while data := await response.read():
                    out = stream.feed(data, loop.time())
                    if out:
                        await client.send(out)
            finally:
                left = stream.close()
                if left and not client.reader.gone:
                    await client.send(left)
        else:
            await self._pass_whole(client, response, meter)
        await client.finish()

    async def _pass_whole(self, client: Client, response: Response, meter: Meter | None) -> None:
        kept, whole = bytearray(), 0
        loop = asyncio.get_running_loop()
        while data := await response.read():
            if meter is not None:
                if meter.first is None:
                    meter.first = loop.time() - meter.began
                whole += len(data)
                if len(kept) <= _MAX_COUNTED:
                    kept += data
            await client.send(data)
        if meter is None or response.head.status != 200:
            return
        if len(kept) <= _MAX_COUNTED:
            meter.counts.read(kept)
        if not meter.counts.told:
            meter.unread = whole

    async def _broken(self, client: Client, error: UpstreamError) -> None:
        """Before the answer began this is told; afterwards the connection ends, as that of the engine did."""
        log.warning("a turn failed at the engine", engine=error.engine, error=str(error))
        if client.began_answer:
            client.keep_alive = False
            return
        code = "engine_timeout" if error.status == 504 else "engine_unreachable"
        raise Refusal(error.status, code, str(error), retry_after=2.0)


class _Turn:
    """What will be reported of a turn."""

    def __init__(self, path: str, meter: Meter, *, queued: float, size: int) -> None:
        self.path: Final = path
        self.meter: Final = meter
        self.status = 0
        self.error = ""
        self._queued = queued
        self._size = size
        self._cancelled = False

    def failed(self, error: BaseException) -> None:
        self._cancelled = isinstance(error, asyncio.CancelledError | ClientGone)
        if self._cancelled:
            self.error = "cancelled"
        elif not self.error:
            self.error = error.code if isinstance(error, Refusal) else "internal"

    def report(self, now: float) -> TurnReport:
        meter, counts = self.meter, self.meter.counts
        ran = counts.told or self.status == 200 or self._cancelled
        guess = not counts.told and ran
        return TurnReport(
            status=self.status,
            seconds=now - meter.began,
            queued=self._queued,
            first_token=meter.first_token,
            prompt=self._size // _BYTES_PER_TOKEN if guess else counts.prompt,
            cached=counts.cached,
            # a client can have its answer grow beyond what is read (log-probabilities): that must not make it free
            generated=(meter.events if guess else counts.generated) + meter.unread // _BYTES_PER_TOKEN,
            prefill_seconds=counts.prefill_seconds,
            estimated=guess or meter.unread > 0,
            cancelled=self._cancelled,
            error=self.error or (f"status_{self.status}" if self.status >= 400 else ""),
            gaps=meter.gaps,
            gap_seconds=meter.gap_seconds,
        )


def _route(head: RequestHead) -> tuple[str, str]:
    """The path and the token. Raises Refusal."""
    path = head.path
    if path in ("/health", "/healthz", "/v1/health"):
        return "/health", ""
    based = _BASE.fullmatch(path)
    if based is not None:
        token, path = based[1], based[2]
    else:
        token = _bearer(head)
    if path not in TURNS and path not in _LISTS:
        raise Refusal(
            404,
            "unknown_path",
            f"{path[:80]!r} is not served",
            remedy=f"served are {', '.join(sorted(TURNS | _LISTS))} and /health",
        )
    if not token:
        raise Refusal(
            401,
            "invalid_api_key",
            "no session token was given",
            remedy="give CORRAL_TOKEN of the session as the API key (Authorization: Bearer TOKEN)",
        )
    return path, token


def _bearer(head: RequestHead) -> str:
    scheme, _, value = head.get(b"authorization").partition(b" ")
    given = value.strip() if scheme.lower() == b"bearer" else head.get(b"x-api-key")
    return given.decode("ascii") if _TOKEN.fullmatch(given) else ""


def _only(head: RequestHead, *methods: str) -> None:
    if head.method not in methods:
        raise Refusal(405, "method_not_allowed", f"{head.method} is not served here", remedy=f"use {methods[0]}")


def _passed(head: RequestHead) -> list[tuple[bytes, bytes]]:
    """What of a client's headers concerns the engine: neither its key, nor an encoding that could not be measured."""
    return [(key, value) for key, value in head.headers if key in _FORWARDED]
