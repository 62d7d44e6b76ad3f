"""For tests of the coordinator: a scripted policy, an engine that is none, and what is done to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from agentd.config import EngineSection
from agentd.ledger import Switch
from agentd.tier.book import Entry
from agentd.tier.coordinator import Coordinator
from agentd.tier.effects import RecordingEffects
from agentd.tier.engines import EngineWatch, Reading
from agentd.tier.turns import TurnFacts, Turns
from controller.model import (
    CallState,
    CallView,
    Decision,
    Intent,
    SessionId,
    new_call_id,
    new_tenant_id,
)
from gpu.engines import (
    Answer,
    Capability,
    Engine,
    EngineInfo,
    EngineKind,
    EngineMetrics,
    KvMoved,
    KvRef,
    Slot,
    Support,
)
from gpu.policy import (
    Admission,
    Defaults,
    HostHint,
    KvAction,
    KvDecision,
    KvPolicy,
    Pause,
    Restore,
    Tier,
    Waiting,
)
from tests.unit.ledger_objects import call as some_call
from tests.unit.ledger_objects import ended

TENANT = new_tenant_id()
SIZE = 100  # bytes a token
MOVED = KvMoved(tokens=500, bytes=500 * SIZE, seconds=0.01)


@dataclass
class Script(Defaults):
    """A policy that says what the test wants, and keeps what it was asked."""

    name: str = "script"
    action: KvAction = KvAction.KEEP
    ttl: float | None = None
    late: KvAction = KvAction.KEEP
    restore: Restore | None = None
    victims: tuple[KvAction, ...] = ()
    pauses: list[Pause] = field(default_factory=list)
    tiers: list[Tier] = field(default_factory=list)
    by_priority: bool = False
    admits: bool = True
    needs: list[int] = field(default_factory=list)
    backwards: bool = False  # victims from the last pause on

    def order(self, waiting: Sequence[Waiting], tier: Tier) -> tuple[str, ...]:
        if self.by_priority:
            return tuple(one.session for one in sorted(waiting, key=lambda one: -one.priority))
        return super().order(waiting, tier)

    def admit(self, need: int, tier: Tier) -> Admission:
        self.needs.append(need)
        return Admission(admitted=self.admits, why="so says the script")

    def at_pause(self, pause: Pause, tier: Tier) -> KvDecision:
        self.pauses.append(pause)
        self.tiers.append(tier)
        return KvDecision(session=pause.session, action=self.action, why="so says the script", ttl=self.ttl)

    def expired(self, pause: Pause, tier: Tier) -> KvDecision:
        return KvDecision(session=pause.session, action=self.late, why="too late")

    def under_pressure(self, pauses: Sequence[Pause], tier: Tier, need: int) -> tuple[KvDecision, ...]:
        named = [
            KvDecision(session=pause.session, action=action, why="no room")
            for pause, action in zip(pauses, self.victims, strict=False)
        ]
        return tuple(reversed(named) if self.backwards else named)

    def before_return(self, pause: Pause, tier: Tier) -> Restore | None:
        return None if self.restore is None else replace(self.restore, session=pause.session)

    def hints(self, pauses: Sequence[Pause], tier: Tier) -> tuple[HostHint, ...]:
        return tuple(HostHint(session=one.session, urgency=0.5, slack=0.0, why="holds much") for one in pauses)


class Log:
    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.switches: list[Switch] = []

    def decided(self, decision: Decision) -> None:
        self.decisions.append(decision)

    def switched(self, switch: Switch) -> None:
        self.switches.append(switch)


class Adapter:
    """As much of an engine as turns ask of it."""

    def request_fields(self, ref: KvRef, *, priority: int | None = None) -> dict[str, object]:
        return {"id_slot": ref.slot, "cache_prompt": True}


def info(slots: int | None = 2, **no: str) -> EngineInfo:
    capabilities = {one: Support(Answer.YES) for one in Capability} | {
        Capability(name): Support(Answer.NO, why) for name, why in no.items()
    }
    return EngineInfo(
        name="local",
        kind=EngineKind.VLLM if slots is None else EngineKind.LLAMACPP,
        url="http://x:1",
        version="1",
        model="m",
        capabilities=capabilities,
        context_tokens=2048,
        slots=slots,
        kv_tokens=4096,
        kv_bytes_per_token=SIZE,
    )


class Bench:
    def __init__(
        self, policy: KvPolicy, *, slots: int | None = 2, control: bool = True, budget: int = 10**9, **no: str
    ) -> None:
        self.section = EngineSection(
            url="http://x:1", control=control, declared_slots=True, offload_budget=budget, offload_dir=Path("/nowhere")
        )
        self.watch = EngineWatch(
            "local",
            self.section,
            on_reading=lambda watch, reading: None,
            on_restart=lambda watch: None,
            on_events=lambda watch: None,
            share=1.0,
        )
        self.watch.info, self.watch.state = info(slots, **no), "up"
        self.watch.engine = cast(Engine, Adapter())
        self.effects = RecordingEffects(moved=MOVED)
        self.log = Log()
        self.hints: list[HostHint] = []
        self.coordinator = Coordinator(
            {"local": self.watch},
            self.effects,
            self.log,
            on_hints=lambda engine, hints: self.hints.extend(hints),
            policies=lambda section: policy,
        )
        self.turns = Turns(self.coordinator, {"local": self.watch})

    def turn(self, session: SessionId, conversation: str = "slot:0", *, prompt: int = 500, cached: int = 0) -> Entry:
        facts = TurnFacts(
            engine="local", conversation=conversation, prompt=prompt, cached=cached, generated=0, prefill=0.5
        )
        self.turns.after(session, TENANT, facts)
        entry = self.coordinator.book.find(session, "local", conversation)
        assert entry is not None
        entry.through_gateway = True
        return entry

    def call(self, session: SessionId, conversation: str = "slot:0", **intent: float) -> CallView:
        return replace(
            some_call(TENANT, session),
            id=new_call_id(),
            state=CallState.RUNNING,
            intent=Intent(tool="t", engine="local", conversation=conversation, duration=intent.get("duration")),
        )

    async def begin(self, session: SessionId, conversation: str = "slot:0", **intent: float) -> CallView:
        call = self.call(session, conversation, **intent)
        self.coordinator.call_begun(call)
        await self.coordinator.settled()
        return call

    async def end(self, call: CallView) -> None:
        self.coordinator.call_ended(ended(call))
        await self.coordinator.settled()

    async def until(self, so: Callable[[], bool]) -> None:
        """Timers and tasks are the coordinator's own and tell nobody: each turn of the loop is looked at."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 30
        while not so():
            assert loop.time() < deadline
            await asyncio.sleep(0.001)
        await self.coordinator.settled()

    @property
    def acts(self) -> list[str]:
        return [what for what, _, _ in self.effects.acts]

    @property
    def kinds(self) -> list[str]:
        return [switch.kind for switch in self.log.switches]

    def read(self, *tokens: int, used: int | None = None) -> None:
        """A look at the engine."""
        slots = tuple(Slot(id=i, context_tokens=2048, busy=False, tokens=one) for i, one in enumerate(tokens))
        reading = Reading(metrics=EngineMetrics(at_nsec=0, kv_total_tokens=4096, kv_used_tokens=used), slots=slots)
        self.watch.reading = reading
        self.turns.looked(self.watch, reading)
        self.coordinator.looked(self.watch)


def is_waiting(bench: Bench, session: SessionId) -> bool:
    entry = bench.coordinator.book.find(session, "local", "c")
    return entry is not None and entry.waiting
