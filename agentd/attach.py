"""Attaching in the daemon: the recogniser for processes, the container engine's part for containers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentd.api.attached import Selector, is_session
from agentd.containers.engine import Engine
from agentd.containers.follow import FollowFile
from agentd.containers.service import Containers
from agentd.hook.classify import classify
from controller.backends.enforce import Enforcer
from controller.host import Host
from controller.model import SessionId, SessionView
from controller.recognise.bpfsource import BpfSource
from controller.recognise.recogniser import Recogniser
from controller.recognise.rules import Library
from controller.recognise.source import NetlinkSource, Source


def _open_source(recogniser: Recogniser) -> Source:
    """eBPF where it tells of processes, else the process connector."""
    backend = recogniser.backend
    lineage = backend.lineage() if isinstance(backend, Enforcer) else None
    return BpfSource(lineage) if lineage is not None else NetlinkSource(recogniser)


class Attaching:
    """See agentd.api.attached.AttachPort."""

    def __init__(self, host: Host, library: Library, engine: Engine, file: FollowFile) -> None:
        self.recogniser = Recogniser(host, library, classify, _open_source)
        self._containers = Containers(host, self.recogniser, engine, file)

    async def start(self) -> None:
        """After the host has taken over what an earlier daemon left."""
        self.recogniser.resume()
        await self._containers.start()

    async def stop(self) -> None:
        await self._containers.stop()
        await self.recogniser.stop()

    def problems(self) -> tuple[str, ...]:
        return self.recogniser.problems()

    def process(self, *, tenant: str, name: str, labels: Mapping[str, str], pid: int, rules: str) -> SessionView:
        return self.recogniser.attach_process(tenant=tenant, name=name, labels=labels, pid=pid, rules=rules)

    async def containers(
        self, *, tenant: str, name: str, labels: Mapping[str, str], selector: Selector, rules: str
    ) -> Sequence[SessionView]:
        return await self._containers.attach(tenant=tenant, name=name, labels=labels, selector=selector, rules=rules)

    async def detach(self, target: str) -> Sequence[SessionId]:
        if is_session(target):
            self.recogniser.detach(SessionId(target))
            return [SessionId(target)]
        return await self._containers.detach(target)
