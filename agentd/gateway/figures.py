"""Counting one turn as its bytes pass: first token, times between tokens, and what the engine says of tokens.

An event is looked at with one regular expression (about a microsecond); only those that carry counts are parsed.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import Final

import msgspec

#: Upper bounds of the buckets of times between tokens, in seconds; one more bucket takes what is beyond.
GAP_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
#: Likewise of the time to the first token.
FIRST_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.0, 3.5, 5.0, 10.0, 20.0, 60.0)

# An event with words in it, of each of the three ways to speak (chat, completions, responses). Inside a JSON string
# a quote is escaped, so the pattern cannot be forged by what a model says.
_CHAT: Final = re.compile(rb'"(?:content|reasoning_content|reasoning|arguments|refusal)": ?"(?!")')
_TEXT: Final = re.compile(rb'"text": ?"(?!")')
_DELTA: Final = re.compile(rb'"delta": ?"(?!")')
_COUNTS: Final = re.compile(rb'"(?:usage|timings)": ?\{')
_MAX_TOKENS: Final = 1 << 40  # a number beyond this is no count


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    input_tokens: int = 0  # of /v1/responses
    output_tokens: int = 0
    input_tokens_details: _Details | None = None


class _Timings(msgspec.Struct):
    """llama.cpp's own."""

    prompt_n: int = 0  # computed
    cache_n: int = 0
    prompt_ms: float | None = None
    predicted_n: int = 0


class _Response(msgspec.Struct):
    usage: _Usage | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    timings: _Timings | None = None
    response: _Response | None = None
    choices: list[msgspec.Raw] | None = None


_decoder: Final = msgspec.json.Decoder(_Answer)


class Counts:
    """What an engine said of a turn's tokens. ``told``: it said anything."""

    def __init__(self) -> None:
        self.told = False
        self.unreadable = False
        self.prompt = 0
        self.cached = 0
        self.generated = 0
        self.prefill_seconds: float | None = None

    def read(self, data: bytes | bytearray) -> _Answer | None:
        """A JSON answer, or an event's data. None: not to be read, which is remembered."""
        try:
            answer = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.unreadable = True
            return None
        usage = answer.usage or (answer.response.usage if answer.response is not None else None)
        if usage is not None:
            details = usage.prompt_tokens_details or usage.input_tokens_details
            cached = details.cached_tokens if details is not None else None
            self._told(
                max(usage.prompt_tokens, usage.input_tokens),
                cached or 0,
                max(usage.completion_tokens, usage.output_tokens),
            )
        if answer.timings is not None:
            one = answer.timings
            self._told(one.prompt_n + one.cache_n, one.cache_n, one.predicted_n)
            self.prefill_seconds = one.prompt_ms / 1e3 if one.prompt_ms is not None else None
        return answer

    def _told(self, prompt: int, cached: int, generated: int) -> None:
        if not all(0 <= value < _MAX_TOKENS for value in (prompt, cached, generated)):
            self.unreadable = True
            return
        self.told = True
        self.prompt, self.cached, self.generated = prompt, min(cached, prompt), generated


class Meter:
    """One turn. Times are of one monotonic clock, in seconds; ``began``: when the request was complete."""

    def __init__(self, path: str, began: float) -> None:
        self._words = _DELTA if path.endswith("/responses") else _CHAT if "/chat/" in path else _TEXT
        self.began: Final = began
        self.counts: Final = Counts()
        self.first: float | None = None  # an event with words in it
        self._any: float | None = None  # an event
        self.unread = 0  # bytes of the answer that were too large to look at: they count by their length
        self.events = 0  # with words in them: for a turn whose end was never seen, about its tokens
        self.gap_seconds = 0.0
        self._last = 0.0
        self._gaps: list[int] | None = None

    def event(self, event: bytes, now: float) -> bool:
        """One event of a stream; whether it tells counts and nothing else."""
        if self._any is None:
            self._any = now - self.began
        if self._words.search(event) is not None:
            self.events += 1
            if self.first is None:
                self.first = now - self.began
            else:
                gap = now - self._last
                self.gap_seconds += gap
                if self._gaps is None:
                    self._gaps = [0] * (len(GAP_BUCKETS) + 1)
                self._gaps[bisect_left(GAP_BUCKETS, gap)] += 1
            self._last = now
        if _COUNTS.search(event) is None:
            return False
        answer = self.counts.read(data_of(event))
        return answer is not None and answer.usage is not None and answer.choices == []

    @property
    def first_token(self) -> float | None:
        """Tokens may have no words (half a character, a tool's name): then an answer's first event is what there is."""
        return self._any if self.first is None and self.counts.generated else self.first

    @property
    def gaps(self) -> tuple[int, ...]:
        return tuple(self._gaps) if self._gaps is not None else ()


def data_of(event: bytes) -> bytes:
    """The data of an event: its ``data:`` lines, joined."""
    lines = []
    for line in event.splitlines():
        if line.startswith(b"data:"):
            lines.append(line[6:] if line[5:6] == b" " else line[5:])
    return b"\n".join(lines)
