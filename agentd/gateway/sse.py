"""Server-sent events as they pass: each is looked at, all go on byte by byte as they came.

With ``strip`` the event that only tells token counts is left out, as the client did not ask for it; nothing else is
changed but ``"usage":null``, which comes into the other events by the same request.
"""

from __future__ import annotations

import re
from typing import Final

from agentd.gateway.figures import Meter

MAX_EVENT: Final = 1 << 20  # bytes; what is larger passes, and counts by its length

_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
# Unescaped quotes: it can only be structure, never a model's words.
_NULL: Final = b',"usage":null'


class EventFilter:
    """Bytes in, bytes out; ``close`` gives what is left of a stream that ended inside an event."""

    def __init__(self, meter: Meter, *, strip: bool) -> None:
        self._meter = meter
        self._strip = strip
        self._left = b""
        self._given_up = False

    def feed(self, data: bytes, now: float) -> bytes:
        if self._passes():
            self._meter.unread += len(data)
            return data
        if not self._strip:
            self._watch(data, now)
            return data
        out = []
        for event in self._events(data):
            if self._meter.event(event, now):
                continue
            out.append(event.replace(_NULL, b"") if _NULL in event else event)
        if self._passes():
            out.append(self._left)
            self._left = b""
        return b"".join(out)

    def close(self) -> bytes:
        left, self._left = self._left, b""
        return left if self._strip else b""

    def _watch(self, data: bytes, now: float) -> None:
        for event in self._events(data):
            self._meter.event(event, now)
        if self._passes():
            self._left = b""

    def _passes(self) -> bool:
        """An event was too large to wait for: nothing is looked at any more."""
        return self._given_up

    def _events(self, data: bytes) -> list[bytes]:
        """The events that are complete; the rest waits."""
        if self._left:
            data = self._left + data
        events = []
        at = 0
        for end in _END.finditer(data):
            events.append(data[at : end.end()])
            at = end.end()
        self._left = data[at:]
        if len(self._left) > MAX_EVENT:
            self._given_up = True
            self._meter.unread += len(self._left)
            self._meter.counts.unreadable = True
        return events
