"""A cell of the bench ``kv`` under a real daemon: sessions, the gateway, tool calls through the launcher, and the
daemon's own saving and restoring. What is measured is what its user gets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agentd.embedded import Table
from agentd.ledger import Ledger
from agentd.proto.corral.v1 import corral_pb2 as pb
from controller.model import (
    CallState,
    CallView,
    Grant,
    Intent,
    Limits,
    Outcome,
    Reason,
    SessionView,
    TenantView,
    Tripwire,
    Usage,
    new_call_id,
    new_session_id,
    new_tenant_id,
)
from gpu.engines.prometheus import Metrics, parse
from tests.bench.harness import LAUNCHER, TENANT, BenchError, Context, Corral, corral, ended, start
from tests.bench.kv_work import Agent, Call, Plan
from tests.support import tiny_gguf

ENGINE: Final = "llama"
_PAST: Final = 512  # earlier calls that a daemon learns from at its start
_READY_WITHIN: Final = 20.0  # seconds until the daemon has seen the engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """``policy`` "": the engine is observed, and left alone. ``room``: bytes for saved slots,
    which the server puts into ``directory``."""

    policy: str
    room: int
    directory: Path


class Agents:
    """Their sessions; a ``kv_agents.Place``."""

    def __init__(self, host: Corral, url: str, scrape: str) -> None:
        self._host = host
        self._scrape = scrape
        self.url: Final = url
        self._sessions: dict[str, pb.OpenSessionResponse] = {}

    def key(self, agent: Agent) -> str:
        return self._sessions[agent.name].token

    async def open(self, agent: Agent) -> None:
        request = pb.OpenSessionRequest(tenant=TENANT, name=agent.name, uid=os.getuid())
        self._sessions[agent.name] = await self._host.client.call(self._host.client.agent.OpenSession, request)

    async def call(self, agent: Agent, call: Call) -> None:
        """Through the launcher, as agents do it: a program that takes as long as the recorded tool took."""
        tool, kind = words(call)
        command = [str(LAUNCHER), "--quiet", "--tool", tool, "--class", kind, "--", "sleep", f"{call.seconds:.3f}"]
        environment = {**self._host.environment, "CORRAL_TOKEN": self.key(agent)}
        process = await start(command, environment=environment)
        try:
            status = await process.wait()
        finally:
            await ended(process)
        if status != 0:
            raise BenchError(f"the call of {agent.name} ended with status {status}; {self._host.daemon.log_tail()}")

    async def gone(self, agent: Agent) -> None:
        request = pb.CloseSessionRequest(session_id=self._sessions[agent.name].session.id)
        await self._host.client.call(self._host.client.agent.CloseSession, request)

    async def until_seen(self) -> None:
        """Until the daemon knows the engine. Raises BenchError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _READY_WITHIN
        while True:
            tier = (await self._host.client.call(self._host.client.operator.Tier, pb.TierRequest())).tier
            if tier.engines and tier.engines[0].state == "up":
                return
            if loop.time() > deadline:
                raise BenchError(
                    f"the daemon does not see the engine; its log ends with\n{self._host.daemon.log_tail()}"
                )
            await asyncio.sleep(0.05)

    async def totals(self) -> Metrics:
        """What it did, by its own metrics."""

        def fetch() -> str:
            with urllib.request.urlopen(self._scrape, timeout=10) as answer:  # noqa: S310  # our own daemon
                return str(answer.read().decode())

        return parse(await asyncio.to_thread(fetch))


@contextlib.asynccontextmanager
async def agents_of(context: Context, url: str, rule: Rule, plan: Plan) -> AsyncIterator[Agents]:
    """A daemon that knows the plan's earlier calls, follows the engine at ``url``, and has a session for each agent."""
    port, scrape = _free_port(), _free_port()
    ledger = context.directory / f"ledger-{port}.db"
    await _remember(ledger, plan.earlier)
    engine: dict[str, Table | str | int | bool] = {
        "url": url,
        "kind": "llamacpp",
        "bytes_per_token": tiny_gguf.KV_BYTES_PER_TOKEN,
    }
    if rule.policy:
        engine |= {
            "control": True,
            "policy": rule.policy,
            "offload_dir": str(rule.directory),
            "offload_budget": rule.room,
        }
    settings: Mapping[str, Table] = {
        "engines": {ENGINE: engine},
        "gpu": {"enabled": "off"},
        "gateway": {"listen": f"127.0.0.1:{port}"},
        "metrics": {"listen": f"127.0.0.1:{scrape}"},
        "ledger": {"path": str(ledger)},
    }
    async with corral(context, settings=settings) as host:
        made = Agents(host, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{scrape}/metrics")
        for agent in plan.agents:
            await made.open(agent)
        await made.until_seen()
        yield made


def words(call: Call) -> tuple[str, str]:
    """Tool and class, as an agent's hook would give them."""
    tool, category = call.kind
    return tool, category or tool.lower()


async def _remember(path: Path, past: Sequence[Call]) -> None:
    """A ledger in which these calls have ended, as an earlier daemon of this host leaves it. The newest are at the
    end, and as few as a daemon reads at its start, of all kinds."""
    chosen = random.Random(1).sample(list(past), min(_PAST, len(past)))  # noqa: S311  # not for secrets
    tenant = TenantView(id=new_tenant_id(), name=TENANT, limits=Limits(), priority=50)
    at = time.time() - 3600.0
    session = SessionView(
        id=new_session_id(), tenant_id=tenant.id, name="earlier", uid=0, opened_at=at - 1.0, labels={}
    )
    ledger = Ledger.open(path)
    ledger.tenant_set(tenant)
    ledger.session_opened(session)
    for number, call in enumerate(chosen):
        tool, kind = words(call)
        begun = CallView(
            id=new_call_id(),
            session_id=session.id,
            tenant_id=tenant.id,
            parent_id=None,
            command="sleep",
            intent=Intent(tool=tool, call_class=kind),
            grant=Grant(limits=Limits(), tripwire=Tripwire(), priority=50, enforced=True),
            state=CallState.RUNNING,
            begun_at=at + number,
            held_since=None,
            held_seconds=0.0,
            brakes=0,
            usage=Usage(),
            cgroup="",
        )
        ledger.call_begun(begun)
        ledger.call_ended(_ended(begun, call.seconds), lambda: None)
    ledger.session_closed(session.id, at + len(chosen))
    await ledger.close()


def _ended(call: CallView, seconds: float) -> CallView:
    outcome = Outcome(
        call_id=call.id,
        reason=Reason.EXITED,
        ended_at=call.begun_at + seconds,
        wait_status=0,
        usage=Usage(),
        wall_seconds=seconds,
        held_seconds=0.0,
        decisions=(),
        summary="",
    )
    return replace(call, state=CallState.ENDED, outcome=outcome)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
