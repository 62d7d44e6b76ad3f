"""Attaching in the daemon: the recogniser for processes, the container engine's part for containers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentd.api.attached import Selector, is_session
from agentd.hook.classify import classify
from controller.host import Host
from controller.model import CannotEnforce, NotFound, SessionId, SessionView
from controller.recognise.recogniser import Recogniser
from controller.recognise.rules import Library


class Attaching:
    """See agentd.api.attached.AttachPort."""

    def __init__(self, host: Host, library: Library) -> None:
        self.recogniser = Recogniser(host, library, classify)

    async def start(self) -> None:
        """After the host has taken over what an earlier daemon left."""
        self.recogniser.resume()

    async def stop(self) -> None:
        await self.recogniser.stop()

    def process(self, *, tenant: str, name: str, labels: Mapping[str, str], pid: int, rules: str) -> SessionView:
        return self.recogniser.attach_process(tenant=tenant, name=name, labels=labels, pid=pid, rules=rules)

    async def containers(
        self, *, tenant: str, name: str, labels: Mapping[str, str], selector: Selector, rules: str
    ) -> Sequence[SessionView]:
        raise CannotEnforce("containers cannot be attached yet", remedy="attach the agent's process (--pid)")

    async def detach(self, target: str) -> Sequence[SessionId]:
        if is_session(target):
            self.recogniser.detach(SessionId(target))
            return [SessionId(target)]
        raise NotFound(f"no attached session {target[:80]!r}", field="target", remedy="see: corral session list")
