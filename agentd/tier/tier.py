"""The tier as the daemon holds it: started with its configuration, reloaded, asked for its picture, told of turns."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import structlog
from prometheus_client.registry import Collector

from agentd.config import Config, EngineSection
from agentd.ledger import Ledger, LedgerError, LedgerReader, Switch
from agentd.tier.charging import HostCharges
from agentd.tier.coordinator import Coordinator
from agentd.tier.effects import EngineEffects, KvEffects
from agentd.tier.engines import EngineWatch, Reading
from agentd.tier.gpus import Gpus
from agentd.tier.metrics import TierCollector
from agentd.tier.turns import TurnFacts, Turns
from agentd.tier.view import TierView
from controller.host import Host
from controller.model import (
    CallState,
    CallView,
    Charges,
    ControllerError,
    Decision,
    SessionId,
    SessionView,
    TenantId,
    Turn,
)
from gpu.engines import Engine
from gpu.ledger import SwitchKind
from gpu.policy import HostHint

_log: Final = structlog.get_logger("corral.tier")

SWITCHES_SHOWN: Final = 200
URGENT_POINTS: Final = 25.0  # of an urgency of 1, on the scale of priorities: as much as a tenant's share weighs
_REMEMBERED: Final = 86_400.0  # seconds: what an earlier daemon offloaded before that is not looked for
_MOST_REMEMBERED: Final = 10_000
_FOLLOW_AGAIN: Final = 1.0  # seconds


class _Record:
    """agentd.tier.effects.Record: the ledger, the metrics, whoever watches."""

    def __init__(self, host: Host, ledger: Ledger) -> None:
        self._host = host
        self._ledger = ledger
        self.newest: deque[Switch] = deque(maxlen=SWITCHES_SHOWN)
        self.counts: Counter[tuple[str, str]] = Counter()  # by engine and kind
        self.moved: Counter[tuple[str, str]] = Counter()  # bytes, likewise

    def decided(self, decision: Decision) -> None:
        tenant = self._host.registry.tenants.get(decision.tenant_id)
        self._host.shared.meter.decided(tenant.name if tenant is not None else "", decision)
        self._ledger.decision(decision)
        self._host.hub.publish(decision)

    def switched(self, switch: Switch) -> None:
        self._ledger.context_switch(switch)
        self.newest.append(switch)
        self.counts[switch.engine, switch.kind] += 1
        self.moved[switch.engine, switch.kind] += switch.bytes


def past_switches(path: Path) -> list[Switch]:
    """What the ledger has of before; reads the disk. Nothing where it cannot be read: that is said elsewhere."""
    try:
        with LedgerReader(path) as reader:
            return reader.switches(since=time.time() - _REMEMBERED, limit=_MOST_REMEMBERED)
    except LedgerError as err:
        _log.warning("context switches of before are not known", error=str(err))
        return []


class Tier:
    """``past``: context switches of before, the oldest first. ``effects``: None: on the engines themselves."""

    def __init__(
        self,
        host: Host,
        ledger: Ledger,
        *,
        past: Iterable[Switch] = (),
        effects: KvEffects | None = None,
    ) -> None:
        self._host = host
        self._urgent: dict[str, dict[SessionId, float]] = {}  # by engine: what the queue was told
        self.record = _Record(host, ledger)
        self._copies: dict[
            tuple[str, str, str], Switch
        ] = {}  # offloaded by an earlier daemon, until its engine is seen
        for switch in past:
            self.record.newest.append(switch)
            key = (switch.session_id, switch.engine, switch.conversation)
            self._copies.pop(key, None)
            if switch.kind == SwitchKind.OFFLOADED:
                self._copies[key] = switch
        self.watches: dict[str, EngineWatch] = {}
        self._own_effects = EngineEffects(self._engine_of)
        self.gpus = Gpus(HostCharges(host, self._charge_session))
        self.coordinator = Coordinator(self.watches, effects or self._own_effects, self.record, on_hints=self._hints)
        self.turns = Turns(self.coordinator, self.watches)
        self._config = Config()
        self._follower: asyncio.Task[None] | None = None
        self._lost = 0

    # --- life --------------------------------------------------------------------------------------------------------

    def learn(self, past: Sequence[CallView]) -> None:
        """How calls went before, the oldest first."""
        for call in past:
            self.coordinator.durations.learn(call)

    async def configure(self, config: Config) -> None:
        """At the start, and at each reload. An engine whose keys changed is opened anew; its sessions stay known."""
        self._config = config
        share = config.gpu.budget / 2  # the other half is the engines'
        await self.gpus.configure(enabled=config.gpu.enabled, interval=config.gpu.interval, share=share)
        for name in [n for n, watch in self.watches.items() if config.engines.get(n) != watch.section]:
            watch = self.watches.pop(name)
            self._hints(name, ())
            await watch.stop()
            if name in config.engines:
                self.coordinator.sight.forget_engine(name)
            else:
                self.coordinator.engine_gone(name)
        each = share / max(1, len(config.engines))
        for name, section in config.engines.items():
            if name in self.watches:
                self.watches[name].share = each
            else:
                self.watches[name] = self._watch(name, section, each)
                self.watches[name].start()
        if self.watches and self._follower is None:
            self._follower = asyncio.create_task(self._follow(), name="calls for the inference tier")
        elif not self.watches and self._follower is not None:
            await self._unfollow()

    async def stop(self) -> None:
        await self._unfollow()
        await self.coordinator.stop()
        for watch in self.watches.values():
            await watch.stop()
        await self.gpus.stop()
        self._own_effects.close()

    def _watch(self, name: str, section: EngineSection, share: float) -> EngineWatch:
        return EngineWatch(
            name,
            section,
            on_reading=self._looked,
            on_restart=self.coordinator.restarted,
            on_events=self.turns.indexed,
            share=share,
        )

    def _engine_of(self, name: str) -> Engine | None:
        watch = self.watches.get(name)
        return watch.engine if watch is not None and watch.state == "up" else None

    def _looked(self, watch: EngineWatch, reading: Reading) -> None:
        if self._copies:
            self._adopt(watch)
        self.turns.looked(watch, reading)
        self.coordinator.looked(watch)

    def _adopt(self, watch: EngineWatch) -> None:
        for key, switch in list(self._copies.items()):
            if switch.engine == watch.name:
                del self._copies[key]
                if switch.session_id in self._host.registry.sessions:
                    self.coordinator.adopt(switch)

    # --- calls -------------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Calls and sessions as they come and go. What was lost on the way is made up for from the registry."""
        while True:
            subscription = self._host.subscribe()
            try:
                self._reconcile()
                async for update in subscription:
                    if subscription.lost != self._lost:
                        self._lost = subscription.lost
                        self._reconcile()
                    if isinstance(update, CallView):
                        self._call(update)
                    elif isinstance(update, SessionView) and update.closed_at is not None:
                        self.coordinator.session_closed(update.id)
                return  # the hub is closed: the daemon stops
            except Exception as err:  # whatever it is: KV must be followed again
                _log.error("calls were not followed for a moment", error=f"{type(err).__name__}: {err}", exc_info=err)
            finally:
                subscription.close()
                self._lost = 0
            await asyncio.sleep(_FOLLOW_AGAIN)

    async def _unfollow(self) -> None:
        task, self._follower = self._follower, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _call(self, call: CallView) -> None:
        if call.state is CallState.ENDED:
            self.coordinator.call_ended(call)
        elif call.state is not CallState.QUEUED:
            self.coordinator.call_begun(call)

    def _reconcile(self) -> None:
        registry = self._host.registry
        self.coordinator.reconcile({call.id: call.view() for call in registry.live_calls() if call.outcome is None})
        for session_id in {entry.session_id for entry in self.coordinator.book} - registry.sessions.keys():
            self.coordinator.session_closed(session_id)

    def _hints(self, engine: str, hints: tuple[HostHint, ...]) -> None:
        """Calls of sessions that hold much KV while others need room gain places in the host's queue, those whose next
        turn would wait in any case lose some."""
        told = self._urgent.get(engine, {})
        now: dict[SessionId, float] = {}
        for hint in hints:
            entry = self.coordinator.book.get(hint.session)
            if entry is not None:
                now[entry.session_id] = max(now.get(entry.session_id, -1.0), hint.urgency)
        for session_id in told.keys() | now.keys():
            points = round(now.get(session_id, 0.0) * URGENT_POINTS)
            if points != round(told.get(session_id, 0.0) * URGENT_POINTS):
                with contextlib.suppress(ControllerError):  # the session has ended
                    self._host.set_urgency(session_id, float(points))
        self._urgent[engine] = now

    def _charge_session(self, session_id: SessionId, gpu_seconds: float, joules: float) -> None:
        self._host.charge(session_id, None, Charges(gpu_seconds=gpu_seconds, joules=joules))

    # --- turns -------------------------------------------------------------------------------------------------------

    async def before_turn(
        self, session_id: SessionId, engine: str, conversation: str = "", *, priority: int | None = None
    ) -> Mapping[str, Any]:
        """For whoever forwards a turn's request: the fields that its body must carry. See ``Turns.before``."""
        tenant = self._host.registry.session(session_id).tenant
        if priority is None:
            priority = tenant.priority
        return await self.turns.before(session_id, tenant.id, engine, conversation, priority=priority)

    def after_turn(self, session_id: SessionId, facts: TurnFacts) -> float:
        """How it went. Returns its prefill token equivalents. A session that has ended meanwhile counts no more."""
        try:
            session = self._host.registry.session(session_id)
        except ControllerError:
            return 0.0
        return self.turns.after(session_id, session.tenant.id, facts)

    def reported(self, session_id: SessionId, turn: Turn) -> None:
        """A turn that an agent told of, and that did not go through the gateway."""
        if turn.engine in self.watches:
            facts = TurnFacts(
                engine=turn.engine,
                conversation=turn.conversation,
                prompt=turn.prompt_tokens,
                cached=turn.cached_tokens,
                generated=turn.generated_tokens,
                seconds=turn.seconds,
                first_token=turn.first_token_seconds,
            )
            self.booked(session_id, facts)

    def booked(self, session_id: SessionId, facts: TurnFacts) -> None:
        """A turn that ended: in the KV ledger, and its prefill token equivalents on the session's account."""
        tokens = self.after_turn(session_id, facts)
        if tokens > 0:
            with contextlib.suppress(ControllerError):  # the session has ended meanwhile
                self._host.charge(session_id, None, Charges(prefill_equivalents=tokens))

    def gave_up_turn(self, session_id: SessionId, engine: str, conversation: str = "") -> None:
        self.turns.gave_up(session_id, engine, conversation)

    # --- what is known -----------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """For every screen of the daemon. An engine that is away is no fault of this host: ``view`` tells of it."""
        return [self.gpus.problem] if self.gpus.problem else []

    @property
    def configured(self) -> bool:
        """Whether there is anything to show: a GPU, an engine, or the wish for one."""
        return bool(self.watches) or self.gpus.availability == "ready" or self._config.gpu.enabled == "on"

    def view(self) -> TierView:
        """From the last samples: nothing is asked now."""
        policies = sorted({w.section.policy for w in self.watches.values() if w.section.control})
        cost = self.gpus.share + sum(w.cost / max(w.section.interval, w.cost / w.share) for w in self.watches.values())
        return TierView(
            at=time.time(),
            nvml=self.gpus.availability,
            nvml_detail=self.gpus.detail,
            devices=self.gpus.devices(),
            engines=tuple(watch.view() for watch in self.watches.values()),
            sessions=self.coordinator.book.views(),
            switches=tuple(self.record.newest),
            policy=", ".join(policies),
            hints=tuple(self._what_to_configure()),
            tenants=tuple(self.gpus.tenants.items()),
            sampling_share=cost,
        )

    def collector(self, names: Callable[[str], str]) -> Collector:
        """Its metrics as they are now. ``names``: tenant's name to its label."""

        def label(tenant_id: str) -> str:
            tenant = self._host.registry.tenants.get(TenantId(tenant_id))
            return names(tenant.name) if tenant is not None else "removed"

        return TierCollector(
            self.view(),
            label,
            switches=self.record.counts,
            moved=self.record.moved,
            pauses=self.coordinator.pauses,
            failures=self.coordinator.moves.failures,
        )

    def _what_to_configure(self) -> Iterable[str]:
        if not self.watches:
            yield 'no inference engine is configured: name them as [engines.NAME] url = "http://..." (docs/gpu.md)'
        for watch in self.watches.values():
            if not watch.section.control:
                yield (
                    f"engine {watch.name} is only observed: engines.{watch.name}.control = true lets Corral move and "
                    "drop KV caches in it"
                )
            elif watch.section.policy == "off":
                yield f"engine {watch.name}: engines.{watch.name}.policy is off, so nothing is moved"
        unknown = {entry.engine for entry in self.coordinator.book if not entry.bytes_known}
        for name in sorted(unknown):
            yield f"engine {name} does not tell how large a token's KV is: set engines.{name}.bytes_per_token"
        if not self.gpus.availability:
            yield 'GPUs are switched off: gpu.enabled = "auto" reads them'
