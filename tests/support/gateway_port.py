"""A TurnPort for tests and benchmarks: a fixed set of tokens, what was asked, and what was reported."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from agentd.gateway import Admission, Ask, Refusal, TurnReport

TOKEN = "tokentokentokentoken-1"  # noqa: S105  a made-up one


class RecordingPort:
    def __init__(self, *, fields: Mapping[str, Any] | None = None, tokens: Mapping[str, str] | None = None) -> None:
        self.fields = dict(fields or {})
        self.tokens = dict(tokens or {TOKEN: "s1"})
        self.asked: list[Ask] = []
        self.reports: asyncio.Queue[TurnReport] = asyncio.Queue()
        self.open = 0
        self.refusal: Refusal | None = None

    async def admit(self, ask: Ask) -> Admission:
        self.asked.append(ask)
        if ask.token not in self.tokens:
            raise Refusal(401, "invalid_api_key", "the token is not one of an open session")
        if self.refusal is not None and ask.turn:
            raise self.refusal
        self.open += ask.turn
        return Admission(session=self.tokens[ask.token], fields=self.fields)

    def ended(self, admission: Admission, report: TurnReport) -> None:
        self.open -= 1
        self.reports.put_nowait(report)

    async def report(self) -> TurnReport:
        return await asyncio.wait_for(self.reports.get(), 10)
