"""Attach and Detach: sessions of what runs already. Operators only: who attaches says whose it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from agentd.api import validate
from agentd.api.convert import session_to_proto
from agentd.api.errors import Context, answering
from agentd.api.identity import Access
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.proto.corral.v1 import corral_pb2_grpc
from controller.model import CannotEnforce, InvalidRequest, SessionId, SessionView, is_id

MAX_SELECTORS: Final = 16
MAX_SELECTOR: Final = 256  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Containers that match everything that is set. ``labels``: KEY or KEY=VALUE. ``follow``: later ones, too."""

    name: str = ""
    labels: tuple[str, ...] = ()
    network: str = ""
    project: str = ""
    follow: bool = False


class AttachPort(Protocol):
    """``agentd.attach.Attaching``. Methods raise the exceptions of controller.model.errors."""

    def process(self, *, tenant: str, name: str, labels: Mapping[str, str], pid: int, rules: str) -> SessionView: ...

    async def containers(
        self, *, tenant: str, name: str, labels: Mapping[str, str], selector: Selector, rules: str
    ) -> Sequence[SessionView]: ...

    async def detach(self, target: str) -> Sequence[SessionId]: ...


class AttachedMethods(corral_pb2_grpc.OperatorServiceServicer):
    _access: Access
    _attach: AttachPort | None

    async def Attach(self, request: pb.AttachRequest, context: Context) -> pb.AttachResponse:
        async with answering(context, "Attach"):
            self._access.operator(context)
            port = self._port()
            tenant = validate.tenant_name(request.tenant, "tenant")
            name = request.name  # checked by the host, as of every session
            labels = validate.labels(request.labels)
            if request.HasField("pid") == request.HasField("containers"):
                raise InvalidRequest(
                    "name a process or containers, and not both", field="pid", remedy="set pid, or set containers"
                )
            if request.HasField("pid"):
                pid = validate.pid(request.pid)
                sessions: Sequence[SessionView] = [
                    port.process(tenant=tenant, name=name, labels=labels, pid=pid, rules=request.rules)
                ]
            else:
                sessions = await port.containers(
                    tenant=tenant, name=name, labels=labels, selector=_selector(request.containers), rules=request.rules
                )
            return pb.AttachResponse(sessions=[session_to_proto(session) for session in sessions])

    async def Detach(self, request: pb.DetachRequest, context: Context) -> pb.DetachResponse:
        async with answering(context, "Detach"):
            self._access.operator(context)
            target = _text(request.target, "target")
            if not target:
                raise InvalidRequest("is empty", field="target", remedy="name an attached session or a container")
            return pb.DetachResponse(session_ids=await self._port().detach(target))

    def _port(self) -> AttachPort:
        if self._attach is None:
            raise CannotEnforce("this daemon attaches nothing", remedy="see corral doctor")
        return self._attach


def _selector(message: pb.ContainerSelector) -> Selector:
    if len(message.labels) > MAX_SELECTORS:
        raise InvalidRequest(
            f"{len(message.labels)} labels", field="containers.labels", remedy=f"give at most {MAX_SELECTORS}"
        )
    selector = Selector(
        name=_text(message.name, "containers.name"),
        labels=tuple(_text(label, "containers.labels") for label in message.labels),
        network=_text(message.network, "containers.network"),
        project=_text(message.compose_project, "containers.compose_project"),
        follow=message.follow,
    )
    if not (selector.name or selector.labels or selector.network or selector.project):
        raise InvalidRequest(
            "would match every container of this host",
            field="containers",
            remedy="give a name, a label, a network or a compose project",
        )
    return selector


def _text(text: str, field: str) -> str:
    if len(text) > MAX_SELECTOR or not text.isprintable():
        raise InvalidRequest(
            f"is not printable, or longer than {MAX_SELECTOR} characters",
            field=field,
            value=text[:80],
            remedy="check it",
        )
    return text


def is_session(target: str) -> bool:
    return target.startswith("s-") and is_id(target)
